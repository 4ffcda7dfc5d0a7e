//! The inner steps of a round: from θ, up to H AdamW steps on the assigned batches.
//!
//! The gradient of a batch is the sum of its micro-batches' gradients in their order, whoever computed them and in whatever
//! order they were done: a node with one worker and a node with many take the same step, bit for bit.

use super::llama::{Batch, Grads, Llama};
use super::optimiser::{AdamW, NotFinite};
use super::schedule::learning_rate;
use crate::run_spec::InnerSpec;

/// Whoever computes the gradients of a batch's micro-batches.
pub trait Replicas {
    /// Loss and gradient of each micro-batch, in the order given. When it returns, nobody else holds `model`'s tensors:
    /// the step that follows then updates them in place.
    fn gradients(&mut self, model: &Llama, micro_batches: Vec<Batch>) -> Vec<(f64, Grads)>;
}

/// One micro-batch after the other, on the caller's thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sequential;

impl Replicas for Sequential {
    fn gradients(&mut self, model: &Llama, micro_batches: Vec<Batch>) -> Vec<(f64, Grads)> {
        micro_batches.iter().map(|batch| model.loss_and_grads(batch)).collect()
    }
}

/// What one inner step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Mean loss of the batch before the step, in nats per token.
    pub loss: f64,
    /// The gradient's norm before clipping, or why the step was not taken.
    pub norm: Result<f64, NotFinite>,
    /// The learning rate of the step.
    pub lr: f64,
}

/// Takes one inner step per batch, at the learning rates of steps `first_step`, `first_step + 1`, …; stops after
/// `inner.steps`, at the end of `batches`, or as soon as `go_on`, asked before each step with the reports so far, says no.
///
/// A batch whose gradient is not finite is passed over; its step still counts for the schedule.
pub fn inner_steps(
    model: &mut Llama,
    optimiser: &mut AdamW,
    inner: &InnerSpec,
    first_step: u64,
    batches: impl IntoIterator<Item = Batch>,
    replicas: &mut dyn Replicas,
    mut go_on: impl FnMut(&[StepReport]) -> bool,
) -> Vec<StepReport> {
    let mut reports = Vec::with_capacity(inner.steps as usize);
    let mut batches = batches.into_iter();
    for step in (first_step..).take(inner.steps as usize) {
        if !go_on(&reports) {
            break;
        }
        let Some(batch) = batches.next() else { break };
        reports.push(inner_step(model, optimiser, inner, learning_rate(inner, step), &batch, replicas));
    }
    reports
}

fn inner_step(
    model: &mut Llama,
    optimiser: &mut AdamW,
    inner: &InnerSpec,
    lr: f64,
    batch: &Batch,
    replicas: &mut dyn Replicas,
) -> StepReport {
    let micro_batches = batch.split(inner.micro_batch_sequences);
    let n_micro_batches = micro_batches.len();
    let mut results = replicas.gradients(model, micro_batches).into_iter();
    let (mut loss, mut sum) = results.next().expect("a batch has a micro-batch");
    for (next_loss, next) in results {
        loss += next_loss;
        sum.add(next);
    }
    let norm = optimiser.step(model, sum, n_micro_batches, inner, lr);
    StepReport { loss: loss / n_micro_batches as f64, norm, lr }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::model::initial::init_tensor;
    use crate::run_spec::ModelSpec;

    fn spec() -> ModelSpec {
        ModelSpec {
            vocab_size: 40,
            d_model: 16,
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: 2,
            d_ff: 24,
            context_len: 12,
            rope_theta: 10_000.0,
            norm_eps: 1e-5,
            tied_head: true,
        }
    }

    fn inner() -> InnerSpec {
        InnerSpec {
            steps: 6,
            steps_min: 1,
            batch_sequences: 6,
            micro_batch_sequences: 2,
            lr_peak: 1e-2,
            lr_warmup_steps: 2,
            lr_decay_steps: 100,
            lr_floor_ratio: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
        }
    }

    fn model() -> Llama {
        Llama::from_tensors(&spec(), &Device::flex(), |idx| init_tensor(&spec(), 5, idx))
    }

    /// Batches that repeat, so that the loss must fall.
    fn batches(first: u64) -> impl Iterator<Item = Batch> {
        (first..).map(|i| {
            let token = |j: u64| ((j * 7 + i % 2 * 3) % 13) as u32;
            Batch::new((0..6 * 13).map(token).collect(), 13).unwrap()
        })
    }

    fn values(model: &Llama) -> Vec<Vec<f32>> {
        let mut all = Vec::new();
        model.export(|_, values| all.push(values.to_vec()));
        all
    }

    /// Does the micro-batches last to first, on threads, and hands them back in order.
    struct Backwards;

    impl Replicas for Backwards {
        fn gradients(&mut self, model: &Llama, micro_batches: Vec<Batch>) -> Vec<(f64, Grads)> {
            let mut results: Vec<(f64, Grads)> =
                micro_batches.iter().rev().map(|batch| model.loss_and_grads(batch)).collect();
            results.reverse();
            results
        }
    }

    #[test]
    fn the_loss_of_repeated_batches_falls() {
        let (mut model, inner) = (model(), InnerSpec { steps: 40, ..inner() });
        let mut optimiser = AdamW::new(&model);
        let reports = inner_steps(&mut model, &mut optimiser, &inner, 0, batches(0), &mut Sequential, |_| true);
        assert_eq!(reports.len(), 40);
        assert!((reports[0].loss - 40_f64.ln()).abs() < 0.1, "an untrained model guesses: {}", reports[0].loss);
        assert!(reports[39].loss < 0.5 * reports[0].loss, "{}", reports[39].loss);
    }

    #[test]
    fn who_computes_the_micro_batches_does_not_change_a_bit() {
        let run = |replicas: &mut dyn Replicas| {
            let mut model = model();
            let mut optimiser = AdamW::new(&model);
            inner_steps(&mut model, &mut optimiser, &inner(), 0, batches(0), replicas, |_| true);
            values(&model)
        };
        assert_eq!(run(&mut Sequential), run(&mut Backwards));
    }

    #[test]
    fn a_run_resumed_from_exported_state_is_the_uninterrupted_run_bit_for_bit() {
        let (mut whole, mut cut) = (model(), model());
        let mut optimiser = AdamW::new(&whole);
        inner_steps(&mut whole, &mut optimiser, &inner(), 0, batches(0), &mut Sequential, |_| true);

        let mut optimiser = AdamW::new(&cut);
        let early = |done: &[StepReport]| done.len() < 2;
        let done = inner_steps(&mut cut, &mut optimiser, &inner(), 0, batches(0), &mut Sequential, early);
        assert_eq!(done.len(), 2, "stopped between steps");
        let (mut first, mut second) = (Vec::new(), Vec::new());
        optimiser.export(|_, values| first.push(values.to_vec()), |_, values| second.push(values.to_vec()));
        let params = values(&cut);

        let mut cut = Llama::from_tensors(&spec(), &Device::flex(), |idx| params[idx].clone());
        let mut optimiser =
            AdamW::import(&cut, optimiser.steps_done(), |idx| first[idx].clone(), |idx| second[idx].clone());
        let rest = InnerSpec { steps: 4, ..inner() };
        inner_steps(&mut cut, &mut optimiser, &rest, 2, batches(2), &mut Sequential, |_| true);
        assert_eq!(values(&cut), values(&whole));
    }
}
