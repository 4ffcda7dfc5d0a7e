//! The passes as single loops over the buffers of a CPU backend.
//!
//! A tensor that nobody else holds gives up its buffer and takes it back without a copy, so each pass reads and writes
//! memory once, where a chain of tensor operations would do so five to ten times.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::lanes::{dot, exp, max, sigmoid, sum};
use super::{HeadShape, Moments};
use crate::model::rope::Rope;

/// Runs `pass` with the vector instructions of this processor.
pub(super) fn vectorised<R>(pass: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(pass)
}

fn give<const D: usize>(data: TensorData, device: &Device) -> Tensor<D> {
    Tensor::from_data(data, (device, DType::F32))
}

fn numbers(data: &TensorData) -> &[f32] {
    data.as_slice().expect("the model's tensors are f32")
}

fn numbers_mut(data: &mut TensorData) -> &mut [f32] {
    data.as_mut_slice().expect("the model's tensors are f32")
}

/// See [`super::Passes::rms_norm`].
pub(super) fn rms_norm(x: Tensor<2>, weight: &Tensor<2>, eps: f32) -> (Tensor<2>, Tensor<2>) {
    let (device, [n_rows, width]) = (x.device(), x.dims());
    let x = x.into_data();
    let weight = weight.to_data();
    let mut y = vec![0.0; n_rows * width];
    vectorised(|| norm_rows(numbers(&x), numbers(&weight), eps, &mut y));
    (give(x, &device), give(TensorData::new(y, [n_rows, width]), &device))
}

#[inline(always)]
fn norm_rows(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let width = weight.len();
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let scale = 1.0 / (dot(x, x) / width as f32 + eps).sqrt();
        for ((y, &x), &weight) in y.iter_mut().zip(x).zip(weight) {
            *y = x * scale * weight;
        }
    }
}

/// See [`super::Passes::add_rms_norm`].
pub(super) fn add_rms_norm(x: Tensor<2>, branch: Tensor<2>, weight: &Tensor<2>, eps: f32) -> [Tensor<2>; 3] {
    let (device, [n_rows, width]) = (x.device(), x.dims());
    let (x, mut added) = (x.into_data(), branch.into_data());
    let weight = weight.to_data();
    let mut y = vec![0.0; n_rows * width];
    vectorised(|| {
        let added = numbers_mut(&mut added);
        for (added, &x) in added.iter_mut().zip(numbers(&x)) {
            *added += x;
        }
        norm_rows(added, numbers(&weight), eps, &mut y);
    });
    [give(x, &device), give(added, &device), give(TensorData::new(y, [n_rows, width]), &device)]
}

/// See [`super::Passes::rms_norm_backward`].
pub(super) fn rms_norm_backward(
    dy: Tensor<2>,
    x: Tensor<2>,
    weight: &Tensor<2>,
    eps: f32,
    skip: Tensor<2>,
) -> (Tensor<2>, Tensor<2>) {
    let (device, width) = (x.device(), x.dims()[1]);
    let (dy, x, weight) = (dy.into_data(), x.into_data(), weight.to_data());
    let mut dx = skip.into_data();
    let mut d_weight = vec![0.0; width];
    vectorised(|| {
        let weight = numbers(&weight);
        let rows = numbers(&dy).chunks_exact(width).zip(numbers(&x).chunks_exact(width));
        let mut weighted = vec![0.0; width];
        for ((dy, x), dx) in rows.zip(numbers_mut(&mut dx).chunks_exact_mut(width)) {
            let scale = 1.0 / (dot(x, x) / width as f32 + eps).sqrt();
            for ((to, &dy), &weight) in weighted.iter_mut().zip(dy).zip(weight) {
                *to = dy * weight;
            }
            let along = dot(&weighted, x) * scale * scale * scale / width as f32;
            for ((dx, &weighted), &x) in dx.iter_mut().zip(&weighted).zip(x) {
                *dx += scale * weighted - along * x;
            }
            for ((d_weight, &dy), &x) in d_weight.iter_mut().zip(dy).zip(x) {
                *d_weight += dy * x * scale;
            }
        }
    });
    (give(dx, &device), give(TensorData::new(d_weight, [1, width]), &device))
}

