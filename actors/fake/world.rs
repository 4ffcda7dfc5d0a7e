//! The simulated run itself: nodes are born, disturbed, killed and born again, and looked at all the while.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use convoke::chain::{Identity as Proven, Place};
use convoke::round::{Role, Schedule};
use convoke::sparseloco::{Layout, TensorShape};
use convoke::terms::{Block, Digest, Hotkey, Round, Stake};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::chain::Port;
use super::chance::Chance;
use super::checks::{Checks, Violation};
use super::disk::FakeDisk;
use super::fence::Fence;
use super::log::Log;
use super::memo::Memo;
use super::net::FakeNet;
use super::plan::{CALM_ROUNDS, EPISODE_ROUNDS, FaultSpec, Ground, Kind, Planned, written};
use super::trainer::{FakeTrainers, Habit};
use super::weather::{Trouble, Weather};
use crate::chain::host::development_genesis;
use crate::chain::{CallFault, ChainRead, Host, HostConfig, Pace};
use crate::config::{Layers, NodeConfig};
use crate::events::{Event, Events, Line, Witness};
use crate::faults::{Fault, FaultKind, Faults};
use crate::identity::Identity;
use crate::leaf::Leaf;
use crate::node::{Node, Parts, journal};
use crate::store::Store;
use crate::workbench::Bench;

/// The subnet.
const NETUID: u16 = 3;
/// 2026-01-01, in milliseconds: the run's time does not depend on today.
const BEGINNING_MS: u64 = 1_767_225_600_000;
/// Of the run.
const BLOCK_TIME: Duration = Duration::from_secs(1);
/// Every so many nodes one validates.
const NODES_PER_VALIDATOR: usize = 8;
/// Samples that there are to train on.
const N_SAMPLES: u64 = 100_000;

/// The run's numbers where they are not the default run's: short rounds, a small θ.
const SETS: &[&str] = &[
    "run.name=simulation",
    "run.inner.steps=4",
    "run.inner.steps_min=2",
    "run.inner.batch_sequences=4",
    "run.inner.micro_batch_sequences=4",
    "run.sparse.keep_per_chunk=16",
    "run.timing.blocks_per_round=16",
    "run.timing.seal_window=4",
    "run.timing.gather_window=3",
    "run.timing.manifest_window=5",
    "run.timing.finality_depth=2",
    "run.timing.checkpoint_rounds=8",
    "run.gauntlet.eval_sequences=8",
    "run.gauntlet.holding_chunks=1",
    "run.gauntlet.rounds_per_weights=3",
    "node.workers=1",
];

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Decides everything.
    pub seed: u64,
    /// Validators and miners together.
    pub nodes: usize,
    /// Rounds of the chain.
    pub rounds: u64,
    /// What goes wrong.
    pub faults: FaultSpec,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Report {
    /// The hash of the log: the run's name.
    pub log: Digest,
    /// Lines of the log.
    pub n_lines: u64,
    /// Rounds with an outer step.
    pub stepped: usize,
    /// Rounds without a manifest.
    pub null: usize,
    /// Payloads that were applied, over all rounds.
    pub contributions: usize,
    /// Faults that there were.
    pub n_faults: usize,
    /// Why how many payloads of honest nodes were refused.
    pub refused: BTreeMap<String, u64>,
    /// The first thing that must not be.
    pub violation: Option<Violation>,
    /// The faults, one by one, as a spec.
    pub plan: Vec<Planned>,
}

/// Who a node is.
struct Member {
    role: Role,
    stake: Stake,
    identity: Identity,
    hotkey: Hotkey,
    disk: FakeDisk,
}

/// A node that lives.
struct Life {
    node: Node,
    fence: Fence,
}

struct World {
    scenario: Scenario,
    members: Vec<Member>,
    layout: Layout,
    schedule: Schedule,
    blocks_per_round: u64,
    /// The chain has some rounds before the nodes are born; this is their first whole one.
    first: Round,
    host: Host,
    reader: Arc<dyn ChainRead>,
    net: FakeNet,
    memo: Arc<Memo>,
    weather: Arc<Weather>,
    book: Arc<Book>,
    lives: Vec<Option<Life>>,
    births: Vec<u32>,
    /// When who is born again, what ends when.
    due: BTreeMap<(u64, u64), Due>,
    n_due: u64,
}

