//! What many nodes work out of the same bytes is worked out once.
//!
//! The key of an answer is the content of all that it depends on, and the first answer comes from the real function. Nothing that
//! belongs to one node is shared. One answer in [`LOOK_AGAIN`] is worked out again and compared, so that a memo that lied would be
//! found by every longer run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use convoke::payload::Payload;
use convoke::payload::transport::MalformedTransport;
use convoke::run_spec::SparseSpec;
use convoke::sparseloco::Layout;
use convoke::terms::{BlockHash, Digest, Hotkey};

use crate::opening::{Anew, Opening};

/// Answers are kept in two generations of this size.
const GENERATION_MAX: usize = 4096;
/// Every so many answers one is worked out again.
const LOOK_AGAIN: u64 = 256;

/// Answers that were worked out before.
#[derive(Debug, Default)]
pub struct Memo {
    payloads: Mutex<Generations<Arc<Payload>>>,
    holdings: Mutex<Generations<Digest>>,
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
        let key = *blake3::hash(bytes).as_bytes();
        let mut known = self.payloads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((payload, is_again)) = known.get(&key) {
            let anew = if is_again { Some(Anew.payload(bytes, layout, spec)?) } else { None };
            assert!(anew.is_none_or(|anew| anew.bytes() == payload.bytes()), "the memo of payloads lies");
            return Ok(payload);
        }
        let payload = Anew.payload(bytes, layout, spec)?;
        known.put(key, Arc::clone(&payload));
        Ok(payload)
    }

    fn holding(&self, theta: &[f32], base: Digest, seed: &BlockHash, hotkey: &Hotkey, n_chunks: usize) -> Digest {
        let key = *blake3::hash(&[base.0, seed.0, hotkey.0].concat()).as_bytes();
        let mut known = self.holdings.lock().unwrap_or_else(PoisonError::into_inner);
        let anew = || Anew.holding(theta, base, seed, hotkey, n_chunks);
        if let Some((proof, is_again)) = known.get(&key) {
            assert!(!is_again || anew() == proof, "the memo of holding proofs lies");
            return proof;
        }
        let proof = anew();
        known.put(key, proof);
        proof
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::Pages;

    #[test]
    fn an_answer_is_the_real_ones_and_of_its_own_subject() {
        let memo = Memo::default();
        let theta = Pages::zeroed(2 * 4096);
        let (base, seed) = (convoke::digest::digest(&theta), BlockHash([3; 32]));
        for _ in 0..2 * LOOK_AGAIN {
            for key in [1, 2] {
                let hotkey = Hotkey([key; 32]);
                let real = Anew.holding(&theta, base, &seed, &hotkey, 2);
                assert_eq!(memo.holding(&theta, base, &seed, &hotkey, 2), real);
            }
        }
    }
}
