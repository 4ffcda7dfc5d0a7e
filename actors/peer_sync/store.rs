//! The blobs on disk: what this node publishes and what it has fetched, kept by round.
//!
//! iroh-blobs keeps what a named tag points at and collects the rest. So the name of the tag is our whole index:
//! `round/<round>/<kind>/<reveal block>/<hash>`, numbers with leading zeros so that their order is the rounds' order. Deleting all tags
//! below a round is retention; reading all tags at start rebuilds the gate, reveal blocks included, without a second file that could
//! disagree with the store.
//!
//! States have a rule of their own, since one is as large as thousands of payloads: `state/…` names them in the same way, and only the
//! newest [`STATES_KEPT`] stay, however many rounds of payloads do. A state of which only a part has come is named `partial/…`: it is
//! kept from the collector, also after a restart, but not served; a newer state's fetch, or a newer whole state, drops it.
//!
//! Two properties of the store (0.104) shape this file. It confirms a write before its transaction is committed (up to 500 ms
//! later), so [`BlobStore::publish`] commits before it returns: a payload that is sealed on chain must survive the process. And its
//! collector holds a handle of the store it runs in, so a store with a collector that is dropped without being closed keeps
//! its database locked until the process ends.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use convoke::terms::{Block, Round};
use iroh_blobs::Hash;
use iroh_blobs::api::blobs::BlobStatus;
use iroh_blobs::api::{Store, TempTag};
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt};
use iroh_blobs::store::GcConfig;
use iroh_blobs::store::fs::FsStore;
use iroh_blobs::store::fs::options::{Options, PathOptions};
use n0_future::StreamExt;

use super::gate::{Gate, Reveal};
use crate::pages::Pages;

const PREFIX: &str = "round/";
const STATES: &str = "state/";
const PARTIALS: &str = "partial/";

