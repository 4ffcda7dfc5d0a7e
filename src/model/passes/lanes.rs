//! Arithmetic on rows in lanes of a fixed width, so that the compiler can use whatever vectors the processor has and
//! every processor still adds in the same order.
//!
//! The exponential is a range reduction to [−ln 2 / 2, ln 2 / 2] and a polynomial (Cephes' `expf` coefficients), within two
//! units in the last place; the library's `expf` is a call per number and cannot be vectorised.

/// Numbers that are folded side by side.
const LANES: usize = 16;

/// Folds `term(i)` for i below `len` with `join`, lane by lane, then across the lanes.
#[inline(always)]
fn fold(len: usize, start: f32, term: impl Fn(usize) -> f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let whole = len - len % LANES;
    let mut base = 0;
    while base < whole {
        for (lane, value) in lanes.iter_mut().enumerate() {
            *value = join(*value, term(base + lane));
        }
        base += LANES;
    }
    for (lane, value) in lanes.iter_mut().enumerate().take(len - whole) {
        *value = join(*value, term(whole + lane));
    }
    lanes.into_iter().fold(start, join)
}

/// Σ x.
#[inline(always)]
pub(super) fn sum(x: &[f32]) -> f32 {
    fold(x.len(), 0.0, |i| x[i], |a, b| a + b)
}

/// Σ x·y.
#[inline(always)]
pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let y = &y[..x.len()];
    fold(x.len(), 0.0, |i| x[i] * y[i], |a, b| a + b)
}

/// The largest; a NaN is passed over here and shows in the exponentials that follow.
#[inline(always)]
pub(super) fn max(x: &[f32]) -> f32 {
    fold(x.len(), f32::NEG_INFINITY, |i| x[i], |a, b| if b > a { b } else { a })
}

/// e^x for x up to 88; below −87 it is e^−87, which no sum of a softmax can tell from zero. NaN stays NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2²³ rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let rest = x - whole * 0.693_359_4 + whole * 2.121_944_4e-4;
    let tail = ((((1.987_569_1e-4 * rest + 1.398_199_9e-3) * rest + 8.333_452e-3) * rest + 4.166_579_6e-2) * rest
        + 1.666_666_5e-1)
        * rest
        + 0.5;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    (tail * rest * rest + rest + 1.0) * power
}

/// 1 / (1 + e^−x).
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_within_two_units_in_the_last_place() {
        for step in 0..2_000_000 {
            let x = -86.9 + step as f32 * (174.8 / 2_000_000.0);
            let exact = f64::from(x).exp();
            let relative = (f64::from(exp(x)) / exact - 1.0).abs();
            assert!(relative < 2.4e-7, "exp({x}) is off by {relative}");
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn sums_and_maxima_take_every_number_once() {
        for len in [0, 1, 15, 16, 17, 100] {
            let x: Vec<f32> = (0..len).map(|i| i as f32 + 1.0).collect();
            assert_eq!(sum(&x), (len * (len + 1) / 2) as f32);
            assert_eq!(dot(&x, &x), (len * (len + 1) * (2 * len + 1) / 6) as f32);
            assert_eq!(max(&x), if len == 0 { f32::NEG_INFINITY } else { len as f32 });
        }
    }
}
