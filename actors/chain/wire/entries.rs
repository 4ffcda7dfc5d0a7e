//! Every storage entry that a client of a subnet reads, of one ledger.
//!
//! The whole state is encoded at each block and compared with the block before: a subnet has at most a few thousand
//! entries, and what is derived anew each time cannot drift from the ledger. Entries that the runtime does not have are
//! left out, as that runtime would.

use std::collections::BTreeMap;

use convoke::chain::commit_reveal::COMMIT_REVEAL_VERSION;
use convoke::chain::timelock::Beacon;
use convoke::chain::{Ledger, Metagraph, Neuron};
use convoke::terms::Uid;
use subxt::ext::codec::Encode;
use subxt::ext::frame_decode::storage::IntoEncodableValues;
use subxt::ext::scale_encode::EncodeAsType;
use subxt::ext::scale_value::Value;

use super::schema::{self, DRAND, EPOCH_INDEX, LAST_EPOCH, PENDING_EPOCH, SUBTENSOR};
use super::{Runtime, WireError, beacon, fields};

/// Storage keys and values.
pub(in crate::chain) type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// What the ledger does not say of its last block.
pub(in crate::chain) struct OfBlock<'a> {
    pub(in crate::chain) parent_hash: [u8; 32],
    pub(in crate::chain) events: &'a [Value],
    /// The beacon that the chain follows; it never changes.
    pub(in crate::chain) beacon: &'a Beacon,
}

struct Writer<'a> {
    runtime: &'a Runtime,
    netuid: u16,
    entries: Entries,
}

impl Writer<'_> {
    fn put(
        &mut self,
        pallet: &str,
        entry: &str,
        keys: impl IntoEncodableValues,
        value: &impl EncodeAsType,
    ) -> Result<(), WireError> {
        let metadata = self.runtime.metadata();
        if schema::has(metadata, pallet, entry) {
            let value = schema::encode(metadata, pallet, entry, value)?;
            self.entries.insert(schema::key(metadata, pallet, entry, keys)?, value);
        }
        Ok(())
    }

    /// A value of the subnet.
    fn subnet(&mut self, entry: &str, value: &impl EncodeAsType) -> Result<(), WireError> {
        self.put(SUBTENSOR, entry, (self.netuid,), value)
    }

    fn schedule(&mut self, entry: &str, value: u64) {
        self.entries.insert(schema::schedule_key(entry, self.netuid), value.encode());
    }
}

/// The storage after the ledger's last block.
pub(in crate::chain) fn entries(
    runtime: &Runtime,
    ledger: &Ledger,
    of_block: &OfBlock<'_>,
) -> Result<Entries, WireError> {
    let mut writer = Writer { runtime, netuid: ledger.netuid(), entries: Entries::new() };
    let metagraph = ledger.metagraph();
    put_system(&mut writer, ledger, of_block)?;
    put_hyperparameters(&mut writer, &metagraph)?;
    put_epochs(&mut writer, ledger, &metagraph)?;
    put_columns(&mut writer, &metagraph.neurons)?;
    for neuron in &metagraph.neurons {
        put_neuron(&mut writer, neuron, ledger.weights(neuron.uid))?;
    }
    put_commitments(&mut writer, ledger)?;
    put_open_commits(&mut writer, ledger)?;
    put_beacon(&mut writer, ledger, of_block.beacon)?;
    Ok(writer.entries)
}

fn put_system(writer: &mut Writer<'_>, ledger: &Ledger, of_block: &OfBlock<'_>) -> Result<(), WireError> {
    let header = ledger.header();
    writer.put("System", "Number", (), &header.number.0)?;
    writer.put("System", "ParentHash", (), &of_block.parent_hash)?;
    writer.put("System", "Events", (), &of_block.events)?;
    writer.put("System", "EventCount", (), &(of_block.events.len() as u64))?;
    writer.put("Timestamp", "Now", (), &header.timestamp_ms)?;
    for account in ledger.accounts() {
        let number = |value: u64| Value::u128(value.into());
        let data = [("free", ledger.balance(&account)), ("reserved", 0), ("frozen", 0)];
        let mut data: Vec<_> = data.map(|(name, value)| (name, number(value))).into();
        data.push(("flags", Value::u128(1 << 127)));
        let info = Value::named_composite([
            ("nonce", number(ledger.nonce(&account))),
            ("consumers", number(0)),
            ("providers", number(1)),
            ("sufficients", number(0)),
            ("data", Value::named_composite(data)),
        ]);
        writer.put("System", "Account", (account.0,), &info)?;
    }
    Ok(())
}

