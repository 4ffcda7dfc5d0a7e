//! Claims about the outer step: the formula, and that neither order, split nor a hostile contribution changes what it should not.

use super::*;
use crate::pool::{Inline, Pool};

fn spec_of(quantiser: Quantiser, aggregation: Aggregation) -> SparseSpec {
    SparseSpec { aggregation, lr_outer: 0.7, ..spec(quantiser, 64) }
}

/// Contributions of different size, some of them of chunks that are all zero.
fn contributions(layout: &Layout, spec: &SparseSpec, n: usize) -> Vec<Body> {
    let one = |i: usize| {
        let mut delta = heavy_noise_of(layout, i as u32 + 10);
        let size = [1.0, 3.0, 0.01, 0.5][i % 4];
        delta.iter_mut().for_each(|d| *d *= size);
        if i % 3 == 1 {
            delta[..CHUNK_LEN].fill(0.0);
        }
        encode(layout, spec, &mut vec![0.0; layout.flat_len()], &delta).unwrap().body
    };
    (0..n).map(one).collect()
}

/// θ − α · aggregate in f64, from dense tensors, by the definitions alone.
fn plain(layout: &Layout, spec: &SparseSpec, bodies: &[Body], theta: &[f32]) -> Vec<f64> {
    let mut theta: Vec<f64> = theta.iter().map(|x| f64::from(*x)).collect();
    let dense: Vec<Vec<f32>> = bodies.iter().map(|body| decode(layout, body.view())).collect();
    for tensor_idx in 0..layout.tensors().len() {
        let range = layout.flat_range_of(tensor_idx);
        let norm = |flat: &Vec<f32>| flat[range.clone()].iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let norms: Vec<f64> = dense.iter().map(norm).collect();
        let mut sorted = norms.clone();
        sorted.sort_by(f64::total_cmp);
        let median = sorted[(sorted.len() - 1) / 2];
        for at in range {
            let (mut sum, mut senders) = (0.0, 0);
            for (flat, norm) in dense.iter().zip(&norms) {
                sum += f64::from(flat[at]) * if *norm > median { median / norm } else { 1.0 };
                senders += usize::from(flat[at] != 0.0);
            }
            let divisor = if spec.aggregation == Aggregation::MeanOfAll { bodies.len() } else { senders.max(1) };
            theta[at] -= f64::from(spec.lr_outer) * sum / divisor as f64;
        }
    }
    theta
}

fn views(bodies: &[Body]) -> Vec<BodyRef<'_>> {
    bodies.iter().map(Body::view).collect()
}

#[test]
fn the_outer_step_is_the_formula_to_a_millionth() {
    let layout = layout(&[&[130, 70], &[4100], &[3]]);
    for (quantiser, name) in QUANTISERS {
        for aggregation in [Aggregation::MeanOfAll, Aggregation::MeanOfSenders] {
            for n in [1, 2, 3, 8, 20, 31] {
                let spec = spec_of(quantiser, aggregation);
                let bodies = contributions(&layout, &spec, n);
                let zeros = vec![0.0; layout.flat_len()];
                let mut theta = zeros.clone();
                let report = outer_step(&layout, &spec, &views(&bodies), &mut theta);
                let want = plain(&layout, &spec, &bodies, &zeros);
                let (mut off, mut all) = (0.0, 0.0);
                for (got, want) in theta.iter().zip(&want) {
                    off += (f64::from(*got) - want).powi(2);
                    all += want.powi(2);
                }
                assert!(off.sqrt() <= 1e-6 * all.sqrt(), "{name} {aggregation:?} R = {n}: {}", (off / all).sqrt());
                assert!(theta.iter().filter(|x| **x != 0.0).count() as u64 <= report.coordinates);
            }
        }
    }
}

