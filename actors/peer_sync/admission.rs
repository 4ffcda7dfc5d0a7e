//! Who may connect: the endpoints that the chain's registry names, and what each of them may ask for.
//!
//! A hotkey's signed commitment on chain names its endpoint; the connection's TLS handshake proves that the peer holds that
//! endpoint's key. So the list that the caller reads from the chain is all there is to check, and it is checked twice: at the end
//! of the handshake, and again at each request, because a hotkey can lose its slot while a connection stands.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use convoke::terms::EndpointId;
use dashmap::DashMap;
use iroh::endpoint::{AfterHandshakeOutcome, Connection, EndpointHooks, Side, WeakConnectionHandle};
use iroh::{EndpointAddr, PublicKey};
use iroh_blobs::protocol::ERR_PERMISSION;
use tokio::time::Instant;

use super::budget::{Bucket, Rate};
use super::pieces::PIECE_BYTES;
use super::stats::{Refusal, Stats};

/// How many times the size of a state a peer may take at once: a second time after a fetch that went wrong.
const STATE_TAKES: u64 = 2;

/// A peer as the chain knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub id: EndpointId,
    /// Where it says it can be reached.
    pub addresses: Vec<SocketAddr>,
    /// Which start of the node it is: connections to an earlier one lead nowhere.
    pub start: u32,
}

impl Peer {
    /// The peer in iroh's terms; `None` if its id is not a public key.
    pub(super) fn endpoint_addr(&self) -> Option<EndpointAddr> {
        let id = PublicKey::from_bytes(&self.id.0).ok()?;
        Some(self.addresses.iter().fold(EndpointAddr::new(id), |addr, socket| addr.with_ip_addr(*socket)))
    }
}

/// What one peer may ask of this node. While states are kept, its bursts are larger: see `Admission::expect_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerBudget {
    /// Bytes sent to it.
    pub bytes: Rate,
    /// Requests answered.
    pub requests: Rate,
    /// Connections from it open at one time. A peer that restarts leaves its old ones behind until they time out.
    pub connections_max: usize,
}

/// What one peer has used of its budget, over all its connections.
#[derive(Debug)]
pub(super) struct Meter {
    pub bytes: Mutex<Bucket>,
    pub requests: Mutex<Bucket>,
    connections: AtomicUsize,
    /// Those that are open, so that they can be ended when the peer has gone from where it was. Weak, since the endpoint owns
    /// this list, and a connection keeps the endpoint's socket.
    open: Mutex<Vec<WeakConnectionHandle>>,
}

/// The peers that may connect.
#[derive(Debug)]
pub struct Admission {
    budget: PeerBudget,
    /// The largest state kept.
    state_bytes: AtomicU64,
    meters: DashMap<PublicKey, Arc<Meter>>,
}

impl Admission {
    pub(super) fn new(budget: PeerBudget) -> Self {
        Self { budget, state_bytes: AtomicU64::new(0), meters: DashMap::new() }
    }

    /// How many peers are admitted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.meters.len()
    }

    /// Whether nobody is admitted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.meters.is_empty()
    }

    /// Replaces the list. Who stays keeps what it has used; answers who went.
    pub(super) fn replace<T>(&self, admitted: &HashMap<PublicKey, T>) -> Vec<PublicKey> {
        let gone: Vec<_> =
            self.meters.iter().map(|entry| *entry.key()).filter(|id| !admitted.contains_key(id)).collect();
        for id in &gone {
            self.meters.remove(id);
        }
        let now = Instant::now();
        for id in admitted.keys() {
            self.meters.entry(*id).or_insert_with(|| {
                let meter = Arc::new(Meter {
                    bytes: Mutex::new(Bucket::new(self.budget.bytes, now)),
                    requests: Mutex::new(Bucket::new(self.budget.requests, now)),
                    connections: AtomicUsize::new(0),
                    open: Mutex::default(),
                });
                self.widen(&meter);
                meter
            });
        }
        gone
    }

    /// A joiner takes a whole state at once, so a peer may take [`STATE_TAKES`] times the largest state kept here, in pieces, as fast
    /// as the link carries it. Only who takes more, again and again, falls back to the budget's rate.
    pub(super) fn expect_state(&self, size: u64) {
        self.state_bytes.fetch_max(size, Ordering::Relaxed);
        self.meters.iter().for_each(|meter| self.widen(&meter));
    }

    fn widen(&self, meter: &Meter) {
        let bytes = self.state_bytes.load(Ordering::Relaxed).saturating_mul(STATE_TAKES);
        let requests = self.budget.requests.burst + bytes.div_ceil(PIECE_BYTES);
        meter.bytes.lock().expect("no holder of this lock panics").widen(bytes);
        meter.requests.lock().expect("no holder of this lock panics").widen(requests);
    }

    pub(super) fn admits(&self, peer: &PublicKey) -> bool {
        self.meters.contains_key(peer)
    }

    /// Ends the connections that came from a peer which is no longer where they came from. As long as one of them is open,
    /// iroh sends whatever is for this peer to where that one came from (`remote_state`, iroh 1.4.1), for as long as the idle
    /// timeout: nobody would be reached.
    pub(super) fn hang_up(&self, peer: &PublicKey) {
        let Some(meter) = self.meter(peer) else { return };
        let open = std::mem::take(&mut *meter.open.lock().expect("no holder of this lock panics"));
        for connection in open.iter().filter_map(WeakConnectionHandle::upgrade) {
            connection.close(0u32.into(), b"you have moved");
        }
    }

    /// The youngest connection that came from a peer and is open.
    pub(super) fn connection_from(&self, peer: &PublicKey) -> Option<Connection> {
        let meter = self.meter(peer)?;
        let open = meter.open.lock().expect("no holder of this lock panics");
        let mut open = open.iter().rev().filter_map(WeakConnectionHandle::upgrade);
        open.find(|connection| connection.close_reason().is_none())
    }

    /// What an admitted peer has used.
    pub(super) fn meter(&self, peer: &PublicKey) -> Option<Arc<Meter>> {
        self.meters.get(peer).map(|meter| Arc::clone(&meter))
    }

    /// Counts a new connection from a peer against its budget for as long as the [`Seat`] lives.
    pub(super) fn seat(&self, peer: &PublicKey) -> Result<Seat, Refusal> {
        let meter = self.meter(peer).ok_or(Refusal::Stranger)?;
        let seat = Seat { meter };
        if seat.meter.connections.fetch_add(1, Ordering::AcqRel) >= self.budget.connections_max {
            return Err(Refusal::Crowded);
        }
        Ok(seat)
    }
}

/// One connection's place in its peer's budget; given back when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    pub meter: Arc<Meter>,
}

impl Seat {
    /// Remembers the connection for as long as it is open.
    pub(super) fn take(&self, connection: &Connection) {
        let mut open = self.meter.open.lock().expect("no holder of this lock panics");
        open.retain(|connection| connection.upgrade().is_some());
        open.push(connection.weak_handle());
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.meter.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Turns strangers away as soon as the handshake has shown who they are.
#[derive(Debug)]
pub(super) struct Doorman {
    pub admission: Arc<Admission>,
    pub stats: Arc<Stats>,
}

impl EndpointHooks for Doorman {
    async fn after_handshake<'a>(&'a self, connection: &'a Connection) -> AfterHandshakeOutcome {
        if connection.side() == Side::Client || self.admission.admits(&connection.remote_id()) {
            return AfterHandshakeOutcome::Accept;
        }
        self.stats.refuse(Refusal::Stranger);
        AfterHandshakeOutcome::Reject { error_code: ERR_PERMISSION, reason: b"not in the registry".to_vec() }
    }
}
