//! From a peer's record to its weight on chain: final score → rank → share → weight.
//!
//! Shares follow the *rank* of the final scores, (1/rank)^exponent, and not the scores: an ordinal says who is better,
//! not how much. The paper raises scores to a power, the reference run's later code pays a linear ramp of 2 : 1 over its
//! top 20, against which splitting one machine over many uids pays well. With an exponent of 2 or more:
//!
//! - a machine as strong as the strongest other, split into uids that each rank below the others, earns less in sum,
//!   into however many: Σ_{r>m} r⁻² is smaller than what it had among m equals;
//! - even if its uids still beat everybody, they earn at most Σ_{r≤n} r^−exponent times as much (1.65 times at 2,
//!   1.08 times at 4), while each must train on samples of its own, and pay for a slot.
//!
//! Rank alone does not guard the lowest ranks, where another uid at the end always adds a little. There the other rules
//! work: copies are excluded, and a score needs honesty on samples of its own.
//!
//! G-1: rests on the records and on which hotkeys are registered at the block of submission.

use std::collections::{BTreeMap, BTreeSet};

use super::record::{PeerRecord, Standing};
use crate::run_spec::GauntletSpec;
use crate::terms::{Hotkey, Round, Uid, Weight};

/// max(0, ordinal) × max(0, honesty); 0 once the average of honesty has warmed up and lies below its floor.
///
/// Honesty starts at 0 and so grows with every honest evaluation: a newcomer ranks below a peer of the same rating that
/// has shown for long that it uses its data. The reference run's code also multiplies by a synchronisation score; here
/// a peer off the agreed parameters fails the fast checks.
#[must_use]
pub fn final_score(record: &PeerRecord, spec: &GauntletSpec) -> f64 {
    let warm = record.evaluations >= spec.honesty_warmup;
    if warm && record.honesty < spec.honesty_floor {
        return 0.0;
    }
    record.rating.ordinal().max(0.0) * record.honesty.max(0.0)
}

/// The scores that earn in `round`: of registered peers that are not excluded.
#[must_use]
pub fn earning(standing: &Standing, registered: &BTreeSet<Hotkey>, round: Round) -> Vec<(Hotkey, f64)> {
    standing
        .iter()
        .filter(|(hotkey, record)| registered.contains(*hotkey) && !record.is_excluded(round))
        .map(|(hotkey, record)| (*hotkey, record.score))
        .collect()
}

/// Who gets which share of the weight, largest first (ties by hotkey); the shares sum to 1.
///
/// Peers with a positive score share 1 − `burn_share` in proportion to (1/rank)^`weight_exponent`; equal scores get the
/// mean of their places, so that no choice of hotkey breaks a tie. The burn hotkey gets `burn_share`, or all if nobody
/// earns. `burn` is `None` where the burn uid has no hotkey: its share then goes to the peers, and nothing is returned
/// if there is nobody at all.
#[must_use]
pub fn shares(scores: &[(Hotkey, f64)], burn: Option<Hotkey>, spec: &GauntletSpec) -> Vec<(Hotkey, f64)> {
    let mut ranked: Vec<(Hotkey, f64)> =
        scores.iter().copied().filter(|(_, score)| score.is_finite() && *score > 0.0).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));

    let mut shares: BTreeMap<Hotkey, f64> = BTreeMap::new();
    let earners_share = if burn.is_some() { 1.0 - spec.burn_share } else { 1.0 };
    let mut by_place = Vec::with_capacity(ranked.len());
    let mut rank = 1.0;
    for tied in ranked.chunk_by(|a, b| a.1 == b.1) {
        let places = (0..tied.len()).map(|place| (rank + place as f64).powf(-spec.weight_exponent));
        let mean = places.sum::<f64>() / tied.len() as f64;
        by_place.extend(std::iter::repeat_n(mean, tied.len()));
        rank += tied.len() as f64;
    }
    let total: f64 = by_place.iter().sum();
    for ((hotkey, _), place) in ranked.iter().zip(&by_place) {
        *shares.entry(*hotkey).or_default() += earners_share * place / total;
    }
    if let Some(burn) = burn {
        *shares.entry(burn).or_default() += if ranked.is_empty() { 1.0 } else { spec.burn_share };
    }
    let mut shares: Vec<(Hotkey, f64)> = shares.into_iter().filter(|(_, share)| *share > 0.0).collect();
    shares.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    shares
}

