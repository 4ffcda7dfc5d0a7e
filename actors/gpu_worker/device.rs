//! The work on one device: everything here runs on the worker's own bench.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use convoke::assignment::assigned;
use convoke::gauntlet::loss_score::Losses;
use convoke::model::generate::{Sampling, generate};
use convoke::model::inner::inner_steps;
use convoke::model::llama::{Batch, Llama};
use convoke::model::optimiser::AdamW;
use convoke::sparseloco;
use convoke::terms::{BlockHash, Round};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::replicas::Threaded;
use super::trainer::{Trainer, Trainers};
use super::{PENDING_SECTION, SECTION, Trained};
use crate::compressor::Theta;
use crate::data::Dataset;
use crate::gauntlet::Evaluation;
use crate::journal::StepReport;
use crate::leaf::Leaf;
use crate::node::Parts;
use crate::pages::Pages;
use crate::store::{put_f32s, take_f32s};

/// Sequences whose losses are measured at once.
const EVAL_BATCH: usize = 8;

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The name means nothing.
    #[error("`{name}` is no device: write cpu, cuda:N or wgpu:N")]
    Unknown {
        /// What was given.
        name: String,
    },
    /// The build or the machine has no such device.
    #[error("there is no device `{name}` here; present: {present}")]
    Absent {
        /// What was given.
        name: String,
        /// What there is.
        present: String,
    },
}

/// The device of a name, always by enumeration: asking Burn for a device that is not there panics.
///
/// # Errors
/// The name is unknown, or no such device is present.
pub fn find(name: &str) -> Result<Device, DeviceError> {
    let unknown = || DeviceError::Unknown { name: name.to_owned() };
    if name == "cpu" {
        return Ok(Device::flex());
    }
    let (kind, idx) = name.split_once(':').ok_or_else(unknown)?;
    let idx: usize = idx.parse().map_err(|_| unknown())?;
    let found = devices(kind).ok_or_else(unknown)?.into_iter().nth(idx);
    found.ok_or_else(|| {
        let mut present = vec!["cpu".to_owned()];
        for kind in ["cuda", "wgpu"] {
            let n_devices = devices(kind).map_or(0, |devices| devices.len());
            present.extend((0..n_devices).map(|idx| format!("{kind}:{idx}")));
        }
        DeviceError::Absent { name: name.to_owned(), present: present.join(", ") }
    })
}

/// The devices of a kind; `None` when the kind is unknown, none when the build lacks it.
fn devices(kind: &str) -> Option<Vec<Device>> {
    match kind {
        #[cfg(feature = "cuda")]
        "cuda" => Some(Device::enumerate(burn::tensor::DeviceType::Cuda).into_iter().collect()),
        #[cfg(feature = "wgpu")]
        "wgpu" => Some(Device::enumerate(burn::tensor::DeviceType::Wgpu).into_iter().collect()),
        "cuda" | "wgpu" => Some(vec![]),
        _ => None,
    }
}

/// Trains the run's model, on the device of the node's configuration and the tokens of a data set.
pub struct Devices {
    dataset: Arc<Dataset>,
}

impl Devices {
    /// Trainers that read this data set.
    #[must_use]
    pub fn new(dataset: Dataset) -> Self {
        Self { dataset: Arc::new(dataset) }
    }

    /// A trainer that makes no more inner steps of a round than so many, however many the run asks for.
    pub(crate) fn trainer_up_to(&self, parts: &Arc<Parts>, steps_max: usize) -> Box<dyn Trainer> {
        Box::new(Desk::new(Arc::clone(parts), Arc::clone(&self.dataset), steps_max))
    }
}

impl Trainers for Devices {
    fn trainer(&self, parts: &Arc<Parts>) -> Box<dyn Trainer> {
        self.trainer_up_to(parts, usize::MAX)
    }

    fn n_train_samples(&self) -> u64 {
        self.dataset.n_train_samples()
    }

    fn first_theta(&self, parts: &Parts) -> Vec<f32> {
        convoke::genesis::theta(&parts.config.run.model, parts.config.run.seed, &parts.layout)
    }
}

