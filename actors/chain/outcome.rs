//! What became of a call, and what to do about it: one table for every chain.
//!
//! The table goes by the names in the chain's metadata and by the codes of its call-validity extension, never by a type
//! of our ledger, so that it serves a live network as well. A name that it does not know is fatal: nobody should repeat
//! a call blindly whose refusal he does not understand.

use convoke::chain::Metagraph;
use convoke::terms::{Block, BlockHash, Hotkey};

/// RPC code of a call that does not pass its checks.
pub const INVALID_TRANSACTION: u16 = 1010;
/// RPC code of a call that a full pool dropped.
pub const IMMEDIATELY_DROPPED: u16 = 1016;

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is in this block and did what it asked.
    Included {
        /// The block.
        block: Block,
        /// Its hash.
        hash: BlockHash,
    },
    /// It did not enter the pool, or left it.
    PoolRejected {
        /// The RPC code.
        code: u16,
        /// The code of the call-validity extension, if that refused it.
        custom: Option<u8>,
        /// What to do.
        class: Class,
    },
    /// It is in a block and failed there.
    DispatchFailed {
        /// The error's name in the chain's metadata.
        name: String,
        /// What to do.
        class: Class,
    },
    /// Its era has passed and it is in no block: it never will be.
    Expired,
    /// Nobody knows: read back before anything is sent again.
    Unknown,
}

impl Outcome {
    /// What a node's refusal of a submission means, by its RPC code and words. `retry_at` is what a rate limit means.
    pub(super) fn of_refusal(code: i32, words: &str, retry_at: Block) -> Self {
        let custom =
            words.split("Custom error: ").nth(1).and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
        let custom = custom.and_then(|number| number.parse::<u8>().ok());
        let class = match (code, custom) {
            // It waits in the pool, or is in a block: the same call was sent before.
            (1013, _) => return Self::Unknown,
            (1010, Some(custom)) => Class::of_custom(custom, retry_at),
            (1010, None) if words.contains("ancient birth block") => return Self::Expired,
            (1010, None) if words.contains("not expected") => Class::BadArgs,
            (1001, _) => Class::BadArgs,
            // A signature, nonce or era that was overtaken; a ban, a place in the queue or a full pool that passes.
            (1002 | 1010 | 1012 | 1014 | 1016, _) => Class::Transient,
            // An error of the transport or of the method, not of the call.
            (..=-32_000, _) => Class::Transient,
            _ => Class::Fatal,
        };
        Self::PoolRejected { code: u16::try_from(code).unwrap_or(0), custom, class }
    }
}

/// What to do about a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Too soon: not before this block.
    RateLimited(Block),
    /// The hotkey has no slot.
    NotRegistered,
    /// The hotkey has no permit.
    NoPermit,
    /// The hotkey has too little stake.
    StakeTooLow,
    /// The arguments are wrong for the chain as it is.
    BadArgs,
    /// Make it anew and send it again.
    Transient,
    /// Sending it again will not help.
    Fatal,
}

impl Class {
    /// The class of a dispatch error by its name; `retry_at` is what a rate limit means.
    pub(super) fn of_dispatch(name: &str, retry_at: Block) -> Self {
        match name {
            "SettingWeightsTooFast"
            | "CommittingWeightsTooFast"
            | "TooManyUnrevealedCommits"
            | "SpaceLimitExceeded"
            | "ServingRateLimitExceeded" => Self::RateLimited(retry_at),
            "HotKeyNotRegisteredInSubNet" | "HotKeyNotRegisteredInNetwork" | "AccountNotAllowedCommit" => {
                Self::NotRegistered
            }
            "NeuronNoValidatorPermit" => Self::NoPermit,
            "NotEnoughStakeToSetWeights" => Self::StakeTooLow,
            "WeightVecNotEqualSize"
            | "UidsLengthExceedUidsInSubNet"
            | "DuplicateUids"
            | "UidVecContainInvalidOne"
            | "WeightVecLengthIsLow"
            | "MaxWeightExceeded"
            | "IncorrectWeightVersionKey"
            | "TooManyFieldsInCommitmentInfo" => Self::BadArgs,
            // The subnet's owner changed how weights are taken after the call was made.
            "CommitRevealEnabled" | "CommitRevealDisabled" => Self::Transient,
            _ => Self::Fatal,
        }
    }