#[test]
fn neither_order_nor_split_changes_a_bit() {
    let layout = layout(&[&[130, 200], &[9000], &[3]]);
    for (quantiser, name) in QUANTISERS {
        let spec = spec_of(quantiser, Aggregation::MeanOfSenders);
        let mut bodies = contributions(&layout, &spec, 7);
        let start = noise_of(&layout, 99);
        let mut want = start.clone();
        let report = outer_step(&layout, &spec, &views(&bodies), &mut want);
        for turn in 0..7 {
            bodies.rotate_left(1);
            bodies.swap(0, turn % 5 + 1);
            let mut theta = start.clone();
            outer_step(&layout, &spec, &views(&bodies), &mut theta);
            assert!(theta == want, "{name}: order {turn}");
        }
        for pieces in [1, 2, 5] {
            let views = views(&bodies);
            let step = OuterStep::new(&Inline, Simd::best(), &layout, &spec, &views);
            let mut theta = start.clone();
            let mut coordinates = 0;
            // From the last range to the first, as threads might.
            let ranges: Vec<_> = (0..layout.n_chunks()).step_by(pieces).collect();
            for first in ranges.into_iter().rev() {
                let range = first..(first + pieces).min(layout.n_chunks());
                coordinates += step.apply(range.clone(), &mut theta[range.start * CHUNK_LEN..range.end * CHUNK_LEN]);
            }
            assert!(theta == want, "{name}: ranges of {pieces}");
            assert_eq!(step.report(coordinates).coordinates, report.coordinates);
        }
    }
}

/// The sums of the module's documentation, one value at a time.
fn by_the_definition(layout: &Layout, spec: &SparseSpec, bodies: &[Body], theta: &mut [f32]) -> u64 {
    let norms: Vec<Vec<f64>> = bodies.iter().map(|body| norms(layout, body.view())).collect();
    let grid_bits = 25 - bodies.len().ilog2() as i32;
    let mut coordinates = 0;
    for chunk_idx in 0..layout.n_chunks() {
        let tensor_idx = layout.tensor_of(chunk_idx);
        let mut sorted: Vec<f64> = norms.iter().map(|norms| norms[tensor_idx]).collect();
        sorted.sort_by(f64::total_cmp);
        let median = sorted[(sorted.len() - 1) / 2];
        let (mut sent, mut peak) = (Vec::new(), 0.0_f32);
        for (body, norms) in bodies.iter().zip(&norms) {
            let (record, norm) = (body.view().record(chunk_idx), norms[tensor_idx]);
            let limit = if norm > median { (median / norm) as f32 } else { 1.0 };
            let values = body.view().levels(tensor_idx).values(record.scale());
            record.for_each(Format::of(spec).kept_of(layout.valid(tensor_idx, chunk_idx)), |position, code| {
                let value = values[usize::from(code)] * limit;
                peak = peak.max(value.abs());
                if record.scale() != 0 {
                    sent.push((position, value));
                }
            });
        }
        if peak < 2_f32.powi(-64) {
            continue;
        }
        let exponent = (peak.to_bits() >> 23) as i32 - 126 - grid_bits;
        let (mut sums, mut counts) = ([0_i64; CHUNK_LEN], [0_u64; CHUNK_LEN]);
        for (position, value) in sent {
            sums[position] += (value * 2_f32.powi(-exponent)).round_ties_even() as i64;
            counts[position] += 1;
        }
        for (position, theta) in theta[chunk_idx * CHUNK_LEN..(chunk_idx + 1) * CHUNK_LEN].iter_mut().enumerate() {
            let divisor = match spec.aggregation {
                Aggregation::MeanOfAll => bodies.len() as u64,
                Aggregation::MeanOfSenders => counts[position],
            };
            if counts[position] > 0 {
                *theta -= sums[position] as f32 * (spec.lr_outer / divisor as f32 * 2_f32.powi(exponent));
                coordinates += 1;
            }
        }
    }
    coordinates
}

/// So many threads, each of which takes a job when it is free.
struct Threads(usize);

#[allow(clippy::disallowed_methods, reason = "a test brings threads of its own")]
impl Pool for Threads {
    fn for_each<J: Send>(&self, jobs: impl Iterator<Item = J> + Send, work: impl Fn(J) + Sync) {
        let jobs = std::sync::Mutex::new(jobs);
        std::thread::scope(|scope| {
            for _ in 0..self.0 {
                scope.spawn(|| {
                    while let Some(job) = { jobs.lock().unwrap().next() } {
                        work(job);
                    }
                });
            }
        });
    }
}

