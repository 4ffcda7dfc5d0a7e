//! All that a block's hash covers beside the block itself, and what each call does to it.
//!
//! Every call checks all its rules before it changes anything, so that one that fails leaves only its spent nonce.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::call::{AccountId, Call, DispatchError, Invalid, VerifiedCall};
use super::commit_reveal::{self, Pulses, Reveal, Timelocked};
use super::commit_rules::set_commitment;
use super::genesis::{Genesis, GenesisError};
use super::subnet::Subnet;
use super::timelock::Pulse;
use super::weights::{self, Weights, set_weights};
use crate::terms::{Block, BlockHash, Hotkey, Uid};

/// The least that may be added as stake, in rao.
const STAKE_MIN: u64 = 2_000_000;

/// What happened in a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A hotkey took a slot, perhaps another's.
    NeuronRegistered {
        /// The slot.
        uid: Uid,
        /// Who has it.
        hotkey: Hotkey,
    },
    /// Weights were stored.
    WeightsSet {
        /// Whose.
        uid: Uid,
    },
    /// Weights were promised, for the chain to open.
    TimelockedWeightsCommitted {
        /// By whom.
        who: Hotkey,
        /// BLAKE2b-256 of the commit.
        commit_hash: [u8; 32],
        /// The beacon's round that opens them.
        reveal_round: u64,
    },
    /// The chain opened and set promised weights.
    TimelockedWeightsRevealed {
        /// Whose.
        who: Hotkey,
        /// Its slot.
        uid: Uid,
    },
    /// Weights were promised, for their author to reveal.
    WeightsCommitted {
        /// By whom.
        who: Hotkey,
        /// What was promised.
        commit_hash: [u8; 32],
    },
    /// Their author revealed promised weights.
    WeightsRevealed {
        /// Whose.
        who: Hotkey,
        /// Its slot.
        uid: Uid,
        /// What was promised.
        commit_hash: [u8; 32],
    },
    /// A commitment was overwritten.
    Commitment {
        /// Whose.
        who: Hotkey,
    },
    /// Stake was added.
    StakeAdded {
        /// Behind whom.
        hotkey: Hotkey,
        /// How much, in rao.
        amount: u64,
    },
    /// The faucet gave money.
    Funded {
        /// To whom.
        account: AccountId,
        /// How much, in rao.
        amount: u64,
    },
    /// The subnet has fewer slots, and perhaps other uids: no event of the chain's, which says nothing.
    Trimmed {
        /// How many.
        max_n: u16,
    },
    /// An epoch ran.
    Epoch {
        /// How many there have been, this one included.
        index: u64,
    },
}

impl Event {
    /// Whether a call did it. Each call that succeeds does one thing, and they are told in the calls' order, after what
    /// the block did by itself.
    #[must_use]
    pub fn is_of_call(&self) -> bool {
        !matches!(self, Self::Epoch { .. } | Self::TimelockedWeightsRevealed { .. })
    }
}

/// All that a block's hash covers beside the block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) genesis: BlockHash,
    pub(super) sudo: Option<AccountId>,
    pub(super) pool_checks: bool,
    pub(super) nonces: BTreeMap<AccountId, u64>,
    pub(super) balances: BTreeMap<AccountId, u64>,
    pub(super) stakes: BTreeMap<Hotkey, u64>,
    /// The coldkey that first registered or staked a hotkey owns it.
    pub(super) owners: BTreeMap<Hotkey, AccountId>,
    pub(super) burned: u64,
    pub(super) pulses: Pulses,
    pub(super) subnet: Subnet,
}

