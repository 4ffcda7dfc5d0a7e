//! The chain as one incarnation of a simulated node sees it: the development chain of the process, until the node is dead.

use std::sync::Arc;
use std::time::Duration;

use convoke::hotkey::HotkeyPair;
use convoke::terms::{Block, BlockHash, Hotkey, Uid, Weight};

use super::fence::Fence;
use crate::chain::{ChainError, ChainFuture, ChainRead, ChainWrite, Commitments, HeadReader, Metagraph, Outcome};

/// A chain behind a fence.
pub struct Port {
    read: Arc<dyn ChainRead>,
    write: Arc<dyn ChainWrite>,
    fence: Fence,
}

impl Port {
    /// For as long as the fence stands.
    #[must_use]
    pub fn new(read: Arc<dyn ChainRead>, write: Arc<dyn ChainWrite>, fence: Fence) -> Arc<Self> {
        Arc::new(Self { read, write, fence })
    }

    fn unless_dead<'a, T: Send + 'a>(&self, future: ChainFuture<'a, T>) -> ChainFuture<'a, T> {
        if self.fence.has_fallen() { Box::pin(async { Err(ChainError::Stopped) }) } else { future }
    }
}

impl ChainRead for Port {
    fn genesis(&self) -> BlockHash {
        self.read.genesis()
    }

    fn netuid(&self) -> u16 {
        self.read.netuid()
    }

    fn heads(&self) -> HeadReader {
        self.read.heads()
    }

    fn block_hash(&self, number: Block) -> ChainFuture<'_, Option<BlockHash>> {
        self.unless_dead(self.read.block_hash(number))
    }

    fn metagraph(&self, at: Block) -> ChainFuture<'_, Arc<Metagraph>> {
        self.unless_dead(self.read.metagraph(at))
    }

    fn commitments(&self, at: Block) -> ChainFuture<'_, Arc<Commitments>> {
        self.unless_dead(self.read.commitments(at))
    }

    fn block_time(&self) -> Duration {
        self.read.block_time()
    }
}

impl ChainWrite for Port {
    fn hotkey(&self) -> Hotkey {
        self.write.hotkey()
    }

    fn commit(&self, fields: Vec<Vec<u8>>) -> ChainFuture<'_, Outcome> {
        self.unless_dead(self.write.commit(fields))
    }

    fn set_weights(&self, weights: Vec<(Uid, Weight)>, version_key: u64) -> ChainFuture<'_, Outcome> {
        self.unless_dead(self.write.set_weights(weights, version_key))
    }

    fn register(&self, coldkey: HotkeyPair, limit_price: u64) -> ChainFuture<'_, Outcome> {
        self.unless_dead(self.write.register(coldkey, limit_price))
    }
}
