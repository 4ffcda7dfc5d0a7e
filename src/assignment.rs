//! Which samples a peer trains on in a round, and which a validator evaluates it on.
//!
//! **Assigned** samples are a function of (round seed, hotkey) alone. The round seed is the hash of a block that is
//! final when the round starts and that nobody can choose (design §3), so any validator can rebuild any miner's
//! assignment, and nobody can prepare it rounds ahead; the reference run seeded with (uid, window), which lets a miner
//! pick the uid whose data he likes.
//!
//! **Evaluation** samples are keyed by a block hash that came *after* the seal and by the validator, so a miner cannot
//! know which of its samples will be looked at, and two validators look at different ones. Both kinds are recomputable
//! by everybody afterwards (G-1).
//!
//! A sample is its index in the training part of the run's token stream; the held-out part is never drawn.

mod draw;

use std::collections::BTreeSet;

pub use draw::{Draw, Permutation};

use crate::terms::{BlockHash, Hotkey};

const ASSIGNED: &str = "convoke 2026-11 assigned samples v1";
const UNASSIGNED: &str = "convoke 2026-11 unassigned samples v1";
const EVALUATED: &str = "convoke 2026-11 evaluated samples v1";

/// The samples that `hotkey` trains on in the round of `seed`, in the order of training: inner step i uses the i-th
/// batch of them.
///
/// `count` only says how many are wanted: fewer are a prefix of more, so a slow peer that takes fewer inner steps has
/// still used a known set. Samples do not repeat before all `n_train_samples` were used once; then another pass begins,
/// in another order.
///
/// # Panics
/// If samples are wanted of an empty training set, which no data set that was loaded has.
#[must_use]
pub fn assigned(seed: &BlockHash, hotkey: &Hotkey, n_train_samples: u64, count: usize) -> Vec<u64> {
    assert!(n_train_samples > 0 || count == 0, "a training set has samples");
    Draw::new(ASSIGNED, &[&seed.0, &hotkey.0]).permutation(n_train_samples).repeated().take(count).collect()
}

/// `count` distinct samples that are not in `avoid`, in an order that `validator` alone has in the round of `eval_seed`.
///
/// The order does not depend on whom the samples are for. So the sets of two peers are the same but for the samples
/// that one of them had been assigned: peers of a round are compared on the same data as far as can be, which is what
/// makes their ranking meaningful where single scores are noise (arXiv:2505.21684).
///
/// Fewer come back if the training set does not have `count` others, none if all of it was assigned.
#[must_use]
pub fn unassigned(
    eval_seed: &BlockHash,
    validator: &Hotkey,
    avoid: &BTreeSet<u64>,
    n_train_samples: u64,
    count: usize,
) -> Vec<u64> {
    Draw::new(UNASSIGNED, &[&eval_seed.0, &validator.0])
        .permutation(n_train_samples)
        .filter(|sample| !avoid.contains(sample))
        .take(count)
        .collect()
}

/// The two paired sets of samples that a validator evaluates one peer on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvalSamples {
    /// Some of those the peer says it trained on.
    pub assigned: Vec<u64>,
    /// Some that the peer was not assigned.
    pub unassigned: Vec<u64>,
}

/// Who evaluates whom, by which block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvalDraw {
    /// The hash of a block after the round's last seal.
    pub seed: BlockHash,
    /// Who evaluates.
    pub validator: Hotkey,
    /// Whose payload.
    pub peer: Hotkey,
}

