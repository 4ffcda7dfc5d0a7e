//! Convoke's protocol: pure functions of (state, event, now, seed).
//!
//! ```text
//!   chain ─ blocks ─► round ── what is to be done, and when ──► the node (`convoke-node`) does it
//!                       │
//!  θ ─► model ─► Δ ─► sparseloco ─► payload ─► transport coding ─► peers ─► payload ─► gauntlet ─► manifest
//!  ▲   (on samples     e, top-k,    header,     gap bytes, zstd            parser     checks,       who is
//!  │    of assignment)  codes       signature                              bounds      ratings      applied
//!  └──────────────────────────── sparseloco: outer step, digest ◄──────────────────────────────────────┘
//! ```
//! No clock, file, network or thread of its own, and no unseeded randomness: whoever calls brings them ([`pool`] for threads). Modules stand in
//! reading order; [`reference`](mod@reference) is a whole round in one function.
//!
//! What always holds, by the names under which code and tests speak of it: **R-1** all nodes that completed a round have one digest.
//! **R-2** a round ends in exactly one of outer step and null round. **R-4** a node off the agreed digest contributes nothing. **C-1** what
//! error feedback keeps is exactly fl(a − Δ̂). **C-2** one content has one encoding. **C-3** no parser allocates beyond what the run spec
//! allows, none panics, and every refusal has its reason. **G-1** a weight rests on evidence that others can recompute.

pub mod terms;

pub mod run_spec;

pub mod round;

pub mod hotkey;

pub mod address;

pub mod pool;

pub mod sparseloco;

pub mod payload;

pub mod digest;

pub mod assignment;

pub mod gauntlet;

pub mod manifest;

pub mod catch_up;

pub mod chain;

pub mod model;

pub mod genesis;

#[doc(hidden)]
pub mod fuzzing;

#[cfg(feature = "model")]
pub mod reference;
