//! The eight-bit logarithmic scale of a chunk, decoded by a constant table.
//!
//! A chunk's kept magnitudes are nearly equal among themselves and differ by orders of magnitude between chunks, so one
//! byte a chunk on a logarithmic grid says most of what the values' bits would say. Eight steps an octave put the nearest
//! entry within 4.5 %; code 1 is 2^-28, code 255 is 2^3.75, and code 0 is a chunk of zeros.
//!
//! The table is made of literal mantissas times exact powers of two, because `exp2` may differ between platforms and a
//! scale enters θ.

/// What each scale code decodes to; ascending.
pub const SCALES: [f32; 256] = table();

/// 2^(i/8) for i in 0..8, rounded to f32: the mantissa's 23 bits.
const MANTISSAS: [u32; 8] = [0x00_0000, 0x0b_95c2, 0x18_37f0, 0x25_fed7, 0x35_04f3, 0x45_672a, 0x57_44fd, 0x6a_c0c7];

/// The biased exponent of code 1: 2^-28.
const EXPONENT_OF_ONE: u32 = 127 - 28;

const fn table() -> [f32; 256] {
    let mut scales = [0.0; 256];
    let mut code = 1;
    while code < 256 {
        let step = code - 1;
        scales[code] = f32::from_bits(((EXPONENT_OF_ONE + (step / 8) as u32) << 23) | MANTISSAS[step % 8]);
        code += 1;
    }
    scales
}

/// The code whose scale is nearest to `mean` (not negative, not NaN); half-way goes up, beyond the table to its end.
pub(super) fn nearest(mean: f32) -> u8 {
    let above = SCALES.partition_point(|scale| *scale <= mean);
    let code = match SCALES.get(above) {
        // In f64 the sums are exact.
        Some(upper) if 2.0 * f64::from(mean) >= f64::from(SCALES[above - 1]) + f64::from(*upper) => above,
        _ => above - 1,
    };
    u8::try_from(code).expect("the table has 256 entries")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_two_to_the_eighths() {
        assert_eq!((SCALES[0], SCALES[1], SCALES[225], SCALES[217]), (0.0, 2_f32.powi(-28), 1.0, 0.5));
        for code in 1..256_usize {
            let exact = ((code as f64 - 225.0) / 8.0).exp2();
            assert!((f64::from(SCALES[code]) / exact - 1.0).abs() < 6e-8, "code {code}");
            assert!(SCALES[code] > SCALES[code - 1], "code {code}");
        }
    }

    #[test]
    fn every_entry_and_every_midpoint_goes_where_it_belongs() {
        for code in 0..=255_u8 {
            assert_eq!(nearest(SCALES[usize::from(code)]), code);
        }
        for code in 0..255_u8 {
            let (low, high) = (SCALES[usize::from(code)], SCALES[usize::from(code) + 1]);
            let middle = low + (high - low) / 2.0;
            assert_eq!(nearest(middle.next_down()), code);
            assert_eq!(nearest(middle.next_up()), code + 1);
        }
        assert_eq!(
            (nearest(0.0), nearest(f32::MIN_POSITIVE), nearest(f32::MAX), nearest(f32::INFINITY)),
            (0, 0, 255, 255)
        );
        assert_eq!((nearest(2_f32.powi(-29)), nearest(2_f32.powi(-29).next_down())), (1, 0));
    }
}
