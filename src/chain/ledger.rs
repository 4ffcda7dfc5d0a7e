//! The ledger itself: state after a block, and the step to the next.
//!
//! A block is made as Subtensor makes it: first what happens at every block (prices, coinbase, perhaps an epoch), then
//! the calls in the order given. A call that is [`Invalid`] is left out; one that fails keeps its place and its nonce,
//! and changes nothing else. The hash of a block covers parent, number, time, calls and the whole state, so two hosts
//! that agree on a hash agree on everything.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::call::{
    AccountId, BLOCK_HASH_COUNT, Call, DispatchError, ERA_PERIOD, Era, IMMORTAL, Invalid, SignedCall, VerifiedCall,
};
use super::commit_reveal::{HashedCommit, TimelockedCommit};
use super::genesis::{Genesis, GenesisError};
use super::metagraph::{Committed, Metagraph};
use super::schedule::EpochSchedule;
use super::state::State;
use super::timelock::{LocalBeacon, Pulse};
use crate::terms::{Block, BlockHash, Hotkey, Uid};

pub use super::state::Event;

/// What a block says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Its number.
    pub number: Block,
    /// The hash of the block before it.
    pub parent: BlockHash,
    /// When it was made, milliseconds since 1970; more than its parent's.
    pub timestamp_ms: u64,
    /// Over the hashes of its calls, in order.
    pub calls_root: [u8; 32],
    /// Over the state after it.
    pub state_root: [u8; 32],
}

impl Header {
    /// The block's hash.
    #[must_use]
    pub fn hash(&self) -> BlockHash {
        let mut hasher = blake3::Hasher::new_derive_key("convoke 2026-11 development chain header v1");
        hasher.update(&self.number.0.to_le_bytes());
        hasher.update(&self.parent.0);
        hasher.update(&self.timestamp_ms.to_le_bytes());
        hasher.update(&self.calls_root);
        hasher.update(&self.state_root);
        BlockHash(*hasher.finalize().as_bytes())
    }
}

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is in the block.
    Included {
        /// Its place there.
        index: u32,
        /// Whether it did what it asked.
        result: Result<(), DispatchError>,
    },
    /// It is not, and left no trace.
    Refused(Invalid),
}

/// What became of which call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The call, by [`SignedCall::hash`].
    pub call: [u8; 32],
    /// Who asked.
    pub signer: AccountId,
    /// What became of it.
    pub verdict: Verdict,
}

/// A call at the door of a block, under the name that its receipt will have.
struct Entrant {
    hash: [u8; 32],
    signer: AccountId,
    call: Result<VerifiedCall, Invalid>,
}

/// The chain at a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    header: Header,
    hash: BlockHash,
    state: State,
    /// Hashes of the last [`BLOCK_HASH_COUNT`] blocks, this one included.
    hashes: BTreeMap<u64, BlockHash>,
    /// Pulses that the next block will hold.
    announced: Vec<Pulse>,
}

/// Why stored bytes are no ledger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// They do not decode.
    #[error("the stored ledger does not decode: {reason}")]
    Undecodable {
        /// The decoder's words.
        reason: String,
    },
    /// The state is not the one that the block's hash covers.
    #[error("the stored state of block {block} is not what the block's hash covers")]
    StateRoot {
        /// Which block.
        block: Block,
    },
}

impl Ledger {
    /// The chain at its genesis block, number 0.
    ///
    /// # Errors
    /// The genesis's first broken rule.
    pub fn new(genesis: &Genesis) -> Result<Self, GenesisError> {
        genesis.validate()?;
        let state = State::new(genesis)?;
        let hash = state.genesis;
        let header = Header {
            number: Block(0),
            parent: BlockHash::default(),
            timestamp_ms: genesis.timestamp_ms,
            calls_root: [0; 32],
            state_root: state.root(),
        };
        Ok(Self { header, hash, state, hashes: BTreeMap::from([(0, hash)]), announced: Vec::new() })
    }

    /// Makes the next block of these calls, in this order. Its time is `timestamp_ms`, or one past its parent's if that
    /// is later.
    pub fn step(&mut self, timestamp_ms: u64, calls: &[SignedCall]) -> (Vec<Event>, Vec<Receipt>) {
        let entrant = |call: &SignedCall| Entrant { hash: call.hash(), signer: call.signer, call: self.verify(call) };
        let entrants = calls.iter().map(entrant).collect();
        self.make_block(timestamp_ms, entrants)
    }