impl State {
    /// The state at block 0.
    pub(super) fn new(genesis: &Genesis) -> Result<Self, GenesisError> {
        let mut subnet = Subnet::new(genesis);
        let (mut stakes, mut owners) = (BTreeMap::new(), BTreeMap::new());
        for neuron in &genesis.neurons {
            let taken = subnet.take_slot(neuron.hotkey, neuron.coldkey, Block(0));
            taken.map_err(|_| GenesisError::Twice { hotkey: neuron.hotkey })?;
            stakes.insert(neuron.hotkey, neuron.stake);
            owners.insert(neuron.hotkey, neuron.coldkey);
        }
        subnet.grant_permits(&stakes);
        Ok(Self {
            genesis: genesis.hash(),
            sudo: genesis.sudo,
            pool_checks: genesis.pool_checks,
            nonces: BTreeMap::new(),
            balances: genesis.balances.clone(),
            stakes,
            owners,
            burned: 0,
            pulses: Pulses::default(),
            subnet,
        })
    }

    pub(super) fn root(&self) -> [u8; 32] {
        let root = Root(blake3::Hasher::new_derive_key("convoke 2026-11 development chain state v1"), Vec::new());
        postcard::serialize_with_flavor(self, root).expect("plain numbers and maps encode")
    }

    /// What happens at every block before its calls. Its own pulses come after: on chain they are calls too, and what
    /// they open is opened in the next block.
    pub(super) fn begin_block(&mut self, block: Block, pulses: &[Pulse]) -> Vec<Event> {
        self.subnet.decay_burn(block);
        let mut events = commit_reveal::reveal_timelocked(&mut self.subnet, &self.stakes, &self.pulses, block);
        let epoch = self.subnet.coinbase(&self.stakes, block);
        events.extend(epoch.map(|index| Event::Epoch { index }));
        for pulse in pulses {
            self.pulses.insert(pulse);
        }
        self.pulses.forget(&self.subnet.open_commits);
        events
    }

    pub(super) fn stake(&self, hotkey: &Hotkey) -> u64 {
        self.stakes.get(hotkey).copied().unwrap_or(0)
    }

    /// Nonce, and the checks of the call-validity extension.
    pub(super) fn validate(&self, call: &VerifiedCall, block: Block) -> Result<(), Invalid> {
        let expected = self.nonces.get(&call.signer).copied().unwrap_or(0);
        match call.nonce.cmp(&expected) {
            std::cmp::Ordering::Less => return Err(Invalid::Stale),
            std::cmp::Ordering::Greater => return Err(Invalid::Future),
            std::cmp::Ordering::Equal => {}
        }
        if self.pool_checks { self.check_weights_call(call, block) } else { Ok(()) }
    }

    /// The call-validity extension: stake, whether a commit can be revealed, and the rate, in this order.
    fn check_weights_call(&self, call: &VerifiedCall, block: Block) -> Result<(), Invalid> {
        let hyper = &self.subnet.hyperparameters;
        let (netuid, is_limited) = match &call.call {
            Call::SetWeights { netuid, .. } => (netuid, !hyper.commit_reveal_weights_enabled),
            Call::CommitTimelockedWeights { netuid, .. } | Call::CommitWeights { netuid, .. } => (netuid, true),
            Call::RevealWeights { netuid, .. } => (netuid, false),
            _ => return Ok(()),
        };
        if *netuid != self.subnet.netuid {
            return Ok(());
        }
        if !weights::has_min_stake(&self.subnet, &call.signer, self.stake(&call.signer)) {
            return Err(Invalid::STAKE_TOO_LOW);
        }
        match &call.call {
            Call::CommitTimelockedWeights { reveal_round, .. } if *reveal_round < self.pulses.last_round() => {
                return Err(Invalid::REVEAL_ROUND);
            }
            Call::RevealWeights { netuid, uids, values, salt, version_key } => {
                let hash = Reveal { uids, values, salt, version_key: *version_key }.hash(&call.signer, *netuid);
                let epoch = commit_reveal::epoch_of(&self.subnet, &call.signer, &hash);
                let due = epoch.ok_or(Invalid::COMMIT_NOT_FOUND)?.saturating_add(hyper.reveal_period_epochs);
                if self.subnet.schedule().epoch_at(block) != due {
                    return Err(Invalid::NOT_IN_REVEAL_RANGE);
                }
            }
            _ => {}
        }
        // Whoever has no slot passes here and fails in the block, as on chain.
        let uid = self.subnet.uid(&call.signer).filter(|_| is_limited);
        let is_early = uid.is_some_and(|uid| !weights::passes_rate_limit(&self.subnet, uid, block));
        if is_early { Err(Invalid::RATE_LIMIT) } else { Ok(()) }
    }

