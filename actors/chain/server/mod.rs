//! The development chain as a server: the ledger behind the Substrate JSON-RPC methods that a Subtensor client calls.
//!
//! ```text
//!  subxt ──WebSocket──> socket ──> rpc, subscriptions, faults
//!                            │  one lock, short
//!                          chain ── state (storage at every kept block), pool, header
//!                            ▲
//!                          maker ──> ledger.step ──> wire (encoding) ──> store (one write a block) ──> shown
//! ```
//!
//! It is what the in-process host is, for other processes: so that the client that runs against a live network runs
//! against this one every day. What crosses the socket is bounded on this side: connections, subscriptions of one, bytes
//! of a message, keys of a query, calls in the pool.
//!
//! The server library is `jsonrpsee`'s, the one whose client `subxt` uses: subscriptions, batches and their limits are
//! kept there, and the node links it anyway.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use convoke::chain::timelock::LocalBeacon;
use convoke::chain::{Genesis, GenesisError, Ledger};
use convoke::terms::{Block, BlockHash, Hotkey};
use jsonrpsee::{Methods, RpcModule};
use tokio::sync::watch;
use tracing::info;

use super::wire::{Runtime, WireError};
use super::{BlockRef, CallFault, ChainError, Pace, StoreError};
use chain::{Chain, Making, STATES_KEPT, Shared};
use header::Sealed;

mod chain;
mod faults;
mod header;
#[cfg(test)]
mod hostile;
mod maker;
mod pool;
mod rpc;
mod socket;
mod state;
mod store;
mod subscriptions;

/// What the server calls itself; no other node of a Substrate chain does.
pub(super) const NODE_NAME: &str = "convoke";

/// How a chain is served. None of it is the chain's: another server may go on with the same file otherwise.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// How long a block takes.
    pub block_time: Duration,
    /// The finalised head is this many blocks behind the best.
    pub finality_depth: u64,
    /// When blocks are made.
    pub pace: Pace,
    /// Where the chain is kept; without, it ends with the server.
    pub file: Option<PathBuf>,
    /// Whether the calls that make things go wrong are there.
    pub faults: bool,
    /// The runtimes it may show itself as; the first is where a new chain begins.
    pub runtimes: Vec<Runtime>,
}

impl ServerConfig {
    /// A chain of this block time on this address, dated by this machine's clock, final two blocks behind, as the
    /// recorded runtime, without faults.
    #[must_use]
    pub fn new(listen: SocketAddr, block_time: Duration) -> Self {
        let (finality_depth, pace) = (2, Pace::Real);
        let runtimes = vec![Runtime::recorded()];
        Self { listen, block_time, finality_depth, pace, file: None, faults: false, runtimes }
    }
}

