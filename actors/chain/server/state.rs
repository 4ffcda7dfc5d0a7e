//! Storage at every block that is kept: each key with the values it had, and since when.
//!
//! Most of a subnet's state does not change from one block to the next, so a value is kept once for all the blocks that
//! show it, and a fork is forgotten by dropping what is younger than its root.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::chain::wire::entries::Entries;

/// A stored value; shared by all blocks that show it.
pub(super) type Value = Arc<[u8]>;
/// What a block changed: the new value, or none where it was removed.
pub(super) type Delta = Vec<(Vec<u8>, Option<Value>)>;
/// All of one block's state.
pub(super) type State = BTreeMap<Vec<u8>, Value>;

/// The values of the blocks that are kept.
#[derive(Default)]
pub(super) struct Storage {
    /// By key, what it was from which block on; in order of blocks.
    cells: BTreeMap<Vec<u8>, Vec<(u64, Option<Value>)>>,
}

impl Storage {
    /// Adds what `block` changed; it is the newest.
    pub(super) fn write(&mut self, block: u64, delta: Delta) {
        for (key, value) in delta {
            self.cells.entry(key).or_default().push((block, value));
        }
    }

    pub(super) fn get(&self, key: &[u8], at: u64) -> Option<Value> {
        visible(self.cells.get(key)?, at)
    }

    /// The keys that begin with `prefix` and come after `after`, at most `n` of them.
    pub(super) fn keys(&self, prefix: &[u8], after: Option<&[u8]>, n: usize, at: u64) -> Vec<Vec<u8>> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let cells = self.cells.range::<[u8], _>((start, Bound::Unbounded));
        let of_prefix = cells.take_while(|(key, _)| key.starts_with(prefix));
        of_prefix.filter(|(_, cell)| visible(cell, at).is_some()).take(n).map(|(key, _)| key.clone()).collect()
    }

    /// All of a block's state.
    pub(super) fn state(&self, at: u64) -> State {
        self.cells.iter().filter_map(|(key, cell)| Some((key.clone(), visible(cell, at)?))).collect()
    }

    /// Forgets every block after `block`.
    pub(super) fn rewind(&mut self, block: u64) {
        self.cells.retain(|_, cell| {
            cell.retain(|(since, _)| *since <= block);
            !cell.is_empty()
        });
    }

    /// Forgets what only blocks before `oldest` show.
    pub(super) fn forget(&mut self, oldest: u64) {
        self.cells.retain(|_, cell| {
            let hidden = cell.iter().rposition(|(since, _)| *since <= oldest).unwrap_or(0);
            cell.drain(..hidden);
            // A removal that no kept block is older than says nothing.
            !matches!(cell[..], [(since, None)] if since <= oldest)
        });
    }
}

fn visible(cell: &[(u64, Option<Value>)], at: u64) -> Option<Value> {
    cell.iter().rev().find(|(since, _)| *since <= at).and_then(|(_, value)| value.clone())
}

/// The state that is `entries`, and how it differs from the state before.
pub(super) fn advance(before: &State, entries: Entries) -> (State, Delta) {
    let mut delta = Delta::new();
    for key in before.keys().filter(|key| !entries.contains_key(*key)) {
        delta.push((key.clone(), None));
    }
    let state = entries
        .into_iter()
        .map(|(key, value)| match before.get(&key) {
            Some(same) if **same == *value => (key, Arc::clone(same)),
            _ => {
                let value: Value = value.into();
                delta.push((key.clone(), Some(Arc::clone(&value))));
                (key, value)
            }
        })
        .collect();
    (state, delta)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(pairs: &[(u8, u8)]) -> Entries {
        pairs.iter().map(|&(key, value)| (vec![key / 8, key], vec![value])).collect()
    }

    proptest! {
        #[test]
        fn every_kept_block_shows_its_own_state(
            states in prop::collection::vec(prop::collection::vec((0_u8..24, 0_u8..3), 0..12), 1..12),
            fork_at in 0_usize..12,
            oldest in 0_usize..12,
        ) {
            let states: Vec<Entries> = states.iter().map(|pairs| entries(pairs)).collect();
            let (fork_at, oldest) = (fork_at % states.len(), oldest % states.len());
            let mut storage = Storage::default();
            let write = |from: usize, storage: &mut Storage| {
                let mut tip = if from == 0 { State::new() } else { storage.state(from as u64 - 1) };
                for (block, state) in states.iter().enumerate().skip(from) {
                    let (next, delta) = advance(&tip, state.clone());
                    storage.write(block as u64, delta);
                    tip = next;
                }
            };
            write(0, &mut storage);
            storage.rewind(fork_at as u64);
            write(fork_at + 1, &mut storage);
            storage.forget(oldest as u64);
            for (block, expected) in states.iter().enumerate().skip(oldest) {
                let at = block as u64;
                let shown: Entries = storage.state(at).into_iter().map(|(key, value)| (key, value.to_vec())).collect();
                prop_assert_eq!(&shown, expected);
                for prefix in 0..3_u8 {
                    let expected: Vec<_> = expected.keys().filter(|key| key[0] == prefix).cloned().collect();
                    let mut paged = Vec::new();
                    loop {
                        let page = storage.keys(&[prefix], paged.last().map(Vec::as_slice), 2, at);
                        if page.is_empty() {
                            break;
                        }
                        paged.extend(page);
                    }
                    prop_assert_eq!(paged, expected);
                }
            }
        }
    }

    #[test]
    fn what_no_kept_block_shows_takes_no_room() {
        let mut storage = Storage::default();
        for block in 0..100_u64 {
            let value: Value = vec![u8::try_from(block).unwrap()].into();
            storage.write(block, vec![(vec![1], Some(value))]);
        }
        storage.write(100, vec![(vec![1], None)]);
        storage.forget(99);
        assert_eq!(storage.cells[&vec![1]].len(), 2);
        storage.forget(100);
        assert!(storage.cells.is_empty());
    }
}
