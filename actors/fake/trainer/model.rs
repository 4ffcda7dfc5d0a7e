//! The real trainer in the hands of those who do not do what they should.
//!
//! A [device](Devices) makes Δ as on every node; a [`Habit`] decides from which θ, on which samples, in how many steps, and what becomes
//! of it. All that comes after is the node's own code, so that a contribution is well-formed and only its content is not what it says.
//!
//! Free riders train here, and throw away what they have: only its size is used, which in earnest they would read off the payloads
//! of others. What a device starts is one thread a replica, which the bench waits for with the only thread that the runtime
//! has: virtual time stands still meanwhile, and results come in the order in which they were asked for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use convoke::gauntlet::loss_score::Losses;
use convoke::genesis;
use convoke::sparseloco::Layout;
use convoke::terms::{BlockHash, Hotkey, Round};

use super::habit::{BOOST, COVER, HUGE, Habit, as_large_as};
use crate::compressor::Theta;
use crate::fake::chance::Chance;
use crate::gauntlet::Evaluation;
use crate::gpu_worker::{Devices, Trained, Trainer, Trainers};
use crate::node::Parts;
use crate::pages::Pages;

/// Trainers of one node, on devices and data that all nodes of its run share.
pub struct ModelTrainers {
    chance: Chance,
    devices: Arc<Devices>,
    habit: Habit,
}

impl ModelTrainers {
    /// Nodes with the same devices train the same model, each with its own habit.
    #[must_use]
    pub fn new(seed: u64, devices: Arc<Devices>, habit: Habit) -> Self {
        Self { chance: Chance::new(Chance::new(seed).draw("model-trainer", &[])), devices, habit }
    }
}

impl Trainers for ModelTrainers {
    fn trainer(&self, parts: &Arc<Parts>) -> Box<dyn Trainer> {
        if self.habit == Habit::Honest {
            return self.devices.trainer(parts);
        }
        // Nobody is lazy only later: a sleeper's habit does not limit its steps.
        let steps_max = if self.habit == Habit::FewSteps { 1 } else { usize::MAX };
        let run = &parts.config.run;
        Box::new(Wayward {
            device: self.devices.trainer_up_to(parts, steps_max),
            // θ₀ of a run that nobody runs: a place as good as any other, on which all who go there agree.
            elsewhere: genesis::theta(&run.model, !run.seed, &parts.layout),
            parts: Arc::clone(parts),
            chance: self.chance,
            habit: self.habit.clone(),
            loaded: VecDeque::new(),
        })
    }

    fn n_train_samples(&self) -> u64 {
        self.devices.n_train_samples()
    }

    fn first_theta(&self, parts: &Parts) -> Vec<f32> {
        self.devices.first_theta(parts)
    }
}

/// A device, and what its owner does with it.
struct Wayward {
    parts: Arc<Parts>,
    device: Box<dyn Trainer>,
    chance: Chance,
    habit: Habit,
    /// Where those go who want another θ than everybody's, chunk-major.
    elsewhere: Vec<f32>,
    /// θ of the last rounds, newest last: no more than the habit wants.
    loaded: VecDeque<Theta>,
}

impl Trainer for Wayward {
    fn load(&mut self, round: Round, theta: Theta, adopt_pending: bool) -> f64 {
        self.loaded.push_back(Arc::clone(&theta));
        while self.loaded.len() > self.habit.rounds_behind() + 1 {
            self.loaded.pop_front();
        }
        let is_stale = matches!(self.habit.in_round(round), Habit::Stale { .. });
        let oldest = self.loaded.front().filter(|_| is_stale).cloned();
        self.device.load(round, oldest.unwrap_or(theta), adopt_pending)
    }

    fn inner_steps(&mut self, round: Round, seed: BlockHash, stop: &AtomicBool) -> Result<Trained, String> {
        let now = self.habit.in_round(round).clone();
        let seed = if now == Habit::WrongData { nobodys(seed) } else { seed };
        let mut trained = self.device.inner_steps(round, seed, stop)?;
        if now == Habit::FewSteps && trained.steps > 0 {
            let claimed = self.parts.config.run.inner.steps;
            trained.tokens = trained.tokens / u64::from(trained.steps) * u64::from(claimed);
            trained.steps = claimed;
        }
        let Some(theta) = self.loaded.back() else { return Ok(trained) };
        let ground = Ground {
            layout: &self.parts.layout,
            theta,
            elsewhere: &self.elsewhere,
            noise: noise_of(self.chance, &self.parts.keypair.hotkey(), round),
        };
        if let Some(delta) = made_of(&trained.delta, &now, &ground) {
            trained.delta = Arc::new(delta);
        }
        Ok(trained)
    }

