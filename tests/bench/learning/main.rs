//! What training learns at equal tokens, and for how many bytes: `cargo xtask bench learning`.
//!
//! Four peers train the default run's model on its corpus, by every method of the table from the same seeds: the same θ₀, the
//! same tokens in the same order, the same inner optimiser and schedule. The schedule's peak is the one, of 1e-3 and 3e-3,
//! that suits the dense methods. The loss is that of θ on held-out sequences. All payloads are the library's own, coded
//! for transport and decoded again before they are applied. `--also "sparse one-bit mean-of-senders k=200"` adds a row (see
//! `method`); all else is in `--help`.
//!
//! A run is bit for bit the same on any number of threads. A row takes a minute and a half on two cores.

#![expect(clippy::print_stdout, reason = "it measures, and says what it measured")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

mod dense;
mod method;
mod rounds;
mod sparse;
mod training;

use std::num::NonZero;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use convoke::genesis;
use convoke_node::cli::RunArgs;
use convoke_node::data::Dataset;

use method::Method;
use rounds::{Outcome, run};
use training::{N_PEERS, Setting};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The rows of the table. A 146th of fp32's bytes, which 12 + 2 bits take at k = 64, buys 110 signs a chunk or 92 values of
/// two bits. DiLoCo without momentum, at α = 1, is plain averaging: what compression loses is the distance to it.
const METHODS: [&str; 16] = [
    "adamw",
    "diloco alpha=0.7 momentum=0.9",
    "diloco alpha=0.4 momentum=0.9",
    "diloco alpha=1 momentum=0",
    "sparse none mean-of-all k=64",
    "sparse none mean-of-senders k=64",
    "sparse sigma-bins mean-of-all k=64",
    "sparse sigma-bins mean-of-senders k=64",
    "sparse one-bit mean-of-all k=64",
    "sparse one-bit mean-of-senders k=64",
    "sparse two-bit mean-of-all k=64",
    "sparse two-bit mean-of-senders k=64",
    "sparse one-bit mean-of-senders k=64 beta=0.85",
    "sparse two-bit mean-of-senders k=92 beta=0.85",
    "sparse one-bit mean-of-senders k=110 beta=0.95",
    "sparse one-bit mean-of-senders k=110 beta=0.85",
];

/// Held-out loss at equal tokens, and bytes a round, by method.
#[derive(Debug, Parser)]
struct Options {
    /// Runs of each method: from seed 1, 2, and so on.
    #[arg(long, default_value = "3")]
    seeds: NonZero<u64>,
    /// Rounds of each run.
    #[arg(long, default_value = "15")]
    rounds: NonZero<u32>,
    /// H: inner steps of a round.
    #[arg(long, default_value = "30")]
    steps: NonZero<u32>,
    /// Sequences of a peer's inner step.
    #[arg(long, default_value = "8")]
    batch: NonZero<usize>,
    /// Held-out sequences whose loss is measured.
    #[arg(long, default_value = "256")]
    heldout: NonZero<usize>,
    /// Peak of the inner learning rate.
    #[arg(long, default_value_t = 3e-3)]
    lr: f64,
    /// Only the rows that contain this text.
    #[arg(long, default_value = "")]
    methods: String,
    /// One more row; may be given several times.
    #[arg(long)]
    also: Vec<String>,
    /// Peers that are computed at the same time; changes no result.
    #[arg(long, default_value = "2")]
    threads: NonZero<usize>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn setting(&self) -> anyhow::Result<Setting> {
        let cache = tempfile::tempdir()?;
        let config = RunArgs { data_dir: Some(cache.path().to_owned()), ..RunArgs::default() }.config()?;
        let model = config.run.model.clone();
        let dataset = Dataset::open(&config.data, &config.run.data, model.context_len, model.vocab_size, cache.path())?;
        let mut inner = config.run.inner.clone();
        inner.steps = self.steps.get();
        inner.batch_sequences = self.batch.get();
        inner.micro_batch_sequences = self.batch.get();
        inner.lr_peak = self.lr;
        inner.lr_decay_steps = u64::from(self.rounds.get()) * u64::from(self.steps.get());
        Ok(Setting {
            layout: genesis::layout(&model)?,
            heldout: dataset.heldout(self.heldout.get()),
            n_rounds: self.rounds.get() as usize,
            n_threads: self.threads.get(),
            model,
            inner,
            dataset,
        })
    }

