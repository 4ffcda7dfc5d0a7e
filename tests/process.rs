//! The program as its user meets it: a process with arguments, signals and exit codes.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

mod harness;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use convoke::round::Schedule;
use convoke::terms::{BlockHash, Round};
use convoke_node::chain::host::development_genesis;
use convoke_node::chain::{ChainServer, Client, ClientConfig, Pace, ServerConfig};
use convoke_node::cli::RunArgs;
use convoke_node::events::{self, Event, Line};
use convoke_node::identity::Identity;
use harness::{digests, sealed_steps};

/// A node of the small run in a directory of its own.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("node")
    }

    fn args(&self, more: &[&str]) -> Vec<String> {
        let text = harness::small_text(self.dir.path());
        let mut args = vec!["run".to_owned(), "--data-dir".to_owned(), self.data_dir().to_str().unwrap().to_owned()];
        let files = format!("data.files=[{:?}]", text.to_str().unwrap());
        for set in harness::SMALL.iter().map(ToString::to_string).chain([files]) {
            args.extend(["--set".to_owned(), set]);
        }
        args.extend(more.iter().map(ToString::to_string));
        args
    }

    fn start(&self, more: &[&str]) -> Child {
        let mut command = convoke();
        command.args(self.args(more)).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    fn events(&self) -> Vec<Line> {
        events::read(&self.data_dir().join(events::FILE_NAME)).unwrap_or_default()
    }
}

fn convoke() -> Command {
    Command::new(env!("CARGO_BIN_EXE_convoke"))
}

