//! Taking a contribution back: e becomes a again, to the bit, when a payload was not applied.
//!
//! e is fl(a − Δ̂), so fl(e + Δ̂) is a wherever the subtraction was exact, which it is when a and Δ̂ are within a factor of two
//! (Sterbenz). What a chunk keeps is nearly equal in magnitude, so almost every kept value is; the others are listed, so
//! that an undo is next to nothing in memory and on disk.

use serde::{Deserialize, Serialize};

use super::body::BodyRef;
use super::layout::{CHUNK_LEN, Layout};

/// What addition does not give back: everything that [`encode`](super::encode) must remember to undo itself.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Undo {
    /// (position in the flat form, a), ascending.
    exceptions: Vec<(u64, f32)>,
}

impl Undo {
    /// In any order.
    pub(super) fn new(mut exceptions: Vec<(u64, f32)>) -> Self {
        exceptions.sort_unstable_by_key(|(position, _)| *position);
        Self { exceptions }
    }

    /// How many values are listed.
    #[must_use]
    pub fn n_exceptions(&self) -> usize {
        self.exceptions.len()
    }

    /// Whether it can belong to a contribution of this layout; an undo from a file is asked first.
    #[must_use]
    pub fn fits(&self, layout: &Layout) -> bool {
        self.exceptions.iter().all(|(position, _)| *position < layout.flat_len() as u64)
    }

    /// Sets e = a exactly, given the contribution and the e that [`encode`](super::encode) made together with this.
    ///
    /// # Panics
    /// If contribution, `error` and this are not of one layout.
    pub fn restore(&self, layout: &Layout, body: BodyRef<'_>, error: &mut [f32]) {
        assert_eq!(error.len(), layout.flat_len(), "the flat form's length");
        let format = body.format();
        for tensor_idx in 0..layout.tensors().len() {
            let levels = body.levels(tensor_idx);
            for chunk_idx in layout.chunks_of(tensor_idx) {
                let record = body.record(chunk_idx);
                // Nothing was subtracted in a chunk of zeros; adding zero would turn -0 into 0.
                if record.scale() == 0 {
                    continue;
                }
                let (sent, error) = (levels.values(record.scale()), &mut error[chunk_idx * CHUNK_LEN..]);
                record.for_each(format.kept_of(layout.valid(tensor_idx, chunk_idx)), |position, code| {
                    error[position] += sent[usize::from(code)];
                });
            }
        }
        for (position, a) in &self.exceptions {
            error[*position as usize] = *a;
        }
    }
}
