//! How a planned fault comes into the world.

use convoke::terms::{Block, Round};

use super::{Due, World};
use crate::chain::CallFault;
use crate::fake::plan::{Kind, Planned};
use crate::fake::weather::Trouble;
use crate::faults::{Fault, FaultKind};
use crate::leaf::Leaf;

impl World {
    pub(super) fn strike(&mut self, planned: Planned, block: Block) {
        self.book.entries().log.text(&format!("block {}: {planned}", block.0));
        let round = self.schedule.round_of(block);
        match planned.kind {
            Kind::Die => {
                if let Some(node) = planned.node {
                    self.book.entries().doomed[node].push(Planned { round, ..planned });
                }
            }
            Kind::Panic | Kind::Hang | Kind::Flip => self.script(&planned, round),
            _ => {
                self.set(&planned, true);
                let blocks = planned.blocks.max(self.blocks_per_round / 2);
                self.put_off(blocks, Due::End(planned));
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
    pub(super) fn set(&self, planned: &Planned, is_on: bool) {
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
}