/// What happens at a block.
enum Due {
    Strike(Planned),
    End(Planned),
    Birth(usize),
}

/// What all lives write in, and what the world reads.
struct Book {
    pages: Mutex<Pages>,
    wake: Notify,
    started: Instant,
}

struct Pages {
    log: Log,
    checks: Checks,
    /// Deaths that wait for their phase, by node.
    doomed: Vec<Vec<Planned>>,
    /// Who has just died, and for how long.
    dead: Vec<(usize, u64)>,
}

impl Book {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One life's line to the book.
struct Eye {
    book: Arc<Book>,
    node: usize,
    fence: Fence,
}

impl Witness for Eye {
    fn unix_ms(&self) -> u64 {
        BEGINNING_MS + u64::try_from(self.book.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn see(&self, line: Line) {
        if self.fence.has_fallen() {
            return;
        }
        let mut pages = self.book.pages();
        let pages = &mut *pages;
        pages.log.event(&line);
        pages.checks.event(self.node, &line);
        let (Event::PhaseStarted { phase }, Some(round)) = (&line.event, line.round) else { return };
        let doomed = &mut pages.doomed[self.node];
        let is_now = |planned: &Planned| planned.round <= round && planned.point == *phase;
        if let Some(idx) = doomed.iter().position(is_now) {
            let planned = doomed.swap_remove(idx);
            // From here on nobody hears of it; what is left of its tasks is ended by the world.
            self.fence.fall();
            pages.log.text(&format!("node {} dies in {phase} of round {round}", self.node));
            pages.dead.push((self.node, planned.blocks));
            self.book.wake.notify_one();
        }
    }
}

/// Simulates a run on this thread, until its last round is over or something is wrong.
///
/// # Errors
/// If the simulation itself cannot be set up.
pub fn simulate(scenario: Scenario, log: Log) -> anyhow::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    runtime.block_on(async {
        let mut world = World::new(scenario, log).await?;
        world.run().await?;
        Ok(world.report())
    })
}

fn config(name: &str, role: Role) -> anyhow::Result<NodeConfig> {
    let layers = SETS.iter().try_fold(Layers::default(), |layers, set| layers.set(set))?;
    let layers = layers.put("node.name", name)?.put("node.role", role.name())?;
    Ok(layers.put("node.data_dir", format!("/{name}"))?.read()?)
}

impl World {
    async fn new(scenario: Scenario, log: Log) -> anyhow::Result<Self> {
        let chance = Chance::new(scenario.seed);
        let run = config("world", Role::Miner)?.run;
        let schedule = Schedule::new(&run.timing);
        let shape = |name: &str, shape: &[usize]| TensorShape { name: name.to_owned(), shape: shape.to_vec() };
        let layout = Layout::new(vec![shape("matrix", &[64, 64]), shape("vector", &[100])])?;
        let members: Vec<Member> = (0..scenario.nodes).map(|idx| member(idx, scenario.seed)).collect();
        let mut genesis = development_genesis(NETUID, scenario.seed);
        genesis.timestamp_ms = BEGINNING_MS;
        let pace = HostConfig {
            block_time: BLOCK_TIME,
            finality_depth: run.timing.finality_depth,
            pace: Pace::Virtual,
            file: None,
        };
        let host = Host::start(&genesis, pace)?;
        for member in &members {
            host.dev_register(member.hotkey, member.stake).await?;
        }
        let reader = host.reader();
        let first = schedule.round_of(reader.heads().borrow().best.number).next();
        let endpoints: Vec<_> = members.iter().map(|member| endpoint(&member.identity)).collect();
        let weather = Arc::new(Weather::new(chance, BLOCK_TIME, &endpoints));
        let known: Vec<_> = members.iter().map(|member| (member.hotkey, true)).collect();
        let pages = Pages {
            log,
            checks: Checks::new(&known, first),
            doomed: vec![Vec::new(); members.len()],
            dead: Vec::new(),
        };
        let book = Book { pages: Mutex::new(pages), wake: Notify::new(), started: Instant::now() };
        let n = members.len();
        Ok(Self {
            memo: Arc::default(),
            net: FakeNet::new(Arc::clone(&weather) as _),
            lives: (0..n).map(|_| None).collect(),
            births: vec![0; n],
            due: BTreeMap::new(),
            n_due: 0,
            book: Arc::new(book),
            scenario,
            members,
            layout,
            schedule,
            blocks_per_round: run.timing.blocks_per_round,
            first,
            host,
            reader,
            weather,
        })
    }

