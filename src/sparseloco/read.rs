//! Reading records at the speed of memory: 64 values at a time, in words and vectors instead of bits.
//!
//! [`Record::for_each`] and [`Record::check`] are what a record means; this is the same, fast, and tests hold the two
//! together. Nothing branches on the data: a byte of row counts becomes the rows of its ones through a table of 256 words, the
//! columns of eight values spread from six bytes in three steps of masks and shifts, and the ascending order of positions is one
//! comparison of neighbours. Where a record ends before a block of 64 does, what follows its kept values is never used.
//!
//! All of it is plain loops, `#[inline(always)]`, to be compiled for an instruction set by `Simd::plain` or `Simd::dispatch`.

use crate::run_spec::Quantiser;

use super::layout::{CHUNK_LEN, Valid};
use super::record::{COLUMN_BITS, Format, KEEP_MAX, Record, little_endian};

/// Values of a block: as many as a word has bits.
pub(super) const BLOCK: usize = 64;

/// Bytes of a block's columns.
const COLUMN_BYTES: usize = COLUMN_BITS * BLOCK / 8;

/// For each byte, in byte j: how many zeros stand before its j-th one.
const ZEROS_BEFORE: [u64; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut bit, mut ones) = (0, 0);
        while bit < 8 {
            if byte >> bit & 1 == 1 {
                table[byte] |= (bit - ones) << (8 * ones);
                ones += 1;
            }
            bit += 1;
        }
        byte += 1;
    }
    table
};

/// In every byte of a word.
const EACH_BYTE: u64 = 0x0101_0101_0101_0101;

/// Where the parts of one format's records are, and room for one record's positions.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    format: Format,
    columns_at: usize,
    codes_at: usize,
    plane_len: usize,
    /// The byte that follows the last value's row is written too.
    rows: [u8; KEEP_MAX + 8],
    positions: [u16; KEEP_MAX],
}

impl Reader {
    pub(super) fn new(format: Format) -> Self {
        let (columns_at, codes_at, plane_len) = (format.row_counts_len(), format.codes_at(), format.keep().div_ceil(8));
        Self { format, columns_at, codes_at, plane_len, rows: [0; KEEP_MAX + 8], positions: [0; KEEP_MAX] }
    }

    /// The kept positions, ascending, and beyond `n_kept` anything below [`CHUNK_LEN`]; as many as fill the blocks. Row counts
    /// must hold `n_kept` ones and no spare bit.
    #[inline(always)]
    pub(super) fn positions(&mut self, record: Record<'_>, n_kept: usize) -> &[[u16; BLOCK]] {
        let bytes = record.bytes();
        self.read_rows(&bytes[..self.columns_at]);
        let n_blocks = n_kept.div_ceil(BLOCK);
        let rows = self.rows.as_chunks::<BLOCK>().0;
        let positions = &mut self.positions.as_chunks_mut::<BLOCK>().0[..n_blocks];
        for (block, (positions, rows)) in positions.iter_mut().zip(rows).enumerate() {
            let columns = columns(&bytes[self.columns_at + block * COLUMN_BYTES..]);
            for (position, (row, column)) in positions.iter_mut().zip(rows.iter().zip(columns)) {
                *position = (u16::from(*row) << COLUMN_BITS | u16::from(column)) % CHUNK_LEN as u16;
            }
        }
        positions
    }

    /// The row of the i-th one: as many zeros as stand before it.
    #[inline(always)]
    fn read_rows(&mut self, row_counts: &[u8]) {
        let (words, rest) = row_counts.as_chunks::<8>();
        let mut ones = 0;
        for (word_idx, word) in words.iter().enumerate() {
            ones = self.read_rows_of(u64::from_le_bytes(*word), 64 * word_idx, ones);
        }
        if !rest.is_empty() {
            self.read_rows_of(little_endian(rest), 64 * words.len(), ones);
        }
    }

    /// One word of row counts, before which stand `bits` bits and `ones` ones; returns the ones with it.
    #[inline(always)]
    fn read_rows_of(&mut self, word: u64, bits: usize, ones: usize) -> usize {
        // In each byte: the ones in it, then those in it and in all before it.
        let pairs = word - (word >> 1 & 0x55 * EACH_BYTE);
        let fours = (pairs & 0x33 * EACH_BYTE) + (pairs >> 2 & 0x33 * EACH_BYTE);
        let through = ((fours + (fours >> 4)) & 0x0f * EACH_BYTE).wrapping_mul(EACH_BYTE);
        for byte_idx in 0..8 {
            let before = ones + ((through << 8) >> (8 * byte_idx) & 0xff) as usize;
            let byte = (word >> (8 * byte_idx) & 0xff) as usize;
            let zeros = ((bits + 8 * byte_idx - before) as u64 & 0xff) * EACH_BYTE;
            // No byte carries into the next: a record has 64 zeros before its end.
            let rows = ZEROS_BEFORE[byte].wrapping_add(zeros);
            self.rows[before..before + 8].copy_from_slice(&rows.to_le_bytes());
        }
        ones + (through >> 56) as usize
    }

    /// The low and the high bits of a block's codes; those of values that the record has no room for are zero.
    #[inline(always)]
    pub(super) fn planes(&self, record: Record<'_>, block: usize) -> [u64; 2] {
        let codes = &record.bytes()[self.codes_at..];
        match self.format.quantiser() {
            Quantiser::OneBit => [word(codes, 8 * block, self.plane_len), 0],
            Quantiser::TwoBit => {
                let high = self.plane_len + 8 * block;
                [word(codes, 8 * block, self.plane_len), word(codes, high, 2 * self.plane_len)]
            }
            Quantiser::SigmaBins => {
                let [first, second] = [16 * block, 16 * block + 8].map(|at| word(codes, at, codes.len()));
                [even_bits(first) | even_bits(second) << 32, even_bits(first >> 1) | even_bits(second >> 1) << 32]
            }
        }
    }

