//! Keys and values of storage entries, by pallet and name: the one place that knows how the metadata is asked.

use subxt::Metadata;
use subxt::ext::codec::Encode;
use subxt::ext::frame_decode::storage::{
    IntoEncodableValues, StorageTypeInfo, decode_storage_value, encode_storage_key, encode_storage_key_prefix,
};
use subxt::ext::scale_decode::DecodeAsType;
use subxt::ext::scale_encode::EncodeAsType;

use super::WireError;

/// The pallet that most of what we read belongs to.
pub(in crate::chain) const SUBTENSOR: &str = "SubtensorModule";

/// The pallet that keeps the beacon's pulses.
pub(in crate::chain) const DRAND: &str = "Drand";

/// Entries of the stateful epoch schedule, which runtimes before it lack. The development chain keeps that schedule
/// whatever metadata it shows, so these are read and written by their known key and type where metadata does not list
/// them: `u64` by subnet, unhashed.
pub(in crate::chain) const EPOCH_INDEX: &str = "SubnetEpochIndex";
/// See [`EPOCH_INDEX`].
pub(in crate::chain) const LAST_EPOCH: &str = "LastEpochBlock";
/// See [`EPOCH_INDEX`].
pub(in crate::chain) const PENDING_EPOCH: &str = "PendingEpochAt";

/// Whether the runtime has this storage entry.
pub(in crate::chain) fn has(metadata: &Metadata, pallet: &str, entry: &str) -> bool {
    let storage = metadata.pallet_by_name(pallet).and_then(|pallet| pallet.storage());
    storage.is_some_and(|storage| storage.entry_by_name(entry).is_some())
}

/// Whether the runtime has this call.
pub(in crate::chain) fn has_call(metadata: &Metadata, pallet: &str, call: &str) -> bool {
    metadata.pallet_by_name(pallet).is_some_and(|pallet| pallet.call_variant_by_name(call).is_some())
}

/// The key of one value of an entry.
pub(in crate::chain) fn key(
    metadata: &Metadata,
    pallet: &str,
    entry: &str,
    keys: impl IntoEncodableValues,
) -> Result<Vec<u8>, WireError> {
    encode_storage_key(pallet, entry, keys, metadata, metadata.types())
        .map_err(|error| WireError::shape(pallet, entry, error))
}

/// The key of an entry of the epoch schedule.
pub(in crate::chain) fn schedule_key(entry: &str, netuid: u16) -> Vec<u8> {
    [&encode_storage_key_prefix(SUBTENSOR, entry)[..], &netuid.encode()].concat()
}

/// The key of a block's own time.
pub(in crate::chain) fn timestamp_key() -> [u8; 32] {
    encode_storage_key_prefix("Timestamp", "Now")
}

/// A value of an entry as it is stored.
pub(in crate::chain) fn encode(
    metadata: &Metadata,
    pallet: &str,
    entry: &str,
    value: &impl EncodeAsType,
) -> Result<Vec<u8>, WireError> {
    let info = metadata.storage_info(pallet, entry).map_err(|error| WireError::shape(pallet, entry, error))?;
    value.encode_as_type(info.value_id, metadata.types()).map_err(|error| WireError::shape(pallet, entry, error))
}

/// The stored value of an entry; nothing may follow it.
pub(in crate::chain) fn decode<T: DecodeAsType>(
    metadata: &Metadata,
    pallet: &str,
    entry: &str,
    bytes: &[u8],
) -> Result<T, WireError> {
    let rest = &mut &*bytes;
    let value = decode_storage_value(pallet, entry, rest, metadata, metadata.types(), T::into_visitor())
        .map_err(|error| WireError::shape(pallet, entry, error))?;
    if rest.is_empty() { Ok(value) } else { Err(WireError::shape(pallet, entry, "bytes are left over")) }
}

/// What an entry holds where nothing is stored; none where that means that there is no value.
pub(in crate::chain) fn default<T: DecodeAsType>(
    metadata: &Metadata,
    pallet: &str,
    entry: &str,
) -> Result<Option<T>, WireError> {
    let info = metadata.storage_info(pallet, entry).map_err(|error| WireError::shape(pallet, entry, error))?;
    info.default_value.as_deref().map(|bytes| decode(metadata, pallet, entry, bytes)).transpose()
}
