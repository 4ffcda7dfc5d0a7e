//! A trainer without a model: it walks through [`quadratic`]'s world, and keeps what a real one keeps between rounds.
//!
//! What it promises: Δ, losses and the state on disk are functions of the seed and of what the node did, to the bit. Training on
//! assigned samples lowers their loss more than that of others, so that scores, honesty and ratings are the real rules on a real
//! problem. The state is written when and where a [device](crate::gpu_worker::Devices) writes AdamW's averages, and a trainer that is
//! made anew goes on from the same places, so that a crash costs here what it costs there. How many inner steps were made enters the
//! noise: whoever has lost its state makes another Δ.
//!
//! What it does not: work takes no time, the bench sleeps before it asks; and nothing is written by [`Trainer::write`] that a
//! model would. Runs of a few dozen samples a round, with 16 values or more kept of a chunk, are what it is made for: of a
//! thousand samples each would pull too little to be told from noise.
//!
//! Fault points beside the bench's: `mid-inner-steps`, where only a panic may be put.

pub mod habit;
pub mod model;
pub mod quadratic;
pub mod shared;
pub mod twist;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use convoke::gauntlet::loss_score::Losses;
use convoke::sparseloco;
use convoke::terms::{BlockHash, Hotkey, Round};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

pub use self::habit::Habit;
use self::habit::Work;
use self::quadratic::{Quadratic, Square};
use super::chance::Chance;
use crate::compressor::Theta;
use crate::gauntlet::Evaluation;
use crate::gpu_worker::{PENDING_SECTION, SECTION, Trained, Trainer, Trainers};
use crate::leaf::Leaf;
use crate::node::Parts;
use crate::store::Store;

/// Trainers of one node in a world that all nodes of its run share.
pub struct FakeTrainers {
    chance: Chance,
    n_train_samples: u64,
    habit: Habit,
}

impl FakeTrainers {
    /// Nodes with one seed and one number of samples train in one world, each with its own habit.
    #[must_use]
    pub fn new(seed: u64, n_train_samples: u64, habit: Habit) -> Self {
        Self { chance: Self::chance_of(seed), n_train_samples, habit }
    }

    /// What the world of this seed is drawn by.
    #[must_use]
    pub fn chance_of(seed: u64) -> Chance {
        Chance::new(Chance::new(seed).draw("trainer", &[]))
    }
}

impl Trainers for FakeTrainers {
    fn trainer(&self, parts: &Arc<Parts>) -> Box<dyn Trainer> {
        Box::new(FakeTrainer {
            world: Quadratic::new(self.chance, &parts.layout, &parts.config.run),
            parts: Arc::clone(parts),
            chance: self.chance,
            n_train_samples: self.n_train_samples,
            habit: self.habit.clone(),
            known: Known::default(),
            held: None,
            loaded: VecDeque::new(),
            trained: None,
            free_since: Instant::now(),
        })
    }

    fn n_train_samples(&self) -> u64 {
        self.n_train_samples
    }

    fn first_theta(&self, parts: &Parts) -> Vec<f32> {
        Quadratic::first_theta(self.chance, &parts.layout)
    }
}

/// What lies on the bench.
struct FakeTrainer {
    parts: Arc<Parts>,
    chance: Chance,
    world: Quadratic,
    n_train_samples: u64,
    habit: Habit,
    known: Known,
    held: Option<Held>,
    /// θ of the last rounds, newest last: no more than the habit wants.
    loaded: VecDeque<Theta>,
    /// The round whose inner steps are in what is kept beyond the boundary.
    trained: Option<Round>,
    /// When it was done with what it was asked last.
    free_since: Instant,
}

struct Held {
    round: Round,
    theta: Theta,
    steps_done: u64,
}

/// The square of the θ that was asked about last: it is asked about several times in a row.
#[derive(Default)]
struct Known(Option<(Round, Theta, Square)>);

impl Known {
    fn square(&mut self, world: &Quadratic, round: Round, theta: &Theta) -> Square {
        match &self.0 {
            Some((of, at, square)) if *of == round && Arc::ptr_eq(at, theta) => *square,
            _ => {
                let square = world.square(round, theta);
                self.0 = Some((round, Arc::clone(theta), square));
                square
            }
        }
    }
}

/// What is kept over rounds, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    round: Round,
    steps_done: u64,
}

impl Trainer for FakeTrainer {
    fn load(&mut self, round: Round, theta: Theta, adopt_pending: bool) -> f64 {
        let square = self.known.square(&self.world, round, &theta);
        let loss = self.world.heldout_loss(square);
        self.loaded.push_back(Arc::clone(&theta));
        while self.loaded.len() > self.habit.rounds_behind() + 1 {
            self.loaded.pop_front();
        }
        let store = &self.parts.store;
        let mut steps_done = match &self.held {
            Some(held) => held.steps_done,
            None => steps_done_for(store, round),
        };
        if adopt_pending && let Some(pending) = read(store, round, PENDING_SECTION) {
            steps_done = pending.steps_done;
            self.trained = Some(round);
        }
        self.held = Some(Held { round, theta, steps_done });
        self.free_since = Instant::now();
        loss
    }