/// States that are kept: the newest, and the one that joiners may still be fetching.
pub const STATES_KEPT: usize = 2;
/// Blobs up to this size lie in the database, without a file: as many as small models publish, creating and deleting their files costs
/// more than moving their bytes (`cargo xtask bench swarm --only work`).
const INLINED_MAX: u64 = 64 * 1024;
/// Bytes of a state that are written, or read, in one go: what one of the store's threads may be busy with.
const BLOCK_BYTES: usize = 1024 * 1024;

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
    fn state(round: Round) -> Self {
        Self { round, kind: Kind::State, reveal: Reveal::Always }
    }

    fn tag(&self, hash: Hash) -> String {
        self.tag_under(if self.kind == Kind::State { STATES } else { PREFIX }, hash)
    }

    fn tag_under(&self, prefix: &str, hash: Hash) -> String {
        let (round, kind, reveal) = (self.round.0, self.kind.name(), self.reveal.block().0);
        format!("{prefix}{round:020}/{kind}/{reveal:020}/{}", hash.to_hex())
    }

    fn parse(tag: &[u8]) -> Option<Self> {
        let tag = std::str::from_utf8(tag).ok()?;
        let mut parts = [PREFIX, STATES, PARTIALS].iter().find_map(|prefix| tag.strip_prefix(prefix))?.split('/');
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
    pub(crate) fn new(task: &'static str, reason: impl std::fmt::Display) -> Self {
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
    paths: PathOptions,
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
        options.inline.max_data_inlined = INLINED_MAX;
        let paths = options.path.clone();
        let database: PathBuf = dir.join("blobs.db");
        let store =
            FsStore::load_with_opts(database, options).await.map_err(|error| StoreError::new("be opened", error))?;
        let this = Self { store, paths, gate };
        let mut labels = this.labels(PREFIX, None).await?;
        labels.extend(this.labels(STATES, None).await?);
        for (label, hash) in labels {
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
        let added = self.take(bytes).await?;
        self.keep(added.hash(), label).await?;
        self.store.sync_db().await.map_err(|error| StoreError::new("commit a blob", error))?;
        Ok(added.hash())
    }

    /// Takes in a blob that has come, for as long as the answer lives. Its bytes have been verified; the store hashes them anyway.
    pub(super) async fn add(&self, bytes: Bytes, hash: Hash) -> Result<TempTag, StoreError> {
        let tag = self.take(bytes).await?;
        let added = tag.hash();
        if added == hash {
            Ok(tag)
        } else {
            Err(StoreError::new("add a blob", format!("its hash is {added}, not {hash}")))
        }
    }

    async fn take(&self, bytes: Bytes) -> Result<TempTag, StoreError> {
        self.store.add_bytes(bytes).temp_tag().await.map_err(|error| StoreError::new("add a blob", error))
    }

    /// Keeps a blob that is complete in the store, and opens the gate for it from the label's reveal on.
    pub(super) async fn keep(&self, hash: Hash, label: Label) -> Result<(), StoreError> {
        if label.kind == Kind::State {
            return self.keep_state(hash, label.round).await;
        }
        self.set(label.tag(hash), hash).await?;
        self.gate.allow(hash, label.reveal);
        Ok(())
    }

    async fn set(&self, tag: String, hash: Hash) -> Result<(), StoreError> {
        self.store.tags().set(tag, hash).await.map_err(|error| StoreError::new("tag a blob", error))
    }

    /// Keeps a state whose bytes have this hash. They are handed over in slices, so that no thread of the store is busy with all of
    /// them at a time; none is copied but by the writing.
    pub(super) async fn publish_state(&self, bytes: Bytes, round: Round, hash: Hash) -> Result<(), StoreError> {
        let _held = self.hold(hash).await?;
        if self.size(hash).await?.is_none() {
            let slices = (0..bytes.len()).step_by(BLOCK_BYTES);
            let slices = slices.map(move |start| Ok(bytes.slice(start..bytes.len().min(start + BLOCK_BYTES))));
            let added = self.store.add_stream(n0_future::stream::iter(slices)).await.temp_tag().await;
            let found = added.map_err(|error| StoreError::new("add a state", error))?.hash();
            if found != hash {
                return Err(StoreError::new("keep a state", format!("its digest is {found}, not {hash}")));
            }
        }
        self.keep_state(hash, round).await
    }

    /// Keeps a state that is complete in the store, opens the gate for it and forgets all but the newest [`STATES_KEPT`]. What it
    /// returns is on disk.
    pub(super) async fn keep_state(&self, hash: Hash, round: Round) -> Result<(), StoreError> {
        self.set(Label::state(round).tag(hash), hash).await?;
        self.gate.allow(hash, Reveal::Always);
        let mut kept: Vec<Hash> = Vec::new();
        for (round, hash) in self.states().await?.into_iter().rev() {
            let is_named_already = kept.contains(&hash);
            if !is_named_already && kept.len() < STATES_KEPT {
                kept.push(hash);
                continue;
            }
            // After a null round a state is the next round's too: one name is enough.
            self.delete(&Label::state(round).tag(hash)).await?;
            if !is_named_already {
                self.gate.forget(&hash);
            }
        }
        self.drop_partials(round, None).await?;
        self.commit().await
    }

    /// Keeps what comes of a state from the collector until the state is kept whole, or a newer one is. What is left of older ones is
    /// dropped now.
    pub(super) async fn begin_state(&self, hash: Hash, round: Round) -> Result<(), StoreError> {
        self.set(Label::state(round).tag_under(PARTIALS, hash), hash).await?;
        self.drop_partials(round, Some(hash)).await?;
        self.commit().await
    }

    /// The size of the largest state kept.
    pub(super) async fn largest_state(&self) -> Result<u64, StoreError> {
        let mut largest = 0;
        for (_, hash) in self.states().await? {
            largest = largest.max(self.size(hash).await?.unwrap_or(0));
        }
        Ok(largest)
    }

    /// The states kept, oldest first.
    async fn states(&self) -> Result<Vec<(Round, Hash)>, StoreError> {
        let labels = self.labels(STATES, None).await?;
        Ok(labels.into_iter().filter_map(|(label, hash)| Some((label?.round, hash))).collect())
    }

    /// Forgets what has come of states up to this round, but for the one with the hash given.
    async fn drop_partials(&self, round: Round, but: Option<Hash>) -> Result<(), StoreError> {
        for (label, hash) in self.labels(PARTIALS, None).await? {
            if let Some(label) = label.filter(|label| label.round <= round && Some(hash) != but) {
                self.delete(&label.tag_under(PARTIALS, hash)).await?;
            }
        }
        Ok(())
    }

    async fn delete(&self, tag: &str) -> Result<(), StoreError> {
        self.store.tags().delete(tag).await.map(drop).map_err(|error| StoreError::new("delete a tag", error))
    }

    async fn commit(&self) -> Result<(), StoreError> {
        self.store.sync_db().await.map_err(|error| StoreError::new("commit", error))
    }

    /// The runs of bytes of a blob of this size that are not in the store.
    pub(super) async fn missing(&self, hash: Hash, size: u64) -> Result<Vec<Range<u64>>, StoreError> {
        let here = self.store.observe(hash).await.map_err(|error| StoreError::new("look a blob up", error))?;
        let missing = ChunkRanges::bytes(0..size) - &here.ranges;
        let bytes: Vec<u64> = missing.boundaries().iter().map(|chunk| size.min(chunk.0 * 1024)).collect();
        // A range without an end runs to the end of the blob.
        Ok(bytes.chunks(2).map(|run| run[0]..run.get(1).copied().unwrap_or(size)).collect())
    }

    /// Reads a state that is here and whole, and as large as `theta`. The store's own way is a message for every 16 KiB (300 MB/s where
    /// this reaches 420, `cargo xtask bench state`); so its file is read, on a thread that may block, and the hash checked.
    pub(super) async fn read_state(&self, hash: Hash, mut theta: Pages) -> Result<Pages, StoreError> {
        let failed = |error: io::Error| StoreError::new("read a state", error);
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut theta);
        if bytes.len() as u64 <= INLINED_MAX {
            bytes.copy_from_slice(&self.read(hash).await?);
            return Ok(theta);
        }
        let path = self.paths.data_path(&hash);
        let read = tokio::task::spawn_blocking(move || {
            let mut file = File::open(path)?;
            let mut hasher = blake3::Hasher::new();
            for block in bytemuck::cast_slice_mut::<f32, u8>(&mut theta).chunks_mut(BLOCK_BYTES) {
                file.read_exact(block)?;
                hasher.update(block);
            }
            let is_whole = hasher.finalize().as_bytes() == hash.as_bytes();
            if is_whole { Ok(theta) } else { Err(io::Error::other("its bytes on disk have changed")) }
        });
        read.await.map_err(|error| failed(error.into()))?.map_err(failed)
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
        self.commit().await?;
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
        // '0' is the first character after '/', so "round0" is the first name after all that begin with "round/".
        let end = from.split('/').next().unwrap_or_default().to_owned() + "0";
        let to = to.unwrap_or(&end);
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
        for (kind, end) in [(Kind::Manifest, "round0"), (Kind::State, "state0")] {
            let tag = |round| Label { round: Round(round), kind, reveal: Reveal::Always }.tag(Hash::new(b"x"));
            assert!(tag(9) < tag(10) && tag(10) < tag(u64::MAX) && tag(u64::MAX).as_str() < end);
        }
    }

    #[test]
    fn a_foreign_tag_is_no_label() {
        for tag in [&b"round/x"[..], b"auto-2026", b"round/1/gradient/2/00", b"round/\xff", b""] {
            assert_eq!(Label::parse(tag), None);
        }
    }
}
