//! How a round's outcomes change the records: the rules of rating, honesty, decay, exclusion and forgiveness.
//!
//! The reference run's code has a dozen slashing rules with their own constants, some of which cancel out. These are
//! the few that each answer a threat, as functions of the history of outcomes, so that another validator with the same
//! outcomes has the same records (G-1):
//!
//! | rule | why |
//! |---|---|
//! | scored, absent and rejected peers play one match, the latter two lose to all | staying away is never better than taking part |
//! | no match where nobody was scored; `Missing` is excused where nobody passed | an outage of the validator says nothing about peers |
//! | honesty ← (1 − d)·honesty + d·(±1) | one evaluation is noise, a tendency is not |
//! | a failed round multiplies the score by `failure_decay`; the third in a row sets it to 0 | who left stops earning soon; one crash costs little (R-3) |
//! | if that third failure is a rejection, exclusion | invalid payloads cost everybody a download; absence costs nobody |
//! | a proven copy, or replay: reset and exclusion at once | it is evident from bytes and seals, and honest work cannot look like it |
//! | three harmful evaluations in a row: not chosen for manifests, still evaluated | limits harm to θ, and one helpful evaluation lifts it |
//! | a harmful evaluation counts only if somebody's helped | a bad stretch of training is not a peer's fault |
//! | excluded peers' outcomes are ignored; at the end of the exclusion the failures are forgotten | a second chance, from a score of 0 |
//! | who was never seen, or is long gone, does not lose matches | idle registrations must not feed others' ratings |

use std::collections::{BTreeMap, BTreeSet};

use super::fast_checks::RejectReason;
use super::loss_score::Score;
use super::rating;
use super::record::{Outcome, PeerRecord, Standing};
use super::weights;
use crate::run_spec::GauntletSpec;
use crate::terms::{Hotkey, Round};

/// Failures in a row that end a peer's earnings.
pub const FAILURES_MAX: u32 = 3;
/// Harmful evaluations in a row after which a peer is not chosen for manifests.
pub const HARMS_MAX: u32 = 3;
/// A score below this is 0: decay ends.
const SCORE_MIN: f64 = 1e-4;

/// The records after `round`, of which `results` holds one outcome a peer (the first, if there are more).
///
/// `Absent` is to be given for each peer that has a record and sealed nothing. The order of `results` changes nothing.
#[must_use]
pub fn after_match(standing: &Standing, round: Round, results: &[(Hotkey, Outcome)], spec: &GauntletSpec) -> Standing {
    let mut next = forgiven(standing, round);
    let outcomes = counted(&next, round, results);
    play(&mut next, &outcomes, spec);
    let helped = outcomes.values().any(|outcome| matches!(outcome, Outcome::Scored(score) if score.improvement > 0.0));
    for (hotkey, outcome) in outcomes {
        let record = next.entry(hotkey).or_default();
        match outcome {
            Outcome::Scored(score) => scored(record, round, score, helped, spec),
            Outcome::Passed => seen(record, round),
            Outcome::Rejected(RejectReason::Copy { .. } | RejectReason::Replay) => {
                *record = PeerRecord { excluded_until: exclusion(round, spec), ..PeerRecord::default() };
            }
            Outcome::Absent => failed(record, spec),
            Outcome::Rejected(_) => {
                failed(record, spec);
                if record.failures_in_a_row >= FAILURES_MAX {
                    record.excluded_until = exclusion(round, spec);
                }
            }
        }
    }
    next
}

/// Drops the records of hotkeys that are no longer registered, so that records are as bounded as the subnet is.
///
/// An exclusion is kept to its end, or leaving and coming back would lift it.
#[must_use]
pub fn registered_only(standing: &Standing, registered: &BTreeSet<Hotkey>, round: Round) -> Standing {
    let stays = |hotkey: &Hotkey, record: &PeerRecord| registered.contains(hotkey) || record.is_excluded(round);
    standing
        .iter()
        .filter(|(hotkey, record)| stays(hotkey, record))
        .map(|(hotkey, record)| (*hotkey, record.clone()))
        .collect()
}

/// The records with every exclusion that ends by `round` lifted and its failures forgotten.
fn forgiven(standing: &Standing, round: Round) -> Standing {
    let mut next = standing.clone();
    for record in next.values_mut() {
        if record.excluded_until.is_some_and(|until| round >= until) {
            record.excluded_until = None;
            record.failures_in_a_row = 0;
            record.harms_in_a_row = 0;
        }
    }
    next
}