    /// Spends the nonce and does what is asked, or nothing.
    pub(super) fn apply(
        &mut self,
        call: &VerifiedCall,
        block: Block,
        index: u32,
        events: &mut Vec<Event>,
    ) -> Result<(), DispatchError> {
        self.nonces.insert(call.signer, call.nonce + 1);
        let event = match &call.call {
            Call::BurnedRegister { netuid, hotkey } => self.register(call.signer, *netuid, *hotkey, None, block)?,
            Call::RegisterLimit { netuid, hotkey, limit_price } => {
                self.register(call.signer, *netuid, *hotkey, Some(*limit_price), block)?
            }
            Call::AddStake { hotkey, netuid, amount } => self.add_stake(call.signer, *hotkey, *netuid, *amount)?,
            Call::SetCommitment { netuid, fields } => {
                if *netuid != self.subnet.netuid {
                    return Err(DispatchError::AccountNotAllowedCommit);
                }
                set_commitment(&mut self.subnet, call.signer, fields, block, index)?;
                Event::Commitment { who: call.signer }
            }
            Call::SetWeights { netuid, dests, weights, version_key } => {
                let weights = Weights { netuid: *netuid, dests, weights, version_key: *version_key };
                let stake = self.stake(&call.signer);
                Event::WeightsSet { uid: set_weights(&mut self.subnet, &call.signer, stake, &weights, block)? }
            }
            Call::DevRegister { netuid, hotkey, stake } => {
                self.dev_register(call.signer, *netuid, *hotkey, *stake, block)?
            }
            Call::DevFund { account, balance } => self.dev_fund(call.signer, *account, *balance)?,
            Call::SudoTrimToMaxAllowedUids { netuid, max_n } => self.trim(call.signer, *netuid, *max_n, block)?,
            Call::CommitTimelockedWeights { netuid, commit, reveal_round, commit_reveal_version: version } => {
                let promise = Timelocked { netuid: *netuid, commit, reveal_round: *reveal_round, version: *version };
                commit_reveal::commit_timelocked(&mut self.subnet, call.signer, &promise, block)?
            }
            Call::CommitWeights { netuid, commit_hash } => {
                commit_reveal::commit_hashed(&mut self.subnet, call.signer, *netuid, *commit_hash, block)?
            }
            Call::RevealWeights { netuid, uids, values, salt, version_key } => {
                let (reveal, stake) =
                    (Reveal { uids, values, salt, version_key: *version_key }, self.stake(&call.signer));
                commit_reveal::reveal_hashed(&mut self.subnet, &call.signer, stake, *netuid, &reveal, block)?
            }
        };
        events.push(event);
        Ok(())
    }

    fn trim(&mut self, signer: AccountId, netuid: u16, max_n: u16, block: Block) -> Result<Event, DispatchError> {
        let may = self.sudo == Some(signer) || self.subnet.owner.is_some_and(|owner| owner.coldkey == signer);
        if !may {
            return Err(DispatchError::BadOrigin);
        }
        if netuid != self.subnet.netuid {
            return Err(DispatchError::SubnetNotExists);
        }
        self.subnet.trim(max_n, block)?;
        Ok(Event::Trimmed { max_n })
    }

