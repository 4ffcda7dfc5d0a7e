//! How fast θ reaches a joiner, beside one plain iroh-blobs transfer of the same bytes: `cargo xtask bench state`.
//!
//! Every holder is a process of its own, this one started again; the joiner is this process, with a new store and identity for each run,
//! as a new node would come. The plain transfer is what iroh does by itself: its own endpoint and transport defaults,
//! `BlobsProtocol` on one side, `remote().fetch` on the other, both with file stores. Runs of the kinds alternate and medians are
//! compared, so that what else the machine does hits all of them.
//!
//! Arguments: `--mb N` (1000), `--runs N` (3), `--within RATIO` (fails if one holder reaches less than this part of the plain
//! transfer). Files go where TMPDIR says, six times the state in all. Quiet the machine first.

#![expect(clippy::print_stdout, reason = "it measures, and says what it measured")]

#[path = "plain.rs"]
mod plain;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use convoke::terms::{EndpointId, Round};
use convoke_node::peer_sync::admission::Peer;
use convoke_node::peer_sync::state::StateWant;
use convoke_node::peer_sync::transport::{Transport, TransportConfig};
use iroh::SecretKey;
use iroh_blobs::Hash;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Far more than a run needs, so that one that hangs ends.
const BOUND: Duration = Duration::from_secs(600);
const HOLDERS: u8 = 3;
/// What the files take on disk, in states: one for each holder, one for the plain one, and the joiner's, whose deletion may lag.
const DISK: u64 = HOLDERS as u64 + 3;

struct Arguments {
    bytes: usize,
    runs: u8,
    within: f64,
}

/// What a process that was started by this one is to be.
struct Role {
    plain: bool,
    seed: u8,
    dir: String,
    bytes: usize,
    runs: u8,
}

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (mut asked, mut role) = (Arguments { bytes: 1_000_000_000, runs: 3, within: 0.0 }, None);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} takes a value"));
        match argument.as_str() {
            "--mb" => asked.bytes = value()?.parse::<usize>()? * 1_000_000,
            "--runs" => asked.runs = value()?.parse()?,
            "--within" => asked.within = value()?.parse()?,
            "holder" => {
                role = Some(Role {
                    plain: value()? == "plain",
                    seed: value()?.parse()?,
                    dir: value()?,
                    bytes: value()?.parse()?,
                    runs: value()?.parse()?,
                });
            }
            _ => anyhow::bail!("`{argument}` is none of --mb, --runs, --within"),
        }
    }
    let runtime = tokio::runtime::Runtime::new()?;
    match role {
        Some(role) if role.plain => runtime.block_on(hold_plain(&role)).map(|()| ExitCode::SUCCESS),
        Some(role) => runtime.block_on(hold(&role)).map(|()| ExitCode::SUCCESS),
        None => runtime.block_on(measure(&asked)),
    }
}

fn secret(seed: u8) -> SecretKey {
    SecretKey::from_bytes(&[seed; 32])
}

/// The joiner of a run: the seeds from 100 on are theirs.
fn joiner(run: u8) -> SecretKey {
    secret(100 + run)
}

fn state(bytes: usize) -> Bytes {
    let mut state = vec![0; bytes];
    blake3::Hasher::new().finalize_xof().fill(&mut state);
    state.into()
}

/// Serves the state as a node does, until its parent closes its input.
async fn hold(role: &Role) -> Result<()> {
    let transport = Transport::open(TransportConfig::new(role.dir.clone().into(), secret(role.seed))).await?;
    let joiners = (0..role.runs).map(|run| Peer {
        id: EndpointId(*joiner(run).public().as_bytes()),
        addresses: Vec::new(),
        start: 1,
    });
    transport.admit(&joiners.collect::<Vec<_>>()).await?;
    let state = state(role.bytes);
    let hash = Hash::from_bytes(*blake3::hash(&state).as_bytes());
    let started = Instant::now();
    transport.publish_state(state, Round(1), hash).await?;
    report(hash, transport.address(), started.elapsed());
    transport.shutdown().await;
    Ok(())
}

/// Serves the same bytes as iroh does by itself.
async fn hold_plain(role: &Role) -> Result<()> {
    let (served, writing) = plain::Served::start(secret(role.seed), Path::new(&role.dir), state(role.bytes)).await?;
    report(served.hash, served.address, writing);
    served.shutdown().await
}

/// Tells the parent, and waits until it needs this process no more.
fn report(hash: Hash, address: SocketAddr, writing: Duration) {
    println!("{} {address} {}", hash.to_hex(), writing.as_secs_f64());
    drop(std::io::stdin().read_to_end(&mut Vec::new()));
}

/// A process that holds the state. It ends when its input closes.
struct Holder {
    process: Child,
    key: SecretKey,
    hash: Hash,
    address: SocketAddr,
    writing: f64,
}

