//! The passes as single loops over the buffers of a CPU backend.
//!
//! A tensor that nobody else holds gives up its buffer and takes it back without a copy, so each pass reads and writes
//! memory once, where a chain of tensor operations would do so five to ten times.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::{AdamWStep, HeadShape, Moments, rows};
use crate::model::rope::Rope;

fn give<const D: usize>(data: TensorData, device: &Device) -> Tensor<D> {
    Tensor::from_data(data, (device, DType::F32))
}

fn numbers(data: &TensorData) -> &[f32] {
    data.as_slice().expect("the model's tensors are f32")
}

fn numbers_mut(data: &mut TensorData) -> &mut [f32] {
    data.as_mut_slice().expect("the model's tensors are f32")
}

/// A tensor that `fill` writes.
fn filled<const D: usize>(shape: [usize; D], device: &Device, fill: impl FnOnce(&mut [f32])) -> Tensor<D> {
    let mut values = vec![0.0; shape.iter().product()];
    fill(&mut values);
    give(TensorData::new(values, shape), device)
}

/// See [`super::Passes::rms_norm`].
pub(super) fn rms_norm(x: Tensor<2>, weight: &Tensor<2>, eps: f32) -> (Tensor<2>, Tensor<2>) {
    let (device, shape) = (x.device(), x.dims());
    let (x, weight) = (x.into_data(), weight.to_data());
    let y = filled(shape, &device, |y| rows::rms_norm(numbers(&x), numbers(&weight), eps, y));
    (give(x, &device), y)
}

/// See [`super::Passes::add_rms_norm`].
pub(super) fn add_rms_norm(x: Tensor<2>, branch: Tensor<2>, weight: &Tensor<2>, eps: f32) -> [Tensor<2>; 3] {
    let (device, shape) = (x.device(), x.dims());
    let (x, mut sum, weight) = (x.into_data(), branch.into_data(), weight.to_data());
    let y = filled(shape, &device, |y| {
        rows::add_rms_norm(numbers(&x), numbers_mut(&mut sum), numbers(&weight), eps, y);
    });
    [give(x, &device), give(sum, &device), y]
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
    let (dy, x, weight, mut dx) = (dy.into_data(), x.into_data(), weight.to_data(), skip.into_data());
    let d_weight = rows::rms_norm_backward(numbers(&dy), numbers(&x), numbers(&weight), eps, numbers_mut(&mut dx));
    (give(dx, &device), give(TensorData::new(d_weight, [1, width]), &device))
}

/// See [`super::Passes::split_heads`].
pub(super) fn split_heads(x: Tensor<2>, shape: HeadShape, rope: Option<&Rope>, factor: f32) -> Tensor<4> {
    let device = x.device();
    let x = x.into_data();
    filled([shape.batch, shape.heads, shape.len, shape.width], &device, |out| {
        rows::split_heads(numbers(&x), shape, rope.map(Rope::host), factor, out);
    })
}

/// See [`super::Passes::merge_heads`].
pub(super) fn merge_heads(x: Tensor<4>, rope: Option<&Rope>, factor: f32) -> Tensor<2> {
    let device = x.device();
    let [batch, heads, len, width] = x.dims();
    let x = x.into_data();
    filled([batch * len, heads * width], &device, |out| {
        let shape = HeadShape { batch, len, heads, width };
        rows::merge_heads(numbers(&x), shape, rope.map(Rope::host), factor, out);
    })
}

/// See [`super::Passes::causal_softmax`].
pub(super) fn causal_softmax(scores: Tensor<4>, len: usize) -> Tensor<4> {
    let device = scores.device();
    let mut scores = scores.into_data();
    rows::causal_softmax(numbers_mut(&mut scores), len);
    give(scores, &device)
}

/// See [`super::Passes::causal_softmax_backward`].
pub(super) fn causal_softmax_backward(d_probs: Tensor<4>, probs: Tensor<4>, len: usize) -> Tensor<4> {
    let device = d_probs.device();
    let (mut d_probs, probs) = (d_probs.into_data(), probs.into_data());
    rows::causal_softmax_backward(numbers_mut(&mut d_probs), numbers(&probs), len);
    give(d_probs, &device)
}

/// See [`super::Passes::swiglu`].
pub(super) fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> [Tensor<2>; 3] {
    let (device, shape) = (gate.device(), gate.dims());
    let (gate, up) = (gate.into_data(), up.into_data());
    let out = filled(shape, &device, |out| rows::swiglu(numbers(&gate), numbers(&up), out));
    [give(gate, &device), give(up, &device), out]
}

/// See [`super::Passes::swiglu_backward`].
pub(super) fn swiglu_backward(d_out: Tensor<2>, gate: Tensor<2>, up: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let device = gate.device();
    let (d_out, mut gate, mut up) = (d_out.into_data(), gate.into_data(), up.into_data());
    rows::swiglu_backward(numbers(&d_out), numbers_mut(&mut gate), numbers_mut(&mut up));
    (give(gate, &device), give(up, &device))
}

/// See [`super::Passes::cross_entropy`].
pub(super) fn cross_entropy(logits: Tensor<2>, targets: &Tensor<1, Int>, factor: f32) -> (Vec<f64>, Tensor<2>) {
    let device = logits.device();
    let (mut logits, targets) = (logits.into_data(), targets.to_data_as::<i64>());
    let losses = rows::cross_entropy(numbers_mut(&mut logits), targets.as_slice().expect("just converted"), factor);
    (losses, give(logits, &device))
}

/// See [`super::Passes::square_norm`].
pub(super) fn square_norm(tensor: Tensor<2>) -> (f64, Tensor<2>) {
    let (device, width) = (tensor.device(), tensor.dims()[1]);
    let data = tensor.into_data();
    (rows::square_norm(numbers(&data), width), give(data, &device))
}

/// See [`super::Passes::adamw`].
pub(super) fn adamw(param: Tensor<2>, grad: Tensor<2>, moments: Moments, step: &AdamWStep) -> (Tensor<2>, Moments) {
    let device = param.device();
    let (mut param, grad) = (param.into_data(), grad.into_data());
    let (mut first, mut second) = (moments.first.into_data(), moments.second.into_data());
    let averages = [numbers_mut(&mut first), numbers_mut(&mut second)];
    rows::adamw(numbers_mut(&mut param), numbers(&grad), averages, step);
    (give(param, &device), Moments { first: give(first, &device), second: give(second, &device) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_that_nobody_else_holds_gives_up_its_buffer_without_a_copy() {
        let device = Device::flex();
        let product = Tensor::<2>::ones([64, 64], &device).matmul(Tensor::<2>::ones([64, 64], &device));
        let data = product.into_data();
        let place = numbers(&data).as_ptr();
        let again = give::<2>(data, &device).reshape([32, 128]).into_data();
        assert_eq!(numbers(&again).as_ptr(), place);
    }
}
