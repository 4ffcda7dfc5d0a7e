//! What can be asked of the ledger, who asks it and for how long, and every way it is refused, by Subtensor's names.
//!
//! A call is refused in one of two places, as on chain: before it enters a block ([`Invalid`]: signature, era, nonce,
//! and the checks of Subtensor's call-validity extension), which leaves no trace; or inside a block
//! ([`DispatchError`]), which costs its nonce.
//!
//! New calls are added at the end: a call's place is part of what its signature is over.

use serde::{Deserialize, Serialize};

use super::timelock::COMMIT_BYTES_MAX;
use crate::hotkey::{self, HotkeyPair, SIGNATURE_LEN};
use crate::terms::{BlockHash, Hotkey};

/// Any sr25519 account of the chain: a hotkey, or the coldkey that pays.
pub type AccountId = Hotkey;

/// The rules' version: part of what is signed, so that a call made for other rules is a bad proof.
pub const SPEC_VERSION: u32 = 425;

/// How long a call of a node stays valid, in blocks.
pub const ERA_PERIOD: u64 = 64;

/// The period of a call that lives for ever: Substrate's immortal era. No node makes one, and no [`SignedCall`] has it.
pub const IMMORTAL: u64 = u64::MAX;

/// A call whose birth is further back than this cannot be checked.
pub const BLOCK_HASH_COUNT: u64 = 2400;

/// Fields of a commitment.
pub const FIELDS_MAX: usize = 3;

/// Bytes of one field: what the pallet's `BigRaw` holds.
pub const FIELD_BYTES_MAX: usize = 512;

/// A call, by Subtensor's name and with its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// Buys a slot at the block's price. Signed by the coldkey.
    BurnedRegister {
        /// Where.
        netuid: u16,
        /// For whom.
        hotkey: Hotkey,
    },
    /// The same, unless the price is above a limit.
    RegisterLimit {
        /// Where.
        netuid: u16,
        /// For whom.
        hotkey: Hotkey,
        /// The most it may cost, in rao.
        limit_price: u64,
    },
    /// Puts stake behind a hotkey. Signed by the coldkey.
    AddStake {
        /// Behind whom.
        hotkey: Hotkey,
        /// Where.
        netuid: u16,
        /// How much, in rao.
        amount: u64,
    },
    /// Overwrites the signer's commitment.
    SetCommitment {
        /// Where.
        netuid: u16,
        /// At most [`FIELDS_MAX`], at most [`FIELD_BYTES_MAX`] each.
        fields: Vec<Vec<u8>>,
    },
    /// Sets the signer's weights.
    SetWeights {
        /// Where.
        netuid: u16,
        /// Uids.
        dests: Vec<u16>,
        /// One for each, relative.
        weights: Vec<u16>,
        /// The version of the rules they were made by.
        version_key: u64,
    },
    /// The development chain's faucet: a slot, stake and permit for a hotkey, at no price. Once there, a neuron's stake
    /// is raised to what is asked and never lowered, so that asking twice is asking once. Signed by the genesis's
    /// `sudo`.
    DevRegister {
        /// Where.
        netuid: u16,
        /// For whom.
        hotkey: Hotkey,
        /// Stake it has at least, in rao.
        stake: u64,
    },
    /// Promises the signer's weights; the chain opens them by itself when their epoch has come.
    CommitTimelockedWeights {
        /// Where.
        netuid: u16,
        /// At most [`COMMIT_BYTES_MAX`]: [`LockedWeights`](super::timelock::LockedWeights), locked.
        commit: Vec<u8>,
        /// The beacon's round that they are locked until.
        reveal_round: u64,
        /// [`COMMIT_REVEAL_VERSION`](super::commit_reveal::COMMIT_REVEAL_VERSION).
        commit_reveal_version: u16,
    },
    /// Promises the signer's weights, which he will reveal himself.
    CommitWeights {
        /// Where.
        netuid: u16,
        /// [`Reveal::hash`](super::commit_reveal::Reveal::hash).
        commit_hash: [u8; 32],
    },
    /// Sets the weights that the signer promised.
    RevealWeights {
        /// Where.
        netuid: u16,
        /// Uids.
        uids: Vec<u16>,
        /// One for each, relative.
        values: Vec<u16>,
        /// What was hashed with them.
        salt: Vec<u16>,
        /// The version of the rules they were made by.
        version_key: u64,
    },
    /// Lowers the number of slots; who is left is numbered anew. Signed by the subnet owner's coldkey, or by `sudo`.
    SudoTrimToMaxAllowedUids {
        /// Where.
        netuid: u16,
        /// Slots from now on.
        max_n: u16,
    },
    /// The development chain's faucet, for money: a free balance is raised to what is asked and never lowered. Signed by
    /// the genesis's `sudo`.
    DevFund {
        /// Whose.
        account: AccountId,
        /// Balance it has at least, in rao.
        balance: u64,
    },
}

