//! A swarm of separate processes, for tests: real binaries, one a node, around a served chain that can be made to misbehave.
//!
//! Tests assert on `events.jsonl` and `/status`. They wait for what nodes say, never for time to pass, and each wait has an end.
#![allow(dead_code, reason = "every test takes what it needs")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use convoke::terms::{EndpointId, Hotkey, Round, Stake, Uid};
use convoke_node::chain::host::development_genesis;
use convoke_node::chain::{ChainServer, Client, ClientConfig, ServerConfig};
use convoke_node::config::Layers;
use convoke_node::events::{self, Event, Line};
use convoke_node::identity::Identity;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use super::{SMALL, contributors, digests, small_text};

/// Blocks of the swarm's chain: slower than in one process, since each node is a process of its own on few cores.
pub const BLOCK_TIME: Duration = Duration::from_millis(150);
/// Of the small run.
pub const BLOCKS_PER_ROUND: u64 = 16;
/// A wait that takes longer has failed: some hundred rounds.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at what nodes say.
const LOOK: Duration = Duration::from_millis(20);
/// More stake than the faucet gives validators by itself.
const LEADERS_STAKE: Stake = Stake(1_500_000_000_000);
const NETUID: u16 = 3;

/// Swarms of one test binary run one after the other: two would be late for each other's blocks.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A chain and processes around it; what still runs when it is dropped is killed.
pub struct Swarm {
    pub dir: tempfile::TempDir,
    pub chain: Option<ChainServer>,
    chain_at: SocketAddr,
    nodes: BTreeMap<String, Process>,
    sets: Vec<String>,
    block_time: Duration,
    blocks_per_round: u64,
    _turn: tokio::sync::MutexGuard<'static, ()>,
}

struct Process {
    role: &'static str,
    http: SocketAddr,
    child: Option<Child>,
}

impl Drop for Swarm {
    fn drop(&mut self) {
        for process in self.nodes.values_mut() {
            if let Some(mut child) = process.child.take() {
                drop(child.kill());
                drop(child.wait());
            }
        }
        if std::thread::panicking() {
            eprintln!("{}", self.last_words());
        }
    }
}

