//! A world in which a loss costs a few dozen operations, and in which training is nevertheless what the rules take it for.
//!
//! L_s(θ) = L₀ + ‖θ − θ* − ξ_s‖² / 2n over the n parameters. θ* is everybody's, and wanders from round to round: a run that had
//! learned all there is would have no honest work left to tell from other work. ξ_s is what only the sample s wants, a few
//! parameters of each chunk pulled up or down. Whoever trains on the samples S makes Δ = ρ·(θ − θ* − mean ξ_S + noise): it lowers
//! everybody's loss by its share of θ − θ*, and that of S by more. The noise is the peer's own, as order and arithmetic are in
//! real training; without it all peers would keep the same values of a chunk and look like each other's copies.
//!
//! With ‖θ − θ*‖² in hand a loss is a sum over ξ_s alone. Nothing but IEEE arithmetic and square roots is used, so that the losses are
//! the same on every machine.

use std::ops::Range;

use convoke::gauntlet::loss_score::Losses;
use convoke::run_spec::RunSpec;
use convoke::sparseloco::{CHUNK_LEN, Layout};
use convoke::terms::Round;

use crate::fake::chance::Chance;
use crate::pages::Pages;

/// L₀, in nats: what no training takes away.
const LOSS_FLOOR: f64 = 3.0;
/// Rounds in which a parameter's target goes from −1 to 1 and back.
const WANDER_ROUNDS: u64 = 256;
/// A sample pulls at one parameter in so many of a chunk, but at two of a small chunk.
const PARAMS_A_PULL: usize = 256;
/// How far the samples of a round pull together: each pulls this times the root of their number.
const PULL: f32 = 4.0;
/// The noise is drawn from [−½, ½), where targets lie in [−1, 1].
const NOISE: f32 = 0.5;
/// θ₀ is drawn from half of this to either side of 0.
const FIRST_THETA_SPREAD: f64 = 0.04;
/// Sums that are kept apart, as the CPU has the width for them.
const LANES: usize = 8;

/// The world of one run.
pub struct Quadratic {
    chance: Chance,
    /// Where the parameters lie in the flat form, chunk after chunk; a parameter's slot is its place in this list.
    places: Vec<usize>,
    /// The slots of each chunk.
    chunks: Vec<Range<usize>>,
    /// Where each parameter's target is on its way in round 0, in [0, 1].
    phases: Vec<f32>,
    /// How far a sample pulls at a parameter.
    pull: f32,
    /// ‖ξ‖², which is every sample's.
    pull_square: f64,
    /// ρ.
    rate: f32,
}

/// What one round's training is about.
pub struct Lesson<'a> {
    /// The round.
    pub round: Round,
    /// θ, chunk-major.
    pub theta: &'a [f32],
    /// The samples that are trained on.
    pub samples: &'a [u64],
    /// How far it goes; 1 is what all inner steps of a round make.
    pub reach: f32,
    /// Where it goes.
    pub goal: Goal,
    /// Draws the noise.
    pub noise: Chance,
}

/// Where training goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// To θ*, where everybody's loss is least.
    Target,
    /// To a place on which poisoners have agreed.
    Elsewhere,
}

/// Losses at one θ in one round.
struct View<'a> {
    world: &'a Quadratic,
    theta: &'a [f32],
    turn: f32,
    square: Square,
}

/// ‖θ − θ*‖² of one θ in one round: what its losses have in common, and what takes longest of them.
#[derive(Debug, Clone, Copy)]
pub struct Square(f64);

impl Quadratic {
    /// The world that is drawn by `chance`, for a layout and the numbers of a run.
    #[must_use]
    pub fn new(chance: Chance, layout: &Layout, run: &RunSpec) -> Self {
        let (places, chunks) = slots(layout);
        let phases = places.iter().map(|place| chance.share("phase", &[*place as u64]) as f32).collect();
        let samples_a_round = run.inner.steps as usize * run.inner.batch_sequences;
        let pull = PULL * (samples_a_round as f32).sqrt();
        let n_pulls: usize = chunks.iter().map(|chunk| n_pulls(chunk.len())).sum();
        let pull_square = n_pulls as f64 * f64::from(pull) * f64::from(pull);
        // What is not sent adds up to 1 / (1 − β) times as much; more than this and the peers' sum goes far beyond the target.
        let rate = (2.0 * (1.0 - run.sparse.error_decay)).clamp(0.05, 0.5);
        Self { chance, places, chunks, phases, pull, pull_square, rate }
    }

    /// θ₀, chunk-major: small numbers.
    #[must_use]
    pub fn first_theta(chance: Chance, layout: &Layout) -> Vec<f32> {
        let mut theta = vec![0.0; layout.flat_len()];
        for place in slots(layout).0 {
            theta[place] = ((chance.share("first-theta", &[place as u64]) - 0.5) * FIRST_THETA_SPREAD) as f32;
        }
        theta
    }

