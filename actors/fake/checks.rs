//! What must hold at every event of a simulated run (design §3), whatever went wrong.
//!
//! - **R-1**: all nodes that completed a round have the same digest.
//! - **R-2**: a round ends in exactly one of outer step and null round, on every node, and again after a restart.
//! - **R-3**: no node ever ends for a fault.
//! - **R-4**: a node that has found itself off the agreed digest seals nothing that is made from another θ than the agreed one.
//! - **C-1**: nothing is lost in the error feedback ([`conservation`]).
//! - **C-2**, **C-3**: one content has one encoding, and every parser stands what it is given ([`codec`]).
//! - **Bounds**: nothing grows with the rounds ([`bounds`]).
//! - **Reasons**: what an honest node sealed is refused by an honest validator only for what was done to one of the two.
//! - **G-1**: what a validator says follows from chain and payloads ([`evidence`]).
//! - **Liveness**: in the calm after trouble every node completes rounds again.

pub mod bounds;
pub mod codec;
pub mod conservation;
pub mod evidence;
pub mod verdicts;

use std::collections::BTreeMap;

use convoke::chain::Seal;
use convoke::terms::{Block, Digest, Hotkey, ManifestHash, Round};

use crate::events::{Event, Line};

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which rule: what is to fail again when the faults are made fewer.
    pub rule: &'static str,
    /// The round in which it was seen.
    pub round: Round,
    /// What was seen.
    pub what: String,
}

/// Who hears of what must not be, from those who look beside the events.
pub trait Found: Send + Sync {
    /// It was seen.
    fn found(&self, violation: Violation);
}

/// How the one reason begins for which an honest payload may be refused because of what happened on the way: bytes that are not
/// what was sealed never get as far as a check.
const EXCUSED: &str = "nobody delivered";

/// What is known of the run so far.
#[derive(Debug)]
pub struct Checks {
    nodes: Vec<Node>,
    /// The first round that counts: before it nobody was there.
    from: Round,
    uids: BTreeMap<Hotkey, usize>,
    /// How each round ended on the first node that completed it.
    ends: BTreeMap<Round, (Option<Digest>, usize)>,
    /// Uids in each round's manifest.
    contributions: BTreeMap<Round, usize>,
    /// The newest manifest that a node has said to have, and which node.
    manifest: Option<(Round, ManifestHash, usize)>,
    /// θ of the first round, as the first seal says.
    first_base: Option<Digest>,
    /// Why how many payloads of honest nodes were refused.
    refused: BTreeMap<String, u64>,
    n_calms: u64,
    violations: Vec<Violation>,
}

#[derive(Debug, Clone, Default)]
struct Node {
    is_honest: bool,
    completed: Option<Round>,
    /// The block at which it has found itself off the agreed digest, until it is back or has forgotten that.
    off_since: Option<Block>,
    /// A bit of its θ was changed on purpose, and it has not yet come back to the agreed one.
    is_tampered: bool,
}

impl Checks {
    /// Of these nodes, honest or not, and of the rounds from `from` on.
    #[must_use]
    pub fn new(nodes: &[(Hotkey, bool)], from: Round) -> Self {
        Self {
            nodes: nodes.iter().map(|(_, is_honest)| Node { is_honest: *is_honest, ..Node::default() }).collect(),
            uids: nodes.iter().enumerate().map(|(idx, (hotkey, _))| (*hotkey, idx)).collect(),
            from,
            ends: BTreeMap::new(),
            contributions: BTreeMap::new(),
            manifest: None,
            first_base: None,
            refused: BTreeMap::new(),
            n_calms: 0,
            violations: Vec::new(),
        }
    }

