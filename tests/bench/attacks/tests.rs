//! Claims about the bench of attacks: what it compares, its table and its plot; and that the real model can be simulated at all.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]
#![allow(dead_code, reason = "the bench uses what is not tested here")]

mod plot;
mod rows;
mod sweep;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use convoke_node::data::DataFiles;
use convoke_node::fake::log::Log;
use convoke_node::fake::model_lab::ModelLab;
use convoke_node::fake::plan::FaultSpec;
use convoke_node::fake::world::{Report, Scenario, simulate};

use plot::{Line, Panel, Scale};
use rows::{MINERS, NODES, Row, Rules};
use sweep::Outcome;
use table::{BEGIN, END, Figures};

fn outcome(loss: f64, honest_weight: Option<f64>) -> Outcome {
    let refused = BTreeMap::from([("the keyed digest is wrong".to_owned(), 2)]);
    let earned = BTreeMap::from([("sybil", 0.2), ("noise", 0.0004)]);
    Outcome { loss, honest_weight, earned, applied: Some(0.5), accused: (1, 10), refused, null: 1, broken: None }
}

#[test]
fn a_row_is_the_median_of_ratios_and_the_sum_of_counts() {
    let outcomes = [5.0, 6.0, 9.0].map(|loss| outcome(loss, Some(loss / 10.0)));
    let (calm, alone) = (outcome(5.0, None), outcome(4.0, None));
    let runs: Vec<_> = outcomes.iter().map(|attacked| [attacked, &calm, &alone]).collect();
    let figures = Figures::of("zero".to_owned(), "ours", &runs);
    assert_eq!((figures.loss, figures.to_calm, figures.to_alone), (6.0, 1.2, 1.5));
    assert_eq!((figures.honest_weight, figures.accused, figures.null), (Some(0.6), (3, 30), 3));
    assert_eq!(figures.refused["the keyed digest is wrong"], 6);
    let want = "| zero | ours | 6.000 | 1.200 | 1.500 | 50.0 % | 60.0 % | sybil 20.0 % | 3 of 30 | 3 | 6 × the keyed digest is wrong |\n";
    let text = table::render(&[figures]);
    assert!(text.ends_with(want), "{text}");
    assert!(text.lines().all(|line| line.matches('|').count() == 12), "{text}");
}

#[test]
fn what_is_not_known_and_what_is_broken_is_said() {
    let broken = Outcome { broken: Some("R-1".to_owned()), ..outcome(f64::NAN, None) };
    let calm = outcome(5.0, None);
    let text = table::render(&[Figures::of("zero".to_owned(), "ours", &[[&broken, &calm, &calm]])]);
    assert!(text.contains("| – | – | – | 50.0 % | – | sybil") && text.contains("**1 runs broke a rule**"), "{text}");
}

#[test]
fn the_median_is_in_the_middle() {
    assert_eq!(table::median(vec![3.0, 1.0, 2.0]), 2.0);
    assert_eq!(table::median(vec![4.0, 1.0]), 2.5);
    assert!(table::median(Vec::new()).is_nan());
}

#[test]
fn the_table_takes_the_place_of_the_one_before() {
    let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
    let once = table::placed(&page, "\nnew\n").unwrap();
    assert_eq!(once, format!("before\n{BEGIN}\n\nnew\n{END}\nafter\n"));
    assert_eq!(table::placed(&once, "\nnew\n").unwrap(), once);
    assert_eq!(table::placed("no marks", "new"), None);
    let docs = include_str!("../../../docs/attacks.md");
    assert!(table::placed(docs, "new").is_some());
}

#[test]
fn reasons_of_one_kind_are_counted_together() {
    assert_eq!(sweep::kind("sealed in block 12, outside the round"), "sealed in block … outside the round");
    assert_eq!(sweep::kind("made from other parameters"), "made from other parameters");
}

#[test]
fn a_scale_puts_ends_on_ends() {
    let scale = Scale { from: (0.5, 1.0), to: (260.0, 36.0) };
    assert_eq!([scale.at(0.5), scale.at(1.0), scale.at(0.75)], [260.0, 36.0, 148.0]);
}

