//! A simulated run that trains the real model: attacks are judged by what they do to learning, which the quadratic world cannot say.
//!
//! The model is as small as one can be that still learns from the corpus what is worth measuring within some dozen short rounds. What
//! a round costs in real time does not matter to the protocol: its work takes the virtual time that it takes with any other lab.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use convoke::genesis;
use convoke::sparseloco::Layout;

use super::lab::Lab;
use super::trainer::Habit;
use super::trainer::model::ModelTrainers;
use crate::config::Layers;
use crate::data::{DataFiles, Dataset};
use crate::gpu_worker::{Devices, Trainers};

/// The run's numbers, over those of the simulation.
const SETS: &[&str] = &[
    "run.model.d_model=32",
    "run.model.n_layers=1",
    "run.model.n_heads=2",
    "run.model.n_kv_heads=1",
    "run.model.d_ff=64",
    "run.model.context_len=32",
    "run.inner.steps=24",
    "run.inner.steps_min=2",
    "run.inner.batch_sequences=4",
    "run.inner.micro_batch_sequences=4",
    // Of the few steps that there are one round warms up; the cosine does not end within any run of this kind. A model this small learns
    // nothing but how frequent words are at the default run's rate, and that is learned whoever attacks.
    "run.inner.lr_peak=1e-2",
    "run.inner.lr_warmup_steps=24",
    "run.inner.lr_decay_steps=1000",
    "run.sparse.keep_per_chunk=110",
    // There must be fewer places than miners, or who is chosen would not matter.
    "run.gauntlet.contributors_max=10",
    "run.gauntlet.newcomer_places=2",
    // Honest peers of a model this small agree in up to 0.45, and others of the same round in nothing.
    "run.gauntlet.copy_overlap_max=0.6",
    "run.data.heldout_sequences=64",
];

/// A model of some 75,000 parameters, and text.
#[derive(Clone)]
pub struct ModelLab {
    sets: Vec<String>,
    layout: Layout,
    devices: Arc<Devices>,
}

impl ModelLab {
    /// Reads the text, whose tokens are kept in `cache_dir` as long as the lab is there.
    ///
    /// # Errors
    /// What is wrong with the files, or with the directory.
    pub fn open(files: &DataFiles, cache_dir: &Path) -> anyhow::Result<Self> {
        let run = SETS.iter().try_fold(Layers::default(), |layers, set| layers.set(set))?.read()?.run;
        let model = &run.model;
        let dataset = Dataset::open(files, &run.data, model.context_len, model.vocab_size, cache_dir)?;
        let sets = SETS.iter().map(|set| (*set).to_owned()).collect();
        Ok(Self { sets, layout: genesis::layout(model)?, devices: Arc::new(Devices::new(dataset)) })
    }

    /// The same model and text in a run with other numbers, which must not be the model's or the data's: `KEY=VALUE`.
    #[must_use]
    pub fn with(&self, sets: &[&str]) -> Self {
        let mut lab = self.clone();
        lab.sets.extend(sets.iter().map(|set| (*set).to_owned()));
        lab
    }
}

impl fmt::Debug for ModelLab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelLab").field("sets", &self.sets).finish_non_exhaustive()
    }
}

impl Lab for ModelLab {
    fn sets(&self) -> Vec<String> {
        self.sets.clone()
    }

    fn layout(&self) -> Layout {
        self.layout.clone()
    }

    fn trainers(&self, seed: u64, habit: &Habit) -> Arc<dyn Trainers> {
        Arc::new(ModelTrainers::new(seed, Arc::clone(&self.devices), habit.clone()))
    }
}
