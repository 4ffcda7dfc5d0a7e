//! Vector instructions, chosen when the program runs: one build serves every CPU, and every choice gives the same bits.
//!
//! Almost everything is plain loops that the compiler vectorises for the instruction set that [`Simd::dispatch`] compiles them for;
//! [`Lanes`] holds the few steps that it does not find by itself. The bits agree because additions and multiplications of
//! floats are never fused or reordered, and all else is integers. The safe intrinsics are `pulp`'s: nothing here is `unsafe`.

use super::layout::{BLOCK_EDGE, CHUNK_LEN};

#[cfg(target_arch = "x86_64")]
use pulp::x86::{V3, V4};

/// Instruction sets, the plainest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Simd {
    /// What every CPU of the target has: SSE2, NEON.
    Portable,
    /// AVX2 with its companions (x86-64-v3).
    Avx2,
    /// AVX-512 F, BW, CD, DQ, VL (x86-64-v4).
    Avx512,
}

/// Work that is compiled once for each instruction set; `run` must be `#[inline(always)]`, and so must what it calls.
pub(crate) trait Kernel {
    /// What it makes.
    type Output;
    /// Does it.
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// The steps that differ between instruction sets.
pub(crate) trait Lanes: Copy {
    /// Bit i: whether |row\[i\]|, compared as integers, is at least `bound`, which is below 2^31.
    fn at_least(self, row: &[f32; BLOCK_EDGE], bound: u32) -> u64;
    /// The table's entries at these indices, of which the low five bits count.
    fn look_up(self, table: &[f32; 32], indices: &[i32; 16]) -> [f32; 16];
    /// Asks for a row's cache lines, which will be read soon.
    fn prefetch(self, row: &[f32; BLOCK_EDGE]);
}

pub(crate) const MAGNITUDE: u32 = 0x7fff_ffff;

impl Simd {
    /// What this CPU has, the plainest first.
    pub fn available() -> impl Iterator<Item = Self> {
        [Self::Portable, Self::Avx2, Self::Avx512].into_iter().filter(|simd| simd.is_available())
    }

    /// The widest that this CPU has.
    #[must_use]
    pub fn best() -> Self {
        Self::available().last().unwrap_or(Self::Portable)
    }

    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Avx2 => V3::is_available(),
            Self::Avx512 => V4::is_available(),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_available(self) -> bool {
        self == Self::Portable
    }

    /// Runs the form of `kernel` that is compiled for this instruction set.
    ///
    /// # Panics
    /// If the CPU does not have it.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Portable => kernel.run(Portable),
            Self::Avx2 => {
                let lanes = V3::try_new().expect("this CPU has AVX2");
                lanes.vectorize(
                    #[inline(always)]
                    || kernel.run(lanes),
                )
            }
            Self::Avx512 => {
                let lanes = V4::try_new().expect("this CPU has AVX-512");
                lanes.vectorize(
                    #[inline(always)]
                    || kernel.run(lanes),
                )
            }
        }
    }

    /// Runs the form of `kernel` that is compiled for this instruction set.
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(Portable)
    }
}

impl Simd {
    /// Runs `work`, which is plain loops, compiled for this instruction set; it must be `#[inline(always)]`, and so must what it
    /// calls.
    #[inline(always)]
    pub(crate) fn plain<T>(self, work: impl FnOnce() -> T) -> T {
        self.dispatch(Plain(work))
    }
}

/// Work that needs no lanes.
struct Plain<F>(F);

impl<T, F: FnOnce() -> T> Kernel for Plain<F> {
    type Output = T;

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> T {
        (self.0)()
    }
}

/// No more than the target's base.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

impl Lanes for Portable {
    #[inline(always)]
    fn at_least(self, row: &[f32; BLOCK_EDGE], bound: u32) -> u64 {
        let bound = bound as i32;
        let mut bits = 0;
        for (i, part) in row.as_chunks::<8>().0.iter().enumerate() {
            // Eight bytes of 0 or 1 become eight bits: byte j is carried to bit 56 + j, and no two meet.
            let bytes = part.map(|a| u8::from((a.to_bits() & MAGNITUDE) as i32 >= bound));
            bits |= (u64::from_le_bytes(bytes).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * i);
        }
        bits
    }

    #[inline(always)]
    fn look_up(self, table: &[f32; 32], indices: &[i32; 16]) -> [f32; 16] {
        let mut entries = [0.0; 16];
        for (entry, i) in entries.iter_mut().zip(indices) {
            *entry = table[(*i & 31) as usize];
        }
        entries
    }

    #[inline(always)]
    fn prefetch(self, _: &[f32; BLOCK_EDGE]) {}
}

