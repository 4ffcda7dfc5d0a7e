//! A block: the records of some consecutive chunks, as streams of like things.
//!
//! | kind | then |
//! |---|---|
//! | 0 | the records as they are: where the streams would not be shorter |
//! | 1 | u32 bytes of each frame, the frames, the signs |
//!
//! | stream | quantisers | holds |
//! |---|---|---|
//! | scales, a frame | two-bit, one-bit | a byte a chunk |
//! | gaps, a frame | all | of every chunk that is not of scale 0, see `gaps` |
//! | codes, a frame | two-bit, sigma-bins | magnitudes, a bit a value; bins, two bits a value; a chunk begins with a byte |
//! | signs, raw | two-bit, one-bit | a bit a value; a chunk begins with a byte |
//!
//! A chunk of scale 0 has nothing but its scale: the canonical record says what its positions and codes are. A chunk with fewer
//! than k parameters has as many values as those.
//!
//! The scales are read first: they decide how many gaps, codes and signs there must be, to the byte for all but the gaps, and
//! nothing is expanded that is not of that size.

use std::ops::Range;

use crate::run_spec::Quantiser;
use crate::sparseloco::{BodyRef, Format, Layout, Simd};

use super::frame::{Expander, Shrinker};
use super::gaps;
use super::join::{self, Join};
use super::{MalformedTransport, Reader, Stream};

/// The most bytes of gaps in a block: as much as zstd takes at once, with one code for all of it.
const GAPS_MAX: usize = 128 << 10;

/// The records follow.
const RECORDS: u8 = 0;
/// Streams follow.
const STREAMS: u8 = 1;

/// Chunks of every block but the last.
pub(super) fn chunks_per_block(format: Format) -> usize {
    GAPS_MAX / gaps::len_max(format.keep())
}

/// The blocks of a layout, as ranges of chunks.
pub(super) fn blocks(layout: &Layout, format: Format) -> impl Iterator<Item = Range<usize>> + use<> {
    let (n_chunks, step) = (layout.n_chunks(), chunks_per_block(format));
    (0..n_chunks).step_by(step).map(move |start| start..n_chunks.min(start + step))
}

/// How many values each chunk of a block keeps; blocks are asked for in order.
pub(super) struct Kept<'a> {
    layout: &'a Layout,
    format: Format,
    tensor_idx: usize,
    counts: Vec<u16>,
}

impl<'a> Kept<'a> {
    pub fn new(layout: &'a Layout, format: Format) -> Self {
        Self { layout, format, tensor_idx: 0, counts: Vec::new() }
    }

    fn of(&mut self, chunks: Range<usize>) -> &[u16] {
        self.counts.clear();
        for chunk_idx in chunks {
            while self.layout.chunks_of(self.tensor_idx).end <= chunk_idx {
                self.tensor_idx += 1;
            }
            let n_kept = self.format.kept_of(self.layout.valid(self.tensor_idx, chunk_idx));
            self.counts.push(n_kept as u16);
        }
        &self.counts
    }
}

/// Bytes of a chunk's part of a stream of one or two bits a value.
pub(super) fn signs_len(format: Format, n_kept: usize) -> usize {
    if format.quantiser() == Quantiser::SigmaBins { 0 } else { n_kept.div_ceil(8) }
}

pub(super) fn codes_len(format: Format, n_kept: usize) -> usize {
    match format.quantiser() {
        Quantiser::OneBit => 0,
        Quantiser::TwoBit => n_kept.div_ceil(8),
        Quantiser::SigmaBins => (2 * n_kept).div_ceil(8),
    }
}

/// The frames of a block, in order.
fn frames(quantiser: Quantiser) -> &'static [Stream] {
    match quantiser {
        Quantiser::TwoBit => &[Stream::Scales, Stream::Gaps, Stream::Codes],
        Quantiser::OneBit => &[Stream::Scales, Stream::Gaps],
        Quantiser::SigmaBins => &[Stream::Gaps, Stream::Codes],
    }
}

/// Writes blocks.
pub(super) struct BlockWriter {
    shrinker: Shrinker,
    streams: [Vec<u8>; 3],
    signs: Vec<u8>,
}

impl BlockWriter {
    pub fn new() -> Self {
        Self { shrinker: Shrinker::new(), streams: Default::default(), signs: Vec::new() }
    }

    /// Appends the block of `chunks`.
    pub fn append(&mut self, body: BodyRef<'_>, chunks: Range<usize>, kept: &mut Kept<'_>, out: &mut Vec<u8>) {
        self.split(body, chunks.clone(), kept);
        let (format, start) = (body.format(), out.len());
        let frames = frames(format.quantiser());
        out.push(STREAMS);
        let mut lens_at = out.len();
        out.resize(lens_at + 4 * frames.len(), 0);
        for stream in frames {
            let len = self.shrinker.append(&self.streams[*stream as usize], out) as u32;
            out[lens_at..lens_at + 4].copy_from_slice(&len.to_le_bytes());
            lens_at += 4;
        }
        out.extend_from_slice(&self.signs);
        let records = &body.record_bytes()[chunks.start * format.record_len()..chunks.end * format.record_len()];
        if out.len() - start > 1 + records.len() {
            out.truncate(start);
            out.push(RECORDS);
            out.extend_from_slice(records);
        }
    }

