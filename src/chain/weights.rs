//! `set_weights`: the checks of `pallet-subtensor` in its order, each with its name, and the scaling of what is stored.

use std::collections::BTreeSet;

use super::call::DispatchError;
use super::q32::{self, Q32};
use super::subnet::Subnet;
use crate::terms::{Block, Hotkey, Uid};

/// The arguments of `set_weights`.
pub(super) struct Weights<'a> {
    pub(super) netuid: u16,
    pub(super) dests: &'a [u16],
    pub(super) weights: &'a [u16],
    pub(super) version_key: u64,
}

/// The call: refused where weights must be committed first, otherwise as [`store_weights`].
pub(super) fn set_weights(
    subnet: &mut Subnet,
    hotkey: &Hotkey,
    stake: u64,
    call: &Weights<'_>,
    block: Block,
) -> Result<Uid, DispatchError> {
    ensure(!subnet.hyperparameters.commit_reveal_weights_enabled, DispatchError::CommitRevealEnabled)?;
    store_weights(subnet, hotkey, stake, call, block)
}

/// Stores the weights of a call or of a reveal, or names the first rule that is broken. A reveal is neither limited in
/// its rate nor dated: its commit was.
pub(super) fn store_weights(
    subnet: &mut Subnet,
    hotkey: &Hotkey,
    stake: u64,
    call: &Weights<'_>,
    block: Block,
) -> Result<Uid, DispatchError> {
    let uid = check(subnet, hotkey, stake, call, block)?;
    let upscaled = max_upscale(call.weights);
    let slot = &mut subnet.slots[usize::from(uid.0)];
    slot.weights = call.dests.iter().copied().zip(upscaled).collect();
    if !subnet.hyperparameters.commit_reveal_weights_enabled {
        slot.last_update = block.0;
    }
    Ok(uid)
}

fn check(subnet: &Subnet, hotkey: &Hotkey, stake: u64, call: &Weights<'_>, block: Block) -> Result<Uid, DispatchError> {
    let hyper = &subnet.hyperparameters;
    let is_self_weight = |uid: Uid| call.weights.len() == 1 && call.dests.first() == Some(&uid.0);
    ensure(call.dests.len() == call.weights.len(), DispatchError::WeightVecNotEqualSize)?;
    ensure(call.netuid == subnet.netuid, DispatchError::SubnetNotExists)?;
    ensure(call.dests.len() <= subnet.slots.len(), DispatchError::UidsLengthExceedUidsInSubNet)?;
    let uid = subnet.uid(hotkey).ok_or(DispatchError::HotKeyNotRegisteredInSubNet)?;
    ensure(has_min_stake(subnet, hotkey, stake), DispatchError::NotEnoughStakeToSetWeights)?;
    let version_is_current = hyper.weights_version_key == 0 || call.version_key >= hyper.weights_version_key;
    ensure(version_is_current, DispatchError::IncorrectWeightVersionKey)?;
    let in_time = hyper.commit_reveal_weights_enabled || passes_rate_limit(subnet, uid, block);
    ensure(in_time, DispatchError::SettingWeightsTooFast)?;
    let permit = subnet.slot(uid).is_some_and(|slot| slot.permit);
    let may_set = is_self_weight(uid) || subnet.owner_uid() == Some(uid) || permit;
    ensure(may_set, DispatchError::NeuronNoValidatorPermit)?;
    let mut seen = BTreeSet::new();
    ensure(call.dests.iter().all(|dest| seen.insert(dest)), DispatchError::DuplicateUids)?;
    let all_exist = call.dests.iter().all(|&dest| usize::from(dest) < subnet.slots.len());
    ensure(all_exist, DispatchError::UidVecContainInvalidOne)?;
    let n_min = usize::from(hyper.min_allowed_weights).min(subnet.slots.len());
    let is_long = is_self_weight(uid) || call.weights.len() >= n_min;
    ensure(is_long, DispatchError::WeightVecLengthIsLow)?;
    let upscaled = max_upscale(call.weights);
    let is_limited = is_self_weight(uid) || within_max_share(&upscaled, hyper.max_weights_limit);
    ensure(is_limited, DispatchError::MaxWeightExceeded)?;
    Ok(uid)
}

/// The error, unless the rule holds.
pub(super) fn ensure(holds: bool, error: DispatchError) -> Result<(), DispatchError> {
    if holds { Ok(()) } else { Err(error) }
}

