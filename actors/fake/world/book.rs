//! What all lives of a simulated run write in, and what the world reads; and what it looks at beside the events, once a round.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use convoke::chain::Commitment;
use convoke::manifest::Manifest;
use convoke::run_spec::RunSpec;
use convoke::sparseloco::Layout;
use convoke::terms::{EndpointId, ManifestHash, Round};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::lives::{Member, endpoint};
use super::{BEGINNING_MS, World};
use crate::chain::Commitments;
use crate::events::{Event, Line, Witness};
use crate::fake::cast::Part;
use crate::fake::chance::Chance;
use crate::fake::checks::bounds::{Bounds, Crowds, Size};
use crate::fake::checks::codec::{self, Broken};
use crate::fake::checks::conservation::{Conservation, Deltas, Place};
use crate::fake::checks::evidence::Ear;
use crate::fake::checks::verdicts::Verdicts;
use crate::fake::checks::{Checks, Found, Violation};
use crate::fake::fence::Fence;
use crate::fake::log::Log;
use crate::fake::plan::Planned;
use crate::faults::Fault;
use crate::opening::Opening;

/// Sizes are looked at in one of so many rounds: what grows is seen as well, and of what comes and goes the most is remembered.
const SIZES_EVERY: u64 = 8;

/// What all lives write in, and what the world reads.
pub(super) struct Book {
    pub entries: Mutex<Entries>,
    pub wake: Notify,
    pub started: Instant,
}

pub(super) struct Entries {
    pub log: Log,
    pub checks: Checks,
    pub verdicts: Verdicts,
    /// What one validator says.
    pub ear: Ear,
    /// Deaths that wait for their phase, by node.
    pub doomed: Vec<Vec<Planned>>,
    /// Who has just died, and for how long.
    pub dead: Vec<(usize, u64)>,
}

impl Book {
    pub fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Found for Book {
    fn found(&self, violation: Violation) {
        self.entries().checks.found(violation);
    }
}

/// What is looked at beside the events, and by what.
pub(super) struct Patrol {
    /// What hears every Δ.
    pub deltas: Arc<Deltas>,
    /// What hears what waits.
    pub crowds: Arc<Crowds>,
    /// What follows the error feedback.
    pub conservation: Conservation,
    bounds: Bounds,
    contributors_max: usize,
    pub endpoints: Vec<EndpointId>,
    dirs: Vec<PathBuf>,
    /// The round that is looked at next, once its last block is there.
    next: Round,
}

impl Patrol {
    /// Of these nodes, from the round `first` on; payloads are opened by `opening`.
    pub fn new(
        members: &[Member],
        layout: &Layout,
        run: &RunSpec,
        chance: Chance,
        first: Round,
        opening: Arc<dyn Opening>,
    ) -> Self {
        let deltas = Deltas::new(members.len());
        Self {
            conservation: Conservation::new(chance, layout.clone(), run.sparse.clone(), Arc::clone(&deltas), opening),
            deltas,
            crowds: Crowds::new(members.len()),
            bounds: Bounds::new(members.len(), layout, run),
            contributors_max: run.gauntlet.contributors_max,
            endpoints: members.iter().map(|member| endpoint(&member.identity)).collect(),
            dirs: (0..members.len()).map(|idx| Path::new(&format!("/n{idx}")).join("state")).collect(),
            next: first,
        }
    }
}

impl World {
    /// Looks at chain and nodes once a round, when the block is final in which its last seal may be.
    pub(super) async fn patrol(&mut self) {
        let round = self.patrol.next;
        let at = self.schedule.sealed_by(round);
        if self.reader.heads().borrow().finalized.number < at {
            return;
        }
        // A chain that cannot say is asked again with the next block.
        let Ok(commitments) = self.reader.commitments(at).await else { return };
        self.patrol.next = round.next();
        let mut seen = self.look_at_seals(round, &commitments);
        seen.extend(self.look_at_manifest(round));
        for idx in 0..self.members.len() {
            if self.members[idx].part == Part::Honest {
                seen.extend(self.look_at_node(round, idx));
            }
        }
        let mut entries = self.book.entries();
        seen.into_iter().for_each(|violation| entries.checks.found(violation));
    }

