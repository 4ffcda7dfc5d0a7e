//! Claims about the simulated trainer: what the rules find of its work, and what it keeps.

use convoke::assignment::{EvalDraw, eval_samples};
use convoke::gauntlet::loss_score::Score;
use convoke::run_spec::RunSpec;
use convoke::sparseloco::{Layout, TensorShape, encode};
use convoke::terms::RunId;

use super::*;
use crate::config::Layers;
use crate::pages::Pages;

const N_SAMPLES: u64 = 10_000;
const SEED: BlockHash = BlockHash([3; 32]);
const PEERS: std::ops::RangeInclusive<u8> = 1..=20;

/// A run as the simulator has it, in its first round.
struct Run {
    chance: Chance,
    spec: RunSpec,
    layout: Layout,
    world: Quadratic,
    theta: Vec<f32>,
}

impl Run {
    fn new() -> Self {
        let mut spec = Layers::default().read().unwrap().run;
        (spec.inner.steps, spec.inner.batch_sequences) = (4, 4);
        spec.sparse.keep_per_chunk = 16;
        let tensor = |name: &str, shape: &[usize]| TensorShape { name: name.to_owned(), shape: shape.to_vec() };
        let layout = Layout::new(vec![tensor("matrix", &[64, 64]), tensor("vector", &[100])]).unwrap();
        let chance = Chance::new(11);
        let (world, theta) = (Quadratic::new(chance, &layout, &spec), Quadratic::first_theta(chance, &layout));
        Self { chance, spec, layout, world, theta }
    }

    /// Δ of a peer that comes from `before` if it is stale, and has made so many steps in its life.
    fn delta_from(&self, habit: &Habit, peer: u8, before: &[f32], steps_done: u64) -> Pages {
        let (round, hotkey) = (Round(5), Hotkey([peer; 32]));
        let work = Work {
            round,
            seed: &SEED,
            hotkey,
            n_train_samples: N_SAMPLES,
            inner: &self.spec.inner,
            steps: self.spec.inner.steps,
            theta: &self.theta,
            theta_before: before,
            noise: noise_of(self.chance, &hotkey, round, steps_done),
        };
        habit.train(&self.world, &work, &habit.samples(&work))
    }

    fn delta(&self, habit: &Habit, peer: u8) -> Pages {
        self.delta_from(habit, peer, &self.theta, 0)
    }

    /// What a validator finds of the contribution that Δ becomes.
    fn score(&self, habit: &Habit, peer: u8) -> Score {
        let (spec, round) = (&self.spec, Round(5));
        let mut error = vec![0.0; self.layout.flat_len()];
        let body = encode(&self.layout, &spec.sparse, &mut error, &self.delta(habit, peer)).unwrap().body;
        let mut after = self.theta.clone();
        let step = spec.gauntlet.step_ratio * spec.sparse.lr_outer;
        let scales = vec![1.0; self.layout.tensors().len()];
        sparseloco::apply_one(&self.layout, &spec.sparse, body.view(), step, &scales, &mut after);
        let peer = Hotkey([peer; 32]);
        let used = spec.inner.steps as usize * spec.inner.batch_sequences;
        let all = convoke::assignment::assigned(&SEED, &peer, N_SAMPLES, used);
        let draw = EvalDraw { seed: BlockHash([9; 32]), validator: Hotkey([200; 32]), peer };
        let samples = eval_samples(&draw, &all, used, N_SAMPLES, 8);
        let before = (&self.theta[..], self.world.square(round, &self.theta));
        Score::of(&self.world.losses(round, before, &after, [&samples.assigned, &samples.unassigned]))
    }

    fn scores(&self, habit: &Habit) -> Vec<Score> {
        PEERS.map(|peer| self.score(habit, peer)).collect()
    }
}

