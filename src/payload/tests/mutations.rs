//! A million mutated payloads: none makes the parser panic, none passes that its sender did not sign, and whatever body gets as
//! far as the signature is the one encoding of what it says, every value bounded.
//!
//! The layout is small, so that every mutation has a fair chance of hitting each field; it still has a full chunk, padded ones,
//! a run and one with fewer parameters than k. Checks of signatures are most of the time, about 30 µs each.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::payload::transport;
use crate::sparseloco::tests::plain::{Content, value};
use crate::sparseloco::tests::{heavy_noise_of, layout};

/// Offset and length of each field of the header.
const FIELDS: [(usize, usize); 13] = [
    (0, 4),
    (4, 2),
    (6, 2),
    (8, 1),
    (9, 4),
    (13, 4),
    (17, 32),
    (49, 8),
    (57, 2),
    (59, 4),
    (63, 32),
    (95, 32),
    (127, 32),
];

/// Payloads of one quantiser that go through the parser.
const CASES: usize = 350_000;

/// One in so many mutated payloads is signed again, so that it is judged to the end.
const RESIGNED: usize = 64;

/// A stream of numbers below a bound.
pub fn draws(mut state: u64) -> impl FnMut(usize) -> usize {
    move |bound| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    }
}

/// Good payloads of one format, and where its parts are.
pub struct Family {
    pub layout: Layout,
    pub spec: SparseSpec,
    pub payloads: Vec<Vec<u8>>,
    pub levels_len: usize,
}

impl Family {
    pub fn new(quantiser: Quantiser, keep: usize) -> Self {
        let (layout, spec) = (layout(&[&[66, 65], &[100], &[3]]), spec(quantiser, keep));
        let payload = |seed: u32| {
            let mut delta = heavy_noise_of(&layout, seed);
            if seed == 2 {
                delta[layout.flat_range_of(1)].fill(0.0);
            }
            let body = encode(&layout, &spec, &mut vec![0.0; layout.flat_len()], &delta).unwrap().body;
            let header = Header { round: Round(u64::from(seed)), layout: layout.hash(), ..header() };
            Payload::seal(header, &layout, &spec, body, &pair()).bytes().to_vec()
        };
        let payloads = (1..=4).map(payload).collect();
        let (levels_len, _) = BodyRef::lens(&layout, Format::of(&spec));
        Self { layout, spec, payloads, levels_len }
    }

    /// Where a record's row counts, columns and codes start, and where it ends.
    fn record(&self, chunk_idx: usize) -> [usize; 4] {
        let (keep, len) = (self.spec.keep_per_chunk, Format::of(&self.spec).record_len());
        let at = HEADER_LEN + self.levels_len + chunk_idx * len;
        let columns = at + (keep + 64).div_ceil(8);
        [at, columns, columns + (6 * keep).div_ceil(8), at + len]
    }

    /// Changes `bytes`, which are as long as a payload, in one of many ways.
    pub fn mutate(&self, bytes: &mut Vec<u8>, foreign: &[u8], draw: &mut impl FnMut(usize) -> usize) {
        let len = bytes.len();
        let other = &self.payloads[draw(self.payloads.len())];
        let [rows, columns, codes, end] = self.record(draw(self.layout.n_chunks()));
        match draw(16) {
            0 => (0..=draw(8)).for_each(|_| flip(bytes, draw(8 * len))),
            1 => (0..=draw(4)).for_each(|_| bytes[draw(len)] = draw(256) as u8),
            2 => bytes[draw(len)] = [0, 0xff, 0x80, 0x7f, 1][draw(5)],
            3 => bytes.truncate(draw(len)),
            4 => bytes.extend((0..=draw(64)).map(|_| draw(256) as u8)),
            5 => {
                let cut = draw(len);
                bytes[cut..].copy_from_slice(&other[cut..]);
            }
            6 => {
                let from = draw(foreign.len());
                let part = &foreign[from..foreign.len().min(from + 1 + draw(200))];
                let at = draw(len);
                let n = part.len().min(len - at);
                bytes[at..at + n].copy_from_slice(&part[..n]);
            }
            7 => {
                let (at, from) = (draw(len), draw(len));
                bytes.copy_within(from..from + (draw(24) + 1).min(len - at.max(from)), at);
            }
            8 => {
                let (at, n) = FIELDS[draw(FIELDS.len())];
                overwrite(&mut bytes[at..at + n], draw);
            }
            9 => flip(bytes, 8 * rows + draw(8 * (columns - rows))),
            10 => {
                // As many ones as before, one of them elsewhere.
                let (one, n) = (draw(8 * (columns - rows)), 8 * (columns - rows));
                let is_one = |at: usize| bytes[rows + at / 8] >> (at % 8) & 1 == 1;
                let one = (0..n).map(|i| (one + i) % n).find(|at| is_one(*at));
                one.into_iter().for_each(|one| flip(bytes, 8 * rows + one));
                flip(bytes, 8 * rows + draw(n));
            }
            11 => bytes[columns + draw(codes - columns)] = draw(256) as u8,
            12 => flip(bytes, 8 * codes + draw(8 * (end - codes))),
            13 => bytes[end - 1] = [0, 0, 1, 255, draw(256) as u8][draw(5)],
            14 => self.mutate_levels(bytes, draw),
            _ => {
                let at = len - SIGNATURE_LEN + draw(SIGNATURE_LEN);
                overwrite(&mut bytes[at..], draw);
            }
        }
    }

