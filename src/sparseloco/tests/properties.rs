//! Claims about any layout, any k, any input: what is decoded is what was quantised, nothing is lost, one content has one encoding,
//! and an outer step depends on nothing but the set of contributions.

use std::sync::Mutex;

use proptest::prelude::*;

use super::plain::{Chunk, Content, value};
use super::*;
use crate::digest::digest;
use crate::pool::{Inline, Pool};

fn quantisers() -> impl Strategy<Value = Quantiser> {
    prop::sample::select(QUANTISERS.map(|(quantiser, _)| quantiser).to_vec())
}

/// One to three tensors of one or two dimensions, from a single parameter to nine chunks.
fn layouts() -> impl Strategy<Value = Layout> {
    let shape = prop_oneof![
        (1_usize..=150, 1_usize..=150).prop_map(|(rows, cols)| vec![rows, cols]),
        prop_oneof![1_usize..=70, 4000_usize..=8300].prop_map(|len| vec![len]),
    ];
    prop::collection::vec(shape, 1..=3).prop_map(|shapes| layout(&shapes.iter().map(Vec::as_slice).collect::<Vec<_>>()))
}

fn keeps() -> impl Strategy<Value = usize> {
    prop_oneof![Just(64_usize), Just(118), 1_usize..=9, 1_usize..=KEEP_MAX]
}

/// What a pseudo-gradient may look like.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Heavy,
    /// Few distinct magnitudes: ties, and zeros of both signs.
    Coarse,
    /// Some chunks are zero, some are far below the smallest scale.
    Uneven,
    /// Any finite bits up to a quarter of the largest number.
    AnyBits,
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![Kind::Heavy, Kind::Coarse, Kind::Uneven, Kind::AnyBits])
}

fn input(layout: &Layout, kind: Kind, seed: u32) -> Vec<f32> {
    let mut flat = heavy_noise_of(layout, seed);
    for (i, x) in flat.iter_mut().enumerate().filter(|(_, x)| **x != 0.0) {
        *x = match kind {
            Kind::Heavy => *x,
            Kind::Coarse => (*x * 300.0).round() / 256.0,
            Kind::Uneven => *x * [0.0, 1.0, 1e-12, 1e3, 1e-7][i / CHUNK_LEN % 5],
            Kind::AnyBits => {
                let any = f32::from_bits(x.to_bits().wrapping_mul(2_654_435_761).rotate_left(i as u32));
                if any.is_finite() { any / 4.0 } else { 0.5 }
            }
        };
    }
    flat
}

/// The content that the documentation asks for, given the tensor's levels: a full sort, the nearest scale, the nearest level.
fn quantised(layout: &Layout, spec: &SparseSpec, a: &[f32], levels: Vec<Levels>) -> Content {
    let chunk = |chunk_idx: usize| {
        let tensor_idx = layout.tensor_of(chunk_idx);
        let (levels, valid) = (levels[tensor_idx], layout.valid(tensor_idx, chunk_idx));
        let a = &a[chunk_idx * CHUNK_LEN..(chunk_idx + 1) * CHUNK_LEN];
        let mut positions: Vec<usize> = valid.positions().collect();
        positions.sort_by(|p, q| a[*q].abs().total_cmp(&a[*p].abs()).then(p.cmp(q)));
        positions.truncate(spec.keep_per_chunk);
        positions.sort_unstable();
        if spec.quantiser == Quantiser::SigmaBins {
            return Chunk { codes: vec![0; positions.len()], positions, scale: 1 };
        }
        let scale = scale_of(&positions, a);
        if scale == 0 {
            let positions: Vec<usize> = valid.positions().take(positions.len()).collect();
            return Chunk { codes: vec![0; positions.len()], positions, scale };
        }
        let codes = positions.iter().map(|position| nearest_code(levels, scale, a[*position])).collect();
        Chunk { positions, codes, scale }
    };
    let chunks = (0..layout.n_chunks()).map(chunk).collect();
    let mut content = Content { levels, chunks };
    if spec.quantiser == Quantiser::SigmaBins {
        set_bins(layout, &mut content, a);
    }
    content
}

