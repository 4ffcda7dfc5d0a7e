//! Who makes blocks: on demand, one every block time, or a fork's at once.
//!
//! A block is made on a copy of the ledger, written to disk, and only then shown: a store that fails costs the attempt,
//! and nobody has seen a block that a restart would not find.

use std::sync::{Arc, Weak};
use std::time::Duration;

use convoke::chain::timelock::LocalBeacon;
use convoke::chain::{Event, Ledger, Receipt, Verdict, VerifiedCall};
use convoke::terms::BlockHash;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{MissedTickBehavior, interval_at};
use tracing::{debug, error};

use super::chain::{Chain, Draft, Heads, Making, Shared};
use super::header::{Header, Sealed, extrinsics_root};
use super::state::{State, advance};
use crate::chain::maker::now_ms;
use crate::chain::wire::entries::{OfBlock, entries};
use crate::chain::wire::{Runtime, WireError, events, extrinsic};
use crate::chain::{ChainError, Pace};

/// What a block is made of.
struct Materials {
    ledger: Ledger,
    state: Arc<State>,
    runtime: Runtime,
    beacon: LocalBeacon,
    parent: BlockHash,
    timestamp_ms: u64,
    calls: Vec<(VerifiedCall, Vec<u8>)>,
}

/// The genesis block and its state.
pub(super) fn first(runtime: &Runtime, ledger: &Ledger, beacon: &LocalBeacon) -> Result<(Sealed, State), WireError> {
    let of_block = OfBlock { parent_hash: [0; 32], events: &[], beacon: beacon.beacon() };
    let (state, _) = advance(&State::new(), entries(runtime, ledger, &of_block)?);
    let header = Header {
        number: 0,
        parent: BlockHash::default(),
        state_root: ledger.hash(),
        extrinsics_root: extrinsics_root(&[]),
    };
    let (spec_version, timestamp_ms) = (runtime.spec_version(), ledger.header().timestamp_ms);
    Ok((Sealed { header, hash: header.hash(), timestamp_ms, spec_version, extrinsics: Vec::new() }, state))
}

impl Materials {
    fn of(shared: &Shared, chain: &Chain) -> Self {
        let parent_ms = chain.ledger.header().timestamp_ms;
        Self {
            ledger: (*chain.ledger).clone(),
            state: Arc::clone(&chain.state),
            runtime: chain.runtime.clone(),
            beacon: shared.beacon.clone(),
            parent: chain.best().hash,
            timestamp_ms: match shared.pace {
                Pace::Real => now_ms(),
                Pace::Virtual | Pace::OnDemand => parent_ms.saturating_add(millis(shared.block_time)),
            },
            calls: chain.pool.ready(chain.number() + 1),
        }
    }

    fn draft(self) -> Result<Draft, WireError> {
        let Self { mut ledger, state, runtime, beacon, parent, timestamp_ms, calls } = self;
        let (calls, bytes): (Vec<_>, Vec<_>) = calls.into_iter().unzip();
        ledger.follow(&beacon, timestamp_ms);
        let (happened, receipts) = ledger.step_verified(timestamp_ms, calls);
        let timestamp_ms = ledger.header().timestamp_ms;
        let included = receipts.iter().zip(bytes).filter(|(receipt, _)| is_included(receipt)).map(|(_, bytes)| bytes);
        let dated = extrinsic::timestamp(&runtime, timestamp_ms)?;
        let extrinsics: Vec<Vec<u8>> = std::iter::once(dated).chain(included).collect();
        let records = records(&runtime, ledger.netuid(), &happened, &receipts);
        let of_block = OfBlock { parent_hash: parent.0, events: &records, beacon: beacon.beacon() };
        let (state, delta) = advance(&state, entries(&runtime, &ledger, &of_block)?);
        let (number, state_root) = (ledger.header().number.0, ledger.hash());
        let header = Header { number, parent, state_root, extrinsics_root: extrinsics_root(&extrinsics) };
        let sealed =
            Sealed { header, hash: header.hash(), timestamp_ms, spec_version: runtime.spec_version(), extrinsics };
        Ok(Draft { ledger, sealed, state, delta, receipts })
    }
}

fn is_included(receipt: &Receipt) -> bool {
    matches!(receipt.verdict, Verdict::Included { .. })
}

