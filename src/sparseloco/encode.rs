//! Compression with error feedback: Δ becomes a [`Body`], and what was not sent stays in e.
//!
//! a = fl(β·e + Δ); Δ̂ = Q(top-k per chunk of a); e ← fl(a − Δ̂) (arXiv:2508.15706, eq. 1 and §2.1). The residual is taken
//! against the *quantised* values, so the quantiser's error is fed back too. **C-1**: e after the call is exactly fl(a − Δ̂).
//!
//! **One pass over memory.** A chunk is read, selected, coded and written back while it lies in the first cache (`chunk`), and the next
//! one is fetched meanwhile. So a value that is not finite is met when earlier chunks are changed already: the call fails, and e
//! must be had from where it was saved. A check of everything beforehand would cost as much again as the whole.
//!
//! The scale of a chunk is the mean |a| of what it keeps, on the table's grid. For signs alone that mean minimises the squared
//! error; with two levels it only has to be the same function of the chunk for the sample that chose the levels. Levels
//! come from a sample of the tensor's chunks, which are coded twice. Sigma-bins needs the mean of all kept values of the tensor,
//! so there the kept values are held until the tensor's end.
//!
//! **Threads** are the caller's: chunks are handed out in runs of [`JOB_CHUNKS`] (sigma-bins: whole tensors), each with its own slices.

use std::sync::{Mutex, PoisonError};

use crate::pool::{Inline, Pool};
use crate::run_spec::{Quantiser, SparseSpec};

use super::body::{Body, BodyRef};
use super::chunk::{Bench, Chunk, Tally, Unfit, mean_magnitude};
use super::layout::{CHUNK_LEN, Layout};
use super::levels::{Levels, fit_sigma_bins, fit_two_bit};
use super::record::Format;
use super::scale::{self, SCALES};
use super::simd::{Kernel, Lanes, Simd};
use super::undo::Undo;
use super::write::{self, Codes};

/// The most chunks of a tensor that choose its two-bit levels, evenly spread over it; one in eight of a small tensor. At
/// k = 64 they bring a thousand values, of which one split is to be learned.
const SAMPLE_CHUNKS_MAX: usize = 16;

/// Chunks that a thread takes at once: 4 MB of e, some hundred microseconds.
const JOB_CHUNKS: usize = 256;

/// What [`encode`] makes.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// The contribution.
    pub body: Body,
    /// How to take it back.
    pub undo: Undo,
    /// What it says about itself.
    pub report: EncodeReport,
}

/// Figures about one contribution, for people.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct EncodeReport {
    /// Values kept.
    pub kept: u64,
    /// Chunks sent as zero.
    pub zero_chunks: u64,
    /// Σ a² over the kept values.
    pub energy_kept: f64,
    /// Σ (a − Δ̂)² over the kept values; over `energy_kept` it is the quantiser's relative squared error.
    pub energy_lost: f64,
}

/// Why a pseudo-gradient cannot be compressed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A value of β·e + Δ is NaN or infinite: the round's payload must not be sent.
    #[error("tensor `{name}` has a value that is not finite in its chunk {chunk}")]
    NotFinite {
        /// The tensor.
        name: String,
        /// The chunk, counted within the tensor.
        chunk: usize,
    },
    /// Padding that is not zero, so e or Δ is not of this layout.
    #[error("tensor `{name}` has a value in the padding of its chunk {chunk}")]
    PaddingNotZero {
        /// The tensor.
        name: String,
        /// The chunk, counted within the tensor.
        chunk: usize,
    },
}

/// Compresses one round's pseudo-gradient on the caller's thread, and leaves in `error` what was not sent.
///
/// As [`encode_on`].
///
/// # Errors
/// As [`encode_on`].
///
/// # Panics
/// As [`encode_on`].
pub fn encode(layout: &Layout, spec: &SparseSpec, error: &mut [f32], delta: &[f32]) -> Result<Encoded, EncodeError> {
    encode_on(&Inline, Simd::best(), layout, spec, error, delta)
}

