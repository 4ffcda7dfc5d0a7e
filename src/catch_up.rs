//! Where a node that is behind begins again: with the θ that it holds, with a θ that others keep, or with the run's first.
//!
//! θ of a round follows from any earlier θ and the payloads applied since, so there are several ways to the newest one, and they
//! differ in what has to be fetched. Validators keep θ of every `timing.checkpoint_rounds`-th round. A checkpoint needs no announcement
//! of its own: the first manifest from its round on names its digest as the θ that it applies to, more than half of the
//! validators' stake has endorsed that manifest, and the digest is the address under which θ is fetched.

use std::collections::BTreeMap;

use crate::manifest::Manifest;
use crate::terms::{Digest, ManifestHash, Round, RunId};

/// What was decided, without a gap, from some round on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    from: Round,
    to: Round,
    manifests: BTreeMap<Round, Manifest>,
    /// The manifest before the oldest known; `None` before the first is known.
    before: Option<ManifestHash>,
}

/// A θ to begin with, and what it takes to have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// θ of this round.
    pub round: Round,
    /// Bytes to fetch for it.
    pub bytes: u64,
}

/// A θ that others keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// θ of this round.
    pub round: Round,
    /// What it is, and where.
    pub digest: Digest,
    /// The manifest that made it, or what stands for that.
    pub prev: ManifestHash,
}

impl History {
    /// Nothing yet: rounds before `to` are decided, and none of them is known.
    #[must_use]
    pub fn new(to: Round) -> Self {
        Self { from: to, to, manifests: BTreeMap::new(), before: None }
    }

    /// The last round before those that are known was a null round.
    pub fn push_null(&mut self) {
        self.from = Round(self.from.0.saturating_sub(1));
    }

    /// The newest manifest before those that are known; rounds between are null rounds. Answers whether it fits: it is the one that the
    /// manifest after it names, and of an earlier round.
    pub fn push(&mut self, manifest: Manifest, run: &RunId) -> bool {
        let is_named = self.before.is_none_or(|before| before == manifest.hash());
        if !is_named || manifest.round >= self.from {
            return false;
        }
        self.before = Some(manifest.prev);
        self.from = if manifest.prev == Manifest::first_prev(run) { Round(0) } else { manifest.round };
        self.manifests.insert(manifest.round, manifest);
        true
    }

    /// The manifest to ask for next, if the past is not known to its beginning.
    #[must_use]
    pub fn next(&self) -> Option<ManifestHash> {
        self.before.filter(|_| self.from > Round(0))
    }

    /// The rounds of which all is known.
    #[must_use]
    pub fn rounds(&self) -> std::ops::Range<Round> {
        self.from..self.to
    }

    /// What a round came to, `None` for a null round; `None` outside if that is not known.
    #[must_use]
    pub fn decided(&self, round: Round) -> Option<Option<&Manifest>> {
        self.rounds().contains(&round).then(|| self.manifests.get(&round))
    }

    /// What has to be fetched to go from θ of this round to the newest one; `None` if not all of it is known.
    #[must_use]
    pub fn replay_bytes(&self, from: Round) -> Option<u64> {
        let payloads = self.manifests.range(from..).flat_map(|(_, manifest)| &manifest.entries);
        (self.from <= from).then(|| payloads.map(|entry| entry.transport_bytes).fold(0, u64::saturating_add))
    }

    /// The checkpoints of every `every`-th round that the known manifests name, oldest first.
    #[must_use]
    pub fn checkpoints(&self, every: u64) -> Vec<Checkpoint> {
        let first = self.from.0.max(1).next_multiple_of(every);
        let rounds = (first..=self.to.0).step_by(usize::try_from(every).unwrap_or(usize::MAX)).map(Round);
        rounds
            .filter_map(|round| {
                let (_, after) = self.manifests.range(round..).next()?;
                Some(Checkpoint { round, digest: after.base, prev: after.prev })
            })
            .collect()
    }