    fn evaluate(&mut self, round: Round, theta: &Theta, evaluation: &Evaluation) -> Losses {
        self.device.evaluate(round, theta, evaluation)
    }

    fn save(&mut self, round: Round) -> Result<bool, String> {
        self.device.save(round)
    }

    fn write(&self, prompt: &str, tokens: usize) -> String {
        self.device.write(prompt, tokens)
    }
}

/// What a Δ can be made of beside the one that training has made.
struct Ground<'a> {
    layout: &'a Layout,
    /// θ of the round, chunk-major.
    theta: &'a [f32],
    /// As long as θ.
    elsewhere: &'a [f32],
    noise: Chance,
}

/// What a habit makes of the Δ that training has made, both chunk-major; `None` where that is what it sends.
fn made_of(delta: &[f32], now: &Habit, ground: &Ground<'_>) -> Option<Pages> {
    match now {
        Habit::Zero => Some(Pages::zeroed(delta.len())),
        Habit::Noise => Some(as_large_as(delta, noise(ground.layout, ground.noise))),
        Habit::Huge => Some(scaled(Pages::from(delta), HUGE)),
        Habit::Boost => Some(scaled(Pages::from(delta), BOOST)),
        Habit::PoisonFlip => Some(scaled(Pages::from(delta), -1.0)),
        Habit::PoisonTarget => {
            let away = scaled(as_large_as(delta, way(ground.theta, ground.elsewhere)), 1.0 - COVER);
            let mut sent = scaled(Pages::from(delta), COVER);
            sent.iter_mut().zip(away.iter()).for_each(|(value, away)| *value += away);
            Some(sent)
        }
        // Who sleeps is what it is in the round; of the others it is the work that is wrong, not what is made of it.
        Habit::Honest | Habit::WrongData | Habit::FewSteps | Habit::Stale { .. } | Habit::Sleeper { .. } => None,
    }
}

/// Evenly spread numbers from −1 to 1, and nothing in the padding.
fn noise(layout: &Layout, chance: Chance) -> Pages {
    let mut pages = Pages::zeroed(layout.flat_len());
    for (idx, tensor) in layout.tensors().iter().enumerate() {
        let n_values = tensor.shape.iter().product::<usize>() as u64;
        let value = |place: u64| 2.0 * chance.share("value", &[idx as u64, place]) as f32 - 1.0;
        layout.gather(idx, &(0..n_values).map(value).collect::<Vec<_>>(), &mut pages);
    }
    pages
}

/// From one place to another: what the outer step subtracts to get there.
fn way(from: &[f32], to: &[f32]) -> Pages {
    let mut pages = Pages::from(from);
    pages.iter_mut().zip(to).for_each(|(value, to)| *value -= to);
    pages
}

fn scaled(mut pages: Pages, factor: f32) -> Pages {
    pages.iter_mut().for_each(|value| *value *= factor);
    pages
}

/// A seed that no round has: what it assigns is assigned to nobody.
fn nobodys(seed: BlockHash) -> BlockHash {
    BlockHash(seed.0.map(|byte| !byte))
}

/// The noise of one round. Hotkeys differ in all of their words.
fn noise_of(chance: Chance, hotkey: &Hotkey, round: Round) -> Chance {
    let mut which = vec![round.0];
    which.extend(hotkey.0.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)));
    Chance::new(chance.draw("noise", &which))
}

#[cfg(test)]
mod tests {
    use convoke::sparseloco::TensorShape;

    use super::*;
    use crate::fake::trainer::habit::norm;

    /// A layout with padding in both of its tensors.
    fn layout() -> Layout {
        let tensor = |name: &str, shape: &[usize]| TensorShape { name: name.to_owned(), shape: shape.to_vec() };
        Layout::new(vec![tensor("matrix", &[64, 60]), tensor("vector", &[100])]).unwrap()
    }

