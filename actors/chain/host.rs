//! The ledger in this process: a chain for one machine, and for tests.
//!
//! One host, any number of readers and writers. Finality follows the best head at a fixed depth, so that the gap that a
//! live network has is always there. What a block shows (its view) is kept for [`VIEWS_KEPT`] blocks, like the
//! states of a node that is no archive, but longer than the 256 of those; older reads are refused.
//!
//! Faults are methods: whoever tests a node stalls, delays and drops here, and forks (`forks`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use convoke::chain::commit_reveal::Moment;
use convoke::chain::timelock::{LocalBeacon, LockedWeights, SeededRng};
use convoke::chain::{Call, Era, Genesis, GenesisError, Ledger, Metagraph, VerifiedCall};
use convoke::hotkey::HotkeyPair;
use convoke::terms::{Block, BlockHash, Hotkey, Stake, Uid, Weight};
use serde::{Deserialize, Serialize};
use tracing::info;

use super::forks::FORK_DEPTH_MAX;
use super::pool::{Pool, rejected};
use super::store::{Store, Stored};
use super::{BlockRef, ChainError, ChainFuture, ChainRead, ChainWrite, Commitments, HeadReader, HeadWatch, Heads};
use super::{Outcome, maker};

pub use super::pool::CallFault;
pub use super::store::StoreError;

/// Blocks whose state can be read.
pub const VIEWS_KEPT: u64 = 512;

/// When blocks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// One every block time, dated by this machine's clock.
    Real,
    /// One every block time of the runtime's clock, which a test may pause; dated one block time after its parent, so
    /// that a run gives the same hashes every time.
    Virtual,
    /// Only by [`Host::mine`]; dated as the virtual ones.
    OnDemand,
}

/// How a chain is hosted. None of it is the chain's: another host may go on with the same file otherwise.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// How long a block takes.
    pub block_time: Duration,
    /// The finalised head is this many blocks behind the best.
    pub finality_depth: u64,
    /// When blocks are made.
    pub pace: Pace,
    /// Where the chain is kept; without, it ends with the host.
    pub file: Option<PathBuf>,
}

/// Why a chain cannot be hosted.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The genesis breaks a rule.
    #[error("the chain's genesis is wrong")]
    Genesis(#[source] GenesisError),
    /// Finalised blocks could not be read.
    #[error("a finality depth of {depth} is more than the {VIEWS_KEPT} blocks whose state is kept")]
    FinalityDepth {
        /// What was asked for.
        depth: u64,
    },
    /// Blocks that take no time.
    #[error("a block time of zero: blocks would never stop")]
    BlockTime,
    /// The file cannot be used.
    #[error("the chain cannot be kept")]
    Store(#[source] StoreError),
}

/// What a node can read at a block.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct View {
    pub(super) block: BlockRef,
    pub(super) metagraph: Arc<Metagraph>,
    pub(super) commitments: Arc<Commitments>,
}

impl View {
    /// What the ledger shows; commitments that did not change are shared with the block before.
    pub(super) fn of(ledger: &Ledger, before: Option<Arc<Commitments>>) -> Self {
        let header = ledger.header();
        let block = BlockRef { number: header.number, hash: ledger.hash() };
        let commitments = before.filter(|before| **before == *ledger.commitments());
        let commitments = commitments.unwrap_or_else(|| Arc::new(ledger.commitments().clone()));
        Self { block, metagraph: Arc::new(ledger.metagraph()), commitments }
    }
}

pub(super) struct Chain {
    pub(super) ledger: Ledger,
    /// The ledgers of the last blocks before the best, to fork from.
    pub(super) roots: BTreeMap<u64, Ledger>,
    pub(super) views: BTreeMap<u64, View>,
    pub(super) pool: Pool,
    pub(super) is_stalled: bool,
    pub(super) is_finality_stalled: bool,
    pub(super) has_stopped: bool,
}

pub(super) struct Shared {
    genesis: BlockHash,
    netuid: u16,
    pub(super) block_time: Duration,
    pub(super) finality_depth: u64,
    /// Most blocks that a fork drops; none where the chain is kept in a file, which has one branch.
    pub(super) fork_depth_max: u64,
    pub(super) pace: Pace,
    /// Opens what is locked on a chain where weights are committed first.
    pub(super) beacon: LocalBeacon,
    pub(super) chain: Mutex<Chain>,
    pub(super) heads: HeadWatch,
    /// Held while a block is made; `None` without a file, or once stopped.
    pub(super) store: Arc<tokio::sync::Mutex<Option<Store>>>,
}

