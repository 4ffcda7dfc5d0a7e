//! Claims about the checker of C-2 and C-3: what is in order is left alone, and each broken promise is told.

use convoke::chain::{ManifestVote, Seal};
use convoke::hotkey::HotkeyPair;
use convoke::manifest::Entry;
use convoke::payload::Malformed;
use convoke::sparseloco::{TensorShape, encode};
use convoke::terms::{ManifestHash, PayloadHash, RunId, TransportHash, Uid};

use super::*;
use crate::config::Layers;
use crate::opening::Anew;

#[derive(Default)]
struct Told(Mutex<Vec<Violation>>);

impl Found for Told {
    fn found(&self, violation: Violation) {
        self.0.lock().unwrap().push(violation);
    }
}

impl Told {
    fn rules(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().iter().map(|violation| violation.rule).collect()
    }
}

struct Run {
    layout: Layout,
    spec: SparseSpec,
    payload: Payload,
    coded: Vec<u8>,
}

impl Run {
    fn new(quantiser: Quantiser, keep_per_chunk: usize) -> Self {
        let shape = |name: &str, shape: &[usize]| TensorShape { name: name.to_owned(), shape: shape.to_vec() };
        let tensors = vec![shape("matrix", &[66, 65]), shape("vector", &[100]), shape("frozen", &[3])];
        let layout = Layout::new(tensors).unwrap();
        let mut spec = Layers::default().read().unwrap().run.sparse;
        (spec.quantiser, spec.keep_per_chunk) = (quantiser, keep_per_chunk);
        let mut delta = vec![0.0; layout.flat_len()];
        // A frozen tensor is a chunk of scale 0, which sigma-bins do not have.
        let n_moving = if quantiser == Quantiser::SigmaBins { 3 } else { 2 };
        for tensor_idx in 0..n_moving {
            let n_values: usize = layout.tensors()[tensor_idx].shape.iter().product();
            let value = |at: usize| Chance::new(5).share("value", &[tensor_idx as u64, at as u64]) as f32 - 0.5;
            layout.gather(tensor_idx, &(0..n_values).map(value).collect::<Vec<f32>>(), &mut delta);
        }
        let mut error = vec![0.0; layout.flat_len()];
        let body = encode(&layout, &spec, &mut error, &delta).unwrap().body;
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
        let coded = transport::encode(&payload, &layout, &spec);
        Self { layout, spec, payload, coded }
    }

    fn all() -> Vec<Self> {
        let quantisers = [Quantiser::OneBit, Quantiser::TwoBit, Quantiser::SigmaBins];
        quantisers.into_iter().flat_map(|quantiser| [5, 16, 64].map(|keep| Self::new(quantiser, keep))).collect()
    }
}

#[test]
fn an_honest_payload_is_in_order_and_damaged_ones_are_refused_by_name() {
    for (idx, run) in Run::all().iter().enumerate() {
        let broken = look_at(&run.payload, &run.layout, &run.spec);
        assert!(broken.is_empty(), "run {idx}: {broken:?}");
        let broken = code_again(&run.payload, &run.layout, &run.spec);
        assert!(broken.is_empty(), "run {idx}: {broken:?}");
        let broken = damage(&run.payload, &run.coded, &run.layout, &run.spec);
        assert!(broken.is_empty(), "run {idx}: {broken:?}");
        let others = damaged(&run.coded, run.payload.hash().0);
        assert!(others.len() == BIT_FLIPS as usize + 3 && others.iter().all(|other| *other != run.coded));
    }
}

#[test]
fn the_lengths_of_frames_are_where_they_are_said_to_be() {
    let run = Run::new(Quantiser::TwoBit, 64);
    let lens_at = PREFIX_LEN + HEADER_LEN + BodyRef::lens(&run.layout, Format::of(&run.spec)).0 + SIGNATURE_LEN + 1;
    let others = with_other_lengths(&run.coded, lens_at);
    assert_eq!(others.len(), 2 * FRAMES_MAX);
    for other in others {
        let refusal = transport::parse(&other, &run.layout, &run.spec).unwrap_err();
        assert!(
            matches!(refusal, MalformedTransport::Frame { .. } | MalformedTransport::Truncated { .. }),
            "{refusal}"
        );
    }
}

