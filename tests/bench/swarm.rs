//! What running together costs, in processes of their own on loopback: `cargo xtask bench swarm`.
//!
//! Three tables. **Pace**: the default run with 4 miners and 1 validator; of a round's time, how much each node computed or waited
//! for the block clock, and how much it communicated. **Joining**: a miner that comes to a run of 15.7 M parameters, whose payloads are
//! made so large that θ is fewer bytes than what was sent before; what it fetched, beside one plain iroh-blobs transfer of as many bytes at the
//! same time, and when it contributed. **Work**: 16 miners and 1 validator that train next to nothing, so that the processor time of a node
//! and round is the protocol's: chain, payloads, checks, agreement, outer step, boundary. The threads that train (inner steps,
//! losses, the optimiser's share of the boundary) are counted beside it.
//!
//! Arguments: `--rounds N` (8) rounds that are measured, `--only pace|joining|work`. Quiet the machine first.

#![expect(clippy::print_stdout, reason = "it measures, and says what it measured")]
#![allow(clippy::unwrap_used, reason = "what is not as expected ends the measurement")]

#[path = "../harness/mod.rs"]
mod harness;
#[path = "plain.rs"]
mod plain;

use std::time::Duration;

use convoke::terms::Round;
use convoke_node::events::{Event, Line};
use convoke_node::status::{Outcome, Status};
use harness::swarm::Swarm;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rounds that nodes take to find each other.
const SETTLING: u64 = 2;
/// Rounds after which the payloads of all rounds are more bytes than θ.
const ROUNDS_BEFORE_JOINING: u64 = 14;
/// Of the default run.
const BLOCK_TIME: Duration = Duration::from_millis(500);
const BLOCKS_PER_ROUND: f64 = 30.0;
/// Blocks of the swarm of 17, whose processes share few cores.
const SLOW_BLOCK_TIME: Duration = Duration::from_millis(1000);
/// Training that takes next to nothing: one step on one sequence, and as little to evaluate.
const IDLE: &[&str] = &[
    "node.workers=1",
    "run.inner.steps=1",
    "run.inner.steps_min=1",
    "run.gauntlet.copy_overlap_max=1",
    "run.inner.batch_sequences=1",
    "run.inner.micro_batch_sequences=1",
    "run.data.heldout_sequences=1",
    "run.gauntlet.eval_sequences=1",
];

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (mut rounds, mut only) = (8, None);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().unwrap_or_else(|| panic!("{argument} takes a value"));
        match argument.as_str() {
            "--rounds" => rounds = value.parse().unwrap(),
            "--only" => only = Some(value),
            _ => panic!("`{argument}`: the arguments are --rounds N and --only pace|joining|work"),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let is_wanted = |table: &str| only.as_deref().is_none_or(|only| only == table);
    if is_wanted("pace") {
        runtime.block_on(pace(rounds));
    }
    if is_wanted("joining") {
        runtime.block_on(joining());
    }
    if is_wanted("work") {
        runtime.block_on(work(rounds));
    }
}

async fn completed(swarm: &Swarm, names: &[String], round: u64) {
    for round in 0..=round {
        for name in names {
            swarm.until_completed(name, Round(round)).await;
        }
    }
}

