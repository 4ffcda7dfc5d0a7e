//! The simulated run itself: nodes are born, disturbed, killed and born again, and looked at all the while.

mod book;
mod lives;
mod strikes;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use convoke::chain::Place;
use convoke::round::{Role, Schedule};
use convoke::run_spec::RunSpec;
use convoke::sparseloco::Layout;
use convoke::terms::{Block, Digest, Round};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use self::book::{Book, Entries, Patrol};
use self::lives::{Life, Member, config, endpoint, member, role};
use super::accomplice::Plot;
use super::cast::Part;
use super::chance::Chance;
use super::checks::codec::CheckedOpening;
use super::checks::evidence::{Ear, Evidence, Public, Rules, Subject};
use super::checks::verdicts::{Summary, Verdicts};
use super::checks::{Checks, Violation};
use super::clock::Clocks;
use super::lab::Lab;
use super::log::Log;
use super::memo::Memo;
use super::net::FakeNet;
use super::plan::{EPISODE_ROUNDS, FaultSpec, Ground, Planned};
use super::trainer::shared::Machine;
use super::weather::Weather;
use crate::chain::host::development_genesis;
use crate::chain::{ChainRead, Host, HostConfig, Pace};
use crate::opening::Opening;

/// The subnet.
const NETUID: u16 = 3;
/// 2026-01-01, in milliseconds: the run's time does not depend on today.
const BEGINNING_MS: u64 = 1_767_225_600_000;
/// Of the run.
const BLOCK_TIME: Duration = Duration::from_secs(1);
/// Whole rounds without a fault by whose end everybody has completed one.
const HEALING_ROUNDS: u64 = 2;

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Decides everything.
    pub seed: u64,
    /// Validators and miners together.
    pub nodes: usize,
    /// Rounds of the chain.
    pub rounds: u64,
    /// What goes wrong, and who does wrong.
    pub faults: FaultSpec,
    /// What is trained.
    pub lab: Arc<dyn Lab>,
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
    /// How often the error feedback of a node was looked at (C-1).
    pub judged: u64,
    /// How often everybody had to be back after trouble.
    pub calms: u64,
    /// Why how many payloads of honest nodes were refused.
    pub refused: BTreeMap<String, u64>,
    /// What honest validators say of the miners.
    pub verdicts: Summary,
    /// The first thing that must not be.
    pub violation: Option<Violation>,
    /// The faults, one by one, as a spec.
    pub plan: Vec<Planned>,
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
    opening: Arc<dyn Opening>,
    patrol: Patrol,
    evidence: Option<Evidence>,
    subject: Option<Subject>,
    clocks: Arc<Clocks>,
    plot: Arc<Plot>,
    /// Of all that are one of many.
    machine: Arc<Machine>,
    weather: Arc<Weather>,
    book: Arc<Book>,
    lives: Vec<Option<Life>>,
    births: Vec<u32>,
    /// What strikes at which block.
    strikes: BTreeMap<(u64, usize), Planned>,
    /// When who is born again, what ends when: by the clock, since a chain that stands still makes no blocks to wait for.
    due: BTreeMap<(Instant, u64), Due>,
    n_due: u64,
    /// The last round in which a bit was to be flipped.
    flipped: Option<Round>,
    /// Whether anything has struck, or ended, since the last round began.
    is_troubled: bool,
    /// Since when nothing is wrong any more.
    quiet_since: Option<Round>,
}

