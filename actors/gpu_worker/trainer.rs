//! What trains: the seam between the GpuWorker, which hears and answers, and whatever it makes inner steps with.
//!
//! A node trains the run's model on a device ([`Devices`](super::Devices)); a simulated one walks through a world whose
//! losses cost next to nothing. Both keep their own state over rounds, and write it where a crash finds it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use convoke::gauntlet::loss_score::Losses;
use convoke::terms::{BlockHash, Round};

use super::Trained;
use crate::compressor::Theta;
use crate::gauntlet::Evaluation;
use crate::node::Parts;

/// Trains for one worker, on whose bench it lies; whoever is made anew goes on from the newest boundary in the store.
pub trait Trainer: Send {
    /// Takes θ of a round, and with `adopt_pending` goes on with what is saved behind the payload of that round. The answer is
    /// the held-out loss, in nats a token.
    fn load(&mut self, round: Round, theta: Theta, adopt_pending: bool) -> f64;

    /// Makes the round's inner steps, on the samples that its seed assigns, until `stop` is set. What the trainer keeps besides θ
    /// is on disk before it answers.
    ///
    /// # Errors
    /// It does not hold θ of this round, or its state cannot be written.
    fn inner_steps(&mut self, round: Round, seed: BlockHash, stop: &AtomicBool) -> Result<Trained, String>;

    /// Losses before and after a payload of the round, whose θ is given: the worker may hold another by then.
    fn evaluate(&mut self, round: Round, theta: &Theta, evaluation: &Evaluation) -> Losses;

    /// Writes the boundary before this round. It answers whether that is done: not by a trainer that was replaced in between and
    /// does not hold this round's θ.
    ///
    /// # Errors
    /// The boundary cannot be written.
    fn save(&mut self, round: Round) -> Result<bool, String>;

    /// The prompt and what follows it, by the model that is held.
    fn write(&self, prompt: &str, tokens: usize) -> String;
}

/// Makes a node's trainers, and knows what all trainers of the run agree in.
pub trait Trainers: Send + Sync {
    /// A trainer, made on the bench where it will lie.
    fn trainer(&self, parts: &Arc<Parts>) -> Box<dyn Trainer>;

    /// Samples that are drawn from for training.
    fn n_train_samples(&self) -> u64;

    /// θ₀, chunk-major: the same on every node of a run.
    fn first_theta(&self, parts: &Parts) -> Vec<f32>;
}