    /// How many kept values have each code.
    #[inline(always)]
    pub(super) fn code_counts(&self, record: Record<'_>, n_kept: usize) -> [u32; 4] {
        let (mut low, mut high, mut both) = (0, 0, 0);
        for block in 0..n_kept.div_ceil(BLOCK) {
            let planes = self.planes(record, block);
            low += planes[0].count_ones();
            high += planes[1].count_ones();
            both += (planes[0] & planes[1]).count_ones();
        }
        [n_kept as u32 + both - low - high, low - both, high - both, both]
    }

    /// Calls `f(position, term of its code)` for every kept value, ascending.
    #[inline(always)]
    pub(super) fn for_each<T: Copy + Default>(
        &mut self,
        record: Record<'_>,
        n_kept: usize,
        table: [T; 4],
        mut f: impl FnMut(usize, T),
    ) {
        self.positions(record, n_kept);
        for (block, positions) in self.positions.as_chunks::<BLOCK>().0.iter().enumerate().take(n_kept.div_ceil(BLOCK))
        {
            let terms = terms(self.planes(record, block), table);
            let n_here = n_kept - block * BLOCK;
            if n_here >= BLOCK {
                for (position, term) in positions.iter().zip(terms) {
                    f(usize::from(*position), term);
                }
            } else {
                for (position, term) in positions[..n_here].iter().zip(terms) {
                    f(usize::from(*position), term);
                }
            }
        }
    }

    /// Whether [`Record::check`] accepts the record. What is wrong with one that it refuses is for `check` to say.
    #[inline(always)]
    pub(super) fn accepts(&mut self, record: Record<'_>, valid: Valid) -> bool {
        let n_kept = self.format.kept_of(valid);
        if record.ones() != n_kept || record.check_spare_bits(0, n_kept).is_err() {
            return false;
        }
        if record.scale() == 0 {
            return record.check(0, valid).is_ok();
        }
        self.positions(record, n_kept);
        let positions = &self.positions[..n_kept];
        let ascend = positions.iter().zip(&positions[1..]).fold(true, |all, (a, b)| all & (a < b));
        ascend
            && (valid == Valid::FULL || positions.iter().fold(true, |all, at| all & valid.contains(usize::from(*at))))
    }
}

/// What each code of a block stands for.
#[inline(always)]
pub(super) fn terms<T: Copy + Default>(planes: [u64; 2], table: [T; 4]) -> [T; BLOCK] {
    let mut terms = [T::default(); BLOCK];
    for (part, terms) in terms.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let [low, high] = planes.map(|plane| (plane >> (16 * part)) as u32 & 0xffff);
        for (i, term) in terms.iter_mut().enumerate() {
            let bit = 1 << i;
            let near = if low & bit == 0 { table[0] } else { table[1] };
            let far = if low & bit == 0 { table[2] } else { table[3] };
            *term = if high & bit == 0 { near } else { far };
        }
    }
    terms
}

/// The columns of a block, six bits each, from the first byte of them on.
#[inline(always)]
fn columns(bytes: &[u8]) -> [u8; BLOCK] {
    // Eight values are six bytes; the last word reads two bytes beyond them.
    let mut padded = [0; COLUMN_BYTES + 2];
    let bytes = match bytes.first_chunk::<{ COLUMN_BYTES + 2 }>() {
        Some(bytes) => bytes,
        None => {
            padded[..bytes.len()].copy_from_slice(bytes);
            &padded
        }
    };
    let mut words = [0_u64; BLOCK / 8];
    for (i, word) in words.iter_mut().enumerate() {
        *word = little_endian(&bytes[6 * i..6 * i + 8]);
    }
    for word in &mut words {
        let mut x = *word;
        x = (x & 0x0000_0000_00ff_ffff) | (x & 0x0000_ffff_ff00_0000) << 8;
        x = (x & 0x0000_0fff_0000_0fff) | (x & 0x00ff_f000_00ff_f000) << 4;
        *word = (x & 0x003f_003f_003f_003f) | (x & 0x0fc0_0fc0_0fc0_0fc0) << 2;
    }
    let mut columns = [0; BLOCK];
    for (columns, word) in columns.as_chunks_mut().0.iter_mut().zip(words) {
        *columns = word.to_le_bytes();
    }
    columns
}

/// Eight bytes from `at`; those from `end` on are zero.
#[inline(always)]
fn word(bytes: &[u8], at: usize, end: usize) -> u64 {
    let used = end.saturating_sub(at);
    match bytes.get(at..).and_then(<[u8]>::first_chunk) {
        Some(word) if used >= 8 => u64::from_le_bytes(*word),
        Some(word) => u64::from_le_bytes(*word) & ((1 << (8 * used)) - 1),
        None => little_endian(bytes.get(at..end).unwrap_or(&[])),
    }
}

/// Every other bit, from the lowest, drawn together.
#[inline(always)]
fn even_bits(word: u64) -> u64 {
    let mut x = word & 0x5555_5555_5555_5555;
    x = (x | x >> 1) & 0x3333_3333_3333_3333;
    x = (x | x >> 2) & 0x0f0f_0f0f_0f0f_0f0f;
    x = (x | x >> 4) & 0x00ff_00ff_00ff_00ff;
    x = (x | x >> 8) & 0x0000_ffff_0000_ffff;
    (x | x >> 16) & 0x0000_0000_ffff_ffff
}
