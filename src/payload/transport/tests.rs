//! Claims about the transport coding: it loses nothing, it is small, and every malformation is refused by its own reason.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::frame::{Expander, Shrinker};
use super::*;
use crate::hotkey::HotkeyPair;
use crate::run_spec::Quantiser;
use crate::sparseloco::tests::{QUANTISERS, heavy_noise_of, layout, noise_of, spec};
use crate::sparseloco::{CHUNK_LEN, encode as compress};
use crate::terms::{Digest, Round, RunId, Uid};

fn sealed(layout: &Layout, spec: &SparseSpec, delta: &[f32]) -> Payload {
    let pair = HotkeyPair::from_seed(&[7; 32]);
    let header = Header {
        run_id: RunId([0x11; 32]),
        round: Round(7),
        uid: Uid(3),
        hotkey: pair.hotkey(),
        base: Digest([0x22; 32]),
        layout: layout.hash(),
        inner_steps: 30,
    };
    let body = compress(layout, spec, &mut vec![0.0; layout.flat_len()], delta).unwrap().body;
    Payload::seal(header, layout, spec, body, &pair)
}

#[track_caller]
fn survives(layout: &Layout, spec: &SparseSpec, delta: &[f32]) -> Vec<u8> {
    let payload = sealed(layout, spec, delta);
    let coded = encode(&payload, layout, spec);
    assert!(coded.len() <= len_max(layout, spec), "{} bytes of at most {}", coded.len(), len_max(layout, spec));
    assert_eq!(&decode(&coded, layout, spec).unwrap(), payload.bytes());
    assert_eq!(parse(&coded, layout, spec).unwrap().hash(), payload.hash());
    coded
}

/// Padded blocks, a padded run, and among noise two chunks of scale 0: a whole one and a padded one.
fn mixed() -> (Layout, Vec<f32>) {
    let layout = layout(&[&[130, 200], &[100], &[64, 64], &[4200]]);
    let mut delta = heavy_noise_of(&layout, 3);
    let mut silence = |chunk_idx: usize| delta[chunk_idx * CHUNK_LEN..(chunk_idx + 1) * CHUNK_LEN].fill(0.0);
    silence(0);
    silence(3);
    (layout, delta)
}

#[test]
fn what_was_coded_is_decoded_for_every_quantiser_and_k() {
    let (layout, delta) = mixed();
    for (quantiser, _) in QUANTISERS {
        for keep in [1, 2, 3, 5, 63, 64, 65, 118, 128, 1000, 1024] {
            survives(&layout, &spec(quantiser, keep), &delta);
        }
    }
}

#[test]
fn every_kind_of_chunk_survives() {
    let shape = layout(&[&[64 * 40, 64]]);
    let keep = 64;
    // Where the kept positions lie, of a chunk of 4096.
    type Places = fn(usize) -> usize;
    let places: [Places; 6] =
        [|i| i, |i| 4095 - i, |i| 64 * i, |i| 64 * i + 63, |i| if i < 32 { i } else { 4095 - i }, |i| 61 * i + 17];
    for places in places {
        let mut delta = vec![0.0; shape.flat_len()];
        for chunk in delta.chunks_mut(CHUNK_LEN) {
            (0..keep).for_each(|i| chunk[places(i)] = if i % 3 == 0 { -1.0 } else { 0.5 });
        }
        for (quantiser, _) in QUANTISERS {
            survives(&shape, &spec(quantiser, keep), &delta);
        }
    }
}

#[test]
fn many_blocks_survive_in_one_piece_or_in_many() {
    // Two blocks and a part of a third.
    let shape = layout(&[&[64 * 130, 64 * 30], &[70, 70]]);
    let delta = noise_of(&shape, 5);
    for (quantiser, name) in QUANTISERS {
        let spec = spec(quantiser, 64);
        let payload = sealed(&shape, &spec, &delta);
        let coded = encode(&payload, &shape, &spec);
        assert_eq!(blocks(&shape, Format::of(&spec)).count(), 3);
        let mut decoder = Decoder::new(&shape, &spec);
        for _ in 0..2 {
            let mut pieces = Vec::new();
            decoder.decode(&coded, |piece| pieces.extend_from_slice(piece)).unwrap();
            assert!(pieces == **payload.bytes(), "{name}");
        }
        assert!(decode(&coded, &shape, &spec).unwrap() == *payload.bytes(), "{name}");
        let held = decoder.records.capacity() + decoder.reader.held();
        assert!(held < 600_000, "{name}: the decoder holds {held} bytes");
    }
}

