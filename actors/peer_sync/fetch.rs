//! Getting a blob from whoever holds it, without trusting any holder.
//!
//! The own store comes first. Then each holder in turn is asked. Another size than the one sealed on chain, once a holder has proven
//! it, is a fact about the sealed hash, whoever answers, and ends the fetch before anything is kept.
//!
//! A small blob comes into memory by one request, in one flight of packets, and goes to the store whole. A large one streams into the
//! store after its size was proven, verified against the hash in groups of 16 KiB; a holder that fails half way leaves what it sent,
//! and the next one sends only what is missing.
//!
//! A holder that says nothing for `stall_timeout` is given up. One that trickles cannot hold the fetch either: each holder gets an
//! equal share of the time left.
//!
//! A holder that refuses may be honest and a few milliseconds behind: nodes see a block, and admit each other, one after the other.
//! So whoever failed is asked again, at growing intervals, until the deadline; only a size that is proven wrong ends the fetch, and
//! only bytes that have another hash end a holder's part in it. A fetch that pauses gives its turn to those that wait for one, so
//! payloads that are sealed and never served do not keep back the others.

use std::time::Duration;

use bytes::Bytes;
use convoke::terms::EndpointId;
use iroh::PublicKey;
use iroh::endpoint::Connection;
use iroh_blobs::Hash;
use iroh_blobs::api::remote::GetProgressItem;
use iroh_blobs::get::request::get_verified_size;
use iroh_blobs::protocol::GetRequest;
use n0_future::StreamExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::endpoint::STREAM_WINDOW;
use super::request::{answered, classify, read_whole};
use super::stats::add;
use super::store::{Label, StoreError};
use super::transport::{Live, Transport};

/// Blobs up to this size are fetched into memory: a holder may send all of one without waiting for a word from here.
const IN_MEMORY_MAX: u64 = STREAM_WINDOW as u64;

/// How often one holder is asked within its share of the time.
const ATTEMPTS_MAX: u32 = 3;

/// Pause before a holder that failed is asked again; it doubles with every failure.
pub(crate) const RETRY_PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest such pause.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long a fetch none of whose holders is admitted waits for one to be: the list of members and the order to fetch have been read
/// from the same chain, so they are at most a message apart.
pub(crate) const ADMISSION_PATIENCE: Duration = Duration::from_millis(500);

/// How large a blob may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeRule {
    /// The size that was sealed together with the hash.
    Exactly(u64),
    /// At most this, where the size is not sealed.
    AtMost(u64),
}

impl SizeRule {
    pub(crate) fn check(self, found: u64) -> Result<(), FetchError> {
        match self {
            Self::Exactly(expected) if found != expected => Err(FetchError::SizeMismatch { expected, found }),
            Self::AtMost(limit) if found > limit => Err(FetchError::TooLarge { limit, found }),
            _ => Ok(()),
        }
    }

    fn is_for_memory(self) -> bool {
        let (Self::Exactly(size) | Self::AtMost(size)) = self;
        size <= IN_MEMORY_MAX
    }
}

/// A blob to get.
#[derive(Debug, Clone)]
pub struct Want {
    /// What it is called.
    pub hash: Hash,
    /// How large it may be.
    pub size: SizeRule,
    /// How it is kept here once it is whole, and from when on this node serves it to others.
    pub label: Label,
    /// Who may have it, best first.
    pub holders: Vec<EndpointId>,
}

/// What became of a [`Want`].
#[derive(Debug)]
pub struct Fetched {
    /// The blob wanted.
    pub want: Want,
    /// Its bytes, or why not.
    pub outcome: Result<Bytes, FetchError>,
    /// How long it took, waiting for its turn included.
    pub elapsed: Duration,
}

/// Why a blob was not obtained.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// No holder was named, or none that is admitted by the registry and has the blob whole.
    #[error("no holder has it")]
    NotFound,
    /// A holder refuses: the blob is not revealed there, or not served, or this node is not in the holder's registry.
    #[error("refused by its holder")]
    Refused,
    /// A holder says that this node asks too often.
    #[error("its holder is busy")]
    Busy,
    /// The blob with this hash has another size than was sealed. Proven, whoever answered: no other holder is asked.
    #[error("has {found} bytes where {expected} were sealed")]
    SizeMismatch {
        /// The sealed size.
        expected: u64,
        /// The proven size.
        found: u64,
    },
    /// The blob is larger than allowed. Proven, whoever answered: no other holder is asked.
    #[error("has {found} bytes where at most {limit} are allowed")]
    TooLarge {
        /// The largest size allowed.
        limit: u64,
        /// The proven size.
        found: u64,
    },
    /// No holder could be reached, or none that answered to the end.
    #[error("no holder could be reached")]
    Unreachable,
    /// The deadline came first.
    #[error("not complete by the deadline")]
    Deadline,
    /// A holder sent bytes that do not have this hash.
    #[error("its holder sent other bytes")]
    Corrupt,
    /// This node's own store failed.
    #[error("{0}")]
    Store(String),
    /// The transport was shut down.
    #[error("the transport is shut down")]
    Closed,
}

