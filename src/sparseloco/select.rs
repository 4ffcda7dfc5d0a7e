//! Exact top-k of a chunk: the k largest |a|, ties to the lowest position, padding never.
//!
//! The order is total on finite values, so the selected set is one and the same for any algorithm. |a| is compared as an
//! integer (the bits of a positive float ascend with it), which makes zeros of either sign equal.
//!
//! The usual case takes three steps and no sort. While a is computed, each of L ≥ 2k lanes keeps the largest |a| that it sees. The k-th
//! largest of those maxima is exceeded by at least k values, so it bounds the k-th largest |a| from below: one pass of
//! comparisons leaves the candidates, about 1.4 k of them, in order. Bisection among their magnitudes then finds a threshold
//! that exactly k reach. Chunks where this does not work (a bound of zero: fewer than k values are not zero, or all are wanted) go
//! through a partial sort, which is also the definition that tests hold the fast way against.

use super::layout::{BLOCK_EDGE, CHUNK_LEN, Valid};
use super::record::KEEP_MAX;
use super::simd::{Lanes, MAGNITUDE, WIDTH};

/// How many lanes divide a chunk at most.
const LANES_MAX: usize = 2 * KEEP_MAX;

/// Positions of a row that are written without a branch; more are rare.
const ROW_BATCH: usize = 4;

/// The largest magnitudes of a chunk by lane: lane j of region r sees the positions `r · region_len + j` modulo [`WIDTH`].
pub(super) struct Maxima {
    /// A region's length: such that there are at least 2k lanes, and 128.
    region_len: usize,
    lanes: [u32; LANES_MAX],
}

impl Maxima {
    /// For k kept values.
    pub(super) fn new(keep: usize) -> Self {
        let n_lanes = (2 * keep).next_power_of_two().clamp(128, LANES_MAX);
        Self { region_len: CHUNK_LEN * WIDTH / n_lanes, lanes: [0; LANES_MAX] }
    }

    /// e ← fl(β·e + Δ) = a, and the lanes' maxima. Answers the largest: from 0x7f80_0000 on some a is not finite.
    #[inline(always)]
    pub(super) fn accumulate<L: Lanes>(
        &mut self,
        lanes: L,
        decay: f32,
        error: &mut [f32; CHUNK_LEN],
        delta: &[f32; CHUNK_LEN],
    ) -> u32 {
        let mut largest = 0;
        let regions = error.chunks_exact_mut(self.region_len).zip(delta.chunks_exact(self.region_len));
        for ((error, delta), maxima) in regions.zip(self.lanes.as_chunks_mut().0) {
            *maxima = lanes.accumulate(decay, error.as_chunks_mut().0, delta.as_chunks().0);
            largest = maxima.iter().copied().fold(largest, u32::max);
        }
        largest
    }

    /// A magnitude that at least `n_kept` of the lanes reach, and few more than that.
    #[inline(always)]
    fn bound<L: Lanes>(&self, lanes: L, n_kept: usize, largest: u32) -> u32 {
        let maxima = self.lanes[..CHUNK_LEN * WIDTH / self.region_len].as_chunks().0;
        let enough = n_kept + n_kept / 16;
        // At least n_kept lanes reach `low`, fewer reach `high`.
        let (mut low, mut high) = (0, largest + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let n = lanes.count_at_least(maxima, middle);
            if n < n_kept {
                high = middle;
            } else {
                low = middle;
                if n <= enough {
                    break;
                }
            }
        }
        low
    }
}

/// Room for one chunk's selection.
pub(super) struct Selection {
    /// Positions, ascending; beyond the selected ones anything. Room for a whole chunk of candidates and a batch more.
    positions: [u16; CHUNK_LEN + ROW_BATCH],
    magnitudes: [[u32; WIDTH]; CHUNK_LEN / WIDTH],
    sorted: Vec<u32>,
}

impl Selection {
    pub(super) fn new() -> Self {
        Self {
            positions: [0; CHUNK_LEN + ROW_BATCH],
            magnitudes: [[0; WIDTH]; CHUNK_LEN / WIDTH],
            sorted: Vec::with_capacity(CHUNK_LEN),
        }
    }

