//! The node: who runs the protocol of `convoke`, and when.
//!
//! ```text
//!                       supervisor ── keeps alive, stops in order ──┐
//!                           │                                       │
//!   chain ── heads ──► round_clock ◄── answers ─────────────────────┤
//!                           │ asks, one at a time                   │
//!        ┌──────────┬───────┴──────┬────────────┬─────────────┐     │
//!   gpu_worker  compressor     peer_sync     gauntlet    chain_writer
//!    θ → Δ      Δ → payload   payloads ⇄    checks,       seals, votes,
//!    losses     manifest → θ    peers       ratings       weights
//!        └──────────┴──────────────┴────────────┴─────────────┘
//!              all use `convoke` (src/); none knows another
//! ```
//! Reading order: [`leaf`] (the six and how they are asked), [`round_clock`], the five leaves, [`supervisor`], [`node`].

pub mod leaf;

pub mod round_clock;

pub mod gpu_worker;

pub mod compressor;

pub mod peer_sync;

pub mod gauntlet;

pub mod chain_writer;

pub mod supervisor;

pub mod workbench;

pub mod opening;

pub mod pool;

pub mod pages;

pub mod faults;

pub mod disk;

pub mod store;

pub mod chain;

pub mod data;

pub mod config;

pub mod identity;

pub mod wallet;

pub mod journal;

pub mod events;

pub mod status;

pub mod metrics;

pub mod http;

pub mod terminal;

pub mod membership;

pub mod node;

pub mod cli;

pub mod run;

pub mod serve_chain;

pub mod fake;