/// What lies on the bench.
struct Desk {
    parts: Arc<Parts>,
    dataset: Arc<Dataset>,
    device: Device,
    replicas: Threaded,
    /// Inner steps of a round at most, beside what the run says.
    steps_max: usize,
    held: Option<Held>,
    /// A second model for evaluations; made when first wanted.
    judge: Option<Llama>,
    heldout: Vec<Batch>,
    /// The round whose inner steps the averages have in them beyond the boundary.
    trained: Option<Round>,
}

/// The model and its optimiser.
struct Held {
    round: Round,
    theta: Theta,
    model: Llama,
    optimiser: AdamW,
}

#[derive(Serialize, Deserialize)]
struct AveragesHead {
    round: Round,
    steps_done: u64,
}

impl Trainer for Desk {
    fn load(&mut self, round: Round, theta: Theta, adopt_pending: bool) -> f64 {
        let started = Instant::now();
        match &mut self.held {
            Some(held) => {
                held.model.load(|idx| tensor(&self.parts, &theta, idx));
                (held.round, held.theta) = (round, theta);
            }
            None => {
                let spec = &self.parts.config.run.model;
                let model = Llama::from_tensors(spec, &self.device, |idx| tensor(&self.parts, &theta, idx));
                let optimiser = self.averages_for(round, &model).unwrap_or_else(|| AdamW::new(&model));
                self.held = Some(Held { round, theta, model, optimiser });
            }
        }
        if adopt_pending {
            self.adopt_pending(round);
        }
        let loss = self.heldout_loss();
        self.parts.journal.metrics.gpu_worker.heldout_time.record(started.elapsed().as_secs_f64());
        loss
    }

    fn inner_steps(&mut self, round: Round, seed: BlockHash, stop: &AtomicBool) -> Result<Trained, String> {
        let started = Instant::now();
        if self.trained == Some(round) {
            // Steps that led to no payload must not be in the averages of those that are made in their place.
            self.back_to_boundary();
        }
        let parts = Arc::clone(&self.parts);
        let Some(held) = self.held.as_mut().filter(|held| held.round == round) else {
            return Err(format!("the worker does not hold θ of round {round}"));
        };
        self.trained = Some(round);
        let inner = &parts.config.run.inner;
        let batches = assigned_batches(&parts, &self.dataset, &seed).into_iter().take(self.steps_max);
        let tokens_a_step = (inner.batch_sequences * parts.config.run.model.context_len) as u64;
        let mut step_started = Instant::now();
        let go_on = |reports: &[convoke::model::inner::StepReport]| {
            if let Some(report) = reports.last() {
                let report = StepReport {
                    step: u32::try_from(reports.len()).unwrap_or(u32::MAX),
                    tokens: tokens_a_step,
                    loss: report.loss,
                    lr: report.lr,
                    gradient_norm: report.norm.unwrap_or(f64::NAN),
                    seconds: step_started.elapsed().as_secs_f64(),
                };
                parts.journal.inner_step(round, &report);
            }
            if reports.len() == inner.steps as usize / 2 {
                parts.faults.point_on_thread(Leaf::GpuWorker, "mid-inner-steps", round);
            }
            step_started = Instant::now();
            !stop.load(Ordering::Relaxed)
        };
        let first_step = round.0 * u64::from(inner.steps);
        let replicas = &mut self.replicas;
        let reports = inner_steps(&mut held.model, &mut held.optimiser, inner, first_step, batches, replicas, go_on);
        let delta = delta(&parts, held);
        self.save_averages(round, PENDING_SECTION)?;
        let steps = u32::try_from(reports.len()).unwrap_or(u32::MAX);
        Ok(Trained {
            steps,
            tokens: u64::from(steps) * tokens_a_step,
            loss: reports.last().map_or(f64::NAN, |report| report.loss),
            seconds: started.elapsed().as_secs_f64(),
            delta: Arc::new(delta),
        })
    }

