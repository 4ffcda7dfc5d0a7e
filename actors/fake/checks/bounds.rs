//! Nothing grows without bound: neither files, nor what is kept for peers, nor the work that waits.
//!
//! Each bound is derived from what the node promises to keep, and a few times what it needs at most; whatever grows with the rounds
//! passes it within some dozens of them.
//!
//! **Mailboxes.** ractor does not tell how long one is, so what fills them is counted. GpuWorker, Compressor and Gauntlet hand each
//! message on to their bench at once: the queue of the bench is their mailbox. Whatever else is asked of an actor is asked by a
//! procedure of RoundClock, each of which waits for one answer at a time, and ends with one message to RoundClock: so the number of
//! procedures bounds the mailboxes of PeerSync, ChainWriter and RoundClock, but for the heads, of which there is one a block.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use convoke::manifest;
use convoke::payload::transport;
use convoke::run_spec::RunSpec;
use convoke::sparseloco::Layout;
use convoke::terms::Round;

use crate::disk::Disk;
use crate::fake::disk::FakeDisk;
use crate::fake::fence::Fence;
use crate::fake::net::Tally;
use crate::leaf::Leaf;
use crate::peer_sync::store::STATES_KEPT;
use crate::workbench::Pace;

/// Boundaries in a store: two that are kept, one that is being written, and one that is newer than that which a node whose newest one
/// is damaged has gone on from.
const BOUNDARIES_MAX: u64 = 4;
/// Files of a boundary: sections of Compressor, GpuWorker and Gauntlet, what each of them writes in between, and the last word.
const FILES_A_BOUNDARY: u64 = 7;
/// Files beside the boundaries: the run, the chain, the outbox.
const FILES_BESIDE: u64 = 3;
/// A file, and what a death in the middle of a write has left beside it.
const COPIES_OF_A_FILE: u64 = 2;
/// Vectors as long as θ in a boundary: θ, e, and e again after the payload; two averages of AdamW, and again after the inner steps.
const VECTORS_A_BOUNDARY: u64 = 7;
/// Sections with ratings in a boundary.
const RATINGS_A_BOUNDARY: u64 = 2;
/// Bytes of a peer's record: a hotkey, and ten numbers.
const BYTES_A_RECORD: u64 = 256;
/// Rounds whose payloads are known again, and bytes by which one is.
const REPLAY_ROUNDS: u64 = 64;
const BYTES_A_REPLAY: u64 = 32 + 8;
/// Whatever is of one size, headers and lists among it, and the outbox with a weight a node.
const BYTES_BESIDE: u64 = 16 << 10;
/// Rounds whose blobs are kept for those who come back, as PeerSync does, and the two that are under way.
const SHELF_ROUNDS: u64 = 64 + 2;
/// What three procedures may have asked of one actor at once, those of a round's phase, of its vote and of its evaluation, and the same
/// for a round that was given up while they waited.
const WAITING_MAX: usize = 6;
/// A phase's procedure, a vote's, an evaluation's, a look at who may connect, the keeping of a checkpoint and the setting of weights; of
/// this round, and of two before it, whose answers may still be waited for. RoundClock and whoever begins one are counted as well.
const PROCEDURES_MAX: usize = 3 * 6 + 2;

/// What a node may have at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes on its disk.
    disk_bytes: u64,
    /// Files there.
    files: u64,
    /// Blobs that it keeps for its peers.
    blobs: u64,
    /// Their bytes.
    blob_bytes: u64,
}

/// What a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Boundaries in its store, whole or not.
    pub boundaries: u64,
    /// Files on its disk.
    pub files: u64,
    /// Bytes on its disk.
    pub disk_bytes: u64,
    /// What it keeps for its peers.
    pub shelf: Tally,
    /// The most work that has waited at one of its benches.
    pub waiting: usize,
    /// The most procedures that were under way.
    pub procedures: usize,
}

