//! Round-boundary state on disk, crash-safe: what every actor is rebuilt from.
//!
//! ```text
//! state/
//!   run, chain                the run this state belongs to, and the chain it is held on
//!   round-000000000012/       θ₁₂ and everything that goes with it
//!     compressor              one section an actor: 8 bytes magic · BLAKE3 of the content · content
//!     gpu-worker
//!     gauntlet
//!     complete                written last: the names of the sections and the hashes of their contents
//! ```
//! Each actor writes its own section; the round counts once `complete` is there, which RoundClock writes last. A file is
//! whole or what it was ([`Disk::replace`]), so a cut-off write leaves the round before it untouched. The newest two complete
//! rounds are kept; what was begun before them and never completed goes.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use convoke::terms::{BlockHash, Round, RunId};

use crate::disk::{Disk, Files};
use crate::pages::Pages;

const MAGIC: &[u8; 8] = b"CVKSTAT1";
const HASH_LEN: usize = 32;
const COMPLETE: &str = "complete";
/// The round before the newest is what a torn newest one falls back to.
const ROUNDS_KEPT: usize = 2;

/// Why state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("cannot use the state directory {path}: check that it exists, is writable and has space")]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The directory belongs to another run.
    #[error(
        "{path} holds the state of run {found}, this is run {expected}: choose another --data-dir or the old config"
    )]
    OtherRun {
        /// The directory.
        path: PathBuf,
        /// The run whose state it holds.
        found: String,
        /// The run that was asked for.
        expected: RunId,
    },
    /// The directory belongs to another chain.
    #[error(
        "{path} holds state of a run on the chain {found}, this is the chain {expected}: choose another --data-dir, or the \
         --chain that it belongs to"
    )]
    OtherChain {
        /// The directory.
        path: PathBuf,
        /// The chain it belongs to.
        found: String,
        /// The chain that is followed.
        expected: BlockHash,
    },
    /// A section that is torn or altered.
    #[error("{path} is damaged")]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
}

/// A node's state directory.
#[derive(Debug)]
pub struct Store {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

impl Store {
    /// Opens the state directory of a run among the machine's files, or makes it.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the directory cannot be used, [`StoreError::OtherRun`] when it is another run's.
    pub fn open(dir: &Path, run_id: RunId) -> Result<Self, StoreError> {
        Self::open_on(Arc::new(Files), dir, run_id)
    }

