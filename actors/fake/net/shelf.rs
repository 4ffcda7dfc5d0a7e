//! The blobs of one simulated endpoint, kept and forgotten by the rules of the real store (`peer_sync/store.rs`).
//!
//! It is the endpoint's disk: what is on it outlives the process, and of what is forgotten the bytes go at once. The real store's labels
//! come down to three facts here: the newest round that names a blob, its latest reveal, and whether it is one of the newest states.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use bytes::Bytes;
use convoke::terms::Round;
use iroh_blobs::Hash;

use crate::peer_sync::gate::{Gate, Reveal};
use crate::peer_sync::store::{Kind, Label, STATES_KEPT};

/// A blob, and what its labels come to.
struct Held {
    bytes: Bytes,
    /// The newest round that names it; none if only a state does.
    newest: Option<Round>,
    reveal: Reveal,
}

/// Takes of what is a hash already the first eight bytes. It draws nothing, so that the order of a shelf is that of its run.
#[derive(Default)]
struct Front(u64);

impl Hasher for Front {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.first_chunk().map_or(0, |front| u64::from_le_bytes(*front));
    }

    /// The length of the array, which is the same of all.
    fn write_usize(&mut self, _: usize) {}
}

/// What an endpoint keeps.
#[derive(Default)]
pub(super) struct Shelf {
    blobs: HashMap<[u8; 32], Held, BuildHasherDefault<Front>>,
    /// Which blobs each round has named first, or again after older ones: so that forgetting looks only at what it forgets.
    by_round: BTreeMap<Round, Vec<[u8; 32]>>,
    states: BTreeSet<(Round, [u8; 32])>,
    n_bytes: u64,
}

impl Shelf {
    pub fn find(&self, hash: &[u8; 32]) -> Option<&Bytes> {
        self.blobs.get(hash).map(|held| &held.bytes)
    }

    /// The newest state that is not this one.
    pub fn other_state(&self, hash: &[u8; 32]) -> Option<&Bytes> {
        let (_, other) = self.states.iter().rev().find(|(_, state)| state != hash)?;
        self.find(other)
    }

    pub fn len(&self) -> usize {
        self.blobs.len()
    }

    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Opens the gate for all that is here, as a store does that is opened.
    pub fn open(&self, gate: &Gate) {
        for (hash, held) in &self.blobs {
            gate.allow(Hash::from_bytes(*hash), held.reveal);
        }
    }

    /// Keeps bytes that have this hash, and opens the gate for them from the label's reveal on.
    pub fn keep(&mut self, gate: &Gate, hash: [u8; 32], bytes: &Bytes, label: Label) {
        let held = self.blobs.entry(hash).or_insert_with(|| {
            self.n_bytes += bytes.len() as u64;
            Held { bytes: bytes.clone(), newest: None, reveal: label.reveal }
        });
        held.reveal = held.reveal.max(label.reveal);
        gate.allow(Hash::from_bytes(hash), label.reveal);
        if label.kind == Kind::State {
            self.states.insert((label.round, hash));
            self.drop_old_states(gate);
        } else if held.newest.is_none_or(|newest| newest < label.round) {
            held.newest = Some(label.round);
            self.by_round.entry(label.round).or_default().push(hash);
        }
    }

    /// Forgets all rounds before `round`; states have a rule of their own.
    pub fn forget_before(&mut self, gate: &Gate, round: Round) {
        let kept = self.by_round.split_off(&round);
        let gone = std::mem::replace(&mut self.by_round, kept);
        for hash in gone.into_values().flatten() {
            let Some(held) = self.blobs.get_mut(&hash) else { continue };
            if held.newest.is_some_and(|newest| newest < round) {
                held.newest = None;
                gate.forget(&Hash::from_bytes(hash));
                self.drop_unnamed(&hash);
            }
        }
    }

    /// Keeps the newest [`STATES_KEPT`] states, each under the newest of its names: after a null round a state is the next round's too.
    fn drop_old_states(&mut self, gate: &Gate) {
        let mut kept: Vec<[u8; 32]> = Vec::new();
        let mut superfluous = Vec::new();
        for name in self.states.iter().rev() {
            if kept.len() < STATES_KEPT && !kept.contains(&name.1) {
                kept.push(name.1);
            } else {
                superfluous.push(*name);
            }
        }
        for name in superfluous {
            self.states.remove(&name);
            if !kept.contains(&name.1) {
                gate.forget(&Hash::from_bytes(name.1));
                self.drop_unnamed(&name.1);
            }
        }
    }

    /// Removes a blob that neither a round nor a state names any more.
    fn drop_unnamed(&mut self, hash: &[u8; 32]) {
        let is_state = self.states.iter().any(|(_, state)| state == hash);
        let is_named = self.blobs.get(hash).is_some_and(|held| held.newest.is_some());
        if is_state || is_named {
            return;
        }
        if let Some(held) = self.blobs.remove(hash) {
            self.n_bytes -= held.bytes.len() as u64;
        }
    }
}