fn status(swarm: &Swarm, name: &str) -> Status {
    serde_json::from_value(swarm.status(name)).unwrap()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

async fn pace(rounds: u64) {
    let mut swarm = Swarm::default_run(&["node.workers=1"], BLOCK_TIME).await;
    let miners = ["miner-1", "miner-2", "miner-3", "miner-4"];
    swarm.start("validator", "validator", &[]);
    swarm.start_all(&miners, "miner");
    let names: Vec<String> = ["validator"].iter().chain(&miners).map(ToString::to_string).collect();
    completed(&swarm, &names, SETTLING + rounds).await;
    let round_seconds = BLOCK_TIME.as_secs_f64() * BLOCKS_PER_ROUND;
    println!("Pace: the default run, 4 miners and 1 validator, {rounds} rounds of {round_seconds} s; medians");
    println!("{:<12} {:>12} {:>16} {:>26}", "node", "computing s", "communicating s", "computing or waiting, %");
    for name in &names {
        let status = status(&swarm, name);
        let measured = status.rounds.iter().filter(|round| {
            round.outcome == Outcome::OuterStep && (SETTLING + 1..=SETTLING + rounds).contains(&round.round.0)
        });
        let computing = median(measured.clone().map(|round| round.computing_seconds).collect());
        let communicating = median(measured.map(|round| round.communicating_seconds).collect());
        let share = 100.0 * (1.0 - communicating / round_seconds);
        println!("{name:<12} {computing:>12.2} {communicating:>16.3} {share:>26.1}");
    }
    swarm.assert_one_digest_a_round();
}

async fn joining() {
    let model = format!("run.model={}/../configs/models/small.toml", env!("CARGO_MANIFEST_DIR"));
    let mut sets = vec![&*model, "run.sparse.keep_per_chunk=1024", "run.timing.checkpoint_rounds=4"];
    sets.extend(IDLE);
    let mut swarm = Swarm::default_run(&sets, BLOCK_TIME).await;
    let miners = ["miner-1", "miner-2", "miner-3"];
    swarm.start("validator", "validator", &[]);
    swarm.start_all(&miners, "miner");
    let names: Vec<String> = ["validator"].iter().chain(&miners).map(ToString::to_string).collect();
    completed(&swarm, &names, ROUNDS_BEFORE_JOINING).await;
    let started_in = swarm.round();
    swarm.start("joiner", "miner", &[]);
    let contributed = swarm.until_contributing("joiner", "validator", started_in).await;
    let events = swarm.events("joiner");
    let at = |wanted: fn(&Event) -> bool| events.iter().find(|line| wanted(&line.event)).map(|line| line.at_ms);
    let started = at(|event| matches!(event, Event::NodeStarted { .. })).unwrap();
    let stands = at(|event| matches!(event, Event::InnerStepsDone { .. })).unwrap();
    let bytes: u64 = events.iter().map(state_bytes).sum();
    let plain = plain_seconds(usize::try_from(bytes).unwrap()).await;
    let (seconds, round) = ((stands - started) as f64 / 1e3, BLOCK_TIME.as_secs_f64() * BLOCKS_PER_ROUND);
    println!("\nJoining a run of 15.7 M parameters, 3 miners and 1 validator, in round {started_in}");
    println!("bytes of θ fetched: {bytes}; the same by one plain transfer: {plain:.2} s");
    println!("from its start to the end of its first inner steps: {seconds:.1} s");
    println!("1.3 × (bytes ÷ rate) + 1 round: {:.1} s; first applied in round {contributed}", 1.3 * plain + round);
    swarm.assert_one_digest_a_round();
}

/// Seconds in which iroh-blobs alone brings as many bytes, while the swarm runs on.
async fn plain_seconds(n_bytes: usize) -> f64 {
    let (dir, secret) = (tempfile::tempdir().unwrap(), iroh::SecretKey::from_bytes(&[7; 32]));
    let bytes = bytes::Bytes::from(vec![5; n_bytes]);
    let (served, _) = plain::Served::start(secret.clone(), &dir.path().join("served"), bytes).await.unwrap();
    let seconds = plain::fetch(&secret, served.address, served.hash, dir.path()).await.unwrap();
    served.shutdown().await.unwrap();
    seconds
}

fn state_bytes(line: &Line) -> u64 {
    match line.event {
        Event::StateFetched { bytes, .. } => bytes,
        _ => 0,
    }
}

async fn work(rounds: u64) {
    let mut swarm = Swarm::default_run(IDLE, SLOW_BLOCK_TIME).await;
    let miners: Vec<String> = (1..=16).map(|idx| format!("miner-{idx}")).collect();
    swarm.start("validator", "validator", &[]);
    swarm.start_all(&miners.iter().map(String::as_str).collect::<Vec<_>>(), "miner");
    let names: Vec<String> = std::iter::once("validator".to_owned()).chain(miners).collect();
    completed(&swarm, &names, SETTLING).await;
    let before: Vec<_> = names.iter().map(|name| swarm.cpu(name)).collect();
    let from = swarm.round().0;
    completed(&swarm, &names, SETTLING + rounds).await;
    let rounds = (swarm.round().0 - from).max(1) as f64;
    println!("\nWork: 16 miners and 1 validator, the tiny model, {rounds} rounds; processor time of a node and round");
    println!("{:<12} {:>10} {:>14} {:>14}", "node", "all, ms", "training, ms", "protocol, ms");
    let mut protocols = Vec::new();
    for (name, before) in names.iter().zip(before) {
        let (Some(before), Some(now)) = (before, swarm.cpu(name)) else { continue };
        // A worker that was replaced took its time with it.
        let used = [now.all - before.all, now.training.saturating_sub(before.training)];
        let [all, training] = used.map(|used| used.as_secs_f64() * 1e3 / rounds);
        if name != "validator" {
            protocols.push(all - training);
        }
        if matches!(name.as_str(), "validator" | "miner-1" | "miner-16") {
            println!("{name:<12} {all:>10.0} {training:>14.1} {:>14.0}", all - training);
        }
    }
    let applied = status(&swarm, "validator").rounds.iter().map(|round| round.contributors.len()).max().unwrap_or(0);
    println!("median of the miners: {:.0} ms; most contributions in one round: {applied}", median(protocols));
    swarm.assert_one_digest_a_round();
}
