//! Who makes blocks: on demand, or one every block time.
//!
//! A block is made on a copy of the ledger, written to disk, and only then shown: a store that fails costs the attempt,
//! and nobody has seen a block that a restart would not find.

use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use convoke::terms::Block;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{MissedTickBehavior, interval_at};
use tracing::{debug, error};

use super::host::{Chain, Pace, Shared, View};
use super::store::Store;
use super::{BlockRef, ChainError, Heads};

/// Makes the next block and shows it.
pub(super) async fn make_block(shared: &Arc<Shared>) -> Result<BlockRef, ChainError> {
    // One block at a time; readers and callers are not kept waiting meanwhile.
    let store = Arc::clone(&shared.store).lock_owned().await;
    let (mut ledger, calls, committed) = {
        let chain = shared.chain();
        if chain.has_stopped {
            return Err(ChainError::Stopped);
        }
        let block = Block(chain.ledger.header().number.0 + 1);
        (chain.ledger.clone(), chain.pool.ready(block), chain.committed())
    };
    let timestamp_ms = timestamp_ms(shared, ledger.header().timestamp_ms);
    ledger.follow(&shared.beacon, timestamp_ms);
    let (_, receipts) = ledger.step_verified(timestamp_ms, calls);
    let view = View::of(&ledger, committed);
    let ledger = persist(store, ledger, view.clone()).await?;
    debug!(block = view.block.number.0, hash = view.block.hash.short(), calls = receipts.len(), "block made");

    let mut chain = shared.chain();
    chain.pool.settle(&view.block, &receipts, &view.metagraph);
    let best = chain.install(ledger, view, shared.fork_depth_max);
    tell(shared, &mut chain, best);
    Ok(best)
}

/// Tells of a new best head, and of the final one behind it. Under the lock, so that the heads never run ahead of what can be read,
/// nor the final one back.
pub(super) fn tell(shared: &Shared, chain: &mut Chain, best: BlockRef) {
    let final_number = best.number.0.saturating_sub(shared.finality_depth);
    let stalled = chain.is_finality_stalled;
    let finalized = chain.views.get(&final_number).map(|view| view.block).filter(|_| !stalled);
    let told = shared.heads.borrow().finalized;
    let finalized = finalized.filter(|block| block.number > told.number).unwrap_or(told);
    let settled = finalized.number.max(chain.oldest_root());
    chain.pool.forget(settled);
    shared.heads.send_replace(Heads { best, finalized });
}

/// Writes the block where there is a file, on a thread that may block.
async fn persist(
    store: OwnedMutexGuard<Option<Store>>,
    ledger: convoke::chain::Ledger,
    view: View,
) -> Result<convoke::chain::Ledger, ChainError> {
    if store.is_none() {
        return Ok(ledger);
    }
    let write = move || {
        let written = store.as_ref().map_or(Ok(()), |store| store.write(None, &ledger, &view));
        written.map(|()| ledger)
    };
    match tokio::task::spawn_blocking(write).await {
        Ok(written) => written,
        Err(panicked) => Err(ChainError::Store { reason: panicked.to_string() }),
    }
}

/// When the block after one of this time is.
pub(super) fn timestamp_ms(shared: &Shared, parent_ms: u64) -> u64 {
    match shared.pace {
        Pace::Real => now_ms(),
        Pace::Virtual | Pace::OnDemand => parent_ms.saturating_add(millis(shared.block_time)),
    }
}

/// The time of this machine, milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
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
        if shared.chain.lock().unwrap_or_else(PoisonError::into_inner).is_stalled {
            continue;
        }
        match make_block(&shared).await {
            Ok(_) => {}
            Err(ChainError::Stopped) => return,
            Err(reason) => error!(%reason, "block not made"),
        }
    }
}