    /// [`Self::step`] for calls whose signatures were verified elsewhere.
    pub fn step_verified(&mut self, timestamp_ms: u64, calls: Vec<VerifiedCall>) -> (Vec<Event>, Vec<Receipt>) {
        let entrant = |call: VerifiedCall| {
            let is_living = self.check_life(&call);
            Entrant { hash: call.hash, signer: call.signer, call: is_living.map(|()| call) }
        };
        let entrants = calls.into_iter().map(entrant).collect();
        self.make_block(timestamp_ms, entrants)
    }

    /// Pulses of the beacon, in order, that the next block will hold; what they open is opened in the block after it.
    /// The host vouches for them. One whose round is not after every other's is not taken.
    pub fn announce(&mut self, pulses: impl IntoIterator<Item = Pulse>) {
        self.announced.extend(pulses);
    }

    /// Announces what the next block, of this time, holds of the chain's own beacon: the newest round, and those before
    /// it that a commit waits for. The rounds that nobody asks for are left out, so that a beacon of many rounds a block
    /// costs no more than one of few. Nothing where weights are not committed first.
    pub fn follow(&mut self, beacon: &LocalBeacon, timestamp_ms: u64) {
        if !self.state.subnet.hyperparameters.commit_reveal_weights_enabled {
            return;
        }
        let (last, newest) = (self.last_round(), beacon.beacon().round_at(timestamp_ms));
        let awaited = self.timelocked_commits().values().flatten().map(|commit| commit.reveal_round);
        let rounds: BTreeSet<u64> =
            awaited.chain([newest]).filter(|round| (last + 1..=newest).contains(round)).collect();
        self.announce(rounds.into_iter().map(|round| beacon.pulse(round)));
    }

    fn make_block(&mut self, timestamp_ms: u64, entrants: Vec<Entrant>) -> (Vec<Event>, Vec<Receipt>) {
        let block = Block(self.header.number.0 + 1);
        let mut events = self.state.begin_block(block, &std::mem::take(&mut self.announced));
        let mut receipts = Vec::with_capacity(entrants.len());
        let mut included = blake3::Hasher::new_derive_key("convoke 2026-11 development chain calls v1");
        let mut index = 0;
        for Entrant { hash, signer, call } in entrants {
            let valid = call.and_then(|call| self.state.validate(&call, block).map(|()| call));
            let verdict = match valid {
                Err(invalid) => Verdict::Refused(invalid),
                Ok(call) => {
                    included.update(&hash);
                    let result = self.state.apply(&call, block, index, &mut events);
                    index += 1;
                    Verdict::Included { index: index - 1, result }
                }
            };
            receipts.push(Receipt { call: hash, signer, verdict });
        }
        self.header = Header {
            number: block,
            parent: self.hash,
            timestamp_ms: timestamp_ms.max(self.header.timestamp_ms.saturating_add(1)),
            calls_root: *included.finalize().as_bytes(),
            state_root: self.state.root(),
        };
        self.hash = self.header.hash();
        self.hashes.insert(block.0, self.hash);
        while self.hashes.len() as u64 > BLOCK_HASH_COUNT {
            self.hashes.pop_first();
        }
        (events, receipts)
    }

    /// Whether the call would enter the next block, were it the only one: what a pool asks.
    ///
    /// # Errors
    /// The first check that it does not pass. [`Invalid::Future`] may wait; every other must be made anew or given up.
    pub fn validate(&self, call: &SignedCall) -> Result<(), Invalid> {
        self.validate_verified(&self.verify(call)?)
    }

    /// [`Self::validate`] for a call whose signature was verified elsewhere.
    ///
    /// # Errors
    /// As there.
    pub fn validate_verified(&self, call: &VerifiedCall) -> Result<(), Invalid> {
        self.check_life(call)?;
        self.state.validate(call, Block(self.header.number.0 + 1))
    }

    fn verify(&self, call: &SignedCall) -> Result<VerifiedCall, Invalid> {
        let birth_hash = self.living_birth(&call.call, call.birth, call.period)?;
        call.verify(&self.state.genesis, birth_hash)
    }

    /// Encoding and era of a call whose host has looked up the birth block's hash itself.
    fn check_life(&self, call: &VerifiedCall) -> Result<(), Invalid> {
        if call.period == IMMORTAL && call.call.has_encoding() {
            Ok(())
        } else {
            self.check_era(&call.call, call.birth, call.period)
        }
    }

    /// The hash that the call's signature must be over, if the call could be in the next block.
    fn living_birth(&self, call: &Call, birth: u64, period: u64) -> Result<BlockHash, Invalid> {
        self.check_era(call, birth, period)?;
        self.hashes.get(&birth).copied().ok_or(Invalid::AncientBirthBlock)
    }

