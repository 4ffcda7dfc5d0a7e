//! GpuWorker: owns one device; makes inner steps on it and measures losses.
//!
//! Hears:   requests of RoundClock: load θ, make inner steps, evaluate a payload, save, write a few lines.
//! Tells:   nobody; it answers, and keeps the terminal's bar up to date.
//! State:   the model and AdamW's averages, on its own bench. A crash reloads the averages of the last boundary (and
//!          those behind a payload that was made since); θ comes again from RoundClock.
//! Mailbox: one request of the round, one evaluation.
//!
//! Fault points: `load`, `inner-steps` (before the first step), `mid-inner-steps`, `evaluate`, `save`.

mod trainer;

mod device;
mod replicas;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use convoke::gauntlet::loss_score::Losses;
use convoke::terms::{BlockHash, Round};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

use crate::compressor::Theta;
use crate::gauntlet::Evaluation;
use crate::leaf::{Leaf, answer};
use crate::node::Parts;
use crate::pages::Pages;
use crate::workbench::{Place, Workbench};
pub use device::{DeviceError, Devices, find};
pub use trainer::{Trainer, Trainers};

/// The boundary's section in the store.
pub const SECTION: &str = "gpu-worker";
/// The section that holds what the trainer keeps behind a payload made since the boundary.
pub(crate) const PENDING_SECTION: &str = "gpu-worker-pending";

/// The actor.
#[derive(Debug)]
pub struct GpuWorker;

/// The bench on which all work is done.
pub struct State {
    bench: Workbench<Box<dyn Trainer>>,
}

/// What the actor hears.
#[derive(Debug)]
pub enum Msg {
    /// Put θ of a round on the device; the answer is the held-out loss.
    Load {
        /// The round θ belongs to.
        round: Round,
        /// θ.
        theta: Theta,
        /// Go on with the averages behind the payload that is held since before a stop or a crash.
        adopt_pending: bool,
        /// Takes the held-out loss, in nats a token.
        port: RpcReplyPort<f64>,
    },
    /// Make at most H inner steps from θ.
    InnerSteps {
        /// The round.
        round: Round,
        /// Its seed.
        seed: BlockHash,
        /// Set when no further step is to begin.
        stop: Arc<AtomicBool>,
        /// Takes what came of it, or why the worker cannot.
        port: RpcReplyPort<Result<Trained, String>>,
    },
    /// Measure losses before and after a payload.
    Evaluate {
        /// The round of the payload.
        round: Round,
        /// The θ it was made from.
        theta: Theta,
        /// The payload and the samples.
        evaluation: Evaluation,
        /// Takes the four losses.
        port: RpcReplyPort<Losses>,
    },
    /// Write the boundary before this round.
    Save {
        /// The round.
        round: Round,
        /// Takes whether it is written: not when the worker does not hold this round's θ.
        port: RpcReplyPort<Result<bool, String>>,
    },
    /// Let the model write.
    Write {
        /// What it goes on from.
        prompt: String,
        /// How many tokens.
        tokens: usize,
        /// Takes prompt and continuation.
        port: RpcReplyPort<String>,
    },
    /// The bench has died.
    Died(String),
}

/// What inner steps have made.
#[derive(Debug, Clone)]
pub struct Trained {
    /// Steps made.
    pub steps: u32,
    /// Tokens they trained on.
    pub tokens: u64,
    /// Training loss of the last step, in nats a token.
    pub loss: f64,
    /// Seconds they took.
    pub seconds: f64,
    /// Δ = θ_start − θ_end, chunk-major.
    pub delta: Arc<Pages>,
}

impl Actor for GpuWorker {
    type Msg = Msg;
    type State = State;
    type Arguments = Arc<Parts>;

    async fn pre_start(&self, me: ActorRef<Msg>, parts: Arc<Parts>) -> Result<State, ActorProcessingErr> {
        let place = Place::of(&parts, Leaf::GpuWorker);
        let build = move || parts.trainers.trainer(&parts);
        let bench = Workbench::start(place, build, move |why| drop(me.cast(Msg::Died(why))))?;
        Ok(State { bench })
    }

    async fn handle(&self, _: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Load { round, theta, adopt_pending, port } => {
                let load =
                    move |trainer: &mut Box<dyn Trainer>| answer(port, trainer.load(round, theta, adopt_pending));
                state.bench.put("load", move |_| round, load);
            }
            Msg::InnerSteps { round, seed, stop, port } => {
                let train = move |trainer: &mut Box<dyn Trainer>| answer(port, trainer.inner_steps(round, seed, &stop));
                state.bench.put("inner-steps", move |_| round, train);
            }
            Msg::Evaluate { round, theta, evaluation, port } => {
                let evaluate =
                    move |trainer: &mut Box<dyn Trainer>| answer(port, trainer.evaluate(round, &theta, &evaluation));
                state.bench.put("evaluate", move |_| round, evaluate);
            }
            Msg::Save { round, port } => {
                state.bench.put("save", move |_| round, move |trainer| answer(port, trainer.save(round)));
            }
            Msg::Write { prompt, tokens, port } => {
                // The closing words belong to no round.
                state.bench.put("write", |_| Round(0), move |trainer| answer(port, trainer.write(&prompt, tokens)));
            }
            Msg::Died(why) => return Err(why.into()),
        }
        Ok(())
    }
}
