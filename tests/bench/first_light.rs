//! The default run as a newcomer meets it, held against what is wanted of it: `cargo xtask bench first-light`.
//!
//! It starts the release binary in an empty directory and reads what the node says of itself: `events.jsonl` for times,
//! losses and sizes, `/status` for where a round's time went, and the system's record of the process for its memory. The
//! loss of θ₀, which no event tells, is measured here by the same code on the same held-out samples. Argument: rounds
//! (20). Quiet the machine first.

#![expect(clippy::print_stdout, reason = "it measures, and says what it measured")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use convoke::model::initial::init_tensor;
use convoke::model::llama::{Batch, Llama};
use convoke_node::cli::RunArgs;
use convoke_node::data::Dataset;
use convoke_node::events::{self, Event, Line};
use convoke_node::status::{Outcome, Status};

const POLL: Duration = Duration::from_millis(200);
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);
/// Sequences whose losses are measured at once.
const EVAL_BATCH: usize = 8;

/// The node's process, which does not outlive this one's interest in it.
struct NodeProcess(Child);

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // It has ended by itself unless an error came first.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// What was seen of the process from outside.
#[derive(Default)]
struct Watched {
    peak_bytes: u64,
    status: Option<Status>,
}

/// One run, from the start of the binary to its end.
struct FirstLight {
    started_ms: u64,
    seconds: f64,
    watched: Watched,
    events: Vec<Line>,
    heldout_at_start: f64,
}

impl FirstLight {
    fn run(n_rounds: u64) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        // Bound for a moment, so that the system names a port that is free.
        let pages = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let mut node = Command::new(env!("CARGO_BIN_EXE_convoke"));
        node.args(["run", "--rounds", &n_rounds.to_string(), "--http", &pages.to_string()]);
        node.args(["--set", "node.log=warn"]).arg("--data-dir").arg(dir.path()).stdout(Stdio::null());
        let started_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
        let started = Instant::now();
        let mut process = NodeProcess(node.spawn().context("the node's binary cannot be started")?);
        let (ended, watched) = watch(&mut process.0, pages)?;
        let seconds = started.elapsed().as_secs_f64();
        ensure!(ended.success(), "the node ended with {ended}");
        let events = events::read(&dir.path().join(events::FILE_NAME))?;
        Ok(Self { started_ms, seconds, watched, events, heldout_at_start: heldout_at_start(dir.path())? })
    }

    fn seconds_to_first_round(&self) -> f64 {
        let step = self.events.iter().find(|line| matches!(line.event, Event::OuterStep { .. }));
        step.map_or(f64::NAN, |line| line.at_ms.saturating_sub(self.started_ms) as f64 / 1e3)
    }

    fn heldout_at_end(&self) -> f64 {
        let loss = self.events.iter().rev().find_map(|line| match line.event {
            Event::OuterStep { heldout_loss, .. } => heldout_loss,
            _ => None,
        });
        loss.unwrap_or(f64::NAN)
    }

    fn tokens_per_second(&self) -> f64 {
        let parts = self.events.iter().filter_map(|line| match line.event {
            Event::InnerStepsDone { tokens, seconds, .. } => Some((tokens, seconds)),
            _ => None,
        });
        let (tokens, seconds) = parts.fold((0_u64, 0.0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
        tokens as f64 / seconds
    }

    /// Medians over the rounds: bytes of the payload, and how many times smaller than θ it is.
    fn payload(&self) -> [f64; 2] {
        let sealed = self.events.iter().filter_map(|line| match line.event {
            Event::Sealed { bytes, ratio, .. } => Some((bytes as f64, ratio)),
            _ => None,
        });
        let (bytes, ratios): (Vec<f64>, Vec<f64>) = sealed.unzip();
        [median(bytes), median(ratios)]
    }

    /// Medians over the last rounds that `/status` told of: seconds computing, seconds communicating.
    fn spent(&self) -> [f64; 2] {
        let rounds = self.watched.status.iter().flat_map(|status| &status.rounds);
        let ended = rounds.filter(|round| round.outcome == Outcome::OuterStep);
        let (computing, communicating): (Vec<f64>, Vec<f64>) =
            ended.map(|round| (round.computing_seconds, round.communicating_seconds)).unzip();
        [median(computing), median(communicating)]
    }

    fn print(&self, n_rounds: u64) {
        let (before, after) = (self.heldout_at_start, self.heldout_at_end());
        let [computing, communicating] = self.spent();
        let [payload_bytes, payload_ratio] = self.payload();
        println!("{:42}  {:>12}  {:>10}", "figure", "wanted", "measured");
        let row = |figure: &str, wanted: &str, measured: f64, decimals: usize| {
            println!("{figure:42}  {wanted:>12}  {measured:>10.decimals$}");
        };
        row("seconds to the first completed round", "at most 60", self.seconds_to_first_round(), 1);
        let all_rounds = format!("seconds for {n_rounds} rounds, start to end");
        // What is wanted is a matter of 20 rounds.
        let [seconds_wanted, drop_wanted] = if n_rounds == 20 { ["at most 360", "at least 2.0"] } else { ["", ""] };
        row(&all_rounds, seconds_wanted, self.seconds, 1);
        row("held-out loss before, nats a token", "", before, 3);
        row("held-out loss after, nats a token", "", after, 3);
        row("held-out loss, drop", drop_wanted, before - after, 3);
        row("peak resident memory, MB", "below 700", self.watched.peak_bytes as f64 / 1e6, 0);
        row("tokens a second in inner steps", "", self.tokens_per_second(), 0);
        row("seconds computing in a round, median", "", computing, 2);
        row("seconds communicating in a round, median", "", communicating, 2);
        row("payload, bytes", "", payload_bytes, 0);
        row("payload, times smaller than θ in fp32", "", payload_ratio, 1);
    }
}

/// Looks at the process again and again until it ends.
fn watch(process: &mut Child, pages: SocketAddr) -> anyhow::Result<(ExitStatus, Watched)> {
    let mut watched = Watched::default();
    loop {
        if let Some(ended) = process.try_wait()? {
            return Ok((ended, watched));
        }
        watched.peak_bytes = watched.peak_bytes.max(peak_bytes(process.id()).unwrap_or(0));
        watched.status = ask_status(pages).or_else(|| watched.status.take());
        std::thread::park_timeout(POLL);
    }
}

/// The most memory that was ever resident; none before the process is set up and after its end.
fn peak_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = peak.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(kib * 1024)
}

