//! No storm breaks the machine, and of machines that were made wrong storms find every one.

use proptest::prelude::*;

use super::rules::{
    ANSWERED, BY_ROLE, CLOCK, DECIDED_FINAL, ENDS_ONCE, EVALUATED_ONCE, IN_ORDER, IN_TIME, MADE_ONCE, ONE_OPEN,
    OWN_ROUND, TRIED_AGAIN, TRIES, WHOLE,
};
use super::*;
use crate::round::tests::schedule;

/// Bytes by chance.
fn drawn(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let byte = |_: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_le_bytes()[7]
    };
    (0..len).map(byte).collect()
}

#[track_caller]
fn check(bytes: &[u8]) -> Report {
    storm(bytes).unwrap_or_else(|broken| panic!("{broken}"))
}

#[test]
fn a_calm_without_a_storm_is_whole_rounds() {
    let report = check(&[]);
    assert!(report.outer_steps + report.null_rounds >= 3, "{report:?}");
    assert_eq!((report.restarts, report.failures), (0, 0));
}

#[test]
fn one_gust_again_and_again_breaks_nothing() {
    for byte in 0..=255 {
        check(&[byte; 300]);
    }
}

#[test]
fn gusts_in_their_order_break_nothing() {
    for first in 0..8 {
        let bytes: Vec<u8> = (first..first + 4096_u32).map(|byte| byte.to_le_bytes()[0]).collect();
        check(&bytes);
    }
}

#[test]
fn storms_come_to_everything_that_they_are_to_judge() {
    let mut sum = Report::default();
    for seed in 0..32 {
        let Report { events, restarts, outer_steps, null_rounds, sealed, failures } = check(&drawn(seed, 2000));
        sum.events += events;
        sum.restarts += restarts;
        sum.outer_steps += outer_steps;
        sum.null_rounds += null_rounds;
        sum.sealed += sealed;
        sum.failures += failures;
    }
    assert!(sum.restarts > 100 && sum.outer_steps > 500 && sum.null_rounds > 100, "{sum:?}");
    assert!(sum.sealed > 100 && sum.failures > 500, "{sum:?}");
}

#[test]
fn a_storm_depends_on_its_bytes_alone() {
    let bytes = drawn(7, 20_000);
    assert_eq!(check(&bytes), check(&bytes));
}

/// How a machine that is made wrong takes an event.
type Step = fn(&mut RoundState, Event) -> Vec<Effect>;

/// A machine that was made wrong.
struct Wrong {
    machine: RoundState,
    step: Step,
}

impl Machine for Wrong {
    fn step(&mut self, event: Event) -> Vec<Effect> {
        (self.step)(&mut self.machine, event)
    }

    fn stand(&self) -> Stand {
        self.machine.stand()
    }
}

/// That of some storms one breaks the claim.
#[track_caller]
fn finds(claim: &str, step: Step) {
    let make = |setting: &Setting| Wrong {
        machine: RoundState::new(setting.schedule.clone(), setting.role, setting.rounds_per_weights),
        step,
    };
    let broken = (0..200).filter_map(|seed| drive(&drawn(seed, 600), make).err()).find(|broken| broken.claim == claim);
    let text = broken.map(|broken| broken.to_string()).unwrap_or_default();
    assert!(text.starts_with(claim) && text.contains(" -> "), "not found: {claim}");
}

#[test]
fn a_clock_that_runs_backwards_is_found() {
    finds(CLOCK, |machine, event| {
        if let Event::Head(block) = event {
            machine.block = machine.block.min(block);
        }
        machine.step(event)
    });
}

#[test]
fn an_outer_step_that_becomes_a_null_round_is_found() {
    finds(ENDS_ONCE, |machine, event| match event {
        Event::Failed(round, Phase::OuterStep) if (round, Phase::OuterStep) == (machine.round, machine.phase) => {
            machine.enter(Phase::NullRound)
        }
        _ => machine.step(event),
    });
}

#[test]
fn a_round_that_is_left_out_is_found() {
    finds(IN_ORDER, |machine, event| {
        let before = machine.round;
        let effects = machine.step(event);
        if machine.round > before && matches!(event, Event::Done(..)) {
            machine.round = machine.round.next();
        }
        effects
    });
}

#[test]
fn what_is_begun_twice_or_for_another_round_is_found() {
    finds(ONE_OPEN, |machine, event| {
        let effects = machine.step(event);
        [&effects[..], &effects].concat()
    });
    finds(OWN_ROUND, |machine, event| {
        let later = |effect| if let Effect::Seal(round) = effect { Effect::Seal(round.next()) } else { effect };
        machine.step(event).into_iter().map(later).collect()
    });
    finds(EVALUATED_ONCE, |machine, event| match event {
        Event::VoteEnded(round) if round == machine.round && machine.role.validates() => {
            vec![Effect::Evaluate(round)]
        }
        _ => machine.step(event),
    });
}

