//! Who contributes to the outer step, and who is evaluated.
//!
//! Contributors are chosen by rating, since payloads of this round are evaluated only after it was applied: history is
//! all there is. Some places are for newcomers, who would otherwise never come in against rated peers while the run has
//! more peers than places. (The reference run filled its list from evaluations alone; there a newcomer waits until it
//! was evaluated often enough.) A validator proposes by its own records; the others endorse a proposal whose entries
//! passed their own checks, so records need not agree, and which is not plainly unfair ([`is_fair`]).
//!
//! Evaluations are drawn with a chance that grows with the time since a peer's last one, as in the reference run's code:
//! in turns, a peer would know when nobody looks.

use super::history::HARMS_MAX;
use super::record::{PeerRecord, Standing};
use crate::assignment::Draw;
use crate::run_spec::GauntletSpec;
use crate::terms::{BlockHash, Hotkey, Round, Uid};

const CONTRIBUTORS: &str = "convoke 2026-11 contributors v1";
const EVALUATED: &str = "convoke 2026-11 evaluated peers v1";

/// Longest wait, in rounds, that still raises the chance of an evaluation; keeps sums of waits small.
const WAIT_MAX: u64 = 1 << 20;

/// The peers of `passed` whose payloads the manifest of `round` should apply, uids ascending.
///
/// At most `contributors_max`: `newcomer_places` go to newcomers, drawn by `seed`, the others to the highest ordinals
/// (ties by the same draw); places that one group leaves go to the other. Excluded peers and those whose latest
/// evaluations all did harm are not chosen.
#[must_use]
pub fn contributors(
    passed: &[(Uid, Hotkey)],
    standing: &Standing,
    round: Round,
    seed: &BlockHash,
    spec: &GauntletSpec,
) -> Vec<(Uid, Hotkey)> {
    let mut drawn: Vec<(Uid, Hotkey)> = passed
        .iter()
        .copied()
        .filter(|(_, hotkey)| standing.get(hotkey).is_none_or(|record| may_contribute(record, round)))
        .collect();
    drawn.sort_unstable();
    Draw::new(CONTRIBUTORS, &[&seed.0]).shuffle(&mut drawn);

    let is_newcomer = |(_, hotkey): &(Uid, Hotkey)| standing.get(hotkey).is_none_or(PeerRecord::is_newcomer);
    let (newcomers, mut rated): (Vec<_>, Vec<_>) = drawn.into_iter().partition(is_newcomer);
    let ordinal = |(_, hotkey): &(Uid, Hotkey)| standing[hotkey].rating.ordinal();
    rated.sort_by(|a, b| ordinal(b).total_cmp(&ordinal(a)));

    let kept = spec.newcomer_places.min(newcomers.len());
    let n_rated = rated.len().min(spec.contributors_max.saturating_sub(kept));
    let n_newcomers = newcomers.len().min(spec.contributors_max - n_rated);
    let mut chosen = [&rated[..n_rated], &newcomers[..n_newcomers]].concat();
    chosen.sort_unstable();
    chosen
}

/// The peers of `candidates` that the validator `own` evaluates in `round`, in the order of evaluation.
///
/// At most `evaluations_max`, never `own`, nobody excluded. `seed` is the hash of a block after the round's last seal,
/// so no peer knows when it seals whether it will be evaluated. A peer's chance grows with the rounds since its last
/// evaluation; one never evaluated stands with the longest waiting.
#[must_use]
pub fn evaluated(
    candidates: &[Hotkey],
    own: &Hotkey,
    standing: &Standing,
    round: Round,
    seed: &BlockHash,
    spec: &GauntletSpec,
) -> Vec<Hotkey> {
    let wait = |hotkey: &Hotkey| {
        let last = standing.get(hotkey).and_then(|record| record.last_evaluated);
        last.map(|last| round.0.saturating_sub(last.0).clamp(1, WAIT_MAX))
    };
    let mut peers: Vec<Hotkey> = candidates
        .iter()
        .copied()
        .filter(|hotkey| hotkey != own && !standing.get(hotkey).is_some_and(|record| record.is_excluded(round)))
        .collect();
    peers.sort_unstable();
    peers.dedup();
    let longest = peers.iter().filter_map(wait).max().unwrap_or(1);
    let mut waiting: Vec<(Hotkey, u64)> =
        peers.into_iter().map(|peer| (peer, wait(&peer).unwrap_or(longest))).collect();

    let mut draw = Draw::new(EVALUATED, &[&seed.0, &own.0]);
    let mut chosen = Vec::new();
    while chosen.len() < spec.evaluations_max && !waiting.is_empty() {
        // Peers lie side by side on a line, each as long as its wait; the point that is drawn lies on one of them.
        let mut point = draw.below(waiting.iter().map(|(_, wait)| wait).sum());
        let place = waiting.iter().position(|&(_, wait)| {
            let here = point < wait;
            point = point.saturating_sub(wait);
            here
        });
        chosen.push(waiting.remove(place.expect("a point below the sum lies on one of them")).0);
    }
    chosen
}

