//! Compression with error feedback: Δ becomes a [`Body`], and what was not sent stays in e.
//!
//! a = fl(β·e + Δ); Δ̂ = Q(top-k per chunk of a); e ← fl(a − Δ̂) (arXiv:2508.15706, eq. 1 and §2.1). The residual is taken
//! against the *quantised* values, so the quantiser's error is fed back too. **C-1**: e after the call is exactly fl(a − Δ̂).
//!
//! The scale of a chunk is the mean |a| of what it keeps, on the table's grid. For signs alone that mean minimises the squared
//! error; with two levels it only has to be the same function of the chunk for the sample that chose the levels. Levels
//! come from a sample of the tensor's chunks that is coded twice; all else touches a chunk once, while it is in cache. Sigma-bins
//! needs the mean of all kept values of the tensor, so there the kept values are held until the tensor's end.

use crate::run_spec::{Quantiser, SparseSpec};

use super::body::{Body, BodyRef};
use super::layout::{CHUNK_LEN, Layout, Valid};
use super::levels::{Levels, fit_sigma_bins, fit_two_bit};
use super::record::{self, Format, KEEP_MAX};
use super::scale::{self, SCALES};
use super::select::select;

/// The most chunks of a tensor that choose its two-bit levels; evenly spread over it, one in eight of a small tensor.
const SAMPLE_CHUNKS_MAX: usize = 64;

/// What [`encode`] makes.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// The contribution.
    pub body: Body,
    /// How to take it back.
    pub undo: Undo,
    /// What it says about itself.
    pub report: EncodeReport,
}

/// Figures about one contribution, for people.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct EncodeReport {
    /// Values kept.
    pub kept: u64,
    /// Chunks sent as zero.
    pub zero_chunks: u64,
    /// Σ a² over the kept values.
    pub energy_kept: f64,
    /// Σ (a − Δ̂)² over the kept values; over `energy_kept` it is the quantiser's relative squared error.
    pub energy_lost: f64,
}

/// Why a pseudo-gradient cannot be compressed; the error feedback is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A value of β·e + Δ is NaN or infinite: the round's payload must not be sent.
    #[error("tensor `{name}` has a value that is not finite in its chunk {chunk}")]
    NotFinite {
        /// The tensor.
        name: String,
        /// The chunk, counted within the tensor.
        chunk: usize,
    },
    /// Padding that is not zero, so e or Δ is not of this layout.
    #[error("tensor `{name}` has a value in the padding of its chunk {chunk}")]
    PaddingNotZero {
        /// The tensor.
        name: String,
        /// The chunk, counted within the tensor.
        chunk: usize,
    },
}

/// The kept values before quantisation. With them and the contribution, e becomes a again: a contribution that was not applied
/// loses nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Undo {
    /// a at the kept positions: k values a chunk, of which the chunk uses as many as it keeps.
    values: Vec<f32>,
}

impl Undo {
    /// The values, to be stored beside the payload.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// What was stored.
    #[must_use]
    pub fn from_values(values: Vec<f32>) -> Self {
        Self { values }
    }

    /// Sets e = a exactly, given the contribution and the e that [`encode`] made together with this.
    ///
    /// # Panics
    /// If contribution, `error` and the values are not of this layout.
    pub fn restore(&self, layout: &Layout, body: BodyRef<'_>, error: &mut [f32]) {
        let (format, keep) = (body.format(), body.format().keep());
        assert_eq!(error.len(), layout.flat_len(), "the flat form's length");
        assert_eq!(self.values.len(), layout.n_chunks() * keep, "kept values of the layout");
        for tensor_idx in 0..layout.tensors().len() {
            for chunk_idx in layout.chunks_of(tensor_idx) {
                let record = body.record(chunk_idx);
                if record.scale() == 0 {
                    // Nothing was subtracted, and its positions are not those of the values.
                    continue;
                }
                let mut values = self.values[chunk_idx * keep..].iter();
                record.for_each(format.kept_of(layout.valid(tensor_idx, chunk_idx)), |position, _| {
                    error[chunk_idx * CHUNK_LEN + position] = *values.next().expect("k values a chunk");
                });
            }
        }
    }
}

