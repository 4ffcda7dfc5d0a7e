//! Commit-reveal: weights are promised first and read later, so that nobody can copy them while they are worth copying.
//!
//! Two forms, as `pallet-subtensor` has them (spec 425). A *timelocked* commit is a ciphertext that the chain opens by
//! itself, in the block whose epoch is the commit's plus the reveal period, with the beacon's pulse of the round it was
//! locked until; while the pulse is missing it tries again in every block of that epoch, and then drops it. A *hashed*
//! commit is revealed by its author, in that epoch alone. Either way the commit is what the rate limit holds back and
//! what dates the neuron's weights; the reveal passes every other check of `set_weights`.

use std::collections::BTreeMap;

use blake2::digest::consts::U32;
use blake2::{Blake2b, Digest};
use rand_core::{CryptoRng, RngCore};
use serde::{Deserialize, Serialize};

use super::call::{Call, DispatchError};
use super::schedule::{EpochSchedule, ScheduleError};
use super::state::Event;
use super::subnet::Subnet;
use super::timelock::{self, Beacon, LockedWeights, Pulse, SIGNATURE_BYTES, TimelockError};
use super::weights::{Weights, ensure, passes_rate_limit, store_weights};
use crate::terms::{Block, Hotkey, Uid};

/// The version of timelocked commits that the chain takes.
pub const COMMIT_REVEAL_VERSION: u16 = 4;

/// Commits of one hotkey that may wait at once.
const OPEN_COMMITS_MAX: usize = 10;

/// Pulses kept beside those that open commits wait for. A live chain keeps a week of them.
const PULSES_KEPT: usize = 256;

/// Blocks after the first in which the chain would reveal until which weights stay locked: what an epoch that comes
/// early and a clock that is wrong may cost. The chain tries again in each of them.
const MARGIN_BLOCKS: u64 = 3;

/// What a validator knows of the chain when it locks its weights.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    /// The subnet.
    pub netuid: u16,
    /// The best block.
    pub head: Block,
    /// The epoch schedule after it.
    pub schedule: &'a EpochSchedule,
    /// Epochs between commit and reveal.
    pub reveal_period_epochs: u64,
    /// The beacon that the chain follows.
    pub beacon: &'a Beacon,
    /// When the best block was made, milliseconds since 1970.
    pub now_ms: u64,
    /// How long a block takes.
    pub block_time_ms: u64,
}

/// Why weights cannot be locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// Nobody can tell when they would be revealed.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// They cannot be encrypted.
    #[error(transparent)]
    Timelock(#[from] TimelockError),
}

impl Moment<'_> {
    /// The call that promises these weights, locked until the chain will reveal them. Made in the next block; later, it
    /// may have to be made anew.
    ///
    /// # Errors
    /// A subnet that reveals nothing, or weights that the chain would not take.
    pub fn promise(&self, weights: &LockedWeights, rng: &mut (impl RngCore + CryptoRng)) -> Result<Call, LockError> {
        let reveal = self.schedule.reveal_block(self.head, self.reveal_period_epochs)?;
        // The last block of its epoch is the last in which the chain tries.
        let margin = MARGIN_BLOCKS.min(u64::from(self.schedule.tempo).saturating_sub(1));
        let blocks = reveal.0.saturating_sub(self.head.0).saturating_add(margin);
        let reveal_round = self.beacon.reveal_round(self.now_ms, blocks, self.block_time_ms);
        let commit = self.beacon.lock(reveal_round, &weights.encode(), rng)?;
        let (netuid, commit_reveal_version) = (self.netuid, COMMIT_REVEAL_VERSION);
        Ok(Call::CommitTimelockedWeights { netuid, commit, reveal_round, commit_reveal_version })
    }
}

/// Weights that the chain will open by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelockedCommit {
    /// Whose.
    pub hotkey: Hotkey,
    /// When.
    pub block: Block,
    /// The ciphertext.
    pub commit: Vec<u8>,
    /// The round whose pulse opens it.
    pub reveal_round: u64,
}

/// The hash of weights that its author will reveal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashedCommit {
    /// BLAKE2b-256 over who, where, what and a salt.
    pub hash: [u8; 32],
    /// The epoch it was made in.
    pub epoch: u64,
    /// When.
    pub block: Block,
}

/// Commits that wait for their reveal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OpenCommits {
    /// By the epoch they were made in, in order.
    pub(super) timelocked: BTreeMap<u64, Vec<TimelockedCommit>>,
    /// By hotkey, in order.
    pub(super) hashed: BTreeMap<Hotkey, Vec<HashedCommit>>,
}

/// The beacon's pulses as the chain holds them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pulses {
    by_round: BTreeMap<u64, Vec<u8>>,
    last_round: u64,
}

