//! PeerSync: keeps the node's payloads and manifests for its peers, and gets theirs.
//!
//! Hears:   requests of RoundClock: publish, gather, keep θ, fetch θ; who may connect, who has tried; the chain's head, which opens the
//!          gate.
//! Tells:   nobody; it answers.
//! State:   a handle of the node's transport, which outlives it; a crash loses no blob and no connection.
//! Mailbox: one request of the round, one of a vote, one head a block.
//!
//! Fault points: `publish`, `gather`, `keep-state`, `fetch-state`, `admit`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use convoke::terms::{Block, Digest, EndpointId, Round};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tracing::warn;

use super::admission::Peer;
use super::fetch::{FetchError, Fetched, SizeRule, Want};
use super::gate::Reveal;
use super::net::PeerNet;
use super::stats::{Refusal, Stats};
use super::store::{Kind, Label};
use super::theta::{StateBrought, ThetaWant};
use crate::gauntlet::Deliveries;
use crate::leaf::{Leaf, answer};
use crate::metrics::Metrics;
use crate::node::Parts;
use crate::pages::Pages;

/// Rounds whose payloads and manifests are kept for those who come back.
const ROUNDS_KEPT: u64 = 64;

/// The actor.
#[derive(Debug)]
pub struct PeerSync;

/// The transport, and what the metrics know of it.
pub struct State {
    parts: Arc<Parts>,
    transport: Arc<dyn PeerNet>,
    newest: Round,
    /// What the metrics were told last.
    told: Told,
}

/// One blob to get.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its hash.
    pub hash: [u8; 32],
    /// How large it may be.
    pub size: SizeRule,
    /// What it is.
    pub kind: Kind,
    /// Who may have it, best first.
    pub holders: Vec<EndpointId>,
}

/// What the actor hears.
#[derive(Debug)]
pub enum Msg {
    /// Keep a blob and serve it from its reveal on.
    Publish {
        /// The round it belongs to.
        round: Round,
        /// What it is.
        kind: Kind,
        /// Its bytes.
        bytes: Arc<[u8]>,
        /// From when on it may be read.
        reveal: Reveal,
        /// Takes the outcome.
        port: RpcReplyPort<Result<(), String>>,
    },
    /// Get blobs; answered within the time given, with what has come.
    Gather {
        /// The round they belong to.
        round: Round,
        /// What is wanted.
        wanted: Vec<Wanted>,
        /// How long it may take.
        within: Duration,
        /// Takes what came, in the order wanted.
        port: RpcReplyPort<Deliveries>,
    },
    /// Keep θ for joiners; the newest two are kept.
    KeepState {
        /// The round that starts from it.
        round: Round,
        /// Its values; written out from where they are.
        theta: Arc<Pages>,
        /// Its digest; another θ is not kept.
        digest: Digest,
        /// Takes the outcome.
        port: RpcReplyPort<Result<(), String>>,
    },
    /// Get the θ with this digest from whoever holds it.
    FetchState {
        /// The round that starts from it.
        round: Round,
        /// Its digest.
        digest: Digest,
        /// How many values it has.
        n_values: usize,
        /// Who may have it, best first.
        holders: Vec<EndpointId>,
        /// How long it may take; what has come by then is not fetched again.
        within: Duration,
        /// Takes θ, or why there is none.
        port: RpcReplyPort<Result<StateBrought, String>>,
    },
    /// These, and nobody else, may connect.
    Admit(Vec<Peer>),
    /// How many connections of strangers were turned away so far.
    Knocks(RpcReplyPort<u64>),
    /// The chain has a new head.
    Head(Block),
}

impl Actor for PeerSync {
    type Msg = Msg;
    type State = State;
    type Arguments = Arc<Parts>;

    async fn pre_start(&self, _: ActorRef<Msg>, parts: Arc<Parts>) -> Result<State, ActorProcessingErr> {
        let transport = parts.transport.acquire().await?;
        parts.addresses.insert(transport.id(), transport.address());
        Ok(State { parts, transport, newest: Round(0), told: Told::default() })
    }

    async fn handle(&self, _: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Publish { round, kind, bytes, reveal, port } => {
                state.parts.faults.point(Leaf::PeerSync, "publish", round).await;
                state.publish(Label { round, kind, reveal }, bytes, port);
            }
            Msg::Gather { round, wanted, within, port } => {
                state.parts.faults.point(Leaf::PeerSync, "gather", round).await;
                state.gather(round, wanted, within, port);
            }
            Msg::KeepState { round, theta, digest, port } => {
                state.parts.faults.point(Leaf::PeerSync, "keep-state", round).await;
                let transport = state.transport.clone();
                tokio::spawn(async move {
                    let kept = transport.keep_state(theta, round, digest).await;
                    answer(port, kept.map_err(|error| error.to_string()));
                });
            }
            Msg::FetchState { round, digest, n_values, holders, within, port } => {
                state.parts.faults.point(Leaf::PeerSync, "fetch-state", round).await;
                let transport = state.transport.clone();
                tokio::spawn(async move {
                    let deadline = tokio::time::Instant::now() + within;
                    let want = ThetaWant { round, digest, n_values, holders };
                    answer(port, transport.bring_state(want, deadline).await);
                });
            }
            Msg::Admit(members) => {
                state.parts.faults.point(Leaf::PeerSync, "admit", state.newest).await;
                state.admit(members).await?;
            }
            Msg::Knocks(port) => answer(port, state.transport.stats().refused(Refusal::Stranger)),
            Msg::Head(block) => {
                state.transport.set_head(block);
                let counts = Told::read(state.transport.stats());
                if counts != state.told {
                    counts.record(&state.parts.journal.metrics);
                    state.told = counts;
                }
            }
        }
        Ok(())
    }
}