/// The outcomes that count, one a peer.
fn counted(standing: &Standing, round: Round, results: &[(Hotkey, Outcome)]) -> BTreeMap<Hotkey, Outcome> {
    let passed = results.iter().any(|(_, outcome)| matches!(outcome, Outcome::Scored(_) | Outcome::Passed));
    let counts = |hotkey: &Hotkey, outcome: &Outcome| {
        let record = standing.get(hotkey);
        let excluded = record.is_some_and(|record| record.is_excluded(round));
        let gone = record.is_none_or(|record| record.failures_in_a_row >= FAILURES_MAX);
        match outcome {
            _ if excluded => false,
            Outcome::Absent => !gone,
            Outcome::Rejected(RejectReason::Missing) => passed,
            _ => true,
        }
    };
    let mut outcomes = BTreeMap::new();
    for (hotkey, outcome) in results {
        if counts(hotkey, outcome) {
            outcomes.entry(*hotkey).or_insert_with(|| outcome.clone());
        }
    }
    outcomes
}

/// The round's match: updates the ratings of all who were scored or failed, if anybody was scored.
fn play(standing: &mut Standing, outcomes: &BTreeMap<Hotkey, Outcome>, spec: &GauntletSpec) {
    if !outcomes.values().any(|outcome| matches!(outcome, Outcome::Scored(_))) {
        return;
    }
    let score = |outcome: &Outcome| match outcome {
        Outcome::Scored(score) => Some(score.improvement),
        Outcome::Absent | Outcome::Rejected(_) => Some(f64::NEG_INFINITY),
        Outcome::Passed => None,
    };
    let playing: Vec<(Hotkey, f64)> =
        outcomes.iter().filter_map(|(hotkey, outcome)| Some((*hotkey, score(outcome)?))).collect();
    let players: Vec<_> =
        playing.iter().map(|&(hotkey, score)| (standing.entry(hotkey).or_default().rating, score)).collect();
    for ((hotkey, _), rating) in playing.iter().zip(rating::rate(&players, spec.rating_beta, spec.rating_tau)) {
        standing.entry(*hotkey).or_default().rating = rating;
    }
}

fn scored(record: &mut PeerRecord, round: Round, score: Score, helped: bool, spec: &GauntletSpec) {
    seen(record, round);
    record.honesty += spec.honesty_decay * (score.honesty() - record.honesty);
    record.evaluations = record.evaluations.saturating_add(1);
    record.last_evaluated = Some(round);
    record.last_score = Some(score);
    if score.improvement > 0.0 {
        record.harms_in_a_row = 0;
    } else if helped {
        record.harms_in_a_row = record.harms_in_a_row.saturating_add(1);
    }
    record.score = weights::final_score(record, spec);
}

fn seen(record: &mut PeerRecord, round: Round) {
    record.last_seen = Some(round);
    record.failures_in_a_row = 0;
}

fn failed(record: &mut PeerRecord, spec: &GauntletSpec) {
    record.failures_in_a_row = record.failures_in_a_row.saturating_add(1);
    record.score *= spec.failure_decay;
    if record.score < SCORE_MIN || record.failures_in_a_row >= FAILURES_MAX {
        record.score = 0.0;
    }
}