    /// Δ, chunk-major.
    #[must_use]
    pub fn train(&self, lesson: &Lesson<'_>) -> Pages {
        let mut pages = Pages::zeroed(lesson.theta.len());
        let delta: &mut [f32] = &mut pages;
        let (turn, rate) = (turn(lesson.round), self.rate * lesson.reach);
        for ((place, phase), noise) in self.places.iter().zip(&self.phases).zip(noises(lesson.noise)) {
            let goal = match lesson.goal {
                Goal::Target => target(*phase, turn),
                Goal::Elsewhere => 2.0 * self.chance.share("elsewhere", &[*place as u64]) as f32 - 1.0,
            };
            delta[*place] = rate * (lesson.theta[*place] - goal + noise);
        }
        let weight = rate / lesson.samples.len().max(1) as f32;
        for sample in lesson.samples {
            for (slot, pull) in self.pulls(*sample) {
                delta[self.places[slot]] -= weight * pull;
            }
        }
        pages
    }

    /// As large as Δ would be, and about nothing.
    #[must_use]
    pub fn noise(&self, flat_len: usize, chance: Chance) -> Pages {
        let mut pages = Pages::zeroed(flat_len);
        let delta: &mut [f32] = &mut pages;
        for (place, noise) in self.places.iter().zip(noises(chance)) {
            delta[*place] = self.rate * noise / NOISE;
        }
        pages
    }

    /// What the losses of a round's θ have in common.
    #[must_use]
    pub fn square(&self, round: Round, theta: &[f32]) -> Square {
        let turn = turn(round);
        let mut sums = [0.0; LANES];
        for (places, phases) in self.places.chunks(LANES).zip(self.phases.chunks(LANES)) {
            for (sum, (place, phase)) in sums.iter_mut().zip(places.iter().zip(phases)) {
                let away = f64::from(theta[*place] - target(*phase, turn));
                *sum += away * away;
            }
        }
        Square(sums.iter().sum())
    }

    /// The loss of a round's θ on what nobody trains on.
    #[must_use]
    pub fn heldout_loss(&self, square: Square) -> f64 {
        self.loss_of(square, 0.0)
    }

    /// The mean loss of a round's θ, which has this square, on these samples.
    #[must_use]
    pub fn mean_loss(&self, round: Round, (theta, square): (&[f32], Square), samples: &[u64]) -> f64 {
        View::new(self, round, theta, square).mean(samples)
    }

    /// The mean losses on assigned and unassigned samples, before a contribution, where θ has this square, and after it.
    #[must_use]
    pub fn losses(&self, round: Round, before: (&[f32], Square), after: &[f32], samples: [&[u64]; 2]) -> Losses {
        let (before, after) =
            (View::new(self, round, before.0, before.1), View::new(self, round, after, self.square(round, after)));
        let [assigned, unassigned] = samples;
        Losses {
            assigned_before: before.mean(assigned),
            assigned_after: after.mean(assigned),
            unassigned_before: before.mean(unassigned),
            unassigned_after: after.mean(unassigned),
        }
    }

    /// The loss where θ has this square, given ⟨θ − θ*, ξ⟩.
    fn loss_of(&self, square: Square, along: f64) -> f64 {
        LOSS_FLOOR + (square.0 - 2.0 * along + self.pull_square) / (2.0 * self.places.len() as f64)
    }

    /// ξ of a sample: slots and how far they are pulled. Each pull has a stretch of the chunk for itself, so that no two meet.
    fn pulls(&self, sample: u64) -> impl Iterator<Item = (usize, f32)> {
        let of_sample = Chance::new(self.chance.draw("sample", &[sample]));
        self.chunks.iter().flat_map(move |chunk| {
            let n_pulls = n_pulls(chunk.len());
            let width = chunk.len() / n_pulls;
            (0..n_pulls).map(move |idx| {
                let first = chunk.start + idx * width;
                let drawn = of_sample.draw("pull", &[first as u64]);
                let slot = first + (drawn >> 1) as usize % width;
                (slot, if drawn & 1 == 0 { self.pull } else { -self.pull })
            })
        })
    }
}

impl<'a> View<'a> {
    fn new(world: &'a Quadratic, round: Round, theta: &'a [f32], square: Square) -> Self {
        Self { world, theta, turn: turn(round), square }
    }

    fn mean(&self, samples: &[u64]) -> f64 {
        let sum: f64 = samples.iter().map(|sample| self.loss(*sample)).sum();
        sum / samples.len().max(1) as f64
    }

