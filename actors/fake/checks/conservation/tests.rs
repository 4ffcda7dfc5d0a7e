//! Claims about the checker of C-1: an honest history is none of its business, and each way to lose something is seen.

use convoke::hotkey::HotkeyPair;
use convoke::manifest::Entry;
use convoke::payload::{Header, transport};
use convoke::sparseloco::{Encoded, TensorShape, encode};
use convoke::terms::{Hotkey, PayloadHash, RunId, TransportHash, Uid};

use super::*;
use crate::config::Layers;
use crate::opening::Anew;
use crate::store::{Store, put_f32s};

const DIR: &str = "/n0/state";
const BEFORE: Round = Round(6);
const OLD: ManifestHash = ManifestHash([1; 32]);
const NEW: ManifestHash = ManifestHash([2; 32]);

/// Two boundaries of a node and what was made between them.
struct Story {
    layout: Layout,
    spec: SparseSpec,
    before: Vec<f32>,
    heard: Vec<Arc<Pages>>,
    a: Vec<f32>,
    /// The payload, what undoes it, and what was kept.
    made: Option<(Payload, Undo, Vec<f32>)>,
    /// The manifest that made θ of the second boundary, and whether it has the payload.
    prev: ManifestHash,
    is_in_manifest: bool,
    after: Vec<f32>,
    after_round: Round,
}

fn noise(layout: &Layout, what: u64) -> Vec<f32> {
    let mut flat = vec![0.0; layout.flat_len()];
    for tensor_idx in 0..layout.tensors().len() {
        let n_values: usize = layout.tensors()[tensor_idx].shape.iter().product();
        let value = |at: usize| Chance::new(5).share("value", &[what, tensor_idx as u64, at as u64]) as f32 - 0.5;
        layout.gather(tensor_idx, &(0..n_values).map(value).collect::<Vec<f32>>(), &mut flat);
    }
    flat
}

impl Story {
    /// A payload was made of the only Δ, and applied.
    fn applied() -> Self {
        let shape = |name: &str, shape: &[usize]| TensorShape { name: name.to_owned(), shape: shape.to_vec() };
        let layout = Layout::new(vec![shape("matrix", &[64, 64]), shape("vector", &[100])]).unwrap();
        let mut spec = Layers::default().read().unwrap().run.sparse;
        spec.keep_per_chunk = 16;
        let (before, delta) = (noise(&layout, 1), noise(&layout, 2));
        let a: Vec<f32> = before.iter().zip(&delta).map(|(e, delta)| spec.error_decay * e + delta).collect();
        let heard = vec![Arc::new(Pages::from(&delta[..]))];
        let mut story = Self {
            layout,
            spec,
            before: before.clone(),
            heard,
            a,
            made: None,
            prev: NEW,
            is_in_manifest: true,
            after: Vec::new(),
            after_round: BEFORE.next(),
        };
        story.make(before, &delta);
        story
    }

    /// The payload of this Δ, from this e, takes the place of the one that there was.
    fn make(&mut self, mut error: Vec<f32>, delta: &[f32]) {
        let Encoded { body, undo, .. } = encode(&self.layout, &self.spec, &mut error, delta).unwrap();
        let pair = HotkeyPair::from_seed(&[7; 32]);
        let header = Header {
            run_id: RunId([1; 32]),
            round: BEFORE,
            uid: Uid(3),
            hotkey: pair.hotkey(),
            base: Digest([4; 32]),
            layout: self.layout.hash(),
            inner_steps: 4,
        };
        let payload = Payload::seal(header, &self.layout, &self.spec, body, &pair);
        self.after.clone_from(&error);
        self.made = Some((payload, undo, error));
    }

    fn not_applied(mut self) -> Self {
        (self.is_in_manifest, self.after) = (false, self.a.clone());
        self
    }

