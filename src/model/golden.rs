//! The claim that this is LLaMA: equality with PyTorch on `tests/golden/llama.json`, which
//! `xtask/reference/llama_goldens.py` writes in double precision.

#![cfg(test)]

use burn::tensor::{Device, Tensor};
use serde_json::Value;

use super::geometry;
use super::llama::{Batch, Llama};
use super::optimiser::AdamW;
use super::passes::Passes;
use crate::run_spec::{InnerSpec, ModelSpec};

/// The reference's uniform numbers in [−0.5, 0.5).
fn noise(index: u64, salt: u64) -> f64 {
    let mut x = (index.wrapping_mul(2_654_435_761).wrapping_add(salt * 40_503 + 12_345) & 0xffff_ffff) as u32;
    x ^= x >> 15;
    x = x.wrapping_mul(2_246_822_519);
    x ^= x >> 13;
    f64::from(x >> 8) / f64::from(1 << 24) - 0.5
}

fn weights(spec: &ModelSpec, idx: usize) -> Vec<f32> {
    let shape = &geometry::tensors(spec)[idx].1;
    let values = (0..shape.iter().product::<usize>() as u64).map(|i| noise(i, idx as u64));
    values.map(|value| if shape.len() == 1 { value * 0.5 + 1.0 } else { value } as f32).collect()
}

fn batch(spec: &ModelSpec, step: u64) -> Batch {
    let sequence_len = spec.context_len + 1;
    let token = |i| ((noise(i, 1000 + step) + 0.5) * spec.vocab_size as f64) as u32;
    Batch::new((0..4 * sequence_len as u64).map(token).collect(), sequence_len).unwrap()
}

struct Golden {
    case: Value,
    spec: ModelSpec,
    inner: InnerSpec,
}

impl Golden {
    fn all() -> Vec<Self> {
        let cases: Vec<Value> = serde_json::from_str(include_str!("../../tests/golden/llama.json")).unwrap();
        cases.into_iter().map(Self::new).collect()
    }

    fn new(case: Value) -> Self {
        let spec = serde_json::from_value(case["spec"].clone()).unwrap();
        let inner = InnerSpec {
            steps: 3,
            steps_min: 1,
            batch_sequences: 4,
            micro_batch_sequences: 2,
            lr_peak: 1e-2,
            lr_warmup_steps: 0,
            lr_decay_steps: 10,
            lr_floor_ratio: 1.0,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            clip_norm: case["clip_norm"].as_f64().unwrap(),
        };
        Self { case, spec, inner }
    }

    fn model(&self, passes: Passes) -> Llama {
        let mut model = Llama::from_tensors(&self.spec, &Device::flex(), |idx| weights(&self.spec, idx));
        model.shape.passes = passes;
        model
    }

    fn numbers(&self, key: &str) -> Vec<f64> {
        serde_json::from_value(self.case[key].clone()).unwrap()
    }

    fn sampled(&self, key: &str) -> Vec<Vec<f64>> {
        serde_json::from_value(self.case[key].clone()).unwrap()
    }

    fn stride(&self) -> usize {
        self.case["stride"].as_u64().unwrap() as usize
    }

    fn check(&self, what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
        let found: Vec<f32> = found.iter().copied().step_by(self.stride()).collect();
        assert_eq!(found.len(), expected.len(), "{what}");
        for (idx, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            let error = (f64::from(found) - expected).abs();
            assert!(error <= tolerance, "{what} sample {idx}: {found} is {error:.1e} from {expected}");
        }
    }
}

#[test]
fn logits_equal_pytorchs() {
    for golden in Golden::all() {
        for passes in [Passes::Host, Passes::Composed] {
            let tokens: Vec<u32> = batch(&golden.spec, 0).inputs(0).to_vec();
            let logits = golden.model(passes).logits(&tokens);
            golden.check("logit", &logits, &golden.numbers("logits"), 1e-5);
        }
    }
}

