//! What every node of a run works out of the same bytes: payloads out of their transport coding, and proofs that θ is held.
//!
//! A function of its arguments, each. It stands behind a trait because a simulation runs all nodes of a run in one process, and would
//! verify the same signature once for every one of them.

use std::sync::Arc;

use convoke::digest::holding_proof;
use convoke::payload::Payload;
use convoke::payload::transport::{self, MalformedTransport};
use convoke::run_spec::SparseSpec;
use convoke::sparseloco::Layout;
use convoke::terms::{BlockHash, Digest, Hotkey};

/// Who works it out.
pub trait Opening: Send + Sync {
    /// The payload in a transport coding, its signature verified.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    fn payload(&self, bytes: &[u8], layout: &Layout, spec: &SparseSpec) -> Result<Arc<Payload>, MalformedTransport>;

    /// What this hotkey must have sealed to show that it holds θ, whose digest is `base`.
    fn holding(&self, theta: &[f32], base: Digest, seed: &BlockHash, hotkey: &Hotkey, n_chunks: usize) -> Digest;
}

/// Each time anew.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anew;

impl Opening for Anew {
    fn payload(&self, bytes: &[u8], layout: &Layout, spec: &SparseSpec) -> Result<Arc<Payload>, MalformedTransport> {
        transport::parse(bytes, layout, spec).map(Arc::new)
    }

    fn holding(&self, theta: &[f32], _: Digest, seed: &BlockHash, hotkey: &Hotkey, n_chunks: usize) -> Digest {
        holding_proof(theta, seed, hotkey, n_chunks)
    }
}
