//! Rotary position embedding (arXiv:2104.09864) in the rotate-half form of Hugging Face's LLaMA: component i of a head is
//! paired with component i + half, not with its neighbour.

use burn::tensor::{Device, Tensor, TensorData};

use crate::run_spec::ModelSpec;

/// cos and sin of position · base^(−2i / width), for every position of the context.
#[derive(Debug, Clone)]
pub(crate) struct Rope {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// The same two tables as `[context_len, half]`, for devices other than the host.
    tables: [Tensor<2>; 2],
}

impl Rope {
    /// The angle is rounded to f32 where the reference rounds it, so that long contexts agree too.
    pub(crate) fn new(spec: &ModelSpec, device: &Device) -> Self {
        let half = spec.d_model / spec.n_heads / 2;
        let frequencies: Vec<f32> = (0..half).map(|i| spec.rope_theta.powf(-(i as f64) / half as f64) as f32).collect();
        let angles = || (0..spec.context_len).flat_map(|t| frequencies.iter().map(move |f| f64::from(t as f32 * f)));
        let cos: Vec<f32> = angles().map(|angle| angle.cos() as f32).collect();
        let sin: Vec<f32> = angles().map(|angle| angle.sin() as f32).collect();
        let table =
            |values: &Vec<f32>| Tensor::from_data(TensorData::new(values.clone(), [spec.context_len, half]), device);
        let tables = [table(&cos), table(&sin)];
        Self { half, cos, sin, tables }
    }

    /// (cos, sin) of every position, row after row, on the host.
    pub(super) fn host(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    /// (cos, sin) of the first `len` positions as `[1, len, 1, half]`.
    pub(super) fn first(&self, len: usize) -> [Tensor<4>; 2] {
        self.tables.clone().map(|table| table.narrow(0, 0, len).reshape([1, len, 1, self.half]))
    }
}
