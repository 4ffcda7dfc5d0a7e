//! The parameters a run starts from, as a function of the run's seed alone: every node computes the same bits.
//!
//! A library's normal distribution goes through logarithms and cosines whose last bit differs between platforms. Here a
//! draw is the sum of four 16-bit numbers, which is an integer, times one constant: near enough to a normal distribution
//! (its excess kurtosis is −0.3, its largest value 3.5 σ) and exact everywhere.

use crate::model::geometry;
use crate::run_spec::ModelSpec;

/// Standard deviation of every matrix, as in Hugging Face's `initializer_range`.
pub const STANDARD_DEVIATION: f64 = 0.02;

/// σ of the sum of four uniform 16-bit numbers, √((2³² − 1) / 3).
const SUM_DEVIATION: f64 = 37_837.227_155_866_21;

/// Twice the mean of two 16-bit numbers: the mean of the sum of four.
const SUM_MEAN: i32 = 2 * 65_535;

/// Bytes drawn at once.
const BLOCK_BYTES: usize = 1 << 16;

/// The initial values of every tensor, in canonical order, row-major.
#[must_use]
pub fn init(spec: &ModelSpec, seed: u64) -> Vec<Vec<f32>> {
    (0..geometry::tensors(spec).len()).map(|idx| init_tensor(spec, seed, idx)).collect()
}

/// The initial values of the `idx`-th tensor: ones for a norm, else draws of σ = [`STANDARD_DEVIATION`].
///
/// # Panics
/// When there is no such tensor.
#[must_use]
pub fn init_tensor(spec: &ModelSpec, seed: u64, idx: usize) -> Vec<f32> {
    let (name, shape) = geometry::tensors(spec).swap_remove(idx);
    let len = shape.iter().product();
    if shape.len() == 1 { vec![1.0; len] } else { draws(seed, &name, len) }
}

fn draws(seed: u64, name: &str, len: usize) -> Vec<f32> {
    let mut hasher = blake3::Hasher::new_derive_key("convoke 2026-11 initial parameters v1");
    hasher.update(&seed.to_le_bytes());
    hasher.update(name.as_bytes());
    let mut stream = hasher.finalize_xof();
    let factor = (STANDARD_DEVIATION / SUM_DEVIATION) as f32;
    let mut values = Vec::with_capacity(len);
    let mut block = [0; BLOCK_BYTES];
    while values.len() < len {
        stream.fill(&mut block);
        let wanted = (len - values.len()).min(BLOCK_BYTES / 8);
        values.extend(block.as_chunks::<8>().0[..wanted].iter().map(|bytes| draw(bytes, factor)));
    }
    values
}

/// Both factors are exact in f32 (the sum is below 2¹⁸), so the product is rounded once, the same way everywhere.
fn draw(bytes: &[u8; 8], factor: f32) -> f32 {
    let sum: i32 = bytes.as_chunks::<2>().0.iter().map(|pair| i32::from(u16::from_le_bytes(*pair))).sum();
    (sum - SUM_MEAN) as f32 * factor
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> ModelSpec {
        toml::from_str(include_str!("../../configs/models/tiny.toml")).unwrap()
    }

    #[test]
    fn the_same_seed_gives_the_same_bits_on_every_machine() {
        let mut hasher = blake3::Hasher::new();
        for tensor in init(&tiny(), 7) {
            for value in tensor {
                hasher.update(&value.to_le_bytes());
            }
        }
        assert_eq!(&hasher.finalize().to_hex()[..16], "40a77d5132c6c1f9");
    }

    #[test]
    fn matrices_are_centred_with_the_stated_deviation_and_norms_are_one() {
        let tensors = init(&tiny(), 1);
        for ((name, shape), values) in geometry::tensors(&tiny()).iter().zip(&tensors) {
            assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
            if shape.len() == 1 {
                assert!(values.iter().all(|&value| value == 1.0), "{name}");
                continue;
            }
            let n = values.len() as f64;
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let deviation = (values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n).sqrt();
            assert!(mean.abs() < 4.0 * STANDARD_DEVIATION / n.sqrt(), "{name}: mean {mean}");
            assert!((deviation / STANDARD_DEVIATION - 1.0).abs() < 0.03, "{name}: deviation {deviation}");
        }
    }

    #[test]
    fn seeds_and_tensors_have_streams_of_their_own() {
        assert_ne!(init_tensor(&tiny(), 1, 0), init_tensor(&tiny(), 2, 0));
        assert_ne!(init_tensor(&tiny(), 1, 2), init_tensor(&tiny(), 1, 3));
    }
}