impl Call {
    /// Whether its parts fit the chain's bounded types; a call that does not cannot even be decoded there.
    pub(super) fn has_encoding(&self) -> bool {
        match self {
            Self::SetCommitment { fields, .. } => fields.iter().all(|field| field.len() <= FIELD_BYTES_MAX),
            Self::CommitTimelockedWeights { commit, .. } => commit.len() <= COMMIT_BYTES_MAX,
            _ => true,
        }
    }
}

/// The blocks in which a call is valid: `birth ..  birth + period`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Era {
    /// The block it was made on.
    pub birth: u64,
    /// That block's hash; signed, so that the call is worth nothing on another fork.
    pub birth_hash: BlockHash,
    /// A power of two, 4 to 65536.
    pub period: u64,
}

/// A call with its signer's signature, as it travels and waits in the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCall {
    /// Who asks.
    pub signer: AccountId,
    /// How many calls of this signer came before.
    pub nonce: u64,
    /// First block it is valid in.
    pub birth: u64,
    /// Blocks it is valid for.
    pub period: u64,
    /// What is asked.
    pub call: Call,
    /// The signer's, over all of it and the chain.
    pub signature: [u8; SIGNATURE_LEN],
}

/// A call whose signature was found good: what the rules work on.
///
/// There are two ways to one, and no third: [`SignedCall::verify`], and [`VerifiedCall::trust`] for a host that checks
/// signatures of another encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedCall {
    /// Names the call in a receipt.
    pub hash: [u8; 32],
    /// Who asks.
    pub signer: AccountId,
    /// How many calls of this signer came before.
    pub nonce: u64,
    /// The block it was made on; it is valid after it.
    pub birth: u64,
    /// Blocks it is valid for.
    pub period: u64,
    /// What is asked.
    pub call: Call,
    /// Keeps others from writing one down.
    is_verified: IsVerified,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct IsVerified;

impl VerifiedCall {
    /// A call whose signature the caller has verified himself: over signer, nonce, life (birth and period) and call,
    /// over this chain's genesis hash, and over the hash of the birth block on this fork. `hash` names it in its
    /// receipt; no two calls share one.
    ///
    /// Nonce, era, and every rule of the call are still the ledger's to check.
    #[must_use]
    pub fn trust(hash: [u8; 32], signer: AccountId, nonce: u64, (birth, period): (u64, u64), call: Call) -> Self {
        Self { hash, signer, nonce, birth, period, call, is_verified: IsVerified }
    }
}

impl SignedCall {
    /// Signs a call for the chain with that genesis.
    #[must_use]
    pub fn sign(signer: &HotkeyPair, genesis: &BlockHash, era: &Era, nonce: u64, call: Call) -> Self {
        let account = signer.hotkey();
        let signature = signer.sign(&signed_bytes(&account, genesis, era, nonce, &call));
        Self { signer: account, nonce, birth: era.birth, period: era.period, call, signature }
    }

    /// The call's name among calls.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("convoke 2026-11 development chain call v1");
        hasher.update(&self.signer.0);
        hasher.update(&self.nonce.to_le_bytes());
        hasher.update(&self.birth.to_le_bytes());
        hasher.update(&self.period.to_le_bytes());
        hasher.update(&self.signature);
        hasher.update(&encode(&self.call));
        *hasher.finalize().as_bytes()
    }

    /// The call, if its signature is the signer's on this chain and on the fork with that birth block.
    ///
    /// # Errors
    /// [`Invalid::BadProof`]: sign it anew.
    pub fn verify(&self, genesis: &BlockHash, birth_hash: BlockHash) -> Result<VerifiedCall, Invalid> {
        let era = Era { birth: self.birth, birth_hash, period: self.period };
        let bytes = signed_bytes(&self.signer, genesis, &era, self.nonce, &self.call);
        if !hotkey::verify(&self.signer, &bytes, &self.signature) {
            return Err(Invalid::BadProof);
        }
        let life = (self.birth, self.period);
        Ok(VerifiedCall::trust(self.hash(), self.signer, self.nonce, life, self.call.clone()))
    }
}