#[test]
fn the_loss_and_its_gradients_equal_pytorchs() {
    for golden in Golden::all() {
        for passes in [Passes::Host, Passes::Composed] {
            let model = golden.model(passes);
            let (loss, grads) = model.loss_and_grads(&batch(&golden.spec, 0));
            assert!((loss - golden.numbers("losses")[0]).abs() < 1e-6, "loss {loss}");
            let mean = model.losses(&batch(&golden.spec, 0)).iter().sum::<f64>() / 4.0;
            assert!((mean - loss).abs() < 1e-6, "the evaluation's loss {mean} is not the training's {loss}");
            let (norms, expected) = (golden.numbers("gradient_norms"), golden.sampled("gradients"));
            grads.export(|idx, values| {
                golden.check(&format!("gradient of tensor {idx}"), values, &expected[idx], 1e-5 * norms[idx]);
            });
        }
    }
}

#[test]
fn three_clipped_steps_of_two_micro_batches_equal_pytorchs() {
    for golden in Golden::all() {
        for passes in [Passes::Host, Passes::Composed] {
            let mut model = golden.model(passes);
            let mut optimiser = AdamW::new(&model);
            for (step, norm) in golden.numbers("norms").into_iter().enumerate() {
                let parts = batch(&golden.spec, step as u64).split(2);
                let mut sum = model.loss_and_grads(&parts[0]).1;
                sum.add(model.loss_and_grads(&parts[1]).1);
                let found = optimiser.step(&mut model, sum, 2, &golden.inner, 1e-2).unwrap();
                assert!((found - norm).abs() < 1e-5 * norm, "norm of step {step}: {found}, not {norm}");
            }
            let expected = golden.sampled("params");
            model.export(|idx, values| {
                golden.check(&format!("tensor {idx}"), values, &expected[idx], 1e-5);
            });
        }
    }
}

#[test]
fn both_forms_of_every_pass_give_the_same_model_at_a_length_that_fills_no_lane() {
    let golden = Golden::all().remove(0);
    let tokens: Vec<u32> = batch(&golden.spec, 0).inputs(0)[..7].to_vec();
    let (host, composed) = (golden.model(Passes::Host), golden.model(Passes::Composed));
    for (a, b) in host.next_logits(&tokens).into_iter().zip(composed.next_logits(&tokens)) {
        assert!((a - b).abs() < 1e-5);
    }
    let all = host.logits(&tokens);
    for (a, b) in host.next_logits(&tokens).iter().zip(&all[all.len() - golden.spec.vocab_size..]) {
        assert!((a - b).abs() < 1e-5, "one row and many go through different products");
    }
}

#[test]
fn a_later_token_does_not_change_an_earlier_logit() {
    let golden = Golden::all().remove(1);
    let model = golden.model(Passes::Host);
    let mut tokens: Vec<u32> = batch(&golden.spec, 0).inputs(0).to_vec();
    let before = model.logits(&tokens);
    *tokens.last_mut().unwrap() ^= 1;
    let after = model.logits(&tokens);
    let earlier = (tokens.len() - 1) * golden.spec.vocab_size;
    assert_eq!(before[..earlier], after[..earlier]);
    assert_ne!(before[earlier..], after[earlier..]);
}

#[test]
fn weights_come_back_from_the_device_as_they_went() {
    let golden = Golden::all().remove(1);
    let mut seen = 0;
    golden.model(Passes::Host).export(|idx, values| {
        assert_eq!(values, weights(&golden.spec, idx));
        seen += 1;
    });
    assert_eq!(seen, geometry::tensors(&golden.spec).len());
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    let golden = Golden::all().remove(0);
    let mut model = golden.model(Passes::Host);
    let before: Vec<Tensor<2>> = model.params.clone();
    let mut optimiser = AdamW::new(&model);
    let mut grads = model.loss_and_grads(&batch(&golden.spec, 0)).1;
    grads.0[3] = grads.0[3].clone().mul_scalar(f32::NAN);
    assert!(optimiser.step(&mut model, grads, 1, &golden.inner, 1e-2).is_err());
    assert_eq!(optimiser.steps_done(), 0);
    for (before, after) in before.into_iter().zip(model.params) {
        assert_eq!(before.into_data(), after.into_data());
    }
}