impl Pulses {
    /// Takes a pulse, if its round comes after every other.
    pub(super) fn insert(&mut self, pulse: &Pulse) {
        if pulse.round > self.last_round {
            self.last_round = pulse.round;
            self.by_round.insert(pulse.round, pulse.signature.to_vec());
        }
    }

    pub(super) fn last_round(&self) -> u64 {
        self.last_round
    }

    pub(super) fn get(&self, round: u64) -> Option<Pulse> {
        let signature: [u8; SIGNATURE_BYTES] = self.by_round.get(&round)?.as_slice().try_into().ok()?;
        Some(Pulse { round, signature })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Pulse> {
        self.by_round.keys().filter_map(|round| self.get(*round))
    }

    /// Forgets what is old and awaited by no commit.
    pub(super) fn forget(&mut self, open: &OpenCommits) {
        let oldest_kept = self.by_round.keys().rev().nth(PULSES_KEPT - 1).copied().unwrap_or(0);
        let waits = |round: u64| open.timelocked.values().flatten().any(|commit| commit.reveal_round == round);
        self.by_round.retain(|&round, _| round >= oldest_kept || waits(round));
    }
}

impl OpenCommits {
    /// The block of the hotkey's earliest commit that may still be revealed in this epoch or later: its weights are as
    /// old as that.
    pub(super) fn earliest(&self, epoch: u64, reveal_period: u64) -> BTreeMap<Hotkey, Block> {
        let is_open = |made_in: u64| epoch <= made_in.saturating_add(reveal_period);
        let timelocked =
            self.timelocked.iter().filter(|(made_in, _)| is_open(**made_in)).flat_map(|(_, commits)| commits);
        let timelocked = timelocked.map(|commit| (commit.hotkey, commit.block));
        let hashed = self.hashed.iter().flat_map(|(hotkey, commits)| commits.iter().map(|commit| (*hotkey, commit)));
        let hashed = hashed.filter(|(_, commit)| is_open(commit.epoch)).map(|(hotkey, commit)| (hotkey, commit.block));
        let mut earliest = BTreeMap::new();
        for (hotkey, block) in timelocked.chain(hashed) {
            let held = earliest.entry(hotkey).or_insert(block);
            *held = block.min(*held);
        }
        earliest
    }
}

/// The arguments of `commit_timelocked_weights`.
pub(super) struct Timelocked<'a> {
    pub(super) netuid: u16,
    pub(super) commit: &'a [u8],
    pub(super) reveal_round: u64,
    pub(super) version: u16,
}

/// `commit_timelocked_weights`: keeps the ciphertext until its epoch.
pub(super) fn commit_timelocked(
    subnet: &mut Subnet,
    hotkey: Hotkey,
    call: &Timelocked<'_>,
    block: Block,
) -> Result<Event, DispatchError> {
    ensure(call.netuid == subnet.netuid, DispatchError::SubnetNotExists)?;
    ensure(subnet.hyperparameters.commit_reveal_weights_enabled, DispatchError::CommitRevealDisabled)?;
    ensure(call.version == COMMIT_REVEAL_VERSION, DispatchError::IncorrectCommitRevealVersion)?;
    let uid = committer(subnet, &hotkey, block)?;
    let epoch = subnet.schedule().epoch_at(block);
    let waiting = subnet.open_commits.timelocked.entry(epoch).or_default();
    let n_open = waiting.iter().filter(|commit| commit.hotkey == hotkey).count();
    ensure(n_open < OPEN_COMMITS_MAX, DispatchError::TooManyUnrevealedCommits)?;
    let (commit, reveal_round) = (call.commit.to_vec(), call.reveal_round);
    let commit_hash = blake2_256(&commit);
    waiting.push(TimelockedCommit { hotkey, block, commit, reveal_round });
    date(subnet, uid, block);
    Ok(Event::TimelockedWeightsCommitted { who: hotkey, commit_hash, reveal_round })
}

/// `commit_weights`: keeps the hash until its author reveals what it is of.
pub(super) fn commit_hashed(
    subnet: &mut Subnet,
    hotkey: Hotkey,
    netuid: u16,
    hash: [u8; 32],
    block: Block,
) -> Result<Event, DispatchError> {
    ensure(netuid == subnet.netuid, DispatchError::SubnetNotExists)?;
    ensure(subnet.hyperparameters.commit_reveal_weights_enabled, DispatchError::CommitRevealDisabled)?;
    let uid = committer(subnet, &hotkey, block)?;
    let epoch = subnet.schedule().epoch_at(block);
    let period = subnet.hyperparameters.reveal_period_epochs;
    let commits = subnet.open_commits.hashed.get(&hotkey).map_or(&[][..], Vec::as_slice);
    let n_expired = n_expired(commits, epoch, period);
    ensure(commits.len() - n_expired < OPEN_COMMITS_MAX, DispatchError::TooManyUnrevealedCommits)?;
    let commits = subnet.open_commits.hashed.entry(hotkey).or_default();
    commits.drain(..n_expired);
    commits.push(HashedCommit { hash, epoch, block });
    date(subnet, uid, block);
    Ok(Event::WeightsCommitted { who: hotkey, commit_hash: hash })
}

