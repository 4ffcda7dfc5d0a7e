//! What a node reads of the chain at a block: plain storage, by name, in a few requests whatever the subnet's size.
//!
//! Plain storage is there in every runtime since spec 185, and reads a full subnet (256 neurons, 128 validators) in some
//! milliseconds; so the runtime's own metagraph, whose columns are numbered anew from one runtime to the next, is not used.

use std::collections::BTreeMap;
use std::sync::Arc;

use convoke::chain::{AccountId, Hyperparameters, Neuron};
use convoke::terms::{Block, BlockHash, Hotkey, Stake, Uid};
use subxt::ext::scale_decode::DecodeAsType;
use subxt::rpcs::methods::legacy::NumberOrHex;

use tokio::sync::OnceCell;

use super::commitments::PlacesOf;
use super::failure::Failure;
use super::link::{Link, Online, answer};
use super::stake;
use super::values::{At, Values, read_hotkeys};
use crate::chain::server::NODE_NAME;
use crate::chain::wire::schema::SUBTENSOR;
use crate::chain::{ChainError, Commitments, Metagraph};

/// Connections that one read may use up.
const ATTEMPTS: usize = 3;
/// Blocks whose reads are remembered: the last of a round, and its edges.
pub(super) const REMEMBERED: usize = 64;

/// What is read of a block: once, whoever asks for it and however many at the same time. A block is named by its hash
/// too, since a fork may replace it.
pub(super) type Cells<T> = BTreeMap<(u64, BlockHash), Arc<OnceCell<Arc<T>>>>;

/// What was read.
#[derive(Default)]
pub(super) struct Caches {
    pub(super) metagraphs: Cells<Metagraph>,
    pub(super) commitments: Cells<Commitments>,
    /// The hashes of blocks that will not be replaced.
    hashes: BTreeMap<u64, BlockHash>,
    /// The places of the commitments that a block made.
    pub(super) places: BTreeMap<u64, PlacesOf>,
}

/// Where a block's reading is, or is to be; there are those of the youngest [`REMEMBERED`].
pub(super) fn cell<T>(cells: &mut Cells<T>, block: Block, hash: BlockHash) -> Arc<OnceCell<Arc<T>>> {
    let cell = Arc::clone(cells.entry((block.0, hash)).or_default());
    while cells.len() > REMEMBERED {
        cells.pop_first();
    }
    cell
}

/// Keeps a value of a block, and those of the youngest `n` blocks.
pub(super) fn remember<T>(cache: &mut BTreeMap<u64, T>, block: Block, value: T, n: usize) {
    cache.insert(block.0, value);
    while cache.len() > n {
        cache.pop_first();
    }
}

/// Reads, on as many connections as it takes.
pub(super) async fn reading<T, F: Future<Output = Result<T, Failure>>>(
    link: &Link,
    read: impl Fn(Arc<Online>) -> F,
) -> Result<T, ChainError> {
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        let online = link.online().await?;
        match read(Arc::clone(&online)).await {
            Ok(value) => return Ok(value),
            Err(Failure::Answer(error)) => return Err(error),
            Err(Failure::Lost(reason)) => {
                link.lose(&online);
                last = reason;
                link.replaced(online.generation).await;
            }
        }
    }
    Err(ChainError::Unreachable { reason: last })
}

/// A block's hash; `None` while it is not there.
pub(super) async fn block_hash(link: &Link, number: Block) -> Result<Option<BlockHash>, ChainError> {
    reading(link, |online| async move { hash_of(&online, number).await }).await
}

pub(super) async fn hash_of(online: &Online, number: Block) -> Result<Option<BlockHash>, Failure> {
    let hash = answer(online.rpc.chain_get_block_hash(Some(NumberOrHex::Number(number.0)))).await?;
    Ok(hash.map(|hash| BlockHash(hash.0)))
}

/// The hash of a block that must be there; of one that is final it is asked once.
pub(super) async fn hash_at(link: &Link, online: &Online, block: Block) -> Result<BlockHash, Failure> {
    let known = link.caches().hashes.get(&block.0).copied();
    if let Some(known) = known {
        return Ok(known);
    }
    let is_final = block <= link.finalized().number;
    let hash = hash_of(online, block).await?;
    let hash = hash.ok_or_else(|| Failure::Answer(ChainError::NotYet { block, best: link.best().number }))?;
    if is_final {
        remember(&mut link.caches().hashes, block, hash, REMEMBERED);
    }
    Ok(hash)
}

/// The chain at a block that must be there.
pub(super) async fn at(link: &Link, online: &Online, block: Block, hash: BlockHash) -> Result<At, Failure> {
    online.at(block, hash).await.map_err(|failure| failure.at(link, block))
}

