//! What the fuzz targets of `fuzz/` call, and the tests below with bytes of their own: each body takes any bytes, hands them to those
//! that read what strangers send, and panics where one of the promises about them is broken.
//!
//! They stand here and not beside the targets so that they also run where there is no fuzzer. A fuzzer guesses neither lengths nor
//! signatures; so the first byte says how much of what is right is put around the others, and whether the whole is signed.

use std::sync::LazyLock;

use crate::chain::commitment::{IDENTITY_BYTES, IDENTITY_VERSION, SEAL_BYTES, SEAL_VERSION, VERSION, VOTE_BYTES};
use crate::chain::{Commitment, Place};
use crate::hotkey::{HotkeyPair, SIGNATURE_LEN};
use crate::manifest::{self, Entry, Manifest};
use crate::payload::transport::{self, Decoder};
use crate::payload::{self, Header, Payload};
use crate::round::storm;
use crate::run_spec::{Aggregation, Quantiser, SparseSpec};
use crate::sparseloco::{BLOCK_EDGE, Format, Layout, Record, TensorShape, decode, encode};
use crate::terms::{BlockHash, Digest, Hotkey, ManifestHash, PayloadHash, Round, RunId, TransportHash, Uid};

/// No decoded value is larger.
const VALUE_MAX: f32 = 128.0;

/// The round state machine under a storm of events.
///
/// # Panics
/// If the storm breaks a claim about the machine.
pub fn round_state(bytes: &[u8]) {
    if let Err(broken) = storm::storm(bytes) {
        panic!("{broken}");
    }
}

/// The parser of payloads and the decoder of their transport coding. Answers whether some payload was taken.
///
/// # Panics
/// If bytes make one of them panic, are refused without a reason, or are taken although they are not the one encoding of what
/// they say.
pub fn payload(bytes: &[u8]) -> bool {
    let Some((&choice, bytes)) = bytes.split_first() else { return false };
    let (run, way) = (usize::from(choice) % RUNS.len(), usize::from(choice) / RUNS.len());
    let run = &RUNS[run];
    match way % 4 {
        0 => run.reads(bytes) | run.reads_coded(bytes),
        1 => run.reads(&overlaid(run.good.bytes(), bytes)),
        2 => run.reads(&run.signed(overlaid(run.good.bytes(), bytes))),
        _ => run.reads_coded(&overlaid(&run.coded, bytes)),
    }
}

/// The parsers of what stands on chain or is named there: manifests and commitments. Answers whether the bytes were taken.
///
/// # Panics
/// If bytes make one of them panic, are refused without a reason, or are taken although they are not the one encoding of what
/// they say.
pub fn records(bytes: &[u8]) -> bool {
    let Some((&choice, bytes)) = bytes.split_first() else { return false };
    let (way, rest) = (choice % 4, choice / 4);
    match way {
        0 => reads_manifest(bytes, usize::from(1 + rest % 31)),
        1 => reads_manifest(&entries(bytes), usize::from(1 + rest % 31)),
        2 => reads_commitment(&fields_of_any_length(bytes)),
        _ => reads_commitment(&fields_of_their_length(rest, bytes)),
    }
}

/// One for each quantiser and each of three k: below, at and above the usual one.
static RUNS: LazyLock<Vec<Run>> = LazyLock::new(|| {
    let quantisers = [Quantiser::OneBit, Quantiser::TwoBit, Quantiser::SigmaBins];
    quantisers.into_iter().flat_map(|quantiser| [5, 64, 118].map(|keep| Run::new(quantiser, keep))).collect()
});

/// Layout and spec of a run, small, yet with a full chunk, padded ones, a run and one with fewer parameters than k; and a payload.
struct Run {
    layout: Layout,
    spec: SparseSpec,
    pair: HotkeyPair,
    good: Payload,
    coded: Vec<u8>,
}

