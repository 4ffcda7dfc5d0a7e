//! One decoder block: forward, and the gradient written out by hand.
//!
//! With y = x·Wᵀ the gradients are dx = dy·W and dW = dyᵀ·x; everything between the products is in `passes`. Written out,
//! each intermediate is kept once and freed where it is last read, and grouped-query attention needs no repeated keys: the
//! queries that share a key head are stacked as rows of one product, `[group · len, width] × [width, len]`, so that the
//! gradient of a shared key is summed by the product itself.

use burn::tensor::{Device, Tensor};

use super::passes::{HeadShape, Passes};
use super::rope::Rope;
use crate::run_spec::ModelSpec;

/// What every block of a model shares.
#[derive(Debug, Clone)]
pub(super) struct BlockShape {
    pub(super) passes: Passes,
    pub(super) rope: Rope,
    pub(super) n_heads: usize,
    pub(super) n_kv_heads: usize,
    pub(super) head_width: usize,
    pub(super) eps: f32,
}

/// A block's tensors in canonical order (see `geometry`), or their gradients; norms are `[1, d]`.
#[derive(Debug, Clone)]
pub(super) struct Weights<'a> {
    pub(super) query: &'a Tensor<2>,
    pub(super) key: &'a Tensor<2>,
    pub(super) value: &'a Tensor<2>,
    pub(super) output: &'a Tensor<2>,
    pub(super) gate: &'a Tensor<2>,
    pub(super) up: &'a Tensor<2>,
    pub(super) down: &'a Tensor<2>,
    pub(super) norm_attention: &'a Tensor<2>,
    pub(super) norm_mlp: &'a Tensor<2>,
}

/// What the backward pass reads again. Rows are `batch · len`.
#[derive(Debug)]
pub(super) struct Kept {
    input: Tensor<2>,
    normed: Tensor<2>,
    attention: KeptAttention,
    middle: Tensor<2>,
    normed_mlp: Tensor<2>,
    gate: Tensor<2>,
    up: Tensor<2>,
    hidden: Tensor<2>,
}

#[derive(Debug)]
struct KeptAttention {
    /// `[batch, kv_heads, group · len, width]`, already divided by √width.
    query: Tensor<4>,
    /// `[batch, kv_heads, len, width]`.
    key: Tensor<4>,
    /// `[batch, kv_heads, len, width]`.
    value: Tensor<4>,
    /// `[batch, kv_heads, group · len, len]`.
    probs: Tensor<4>,
    /// `[rows, d]`: the heads side by side, before the output projection.
    mixed: Tensor<2>,
}

/// x·Wᵀ.
pub(super) fn project(x: &Tensor<2>, weight: &Tensor<2>) -> Tensor<2> {
    x.clone().matmul(weight.clone().transpose())
}

/// dyᵀ·x, the gradient of [`project`]'s weight.
pub(super) fn weight_gradient(dy: &Tensor<2>, x: Tensor<2>) -> Tensor<2> {
    dy.clone().transpose().matmul(x)
}

impl BlockShape {
    pub(super) fn new(spec: &ModelSpec, device: &Device) -> Self {
        Self {
            passes: Passes::of(device),
            rope: Rope::new(spec, device),
            n_heads: spec.n_heads,
            n_kv_heads: spec.n_kv_heads,
            head_width: spec.d_model / spec.n_heads,
            eps: spec.norm_eps as f32,
        }
    }

    fn heads(&self, heads: usize, rows: usize, len: usize) -> HeadShape {
        HeadShape { batch: rows / len, len, heads, width: self.head_width }
    }

    /// 1 / √width, which attention multiplies its scores by.
    fn score_factor(&self) -> f32 {
        (1.0 / (self.head_width as f64).sqrt()) as f32
    }

    /// x `[batch · len, d]` → the block's output, and what its gradient needs.
    pub(super) fn forward(&self, x: Tensor<2>, weights: &Weights<'_>, len: usize) -> (Tensor<2>, Kept) {
        let (input, normed) = self.passes.rms_norm(x, weights.norm_attention, self.eps);
        let attention = self.attention(&normed, weights, len);
        let branch = project(&attention.mixed, weights.output);
        let [input, middle, normed_mlp] = self.passes.add_rms_norm(input, branch, weights.norm_mlp, self.eps);
        let gate = project(&normed_mlp, weights.gate);
        let up = project(&normed_mlp, weights.up);
        let [gate, up, hidden] = self.passes.swiglu(gate, up);
        let output = middle.clone() + project(&hidden, weights.down);
        (output, Kept { input, normed, attention, middle, normed_mlp, gate, up, hidden })
    }

