//! When a node doubts its own θ although no manifest says that it is off.
//!
//! Where validators with most of the stake hold another θ than everybody else, they agree with nobody, every round is null, and no
//! manifest will ever tell them so. So the seals of a null round are looked at. They are strangers' words, and cost their authors
//! little: what they can bring about is bounded here.

use std::collections::BTreeMap;

use convoke::terms::{Digest, Hotkey, Round};
use tokio::time::Instant;

use super::{Resync, State};
use crate::compressor;
use crate::gauntlet::Claim;

/// Seals that say the same θ, at least, before a node doubts its own.
const OUTVOTED_BY: usize = 2;
/// The first doubt takes θ from disk, the second from others. Whoever comes to the same θ again keeps it: strangers with a word of their
/// own would else keep the node in one round for ever.
const DOUBTS_MAX: u8 = 2;
/// Digests that are remembered: more than the null rounds that a node replays.
const REMEMBERED_MAX: usize = 256;

/// How often which θ was doubted.
#[derive(Debug, Default)]
pub struct Doubts(BTreeMap<Digest, u8>);

impl Doubts {
    /// Whether this θ is to be doubted once more.
    pub fn may(&mut self, own: Digest) -> bool {
        let n_doubts = self.0.entry(own).or_default();
        let may = *n_doubts < DOUBTS_MAX;
        *n_doubts += u8::from(may);
        if self.0.len() > REMEMBERED_MAX
            && let Some(other) = self.0.keys().find(|other| **other != own).copied()
        {
            self.0.remove(&other);
        }
        may
    }
}

impl State {
    /// off the agreed digest the node contributes nothing. What it holds in memory is given up for what it has on disk;
    /// if that is not the agreed θ either, for what others keep.
    pub fn resync(&mut self, round: Round, own: Digest, agreed: Digest) {
        let journal = &self.desk.parts.journal;
        journal.digest_mismatch(round, own, agreed);
        match &mut self.resyncing {
            Some(resync) => {
                resync.in_doubt = true;
                journal.resync_failed();
            }
            None => self.resyncing = Some(Resync { round, since: Instant::now(), in_doubt: false }),
        }
        let why = format!("θ of round {round} is off the agreed digest");
        drop(self.desk.leaves.compressor.cast(compressor::Msg::Died(why)));
        self.find_place();
    }

    /// Whether what is on disk is not trusted either.
    pub fn is_in_doubt(&self) -> bool {
        self.resyncing.is_some_and(|resync| resync.in_doubt)
    }
}

/// What θ is to more than half of those others who have sealed in a round, if to none of them it is what this node holds.
pub fn outvoted(claims: &[Claim], me: &Hotkey, own: Digest) -> Option<Digest> {
    let bases: Vec<Digest> = claims.iter().filter(|claim| claim.hotkey != *me).map(|claim| claim.seal.base).collect();
    if bases.contains(&own) {
        return None;
    }
    let n_for = |base: &Digest| bases.iter().filter(|other| *other == base).count();
    bases.iter().copied().find(|base| n_for(base) >= OUTVOTED_BY && 2 * n_for(base) > bases.len())
}

#[cfg(test)]
mod tests {
    use convoke::chain::Seal;
    use convoke::terms::{Block, PayloadHash, TransportHash, Uid};

    use super::*;

    fn claim(hotkey: u8, base: u8) -> Claim {
        let seal = Seal {
            round: Round(3),
            payload: PayloadHash([hotkey; 32]),
            transport: TransportHash([hotkey; 32]),
            transport_bytes: 9,
            base: Digest([base; 32]),
            holding: [0; 16],
        };
        Claim { uid: Uid(u16::from(hotkey)), hotkey: Hotkey([hotkey; 32]), endpoint: None, seal, place: (Block(1), 0) }
    }

    fn outvoted_of(own: u8, others: &[u8]) -> Option<u8> {
        let mut claims: Vec<Claim> = others.iter().zip(1..).map(|(base, hotkey)| claim(hotkey, *base)).collect();
        claims.push(claim(0, own));
        outvoted(&claims, &Hotkey([0; 32]), Digest([own; 32])).map(|digest| digest.0[0])
    }

    #[test]
    fn whoever_nobody_agrees_with_doubts_its_theta() {
        assert_eq!(outvoted_of(7, &[5, 5, 5]), Some(5));
        assert_eq!(outvoted_of(7, &[5, 5, 4]), Some(5));
    }

    #[test]
    fn one_that_agrees_is_enough_and_strangers_must_agree_with_each_other() {
        assert_eq!(outvoted_of(7, &[5, 5, 5, 7]), None);
        assert_eq!(outvoted_of(7, &[5]), None);
        assert_eq!(outvoted_of(7, &[5, 5, 4, 4]), None);
        assert_eq!(outvoted_of(7, &[]), None);
    }

    #[test]
    fn a_theta_is_doubted_twice_and_then_kept() {
        let mut doubts = Doubts::default();
        let (own, other) = (Digest([7; 32]), Digest([8; 32]));
        assert_eq!([doubts.may(own), doubts.may(other), doubts.may(own), doubts.may(own)], [true, true, true, false]);
        assert_eq!([doubts.may(other), doubts.may(other)], [true, false]);
    }

    #[test]
    fn what_is_remembered_of_doubts_is_bounded() {
        let mut doubts = Doubts::default();
        for number in 0..2 * REMEMBERED_MAX as u64 {
            let mut digest = Digest::default();
            digest.0[..8].copy_from_slice(&number.to_be_bytes());
            assert_eq!([doubts.may(digest), doubts.may(digest), doubts.may(digest)], [true, true, false]);
        }
        assert_eq!(doubts.0.len(), REMEMBERED_MAX);
    }
}
