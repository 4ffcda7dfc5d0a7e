//! The outer step: θ ← θ − α · aggregate(Δ̂₁ … Δ̂_R), the same bits for any order of contributions and any split of the work.
//!
//! **Limit.** Before anything is added, each contribution's tensor is scaled down to the median of the contributions' norms of that
//! tensor, never up, so that no single one dominates (the reference run's rule, which for an even number takes the lower
//! middle; its `+ 1e-8` in the divisor is not needed here).
//!
//! **Sum.** Floats do not add associatively, so a sum of floats would need one agreed order. Integers do: each chunk's contributions
//! are rounded to one grid, a power of two chosen from the largest value that any contribution brings to the chunk, and added
//! as 27-bit integers beside a five-bit count of senders in one i32. The grid is as fine as R allows: 25 bits for one, 21
//! bits for 16 to 31. The largest value counts only codes that occur: a level that nobody uses must not coarsen the grid.
//!
//! **Mean.** Σ/R (the paper) or, per coordinate, Σ over those that sent it (the public code). The count decides nothing else.
//!
//! Memory is one accumulator of 16 KB and a borrowed view of each contribution, whatever R.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::digest::{PART_LEN, Part, join};
use crate::pool::{Inline, Pool};
use crate::run_spec::{Aggregation, SparseSpec};
use crate::terms::Digest;

use super::body::{BodyRef, norms_with};
use super::layout::{BLOCK_EDGE, CHUNK_LEN, Layout};
use super::levels::Levels;
use super::read::Reader;
use super::record::Format;
use super::simd::{Kernel, Lanes, Simd};

/// The most contributions of an outer step: what the count's bits hold.
pub const CONTRIBUTIONS_MAX: usize = (1 << COUNT_BITS) - 1;

const COUNT_BITS: u32 = 5;

/// A chunk in which no contribution reaches 2^-64 is left alone: it would move nothing that f32 parameters resolve, and
/// so the grid's arithmetic stays far from denormal numbers, which some environments flush to zero.
const PEAK_EXPONENT_MIN: i32 = -64;

/// So many chunks ahead records are asked for: a CPU does not see by itself that it reads thirty streams at once.
const RECORDS_AHEAD: usize = 4;

const CACHE_LINE: usize = 64;

/// What an outer step did.
#[derive(Debug, Clone, PartialEq)]
pub struct OuterStepReport {
    /// One for each contribution, in the given order.
    pub contributions: Vec<ContributionReport>,
    /// Coordinates that at least one contribution sent.
    pub coordinates: u64,
}

/// What the limit did to one contribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ContributionReport {
    /// ‖Δ̂‖₂ before the limit.
    pub norm: f64,
    /// Tensors that were scaled down.
    pub limited_tensors: usize,
    /// The smallest factor of any tensor; 1 if none was scaled down.
    pub limit_min: f32,
}

/// An outer step whose limits are known: ranges of chunks can be applied, in any order, by any number of threads.
#[derive(Debug, Clone)]
pub struct OuterStep<'a> {
    simd: Simd,
    layout: &'a Layout,
    format: Format,
    contributions: &'a [BodyRef<'a>],
    /// R factors for each tensor.
    limits: Vec<f32>,
    reports: Vec<ContributionReport>,
    /// α over the divisor, by count of senders.
    weights: [f32; 1 << COUNT_BITS],
    /// No contribution's integer exceeds 2^grid_bits.
    grid_bits: i32,
}

