//! Moving θ: one blob of many gigabytes, from several holders at once.
//!
//! θ's digest is BLAKE3 over its bytes, which is the blob's hash; so who knows the digest that the chain agreed on, and the model's
//! layout, knows name and size of what is wanted, and every group of 16 KiB is checked against the digest as it comes. iroh-blobs
//! (0.104) spreads only the children of a hash sequence over several holders. A sequence would need a list of hashes that nobody
//! has agreed on, so we ask for ranges of the one blob: `pieces` says who brings which, this file performs it.
//!
//! A range goes from the stream into the store group by group. What is in the store is not fetched again, after a restart
//! either: a blob in parts has a tag of its own ([`super::store`]), which keeps it from the collector.
//!
//! The size that a holder claims decides where the store writes, and is proven only by the last group. So a claim that is not
//! the size wanted is refused before anything is written.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use convoke::terms::{EndpointId, Round};
use iroh::PublicKey;
use iroh::endpoint::Connection;
use iroh_blobs::Hash;
use iroh_blobs::api::blobs::ImportBaoHandle;
use iroh_blobs::get::fsm::{AtBlobContent, BlobContentNext, EndBlobNext};
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt, ChunkRangesSeq, GetRequest};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::connections::Connections;
use super::fetch::{FetchError, SizeRule};
use super::pieces::{FlightId, Order, Pieces};
use super::request::{answered, ask, classify};
use super::stats::add;
use super::transport::{Live, Transport, TransportError};

/// Items of one piece that may wait for the store: a group of 16 KiB each.
const ITEMS_WAITING: usize = 64;
/// Connections to each holder, which its pieces take in turns. One is not enough on a fast path: BBR3 underestimates the rate where
/// the round trip is shorter than a scheduler's turn. Over loopback, one, two, three and four connections reached 0.5, 0.65, 0.9 and 0.9
/// of a plain transfer under Cubic, which we cannot use (`super::endpoint`). They are not the round's: its payloads do not
/// queue behind a state.
const LANES: usize = 3;
/// How often what the store lacks is fetched again when all pieces have come.
const ROUNDS_MAX: u32 = 3;

/// A state to get.
#[derive(Debug, Clone)]
pub struct StateWant {
    /// θ's digest.
    pub hash: Hash,
    /// Its bytes, as the model's layout says.
    pub size: u64,
    /// The round that starts from it.
    pub round: Round,
    /// Who may have it, best first.
    pub holders: Vec<EndpointId>,
}

/// What became of a [`StateWant`].
#[derive(Debug)]
pub struct StateFetched {
    /// Whether it is here, whole and kept; read it with [`Transport::load_state`].
    pub outcome: Result<(), FetchError>,
    /// How many of its bytes each holder sent, in the order of the want; also when it did not succeed.
    pub bytes_from: Vec<(EndpointId, u64)>,
    /// Who sent bytes that do not have this hash.
    pub corrupt: Vec<EndpointId>,
    /// How long it took.
    pub elapsed: Duration,
}

impl StateFetched {
    /// How many bytes came over the network.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes_from.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// One who may have the state, and how much has come from it.
struct Source {
    key: PublicKey,
    bytes: Arc<AtomicU64>,
}

/// A piece that has ended.
struct Landed {
    flight: FlightId,
    received: u64,
    outcome: Result<(), FetchError>,
}

/// What is known of a fetch whatever becomes of it.
#[derive(Default)]
struct Findings {
    corrupt: Vec<usize>,
    failure: Option<FetchError>,
}

impl Transport {
    /// Keeps θ's bytes and serves them to joiners. The newest [`super::store::STATES_KEPT`] states are kept, whatever else is
    /// forgotten. `bytes` is read as it is written out, not copied.
    ///
    /// # Errors
    /// If `bytes` do not have this hash, the store cannot write, or the transport is shut down.
    pub async fn publish_state(&self, bytes: Bytes, round: Round, hash: Hash) -> Result<(), TransportError> {
        let size = bytes.len() as u64;
        self.live()?.store.publish_state(bytes, round, hash).await?;
        self.admission().expect_state(size);
        Ok(())
    }

