//! What must hold at every event of a simulated run (design §3), whatever went wrong.
//!
//! - **R-1**: all nodes that completed a round have the same digest.
//! - **R-2**: a round ends in exactly one of outer step and null round, on every node, and again after a restart.
//! - **R-3**: no node ever ends for a fault.
//! - **R-4**: a node that has found itself off the agreed digest seals nothing before it is back on it.
//! - **Reasons**: what an honest node sealed is refused by an honest validator only for what was done to one of the two.
//! - **Liveness**: in the calm after trouble every node completes rounds again.

use std::collections::BTreeMap;

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
    /// Why how many payloads of honest nodes were refused.
    refused: BTreeMap<String, u64>,
    violations: Vec<Violation>,
}

#[derive(Debug, Clone, Default)]
struct Node {
    is_honest: bool,
    completed: Option<Round>,
    is_off: bool,
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
            // Who starts again may have saved what was tampered with.
            Event::NodeStarted { .. } => self.nodes[node].is_off = false,
            Event::ResyncDone { .. } => {
                (self.nodes[node].is_off, self.nodes[node].is_tampered) = (false, false);
            }
            Event::FaultInjected { fault, .. } if fault == "flip" => self.nodes[node].is_tampered = true,
            Event::Sealed { sealed_at, .. } if self.nodes[node].is_off && sealed_at.0 > 0 => {
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
        if round < self.from || self.nodes[node].is_tampered {
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
        assert_eq!(seen(&[(0, 1, rejected(2, "nobody delivered the payload")), (0, 1, rejected(3, "copy"))]), None);
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
