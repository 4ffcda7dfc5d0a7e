//! The inner learning rate: linear warm-up, then a cosine down to a floor (arXiv:2603.08163, appendix C).
//!
//! It is a function of the step alone, and the step is `round · steps + i`: a node that joins late or misses rounds trains at
//! the same rate as everybody else. It never enters a digest, so the platform's cosine is good enough.

use crate::run_spec::InnerSpec;

/// The learning rate of inner step `step`, counted from the start of the run.
///
/// With peak p, floor f = `lr_floor_ratio` · p, warm-up w and end n: p · (step + 1) / w below w; then
/// f + (p − f) · (1 + cos(π · (step − w) / (n − w))) / 2; f from n on.
#[must_use]
pub fn learning_rate(inner: &InnerSpec, step: u64) -> f64 {
    let (warmup, end) = (inner.lr_warmup_steps, inner.lr_decay_steps);
    if step < warmup {
        return inner.lr_peak * (step + 1) as f64 / warmup as f64;
    }
    let floor = inner.lr_peak * inner.lr_floor_ratio;
    if step >= end {
        return floor;
    }
    let progress = (step - warmup) as f64 / (end - warmup) as f64;
    floor + (inner.lr_peak - floor) * (1.0 + (std::f64::consts::PI * progress).cos()) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inner() -> InnerSpec {
        InnerSpec {
            steps: 30,
            steps_min: 1,
            batch_sequences: 16,
            micro_batch_sequences: 8,
            lr_peak: 1e-3,
            lr_warmup_steps: 10,
            lr_decay_steps: 110,
            lr_floor_ratio: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
        }
    }

    #[test]
    fn the_rate_climbs_to_its_peak_and_falls_to_its_floor() {
        let rate = |step| learning_rate(&inner(), step);
        assert!((rate(0) - 1e-4).abs() < 1e-12);
        assert!((rate(9) - 1e-3).abs() < 1e-12);
        assert!((rate(10) - 1e-3).abs() < 1e-12);
        assert!((rate(60) - 5.5e-4).abs() < 1e-12, "halfway between peak and floor");
        assert!((rate(110) - 1e-4).abs() < 1e-12);
        assert!((rate(u64::MAX) - 1e-4).abs() < 1e-12);
    }

    #[test]
    fn the_rate_never_rises_after_the_warm_up() {
        for step in 10..120 {
            assert!(learning_rate(&inner(), step + 1) <= learning_rate(&inner(), step));
        }
    }

    #[test]
    fn without_a_warm_up_the_first_step_has_the_peak() {
        assert!((learning_rate(&InnerSpec { lr_warmup_steps: 0, ..inner() }, 0) - 1e-3).abs() < 1e-12);
    }
}