    /// Gets a state from all its holders at once and keeps it. What a former fetch left in the store is not fetched again. It gives up
    /// before the deadline only if no holder has brought anything for some seconds, or all have lied.
    pub async fn fetch_state(&self, want: StateWant, deadline: Instant) -> StateFetched {
        let started = Instant::now();
        let sources = sources_of(&want);
        let mut findings = Findings::default();
        let outcome = tokio::select! {
            biased;
            () = self.closing() => Err(FetchError::Closed),
            outcome = timeout_at(deadline, self.obtain_state(&want, &sources, &mut findings)) => {
                // What a holder said explains more than that time ran out.
                outcome.unwrap_or_else(|_| Err(findings.failure.unwrap_or(FetchError::Deadline)))
            }
        };
        let elapsed = started.elapsed();
        self.stats().fetched(elapsed, outcome.as_ref().err());
        let id = |source: &Source| EndpointId(*source.key.as_bytes());
        StateFetched {
            outcome,
            bytes_from: sources.iter().map(|source| (id(source), source.bytes.load(Ordering::Relaxed))).collect(),
            corrupt: findings.corrupt.iter().map(|index| id(&sources[*index])).collect(),
            elapsed,
        }
    }

    async fn obtain_state(
        &self,
        want: &StateWant,
        sources: &[Source],
        findings: &mut Findings,
    ) -> Result<(), FetchError> {
        let live = self.live().map_err(|_| FetchError::Closed)?;
        let size = NonZeroU64::new(want.size).ok_or(FetchError::NotFound)?;
        live.store.begin_state(want.hash, want.round).await?;
        let mut pieces = Pieces::new([], sources.len(), Instant::now());
        let lanes = Arc::new(self.lanes(&live, LANES));
        for _ in 0..ROUNDS_MAX {
            match live.store.size(want.hash).await? {
                Some(found) if found == want.size => {
                    live.store.keep_state(want.hash, want.round).await?;
                    self.admission().expect_state(want.size);
                    return Ok(());
                }
                Some(found) => return Err(FetchError::SizeMismatch { expected: want.size, found }),
                None => {}
            }
            pieces.restart(live.store.missing(want.hash, want.size).await?);
            let course = Course { transport: self, live: &live, lanes: &lanes, hash: want.hash, size, sources };
            course.bring_all(&mut pieces, findings).await?;
        }
        Err(FetchError::Store("what was written is not there".to_owned()))
    }
}

/// One fetch under way.
struct Course<'a> {
    transport: &'a Transport,
    live: &'a Arc<Live>,
    lanes: &'a Arc<Vec<Connections>>,
    hash: Hash,
    size: NonZeroU64,
    sources: &'a [Source],
}

impl Course<'_> {
    /// Performs what `pieces` orders until everything has been brought, or nobody is left who could.
    async fn bring_all(&self, pieces: &mut Pieces, findings: &mut Findings) -> Result<(), FetchError> {
        // Dropping the set ends its tasks: no flight outlives its fetch.
        let mut tasks = JoinSet::new();
        let mut aborts = HashMap::<FlightId, AbortHandle>::new();
        loop {
            let now = Instant::now();
            while let Some(order) = pieces.next(now) {
                let flight = order.flight;
                aborts.insert(flight, tasks.spawn(self.fly(order)));
            }
            if pieces.is_done() {
                return Ok(());
            }
            if pieces.is_hopeless() {
                return Err(findings.failure.clone().unwrap_or(FetchError::NotFound));
            }
            let wake_at = pieces.wake_at(now);
            let ended = tokio::select! {
                Some(ended) = tasks.join_next() => ended,
                () = sleep_until(wake_at.unwrap_or(now)), if wake_at.is_some() => continue,
                else => return Err(FetchError::NotFound),
            };
            let needless = match ended {
                Ok(landed) => {
                    aborts.remove(&landed.flight);
                    self.note(landed, pieces, findings)?
                }
                Err(error) => forward_panic(error),
            };
            for abort in needless.iter().filter_map(|flight| aborts.remove(flight)) {
                abort.abort();
            }
        }
    }

    /// Takes a flight's end into account. Answers the flights that have become needless by it.
    fn note(&self, landed: Landed, pieces: &mut Pieces, findings: &mut Findings) -> Result<Vec<FlightId>, FetchError> {
        let Landed { flight, received, outcome } = landed;
        let Err(error) = outcome else { return Ok(pieces.landed(flight, Instant::now())) };
        if error.is_final() {
            return Err(error);
        }
        let is_lie = error == FetchError::Corrupt;
        if findings.failure.as_ref().is_none_or(|failure| error.weight() >= failure.weight()) {
            findings.failure = Some(error);
        }
        if !is_lie {
            pieces.failed(flight, received, Instant::now());
            return Ok(Vec::new());
        }
        let needless = pieces.corrupted(flight, received);
        findings.corrupt = pieces.corrupt().collect();
        Ok(needless)
    }

    /// One piece from one holder, as a task of its own.
    fn fly(&self, order: Order) -> impl Future<Output = Landed> + Send + 'static {
        let Order { flight, holder, range } = order;
        let Source { key, bytes } = &self.sources[holder];
        let piece = Piece {
            transport: self.transport.clone(),
            live: self.live.clone(),
            lanes: self.lanes.clone(),
            hash: self.hash,
            size: self.size,
            ranges: ChunkRanges::bytes(range),
            received: 0,
            tally: bytes.clone(),
        };
        piece.bring(flight, *key)
    }
}