#[test]
fn every_instruction_set_and_every_pool_steps_to_the_same_bits() {
    let layout = layout(&[&[130, 70], &[4100], &[3]]);
    for (quantiser, name) in QUANTISERS {
        for (keep, n) in [(1, 20), (3, 2), (64, 1), (64, 20), (118, 7), (128, 31), (1024, 5)] {
            for aggregation in [Aggregation::MeanOfAll, Aggregation::MeanOfSenders] {
                let spec = SparseSpec { keep_per_chunk: keep, ..spec_of(quantiser, aggregation) };
                let bodies = contributions(&layout, &spec, n);
                let mut start = noise_of(&layout, 99);
                start[7] = -0.0;
                let mut want = start.clone();
                let coordinates = by_the_definition(&layout, &spec, &bodies, &mut want);
                let want: Vec<u32> = want.into_iter().map(f32::to_bits).collect();
                let views = views(&bodies);
                for simd in Simd::available() {
                    let mut theta = start.clone();
                    let step = OuterStep::new(&Threads(2), simd, &layout, &spec, &views);
                    assert_eq!(step.run(&Threads(3), &mut theta), coordinates);
                    let got: Vec<u32> = theta.into_iter().map(f32::to_bits).collect();
                    assert!(got == want, "{simd:?} {name} {aggregation:?} k = {keep} R = {n}");
                }
            }
        }
    }
}

#[test]
fn the_digest_made_on_the_way_is_that_of_theta() {
    // Two parts and a bit, so that the last one is short.
    let layout = layout(&[&[64 * 71, 64]]);
    let spec = spec_of(Quantiser::TwoBit, Aggregation::MeanOfAll);
    let bodies = contributions(&layout, &spec, 2);
    let views = views(&bodies);
    let step = OuterStep::new(&Inline, Simd::best(), &layout, &spec, &views);
    let (mut theta, mut plain) = (noise_of(&layout, 3), noise_of(&layout, 3));
    let (coordinates, got) = step.run_and_digest(&Threads(2), &mut theta);
    assert_eq!(step.apply(0..layout.n_chunks(), &mut plain), coordinates);
    assert!(theta == plain);
    assert_eq!(got, crate::digest::digest(&plain));
}

#[test]
fn nobody_exceeds_the_median_and_nobody_is_scaled_up() {
    let layout = layout(&[&[64, 64]]);
    let spec = spec_of(Quantiser::OneBit, Aggregation::MeanOfAll);
    let sized = |size: f32| {
        let delta: Vec<f32> = noise_of(&layout, 1).into_iter().map(|d| d * size).collect();
        encode(&layout, &spec, &mut vec![0.0; layout.flat_len()], &delta).unwrap().body
    };
    let bodies = [sized(1.0), sized(64.0), sized(2.0), sized(0.5)];
    let report = outer_step(&layout, &spec, &views(&bodies), &mut vec![0.0; layout.flat_len()]);
    let limits: Vec<f32> = report.contributions.iter().map(|c| c.limit_min).collect();
    // Of four, the lower middle is the median: the one of size 1. Sizes are powers of two, so the limits are exact.
    assert_eq!(limits, [1.0, 1.0 / 64.0, 0.5, 1.0]);
    let limited: Vec<usize> = report.contributions.iter().map(|c| c.limited_tensors).collect();
    assert_eq!(limited, [0, 1, 1, 0]);
}

#[test]
fn a_mean_over_senders_divides_by_those_that_sent() {
    let layout = layout(&[&[64, 64], &[64, 64]]);
    let at = |position: usize| {
        let mut delta = vec![0.0; layout.flat_len()];
        delta[position] = 1.0;
        delta[CHUNK_LEN] = 1.0;
        delta
    };
    for (aggregation, alone, both) in [(Aggregation::MeanOfAll, 0.5, 1.0), (Aggregation::MeanOfSenders, 1.0, 1.0)] {
        let spec = SparseSpec { aggregation, ..spec(Quantiser::OneBit, 1) };
        let body = |position| encode(&layout, &spec, &mut vec![0.0; layout.flat_len()], &at(position)).unwrap().body;
        let bodies = [body(5), body(9)];
        let mut theta = vec![2.0; layout.flat_len()];
        let report = outer_step(&layout, &spec, &views(&bodies), &mut theta);
        assert_eq!((theta[5], theta[9], theta[CHUNK_LEN], theta[0]), (2.0 - alone, 2.0 - alone, 2.0 - both, 2.0));
        assert_eq!(report.coordinates, 3);
    }
}

