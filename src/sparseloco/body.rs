//! A contribution: the levels of every tensor and the record of every chunk, and what can be asked of it without ever
//! making it dense.
//!
//! A [`Body`] owns its bytes, a [`BodyRef`] borrows them, from a `Body` or from a payload that came over the network. Both
//! hold checked bytes only: whoever has one may decode it without further tests, and knows that no decoded value is
//! larger than 2^7.

use crate::run_spec::SparseSpec;

use super::layout::{BLOCK_EDGE, CHUNK_LEN, Layout};
use super::levels::{Levels, MalformedLevels};
use super::read::Reader;
use super::record::{Format, MalformedRecord, Record};
use super::simd::{Portable, Simd};

/// A contribution that owns its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    pub(super) format: Format,
    pub(super) levels: Vec<u8>,
    pub(super) records: Vec<u8>,
}

/// A contribution whose bytes are another's.
#[derive(Debug, Clone, Copy)]
pub struct BodyRef<'a> {
    format: Format,
    levels: &'a [u8],
    records: &'a [u8],
}

/// Why bytes are not a contribution.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum MalformedBody {
    /// A tensor's levels.
    #[error(transparent)]
    Levels(#[from] MalformedLevels),
    /// A chunk's record.
    #[error(transparent)]
    Record(#[from] MalformedRecord),
}

impl Body {
    /// Room for every level and record, all zero: not a contribution yet.
    pub(super) fn blank(layout: &Layout, format: Format) -> Self {
        let (levels, records) = BodyRef::lens(layout, format);
        Self { format, levels: vec![0; levels], records: vec![0; records] }
    }

    /// The same contribution, borrowed.
    #[must_use]
    pub fn view(&self) -> BodyRef<'_> {
        BodyRef { format: self.format, levels: &self.levels, records: &self.records }
    }
}

impl<'a> BodyRef<'a> {
    /// The widest vectors that a check uses: with those of AVX-512 it is a fifth slower (`cargo xtask bench payload`), since it handles
    /// bytes more than numbers.
    pub const CHECK_SIMD_MAX: Simd = Simd::Avx2;

    /// Bytes of all levels, and of all records.
    #[must_use]
    pub fn lens(layout: &Layout, format: Format) -> (usize, usize) {
        (layout.tensors().len() * Levels::len(format.quantiser()), layout.n_chunks() * format.record_len())
    }

    /// Checks bytes from a peer; allocates nothing.
    ///
    /// # Errors
    /// What is wrong, and where: refuse the payload.
    ///
    /// # Panics
    /// If the slices are not of the lengths that [`lens`](Self::lens) gives.
    pub fn check(layout: &Layout, format: Format, levels: &'a [u8], records: &'a [u8]) -> Result<Self, MalformedBody> {
        Self::check_with(Self::CHECK_SIMD_MAX.min(Simd::best()), layout, format, levels, records)
    }

    /// [`check`](Self::check) by the given instructions.
    ///
    /// # Errors
    /// As `check`.
    ///
    /// # Panics
    /// As `check`, and if the CPU does not have these instructions.
    pub fn check_with(
        simd: Simd,
        layout: &Layout,
        format: Format,
        levels: &'a [u8],
        records: &'a [u8],
    ) -> Result<Self, MalformedBody> {
        assert_eq!((levels.len(), records.len()), Self::lens(layout, format), "bytes of levels and records");
        let body = Self { format, levels, records };
        let mut reader = Reader::new(format);
        for tensor_idx in 0..layout.tensors().len() {
            body.levels(tensor_idx).check(tensor_idx)?;
            simd.plain(
                #[inline(always)]
                || {
                    for (chunk_idx, valid) in layout.chunks_with_valid(tensor_idx) {
                        let record = reader.record(body, chunk_idx);
                        if !reader.accepts(record, valid) {
                            record.check(chunk_idx, valid)?;
                        }
                    }
                    Ok::<_, MalformedRecord>(())
                },
            )?;
        }
        Ok(body)
    }

    /// Bytes that [`check`](Self::check) accepted before; others would give wrong values, or panics, later.
    #[must_use]
    pub(crate) fn checked_before(format: Format, levels: &'a [u8], records: &'a [u8]) -> Self {
        Self { format, levels, records }
    }

