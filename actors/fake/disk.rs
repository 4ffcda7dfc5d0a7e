//! A node's disk in memory. It outlives the node's lives; each mounts it behind its own fence.
//!
//! It promises what [`crate::disk::Files`] does: a file is replaced whole or not at all, and once its writer was told so, for good.
//! What a real one loses without a flush is therefore never visible here. Of trouble it knows what is left open: no space, a death in
//! the middle of a write, and a bit that is another one later.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::fence::Fence;
use crate::disk::{Disk, beside};

/// A disk; what is cloned is the same disk.
#[derive(Debug, Clone, Default)]
pub struct FakeDisk(Arc<Mutex<Image>>);

/// What is on it, and what is wrong with it.
#[derive(Debug, Default)]
struct Image {
    files: BTreeMap<PathBuf, Vec<u8>>,
    dirs: BTreeSet<PathBuf>,
    is_full: bool,
    torn: Option<Torn>,
}

/// What a file is when the process dies while it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Torn {
    /// What it was before; beside it are so many bytes of what was to come, or as many as there are.
    Before(usize),
    /// What was to come; only its writer never heard of it.
    After,
}

impl FakeDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The disk as one life has it, until its fence falls.
    #[must_use]
    pub fn mount(&self, fence: Fence) -> Mounted {
        Mounted { disk: self.clone(), fence }
    }

    fn image(&self) -> MutexGuard<'_, Image> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// While it is full nothing can be written; what is there can be read and removed.
    pub fn set_full(&self, is_full: bool) {
        self.image().is_full = is_full;
    }

    /// Whether it is full: a process that is started on it now finds no room for its first write.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.image().is_full
    }

    /// The process that replaces a file next dies while it does so: its fence falls. On a full disk it does not come to that.
    pub fn tear_next(&self, torn: Torn) {
        self.image().torn = Some(torn);
    }

    /// Takes back a [tear](Self::tear_next) that nobody has met.
    pub fn tear_no_more(&self) {
        self.image().torn = None;
    }

    /// Turns one bit of the files that are meant, and tells in which: all their bits are counted in the order of their paths, and
    /// after the last comes the first again. Where there are none, nothing is turned.
    pub fn flip(&self, is_meant: impl Fn(&Path) -> bool, bit: u64) -> Option<PathBuf> {
        let mut image = self.image();
        let meant: Vec<_> = image.files.iter_mut().filter(|(path, _)| is_meant(path)).collect();
        let n_bits = |content: &[u8]| content.len() as u64 * 8;
        let n_bits_meant: u64 = meant.iter().map(|(_, content)| n_bits(content)).sum();
        let mut bit = bit.checked_rem(n_bits_meant)?;
        for (path, content) in meant {
            if bit < n_bits(content) {
                content[(bit / 8) as usize] ^= 1 << (bit % 8);
                return Some(path.clone());
            }
            bit -= n_bits(content);
        }
        None
    }

    /// Bytes in all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.image().files.values().map(|content| content.len() as u64).sum()
    }

    /// How many files there are, those that were left by a death among them.
    #[must_use]
    pub fn n_files(&self) -> usize {
        self.image().files.len()
    }
}

