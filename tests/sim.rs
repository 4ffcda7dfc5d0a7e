//! Whole runs in virtual time, with whatever can go wrong (`actors/fake`): the same seeds on every machine, and one that nobody has
//! seen yet. A failure names the seed; `cargo xtask sim --seed N --nodes 16 --rounds 60` makes its faults fewer.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::sync::Arc;

use convoke_node::fake::cast::Cast;
use convoke_node::fake::lab::QuadraticLab;
use convoke_node::fake::log::Log;
use convoke_node::fake::plan::written;
use convoke_node::fake::world::{Report, Scenario, simulate};

const NODES: usize = 16;
const ROUNDS: u64 = 60;

fn run(seed: u64, faults: &str) -> Report {
    let scenario = Scenario { seed, nodes: NODES, rounds: ROUNDS, faults: faults.parse().unwrap(), lab: Arc::new(QuadraticLab) };
    let report = simulate(scenario, Log::default()).unwrap();
    if let Some(violation) = &report.violation {
        let replay = format!("cargo xtask sim --seed {seed} --nodes {NODES} --rounds {ROUNDS} --faults '{faults}'");
        panic!("{violation:?}\n{replay}\nfaults: {}", written(&report.plan, &Cast::default()));
    }
    report
}

#[test]
fn without_faults_every_round_has_a_manifest_with_every_miner() {
    let report = run(1, "none");
    assert_eq!(report.null, 0, "{report:?}");
    assert!(report.refused.is_empty(), "{report:?}");
    // The first round is not everybody's.
    assert!(report.contributions >= 14 * (report.stepped - 1), "{report:?}");
}

#[test]
fn one_seed_is_one_run() {
    let [first, second] = [run(2, "mixed"), run(2, "mixed")];
    assert!(first.n_faults > 0);
    assert_eq!((first.log, first.n_lines), (second.log, second.n_lines));
    assert_ne!(run(3, "mixed").log, first.log);
}

#[test]
fn what_must_hold_holds_whatever_goes_wrong() {
    for seed in 10..22 {
        run(seed, "mixed");
    }
}

#[test]
fn what_must_hold_holds_for_a_seed_that_nobody_has_seen() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    run(now.as_secs(), "mixed");
}
