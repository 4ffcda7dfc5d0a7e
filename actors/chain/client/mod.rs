//! The client of a Subtensor chain: the same against the development chain and against a live network.
//!
//! ```text
//!  ChainRead, ChainWrite
//!        │
//!   read, write ──> link ──> one endpoint at a time, over subxt's legacy backend
//!        │            └─ heads: best and finalised; a watchdog; the next endpoint when one falls silent
//!      wire (names in the metadata of the block that is read)
//! ```
//!
//! Every read names a block and uses that block's metadata, so that a runtime upgrade between two blocks is no event.
//! Nothing is cached by a number out of metadata. What a chain of another runtime lacks (an entry, a call) has a
//! default or a substitute that is written where it is used.
//!
//! A connection is given up, and the next endpoint is tried, when it ends, when a request is not answered, or when no
//! head came for some blocks. Whatever was under way is answered as unknown, or read again.

use std::sync::Arc;
use std::time::Duration;

use convoke::chain::AccountId;
use convoke::hotkey::HotkeyPair;
use convoke::terms::{Block, BlockHash, Hotkey, Stake, Uid, Weight};
use subxt::SubstrateConfig;

use super::{ChainError, ChainFuture, ChainRead, ChainWrite, Commitments, HeadReader, Metagraph, Outcome};
use link::Link;

mod commitments;
#[cfg(test)]
mod cost;
mod failure;
#[cfg(test)]
mod hostile;
mod link;
mod read;
mod stake;
#[cfg(test)]
mod tests;
mod values;
mod weights;
mod write;

/// How long a chain may take to be there when a client starts.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Which chain, and where.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// URLs (`ws://` or `wss://`) of nodes of one chain; the first that answers is used until it does not.
    pub endpoints: Vec<String>,
    /// The subnet.
    pub netuid: u16,
    /// How long a block takes; `None` asks the node, and believes Subtensor's 12 s if it does not say.
    pub block_time: Option<Duration>,
}

/// A client of one chain. It stays connected while it, a reader or a writer of it is held.
#[derive(Clone)]
pub struct Client {
    link: Arc<Link>,
}

impl Client {
    /// Connects to the first endpoint that answers.
    ///
    /// # Errors
    /// [`ChainError::Unreachable`] if none did for half a minute; [`ChainError::Foreign`] for what is no such chain.
    pub async fn connect(config: ClientConfig) -> Result<Self, ChainError> {
        let link = tokio::time::timeout(CONNECT_TIMEOUT, Link::connect(config)).await;
        let reason = || format!("no endpoint answered within {} s", CONNECT_TIMEOUT.as_secs());
        Ok(Self { link: link.map_err(|_| ChainError::Unreachable { reason: reason() })?? })
    }

    /// A reader of the chain.
    #[must_use]
    pub fn reader(&self) -> Arc<dyn ChainRead> {
        Arc::new(self.clone())
    }

    /// A writer in this hotkey's name.
    #[must_use]
    pub fn writer(&self, signer: HotkeyPair) -> Arc<dyn ChainWrite> {
        Arc::new(Writer { link: Arc::clone(&self.link), signer })
    }

    /// Gives the hotkey a slot, at least this stake, and a permit for it, from a development chain's faucet. Once that is
    /// so, asking again changes nothing.
    ///
    /// # Errors
    /// A chain that has no such faucet, or that is full of the immune.
    pub async fn dev_register(&self, hotkey: Hotkey, stake: Stake) -> Result<Uid, ChainError> {
        write::dev_register(&self.link, hotkey, stake).await
    }

    /// Raises the account's balance to at least this, in rao, from a development chain's faucet. Answers what it has.
    ///
    /// # Errors
    /// A chain that has no such faucet.
    pub async fn dev_fund(&self, account: AccountId, balance: u64) -> Result<u64, ChainError> {
        write::dev_fund(&self.link, &account, balance).await
    }

    /// The account's free balance after a block, in rao.
    ///
    /// # Errors
    /// As any read.
    pub async fn balance(&self, at: Block, account: AccountId) -> Result<u64, ChainError> {
        read::balance(&self.link, at, &account).await
    }

    /// Whether the subnet is on this chain.
    ///
    /// # Errors
    /// As any read.
    pub async fn has_subnet(&self, at: Block) -> Result<bool, ChainError> {
        read::has_subnet(&self.link, at).await
    }

    /// Whether the chain is a development chain, which gives away what others sell.
    ///
    /// # Errors
    /// As any read.
    pub async fn is_development(&self) -> Result<bool, ChainError> {
        read::is_development(&self.link).await
    }

    /// Which of the endpoints is in use, and how many connections there were before.
    #[must_use]
    pub fn connection(&self) -> Option<(String, u64)> {
        self.link.connection()
    }
}

impl ChainRead for Client {
    fn genesis(&self) -> BlockHash {
        self.link.genesis()
    }

    fn netuid(&self) -> u16 {
        self.link.netuid()
    }

    fn heads(&self) -> HeadReader {
        self.link.heads()
    }

    fn block_hash(&self, number: Block) -> ChainFuture<'_, Option<BlockHash>> {
        Box::pin(read::block_hash(&self.link, number))
    }

    fn metagraph(&self, at: Block) -> ChainFuture<'_, Arc<Metagraph>> {
        Box::pin(read::metagraph(&self.link, at))
    }

    fn commitments(&self, at: Block) -> ChainFuture<'_, Arc<Commitments>> {
        Box::pin(commitments::commitments(&self.link, at))
    }

    fn block_time(&self) -> Duration {
        self.link.block_time()
    }
}

struct Writer {
    link: Arc<Link>,
    signer: HotkeyPair,
}

impl ChainWrite for Writer {
    fn hotkey(&self) -> Hotkey {
        self.signer.hotkey()
    }

    fn commit(&self, fields: Vec<Vec<u8>>) -> ChainFuture<'_, Outcome> {
        Box::pin(write::commit(&self.link, &self.signer, fields))
    }

    fn set_weights(&self, weights: Vec<(Uid, Weight)>, version_key: u64) -> ChainFuture<'_, Outcome> {
        Box::pin(weights::set_weights(&self.link, &self.signer, weights, version_key))
    }

    fn register(&self, coldkey: HotkeyPair, limit_price: u64) -> ChainFuture<'_, Outcome> {
        Box::pin(async move { write::register(&self.link, &coldkey, self.signer.hotkey(), limit_price).await })
    }
}

/// The configuration by which subxt reads this chain: Substrate's own.
type Config = SubstrateConfig;
