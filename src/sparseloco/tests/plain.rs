//! The tables of `record.rs` and `levels.rs` once more, as plainly as they can be written: content to bytes, one bit at a time.
//!
//! It shares nothing with the code it judges but [`Valid`] and the table of scales, so what agrees with it says what is documented.

use super::*;

/// What a contribution says, without its bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Content {
    /// For each tensor.
    pub levels: Vec<Levels>,
    /// For each chunk.
    pub chunks: Vec<Chunk>,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub positions: Vec<usize>,
    pub codes: Vec<u8>,
    pub scale: u8,
}

/// Fills bytes from the lowest bit; what is left of the last one is zero.
#[derive(Default)]
struct BitWriter {
    bytes: Vec<u8>,
    n_bits: usize,
}

impl BitWriter {
    fn put(&mut self, value: usize, n_bits: usize) {
        for i in 0..n_bits {
            if self.n_bits.is_multiple_of(8) {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().unwrap() |= ((value >> i & 1) as u8) << (self.n_bits % 8);
            self.n_bits += 1;
        }
    }

    /// A part of a record: as long as `n_bits` need.
    fn end_part(&mut self, out: &mut Vec<u8>, n_bits: usize) {
        self.bytes.resize(n_bits.div_ceil(8), 0);
        out.append(&mut self.bytes);
        self.n_bits = 0;
    }
}

impl Content {
    /// Reads everything that a checked contribution says.
    pub fn of(layout: &Layout, body: BodyRef<'_>) -> Self {
        let levels = (0..layout.tensors().len()).map(|tensor_idx| body.levels(tensor_idx)).collect();
        let chunk = |chunk_idx: usize| {
            let (record, valid) = (body.record(chunk_idx), layout.valid(layout.tensor_of(chunk_idx), chunk_idx));
            let mut chunk = Chunk { positions: Vec::new(), codes: Vec::new(), scale: record.scale() };
            record.for_each(body.format().kept_of(valid), |position, code| {
                chunk.positions.push(position);
                chunk.codes.push(code);
            });
            chunk
        };
        Self { levels, chunks: (0..layout.n_chunks()).map(chunk).collect() }
    }

    /// That no other content has the same meaning: with that, and one way to write it, one content has one encoding.
    pub fn assert_canonical(&self, layout: &Layout, keep: usize) {
        for levels in &self.levels {
            match levels {
                Levels::OneBit => {}
                Levels::TwoBit { low, high } => assert!(0 < *low && low < high && *high <= LEVEL_MAX, "{levels:?}"),
                Levels::SigmaBins { shift, lookup } => {
                    let fine = |n: &f32| n.abs() <= SIGMA_VALUE_MAX && n.to_bits() != (-0.0_f32).to_bits();
                    assert!(fine(shift) && lookup.iter().all(fine), "{levels:?}");
                }
            }
        }
        for (chunk_idx, chunk) in self.chunks.iter().enumerate() {
            let valid = layout.valid(layout.tensor_of(chunk_idx), chunk_idx);
            let positions = &chunk.positions;
            assert_eq!(positions.len(), keep.min(valid.count()), "chunk {chunk_idx}");
            assert!(positions.is_sorted_by(|a, b| a < b), "chunk {chunk_idx}: {positions:?}");
            assert!(positions.iter().all(|at| valid.contains(*at)), "chunk {chunk_idx}: {positions:?}");
            if chunk.scale == 0 {
                assert!(
                    valid.positions().zip(positions).all(|(first, at)| first == *at),
                    "chunk {chunk_idx} of scale 0"
                );
                assert!(chunk.codes.iter().all(|code| *code == 0), "chunk {chunk_idx} of scale 0");
            }
        }
    }

    /// The bytes of levels and of records.
    pub fn bytes(&self, quantiser: Quantiser, keep: usize) -> (Vec<u8>, Vec<u8>) {
        let (mut levels, mut records) = (Vec::new(), Vec::new());
        for of_tensor in &self.levels {
            match of_tensor {
                Levels::OneBit => {}
                Levels::TwoBit { low, high } => {
                    levels.extend_from_slice(&low.to_le_bytes());
                    levels.extend_from_slice(&high.to_le_bytes());
                }
                Levels::SigmaBins { shift, lookup } => {
                    levels.extend_from_slice(&shift.to_le_bytes());
                    lookup.iter().for_each(|centre| levels.extend_from_slice(&centre.to_le_bytes()));
                }
            }
        }
        for chunk in &self.chunks {
            chunk.write(quantiser, keep, &mut records);
        }
        (levels, records)
    }

    /// Δ̂ in full, chunk-major.
    pub fn values(&self, layout: &Layout) -> Vec<f32> {
        let mut dense = vec![0.0; layout.flat_len()];
        for (chunk_idx, chunk) in self.chunks.iter().enumerate() {
            let levels = self.levels[layout.tensor_of(chunk_idx)];
            for (position, code) in chunk.positions.iter().zip(&chunk.codes) {
                dense[chunk_idx * CHUNK_LEN + position] = value(levels, chunk.scale, *code);
            }
        }
        dense
    }
}

impl Chunk {
    fn write(&self, quantiser: Quantiser, keep: usize, out: &mut Vec<u8>) {
        let mut bits = BitWriter::default();
        let mut positions = self.positions.iter().peekable();
        for row in 0..BLOCK_EDGE {
            while positions.next_if(|position| **position / BLOCK_EDGE == row).is_some() {
                bits.put(1, 1);
            }
            bits.put(0, 1);
        }
        assert_eq!(positions.next(), None, "positions ascend and are within the chunk");
        bits.end_part(out, keep + BLOCK_EDGE);
        self.positions.iter().for_each(|position| bits.put(position % BLOCK_EDGE, 6));
        bits.end_part(out, 6 * keep);
        match quantiser {
            Quantiser::SigmaBins => {
                self.codes.iter().for_each(|code| bits.put(usize::from(*code), 2));
                bits.end_part(out, 2 * keep);
            }
            Quantiser::OneBit | Quantiser::TwoBit => {
                let planes = if quantiser == Quantiser::TwoBit { 2 } else { 1 };
                for plane in 0..planes {
                    self.codes.iter().for_each(|code| bits.put(usize::from(code >> plane & 1), 1));
                    bits.end_part(out, keep);
                }
                out.push(self.scale);
            }
        }
    }
}

/// What a code decodes to.
pub fn value(levels: Levels, scale: u8, code: u8) -> f32 {
    let scale = SCALES[usize::from(scale)];
    let sign = if code & 1 == 1 { -1.0 } else { 1.0 };
    match levels {
        Levels::OneBit => sign * scale,
        Levels::TwoBit { low, high } => sign * (scale * (f32::from(if code & 2 == 2 { high } else { low }) / 4096.0)),
        Levels::SigmaBins { shift, lookup } => lookup[usize::from(code)] + shift,
    }
}

/// A contribution of these bytes, which need not be well-formed.
pub fn body_of(format: Format, levels: Vec<u8>, records: Vec<u8>) -> Body {
    Body { format, levels, records }
}
