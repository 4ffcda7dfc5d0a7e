//! The disk below [`crate::store`] and the outbox: what they need of it, and the machine's own.
//!
//! It is a trait so that a simulated run can have disks that are full, torn or decayed: [`crate::fake::disk`].

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// What state is kept on. A file is written whole or not at all.
pub trait Disk: Send + Sync + Debug {
    /// All of a file.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::NotFound`] where there is no such file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// The first `len` bytes of a file.
    ///
    /// # Errors
    /// As [`Disk::read`]; [`io::ErrorKind::UnexpectedEof`] where there are fewer.
    fn front(&self, path: &Path, len: usize) -> io::Result<Vec<u8>>;

    /// Writes a file, one part after the other, so that after a crash either all of it is there or nothing new. Once this has
    /// answered without an error, it is there for good.
    ///
    /// # Errors
    /// What the system says: what is there is what was there before, or all of the new.
    fn replace(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()>;

    /// The names of what is in a directory, in any order; those that are no text are left out.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::NotFound`] where there is no such directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Whether a file or a directory is there, as far as can be told.
    fn exists(&self, path: &Path) -> bool;

    /// Makes a directory and those that it is in, where they are missing.
    ///
    /// # Errors
    /// What the system says.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Removes a directory with all that is in it.
    ///
    /// # Errors
    /// What the system says, and then a part may be gone; [`io::ErrorKind::NotFound`] where there is no such directory.
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()>;
}

/// Where a file is written before it takes its place.
pub(crate) fn beside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// The machine's own files.
#[derive(Debug, Clone, Copy)]
pub struct Files;

impl Disk for Files {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn front(&self, path: &Path, len: usize) -> io::Result<Vec<u8>> {
        let mut front = vec![0; len];
        File::open(path)?.read_exact(&mut front)?;
        Ok(front)
    }

    fn replace(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        let beside = beside(path);
        let mut file = File::create(&beside)?;
        for part in parts {
            file.write_all(part)?;
        }
        file.sync_all()?;
        drop(file);
        fs::rename(&beside, path)?;
        let dir = path.parent().unwrap_or_else(|| Path::new("."));
        File::open(dir)?.sync_all()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir_all(dir)
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind::{NotFound, UnexpectedEof};

    use super::*;
    use crate::fake::disk::FakeDisk;
    use crate::fake::fence::Fence;

    fn kind(error: io::Error) -> io::ErrorKind {
        error.kind()
    }

    fn check(disk: &dyn Disk, dir: &Path) {
        let (outer, inner) = (dir.join("outer"), dir.join("outer").join("inner"));
        let file = inner.join("file");
        let there = || [dir, outer.as_path(), inner.as_path(), file.as_path()].map(|path| disk.exists(path));
        assert_eq!(disk.replace(&file, &[b"nowhere"]).map_err(kind), Err(NotFound));
        assert_eq!(disk.list(&inner).map_err(kind), Err(NotFound));
        assert_eq!(disk.remove_dir_all(&inner).map_err(kind), Err(NotFound));

        disk.create_dir_all(&inner).unwrap();
        disk.create_dir_all(&inner).unwrap();
        assert_eq!(there(), [true, true, true, false]);
        assert_eq!(disk.read(&file).map_err(kind), Err(NotFound));
        assert_eq!(disk.front(&file, 1).map_err(kind), Err(NotFound));

        disk.replace(&file, &[b"one, ", b"", b"two"]).unwrap();
        assert_eq!(disk.read(&file).unwrap(), b"one, two");
        assert_eq!(disk.front(&file, 3).unwrap(), b"one");
        assert_eq!(disk.front(&file, 9).map_err(kind), Err(UnexpectedEof));
        disk.replace(&file, &[b"three"]).unwrap();
        assert_eq!(disk.read(&file).unwrap(), b"three");

        let listed = |path: &Path| disk.list(path).unwrap();
        assert_eq!((listed(dir), listed(&outer)), (vec!["outer".to_owned()], vec!["inner".to_owned()]));
        assert_eq!(listed(&inner), ["file"], "nothing is left beside it");
        disk.remove_dir_all(&outer).unwrap();
        assert_eq!(there(), [true, false, false, false]);
        assert!(listed(dir).is_empty());
    }

    #[test]
    fn a_simulated_disk_answers_as_files_do() {
        let dir = tempfile::tempdir().unwrap();
        check(&Files, dir.path());
        let fake = FakeDisk::new().mount(Fence::new());
        fake.create_dir_all(Path::new("/node")).unwrap();
        check(&fake, Path::new("/node"));
    }

    #[test]
    fn what_a_death_left_beside_a_file_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        Files.replace(&path, &[b"old"]).unwrap();
        fs::write(beside(&path), b"torn, and longer than what comes").unwrap();
        assert_eq!(Files.read(&path).unwrap(), b"old");
        Files.replace(&path, &[b"new"]).unwrap();
        assert_eq!(Files.read(&path).unwrap(), b"new");
        assert_eq!(Files.list(dir.path()).unwrap(), ["file"]);
    }
}
