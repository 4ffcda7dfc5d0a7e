//! How a planned fault comes into the world, and how it leaves it.
//!
//! | kinds | how |
//! |---|---|
//! | `die`, `lose-leader` | as the node begins its phase; or the life's script ends the process at the point |
//! | `panic`, `hang`, `flip` | the life's script |
//! | `slow`, what is the matter with links, `withhold`, `corrupt`, `lie`, `equivocate` | the weather |
//! | `disk-full`, `tear`, `rot` | the node's disk |
//! | `skew` | the clocks |
//! | `delay-call` and the like, `late-seal`, `stall`, `fork` | the chain's host |
//! | `crowd`, `renumber` | calls of the chain's faucet, and [`strangers`] that are there from the beginning |
//!
//! What would do lasting harm is healed here, as whoever runs a node would do it: a process that has died in a write is started again when
//! the fault ends; a node that has lost its slot registers again and is started again, since the chain has forgotten its identity,
//! and that is looked at until everybody has one. Strangers stay, earn nothing, and are the first to go once they are no longer immune.

use convoke::chain::{Call, GenesisNeuron, Hyperparameters};
use convoke::terms::{Block, Hotkey, Round};

use super::{BLOCK_TIME, Due, NETUID, World};
use crate::chain::CallFault;
use crate::fake::chance::Chance;
use crate::fake::clock::Skew;
use crate::fake::disk::Torn;
use crate::fake::plan::{Kind, Planned, Reach, Who};
use crate::fake::weather::{Trouble, Wall};
use crate::faults::{Fault, FaultKind};
use crate::leaf::Leaf;

/// Blocks until it is looked whether those who have registered again have their slots.
const LOOK_AGAIN_BLOCKS: u64 = 8;
/// Blocks for which a node is down that registers again: its call is in a block by then.
const REGISTERING_BLOCKS: u64 = 3;

/// Rounds between two flipped bits, which are the same bit: a validator with most of the stake and somebody who has sealed that share a wrong
/// θ have decided, and all others are then off what is agreed.
const FLIPS_APART: u64 = 8;

/// How often a subnet can be numbered anew.
const N_STRANGERS: u64 = 4;

/// Nobody's hotkey: the strangers of one group are told apart by their numbers.
fn stranger(group: u64, number: u64) -> Hotkey {
    let mut hotkey = [0; 32];
    for (idx, word) in hotkey.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *word = Chance::new(group).draw("stranger", &[number, idx as u64]).to_le_bytes();
    }
    Hotkey(hotkey)
}

/// Strangers that have their slots before all nodes have theirs, as far as there is room: when one of them loses his, everybody has another
/// uid. How many there are is no matter of the faults: with a fault less the run must stay the same run.
pub(super) fn strangers(seed: u64, n_members: usize) -> Vec<GenesisNeuron> {
    let room = usize::from(Hyperparameters::development().max_allowed_uids).saturating_sub(n_members);
    let group = Chance::new(seed).draw("strangers", &[]);
    let neuron = |hotkey| GenesisNeuron { hotkey, coldkey: hotkey, stake: 0 };
    (0..N_STRANGERS.min(room as u64)).map(|number| neuron(stranger(group, number))).collect()
}

impl World {
    /// Lets a fault begin, or waits with it until its time has come.
    pub(super) fn strike(&mut self, planned: Planned, block: Block) {
        if let Some(edge) = self.edge_ahead(&planned, block) {
            return self.put_off(edge.0 - block.0, Due::Strike(planned));
        }
        match self.single(&planned) {
            Some(each) => each.into_iter().for_each(|planned| self.strike(planned, block)),
            None => self.strike_one(planned, block),
        }
    }

    /// The faults of one node each that a fault of some nodes, or of the leader, comes to; none if it is a single one.
    fn single(&self, planned: &Planned) -> Option<Vec<Planned>> {
        let nodes: Vec<usize> = match (planned.kind.reach(), planned.who) {
            (Reach::Node, Who::Nodes(first, last)) => (first..=last.min(self.members.len() - 1)).collect(),
            (Reach::Node | Reach::Leader, Who::Leader) => self.leader().into_iter().collect(),
            _ => return None,
        };
        Some(nodes.into_iter().map(|node| Planned { who: Who::Node(node), ..planned.clone() }).collect())
    }

