//! When which node hears of the chain's heads: all at once, or one of them later or earlier than the others.
//!
//! ```text
//!   chain ── heads ──> one task ──┬── at once ──────────> heads as node 0 sees them
//!                                 ├── at once ──────────> heads as node 1 sees them
//!                                 └── a while later ────> heads as node 2 sees them
//! ```
//! Nobody can hear of a block before it is made: where a node is early, all others are late by as much. What a node asks of the chain at
//! a block that it has heard of is answered at once, by the chain as it is now.
//!
//! One task serves all nodes, in their order, so that a head costs a node one message and no timer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use convoke::terms::{Block, BlockHash};
use tokio::time::{Instant, sleep_until};

use crate::chain::{ChainFuture, ChainRead, Commitments, HeadReader, HeadWatch, Heads, Metagraph};

/// How a node stands to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Skew {
    /// It hears of a head when it is made.
    #[default]
    None,
    /// So much later.
    Late(Duration),
    /// So much earlier than all others.
    Early(Duration),
}

impl Skew {
    fn late(self) -> Duration {
        if let Self::Late(by) = self { by } else { Duration::ZERO }
    }

    fn early(self) -> Duration {
        if let Self::Early(by) = self { by } else { Duration::ZERO }
    }
}

/// The heads as each node sees them.
pub struct Clocks {
    chain: Arc<dyn ChainRead>,
    watches: Vec<HeadWatch>,
    skews: Mutex<Vec<Skew>>,
}

impl Clocks {
    /// For so many nodes, all of which hear of heads at once. Must be called within a Tokio runtime.
    #[must_use]
    pub fn new(chain: Arc<dyn ChainRead>, n_nodes: usize) -> Arc<Self> {
        let heads = chain.heads();
        let watches = (0..n_nodes).map(|_| HeadWatch::new(heads.borrow())).collect();
        let clocks = Arc::new(Self { chain, watches, skews: Mutex::new(vec![Skew::None; n_nodes]) });
        tokio::spawn(tell(Arc::downgrade(&clocks), heads));
        clocks
    }

    fn skews(&self) -> MutexGuard<'_, Vec<Skew>> {
        self.skews.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From the next head on a node hears of them so.
    pub fn skew(&self, node: usize, skew: Skew) {
        if let Some(own) = self.skews().get_mut(node) {
            *own = skew;
        }
    }

    /// The chain as a node sees it.
    ///
    /// # Panics
    /// If there is no such node.
    #[must_use]
    pub fn reader(self: &Arc<Self>, node: usize) -> Arc<dyn ChainRead> {
        assert!(node < self.watches.len(), "node {node} has no clock");
        Arc::new(Skewed { clocks: Arc::clone(self), node })
    }

    /// How much later than it is made each node hears of a head.
    fn lags(&self) -> Vec<Duration> {
        let skews = self.skews();
        let earliest = skews.iter().map(|skew| skew.early()).max().unwrap_or_default();
        skews.iter().map(|skew| skew.late() + earliest - skew.early()).collect()
    }
}

/// Heads on their way to nodes that hear of them late.
#[derive(Default)]
struct Underway {
    /// By when they are there, and in which order they were sent.
    heads: BTreeMap<(Instant, u64), (usize, Heads)>,
    n_sent: u64,
    /// What each node was told last: what was sent before it is no news.
    told: BTreeMap<usize, u64>,
}

impl Underway {
    fn next(&self) -> Option<Instant> {
        self.heads.first_key_value().map(|((at, _), _)| *at)
    }

    /// Sends a head to all nodes.
    fn send(&mut self, clocks: &Clocks, heads: Heads, now: Instant) {
        self.n_sent += 1;
        for (node, lag) in clocks.lags().into_iter().enumerate() {
            if lag.is_zero() {
                self.tell(clocks, node, heads, self.n_sent);
            } else {
                // In the order of the nodes among those that come at one time.
                let order = self.n_sent * clocks.watches.len() as u64 + node as u64;
                self.heads.insert((now + lag, order), (node, heads));
            }
        }
    }

    /// Delivers what has come by now.
    fn deliver(&mut self, clocks: &Clocks, now: Instant) {
        while let Some(entry) = self.heads.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, order), (node, heads)) = entry.remove_entry();
            self.tell(clocks, node, heads, order / clocks.watches.len() as u64);
        }
    }

    fn tell(&mut self, clocks: &Clocks, node: usize, heads: Heads, sent: u64) {
        let told = self.told.entry(node).or_default();
        if sent > *told {
            *told = sent;
            clocks.watches[node].send_replace(heads);
        }
    }
}

