//! The passes as tensor operations, for devices whose memory is not the host's.

use burn::tensor::activation::{log_softmax, sigmoid, softmax};
use burn::tensor::{Bool, Device, Int, Tensor};

use super::{AdamWStep, HeadShape, Moments};
use crate::model::rope::Rope;

/// 1 / √(mean(x²) + ε), `[rows, 1]`.
fn norm_scale(x: &Tensor<2>, eps: f32) -> Tensor<2> {
    x.clone().square().mean_dim(1).add_scalar(eps).sqrt().recip()
}

/// See [`super::Passes::rms_norm`].
pub(super) fn rms_norm(x: Tensor<2>, weight: &Tensor<2>, eps: f32) -> (Tensor<2>, Tensor<2>) {
    let y = x.clone() * norm_scale(&x, eps) * weight.clone();
    (x, y)
}

/// See [`super::Passes::add_rms_norm`].
pub(super) fn add_rms_norm(x: Tensor<2>, branch: Tensor<2>, weight: &Tensor<2>, eps: f32) -> [Tensor<2>; 3] {
    let (added, y) = rms_norm(x.clone() + branch, weight, eps);
    [x, added, y]
}

/// See [`super::Passes::rms_norm_backward`].
pub(super) fn rms_norm_backward(
    dy: Tensor<2>,
    x: Tensor<2>,
    weight: &Tensor<2>,
    eps: f32,
    skip: Tensor<2>,
) -> (Tensor<2>, Tensor<2>) {
    let scale = norm_scale(&x, eps);
    let unit = x * scale.clone();
    let d_weight = (dy.clone() * unit.clone()).sum_dim(0);
    let weighted = dy * weight.clone();
    let along = (weighted.clone() * unit.clone()).mean_dim(1);
    (skip + (weighted - unit * along) * scale, d_weight)
}

/// Rotates `[batch, len, heads, width]` forwards or (`turn` −1) back.
fn rotate(x: Tensor<4>, rope: Option<&Rope>, turn: f32, factor: f32) -> Tensor<4> {
    let x = if factor == 1.0 { x } else { x.mul_scalar(factor) };
    let Some(rope) = rope else { return x };
    let [_, len, _, width] = x.dims();
    let [cos, sin] = rope.first(len);
    let sin = sin.mul_scalar(turn);
    let (low, high) = (x.clone().narrow(3, 0, width / 2), x.narrow(3, width / 2, width / 2));
    let turned = [low.clone() * cos.clone() - high.clone() * sin.clone(), high * cos + low * sin];
    Tensor::cat(turned.to_vec(), 3)
}

/// See [`super::Passes::split_heads`].
pub(super) fn split_heads(x: Tensor<2>, shape: HeadShape, rope: Option<&Rope>, factor: f32) -> Tensor<4> {
    let x = x.reshape([shape.batch, shape.len, shape.heads, shape.width]);
    rotate(x, rope, 1.0, factor).swap_dims(1, 2)
}

/// See [`super::Passes::merge_heads`].
pub(super) fn merge_heads(x: Tensor<4>, rope: Option<&Rope>, factor: f32) -> Tensor<2> {
    let [batch, heads, len, width] = x.dims();
    rotate(x.swap_dims(1, 2), rope, -1.0, factor).reshape([batch * len, heads * width])
}

/// True where a row does not see, `[1, 1, rows, len]`.
fn unseen(rows: usize, len: usize, device: &Device) -> Tensor<4, Bool> {
    Tensor::<2, Bool>::tril_mask([len, len], 0, device).repeat_dim(0, rows / len).reshape([1, 1, rows, len])
}

/// See [`super::Passes::causal_softmax`].
pub(super) fn causal_softmax(scores: Tensor<4>, len: usize) -> Tensor<4> {
    let mask = unseen(scores.dims()[2], len, &scores.device()).expand(scores.shape());
    softmax(scores.mask_fill(mask, f32::NEG_INFINITY), 3)
}

/// See [`super::Passes::causal_softmax_backward`].
pub(super) fn causal_softmax_backward(d_probs: Tensor<4>, probs: Tensor<4>, _len: usize) -> Tensor<4> {
    let weighted = probs.clone() * d_probs;
    let along = weighted.clone().sum_dim(3);
    weighted - probs * along
}

/// See [`super::Passes::swiglu`].
pub(super) fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> [Tensor<2>; 3] {
    let out = gate.clone() * sigmoid(gate.clone()) * up.clone();
    [gate, up, out]
}

/// See [`super::Passes::swiglu_backward`].
pub(super) fn swiglu_backward(d_out: Tensor<2>, gate: Tensor<2>, up: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let share = sigmoid(gate.clone());
    let silu = gate * share.clone();
    let slope = share.clone() + silu.clone() * (share.neg().add_scalar(1.0));
    (d_out.clone() * up * slope, d_out * silu)
}

/// See [`super::Passes::cross_entropy`].
pub(super) fn cross_entropy(logits: Tensor<2>, targets: &Tensor<1, Int>, factor: f32) -> (Vec<f64>, Tensor<2>) {
    let [rows, vocab] = logits.dims();
    let targets = targets.clone().reshape([rows, 1]);
    let log_probs = log_softmax(logits, 1);
    let losses = log_probs.clone().gather(1, targets.clone()).neg().into_data_as::<f64>();
    let one_hot = Tensor::<2>::zeros([rows, vocab], &log_probs.device()).scatter(
        1,
        targets,
        log_probs.clone().narrow(1, 0, 1).ones_like(),
        burn::tensor::IndexingUpdateOp::Add,
    );
    let gradient = (log_probs.exp() - one_hot).mul_scalar(factor);
    (losses.try_to_vec().expect("just converted"), gradient)
}

/// See [`super::Passes::square_norm`].
pub(super) fn square_norm(tensor: Tensor<2>) -> (f64, Tensor<2>) {
    let total = tensor.clone().square().sum().into_scalar::<f32>();
    (f64::from(total), tensor)
}

/// See [`super::Passes::adamw`].
pub(super) fn adamw(param: Tensor<2>, grad: Tensor<2>, moments: Moments, step: &AdamWStep) -> (Tensor<2>, Moments) {
    let grad = grad.mul_scalar(step.grad_factor);
    let first = moments.first.clone() + (grad.clone() - moments.first).mul_scalar(step.first_share);
    let second = moments.second.mul_scalar(step.second_keep) + grad.square().mul_scalar(step.second_share);
    let root = second.clone().sqrt().div_scalar(step.root_divisor).add_scalar(step.eps);
    let param = param.mul_scalar(step.param_keep) - (first.clone() / root).mul_scalar(step.rate);
    (param, Moments { first, second })
}