impl Image {
    fn file(&self, path: &Path) -> io::Result<&[u8]> {
        self.files.get(path).map(Vec::as_slice).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn check_dir(&self, dir: &Path) -> io::Result<()> {
        if self.dirs.contains(dir) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn check_space(&self) -> io::Result<()> {
        if self.is_full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

/// A disk as one life of a node has it.
#[derive(Debug)]
pub struct Mounted {
    disk: FakeDisk,
    fence: Fence,
}

impl Mounted {
    fn image(&self) -> io::Result<MutexGuard<'_, Image>> {
        self.fence.check()?;
        Ok(self.disk.image())
    }
}

impl Disk for Mounted {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let image = self.image()?;
        image.file(path).map(<[u8]>::to_vec)
    }

    fn front(&self, path: &Path, len: usize) -> io::Result<Vec<u8>> {
        let image = self.image()?;
        let content = image.file(path)?;
        content.get(..len).map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn replace(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        let mut image = self.image()?;
        image.check_dir(path.parent().unwrap_or(path))?;
        let beside = beside(path);
        if let Err(full) = image.check_space() {
            // An entry of a directory still has its place; of the content nothing has.
            image.files.insert(beside, Vec::new());
            return Err(full);
        }
        let mut content = parts.concat();
        let torn = image.torn.take();
        if let Some(Torn::Before(n_bytes)) = torn {
            content.truncate(n_bytes);
            image.files.insert(beside, content);
        } else {
            image.files.remove(&beside);
            image.files.insert(path.to_owned(), content);
        }
        if torn.is_some() {
            self.fence.fall();
        }
        self.fence.check()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let image = self.image()?;
        image.check_dir(dir)?;
        let paths = image.dirs.iter().chain(image.files.keys()).filter(|path| path.parent() == Some(dir));
        let names = paths.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
        Ok(names.collect())
    }

    fn exists(&self, path: &Path) -> bool {
        self.image().is_ok_and(|image| image.files.contains_key(path) || image.dirs.contains(path))
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut image = self.image()?;
        if !image.dirs.contains(dir) {
            image.check_space()?;
            image.dirs.extend(dir.ancestors().map(Path::to_path_buf));
        }
        Ok(())
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut image = self.image()?;
        image.check_dir(dir)?;
        image.dirs.retain(|inner| !inner.starts_with(dir));
        image.files.retain(|inner, _| !inner.starts_with(dir));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind::{BrokenPipe, StorageFull};

    use convoke::terms::{Round, RunId};

    use super::*;
    use crate::store::{Store, StoreError};

    const DIR: &str = "/node";
    /// Files of one round of a store: two sections and their list.
    const N_FILES: usize = 3;

    fn kind(error: io::Error) -> io::ErrorKind {
        error.kind()
    }

    fn mounted(disk: &FakeDisk) -> (Mounted, Fence) {
        let fence = Fence::new();
        let mounted = disk.mount(fence.clone());
        if !mounted.exists(Path::new(DIR)) {
            mounted.create_dir_all(Path::new(DIR)).unwrap();
        }
        (mounted, fence)
    }

    fn store(disk: &FakeDisk) -> (Store, Fence) {
        let (mounted, fence) = mounted(disk);
        let store = Store::open_on(Arc::new(mounted), &Path::new(DIR).join("state"), RunId([1; 32])).unwrap();
        (store, fence)
    }

    /// One of the three writes of a boundary.
    fn save_part(store: &Store, round: u64, idx: usize) -> Result<(), StoreError> {
        match idx {
            0 => store.write(Round(round), "a", &[round as u8; 100]),
            1 => store.write(Round(round), "b", b"b"),
            _ => store.complete(Round(round), &["a", "b"]),
        }
    }

    fn save(store: &Store, round: u64) {
        (0..N_FILES).for_each(|idx| save_part(store, round, idx).unwrap());
    }

    fn check_death(dies_at: usize, torn: Torn) {
        let disk = FakeDisk::new();
        let (before, fence) = store(&disk);
        save(&before, 1);
        save(&before, 2);
        for idx in 0..N_FILES {
            if idx == dies_at {
                disk.tear_next(torn);
            }
            assert_eq!(save_part(&before, 3, idx).is_ok(), idx < dies_at, "{torn:?} in {dies_at}");
        }
        assert!(fence.has_fallen());

        let (after, _fence) = store(&disk);
        let is_complete = dies_at == N_FILES - 1 && torn == Torn::After;
        let newest = if is_complete { Round(3) } else { Round(2) };
        assert_eq!(after.latest().unwrap(), Some(newest), "{torn:?} in {dies_at}");
        save(&after, 4);
        assert_eq!(after.latest().unwrap(), Some(Round(4)));
        assert_eq!(after.read(newest, "a").unwrap(), [newest.0 as u8; 100]);
        assert_eq!(disk.n_files(), 1 + 2 * N_FILES, "the run and two rounds are left, {torn:?} in {dies_at}");
    }

    #[test]
    fn a_death_in_any_write_of_a_boundary_costs_that_boundary_at_most() {
        for dies_at in 0..N_FILES {
            for torn in [Torn::Before(0), Torn::Before(9), Torn::Before(usize::MAX), Torn::After] {
                check_death(dies_at, torn);
            }
        }
    }

    #[test]
    fn a_torn_write_leaves_the_old_and_a_part_beside_it() {
        let disk = FakeDisk::new();
        let path = Path::new(DIR).join("file");
        let (first, fence) = mounted(&disk);
        first.replace(&path, &[b"old"]).unwrap();
        disk.tear_next(Torn::Before(4));
        assert_eq!(first.replace(&path, &[b"the ", b"new"]).map_err(kind), Err(BrokenPipe));
        assert!(fence.has_fallen());

        let (second, _fence) = mounted(&disk);
        assert_eq!(second.read(&path).unwrap(), b"old");
        assert_eq!(second.read(&beside(&path)).unwrap(), b"the ");
        second.replace(&path, &[b"newer"]).unwrap();
        assert_eq!(second.list(Path::new(DIR)).unwrap(), ["file"]);
    }

    #[test]
    fn a_tear_that_nobody_has_met_is_taken_back() {
        let disk = FakeDisk::new();
        let path = Path::new(DIR).join("file");
        let (mounted, fence) = mounted(&disk);
        disk.tear_next(Torn::Before(1));
        assert_eq!(mounted.list(Path::new(DIR)).unwrap(), [""; 0], "only a write is torn");
        disk.tear_no_more();
        mounted.replace(&path, &[b"whole"]).unwrap();
        assert_eq!((mounted.read(&path).unwrap(), fence.has_fallen()), (b"whole".to_vec(), false));
    }

    #[test]
    fn a_full_disk_keeps_what_it_has_and_takes_nothing_more() {
        let disk = FakeDisk::new();
        let (mounted, fence) = mounted(&disk);
        let (path, dir) = (Path::new(DIR).join("file"), Path::new(DIR).join("dir"));
        mounted.replace(&path, &[b"old"]).unwrap();
        assert!(!disk.is_full());
        disk.set_full(true);
        assert!(disk.is_full());
        disk.tear_next(Torn::After);
        assert_eq!(mounted.replace(&path, &[b"new"]).map_err(kind), Err(StorageFull));
        assert_eq!(mounted.create_dir_all(&dir).map_err(kind), Err(StorageFull));
        mounted.create_dir_all(Path::new(DIR)).unwrap();
        assert_eq!(mounted.read(&path).unwrap(), b"old");
        assert!(!mounted.exists(&dir) && !fence.has_fallen());
        disk.set_full(false);
        mounted.create_dir_all(&dir).unwrap();
        mounted.remove_dir_all(&dir).unwrap();
        assert_eq!(mounted.replace(&path, &[b"new"]).map_err(kind), Err(BrokenPipe), "the death has waited");
    }

    #[test]
    fn behind_a_fallen_fence_there_is_no_disk() {
        let disk = FakeDisk::new();
        let path = Path::new(DIR).join("file");
        let (first, fence) = mounted(&disk);
        first.replace(&path, &[b"content"]).unwrap();
        fence.fall();
        let dir = Path::new(DIR);
        assert_eq!(first.read(&path).map_err(kind), Err(BrokenPipe));
        assert_eq!(first.front(&path, 1).map_err(kind), Err(BrokenPipe));
        assert_eq!(first.replace(&path, &[b"after"]).map_err(kind), Err(BrokenPipe));
        assert_eq!(first.list(dir).map_err(kind), Err(BrokenPipe));
        assert_eq!(first.create_dir_all(dir).map_err(kind), Err(BrokenPipe));
        assert_eq!(first.remove_dir_all(dir).map_err(kind), Err(BrokenPipe));
        assert!(!first.exists(&path));
        let (second, _fence) = mounted(&disk);
        assert_eq!(second.read(&path).unwrap(), b"content");
    }

    #[test]
    fn one_bit_of_what_is_meant_is_turned() {
        let disk = FakeDisk::new();
        let (mounted, _fence) = mounted(&disk);
        let path = |name: &str| Path::new(DIR).join(name);
        mounted.replace(&path("a"), &[&[0, 0]]).unwrap();
        mounted.replace(&path("b"), &[&[0]]).unwrap();
        mounted.replace(&path("empty"), &[]).unwrap();
        assert_eq!((disk.bytes(), disk.n_files()), (3, 3));
        assert_eq!(disk.flip(|_| true, 15), Some(path("a")));
        assert_eq!(disk.flip(|_| true, 24 + 17), Some(path("b")));
        assert_eq!(disk.flip(|path| path.ends_with("b"), 2), Some(path("b")));
        assert_eq!(disk.flip(|path| path.ends_with("empty"), 2), None);
        assert_eq!(mounted.read(&path("a")).unwrap(), [0, 0x80]);
        assert_eq!(mounted.read(&path("b")).unwrap(), [0b110]);
    }

    #[test]
    fn a_round_with_a_turned_bit_does_not_count() {
        let disk = FakeDisk::new();
        let (store, _fence) = store(&disk);
        save(&store, 1);
        save(&store, 2);
        for bit in (0..2840).step_by(7) {
            let is_of_newest = |path: &Path| path.parent().is_some_and(|dir| dir.ends_with("round-000000000002"));
            disk.flip(is_of_newest, bit).unwrap();
            assert_eq!(store.latest().unwrap(), Some(Round(1)), "bit {bit}");
            disk.flip(is_of_newest, bit).unwrap();
            assert_eq!(store.latest().unwrap(), Some(Round(2)));
        }
    }
}