impl<'a> OuterStep<'a> {
    /// Computes the limits: a pass over scales and codes, not over positions; a job for each contribution.
    ///
    /// # Panics
    /// If there are more than [`CONTRIBUTIONS_MAX`] contributions (no valid manifest has so many), or one is not in the run's
    /// format; or if the CPU does not have these instructions.
    #[must_use]
    pub fn new(
        pool: &impl Pool,
        simd: Simd,
        layout: &'a Layout,
        spec: &SparseSpec,
        contributions: &'a [BodyRef<'a>],
    ) -> Self {
        let n_contributions = contributions.len();
        assert!(n_contributions <= CONTRIBUTIONS_MAX, "{n_contributions} contributions");
        let format = Format::of(spec);
        assert!(contributions.iter().all(|body| body.format() == format), "the contributions' format");
        let mut norms = vec![Vec::new(); n_contributions];
        pool.for_each(contributions.iter().zip(&mut norms), |(body, norms)| *norms = norms_with(simd, layout, *body));
        let limits = limits(layout.tensors().len(), &norms);
        let report = |(i, norms): (usize, &Vec<f64>)| {
            let own = || limits.iter().skip(i).step_by(n_contributions);
            ContributionReport {
                norm: norms.iter().map(|norm| norm * norm).sum::<f64>().sqrt(),
                limited_tensors: own().filter(|limit| **limit < 1.0).count(),
                limit_min: own().copied().fold(1.0, f32::min),
            }
        };
        let reports = norms.iter().enumerate().map(report).collect();
        let mut weights = [0.0; 1 << COUNT_BITS];
        for (count, weight) in weights.iter_mut().enumerate().skip(1) {
            let divisor = match spec.aggregation {
                Aggregation::MeanOfAll => n_contributions,
                Aggregation::MeanOfSenders => count,
            };
            *weight = spec.lr_outer / divisor as f32;
        }
        // R · 2^grid_bits < 2^26, the magnitude beside the count and the sign.
        let grid_bits = 25 - n_contributions.max(1).ilog2() as i32;
        Self { simd, layout, format, contributions, limits, reports, weights, grid_bits }
    }

    /// Applies a range of chunks; `theta` is those chunks only. Returns how many coordinates were sent in them.
    ///
    /// # Panics
    /// If `theta` is not as long as the range.
    pub fn apply(&self, chunks: Range<usize>, theta: &mut [f32]) -> u64 {
        assert_eq!(theta.len(), chunks.len() * CHUNK_LEN, "the range's length");
        if self.contributions.is_empty() || chunks.is_empty() {
            return 0;
        }
        self.simd.dispatch(Apply { step: self, chunks, theta })
    }

    /// Applies all chunks: a job for each part of θ. Returns how many coordinates were sent.
    ///
    /// # Panics
    /// If `theta` is not the layout's flat form.
    pub fn run(&self, pool: &impl Pool, theta: &mut [f32]) -> u64 {
        let mut parts = vec![(); theta.len().div_ceil(PART_LEN)];
        self.run_and(pool, theta, &mut parts, |_, _| ())
    }

    /// [`run`](Self::run), and the digest of the θ that it makes: each part is hashed while it is still in cache.
    ///
    /// # Panics
    /// If `theta` is not the layout's flat form.
    pub fn run_and_digest(&self, pool: &impl Pool, theta: &mut [f32]) -> (u64, Digest) {
        let mut parts = vec![Part::default(); theta.len().div_ceil(PART_LEN)];
        let coordinates = self.run_and(pool, theta, &mut parts, Part::of);
        (coordinates, join(&parts, theta))
    }

    /// Applies all chunks, and makes something of each part after its step.
    fn run_and<T: Send>(
        &self,
        pool: &impl Pool,
        theta: &mut [f32],
        made: &mut [T],
        make: impl Fn(usize, &[f32]) -> T + Sync,
    ) -> u64 {
        assert_eq!(theta.len(), self.layout.flat_len(), "the flat form's length");
        let coordinates = AtomicU64::new(0);
        let jobs = theta.chunks_mut(PART_LEN).zip(made).enumerate();
        pool.for_each(jobs, |(part_idx, (theta, made))| {
            let first = part_idx * (PART_LEN / CHUNK_LEN);
            let sent = self.apply(first..first + theta.len() / CHUNK_LEN, theta);
            coordinates.fetch_add(sent, Ordering::Relaxed);
            *made = make(part_idx, theta);
        });
        coordinates.into_inner()
    }

    /// The report, given how many coordinates were sent in all chunks.
    #[must_use]
    pub fn report(&self, coordinates: u64) -> OuterStepReport {
        OuterStepReport { contributions: self.reports.clone(), coordinates }
    }
}

