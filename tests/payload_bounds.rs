//! What bytes from a peer may cost in memory, counted by the allocator: parsing nothing, decoding a transport coding the payload that
//! the run spec sizes and one block, whatever the bytes say.
//!
//! zstd's own memory is C's and not counted there; so the process itself must not grow either, however large the frames say they are.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]
#![allow(clippy::disallowed_methods, reason = "the process's own figures are no files of a node")]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use allocation_counter::measure;
use convoke::hotkey::{HotkeyPair, SIGNATURE_LEN};
use convoke::payload::transport::{self, Decoder};
use convoke::payload::{HEADER_LEN, Header, Payload, len};
use convoke::run_spec::{Aggregation, Quantiser, SparseSpec};
use convoke::sparseloco::{Layout, TensorShape, encode};
use convoke::terms::{Digest, Round, RunId, Uid};

/// Mutations of each payload.
const TURNS: usize = 4_000;

/// What a decoder may hold beside the payload.
const BLOCK_MAX: u64 = 512 << 10;

/// Bytes stated by a frame that is a bomb.
const BOMB_LEN: usize = 64 << 20;

/// A payload, and the layout and spec that it is of.
struct Case {
    layout: Layout,
    spec: SparseSpec,
    payload: Payload,
}

impl Case {
    fn new(quantiser: Quantiser, keep_per_chunk: usize, shape: [usize; 2]) -> Self {
        let tensor = |name: &str, shape: &[usize]| TensorShape { name: name.into(), shape: shape.to_vec() };
        let layout = Layout::new(vec![tensor("w", &shape), tensor("g", &[100])]).unwrap();
        let aggregation = Aggregation::MeanOfSenders;
        let spec = SparseSpec { keep_per_chunk, error_decay: 0.95, lr_outer: 1.0, quantiser, aggregation };
        let mut delta = vec![0.0; layout.flat_len()];
        let mut draw = draws(1);
        for tensor_idx in 0..2 {
            let n_params = layout.tensors()[tensor_idx].shape.iter().product();
            let values: Vec<f32> = (0..n_params).map(|_| draw(1 << 20) as f32 / 1e6 - 0.5).collect();
            layout.gather(tensor_idx, &values, &mut delta);
        }
        let body = encode(&layout, &spec, &mut vec![0.0; layout.flat_len()], &delta).unwrap().body;
        let pair = HotkeyPair::from_seed(&[7; 32]);
        let header = Header {
            run_id: RunId([1; 32]),
            round: Round(2),
            uid: Uid(3),
            hotkey: pair.hotkey(),
            base: Digest([4; 32]),
            layout: layout.hash(),
            inner_steps: 30,
        };
        let payload = Payload::seal(header, &layout, &spec, body, &pair);
        Self { layout, spec, payload }
    }

    fn small() -> impl Iterator<Item = Self> {
        let of_quantiser = |quantiser| [5, 64].map(|keep| Self::new(quantiser, keep, [70, 65]));
        [Quantiser::OneBit, Quantiser::TwoBit, Quantiser::SigmaBins].into_iter().flat_map(of_quantiser)
    }

    /// Three blocks and a little.
    fn large(quantiser: Quantiser) -> Self {
        Self::new(quantiser, 64, [64, 64 * 5000])
    }
}

/// A stream of numbers below a bound.
fn draws(mut state: u64) -> impl FnMut(usize) -> usize {
    move |bound| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    }
}

/// Changes a few bytes, half of the time near the front, and sometimes the length.
fn mutated(good: &[u8], draw: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..=draw(3) {
        let reach = if draw(2) == 0 { bytes.len().min(320) } else { bytes.len() };
        bytes[draw(reach)] = [0, 0xff, draw(256) as u8][draw(3)];
    }
    match draw(16) {
        0 => bytes.truncate(draw(good.len())),
        1 => bytes.extend((0..draw(1000)).map(|_| draw(256) as u8)),
        _ => {}
    }
    bytes
}

#[test]
fn parsing_allocates_nothing_whatever_the_bytes() {
    let _alone = alone();
    let mut draw = draws(3);
    for case in Case::small() {
        for turn in 0..TURNS {
            let bytes: Arc<[u8]> = match turn {
                0 => Arc::clone(case.payload.bytes()),
                _ => mutated(case.payload.bytes(), &mut draw).into(),
            };
            let cost = measure(|| drop(Payload::parse(bytes, &case.layout, &case.spec)));
            assert_eq!((cost.count_total, cost.bytes_total), (0, 0));
        }
    }
}

