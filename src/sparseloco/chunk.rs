//! One chunk's compression, while it is in the first cache: a ← fl(β·e + Δ), selection, codes, e ← fl(a − Δ̂), record.

use crate::run_spec::Quantiser;

use super::layout::{BLOCK_EDGE, CHUNK_LEN, Valid};
use super::levels::Levels;
use super::record::{Format, KEEP_MAX};
use super::scale;
use super::select::{Maxima, Selection};
use super::simd::Lanes;
use super::write::{self, Codes, PLANE_WORDS};

/// The magnitude bits of infinity; those of NaN are above.
const INFINITE: u32 = 0x7f80_0000;

/// Partial sums of the report's energies.
const ENERGY_LANES: usize = 8;

/// A chunk's place in e and Δ.
pub(super) struct Chunk<'a> {
    pub valid: Valid,
    pub error: &'a mut [f32; CHUNK_LEN],
    pub delta: &'a [f32; CHUNK_LEN],
    /// e and Δ of the chunk that comes next.
    pub next: Option<(&'a [f32; CHUNK_LEN], &'a [f32; CHUNK_LEN])>,
}

/// What is wrong with a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unfit {
    NotFinite,
    PaddingNotZero,
}

/// Figures of the kept values, and those of them that addition does not give back.
#[derive(Default)]
pub(super) struct Tally {
    pub kept: u64,
    pub zero_chunks: u64,
    pub energy_kept: f64,
    pub energy_lost: f64,
    /// (position in the flat form, a).
    pub exceptions: Vec<(u64, f32)>,
}

/// Room for one chunk's work; every thread has one.
pub(super) struct Bench {
    format: Format,
    decay: f32,
    maxima: Maxima,
    selection: Selection,
    /// a at the selected positions, rows of 64; zero beyond them.
    values: [f32; KEEP_MAX],
    /// Δ̂ and e at the selected positions.
    sent: [f32; KEEP_MAX],
    rests: [f32; KEEP_MAX],
}

impl Bench {
    pub(super) fn new(format: Format, decay: f32) -> Self {
        let maxima = Maxima::new(format.keep());
        let none = [0.0; KEEP_MAX];
        Self { format, decay, maxima, selection: Selection::new(), values: none, sent: none, rests: none }
    }

    /// e ← a, and the positions of the largest |a|; their values are in `values`.
    #[inline(always)]
    pub(super) fn accumulate_and_select<L: Lanes>(
        &mut self,
        lanes: L,
        chunk: &mut Chunk<'_>,
    ) -> Result<&[u16], Unfit> {
        let is_full = chunk.valid == Valid::FULL;
        let stray = |at: usize| !chunk.valid.contains(at) && (chunk.error[at] != 0.0 || chunk.delta[at] != 0.0);
        if !is_full && (0..CHUNK_LEN).any(stray) {
            return Err(Unfit::PaddingNotZero);
        }
        let largest = self.maxima.accumulate(lanes, self.decay, chunk.error, chunk.delta);
        if largest >= INFINITE {
            return Err(Unfit::NotFinite);
        }
        let n_kept = self.format.kept_of(chunk.valid);
        let next = chunk.next;
        let prefetch = |row_idx: usize| {
            if let Some((error, delta)) = next {
                lanes.prefetch(&error.as_chunks::<BLOCK_EDGE>().0[row_idx]);
                lanes.prefetch(&delta.as_chunks::<BLOCK_EDGE>().0[row_idx]);
            }
        };
        let maxima = (&self.maxima, largest);
        let positions = self.selection.select(lanes, chunk.error, chunk.valid, maxima, n_kept, prefetch);
        for (value, position) in self.values.iter_mut().zip(positions) {
            *value = chunk.error[usize::from(*position) % CHUNK_LEN];
        }
        self.values[n_kept..n_kept.next_multiple_of(BLOCK_EDGE)].fill(0.0);
        Ok(positions)
    }

    /// The values that the last selection kept.
    pub(super) fn values(&self, n_kept: usize) -> &[f32] {
        &self.values[..n_kept]
    }

