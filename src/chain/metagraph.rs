//! What a node reads of a subnet at one block: its neurons, its numbers, and the commitments.
//!
//! A uid means something at one block only (a full subnet reuses it), so everything a node keeps is keyed by hotkey and
//! looked up here at the block of use.

use serde::{Deserialize, Serialize};

use super::genesis::Hyperparameters;
use crate::terms::{Block, Hotkey, Stake, Uid};

/// A neuron at one block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neuron {
    /// Its slot.
    pub uid: Uid,
    /// Who it is.
    pub hotkey: Hotkey,
    /// Who owns it.
    pub coldkey: Hotkey,
    /// Stake behind it.
    pub stake: Stake,
    /// Whether its weights count.
    pub permit: bool,
    /// Whether it set weights within the activity cutoff of the last epoch.
    pub active: bool,
    /// Block it took the slot at.
    pub registered_at: Block,
    /// Block it last set weights at, or took the slot at.
    pub last_update: Block,
    /// Share of the miners' emission at the last epoch, of 65535.
    pub incentive: u16,
    /// Share of the validators' emission, of 65535.
    pub dividends: u16,
    /// The stake-weighted median of the weights on it, of 65535.
    pub consensus: u16,
    /// How far its own weights were within consensus, of 65535.
    pub validator_trust: u16,
    /// Emission of the last epoch, in alpha-rao.
    pub emission: u64,
}

/// The subnet at one block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metagraph {
    /// The state after this block.
    pub block: Block,
    /// By uid: the neuron with uid u is at place u.
    pub neurons: Vec<Neuron>,
    /// The subnet's numbers.
    pub hyperparameters: Hyperparameters,
    /// How many epochs there have been.
    pub epoch_index: u64,
    /// Block of the last epoch.
    pub last_epoch: Block,
    /// Block of the next epoch, if there will be one.
    pub next_epoch: Option<Block>,
    /// Price of a registration in the next block at most, in rao.
    pub burn: u64,
}

impl Metagraph {
    /// The neuron of this hotkey, if it is registered.
    #[must_use]
    pub fn by_hotkey(&self, hotkey: &Hotkey) -> Option<&Neuron> {
        self.neurons.iter().find(|neuron| neuron.hotkey == *hotkey)
    }

    /// The neuron in this slot.
    #[must_use]
    pub fn by_uid(&self, uid: Uid) -> Option<&Neuron> {
        self.neurons.get(usize::from(uid.0))
    }

    /// Those whose word counts: a permit and stake, in order of uid.
    pub fn validators(&self) -> impl Iterator<Item = &Neuron> {
        self.neurons.iter().filter(|neuron| neuron.permit && neuron.stake.0 > 0)
    }

    /// The validators from the highest stake to the lowest; equal stakes by older registration, then by uid.
    #[must_use]
    pub fn validators_by_stake(&self) -> Vec<&Neuron> {
        let mut validators: Vec<_> = self.validators().collect();
        validators.sort_by_key(|neuron| (std::cmp::Reverse(neuron.stake), neuron.registered_at, neuron.uid));
        validators
    }

    /// All the validators' stake.
    #[must_use]
    pub fn validators_stake(&self) -> Stake {
        Stake(self.validators().fold(0, |sum, neuron| sum.saturating_add(neuron.stake.0)))
    }

    /// First block at which this hotkey's weights pass the rate limit; `None` if it is not registered.
    #[must_use]
    pub fn weights_due(&self, hotkey: &Hotkey) -> Option<Block> {
        let neuron = self.by_hotkey(hotkey)?;
        // Zero is the chain's word for "never".
        let waits = if neuron.last_update.0 == 0 { 0 } else { self.hyperparameters.weights_set_rate_limit };
        Some(Block(neuron.last_update.0.saturating_add(waits)))
    }
}

/// A commitment as the chain holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// Block it was included in.
    pub block: Block,
    /// Its place among the calls of that block. (block, index) is the order in which commitments were made.
    pub index: u32,
    /// The fields, byte for byte.
    pub fields: Vec<Vec<u8>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{Genesis, GenesisNeuron, Ledger};

    fn metagraph(stakes: &[u64]) -> Metagraph {
        let mut genesis = Genesis::new(1, 0, 0);
        genesis.neurons = stakes
            .iter()
            .zip(1..)
            .map(|(&stake, i)| GenesisNeuron { hotkey: Hotkey([i; 32]), coldkey: Hotkey([0; 32]), stake })
            .collect();
        Ledger::new(&genesis).unwrap().metagraph()
    }

    #[test]
    fn validators_hold_stake_and_permit_and_come_by_stake() {
        let metagraph = metagraph(&[5, 0, 9, 5]);
        let uids: Vec<_> = metagraph.validators_by_stake().iter().map(|neuron| neuron.uid.0).collect();
        assert_eq!(uids, [2, 0, 3]);
        assert_eq!(metagraph.validators_stake(), Stake(19));
        assert_eq!(metagraph.by_uid(Uid(3)), metagraph.by_hotkey(&Hotkey([4; 32])));
        assert_eq!(metagraph.by_uid(Uid(4)), None);
        assert_eq!(metagraph.weights_due(&Hotkey([4; 32])), Some(Block(0)));
        assert_eq!(metagraph.weights_due(&Hotkey([9; 32])), None);
    }
}