    /// How its records are written.
    #[must_use]
    pub fn format(self) -> Format {
        self.format
    }

    /// The bytes of all levels, tensor by tensor.
    #[must_use]
    pub fn level_bytes(self) -> &'a [u8] {
        self.levels
    }

    /// The bytes of all records, chunk by chunk.
    #[must_use]
    pub fn record_bytes(self) -> &'a [u8] {
        self.records
    }

    /// A tensor's levels.
    #[must_use]
    pub fn levels(self, tensor_idx: usize) -> Levels {
        let len = Levels::len(self.format.quantiser());
        Levels::read(self.format.quantiser(), &self.levels[tensor_idx * len..(tensor_idx + 1) * len])
    }

    /// A chunk's record.
    #[must_use]
    pub fn record(self, chunk_idx: usize) -> Record<'a> {
        let len = self.format.record_len();
        Record::new(self.format, &self.records[chunk_idx * len..(chunk_idx + 1) * len])
    }
}

/// Calls `f(position in the flat form, Δ̂ · scale)` for every kept value, ascending; `scale` is asked for each tensor, and `f` must be
/// `#[inline(always)]`.
fn for_each_value(layout: &Layout, body: BodyRef<'_>, scale: impl Fn(usize) -> f32, mut f: impl FnMut(usize, f32)) {
    let mut reader = Reader::new(body.format);
    Simd::best().plain(
        #[inline(always)]
        || {
            for tensor_idx in 0..layout.tensors().len() {
                let (levels, scale) = (body.levels(tensor_idx), scale(tensor_idx));
                for (chunk_idx, valid) in layout.chunks_with_valid(tensor_idx) {
                    let record = reader.record(body, chunk_idx);
                    let values = levels.values(record.scale()).map(|value| value * scale);
                    let n_kept = body.format.kept_of(valid);
                    reader.for_each(
                        Portable,
                        record,
                        n_kept,
                        values.map(|value| value.to_bits() as i32),
                        #[inline(always)]
                        |position, value| f(chunk_idx * CHUNK_LEN + position, f32::from_bits(value as u32)),
                    );
                }
            }
        },
    );
}

/// Δ̂ in full, chunk-major: for tests and comparisons, never on the way to θ.
#[must_use]
pub fn decode(layout: &Layout, body: BodyRef<'_>) -> Vec<f32> {
    let mut dense = vec![0.0; layout.flat_len()];
    for_each_value(
        layout,
        body,
        |_| 1.0,
        #[inline(always)]
        |at, value| dense[at] = value,
    );
    dense
}

/// θ ← θ − step · scale · Δ̂ for one contribution, with a scale for each tensor: what a LossScore evaluates.
///
/// # Panics
/// If `theta` is not the layout's flat form, the contribution not in the run's format, or there is not one scale a tensor.
pub fn apply_one(layout: &Layout, spec: &SparseSpec, body: BodyRef<'_>, step: f32, scales: &[f32], theta: &mut [f32]) {
    assert_eq!(body.format, Format::of(spec), "the contribution's format");
    assert_eq!(scales.len(), layout.tensors().len(), "one scale a tensor");
    assert_eq!(theta.len(), layout.flat_len(), "the flat form's length");
    for_each_value(
        layout,
        body,
        |tensor_idx| scales[tensor_idx],
        #[inline(always)]
        |at, value| theta[at] -= step * value,
    );
}

/// ‖Δ̂‖₂ of each tensor. Each chunk adds (how many) · (value)² per code, in f64, chunks ascending: one order, one result.
#[must_use]
pub fn norms(layout: &Layout, body: BodyRef<'_>) -> Vec<f64> {
    norms_with(Simd::best(), layout, body)
}