/// Compresses one round's pseudo-gradient and leaves in `error` what was not sent.
///
/// `error` and `delta` are e and Δ: `[layout.flat_len()]` f32, chunk-major, padding zero.
///
/// # Errors
/// A value is not finite, or the padding is not zero; `error` is unchanged. Do not send, look for what went wrong in training.
///
/// # Panics
/// If a slice is not of the layout's length, or k is out of range.
pub fn encode(layout: &Layout, spec: &SparseSpec, error: &mut [f32], delta: &[f32]) -> Result<Encoded, EncodeError> {
    assert_eq!((error.len(), delta.len()), (layout.flat_len(), layout.flat_len()), "the flat form's length");
    let format = Format::of(spec);
    check(layout, spec.error_decay, error, delta)?;
    let mut body = Body::blank(layout, format);
    let mut undo = Undo { values: vec![0.0; layout.n_chunks() * format.keep()] };
    let mut report = EncodeReport::default();
    let mut encoder = Encoder { format, decay: spec.error_decay, scratch: Vec::with_capacity(CHUNK_LEN) };
    let (level_len, record_len, keep) = (Levels::len(format.quantiser()), format.record_len(), format.keep());
    for tensor_idx in 0..layout.tensors().len() {
        let (chunks, flat) = (layout.chunks_of(tensor_idx), layout.flat_range_of(tensor_idx));
        let job = TensorJob {
            valids: chunks.clone().map(|chunk_idx| layout.valid(tensor_idx, chunk_idx)).collect(),
            error: error[flat.clone()].as_chunks_mut().0,
            delta: delta[flat].as_chunks().0,
            records: &mut body.records[chunks.start * record_len..chunks.end * record_len],
            values: &mut undo.values[chunks.start * keep..chunks.end * keep],
        };
        let levels = encoder.encode_tensor(job, &mut report);
        levels.write(&mut body.levels[tensor_idx * level_len..(tensor_idx + 1) * level_len]);
    }
    Ok(Encoded { body, undo, report })
}

/// Whether every a is finite and all padding zero. A finite a implies a finite e and Δ.
fn check(layout: &Layout, decay: f32, error: &[f32], delta: &[f32]) -> Result<(), EncodeError> {
    for (tensor_idx, tensor) in layout.tensors().iter().enumerate() {
        let chunks = layout.chunks_of(tensor_idx);
        for chunk_idx in chunks.clone() {
            let flat = chunk_idx * CHUNK_LEN..(chunk_idx + 1) * CHUNK_LEN;
            let (error, delta) = (&error[flat.clone()], &delta[flat]);
            let (name, chunk) = (|| tensor.name.clone(), chunk_idx - chunks.start);
            // |a| < Inf is false for NaN; without an early exit the loop runs on whole vectors.
            let all = error.iter().zip(delta).fold(true, |all, (e, d)| all & ((decay * e + d).abs() < f32::INFINITY));
            if !all {
                return Err(EncodeError::NotFinite { name: name(), chunk });
            }
            let valid = layout.valid(tensor_idx, chunk_idx);
            let stray =
                |position: usize| !valid.contains(position) && (error[position] != 0.0 || delta[position] != 0.0);
            if valid != Valid::FULL && (0..CHUNK_LEN).any(stray) {
                return Err(EncodeError::PaddingNotZero { name: name(), chunk });
            }
        }
    }
    Ok(())
}

/// One tensor's slices; those of two tensors, or of two ranges of chunks, are disjoint.
struct TensorJob<'a> {
    valids: Vec<Valid>,
    error: &'a mut [[f32; CHUNK_LEN]],
    delta: &'a [[f32; CHUNK_LEN]],
    records: &'a mut [u8],
    values: &'a mut [f32],
}

