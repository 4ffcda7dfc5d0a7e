//! The token stream on disk: written once, mapped ever after.
//!
//! ```text
//! bytes  0..8    magic and version
//!        8..16   bytes per token, 2 or 4
//!       16..24   tokens
//!       24..56   BLAKE3 of the tokens' bytes
//!       56..64   zero
//!       64..     tokens
//! ```
//! All numbers are little-endian. A file is written under another name and renamed when it is on disk; one that is not
//! what its header says (cut off, or changed by a failing disk) counts as absent and is built again. The whole hash is
//! checked at each start, because it goes into the run's id: that costs about a second a gigabyte.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::mapped::Mapped;

const MAGIC: &[u8; 8] = b"convtok1";
const HEADER_BYTES: usize = 64;

/// Bytes per token: as few as the vocabulary allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// Ids below 65,536.
    Two,
    /// All others.
    Four,
}

impl Width {
    /// The width for ids below `vocab_size`.
    #[must_use]
    pub fn of_vocab(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 { Self::Two } else { Self::Four }
    }

    /// Bytes per token.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }
}

/// A complete token stream, mapped.
pub struct TokenFile {
    map: Mapped,
    width: Width,
    n_tokens: u64,
    hash: [u8; 32],
}

impl TokenFile {
    /// Maps a stream; `None` if there is none, or none that is whole.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn open(path: &Path, width: Width) -> io::Result<Option<Self>> {
        let map = match Mapped::open(path) {
            Ok(map) => map,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // An empty file cannot be mapped; it is as good as absent.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(None),
            Err(error) => return Err(error),
        };
        let stream = Self::check(map, width);
        if stream.is_none() {
            tracing::warn!(path = %path.display(), "token cache is damaged, building it again");
        }
        Ok(stream)
    }

    fn check(map: Mapped, width: Width) -> Option<Self> {
        let (header, tokens) = map.split_at_checked(HEADER_BYTES)?;
        let hash = *blake3::hash(tokens).as_bytes();
        let n_tokens = (tokens.len() / width.bytes()) as u64;
        (*header == header_bytes(width, n_tokens, &hash)).then_some(Self { map, width, n_tokens, hash })
    }

    /// Tokens in the stream.
    #[must_use]
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// BLAKE3 of the tokens' bytes.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// `n` tokens from `start` on.
    ///
    /// # Panics
    /// If they are not all inside the stream.
    #[must_use]
    pub fn read(&self, start: u64, n: usize) -> Vec<u32> {
        let start = usize::try_from(start).expect("a mapped stream is addressable");
        let width = self.width.bytes();
        let bytes = &self.map[HEADER_BYTES + start * width..][..n * width];
        match self.width {
            Width::Two => bytes.as_chunks().0.iter().map(|id| u16::from_le_bytes(*id).into()).collect(),
            Width::Four => bytes.as_chunks().0.iter().map(|id| u32::from_le_bytes(*id)).collect(),
        }
    }
}

/// Writes a stream that appears under its name only when it is whole.
pub struct TokenWriter {
    out: BufWriter<File>,
    temporary: PathBuf,
    path: PathBuf,
    width: Width,
    n_tokens: u64,
    hasher: blake3::Hasher,
}

impl TokenWriter {
    /// Starts a stream; its directory is made if it is absent.
    ///
    /// # Errors
    /// The directory or the file cannot be made.
    pub fn create(path: &Path, width: Width) -> io::Result<Self> {
        // Several nodes of one process may build the same cache at once; each writes its own and the last rename wins.
        static N_WRITERS: AtomicU64 = AtomicU64::new(0);
        let writer = N_WRITERS.fetch_add(1, Ordering::Relaxed);
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let temporary = path.with_extension(format!("{}-{writer}.tmp", std::process::id()));
        let mut out = BufWriter::new(File::create(&temporary)?);
        out.write_all(&[0; HEADER_BYTES])?;
        Ok(Self { out, temporary, path: path.to_owned(), width, n_tokens: 0, hasher: blake3::Hasher::new() })
    }

