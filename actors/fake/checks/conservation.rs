//! **C-1** on the disks of the nodes: what is kept is exactly fl(a − Δ̂) with a = fl(β·e + Δ), and nothing is lost on the way.
//!
//! A disk holds the last two boundaries of its node and the payload that was made between them, so one look tells a whole round:
//!
//! | between the boundaries x and x + 1 | e at x + 1 is, bit for bit |
//! |---|---|
//! | a payload was made, and the manifest has it | fl(a − Δ̂), which is what was written beside the payload |
//! | a payload was made, and it was not applied | a |
//! | nothing was written | e at x; or a, where Δ became a payload that the disk did not take |
//!
//! Where rounds lie between the two in which the node was away, it is one of these: what was not sent is of use from any θ.
//!
//! Δ is heard from the trainer ([`Deltas::watch`]), Δ̂ is in the payload, and whether it was applied says the manifest that θ at x + 1
//! names. The sections are read by their description and not by the Compressor's own types: a reader that shared them would share
//! their mistakes. A file that a fault of the disk has damaged says nothing, and is not looked at.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use convoke::manifest::Manifest;
use convoke::payload::Payload;
use convoke::run_spec::SparseSpec;
use convoke::sparseloco::{Layout, Undo, decode};
use convoke::terms::{Digest, ManifestHash, Round};

use super::Violation;
use crate::compressor::SECTION;
use crate::disk::Disk;
use crate::fake::chance::Chance;
use crate::fake::disk::{FakeDisk, Mounted};
use crate::fake::fence::Fence;
use crate::fake::trainer::twist::{Twist, twisted};
use crate::gpu_worker::{Trained, Trainers};
use crate::opening::Opening;
use crate::pages::Pages;
use crate::store::{read_file, take_f32s};

/// Of so many rounds of a node one is looked at. A look reads and hashes 160 KB and takes about 60 µs where θ has two chunks; a node
/// and round may cost 900 µs in all, so this is a hundredth of it.
const LOOKS_EVERY: usize = 8;
/// Rounds whose Δ is remembered. A look is about the round before the last boundary, and nobody trains more than one ahead of it.
const ROUNDS_REMEMBERED: usize = 4;
/// The section beside a boundary in which the payload lies that was made since.
const PENDING_SECTION: &str = "compressor-pending";
/// The file that says that a boundary counts.
const COMPLETE: &str = "complete";

/// Every Δ of the last rounds of one node.
type Heard = BTreeMap<Round, Vec<Arc<Pages>>>;

/// What all nodes have trained in the last rounds.
#[derive(Debug)]
pub struct Deltas(Mutex<Vec<Heard>>);

impl Deltas {
    /// Of so many nodes.
    #[must_use]
    pub fn new(n_nodes: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(vec![Heard::new(); n_nodes])))
    }

    /// The same trainers of a node, whose every Δ is heard here.
    #[must_use]
    pub fn watch(self: &Arc<Self>, node: usize, trainers: Arc<dyn Trainers>) -> Arc<dyn Trainers> {
        twisted(trainers, Arc::new(Listener { node, deltas: Arc::clone(self) }))
    }

    fn heard(&self, node: usize, round: Round, delta: &Arc<Pages>) {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(rounds) = nodes.get_mut(node) else { return };
        rounds.entry(round).or_default().push(Arc::clone(delta));
        while rounds.len() > ROUNDS_REMEMBERED {
            rounds.pop_first();
        }
    }

    /// Every Δ of a round, in the order in which they were made; `None` if the round is forgotten.
    fn of(&self, node: usize, round: Round) -> Option<Vec<Arc<Pages>>> {
        let nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rounds = nodes.get(node)?;
        let is_forgotten =
            rounds.len() == ROUNDS_REMEMBERED && rounds.first_key_value().is_some_and(|(oldest, _)| round < *oldest);
        (!is_forgotten).then(|| rounds.get(&round).cloned().unwrap_or_default())
    }
}

/// One node's line to the list.
struct Listener {
    node: usize,
    deltas: Arc<Deltas>,
}

impl Twist for Listener {
    fn trained(&self, round: Round, trained: Trained) -> Trained {
        self.deltas.heard(self.node, round, &trained.delta);
        trained
    }
}

/// Follows the error feedback of all nodes.
pub struct Conservation {
    chance: Chance,
    layout: Layout,
    spec: SparseSpec,
    deltas: Arc<Deltas>,
    opening: Arc<dyn Opening>,
    n_judged: u64,
}