    fn nothing_made(mut self) -> Self {
        (self.made, self.after) = (None, self.before.clone());
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn disk(&self) -> FakeDisk {
        let disk = FakeDisk::new();
        let store = Store::open_on(Arc::new(disk.mount(Fence::new())), Path::new(DIR), RunId([1; 32])).unwrap();
        let theta = vec![1.0; self.layout.flat_len()];
        let boundary = |round: Round, prev: ManifestHash, error: &[f32]| {
            let mut section = postcard::to_allocvec(&(round, Digest([9; 32]), prev)).unwrap();
            put_f32s(&mut section, &theta);
            put_f32s(&mut section, error);
            store.write(round, SECTION, &section).unwrap();
            store.complete(round, &[SECTION]).unwrap();
        };
        boundary(BEFORE, OLD, &self.before);
        if let Some((payload, undo, rest)) = &self.made {
            let coded = transport::encode(payload, &self.layout, &self.spec);
            let mut section = postcard::to_allocvec(&(coded, undo)).unwrap();
            put_f32s(&mut section, rest);
            store.write(BEFORE, PENDING_SECTION, &section).unwrap();
        }
        boundary(self.after_round, self.prev, &self.after);
        disk
    }

    /// What the checker says, and how many rounds it has judged.
    fn judged(&self) -> (Result<(), String>, u64) {
        let (disk, deltas) = (self.disk(), Deltas::new(1));
        self.heard.iter().for_each(|delta| deltas.heard(0, BEFORE, delta));
        let (layout, spec) = (self.layout.clone(), self.spec.clone());
        let mut checker = Conservation::new(Chance::new(1), layout, spec, deltas, Arc::new(Anew::anywhere()));
        let own = self.made.as_ref().filter(|_| self.is_in_manifest).map(|(payload, ..)| payload.hash());
        let entry = Entry {
            uid: Uid(3),
            hotkey: Hotkey([3; 32]),
            payload: own.unwrap_or(PayloadHash([8; 32])),
            transport: TransportHash([8; 32]),
            transport_bytes: 9,
        };
        let manifest = |hash: &ManifestHash| {
            (*hash == NEW).then(|| Manifest { round: BEFORE, prev: OLD, base: Digest([4; 32]), entries: vec![entry] })
        };
        let place = Place { node: 0, disk: &disk, dir: Path::new(DIR), manifest: &manifest };
        (checker.examine(&place), checker.n_judged())
    }
}

fn check_is_broken(story: &Story, what: &str) {
    let (judged, n_judged) = story.judged();
    assert_eq!(n_judged, 1);
    assert!(judged.as_ref().is_err_and(|said| said.contains(what)), "{judged:?}, expected: {what}");
}

#[test]
fn an_honest_history_is_in_order() {
    let stories = [
        Story::applied(),
        Story::applied().not_applied(),
        Story::applied().not_applied().with(|story| story.prev = OLD),
        Story::applied().nothing_made(),
        Story::applied().nothing_made().with(|story| story.heard.clear()),
        // The disk was full, so Δ is in e and no payload beside it.
        Story::applied().nothing_made().with(|story| story.after = story.a.clone()),
        Story::applied().not_applied().with(|story| story.after_round = Round(20)),
        // An earlier attempt of the round has come to nothing.
        Story::applied().with(|story| story.heard.insert(0, Arc::new(Pages::from(&noise(&story.layout, 9)[..])))),
    ];
    for (idx, story) in stories.iter().enumerate() {
        assert_eq!(story.judged(), (Ok(()), 1), "story {idx}");
    }
}

#[test]
fn what_is_lost_or_counted_twice_is_seen() {
    let flipped = |values: &mut Vec<f32>| values[77] = f32::from_bits(values[77].to_bits() ^ 1);
    check_is_broken(&Story::applied().with(|story| flipped(&mut story.after)), "is not fl(a − Δ̂)");
    check_is_broken(&Story::applied().with(|story| story.after = story.a.clone()), "is not fl(a − Δ̂)");
    let forgotten = Story::applied().not_applied().with(|story| story.after = story.before.clone());
    check_is_broken(&forgotten, "is not a");
    let given_away = Story::applied().not_applied().with(|story| story.after = Story::applied().after);
    check_is_broken(&given_away, "is not a");
    let zeros = Story::applied().nothing_made().with(|story| story.after.fill(0.0));
    check_is_broken(&zeros, "nothing was made of it");
    check_is_broken(&Story::applied().with(|story| story.heard.clear()), "for none of 0 Δ");
    let rounded = |story: &mut Story| story.made.iter_mut().for_each(|(_, _, rest)| flipped(rest));
    check_is_broken(&Story::applied().with(rounded), "for none of 1 Δ");
    let twice = Story::applied().with(|story| {
        let delta = Arc::clone(&story.heard[0]);
        story.make(story.a.clone(), &delta);
    });
    check_is_broken(&twice, "in e already");
    let away = Story::applied().with(|story| (story.after_round, story.after) = (Round(20), story.before.clone()));
    check_is_broken(&away, "neither a nor");
}

#[test]
fn a_damaged_or_a_forgotten_round_is_not_judged() {
    let story = Story::applied().with(|story| story.after.fill(0.0));
    let deltas = Deltas::new(1);
    let delta = &story.heard[0];
    let last = BEFORE.0 + ROUNDS_REMEMBERED as u64;
    (BEFORE.0..=last).for_each(|round| deltas.heard(0, Round(round), delta));
    assert!(deltas.of(0, BEFORE).is_none());
    assert_eq!(deltas.of(0, Round(last)).map(|heard| heard.len()), Some(1));
    assert_eq!(deltas.of(0, Round(last + 1)).map(|heard| heard.len()), Some(0));

    let disk = story.disk();
    disk.flip(|path| path.ends_with(SECTION), 9000).unwrap();
    let (layout, spec) = (story.layout.clone(), story.spec.clone());
    let mut checker = Conservation::new(Chance::new(1), layout, spec, Deltas::new(1), Arc::new(Anew::anywhere()));
    let place = Place { node: 0, disk: &disk, dir: Path::new(DIR), manifest: &|_| None };
    assert_eq!((checker.examine(&place), checker.n_judged()), (Ok(()), 0));
}

#[test]
fn every_node_has_its_turn_about_once_in_so_many_rounds() {
    let story = Story::applied().with(|story| story.after.fill(0.0));
    let disk = story.disk();
    let (layout, spec) = (story.layout.clone(), story.spec.clone());
    let mut checker = Conservation::new(Chance::new(1), layout, spec, Deltas::new(8), Arc::new(Anew::anywhere()));
    for node in 0..8 {
        let place = Place { node, disk: &disk, dir: Path::new(DIR), manifest: &|_| None };
        let found: Vec<_> = (0..160).filter_map(|round| checker.look(Round(round), &place)).collect();
        assert!((5..=45).contains(&found.len()), "node {node}: {}", found.len());
        assert!(found.iter().all(|violation| violation.rule == "C-1"));
    }
}
