//! Claims about fast reading: on every instruction set it says what a record's definition says, about any bytes.

use std::collections::BTreeSet;

use super::super::read::Reader;
use super::super::simd::{Kernel, Lanes};
use super::super::write::write_codes;
use super::*;

/// Every number of spare bits in the last byte of every part, and one block, several, and parts of one.
const KEEPS: [usize; 14] = [1, 2, 3, 4, 5, 6, 7, 8, 63, 64, 100, 118, 129, 1024];

const SHAPES: [&[usize]; 8] = [&[64, 64], &[64, 5], &[3, 50], &[1, 1], &[64], &[4095], &[130], &[17, 64]];

/// Numbers without pattern.
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }

    /// `n` of the positions that hold parameters, ascending.
    fn positions(&mut self, valid: Valid, n: usize) -> Vec<u16> {
        let mut all: Vec<u16> = valid.positions().map(|position| position as u16).collect();
        for i in 0..n {
            let other = i + self.below(all.len() - i);
            all.swap(i, other);
        }
        all.truncate(n);
        all.sort_unstable();
        all
    }

    /// A record that a peer may send; one in eight is of a chunk of zeros.
    fn record(&mut self, format: Format, valid: Valid) -> Vec<u8> {
        let n_kept = format.kept_of(valid);
        let n_codes = if format.quantiser() == Quantiser::OneBit { 2 } else { 4 };
        let mut positions = self.positions(valid, n_kept);
        let mut codes: Vec<u8> = (0..n_kept).map(|_| self.below(n_codes) as u8).collect();
        let mut scale = 1 + self.below(255) as u8;
        if format.has_scale() && self.below(8) == 0 {
            scale = 0;
            codes.fill(0);
            positions = valid.positions().take(n_kept).map(|position| position as u16).collect();
        }
        let mut bytes = vec![0; format.record_len()];
        write_codes(format, &positions, &codes, scale, &mut bytes);
        bytes
    }
}

struct ReadAll<'a>(&'a mut Reader, Record<'a>, usize);

impl Kernel for ReadAll<'_> {
    type Output = (Vec<(usize, u8)>, Vec<usize>, [u32; 4]);

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> Self::Output {
        let Self(reader, record, n_kept) = self;
        let (mut values, mut positions) = (Vec::new(), Vec::new());
        reader.for_each(lanes, record, n_kept, [0, 1, 2, 3], |position, code| values.push((position, code as u8)));
        reader.for_each_position(record, n_kept, |position| positions.push(position));
        (values, positions, reader.code_counts(record, n_kept))
    }
}

fn for_each_format(mut f: impl FnMut(Format, Valid)) {
    for (quantiser, _) in QUANTISERS {
        for keep in KEEPS {
            for shape in SHAPES {
                f(Format::of(&spec(quantiser, keep)), layout(&[shape]).valid(0, 0));
            }
        }
    }
}

#[test]
fn every_instruction_set_reads_what_the_definition_reads() {
    let mut draws = Draws(1);
    for_each_format(|format, valid| {
        let mut reader = Reader::new(format);
        for _ in 0..4 {
            let bytes = draws.record(format, valid);
            let (record, n_kept) = (Record::new(format, &bytes), format.kept_of(valid));
            let mut values = Vec::new();
            record.for_each(n_kept, |position, code| values.push((position, code)));
            let positions = values.iter().map(|(position, _)| *position).collect();
            let want = (values, positions, record.code_counts(n_kept));
            for simd in Simd::available() {
                let got = simd.dispatch(ReadAll(&mut reader, record, n_kept));
                assert!(got == want, "{simd:?} {format:?} {valid:?}: {got:?} for {want:?}");
            }
        }
    });
}

/// Bytes near a record: what a careless, a broken or a hostile peer may send.
fn mutate(draws: &mut Draws, format: Format, bytes: &mut [u8]) {
    let (rows, codes) = (format.row_counts_len(), format.codes_at());
    let flip = |bytes: &mut [u8], bit: usize| bytes[bit / 8] ^= 1 << (bit % 8);
    match draws.below(7) {
        0 => {
            let bit = draws.below(8 * bytes.len());
            flip(bytes, bit);
        }
        // Two bits of the row counts: the number of ones may stay right.
        1 => (0..2).for_each(|_| flip(bytes, draws.below(8 * rows))),
        // The end of a part, where bits are spare.
        2 => {
            let end = [rows, codes, bytes.len() - 1, bytes.len()][draws.below(4)];
            flip(bytes, 8 * end - 1 - draws.below(8));
        }
        3 => flip(bytes, 8 * rows + draws.below(8 * (codes - rows))),
        // A column made its neighbour's.
        4 => {
            let at = 6 * draws.below(format.keep());
            for bit in 0..6 {
                let from = 8 * rows + (at + 6 + bit).min(6 * format.keep() - 1);
                if bytes[from / 8] >> (from % 8) & 1 != bytes[rows + (at + bit) / 8] >> ((at + bit) % 8) & 1 {
                    flip(bytes, 8 * rows + at + bit);
                }
            }
        }
        5 => *bytes.last_mut().unwrap() = 0,
        _ => bytes.iter_mut().for_each(|byte| *byte = draws.below(256) as u8),
    }
}

#[test]
fn every_instruction_set_accepts_what_the_definition_accepts() {
    let mut draws = Draws(2);
    let (mut n_accepted, mut n_refused) = (0, [0; 5]);
    for_each_format(|format, valid| {
        let mut reader = Reader::new(format);
        for turn in 0..48 {
            let mut bytes = draws.record(format, valid);
            for _ in 0..turn % 4 {
                mutate(&mut draws, format, &mut bytes);
            }
            let record = Record::new(format, &bytes);
            let want = record.check(7, valid);
            match want {
                Ok(()) => n_accepted += 1,
                Err(MalformedRecord::KeptCount { .. }) => n_refused[0] += 1,
                Err(MalformedRecord::SpareBits { .. }) => n_refused[1] += 1,
                Err(MalformedRecord::NotAscending { .. }) => n_refused[2] += 1,
                Err(MalformedRecord::Padding { .. }) => n_refused[3] += 1,
                Err(MalformedRecord::ZeroChunk { .. }) => n_refused[4] += 1,
            }
            for simd in Simd::available() {
                let got = simd.plain(|| reader.accepts(record, valid));
                assert_eq!(got, want.is_ok(), "{simd:?} {format:?} {valid:?}: {want:?}, {bytes:02x?}");
            }
        }
    });
    assert!(n_accepted > 1000 && n_refused.iter().all(|n| *n > 20), "{n_accepted}, {n_refused:?}");
}

#[test]
fn the_first_fault_of_a_body_is_named_wherever_it_is() {
    let layout = layout(&[&[130, 200], &[9000]]);
    for (quantiser, name) in QUANTISERS {
        let spec = spec(quantiser, 64);
        let format = Format::of(&spec);
        let body = some_body(&layout, &spec, 5);
        for fault in 0..layout.n_chunks() {
            let mut records = body.records.clone();
            // One kept position more or less, there and in the last chunk: the first one is named.
            for chunk_idx in BTreeSet::from([fault, layout.n_chunks() - 1]) {
                records[chunk_idx * format.record_len()] ^= 1;
            }
            for simd in Simd::available() {
                let refusal = BodyRef::check_with(simd, &layout, format, &body.levels, &records).unwrap_err();
                let MalformedBody::Record(MalformedRecord::KeptCount { chunk_idx, .. }) = refusal else {
                    panic!("{name} {simd:?}: {refusal}")
                };
                assert_eq!(chunk_idx, fault, "{name} {simd:?}");
            }
        }
    }
}
