//! The order of a round, without a model, a network or a clock.

use super::*;
use crate::run_spec::TimingSpec;

/// Rounds of 20 blocks: inner steps end at 17, reveal at 20, decision at 25.
pub(super) fn schedule() -> Schedule {
    Schedule::new(&TimingSpec {
        blocks_per_round: 20,
        finality_depth: 2,
        head_confirmations: 0,
        seal_window: 3,
        gather_window: 4,
        manifest_window: 5,
        standby_blocks: 1,
        checkpoint_rounds: 10,
    })
}

const T: Round = Round(3);
const MANIFEST: Option<ManifestHash> = Some(ManifestHash([5; 32]));

fn started(role: Role) -> RoundState {
    let mut state = RoundState::new(schedule(), role, 1);
    assert_eq!(state.step(Event::Head(Block(59))), vec![]);
    assert_eq!(state.step(found(T, false)), vec![]);
    state
}

const fn found(round: Round, payload_held: bool) -> Event {
    Event::Started(Started { round, payload_held, saved: true })
}

#[track_caller]
fn check(state: &mut RoundState, script: &[(Event, &[Effect])]) {
    for (i, (event, effects)) in script.iter().enumerate() {
        assert_eq!(state.step(*event), effects.to_vec(), "step {i}: {event:?}");
    }
}

#[test]
fn a_round_runs_in_its_order() {
    let mut state = started(Role::Both);
    check(
        &mut state,
        &[
            (Event::Head(Block(60)), &[Effect::InnerSteps(T)]),
            (Event::Done(T, Done::InnerSteps(30)), &[Effect::Compress(T)]),
            (Event::Done(T, Done::Compressed), &[Effect::Seal(T)]),
            (Event::Head(Block(70)), &[]),
            (Event::Done(T, Done::Sealed), &[]),
            (Event::Head(Block(80)), &[Effect::Gather(T)]),
            (Event::Done(T, Done::Gathered), &[Effect::Vote(T, Block(80)), Effect::Evaluate(T)]),
            (Event::VoteEnded(T), &[]),
            (Event::Head(Block(81)), &[Effect::Vote(T, Block(81))]),
            (Event::Head(Block(82)), &[]),
            (Event::Evaluated(T), &[Effect::SetWeights(T)]),
            (Event::Head(Block(85)), &[]),
            (Event::Final(Block(84)), &[]),
            (Event::Final(Block(85)), &[Effect::Decide(T)]),
            (Event::Done(T, Done::Decided(MANIFEST)), &[Effect::OuterStep(T)]),
            (Event::Done(T, Done::Stepped), &[Effect::Save(T.next())]),
            (Event::Done(T.next(), Done::Saved), &[Effect::InnerSteps(T.next())]),
        ],
    );
}

#[test]
fn without_a_manifest_the_round_is_null() {
    let mut state = started(Role::Validator);
    check(
        &mut state,
        &[
            (Event::Head(Block(60)), &[]),
            (Event::Head(Block(80)), &[Effect::Gather(T)]),
            (Event::Done(T, Done::Gathered), &[Effect::Vote(T, Block(80)), Effect::Evaluate(T)]),
            (Event::Head(Block(85)), &[]),
            (Event::Final(Block(84)), &[]),
            (Event::Final(Block(85)), &[Effect::Decide(T)]),
            (Event::Done(T, Done::Decided(None)), &[Effect::NullRound(T)]),
            (Event::Done(T, Done::Stepped), &[Effect::Save(T.next())]),
        ],
    );
}

#[test]
fn inner_steps_end_in_time_for_the_seal_and_are_told_so_once() {
    let mut state = started(Role::Miner);
    check(
        &mut state,
        &[
            (Event::Head(Block(61)), &[Effect::InnerSteps(T)]),
            (Event::Head(Block(76)), &[]),
            (Event::Head(Block(77)), &[Effect::StopInnerSteps(T)]),
            (Event::Head(Block(78)), &[]),
            (Event::Done(T, Done::InnerSteps(12)), &[Effect::Compress(T)]),
        ],
    );
}

