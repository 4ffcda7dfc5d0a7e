//! A file as bytes in memory, read by the system as they are touched: a corpus of many gigabytes costs no memory.
//!
//! The one module of the node that needs `unsafe`: mapping a file is sound only while nobody changes it, which no
//! signature can promise.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

/// A read-only mapping of a file that is complete and never changed in place.
pub struct Mapped(Mmap);

impl Mapped {
    /// Maps a file that came to its name by a rename and is only ever replaced by another.
    ///
    /// # Errors
    /// The file is absent, cannot be read, or the system refuses the mapping.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the caller passes a file of the node's own cache. Those are written under another name and renamed
        // when complete, and no code truncates or rewrites one; a replacement is another inode, which leaves this
        // mapping as it is. The bytes are read as `u8` only, for which every value is valid.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self(map))
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