    fn block(&self) -> Block {
        self.reader.heads().borrow().best.number
    }

    async fn run(&mut self) -> anyhow::Result<()> {
        let plan = self.plan();
        for planned in plan {
            // Somewhere in the round, so that the phases' edges are met from both sides.
            let which = [planned.round.0, planned.node.unwrap_or(usize::MAX) as u64, planned.kind as u64];
            let offset = Chance::new(self.scenario.seed).below(8, "offset", &which) as u64;
            let at = self.first.0 + planned.round.0;
            self.put_off(self.schedule.first_block(Round(at)).0 + offset, Due::Strike(planned));
        }
        for idx in 0..self.members.len() {
            self.bear(idx).await?;
        }
        let last = Round(self.first.0 + self.scenario.rounds);
        let end = self.schedule.first_block(last).0 + 2;
        let mut looked_at = Block(0);
        let mut tick = Instant::now() + BLOCK_TIME / 2;
        while self.block().0 < end && self.book.pages().checks.first_violation().is_none() {
            let book = Arc::clone(&self.book);
            tokio::select! {
                biased;
                () = book.wake.notified() => {}
                () = sleep_until(tick) => tick += BLOCK_TIME / 2,
            }
            self.bury();
            let block = self.block();
            if block > looked_at {
                looked_at = block;
                self.do_what_is_due(block).await?;
                self.look(block);
            }
        }
        Ok(())
    }

    fn plan(&self) -> Vec<Planned> {
        let roles: Vec<Role> = self.members.iter().map(|member| member.role).collect();
        let disturbed = vec![true; roles.len()];
        let ground = Ground { roles: &roles, rounds: self.scenario.rounds, disturbed: &disturbed };
        self.scenario.faults.plan(self.scenario.seed, &ground)
    }

    fn put_off(&mut self, block: u64, due: Due) {
        self.n_due += 1;
        self.due.insert((block, self.n_due), due);
    }

    async fn do_what_is_due(&mut self, block: Block) -> anyhow::Result<()> {
        while let Some(entry) = self.due.first_entry().filter(|entry| entry.key().0 <= block.0) {
            match entry.remove() {
                Due::Strike(planned) => self.strike(planned, block),
                Due::End(planned) => self.set(&planned, false),
                Due::Birth(idx) => self.bear(idx).await?,
            }
        }
        Ok(())
    }

    fn strike(&mut self, planned: Planned, block: Block) {
        self.book.pages().log.text(&format!("block {}: {planned}", block.0));
        let round = self.schedule.round_of(block);
        match planned.kind {
            Kind::Die => {
                if let Some(node) = planned.node {
                    self.book.pages().doomed[node].push(Planned { round, ..planned });
                }
            }
            Kind::Panic | Kind::Hang | Kind::Flip => self.script(&planned, round),
            _ => {
                self.set(&planned, true);
                let blocks = planned.blocks.max(self.blocks_per_round / 2);
                self.put_off(block.0 + blocks, Due::End(planned));
            }
        }
    }

    /// A fault of an actor goes into the script of the node's present life.
    fn script(&self, planned: &Planned, round: Round) {
        let Some(life) = planned.node.and_then(|node| self.lives[node].as_ref()) else { return };
        let (leaf, point) = match planned.kind {
            Kind::Flip => ("compressor", "outer-step"),
            _ => planned.point.split_once('.').unwrap_or(("", "")),
        };
        let Some(leaf) = Leaf::ALL.into_iter().find(|known| known.name() == leaf) else { return };
        let kind = match planned.kind {
            Kind::Hang => FaultKind::Hang,
            Kind::Flip => FaultKind::Flip,
            _ => FaultKind::Panic,
        };
        life.node.parts.faults.add(Fault { leaf, point: point.to_owned(), round, kind });
    }