#[test]
fn a_payload_of_ten_million_parameters_travels_at_the_promised_ratio() {
    let shape = layout(&[&[4096, 2560]]);
    let delta = heavy_noise_of(&shape, 1);
    for (quantiser, at_least) in [(Quantiser::TwoBit, 215.0), (Quantiser::OneBit, 240.0), (Quantiser::SigmaBins, 215.0)]
    {
        let spec = spec(quantiser, 64);
        let coded = encode(&sealed(&shape, &spec, &delta), &shape, &spec);
        let ratio = 4.0 * shape.n_params() as f64 / coded.len() as f64;
        assert!(ratio > at_least, "{quantiser:?}: {ratio:.1}");
    }
}

#[test]
fn what_is_frozen_costs_next_to_nothing() {
    let shape = layout(&[&[4096, 2560]]);
    let spec = spec(Quantiser::TwoBit, 64);
    let coded = survives(&shape, &spec, &vec![0.0; shape.flat_len()]);
    assert!(coded.len() < 400, "{} bytes for {} chunks", coded.len(), shape.n_chunks());
}

/// A block that is forged stream by stream, after a good head.
struct Forgery {
    layout: Layout,
    spec: SparseSpec,
    head: Vec<u8>,
    scales: Vec<u8>,
    gaps: Vec<u8>,
    codes: Vec<u8>,
    signs: Vec<u8>,
}

/// The scales of forty chunks: these, then zeros.
fn scales(first: &[u8]) -> Vec<u8> {
    [first, &vec![0; 40 - first.len()]].concat()
}

impl Forgery {
    /// Forty chunks that keep 5 values each; all are of scale 0 but the first, and the third, so that there is room to err in.
    fn new() -> Self {
        let (layout, spec) = (layout(&[&[64, 64 * 40]]), spec(Quantiser::TwoBit, 5));
        let coded = encode(&sealed(&layout, &spec, &vec![0.0; layout.flat_len()]), &layout, &spec);
        let head = coded[..PREFIX_LEN + HEADER_LEN + 4 + SIGNATURE_LEN].to_vec();
        Self { layout, spec, head, scales: scales(&[9, 0, 7]), gaps: vec![3; 10], codes: vec![0; 2], signs: vec![1; 2] }
    }

    fn frames(&self) -> [Vec<u8>; 3] {
        [&self.scales, &self.gaps, &self.codes].map(|stream| {
            let mut frame = Vec::new();
            Shrinker::new().append(stream, &mut frame);
            frame
        })
    }

    fn with_frames(&self, frames: &[Vec<u8>; 3]) -> Vec<u8> {
        let lens = frames.iter().flat_map(|frame| (frame.len() as u32).to_le_bytes());
        let lens: Vec<u8> = lens.collect();
        [&self.head[..], &[1], &lens, &frames.concat(), &self.signs].concat()
    }

    fn decode(&self) -> Result<Arc<[u8]>, MalformedTransport> {
        decode(&self.with_frames(&self.frames()), &self.layout, &self.spec)
    }

    /// What a forged frame in the place of one stream's is refused for.
    #[track_caller]
    fn frame_refused(&self, stream: Stream, frame: Vec<u8>, reason: MalformedFrame) {
        let mut frames = self.frames();
        frames[stream as usize] = frame;
        let bytes = self.with_frames(&frames);
        let want = MalformedTransport::Frame { chunk_idx: 0, stream, reason };
        assert_eq!(decode(&bytes, &self.layout, &self.spec), Err(want));
    }
}