fn encode(call: &Call) -> Vec<u8> {
    postcard::to_allocvec(call).expect("plain numbers and bytes encode")
}

fn signed_bytes(signer: &AccountId, genesis: &BlockHash, era: &Era, nonce: u64, call: &Call) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("convoke 2026-11 development chain signed payload v1");
    hasher.update(&signer.0);
    hasher.update(&genesis.0);
    hasher.update(&SPEC_VERSION.to_le_bytes());
    hasher.update(&era.birth.to_le_bytes());
    hasher.update(&era.birth_hash.0);
    hasher.update(&era.period.to_le_bytes());
    hasher.update(&nonce.to_le_bytes());
    hasher.update(&encode(call));
    *hasher.finalize().as_bytes()
}

/// Why a call does not enter a block; a node's client sees RPC code 1010 with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Invalid {
    /// Its nonce was used: it, or another in its place, is in a block.
    #[error("transaction is outdated: the nonce was used")]
    Stale,
    /// A call with a lower nonce is missing.
    #[error("the nonce is ahead of the account's")]
    Future,
    /// Signature, genesis, rules' version or birth block are not what was signed.
    #[error("bad proof: the signature is not the signer's on this chain")]
    BadProof,
    /// Its era has passed, or its birth is not known.
    #[error("transaction is outdated: its era has passed")]
    AncientBirthBlock,
    /// It has no encoding on chain: a field that is too long, an era that is no power of two.
    #[error("the call has no encoding on chain")]
    Undecodable,
    /// A check of Subtensor's call-validity extension.
    #[error("refused by the call-validity extension with code {0}")]
    Custom(u8),
}

impl Invalid {
    /// `StakeAmountTooLow`.
    pub const STAKE_TOO_LOW: Self = Self::Custom(1);
    /// `RateLimitExceeded`.
    pub const RATE_LIMIT: Self = Self::Custom(6);
    /// `InvalidRevealRound`: the round is out, so nothing is locked until it.
    pub const REVEAL_ROUND: Self = Self::Custom(15);
    /// `CommitNotFound`.
    pub const COMMIT_NOT_FOUND: Self = Self::Custom(16);
    /// `CommitBlockNotInRevealRange`.
    pub const NOT_IN_REVEAL_RANGE: Self = Self::Custom(17);
}