    /// What depends neither on the signature nor on the rest of the block: that the call has an encoding, and that its
    /// era lasts.
    fn check_era(&self, call: &Call, birth: u64, period: u64) -> Result<(), Invalid> {
        if !call.has_encoding() || !period.is_power_of_two() || !(4..=65_536).contains(&period) {
            return Err(Invalid::Undecodable);
        }
        let block = self.header.number.0 + 1;
        let is_known = birth < block && block <= birth.saturating_add(BLOCK_HASH_COUNT);
        if is_known && block < birth.saturating_add(period) { Ok(()) } else { Err(Invalid::AncientBirthBlock) }
    }

    /// The block's header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The block's hash.
    #[must_use]
    pub fn hash(&self) -> BlockHash {
        self.hash
    }

    /// The hash of a block, if it is there and among the last [`BLOCK_HASH_COUNT`].
    #[must_use]
    pub fn block_hash(&self, number: Block) -> Option<BlockHash> {
        self.hashes.get(&number.0).copied()
    }

    /// The oldest block whose hash is kept.
    #[must_use]
    pub fn oldest_hash(&self) -> Block {
        self.hashes.first_key_value().map_or(self.header.number, |(number, _)| Block(*number))
    }

    /// The genesis block's hash: the chain's name.
    #[must_use]
    pub fn genesis(&self) -> BlockHash {
        self.state.genesis
    }

    /// The subnet's number.
    #[must_use]
    pub fn netuid(&self) -> u16 {
        self.state.subnet.netuid
    }

    /// The era that a call signed on this block has.
    #[must_use]
    pub fn era(&self) -> Era {
        Era { birth: self.header.number.0, birth_hash: self.hash, period: ERA_PERIOD }
    }

    /// The nonce of the account's next call.
    #[must_use]
    pub fn nonce(&self, account: &AccountId) -> u64 {
        self.state.nonces.get(account).copied().unwrap_or(0)
    }

    /// The account's free balance, in rao.
    #[must_use]
    pub fn balance(&self, account: &AccountId) -> u64 {
        self.state.balances.get(account).copied().unwrap_or(0)
    }

    /// Every account that ever held or sent something.
    #[must_use]
    pub fn accounts(&self) -> BTreeSet<AccountId> {
        self.state.balances.keys().chain(self.state.nonces.keys()).copied().collect()
    }

    /// Blocks since the last epoch, and the block of one that was asked for out of turn (0: none).
    #[must_use]
    pub fn epoch_counters(&self) -> (u64, u64) {
        (self.state.subnet.blocks_since_last_step, self.state.subnet.pending_epoch_at)
    }

    /// The subnet as a node reads it.
    #[must_use]
    pub fn metagraph(&self) -> Metagraph {
        let subnet = &self.state.subnet;
        Metagraph {
            block: self.header.number,
            neurons: subnet.neurons(&self.state.stakes),
            hyperparameters: subnet.hyperparameters.clone(),
            epoch_index: subnet.epoch_index,
            last_epoch: Block(subnet.last_epoch),
            next_epoch: subnet.schedule().next(),
            burn: subnet.burn,
        }
    }

    /// The epoch schedule, from which a validator tells when its weights will be revealed.
    #[must_use]
    pub fn schedule(&self) -> EpochSchedule {
        self.state.subnet.schedule()
    }

    /// The last round of the beacon that a block held; 0 before the first.
    #[must_use]
    pub fn last_round(&self) -> u64 {
        self.state.pulses.last_round()
    }

    /// The beacon's pulses that are kept, in order.
    pub fn pulses(&self) -> impl Iterator<Item = Pulse> {
        self.state.pulses.iter()
    }

    /// Timelocked commits that wait, by the epoch they were made in.
    #[must_use]
    pub fn timelocked_commits(&self) -> &BTreeMap<u64, Vec<TimelockedCommit>> {
        &self.state.subnet.open_commits.timelocked
    }

    /// Hashed commits that wait, by hotkey.
    #[must_use]
    pub fn hashed_commits(&self) -> &BTreeMap<Hotkey, Vec<HashedCommit>> {
        &self.state.subnet.open_commits.hashed
    }

    /// Every hotkey's commitment.
    #[must_use]
    pub fn commitments(&self) -> &BTreeMap<Hotkey, Committed> {
        &self.state.subnet.commitments
    }

    /// The weights that a slot holds, (uid, weight), the largest 65535.
    #[must_use]
    pub fn weights(&self, uid: Uid) -> &[(u16, u16)] {
        self.state.subnet.slot(uid).map_or(&[], |slot| &slot.weights)
    }

