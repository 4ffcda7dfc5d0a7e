//! The subnet: slots, who takes and who loses one, and what a slot costs.
//!
//! Order of checks and the rule for pruning are `pallet-subtensor`'s `do_register` and `get_neuron_to_prune`. There is
//! no event of a deregistration: whoever follows the chain learns of it from `NeuronRegistered` with the reused uid.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::call::{AccountId, DispatchError};
use super::commit_reveal::OpenCommits;
use super::commit_rules::Usage;
use super::genesis::{Genesis, Hyperparameters, Owner};
use super::metagraph::{Committed, Neuron};
use super::q32;
use crate::terms::{Block, Hotkey, Stake, Uid};

/// A trim is refused if this share of what it leaves, in percent, could not be pruned.
const IMMUNE_PERCENT_MAX: usize = 80;

/// What a slot holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Slot {
    pub(super) hotkey: Hotkey,
    pub(super) coldkey: AccountId,
    pub(super) registered_at: u64,
    pub(super) last_update: u64,
    pub(super) active: bool,
    pub(super) permit: bool,
    pub(super) incentive: u16,
    pub(super) dividends: u16,
    pub(super) consensus: u16,
    pub(super) validator_trust: u16,
    pub(super) emission: u64,
    /// (uid, weight), max-upscaled.
    pub(super) weights: Vec<(u16, u16)>,
    /// (uid, bond), the largest of a column upscaled to 65535.
    pub(super) bonds: Vec<(u16, u16)>,
}

impl Slot {
    fn new(hotkey: Hotkey, coldkey: AccountId, block: u64) -> Self {
        Self {
            hotkey,
            coldkey,
            registered_at: block,
            last_update: block,
            active: true,
            permit: false,
            incentive: 0,
            dividends: 0,
            consensus: 0,
            validator_trust: 0,
            emission: 0,
            weights: Vec::new(),
            bonds: Vec::new(),
        }
    }
}

/// One subnet's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    pub(super) netuid: u16,
    pub(super) hyperparameters: Hyperparameters,
    pub(super) owner: Option<Owner>,
    pub(super) burn: u64,
    pub(super) slots: Vec<Slot>,
    pub(super) uids: BTreeMap<Hotkey, u16>,
    pub(super) commitments: BTreeMap<Hotkey, Committed>,
    pub(super) commitment_usage: BTreeMap<Hotkey, Usage>,
    pub(super) open_commits: OpenCommits,
    pub(super) epoch_index: u64,
    pub(super) last_epoch: u64,
    /// An epoch asked for out of turn, or deferred; 0 is none.
    pub(super) pending_epoch_at: u64,
    pub(super) blocks_since_last_step: u64,
    /// Emission not yet given out, in alpha-rao.
    pub(super) pending_emission: u64,
}

impl Subnet {
    /// An empty subnet with the genesis's numbers.
    pub(super) fn new(genesis: &Genesis) -> Self {
        Self {
            netuid: genesis.netuid,
            hyperparameters: genesis.hyperparameters.clone(),
            owner: genesis.owner,
            burn: genesis.hyperparameters.min_burn,
            slots: Vec::new(),
            uids: BTreeMap::new(),
            commitments: BTreeMap::new(),
            commitment_usage: BTreeMap::new(),
            open_commits: OpenCommits::default(),
            epoch_index: 0,
            last_epoch: 0,
            pending_epoch_at: 0,
            blocks_since_last_step: 0,
            pending_emission: 0,
        }
    }

    pub(super) fn uid(&self, hotkey: &Hotkey) -> Option<Uid> {
        self.uids.get(hotkey).copied().map(Uid)
    }

    pub(super) fn slot(&self, uid: Uid) -> Option<&Slot> {
        self.slots.get(usize::from(uid.0))
    }

    /// The owner's slot, if its hotkey is registered.
    pub(super) fn owner_uid(&self) -> Option<Uid> {
        self.owner.and_then(|owner| self.uid(&owner.hotkey))
    }

