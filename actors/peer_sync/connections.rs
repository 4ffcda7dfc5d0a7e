//! Connections to peers, kept from one fetch to the next.
//!
//! A round is minutes long and the transport pings its idle connections, so a connection made in one round serves the following
//! ones; one that has died is replaced at its next use. Every peer has at most one, and while one task dials, the others that want
//! the same peer wait for its result instead of dialling too.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dashmap::DashMap;
use iroh::endpoint::{Connection, VarInt};
use iroh::{Endpoint, PublicKey};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::fetch::FetchError;
use super::stats::{Stats, add};

#[derive(Debug, Default)]
struct Line {
    connection: Option<Connection>,
    failed_at: Option<Instant>,
}

/// A connection, and whether it had been used before: an old one may turn out to be dead.
pub(super) struct Lease {
    pub connection: Connection,
    pub is_reused: bool,
}

/// One connection to each peer in use. Bounded by the admitted peers: nobody else is dialled.
#[derive(Debug)]
pub(super) struct Connections {
    endpoint: Endpoint,
    lines: DashMap<PublicKey, Arc<Mutex<Line>>>,
    stats: Arc<Stats>,
}

impl Connections {
    pub fn new(endpoint: Endpoint, stats: Arc<Stats>) -> Self {
        Self { endpoint, lines: DashMap::new(), stats }
    }

    /// The connection to a peer, dialled if there is none.
    pub async fn to(&self, peer: PublicKey, dial_timeout: Duration) -> Result<Lease, FetchError> {
        let asked_at = Instant::now();
        let line = self.lines.entry(peer).or_default().clone();
        let mut line = line.lock().await;
        if let Some(connection) = &line.connection
            && connection.close_reason().is_none()
        {
            return Ok(Lease { connection: connection.clone(), is_reused: true });
        }
        self.hang_up(&mut line, b"");
        if line.failed_at.is_some_and(|failed_at| failed_at > asked_at) {
            return Err(FetchError::Unreachable);
        }
        add(&self.stats.dials, 1);
        let connection = match timeout(dial_timeout, self.endpoint.connect(peer, iroh_blobs::ALPN)).await {
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
        Ok(Lease { connection, is_reused: false })
    }

    /// Gives up the connection to a peer that is no longer admitted, or no longer where it was.
    pub async fn remove(&self, peer: &PublicKey, reason: &[u8]) {
        if let Some((_, line)) = self.lines.remove(peer) {
            self.hang_up(&mut *line.lock().await, reason);
        }
    }

    fn hang_up(&self, line: &mut Line, reason: &[u8]) {
        if let Some(connection) = line.connection.take() {
            connection.close(VarInt::from_u32(0), reason);
            self.stats.connections_out.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        let open = self.lines.iter().filter(|line| line.try_lock().is_ok_and(|line| line.connection.is_some())).count();
        self.stats.connections_out.fetch_sub(open as u64, Ordering::Relaxed);
    }
}
