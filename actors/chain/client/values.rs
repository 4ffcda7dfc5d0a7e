//! Storage values at one block: what is wanted is gathered, asked for at once, and decoded by the block's own metadata.

use std::collections::HashMap;

use convoke::chain::{EpochSchedule, Hyperparameters};
use convoke::terms::{Block, BlockHash, Hotkey};
use subxt::client::OnlineClientAtBlock;
use subxt::config::substrate::H256;
use subxt::ext::codec::Decode;
use subxt::ext::frame_decode::storage::IntoEncodableValues;
use subxt::ext::scale_decode::DecodeAsType;

use super::Config;
use super::failure::Failure;
use super::link::{Online, answer};
use crate::chain::ChainError;
use crate::chain::wire::WireError;
use crate::chain::wire::schema::{self, EPOCH_INDEX, LAST_EPOCH, PENDING_EPOCH, SUBTENSOR};

/// Keys of one query; their text is about 200 bytes each.
const KEYS_OF_QUERY: usize = 2048;
/// Slots that a subnet may have, so that nothing is asked or allocated by an endpoint's word alone.
pub(super) const UIDS_MAX: u16 = 4096;

/// The chain at a block.
pub(super) type At = OnlineClientAtBlock<Config>;

/// Storage values at one block: first wanted, then fetched at once, then decoded.
pub(super) struct Values<'a> {
    at: &'a At,
    pub(super) netuid: u16,
    wanted: Vec<Vec<u8>>,
    found: HashMap<Vec<u8>, Vec<u8>>,
}

impl<'a> Values<'a> {
    pub(super) fn new(at: &'a At, netuid: u16) -> Self {
        Self { at, netuid, wanted: Vec::new(), found: HashMap::new() }
    }

    pub(super) fn want(&mut self, pallet: &str, entry: &str, keys: impl IntoEncodableValues) -> Result<(), WireError> {
        let metadata = self.at.metadata_ref();
        if schema::has(metadata, pallet, entry) {
            self.wanted.push(schema::key(metadata, pallet, entry, keys)?);
        }
        Ok(())
    }

    /// Asks for all that is wanted; for nothing, if nothing is.
    pub(super) async fn fetch(&mut self, online: &Online) -> Result<(), Failure> {
        let (wanted, at) = (std::mem::take(&mut self.wanted), H256(self.at.block_hash().0));
        for keys in wanted.chunks(KEYS_OF_QUERY) {
            let keys = keys.iter().map(Vec::as_slice);
            for changes in answer(online.rpc.state_query_storage_at(keys, Some(at))).await? {
                for (key, value) in changes.changes {
                    self.found.extend(value.map(|value| (key.0, value.0)));
                }
            }
        }
        Ok(())
    }

    /// A value, or what the runtime says it is where nothing is stored; `None` where it has no such entry.
    pub(super) fn get<T: DecodeAsType>(
        &self,
        pallet: &str,
        entry: &str,
        keys: impl IntoEncodableValues,
    ) -> Result<Option<T>, Failure> {
        let metadata = self.at.metadata_ref();
        if !schema::has(metadata, pallet, entry) {
            return Ok(None);
        }
        match self.found.get(&schema::key(metadata, pallet, entry, keys)?) {
            Some(bytes) => Ok(Some(schema::decode(metadata, pallet, entry, bytes)?)),
            None => Ok(schema::default(metadata, pallet, entry)?),
        }
    }

    /// A value of the subnet.
    pub(super) fn subnet<T: DecodeAsType>(&self, entry: &str, otherwise: T) -> Result<T, Failure> {
        Ok(self.get(SUBTENSOR, entry, (self.netuid,))?.unwrap_or(otherwise))
    }

    pub(super) fn plain<T: DecodeAsType>(&self, pallet: &str, entry: &str, otherwise: T) -> Result<T, Failure> {
        Ok(self.get(pallet, entry, ())?.unwrap_or(otherwise))
    }

    /// Wants what [`Self::schedule`] tells.
    pub(super) fn want_schedule(&mut self) -> Result<(), WireError> {
        for entry in ["Tempo", "BlocksSinceLastStep"] {
            self.want(SUBTENSOR, entry, (self.netuid,))?;
        }
        self.wanted.extend([EPOCH_INDEX, LAST_EPOCH, PENDING_EPOCH].map(|it| schema::schedule_key(it, self.netuid)));
        Ok(())
    }

    /// The subnet's epochs, counted from `block`; by block numbers where the chain keeps no schedule.
    pub(super) fn schedule(&self, block: Block) -> Result<EpochSchedule, Failure> {
        let number = |entry: &str| {
            let stored = self.found.get(&schema::schedule_key(entry, self.netuid));
            stored.and_then(|bytes| u64::decode(&mut &bytes[..]).ok())
        };
        let tempo = self.subnet("Tempo", Hyperparameters::default().tempo)?;
        let (Some(epoch_index), Some(last_epoch)) = (number(EPOCH_INDEX), number(LAST_EPOCH)) else {
            return Ok(EpochSchedule::of_block_numbers(self.netuid, tempo, block));
        };
        let pending_epoch_at = number(PENDING_EPOCH).unwrap_or(0);
        let blocks_since_last_step = self.subnet("BlocksSinceLastStep", 0)?;
        Ok(EpochSchedule { tempo, last_epoch, pending_epoch_at, epoch_index, blocks_since_last_step })
    }
}

/// Who is in which slot. Other entries by slot are fetched with it.
pub(super) async fn read_hotkeys(
    online: &Online,
    values: &mut Values<'_>,
    others: &[&str],
) -> Result<Vec<Hotkey>, Failure> {
    let (netuid, n) = (values.netuid, values.subnet::<u16>("SubnetworkN", 0)?);
    if n > UIDS_MAX {
        return Err(Failure::Answer(ChainError::Foreign { reason: format!("a subnet of {n} neurons") }));
    }
    for uid in 0..n {
        values.want(SUBTENSOR, "Keys", (netuid, uid))?;
        for entry in others {
            values.want(SUBTENSOR, entry, (netuid, uid))?;
        }
    }
    values.fetch(online).await?;
    let hotkey = |uid| Ok(Hotkey(values.get(SUBTENSOR, "Keys", (netuid, uid))?.unwrap_or_default()));
    (0..n).map(hotkey).collect()
}

/// The block's own time. Key and type are every Substrate chain's.
pub(super) async fn timestamp_ms(online: &Online, block: BlockHash) -> Result<u64, Failure> {
    let stored = answer(online.rpc.state_get_storage(&schema::timestamp_key(), Some(H256(block.0)))).await?;
    let foreign = || Failure::Answer(ChainError::Foreign { reason: "a time that is no u64".to_owned() });
    stored.map_or(Ok(0), |bytes| u64::decode(&mut &bytes[..]).map_err(|_| foreign()))
}

/// The price of a registration after a block, in rao.
pub(super) async fn burn(online: &Online, at: &At, netuid: u16) -> Result<u64, Failure> {
    let mut values = Values::new(at, netuid);
    values.want(SUBTENSOR, "Burn", (netuid,))?;
    values.fetch(online).await?;
    values.subnet("Burn", 0)
}
