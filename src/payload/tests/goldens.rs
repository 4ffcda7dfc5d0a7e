//! Whole payloads of every quantiser, written by `xtask/reference/payload_goldens.py`: what is read, written and refused today
//! is what was read, written and refused when they were made.

use super::*;
use crate::sparseloco::TensorShape;
use crate::sparseloco::tests::heavy_noise_of;
use crate::sparseloco::tests::plain::{Content, body_of};

const INDEX: &str = include_str!("../../../tests/golden/payloads/index.txt");
const SIGNATURES: &str = include_str!("../../../tests/golden/payloads/signatures.txt");

macro_rules! payloads {
    ($($name:literal, $kind:ident, $quantiser:ident, $keep:literal;)*) => {
        [$(Golden {
            name: $name,
            kind: Kind::$kind,
            quantiser: Quantiser::$quantiser,
            keep: $keep,
            bytes: include_bytes!(concat!("../../../tests/golden/payloads/", $name, ".bin")),
        }),*]
    };
}

/// The files, in the index's order.
const PAYLOADS: [Golden; 12] = payloads![
    "encoded-one-bit-64", Encoded, OneBit, 64;
    "content-one-bit-64", Content, OneBit, 64;
    "encoded-two-bit-64", Encoded, TwoBit, 64;
    "content-two-bit-64", Content, TwoBit, 64;
    "encoded-sigma-bins-64", Encoded, SigmaBins, 64;
    "content-sigma-bins-64", Content, SigmaBins, 64;
    "encoded-one-bit-118", Encoded, OneBit, 118;
    "content-one-bit-118", Content, OneBit, 118;
    "encoded-two-bit-118", Encoded, TwoBit, 118;
    "content-two-bit-118", Content, TwoBit, 118;
    "encoded-sigma-bins-118", Encoded, SigmaBins, 118;
    "content-sigma-bins-118", Content, SigmaBins, 118;
];

struct Golden {
    name: &'static str,
    kind: Kind,
    quantiser: Quantiser,
    keep: usize,
    bytes: &'static [u8],
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// What the encoder makes of known noise.
    Encoded,
    /// The ends of every range.
    Content,
}

impl Golden {
    fn spec(&self) -> SparseSpec {
        spec(self.quantiser, self.keep)
    }

    fn parse(&self) -> Payload {
        Payload::parse(self.bytes.into(), &layout(), &self.spec()).expect(self.name)
    }

    /// BLAKE3 of the bytes and of the decoded values, as the reference script wrote them.
    fn hashes(&self) -> [&'static str; 2] {
        let line = INDEX.lines().find_map(|line| line.strip_prefix(self.name)?.strip_prefix(' ')).expect(self.name);
        let (bytes, values) = line.split_once(' ').expect("two hashes a line");
        [bytes, values]
    }
}

/// The reference script's layout: full, padded on one edge and on both, 1-D, all zero, and shorter than k.
fn layout() -> Layout {
    let tensor = |(name, shape): (&str, &[usize])| TensorShape { name: name.into(), shape: shape.to_vec() };
    let tensors: [(&str, &[usize]); 7] = [
        ("block", &[64, 64]),
        ("edges", &[70, 65]),
        ("run", &[4200]),
        ("half_frozen", &[64, 70]),
        ("short", &[3]),
        ("frozen", &[5]),
        ("one", &[1]),
    ];
    Layout::new(tensors.into_iter().map(tensor).collect()).unwrap()
}

fn header(kind: Kind) -> Header {
    let (round, uid, inner_steps) = match kind {
        Kind::Encoded => (7, 3, 30),
        Kind::Content => (u64::MAX, u16::MAX, u32::MAX),
    };
    Header {
        run_id: RunId(std::array::from_fn(|i| i as u8)),
        round: Round(round),
        uid: Uid(uid),
        hotkey: pair().hotkey(),
        base: Digest(std::array::from_fn(|i| 100 + i as u8)),
        layout: layout().hash(),
        inner_steps,
    }
}

#[test]
fn the_signatures_are_the_fixed_keys() {
    let signature = |golden: &Golden| {
        let (signed, _) = golden.bytes.split_last_chunk::<SIGNATURE_LEN>().unwrap();
        let hex: String =
            pair().sign(blake3::hash(signed).as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{} {hex}\n", golden.name)
    };
    assert_eq!(PAYLOADS.iter().map(signature).collect::<String>(), SIGNATURES);
}

#[test]
fn every_golden_payload_is_accepted_and_says_what_its_writer_meant() {
    assert_eq!(INDEX.lines().count(), PAYLOADS.len());
    for golden in &PAYLOADS {
        let payload = golden.parse();
        assert_eq!(payload.header(), &header(golden.kind), "{}", golden.name);
        let values: Vec<u8> = decode(&layout(), payload.body()).into_iter().flat_map(f32::to_le_bytes).collect();
        let got = [payload.hash().to_string(), blake3::hash(&values).to_string()];
        assert_eq!(got.each_ref().map(String::as_str), golden.hashes(), "{}", golden.name);
    }
}

#[test]
fn the_content_of_every_golden_payload_seals_to_its_bytes() {
    for golden in &PAYLOADS {
        let payload = golden.parse();
        let content = Content::of(&layout(), payload.body());
        let (levels, records) = content.bytes(golden.quantiser, golden.keep);
        let body = body_of(Format::of(&golden.spec()), levels, records);
        let again = Payload::seal(*payload.header(), &layout(), &golden.spec(), body, &pair());
        assert!(again.bytes()[..] == *golden.bytes, "{}", golden.name);
    }
}

#[test]
fn the_encoder_makes_every_encoded_golden_payload() {
    let layout = layout();
    // Chunks 7 and 10 are frozen: the first half of one tensor, all of another.
    let noise = |seed: u32| {
        let mut noise = heavy_noise_of(&layout, seed);
        for chunk_idx in [layout.chunks_of(3).start, layout.chunks_of(5).start] {
            noise[chunk_idx * CHUNK_LEN..(chunk_idx + 1) * CHUNK_LEN].fill(0.0);
        }
        noise
    };
    for golden in PAYLOADS.iter().filter(|golden| golden.kind == Kind::Encoded) {
        let body = encode(&layout, &golden.spec(), &mut noise(1), &noise(2)).unwrap().body;
        let sealed = Payload::seal(header(golden.kind), &layout, &golden.spec(), body, &pair());
        assert!(sealed.bytes()[..] == *golden.bytes, "{}", golden.name);
    }
}

#[test]
fn the_golden_payloads_hold_every_kind_of_record() {
    let layout = layout();
    for golden in PAYLOADS.iter().filter(|golden| golden.quantiser != Quantiser::SigmaBins) {
        let payload = golden.parse();
        let zero = |chunk_idx: usize| payload.record(chunk_idx).scale() == 0;
        let zeros: Vec<usize> = (0..layout.n_chunks()).filter(|chunk_idx| zero(*chunk_idx)).collect();
        assert_eq!(zeros, [7, 10], "{}: one full, one short", golden.name);
    }
    let counts: Vec<usize> =
        (0..layout.n_chunks()).map(|chunk_idx| layout.valid(layout.tensor_of(chunk_idx), chunk_idx).count()).collect();
    assert_eq!(counts, [4096, 4096, 64, 384, 6, 4096, 104, 4096, 384, 3, 5, 1]);
}