/// Why a chain cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The genesis breaks a rule.
    #[error("the chain's genesis is wrong")]
    Genesis(#[source] GenesisError),
    /// Finalised blocks could not be read.
    #[error("a finality depth of {depth} is more than the {STATES_KEPT} blocks whose state is kept")]
    FinalityDepth {
        /// What was asked for.
        depth: u64,
    },
    /// Blocks that take no time.
    #[error("a block time of zero: blocks would never stop")]
    BlockTime,
    /// The file cannot be used.
    #[error("the chain cannot be kept")]
    Store(#[source] StoreError),
    /// The runtime has no place for what the chain says.
    #[error("the chain has no encoding by its runtime")]
    Wire(#[source] WireError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// A served chain; it goes on until it is stopped or dropped.
pub struct ChainServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    serving: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl ChainServer {
    /// Begins the chain, or goes on with the one in the file, and listens. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// What is wrong with genesis, config, file or address.
    pub fn start(genesis: &Genesis, config: ServerConfig) -> Result<Self, ServeError> {
        let shared = open(genesis, &config)?;
        let unusable = |source| ServeError::Listen { address: config.listen, source };
        let listener = std::net::TcpListener::bind(config.listen).map_err(unusable)?;
        listener.set_nonblocking(true).map_err(unusable)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(unusable)?;
        let address = listener.local_addr().map_err(unusable)?;
        let methods = methods(Arc::clone(&shared), config.faults);
        let (stop, stopped) = watch::channel(false);
        let serving = tokio::spawn(socket::serve(listener, methods, shared.generation.subscribe(), stopped));
        if config.pace != Pace::OnDemand {
            tokio::spawn(maker::run(Arc::downgrade(&shared), config.block_time));
        }
        let best = Arc::clone(&shared.heads.borrow().best);
        info!(%address, block = best.header.number, genesis = shared.genesis.short(), "chain served");
        Ok(Self { shared, address, stop, serving: Mutex::new(Some(serving)) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL that a client connects to.
    #[must_use]
    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// The chain's name: the hash of its genesis block as clients see it.
    #[must_use]
    pub fn genesis(&self) -> BlockHash {
        self.shared.genesis
    }

    /// The ledger after the best block.
    #[must_use]
    pub fn ledger(&self) -> Arc<Ledger> {
        Arc::clone(&self.shared.chain().ledger)
    }

    /// The best block, and the newest that is final.
    #[must_use]
    pub fn heads(&self) -> super::Heads {
        let heads = self.shared.heads.borrow();
        super::Heads { best: block_ref(&heads.best), finalized: block_ref(&heads.finalized) }
    }

    /// How many calls wait for a block.
    #[must_use]
    pub fn calls_waiting(&self) -> usize {
        self.shared.chain().pool.len()
    }

    /// Makes `n` blocks now, whatever the pace and whatever is stalled. Answers with the last.
    ///
    /// # Errors
    /// A block that could not be stored, or a chain that has stopped.
    pub async fn mine(&self, n: u64) -> Result<BlockRef, ChainError> {
        let mut best = Arc::clone(&self.shared.heads.borrow().best);
        for _ in 0..n {
            best = maker::make_block(&self.shared).await?;
        }
        Ok(block_ref(&best))
    }

    /// Replaces the last `depth` blocks by one more than there were; their calls wait again. Answers with the last.
    ///
    /// # Errors
    /// A root that is final, or older than the ledgers that are kept.
    pub async fn fork(&self, depth: u64) -> Result<BlockRef, ChainError> {
        maker::fork(&self.shared, depth).await.map(|best| block_ref(&best))
    }

    /// Stops the clock's blocks, or lets them go on; [`Self::mine`] still makes some.
    pub fn stall_blocks(&self, stalled: bool) {
        faults::stall_blocks(&self.shared, stalled);
    }

    /// Stops finality while blocks go on, or lets it catch up with the next block.
    pub fn stall_finality(&self, stalled: bool) {
        faults::stall_finality(&self.shared, stalled);
    }

    /// What is to happen to this signer's next call.
    pub fn fault_next_call(&self, signer: Hotkey, fault: CallFault) {
        self.shared.chain().pool.fault(signer, fault);
    }

    /// Ends every connection; new ones are taken at once.
    pub fn drop_sockets(&self) {
        faults::drop_sockets(&self.shared);
    }

    /// From the next block on the chain shows itself as the runtime with this number.
    pub fn upgrade_runtime(&self, spec_version: u32) {
        faults::upgrade_runtime(&self.shared, spec_version);
    }

    /// Ends the chain: no more blocks, calls, answers or connections; file and address are free once this returns.
    pub async fn stop(&self) {
        {
            let mut chain = self.shared.chain();
            chain.has_stopped = true;
            chain.pool.clear();
        }
        // A block in the making is finished first.
        self.shared.making.lock().await.store = None;
        self.stop.send_replace(true);
        let serving = self.serving.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(serving) = serving {
            // It only ever ends.
            drop(serving.await);
        }
    }
}

fn block_ref(sealed: &Sealed) -> BlockRef {
    BlockRef { number: Block(sealed.header.number), hash: sealed.hash }
}

fn open(genesis: &Genesis, config: &ServerConfig) -> Result<Arc<Shared>, ServeError> {
    if config.finality_depth >= STATES_KEPT {
        return Err(ServeError::FinalityDepth { depth: config.finality_depth });
    }
    if config.block_time.is_zero() && config.pace != Pace::OnDemand {
        return Err(ServeError::BlockTime);
    }
    let runtimes = if config.runtimes.is_empty() { vec![Runtime::recorded()] } else { config.runtimes.clone() };
    let ledger = Ledger::new(genesis).map_err(ServeError::Genesis)?;
    let of_genesis = LocalBeacon::of_chain(&ledger.genesis());
    let (sealed, state) = maker::first(&runtimes[0], &ledger, &of_genesis).map_err(ServeError::Wire)?;
    let opened = store::open_or_begin(config.file.as_deref(), genesis, || (ledger, sealed, state));
    let (store, stored) = opened.map_err(ServeError::Store)?;
    let chain = Chain::new(stored, runtimes);
    let (heads, _) = watch::channel(maker::heads(&chain, config.finality_depth));
    Ok(Arc::new(Shared {
        genesis: chain.genesis().hash,
        // Not the genesis's that was asked for: a chain that goes on was begun at another time.
        beacon: LocalBeacon::of_chain(&chain.ledger.genesis()),
        block_time: config.block_time,
        finality_depth: config.finality_depth,
        pace: config.pace,
        chain: Mutex::new(chain),
        heads,
        making: Arc::new(tokio::sync::Mutex::new(Making { store, rewound_to: None })),
        generation: watch::channel(0).0,
    }))
}

fn methods(shared: Arc<Shared>, faults: bool) -> Methods {
    let mut module = RpcModule::from_arc(shared);
    let registered = rpc::register(&mut module)
        .and_then(|()| subscriptions::register(&mut module))
        .and_then(|()| if faults { faults::register(&mut module) } else { Ok(()) });
    registered.expect("no two methods have one name");
    let mut names: Vec<_> = module.method_names().map(str::to_owned).collect();
    names.sort_unstable();
    let listed = move |_: jsonrpsee::types::Params<'_>, _: &Shared, _: &jsonrpsee::Extensions| serde_json::json!({ "methods": names });
    module.register_method("rpc_methods", listed).expect("no two methods have one name");
    module.into()
}