    fn evaluate(&mut self, _: Round, theta: &Theta, evaluation: &Evaluation) -> Losses {
        let parts = Arc::clone(&self.parts);
        let run = &parts.config.run;
        let sets =
            [&evaluation.assigned, &evaluation.unassigned].map(|samples| batches(&self.dataset, samples, EVAL_BATCH));
        let [assigned_before, unassigned_before] = self.judge(theta, &sets);
        let mut after = theta.to_vec();
        let step = run.gauntlet.step_ratio * run.sparse.lr_outer;
        let Evaluation { payload, scales, .. } = evaluation;
        sparseloco::apply_one(&parts.layout, &run.sparse, payload.body(), step, scales, &mut after);
        let [assigned_after, unassigned_after] = self.judge(&after, &sets);
        Losses { assigned_before, assigned_after, unassigned_before, unassigned_after }
    }

    fn save(&mut self, round: Round) -> Result<bool, String> {
        if self.held.as_ref().is_none_or(|held| held.round != round) {
            return Ok(false);
        }
        self.save_averages(round, SECTION)?;
        self.trained = None;
        Ok(true)
    }

    fn write(&self, prompt: &str, tokens: usize) -> String {
        let Some(held) = &self.held else { return String::new() };
        let Ok(mut text) = self.dataset.encode(prompt) else { return String::new() };
        let sampling = Sampling { temperature: 0.8, top_k: 40, seed: held.round.0 };
        let continuation: Vec<u32> = generate(&held.model, &text, sampling).take(tokens).collect();
        text.extend(continuation);
        self.dataset.decode(&text)
    }
}

impl Desk {
    /// # Panics
    /// When the device has gone since the node was set up: the supervisor's business.
    fn new(parts: Arc<Parts>, dataset: Arc<Dataset>, steps_max: usize) -> Self {
        let device = find(&parts.config.node.device).unwrap_or_else(|error| panic!("{error}"));
        // Only on the CPU do several replicas share a device.
        let n_threads = if parts.config.node.device == "cpu" { parts.cpu_threads() } else { 1 };
        let replicas = Threaded::new(n_threads);
        let heldout = dataset.heldout(parts.config.run.data.heldout_sequences);
        let heldout = heldout.chunks(EVAL_BATCH).map(batch).collect();
        Self { parts, dataset, device, replicas, steps_max, held: None, judge: None, heldout, trained: None }
    }

    fn heldout_loss(&mut self) -> f64 {
        let Some(held) = &self.held else { return f64::NAN };
        mean(self.replicas.losses(&held.model, self.heldout.clone()).into_iter().flatten())
    }

    /// Mean losses of two sets under the given parameters.
    fn judge(&mut self, theta: &[f32], sets: &[Vec<Batch>; 2]) -> [f64; 2] {
        let parts = Arc::clone(&self.parts);
        let judge = match &mut self.judge {
            Some(judge) => {
                judge.load(|idx| tensor(&parts, theta, idx));
                judge
            }
            none => none
                .insert(Llama::from_tensors(&parts.config.run.model, &self.device, |idx| tensor(&parts, theta, idx))),
        };
        let replicas = &mut self.replicas;
        [0, 1].map(|set: usize| mean(replicas.losses(judge, sets[set].clone()).into_iter().flatten()))
    }

    fn save_averages(&self, round: Round, section: &str) -> Result<(), String> {
        let Some(held) = &self.held else { return Err("the worker holds no model".to_owned()) };
        let head = AveragesHead { round, steps_done: held.optimiser.steps_done() };
        let mut bytes = postcard::to_allocvec(&head).map_err(|error| error.to_string())?;
        let averages = std::cell::RefCell::new(&mut bytes);
        let put = |_: usize, values: &[f32]| put_f32s(&mut averages.borrow_mut(), values);
        held.optimiser.export(put, put);
        self.parts.store.write(round, section, &bytes).map_err(|error| error.to_string())
    }

    /// The averages of the newest boundary.
    ///
    /// # Panics
    /// When there is a boundary and it cannot be read: the supervisor tries again, with nothing forgotten.
    fn saved_averages(&self, model: &Llama) -> Option<AdamW> {
        let round = self.parts.store.latest().unwrap_or_else(|error| panic!("{error}"))?;
        let averages = self.read_averages(round, SECTION, model);
        Some(averages.unwrap_or_else(|| panic!("the optimiser of round {round} cannot be read")))
    }

