//! Shares as fixed-point numbers with 32 fractional bits, as Subtensor computes its epochs (its `I32F32`).
//!
//! Floats would give other last digits than the chain, and a chain's state must not depend on how a compiler orders a
//! sum. Everything in an epoch is non-negative, so the sign bit is not needed.

use std::iter::Sum;
use std::ops::{Add, AddAssign};

/// A non-negative number, 32 fractional bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Q32(u64);

impl Q32 {
    pub(super) const ZERO: Self = Self(0);
    pub(super) const ONE: Self = Self(1 << 32);

    /// An integer.
    pub(super) fn whole(number: u32) -> Self {
        Self(u64::from(number) << 32)
    }

    /// `numerator / denominator`, rounded down; zero over zero is zero, as the chain's `safe_div` has it.
    pub(super) fn ratio(numerator: u64, denominator: u64) -> Self {
        if denominator == 0 {
            return Self::ZERO;
        }
        Self(u64::try_from((u128::from(numerator) << 32) / u128::from(denominator)).unwrap_or(u64::MAX))
    }

    /// The product, rounded down.
    pub(super) fn times(self, other: Self) -> Self {
        Self(u64::try_from((u128::from(self.0) * u128::from(other.0)) >> 32).unwrap_or(u64::MAX))
    }

    /// The quotient, rounded down; anything over zero is zero.
    pub(super) fn over(self, other: Self) -> Self {
        Self::ratio(self.0, other.0)
    }

    /// The difference, or zero.
    pub(super) fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// `floor(self · 65535)`: how a share of 1 is stored.
    pub(super) fn to_u16(self) -> u16 {
        u16::try_from((u128::from(self.0) * 65_535) >> 32).unwrap_or(u16::MAX)
    }

    /// `round(self)`, halves up.
    pub(super) fn round_u16(self) -> u16 {
        u16::try_from(self.0.saturating_add(1 << 31) >> 32).unwrap_or(u16::MAX)
    }

    /// `floor(self · amount)`.
    pub(super) fn of(self, amount: u64) -> u64 {
        u64::try_from((u128::from(self.0) * u128::from(amount)) >> 32).unwrap_or(u64::MAX)
    }
}

impl Add for Q32 {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Q32 {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Q32 {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

/// Divides every value by the sum of all; all zero stays all zero.
pub(super) fn normalise(values: &mut [Q32]) {
    let sum = values.iter().copied().sum::<Q32>();
    for value in values {
        *value = value.over(sum);
    }
}

/// `base^exponent` by squaring, rounding down at every step as the chain does.
pub(super) fn power(base: u64, exponent: u16) -> u64 {
    let (mut result, mut factor, mut left) = (Q32::ONE, Q32(base), exponent);
    while left > 0 {
        if left & 1 == 1 {
            result = result.times(factor);
        }
        factor = factor.times(factor);
        left >>= 1;
    }
    result.0
}

/// The factor whose `half_life`-th power is one half, found by bisection so that no root of a float enters the state.
pub(super) fn half_life_factor(half_life: u16) -> Q32 {
    if half_life == 0 {
        return Q32::ONE;
    }
    let (mut low, mut high) = (0, Q32::ONE.0);
    while low + 1 < high {
        let middle = low + ((high - low) >> 1);
        if power(middle, half_life) > Q32::ONE.0 / 2 {
            high = middle;
        } else {
            low = middle;
        }
    }
    Q32(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_rounds_down_and_nothing_over_nothing_is_nothing() {
        assert_eq!(Q32::ratio(1, 3).times(Q32::whole(3)).to_u16(), 65_534);
        assert_eq!(Q32::ratio(5, 0), Q32::ZERO);
        assert_eq!(Q32::ONE.to_u16(), 65_535);
        assert_eq!(Q32::ratio(5, 2).round_u16(), 3);
        assert_eq!(Q32::ratio(1, 2).of(9), 4);
        assert_eq!(Q32::ratio(u64::MAX, 1).times(Q32::whole(u32::MAX)), Q32(u64::MAX));
    }

    #[test]
    fn the_factor_halves_in_its_half_life() {
        for half_life in [1, 2, 10, 360, 7200] {
            let halved = power(half_life_factor(half_life).0, half_life);
            let half = Q32::ONE.0 / 2;
            // Rounding down loses at most a few units a step.
            assert!(halved <= half && half - halved < 60_000 * u64::from(half_life), "{half_life}: {halved}");
        }
        assert_eq!(half_life_factor(0), Q32::ONE);
    }
}
