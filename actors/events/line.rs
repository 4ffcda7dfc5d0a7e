//! The types of `events.jsonl`: what happened to a node, one object a line. Tests and tools read these, never log text.
//!
//! Every line has the same head (when, who, at which block, about which round) and then the event's own fields, with
//! the event's name under `"event"`. What an event is about stands in the head's `round` only.

use convoke::terms::{
    Block, BlockHash, Digest, EndpointId, Hotkey, ManifestHash, PayloadHash, Round, RunId, Uid, Weight,
};
use serde::{Deserialize, Deserializer, Serialize};

/// One line of `events.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Wall-clock time, in milliseconds since 1970.
    pub at_ms: u64,
    /// The node's name.
    pub node: String,
    /// The best block the node had seen, if any.
    pub block: Option<Block>,
    /// The round the event is about, if it is about one.
    pub round: Option<Round>,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "snake_case")]
pub enum Event {
    /// The process is up and holds its state.
    NodeStarted {
        /// The program's version.
        version: String,
        /// The run.
        run_id: RunId,
        /// Miner, validator, or both.
        role: String,
        /// Who the node is on chain.
        hotkey: Hotkey,
        /// The round it goes on with, when it found state on disk.
        resumed_at: Option<Round>,
    },
    /// A round began.
    RoundStarted,
    /// The node entered a phase of the round.
    PhaseStarted {
        /// The phase.
        phase: String,
    },
    /// The inner steps of the round are over.
    InnerStepsDone {
        /// How many were done.
        steps: u32,
        /// Tokens they trained on.
        tokens: u64,
        /// Training loss of the last one, in nats a token.
        #[serde(deserialize_with = "null_is_nan")]
        loss: f64,
        /// What they took.
        seconds: f64,
    },
    /// The payload is committed on chain.
    Sealed {
        /// Its hash.
        payload: PayloadHash,
        /// Its size as it travels.
        bytes: u64,
        /// How many times smaller than θ in fp32.
        ratio: f64,
        /// The inner steps in it.
        inner_steps: u32,
        /// The block that holds the commitment.
        sealed_at: Block,
    },
    /// The node has no contribution to this round.
    SealFailed {
        /// Why.
        reason: String,
    },
    /// The gather window is over.
    Gathered {
        /// Sealed payloads that are here.
        received: u32,
        /// Sealed payloads that are not.
        missing: u32,
    },
    /// A payload failed a check.
    Rejected {
        /// Its owner's slot, if he has one.
        uid: Option<Uid>,
        /// Its owner.
        hotkey: Hotkey,
        /// Which check.
        reason: String,
    },
    /// The round's manifest is known.
    Manifest {
        /// Its hash.
        manifest: ManifestHash,
        /// Whose payloads it applies, in its order.
        contributors: Vec<Uid>,
    },
    /// θ moved on: the round is complete.
    OuterStep {
        /// θ's digest after it.
        digest: Digest,
        /// Whose payloads were applied, in the manifest's order.
        contributors: Vec<Uid>,
        /// Loss on the held-out split after it, where it was evaluated.
        heldout_loss: Option<f64>,
        /// The round's seed.
        seed: BlockHash,
        /// What aggregation, step and digest took.
        seconds: f64,
    },
    /// The round ended with θ unchanged.
    NullRound {
        /// Why.
        reason: String,
    },
    /// A validator has scored a payload.
    Evaluated {
        /// Whose.
        uid: Uid,
        /// The score: relative improvement on unassigned samples.
        #[serde(deserialize_with = "null_is_nan")]
        score: f64,
        /// Loss before less loss after, on the assigned samples.
        #[serde(deserialize_with = "null_is_nan")]
        assigned_improvement: f64,
        /// Loss before less loss after, on the unassigned samples.
        #[serde(deserialize_with = "null_is_nan")]
        unassigned_improvement: f64,
    },
    /// A validator has played a round's match.
    Rated {
        /// A hash of all its records: who has found the same has the same.
        records: Digest,
    },
    /// Weights are on chain.
    WeightsSet {
        /// Each uid with a weight.
        weights: Vec<(Uid, Weight)>,
        /// The block that holds them.
        set_at: Block,
    },
    /// The supervisor has replaced an actor.
    ActorRestarted {
        /// Which.
        actor: String,
        /// Why.
        reason: String,
        /// How often by now.
        restarts: u32,
    },
    /// An actor did not answer by its deadline.
    ActorHung {
        /// Which.
        actor: String,
        /// The deadline it had.
        deadline_seconds: f64,
    },
    /// An actor used up its restarts: the node stops.
    BudgetSpent {
        /// Which.
        actor: String,
        /// How often it was restarted.
        restarts: u32,
    },
    /// A test or a drill made something fail.
    FaultInjected {
        /// Which actor.
        actor: String,
        /// In which phase.
        phase: String,
        /// How.
        fault: String,
    },
    /// The node's θ is not the agreed one.
    DigestMismatch {
        /// The node's digest.
        own: Digest,
        /// The agreed digest.
        agreed: Digest,
    },
    /// The node has begun to get the agreed θ.
    ResyncStarted {
        /// Why.
        reason: String,
    },
    /// The node holds the agreed θ again.
    ResyncDone {
        /// Its digest.
        digest: Digest,
        /// What it took.
        seconds: f64,
    },
    /// θ of this round has come from other nodes.
    StateFetched {
        /// Its digest.
        digest: Digest,
        /// Bytes that came; what was here from an earlier attempt is not among them.
        bytes: u64,
        /// Who sent how many.
        from: Vec<(EndpointId, u64)>,
        /// Who sent others than those asked for.
        corrupt: Vec<EndpointId>,
        /// What it took.
        seconds: f64,
    },
    /// θ of this round is kept for those who join or come back.
    CheckpointKept {
        /// Its digest, under which it is fetched.
        digest: Digest,
    },
    /// The finalised head is too far behind the best one to go on.
    FinalityLagging {
        /// How far.
        lag_blocks: u64,
    },
    /// Events came faster than they could be written, or the disk refused them.
    EventsLost {
        /// How many lines are missing here.
        count: u64,
    },
    /// The node was asked to stop, or decided to.
    Stopping {
        /// Why.
        reason: String,
    },
    /// The last line of a run.
    Stopped {
        /// The process's exit code.
        exit_code: i32,
    },
}

/// JSON has no NaN: it is written as null, and a loss that is not a number must be readable.
fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}
