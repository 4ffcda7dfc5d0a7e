//! Reading records at the speed of memory: 64 values at a time, in words and vectors instead of bits.
//!
//! [`Record::for_each`] and [`Record::check`] are what a record means; this is the same, fast, and tests hold the two
//! together. Nothing branches on the data: a byte of row counts becomes the rows of its ones through a table of 256 words, the
//! columns of eight values spread from six bytes in three steps of masks and shifts, and the ascending order of positions is one
//! comparison of neighbours. Where a record ends before a block of 64 does, what follows its kept values is never used.
//!
//! All of it is plain loops, `#[inline(always)]`, to be compiled for an instruction set by `Simd::plain` or `Simd::dispatch`.

use crate::run_spec::Quantiser;

use super::body::BodyRef;
use super::layout::{BLOCK_EDGE, Valid};
use super::record::{COLUMN_BITS, Format, KEEP_MAX, Record, little_endian};
use super::simd::Lanes;

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
    record_len: usize,
    columns_at: usize,
    codes_at: usize,
    plane_len: usize,
    /// Bytes, and bits of them, that are zero in every record that keeps k values.
    spare: [(usize, u8); 4],
    /// Room for whatever row counts say, and for the seven bytes that are written beyond the last one.
    rows: [u8; KEEP_MAX + BLOCK_EDGE + 8],
    positions: [u16; KEEP_MAX + 1],
}

impl Reader {
    pub(super) fn new(format: Format) -> Self {
        let (columns_at, codes_at, plane_len) = (format.row_counts_len(), format.codes_at(), format.keep().div_ceil(8));
        // The last byte of a part, in which the bits from `used` on are spare.
        let last = |at: usize, end: usize, used: usize| match at + used / 8 < end {
            true => (at + used / 8, 0xff << (used % 8)),
            false => (0, 0),
        };
        let keep = format.keep();
        let plane = |at: usize| last(at, at + plane_len, keep);
        let codes = match format.quantiser() {
            Quantiser::OneBit => [plane(codes_at), (0, 0)],
            Quantiser::TwoBit => [plane(codes_at), plane(codes_at + plane_len)],
            Quantiser::SigmaBins => [last(codes_at, codes_at + format.codes_len(), 2 * keep), (0, 0)],
        };
        let spare = [
            // After k ones and 63 zeros comes the last row's end; it, too, is never a one.
            last(0, columns_at, keep + BLOCK_EDGE - 1),
            last(columns_at, codes_at, COLUMN_BITS * keep),
            codes[0],
            codes[1],
        ];
        Self {
            format,
            record_len: format.record_len(),
            columns_at,
            codes_at,
            plane_len,
            spare,
            rows: [0; KEEP_MAX + BLOCK_EDGE + 8],
            positions: [0; KEEP_MAX + 1],
        }
    }

