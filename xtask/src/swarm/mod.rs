//! `cargo xtask swarm`: a local network of real processes that is watched until it has agreed, or has not.
//!
//! Nothing of a node runs in here. The swarm starts what a user would start, asks what a user could ask (`/status`), and
//! breaks what breaks outside (processes). So what it says of the network holds for any network, and its exit code can
//! be trusted by a script: 0 says that every node completed every round with the digest of all others.

mod history;
mod interrupts;
mod kills;
mod network;
mod page;
mod plan;
mod process;
mod screen;
mod table;

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::history::History;
use self::interrupts::Interrupts;
use self::kills::{Act, Kills};
use self::network::{Network, Stopped};
use self::page::Report;
use self::plan::{Plan, Role};
use self::screen::Screen;
use crate::EXIT_USAGE;
use crate::cargo::{build_node, root};

pub use self::process::LEASHED;
#[cfg(target_os = "linux")]
pub use self::process::run_leashed;

const USAGE: &str = "\
usage: cargo xtask swarm --miners N --validators M [ARGUMENTS]

A development chain, M validators and N miners as processes on this machine, until each node has completed R rounds.

  --rounds R          rounds, from the first one that a node is seen in (default 10)
  --kill NAME@ROUND[+BACK]
                      kill -9 NAME (miner-1, validator-1, chain, …) when it is first seen in ROUND, counted from the
                      swarm's first, and start it again BACK rounds later: 0 (default) at once, `never` not at all.
                      May be given several times
  --data-dir DIR      where all of it lies, with DIR/NAME.log for what each prints (default data/swarm). A directory
                      that holds an earlier swarm goes on from where that was
  --block-ms MS       milliseconds between blocks (default: chain.block_ms of configs/default.toml)
  --set key=value     passed on to every node, after node.workers=1. May be given several times
  --features LIST     passed on to cargo

Ctrl-C stops the swarm early, a second one at once. On a terminal the table is alive; elsewhere a line a round.
exit code: 0 all rounds done and all agreed; 1 a disagreement, a swarm that is stuck, a node that died or did not stop
cleanly, an early stop; 2 a wrong command line";

/// A swarm that completes nothing for so many rounds' time is stuck.
const STUCK_ROUNDS: u32 = 10;
/// But not sooner than this: nodes must load, however short their rounds are.
const STUCK_MIN: Duration = Duration::from_secs(60);
/// How long a signal waits at most while nothing else is to do.
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// How often nodes are asked: twice a block, within reason.
const ASK_EVERY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The command.
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        println!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
    }
    let defaults = fs::read_to_string(root().join("configs/default.toml")).context("configs/default.toml")?;
    let plan = match Plan::read(arguments, &defaults) {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("error: {error:#}\n\n{USAGE}");
            return Ok(ExitCode::from(EXIT_USAGE));
        }
    };
    let program = build_node(plan.features.as_deref())?;
    let dir = plan.data_dir.clone().unwrap_or_else(|| root().join("data/swarm"));
    let dir = std::path::absolute(&dir).with_context(|| format!("{} is no path", dir.display()))?;
    let _held = hold(&dir)?;
    greet(&plan, &dir)?;
    let mut interrupts = Interrupts::new()?;
    let Some(network) = Network::start(&plan, &program, &dir, &mut interrupts)? else {
        println!("stopped before the chain was up");
        return Ok(ExitCode::FAILURE);
    };
    let mut swarm = Swarm::new(plan, network, interrupts);
    let end = swarm.watch()?;
    let stopped = swarm.network.stop(&mut swarm.interrupts)?;
    Ok(swarm.conclude(&end, &stopped))
}

/// Takes the directory for this process alone, until the file is dropped or the process ends.
fn hold(dir: &Path) -> Result<File> {
    fs::create_dir_all(dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    let file = File::create(dir.join("swarm.lock")).with_context(|| format!("{} cannot be written", dir.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("another swarm runs in {}: stop it, or choose another directory with --data-dir", dir.display())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("{} cannot be locked", dir.display())),
    }
}

/// Says what is about to run, and what it finds of an earlier swarm.
fn greet(plan: &Plan, dir: &Path) -> Result<()> {
    let count = |role| plan.members.iter().filter(|member| member.role == role).count();
    println!(
        "swarm: {} validator(s), {} miner(s), {} round(s) of {:.1} s, in {}",
        count(Role::Validator),
        count(Role::Miner),
        plan.rounds,
        plan.timing.round_time().as_secs_f64(),
        dir.display()
    );
    if dir.join("chain").is_dir() {
        println!("an earlier swarm lies there: its chain and its nodes go on from where they were");
    }
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_validator = name.starts_with("validator-") && !name.ends_with(".log");
        if is_validator && plan.members.iter().all(|member| member.name != name) {
            println!(
                "warning: {name} of the earlier swarm is not started; its stake still counts where validators vote"
            );
        }
    }
    Ok(())
}

