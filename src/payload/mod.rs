//! A contribution as bytes on the wire: header, levels, records, signature.
//!
//! | part | bytes | |
//! |---|---|---|
//! | header | 159 | [`Header`], version, format and counts (see `header`) |
//! | levels | per tensor: 0 (one-bit), 4 (two-bit), 20 (sigma-bins) | see `sparseloco::Levels` |
//! | records | per chunk: 73, 81 or 80 at k = 64 | see `sparseloco::Record` |
//! | signature | 64 | the hotkey's, over the BLAKE3 of all before it |
//!
//! The length follows from layout and run spec alone ([`len`]), so it is checked before a byte is fetched, and nothing in the bytes
//! sizes an allocation (C-3). Every field has one encoding (C-2): a payload that parses is, byte for byte, the one that its
//! content seals to. The [`PayloadHash`] is the plain BLAKE3 of all bytes. What travels is their [`transport`] coding.
//!
//! The reference run's wire is a serialised dictionary without signature or hash, 20 bits a value; this one is 9.1 to 10.1.

mod header;
pub mod transport;

use std::sync::Arc;

use crate::hotkey::{HotkeyPair, SIGNATURE_LEN, verify};
use crate::run_spec::SparseSpec;
use crate::sparseloco::{Body, BodyRef, Format, Layout, MalformedBody, Record};
use crate::terms::{LayoutHash, PayloadHash};

pub use header::{HEADER_LEN, Header, MAGIC, VERSION};

/// Bytes of every payload of a run.
#[must_use]
pub fn len(layout: &Layout, spec: &SparseSpec) -> usize {
    let (levels, records) = BodyRef::lens(layout, Format::of(spec));
    HEADER_LEN + levels + records + SIGNATURE_LEN
}

/// Why bytes are not a payload of this run.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Malformed {
    /// The length is not the one that layout and run spec give.
    #[error("{got} bytes: a payload of this run has {want}")]
    Length {
        /// Bytes received.
        got: usize,
        /// Bytes of a payload.
        want: usize,
    },
    /// These bytes are something else.
    #[error("the payload starts with {got:02x?}, not with {MAGIC:02x?}")]
    Magic {
        /// The first bytes.
        got: [u8; 4],
    },
    /// Another version of the format.
    #[error("version {got}: this node reads version {VERSION}")]
    Version {
        /// The payload's.
        got: u16,
    },
    /// Another quantiser than the run's.
    #[error("quantiser {got}: the run's is {want}")]
    Quantiser {
        /// The payload's.
        got: u8,
        /// The run's.
        want: u8,
    },
    /// Another k than the run's.
    #[error("{got} values kept per chunk: the run keeps {want}")]
    Keep {
        /// The payload's.
        got: u16,
        /// The run's.
        want: u16,
    },
    /// Another model's layout.
    #[error("layout {got}: the run's is {want}")]
    Layout {
        /// The payload's.
        got: LayoutHash,
        /// The run's.
        want: LayoutHash,
    },
    /// The layout's hash with another number of tensors.
    #[error("{got} tensors: the layout has {want}")]
    Tensors {
        /// The payload's.
        got: u32,
        /// The layout's.
        want: u32,
    },
    /// The layout's hash with another number of chunks.
    #[error("{got} chunks: the layout has {want}")]
    Chunks {
        /// The payload's.
        got: u32,
        /// The layout's.
        want: u32,
    },
    /// A tensor's levels or a chunk's record.
    #[error(transparent)]
    Body(#[from] MalformedBody),
    /// The signature is not the header's hotkey's over these bytes.
    #[error("the signature is not the hotkey's over this payload")]
    Signature,
}

/// A payload whose every byte was checked.
#[derive(Clone)]
pub struct Payload {
    bytes: Arc<[u8]>,
    header: Header,
    format: Format,
    levels_len: usize,
    hash: PayloadHash,
}