    /// The `n_kept` positions of the largest |a|, ascending. `maxima` were made with this chunk, which is finite and whose largest
    /// magnitude is `largest`; `n_kept` is at least 1 and at most `valid.count()`. `on_row` is called before each row is read.
    #[inline(always)]
    pub(super) fn select<L: Lanes>(
        &mut self,
        lanes: L,
        chunk: &[f32; CHUNK_LEN],
        valid: Valid,
        maxima: (&Maxima, u32),
        n_kept: usize,
        on_row: impl FnMut(usize),
    ) -> &[u16] {
        let bound = maxima.0.bound(lanes, n_kept, maxima.1);
        if bound == 0 {
            self.select_by_sorting(chunk, valid, n_kept);
        } else {
            // Padding is zero, so it does not reach the bound.
            let n_candidates = self.candidates(lanes, chunk, bound, on_row);
            self.narrow(lanes, n_candidates, n_kept, bound, maxima.1);
        }
        &self.positions[..n_kept]
    }

    /// What was selected last.
    pub(super) fn selected(&self, n_kept: usize) -> &[u16] {
        &self.positions[..n_kept]
    }

    /// Positions that were selected before.
    pub(super) fn take(&mut self, positions: &[u16]) {
        self.positions[..positions.len()].copy_from_slice(positions);
    }

    /// Positions and magnitudes of all that reach `bound`.
    #[inline(always)]
    fn candidates<L: Lanes>(
        &mut self,
        lanes: L,
        chunk: &[f32; CHUNK_LEN],
        bound: u32,
        mut on_row: impl FnMut(usize),
    ) -> usize {
        let mut n = 0;
        for (row_idx, row) in chunk.as_chunks().0.iter().enumerate() {
            on_row(row_idx);
            let mut bits = lanes.at_least(row, bound);
            let first = (row_idx * BLOCK_EDGE) as u16;
            let end = n + bits.count_ones() as usize;
            // Most rows have few candidates: a fixed number of writes costs less than a branch that is guessed wrong.
            for slot in &mut self.positions[n..n + ROW_BATCH] {
                *slot = first + bits.trailing_zeros() as u16;
                bits &= bits.wrapping_sub(1);
            }
            let mut next = n + ROW_BATCH;
            while bits != 0 {
                self.positions[next] = first + bits.trailing_zeros() as u16;
                bits &= bits - 1;
                next += 1;
            }
            n = end;
        }
        let magnitudes = self.magnitudes.as_flattened_mut();
        for (magnitude, position) in magnitudes.iter_mut().zip(&self.positions[..n]) {
            *magnitude = chunk[usize::from(*position) % CHUNK_LEN].to_bits() & MAGNITUDE;
        }
        magnitudes[n..n.next_multiple_of(WIDTH)].fill(0);
        n
    }

    /// Keeps the `n_kept` largest of the candidates, all of which reach `bound`, at least one `largest`.
    #[inline(always)]
    fn narrow<L: Lanes>(&mut self, lanes: L, n_candidates: usize, n_kept: usize, bound: u32, largest: u32) {
        let magnitudes = &self.magnitudes[..n_candidates.div_ceil(WIDTH)];
        // At least n_kept candidates reach `low`, fewer reach `high`.
        let (mut low, mut high, mut n_low) = (bound, largest + 1, n_candidates);
        while n_low != n_kept && high - low > 1 {
            let middle = low + (high - low) / 2;
            let n = lanes.count_at_least(magnitudes, middle);
            if n < n_kept {
                high = middle;
            } else {
                (low, n_low) = (middle, n);
            }
        }
        let magnitudes = magnitudes.as_flattened();
        let mut n = 0;
        if n_low == n_kept {
            for (i, magnitude) in magnitudes[..n_candidates].iter().enumerate() {
                // n never passes i.
                self.positions[n] = self.positions[i];
                n += usize::from(*magnitude >= low);
            }
        } else {
            // More reach `low` than are kept, so some are equal to it: the first so many.
            let mut ties = n_kept - lanes.count_at_least(magnitudes.as_chunks().0, low + 1);
            for (i, magnitude) in magnitudes[..n_candidates].iter().enumerate() {
                let is_kept = *magnitude > low || (*magnitude == low && ties > 0);
                ties -= usize::from(*magnitude == low && is_kept);
                self.positions[n] = self.positions[i];
                n += usize::from(is_kept);
            }
        }
    }

