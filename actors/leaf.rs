//! The six actors by name, and how one is asked: every request has a reply port and a deadline.

use std::fmt;
use std::time::Duration;

use ractor::rpc::CallResult;
use ractor::{ActorId, ActorRef, Message, RpcReplyPort};

/// The actors of a node, in the order in which they are started; they are stopped in reverse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Leaf {
    /// Inner steps and loss evaluation on one device.
    GpuWorker,
    /// Error feedback, θ on the host, payloads, the outer step.
    Compressor,
    /// Payloads and manifests to and from peers.
    PeerSync,
    /// Checks, scores, ratings.
    Gauntlet,
    /// Commitments and weights onto the chain.
    ChainWriter,
    /// Blocks into rounds; asks all others.
    RoundClock,
}

impl Leaf {
    /// All of them, first to start first.
    pub const ALL: [Self; 6] =
        [Self::GpuWorker, Self::Compressor, Self::PeerSync, Self::Gauntlet, Self::ChainWriter, Self::RoundClock];

    /// Their names, in the same order.
    pub const NAMES: [&'static str; 6] =
        ["gpu-worker", "compressor", "peer-sync", "gauntlet", "chain-writer", "round-clock"];

    /// The name in logs, metrics, `/status` and fault scripts.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An actor that has let a deadline pass. It is named by its id, so that its successor is not taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{leaf} did not answer within {deadline:?}")]
pub struct Hung {
    /// Which of the six.
    pub leaf: Leaf,
    /// Which incarnation.
    pub actor: ActorId,
    /// What it was given.
    pub deadline: Duration,
}

/// Why a question got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The actor is gone, or died over the question; its supervisor replaces it.
    #[error("{0} is gone")]
    Gone(Leaf),
    /// The actor said nothing in time; it is to be killed and replaced.
    #[error("{0}")]
    Hung(Hung),
}

/// Asks `leaf` and waits for its answer.
///
/// # Errors
/// [`AskError::Gone`]: ask its successor. [`AskError::Hung`]: tell the supervisor.
pub async fn ask<M: Message, T: Send + 'static>(
    leaf: Leaf,
    actor: &ActorRef<M>,
    within: Duration,
    question: impl FnOnce(RpcReplyPort<T>) -> M,
) -> Result<T, AskError> {
    match actor.call(question, Some(within)).await {
        Ok(CallResult::Success(answer)) => Ok(answer),
        Ok(CallResult::Timeout) => Err(AskError::Hung(Hung { leaf, actor: actor.get_id(), deadline: within })),
        Ok(CallResult::SenderError) | Err(_) => Err(AskError::Gone(leaf)),
    }
}

/// Answers a question. Whoever asked may have stopped waiting, which is no concern of whoever answers.
pub fn answer<T: Send + 'static>(port: RpcReplyPort<T>, value: T) {
    drop(port.send(value));
}