    fn attention(&self, normed: &Tensor<2>, weights: &Weights<'_>, len: usize) -> KeptAttention {
        let rows = normed.dims()[0];
        let (queries, keys) = (self.heads(self.n_heads, rows, len), self.heads(self.n_kv_heads, rows, len));
        let split = |weight, shape, rope, factor| self.passes.split_heads(project(normed, weight), shape, rope, factor);
        let query = split(weights.query, queries, Some(&self.rope), self.score_factor());
        let key = split(weights.key, keys, Some(&self.rope), 1.0);
        let value = split(weights.value, keys, None, 1.0);
        let query = self.stack(query);
        let scores = query.clone().matmul(key.clone().swap_dims(2, 3));
        let probs = self.passes.causal_softmax(scores, len);
        let mixed = self.passes.merge_heads(self.unstack(probs.clone().matmul(value.clone())), None, 1.0);
        KeptAttention { query, key, value, probs, mixed }
    }

    /// `[batch, heads, len, width]` → `[batch, kv_heads, group · len, width]`.
    fn stack(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, heads, len, width] = x.dims();
        x.reshape([batch, self.n_kv_heads, heads / self.n_kv_heads * len, width])
    }

    /// The inverse of [`Self::stack`].
    fn unstack(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, kv_heads, stacked, width] = x.dims();
        x.reshape([batch, self.n_heads, kv_heads * stacked / self.n_heads, width])
    }

    /// dy `[batch · len, d]` → dx, and the gradients of the block's tensors in canonical order.
    pub(super) fn backward(&self, dy: Tensor<2>, kept: Kept, weights: &Weights<'_>) -> (Tensor<2>, [Tensor<2>; 9]) {
        let d_down = weight_gradient(&dy, kept.hidden);
        let d_hidden = dy.clone().matmul(weights.down.clone());
        let (d_gate, d_up) = self.passes.swiglu_backward(d_hidden, kept.gate, kept.up);
        let d_gate_weight = weight_gradient(&d_gate, kept.normed_mlp.clone());
        let d_up_weight = weight_gradient(&d_up, kept.normed_mlp);
        let d_normed = d_gate.matmul(weights.gate.clone()) + d_up.matmul(weights.up.clone());
        let (d_middle, d_norm_mlp) =
            self.passes.rms_norm_backward(d_normed, kept.middle, weights.norm_mlp, self.eps, dy);
        let (d_normed, attention) = self.attention_backward(&d_middle, kept.attention, kept.normed, weights);
        let (dx, d_norm_attention) =
            self.passes.rms_norm_backward(d_normed, kept.input, weights.norm_attention, self.eps, d_middle);
        let [query, key, value, output] = attention;
        (dx, [query, key, value, output, d_gate_weight, d_up_weight, d_down, d_norm_attention, d_norm_mlp])
    }

    /// dy `[batch · len, d]` → the gradient of `normed`, and those of the query, key, value and output projections.
    fn attention_backward(
        &self,
        dy: &Tensor<2>,
        kept: KeptAttention,
        normed: Tensor<2>,
        weights: &Weights<'_>,
    ) -> (Tensor<2>, [Tensor<2>; 4]) {
        let KeptAttention { query, key, value, probs, mixed } = kept;
        let len = key.dims()[2];
        let d_output = weight_gradient(dy, mixed);
        let d_mixed = dy.clone().matmul(weights.output.clone());
        let rows = d_mixed.dims()[0];
        let d_mixed = self.stack(self.passes.split_heads(d_mixed, self.heads(self.n_heads, rows, len), None, 1.0));
        let d_value = probs.clone().swap_dims(2, 3).matmul(d_mixed.clone());
        let d_probs = d_mixed.matmul(value.swap_dims(2, 3));
        let d_scores = self.passes.causal_softmax_backward(d_probs, probs, len);
        let d_query = d_scores.clone().matmul(key);
        let d_key = d_scores.swap_dims(2, 3).matmul(query);
        let d_query = self.passes.merge_heads(self.unstack(d_query), Some(&self.rope), self.score_factor());
        let d_key = self.passes.merge_heads(d_key, Some(&self.rope), 1.0);
        let d_value = self.passes.merge_heads(d_value, None, 1.0);
        let gradients = [&d_query, &d_key, &d_value].map(|dy| weight_gradient(dy, normed.clone()));
        let d_normed = d_query.matmul(weights.query.clone())
            + d_key.matmul(weights.key.clone())
            + d_value.matmul(weights.value.clone());
        let [query, key, value] = gradients;
        (d_normed, [query, key, value, d_output])
    }
}