    /// Sorts the records' parts into streams.
    fn split(&mut self, body: BodyRef<'_>, chunks: Range<usize>, kept: &mut Kept<'_>) {
        let Self { streams: [scales, gaps, codes], signs, .. } = self;
        for stream in [&mut *scales, gaps, codes, signs] {
            stream.clear();
        }
        let format = body.format();
        let counts = kept.of(chunks.clone());
        for (chunk_idx, n_kept) in chunks.zip(counts) {
            let (record, n_kept) = (body.record(chunk_idx), usize::from(*n_kept));
            if format.has_scale() {
                scales.push(record.scale());
                if record.scale() == 0 {
                    continue;
                }
            }
            let mut writer = gaps::Writer::default();
            record.for_each(n_kept, |position, _| writer.put(position, gaps));
            let (sign_part, code_part) = planes(format, record.bytes());
            signs.extend_from_slice(&sign_part[..signs_len(format, n_kept)]);
            codes.extend_from_slice(&code_part[..codes_len(format, n_kept)]);
        }
    }
}

/// A record's signs, and its magnitudes or bins.
fn planes(format: Format, record: &[u8]) -> (&[u8], &[u8]) {
    record[format.codes_at()..].split_at(signs_len(format, format.keep()))
}

/// Reads blocks.
pub(super) struct BlockReader {
    expander: Expander,
    streams: [Vec<u8>; 3],
    simd: Simd,
}

impl BlockReader {
    pub fn new() -> Self {
        Self { expander: Expander::new(), streams: Default::default(), simd: Simd::best() }
    }

    /// Bytes that it holds.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.expander.held() + self.streams.iter().map(Vec::capacity).sum::<usize>()
    }

    /// Reads the block of `chunks`, and writes its records: `out` is of their length.
    pub fn read(
        &mut self,
        input: &mut Reader<'_>,
        chunks: Range<usize>,
        kept: &mut Kept<'_>,
        out: &mut [u8],
    ) -> Result<(), MalformedTransport> {
        let format = kept.format;
        match input.take(1)? {
            [RECORDS] => {
                out.copy_from_slice(input.take(out.len())?);
                Ok(())
            }
            [STREAMS] => self.read_streams(input, format, chunks, kept, out),
            other => Err(MalformedTransport::BlockKind { chunk_idx: chunks.start, got: other[0] }),
        }
    }

    fn read_streams(
        &mut self,
        input: &mut Reader<'_>,
        format: Format,
        chunks: Range<usize>,
        kept: &mut Kept<'_>,
        out: &mut [u8],
    ) -> Result<(), MalformedTransport> {
        let frames = frames(format.quantiser());
        let mut lens = [0_usize; 3];
        for (len, bytes) in lens.iter_mut().zip(input.take(4 * frames.len())?.as_chunks::<4>().0) {
            *len = u32::from_le_bytes(*bytes) as usize;
        }
        let (layout, counts) = (kept.layout, kept.of(chunks.clone()));
        let Self { expander, streams: [scales, gaps, codes], simd } = self;
        scales.clear();
        codes.clear();
        let mut lens = lens.into_iter();
        let mut expand = |stream: Stream, min: usize, max: usize, input: &mut Reader<'_>, out: &mut Vec<u8>| {
            let frame = input.take(lens.next().expect("as many lengths were read as there are frames"))?;
            let chunk_idx = chunks.start;
            let fault = |reason| MalformedTransport::Frame { chunk_idx, stream, reason };
            expander.expand(frame, min, max, out).map_err(fault)
        };
        if format.has_scale() {
            expand(Stream::Scales, counts.len(), counts.len(), input, scales)?;
        }
        let sizes = Sizes::of(format, scales, counts);
        expand(Stream::Gaps, sizes.gaps_min, sizes.gaps_max, input, gaps)?;
        if frames.contains(&Stream::Codes) {
            expand(Stream::Codes, sizes.codes, sizes.codes, input, codes)?;
        }
        let signs = input.take(sizes.signs)?;
        let join = Join { format, counts, scales, gaps, codes, signs, chunk_idx: chunks.start, out: &mut *out };
        let unread = simd.dispatch(join)?;
        if unread > 0 {
            return Err(MalformedTransport::GapsLeft { chunk_idx: chunks.start, unread });
        }
        let records = out.chunks_exact_mut(format.record_len());
        for ((chunk_idx, record), _) in chunks.zip(records).zip(&*scales).filter(|(_, scale)| **scale == 0) {
            join::write_zero(layout, format, chunk_idx, record);
        }
        Ok(())
    }
}

/// What the streams of a block must have.
#[derive(Default)]
struct Sizes {
    gaps_min: usize,
    gaps_max: usize,
    codes: usize,
    signs: usize,
}

impl Sizes {
    fn of(format: Format, scales: &[u8], counts: &[u16]) -> Self {
        let mut sizes = Self::default();
        for (i, n_kept) in counts.iter().enumerate() {
            if scales.get(i) == Some(&0) {
                continue;
            }
            let n_kept = usize::from(*n_kept);
            sizes.gaps_min += n_kept;
            sizes.gaps_max += gaps::len_max(n_kept);
            sizes.codes += codes_len(format, n_kept);
            sizes.signs += signs_len(format, n_kept);
        }
        sizes
    }
}