/// See [`super::Passes::split_heads`].
pub(super) fn split_heads(x: Tensor<2>, shape: HeadShape, rope: Option<&Rope>, factor: f32) -> Tensor<4> {
    let device = x.device();
    let HeadShape { batch, len, heads, width } = shape;
    let x = x.into_data();
    let mut out = vec![0.0; batch * len * heads * width];
    vectorised(|| {
        let x = numbers(&x);
        for (position, row) in x.chunks_exact(heads * width).enumerate() {
            let (sequence, t) = (position / len, position % len);
            for (head, from) in row.chunks_exact(width).enumerate() {
                let at = ((sequence * heads + head) * len + t) * width;
                rotate(from, &mut out[at..at + width], rope.map(|rope| rope.at(t)), 1.0, factor);
            }
        }
    });
    give(TensorData::new(out, [batch, heads, len, width]), &device)
}

/// See [`super::Passes::merge_heads`].
pub(super) fn merge_heads(x: Tensor<4>, rope: Option<&Rope>, factor: f32) -> Tensor<2> {
    let device = x.device();
    let [batch, heads, len, width] = x.dims();
    let x = x.into_data();
    let mut out = vec![0.0; batch * len * heads * width];
    vectorised(|| {
        let x = numbers(&x);
        for (position, row) in out.chunks_exact_mut(heads * width).enumerate() {
            let (sequence, t) = (position / len, position % len);
            for (head, to) in row.chunks_exact_mut(width).enumerate() {
                let at = ((sequence * heads + head) * len + t) * width;
                rotate(&x[at..at + width], to, rope.map(|rope| rope.at(t)), -1.0, factor);
            }
        }
    });
    give(TensorData::new(out, [batch * len, heads * width]), &device)
}

/// Rotates the pair (i, i + half) of a head by its angle, forwards or (`turn` −1) back, and scales it.
#[inline(always)]
fn rotate(from: &[f32], to: &mut [f32], angles: Option<(&[f32], &[f32])>, turn: f32, factor: f32) {
    let Some((cos, sin)) = angles else {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = from * factor;
        }
        return;
    };
    let half = cos.len();
    let (from_low, from_high) = from.split_at(half);
    let (to_low, to_high) = to.split_at_mut(half);
    for i in 0..half {
        let (low, high) = (from_low[i] * factor, from_high[i] * factor);
        to_low[i] = low * cos[i] - high * sin[i] * turn;
        to_high[i] = high * cos[i] + low * sin[i] * turn;
    }
}

/// See [`super::Passes::causal_softmax`].
pub(super) fn causal_softmax(scores: Tensor<4>, len: usize) -> Tensor<4> {
    let device = scores.device();
    let mut scores = scores.into_data();
    vectorised(|| {
        for (row_idx, row) in numbers_mut(&mut scores).chunks_exact_mut(len).enumerate() {
            let (seen, future) = row.split_at_mut(row_idx % len + 1);
            softmax_row(seen);
            future.fill(0.0);
        }
    });
    give(scores, &device)
}

/// Replaces a row by its softmax; returns (largest, Σ e^(x − largest)).
#[inline(always)]
fn softmax_row(row: &mut [f32]) -> (f32, f32) {
    let top = max(row);
    for x in row.iter_mut() {
        *x = exp(*x - top);
    }
    let total = sum(row);
    let scale = 1.0 / total;
    for x in row.iter_mut() {
        *x *= scale;
    }
    (top, total)
}

/// See [`super::Passes::causal_softmax_backward`].
pub(super) fn causal_softmax_backward(d_probs: Tensor<4>, probs: Tensor<4>, len: usize) -> Tensor<4> {
    let device = d_probs.device();
    let (mut d_probs, probs) = (d_probs.into_data(), probs.into_data());
    vectorised(|| {
        let rows = numbers_mut(&mut d_probs).chunks_exact_mut(len).zip(numbers(&probs).chunks_exact(len));
        for (row_idx, (d_row, row)) in rows.enumerate() {
            let (seen, future) = d_row.split_at_mut(row_idx % len + 1);
            let along = dot(seen, row);
            for (d, &p) in seen.iter_mut().zip(row) {
                *d = p * (*d - along);
            }
            future.fill(0.0);
        }
    });
    give(d_probs, &device)
}