/// Why the swarm is over.
enum End {
    Done,
    Interrupted,
    /// In words.
    Failed(String),
}

struct Swarm {
    plan: Plan,
    network: Network,
    interrupts: Interrupts,
    history: History,
    kills: Kills,
    screen: Screen,
    started: Instant,
    /// What each member said last; none for the chain and for whoever is down.
    reports: Vec<Option<Report>>,
    /// Why a node does not answer, by member.
    silent: Vec<Option<String>>,
    /// The slot each node said last that it has, which outlives it.
    uids: Vec<Option<u64>>,
    /// How far all had come when they last came further, and when that was.
    progress: (u64, Instant),
    /// The next round that gets its line.
    line_next: Option<u64>,
}

impl Swarm {
    fn new(plan: Plan, network: Network, interrupts: Interrupts) -> Self {
        let (n_members, started) = (plan.members.len(), Instant::now());
        Self {
            kills: Kills::new(plan.kills.clone(), plan.timing.round_time()),
            network,
            interrupts,
            history: History::default(),
            screen: Screen::new(),
            started,
            reports: vec![None; n_members],
            silent: vec![None; n_members],
            uids: vec![None; n_members],
            progress: (0, started),
            line_next: None,
            plan,
        }
    }

    fn watch(&mut self) -> Result<End> {
        let every = Duration::from_millis(self.plan.timing.block_ms / 2).clamp(ASK_EVERY.0, ASK_EVERY.1);
        loop {
            let asked = Instant::now();
            self.ask();
            if let Some(death) = self.network.death()? {
                return Ok(End::Failed(death));
            }
            self.act()?;
            self.show();
            if self.is_done() {
                return Ok(End::Done);
            }
            if let Some(stuck) = self.stuck() {
                return Ok(End::Failed(stuck));
            }
            while asked.elapsed() < every {
                thread::sleep(LOOK_AGAIN);
                if self.interrupts.any() {
                    return Ok(End::Interrupted);
                }
            }
        }
    }

    fn ask(&mut self) {
        for (member, answer) in self.network.ask() {
            match answer {
                Ok(report) => {
                    self.history.record(member, &report);
                    self.uids[member] = report.uid.or(self.uids[member]);
                    self.reports[member] = Some(report);
                    self.silent[member] = None;
                }
                Err(error) => self.silent[member] = Some(format!("{error:#}")),
            }
        }
    }

    /// Carries out the kills and returns that are due.
    fn act(&mut self) -> Result<()> {
        let Some(first) = self.history.first() else { return Ok(()) };
        let in_round: Vec<_> = self.reports.iter().map(|report| report.as_ref()?.round).collect();
        for act in self.kills.step(self.started.elapsed(), first, &in_round) {
            let (Act::Kill(member) | Act::Start(member)) = act;
            let name = &self.plan.members[member].name;
            let round = in_round.iter().flatten().max().map_or_else(String::new, |round| format!(" in round {round}"));
            if matches!(act, Act::Kill(_)) {
                self.network.kill(member)?;
                self.screen.say(&format!("{name} is killed{round}"));
            } else {
                self.network.start_again(member)?;
                self.screen.say(&format!("{name} is started again{round}"));
            }
            self.reports[member] = None;
            self.silent[member] = None;
            self.progress.1 = Instant::now();
        }
        Ok(())
    }

    /// The nodes that should be alive.
    fn up(&self) -> Vec<usize> {
        self.plan.nodes().map(|(member, _)| member).filter(|member| !self.kills.is_down(*member)).collect()
    }

    /// The last round that is waited for, once the first is known.
    fn last_round(&self) -> Option<u64> {
        Some(self.history.first()? + self.plan.rounds - 1)
    }

    fn is_done(&self) -> bool {
        let completed = |last| self.up().iter().all(|node| self.history.last_completed(*node) >= Some(last));
        self.kills.done() && self.last_round().is_some_and(completed)
    }

