//! Makes the runs, some at the same time, each in a thread of its own: no run knows of another.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use convoke_node::fake::cast::Part;
use convoke_node::fake::log::Log;
use convoke_node::fake::model_lab::ModelLab;
use convoke_node::fake::world::{Report, Scenario, simulate};

use crate::rows::Job;

/// What came of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Held-out loss at its end, in nats a token; not a number if it did not come to its end.
    pub loss: f64,
    /// Share of the weight that honest miners have, once there are enough scores.
    pub honest_weight: Option<f64>,
    /// What share of it each hostile part has.
    pub earned: BTreeMap<&'static str, f64>,
    /// The share of honest miners in the payloads that were applied.
    pub applied: Option<f64>,
    /// False accusations, and all.
    pub accused: (u64, u64),
    /// Why payloads were refused, of honest and of hostile miners.
    pub refused: BTreeMap<String, u64>,
    /// Rounds without a manifest.
    pub null: usize,
    /// What was seen that must not be; the run ended there.
    pub broken: Option<String>,
}

impl Outcome {
    /// All that is read of a report.
    pub fn of(report: &Report) -> Self {
        let mut refused = BTreeMap::<String, u64>::new();
        let verdicts = &report.verdicts;
        for ((_, reason), count) in &verdicts.refusals {
            *refused.entry(kind(reason)).or_default() += count;
        }
        let broken =
            report.violation.as_ref().map(|found| format!("{} in round {}: {}", found.rule, found.round, found.what));
        Self {
            // Of a run that has ended too early neither is what it would have been.
            loss: verdicts.last_loss().filter(|_| broken.is_none()).unwrap_or(f64::NAN),
            honest_weight: verdicts.honest_weight().filter(|_| broken.is_none()),
            earned: if broken.is_none() { earned(&verdicts.weight) } else { BTreeMap::new() },
            applied: verdicts.honest_applied(),
            accused: verdicts.accused,
            refused,
            null: report.null,
            broken,
        }
    }
}

/// Shares of the hostile.
fn earned(weight: &BTreeMap<Part, f64>) -> BTreeMap<&'static str, f64> {
    let all: f64 = weight.values().sum::<f64>().max(f64::MIN_POSITIVE);
    let hostile = weight.iter().filter(|(part, share)| **part != Part::Honest && **share > 0.0);
    hostile.map(|(part, share)| (part.name(), share / all)).collect()
}

/// A reason without the numbers and names of the case.
pub fn kind(reason: &str) -> String {
    let word =
        |word: &str| if word.contains(|c: char| c.is_ascii_digit()) { "…".to_owned() } else { word.to_owned() };
    reason.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// What all runs have in common.
pub struct Sweep {
    pub lab: ModelLab,
    pub rounds: u64,
    /// Runs that are made at the same time.
    pub n_threads: usize,
}

impl Sweep {
    /// Makes the runs.
    ///
    /// # Errors
    /// If one of them cannot be set up.
    pub fn run(&self, jobs: &[Job]) -> anyhow::Result<BTreeMap<Job, Outcome>> {
        let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
        std::thread::scope(|scope| {
            let work = || self.work(jobs, &next, &outcomes);
            let threads: Vec<_> = (0..self.n_threads).map(|_| scope.spawn(work)).collect();
            let mut ends = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
            ends.try_for_each(|end| end)
        })?;
        Ok(outcomes.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn work(&self, jobs: &[Job], next: &AtomicUsize, outcomes: &Mutex<BTreeMap<Job, Outcome>>) -> anyhow::Result<()> {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let started = Instant::now();
            let outcome = self.run_one(job)?;
            let seconds = started.elapsed().as_secs_f64();
            let n_left = jobs.len().saturating_sub(next.load(Ordering::Relaxed));
            let Job { rules, nodes, faults, seed } = job;
            eprintln!(
                "{seconds:.1} s: {} rules, {nodes} nodes, seed {seed}, {faults}: loss {:.4}; {n_left} runs to begin",
                rules.name(),
                outcome.loss
            );
            outcomes.lock().unwrap_or_else(PoisonError::into_inner).insert(job.clone(), outcome);
        }
        Ok(())
    }

    fn run_one(&self, job: &Job) -> anyhow::Result<Outcome> {
        let scenario = Scenario {
            seed: job.seed,
            nodes: job.nodes,
            rounds: self.rounds,
            faults: job.faults.parse()?,
            lab: Arc::new(self.lab.with(job.rules.sets())),
        };
        Ok(Outcome::of(&simulate(scenario, Log::default())?))
    }
}