    /// The averages that go with θ of `round`. When θ has moved past the boundary, what was trained since is beside it.
    fn averages_for(&self, round: Round, model: &Llama) -> Option<AdamW> {
        let boundary = self.parts.store.latest().unwrap_or_else(|error| panic!("{error}"));
        let trained_in = boundary.unwrap_or_default();
        let trained = (round > trained_in).then(|| self.read_averages(trained_in, PENDING_SECTION, model)).flatten();
        trained.or_else(|| self.saved_averages(model))
    }

    fn read_averages(&self, round: Round, section: &str, model: &Llama) -> Option<AdamW> {
        let bytes = self.parts.store.read(round, section).ok()?;
        let (head, mut rest) = postcard::take_from_bytes::<AveragesHead>(&bytes).ok()?;
        if head.round != round {
            return None;
        }
        let lens = self.parts.layout.tensors().iter().map(|tensor| tensor.shape.iter().product());
        let mut take = || lens.clone().map(|len| take_f32s(&mut rest, len)).collect::<Option<Vec<_>>>();
        let (mut first, mut second) = (take()?, take()?);
        let take = |tensors: &mut Vec<Vec<f32>>, idx: usize| std::mem::take(&mut tensors[idx]);
        Some(AdamW::import(model, head.steps_done, |idx| take(&mut first, idx), |idx| take(&mut second, idx)))
    }

    fn adopt_pending(&mut self, round: Round) {
        let Some(mut held) = self.held.take() else { return };
        if let Some(optimiser) = self.read_averages(round, PENDING_SECTION, &held.model) {
            held.optimiser = optimiser;
            self.trained = Some(round);
        }
        self.held = Some(held);
    }

    fn back_to_boundary(&mut self) {
        let Some(mut held) = self.held.take() else { return };
        held.optimiser = self.saved_averages(&held.model).unwrap_or_else(|| AdamW::new(&held.model));
        let theta = Arc::clone(&held.theta);
        held.model.load(|idx| tensor(&self.parts, &theta, idx));
        self.trained = None;
        self.held = Some(held);
    }
}

/// One tensor of θ, row-major.
fn tensor(parts: &Parts, theta: &[f32], idx: usize) -> Vec<f32> {
    let mut row_major = vec![0.0; parts.layout.tensors()[idx].shape.iter().product()];
    parts.layout.scatter(idx, theta, &mut row_major);
    row_major
}

/// Δ = θ_start − θ_end, chunk-major.
fn delta(parts: &Parts, held: &Held) -> Pages {
    let mut delta = Pages::zeroed(parts.layout.flat_len());
    held.model.export(|idx, values| parts.layout.gather(idx, values, &mut delta));
    for (end, start) in delta.iter_mut().zip(held.theta.iter()) {
        *end = start - *end;
    }
    delta
}

/// The batches that the round's seed assigns to this node, one an inner step.
fn assigned_batches(parts: &Parts, dataset: &Dataset, seed: &BlockHash) -> Vec<Batch> {
    let inner = &parts.config.run.inner;
    let count = inner.steps as usize * inner.batch_sequences;
    let samples = assigned(seed, &parts.keypair.hotkey(), dataset.n_train_samples(), count);
    batches(dataset, &samples, inner.batch_sequences)
}

fn batches(dataset: &Dataset, samples: &[u64], n_sequences: usize) -> Vec<Batch> {
    samples
        .chunks(n_sequences)
        .map(|samples| batch(&samples.iter().map(|sample| dataset.sample(*sample)).collect::<Vec<_>>()))
        .collect()
}

fn batch(sequences: &[Vec<u32>]) -> Batch {
    let len = sequences.first().map_or(0, Vec::len);
    Batch::new(sequences.concat(), len).expect("samples have one length, of at least two tokens")
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0_u32), |(sum, n), value| (sum + value, n + 1));
    sum / f64::from(n.max(1))
}