#[test]
fn a_forged_block_is_as_good_as_a_made_one() {
    let forgery = Forgery::new();
    let canonical = forgery.decode().unwrap();
    assert_eq!(canonical.len(), crate::payload::len(&forgery.layout, &forgery.spec));
    let payload = Payload::parse(Arc::clone(&canonical), &forgery.layout, &forgery.spec);
    assert_eq!(payload.unwrap_err(), Malformed::Signature, "all but the signature is right");
    let record_len = Format::of(&forgery.spec).record_len();
    let record = |i: usize| &canonical[HEADER_LEN + 4 + record_len * i..][..record_len];
    // Positions 3, 7, 11, 15, 19 in row 0: five ones, then the columns, sign of the first, no magnitude, the scale.
    assert_eq!(record(0), [0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xc3, 0xb1, 0x3c, 0x13, 1, 0, 9]);
    // Positions 0 to 4, codes and scale 0.
    assert_eq!(record(1), [0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0x20, 0x0c, 0x04, 0, 0, 0]);
}

#[test]
fn gaps_that_do_not_fit_their_chunks_are_refused_by_their_reason() {
    let refused = |gaps: &[u8], want: MalformedTransport| {
        let forgery = Forgery { gaps: gaps.to_vec(), ..Forgery::new() };
        assert_eq!(forgery.decode(), Err(want));
    };
    let gaps = |chunk_idx: usize, reason: MalformedGaps| MalformedTransport::Gaps { chunk_idx, reason };
    // Five gaps, then one of fifteen escapes and a last one: position 4095 is just inside.
    let edge = |last: u8| [&[3_u8; 5][..], &[0; 4], &[255; 16], &[last]].concat();
    assert!(Forgery { gaps: edge(11), ..Forgery::new() }.decode().is_ok());
    refused(&edge(12), gaps(2, MalformedGaps::Position { position: 4096 }));
    let escapes = [&[3_u8; 5][..], &[0; 4], &[255; 17], &[0]].concat();
    refused(&escapes, gaps(2, MalformedGaps::Escape { position: 4 + 17 * 255 }));
    refused(&[&[3_u8; 9][..], &[255]].concat(), gaps(2, MalformedGaps::TooFew));
    refused(&[3; 11], MalformedTransport::GapsLeft { chunk_idx: 0, unread: 1 });
    let too_small = MalformedFrame::TooSmall { stated: 9, min: 10 };
    refused(&[3; 9], MalformedTransport::Frame { chunk_idx: 0, stream: Stream::Gaps, reason: too_small });
}

#[test]
fn streams_of_another_size_are_refused_before_they_are_expanded() {
    let refused = |forgery: Forgery, stream: Stream, reason: MalformedFrame| {
        assert_eq!(forgery.decode(), Err(MalformedTransport::Frame { chunk_idx: 0, stream, reason }));
    };
    let too_large = |stated, max| MalformedFrame::TooLarge { stated, max };
    refused(Forgery { scales: vec![0; 41], ..Forgery::new() }, Stream::Scales, too_large(41, 40));
    let too_small = MalformedFrame::TooSmall { stated: 39, min: 40 };
    refused(Forgery { scales: vec![0; 39], ..Forgery::new() }, Stream::Scales, too_small);
    // Ten gaps, and at most (4096 - 5) / 255 escapes in each of two chunks.
    refused(Forgery { gaps: vec![1; 43], ..Forgery::new() }, Stream::Gaps, too_large(43, 42));
    refused(Forgery { codes: vec![0; 3], ..Forgery::new() }, Stream::Codes, too_large(3, 2));
    // A third chunk that is alive needs more of everything.
    let too_small = MalformedFrame::TooSmall { stated: 10, min: 15 };
    refused(Forgery { scales: scales(&[9, 3, 7]), ..Forgery::new() }, Stream::Gaps, too_small);
}

