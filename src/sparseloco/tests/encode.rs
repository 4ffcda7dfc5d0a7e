//! Claims about compression: the bytes of an independent encoder, and that nothing is ever lost.

use proptest::prelude::*;

use super::*;

/// The encoder's inputs as the reference script makes them.
fn golden_encoded(quantiser: Quantiser, keep: usize) -> Encoded {
    let layout = golden_layout();
    encode(&layout, &spec(quantiser, keep), &mut noise_of(&layout, 1), &noise_of(&layout, 2)).unwrap()
}

#[test]
fn bytes_equal_an_independent_encoder() {
    for (quantiser, name) in QUANTISERS {
        for keep in [5, 64] {
            let body = golden_encoded(quantiser, keep).body;
            assert_eq!(body.view().level_bytes(), golden(&format!("levels-{name}-{keep}")), "{name} {keep}");
            assert_eq!(body.view().record_bytes(), golden(&format!("records-{name}-{keep}")), "{name} {keep}");
        }
    }
}

/// Checks C-1 and undo for one input: all that is kept, sent and taken back.
fn check_conservation(layout: &Layout, spec: &SparseSpec, error: &[f32], delta: &[f32]) {
    let a: Vec<f32> = error.iter().zip(delta).map(|(e, d)| spec.error_decay * e + d).collect();
    let mut kept = error.to_vec();
    let encoded = encode(layout, spec, &mut kept, delta).unwrap();
    let sent = decode(layout, encoded.body.view());
    for (i, ((a, sent), kept)) in a.iter().zip(&sent).zip(&kept).enumerate() {
        assert_eq!(kept.to_bits(), (a - sent).to_bits(), "C-1 at {i}: a {a}, sent {sent}, kept {kept}");
    }
    encoded.undo.restore(layout, encoded.body.view(), &mut kept);
    for (i, (a, kept)) in a.iter().zip(&kept).enumerate() {
        assert_eq!(kept.to_bits(), a.to_bits(), "undo at {i}");
    }
    let format = Format::of(spec);
    let body = encoded.body.view();
    BodyRef::check(layout, format, body.level_bytes(), body.record_bytes()).expect("a peer accepts what is encoded");
}

#[test]
fn kept_is_exactly_what_was_not_sent_and_undo_gives_it_all_back() {
    let layout = layout(&[&[130, 70], &[4100], &[3], &[64, 64]]);
    for (quantiser, _) in QUANTISERS {
        for keep in [1, 7, 64, 118, 1024] {
            let spec = spec(quantiser, keep);
            check_conservation(&layout, &spec, &noise_of(&layout, 1), &heavy_noise_of(&layout, 2));
        }
    }
}

#[test]
fn extremes_lose_nothing() {
    let layout = layout(&[&[70, 70], &[100]]);
    let with = |value: f32, every: usize| {
        let mut flat = noise_of(&layout, 3);
        flat.iter_mut().filter(|x| **x != 0.0).step_by(every).for_each(|x| *x = value.copysign(*x));
        flat
    };
    let zeros = vec![0.0; layout.flat_len()];
    for (quantiser, _) in QUANTISERS {
        for value in [f32::MAX, 1e20, 1e-20, f32::MIN_POSITIVE, 1e-45, 0.0] {
            for every in [1, 100] {
                check_conservation(&layout, &spec(quantiser, 64), &zeros, &with(value, every));
            }
        }
        check_conservation(&layout, &spec(quantiser, 64), &zeros, &zeros);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn nothing_is_lost_whatever_the_bits(
        bits in prop::collection::vec(any::<u32>(), 128),
        keep in 1_usize..=200,
        quantiser in prop::sample::select(vec![Quantiser::OneBit, Quantiser::TwoBit, Quantiser::SigmaBins]),
    ) {
        let layout = layout(&[&[9, 70], &[77]]);
        let finite = |i: usize| {
            let value = f32::from_bits(bits[i % bits.len()].rotate_left(i as u32 / 128));
            if value.is_finite() { value / 4.0 } else { 0.5 }
        };
        let fill = |offset: usize| {
            let mut flat = noise_of(&layout, 1);
            flat.iter_mut().enumerate().filter(|(_, x)| **x != 0.0).for_each(|(i, x)| *x = finite(i + offset));
            flat
        };
        check_conservation(&layout, &spec(quantiser, keep), &fill(0), &fill(5));
    }
}

#[test]
fn a_value_that_is_not_finite_refuses_the_round() {
    let layout = golden_layout();
    for (bad, what) in [(f32::NAN, "NaN"), (f32::INFINITY, "Inf"), (f32::NEG_INFINITY, "-Inf")] {
        for in_error in [false, true] {
            let (mut error, mut delta) = (noise_of(&layout, 1), noise_of(&layout, 2));
            let at = layout.flat_range_of(1).start + 99;
            if in_error {
                error[at] = bad
            } else {
                delta[at] = bad
            }
            let refused = encode(&layout, &spec(Quantiser::TwoBit, 64), &mut error, &delta).unwrap_err();
            assert_eq!(refused, EncodeError::NotFinite { name: "g".into(), chunk: 0 }, "{what}");
        }
    }
    let mut error = vec![0.0; layout.flat_len()];
    let mut delta = error.clone();
    (error[0], delta[0]) = (f32::MAX, f32::MAX);
    let refused = encode(&layout, &spec(Quantiser::TwoBit, 64), &mut error, &delta).unwrap_err();
    assert_eq!(refused, EncodeError::NotFinite { name: "w".into(), chunk: 0 }, "the sum overflows");
}

#[test]
fn a_value_in_the_padding_is_refused() {
    let layout = golden_layout();
    let (mut error, mut delta) = (noise_of(&layout, 1), noise_of(&layout, 2));
    delta[4096 + 1] = 1.0;
    let refused = encode(&layout, &spec(Quantiser::TwoBit, 64), &mut error, &delta).unwrap_err();
    assert_eq!(refused, EncodeError::PaddingNotZero { name: "w".into(), chunk: 1 });
}

#[test]
fn repeated_rounds_send_everything_in_the_end() {
    // With β = 1 and no further Δ, error feedback drains: what is never selected at first is sent later.
    let layout = layout(&[&[64, 64]]);
    let spec = SparseSpec { error_decay: 1.0, ..spec(Quantiser::TwoBit, 256) };
    let (mut error, zeros) = (vec![0.0; layout.flat_len()], vec![0.0; layout.flat_len()]);
    let norm = |flat: &[f32]| flat.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let delta = heavy_noise_of(&layout, 4);
    encode(&layout, &spec, &mut error, &delta).unwrap();
    for _ in 0..60 {
        encode(&layout, &spec, &mut error, &zeros).unwrap();
    }
    assert!(norm(&error) < 0.02 * norm(&delta), "{} of {}", norm(&error), norm(&delta));
}

#[test]
fn a_second_bit_halves_the_error_at_least() {
    let layout = layout(&[&[256, 256]]);
    let lost = |quantiser| {
        let report =
            encode(&layout, &spec(quantiser, 64), &mut vec![0.0; layout.flat_len()], &heavy_noise_of(&layout, 5));
        let report = report.unwrap().report;
        assert_eq!((report.kept, report.zero_chunks), (16 * 64, 0));
        report.energy_lost / report.energy_kept
    };
    let (one, two) = (lost(Quantiser::OneBit), lost(Quantiser::TwoBit));
    assert!(two < one / 2.0 && one < 0.02, "one bit {one}, two bits {two}");
}