/// Draws at most `count` samples for each set.
///
/// `assigned` is everything the peer could have trained on in the round, all H inner steps; the unassigned set avoids
/// all of it. `used` is how many of those the peer's payload says it did train on: the assigned set is drawn from this
/// prefix, so that a slow peer is not asked about data it honestly did not reach.
#[must_use]
pub fn eval_samples(draw: &EvalDraw, assigned: &[u64], used: usize, n_train_samples: u64, count: usize) -> EvalSamples {
    let trained: BTreeSet<u64> = assigned.iter().take(used).copied().collect();
    let mut tested: Vec<u64> = trained.into_iter().collect();
    Draw::new(EVALUATED, &[&draw.seed.0, &draw.validator.0, &draw.peer.0]).shuffle(&mut tested);
    tested.truncate(count);
    let avoid = assigned.iter().copied().collect();
    EvalSamples {
        assigned: tested,
        unassigned: unassigned(&draw.seed, &draw.validator, &avoid, n_train_samples, count),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEED: BlockHash = BlockHash([3; 32]);

    fn hotkey(byte: u8) -> Hotkey {
        Hotkey([byte; 32])
    }

    fn eval_draw(seed: u8, validator: u8, peer: u8) -> EvalDraw {
        EvalDraw { seed: BlockHash([seed; 32]), validator: hotkey(validator), peer: hotkey(peer) }
    }

    #[test]
    fn an_assignment_is_what_the_reference_draws() {
        // xtask/reference/assignment_goldens.py, written from the description in `draw` alone.
        let goldens: serde_json::Value = serde_json::from_str(include_str!("assignment/goldens.json")).unwrap();
        for golden in goldens.as_array().unwrap() {
            let key = |name: &str| u8::try_from(golden[name].as_u64().unwrap()).unwrap();
            let samples: Vec<u64> = serde_json::from_value(golden["samples"].clone()).unwrap();
            let n_samples = golden["n_samples"].as_u64().unwrap();
            assert_eq!(
                assigned(&BlockHash([key("seed"); 32]), &hotkey(key("hotkey")), n_samples, samples.len()),
                samples
            );
        }
    }

    #[test]
    fn seed_and_hotkey_each_change_the_assignment() {
        let of = |seed: u8, key: u8| assigned(&BlockHash([seed; 32]), &hotkey(key), 1 << 40, 8);
        assert_ne!(of(1, 1), of(2, 1));
        assert_ne!(of(1, 1), of(1, 2));
    }

    #[test]
    fn no_sample_is_assigned_twice_before_all_were_once() {
        let samples = assigned(&SEED, &hotkey(1), 50, 120);
        for pass in samples.chunks(50) {
            assert_eq!(pass.iter().collect::<BTreeSet<_>>().len(), pass.len());
        }
        assert_ne!(samples[..20], samples[100..], "another pass has another order");
    }

    #[test]
    fn a_later_block_and_the_validator_decide_what_is_evaluated() {
        let all = assigned(&SEED, &hotkey(1), 10_000, 500);
        let of = |draw: EvalDraw| eval_samples(&draw, &all, 500, 10_000, 16);
        let samples = of(eval_draw(9, 1, 2));
        assert_eq!(samples, of(eval_draw(9, 1, 2)));
        for other in [eval_draw(8, 1, 2), eval_draw(9, 3, 2)] {
            assert_ne!(samples.assigned, of(other).assigned);
            assert_ne!(samples.unassigned, of(other).unassigned);
        }
    }

    #[test]
    fn peers_of_a_round_are_compared_on_the_same_unassigned_samples() {
        let set =
            |key| eval_samples(&eval_draw(9, 1, key), &assigned(&SEED, &hotkey(key), 1 << 40, 500), 500, 1 << 40, 16);
        assert_eq!(set(2).unassigned, set(3).unassigned);
        assert_ne!(set(2).assigned, set(3).assigned);
    }

    #[test]
    fn a_training_set_that_was_assigned_whole_leaves_nothing_unassigned() {
        let all = assigned(&SEED, &hotkey(1), 20, 60);
        let samples = eval_samples(&eval_draw(9, 1, 1), &all, 60, 20, 8);
        assert_eq!(samples.unassigned, Vec::<u64>::new());
        assert_eq!(samples.assigned.len(), 8);
    }

    proptest! {
        #[test]
        fn fewer_samples_are_a_prefix_of_more(key: u8, n in 1_u64..500, few in 0_usize..200, more in 0_usize..200) {
            let all = assigned(&SEED, &hotkey(key), n, few + more);
            prop_assert_eq!(&assigned(&SEED, &hotkey(key), n, few)[..], &all[..few]);
            prop_assert!(all.iter().all(|&sample| sample < n));
        }

        #[test]
        fn an_evaluation_keeps_the_two_sets_apart(
            seed: u8, n in 1_u64..400, steps in 0_usize..200, used in 0_usize..200, count in 0_usize..40,
        ) {
            let all = assigned(&SEED, &hotkey(1), n, steps);
            let samples = eval_samples(&eval_draw(seed, 7, 1), &all, used, n, count);
            prop_assert!(samples.assigned.iter().all(|sample| all[..used.min(steps)].contains(sample)));
            prop_assert!(samples.unassigned.iter().all(|sample| *sample < n && !all.contains(sample)));
            let distinct = |set: &[u64]| set.iter().collect::<BTreeSet<_>>().len();
            let trained = distinct(&all[..used.min(steps)]);
            prop_assert_eq!(distinct(&samples.assigned), trained.min(count));
            prop_assert_eq!(distinct(&samples.unassigned), (n as usize - distinct(&all)).min(count));
        }
    }
}