/// [`norms`] by the given instructions.
pub(super) fn norms_with(simd: Simd, layout: &Layout, body: BodyRef<'_>) -> Vec<f64> {
    let reader = Reader::new(body.format);
    let squares = |tensor_idx: usize| {
        let levels = body.levels(tensor_idx);
        let mut sum = 0.0;
        simd.plain(
            #[inline(always)]
            || {
                for (chunk_idx, valid) in layout.chunks_with_valid(tensor_idx) {
                    let record = reader.record(body, chunk_idx);
                    let counts = reader.code_counts(record, body.format.kept_of(valid));
                    for (count, value) in counts.into_iter().zip(levels.values(record.scale())) {
                        sum += f64::from(count) * (f64::from(value) * f64::from(value));
                    }
                }
            },
        );
        sum
    };
    (0..layout.tensors().len()).map(|tensor_idx| squares(tensor_idx).sqrt()).collect()
}

/// ‖Δ̂‖₂ of the whole contribution.
#[must_use]
pub fn norm(layout: &Layout, body: BodyRef<'_>) -> f64 {
    norms(layout, body).into_iter().map(|norm| norm * norm).sum::<f64>().sqrt()
}

/// How far the kept positions of each two contributions agree beyond chance, of what the smaller one keeps; 1 for a copy, about 0 for
/// peers that know nothing of each other. The agreement of the contributions at `a` and at `b` > `a` is in `[b][a]`.
///
/// m of n positions chosen blindly have m²/n in common with another such choice, so that much is taken off both sides of the
/// ratio (as Cohen's κ does). It matters where a chunk has few parameters: one that keeps them all says nothing about where its
/// positions come from. Honest peers of the default run agree in 0.36 in its first round and in 0.13 after eight
/// (`cargo xtask bench copies`). Chunks of scale 0 keep nothing: their positions are the same for everybody, and two peers are
/// not copies because one tensor is frozen for both.
///
/// Chunk by chunk the positions of all are marked, and then compared: each record is read once, however many it is compared with.
///
/// # Panics
/// If the contributions are not in one format.
#[must_use]
pub fn overlaps(layout: &Layout, bodies: &[BodyRef<'_>]) -> Vec<Vec<f64>> {
    let Some(format) = bodies.first().map(|body| body.format) else { return Vec::new() };
    assert!(bodies.iter().all(|body| body.format == format), "contributions of two runs");
    let mut reader = Reader::new(format);
    let mut maps = vec![[0_u64; BLOCK_EDGE]; bodies.len()];
    let (mut kept, mut possible) = (vec![0.0; bodies.len()], vec![0.0; bodies.len()]);
    let mut overlaps: Vec<Vec<f64>> = (0..bodies.len()).map(|b| vec![0.0; b]).collect();
    Simd::best().plain(
        #[inline(always)]
        || {
            for tensor_idx in 0..layout.tensors().len() {
                for (chunk_idx, valid) in layout.chunks_with_valid(tensor_idx) {
                    for (i, body) in bodies.iter().enumerate() {
                        let record = body.record(chunk_idx);
                        let n_kept = if record.scale() == 0 { 0 } else { format.kept_of(valid) };
                        kept[i] = n_kept as f64;
                        possible[i] += kept[i] - kept[i] * kept[i] / valid.count() as f64;
                        mark_rows(&mut reader, record, n_kept, &mut maps[i]);
                    }
                    for (b, beyond_chance) in overlaps.iter_mut().enumerate() {
                        for (a, beyond_chance) in beyond_chance.iter_mut().enumerate() {
                            let common: u32 = maps[a].iter().zip(&maps[b]).map(|(a, b)| (a & b).count_ones()).sum();
                            *beyond_chance += f64::from(common) - kept[a] * kept[b] / valid.count() as f64;
                        }
                    }
                }
            }
        },
    );
    for (b, of_b) in overlaps.iter_mut().enumerate() {
        for (a, overlap) in of_b.iter_mut().enumerate() {
            let smaller = possible[a].min(possible[b]);
            *overlap = if smaller == 0.0 { 0.0 } else { (*overlap / smaller).clamp(0.0, 1.0) };
        }
    }
    overlaps
}

/// The kept positions as one bitmap a row.
#[inline(always)]
fn mark_rows(reader: &mut Reader, record: Record<'_>, n_kept: usize, rows: &mut [u64; BLOCK_EDGE]) {
    rows.fill(0);
    reader.for_each_position(
        record,
        n_kept,
        #[inline(always)]
        |position| rows[position / BLOCK_EDGE % BLOCK_EDGE] |= 1 << (position % BLOCK_EDGE),
    );
}
