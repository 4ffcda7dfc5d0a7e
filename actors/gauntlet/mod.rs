//! Gauntlet: checks what peers deliver, chooses who contributes, plans evaluations, keeps ratings.
//!
//! Hears:   requests of RoundClock: check, propose, plan, rate, weigh, save.
//! Tells:   nobody; it answers.
//! State:   all peers' records, and which records were used in earlier rounds. A crash reloads the last boundary's.
//! Mailbox: one request of the round, one of the evaluation beside it.
//!
//! The rules are pure functions in `convoke::gauntlet`; this actor holds their state and does the work on its own thread.
//!
//! Fault points: `check`, `propose`, `plan`, `rate`, `save`.

mod desk;

use std::sync::Arc;

use convoke::chain::commitment::Seal;
use convoke::gauntlet::fast_checks::RejectReason;
use convoke::gauntlet::rating::Rating;
use convoke::gauntlet::record::Outcome;
use convoke::manifest::{Entry, Manifest};
use convoke::payload::Payload;
use convoke::terms::{Block, BlockHash, Digest, EndpointId, Hotkey, ManifestHash, Round, TransportHash, Uid};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

use crate::compressor::Theta;
use crate::leaf::{Leaf, answer};
use crate::node::Parts;
use crate::workbench::{Place, Workbench};
use desk::Desk;

/// The boundary's section in the store.
pub const SECTION: &str = "gauntlet";

/// The actor.
#[derive(Debug)]
pub struct Gauntlet;

/// The bench on which all work is done.
pub struct State {
    bench: Workbench<Desk>,
}

/// One sealed contribution, as the chain shows it.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The sealing hotkey's slot at the round's last block.
    pub uid: Uid,
    /// Who sealed.
    pub hotkey: Hotkey,
    /// Where the payload can be had, if its owner has proven an endpoint of its own.
    pub endpoint: Option<EndpointId>,
    /// What was sealed.
    pub seal: Seal,
    /// Block and place in it: the order that tells an original from its copy.
    pub place: (Block, u32),
}

/// Bytes by hash, or why they did not come.
pub type Deliveries = Vec<([u8; 32], Result<Arc<[u8]>, String>)>;

/// What a round's check needs.
#[derive(Debug)]
pub struct CheckRequest {
    /// The round.
    pub round: Round,
    /// Its seed.
    pub seed: BlockHash,
    /// The digest of θ.
    pub base: Digest,
    /// θ, against which keyed digests are checked.
    pub theta: Theta,
    /// What was sealed.
    pub claims: Vec<Claim>,
    /// What came.
    pub delivered: Deliveries,
    /// Everybody in the registry: records of those who have left it are dropped.
    pub registered: Vec<Hotkey>,
}

/// A contribution that passed.
#[derive(Debug, Clone)]
pub struct Passed {
    /// Its slot.
    pub uid: Uid,
    /// Whose it is.
    pub hotkey: Hotkey,
    /// The payload.
    pub payload: Arc<Payload>,
    /// The hash of the transport coding in which it came.
    pub transport: TransportHash,
    /// The coding's size.
    pub transport_bytes: u64,
}

/// A contribution that did not.
#[derive(Debug, Clone)]
pub struct Rejection {
    /// Its slot.
    pub uid: Uid,
    /// Whose it is.
    pub hotkey: Hotkey,
    /// Why.
    pub reason: RejectReason,
}

/// A round's contributions, checked.
#[derive(Debug, Clone, Default)]
pub struct Gathered {
    /// Those that may be used, in the order of uids.
    pub passed: Vec<Passed>,
    /// Those that may not.
    pub rejected: Vec<Rejection>,
}

impl Gathered {
    /// The contribution that a manifest's entry names.
    #[must_use]
    pub fn find(&self, entry: &Entry) -> Option<&Passed> {
        self.passed.iter().find(|passed| {
            passed.uid == entry.uid
                && passed.hotkey == entry.hotkey
                && passed.payload.hash() == entry.payload
                && (passed.transport, passed.transport_bytes) == (entry.transport, entry.transport_bytes)
        })
    }

    /// How many were sealed and did not come.
    #[must_use]
    pub fn n_missing(&self) -> usize {
        self.rejected.iter().filter(|rejection| rejection.reason == RejectReason::Missing).count()
    }
}