impl Run {
    fn new(quantiser: Quantiser, keep_per_chunk: usize) -> Self {
        let tensor = |name: &str, shape: &[usize]| TensorShape { name: name.into(), shape: shape.to_vec() };
        let tensors = vec![tensor("w", &[66, 65]), tensor("g", &[100]), tensor("b", &[3])];
        let layout = Layout::new(tensors).expect("three small tensors have a layout");
        let aggregation = Aggregation::MeanOfSenders;
        let spec = SparseSpec { keep_per_chunk, error_decay: 0.95, lr_outer: 1.0, quantiser, aggregation };
        let mut error = vec![0.0; layout.flat_len()];
        let body = encode(&layout, &spec, &mut error, &noise(&layout)).expect("the noise is finite").body;
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
        let good = Payload::seal(header, &layout, &spec, body, &pair);
        let coded = transport::encode(&good, &layout, &spec);
        Self { layout, spec, pair, good, coded }
    }

    /// Signed anew, so that what is in them is judged; bytes that are too short stay what they are.
    fn signed(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        if let Some((signed, signature)) = bytes.split_last_chunk_mut::<SIGNATURE_LEN>() {
            *signature = self.pair.sign(blake3::hash(signed).as_bytes());
        }
        bytes
    }

    fn reads(&self, bytes: &[u8]) -> bool {
        match Payload::parse(bytes.into(), &self.layout, &self.spec) {
            Ok(payload) => {
                self.judge(&payload, bytes);
                true
            }
            Err(refusal) => refused(refusal.reason(), &refusal),
        }
    }

    fn reads_coded(&self, bytes: &[u8]) -> bool {
        let (layout, spec) = (&self.layout, &self.spec);
        let decoded = transport::decode(bytes, layout, spec);
        let mut pieces = Vec::new();
        let by_piece = Decoder::new(layout, spec).decode(bytes, |piece| pieces.extend_from_slice(piece));
        assert_eq!(by_piece.err(), decoded.as_ref().err().copied(), "piece by piece or as a whole, the verdict is one");
        match decoded {
            Ok(canonical) => {
                assert!(pieces == *canonical, "piece by piece or as a whole, the bytes are the same");
                assert_eq!(canonical.len(), payload::len(layout, spec), "what is decoded has a payload's length");
                self.reads(&canonical) | self.reads(&self.signed(pieces))
            }
            Err(refusal) => refused(refusal.reason(), &refusal),
        }
    }

    /// C-2, C-3: what was taken is the one encoding of what it says, and every value that it says is bounded.
    fn judge(&self, payload: &Payload, bytes: &[u8]) {
        let (layout, spec, body) = (&self.layout, &self.spec, payload.body());
        assert!(payload.bytes()[..] == *bytes, "what was taken is what came");
        assert_eq!(payload.hash().0, *blake3::hash(bytes).as_bytes(), "a payload's name is the hash of its bytes");
        let records: Vec<u8> = (0..layout.n_chunks()).flat_map(|at| self.rewritten(at, body.record(at))).collect();
        assert!(records == body.record_bytes(), "C-2: the records are not the one encoding of what they say");
        let coded = transport::encode(payload, layout, spec);
        assert!(coded.len() <= transport::len_max(layout, spec), "a coding of {} bytes is too long", coded.len());
        let again = transport::decode(&coded, layout, spec).expect("a node decodes what it has coded");
        assert!(again[..] == *bytes, "C-2: the bytes do not survive their transport coding");
        let values = decode(layout, body);
        assert!(values.iter().all(|value| value.abs() <= VALUE_MAX), "a value is out of bounds");
    }

