//! How a simulated miner makes its pseudo-gradient: as it should, or as those do who want to earn without work or to do harm.
//!
//! A habit decides which samples are used and what Δ is. All that comes after, error feedback, payload and seal, is the node's own code,
//! so that an adversary's contribution is well-formed and only its content is not what it says.

use convoke::assignment::assigned;
use convoke::run_spec::InnerSpec;
use convoke::terms::{BlockHash, Hotkey, Round};

use super::quadratic::{Goal, Lesson, Quadratic};
use crate::fake::chance::Chance;
use crate::pages::Pages;

/// How much too large a huge Δ is: each kept value is the largest that a payload can say, and the payload is still well-formed.
pub(super) const HUGE: f32 = 1000.0;
/// How much larger than what training has made.
pub(super) const BOOST: f32 = 3.0;
/// The share of honest work under which targeted poison hides: most validators find that it helps.
pub(super) const COVER: f32 = 0.5;

/// What a miner makes of a round's work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Habit {
    /// What the protocol asks for.
    Honest,
    /// Nothing at all.
    Zero,
    /// Numbers that are about nothing, together as large as what training makes: how large that is can be seen in everybody's payloads.
    Noise,
    /// Training, but on samples that were assigned to nobody.
    WrongData,
    /// One inner step, called as many as there should be.
    FewSteps,
    /// Training, but from the θ of some rounds ago; after a restart from the oldest that it has seen since.
    Stale {
        /// How many rounds.
        rounds: usize,
    },
    /// Training, a thousand times as strong.
    Huge,
    /// What training makes, larger: it is applied as no more than that of others, but may be found to help more.
    Boost,
    /// What training makes, turned round.
    PoisonFlip,
    /// Training for one half, and for the other a walk to another place, the same for all who do it.
    PoisonTarget,
    /// Honest at first.
    Sleeper {
        /// The first round in which it is not.
        from: Round,
        /// What it is then.
        then: Box<Habit>,
    },
}

/// The work of one round.
pub struct Work<'a> {
    /// The round.
    pub round: Round,
    /// Its seed.
    pub seed: &'a BlockHash,
    /// Whose work it is.
    pub hotkey: Hotkey,
    /// Samples that there are to train on.
    pub n_train_samples: u64,
    /// The run's inner steps.
    pub inner: &'a InnerSpec,
    /// How many of them an honest worker makes in this round.
    pub steps: u32,
    /// θ of the round, chunk-major.
    pub theta: &'a [f32],
    /// θ of as many rounds ago as the habit wants.
    pub theta_before: &'a [f32],
    /// Draws the noise.
    pub noise: Chance,
}

impl Habit {
    /// How many rounds old the θ is that it may want.
    #[must_use]
    pub fn rounds_behind(&self) -> usize {
        match self {
            Self::Stale { rounds } => *rounds,
            Self::Sleeper { then, .. } => then.rounds_behind(),
            _ => 0,
        }
    }

    /// The samples it uses in a round.
    #[must_use]
    pub fn samples(&self, work: &Work<'_>) -> Vec<u64> {
        let now = self.in_round(work.round);
        let steps = if *now == Self::FewSteps { work.steps.min(1) } else { work.steps };
        let whose = if *now == Self::WrongData { nobody_like(work.hotkey) } else { work.hotkey };
        assigned(work.seed, &whose, work.n_train_samples, steps as usize * work.inner.batch_sequences)
    }

    /// Δ, chunk-major.
    #[must_use]
    pub fn train(&self, world: &Quadratic, work: &Work<'_>, samples: &[u64]) -> Pages {
        let now = self.in_round(work.round);
        let whole = work.inner.steps as usize * work.inner.batch_sequences;
        let strength = match now {
            Self::Zero => return Pages::zeroed(work.theta.len()),
            Self::Huge => HUGE,
            Self::Boost => BOOST,
            Self::PoisonFlip => -1.0,
            Self::PoisonTarget => COVER,
            _ => 1.0,
        };
        let lesson = |goal, strength: f32| Lesson {
            round: work.round,
            theta: if matches!(now, Self::Stale { .. }) { work.theta_before } else { work.theta },
            samples,
            reach: strength * samples.len() as f32 / whole.max(1) as f32,
            goal,
            noise: work.noise,
        };
        let mut delta = world.train(&lesson(Goal::Target, strength));
        match now {
            Self::Noise => as_large_as(&delta, world.noise(work.theta.len(), work.noise)),
            Self::PoisonTarget => {
                let away = world.train(&lesson(Goal::Elsewhere, 1.0 - COVER));
                delta.iter_mut().zip(away.iter()).for_each(|(value, away)| *value += away);
                delta
            }
            _ => delta,
        }
    }

    /// What it is in a round.
    pub(super) fn in_round(&self, round: Round) -> &Self {
        static HONEST: Habit = Habit::Honest;
        match self {
            Self::Sleeper { from, .. } if round < *from => &HONEST,
            Self::Sleeper { then, .. } => then.in_round(round),
            habit => habit,
        }
    }
}

/// The second as it is, but with the norm of the first.
pub(super) fn as_large_as(honest: &[f32], mut other: Pages) -> Pages {
    let scale = (norm(honest) / norm(&other).max(f64::MIN_POSITIVE)) as f32;
    other.iter_mut().for_each(|value| *value *= scale);
    other
}

pub(super) fn norm(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt()
}

/// A hotkey that nobody has.
fn nobody_like(hotkey: Hotkey) -> Hotkey {
    Hotkey(hotkey.0.map(|byte| !byte))
}