    /// The validator with the most stake.
    fn leader(&self) -> Option<usize> {
        let validators = (0..self.members.len()).filter(|idx| self.members[*idx].role.validates());
        validators.max_by_key(|idx| self.members[*idx].stake)
    }

    fn strike_one(&mut self, planned: Planned, block: Block) {
        let mut entries = self.book.entries();
        entries.log.text(&format!("block {}: {planned}", block.0));
        if planned.node().is_some_and(|node| node >= self.members.len()) {
            return entries.log.text("there is no such node");
        }
        drop(entries);
        let round = self.schedule.round_of(block);
        match planned.kind {
            Kind::Die | Kind::LoseLeader => self.doom(planned, round),
            Kind::Flip if self.flipped.is_some_and(|last| round.0 < last.0 + FLIPS_APART) => {
                self.book.entries().log.text("another bit was flipped not long ago");
            }
            Kind::Flip => {
                self.flipped = Some(round);
                self.script(&planned, round);
            }
            Kind::Panic | Kind::Hang => self.script(&planned, round),
            Kind::Rot => self.rot(&planned),
            Kind::Fork => self.fork(&planned),
            _ => {
                self.set(&planned, true);
                let blocks = planned.blocks.max(self.blocks_per_round / 2);
                self.put_off(blocks, Due::End(planned));
            }
        }
    }

    /// The block of the edge that a fault waits for, if it is still to come.
    fn edge_ahead(&self, planned: &Planned, block: Block) -> Option<Block> {
        let round = Round(self.first.0 + planned.round.0);
        let edge = match (planned.kind, planned.point.as_str()) {
            (Kind::Fork, "sealed-by") => self.schedule.sealed_by(round),
            (Kind::Fork, "reveal") => self.schedule.reveal(round),
            (Kind::Fork, "gather-until") => self.schedule.gather_until(round),
            (Kind::Fork, "manifest-at") => self.schedule.manifest_at(round),
            _ => return None,
        };
        (edge > block).then_some(edge)
    }

    /// What is drawn about a fault when it strikes.
    fn draw(&self, kind: &str, planned: &Planned) -> u64 {
        Chance::new(self.scenario.seed).draw(kind, &[planned.round.0, planned.who.key(), planned.kind as u64])
    }

    /// The process will die: when its phase comes, or when its script says so.
    fn doom(&self, planned: Planned, round: Round) {
        let Some(node) = planned.node() else { return };
        if planned.point.contains('.') {
            // Whoever is not alive now has another script when it is.
            if self.lives[node].is_none() {
                return;
            }
            self.script(&planned, round);
        }
        self.book.entries().doomed[node].push(Planned { round, ..planned });
    }

    /// The process dies now.
    fn kill(&self, node: usize, blocks: u64) {
        let Some(life) = &self.lives[node] else { return };
        life.fence.fall();
        self.book.entries().dead.push((node, blocks));
        self.book.wake.notify_one();
    }

    /// A fault of an actor goes into the script of the node's present life.
    fn script(&self, planned: &Planned, round: Round) {
        let Some(life) = planned.node().and_then(|node| self.lives[node].as_ref()) else { return };
        let (leaf, point) = match planned.kind {
            Kind::Flip => ("compressor", "outer-step"),
            _ => planned.point.split_once('.').unwrap_or(("", "")),
        };
        let Some(leaf) = Leaf::ALL.into_iter().find(|known| known.name() == leaf) else { return };
        let kind = match planned.kind {
            Kind::Die => FaultKind::Kill,
            Kind::Hang => FaultKind::Hang,
            Kind::Flip => FaultKind::Flip,
            _ => FaultKind::Panic,
        };
        life.node.parts.faults.add(Fault { leaf, point: point.to_owned(), round, kind });
    }