/// The subnet after a block.
pub(super) async fn metagraph(link: &Link, block: Block) -> Result<Arc<Metagraph>, ChainError> {
    reading(link, |online| async move {
        let hash = hash_at(link, &online, block).await?;
        let cell = cell(&mut link.caches().metagraphs, block, hash);
        let read = async || {
            let at = at(link, &online, block, hash).await?;
            let read = read_metagraph(&online, &at, link.netuid(), block).await;
            read.map(Arc::new).map_err(|failure| failure.at(link, block))
        };
        cell.get_or_try_init(read).await.map(Arc::clone)
    })
    .await
}

/// What is read of `System.Account`.
#[derive(DecodeAsType)]
#[decode_as_type(crate_path = "subxt::ext::scale_decode")]
struct Account {
    data: Money,
}

#[derive(DecodeAsType)]
#[decode_as_type(crate_path = "subxt::ext::scale_decode")]
struct Money {
    free: u64,
}

/// The account's free balance after a block, in rao.
pub(super) async fn balance(link: &Link, block: Block, account: &AccountId) -> Result<u64, ChainError> {
    reading(link, |online| async move {
        let at = at(link, &online, block, hash_at(link, &online, block).await?).await?;
        let mut values = Values::new(&at, link.netuid());
        values.want("System", "Account", (account.0,))?;
        values.fetch(&online).await.map_err(|failure| failure.at(link, block))?;
        Ok(values.get::<Account>("System", "Account", (account.0,))?.map_or(0, |account| account.data.free))
    })
    .await
}

/// Whether the node says that it serves a development chain of ours.
pub(super) async fn is_development(link: &Link) -> Result<bool, ChainError> {
    reading(link, |online| async move { Ok(answer(online.rpc.system_name()).await? == NODE_NAME) }).await
}

/// Whether the subnet is on this chain.
pub(super) async fn has_subnet(link: &Link, block: Block) -> Result<bool, ChainError> {
    reading(link, |online| async move {
        let at = at(link, &online, block, hash_at(link, &online, block).await?).await?;
        let mut values = Values::new(&at, link.netuid());
        values.want(SUBTENSOR, "NetworksAdded", (link.netuid(),))?;
        values.fetch(&online).await.map_err(|failure| failure.at(link, block))?;
        // A runtime that does not say it is believed to have it.
        values.subnet("NetworksAdded", true)
    })
    .await
}

/// What is read of a subnet by its number alone.
const OF_SUBNET: [&str; 29] = [
    "SubnetworkN",
    "MaxAllowedUids",
    "MinAllowedUids",
    "MaxAllowedValidators",
    "ImmunityPeriod",
    "MinNonImmuneUids",
    "NetworkRegistrationAllowed",
    "MinBurn",
    "MaxBurn",
    "Burn",
    "WeightsSetRateLimit",
    "MinAllowedWeights",
    "MaxWeightsLimit",
    "WeightsVersionKey",
    "CommitRevealWeightsEnabled",
    "RevealPeriodEpochs",
    "Kappa",
    "BondsMovingAverage",
    "BondsPenalty",
    "ActivityCutoff",
    "BurnHalfLife",
    "Incentive",
    "Dividends",
    "Consensus",
    "ValidatorTrust",
    "ValidatorPermit",
    "Active",
    "LastUpdate",
    "Emission",
];

async fn read_metagraph(online: &Online, at: &At, netuid: u16, block: Block) -> Result<Metagraph, Failure> {
    let mut values = Values::new(at, netuid);
    for entry in OF_SUBNET {
        values.want(SUBTENSOR, entry, (netuid,))?;
    }
    values.want(SUBTENSOR, "StakeThreshold", ())?;
    values.want(SUBTENSOR, "SubnetOwnerCut", ())?;
    values.want(SUBTENSOR, "TaoWeight", ())?;
    values.want("Commitments", "MaxSpace", ())?;
    values.want_schedule()?;
    values.fetch(online).await?;
    let hotkeys = read_hotkeys(online, &mut values, &["BlockAtRegistration"]).await?;
    for hotkey in &hotkeys {
        values.want(SUBTENSOR, "Owner", (hotkey.0,))?;
    }
    let permit: Vec<bool> = values.subnet("ValidatorPermit", Vec::new())?;
    stake::want(&mut values, &hotkeys, &permit)?;
    values.fetch(online).await?;
    let stakes = stake::read(online, &mut values, &hotkeys, &permit).await?;
    let hyperparameters = read_hyperparameters(&values)?;
    let schedule = values.schedule(block)?;
    Ok(Metagraph {
        block,
        neurons: read_neurons(&values, &hotkeys, &stakes)?,
        hyperparameters,
        epoch_index: schedule.epoch_index,
        last_epoch: Block(schedule.last_epoch),
        next_epoch: schedule.next(),
        burn: values.subnet("Burn", 0)?,
    })
}