    fn register(
        &mut self,
        coldkey: AccountId,
        netuid: u16,
        hotkey: Hotkey,
        limit_price: Option<u64>,
        block: Block,
    ) -> Result<Event, DispatchError> {
        let price = self.subnet.burn;
        if netuid != self.subnet.netuid {
            return Err(DispatchError::SubnetNotExists);
        }
        if limit_price.is_some_and(|limit| price > limit) {
            return Err(DispatchError::RegistrationPriceLimitExceeded);
        }
        if !self.subnet.hyperparameters.registration_allowed {
            return Err(DispatchError::SubNetRegistrationDisabled);
        }
        if self.subnet.uid(&hotkey).is_some() {
            return Err(DispatchError::HotKeyAlreadyRegisteredInSubNet);
        }
        let balance = self.balances.get(&coldkey).copied().unwrap_or(0);
        let left = balance.checked_sub(price).ok_or(DispatchError::NotEnoughBalanceToStake)?;
        if self.owners.get(&hotkey).is_some_and(|owner| *owner != coldkey) {
            return Err(DispatchError::NonAssociatedColdKey);
        }
        if !self.subnet.has_room(block) {
            return Err(DispatchError::NoNeuronIdAvailable);
        }
        let uid = self.subnet.take_slot(hotkey, coldkey, block)?;
        self.balances.insert(coldkey, left);
        self.burned = self.burned.saturating_add(price);
        self.owners.insert(hotkey, coldkey);
        self.subnet.raise_burn();
        Ok(Event::NeuronRegistered { uid, hotkey })
    }

    fn add_stake(
        &mut self,
        coldkey: AccountId,
        hotkey: Hotkey,
        netuid: u16,
        amount: u64,
    ) -> Result<Event, DispatchError> {
        if netuid != self.subnet.netuid {
            return Err(DispatchError::SubnetNotExists);
        }
        if amount < STAKE_MIN {
            return Err(DispatchError::AmountTooLow);
        }
        let balance = self.balances.get(&coldkey).copied().unwrap_or(0);
        let left = balance.checked_sub(amount).ok_or(DispatchError::NotEnoughBalanceToStake)?;
        if !self.owners.contains_key(&hotkey) {
            return Err(DispatchError::HotKeyAccountNotExists);
        }
        self.balances.insert(coldkey, left);
        let stake = self.stakes.entry(hotkey).or_default();
        *stake = stake.saturating_add(amount);
        Ok(Event::StakeAdded { hotkey, amount })
    }

    fn dev_fund(&mut self, signer: AccountId, account: AccountId, balance: u64) -> Result<Event, DispatchError> {
        if self.sudo != Some(signer) {
            return Err(DispatchError::BadOrigin);
        }
        let held = self.balances.entry(account).or_default();
        let amount = balance.saturating_sub(*held);
        *held += amount;
        Ok(Event::Funded { account, amount })
    }

    fn dev_register(
        &mut self,
        signer: AccountId,
        netuid: u16,
        hotkey: Hotkey,
        stake: u64,
        block: Block,
    ) -> Result<Event, DispatchError> {
        if self.sudo != Some(signer) {
            return Err(DispatchError::BadOrigin);
        }
        if netuid != self.subnet.netuid {
            return Err(DispatchError::SubnetNotExists);
        }
        let uid = match self.subnet.uid(&hotkey) {
            Some(uid) => uid,
            None => {
                let coldkey = *self.owners.entry(hotkey).or_insert(signer);
                self.subnet.take_slot(hotkey, coldkey, block)?
            }
        };
        let held = self.stakes.entry(hotkey).or_default();
        *held = (*held).max(stake);
        self.subnet.grant_permits(&self.stakes);
        Ok(Event::NeuronRegistered { uid, hotkey })
    }
}

/// Hashes what is written, as it comes: the state is never in memory a second time.
struct Root(blake3::Hasher, Vec<u8>);

/// Bytes that are hashed at once.
const ROOT_BUFFER: usize = 16 * 1024;

impl Root {
    fn flush(&mut self, len_max: usize) {
        if self.1.len() > len_max {
            self.0.update(&self.1);
            self.1.clear();
        }
    }
}

impl postcard::ser_flavors::Flavor for Root {
    type Output = [u8; 32];

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.1.push(byte);
        self.flush(ROOT_BUFFER);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.1.extend_from_slice(bytes);
        self.flush(ROOT_BUFFER);
        Ok(())
    }

    fn finalize(mut self) -> postcard::Result<[u8; 32]> {
        self.flush(0);
        Ok(*self.0.finalize().as_bytes())
    }
}
