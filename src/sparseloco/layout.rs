//! Which parameter lies in which chunk: the order in which θ, e and Δ are stored, hashed, compressed and merged.
//!
//! A 2-D tensor is cut into 64×64 blocks (index in a block = row · 64 + column), one row of blocks after another; a 1-D
//! tensor into runs of 4096. Edges that do not divide are padded: the padding is stored, is always zero, and can never be
//! selected. So every chunk is 4096 values, and the flat form of all tensors is `n_chunks · 4096` long.
//!
//! The chunks are the paper's (arXiv:2508.15706, §2.1). The reference run's public code instead shrinks a chunk's edge to a
//! divisor of the tensor's, and cuts 1-D tensors into 64s, of which it sends all; padding keeps one shape for every chunk
//! and one density for every tensor.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::terms::LayoutHash;

/// The edge of a 2-D tensor's block; also the rows, and the columns, of any chunk.
pub const BLOCK_EDGE: usize = 64;

/// Values in a chunk, padding included.
pub const CHUNK_LEN: usize = BLOCK_EDGE * BLOCK_EDGE;

/// A layout has at most this many chunks (10^12 parameters): no size computed from it overflows 64 bits.
pub const CHUNKS_MAX: usize = 1 << 28;

const _: () = assert!(usize::BITS >= 64, "sizes of a large layout need 64 bits");

/// A tensor's name and dimensions; one or two of them, outermost first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorShape {
    /// The parameter's name in the model.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
}

/// Why a list of tensors has no layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// There is nothing to lay out.
    #[error("a layout needs at least one tensor")]
    NoTensors,
    /// A tensor that is neither 1-D nor 2-D.
    #[error("tensor `{name}` has {rank} dimensions: it must have one or two")]
    Rank {
        /// The tensor.
        name: String,
        /// Its number of dimensions.
        rank: usize,
    },
    /// A tensor without elements.
    #[error("tensor `{name}` has a dimension of zero")]
    ZeroDimension {
        /// The tensor.
        name: String,
    },
    /// Two tensors of one name.
    #[error("there are two tensors named `{name}`")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// More chunks than sizes are computed for.
    #[error("with tensor `{name}` the layout exceeds {CHUNKS_MAX} chunks")]
    TooLarge {
        /// The tensor with which the bound is passed.
        name: String,
    },
}

/// Which positions of a chunk hold parameters: `rows` rows of `cols` values from the chunk's first corner, then `tail`
/// values of one more row. A block of a 2-D tensor has no tail; a run of a 1-D tensor has whole rows, then its tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Valid {
    rows: usize,
    cols: usize,
    tail: usize,
}

impl Valid {
    /// A chunk without padding.
    pub const FULL: Self = Self { rows: BLOCK_EDGE, cols: BLOCK_EDGE, tail: 0 };

    /// How many positions hold parameters; at least one.
    #[must_use]
    pub fn count(self) -> usize {
        self.rows * self.cols + self.tail
    }

    /// How many positions of `row` hold parameters: the first so many.
    #[must_use]
    pub fn width(self, row: usize) -> usize {
        match row.cmp(&self.rows) {
            std::cmp::Ordering::Less => self.cols,
            std::cmp::Ordering::Equal => self.tail,
            std::cmp::Ordering::Greater => 0,
        }
    }

    /// Whether `index` holds a parameter.
    #[must_use]
    pub fn contains(self, index: usize) -> bool {
        index % BLOCK_EDGE < self.width(index / BLOCK_EDGE)
    }

    /// The positions that hold parameters, as runs, ascending.
    pub fn runs(self) -> impl Iterator<Item = Range<usize>> {
        (0..BLOCK_EDGE)
            .map(move |row| row * BLOCK_EDGE..row * BLOCK_EDGE + self.width(row))
            .filter(|run| !run.is_empty())
    }

    /// The positions that hold parameters, ascending.
    pub fn positions(self) -> impl Iterator<Item = usize> {
        self.runs().flatten()
    }
}

/// The chunks of a list of tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    tensors: Vec<TensorShape>,
    /// `starts[i]..starts[i + 1]` are the chunks of tensor i.
    starts: Vec<usize>,
    n_params: usize,
    hash: LayoutHash,
}