/// Compresses one round's pseudo-gradient on a pool's threads, and leaves in `error` what was not sent.
///
/// `error` and `delta` are e and Δ: `[layout.flat_len()]` f32, chunk-major, padding zero. The contribution and `error` are the same for
/// any pool and any instruction set; only the last digits of the report's energies are not.
///
/// # Errors
/// A value is not finite, or the padding is not zero. **`error` is then worthless**: since each chunk is passed once, chunks that
/// came before are already changed. Take it from where it was saved, do not send, look for what went wrong in training.
///
/// # Panics
/// If a slice is not of the layout's length, k is out of range, or the CPU does not have the instruction set.
pub fn encode_on(
    pool: &impl Pool,
    simd: Simd,
    layout: &Layout,
    spec: &SparseSpec,
    error: &mut [f32],
    delta: &[f32],
) -> Result<Encoded, EncodeError> {
    assert_eq!((error.len(), delta.len()), (layout.flat_len(), layout.flat_len()), "the flat form's length");
    let format = Format::of(spec);
    let encoder = Encoder { layout, format, decay: spec.error_decay, simd };
    let mut body = Body::blank(layout, format);
    let Body { levels, records, .. } = &mut body;
    if format.quantiser() == Quantiser::TwoBit {
        encoder.choose_levels(pool, levels, error, delta);
    }
    let results = Mutex::new((Tally::default(), None::<Fault>));
    let collect = |tally: Tally, fault: Option<Fault>| {
        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
        results.0.add(tally);
        // The first in order, whichever thread was the first in time.
        results.1 = [results.1, fault].into_iter().flatten().min_by_key(|fault| fault.chunk_idx);
    };
    if format.quantiser() == Quantiser::SigmaBins {
        let jobs = Jobs::new(layout, format, usize::MAX, (error, delta), records)
            .zip(levels.chunks_mut(Levels::len(Quantiser::SigmaBins)));
        pool.for_each(jobs, |(job, levels)| {
            let (tally, fault) = encoder.encode_bins(job, levels);
            collect(tally, fault);
        });
    } else {
        let levels = BodyRef::checked_before(format, levels, &[]);
        pool.for_each(Jobs::new(layout, format, JOB_CHUNKS, (error, delta), records), |job| {
            let levels = levels.levels(job.tensor_idx);
            let (tally, fault) = encoder.encode_by_scale(job, levels);
            collect(tally, fault);
        });
    }
    let (tally, fault) = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    match fault {
        Some(fault) => Err(fault.named(layout)),
        None => Ok(Encoded { body, report: EncodeReport::of(&tally), undo: Undo::new(tally.exceptions) }),
    }
}

impl EncodeReport {
    fn of(tally: &Tally) -> Self {
        let Tally { kept, zero_chunks, energy_kept, energy_lost, .. } = *tally;
        Self { kept, zero_chunks, energy_kept, energy_lost }
    }
}

/// A chunk that cannot be compressed.
#[derive(Debug, Clone, Copy)]
struct Fault {
    tensor_idx: usize,
    chunk_idx: usize,
    unfit: Unfit,
}

impl Fault {
    fn named(self, layout: &Layout) -> EncodeError {
        let name = layout.tensors()[self.tensor_idx].name.clone();
        let chunk = self.chunk_idx - layout.chunks_of(self.tensor_idx).start;
        match self.unfit {
            Unfit::NotFinite => EncodeError::NotFinite { name, chunk },
            Unfit::PaddingNotZero => EncodeError::PaddingNotZero { name, chunk },
        }
    }
}

/// A run of a tensor's chunks; the slices of two jobs are disjoint.
struct Job<'a> {
    tensor_idx: usize,
    /// The first chunk, counted over all tensors.
    start: usize,
    error: &'a mut [[f32; CHUNK_LEN]],
    delta: &'a [[f32; CHUNK_LEN]],
    records: &'a mut [u8],
}

