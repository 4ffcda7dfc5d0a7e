//! A payload as it travels and is stored: the canonical bytes, coded to within a percent of what is in them.
//!
//! | part | bytes | |
//! |---|---|---|
//! | magic | 4 | `CVTC` |
//! | version | 2 | |
//! | header, levels, signature | as in the payload | canonical, as they are |
//! | blocks | | the records of so many chunks that their gaps are at most 128 KiB, see `block` |
//!
//! Records have a fixed length so that they can be read at random and without an entropy decoder (see `sparseloco::Record`); that
//! costs half a bit an index and, where magnitudes are unequal, a little of a bit a value. Here the indices are gaps again
//! under zstd's Huffman coder, at 7.4 bits where 7.36 is the limit of a random set (k = 64). Signs are random: raw.
//! Arithmetic coding (rANS) would gain 0.02 bits more and decode six times slower; contexts from earlier rounds gain 3 %, for
//! state that every node must share to the bit. Both were measured, and left out.
//!
//! **What is signed is canonical, what is addressed is not.** zstd's output may differ between its versions, so one payload has
//! many transport codings. [`PayloadHash`](crate::terms::PayloadHash) and signature are over the canonical bytes, which the
//! decoder restores; whoever holds both forms' hashes from a seal checks both. Golden files pin the decoder, not the encoder.
//!
//! **The decoder trusts nothing** (C-3). How many bytes each part may have follows from layout, run spec, and the parts before
//! it; a frame that states another size is refused before it is expanded. It holds one block, whatever the model's size: under
//! half a megabyte. Every malformation has its reason.

mod block;
mod frame;
mod gaps;
mod join;

use std::sync::Arc;

use crate::run_spec::SparseSpec;
use crate::sparseloco::{BodyRef, Format, Layout};

use super::header::{HEADER_LEN, Header};
use super::{Malformed, Payload, SIGNATURE_LEN};
use block::{BlockReader, BlockWriter, Kept, blocks};

pub use frame::MalformedFrame;
pub use gaps::MalformedGaps;

/// The first bytes of every transport coding.
pub const MAGIC: [u8; 4] = *b"CVTC";

/// The version that this node writes and reads.
pub const VERSION: u16 = 1;

/// Bytes of magic and version.
const PREFIX_LEN: usize = 6;

/// The most bytes of a payload's transport coding: a block that coding would not shrink holds its records as they are.
#[must_use]
pub fn len_max(layout: &Layout, spec: &SparseSpec) -> usize {
    let format = Format::of(spec);
    PREFIX_LEN + super::len(layout, spec) + layout.n_chunks().div_ceil(block::chunks_per_block(format))
}

/// A stream of a block that is a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// The chunks' scales.
    Scales,
    /// The gaps between kept positions.
    Gaps,
    /// Magnitudes or bins.
    Codes,
}

/// Why bytes are not the transport coding of a payload of this run.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum MalformedTransport {
    /// More bytes than any payload of this run takes.
    #[error("{got} bytes: a payload of this run travels in at most {max}")]
    TooLong {
        /// Bytes received.
        got: usize,
        /// [`len_max`].
        max: usize,
    },
    /// The bytes end before the payload does.
    #[error("{missing} bytes are missing at byte {at}")]
    Truncated {
        /// Where more was expected.
        at: usize,
        /// How many more.
        missing: usize,
    },
    /// Bytes follow the last block.
    #[error("{bytes} bytes follow the last block")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// These bytes are something else.
    #[error("the transport coding starts with {got:02x?}, not with {MAGIC:02x?}")]
    Magic {
        /// The first bytes.
        got: [u8; 4],
    },
    /// Another version of the coding.
    #[error("transport version {got}: this node reads version {VERSION}")]
    Version {
        /// The coding's.
        got: u16,
    },
    /// A block of no known kind.
    #[error("the block of chunk {chunk_idx} is of kind {got}")]
    BlockKind {
        /// The block's first chunk.
        chunk_idx: usize,
        /// Its first byte.
        got: u8,
    },
    /// A stream's frame.
    #[error("the frame of the {stream:?} in the block of chunk {chunk_idx} {reason}")]
    Frame {
        /// The block's first chunk.
        chunk_idx: usize,
        /// Which stream.
        stream: Stream,
        /// What is wrong with it.
        reason: MalformedFrame,
    },
    /// A chunk's gaps.
    #[error("in chunk {chunk_idx}, {reason}")]
    Gaps {
        /// The chunk.
        chunk_idx: usize,
        /// What is wrong with them.
        reason: MalformedGaps,
    },
    /// Gaps that no chunk of the block has taken.
    #[error("{unread} bytes of gaps are left in the block of chunk {chunk_idx}")]
    GapsLeft {
        /// The block's first chunk.
        chunk_idx: usize,
        /// How many.
        unread: usize,
    },
    /// What was decoded is not a payload of this run.
    #[error(transparent)]
    Payload(#[from] Malformed),
}

