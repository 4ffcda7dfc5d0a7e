//! What a kept value's code means: the numbers that a contribution carries once per tensor.
//!
//! | quantiser | code of a kept value | decodes to | per tensor |
//! |---|---|---|---|
//! | one-bit | sign | ±scale | nothing |
//! | two-bit | sign + 2 · magnitude | ±scale · low, ±scale · high | low, high: u16, 4096 is 1.0 |
//! | sigma-bins | bin | lookup\[bin\] + shift | shift, lookup\[4\]: f32 |
//!
//! Scale is the chunk's (`scale`). The reference run's rule (sigma-bins: one grid of four bins per tensor) is kept for parity
//! and comparison; measured on real pseudo-gradients it carries little more than a sign and ages badly, so the default is
//! a sign and one magnitude bit around a scale that every chunk has for itself.

use crate::run_spec::Quantiser;

use super::scale::SCALES;

/// The fixed-point form of 1.0 in a two-bit level.
pub const LEVEL_ONE: u16 = 4096;

/// The highest two-bit level: 8.0. With it no decoded value reaches 2^7, which bounds the outer step's arithmetic.
pub const LEVEL_MAX: u16 = 8 * LEVEL_ONE;

/// The largest magnitude of sigma-bins' shift and lookups; their sum is at most 2^7.
pub const SIGMA_VALUE_MAX: f32 = 64.0;

/// The levels of a tensor in which nothing was kept that could choose them: what pseudo-gradients typically want.
const LEVELS_UNSEEN: Levels = Levels::TwoBit { low: 3932, high: 4506 };

/// Steps of Lloyd's iteration; the sample is one-dimensional and two-valued, it settles in a few.
const LLOYD_STEPS: usize = 8;

/// The decoding numbers of one tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Levels {
    /// Level 1 is implied.
    OneBit,
    /// Multipliers of the chunk's scale, `0 < low < high ≤ LEVEL_MAX`. Were they equal, one value would have two codes.
    TwoBit {
        /// Of magnitude bit 0.
        low: u16,
        /// Of magnitude bit 1.
        high: u16,
    },
    /// The reference run's bins.
    SigmaBins {
        /// The mean of the tensor's kept values.
        shift: f32,
        /// The mean of each bin's members, less `shift`; 0 for an empty bin.
        lookup: [f32; 4],
    },
}

/// Why a tensor's levels are refused.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum MalformedLevels {
    /// Two-bit levels out of order or out of range.
    #[error("levels {low} and {high} of tensor {tensor_idx}: 0 < low < high ≤ {LEVEL_MAX} must hold")]
    Multipliers {
        /// The tensor.
        tensor_idx: usize,
        /// The lower level.
        low: u16,
        /// The higher level.
        high: u16,
    },
    /// A shift or lookup that is not finite, too large, or minus zero (which would be a second way to write zero).
    #[error(
        "number {number_idx} of tensor {tensor_idx}'s bins is {value}: it must be finite, within ±{SIGMA_VALUE_MAX}, not -0"
    )]
    Bins {
        /// The tensor.
        tensor_idx: usize,
        /// 0 for the shift, then the lookups.
        number_idx: usize,
        /// What it is.
        value: f32,
    },
}

impl Levels {
    /// Bytes of one tensor's levels.
    #[must_use]
    pub const fn len(quantiser: Quantiser) -> usize {
        match quantiser {
            Quantiser::OneBit => 0,
            Quantiser::TwoBit => 4,
            Quantiser::SigmaBins => 20,
        }
    }

    /// What each of the four codes decodes to in a chunk of this scale code.
    #[must_use]
    #[inline(always)]
    pub fn values(self, scale: u8) -> [f32; 4] {
        let scale = SCALES[usize::from(scale)];
        match self {
            Self::OneBit => [scale, -scale, 0.0, 0.0],
            Self::TwoBit { low, high } => {
                let (low, high) = (scale * multiplier(low), scale * multiplier(high));
                [low, -low, high, -high]
            }
            Self::SigmaBins { shift, lookup } => lookup.map(|centre| centre + shift),
        }
    }

