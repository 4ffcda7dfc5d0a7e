//! What the tests of this folder share: layouts, noise that the reference script makes too, and its golden bytes.

mod encode;
mod outer_step;
pub mod plain;
mod properties;
mod read;
mod record;

use super::*;
use crate::run_spec::{Aggregation, Quantiser, SparseSpec};

/// Written by `xtask/reference/sparseloco.py`.
const GOLDEN: &str = include_str!("../../../tests/golden/sparseloco.txt");

pub const QUANTISERS: [(Quantiser, &str); 3] =
    [(Quantiser::OneBit, "one-bit"), (Quantiser::TwoBit, "two-bit"), (Quantiser::SigmaBins, "sigma-bins")];

/// The bytes of one line of the golden file.
pub fn golden(name: &str) -> Vec<u8> {
    let hex = GOLDEN.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).expect(name);
    let hex = hex.trim_matches('-');
    (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
}

pub fn layout(shapes: &[&[usize]]) -> Layout {
    let name = |(i, shape): (usize, &&[usize])| TensorShape { name: format!("t{i}"), shape: shape.to_vec() };
    Layout::new(shapes.iter().enumerate().map(name).collect()).unwrap()
}

/// The reference script's layout: four padded blocks and one padded run.
pub fn golden_layout() -> Layout {
    let tensor = |name: &str, shape: &[usize]| TensorShape { name: name.into(), shape: shape.to_vec() };
    Layout::new(vec![tensor("w", &[70, 65]), tensor("g", &[100])]).unwrap()
}

pub fn spec(quantiser: Quantiser, keep_per_chunk: usize) -> SparseSpec {
    SparseSpec { keep_per_chunk, error_decay: 0.95, lr_outer: 1.0, quantiser, aggregation: Aggregation::MeanOfSenders }
}

/// The reference script's noise: uniform in ±2^-7, exact in f32.
pub fn noise(i: usize, seed: u32) -> f32 {
    let mut x = (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(2_246_822_519));
    x = (x ^ x >> 16).wrapping_mul(2_146_121_005);
    x = (x ^ x >> 15).wrapping_mul(2_221_713_035);
    x ^= x >> 16;
    ((x >> 8) as f32 - 8_388_608.0) / 1_073_741_824.0
}

/// Noise for every parameter, numbered through all tensors in row-major order; padding zero.
pub fn noise_of(layout: &Layout, seed: u32) -> Vec<f32> {
    let mut flat = vec![0.0; layout.flat_len()];
    let mut start = 0;
    for (tensor_idx, tensor) in layout.tensors().iter().enumerate() {
        let len: usize = tensor.shape.iter().product();
        let row_major: Vec<f32> = (start..start + len).map(|i| noise(i, seed)).collect();
        layout.gather(tensor_idx, &row_major, &mut flat);
        start += len;
    }
    flat
}

/// Noise whose values are mostly small and sometimes large, as pseudo-gradients are.
pub fn heavy_noise_of(layout: &Layout, seed: u32) -> Vec<f32> {
    noise_of(layout, seed).into_iter().map(|x| x * x * x * 65_536.0).collect()
}

/// A contribution of noise.
pub fn some_body(layout: &Layout, spec: &SparseSpec, seed: u32) -> Body {
    encode(layout, spec, &mut vec![0.0; layout.flat_len()], &heavy_noise_of(layout, seed)).unwrap().body
}