/// [`OuterStep::apply`] for an instruction set.
struct Apply<'a> {
    step: &'a OuterStep<'a>,
    chunks: Range<usize>,
    theta: &'a mut [f32],
}

impl Kernel for Apply<'_> {
    type Output = u64;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> u64 {
        let Self { step, chunks, theta } = self;
        let layout = step.layout;
        let levels = [Levels::OneBit; CONTRIBUTIONS_MAX];
        let mut merge = Merge { lanes, step, levels, reader: Reader::new(step.format), sums: [0; CHUNK_LEN] };
        let mut tensor_idx = layout.tensor_of(chunks.start);
        merge.read_levels(tensor_idx);
        let mut coordinates = 0;
        for (chunk_idx, theta) in chunks.zip(theta.as_chunks_mut::<CHUNK_LEN>().0) {
            while chunk_idx >= layout.chunks_of(tensor_idx).end {
                tensor_idx += 1;
                merge.read_levels(tensor_idx);
            }
            let n_kept = step.format.kept_of(layout.valid(tensor_idx, chunk_idx));
            if let Some(exponent) = merge.accumulate(tensor_idx, chunk_idx, n_kept, theta) {
                coordinates += merge.update(exponent, theta);
            }
        }
        coordinates
    }
}

/// One thread's accumulator, and what reads records into it.
struct Merge<'a, L> {
    lanes: L,
    step: &'a OuterStep<'a>,
    /// Each contribution's, of the tensor at hand.
    levels: [Levels; CONTRIBUTIONS_MAX],
    reader: Reader,
    /// Zero between chunks.
    sums: [i32; CHUNK_LEN],
}

impl<L: Lanes> Merge<'_, L> {
    fn read_levels(&mut self, tensor_idx: usize) {
        for (levels, body) in self.levels.iter_mut().zip(self.step.contributions) {
            *levels = body.levels(tensor_idx);
        }
    }

    /// Adds all contributions' integers and counts to the sums. Returns the exponent of the grid's unit, or nothing if there is
    /// nothing to add.
    #[inline(always)]
    fn accumulate(
        &mut self,
        tensor_idx: usize,
        chunk_idx: usize,
        n_kept: usize,
        theta: &[f32; CHUNK_LEN],
    ) -> Option<i32> {
        let contributions = self.step.contributions;
        let mut tables = [[0.0; 4]; CONTRIBUTIONS_MAX];
        let peak = self.decode_tables(tensor_idx, chunk_idx, n_kept, &mut tables);
        let peak_exponent = (peak.to_bits() >> 23) as i32 - 127;
        if peak_exponent < PEAK_EXPONENT_MIN {
            return None;
        }
        // The peak is below 2^(peak_exponent + 1), which the grid maps to 2^grid_bits.
        let exponent = peak_exponent + 1 - self.step.grid_bits;
        let per_unit = power_of_two(-exponent);
        let (rows, sums) = (theta.as_chunks().0, &mut self.sums);
        let rows_each = BLOCK_EDGE.div_ceil(contributions.len());
        for (i, (body, table)) in contributions.iter().zip(tables).enumerate() {
            // θ arrives while the records are read.
            for row in rows.iter().skip(i * rows_each).take(rows_each) {
                self.lanes.prefetch(row);
            }
            let record = self.reader.record(*body, chunk_idx);
            for ahead in [RECORDS_AHEAD * record.bytes().len(), RECORDS_AHEAD * record.bytes().len() + CACHE_LINE] {
                if let Some(byte) = body.record_bytes().get(chunk_idx * record.bytes().len() + ahead) {
                    self.lanes.prefetch_byte(byte);
                }
            }
            if record.scale() == 0 {
                continue;
            }
            let terms = table.map(|value| round(value * per_unit) * (1 << COUNT_BITS) + 1);
            self.reader.for_each(
                self.lanes,
                record,
                n_kept,
                terms,
                #[inline(always)]
                |position, term| sums[position % CHUNK_LEN] += term,
            );
        }
        Some(exponent)
    }

    /// What each contribution's codes stand for after the limit, those that occur; and the largest magnitude among them.
    #[inline(always)]
    fn decode_tables(
        &self,
        tensor_idx: usize,
        chunk_idx: usize,
        n_kept: usize,
        tables: &mut [[f32; 4]; CONTRIBUTIONS_MAX],
    ) -> f32 {
        let contributions = self.step.contributions;
        let limits = &self.step.limits[tensor_idx * contributions.len()..(tensor_idx + 1) * contributions.len()];
        let mut peak = 0.0_f32;
        for (((body, limit), levels), table) in contributions.iter().zip(limits).zip(&self.levels).zip(tables) {
            let record = self.reader.record(*body, chunk_idx);
            let values = levels.values(record.scale());
            let counts = self.reader.code_counts(record, n_kept);
            for ((slot, value), count) in table.iter_mut().zip(values).zip(counts) {
                *slot = if count > 0 { value * limit } else { 0.0 };
                peak = if slot.abs() > peak { slot.abs() } else { peak };
            }
        }
        peak
    }

    /// θ ← θ − (α / divisor) · sum wherever somebody sent; zeroes the sums for the next chunk.
    #[inline(always)]
    fn update(&mut self, exponent: i32, theta: &mut [f32; CHUNK_LEN]) -> u64 {
        let unit = power_of_two(exponent);
        let mut factors = self.step.weights;
        factors.iter_mut().for_each(|weight| *weight *= unit);
        let mut sent = [0_i32; 16];
        let sums = self.sums.as_chunks_mut::<16>().0;
        for (theta, sums) in theta.as_chunks_mut::<16>().0.iter_mut().zip(sums) {
            // Two's complement: the low bits are the count and the rest is the sum, of either sign.
            let (mut after, before) = (*theta, *sums);
            let factors = self.lanes.look_up(&factors, &before);
            for i in 0..16 {
                after[i] -= (before[i] >> COUNT_BITS) as f32 * factors[i];
                sent[i] += i32::from(before[i] & CONTRIBUTIONS_MAX as i32 != 0);
            }
            (*theta, *sums) = (after, [0; 16]);
        }
        sent.iter().map(|sent| *sent as u64).sum()
    }
}