/// The mean of the kept magnitudes, summed as documented, and the entry nearest to it.
fn scale_of(positions: &[usize], a: &[f32]) -> u8 {
    let mut sums = vec![0.0_f32; 16];
    for (i, position) in positions.iter().enumerate() {
        sums[i % 16] += a[*position].abs();
    }
    while sums.len() > 1 {
        let upper = sums.split_off(sums.len() / 2);
        sums.iter_mut().zip(upper).for_each(|(low, high)| *low += high);
    }
    let mean = f64::from(sums[0] / positions.len() as f32);
    let away = |code: &u8| (f64::from(SCALES[usize::from(*code)]) - mean).abs();
    // Of two at the same distance the higher one; an infinite mean is as far from all.
    (0..=255_u8).rev().min_by(|a, b| away(a).total_cmp(&away(b))).unwrap()
}

fn nearest_code(levels: Levels, scale: u8, a: f32) -> u8 {
    let sign = u8::from(a.is_sign_negative());
    match levels {
        Levels::OneBit => sign,
        Levels::TwoBit { .. } => {
            let split = (value(levels, scale, 0) + value(levels, scale, 2)) / 2.0;
            sign | u8::from(a.abs() > split) << 1
        }
        Levels::SigmaBins { .. } => unreachable!("its codes come from all values of the tensor"),
    }
}

