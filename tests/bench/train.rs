//! Tokens per second of the inner steps, beside PyTorch's on the same shapes: `cargo bench -p convoke-node --bench train`.
//!
//! With `CONVOKE_PYTHON` naming a Python that has torch, `xtask/reference/llama_eager.py` runs in turns with the trainer, and
//! the ratios of the medians are printed. Arguments: model preset (tiny), batch (16), micro-batch (8), steps per run (20),
//! runs (5). Quiet the machine first.
//!
//! The allocator is the node's. On these shapes the system's is a few per cent slower, jemalloc takes twice as long.

#![expect(clippy::print_stdout, reason = "it measures, and says what it measured")]

#[path = "../../actors/gpu_worker/replicas.rs"]
mod replicas;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Instant;

use burn::tensor::Device;
use convoke::model::initial::init_tensor;
use convoke::model::inner::inner_steps;
use convoke::model::llama::{Batch, Llama};
use convoke::model::optimiser::AdamW;
use convoke::run_spec::{InnerSpec, ModelSpec};
use replicas::Threaded;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Shapes {
    spec: ModelSpec,
    batch: usize,
    micro_batch: usize,
    steps: u32,
    runs: usize,
}

impl Shapes {
    fn from_args() -> anyhow::Result<Self> {
        let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
        let preset = args.next().unwrap_or_else(|| "tiny".to_owned());
        let path = format!("{}/../configs/models/{preset}.toml", env!("CARGO_MANIFEST_DIR"));
        let spec = toml::from_str(&std::fs::read_to_string(path)?)?;
        let mut number = |default: usize| args.next().map_or(Ok(default), |arg| arg.parse());
        let (batch, micro_batch) = (number(16)?, number(8)?);
        Ok(Self { spec, batch, micro_batch, steps: number(20)? as u32, runs: number(5)? })
    }

    fn inner(&self) -> InnerSpec {
        InnerSpec {
            steps: self.steps,
            steps_min: 1,
            batch_sequences: self.batch,
            micro_batch_sequences: self.micro_batch,
            lr_peak: 1e-3,
            lr_warmup_steps: 10,
            lr_decay_steps: 10_000,
            lr_floor_ratio: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
        }
    }

    fn batch(&self, step: usize) -> Batch {
        let sequence_len = self.spec.context_len + 1;
        let token = |i: usize| ((i * 7919 + step * 104_729) % self.spec.vocab_size) as u32;
        Batch::new((0..self.batch * sequence_len).map(token).collect(), sequence_len).expect("whole sequences")
    }
}

struct Trainer {
    model: Llama,
    optimiser: AdamW,
    replicas: Threaded,
}

impl Trainer {
    fn new(spec: &ModelSpec, n_threads: usize) -> Self {
        let model = Llama::from_tensors(spec, &Device::flex(), |idx| init_tensor(spec, 1, idx));
        Self { optimiser: AdamW::new(&model), model, replicas: Threaded::new(n_threads) }
    }

    fn evaluated_tokens_per_second(&mut self, shapes: &Shapes) -> f64 {
        let batches: Vec<Batch> = (0..8).flat_map(|step| shapes.batch(step).split(shapes.micro_batch)).collect();
        let tokens: usize = batches.iter().map(Batch::n_targets).sum();
        let start = Instant::now();
        let losses = self.replicas.losses(&self.model, batches);
        let seconds = start.elapsed().as_secs_f64();
        assert!(losses.iter().flatten().all(|loss| loss.is_finite()), "the model still trains");
        tokens as f64 / seconds
    }

    fn tokens_per_second(&mut self, shapes: &Shapes) -> f64 {
        let batches: Vec<Batch> = (0..shapes.steps as usize).map(|step| shapes.batch(step)).collect();
        let tokens: usize = batches.iter().map(Batch::n_targets).sum();
        let warm = InnerSpec { steps: 1, ..shapes.inner() };
        let first = shapes.batch(0);
        inner_steps(&mut self.model, &mut self.optimiser, &warm, 0, [first], &mut self.replicas, |_| true);
        let start = Instant::now();
        let inner = shapes.inner();
        inner_steps(&mut self.model, &mut self.optimiser, &inner, 0, batches, &mut self.replicas, |_| true);
        tokens as f64 / start.elapsed().as_secs_f64()
    }
}

/// PyTorch in a process of its own, answering one line for one line.
struct Torch {
    process: Child,
    ask: ChildStdin,
    answers: BufReader<std::process::ChildStdout>,
}

impl Torch {
    fn new(python: &str, shapes: &Shapes, n_threads: usize) -> anyhow::Result<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../xtask/reference/llama_eager.py");
        let mut process = Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut ask = process.stdin.take().expect("piped");
        let answers = BufReader::new(process.stdout.take().expect("piped"));
        let job = serde_json::json!({
            "spec": shapes.spec, "batch": shapes.batch, "micro_batch": shapes.micro_batch,
            "threads": n_threads, "steps": shapes.steps, "runs": shapes.runs,
        });
        writeln!(ask, "{job}")?;
        Ok(Self { process, ask, answers })
    }

    fn tokens_per_second(&mut self) -> anyhow::Result<[f64; 2]> {
        writeln!(self.ask)?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        // It leaves by itself after its last run; killing it covers an early error here.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn compare(shapes: &Shapes, n_threads: usize) -> anyhow::Result<()> {
    let mut trainer = Trainer::new(&shapes.spec, n_threads);
    let python = std::env::var("CONVOKE_PYTHON").ok();
    let mut torch = python.map(|python| Torch::new(&python, shapes, n_threads)).transpose()?;
    let (mut ours, mut eager, mut fused) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..shapes.runs {
        ours.push(trainer.tokens_per_second(shapes));
        if let Some(torch) = &mut torch {
            let [eager_speed, fused_speed] = torch.tokens_per_second()?;
            eager.push(eager_speed);
            fused.push(fused_speed);
        }
    }
    let speed = median(&mut ours);
    println!("{n_threads} threads: convoke {speed:.0} tokens/s ({:.0} to {:.0})", ours[0], ours[ours.len() - 1]);
    println!("  evaluation {:.0} tokens/s", trainer.evaluated_tokens_per_second(shapes));
    for (name, values) in [("eager", &mut eager), ("fused", &mut fused)] {
        if !values.is_empty() {
            let torch = median(values);
            let (low, high) = (values[0], values[values.len() - 1]);
            println!("  torch {name} {torch:.0} tokens/s ({low:.0} to {high:.0}), ratio {:.2}", speed / torch);
        }
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let shapes = Shapes::from_args()?;
    println!("batch {} in micro-batches of {}, {} steps a run", shapes.batch, shapes.micro_batch, shapes.steps);
    [1, 2].into_iter().try_for_each(|n_threads| compare(&shapes, n_threads))
}
