//! How the nodes of a simulated run are born, and what is done with the dead.

use std::sync::{Arc, Mutex};

use anyhow::Context;
use convoke::chain::{Identity as Proven, Place};
use convoke::round::Role;
use convoke::terms::{Digest, EndpointId, Hotkey, Round, Stake};

use super::book::Eye;
use super::{BLOCK_TIME, Due, NETUID, World};
use crate::chain::ChainWrite;
use crate::config::{Layers, NodeConfig};
use crate::events::Events;
use crate::fake::accomplice::Accomplice;
use crate::fake::cast::Part;
use crate::fake::chain::Port;
use crate::fake::chance::Chance;
use crate::fake::checks::verdicts::Played;
use crate::fake::disk::FakeDisk;
use crate::fake::fence::Fence;
use crate::fake::lab::Lab;
use crate::fake::trainer::twist::{Partial, twisted};
use crate::fake::two_faced::TwoFaced;
use crate::faults::Faults;
use crate::gpu_worker::Trainers;
use crate::identity::Identity;
use crate::metrics::spawn_upkeep;
use crate::node::{Node, Parts, journal};
use crate::store::Store;
use crate::workbench::Bench;

/// Every so many nodes one validates.
const NODES_PER_VALIDATOR: usize = 8;
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

/// Who a node is.
pub(super) struct Member {
    pub role: Role,
    pub part: Part,
    pub stake: Stake,
    pub identity: Identity,
    pub hotkey: Hotkey,
    pub disk: FakeDisk,
}

impl Member {
    /// For those who count.
    pub fn played(&self) -> Played {
        Played { hotkey: self.hotkey, role: self.role, part: self.part }
    }
}

/// A node that lives.
pub(super) struct Life {
    pub node: Node,
    pub fence: Fence,
}

impl World {
    /// Ends what is left of those that have died.
    pub(super) fn bury(&mut self) {
        let dead = std::mem::take(&mut self.book.entries().dead);
        for (idx, blocks) in dead {
            if let Some(life) = self.lives[idx].take() {
                life.node.abandon();
            }
            self.put_off(blocks.max(1), Due::Birth(idx));
        }
    }

    pub(super) async fn bear(&mut self, idx: usize) -> anyhow::Result<()> {
        if self.lives[idx].is_some() {
            return Ok(());
        }
        if self.members[idx].disk.is_full() {
            // A process that cannot write does not start; whoever looks after it tries again.
            self.put_off(2, Due::Birth(idx));
            return Ok(());
        }
        self.births[idx] += 1;
        let fence = Fence::new();
        let (parts, resumed_at) = self.parts(idx, &fence)?;
        let node = Node::of(Arc::new(parts), resumed_at).await.context("a simulated node")?;
        self.lives[idx] = Some(Life { node, fence });
        Ok(())
    }

    fn trainers(&self, idx: usize) -> Arc<dyn Trainers> {
        let (seed, part) = (self.scenario.seed, self.members[idx].part);
        let trainers = self.scenario.lab.trainers(seed, &part.habit(self.first));
        match part {
            Part::Sybil => self.machine.trainers(Chance::new(Chance::new(seed).draw("sybil", &[idx as u64])), trainers),
            Part::Colluder => twisted(trainers, Arc::new(Partial { friends: self.plot.friends.clone() })),
            _ => trainers,
        }
    }

    fn parts(&self, idx: usize, fence: &Fence) -> anyhow::Result<(Parts, Option<Round>)> {
        let member = &self.members[idx];
        let config = config(&format!("n{idx}"), member.role, &*self.scenario.lab)?;
        let run_id = config.run.run_id(&Digest::default());
        let disk = Arc::new(member.disk.mount(fence.clone()));
        let store = Store::open_on(disk, &config.node.data_dir.join("state"), run_id)?;
        store.keep_to_chain(self.reader.genesis())?;
        let resumed_at = store.latest()?;
        let eye = Arc::new(Eye { book: Arc::clone(&self.book), node: idx, fence: fence.clone() });
        let events = Events::seen_by(Arc::clone(&eye) as _, &config.node.name);
        let journal = journal(&config, member.hotkey, run_id, BLOCK_TIME, events);
        // There are no pages, which would do it.
        drop(spawn_upkeep(&journal.metrics));
        let place = Place { genesis: self.reader.genesis(), netuid: NETUID };
        let proven = Proven::prove(&member.identity.endpoint, &place, &member.hotkey, self.births[idx], None);
        let write = self.host.connect(member.identity.keypair());
        let write = TwoFaced::new(write, Arc::clone(&self.weather), idx, fence.clone());
        let read = self.clocks.reader(idx);
        let write: Arc<dyn ChainWrite> = match member.part {
            Part::CopyExact | Part::CopySigned | Part::CopyPerturbed | Part::Colluder | Part::WeightCopier => {
                let keys = (member.identity.keypair(), endpoint(&member.identity));
                Accomplice::new(member.part, keys, Arc::clone(&read), write, Arc::clone(&self.plot))
            }
            _ => write,
        };
        let port = Port::new(read, write, fence.clone());
        let parts = Parts {
            run_id,
            layout: self.layout.clone(),
            schedule: self.schedule.clone(),
            trainers: self.patrol.deltas.watch(idx, self.trainers(idx)),
            store,
            keypair: member.identity.keypair(),
            identity: proven,
            chain: Arc::clone(&port) as _,
            chain_write: port,
            transport: self.net.port(endpoint(&member.identity), fence.clone()),
            addresses: Arc::default(),
            faults: Arc::new(Faults::ending(Vec::new(), journal.clone(), move |fault| eye.die(fault))),
            journal,
            bench: Bench::Task(self.patrol.crowds.watch(idx, self.weather.pace(idx))),
            opening: Arc::clone(&self.opening),
            rounds: None,
            closing_words: Mutex::new(None),
            config,
        };
        Ok((parts, resumed_at))
    }
}

pub(super) fn config(name: &str, role: Role, lab: &dyn Lab) -> anyhow::Result<NodeConfig> {
    let layers = SETS.iter().try_fold(Layers::default(), |layers, set| layers.set(set))?;
    let layers = lab.sets().iter().try_fold(layers, |layers, set| layers.set(set))?;
    let layers = layers.put("node.name", name)?.put("node.role", role.name())?;
    Ok(layers.put("node.data_dir", format!("/{name}"))?.read()?)
}

pub(super) fn endpoint(identity: &Identity) -> EndpointId {
    EndpointId(*iroh::SecretKey::from_bytes(&identity.endpoint).public().as_bytes())
}

/// The first of every eight is a validator.
pub(super) fn role(idx: usize) -> Role {
    if idx.is_multiple_of(NODES_PER_VALIDATOR) { Role::Validator } else { Role::Miner }
}

/// No two validators have the same stake: who leads is decided.
pub(super) fn member(idx: usize, part: Part, seed: u64) -> Member {
    let role = role(idx);
    let stake = if role.validates() { 2_000_000_000_000 - idx as u64 } else { 0 };
    let identity = Identity::of_seed(Chance::new(seed).draw("identity", &[idx as u64]));
    let hotkey = identity.keypair().hotkey();
    Member { role, part, stake: Stake(stake), identity, hotkey, disk: FakeDisk::new() }
}