/// What happens after a time.
enum Due {
    Strike(Planned),
    End(Planned),
    Birth(usize),
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

impl World {
    async fn new(scenario: Scenario, log: Log) -> anyhow::Result<Self> {
        let chance = Chance::new(scenario.seed);
        let run = config("world", Role::Miner, &*scenario.lab)?.run;
        let schedule = Schedule::new(&run.timing);
        let layout = scenario.lab.layout();
        let roles: Vec<Role> = (0..scenario.nodes).map(role).collect();
        let parts = scenario.faults.cast().assign(scenario.seed, &roles);
        let members = parts.into_iter().enumerate().map(|(idx, part)| member(idx, part, scenario.seed));
        let members: Vec<Member> = members.collect();
        let host = host(scenario.seed, run.timing.finality_depth, &members).await?;
        let reader = host.reader();
        let clocks = Clocks::new(Arc::clone(&reader), members.len());
        let first = schedule.round_of(reader.heads().borrow().best.number).next();
        let endpoints: Vec<_> = members.iter().map(|member| endpoint(&member.identity)).collect();
        let weather = Arc::new(Weather::new(chance, BLOCK_TIME, &endpoints));
        let known: Vec<_> = members.iter().map(|member| (member.hotkey, member.part == Part::Honest)).collect();
        let measure = scenario.lab.measure(scenario.seed, &run);
        let subject = subject(&members, scenario.seed).filter(|_| measure.is_some());
        let entries = Entries {
            log,
            ear: Ear::of(subject),
            checks: Checks::new(&known, first),
            verdicts: Verdicts::new(members.iter().map(Member::played).collect()),
            doomed: vec![Vec::new(); members.len()],
            dead: Vec::new(),
        };
        let book = Arc::new(Book { entries: Mutex::new(entries), wake: Notify::new(), started: Instant::now() });
        let memo = Memo::new(Place { genesis: reader.genesis(), netuid: NETUID });
        let opening: Arc<dyn Opening> = Arc::new(CheckedOpening::new(Arc::new(memo), Arc::clone(&book) as _));
        let patrol = Patrol::new(&members, &layout, &run, chance, first, Arc::clone(&opening));
        let n = members.len();
        let net = FakeNet::new(Arc::clone(&weather) as _);
        Ok(Self {
            evidence: measure.map(|measure| {
                let (run_id, opening) = (run.run_id(&Digest::default()), Arc::clone(&opening));
                let rules = Rules { run: run.clone(), run_id, layout: layout.clone(), opening, measure };
                // Nodes are born in the middle of the round before the first.
                Evidence::new(rules, subject, Round(first.0.saturating_sub(2)))
            }),
            subject,
            opening,
            patrol,
            clocks,
            plot: Arc::new(plot(&members, &net, &layout, &run, chance)),
            machine: Arc::default(),
            net,
            lives: (0..n).map(|_| None).collect(),
            births: vec![0; n],
            strikes: BTreeMap::new(),
            due: BTreeMap::new(),
            n_due: 0,
            flipped: None,
            is_troubled: false,
            quiet_since: None,
            book,
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
        for (idx, planned) in plan.into_iter().enumerate() {
            // Somewhere in the round, so that the phases' edges are met from both sides.
            let which = [planned.round.0, planned.who.key(), planned.kind as u64];
            let offset = Chance::new(self.scenario.seed).below(8, "offset", &which) as u64;
            let at = self.first.0 + planned.round.0;
            self.strikes.insert((self.schedule.first_block(Round(at)).0 + offset, idx), planned);
        }
        for idx in 0..self.members.len() {
            self.bear(idx).await?;
        }
        let last = Round(self.first.0 + self.scenario.rounds);
        let end = self.schedule.first_block(last).0 + 2;
        let mut looked_at = Block(0);
        let mut tick = Instant::now() + BLOCK_TIME / 2;
        while self.block().0 < end && self.book.entries().checks.first_violation().is_none() {
            let book = Arc::clone(&self.book);
            tokio::select! {
                biased;
                () = book.wake.notified() => {}
                () = sleep_until(tick) => tick += BLOCK_TIME / 2,
            }
            self.bury();
            let block = self.block();
            if block > looked_at {
                // Before a fork may hide what the validator has just read.
                self.prove().await?;
            }
            self.do_what_is_due().await?;
            if block > looked_at {
                looked_at = block;
                while let Some(entry) = self.strikes.first_entry().filter(|entry| entry.key().0 <= block.0) {
                    let planned = entry.remove();
                    self.is_troubled = true;
                    self.strike(planned, block);
                }
                self.look(block);
                self.patrol().await;
            }
        }
        Ok(())
    }

    /// G-1: what the drawn validator has said is worked out again.
    async fn prove(&mut self) -> anyhow::Result<()> {
        let Some(evidence) = &mut self.evidence else { return Ok(()) };
        let said = self.book.entries().ear.take();
        let (net, endpoints) = (&self.net, &self.patrol.endpoints);
        let own = self.subject.map_or(0, |subject| subject.node);
        let blob = |hash: &[u8; 32]| {
            let others = || endpoints.iter().find_map(|endpoint| net.blob(*endpoint, hash));
            net.blob(endpoints[own], hash).or_else(others)
        };
        let found = evidence.look(said, &Public { chain: &*self.reader, blob: &blob }).await?;
        if let Some(violation) = found {
            self.book.entries().checks.found(violation);
        }
        Ok(())
    }

    fn plan(&self) -> Vec<Planned> {
        let roles: Vec<Role> = self.members.iter().map(|member| member.role).collect();
        let disturbed: Vec<bool> = self.members.iter().map(|member| member.part == Part::Honest).collect();
        let ground = Ground { roles: &roles, rounds: self.scenario.rounds, disturbed: &disturbed };
        self.scenario.faults.plan(self.scenario.seed, &ground)
    }

    /// For so many block times.
    fn put_off(&mut self, blocks: u64, due: Due) {
        self.n_due += 1;
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        self.due.insert((Instant::now() + BLOCK_TIME * blocks, self.n_due), due);
    }

    async fn do_what_is_due(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        while let Some(entry) = self.due.first_entry().filter(|entry| entry.key().0 <= now) {
            self.is_troubled = true;
            match entry.remove() {
                Due::Strike(planned) => self.strike(planned, self.block()),
                Due::End(planned) => self.set(&planned, false),
                Due::Birth(idx) => self.bear(idx).await?,
            }
        }
        Ok(())
    }

    /// Two whole rounds after the last fault has ended everybody must be back; and at the end of each calm, whatever has ended when.
    fn look(&mut self, block: Block) {
        let (round, first) = (self.schedule.round_of(block), self.first);
        if self.schedule.first_block(round) != block {
            return;
        }
        self.quiet_since = if self.is_quiet() { self.quiet_since.or(Some(round)) } else { None };
        self.is_troubled = false;
        let since = round.0.saturating_sub(first.0);
        let is_healed = self.quiet_since.is_some_and(|quiet| round.0 > quiet.max(first).0 + HEALING_ROUNDS);
        if is_healed || since > 0 && since % EPISODE_ROUNDS == 0 {
            self.book.entries().checks.calm(round, Round(round.0 - 2));
        }
    }

    /// Whether nothing is wrong, and nothing has been since the last round began.
    fn is_quiet(&self) -> bool {
        let entries = self.book.entries();
        let is_doomed = !entries.dead.is_empty() || entries.doomed.iter().any(|doom| !doom.is_empty());
        !self.is_troubled && !is_doomed && self.due.is_empty() && self.lives.iter().all(Option::is_some)
    }

    fn report(self) -> Report {
        let metagraph = self.host.metagraph();
        let plan = self.plan();
        let judged = self.patrol.conservation.n_judged();
        for life in self.lives.into_iter().flatten() {
            life.fence.fall();
            life.node.abandon();
        }
        let entries = self.book.entries();
        let ((log, n_lines), (stepped, null, contributions)) = (entries.log.name(), entries.checks.counts());
        Report {
            log,
            n_lines,
            stepped,
            null,
            contributions,
            n_faults: plan.len(),
            judged,
            calms: entries.checks.n_calms(),
            refused: entries.checks.refused().clone(),
            verdicts: entries.verdicts.summary(|uid| metagraph.by_uid(uid).map(|neuron| neuron.hotkey)),
            violation: entries.checks.first_violation().cloned(),
            plan,
        }
    }
}

/// A chain on which all nodes have their slots.
async fn host(seed: u64, finality_depth: u64, members: &[Member]) -> anyhow::Result<Host> {
    let mut genesis = development_genesis(NETUID, seed);
    genesis.timestamp_ms = BEGINNING_MS;
    genesis.neurons = strikes::strangers(seed, members.len());
    let pace = HostConfig { block_time: BLOCK_TIME, finality_depth, pace: Pace::Virtual, file: None };
    let host = Host::start(&genesis, pace)?;
    for member in members {
        host.dev_register(member.hotkey, member.stake).await?;
    }
    Ok(host)
}

/// What accomplices know of each other and of those whom they rob.
fn plot(members: &[Member], net: &FakeNet, layout: &Layout, run: &RunSpec, chance: Chance) -> Plot {
    let (honest, hostile): (Vec<_>, Vec<_>) =
        members.iter().filter(|it| it.role.mines()).partition(|it| it.part == Part::Honest);
    Plot {
        chance,
        victims: honest.iter().map(|it| (it.hotkey, endpoint(&it.identity))).collect(),
        friends: hostile.iter().map(|it| it.hotkey).collect(),
        net: net.clone(),
        layout: layout.clone(),
        spec: run.sparse.clone(),
    }
}

/// The honest validator whose word is worked out again.
fn subject(members: &[Member], seed: u64) -> Option<Subject> {
    let honest = members.iter().enumerate().filter(|(_, it)| it.role.validates() && it.part == Part::Honest);
    let honest: Vec<Subject> = honest.map(|(node, it)| Subject { node, hotkey: it.hotkey }).collect();
    Subject::drawn(seed, &honest)
}
