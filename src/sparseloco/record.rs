//! A chunk's bytes: which positions were kept, and each one's code. Fixed length, random access, one encoding per content.
//!
//! | part | bytes | k = 64 | holds |
//! |---|---|---|---|
//! | row counts | ⌈(k + 64)/8⌉ | 16 | for each of 64 rows, as many ones as it has kept positions, then a zero |
//! | columns | ⌈6k/8⌉ | 48 | six bits each: the kept position's column, in ascending order of position |
//! | signs | ⌈k/8⌉ | 8 | one: negative (not sigma-bins) |
//! | magnitudes | ⌈k/8⌉ | 8 | one: the tensor's high level (two-bit only) |
//! | codes | ⌈2k/8⌉ | 16 | the bin (sigma-bins only) |
//! | scale | 1 | 1 | the chunk's scale code (not sigma-bins) |
//!
//! That is 73 bytes a chunk for one-bit, 81 for two-bit, 80 for sigma-bins. Rows and columns are an Elias-Fano code: 8 bits an
//! index at k = 64, half a bit from the entropy of a random set, and decoded without an entropy decoder. Bits fill
//! bytes from the lowest; a part's spare bits are zero. A chunk with fewer than k parameters keeps them all and leaves
//! the rest of each part zero. The same form serves the sigma-bins quantiser, whose public wire packs 12-bit indices instead.
//!
//! **One content, one encoding (C-2).** Kept positions ascend strictly, there are exactly as many as the chunk allows, spare
//! bits are zero, and a chunk of scale 0, where positions and codes mean nothing, keeps its first positions with codes 0.

use crate::run_spec::{Quantiser, SparseSpec};

use super::layout::{BLOCK_EDGE, Valid};

/// The most values a chunk may keep.
pub const KEEP_MAX: usize = 1024;

/// Bits of a column.
pub(super) const COLUMN_BITS: usize = 6;

/// How records are written in a run: the quantiser and k.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    quantiser: Quantiser,
    keep: usize,
}

/// A part of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Unary counts of kept positions per row.
    RowCounts,
    /// Six-bit columns.
    Columns,
    /// One bit per kept value.
    Signs,
    /// One bit per kept value.
    Magnitudes,
    /// Two bits per kept value.
    Codes,
}

/// Why a record is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedRecord {
    /// The row counts do not add up to what the chunk keeps.
    #[error("chunk {chunk_idx} keeps {got} values: it must keep {want}")]
    KeptCount {
        /// The chunk.
        chunk_idx: usize,
        /// Ones in the row counts.
        got: usize,
        /// min(k, parameters in the chunk).
        want: usize,
    },
    /// A bit is set where nothing is stored; in the row counts, also a 65th row.
    #[error("chunk {chunk_idx} sets spare bits of its {part:?}")]
    SpareBits {
        /// The chunk.
        chunk_idx: usize,
        /// The part.
        part: Part,
    },
    /// A kept position does not come after the one before it.
    #[error("chunk {chunk_idx} keeps position {position} after {previous}: positions must ascend")]
    NotAscending {
        /// The chunk.
        chunk_idx: usize,
        /// The position before.
        previous: usize,
        /// The offending position.
        position: usize,
    },
    /// A kept position holds no parameter.
    #[error("chunk {chunk_idx} keeps position {position}, which is padding")]
    Padding {
        /// The chunk.
        chunk_idx: usize,
        /// The position.
        position: usize,
    },
    /// A chunk of scale 0 that is not written in its one way.
    #[error("chunk {chunk_idx} has scale 0 but does not keep its first positions with codes 0")]
    ZeroChunk {
        /// The chunk.
        chunk_idx: usize,
    },
}

impl Format {
    /// The run's format.
    ///
    /// # Panics
    /// If k is not within 1..=[`KEEP_MAX`], which the run spec's own check refuses.
    #[must_use]
    pub fn of(spec: &SparseSpec) -> Self {
        assert!((1..=KEEP_MAX).contains(&spec.keep_per_chunk), "keep_per_chunk {}", spec.keep_per_chunk);
        Self { quantiser: spec.quantiser, keep: spec.keep_per_chunk }
    }