fn committer(subnet: &Subnet, hotkey: &Hotkey, block: Block) -> Result<Uid, DispatchError> {
    let uid = subnet.uid(hotkey).ok_or(DispatchError::HotKeyNotRegisteredInSubNet)?;
    ensure(passes_rate_limit(subnet, uid, block), DispatchError::CommittingWeightsTooFast)?;
    Ok(uid)
}

/// The commit is when the neuron set its weights, whenever they are read.
fn date(subnet: &mut Subnet, uid: Uid, block: Block) {
    subnet.slots[usize::from(uid.0)].last_update = block.0;
}

fn n_expired(commits: &[HashedCommit], epoch: u64, period: u64) -> usize {
    commits.iter().take_while(|commit| epoch > commit.epoch.saturating_add(period)).count()
}

/// What a hashed commit is the hash of.
#[derive(Debug, Clone, Copy)]
pub struct Reveal<'a> {
    /// Uids.
    pub uids: &'a [u16],
    /// One for each, relative.
    pub values: &'a [u16],
    /// So that nobody finds the weights by trying.
    pub salt: &'a [u16],
    /// The version of the rules they were made by.
    pub version_key: u64,
}

impl Reveal<'_> {
    /// BLAKE2b-256 over (hotkey, netuid, uids, values, salt, version) in SCALE: what `commit_weights` takes.
    #[must_use]
    pub fn hash(&self, hotkey: &Hotkey, netuid: u16) -> [u8; 32] {
        let mut bytes = hotkey.0.to_vec();
        bytes.extend_from_slice(&netuid.to_le_bytes());
        for numbers in [self.uids, self.values, self.salt] {
            timelock::put_numbers(&mut bytes, numbers);
        }
        bytes.extend_from_slice(&self.version_key.to_le_bytes());
        blake2_256(&bytes)
    }
}

/// Where a hotkey's commit with this hash stands, as the pool asks: its epoch, if it is known at all.
pub(super) fn epoch_of(subnet: &Subnet, hotkey: &Hotkey, hash: &[u8; 32]) -> Option<u64> {
    let commits = subnet.open_commits.hashed.get(hotkey)?;
    commits.iter().find(|commit| commit.hash == *hash).map(|commit| commit.epoch)
}

/// `reveal_weights`: sets what was committed, and drops it and every commit before it. One that fails changes nothing.
pub(super) fn reveal_hashed(
    subnet: &mut Subnet,
    hotkey: &Hotkey,
    stake: u64,
    netuid: u16,
    reveal: &Reveal<'_>,
    block: Block,
) -> Result<Event, DispatchError> {
    ensure(netuid == subnet.netuid, DispatchError::SubnetNotExists)?;
    ensure(subnet.hyperparameters.commit_reveal_weights_enabled, DispatchError::CommitRevealDisabled)?;
    let commits = subnet.open_commits.hashed.get(hotkey).ok_or(DispatchError::NoWeightsCommitFound)?;
    let (epoch, period) = (subnet.schedule().epoch_at(block), subnet.hyperparameters.reveal_period_epochs);
    let (expired, open) = commits.split_at(n_expired(commits, epoch, period));
    let hash = reveal.hash(hotkey, netuid);
    let is_hash = |commit: &HashedCommit| commit.hash == hash;
    let Some(at) = open.iter().position(is_hash) else {
        let missing = if open.is_empty() {
            DispatchError::NoWeightsCommitFound
        } else {
            DispatchError::InvalidRevealCommitHashNotMatch
        };
        return Err(if expired.iter().any(is_hash) { DispatchError::ExpiredWeightCommit } else { missing });
    };
    ensure(epoch == open[at].epoch.saturating_add(period), DispatchError::RevealTooEarly)?;
    let left = open[at + 1..].to_vec();
    let weights = Weights { netuid, dests: reveal.uids, weights: reveal.values, version_key: reveal.version_key };
    let uid = store_weights(subnet, hotkey, stake, &weights, block)?;
    if left.is_empty() {
        subnet.open_commits.hashed.remove(hotkey);
    } else {
        subnet.open_commits.hashed.insert(*hotkey, left);
    }
    Ok(Event::WeightsRevealed { who: *hotkey, uid, commit_hash: hash })
}

