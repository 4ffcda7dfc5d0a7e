//! AdamW with decoupled decay (arXiv:1711.05101) and clipping by the global norm, number for number as PyTorch's `AdamW` and
//! `clip_grad_norm_`.
//!
//! Burn's own optimiser is not used: it clips every tensor by itself, keys its state by random ids, and takes a tensor
//! operation for every term. The state outlives rounds (SparseLoCo, arXiv:2508.15706, keeps it local), so it can be taken out
//! and put back without a bit changing.

use burn::tensor::Tensor;

use super::llama::{Grads, Llama, export, import};
use super::passes::{AdamWStep, Moments};
use crate::run_spec::InnerSpec;

/// Added to the norm before dividing, as in `clip_grad_norm_`.
const CLIP_EPS: f64 = 1e-6;

/// AdamW's state for one model.
#[derive(Debug, Clone)]
pub struct AdamW {
    steps_done: u64,
    moments: Vec<Moments>,
}

/// A gradient that holds NaN or infinity; the step was not taken.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("the gradient's norm is {norm}: the inner step was not taken")]
pub struct NotFinite {
    /// The norm, NaN or infinite.
    pub norm: f64,
}

impl AdamW {
    /// No step done, all averages zero.
    #[must_use]
    pub fn new(model: &Llama) -> Self {
        let zeros = |param: &Tensor<2>| Moments { first: param.zeros_like(), second: param.zeros_like() };
        Self { steps_done: 0, moments: model.params.iter().map(zeros).collect() }
    }

    /// Puts back what [`Self::export`] gave: `first(i)` and `second(i)` are the averages of the i-th tensor.
    ///
    /// # Panics
    /// When an average has not the length of its tensor.
    pub fn import(
        model: &Llama,
        steps_done: u64,
        first: impl FnMut(usize) -> Vec<f32>,
        second: impl FnMut(usize) -> Vec<f32>,
    ) -> Self {
        let first = import(model.spec(), model.device(), first);
        let second = import(model.spec(), model.device(), second);
        let moments = first.into_iter().zip(second).map(|(first, second)| Moments { first, second });
        Self { steps_done, moments: moments.collect() }
    }

    /// Copies the state to the host: every first average in canonical order, then every second one.
    pub fn export(&self, mut first: impl FnMut(usize, &[f32]), mut second: impl FnMut(usize, &[f32])) {
        for (idx, moments) in self.moments.iter().enumerate() {
            export(std::slice::from_ref(&moments.first), &mut |_, values| first(idx, values));
        }
        for (idx, moments) in self.moments.iter().enumerate() {
            export(std::slice::from_ref(&moments.second), &mut |_, values| second(idx, values));
        }
    }

    /// Steps taken since the averages were zero.
    #[must_use]
    pub fn steps_done(&self) -> u64 {
        self.steps_done
    }

    /// One step at learning rate `lr` with the mean of `n_summed` gradients, given as their sum; returns the mean's norm
    /// before clipping.
    ///
    /// g ← g · min(1, clip / (‖g‖ + 1e-6)); m ← m + (1 − β₁)(g − m); v ← β₂·v + (1 − β₂)·g²;
    /// θ ← θ·(1 − lr·λ) − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε).
    ///
    /// # Errors
    /// [`NotFinite`]: nothing was changed; drop this batch and go on.
    pub fn step(
        &mut self,
        model: &mut Llama,
        sum: Grads,
        n_summed: usize,
        inner: &InnerSpec,
        lr: f64,
    ) -> Result<f64, NotFinite> {
        assert_eq!(sum.0.len(), self.moments.len(), "gradients of another model");
        let passes = model.shape.passes;
        let (squares, grads): (Vec<f64>, Vec<Tensor<2>>) =
            sum.0.into_iter().map(|grad| passes.square_norm(grad)).unzip();
        let norm = squares.iter().sum::<f64>().sqrt() / n_summed as f64;
        if !norm.is_finite() {
            return Err(NotFinite { norm });
        }
        self.steps_done += 1;
        let step = self.numbers(inner, lr, norm, n_summed);
        let params = std::mem::take(&mut model.params).into_iter().zip(grads);
        let updated = params.zip(std::mem::take(&mut self.moments));
        (model.params, self.moments) =
            updated.map(|((param, grad), moments)| passes.adamw(param, grad, moments, &step)).unzip();
        Ok(norm)
    }

    fn numbers(&self, inner: &InnerSpec, lr: f64, norm: f64, n_summed: usize) -> AdamWStep {
        let clip = (inner.clip_norm / (norm + CLIP_EPS)).min(1.0);
        let done = self.steps_done as f64;
        AdamWStep {
            grad_factor: (clip / n_summed as f64) as f32,
            first_share: (1.0 - inner.beta1) as f32,
            second_keep: inner.beta2 as f32,
            second_share: (1.0 - inner.beta2) as f32,
            root_divisor: (1.0 - inner.beta2.powf(done)).sqrt() as f32,
            eps: inner.eps as f32,
            param_keep: (1.0 - lr * inner.weight_decay) as f32,
            rate: (lr / (1.0 - inner.beta1.powf(done))) as f32,
        }
    }
}
