//! LLaMA on Burn: RMSNorm, rotate-half RoPE, grouped-query causal attention, SwiGLU, a tied or an own head.
//!
//! The weights are those of Hugging Face's `LlamaForCausalLM`, tensor by tensor in `geometry`'s order and row-major
//! `[out, in]`, on the host and on the device alike: exchange with θ is a copy. Gradients are computed by a backward pass
//! written out by hand (`block`) instead of by automatic differentiation; it is checked against PyTorch.
//!
//! The head runs over `HEAD_ROWS` positions at a time: the logits of a whole batch are the largest array of a small
//! model by far, and are never needed at once.

use burn::tensor::{DType, Device, IndexingUpdateOp, Int, Tensor, TensorData};

use super::block::{BlockShape, Kept, Weights, project, weight_gradient};
use super::geometry::{self, TENSORS_PER_BLOCK};
use crate::run_spec::ModelSpec;

/// Positions whose logits exist at once.
const HEAD_ROWS: usize = 256;

/// Token sequences of one length, each with one token more than it has targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    tokens: Vec<u32>,
    sequence_len: usize,
}

/// Why a batch is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The tokens do not divide into whole sequences.
    #[error("{tokens} tokens are not a whole number of sequences of {sequence_len} tokens, two at least")]
    Ragged {
        /// Tokens given.
        tokens: usize,
        /// Tokens per sequence.
        sequence_len: usize,
    },
}

impl Batch {
    /// `tokens` is sequence after sequence, each of `sequence_len` tokens: the first `sequence_len − 1` are read, the last
    /// `sequence_len − 1` are predicted.
    ///
    /// # Errors
    /// When no whole number of sequences comes out: cut the stream first.
    pub fn new(tokens: Vec<u32>, sequence_len: usize) -> Result<Self, BatchError> {
        if sequence_len < 2 || tokens.is_empty() || !tokens.len().is_multiple_of(sequence_len) {
            return Err(BatchError::Ragged { tokens: tokens.len(), sequence_len });
        }
        Ok(Self { tokens, sequence_len })
    }

    /// Sequences in the batch.
    #[must_use]
    pub fn n_sequences(&self) -> usize {
        self.tokens.len() / self.sequence_len
    }

    /// Predicted tokens in the batch.
    #[must_use]
    pub fn n_targets(&self) -> usize {
        self.n_sequences() * (self.sequence_len - 1)
    }

    /// Cuts the batch into parts of at most `n_sequences`, in order.
    #[must_use]
    pub fn split(&self, n_sequences: usize) -> Vec<Self> {
        let parts = self.tokens.chunks(n_sequences.max(1) * self.sequence_len);
        parts.map(|tokens| Self { tokens: tokens.to_vec(), sequence_len: self.sequence_len }).collect()
    }

    /// The tokens of a sequence that are read.
    #[must_use]
    pub fn inputs(&self, sequence: usize) -> &[u32] {
        &self.tokens[sequence * self.sequence_len..][..self.sequence_len - 1]
    }

    fn shifted(&self, by: usize, device: &Device) -> Tensor<1, Int> {
        let len = self.sequence_len - 1;
        let rows = self.tokens.chunks_exact(self.sequence_len);
        let tokens: Vec<i64> = rows.flat_map(|row| row[by..by + len].iter().map(|&token| i64::from(token))).collect();
        let n_tokens = tokens.len();
        Tensor::from_data(TensorData::new(tokens, [n_tokens]), device)
    }
}

/// Gradients in canonical order, on the device.
#[derive(Debug, Clone)]
pub struct Grads(pub(super) Vec<Tensor<2>>);

impl Grads {
    /// Adds another micro-batch's gradients, in place where nobody else holds them.
    pub fn add(&mut self, other: Self) {
        assert_eq!(self.0.len(), other.0.len(), "gradients of two models");
        let sums = std::mem::take(&mut self.0).into_iter().zip(other.0).map(|(a, b)| a + b);
        self.0 = sums.collect();
    }

    /// Copies each tensor to the host and hands it out with its place in canonical order.
    pub fn export(&self, mut take: impl FnMut(usize, &[f32])) {
        export(&self.0, &mut take);
    }
}