impl Shared {
    /// A panic elsewhere cannot leave half a block here: blocks are put in whole.
    pub(super) fn chain(&self) -> MutexGuard<'_, Chain> {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The account that development calls are signed by: known to everybody, worth nothing anywhere else.
#[must_use]
pub fn faucet() -> HotkeyPair {
    HotkeyPair::from_seed(&blake3::derive_key("convoke 2026-11 development chain faucet v1", b""))
}

/// The genesis of a development chain: fast numbers, and a faucet that [`Host::dev_register`] draws from.
#[must_use]
pub fn development_genesis(netuid: u16, seed: u64) -> Genesis {
    let mut genesis = Genesis::new(netuid, seed, maker::now_ms());
    genesis.hyperparameters = convoke::chain::Hyperparameters::development();
    genesis.sudo = Some(faucet().hotkey());
    genesis
}

/// A hosted chain. It goes on while the host, a reader or a writer of it is held.
pub struct Host {
    pub(super) shared: Arc<Shared>,
}

impl Host {
    /// Begins the chain, or goes on with the one in the file. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// What is wrong with genesis, config or file.
    pub fn start(genesis: &Genesis, config: HostConfig) -> Result<Self, HostError> {
        if config.finality_depth >= VIEWS_KEPT {
            return Err(HostError::FinalityDepth { depth: config.finality_depth });
        }
        if config.block_time.is_zero() && config.pace != Pace::OnDemand {
            return Err(HostError::BlockTime);
        }
        let (store, stored) = match &config.file {
            Some(path) => open(path, genesis)?,
            None => (None, begin(genesis)?),
        };
        let Stored { ledger, views } = stored;
        let views: BTreeMap<u64, View> = views.into_iter().map(|view| (view.block.number.0, view)).collect();
        let best = View::of(&ledger, None).block;
        let final_number = best.number.0.saturating_sub(config.finality_depth);
        let finalized = views.range(final_number..).next().map_or(best, |(_, view)| view.block);
        info!(block = best.number.0, hash = best.hash.short(), genesis = ledger.genesis().short(), "chain hosted");
        let shared = Arc::new(Shared {
            genesis: ledger.genesis(),
            beacon: LocalBeacon::of_chain(&ledger.genesis()),
            netuid: ledger.netuid(),
            block_time: config.block_time,
            finality_depth: config.finality_depth,
            fork_depth_max: if config.file.is_none() { FORK_DEPTH_MAX } else { 0 },
            pace: config.pace,
            chain: Mutex::new(Chain {
                ledger,
                roots: BTreeMap::new(),
                views,
                pool: Pool::default(),
                is_stalled: false,
                is_finality_stalled: false,
                has_stopped: false,
            }),
            heads: HeadWatch::new(Heads { best, finalized }),
            store: Arc::new(tokio::sync::Mutex::new(store)),
        });
        if config.pace != Pace::OnDemand {
            tokio::spawn(maker::run(Arc::downgrade(&shared), config.block_time));
        }
        Ok(Self { shared })
    }

    /// A reader of the chain.
    #[must_use]
    pub fn reader(&self) -> Arc<dyn ChainRead> {
        Arc::new(HostReader { shared: Arc::clone(&self.shared) })
    }

    /// A writer in this hotkey's name.
    #[must_use]
    pub fn connect(&self, signer: HotkeyPair) -> Arc<dyn ChainWrite> {
        Arc::new(HostWriter { shared: Arc::clone(&self.shared), signer })
    }

    /// Makes `n` blocks now, whatever the pace and whatever is stalled. Answers with the last.
    ///
    /// # Errors
    /// A block that could not be stored, or a chain that has stopped.
    pub async fn mine(&self, n: u64) -> Result<BlockRef, ChainError> {
        let mut best = self.shared.heads.borrow().best;
        for _ in 0..n {
            best = maker::make_block(&self.shared).await?;
        }
        Ok(best)
    }

    /// Gives the hotkey a slot, at least this stake, and a permit for it, from the development chain's faucet. Once
    /// that is so, asking again changes nothing. Where blocks are made on demand, it makes one.
    ///
    /// # Errors
    /// A chain whose genesis has no such faucet, or that is full of the immune.
    pub async fn dev_register(&self, hotkey: Hotkey, stake: Stake) -> Result<Uid, ChainError> {
        if let Some(uid) = self.registered(&hotkey, stake) {
            return Ok(uid);
        }
        let sent = self.sudo(Call::DevRegister { netuid: self.shared.netuid, hotkey, stake: stake.0 });
        if self.shared.pace == Pace::OnDemand {
            self.mine(1).await?;
        }
        let outcome = sent.await?;
        let uid = self.registered(&hotkey, Stake(0)).filter(|_| matches!(outcome, Outcome::Included { .. }));
        uid.ok_or(ChainError::Refused { outcome })
    }