    fn mutate_levels(&self, bytes: &mut [u8], draw: &mut impl FnMut(usize) -> usize) {
        if self.levels_len == 0 {
            return flip(bytes, 8 * HEADER_LEN + draw(64));
        }
        if self.spec.quantiser == Quantiser::TwoBit {
            let level = [0, 1, 2, 4096, 8 * 4096 - 1, 8 * 4096, 8 * 4096 + 1, u16::MAX, draw(1 << 16) as u16][draw(9)];
            let at = HEADER_LEN + 2 * draw(self.levels_len / 2);
            return bytes[at..at + 2].copy_from_slice(&level.to_le_bytes());
        }
        let any = f32::from_bits((draw(1 << 31) << 1) as u32);
        let numbers = [0.0, -0.0, f32::NAN, f32::INFINITY, -64.0, 64.0, 64_f32.next_up(), 1e-45, any, 1.0];
        let at = HEADER_LEN + 4 * draw(self.levels_len / 4);
        bytes[at..at + 4].copy_from_slice(&numbers[draw(10)].to_le_bytes());
    }

    /// That an accepted body is the only encoding of what it says, and bounded.
    pub fn check_accepted(&self, bytes: &[u8]) {
        let body = &bytes[HEADER_LEN..bytes.len() - SIGNATURE_LEN];
        let (levels, records) = body.split_at(self.levels_len);
        let checked = BodyRef::check(&self.layout, Format::of(&self.spec), levels, records).expect("parsed before");
        let content = Content::of(&self.layout, checked);
        content.assert_canonical(&self.layout, self.spec.keep_per_chunk);
        let again = content.bytes(self.spec.quantiser, self.spec.keep_per_chunk);
        assert!((&again.0[..], &again.1[..]) == (levels, records), "{bytes:02x?}");
        for (chunk_idx, chunk) in content.chunks.iter().enumerate() {
            let levels = content.levels[self.layout.tensor_of(chunk_idx)];
            let values = chunk.codes.iter().map(|code| value(levels, chunk.scale, *code));
            assert!(values.into_iter().all(|value| value.abs() <= 128.0), "chunk {chunk_idx}: {bytes:02x?}");
        }
    }
}

pub fn flip(bytes: &mut [u8], bit: usize) {
    bytes[bit / 8] ^= 1 << (bit % 8);
}

/// Zeros, ones, chance, or a neighbour of the number that is there.
pub fn overwrite(field: &mut [u8], draw: &mut impl FnMut(usize) -> usize) {
    match draw(5) {
        0 => field.fill(0),
        1 => field.fill(0xff),
        2 => field.iter_mut().for_each(|byte| *byte = draw(256) as u8),
        3 => field[0] = field[0].wrapping_add(1),
        _ => field[0] = field[0].wrapping_sub(1),
    }
}

/// What became of the payloads, by reason.
#[derive(Debug, Default)]
struct Outcomes {
    refused: BTreeMap<&'static str, usize>,
    accepted: usize,
}

