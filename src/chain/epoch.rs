//! What an epoch stores, and the coinbase that it gives out. When it runs is [`super::EpochSchedule`]'s.

use std::collections::BTreeMap;

use super::schedule::EpochSchedule;
use super::subnet::{Slot, Subnet};
use super::yuma::{self, Member, Rules};
use crate::terms::{Block, Hotkey};

impl Subnet {
    /// One block's part of the coinbase: emission accrues, and an epoch runs if it is due. Returns its index if it did.
    pub(super) fn coinbase(&mut self, stakes: &BTreeMap<Hotkey, u64>, block: Block) -> Option<u64> {
        let of_owner = u128::from(self.hyperparameters.emission_per_block) * u128::from(self.hyperparameters.owner_cut);
        let of_owner = u64::try_from(of_owner / 65_535).unwrap_or(u64::MAX);
        let shared = self.hyperparameters.emission_per_block.saturating_sub(of_owner);
        self.pending_emission = self.pending_emission.saturating_add(shared);
        let mut schedule = self.schedule();
        let runs = schedule.pass(block);
        if runs {
            self.run_epoch(stakes, block);
            self.pending_emission = 0;
        }
        self.last_epoch = schedule.last_epoch;
        self.pending_epoch_at = schedule.pending_epoch_at;
        self.epoch_index = schedule.epoch_index;
        self.blocks_since_last_step = schedule.blocks_since_last_step;
        runs.then_some(self.epoch_index)
    }

    /// The schedule after the last block.
    pub(super) fn schedule(&self) -> EpochSchedule {
        EpochSchedule {
            tempo: self.hyperparameters.tempo,
            last_epoch: self.last_epoch,
            pending_epoch_at: self.pending_epoch_at,
            epoch_index: self.epoch_index,
            blocks_since_last_step: self.blocks_since_last_step,
        }
    }

    fn run_epoch(&mut self, stakes: &BTreeMap<Hotkey, u64>, block: Block) {
        let hyper = &self.hyperparameters;
        let rules = Rules {
            block: block.0,
            last_step: if self.last_epoch == 0 {
                block.0.saturating_sub(u64::from(hyper.tempo))
            } else {
                self.last_epoch + 1
            },
            activity_cutoff: hyper.activity_cutoff,
            stake_threshold: hyper.stake_threshold,
            validators_max: usize::from(hyper.max_allowed_validators),
            kappa: hyper.kappa,
            bonds_moving_average: hyper.bonds_moving_average,
            bonds_penalty: hyper.bonds_penalty,
            owner: self.owner_uid().map(|uid| usize::from(uid.0)),
            emission: self.pending_emission,
        };
        // The epoch that begins is counted before it is computed.
        let earliest = if hyper.commit_reveal_weights_enabled {
            self.open_commits.earliest(self.epoch_index + 1, hyper.reveal_period_epochs)
        } else {
            BTreeMap::new()
        };
        let member = |slot: &mut Slot| Member {
            stake: stakes.get(&slot.hotkey).copied().unwrap_or(0),
            permit: slot.permit,
            last_update: slot.last_update,
            registered_at: slot.registered_at,
            committed_at: earliest.get(&slot.hotkey).map(|block| block.0),
            weights: slot.weights.clone(),
            bonds: std::mem::take(&mut slot.bonds),
        };
        let members: Vec<_> = self.slots.iter_mut().map(member).collect();
        for (slot, terms) in self.slots.iter_mut().zip(yuma::epoch(&members, &rules)) {
            slot.active = terms.active;
            slot.permit = terms.permit;
            slot.incentive = terms.incentive;
            slot.dividends = terms.dividends;
            slot.consensus = terms.consensus;
            slot.validator_trust = terms.validator_trust;
            slot.emission = terms.emission;
            slot.bonds = terms.bonds;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Genesis;

    /// The blocks after `head` up to the first epoch, as upstream's schedule vectors count them.
    fn next(last: u64, pending: u64, tempo: u16, head: u64) -> Option<u64> {
        let mut subnet = Subnet::new(&Genesis::new(1, 0, 0));
        subnet.hyperparameters.tempo = tempo;
        (subnet.last_epoch, subnet.pending_epoch_at) = (last, pending);
        let said = subnet.schedule().next().map(|block| block.0);
        let ran = (head + 1..head + 200).find(|&block| subnet.coinbase(&BTreeMap::new(), Block(block)).is_some());
        assert_eq!(said, ran);
        ran
    }

    #[test]
    fn epochs_count_from_the_last_one_or_come_when_asked_for() {
        assert_eq!(next(10, 0, 50, 10), Some(60));
        assert_eq!(next(80, 95, 20, 91), Some(95));
        assert_eq!(next(80, 150, 20, 91), Some(100));
        assert_eq!(next(10, 0, 0, 10), None);
    }

    #[test]
    fn an_epoch_gives_out_what_accrued_less_the_owners_cut() {
        let mut subnet = Subnet::new(&Genesis::new(1, 0, 0));
        subnet.hyperparameters.tempo = 10;
        subnet.take_slot(Hotkey([1; 32]), Hotkey([2; 32]), Block(1)).unwrap();
        let stakes = BTreeMap::from([(Hotkey([1; 32]), 5)]);
        for block in 1..10 {
            assert_eq!(subnet.coinbase(&stakes, Block(block)), None);
        }
        assert_eq!(subnet.coinbase(&stakes, Block(10)), Some(1));
        // 10 blocks of 1e9 · (1 − 11796/65535).
        assert_eq!(subnet.slots[0].emission, 8_200_045_780);
        assert!(subnet.slots[0].permit);
        assert_eq!((subnet.pending_emission, subnet.last_epoch), (0, 10));
    }
}