    /// The definition, for any chunk.
    #[inline(never)]
    fn select_by_sorting(&mut self, chunk: &[f32; CHUNK_LEN], valid: Valid, n_kept: usize) {
        self.sorted.clear();
        for run in valid.runs() {
            self.sorted.extend(chunk[run].iter().map(|a| a.to_bits() & MAGNITUDE));
        }
        let nth = self.sorted.len() - n_kept;
        let (_, bound, above) = self.sorted.select_nth_unstable(nth);
        let bound = *bound;
        // All above the bound are kept; of those equal to it, the first so many.
        let mut ties = n_kept - above.iter().filter(|a| **a > bound).count();
        let mut kept = self.positions.iter_mut();
        for position in valid.positions() {
            let magnitude = chunk[position].to_bits() & MAGNITUDE;
            if magnitude < bound || (magnitude == bound && ties == 0) {
                continue;
            }
            ties -= usize::from(magnitude == bound);
            *kept.next().expect("there is room for a whole chunk") = position as u16;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::layout::{Layout, TensorShape};
    use super::super::simd::{Kernel, Portable, Simd};
    use super::*;

    struct Select<'a>(&'a [f32; CHUNK_LEN], Valid, usize);

    impl Kernel for Select<'_> {
        type Output = Vec<u16>;

        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) -> Vec<u16> {
            let (mut maxima, mut a) = (Maxima::new(self.2), [0.0; CHUNK_LEN]);
            let largest = maxima.accumulate(lanes, 0.5, &mut a, self.0);
            Selection::new().select(lanes, self.0, self.1, (&maxima, largest), self.2, |_| ()).to_vec()
        }
    }

    /// The definition: sort all by (|a| descending, position ascending), take the first, put them in order.
    fn by_full_sort(chunk: &[f32; CHUNK_LEN], valid: Valid, n_kept: usize) -> Vec<u16> {
        let mut order: Vec<usize> = (0..CHUNK_LEN).filter(|position| valid.contains(*position)).collect();
        order.sort_by(|a, b| chunk[*b].abs().partial_cmp(&chunk[*a].abs()).unwrap().then(a.cmp(b)));
        order.truncate(n_kept);
        order.sort_unstable();
        order.into_iter().map(|position| position as u16).collect()
    }

    fn check(what: &str, chunk: &[f32; CHUNK_LEN], valid: Valid) {
        let chunk = &std::array::from_fn(|position| if valid.contains(position) { chunk[position] } else { 0.0 });
        for keep in [1, 2, 63, 64, 65, 118, 1023, 1024] {
            let n_kept = keep.min(valid.count());
            let wanted = by_full_sort(chunk, valid, n_kept);
            for simd in Simd::available() {
                let positions = simd.dispatch(Select(chunk, valid, n_kept));
                assert_eq!(positions, wanted, "{what}, keep {keep}, {valid:?}, {simd:?}");
            }
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

    #[test]
    fn noise_leaves_few_candidates() {
        let mut noise = noise(7);
        let chunk: [f32; CHUNK_LEN] = std::array::from_fn(|_| (0..8).map(|_| noise() as f32 / 4e9 - 0.5).sum());
        for (keep, at_most) in [(64, 128), (118, 236), (1024, 2048)] {
            let (mut maxima, mut a) = (Maxima::new(keep), [0.0; CHUNK_LEN]);
            let largest = maxima.accumulate(Portable, 0.0, &mut a, &chunk);
            let bound = maxima.bound(Portable, keep, largest);
            let n_candidates = chunk.iter().filter(|a| a.to_bits() & MAGNITUDE >= bound).count();
            assert!((keep..at_most).contains(&n_candidates), "k {keep}: {n_candidates}");
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