impl MalformedTransport {
    /// The reason as one word, for counters; one list with [`Malformed::reason`]'s.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "transport_too_long",
            Self::Truncated { .. } => "transport_truncated",
            Self::Trailing { .. } => "transport_trailing",
            Self::Magic { .. } => "transport_magic",
            Self::Version { .. } => "transport_version",
            Self::BlockKind { .. } => "block_kind",
            Self::Frame { reason, .. } => reason.reason(),
            Self::Gaps { reason, .. } => reason.reason(),
            Self::GapsLeft { .. } => "gaps_left",
            Self::Payload(malformed) => malformed.reason(),
        }
    }
}

/// The transport coding of a payload that was sealed or parsed with this layout and spec.
#[must_use]
pub fn encode(payload: &Payload, layout: &Layout, spec: &SparseSpec) -> Vec<u8> {
    let (format, bytes, body) = (Format::of(spec), payload.bytes(), payload.body());
    let (signed, signature) = bytes.split_at(bytes.len() - SIGNATURE_LEN);
    // Usually enough.
    let mut out = Vec::with_capacity(bytes.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&signed[..HEADER_LEN]);
    out.extend_from_slice(body.level_bytes());
    out.extend_from_slice(signature);
    let (mut writer, mut kept) = (BlockWriter::new(), Kept::new(layout, format));
    for chunks in blocks(layout, format) {
        writer.append(body, chunks, &mut kept, &mut out);
    }
    out
}

/// The canonical bytes that a transport coding stands for; of the right length, judged no further than their header.
///
/// # Errors
/// The first thing that is wrong: refuse the payload, count the reason.
pub fn decode(bytes: &[u8], layout: &Layout, spec: &SparseSpec) -> Result<Arc<[u8]>, MalformedTransport> {
    let mut decoder = Decoder::new(layout, spec);
    let head = decoder.head(bytes)?;
    // Sized by layout and run spec alone.
    let mut canonical: Arc<[u8]> = std::iter::repeat_n(0, super::len(layout, spec)).collect();
    let mut rest = Arc::get_mut(&mut canonical).expect("nobody else has it");
    let mut next = |len: usize| {
        let (part, after) = std::mem::take(&mut rest).split_at_mut(len);
        rest = after;
        part
    };
    next(HEADER_LEN).copy_from_slice(head.header);
    next(head.levels.len()).copy_from_slice(head.levels);
    let mut input = head.blocks;
    let mut kept = Kept::new(layout, decoder.format);
    for chunks in blocks(layout, decoder.format) {
        let records = next(chunks.len() * decoder.format.record_len());
        decoder.reader.read(&mut input, chunks, &mut kept, records)?;
    }
    input.end()?;
    next(SIGNATURE_LEN).copy_from_slice(head.signature);
    Ok(canonical)
}

