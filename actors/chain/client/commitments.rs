//! The members' commitments at a block, each with its place among those of its own block.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use convoke::chain::Committed;
use convoke::chain::call::Call;
use convoke::terms::{Block, BlockHash, Hotkey};
use subxt::config::substrate::H256;
use subxt::ext::futures::{StreamExt, TryStreamExt, stream};

use super::failure::Failure;
use super::link::{Link, Online, answer};
use super::read::{at, cell, hash_at, hash_of, reading, remember};
use super::values::{At, UIDS_MAX, Values, read_hotkeys};
use crate::chain::wire::extrinsic;
use crate::chain::wire::fields::Registration;
use crate::chain::wire::schema::SUBTENSOR;
use crate::chain::{ChainError, Commitments};

/// Blocks asked for at the same time.
const BODIES_AT_ONCE: usize = 8;

/// Who committed what.
type Made = (Hotkey, Vec<Vec<u8>>);

/// The place of each signer's commitment among a block's signed calls.
type Places = HashMap<Hotkey, u32>;

/// What was read of a block.
#[derive(Clone)]
pub(super) struct PlacesOf {
    hash: BlockHash,
    /// No other block takes its number.
    is_final: bool,
    places: Arc<Places>,
}

/// The members' commitments after a block.
pub(super) async fn commitments(link: &Link, block: Block) -> Result<Arc<Commitments>, ChainError> {
    reading(link, |online| async move {
        let hash = hash_at(link, &online, block).await?;
        let (cell, metagraph) = {
            let caches = &mut *link.caches();
            (cell(&mut caches.commitments, block, hash), cell(&mut caches.metagraphs, block, hash))
        };
        let read = async || {
            let at = at(link, &online, block, hash).await?;
            let members = metagraph.get().map(|metagraph| metagraph.neurons.iter().map(|it| it.hotkey).collect());
            let read = read_commitments(link, &online, &at, members).await;
            read.map(Arc::new).map_err(|failure| failure.at(link, block))
        };
        cell.get_or_try_init(read).await.map(Arc::clone)
    })
    .await
}

/// `members` are known where the block's metagraph was read already.
async fn read_commitments(
    link: &Link,
    online: &Online,
    at: &At,
    members: Option<Vec<Hotkey>>,
) -> Result<Commitments, Failure> {
    let netuid = link.netuid();
    let mut values = Values::new(at, netuid);
    let hotkeys = match members {
        Some(members) => members,
        None => {
            values.want(SUBTENSOR, "SubnetworkN", (netuid,))?;
            values.fetch(online).await?;
            read_hotkeys(online, &mut values, &[]).await?
        }
    };
    for hotkey in &hotkeys {
        values.want("Commitments", "CommitmentOf", (netuid, hotkey.0))?;
    }
    values.fetch(online).await?;
    let mut made: BTreeMap<u64, Vec<Made>> = BTreeMap::new();
    for hotkey in hotkeys {
        if let Some(it) = values.get::<Registration>("Commitments", "CommitmentOf", (netuid, hotkey.0))? {
            made.entry(it.block).or_default().push((hotkey, it.info.into_fields()));
        }
    }
    let places = stream::iter(made.keys().copied().map(|block| places(link, online, at, Block(block))));
    let places: Vec<Arc<Places>> = places.buffered(BODIES_AT_ONCE).try_collect().await?;
    let mut commitments = Commitments::new();
    for ((block, of_block), places) in made.into_iter().zip(places) {
        for (hotkey, fields) in of_block {
            // One that came with other calls in one envelope is not found by its signer: it counts as the block's last.
            let index = places.get(&hotkey).copied().unwrap_or(u32::MAX);
            commitments.insert(hotkey, Committed { block: Block(block), index, fields });
        }
    }
    Ok(commitments)
}

/// The places of a block's commitments. The chain's storage does not tell which of two of one block came first; its
/// body does, and every node keeps bodies for longer than states.
async fn places(link: &Link, online: &Online, at: &At, block: Block) -> Result<Arc<Places>, Failure> {
    let known = link.caches().places.get(&block.0).cloned();
    if let Some(known) = known.as_ref().filter(|known| known.is_final) {
        return Ok(Arc::clone(&known.places));
    }
    let is_final = block <= link.finalized().number;
    let Some(hash) = hash_of(online, block).await? else { return Ok(Arc::default()) };
    let places = match known.filter(|known| known.hash == hash) {
        Some(known) => known.places,
        None => Arc::new(read_places(link, online, at, block, hash).await?),
    };
    let read = PlacesOf { hash, is_final, places: Arc::clone(&places) };
    // As many as there can be members, each with a block of its own.
    remember(&mut link.caches().places, block, read, usize::from(UIDS_MAX));
    Ok(places)
}

async fn read_places(link: &Link, online: &Online, at: &At, block: Block, hash: BlockHash) -> Result<Places, Failure> {
    let body = answer(online.rpc.chain_get_block(Some(H256(hash.0)))).await?;
    let extrinsics = body.map(|body| body.block.extrinsics).unwrap_or_default();
    // The runtime that read them may be an older one, whose state may be gone; calls move rarely.
    let of_block = online.at(block, hash).await.ok();
    let metadata = of_block.as_ref().unwrap_or(at).metadata_ref();
    let signed = extrinsics.iter().filter(|extrinsic| extrinsic::is_signed(extrinsic));
    let opened =
        signed.zip(0..).filter_map(|(extrinsic, place)| Some((extrinsic::open(metadata, extrinsic).ok()?, place)));
    let of_subnet = |call: &Call| matches!(call, Call::SetCommitment { netuid, .. } if *netuid == link.netuid());
    Ok(opened.filter(|(opened, _)| of_subnet(&opened.call)).map(|(opened, place)| (opened.signer, place)).collect())
}