    /// Gives the hotkey a slot: the next free one, or that of whoever is pruned.
    pub(super) fn take_slot(&mut self, hotkey: Hotkey, coldkey: AccountId, block: Block) -> Result<Uid, DispatchError> {
        if self.uids.contains_key(&hotkey) {
            return Err(DispatchError::HotKeyAlreadyRegisteredInSubNet);
        }
        let slot = Slot::new(hotkey, coldkey, block.0);
        let uid = if self.slots.len() < usize::from(self.hyperparameters.max_allowed_uids) {
            let uid = u16::try_from(self.slots.len()).map_err(|_| DispatchError::NoNeuronIdAvailable)?;
            self.slots.push(slot);
            uid
        } else {
            let uid = self.to_prune(block).ok_or(DispatchError::NoNeuronIdAvailable)?;
            self.clear(uid);
            self.slots[usize::from(uid)] = slot;
            uid
        };
        self.uids.insert(hotkey, uid);
        Ok(Uid(uid))
    }

    /// Whether a slot is free or can be freed.
    pub(super) fn has_room(&self, block: Block) -> bool {
        self.slots.len() < usize::from(self.hyperparameters.max_allowed_uids) || self.to_prune(block).is_some()
    }

    /// Who loses his slot: the lowest emission of the last epoch, then the older registration, then the lower uid;
    /// among the non-immune, unless that would leave too few of them. The owner's hotkey never does.
    fn to_prune(&self, block: Block) -> Option<u16> {
        let mortal = self.slots.iter().zip(0_u16..).filter(|(slot, _)| !self.is_owners(slot));
        let rank = |(slot, uid): &(&Slot, u16)| (slot.emission, slot.registered_at, *uid);
        let (immune, free): (Vec<_>, Vec<_>) = mortal.partition(|(slot, _)| self.is_immune(slot, block));
        let from = if free.len() > usize::from(self.hyperparameters.min_non_immune_uids) { free } else { immune };
        from.into_iter().min_by_key(rank).map(|(_, uid)| uid)
    }

    /// Lowers the number of slots to `max_n`. The lowest emissions go, of equal ones the higher uid, but neither the
    /// owner nor the immune; the others move up to fill the gaps and keep their order, so that a uid that was read
    /// before names somebody else after.
    pub(super) fn trim(&mut self, max_n: u16, block: Block) -> Result<(), DispatchError> {
        let range = self.hyperparameters.min_allowed_uids..=self.hyperparameters.max_allowed_uids;
        if !range.contains(&max_n) {
            return Err(DispatchError::InvalidValue);
        }
        let n_surplus = self.slots.len().saturating_sub(usize::from(max_n));
        let is_kept = |slot: &Slot| self.is_owners(slot) || self.is_immune(slot, block);
        let n_kept = self.slots.iter().filter(|slot| is_kept(slot)).count();
        if n_surplus > 0 && n_kept * 100 >= IMMUNE_PERCENT_MAX * usize::from(max_n) {
            return Err(DispatchError::TrimmingWouldExceedMaxImmunePercentage);
        }
        let mut mortal: Vec<_> = self.slots.iter().zip(0_u16..).filter(|(slot, _)| !is_kept(slot)).collect();
        mortal.sort_by_key(|(slot, uid)| (slot.emission, std::cmp::Reverse(*uid)));
        let gone: BTreeSet<u16> = mortal.into_iter().take(n_surplus).map(|(_, uid)| uid).collect();
        self.hyperparameters.max_allowed_uids = max_n;
        for &uid in &gone {
            self.clear(uid);
        }
        let left = (0_u16..).take(self.slots.len()).filter(|uid| !gone.contains(uid));
        let renumbered: BTreeMap<u16, u16> = left.zip(0..).collect();
        let renumber = |cells: &mut Vec<(u16, u16)>| {
            let moved = cells.iter().filter_map(|(uid, value)| Some((*renumbered.get(uid)?, *value)));
            *cells = moved.collect();
        };
        let slots = std::mem::take(&mut self.slots);
        self.slots =
            slots.into_iter().zip(0_u16..).filter(|(_, uid)| !gone.contains(uid)).map(|(slot, _)| slot).collect();
        for slot in &mut self.slots {
            renumber(&mut slot.weights);
            renumber(&mut slot.bonds);
        }
        self.uids = self.slots.iter().zip(0..).map(|(slot, uid)| (slot.hotkey, uid)).collect();
        Ok(())
    }