/// The answer of `/status`; none while the pages are not served.
fn ask_status(pages: SocketAddr) -> Option<Status> {
    let mut stream = TcpStream::connect(pages).ok()?;
    stream.set_read_timeout(Some(STATUS_TIMEOUT)).ok()?;
    stream.write_all(b"GET /status HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    serde_json::from_str(body).ok()
}

/// The loss of the parameters that the run started from, on the samples whose loss the node reports.
fn heldout_at_start(data_dir: &Path) -> anyhow::Result<f64> {
    let config = RunArgs { data_dir: Some(data_dir.to_owned()), ..RunArgs::default() }.config()?;
    let (run, model) = (&config.run, &config.run.model);
    // The node has left its token cache there.
    let dataset = Dataset::open(&config.data, &run.data, model.context_len, model.vocab_size, data_dir)?;
    let device = convoke_node::gpu_worker::find(&config.node.device)?;
    let llama = Llama::from_tensors(model, &device, |idx| init_tensor(model, run.seed, idx));
    let mut losses = Vec::new();
    for samples in dataset.heldout(run.data.heldout_sequences).chunks(EVAL_BATCH) {
        losses.extend(llama.losses(&Batch::new(samples.concat(), model.context_len + 1)?));
    }
    Ok(losses.iter().sum::<f64>() / losses.len() as f64)
}

/// The upper median; not a number if there is nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let n_rounds =
        args.next().map_or(Ok(20), |arg| arg.parse::<u64>()).context("the argument is a number of rounds")?;
    println!("the default run, {n_rounds} rounds, {} cores", std::thread::available_parallelism()?);
    FirstLight::run(n_rounds)?.print(n_rounds);
    Ok(())
}
