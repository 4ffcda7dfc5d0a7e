//! Claims about records and levels: round trips, one encoding per content, a reason for each fault; and what is read from them.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::levels::MalformedLevels;
use super::super::record::KEEP_MAX;
use super::super::write::write_codes as write;
use super::*;

/// Positions and codes of a record.
fn read(record: Record<'_>, n_kept: usize) -> (Vec<u16>, Vec<u8>) {
    let (mut positions, mut codes) = (Vec::new(), Vec::new());
    record.for_each(n_kept, |position, code| {
        positions.push(position as u16);
        codes.push(code);
    });
    (positions, codes)
}

fn format(quantiser: Quantiser, keep: usize) -> Format {
    Format::of(&spec(quantiser, keep))
}

/// A record of a full chunk, of its first positions.
fn plain_record(format: Format, positions: &[u16], codes: &[u8], scale: u8) -> Vec<u8> {
    let mut bytes = vec![0xff; format.record_len()];
    write(format, positions, codes, scale, &mut bytes);
    bytes
}

#[test]
fn records_have_the_lengths_of_the_table() {
    let len = |quantiser| format(quantiser, 64).record_len();
    assert_eq!((len(Quantiser::OneBit), len(Quantiser::TwoBit), len(Quantiser::SigmaBins)), (73, 81, 80));
    assert_eq!(format(Quantiser::TwoBit, 1).record_len(), 9 + 1 + 1 + 1 + 1);
    assert_eq!(format(Quantiser::OneBit, KEEP_MAX).record_len(), 136 + 768 + 128 + 1);
}