    /// One bit of what is saved of a round is another. That is found when it is read, which is after the next start.
    fn rot(&self, planned: &Planned) {
        let Some(node) = planned.node() else { return };
        let is_of_round = |path: &std::path::Path| {
            let dir = path.parent().and_then(|dir| dir.file_name()).and_then(|dir| dir.to_str());
            dir.is_some_and(|dir| dir.starts_with("round-"))
        };
        let rotten = self.members[node].disk.flip(is_of_round, self.draw("bit", planned));
        self.book.entries().log.text(&format!("a bit is another in {rotten:?}"));
        self.kill(node, planned.blocks);
    }

    /// The best chain is another. Which branch is longer is drawn: either as long as the one that is gone, or one block longer.
    fn fork(&self, planned: &Planned) {
        let forked = self.host.fork(planned.blocks, self.draw("ahead", planned) % 2);
        let told = match forked {
            Ok(best) => format!("the best block is {} {}", best.number, best.hash),
            Err(error) => format!("no fork: {error}"),
        };
        self.book.entries().log.text(&told);
    }

    /// Begins or ends what lasts.
    pub(super) fn set(&mut self, planned: &Planned, is_on: bool) {
        match (planned.kind, planned.who) {
            (Kind::Stall, _) => self.host.stall_blocks(is_on),
            (Kind::StallFinality, _) => self.host.stall_finality(is_on),
            (Kind::Partition, Who::Nodes(first, last)) => self.weather.build(Wall::Around(first, last), is_on),
            (Kind::Partition, Who::Node(node)) => self.weather.build(Wall::Around(node, node), is_on),
            (Kind::Unlink, Who::Link(from, to)) => self.weather.build(Wall::Between(from, to), is_on),
            (Kind::Crowd, _) if is_on => self.crowd(planned),
            (Kind::Renumber, _) if is_on => self.renumber(),
            (Kind::Crowd | Kind::Renumber, _) => self.take_back(planned),
            (_, Who::Node(node)) => self.set_of_node(planned, node, is_on),
            _ => {}
        }
    }

    fn set_of_node(&self, planned: &Planned, node: usize, is_on: bool) {
        let change = |change: fn(&mut Trouble, bool)| self.weather.change(node, |trouble| change(trouble, is_on));
        let call = |fault: CallFault| {
            if is_on {
                self.host.fault_next_call(self.members[node].hotkey, fault);
            }
        };
        match planned.kind {
            Kind::Cut => change(|trouble, is_on| trouble.is_cut = is_on),
            Kind::Loss => change(|trouble, is_on| trouble.is_lossy = is_on),
            Kind::Withhold => change(|trouble, is_on| trouble.withholds = is_on),
            Kind::Corrupt => change(|trouble, is_on| trouble.corrupts = is_on),
            Kind::Delay => change(|trouble, is_on| trouble.is_delayed = is_on),
            Kind::Duplicate => change(|trouble, is_on| trouble.is_doubled = is_on),
            Kind::Reorder => change(|trouble, is_on| trouble.is_disordered = is_on),
            Kind::Throttle => change(|trouble, is_on| trouble.is_throttled = is_on),
            Kind::Lie => change(|trouble, is_on| trouble.lies = is_on),
            Kind::Equivocate => change(|trouble, is_on| trouble.equivocates = is_on),
            Kind::Slow => self.set_slow(planned, node, is_on),
            Kind::DiskFull => self.members[node].disk.set_full(is_on),
            Kind::Tear => self.tear(planned, node, is_on),
            Kind::Skew => self.clocks.skew(node, if is_on { self.skew(planned) } else { Skew::None }),
            Kind::DelayCall => call(CallFault::Delay(planned.blocks)),
            Kind::LateSeal => call(CallFault::Delay(self.blocks_to_be_late(planned))),
            Kind::DropCall => call(CallFault::Drop),
            Kind::LoseAnswer => call(CallFault::LoseAnswer),
            _ => {}
        }
    }

    fn set_slow(&self, planned: &Planned, node: usize, is_on: bool) {
        let Some((leaf, point)) = planned.point.split_once('.') else { return };
        let leaf = Leaf::ALL.into_iter().find(|known| known.name() == leaf);
        let slow = leaf.filter(|_| is_on).map(|leaf| (leaf, point.to_owned()));
        self.weather.change(node, |trouble| trouble.slow = slow);
    }