    /// A chunk's record.
    #[inline(always)]
    pub(super) fn record<'a>(&self, body: BodyRef<'a>, chunk_idx: usize) -> Record<'a> {
        let at = chunk_idx * self.record_len;
        Record::new(self.format, &body.record_bytes()[at..at + self.record_len])
    }

    /// The kept positions, ascending; whole blocks, of which only the first `n_kept` mean something. Row counts must be right.
    #[inline(always)]
    fn positions(&mut self, record: Record<'_>, n_kept: usize) -> &[[u16; BLOCK]] {
        self.read_rows(record);
        self.add_columns(record, n_kept)
    }

    #[inline(always)]
    fn add_columns(&mut self, record: Record<'_>, n_kept: usize) -> &[[u16; BLOCK]] {
        let n_blocks = n_kept.div_ceil(BLOCK);
        let rows = self.rows.as_chunks::<BLOCK>().0;
        let positions = &mut self.positions.as_chunks_mut::<BLOCK>().0[..n_blocks];
        for (block, (positions, rows)) in positions.iter_mut().zip(rows).enumerate() {
            let columns = columns(&record.bytes()[self.columns_at + block * COLUMN_BYTES..]);
            // In arrays of their own, or the compiler would have to ask whether they overlap.
            let (rows, mut here) = (*rows, [0; BLOCK]);
            for i in 0..BLOCK {
                here[i] = u16::from(rows[i]) << COLUMN_BITS | u16::from(columns[i]);
            }
            *positions = here;
        }
        positions
    }

    /// The row of the i-th one: as many zeros as stand before it. Returns how many ones there are.
    #[inline(always)]
    fn read_rows(&mut self, record: Record<'_>) -> usize {
        let (words, rest) = record.bytes()[..self.columns_at].as_chunks::<8>();
        if let ([first, second], []) = (words, rest) {
            // k = 64, without a loop.
            let ones = self.read_rows_of(u64::from_le_bytes(*first), 0, 0);
            return self.read_rows_of(u64::from_le_bytes(*second), 64, ones);
        }
        let mut ones = 0;
        for (word_idx, word) in words.iter().enumerate() {
            ones = self.read_rows_of(u64::from_le_bytes(*word), 64 * word_idx, ones);
        }
        if !rest.is_empty() {
            ones = self.read_rows_of(little_endian(rest), 64 * words.len(), ones);
        }
        ones
    }

    /// One word of row counts, before which stand `bits` bits and `ones` ones; returns the ones with it.
    #[inline(always)]
    fn read_rows_of(&mut self, word: u64, bits: usize, ones: usize) -> usize {
        // In each byte: the ones in it, then those in it and in all before it.
        let pairs = word - ((word >> 1) & (0x55 * EACH_BYTE));
        let fours = (pairs & (0x33 * EACH_BYTE)) + ((pairs >> 2) & (0x33 * EACH_BYTE));
        let through = ((fours + (fours >> 4)) & (0x0f * EACH_BYTE)).wrapping_mul(EACH_BYTE);
        for byte_idx in 0..8 {
            let before = ones + ((through << 8) >> (8 * byte_idx) & 0xff) as usize;
            let byte = (word >> (8 * byte_idx) & 0xff) as usize;
            let zeros = ((bits + 8 * byte_idx).wrapping_sub(before) as u64 & 0xff) * EACH_BYTE;
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

    /// Calls `f(position, number of its code)` for every kept value, ascending.
    #[inline(always)]
    pub(super) fn for_each(
        &mut self,
        lanes: impl Lanes,
        record: Record<'_>,
        n_kept: usize,
        table: [i32; 4],
        mut f: impl FnMut(usize, i32),
    ) {
        self.positions(record, n_kept);
        let blocks = &self.positions.as_chunks::<BLOCK>().0[..n_kept.div_ceil(BLOCK)];
        for (block, positions) in blocks.iter().enumerate() {
            let numbers = lanes.choose(self.planes(record, block), table);
            let n_here = n_kept - block * BLOCK;
            if n_here >= BLOCK {
                for (position, number) in positions.iter().zip(&numbers) {
                    f(usize::from(*position), *number);
                }
            } else {
                for (position, number) in positions[..n_here].iter().zip(&numbers) {
                    f(usize::from(*position), *number);
                }
            }
        }
    }

    /// Calls `f(position)` for every kept value, ascending.
    #[inline(always)]
    pub(super) fn for_each_position(&mut self, record: Record<'_>, n_kept: usize, mut f: impl FnMut(usize)) {
        self.positions(record, n_kept).as_flattened()[..n_kept].iter().for_each(
            #[inline(always)]
            |position| f(usize::from(*position)),
        );
    }

    /// Whether [`Record::check`] accepts the record. What is wrong with one that it refuses is for `check` to say.
    #[inline(always)]
    pub(super) fn accepts(&mut self, record: Record<'_>, valid: Valid) -> bool {
        let n_kept = self.format.kept_of(valid);
        if self.read_rows(record) != n_kept {
            return false;
        }
        let bytes = record.bytes();
        let spare = self.spare.iter().fold(0, |all, (at, mask)| all | bytes[*at] & mask);
        if spare != 0 || n_kept < self.format.keep() && record.check_spare_bits(0, n_kept).is_err() {
            return false;
        }
        if record.scale() == 0 {
            return record.check(0, valid).is_ok();
        }
        self.add_columns(record, n_kept);
        // After the last one comes a larger one, so that whole blocks are compared.
        self.positions[n_kept] = u16::MAX;
        let positions = &self.positions[..n_kept];
        ascend(&self.positions[..=n_kept])
            && (valid == Valid::FULL || positions.iter().all(|at| valid.contains(usize::from(*at))))
    }
}

/// Whether each but the last is smaller than the next.
#[inline(always)]
fn ascend(positions: &[u16]) -> bool {
    let mut descents = 0;
    let mut compared = 0;
    // A number of comparisons that is known makes vectors of them, without a loop's end for the rest.
    while let (Some(here), Some(next)) =
        (positions[compared..].first_chunk::<BLOCK>(), positions[compared + 1..].first_chunk::<BLOCK>())
    {
        for (a, b) in here.iter().zip(next) {
            descents |= u16::from(a >= b);
        }
        compared += BLOCK;
    }
    for (a, b) in positions[compared..].iter().zip(&positions[compared + 1..]) {
        descents |= u16::from(a >= b);
    }
    descents == 0
}

/// The columns of a block, six bits each, from the first byte of them on.
#[inline(always)]
fn columns(bytes: &[u8]) -> [u8; BLOCK] {
    let mut padded = [0; COLUMN_BYTES];
    let bytes = match bytes.first_chunk() {
        Some(bytes) => bytes,
        None => {
            padded[..bytes.len()].copy_from_slice(bytes);
            &padded
        }
    };
    // Eight values are six bytes: four of those are three words. The bits above them are masked away below.
    let mut words = [0_u64; BLOCK / 8];
    for (four, three) in words.as_chunks_mut::<4>().0.iter_mut().zip(bytes.as_chunks::<24>().0) {
        let [a, b, c] = [0, 8, 16].map(|at| little_endian(&three[at..at + 8]));
        *four = [a, a >> 48 | b << 16, b >> 32 | c << 32, c >> 16];
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