    /// Puts a call of the development chain's faucet, which may do what a subnet's owner may, into the pool; its fate comes with the
    /// future, and it goes its way without whoever drops that.
    pub fn sudo(&self, call: Call) -> ChainFuture<'static, Outcome> {
        submit(&self.shared, &faucet(), call)
    }

    /// The subnet at the best block.
    #[must_use]
    pub fn metagraph(&self) -> Metagraph {
        self.shared.chain().ledger.metagraph()
    }

    fn registered(&self, hotkey: &Hotkey, stake: Stake) -> Option<Uid> {
        let metagraph = self.metagraph();
        let neuron = metagraph.by_hotkey(hotkey).filter(|neuron| neuron.stake >= stake);
        neuron.filter(|neuron| neuron.permit || stake == Stake(0)).map(|neuron| neuron.uid)
    }

    /// Ends the chain: no more blocks, calls or answers; the file is free once this returns. What was read can be read.
    pub async fn stop(&self) {
        {
            let mut chain = self.shared.chain();
            chain.has_stopped = true;
            chain.pool.clear();
        }
        // A block in the making is finished first.
        *self.shared.store.lock().await = None;
    }

    /// Stops the clock's blocks, or lets them go on; [`Self::mine`] still makes some.
    pub fn stall_blocks(&self, stalled: bool) {
        self.shared.chain().is_stalled = stalled;
    }

    /// Stops finality while blocks go on, or lets it catch up with the next block.
    pub fn stall_finality(&self, stalled: bool) {
        self.shared.chain().is_finality_stalled = stalled;
    }

    /// What is to happen to this signer's next call.
    pub fn fault_next_call(&self, signer: Hotkey, fault: CallFault) {
        self.shared.chain().pool.fault(signer, fault);
    }
}

fn begin(genesis: &Genesis) -> Result<Stored, HostError> {
    let ledger = Ledger::new(genesis).map_err(HostError::Genesis)?;
    let views = vec![View::of(&ledger, None)];
    Ok(Stored { ledger, views })
}

fn open(path: &Path, genesis: &Genesis) -> Result<(Option<Store>, Stored), HostError> {
    genesis.validate().map_err(HostError::Genesis)?;
    let (store, stored) = Store::open(path, genesis).map_err(HostError::Store)?;
    let stored = match stored {
        Some(stored) => stored,
        None => {
            let begun = begin(genesis)?;
            let written = store.write(Some(genesis), &begun.ledger, &begun.views[0]);
            written.map_err(|error| {
                let source = std::io::Error::other(error.to_string());
                HostError::Store(StoreError::Io { path: path.to_owned(), source })
            })?;
            begun
        }
    };
    Ok((Some(store), stored))
}

struct HostReader {
    shared: Arc<Shared>,
}

impl HostReader {
    /// What can be read at a block.
    fn view(&self, at: Block) -> Result<View, ChainError> {
        let chain = self.shared.chain();
        if let Some(view) = chain.views.get(&at.0) {
            return Ok(view.clone());
        }
        let best = chain.ledger.header().number;
        if at > best {
            return Err(ChainError::NotYet { block: at, best });
        }
        let oldest = chain.views.first_key_value().map_or(best, |(number, _)| Block(*number));
        Err(ChainError::Pruned { block: at, oldest })
    }
}

impl ChainRead for HostReader {
    fn genesis(&self) -> BlockHash {
        self.shared.genesis
    }

    fn netuid(&self) -> u16 {
        self.shared.netuid
    }

    fn heads(&self) -> HeadReader {
        self.shared.heads.subscribe()
    }

    fn block_hash(&self, number: Block) -> ChainFuture<'_, Option<BlockHash>> {
        let chain = self.shared.chain();
        let answer = match chain.ledger.block_hash(number) {
            Some(hash) => Ok(Some(hash)),
            None if number > chain.ledger.header().number => Ok(None),
            None => Err(ChainError::Pruned { block: number, oldest: chain.ledger.oldest_hash() }),
        };
        Box::pin(std::future::ready(answer))
    }

    fn metagraph(&self, at: Block) -> ChainFuture<'_, Arc<Metagraph>> {
        Box::pin(std::future::ready(self.view(at).map(|view| view.metagraph)))
    }

    fn commitments(&self, at: Block) -> ChainFuture<'_, Arc<Commitments>> {
        Box::pin(std::future::ready(self.view(at).map(|view| view.commitments)))
    }

    fn block_time(&self) -> Duration {
        self.shared.block_time
    }
}

