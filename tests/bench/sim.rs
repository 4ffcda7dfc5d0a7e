//! `cargo xtask sim`: a run of many nodes in one thread and in virtual time, with whatever can go wrong. See `actors/fake`.
//!
//! One seed decides everything. A failure prints the rule that was broken, and the one command that breaks it again, with as few
//! faults as were found to do it.

#![expect(clippy::print_stdout, reason = "it simulates, and says what came of it")]
#![allow(clippy::disallowed_methods, reason = "how long a simulation takes is measured")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use convoke_node::fake::cast::Part;
use convoke_node::fake::checks::verdicts::Summary;
use convoke_node::fake::lab::QuadraticLab;
use convoke_node::fake::log::Log;
use convoke_node::fake::minimise::minimise;
use convoke_node::fake::plan::{FaultSpec, written};
use convoke_node::fake::world::{Report, Scenario, simulate};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A simulated run: real actors, virtual time.
#[derive(Debug, Parser)]
struct Options {
    /// Decides everything.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Nodes; every eighth is a validator.
    #[arg(long, default_value_t = 16)]
    nodes: usize,
    /// Rounds of the chain.
    #[arg(long, default_value_t = 100)]
    rounds: u64,
    /// `none`, `mixed`, KIND=RATE, PART=SHARE, or single faults such as 3@12:sealing=die~4, with commas between.
    #[arg(long, default_value = "mixed")]
    faults: FaultSpec,
    /// Writes the events there.
    #[arg(long)]
    log: Option<PathBuf>,
    /// Goes on with the next seed, and the next, until so many minutes are over or something is wrong.
    #[arg(long)]
    minutes: Option<u64>,
    /// Runs that are made at most to make a failing list of faults shorter.
    #[arg(long, default_value_t = 40)]
    minimise: usize,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    silence_faults();
    let begun = Instant::now();
    let minutes = Duration::from_secs(60 * options.minutes.unwrap_or(0));
    for seed in options.seed.. {
        let found = run(&options, seed)?;
        if found != ExitCode::SUCCESS || begun.elapsed() >= minutes {
            return Ok(found);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One run, and if something is wrong the shortest way to it that is found.
fn run(options: &Options, seed: u64) -> anyhow::Result<ExitCode> {
    let Options { nodes, rounds, .. } = *options;
    let scenario = Scenario { seed, nodes, rounds, faults: options.faults.clone(), lab: Arc::new(QuadraticLab) };
    let log = options.log.as_deref().map_or_else(|| Ok(Log::default()), Log::to_file)?;
    let started = Instant::now();
    let report = simulate(scenario.clone(), log)?;
    let seconds = started.elapsed().as_secs_f64();
    print(&report, &scenario, seconds);
    let Some(violation) = &report.violation else { return Ok(ExitCode::SUCCESS) };
    println!("\nBROKEN, {} in round {}: {}", violation.rule, violation.round, violation.what);
    let again = |faults: &str| {
        println!("cargo xtask sim --seed {seed} --nodes {nodes} --rounds {rounds} --faults '{faults}'");
    };
    again(&written(&report.plan, scenario.faults.cast()));
    let (fewer, runs) = minimise(&scenario, &report, options.minimise)?;
    println!("{} of {} faults are enough, as {runs} runs have found:", fewer.len(), report.n_faults);
    again(&written(&fewer, scenario.faults.cast()));
    Ok(ExitCode::FAILURE)
}

fn print(report: &Report, scenario: &Scenario, seconds: f64) {
    let node_rounds = (report.stepped + report.null) as f64 * scenario.nodes as f64;
    println!("seed {}, {} nodes, {} rounds: {seconds:.1} s", scenario.seed, scenario.nodes, scenario.rounds);
    println!("  {:.3} ms a node and round", 1e3 * seconds / node_rounds);
    println!("  {} rounds with an outer step, {} null rounds", report.stepped, report.null);
    println!("  {} payloads applied, {} faults", report.contributions, report.n_faults);
    println!("  honest payloads refused: {:?}", report.refused);
    print_verdicts(&report.verdicts);
    println!("  log: {} lines, {}", report.n_lines, report.log);
}

fn print_verdicts(verdicts: &Summary) {
    let Some(honest) = verdicts.honest_weight() else { return };
    let (accused, judged) = verdicts.accused;
    println!("  honest miners hold {:.1} % of the weight", 100.0 * honest);
    println!("  {accused} of {judged} honest payloads refused although they came, by honest validators");
    let mut parts: BTreeSet<Part> = verdicts.weight.keys().copied().collect();
    parts.extend(verdicts.refusals.keys().map(|(part, _)| *part));
    parts.extend(verdicts.applied.keys());
    for part in parts {
        let share = verdicts.weight.get(&part).copied().unwrap_or(0.0);
        let applied = verdicts.applied.get(&part).copied().unwrap_or(0);
        let of_part = verdicts.refusals.iter().filter(|((who, _), _)| *who == part);
        let reasons: Vec<String> = of_part.map(|((_, reason), n)| format!("{reason} {n}")).collect();
        println!(
            "    {:<14} {:>5.1} %  applied: {applied}, refused: {}",
            part.name(),
            100.0 * share,
            reasons.join(", ")
        );
    }
}

/// A panic on purpose is an event; its text on the terminal would be noise.
fn silence_faults() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload().downcast_ref::<String>().map(String::as_str);
        if !text.is_some_and(|text| text.starts_with("fault on purpose")) {
            tell(info);
        }
    }));
}
