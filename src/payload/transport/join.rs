//! The streams of a block become records again: prefix sums, unary row counts, six-bit columns.
//!
//! This is what the decoding costs beside zstd, a nanosecond a value, so it is written without branches per value and compiled for
//! every instruction set (`sparseloco::simd`), with a form of its own for the usual k = 64.

use crate::sparseloco::{BLOCK_EDGE, Format, KEEP_MAX, Kernel, Lanes, Layout};

use super::MalformedTransport;
use super::block::{codes_len, signs_len};
use super::gaps::{self, Positions};

/// The usual k.
const KEEP_USUAL: usize = 64;

/// Bits of row counts of the largest k.
const WORDS_MAX: usize = (KEEP_MAX + BLOCK_EDGE) / 64;

/// The expanded streams of a block, and where its records go. Answers how many bytes of gaps are left over.
pub(super) struct Join<'a> {
    pub format: Format,
    /// Values that each chunk keeps.
    pub counts: &'a [u16],
    /// Empty if the format has none.
    pub scales: &'a [u8],
    pub gaps: &'a [u8],
    /// Magnitudes or bins; as many bytes as the live chunks need.
    pub codes: &'a [u8],
    /// As many bytes as the live chunks need.
    pub signs: &'a [u8],
    /// The first chunk.
    pub chunk_idx: usize,
    /// The records of chunks of scale 0 are left as they are.
    pub out: &'a mut [u8],
}

impl Kernel for Join<'_> {
    type Output = Result<usize, MalformedTransport>;

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> Self::Output {
        if self.format.keep() == KEEP_USUAL { self.join::<KEEP_USUAL>() } else { self.join::<0>() }
    }
}

impl Join<'_> {
    /// `K` is k, or 0 for any.
    #[inline(always)]
    fn join<const K: usize>(mut self) -> Result<usize, MalformedTransport> {
        let keep = if K == 0 { self.format.keep() } else { K };
        let mut positions: Positions = [0; KEEP_MAX + 4];
        for (i, record) in self.out.chunks_exact_mut(self.format.record_len()).enumerate() {
            if self.scales.get(i) == Some(&0) {
                continue;
            }
            let n_kept = usize::from(self.counts[i]);
            let fault = |reason| MalformedTransport::Gaps { chunk_idx: self.chunk_idx + i, reason };
            let (rows, rest) = record.split_at_mut((keep + BLOCK_EDGE).div_ceil(8));
            let (columns, rest) = rest.split_at_mut((6 * keep).div_ceil(8));
            // Twice, so that the compiler makes the usual case of it with a known count.
            let used = if n_kept == keep {
                let used = gaps::read(self.gaps, keep, &mut positions).map_err(fault)?;
                write_rows(keep, &positions, keep, rows);
                write_columns(&mut positions, keep, columns);
                used
            } else {
                let used = gaps::read(self.gaps, n_kept, &mut positions).map_err(fault)?;
                write_rows(keep, &positions, n_kept, rows);
                write_columns(&mut positions, n_kept, columns);
                used
            };
            self.gaps = &self.gaps[used..];
            let (signs, rest) = rest.split_at_mut(signs_len(self.format, keep));
            let (codes, scale) = rest.split_at_mut(codes_len(self.format, keep));
            self.signs = copy(self.signs, signs_len(self.format, n_kept), signs);
            self.codes = copy(self.codes, codes_len(self.format, n_kept), codes);
            if let [scale] = scale {
                *scale = self.scales[i];
            }
        }
        Ok(self.gaps.len())
    }
}

/// Moves the first `len` bytes to the front of `out`, zeroes the rest of it, answers the bytes not moved.
#[inline(always)]
fn copy<'a>(bytes: &'a [u8], len: usize, out: &mut [u8]) -> &'a [u8] {
    let (part, left) = bytes.split_at(len);
    if len == out.len() {
        out.copy_from_slice(part);
    } else {
        out.fill(0);
        out[..len].copy_from_slice(part);
    }
    left
}

/// The i-th kept position, in row r, is a one at bit i + r: there are i ones and r zeros before it.
#[inline(always)]
fn write_rows(keep: usize, positions: &Positions, n_kept: usize, out: &mut [u8]) {
    let one = |i: usize, position: u16| i as u32 + u32::from(position) / BLOCK_EDGE as u32;
    let bit = |at: u32| 1_u64.checked_shl(at).unwrap_or(0);
    let mut words = [0_u64; WORDS_MAX];
    if keep <= 64 {
        // Two words, in registers.
        let (mut low, mut high) = (0, 0);
        for (i, position) in positions[..n_kept].iter().enumerate() {
            let one = one(i, *position);
            low |= bit(one);
            high |= bit(one.wrapping_sub(64));
        }
        words[..2].copy_from_slice(&[low, high]);
    } else {
        // A word is written once: to add to it in memory would wait for the write before.
        let (mut word_idx, mut word) = (0, 0);
        for (i, position) in positions[..n_kept].iter().enumerate() {
            let one = one(i, *position);
            if one as usize / 64 != word_idx {
                words[word_idx] = word;
                (word_idx, word) = (one as usize / 64, 0);
            }
            word |= bit(one % 64);
        }
        words[word_idx] = word;
    }
    for (bytes, word) in out.chunks_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
    }
}

/// Four columns are three bytes.
#[inline(always)]
fn write_columns(positions: &mut Positions, n_kept: usize, out: &mut [u8]) {
    positions[n_kept..n_kept + 4].fill(0);
    let n_bytes = (6 * n_kept).div_ceil(8);
    let (columns, spare) = out.split_at_mut(n_bytes);
    spare.fill(0);
    let column = |position: u16, i: u32| (u32::from(position) % BLOCK_EDGE as u32) << (6 * i);
    for (bytes, [a, b, c, d]) in columns.chunks_mut(3).zip(positions.as_chunks().0) {
        let bits = column(*a, 0) | column(*b, 1) | column(*c, 2) | column(*d, 3);
        bytes.copy_from_slice(&bits.to_le_bytes()[..bytes.len()]);
    }
}

/// The one way to write a chunk of scale 0: the first positions that hold parameters, all codes 0.
pub(super) fn write_zero(layout: &Layout, format: Format, chunk_idx: usize, record: &mut [u8]) {
    let valid = layout.valid(layout.tensor_of(chunk_idx), chunk_idx);
    let n_kept = format.kept_of(valid);
    let mut positions: Positions = [0; KEEP_MAX + 4];
    for (place, position) in positions.iter_mut().zip(valid.positions().take(n_kept)) {
        *place = position as u16;
    }
    record.fill(0);
    let (rows, rest) = record.split_at_mut(format.row_counts_len());
    write_rows(format.keep(), &positions, n_kept, rows);
    write_columns(&mut positions, n_kept, &mut rest[..(6 * n_kept).div_ceil(8)]);
}