    /// Writes the levels; `out` is of their length.
    pub(super) fn write(self, out: &mut [u8]) {
        match self {
            Self::OneBit => {}
            Self::TwoBit { low, high } => {
                out[..2].copy_from_slice(&low.to_le_bytes());
                out[2..].copy_from_slice(&high.to_le_bytes());
            }
            Self::SigmaBins { shift, lookup } => {
                for (bytes, number) in out.chunks_exact_mut(4).zip([shift, lookup[0], lookup[1], lookup[2], lookup[3]])
                {
                    bytes.copy_from_slice(&number.to_le_bytes());
                }
            }
        }
    }

    /// Reads levels of the right length without judging them.
    pub(super) fn read(quantiser: Quantiser, bytes: &[u8]) -> Self {
        match quantiser {
            Quantiser::OneBit => Self::OneBit,
            Quantiser::TwoBit => Self::TwoBit {
                low: u16::from_le_bytes([bytes[0], bytes[1]]),
                high: u16::from_le_bytes([bytes[2], bytes[3]]),
            },
            Quantiser::SigmaBins => {
                let number = |i: usize| f32::from_le_bytes([0, 1, 2, 3].map(|byte| bytes[4 * i + byte]));
                Self::SigmaBins { shift: number(0), lookup: [number(1), number(2), number(3), number(4)] }
            }
        }
    }