/// The model with its weights on a device.
#[derive(Debug, Clone)]
pub struct Llama {
    spec: ModelSpec,
    device: Device,
    pub(super) shape: BlockShape,
    pub(super) params: Vec<Tensor<2>>,
}

impl Llama {
    /// A model from host tensors: `tensor(i)` is the i-th of [`geometry::tensors`], row-major.
    ///
    /// # Panics
    /// When a tensor has not the length of its shape.
    pub fn from_tensors(spec: &ModelSpec, device: &Device, tensor: impl FnMut(usize) -> Vec<f32>) -> Self {
        let shape = BlockShape::new(spec, device);
        let mut model = Self { spec: spec.clone(), device: device.clone(), shape, params: Vec::new() };
        model.load(tensor);
        model
    }

    /// Replaces every weight; see [`Self::from_tensors`].
    ///
    /// # Panics
    /// When a tensor has not the length of its shape.
    pub fn load(&mut self, tensor: impl FnMut(usize) -> Vec<f32>) {
        self.params = import(&self.spec, &self.device, tensor);
    }

    /// Copies each tensor to the host and hands it out, row-major, with its place in canonical order.
    pub fn export(&self, mut take: impl FnMut(usize, &[f32])) {
        export(&self.params, &mut take);
    }

    /// The model's geometry.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Where the weights are.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    fn block(&self, layer: usize) -> Weights<'_> {
        let first = 1 + layer * TENSORS_PER_BLOCK;
        let [query, key, value, output, gate, up, down, norm_attention, norm_mlp] =
            &self.params[first..first + TENSORS_PER_BLOCK]
        else {
            unreachable!("a slice of TENSORS_PER_BLOCK tensors");
        };
        Weights { query, key, value, output, gate, up, down, norm_attention, norm_mlp }
    }

    fn embedding(&self) -> &Tensor<2> {
        &self.params[0]
    }

    fn final_norm(&self) -> &Tensor<2> {
        &self.params[1 + self.spec.n_layers * TENSORS_PER_BLOCK]
    }

    fn head(&self) -> &Tensor<2> {
        if self.spec.tied_head { self.embedding() } else { &self.params[self.params.len() - 1] }
    }

    /// Token ids `[batch · len]` → the residual stream after the last block, each block's `kept` handed to `keep`.
    fn residual(&self, tokens: Tensor<1, Int>, len: usize, mut keep: impl FnMut(Kept)) -> Tensor<2> {
        assert!(len <= self.spec.context_len, "{len} tokens exceed the context of {}", self.spec.context_len);
        let mut x = self.embedding().clone().select(0, tokens);
        for layer in 0..self.spec.n_layers {
            let (next, kept) = self.shape.forward(x, &self.block(layer), len);
            keep(kept);
            x = next;
        }
        x
    }

    /// Logits `[n_tokens, vocab]` of one sequence, row-major on the host.
    #[must_use]
    pub fn logits(&self, tokens: &[u32]) -> Vec<f32> {
        self.logits_of_rows(tokens, 0)
    }

    /// Logits after the last token of one sequence.
    #[must_use]
    pub fn next_logits(&self, tokens: &[u32]) -> Vec<f32> {
        self.logits_of_rows(tokens, tokens.len() - 1)
    }

    fn logits_of_rows(&self, tokens: &[u32], first_row: usize) -> Vec<f32> {
        let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
        let ids = Tensor::from_data(TensorData::new(ids, [tokens.len()]), &self.device);
        let x = self.residual(ids, tokens.len(), drop).narrow(0, first_row, tokens.len() - first_row);
        let (_, normed) = self.shape.passes.rms_norm(x, self.final_norm(), self.shape.eps);
        project(&normed, self.head()).into_data_as::<f32>().try_to_vec().expect("just converted")
    }

    /// Mean next-token cross-entropy of each sequence, in nats.
    #[must_use]
    pub fn losses(&self, batch: &Batch) -> Vec<f64> {
        let len = batch.sequence_len - 1;
        let x = self.residual(batch.shifted(0, &self.device), len, drop);
        let (_, normed) = self.shape.passes.rms_norm(x, self.final_norm(), self.shape.eps);
        let targets = batch.shifted(1, &self.device);
        let mut losses = Vec::with_capacity(batch.n_targets());
        for rows in head_parts(batch.n_targets()) {
            let logits = project(&normed.clone().slice_dim(0, rows.clone()), self.head());
            let targets = targets.clone().slice_dim(0, rows);
            losses.extend(self.shape.passes.cross_entropy(logits, &targets, 1.0).0);
        }
        losses.chunks_exact(len).map(|row| row.iter().sum::<f64>() / len as f64).collect()
    }

    /// Mean next-token cross-entropy of the batch, in nats, and its gradient.
    #[must_use]
    pub fn loss_and_grads(&self, batch: &Batch) -> (f64, Grads) {
        let len = batch.sequence_len - 1;
        let tokens = batch.shifted(0, &self.device);
        let mut kept = Vec::with_capacity(self.spec.n_layers);
        let x = self.residual(tokens.clone(), len, |block| kept.push(block));
        let (loss, mut dx, d_final_norm, d_head) = self.head_gradients(x, batch);

        let mut blocks = Vec::with_capacity(self.spec.n_layers);
        for layer in (0..self.spec.n_layers).rev() {
            let block = kept.pop().expect("one per layer");
            let (next, gradients) = self.shape.backward(dx, block, &self.block(layer));
            blocks.push(gradients);
            dx = next;
        }

        let untied = if self.spec.tied_head { None } else { Some(self.embedding().zeros_like()) };
        let (d_embedding, own_head) = match untied {
            None => (d_head, None),
            Some(zeros) => (zeros, Some(d_head)),
        };
        let d_embedding = d_embedding.select_assign(0, tokens, dx, IndexingUpdateOp::Add);
        let blocks = blocks.into_iter().rev().flatten();
        let grads = std::iter::once(d_embedding).chain(blocks).chain([d_final_norm]).chain(own_head).collect();
        (loss, Grads(grads))
    }

    /// (loss, gradient of the residual stream, of the final norm, of the head's matrix).
    fn head_gradients(&self, x: Tensor<2>, batch: &Batch) -> (f64, Tensor<2>, Tensor<2>, Tensor<2>) {
        let rows = batch.n_targets();
        let (x, normed) = self.shape.passes.rms_norm(x, self.final_norm(), self.shape.eps);
        let targets = batch.shifted(1, &self.device);
        let factor = (1.0 / rows as f64) as f32;
        let (mut loss, mut d_normed, mut d_head) = (0.0, Vec::new(), None);
        for part in head_parts(rows) {
            let normed = normed.clone().slice_dim(0, part.clone());
            let targets = targets.clone().slice_dim(0, part);
            let logits = project(&normed, self.head());
            let (losses, d_logits) = self.shape.passes.cross_entropy(logits, &targets, factor);
            loss += losses.iter().sum::<f64>();
            let d_part = weight_gradient(&d_logits, normed);
            d_normed.push(d_logits.matmul(self.head().clone()));
            d_head = Some(match d_head {
                None => d_part,
                Some(sum) => sum + d_part,
            });
        }
        let d_normed = Tensor::cat(d_normed, 0);
        let skip = x.zeros_like();
        let (dx, d_norm) = self.shape.passes.rms_norm_backward(d_normed, x, self.final_norm(), self.shape.eps, skip);
        (loss / rows as f64, dx, d_norm, d_head.expect("a batch has a target"))
    }
}

fn head_parts(rows: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..rows).step_by(HEAD_ROWS).map(move |start| start..rows.min(start + HEAD_ROWS))
}

/// Host tensors in canonical order → the device; a norm becomes one row.
pub(super) fn import(spec: &ModelSpec, device: &Device, mut tensor: impl FnMut(usize) -> Vec<f32>) -> Vec<Tensor<2>> {
    let shapes = geometry::tensors(spec);
    let load = |(idx, (_, shape)): (usize, &(String, Vec<usize>))| {
        let sides = if let [rows, columns] = shape[..] { [rows, columns] } else { [1, shape[0]] };
        Tensor::from_data(TensorData::new(tensor(idx), sides), (device, DType::F32))
    };
    shapes.iter().enumerate().map(load).collect()
}

/// The reverse of [`import`].
pub(super) fn export(tensors: &[Tensor<2>], take: &mut dyn FnMut(usize, &[f32])) {
    for (idx, tensor) in tensors.iter().enumerate() {
        let data = tensor.to_data();
        take(idx, data.as_slice().expect("the model's tensors are f32"));
    }
}
