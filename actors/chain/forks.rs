//! Forks of a hosted chain: the last blocks are replaced by others, as when a longer branch of another producer arrives.
//!
//! ```text
//!   root ── a ── b            what was the best chain
//!      └──── a' ── b' ── c'   what is the best chain after a fork of depth 2 that is 1 ahead
//! ```
//! The other branch's producers had heard of no calls: its blocks are empty. Those of the dropped blocks wait again and are in a later
//! one; their senders had been told of the block that is gone, and are told nothing more, as on a live network where nobody waits
//! for finality. Whoever reads at a number finds the new branch's block. What is final is never dropped.

use std::sync::Arc;

use convoke::chain::Ledger;
use convoke::terms::Block;
use tracing::debug;

use super::host::{Chain, Host, Shared, VIEWS_KEPT, View};
use super::{BlockRef, ChainError, Commitments, maker};

/// Most blocks that a fork drops.
pub(super) const FORK_DEPTH_MAX: u64 = 8;

impl Host {
    /// Replaces the last `depth` blocks, at least one, by `ahead` more than they were, at once. Answers with the new best.
    ///
    /// # Errors
    /// Blocks that are final, that are too far back, or that are kept in a file; a block that is being made; a chain that has stopped.
    pub fn fork(&self, depth: u64, ahead: u64) -> Result<BlockRef, ChainError> {
        let depth = depth.max(1);
        // Nobody else makes a block meanwhile.
        let Ok(_making) = self.shared.store.try_lock() else {
            return Err(ChainError::Store { reason: "a block is in the making".to_owned() });
        };
        let mut chain = self.shared.chain();
        if chain.has_stopped {
            return Err(ChainError::Stopped);
        }
        let (best, finalized) = (chain.ledger.header().number, self.shared.heads.borrow().finalized.number);
        let (root, oldest) = (Block(best.0.saturating_sub(depth)), chain.oldest_root().max(finalized));
        if depth > best.0 || root < oldest {
            return Err(ChainError::Pruned { block: root, oldest });
        }
        chain.rewind(root);
        // Another time than the dropped block had makes another block.
        let mut best = chain.extend(&self.shared, 1);
        for _ in 1..depth.saturating_add(ahead) {
            best = chain.extend(&self.shared, 0);
        }
        debug!(root = root.0, best = best.number.0, hash = best.hash.short(), "forked");
        maker::tell(&self.shared, &mut chain, best);
        Ok(best)
    }
}

impl Chain {
    /// Everybody's commitments at the best block.
    pub(super) fn committed(&self) -> Option<Arc<Commitments>> {
        self.views.last_key_value().map(|(_, view)| Arc::clone(&view.commitments))
    }

    /// The oldest block that a fork may begin at.
    pub(super) fn oldest_root(&self) -> Block {
        self.roots.first_key_value().map_or(self.ledger.header().number, |(number, _)| Block(*number))
    }

    /// Puts the next block on top, and keeps so many of the ledgers before it.
    pub(super) fn install(&mut self, ledger: Ledger, view: View, roots_kept: u64) -> BlockRef {
        let best = view.block;
        let before = std::mem::replace(&mut self.ledger, ledger);
        self.roots.insert(before.header().number.0, before);
        while self.roots.len() as u64 > roots_kept {
            self.roots.pop_first();
        }
        self.views.insert(best.number.0, view);
        while self.views.len() as u64 > VIEWS_KEPT {
            self.views.pop_first();
        }
        best
    }

    /// Forgets every block after `root`, which must be among those that are kept.
    fn rewind(&mut self, root: Block) {
        let Some(ledger) = self.roots.remove(&root.0) else { return };
        self.ledger = ledger;
        self.roots.split_off(&root.0);
        self.views.split_off(&(root.0 + 1));
        self.pool.rewind(root);
    }

    /// An empty block on top, dated so much later than it would be.
    fn extend(&mut self, shared: &Shared, later_ms: u64) -> BlockRef {
        let mut ledger = self.ledger.clone();
        let timestamp_ms = maker::timestamp_ms(shared, ledger.header().timestamp_ms).saturating_add(later_ms);
        ledger.follow(&shared.beacon, timestamp_ms);
        ledger.step(timestamp_ms, &[]);
        let view = View::of(&ledger, self.committed());
        self.install(ledger, view, shared.fork_depth_max)
    }
}
