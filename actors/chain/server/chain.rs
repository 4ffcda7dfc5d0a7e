//! What the server knows: the ledger at the best block, the blocks and states that can be read, the pool.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use convoke::chain::call::BLOCK_HASH_COUNT;
use convoke::chain::timelock::LocalBeacon;
use convoke::chain::{Ledger, Receipt};
use convoke::terms::BlockHash;
use tokio::sync::watch;

use super::header::Sealed;
use super::pool::Pool;
use super::state::{Delta, State, Storage};
use super::store::{Store, Stored};
use crate::chain::Pace;
use crate::chain::wire::Runtime;

/// Blocks whose state can be read, like a node's that is no archive, but longer than the 256 of those.
pub(super) const STATES_KEPT: u64 = 512;
/// Blocks whose header and body can be read.
pub(super) const BLOCKS_KEPT: u64 = BLOCK_HASH_COUNT;
/// The deepest fork.
pub(super) const FORK_DEPTH_MAX: u64 = 32;

/// The newest block, and the newest that will not be replaced.
#[derive(Debug, Clone)]
pub(super) struct Heads {
    pub(super) best: Arc<Sealed>,
    pub(super) finalized: Arc<Sealed>,
}

/// The chain, behind one lock.
pub(super) struct Chain {
    pub(super) ledger: Arc<Ledger>,
    /// The ledgers of the last blocks, to fork from.
    ledgers: BTreeMap<u64, Arc<Ledger>>,
    genesis: Arc<Sealed>,
    blocks: BTreeMap<u64, Arc<Sealed>>,
    numbers: HashMap<BlockHash, u64>,
    pub(super) storage: Storage,
    /// All of the best block's state, to find what the next one changes.
    pub(super) state: Arc<State>,
    /// The runtime of the next block.
    pub(super) runtime: Runtime,
    pub(super) runtimes: Vec<Runtime>,
    pub(super) pool: Pool,
    pub(super) is_stalled: bool,
    pub(super) is_finality_stalled: bool,
    pub(super) has_stopped: bool,
}

/// A block that was made, before anybody sees it.
pub(super) struct Draft {
    pub(super) ledger: Ledger,
    pub(super) sealed: Sealed,
    pub(super) state: State,
    pub(super) delta: Delta,
    pub(super) receipts: Vec<Receipt>,
}