/// What a proposal needs.
#[derive(Debug)]
pub struct ProposeRequest {
    /// The round.
    pub round: Round,
    /// The digest of θ.
    pub base: Digest,
    /// The manifest that made θ.
    pub prev: ManifestHash,
    /// What passed.
    pub gathered: Arc<Gathered>,
    /// The round's seed, which draws newcomers.
    pub seed: BlockHash,
}

/// What a plan of evaluations needs.
#[derive(Debug)]
pub struct PlanRequest {
    /// The round.
    pub round: Round,
    /// Its seed, which assigned the samples.
    pub seed: BlockHash,
    /// The hash of a block after the last seal, which draws who and what is evaluated.
    pub draw: BlockHash,
    /// What passed.
    pub gathered: Arc<Gathered>,
}

/// One evaluation to be made.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// Whose payload.
    pub hotkey: Hotkey,
    /// Its slot.
    pub uid: Uid,
    /// The payload.
    pub payload: Arc<Payload>,
    /// By how much each of its tensors is scaled before it is evaluated.
    pub scales: Vec<f32>,
    /// Samples it says it trained on.
    pub assigned: Vec<u64>,
    /// Samples it was not assigned.
    pub unassigned: Vec<u64>,
}

/// One peer after a match.
#[derive(Debug, Clone, Copy)]
pub struct Rated {
    /// Its slot.
    pub uid: Uid,
    /// Its rating.
    pub rating: Rating,
}

/// The peers of a round after its match.
pub type Standings = Vec<Rated>;

/// What the actor hears.
#[derive(Debug)]
pub enum Msg {
    /// Check what came of what was sealed.
    Check(CheckRequest, RpcReplyPort<Gathered>),
    /// Choose contributors; `None` when nothing may be used.
    Propose(ProposeRequest, RpcReplyPort<Option<Manifest>>),
    /// Choose who is evaluated on what.
    Plan(PlanRequest, RpcReplyPort<Vec<Evaluation>>),
    /// Take the outcomes of a round's evaluations into the ratings.
    Rate(Round, Arc<Gathered>, Vec<(Hotkey, Outcome)>, RpcReplyPort<Standings>),
    /// Who earns what share, given who is registered and who burns.
    Weights(Round, Vec<Hotkey>, Option<Hotkey>, RpcReplyPort<Vec<(Hotkey, f64)>>),
    /// Write the boundary before this round.
    Save(Round, RpcReplyPort<Result<(), String>>),
    /// The bench has died.
    Died(String),
}

impl Actor for Gauntlet {
    type Msg = Msg;
    type State = State;
    type Arguments = Arc<Parts>;

    async fn pre_start(&self, me: ActorRef<Msg>, parts: Arc<Parts>) -> Result<State, ActorProcessingErr> {
        let place = Place::of(&parts, Leaf::Gauntlet);
        let build = move || Desk::load(parts);
        let bench = Workbench::start(place, build, move |why| drop(me.cast(Msg::Died(why))))?;
        Ok(State { bench })
    }

    async fn handle(&self, _: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Check(request, port) => {
                let round = request.round;
                state.bench.put("check", move |_| round, |desk| answer(port, desk.check(request)));
            }
            Msg::Propose(request, port) => {
                let round = request.round;
                state.bench.put("propose", move |_| round, move |desk| answer(port, desk.propose(&request)));
            }
            Msg::Plan(request, port) => {
                let round = request.round;
                state.bench.put("plan", move |_| round, move |desk| answer(port, desk.plan(&request)));
            }
            Msg::Rate(round, gathered, outcomes, port) => {
                state.bench.put(
                    "rate",
                    move |_| round,
                    move |desk| answer(port, desk.rate(round, &gathered, outcomes)),
                );
            }
            Msg::Weights(round, registered, burn, port) => {
                let weights = move |desk: &mut Desk| answer(port, desk.weights(round, registered, burn));
                state.bench.put("weights", move |_| round, weights);
            }
            Msg::Save(round, port) => {
                state.bench.put("save", move |_| round, move |desk| answer(port, desk.save(round)));
            }
            Msg::Died(why) => return Err(why.into()),
        }
        Ok(())
    }
}