/// See [`super::Passes::swiglu`].
pub(super) fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> [Tensor<2>; 3] {
    let (device, shape) = (gate.device(), gate.dims());
    let (gate, up) = (gate.into_data(), up.into_data());
    let mut out = vec![0.0; shape[0] * shape[1]];
    vectorised(|| {
        for ((out, &gate), &up) in out.iter_mut().zip(numbers(&gate)).zip(numbers(&up)) {
            *out = gate * sigmoid(gate) * up;
        }
    });
    [give(gate, &device), give(up, &device), give(TensorData::new(out, shape), &device)]
}

/// See [`super::Passes::swiglu_backward`].
pub(super) fn swiglu_backward(d_out: Tensor<2>, gate: Tensor<2>, up: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let device = gate.device();
    let (d_out, mut gate, mut up) = (d_out.into_data(), gate.into_data(), up.into_data());
    vectorised(|| {
        let pairs = numbers_mut(&mut gate).iter_mut().zip(numbers_mut(&mut up));
        for ((gate, up), &d) in pairs.zip(numbers(&d_out)) {
            let share = sigmoid(*gate);
            let silu = *gate * share;
            let d_gate = d * *up * (share + silu * (1.0 - share));
            *up = d * silu;
            *gate = d_gate;
        }
    });
    (give(gate, &device), give(up, &device))
}

/// See [`super::Passes::cross_entropy`].
pub(super) fn cross_entropy(logits: Tensor<2>, targets: &Tensor<1, Int>, factor: f32) -> (Vec<f64>, Tensor<2>) {
    let (device, vocab) = (logits.device(), logits.dims()[1]);
    let mut logits = logits.into_data();
    let targets = targets.to_data_as::<i64>();
    let targets = targets.as_slice::<i64>().expect("just converted");
    let mut losses = Vec::with_capacity(targets.len());
    vectorised(|| {
        for (row, &target) in numbers_mut(&mut logits).chunks_exact_mut(vocab).zip(targets) {
            let target = usize::try_from(target).expect("tokens are below the vocabulary's size");
            let logit = row[target];
            let (top, total) = softmax_row(row);
            losses.push(f64::from(total).ln() + f64::from(top) - f64::from(logit));
            row[target] -= 1.0;
            for x in row.iter_mut() {
                *x *= factor;
            }
        }
    });
    (losses, give(logits, &device))
}

/// See [`super::Passes::square_norm`].
pub(super) fn square_norm(tensor: Tensor<2>) -> (f64, Tensor<2>) {
    let (device, width) = (tensor.device(), tensor.dims()[1]);
    let data = tensor.into_data();
    let total = vectorised(|| numbers(&data).chunks_exact(width).map(|row| f64::from(dot(row, row))).sum());
    (total, give(data, &device))
}

/// See [`super::Passes::adamw`].
pub(super) fn adamw(
    param: Tensor<2>,
    grad: Tensor<2>,
    moments: Moments,
    step: &super::AdamWStep,
) -> (Tensor<2>, Moments) {
    let device = param.device();
    let (mut param, grad) = (param.into_data(), grad.into_data());
    let (mut first, mut second) = (moments.first.into_data(), moments.second.into_data());
    vectorised(|| {
        let state = numbers_mut(&mut first).iter_mut().zip(numbers_mut(&mut second));
        let values = numbers_mut(&mut param).iter_mut().zip(numbers(&grad));
        for ((param, &grad), (first, second)) in values.zip(state) {
            let grad = grad * step.grad_factor;
            *first += (grad - *first) * step.first_share;
            *second = *second * step.second_keep + grad * grad * step.second_share;
            let root = second.sqrt() / step.root_divisor + step.eps;
            *param = *param * step.param_keep - step.rate * (*first / root);
        }
    });
    (give(param, &device), Moments { first: give(first, &device), second: give(second, &device) })
}
