//! Four peers that train on a seed's samples: what all methods share, so that they differ in nothing but the method.
//!
//! θ₀ and every peer's samples follow from the seed alone: peer p's i-th inner step sees the same tokens whatever the method.

use burn::tensor::Device;
use convoke::assignment::assigned;
use convoke::genesis;
use convoke::model::inner::{Sequential, inner_steps};
use convoke::model::llama::{Batch, Llama};
use convoke::model::optimiser::AdamW;
use convoke::run_spec::{InnerSpec, ModelSpec};
use convoke::sparseloco::Layout;
use convoke::terms::{BlockHash, Hotkey};
use convoke_node::data::Dataset;

/// Peers of every run.
pub const N_PEERS: usize = 4;

/// Sequences whose losses are measured at once.
const EVAL_BATCH: usize = 8;

/// What all runs of a table share.
pub struct Setting {
    pub model: ModelSpec,
    pub inner: InnerSpec,
    pub layout: Layout,
    pub dataset: Dataset,
    pub heldout: Vec<Vec<u32>>,
    pub n_rounds: usize,
    /// Peers that are computed at the same time; no result depends on it.
    pub n_threads: usize,
}

/// One run in progress.
pub struct Training<'a> {
    pub setting: &'a Setting,
    /// θ, chunk-major.
    pub theta: Vec<f32>,
    peers: Vec<Peer>,
}

struct Peer {
    optimiser: Option<AdamW>,
    /// Of the whole run, in the order of training.
    samples: Vec<u64>,
}

impl<'a> Training<'a> {
    /// A run before its first round.
    pub fn new(setting: &'a Setting, seed: u64) -> Self {
        let n_samples = setting.n_rounds * setting.inner.steps as usize * setting.inner.batch_sequences;
        let peer = |idx: u64| {
            let (block, hotkey) = (BlockHash(key(seed)), Hotkey(key(idx)));
            let samples = assigned(&block, &hotkey, setting.dataset.n_train_samples(), n_samples);
            Peer { optimiser: None, samples }
        };
        let theta = genesis::theta(&setting.model, seed, &setting.layout);
        Self { setting, theta, peers: (0..N_PEERS as u64).map(peer).collect() }
    }

    /// The model with θ's parameters.
    pub fn model(&self) -> Llama {
        let layout = &self.setting.layout;
        Llama::from_tensors(&self.setting.model, &Device::flex(), |idx| {
            let mut row_major = vec![0.0; layout.tensors()[idx].shape.iter().product()];
            layout.scatter(idx, &self.theta, &mut row_major);
            row_major
        })
    }

    /// Each peer's batch of an inner step, counted from the start of the run.
    pub fn batches(&self, step: usize) -> Vec<Batch> {
        self.peers.iter().map(|peer| self.batch(peer, step)).collect()
    }

    fn batch(&self, peer: &Peer, step: usize) -> Batch {
        let n_sequences = self.setting.inner.batch_sequences;
        let samples = &peer.samples[step * n_sequences..(step + 1) * n_sequences];
        let tokens = samples.iter().flat_map(|sample| self.setting.dataset.sample(*sample)).collect();
        Batch::new(tokens, self.setting.model.context_len + 1).expect("samples have one length")
    }

    /// Every peer's Δ of a round, chunk-major.
    pub fn deltas(&mut self, round: usize) -> Vec<Vec<f32>> {
        let mut peers = std::mem::take(&mut self.peers);
        let deltas = on_threads(self.setting.n_threads, peers.iter_mut().collect(), |peer| self.delta(round, peer));
        self.peers = peers;
        deltas
    }

    fn delta(&self, round: usize, peer: &mut Peer) -> Vec<f32> {
        let Setting { inner, layout, .. } = self.setting;
        let mut model = self.model();
        let mut optimiser = peer.optimiser.take().unwrap_or_else(|| AdamW::new(&model));
        let first_step = round * inner.steps as usize;
        let batches = (first_step..first_step + inner.steps as usize).map(|step| self.batch(peer, step));
        inner_steps(&mut model, &mut optimiser, inner, first_step as u64, batches, &mut Sequential, |_| true);
        peer.optimiser = Some(optimiser);
        let mut delta = vec![0.0; layout.flat_len()];
        model.export(|idx, values| layout.gather(idx, values, &mut delta));
        for (end, start) in delta.iter_mut().zip(&self.theta) {
            *end = start - *end;
        }
        delta
    }

    /// Mean loss of θ over the held-out sequences, nats a token.
    pub fn heldout_loss(&self) -> f64 {
        let (model, heldout) = (self.model(), &self.setting.heldout);
        let losses = on_threads(self.setting.n_threads, heldout.chunks(EVAL_BATCH).collect(), |samples| {
            let batch = Batch::new(samples.concat(), self.setting.model.context_len + 1);
            model.losses(&batch.expect("samples have one length"))
        });
        losses.iter().flatten().sum::<f64>() / heldout.len() as f64
    }
}

fn key(number: u64) -> [u8; 32] {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&number.to_le_bytes());
    key
}

/// `work` of each item, in the items' order, on at most so many threads.
pub fn on_threads<T: Send, R: Send>(n_threads: usize, mut items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let (len, work) = (items.len().div_ceil(n_threads).max(1), &work);
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        while !items.is_empty() {
            let part: Vec<T> = items.drain(..len.min(items.len())).collect();
            threads.push(scope.spawn(move || part.into_iter().map(work).collect::<Vec<R>>()));
        }
        threads.into_iter().flat_map(|thread| thread.join().expect("a peer's training does not panic")).collect()
    })
}
