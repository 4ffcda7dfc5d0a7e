//! The receiving half: decode and check records, aggregate and step, digest.

use std::hint::black_box;

use allocation_counter::measure;
use convoke::pool::Inline;
use convoke::run_spec::{Aggregation, SparseSpec};
use convoke::sparseloco::{BodyRef, CHUNK_LEN, Format, Layout, OuterStep, Simd, TensorShape, encode};

use super::floor::{self, Buffer, core_seconds, median};

/// Contributions of an outer step.
pub const CONTRIBUTIONS: usize = 20;

/// Chunks whose contributions are made; the rest repeats them, since making them all would take longer than the measurement.
const CHUNKS_MADE: usize = 256;

/// R contributions to a model of one tensor.
pub struct Contributions {
    layout: Layout,
    spec: SparseSpec,
    contributions: Vec<Contribution>,
}

struct Contribution {
    levels: Vec<u8>,
    records: Vec<u8>,
}

impl Contributions {
    pub fn new(spec: &SparseSpec, n_chunks: usize) -> anyhow::Result<Self> {
        let contributions = (0..CONTRIBUTIONS).map(|i| Contribution::of_noise(spec, n_chunks, i as u32));
        Ok(Self {
            layout: column(n_chunks)?,
            spec: spec.clone(),
            contributions: contributions.collect::<Result<_, _>>()?,
        })
    }

    fn check(&self, simd: Simd, contribution: usize) -> BodyRef<'_> {
        let Contribution { levels, records } = &self.contributions[contribution];
        BodyRef::check_with(simd, &self.layout, Format::of(&self.spec), levels, records).expect("own records")
    }

    /// Values decoded and checked a core second.
    pub fn values_checked(&self, simd: Simd, repetitions: usize) -> f64 {
        let values = (CONTRIBUTIONS * self.layout.n_chunks() * self.spec.keep_per_chunk) as f64;
        let once = |_| {
            let seconds = core_seconds(|| {
                for contribution in 0..CONTRIBUTIONS {
                    black_box(self.check(simd, contribution));
                }
            });
            values / seconds
        };
        median(&mut (0..repetitions).map(once).collect::<Vec<_>>())
    }

    /// What a pass that reads and writes θ takes, over what the outer step takes: without the digest, and with it in the same
    /// pass; and a digest by itself over one in the same pass.
    pub fn of_floor(&self, simd: Simd, aggregation: Aggregation, repetitions: usize) -> anyhow::Result<[f64; 2]> {
        let spec = SparseSpec { aggregation, ..self.spec.clone() };
        let bodies: Vec<BodyRef<'_>> = (0..CONTRIBUTIONS).map(|i| self.check(simd, i)).collect();
        let mut theta = Buffer::new(self.layout.n_chunks() * CHUNK_LEN)?;
        theta.values_mut().fill(1.0);
        let mut ratios = [Vec::new(), Vec::new()];
        for _ in 0..repetitions {
            let floor = core_seconds(|| floor::rewrite(theta.values_mut()));
            let step = || OuterStep::new(&Inline, simd, &self.layout, &spec, &bodies);
            ratios[0].push(
                floor
                    / core_seconds(|| {
                        black_box(step().run(&Inline, theta.values_mut()));
                    }),
            );
            ratios[1].push(
                floor
                    / core_seconds(|| {
                        black_box(step().run_and_digest(&Inline, theta.values_mut()));
                    }),
            );
        }
        Ok(ratios.map(|mut ratios| median(&mut ratios)))
    }
}

impl Contributions {
    /// Bytes on the heap beyond θ and the payloads, at most, on one thread.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let bodies: Vec<BodyRef<'_>> = (0..CONTRIBUTIONS).map(|i| self.check(Simd::best(), i)).collect();
        let mut theta = Buffer::new(self.layout.n_chunks() * CHUNK_LEN)?;
        let heap = measure(|| {
            let step = OuterStep::new(&Inline, Simd::best(), &self.layout, &self.spec, &bodies);
            black_box(step.run_and_digest(&Inline, theta.values_mut()));
        });
        Ok(heap.bytes_max)
    }
}

impl Contribution {
    fn of_noise(spec: &SparseSpec, n_chunks: usize, seed: u32) -> anyhow::Result<Self> {
        let layout = column(CHUNKS_MADE)?;
        let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
        let mut uniform = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 - 0.5
        };
        // Mostly small, sometimes large, as pseudo-gradients are.
        let delta: Vec<f32> = (0..layout.flat_len()).map(|_| (uniform() + uniform() + uniform()).powi(3)).collect();
        let body = encode(&layout, spec, &mut vec![0.0; layout.flat_len()], &delta)?.body;
        let (body, wanted) = (body.view(), n_chunks * Format::of(spec).record_len());
        let records = body.record_bytes().iter().copied().cycle().take(wanted).collect();
        Ok(Self { levels: body.level_bytes().to_vec(), records })
    }
}

fn column(n_chunks: usize) -> anyhow::Result<Layout> {
    Ok(Layout::new(vec![TensorShape { name: "w".into(), shape: vec![n_chunks * 64, 64] }])?)
}