/// A node's disk and the manifests that it has.
pub struct Place<'a> {
    /// Which node.
    pub node: usize,
    /// Its disk.
    pub disk: &'a FakeDisk,
    /// The directory of its store.
    pub dir: &'a Path,
    /// The manifest of a hash, if the node has it.
    pub manifest: &'a dyn Fn(&ManifestHash) -> Option<Manifest>,
}

/// What of a boundary is about the error feedback.
struct Boundary {
    round: Round,
    prev: ManifestHash,
    error: Vec<f32>,
}

/// A payload, and what was kept when it was made.
struct Made {
    payload: Arc<Payload>,
    rest: Vec<f32>,
}

impl Conservation {
    /// Payloads are opened by `opening`; which rounds are looked at follows from `chance`.
    #[must_use]
    pub fn new(
        chance: Chance,
        layout: Layout,
        spec: SparseSpec,
        deltas: Arc<Deltas>,
        opening: Arc<dyn Opening>,
    ) -> Self {
        Self { chance, layout, spec, deltas, opening, n_judged: 0 }
    }

    /// Rounds of nodes that were judged so far: a checker that sees nothing finds nothing.
    #[must_use]
    pub fn n_judged(&self) -> u64 {
        self.n_judged
    }

    /// Looks at a node in this round of the chain, if it is its turn.
    pub fn look(&mut self, round: Round, place: &Place<'_>) -> Option<Violation> {
        if self.chance.below(LOOKS_EVERY, "conservation", &[place.node as u64, round.0]) != 0 {
            return None;
        }
        let what = self.examine(place).err()?;
        Some(Violation { rule: "C-1", round, what: format!("node {}: {what}", place.node) })
    }

    /// The last two boundaries and what lies between them.
    fn examine(&mut self, place: &Place<'_>) -> Result<(), String> {
        let files = Files { disk: place.disk.mount(Fence::new()), dir: place.dir };
        let rounds = files.complete();
        let [.., before, after] = rounds[..] else { return Ok(()) };
        let (Some(before), Some(after)) = (self.boundary(&files, before)?, self.boundary(&files, after)?) else {
            return Ok(());
        };
        let Some(deltas) = self.deltas.of(place.node, before.round) else { return Ok(()) };
        if files.is_damaged(before.round, PENDING_SECTION) {
            return Ok(());
        }
        let made = self.made(&files, before.round)?;
        let is_next = after.round == before.round.next();
        let applied = made.as_ref().filter(|_| is_next).and_then(|made| {
            if after.prev == before.prev {
                return Some(false);
            }
            let manifest = (place.manifest)(&after.prev)?;
            Some(manifest.entries.iter().any(|entry| entry.payload == made.payload.hash()))
        });
        let made = made.map(|made| (decode(&self.layout, made.payload.body()), made.rest));
        let passage = Passage {
            decay: self.spec.error_decay,
            before: &before.error,
            deltas: &deltas,
            made: made.as_ref().map(|(sent, rest)| (&sent[..], &rest[..])),
            applied,
            after: &after.error,
        };
        self.n_judged += 1;
        passage.judge().map_err(|what| format!("from round {} to {}, {what}", before.round, after.round))
    }

    /// A boundary: its round, θ's digest, the manifest that made θ; then θ and e.
    fn boundary(&self, files: &Files<'_>, round: Round) -> Result<Option<Boundary>, String> {
        let Some(section) = files.section(round, SECTION) else { return Ok(None) };
        let unreadable = || format!("the boundary of round {round} cannot be read");
        let head = postcard::take_from_bytes::<(Round, Digest, ManifestHash)>(&section);
        let ((said, _, prev), mut rest) = head.map_err(|_| unreadable())?;
        let n_values = self.layout.flat_len();
        let vectors = (take_f32s(&mut rest, n_values), take_f32s(&mut rest, n_values));
        match vectors {
            (Some(_), Some(error)) if said == round && rest.is_empty() => Ok(Some(Boundary { round, prev, error })),
            _ => Err(unreadable()),
        }
    }

    /// The payload that was made since a boundary: its transport coding and what undoes it, then e right after it.
    fn made(&self, files: &Files<'_>, round: Round) -> Result<Option<Made>, String> {
        let Some(section) = files.section(round, PENDING_SECTION) else { return Ok(None) };
        let unreadable = || format!("the payload of round {round} cannot be read");
        let head = postcard::take_from_bytes::<(Vec<u8>, Undo)>(&section);
        let ((transport, _), mut rest) = head.map_err(|_| unreadable())?;
        let kept = take_f32s(&mut rest, self.layout.flat_len()).filter(|_| rest.is_empty());
        let payload = self.opening.payload(&transport, &self.layout, &self.spec).map_err(|error| error.to_string())?;
        Ok(Some(Made { payload, rest: kept.ok_or_else(unreadable)? }))
    }
}

