//! Convoke's protocol: pure functions of (state, event, now, seed).

pub mod terms;

pub mod run_spec;

pub mod round;

pub mod hotkey;

pub mod pool;

pub mod sparseloco;

pub mod payload;

pub mod digest;

pub mod assignment;

pub mod gauntlet;

pub mod manifest;

pub mod chain;

pub mod model;

pub mod genesis;

#[cfg(feature = "model")]
pub mod reference;