impl Layout {
    /// Lays `tensors` out in their order.
    ///
    /// # Errors
    /// The first tensor that cannot be laid out: the model's geometry is at fault.
    pub fn new(tensors: Vec<TensorShape>) -> Result<Self, LayoutError> {
        if tensors.is_empty() {
            return Err(LayoutError::NoTensors);
        }
        let mut names = BTreeSet::new();
        let mut starts = vec![0];
        let (mut n_chunks, mut n_params) = (0_usize, 0);
        for tensor in &tensors {
            let name = || tensor.name.clone();
            if !names.insert(tensor.name.as_str()) {
                return Err(LayoutError::DuplicateName { name: name() });
            }
            let (chunks, params) = measure(tensor)?;
            n_chunks += chunks;
            n_params += params;
            if n_chunks > CHUNKS_MAX {
                return Err(LayoutError::TooLarge { name: name() });
            }
            starts.push(n_chunks);
        }
        let hash = hash(&tensors);
        Ok(Self { tensors, starts, n_params, hash })
    }

    /// The tensors, in order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorShape] {
        &self.tensors
    }

    /// Parameters, padding excluded.
    #[must_use]
    pub fn n_params(&self) -> usize {
        self.n_params
    }

    /// Chunks of all tensors.
    #[must_use]
    pub fn n_chunks(&self) -> usize {
        self.starts[self.tensors.len()]
    }

    /// Length of θ, e and Δ: padding included.
    #[must_use]
    pub fn flat_len(&self) -> usize {
        self.n_chunks() * CHUNK_LEN
    }

    /// The chunks of a tensor.
    #[must_use]
    pub fn chunks_of(&self, tensor_idx: usize) -> Range<usize> {
        self.starts[tensor_idx]..self.starts[tensor_idx + 1]
    }

    /// Where a tensor lies in θ, e and Δ.
    #[must_use]
    pub fn flat_range_of(&self, tensor_idx: usize) -> Range<usize> {
        let chunks = self.chunks_of(tensor_idx);
        chunks.start * CHUNK_LEN..chunks.end * CHUNK_LEN
    }

    /// The tensor a chunk belongs to.
    #[must_use]
    pub fn tensor_of(&self, chunk_idx: usize) -> usize {
        assert!(chunk_idx < self.n_chunks(), "chunk {chunk_idx} of {}", self.n_chunks());
        self.starts.partition_point(|start| *start <= chunk_idx) - 1
    }

    /// The positions of a chunk that hold parameters; `chunk_idx` is one of `chunks_of(tensor_idx)`.
    #[must_use]
    pub fn valid(&self, tensor_idx: usize, chunk_idx: usize) -> Valid {
        let at = chunk_idx - self.starts[tensor_idx];
        match self.tensors[tensor_idx].shape[..] {
            [rows, cols] => {
                let across = cols.div_ceil(BLOCK_EDGE);
                Valid {
                    rows: (rows - at / across * BLOCK_EDGE).min(BLOCK_EDGE),
                    cols: (cols - at % across * BLOCK_EDGE).min(BLOCK_EDGE),
                    tail: 0,
                }
            }
            [len] => {
                let left = (len - at * CHUNK_LEN).min(CHUNK_LEN);
                Valid { rows: left / BLOCK_EDGE, cols: BLOCK_EDGE, tail: left % BLOCK_EDGE }
            }
            _ => unreachable!("`new` accepts one or two dimensions"),
        }
    }

    /// A tensor's chunks, ascending, each with its positions that hold parameters.
    pub(super) fn chunks_with_valid(&self, tensor_idx: usize) -> impl Iterator<Item = (usize, Valid)> {
        let chunks = self.chunks_of(tensor_idx);
        // Most tensors have no padding, and a division for every chunk would be felt where a chunk costs so little.
        let is_whole = self.tensors[tensor_idx].shape.iter().product::<usize>() == chunks.len() * CHUNK_LEN;
        chunks.map(move |chunk_idx| (chunk_idx, if is_whole { Valid::FULL } else { self.valid(tensor_idx, chunk_idx) }))
    }

    /// Copies a tensor from row-major order into its place in `flat`, and zeroes its padding.
    ///
    /// # Panics
    /// If a slice is not of the layout's length.
    pub fn gather(&self, tensor_idx: usize, row_major: &[f32], flat: &mut [f32]) {
        self.check_lens(tensor_idx, row_major.len(), flat.len());
        flat[self.flat_range_of(tensor_idx)].fill(0.0);
        self.for_each_run(tensor_idx, |at, run| flat[run.clone()].copy_from_slice(&row_major[at..at + run.len()]));
    }

    /// Copies a tensor from its place in `flat` into row-major order.
    ///
    /// # Panics
    /// If a slice is not of the layout's length.
    pub fn scatter(&self, tensor_idx: usize, flat: &[f32], row_major: &mut [f32]) {
        self.check_lens(tensor_idx, row_major.len(), flat.len());
        self.for_each_run(tensor_idx, |at, run| row_major[at..at + run.len()].copy_from_slice(&flat[run]));
    }

    /// What names this layout: tensor names, dimensions and order.
    #[must_use]
    pub fn hash(&self) -> LayoutHash {
        self.hash
    }

    fn check_lens(&self, tensor_idx: usize, row_major: usize, flat: usize) {
        let name = &self.tensors[tensor_idx].name;
        assert_eq!(row_major, self.tensors[tensor_idx].shape.iter().product::<usize>(), "elements of `{name}`");
        assert_eq!(flat, self.flat_len(), "the flat form's length");
    }

    /// Calls `f(offset in row-major order, range in the flat form)` for every run of neighbours in both.
    fn for_each_run(&self, tensor_idx: usize, mut f: impl FnMut(usize, Range<usize>)) {
        let shape = &self.tensors[tensor_idx].shape;
        for chunk_idx in self.chunks_of(tensor_idx) {
            let at = chunk_idx - self.starts[tensor_idx];
            let first = chunk_idx * CHUNK_LEN;
            for run in self.valid(tensor_idx, chunk_idx).runs() {
                let row_major_at = match shape[..] {
                    [_, cols] => {
                        let across = cols.div_ceil(BLOCK_EDGE);
                        let row = at / across * BLOCK_EDGE + run.start / BLOCK_EDGE;
                        row * cols + at % across * BLOCK_EDGE
                    }
                    _ => at * CHUNK_LEN + run.start,
                };
                f(row_major_at, first + run.start..first + run.end);
            }
        }
    }
}

