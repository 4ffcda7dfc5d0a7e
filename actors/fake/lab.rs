//! What the nodes of a simulated run train: a world whose losses cost next to nothing, or the real model.

use std::fmt::Debug;
use std::sync::Arc;

use convoke::run_spec::RunSpec;
use convoke::sparseloco::{Layout, TensorShape};

use super::checks::evidence::{Measure, QuadraticMeasure};
use super::trainer::{FakeTrainers, Habit};
use crate::gpu_worker::Trainers;

/// Samples that there are to train on.
const N_SAMPLES: u64 = 100_000;

/// What is trained, by all nodes of a run.
pub trait Lab: Send + Sync + Debug {
    /// The run's numbers that it wants, over those of the simulation: `KEY=VALUE`.
    fn sets(&self) -> Vec<String>;

    /// The tensors of θ.
    fn layout(&self) -> Layout;

    /// The trainers of one life of a node.
    fn trainers(&self, seed: u64, habit: &Habit) -> Arc<dyn Trainers>;

    /// What finds losses again, if that costs next to nothing (G-1).
    fn measure(&self, _: u64, _: &RunSpec) -> Option<Box<dyn Measure>> {
        None
    }
}

/// The world of [`super::trainer::quadratic`], with a θ of two chunks.
#[derive(Debug, Clone, Copy, Default)]
pub struct QuadraticLab;

impl Lab for QuadraticLab {
    fn sets(&self) -> Vec<String> {
        Vec::new()
    }

    fn layout(&self) -> Layout {
        let shape = |name: &str, shape: &[usize]| TensorShape { name: name.to_owned(), shape: shape.to_vec() };
        Layout::new(vec![shape("matrix", &[64, 64]), shape("vector", &[100])]).expect("two tensors of few values")
    }

    fn trainers(&self, seed: u64, habit: &Habit) -> Arc<dyn Trainers> {
        Arc::new(FakeTrainers::new(seed, N_SAMPLES, habit.clone()))
    }

    fn measure(&self, seed: u64, run: &RunSpec) -> Option<Box<dyn Measure>> {
        let chance = FakeTrainers::chance_of(seed);
        Some(Box::new(QuadraticMeasure::new(chance, N_SAMPLES, &self.layout(), run)))
    }
}