/// Whether the hotkey has the stake to set weights; the owner's needs none.
pub(super) fn has_min_stake(subnet: &Subnet, hotkey: &Hotkey, stake: u64) -> bool {
    let is_owner = subnet.owner_uid().is_some_and(|owner| subnet.uid(hotkey) == Some(owner));
    is_owner || stake >= subnet.hyperparameters.stake_threshold
}

/// Whether enough blocks have passed since the neuron set weights or registered; zero means that it never did.
pub(super) fn passes_rate_limit(subnet: &Subnet, uid: Uid, block: Block) -> bool {
    subnet.slot(uid).is_some_and(|slot| {
        let waited = block.0.saturating_sub(slot.last_update);
        slot.last_update == 0 || waited >= subnet.hyperparameters.weights_set_rate_limit
    })
}

/// Whether no weight is more than `limit / 65535` of their sum; the highest limit is off.
fn within_max_share(weights: &[u16], limit: u16) -> bool {
    if limit == u16::MAX {
        return true;
    }
    let mut shares: Vec<_> = weights.iter().map(|&weight| Q32::whole(u32::from(weight))).collect();
    q32::normalise(&mut shares);
    shares.into_iter().max().is_none_or(|share| share <= Q32::ratio(u64::from(limit), u64::from(u16::MAX)))
}