    fn inner_steps(&mut self, round: Round, seed: BlockHash, stop: &AtomicBool) -> Result<Trained, String> {
        if self.trained == Some(round) {
            // Steps that led to no payload must not count beside those that are made in their place.
            self.back_to_boundary();
        }
        let Some(held) = self.held.as_mut().filter(|held| held.round == round) else {
            return Err(format!("the worker does not hold θ of round {round}"));
        };
        let square = self.known.square(&self.world, round, &held.theta);
        self.trained = Some(round);
        let run = &self.parts.config.run;
        // When the flag was set nobody says; whoever is stopped was half way.
        let steps = if stop.load(Ordering::Relaxed) { (run.inner.steps / 2).max(1) } else { run.inner.steps };
        let hotkey = self.parts.keypair.hotkey();
        let work = Work {
            round,
            seed: &seed,
            hotkey,
            n_train_samples: self.n_train_samples,
            inner: &run.inner,
            steps,
            theta: &held.theta,
            theta_before: self.loaded.front().unwrap_or(&held.theta),
            noise: noise_of(self.chance, &hotkey, round, held.steps_done),
        };
        let samples = self.habit.samples(&work);
        let delta = self.habit.train(&self.world, &work, &samples);
        let loss = self.world.mean_loss(round, (&held.theta, square), &samples);
        held.steps_done += u64::from(steps);
        self.parts.faults.point_on_thread(Leaf::GpuWorker, "mid-inner-steps", round);
        self.write_kept(round, PENDING_SECTION)?;
        let tokens_a_step = (run.inner.batch_sequences * run.model.context_len) as u64;
        let seconds = self.free_since.elapsed().as_secs_f64();
        self.free_since = Instant::now();
        Ok(Trained { steps, tokens: u64::from(steps) * tokens_a_step, loss, seconds, delta: Arc::new(delta) })
    }

    fn evaluate(&mut self, round: Round, theta: &Theta, evaluation: &Evaluation) -> Losses {
        let run = &self.parts.config.run;
        let mut after = theta.to_vec();
        let step = run.gauntlet.step_ratio * run.sparse.lr_outer;
        let Evaluation { payload, scales, .. } = evaluation;
        sparseloco::apply_one(&self.parts.layout, &run.sparse, payload.body(), step, scales, &mut after);
        self.free_since = Instant::now();
        let square = self.known.square(&self.world, round, theta);
        self.world.losses(round, (theta, square), &after, [&evaluation.assigned, &evaluation.unassigned])
    }

    fn save(&mut self, round: Round) -> Result<bool, String> {
        if self.held.as_ref().is_none_or(|held| held.round != round) {
            return Ok(false);
        }
        self.write_kept(round, SECTION)?;
        self.trained = None;
        self.free_since = Instant::now();
        Ok(true)
    }

    fn write(&self, prompt: &str, _: usize) -> String {
        format!("{prompt} …")
    }
}

impl FakeTrainer {
    fn write_kept(&self, round: Round, section: &str) -> Result<(), String> {
        let Some(held) = &self.held else { return Err("the worker holds no model".to_owned()) };
        let kept = Kept { round, steps_done: held.steps_done };
        let bytes = postcard::to_allocvec(&kept).map_err(|error| error.to_string())?;
        self.parts.store.write(round, section, &bytes).map_err(|error| error.to_string())
    }

    fn back_to_boundary(&mut self) {
        let steps_done = saved_steps_done(&self.parts.store);
        if let Some(held) = &mut self.held {
            held.steps_done = steps_done;
        }
        self.trained = None;
    }
}

/// The noise of one round's work. Hotkeys differ in all of their words.
fn noise_of(chance: Chance, hotkey: &Hotkey, round: Round, steps_done: u64) -> Chance {
    let mut which = vec![round.0, steps_done];
    which.extend(hotkey.0.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)));
    Chance::new(chance.draw("lesson", &which))
}

/// What goes with θ of `round`. When θ has moved past the boundary, what was trained since is beside it.
fn steps_done_for(store: &Store, round: Round) -> u64 {
    let boundary = store.latest().unwrap_or_else(|error| panic!("{error}"));
    let trained_in = boundary.unwrap_or_default();
    let trained = (round > trained_in).then(|| read(store, trained_in, PENDING_SECTION)).flatten();
    trained.map_or_else(|| saved_steps_done(store), |kept| kept.steps_done)
}

/// What the newest boundary holds; before the first, nothing is done.
///
/// # Panics
/// When there is a boundary and it cannot be read: the supervisor tries again, with nothing forgotten.
fn saved_steps_done(store: &Store) -> u64 {
    let Some(round) = store.latest().unwrap_or_else(|error| panic!("{error}")) else { return 0 };
    let kept = read(store, round, SECTION);
    kept.unwrap_or_else(|| panic!("what the trainer kept in round {round} cannot be read")).steps_done
}

fn read(store: &Store, round: Round, section: &str) -> Option<Kept> {
    let bytes = store.read(round, section).ok()?;
    postcard::from_bytes::<Kept>(&bytes).ok().filter(|kept| kept.round == round)
}

#[cfg(test)]
mod tests;