/// Cuts all chunks into jobs of at most `job_chunks`, none of two tensors.
struct Jobs<'a> {
    layout: &'a Layout,
    record_len: usize,
    job_chunks: usize,
    tensor_idx: usize,
    start: usize,
    error: &'a mut [[f32; CHUNK_LEN]],
    delta: &'a [[f32; CHUNK_LEN]],
    records: &'a mut [u8],
}

impl<'a> Jobs<'a> {
    fn new(
        layout: &'a Layout,
        format: Format,
        job_chunks: usize,
        (error, delta): (&'a mut [f32], &'a [f32]),
        records: &'a mut [u8],
    ) -> Self {
        let (error, delta) = (error.as_chunks_mut().0, delta.as_chunks().0);
        Self { layout, record_len: format.record_len(), job_chunks, tensor_idx: 0, start: 0, error, delta, records }
    }
}

impl<'a> Iterator for Jobs<'a> {
    type Item = Job<'a>;

    fn next(&mut self) -> Option<Job<'a>> {
        if self.error.is_empty() {
            return None;
        }
        let (tensor_idx, start) = (self.tensor_idx, self.start);
        let left = self.layout.chunks_of(tensor_idx).end - start;
        let n = left.min(self.job_chunks);
        self.start += n;
        self.tensor_idx += usize::from(n == left);
        Some(Job {
            tensor_idx,
            start,
            error: self.error.split_off_mut(..n)?,
            delta: self.delta.split_off(..n)?,
            records: self.records.split_off_mut(..n * self.record_len)?,
        })
    }
}

/// What all jobs of one call share.
struct Encoder<'a> {
    layout: &'a Layout,
    format: Format,
    decay: f32,
    simd: Simd,
}

impl Encoder<'_> {
    fn bench(&self) -> Bench {
        Bench::new(self.format, self.decay)
    }

    /// Writes every tensor's two-bit levels.
    fn choose_levels(&self, pool: &impl Pool, levels: &mut [u8], error: &[f32], delta: &[f32]) {
        let (error, delta) = (error.as_chunks().0, delta.as_chunks().0);
        let jobs = levels.chunks_mut(Levels::len(Quantiser::TwoBit)).enumerate();
        pool.for_each(jobs, |(tensor_idx, levels)| {
            self.sample_levels(tensor_idx, error, delta).write(levels);
        });
    }

    // The kernels are called from here, and not from what is generic over the pool, so that they are compiled once.

    fn encode_by_scale(&self, job: Job<'_>, levels: Levels) -> (Tally, Option<Fault>) {
        self.simd.dispatch(EncodeByScale { encoder: self, job, levels })
    }

    fn encode_bins(&self, job: Job<'_>, levels: &mut [u8]) -> (Tally, Option<Fault>) {
        self.simd.dispatch(EncodeBins { encoder: self, job, levels })
    }

    fn sample_levels(&self, tensor_idx: usize, error: &[[f32; CHUNK_LEN]], delta: &[[f32; CHUNK_LEN]]) -> Levels {
        self.simd.dispatch(SampleLevels { encoder: self, tensor_idx, error, delta })
    }
}

/// Chunk by chunk, each in one go.
struct EncodeByScale<'a> {
    encoder: &'a Encoder<'a>,
    job: Job<'a>,
    levels: Levels,
}

impl Kernel for EncodeByScale<'_> {
    type Output = (Tally, Option<Fault>);

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> Self::Output {
        let Job { tensor_idx, start, error, delta, records } = self.job;
        let (layout, record_len) = (self.encoder.layout, self.encoder.format.record_len());
        let (mut bench, mut tally) = (self.encoder.bench(), Tally::default());
        let mut rest = error;
        for (i, record) in records.chunks_exact_mut(record_len).enumerate() {
            let chunk_idx = start + i;
            let Some((error, after)) = rest.split_first_mut() else { break };
            let next = after.first().zip(delta.get(i + 1));
            let chunk = Chunk { valid: layout.valid(tensor_idx, chunk_idx), error, delta: &delta[i], next };
            let place = (chunk_idx * CHUNK_LEN, record);
            if let Err(unfit) = bench.encode(lanes, self.levels, chunk, place, &mut tally) {
                return (tally, Some(Fault { tensor_idx, chunk_idx, unfit }));
            }
            rest = after;
        }
        (tally, None)
    }
}