/// Waits for the child's own events; a process that says nothing for a minute has failed the test.
fn until(place: &Place, child: &mut Child, what: &str, done: impl Fn(&[Line]) -> bool) {
    let started = Instant::now();
    while !done(&place.events()) {
        assert!(started.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        assert!(child.try_wait().unwrap().is_none(), "the node ended before {what}");
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

fn terminate(child: &mut Child) -> i32 {
    let asked = Instant::now();
    rustix::process::kill_process(rustix::process::Pid::from_child(child), rustix::process::Signal::TERM).unwrap();
    let code = child.wait().unwrap().code().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(10), "it took {:?} to stop", asked.elapsed());
    code
}

fn phase_entered(events: &[Line], from: Round, wanted: &str) -> bool {
    events.iter().any(|line| {
        line.round.is_some_and(|round| round >= from)
            && matches!(&line.event, Event::PhaseStarted { phase } if phase == wanted)
    })
}

/// The seeds of all rounds, read from the chain that the node kept.
async fn seeds(place: &Place, n_rounds: u64) -> Vec<BlockHash> {
    let config = config(place);
    let schedule = Schedule::new(&config.run.timing);
    let genesis = development_genesis(config.run.netuid, config.run.seed);
    let server_config = ServerConfig {
        pace: Pace::OnDemand,
        file: Some(place.data_dir().join("chain.redb")),
        ..ServerConfig::new("127.0.0.1:0".parse().unwrap(), harness::BLOCK_TIME)
    };
    let server = ChainServer::start(&genesis, server_config).unwrap();
    let (endpoints, netuid) = (vec![server.url()], config.run.netuid);
    let chain = Client::connect(ClientConfig { endpoints, netuid, block_time: None }).await.unwrap().reader();
    let mut seeds = Vec::new();
    for round in 0..n_rounds {
        let Some(hash) = chain.block_hash(schedule.seed_block(Round(round))).await.unwrap() else { break };
        seeds.push(hash);
    }
    server.stop().await;
    seeds
}

fn config(place: &Place) -> convoke_node::config::NodeConfig {
    let mut args = RunArgs { data_dir: Some(place.data_dir()), ..RunArgs::default() };
    let text = harness::small_text(place.dir.path());
    args.set = harness::SMALL.iter().map(ToString::to_string).collect();
    args.set.push(format!("data.files=[{:?}]", text.to_str().unwrap()));
    args.config().unwrap()
}

/// `SIGTERM` in every phase of a round, one after the other, on one data directory: each stop is clean, and what the run
/// computed over all its lives is what the reference computes in one.
#[test]
fn a_run_stopped_in_every_phase_equals_an_uninterrupted_one() {
    let place = Place::new();
    let phases = [
        "inner-steps",
        "compressing",
        "sealing",
        "awaiting-reveal",
        "gathering",
        "awaiting-manifest",
        "deciding",
        "outer-step",
        "saving",
    ];
    for phase in phases {
        let mut child = place.start(&[]);
        let resumed = place.events().iter().filter_map(|line| line.round).max().unwrap_or_default();
        until(&place, &mut child, phase, |events| phase_entered(events, Round(resumed.0 + 1), phase));
        assert_eq!(terminate(&mut child), 0, "stopped in phase {phase}");
    }
    let mut child = place.start(&["--rounds", "2"]);
    assert_eq!(child.wait().unwrap().code(), Some(0));

    let history = place.events();
    let stops = history.iter().filter(|line| matches!(line.event, Event::Stopped { exit_code: 0 })).count();
    assert_eq!(stops, phases.len() + 1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let digests = digests(&history);
    let n_rounds = digests.keys().next_back().unwrap().0 + 1;
    let seeds = runtime.block_on(seeds(&place, n_rounds));
    let identity = Identity::open(&place.data_dir(), None).unwrap();
    let sealed = sealed_steps(&history);
    let applied = harness::contributors(&history);
    let mut plain = harness::reference_of(&config(&place), vec![identity.keypair()]);
    let hotkey = identity.keypair().hotkey();
    for (round, digest) in digests {
        let parts: Vec<_> = sealed
            .get(&round)
            .map(|steps| convoke::reference::Part {
                hotkey,
                uid: convoke::terms::Uid(0),
                steps: *steps,
                applied: applied.contains_key(&round),
            })
            .into_iter()
            .collect();
        let expected = plain.round(round, &seeds[usize::try_from(round.0).unwrap()], &parts);
        assert!(digest.is_none_or(|digest| digest == expected), "round {round} differs after the stops");
    }
    assert!(applied.len() >= phases.len(), "only {} rounds had a contribution", applied.len());
}

/// What a command prints when it fails: one line of reason, no backtrace.
#[track_caller]
fn check_refused(output: &Output, code: i32, wanted: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    let text = text.lines().filter(|line| !line.starts_with('{')).collect::<Vec<_>>().join("\n");
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in wanted {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
    assert!(!text.contains("RUST_BACKTRACE") && !text.contains("panicked"), "{text}");
}

fn run(place: &Place, more: &[&str]) -> Output {
    convoke().args(place.args(more)).output().unwrap()
}

#[test]
fn bad_input_is_one_readable_sentence_and_its_exit_code() {
    let place = Place::new();
    check_refused(&run(&place, &["--set", "run.iner.steps=3"]), 1, &["run.iner.steps", "run.inner.steps"]);
    check_refused(&run(&place, &["--set", "run.inner.steps=0"]), 1, &["run.inner.steps", "from 1 to 100000"]);
    check_refused(&run(&place, &["--set", "run.inner.steps=many"]), 1, &["run.inner.steps"]);
    check_refused(&run(&place, &["--set", "data.files=[\"nowhere.txt\"]"]), 1, &["nowhere.txt"]);
    check_refused(&run(&place, &["--set", "node.device=cuda:0"]), 1, &["cuda:0", "present: cpu"]);
    check_refused(&run(&place, &["--set", "node.device=abacus"]), 1, &["abacus", "cpu, cuda:N or wgpu:N"]);
    check_refused(&run(&place, &["--config", "nowhere.toml"]), 1, &["nowhere.toml"]);
    check_refused(&run(&place, &["--role", "spectator"]), 2, &["spectator", "miner", "validator", "both"]);
    check_refused(&run(&place, &["--rounds", "0"]), 2, &["--rounds"]);
    let empty = place.dir.path().join("empty.txt");
    std::fs::write(&empty, "").unwrap();
    let set = format!("data.files=[{:?}]", empty.to_str().unwrap());
    check_refused(&run(&place, &["--set", &set]), 1, &["empty.txt"]);
}

#[test]
fn a_port_in_use_is_named() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    check_refused(&run(&place, &["--http", &address]), 1, &[&address]);
}

/// An address that is free at this moment.
fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// What both have completed, they have completed alike; and that is something.
#[track_caller]
fn assert_alike(one: &Place, other: &Place) {
    let (one, other) = (digests(&one.events()), digests(&other.events()));
    let shared: Vec<_> = one.iter().filter(|(round, _)| other.contains_key(*round)).collect();
    assert!(shared.iter().all(|(round, digest)| other[*round] == **digest), "{one:?} against {other:?}");
    assert!(shared.iter().any(|(_, digest)| digest.is_some()), "{one:?} and {other:?} share no round");
}

#[test]
fn the_second_node_of_a_machine_joins_the_chain_that_the_first_one_serves() {
    let (first, second) = (Place::new(), Place::new());
    let listen = format!("chain.listen={}", free_address());
    let mut serving = first.start(&["--set", &listen]);
    until(&first, &mut serving, "a round", |events| phase_entered(events, Round(1), "gathering"));
    let mut joining = second.start(&["--set", &listen, "--role", "miner", "--rounds", "3"]);
    assert_eq!(joining.wait().unwrap().code(), Some(0));
    assert_eq!(terminate(&mut serving), 0);
    assert_alike(&first, &second);
    assert!(first.data_dir().join("chain.redb").exists() && !second.data_dir().join("chain.redb").exists());
}

#[test]
fn a_chain_that_is_served_alone_is_joined_by_its_url() {
    let (chain, first, second) = (tempfile::tempdir().unwrap(), Place::new(), Place::new());
    let listen = free_address();
    let mut command = convoke();
    command.args(["chain", "--listen", &listen, "--block-ms", "100", "--netuid", "3", "--data-dir"]).arg(chain.path());
    let mut serving = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let url = format!("ws://{listen}");
    let mut one = first.start(&["--chain", &url]);
    let mut other = second.start(&["--chain", &url, "--role", "miner", "--rounds", "3"]);
    assert_eq!(other.wait().unwrap().code(), Some(0));
    assert_eq!(terminate(&mut one), 0);
    assert_eq!(terminate(&mut serving), 0);
    assert_alike(&first, &second);
}

#[test]
fn a_data_directory_in_use_and_state_of_another_chain_are_refused() {
    let place = Place::new();
    let mut running = place.start(&[]);
    until(&place, &mut running, "a round", |events| phase_entered(events, Round(1), "gathering"));
    check_refused(&run(&place, &[]), 1, &[place.data_dir().to_str().unwrap(), "in use", "--data-dir"]);
    assert_eq!(terminate(&mut running), 0);
    std::fs::remove_file(place.data_dir().join("chain.redb")).unwrap();
    check_refused(&run(&place, &[]), 1, &["another --data-dir", "--chain"]);
}

#[test]
fn state_that_cannot_be_used_is_named() {
    let place = Place::new();
    std::fs::write(place.data_dir(), "a file where a directory should be").unwrap();
    check_refused(&run(&place, &[]), 1, &[place.data_dir().to_str().unwrap()]);
}

#[test]
fn state_of_another_run_is_refused_and_kept() {
    let place = Place::new();
    let output = run(&place, &["--rounds", "1"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    check_refused(&run(&place, &["--set", "run.inner.lr_peak=0.5"]), 1, &["state", "another --data-dir"]);
    assert!(has_state(&place.data_dir()));
}

fn has_state(data_dir: &Path) -> bool {
    std::fs::read_dir(data_dir.join("state")).unwrap().count() > 1
}