/// Whether a proposal that names these peers is one to endorse, by what all validators think of them together.
///
/// Who proposes may be hostile, and its friends may have sent what passes every check. So it has to name a third as many as there are
/// places or as have passed, which leaves room for many who may not contribute; and among them nearly as many of those who earn on
/// chain as if it had drawn lots: whoever chooses by ratings names more, even where some places are kept for newcomers; of friends
/// fewer earn. `earns` is the chain's consensus, which a minority of the stake cannot move. One's own records would be no measure:
/// where each judges by another the votes split, and the round is lost.
///
/// Before as many earn as there are places, or as half of those that have passed, every proposal that is long enough is fair.
#[must_use]
pub fn is_fair(listed: &[Hotkey], passed: &[Hotkey], earns: impl Fn(&Hotkey) -> bool, spec: &GauntletSpec) -> bool {
    let n_earning = |peers: &[Hotkey]| peers.iter().filter(|hotkey| earns(hotkey)).count();
    let is_long_enough = 3 * listed.len() >= passed.len().min(spec.contributors_max);
    let do_weights_say = 2 * n_earning(passed) >= passed.len().min(2 * spec.contributors_max);
    let are_earners_named = 20 * passed.len() * n_earning(listed) >= 17 * listed.len() * n_earning(passed);
    is_long_enough && (!do_weights_say || are_earners_named)
}

