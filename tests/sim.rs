//! Whole runs in virtual time, with whatever can go wrong (`actors/fake`): the same seeds on every machine, and one that nobody has
//! seen yet. A failure names the seed; the command that it prints runs it again and makes its faults fewer.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::sync::Arc;

use convoke_node::fake::cast::Part;
use convoke_node::fake::lab::QuadraticLab;
use convoke_node::fake::log::Log;
use convoke_node::fake::plan::{FaultSpec, Kind, Reach};
use convoke_node::fake::world::{Report, Scenario, simulate};

const NODES: usize = 16;
const ROUNDS: u64 = 60;

fn scenario(seed: u64, (nodes, rounds): (usize, u64), faults: &str) -> Report {
    let replay = format!("cargo xtask sim --seed {seed} --nodes {nodes} --rounds {rounds} --faults '{faults}'");
    let faults: FaultSpec = faults.parse().unwrap();
    let scenario = Scenario { seed, nodes, rounds, faults, lab: Arc::new(QuadraticLab) };
    let report = simulate(scenario, Log::default()).unwrap();
    if let Some(violation) = &report.violation {
        panic!("{violation:?}\n{replay}");
    }
    report
}

fn run(seed: u64, faults: &str) -> Report {
    scenario(seed, (NODES, ROUNDS), faults)
}

#[test]
fn without_faults_every_round_has_a_manifest_with_every_miner() {
    let report = run(1, "none");
    assert_eq!(report.null, 0, "{report:?}");
    assert!(report.refused.is_empty(), "{report:?}");
    // The first round is not everybody's.
    assert!(report.contributions >= 14 * (report.stepped - 1), "{report:?}");
    assert!(report.judged > 50, "{report:?}");
}

#[test]
fn one_seed_is_one_run() {
    let [first, second] = [run(2, "mixed"), run(2, "mixed")];
    assert!(first.n_faults > 0);
    assert_eq!((first.log, first.n_lines), (second.log, second.n_lines));
    assert_ne!(run(3, "mixed").log, first.log);
}

#[test]
fn runs_beside_each_other_do_not_meet() {
    let alone = scenario(2, (4, 2), "none").log;
    let beside = || assert!((0..120).all(|_| scenario(2, (4, 2), "none").log == alone));
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(beside);
        }
    });
}

#[test]
fn what_must_hold_holds_whatever_goes_wrong() {
    for seed in 10..22 {
        let report = run(seed, "mixed");
        // The calm of each of the three episodes is a round longer than the last fault needs to end, most often.
        assert!(report.calms >= 6, "{report:?}");
    }
}

#[test]
fn what_must_hold_holds_for_a_seed_that_nobody_has_seen() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    run(now.as_secs(), "mixed");
}

#[test]
fn what_must_hold_holds_under_much_of_any_one_kind() {
    for (seed, kind) in (0..).zip(Kind::ALL) {
        let rate = match kind.reach() {
            Reach::Node if kind == Kind::Flip => 0.005,
            Reach::Node => 0.03,
            _ => 0.15,
        };
        run(seed, &format!("{kind}={rate}"));
    }
}

#[test]
fn trouble_costs_less_than_three_in_a_hundred_contributions() {
    let contributions = |faults: &str| (30..36).map(|seed| run(seed, faults).contributions).sum::<usize>() as f64;
    let goodput = contributions("mixed") / contributions("none");
    assert!(goodput >= 0.97, "{goodput:.4}");
}

#[test]
fn a_leader_with_a_theta_that_nobody_shares_finds_out() {
    let report = scenario(203, (NODES, 80), "0@67=flip");
    assert!(report.null <= 2, "{report:?}");
}

#[test]
fn a_payload_is_found_again_after_the_boundary_it_was_made_from_has_rotted() {
    scenario(117, (NODES, 180), "15@171=rot~2");
}

#[test]
fn a_full_disk_ends_no_node() {
    scenario(201, (NODES, 30), "0@5=disk-full~19,3@5=disk-full~19,4@6:saving=die~2,4@6=disk-full~30");
}

#[test]
fn forks_at_every_edge_of_a_round_split_nobody() {
    let report = scenario(7, (NODES, 30), "chain@4:sealed-by=fork~2,chain@6:reveal=fork~2,chain@8:manifest-at=fork~2");
    assert!(report.null <= 1, "{report:?}");
}

#[test]
fn with_a_third_of_the_miners_hostile_the_honest_hold_the_weight_and_nobody_is_falsely_accused() {
    for seed in 1..4 {
        let report = scenario(seed, (64, 16), "hostile=0.33");
        let honest = report.verdicts.honest_weight().unwrap();
        assert!(honest >= 0.9, "seed {seed}: {honest}");
        assert!(report.verdicts.accused.1 > 1000, "{report:?}");
        assert!(report.verdicts.false_accusations() < 0.01, "{report:?}");
    }
}

#[test]
fn a_minority_of_colluding_validators_decides_nothing() {
    let report = scenario(4, (64, 16), "colluder=0.37,hostile=0.33");
    assert_eq!(report.null, 0, "{report:?}");
    assert!(report.verdicts.honest_weight().unwrap() >= 0.9, "{report:?}");
}

#[test]
fn a_leader_that_would_name_only_its_friends_is_passed_over() {
    // The validator with the most stake is one of three who collude; before the first weights are on chain they have their way.
    let report = scenario(3, (64, 40), "colluder=0.37,hostile=0.33");
    assert_eq!(report.null, 0, "{report:?}");
    assert!(report.verdicts.honest_applied().unwrap() >= 0.8, "{report:?}");
    assert!(report.verdicts.honest_weight().unwrap() >= 0.9, "{report:?}");
}

#[test]
fn honest_work_that_is_sent_three_times_as_large_earns_no_more() {
    let boost = |seed| {
        let report = scenario(seed, (64, 24), "boost=0.33");
        assert_eq!(report.verdicts.false_accusations(), 0.0, "{report:?}");
        report.verdicts.weight[&Part::Boost]
    };
    // They are 18 of 56; evaluated as they are sent they would have 0.99.
    let mean = (1..5).map(boost).sum::<f64>() / 4.0;
    assert!(mean < 0.45, "{mean}");
}

#[test]
fn every_part_is_played_and_found_out() {
    for part in Part::HOSTILE.into_iter().filter(|part| !part.is_validators()) {
        let report = scenario(9, (32, 18), &format!("{}=0.25", part.name()));
        let honest = report.verdicts.honest_weight().unwrap();
        assert!(honest >= 0.9, "{part:?}: {honest}");
    }
}

#[test]
fn two_hundred_and_fifty_six_nodes_agree() {
    let report = scenario(1, (256, 4), "mixed");
    assert_eq!(report.null, 0, "{report:?}");
}
