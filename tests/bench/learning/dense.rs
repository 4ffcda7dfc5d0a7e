//! What SparseLoCo is measured against: the two ways to train together that send every parameter.

use convoke::model::llama::{Grads, Llama};
use convoke::model::optimiser::AdamW;
use convoke::model::schedule::learning_rate;

use crate::rounds::{Outer, Sent};
use crate::training::{N_PEERS, Training, on_threads};

/// AdamW, data parallel: one model, and at every inner step the mean of the peers' fp32 gradients.
pub struct DataParallel {
    model: Llama,
    optimiser: AdamW,
}

impl DataParallel {
    pub fn new(training: &Training<'_>) -> Self {
        let model = training.model();
        Self { optimiser: AdamW::new(&model), model }
    }
}

impl Outer for DataParallel {
    fn round(&mut self, training: &mut Training<'_>, round: usize) -> Sent {
        let setting = training.setting;
        let steps = setting.inner.steps as usize;
        for step in round * steps..(round + 1) * steps {
            let model = &self.model;
            let gradients =
                on_threads(setting.n_threads, training.batches(step), |batch| model.loss_and_grads(&batch).1);
            let add = |mut sum: Grads, next| {
                sum.add(next);
                sum
            };
            let sum = gradients.into_iter().reduce(add).expect("there are peers");
            let lr = learning_rate(&setting.inner, step as u64);
            let norm = self.optimiser.step(&mut self.model, sum, N_PEERS, &setting.inner, lr);
            norm.expect("training gives finite numbers");
        }
        self.model.export(|idx, values| setting.layout.gather(idx, values, &mut training.theta));
        Sent::dense(setting.layout.n_params() * steps)
    }
}

/// DiLoCo (arXiv:2311.08105): the mean of dense pseudo-gradients through SGD with Nesterov momentum, as PyTorch computes it.
pub struct DiLoCo {
    alpha: f32,
    momentum: f32,
    velocity: Vec<f32>,
}

impl DiLoCo {
    pub fn new(alpha: f32, momentum: f32, training: &Training<'_>) -> Self {
        Self { alpha, momentum, velocity: vec![0.0; training.theta.len()] }
    }
}

impl Outer for DiLoCo {
    /// v ← μ·v + Δ; θ ← θ − α·(Δ + μ·v), Δ the peers' mean.
    fn round(&mut self, training: &mut Training<'_>, round: usize) -> Sent {
        let deltas = training.deltas(round);
        for (i, (theta, velocity)) in training.theta.iter_mut().zip(&mut self.velocity).enumerate() {
            let delta = deltas.iter().map(|delta| delta[i]).sum::<f32>() / deltas.len() as f32;
            *velocity = self.momentum * *velocity + delta;
            *theta -= self.alpha * (delta + self.momentum * *velocity);
        }
        Sent::dense(training.setting.layout.n_params())
    }
}