impl FetchError {
    /// The classes as metric labels.
    pub const CLASSES: [&str; 10] = [
        "not_found",
        "refused",
        "busy",
        "size_mismatch",
        "too_large",
        "unreachable",
        "deadline",
        "corrupt",
        "store",
        "closed",
    ];

    /// This error's class, one of [`FetchError::CLASSES`].
    #[must_use]
    pub fn class(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Refused => "refused",
            Self::Busy => "busy",
            Self::SizeMismatch { .. } => "size_mismatch",
            Self::TooLarge { .. } => "too_large",
            Self::Unreachable => "unreachable",
            Self::Deadline => "deadline",
            Self::Corrupt => "corrupt",
            Self::Store(_) => "store",
            Self::Closed => "closed",
        }
    }

    /// Whether no other holder can change it.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::SizeMismatch { .. } | Self::TooLarge { .. } | Self::Store(_) | Self::Closed)
    }

    /// Which of two holders' failures says more about why the fetch failed.
    pub(crate) fn weight(&self) -> u8 {
        match self {
            Self::NotFound => 0,
            Self::Unreachable => 1,
            Self::Busy => 2,
            Self::Refused => 3,
            _ => 4,
        }
    }
}

impl From<StoreError> for FetchError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

impl Transport {
    /// Gets one blob: verified against its hash, of the size wanted, and kept under the want's label.
    pub async fn fetch(&self, want: Want, deadline: Instant) -> Fetched {
        let started = Instant::now();
        let mut failure = None;
        let outcome = tokio::select! {
            // In this order: a fetch whose connection the closing has cut must not report its holder.
            biased;
            () = self.closing() => Err(FetchError::Closed),
            outcome = timeout_at(deadline, self.obtain(&want, deadline, &mut failure)) => {
                outcome.unwrap_or(Err(FetchError::Deadline))
            }
        };
        // What a holder said explains more than that time ran out.
        let outcome = match (outcome, failure) {
            (Err(FetchError::Deadline), Some(failure)) => Err(failure),
            (outcome, _) => outcome,
        };
        let elapsed = started.elapsed();
        self.stats().fetched(elapsed, outcome.as_ref().err());
        Fetched { want, outcome, elapsed }
    }

    /// Gets many blobs, a bounded number of them at a time; the answers are in the order of the wants.
    pub async fn gather(&self, wants: Vec<Want>, deadline: Instant) -> Vec<Fetched> {
        let mut fetches = JoinSet::new();
        for (index, want) in wants.into_iter().enumerate() {
            let transport = self.clone();
            fetches.spawn(async move { (index, transport.fetch(want, deadline).await) });
        }
        let mut fetched = fetches.join_all().await;
        fetched.sort_by_key(|(index, _)| *index);
        fetched.into_iter().map(|(_, fetched)| fetched).collect()
    }

    async fn obtain(
        &self,
        want: &Want,
        deadline: Instant,
        failure: &mut Option<FetchError>,
    ) -> Result<Bytes, FetchError> {
        let live = self.live().map_err(|_| FetchError::Closed)?;
        // What comes by memory has nothing here before it is whole, and a name from then on; so the store need not be asked.
        let is_nowhere_here = want.size.is_for_memory() && !self.gate().names(&want.hash);
        let _held = if is_nowhere_here { None } else { Some(live.store.hold(want.hash).await?) };
        let here = if is_nowhere_here { None } else { live.store.size(want.hash).await? };
        let bytes = match here {
            Some(size) => want.size.check(size).map(|()| None)?,
            None => self.download(&live, want, deadline, failure).await?,
        };
        let _added = match &bytes {
            Some(bytes) => Some(live.store.add(bytes.clone(), want.hash).await?),
            None => None,
        };
        live.store.keep(want.hash, want.label).await?;
        match bytes {
            Some(bytes) => Ok(bytes),
            None => Ok(live.store.read(want.hash).await?),
        }
    }

    /// Asks the holders in turn, and again, until the blob is whole: in memory, or else in the store. `failure` is what says most
    /// about why it is not.
    async fn download(
        &self,
        live: &Live,
        want: &Want,
        deadline: Instant,
        failure: &mut Option<FetchError>,
    ) -> Result<Option<Bytes>, FetchError> {
        let started = Instant::now();
        let mut holders = holders_of(want, started);
        // Of those that may be asked at the same time, the best comes first.
        while let Some(index) = (0..holders.len()).min_by_key(|index| holders[*index].not_before) {
            let mut holder = holders.remove(index);
            let is_known = |holder: &Holder| self.admission().admits(&holder.id);
            let nobody_known = !is_known(&holder) && !holders.iter().any(is_known);
            if holder.not_before >= deadline || nobody_known && holder.not_before >= started + ADMISSION_PATIENCE {
                break;
            }
            sleep_until(holder.not_before).await;
            let error = if is_known(&holder) {
                let share = holders.len() + 1;
                match self.ask(live, want, &mut holder, share, deadline).await {
                    Ok(bytes) => return Ok(bytes),
                    // Then the time is over, and this holder has not failed.
                    Err(FetchError::Deadline) => break,
                    Err(error) => error,
                }
            } else {
                holder.not_before = Instant::now() + RETRY_PAUSE_MIN;
                FetchError::NotFound
            };
            if error.is_final() {
                return Err(error);
            }
            if error != FetchError::Corrupt {
                holders.push(holder);
            }
            if failure.as_ref().is_none_or(|failure| error.weight() >= failure.weight()) {
                *failure = Some(error);
            }
        }
        let silent = if Instant::now() >= deadline { FetchError::Deadline } else { FetchError::NotFound };
        Err(failure.clone().unwrap_or(silent))
    }

