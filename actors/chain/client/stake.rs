//! Stake as the chain counts it when it weighs validators' words: not a hotkey's own alpha alone.
//!
//! Subtensor counts a hotkey's alpha on the subnet and, at the chain's TAO weight, its stake on the root network; of each it
//! counts off what it passes on to child hotkeys and counts in what parents pass on to it (`get_stake_weights_for_hotkey_
//! on_subnet`). The column `StakeWeight` holds the outcome too, but of the last epoch, scaled, and without those below the
//! threshold; so the sum is made here from what it is made of there, at the block that is read.
//!
//! It is made for holders of a permit, since only theirs counts for anything. The stake of the others is their own alpha. A
//! development chain has neither root stake nor children, and there the sum is the alpha.

use std::collections::{BTreeMap, BTreeSet};

use convoke::terms::{Hotkey, Stake};

use super::failure::Failure;
use super::link::Online;
use super::values::Values;
use crate::chain::ChainError;
use crate::chain::wire::schema::SUBTENSOR;

/// The root network, where stake is in TAO.
const ROOT: u16 = 0;
/// Parents of all validators together, so that nothing is asked by an endpoint's word alone.
const PARENTS_MAX: usize = 4096;

/// What is passed on, of `u64::MAX`, and to or from whom.
type Shares = Vec<(u64, [u8; 32])>;

/// A hotkey's own stake, in rao of alpha and of TAO.
#[derive(Debug, Clone, Copy, Default)]
struct Own {
    alpha: u64,
    tao: u64,
}

/// Wants what [`read`] reads of these hotkeys; `holds_permit` says of whom it wants all.
pub(super) fn want(values: &mut Values<'_>, hotkeys: &[Hotkey], holds_permit: &[bool]) -> Result<(), Failure> {
    let netuid = values.netuid;
    for (place, hotkey) in hotkeys.iter().enumerate() {
        values.want(SUBTENSOR, "TotalHotkeyAlpha", (hotkey.0, netuid))?;
        if holds_permit.get(place).copied().unwrap_or(false) {
            values.want(SUBTENSOR, "TotalHotkeyAlpha", (hotkey.0, ROOT))?;
            values.want(SUBTENSOR, "ChildKeys", (hotkey.0, netuid))?;
            values.want(SUBTENSOR, "ParentKeys", (hotkey.0, netuid))?;
        }
    }
    Ok(())
}

/// The stakes, in the order of the hotkeys. Parents' stakes are fetched, if there are parents.
pub(super) async fn read(
    online: &Online,
    values: &mut Values<'_>,
    hotkeys: &[Hotkey],
    holds_permit: &[bool],
) -> Result<Vec<Stake>, Failure> {
    let mut passed = BTreeMap::new();
    for (hotkey, _) in hotkeys.iter().zip(holds_permit).filter(|(_, holds_permit)| **holds_permit) {
        passed.insert(*hotkey, (shares(values, "ChildKeys", hotkey)?, shares(values, "ParentKeys", hotkey)?));
    }
    let parents: BTreeSet<_> =
        passed.values().flat_map(|(_, parents)| parents.iter().map(|(_, parent)| Hotkey(*parent))).collect();
    if parents.len() > PARENTS_MAX {
        let reason = format!("{} parents of a subnet's validators", parents.len());
        return Err(Failure::Answer(ChainError::Foreign { reason }));
    }
    for parent in &parents {
        for netuid in [values.netuid, ROOT] {
            values.want(SUBTENSOR, "TotalHotkeyAlpha", (parent.0, netuid))?;
        }
    }
    values.fetch(online).await?;
    let tao_weight = values.plain(SUBTENSOR, "TaoWeight", 0)?;
    let stake = |hotkey: &Hotkey| {
        let Some((children, parents)) = passed.get(hotkey) else { return Ok(Stake(own(values, hotkey)?.alpha)) };
        let given: Vec<u64> = children.iter().map(|(share, _)| *share).collect();
        let taken = parents.iter().map(|(share, parent)| Ok((*share, own(values, &Hotkey(*parent))?)));
        Ok(counted(own(values, hotkey)?, &given, &taken.collect::<Result<Vec<_>, Failure>>()?, tao_weight))
    };
    hotkeys.iter().map(stake).collect()
}

fn shares(values: &Values<'_>, entry: &str, hotkey: &Hotkey) -> Result<Shares, Failure> {
    Ok(values.get(SUBTENSOR, entry, (hotkey.0, values.netuid))?.unwrap_or_default())
}

fn own(values: &Values<'_>, hotkey: &Hotkey) -> Result<Own, Failure> {
    let held = |netuid| Ok::<_, Failure>(values.get(SUBTENSOR, "TotalHotkeyAlpha", (hotkey.0, netuid))?.unwrap_or(0));
    Ok(Own { alpha: held(values.netuid)?, tao: held(ROOT)? })
}

/// alpha + tao · weight, each less what goes to children and with what comes from parents; shares and weight are of
/// `u64::MAX`.
fn counted(own: Own, given: &[u64], taken: &[(u64, Own)], tao_weight: u64) -> Stake {
    let counted = |held: fn(&Own) -> u64| {
        let kept = given.iter().fold(held(&own), |kept, share| kept.saturating_sub(part(held(&own), *share)));
        taken.iter().fold(kept, |sum, (share, parent)| sum.saturating_add(part(held(parent), *share)))
    };
    Stake(counted(|own| own.alpha).saturating_add(part(counted(|own| own.tao), tao_weight)))
}

fn part(amount: u64, share: u64) -> u64 {
    let part = u128::from(amount) * u128::from(share) / u128::from(u64::MAX);
    u64::try_from(part).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_stake_counts_at_its_weight_and_shares_go_from_parent_to_child() {
        let (own, half) = (Own { alpha: 1000, tao: 500 }, u64::MAX / 2 + 1);
        assert_eq!(counted(own, &[], &[], 0), Stake(1000));
        assert_eq!(counted(own, &[], &[], half), Stake(1250));
        // Half of both is passed on.
        assert_eq!(counted(own, &[half], &[], half), Stake(625));
        let parent = Own { alpha: 80, tao: 40 };
        assert_eq!(counted(own, &[], &[(half, parent), (u64::MAX, parent)], half), Stake(1000 + 120 + 280));
    }

    #[test]
    fn shares_beyond_the_whole_are_no_overflow() {
        let own = Own { alpha: u64::MAX, tao: u64::MAX };
        assert_eq!(counted(own, &[u64::MAX, u64::MAX], &[], u64::MAX), Stake(0));
        assert_eq!(counted(own, &[], &[(u64::MAX, own), (u64::MAX, own)], u64::MAX), Stake(u64::MAX));
    }
}
