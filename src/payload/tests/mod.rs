//! Claims about the wire: the bytes of an independent writer, a reason for each fault, and that no bytes make it panic.

mod codings;
mod goldens;
mod mutations;

use super::*;
use crate::hotkey;
use crate::run_spec::Quantiser;
use crate::sparseloco::tests::{QUANTISERS, golden, golden_layout, noise_of, spec};
use crate::sparseloco::{CHUNK_LEN, MalformedLevels, MalformedRecord, Part, decode, encode, outer_step};
use crate::terms::{Digest, Round, RunId, Uid};

fn pair() -> HotkeyPair {
    HotkeyPair::from_seed(&[7; 32])
}

/// The reference script's header.
fn header() -> Header {
    Header {
        run_id: RunId([0x11; 32]),
        round: Round(7),
        uid: Uid(3),
        hotkey: pair().hotkey(),
        base: Digest([0x22; 32]),
        layout: golden_layout().hash(),
        inner_steps: 30,
    }
}

/// The payload of the reference script's contribution.
fn sealed(quantiser: Quantiser, keep: usize) -> Payload {
    let (layout, spec) = (golden_layout(), spec(quantiser, keep));
    let body = encode(&layout, &spec, &mut noise_of(&layout, 1), &noise_of(&layout, 2)).unwrap().body;
    Payload::seal(header(), &layout, &spec, body, &pair())
}

/// Signs bytes anew, so that a forged field is judged for itself.
fn resign(bytes: &mut [u8]) {
    let (signed, signature) = bytes.split_last_chunk_mut::<SIGNATURE_LEN>().unwrap();
    *signature = pair().sign(blake3::hash(signed).as_bytes());
}

fn parse(bytes: &[u8], quantiser: Quantiser, keep: usize) -> Result<Payload, Malformed> {
    Payload::parse(bytes.into(), &golden_layout(), &spec(quantiser, keep))
}

#[test]
fn signed_bytes_equal_an_independent_writer() {
    for (quantiser, name) in QUANTISERS {
        for keep in [5, 64] {
            let part = |part: &str| golden(&format!("{part}-{name}-{keep}"));
            let want = [part("header"), part("levels"), part("records")].concat();
            let payload = sealed(quantiser, keep);
            assert_eq!(payload.bytes().len(), len(&golden_layout(), &spec(quantiser, keep)));
            let signed = &payload.bytes()[..payload.bytes().len() - SIGNATURE_LEN];
            assert_eq!(
                signed,
                want,
                "{name} {keep}: layout hash {}, hotkey {}",
                golden_layout().hash(),
                pair().hotkey()
            );
        }
    }
}

#[test]
fn the_hash_of_a_payload_pins_its_signature_too() {
    let hashes = QUANTISERS.map(|(quantiser, _)| sealed(quantiser, 5).hash().to_string());
    assert_eq!(
        hashes,
        [
            "82743fe9e217976f6ff1eacdfdda2a950d09ce26647caa69fbe26f7b66b085c9",
            "96489dd0a8dd87ed6e83bb2e1bcb4ad79853ea05a826b8128b9c729738bf9a5c",
            "bd3e5cca66762a1b14ed50b29dd64e7fe34eddd54d4c778ed4063557df79e96a",
        ]
    );
}

#[test]
fn what_is_sealed_is_parsed() {
    for (quantiser, name) in QUANTISERS {
        let sealed = sealed(quantiser, 64);
        let parsed = parse(sealed.bytes(), quantiser, 64).expect(name);
        assert_eq!((parsed.header(), parsed.hash()), (&header(), sealed.hash()));
        assert_eq!(parsed.hash().0, *blake3::hash(parsed.bytes()).as_bytes());
        let layout = golden_layout();
        assert!(decode(&layout, parsed.body()) == decode(&layout, sealed.body()), "{name}");
        assert_eq!(parsed.record(4).bytes(), &sealed.body().record_bytes()[4 * parsed.record(0).bytes().len()..]);
    }
}

#[test]
fn a_payload_of_ten_million_parameters_is_two_hundred_times_smaller() {
    let shape = vec![4096, 2560];
    let layout = Layout::new(vec![crate::sparseloco::TensorShape { name: "w".into(), shape }]).unwrap();
    let ratio = |quantiser| 4.0 * layout.n_params() as f64 / len(&layout, &spec(quantiser, 64)) as f64;
    assert!(ratio(Quantiser::TwoBit) > 202.0 && ratio(Quantiser::OneBit) > 224.0);
}

#[test]
fn a_length_that_is_not_the_runs_is_refused_before_anything_is_read() {
    let bytes = sealed(Quantiser::TwoBit, 5).bytes().to_vec();
    let want = bytes.len();
    for got in [0, 1, SIGNATURE_LEN, HEADER_LEN, want - 1, want + 1, 2 * want] {
        let mut other = bytes.clone();
        other.resize(got, 0);
        assert_eq!(parse(&other, Quantiser::TwoBit, 5).unwrap_err(), Malformed::Length { got, want });
    }
}

