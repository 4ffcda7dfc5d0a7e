//! The row-wise passes between the matrix products, each forward and backward.
//!
//! Every pass exists twice with one meaning: as a single loop over the buffer where the tensor lives in host memory
//! (`host`), and as a composition of tensor operations for every other device (`composed`). A CPU backend spends more time
//! in chains of small tensor operations than in the matrix products; a GPU backend fuses or hides them.

mod composed;
mod host;
mod lanes;
mod rows;

use burn::tensor::{Device, Int, Tensor};

use super::rope::Rope;

/// Which of the two forms a device uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passes {
    /// Loops over buffers in host memory.
    Host,
    /// Tensor operations.
    Composed,
}

/// How `[batch · len, heads · width]` is cut into heads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadShape {
    pub(crate) batch: usize,
    pub(crate) len: usize,
    pub(crate) heads: usize,
    pub(crate) width: usize,
}

impl HeadShape {
    /// Where a head of the `place`-th row of `[batch · len, heads · width]` starts in `[batch, heads, len, width]`.
    #[inline(always)]
    fn offset(self, place: usize, head: usize) -> usize {
        ((place / self.len * self.heads + head) * self.len + place % self.len) * self.width
    }
}

/// AdamW's two running averages of one tensor.
#[derive(Debug, Clone)]
pub(crate) struct Moments {
    pub(crate) first: Tensor<2>,
    pub(crate) second: Tensor<2>,
}

/// The numbers of one AdamW step, the same for every tensor (see `optimiser`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdamWStep {
    /// Multiplies the summed gradient: clipping and the mean over micro-batches.
    pub(crate) grad_factor: f32,
    /// 1 − β₁.
    pub(crate) first_share: f32,
    /// β₂.
    pub(crate) second_keep: f32,
    /// 1 − β₂.
    pub(crate) second_share: f32,
    /// √(1 − β₂ᵗ).
    pub(crate) root_divisor: f32,
    /// ε.
    pub(crate) eps: f32,
    /// 1 − lr · λ.
    pub(crate) param_keep: f32,
    /// lr / (1 − β₁ᵗ).
    pub(crate) rate: f32,
}

macro_rules! passes {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $out:ty;)*) => {
        impl Passes {
            $($(#[$doc])*
            pub(crate) fn $name(self, $($arg: $type),*) -> $out {
                match self {
                    Self::Host => host::$name($($arg),*),
                    Self::Composed => composed::$name($($arg),*),
                }
            })*
        }
    };
}

impl Passes {
    /// The faster form on `device`.
    pub(crate) fn of(device: &Device) -> Self {
        if *device == Device::flex() { Self::Host } else { Self::Composed }
    }
}

passes! {
    /// (x, y) with y = x / √(mean(x²) + ε) · weight, row by row. x `[rows, width]`, weight `[1, width]`.
    fn rms_norm(x: Tensor<2>, weight: &Tensor<2>, eps: f32) -> (Tensor<2>, Tensor<2>);

    /// (x, x + branch, y) with y the norm of the sum: the residual stream's junction in one pass.
    fn add_rms_norm(x: Tensor<2>, branch: Tensor<2>, weight: &Tensor<2>, eps: f32) -> [Tensor<2>; 3];

    /// (skip + dx, d_weight) of [`Passes::rms_norm`] at x, where `skip` is the gradient that reaches x past the norm:
    /// with s = 1 / √(mean(x²) + ε) and g = dy · weight, dx = s · g − s³ · x · mean(g · x) and d_weight = Σ dy · x · s.
    fn rms_norm_backward(
        dy: Tensor<2>, x: Tensor<2>, weight: &Tensor<2>, eps: f32, skip: Tensor<2>
    ) -> (Tensor<2>, Tensor<2>);

    /// Rows of heads → `[batch, heads, len, width]`, rotated by their position and multiplied by `factor`.
    fn split_heads(x: Tensor<2>, shape: HeadShape, rope: Option<&Rope>, factor: f32) -> Tensor<4>;

    /// The transpose of [`Passes::split_heads`]: rotated back, multiplied by `factor`, `[batch · len, heads · width]`.
    fn merge_heads(x: Tensor<4>, rope: Option<&Rope>, factor: f32) -> Tensor<2>;

    /// Softmax over `[.., len]` where row r sees columns 0 to r mod len; the rest is zero.
    fn causal_softmax(scores: Tensor<4>, len: usize) -> Tensor<4>;

    /// d_scores = p · (dp − Σ p · dp), zero where a row does not see.
    fn causal_softmax_backward(d_probs: Tensor<4>, probs: Tensor<4>, len: usize) -> Tensor<4>;

    /// (gate, up, silu(gate) · up).
    fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> [Tensor<2>; 3];

    /// (d_gate, d_up) of [`Passes::swiglu`].
    fn swiglu_backward(d_out: Tensor<2>, gate: Tensor<2>, up: Tensor<2>) -> (Tensor<2>, Tensor<2>);

    /// Of logits `[rows, vocab]`: each row's −log softmax at its target in nats, and `factor` · (softmax − one-hot).
    fn cross_entropy(logits: Tensor<2>, targets: &Tensor<1, Int>, factor: f32) -> (Vec<f64>, Tensor<2>);

    /// Σ x² and x itself.
    fn square_norm(tensor: Tensor<2>) -> (f64, Tensor<2>);

    /// One AdamW step of one tensor.
    fn adamw(param: Tensor<2>, grad: Tensor<2>, moments: Moments, step: &AdamWStep) -> (Tensor<2>, Moments);
}
