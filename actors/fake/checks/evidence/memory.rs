//! Which standing the validator has, as far as others can know: one, but for the time after a death of its Gauntlet.
//!
//! What a death costs is the validator's own: it goes on from the last boundary that it had written, or from a match that it had
//! written after it, or from nothing. Which of them it was is not told; what it does next must follow from one of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use convoke::gauntlet::RejectReason;
use convoke::gauntlet::history::registered_only;
use convoke::gauntlet::record::Standing;
use convoke::terms::{Hotkey, Round};

use super::judge::Replays;

/// Standings that it may go back to. A boundary is at most two rounds old, and a round has one match; there may be another change of it
/// when somebody leaves the registry. The rest is for weights, which are told of some rounds after their match.
const STANDINGS_KEPT: usize = 16;
/// Rounds after a death in which several standings are possible: work that was begun before it may still be done in the round after.
const DOUBT_ROUNDS: u64 = 2;
/// Rounds in which used records are known as replays. It is the validator's number, written once more: who looks on takes nothing from
/// whom it looks at.
const REPLAY_ROUNDS: u64 = 64;

/// A standing, and the last match in it.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Known {
    pub standing: Standing,
    pub rated: Option<Round>,
}

/// What the validator remembers.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The standings that it may have, the likeliest last.
    possible: Vec<Arc<Known>>,
    /// Those that it has had, newest last.
    history: VecDeque<Arc<Known>>,
    /// The records that it has used, and when.
    used: BTreeMap<[u8; 32], Round>,
    /// The newest round that it has gathered in.
    newest: Round,
    /// The newest round before its last death, if it has died.
    died_after: Option<Round>,
    is_born: bool,
}

impl Memory {
    /// Its process, or its Gauntlet, has begun.
    pub fn begun(&mut self) {
        let nothing = Arc::new(Known::default());
        if self.is_born {
            self.died_after = Some(self.newest);
            self.possible = std::iter::once(nothing).chain(self.history.iter().cloned()).collect();
        } else {
            (self.is_born, self.possible) = (true, vec![nothing]);
        }
    }

    /// The standings that it may have, the likeliest first.
    pub fn possible(&self) -> Vec<Arc<Known>> {
        self.possible.iter().rev().cloned().collect()
    }

    /// Those from which weights of a round may follow: the ones after its match, or if it told of none, whatever it may have.
    pub fn after_match_of(&self, round: Round) -> Vec<Arc<Known>> {
        let all = self.possible.iter().rev().chain(self.history.iter().rev());
        let after = all.filter(|known| known.rated == Some(round));
        after.chain(self.possible.iter().rev()).cloned().collect()
    }

    /// How replays are found in a round. What it has forgotten by a death is its own.
    pub fn replays(&self, round: Round, said: &BTreeMap<Hotkey, String>) -> Replays<'_> {
        if self.died_after.is_none_or(|died| died.0 + REPLAY_ROUNDS < round.0) {
            return Replays::Used(&self.used);
        }
        let word = RejectReason::Replay.to_string();
        let replayed = said.iter().filter(|(_, reason)| **reason == word);
        Replays::Said(replayed.map(|(hotkey, _)| *hotkey).collect())
    }

    /// It has gathered: records of those who have left the registry are dropped, and what passed counts as used.
    pub fn gathered(&mut self, round: Round, registered: &BTreeSet<Hotkey>, passed: impl Iterator<Item = [u8; 32]>) {
        self.newest = self.newest.max(round);
        for idx in 0..self.possible.len() {
            let known = &self.possible[idx];
            if known.standing.keys().all(|hotkey| registered.contains(hotkey)) {
                continue;
            }
            let standing = registered_only(&known.standing, registered, round);
            if standing != known.standing {
                let known = Arc::new(Known { standing, rated: known.rated });
                self.possible[idx] = Arc::clone(&known);
                self.keep(known);
            }
        }
        // What it gathers anew in a round takes the place of what it had gathered.
        self.used.retain(|_, used_in| *used_in != round && used_in.0 + REPLAY_ROUNDS > round.0);
        self.used.extend(passed.map(|records| (records, round)));
    }

    /// It has played a match of a round, after which it has this standing.
    pub fn matched(&mut self, round: Round, standing: Standing) {
        let known = Arc::new(Known { standing, rated: Some(round) });
        self.keep(Arc::clone(&known));
        if self.died_after.is_none_or(|died| died.0 + DOUBT_ROUNDS < round.0) {
            self.possible.clear();
        }
        self.possible.push(known);
    }

    fn keep(&mut self, known: Arc<Known>) {
        self.history.push_back(known);
        if self.history.len() > STANDINGS_KEPT {
            self.history.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use convoke::gauntlet::PeerRecord;

    use super::*;

    fn standing(n_peers: u8) -> Standing {
        (0..n_peers).map(|key| (Hotkey([key; 32]), PeerRecord::default())).collect()
    }

    fn sizes(memory: &Memory) -> Vec<usize> {
        memory.possible().iter().map(|known| known.standing.len()).collect()
    }

    #[test]
    fn only_a_death_leaves_a_doubt_and_a_match_ends_it() {
        let mut memory = Memory::default();
        memory.begun();
        let everybody = standing(9).into_keys().collect();
        let play = |memory: &mut Memory, round: u64, n_peers: u8| {
            memory.gathered(Round(round), &everybody, std::iter::once([n_peers; 32]));
            memory.matched(Round(round), standing(n_peers));
        };
        play(&mut memory, 1, 1);
        play(&mut memory, 2, 2);
        assert_eq!(sizes(&memory), [2]);
        assert!(matches!(memory.replays(Round(3), &BTreeMap::new()), Replays::Used(used) if used.len() == 2));
        memory.begun();
        assert_eq!(sizes(&memory), [2, 1, 0], "the newest is the likeliest");
        assert!(matches!(memory.replays(Round(3), &BTreeMap::new()), Replays::Said(_)));
        play(&mut memory, 3, 3);
        assert_eq!(sizes(&memory), [3, 2, 1, 0]);
        play(&mut memory, 5, 4);
        assert_eq!(sizes(&memory), [4]);
        let after: Vec<usize> = memory.after_match_of(Round(3)).iter().map(|known| known.standing.len()).collect();
        assert_eq!(after, [3, 4]);
    }

    #[test]
    fn who_leaves_the_registry_is_forgotten() {
        let mut memory = Memory::default();
        memory.begun();
        memory.matched(Round(1), standing(3));
        let stay = standing(2).into_keys().collect();
        memory.gathered(Round(2), &stay, std::iter::empty());
        assert_eq!(sizes(&memory), [2]);
    }
}
