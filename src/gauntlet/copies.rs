//! Copy detection: two payloads that keep the same indices were not both trained.
//!
//! Two honest peers keep the same index by chance at k / 4096 (1.6 %), and more because they pull the same model the
//! same way: in the first round of the default run they agree in 0.36, after eight in 0.13 (`cargo xtask bench copies`). So what is
//! usual in a round is taken off before two of its payloads are judged, as chance is taken off in Cohen's κ; a fixed limit, such
//! as the 0.4 of the reference run, would be met by honest peers or missed by copies. Values are left out: a copy with noise added keeps its
//! indices. The later seal is the copy, in the order of the chain. The reference run compared upload times of the
//! storage provider, which a peer could erase; a seal's place on chain cannot be. And since payloads are not readable
//! before all seals are in, a copy shows that two hotkeys share a machine or a friend, which is what is to be excluded.

use crate::terms::{Block, Hotkey};

/// A sealed payload of the round that passed the other checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// Who sealed it.
    pub hotkey: Hotkey,
    /// The block of its seal.
    pub block: Block,
    /// The seal's place in the block; 0 where the chain does not tell. Hotkeys then break the tie: one of two seals of
    /// the same block must go, and both come from one hand.
    pub index: u32,
}

impl Sealed {
    fn order(&self) -> (Block, u32, Hotkey) {
        (self.block, self.index, self.hotkey)
    }
}

/// A payload that is another's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CopyFound {
    /// Who sealed later.
    pub copy: Hotkey,
    /// Who sealed first, of those it overlaps with.
    pub original: Hotkey,
    /// The share of kept indices that both have.
    pub overlap: f64,
}

/// What is taken as usual at most: a full agreement is a copy, however many there are. Honest peers come near it where θ was led astray,
/// for there is one way back.
const USUAL_MAX: f64 = 0.9;
/// What is taken as usual where only two payloads can be compared.
const USUAL_OF_TWO: f64 = 0.5;

/// The copies among `sealed`, latest last.
///
/// `overlap` gives the share of kept indices that the payloads at two places of `sealed` have in common, in [0, 1]; it
/// is asked once for each pair. The usual agreement m is the upper quartile of all pairs. A pair that agrees in o is a copy where
/// (o − m) / (1 − m) is above `overlap_max`. A copy of a copy is a copy of the first.
///
/// Of the pairs among more honest payloads than others at least a quarter are honest, and less than a quarter are of two others: so
/// neither those who agree with nobody nor those who agree with each other move m far from what is usual among the honest. The
/// median is theirs to move: a third who send noise make it that of noise.
#[must_use]
pub fn copies(sealed: &[Sealed], overlap_max: f64, mut overlap: impl FnMut(usize, usize) -> f64) -> Vec<CopyFound> {
    let mut order: Vec<usize> = (0..sealed.len()).collect();
    order.sort_unstable_by_key(|&i| sealed[i].order());
    // The pairs of the payload at a place with those before it, places ascending.
    let agreement: Vec<Vec<f64>> = order
        .iter()
        .enumerate()
        .map(|(place, &later)| order[..place].iter().map(|&earlier| overlap(earlier, later)).collect())
        .collect();
    let usual = usual(agreement.iter().flatten().copied().collect());
    let limit = usual + (1.0 - usual) * overlap_max;
    let mut found = Vec::new();
    for (earlier_ones, (place, &later)) in agreement.iter().zip(order.iter().enumerate()) {
        let first = order[..place]
            .iter()
            .zip(earlier_ones)
            .find_map(|(&earlier, &overlap)| (overlap > limit).then_some((sealed[earlier].hotkey, overlap)));
        if let Some((original, overlap)) = first {
            found.push(CopyFound { copy: sealed[later].hotkey, original, overlap });
        }
    }
    found
}

