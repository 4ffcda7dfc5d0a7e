//! What a chain starts from: the subnet's hyperparameters, its owner, funded accounts, and neurons already registered.
//!
//! Defaults are Subtensor's for a new subnet (spec 425), except that commit-reveal is off. A development run changes
//! what would make it wait: tempo, rate limit, the commitment quota's length (which is one tempo).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::call::AccountId;
use super::schedule::REVEAL_PERIOD_MAX;
use crate::terms::{BlockHash, Hotkey};

/// Rao in one TAO.
pub const RAO_PER_TAO: u64 = 1_000_000_000;

/// The first state of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    /// The only subnet of this chain.
    pub netuid: u16,
    /// Enters the genesis hash, and through it every block hash: two chains that are equal otherwise differ by it.
    pub seed: u64,
    /// The genesis block's time, milliseconds since 1970.
    pub timestamp_ms: u64,
    /// The subnet's numbers.
    #[serde(default)]
    pub hyperparameters: Hyperparameters,
    /// Who owns the subnet.
    #[serde(default)]
    pub owner: Option<Owner>,
    /// The account that may make development calls (the faucet); `None` on a chain without them.
    #[serde(default)]
    pub sudo: Option<AccountId>,
    /// Whether stake and rate limit are checked before a call enters a block (runtimes since the call-validity
    /// extension) or only inside it (older ones): a client must cope with both.
    #[serde(default = "yes")]
    pub pool_checks: bool,
    /// Free balances, in rao.
    #[serde(default)]
    pub balances: BTreeMap<AccountId, u64>,
    /// Registered at block 0, in the order of their uids.
    #[serde(default)]
    pub neurons: Vec<GenesisNeuron>,
}

fn yes() -> bool {
    true
}

/// The subnet's owner, whose hotkey validates regardless of stake and permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// Owns the subnet.
    pub coldkey: AccountId,
    /// Validates for it.
    pub hotkey: Hotkey,
}

/// A neuron that is there from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenesisNeuron {
    /// Who it is.
    pub hotkey: Hotkey,
    /// Who owns it.
    pub coldkey: AccountId,
    /// Stake behind it, in rao.
    pub stake: u64,
}

/// The subnet's numbers, under Subtensor's storage names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hyperparameters {
    /// Blocks between two epochs; 0 stops them.
    pub tempo: u16,
    /// Slots on the subnet.
    pub max_allowed_uids: u16,
    /// The fewest slots that a trim may leave.
    pub min_allowed_uids: u16,
    /// Permits given at the end of an epoch.
    pub max_allowed_validators: u16,
    /// Blocks after registration in which a neuron is not pruned.
    pub immunity_period: u16,
    /// Pruning takes an immune neuron rather than let the non-immune fall to this many.
    pub min_non_immune_uids: u16,
    /// Whether anybody may register.
    pub registration_allowed: bool,
    /// Lowest price of a registration, in rao; also the first.
    pub min_burn: u64,
    /// Highest price of a registration, in rao.
    pub max_burn: u64,
    /// Blocks in which the price halves; 0 keeps it.
    pub burn_half_life: u16,
    /// The price times this over 1000 after each registration.
    pub burn_increase_milli: u32,
    /// Blocks between two settings of weights.
    pub weights_set_rate_limit: u64,
    /// Fewer weights than this (or than there are neurons) are refused.
    pub min_allowed_weights: u16,
    /// Highest share of one weight, of 65535.
    pub max_weights_limit: u16,
    /// Weights set under a lower version are refused; 0 accepts all.
    pub weights_version_key: u64,
    /// Stake below which no weights are accepted and stake counts as none, in rao.
    pub stake_threshold: u64,
    /// Whether weights must be committed before they are revealed; plain `set_weights` is refused then.
    pub commit_reveal_weights_enabled: bool,
    /// Epochs between the commit of weights and their reveal.
    pub reveal_period_epochs: u64,
    /// Share of stake that makes a consensus, of 65535.
    pub kappa: u16,
    /// Weight of the old bonds, of 1 000 000.
    pub bonds_moving_average: u64,
    /// How much of a weight above consensus is lost to the bonds, of 65535.
    pub bonds_penalty: u16,
    /// A neuron that has set no weights for this many blocks is inactive.
    pub activity_cutoff: u64,
    /// Bytes of commitment a hotkey may write in one epoch.
    pub commitment_space_max: u32,
    /// Alpha emitted to the subnet each block, in rao.
    pub emission_per_block: u64,
    /// The owner's share of it, of 65535.
    pub owner_cut: u16,
}

impl Default for Hyperparameters {
    fn default() -> Self {
        Self {
            tempo: 360,
            max_allowed_uids: 256,
            min_allowed_uids: 64,
            max_allowed_validators: 128,
            immunity_period: 4096,
            min_non_immune_uids: 10,
            registration_allowed: true,
            min_burn: RAO_PER_TAO / 2000,
            max_burn: 100 * RAO_PER_TAO,
            burn_half_life: 360,
            burn_increase_milli: 1260,
            weights_set_rate_limit: 100,
            min_allowed_weights: 1,
            max_weights_limit: u16::MAX,
            weights_version_key: 0,
            stake_threshold: 0,
            commit_reveal_weights_enabled: false,
            reveal_period_epochs: 1,
            kappa: 32_767,
            bonds_moving_average: 900_000,
            bonds_penalty: u16::MAX,
            activity_cutoff: 5000,
            commitment_space_max: 3100,
            emission_per_block: RAO_PER_TAO,
            owner_cut: 11_796,
        }
    }
}

