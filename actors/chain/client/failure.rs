//! Why something was not read: because the connection is dead, or because that is what the chain answers.

use std::fmt;

use convoke::terms::Block;
use subxt::error::{BackendError, OnlineClientAtBlockError, RpcError};

use super::link::Link;
use crate::chain::ChainError;
use crate::chain::wire::WireError;

/// A Substrate node's code for a block or state that it does not have.
const UNKNOWN_BLOCK: i32 = 4003;

/// Why something was not read.
#[derive(Debug)]
pub(super) enum Failure {
    /// The connection is dead: another may answer.
    Lost(String),
    /// The chain answered, and that is it.
    Answer(ChainError),
}

impl Failure {
    pub(super) fn silent() -> Self {
        Self::Lost("a request was not answered".to_owned())
    }

    pub(super) fn of_rpc(error: subxt::rpcs::Error) -> Self {
        match error {
            subxt::rpcs::Error::User(error) if error.code == UNKNOWN_BLOCK => {
                // Which block that is, and what there is instead, is known where it was asked.
                Self::Answer(ChainError::Pruned { block: Block(0), oldest: Block(0) })
            }
            subxt::rpcs::Error::User(error) => Self::Answer(ChainError::Foreign { reason: error.to_string() }),
            other => Self::Lost(other.to_string()),
        }
    }

    pub(super) fn of_block(error: OnlineClientAtBlockError) -> Self {
        match error {
            OnlineClientAtBlockError::CannotGetSpecVersion {
                reason: BackendError::Rpc(RpcError::ClientError(error)),
                ..
            } => Self::of_rpc(error),
            other => Self::Lost(other.to_string()),
        }
    }

    /// Names the block that was asked for.
    pub(super) fn at(self, link: &Link, block: Block) -> Self {
        match self {
            Self::Answer(ChainError::Pruned { .. }) => {
                Self::Answer(ChainError::Pruned { block, oldest: link.finalized().number })
            }
            other => other,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(reason) => f.write_str(reason),
            Self::Answer(error) => error.fmt(f),
        }
    }
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        Self::Answer(ChainError::Foreign { reason: error.to_string() })
    }
}
