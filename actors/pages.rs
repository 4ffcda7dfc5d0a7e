//! Large arrays of f32 on huge pages: θ, e and Δ, which every round streams through once.
//!
//! With pages of 4 KB a pass over them spends a third of its time on page tables (measured: `cargo xtask bench payload` against
//! buffers without advice). An allocator cannot know which arrays are worth it, so these ask the system themselves, in mappings of their
//! own; where the system has no huge pages they are ordinary memory. What does not fill one is left to the allocator.

use std::ops::{Deref, DerefMut};

use memmap2::{Advice, MmapMut};

/// A huge page of the processors that have one size for all.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A fixed number of f32s.
#[derive(Debug)]
pub struct Pages(Memory);

#[derive(Debug)]
enum Memory {
    Mapped(MmapMut),
    Allocated(Vec<f32>),
}

impl Pages {
    /// Zeros.
    ///
    /// # Panics
    /// If there are none to hold, or the system has no memory left, as any allocation does.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        if len * size_of::<f32>() < HUGE_PAGE_BYTES {
            return Self(Memory::Allocated(vec![0.0; len]));
        }
        let map = MmapMut::map_anon(len * size_of::<f32>());
        let map = map.unwrap_or_else(|error| panic!("no memory for {len} numbers: {error}"));
        #[cfg(target_os = "linux")]
        if let Err(error) = map.advise(Advice::HugePage) {
            tracing::debug!(%error, "no huge pages");
        }
        Self(Memory::Mapped(map))
    }
}

impl From<&[f32]> for Pages {
    fn from(values: &[f32]) -> Self {
        let mut pages = Self::zeroed(values.len());
        pages.copy_from_slice(values);
        pages
    }
}

impl Clone for Pages {
    fn clone(&self) -> Self {
        Self::from(&**self)
    }
}

impl Deref for Pages {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &self.0 {
            Memory::Mapped(map) => bytemuck::cast_slice(map),
            Memory::Allocated(values) => values,
        }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [f32] {
        match &mut self.0 {
            Memory::Mapped(map) => bytemuck::cast_slice_mut(map),
            Memory::Allocated(values) => values,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zero_until_written_and_a_copy_is_its_own() {
        for len in [1, 3 * 4096, HUGE_PAGE_BYTES / 4, HUGE_PAGE_BYTES] {
            check_is_zero_until_written(len);
        }
    }

    fn check_is_zero_until_written(len: usize) {
        let mut pages = Pages::zeroed(len);
        assert!(pages.len() == len && pages.iter().all(|value| value.to_bits() == 0));
        let copy = Pages::from(&[1.0, -0.0, f32::MIN_POSITIVE][..]);
        let n = copy.len().min(len);
        pages[..n].copy_from_slice(&copy.clone()[..n]);
        assert_eq!((pages[0], copy[1].to_bits(), copy.len()), (1.0, (-0.0_f32).to_bits(), 3));
    }
}
