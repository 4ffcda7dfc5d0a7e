//! Exact top-k of a chunk: the k largest |a|, ties to the lowest position, padding never.
//!
//! The order is total on finite values, so the selected set is one and the same for any algorithm: a faster one may take
//! this one's place. |a| is compared as an integer (the bits of a positive float ascend with it), which makes zeros of
//! either sign equal.

use super::layout::{CHUNK_LEN, Valid};

const MAGNITUDE: u32 = 0x7fff_ffff;

/// Writes the selected positions, ascending; selects `positions.len()`, which is at most `valid.count()` and at least 1.
/// `scratch` is memory of any content.
pub(super) fn select(chunk: &[f32; CHUNK_LEN], valid: Valid, scratch: &mut Vec<u32>, positions: &mut [u16]) {
    let n_kept = positions.len();
    scratch.clear();
    for run in valid.runs() {
        scratch.extend(chunk[run].iter().map(|a| a.to_bits() & MAGNITUDE));
    }
    let nth = scratch.len() - n_kept;
    let (_, bound, above) = scratch.select_nth_unstable(nth);
    let bound = *bound;
    // All above the bound are kept; of those equal to it, the first so many.
    let mut ties = n_kept - above.iter().filter(|a| **a > bound).count();
    let mut kept = positions.iter_mut();
    for position in valid.positions() {
        let magnitude = chunk[position].to_bits() & MAGNITUDE;
        if magnitude < bound || (magnitude == bound && ties == 0) {
            continue;
        }
        ties -= usize::from(magnitude == bound);
        *kept.next().expect("as many pass as are above the bound, and the ties that fill up") = position as u16;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::layout::{Layout, TensorShape};
    use super::*;

    /// The definition: sort all by (|a| descending, position ascending), take the first, put them in order.
    fn by_full_sort(chunk: &[f32; CHUNK_LEN], valid: Valid, n_kept: usize) -> Vec<u16> {
        let mut order: Vec<usize> = (0..CHUNK_LEN).filter(|position| valid.contains(*position)).collect();
        order.sort_by(|a, b| chunk[*b].abs().partial_cmp(&chunk[*a].abs()).unwrap().then(a.cmp(b)));
        order.truncate(n_kept);
        order.sort_unstable();
        order.into_iter().map(|position| position as u16).collect()
    }

    fn check(what: &str, chunk: &[f32; CHUNK_LEN], valid: Valid) {
        for keep in [1, 2, 63, 64, 65, 118, 1023, 1024] {
            let mut positions = vec![0; keep.min(valid.count())];
            select(chunk, valid, &mut Vec::new(), &mut positions);
            assert_eq!(positions, by_full_sort(chunk, valid, positions.len()), "{what}, keep {keep}, {valid:?}");
        }
    }

    fn some_valids() -> Vec<Valid> {
        let shapes = [vec![64, 64], vec![1, 1], vec![3, 64], vec![64, 5], vec![17, 9], vec![4095], vec![100], vec![64]];
        let layout = |shape| Layout::new(vec![TensorShape { name: "a".into(), shape }]).unwrap().valid(0, 0);
        shapes.into_iter().map(layout).collect()
    }

    fn noise(seed: u64) -> impl FnMut() -> u32 {
        let mut state = seed;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        }
    }

    #[test]
    fn selection_equals_a_full_sort_on_what_breaks_selections() {
        let mut noise = noise(1);
        let mut unit = || f64::from(noise()) as f32 / 4_294_967_296.0 - 0.5;
        let mut chunks: Vec<(&str, Box<[f32; CHUNK_LEN]>)> = vec![
            ("zeros", Box::new([0.0; CHUNK_LEN])),
            ("equal", Box::new([-2.5; CHUNK_LEN])),
            ("zeros of both signs", Box::new(std::array::from_fn(|i| if i % 3 == 0 { -0.0 } else { 0.0 }))),
            ("denormals", Box::new(std::array::from_fn(|i| f32::from_bits((i as u32 * 7919) % 1000)))),
            ("hot column", Box::new(std::array::from_fn(|i| if i % 64 == 37 { 9.0 + unit() } else { unit() }))),
            ("hot row", Box::new(std::array::from_fn(|i| if i / 64 == 63 { 9.0 } else { unit() }))),
            ("largest", Box::new(std::array::from_fn(|i| if i % 2 == 0 { f32::MAX } else { -f32::MAX }))),
            ("ascending", Box::new(std::array::from_fn(|i| i as f32))),
            ("descending", Box::new(std::array::from_fn(|i| -((CHUNK_LEN - i) as f32)))),
            ("few not zero", Box::new(std::array::from_fn(|i| if i % 512 == 511 { unit() } else { 0.0 }))),
        ];
        for levels in [2.0, 16.0, 400.0] {
            chunks.push(("ties", Box::new(std::array::from_fn(|_| (unit() * levels).round() / levels))));
        }
        for (what, chunk) in &chunks {
            for valid in some_valids() {
                check(what, chunk, valid);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn selection_equals_a_full_sort(seed: u64, coarse in 0_u32..31, valid in prop::sample::select(some_valids())) {
            // Clearing low bits makes ties; Inf and NaN are refused before selection.
            let mut noise = noise(seed);
            let chunk = std::array::from_fn(|_| {
                let a = f32::from_bits(noise() >> coarse << coarse);
                if a.is_finite() { a } else { 1.0 }
            });
            check("noise", &chunk, valid);
        }
    }
}