/// The upper quartile of all pairs' agreement, or [`USUAL_MAX`] where that is less.
fn usual(mut pairs: Vec<f64>) -> f64 {
    pairs.sort_unstable_by(f64::total_cmp);
    match pairs.len() {
        0 | 1 => USUAL_OF_TWO,
        n => pairs[3 * (n - 1) / 4].clamp(0.0, USUAL_MAX),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::gauntlet::fixture::hotkey;

    /// Seals of (hotkey, block, index), and the pairs of places that overlap fully.
    fn found(seals: &[(u8, u64, u32)], same: &[(usize, usize)]) -> Vec<(Hotkey, Hotkey)> {
        let sealed: Vec<_> = seals
            .iter()
            .map(|&(key, block, index)| Sealed { hotkey: hotkey(key), block: Block(block), index })
            .collect();
        let overlap = |i, j| if same.contains(&(i, j)) || same.contains(&(j, i)) { 1.0 } else { 0.1 };
        copies(&sealed, 0.4, overlap).into_iter().map(|found| (found.copy, found.original)).collect()
    }

    #[test]
    fn a_later_seal_is_the_copy() {
        assert_eq!(found(&[(1, 50, 0), (2, 51, 0)], &[(0, 1)]), [(hotkey(2), hotkey(1))]);
        assert_eq!(found(&[(1, 51, 0), (2, 50, 0)], &[(0, 1)]), [(hotkey(1), hotkey(2))]);
        assert_eq!(found(&[(1, 50, 4), (2, 50, 3)], &[(0, 1)]), [(hotkey(1), hotkey(2))]);
        assert_eq!(found(&[(2, 50, 0), (1, 50, 0)], &[(0, 1)]), [(hotkey(2), hotkey(1))]);
    }

    #[test]
    fn payloads_that_differ_are_no_copies() {
        assert_eq!(found(&[(1, 50, 0), (2, 51, 0), (3, 52, 0)], &[]), []);
    }

    #[test]
    fn a_copy_of_a_copy_is_a_copy_of_the_first() {
        let seals = [(3, 53, 0), (1, 51, 0), (2, 52, 0)];
        let (first, second, third) = (hotkey(1), hotkey(2), hotkey(3));
        assert_eq!(found(&seals, &[(0, 1), (1, 2), (0, 2)]), [(second, first), (third, first)]);
        assert_eq!(found(&seals, &[(1, 2), (0, 2)]), [(second, first), (third, second)]);
    }

    fn of_four(overlap: impl FnMut(usize, usize) -> f64) -> Vec<CopyFound> {
        let sealed = [1, 2, 3, 4].map(|key| Sealed { hotkey: hotkey(key), block: Block(50), index: u32::from(key) });
        copies(&sealed, 0.4, overlap)
    }

    #[test]
    fn only_more_than_the_limit_beyond_the_usual_is_a_copy() {
        assert_eq!(of_four(|_, _| f64::NAN), [], "what was not measured proves nothing");
        let of_first_two = |usual, agreement| of_four(move |i, j| if i + j == 1 { agreement } else { usual });
        assert_eq!(of_first_two(0.0, 0.4), []);
        let found = CopyFound { copy: hotkey(2), original: hotkey(1), overlap: 0.41 };
        assert_eq!(of_first_two(0.0, 0.41), [found]);
        // As in the first round of the default run: what peers share there accuses nobody.
        assert_eq!(of_first_two(0.36, 0.45), []);
        assert_eq!(of_first_two(0.36, 0.6), []);
        assert_eq!(of_first_two(0.36, 0.63).len(), 1);
    }

    #[test]
    fn what_is_usual_is_said_by_the_honest_where_they_are_more() {
        let sealed: Vec<Sealed> =
            (0..15).map(|key| Sealed { hotkey: hotkey(key), block: Block(50), index: u32::from(key) }).collect();
        // Ten are honest and agree a little or much; the others agree with nobody, or are five times the same.
        for (honest, others) in [(0.1, 0.0), (0.45, 0.0), (0.1, 1.0)] {
            let is_honest = |idx: usize| !idx.is_multiple_of(3);
            let overlap = |i: usize, j: usize| match (is_honest(i), is_honest(j)) {
                (true, true) => honest,
                (false, false) => others,
                _ => 0.02,
            };
            let found: Vec<Hotkey> = copies(&sealed, 0.4, overlap).iter().map(|found| found.copy).collect();
            let expected: &[u8] = if others > 0.0 { &[3, 6, 9, 12] } else { &[] };
            assert_eq!(found, expected.iter().map(|key| hotkey(*key)).collect::<Vec<_>>(), "{honest} {others}");
        }
    }

    #[test]
    fn full_copies_are_found_however_many_there_are() {
        assert_eq!(of_four(|_, _| 1.0).len(), 3);
        let two = [1, 2].map(|key| Sealed { hotkey: hotkey(key), block: Block(50), index: u32::from(key) });
        assert_eq!(copies(&two, 0.4, |_, _| 0.45), [], "two have nobody to be compared with");
        assert_eq!(copies(&two, 0.4, |_, _| 0.71).len(), 1);
    }

    proptest! {
        #[test]
        fn whoever_sealed_first_of_those_that_overlap_is_never_a_copy(
            blocks in proptest::collection::vec(0_u64..9, 1..10), pairs in proptest::collection::vec((0_usize..10, 0_usize..10), 0..12),
        ) {
            let seals: Vec<_> = (0..).zip(&blocks).map(|(key, &block)| (key, block, 0)).collect();
            let copies: BTreeSet<_> = found(&seals, &pairs).into_iter().map(|(copy, _)| copy).collect();
            for (place, seal) in seals.iter().enumerate() {
                let overlaps_an_earlier = pairs.iter().any(|&(i, j)| {
                    let other = if i == place { j } else if j == place { i } else { return false };
                    other != place && other < seals.len() && (seals[other].1, other) < (seal.1, place)
                });
                prop_assert_eq!(copies.contains(&hotkey(seal.0)), overlaps_an_earlier);
            }
        }
    }
}
