//! Getting a blob from whoever holds it, without trusting any holder.
//!
//! 1. The own store first. 2. Each holder in turn proves the blob's size (`get_verified_size`: the last chunk and its path to the
//! root), so a size that is not the one sealed on chain is a fact about the sealed hash, whoever answers, and ends the fetch before
//! anything is downloaded. 3. The rest streams into the store, verified against the hash in groups of 16 KiB; a holder that fails
//! half way leaves what it sent, and the next one sends only what is missing.
//!
//! A holder that says nothing for `stall_timeout` is given up. One that trickles cannot hold the fetch either: each holder gets an
//! equal share of the time left, and one that made progress but not enough goes to the back of the line.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use convoke::terms::EndpointId;
use iroh::PublicKey;
use iroh::endpoint::{Connection, ConnectionError};
use iroh_blobs::Hash;
use iroh_blobs::api::remote::GetProgressItem;
use iroh_blobs::get::GetError;
use iroh_blobs::get::fsm::{AtBlobHeaderNextError, DecodeError};
use iroh_blobs::get::request::get_verified_size;
use iroh_blobs::protocol::{ERR_INTERNAL, ERR_LIMIT, ERR_PERMISSION};
use n0_future::StreamExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::stats::add;
use super::store::{Label, StoreError};
use super::transport::{Live, Transport};

/// How large a blob may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeRule {
    /// The size that was sealed together with the hash.
    Exactly(u64),
    /// At most this, where the size is not sealed.
    AtMost(u64),
}

