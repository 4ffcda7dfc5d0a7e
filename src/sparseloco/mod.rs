//! SparseLoCo (arXiv:2508.15706): a miner's pseudo-gradient becomes a sparse, quantised contribution, and the
//! contributions of a round become one outer step.
//!
//! ```text
//! miner      Δ ──► a = fl(β·e + Δ) ──► top-k per chunk ──► quantise ──► Body ──► (payload)
//!                       └────────────── e ← fl(a − Δ̂) ◄────────┘
//! everyone   Body × R ──► median limit per tensor ──► fixed-point sum per chunk ──► θ ← θ − α·aggregate
//! ```
//!
//! Reading order: [`Layout`] (what a chunk is), `scale` and `levels` (what a code decodes to), `record` (a chunk's bytes),
//! [`Body`] (a contribution), `select` (top-k), [`encode`], [`outer_step`].
//!
//! Three rules hold throughout. θ, e and Δ are **chunk-major**, so that every pass streams memory once. Work is a
//! **function of one chunk** (after a small pass per tensor), so that a caller may split it over threads, and a chunk's
//! function may be rewritten for SIMD, without one bit changing. Whatever enters θ uses only IEEE additions,
//! multiplications, divisions, square roots and a constant table: **no platform function**, no fused multiply-add.
//!
//! Where we differ from the reference run's public code: padded chunks instead of shrunken ones, 4096-long chunks for 1-D
//! tensors as in the paper, a scale per chunk, a canonical byte form, sums in integers. Each file says why.

mod body;
mod chunk;
mod encode;
mod layout;
mod levels;
mod outer_step;
mod read;
mod record;
mod scale;
mod select;
mod simd;
mod undo;
mod write;

pub use body::{Body, BodyRef, MalformedBody, apply_one, decode, norm, norms, overlaps};
pub use encode::{EncodeError, EncodeReport, Encoded, encode, encode_on};
pub use layout::{BLOCK_EDGE, CHUNK_LEN, CHUNKS_MAX, Layout, LayoutError, TensorShape, Valid};
pub use levels::{LEVEL_MAX, LEVEL_ONE, Levels, MalformedLevels, SIGMA_VALUE_MAX};
pub use outer_step::{CONTRIBUTIONS_MAX, ContributionReport, OuterStep, OuterStepReport, outer_step};
pub use record::{Format, KEEP_MAX, MalformedRecord, Part, Record};
pub use scale::SCALES;
pub use simd::Simd;
pub(crate) use simd::{Kernel, Lanes};
pub use undo::Undo;

#[cfg(test)]
pub(crate) mod tests;