    /// Appends tokens.
    ///
    /// # Errors
    /// The disk does not take them.
    ///
    /// # Panics
    /// If an id does not fit the width.
    pub fn write(&mut self, ids: &[u32]) -> io::Result<()> {
        let bytes: Vec<u8> = match self.width {
            Width::Two => {
                let narrow = ids.iter().map(|id| u16::try_from(*id).expect("ids are below the vocabulary's size"));
                narrow.flat_map(u16::to_le_bytes).collect()
            }
            Width::Four => ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
        };
        self.hasher.update(&bytes);
        self.n_tokens += ids.len() as u64;
        self.out.write_all(&bytes)
    }

    /// Completes the stream and gives it its name.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn finish(mut self) -> io::Result<()> {
        let header = header_bytes(self.width, self.n_tokens, self.hasher.finalize().as_bytes());
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&header)?;
        self.out.flush()?;
        self.out.get_ref().sync_all()?;
        std::fs::rename(&self.temporary, &self.path)
    }
}

impl Drop for TokenWriter {
    fn drop(&mut self) {
        // After a rename there is nothing to remove; after a failure the file is of no use, and a failure to remove it
        // must not hide the first.
        drop(std::fs::remove_file(&self.temporary));
    }
}

fn header_bytes(width: Width, n_tokens: u64, hash: &[u8; 32]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..16].copy_from_slice(&(width.bytes() as u64).to_le_bytes());
    header[16..24].copy_from_slice(&n_tokens.to_le_bytes());
    header[24..56].copy_from_slice(hash);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(path: &Path, width: Width, ids: &[u32]) {
        let mut writer = TokenWriter::create(path, width).unwrap();
        ids.chunks(7).for_each(|part| writer.write(part).unwrap());
        writer.finish().unwrap();
    }

    #[test]
    fn tokens_survive_the_file_in_both_widths() {
        let directory = tempfile::tempdir().unwrap();
        let check = |width: Width, ids: Vec<u32>| {
            let path = directory.path().join("sub").join(format!("{width:?}.bin"));
            written(&path, width, &ids);
            let file = TokenFile::open(&path, width).unwrap().unwrap();
            assert_eq!((file.n_tokens(), file.read(0, ids.len())), (ids.len() as u64, ids.clone()));
            assert_eq!(file.read(3, 5), ids[3..8]);
        };
        check(Width::Two, (0..1000).map(|i| i * 65).collect());
        check(Width::Four, (0..1000).map(|i| i * 4_000_000).collect());
        assert_eq!(std::fs::read_dir(directory.path().join("sub")).unwrap().count(), 2, "no temporary file stays");
    }

    #[test]
    fn a_file_cut_off_or_changed_anywhere_counts_as_absent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.bin");
        written(&path, Width::Two, &(0..100).collect::<Vec<_>>());
        let whole = std::fs::read(&path).unwrap();
        let is_whole = |bytes: &[u8], width: Width| {
            // A mapped file is never rewritten in place, and so neither here.
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, bytes).unwrap();
            TokenFile::open(&path, width).unwrap().is_some()
        };
        assert!(is_whole(&whole, Width::Two));
        assert!(!is_whole(&whole, Width::Four));
        for n_kept in [0, 1, 63, 64, 65, whole.len() - 1] {
            assert!(!is_whole(&whole[..n_kept], Width::Two), "{n_kept}");
        }
        for idx in 0..whole.len() {
            let mut changed = whole.clone();
            changed[idx] ^= 1;
            assert!(!is_whole(&changed, Width::Two), "{idx}");
        }
        assert!(TokenFile::open(&directory.path().join("absent"), Width::Two).unwrap().is_none());
    }

    #[test]
    fn an_unfinished_stream_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.bin");
        let mut writer = TokenWriter::create(&path, Width::Two).unwrap();
        writer.write(&[1, 2, 3]).unwrap();
        drop(writer);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