#[test]
fn a_contribution_that_is_not_ready_at_the_reveal_is_given_up_and_the_round_goes_on() {
    let mut state = started(Role::Miner);
    check(
        &mut state,
        &[
            (Event::Head(Block(60)), &[Effect::InnerSteps(T)]),
            (Event::Head(Block(80)), &[Effect::StopInnerSteps(T), Effect::Gather(T)]),
            (Event::Done(T, Done::InnerSteps(30)), &[]),
            (Event::Done(T, Done::Gathered), &[]),
        ],
    );
}

#[test]
fn a_failed_contribution_is_tried_once_more_and_then_given_up() {
    let mut state = started(Role::Miner);
    check(
        &mut state,
        &[
            (Event::Head(Block(60)), &[Effect::InnerSteps(T)]),
            (Event::Failed(T, Phase::InnerSteps), &[]),
            (Event::Head(Block(61)), &[Effect::InnerSteps(T)]),
            (Event::Failed(T, Phase::InnerSteps), &[Effect::StopInnerSteps(T)]),
            (Event::Head(Block(62)), &[]),
        ],
    );
    assert_eq!(state.phase(), Phase::AwaitingReveal);
}

#[test]
fn what_agreement_needs_is_tried_with_every_block() {
    let mut state = started(Role::Miner);
    check(
        &mut state,
        &[
            (Event::Head(Block(79)), &[]),
            (Event::Head(Block(90)), &[]),
            (Event::Final(Block(88)), &[Effect::Decide(T)]),
            (Event::Failed(T, Phase::Deciding), &[]),
            (Event::Head(Block(91)), &[Effect::Decide(T)]),
            (Event::Failed(T, Phase::Deciding), &[]),
            (Event::Head(Block(92)), &[Effect::Decide(T)]),
            (Event::Done(T, Done::Decided(MANIFEST)), &[Effect::OuterStep(T)]),
            (Event::Failed(T, Phase::OuterStep), &[]),
            (Event::Head(Block(93)), &[Effect::OuterStep(T)]),
            (Event::Done(T, Done::Stepped), &[Effect::Save(T.next())]),
            (Event::Failed(T.next(), Phase::Saving), &[]),
            (Event::Head(Block(94)), &[Effect::Save(T.next())]),
        ],
    );
}

#[test]
fn a_node_that_is_rounds_behind_decides_them_one_after_the_other_and_contributes_to_none() {
    let mut state = RoundState::new(schedule(), Role::Both, 1);
    check(
        &mut state,
        &[
            (Event::Head(Block(108)), &[]),
            (Event::Final(Block(106)), &[]),
            (found(T, false), &[Effect::Decide(T)]),
            (Event::Done(T, Done::Decided(MANIFEST)), &[Effect::OuterStep(T)]),
            (Event::Done(T, Done::Stepped), &[Effect::Save(Round(4))]),
            (Event::Done(Round(4), Done::Saved), &[Effect::Decide(Round(4))]),
            (Event::Done(Round(4), Done::Decided(None)), &[Effect::NullRound(Round(4))]),
            (Event::Done(Round(4), Done::Stepped), &[Effect::Save(Round(5))]),
            (Event::Done(Round(5), Done::Saved), &[Effect::InnerSteps(Round(5))]),
        ],
    );
}

#[test]
fn a_payload_made_before_a_stop_is_sealed_and_not_made_again() {
    let mut state = RoundState::new(schedule(), Role::Miner, 1);
    check(
        &mut state,
        &[
            (Event::Head(Block(70)), &[]),
            (found(T, true), &[Effect::Seal(T)]),
            (Event::Done(T, Done::Sealed), &[]),
            (Event::Head(Block(80)), &[Effect::Gather(T)]),
        ],
    );
}

#[test]
fn a_boundary_that_a_crash_kept_from_the_disk_is_written_first() {
    let mut state = RoundState::new(schedule(), Role::Miner, 1);
    check(
        &mut state,
        &[
            (Event::Head(Block(66)), &[]),
            (Event::Started(Started { round: T, payload_held: false, saved: false }), &[Effect::Save(T)]),
            (Event::Done(T, Done::Saved), &[Effect::InnerSteps(T)]),
        ],
    );
}

