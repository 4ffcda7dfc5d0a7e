//! The seam between PeerSync and its network: what the actor asks of a transport, and nothing else.
//!
//! The actor holds a [`PeerNet`], which it gets from the [`Nets`] that its node was given: over iroh that is a [`Transport`] out of its
//! [`TransportSlot`]; in a simulated run it is one port of a network that all nodes of the process share. Everything that the rest
//! of the network side can do besides belongs to its own tests.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use convoke::terms::{Block, Digest, EndpointId, Round};
use tokio::time::Instant;

use super::admission::Peer;
use super::fetch::{Fetched, Want};
use super::slot::TransportSlot;
use super::stats::Stats;
use super::store::Label;
use super::theta::{self, StateBrought, ThetaWant};
use super::transport::{Transport, TransportError};
use crate::pages::Pages;

/// What a request to the network resolves to; boxed, so that the traits can be objects.
pub type NetFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where a node's transport stays while its actor comes and goes.
pub trait Nets: Send + Sync {
    /// The transport: as it was, or opened anew if there is none that works. Counts, the head and what is revealed go on in both cases;
    /// after an opening the caller must admit its peers again. It fails if no transport can be opened.
    fn acquire(&self) -> NetFuture<'_, Result<Arc<dyn PeerNet>, TransportError>>;

    /// Shuts the transport down, if there is one.
    fn close(&self) -> NetFuture<'_, ()>;
}

/// A node's transport as its actor sees it.
pub trait PeerNet: Send + Sync {
    /// Who this node is to its peers.
    fn id(&self) -> EndpointId;

    /// Where it listens.
    fn address(&self) -> SocketAddr;

    /// What has passed.
    fn stats(&self) -> &Stats;

    /// Says where the chain is: opens the gate for what is to be revealed by this block.
    fn set_head(&self, head: Block);

    /// Keeps `bytes` and serves them from the label's reveal on. When it answers, they outlive the process.
    fn publish(&self, bytes: Bytes, label: Label) -> NetFuture<'_, Result<(), TransportError>>;

    /// Gets many blobs; the answers are in the order of the wants.
    fn gather(&self, wants: Vec<Want>, deadline: Instant) -> NetFuture<'_, Vec<Fetched>>;

    /// Keeps θ for joiners, if it has this digest.
    fn keep_state(&self, theta: Arc<Pages>, round: Round, digest: Digest) -> NetFuture<'_, Result<(), TransportError>>;

    /// Gets θ and reads it; the text says why not.
    fn bring_state(&self, want: ThetaWant, deadline: Instant) -> NetFuture<'_, Result<StateBrought, String>>;

    /// Replaces the list of peers that may connect and that this node connects to.
    fn admit(&self, peers: Vec<Peer>) -> NetFuture<'_, Result<(), TransportError>>;

    /// Forgets all rounds before `round`.
    fn forget_before(&self, round: Round) -> NetFuture<'_, Result<(), TransportError>>;
}

impl Nets for TransportSlot {
    fn acquire(&self) -> NetFuture<'_, Result<Arc<dyn PeerNet>, TransportError>> {
        Box::pin(
            async move { TransportSlot::acquire(self).await.map(|transport| Arc::new(transport) as Arc<dyn PeerNet>) },
        )
    }

    fn close(&self) -> NetFuture<'_, ()> {
        Box::pin(TransportSlot::close(self))
    }
}

impl PeerNet for Transport {
    fn id(&self) -> EndpointId {
        Transport::id(self)
    }

    fn address(&self) -> SocketAddr {
        Transport::address(self)
    }

    fn stats(&self) -> &Stats {
        Transport::stats(self)
    }

    fn set_head(&self, head: Block) {
        Transport::set_head(self, head);
    }

    fn publish(&self, bytes: Bytes, label: Label) -> NetFuture<'_, Result<(), TransportError>> {
        Box::pin(async move { Transport::publish(self, bytes, label).await.map(drop) })
    }

    fn gather(&self, wants: Vec<Want>, deadline: Instant) -> NetFuture<'_, Vec<Fetched>> {
        Box::pin(Transport::gather(self, wants, deadline))
    }

    fn keep_state(&self, theta: Arc<Pages>, round: Round, digest: Digest) -> NetFuture<'_, Result<(), TransportError>> {
        Box::pin(theta::keep(self, theta, round, digest))
    }

    fn bring_state(&self, want: ThetaWant, deadline: Instant) -> NetFuture<'_, Result<StateBrought, String>> {
        Box::pin(theta::bring(self, want, deadline))
    }

    fn admit(&self, peers: Vec<Peer>) -> NetFuture<'_, Result<(), TransportError>> {
        Box::pin(async move { Transport::admit(self, &peers).await.map(drop) })
    }

    fn forget_before(&self, round: Round) -> NetFuture<'_, Result<(), TransportError>> {
        Box::pin(async move { Transport::forget_before(self, round).await.map(drop) })
    }
}