impl Size {
    /// Of a node with this disk, whose store is in `dir`, and with this shelf.
    #[must_use]
    pub fn of(disk: &FakeDisk, dir: &Path, shelf: Tally, crowd: Crowd) -> Self {
        let names = disk.mount(Fence::new()).list(dir).unwrap_or_default();
        Self {
            boundaries: names.iter().filter(|name| name.starts_with("round-")).count() as u64,
            files: disk.n_files() as u64,
            disk_bytes: disk.bytes(),
            shelf,
            waiting: crowd.waiting,
            procedures: crowd.procedures,
        }
    }
}

impl Bounds {
    /// Of a run with so many nodes, each of which may seal a payload and vote for a manifest in every round.
    #[must_use]
    pub fn new(n_nodes: usize, layout: &Layout, run: &RunSpec) -> Self {
        let (n_nodes, theta) = (n_nodes as u64, layout.flat_len() as u64 * 4);
        let payload = transport::len_max(layout, &run.sparse) as u64;
        let manifest = manifest::len_max(run.gauntlet.contributors_max) as u64;
        let ratings = n_nodes * (BYTES_A_RECORD + REPLAY_ROUNDS * BYTES_A_REPLAY);
        // What undoes a payload is a few values of each that it has.
        let boundary = VECTORS_A_BOUNDARY * theta + RATINGS_A_BOUNDARY * ratings + 2 * payload + BYTES_BESIDE;
        Self {
            disk_bytes: COPIES_OF_A_FILE * (BOUNDARIES_MAX * boundary + BYTES_BESIDE + n_nodes * BYTES_A_RECORD),
            files: COPIES_OF_A_FILE * (BOUNDARIES_MAX * FILES_A_BOUNDARY + FILES_BESIDE),
            blobs: SHELF_ROUNDS * 2 * n_nodes + STATES_KEPT as u64,
            blob_bytes: SHELF_ROUNDS * n_nodes * (payload + manifest) + STATES_KEPT as u64 * theta,
        }
    }

    /// What there is too much of.
    #[must_use]
    pub fn exceeded(&self, size: &Size) -> Vec<String> {
        let amounts = [
            ("boundaries in the store", size.boundaries, BOUNDARIES_MAX),
            ("files", size.files, self.files),
            ("bytes in files", size.disk_bytes, self.disk_bytes),
            ("blobs for peers", size.shelf.blobs_held as u64, self.blobs),
            ("bytes in blobs for peers", size.shelf.bytes_held, self.blob_bytes),
            ("requests before one bench", size.waiting as u64, WAITING_MAX as u64),
            ("procedures of the round clock", size.procedures as u64, PROCEDURES_MAX as u64),
        ];
        let exceeded = amounts.into_iter().filter(|(_, amount, most)| amount > most);
        exceeded.map(|(what, amount, most)| format!("{amount} {what}, at most {most} are in order")).collect()
    }
}

/// The most that has waited in a node since it was last looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Crowd {
    waiting: usize,
    procedures: usize,
}

/// What waits in all nodes.
#[derive(Debug)]
pub struct Crowds(Mutex<Vec<Crowd>>);

impl Crowds {
    /// Of so many nodes.
    #[must_use]
    pub fn new(n_nodes: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(vec![Crowd::default(); n_nodes])))
    }

    /// The same pace for the benches of a node, which is told how much waits there.
    #[must_use]
    pub fn watch(self: &Arc<Self>, node: usize, pace: Arc<dyn Pace>) -> Arc<dyn Pace> {
        Arc::new(Watched { node, crowds: Arc::clone(self), pace })
    }

    /// The most since the last call, which begins anew with it.
    pub fn take_most(&self, node: usize) -> Crowd {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.get_mut(node).map(std::mem::take).unwrap_or_default()
    }

    fn change(&self, node: usize, change: impl FnOnce(&mut Crowd)) {
        if let Some(crowd) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(node) {
            change(crowd);
        }
    }
}

struct Watched {
    node: usize,
    crowds: Arc<Crowds>,
    pace: Arc<dyn Pace>,
}

impl Pace for Watched {
    fn cost(&self, leaf: Leaf, point: &'static str, round: Round) -> Duration {
        self.pace.cost(leaf, point, round)
    }

    fn waiting(&self, leaf: Leaf, pieces: usize) {
        self.pace.waiting(leaf, pieces);
        self.crowds.change(self.node, |crowd| crowd.waiting = crowd.waiting.max(pieces));
    }

