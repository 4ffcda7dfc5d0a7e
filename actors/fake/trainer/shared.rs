//! Many hotkeys, one machine: whoever of them trains first in a round has trained for all.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use convoke::gauntlet::loss_score::Losses;
use convoke::terms::{BlockHash, Round};

use crate::compressor::Theta;
use crate::fake::chance::Chance;
use crate::gauntlet::Evaluation;
use crate::gpu_worker::{Trained, Trainer, Trainers};
use crate::node::Parts;
use crate::pages::Pages;

/// Rounds whose work is kept.
const ROUNDS_KEPT: usize = 4;
/// How much of a value each adds or takes of its own, at most: enough to send other bytes.
const OWN_SHARE: f32 = 0.02;

/// What the one machine has made.
#[derive(Default)]
pub struct Machine(Mutex<BTreeMap<Round, Arc<Pages>>>);

impl Machine {
    /// The trainers of one of its hotkeys.
    #[must_use]
    pub fn trainers(self: &Arc<Self>, chance: Chance, trainers: Arc<dyn Trainers>) -> Arc<dyn Trainers> {
        Arc::new(Shared { machine: Arc::clone(self), chance, trainers })
    }

    fn work(&self, round: Round, own: &Arc<Pages>) -> Arc<Pages> {
        let mut rounds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let work = Arc::clone(rounds.entry(round).or_insert_with(|| Arc::clone(own)));
        while rounds.len() > ROUNDS_KEPT {
            rounds.pop_first();
        }
        work
    }
}

struct Shared {
    machine: Arc<Machine>,
    chance: Chance,
    trainers: Arc<dyn Trainers>,
}

impl Trainers for Shared {
    fn trainer(&self, parts: &Arc<Parts>) -> Box<dyn Trainer> {
        let (machine, chance) = (Arc::clone(&self.machine), self.chance);
        Box::new(OneOfMany { machine, chance, trainer: self.trainers.trainer(parts) })
    }

    fn n_train_samples(&self) -> u64 {
        self.trainers.n_train_samples()
    }

    fn first_theta(&self, parts: &Parts) -> Vec<f32> {
        self.trainers.first_theta(parts)
    }
}

struct OneOfMany {
    machine: Arc<Machine>,
    chance: Chance,
    trainer: Box<dyn Trainer>,
}

impl Trainer for OneOfMany {
    fn load(&mut self, round: Round, theta: Theta, adopt_pending: bool) -> f64 {
        self.trainer.load(round, theta, adopt_pending)
    }

    fn inner_steps(&mut self, round: Round, seed: BlockHash, stop: &AtomicBool) -> Result<Trained, String> {
        let trained = self.trainer.inner_steps(round, seed, stop)?;
        let mut delta = Pages::from(&**self.machine.work(round, &trained.delta));
        for (at, value) in delta.iter_mut().enumerate() {
            *value *= 1.0 + OWN_SHARE * (2.0 * self.chance.share("own", &[round.0, at as u64]) as f32 - 1.0);
        }
        Ok(Trained { delta: Arc::new(delta), ..trained })
    }

    fn evaluate(&mut self, round: Round, theta: &Theta, evaluation: &Evaluation) -> Losses {
        self.trainer.evaluate(round, theta, evaluation)
    }

    fn save(&mut self, round: Round) -> Result<bool, String> {
        self.trainer.save(round)
    }

    fn write(&self, prompt: &str, tokens: usize) -> String {
        self.trainer.write(prompt, tokens)
    }
}
