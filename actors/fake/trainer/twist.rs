//! Something between a node and its trainer: it hears, or changes, what the trainer answers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use convoke::gauntlet::loss_score::Losses;
use convoke::terms::{BlockHash, Hotkey, Round};

use crate::compressor::Theta;
use crate::gauntlet::Evaluation;
use crate::gpu_worker::{Trained, Trainer, Trainers};
use crate::node::Parts;

/// What stands between; as it is given, nothing.
pub trait Twist: Send + Sync {
    /// What the node gets of a round's inner steps.
    fn trained(&self, _: Round, trained: Trained) -> Trained {
        trained
    }

    /// The losses of an evaluation that need not be made; `None` where the trainer makes it.
    fn losses(&self, _: &Evaluation) -> Option<Losses> {
        None
    }
}

/// The same trainers, with something between.
#[must_use]
pub fn twisted(trainers: Arc<dyn Trainers>, twist: Arc<dyn Twist>) -> Arc<dyn Trainers> {
    Arc::new(TwistedTrainers { trainers, twist })
}

struct TwistedTrainers {
    trainers: Arc<dyn Trainers>,
    twist: Arc<dyn Twist>,
}

impl Trainers for TwistedTrainers {
    fn trainer(&self, parts: &Arc<Parts>) -> Box<dyn Trainer> {
        Box::new(Twisted { trainer: self.trainers.trainer(parts), twist: Arc::clone(&self.twist) })
    }

    fn n_train_samples(&self) -> u64 {
        self.trainers.n_train_samples()
    }

    fn first_theta(&self, parts: &Parts) -> Vec<f32> {
        self.trainers.first_theta(parts)
    }
}

struct Twisted {
    trainer: Box<dyn Trainer>,
    twist: Arc<dyn Twist>,
}

impl Trainer for Twisted {
    fn load(&mut self, round: Round, theta: Theta, adopt_pending: bool) -> f64 {
        self.trainer.load(round, theta, adopt_pending)
    }

    fn inner_steps(&mut self, round: Round, seed: BlockHash, stop: &AtomicBool) -> Result<Trained, String> {
        Ok(self.twist.trained(round, self.trainer.inner_steps(round, seed, stop)?))
    }

    fn evaluate(&mut self, round: Round, theta: &Theta, evaluation: &Evaluation) -> Losses {
        let losses = self.twist.losses(evaluation);
        losses.unwrap_or_else(|| self.trainer.evaluate(round, theta, evaluation))
    }

    fn save(&mut self, round: Round) -> Result<bool, String> {
        self.trainer.save(round)
    }

    fn write(&self, prompt: &str, tokens: usize) -> String {
        self.trainer.write(prompt, tokens)
    }
}

/// To whom friends help, and all others harm: its ratings, its proposals and its weights follow.
pub struct Partial {
    /// Whose payloads are praised.
    pub friends: BTreeSet<Hotkey>,
}

impl Twist for Partial {
    fn losses(&self, evaluation: &Evaluation) -> Option<Losses> {
        let is_friend = self.friends.contains(&evaluation.hotkey);
        let [assigned_after, unassigned_after] = if is_friend { [2.0, 3.0] } else { [6.0, 5.0] };
        Some(Losses { assigned_before: 4.0, assigned_after, unassigned_before: 4.0, unassigned_after })
    }
}