    /// Whether a peer may have sent these levels for tensor `tensor_idx`.
    pub(super) fn check(self, tensor_idx: usize) -> Result<(), MalformedLevels> {
        match self {
            Self::OneBit => Ok(()),
            Self::TwoBit { low, high } if 0 < low && low < high && high <= LEVEL_MAX => Ok(()),
            Self::TwoBit { low, high } => Err(MalformedLevels::Multipliers { tensor_idx, low, high }),
            Self::SigmaBins { shift, lookup } => {
                let numbers = [shift, lookup[0], lookup[1], lookup[2], lookup[3]];
                let minus_zero = (-0.0_f32).to_bits();
                let refused = |n: &f32| !n.is_finite() || n.abs() > SIGMA_VALUE_MAX || n.to_bits() == minus_zero;
                match numbers.iter().position(refused) {
                    None => Ok(()),
                    Some(number_idx) => {
                        Err(MalformedLevels::Bins { tensor_idx, number_idx, value: numbers[number_idx] })
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn multiplier(level: u16) -> f32 {
    // Exact: 16 bits over a power of two.
    f32::from(level) / f32::from(LEVEL_ONE)
}

/// The two levels that fit `ratios` = |a| / chunk scale best, by Lloyd's iteration from their mean.
pub(super) fn fit_two_bit(ratios: &[f32]) -> Levels {
    if ratios.is_empty() {
        return LEVELS_UNSEEN;
    }
    let total: f64 = ratios.iter().map(|ratio| f64::from(*ratio)).sum();
    let mean = total / ratios.len() as f64;
    let (mut low, mut high, mut split) = (mean, mean, mean);
    for _ in 0..LLOYD_STEPS {
        let (mut sum, mut n) = ([0.0_f64; 2], [0_u32; 2]);
        for ratio in ratios {
            let side = usize::from(f64::from(*ratio) > split);
            sum[side] += f64::from(*ratio);
            n[side] += 1;
        }
        if n[0] == 0 || n[1] == 0 {
            break;
        }
        (low, high) = (sum[0] / f64::from(n[0]), sum[1] / f64::from(n[1]));
        split = (low + high) / 2.0;
    }
    // The cast saturates, so a ratio beyond the range ends at its bound.
    let fixed = |level: f64| (level * f64::from(LEVEL_ONE)).round_ties_even() as u16;
    let low = fixed(low).clamp(1, LEVEL_MAX - 1);
    Levels::TwoBit { low, high: fixed(high).clamp(low + 1, LEVEL_MAX) }
}

/// The reference run's rule over all kept values of a tensor: 4 bins over 6 σ around their mean, each decoding to the mean of its
/// members. Returns the levels and writes each value's bin.
///
/// shift = mean(v); c = v − shift; σ = ‖c‖ / √(N − 1); bin = clamp(round(c / (6σ/4) + 2), 0, 3), halves to even.
/// Sums are f64 in the values' order; the reference sums in f32 in whatever order its device likes.
pub(super) fn fit_sigma_bins(values: impl Iterator<Item = f32> + Clone, mut bin: impl FnMut(usize, u8)) -> Levels {
    let (mut sum, mut n) = (0.0_f64, 0_usize);
    for value in values.clone() {
        sum += f64::from(value);
        n += 1;
    }
    let shift = within_bounds(sum / n as f64);
    let centred = values.map(|value| f64::from(value) - f64::from(shift));
    let squares: f64 = centred.clone().map(|c| c * c).sum();
    let sigma = squares.sqrt() / (n as f64 - 1.0).sqrt();
    let width = 6.0 * sigma / 4.0;
    let width = if width.is_finite() && width != 0.0 { width } else { 1.0 };
    let (mut sums, mut members) = ([0.0_f64; 4], [0_u32; 4]);
    for (i, c) in centred.enumerate() {
        let code = (c / width + 2.0).round_ties_even().clamp(0.0, 3.0) as u8;
        sums[usize::from(code)] += c;
        members[usize::from(code)] += 1;
        bin(i, code);
    }
    let mean_of = |b: usize| if members[b] == 0 { 0.0 } else { within_bounds(sums[b] / f64::from(members[b])) };
    Levels::SigmaBins { shift, lookup: [0, 1, 2, 3].map(mean_of) }
}

/// Cuts to what a peer accepts; adding zero turns -0 into 0.
fn within_bounds(number: f64) -> f32 {
    (number as f32).clamp(-SIGMA_VALUE_MAX, SIGMA_VALUE_MAX) + 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lloyd_finds_the_two_heaps() {
        let ratios = [0.9, 0.95, 1.0, 1.9, 2.0, 2.1];
        let Levels::TwoBit { low, high } = fit_two_bit(&ratios) else { panic!("two levels") };
        assert!((multiplier(low) - 0.95).abs() < 2e-4 && (multiplier(high) - 2.0).abs() < 2e-4, "{low} {high}");
    }

    #[test]
    fn levels_are_valid_whatever_the_sample() {
        for ratios in [&[][..], &[1.0; 5], &[0.0; 3], &[1e9], &[8.0; 2], &[f32::MIN_POSITIVE], &[0.0, 1e30]] {
            assert_eq!(fit_two_bit(ratios).check(0), Ok(()), "{ratios:?}");
        }
        for values in [&[0.0_f32][..], &[-0.0], &[1e38, -1e38], &[3e38; 4], &[1e-45; 3], &[-1e-45, 0.0]] {
            assert_eq!(fit_sigma_bins(values.iter().copied(), |_, _| ()).check(0), Ok(()), "{values:?}");
        }
    }

    #[test]
    fn every_level_survives_its_bytes() {
        let all = [
            (Quantiser::OneBit, Levels::OneBit),
            (Quantiser::TwoBit, Levels::TwoBit { low: 7, high: 0x1234 }),
            (Quantiser::SigmaBins, Levels::SigmaBins { shift: 0.5, lookup: [-1.0, -0.25, 0.0, 3.5] }),
        ];
        for (quantiser, levels) in all {
            let mut bytes = vec![0; Levels::len(quantiser)];
            levels.write(&mut bytes);
            assert_eq!(Levels::read(quantiser, &bytes), levels);
        }
    }
}
