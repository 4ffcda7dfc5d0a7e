//! The network below PeerSync, for all nodes of one process and in virtual time.
//!
//! ```text
//!   PeerSync ── Nets, PeerNet ──> port (one life of a node) ──> batch ── may I, from whom, when? ──> links
//!                                   │ gate, admission, counts              │
//!                                   └──> shelf (an endpoint's disk) <──────┘ bytes of other endpoints' shelves
//! ```
//!
//! What it promises, as the real network side does: a blob is served only from its reveal on ([`Gate`], the real one), only to who is
//! admitted, and is taken only if it has the hash and the size that were asked for; who fails is asked again, with the real fetch's
//! pauses, shares of the time left and errors. Blobs and labels lie on a shelf of their endpoint's, which outlives the process: a new
//! life finds what the last one had kept, and opens the gate by it. What a port has kept is kept at once.
//!
//! What it does not promise: there are no connections, so none is slow to open, and no budgets, so nobody is asked too often. Fetches
//! take no turns, a state comes from one holder at a time, and nothing of a blob that came in part is left for a later fetch. How a
//! link behaves for one request is decided when the request is made ([`Links`]); only the death of who sends is noticed later.
//!
//! Nobody is told of a death. A port whose [`Fence`] has fallen reaches nothing any more, and whoever asks it hears nothing.

mod batch;
mod shelf;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use convoke::terms::{Block, Digest, EndpointId, Round};
use iroh_blobs::Hash;
use tokio::time::Instant;

use self::shelf::Shelf;
use super::fence::Fence;
use crate::pages::Pages;
use crate::peer_sync::admission::Peer;
use crate::peer_sync::fetch::{FetchError, Fetched, Want};
use crate::peer_sync::gate::{Gate, Reveal};
use crate::peer_sync::net::{NetFuture, Nets, PeerNet};
use crate::peer_sync::stats::{Refusal, Stats, add};
use crate::peer_sync::store::{Kind, Label, StoreError};
use crate::peer_sync::theta::{StateBrought, ThetaWant, bytes_of};
use crate::peer_sync::transport::TransportError;

/// From a request to its answer where nothing else is said: across a continent and back.
const LATENCY: Duration = Duration::from_millis(50);

/// How a link behaves for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Whether the request arrives and is answered. If not, the asker hears nothing.
    pub is_up: bool,
    /// From the request to the first byte of its answer.
    pub latency: Duration,
    /// How fast the bytes come; what one batch asks of one sender comes one after the other. Without it they come at once.
    pub bytes_per_second: Option<u64>,
    /// Whether a bit is wrong in what comes.
    pub is_corrupt: bool,
    /// Whether who asks for a state gets another one: the sender's newest that is not it, or one that never was.
    pub is_lying: bool,
    /// Whether the sender says nothing to this request.
    pub is_withheld: bool,
    /// Whether the answer comes twice. The second one finds nobody who waits for it: it costs its bytes.
    pub repeats: bool,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            is_up: true,
            latency: LATENCY,
            bytes_per_second: None,
            is_corrupt: false,
            is_lying: false,
            is_withheld: false,
            repeats: false,
        }
    }
}

/// What is between the nodes.
pub trait Links: Send + Sync {
    /// How the link behaves over which `from` sends `content` to `to`, which has asked for it at this moment.
    fn at(&self, from: EndpointId, to: EndpointId, content: &[u8; 32]) -> Link;
}

/// Links without any fault.
#[derive(Debug, Clone, Copy, Default)]
pub struct Calm;

impl Links for Calm {
    fn at(&self, _: EndpointId, _: EndpointId, _: &[u8; 32]) -> Link {
        Link::default()
    }
}

/// What an endpoint holds, and what it has sent in all its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Bytes of blobs sent to peers.
    pub bytes_served: u64,
    /// Blobs on its shelf.
    pub blobs_held: usize,
    /// Their bytes.
    pub bytes_held: u64,
}

/// The network that all simulated nodes share. Clones are handles of one network.
#[derive(Clone)]
pub struct FakeNet {
    wires: Arc<Wires>,
}

struct Wires {
    links: Arc<dyn Links>,
    places: Mutex<BTreeMap<EndpointId, Place>>,
}

/// An endpoint, whoever runs it.
#[derive(Default)]
struct Place {
    shelf: Shelf,
    served: Arc<AtomicU64>,
    /// Who answers here: the last process that has opened it.
    process: Option<Arc<Process>>,
}

/// What of an endpoint ends with its process.
struct Process {
    id: EndpointId,
    fence: Fence,
    gate: Gate,
    stats: Stats,
    served: Arc<AtomicU64>,
    admitted: Mutex<BTreeSet<EndpointId>>,
}

