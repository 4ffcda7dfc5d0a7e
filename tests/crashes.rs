//! R-3 on the real node: a crash of any one actor, in any phase it works in, costs its node at most one contribution, and
//! nobody else anything.
//!
//! Each test scripts faults into one node of three and lets all of them run on: the node must go on, every restart must be
//! counted, siblings must not be restarted, and the other miner must be in every manifest as before.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

mod harness;

use std::collections::BTreeMap;

use convoke::terms::{Round, Uid};
use convoke_node::events::{Event, Line};
use convoke_node::supervisor::EXIT_BUDGET_SPENT;
use harness::{World, assert_one_digest_a_round, contributors, miner, stop, validator};

/// How one script of faults must end.
struct Expected {
    actor: &'static str,
    /// Points of the faults; they strike in rounds 1, 3, 5 …
    points: &'static [&'static str],
    kind: &'static str,
}

const VICTIM: u16 = 0;
const SIBLING: u16 = 1;

/// The victim both trains and validates, with little stake: the manifests are the other validator's.
async fn check(expected: Expected) {
    let victim = harness::Member { name: "victim", role: "both", stake: 1_000, seed: 1 };
    let (sibling, leader) = (miner("sibling", 2), validator("leader", 3));
    // Something to burn gives validators weights to set from the first round on.
    let sets = ["run.gauntlet.burn_share=0.1", "run.gauntlet.burn_uid=1"];
    let world = World::new(&[victim.clone(), sibling.clone(), leader.clone()], &sets).await;
    let Expected { actor, points, kind } = expected;
    let faults: Vec<String> =
        points.iter().enumerate().map(|(i, point)| format!("{actor}:{point}:{}:{kind}", 2 * i + 1)).collect();
    let faults: Vec<&str> = faults.iter().map(String::as_str).collect();
    let nodes =
        vec![world.start(&victim, &faults).await, world.start(&sibling, &[]).await, world.start(&leader, &[]).await];

    let n_faults = points.len() as u64;
    let struck =
        |events: &[Line]| events.iter().filter(|line| matches!(line.event, Event::FaultInjected { .. })).count() as u64;
    let healed = || {
        let last_fault = 2 * n_faults - 1;
        let digests = harness::digests(&world.events(&victim));
        struck(&world.events(&victim)) == n_faults && digests.keys().any(|round| round.0 >= last_fault + 3)
    };
    world
        .until("all faults have struck and two rounds are completed after the last", 60 * (2 * n_faults + 6), healed)
        .await;
    stop(nodes).await;

    let [victim_events, sibling_events, leader_events] =
        [&victim, &sibling, &leader].map(|member| world.events(member));
    assert_one_digest_a_round(&[victim_events.clone(), sibling_events.clone(), leader_events.clone()]);
    let restarts = restarts(&victim_events);
    assert_eq!(restarts.get(actor), Some(&n_faults), "{restarts:?}");
    assert_eq!(restarts.len(), 1, "siblings were restarted: {restarts:?}");
    for other in [&sibling_events, &leader_events] {
        assert_eq!(self::restarts(other), BTreeMap::new());
    }
    let missing = |uid: u16, events: &[Line]| missing(Uid(uid), events);
    let lost = missing(VICTIM, &leader_events);
    let told = told(&leader_events);
    assert!(lost.len() as u64 <= n_faults, "{n_faults} faults have cost the contributions of {lost:?}{told}");
    let lost = missing(SIBLING, &leader_events);
    assert!(lost.is_empty(), "the other miner was disturbed in {lost:?}{told}");
}

/// What a node recorded besides its phases: a failed test is understood by it.
fn told(events: &[Line]) -> String {
    let happenings = events.iter().filter(|line| !matches!(line.event, Event::PhaseStarted { .. }));
    happenings.map(|line| format!("\n{line:?}")).collect()
}

fn restarts(events: &[Line]) -> BTreeMap<String, u64> {
    let mut restarts = BTreeMap::new();
    for line in events {
        if let Event::ActorRestarted { actor, .. } = &line.event {
            *restarts.entry(actor.clone()).or_default() += 1;
        }
    }
    restarts
}

/// Rounds from the second on whose manifest lacks the miner. In the first round nodes are still finding each other.
fn missing(uid: Uid, events: &[Line]) -> Vec<Round> {
    let applied = contributors(events);
    let last = applied.keys().next_back().copied().unwrap_or_default();
    (1..last.0).map(Round).filter(|round| !applied.get(round).is_some_and(|uids| uids.contains(&uid))).collect()
}