    /// Looks at an event of a node.
    pub fn event(&mut self, node: usize, line: &Line) {
        if !self.nodes[node].is_honest {
            return;
        }
        // What belongs to no round is told in the newest.
        let newest = || self.ends.last_key_value().map(|(round, _)| round.next());
        let round = line.round.or_else(newest).unwrap_or_default();
        match &line.event {
            Event::OuterStep { digest, contributors, .. } => {
                self.ended(node, round, Some(*digest));
                self.contributions.insert(round, contributors.len());
            }
            Event::NullRound { .. } => self.ended(node, round, None),
            Event::Manifest { manifest, .. } if self.manifest.is_none_or(|(newest, ..)| newest < round) => {
                self.manifest = Some((round, *manifest, node));
            }
            Event::DigestMismatch { .. } => {
                self.nodes[node].off_since.get_or_insert(line.block.unwrap_or_default());
            }
            // Who starts again may have saved what was tampered with.
            Event::NodeStarted { .. } => self.nodes[node].off_since = None,
            Event::ResyncDone { .. } => {
                (self.nodes[node].off_since, self.nodes[node].is_tampered) = (None, false);
            }
            Event::FaultInjected { fault, .. } if fault == "flip" => self.nodes[node].is_tampered = true,
            Event::BudgetSpent { actor, .. } => {
                self.violated("R-3", round, format!("node {node} ends because its {actor} has died too often"));
            }
            Event::Rejected { hotkey, reason, .. } => self.rejected(node, round, *hotkey, reason),
            _ => {}
        }
    }

    fn ended(&mut self, node: usize, round: Round, end: Option<Digest>) {
        if round < self.from || (self.nodes[node].is_tampered && !self.is_back(node, round, end)) {
            return;
        }
        let (agreed, first) = *self.ends.entry(round).or_insert((end, node));
        if agreed.is_some() != end.is_some() {
            let how = |end: Option<Digest>| if end.is_some() { "an outer step" } else { "a null round" };
            let what = format!("node {first} has {}, node {node} has {}", how(agreed), how(end));
            self.violated("R-2", round, what);
        } else if agreed != end {
            self.violated("R-1", round, format!("node {first} has {agreed:?}, node {node} has {end:?}"));
        }
        let state = &mut self.nodes[node];
        state.completed = state.completed.max(Some(round));
    }

    /// A crash may have lost what was tampered with: an outer step onto what the others have says so, without any resync.
    fn is_back(&mut self, node: usize, round: Round, end: Option<Digest>) -> bool {
        let is_back = end.is_some() && self.ends.get(&round).is_some_and(|(agreed, _)| *agreed == end);
        self.nodes[node].is_tampered &= !is_back;
        is_back
    }

    /// Looks at a seal as the chain has it in the last block of its round, committed in this block.
    ///
    /// The events do not do for R-4: they also tell of a seal when a node that catches up meets it in a manifest, and do not say what
    /// it stands on.
    pub fn seal(&mut self, hotkey: &Hotkey, seal: &Seal, committed_in: Block) {
        let Some(&node) = self.uids.get(hotkey) else { return };
        let Node { is_honest, off_since, is_tampered, .. } = self.nodes[node];
        let does_not_know = is_tampered && off_since.is_none_or(|since| committed_in <= since);
        if !is_honest || does_not_know {
            return;
        }
        let Some(agreed) = self.base_of(seal.round) else { return };
        let agreed = agreed.unwrap_or_else(|| *self.first_base.get_or_insert(seal.base));
        if agreed != seal.base {
            let what = format!("node {node} seals what is made from {:?}, agreed is {agreed:?}", seal.base);
            self.violated("R-4", seal.round, what);
        }
    }

    /// The digest of θ in a round, if it is known that the round before it is over; none if no outer step was seen before it.
    fn base_of(&self, round: Round) -> Option<Option<Digest>> {
        let is_known = round <= self.from || self.ends.contains_key(&Round(round.0 - 1));
        is_known.then(|| self.ends.range(..round).rev().find_map(|(_, (end, _))| *end))
    }

    /// The newest manifest that an honest node has, and which node.
    #[must_use]
    pub fn newest_manifest(&self) -> Option<(Round, ManifestHash, usize)> {
        self.manifest
    }

    /// Something that was seen beside the events.
    pub fn found(&mut self, violation: Violation) {
        let Violation { rule, round, what } = violation;
        self.violated(rule, round, what);
    }

    fn rejected(&mut self, node: usize, round: Round, hotkey: Hotkey, reason: &str) {
        let Some(&owner) = self.uids.get(&hotkey) else { return };
        if !self.nodes[owner].is_honest {
            return;
        }
        *self.refused.entry(reason.to_owned()).or_default() += 1;
        // Whoever stands on another θ, by a fault of the script, refuses all others, and is refused by all.
        let is_tampered = self.nodes[node].is_tampered || self.nodes[owner].is_tampered;
        if !reason.starts_with(EXCUSED) && !is_tampered {
            self.violated("reasons", round, format!("node {node} refuses what node {owner} sealed: {reason}"));
        }
    }

