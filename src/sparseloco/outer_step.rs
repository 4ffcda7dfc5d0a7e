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

use crate::run_spec::{Aggregation, SparseSpec};

use super::body::{BodyRef, norms};
use super::layout::{CHUNK_LEN, Layout};
use super::record::Format;

/// The most contributions of an outer step: what the count's bits hold.
pub const CONTRIBUTIONS_MAX: usize = (1 << COUNT_BITS) - 1;

const COUNT_BITS: u32 = 5;

/// A chunk in which no contribution reaches 2^-64 is left alone: it would move nothing that f32 parameters resolve, and
/// so the grid's arithmetic stays far from denormal numbers, which some environments flush to zero.
const PEAK_EXPONENT_MIN: i32 = -64;

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
    layout: &'a Layout,
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
    /// Computes the limits: a pass over scales and magnitude bits, not over positions.
    ///
    /// # Panics
    /// If there are more than [`CONTRIBUTIONS_MAX`] contributions (no valid manifest has so many), or one is not in the run's
    /// format.
    #[must_use]
    pub fn new(layout: &'a Layout, spec: &SparseSpec, contributions: &'a [BodyRef<'a>]) -> Self {
        let n_contributions = contributions.len();
        assert!(n_contributions <= CONTRIBUTIONS_MAX, "{n_contributions} contributions");
        let format = Format::of(spec);
        assert!(contributions.iter().all(|body| body.format() == format), "the contributions' format");
        let norms: Vec<Vec<f64>> = contributions.iter().map(|body| norms(layout, *body)).collect();
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
        Self { layout, contributions, limits, reports, weights, grid_bits }
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
        let mut sums = [0; CHUNK_LEN];
        let mut coordinates = 0;
        let mut tensor_idx = self.layout.tensor_of(chunks.start);
        for (chunk_idx, theta) in chunks.zip(theta.as_chunks_mut::<CHUNK_LEN>().0) {
            while chunk_idx >= self.layout.chunks_of(tensor_idx).end {
                tensor_idx += 1;
            }
            if let Some(exponent) = self.accumulate(tensor_idx, chunk_idx, &mut sums) {
                coordinates += self.update(exponent, &mut sums, theta);
            }
        }
        coordinates
    }

    /// The report, given how many coordinates were sent in all chunks.
    #[must_use]
    pub fn report(&self, coordinates: u64) -> OuterStepReport {
        OuterStepReport { contributions: self.reports.clone(), coordinates }
    }

    /// Adds all contributions' integers and counts to `sums`, which is zero. Returns the exponent of the grid's unit, or
    /// nothing if there is nothing to add.
    fn accumulate(&self, tensor_idx: usize, chunk_idx: usize, sums: &mut [i32; CHUNK_LEN]) -> Option<i32> {
        let n_contributions = self.contributions.len();
        let valid = self.layout.valid(tensor_idx, chunk_idx);
        let limits = &self.limits[tensor_idx * n_contributions..(tensor_idx + 1) * n_contributions];
        let mut tables = [[0.0_f32; 4]; CONTRIBUTIONS_MAX];
        let mut peak = 0.0_f32;
        for ((body, limit), table) in self.contributions.iter().zip(limits).zip(&mut tables) {
            let record = body.record(chunk_idx);
            let values = body.levels(tensor_idx).values(record.scale());
            let counts = record.code_counts(body.format().kept_of(valid));
            for ((slot, value), count) in table.iter_mut().zip(values).zip(counts) {
                if count > 0 {
                    *slot = value * limit;
                    peak = peak.max(slot.abs());
                }
            }
        }
        let peak_exponent = (peak.to_bits() >> 23) as i32 - 127;
        if peak_exponent < PEAK_EXPONENT_MIN {
            return None;
        }
        // The peak is below 2^(peak_exponent + 1), which the grid maps to 2^grid_bits.
        let exponent = peak_exponent + 1 - self.grid_bits;
        let per_unit = power_of_two(-exponent);
        for (body, table) in self.contributions.iter().zip(tables) {
            let record = body.record(chunk_idx);
            if record.scale() == 0 {
                continue;
            }
            let terms = table.map(|value| ((value * per_unit).round_ties_even() as i32) * (1 << COUNT_BITS) + 1);
            record.for_each(body.format().kept_of(valid), |position, code| sums[position] += terms[usize::from(code)]);
        }
        Some(exponent)
    }

    /// θ ← θ − (α / divisor) · sum wherever somebody sent; zeroes `sums` for the next chunk.
    fn update(&self, exponent: i32, sums: &mut [i32; CHUNK_LEN], theta: &mut [f32; CHUNK_LEN]) -> u64 {
        let unit = power_of_two(exponent);
        let factors = self.weights.map(|weight| weight * unit);
        let mut coordinates = 0;
        for (theta, sum) in theta.iter_mut().zip(sums.iter_mut()) {
            // Two's complement: the low bits are the count and the rest is the sum, of either sign.
            let count = *sum & CONTRIBUTIONS_MAX as i32;
            *theta -= (*sum >> COUNT_BITS) as f32 * factors[count as usize];
            coordinates += u64::from(count != 0);
            *sum = 0;
        }
        coordinates
    }
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
    let step = OuterStep::new(layout, spec, contributions);
    let coordinates = step.apply(0..layout.n_chunks(), theta);
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
