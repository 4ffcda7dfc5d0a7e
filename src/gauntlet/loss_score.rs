//! LossScore: what one contribution does to the loss (arXiv:2505.21684, section on the loss score; reference code).
//!
//! The contribution is applied alone, with a small share c of the outer learning rate: large steps give negative and
//! inconsistent differences. Losses before and after are on the same samples. The improvement that is scored is
//! *relative* and on *unassigned* data, as in the reference run's code (the paper's formula is the plain difference):
//! relative values are comparable between rounds. The assigned data serves one purpose, to show that it was used.
//!
//! Before that each tensor is scaled down to a size that three quarters of the round's contributions have ([`usual_sizes`], [`scales`]).
//! The published rules evaluate a contribution as it was sent, while the outer step limits it to the median norm: honest work sent three
//! times as large is then rated far above honest work, and applied as no more. `docs/attacks.md` has what that earned.

use serde::{Deserialize, Serialize};

/// The smallest scale in an evaluation. What is larger than eight times the usual is no honest work, and shows what it is.
const SCALE_MIN: f64 = 0.125;

/// For each of `n_tensors` tensors the norm that three quarters of a round's contributions reach, given the norms of each.
///
/// At the median, to which the outer step limits them, whoever sends more than it honestly has would still be found to help more than the
/// half who have less.
///
/// # Panics
/// If a contribution has fewer norms.
#[must_use]
pub fn usual_sizes(n_tensors: usize, norms: &[Vec<f64>]) -> Vec<f64> {
    let lower_quartile = |tensor_idx: usize| {
        let mut sorted: Vec<f64> = norms.iter().map(|norms| norms[tensor_idx]).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        sorted.get(sorted.len().saturating_sub(1) / 4).copied().unwrap_or(0.0)
    };
    (0..n_tensors).map(lower_quartile).collect()
}

/// By how much each tensor of a contribution with these norms is scaled before it is evaluated: min(1, usual / norm), and at least 1/8.
#[must_use]
pub fn scales(norms: &[f64], usual: &[f64]) -> Vec<f32> {
    let scale = |norm: f64, usual: f64| if norm > usual { (usual / norm).max(SCALE_MIN) as f32 } else { 1.0 };
    norms.iter().zip(usual).map(|(norm, usual)| scale(*norm, *usual)).collect()
}

/// The mean loss per token on the two sample sets, at θ_t and at θ_t − α·c·Δ̂. In nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Losses {
    /// On the peer's assigned samples, at θ_t.
    pub assigned_before: f64,
    /// On the peer's assigned samples, with its contribution.
    pub assigned_after: f64,
    /// On unassigned samples, at θ_t.
    pub unassigned_before: f64,
    /// On unassigned samples, with its contribution.
    pub unassigned_after: f64,
}

/// One evaluation of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Relative improvement on unassigned data, in `[WORST_IMPROVEMENT, 1]`: what is ranked.
    pub improvement: f64,
    /// Relative improvement on assigned data, in the same range.
    pub own_improvement: f64,
    /// Whether the contribution helped on its assigned data more than elsewhere, as one trained on it does.
    pub honest: bool,
}

/// The lowest improvement: a loss that rose a hundredfold, or is not a number.
pub const WORST_IMPROVEMENT: f64 = -99.0;

/// Keeps a loss of zero from dividing by zero; no model of a real vocabulary comes near it.
const LOSS_MIN: f64 = 1e-9;

impl Score {
    /// The score of a contribution that made a loss not a number.
    pub const WORST: Self = Self { improvement: WORST_IMPROVEMENT, own_improvement: WORST_IMPROVEMENT, honest: false };

    /// The score of `losses`; [`Score::WORST`] if one of them is not a finite number from 0 up. Never NaN.
    ///
    /// Equal improvements do not show that the assigned data was used, so they are not honest. Where nothing was
    /// unassigned (a training set smaller than a round) the caller has no second set, and cannot score.
    #[must_use]
    pub fn of(losses: &Losses) -> Self {
        let Losses { assigned_before, assigned_after, unassigned_before, unassigned_after } = *losses;
        let all = [assigned_before, assigned_after, unassigned_before, unassigned_after];
        if all.iter().any(|loss| !loss.is_finite() || *loss < 0.0) {
            return Self::WORST;
        }
        let improvement = relative_improvement(unassigned_before, unassigned_after);
        let own_improvement = relative_improvement(assigned_before, assigned_after);
        Self { improvement, own_improvement, honest: own_improvement > improvement }
    }

    /// +1 if honest, −1 if not: what the average of honesty takes in.
    #[must_use]
    pub fn honesty(&self) -> f64 {
        if self.honest { 1.0 } else { -1.0 }
    }
}

/// (before − after) / before, at least [`WORST_IMPROVEMENT`].
fn relative_improvement(before: f64, after: f64) -> f64 {
    ((before - after) / before.max(LOSS_MIN)).max(WORST_IMPROVEMENT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_larger_than_usual_is_evaluated_as_large_as_usual_and_what_is_huge_is_not_hidden() {
        let usual = usual_sizes(2, &[vec![3.0, 1.0], vec![2.0, 1.0], vec![100.0, 1.0], vec![1.0, 9.0], vec![6.0, 0.0]]);
        assert_eq!(usual, [2.0, 1.0]);
        assert_eq!(scales(&[1.0, 2.0, 6.0, 100.0, 0.0], &[2.0, 2.0, 2.0, 2.0, 0.0]), [1.0, 1.0, 1.0 / 3.0, 0.125, 1.0]);
        assert_eq!(usual_sizes(1, &[]), [0.0]);
    }

    fn losses(assigned: (f64, f64), unassigned: (f64, f64)) -> Losses {
        Losses {
            assigned_before: assigned.0,
            assigned_after: assigned.1,
            unassigned_before: unassigned.0,
            unassigned_after: unassigned.1,
        }
    }

    #[test]
    fn a_score_is_the_relative_improvement_on_unassigned_data() {
        let score = Score::of(&losses((4.0, 3.0), (5.0, 4.5)));
        assert_eq!(score, Score { improvement: 0.1, own_improvement: 0.25, honest: true });
        assert_eq!(score.honesty(), 1.0);
    }

    #[test]
    fn who_helps_elsewhere_as_much_as_on_its_own_data_did_not_use_it() {
        assert!(!Score::of(&losses((4.0, 3.6), (4.0, 3.6))).honest);
        assert!(!Score::of(&losses((4.0, 3.9), (4.0, 3.6))).honest);
        assert_eq!(Score::WORST.honesty(), -1.0);
    }

    #[test]
    fn a_loss_that_is_not_a_number_is_the_worst_score() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0] {
            for place in 0..4 {
                let mut all = [4.0; 4];
                all[place] = bad;
                assert_eq!(Score::of(&losses((all[0], all[1]), (all[2], all[3]))), Score::WORST);
            }
        }
    }

    proptest! {
        #[test]
        fn no_losses_make_a_score_that_is_not_a_number(bits: [u64; 4]) {
            let all = bits.map(f64::from_bits);
            let score = Score::of(&losses((all[0], all[1]), (all[2], all[3])));
            for improvement in [score.improvement, score.own_improvement] {
                prop_assert!((WORST_IMPROVEMENT..=1.0).contains(&improvement));
            }
        }

        #[test]
        fn a_lower_loss_after_is_never_a_lower_score(before in 0.0_f64..20.0, after in 0.0_f64..20.0, less in 0.0_f64..1.0) {
            let score = |after| Score::of(&losses((1.0, 1.0), (before, after))).improvement;
            prop_assert!(score(after * less) >= score(after));
        }
    }
}
