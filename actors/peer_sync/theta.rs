//! θ between memory and the store: its values are the blob's bytes, f32 little-endian in the order of the layout.
//!
//! θ may be most of a node's memory, so neither way makes a second copy: the store writes out the pages the caller holds, and reads
//! straight into pages that become the caller's.

use std::sync::Arc;

use bytes::Bytes;
use convoke::terms::{Digest, EndpointId, Round};
use iroh_blobs::Hash;
use tokio::time::Instant;

use super::state::{StateFetched, StateWant};
use super::store::StoreError;
use super::transport::{Transport, TransportError};
use crate::pages::Pages;

/// A θ that was brought by peers, or lay in this node's own store.
#[derive(Debug)]
pub struct StateBrought {
    /// Its values.
    pub theta: Pages,
    /// How many bytes came over the network: less than all if a former fetch had left some.
    pub bytes_fetched: u64,
    /// How many of them each holder sent.
    pub from: Vec<(EndpointId, u64)>,
    /// Who sent bytes that are not θ's.
    pub corrupt: Vec<EndpointId>,
}

/// What is asked of peers: θ by its digest, with the number of values that the layout says.
#[derive(Debug, Clone)]
pub struct ThetaWant {
    /// The round that starts from it.
    pub round: Round,
    /// Its digest.
    pub digest: Digest,
    /// How many values it has.
    pub n_values: usize,
    /// Who may have it, best first.
    pub holders: Vec<EndpointId>,
}

impl Transport {
    /// Reads a state that is here and whole.
    ///
    /// # Errors
    /// If it is not, or has not as many values, or its bytes on disk have changed; or if the transport is shut down.
    ///
    /// # Panics
    /// If there are no values to read, or no memory for them.
    pub async fn load_state(&self, hash: Hash, n_values: usize) -> Result<Pages, TransportError> {
        let live = self.live()?;
        let expected = (n_values * size_of::<f32>()) as u64;
        match live.store.size(hash).await? {
            Some(size) if size == expected => {}
            Some(size) => return Err(StoreError::new("read a state", format!("{size} bytes, not {expected}")).into()),
            None => return Err(StoreError::new("read a state", "it is not here").into()),
        }
        let mut theta = live.store.read_state(hash, Pages::zeroed(n_values)).await?;
        if cfg!(target_endian = "big") {
            theta.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits().swap_bytes()));
        }
        Ok(theta)
    }
}

/// Keeps θ for joiners, if it has this digest.
pub(super) async fn keep(
    transport: &Transport,
    theta: Arc<Pages>,
    round: Round,
    digest: Digest,
) -> Result<(), TransportError> {
    transport.publish_state(bytes_of(theta), round, Hash::from_bytes(digest.0)).await
}

/// Gets θ and reads it; the text says why not.
pub(super) async fn bring(transport: &Transport, want: ThetaWant, deadline: Instant) -> Result<StateBrought, String> {
    let ThetaWant { round, digest, n_values, holders } = want;
    let hash = Hash::from_bytes(digest.0);
    let size = (n_values * size_of::<f32>()) as u64;
    let fetched = transport.fetch_state(StateWant { hash, size, round, holders }, deadline).await;
    let bytes_fetched = fetched.bytes();
    let StateFetched { outcome, bytes_from: from, corrupt, .. } = fetched;
    outcome
        .map_err(|error| format!("{error}; {bytes_fetched} of {size} bytes came, {} holders lied", corrupt.len()))?;
    let theta = transport.load_state(hash, n_values).await.map_err(|error| error.to_string())?;
    Ok(StateBrought { theta, bytes_fetched, from, corrupt })
}

/// θ's bytes without a copy, where memory has them in the blob's order.
pub(crate) fn bytes_of(theta: Arc<Pages>) -> Bytes {
    struct Values(Arc<Pages>);
    impl AsRef<[u8]> for Values {
        fn as_ref(&self) -> &[u8] {
            bytemuck::cast_slice(&self.0)
        }
    }
    if cfg!(target_endian = "big") {
        return theta.iter().flat_map(|value| value.to_le_bytes()).collect();
    }
    Bytes::from_owner(Values(theta))
}