/// The block's events: what it did by itself, the one that dates it, then each call's own and its outcome. A call that succeeds has one event
/// of its own, and the ledger tells them in the order of the calls.
fn records(
    runtime: &Runtime,
    netuid: u16,
    happened: &[Event],
    receipts: &[Receipt],
) -> Vec<subxt::ext::scale_value::Value> {
    let by_itself = happened.iter().filter(|event| !event.is_of_call());
    let by_itself = by_itself.filter_map(|event| events::of_ledger(runtime, netuid, event));
    let mut records: Vec<_> = by_itself.map(|event| events::record(None, event)).collect();
    records.push(events::record(Some(0), events::outcome(runtime, Ok(()))));
    let mut own = happened.iter().filter(|event| event.is_of_call());
    for receipt in receipts {
        let Verdict::Included { index, result } = receipt.verdict else { continue };
        let told = if result.is_ok() { own.next() } else { None };
        let told = told.and_then(|event| events::of_ledger(runtime, netuid, event));
        // The block maker's own extrinsic comes before all of them.
        let place = Some(index + 1);
        records.extend(told.map(|event| events::record(place, event)));
        records.push(events::record(place, events::outcome(runtime, result)));
    }
    records
}

/// Makes the next block and shows it.
pub(super) async fn make_block(shared: &Arc<Shared>) -> Result<Arc<Sealed>, ChainError> {
    let making = Arc::clone(&shared.making).lock_owned().await;
    let (_, made) = extend(shared, making, 0).await?;
    Ok(made)
}

/// Replaces the last `depth` blocks by one more than there were, at once. Their calls wait again.
pub(super) async fn fork(shared: &Arc<Shared>, depth: u64) -> Result<Arc<Sealed>, ChainError> {
    let mut making = Arc::clone(&shared.making).lock_owned().await;
    {
        let mut chain = shared.chain();
        let root = chain.number().saturating_sub(depth);
        let oldest = chain.oldest_ledger().max(shared.heads.borrow().finalized.header.number);
        if root < oldest || depth > chain.number() {
            return Err(ChainError::Pruned {
                block: convoke::terms::Block(root),
                oldest: convoke::terms::Block(oldest),
            });
        }
        chain.rewind(root);
        making.rewound_to = Some(making.rewound_to.map_or(root, |before| before.min(root)));
    }
    // Another time than the dropped block had makes another block.
    let (mut making, mut made) = extend(shared, making, 1).await?;
    for _ in 0..depth {
        (making, made) = extend(shared, making, 0).await?;
    }
    drop(making);
    Ok(made)
}

type Held = OwnedMutexGuard<Making>;

async fn extend(shared: &Arc<Shared>, making: Held, later_ms: u64) -> Result<(Held, Arc<Sealed>), ChainError> {
    let mut materials = {
        let chain = shared.chain();
        if chain.has_stopped {
            return Err(ChainError::Stopped);
        }
        Materials::of(shared, &chain)
    };
    materials.timestamp_ms = materials.timestamp_ms.saturating_add(later_ms);
    let worked = tokio::task::spawn_blocking(move || make_and_store(making, materials)).await;
    let (making, draft) = worked.map_err(|panicked| ChainError::Store { reason: panicked.to_string() })??;
    debug!(block = draft.sealed.header.number, hash = draft.sealed.hash.short(), "block made");
    Ok((making, show(shared, draft)))
}

/// On a thread that may block.
fn make_and_store(mut making: Held, materials: Materials) -> Result<(Held, Draft), ChainError> {
    let draft = materials.draft().map_err(|error| ChainError::Foreign { reason: error.to_string() })?;
    let rewound_to = making.rewound_to;
    if let Some(store) = &making.store {
        store.write(&draft, rewound_to).map_err(|error| ChainError::Store { reason: error.to_string() })?;
    }
    making.rewound_to = None;
    Ok((making, draft))
}

fn show(shared: &Shared, draft: Draft) -> Arc<Sealed> {
    let mut chain = shared.chain();
    chain.install(draft);
    let best = Arc::clone(chain.best());
    let final_number = best.header.number.saturating_sub(shared.finality_depth);
    let finalized = chain.block(final_number).map(Arc::clone).filter(|_| !chain.is_finality_stalled);
    // Under the lock, so that the heads never run ahead of what can be read.
    shared.heads.send_modify(|heads| {
        let newer = finalized.filter(|block| block.header.number > heads.finalized.header.number);
        if let Some(newer) = newer {
            heads.finalized = newer;
        }
        heads.best = Arc::clone(&best);
        chain.pool.finalize(heads.finalized.header.number);
    });
    best
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Makes a block every block time until nobody holds the chain any more.
pub(super) async fn run(shared: Weak<Shared>, block_time: Duration) {
    let mut ticks = interval_at(tokio::time::Instant::now() + block_time, block_time);
    // After a pause the blocks that were missed are not made up for: nobody trained in them.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        if shared.chain().is_stalled {
            continue;
        }
        match make_block(&shared).await {
            Ok(_) => {}
            Err(ChainError::Stopped) => return,
            Err(reason) => error!(%reason, "block not made"),
        }
    }
}

/// The heads of a chain that was just opened.
pub(super) fn heads(chain: &Chain, finality_depth: u64) -> Heads {
    let best = Arc::clone(chain.best());
    let finalized = chain.block(best.header.number.saturating_sub(finality_depth)).unwrap_or(&best);
    Heads { finalized: Arc::clone(finalized), best }
}
