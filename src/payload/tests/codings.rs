//! Mutated transport codings: bytes of good ones, whole frames with forged streams in them, frames that lie about their size. None
//! makes the decoder panic, each reason of refusal occurs, and what is accepted is a payload that its sender signed.
//!
//! The codings are written here once more, from the tables of `transport` and `block` alone, so that streams can be
//! forged and still be whole frames.

use std::collections::BTreeMap;

use zstd_safe::CCtx;

use super::mutations::{Family, draws, flip, overwrite};
use super::*;
use crate::payload::transport::{self, Decoder, MalformedTransport};
use crate::sparseloco::tests::plain::{Chunk, Content};

/// Codings of one quantiser that go through the decoder.
const CASES: usize = 100_000;

/// Magic and version.
const PREFIX: [u8; 6] = *b"CVTC\x01\x00";

/// A coding of one block, taken apart.
#[derive(Clone)]
struct Parts {
    /// Header, levels and signature.
    front: Vec<u8>,
    /// The streams that are frames, in order.
    streams: Vec<Vec<u8>>,
    signs: Vec<u8>,
}

impl Parts {
    fn of(family: &Family, payload: &[u8]) -> Self {
        let parsed = Payload::parse(payload.into(), &family.layout, &family.spec).unwrap();
        let content = Content::of(&family.layout, parsed.body());
        let quantiser = family.spec.quantiser;
        let (signed, signature) = payload.split_last_chunk::<SIGNATURE_LEN>().unwrap();
        let front = [&signed[..HEADER_LEN], parsed.body().level_bytes(), signature].concat();
        let live = || content.chunks.iter().filter(|chunk| chunk.scale != 0);
        let scales = content.chunks.iter().map(|chunk| chunk.scale).collect();
        let gaps = live().flat_map(gaps).collect();
        let plane =
            |shift: u8, width: usize| live().flat_map(move |chunk| packed(&chunk.codes, shift, width)).collect();
        let (streams, signs) = match quantiser {
            Quantiser::TwoBit => (vec![scales, gaps, plane(1, 1)], plane(0, 1)),
            Quantiser::OneBit => (vec![scales, gaps], plane(0, 1)),
            Quantiser::SigmaBins => (vec![gaps, plane(0, 2)], Vec::new()),
        };
        Self { front, streams, signs }
    }

    fn frames(&self, context: &mut CCtx<'_>) -> Vec<Vec<u8>> {
        let frame = |stream: &Vec<u8>| {
            let mut frame = vec![0; zstd_safe::compress_bound(stream.len())];
            let len = context.compress(frame.as_mut_slice(), stream, 1).unwrap();
            frame.truncate(len);
            frame
        };
        self.streams.iter().map(frame).collect()
    }

    /// The coding, where in it the block starts, and how many frames it has.
    fn written(&self, frames: &[Vec<u8>]) -> (Vec<u8>, usize, usize) {
        let mut out = [&PREFIX[..], &self.front].concat();
        let block_at = out.len();
        out.push(1);
        frames.iter().for_each(|frame| out.extend_from_slice(&(frame.len() as u32).to_le_bytes()));
        frames.iter().for_each(|frame| out.extend_from_slice(frame));
        out.extend_from_slice(&self.signs);
        (out, block_at, frames.len())
    }
}

/// Bytes of less than 255 end a gap, each 255 adds to it.
fn gaps(chunk: &Chunk) -> Vec<u8> {
    let (mut bytes, mut next) = (Vec::new(), 0);
    for position in &chunk.positions {
        let gap = position - next;
        bytes.extend(vec![255; gap / 255]);
        bytes.push((gap % 255) as u8);
        next = position + 1;
    }
    bytes
}

/// Some bits of each code; the chunk's part is whole bytes.
fn packed(codes: &[u8], shift: u8, width: usize) -> Vec<u8> {
    let mut bytes = vec![0; (codes.len() * width).div_ceil(8)];
    for (i, code) in codes.iter().enumerate() {
        bytes[i * width / 8] |= (code >> shift & ((1 << width) - 1)) << (i * width % 8);
    }
    bytes
}

/// A coding of the first kind: the records as they are.
fn plain_coding(family: &Family, payload: &[u8]) -> Vec<u8> {
    let (signed, signature) = payload.split_last_chunk::<SIGNATURE_LEN>().unwrap();
    let (front, records) = signed.split_at(HEADER_LEN + family.levels_len);
    [&PREFIX[..], front, signature, &[0], records].concat()
}

