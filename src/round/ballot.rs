//! How one validator votes at one block: propose, endorse, or leave things as they are.
//!
//! Validators stand in order of stake. The first proposes as soon as it has gathered; a standby only when its turn has
//! come and nobody before it has proposed. Everybody endorses the proposal of the highest stake that it can vouch for.
//! A vote is the hash a validator has on chain for the round: proposing and endorsing are the same act.

use std::collections::BTreeSet;

use super::Schedule;
use crate::terms::{Block, Hotkey, ManifestHash, Round};

/// One validator and what it has on chain for the round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Voter {
    /// Who.
    pub hotkey: Hotkey,
    /// The manifest it has voted for in this round.
    pub vote: Option<ManifestHash>,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ballot {
    /// Make the own manifest and vote for it.
    Propose,
    /// Obtain this manifest, which that validator has voted for, check it, and vote for it.
    Endorse {
        /// Who has proposed it.
        proposer: Hotkey,
        /// What to endorse.
        manifest: ManifestHash,
    },
    /// Nothing to do at this block.
    Keep,
}

/// The ballot of `me` at `block`.
///
/// `voters` are the permitted validators in order of stake; `refused` are manifests that `me` has looked at and cannot
/// vouch for.
#[must_use]
pub fn ballot(
    schedule: &Schedule,
    round: Round,
    block: Block,
    voters: &[Voter],
    me: &Hotkey,
    refused: &BTreeSet<ManifestHash>,
) -> Ballot {
    let Some(my_place) = voters.iter().position(|voter| voter.hotkey == *me) else {
        return Ballot::Keep;
    };
    let mine = voters[my_place].vote;
    let best = voters.iter().find_map(|voter| {
        let vote = voter.vote.filter(|vote| !refused.contains(vote))?;
        Some((voter.hotkey, vote))
    });
    match best {
        Some((_, manifest)) if mine == Some(manifest) => Ballot::Keep,
        Some((proposer, manifest)) => Ballot::Endorse { proposer, manifest },
        None if block >= schedule.proposes_from(round, my_place as u64) => Ballot::Propose,
        None => Ballot::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::schedule;
    use super::*;

    const ME: Hotkey = Hotkey([2; 32]);

    fn voters(votes: [Option<u8>; 3]) -> Vec<Voter> {
        (1u8..)
            .zip(votes)
            .map(|(place, vote)| Voter {
                hotkey: Hotkey([place; 32]),
                vote: vote.map(|manifest| ManifestHash([manifest; 32])),
            })
            .collect()
    }

    #[track_caller]
    fn check(block: u64, votes: [Option<u8>; 3], refused: &[u8], expected: Ballot) {
        let refused = refused.iter().map(|manifest| ManifestHash([*manifest; 32])).collect();
        assert_eq!(ballot(&schedule(), Round(0), Block(block), &voters(votes), &ME, &refused), expected);
    }

    fn endorse(proposer: u8, manifest: u8) -> Ballot {
        Ballot::Endorse { proposer: Hotkey([proposer; 32]), manifest: ManifestHash([manifest; 32]) }
    }

    #[test]
    fn a_standby_waits_for_its_turn() {
        check(20, [None, None, None], &[], Ballot::Keep);
        check(21, [None, None, None], &[], Ballot::Propose);
    }

    #[test]
    fn the_proposal_of_the_highest_stake_is_endorsed_even_after_an_own_one() {
        check(20, [Some(9), None, None], &[], endorse(1, 9));
        check(22, [Some(9), Some(7), Some(7)], &[], endorse(1, 9));
        check(22, [Some(9), Some(9), None], &[], Ballot::Keep);
    }

    #[test]
    fn an_own_proposal_stands_against_one_of_lower_stake() {
        check(22, [None, Some(7), Some(8)], &[], Ballot::Keep);
    }

    #[test]
    fn a_refused_proposal_counts_as_none() {
        check(21, [Some(9), None, None], &[9], Ballot::Propose);
        check(21, [Some(9), None, Some(8)], &[9], endorse(3, 8));
    }

    #[test]
    fn a_node_that_is_no_validator_keeps_still() {
        let stranger = Hotkey([77; 32]);
        let ballot = ballot(&schedule(), Round(0), Block(25), &voters([None, None, None]), &stranger, &BTreeSet::new());
        assert_eq!(ballot, Ballot::Keep);
    }
}
