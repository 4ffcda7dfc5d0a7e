//! What honest validators say of the miners: whose payloads they refuse, who gets the weight, and how θ fares meanwhile.
//!
//! It is counted, not judged: which shares are good enough is said where a run's report is looked at.

use std::collections::BTreeMap;

use convoke::manifest::Manifest;
use convoke::round::Role;
use convoke::terms::{Hotkey, Round, Uid, Weight};

use super::EXCUSED;
use crate::events::{Event, Line};
use crate::fake::cast::Part;

/// One node, for those who count.
#[derive(Debug, Clone, Copy)]
pub struct Played {
    /// Whose it is.
    pub hotkey: Hotkey,
    /// What it does.
    pub role: Role,
    /// What it is.
    pub part: Part,
}

/// What is known so far.
#[derive(Debug)]
pub struct Verdicts {
    nodes: Vec<Played>,
    places: BTreeMap<Hotkey, usize>,
    /// What each honest validator has set last.
    weights: BTreeMap<usize, Vec<(Uid, Weight)>>,
    /// Seals of honest miners, by round: each validator that gathers judges all of them.
    sealed: BTreeMap<Round, u64>,
    judged: u64,
    accused: u64,
    refusals: BTreeMap<(Part, String), u64>,
    heldout: BTreeMap<Round, f64>,
    applied: BTreeMap<Part, u64>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Summary {
    /// The share of each part in the weight that honest validators have set last, as a mean over them; nothing before they have.
    pub weight: BTreeMap<Part, f64>,
    /// Payloads of honest miners that were refused although they came, and payloads of honest miners that were judged.
    pub accused: (u64, u64),
    /// Why how many payloads of whom were refused.
    pub refusals: BTreeMap<(Part, String), u64>,
    /// The held-out loss after each round, in nats a token.
    pub heldout: BTreeMap<Round, f64>,
    /// Of whom how many payloads the manifests have that were looked at: one a round, the newest there was.
    pub applied: BTreeMap<Part, u64>,
}

impl Summary {
    /// The share of honest miners in the weight of all miners.
    #[must_use]
    pub fn honest_weight(&self) -> Option<f64> {
        let all: f64 = self.weight.values().sum();
        (all > 0.0).then(|| self.weight.get(&Part::Honest).copied().unwrap_or(0.0) / all)
    }

    /// The share of honest payloads that were refused although they came.
    #[must_use]
    pub fn false_accusations(&self) -> f64 {
        let (accused, judged) = self.accused;
        accused as f64 / judged.max(1) as f64
    }

    /// The share of honest miners in the payloads that were applied.
    #[must_use]
    pub fn honest_applied(&self) -> Option<f64> {
        let all: u64 = self.applied.values().sum();
        (all > 0).then(|| self.applied.get(&Part::Honest).copied().unwrap_or(0) as f64 / all as f64)
    }

    /// The held-out loss after the last round.
    #[must_use]
    pub fn last_loss(&self) -> Option<f64> {
        self.heldout.last_key_value().map(|(_, loss)| *loss)
    }
}

impl Verdicts {
    /// On these nodes.
    #[must_use]
    pub fn new(nodes: Vec<Played>) -> Self {
        let places = nodes.iter().enumerate().map(|(idx, node)| (node.hotkey, idx)).collect();
        Self {
            nodes,
            places,
            weights: BTreeMap::new(),
            sealed: BTreeMap::new(),
            judged: 0,
            accused: 0,
            refusals: BTreeMap::new(),
            heldout: BTreeMap::new(),
            applied: BTreeMap::new(),
        }
    }

    /// Hears of an event of a node.
    pub fn event(&mut self, node: usize, line: &Line) {
        let Played { role, part, .. } = self.nodes[node];
        let round = line.round.unwrap_or_default();
        if part != Part::Honest {
            return;
        }
        match &line.event {
            Event::Sealed { sealed_at, .. } if sealed_at.0 > 0 => *self.sealed.entry(round).or_default() += 1,
            Event::OuterStep { heldout_loss: Some(loss), .. } => {
                self.heldout.entry(round).or_insert(*loss);
            }
            Event::Gathered { .. } if role.validates() => {
                self.judged += self.sealed.get(&round).copied().unwrap_or(0);
                self.sealed = self.sealed.split_off(&Round(round.0.saturating_sub(8)));
            }
            Event::Rejected { hotkey, reason, .. } if role.validates() => self.refused(hotkey, reason),
            Event::WeightsSet { weights, .. } => {
                self.weights.insert(node, weights.clone());
            }
            _ => {}
        }
    }