    /// [`Store::open`], on any disk.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_on(disk: Arc<dyn Disk>, dir: &Path, run_id: RunId) -> Result<Self, StoreError> {
        disk.create_dir_all(dir).map_err(|source| StoreError::Io { path: dir.to_owned(), source })?;
        let store = Self { disk, dir: dir.to_owned() };
        let run_file = dir.join("run");
        match store.read_text(&run_file) {
            Ok(found) if found.trim() == run_id.to_string() => {}
            Ok(found) => {
                return Err(StoreError::OtherRun {
                    path: dir.to_owned(),
                    found: found.trim().chars().take(8).collect(),
                    expected: run_id,
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                store.write_text(&run_file, &run_id.to_string())?;
            }
            Err(source) => return Err(StoreError::Io { path: run_file, source }),
        }
        Ok(store)
    }

    /// The disk that the state is on, for what a node keeps beside it.
    #[must_use]
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// From now on this state belongs to the chain with this genesis, and to no other.
    ///
    /// # Errors
    /// [`StoreError::OtherChain`] if it belongs to another already.
    pub fn keep_to_chain(&self, genesis: BlockHash) -> Result<(), StoreError> {
        let path = self.dir.join("chain");
        match self.read_text(&path) {
            Ok(found) if found.trim() == genesis.to_string() => Ok(()),
            Ok(found) => {
                let found = found.trim().chars().take(8).collect();
                Err(StoreError::OtherChain { path: self.dir.clone(), found, expected: genesis })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.write_text(&path, &genesis.to_string()),
            Err(source) => Err(StoreError::Io { path, source }),
        }
    }

    /// Writes one actor's section of a round.
    ///
    /// # Errors
    /// [`StoreError::Io`]: the round cannot be completed; the one before it stays.
    pub fn write(&self, round: Round, section: &str, content: &[u8]) -> Result<(), StoreError> {
        self.write_parts(round, section, &[content])
    }

    /// [`write`](Self::write) of a section that lies in several places: what is large is not copied together first.
    ///
    /// # Errors
    /// As `write`.
    pub fn write_parts(&self, round: Round, section: &str, parts: &[&[u8]]) -> Result<(), StoreError> {
        let dir = self.round_dir(round);
        self.disk.create_dir_all(&dir).map_err(|source| StoreError::Io { path: dir.clone(), source })?;
        write_file(&*self.disk, &dir.join(section), parts)
    }

    /// Makes a round count, once all its sections are written, and forgets the oldest.
    ///
    /// # Errors
    /// [`StoreError::Io`] or [`StoreError::Damaged`]: the round does not count; the one before it stays.
    pub fn complete(&self, round: Round, sections: &[&str]) -> Result<(), StoreError> {
        let mut list = String::new();
        for section in sections {
            let path = self.round_dir(round).join(section);
            let hash = self.hash_in_header(&path)?;
            list.push_str(&format!("{section} {hash}\n"));
        }
        self.write(round, COMPLETE, list.as_bytes())?;
        self.forget(round)
    }

    /// The newest round that is complete and undamaged, if any.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the directory cannot be read.
    pub fn latest(&self) -> Result<Option<Round>, StoreError> {
        let mut rounds = self.rounds()?;
        rounds.sort_unstable();
        Ok(rounds.into_iter().rev().find(|round| self.is_whole(*round)))
    }

    /// One actor's section of a round.
    ///
    /// # Errors
    /// [`StoreError::Io`] when it is not there, [`StoreError::Damaged`] when it is not what was written.
    pub fn read(&self, round: Round, section: &str) -> Result<Vec<u8>, StoreError> {
        read_file(&*self.disk, &self.round_dir(round).join(section))
    }

    fn is_whole(&self, round: Round) -> bool {
        let Ok(list) = self.read(round, COMPLETE) else {
            return false;
        };
        String::from_utf8_lossy(&list).lines().all(|line| {
            line.split_once(' ').is_some_and(|(section, hash)| {
                self.read(round, section).is_ok_and(|content| blake3::hash(&content).to_hex().as_str() == hash)
            })
        })
    }

    /// Keeps the newest complete rounds; what is older, or was begun before `newest` and never completed, goes.
    fn forget(&self, newest: Round) -> Result<(), StoreError> {
        let mut rounds = self.rounds()?;
        rounds.sort_unstable();
        let is_complete = |round: &&Round| self.disk.exists(&self.round_dir(**round).join(COMPLETE));
        let oldest_kept =
            rounds.iter().rev().filter(|round| **round <= newest).filter(is_complete).take(ROUNDS_KEPT).last().copied();
        for round in rounds.iter().filter(|round| **round < newest) {
            let path = self.round_dir(*round);
            if oldest_kept.is_some_and(|oldest| *round >= oldest) && self.disk.exists(&path.join(COMPLETE)) {
                continue;
            }
            self.disk.remove_dir_all(&path).map_err(|source| StoreError::Io { path, source })?;
        }
        Ok(())
    }

    /// Forgets every round: the state is another than all others have.
    ///
    /// # Errors
    /// [`StoreError::Io`]: some may still be there.
    pub fn forget_all(&self) -> Result<(), StoreError> {
        for round in self.rounds()? {
            let path = self.round_dir(round);
            self.disk.remove_dir_all(&path).map_err(|source| StoreError::Io { path, source })?;
        }
        Ok(())
    }

    fn rounds(&self) -> Result<Vec<Round>, StoreError> {
        let names = self.disk.list(&self.dir).map_err(|source| StoreError::Io { path: self.dir.clone(), source })?;
        Ok(names.iter().filter_map(|name| name.strip_prefix("round-")?.parse().ok().map(Round)).collect())
    }

    fn round_dir(&self, round: Round) -> PathBuf {
        self.dir.join(format!("round-{:012}", round.0))
    }

    fn hash_in_header(&self, path: &Path) -> Result<blake3::Hash, StoreError> {
        let header = self.disk.front(path, MAGIC.len() + HASH_LEN);
        let header = header.map_err(|source| StoreError::Io { path: path.to_owned(), source })?;
        let mut hash = [0; HASH_LEN];
        hash.copy_from_slice(&header[MAGIC.len()..]);
        Ok(hash.into())
    }

    fn read_text(&self, path: &Path) -> io::Result<String> {
        let bytes = self.disk.read(path)?;
        String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    fn write_text(&self, path: &Path, text: &str) -> Result<(), StoreError> {
        let written = self.disk.replace(path, &[text.as_bytes()]);
        written.map_err(|source| StoreError::Io { path: path.to_owned(), source })
    }
}

/// Writes a file with its hash in front, so that after a crash it is whole, or what it was before.
///
/// # Errors
/// [`StoreError::Io`]: what was there before is still there.
pub fn write_file(disk: &dyn Disk, path: &Path, parts: &[&[u8]]) -> Result<(), StoreError> {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    let hash = hasher.finalize();
    let header: [&[u8]; 2] = [MAGIC, hash.as_bytes()];
    disk.replace(path, &[&header, parts].concat()).map_err(|source| StoreError::Io { path: path.to_owned(), source })
}

/// Reads what [`write_file`] wrote.
///
/// # Errors
/// [`StoreError::Io`] when it is not there, [`StoreError::Damaged`] when it is not what was written.
pub fn read_file(disk: &dyn Disk, path: &Path) -> Result<Vec<u8>, StoreError> {
    let mut bytes = disk.read(path).map_err(|source| StoreError::Io { path: path.to_owned(), source })?;
    let header = MAGIC.len() + HASH_LEN;
    let is_whole = bytes.len() >= header
        && bytes[..MAGIC.len()] == MAGIC[..]
        && blake3::hash(&bytes[header..]).as_bytes()[..] == bytes[MAGIC.len()..header];
    if !is_whole {
        return Err(StoreError::Damaged { path: path.to_owned() });
    }
    bytes.drain(..header);
    Ok(bytes)
}

/// An error and what it came from, for one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// Little-endian bytes of numbers, for a section.
pub fn put_f32s(bytes: &mut Vec<u8>, numbers: &[f32]) {
    bytes.reserve(numbers.len() * 4);
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

/// [`put_f32s`] where they lie: a copy only where numbers are not little-endian in memory.
#[must_use]
pub fn f32_bytes(numbers: &[f32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        return Cow::Borrowed(bytemuck::cast_slice(numbers));
    }
    let mut bytes = Vec::new();
    put_f32s(&mut bytes, numbers);
    Cow::Owned(bytes)
}

/// Takes `count` numbers off the front of a section.
#[must_use]
pub fn take_f32s(bytes: &mut &[u8], count: usize) -> Option<Vec<f32>> {
    let (front, rest) = bytes.split_at_checked(count.checked_mul(4)?)?;
    *bytes = rest;
    Some(front.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect())
}

/// [`take_f32s`], onto huge pages.
#[must_use]
pub fn take_pages(bytes: &mut &[u8], count: usize) -> Option<Pages> {
    let (front, rest) = bytes.split_at_checked(count.checked_mul(4)?)?;
    *bytes = rest;
    let mut pages = Pages::zeroed(count);
    for (number, word) in pages.iter_mut().zip(front.as_chunks().0) {
        *number = f32::from_le_bytes(*word);
    }
    Some(pages)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::fake::disk::FakeDisk;
    use crate::fake::fence::Fence;

    const RUN: RunId = RunId([1; 32]);

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), RUN).unwrap();
        (dir, store)
    }

    fn save(store: &Store, round: u64) {
        store.write(Round(round), "a", format!("a of {round}").as_bytes()).unwrap();
        store.write(Round(round), "b", b"b").unwrap();
        store.complete(Round(round), &["a", "b"]).unwrap();
    }

    #[test]
    fn the_newest_complete_round_is_found_and_two_are_kept() {
        let (dir, store) = store();
        assert_eq!(store.latest().unwrap(), None);
        for round in 1..=3 {
            save(&store, round);
        }
        assert_eq!(store.latest().unwrap(), Some(Round(3)));
        assert_eq!(store.read(Round(3), "a").unwrap(), b"a of 3");
        assert!(!dir.path().join("round-000000000001").exists());
        assert!(dir.path().join("round-000000000002").exists());
    }

    #[test]
    fn on_a_simulated_disk_a_store_is_what_it_is_among_files() {
        let (disk, dir) = (FakeDisk::new(), Path::new("/node/state"));
        let open = |run_id| Store::open_on(Arc::new(disk.mount(Fence::new())), dir, run_id);
        let store = open(RUN).unwrap();
        assert_eq!(store.latest().unwrap(), None);
        for round in 1..=3 {
            save(&store, round);
        }
        store.write(Round(4), "a", b"half").unwrap();
        let again = open(RUN).unwrap();
        assert_eq!((again.latest().unwrap(), again.read(Round(3), "a").unwrap()), (Some(Round(3)), b"a of 3".to_vec()));
        assert!(matches!(again.read(Round(1), "a"), Err(StoreError::Io { .. })));
        assert!(matches!(open(RunId([2; 32])), Err(StoreError::OtherRun { .. })));
        again.forget_all().unwrap();
        assert_eq!((store.latest().unwrap(), disk.n_files()), (None, 1));
    }

    #[test]
    fn a_round_without_its_last_word_does_not_count() {
        let (_dir, store) = store();
        save(&store, 1);
        store.write(Round(2), "a", b"half").unwrap();
        assert_eq!(store.latest().unwrap(), Some(Round(1)));
    }

    #[test]
    fn rounds_that_were_begun_only_do_not_count_among_those_kept() {
        let (dir, store) = store();
        save(&store, 1);
        save(&store, 2);
        store.write(Round(3), "a", b"half").unwrap();
        store.write(Round(9), "a", b"half, and newer").unwrap();
        save(&store, 4);
        let exists = |round: u64| dir.path().join(format!("round-{round:012}")).exists();
        assert_eq!([1, 2, 3, 4, 9].map(exists), [false, true, false, true, true]);
        // The newest one is torn: the one before it is still there.
        fs::remove_file(dir.path().join("round-000000000004").join("a")).unwrap();
        assert_eq!(store.latest().unwrap(), Some(Round(2)));
    }

    #[test]
    fn a_round_cut_off_or_altered_anywhere_falls_back_to_the_one_before() {
        for file in ["a", "b", COMPLETE] {
            let (dir, store) = store();
            save(&store, 1);
            save(&store, 2);
            let path = dir.path().join("round-000000000002").join(file);
            let whole = fs::read(&path).unwrap();
            for cut in 0..whole.len() {
                fs::write(&path, &whole[..cut]).unwrap();
                assert_eq!(store.latest().unwrap(), Some(Round(1)), "{file} cut at {cut}");
            }
            let mut altered = whole.clone();
            *altered.last_mut().unwrap() ^= 1;
            fs::write(&path, &altered).unwrap();
            assert_eq!(store.latest().unwrap(), Some(Round(1)), "{file} altered");
        }
    }

    #[test]
    fn state_of_another_run_is_refused() {
        let (dir, _store) = store();
        let refused = Store::open(dir.path(), RunId([2; 32]));
        assert!(matches!(refused, Err(StoreError::OtherRun { .. })));
    }

    #[test]
    fn state_keeps_to_the_chain_it_was_made_on() {
        let (_dir, store) = store();
        let (own, other) = (BlockHash([1; 32]), BlockHash([2; 32]));
        store.keep_to_chain(own).unwrap();
        store.keep_to_chain(own).unwrap();
        assert!(matches!(store.keep_to_chain(other), Err(StoreError::OtherChain { .. })));
        store.keep_to_chain(own).unwrap();
    }

    #[test]
    fn numbers_survive_their_bytes() {
        let mut bytes = Vec::new();
        put_f32s(&mut bytes, &[1.5, -0.0, f32::MIN_POSITIVE]);
        let mut rest = bytes.as_slice();
        assert_eq!(take_f32s(&mut rest, 4), None);
        let numbers = take_f32s(&mut rest, 3).unwrap();
        assert_eq!(numbers.iter().map(|n| n.to_bits()).collect::<Vec<_>>(), [0x3fc0_0000, 0x8000_0000, 0x0080_0000]);
        assert!(rest.is_empty());
    }
}