    /// In the calm: every honest node must have completed a round from `since` on.
    pub fn calm(&mut self, now: Round, since: Round) {
        self.n_calms += 1;
        let behind = |node: &Node| node.is_honest && node.completed.is_none_or(|completed| completed < since);
        for idx in 0..self.nodes.len() {
            if behind(&self.nodes[idx]) {
                let completed = self.nodes[idx].completed;
                self.violated("liveness", now, format!("node {idx} has completed {completed:?}, wanted is {since}"));
            }
        }
    }

    fn violated(&mut self, rule: &'static str, round: Round, what: String) {
        // One broken rule is told by many nodes; the first ones say it.
        if self.violations.len() < 16 {
            self.violations.push(Violation { rule, round, what });
        }
    }

    /// How often everybody was looked for in the calm.
    #[must_use]
    pub fn n_calms(&self) -> u64 {
        self.n_calms
    }

    /// The first thing that must not be.
    #[must_use]
    pub fn first_violation(&self) -> Option<&Violation> {
        self.violations.first()
    }

    /// Rounds with an outer step, null rounds, and contributions in all of them.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        let stepped = self.ends.values().filter(|(end, _)| end.is_some()).count();
        (stepped, self.ends.len() - stepped, self.contributions.values().sum())
    }

    /// Why how many payloads of honest nodes were refused, over all validators.
    #[must_use]
    pub fn refused(&self) -> &BTreeMap<String, u64> {
        &self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(round: u64, event: Event) -> Line {
        Line { at_ms: 0, node: "n".to_owned(), block: None, round: Some(Round(round)), event }
    }

    fn step(digest: u8) -> Event {
        let (digest, seed) = (Digest([digest; 32]), convoke::terms::BlockHash([0; 32]));
        Event::OuterStep { digest, contributors: vec![], heldout_loss: None, seed, seconds: 0.0 }
    }

    fn null() -> Event {
        Event::NullRound { reason: "no manifest".to_owned() }
    }

    fn seen(events: &[(usize, u64, Event)]) -> Option<&'static str> {
        let mut checks = Checks::new(&[1, 2, 3].map(|key| (Hotkey([key; 32]), key < 3)), Round(0));
        events.iter().for_each(|(node, round, event)| checks.event(*node, &line(*round, event.clone())));
        checks.first_violation().map(|violation| violation.rule)
    }

    #[test]
    fn each_rule_is_seen_to_be_broken() {
        assert_eq!(seen(&[(0, 1, step(1)), (1, 1, step(1)), (0, 2, null()), (1, 2, null())]), None);
        assert_eq!(seen(&[(0, 1, step(1)), (1, 1, step(2))]), Some("R-1"));
        assert_eq!(seen(&[(0, 1, step(1)), (1, 1, null())]), Some("R-2"));
        assert_eq!(seen(&[(0, 1, step(1)), (2, 1, step(9))]), None, "what attackers say is theirs");
        let spent = Event::BudgetSpent { actor: "compressor".to_owned(), restarts: 6 };
        assert_eq!(seen(&[(1, 1, spent)]), Some("R-3"));
        let rejected =
            |key, reason: &str| Event::Rejected { uid: None, hotkey: Hotkey([key; 32]), reason: reason.to_owned() };
        assert_eq!(seen(&[(0, 1, rejected(2, "copy"))]), Some("reasons"));
        assert_eq!(seen(&[(0, 1, rejected(2, "nobody delivered the payload")), (0, 1, rejected(3, "copy"))]), None);
    }

    fn seal(round: u64, base: u8) -> Seal {
        Seal {
            round: Round(round),
            payload: convoke::terms::PayloadHash([1; 32]),
            transport: convoke::terms::TransportHash([2; 32]),
            transport_bytes: 300,
            base: Digest([base; 32]),
            holding: [0; 16],
        }
    }

    /// What is said of a seal of node 0 in block 40, in round 2, whose θ has the digest 1.
    fn seen_of_seal(base: u8, before: &[Event]) -> Option<&'static str> {
        let mut checks = Checks::new(&[1, 2].map(|key| (Hotkey([key; 32]), true)), Round(0));
        (0..2).for_each(|node| checks.event(node, &line(1, step(1))));
        before.iter().for_each(|event| checks.event(0, &Line { block: Some(Block(30)), ..line(2, event.clone()) }));
        checks.seal(&Hotkey([1; 32]), &seal(2, base), Block(40));
        checks.first_violation().map(|violation| violation.rule)
    }

    #[test]
    fn whoever_knows_to_be_off_seals_only_what_is_made_from_the_agreed_theta() {
        let flip = |fault: &str| Event::FaultInjected {
            actor: "compressor".to_owned(),
            phase: "outer-step".to_owned(),
            fault: fault.to_owned(),
        };
        let off = Event::DigestMismatch { own: Digest([9; 32]), agreed: Digest([1; 32]) };
        let back = Event::ResyncDone { digest: Digest([1; 32]), seconds: 1.0 };
        assert_eq!([1, 9].map(|base| seen_of_seal(base, &[])), [None, Some("R-4")]);
        assert_eq!(seen_of_seal(9, &[flip("flip")]), None, "it cannot know");
        assert_eq!([1, 9].map(|base| seen_of_seal(base, &[flip("flip"), off.clone()])), [None, Some("R-4")]);
        assert_eq!(seen_of_seal(9, &[flip("flip"), off, back]), Some("R-4"));
        assert_eq!(seen_of_seal(9, &[flip("panic")]), Some("R-4"));
        // A seal that was there before is none of this.
        let mut checks = Checks::new(&[(Hotkey([1; 32]), true)], Round(0));
        checks.event(0, &line(1, step(1)));
        let off = Event::DigestMismatch { own: Digest([9; 32]), agreed: Digest([1; 32]) };
        for event in [flip("flip"), off] {
            checks.event(0, &Line { block: Some(Block(50)), ..line(2, event) });
        }
        checks.seal(&Hotkey([1; 32]), &seal(2, 9), Block(40));
        assert_eq!(checks.first_violation(), None);
    }

    #[test]
    fn before_the_first_outer_step_all_seals_have_one_base() {
        let mut checks = Checks::new(&[1, 2].map(|key| (Hotkey([key; 32]), true)), Round(3));
        checks.event(0, &line(3, null()));
        checks.seal(&Hotkey([1; 32]), &seal(3, 5), Block(40));
        checks.seal(&Hotkey([2; 32]), &seal(4, 5), Block(50));
        checks.seal(&Hotkey([1; 32]), &seal(6, 7), Block(60));
        assert_eq!(checks.first_violation(), None, "of round 5 nothing is known yet");
        checks.seal(&Hotkey([1; 32]), &seal(4, 7), Block(60));
        assert_eq!(checks.first_violation().map(|violation| violation.rule), Some("R-4"));
    }

    #[test]
    fn who_has_lost_what_was_tampered_with_counts_again() {
        let mut checks = Checks::new(&[1, 2].map(|key| (Hotkey([key; 32]), true)), Round(0));
        let fault = Event::FaultInjected {
            actor: "compressor".to_owned(),
            phase: "outer-step".to_owned(),
            fault: "flip".to_owned(),
        };
        checks.event(1, &line(1, step(1)));
        checks.event(0, &line(1, fault));
        checks.event(0, &line(1, step(9)));
        assert_eq!((checks.nodes[0].is_tampered, checks.nodes[0].completed), (true, None));
        checks.event(0, &line(1, step(1)));
        assert_eq!((checks.nodes[0].is_tampered, checks.nodes[0].completed), (false, Some(Round(1))));
        assert_eq!(checks.first_violation(), None);
    }

    #[test]
    fn whoever_completes_nothing_in_the_calm_is_told() {
        let mut checks = Checks::new(&[(Hotkey([1; 32]), true)], Round(0));
        checks.event(0, &line(4, step(1)));
        checks.calm(Round(6), Round(4));
        assert_eq!(checks.first_violation(), None);
        checks.calm(Round(7), Round(5));
        assert_eq!(checks.first_violation().map(|violation| violation.rule), Some("liveness"));
    }
}
