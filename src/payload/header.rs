//! The payload's first bytes: whose contribution it is, to which round, from which θ, in which format.
//!
//! Everything the fast checks need before they touch a record is here, at fixed offsets, little-endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `CVPL` |
//! | 4 | 2 | version |
//! | 6 | 2 | k |
//! | 8 | 1 | quantiser: 0 two-bit, 1 one-bit, 2 sigma-bins |
//! | 9 | 4, 4 | tensors, chunks |
//! | 17 | 32 | run id |
//! | 49 | 8 | round |
//! | 57 | 2 | uid |
//! | 59 | 4 | inner steps behind this pseudo-gradient |
//! | 63 | 32, 32, 32 | hotkey, base digest, layout hash |

use crate::run_spec::Quantiser;
use crate::sparseloco::{Format, Layout};
use crate::terms::{Digest, Hotkey, LayoutHash, Round, RunId, Uid};

use super::Malformed;

/// The first bytes of every payload.
pub const MAGIC: [u8; 4] = *b"CVPL";

/// The version that this node writes and reads.
pub const VERSION: u16 = 1;

/// Bytes of the header.
pub const HEADER_LEN: usize = 159;

/// Who sent a payload, for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The run.
    pub run_id: RunId,
    /// The round whose inner steps it comes from.
    pub round: Round,
    /// The sender's slot, for people; the hotkey decides.
    pub uid: Uid,
    /// The sender, who signs.
    pub hotkey: Hotkey,
    /// The digest of the θ that the inner steps started from.
    pub base: Digest,
    /// The tensors' layout.
    pub layout: LayoutHash,
    /// Inner steps that were taken.
    pub inner_steps: u32,
}

impl Header {
    pub(super) fn encode(&self, layout: &Layout, format: Format) -> [u8; HEADER_LEN] {
        let wanted = Wanted::of(layout, format);
        let mut bytes = [0; HEADER_LEN];
        let mut rest = bytes.as_mut_slice();
        let mut put = |field: &[u8]| {
            let (place, after) = std::mem::take(&mut rest).split_at_mut(field.len());
            place.copy_from_slice(field);
            rest = after;
        };
        put(&MAGIC);
        put(&VERSION.to_le_bytes());
        put(&wanted.keep.to_le_bytes());
        put(&[wanted.quantiser]);
        put(&wanted.tensors.to_le_bytes());
        put(&wanted.chunks.to_le_bytes());
        put(&self.run_id.0);
        put(&self.round.0.to_le_bytes());
        put(&self.uid.0.to_le_bytes());
        put(&self.inner_steps.to_le_bytes());
        put(&self.hotkey.0);
        put(&self.base.0);
        put(&self.layout.0);
        assert!(rest.is_empty(), "the fields fill the header");
        bytes
    }

    /// Reads a header and judges what layout and run spec decide.
    pub(super) fn decode(bytes: &[u8; HEADER_LEN], layout: &Layout, format: Format) -> Result<Self, Malformed> {
        let mut fields = Fields(bytes);
        let magic = fields.take();
        if magic != MAGIC {
            return Err(Malformed::Magic { got: magic });
        }
        let version = u16::from_le_bytes(fields.take());
        if version != VERSION {
            return Err(Malformed::Version { got: version });
        }
        let keep = u16::from_le_bytes(fields.take());
        let [quantiser] = fields.take();
        let (tensors, chunks) = (u32::from_le_bytes(fields.take()), u32::from_le_bytes(fields.take()));
        Wanted::of(layout, format).check(&Wanted { quantiser, keep, tensors, chunks })?;
        let header = Self {
            run_id: RunId(fields.take()),
            round: Round(u64::from_le_bytes(fields.take())),
            uid: Uid(u16::from_le_bytes(fields.take())),
            inner_steps: u32::from_le_bytes(fields.take()),
            hotkey: Hotkey(fields.take()),
            base: Digest(fields.take()),
            layout: LayoutHash(fields.take()),
        };
        if header.layout != layout.hash() {
            return Err(Malformed::Layout { got: header.layout, want: layout.hash() });
        }
        Ok(header)
    }
}

/// The fields that layout and run spec decide.
struct Wanted {
    quantiser: u8,
    keep: u16,
    tensors: u32,
    chunks: u32,
}

impl Wanted {
    fn of(layout: &Layout, format: Format) -> Self {
        let number = |n: usize| u32::try_from(n).expect("a layout has at most 2^28 chunks, each tensor at least one");
        let quantiser = match format.quantiser() {
            Quantiser::TwoBit => 0,
            Quantiser::OneBit => 1,
            Quantiser::SigmaBins => 2,
        };
        Self {
            quantiser,
            keep: u16::try_from(format.keep()).expect("k is at most 1024"),
            tensors: number(layout.tensors().len()),
            chunks: number(layout.n_chunks()),
        }
    }

    fn check(&self, got: &Self) -> Result<(), Malformed> {
        if got.quantiser != self.quantiser {
            return Err(Malformed::Quantiser { got: got.quantiser, want: self.quantiser });
        }
        if got.keep != self.keep {
            return Err(Malformed::Keep { got: got.keep, want: self.keep });
        }
        if got.tensors != self.tensors {
            return Err(Malformed::Tensors { got: got.tensors, want: self.tensors });
        }
        if got.chunks != self.chunks {
            return Err(Malformed::Chunks { got: got.chunks, want: self.chunks });
        }
        Ok(())
    }
}

/// The bytes not yet read.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("the fields fit the header");
        self.0 = rest;
        *field
    }
}