    fn look_at_seals(&self, round: Round, commitments: &Commitments) -> Vec<Violation> {
        let mut seen = Vec::new();
        for (hotkey, committed) in commitments {
            seen.extend(violations(round, codec::of_commitment(&committed.fields)));
            let seal = Commitment::parse(&committed.fields).ok().and_then(|commitment| commitment.seal);
            if let Some(seal) = seal.filter(|seal| seal.round == round) {
                self.book.entries().checks.seal(hotkey, &seal, committed.block);
            }
        }
        seen
    }

    /// The newest manifest that somebody has.
    fn look_at_manifest(&self, round: Round) -> Vec<Violation> {
        let newest = self.book.entries().checks.newest_manifest();
        let Some((_, hash, node)) = newest else { return Vec::new() };
        let bytes = self.net.blob(self.patrol.endpoints[node], &hash.0);
        let Some(bytes) = bytes else { return Vec::new() };
        if let Ok(manifest) = Manifest::parse(&bytes, self.patrol.contributors_max) {
            self.book.entries().verdicts.manifest(&manifest);
        }
        violations(round, codec::of_manifest(&bytes, self.patrol.contributors_max)).collect()
    }

    fn look_at_node(&mut self, round: Round, idx: usize) -> Vec<Violation> {
        let Patrol { conservation, bounds, crowds, contributors_max, endpoints, dirs, .. } = &mut self.patrol;
        let (member, net, id) = (&self.members[idx], &self.net, endpoints[idx]);
        let manifest = |hash: &ManifestHash| {
            let bytes = net.blob(id, &hash.0)?;
            Manifest::parse(&bytes, *contributors_max).ok()
        };
        let place = Place { node: idx, disk: &member.disk, dir: &dirs[idx], manifest: &manifest };
        let mut seen = Vec::new();
        if member.role.mines() {
            seen.extend(conservation.look(round, &place));
        }
        if round.0.is_multiple_of(SIZES_EVERY) {
            let size = Size::of(&member.disk, &dirs[idx], net.tally(id), crowds.take_most(idx));
            let exceeded = bounds.exceeded(&size).into_iter();
            seen.extend(exceeded.map(|what| Violation { rule: "bounds", round, what: format!("node {idx}: {what}") }));
        }
        seen
    }
}

fn violations(round: Round, broken: Vec<Broken>) -> impl Iterator<Item = Violation> {
    broken.into_iter().map(move |Broken { rule, what }| Violation { rule, round, what })
}

/// One life's line to the book.
pub(super) struct Eye {
    pub book: Arc<Book>,
    pub node: usize,
    pub fence: Fence,
}

impl Eye {
    /// The process ends at a fault of its script.
    pub fn die(&self, fault: &Fault) {
        let point = format!("{}.{}", fault.leaf, fault.point);
        let mut entries = self.book.entries();
        let doomed = &mut entries.doomed[self.node];
        let planned = doomed.iter().position(|it| it.point == point).map(|idx| doomed.swap_remove(idx));
        self.fence.fall();
        entries.log.text(&format!("node {} dies at {point}", self.node));
        entries.dead.push((self.node, planned.map_or(1, |it| it.blocks)));
        self.book.wake.notify_one();
    }
}

impl Witness for Eye {
    fn unix_ms(&self) -> u64 {
        BEGINNING_MS + u64::try_from(self.book.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn see(&self, line: Line) {
        if self.fence.has_fallen() {
            return;
        }
        let mut entries = self.book.entries();
        let entries = &mut *entries;
        entries.log.event(&line);
        entries.checks.event(self.node, &line);
        entries.verdicts.event(self.node, &line);
        entries.ear.event(self.node, &line);
        let (Event::PhaseStarted { phase }, Some(round)) = (&line.event, line.round) else { return };
        let doomed = &mut entries.doomed[self.node];
        let is_now = |planned: &Planned| planned.round <= round && planned.point == *phase;
        if let Some(idx) = doomed.iter().position(is_now) {
            let planned = doomed.swap_remove(idx);
            // From here on nobody hears of it; what is left of its tasks is ended by the world.
            self.fence.fall();
            entries.log.text(&format!("node {} dies in {phase} of round {round}", self.node));
            entries.dead.push((self.node, planned.blocks));
            self.book.wake.notify_one();
        }
    }
}