#[cfg(target_arch = "x86_64")]
impl Lanes for V3 {
    #[inline(always)]
    fn at_least(self, row: &[f32; BLOCK_EDGE], bound: u32) -> u64 {
        let (below, magnitude) =
            (self.avx._mm256_set1_epi32(bound as i32 - 1), self.avx._mm256_set1_epi32(MAGNITUDE as i32));
        let mut bits = 0;
        for (i, part) in row.as_chunks::<8>().0.iter().enumerate() {
            let a = self.avx2._mm256_and_si256(pulp::cast(*part), magnitude);
            let is_above = self.avx2._mm256_cmpgt_epi32(a, below);
            let eight = self.avx._mm256_movemask_ps(pulp::cast(is_above)) as u32;
            bits |= u64::from(eight) << (8 * i);
        }
        bits
    }

    #[inline(always)]
    fn look_up(self, table: &[f32; 32], indices: &[i32; 16]) -> [f32; 16] {
        let [a, b, c, d]: [[f32; 8]; 4] = pulp::cast(*table);
        pulp::cast(pulp::cast::<_, [[i32; 8]; 2]>(*indices).map(
            #[inline(always)]
            |i| {
                let i = pulp::cast(i);
                let of = |part: [f32; 8]| self.avx2._mm256_permutevar8x32_ps(pulp::cast(part), i);
                // A blend looks at the sign bit: bits 3 and 4 of the index are carried there.
                let (bit_3, bit_4) = (self.avx2._mm256_slli_epi32::<28>(i), self.avx2._mm256_slli_epi32::<27>(i));
                let blend = |x, y, bit| self.avx._mm256_blendv_ps(x, y, pulp::cast(bit));
                let low = blend(of(a), of(b), bit_3);
                let high = blend(of(c), of(d), bit_3);
                pulp::cast::<_, [f32; 8]>(blend(low, high, bit_4))
            },
        ))
    }

    #[inline(always)]
    fn prefetch(self, row: &[f32; BLOCK_EDGE]) {
        prefetch(self, row);
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes for V4 {
    #[inline(always)]
    fn at_least(self, row: &[f32; BLOCK_EDGE], bound: u32) -> u64 {
        let bound = self.avx512f._mm512_set1_epi32(bound as i32);
        let magnitude = self.avx512f._mm512_set1_epi32(MAGNITUDE as i32);
        let mut bits = 0;
        for (i, part) in row.as_chunks::<16>().0.iter().enumerate() {
            let a = self.avx512f._mm512_and_si512(pulp::cast(*part), magnitude);
            bits |= u64::from(self.avx512f._mm512_cmpge_epu32_mask(a, bound)) << (16 * i);
        }
        bits
    }

    #[inline(always)]
    fn look_up(self, table: &[f32; 32], indices: &[i32; 16]) -> [f32; 16] {
        let [a, b]: [[f32; 16]; 2] = pulp::cast(*table);
        pulp::cast(self.avx512f._mm512_permutex2var_ps(pulp::cast(a), pulp::cast(*indices), pulp::cast(b)))
    }

    #[inline(always)]
    fn prefetch(self, row: &[f32; BLOCK_EDGE]) {
        prefetch(*self, row);
    }
}

/// Into the second level: the first one is full of the chunk at hand.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch(lanes: V3, row: &[f32; BLOCK_EDGE]) {
    for line in row.as_chunks::<16>().0 {
        lanes.sse._mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(line.as_ptr().cast());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Compare<'a>(&'a [f32; CHUNK_LEN], u32);

    impl Kernel for Compare<'_> {
        type Output = Vec<u64>;

        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) -> Vec<u64> {
            self.0.as_chunks().0.iter().map(|row| lanes.at_least(row, self.1)).collect()
        }
    }

    #[test]
    fn every_instruction_set_compares_alike() {
        let chunk = std::array::from_fn(|i| f32::from_bits((i as u32).wrapping_mul(2_654_435_761)));
        for bound in [0, 1, 0x3f80_0000, 0x7f7f_ffff, MAGNITUDE] {
            let wanted: Vec<u64> = chunk
                .chunks(BLOCK_EDGE)
                .map(|row| {
                    let bit = |(i, a): (usize, &f32)| u64::from(a.to_bits() & MAGNITUDE >= bound) << i;
                    row.iter().enumerate().map(bit).sum()
                })
                .collect();
            for simd in Simd::available() {
                assert_eq!(simd.dispatch(Compare(&chunk, bound)), wanted, "{simd:?}, bound {bound:#x}");
            }
        }
    }
}