    /// Hears of a manifest that was decided.
    pub fn manifest(&mut self, manifest: &Manifest) {
        for place in manifest.entries.iter().filter_map(|entry| self.places.get(&entry.hotkey)) {
            *self.applied.entry(self.nodes[*place].part).or_default() += 1;
        }
    }

    fn refused(&mut self, hotkey: &Hotkey, reason: &str) {
        let Some(owner) = self.places.get(hotkey) else { return };
        let part = self.nodes[*owner].part;
        // Whom something was copied from is another each time.
        let reason = reason.split_once(" of ").map_or(reason, |(reason, _)| reason);
        *self.refusals.entry((part, reason.to_owned())).or_default() += 1;
        if part == Part::Honest && !reason.starts_with(EXCUSED) {
            self.accused += 1;
        }
    }

    /// What came of it, where slots are held by these.
    #[must_use]
    pub fn summary(&self, holder: impl Fn(Uid) -> Option<Hotkey>) -> Summary {
        let mut weight = BTreeMap::new();
        for set in self.weights.values() {
            let of_miners: Vec<(Part, f64)> = set
                .iter()
                .filter_map(|(uid, weight)| {
                    let node = self.nodes[*self.places.get(&holder(*uid)?)?];
                    node.role.mines().then_some((node.part, f64::from(weight.0)))
                })
                .collect();
            let all: f64 = of_miners.iter().map(|(_, weight)| weight).sum();
            for (part, share) in of_miners {
                *weight.entry(part).or_insert(0.0) += share / all.max(f64::MIN_POSITIVE) / self.weights.len() as f64;
            }
        }
        Summary {
            weight,
            accused: (self.accused, self.judged),
            refusals: self.refusals.clone(),
            heldout: self.heldout.clone(),
            applied: self.applied.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use convoke::terms::Block;

    use super::*;

    const PARTS: [(Role, Part); 4] = [
        (Role::Validator, Part::Honest),
        (Role::Miner, Part::Honest),
        (Role::Miner, Part::Noise),
        (Role::Validator, Part::Colluder),
    ];

    fn key(idx: usize) -> Hotkey {
        Hotkey([idx as u8; 32])
    }

    fn counted(events: Vec<(usize, Event)>) -> Summary {
        let nodes =
            PARTS.iter().enumerate().map(|(idx, (role, part))| Played { hotkey: key(idx), role: *role, part: *part });
        let mut verdicts = Verdicts::new(nodes.collect());
        for (node, event) in events {
            let line = Line { at_ms: 0, node: String::new(), block: None, round: Some(Round(3)), event };
            verdicts.event(node, &line);
        }
        verdicts.summary(|uid| Some(key(usize::from(uid.0))))
    }

    fn sealed() -> Event {
        let payload = convoke::terms::PayloadHash([0; 32]);
        Event::Sealed { payload, bytes: 1, ratio: 1.0, inner_steps: 2, sealed_at: Block(4) }
    }

    fn rejected(idx: usize, reason: &str) -> Event {
        Event::Rejected { uid: None, hotkey: key(idx), reason: reason.to_owned() }
    }

    #[test]
    fn weight_is_shared_among_parts_as_honest_validators_have_set_it() {
        let set = |weights: &[(u16, u16)]| Event::WeightsSet {
            weights: weights.iter().map(|(uid, weight)| (Uid(*uid), Weight(*weight))).collect(),
            set_at: Block(9),
        };
        let first = set(&[(1, 1), (2, 9)]);
        let summary = counted(vec![(0, first), (0, set(&[(1, 3), (2, 1)])), (3, set(&[(2, 1)]))]);
        assert_eq!(summary.honest_weight(), Some(0.75));
        assert_eq!(summary.weight[&Part::Noise], 0.25);
        assert_eq!(counted(vec![]).honest_weight(), None);
    }

    #[test]
    fn an_honest_payload_that_came_and_was_refused_is_a_false_accusation() {
        let gathered = || Event::Gathered { received: 2, missing: 0 };
        let late = rejected(1, "nobody delivered the payload");
        let events = vec![(1, sealed()), (2, sealed()), (0, gathered()), (0, rejected(1, "a copy of x")), (0, late)];
        let mut events: Vec<(usize, Event)> = events;
        events.extend([(0, rejected(2, "a copy of x")), (3, gathered()), (3, rejected(1, "a copy of y"))]);
        let summary = counted(events);
        assert_eq!((summary.accused, summary.false_accusations()), ((1, 1), 1.0));
        assert_eq!(summary.refusals[&(Part::Noise, "a copy".to_owned())], 1);
    }
}