/// One chunk after selection; positions and values are as long as what the chunk keeps.
struct Selected<'a> {
    error: &'a mut [f32; CHUNK_LEN],
    positions: &'a [u16],
    values: &'a [f32],
}

struct Encoder {
    format: Format,
    decay: f32,
    scratch: Vec<u32>,
}

impl Encoder {
    fn encode_tensor(&mut self, job: TensorJob<'_>, report: &mut EncodeReport) -> Levels {
        match self.format.quantiser() {
            Quantiser::OneBit => self.encode_by_scale(job, Levels::OneBit, report),
            Quantiser::TwoBit => {
                let levels = self.sample_levels(&job);
                self.encode_by_scale(job, levels, report)
            }
            Quantiser::SigmaBins => self.encode_by_bins(job, report),
        }
    }

    /// Chunk by chunk, each in one go.
    fn encode_by_scale(&mut self, job: TensorJob<'_>, levels: Levels, report: &mut EncodeReport) -> Levels {
        let (keep, record_len) = (self.format.keep(), self.format.record_len());
        let mut positions = [0; KEEP_MAX];
        for (i, valid) in job.valids.iter().enumerate() {
            let kept = i * keep..i * keep + self.format.kept_of(*valid);
            let (positions, values) = (&mut positions[..kept.len()], &mut job.values[kept]);
            let error = &mut job.error[i];
            self.accumulate_and_select(error, &job.delta[i], *valid, positions, values);
            let record = &mut job.records[i * record_len..(i + 1) * record_len];
            let code = scale::nearest(mean_magnitude(values));
            if code == 0 {
                // Nothing is subtracted: e keeps a.
                write_zero_record(self.format, *valid, record);
                report.zero_chunks += 1;
                report.count(values, |_| 0.0);
                continue;
            }
            quantise_chunk(self.format, levels, code, Selected { error, positions, values }, record, report);
        }
        levels
    }

    /// First all chunks' kept values, then their bins.
    fn encode_by_bins(&mut self, job: TensorJob<'_>, report: &mut EncodeReport) -> Levels {
        let (format, keep, record_len) = (self.format, self.format.keep(), self.format.record_len());
        let mut positions = vec![0; job.valids.len() * keep];
        for (i, valid) in job.valids.iter().enumerate() {
            let kept = i * keep..i * keep + format.kept_of(*valid);
            let (positions, values) = (&mut positions[kept.clone()], &mut job.values[kept]);
            self.accumulate_and_select(&mut job.error[i], &job.delta[i], *valid, positions, values);
        }
        let (values, valids) = (&*job.values, &job.valids);
        let kept =
            valids.iter().enumerate().flat_map(|(i, valid)| &values[i * keep..i * keep + format.kept_of(*valid)]);
        let mut bins = Vec::with_capacity(values.len());
        let levels = fit_sigma_bins(kept.copied(), |_, bin| bins.push(bin));
        let table = levels.values(0);
        let mut bins = bins.as_slice();
        for (i, valid) in valids.iter().enumerate() {
            let kept = i * keep..i * keep + format.kept_of(*valid);
            let (codes, rest) = bins.split_at(kept.len());
            bins = rest;
            let (positions, values) = (&positions[kept.clone()], &values[kept]);
            subtract(table, codes, Selected { error: &mut job.error[i], positions, values }, report);
            let record = &mut job.records[i * record_len..(i + 1) * record_len];
            record::write(format, positions, codes, 0, record);
        }
        levels
    }

    /// e ← fl(β·e + Δ) = a, then the positions of the largest |a| and their values.
    fn accumulate_and_select(
        &mut self,
        error: &mut [f32; CHUNK_LEN],
        delta: &[f32; CHUNK_LEN],
        valid: Valid,
        positions: &mut [u16],
        values: &mut [f32],
    ) {
        for (e, d) in error.iter_mut().zip(delta) {
            *e = self.decay * *e + d;
        }
        select(error, valid, &mut self.scratch, positions);
        for (value, position) in values.iter_mut().zip(positions) {
            *value = error[usize::from(*position)];
        }
    }

