//! Writing a record (`record` says what its bytes are): whole words at a time, whatever k is.

use super::layout::{BLOCK_EDGE, Valid};
use super::record::{COLUMN_BITS, Format, KEEP_MAX};

/// Words of one bit for each value that a chunk may keep.
pub(super) const PLANE_WORDS: usize = KEEP_MAX / 64;

/// Columns that are packed into one word, of 48 bits.
const COLUMNS_PACKED: usize = 8;

/// What the kept values of a record decode by.
pub(super) enum Codes<'a> {
    /// A sign each.
    Signs(&'a [u64; PLANE_WORDS]),
    /// A sign and a magnitude bit each.
    SignsAndMagnitudes(&'a [[u64; PLANE_WORDS]; 2]),
    /// A bin each.
    Bins(&'a [u8]),
}

/// Writes a record: positions ascending, a code for each; bits of words beyond them are zero. `out` is of the record's length.
#[inline(always)]
pub(super) fn write(format: Format, positions: &[u16], codes: Codes<'_>, scale: u8, out: &mut [u8]) {
    let (row_counts, rest) = out.split_at_mut(format.row_counts_len());
    let (columns, rest) = rest.split_at_mut(format.codes_at() - format.row_counts_len());
    write_row_counts(positions, row_counts);
    write_columns(positions, columns);
    let (codes_out, scale_out) = rest.split_at_mut(format.codes_len());
    match codes {
        Codes::Signs(signs) => write_words(signs, codes_out),
        Codes::SignsAndMagnitudes([signs, magnitudes]) => {
            let (signs_out, magnitudes_out) = codes_out.split_at_mut(codes_out.len() / 2);
            write_words(signs, signs_out);
            write_words(magnitudes, magnitudes_out);
        }
        Codes::Bins(bins) => {
            codes_out.fill(0);
            for (i, bin) in bins.iter().enumerate() {
                codes_out[i / 4] |= bin << (2 * (i % 4));
            }
        }
    }
    scale_out.fill(scale);
}

/// The one record of a chunk that decodes to zero: its first positions, with codes 0.
pub(super) fn write_zero(format: Format, valid: Valid, out: &mut [u8]) {
    let n_kept = format.kept_of(valid);
    let mut positions = [0; KEEP_MAX];
    for (slot, position) in positions[..n_kept].iter_mut().zip(valid.positions()) {
        *slot = position as u16;
    }
    write(format, &positions[..n_kept], Codes::SignsAndMagnitudes(&[[0; PLANE_WORDS]; 2]), 0, out);
}

/// The i-th kept position's one stands after i ones and as many zeros as its row's number.
#[inline(always)]
fn write_row_counts(positions: &[u16], out: &mut [u8]) {
    let mut words = [0_u64; (KEEP_MAX + BLOCK_EDGE) / 64];
    let (mut word, mut word_idx) = (0, 0);
    for (i, position) in positions.iter().enumerate() {
        let one = i + usize::from(*position) / BLOCK_EDGE;
        if one / 64 != word_idx {
            words[word_idx] = word;
            (word, word_idx) = (0, one / 64);
        }
        word |= 1 << (one % 64);
    }
    words[word_idx] = word;
    write_words(&words, out);
}

#[inline(always)]
fn write_columns(positions: &[u16], out: &mut [u8]) {
    let (eights, rest) = positions.as_chunks::<COLUMNS_PACKED>();
    let mut last = [0; COLUMNS_PACKED];
    last[..rest.len()].copy_from_slice(rest);
    let mut packed = [0_u8; KEEP_MAX * COLUMN_BITS / 8 + 8];
    for (i, eight) in eights.iter().chain([&last]).enumerate() {
        let at = i * COLUMNS_PACKED * COLUMN_BITS / 8;
        packed[at..at + 8].copy_from_slice(&pack(eight).to_le_bytes());
    }
    out.copy_from_slice(&packed[..out.len()]);
}

/// The low six bits of eight numbers, the first lowest.
#[inline(always)]
fn pack(eight: &[u16; COLUMNS_PACKED]) -> u64 {
    let four = |four: &[u16]| {
        let four = (0..4).fold(0, |word, i| word | u64::from(four[i] & 0x3f) << (16 * i));
        let twos = (four | four >> 10) & 0x0000_0fff_0000_0fff;
        (twos | twos >> 20) & 0x00ff_ffff
    };
    four(&eight[..4]) | four(&eight[4..]) << 24
}

/// The bytes of `words`, of which `out` may hold fewer: what it cannot hold is zero.
#[inline(always)]
fn write_words(words: &[u64], out: &mut [u8]) {
    let (whole, rest) = out.as_chunks_mut::<8>();
    for (bytes, word) in whole.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    if !rest.is_empty() {
        rest.copy_from_slice(&words[whole.len()].to_le_bytes()[..rest.len()]);
    }
}

/// Writes a record from one code a value, for tests that choose codes.
#[cfg(test)]
pub(super) fn write_codes(format: Format, positions: &[u16], codes: &[u8], scale: u8, out: &mut [u8]) {
    use crate::run_spec::Quantiser;
    let mut planes = [[0; PLANE_WORDS]; 2];
    for (i, code) in codes.iter().enumerate() {
        planes[0][i / 64] |= u64::from(code & 1) << (i % 64);
        planes[1][i / 64] |= u64::from(code >> 1) << (i % 64);
    }
    let codes = match format.quantiser() {
        Quantiser::OneBit => Codes::Signs(&planes[0]),
        Quantiser::TwoBit => Codes::SignsAndMagnitudes(&planes),
        Quantiser::SigmaBins => Codes::Bins(codes),
    };
    write(format, positions, codes, scale, out);
}
