//! Vector instructions, chosen when the program runs: one build serves every CPU, and every choice gives the same bits.
//!
//! Almost everything is plain loops that the compiler vectorises for the instruction set that [`Simd::dispatch`] compiles them for;
//! [`Lanes`] holds the few steps that it does not find by itself. The bits agree because additions and multiplications of
//! floats are never fused or reordered, and all else is integers. The safe intrinsics are `pulp`'s: nothing here is `unsafe`.

use super::layout::BLOCK_EDGE;

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
    /// e ← fl(β·e + Δ), and the largest magnitude bits of each lane.
    fn accumulate(self, decay: f32, error: &mut [[f32; WIDTH]], delta: &[[f32; WIDTH]]) -> [u32; WIDTH];
    /// How many of the values, all below 2^31, are at least `bound`.
    fn count_at_least(self, values: &[[u32; WIDTH]], bound: u32) -> usize;
    /// Bit i: whether |row\[i\]|, compared as integers, is at least `bound`, which is below 2^31.
    fn at_least(self, row: &[f32; BLOCK_EDGE], bound: u32) -> u64;
    /// Bit i: the sign of row\[i\].
    fn signs(self, row: &[f32; BLOCK_EDGE]) -> u64;
    /// The table's entries at these indices, of which the low five bits count.
    fn look_up(self, table: &[f32; 32], indices: &[i32; 16]) -> [f32; 16];
    /// The table's entry for each two-bit number whose bits stand in these two words, low and high.
    fn choose(self, planes: [u64; 2], table: [i32; 4]) -> [i32; 64];
    /// Asks for a row's cache lines, which will be read soon.
    fn prefetch(self, row: &[f32; BLOCK_EDGE]);
    /// Asks for a byte's cache line.
    fn prefetch_byte(self, byte: &u8);
}

/// All bits of a float but its sign.
pub(crate) const MAGNITUDE: u32 = 0x7fff_ffff;

/// Lanes of the widest vectors.
pub(crate) const WIDTH: usize = 16;

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
    fn accumulate(self, decay: f32, error: &mut [[f32; WIDTH]], delta: &[[f32; WIDTH]]) -> [u32; WIDTH] {
        // Two loops, since the compiler vectorises each but not both in one; the values lie in the first cache in between.
        for (e, d) in error.as_flattened_mut().iter_mut().zip(delta.as_flattened()) {
            *e = decay * *e + d;
        }
        let mut maxima = [0_i32; WIDTH];
        for a in error {
            for (maximum, a) in maxima.iter_mut().zip(a) {
                // Signed, for vectors without unsigned comparison.
                let magnitude = (a.to_bits() & MAGNITUDE) as i32;
                *maximum = if magnitude > *maximum { magnitude } else { *maximum };
            }
        }
        maxima.map(|maximum| maximum as u32)
    }

    #[inline(always)]
    fn count_at_least(self, values: &[[u32; WIDTH]], bound: u32) -> usize {
        let mut counts = [0; WIDTH];
        for values in values {
            for (count, value) in counts.iter_mut().zip(values) {
                *count += i32::from(*value as i32 >= bound as i32);
            }
        }
        counts.into_iter().sum::<i32>() as usize
    }

    #[inline(always)]
    fn at_least(self, row: &[f32; BLOCK_EDGE], bound: u32) -> u64 {
        let bound = bound as i32;
        bitmap(row, |a| (a.to_bits() & MAGNITUDE) as i32 >= bound)
    }

    #[inline(always)]
    fn signs(self, row: &[f32; BLOCK_EDGE]) -> u64 {
        bitmap(row, f32::is_sign_negative)
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
    fn choose(self, planes: [u64; 2], table: [i32; 4]) -> [i32; 64] {
        let mut chosen = [0; 64];
        for (part, chosen) in chosen.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let [low, high] = planes.map(|plane| (plane >> (8 * part)) as i32);
            for (i, entry) in chosen.iter_mut().enumerate() {
                let [low, high] = [low, high].map(|bits| -i32::from(bits & 1 << i != 0));
                let near = table[0] ^ (table[0] ^ table[1]) & low;
                let far = table[2] ^ (table[2] ^ table[3]) & low;
                *entry = near ^ (near ^ far) & high;
            }
        }
        chosen
    }

    #[inline(always)]
    fn prefetch(self, _: &[f32; BLOCK_EDGE]) {}

    #[inline(always)]
    fn prefetch_byte(self, _: &u8) {}
}

