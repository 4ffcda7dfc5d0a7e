//! The Commitments pallet's rules: one commitment a hotkey, overwritten each time, within a quota of bytes an epoch.

use serde::{Deserialize, Serialize};

use super::call::{DispatchError, FIELDS_MAX};
use super::metagraph::Committed;
use super::subnet::Subnet;
use crate::terms::{Block, Hotkey};

/// Every call is charged at least this much of the quota.
const CHARGE_MIN: u64 = 100;

/// What a hotkey has used of its quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Usage {
    epoch_index: u64,
    bytes: u64,
}

/// `set_commitment`: overwrites, or names the first rule that is broken.
pub(super) fn set_commitment(
    subnet: &mut Subnet,
    hotkey: Hotkey,
    fields: &[Vec<u8>],
    block: Block,
    index: u32,
) -> Result<(), DispatchError> {
    if subnet.uid(&hotkey).is_none() {
        return Err(DispatchError::AccountNotAllowedCommit);
    }
    if fields.len() > FIELDS_MAX {
        return Err(DispatchError::TooManyFieldsInCommitmentInfo);
    }
    let bytes = fields.iter().map(|field| field.len() as u64).sum::<u64>();
    let usage = subnet.commitment_usage.get(&hotkey).copied().unwrap_or_default();
    let used = if usage.epoch_index == subnet.epoch_index { usage.bytes } else { 0 };
    let used = used.saturating_add(bytes.max(CHARGE_MIN));
    if used > u64::from(subnet.hyperparameters.commitment_space_max) {
        return Err(DispatchError::SpaceLimitExceeded);
    }
    subnet.commitment_usage.insert(hotkey, Usage { epoch_index: subnet.epoch_index, bytes: used });
    subnet.commitments.insert(hotkey, Committed { block, index, fields: fields.to_vec() });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Genesis;

    fn subnet() -> (Subnet, Hotkey) {
        let mut subnet = Subnet::new(&Genesis::new(1, 0, 0));
        let hotkey = Hotkey([1; 32]);
        subnet.take_slot(hotkey, Hotkey([2; 32]), Block(1)).unwrap();
        (subnet, hotkey)
    }

    fn commit(subnet: &mut Subnet, hotkey: Hotkey, sizes: &[usize]) -> Result<(), DispatchError> {
        let fields: Vec<_> = sizes.iter().map(|&size| vec![7; size]).collect();
        set_commitment(subnet, hotkey, &fields, Block(5), 2)
    }

    #[test]
    fn thirty_one_small_commitments_fit_an_epoch_and_the_next_epoch_starts_anew() {
        let (mut subnet, hotkey) = subnet();
        for _ in 0..31 {
            commit(&mut subnet, hotkey, &[1]).unwrap();
        }
        assert_eq!(commit(&mut subnet, hotkey, &[1]), Err(DispatchError::SpaceLimitExceeded));
        subnet.epoch_index += 1;
        assert_eq!(commit(&mut subnet, hotkey, &[1]), Ok(()));
    }

    #[test]
    fn large_commitments_are_charged_by_the_byte_and_a_refused_one_changes_nothing() {
        let (mut subnet, hotkey) = subnet();
        commit(&mut subnet, hotkey, &[512, 512, 512]).unwrap();
        commit(&mut subnet, hotkey, &[512, 512, 500]).unwrap();
        let before = subnet.clone();
        assert_eq!(commit(&mut subnet, hotkey, &[]), Err(DispatchError::SpaceLimitExceeded));
        assert_eq!(subnet, before);
        assert_eq!(subnet.commitments[&hotkey].fields[2].len(), 500);
        assert_eq!((subnet.commitments[&hotkey].block, subnet.commitments[&hotkey].index), (Block(5), 2));
    }

    #[test]
    fn only_the_registered_commit_and_three_fields_at_most() {
        let (mut subnet, hotkey) = subnet();
        assert_eq!(commit(&mut subnet, Hotkey([9; 32]), &[1]), Err(DispatchError::AccountNotAllowedCommit));
        assert_eq!(commit(&mut subnet, hotkey, &[1; 4]), Err(DispatchError::TooManyFieldsInCommitmentInfo));
    }
}