    /// The levels that a sample of the tensor's chunks wants; e is not touched.
    fn sample_levels(&mut self, job: &TensorJob<'_>) -> Levels {
        let n_chunks = job.valids.len();
        let n_sample = n_chunks.div_ceil(8).min(SAMPLE_CHUNKS_MAX);
        let (mut positions, mut values) = ([0; KEEP_MAX], [0.0; KEEP_MAX]);
        let mut a = [0.0; CHUNK_LEN];
        let mut ratios = Vec::with_capacity(n_sample * self.format.keep());
        for i in 0..n_sample {
            let i = i * n_chunks / n_sample;
            let n_kept = self.format.kept_of(job.valids[i]);
            let (positions, values) = (&mut positions[..n_kept], &mut values[..n_kept]);
            a.copy_from_slice(&job.error[i]);
            self.accumulate_and_select(&mut a, &job.delta[i], job.valids[i], positions, values);
            let scale = SCALES[usize::from(scale::nearest(mean_magnitude(values)))];
            if scale > 0.0 {
                ratios.extend(values.iter().map(|value| value.abs() / scale));
            }
        }
        fit_two_bit(&ratios)
    }
}

/// The mean |a| of the kept values. Sixteen partial sums, folded in halves: an order that vectors have for free. A sum beyond f32
/// is infinite and codes as the largest scale.
fn mean_magnitude(values: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    for (i, value) in values.iter().enumerate() {
        lanes[i % 16] += value.abs();
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0] / values.len() as f32
}

/// Codes by sign and, for two-bit, by the nearer level; half-way is the low one.
fn quantise_chunk(
    format: Format,
    levels: Levels,
    scale: u8,
    chunk: Selected<'_>,
    record: &mut [u8],
    report: &mut EncodeReport,
) {
    let table = levels.values(scale);
    let two_bit = format.quantiser() == Quantiser::TwoBit;
    let split = (table[0] + table[2]) / 2.0;
    let mut codes = [0; KEEP_MAX];
    for (code, a) in codes.iter_mut().zip(chunk.values) {
        *code = u8::from(a.is_sign_negative()) | u8::from(two_bit && a.abs() > split) << 1;
    }
    let codes = &codes[..chunk.values.len()];
    record::write(format, chunk.positions, codes, scale, record);
    subtract(table, codes, chunk, report);
}

/// e ← fl(a − Δ̂) at the kept positions.
fn subtract(table: [f32; 4], codes: &[u8], chunk: Selected<'_>, report: &mut EncodeReport) {
    for (position, code) in chunk.positions.iter().zip(codes) {
        chunk.error[usize::from(*position)] -= table[usize::from(*code)];
    }
    report.count(chunk.values, |i| table[usize::from(codes[i])]);
}

/// The one record of a chunk that decodes to zero.
fn write_zero_record(format: Format, valid: Valid, record: &mut [u8]) {
    let n_kept = format.kept_of(valid);
    let mut positions = [0; KEEP_MAX];
    for (slot, position) in positions[..n_kept].iter_mut().zip(valid.positions()) {
        *slot = position as u16;
    }
    record::write(format, &positions[..n_kept], &[0; KEEP_MAX][..n_kept], 0, record);
}

impl EncodeReport {
    fn count(&mut self, values: &[f32], sent: impl Fn(usize) -> f32) {
        self.kept += values.len() as u64;
        for (i, a) in values.iter().enumerate() {
            let (a, lost) = (f64::from(*a), f64::from(*a) - f64::from(sent(i)));
            self.energy_kept += a * a;
            self.energy_lost += lost * lost;
        }
    }
}