/// What a block does before its epoch: opens the commits whose epoch has come, in their order, and drops those whose
/// epoch has passed. Whatever cannot be opened or set is dropped without a word, as on chain.
pub(super) fn reveal_timelocked(
    subnet: &mut Subnet,
    stakes: &BTreeMap<Hotkey, u64>,
    pulses: &Pulses,
    block: Block,
) -> Vec<Event> {
    let (epoch, period) = (subnet.schedule().epoch_at(block), subnet.hyperparameters.reveal_period_epochs);
    let due = epoch.saturating_sub(period);
    subnet.open_commits.timelocked.retain(|made_in, _| *made_in >= due);
    if epoch < period {
        return Vec::new();
    }
    let mut events = Vec::new();
    let mut waiting = Vec::new();
    for commit in subnet.open_commits.timelocked.remove(&due).unwrap_or_default() {
        let Some(pulse) = pulses.get(commit.reveal_round) else {
            waiting.push(commit);
            continue;
        };
        let opened = timelock::open(&commit.commit, &pulse).and_then(|bytes| LockedWeights::decode(&bytes));
        let Some(weights) = opened.ok().filter(|weights| weights.hotkey == commit.hotkey) else { continue };
        let stake = stakes.get(&commit.hotkey).copied().unwrap_or(0);
        let LockedWeights { hotkey, uids, values, version_key } = &weights;
        let weights = Weights { netuid: subnet.netuid, dests: uids, weights: values, version_key: *version_key };
        if let Ok(uid) = store_weights(subnet, hotkey, stake, &weights, block) {
            events.push(Event::TimelockedWeightsRevealed { who: *hotkey, uid });
        }
    }
    if !waiting.is_empty() {
        subnet.open_commits.timelocked.insert(due, waiting);
    }
    events
}