    /// A record written again from what it says, bit by bit.
    fn rewritten(&self, chunk_idx: usize, record: Record<'_>) -> Vec<u8> {
        let (format, valid) = (Format::of(&self.spec), self.layout.valid(self.layout.tensor_of(chunk_idx), chunk_idx));
        let (keep, n_kept) = (format.keep(), format.kept_of(valid));
        let mut kept: Vec<(usize, u8)> = Vec::with_capacity(n_kept);
        record.for_each(n_kept, |position, code| kept.push((position, code)));
        if record.scale() == 0 {
            kept = valid.positions().take(n_kept).map(|position| (position, 0)).collect();
        }
        let bits_of = |number: usize, n_bits: usize| (0..n_bits).map(move |bit| number >> bit & 1 == 1);
        let mut out = Vec::with_capacity(format.record_len());
        let rows = (0..BLOCK_EDGE).flat_map(|row| {
            let n_in_row = kept.iter().filter(|(position, _)| position / BLOCK_EDGE == row).count();
            std::iter::repeat_n(true, n_in_row).chain([false])
        });
        put(rows, keep + BLOCK_EDGE, &mut out);
        put(kept.iter().flat_map(|(position, _)| bits_of(position % BLOCK_EDGE, 6)), 6 * keep, &mut out);
        let n_planes = match format.quantiser() {
            Quantiser::OneBit => 1,
            Quantiser::TwoBit => 2,
            Quantiser::SigmaBins => {
                put(kept.iter().flat_map(|(_, code)| bits_of(usize::from(*code), 2)), 2 * keep, &mut out);
                return out;
            }
        };
        for plane in 0..n_planes {
            put(kept.iter().map(|(_, code)| *code >> plane & 1 == 1), keep, &mut out);
        }
        out.push(record.scale());
        out
    }
}

/// Fills bytes from the lowest bit, as many as `n_bits` need.
fn put(bits: impl Iterator<Item = bool>, n_bits: usize, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + n_bits.div_ceil(8), 0);
    for (at, bit) in bits.enumerate() {
        out[start + at / 8] |= u8::from(bit) << (at % 8);
    }
}

/// Values that are mostly small and sometimes large, as those of pseudo-gradients are.
fn noise(layout: &Layout) -> Vec<f32> {
    let mut flat = vec![0.0; layout.flat_len()];
    let mut state = 1_u64;
    let mut value = |_: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let [.., low, high] = state.to_le_bytes();
        let unit = (f32::from(u16::from_le_bytes([low, high])) - 32_768.0) / 32_768.0;
        unit * unit * unit / 128.0
    };
    for (tensor_idx, tensor) in layout.tensors().iter().enumerate() {
        let len: usize = tensor.shape.iter().product();
        let row_major: Vec<f32> = (0..len).map(&mut value).collect();
        layout.gather(tensor_idx, &row_major, &mut flat);
    }
    flat
}

/// Good bytes with others laid over them; the first two of those say from where on. They may reach beyond the end.
fn overlaid(good: &[u8], bytes: &[u8]) -> Vec<u8> {
    let (at, patch) = match bytes {
        [low, high, patch @ ..] => (usize::from(u16::from_le_bytes([*low, *high])) % (good.len() + 1), patch),
        _ => (0, bytes),
    };
    let after = good.get(at + patch.len()..).unwrap_or_default();
    [&good[..at], patch, after].concat()
}

/// C-3: a refusal has its reason, for counters and for people.
fn refused(reason: &str, text: &impl ToString) -> bool {
    assert!(!reason.is_empty() && !text.to_string().is_empty(), "a refusal without a reason");
    false
}

fn reads_manifest(bytes: &[u8], contributors_max: usize) -> bool {
    match Manifest::parse(bytes, contributors_max) {
        Ok(manifest) => {
            assert!(bytes.len() <= manifest::len_max(contributors_max), "a manifest of {} bytes", bytes.len());
            assert!(manifest.encode() == bytes, "C-2: a manifest that is not the one encoding of what it says");
            true
        }
        Err(refusal) => refused("manifest", &refusal),
    }
}