fn bits(delta: &Pages) -> Vec<u32> {
    delta.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn honest_work_lowers_everybodys_loss_and_that_of_its_own_samples_more() {
    for score in Run::new().scores(&Habit::Honest) {
        assert!(score.improvement > 0.0 && score.honest, "{score:?}");
    }
}

#[test]
fn the_same_work_gives_the_same_delta_bit_for_bit() {
    let delta = |peer, steps_done| {
        let run = Run::new();
        bits(&run.delta_from(&Habit::Honest, peer, &run.theta, steps_done))
    };
    assert_eq!(delta(1, 0), delta(1, 0));
    assert_ne!(delta(1, 0), delta(2, 0));
    assert_ne!(delta(1, 0), delta(1, 4), "whoever has lost its state makes another");
}

#[test]
fn poison_and_what_is_far_too_large_raise_the_loss() {
    let run = Run::new();
    for habit in [Habit::PoisonFlip, Habit::Huge] {
        for score in run.scores(&habit) {
            assert!(score.improvement < 0.0, "{habit:?}: {score:?}");
        }
    }
}

#[test]
fn noise_is_as_large_as_honest_work_and_helps_nobody() {
    let run = Run::new();
    let norm = |habit: &Habit, peer| {
        run.delta(habit, peer).iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt()
    };
    for peer in [1, 2, 3] {
        let ratio = norm(&Habit::Noise, peer) / norm(&Habit::Honest, peer);
        assert!((ratio - 1.0).abs() < 1e-3, "{ratio}");
    }
    let sum = |habit| run.scores(&habit).iter().map(|score| score.improvement).sum::<f64>();
    assert!(sum(Habit::Noise) < 0.3 * sum(Habit::Honest));
}

#[test]
fn what_is_far_too_large_is_still_a_payload_and_says_the_largest_values_there_are() {
    let run = Run::new();
    let largest = |habit: &Habit| {
        let mut error = vec![0.0; run.layout.flat_len()];
        let body = encode(&run.layout, &run.spec.sparse, &mut error, &run.delta(habit, 1)).unwrap().body;
        assert!(error.iter().all(|value| value.is_finite()));
        let format = body.view().format();
        let (levels, records) = (body.view().level_bytes(), body.view().record_bytes());
        sparseloco::BodyRef::check(&run.layout, format, levels, records).unwrap();
        sparseloco::decode(&run.layout, body.view()).iter().fold(0.0_f32, |most, value| most.max(value.abs()))
    };
    let (honest, huge) = (largest(&Habit::Honest), largest(&Habit::Huge));
    assert!(huge > 5.0 * honest && huge <= 128.0, "{huge}, {honest}");
}

#[test]
fn targeted_poison_hides_under_honest_work_and_pulls_elsewhere() {
    let run = Run::new();
    let scores = run.scores(&Habit::PoisonTarget);
    let sum = |scores: &[Score]| scores.iter().map(|score| score.improvement).sum::<f64>();
    let honest = run.scores(&Habit::Honest);
    assert!(0.0 < sum(&scores) && sum(&scores) < sum(&honest), "{} of {}", sum(&scores), sum(&honest));
    // What it adds to honest work is the same for all who do it.
    let added = |peer| -> Vec<f32> {
        let (poison, honest) = (run.delta(&Habit::PoisonTarget, peer), run.delta(&Habit::Honest, peer));
        poison.iter().zip(honest.iter()).map(|(poison, honest)| poison - honest).collect()
    };
    let (one, other) = (added(1), added(2));
    let size = one.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    let apart = one.iter().zip(&other).fold(0.0_f32, |most, (one, other)| most.max((one - other).abs()));
    assert!(size > 0.1 && apart < 1e-4, "{size}, {apart}");
}

#[test]
fn zero_is_zero_and_shows_no_work() {
    let run = Run::new();
    assert!(run.delta(&Habit::Zero, 1).iter().all(|value| value.to_bits() == 0));
    let score = run.score(&Habit::Zero, 1);
    assert!(score.improvement == 0.0 && !score.honest, "{score:?}");
}

#[test]
fn other_samples_than_the_assigned_help_but_do_not_pass_for_them() {
    let scores = Run::new().scores(&Habit::WrongData);
    let helpful = scores.iter().filter(|score| score.improvement > 0.0).count();
    let honest = scores.iter().filter(|score| score.honest).count();
    assert!(helpful > 15 && honest < 19, "{helpful} help, {honest} pass");
}

#[test]
fn one_step_called_many_helps_less_than_many() {
    let run = Run::new();
    let sum = |habit| run.scores(&habit).iter().map(|score| score.improvement).sum::<f64>();
    assert!(sum(Habit::FewSteps) < 0.7 * sum(Habit::Honest));
}

#[test]
fn who_is_stale_works_from_where_it_was() {
    let run = Run::new();
    let before: Vec<f32> = run.theta.iter().map(|value| value * 3.0).collect();
    let stale = Habit::Stale { rounds: 2 };
    assert_eq!((stale.rounds_behind(), Habit::Huge.rounds_behind()), (2, 0));
    assert_ne!(bits(&run.delta_from(&stale, 1, &before, 0)), bits(&run.delta(&Habit::Honest, 1)));
    let there = Run { theta: before.clone(), ..Run::new() };
    assert_eq!(bits(&run.delta_from(&stale, 1, &before, 0)), bits(&there.delta(&Habit::Honest, 1)));
}

#[test]
fn a_sleeper_is_honest_until_its_round() {
    let run = Run::new();
    let sleeper = |from| Habit::Sleeper { from: Round(from), then: Box::new(Habit::PoisonTarget) };
    let delta = |habit: &Habit| bits(&run.delta(habit, 1));
    assert_eq!(delta(&sleeper(6)), delta(&Habit::Honest));
    assert_eq!(delta(&sleeper(5)), delta(&Habit::PoisonTarget));
    assert_ne!(delta(&Habit::PoisonTarget), delta(&Habit::Honest));
}

#[test]
fn a_new_trainer_goes_on_from_the_boundary_and_behind_it_from_the_payload_made_since() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), RunId([1; 32])).unwrap();
    let write = |round, section, steps_done| {
        let bytes = postcard::to_allocvec(&Kept { round, steps_done }).unwrap();
        store.write(round, section, &bytes).unwrap();
    };
    assert_eq!(steps_done_for(&store, Round(0)), 0);
    write(Round(0), PENDING_SECTION, 4);
    assert_eq!([Round(0), Round(1)].map(|round| steps_done_for(&store, round)), [0, 4]);
    write(Round(3), SECTION, 12);
    store.complete(Round(3), &[SECTION]).unwrap();
    assert_eq!([Round(3), Round(4)].map(|round| steps_done_for(&store, round)), [12, 12]);
    write(Round(3), PENDING_SECTION, 16);
    assert_eq!([Round(3), Round(4)].map(|round| steps_done_for(&store, round)), [12, 16]);
}