/// One life of a node in the network.
#[derive(Clone)]
struct Port {
    wires: Arc<Wires>,
    process: Arc<Process>,
}

/// A blob that its holder gives out.
struct Served {
    bytes: Bytes,
    sender: Arc<Process>,
}

impl FakeNet {
    /// A network without nodes.
    #[must_use]
    pub fn new(links: Arc<dyn Links>) -> Self {
        Self { wires: Arc::new(Wires { links, places: Mutex::default() }) }
    }

    /// The network as one life of a node sees it. Nobody is admitted and the head is at block 0, as after every start; what the endpoint
    /// has kept is there. It is reached from the first `acquire` on, and if its endpoint is opened again, by that life alone.
    #[must_use]
    pub fn port(&self, endpoint: EndpointId, fence: Fence) -> Arc<dyn Nets> {
        let served = Arc::clone(&self.wires.places().entry(endpoint).or_default().served);
        let process = Process {
            id: endpoint,
            fence,
            gate: Gate::default(),
            stats: Stats::default(),
            served,
            admitted: Mutex::default(),
        };
        Arc::new(Port { wires: Arc::clone(&self.wires), process: Arc::new(process) })
    }

    /// Puts a blob on an endpoint's shelf, past its node: for those whose node knows nothing of it.
    pub fn plant(&self, endpoint: EndpointId, hash: [u8; 32], bytes: &Bytes, label: Label) {
        let mut places = self.wires.places();
        let Some(Place { shelf, process: Some(process), .. }) = places.get_mut(&endpoint) else { return };
        shelf.keep(&process.gate, hash, bytes, label);
    }

    /// What an endpoint holds and has sent.
    #[must_use]
    pub fn tally(&self, endpoint: EndpointId) -> Tally {
        let places = self.wires.places();
        let tally = |place: &Place| Tally {
            bytes_served: place.served.load(Ordering::Relaxed),
            blobs_held: place.shelf.len(),
            bytes_held: place.shelf.n_bytes(),
        };
        places.get(&endpoint).map(tally).unwrap_or_default()
    }

    /// A blob that an endpoint holds, revealed or not: for those who look on.
    #[must_use]
    pub fn blob(&self, endpoint: EndpointId, hash: &[u8; 32]) -> Option<Bytes> {
        self.wires.places().get(&endpoint)?.shelf.find(hash).cloned()
    }
}

impl Default for FakeNet {
    fn default() -> Self {
        Self::new(Arc::new(Calm))
    }
}

impl Wires {
    fn places(&self) -> MutexGuard<'_, BTreeMap<EndpointId, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a holder answers to a request; `None` if nobody is there to answer.
    fn ask(&self, holder: EndpointId, asker: EndpointId, hash: &[u8; 32]) -> Option<Result<Served, FetchError>> {
        let places = self.places();
        let place = places.get(&holder)?;
        let process = place.answers()?;
        let find = |()| match place.shelf.find(hash) {
            Some(bytes) => Ok(Served { bytes: bytes.clone(), sender: Arc::clone(process) }),
            None => Err(FetchError::NotFound),
        };
        Some(process.judge(asker, hash).and_then(find))
    }

    /// Another state than that of this hash which an endpoint holds.
    fn other_state(&self, holder: EndpointId, hash: &[u8; 32]) -> Option<Bytes> {
        self.places().get(&holder)?.shelf.other_state(hash).cloned()
    }

    /// Whether a process is still the one that answers at its endpoint.
    fn is_open(&self, process: &Arc<Process>) -> bool {
        self.places().get(&process.id).is_some_and(|place| place.is_of(process))
    }
}

impl Place {
    fn answers(&self) -> Option<&Arc<Process>> {
        self.process.as_ref().filter(|process| !process.fence.has_fallen())
    }

    fn is_of(&self, process: &Arc<Process>) -> bool {
        self.answers().is_some_and(|open| Arc::ptr_eq(open, process))
    }
}

impl Process {
    fn admitted(&self) -> MutexGuard<'_, BTreeSet<EndpointId>> {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a peer gets a blob. Refusals look all alike to it.
    fn judge(&self, peer: EndpointId, hash: &[u8; 32]) -> Result<(), FetchError> {
        let is_known = self.admitted().contains(&peer);
        let verdict = if is_known { self.gate.check(&Hash::from_bytes(*hash)) } else { Err(Refusal::Stranger) };
        match verdict {
            Ok(()) => {
                add(&self.stats.requests_served, 1);
                Ok(())
            }
            Err(reason) => {
                self.stats.refuse(reason);
                Err(FetchError::Refused)
            }
        }
    }

