//! The reveal (design §3, step 3): no byte of a payload leaves its owner before the block at which all seals are fixed.
//!
//! Were a payload readable earlier, a peer could seal a copy of it in the same round. So the gate stands in front of the store and
//! is the only list of what is served: a blob that it does not name is refused, even where the store holds it (a half fetched blob,
//! or one that only this node's own use put there). Refusals for an unknown and for an unrevealed blob look the same to the peer.

use std::sync::atomic::{AtomicU64, Ordering};

use convoke::terms::Block;
use dashmap::DashMap;
use iroh_blobs::Hash;
use iroh_blobs::protocol::GetRequest;

use super::stats::Refusal;

/// The most separate ranges of a blob one request may name. An honest fetch goes front to back and resumes with one or two.
const RANGES_MAX: usize = 64;

/// From when on a blob may be read by peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reveal {
    /// At once: manifests and state.
    Always,
    /// When the head reaches this block: payloads.
    At(Block),
}

impl Reveal {
    /// The first block at which the blob may be read.
    #[must_use]
    pub fn block(self) -> Block {
        match self {
            Self::Always => Block(0),
            Self::At(block) => block,
        }
    }
}

/// What may be read, and from when on.
#[derive(Debug, Default)]
pub struct Gate {
    head: AtomicU64,
    reveals: DashMap<Hash, Reveal>,
}

impl Gate {
    /// Says where the chain is. The caller decides which head counts; a lower head closes again what it had opened.
    pub fn set_head(&self, head: Block) {
        self.head.store(head.0, Ordering::Release);
    }

    /// The head last set.
    #[must_use]
    pub fn head(&self) -> Block {
        Block(self.head.load(Ordering::Acquire))
    }

    /// Names a blob that may be read from `reveal` on. Of two reveals for one blob the later counts: never too early.
    pub fn allow(&self, hash: Hash, reveal: Reveal) {
        self.reveals.entry(hash).and_modify(|known| *known = (*known).max(reveal)).or_insert(reveal);
    }

    /// Closes the gate for a blob.
    pub fn forget(&self, hash: &Hash) {
        self.reveals.remove(hash);
    }

    /// Whether the gate names a blob.
    #[must_use]
    pub fn names(&self, hash: &Hash) -> bool {
        self.reveals.contains_key(hash)
    }

    /// How many blobs the gate names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.reveals.len()
    }

    /// Whether the gate names no blob.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reveals.is_empty()
    }

    /// Whether a blob may be read now.
    ///
    /// # Errors
    /// [`Refusal::Unknown`] or [`Refusal::Unrevealed`].
    pub fn check(&self, hash: &Hash) -> Result<(), Refusal> {
        let reveal = *self.reveals.get(hash).ok_or(Refusal::Unknown)?;
        if self.head() >= reveal.block() { Ok(()) } else { Err(Refusal::Unrevealed) }
    }

    /// Whether a request may be served now. A request for a sequence of blobs is refused, because it reaches blobs whose hashes
    /// it does not name.
    pub(super) fn check_request(&self, request: &GetRequest) -> Result<(), Refusal> {
        let Some((0, ranges)) = request.ranges.as_single() else { return Err(Refusal::NotOneBlob) };
        if ranges.iter().take(RANGES_MAX + 1).count() > RANGES_MAX {
            return Err(Refusal::Fragmented);
        }
        self.check(&request.hash)
    }
}

#[cfg(test)]
mod tests {
    use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt, ChunkRangesSeq};

    use super::*;

    #[test]
    fn a_blob_is_readable_exactly_from_its_reveal_block_on() {
        let gate = Gate::default();
        let (payload, manifest) = (Hash::new(b"payload"), Hash::new(b"manifest"));
        gate.allow(payload, Reveal::At(Block(8)));
        gate.allow(manifest, Reveal::Always);
        for (head, expected) in [(0, Err(Refusal::Unrevealed)), (7, Err(Refusal::Unrevealed)), (8, Ok(())), (9, Ok(()))]
        {
            gate.set_head(Block(head));
            assert_eq!(gate.check(&payload), expected, "at head {head}");
            assert_eq!(gate.check(&manifest), Ok(()), "at head {head}");
        }
    }

    #[test]
    fn of_two_reveals_the_later_counts_in_either_order() {
        for reveals in [[Reveal::At(Block(5)), Reveal::At(Block(9))], [Reveal::At(Block(9)), Reveal::Always]] {
            let gate = Gate::default();
            reveals.into_iter().for_each(|reveal| gate.allow(Hash::new(b"x"), reveal));
            gate.set_head(Block(8));
            assert_eq!(gate.check(&Hash::new(b"x")), Err(Refusal::Unrevealed));
            gate.set_head(Block(9));
            assert_eq!(gate.check(&Hash::new(b"x")), Ok(()));
        }
    }

    #[test]
    fn a_sequence_or_a_shredded_request_is_refused_even_for_an_open_blob() {
        let gate = Gate::default();
        let hash = Hash::new(b"x");
        gate.allow(hash, Reveal::Always);
        assert_eq!(gate.check_request(&GetRequest::blob(hash)), Ok(()));
        assert_eq!(gate.check_request(&GetRequest::all(hash)), Err(Refusal::NotOneBlob));
        let child = ChunkRangesSeq::from_ranges([ChunkRanges::empty(), ChunkRanges::all()]);
        assert_eq!(gate.check_request(&GetRequest::new(hash, child)), Err(Refusal::NotOneBlob));
        let shreds = (0..100u64).map(|i| ChunkRanges::bytes(i * 4096..i * 4096 + 1024)).reduce(|a, b| a | b);
        let request = GetRequest::new(hash, ChunkRangesSeq::from_ranges([shreds.expect("not empty")]));
        assert_eq!(gate.check_request(&request), Err(Refusal::Fragmented));
    }
}