/// A format, valid positions of some chunk, and content that a peer may send for it.
fn content() -> impl Strategy<Value = (Format, Valid, BTreeSet<u16>, Vec<u8>, u8)> {
    let shapes = vec![vec![64, 64], vec![3, 50], vec![64, 1], vec![4095], vec![130], vec![1]];
    let quantisers = vec![Quantiser::OneBit, Quantiser::TwoBit, Quantiser::SigmaBins];
    let keeps = prop_oneof![Just(64_usize), 1..=KEEP_MAX];
    (prop::sample::select(quantisers), keeps, prop::sample::select(shapes)).prop_flat_map(|(quantiser, keep, shape)| {
        let (format, valid) = (format(quantiser, keep), layout(&[&shape]).valid(0, 0));
        let n_kept = format.kept_of(valid);
        let positions: Vec<u16> = valid.positions().map(|position| position as u16).collect();
        let codes = if quantiser == Quantiser::OneBit { 0..2_u8 } else { 0..4 };
        (
            Just(format),
            Just(valid),
            prop::sample::subsequence(positions, n_kept).prop_map(BTreeSet::from_iter),
            prop::collection::vec(codes, n_kept),
            1..=255_u8,
        )
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read((format, valid, positions, codes, scale) in content()) {
        let positions: Vec<u16> = positions.into_iter().collect();
        let bytes = plain_record(format, &positions, &codes, scale);
        let record = Record::new(format, &bytes);
        prop_assert_eq!(record.check(0, valid), Ok(()));
        let mut counts = [0; 4];
        codes.iter().for_each(|code| counts[usize::from(*code)] += 1);
        prop_assert_eq!(record.code_counts(positions.len()), counts);
        prop_assert_eq!(read(record, positions.len()), (positions, codes));
        prop_assert!(format.quantiser() == Quantiser::SigmaBins || record.scale() == scale);
    }

    #[test]
    fn one_content_has_one_encoding(
        (format, valid, positions, codes, scale) in content(),
        flips in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
    ) {
        let positions: Vec<u16> = positions.into_iter().collect();
        let original = plain_record(format, &positions, &codes, scale);
        let mut bytes = original.clone();
        for flip in &flips {
            let bit = flip.index(8 * bytes.len());
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let record = Record::new(format, &bytes);
        if record.check(0, valid).is_ok() {
            let n_kept = format.kept_of(valid);
            let (positions, codes) = read(record, n_kept);
            let again = plain_record(format, &positions, &codes, record.scale());
            prop_assert_eq!(again, bytes);
        }
    }
}

#[test]
fn every_fault_of_a_record_has_its_own_reason() {
    let chunk_idx = 0;
    let full = |quantiser, tamper: &dyn Fn(&mut Vec<u8>)| {
        let format = format(quantiser, 3);
        // 67 bits of row counts, 18 of columns, 3 of codes.
        let mut bytes = plain_record(format, &[5, 6, 64], &[1, 0, 1], 200);
        tamper(&mut bytes);
        Record::new(format, &bytes).check(chunk_idx, Valid::FULL)
    };
    let spare = |part| Err(MalformedRecord::SpareBits { chunk_idx, part });
    assert_eq!(full(Quantiser::OneBit, &|_| ()), Ok(()));
    assert_eq!(
        full(Quantiser::OneBit, &|bytes| bytes[0] |= 4),
        Err(MalformedRecord::KeptCount { chunk_idx, got: 4, want: 3 })
    );
    // The third one moved to the place of the last row's end, and beyond it.
    assert_eq!(full(Quantiser::OneBit, &|bytes| (bytes[0], bytes[8]) = (3, 4)), spare(Part::RowCounts));
    assert_eq!(full(Quantiser::OneBit, &|bytes| (bytes[0], bytes[8]) = (3, 128)), spare(Part::RowCounts));
    assert_eq!(full(Quantiser::OneBit, &|bytes| bytes[9 + 2] |= 4), spare(Part::Columns));
    assert_eq!(full(Quantiser::OneBit, &|bytes| bytes[9 + 3] |= 8), spare(Part::Signs));
    assert_eq!(full(Quantiser::TwoBit, &|bytes| bytes[9 + 3 + 1] |= 128), spare(Part::Magnitudes));
    assert_eq!(full(Quantiser::SigmaBins, &|bytes| bytes[9 + 3] |= 64), spare(Part::Codes));
    assert_eq!(
        full(Quantiser::OneBit, &|bytes| bytes[9] = 6 | 6 << 6),
        Err(MalformedRecord::NotAscending { chunk_idx, previous: 6, position: 6 })
    );
    assert_eq!(
        full(Quantiser::OneBit, &|bytes| *bytes.last_mut().unwrap() = 0),
        Err(MalformedRecord::ZeroChunk { chunk_idx })
    );
    let zero = |positions: &[u16], codes: &[u8]| {
        let bytes = plain_record(format(Quantiser::TwoBit, 2), positions, codes, 0);
        Record::new(format(Quantiser::TwoBit, 2), &bytes).check(chunk_idx, Valid::FULL)
    };
    assert_eq!(zero(&[0, 1], &[0, 0]), Ok(()));
    assert_eq!(zero(&[0, 2], &[0, 0]), Err(MalformedRecord::ZeroChunk { chunk_idx }));
    assert_eq!(zero(&[0, 1], &[0, 2]), Err(MalformedRecord::ZeroChunk { chunk_idx }));
    let narrow = layout(&[&[2, 9]]).valid(0, 0);
    let padded = |positions: &[u16]| {
        let bytes = plain_record(format(Quantiser::OneBit, 2), positions, &[0, 0], 9);
        Record::new(format(Quantiser::OneBit, 2), &bytes).check(chunk_idx, narrow)
    };
    assert_eq!(padded(&[8, 64]), Ok(()));
    assert_eq!(padded(&[8, 9]), Err(MalformedRecord::Padding { chunk_idx, position: 9 }));
    assert_eq!(padded(&[8, 128]), Err(MalformedRecord::Padding { chunk_idx, position: 128 }));
}

#[test]
fn levels_out_of_range_are_refused() {
    let check = |levels: Levels| levels.check(4);
    for (low, high) in [(0, 5), (5, 5), (6, 5), (1, LEVEL_MAX + 1)] {
        let refused = Err(MalformedLevels::Multipliers { tensor_idx: 4, low, high });
        assert_eq!(check(Levels::TwoBit { low, high }), refused);
    }
    assert_eq!(check(Levels::TwoBit { low: 1, high: LEVEL_MAX }), Ok(()));
    for value in [f32::NAN, f32::INFINITY, -0.0, 64.00001, -65.0] {
        let levels = Levels::SigmaBins { shift: 1.0, lookup: [0.0, 64.0, value, -64.0] };
        let Err(MalformedLevels::Bins { tensor_idx: 4, number_idx: 3, value: got }) = check(levels) else {
            panic!("{value} is accepted")
        };
        assert_eq!(got.to_bits(), value.to_bits());
    }
}

/// How far two contributions agree.
fn overlap(layout: &Layout, a: BodyRef<'_>, b: BodyRef<'_>) -> f64 {
    overlaps(layout, &[a, b])[1][0]
}

#[test]
fn the_agreement_of_many_is_that_of_each_two() {
    let layout = layout(&[&[128, 64], &[60], &[100]]);
    let spec = spec(Quantiser::TwoBit, 64);
    let error = || vec![0.0; layout.flat_len()];
    let bodies: Vec<Body> =
        (0..5).map(|seed| encode(&layout, &spec, &mut error(), &noise_of(&layout, seed % 4)).unwrap().body).collect();
    let views: Vec<_> = bodies.iter().map(Body::view).collect();
    let overlaps = overlaps(&layout, &views);
    for b in 0..5 {
        let of_b: Vec<f64> = (0..b).map(|a| overlap(&layout, views[a], views[b])).collect();
        assert_eq!(overlaps[b], of_b);
    }
    assert_eq!(overlaps[4][0], 1.0);
}

#[test]
fn overlap_is_agreement_beyond_chance_and_frozen_tensors_do_not_count() {
    let layout = layout(&[&[128, 64], &[64, 64]]);
    let spec = spec(Quantiser::TwoBit, 64);
    let body = |seed: u32| {
        let mut delta = noise_of(&layout, seed);
        delta[layout.flat_range_of(1)].fill(0.0);
        encode(&layout, &spec, &mut vec![0.0; layout.flat_len()], &delta).unwrap().body
    };
    let (a, b) = (body(1), body(2));
    assert_eq!(overlap(&layout, a.view(), a.view()), 1.0);
    let chance = overlap(&layout, a.view(), b.view());
    assert!((0.0..0.06).contains(&chance), "{chance}");
    assert_eq!(chance, overlap(&layout, b.view(), a.view()));
    let nothing =
        encode(&layout, &spec, &mut vec![0.0; layout.flat_len()], &vec![0.0; layout.flat_len()]).unwrap().body;
    assert_eq!(overlap(&layout, nothing.view(), nothing.view()), 0.0);
}

#[test]
fn positions_that_everybody_keeps_are_no_evidence_of_a_copy() {
    let layout = layout(&[&[64, 64], &[60], &[60], &[100]]);
    let spec = spec(Quantiser::OneBit, 64);
    let body =
        |seed: u32| encode(&layout, &spec, &mut vec![0.0; layout.flat_len()], &noise_of(&layout, seed)).unwrap().body;
    let (a, b) = (body(1), body(2));
    let agreement = overlap(&layout, a.view(), b.view());
    assert!(agreement < 0.15, "{agreement}");
    assert_eq!(overlap(&layout, a.view(), a.view()), 1.0);
}

#[test]
fn norms_are_those_of_the_decoded_values() {
    let layout = layout(&[&[130, 70], &[4100], &[3]]);
    for (quantiser, name) in QUANTISERS {
        let body = some_body(&layout, &spec(quantiser, 20), 8);
        let dense = decode(&layout, body.view());
        let norm_of = |flat: &[f32]| flat.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        for (tensor_idx, norm) in norms(&layout, body.view()).into_iter().enumerate() {
            let want = norm_of(&dense[layout.flat_range_of(tensor_idx)]);
            assert!((norm - want).abs() <= 1e-12 * want, "{name} tensor {tensor_idx}: {norm}, {want}");
        }
        assert!((norm(&layout, body.view()) - norm_of(&dense)).abs() <= 1e-12 * norm_of(&dense), "{name}");
    }
}