/// Codings whose frames would each expand to [`BOMB_LEN`] zeros, and for what they are refused: they say so, they do not say
/// what they expand to, and they say what the stream must have.
fn bombs(case: &Case) -> [(Vec<u8>, &'static str); 3] {
    // A block of RFC 8878 that is one byte repeated, 128 KiB of it in four bytes; the last one has the lowest bit set.
    let block = ((128 << 10) << 3 | 0b010_u32).to_le_bytes();
    let mut blocks = [block[0], block[1], block[2], 0].repeat(BOMB_LEN >> 17);
    let last = blocks.len() - 4;
    blocks[last] |= 1;
    let n_chunks = u16::try_from(case.layout.n_chunks()).unwrap();
    let honest = [&[0xa0][..], &(BOMB_LEN as u32).to_le_bytes()].concat();
    let silent = vec![0x00, 0x58];
    let lying = [&[0x60][..], &(n_chunks - 256).to_le_bytes()].concat();
    let front_len = 6 + HEADER_LEN + case.payload.body().level_bytes().len() + SIGNATURE_LEN;
    let front = &transport::encode(&case.payload, &case.layout, &case.spec)[..front_len];
    [(honest, "frame_too_large"), (silent, "frame_unstated"), (lying, "frame_corrupt")].map(|(header, reason)| {
        let frame = [&0xfd2f_b528_u32.to_le_bytes()[..], &header, &blocks].concat();
        let lens = (frame.len() as u32).to_le_bytes().repeat(3);
        ([front, &[1], &lens, &frame.repeat(3)].concat(), reason)
    })
}

#[test]
fn decoding_allocates_the_payload_and_a_block_whatever_the_bytes() {
    let _alone = alone();
    let mut draw = draws(4);
    for case in Case::small() {
        let (layout, spec) = (&case.layout, &case.spec);
        let coded = transport::encode(&case.payload, layout, spec);
        // A reference count or two beside the bytes; the streams of so small a block are smaller than eight payloads.
        let payload_len = len(layout, spec) as u64 + 64;
        for _ in 0..TURNS {
            let bytes = mutated(&coded, &mut draw);
            let cost = measure(|| drop(transport::parse(&bytes, layout, spec)));
            assert!(cost.bytes_max <= 9 * payload_len, "{cost:?}, payload {payload_len}");
            assert_eq!(cost.bytes_current, 0, "{cost:?}");
        }
    }
}

#[test]
fn a_large_model_costs_a_decoder_no_more_than_a_block() {
    let _alone = alone();
    for quantiser in [Quantiser::OneBit, Quantiser::TwoBit, Quantiser::SigmaBins] {
        let case = Case::large(quantiser);
        let (layout, spec) = (&case.layout, &case.spec);
        let coded = transport::encode(&case.payload, layout, spec);
        let mut received = 0;
        let cost = measure(|| Decoder::new(layout, spec).decode(&coded, |piece| received += piece.len()).unwrap());
        assert_eq!(received, len(layout, spec));
        assert!(
            (1 << 16..=BLOCK_MAX).contains(&cost.bytes_max),
            "{quantiser:?}: {cost:?} of a payload of {received} bytes"
        );
    }
}

#[test]
fn bombs_are_not_expanded() {
    let _alone = alone();
    // One block.
    let case = Case::new(Quantiser::TwoBit, 64, [64, 64 * 999]);
    let (layout, spec, bombs) = (&case.layout, &case.spec, bombs(&case));
    let before = reset_peak().and_then(|()| peak_kib());
    for (bomb, reason) in &bombs {
        let cost = measure(|| {
            let refused = Decoder::new(layout, spec).decode(bomb, |_| {}).unwrap_err();
            assert_eq!(refused.reason(), *reason, "{refused}");
        });
        assert!(cost.bytes_max <= BLOCK_MAX, "{reason}: {cost:?}");
    }
    if let (Some(before), Some(after)) = (before, peak_kib()) {
        assert!(after <= before + 4096, "{before} KiB before, {after} KiB after");
    }
}

/// One test at a time, since memory is the process's.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets the most memory that this process ever had, where the system can.
fn reset_peak() -> Option<()> {
    std::fs::write("/proc/self/clear_refs", "5").ok()
}

/// The most memory that this process had since, where the system says.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    peak.trim().strip_suffix("kB")?.trim().parse().ok()
}