impl Payload {
    /// Signs a contribution.
    ///
    /// # Panics
    /// If header, layout, spec, body and pair do not belong together.
    #[must_use]
    pub fn seal(header: Header, layout: &Layout, spec: &SparseSpec, body: Body, pair: &HotkeyPair) -> Self {
        assert_eq!((header.layout, header.hotkey), (layout.hash(), pair.hotkey()), "the header's layout and hotkey");
        let (format, body) = (Format::of(spec), body.view());
        let (levels, records) = (body.level_bytes(), body.record_bytes());
        assert_eq!(body.format(), format, "the body's format");
        assert_eq!((levels.len(), records.len()), BodyRef::lens(layout, format), "the body's layout");
        let mut bytes = Vec::with_capacity(len(layout, spec));
        bytes.extend_from_slice(&header.encode(layout, format));
        bytes.extend_from_slice(levels);
        bytes.extend_from_slice(records);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes);
        let signature = pair.sign(hasher.finalize().as_bytes());
        bytes.extend_from_slice(&signature);
        let hash = PayloadHash(*hasher.update(&signature).finalize().as_bytes());
        Self { bytes: bytes.into(), header, format, levels_len: levels.len(), hash }
    }

    /// Checks bytes from a peer against layout and run spec. Run, round, uid and base digest are the caller's to judge.
    ///
    /// Allocates nothing; the length is judged first, so that bytes of any other length cost nothing.
    ///
    /// # Errors
    /// The first thing that is wrong: refuse the payload, count the reason.
    pub fn parse(bytes: Arc<[u8]>, layout: &Layout, spec: &SparseSpec) -> Result<Self, Malformed> {
        let (format, want) = (Format::of(spec), len(layout, spec));
        if bytes.len() != want {
            return Err(Malformed::Length { got: bytes.len(), want });
        }
        let (signed, signature) = bytes.split_last_chunk::<SIGNATURE_LEN>().expect("a payload is longer than that");
        let (head, body) = signed.split_first_chunk::<HEADER_LEN>().expect("a payload is longer than that");
        let header = Header::decode(head, layout, format)?;
        let (levels_len, _) = BodyRef::lens(layout, format);
        let (levels, records) = body.split_at(levels_len);
        BodyRef::check(layout, format, levels, records)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(signed);
        if !verify(&header.hotkey, hasher.finalize().as_bytes(), signature) {
            return Err(Malformed::Signature);
        }
        let hash = PayloadHash(*hasher.update(signature).finalize().as_bytes());
        Ok(Self { bytes, header, format, levels_len, hash })
    }

    /// Who sent it, for what.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The canonical bytes.
    #[must_use]
    pub fn bytes(&self) -> &Arc<[u8]> {
        &self.bytes
    }

    /// BLAKE3 of the canonical bytes.
    #[must_use]
    pub fn hash(&self) -> PayloadHash {
        self.hash
    }

    /// The contribution.
    #[must_use]
    pub fn body(&self) -> BodyRef<'_> {
        let body = &self.bytes[HEADER_LEN..self.bytes.len() - SIGNATURE_LEN];
        let (levels, records) = body.split_at(self.levels_len);
        BodyRef::checked_before(self.format, levels, records)
    }

    /// A chunk's record.
    #[must_use]
    pub fn record(&self, chunk_idx: usize) -> Record<'_> {
        self.body().record(chunk_idx)
    }
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (round, uid, len) = (self.header.round, self.header.uid, self.bytes.len());
        write!(f, "Payload({}, round {round}, uid {uid}, {len} bytes)", self.hash.short())
    }
}

impl Malformed {
    /// The reason as one word, for counters.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        use crate::sparseloco::{MalformedLevels as Levels, MalformedRecord as Record};
        match self {
            Self::Length { .. } => "length",
            Self::Magic { .. } => "magic",
            Self::Version { .. } => "version",
            Self::Quantiser { .. } => "quantiser",
            Self::Keep { .. } => "keep",
            Self::Layout { .. } => "layout",
            Self::Tensors { .. } => "tensors",
            Self::Chunks { .. } => "chunks",
            Self::Body(MalformedBody::Levels(Levels::Multipliers { .. })) => "multipliers",
            Self::Body(MalformedBody::Levels(Levels::Bins { .. })) => "bins",
            Self::Body(MalformedBody::Record(Record::KeptCount { .. })) => "kept_count",
            Self::Body(MalformedBody::Record(Record::SpareBits { .. })) => "spare_bits",
            Self::Body(MalformedBody::Record(Record::NotAscending { .. })) => "not_ascending",
            Self::Body(MalformedBody::Record(Record::Padding { .. })) => "padding",
            Self::Body(MalformedBody::Record(Record::ZeroChunk { .. })) => "zero_chunk",
            Self::Signature => "signature",
        }
    }
}

#[cfg(test)]
mod tests;