    /// The block and its state as bytes; [`Self::decode`] reads them.
    ///
    /// # Panics
    /// Never: every field has an encoding.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(&(&self.header, &self.state)).expect("plain numbers and maps encode")
    }

    /// The ledger of those bytes. `hashes` are those of the blocks before it; an era whose birth is not among them has
    /// passed.
    ///
    /// # Errors
    /// Bytes that were cut off or changed.
    pub fn decode(bytes: &[u8], hashes: impl IntoIterator<Item = (Block, BlockHash)>) -> Result<Self, LedgerError> {
        let decoded: Result<(Header, State), _> = postcard::from_bytes(bytes);
        let (header, state) = decoded.map_err(|error| LedgerError::Undecodable { reason: error.to_string() })?;
        if header.state_root != state.root() {
            return Err(LedgerError::StateRoot { block: header.number });
        }
        let hash = if header.number == Block(0) { state.genesis } else { header.hash() };
        let oldest = header.number.0.saturating_sub(BLOCK_HASH_COUNT - 1);
        let mut hashes: BTreeMap<u64, BlockHash> =
            hashes.into_iter().filter(|(block, _)| block.0 >= oldest).map(|(block, hash)| (block.0, hash)).collect();
        hashes.insert(header.number.0, hash);
        Ok(Self { header, hash, state, hashes, announced: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chain::GenesisNeuron;
    use crate::hotkey::HotkeyPair;

    const NETUID: u16 = 3;
    const TAO: u64 = 1_000_000_000;

    fn pair(i: u8) -> HotkeyPair {
        HotkeyPair::from_seed(&[i; 32])
    }

    /// Three validators-to-be with stake, a rich coldkey (seed 100) and a faucet (seed 101).
    fn genesis() -> Genesis {
        let mut genesis = Genesis::new(NETUID, 1, 1_000);
        genesis.hyperparameters.tempo = 20;
        genesis.hyperparameters.weights_set_rate_limit = 10;
        genesis.balances.insert(pair(100).hotkey(), 10 * TAO);
        genesis.sudo = Some(pair(101).hotkey());
        let neuron =
            |i: u8| GenesisNeuron { hotkey: pair(i).hotkey(), coldkey: pair(100).hotkey(), stake: u64::from(i) * TAO };
        genesis.neurons = vec![neuron(1), neuron(2), neuron(3)];
        genesis
    }

    fn ledger() -> Ledger {
        Ledger::new(&genesis()).unwrap()
    }

    fn sign(ledger: &Ledger, i: u8, call: Call) -> SignedCall {
        let pair = pair(i);
        SignedCall::sign(&pair, &ledger.genesis(), &ledger.era(), ledger.nonce(&pair.hotkey()), call)
    }

    fn set_weights(weights: &[u16]) -> Call {
        let dests = (0..weights.len() as u16).collect();
        Call::SetWeights { netuid: NETUID, dests, weights: weights.to_vec(), version_key: 0 }
    }

    fn commit(byte: u8) -> Call {
        Call::SetCommitment { netuid: NETUID, fields: vec![vec![byte; 8]] }
    }

    /// One block with one call; what became of it.
    fn run(ledger: &mut Ledger, i: u8, call: Call) -> Verdict {
        let call = sign(ledger, i, call);
        ledger.step(0, &[call]).1[0].verdict
    }

    const DONE: Verdict = Verdict::Included { index: 0, result: Ok(()) };

    #[test]
    fn the_same_calls_give_the_same_hashes_and_other_calls_others() {
        let hashes = |byte: u8| {
            let mut ledger = ledger();
            (0..30)
                .map(|block| {
                    let calls = if block == 5 { vec![sign(&ledger, 1, commit(byte))] } else { vec![] };
                    ledger.step(2_000 + block, &calls);
                    ledger.hash()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(hashes(1), hashes(1));
        assert_eq!(hashes(1)[..5], hashes(2)[..5]);
        assert!(hashes(1).iter().zip(hashes(2)).skip(5).all(|(a, b)| *a != b));
    }

    #[test]
    fn calls_that_a_host_verified_itself_have_the_same_fate() {
        let (mut signed, mut verified) = (ledger(), ledger());
        let calls = [sign(&signed, 1, commit(1)), sign(&signed, 2, set_weights(&[1, 2])), sign(&signed, 50, commit(3))];
        let of_host = calls.iter().map(|call| call.verify(&signed.genesis(), signed.hash()).unwrap()).collect();
        assert_eq!(verified.step_verified(7, of_host), signed.step(7, &calls));
        assert_eq!(verified, signed);
        let (hotkey, again) = (pair(1).hotkey(), &calls[0]);
        let again = again.verify(&signed.genesis(), signed.block_hash(Block(0)).unwrap()).unwrap();
        assert_eq!(verified.validate_verified(&again), Err(Invalid::Stale));
        assert!(verified.accounts().contains(&hotkey) && !signed.accounts().contains(&pair(9).hotkey()));
        assert_eq!(verified.epoch_counters(), (1, 0));
    }

    #[test]
    fn time_always_moves_on() {
        let mut ledger = ledger();
        ledger.step(500, &[]);
        assert_eq!(ledger.header().timestamp_ms, 1_001);
        ledger.step(9_000, &[]);
        assert_eq!(ledger.header().timestamp_ms, 9_000);
    }

    #[test]
    fn commitments_have_an_order_within_their_block_and_overwrite() {
        let mut ledger = ledger();
        let calls = [sign(&ledger, 2, commit(2)), sign(&ledger, 1, commit(1))];
        let (events, _) = ledger.step(0, &calls);
        assert_eq!(events[0], Event::Commitment { who: pair(2).hotkey() });
        let at = |ledger: &Ledger, i| {
            let committed = &ledger.commitments()[&pair(i).hotkey()];
            (committed.block.0, committed.index, committed.fields[0][0])
        };
        assert_eq!((at(&ledger, 2), at(&ledger, 1)), ((1, 0, 2), (1, 1, 1)));
        assert_eq!(run(&mut ledger, 2, commit(9)), DONE);
        assert_eq!(at(&ledger, 2), (2, 0, 9));
    }

    #[test]
    fn a_used_nonce_is_stale_a_far_one_waits_and_a_changed_call_is_a_bad_proof() {
        let mut ledger = ledger();
        let first = sign(&ledger, 1, commit(1));
        let second = SignedCall::sign(&pair(1), &ledger.genesis(), &ledger.era(), 1, commit(2));
        assert_eq!(ledger.validate(&second), Err(Invalid::Future));
        assert_eq!(ledger.validate(&SignedCall { call: commit(3), ..first.clone() }), Err(Invalid::BadProof));
        // Both fit one block in their order, and the first a second time does not.
        let (_, receipts) = ledger.step(0, &[first.clone(), second, first.clone()]);
        let verdicts: Vec<_> = receipts.iter().map(|receipt| receipt.verdict).collect();
        let included = |index| Verdict::Included { index, result: Ok(()) };
        assert_eq!(verdicts, [included(0), included(1), Verdict::Refused(Invalid::Stale)]);
        assert_eq!(ledger.validate(&first), Err(Invalid::Stale));
    }

    #[test]
    fn a_call_lives_for_its_era_and_for_its_fork_only() {
        let mut ledger = ledger();
        ledger.step(0, &[]);
        let call = sign(&ledger, 1, commit(1));
        let mut fork = Ledger::new(&genesis()).unwrap();
        fork.step(77_777, &[]);
        assert_eq!(fork.validate(&call), Err(Invalid::BadProof));
        // Born on block 1 with period 64: blocks 2 to 64 may hold it.
        while ledger.header().number < Block(63) {
            assert_eq!(ledger.validate(&call), Ok(()), "{}", ledger.header().number);
            ledger.step(0, &[]);
        }
        assert_eq!(ledger.validate(&call), Ok(()));
        ledger.step(0, &[]);
        assert_eq!(ledger.validate(&call), Err(Invalid::AncientBirthBlock));
        let unborn = Era { birth: 500, ..ledger.era() };
        let call = SignedCall::sign(&pair(1), &ledger.genesis(), &unborn, 0, commit(1));
        assert_eq!(ledger.validate(&call), Err(Invalid::AncientBirthBlock));
        let odd = SignedCall::sign(&pair(1), &ledger.genesis(), &Era { period: 63, ..ledger.era() }, 0, commit(1));
        assert_eq!(ledger.validate(&odd), Err(Invalid::Undecodable));
        let long = Call::SetCommitment { netuid: NETUID, fields: vec![vec![0; 513]] };
        assert_eq!(ledger.validate(&sign(&ledger, 1, long)), Err(Invalid::Undecodable));
    }

    #[test]
    fn a_call_verified_elsewhere_passes_every_check_but_the_signatures() {
        let mut ledger = ledger();
        ledger.step(0, &[]);
        let trust = |name: u8, nonce, birth, period| {
            VerifiedCall::trust([name; 32], pair(1).hotkey(), nonce, (birth, period), commit(name))
        };
        assert_eq!(ledger.validate_verified(&trust(1, 0, 1, 64)), Ok(()));
        assert_eq!(ledger.validate_verified(&trust(1, 1, 1, 64)), Err(Invalid::Future));
        assert_eq!(ledger.validate_verified(&trust(1, 0, 1, 63)), Err(Invalid::Undecodable));
        assert_eq!(ledger.validate_verified(&trust(1, 0, 2, 64)), Err(Invalid::AncientBirthBlock));
        assert_eq!(ledger.validate_verified(&trust(1, 0, 0, IMMORTAL)), Ok(()));
        let long = Call::SetCommitment { netuid: NETUID, fields: vec![vec![0; 513]] };
        let long = VerifiedCall::trust([1; 32], pair(1).hotkey(), 0, (0, IMMORTAL), long);
        assert_eq!(ledger.validate_verified(&long), Err(Invalid::Undecodable));
        let calls = vec![trust(1, 0, 1, 64), trust(2, 0, 1, 64), trust(3, 1, 9, 64)];
        let (_, receipts) = ledger.step_verified(0, calls);
        let said: Vec<_> = receipts.iter().map(|receipt| (receipt.call[0], receipt.signer, receipt.verdict)).collect();
        let refused = |name, invalid| (name, pair(1).hotkey(), Verdict::Refused(invalid));
        let expected =
            [(1, pair(1).hotkey(), DONE), refused(2, Invalid::Stale), refused(3, Invalid::AncientBirthBlock)];
        assert_eq!(said, expected);
        assert_eq!(ledger.commitments()[&pair(1).hotkey()].fields, [vec![1; 8]]);
    }

    #[test]
    fn weights_count_at_the_next_epoch() {
        let mut ledger = ledger();
        assert_eq!(run(&mut ledger, 3, set_weights(&[1, 3, 0])), DONE);
        assert_eq!(ledger.weights(Uid(2)), [(0, 21_845), (1, 65_535), (2, 0)]);
        let mut epochs = Vec::new();
        while ledger.header().number < Block(20) {
            assert_eq!(ledger.metagraph().neurons[1].incentive, 0);
            epochs.extend(ledger.step(0, &[]).0);
        }
        assert_eq!(epochs, [Event::Epoch { index: 1 }]);
        let metagraph = ledger.metagraph();
        assert_eq!((metagraph.last_epoch, metagraph.next_epoch), (Block(20), Some(Block(40))));
        assert!(metagraph.neurons[1].incentive.abs_diff(49_151) <= 1);
        assert!(metagraph.neurons[2].dividends.abs_diff(65_535) <= 1);
    }

    #[test]
    fn a_runtime_refuses_early_weights_in_the_pool_and_an_older_one_in_the_block() {
        for (pool_checks, stake_threshold, verdict) in [
            (true, 0, Verdict::Refused(Invalid::RATE_LIMIT)),
            (true, 9 * TAO, Verdict::Refused(Invalid::STAKE_TOO_LOW)),
            (false, 0, Verdict::Included { index: 0, result: Err(DispatchError::SettingWeightsTooFast) }),
            (false, 9 * TAO, Verdict::Included { index: 0, result: Err(DispatchError::NotEnoughStakeToSetWeights) }),
        ] {
            let mut genesis = genesis();
            genesis.pool_checks = pool_checks;
            let mut ledger = Ledger::new(&genesis).unwrap();
            assert_eq!(run(&mut ledger, 3, set_weights(&[1, 1, 0])), DONE);
            genesis.hyperparameters.stake_threshold = stake_threshold;
            ledger.state.subnet.hyperparameters = genesis.hyperparameters;
            assert_eq!(run(&mut ledger, 3, set_weights(&[1, 1, 0])), verdict);
        }
    }

    #[test]
    fn a_failed_call_costs_its_nonce_and_nothing_else() {
        let mut ledger = ledger();
        let mut twin = ledger.clone();
        let verdict = run(&mut ledger, 50, commit(1));
        let failed = Verdict::Included { index: 0, result: Err(DispatchError::AccountNotAllowedCommit) };
        assert_eq!(verdict, failed);
        assert_eq!(ledger.nonce(&pair(50).hotkey()), 1);
        twin.step(0, &[]);
        assert_ne!(ledger.hash(), twin.hash());
        ledger.state.nonces.clear();
        assert_eq!(ledger.state, twin.state);
    }

    #[test]
    fn a_slot_is_bought_at_the_price_and_the_price_rises() {
        let mut ledger = ledger();
        let register = |i: u8| Call::BurnedRegister { netuid: NETUID, hotkey: pair(i).hotkey() };
        let price = ledger.metagraph().burn;
        assert_eq!(run(&mut ledger, 100, register(4)), DONE);
        assert_eq!(ledger.balance(&pair(100).hotkey()), 10 * TAO - price);
        assert_eq!(ledger.metagraph().neurons[3].registered_at, Block(1));
        assert_eq!(ledger.metagraph().burn, price * 126 / 100);
        let failed = |error| Verdict::Included { index: 0, result: Err(error) };
        let again = run(&mut ledger, 100, register(4));
        assert_eq!(again, failed(DispatchError::HotKeyAlreadyRegisteredInSubNet));
        assert_eq!(run(&mut ledger, 102, register(5)), failed(DispatchError::NotEnoughBalanceToStake));
        let hotkey = pair(5).hotkey();
        let limited = Call::RegisterLimit { netuid: NETUID, hotkey, limit_price: price / 2 };
        assert_eq!(run(&mut ledger, 100, limited), failed(DispatchError::RegistrationPriceLimitExceeded));
        let elsewhere = Call::BurnedRegister { netuid: 9, hotkey };
        assert_eq!(run(&mut ledger, 100, elsewhere), failed(DispatchError::SubnetNotExists));
    }

    #[test]
    fn a_hotkey_belongs_to_one_coldkey() {
        let mut genesis = genesis();
        genesis.hyperparameters.max_allowed_uids = 3;
        genesis.hyperparameters.immunity_period = 0;
        genesis.hyperparameters.min_non_immune_uids = 0;
        genesis.balances.insert(pair(102).hotkey(), 10 * TAO);
        let mut ledger = Ledger::new(&genesis).unwrap();
        let register = |i: u8| Call::BurnedRegister { netuid: NETUID, hotkey: pair(i).hotkey() };
        assert_eq!(run(&mut ledger, 100, register(4)), DONE);
        assert_eq!(ledger.metagraph().by_hotkey(&pair(1).hotkey()), None, "the subnet was full");
        let failed = Verdict::Included { index: 0, result: Err(DispatchError::NonAssociatedColdKey) };
        assert_eq!(run(&mut ledger, 102, register(1)), failed);
        assert_eq!(run(&mut ledger, 100, register(1)), DONE);
    }

    #[test]
    fn stake_moves_from_the_balance_and_earns_a_permit_at_the_epoch() {
        let mut genesis = genesis();
        genesis.hyperparameters.max_allowed_validators = 2;
        let mut ledger = Ledger::new(&genesis).unwrap();
        let permits = |ledger: &Ledger| ledger.metagraph().validators().map(|neuron| neuron.uid.0).collect::<Vec<_>>();
        assert_eq!(permits(&ledger), [1, 2]);
        let add = |amount| Call::AddStake { hotkey: pair(1).hotkey(), netuid: NETUID, amount };
        assert_eq!(run(&mut ledger, 100, add(5 * TAO)), DONE);
        assert_eq!(ledger.metagraph().neurons[0].stake.0, 6 * TAO);
        assert_eq!(ledger.balance(&pair(100).hotkey()), 5 * TAO);
        assert_eq!(permits(&ledger), [1, 2]);
        while ledger.header().number < Block(20) {
            ledger.step(0, &[]);
        }
        assert_eq!(permits(&ledger), [0, 2]);
        let failed = |error| Verdict::Included { index: 0, result: Err(error) };
        assert_eq!(run(&mut ledger, 100, add(1)), failed(DispatchError::AmountTooLow));
        assert_eq!(run(&mut ledger, 100, add(6 * TAO)), failed(DispatchError::NotEnoughBalanceToStake));
        let unknown = Call::AddStake { hotkey: pair(77).hotkey(), netuid: NETUID, amount: TAO };
        assert_eq!(run(&mut ledger, 100, unknown), failed(DispatchError::HotKeyAccountNotExists));
    }

    #[test]
    fn the_faucet_registers_once_raises_stake_and_is_the_sudo_keys_alone() {
        let mut ledger = ledger();
        let ask = |stake| Call::DevRegister { netuid: NETUID, hotkey: pair(8).hotkey(), stake };
        assert_eq!(run(&mut ledger, 101, ask(TAO)), DONE);
        let neuron = ledger.metagraph().neurons[3].clone();
        assert!(neuron.permit && neuron.stake.0 == TAO && neuron.registered_at == Block(1));
        assert_eq!(run(&mut ledger, 101, ask(TAO / 2)), DONE);
        assert_eq!(ledger.metagraph().neurons[3..], [neuron]);
        let failed = Verdict::Included { index: 0, result: Err(DispatchError::BadOrigin) };
        assert_eq!(run(&mut ledger, 100, ask(TAO)), failed);
    }

    #[test]
    fn the_faucet_fills_a_purse_up_to_what_is_asked() {
        let mut ledger = ledger();
        let ask = |balance| Call::DevFund { account: pair(50).hotkey(), balance };
        for (balance, held) in [(TAO, TAO), (TAO / 2, TAO), (3 * TAO, 3 * TAO)] {
            assert_eq!(run(&mut ledger, 101, ask(balance)), DONE);
            assert_eq!(ledger.balance(&pair(50).hotkey()), held);
        }
        let failed = Verdict::Included { index: 0, result: Err(DispatchError::BadOrigin) };
        assert_eq!(run(&mut ledger, 50, ask(u64::MAX)), failed);
        assert_eq!(ledger.balance(&pair(50).hotkey()), 3 * TAO);
    }

    #[test]
    fn only_the_owner_and_sudo_trim() {
        let mut genesis = genesis();
        genesis.owner = Some(crate::chain::Owner { coldkey: pair(102).hotkey(), hotkey: pair(1).hotkey() });
        let mut ledger = Ledger::new(&genesis).unwrap();
        let trim = |netuid, max_n| Call::SudoTrimToMaxAllowedUids { netuid, max_n };
        let failed = |error| Verdict::Included { index: 0, result: Err(error) };
        assert_eq!(run(&mut ledger, 100, trim(NETUID, 64)), failed(DispatchError::BadOrigin));
        assert_eq!(run(&mut ledger, 102, trim(9, 64)), failed(DispatchError::SubnetNotExists));
        assert_eq!(run(&mut ledger, 102, trim(NETUID, 100)), DONE);
        assert_eq!(run(&mut ledger, 101, trim(NETUID, 64)), DONE);
        assert_eq!(ledger.metagraph().hyperparameters.max_allowed_uids, 64);
    }

    #[test]
    fn a_stored_ledger_goes_on_as_if_it_had_never_stopped() {
        let mut ledger = ledger();
        let mut hashes = vec![(Block(0), ledger.hash())];
        for _ in 0..25 {
            let calls = [sign(&ledger, 1, commit(1))];
            ledger.step(0, &calls);
            hashes.push((ledger.header().number, ledger.hash()));
        }
        let mut restored = Ledger::decode(&ledger.encode(), hashes.clone()).unwrap();
        assert_eq!(restored, ledger);
        let calls = [sign(&ledger, 2, set_weights(&[1, 1]))];
        assert_eq!(restored.step(0, &calls), ledger.step(0, &calls));
        assert_eq!(restored.hash(), ledger.hash());
        let bytes = ledger.encode();
        assert!(matches!(Ledger::decode(&bytes[..bytes.len() - 1], []), Err(LedgerError::Undecodable { .. })));
        let genesis_only = Ledger::new(&genesis()).unwrap();
        assert_eq!(Ledger::decode(&genesis_only.encode(), []).unwrap(), genesis_only);
    }

    #[test]
    fn a_stored_ledger_with_a_changed_byte_is_refused() {
        let mut ledger = ledger();
        let calls = [sign(&ledger, 1, commit(1))];
        ledger.step(0, &calls);
        let bytes = ledger.encode();
        // Everything after the header is under the state root; of the header, number and time are re-checked by its
        // hash.
        for at in (120..bytes.len()).step_by(7) {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(Ledger::decode(&changed, []).is_err(), "byte {at}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn money_is_neither_made_nor_lost_and_uids_stay_a_bijection(
            asks in prop::collection::vec((0_u8..4, 1_u8..12, 0_u64..3 * TAO), 1..40),
        ) {
            let mut genesis = genesis();
            genesis.hyperparameters.max_allowed_uids = 5;
            genesis.hyperparameters.immunity_period = 3;
            genesis.hyperparameters.min_non_immune_uids = 1;
            let mut ledger = Ledger::new(&genesis).unwrap();
            let worth = |ledger: &Ledger| {
                let state = &ledger.state;
                state.balances.values().sum::<u64>() + state.stakes.values().sum::<u64>() + state.burned
            };
            let before = worth(&ledger);
            for (kind, i, amount) in asks {
                let hotkey = pair(i).hotkey();
                let (signer, call) = match kind {
                    0 => (100, Call::BurnedRegister { netuid: NETUID, hotkey }),
                    1 => (100, Call::AddStake { netuid: NETUID, hotkey, amount }),
                    2 => (i, commit(i)),
                    _ => (i, set_weights(&[1, 2, 3])),
                };
                run(&mut ledger, signer, call);
                prop_assert_eq!(worth(&ledger), before);
                let neurons = ledger.metagraph().neurons;
                prop_assert_eq!(neurons.len(), ledger.state.subnet.uids.len());
                for neuron in &neurons {
                    prop_assert_eq!(ledger.state.subnet.uid(&neuron.hotkey), Some(neuron.uid));
                }
                prop_assert!(ledger.commitments().keys().all(|key| ledger.state.subnet.uid(key).is_some()));
            }
        }
    }
}