    /// Begins or ends what lasts.
    fn set(&self, planned: &Planned, is_on: bool) {
        let change = |change: fn(&mut Trouble, bool)| {
            if let Some(node) = planned.node {
                self.weather.change(node, |trouble| change(trouble, is_on));
            }
        };
        let call = |fault: CallFault| {
            if let Some(node) = planned.node.filter(|_| is_on) {
                self.host.fault_next_call(self.members[node].hotkey, fault);
            }
        };
        match planned.kind {
            Kind::Cut => change(|trouble, is_on| trouble.is_cut = is_on),
            Kind::Loss => change(|trouble, is_on| trouble.is_lossy = is_on),
            Kind::Withhold => change(|trouble, is_on| trouble.withholds = is_on),
            Kind::Corrupt => change(|trouble, is_on| trouble.corrupts = is_on),
            Kind::Slow => {
                if let (Some(node), Some((leaf, point))) = (planned.node, planned.point.split_once('.')) {
                    let leaf = Leaf::ALL.into_iter().find(|known| known.name() == leaf);
                    let slow = leaf.filter(|_| is_on).map(|leaf| (leaf, point.to_owned()));
                    self.weather.change(node, |trouble| trouble.slow = slow);
                }
            }
            Kind::DiskFull => {
                if let Some(node) = planned.node {
                    self.members[node].disk.set_full(is_on);
                }
            }
            Kind::DelayCall => call(CallFault::Delay(planned.blocks)),
            Kind::DropCall => call(CallFault::Drop),
            Kind::LoseAnswer => call(CallFault::LoseAnswer),
            Kind::Stall => self.host.stall_blocks(is_on),
            Kind::StallFinality => self.host.stall_finality(is_on),
            Kind::Die | Kind::Panic | Kind::Hang | Kind::Flip => {}
        }
    }

    /// Ends what is left of those that have died.
    fn bury(&mut self) {
        let dead = std::mem::take(&mut self.book.pages().dead);
        for (idx, blocks) in dead {
            if let Some(life) = self.lives[idx].take() {
                life.node.abandon();
            }
            self.put_off(self.block().0 + blocks.max(1), Due::Birth(idx));
        }
    }

    /// At the end of each calm everybody must be back.
    fn look(&mut self, block: Block) {
        let (round, first) = (self.schedule.round_of(block), self.first);
        let is_first_block = self.schedule.first_block(round) == block;
        let since = round.0.saturating_sub(first.0);
        if is_first_block && since > 0 && since % EPISODE_ROUNDS == 0 {
            self.book.pages().checks.calm(round, Round(round.0 - 2));
        }
        debug_assert!(CALM_ROUNDS >= 4);
    }

    async fn bear(&mut self, idx: usize) -> anyhow::Result<()> {
        if self.lives[idx].is_some() {
            return Ok(());
        }
        self.births[idx] += 1;
        let fence = Fence::new();
        let (parts, resumed_at) = self.parts(idx, &fence)?;
        let node = Node::of(Arc::new(parts), resumed_at).await.context("a simulated node")?;
        self.lives[idx] = Some(Life { node, fence });
        Ok(())
    }

