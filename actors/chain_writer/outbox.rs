//! What the chain is to say of this node, on disk before it is sent: the reason nothing is written twice or forgotten.
//!
//! Where the disk is full, nothing new is taken in. What is only noted, such as that the chain says it now, is noted in memory and
//! comes to disk with the next thing: whoever has forgotten it reads the chain before anything is sent.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use convoke::chain::commitment::{Commitment, Identity, ManifestVote, Seal};
use convoke::terms::{Block, BlockHash, Hotkey, ManifestHash, Round, Uid, Weight};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::disk::Disk;
use crate::store::{StoreError, read_file, write_file};

/// The kinds of what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Where the node can be reached.
    Identity,
    /// A payload's hash.
    Seal,
    /// A manifest's hash.
    Vote,
    /// Weights.
    Weights,
}

impl Kind {
    /// The name in metrics and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Seal => "seal",
            Self::Vote => "vote",
            Self::Weights => "weights",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is written to disk.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Content {
    /// The chain that all this is for: on another one none of it is due, and none of it is done.
    genesis: BlockHash,
    fields: Vec<Vec<u8>>,
    identity_done: Option<Block>,
    seal_done: Option<Block>,
    vote_done: Option<Block>,
    weights: Option<Weights>,
    last_weights: Vec<(Uid, Weight)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Weights {
    round: Round,
    shares: Vec<(Hotkey, f64)>,
    /// The head when they were decided: an update of the hotkey's weights after it is this one.
    since: Block,
    done: Option<Block>,
}

/// A round, its shares by hotkey, and the head when they were decided.
pub type WeightsDue = (Round, Vec<(Hotkey, f64)>, Block);

/// The outbox.
#[derive(Debug)]
pub struct Outbox {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    commitment: Commitment,
    content: Content,
}

impl Outbox {
    /// What was on disk for this chain, or nothing: an outbox that cannot be read is as good as a new one, since the chain is
    /// read before anything is sent.
    pub fn load(disk: Arc<dyn Disk>, path: PathBuf, genesis: BlockHash) -> Self {
        let content: Option<Content> =
            read_file(&*disk, &path).ok().and_then(|bytes| postcard::from_bytes(&bytes).ok());
        let content = content.filter(|content| content.genesis == genesis);
        let content = content.unwrap_or_else(|| Content { genesis, ..Content::default() });
        let commitment = Commitment::parse(&content.fields).unwrap_or_default();
        Self { disk, path, commitment, content }
    }

    fn save(&mut self) -> Result<(), StoreError> {
        self.content.fields = self.commitment.to_fields();
        let bytes = postcard::to_allocvec(&self.content).expect("plain numbers encode");
        write_file(&*self.disk, &self.path, &[&bytes])
    }

    fn note(&mut self) {
        if let Err(error) = self.save() {
            warn!(%error, "the outbox is noted in memory, and will be written with the next thing that is put in it");
        }
    }

    /// A change that counts only if it is on disk.
    fn take_in(&mut self, change: impl FnOnce(&mut Self)) -> Result<(), StoreError> {
        let before = (self.commitment, self.content.clone());
        change(self);
        self.save().inspect_err(|_| (self.commitment, self.content) = before)
    }

    /// The identity is proven anew by every process.
    pub fn put_identity(&mut self, identity: Identity) {
        if self.commitment.identity != Some(identity) {
            (self.commitment.identity, self.content.identity_done) = (Some(identity), None);
            self.note();
        }
    }

    pub fn put_seal(&mut self, seal: Seal) -> Result<(), StoreError> {
        if self.commitment.seal == Some(seal) {
            return Ok(());
        }
        self.take_in(|it| (it.commitment.seal, it.content.seal_done) = (Some(seal), None))
    }

    pub fn put_vote(&mut self, round: Round, manifest: ManifestHash) -> Result<(), StoreError> {
        let vote = ManifestVote { round, manifest };
        if self.commitment.manifest == Some(vote) {
            return Ok(());
        }
        self.take_in(|it| (it.commitment.manifest, it.content.vote_done) = (Some(vote), None))
    }

    /// Newer weights replace those that were not sent; those of a round that are set already stay.
    pub fn put_weights(&mut self, round: Round, shares: Vec<(Hotkey, f64)>, since: Block) -> Result<(), StoreError> {
        if self.content.weights.as_ref().is_some_and(|weights| weights.round == round) {
            return Ok(());
        }
        self.take_in(|it| it.content.weights = Some(Weights { round, shares, since, done: None }))
    }

    /// The commitment's parts that are not on chain, each with its round; an identity is of no round.
    pub fn due(&self) -> Vec<(Kind, Round)> {
        let (own, content) = (&self.commitment, &self.content);
        let parts = [
            (Kind::Identity, own.identity.map(|_| Round(0)), content.identity_done),
            (Kind::Seal, own.seal.map(|seal| seal.round), content.seal_done),
            (Kind::Vote, own.manifest.map(|vote| vote.round), content.vote_done),
        ];
        parts
            .into_iter()
            .filter(|(.., done)| done.is_none())
            .filter_map(|(kind, round, _)| Some((kind, round?)))
            .collect()
    }

    pub fn commitment(&self) -> Commitment {
        self.commitment
    }

    /// Weights that are not on chain: their round, shares, and the head when they were decided.
    pub fn weights_due(&self) -> Option<WeightsDue> {
        let weights = self.content.weights.as_ref().filter(|weights| weights.done.is_none())?;
        Some((weights.round, weights.shares.clone(), weights.since))
    }

    /// The chain says this commitment, since this block.
    pub fn committed(&mut self, commitment: &Commitment, block: Block) {
        let done = |same: bool, before: Option<Block>| if same { before.or(Some(block)) } else { before };
        let (own, content) = (&self.commitment, &mut self.content);
        content.identity_done = done(own.identity == commitment.identity, content.identity_done);
        content.seal_done = done(own.seal == commitment.seal, content.seal_done);
        content.vote_done = done(own.manifest == commitment.manifest, content.vote_done);
        self.note();
    }

    /// The chain has these weights, since this block.
    pub fn weights_set(&mut self, round: Round, block: Block, set: Vec<(Uid, Weight)>) {
        if let Some(weights) = self.content.weights.as_mut().filter(|weights| weights.round == round) {
            weights.done = Some(block);
            self.content.last_weights = set;
        }
        self.note();
    }

    /// The block since which the chain says it.
    pub fn done(&self, kind: Kind, round: Round) -> Option<Block> {
        match kind {
            Kind::Identity => self.content.identity_done,
            Kind::Seal => self.commitment.seal.filter(|seal| seal.round == round).and(self.content.seal_done),
            Kind::Vote => self.commitment.manifest.filter(|vote| vote.round == round).and(self.content.vote_done),
            Kind::Weights => self.content.weights.as_ref().filter(|weights| weights.round == round)?.done,
        }
    }

    /// The weights that were set last.
    pub fn last_weights(&self) -> Vec<(Uid, Weight)> {
        self.content.last_weights.clone()
    }

    /// What is not on chain and no longer of use is not sent.
    pub fn withdraw(&mut self, kind: Kind, round: Round) {
        if self.done(kind, round).is_some() {
            return;
        }
        match kind {
            Kind::Identity => return,
            Kind::Seal => self.commitment.seal = self.commitment.seal.filter(|seal| seal.round != round),
            Kind::Vote => self.commitment.manifest = self.commitment.manifest.filter(|vote| vote.round != round),
            Kind::Weights => self.content.weights = self.content.weights.take().filter(|it| it.round != round),
        }
        self.note();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Files;
    use crate::fake::disk::FakeDisk;
    use crate::fake::fence::Fence;

    const CHAIN: BlockHash = BlockHash([7; 32]);

    fn outbox() -> (tempfile::TempDir, Outbox) {
        let dir = tempfile::tempdir().unwrap();
        let outbox = load(&dir, CHAIN);
        (dir, outbox)
    }

    fn load(dir: &tempfile::TempDir, genesis: BlockHash) -> Outbox {
        Outbox::load(Arc::new(Files), dir.path().join("outbox"), genesis)
    }

    fn seal(round: u64) -> Seal {
        Seal {
            round: Round(round),
            payload: convoke::terms::PayloadHash([1; 32]),
            transport: convoke::terms::TransportHash([2; 32]),
            transport_bytes: 9,
            base: convoke::terms::Digest::default(),
            holding: [3; 16],
        }
    }

    #[test]
    fn what_was_put_is_due_after_a_crash_until_the_chain_says_it() {
        let (dir, mut outbox) = outbox();
        outbox.put_seal(seal(3)).unwrap();
        let mut outbox = load(&dir, CHAIN);
        assert_eq!(outbox.due(), [(Kind::Seal, Round(3))]);
        outbox.committed(&outbox.commitment(), Block(9));
        let outbox = load(&dir, CHAIN);
        assert_eq!((outbox.due(), outbox.done(Kind::Seal, Round(3))), (vec![], Some(Block(9))));
    }

    #[test]
    fn on_another_chain_nothing_is_due_or_done() {
        let (dir, mut outbox) = outbox();
        outbox.put_seal(seal(3)).unwrap();
        outbox.committed(&outbox.commitment(), Block(9));
        outbox.put_vote(Round(3), ManifestHash([1; 32])).unwrap();
        let other = load(&dir, BlockHash([8; 32]));
        assert_eq!((other.due(), other.done(Kind::Seal, Round(3))), (vec![], None));
        assert_eq!(other.commitment(), Commitment::default());
    }

    #[test]
    fn the_same_seal_is_not_due_twice_and_another_one_is() {
        let (_dir, mut outbox) = outbox();
        outbox.put_seal(seal(3)).unwrap();
        outbox.committed(&outbox.commitment(), Block(9));
        outbox.put_seal(seal(3)).unwrap();
        assert_eq!(outbox.due(), []);
        outbox.put_seal(seal(4)).unwrap();
        assert_eq!((outbox.due(), outbox.done(Kind::Seal, Round(4))), (vec![(Kind::Seal, Round(4))], None));
    }

    #[test]
    fn a_call_that_carried_an_older_vote_does_not_settle_a_newer_one() {
        let (_dir, mut outbox) = outbox();
        outbox.put_vote(Round(1), ManifestHash([1; 32])).unwrap();
        let sent = outbox.commitment();
        outbox.put_vote(Round(1), ManifestHash([2; 32])).unwrap();
        outbox.committed(&sent, Block(5));
        assert_eq!(outbox.due(), [(Kind::Vote, Round(1))]);
    }

    #[test]
    fn on_a_full_disk_nothing_is_taken_in_and_what_was_there_stays() {
        let disk = FakeDisk::new();
        let mounted: Arc<dyn Disk> = Arc::new(disk.mount(Fence::new()));
        mounted.create_dir_all(std::path::Path::new("/node")).unwrap();
        let load = || Outbox::load(Arc::clone(&mounted), PathBuf::from("/node/outbox"), CHAIN);
        let mut outbox = load();
        outbox.put_seal(seal(3)).unwrap();
        disk.set_full(true);
        assert!(outbox.put_seal(seal(4)).is_err());
        assert!(outbox.put_vote(Round(4), ManifestHash([1; 32])).is_err());
        assert!(outbox.put_weights(Round(4), vec![], Block(1)).is_err());
        assert_eq!((outbox.due(), outbox.weights_due().is_some()), (vec![(Kind::Seal, Round(3))], false));
        outbox.committed(&outbox.commitment(), Block(9));
        assert_eq!(outbox.due(), []);
        assert_eq!(load().due(), [(Kind::Seal, Round(3))], "who has forgotten it reads the chain");
        disk.set_full(false);
        outbox.put_seal(seal(4)).unwrap();
        assert_eq!(load().due(), [(Kind::Seal, Round(4))]);
    }

    #[test]
    fn what_is_withdrawn_is_not_sent() {
        let (_dir, mut outbox) = outbox();
        outbox.put_seal(seal(3)).unwrap();
        outbox.withdraw(Kind::Seal, Round(3));
        assert_eq!(outbox.due(), []);
        outbox.put_weights(Round(3), vec![], Block(1)).unwrap();
        outbox.withdraw(Kind::Weights, Round(3));
        assert!(outbox.weights_due().is_none());
    }
}
