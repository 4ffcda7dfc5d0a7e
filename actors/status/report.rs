//! The types of `/status`, `/ready` and `/health`: what a node says about itself, as JSON.
//!
//! Numbers that are not known are null. A loss that is not a number is null too: JSON has no NaN.

use std::collections::BTreeMap;

use convoke::terms::{Block, Digest, Hotkey, PayloadHash, Round, RunId, Uid, Weight};
use serde::{Deserialize, Serialize};

/// The answer of `/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// The program's version.
    pub version: String,
    /// Miner, validator, or both.
    pub role: String,
    /// The run.
    pub run_id: RunId,
    /// Who the node is on chain.
    pub hotkey: Hotkey,
    /// Its slot on the subnet, while it has one.
    pub uid: Option<Uid>,
    /// The best block seen.
    pub block: Option<Block>,
    /// The finalised block seen.
    pub finalized_block: Option<Block>,
    /// The round the node is in.
    pub round: Option<Round>,
    /// What it does in it.
    pub phase: String,
    /// Rounds completed by an outer step since the node started.
    pub rounds_completed: u64,
    /// Seconds since the node started.
    pub uptime_seconds: f64,
    /// The last rounds, oldest first.
    pub rounds: Vec<RoundStatus>,
    /// What is known about each peer.
    pub peers: BTreeMap<Uid, PeerStatus>,
    /// The supervisor's children, by name.
    pub actors: BTreeMap<String, ActorStatus>,
}

/// How a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It has not ended.
    #[default]
    Running,
    /// θ moved on.
    OuterStep,
    /// θ stayed.
    Null,
}

/// One round, as this node saw it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RoundStatus {
    /// Which.
    pub round: Round,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it was a null round.
    pub null_reason: Option<String>,
    /// θ's digest after the outer step.
    pub digest: Option<Digest>,
    /// Inner steps done.
    pub inner_steps: u32,
    /// Training loss of the last inner step, in nats a token.
    pub train_loss: Option<f64>,
    /// Loss on the held-out split after the outer step, in nats a token.
    pub heldout_loss: Option<f64>,
    /// Whose payloads were applied, in the manifest's order.
    pub contributors: Vec<Uid>,
    /// Whose payloads were not, and why.
    pub rejected: Vec<Rejected>,
    /// The node's own payload.
    pub payload: Option<PayloadHash>,
    /// Its size.
    pub payload_bytes: Option<u64>,
    /// How many times smaller than θ in fp32.
    pub payload_ratio: Option<f64>,
    /// Seconds spent on inner steps, compression, evaluation, outer step.
    pub computing_seconds: f64,
    /// Seconds spent on nothing but the network and the chain.
    pub communicating_seconds: f64,
}

/// A payload that did not pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Its owner's slot, if he has one.
    pub uid: Option<Uid>,
    /// Its owner.
    pub hotkey: Hotkey,
    /// Which check it failed.
    pub reason: String,
}

/// One peer, as this validator sees it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Who holds the slot.
    pub hotkey: Option<Hotkey>,
    /// The last score.
    pub score: Option<f64>,
    /// The rating.
    pub rating: Option<RatingStatus>,
    /// The weight as last set on chain.
    pub weight: Option<Weight>,
}

/// An OpenSkill rating.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RatingStatus {
    /// Believed skill.
    pub mu: f64,
    /// Its uncertainty.
    pub sigma: f64,
    /// μ − 3σ, by which peers are ranked.
    pub ordinal: f64,
}

/// One of the supervisor's children.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ActorStatus {
    /// Whether it runs.
    pub healthy: bool,
    /// How often it was replaced.
    pub restarts: u32,
    /// Why it was replaced last.
    pub last_restart: Option<String>,
}

/// The answer of `/ready`: whether the node takes part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether it does.
    pub ready: bool,
    /// What is missing, a sentence each.
    pub missing: Vec<String>,
}

/// The answer of `/health`: whether the process is worth keeping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether it is.
    pub healthy: bool,
    /// Why not.
    pub reason: Option<String>,
}