macro_rules! dispatch_errors {
    ($($(#[$doc:meta])* $pallet:literal $name:ident,)*) => {
        /// Why a call failed inside a block, by the name the chain gives it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
        #[error("{}::{}", self.pallet(), self.name())]
        pub enum DispatchError {
            $($(#[$doc])* $name,)*
        }

        impl DispatchError {
            /// The error's name in the chain's metadata.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// The pallet it belongs to.
            #[must_use]
            pub fn pallet(self) -> &'static str {
                match self {
                    $(Self::$name => $pallet,)*
                }
            }
        }
    };
}

dispatch_errors! {
    /// Only the genesis's `sudo` may make development calls, only it or the owner those for a subnet's owner.
    "System" BadOrigin,
    /// A number outside what the subnet may have.
    "SubtensorModule" InvalidValue,
    /// Too many of those that would be left may not be pruned.
    "SubtensorModule" TrimmingWouldExceedMaxImmunePercentage,
    /// There is no such subnet.
    "SubtensorModule" SubnetNotExists,
    /// Registration is closed.
    "SubtensorModule" SubNetRegistrationDisabled,
    /// The hotkey has a slot.
    "SubtensorModule" HotKeyAlreadyRegisteredInSubNet,
    /// The price is above the caller's limit.
    "SubtensorModule" RegistrationPriceLimitExceeded,
    /// The coldkey cannot pay.
    "SubtensorModule" NotEnoughBalanceToStake,
    /// The hotkey belongs to another coldkey.
    "SubtensorModule" NonAssociatedColdKey,
    /// The subnet is full and nobody may be pruned.
    "SubtensorModule" NoNeuronIdAvailable,
    /// The hotkey was never seen.
    "SubtensorModule" HotKeyAccountNotExists,
    /// Stake below the least that may be added.
    "SubtensorModule" AmountTooLow,
    /// Weights must be committed first.
    "SubtensorModule" CommitRevealEnabled,
    /// As many uids as weights are needed.
    "SubtensorModule" WeightVecNotEqualSize,
    /// More uids than neurons.
    "SubtensorModule" UidsLengthExceedUidsInSubNet,
    /// The hotkey has no slot.
    "SubtensorModule" HotKeyNotRegisteredInSubNet,
    /// Less stake than the threshold.
    "SubtensorModule" NotEnoughStakeToSetWeights,
    /// Made by older rules than the subnet's.
    "SubtensorModule" IncorrectWeightVersionKey,
    /// Too soon after the last time, or after registration.
    "SubtensorModule" SettingWeightsTooFast,
    /// No permit.
    "SubtensorModule" NeuronNoValidatorPermit,
    /// A uid twice.
    "SubtensorModule" DuplicateUids,
    /// A uid that no neuron has.
    "SubtensorModule" UidVecContainInvalidOne,
    /// Fewer weights than the subnet wants.
    "SubtensorModule" WeightVecLengthIsLow,
    /// One weight has more than its share.
    "SubtensorModule" MaxWeightExceeded,
    /// Weights are set at once here, not committed.
    "SubtensorModule" CommitRevealDisabled,
    /// Locked in another form than the chain opens.
    "SubtensorModule" IncorrectCommitRevealVersion,
    /// Too soon after the last commit, or after registration.
    "SubtensorModule" CommittingWeightsTooFast,
    /// Ten of its commits wait already.
    "SubtensorModule" TooManyUnrevealedCommits,
    /// The hotkey has no open commit.
    "SubtensorModule" NoWeightsCommitFound,
    /// The epoch of its reveal has passed.
    "SubtensorModule" ExpiredWeightCommit,
    /// The epoch of its reveal has not come.
    "SubtensorModule" RevealTooEarly,
    /// The hotkey committed something else.
    "SubtensorModule" InvalidRevealCommitHashNotMatch,
    /// The hotkey may not commit here: it has no slot.
    "Commitments" AccountNotAllowedCommit,
    /// More fields than three.
    "Commitments" TooManyFieldsInCommitmentInfo,
    /// The epoch's quota of bytes is spent.
    "Commitments" SpaceLimitExceeded,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed() -> (SignedCall, BlockHash, Era) {
        let genesis = BlockHash([1; 32]);
        let era = Era { birth: 5, birth_hash: BlockHash([2; 32]), period: 64 };
        let call = Call::SetCommitment { netuid: 3, fields: vec![vec![1, 2]] };
        (SignedCall::sign(&HotkeyPair::from_seed(&[9; 32]), &genesis, &era, 4, call), genesis, era)
    }

    #[test]
    fn a_signature_covers_chain_fork_era_nonce_and_call() {
        let (signed, genesis, era) = signed();
        assert_eq!(signed.verify(&genesis, era.birth_hash).unwrap().hash, signed.hash());
        let refused = |changed: &SignedCall| changed.verify(&genesis, era.birth_hash) == Err(Invalid::BadProof);
        assert_eq!(signed.verify(&BlockHash([7; 32]), era.birth_hash), Err(Invalid::BadProof));
        assert_eq!(signed.verify(&genesis, BlockHash([7; 32])), Err(Invalid::BadProof));
        assert!(refused(&SignedCall { nonce: 5, ..signed.clone() }));
        assert!(refused(&SignedCall { period: 128, ..signed.clone() }));
        assert!(refused(&SignedCall { birth: 6, ..signed.clone() }));
        assert!(refused(&SignedCall { signer: Hotkey([3; 32]), ..signed.clone() }));
        let call = Call::SetCommitment { netuid: 3, fields: vec![vec![1, 3]] };
        assert!(refused(&SignedCall { call, ..signed }));
    }

    #[test]
    fn an_error_has_its_pallet_and_its_name() {
        assert_eq!(DispatchError::SettingWeightsTooFast.to_string(), "SubtensorModule::SettingWeightsTooFast");
        assert_eq!(DispatchError::SpaceLimitExceeded.to_string(), "Commitments::SpaceLimitExceeded");
    }
}