/// The store of a node, for those who look on.
struct Files<'a> {
    disk: Mounted,
    dir: &'a Path,
}

impl Files<'_> {
    fn path(&self, round: Round, section: &str) -> PathBuf {
        self.dir.join(format!("round-{:012}", round.0)).join(section)
    }

    /// The rounds that count, ascending.
    fn complete(&self) -> Vec<Round> {
        let names = self.disk.list(self.dir).unwrap_or_default();
        let rounds = names.iter().filter_map(|name| name.strip_prefix("round-")?.parse().ok().map(Round));
        let mut rounds: Vec<Round> = rounds.filter(|round| self.disk.exists(&self.path(*round, COMPLETE))).collect();
        rounds.sort_unstable();
        rounds
    }

    /// Whether a section is there and cannot be read: nobody can tell what it said.
    fn is_damaged(&self, round: Round, section: &str) -> bool {
        self.disk.exists(&self.path(round, section)) && self.section(round, section).is_none()
    }

    /// A section, if it is there and undamaged.
    fn section(&self, round: Round, section: &str) -> Option<Vec<u8>> {
        read_file(&self.disk, &self.path(round, section)).ok()
    }
}

/// What became of e between two boundaries.
struct Passage<'a> {
    /// β.
    decay: f32,
    /// e at the first.
    before: &'a [f32],
    /// Every Δ that was made since.
    deltas: &'a [Arc<Pages>],
    /// Δ̂ of the payload that was made, and e right after.
    made: Option<(&'a [f32], &'a [f32])>,
    /// Whether that payload was applied, if it can be told.
    applied: Option<bool>,
    /// e at the second.
    after: &'a [f32],
}

impl Passage<'_> {
    fn judge(&self) -> Result<(), String> {
        let sums: Vec<Vec<f32>> = self.deltas.iter().map(|delta| self.accumulated(self.before, delta)).collect();
        let is_sum = sums.iter().any(|a| same(a, self.after));
        let Some((sent, rest)) = self.made else {
            let is_kept = is_sum || same(self.before, self.after);
            return is_kept.then_some(()).ok_or_else(|| "e has changed although nothing was made of it".to_owned());
        };
        if !sums.iter().any(|a| is_rest(a, sent, rest)) {
            return Err(self.unexplained(&sums, sent, rest));
        }
        match self.applied {
            Some(true) if same(rest, self.after) => Ok(()),
            Some(false) if is_sum => Ok(()),
            None if is_sum || same(rest, self.after) => Ok(()),
            Some(true) => Err("the payload was applied, and e is not fl(a − Δ̂)".to_owned()),
            Some(false) => Err("the payload was not applied, and e is not a".to_owned()),
            None => Err("e is neither a nor fl(a − Δ̂)".to_owned()),
        }
    }

    /// fl(β·e + Δ).
    fn accumulated(&self, error: &[f32], delta: &[f32]) -> Vec<f32> {
        error.iter().zip(delta).map(|(e, delta)| self.decay * e + delta).collect()
    }

    /// What is wrong with a payload that no Δ of the round explains.
    fn unexplained(&self, sums: &[Vec<f32>], sent: &[f32], rest: &[f32]) -> String {
        let twice = |a: &Vec<f32>| self.deltas.iter().any(|delta| is_rest(&self.accumulated(a, delta), sent, rest));
        if sums.iter().any(twice) {
            return "the payload counts a Δ that was in e already".to_owned();
        }
        format!("what was kept beside the payload is fl(a − Δ̂) for none of {} Δ", sums.len())
    }
}

/// Whether `rest` is fl(a − Δ̂), bit for bit. Nothing is subtracted where nothing was sent, and a − 0 is a, its sign with it.
fn is_rest(a: &[f32], sent: &[f32], rest: &[f32]) -> bool {
    a.len() == rest.len()
        && a.iter().zip(sent).zip(rest).all(|((a, sent), rest)| (a - sent).to_bits() == rest.to_bits())
}

fn same(one: &[f32], other: &[f32]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one.to_bits() == other.to_bits())
}

#[cfg(test)]
mod tests;
