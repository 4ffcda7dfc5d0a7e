//! Encoding: its core time against two reads and one write, for every instruction set, and what a second thread brings.

use std::time::Instant;

use allocation_counter::measure;
use convoke::pool::{Inline, Pool};
use convoke::run_spec::SparseSpec;
use convoke::sparseloco::{CHUNK_LEN, Encoded, Layout, Simd, encode_on};

use super::floor::{self, Buffer, core_seconds, median};
use super::pool::Threads;

/// e and Δ of one peer.
pub struct Gradients {
    error: Buffer,
    delta: Buffer,
}

impl Gradients {
    /// Noise with tails, as pseudo-gradients have: normal over (0.2 + uniform), another for every `seed`.
    pub fn new(layout: &Layout, seed: u64) -> anyhow::Result<Self> {
        let mut this = Self { error: Buffer::new(layout.flat_len())?, delta: Buffer::new(layout.flat_len())? };
        let mut noise = Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for (tensor_idx, tensor) in layout.tensors().iter().enumerate() {
            let values: Vec<f32> = (0..tensor.shape.iter().product()).map(|_| 1e-3 * noise.heavy()).collect();
            layout.gather(tensor_idx, &values, this.delta.values_mut());
            let values: Vec<f32> = values.iter().map(|_| 1e-3 * noise.heavy()).collect();
            layout.gather(tensor_idx, &values, this.error.values_mut());
        }
        Ok(this)
    }

    pub fn encode(&mut self, pool: &impl Pool, simd: Simd, layout: &Layout, spec: &SparseSpec) -> Encoded {
        encode_on(pool, simd, layout, spec, self.error.values_mut(), self.delta.values()).expect("noise is finite")
    }
}

struct Noise(u64);

impl Noise {
    /// Uniform in (0, 1).
    fn uniform(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 40) as f32 + 0.5) / (1 << 24) as f32
    }

    fn heavy(&mut self) -> f32 {
        let normal = (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0;
        normal / (0.2 + self.uniform())
    }
}

/// One quantiser on one instruction set.
pub struct Encoding {
    pub simd: Simd,
    /// Core seconds, the median.
    pub seconds: f64,
    /// The floor's over its own, the median of each repetition's.
    pub of_floor: f64,
}

/// Measures every instruction set in turns with the floor.
pub fn on_one_core(layout: &Layout, spec: &SparseSpec, gradients: &mut Gradients, repetitions: usize) -> Vec<Encoding> {
    let sets: Vec<Simd> = Simd::available().collect();
    let mut seconds = vec![Vec::new(); sets.len()];
    let mut ratios = vec![Vec::new(); sets.len()];
    for _ in 0..repetitions {
        for (i, simd) in sets.iter().enumerate() {
            let floor = core_seconds(|| floor::accumulate(gradients.error.values_mut(), gradients.delta.values()));
            let own = core_seconds(|| drop(gradients.encode(&Inline, *simd, layout, spec)));
            seconds[i].push(own);
            ratios[i].push(floor / own);
        }
    }
    let encoding = |(i, simd): (usize, &Simd)| Encoding {
        simd: *simd,
        seconds: median(&mut seconds[i].clone()),
        of_floor: median(&mut ratios[i].clone()),
    };
    sets.iter().enumerate().map(encoding).collect()
}

/// Bytes on the heap beyond e, Δ and the contribution with its undo, at most, on one thread.
pub fn memory(layout: &Layout, spec: &SparseSpec, gradients: &mut Gradients) -> u64 {
    let mut made = 0;
    let heap = measure(|| {
        let encoded = gradients.encode(&Inline, Simd::best(), layout, spec);
        let (body, listed) = (encoded.body.view(), encoded.undo.n_exceptions() * size_of::<(u64, f32)>());
        made = (body.level_bytes().len() + body.record_bytes().len() + listed) as u64;
    });
    heap.bytes_max - made
}

/// How much faster two threads are than one: encoding, and the floor.
pub fn on_two_threads(
    layout: &Layout,
    spec: &SparseSpec,
    gradients: &mut Gradients,
    repetitions: usize,
) -> anyhow::Result<[f64; 2]> {
    let (one, two) = (Threads::start("one", 1)?, Threads::start("two", 2)?);
    let (mut encoding, mut floors) = (Vec::new(), Vec::new());
    for _ in 0..repetitions {
        let mut seconds = [[0.0; 2]; 2];
        for (i, pool) in [&one, &two].into_iter().enumerate() {
            let start = Instant::now();
            drop(gradients.encode(pool, Simd::best(), layout, spec));
            seconds[0][i] = start.elapsed().as_secs_f64();
            let start = Instant::now();
            let parts = gradients.error.values_mut().chunks_mut(256 * CHUNK_LEN);
            pool.for_each(parts.zip(gradients.delta.values().chunks(256 * CHUNK_LEN)), |(error, delta)| {
                floor::accumulate(error, delta);
            });
            seconds[1][i] = start.elapsed().as_secs_f64();
        }
        encoding.push(seconds[0][0] / seconds[0][1]);
        floors.push(seconds[1][0] / seconds[1][1]);
    }
    Ok([median(&mut encoding), median(&mut floors)])
}