impl Chain {
    pub(super) fn new(stored: Stored, runtimes: Vec<Runtime>) -> Self {
        let Stored { ledger, genesis, blocks, storage } = stored;
        let ledger = Arc::new(ledger);
        let best = ledger.header().number.0;
        let blocks: BTreeMap<_, _> =
            blocks.into_iter().map(|sealed| (sealed.header.number, Arc::new(sealed))).collect();
        let mut numbers: HashMap<_, _> = blocks.iter().map(|(number, sealed)| (sealed.hash, *number)).collect();
        numbers.insert(genesis.hash, 0);
        let spec_version = blocks.get(&best).map_or(genesis.spec_version, |sealed| sealed.spec_version);
        Self {
            ledgers: BTreeMap::from([(best, Arc::clone(&ledger))]),
            ledger,
            genesis: Arc::new(genesis),
            blocks,
            numbers,
            state: Arc::new(storage.state(best)),
            storage,
            runtime: runtime(&runtimes, spec_version),
            runtimes,
            pool: Pool::default(),
            is_stalled: false,
            is_finality_stalled: false,
            has_stopped: false,
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.ledger.header().number.0
    }

    pub(super) fn genesis(&self) -> &Arc<Sealed> {
        &self.genesis
    }

    /// A block of the chain, if it is kept.
    pub(super) fn block(&self, number: u64) -> Option<&Arc<Sealed>> {
        if number == 0 { Some(&self.genesis) } else { self.blocks.get(&number) }
    }

    pub(super) fn best(&self) -> &Arc<Sealed> {
        self.block(self.number()).unwrap_or(&self.genesis)
    }

    pub(super) fn by_hash(&self, hash: &BlockHash) -> Option<&Arc<Sealed>> {
        self.block(*self.numbers.get(hash)?)
    }

    /// Whether the state after this block can be read.
    pub(super) fn has_state(&self, number: u64) -> bool {
        number <= self.number() && number + STATES_KEPT > self.number()
    }

    /// The runtime by which a block's state is encoded.
    pub(super) fn runtime_of(&self, sealed: &Sealed) -> Runtime {
        runtime(&self.runtimes, sealed.spec_version)
    }

    /// The oldest block that the chain can be rewound to.
    pub(super) fn oldest_ledger(&self) -> u64 {
        self.ledgers.first_key_value().map_or(self.number(), |(number, _)| *number)
    }

    /// Shows a block that was made on the best one.
    pub(super) fn install(&mut self, draft: Draft) {
        let Draft { ledger, sealed, state, delta, receipts } = draft;
        let number = sealed.header.number;
        self.pool.settle(number, sealed.hash, &receipts);
        self.ledger = Arc::new(ledger);
        self.ledgers.insert(number, Arc::clone(&self.ledger));
        while self.ledgers.len() as u64 > FORK_DEPTH_MAX + 1 {
            self.ledgers.pop_first();
        }
        self.numbers.insert(sealed.hash, number);
        self.blocks.insert(number, Arc::new(sealed));
        while self.blocks.len() as u64 > BLOCKS_KEPT {
            if let Some((_, old)) = self.blocks.pop_first() {
                self.numbers.remove(&old.hash);
            }
        }
        self.storage.write(number, delta);
        self.storage.forget((number + 1).saturating_sub(STATES_KEPT));
        self.state = Arc::new(state);
    }

    /// Forgets every block after `number`; their calls wait again. It must have a ledger.
    pub(super) fn rewind(&mut self, number: u64) {
        let Some(ledger) = self.ledgers.get(&number).map(Arc::clone) else { return };
        self.ledger = ledger;
        self.ledgers.split_off(&(number + 1));
        for dropped in self.blocks.split_off(&(number + 1)).into_values() {
            self.numbers.remove(&dropped.hash);
        }
        self.storage.rewind(number);
        self.state = Arc::new(self.storage.state(number));
        self.pool.rewind(number);
        self.runtime = runtime(&self.runtimes, self.best().spec_version);
    }
}

/// The runtime with this number: the one given, or the first of those given, under it.
pub(super) fn runtime(runtimes: &[Runtime], spec_version: u32) -> Runtime {
    let given = runtimes.iter().find(|runtime| runtime.spec_version() == spec_version);
    given.cloned().unwrap_or_else(|| {
        runtimes.first().map_or_else(Runtime::recorded, Clone::clone).with_spec_version(spec_version)
    })
}

/// What whoever makes a block holds meanwhile: nobody else makes one.
pub(super) struct Making {
    /// `None` without a file, or once stopped.
    pub(super) store: Option<Store>,
    /// The file holds blocks after this one which a fork dropped; the next write removes them.
    pub(super) rewound_to: Option<u64>,
}

/// The chain, shared by the block maker and every connection.
pub(super) struct Shared {
    pub(super) genesis: BlockHash,
    pub(super) block_time: Duration,
    pub(super) finality_depth: u64,
    pub(super) pace: Pace,
    /// Opens what is locked on a chain where weights are committed first.
    pub(super) beacon: LocalBeacon,
    pub(super) chain: Mutex<Chain>,
    pub(super) heads: watch::Sender<Heads>,
    pub(super) making: Arc<tokio::sync::Mutex<Making>>,
    /// Counts up when every connection is to be dropped.
    pub(super) generation: watch::Sender<u64>,
}

impl Shared {
    /// A panic elsewhere cannot leave half a block here: blocks are put in whole.
    pub(super) fn chain(&self) -> MutexGuard<'_, Chain> {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
