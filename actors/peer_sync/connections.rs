//! Connections to peers, kept from one fetch to the next.
//!
//! Payloads, manifests and states of a round come within minutes of each other, and are fetched by one connection. The transport pings
//! what is open, so what was not used for [`KEPT_UNUSED`] is closed: over a round of twenty minutes a new handshake costs less. One that
//! has died is replaced at its next use. While one task dials, the others that want the same peer wait for its result instead of
//! dialling too.
//!
//! One connection is enough for two peers, whoever dialled it. If both did, at the same moment, both go on with the one that the
//! smaller endpoint id dialled, and the other is closed for want of use. A peer that fetches a state does so on connections of their own;
//! one of those that is used for a moment, and ends with that fetch, is replaced like any that breaks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use dashmap::DashMap;
use iroh::endpoint::{Connection, VarInt};
use iroh::{Endpoint, PublicKey};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::endpoint::dial;
use super::fetch::FetchError;
use super::serve::Server;
use super::stats::{Stats, add};

/// How long a connection is kept that nobody uses.
const KEPT_UNUSED: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Line {
    connection: Option<Connection>,
    failed_at: Option<Instant>,
    /// Shared with every lease of the connection.
    in_use: Arc<()>,
    /// Counts leases: none since is none too long.
    n_leases: u64,
    /// Counts what the peer has asked for on it, which is use as well.
    n_questions: Arc<AtomicU64>,
}

/// A connection, and whether it had been used before: an old one may turn out to be dead.
pub(super) struct Lease {
    pub connection: Connection,
    pub is_reused: bool,
    /// While it is there the connection is not closed for want of use. One that came from the peer is the peer's to close.
    _in_use: Option<Arc<()>>,
}

/// One connection to each peer in use. Bounded by the admitted peers: nobody else is dialled.
#[derive(Debug)]
pub(super) struct Connections {
    endpoint: Endpoint,
    /// Who serves the peers on what is dialled here; what they dialled is then used here, too.
    server: Option<Server>,
    lines: DashMap<PublicKey, Arc<Mutex<Line>>>,
    stats: Arc<Stats>,
}

impl Connections {
    /// Connections that carry requests both ways.
    pub fn shared(endpoint: Endpoint, server: Server) -> Self {
        Self { endpoint, lines: DashMap::new(), stats: Arc::clone(&server.stats), server: Some(server) }
    }

    /// Connections for one purpose, beside those.
    pub fn apart(endpoint: Endpoint, stats: Arc<Stats>) -> Self {
        Self { endpoint, server: None, lines: DashMap::new(), stats }
    }

    /// The connection to a peer, dialled if there is none.
    pub async fn to(&self, peer: PublicKey, dial_timeout: Duration) -> Result<Lease, FetchError> {
        let asked_at = Instant::now();
        let line = self.lines.entry(peer).or_default().clone();
        let mut line = line.lock().await;
        let came = self.server.as_ref().and_then(|server| server.admission.connection_from(&peer));
        let own = line.connection.clone().filter(|connection| connection.close_reason().is_none());
        match (came, own) {
            (Some(connection), own) if own.is_none() || peer < self.endpoint.id() => {
                return Ok(Lease { connection, is_reused: true, _in_use: None });
            }
            (_, Some(connection)) => return Ok(line.lease(connection, true)),
            _ => {}
        }
        line.hang_up(&self.stats, b"");
        if line.failed_at.is_some_and(|failed_at| failed_at > asked_at) {
            return Err(FetchError::Unreachable);
        }
        add(&self.stats.dials, 1);
        let connection = match timeout(dial_timeout, dial(&self.endpoint, peer)).await {
            Ok(Ok(connection)) => connection,
            failure => {
                add(&self.stats.dials_failed, 1);
                if let Ok(Err(error)) = failure {
                    tracing::debug!(peer = %peer.fmt_short(), %error, "cannot connect");
                }
                line.failed_at = Some(Instant::now());
                return Err(FetchError::Unreachable);
            }
        };
        add(&self.stats.connections_out, 1);
        line.connection = Some(connection.clone());
        if let Some(server) = self.server.clone() {
            tokio::spawn(server.serve_dialled(connection.clone(), Arc::clone(&line.n_questions)));
        }
        let lease = line.lease(connection, false);
        drop(line);
        let shared = self.lines.get(&peer).map(|line| Arc::downgrade(&line));
        if let Some(shared) = shared {
            tokio::spawn(close_unused(shared, lease.connection.stable_id(), Arc::clone(&self.stats)));
        }
        Ok(lease)
    }

    /// Gives up the connection to a peer that is no longer admitted, or no longer where it was.
    pub async fn remove(&self, peer: &PublicKey, reason: &[u8]) {
        if let Some((_, line)) = self.lines.remove(peer) {
            line.lock().await.hang_up(&self.stats, reason);
        }
    }
}

impl Line {
    fn lease(&mut self, connection: Connection, is_reused: bool) -> Lease {
        self.n_leases += 1;
        Lease { connection, is_reused, _in_use: Some(Arc::clone(&self.in_use)) }
    }

    fn hang_up(&mut self, stats: &Stats, reason: &[u8]) {
        if let Some(connection) = self.connection.take() {
            connection.close(VarInt::from_u32(0), reason);
            stats.connections_out.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Closes the connection with this id once nobody has used it for long enough, and ends with it.
async fn close_unused(line: Weak<Mutex<Line>>, id: usize, stats: Arc<Stats>) {
    let mut uses_before = (0, 0);
    loop {
        tokio::time::sleep(KEPT_UNUSED).await;
        let Some(line) = line.upgrade() else { return };
        let mut line = line.lock().await;
        if line.connection.as_ref().is_none_or(|connection| connection.stable_id() != id) {
            return;
        }
        let uses = (line.n_leases, line.n_questions.load(Ordering::Relaxed));
        if uses == uses_before && Arc::strong_count(&line.in_use) == 1 {
            line.hang_up(&stats, b"unused");
            return;
        }
        uses_before = uses;
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        let open = self.lines.iter().filter(|line| line.try_lock().is_ok_and(|line| line.connection.is_some())).count();
        self.stats.connections_out.fetch_sub(open as u64, Ordering::Relaxed);
    }
}