    /// How kept values are written.
    #[must_use]
    pub fn quantiser(self) -> Quantiser {
        self.quantiser
    }

    /// k: values a chunk keeps if it has so many.
    #[must_use]
    pub fn keep(self) -> usize {
        self.keep
    }

    /// How many values a chunk keeps.
    #[must_use]
    pub fn kept_of(self, valid: Valid) -> usize {
        self.keep.min(valid.count())
    }

    /// Bytes of a record.
    #[must_use]
    pub fn record_len(self) -> usize {
        self.codes_at() + self.codes_len() + usize::from(self.has_scale())
    }

    pub(super) fn codes_len(self) -> usize {
        match self.quantiser {
            Quantiser::OneBit => self.keep.div_ceil(8),
            Quantiser::TwoBit => 2 * self.keep.div_ceil(8),
            Quantiser::SigmaBins => (2 * self.keep).div_ceil(8),
        }
    }

    /// Bytes of the row counts.
    pub(crate) fn row_counts_len(self) -> usize {
        (self.keep + BLOCK_EDGE).div_ceil(8)
    }

    /// Where the codes begin.
    pub(crate) fn codes_at(self) -> usize {
        self.row_counts_len() + (COLUMN_BITS * self.keep).div_ceil(8)
    }

    /// Whether a record ends with a scale.
    pub(crate) fn has_scale(self) -> bool {
        self.quantiser != Quantiser::SigmaBins
    }
}

/// A chunk's record, its bytes borrowed. Reading one that was not checked gives wrong values, or an index panic.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    format: Format,
    bytes: &'a [u8],
}

impl<'a> Record<'a> {
    pub(super) fn new(format: Format, bytes: &'a [u8]) -> Self {
        debug_assert_eq!(bytes.len(), format.record_len());
        Self { format, bytes }
    }

    /// The record's bytes.
    #[must_use]
    pub fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// The chunk's scale code; 1 (any other than 0) where the format has none.
    #[must_use]
    pub fn scale(self) -> u8 {
        if self.format.has_scale() { self.bytes[self.bytes.len() - 1] } else { 1 }
    }

    /// Calls `f(position, code)` for each of the `n_kept` kept values, in ascending order of position.
    #[inline]
    pub fn for_each(self, n_kept: usize, mut f: impl FnMut(usize, u8)) {
        let columns = Bits(&self.bytes[self.format.row_counts_len()..self.format.codes_at()]);
        let mut i = 0;
        for (word_idx, word) in self.bytes[..self.format.row_counts_len()].chunks(8).enumerate() {
            let mut word = little_endian(word);
            while word != 0 && i < n_kept {
                // The i-th one stands after i ones and as many zeros as rows have ended.
                let row = word_idx * 64 + word.trailing_zeros() as usize - i;
                word &= word - 1;
                f(row * BLOCK_EDGE + columns.get(COLUMN_BITS * i, COLUMN_BITS), self.code(i));
                i += 1;
            }
        }
    }

    /// How many kept values have each code.
    #[must_use]
    pub fn code_counts(self, n_kept: usize) -> [u32; 4] {
        let ones = |plane: usize| self.plane(plane).iter().map(|byte| byte.count_ones()).sum::<u32>();
        let n = n_kept as u32;
        match self.format.quantiser {
            Quantiser::OneBit => [n - ones(0), ones(0), 0, 0],
            Quantiser::TwoBit => {
                let (signs, magnitudes) = (ones(0), ones(1));
                let both = self.plane(0).iter().zip(self.plane(1)).map(|(a, b)| (a & b).count_ones()).sum::<u32>();
                [n + both - signs - magnitudes, signs - both, magnitudes - both, both]
            }
            Quantiser::SigmaBins => {
                let mut counts = [0; 4];
                (0..n_kept).for_each(|i| counts[usize::from(self.code(i))] += 1);
                counts
            }
        }
    }

