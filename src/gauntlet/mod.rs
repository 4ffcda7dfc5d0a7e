//! Gauntlet: which contributions count, and what each contributor earns (arXiv:2505.21684 and the reference run's code).
//!
//! ```text
//! seal, payload ── fast_checks ── copies ──> passed ── selection::contributors ──> manifest
//!                       │            │          │
//!                       │ Rejected   │ Rejected └── selection::evaluated ── losses ── loss_score ──> Scored
//!                       └────────────┴───────────────────────┬────────────────────────────────────────┘
//!                                        history: Outcome of each peer → PeerRecord (rating, honesty, score)
//!                                                            └── weights: score → rank → share → weight on chain
//! ```
//!
//! Everything here is a function of its arguments; who fetches, evaluates and submits, and when, is `actors/`.
//!
//! **G-1: a weight depends on evidence that another validator could recompute from chain and payloads.** What each part
//! rests on:
//!
//! | part | evidence | whose finding |
//! |---|---|---|
//! | fast checks, copies | seals on chain, payload bytes under the sealed hash | the same for everybody |
//! | `Missing` | nobody delivered the bytes in the gather window | the validator's own; excused where it may be its own fault |
//! | loss score | θ_t, the payload, samples drawn by a block hash and the validator's hotkey | recomputable by whoever holds θ_t |
//! | rating, honesty, record | the sequence of outcomes | recomputable from the above, round by round |
//! | weights | the records, the registry at the block of submission | recomputable from the above |
//!
//! Losses are floating-point results of one device, so another validator finds them again up to rounding, and ratings
//! use the platform's `exp`: none of this ever enters θ, a digest or the wire, where equal bits matter.
//!
//! A validator never scores its own payload: [`selection::evaluated`] leaves it out, and so it has no record of itself.

pub mod copies;
pub mod fast_checks;
pub mod history;
pub mod loss_score;
pub mod rating;
pub mod record;
pub mod selection;
pub mod weights;

pub use history::after_match;
pub use loss_score::{Losses, Score};
pub use rating::Rating;
pub use record::{Outcome, PeerRecord, Standing};

pub use fast_checks::RejectReason;

#[cfg(test)]
pub(crate) mod fixture {
    //! What the tests of this folder share.

    use crate::run_spec::GauntletSpec;
    use crate::terms::Hotkey;

    /// The settings of the reference run where it has them.
    pub fn spec() -> GauntletSpec {
        GauntletSpec {
            contributors_max: 20,
            newcomer_places: 4,
            step_ratio: 0.2,
            eval_sequences: 8,
            evaluations_max: 20,
            honesty_decay: 0.05,
            honesty_warmup: 10,
            honesty_floor: 0.1,
            rating_beta: 7.0,
            rating_tau: 0.1,
            weight_exponent: 2.0,
            burn_share: 0.5,
            burn_uid: 0,
            copy_overlap_max: 0.4,
            failure_decay: 0.75,
            exclusion_rounds: 20,
            holding_chunks: 64,
            rounds_per_weights: 3,
        }
    }

    /// A hotkey for tests.
    pub fn hotkey(byte: u8) -> Hotkey {
        Hotkey([byte; 32])
    }
}
