//! Draws that depend on what they are about, and on nothing else.
//!
//! A running stream of random numbers would make every later draw depend on every earlier one: taking one fault out of a
//! script would change all that comes after it, and no failure could be made smaller. So each draw names its subject.

use std::time::Duration;

/// A seed, and all that can be drawn from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chance(u64);

impl Chance {
    /// Everything that is drawn from it follows from this number.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// What is drawn about a subject: its kind, then which one of the kind.
    #[must_use]
    pub fn draw(self, kind: &str, which: &[u64]) -> u64 {
        let named = kind.bytes().fold(self.0, |state, byte| mix(state ^ u64::from(byte)));
        which.iter().fold(named, |state, number| mix(state ^ mix(*number)))
    }

    /// In [0, 1).
    #[must_use]
    pub fn share(self, kind: &str, which: &[u64]) -> f64 {
        (self.draw(kind, which) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// In [0, n); of nothing, 0.
    #[must_use]
    pub fn below(self, n: usize, kind: &str, which: &[u64]) -> usize {
        // The modulo's bias is below 2⁻⁴⁰ for all that is drawn here.
        usize::try_from(self.draw(kind, which) % (n.max(1) as u64)).unwrap_or(0)
    }

    /// In [least, most).
    #[must_use]
    pub fn span(self, least: Duration, most: Duration, kind: &str, which: &[u64]) -> Duration {
        least + most.saturating_sub(least).mul_f64(self.share(kind, which))
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014), which takes every bit to every other.
fn mix(number: u64) -> u64 {
    let mut state = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_is_its_subjects_alone() {
        let chance = Chance::new(7);
        assert_eq!(chance.draw("loss", &[3, 4]), Chance::new(7).draw("loss", &[3, 4]));
        let others =
            [chance.draw("loss", &[4, 3]), chance.draw("delay", &[3, 4]), Chance::new(8).draw("loss", &[3, 4])];
        assert!(!others.contains(&chance.draw("loss", &[3, 4])));
    }

    #[test]
    fn shares_fill_the_unit_interval_evenly() {
        let chance = Chance::new(1);
        let n_below = (0..10_000).filter(|i| chance.share("coin", &[*i]) < 0.3).count();
        assert!((2_800..3_200).contains(&n_below), "{n_below}");
    }
}