    fn plane(self, plane: usize) -> &'a [u8] {
        let len = self.format.keep.div_ceil(8);
        let at = self.format.codes_at() + plane * len;
        &self.bytes[at..at + len]
    }

    #[inline]
    fn code(self, i: usize) -> u8 {
        let bit = |plane: usize| (self.plane(plane)[i / 8] >> (i % 8)) & 1;
        match self.format.quantiser {
            Quantiser::OneBit => bit(0),
            Quantiser::TwoBit => bit(0) | bit(1) << 1,
            Quantiser::SigmaBins => (self.bytes[self.format.codes_at() + i / 4] >> (2 * (i % 4))) & 3,
        }
    }

    /// Whether a peer may have sent this record for a chunk of such parameters.
    pub(super) fn check(self, chunk_idx: usize, valid: Valid) -> Result<(), MalformedRecord> {
        let want = self.format.kept_of(valid);
        let got = self.ones();
        if got != want {
            return Err(MalformedRecord::KeptCount { chunk_idx, got, want });
        }
        self.check_spare_bits(chunk_idx, want)?;
        let zero_chunk = self.scale() == 0;
        let mut first_positions = valid.positions();
        let (mut previous, mut fault) = (None, None);
        self.for_each(want, |position, code| {
            if fault.is_some() {
                return;
            }
            fault = match previous {
                Some(previous) if position <= previous => {
                    Some(MalformedRecord::NotAscending { chunk_idx, previous, position })
                }
                _ if !valid.contains(position) => Some(MalformedRecord::Padding { chunk_idx, position }),
                _ if zero_chunk && (code != 0 || first_positions.next() != Some(position)) => {
                    Some(MalformedRecord::ZeroChunk { chunk_idx })
                }
                _ => None,
            };
            previous = Some(position);
        });
        fault.map_or(Ok(()), Err)
    }

    /// Ones in the row counts.
    #[inline(always)]
    pub(super) fn ones(self) -> usize {
        let (words, rest) = self.bytes[..self.format.row_counts_len()].as_chunks();
        let whole: u32 = words.iter().map(|word| u64::from_le_bytes(*word).count_ones()).sum();
        (whole + little_endian(rest).count_ones()) as usize
    }

    #[inline(always)]
    pub(super) fn check_spare_bits(self, chunk_idx: usize, n_kept: usize) -> Result<(), MalformedRecord> {
        let (rows, codes) = (self.format.row_counts_len(), self.format.codes_at());
        let check = |part: Part, bytes: &[u8], used: usize| {
            if Bits(bytes).is_zero_from(used) { Ok(()) } else { Err(MalformedRecord::SpareBits { chunk_idx, part }) }
        };
        // With n_kept ones, all before bit n_kept + 63, that bit is the 64th zero: each row has its end.
        check(Part::RowCounts, &self.bytes[..rows], n_kept + BLOCK_EDGE - 1)?;
        check(Part::Columns, &self.bytes[rows..codes], COLUMN_BITS * n_kept)?;
        match self.format.quantiser {
            Quantiser::OneBit => check(Part::Signs, self.plane(0), n_kept),
            Quantiser::TwoBit => {
                check(Part::Signs, self.plane(0), n_kept)?;
                check(Part::Magnitudes, self.plane(1), n_kept)
            }
            Quantiser::SigmaBins => check(Part::Codes, &self.bytes[codes..], 2 * n_kept),
        }
    }
}

/// Bits that fill bytes from the lowest.
struct Bits<'a>(&'a [u8]);

impl Bits<'_> {
    /// `n` ≤ 8 bits from bit `at`.
    #[inline]
    fn get(&self, at: usize, n: usize) -> usize {
        let low = usize::from(self.0[at / 8]);
        let high = self.0.get(at / 8 + 1).copied().map_or(0, usize::from);
        ((high << 8 | low) >> (at % 8)) & ((1 << n) - 1)
    }

    fn is_zero_from(&self, at: usize) -> bool {
        let whole = self.0.get(at.div_ceil(8)..).unwrap_or(&[]).iter().all(|byte| *byte == 0);
        whole && self.0.get(at / 8).is_none_or(|byte| byte >> (at % 8) == 0)
    }
}

/// Up to eight bytes as a number; missing ones are zero.
#[inline(always)]
pub(super) fn little_endian(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}
