//! What memory allows: the passes that the payload path is held against, over buffers like its own.
//!
//! Core time is the thread's, so a neighbour's work costs caches but not the count. Buffers ask for huge pages, as the node's do.

use std::hint::black_box;
use std::time::Duration;

use memmap2::{Advice, MmapMut};
use rustix::time::{ClockId, clock_gettime};

/// A buffer of f32 zeros in its own mapping, on huge pages where the system gives them.
pub struct Buffer(MmapMut);

impl Buffer {
    pub fn new(len: usize) -> anyhow::Result<Self> {
        let map = MmapMut::map_anon(len * 4)?;
        // Not every system has them; then all passes are slower alike.
        drop(map.advise(Advice::HugePage));
        Ok(Self(map))
    }

    pub fn values(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }

    pub fn values_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// Seconds of this thread's own work that `work` takes.
pub fn core_seconds(work: impl FnOnce()) -> f64 {
    let now = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32).as_secs_f64()
    };
    let start = now();
    work();
    now() - start
}

/// Two reads and one write: e ← β·e + Δ.
pub fn accumulate(error: &mut [f32], delta: &[f32]) {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            for (e, d) in error.iter_mut().zip(delta) {
                *e = 0.95 * *e + d;
            }
        },
    );
    black_box(error);
}

/// One read and one write: θ ← 0.999·θ.
pub fn rewrite(theta: &mut [f32]) {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            for theta in theta.iter_mut() {
                *theta *= 0.999;
            }
        },
    );
    black_box(theta);
}

/// The middle one.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
