//! The receiving half's rows of the payload table: decode and check, aggregate and step, digest.
//!
//! Every figure is CPU time of the whole process (its threads together), the least of a few repetitions, so that what else
//! the machine does shows little. θ lies on huge pages, as an operator's allocator should put it: without them the floor and
//! everything above it lose a third.

use std::hint::black_box;
use std::sync::Mutex;

use convoke::digest;
use convoke::pool::Pool;
use convoke::run_spec::{Aggregation, Quantiser, SparseSpec};
use convoke::sparseloco::{Body, BodyRef, CHUNK_LEN, Format, Layout, OuterStep, Simd, TensorShape, encode};
use memmap2::{Advice, MmapMut};
use rustix::time::{ClockId, clock_gettime};

/// Contributions of an outer step.
const CONTRIBUTIONS: usize = 20;

/// Chunks whose contributions are made; the rest repeats them, since making them all would take longer than the measurement.
const CHUNKS_MADE: usize = 256;

const REPETITIONS: usize = 5;

/// A row of the table.
pub struct Row {
    /// What was done.
    pub name: String,
    /// CPU seconds of all threads together.
    pub core_seconds: f64,
    /// How many values it was done for: kept values, or parameters.
    pub values: u64,
}

/// Threads of this bench: each takes the next job when it is free.
struct Threads(usize);

impl Pool for Threads {
    fn for_each<J: Send>(&self, jobs: impl Iterator<Item = J> + Send, work: impl Fn(J) + Sync) {
        if self.0 == 1 {
            return jobs.for_each(work);
        }
        let jobs = Mutex::new(jobs);
        std::thread::scope(|scope| {
            for _ in 0..self.0 {
                scope.spawn(|| {
                    while let Some(job) = { jobs.lock().expect("no job panics").next() } {
                        work(job);
                    }
                });
            }
        });
    }
}

/// Measures the receiving half for a model of `n_chunks` chunks.
pub fn measure(simd: Simd, threads: usize, n_chunks: usize, only: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut theta_pages = huge_pages(n_chunks * CHUNK_LEN);
    let theta: &mut [f32] = bytemuck::cast_slice_mut(&mut theta_pages);
    let pool = Threads(threads);
    let parameters = theta.len() as u64;
    rows.push(row("floor: read and write θ", parameters, || read_and_write(&pool, theta)));
    for (quantiser, keep, name) in [
        (Quantiser::OneBit, 64, "one-bit, k = 64"),
        (Quantiser::TwoBit, 64, "two-bit, k = 64"),
        (Quantiser::TwoBit, 118, "two-bit, k = 118"),
        (Quantiser::SigmaBins, 64, "sigma-bins, k = 64"),
    ] {
        if !name.contains(only) {
            continue;
        }
        let spec = SparseSpec {
            keep_per_chunk: keep,
            error_decay: 0.95,
            lr_outer: 0.4,
            quantiser,
            aggregation: Aggregation::MeanOfSenders,
        };
        let layout = square(n_chunks);
        let payloads: Vec<Payload> = (0..CONTRIBUTIONS).map(|i| Payload::of_noise(&spec, n_chunks, i as u32)).collect();
        let kept = (n_chunks * keep) as u64;
        rows.push(row(&format!("decode and check, {name}"), kept * CONTRIBUTIONS as u64, || {
            let check = |payload: &Payload| {
                black_box(payload.check(simd, &layout, &spec));
            };
            pool.for_each(payloads.iter(), check);
        }));
        for aggregation in [Aggregation::MeanOfAll, Aggregation::MeanOfSenders] {
            let spec = SparseSpec { aggregation, ..spec };
            let bodies: Vec<BodyRef<'_>> = payloads.iter().map(|payload| payload.check(simd, &layout, &spec)).collect();
            rows.push(row(&format!("outer step, R = 20, {name}, {aggregation:?}"), parameters, || {
                let step = OuterStep::new(&pool, simd, &layout, &spec, &bodies);
                black_box(step.run(&pool, theta));
            }));
            if quantiser == Quantiser::TwoBit && keep == 64 {
                rows.push(row(&format!("outer step and digest in one pass, {aggregation:?}"), parameters, || {
                    let step = OuterStep::new(&pool, simd, &layout, &spec, &bodies);
                    black_box(step.run_and_digest(&pool, theta));
                }));
            }
        }
    }
    rows.push(row("digest alone", parameters, || {
        black_box(digest::digest_with(&pool, theta));
    }));
    rows
}

/// A contribution's bytes.
struct Payload {
    levels: Vec<u8>,
    records: Vec<u8>,
}

impl Payload {
    fn of_noise(spec: &SparseSpec, n_chunks: usize, seed: u32) -> Self {
        let layout = square(CHUNKS_MADE);
        let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
        let mut uniform = || {
            (state, _) = (state ^ state << 13, ());
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 - 0.5
        };
        // Mostly small, sometimes large, as pseudo-gradients are.
        let delta: Vec<f32> = (0..layout.flat_len()).map(|_| uniform() + uniform() + uniform()).map(|x| x * x * x).collect();
        let body: Body = encode(&layout, spec, &mut vec![0.0; layout.flat_len()], &delta).expect("finite noise").body;
        let body = body.view();
        let records = body.record_bytes();
        let wanted = n_chunks * Format::of(spec).record_len();
        Self {
            levels: body.level_bytes().to_vec(),
            records: records.iter().copied().cycle().take(wanted).collect(),
        }
    }

    fn check(&self, simd: Simd, layout: &Layout, spec: &SparseSpec) -> BodyRef<'_> {
        BodyRef::check_with(simd, layout, Format::of(spec), &self.levels, &self.records).expect("own records")
    }
}

fn square(n_chunks: usize) -> Layout {
    Layout::new(vec![TensorShape { name: "w".into(), shape: vec![n_chunks * 64, 64] }]).expect("one tensor")
}

fn huge_pages(n_values: usize) -> MmapMut {
    let mut pages = MmapMut::map_anon(4 * n_values).expect("memory for θ");
    // Where the system has no huge pages, floor and figures are both taken without.
    drop(pages.advise(Advice::HugePage));
    pages.fill(1);
    pages
}

fn read_and_write(pool: &Threads, theta: &mut [f32]) {
    pool.for_each(theta.chunks_mut(64 * CHUNK_LEN), |theta| {
        theta.iter_mut().for_each(|x| *x = *x * 0.999 + 1.0);
    });
}

fn row(name: &str, values: u64, mut work: impl FnMut()) -> Row {
    let once = |_| {
        let start = cpu_seconds();
        work();
        cpu_seconds() - start
    };
    let core_seconds = (0..REPETITIONS).map(once).fold(f64::INFINITY, f64::min);
    Row { name: name.into(), core_seconds, values }
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