/// `w' = round(w · 65535 / max(w))`: what the chain stores, so that only ratios matter.
///
/// Above 32768 the chain divides first (its fixed point would overflow), which may round one down: whoever compares
/// weights that he reads back must allow ±1.
#[must_use]
pub fn max_upscale(weights: &[u16]) -> Vec<u16> {
    let max = weights.iter().copied().max().unwrap_or(0);
    if max == 0 {
        return weights.to_vec();
    }
    let (largest, full) = (Q32::whole(u32::from(max)), Q32::whole(u32::from(u16::MAX)));
    let scale = |&weight: &u16| {
        let weight = Q32::whole(u32::from(weight));
        if max > 32_768 { weight.times(full.over(largest)) } else { weight.times(full).over(largest) }
    };
    weights.iter().map(|weight| scale(weight).round_u16()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chain::Genesis;

    fn key(i: u8) -> Hotkey {
        Hotkey([i; 32])
    }

    /// Three neurons registered at block 10, the first with a permit; rate limit 100.
    fn subnet() -> Subnet {
        let mut subnet = Subnet::new(&Genesis::new(7, 0, 0));
        for i in 0..3 {
            subnet.take_slot(key(i), key(100), Block(10)).unwrap();
        }
        subnet.slots[0].permit = true;
        subnet
    }

    fn set(subnet: &mut Subnet, i: u8, dests: &[u16], weights: &[u16], block: u64) -> Result<Uid, DispatchError> {
        set_weights(subnet, &key(i), 5, &Weights { netuid: 7, dests, weights, version_key: 3 }, Block(block))
    }

    #[test]
    fn weights_are_stored_upscaled_and_dated() {
        let mut subnet = subnet();
        assert_eq!(set(&mut subnet, 0, &[1, 2], &[30, 60], 110), Ok(Uid(0)));
        assert_eq!(subnet.slots[0].weights, [(1, 32_768), (2, 65_535)]);
        assert_eq!(subnet.slots[0].last_update, 110);
    }

    #[test]
    fn checks_come_in_the_chains_order() {
        // Each step mends exactly the rule that the one before broke, with all later rules still broken.
        let mut subnet = subnet();
        subnet.hyperparameters.weights_version_key = 9;
        subnet.hyperparameters.stake_threshold = 100;
        subnet.hyperparameters.min_allowed_weights = 3;
        subnet.hyperparameters.max_weights_limit = 1000;
        subnet.hyperparameters.commit_reveal_weights_enabled = true;
        let mut run = |hotkey: u8, stake, netuid, dests: &[u16], weights: &[u16], version_key, block, reveal| {
            subnet.hyperparameters.commit_reveal_weights_enabled = reveal;
            let call = Weights { netuid, dests, weights, version_key };
            set_weights(&mut subnet, &key(hotkey), stake, &call, Block(block)).unwrap_err().name()
        };
        assert_eq!(run(9, 5, 8, &[9, 9, 9, 9], &[1], 3, 50, true), "CommitRevealEnabled");
        assert_eq!(run(9, 5, 8, &[9, 9, 9, 9], &[1], 3, 50, false), "WeightVecNotEqualSize");
        assert_eq!(run(9, 5, 8, &[9, 9, 9, 9], &[1; 4], 3, 50, false), "SubnetNotExists");
        assert_eq!(run(9, 5, 7, &[9, 9, 9, 9], &[1; 4], 3, 50, false), "UidsLengthExceedUidsInSubNet");
        assert_eq!(run(9, 5, 7, &[9, 9], &[1; 2], 3, 50, false), "HotKeyNotRegisteredInSubNet");
        assert_eq!(run(1, 5, 7, &[9, 9], &[1; 2], 3, 50, false), "NotEnoughStakeToSetWeights");
        assert_eq!(run(1, 100, 7, &[9, 9], &[1; 2], 3, 50, false), "IncorrectWeightVersionKey");
        assert_eq!(run(1, 100, 7, &[9, 9], &[1; 2], 9, 109, false), "SettingWeightsTooFast");
        assert_eq!(run(1, 100, 7, &[9, 9], &[1; 2], 9, 110, false), "NeuronNoValidatorPermit");
        assert_eq!(run(0, 100, 7, &[9, 9], &[1; 2], 9, 110, false), "DuplicateUids");
        assert_eq!(run(0, 100, 7, &[9, 2], &[1; 2], 9, 110, false), "UidVecContainInvalidOne");
        assert_eq!(run(0, 100, 7, &[1, 2], &[1; 2], 9, 110, false), "WeightVecLengthIsLow");
        assert_eq!(run(0, 100, 7, &[0, 1, 2], &[1; 3], 9, 110, false), "MaxWeightExceeded");
    }

    #[test]
    fn a_single_self_weight_needs_no_permit_length_or_share() {
        let mut subnet = subnet();
        subnet.hyperparameters.min_allowed_weights = 3;
        subnet.hyperparameters.max_weights_limit = 1;
        assert_eq!(set(&mut subnet, 1, &[1], &[4], 110), Ok(Uid(1)));
        assert_eq!(set(&mut subnet, 2, &[1], &[4], 110), Err(DispatchError::NeuronNoValidatorPermit));
    }

    #[test]
    fn the_owner_needs_neither_permit_nor_stake() {
        let mut subnet = subnet();
        subnet.hyperparameters.stake_threshold = 100;
        subnet.owner = Some(crate::chain::Owner { coldkey: key(100), hotkey: key(2) });
        assert_eq!(set(&mut subnet, 2, &[0, 1], &[4, 4], 110), Ok(Uid(2)));
        assert_eq!(set(&mut subnet, 0, &[0, 1], &[4, 4], 110), Err(DispatchError::NotEnoughStakeToSetWeights));
    }

    #[test]
    fn a_neuron_of_the_genesis_need_not_wait() {
        let mut subnet = subnet();
        subnet.slots[0].last_update = 0;
        assert_eq!(set(&mut subnet, 0, &[1], &[4], 1), Ok(Uid(0)));
        assert_eq!(set(&mut subnet, 0, &[1], &[4], 100), Err(DispatchError::SettingWeightsTooFast));
    }

    #[test]
    fn upscaling_is_the_live_chains() {
        // Both pairs were read back from a running Subtensor.
        assert_eq!(max_upscale(&[30_000, 60_000]), [32_767, 65_535]);
        assert_eq!(max_upscale(&[30, 60]), [32_768, 65_535]);
        assert_eq!(max_upscale(&[0, 0]), [0, 0]);
        assert_eq!(max_upscale(&[]), [0; 0]);
    }

    proptest! {
        #[test]
        fn upscaling_keeps_order_zeros_and_ratios(weights in prop::collection::vec(any::<u16>(), 1..40)) {
            let scaled = max_upscale(&weights);
            let max = f64::from(*weights.iter().max().unwrap());
            for (&weight, &scaled) in weights.iter().zip(&scaled) {
                let exact = if max == 0.0 { 0.0 } else { f64::from(weight) * 65_535.0 / max };
                prop_assert!((f64::from(scaled) - exact).abs() <= 1.0, "{} {} {}", weight, scaled, exact);
            }
        }
    }
}