/// Changes a stream before it is made a frame.
fn forge_stream(stream: &mut Vec<u8>, draw: &mut impl FnMut(usize) -> usize) {
    let at = draw(stream.len() + 1);
    match draw(7) {
        0 => stream.insert(at, draw(256) as u8),
        1 => stream.splice(at..at, vec![255; draw(20) + 1]).for_each(drop),
        2 if at < stream.len() => drop(stream.remove(at)),
        3 => stream.truncate(at),
        4 => stream.resize(1 << draw(18), [0, 255, 7][draw(3)]),
        _ if at < stream.len() => stream[at] = [0, 255, 254, draw(256) as u8][draw(4)],
        _ => stream.push(0),
    }
}

/// Changes a frame: what it declares, where it ends, what it is.
fn forge_frame(frame: &mut Vec<u8>, draw: &mut impl FnMut(usize) -> usize) {
    match draw(6) {
        // The descriptor: how the size is stated, window, checksum, dictionary.
        0 => frame[4] = draw(256) as u8,
        1 => {
            let end = frame.len().min(14);
            overwrite(&mut frame[4..end], draw);
        }
        2 => frame.truncate(draw(frame.len())),
        3 => frame.extend_from_within(..),
        4 => {
            // 100 000 equal bytes in one block, of which the header states nothing, little, or 2^63.
            let header = [&[0x00, 0x50][..], &[0x20, 40], &[0xe0, 0, 0, 0, 0, 0, 0, 0, 0x80]][draw(3)];
            let block = [&(100_000_u32 << 3 | 0b011).to_le_bytes()[..3], &[7]].concat();
            *frame = [&frame[..4], header, &block].concat();
        }
        _ => {
            let bit = draw(8 * frame.len());
            flip(frame, bit);
        }
    }
}

/// Good codings of a family, and what makes bad ones of them.
struct Forger {
    family: Family,
    parts: Vec<Parts>,
    context: CCtx<'static>,
}

impl Forger {
    fn new(quantiser: Quantiser, keep: usize) -> Self {
        let family = Family::new(quantiser, keep);
        let parts = family.payloads.iter().map(|payload| Parts::of(&family, payload)).collect();
        Self { family, parts, context: CCtx::create() }
    }

    /// One bad coding; by chance a good one.
    fn forge(&mut self, draw: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
        let Self { family, parts, context } = self;
        let which = draw(parts.len());
        let mut parts = parts[which].clone();
        match draw(6) {
            0 => {
                let mut payload = family.payloads[which].clone();
                family.mutate(&mut payload, &family.payloads[0], draw);
                if payload.len() < HEADER_LEN + family.levels_len + SIGNATURE_LEN {
                    return payload;
                }
                plain_coding(family, &payload)
            }
            1 | 2 => {
                let stream = draw(parts.streams.len());
                forge_stream(&mut parts.streams[stream], draw);
                parts.written(&parts.frames(context)).0
            }
            3 => {
                let mut frames = parts.frames(context);
                let frame = draw(frames.len());
                forge_frame(&mut frames[frame], draw);
                parts.written(&frames).0
            }
            4 => {
                // The kind, or the length of a frame.
                let (mut bytes, block_at, n_frames) = parts.written(&parts.frames(context));
                match draw(4) {
                    0 => bytes[block_at] = draw(4) as u8,
                    _ => {
                        let at = block_at + 1 + 4 * draw(n_frames);
                        overwrite(&mut bytes[at..at + 4], draw);
                    }
                }
                bytes
            }
            _ => {
                let (mut bytes, ..) = parts.written(&parts.frames(context));
                forge_bytes(&mut bytes, draw);
                bytes
            }
        }
    }
}

/// Changes anything, anywhere.
fn forge_bytes(bytes: &mut Vec<u8>, draw: &mut impl FnMut(usize) -> usize) {
    let len = bytes.len();
    match draw(7) {
        0 => bytes.truncate(draw(len)),
        1 => bytes.extend((0..=draw(300)).map(|_| draw(256) as u8)),
        2 => overwrite(&mut bytes[draw(6)..6], draw),
        3 => bytes[6 + draw(HEADER_LEN)] = draw(256) as u8,
        4 => {
            let (at, from) = (draw(len), draw(len));
            bytes.copy_within(from..from + (draw(24) + 1).min(len - at.max(from)), at);
        }
        _ => (0..=draw(4)).for_each(|_| flip(bytes, draw(8 * len))),
    }
}