    fn rows(&self) -> anyhow::Result<Vec<Row>> {
        let listed = METHODS.iter().filter(|name| name.contains(&self.methods));
        let names = listed.map(|name| (*name).to_owned()).chain(self.also.iter().cloned());
        names.map(|name| Ok(Row { method: name.parse()?, name, outcomes: Vec::new() })).collect()
    }
}

/// A method and its runs, one a seed.
struct Row {
    name: String,
    method: Method,
    outcomes: Vec<Outcome>,
}

impl Row {
    fn run(&mut self, setting: &Setting, n_seeds: u64) {
        for seed in 1..=n_seeds {
            let started = Instant::now();
            let outcome = run(setting, &self.method, seed);
            let (half, end, seconds) = (outcome.loss_half, outcome.loss_end, started.elapsed().as_secs_f64());
            eprintln!("{}, seed {seed}: {half:.4}, then {end:.4}; {seconds:.0} s", self.name);
            self.outcomes.push(outcome);
        }
    }

    fn of(&self, figure: impl Fn(&Outcome) -> f64) -> Spread {
        Spread::of(self.outcomes.iter().map(figure).collect())
    }

    /// The row in Markdown. `diloco` is what the loss is compared with, seed by seed: θ₀ and tokens are the same, so that
    /// much of what makes seeds differ cancels.
    fn print(&self, dense_bytes: f64, diloco: Option<&Row>) {
        let [half, end] = [self.of(|outcome| outcome.loss_half), self.of(|outcome| outcome.loss_end)];
        let pairs = diloco.map(|row| self.outcomes.iter().zip(&row.outcomes));
        let gaps = pairs.map(|pairs| Spread::of(pairs.map(|(own, other)| own.loss_end - other.loss_end).collect()));
        let gap =
            gaps.map_or_else(String::new, |gap| format!("{:+.3} ({:+.3} to {:+.3})", gap.mean, gap.low, gap.high));
        let [canonical, transport, error] = [
            self.of(|outcome| outcome.sent.canonical_bytes).mean,
            self.of(|outcome| outcome.sent.transport_bytes).mean,
            self.of(|outcome| outcome.sent.relative_error()).mean,
        ];
        println!(
            "| {} | {:.3} | {:.3} ({:.3} to {:.3}) | {gap} | {canonical:.0} | {transport:.0} | {:.2} | {error:.4} |",
            self.name,
            half.mean,
            end.mean,
            end.low,
            end.high,
            dense_bytes / transport
        );
    }
}

/// A figure over the seeds.
struct Spread {
    mean: f64,
    low: f64,
    high: f64,
}

impl Spread {
    fn of(values: Vec<f64>) -> Self {
        Self {
            mean: values.iter().sum::<f64>() / values.len() as f64,
            low: values.iter().copied().fold(f64::INFINITY, f64::min),
            high: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let setting = options.setting().context("the default run's data and model")?;
    let mut rows = options.rows()?;
    rows.iter_mut().for_each(|row| row.run(&setting, options.seeds.get()));
    let (n_rounds, steps, n_params) = (setting.n_rounds, setting.inner.steps, setting.layout.n_params());
    let tokens = n_rounds * steps as usize * N_PEERS * setting.inner.batch_sequences * setting.model.context_len;
    println!(
        "{N_PEERS} peers, {n_rounds} rounds of {steps} inner steps, {tokens} tokens in all, {n_params} parameters, \
         {} seeds, peak learning rate {}; loss in nats a token over {} held-out sequences; bytes a round a peer\n",
        options.seeds,
        options.lr,
        setting.heldout.len()
    );
    println!(
        "| method | loss after {} rounds | after {n_rounds} (lowest to highest) | less DiLoCo's, seed by seed | payload \
         bytes | transport bytes | times smaller than fp32 | relative squared error |\n|---|---|---|---|---|---|---|---|",
        n_rounds / 2
    );
    let diloco = rows.iter().find(|row| matches!(row.method, Method::DiLoCo { .. }));
    rows.iter().for_each(|row| row.print(4.0 * n_params as f64, diloco));
    Ok(())
}