    /// Why the swarm will come no further, if so.
    fn stuck(&mut self) -> Option<String> {
        let up = self.up();
        let last = self.last_round().unwrap_or(u64::MAX - 1);
        let progress = self.history.progress(&up, last);
        if progress != self.progress.0 || self.kills.anybody_away() {
            self.progress = (progress, Instant::now());
        }
        let patience = self.plan.timing.round_time().saturating_mul(STUCK_ROUNDS).max(STUCK_MIN);
        if self.progress.1.elapsed() < patience {
            return None;
        }
        let behind = up.into_iter().filter(|node| self.history.last_completed(*node) < Some(last));
        let words: Vec<_> = behind
            .map(|node| {
                let name = &self.plan.members[node].name;
                let completed = self.history.last_completed(node);
                let completed = completed.map_or_else(|| "no round".to_owned(), |round| format!("round {round}"));
                format!("{name} has completed {completed}; {}", self.network.log_tail(node))
            })
            .collect();
        Some(format!("stuck: nobody came further for {} s\n{}", patience.as_secs(), words.join("\n")))
    }

    fn show(&mut self) {
        let n_up = self.up().len();
        if self.screen.is_terminal() {
            let nodes = self.node_rows();
            // Two heads, and an empty line between the tables.
            let n_rounds = self.screen.rows().saturating_sub(nodes.len() + 3);
            let round_secs = self.plan.timing.round_time().as_secs_f64();
            let rounds = table::rounds_table(&self.history, n_up, n_rounds);
            let nodes = table::nodes_table(&self.history, &nodes, round_secs);
            self.screen.draw(&format!("{rounds}\n{nodes}"));
            return;
        }
        let from = self.line_next.or(self.history.first()).unwrap_or_default();
        let (up, newest) = (self.up(), self.history.newest());
        // A node that lags does not hide for ever how the others go on.
        let over = |round| {
            up.iter().all(|node| self.history.last_completed(*node) >= Some(round)) || newest >= Some(round + 2)
        };
        let finished = self.history.rounds().filter(|(round, _)| *round >= from && over(*round));
        let lines: Vec<_> = finished.map(|(round, seen)| (round, table::round_line(round, seen, n_up))).collect();
        for (round, line) in lines {
            self.screen.say(&line);
            self.line_next = Some(round + 1);
        }
    }

    fn node_rows(&self) -> Vec<table::NodeRow> {
        let row = |(member, node): (usize, &plan::Member)| {
            let report = self.reports[member].clone();
            let state = match (&report, &self.silent[member]) {
                _ if self.kills.is_away(member) => "away".to_owned(),
                _ if self.kills.is_down(member) => "gone".to_owned(),
                (None, _) => "starting".to_owned(),
                (Some(_), Some(_)) => "silent".to_owned(),
                (Some(_), None) => "alive".to_owned(),
            };
            let report = report.unwrap_or_default();
            table::NodeRow {
                member,
                name: node.name.clone(),
                state,
                uid: self.uids[member],
                round: report.round,
                phase: report.phase,
                restarts: self.network.restarts(member),
                actor_restarts: report.actor_restarts,
            }
        };
        self.plan.nodes().map(row).collect()
    }

    /// Prints what the swarm came to; the exit code is the verdict.
    fn conclude(&mut self, end: &End, stopped: &[Stopped]) -> ExitCode {
        self.screen.draw("");
        let names: Vec<_> = self.plan.members.iter().map(|member| member.name.as_str()).collect();
        let round_secs = self.plan.timing.round_time().as_secs_f64();
        let rounds = table::rounds_table(&self.history, self.up().len(), usize::MAX);
        let nodes = table::nodes_table(&self.history, &self.node_rows(), round_secs);
        let stops: Vec<_> = stopped.iter().map(Stopped::in_words).collect();
        println!("\n{rounds}\n{nodes}\nstopped: {}", stops.join(", "));
        for (node, _) in self.plan.nodes().filter(|_| !matches!(end, End::Done)) {
            if let Some(silent) = &self.silent[node] {
                println!("{} does not answer: {silent}", names[node]);
            }
        }
        let clean = stopped.iter().all(Stopped::cleanly);
        let agreed = self.history.disagreements().next().is_none();
        match end {
            End::Done => println!("all {} rounds done after {} s", self.plan.rounds, self.started.elapsed().as_secs()),
            End::Interrupted => println!("stopped by a signal before all {} rounds were done", self.plan.rounds),
            End::Failed(why) => println!("FAILED: {why}"),
        }
        if !clean {
            println!("FAILED: not every process stopped cleanly");
        }
        print!("{}", table::agreement(&self.history, &names));
        if matches!(end, End::Done) && agreed && clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_holds_one_swarm_at_a_time() {
        let dir = std::env::temp_dir().join(format!("convoke-swarm-{}", std::process::id()));
        let held = hold(&dir).unwrap();
        assert!(hold(&dir).unwrap_err().to_string().contains("another swarm"));
        drop(held);
        drop(hold(&dir).unwrap());
        fs::remove_dir_all(&dir).unwrap();
    }
}