/// A range of the state on its way from a holder into the store.
struct Piece {
    transport: Transport,
    live: Arc<Live>,
    lanes: Arc<Vec<Connections>>,
    hash: Hash,
    size: NonZeroU64,
    ranges: ChunkRanges,
    received: u64,
    tally: Arc<AtomicU64>,
}

impl Piece {
    async fn bring(mut self, flight: FlightId, holder: PublicKey) -> Landed {
        let outcome = self.bring_from(holder, flight).await;
        if let Err(error) = &outcome {
            tracing::debug!(holder = %holder.fmt_short(), received = self.received, %error, "a piece did not come");
        }
        Landed { flight, received: self.received, outcome }
    }

    async fn bring_from(&mut self, holder: PublicKey, flight: FlightId) -> Result<(), FetchError> {
        if !self.transport.admission().admits(&holder) {
            return Err(FetchError::NotFound);
        }
        let lane = &self.lanes[usize::try_from(flight).unwrap_or(0) % self.lanes.len()];
        let lease = lane.to(holder, self.transport.limits().connect_timeout).await?;
        let connection = &lease.connection;
        let content = self.ask(connection).await?;
        let import = self.live.store.store().import_bao(self.hash, self.size, ITEMS_WAITING).await;
        let import = import.map_err(|error| FetchError::Store(error.to_string()))?;
        self.receive(connection, content, import).await
    }

    /// Requests the piece, and checks the size that the holder claims for the whole.
    async fn ask(&self, connection: &Connection) -> Result<AtBlobContent, FetchError> {
        let request = GetRequest::new(self.hash, ChunkRangesSeq::from_ranges([self.ranges.clone()]));
        let patience = self.transport.limits().stall_timeout;
        Ok(ask(connection, patience, request, SizeRule::Exactly(self.size.get())).await?.0)
    }

    /// Hands the piece to the store group by group, each checked against the hash, and waits until it is written.
    async fn receive(
        &mut self,
        connection: &Connection,
        mut content: AtBlobContent,
        import: ImportBaoHandle,
    ) -> Result<(), FetchError> {
        let ImportBaoHandle { tx, rx } = import;
        let patience = self.transport.limits().stall_timeout;
        let outcome = async move {
            loop {
                match answered(connection, patience, content.next()).await? {
                    BlobContentNext::More((rest, item)) => {
                        let item = item.map_err(|error| classify(&error.into(), connection))?;
                        if tx.send(item).await.is_err() {
                            // The store says why at the end of the import.
                            return Err(FetchError::Store("the store takes no more".to_owned()));
                        }
                        self.count(rest.stats().payload_bytes_read);
                        content = rest;
                    }
                    BlobContentNext::Done(end) => {
                        if let EndBlobNext::Closing(closing) = end.next() {
                            // Everything has come; how the stream ends does not matter.
                            answered(connection, patience, closing.next()).await.ok();
                        }
                        return Ok(());
                    }
                }
            }
        }
        .await;
        // After a failure too: what came before it counts as received, so it must have been written.
        match rx.await {
            Ok(Ok(())) => outcome,
            Ok(Err(error)) => Err(FetchError::Store(error.to_string())),
            Err(error) => Err(FetchError::Store(error.to_string())),
        }
    }

    fn count(&mut self, received: u64) {
        let bytes = received - self.received;
        self.received = received;
        add(&self.tally, bytes);
        add(&self.transport.stats().bytes_down, bytes);
        add(&self.transport.stats().state_bytes_down, bytes);
    }
}

/// The holders of a want, each once; an id that is no public key is nobody's.
fn sources_of(want: &StateWant) -> Vec<Source> {
    let mut sources: Vec<Source> = Vec::new();
    for key in want.holders.iter().filter_map(|holder| PublicKey::from_bytes(&holder.0).ok()) {
        if sources.iter().all(|source| source.key != key) {
            sources.push(Source { key, bytes: Arc::default() });
        }
    }
    sources
}

/// A flight that was ended on purpose leaves nothing to do; one that panicked is a mistake in this file.
fn forward_panic(error: JoinError) -> Vec<FlightId> {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Vec::new(),
    }
}