    /// The start from which the newest θ costs the fewest bytes; of two that cost the same, the later, which costs less work.
    #[must_use]
    pub fn cheapest(&self, starts: &[Start]) -> Option<Start> {
        let cost = |start: &Start| Some(self.replay_bytes(start.round)?.saturating_add(start.bytes));
        let possible = starts.iter().filter_map(|start| Some((cost(start)?, start)));
        possible.min_by_key(|(cost, start)| (*cost, std::cmp::Reverse(start.round))).map(|(_, start)| *start)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::manifest::Entry;
    use crate::terms::{Hotkey, PayloadHash, TransportHash, Uid};

    const RUN: RunId = RunId([9; 32]);

    fn manifest(round: u64, prev: ManifestHash, bytes: u64) -> Manifest {
        let name = [u8::try_from(round).unwrap(); 32];
        let (payload, transport) = (PayloadHash(name), TransportHash(name));
        let entry = Entry { uid: Uid(0), hotkey: Hotkey([1; 32]), payload, transport, transport_bytes: bytes };
        Manifest { round: Round(round), prev, base: Digest(name), entries: vec![entry] }
    }

    /// The manifests of these rounds, each after the one before it.
    fn chain(rounds: &[u64], bytes: u64) -> Vec<Manifest> {
        let mut prev = Manifest::first_prev(&RUN);
        let of = |round: &u64| {
            let manifest = manifest(*round, prev, bytes);
            prev = manifest.hash();
            manifest
        };
        rounds.iter().map(of).collect()
    }

    fn history(to: u64, manifests: &[Manifest]) -> History {
        let mut history = History::new(Round(to));
        for manifest in manifests.iter().rev() {
            assert!(history.push(manifest.clone(), &RUN));
        }
        history
    }

    #[test]
    fn the_past_is_known_as_far_as_manifests_name_each_other() {
        let all = chain(&[1, 2, 5], 10);
        let whole = history(7, &all);
        assert_eq!((whole.rounds(), whole.next()), (Round(0)..Round(7), None));
        assert_eq!(whole.decided(Round(5)), Some(Some(&all[2])));
        assert_eq!(whole.decided(Round(4)), Some(None));
        assert_eq!(whole.decided(Round(7)), None);
        let part = history(7, &all[1..]);
        assert_eq!((part.rounds(), part.next()), (Round(2)..Round(7), Some(all[0].hash())));
        assert_eq!(part.decided(Round(1)), None);
    }

    #[test]
    fn a_manifest_that_is_not_the_one_named_is_refused() {
        let all = chain(&[1, 2, 5], 10);
        let mut history = history(7, &all[2..]);
        assert!(!history.push(all[0].clone(), &RUN));
        assert!(!history.push(manifest(6, all[1].prev, 10), &RUN));
        assert!(history.push(all[1].clone(), &RUN));
    }

    #[test]
    fn a_checkpoint_is_named_by_the_first_manifest_from_its_round_on() {
        let all = chain(&[1, 2, 5, 6], 10);
        let checkpoints = history(9, &all).checkpoints(4);
        // Nobody has named θ of round 8 yet.
        let expected = Checkpoint { round: Round(4), digest: all[2].base, prev: all[2].prev };
        assert_eq!(checkpoints, [expected]);
        assert_eq!(history(9, &all[3..]).checkpoints(4), []);
    }

    #[test]
    fn the_fewest_bytes_win_and_what_cannot_be_replayed_does_not_count() {
        let all = chain(&[0, 1, 2, 3, 4, 5], 10);
        let start = |round, bytes| Start { round: Round(round), bytes };
        let whole = history(6, &all);
        assert_eq!(whole.cheapest(&[start(0, 0), start(4, 100)]), Some(start(0, 0)));
        assert_eq!(whole.cheapest(&[start(0, 0), start(4, 30)]), Some(start(4, 30)));
        assert_eq!(whole.cheapest(&[start(0, 0), start(4, 40)]), Some(start(4, 40)));
        let part = history(6, &all[3..]);
        assert_eq!(part.cheapest(&[start(0, 0), start(4, 100)]), Some(start(4, 100)));
        assert_eq!(part.cheapest(&[start(0, 0)]), None);
    }

    proptest! {
        /// Whatever the gaps, a round is known as null only if the manifests around it say so.
        #[test]
        fn every_known_round_is_what_the_chain_of_manifests_says(gaps in prop::collection::vec(1u64..5, 1..20), known in 1usize..20) {
            let rounds: Vec<u64> = gaps.iter().scan(0, |at, gap| { *at += gap; Some(*at) }).collect();
            let all = chain(&rounds, 1);
            let known = known.min(all.len());
            let to = rounds.last().unwrap() + 3;
            let history = history(to, &all[all.len() - known..]);
            for round in 0..to {
                let expected = all.iter().find(|manifest| manifest.round.0 == round);
                if let Some(decided) = history.decided(Round(round)) {
                    prop_assert_eq!(decided, expected);
                }
            }
            prop_assert_eq!(history.rounds().start == Round(0), known == all.len());
        }
    }
}