    fn loss(&self, sample: u64) -> f64 {
        let world = self.world;
        let along = |(slot, pull): (usize, f32)| {
            f64::from(self.theta[world.places[slot]] - target(world.phases[slot], self.turn)) * f64::from(pull)
        };
        world.loss_of(self.square, world.pulls(sample).map(along).sum())
    }
}

/// Where the parameters lie in the flat form, and which of them each chunk has.
fn slots(layout: &Layout) -> (Vec<usize>, Vec<Range<usize>>) {
    let (mut places, mut chunks) = (Vec::with_capacity(layout.n_params()), Vec::with_capacity(layout.n_chunks()));
    for tensor_idx in 0..layout.tensors().len() {
        for chunk_idx in layout.chunks_of(tensor_idx) {
            let first = places.len();
            let positions = layout.valid(tensor_idx, chunk_idx).positions();
            places.extend(positions.map(|position| chunk_idx * CHUNK_LEN + position));
            chunks.push(first..places.len());
        }
    }
    (places, chunks)
}

/// How many parameters of a chunk with so many a sample pulls at.
fn n_pulls(n_params: usize) -> usize {
    (n_params / PARAMS_A_PULL).max(2).min(n_params)
}

/// How much of the targets' way is gone in this round, in [0, 1).
fn turn(round: Round) -> f32 {
    (round.0 % WANDER_ROUNDS) as f32 / WANDER_ROUNDS as f32
}

/// There and back at an even pace.
fn target(phase: f32, turn: f32) -> f32 {
    let at = phase + turn;
    let at = if at >= 1.0 { at - 1.0 } else { at };
    4.0 * (at - 0.5).abs() - 1.0
}

/// Four of a draw.
fn noises(chance: Chance) -> impl Iterator<Item = f32> {
    (0_u64..).flat_map(move |idx| {
        let drawn = chance.draw("noise", &[idx]);
        [0, 16, 32, 48].map(|shift| NOISE * (f32::from((drawn >> shift) as u16) / 32_768.0 - 1.0))
    })
}

#[cfg(test)]
mod tests {
    use convoke::sparseloco::TensorShape;

    use super::*;
    use crate::config::Layers;

    const SEED: u64 = 7;

    fn world() -> (Quadratic, Layout) {
        let tensor = |name: &str, shape: &[usize]| TensorShape { name: name.to_owned(), shape: shape.to_vec() };
        let layout = Layout::new(vec![tensor("matrix", &[64, 60]), tensor("vector", &[100])]).unwrap();
        let run = Layers::default().read().unwrap().run;
        (Quadratic::new(Chance::new(SEED), &layout, &run), layout)
    }

    #[test]
    fn a_loss_is_what_its_formula_says() {
        let (world, layout) = world();
        let (round, sample) = (Round(100), 12_345);
        let theta = Quadratic::first_theta(Chance::new(SEED), &layout);
        let mut away: Vec<f64> = world
            .places
            .iter()
            .zip(&world.phases)
            .map(|(place, phase)| f64::from(theta[*place]) - f64::from(target(*phase, turn(round))))
            .collect();
        for (slot, pull) in world.pulls(sample) {
            away[slot] -= f64::from(pull);
        }
        let square: f64 = away.iter().map(|away| away * away).sum();
        let want = LOSS_FLOOR + square / (2.0 * layout.n_params() as f64);
        let loss = world.mean_loss(round, (&theta, world.square(round, &theta)), &[sample]);
        assert!((loss / want - 1.0).abs() < 1e-6, "{loss}, not {want}");
    }

    #[test]
    fn targets_wander_between_their_ends_without_a_jump() {
        for phase in [0.0, 0.3, 0.999, 1.0] {
            let way: Vec<f32> = (0..=WANDER_ROUNDS).map(|round| target(phase, turn(Round(round)))).collect();
            assert!(way.iter().all(|at| (-1.0..=1.0).contains(at)));
            assert!(way.windows(2).all(|pair| (pair[0] - pair[1]).abs() < 4.1 / WANDER_ROUNDS as f32));
        }
    }

    #[test]
    fn nothing_is_put_into_the_padding() {
        let (world, layout) = world();
        let theta = Quadratic::first_theta(Chance::new(SEED), &layout);
        let samples: Vec<u64> = (0..50).collect();
        let (round, noise) = (Round(3), Chance::new(1));
        let lesson = Lesson { round, theta: &theta, samples: &samples, reach: -1.0, goal: Goal::Target, noise };
        for delta in [world.train(&lesson), world.noise(theta.len(), noise)] {
            let zeros = delta.iter().filter(|value| value.to_bits() == 0).count();
            assert!(zeros >= layout.flat_len() - layout.n_params(), "{zeros}");
            assert!(zeros < layout.flat_len() - layout.n_params() / 2, "{zeros}");
        }
    }
}