/// The nearest integer, halves to even, of a magnitude below 2^31: adding 1.5 · 2^52 leaves an f64 no bits for a fraction.
#[inline(always)]
fn round(value: f32) -> i32 {
    const NO_FRACTION: f64 = 6_755_399_441_055_744.0;
    (f64::from(value) + NO_FRACTION).to_bits() as i32
}

/// Applies `contributions` (in the manifest's order, which the result does not depend on) to `theta`, chunk-major.
///
/// # Panics
/// If `theta` is not the layout's flat form, or there are more than [`CONTRIBUTIONS_MAX`] contributions.
pub fn outer_step(
    layout: &Layout,
    spec: &SparseSpec,
    contributions: &[BodyRef<'_>],
    theta: &mut [f32],
) -> OuterStepReport {
    let step = OuterStep::new(&Inline, Simd::best(), layout, spec, contributions);
    let coordinates = step.run(&Inline, theta);
    step.report(coordinates)
}

/// min(1, median / norm) for each tensor and contribution; the lower middle of an even number is its median.
fn limits(n_tensors: usize, norms: &[Vec<f64>]) -> Vec<f32> {
    let mut limits = Vec::with_capacity(n_tensors * norms.len());
    for tensor_idx in 0..n_tensors {
        let mut sorted: Vec<f64> = norms.iter().map(|norms| norms[tensor_idx]).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let median = sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(0.0);
        let limit = |norm: f64| if norm > median { (median / norm) as f32 } else { 1.0 };
        limits.extend(norms.iter().map(|norms| limit(norms[tensor_idx])));
    }
    limits
}

/// 2^exponent, exactly; the exponent is within f32's normal range.
fn power_of_two(exponent: i32) -> f32 {
    assert!((-126..=127).contains(&exponent), "2^{exponent} is not a normal f32");
    f32::from_bits(((exponent + 127) as u32) << 23)
}