impl SizeRule {
    fn check(self, found: u64) -> Result<(), FetchError> {
        match self {
            Self::Exactly(expected) if found != expected => Err(FetchError::SizeMismatch { expected, found }),
            Self::AtMost(limit) if found > limit => Err(FetchError::TooLarge { limit, found }),
            _ => Ok(()),
        }
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
    fn is_final(&self) -> bool {
        matches!(self, Self::SizeMismatch { .. } | Self::TooLarge { .. } | Self::Store(_) | Self::Closed)
    }

    /// Which of two holders' failures says more about why the fetch failed.
    fn weight(&self) -> u8 {
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
        let obtain = async {
            let _turn = self.fetch_turns().acquire().await.map_err(|_| FetchError::Closed)?;
            let live = self.live().map_err(|_| FetchError::Closed)?;
            self.obtain(&live, &want, deadline).await
        };
        let outcome = tokio::select! {
            () = self.closing() => Err(FetchError::Closed),
            outcome = timeout_at(deadline, obtain) => outcome.unwrap_or(Err(FetchError::Deadline)),
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

    async fn obtain(&self, live: &Arc<Live>, want: &Want, deadline: Instant) -> Result<Bytes, FetchError> {
        let _held = live.store.hold(want.hash).await?;
        if let Some(size) = live.store.size(want.hash).await? {
            want.size.check(size)?;
        } else {
            self.download(live, want, deadline).await?;
        }
        live.store.keep(want.hash, want.label).await?;
        Ok(live.store.read(want.hash).await?)
    }

    /// Asks the holders in turn until the blob is whole in the store.
    async fn download(&self, live: &Live, want: &Want, deadline: Instant) -> Result<(), FetchError> {
        let mut holders: VecDeque<PublicKey> = want
            .holders
            .iter()
            .filter_map(|holder| PublicKey::from_bytes(&holder.0).ok())
            .filter(|holder| self.admission().admits(holder))
            .collect();
        let mut failure = FetchError::NotFound;
        while let Some(holder) = holders.pop_front() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(holders.len() + 1).unwrap_or(u32::MAX);
            let mut received = 0;
            let error = match timeout(share, self.download_from(live, want, holder, &mut received)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) if received > 0 => {
                    holders.push_back(holder);
                    FetchError::Unreachable
                }
                Err(_) => FetchError::Unreachable,
            };
            tracing::debug!(holder = %holder.fmt_short(), hash = %want.hash.fmt_short(), %error, "a holder failed");
            if error.is_final() {
                return Err(error);
            }
            if error.weight() >= failure.weight() {
                failure = error;
            }
        }
        Err(if Instant::now() >= deadline { FetchError::Deadline } else { failure })
    }

    /// A connection kept from an earlier fetch may be dead without knowing it, for instance when its peer was restarted; then one
    /// fresh connection is tried.
    async fn download_from(
        &self,
        live: &Live,
        want: &Want,
        holder: PublicKey,
        received: &mut u64,
    ) -> Result<(), FetchError> {
        loop {
            let lease = live.connections.to(holder, self.limits().connect_timeout).await?;
            match self.transfer(live, want, &lease.connection, received).await {
                Err(FetchError::Unreachable) => {
                    live.connections.drop_dead(holder, &lease.connection).await;
                    if !lease.is_reused {
                        return Err(FetchError::Unreachable);
                    }
                }
                outcome => return outcome,
            }
        }
    }

    async fn transfer(
        &self,
        live: &Live,
        want: &Want,
        connection: &Connection,
        received: &mut u64,
    ) -> Result<(), FetchError> {
        let patience = self.limits().stall_timeout;
        let (size, _) = timeout(patience, get_verified_size(connection, &want.hash))
            .await
            .map_err(|_| FetchError::Unreachable)?
            .map_err(|error| classify(&error, connection))?;
        want.size.check(size)?;
        let mut progress = Box::pin(live.store.store().remote().fetch(connection.clone(), want.hash).stream());
        let mut seen = 0;
        loop {
            match timeout(patience, progress.next()).await.map_err(|_| FetchError::Unreachable)? {
                Some(GetProgressItem::Progress(bytes)) => {
                    let fresh = bytes.saturating_sub(seen);
                    add(&self.stats().bytes_down, fresh);
                    *received += fresh;
                    seen = bytes;
                }
                Some(GetProgressItem::Done(_)) => return Ok(()),
                Some(GetProgressItem::Error(error)) => return Err(classify(&error, connection)),
                None => return Err(FetchError::Unreachable),
            }
        }
    }
}

/// What a failed request says about its holder. The provider answers by resetting the stream with a code; an admission refused or a
/// connection too many closes the whole connection with one.
fn classify(error: &GetError, connection: &Connection) -> FetchError {
    let closed_with = match connection.close_reason() {
        Some(ConnectionError::ApplicationClosed(close)) => Some(close.error_code),
        _ => None,
    };
    match error.iroh_error_code().or(closed_with) {
        Some(code) if code == ERR_PERMISSION => return FetchError::Refused,
        Some(code) if code == ERR_LIMIT => return FetchError::Busy,
        Some(code) if code == ERR_INTERNAL => return FetchError::NotFound,
        Some(_) => return FetchError::Unreachable,
        None => {}
    }
    match error {
        GetError::AtBlobHeaderNext { source: AtBlobHeaderNextError::NotFound { .. }, .. } => FetchError::NotFound,
        GetError::Decode { source, .. } => match source {
            DecodeError::ChunkNotFound { .. }
            | DecodeError::ParentNotFound { .. }
            | DecodeError::LeafNotFound { .. } => FetchError::NotFound,
            DecodeError::ParentHashMismatch { .. } | DecodeError::LeafHashMismatch { .. } => FetchError::Corrupt,
            DecodeError::Write { .. } => FetchError::Store(error.to_string()),
            _ => FetchError::Unreachable,
        },
        GetError::BadRequest { .. } => FetchError::Corrupt,
        GetError::IrpcSend { .. } => FetchError::Store(error.to_string()),
        // A stream that could not be opened is reported as a local failure too.
        GetError::LocalFailure { .. } if connection.close_reason().is_none() => FetchError::Store(error.to_string()),
        _ => FetchError::Unreachable,
    }
}