#[test]
fn an_unused_level_does_not_coarsen_the_others() {
    let layout = layout(&[&[64, 64]]);
    let spec = spec_of(Quantiser::SigmaBins, Aggregation::MeanOfAll);
    let honest = some_body(&layout, &spec, 1);
    let mut hostile = some_body(&layout, &spec, 2);
    let counts = hostile.view().record(0).code_counts(64);
    let unused = counts.iter().position(|count| *count == 0);
    let Some(unused) = unused else { panic!("all of {counts:?} are used: choose another seed") };
    let mut thetas = [vec![0.0; layout.flat_len()], vec![0.0; layout.flat_len()]];
    outer_step(&layout, &spec, &[honest.view(), hostile.view()], &mut thetas[0]);
    hostile.levels[4 + 4 * unused..8 + 4 * unused].copy_from_slice(&SIGMA_VALUE_MAX.to_le_bytes());
    outer_step(&layout, &spec, &[honest.view(), hostile.view()], &mut thetas[1]);
    assert!(thetas[0] == thetas[1]);
}

#[test]
fn the_extremes_of_what_a_peer_may_send_neither_overflow_nor_panic() {
    let layout = layout(&[&[64, 64]]);
    for (quantiser, name) in QUANTISERS {
        let spec = SparseSpec { keep_per_chunk: 1, lr_outer: 10.0, ..spec_of(quantiser, Aggregation::MeanOfSenders) };
        let format = Format::of(&spec);
        let mut largest = Body::blank(&layout, format);
        let levels = match quantiser {
            Quantiser::OneBit => Levels::OneBit,
            Quantiser::TwoBit => Levels::TwoBit { low: 1, high: LEVEL_MAX },
            Quantiser::SigmaBins => Levels::SigmaBins { shift: SIGMA_VALUE_MAX, lookup: [SIGMA_VALUE_MAX; 4] },
        };
        levels.write(&mut largest.levels);
        let code = if quantiser == Quantiser::OneBit { 0 } else { 2 };
        super::super::write::write_codes(format, &[77], &[code], 255, &mut largest.records);
        let bodies = vec![largest; CONTRIBUTIONS_MAX];
        let mut theta = vec![0.0; layout.flat_len()];
        outer_step(&layout, &spec, &views(&bodies), &mut theta);
        let want = 10.0 * levels.values(255)[usize::from(code)];
        assert!((theta[77] + want).abs() <= 1e-6 * want, "{name}: {} for {want}", theta[77]);
    }
}

#[test]
fn no_contribution_moves_nothing() {
    let layout = golden_layout();
    let mut theta = noise_of(&layout, 1);
    let report = outer_step(&layout, &spec(Quantiser::TwoBit, 64), &[], &mut theta);
    assert_eq!((theta, report.coordinates), (noise_of(&layout, 1), 0));
}

#[test]
fn one_contribution_applied_alone_is_a_plain_subtraction() {
    let layout = golden_layout();
    let body = some_body(&layout, &spec(Quantiser::TwoBit, 64), 3);
    let (mut theta, sent) = (noise_of(&layout, 1), decode(&layout, body.view()));
    // Powers of two: scaling by them rounds nothing.
    let scales: Vec<f32> = (0..layout.tensors().len()).map(|tensor_idx| 0.5_f32.powi(tensor_idx as i32)).collect();
    let mut want = theta.clone();
    for (tensor_idx, scale) in scales.iter().enumerate() {
        for chunk_idx in layout.chunks_of(tensor_idx) {
            let places = chunk_idx * CHUNK_LEN..(chunk_idx + 1) * CHUNK_LEN;
            want[places.clone()].iter_mut().zip(&sent[places]).for_each(|(want, sent)| *want -= 0.2 * (scale * sent));
        }
    }
    apply_one(&layout, &spec(Quantiser::TwoBit, 64), body.view(), 0.2, &scales, &mut theta);
    assert!(theta == want);
}
