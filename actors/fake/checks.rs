//! What must hold at every event of a simulated run (design §3), whatever went wrong.
//!
//! - **R-1**: all nodes that completed a round have the same digest.
//! - **R-2**: a round ends in exactly one of outer step and null round, on every node, and again after a restart.
//! - **R-3**: no node ever ends for a fault.
//! - **R-4**: a node that has found itself off the agreed digest seals nothing before it is back on it.
//! - **Reasons**: what an honest node sealed is refused by an honest validator only for what was done to one of the two.
//! - **Liveness**: in the calm after trouble every node completes rounds again.

use std::collections::{BTreeMap, BTreeSet};

use convoke::terms::{Digest, Hotkey, Round};

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

/// The reasons for which an honest payload may be refused because of what happened on the way.
const EXCUSED: [&str; 4] = ["missing", "hash-mismatch", "size-mismatch", "stale"];

/// What is known of the run so far.
#[derive(Debug)]
pub struct Checks {
    nodes: Vec<Node>,
    uids: BTreeMap<Hotkey, usize>,
    /// How each round ended on the first node that completed it.
    ends: BTreeMap<Round, (Option<Digest>, usize)>,
    /// Uids in each round's manifest.
    contributions: BTreeMap<Round, usize>,
    /// Why how many payloads of honest nodes were refused.
    refused: BTreeMap<String, u64>,
    violations: Vec<Violation>,
}

#[derive(Debug, Clone, Default)]
struct Node {
    is_honest: bool,
    completed: Option<Round>,
    is_off: bool,
    rounds: BTreeSet<Round>,
}

impl Checks {
    /// Of these nodes, honest or not.
    #[must_use]
    pub fn new(nodes: &[(Hotkey, bool)]) -> Self {
        Self {
            nodes: nodes.iter().map(|(_, is_honest)| Node { is_honest: *is_honest, ..Node::default() }).collect(),
            uids: nodes.iter().enumerate().map(|(idx, (hotkey, _))| (*hotkey, idx)).collect(),
            ends: BTreeMap::new(),
            contributions: BTreeMap::new(),
            refused: BTreeMap::new(),
            violations: Vec::new(),
        }
    }

    /// Looks at an event of a node.
    pub fn event(&mut self, node: usize, line: &Line) {
        if !self.nodes[node].is_honest {
            return;
        }
        let round = line.round.unwrap_or_default();
        match &line.event {
            Event::OuterStep { digest, contributors, .. } => {
                self.ended(node, round, Some(*digest));
                self.contributions.insert(round, contributors.len());
            }
            Event::NullRound { .. } => self.ended(node, round, None),
            Event::DigestMismatch { .. } => self.nodes[node].is_off = true,
            Event::ResyncDone { .. } | Event::NodeStarted { .. } => self.nodes[node].is_off = false,
            Event::Sealed { .. } if self.nodes[node].is_off => {
                self.violated("R-4", round, format!("node {node} is off the agreed digest and seals"));
            }
            Event::BudgetSpent { actor, .. } => {
                self.violated("R-3", round, format!("node {node} ends because its {actor} has died too often"));
            }
            Event::Rejected { hotkey, reason, .. } => self.rejected(node, round, *hotkey, reason),
            _ => {}
        }
    }

    fn ended(&mut self, node: usize, round: Round, end: Option<Digest>) {
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
        state.rounds.insert(round);
        while state.rounds.len() > 64 {
            state.rounds.pop_first();
        }
    }

    fn rejected(&mut self, node: usize, round: Round, hotkey: Hotkey, reason: &str) {
        let Some(&owner) = self.uids.get(&hotkey) else { return };
        if !self.nodes[owner].is_honest {
            return;
        }
        *self.refused.entry(reason.to_owned()).or_default() += 1;
        if !EXCUSED.contains(&reason) {
            self.violated("reasons", round, format!("node {node} refuses what node {owner} sealed: {reason}"));
        }
    }

    /// In the calm: every honest node must have completed a round from `since` on.
    pub fn calm(&mut self, now: Round, since: Round) {
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
        let mut checks = Checks::new(&[1, 2, 3].map(|key| (Hotkey([key; 32]), key < 3)));
        events.iter().for_each(|(node, round, event)| checks.event(*node, &line(*round, event.clone())));
        checks.first_violation().map(|violation| violation.rule)
    }

    #[test]
    fn each_rule_is_seen_to_be_broken() {
        assert_eq!(seen(&[(0, 1, step(1)), (1, 1, step(1)), (0, 2, null()), (1, 2, null())]), None);
        assert_eq!(seen(&[(0, 1, step(1)), (1, 1, step(2))]), Some("R-1"));
        assert_eq!(seen(&[(0, 1, step(1)), (1, 1, null())]), Some("R-2"));
        assert_eq!(seen(&[(0, 1, step(1)), (2, 1, step(9))]), None, "what attackers say is theirs");
        let off = Event::DigestMismatch { own: Digest([1; 32]), agreed: Digest([2; 32]) };
        let sealed = Event::Sealed {
            payload: convoke::terms::PayloadHash([0; 32]),
            bytes: 1,
            ratio: 1.0,
            inner_steps: 2,
            sealed_at: convoke::terms::Block(1),
        };
        assert_eq!(seen(&[(0, 1, off.clone()), (0, 2, sealed.clone())]), Some("R-4"));
        let back = Event::ResyncDone { digest: Digest([2; 32]), seconds: 1.0 };
        assert_eq!(seen(&[(0, 1, off), (0, 2, back), (0, 2, sealed)]), None);
        let spent = Event::BudgetSpent { actor: "compressor".to_owned(), restarts: 6 };
        assert_eq!(seen(&[(1, 1, spent)]), Some("R-3"));
        let rejected =
            |key, reason: &str| Event::Rejected { uid: None, hotkey: Hotkey([key; 32]), reason: reason.to_owned() };
        assert_eq!(seen(&[(0, 1, rejected(2, "copy"))]), Some("reasons"));
        assert_eq!(seen(&[(0, 1, rejected(2, "missing")), (0, 1, rejected(3, "copy"))]), None);
    }

    #[test]
    fn whoever_completes_nothing_in_the_calm_is_told() {
        let mut checks = Checks::new(&[(Hotkey([1; 32]), true)]);
        checks.event(0, &line(4, step(1)));
        checks.calm(Round(6), Round(4));
        assert_eq!(checks.first_violation(), None);
        checks.calm(Round(7), Round(5));
        assert_eq!(checks.first_violation().map(|violation| violation.rule), Some("liveness"));
    }
}