/// The exclusion that begins with the round after `round`.
fn exclusion(round: Round, spec: &GauntletSpec) -> Option<Round> {
    Some(Round(round.0.saturating_add(1).saturating_add(spec.exclusion_rounds)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gauntlet::fixture::{hotkey, spec};
    use crate::gauntlet::rating::Rating;

    fn score(improvement: f64) -> Outcome {
        Outcome::Scored(Score { improvement, own_improvement: improvement.abs() * 2.0, honest: true })
    }

    fn malformed() -> Outcome {
        Outcome::Rejected(RejectReason::Malformed("cut-off".into()))
    }

    fn copy() -> Outcome {
        Outcome::Rejected(RejectReason::Copy { original: hotkey(1) })
    }

    /// Plays rounds from 0 on; each lists the outcomes of peers 1, 2, ….
    fn after_rounds(rounds: &[&[Outcome]]) -> Standing {
        let mut standing = Standing::new();
        for (round, outcomes) in rounds.iter().enumerate() {
            standing = after_match(&standing, Round(round as u64), &numbered(outcomes), &spec());
        }
        standing
    }

    fn numbered(outcomes: &[Outcome]) -> Vec<(Hotkey, Outcome)> {
        (1..).map(hotkey).zip(outcomes.iter().cloned()).collect()
    }

    /// Twenty rounds in which peer 1 beats peer 2 beats peer 3.
    fn seasoned() -> Standing {
        let round = [score(0.03), score(0.02), score(0.01)];
        after_rounds(&[round.as_slice(); 20])
    }

    #[test]
    fn the_better_contribution_earns_the_better_rating_and_score() {
        let standing = seasoned();
        let of = |byte| &standing[&hotkey(byte)];
        assert!(of(1).rating.ordinal() > of(2).rating.ordinal());
        assert!(of(2).rating.ordinal() > of(3).rating.ordinal());
        assert!(of(1).score > of(2).score && of(2).score > 0.0);
        assert_eq!((of(1).evaluations, of(1).last_evaluated, of(1).last_seen), (20, Some(Round(19)), Some(Round(19))));
    }

    #[test]
    fn absent_and_rejected_peers_lose_to_the_worst_score() {
        let before = seasoned();
        for outcome in [Outcome::Absent, malformed()] {
            let after = after_match(
                &before,
                Round(20),
                &numbered(&[score(0.01), Outcome::Scored(Score::WORST), outcome]),
                &spec(),
            );
            let change = |byte| after[&hotkey(byte)].rating.mu - before[&hotkey(byte)].rating.mu;
            assert!(change(3) < 0.0 && change(2) > change(3) && change(1) > 0.0);
        }
    }

    #[test]
    fn honesty_is_a_running_average() {
        let liar = Outcome::Scored(Score { improvement: 0.01, own_improvement: 0.0, honest: false });
        let standing = after_rounds(&[&[score(0.01), liar.clone()], &[score(0.01), liar]]);
        assert!((standing[&hotkey(1)].honesty - (0.05 + 0.95 * 0.05)).abs() < 1e-12);
        assert!((standing[&hotkey(2)].honesty + 0.0975).abs() < 1e-12);
        assert_eq!(standing[&hotkey(2)].score, 0.0, "who does not use its assigned data earns nothing");
    }

    #[test]
    fn a_failed_round_costs_a_quarter_and_the_third_in_a_row_everything() {
        let before = seasoned();
        let full = before[&hotkey(1)].score;
        let mut standing = before;
        for (round, left) in [(20, 0.75), (21, 0.75 * 0.75), (22, 0.0)] {
            standing = after_match(
                &standing,
                Round(round),
                &[(hotkey(1), Outcome::Absent), (hotkey(2), score(0.01))],
                &spec(),
            );
            assert!((standing[&hotkey(1)].score - full * left).abs() < 1e-12);
        }
        assert!(!standing[&hotkey(1)].is_excluded(Round(23)), "absence costs nobody anything");
    }

    #[test]
    fn a_round_that_passes_ends_the_row_of_failures() {
        let mut standing = seasoned();
        for round in 20..40 {
            let outcome = if round % 3 == 2 { Outcome::Passed } else { malformed() };
            standing = after_match(&standing, Round(round), &[(hotkey(1), outcome), (hotkey(2), score(0.01))], &spec());
            assert!(!standing[&hotkey(1)].is_excluded(Round(round + 1)));
        }
    }

    #[test]
    fn the_third_rejection_in_a_row_excludes_and_the_exclusion_ends() {
        let mut standing = seasoned();
        for round in 20..23 {
            standing =
                after_match(&standing, Round(round), &[(hotkey(1), malformed()), (hotkey(2), score(0.01))], &spec());
        }
        let excluded = standing[&hotkey(1)].clone();
        assert_eq!((excluded.excluded_until, excluded.score), (Some(Round(43)), 0.0));

        let ignored = after_match(&standing, Round(42), &[(hotkey(1), score(9.0)), (hotkey(2), score(0.01))], &spec());
        assert_eq!(ignored[&hotkey(1)], excluded, "outcomes of an excluded peer change nothing");

        let back = after_match(&standing, Round(43), &[(hotkey(1), score(0.02)), (hotkey(2), score(0.01))], &spec());
        let record = &back[&hotkey(1)];
        assert_eq!((record.excluded_until, record.failures_in_a_row), (None, 0));
        assert!(record.score > 0.0, "it earns again");
        let failed = after_match(&standing, Round(43), &[(hotkey(1), malformed()), (hotkey(2), score(0.01))], &spec());
        assert!(!failed[&hotkey(1)].is_excluded(Round(44)), "its failures were forgotten");
    }

    #[test]
    fn a_proven_copy_or_replay_loses_all_at_once() {
        for outcome in [copy(), Outcome::Rejected(RejectReason::Replay)] {
            let standing = after_match(&seasoned(), Round(20), &numbered(&[outcome, score(0.01)]), &spec());
            let wanted = PeerRecord { excluded_until: Some(Round(41)), ..PeerRecord::default() };
            assert_eq!(standing[&hotkey(1)], wanted);
        }
    }

    #[test]
    fn an_outage_of_the_validator_changes_no_peer() {
        let missing = Outcome::Rejected(RejectReason::Missing);
        let before = seasoned();
        let after =
            after_match(&before, Round(20), &numbered(&[missing.clone(), missing.clone(), missing.clone()]), &spec());
        assert_eq!(after, before);
        let after = after_match(&before, Round(20), &numbered(&[missing, score(0.01), score(0.02)]), &spec());
        assert_eq!(after[&hotkey(1)].failures_in_a_row, 1, "it is the peer's where others delivered");
    }

    #[test]
    fn miners_that_all_leave_stop_earning() {
        let mut standing = seasoned();
        for round in 20..23 {
            standing = after_match(
                &standing,
                Round(round),
                &numbered(&[Outcome::Absent, Outcome::Absent, Outcome::Absent]),
                &spec(),
            );
        }
        assert!(standing.values().all(|record| record.score == 0.0));
        assert_eq!(standing[&hotkey(1)].rating, seasoned()[&hotkey(1)].rating, "nobody won, so nobody lost");
    }

    #[test]
    fn idle_registrations_feed_nobody() {
        let idle: Vec<_> = (10..60).map(|byte| (hotkey(byte), Outcome::Absent)).collect();
        let with_idle = |standing: &Standing, round| {
            let results = [numbered(&[score(0.02), score(0.01)]), idle.clone()].concat();
            after_match(standing, Round(round), &results, &spec())
        };
        assert_eq!(with_idle(&Standing::new(), 0), after_rounds(&[&[score(0.02), score(0.01)]]));

        // Somebody who was seen once loses three matches, and no more.
        let mut standing = after_rounds(&[&[score(0.02), score(0.01), score(0.03)]]);
        for round in 1..10 {
            let left = standing[&hotkey(3)].rating;
            standing =
                after_match(&standing, Round(round), &numbered(&[score(0.02), score(0.01), Outcome::Absent]), &spec());
            assert_eq!(standing[&hotkey(3)].rating == left, round > 3, "round {round}");
        }
    }

    #[test]
    fn harm_counts_only_where_somebody_helped() {
        let bad = [score(-0.01), score(-0.02)];
        assert_eq!(after_rounds(&[&bad, &bad])[&hotkey(2)].harms_in_a_row, 0);
        let mixed = [score(0.01), score(-0.02)];
        assert_eq!(after_rounds(&[&mixed, &mixed, &bad, &mixed])[&hotkey(2)].harms_in_a_row, 3);
        assert_eq!(after_rounds(&[&mixed, &mixed, &[score(0.01), score(0.02)]])[&hotkey(2)].harms_in_a_row, 0);
    }

    #[test]
    fn leaving_forgets_a_record_but_no_exclusion() {
        let standing = after_match(&seasoned(), Round(20), &numbered(&[copy(), score(0.01)]), &spec());
        let registered = BTreeSet::from([hotkey(2)]);
        let keys = |round| registered_only(&standing, &registered, Round(round)).into_keys().collect::<Vec<_>>();
        assert_eq!(keys(21), [hotkey(1), hotkey(2)]);
        assert_eq!(keys(41), [hotkey(2)]);
    }

    #[test]
    fn records_survive_their_text() {
        let standing =
            after_match(&seasoned(), Round(20), &numbered(&[copy(), Outcome::Scored(Score::WORST)]), &spec());
        let text = serde_json::to_string(&standing).unwrap();
        assert_eq!(serde_json::from_str::<Standing>(&text).unwrap(), standing);
    }

    fn outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            4 => (-1.0_f64..1.0).prop_map(score),
            1 => Just(Outcome::Passed),
            1 => Just(Outcome::Absent),
            1 => Just(malformed()),
            1 => Just(copy()),
            1 => Just(Outcome::Rejected(RejectReason::Missing)),
            1 => Just(Outcome::Scored(Score::WORST)),
        ]
    }

    proptest! {
        #[test]
        fn the_order_of_results_changes_nothing_and_records_stay_numbers(
            rounds in proptest::collection::vec(proptest::collection::vec(outcome(), 0..8), 0..30), turn in 0_usize..8,
        ) {
            let spec = GauntletSpec { exclusion_rounds: 2, ..spec() };
            let (mut standing, mut turned) = (Standing::new(), Standing::new());
            for (round, outcomes) in rounds.iter().enumerate() {
                let mut results = numbered(outcomes);
                standing = after_match(&standing, Round(round as u64), &results, &spec);
                if !results.is_empty() {
                    let turn = turn % results.len();
                    results.rotate_left(turn);
                }
                turned = after_match(&turned, Round(round as u64), &results, &spec);
                prop_assert_eq!(&standing, &turned);
            }
            for record in standing.values() {
                let Rating { mu, sigma } = record.rating;
                prop_assert!(mu.is_finite() && sigma > 0.0 && record.score.is_finite() && record.score >= 0.0);
                prop_assert!((-1.0..=1.0).contains(&record.honesty));
            }
        }
    }
}