fn may_contribute(record: &PeerRecord, round: Round) -> bool {
    !record.is_excluded(round) && record.harms_in_a_row < HARMS_MAX
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::gauntlet::fixture::{hotkey, spec};
    use crate::gauntlet::rating::Rating;

    const SEED: BlockHash = BlockHash([5; 32]);
    const NOW: Round = Round(100);

    fn peers(bytes: impl IntoIterator<Item = u8>) -> Vec<(Uid, Hotkey)> {
        bytes.into_iter().map(|byte| (Uid(u16::from(byte)), hotkey(byte))).collect()
    }

    fn rated(mu: f64) -> PeerRecord {
        PeerRecord { rating: Rating { mu, sigma: 1.0 }, evaluations: 5, ..PeerRecord::default() }
    }

    /// Peers 1, 2, … with falling ratings.
    fn standing(n_rated: u8) -> Standing {
        (1..=n_rated).map(|byte| (hotkey(byte), rated(100.0 - f64::from(byte)))).collect()
    }

    fn chosen(passed: &[(Uid, Hotkey)], standing: &Standing) -> BTreeSet<u16> {
        contributors(passed, standing, NOW, &SEED, &spec()).into_iter().map(|(uid, _)| uid.0).collect()
    }

    #[test]
    fn the_best_rated_contribute_and_some_newcomers() {
        let chosen = chosen(&peers(1..=50), &standing(30));
        assert_eq!(chosen.len(), 20);
        assert!((1..=16).all(|uid| chosen.contains(&uid)), "{chosen:?}");
        assert_eq!(chosen.iter().filter(|uid| **uid > 30).count(), 4);
    }

    #[test]
    fn places_that_one_group_leaves_go_to_the_other() {
        assert_eq!(chosen(&peers(1..=30), &standing(30)), (1..=20).collect(), "no newcomers");
        assert_eq!(chosen(&peers(1..=40), &standing(3)).len(), 20, "hardly anybody rated");
        assert!(chosen(&peers(1..=40), &standing(3)).is_superset(&(1..=3).collect()));
        assert_eq!(chosen(&peers(1..=31), &standing(30)).len(), 20, "one newcomer");
        assert_eq!(chosen(&peers(1..=5), &Standing::new()), (1..=5).collect());
        assert_eq!(chosen(&[], &standing(3)), BTreeSet::new());
    }

    #[test]
    fn the_excluded_and_the_harmful_do_not_contribute() {
        let mut standing = standing(3);
        standing.get_mut(&hotkey(1)).unwrap().excluded_until = Some(Round(101));
        standing.get_mut(&hotkey(2)).unwrap().harms_in_a_row = HARMS_MAX;
        assert_eq!(chosen(&peers(1..=3), &standing), [3].into());
        standing.get_mut(&hotkey(1)).unwrap().excluded_until = Some(NOW);
        standing.get_mut(&hotkey(2)).unwrap().harms_in_a_row = HARMS_MAX - 1;
        assert_eq!(chosen(&peers(1..=3), &standing), [1, 2, 3].into());
    }

    /// Whether a list is fair where forty have passed and these earn.
    fn is_fair_to_list(listed: impl IntoIterator<Item = u8>, earning: std::ops::RangeInclusive<u8>) -> bool {
        let listed: Vec<Hotkey> = listed.into_iter().map(hotkey).collect();
        let passed: Vec<Hotkey> = (1..=40).map(hotkey).collect();
        is_fair(&listed, &passed, |peer| earning.contains(&peer.0[0]), &spec())
    }

    #[test]
    fn a_fair_list_is_long_enough_and_names_who_earns() {
        // Lots would name ten of twenty who earn, and 0.85 of that are eight and a half.
        assert!(is_fair_to_list(12..=31, 1..=20) && !is_fair_to_list(13..=32, 1..=20));
        assert!(is_fair_to_list(1..=7, 1..=20) && !is_fair_to_list(1..=6, 1..=20));
        // Where everybody earns but the newcomers, for whom four places are kept.
        assert!(is_fair_to_list(21..=40, 1..=36));
    }

    #[test]
    fn where_hardly_anybody_earns_yet_every_long_list_is_fair() {
        #[expect(clippy::reversed_empty_ranges, reason = "nobody")]
        let nobody = 1..=0;
        assert!(is_fair_to_list(5..=24, nobody.clone()) && !is_fair_to_list(5..=10, nobody));
        assert!(is_fair_to_list(21..=40, 1..=19) && !is_fair_to_list(21..=40, 1..=20));
    }

    #[test]
    fn every_newcomer_has_its_chance() {
        let passed = peers(1..=40);
        let mut counts = BTreeMap::new();
        for byte in 0..=255 {
            for (uid, _) in contributors(&passed, &standing(30), NOW, &BlockHash([byte; 32]), &spec()) {
                *counts.entry(uid.0).or_insert(0) += 1;
            }
        }
        // 256 rounds, 4 places, 10 newcomers: 102 each on average.
        assert!((31..=40).all(|uid| (70..140).contains(&counts[&uid])), "{counts:?}");
    }

    fn evaluated_by(own: u8, n: u8, standing: &Standing, seed: u8) -> Vec<Hotkey> {
        let candidates: Vec<_> = (1..=n).map(hotkey).collect();
        let spec = GauntletSpec { evaluations_max: 5, ..spec() };
        evaluated(&candidates, &hotkey(own), standing, NOW, &BlockHash([seed; 32]), &spec)
    }

    #[test]
    fn a_validator_never_evaluates_itself_nor_the_excluded() {
        let mut standing = standing(8);
        standing.get_mut(&hotkey(2)).unwrap().excluded_until = Some(Round(101));
        for seed in 0..50 {
            let chosen = evaluated_by(1, 8, &standing, seed);
            assert_eq!(chosen.len(), 5);
            assert!(!chosen.contains(&hotkey(1)) && !chosen.contains(&hotkey(2)));
        }
    }

    #[test]
    fn all_are_evaluated_where_there_is_time_for_all() {
        let chosen: BTreeSet<_> = evaluated_by(9, 5, &Standing::new(), 1).into_iter().collect();
        assert_eq!(chosen, (1..=5).map(hotkey).collect());
        assert_eq!(evaluated_by(1, 1, &Standing::new(), 1), []);
    }

    #[test]
    fn who_waited_longer_is_evaluated_more_often() {
        let mut standing = standing(40);
        for byte in 1..=40 {
            let ago = if byte <= 20 { 1 } else { 10 };
            standing.get_mut(&hotkey(byte)).unwrap().last_evaluated = Some(Round(NOW.0 - ago));
        }
        let mut n_long = 0;
        for seed in 0..200 {
            n_long += evaluated_by(99, 40, &standing, seed).iter().filter(|peer| peer.0[0] > 20).count();
        }
        // Ten to one for each draw: about 910 of 1000.
        assert!((850..960).contains(&n_long), "{n_long}");
    }

    #[test]
    fn validators_and_blocks_draw_differently() {
        let standing = standing(40);
        assert_eq!(evaluated_by(98, 40, &standing, 1), evaluated_by(98, 40, &standing, 1));
        assert_ne!(evaluated_by(98, 40, &standing, 1), evaluated_by(99, 40, &standing, 1));
        assert_ne!(evaluated_by(98, 40, &standing, 1), evaluated_by(98, 40, &standing, 2));
    }

    proptest! {
        #[test]
        fn the_choice_is_bounded_sorted_and_independent_of_the_order(
            bytes in proptest::collection::btree_set(any::<u8>(), 0..60), n_rated: u8, seed: u8,
            contributors_max in 1_usize..31, newcomer_places in 0_usize..31, evaluations_max in 0_usize..40,
        ) {
            let spec = GauntletSpec { contributors_max, newcomer_places, evaluations_max, ..spec() };
            let (seed, standing) = (BlockHash([seed; 32]), standing(n_rated));
            let mut passed = peers(bytes);
            let chosen = contributors(&passed, &standing, NOW, &seed, &spec);
            prop_assert_eq!(chosen.len(), passed.len().min(contributors_max));
            prop_assert!(chosen.windows(2).all(|pair| pair[0].0 < pair[1].0));
            let candidates = |passed: &[(Uid, Hotkey)]| passed.iter().map(|peer| peer.1).collect::<Vec<_>>();
            let first = evaluated(&candidates(&passed), &hotkey(0), &standing, NOW, &seed, &spec);
            prop_assert!(first.len() <= evaluations_max);
            prop_assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), first.len());
            passed.reverse();
            prop_assert_eq!(contributors(&passed, &standing, NOW, &seed, &spec), chosen);
            prop_assert_eq!(evaluated(&candidates(&passed), &hotkey(0), &standing, NOW, &seed, &spec), first);
        }
    }
}