    /// The whole of a chunk for the quantisers whose scale is the chunk's. `first` is the chunk's place in the flat form.
    #[inline(always)]
    pub(super) fn encode<L: Lanes>(
        &mut self,
        lanes: L,
        levels: Levels,
        mut chunk: Chunk<'_>,
        (first, record): (usize, &mut [u8]),
        tally: &mut Tally,
    ) -> Result<(), Unfit> {
        let n_kept = self.accumulate_and_select(lanes, &mut chunk)?.len();
        let code = scale::nearest(mean_magnitude(&self.values[..n_kept]));
        if code == 0 {
            // Nothing is subtracted: e keeps a.
            write::write_zero(self.format, chunk.valid, record);
            tally.zero_chunks += 1;
            tally.count(&self.values[..n_kept], &self.values[..n_kept]);
            return Ok(());
        }
        let table = levels.values(code);
        let is_two_bit = self.format.quantiser() == Quantiser::TwoBit;
        let [low, high] = if is_two_bit { [table[0], table[2]] } else { [table[0]; 2] };
        let split = (low + high) / 2.0;
        let mut planes = [[0; PLANE_WORDS]; 2];
        for (i, row) in self.values[..n_kept.next_multiple_of(BLOCK_EDGE)].as_chunks().0.iter().enumerate() {
            planes[0][i] = lanes.signs(row);
            if is_two_bit {
                // Half-way is the low level; what is beyond the kept values is zero, and never above.
                planes[1][i] = lanes.at_least(row, split.to_bits() + 1);
            }
        }
        let codes = if is_two_bit { Codes::SignsAndMagnitudes(&planes) } else { Codes::Signs(&planes[0]) };
        write::write(self.format, self.selection.selected(n_kept), codes, code, record);
        for (sent, a) in self.sent[..n_kept].iter_mut().zip(&self.values) {
            *sent = (if a.abs() > split { high } else { low }).copysign(*a);
        }
        self.subtract(n_kept, (first, chunk.error), tally);
        Ok(())
    }

    /// e ← fl(a − Δ̂) where Δ̂ is not zero, and the figures of it.
    #[inline(always)]
    fn subtract(&mut self, n_kept: usize, (first, error): (usize, &mut [f32; CHUNK_LEN]), tally: &mut Tally) {
        let (values, sent, rests) = (&self.values[..n_kept], &self.sent[..n_kept], &mut self.rests[..n_kept]);
        let mut is_exact = true;
        for ((rest, a), sent) in rests.iter_mut().zip(values).zip(sent) {
            *rest = a - sent;
            is_exact &= (*rest + sent).to_bits() == a.to_bits();
        }
        let positions = self.selection.selected(n_kept);
        for (rest, position) in rests.iter().zip(positions) {
            error[usize::from(*position) % CHUNK_LEN] = *rest;
        }
        if !is_exact {
            for (((rest, a), sent), position) in rests.iter().zip(values).zip(sent).zip(positions) {
                if (rest + sent).to_bits() != a.to_bits() {
                    tally.exceptions.push(((first + usize::from(*position)) as u64, *a));
                }
            }
        }
        tally.count(values, rests);
    }

    /// As [`subtract`](Self::subtract), for values that were selected before.
    pub(super) fn subtract_bins(
        &mut self,
        (positions, bins, table): (&[u16], &[u8], [f32; 4]),
        (first, error): (usize, &mut [f32; CHUNK_LEN]),
        tally: &mut Tally,
    ) {
        self.selection.take(positions);
        for ((value, sent), (position, bin)) in self.values.iter_mut().zip(&mut self.sent).zip(positions.iter().zip(bins)) {
            *value = error[usize::from(*position)];
            *sent = table[usize::from(*bin)];
        }
        self.subtract(positions.len(), (first, error), tally);
    }
}

impl Tally {
    /// Counts kept values a and what remains of them. Several partial sums, so that vectors may add them.
    #[inline(always)]
    fn count(&mut self, values: &[f32], rests: &[f32]) {
        let energy = |values: &[f32]| {
            let mut lanes = [0.0_f64; ENERGY_LANES];
            let (whole, last) = values.as_chunks::<ENERGY_LANES>();
            for values in whole {
                for (lane, value) in lanes.iter_mut().zip(values) {
                    *lane += f64::from(*value) * f64::from(*value);
                }
            }
            let last = last.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>();
            lanes.into_iter().sum::<f64>() + last
        };
        self.kept += values.len() as u64;
        self.energy_kept += energy(values);
        self.energy_lost += energy(rests);
    }

    /// Adds another thread's.
    pub(super) fn add(&mut self, other: Self) {
        self.kept += other.kept;
        self.zero_chunks += other.zero_chunks;
        self.energy_kept += other.energy_kept;
        self.energy_lost += other.energy_lost;
        self.exceptions.extend(other.exceptions);
    }
}

/// The mean |a| of the kept values. Sixteen partial sums, folded in halves: an order that vectors have for free. A sum beyond f32
/// is infinite and codes as the largest scale.
#[inline(always)]
pub(super) fn mean_magnitude(values: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let (whole, last) = values.as_chunks::<16>();
    for values in whole {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane += value.abs();
        }
    }
    for (lane, value) in lanes.iter_mut().zip(last) {
        *lane += value.abs();
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0] / values.len() as f32
}