/// Shares as the chain takes them: the largest is 65535, the others in proportion, rounded to nearest; uids ascending.
///
/// What rounds to 0, or is no positive number, is left out.
#[must_use]
pub fn to_u16(shares: &[(Uid, f64)]) -> Vec<(Uid, Weight)> {
    let mut by_uid: BTreeMap<Uid, f64> = BTreeMap::new();
    for &(uid, share) in shares.iter().filter(|(_, share)| share.is_finite() && *share > 0.0) {
        *by_uid.entry(uid).or_default() += share;
    }
    let largest = by_uid.values().copied().fold(0.0, f64::max);
    let weight = |share: f64| {
        // In 0..=65535 by construction, so the cast loses nothing but the fraction that was rounded away.
        let scaled = (share / largest * f64::from(u16::MAX)).round() as u16;
        (scaled > 0).then_some(Weight(scaled))
    };
    by_uid.into_iter().filter_map(|(uid, share)| Some((uid, weight(share)?))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gauntlet::fixture::{hotkey, spec};
    use crate::gauntlet::rating::Rating;

    fn exponent(weight_exponent: f64) -> GauntletSpec {
        GauntletSpec { weight_exponent, burn_share: 0.0, ..spec() }
    }

    fn scores(scores: &[f64]) -> Vec<(Hotkey, f64)> {
        (1..).map(hotkey).zip(scores.iter().copied()).collect()
    }

    fn share_of(shares: &[(Hotkey, f64)], byte: u8) -> f64 {
        shares.iter().find(|(peer, _)| *peer == hotkey(byte)).map_or(0.0, |(_, share)| *share)
    }

    fn record(ordinal: f64, honesty: f64, evaluations: u32) -> PeerRecord {
        PeerRecord { rating: Rating { mu: ordinal + 3.0, sigma: 1.0 }, honesty, evaluations, ..PeerRecord::default() }
    }

    #[test]
    fn a_final_score_needs_strength_and_honesty() {
        let score = |ordinal, honesty, evaluations| final_score(&record(ordinal, honesty, evaluations), &spec());
        assert_eq!(score(10.0, 0.5, 20), 5.0);
        assert_eq!(score(-1.0, 0.5, 20), 0.0);
        assert_eq!(score(10.0, -0.5, 5), 0.0);
        assert_eq!(score(10.0, 0.09, 10), 0.0, "below the floor once warmed up");
        assert!((score(10.0, 0.09, 9) - 0.9).abs() < 1e-12, "the floor waits for the warm-up");
    }

    #[test]
    fn shares_follow_the_rank_and_not_the_distance() {
        let shares = shares(&scores(&[0.1, 90.0, 0.2]), None, &exponent(2.0));
        let total = 1.0 + 1.0 / 4.0 + 1.0 / 9.0;
        assert_eq!(shares.iter().map(|(peer, _)| peer.0[0]).collect::<Vec<_>>(), [2, 3, 1]);
        for ((_, share), place) in shares.iter().zip([1.0, 1.0 / 4.0, 1.0 / 9.0]) {
            assert!((share - place / total).abs() < 1e-12);
        }
    }

    #[test]
    fn equal_scores_share_their_places() {
        let shares = shares(&scores(&[5.0, 7.0, 5.0, 1.0]), None, &exponent(1.0));
        let total = 1.0 + 1.0 / 2.0 + 1.0 / 3.0 + 1.0 / 4.0;
        for byte in [1, 3] {
            assert!((share_of(&shares, byte) - (1.0 / 2.0 + 1.0 / 3.0) / 2.0 / total).abs() < 1e-12);
        }
    }

    #[test]
    fn the_burn_uid_gets_its_share_and_all_if_nobody_earns() {
        let burn = hotkey(200);
        let of = |scores: &[(Hotkey, f64)], burn| shares(scores, burn, &spec());
        let with_earners = of(&scores(&[3.0, 2.0]), Some(burn));
        assert_eq!(share_of(&with_earners, 200), 0.5);
        assert_eq!(of(&scores(&[0.0, -1.0, f64::NAN]), Some(burn)), [(burn, 1.0)]);
        assert_eq!(of(&scores(&[0.0]), None), []);
        assert!((share_of(&of(&scores(&[3.0]), None), 1) - 1.0).abs() < 1e-12);
        let earns_too = of(&scores(&[3.0]), Some(hotkey(1)));
        assert!((share_of(&earns_too, 1) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn only_registered_peers_that_are_not_excluded_earn() {
        let mut standing: Standing =
            (1..=3).map(|byte| (hotkey(byte), PeerRecord { score: 1.0, ..PeerRecord::default() })).collect();
        standing.get_mut(&hotkey(1)).unwrap().excluded_until = Some(Round(9));
        let registered = BTreeSet::from([hotkey(1), hotkey(2)]);
        assert_eq!(earning(&standing, &registered, Round(8)), [(hotkey(2), 1.0)]);
        assert_eq!(earning(&standing, &registered, Round(9)), [(hotkey(1), 1.0), (hotkey(2), 1.0)]);
    }

    #[test]
    fn weights_are_relative_to_the_largest_and_zeros_are_dropped() {
        let shares = [(Uid(9), 0.25), (Uid(3), 0.5), (Uid(4), 1e-9), (Uid(5), 0.0), (Uid(6), f64::NAN), (Uid(7), -1.0)];
        assert_eq!(to_u16(&shares), [(Uid(3), Weight(65_535)), (Uid(9), Weight(32_768))]);
        assert_eq!(to_u16(&[]), []);
        assert_eq!(to_u16(&[(Uid(1), 0.0)]), []);
    }

    proptest! {
        #[test]
        fn shares_sum_to_one_and_a_better_score_never_earns_less(
            list in proptest::collection::vec(prop_oneof![0.0_f64..9.0, (0_u8..4).prop_map(f64::from)], 1..60),
            weight_exponent in 0.0_f64..6.0, burn_share in 0.0_f64..1.0,
        ) {
            let spec = GauntletSpec { weight_exponent, burn_share, ..spec() };
            let scores = scores(&list);
            let shares = shares(&scores, Some(hotkey(200)), &spec);
            prop_assert!((shares.iter().map(|(_, share)| share).sum::<f64>() - 1.0).abs() < 1e-9);
            for (a, score_a) in &scores {
                for (b, score_b) in &scores {
                    let (share_a, share_b) = (share_of(&shares, a.0[0]), share_of(&shares, b.0[0]));
                    if score_a > score_b {
                        prop_assert!(share_a >= share_b - 1e-15);
                    } else if score_a == score_b {
                        prop_assert_eq!(share_a, share_b);
                    }
                }
            }
        }

        #[test]
        fn a_machine_that_splits_and_falls_behind_its_equals_earns_no_more(
            n_others in 1_u8..40, n_split in 2_u8..60, lead in 0.0_f64..1.0, weight_exponent in 2.0_f64..5.0,
        ) {
            let spec = exponent(weight_exponent);
            let others: Vec<_> = (0..n_others).map(|byte| (hotkey(100 + byte), 1.0)).collect();
            let whole = shares(&[others.clone(), vec![(hotkey(1), 1.0 + lead)]].concat(), None, &spec);
            let uids: Vec<_> = (1..=n_split).map(|byte| (hotkey(byte), 1.0 / f64::from(n_split))).collect();
            let split = shares(&[others, uids].concat(), None, &spec);
            let earned: f64 = (1..=n_split).map(|byte| share_of(&split, byte)).sum();
            prop_assert!(earned <= share_of(&whole, 1) + 1e-12);
        }

        #[test]
        fn a_split_machine_that_still_beats_everybody_earns_little_more(
            n_others in 0_u8..40, n_split in 2_u8..60, weight_exponent in 2.0_f64..5.0,
        ) {
            let spec = exponent(weight_exponent);
            let others: Vec<_> = (0..n_others).map(|byte| (hotkey(100 + byte), 0.1)).collect();
            let whole = shares(&[others.clone(), vec![(hotkey(1), 1.0)]].concat(), None, &spec);
            let uids: Vec<_> = (1..=n_split).map(|byte| (hotkey(byte), 0.5)).collect();
            let split = shares(&[others, uids].concat(), None, &spec);
            let earned: f64 = (1..=n_split).map(|byte| share_of(&split, byte)).sum();
            let bound: f64 = (1..=n_split).map(|rank| f64::from(rank).powf(-weight_exponent)).sum();
            prop_assert!(earned <= share_of(&whole, 1) * bound + 1e-12);
            prop_assert!(bound < 1.645);
        }

        #[test]
        fn weights_keep_the_order_of_shares(shares in proptest::collection::vec(1e-6_f64..1.0, 1..60)) {
            let listed: Vec<_> = (0..).map(Uid).zip(shares.iter().copied()).collect();
            let weights: BTreeMap<_, _> = to_u16(&listed).into_iter().collect();
            prop_assert_eq!(weights.values().max(), Some(&Weight(u16::MAX)));
            let of = |uid: Uid| weights.get(&uid).copied().unwrap_or_default();
            for &(a, share_a) in &listed {
                for &(b, share_b) in &listed {
                    prop_assert!(share_a <= share_b || of(a) >= of(b));
                }
            }
        }
    }
}
