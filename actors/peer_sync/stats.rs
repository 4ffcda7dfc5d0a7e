//! Counts of everything that passes the network side, as atomics.
//!
//! The transport outlives the actor that reads it, and much of it is counted on connection tasks that the actor never sees; so the
//! counts live here and the actor copies them into its metrics. All of them only grow, except the two marked as gauges.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::fetch::FetchError;

/// Why a peer did not get what it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The peer is not in the chain's registry.
    Stranger,
    /// The peer has too many connections open already.
    Crowded,
    /// The blob was not published or fetched here, or is forgotten.
    Unknown,
    /// The blob's reveal block has not come yet.
    Unrevealed,
    /// The peer asks more often than its budget allows.
    TooOften,
    /// The request names more than one blob, which would go round the check of the hash.
    NotOneBlob,
    /// The request cuts the blob into more ranges than an honest resume needs.
    Fragmented,
    /// The kind of request is not served at all.
    Disabled,
}

impl Refusal {
    /// Every reason, in the order of declaration.
    pub const ALL: [Self; 8] = [
        Self::Stranger,
        Self::Crowded,
        Self::Unknown,
        Self::Unrevealed,
        Self::TooOften,
        Self::NotOneBlob,
        Self::Fragmented,
        Self::Disabled,
    ];

    /// All names, in the same order.
    pub const NAMES: [&'static str; 8] =
        ["stranger", "crowded", "unknown", "unrevealed", "too_often", "not_one_blob", "fragmented", "disabled"];

    /// The reason as a metric label.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// What the network side has done since the process began.
#[derive(Debug, Default)]
pub struct Stats {
    /// Payload bytes sent to peers, without proofs and headers.
    pub bytes_up: AtomicU64,
    /// Payload bytes received from peers and verified.
    pub bytes_down: AtomicU64,
    /// Of these, bytes of states: what joining or coming back has cost.
    pub state_bytes_down: AtomicU64,
    /// Requests that passed the gate.
    pub requests_served: AtomicU64,
    /// Connections from peers that are open now (a gauge).
    pub connections_in: AtomicU64,
    /// Connections to peers that are kept for the next fetch (a gauge).
    pub connections_out: AtomicU64,
    /// Connections this node tried to open.
    pub dials: AtomicU64,
    /// Connections this node could not open in time.
    pub dials_failed: AtomicU64,
    /// Blobs obtained, from this node's own store or from a peer.
    pub fetches: AtomicU64,
    /// Microseconds spent in fetches, failed ones included; fetches run in parallel.
    pub fetch_micros: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
    fetches_failed: [AtomicU64; FetchError::CLASSES.len()],
}

impl Stats {
    /// How many requests or connections were refused for this reason.
    #[must_use]
    pub fn refused(&self, reason: Refusal) -> u64 {
        self.refused[reason as usize].load(Ordering::Relaxed)
    }

    /// How many fetches ended in an error, by the names of [`FetchError::CLASSES`].
    pub fn fetches_failed(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        FetchError::CLASSES.into_iter().zip(self.fetches_failed.iter().map(|count| count.load(Ordering::Relaxed)))
    }

    pub(crate) fn refuse(&self, reason: Refusal) {
        add(&self.refused[reason as usize], 1);
    }

    pub(crate) fn fetched(&self, elapsed: Duration, failure: Option<&FetchError>) {
        add(&self.fetch_micros, u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX));
        match failure {
            None => add(&self.fetches, 1),
            Some(error) => {
                let class = FetchError::CLASSES.iter().position(|class| *class == error.class());
                add(&self.fetches_failed[class.expect("every class is listed")], 1);
            }
        }
    }
}

/// Adds to a count. The counts order nothing, so they need no ordering themselves.
pub(crate) fn add(count: &AtomicU64, amount: u64) {
    count.fetch_add(amount, Ordering::Relaxed);
}
