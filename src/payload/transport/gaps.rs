//! Kept positions as the gaps between them, a byte each: what a Huffman coder can shrink, unlike unary rows and columns.
//!
//! A gap is the distance from the kept position before, the first one's from -1, so it is at least 1; its byte is the gap less 1.
//! Byte 255 says "255 more, and go on": at k = 64 one gap in fifty needs it. The set of positions has one such form.

use crate::sparseloco::{CHUNK_LEN, KEEP_MAX};

/// A byte that adds 255 without ending a gap.
pub(super) const ESCAPE: u8 = 255;

/// Room for a chunk's positions, and for the reads of groups of four that reach past the last.
pub(super) type Positions = [u16; KEEP_MAX + 4];

/// Why a stream of gaps is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedGaps {
    /// The gaps end before the chunk has all its positions.
    #[error("the gaps end before the last position")]
    TooFew,
    /// A gap reaches past the chunk.
    #[error("a gap reaches position {position}, past the chunk")]
    Position {
        /// Where it ends.
        position: u32,
    },
    /// Escapes alone reach past the chunk.
    #[error("escapes reach position {position}, past the chunk")]
    Escape {
        /// How far they reach.
        position: u32,
    },
}

impl MalformedGaps {
    /// The reason as one word.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::TooFew => "gaps_too_few",
            Self::Position { .. } => "gaps_position",
            Self::Escape { .. } => "gaps_escape",
        }
    }
}

/// The most bytes that a chunk's gaps take: they sum to at most a chunk, so not many of them are long.
pub(super) const fn len_max(n_kept: usize) -> usize {
    n_kept + (CHUNK_LEN - n_kept) / ESCAPE as usize
}

/// Appends the gaps of positions, which ascend.
#[derive(Default)]
pub(super) struct Writer {
    next: usize,
}

impl Writer {
    #[inline]
    pub fn put(&mut self, position: usize, out: &mut Vec<u8>) {
        let mut gap = position - self.next;
        while gap >= usize::from(ESCAPE) {
            out.push(ESCAPE);
            gap -= usize::from(ESCAPE);
        }
        out.push(gap as u8);
        self.next = position + 1;
    }
}

/// Reads the gaps of `n_kept` positions from the front of `gaps`; answers how many bytes they took.
///
/// Without a branch per gap: an escape is a position that the next byte overwrites.
#[inline(always)]
pub(super) fn read(gaps: &[u8], n_kept: usize, positions: &mut Positions) -> Result<usize, MalformedGaps> {
    let (mut used, mut n, mut position) = (0, 0, u32::MAX);
    while n < n_kept {
        // A byte ends at most one gap, so that this many cannot be too many.
        let Some(bytes) = gaps.get(used..used + n_kept - n) else { return Err(fault(gaps, n_kept)) };
        used += bytes.len();
        for byte in bytes {
            let ends = u32::from(*byte != ESCAPE);
            position = position.wrapping_add(u32::from(*byte) + ends);
            // No position is past KEEP_MAX here: the remainder spares the test of it.
            positions[n % KEEP_MAX] = position as u16;
            n += ends as usize;
        }
    }
    // They ascend, so that the last one speaks for all.
    if position < CHUNK_LEN as u32 { Ok(used) } else { Err(fault(gaps, n_kept)) }
}

/// What is wrong with gaps that are known to be wrong.
#[cold]
fn fault(gaps: &[u8], n_kept: usize) -> MalformedGaps {
    let (mut n, mut next) = (0, 0);
    for byte in gaps {
        let position = next + u32::from(*byte);
        if position >= CHUNK_LEN as u32 {
            let escaped = *byte == ESCAPE;
            return if escaped { MalformedGaps::Escape { position } } else { MalformedGaps::Position { position } };
        }
        next = position + u32::from(*byte != ESCAPE);
        n += usize::from(*byte != ESCAPE);
        if n == n_kept {
            break;
        }
    }
    MalformedGaps::TooFew
}