fn put_hyperparameters(writer: &mut Writer<'_>, metagraph: &Metagraph) -> Result<(), WireError> {
    let hyper = &metagraph.hyperparameters;
    writer.subnet("NetworksAdded", &true)?;
    writer.subnet("Tempo", &hyper.tempo)?;
    writer.subnet("MaxAllowedUids", &hyper.max_allowed_uids)?;
    writer.subnet("MinAllowedUids", &hyper.min_allowed_uids)?;
    writer.subnet("MaxAllowedValidators", &hyper.max_allowed_validators)?;
    writer.subnet("ImmunityPeriod", &hyper.immunity_period)?;
    writer.subnet("MinNonImmuneUids", &hyper.min_non_immune_uids)?;
    writer.subnet("NetworkRegistrationAllowed", &hyper.registration_allowed)?;
    writer.subnet("MinBurn", &hyper.min_burn)?;
    writer.subnet("MaxBurn", &hyper.max_burn)?;
    writer.subnet("Burn", &metagraph.burn)?;
    writer.subnet("WeightsSetRateLimit", &hyper.weights_set_rate_limit)?;
    writer.subnet("MinAllowedWeights", &hyper.min_allowed_weights)?;
    writer.subnet("MaxWeightsLimit", &hyper.max_weights_limit)?;
    writer.subnet("WeightsVersionKey", &hyper.weights_version_key)?;
    writer.subnet("CommitRevealWeightsEnabled", &hyper.commit_reveal_weights_enabled)?;
    writer.subnet("RevealPeriodEpochs", &hyper.reveal_period_epochs)?;
    writer.put(SUBTENSOR, "CommitRevealWeightsVersion", (), &COMMIT_REVEAL_VERSION)?;
    writer.subnet("Kappa", &hyper.kappa)?;
    writer.subnet("BondsMovingAverage", &hyper.bonds_moving_average)?;
    writer.subnet("BondsPenalty", &hyper.bonds_penalty)?;
    writer.subnet("ActivityCutoff", &u16::try_from(hyper.activity_cutoff).unwrap_or(u16::MAX))?;
    writer.put(SUBTENSOR, "StakeThreshold", (), &hyper.stake_threshold)?;
    writer.put(SUBTENSOR, "SubnetOwnerCut", (), &hyper.owner_cut)?;
    writer.put("Commitments", "MaxSpace", (), &hyper.commitment_space_max)
}

fn put_epochs(writer: &mut Writer<'_>, ledger: &Ledger, metagraph: &Metagraph) -> Result<(), WireError> {
    let (since, pending) = ledger.epoch_counters();
    writer.subnet("BlocksSinceLastStep", &since)?;
    writer.subnet("LastMechansimStepBlock", &metagraph.last_epoch.0)?;
    writer.schedule(EPOCH_INDEX, metagraph.epoch_index);
    writer.schedule(LAST_EPOCH, metagraph.last_epoch.0);
    writer.schedule(PENDING_EPOCH, pending);
    Ok(())
}