/// A manifest's first bytes, and then as many entries as there are bytes for.
fn entries(bytes: &[u8]) -> Vec<u8> {
    let (head_len, entry_len) = (manifest::len_max(0), manifest::len_max(1) - manifest::len_max(0));
    let entry = Entry {
        uid: Uid(0),
        hotkey: Hotkey([1; 32]),
        payload: PayloadHash([2; 32]),
        transport: TransportHash([3; 32]),
        transport_bytes: 4,
    };
    let one = Manifest { round: Round(5), prev: ManifestHash([6; 32]), base: Digest([7; 32]), entries: vec![entry] };
    let n_entries = bytes.len() / entry_len;
    let count = u16::try_from(n_entries).unwrap_or(u16::MAX).to_le_bytes();
    let head = &one.encode()[..head_len - count.len()];
    [head, &count, &bytes[..n_entries * entry_len]].concat()
}

fn reads_commitment(fields: &[Vec<u8>]) -> bool {
    match Commitment::parse(fields) {
        Ok(commitment) => {
            assert!(commitment.to_fields() == fields, "C-2: a commitment that is not the one encoding of what it says");
            if let Some(Err(refusal)) = commitment.identity.map(|identity| identity.verify(&PLACE, &Hotkey([5; 32]))) {
                refused("identity", &refusal);
            }
            true
        }
        Err(refusal) => refused("commitment", &refusal),
    }
}

/// Whose commitments these are; no identity that a fuzzer makes is true of it.
const PLACE: Place = Place { genesis: BlockHash([4; 32]), netuid: 3 };

/// Fields as long as the byte before each says, while there are bytes.
fn fields_of_any_length(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut fields = Vec::new();
    while let Some((&len, rest)) = bytes.split_first() {
        let (field, rest) = rest.split_at(usize::from(len).min(rest.len()));
        fields.push(field.to_vec());
        bytes = rest;
    }
    fields
}