    fn is_owners(&self, slot: &Slot) -> bool {
        self.owner.is_some_and(|owner| owner.hotkey == slot.hotkey)
    }

    fn is_immune(&self, slot: &Slot, block: Block) -> bool {
        block.0.saturating_sub(slot.registered_at) < u64::from(self.hyperparameters.immunity_period)
    }

    /// Removes all that hangs on a slot: what others said of it, and its holder's commitment. The chain leaves the
    /// commitment of a pruned hotkey in storage until it is swept; nobody may read it as a member's, so it goes here.
    fn clear(&mut self, uid: u16) {
        let hotkey = self.slots[usize::from(uid)].hotkey;
        self.uids.remove(&hotkey);
        self.commitments.remove(&hotkey);
        self.commitment_usage.remove(&hotkey);
        for slot in &mut self.slots {
            for (to, weight) in &mut slot.weights {
                if *to == uid {
                    *weight = 0;
                }
            }
        }
    }

    /// The price falls by half in its half-life, within its bounds.
    pub(super) fn decay_burn(&mut self, block: Block) {
        if block.0 > 1 && self.hyperparameters.burn_half_life > 0 {
            self.burn = q32::half_life_factor(self.hyperparameters.burn_half_life).of(self.burn);
        }
        self.burn = self.burn.clamp(self.hyperparameters.min_burn, self.hyperparameters.max_burn);
    }

    /// The price rises at once after a registration, so that the next in the same block pays more.
    pub(super) fn raise_burn(&mut self) {
        let raised = u128::from(self.burn) * u128::from(self.hyperparameters.burn_increase_milli) / 1000;
        let raised = u64::try_from(raised).unwrap_or(u64::MAX);
        self.burn = raised.clamp(self.hyperparameters.min_burn, self.hyperparameters.max_burn);
    }

    /// Gives permits to the k highest stakes, and to the owner; the same rule as at an epoch's end.
    pub(super) fn grant_permits(&mut self, stakes: &BTreeMap<Hotkey, u64>) {
        let stake = |slot: &Slot| {
            let stake = stakes.get(&slot.hotkey).copied().unwrap_or(0);
            if self.is_owners(slot) || stake >= self.hyperparameters.stake_threshold { stake } else { 0 }
        };
        let counted: Vec<u64> = self.slots.iter().map(stake).collect();
        let mut permits = top_k(&counted, usize::from(self.hyperparameters.max_allowed_validators));
        if let Some(owner) = self.owner_uid().and_then(|uid| permits.get_mut(usize::from(uid.0))) {
            *owner = true;
        }
        for (slot, permit) in self.slots.iter_mut().zip(permits) {
            slot.permit = permit;
        }
    }

    /// The neurons as a node reads them.
    pub(super) fn neurons(&self, stakes: &BTreeMap<Hotkey, u64>) -> Vec<Neuron> {
        let neuron = |(slot, uid): (&Slot, u16)| Neuron {
            uid: Uid(uid),
            hotkey: slot.hotkey,
            coldkey: slot.coldkey,
            stake: Stake(stakes.get(&slot.hotkey).copied().unwrap_or(0)),
            permit: slot.permit,
            active: slot.active,
            registered_at: Block(slot.registered_at),
            last_update: Block(slot.last_update),
            incentive: slot.incentive,
            dividends: slot.dividends,
            consensus: slot.consensus,
            validator_trust: slot.validator_trust,
            emission: slot.emission,
        };
        self.slots.iter().zip(0..).map(neuron).collect()
    }
}

