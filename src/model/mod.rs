//! The model that a run trains: LLaMA on Burn, its inner steps, and what goes in and out of it.
//!
//! Reading order: `geometry` (which tensors), `initial` (their first values), `llama` and `block` (forward and backward),
//! `optimiser`, `schedule`, `inner` (one round's training), `generate` and `safetensors` (what a trained model is for).

pub mod geometry;
pub mod initial;
pub mod schedule;

#[cfg(feature = "model")]
mod block;
#[cfg(feature = "model")]
pub mod generate;
#[cfg(feature = "model")]
mod golden;
#[cfg(feature = "model")]
pub mod inner;
#[cfg(feature = "model")]
pub mod llama;
#[cfg(feature = "model")]
pub mod optimiser;
#[cfg(feature = "model")]
mod passes;
#[cfg(feature = "model")]
mod rope;
#[cfg(feature = "model")]
pub mod safetensors;