fn hammer(quantiser: Quantiser) -> Outcomes {
    let families = [5, 64, 118].map(|keep| Family::new(quantiser, keep));
    let foreign: Vec<Vec<u8>> =
        QUANTISERS.iter().map(|(other, _)| Family::new(*other, 6).payloads.swap_remove(0)).collect();
    let (mut draw, mut outcomes) = (draws(quantiser as u64), Outcomes::default());
    let mut bytes = Vec::new();
    for turn in 0..CASES {
        let family = &families[[1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][turn % 12]];
        bytes.clone_from(&family.payloads[turn % family.payloads.len()]);
        let want = bytes.len();
        for _ in 0..=[0, 0, 0, 1, 2][draw(5)] {
            if bytes.len() == want {
                family.mutate(&mut bytes, &foreign[turn % foreign.len()], &mut draw);
            }
        }
        let resigned = bytes.len() == want && turn % RESIGNED == 0;
        if resigned {
            resign(&mut bytes);
        }
        match Payload::parse(bytes.as_slice().into(), &family.layout, &family.spec) {
            Ok(payload) => {
                assert!(resigned || family.payloads.contains(&bytes), "unsigned: {bytes:02x?}");
                assert!(payload.bytes()[..] == bytes);
                family.check_accepted(&bytes);
                let coded = transport::encode(&payload, &family.layout, &family.spec);
                let canonical = transport::decode(&coded, &family.layout, &family.spec).unwrap();
                assert!(canonical[..] == bytes, "transport: {bytes:02x?}");
                outcomes.accepted += 1;
            }
            Err(reason) => {
                if reason == Malformed::Signature {
                    family.check_accepted(&bytes);
                }
                *outcomes.refused.entry(reason.reason()).or_default() += 1;
            }
        }
    }
    outcomes
}

/// Hammers the parser and expects every reason but these, each often.
fn check_all_but(quantiser: Quantiser, impossible: &[&str]) {
    let outcomes = hammer(quantiser);
    let (possible, all) = (16 - impossible.len(), outcomes.refused.values().sum::<usize>() + outcomes.accepted);
    assert_eq!(all, CASES);
    assert!(impossible.iter().all(|reason| !outcomes.refused.contains_key(reason)), "{outcomes:?}");
    assert_eq!(outcomes.refused.len(), possible, "each reason occurs: {outcomes:?}");
    assert!(outcomes.refused.values().all(|n| *n >= 200) && outcomes.accepted >= 1000, "{outcomes:?}");
}

#[test]
fn no_mutated_payload_of_one_bit_panics_or_passes() {
    check_all_but(Quantiser::OneBit, &["multipliers", "bins"]);
}

#[test]
fn no_mutated_payload_of_two_bit_panics_or_passes() {
    check_all_but(Quantiser::TwoBit, &["bins"]);
}

#[test]
fn no_mutated_payload_of_sigma_bins_panics_or_passes() {
    check_all_but(Quantiser::SigmaBins, &["multipliers", "zero_chunk"]);
}

#[test]
fn whatever_body_is_accepted_decodes_and_moves_theta_by_finite_values() {
    let mut draw = draws(2);
    for (quantiser, name) in QUANTISERS {
        let family = Family::new(quantiser, 5);
        let good = Payload::parse(family.payloads[0].as_slice().into(), &family.layout, &family.spec).unwrap();
        let (format, mut seen) = (Format::of(&family.spec), BTreeSet::new());
        for turn in 0..7_000 {
            let mut bytes = family.payloads[turn % 4].clone();
            family.mutate(&mut bytes, &family.payloads[0], &mut draw);
            if bytes.len() != good.bytes().len() {
                continue;
            }
            let body = &bytes[HEADER_LEN..bytes.len() - SIGNATURE_LEN];
            let (levels, records) = body.split_at(family.levels_len);
            let Ok(body) = BodyRef::check(&family.layout, format, levels, records) else { continue };
            if !seen.insert([levels, records].concat()) {
                continue;
            }
            let mut theta = vec![0.0; family.layout.flat_len()];
            outer_step(&family.layout, &family.spec, &[good.body(), body], &mut theta);
            assert!(theta.iter().all(|theta| theta.abs() <= 128.0), "{name}");
        }
        assert!(seen.len() > 500, "{name}: {}", seen.len());
    }
}