impl Holder {
    fn start(plain: bool, seed: u8, dir: &Path, asked: &Arguments) -> Result<Self> {
        let numbers = [asked.bytes.to_string(), (3 * asked.runs).to_string()];
        let mut process = Command::new(std::env::current_exe()?)
            .args(["holder", if plain { "plain" } else { "own" }, &seed.to_string()])
            .arg(dir.join(format!("holder-{seed}")))
            .args(numbers)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("piped")).read_line(&mut line)?;
        let mut words = line.split_whitespace();
        let mut word = || words.next().context("a holder did not start");
        let (hash, address, writing) = (word()?.parse()?, word()?.parse()?, word()?.parse()?);
        Ok(Self { process, key: secret(seed), hash, address, writing })
    }

    fn peer(&self) -> Peer {
        Peer { id: EndpointId(*self.key.public().as_bytes()), addresses: vec![self.address], start: 1 }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Closing its input asks it to leave; waiting for it leaves its directory to nobody.
        drop(self.process.stdin.take());
        drop(self.process.wait());
    }
}

/// Seconds of one fetch from these holders by a new node, and of reading the state from its store.
async fn fetch(holders: &[Holder], run: u8, dir: &Path, bytes: usize) -> Result<(f64, f64)> {
    let dir = tempfile::tempdir_in(dir)?;
    let transport = Transport::open(TransportConfig::new(dir.path().to_owned(), joiner(run))).await?;
    transport.admit(&holders.iter().map(Holder::peer).collect::<Vec<_>>()).await?;
    let hash = holders.first().context("no holder")?.hash;
    let holders = holders.iter().map(|holder| holder.peer().id).collect();
    let want = StateWant { hash, size: bytes as u64, round: Round(1), holders };
    let fetched = transport.fetch_state(want, tokio::time::Instant::now() + BOUND).await;
    fetched.outcome.clone()?;
    let excess = fetched.bytes() - bytes as u64;
    ensure!(excess * 10 < bytes as u64, "{excess} bytes came twice");
    let started = Instant::now();
    let theta = transport.load_state(hash, bytes / size_of::<f32>()).await?;
    let reading = started.elapsed().as_secs_f64();
    ensure!(blake3::hash(bytemuck::cast_slice(&theta)).as_bytes() == hash.as_bytes(), "another state came");
    transport.shutdown().await;
    Ok((fetched.elapsed.as_secs_f64(), reading))
}

async fn measure(asked: &Arguments) -> Result<ExitCode> {
    ensure!(asked.bytes > 0 && asked.runs > 0, "nothing to measure");
    let dir = tempfile::Builder::new().prefix("convoke-state-").tempdir()?;
    let disk = rustix::fs::statvfs(dir.path())?;
    let (free, needed) = (disk.f_bavail * disk.f_frsize, DISK * asked.bytes as u64);
    ensure!(
        free > needed,
        "{} has {free} bytes free, and {needed} are needed: set TMPDIR or --mb",
        dir.path().display()
    );
    let mut holders = Vec::new();
    for seed in 1..=HOLDERS {
        holders.push(Holder::start(false, seed, dir.path(), asked)?);
    }
    let holder = Holder::start(true, HOLDERS + 1, dir.path(), asked)?;
    let (mut plain_runs, mut one_runs, mut all_runs, mut readings) = (vec![], vec![], vec![], vec![]);
    for run in 0..asked.runs {
        plain_runs.push(plain::fetch(&holder.key, holder.address, holder.hash, dir.path()).await?);
        let (one, reading) = fetch(&holders[..1], 2 * run, dir.path(), asked.bytes).await?;
        let (all, _) = fetch(&holders, 2 * run + 1, dir.path(), asked.bytes).await?;
        one_runs.push(one);
        all_runs.push(all);
        readings.push(reading);
    }
    let baseline = median(&plain_runs);
    println!("{} MB over loopback, {} runs of each kind in turns, medians\n", asked.bytes / 1_000_000, asked.runs);
    println!("{:34} {:>8} {:>8} {:>8}   MB/s of each run", "", "seconds", "MB/s", "ratio");
    let row = |name: &str, seconds: &[f64]| {
        let rate = |seconds: f64| asked.bytes as f64 / seconds / 1e6;
        let each: Vec<String> = seconds.iter().map(|seconds| format!("{:.0}", rate(*seconds))).collect();
        let (median, ratio) = (median(seconds), baseline / median(seconds));
        println!("{name:34} {median:>8.2} {:>8.0} {ratio:>8.2}   {}", rate(median), each.join(" "));
    };
    row("iroh-blobs alone, one holder", &plain_runs);
    row("fetch_state, one holder", &one_runs);
    row(&format!("fetch_state, {HOLDERS} holders"), &all_runs);
    row("load_state, from the store", &readings);
    row("publish_state, into the store", &holders.iter().map(|holder| holder.writing).collect::<Vec<_>>());
    row("iroh-blobs add_bytes", &[holder.writing]);
    std::io::stdout().flush()?;
    let ratio = baseline / median(&one_runs);
    if ratio < asked.within {
        println!("\none holder reaches {ratio:.2} of a plain transfer, {} is wanted", asked.within);
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
