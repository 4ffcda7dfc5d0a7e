//! The seam between a node and its chain: two small traits, every read at a named block.
//!
//! ```text
//!  ChainRead, ChainWrite
//!    ├─ host     the ledger in this process: tests, simulation
//!    └─ client   subxt, against a live Subtensor or the development chain
//!                   │ WebSocket, Substrate JSON-RPC
//!                server   the ledger for other processes: the development chain
//!                   └─ wire   the ledger in Subtensor's encoding, by recorded metadata
//! ```
//!
//! [`ChainRead`] is for everybody, [`ChainWrite`] for ChainWriter alone. Whatever stands behind them has the same face, the
//! same outcomes and the same names of errors, so that a node has one table of them ([`Class`]).
//!
//! The best head drives the clock. Seeds, membership and scores are read at finalised blocks only.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use convoke::terms::{Block, BlockHash, Hotkey, Uid, Weight};
use serde::{Deserialize, Serialize};

pub mod client;
mod forks;
mod heads;
pub mod host;
mod maker;
mod outcome;
mod pool;
pub mod server;
mod store;
#[cfg(test)]
mod tests;
pub mod wire;

pub use client::{Client, ClientConfig};
pub use convoke::chain::{Committed, Metagraph, Neuron};
pub use heads::{Closed, HeadReader, HeadWatch};
pub use host::{CallFault, Host, HostConfig, HostError, Pace, StoreError};
pub use outcome::{Class, Outcome};
pub use server::{ChainServer, ServeError, ServerConfig};
pub use wire::{Runtime, WireError};

/// What a call to the chain resolves to; boxed, so that the traits can be objects.
pub type ChainFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, ChainError>> + Send + 'a>>;

/// Every hotkey's commitment at a block.
pub type Commitments = BTreeMap<Hotkey, Committed>;

/// A block, named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRef {
    /// Its number.
    pub number: Block,
    /// Its hash.
    pub hash: BlockHash,
}

/// Where the chain stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// The newest block; it may be replaced.
    pub best: BlockRef,
    /// The newest block that will not be.
    pub finalized: BlockRef,
}

/// Why the chain could not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The block's state is gone: read at a younger one.
    #[error("the state of block {block} is no longer kept: the oldest is {oldest}")]
    Pruned {
        /// Asked for.
        block: Block,
        /// What there is.
        oldest: Block,
    },
    /// The block is not made: wait for the head.
    #[error("block {block} is not there: the best is {best}")]
    NotYet {
        /// Asked for.
        block: Block,
        /// What there is.
        best: Block,
    },
    /// The chain has stopped, and will not go on.
    #[error("the chain has stopped")]
    Stopped,
    /// A block could not be stored; the next attempt may succeed.
    #[error("the chain's store failed: {reason}")]
    Store {
        /// The store's words.
        reason: String,
    },
    /// No endpoint answers; it is tried again meanwhile.
    #[error("the chain cannot be reached: {reason}")]
    Unreachable {
        /// What the last attempt came to.
        reason: String,
    },
    /// An answer is not what a Subtensor chain would say.
    #[error("the chain is not as expected: {reason}")]
    Foreign {
        /// What is wrong with it.
        reason: String,
    },
    /// A call that must succeed did not.
    #[error("the chain refused: {outcome:?}")]
    Refused {
        /// What became of it.
        outcome: Outcome,
    },
}

/// What a node reads of the chain.
pub trait ChainRead: Send + Sync + 'static {
    /// The chain's name.
    fn genesis(&self) -> BlockHash;

    /// The subnet.
    fn netuid(&self) -> u16;

    /// The heads, as they move; it may skip some.
    fn heads(&self) -> HeadReader;

    /// A block's hash; `None` while it is not there.
    fn block_hash(&self, number: Block) -> ChainFuture<'_, Option<BlockHash>>;

    /// The subnet after a block.
    fn metagraph(&self, at: Block) -> ChainFuture<'_, Arc<Metagraph>>;

    /// The commitments after a block.
    fn commitments(&self, at: Block) -> ChainFuture<'_, Arc<Commitments>>;

    /// How long a block takes.
    fn block_time(&self) -> Duration;
}

/// What ChainWriter asks of the chain. Each call resolves when its fate is known: included, refused, or expired with
/// its era. Whoever stops waiting has not called it back; it may still be included.
pub trait ChainWrite: Send + Sync + 'static {
    /// In whose name.
    fn hotkey(&self) -> Hotkey;

    /// Overwrites the hotkey's commitment.
    fn commit(&self, fields: Vec<Vec<u8>>) -> ChainFuture<'_, Outcome>;

    /// Sets the hotkey's weights, or where the chain wants it commits them under a lock that it opens an epoch later.
    /// Either way the call's block is the neuron's last update.
    fn set_weights(&self, weights: Vec<(Uid, Weight)>, version_key: u64) -> ChainFuture<'_, Outcome>;

    /// Buys the hotkey a slot with this coldkey, unless it costs more than the limit, in rao. A one-shot command's: the
    /// node itself never holds a coldkey.
    fn register(&self, coldkey: convoke::hotkey::HotkeyPair, limit_price: u64) -> ChainFuture<'_, Outcome>;
}