#[inline(always)]
fn bitmap(row: &[f32; BLOCK_EDGE], is_set: impl Fn(f32) -> bool) -> u64 {
    // A comparison gives a vector all ones or all zeros, from which a table takes each lane's bit.
    const BITS: [u32; 32] = {
        let mut bits = [0; 32];
        let mut i = 0;
        while i < 32 {
            bits[i] = 1 << i;
            i += 1;
        }
        bits
    };
    let half = |half: &[f32]| {
        let mut bits = 0;
        for (a, bit) in half.iter().zip(&BITS) {
            bits |= if is_set(*a) { *bit } else { 0 };
        }
        u64::from(bits)
    };
    half(&row[..32]) | half(&row[32..]) << 32
}

#[cfg(target_arch = "x86_64")]
impl Lanes for V3 {
    #[inline(always)]
    fn accumulate(self, decay: f32, error: &mut [[f32; WIDTH]], delta: &[[f32; WIDTH]]) -> [u32; WIDTH] {
        let (decay, magnitude) = (self.avx._mm256_set1_ps(decay), self.avx._mm256_set1_epi32(MAGNITUDE as i32));
        let mut maxima = [self.avx._mm256_setzero_si256(); 2];
        for (error, delta) in error.iter_mut().zip(delta) {
            let halves = error.as_chunks_mut::<8>().0.iter_mut().zip(delta.as_chunks::<8>().0);
            for ((error, delta), maximum) in halves.zip(&mut maxima) {
                let a = self.avx._mm256_add_ps(self.avx._mm256_mul_ps(decay, pulp::cast(*error)), pulp::cast(*delta));
                *error = pulp::cast(a);
                *maximum = self.avx2._mm256_max_epi32(*maximum, self.avx2._mm256_and_si256(pulp::cast(a), magnitude));
            }
        }
        pulp::cast(maxima)
    }

    #[inline(always)]
    fn count_at_least(self, values: &[[u32; WIDTH]], bound: u32) -> usize {
        let below = self.avx._mm256_set1_epi32(bound as i32 - 1);
        let mut n = 0;
        for half in values.as_flattened().as_chunks::<8>().0 {
            let is_above = self.avx2._mm256_cmpgt_epi32(pulp::cast(*half), below);
            n += self.avx._mm256_movemask_ps(pulp::cast(is_above)).count_ones();
        }
        n as usize
    }

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
    fn signs(self, row: &[f32; BLOCK_EDGE]) -> u64 {
        let mut bits = 0;
        for (i, part) in row.as_chunks::<8>().0.iter().enumerate() {
            bits |= u64::from(self.avx._mm256_movemask_ps(pulp::cast(*part)) as u32) << (8 * i);
        }
        bits
    }

    #[inline(always)]
    fn look_up(self, table: &[f32; 32], indices: &[i32; 16]) -> [f32; 16] {
        let mut entries = [0.0; 16];
        let indices = indices.as_chunks::<8>().0;
        for (entries, indices) in entries.as_chunks_mut::<8>().0.iter_mut().zip(indices) {
            *entries = look_up_eight(self, table, *indices);
        }
        entries
    }