/// Decodes and then judges everything: a payload whose every byte was checked.
///
/// # Errors
/// The first thing that is wrong: refuse the payload, count the reason.
pub fn parse(bytes: &[u8], layout: &Layout, spec: &SparseSpec) -> Result<Payload, MalformedTransport> {
    Ok(Payload::parse(decode(bytes, layout, spec)?, layout, spec)?)
}

/// Decodes payload after payload, one block at a time.
pub struct Decoder<'a> {
    layout: &'a Layout,
    format: Format,
    len_max: usize,
    reader: BlockReader,
    records: Vec<u8>,
}

/// What comes before the blocks, and the blocks.
struct Head<'b> {
    header: &'b [u8; HEADER_LEN],
    levels: &'b [u8],
    signature: &'b [u8],
    blocks: Reader<'b>,
}

impl<'a> Decoder<'a> {
    /// A decoder of a run's payloads.
    #[must_use]
    pub fn new(layout: &'a Layout, spec: &SparseSpec) -> Self {
        let (format, len_max) = (Format::of(spec), len_max(layout, spec));
        Self { layout, format, len_max, reader: BlockReader::new(), records: Vec::new() }
    }

    /// Calls `sink` with the canonical bytes, piece after piece in their order. They are judged no further than the header;
    /// what `sink` got before an error is of no use.
    ///
    /// # Errors
    /// The first thing that is wrong: refuse the payload, count the reason.
    pub fn decode(&mut self, bytes: &[u8], mut sink: impl FnMut(&[u8])) -> Result<(), MalformedTransport> {
        let head = self.head(bytes)?;
        sink(head.header);
        sink(head.levels);
        let mut input = head.blocks;
        let mut kept = Kept::new(self.layout, self.format);
        for chunks in blocks(self.layout, self.format) {
            self.records.resize(chunks.len() * self.format.record_len(), 0);
            self.reader.read(&mut input, chunks, &mut kept, &mut self.records)?;
            sink(&self.records);
        }
        input.end()?;
        sink(head.signature);
        Ok(())
    }

    /// Reads what comes before the blocks. The header is judged, as all that follows depends on its being this run's.
    fn head<'b>(&self, bytes: &'b [u8]) -> Result<Head<'b>, MalformedTransport> {
        if bytes.len() > self.len_max {
            return Err(MalformedTransport::TooLong { got: bytes.len(), max: self.len_max });
        }
        let mut blocks = Reader { bytes, at: 0 };
        let magic = *blocks.array()?;
        if magic != MAGIC {
            return Err(MalformedTransport::Magic { got: magic });
        }
        let version = u16::from_le_bytes(*blocks.array()?);
        if version != VERSION {
            return Err(MalformedTransport::Version { got: version });
        }
        let header = blocks.array()?;
        Header::decode(header, self.layout, self.format)?;
        let levels = blocks.take(BodyRef::lens(self.layout, self.format).0)?;
        let signature = blocks.take(SIGNATURE_LEN)?;
        Ok(Head { header, levels, signature, blocks })
    }
}

impl std::fmt::Debug for Decoder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Decoder({:?})", self.format)
    }
}

/// Bytes and how many of them were read.
struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Reader<'b> {
    fn take(&mut self, len: usize) -> Result<&'b [u8], MalformedTransport> {
        let left = &self.bytes[self.at..];
        let missing = len.saturating_sub(left.len());
        if missing > 0 {
            return Err(MalformedTransport::Truncated { at: self.bytes.len(), missing });
        }
        self.at += len;
        Ok(&left[..len])
    }

    fn array<const N: usize>(&mut self) -> Result<&'b [u8; N], MalformedTransport> {
        Ok(self.take(N)?.try_into().expect("just so many bytes were taken"))
    }

    fn end(self) -> Result<(), MalformedTransport> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            bytes => Err(MalformedTransport::Trailing { bytes }),
        }
    }
}

#[cfg(test)]
mod tests;
