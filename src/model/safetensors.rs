//! Checkpoints that other programs read: safetensors bytes with Hugging Face's names, and the `config.json` that goes with
//! them, so that `LlamaForCausalLM.from_pretrained` loads a folder of the two.

use std::borrow::Cow;

use ::safetensors::tensor::{Dtype, SafeTensors, View, serialize};

use super::geometry;
use crate::run_spec::ModelSpec;

/// Why bytes are not a checkpoint of this model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Not safetensors at all.
    #[error("not safetensors: {reason}")]
    Malformed {
        /// What the parser says.
        reason: String,
    },
    /// A tensor of the model is not there.
    #[error("tensor `{name}` is missing")]
    Missing {
        /// Its Hugging Face name.
        name: String,
    },
    /// A tensor of another shape or type: a checkpoint of another model.
    #[error("tensor `{name}` is {found}, the model has {expected}")]
    Mismatch {
        /// Its Hugging Face name.
        name: String,
        /// Type and shape in the checkpoint.
        found: String,
        /// Type and shape in the model.
        expected: String,
    },
}

struct HostTensor<'a> {
    shape: Vec<usize>,
    values: &'a [f32],
}

impl View for HostTensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        self.values.len() * 4
    }
}

/// Safetensors bytes of a model; `tensor(i)` is the i-th of [`geometry::tensors`], row-major.
///
/// # Panics
/// When a tensor has not the length of its shape.
#[must_use]
pub fn to_bytes<'a>(spec: &ModelSpec, tensor: impl Fn(usize) -> &'a [f32]) -> Vec<u8> {
    let host = |(idx, (name, shape)): (usize, (String, Vec<usize>))| {
        let values = tensor(idx);
        assert_eq!(values.len(), shape.iter().product::<usize>(), "length of {name}");
        (name, HostTensor { shape, values })
    };
    let tensors = geometry::tensors(spec).into_iter().enumerate().map(host);
    // `transformers` refuses a file that does not say which framework's layout it has.
    let format = [("format".to_owned(), "pt".to_owned())].into();
    serialize(tensors, Some(format)).expect("names are unique and lengths fit their shapes")
}

/// The tensors of a checkpoint in canonical order. Tensors that the model does not have are passed over: some exporters
/// write a tied head twice.
///
/// # Errors
/// Which tensor does not fit: the checkpoint is of another model.
pub fn from_bytes(spec: &ModelSpec, bytes: &[u8]) -> Result<Vec<Vec<f32>>, CheckpointError> {
    let malformed = |error: ::safetensors::SafeTensorError| CheckpointError::Malformed { reason: error.to_string() };
    let checkpoint = SafeTensors::deserialize(bytes).map_err(malformed)?;
    let read = |(name, shape): (String, Vec<usize>)| {
        let Ok(tensor) = checkpoint.tensor(&name) else { return Err(CheckpointError::Missing { name }) };
        if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
            let found = format!("{:?} {:?}", tensor.dtype(), tensor.shape());
            return Err(CheckpointError::Mismatch { name, found, expected: format!("F32 {shape:?}") });
        }
        Ok(tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    };
    geometry::tensors(spec).into_iter().map(read).collect()
}

/// The text of `config.json` for `LlamaForCausalLM`.
#[must_use]
pub fn config_json(spec: &ModelSpec) -> String {
    let ModelSpec { vocab_size, d_model, n_layers, n_heads, n_kv_heads, d_ff, context_len, .. } = spec;
    let head_dim = d_model / n_heads;
    let ModelSpec { rope_theta, norm_eps, tied_head, .. } = spec;
    format!(
        r#"{{
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "vocab_size": {vocab_size},
  "hidden_size": {d_model},
  "intermediate_size": {d_ff},
  "num_hidden_layers": {n_layers},
  "num_attention_heads": {n_heads},
  "num_key_value_heads": {n_kv_heads},
  "head_dim": {head_dim},
  "max_position_embeddings": {context_len},
  "rope_theta": {rope_theta:?},
  "rms_norm_eps": {norm_eps:?},
  "tie_word_embeddings": {tied_head},
  "hidden_act": "silu",
  "attention_bias": false,
  "mlp_bias": false,
  "initializer_range": {deviation:?},
  "torch_dtype": "float32"
}}
"#,
        deviation = super::initial::STANDARD_DEVIATION,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::initial::init;

    fn tiny() -> ModelSpec {
        toml::from_str(include_str!("../../configs/models/tiny.toml")).unwrap()
    }

    #[test]
    fn a_checkpoint_gives_back_every_bit() {
        let tensors = init(&tiny(), 3);
        let bytes = to_bytes(&tiny(), |idx| &tensors[idx]);
        assert_eq!(from_bytes(&tiny(), &bytes).unwrap(), tensors);
    }

    #[test]
    fn a_checkpoint_of_another_model_is_refused_by_name() {
        let tensors = init(&tiny(), 3);
        let bytes = to_bytes(&tiny(), |idx| &tensors[idx]);
        let wider = ModelSpec { d_ff: 384, ..tiny() };
        let name = "model.layers.0.mlp.gate_proj.weight".to_owned();
        let (found, expected) = ("F32 [352, 128]".to_owned(), "F32 [384, 128]".to_owned());
        assert_eq!(from_bytes(&wider, &bytes), Err(CheckpointError::Mismatch { name, found, expected }));
        let untied = ModelSpec { tied_head: false, ..tiny() };
        let missing = CheckpointError::Missing { name: "lm_head.weight".to_owned() };
        assert_eq!(from_bytes(&untied, &bytes), Err(missing));
        assert!(matches!(from_bytes(&tiny(), &bytes[..100]), Err(CheckpointError::Malformed { .. })));
    }

    #[test]
    fn the_config_is_json_with_the_models_numbers() {
        let config: serde_json::Value = serde_json::from_str(&config_json(&tiny())).unwrap();
        assert_eq!(config["hidden_size"], 128);
        assert_eq!(config["rope_theta"], 10_000.0);
        assert_eq!(config["rms_norm_eps"], 1e-5);
        assert_eq!(config["tie_word_embeddings"], true);
    }
}