    /// The next write is cut off with the process. Nobody hears of such a death, so whoever has died by the end of the fault is found then.
    fn tear(&self, planned: &Planned, node: usize, is_on: bool) {
        let disk = &self.members[node].disk;
        if is_on {
            let draw = self.draw("torn", planned);
            // Of four deaths one comes when the file is already there; most files of a small run have some hundred bytes.
            disk.tear_next(if draw.is_multiple_of(4) { Torn::After } else { Torn::Before((draw / 4 % 512) as usize) });
            return;
        }
        disk.tear_no_more();
        if self.lives[node].as_ref().is_some_and(|life| life.fence.has_fallen()) {
            self.kill(node, 1);
        }
    }

    /// Late by some milliseconds up to three blocks, or early by up to a third of one.
    fn skew(&self, planned: &Planned) -> Skew {
        let draw = self.draw("skew", planned);
        let share = (draw >> 1) as f64 / (u64::MAX >> 1) as f64;
        if draw.is_multiple_of(2) {
            Skew::Late((BLOCK_TIME * 3).mul_f64(share))
        } else {
            Skew::Early((BLOCK_TIME / 3).mul_f64(share))
        }
    }

    /// How long a call must be held back so that the seal which it is misses the last block that counts, whenever in the round it is
    /// sent.
    fn blocks_to_be_late(&self, planned: &Planned) -> u64 {
        let block = self.block();
        self.schedule.sealed_by(self.schedule.round_of(block)).0 - block.0 + planned.blocks
    }

    /// No slot is free any more, and as many strangers register as it takes to push out one who is none.
    fn crowd(&self, planned: &Planned) {
        let metagraph = self.host.metagraph();
        let (block, immunity) = (metagraph.block.0, u64::from(metagraph.hyperparameters.immunity_period));
        let is_member = |hotkey: &Hotkey| self.members.iter().any(|member| member.hotkey == *hotkey);
        let strangers = metagraph.neurons.iter().filter(|neuron| !is_member(&neuron.hotkey));
        // They earn nothing and go first, unless they have only just come.
        let n_mortal = strangers.filter(|neuron| neuron.registered_at.0 + immunity <= block).count() as u64;
        self.trim_to(metagraph.neurons.len());
        let group = self.draw("strangers", planned);
        (0..=n_mortal).for_each(|number| self.register(stranger(group, number), 0));
    }

    /// A slot less. Somebody who earns nothing goes, and whoever comes after him has another uid; where everybody who is not a stranger
    /// needs his slot, nothing happens.
    fn renumber(&self) {
        let n_slots = self.host.metagraph().neurons.len();
        if n_slots > self.members.len() {
            self.trim_to(n_slots - 1);
        }
    }

    fn trim_to(&self, n_slots: usize) {
        let max_n = u16::try_from(n_slots).unwrap_or(u16::MAX);
        // Nobody waits for it: what comes of it is seen on the chain.
        drop(self.host.sudo(Call::SudoTrimToMaxAllowedUids { netuid: NETUID, max_n }));
    }

    fn register(&self, hotkey: Hotkey, stake: u64) {
        drop(self.host.sudo(Call::DevRegister { netuid: NETUID, hotkey, stake }));
    }

    /// Those who have lost their slots register again; it is looked again later whether they have them, or have pushed out others.
    fn take_back(&mut self, planned: &Planned) {
        let metagraph = self.host.metagraph();
        let is_out = |idx: &usize| metagraph.by_hotkey(&self.members[*idx].hotkey).is_none();
        let out: Vec<usize> = (0..self.members.len()).filter(is_out).collect();
        for idx in &out {
            let member = &self.members[*idx];
            self.register(member.hotkey, member.stake.0);
            self.kill(*idx, REGISTERING_BLOCKS);
            self.book.entries().log.text(&format!("node {idx} registers again"));
        }
        if !out.is_empty() {
            self.put_off(LOOK_AGAIN_BLOCKS, Due::End(planned.clone()));
        }
    }
}
