//! What many nodes work out of the same bytes is worked out once.
//!
//! The key of an answer is the content of all that it depends on, and the first answer comes from the real function. Nothing that
//! belongs to one node is shared. One answer in `LOOK_AGAIN` is worked out again and compared, so that a memo that lied would be
//! found by every longer run.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use convoke::chain::{Place, Registry};
use convoke::gauntlet::copies::{CopyFound, Sealed};
use convoke::payload::Payload;
use convoke::payload::transport::MalformedTransport;
use convoke::run_spec::SparseSpec;
use convoke::sparseloco::Layout;
use convoke::terms::{BlockHash, Digest, Hotkey};

use crate::chain::{Commitments, Metagraph};
use crate::opening::{Anew, Opening};

/// Answers are kept in two generations of this size.
const GENERATION_MAX: usize = 1024;
/// Every so many answers one is worked out again.
const LOOK_AGAIN: u64 = 256;
/// Blocks whose registry is kept: nodes read the newest few, and the last of a round or two.
const REGISTRIES_MAX: usize = 64;

/// Answers that were worked out before.
#[derive(Debug)]
pub struct Memo {
    anew: Anew,
    payloads: Mutex<Generations<Opened>>,
    holdings: Mutex<Generations<Digest>>,
    copies: Mutex<Generations<Vec<CopyFound>>>,
    registries: Mutex<VecDeque<Read>>,
}

/// A transport coding, and the payload in it.
type Opened = (Arc<[u8]>, Arc<Payload>);

/// What was read of one block. While it is held nothing else can be in its place in memory, so that the place is its name.
#[derive(Debug)]
struct Read {
    metagraph: Arc<Metagraph>,
    commitments: Arc<Commitments>,
    registry: Arc<Registry>,
}

impl Memo {
    /// Of one run, on one subnet.
    #[must_use]
    pub fn new(place: Place) -> Self {
        Self {
            anew: Anew::new(place),
            payloads: Mutex::default(),
            holdings: Mutex::default(),
            copies: Mutex::default(),
            registries: Mutex::default(),
        }
    }
}

#[derive(Debug)]
struct Generations<T> {
    young: BTreeMap<[u8; 32], T>,
    old: BTreeMap<[u8; 32], T>,
    n_asked: u64,
}

impl<T> Default for Generations<T> {
    fn default() -> Self {
        Self { young: BTreeMap::new(), old: BTreeMap::new(), n_asked: 0 }
    }
}

impl<T: Clone> Generations<T> {
    /// The answer, and whether it is to be looked at again.
    fn get(&mut self, key: &[u8; 32]) -> Option<(T, bool)> {
        self.n_asked += 1;
        let known = self.young.get(key).or_else(|| self.old.get(key)).cloned()?;
        Some((known, self.n_asked.is_multiple_of(LOOK_AGAIN)))
    }

    fn put(&mut self, key: [u8; 32], answer: T) {
        if self.young.len() >= GENERATION_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, answer);
    }
}

impl Opening for Memo {
    fn payload(&self, bytes: &[u8], layout: &Layout, spec: &SparseSpec) -> Result<Arc<Payload>, MalformedTransport> {
        // Layout and spec are those of the run: a memo is one run's.
        // Their end, where no two signatures are alike, is found faster than a hash is made; all of them are compared.
        let mut key = [0; 32];
        bytes.iter().rev().zip(&mut key).for_each(|(byte, place)| *place = *byte);
        let mut known = self.payloads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(((_, payload), is_again)) = known.get(&key).filter(|((of, _), _)| **of == *bytes) {
            let anew = if is_again { Some(self.anew.payload(bytes, layout, spec)?) } else { None };
            assert!(anew.is_none_or(|anew| anew.bytes() == payload.bytes()), "the memo of payloads lies");
            return Ok(payload);
        }
        let payload = self.anew.payload(bytes, layout, spec)?;
        known.put(key, (bytes.into(), Arc::clone(&payload)));
        Ok(payload)
    }

    fn holding(&self, theta: &[f32], base: Digest, seed: &BlockHash, hotkey: &Hotkey, n_chunks: usize) -> Digest {
        let key = *blake3::hash(&[base.0, seed.0, hotkey.0].concat()).as_bytes();
        let mut known = self.holdings.lock().unwrap_or_else(PoisonError::into_inner);
        let anew = || self.anew.holding(theta, base, seed, hotkey, n_chunks);
        if let Some((proof, is_again)) = known.get(&key) {
            assert!(!is_again || anew() == proof, "the memo of holding proofs lies");
            return proof;
        }
        let proof = anew();
        known.put(key, proof);
        proof
    }

    fn registry(&self, metagraph: &Arc<Metagraph>, commitments: &Arc<Commitments>) -> Arc<Registry> {
        let mut known = self.registries.lock().unwrap_or_else(PoisonError::into_inner);
        let is_of =
            |read: &&Read| Arc::ptr_eq(&read.metagraph, metagraph) && Arc::ptr_eq(&read.commitments, commitments);
        if let Some(read) = known.iter().rev().find(is_of) {
            return Arc::clone(&read.registry);
        }
        let registry = self.anew.registry(metagraph, commitments);
        let (metagraph, commitments) = (Arc::clone(metagraph), Arc::clone(commitments));
        known.push_back(Read { metagraph, commitments, registry: Arc::clone(&registry) });
        if known.len() > REGISTRIES_MAX {
            known.pop_front();
        }
        registry
    }

    fn copies(&self, order: &[Sealed], payloads: &[&Payload], layout: &Layout, overlap_max: f64) -> Vec<CopyFound> {
        let mut hasher = blake3::Hasher::new();
        for (sealed, payload) in order.iter().zip(payloads) {
            hasher.update(&sealed.hotkey.0).update(&sealed.block.0.to_le_bytes()).update(&sealed.index.to_le_bytes());
            hasher.update(&payload.hash().0);
        }
        let key = *hasher.finalize().as_bytes();
        let mut known = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        let anew = || self.anew.copies(order, payloads, layout, overlap_max);
        if let Some((found, is_again)) = known.get(&key) {
            assert!(!is_again || anew() == found, "the memo of copies lies");
            return found;
        }
        let found = anew();
        known.put(key, found.clone());
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::Pages;

    #[test]
    fn an_answer_is_the_real_ones_and_of_its_own_subject() {
        let place = Place { genesis: BlockHash([4; 32]), netuid: 3 };
        let (memo, anew) = (Memo::new(place), Anew::anywhere());
        let theta = Pages::zeroed(2 * 4096);
        let (base, seed) = (convoke::digest::digest(&theta), BlockHash([3; 32]));
        for _ in 0..2 * LOOK_AGAIN {
            for key in [1, 2] {
                let hotkey = Hotkey([key; 32]);
                let real = anew.holding(&theta, base, &seed, &hotkey, 2);
                assert_eq!(memo.holding(&theta, base, &seed, &hotkey, 2), real);
            }
        }
    }
}
