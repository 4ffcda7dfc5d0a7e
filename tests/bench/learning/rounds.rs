//! A whole run of one method, and what came of it.

use crate::dense::{DataParallel, DiLoCo};
use crate::method::Method;
use crate::sparse::SparseLoCo;
use crate::training::{Setting, Training};

/// What a method does with the peers' training: θ moves, something was sent.
pub trait Outer {
    /// One round, counted from 0.
    fn round(&mut self, training: &mut Training<'_>, round: usize) -> Sent;
}

/// What one peer sent in a round.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    pub canonical_bytes: f64,
    /// Under transport coding.
    pub transport_bytes: f64,
    /// Σ a² of the kept values, before quantisation.
    pub energy_kept: f64,
    /// Σ (a − Δ̂)² of them.
    pub energy_lost: f64,
}

impl Sent {
    /// So many numbers in fp32.
    pub fn dense(n_numbers: usize) -> Self {
        let bytes = 4.0 * n_numbers as f64;
        Self { canonical_bytes: bytes, transport_bytes: bytes, energy_kept: 1.0, energy_lost: 0.0 }
    }

    /// The mean of several; of nothing, zero.
    pub fn mean(all: impl ExactSizeIterator<Item = Self>) -> Self {
        let share = 1.0 / all.len().max(1) as f64;
        all.fold(Self::default(), |sum, one| Self {
            canonical_bytes: sum.canonical_bytes + share * one.canonical_bytes,
            transport_bytes: sum.transport_bytes + share * one.transport_bytes,
            energy_kept: sum.energy_kept + share * one.energy_kept,
            energy_lost: sum.energy_lost + share * one.energy_lost,
        })
    }

    /// The quantiser's relative squared error.
    pub fn relative_error(&self) -> f64 {
        self.energy_lost / self.energy_kept
    }
}

/// What came of one run.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Held-out loss after half of the rounds, nats a token.
    pub loss_half: f64,
    /// The same at the end.
    pub loss_end: f64,
    /// Mean over rounds and peers.
    pub sent: Sent,
}

/// Trains from a seed to the last round.
pub fn run(setting: &Setting, method: &Method, seed: u64) -> Outcome {
    let mut training = Training::new(setting, seed);
    let mut outer: Box<dyn Outer> = match method {
        Method::AdamW => Box::new(DataParallel::new(&training)),
        Method::DiLoCo { alpha, momentum } => Box::new(DiLoCo::new(*alpha, *momentum, &training)),
        Method::Sparse(numbers) => Box::new(SparseLoCo::new(numbers.clone(), &training)),
    };
    let n_first = setting.n_rounds / 2;
    let mut sent: Vec<Sent> = (0..n_first).map(|round| outer.round(&mut training, round)).collect();
    let loss_half = training.heldout_loss();
    sent.extend((n_first..setting.n_rounds).map(|round| outer.round(&mut training, round)));
    Outcome { loss_half, loss_end: training.heldout_loss(), sent: Sent::mean(sent.into_iter()) }
}