/// An address that is free at this moment.
pub fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Swarm {
    /// A chain without nodes, for the small run. `sets` lie over it.
    pub async fn new(sets: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = small_text(dir.path());
        let small = SMALL.iter().filter(|set| !set.starts_with("node.http")).map(ToString::to_string);
        let mut all: Vec<String> = small.collect();
        all.push(format!("data.files=[{:?}]", text.to_str().unwrap()));
        all.extend(sets.iter().map(ToString::to_string));
        Self::of(dir, all, BLOCK_TIME, BLOCKS_PER_ROUND).await
    }

    /// A chain without nodes, for the default run.
    pub async fn default_run(sets: &[&str], block_time: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let blocks_per_round = Layers::default().read().unwrap().run.timing.blocks_per_round;
        Self::of(dir, sets.iter().map(ToString::to_string).collect(), block_time, blocks_per_round).await
    }

    async fn of(dir: tempfile::TempDir, sets: Vec<String>, block_time: Duration, blocks_per_round: u64) -> Self {
        let turn = TURN.lock().await;
        let chain = serve(dir.path(), "127.0.0.1:0".parse().unwrap(), block_time);
        let chain_at = chain.address();
        let nodes = BTreeMap::new();
        Self { dir, chain: Some(chain), chain_at, nodes, sets, block_time, blocks_per_round, _turn: turn }
    }

    /// The served chain.
    pub fn chain(&self) -> &ChainServer {
        self.chain.as_ref().unwrap()
    }

    /// Ends the chain's server.
    pub async fn stop_chain(&mut self) {
        self.chain.take().unwrap().stop().await;
    }

    /// Serves the chain again, where it was.
    pub fn restart_chain(&mut self) {
        self.chain = Some(serve(self.dir.path(), self.chain_at, self.block_time));
    }

    /// Gives a node that is to be started more stake than any other validator has.
    pub async fn lead(&self, name: &str) {
        let endpoints = vec![self.chain().url()];
        let client = Client::connect(ClientConfig { endpoints, netuid: NETUID, block_time: None }).await.unwrap();
        client.dev_register(self.hotkey(name), LEADERS_STAKE).await.unwrap();
    }

    /// Where the node's pages are.
    pub fn http(&self, name: &str) -> SocketAddr {
        self.nodes[name].http
    }

    pub fn data_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The node's hotkey, from now on.
    pub fn hotkey(&self, name: &str) -> Hotkey {
        Identity::open(&self.data_dir(name), None).unwrap().keypair().hotkey()
    }

    /// The node's slot, which it gets when it starts for the first time.
    pub async fn uid(&self, name: &str) -> Uid {
        let hotkey = self.hotkey(name);
        let started = Instant::now();
        let mut looks = tokio::time::interval(LOOK);
        loop {
            if let Some(neuron) = self.chain().ledger().metagraph().by_hotkey(&hotkey) {
                return neuron.uid;
            }
            assert!(started.elapsed() < PATIENCE, "{name} gets no slot");
            looks.tick().await;
        }
    }

    /// The round that the chain is in.
    pub fn round(&self) -> Round {
        Round(self.chain().heads().best.number.0 / self.blocks_per_round)
    }

    /// Starts a node, or starts it again, with these faults on purpose.
    pub fn start(&mut self, name: &str, role: &'static str, faults: &[String]) {
        let http = self.nodes.get(name).map_or_else(free_port, |process| process.http);
        let dir = self.data_dir(name);
        // Made before the process could make it, so that there is one.
        Identity::open(&dir, None).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_convoke"));
        command.args(["run", "--name", name, "--role", role, "--chain", &format!("ws://{}", self.chain_at)]);
        command.arg("--data-dir").arg(&dir).arg("--http").arg(http.to_string());
        command.args(self.sets.iter().flat_map(|set| ["--set", set]));
        command.args(faults.iter().flat_map(|fault| ["--fault", fault]));
        let log =
            fs::File::options().create(true).append(true).open(self.dir.path().join(format!("{name}.log"))).unwrap();
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.nodes.insert(name.to_owned(), Process { role, http, child: Some(child) });
    }

    pub fn start_all(&mut self, names: &[&str], role: &'static str) {
        names.iter().for_each(|name| self.start(name, role, &[]));
    }

    /// Starts a node as it was started before.
    pub fn restart(&mut self, name: &str, faults: &[String]) {
        let role = self.nodes[name].role;
        self.start(name, role, faults);
    }

    pub fn signal(&self, name: &str, signal: Signal) {
        kill_process(Pid::from_child(self.nodes[name].child.as_ref().unwrap()), signal).unwrap();
    }

    /// Waits for the node's process to end.
    pub async fn ended(&mut self, name: &str) -> ExitStatus {
        let started = Instant::now();
        let mut looks = tokio::time::interval(LOOK);
        loop {
            let child = self.nodes.get_mut(name).unwrap().child.as_mut().unwrap();
            if let Some(status) = child.try_wait().unwrap() {
                self.nodes.get_mut(name).unwrap().child = None;
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "{name} does not end");
            looks.tick().await;
        }
    }

    /// Kills a node as a crash of its machine would.
    pub async fn kill(&mut self, name: &str) {
        self.signal(name, Signal::KILL);
        self.ended(name).await;
    }

    /// Asks a node to stop; it must say that it has.
    pub async fn stop(&mut self, name: &str) {
        self.signal(name, Signal::TERM);
        assert_eq!(self.ended(name).await.code(), Some(0), "{name}");
    }

    pub fn events(&self, name: &str) -> Vec<Line> {
        events::read(&self.data_dir(name).join(events::FILE_NAME)).unwrap_or_default()
    }

    /// Waits until the node's events say so.
    pub async fn until(&self, name: &str, what: &str, done: impl Fn(&[Line]) -> bool) {
        let started = Instant::now();
        let mut looks = tokio::time::interval(LOOK);
        while !done(&self.events(name)) {
            assert!(started.elapsed() < PATIENCE, "{name}, not within {PATIENCE:?}: {what}");
            looks.tick().await;
        }
    }

    /// Waits until the node has completed this round or a later one.
    pub async fn until_completed(&self, name: &str, round: Round) {
        let what = format!("round {round} is completed");
        self.until(name, &what, |events| digests(events).keys().any(|completed| *completed >= round)).await;
    }

    /// Waits until the chain is in this round.
    pub async fn until_round(&self, round: Round) {
        self.until_block(round.0 * self.blocks_per_round).await;
    }

    /// Waits until the chain has this block.
    pub async fn until_block(&self, block: u64) {
        let mut looks = tokio::time::interval(LOOK);
        let started = Instant::now();
        while self.chain().heads().best.number.0 < block {
            assert!(started.elapsed() < PATIENCE, "the chain does not come to block {block}");
            looks.tick().await;
        }
    }

    /// What the node has written to its terminal.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(format!("{name}.log"))).unwrap_or_default()
    }

    /// Waits until the node's payload is applied in a round from `from` on, as `witness` sees it. Answers which.
    pub async fn until_contributing(&self, name: &str, witness: &str, from: Round) -> Round {
        let uid = self.uid(name).await;
        let applied = |events: &[Line]| {
            let mut rounds = contributors(events).into_iter();
            rounds.find(|(round, uids)| *round >= from && uids.contains(&uid)).map(|(round, _)| round)
        };
        self.until(witness, &format!("a payload of {name} is applied"), |events| applied(events).is_some()).await;
        applied(&self.events(witness)).unwrap()
    }

    /// R-1 over all nodes that ever ran, and R-2: no round has ended twice in different ways. Answers how many rounds had a manifest.
    #[track_caller]
    pub fn assert_one_digest_a_round(&self) -> usize {
        let mut agreed = BTreeMap::new();
        for name in self.nodes.keys() {
            for line in self.events(name) {
                let digest = match &line.event {
                    Event::OuterStep { digest, .. } => Some(*digest),
                    Event::NullRound { .. } => None,
                    _ => continue,
                };
                let (first, known) = agreed.entry(line.round.unwrap()).or_insert((name, digest));
                assert_eq!(*known, digest, "round {:?}: {first} against {name}", line.round);
            }
        }
        agreed.values().filter(|(_, digest)| digest.is_some()).count()
    }

    /// Waits until a node has completed round `to`, and asks that it completed every round from `from` on with a manifest.
    pub async fn assert_pace(&self, name: &str, from: Round, to: Round) {
        self.until_completed(name, to).await;
        let completed = digests(&self.events(name));
        for round in from.0..=to.0 {
            let digest = completed.get(&Round(round));
            assert!(matches!(digest, Some(Some(_))), "{name} has {digest:?} for round {round}");
        }
    }

    /// The node's key on the peer-to-peer network.
    pub fn endpoint(&self, name: &str) -> EndpointId {
        let secret = Identity::open(&self.data_dir(name), None).unwrap().endpoint;
        EndpointId(*iroh::SecretKey::from_bytes(&secret).public().as_bytes())
    }

    /// Flips one bit in the middle of every blob of at least so many bytes that the node has on disk. Answers in how many.
    pub fn flip_large_blobs(&self, name: &str, bytes_min: u64) -> usize {
        let mut open = vec![self.data_dir(name).join("blobs")];
        let mut flipped = 0;
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                let (path, metadata) = (entry.path(), entry.metadata().unwrap());
                if metadata.is_dir() {
                    open.push(path);
                } else if path.extension().is_some_and(|kind| kind == "data") && metadata.len() >= bytes_min {
                    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
                    let (at, mut byte) = (metadata.len() / 2, [0]);
                    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, at).unwrap();
                    std::os::unix::fs::FileExt::write_all_at(&file, &[byte[0] ^ 1], at).unwrap();
                    flipped += 1;
                }
            }
        }
        flipped
    }

    /// What a node's `/status` says.
    pub fn status(&self, name: &str) -> serde_json::Value {
        let mut socket = TcpStream::connect(self.nodes[name].http).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.write_all(b"GET /status HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    /// Processor time that the node has used, as Linux counts it.
    pub fn cpu(&self, name: &str) -> Option<Cpu> {
        let process = PathBuf::from(format!("/proc/{}", self.nodes[name].child.as_ref()?.id()));
        let threads = fs::read_dir(process.join("task")).ok()?.filter_map(Result::ok).filter(|thread| {
            // Linux keeps 15 characters of a thread's name.
            let name = fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
            name.contains("/gpu-") || name.starts_with("replica-")
        });
        let training = threads.filter_map(|thread| processor_time(&thread.path())).sum();
        Some(Cpu { all: processor_time(&process)?, training })
    }

    /// The last events and log lines of every node: what a failed test is understood by.
    fn last_words(&self) -> String {
        let mut words = String::new();
        for name in self.nodes.keys() {
            let tail = |path: &Path, n: usize| {
                let text = fs::read_to_string(path).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                lines[lines.len().saturating_sub(n)..].join("\n")
            };
            let events = tail(&self.data_dir(name).join(events::FILE_NAME), 40);
            let log = tail(&self.dir.path().join(format!("{name}.log")), 15);
            words.push_str(&format!("== {name}\n{events}\n-- log\n{log}\n\n"));
        }
        words
    }
}

fn serve(dir: &Path, at: SocketAddr, block_time: Duration) -> ChainServer {
    let file = Some(dir.join("chain.redb"));
    let config = ServerConfig { file, ..ServerConfig::new(at, block_time) };
    ChainServer::start(&development_genesis(NETUID, 1), config).unwrap()
}

/// A fault script: the process ends without a further instruction when its clock enters the phase.
pub fn killed_in(phase: &str, round: Round) -> String {
    format!("round-clock:{phase}:{}:kill", round.0)
}

/// Processor time of a node.
#[derive(Debug, Clone, Copy)]
pub struct Cpu {
    pub all: Duration,
    /// Of the threads that train, which is in `all`.
    pub training: Duration,
}

/// What a process or thread has used, by its place in `/proc`.
fn processor_time(place: &Path) -> Option<Duration> {
    /// `/proc` counts in hundredths of a second, whatever the kernel's own clock does.
    const TICK: Duration = Duration::from_millis(10);
    let stat = fs::read_to_string(place.join("stat")).ok()?;
    // The name before may hold anything; after it, user and system time are the 12th and 13th.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(TICK * (fields.get(11)?.parse::<u32>().ok()? + fields.get(12)?.parse::<u32>().ok()?))
}