/// Which of the values are among the k highest and not zero; of equal ones the later counts as higher, as on chain.
pub(super) fn top_k<T: Ord + Copy + Default>(values: &[T], k: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by_key(|&i| values[i]);
    let dropped: BTreeSet<usize> = order.into_iter().take(values.len().saturating_sub(k)).collect();
    values.iter().enumerate().map(|(i, value)| *value != T::default() && !dropped.contains(&i)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(i: u8) -> Hotkey {
        Hotkey([i; 32])
    }

    /// A full subnet of `n`, registered one a block from block 1 on, with the immunity and floor given.
    fn full(n: u8, immunity_period: u16, min_non_immune_uids: u16) -> Subnet {
        let mut genesis = Genesis::new(1, 0, 0);
        let hyper = &mut genesis.hyperparameters;
        (hyper.max_allowed_uids, hyper.immunity_period) = (u16::from(n), immunity_period);
        hyper.min_non_immune_uids = min_non_immune_uids;
        let mut subnet = Subnet::new(&genesis);
        for i in 1..=n {
            subnet.take_slot(key(i), key(100), Block(u64::from(i))).unwrap();
        }
        subnet
    }

    #[test]
    fn the_lowest_emission_is_pruned_then_the_oldest_then_the_lowest_uid() {
        let mut subnet = full(4, 10, 0);
        for (slot, emission) in subnet.slots.iter_mut().zip([5, 3, 3, 9]) {
            slot.emission = emission;
        }
        assert_eq!(subnet.to_prune(Block(1000)), Some(1));
        subnet.slots[1].registered_at = 7;
        assert_eq!(subnet.to_prune(Block(1000)), Some(2));
        subnet.slots[2].registered_at = 7;
        assert_eq!(subnet.to_prune(Block(1000)), Some(1));
    }

    #[test]
    fn the_immune_are_spared_unless_too_few_others_would_be_left() {
        let mut subnet = full(4, 10, 1);
        // At block 12 the first two are past their ten blocks.
        for (slot, emission) in subnet.slots.iter_mut().zip([5, 6, 1, 2]) {
            slot.emission = emission;
        }
        assert_eq!(subnet.to_prune(Block(12)), Some(0));
        subnet.hyperparameters.min_non_immune_uids = 2;
        assert_eq!(subnet.to_prune(Block(12)), Some(2));
    }

    #[test]
    fn the_owner_is_never_pruned() {
        let mut subnet = full(2, 0, 0);
        subnet.owner = Some(Owner { coldkey: key(100), hotkey: key(1) });
        assert_eq!(subnet.to_prune(Block(50)), Some(1));
        subnet.slots.truncate(1);
        subnet.hyperparameters.max_allowed_uids = 1;
        assert_eq!(subnet.to_prune(Block(50)), None);
        assert_eq!(subnet.take_slot(key(9), key(100), Block(50)), Err(DispatchError::NoNeuronIdAvailable));
    }

    #[test]
    fn a_reused_slot_keeps_nothing_of_its_last_holder() {
        let mut subnet = full(2, 0, 0);
        subnet.slots[1].weights = vec![(0, 65_535), (1, 40)];
        subnet.slots[0].weights = vec![(1, 9)];
        subnet.slots[0].bonds = vec![(1, 9)];
        let committed = Committed { block: Block(3), index: 0, fields: vec![] };
        subnet.commitments.insert(key(1), committed);
        assert_eq!(subnet.take_slot(key(9), key(100), Block(50)), Ok(Uid(0)));
        assert_eq!(subnet.slots[0], Slot::new(key(9), key(100), 50));
        assert_eq!(subnet.slots[1].weights, [(0, 0), (1, 40)]);
        assert_eq!((subnet.uid(&key(1)), subnet.uid(&key(9))), (None, Some(Uid(0))));
        assert!(subnet.commitments.is_empty());
    }

    #[test]
    fn a_trim_takes_the_lowest_emissions_and_numbers_the_others_anew() {
        let mut subnet = full(70, 0, 0);
        for (slot, uid) in subnet.slots.iter_mut().zip(0_u16..) {
            // Uid 3 earns least, then 10 and 20 alike; 69 earns nothing but is the owner's.
            slot.emission = match uid {
                3 => 1,
                10 | 20 => 2,
                69 => 0,
                _ => 100 + u64::from(uid),
            };
            slot.weights = vec![(2, 7), (3, 8), (69, 9)];
            slot.bonds = vec![(11, 5), (20, 6)];
        }
        subnet.owner = Some(Owner { coldkey: key(100), hotkey: key(70) });
        let committed = Committed { block: Block(3), index: 0, fields: vec![] };
        subnet.commitments.insert(key(4), committed);
        assert_eq!(subnet.trim(68, Block(500)), Ok(()));
        // Of the two that earn alike the higher uid goes.
        assert_eq!((subnet.uid(&key(4)), subnet.uid(&key(21)), subnet.uid(&key(11))), (None, None, Some(Uid(9))));
        assert_eq!(
            (subnet.uid(&key(3)), subnet.uid(&key(5)), subnet.uid(&key(70))),
            (Some(Uid(2)), Some(Uid(3)), Some(Uid(67)))
        );
        assert!(subnet.commitments.is_empty());
        assert_eq!((subnet.slots.len(), subnet.hyperparameters.max_allowed_uids), (68, 68));
        for (slot, uid) in subnet.slots.iter().zip(0..) {
            assert_eq!(subnet.uids[&slot.hotkey], uid);
            assert_eq!((&slot.weights[..], &slot.bonds[..]), (&[(2, 7), (67, 9)][..], &[(10, 5)][..]));
        }
    }

    #[test]
    fn a_trim_is_refused_below_the_least_above_the_present_and_among_the_immune() {
        let mut subnet = full(70, 100, 0);
        let before = subnet.clone();
        assert_eq!(subnet.trim(63, Block(500)), Err(DispatchError::InvalidValue));
        assert_eq!(subnet.trim(71, Block(500)), Err(DispatchError::InvalidValue));
        // At block 118 those registered since block 19 are immune: 52 of 64, more than 80 %.
        let refused = Err(DispatchError::TrimmingWouldExceedMaxImmunePercentage);
        assert_eq!(subnet.trim(64, Block(118)), refused);
        assert_eq!(subnet, before);
        assert_eq!(subnet.trim(64, Block(119)), Ok(()));
        // Nobody goes where nobody has to.
        let mut roomy = full(20, 100, 0);
        roomy.hyperparameters.max_allowed_uids = 256;
        assert_eq!(roomy.trim(64, Block(21)), Ok(()));
        assert_eq!((roomy.slots.len(), roomy.hyperparameters.max_allowed_uids), (20, 64));
    }

    #[test]
    fn the_price_halves_in_its_half_life_and_rises_by_a_quarter() {
        let mut subnet = Subnet::new(&Genesis::new(1, 0, 0));
        subnet.burn = 1_000_000_000;
        for block in 2..362 {
            subnet.decay_burn(Block(block));
        }
        assert!((499_990_000..=500_000_000).contains(&subnet.burn), "{}", subnet.burn);
        subnet.burn = 1_000_000_000;
        subnet.raise_burn();
        assert_eq!(subnet.burn, 1_260_000_000);
        subnet.burn = subnet.hyperparameters.max_burn;
        subnet.raise_burn();
        assert_eq!(subnet.burn, subnet.hyperparameters.max_burn);
        subnet.burn = 0;
        subnet.decay_burn(Block(1));
        assert_eq!(subnet.burn, subnet.hyperparameters.min_burn);
    }

    #[test]
    fn the_owner_has_a_permit_whatever_its_stake() {
        let mut subnet = full(3, 0, 0);
        (subnet.hyperparameters.max_allowed_validators, subnet.hyperparameters.stake_threshold) = (1, 5);
        let stakes = BTreeMap::from([(key(1), 1), (key(2), 9), (key(3), 8)]);
        let permits = |subnet: &Subnet| subnet.slots.iter().map(|slot| slot.permit).collect::<Vec<_>>();
        subnet.grant_permits(&stakes);
        assert_eq!(permits(&subnet), [false, true, false]);
        subnet.owner = Some(Owner { coldkey: key(100), hotkey: key(1) });
        subnet.grant_permits(&stakes);
        assert_eq!(permits(&subnet), [true, true, false]);
    }

    #[test]
    fn permits_go_to_the_highest_nonzero_stakes() {
        assert_eq!(top_k(&[5_u64, 0, 9, 5], 2), [false, false, true, true]);
        assert_eq!(top_k(&[5_u64, 0, 9], 9), [true, false, true]);
        assert_eq!(top_k::<u64>(&[], 1), [false; 0]);
    }
}
