//! The disk below [`crate::store`] and the outbox: what they need of it, and the machine's own.
//!
//! Large files go past the page cache: nobody reads a boundary again before a restart, and the cache's copy of θ and e would cost as
//! much processor time as all other protocol work of a compressor, and push out what is read.
//!
//! It is a trait so that a simulated run can have disks that are full, torn or decayed: [`crate::fake::disk`].

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

#[cfg(target_os = "linux")]
use memmap2::MmapMut;
#[cfg(target_os = "linux")]
use rustix::fs::OFlags;

/// What goes past the page cache is written in blocks of this size, a multiple of any device's own.
#[cfg(target_os = "linux")]
const BLOCK_BYTES: usize = 1 << 20;

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
        write(&beside, parts)?.sync_all()?;
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

fn write(path: &Path, parts: &[&[u8]]) -> io::Result<File> {
    #[cfg(target_os = "linux")]
    if parts.iter().map(|part| part.len()).sum::<usize>() >= BLOCK_BYTES {
        match write_past_cache(path, parts) {
            // This file system, or what is below it, has no such way.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            outcome => return outcome,
        }
    }
    let mut file = File::create(path)?;
    for part in parts {
        file.write_all(part)?;
    }
    Ok(file)
}

/// Writes from one aligned block of memory after the other, as the system wants it; what does not fill the last one goes the usual way.
#[cfg(target_os = "linux")]
fn write_past_cache(path: &Path, parts: &[&[u8]]) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    let mut file = options.custom_flags(OFlags::DIRECT.bits().cast_signed()).open(path)?;
    let mut block = MmapMut::map_anon(BLOCK_BYTES)?;
    let mut filled = 0;
    for part in parts {
        let mut rest = *part;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(BLOCK_BYTES - filled));
            block[filled..][..now.len()].copy_from_slice(now);
            filled += now.len();
            rest = later;
            if filled == BLOCK_BYTES {
                file.write_all(&block)?;
                filled = 0;
            }
        }
    }
    rustix::fs::fcntl_setfl(&file, OFlags::empty())?;
    file.write_all(&block[..filled])?;
    Ok(file)
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
    fn a_large_file_is_what_was_written_wherever_its_parts_and_blocks_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let pattern: Vec<u8> = (0..3_u32 << 18).flat_map(|i| i.wrapping_mul(0x9E37_79B9).to_le_bytes()).collect();
        for len in [1 << 20, (1 << 20) - 1, (1 << 20) + 1, 2 << 20, (2 << 20) + 4095, 3 << 20] {
            for cut in [0, 1, 40, 4096, (1 << 20) - 1] {
                let (first, second) = pattern[..len].split_at(cut);
                Files.replace(&path, &[first, second, b""]).unwrap();
                assert!(Files.read(&path).unwrap() == pattern[..len], "{len} bytes cut at {cut}");
            }
        }
        assert_eq!(Files.list(dir.path()).unwrap(), ["file"]);
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