#[test]
fn a_bomb_is_refused_by_what_it_states_and_by_what_it_does() {
    let forgery = Forgery::new();
    let mut bomb = Vec::new();
    Shrinker::new().append(&vec![0; 1 << 24], &mut bomb);
    assert!(bomb.len() < 4096);
    forgery.frame_refused(Stream::Gaps, bomb, MalformedFrame::TooLarge { stated: 1 << 24, max: 42 });
    // One block of 100 000 equal bytes. The header's descriptor says how the size is stated: not at all (with a window of a
    // megabyte), in one byte that lies, in eight bytes that say 2^63.
    let block = [&((100_000_u32 << 3 | 0b011).to_le_bytes()[..3]), &[7]].concat();
    let frame = |descriptor: &[u8]| [&0xfd2f_b528_u32.to_le_bytes()[..], descriptor, &block].concat();
    forgery.frame_refused(Stream::Gaps, frame(&[0x00, 0x50]), MalformedFrame::Unstated);
    forgery.frame_refused(Stream::Gaps, frame(&[0x20, 40]), MalformedFrame::Corrupt);
    let eight = [&[0xe0][..], &(1_u64 << 63).to_le_bytes()].concat();
    forgery.frame_refused(Stream::Gaps, frame(&eight), MalformedFrame::TooLarge { stated: 1 << 63, max: 42 });
    forgery.frame_refused(Stream::Gaps, vec![7; 20], MalformedFrame::NotAFrame);
    forgery.frame_refused(Stream::Gaps, vec![], MalformedFrame::NotAFrame);
    let [_, gaps, _] = forgery.frames();
    forgery.frame_refused(Stream::Gaps, [&gaps[..], &gaps].concat(), MalformedFrame::Bounds);
    forgery.frame_refused(Stream::Gaps, gaps[..gaps.len() - 1].to_vec(), MalformedFrame::Bounds);
    // A frame that says it may be skipped states nothing at all.
    let skippable = [&0x184d_2a50_u32.to_le_bytes()[..], &4_u32.to_le_bytes(), &[0; 4]].concat();
    forgery.frame_refused(Stream::Gaps, skippable, MalformedFrame::TooSmall { stated: 0, min: 10 });
}

#[test]
fn a_bomb_leaves_no_memory_behind() {
    let mut out = Vec::new();
    let mut bomb = Vec::new();
    Shrinker::new().append(&vec![0; 1 << 24], &mut bomb);
    let mut expander = Expander::new();
    let before = expander.held();
    assert!(expander.expand(&bomb, 0, 1000, &mut out).is_err());
    assert_eq!((out.capacity(), expander.held()), (0, before));
}

#[test]
fn what_comes_before_the_blocks_is_judged_first() {
    let forgery = Forgery::new();
    let good = forgery.with_frames(&forgery.frames());
    let refused = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        decode(&bytes, &forgery.layout, &forgery.spec).unwrap_err()
    };
    assert_eq!(refused(0, b'X'), MalformedTransport::Magic { got: *b"XVTC" });
    assert_eq!(refused(4, 9), MalformedTransport::Version { got: 9 });
    assert_eq!(refused(6, b'X'), Malformed::Magic { got: *b"XVPL" }.into());
    assert_eq!(refused(12, 6), Malformed::Keep { got: 6, want: 5 }.into());
    assert_eq!(refused(forgery.head.len(), 2), MalformedTransport::BlockKind { chunk_idx: 0, got: 2 });
    let longer = [&good[..], &[0; 3]].concat();
    let refusal = decode(&longer, &forgery.layout, &forgery.spec);
    assert_eq!(refusal, Err(MalformedTransport::Trailing { bytes: 3 }));
    let max = len_max(&forgery.layout, &forgery.spec);
    let refusal = decode(&vec![0; max + 1], &forgery.layout, &forgery.spec);
    assert_eq!(refusal, Err(MalformedTransport::TooLong { got: max + 1, max }));
    // A frame that says it is longer than all there is.
    let refusal = refused(forgery.head.len() + 4, 0xff);
    assert!(matches!(refusal, MalformedTransport::Truncated { .. }), "{refusal}");
}

#[test]
fn every_cut_is_missed() {
    let (layout, delta) = mixed();
    for (quantiser, name) in QUANTISERS {
        for keep in [5, 64] {
            let spec = spec(quantiser, keep);
            let coded = survives(&layout, &spec, &delta);
            for len in 0..coded.len() {
                let refusal = decode(&coded[..len], &layout, &spec).unwrap_err();
                assert!(
                    matches!(refusal, MalformedTransport::Truncated { at, .. } if at == len),
                    "{name} {len}: {refusal}"
                );
            }
        }
    }
}

