//! Whole rounds for n peers in one plain function: what the node must equal, bit for bit.
//!
//! No actors, no network, no chain, no disk: inner steps, payloads, outer step, error feedback, one after the other. A
//! newcomer reads this first and knows what a round computes; `tests/reference.rs` holds the running nodes against it.

use std::collections::BTreeMap;

use burn::tensor::Device;

use crate::assignment::assigned;
use crate::digest::digest;
use crate::genesis;
use crate::hotkey::HotkeyPair;
use crate::model::inner::{Sequential, inner_steps};
use crate::model::llama::{Batch, Llama};
use crate::model::optimiser::AdamW;
use crate::payload::{Header, Payload};
use crate::run_spec::RunSpec;
use crate::sparseloco::{self, Layout, LayoutError};
use crate::terms::{BlockHash, Digest, Hotkey, Round, RunId, Uid};

/// Where training samples come from.
pub trait Samples {
    /// How many there are.
    fn count(&self) -> u64;
    /// One of them, `context_len + 1` tokens.
    fn sample(&self, idx: u64) -> Vec<u32>;
}

/// What one peer carries from round to round.
struct Peer {
    keypair: HotkeyPair,
    /// e, chunk-major.
    error: Vec<f32>,
    optimiser: Option<AdamW>,
}

/// One peer's part in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Who.
    pub hotkey: Hotkey,
    /// Its slot.
    pub uid: Uid,
    /// Inner steps it made.
    pub steps: u32,
    /// Whether the manifest has its payload.
    pub applied: bool,
}

/// The state of a run: θ, and every peer's own.
pub struct Reference<S> {
    spec: RunSpec,
    run_id: RunId,
    layout: Layout,
    samples: S,
    device: Device,
    theta: Vec<f32>,
    peers: BTreeMap<Hotkey, Peer>,
}

impl<S: Samples> Reference<S> {
    /// A run before its first round.
    ///
    /// # Errors
    /// When the model has more chunks than a layout may.
    pub fn new(
        spec: RunSpec,
        run_id: RunId,
        samples: S,
        device: Device,
        peers: Vec<HotkeyPair>,
    ) -> Result<Self, LayoutError> {
        let layout = genesis::layout(&spec.model)?;
        let theta = genesis::theta(&spec.model, spec.seed, &layout);
        let peers = peers.into_iter().map(|keypair| {
            let error = vec![0.0; layout.flat_len()];
            (keypair.hotkey(), Peer { keypair, error, optimiser: None })
        });
        let peers = peers.collect();
        Ok(Self { spec, run_id, layout, samples, device, theta, peers })
    }

    /// θ's digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        digest(&self.theta)
    }

    /// θ, chunk-major.
    #[must_use]
    pub fn theta(&self) -> &[f32] {
        &self.theta
    }

    /// One round: everybody in `parts` trains and compresses, the payloads with `applied` are applied in the order of uids.
    /// Without any the round is null and θ stays.
    ///
    /// # Panics
    /// When a part names a peer that is not in the run, or training has diverged to numbers that are not finite.
    pub fn round(&mut self, round: Round, seed: &BlockHash, parts: &[Part]) -> Digest {
        let mut parts = parts.to_vec();
        parts.sort_by_key(|part| part.uid);
        let base = self.digest();
        let mut applied = Vec::new();
        for part in &parts {
            let payload = self.contribute(round, seed, base, part);
            applied.extend(payload);
        }
        let bodies: Vec<_> = applied.iter().map(Payload::body).collect();
        if !bodies.is_empty() {
            sparseloco::outer_step(&self.layout, &self.spec.sparse, &bodies, &mut self.theta);
        }
        self.digest()
    }

    /// One peer's round: its payload, if it is to be applied; if not, its error feedback is as before compression plus Δ.
    fn contribute(&mut self, round: Round, seed: &BlockHash, base: Digest, part: &Part) -> Option<Payload> {
        let peer = self.peers.get_mut(&part.hotkey).expect("a part's peer is in the run");
        let inner = &self.spec.inner;

        // Inner steps from θ, on the assigned samples.
        let tensor = |idx: usize| {
            let mut row_major = vec![0.0; self.layout.tensors()[idx].shape.iter().product()];
            self.layout.scatter(idx, &self.theta, &mut row_major);
            row_major
        };
        let mut model = Llama::from_tensors(&self.spec.model, &self.device, tensor);
        let optimiser = peer.optimiser.get_or_insert_with(|| AdamW::new(&model));
        let samples = assigned(seed, &part.hotkey, self.samples.count(), part.steps as usize * inner.batch_sequences);
        let batches = samples.chunks(inner.batch_sequences).map(|batch| {
            let tokens: Vec<u32> = batch.iter().flat_map(|sample| self.samples.sample(*sample)).collect();
            Batch::new(tokens, self.spec.model.context_len + 1).expect("samples have one length")
        });
        let first_step = round.0 * u64::from(inner.steps);
        inner_steps(&mut model, optimiser, inner, first_step, batches, &mut Sequential, |_| true);

        // Δ = θ_start − θ_end.
        let mut delta = vec![0.0; self.layout.flat_len()];
        model.export(|idx, values| self.layout.gather(idx, values, &mut delta));
        for (end, start) in delta.iter_mut().zip(&self.theta) {
            *end = start - *end;
        }

        // a = β·e + Δ; Δ̂ = Q(top-k(a)); e ← a − Δ̂, or a where Δ̂ is not applied.
        let encoded = sparseloco::encode(&self.layout, &self.spec.sparse, &mut peer.error, &delta);
        let encoded = encoded.expect("training gives finite numbers");
        let header = Header {
            run_id: self.run_id,
            round,
            uid: part.uid,
            hotkey: part.hotkey,
            base,
            layout: self.layout.hash(),
            inner_steps: part.steps,
        };
        let payload = Payload::seal(header, &self.layout, &self.spec.sparse, encoded.body, &peer.keypair);
        if !part.applied {
            encoded.undo.restore(&self.layout, payload.body(), &mut peer.error);
            return None;
        }
        Some(payload)
    }
}
