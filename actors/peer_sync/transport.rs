//! Endpoint, store and gate as one thing with one life, which is longer than the actor's (see [`super::slot`]).
//!
//! Opening waits for a port or a lock that a former transport still has, for as long as the configuration's `patience`; closing
//! interrupts what is in flight, so that nothing keeps the port. A transport that is dropped without [`Transport::shutdown`] closes
//! itself in the background.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use convoke::terms::{Block, EndpointId, Round};
use iroh::address_lookup::memory::MemoryLookup;
use iroh::protocol::Router;
use iroh::{Endpoint, EndpointAddr, PublicKey, SecretKey};
use iroh_blobs::Hash;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use super::admission::{Admission, Doorman, Peer, PeerBudget};
use super::budget::{BURST_MIN, Rate};
use super::connections::Connections;
use super::endpoint::{self, EndpointError};
use super::gate::Gate;
use super::serve::Server;
use super::stats::Stats;
use super::store::{BlobStore, Label, StoreError};

/// Time for each of the two steps of closing: telling the peers, then writing out the store.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for a healthy store to answer a look-up.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between two tries for a port or a lock that is about to be released.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Everything the network side needs to know.
#[derive(Clone)]
pub struct TransportConfig {
    /// Where to listen; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Where the blobs are.
    pub dir: PathBuf,
    /// Who this node is to its peers.
    pub secret: SecretKey,
    /// What one peer may ask of this node.
    pub peer_budget: PeerBudget,
    /// How fetches behave.
    pub limits: FetchLimits,
    /// How often blobs of forgotten rounds are removed from disk.
    pub collect_every: Duration,
    /// How long to wait for a port or a lock that a former transport still has.
    pub patience: Duration,
}

/// How fetches behave.
#[derive(Debug, Clone, Copy)]
pub struct FetchLimits {
    /// How long one holder may take to accept a connection.
    pub connect_timeout: Duration,
    /// How long a holder may say nothing.
    pub stall_timeout: Duration,
    /// How many blobs are fetched at one time.
    pub parallel_max: usize,
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self { connect_timeout: Duration::from_secs(5), stall_timeout: Duration::from_secs(5), parallel_max: 8 }
    }
}

impl TransportConfig {
    /// The defaults: loopback, a free port, 64 MB/s to each peer.
    #[must_use]
    pub fn new(dir: PathBuf, secret: SecretKey) -> Self {
        Self {
            bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            dir,
            secret,
            peer_budget: PeerBudget {
                bytes: Rate { per_second: 64_000_000, burst: 4_000_000 },
                requests: Rate { per_second: 50, burst: 500 },
                // Twice what a peer that joins has, which may have been killed and come back before the old ones time out.
                connections_max: 12,
            },
            limits: FetchLimits::default(),
            collect_every: Duration::from_secs(60),
            patience: Duration::from_secs(10),
        }
    }
}

/// Why there is no transport.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The endpoint could not be bound.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The transport was shut down.
    #[error("the transport is shut down")]
    Closed,
}

/// What there is while a transport is open. Fetches in flight share it; closing interrupts them, so that they let go of it.
#[derive(Debug)]
pub(super) struct Live {
    endpoint: Endpoint,
    router: Router,
    addresses: MemoryLookup,
    /// Where each admitted peer is, and which start of its node that is.
    starts: tokio::sync::Mutex<HashMap<PublicKey, (EndpointAddr, u32)>>,
    pub store: BlobStore,
    pub connections: Connections,
}

impl Live {
    /// Connections of a fetch's own: as many to each peer as there are lanes, closed when they are dropped.
    pub fn lanes(&self, n_lanes: usize, stats: &Arc<Stats>) -> Vec<Connections> {
        (0..n_lanes).map(|_| Connections::apart(self.endpoint.clone(), stats.clone())).collect()
    }

