//! The blobs on disk: what this node publishes and what it has fetched, kept by round.
//!
//! iroh-blobs keeps what a named tag points at and collects the rest. So the name of the tag is our whole index:
//! `round/<round>/<kind>/<reveal block>/<hash>`, numbers with leading zeros so that their order is the rounds' order. Deleting all tags
//! below a round is retention; reading all tags at start rebuilds the gate, reveal blocks included, without a second file that could
//! disagree with the store.
//!
//! Two properties of the store (0.104) shape this file. It confirms a write before its transaction is committed (up to 500 ms
//! later), so [`BlobStore::publish`] commits before it returns: a payload that is sealed on chain must survive the process. And its
//! collector holds a handle of the store it runs in, so a store with a collector that is dropped without [`BlobStore::close`] keeps
//! its database locked until the process ends.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use convoke::terms::{Block, Round};
use iroh_blobs::Hash;
use iroh_blobs::api::blobs::BlobStatus;
use iroh_blobs::api::{Store, TempTag};
use iroh_blobs::store::GcConfig;
use iroh_blobs::store::fs::FsStore;
use iroh_blobs::store::fs::options::Options;
use n0_future::StreamExt;

use super::gate::{Gate, Reveal};

const PREFIX: &str = "round/";

/// What a blob is, for the operator who lists the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A compressed pseudo-gradient.
    Payload,
    /// The list of payloads that a round applies.
    Manifest,
    /// Parameters and optimiser state for joiners.
    State,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Payload, Self::Manifest, Self::State];

    fn name(self) -> &'static str {
        match self {
            Self::Payload => "payload",
            Self::Manifest => "manifest",
            Self::State => "state",
        }
    }
}

/// How long a blob is kept, and from when on others may read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// The round it belongs to: it is kept until this round is forgotten.
    pub round: Round,
    /// What it is.
    pub kind: Kind,
    /// From when on it may be read.
    pub reveal: Reveal,
}

impl Label {
    fn tag(&self, hash: Hash) -> String {
        let (round, kind, reveal) = (self.round.0, self.kind.name(), self.reveal.block().0);
        format!("{PREFIX}{round:020}/{kind}/{reveal:020}/{}", hash.to_hex())
    }

    fn parse(tag: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(tag).ok()?.strip_prefix(PREFIX)?.split('/');
        let round = Round(parts.next()?.parse().ok()?);
        let kind = parts.next()?;
        let kind = Kind::ALL.into_iter().find(|known| known.name() == kind)?;
        let reveal = match parts.next()?.parse().ok()? {
            0 => Reveal::Always,
            block => Reveal::At(Block(block)),
        };
        Some(Self { round, kind, reveal })
    }
}

/// The store did not do what it was asked: a full disk, a damaged file, or a store that is closed.
#[derive(Debug, thiserror::Error)]
#[error("the blob store cannot {task}: {reason}")]
pub struct StoreError {
    task: &'static str,
    reason: String,
}

impl StoreError {
    fn new(task: &'static str, reason: impl std::fmt::Display) -> Self {
        // The alternate form shows the causes too.
        Self { task, reason: format!("{reason:#}") }
    }

    /// Whether another handle has the database, perhaps this node's own former store that is about to close.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        // The crate does not export the type of this error, so its text must do.
        self.reason.contains("already open")
    }
}

/// Blobs by hash, kept by round.
#[derive(Debug, Clone)]
pub struct BlobStore {
    store: FsStore,
    gate: Arc<Gate>,
}

