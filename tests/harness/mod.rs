//! Nodes in one process, around one development chain, for tests: real actors, real iroh endpoints on loopback, real
//! payloads, a model of a hundred thousand parameters, and rounds of little more than a second.
//!
//! Tests assert on what nodes record in `events.jsonl` and on their status board. Time is counted in blocks.
#![allow(dead_code, reason = "every test takes what it needs")]

pub mod swarm;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use convoke::hotkey::HotkeyPair;
use convoke::reference::{Part, Reference, Samples};
use convoke::run_spec::RunSpec;
use convoke::terms::{BlockHash, Digest, Round, Stake, Uid};
use convoke_node::chain::host::development_genesis;
use convoke_node::chain::{Host, HostConfig, Pace};
use convoke_node::config::{Layers, NodeConfig};
use convoke_node::data::Dataset;
use convoke_node::events::{self, Event, Line};
use convoke_node::identity::Identity;
use convoke_node::node::{AddressBook, Node, Plan, Surroundings};

/// Rounds of 16 blocks of 100 ms.
pub const BLOCK_TIME: Duration = Duration::from_millis(100);

/// Events of each node that a failed test shows.
const LAST_WORDS: usize = 60;

/// What makes the default run small. Every line is one `--set`.
pub const SMALL: &[&str] = &[
    "run.name=test",
    "run.model.d_model=32",
    "run.model.n_layers=1",
    "run.model.n_heads=2",
    "run.model.n_kv_heads=1",
    "run.model.d_ff=64",
    "run.model.context_len=32",
    "run.inner.steps=4",
    "run.inner.batch_sequences=4",
    "run.inner.micro_batch_sequences=2",
    "run.timing.blocks_per_round=16",
    "run.timing.seal_window=4",
    "run.timing.gather_window=3",
    "run.timing.manifest_window=5",
    "run.gauntlet.eval_sequences=2",
    "run.gauntlet.rounds_per_weights=1",
    // Honest peers of a model this small agree in up to 0.45, and others of the same round in nothing.
    "run.gauntlet.copy_overlap_max=0.6",
    "run.data.heldout_sequences=4",
    "chain.block_ms=100",
    "chain.listen=127.0.0.1:0",
    "node.workers=1",
    "node.bind=127.0.0.1:0",
    "node.http=127.0.0.1:0",
];

/// The first plays of the corpus: enough text for a few thousand samples, tokenised in a moment.
pub fn small_text(dir: &std::path::Path) -> PathBuf {
    let path = dir.join("text.txt");
    let corpus = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/data/shakespeare.txt")).unwrap();
    std::fs::write(&path, &corpus[..200_000]).unwrap();
    path
}

/// Worlds of one test binary run one after the other: blocks are real time, and two worlds on two cores would be late
/// for each other's.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A chain and the nodes around it.
pub struct World {
    pub dir: tempfile::TempDir,
    pub host: Host,
    pub addresses: AddressBook,
    sets: Vec<String>,
    _turn: tokio::sync::MutexGuard<'static, ()>,
}

/// Who a node is to be.
#[derive(Clone)]
pub struct Member {
    pub name: &'static str,
    pub role: &'static str,
    pub stake: u64,
    pub seed: u64,
}

pub const fn miner(name: &'static str, seed: u64) -> Member {
    Member { name, role: "miner", stake: 0, seed }
}

pub const fn validator(name: &'static str, seed: u64) -> Member {
    Member { name, role: "validator", stake: 1_000_000_000_000, seed }
}

impl World {
    /// A chain with `members` registered, in this order of uids.
    pub async fn new(members: &[Member], sets: &[&str]) -> Self {
        let turn = TURN.lock().await;
        let dir = tempfile::tempdir().unwrap();
        let text = small_text(dir.path());
        let mut all: Vec<String> = SMALL.iter().map(ToString::to_string).collect();
        all.push(format!("data.files=[{:?}]", text.to_str().unwrap()));
        all.extend(sets.iter().map(ToString::to_string));
        let config = HostConfig { block_time: BLOCK_TIME, finality_depth: 2, pace: Pace::Real, file: None };
        let host = Host::start(&development_genesis(3, 1), config).unwrap();
        let world = Self { dir, host, addresses: Arc::default(), sets: all, _turn: turn };
        for member in members {
            let hotkey = Identity::of_seed(member.seed).keypair().hotkey();
            world.host.dev_register(hotkey, Stake(member.stake)).await.unwrap();
        }
        world
    }

    pub fn config(&self, member: &Member) -> NodeConfig {
        let data_dir = self.dir.path().join(member.name);
        let layers = self.sets.iter().fold(Layers::default(), |layers, set| layers.set(set).unwrap());
        let layers = layers.put("node.name", member.name).unwrap().put("node.role", member.role).unwrap();
        layers.put("node.data_dir", data_dir.to_str().unwrap()).unwrap().read().unwrap()
    }

