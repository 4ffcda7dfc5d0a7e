//! One stream of a block as one zstd frame (RFC 8878), expanded only after everything it declares was judged.
//!
//! An honest frame states its content's size, and a block's streams have sizes that layout, run spec and the streams before
//! them allow; so a frame is asked first, and one that states nothing, or more than is allowed, is refused before a byte of
//! it is expanded (C-3). It is then expanded in one call into a slice of just that size: no window is allocated, whatever
//! the frame asks for, and a frame that expands to more or less than it stated is corrupt.
//!
//! Gaps and magnitudes have no repetitions worth finding, only unequal frequencies. zstd's fastest strategy then finds no
//! matches, and what remains of it is its Huffman coder, which is what is wanted: 0.7 ns a byte to expand, 1 % over the entropy.
//! What does not shrink zstd stores as it is, in a few bytes more.

use std::cell::Cell;

use zstd_safe::{CCtx, CParameter, DCtx, compress_bound, find_frame_compressed_size, get_frame_content_size};

/// The level with the least search: more of it finds nothing here.
const LEVEL: i32 = 1;
/// Shorter repetitions than this are chance: to write them as repetitions costs more than it saves, in bytes and time.
const MATCH_LEN_MIN: u32 = 7;

/// Why a frame is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedFrame {
    /// These bytes are something else.
    #[error("is not a zstd frame")]
    NotAFrame,
    /// The frame does not say how much it expands to.
    #[error("does not state its content's size")]
    Unstated,
    /// It would expand to more than the stream can have: refused before it is expanded.
    #[error("would expand to {stated} bytes, of at most {max}")]
    TooLarge {
        /// What the frame states.
        stated: u64,
        /// What the stream can have.
        max: usize,
    },
    /// It would expand to less than the stream must have.
    #[error("would expand to {stated} bytes, of at least {min}")]
    TooSmall {
        /// What the frame states.
        stated: u64,
        /// What the stream must have.
        min: usize,
    },
    /// It does not end where its place in the block ends.
    #[error("is not one whole frame")]
    Bounds,
    /// It does not expand to what it states.
    #[error("is corrupt")]
    Corrupt,
}

impl MalformedFrame {
    /// The reason as one word.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::NotAFrame => "frame_magic",
            Self::Unstated => "frame_unstated",
            Self::TooLarge { .. } => "frame_too_large",
            Self::TooSmall { .. } => "frame_too_small",
            Self::Bounds => "frame_bounds",
            Self::Corrupt => "frame_corrupt",
        }
    }
}

thread_local! {
    // A context is allocated and cleared, some hundred KB; of a small model that would be done more often than anything is written.
    static IDLE_SHRINKER: Cell<Option<CCtx<'static>>> = const { Cell::new(None) };
    static IDLE_EXPANDER: Cell<Option<DCtx<'static>>> = const { Cell::new(None) };
}

/// Writes frames, with the thread's context if nobody else has it.
pub(super) struct Shrinker(Option<CCtx<'static>>);

impl Shrinker {
    pub fn new() -> Self {
        Self(Some(IDLE_SHRINKER.take().unwrap_or_else(Self::context)))
    }

    fn context() -> CCtx<'static> {
        let mut context = CCtx::create();
        let parameters = [
            CParameter::CompressionLevel(LEVEL),
            CParameter::MinMatch(MATCH_LEN_MIN),
            CParameter::ContentSizeFlag(true),
            CParameter::ChecksumFlag(false),
        ];
        for parameter in parameters {
            context.set_parameter(parameter).expect("zstd knows these parameters and their ranges");
        }
        context
    }

    /// Appends `stream` as a frame, and answers how long the frame is.
    pub fn append(&mut self, stream: &[u8], out: &mut Vec<u8>) -> usize {
        let start = out.len();
        out.resize(start + compress_bound(stream.len()), 0);
        let context = self.0.as_mut().expect("taken only by drop");
        let len = context.compress2(&mut out[start..], stream).expect("zstd's own bound leaves it room enough");
        out.truncate(start + len);
        len
    }
}

impl Drop for Shrinker {
    fn drop(&mut self) {
        let context = self.0.take();
        // A thread that ends has no use for it.
        let _ = IDLE_SHRINKER.try_with(|idle| idle.set(context));
    }
}

/// Reads frames, with the thread's context if nobody else has it.
pub(super) struct Expander(Option<DCtx<'static>>);

impl Expander {
    pub fn new() -> Self {
        Self(Some(IDLE_EXPANDER.take().unwrap_or_else(DCtx::create)))
    }

    /// Bytes that zstd holds.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.0.as_ref().map_or(0, DCtx::sizeof)
    }

    /// Expands a frame into `out`, which becomes as long as the frame states: at least `min`, at most `max`.
    pub fn expand(&mut self, frame: &[u8], min: usize, max: usize, out: &mut Vec<u8>) -> Result<(), MalformedFrame> {
        let stated = get_frame_content_size(frame).map_err(|_| MalformedFrame::NotAFrame)?;
        let stated = stated.ok_or(MalformedFrame::Unstated)?;
        let len = usize::try_from(stated).ok().filter(|len| *len <= max);
        let len = len.ok_or(MalformedFrame::TooLarge { stated, max })?;
        if len < min {
            return Err(MalformedFrame::TooSmall { stated, min });
        }
        // zstd would go on with a frame that follows, and skip one that says it may be skipped.
        if find_frame_compressed_size(frame).ok() != Some(frame.len()) {
            return Err(MalformedFrame::Bounds);
        }
        out.resize(len, 0);
        let context = self.0.as_mut().expect("taken only by drop");
        match context.decompress(out.as_mut_slice(), frame) {
            Ok(got) if got == len => Ok(()),
            _ => Err(MalformedFrame::Corrupt),
        }
    }
}

impl Drop for Expander {
    fn drop(&mut self) {
        let context = self.0.take();
        // A thread that ends has no use for it.
        let _ = IDLE_EXPANDER.try_with(|idle| idle.set(context));
    }
}