/// The numbers that this runtime keeps; the others are what Subtensor's are for a new subnet.
fn read_hyperparameters(values: &Values<'_>) -> Result<Hyperparameters, Failure> {
    let new = Hyperparameters::default();
    Ok(Hyperparameters {
        tempo: values.subnet("Tempo", new.tempo)?,
        max_allowed_uids: values.subnet("MaxAllowedUids", new.max_allowed_uids)?,
        min_allowed_uids: values.subnet("MinAllowedUids", new.min_allowed_uids)?,
        max_allowed_validators: values.subnet("MaxAllowedValidators", new.max_allowed_validators)?,
        immunity_period: values.subnet("ImmunityPeriod", new.immunity_period)?,
        min_non_immune_uids: values.subnet("MinNonImmuneUids", new.min_non_immune_uids)?,
        registration_allowed: values.subnet("NetworkRegistrationAllowed", new.registration_allowed)?,
        min_burn: values.subnet("MinBurn", new.min_burn)?,
        max_burn: values.subnet("MaxBurn", new.max_burn)?,
        burn_half_life: values.subnet("BurnHalfLife", new.burn_half_life)?,
        burn_increase_milli: new.burn_increase_milli,
        weights_set_rate_limit: values.subnet("WeightsSetRateLimit", new.weights_set_rate_limit)?,
        min_allowed_weights: values.subnet("MinAllowedWeights", new.min_allowed_weights)?,
        max_weights_limit: values.subnet("MaxWeightsLimit", new.max_weights_limit)?,
        weights_version_key: values.subnet("WeightsVersionKey", new.weights_version_key)?,
        stake_threshold: values.plain(SUBTENSOR, "StakeThreshold", new.stake_threshold)?,
        commit_reveal_weights_enabled: values
            .subnet("CommitRevealWeightsEnabled", new.commit_reveal_weights_enabled)?,
        reveal_period_epochs: values.subnet("RevealPeriodEpochs", new.reveal_period_epochs)?,
        kappa: values.subnet("Kappa", new.kappa)?,
        bonds_moving_average: values.subnet("BondsMovingAverage", new.bonds_moving_average)?,
        bonds_penalty: values.subnet("BondsPenalty", new.bonds_penalty)?,
        activity_cutoff: values.subnet("ActivityCutoff", new.activity_cutoff)?,
        commitment_space_max: values.plain("Commitments", "MaxSpace", new.commitment_space_max)?,
        emission_per_block: new.emission_per_block,
        owner_cut: values.plain(SUBTENSOR, "SubnetOwnerCut", new.owner_cut)?,
    })
}

fn read_neurons(values: &Values<'_>, hotkeys: &[Hotkey], stakes: &[Stake]) -> Result<Vec<Neuron>, Failure> {
    let netuid = values.netuid;
    let column = |entry: &str| values.subnet::<Vec<u16>>(entry, Vec::new());
    let (incentive, dividends) = (column("Incentive")?, column("Dividends")?);
    let (consensus, validator_trust) = (column("Consensus")?, column("ValidatorTrust")?);
    let permit: Vec<bool> = values.subnet("ValidatorPermit", Vec::new())?;
    let active: Vec<bool> = values.subnet("Active", Vec::new())?;
    let last_update: Vec<u64> = values.subnet("LastUpdate", Vec::new())?;
    let emission: Vec<u64> = values.subnet("Emission", Vec::new())?;
    let neuron = |(hotkey, uid): (&Hotkey, u16)| {
        let place = usize::from(uid);
        let share = |column: &[u16]| column.get(place).copied().unwrap_or(0);
        let registered_at = values.get(SUBTENSOR, "BlockAtRegistration", (netuid, uid))?.unwrap_or(0);
        Ok(Neuron {
            uid: Uid(uid),
            hotkey: *hotkey,
            coldkey: Hotkey(values.get(SUBTENSOR, "Owner", (hotkey.0,))?.unwrap_or_default()),
            stake: stakes.get(place).copied().unwrap_or_default(),
            permit: permit.get(place).copied().unwrap_or(false),
            active: active.get(place).copied().unwrap_or(false),
            registered_at: Block(registered_at),
            last_update: Block(last_update.get(place).copied().unwrap_or(0)),
            incentive: share(&incentive),
            dividends: share(&dividends),
            consensus: share(&consensus),
            validator_trust: share(&validator_trust),
            emission: emission.get(place).copied().unwrap_or(0),
        })
    };
    hotkeys.iter().zip(0..).map(neuron).collect()
}