    /// What is made of the first of these, in a world where θ is the second and elsewhere the third.
    fn made(now: &Habit, seeds: [u64; 3], round: u64) -> (Pages, Option<Pages>) {
        let layout = layout();
        let [delta, theta, elsewhere] = seeds.map(|seed| noise(&layout, Chance::new(seed)));
        let delta = scaled(delta, 0.01);
        let ground = Ground {
            layout: &layout,
            theta: &theta,
            elsewhere: &elsewhere,
            noise: noise_of(Chance::new(1), &Hotkey([7; 32]), Round(round)),
        };
        let made = made_of(&delta, now, &ground);
        (delta, made)
    }

    fn cosine(a: &[f32], b: &[f32]) -> f64 {
        let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        dot / (norm(a) * norm(b))
    }

    #[test]
    fn honest_numbers_are_left_as_they_are() {
        for habit in [Habit::Honest, Habit::WrongData, Habit::FewSteps, Habit::Stale { rounds: 3 }] {
            assert!(made(&habit, [1, 2, 3], 5).1.is_none(), "{habit:?}");
        }
    }

    #[test]
    fn free_riders_send_nothing_or_something_of_the_usual_size_that_is_about_nothing() {
        let (_, zeros) = made(&Habit::Zero, [1, 2, 3], 5);
        assert!(zeros.unwrap().iter().all(|value| value.to_bits() == 0));
        let (delta, noise) = made(&Habit::Noise, [1, 2, 3], 5);
        let noise = noise.unwrap();
        assert!((norm(&noise) / norm(&delta) - 1.0).abs() < 1e-5);
        assert!(cosine(&noise, &delta).abs() < 0.1);
        let later = made(&Habit::Noise, [1, 2, 3], 6).1.unwrap();
        assert!(cosine(&noise, &later).abs() < 0.1, "each round's is another");
    }

    #[test]
    fn poison_is_what_its_name_says() {
        let of = |habit: &Habit| {
            let (delta, made) = made(habit, [1, 2, 3], 5);
            let made = made.unwrap();
            (cosine(&made, &delta), norm(&made) / norm(&delta))
        };
        let (cosine_of_huge, times) = of(&Habit::Huge);
        assert!((cosine_of_huge - 1.0).abs() < 1e-6 && (times / f64::from(HUGE) - 1.0).abs() < 1e-5);
        let (cosine_of_boost, times) = of(&Habit::Boost);
        assert!((cosine_of_boost - 1.0).abs() < 1e-6 && (times / f64::from(BOOST) - 1.0).abs() < 1e-5);
        let (cosine_of_flip, times) = of(&Habit::PoisonFlip);
        assert!((cosine_of_flip + 1.0).abs() < 1e-6 && (times - 1.0).abs() < 1e-6);
        // Of targeted poison a part is honest; whoever subtracts enough of the rest from θ is elsewhere.
        let (delta, target) = made(&Habit::PoisonTarget, [1, 2, 3], 5);
        let layout = layout();
        let rest = way(&target.unwrap(), &scaled(delta.clone(), COVER));
        let [theta, elsewhere] = [2, 3].map(|seed| noise(&layout, Chance::new(seed)));
        assert!((cosine(&rest, &way(&theta, &elsewhere)) - 1.0).abs() < 1e-5);
        assert!((norm(&rest) / norm(&delta) - f64::from(1.0 - COVER)).abs() < 1e-4);
    }

    #[test]
    fn nothing_is_put_into_the_padding() {
        let layout = layout();
        for habit in [Habit::Noise, Habit::Huge, Habit::PoisonFlip, Habit::PoisonTarget] {
            let made = made(&habit, [1, 2, 3], 5).1.unwrap();
            let n_zeros = made.iter().filter(|value| **value == 0.0).count();
            let n_padding = layout.flat_len() - layout.n_params();
            assert!((n_padding..n_padding + 10).contains(&n_zeros), "{habit:?}: {n_zeros}");
        }
    }

    #[test]
    fn the_seed_of_wrong_data_is_nobodys() {
        let seed = BlockHash([3; 32]);
        assert_ne!(nobodys(seed), seed);
        assert_eq!(nobodys(nobodys(seed)), seed);
    }
}
