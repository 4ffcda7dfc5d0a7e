//! The one list of a model's tensors: names, shapes, order. θ, digest, payload, checkpoint and optimiser all follow it.
//!
//! Names and shapes are Hugging Face's `LlamaForCausalLM` state dict in its own order (a `Linear` is `[out, in]`), so that a
//! checkpoint needs no translation and the order is one that others already agree on.

use crate::run_spec::ModelSpec;

/// Tensors of one decoder block.
pub const TENSORS_PER_BLOCK: usize = 9;

/// Every trainable tensor as (Hugging Face name, shape), in canonical order: embedding, blocks, final norm, and the head
/// unless it is tied. Norms have one dimension, everything else two.
#[must_use]
pub fn tensors(spec: &ModelSpec) -> Vec<(String, Vec<usize>)> {
    let d = spec.d_model;
    let d_kv = d / spec.n_heads * spec.n_kv_heads;
    let mut list = vec![("model.embed_tokens.weight".to_owned(), vec![spec.vocab_size, d])];
    for layer in 0..spec.n_layers {
        let block: [(&str, Vec<usize>); TENSORS_PER_BLOCK] = [
            ("self_attn.q_proj", vec![d, d]),
            ("self_attn.k_proj", vec![d_kv, d]),
            ("self_attn.v_proj", vec![d_kv, d]),
            ("self_attn.o_proj", vec![d, d]),
            ("mlp.gate_proj", vec![spec.d_ff, d]),
            ("mlp.up_proj", vec![spec.d_ff, d]),
            ("mlp.down_proj", vec![d, spec.d_ff]),
            ("input_layernorm", vec![d]),
            ("post_attention_layernorm", vec![d]),
        ];
        list.extend(block.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    list.push(("model.norm.weight".to_owned(), vec![d]));
    if !spec.tied_head {
        list.push(("lm_head.weight".to_owned(), vec![spec.vocab_size, d]));
    }
    list
}

/// Trainable numbers, a tied head counted once.
#[must_use]
pub fn n_params(spec: &ModelSpec) -> u64 {
    tensors(spec).iter().map(|(_, shape)| shape.iter().map(|&side| side as u64).product::<u64>()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preset(text: &str) -> ModelSpec {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn every_preset_has_the_size_of_its_name() {
        for (text, expected) in [
            (include_str!("../../configs/models/tiny.toml"), 1_000_576),
            (include_str!("../../configs/models/small.toml"), 15_733_632),
            (include_str!("../../configs/models/160m.toml"), 162_417_408),
            (include_str!("../../configs/models/1b.toml"), 1_100_048_384),
            (include_str!("../../configs/models/8b.toml"), 8_030_261_248),
            (include_str!("../../configs/models/covenant-72b.toml"), 70_599_843_840),
        ] {
            assert_eq!(n_params(&preset(text)), expected, "{text}");
        }
    }

    #[test]
    fn an_untied_covenant_has_the_number_its_report_names() {
        let spec = ModelSpec { tied_head: false, ..preset(include_str!("../../configs/models/covenant-72b.toml")) };
        assert_eq!(n_params(&spec), 72_747_327_488);
    }

    #[test]
    fn names_are_unique_and_the_head_is_listed_only_when_it_is_its_own() {
        let tied = preset(include_str!("../../configs/models/tiny.toml"));
        let untied = ModelSpec { tied_head: false, ..tied.clone() };
        let names: Vec<String> = tensors(&untied).into_iter().map(|(name, _)| name).collect();
        let mut unique = names.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), names.len());
        assert_eq!(names.last().map(String::as_str), Some("lm_head.weight"));
        assert_eq!(tensors(&tied).len() + 1, names.len());
    }
}