impl BlobStore {
    /// Opens or creates the store in `dir` and opens the gate for all it holds.
    ///
    /// # Errors
    /// If the directory is not writable or the database is damaged or locked.
    pub async fn open(dir: &Path, collect_every: Duration, gate: Arc<Gate>) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(|error: io::Error| StoreError::new("create its directory", error))?;
        let mut options = Options::new(dir);
        options.gc = Some(GcConfig { interval: collect_every, add_protected: None });
        let database: PathBuf = dir.join("blobs.db");
        let store =
            FsStore::load_with_opts(database, options).await.map_err(|error| StoreError::new("be opened", error))?;
        let this = Self { store, gate };
        for (label, hash) in this.labels(PREFIX, None).await? {
            match label {
                Some(label) => this.gate.allow(hash, label.reveal),
                None => {
                    tracing::warn!(hash = %hash.fmt_short(), "a tag of the blob store cannot be read; its blob is not served")
                }
            }
        }
        Ok(this)
    }

    /// What iroh-blobs serves from.
    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Keeps `bytes` and opens the gate for them from the label's reveal on. What it returns is on disk.
    ///
    /// # Errors
    /// If the store cannot write.
    pub async fn publish(&self, bytes: Bytes, label: Label) -> Result<Hash, StoreError> {
        let added =
            self.store.add_bytes(bytes).temp_tag().await.map_err(|error| StoreError::new("add a blob", error))?;
        self.keep(added.hash(), label).await?;
        self.store.sync_db().await.map_err(|error| StoreError::new("commit a blob", error))?;
        Ok(added.hash())
    }

    /// Keeps a blob that is complete in the store, and opens the gate for it from the label's reveal on.
    pub(super) async fn keep(&self, hash: Hash, label: Label) -> Result<(), StoreError> {
        self.store.tags().set(label.tag(hash), hash).await.map_err(|error| StoreError::new("tag a blob", error))?;
        self.gate.allow(hash, label.reveal);
        Ok(())
    }

    /// Keeps a blob, whole or in part, from being collected for as long as the answer lives.
    pub(super) async fn hold(&self, hash: Hash) -> Result<TempTag, StoreError> {
        self.store.tags().temp_tag(hash).await.map_err(|error| StoreError::new("hold a blob", error))
    }

    /// The size of a blob that is here and whole.
    ///
    /// # Errors
    /// If the store is closed.
    pub async fn size(&self, hash: Hash) -> Result<Option<u64>, StoreError> {
        match self.store.status(hash).await.map_err(|error| StoreError::new("look a blob up", error))? {
            BlobStatus::Complete { size } => Ok(Some(size)),
            BlobStatus::Partial { .. } | BlobStatus::NotFound => Ok(None),
        }
    }

    /// The bytes of a blob that is here and whole. The caller has checked its size.
    ///
    /// # Errors
    /// If it is not, or cannot be read.
    pub async fn read(&self, hash: Hash) -> Result<Bytes, StoreError> {
        self.store.get_bytes(hash).await.map_err(|error| StoreError::new("read a blob", error))
    }

    /// Forgets all rounds before `round`: closes the gate for their blobs now and leaves the files to the next collection.
    /// Answers how many labels went.
    ///
    /// # Errors
    /// If the store cannot write.
    pub async fn forget_before(&self, round: Round) -> Result<u64, StoreError> {
        let end = format!("{PREFIX}{:020}", round.0);
        let gone = self.labels(PREFIX, Some(&end)).await?;
        let deleted = self
            .store
            .tags()
            .delete_range(PREFIX.as_bytes()..end.as_bytes())
            .await
            .map_err(|error| StoreError::new("delete tags", error))?;
        let kept: HashSet<Hash> = self.labels(&end, None).await?.into_iter().map(|(_, hash)| hash).collect();
        for (_, hash) in gone.iter().filter(|(_, hash)| !kept.contains(hash)) {
            self.gate.forget(hash);
        }
        self.store.sync_db().await.map_err(|error| StoreError::new("commit", error))?;
        Ok(deleted)
    }

    /// Whether the store still answers.
    pub(super) async fn is_alive(&self) -> bool {
        self.store.tags().get(PREFIX).await.is_ok()
    }

    /// Writes everything out and releases the database. The store answers nothing after this.
    pub(super) async fn close(&self) {
        if let Err(error) = self.store.shutdown().await {
            tracing::warn!(%error, "the blob store did not close cleanly");
        }
    }

    async fn labels(&self, from: &str, to: Option<&str>) -> Result<Vec<(Option<Label>, Hash)>, StoreError> {
        let failed = |error: String| StoreError::new("list its tags", error);
        // "round0" is the first name after all that begin with "round/".
        let to = to.unwrap_or("round0");
        let mut tags = self.store.tags().list_range(from..to).await.map_err(|error| failed(error.to_string()))?;
        let mut labels = Vec::new();
        while let Some(tag) = tags.next().await {
            let tag = tag.map_err(|error| failed(error.to_string()))?;
            labels.push((Label::parse(tag.name.0.as_ref()), tag.hash));
        }
        Ok(labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_survives_its_tag() {
        for kind in Kind::ALL {
            for reveal in [Reveal::Always, Reveal::At(Block(1)), Reveal::At(Block(u64::MAX))] {
                let label = Label { round: Round(12), kind, reveal };
                assert_eq!(Label::parse(label.tag(Hash::new(b"x")).as_bytes()), Some(label));
            }
        }
    }

    #[test]
    fn tags_sort_by_round_and_end_before_the_next_prefix() {
        let tag = |round| Label { round: Round(round), kind: Kind::State, reveal: Reveal::Always }.tag(Hash::new(b"x"));
        assert!(tag(9) < tag(10) && tag(10) < tag(u64::MAX) && tag(u64::MAX) < "round0".to_owned());
    }

    #[test]
    fn a_foreign_tag_is_no_label() {
        for tag in [&b"round/x"[..], b"auto-2026", b"round/1/gradient/2/00", b"round/\xff", b""] {
            assert_eq!(Label::parse(tag), None);
        }
    }
}