/// A stream of numbers below a bound.
fn draws(mut state: u64) -> impl FnMut(usize) -> usize {
    move |bound| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    }
}

#[test]
fn no_mutated_coding_panics_or_passes_as_the_same_payload() {
    let (layout, delta) = mixed();
    let mut draw = draws(1);
    let mut reasons = BTreeSet::new();
    for (quantiser, name) in QUANTISERS {
        let spec = spec(quantiser, 64);
        let payload = sealed(&layout, &spec, &delta);
        let good = encode(&payload, &layout, &spec);
        for _ in 0..4_000 {
            let mut bytes = good.clone();
            for _ in 0..=draw(3) {
                // Half of the time near the front, where the lengths are.
                let reach = if draw(2) == 0 { 320 } else { bytes.len() };
                let at = draw(reach);
                bytes[at] = if draw(2) == 0 { draw(256) as u8 } else { bytes[at] ^ 1 << draw(8) };
            }
            match parse(&bytes, &layout, &spec) {
                // zstd has bits without a meaning.
                Ok(parsed) => assert_eq!(parsed.hash(), payload.hash(), "{name}"),
                Err(refusal) => drop(reasons.insert(refusal.reason())),
            }
        }
    }
    for reason in ["transport_magic", "block_kind", "frame_corrupt", "frame_bounds", "signature", "layout"] {
        assert!(reasons.contains(reason), "{reason} of {reasons:?}");
    }
}

/// Written by zstd 1.5.7: whatever version is linked must read it.
#[test]
fn golden_codings_decode_to_their_golden_payloads() {
    let (layout, _) = mixed();
    let goldens: [(Quantiser, &[u8], &[u8]); 3] = [
        (
            Quantiser::TwoBit,
            include_bytes!("../../../tests/golden/transport/two-bit.cvtc"),
            include_bytes!("../../../tests/golden/transport/two-bit.cvpl"),
        ),
        (
            Quantiser::OneBit,
            include_bytes!("../../../tests/golden/transport/one-bit.cvtc"),
            include_bytes!("../../../tests/golden/transport/one-bit.cvpl"),
        ),
        (
            Quantiser::SigmaBins,
            include_bytes!("../../../tests/golden/transport/sigma-bins.cvtc"),
            include_bytes!("../../../tests/golden/transport/sigma-bins.cvpl"),
        ),
    ];
    for (quantiser, coded, canonical) in goldens {
        let spec = spec(quantiser, 16);
        assert!(coded.len() < canonical.len(), "the streams are in use");
        assert_eq!(*decode(coded, &layout, &spec).unwrap(), *canonical, "{quantiser:?}");
        assert!(Payload::parse(canonical.into(), &layout, &spec).is_ok(), "{quantiser:?}");
    }
}

proptest! {
    #[test]
    fn whatever_is_kept_survives(
        marks in prop::collection::vec((0_usize..4, 0_usize..CHUNK_LEN, 1_usize..300, -3_i8..4), 0..20),
        keep in prop::sample::select(vec![1_usize, 3, 17, 64, 118]),
        quantiser in prop::sample::select(vec![Quantiser::OneBit, Quantiser::TwoBit, Quantiser::SigmaBins]),
        tail in 1_usize..3000,
    ) {
        let layout = layout(&[&[64, 128], &[40, 30], &[tail]]);
        let mut flat = vec![0.0; layout.flat_len()];
        for (chunk_idx, at, len, value) in marks {
            for position in at..(at + len).min(CHUNK_LEN) {
                let valid = layout.valid(layout.tensor_of(chunk_idx), chunk_idx);
                if valid.contains(position) {
                    flat[chunk_idx * CHUNK_LEN + position] = f32::from(value);
                }
            }
        }
        survives(&layout, &spec(quantiser, keep), &flat);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(tail in prop::collection::vec(any::<u8>(), 0..300), kind in 0_u8..3) {
        let forgery = Forgery::new();
        let bytes = [&forgery.head[..], &[kind], &tail].concat();
        let _ = parse(&bytes, &forgery.layout, &forgery.spec);
    }
}