    pub async fn start(&self, member: &Member, faults: &[&str]) -> Node {
        let identity = Identity::of_seed(member.seed);
        let surroundings = Surroundings {
            chain: self.host.reader(),
            chain_write: self.host.connect(identity.keypair()),
            addresses: Arc::clone(&self.addresses),
        };
        let faults = faults.iter().map(|fault| fault.parse().unwrap()).collect();
        Node::start(self.config(member), identity, surroundings, Plan { rounds: None, faults }).await.unwrap()
    }

    /// Waits, block by block, until `done`; after `blocks_max` blocks the test has failed, with `what` as its reason.
    pub async fn until(&self, what: &str, blocks_max: u64, mut done: impl FnMut() -> bool) {
        let mut heads = self.host.reader().heads();
        let first = heads.borrow_and_update().best.number.0;
        while !done() {
            heads.changed().await.unwrap();
            let block = heads.borrow_and_update().best.number.0;
            assert!(block < first + blocks_max, "not within {blocks_max} blocks: {what}\n{}", self.last_words());
        }
    }

    /// The last events of every node: what a failed test is understood by.
    fn last_words(&self) -> String {
        let nodes =
            std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path().join(events::FILE_NAME));
        let mut words = String::new();
        for path in nodes {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            words.push_str(&lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n"));
            words.push_str("\n\n");
        }
        words
    }

    pub fn events(&self, member: &Member) -> Vec<Line> {
        events::read(&self.dir.path().join(member.name).join(events::FILE_NAME)).unwrap()
    }

    pub async fn seed(&self, config: &NodeConfig, round: Round) -> BlockHash {
        let schedule = convoke::round::Schedule::new(&config.run.timing);
        self.host.reader().block_hash(schedule.seed_block(round)).await.unwrap().unwrap()
    }
}

/// Ends nodes in order; each must exit with code 0.
pub async fn stop(nodes: Vec<Node>) {
    for node in &nodes {
        node.stop();
    }
    for node in nodes {
        assert_eq!(node.ended().await, 0);
    }
}

/// θ's digest after each round, as a node has recorded it; a null round has none.
pub fn digests(events: &[Line]) -> BTreeMap<Round, Option<Digest>> {
    events
        .iter()
        .filter_map(|line| match &line.event {
            Event::OuterStep { digest, .. } => Some((line.round?, Some(*digest))),
            Event::NullRound { .. } => Some((line.round?, None)),
            _ => None,
        })
        .collect()
}

/// Whose payloads each round applied.
pub fn contributors(events: &[Line]) -> BTreeMap<Round, Vec<Uid>> {
    let applied = events.iter().filter_map(|line| match &line.event {
        Event::OuterStep { contributors, .. } => Some((line.round?, contributors.clone())),
        _ => None,
    });
    applied.collect()
}

/// Inner steps behind the payloads that a node has sealed, by round.
pub fn sealed_steps(events: &[Line]) -> BTreeMap<Round, u32> {
    let sealed = events.iter().filter_map(|line| match &line.event {
        Event::Sealed { inner_steps, .. } => Some((line.round?, *inner_steps)),
        _ => None,
    });
    sealed.collect()
}

/// no two nodes differ in any round that both completed. Answers how many rounds all of them completed.
#[track_caller]
pub fn assert_one_digest_a_round(histories: &[Vec<Line>]) -> usize {
    let all: Vec<_> = histories.iter().map(|events| digests(events)).collect();
    let mut shared = 0;
    for (round, digest) in &all[0] {
        let others: Vec<_> = all[1..].iter().filter_map(|digests| digests.get(round)).collect();
        assert!(others.iter().all(|other| *other == digest), "round {round}: {digest:?} against {others:?}");
        shared += usize::from(others.len() == all.len() - 1);
    }
    shared
}

/// The node's tokens, for the reference.
pub struct Tokens(pub Dataset);

impl Samples for Tokens {
    fn count(&self) -> u64 {
        self.0.n_train_samples()
    }

    fn sample(&self, idx: u64) -> Vec<u32> {
        self.0.sample(idx)
    }
}

/// The plain function that the nodes must equal, for a run of these miners.
pub fn reference(config: &NodeConfig, miners: &[Member]) -> Reference<Tokens> {
    reference_of(config, miners.iter().map(|miner| Identity::of_seed(miner.seed).keypair()).collect())
}

/// The same, for miners of whom there is nothing but their keys.
pub fn reference_of(config: &NodeConfig, peers: Vec<HotkeyPair>) -> Reference<Tokens> {
    let run: &RunSpec = &config.run;
    let dataset =
        Dataset::open(&config.data, &run.data, run.model.context_len, run.model.vocab_size, &config.node.data_dir)
            .unwrap();
    let run_id = run.run_id(&dataset.digest());
    let device = convoke_node::gpu_worker::find("cpu").unwrap();
    Reference::new(run.clone(), run_id, Tokens(dataset), device, peers).unwrap()
}

/// One miner's part in a round.
pub fn part(miner: &Member, uid: u16, steps: u32, applied: bool) -> Part {
    Part { hotkey: Identity::of_seed(miner.seed).keypair().hotkey(), uid: Uid(uid), steps, applied }
}