/// A whole tensor: first all chunks' kept values, then their bins.
struct EncodeBins<'a> {
    encoder: &'a Encoder<'a>,
    job: Job<'a>,
    levels: &'a mut [u8],
}

impl Kernel for EncodeBins<'_> {
    type Output = (Tally, Option<Fault>);

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> Self::Output {
        let Job { tensor_idx, start, error, delta, records } = self.job;
        let (layout, format) = (self.encoder.layout, self.encoder.format);
        let (mut bench, mut tally) = (self.encoder.bench(), Tally::default());
        let (mut positions, mut values) = (Vec::new(), Vec::new());
        for (i, (error, delta)) in error.iter_mut().zip(delta).enumerate() {
            let chunk_idx = start + i;
            let mut chunk = Chunk { valid: layout.valid(tensor_idx, chunk_idx), error, delta, next: None };
            match bench.accumulate_and_select(lanes, &mut chunk) {
                Ok(selected) => positions.extend_from_slice(selected),
                Err(unfit) => return (tally, Some(Fault { tensor_idx, chunk_idx, unfit })),
            }
            values.extend_from_slice(bench.values(positions.len() - values.len()));
        }
        let mut bins = Vec::with_capacity(values.len());
        let levels = fit_sigma_bins(values.iter().copied(), |_, bin| bins.push(bin));
        levels.write(self.levels);
        let (mut positions, mut bins) = (positions.as_slice(), bins.as_slice());
        for (i, (error, record)) in error.iter_mut().zip(records.chunks_exact_mut(format.record_len())).enumerate() {
            let n_kept = format.kept_of(layout.valid(tensor_idx, start + i));
            let (Some(positions), Some(bins)) = (positions.split_off(..n_kept), bins.split_off(..n_kept)) else {
                break;
            };
            bench.subtract_bins((positions, bins, levels.values(0)), ((start + i) * CHUNK_LEN, error), &mut tally);
            write::write(format, positions, Codes::Bins(bins), 0, record);
        }
        (tally, None)
    }
}

/// The levels that a sample of the tensor's chunks wants; e is not touched.
struct SampleLevels<'a> {
    encoder: &'a Encoder<'a>,
    tensor_idx: usize,
    error: &'a [[f32; CHUNK_LEN]],
    delta: &'a [[f32; CHUNK_LEN]],
}

impl Kernel for SampleLevels<'_> {
    type Output = Levels;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> Levels {
        let (layout, chunks) = (self.encoder.layout, self.encoder.layout.chunks_of(self.tensor_idx));
        let n_sample = chunks.len().div_ceil(8).min(SAMPLE_CHUNKS_MAX);
        let (mut bench, mut a) = (self.encoder.bench(), [0.0; CHUNK_LEN]);
        let mut ratios = Vec::with_capacity(n_sample * self.encoder.format.keep());
        for i in 0..n_sample {
            let chunk_idx = chunks.start + i * chunks.len() / n_sample;
            let valid = layout.valid(self.tensor_idx, chunk_idx);
            a.copy_from_slice(&self.error[chunk_idx]);
            let mut chunk = Chunk { valid, error: &mut a, delta: &self.delta[chunk_idx], next: None };
            // A chunk that cannot be compressed fails the call when its turn comes.
            let Ok(n_kept) = bench.accumulate_and_select(lanes, &mut chunk).map(<[u16]>::len) else { continue };
            let values = bench.values(n_kept);
            let scale = SCALES[usize::from(scale::nearest(mean_magnitude(values)))];
            if scale > 0.0 {
                ratios.extend(values.iter().map(|value| value.abs() / scale));
            }
        }
        fit_two_bit(&ratios)
    }
}
