//! Learning under attack: what hostile miners do to it, and what they earn: `cargo xtask bench attacks`.
//!
//! Whole runs in virtual time (`actors/fake`) that train a real, very small model on the default corpus: 15 miners and 3 validators, of
//! whom a share is hostile. A run is compared with two others of its seed: the calm one, with as many miners, all honest; and that of
//! the honest alone, with as many miners as are honest in it. `docs/attacks.md` says what everybody does and what the columns mean;
//! its table and its plot are written here. `--quick` makes few of the runs, and writes nothing.
//!
//! What is broken in a run is told, and is the exit code.

#![expect(clippy::print_stdout, reason = "it measures, and says what it measured")]
#![allow(clippy::disallowed_methods, reason = "it runs on threads, and writes files")]

mod plot;
mod rows;
mod sweep;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZero;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use convoke_node::data::DataFiles;
use convoke_node::fake::model_lab::ModelLab;

use plot::{Line, Panel};
use rows::{Attack, Job, MINERS, NODES, Row, Rules};
use sweep::{Outcome, Sweep};
use table::Figures;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Where the table and the plot are kept.
const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");
/// Rounds of a quick look: sleepers wake in the twelfth.
const QUICK_ROUNDS: u64 = 16;

/// What hostile miners do to learning, and what they earn.
#[derive(Debug, Parser)]
struct Options {
    /// Runs of each kind: from seed 1, 2, and so on.
    #[arg(long, default_value = "3")]
    seeds: NonZero<u64>,
    /// Rounds of each run.
    #[arg(long, default_value_t = 24)]
    rounds: u64,
    /// Runs that are made at the same time; 0: one a core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// One seed, few rows and few rounds; nothing is written.
    #[arg(long)]
    quick: bool,
    /// Other numbers of the run, not the model's or the data's; nothing is written.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Only rows whose first two columns contain this text; nothing is written.
    #[arg(long, default_value = "")]
    only: String,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn n_seeds(&self) -> u64 {
        if self.quick { 1 } else { self.seeds.get() }
    }

    fn rounds(&self) -> u64 {
        if self.quick { QUICK_ROUNDS } else { self.rounds }
    }

    fn rows(&self) -> Vec<Row> {
        let is_wanted = |row: &Row| format!("{} {}", row.who(), row.rules.name()).contains(&self.only);
        Row::all(self.quick).into_iter().filter(is_wanted).collect()
    }

    fn n_threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            n => n,
        }
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let cache = tempfile::tempdir()?;
    let lab = ModelLab::open(&DataFiles::default(), cache.path()).context("the model and its data")?;
    let rows = options.rows();
    let seeds = 1..=options.n_seeds();
    let of_row = |row: &Row| seeds.clone().flat_map(|seed| jobs(row, seed)).collect::<Vec<_>>();
    let all: BTreeSet<Job> = rows.iter().flat_map(of_row).collect();
    let sets: Vec<&str> = options.set.iter().map(String::as_str).collect();
    let sweep = Sweep { lab: lab.with(&sets), rounds: options.rounds(), n_threads: options.n_threads() };
    let outcomes = sweep.run(&all.into_iter().collect::<Vec<_>>())?;
    let figures: Vec<Figures> = rows.iter().map(|row| figures(row, seeds.clone(), &outcomes)).collect();
    let heading = format!(
        "{NODES} nodes, {MINERS} of them miners; {} rounds, {} seeds, medians over them.",
        sweep.rounds,
        options.n_seeds()
    );
    let text = format!("\n{heading}\n\n{}\n", table::render(&figures));
    println!("{text}");
    if !options.quick && options.only.is_empty() && options.set.is_empty() {
        write(&text, &plot::svg(&panels(&rows, &figures), "share of the miners who are hostile", x_max(&rows)))?;
    }
    let broken: Vec<_> = outcomes.iter().filter_map(|(job, outcome)| Some((job, outcome.broken.as_ref()?))).collect();
    for (Job { rules, nodes, faults, seed }, what) in &broken {
        println!("BROKEN: {} rules, {nodes} nodes, seed {seed}, {faults}: {what}", rules.name());
    }
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The run under attack, and those that it is compared with.
fn jobs(row: &Row, seed: u64) -> [Job; 3] {
    [row.attacked(seed), Row::calm(seed), row.alone(seed)]
}

fn figures(row: &Row, seeds: impl Iterator<Item = u64>, outcomes: &BTreeMap<Job, Outcome>) -> Figures {
    let runs: Vec<[&Outcome; 3]> = seeds.map(|seed| jobs(row, seed).map(|job| &outcomes[&job])).collect();
    Figures::of(row.who(), row.rules.name(), &runs)
}

/// The largest share of hostile miners.
fn x_max(rows: &[Row]) -> f64 {
    rows.iter().map(share).fold(0.1, f64::max)
}

fn share(row: &Row) -> f64 {
    row.n_hostile() as f64 / MINERS as f64
}

fn panels(rows: &[Row], figures: &[Figures]) -> [Panel; 2] {
    let weight = |figures: &Figures| figures.honest_weight.unwrap_or(f64::NAN);
    let mut weights = lines(rows, figures, weight);
    let x_max = x_max(rows);
    weights.push(Line {
        name: "if all were paid alike".to_owned(),
        colour: "#888888",
        is_dashed: true,
        points: vec![(0.0, 1.0), (x_max, 1.0 - x_max)],
    });
    let loss = lines(rows, figures, |figures| figures.to_calm);
    [
        Panel { title: "honest miners' share of the weight", least_range: (0.5, 1.0), lines: weights },
        Panel { title: "held-out loss, of the calm run's", least_range: (0.98, 1.02), lines: loss },
    ]
}

/// A line for each set of rules, over the shares.
fn lines(rows: &[Row], figures: &[Figures], figure: impl Fn(&Figures) -> f64) -> Vec<Line> {
    let of_rules = |(rules, colour): (Rules, &'static str)| {
        let own = rows.iter().zip(figures);
        let own = own.filter(|(row, _)| row.rules == rules && matches!(row.attack, Attack::Mixed(_)));
        let points = own.map(|(row, figures)| (share(row), figure(figures))).collect();
        Line { name: rules.name().to_owned(), colour, is_dashed: false, points }
    };
    Rules::ALL.into_iter().zip(["#1b6ca8", "#c8553d", "#5b8c5a", "#7a5195"]).map(of_rules).collect()
}

fn write(text: &str, svg: &str) -> anyhow::Result<()> {
    let path = Path::new(DOCS).join("attacks.md");
    let page = std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let page = table::placed(&page, text).with_context(|| format!("{} has no place for the table", path.display()))?;
    std::fs::write(&path, page).with_context(|| format!("{} cannot be written", path.display()))?;
    let path = Path::new(DOCS).join("attacks.svg");
    std::fs::write(&path, svg).with_context(|| format!("{} cannot be written", path.display()))
}