    /// Asks one holder, within its share of the time left, and says when it may be asked again.
    async fn ask(
        &self,
        live: &Live,
        want: &Want,
        holder: &mut Holder,
        share: usize,
        deadline: Instant,
    ) -> Result<Option<Bytes>, FetchError> {
        let _turn = self.fetch_turns().acquire().await.map_err(|_| FetchError::Closed)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let within = left / u32::try_from(share).unwrap_or(u32::MAX);
        let mut received = 0;
        let error = match timeout(within, self.download_from(live, want, holder.id, &mut received)).await {
            Ok(Ok(bytes)) => return Ok(bytes),
            Ok(Err(error)) => error,
            Err(_) if Instant::now() >= deadline => FetchError::Deadline,
            Err(_) => FetchError::Unreachable,
        };
        // One that brought something is not yet given up on.
        holder.failures = if received > 0 { 0 } else { holder.failures };
        holder.not_before = Instant::now() + retry_pause(holder.failures);
        holder.failures += 1;
        tracing::debug!(holder = %holder.id.fmt_short(), hash = %want.hash.fmt_short(), %error, "a holder failed");
        Err(error)
    }

    /// A connection kept from an earlier fetch may be dead without knowing it, for instance when its peer was restarted; and one that
    /// breaks after it brought something may do so again. Then the same holder is asked once more, on a fresh connection.
    async fn download_from(
        &self,
        live: &Live,
        want: &Want,
        holder: PublicKey,
        received: &mut u64,
    ) -> Result<Option<Bytes>, FetchError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let before = *received;
            let lease = live.connections.to(holder, self.limits().connect_timeout).await?;
            let outcome = self.transfer(live, want, &lease.connection, received).await;
            let is_broken = outcome == Err(FetchError::Unreachable) && lease.connection.close_reason().is_some();
            if !is_broken || attempts == ATTEMPTS_MAX || !(lease.is_reused || *received > before) {
                return outcome;
            }
        }
    }

    async fn transfer(
        &self,
        live: &Live,
        want: &Want,
        connection: &Connection,
        received: &mut u64,
    ) -> Result<Option<Bytes>, FetchError> {
        let patience = self.limits().stall_timeout;
        if want.size.is_for_memory() {
            let count = |bytes| {
                add(&self.stats().bytes_down, bytes);
                *received += bytes;
            };
            let request = GetRequest::blob(want.hash);
            return read_whole(connection, patience, request, want.size, count).await.map(Some);
        }
        let (size, _) = answered(connection, patience, get_verified_size(connection, &want.hash))
            .await?
            .map_err(|error| classify(&error, connection))?;
        want.size.check(size)?;
        let mut progress = Box::pin(live.store.store().remote().fetch(connection.clone(), want.hash).stream());
        let mut seen = 0;
        loop {
            match answered(connection, patience, progress.next()).await? {
                Some(GetProgressItem::Progress(bytes)) => {
                    let fresh = bytes.saturating_sub(seen);
                    add(&self.stats().bytes_down, fresh);
                    *received += fresh;
                    seen = bytes;
                }
                Some(GetProgressItem::Done(_)) => return Ok(None),
                Some(GetProgressItem::Error(error)) => return Err(classify(&error, connection)),
                None => return Err(FetchError::Unreachable),
            }
        }
    }
}

/// A holder of what is wanted, and when it may be asked.
struct Holder {
    id: PublicKey,
    failures: u32,
    not_before: Instant,
}

/// The holders of a want, each once, best first; an id that is no public key is nobody's.
fn holders_of(want: &Want, now: Instant) -> Vec<Holder> {
    let mut holders: Vec<Holder> = Vec::new();
    for id in want.holders.iter().filter_map(|holder| PublicKey::from_bytes(&holder.0).ok()) {
        if holders.iter().all(|holder| holder.id != id) {
            holders.push(Holder { id, failures: 0, not_before: now });
        }
    }
    holders
}

/// The pause after a failure that `failures` others came before.
pub(crate) fn retry_pause(failures: u32) -> Duration {
    RETRY_PAUSE_MIN.saturating_mul(1 << failures.min(10)).min(RETRY_PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_a_second() {
        let pauses: Vec<_> = [0, 1, 2, 3, 4, 99].map(|failures| retry_pause(failures).as_millis()).into();
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
    }
}