    /// The class of a code of the call-validity extension.
    pub(super) fn of_custom(code: u8, retry_at: Block) -> Self {
        match code {
            1 => Self::StakeTooLow,
            6 => Self::RateLimited(retry_at),
            // The round came out on the way: lock the weights until a later one.
            15 => Self::Transient,
            18 => Self::BadArgs,
            10 | 19 => Self::NotRegistered,
            _ => Self::Fatal,
        }
    }
}

/// The first block at which what was too soon no longer is: a commitment's quota begins anew with the epoch, weights
/// have waited for their limit.
pub(super) fn retry_at(metagraph: &Metagraph, hotkey: &Hotkey, is_commitment: bool) -> Block {
    let soonest = Block(metagraph.block.0.saturating_add(1));
    let due = if is_commitment { metagraph.next_epoch } else { metagraph.weights_due(hotkey) };
    due.unwrap_or(soonest).max(soonest)
}

#[cfg(test)]
mod tests {
    use convoke::chain::DispatchError;

    use super::*;

    #[test]
    fn a_nodes_words_have_the_meaning_that_the_pool_beside_us_gives() {
        let of = |code, words: &str| Outcome::of_refusal(code, words, Block(7));
        let class = |code, words: &str| match of(code, words) {
            Outcome::PoolRejected { class, custom, .. } => (class, custom),
            other => panic!("{other:?}"),
        };
        let invalid = |data: &str| format!("Invalid Transaction: {data}");
        assert_eq!(class(1010, &invalid("\"Custom error: 6\"")), (Class::RateLimited(Block(7)), Some(6)));
        assert_eq!(class(1010, &invalid("Custom error: 1")), (Class::StakeTooLow, Some(1)));
        assert_eq!(class(1010, &invalid("Custom error: 700")), (Class::Transient, None));
        assert_eq!(class(1010, &invalid("Transaction is outdated")), (Class::Transient, None));
        assert_eq!(class(1010, &invalid("Transaction has a bad signature")), (Class::Transient, None));
        assert_eq!(class(1010, &invalid("Transaction call is not expected")), (Class::BadArgs, None));
        assert_eq!(class(1014, "Priority is too low: (1 vs 1)"), (Class::Transient, None));
        assert_eq!(class(-32_603, "Internal error"), (Class::Transient, None));
        assert_eq!(class(1099, "of tomorrow"), (Class::Fatal, None));
        assert_eq!(of(1013, "Transaction Already Imported"), Outcome::Unknown);
        assert_eq!(of(1010, &invalid("Transaction has an ancient birth block")), Outcome::Expired);
    }

    #[test]
    fn every_refusal_of_a_nodes_call_has_a_class() {
        let class = |error: DispatchError| Class::of_dispatch(error.name(), Block(7));
        assert_eq!(class(DispatchError::SettingWeightsTooFast), Class::RateLimited(Block(7)));
        assert_eq!(class(DispatchError::SpaceLimitExceeded), Class::RateLimited(Block(7)));
        assert_eq!(class(DispatchError::AccountNotAllowedCommit), Class::NotRegistered);
        assert_eq!(class(DispatchError::HotKeyNotRegisteredInSubNet), Class::NotRegistered);
        assert_eq!(class(DispatchError::NeuronNoValidatorPermit), Class::NoPermit);
        assert_eq!(class(DispatchError::NotEnoughStakeToSetWeights), Class::StakeTooLow);
        assert_eq!(class(DispatchError::UidVecContainInvalidOne), Class::BadArgs);
        assert_eq!(class(DispatchError::CommittingWeightsTooFast), Class::RateLimited(Block(7)));
        assert_eq!(class(DispatchError::TooManyUnrevealedCommits), Class::RateLimited(Block(7)));
        assert_eq!(class(DispatchError::IncorrectCommitRevealVersion), Class::Fatal);
        assert_eq!(class(DispatchError::CommitRevealEnabled), Class::Transient);
        assert_eq!(class(DispatchError::CommitRevealDisabled), Class::Transient);
        assert_eq!(Class::of_custom(15, Block(7)), Class::Transient);
        assert_eq!(class(DispatchError::SubnetNotExists), Class::Fatal);
        assert_eq!(Class::of_dispatch("SomethingOfATomorrowsRuntime", Block(7)), Class::Fatal);
        assert_eq!(Class::of_custom(6, Block(7)), Class::RateLimited(Block(7)));
        assert_eq!(Class::of_custom(255, Block(7)), Class::Fatal);
    }
}