#[test]
fn inner_steps_that_failed_at_their_end_are_not_begun_again() {
    let mut state = started(Role::Miner);
    check(
        &mut state,
        &[
            (Event::Head(Block(60)), &[Effect::InnerSteps(T)]),
            (Event::Head(Block(76)), &[]),
            (Event::Failed(T, Phase::InnerSteps), &[]),
            (Event::Head(Block(77)), &[Effect::StopInnerSteps(T)]),
            (Event::Head(Block(80)), &[Effect::Gather(T)]),
        ],
    );
}

#[test]
fn while_finality_stalls_nothing_is_decided_and_it_catches_up_at_once() {
    let mut state = started(Role::Miner);
    check(
        &mut state,
        &[
            (Event::Head(Block(60)), &[Effect::InnerSteps(T)]),
            (Event::Head(Block(80)), &[Effect::StopInnerSteps(T), Effect::Gather(T)]),
            (Event::Done(T, Done::Gathered), &[]),
            (Event::Head(Block(99)), &[]),
            (Event::Final(Block(84)), &[]),
            (Event::Head(Block(130)), &[]),
            (Event::Final(Block(128)), &[Effect::Decide(T)]),
        ],
    );
}

#[test]
fn late_answers_and_blocks_from_the_past_change_nothing() {
    let mut state = started(Role::Both);
    check(&mut state, &[(Event::Head(Block(60)), &[Effect::InnerSteps(T)])]);
    let before = state.clone();
    for event in [
        Event::Head(Block(59)),
        found(Round(9), false),
        Event::Done(Round(2), Done::InnerSteps(3)),
        Event::Done(T, Done::Sealed),
        Event::Failed(T, Phase::Gathering),
        Event::Failed(Round(2), Phase::InnerSteps),
    ] {
        assert_eq!(state.step(event), vec![], "{event:?}");
        assert_eq!(state, before, "{event:?}");
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    fn any_event() -> impl Strategy<Value = (u8, u64, u8)> {
        (0u8..12, 0u64..4, 0u8..12)
    }

    proptest! {
        /// R-2, for any order of answers, failures and blocks: a round ends in exactly one of outer step and null round.
        #[test]
        fn a_round_ends_in_exactly_one_way(events in prop::collection::vec(any_event(), 0..400)) {
            let mut state = RoundState::new(schedule(), Role::Both, 1);
            let mut block = 0;
            let mut ends = std::collections::BTreeMap::<Round, std::collections::BTreeSet<&str>>::new();
            for (kind, advance, phase) in events {
                let round = state.round();
                let event = match kind {
                    0 | 1 => { block += advance; Event::Head(Block(block)) }
                    2 => Event::Final(Block(block)),
                    3 => found(Round(0), phase > 5),
                    4 => Event::Done(round, Done::InnerSteps(u32::from(phase))),
                    5 => Event::Done(round, Done::Compressed),
                    6 => Event::Done(round, Done::Sealed),
                    7 => Event::Done(round, Done::Gathered),
                    8 => Event::Done(round, Done::Decided(MANIFEST.filter(|_| phase > 3))),
                    9 => Event::Done(round, Done::Stepped),
                    10 => Event::Done(round, Done::Saved),
                    _ => Event::Failed(round, state.phase()),
                };
                for effect in state.step(event) {
                    match effect {
                        Effect::OuterStep(round) => { ends.entry(round).or_default().insert("outer step"); }
                        Effect::NullRound(round) => { ends.entry(round).or_default().insert("null round"); }
                        _ => {}
                    }
                }
            }
            for (round, ways) in &ends {
                prop_assert_eq!(ways.len(), 1, "round {} ended in {:?}", round, ways);
            }
            let last = ends.len() as u64;
            prop_assert!(state.round().0 == last || state.round().0 + 1 == last);
        }
    }
}