    fn has_sent(&self, n_bytes: u64) {
        add(&self.served, n_bytes);
        add(&self.stats.bytes_up, n_bytes);
    }
}

impl Port {
    /// Opens the endpoint for this process, with the gate as the shelf's labels say.
    fn open(&self) -> Result<(), TransportError> {
        if self.process.fence.has_fallen() {
            return Err(TransportError::Closed);
        }
        let mut places = self.wires.places();
        let place = places.entry(self.process.id).or_default();
        if !place.is_of(&self.process) {
            place.shelf.open(&self.process.gate);
            self.process.admitted().clear();
            place.process = Some(Arc::clone(&self.process));
        }
        Ok(())
    }

    fn is_open(&self) -> bool {
        self.wires.is_open(&self.process)
    }

    /// Does something at the own endpoint, for as long as this process has it.
    fn at_home<T>(&self, work: impl FnOnce(&mut Place, &Gate) -> T) -> Result<T, TransportError> {
        match self.wires.places().get_mut(&self.process.id) {
            Some(place) if place.is_of(&self.process) => Ok(work(place, &self.process.gate)),
            _ => Err(TransportError::Closed),
        }
    }

    fn keep(&self, hash: [u8; 32], bytes: &Bytes, label: Label) -> Result<(), TransportError> {
        self.at_home(|place, gate| place.shelf.keep(gate, hash, bytes, label))
    }

    fn keep_theta(&self, theta: Arc<Pages>, round: Round, digest: Digest) -> Result<(), TransportError> {
        let bytes = bytes_of(theta);
        let is_here = self.at_home(|place, _| place.shelf.find(&digest.0).is_some())?;
        if !is_here && *blake3::hash(&bytes).as_bytes() != digest.0 {
            return Err(StoreError::new("keep a state", format!("its digest is not {digest}")).into());
        }
        self.keep(digest.0, &bytes, Label { round, kind: Kind::State, reveal: Reveal::Always })
    }

    fn admit_all(&self, peers: Vec<Peer>) -> Result<(), TransportError> {
        let others = peers.iter().map(|peer| peer.id).filter(|id| *id != self.process.id);
        let others: BTreeSet<EndpointId> = others.collect();
        self.at_home(|_, _| *self.process.admitted() = others)
    }
}

impl Nets for Port {
    fn acquire(&self) -> NetFuture<'_, Result<Arc<dyn PeerNet>, TransportError>> {
        Box::pin(async move { self.open().map(|()| Arc::new(self.clone()) as Arc<dyn PeerNet>) })
    }

    fn close(&self) -> NetFuture<'_, ()> {
        Box::pin(async move {
            // One that is not open, or not any more, has nothing to close.
            self.at_home(|place, _| place.process = None).ok();
        })
    }
}

impl PeerNet for Port {
    fn id(&self) -> EndpointId {
        self.process.id
    }

    /// An address that says who it is; nobody is reached by it.
    fn address(&self) -> SocketAddr {
        let mut ip = [0; 16];
        ip.copy_from_slice(&self.process.id.0[..16]);
        ip[0] = 0xfd;
        SocketAddr::from((ip, 1))
    }

    fn stats(&self) -> &Stats {
        &self.process.stats
    }

    fn set_head(&self, head: Block) {
        if !self.process.fence.has_fallen() {
            self.process.gate.set_head(head);
        }
    }

    fn publish(&self, bytes: Bytes, label: Label) -> NetFuture<'_, Result<(), TransportError>> {
        Box::pin(async move { self.keep(*blake3::hash(&bytes).as_bytes(), &bytes, label) })
    }

    fn gather(&self, wants: Vec<Want>, deadline: Instant) -> NetFuture<'_, Vec<Fetched>> {
        Box::pin(batch::gather(self, wants, deadline))
    }

    fn keep_state(&self, theta: Arc<Pages>, round: Round, digest: Digest) -> NetFuture<'_, Result<(), TransportError>> {
        Box::pin(async move { self.keep_theta(theta, round, digest) })
    }

    fn bring_state(&self, want: ThetaWant, deadline: Instant) -> NetFuture<'_, Result<StateBrought, String>> {
        Box::pin(batch::bring_state(self, want, deadline))
    }

    fn admit(&self, peers: Vec<Peer>) -> NetFuture<'_, Result<(), TransportError>> {
        Box::pin(async move { self.admit_all(peers) })
    }

    fn forget_before(&self, round: Round) -> NetFuture<'_, Result<(), TransportError>> {
        Box::pin(async move { self.at_home(|place, gate| place.shelf.forget_before(gate, round)) })
    }
}