#[test]
fn inner_steps_that_nobody_ends_are_found() {
    finds(ANSWERED, |machine, event| {
        let mut effects = machine.step(event);
        effects.retain(|effect| !matches!(effect, Effect::StopInnerSteps(_)));
        effects
    });
}

#[test]
fn a_machine_that_gathers_or_decides_too_early_is_found() {
    finds(IN_TIME, |machine, event| match event {
        Event::Head(block) if machine.phase == Phase::AwaitingReveal && block > machine.block => {
            machine.block = block;
            machine.enter(Phase::Gathering)
        }
        _ => machine.step(event),
    });
    finds(DECIDED_FINAL, |machine, event| {
        let finalized = machine.finalized;
        machine.finalized = finalized.max(machine.block);
        let effects = machine.step(event);
        machine.finalized = if let Event::Final(block) = event { finalized.max(block) } else { finalized };
        effects
    });
}

#[test]
fn a_contribution_that_is_tried_too_often_or_too_seldom_or_made_again_is_found() {
    finds(TRIES, |machine, event| {
        machine.failures = 0;
        machine.step(event)
    });
    finds(TRIES, |machine, event| {
        machine.failures = 1;
        machine.step(event)
    });
    finds(MADE_ONCE, |machine, event| match event {
        Event::Started(started) => machine.step(Event::Started(Started { payload_held: false, ..started })),
        _ => machine.step(event),
    });
}

#[test]
fn a_miner_that_sets_weights_is_found() {
    finds(BY_ROLE, |machine, event| match event {
        Event::Evaluated(round) => vec![Effect::SetWeights(round)],
        _ => machine.step(event),
    });
}

#[test]
fn a_machine_that_forgets_or_waits_for_ever_is_found() {
    finds(TRIED_AGAIN, |machine, event| {
        machine.stalled &= !matches!(event, Event::Head(_));
        machine.step(event)
    });
    finds(LIVES, |machine, event| match (machine.phase, event) {
        (Phase::AwaitingManifest, Event::Head(block)) => {
            machine.block = machine.block.max(block);
            vec![]
        }
        (Phase::AwaitingManifest, Event::Final(block)) => {
            machine.finalized = machine.finalized.max(block);
            vec![]
        }
        _ => machine.step(event),
    });
    finds(WHOLE, |machine, event| {
        let mut effects = machine.step(event);
        effects.retain(|effect| !matches!(effect, Effect::Vote(..)));
        effects
    });
}

#[test]
fn a_panic_is_found_with_what_it_said() {
    finds(PANICS, |machine, event| {
        assert!(machine.phase != Phase::NullRound, "there are no null rounds");
        machine.step(event)
    });
}

#[test]
fn a_round_that_ends_in_two_ways_is_found_though_a_restart_lies_between() {
    const T: Round = Round(3);
    let stand = |phase| Stand { round: T, phase, block: Block(90), finalized: Block(88) };
    let mut rules = Rules::new(schedule(), Role::Miner, 1);
    let mut decided = |manifest, effect, phase| {
        let rest = rules.restart();
        rules.tell(stand(Phase::Ready), Event::Head(Block(90)));
        rules.tell(stand(Phase::Ready), Event::Final(Block(88)));
        let event = Event::Done(T, Done::Decided(manifest));
        rules.tell(stand(Phase::Deciding), event);
        let verdict = rules.judge(stand(Phase::Deciding), event, &[effect], stand(phase), &mut vec![]);
        (rest.len(), verdict.map_err(|fault| fault.claim))
    };
    let manifest = Some(ManifestHash([5; 32]));
    assert_eq!(decided(manifest, Effect::OuterStep(T), Phase::OuterStep), (0, Ok(())));
    assert_eq!(decided(manifest, Effect::OuterStep(T), Phase::OuterStep), (1, Ok(())));
    assert_eq!(decided(None, Effect::OuterStep(T), Phase::OuterStep), (1, Err(ENDS_ONCE)));
    assert_eq!(decided(None, Effect::NullRound(T), Phase::NullRound), (0, Err(ENDS_ONCE)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn no_storm_breaks_the_machine(bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
        let broken = storm(&bytes).err().map(|broken| broken.to_string());
        prop_assert!(broken.is_none(), "{}", broken.unwrap_or_default());
    }
}