/// Sigma-bins' codes, by the rule of the reference run's quantiser.
fn set_bins(layout: &Layout, content: &mut Content, a: &[f32]) {
    for (tensor_idx, levels) in content.levels.iter().enumerate() {
        let Levels::SigmaBins { shift, .. } = levels else { unreachable!("the quantiser is sigma-bins") };
        let chunks = layout.chunks_of(tensor_idx);
        let mut centred = Vec::new();
        for chunk_idx in chunks.clone() {
            for position in &content.chunks[chunk_idx].positions {
                centred.push(f64::from(a[chunk_idx * CHUNK_LEN + position]) - f64::from(*shift));
            }
        }
        let squares: f64 = centred.iter().map(|c| c * c).sum();
        let width = 6.0 * (squares.sqrt() / (centred.len() as f64 - 1.0).sqrt()) / 4.0;
        let width = if width.is_finite() && width != 0.0 { width } else { 1.0 };
        let mut bins = centred.iter().map(|c| (c / width + 2.0).round_ties_even().clamp(0.0, 3.0) as u8);
        for chunk in &mut content.chunks[chunks] {
            chunk.codes.fill_with(|| bins.next().unwrap());
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn what_is_decoded_is_what_was_quantised_and_the_rest_stays(
        layout in layouts(), quantiser in quantisers(), keep in keeps(), kind in kinds(), seed in 0_u32..1000,
        error_decay in prop::sample::select(vec![0.0_f32, 0.5, 0.95, 1.0]),
    ) {
        let spec = SparseSpec { error_decay, ..spec(quantiser, keep) };
        let (error, delta) = (input(&layout, kind, seed), input(&layout, kind, seed + 1000));
        let a: Vec<f32> = error.iter().zip(&delta).map(|(e, d)| error_decay * e + d).collect();
        let mut kept = error;
        let encoded = encode(&layout, &spec, &mut kept, &delta).unwrap();
        let body = encoded.body.view();
        let levels = (0..layout.tensors().len()).map(|tensor_idx| body.levels(tensor_idx)).collect();
        let want = quantised(&layout, &spec, &a, levels);
        prop_assert_eq!(&Content::of(&layout, body), &want);
        let (level_bytes, record_bytes) = want.bytes(quantiser, keep);
        prop_assert_eq!((body.level_bytes(), body.record_bytes()), (&level_bytes[..], &record_bytes[..]));
        let sent = want.values(&layout);
        prop_assert_eq!(bits(&decode(&layout, body)), bits(&sent));
        let rest: Vec<f32> = a.iter().zip(&sent).map(|(a, sent)| a - sent).collect();
        prop_assert_eq!(bits(&kept), bits(&rest), "C-1");
        encoded.undo.restore(&layout, body, &mut kept);
        prop_assert_eq!(bits(&kept), bits(&a), "undo");
        let checked = BodyRef::check(&layout, Format::of(&spec), &level_bytes, &record_bytes);
        prop_assert!(checked.is_ok(), "{:?}", checked);
    }

    #[test]
    fn whatever_is_accepted_is_the_one_encoding_of_what_it_says(
        layout in layouts(), quantiser in quantisers(), keep in keeps(), kind in kinds(), seed in 0_u32..1000,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let spec = spec(quantiser, keep);
        let mut error = vec![0.0; layout.flat_len()];
        let body = encode(&layout, &spec, &mut error, &input(&layout, kind, seed)).unwrap().body;
        let (levels, records) = (body.view().level_bytes(), body.view().record_bytes());
        let mut bytes = [levels, records].concat();
        for (at, change) in &changes {
            // One bit of four changes is often another content, a whole byte seldom.
            let at = at.index(bytes.len());
            bytes[at] ^= if change % 4 == 0 { *change } else { 1 << (change % 8) };
        }
        let (levels, records) = bytes.split_at(levels.len());
        if let Ok(body) = BodyRef::check(&layout, Format::of(&spec), levels, records) {
            let content = Content::of(&layout, body);
            content.assert_canonical(&layout, keep);
            prop_assert_eq!(content.bytes(quantiser, keep), (levels.to_vec(), records.to_vec()));
            let values = content.values(&layout);
            prop_assert!(values.iter().all(|value| value.abs() <= 128.0));
            prop_assert_eq!(bits(&decode(&layout, body)), bits(&values));
        }
    }
}

/// Does the jobs in another order than they come.
struct Shuffled(usize);

impl Pool for Shuffled {
    fn for_each<J: Send>(&self, jobs: impl Iterator<Item = J> + Send, work: impl Fn(J) + Sync) {
        let mut jobs: Vec<J> = jobs.collect();
        while !jobs.is_empty() {
            work(jobs.swap_remove(self.0 % jobs.len()));
        }
    }
}

/// So many threads, each of which takes a job when it is free.
struct Threads(usize);

#[allow(clippy::disallowed_methods, reason = "a test brings threads of its own")]
impl Pool for Threads {
    fn for_each<J: Send>(&self, jobs: impl Iterator<Item = J> + Send, work: impl Fn(J) + Sync) {
        let (jobs, work) = (Mutex::new(jobs), &work);
        let next = || jobs.lock().unwrap().next();
        std::thread::scope(|scope| {
            for _ in 0..self.0 {
                scope.spawn(|| {
                    while let Some(job) = next() {
                        work(job)
                    }
                });
            }
        });
    }
}

/// That a pool and an instruction set make, byte for byte, what one thread makes without vectors.
fn check_alike(pool: &impl Pool, simd: Simd, layout: &Layout, spec: &SparseSpec, error: &[f32], delta: &[f32]) {
    let (mut plain, mut other) = (error.to_vec(), error.to_vec());
    let want = encode_on(&Inline, Simd::Portable, layout, spec, &mut plain, delta).unwrap();
    let got = encode_on(pool, simd, layout, spec, &mut other, delta).unwrap();
    assert!(got.body == want.body, "{simd:?}: the contribution");
    assert_eq!(bits(&other), bits(&plain), "{simd:?}: what stays");
    got.undo.restore(layout, want.body.view(), &mut other);
    want.undo.restore(layout, got.body.view(), &mut plain);
    assert_eq!(bits(&other), bits(&plain), "{simd:?}: undo");
    assert_eq!((got.report.kept, got.report.zero_chunks), (want.report.kept, want.report.zero_chunks));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn neither_threads_nor_order_nor_vectors_change_a_byte(
        layout in layouts(), quantiser in quantisers(), keep in keeps(), kind in kinds(), seed in 0_u32..1000,
        turn in 0_usize..100, n_threads in 1_usize..=4,
    ) {
        let spec = spec(quantiser, keep);
        let (error, delta) = (input(&layout, kind, seed), input(&layout, kind, seed + 1000));
        for simd in Simd::available() {
            check_alike(&Shuffled(turn), simd, &layout, &spec, &error, &delta);
            check_alike(&Threads(n_threads), simd, &layout, &spec, &error, &delta);
        }
    }
}

#[test]
fn a_tensor_of_many_jobs_is_the_same_on_any_number_of_threads() {
    // A thousand chunks in one tensor are cut into several jobs.
    let layout = layout(&[&[64, 64 * 1000], &[70, 70]]);
    let (error, delta) = (noise_of(&layout, 1), heavy_noise_of(&layout, 2));
    for (quantiser, _) in QUANTISERS {
        for n_threads in [1, 2, 3, 7] {
            check_alike(&Threads(n_threads), Simd::best(), &layout, &spec(quantiser, 64), &error, &delta);
        }
    }
}

/// Contributions of different size and shape, not all of them sending every chunk.
fn contributions(layout: &Layout, spec: &SparseSpec, n: usize, seed: u32) -> Vec<Body> {
    let one = |i: u32| {
        let kind = [Kind::Heavy, Kind::Coarse, Kind::Uneven, Kind::AnyBits, Kind::Heavy][(seed + i) as usize % 5];
        let size = [1.0, 3.0, 0.01, 0.5, 30.0, 1e-6][i as usize % 6] / 64.0;
        let delta: Vec<f32> = input(layout, kind, 100 * seed + i).into_iter().map(|d| d * size).collect();
        encode(layout, spec, &mut vec![0.0; layout.flat_len()], &delta).unwrap().body
    };
    (0..n as u32).map(one).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn an_outer_step_depends_on_nothing_but_the_set_of_contributions(
        layout in layouts(), quantiser in quantisers(), keep in keeps(), n in 1..=CONTRIBUTIONS_MAX, seed in 0_u32..100,
        aggregation in prop::sample::select(vec![Aggregation::MeanOfAll, Aggregation::MeanOfSenders]),
        order in prop::collection::vec(any::<u32>(), CONTRIBUTIONS_MAX),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6), backwards: bool, pick in 0_usize..12, n_threads in 1_usize..=4,
    ) {
        let spec = SparseSpec { aggregation, lr_outer: 0.7, ..spec(quantiser, keep) };
        let bodies = contributions(&layout, &spec, n, seed);
        let start = noise_of(&layout, 99);
        let views: Vec<BodyRef<'_>> = bodies.iter().map(Body::view).collect();
        let mut want = start.clone();
        let report = outer_step(&layout, &spec, &views, &mut want);

        let mut shuffled: Vec<usize> = (0..n).collect();
        shuffled.sort_by_key(|i| order[*i]);
        let views: Vec<BodyRef<'_>> = shuffled.iter().map(|i| bodies[*i].view()).collect();
        let simds: Vec<Simd> = Simd::available().collect();
        let pool = Shuffled(backwards.into());
        let step = OuterStep::new(&pool, simds[pick % simds.len()], &layout, &spec, &views);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(layout.n_chunks() + 1)).collect();
        cuts.extend([0, layout.n_chunks()]);
        cuts.sort_unstable();
        let mut ranges: Vec<_> = cuts.windows(2).map(|ends| ends[0]..ends[1]).collect();
        if backwards {
            ranges.reverse();
        }
        let (mut theta, mut coordinates) = (start.clone(), 0);
        for range in ranges {
            coordinates += step.apply(range.clone(), &mut theta[range.start * CHUNK_LEN..range.end * CHUNK_LEN]);
        }
        prop_assert_eq!(bits(&theta), bits(&want));
        let shuffled_report = step.report(coordinates);
        prop_assert_eq!(shuffled_report.coordinates, report.coordinates);
        for (i, own) in shuffled.iter().zip(&shuffled_report.contributions) {
            prop_assert_eq!(own, &report.contributions[*i]);
        }
        let mut theta = start.clone();
        prop_assert_eq!(step.run(&pool, &mut theta), coordinates);
        prop_assert_eq!(bits(&theta), bits(&want));
        let mut theta = start;
        prop_assert_eq!(step.run_and_digest(&Threads(n_threads), &mut theta), (coordinates, digest(&want)));
        prop_assert_eq!(bits(&theta), bits(&want));
    }
}