macro_rules! crashes {
    ($($name:ident: $actor:literal at $points:expr;)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                check(Expected { actor: $actor, points: &$points, kind: "panic" }).await;
            }
        )+
    };
}

crashes! {
    a_crash_of_the_gpu_worker_costs_one_contribution: "gpu-worker" at ["inner-steps", "mid-inner-steps", "load", "evaluate", "save"];
    a_crash_of_the_compressor_costs_one_contribution: "compressor" at ["compress", "outer-step", "save"];
    a_crash_of_peer_sync_costs_one_contribution: "peer-sync" at ["publish", "gather", "admit"];
    a_crash_of_the_gauntlet_costs_one_contribution: "gauntlet" at ["check", "plan", "rate", "save"];
    a_crash_of_the_chain_writer_costs_one_contribution: "chain-writer" at ["seal", "sending", "settled", "vote", "weights"];
    a_crash_of_the_round_clock_costs_one_contribution: "round-clock" at ["head", "inner-steps", "compressing", "sealing", "awaiting-reveal"];
    a_crash_of_the_round_clock_between_reveal_and_boundary_costs_one_contribution: "round-clock" at ["gathering", "awaiting-manifest", "deciding", "outer-step", "saving"];
}

/// What only the leader of the validators does: its crash may cost the round its manifest, and never more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_the_leaders_gauntlet_while_it_proposes_costs_at_most_the_round() {
    let (ada, eve) = (miner("ada", 1), validator("eve", 2));
    let world = World::new(&[ada.clone(), eve.clone()], &[]).await;
    let nodes = vec![world.start(&ada, &[]).await, world.start(&eve, &["gauntlet:propose:1:panic"]).await];
    let completed = || contributors(&world.events(&ada)).keys().any(|round| round.0 >= 4);
    world.until("rounds after the crash", 300, completed).await;
    stop(nodes).await;
    let (ada, eve) = (world.events(&ada), world.events(&eve));
    assert_one_digest_a_round(&[ada.clone(), eve.clone()]);
    assert_eq!(restarts(&eve), BTreeMap::from([("gauntlet".to_owned(), 1)]));
    assert!(missing(Uid(0), &ada).len() <= 1, "{:?}", missing(Uid(0), &ada));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_actor_is_found_and_replaced() {
    let (ada, eve) = (miner("ada", 1), validator("eve", 2));
    let world = World::new(&[ada.clone(), eve.clone()], &[]).await;
    // On its thread, in its handler, and where no caller could find it.
    let faults = ["compressor:compress:1:hang", "chain-writer:seal:4:hang", "round-clock:head:7:hang"];
    let nodes = vec![world.start(&ada, &faults).await, world.start(&eve, &[]).await];
    let applied = || contributors(&world.events(&ada));
    let healed = || {
        let replaced = restarts(&world.events(&ada)).values().sum::<u64>() == 3;
        replaced && applied().iter().any(|(round, uids)| round.0 >= 12 && uids.contains(&Uid(0)))
    };
    world.until("three hung actors are replaced and the node contributes again", 900, healed).await;
    stop(nodes).await;
    let (ada, eve) = (world.events(&ada), world.events(&eve));
    assert_one_digest_a_round(&[ada.clone(), eve]);
    let hung: Vec<&str> = ada
        .iter()
        .filter_map(|line| match &line.event {
            Event::ActorHung { actor, .. } => Some(actor.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(hung, ["compressor", "chain-writer", "round-clock"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spent_restart_budget_is_an_ordered_stop_with_code_70() {
    let (ada, eve) = (miner("ada", 1), validator("eve", 2));
    let world = World::new(&[ada.clone(), eve.clone()], &[]).await;
    let node = world.start(&ada, &["round-clock:head:0:panic"; 6]).await;
    assert_eq!(node.ended().await, EXIT_BUDGET_SPENT);
    let events = world.events(&ada);
    assert!(
        events.iter().any(|line| matches!(&line.event, Event::BudgetSpent { actor, .. } if actor == "round-clock"))
    );
    let last = events.last().map(|line| &line.event);
    assert_eq!(last, Some(&Event::Stopped { exit_code: i32::from(EXIT_BUDGET_SPENT) }));
}