/// Tells all nodes of the chain's heads, for as long as anybody has a clock.
async fn tell(clocks: Weak<Clocks>, mut heads: HeadReader) {
    let mut underway = Underway::default();
    loop {
        let next = underway.next();
        let is_news = tokio::select! {
            biased;
            told = heads.changed() => match told {
                Ok(()) => true,
                Err(_) => return,
            },
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => false,
        };
        let (Some(clocks), now) = (clocks.upgrade(), Instant::now()) else { return };
        underway.deliver(&clocks, now);
        if is_news {
            underway.send(&clocks, heads.borrow(), now);
        }
    }
}

/// The chain, and when one node hears of its heads.
struct Skewed {
    clocks: Arc<Clocks>,
    node: usize,
}

impl ChainRead for Skewed {
    fn genesis(&self) -> BlockHash {
        self.clocks.chain.genesis()
    }

    fn netuid(&self) -> u16 {
        self.clocks.chain.netuid()
    }

    fn heads(&self) -> HeadReader {
        self.clocks.watches[self.node].subscribe()
    }

    fn block_hash(&self, number: Block) -> ChainFuture<'_, Option<BlockHash>> {
        self.clocks.chain.block_hash(number)
    }

    fn metagraph(&self, at: Block) -> ChainFuture<'_, Arc<Metagraph>> {
        self.clocks.chain.metagraph(at)
    }

    fn commitments(&self, at: Block) -> ChainFuture<'_, Arc<Commitments>> {
        self.clocks.chain.commitments(at)
    }

    fn block_time(&self) -> Duration {
        self.clocks.chain.block_time()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;
    use crate::chain::host::development_genesis;
    use crate::chain::{Host, HostConfig, Pace};

    const BLOCK: Duration = Duration::from_secs(1);
    const NODES: usize = 3;

    /// A chain, its clocks, and readers of them.
    fn scene() -> (Host, Arc<Clocks>, Vec<HeadReader>) {
        let config = HostConfig { block_time: BLOCK, finality_depth: 2, pace: Pace::OnDemand, file: None };
        let host = Host::start(&development_genesis(3, 1), config).unwrap();
        let clocks = Clocks::new(host.reader(), NODES);
        let heads = (0..NODES).map(|node| clocks.reader(node).heads()).collect();
        (host, clocks, heads)
    }

    fn seen(heads: &[HeadReader]) -> Vec<u64> {
        heads.iter().map(|heads| heads.borrow().best.number.0).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_is_seen_at_once_late_or_early() {
        let (host, clocks, heads) = scene();
        clocks.skew(1, Skew::Late(2 * BLOCK));
        host.mine(1).await.unwrap();
        sleep(BLOCK / 10).await;
        assert_eq!(seen(&heads), [1, 0, 1]);
        host.mine(1).await.unwrap();
        sleep(2 * BLOCK - BLOCK / 20).await;
        assert_eq!(seen(&heads), [2, 1, 2]);
        sleep(BLOCK / 10).await;
        assert_eq!(seen(&heads), [2, 2, 2]);

        clocks.skew(1, Skew::Early(BLOCK / 4));
        host.mine(1).await.unwrap();
        sleep(BLOCK / 10).await;
        assert_eq!(seen(&heads), [2, 3, 2]);
        sleep(BLOCK / 4).await;
        assert_eq!(seen(&heads), [3, 3, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_right_again_never_goes_back() {
        let (host, clocks, mut heads) = scene();
        clocks.skew(0, Skew::Late(3 * BLOCK));
        host.mine(1).await.unwrap();
        sleep(BLOCK).await;
        clocks.skew(0, Skew::None);
        host.mine(1).await.unwrap();
        sleep(BLOCK).await;
        assert_eq!(heads[0].borrow_and_update().best.number, Block(2));
        sleep(10 * BLOCK).await;
        assert_eq!(heads[0].borrow().best.number, Block(2));
        let nothing_more = tokio::time::timeout(BLOCK, heads[0].changed()).await;
        assert!(nothing_more.is_err(), "the late one is no news");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fork_is_told_too_and_the_end_as_well() {
        let (host, clocks, mut heads) = scene();
        host.mine(3).await.unwrap();
        sleep(BLOCK / 10).await;
        let before = heads[2].borrow_and_update().best;
        let other = host.fork(1, 0).unwrap();
        sleep(BLOCK / 10).await;
        assert_eq!((heads[2].borrow().best, other.number), (other, before.number));
        let reader = clocks.reader(2);
        assert_eq!(reader.block_hash(other.number).await.unwrap(), Some(other.hash));
        heads[2].borrow_and_update();
        drop((reader, clocks, host));
        assert!(heads[2].changed().await.is_err());
    }
}