/// The three fields, each empty or of its length and version, as the bits of `which` say; zeros where there are no more bytes.
fn fields_of_their_length(which: u8, bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut bytes = bytes.iter().copied().chain(std::iter::repeat(0));
    let parts = [(IDENTITY_VERSION, IDENTITY_BYTES), (SEAL_VERSION, SEAL_BYTES), (VERSION, VOTE_BYTES)];
    let field = |(at, (version, len)): (usize, (u8, usize))| -> Vec<u8> {
        let is_there = which >> at & 1 == 1;
        let n_bytes = if is_there { len - 1 } else { 0 };
        let version = is_there.then_some(version);
        version.into_iter().chain(bytes.by_ref().take(n_bytes)).collect()
    };
    parts.into_iter().enumerate().map(field).collect()
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use proptest::prelude::*;

    use super::*;

    /// The first byte that leads to a run and a way.
    fn choice(run: usize, way: usize) -> u8 {
        u8::try_from(way * RUNS.len() + run).unwrap()
    }

    /// Bytes of `good`, some of them others, and perhaps cut or drawn out.
    fn changed(good: &[u8], changes: &[(u16, u8)], len_change: i8) -> Vec<u8> {
        let mut bytes = good.to_vec();
        for (at, byte) in changes {
            let at = usize::from(*at) % bytes.len();
            bytes[at] = *byte;
        }
        let len = bytes.len().saturating_add_signed(isize::from(len_change));
        bytes.resize(len, 0);
        bytes
    }

    fn any_changes() -> impl Strategy<Value = (Vec<(u16, u8)>, i8)> {
        (prop::collection::vec(any::<(u16, u8)>(), 0..5), prop_oneof![6 => Just(0_i8), 1 => any::<i8>()])
    }

    fn after(first: u8, bytes: &[u8]) -> Vec<u8> {
        [&[first][..], bytes].concat()
    }

    #[test]
    fn what_is_good_is_taken_by_every_way() {
        for (idx, run) in RUNS.iter().enumerate() {
            let with = |way: usize, bytes: &[u8]| payload(&after(choice(idx, way), bytes));
            assert!(with(0, run.good.bytes()) && with(0, &run.coded), "run {idx}");
            assert!(with(1, &[]) && with(2, &[]) && with(3, &[]), "run {idx}");
            // Another uid is another payload, good once it is signed.
            assert!(!with(1, &[57, 0, 9]) && with(2, &[57, 0, 9]), "run {idx}");
        }
    }

    #[test]
    fn a_forged_block_is_judged_to_the_end() {
        for (idx, run) in RUNS.iter().enumerate() {
            // A block of kind 0 holds the records as they are; of these one has another sign or bin.
            let mut forged = run.good.body().record_bytes().to_vec();
            forged[Format::of(&run.spec).codes_at()] ^= 1;
            let head_len = 6 + payload::HEADER_LEN + run.good.body().level_bytes().len() + SIGNATURE_LEN;
            let coded = [&run.coded[..head_len], &[0], &forged].concat();
            let canonical = transport::decode(&coded, &run.layout, &run.spec).unwrap();
            assert!(!run.reads(&canonical) && run.reads_coded(&coded), "run {idx}");
        }
    }

    #[test]
    fn a_promise_that_is_broken_is_seen() {
        let run = &RUNS[0];
        let other = run.signed(overlaid(run.good.bytes(), &[57, 0, 9]));
        assert!(catch_unwind(|| RUNS[0].judge(&RUNS[0].good, &other)).is_err());
        assert!(catch_unwind(|| refused("", &"why")).is_err());
        let (first, last) = (run.good.record(0), run.good.record(5));
        assert_eq!(run.rewritten(0, first), first.bytes());
        assert_eq!(run.rewritten(5, last), last.bytes());
        // Read as the record of a chunk of three parameters, it says less than its bytes do.
        assert_ne!(run.rewritten(5, first), first.bytes());
    }

    #[test]
    fn manifests_and_commitments_are_taken() {
        let entry = |uid: u8| [&[uid, 0][..], &[uid; 104]].concat();
        let two = [entry(3), entry(8)].concat();
        assert!(records(&after(1 + 4 * 19, &two)));
        assert!(!records(&after(1, &two)), "one entry is allowed");
        assert!(records(&after(4 * 19, &entries(&two))));
        for which in 0..8 {
            assert!(records(&[3 + 4 * which]), "fields {which:03b}");
        }
        assert!(records(&[2, 0, 0, 0]));
        assert!(!records(&[2, 0, 0]) && !records(&[2, 0, 0, 1, 9]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1500))]

        #[test]
        fn no_patch_breaks_the_readers_of_payloads(
            choice in any::<u8>(),
            at in any::<u16>(),
            patch in prop::collection::vec(any::<u8>(), 0..24),
        ) {
            payload(&[&[choice][..], &at.to_le_bytes(), &patch].concat());
        }

        #[test]
        fn no_changed_payload_breaks_its_readers(run in 0_usize..9, (changes, len_change) in any_changes()) {
            for bytes in [&RUNS[run].good.bytes()[..], &RUNS[run].coded] {
                payload(&after(choice(run, 0), &changed(bytes, &changes, len_change)));
            }
        }

        #[test]
        fn no_bytes_break_the_readers_of_manifests_and_commitments(
            choice in any::<u8>(),
            bytes in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(2), any::<u8>()], 0..400),
        ) {
            records(&after(choice, &bytes));
        }

        #[test]
        fn no_changed_manifest_breaks_its_reader(
            uids in prop::collection::btree_set(0_u8..255, 1..6),
            (changes, len_change) in any_changes(),
        ) {
            let rows: Vec<u8> = uids.iter().flat_map(|uid| [&[*uid, 0][..], &[*uid; 104]].concat()).collect();
            records(&after(4 * 19, &changed(&entries(&rows), &changes, len_change)));
        }
    }
}
