//! Draws that every node repeats: an endless stream of unbiased numbers from a purpose and a few 32-byte keys.
//!
//! The stream is BLAKE3's extendable output in key-derivation mode, so two purposes never share a stream, and whoever
//! knows the keys (block hashes, hotkeys) can rebuild every draw. Numbers below a bound come by rejection: the values
//! that would favour the small results are thrown away, so each result has exactly the same chance.

use std::collections::BTreeMap;

/// Bytes taken from the stream at once: one BLAKE3 output block.
const BLOCK_LEN: usize = 64;

/// A stream of unbiased draws.
pub struct Draw {
    stream: blake3::OutputReader,
    block: [u8; BLOCK_LEN],
    used: usize,
}

impl Draw {
    /// The stream of `purpose` under `keys`.
    ///
    /// A purpose is a constant of the program and always comes with the same number of keys, which makes their
    /// concatenation unambiguous.
    #[must_use]
    pub fn new(purpose: &'static str, keys: &[&[u8; 32]]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(purpose);
        for key in keys {
            hasher.update(*key);
        }
        Self { stream: hasher.finalize_xof(), block: [0; BLOCK_LEN], used: BLOCK_LEN }
    }

    /// A number from `0..bound`, each with the same chance.
    ///
    /// # Panics
    /// If `bound` is 0: there is nothing to draw from.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "nothing to draw from");
        // 2^64 mod bound values too many: the largest ones are thrown away.
        let surplus = (u64::MAX % bound + 1) % bound;
        loop {
            let number = self.number();
            if number <= u64::MAX - surplus {
                return number % bound;
            }
        }
    }

    /// Puts `items` in an order of which each is equally likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for place in (1..items.len()).rev() {
            // A slice's length fits u64 on every platform, and the draw is at most `place`.
            let other = self.below(place as u64 + 1) as usize;
            items.swap(place, other);
        }
    }

    /// The numbers of `0..n` in an order of which each is equally likely, drawn one at a time.
    ///
    /// Taking the first few costs time and memory for those few only, and taking more never changes the first.
    #[must_use]
    pub fn permutation(self, n: u64) -> Permutation {
        Permutation { draw: self, n, taken: 0, moved: BTreeMap::new() }
    }

    fn number(&mut self) -> u64 {
        if self.used == BLOCK_LEN {
            self.stream.fill(&mut self.block);
            self.used = 0;
        }
        let bytes = self.block[self.used..self.used + 8].try_into().expect("eight bytes are eight bytes");
        self.used += 8;
        u64::from_le_bytes(bytes)
    }
}

/// The numbers of `0..n`, each once, in drawn order: Fisher–Yates that keeps only the places it has touched.
pub struct Permutation {
    draw: Draw,
    n: u64,
    taken: u64,
    moved: BTreeMap<u64, u64>,
}

impl Permutation {
    /// Begins another pass over all numbers, in another order; the stream goes on.
    fn restart(&mut self) {
        self.taken = 0;
        self.moved.clear();
    }

    /// Passes without end, each in an order of its own. Empty if there are no numbers.
    pub fn repeated(mut self) -> impl Iterator<Item = u64> {
        std::iter::from_fn(move || {
            self.next().or_else(|| {
                self.restart();
                self.next()
            })
        })
    }
}

impl Iterator for Permutation {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        if self.taken == self.n {
            return None;
        }
        let first = self.moved.remove(&self.taken).unwrap_or(self.taken);
        let place = self.taken + self.draw.below(self.n - self.taken);
        let drawn = if place == self.taken { first } else { self.moved.insert(place, first).unwrap_or(place) };
        self.taken += 1;
        Some(drawn)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PURPOSE: &str = "convoke 2026-11 test draw v1";

    fn draw(key: u8) -> Draw {
        Draw::new(PURPOSE, &[&[key; 32]])
    }

    /// Pearson's statistic of `counts` against equal chances.
    fn chi_square(counts: &[u64]) -> f64 {
        let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
        counts.iter().map(|&count| (count as f64 - expected).powi(2) / expected).sum()
    }

    #[test]
    fn every_result_has_the_same_chance() {
        let mut draw = draw(1);
        let mut counts = [0; 10];
        for _ in 0..100_000 {
            counts[draw.below(10) as usize] += 1;
        }
        // 9 degrees of freedom: one stream in a thousand exceeds 27.9.
        assert!(chi_square(&counts) < 27.9, "{counts:?}");
    }

    #[test]
    fn a_bound_that_does_not_divide_the_range_favours_nothing() {
        // A bare remainder would give the lowest third twice the chance of each other.
        let third = 1 << 62;
        let mut draw = draw(2);
        let mut counts = [0; 3];
        for _ in 0..30_000 {
            counts[(draw.below(3 * third) / third) as usize] += 1;
        }
        assert!(chi_square(&counts) < 13.9, "{counts:?}");
    }

    #[test]
    fn every_order_has_the_same_chance() {
        let mut draw = draw(3);
        let mut counts = BTreeMap::new();
        for _ in 0..24_000 {
            let mut items = [0, 1, 2, 3];
            draw.shuffle(&mut items);
            *counts.entry(items).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 24);
        // 23 degrees of freedom: one stream in a thousand exceeds 49.8.
        assert!(chi_square(&counts.into_values().collect::<Vec<_>>()) < 49.8);
    }

    #[test]
    fn every_number_has_the_same_chance_of_each_place_of_a_permutation() {
        let mut counts = [[0; 6]; 6];
        for key in 0..6000_u32 {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&key.to_le_bytes());
            for (place, number) in Draw::new(PURPOSE, &[&bytes]).permutation(6).enumerate() {
                counts[place][number as usize] += 1;
            }
        }
        for place in counts {
            // 5 degrees of freedom: one stream in a thousand exceeds 20.5.
            assert!(chi_square(&place) < 20.5, "{place:?}");
        }
    }

    #[test]
    fn purpose_and_key_each_make_another_stream() {
        let numbers = |mut draw: Draw| (0..4).map(|_| draw.below(u64::MAX)).collect::<Vec<_>>();
        assert_eq!(numbers(draw(1)), numbers(draw(1)));
        assert_ne!(numbers(draw(1)), numbers(draw(2)));
        assert_ne!(numbers(draw(1)), numbers(Draw::new("convoke 2026-11 another test draw v1", &[&[1; 32]])));
    }

    #[test]
    fn nothing_repeats_nothing() {
        assert_eq!(draw(1).permutation(0).repeated().next(), None);
    }

    proptest! {
        #[test]
        fn a_permutation_holds_each_number_once(key: u8, n in 0_u64..300) {
            let mut numbers: Vec<_> = draw(key).permutation(n).collect();
            numbers.sort_unstable();
            prop_assert_eq!(numbers, (0..n).collect::<Vec<_>>());
        }

        #[test]
        fn a_draw_stays_below_its_bound(key: u8, bound in 1_u64..) {
            prop_assert!(draw(key).below(bound) < bound);
        }
    }
}