fn blake2_256(bytes: &[u8]) -> [u8; 32] {
    Blake2b::<U32>::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::timelock::{LOCAL_PERIOD_MS, LocalBeacon, SeededRng};
    use super::*;
    use crate::chain::{Genesis, GenesisNeuron, Invalid, Ledger, SignedCall, Verdict};
    use crate::hotkey::HotkeyPair;
    use crate::terms::BlockHash;

    const NETUID: u16 = 3;
    const DONE: Verdict = Verdict::Included { index: 0, result: Ok(()) };

    fn pair(i: u8) -> HotkeyPair {
        HotkeyPair::from_seed(&[i; 32])
    }

    fn beacon() -> LocalBeacon {
        LocalBeacon::new(&BlockHash([7; 32]), 0, 1000)
    }

    /// Epochs at blocks 10, 20, …; three neurons with permits, the first with the most stake; a commit every four
    /// blocks; no checks in the pool.
    fn ledger(period: u64) -> Ledger {
        let mut genesis = Genesis::new(NETUID, 1, 1_000);
        genesis.pool_checks = false;
        let hyper = &mut genesis.hyperparameters;
        (hyper.tempo, hyper.weights_set_rate_limit) = (10, 4);
        (hyper.commit_reveal_weights_enabled, hyper.reveal_period_epochs) = (true, period);
        let neuron =
            |i: u8| GenesisNeuron { hotkey: pair(i).hotkey(), coldkey: pair(100).hotkey(), stake: 90 / u64::from(i) };
        genesis.neurons = vec![neuron(1), neuron(2), neuron(3)];
        Ledger::new(&genesis).unwrap()
    }

    fn sign(ledger: &Ledger, i: u8, call: Call) -> SignedCall {
        let pair = pair(i);
        SignedCall::sign(&pair, &ledger.genesis(), &ledger.era(), ledger.nonce(&pair.hotkey()), call)
    }

    fn run(ledger: &mut Ledger, i: u8, call: Call) -> Verdict {
        let call = sign(ledger, i, call);
        ledger.step(0, &[call]).1[0].verdict
    }

    fn failed(error: DispatchError) -> Verdict {
        Verdict::Included { index: 0, result: Err(error) }
    }

    fn go_to(ledger: &mut Ledger, block: u64) -> Vec<Event> {
        let mut events = Vec::new();
        while ledger.header().number < Block(block) {
            events.extend(ledger.step(0, &[]).0);
        }
        events
    }

    fn locked(author: u8, values: [u16; 3], round: u64) -> Call {
        let weights =
            LockedWeights { hotkey: pair(author).hotkey(), uids: vec![0, 1, 2], values: values.into(), version_key: 0 };
        let commit = beacon().beacon().lock(round, &weights.encode(), &mut SeededRng::new(&[author])).unwrap();
        Call::CommitTimelockedWeights { netuid: NETUID, commit, reveal_round: round, commit_reveal_version: 4 }
    }

    const VALUES: [u16; 3] = [0, 30, 60];
    const STORED: [(u16, u16); 3] = [(0, 0), (1, 32_768), (2, 65_535)];

    #[test]
    fn locked_weights_are_opened_in_the_epoch_after_their_own_and_count_in_it() {
        let mut ledger = ledger(1);
        assert_eq!(run(&mut ledger, 1, locked(1, VALUES, 5)), DONE);
        let revealed_at = ledger.schedule().reveal_block(Block(0), 1).unwrap();
        ledger.announce([beacon().pulse(5)]);
        let early = go_to(&mut ledger, revealed_at.0 - 1);
        assert!(early.is_empty() && ledger.weights(Uid(0)).is_empty(), "{early:?}");
        let who = pair(1).hotkey();
        let (events, _) = ledger.step(0, &[]);
        let revealed = Event::TimelockedWeightsRevealed { who, uid: Uid(0) };
        assert_eq!(events, [revealed, Event::Epoch { index: 1 }]);
        assert!(!events.iter().any(Event::is_of_call));
        assert_eq!((ledger.weights(Uid(0)), ledger.header().number), (&STORED[..], revealed_at));
        // The commit dates the weights, not the reveal; they count in the very epoch.
        let metagraph = ledger.metagraph();
        assert_eq!(metagraph.neurons[0].last_update, Block(1));
        assert!(metagraph.neurons[2].incentive > metagraph.neurons[1].incentive);
        assert!(ledger.timelocked_commits().is_empty());
    }

    #[test]
    fn a_longer_period_reveals_as_many_epochs_later() {
        let mut ledger = ledger(3);
        go_to(&mut ledger, 14);
        assert_eq!(run(&mut ledger, 1, locked(1, VALUES, 5)), DONE);
        ledger.announce([beacon().pulse(5)]);
        let revealed_at = ledger.schedule().reveal_block(Block(14), 3).unwrap();
        assert_eq!(revealed_at, Block(40));
        go_to(&mut ledger, revealed_at.0 - 1);
        assert!(ledger.weights(Uid(0)).is_empty());
        go_to(&mut ledger, revealed_at.0);
        assert_eq!(ledger.weights(Uid(0)), STORED);
    }

    #[test]
    fn a_missing_pulse_is_waited_for_until_the_epochs_end_and_no_longer() {
        let (mut late, mut never) = (ledger(1), ledger(1));
        for ledger in [&mut late, &mut never] {
            assert_eq!(run(ledger, 1, locked(1, VALUES, 5)), DONE);
            go_to(ledger, 17);
            assert_eq!(ledger.timelocked_commits()[&0].len(), 1);
        }
        late.announce([beacon().pulse(5)]);
        // In block 18 the pulse arrives, in block 19 it opens.
        go_to(&mut late, 18);
        assert!(late.weights(Uid(0)).is_empty());
        go_to(&mut late, 19);
        assert_eq!(late.weights(Uid(0)), STORED);
        go_to(&mut never, 19);
        never.announce([beacon().pulse(5)]);
        go_to(&mut never, 40);
        assert!(never.weights(Uid(0)).is_empty() && never.timelocked_commits().is_empty());
    }

    #[test]
    fn nobody_commits_anothers_ciphertext_and_what_does_not_open_is_dropped() {
        let mut ledger = ledger(1);
        let theft = locked(1, VALUES, 5);
        let Call::CommitTimelockedWeights { commit: mut broken, .. } = locked(3, VALUES, 5) else { unreachable!() };
        broken[200] ^= 1;
        let broken =
            Call::CommitTimelockedWeights { netuid: NETUID, commit: broken, reveal_round: 5, commit_reveal_version: 4 };
        assert_eq!(run(&mut ledger, 2, theft), DONE);
        assert_eq!(run(&mut ledger, 3, broken), DONE);
        ledger.announce([beacon().pulse(5)]);
        assert_eq!(go_to(&mut ledger, 12), [Event::Epoch { index: 1 }]);
        assert!(ledger.weights(Uid(1)).is_empty() && ledger.weights(Uid(2)).is_empty());
        assert!(ledger.timelocked_commits().is_empty());
    }

    #[test]
    fn every_check_of_weights_is_made_again_at_the_reveal() {
        let mut ledger = ledger(1);
        let far = LockedWeights { hotkey: pair(1).hotkey(), uids: vec![0, 7], values: vec![1, 1], version_key: 0 };
        let commit = beacon().beacon().lock(5, &far.encode(), &mut SeededRng::new(&[1])).unwrap();
        let (reveal_round, commit_reveal_version) = (5, COMMIT_REVEAL_VERSION);
        let call = Call::CommitTimelockedWeights { netuid: NETUID, commit, reveal_round, commit_reveal_version };
        assert_eq!(run(&mut ledger, 1, call), DONE, "nobody can look inside");
        ledger.announce([beacon().pulse(5)]);
        assert_eq!(go_to(&mut ledger, 10), [Event::Epoch { index: 1 }]);
        assert!(ledger.weights(Uid(0)).is_empty());
    }

    #[test]
    fn the_commit_is_what_the_rate_limit_holds_back() {
        let mut ledger = ledger(1);
        assert_eq!(run(&mut ledger, 1, locked(1, VALUES, 5)), DONE);
        assert_eq!(run(&mut ledger, 1, locked(1, VALUES, 5)), failed(DispatchError::CommittingWeightsTooFast));
        go_to(&mut ledger, 4);
        assert_eq!(run(&mut ledger, 1, locked(1, VALUES, 5)), DONE);
        assert_eq!(ledger.timelocked_commits()[&0].len(), 2);
    }

    #[test]
    fn a_commit_is_refused_by_the_chains_names() {
        let mut ledger = ledger(1);
        let Call::CommitTimelockedWeights { commit, .. } = locked(1, VALUES, 5) else { unreachable!() };
        let call = |netuid, commit_reveal_version| Call::CommitTimelockedWeights {
            netuid,
            commit: commit.clone(),
            reveal_round: 5,
            commit_reveal_version,
        };
        assert_eq!(run(&mut ledger, 1, call(9, 4)), failed(DispatchError::SubnetNotExists));
        assert_eq!(run(&mut ledger, 1, call(NETUID, 3)), failed(DispatchError::IncorrectCommitRevealVersion));
        assert_eq!(run(&mut ledger, 50, call(NETUID, 4)), failed(DispatchError::HotKeyNotRegisteredInSubNet));
        let plain = Call::SetWeights { netuid: NETUID, dests: vec![1], weights: vec![1], version_key: 0 };
        assert_eq!(run(&mut ledger, 1, plain), failed(DispatchError::CommitRevealEnabled));
        let long = Call::CommitTimelockedWeights {
            netuid: NETUID,
            commit: vec![0; 5001],
            reveal_round: 5,
            commit_reveal_version: 4,
        };
        assert_eq!(run(&mut ledger, 1, long), Verdict::Refused(Invalid::Undecodable));
        let mut open = Genesis::new(NETUID, 1, 1_000);
        open.pool_checks = false;
        open.neurons = vec![GenesisNeuron { hotkey: pair(1).hotkey(), coldkey: pair(100).hotkey(), stake: 9 }];
        let mut open = Ledger::new(&open).unwrap();
        let disabled = failed(DispatchError::CommitRevealDisabled);
        assert_eq!(run(&mut open, 1, call(NETUID, 4)), disabled);
        assert_eq!(run(&mut open, 1, Call::CommitWeights { netuid: NETUID, commit_hash: [0; 32] }), disabled);
        assert_eq!(run(&mut open, 1, reveal([1; 3])), disabled);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn promised_weights_are_sealed_until_their_epoch_and_read_in_it(
            head in 0_u64..40, period in 1_u64..4, beacon_ms in 200_u64..4000,
        ) {
            let mut ledger = ledger(period);
            let beacon = LocalBeacon::new(&BlockHash([7; 32]), 500, beacon_ms);
            // A block a second, and the pulses that are out by then.
            let next = |ledger: &mut Ledger, calls: &[SignedCall]| {
                let now = ledger.header().timestamp_ms + 1000;
                let rounds = ledger.last_round() + 1..=beacon.beacon().round_at(now);
                ledger.announce(rounds.map(|round| beacon.pulse(round)));
                ledger.step(now, calls).1.first().map(|receipt| receipt.verdict)
            };
            while ledger.header().number.0 < head {
                next(&mut ledger, &[]);
            }
            let schedule = ledger.schedule();
            let moment = Moment {
                netuid: NETUID,
                head: Block(head),
                schedule: &schedule,
                reveal_period_epochs: period,
                beacon: beacon.beacon(),
                now_ms: ledger.header().timestamp_ms,
                block_time_ms: 1000,
            };
            let hotkey = pair(1).hotkey();
            let weights = LockedWeights { hotkey, uids: vec![0, 1, 2], values: VALUES.into(), version_key: 0 };
            let call = moment.promise(&weights, &mut SeededRng::new(&[1])).unwrap();
            let Call::CommitTimelockedWeights { reveal_round, .. } = call else { unreachable!() };
            let call = sign(&ledger, 1, call);
            prop_assert_eq!(next(&mut ledger, &[call]), Some(DONE));
            let revealed = schedule.reveal_block(Block(head), period).unwrap();
            while ledger.header().number < revealed {
                prop_assert!(ledger.weights(Uid(0)).is_empty());
                next(&mut ledger, &[]);
            }
            // A pulse of up to four seconds may come some blocks later, never after the epoch of ten.
            for _ in 0..9 {
                next(&mut ledger, &[]);
            }
            prop_assert_eq!(ledger.weights(Uid(0)), STORED, "round {}", reveal_round);
        }
    }

    #[test]
    fn a_chain_follows_its_own_beacon_as_far_as_somebody_waits_for_it() {
        let mut ledger = ledger(1);
        let beacon = LocalBeacon::of_chain(&ledger.genesis());
        let next = |ledger: &mut Ledger, calls: &[SignedCall]| {
            let now = ledger.header().timestamp_ms + 1000;
            ledger.follow(&beacon, now);
            ledger.step(now, calls).1.first().map(|receipt| receipt.verdict)
        };
        let schedule = ledger.schedule();
        let moment = Moment {
            netuid: NETUID,
            head: Block(0),
            schedule: &schedule,
            reveal_period_epochs: 1,
            beacon: beacon.beacon(),
            now_ms: ledger.header().timestamp_ms,
            block_time_ms: 1000,
        };
        let weights =
            LockedWeights { hotkey: pair(1).hotkey(), uids: vec![0, 1, 2], values: VALUES.into(), version_key: 0 };
        let call = moment.promise(&weights, &mut SeededRng::new(&[1])).unwrap();
        let call = sign(&ledger, 1, call);
        assert_eq!(next(&mut ledger, &[call]), Some(DONE));
        for _ in 0..14 {
            next(&mut ledger, &[]);
        }
        assert_eq!(ledger.weights(Uid(0)), STORED);
        // A pulse a block, a hundred rounds apart, and the one that was waited for.
        assert_eq!(ledger.pulses().count(), 16);
        assert_eq!(ledger.last_round(), ledger.header().timestamp_ms / LOCAL_PERIOD_MS + 1);
        assert!(ledger.pulses().all(|pulse| beacon.beacon().made(&pulse)));
        // Where weights are not committed there is no beacon.
        let mut open = Ledger::new(&Genesis::new(NETUID, 1, 1_000)).unwrap();
        next(&mut open, &[]);
        assert_eq!(open.last_round(), 0);
    }

    const SALT: [u16; 2] = [8, 9];

    fn reveal(values: [u16; 3]) -> Call {
        let (uids, values, salt) = (vec![0, 1, 2], values.to_vec(), SALT.to_vec());
        Call::RevealWeights { netuid: NETUID, uids, values, salt, version_key: 0 }
    }

    fn hashed(author: u8, values: [u16; 3]) -> Call {
        let reveal = Reveal { uids: &[0, 1, 2], values: &values, salt: &SALT, version_key: 0 };
        Call::CommitWeights { netuid: NETUID, commit_hash: reveal.hash(&pair(author).hotkey(), NETUID) }
    }

    #[test]
    fn a_hashed_commit_is_revealed_in_its_one_epoch_by_its_author() {
        let mut ledger = ledger(1);
        assert_eq!(run(&mut ledger, 1, reveal(VALUES)), failed(DispatchError::NoWeightsCommitFound));
        assert_eq!(run(&mut ledger, 1, hashed(1, VALUES)), DONE);
        assert_eq!(run(&mut ledger, 1, reveal(VALUES)), failed(DispatchError::RevealTooEarly));
        go_to(&mut ledger, 10);
        assert_eq!(run(&mut ledger, 2, reveal(VALUES)), failed(DispatchError::NoWeightsCommitFound));
        let other = failed(DispatchError::InvalidRevealCommitHashNotMatch);
        assert_eq!(run(&mut ledger, 1, reveal([1, 1, 1])), other);
        assert_eq!(run(&mut ledger, 1, reveal(VALUES)), DONE);
        assert_eq!(ledger.weights(Uid(0)), STORED);
        assert_eq!(ledger.metagraph().neurons[0].last_update, Block(2));
        assert!(ledger.hashed_commits().is_empty());
        assert_eq!(run(&mut ledger, 1, hashed(1, VALUES)), DONE);
        go_to(&mut ledger, 30);
        assert_eq!(run(&mut ledger, 1, reveal(VALUES)), failed(DispatchError::ExpiredWeightCommit));
    }

    #[test]
    fn a_reveal_drops_the_commits_before_it_and_ten_may_wait() {
        let mut ledger = ledger(3);
        for i in 0..10_u8 {
            // In blocks 1, 5, … 37: three in epoch 0, two in epoch 1, …
            go_to(&mut ledger, 4 * u64::from(i));
            assert_eq!(run(&mut ledger, 1, hashed(1, [u16::from(i), 1, 1])), DONE);
        }
        assert_eq!((ledger.schedule().epoch_index, ledger.hashed_commits()[&pair(1).hotkey()].len()), (3, 10));
        // In block 41 the epoch is 4, and those of epoch 0 have expired.
        go_to(&mut ledger, 40);
        assert_eq!(run(&mut ledger, 1, hashed(1, VALUES)), DONE);
        assert_eq!(ledger.hashed_commits()[&pair(1).hotkey()].len(), 8);
        // Those of epoch 1, made in blocks 13 and 17, may be revealed; the second drops the first.
        assert_eq!(run(&mut ledger, 1, reveal([4, 1, 1])), DONE);
        assert_eq!(ledger.hashed_commits()[&pair(1).hotkey()].len(), 6);
        let mut slow = super::tests::ledger(9);
        for i in 0..11_u8 {
            go_to(&mut slow, 4 * u64::from(i));
            let verdict = run(&mut slow, 1, hashed(1, [u16::from(i), 1, 1]));
            assert_eq!(verdict, if i < 10 { DONE } else { failed(DispatchError::TooManyUnrevealedCommits) });
        }
    }

    #[test]
    fn the_pool_refuses_what_the_block_would() {
        let mut genesis = Genesis::new(NETUID, 1, 1_000);
        let hyper = &mut genesis.hyperparameters;
        (hyper.tempo, hyper.commit_reveal_weights_enabled, hyper.stake_threshold) = (10, true, 5);
        let neuron =
            |i: u8| GenesisNeuron { hotkey: pair(i).hotkey(), coldkey: pair(100).hotkey(), stake: u64::from(i) };
        genesis.neurons = vec![neuron(1), neuron(8), neuron(9)];
        let mut ledger = Ledger::new(&genesis).unwrap();
        let verdict = |ledger: &Ledger, i, call| ledger.validate(&sign(ledger, i, call));
        assert_eq!(verdict(&ledger, 1, locked(1, VALUES, 5)), Err(Invalid::STAKE_TOO_LOW));
        assert_eq!(verdict(&ledger, 9, locked(9, VALUES, 5)), Ok(()));
        ledger.announce([beacon().pulse(6)]);
        go_to(&mut ledger, 1);
        assert_eq!(ledger.last_round(), 6);
        assert_eq!(verdict(&ledger, 9, locked(9, VALUES, 5)), Err(Invalid::REVEAL_ROUND));
        assert_eq!(verdict(&ledger, 9, locked(9, VALUES, 6)), Ok(()));
        assert_eq!(run(&mut ledger, 9, locked(9, VALUES, 6)), DONE);
        assert_eq!(verdict(&ledger, 9, locked(9, VALUES, 7)), Err(Invalid::RATE_LIMIT));
        assert_eq!(verdict(&ledger, 8, reveal(VALUES)), Err(Invalid::COMMIT_NOT_FOUND));
        assert_eq!(run(&mut ledger, 8, hashed(8, VALUES)), DONE);
        assert_eq!(verdict(&ledger, 8, reveal(VALUES)), Err(Invalid::NOT_IN_REVEAL_RANGE));
        go_to(&mut ledger, 9);
        assert_eq!(verdict(&ledger, 8, reveal(VALUES)), Ok(()));
        assert_eq!(verdict(&ledger, 8, hashed(8, VALUES)), Err(Invalid::RATE_LIMIT));
    }

    #[test]
    fn pulses_come_in_order_and_are_kept_for_those_who_wait() {
        let mut ledger = ledger(1);
        assert_eq!(run(&mut ledger, 1, locked(1, VALUES, 5)), DONE);
        let pulse = |round| Pulse { round, signature: [3; SIGNATURE_BYTES] };
        ledger.announce([pulse(5), pulse(4), Pulse { round: 5, signature: [9; SIGNATURE_BYTES] }]);
        go_to(&mut ledger, 2);
        assert_eq!(ledger.pulses().collect::<Vec<_>>(), [pulse(5)]);
        ledger.announce((6..=300).map(pulse));
        go_to(&mut ledger, 3);
        let rounds: Vec<_> = ledger.pulses().map(|pulse| pulse.round).collect();
        assert_eq!((rounds.len(), rounds[0], rounds[1]), (257, 5, 45));
        let restored = Ledger::decode(&ledger.encode(), []).unwrap();
        assert_eq!(restored.last_round(), 300);
        // Nobody waits for round 5 any more once the commit was dropped.
        go_to(&mut ledger, 21);
        assert_eq!(ledger.pulses().count(), 256);
    }

    #[test]
    fn weights_committed_before_a_newcomer_took_the_slot_are_not_his() {
        let mut open = OpenCommits::default();
        let commit = |block, i| TimelockedCommit {
            hotkey: pair(i).hotkey(),
            block: Block(block),
            commit: vec![],
            reveal_round: 0,
        };
        open.timelocked.insert(1, vec![commit(12, 1), commit(14, 2)]);
        open.timelocked.insert(2, vec![commit(22, 1)]);
        open.hashed.insert(pair(2).hotkey(), vec![HashedCommit { hash: [0; 32], epoch: 0, block: Block(3) }]);
        let earliest = |epoch| open.earliest(epoch, 1).into_values().collect::<Vec<_>>();
        let both: std::collections::BTreeSet<_> = earliest(1).into_iter().collect();
        assert_eq!(both, [Block(3), Block(12)].into());
        assert_eq!(earliest(3), [Block(22)]);
        assert_eq!(earliest(4), []);
    }

    #[test]
    fn a_commits_hash_is_the_one_that_live_chains_take() {
        // From an independent BLAKE2b over the SCALE bytes.
        let reveal = Reveal { uids: &[0, 3], values: &[65_535, 7], salt: &[1, 2, 3], version_key: 9 };
        let hash: String = reveal.hash(&Hotkey([5; 32]), 3).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, "58c70dce4aed382d6cfe568388aa4497c7e8b36169feffb35c95db0b3e40ebfb");
    }
}
