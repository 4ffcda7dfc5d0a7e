//! Where a run begins: the layout of its parameters and θ₀, both functions of the run spec alone.

use crate::model::{geometry, initial};
use crate::run_spec::ModelSpec;
use crate::sparseloco::{Layout, LayoutError, TensorShape};

/// How the model's parameters are cut into chunks.
///
/// # Errors
/// When the model has more chunks than a layout may.
pub fn layout(model: &ModelSpec) -> Result<Layout, LayoutError> {
    let tensors = geometry::tensors(model).into_iter();
    Layout::new(tensors.map(|(name, shape)| TensorShape { name, shape }).collect())
}

/// θ₀, chunk-major: bit-equal on every machine.
#[must_use]
pub fn theta(model: &ModelSpec, seed: u64, layout: &Layout) -> Vec<f32> {
    let mut theta = vec![0.0; layout.flat_len()];
    for idx in 0..layout.tensors().len() {
        layout.gather(idx, &initial::init_tensor(model, seed, idx), &mut theta);
    }
    theta
}