    fn procedures(&self, under_way: usize) {
        self.pace.procedures(under_way);
        self.crowds.change(self.node, |crowd| crowd.procedures = crowd.procedures.max(under_way));
    }
}

#[cfg(test)]
mod tests {
    use convoke::sparseloco::TensorShape;
    use convoke::terms::RunId;

    use super::*;
    use crate::config::Layers;
    use crate::store::Store;

    const DIR: &str = "/n0/state";

    fn bounds(n_nodes: usize) -> Bounds {
        let layout = Layout::new(vec![TensorShape { name: "matrix".to_owned(), shape: vec![64, 64] }]).unwrap();
        Bounds::new(n_nodes, &layout, &Layers::default().read().unwrap().run)
    }

    fn disk(rounds: u64, forgets: bool) -> FakeDisk {
        let disk = FakeDisk::new();
        let store = Store::open_on(Arc::new(disk.mount(Fence::new())), Path::new(DIR), RunId([1; 32])).unwrap();
        for round in (1..=rounds).map(Round) {
            store.write(round, "a", &[7; 32 << 10]).unwrap();
            if forgets {
                store.complete(round, &["a"]).unwrap();
            }
        }
        disk
    }

    #[test]
    fn a_store_that_forgets_is_within_bounds_and_one_that_does_not_is_not() {
        let size = |forgets| Size::of(&disk(60, forgets), Path::new(DIR), Tally::default(), Crowd::default());
        assert_eq!(size(true).boundaries, 2);
        assert!(bounds(16).exceeded(&size(true)).is_empty());
        let exceeded = bounds(16).exceeded(&size(false));
        assert!(exceeded[0].starts_with("60 boundaries"), "{exceeded:?}");
    }

    #[test]
    fn whatever_there_is_too_much_of_is_named() {
        let bounds = bounds(16);
        let most = Size {
            boundaries: BOUNDARIES_MAX,
            files: bounds.files,
            disk_bytes: bounds.disk_bytes,
            shelf: Tally { blobs_held: bounds.blobs as usize, bytes_held: bounds.blob_bytes, ..Tally::default() },
            waiting: WAITING_MAX,
            procedures: PROCEDURES_MAX,
        };
        assert!(bounds.exceeded(&most).is_empty());
        let too_much: [fn(&mut Size); 7] = [
            |size| size.boundaries += 1,
            |size| size.files += 1,
            |size| size.disk_bytes += 1,
            |size| size.shelf.blobs_held += 1,
            |size| size.shelf.bytes_held += 1,
            |size| size.waiting += 1,
            |size| size.procedures += 1,
        ];
        for (idx, change) in too_much.into_iter().enumerate() {
            let mut size = most;
            change(&mut size);
            assert_eq!(bounds.exceeded(&size).len(), 1, "amount {idx}");
        }
    }

    #[test]
    fn a_payload_more_a_round_and_node_is_seen_before_a_run_is_over() {
        let (bounds, n_nodes) = (bounds(64), 64);
        let kept = |rounds: u64| Tally { blobs_held: (rounds * n_nodes) as usize, ..Tally::default() };
        let exceeded = |rounds| bounds.exceeded(&Size { shelf: kept(rounds), ..Size::default() }).len();
        assert_eq!((exceeded(SHELF_ROUNDS), exceeded(200)), (0, 1));
    }

    struct Steady;

    impl Pace for Steady {
        fn cost(&self, _: Leaf, _: &'static str, _: Round) -> Duration {
            Duration::from_secs(1)
        }
    }

    #[test]
    fn the_most_that_waited_is_told_once() {
        let crowds = Crowds::new(2);
        let pace = crowds.watch(1, Arc::new(Steady));
        assert_eq!(pace.cost(Leaf::Compressor, "save", Round(1)), Duration::from_secs(1));
        for n in [2, 5, 3] {
            pace.waiting(Leaf::Compressor, n);
            pace.procedures(10 + n);
        }
        assert_eq!(crowds.take_most(1), Crowd { waiting: 5, procedures: 15 });
        assert_eq!([1, 0, 9].map(|node| crowds.take_most(node)), [Crowd::default(); 3]);
    }
}