/// Overwrites bytes of a good payload, signs it again, and gives the reason for which it is refused.
fn forged(quantiser: Quantiser, at: usize, bytes: &[u8]) -> Malformed {
    let mut forged = sealed(quantiser, 5).bytes().to_vec();
    forged[at..at + bytes.len()].copy_from_slice(bytes);
    resign(&mut forged);
    parse(&forged, quantiser, 5).unwrap_err()
}

#[test]
fn every_field_of_the_header_that_the_run_decides_is_judged() {
    let two_bit = |at: usize, bytes: &[u8]| forged(Quantiser::TwoBit, at, bytes);
    assert_eq!(two_bit(0, b"CVPM"), Malformed::Magic { got: *b"CVPM" });
    assert_eq!(two_bit(4, &[2, 0]), Malformed::Version { got: 2 });
    assert_eq!(two_bit(6, &[6, 0]), Malformed::Keep { got: 6, want: 5 });
    assert_eq!(two_bit(8, &[1]), Malformed::Quantiser { got: 1, want: 0 });
    assert_eq!(two_bit(9, &[3, 0, 0, 0]), Malformed::Tensors { got: 3, want: 2 });
    assert_eq!(two_bit(13, &[4, 0, 0, 1]), Malformed::Chunks { got: (1 << 24) + 4, want: 5 });
    let got = LayoutHash([9; 32]);
    assert_eq!(two_bit(127, &got.0), Malformed::Layout { got, want: golden_layout().hash() });
}

#[test]
fn every_fault_of_levels_and_records_is_named() {
    let levels = HEADER_LEN;
    let got = forged(Quantiser::TwoBit, levels + 4, &[8, 0, 7, 0]);
    assert_eq!(got, MalformedBody::from(MalformedLevels::Multipliers { tensor_idx: 1, low: 8, high: 7 }).into());
    let got = forged(Quantiser::SigmaBins, levels + 20 + 8, &65_f32.to_le_bytes());
    assert_eq!(got, MalformedBody::from(MalformedLevels::Bins { tensor_idx: 1, number_idx: 2, value: 65.0 }).into());
    // Records of 16 bytes: 9 of row counts, 4 of columns, signs, magnitudes, scale.
    let record = |chunk_idx: usize, at: usize, bytes: &[u8]| {
        let got = forged(Quantiser::TwoBit, levels + 8 + 16 * chunk_idx + at, bytes);
        let Malformed::Body(MalformedBody::Record(reason)) = got else { panic!("{got}") };
        reason
    };
    let chunk_idx = 2;
    assert_eq!(record(2, 0, &[0; 9]), MalformedRecord::KeptCount { chunk_idx, got: 0, want: 5 });
    assert_eq!(record(2, 14, &[32]), MalformedRecord::SpareBits { chunk_idx, part: Part::Magnitudes });
    let first_row = [0x1f, 0, 0, 0, 0, 0, 0, 0, 0];
    let reason = record(2, 0, &[&first_row[..], &[0; 4]].concat());
    assert_eq!(reason, MalformedRecord::NotAscending { chunk_idx, previous: 0, position: 0 });
    // Chunk 2 is 6 rows high: five ones after the six zeros are row 6.
    let seventh_row = [0xc0, 0x07, 0, 0, 0, 0, 0, 0, 0];
    let reason = record(2, 0, &[&seventh_row[..], &[0; 4]].concat());
    assert_eq!(reason, MalformedRecord::Padding { chunk_idx, position: 384 });
    assert_eq!(record(2, 15, &[0]), MalformedRecord::ZeroChunk { chunk_idx });
}

#[test]
fn a_signature_binds_every_byte_and_the_hotkey() {
    let good = sealed(Quantiser::TwoBit, 5).bytes().to_vec();
    for at in [17, 49, 57, 59, 63, 95, good.len() - SIGNATURE_LEN, good.len() - 1] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        assert_eq!(parse(&bytes, Quantiser::TwoBit, 5).unwrap_err(), Malformed::Signature, "byte {at}");
    }
    let mut bytes = good;
    let (signed, signature) = bytes.split_last_chunk_mut::<SIGNATURE_LEN>().unwrap();
    let thief = HotkeyPair::from_seed(&[8; 32]);
    *signature = thief.sign(blake3::hash(signed).as_bytes());
    assert!(hotkey::verify(&thief.hotkey(), blake3::hash(signed).as_bytes(), signature));
    assert_eq!(parse(&bytes, Quantiser::TwoBit, 5).unwrap_err(), Malformed::Signature);
}