#[test]
fn an_independent_coding_is_decoded_to_its_payload() {
    for (quantiser, name) in QUANTISERS {
        for keep in [16, 64, 118] {
            let Forger { family, parts, mut context } = Forger::new(quantiser, keep);
            for (payload, parts) in family.payloads.iter().zip(parts) {
                for coding in [parts.written(&parts.frames(&mut context)).0, plain_coding(&family, payload)] {
                    let canonical = transport::decode(&coding, &family.layout, &family.spec).expect(name);
                    assert!(canonical[..] == payload[..], "{name} {keep}");
                }
            }
        }
    }
}

/// Runs forged codings through a decoder that is kept and one that is new, and counts the reasons.
fn hammer(quantiser: Quantiser) -> BTreeMap<&'static str, usize> {
    let mut forgers = [16, 64].map(|keep| Forger::new(quantiser, keep));
    let families = [16, 64].map(|keep| Family::new(quantiser, keep));
    let mut kept = families.each_ref().map(|family| Decoder::new(&family.layout, &family.spec));
    let (mut draw, mut outcomes) = (draws(17 + quantiser as u64), BTreeMap::new());
    for turn in 0..CASES {
        let which = usize::from(turn % 8 == 0);
        let (family, decoder) = (&families[which], &mut kept[which]);
        let coding = forgers[which].forge(&mut draw);
        let mut pieces = Vec::new();
        let streamed = decoder.decode(&coding, |piece| pieces.extend_from_slice(piece));
        assert!(pieces.len() <= len(&family.layout, &family.spec));
        let whole = transport::decode(&coding, &family.layout, &family.spec);
        // A bin may be NaN, so that a refusal need not equal itself.
        let reason_of = |refusal: &MalformedTransport| refusal.to_string();
        assert_eq!(streamed.as_ref().map_err(reason_of), whole.as_ref().map(|_| &()).map_err(reason_of));
        let outcome = match whole {
            Err(refusal) => refusal.reason(),
            Ok(canonical) => {
                assert!(canonical[..] == pieces[..], "a decoder that was used before: {coding:02x?}");
                match Payload::parse(Arc::clone(&canonical), &family.layout, &family.spec) {
                    Ok(_) => {
                        assert!(family.payloads.iter().any(|good| good[..] == canonical[..]), "{coding:02x?}");
                        "accepted"
                    }
                    Err(refusal) => {
                        if refusal == Malformed::Signature {
                            family.check_accepted(&canonical);
                        }
                        refusal.reason()
                    }
                }
            }
        };
        *outcomes.entry(outcome).or_default() += 1;
    }
    outcomes
}

/// Every reason that decoding alone can have.
const REASONS: [&str; 16] = [
    "transport_too_long",
    "transport_truncated",
    "transport_trailing",
    "transport_magic",
    "transport_version",
    "block_kind",
    "frame_magic",
    "frame_unstated",
    "frame_too_large",
    "frame_too_small",
    "frame_bounds",
    "frame_corrupt",
    "gaps_too_few",
    "gaps_position",
    "gaps_escape",
    "gaps_left",
];

fn check(quantiser: Quantiser) {
    let outcomes = hammer(quantiser);
    assert_eq!(outcomes.values().sum::<usize>(), CASES);
    let judged = ["magic", "version", "quantiser", "keep", "tensors", "chunks", "layout"];
    let body = ["kept_count", "not_ascending", "spare_bits", "padding", "signature", "accepted"];
    for reason in REASONS.into_iter().chain(judged).chain(body) {
        assert!(outcomes.get(reason).is_some_and(|n| *n >= 5), "{reason} occurs: {outcomes:?}");
    }
    assert!(!outcomes.contains_key("length"), "decoding gives the right length");
}

#[test]
fn no_forged_coding_of_one_bit_panics_or_passes() {
    check(Quantiser::OneBit);
}

#[test]
fn no_forged_coding_of_two_bit_panics_or_passes() {
    check(Quantiser::TwoBit);
}

#[test]
fn no_forged_coding_of_sigma_bins_panics_or_passes() {
    check(Quantiser::SigmaBins);
}
