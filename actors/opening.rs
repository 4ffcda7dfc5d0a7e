//! What every node of a run works out of the same bytes: who is who on the chain, payloads out of their transport coding, proofs that θ
//! is held, who has copied whom.
//!
//! A function of its arguments, each. It stands behind a trait because a simulation runs all nodes of a run in one process, and would
//! verify the same signature once for every one of them.

use std::sync::{Arc, Mutex, PoisonError};

use convoke::chain::{Place, Proofs, Registry};
use convoke::digest::holding_proof;
use convoke::gauntlet::copies::{CopyFound, Sealed, copies};
use convoke::payload::Payload;
use convoke::payload::transport::{self, MalformedTransport};
use convoke::run_spec::SparseSpec;
use convoke::sparseloco::{self, Layout};
use convoke::terms::{BlockHash, Digest, Hotkey};

use crate::chain::{Commitments, Metagraph};

/// Who works it out.
pub trait Opening: Send + Sync {
    /// The payload in a transport coding, its signature verified.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    fn payload(&self, bytes: &[u8], layout: &Layout, spec: &SparseSpec) -> Result<Arc<Payload>, MalformedTransport>;

    /// What this hotkey must have sealed to show that it holds θ, whose digest is `base`.
    fn holding(&self, theta: &[f32], base: Digest, seed: &BlockHash, hotkey: &Hotkey, n_chunks: usize) -> Digest;

    /// The members of the subnet by what the chain shows at one block, their identities verified.
    fn registry(&self, metagraph: &Arc<Metagraph>, commitments: &Arc<Commitments>) -> Arc<Registry>;

    /// The copies among a round's payloads, of which each stands in `payloads` where its seal stands in `order`.
    fn copies(&self, order: &[Sealed], payloads: &[&Payload], layout: &Layout, overlap_max: f64) -> Vec<CopyFound>;
}

/// Each time anew, but for what a node reads of one block many times.
#[derive(Debug)]
pub struct Anew {
    members: Mutex<Members>,
}

/// What was read of the chain last.
#[derive(Debug)]
struct Members {
    proofs: Proofs,
    last: Option<(Arc<Metagraph>, Arc<Commitments>, Arc<Registry>)>,
}

impl Anew {
    /// For the subnet of a run.
    #[must_use]
    pub fn new(place: Place) -> Self {
        Self { members: Mutex::new(Members { proofs: Proofs::new(place), last: None }) }
    }

    /// For a test in which no identity is read.
    #[cfg(test)]
    pub(crate) fn anywhere() -> Self {
        Self::new(Place { genesis: BlockHash([4; 32]), netuid: 3 })
    }
}

impl Opening for Anew {
    fn payload(&self, bytes: &[u8], layout: &Layout, spec: &SparseSpec) -> Result<Arc<Payload>, MalformedTransport> {
        transport::parse(bytes, layout, spec).map(Arc::new)
    }

    fn holding(&self, theta: &[f32], _: Digest, seed: &BlockHash, hotkey: &Hotkey, n_chunks: usize) -> Digest {
        holding_proof(theta, seed, hotkey, n_chunks)
    }

    fn registry(&self, metagraph: &Arc<Metagraph>, commitments: &Arc<Commitments>) -> Arc<Registry> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            members.last.as_ref().filter(|(of, with, _)| Arc::ptr_eq(of, metagraph) && Arc::ptr_eq(with, commitments));
        if let Some((_, _, registry)) = known {
            return Arc::clone(registry);
        }
        let registry = Arc::new(Registry::of(metagraph, commitments, &mut members.proofs));
        members.last = Some((Arc::clone(metagraph), Arc::clone(commitments), Arc::clone(&registry)));
        registry
    }

    fn copies(&self, order: &[Sealed], payloads: &[&Payload], layout: &Layout, overlap_max: f64) -> Vec<CopyFound> {
        let bodies: Vec<_> = payloads.iter().map(|payload| payload.body()).collect();
        let overlaps = sparseloco::overlaps(layout, &bodies);
        copies(order, overlap_max, |a, b| overlaps[a.max(b)][a.min(b)])
    }
}