/// What the chain keeps as one vector over all uids.
fn put_columns(writer: &mut Writer<'_>, neurons: &[Neuron]) -> Result<(), WireError> {
    let n = u16::try_from(neurons.len()).unwrap_or(u16::MAX);
    writer.subnet("SubnetworkN", &n)?;
    let total: u128 = neurons.iter().map(|neuron| u128::from(neuron.stake.0)).sum();
    let share = |neuron: &Neuron| {
        let share = u128::from(neuron.stake.0) * u128::from(u16::MAX) / total.max(1);
        u16::try_from(share).unwrap_or(u16::MAX)
    };
    let column = |of: fn(&Neuron) -> u16| neurons.iter().map(of).collect::<Vec<_>>();
    writer.subnet("StakeWeight", &neurons.iter().map(share).collect::<Vec<_>>())?;
    writer.subnet("Incentive", &column(|neuron| neuron.incentive))?;
    writer.subnet("Dividends", &column(|neuron| neuron.dividends))?;
    writer.subnet("Consensus", &column(|neuron| neuron.consensus))?;
    writer.subnet("ValidatorTrust", &column(|neuron| neuron.validator_trust))?;
    writer.subnet("ValidatorPermit", &neurons.iter().map(|neuron| neuron.permit).collect::<Vec<_>>())?;
    writer.subnet("Active", &neurons.iter().map(|neuron| neuron.active).collect::<Vec<_>>())?;
    writer.subnet("LastUpdate", &neurons.iter().map(|neuron| neuron.last_update.0).collect::<Vec<_>>())?;
    writer.subnet("Emission", &neurons.iter().map(|neuron| neuron.emission).collect::<Vec<_>>())
}

fn put_neuron(writer: &mut Writer<'_>, neuron: &Neuron, weights: &[(u16, u16)]) -> Result<(), WireError> {
    let (netuid, hotkey, Uid(uid)) = (writer.netuid, neuron.hotkey.0, neuron.uid);
    writer.put(SUBTENSOR, "Keys", (netuid, uid), &hotkey)?;
    writer.put(SUBTENSOR, "Uids", (netuid, hotkey), &uid)?;
    writer.put(SUBTENSOR, "BlockAtRegistration", (netuid, uid), &neuron.registered_at.0)?;
    writer.put(SUBTENSOR, "Owner", (hotkey,), &neuron.coldkey.0)?;
    writer.put(SUBTENSOR, "TotalHotkeyAlpha", (hotkey, netuid), &neuron.stake.0)?;
    if !weights.is_empty() {
        writer.put(SUBTENSOR, "Weights", (netuid, uid), &weights)?;
    }
    Ok(())
}

fn put_commitments(writer: &mut Writer<'_>, ledger: &Ledger) -> Result<(), WireError> {
    for (hotkey, committed) in ledger.commitments() {
        let block = Value::u128(committed.block.0.into());
        let registration = Value::named_composite([
            ("deposit", Value::u128(0)),
            ("block", block.clone()),
            ("info", fields::to_info(&committed.fields)),
        ]);
        writer.put("Commitments", "CommitmentOf", (writer.netuid, hotkey.0), &registration)?;
        writer.put("Commitments", "LastCommitment", (writer.netuid, hotkey.0), &block)?;
    }
    Ok(())
}

/// Weights that wait to be opened, by the epoch they were committed in.
fn put_open_commits(writer: &mut Writer<'_>, ledger: &Ledger) -> Result<(), WireError> {
    for (epoch, commits) in ledger.timelocked_commits() {
        let commits: Vec<_> =
            commits.iter().map(|it| (it.hotkey.0, it.block.0, it.commit.clone(), it.reveal_round)).collect();
        if !commits.is_empty() {
            writer.put(SUBTENSOR, "TimelockedWeightCommits", (writer.netuid, *epoch), &commits)?;
        }
    }
    Ok(())
}

fn put_beacon(writer: &mut Writer<'_>, ledger: &Ledger, beacon: &Beacon) -> Result<(), WireError> {
    writer.put(DRAND, "BeaconConfig", (), &beacon::to_config(beacon))?;
    writer.put(DRAND, "LastStoredRound", (), &ledger.last_round())?;
    let mut oldest = None;
    for pulse in ledger.pulses() {
        oldest = oldest.or(Some(pulse.round));
        writer.put(DRAND, "Pulses", (pulse.round,), &beacon::to_pulse(&pulse))?;
    }
    writer.put(DRAND, "OldestStoredRound", (), &oldest.unwrap_or(0))
}