    #[inline(always)]
    fn choose(self, planes: [u64; 2], table: [i32; 4]) -> [i32; 64] {
        let table = table.map(|entry| [entry; 8]);
        let bits = pulp::cast([1, 2, 4, 8, 16, 32, 64, 128]);
        let mut chosen = [0; 64];
        for (part, chosen) in chosen.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let low = self.avx2._mm256_and_si256(self.avx._mm256_set1_epi32((planes[0] >> (8 * part)) as i32), bits);
            let high = self.avx2._mm256_and_si256(self.avx._mm256_set1_epi32((planes[1] >> (8 * part)) as i32), bits);
            let (low, high) = (self.avx2._mm256_cmpeq_epi32(low, bits), self.avx2._mm256_cmpeq_epi32(high, bits));
            let near = self.avx2._mm256_blendv_epi8(pulp::cast(table[0]), pulp::cast(table[1]), low);
            let far = self.avx2._mm256_blendv_epi8(pulp::cast(table[2]), pulp::cast(table[3]), low);
            *chosen = pulp::cast(self.avx2._mm256_blendv_epi8(near, far, high));
        }
        chosen
    }

    #[inline(always)]
    fn prefetch(self, row: &[f32; BLOCK_EDGE]) {
        prefetch(self, row);
    }

    #[inline(always)]
    fn prefetch_byte(self, byte: &u8) {
        self.sse._mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(std::ptr::from_ref(byte).cast());
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes for V4 {
    #[inline(always)]
    fn accumulate(self, decay: f32, error: &mut [[f32; WIDTH]], delta: &[[f32; WIDTH]]) -> [u32; WIDTH] {
        let avx512f = self.avx512f;
        let (decay, magnitude) = (avx512f._mm512_set1_ps(decay), avx512f._mm512_set1_epi32(MAGNITUDE as i32));
        let mut maxima = avx512f._mm512_setzero_si512();
        for (error, delta) in error.iter_mut().zip(delta) {
            let a = avx512f._mm512_add_ps(avx512f._mm512_mul_ps(decay, pulp::cast(*error)), pulp::cast(*delta));
            *error = pulp::cast(a);
            maxima = avx512f._mm512_max_epi32(maxima, avx512f._mm512_and_si512(pulp::cast(a), magnitude));
        }
        pulp::cast(maxima)
    }

    #[inline(always)]
    fn count_at_least(self, values: &[[u32; WIDTH]], bound: u32) -> usize {
        let bound = self.avx512f._mm512_set1_epi32(bound as i32);
        let mut n = 0;
        for values in values {
            n += self.avx512f._mm512_cmpge_epu32_mask(pulp::cast(*values), bound).count_ones();
        }
        n as usize
    }

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
    fn signs(self, row: &[f32; BLOCK_EDGE]) -> u64 {
        let mut bits = 0;
        for (i, part) in row.as_chunks::<16>().0.iter().enumerate() {
            bits |= u64::from(self.avx512dq._mm512_movepi32_mask(pulp::cast(*part))) << (16 * i);
        }
        bits
    }

    #[inline(always)]
    fn look_up(self, table: &[f32; 32], indices: &[i32; 16]) -> [f32; 16] {
        let [a, b]: [[f32; 16]; 2] = pulp::cast(*table);
        pulp::cast(self.avx512f._mm512_permutex2var_ps(pulp::cast(a), pulp::cast(*indices), pulp::cast(b)))
    }

    #[inline(always)]
    fn choose(self, planes: [u64; 2], table: [i32; 4]) -> [i32; 64] {
        let table = table.map(|entry| [entry; 16]);
        let mut chosen = [0; 64];
        for (part, chosen) in chosen.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let (low, high) = ((planes[0] >> (16 * part)) as u16, (planes[1] >> (16 * part)) as u16);
            let near = self.avx512f._mm512_mask_blend_epi32(low, pulp::cast(table[0]), pulp::cast(table[1]));
            let far = self.avx512f._mm512_mask_blend_epi32(low, pulp::cast(table[2]), pulp::cast(table[3]));
            *chosen = pulp::cast(self.avx512f._mm512_mask_blend_epi32(high, near, far));
        }
        chosen
    }

    #[inline(always)]
    fn prefetch(self, row: &[f32; BLOCK_EDGE]) {
        prefetch(*self, row);
    }

    #[inline(always)]
    fn prefetch_byte(self, byte: &u8) {
        self.sse._mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(std::ptr::from_ref(byte).cast());
    }
}