#[test]
fn a_second_way_to_say_the_same_is_seen() {
    let run = Run::new(Quantiser::TwoBit, 64);
    let format = Format::of(&run.spec);
    let again = |chunk_idx: usize, valid: Valid| {
        let (record, mut bytes) = (run.payload.record(chunk_idx), Vec::new());
        record_again(format, valid, record, &mut bytes);
        bytes == record.bytes()
    };
    let last = run.layout.n_chunks() - 1;
    let valid_of = |chunk_idx: usize| run.layout.valid(run.layout.tensor_of(chunk_idx), chunk_idx);
    assert!(again(0, valid_of(0)) && again(last, valid_of(last)));
    // Said to hold three parameters, a record says less than its bytes do.
    assert!(!again(0, valid_of(last)));
}

#[test]
fn what_must_not_be_is_told_by_its_rule() {
    let rule = |broken: Option<Broken>| broken.map(|broken| broken.rule);
    assert_eq!(rule(survived(|| Ok(1), |_| true)), None);
    assert_eq!(rule(survived(|| Ok(1), |_| false)), Some("C-2"));
    assert_eq!(rule(survived(|| Read::<u8>::Err(named("length", &"too long")), |_| true)), None);
    assert_eq!(rule(survived(|| Read::<u8>::Err(named("", &"too long")), |_| true)), Some("C-3"));
    assert_eq!(rule(survived(|| Read::<u8>::Err(named("length", &"")), |_| true)), Some("C-3"));
    assert_eq!(rule(survived(|| -> Read<u8> { panic!("on purpose") }, |_| true)), Some("C-3"));
}

#[test]
fn manifests_and_commitments_in_order_are_left_alone() {
    let entry = |uid: u8| Entry {
        uid: Uid(u16::from(uid)),
        hotkey: Hotkey([uid; 32]),
        payload: PayloadHash([uid; 32]),
        transport: TransportHash([uid; 32]),
        transport_bytes: 300,
    };
    let entries = vec![entry(1), entry(4)];
    let manifest = Manifest { round: Round(5), prev: ManifestHash([6; 32]), base: Digest([7; 32]), entries };
    let broken = of_manifest(&manifest.encode(), 20);
    assert!(broken.is_empty(), "{broken:?}");
    let seal = Seal {
        round: Round(5),
        payload: PayloadHash([1; 32]),
        transport: TransportHash([2; 32]),
        transport_bytes: 300,
        base: Digest([3; 32]),
        holding: [4; 16],
    };
    let vote = ManifestVote { round: Round(4), manifest: ManifestHash([5; 32]) };
    let commitment = Commitment { identity: None, seal: Some(seal), manifest: Some(vote) };
    for fields in [commitment.to_fields(), vec![vec![9], vec![]]] {
        let broken = of_commitment(&fields);
        assert!(broken.is_empty(), "{broken:?}");
    }
}

struct Dying;

impl Opening for Dying {
    fn payload(&self, bytes: &[u8], _: &Layout, _: &SparseSpec) -> Result<Arc<Payload>, MalformedTransport> {
        assert!(bytes.is_empty(), "on purpose");
        Err(Malformed::Signature.into())
    }

    fn holding(&self, _: &[f32], base: Digest, _: &BlockHash, _: &Hotkey, _: usize) -> Digest {
        base
    }

    fn registry(&self, _: &Arc<Metagraph>, _: &Arc<Commitments>) -> Arc<Registry> {
        Arc::default()
    }

    fn copies(&self, _: &[Sealed], _: &[&Payload], _: &Layout, _: f64) -> Vec<CopyFound> {
        Vec::new()
    }
}

#[test]
fn an_opening_is_looked_at_from_outside() {
    let (run, told) = (Run::new(Quantiser::TwoBit, 16), Arc::new(Told::default()));
    let checked = CheckedOpening::new(Arc::new(Anew::anywhere()), Arc::clone(&told) as _);
    for _ in 0..2 {
        let payload = checked.payload(&run.coded, &run.layout, &run.spec).unwrap();
        assert_eq!(payload.hash(), run.payload.hash());
    }
    assert!(!checked.is_new(run.payload.hash().0));
    assert!(checked.payload(&run.coded[1..], &run.layout, &run.spec).is_err());
    assert_eq!(told.rules(), [""; 0]);

    let checked = CheckedOpening::new(Arc::new(Dying), Arc::clone(&told) as _);
    assert!(checked.payload(&[], &run.layout, &run.spec).is_err());
    assert_eq!(told.rules(), [""; 0]);
    let died = catch_unwind(AssertUnwindSafe(|| checked.payload(&run.coded, &run.layout, &run.spec)));
    assert!(died.is_err(), "it dies as it would have");
    assert_eq!(told.rules(), ["C-3"]);
}