    async fn close(self: Arc<Self>) {
        // The router closes the endpoint, and with it every connection, in both directions.
        if timeout(CLOSE_TIMEOUT, self.router.shutdown()).await.is_err() {
            tracing::warn!("peers did not confirm the end of their connections in time");
        }
        if timeout(CLOSE_TIMEOUT, self.store.close()).await.is_err() {
            tracing::warn!("the blob store did not close in time");
        }
    }
}

/// The network side of a node. Clones are handles of one transport.
#[derive(Clone)]
pub struct Transport {
    inner: Arc<Inner>,
}

struct Inner {
    id: EndpointId,
    address: SocketAddr,
    limits: FetchLimits,
    fetch_turns: Semaphore,
    gate: Arc<Gate>,
    admission: Arc<Admission>,
    stats: Arc<Stats>,
    live: RwLock<Option<Arc<Live>>>,
    closing: watch::Sender<bool>,
    runtime: Handle,
}

impl Transport {
    /// Opens the store and binds the endpoint. Nobody is admitted yet, and the head is at block 0.
    ///
    /// # Errors
    /// If the directory cannot be used, or the address cannot be bound, within the patience of the configuration.
    pub async fn open(config: TransportConfig) -> Result<Self, TransportError> {
        Self::open_with(config, Arc::new(Gate::default()), Arc::new(Stats::default())).await
    }

    pub(super) async fn open_with(
        config: TransportConfig,
        gate: Arc<Gate>,
        stats: Arc<Stats>,
    ) -> Result<Self, TransportError> {
        let give_up_at = Instant::now() + config.patience;
        let mut peer_budget = config.peer_budget;
        peer_budget.bytes.burst = peer_budget.bytes.burst.max(BURST_MIN);
        let admission = Arc::new(Admission::new(peer_budget));
        let addresses = MemoryLookup::new();
        // The port first: a second node on the same data directory is then told about the port, or else about the lock.
        let endpoint = loop {
            let doorman = Doorman { admission: admission.clone(), stats: stats.clone() };
            match endpoint::bind(config.bind, config.secret.clone(), addresses.clone(), doorman).await {
                Err(error) if error.is_port_in_use() && Instant::now() < give_up_at => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                outcome => break outcome?,
            }
        };
        let store = loop {
            match BlobStore::open(&config.dir, config.collect_every, gate.clone()).await {
                Err(error) if error.is_locked() && Instant::now() < give_up_at => tokio::time::sleep(RETRY_PAUSE).await,
                Err(error) => {
                    endpoint.close().await;
                    return Err(error.into());
                }
                Ok(store) => break store,
            }
        };
        match store.largest_state().await {
            Ok(size) => admission.expect_state(size),
            Err(error) => tracing::warn!(%error, "joiners are served at the rate of any other peer"),
        }
        let address = endpoint.bound_sockets().first().copied().unwrap_or(config.bind);
        let server = Server {
            store: store.store().clone(),
            gate: gate.clone(),
            admission: admission.clone(),
            stats: stats.clone(),
        };
        let id = EndpointId(*endpoint.id().as_bytes());
        let connections = Connections::shared(endpoint.clone(), server.clone());
        let router = Router::builder(endpoint.clone()).accept(iroh_blobs::ALPN, server).spawn();
        let live = Live { endpoint, router, addresses, starts: tokio::sync::Mutex::default(), store, connections };
        Ok(Self {
            inner: Arc::new(Inner {
                id,
                address,
                limits: config.limits,
                fetch_turns: Semaphore::new(config.limits.parallel_max),
                gate,
                admission,
                stats,
                live: RwLock::new(Some(Arc::new(live))),
                closing: watch::Sender::new(false),
                runtime: Handle::current(),
            }),
        })
    }

    /// Who this node is to its peers.
    #[must_use]
    pub fn id(&self) -> EndpointId {
        self.inner.id
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }

    /// What may be read, and from when on.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.inner.gate
    }

    /// Who may connect.
    #[must_use]
    pub fn admission(&self) -> &Admission {
        &self.inner.admission
    }

    /// What has passed.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.inner.stats
    }

    /// Says where the chain is: opens the gate for what is to be revealed by this block.
    pub fn set_head(&self, head: Block) {
        self.inner.gate.set_head(head);
    }

    /// Replaces the list of peers that may connect and that this node connects to. An id that is no public key admits nobody.
    /// Answers how many peers are admitted now.
    ///
    /// # Errors
    /// If the transport is shut down.
    pub async fn admit(&self, peers: &[Peer]) -> Result<usize, TransportError> {
        let live = self.live()?;
        let admitted: HashMap<_, _> = peers
            .iter()
            .filter(|peer| peer.id != self.inner.id)
            .filter_map(|peer| Some((peer.endpoint_addr()?, peer.start)))
            .map(|(addr, start)| (addr.id, (addr, start)))
            .collect();
        for gone in self.inner.admission.replace(&admitted) {
            live.addresses.remove_endpoint_info(gone);
            live.connections.remove(&gone, b"not in the registry").await;
        }
        let count = admitted.len();
        let before = std::mem::replace(&mut *live.starts.lock().await, admitted.clone());
        for (id, (addr, start)) in admitted {
            let has_moved = before.get(&id).is_some_and(|before| *before != (addr.clone(), start));
            live.addresses.set_endpoint_info(addr);
            // It was started anew: on connections to and from its earlier process nobody will ever answer.
            if has_moved {
                live.connections.remove(&id, b"you have moved").await;
                self.inner.admission.hang_up(&id);
            }
        }
        Ok(count)
    }

    /// Keeps `bytes` on disk and serves them from the label's reveal on.
    ///
    /// # Errors
    /// If the store cannot write, or the transport is shut down.
    pub async fn publish(&self, bytes: Bytes, label: Label) -> Result<Hash, TransportError> {
        Ok(self.live()?.store.publish(bytes, label).await?)
    }

    /// Forgets all rounds before `round`. Answers how many labels went.
    ///
    /// # Errors
    /// If the store cannot write, or the transport is shut down.
    pub async fn forget_before(&self, round: Round) -> Result<u64, TransportError> {
        Ok(self.live()?.store.forget_before(round).await?)
    }

    /// The size of a blob that is here and whole.
    ///
    /// # Errors
    /// If the transport is shut down.
    pub async fn local_size(&self, hash: Hash) -> Result<Option<u64>, TransportError> {
        Ok(self.live()?.store.size(hash).await?)
    }

    /// Whether endpoint and store still work.
    pub async fn is_healthy(&self) -> bool {
        let Ok(live) = self.live() else { return false };
        !live.router.is_shutdown()
            && !live.endpoint.is_closed()
            && timeout(HEALTH_TIMEOUT, live.store.is_alive()).await.unwrap_or(false)
    }

    /// Ends all fetches, closes the connections, then the store. Takes at most six seconds; a second call does nothing.
    pub async fn shutdown(&self) {
        self.inner.closing.send_replace(true);
        let live = self.inner.live.write().expect("no holder of this lock panics").take();
        if let Some(live) = live {
            live.close().await;
        }
    }

    pub(super) fn live(&self) -> Result<Arc<Live>, TransportError> {
        self.inner.live.read().expect("no holder of this lock panics").clone().ok_or(TransportError::Closed)
    }

    pub(super) fn lanes(&self, live: &Live, n_lanes: usize) -> Vec<Connections> {
        live.lanes(n_lanes, &self.inner.stats)
    }

    pub(super) fn limits(&self) -> &FetchLimits {
        &self.inner.limits
    }

    pub(super) fn fetch_turns(&self) -> &Semaphore {
        &self.inner.fetch_turns
    }

    /// Returns when the transport is shut down.
    pub(super) async fn closing(&self) {
        // The sender lives as long as this handle, so waiting cannot fail.
        self.inner.closing.subscribe().wait_for(|closing| *closing).await.ok();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let live = self.live.write().ok().and_then(|mut live| live.take());
        if let Some(live) = live {
            self.runtime.spawn(live.close());
        }
    }
}