impl State {
    fn publish(&mut self, label: Label, bytes: Arc<[u8]>, port: RpcReplyPort<Result<(), String>>) {
        let transport = self.transport.clone();
        let oldest = self.reach(label.round);
        tokio::spawn(async move {
            let published = transport.publish(Bytes::from_owner(bytes), label).await;
            answer(port, published.map_err(|error| error.to_string()));
            forget_before(&*transport, oldest).await;
        });
    }

    /// Notes the newest round that was worked on; whenever there is a newer one, answers which rounds are kept from then on.
    fn reach(&mut self, round: Round) -> Option<Round> {
        let is_newer = round > self.newest;
        self.newest = self.newest.max(round);
        is_newer.then(|| Round(round.0.saturating_sub(ROUNDS_KEPT)))
    }

    fn gather(&mut self, round: Round, wanted: Vec<Wanted>, within: Duration, port: RpcReplyPort<Deliveries>) {
        let transport = self.transport.clone();
        let journal = self.parts.journal.clone();
        // What was fetched is served on: a payload from its round's reveal, which has come or it could not be fetched.
        let wants = wanted.into_iter().map(|wanted| Want {
            hash: iroh_blobs::Hash::from_bytes(wanted.hash),
            size: wanted.size,
            label: Label { round, kind: wanted.kind, reveal: Reveal::Always },
            holders: wanted.holders,
        });
        let wants: Vec<Want> = wants.collect();
        // A node that publishes nothing keeps what it gathers, and must forget as well.
        let oldest = self.reach(round);
        tokio::spawn(async move {
            let deadline = tokio::time::Instant::now() + within;
            let fetched = transport.gather(wants, deadline).await;
            for Fetched { outcome, elapsed, .. } in &fetched {
                let result = match outcome {
                    Ok(_) => "ok",
                    Err(FetchError::Deadline) => "late",
                    Err(FetchError::TooLarge { .. } | FetchError::SizeMismatch { .. }) => "too-large",
                    Err(FetchError::NotFound | FetchError::Refused | FetchError::Busy | FetchError::Unreachable) => {
                        "unavailable"
                    }
                    Err(FetchError::Corrupt | FetchError::Store(_) | FetchError::Closed) => "failed",
                };
                journal.metrics.peer_sync.fetches.with([result]).increment(1);
                journal.metrics.peer_sync.fetch_time.record(elapsed.as_secs_f64());
            }
            let delivered = fetched.into_iter().map(|fetched| {
                let bytes = fetched.outcome.map(|bytes| Arc::from(&bytes[..])).map_err(|error| error.to_string());
                (*fetched.want.hash.as_bytes(), bytes)
            });
            answer(port, delivered.collect());
            forget_before(&*transport, oldest).await;
        });
    }

    /// Admits the members, with the addresses that the configuration gives beside those on chain.
    async fn admit(&self, members: Vec<Peer>) -> Result<(), ActorProcessingErr> {
        let peers = members.into_iter().map(|mut peer| {
            peer.addresses.extend(self.parts.addresses.get(&peer.id).map(|address| *address));
            peer
        });
        self.transport.admit(peers.collect()).await?;
        Ok(())
    }
}

async fn forget_before(transport: &dyn PeerNet, oldest: Option<Round>) {
    let Some(oldest) = oldest else { return };
    if let Err(error) = transport.forget_before(oldest).await {
        warn!(%error, "old rounds are still kept");
    }
}

/// The transport's counts, which outlive this actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Told {
    refused: [u64; Refusal::ALL.len()],
    bytes_in: u64,
    bytes_out: u64,
    peers: u64,
}

impl Told {
    fn read(stats: &Stats) -> Self {
        let read = |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
        Self {
            refused: Refusal::ALL.map(|reason| stats.refused(reason)),
            bytes_in: read(&stats.bytes_down),
            bytes_out: read(&stats.bytes_up),
            peers: read(&stats.connections_in) + read(&stats.connections_out),
        }
    }

    fn record(&self, metrics: &Metrics) {
        for (reason, count) in Refusal::ALL.into_iter().zip(self.refused) {
            metrics.peer_sync.refused.with([reason.name()]).absolute(count);
        }
        metrics.peer_sync.bytes.with(["in"]).absolute(self.bytes_in);
        metrics.peer_sync.bytes.with(["out"]).absolute(self.bytes_out);
        metrics.peer_sync.peers.set(self.peers as f64);
    }
}