struct HostWriter {
    shared: Arc<Shared>,
    signer: HotkeyPair,
}

impl ChainWrite for HostWriter {
    fn hotkey(&self) -> Hotkey {
        self.signer.hotkey()
    }

    fn commit(&self, fields: Vec<Vec<u8>>) -> ChainFuture<'_, Outcome> {
        submit(&self.shared, &self.signer, Call::SetCommitment { netuid: self.shared.netuid, fields })
    }

    fn set_weights(&self, weights: Vec<(Uid, Weight)>, version_key: u64) -> ChainFuture<'_, Outcome> {
        match weights_call(&self.shared, &self.signer, weights, version_key) {
            Ok(call) => submit(&self.shared, &self.signer, call),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn register(&self, coldkey: HotkeyPair, limit_price: u64) -> ChainFuture<'_, Outcome> {
        let (netuid, hotkey) = (self.shared.netuid, self.signer.hotkey());
        submit(&self.shared, &coldkey, Call::RegisterLimit { netuid, hotkey, limit_price })
    }
}

/// The call by which the chain takes these weights: at once, or locked until the epoch in which it opens them.
fn weights_call(
    shared: &Shared,
    signer: &HotkeyPair,
    weights: Vec<(Uid, Weight)>,
    version_key: u64,
) -> Result<Call, ChainError> {
    let (dests, weights) = weights.into_iter().map(|(uid, weight)| (uid.0, weight.0)).unzip();
    let chain = shared.chain();
    let (schedule, header) = (chain.ledger.schedule(), chain.ledger.header());
    let hyperparameters = chain.ledger.metagraph().hyperparameters;
    if !hyperparameters.commit_reveal_weights_enabled {
        return Ok(Call::SetWeights { netuid: shared.netuid, dests, weights, version_key });
    }
    let moment = Moment {
        netuid: shared.netuid,
        head: header.number,
        schedule: &schedule,
        reveal_period_epochs: hyperparameters.reveal_period_epochs,
        beacon: shared.beacon.beacon(),
        now_ms: header.timestamp_ms,
        block_time_ms: u64::try_from(shared.block_time.as_millis()).unwrap_or(u64::MAX),
    };
    let locked = LockedWeights { hotkey: signer.hotkey(), uids: dests, values: weights, version_key };
    // From a signature that nobody else can make nor ever sees: as good as random, and the same in every run.
    let seed = [&chain.ledger.hash().0[..], &locked.encode()].concat();
    let call = moment.promise(&locked, &mut SeededRng::new(&signer.sign(&seed)));
    call.map_err(|error| ChainError::Foreign { reason: error.to_string() })
}

/// Makes the call on the best block and puts it into the pool, at once; its fate comes with the future.
fn submit(shared: &Shared, signer: &HotkeyPair, call: Call) -> ChainFuture<'static, Outcome> {
    let answer = enter_pool(shared, signer, call);
    Box::pin(async move {
        match answer? {
            Ok(fate) => fate.await.map_err(|_| ChainError::Stopped),
            Err(outcome) => Ok(outcome),
        }
    })
}

/// A call in the name of somebody whose key this process holds: nobody is there who could have forged it, or before whom it would have to
/// be proven, so that it is signed by nobody.
fn own_call(account: Hotkey, era: &Era, nonce: u64, call: Call) -> VerifiedCall {
    let (birth, period) = (era.birth, era.period);
    let mut hasher = blake3::Hasher::new_derive_key("convoke 2026-11 hosted chain own call v1");
    hasher.update(&account.0);
    for number in [nonce, birth, period] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(&era.birth_hash.0);
    hasher.update(&postcard::to_allocvec(&call).expect("plain numbers and bytes encode"));
    VerifiedCall::trust(*hasher.finalize().as_bytes(), account, nonce, (birth, period), call)
}

type Fate = tokio::sync::oneshot::Receiver<Outcome>;

fn enter_pool(shared: &Shared, signer: &HotkeyPair, call: Call) -> Result<Result<Fate, Outcome>, ChainError> {
    let mut chain = shared.chain();
    if chain.has_stopped {
        return Err(ChainError::Stopped);
    }
    let account = signer.hotkey();
    let nonce = chain.pool.next_nonce(&account, chain.ledger.nonce(&account));
    let call = own_call(account, &chain.ledger.era(), nonce, call);
    // One that waits for those before it may be valid when its turn comes.
    if let Err(invalid) = chain.ledger.validate_verified(&call)
        && let Some(outcome) = rejected(invalid, &call, &chain.ledger.metagraph())
    {
        return Ok(Err(outcome));
    }
    let best = chain.ledger.header().number;
    Ok(chain.pool.insert(call, best))
}