#[test]
fn ticks_are_round_few_and_inside() {
    for (range, n_ticks) in [((0.0, 0.533), 6), ((0.5, 1.0), 6), ((0.98, 1.02), 5), ((0.9, 3.7), 6), ((0.0, 7.0), 4)] {
        let ticks = plot::ticks(range);
        assert_eq!(ticks.len(), n_ticks, "{range:?}: {ticks:?}");
        assert!(ticks.is_sorted() && ticks[0] >= range.0 - 1e-9 && ticks[n_ticks - 1] <= range.1 + 1e-9);
    }
}

fn panel(points: Vec<(f64, f64)>) -> Panel {
    let line = Line { name: "ours".to_owned(), colour: "#000000", is_dashed: false, points };
    Panel { title: "loss", least_range: (0.98, 1.02), lines: vec![line] }
}

#[test]
fn a_panel_shows_all_that_is_finite() {
    let (low, high) = plot::range(&panel(vec![(0.0, 1.0), (0.2, 1.37), (0.5, f64::INFINITY)]));
    assert!(low <= 0.98 && (1.37..1.5).contains(&high), "{low} {high}");
    let svg = plot::svg(&[panel(vec![(0.0, 1.0), (0.5, f64::NAN)])], "share", 0.5);
    assert!(
        svg.starts_with("<svg") && svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"),
        "{svg}"
    );
}

#[test]
fn every_row_has_its_runs_and_each_run_its_miners() {
    for row in Row::all(false) {
        let [attacked, alone] = [row.attacked(2), row.alone(2)];
        assert!(attacked.faults.parse::<FaultSpec>().is_ok(), "{attacked:?}");
        assert_eq!(attacked.nodes, NODES);
        let n_miners = |nodes: usize| (0..nodes).filter(|idx| idx % 8 != 0).count();
        assert_eq!((n_miners(NODES), n_miners(alone.nodes)), (MINERS, MINERS - row.n_hostile()), "{row:?}");
    }
    assert!(Row::all(true).len() < Row::all(false).len() / 3);
    assert!(Row::all(true).iter().all(|row| Row::all(false).contains(row)));
}

#[test]
fn over_some_seeds_all_kinds_are_played_alike() {
    let mut played = BTreeMap::<String, usize>::new();
    for seed in 0..14 {
        let spec = rows::mixed(5, seed);
        assert_eq!(spec.split(',').count(), 5, "{spec}");
        for item in spec.split(',') {
            *played.entry(item.split_once('=').unwrap().0.to_owned()).or_default() += 1;
        }
    }
    assert!(played.iter().all(|(part, times)| *times == if part == "sybil" { 10 } else { 5 }), "{played:?}");
    assert_eq!(played.len(), 13);
    assert_eq!(rows::mixed(0, 3), "none");
}

/// A run with the real model, on the first plays of the corpus.
fn run(nodes: usize, rounds: u64, faults: &str) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text.txt");
    let corpus = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/data/shakespeare.txt")).unwrap();
    std::fs::write(&path, &corpus[..400_000]).unwrap();
    let lab = ModelLab::open(&DataFiles { files: vec![path], tokenizer: None }, dir.path()).unwrap();
    let lab = Arc::new(lab.with(Rules::Ours.sets()));
    simulate(Scenario { seed: 4, nodes, rounds, faults: faults.parse().unwrap(), lab }, Log::default()).unwrap()
}

#[test]
fn the_real_model_learns_and_one_seed_is_one_run() {
    let [first, second] = [(); 2].map(|()| run(4, 8, "none"));
    assert_eq!(first.violation, None);
    let losses: Vec<f64> = first.verdicts.heldout.values().copied().collect();
    assert!(losses.last().unwrap() < &(0.97 * losses[0]), "{losses:?}");
    assert_eq!((first.log, first.n_lines), (second.log, second.n_lines));
}

#[test]
fn whatever_some_miners_send_the_others_go_on() {
    let share = 1.0 / 14.0;
    let habits = ["zero", "noise", "wrong-data", "few-steps", "stale", "huge", "poison-flip", "poison-target"];
    let spec: Vec<String> = habits.iter().map(|habit| format!("{habit}={share}")).collect();
    let report = run(16, 6, &spec.join(","));
    assert_eq!(report.violation, None);
    assert!(report.stepped >= 4, "{report:?}");
}