/// From each quarter of the table the entry at an index's low three bits; bits 3 and 4 say from which.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn look_up_eight(lanes: V3, table: &[f32; 32], indices: [i32; 8]) -> [f32; 8] {
    let i = pulp::cast(indices);
    let quarters = table.as_chunks::<8>().0;
    let a = lanes.avx2._mm256_permutevar8x32_ps(pulp::cast(quarters[0]), i);
    let b = lanes.avx2._mm256_permutevar8x32_ps(pulp::cast(quarters[1]), i);
    let c = lanes.avx2._mm256_permutevar8x32_ps(pulp::cast(quarters[2]), i);
    let d = lanes.avx2._mm256_permutevar8x32_ps(pulp::cast(quarters[3]), i);
    // A blend looks at the sign, where those bits are carried.
    let bit_3 = pulp::cast(lanes.avx2._mm256_slli_epi32::<28>(i));
    let bit_4 = pulp::cast(lanes.avx2._mm256_slli_epi32::<27>(i));
    let (low, high) = (lanes.avx._mm256_blendv_ps(a, b, bit_3), lanes.avx._mm256_blendv_ps(c, d, bit_3));
    pulp::cast(lanes.avx._mm256_blendv_ps(low, high, bit_4))
}

/// Into the first level: a chunk at hand and two to come are 48 KB.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch(lanes: V3, row: &[f32; BLOCK_EDGE]) {
    for line in row.as_chunks::<16>().0 {
        lanes.sse._mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr().cast());
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::CHUNK_LEN;
    use super::*;

    struct Compare<'a>(&'a [f32; CHUNK_LEN], u32);

    impl Kernel for Compare<'_> {
        type Output = Vec<[u64; 2]>;

        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) -> Vec<[u64; 2]> {
            self.0.as_chunks().0.iter().map(|row| [lanes.at_least(row, self.1), lanes.signs(row)]).collect()
        }
    }

    #[test]
    fn every_instruction_set_compares_alike() {
        let chunk = std::array::from_fn(|i| f32::from_bits((i as u32).wrapping_mul(2_654_435_761)));
        for bound in [0, 1, 0x3f80_0000, 0x7f7f_ffff, MAGNITUDE] {
            let bits = |row: &[f32], is_set: &dyn Fn(u32) -> bool| {
                row.iter().enumerate().map(|(i, a)| u64::from(is_set(a.to_bits())) << i).sum()
            };
            let wanted: Vec<[u64; 2]> = chunk
                .chunks(BLOCK_EDGE)
                .map(|row| [bits(row, &|a| a & MAGNITUDE >= bound), bits(row, &|a| a > MAGNITUDE)])
                .collect();
            for simd in Simd::available() {
                assert_eq!(simd.dispatch(Compare(&chunk, bound)), wanted, "{simd:?}, bound {bound:#x}");
            }
        }
    }

    struct LookUp<'a>(&'a [f32; 32], [i32; 16]);

    impl Kernel for LookUp<'_> {
        type Output = [f32; 16];

        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) -> [f32; 16] {
            lanes.look_up(self.0, &self.1)
        }
    }

    struct Choose([u64; 2]);

    impl Kernel for Choose {
        type Output = [i32; 64];

        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) -> [i32; 64] {
            lanes.choose(self.0, [i32::MIN, -1, 7, i32::MAX])
        }
    }

    #[test]
    fn every_instruction_set_looks_up_and_chooses_alike() {
        let table = std::array::from_fn(|i| i as f32);
        for first in (-2000..2000).step_by(37) {
            let indices: [i32; 16] = std::array::from_fn(|i| first + 3 * i as i32);
            let want = indices.map(|i| i.rem_euclid(32) as f32);
            let planes = [first as u64 ^ 0x1234_5678_9abc_def0, (first as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)];
            let code = |i: usize| (planes[0] >> i & 1 | (planes[1] >> i & 1) << 1) as usize;
            let chosen: [i32; 64] = std::array::from_fn(|i| [i32::MIN, -1, 7, i32::MAX][code(i)]);
            for simd in Simd::available() {
                assert_eq!(simd.dispatch(LookUp(&table, indices)), want, "{simd:?}, {indices:?}");
                assert_eq!(simd.dispatch(Choose(planes)), chosen, "{simd:?}, {planes:x?}");
            }
        }
    }
}
