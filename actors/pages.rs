//! Large arrays of f32 on huge pages: θ, e and Δ, which every round streams through once.
//!
//! With pages of 4 KB a pass over them spends a third of its time on page tables (measured: `cargo xtask bench payload` against
//! buffers without advice). An allocator cannot know which arrays are worth it, so these ask the system themselves, in mappings of their
//! own; where the system has no huge pages they are ordinary memory.

use std::ops::{Deref, DerefMut};

use memmap2::{Advice, MmapMut};

/// A fixed number of f32s.
#[derive(Debug)]
pub struct Pages(MmapMut);

impl Pages {
    /// Zeros.
    ///
    /// # Panics
    /// If there are none to hold, or the system has no memory left, as any allocation does.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let map = MmapMut::map_anon(len * size_of::<f32>());
        let map = map.unwrap_or_else(|error| panic!("no memory for {len} numbers: {error}"));
        #[cfg(target_os = "linux")]
        if let Err(error) = map.advise(Advice::HugePage) {
            tracing::debug!(%error, "no huge pages");
        }
        Self(map)
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
        bytemuck::cast_slice(&self.0)
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zero_until_written_and_a_copy_is_its_own() {
        let mut pages = Pages::zeroed(3 * 4096);
        assert!(pages.len() == 3 * 4096 && pages.iter().all(|value| value.to_bits() == 0));
        let copy = Pages::from(&[1.0, -0.0, f32::MIN_POSITIVE][..]);
        pages[..3].copy_from_slice(&copy.clone());
        assert_eq!((pages[0], pages[1].to_bits(), copy.len()), (1.0, (-0.0_f32).to_bits(), 3));
    }
}