impl Hyperparameters {
    /// Numbers for a chain of fast blocks that one machine runs for itself: an epoch every ten blocks, as Subtensor's
    /// own fast-blocks build has it, which also makes the quota of commitments last (it is per epoch).
    #[must_use]
    pub fn development() -> Self {
        Self { tempo: 10, weights_set_rate_limit: 10, immunity_period: 64, min_allowed_uids: 1, ..Self::default() }
    }
}

/// Why a genesis is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenesisError {
    /// The root network is not a subnet that trains.
    #[error("netuid 0 is the root network: a subnet's is 1 or more")]
    RootNetwork,
    /// A number outside its range.
    #[error("`hyperparameters.{key}` is {value}: it must be {range}")]
    OutOfRange {
        /// Which.
        key: &'static str,
        /// What it is.
        value: u64,
        /// What it may be.
        range: String,
    },
    /// More neurons than slots.
    #[error("{n_neurons} neurons do not fit {max_allowed_uids} slots")]
    TooManyNeurons {
        /// Neurons in the genesis.
        n_neurons: usize,
        /// Slots.
        max_allowed_uids: u16,
    },
    /// One hotkey, two slots.
    #[error("hotkey {hotkey} is registered twice")]
    Twice {
        /// Which.
        hotkey: Hotkey,
    },
}

impl Genesis {
    /// A subnet with Subtensor's defaults and nobody on it.
    #[must_use]
    pub fn new(netuid: u16, seed: u64, timestamp_ms: u64) -> Self {
        Self {
            netuid,
            seed,
            timestamp_ms,
            hyperparameters: Hyperparameters::default(),
            owner: None,
            sudo: None,
            pool_checks: true,
            balances: BTreeMap::new(),
            neurons: Vec::new(),
        }
    }

    /// The chain's name among chains: it covers every number here.
    ///
    /// # Panics
    /// Never: every field has an encoding.
    #[must_use]
    pub fn hash(&self) -> BlockHash {
        let encoded = postcard::to_allocvec(self).expect("plain numbers and maps encode");
        BlockHash(blake3::derive_key("convoke 2026-11 development chain genesis v1", &encoded))
    }

    /// Checks every rule that the ledger relies on.
    ///
    /// # Errors
    /// The first that does not hold: correct it in the genesis.
    pub fn validate(&self) -> Result<(), GenesisError> {
        if self.netuid == 0 {
            return Err(GenesisError::RootNetwork);
        }
        let hyper = &self.hyperparameters;
        within("max_allowed_uids", u64::from(hyper.max_allowed_uids), 1, 4096)?;
        within("min_burn", hyper.min_burn, 0, hyper.max_burn)?;
        within("burn_increase_milli", u64::from(hyper.burn_increase_milli), 1000, 1_000_000)?;
        within("reveal_period_epochs", hyper.reveal_period_epochs, 1, REVEAL_PERIOD_MAX)?;
        within("bonds_moving_average", hyper.bonds_moving_average, 0, 1_000_000)?;
        if self.neurons.len() > usize::from(hyper.max_allowed_uids) {
            return Err(GenesisError::TooManyNeurons {
                n_neurons: self.neurons.len(),
                max_allowed_uids: hyper.max_allowed_uids,
            });
        }
        let mut seen = BTreeSet::new();
        match self.neurons.iter().find(|neuron| !seen.insert(neuron.hotkey)) {
            Some(neuron) => Err(GenesisError::Twice { hotkey: neuron.hotkey }),
            None => Ok(()),
        }
    }
}

fn within(key: &'static str, value: u64, low: u64, high: u64) -> Result<(), GenesisError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(GenesisError::OutOfRange { key, value, range: format!("from {low} to {high}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_and_every_number_are_in_the_hash() {
        let genesis = Genesis::new(3, 7, 0);
        let mut other = genesis.clone();
        other.hyperparameters.tempo = 359;
        assert_ne!(genesis.hash(), other.hash());
        assert_ne!(genesis.hash(), Genesis::new(3, 8, 0).hash());
        assert_eq!(genesis.hash(), Genesis::new(3, 7, 0).hash());
    }

    #[test]
    fn a_genesis_that_the_ledger_could_not_hold_is_refused_with_its_reason() {
        let neuron = GenesisNeuron { hotkey: Hotkey([1; 32]), coldkey: Hotkey([2; 32]), stake: 0 };
        let mut genesis = Genesis::new(1, 0, 0);
        genesis.neurons = vec![neuron, neuron];
        assert_eq!(genesis.validate(), Err(GenesisError::Twice { hotkey: neuron.hotkey }));
        genesis.hyperparameters.max_allowed_uids = 1;
        assert_eq!(genesis.validate(), Err(GenesisError::TooManyNeurons { n_neurons: 2, max_allowed_uids: 1 }));
        genesis.hyperparameters.min_burn = u64::MAX;
        let refusal = genesis.validate().unwrap_err().to_string();
        assert!(refusal.contains("`hyperparameters.min_burn`") && refusal.contains("from 0 to"), "{refusal}");
        assert_eq!(Genesis::new(0, 0, 0).validate(), Err(GenesisError::RootNetwork));
    }

    #[test]
    fn a_genesis_survives_its_text() {
        let mut genesis = Genesis::new(1, 5, 9);
        genesis.balances.insert(Hotkey([4; 32]), 17);
        let text = toml::to_string(&genesis).unwrap();
        assert_eq!(toml::from_str::<Genesis>(&text).unwrap(), genesis);
    }
}