    fn parts(&self, idx: usize, fence: &Fence) -> anyhow::Result<(Parts, Option<Round>)> {
        let member = &self.members[idx];
        let config = config(&format!("n{idx}"), member.role)?;
        let run_id = config.run.run_id(&Digest::default());
        let disk = Arc::new(member.disk.mount(fence.clone()));
        let store = Store::open_on(disk, &config.node.data_dir.join("state"), run_id)?;
        store.keep_to_chain(self.reader.genesis())?;
        let resumed_at = store.latest()?;
        let eye = Eye { book: Arc::clone(&self.book), node: idx, fence: fence.clone() };
        let events = Events::seen_by(Arc::new(eye), &config.node.name);
        let journal = journal(&config, member.hotkey, run_id, BLOCK_TIME, events);
        let place = Place { genesis: self.reader.genesis(), netuid: NETUID };
        let proven = Proven::prove(&member.identity.endpoint, &place, &member.hotkey, self.births[idx], None);
        let port = Port::new(Arc::clone(&self.reader), self.host.connect(member.identity.keypair()), fence.clone());
        let parts = Parts {
            run_id,
            layout: self.layout.clone(),
            schedule: self.schedule.clone(),
            trainers: Arc::new(FakeTrainers::new(self.scenario.seed, N_SAMPLES, Habit::Honest)),
            store,
            keypair: member.identity.keypair(),
            identity: proven,
            chain: Arc::clone(&port) as _,
            chain_write: port,
            transport: self.net.port(endpoint(&member.identity), fence.clone()),
            addresses: Arc::default(),
            faults: Arc::new(Faults::new(Vec::new(), journal.clone())),
            journal,
            bench: Bench::Task(self.weather.pace(idx)),
            opening: Arc::clone(&self.memo) as _,
            rounds: None,
            closing_words: Mutex::new(None),
            config,
        };
        Ok((parts, resumed_at))
    }

    fn report(self) -> Report {
        let plan = self.plan();
        for life in self.lives.into_iter().flatten() {
            life.fence.fall();
            life.node.abandon();
        }
        let pages = self.book.pages();
        let ((log, n_lines), (stepped, null, contributions)) = (pages.log.name(), pages.checks.counts());
        Report {
            log,
            n_lines,
            stepped,
            null,
            contributions,
            n_faults: plan.len(),
            refused: pages.checks.refused().clone(),
            violation: pages.checks.first_violation().cloned(),
            plan,
        }
    }
}

fn endpoint(identity: &Identity) -> convoke::terms::EndpointId {
    convoke::terms::EndpointId(*iroh::SecretKey::from_bytes(&identity.endpoint).public().as_bytes())
}

/// The first of every eight is a validator. No two have the same stake: who leads is decided.
fn member(idx: usize, seed: u64) -> Member {
    let is_validator = idx.is_multiple_of(NODES_PER_VALIDATOR);
    let (role, stake) = if is_validator { (Role::Validator, 2_000_000_000_000 - idx as u64) } else { (Role::Miner, 0) };
    let identity = Identity::of_seed(Chance::new(seed).draw("identity", &[idx as u64]));
    let hotkey = identity.keypair().hotkey();
    Member { role, stake: Stake(stake), identity, hotkey, disk: FakeDisk::new() }
}

/// Makes the faults of a failed run fewer, as long as the same rule is broken (Zeller and Hildebrandt 2002, ddmin): at most so many
/// runs. Answers the list, and how often it was run.
pub fn minimise(scenario: &Scenario, failed: &Report, runs_max: usize) -> anyhow::Result<(Vec<Planned>, usize)> {
    let Some(violation) = &failed.violation else { return Ok((failed.plan.clone(), 0)) };
    let mut plan: Vec<Planned> =
        failed.plan.iter().filter(|planned| planned.round <= violation.round).cloned().collect();
    let (mut n_parts, mut runs) = (2, 0);
    while plan.len() > 1 && runs < runs_max {
        let len = plan.len().div_ceil(n_parts);
        let mut smaller = None;
        for part in 0..n_parts {
            let rest: Vec<Planned> = plan
                .iter()
                .enumerate()
                .filter(|(idx, _)| idx / len != part)
                .map(|(_, planned)| planned.clone())
                .collect();
            if rest.len() == plan.len() || runs == runs_max {
                continue;
            }
            runs += 1;
            let faults: FaultSpec = written(&rest).parse()?;
            let report = simulate(Scenario { faults, ..scenario.clone() }, Log::default())?;
            if report.violation.is_some_and(|found| found.rule == violation.rule) {
                smaller = Some(rest);
                break;
            }
        }
        match smaller {
            Some(rest) => (plan, n_parts) = (rest, n_parts.saturating_sub(1).max(2)),
            None if n_parts >= plan.len() => break,
            None => n_parts = (2 * n_parts).min(plan.len()),
        }
    }
    Ok((plan, runs))
}