/// Chunks and parameters of one tensor.
fn measure(tensor: &TensorShape) -> Result<(usize, usize), LayoutError> {
    let name = || tensor.name.clone();
    if tensor.shape.contains(&0) {
        return Err(LayoutError::ZeroDimension { name: name() });
    }
    let (chunks, params) = match tensor.shape[..] {
        [len] => (Some(len.div_ceil(CHUNK_LEN)), Some(len)),
        [rows, cols] => (rows.div_ceil(BLOCK_EDGE).checked_mul(cols.div_ceil(BLOCK_EDGE)), rows.checked_mul(cols)),
        _ => return Err(LayoutError::Rank { name: name(), rank: tensor.shape.len() }),
    };
    match (chunks, params) {
        (Some(chunks), Some(params)) if chunks <= CHUNKS_MAX => Ok((chunks, params)),
        _ => Err(LayoutError::TooLarge { name: name() }),
    }
}

/// Every field is preceded by its length, so that no two lists of tensors share an encoding.
fn hash(tensors: &[TensorShape]) -> LayoutHash {
    let mut hasher = blake3::Hasher::new_derive_key("convoke 2026-11 tensor layout v1");
    let mut number = |n: usize, then: &[u8]| {
        hasher.update(&(n as u64).to_le_bytes()).update(then);
    };
    number(tensors.len(), &[]);
    for tensor in tensors {
        number(tensor.name.len(), tensor.name.as_bytes());
        number(tensor.shape.len(), &[]);
        for dimension in &tensor.shape {
            number(*dimension, &[]);
        }
    }
    LayoutHash(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout(shapes: &[&[usize]]) -> Layout {
        let name = |(i, shape): (usize, &&[usize])| TensorShape { name: format!("t{i}"), shape: shape.to_vec() };
        Layout::new(shapes.iter().enumerate().map(name).collect()).unwrap()
    }

    fn refusal(shapes: &[(&str, &[usize])]) -> LayoutError {
        let tensors = shapes.iter().map(|(name, shape)| TensorShape { name: (*name).into(), shape: shape.to_vec() });
        Layout::new(tensors.collect()).unwrap_err()
    }

    #[test]
    fn edges_that_do_not_divide_are_padded_chunks() {
        let layout = layout(&[&[70, 65], &[4200], &[64, 64]]);
        assert_eq!((layout.n_chunks(), layout.n_params()), (4 + 2 + 1, 70 * 65 + 4200 + 4096));
        assert_eq!((layout.chunks_of(1), layout.tensor_of(3), layout.tensor_of(4)), (4..6, 0, 1));
        let counts: Vec<_> = (0..7).map(|chunk| layout.valid(layout.tensor_of(chunk), chunk).count()).collect();
        assert_eq!(counts, [4096, 64, 6 * 64, 6, 4096, 104, 4096]);
        assert_eq!(layout.valid(0, 3).positions().collect::<Vec<_>>(), [0, 64, 128, 192, 256, 320]);
        assert_eq!(layout.valid(1, 5).positions().collect::<Vec<_>>(), (0..104).collect::<Vec<_>>());
        assert_eq!(layout.valid(2, 6), Valid::FULL);
    }

    #[test]
    fn a_block_is_row_major_and_blocks_follow_row_of_blocks_by_row_of_blocks() {
        let layout = layout(&[&[2, 130]]);
        let row_major: Vec<f32> = (1..=260_u16).map(f32::from).collect();
        let mut flat = vec![9.0; layout.flat_len()];
        layout.gather(0, &row_major, &mut flat);
        assert_eq!((flat[0], flat[63], flat[64], flat[127], flat[128]), (1.0, 64.0, 131.0, 194.0, 0.0));
        assert_eq!((flat[4096], flat[8192], flat[8193], flat[8194], flat[8192 + 64]), (65.0, 129.0, 130.0, 0.0, 259.0));
    }

    #[test]
    fn what_cannot_be_laid_out_is_refused_with_its_reason() {
        let name = || "a".to_owned();
        assert_eq!(Layout::new(vec![]), Err(LayoutError::NoTensors));
        assert_eq!(refusal(&[("a", &[2, 3, 4])]), LayoutError::Rank { name: name(), rank: 3 });
        assert_eq!(refusal(&[("a", &[])]), LayoutError::Rank { name: name(), rank: 0 });
        assert_eq!(refusal(&[("a", &[2, 0])]), LayoutError::ZeroDimension { name: name() });
        assert_eq!(refusal(&[("a", &[2]), ("a", &[2])]), LayoutError::DuplicateName { name: name() });
        for shape in [&[usize::MAX, usize::MAX][..], &[usize::MAX], &[1 << 21, 1 << 20]] {
            assert_eq!(refusal(&[("a", shape)]), LayoutError::TooLarge { name: name() });
        }
        let half: &[usize] = &[1 << 20, 1 << 19];
        assert_eq!(refusal(&[("b", half), ("c", half), ("a", &[1])]), LayoutError::TooLarge { name: name() });
    }

    #[test]
    fn the_hash_tells_names_shapes_and_order_apart() {
        let of = |tensors: &[(&str, &[usize])]| {
            let shape = |(name, shape): &(&str, &[usize])| TensorShape { name: (*name).into(), shape: shape.to_vec() };
            Layout::new(tensors.iter().map(shape).collect()).unwrap().hash()
        };
        let all = [
            of(&[("a", &[2]), ("b", &[3])]),
            of(&[("b", &[3]), ("a", &[2])]),
            of(&[("a", &[2]), ("b", &[4])]),
            of(&[("a", &[2]), ("c", &[3])]),
            of(&[("a", &[2, 3])]),
            of(&[("a", &[3, 2])]),
        ];
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }

    proptest! {
        #[test]
        fn scatter_undoes_gather_and_padding_is_zero(
            shapes in prop::collection::vec(prop::collection::vec(1_usize..150, 1..=2), 1..4),
        ) {
            let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
            let layout = layout(&shapes);
            let mut flat = vec![f32::NAN; layout.flat_len()];
            for (tensor_idx, tensor) in layout.tensors().iter().enumerate() {
                let row_major: Vec<f32> = (1..=tensor.shape.iter().product::<usize>()).map(|i| i as f32).collect();
                layout.gather(tensor_idx, &row_major, &mut flat);
                let mut back = vec![0.0; row_major.len()];
                layout.scatter(tensor_idx, &flat, &mut back);
                prop_assert_eq!(back, row_major);
            }
            for (i, value) in flat.iter().enumerate() {
                let chunk = i / CHUNK_LEN;
                let holds = layout.valid(layout.tensor_of(chunk), chunk).contains(i % CHUNK_LEN);
                prop_assert_eq!(holds, *value != 0.0, "at {}: {}", i, value);
            }
            prop_assert_eq!(flat.iter().filter(|value| **value != 0.0).count(), layout.n_params());
        }
    }
}
