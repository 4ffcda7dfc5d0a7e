//! THE ORDER of a round: `(RoundState, Event) → Vec<Effect>`. No other place decides what comes after what.
//!
//! The machine knows blocks, phases and outcomes, never data: whoever carries out an [`Effect`] keeps the tensors and
//! payloads and answers with an [`Event`]. So the order can be tested without a model, a network or a clock.
//!
//! ```text
//!            ┌──────────────────── own contribution ────────────────────┐
//! Ready ──► InnerSteps ──► Compressing ──► Sealing ──► AwaitingReveal ──► Gathering ──► AwaitingManifest ──► Deciding
//!   ▲            │               │             │              ▲                                                 │
//!   │            └── given up ───┴─────────────┴──────────────┘                     OuterStep or NullRound  ◄────┘
//!   └───────────────────────────────────────── Saving ◄─────────────────────────────────────┘
//! ```
//!
//! The best head drives the clock, but a round is decided by its votes in a *final* block: were it the best one, a fork at the
//! round's edge could show half of the nodes another majority than the other half, and θ would split (R-1).
//!
//! A failed phase of the own contribution is tried once more and then given up (R-3: a crash costs at most one
//! contribution); a failed phase that agreement needs is tried again with every block until it succeeds, and until then
//! the node contributes nothing (R-4).

mod ballot;
mod schedule;
#[doc(hidden)]
pub mod storm;

pub use ballot::{Ballot, Voter, ballot};
pub use schedule::Schedule;

use crate::terms::{Block, ManifestHash, Round};

/// What a node does for the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Trains.
    Miner,
    /// Scores.
    Validator,
    /// Trains and scores.
    Both,
}

impl Role {
    /// The role's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Miner => "miner",
            Self::Validator => "validator",
            Self::Both => "both",
        }
    }

    /// Whether the node contributes pseudo-gradients.
    #[must_use]
    pub fn mines(self) -> bool {
        self != Self::Validator
    }

    /// Whether the node scores contributions and proposes manifests.
    #[must_use]
    pub fn validates(self) -> bool {
        self != Self::Miner
    }
}

/// Where in a round the node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// θ is being loaded; the round it belongs to is not known yet.
    Starting,
    /// θ of the round is held and saved; the round has not begun.
    Ready,
    /// Inner steps run.
    InnerSteps,
    /// Δ becomes a payload.
    Compressing,
    /// The payload's hash goes on chain.
    Sealing,
    /// Nothing to do until payloads may be read.
    AwaitingReveal,
    /// Payloads are fetched and checked.
    Gathering,
    /// Validators vote; everybody waits for the deadline, and until it is final.
    AwaitingManifest,
    /// The manifest is read from the chain and what it names is obtained.
    Deciding,
    /// The manifest's payloads are applied.
    OuterStep,
    /// No manifest: the round ends without a change to θ.
    NullRound,
    /// The round boundary's state is written.
    Saving,
}

impl Phase {
    /// All phases, in the order of a round.
    pub const ALL: [Self; 12] = [
        Self::Starting,
        Self::Ready,
        Self::InnerSteps,
        Self::Compressing,
        Self::Sealing,
        Self::AwaitingReveal,
        Self::Gathering,
        Self::AwaitingManifest,
        Self::Deciding,
        Self::OuterStep,
        Self::NullRound,
        Self::Saving,
    ];

    /// All names, in the same order.
    pub const NAMES: [&'static str; 12] = [
        "starting",
        "ready",
        "inner-steps",
        "compressing",
        "sealing",
        "awaiting-reveal",
        "gathering",
        "awaiting-manifest",
        "deciding",
        "outer-step",
        "null-round",
        "saving",
    ];

    /// The phase's name in `/status` and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// Whether only the own contribution is lost when this phase fails.
    fn is_contribution(self) -> bool {
        matches!(self, Self::InnerSteps | Self::Compressing | Self::Sealing)
    }
}

/// What the machine is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The chain has reached this block.
    Head(Block),
    /// Up to this block the chain will not change any more.
    Final(Block),
    /// The node has found its place.
    Started(Started),
    /// A phase of a round has ended well.
    Done(Round, Done),
    /// A phase of a round has failed: an actor died, a deadline passed, the network did not answer.
    Failed(Round, Phase),
    /// A vote's procedure has ended, however it went.
    VoteEnded(Round),
    /// The contributions of a round have been evaluated and rated.
    Evaluated(Round),
}

/// Where a node finds itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// θ of this round is held.
    pub round: Round,
    /// The own payload of the round is held, too, from before a stop or a crash.
    pub payload_held: bool,
    /// The boundary before the round is on disk.
    pub saved: bool,
}

/// How a phase ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// So many inner steps were made; none means there is no contribution.
    InnerSteps(u32),
    /// The payload is made and kept.
    Compressed,
    /// The seal is on chain.
    Sealed,
    /// What could be fetched has been fetched and checked.
    Gathered,
    /// The chain's decision, with everything it names obtained.
    Decided(Option<ManifestHash>),
    /// θ of the next round is held by everybody who needs it.
    Stepped,
    /// The boundary is on disk.
    Saved,
}

/// What is to be done; each is answered by an [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Make at most H inner steps from θ.
    InnerSteps(Round),
    /// End the inner steps after the one that runs; answered by the running [`Effect::InnerSteps`].
    StopInnerSteps(Round),
    /// Make the payload.
    Compress(Round),
    /// Put the payload's hash on chain.
    Seal(Round),
    /// Fetch and check the round's sealed payloads.
    Gather(Round),
    /// Look at the votes at this block; propose or endorse if it is one's turn.
    Vote(Round, Block),
    /// Read the decision and obtain everything it names.
    Decide(Round),
    /// Apply the decided manifest.
    OuterStep(Round),
    /// End the round without a manifest.
    NullRound(Round),
    /// Write the boundary before this round.
    Save(Round),
    /// Evaluate and rate the round's contributions; goes on beside everything else.
    Evaluate(Round),
    /// Put weights on chain.
    SetWeights(Round),
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoundState {
    schedule: Schedule,
    role: Role,
    rounds_per_weights: u64,
    /// θ of this round is held.
    round: Round,
    phase: Phase,
    block: Block,
    finalized: Block,
    /// The phase's effect has failed and waits for the next block to be tried again.
    stalled: bool,
    /// Failures of the own contribution in this round.
    failures: u8,
    stopping: bool,
    voting: bool,
    /// The payload of the round is made already: what is left of the contribution is its seal.
    payload_held: bool,
}

/// A contribution that fails twice in a round is given up.
const CONTRIBUTION_TRIES: u8 = 2;

impl RoundState {
    /// A machine that waits for [`Event::Started`].
    #[must_use]
    pub fn new(schedule: Schedule, role: Role, rounds_per_weights: u64) -> Self {
        Self {
            schedule,
            role,
            rounds_per_weights,
            round: Round(0),
            phase: Phase::Starting,
            block: Block(0),
            finalized: Block(0),
            stalled: false,
            failures: 0,
            stopping: false,
            voting: false,
            payload_held: false,
        }
    }

    /// The round whose θ is held.
    #[must_use]
    pub fn round(&self) -> Round {
        self.round
    }

    /// Where in that round the node is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The schedule the machine follows.
    #[must_use]
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The newest block the machine was told.
    #[must_use]
    pub fn block(&self) -> Block {
        self.block
    }

    /// The newest final block the machine was told.
    #[must_use]
    pub fn finalized(&self) -> Block {
        self.finalized
    }

    /// Takes one event and answers with what is to be done.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        match event {
            // A head behind the last one is a reorganisation or a late message; the clock never runs backwards.
            Event::Head(block) if block > self.block => {
                self.block = block;
                self.on_block()
            }
            Event::Final(block) if block > self.finalized => {
                self.finalized = block;
                match self.phase {
                    Phase::AwaitingReveal | Phase::AwaitingManifest => self.act(),
                    _ => vec![],
                }
            }
            Event::Started(Started { round, payload_held, saved }) if self.phase == Phase::Starting => {
                self.payload_held = payload_held;
                if saved {
                    return self.begin(round);
                }
                self.round = round;
                self.enter(Phase::Saving)
            }
            Event::Done(round, done) if round == self.round => self.on_done(done),
            Event::Failed(round, phase) if round == self.round && phase == self.phase => self.on_failed(),
            Event::VoteEnded(round) if round == self.round => {
                self.voting = false;
                vec![]
            }
            Event::Evaluated(round) if self.role.validates() && round.0.is_multiple_of(self.rounds_per_weights) => {
                vec![Effect::SetWeights(round)]
            }
            // What is late belongs to a round or a phase that is over.
            Event::Head(_)
            | Event::Final(_)
            | Event::Started(..)
            | Event::Done(..)
            | Event::Failed(..)
            | Event::VoteEnded(_)
            | Event::Evaluated(_) => vec![],
        }
    }

    fn on_block(&mut self) -> Vec<Effect> {
        let round = self.round;
        let revealed = self.block >= self.schedule.reveal(round);
        match self.phase {
            Phase::Starting => vec![],
            Phase::Ready => self.act(),
            phase if phase.is_contribution() && revealed => self.give_up_contribution(),
            // Steps that have failed are not begun again when their time is over.
            Phase::InnerSteps if self.stalled && self.block >= self.schedule.inner_steps_end(round) => {
                self.give_up_contribution()
            }
            Phase::InnerSteps if self.block >= self.schedule.inner_steps_end(round) && !self.stopping => {
                self.stopping = true;
                vec![Effect::StopInnerSteps(round)]
            }
            Phase::AwaitingReveal | Phase::AwaitingManifest => self.act(),
            _ if self.stalled => {
                self.stalled = false;
                self.effect_of_phase()
            }
            _ => vec![],
        }
    }

    fn on_done(&mut self, done: Done) -> Vec<Effect> {
        match (self.phase, done) {
            (Phase::InnerSteps, Done::InnerSteps(0)) => self.enter(Phase::AwaitingReveal),
            (Phase::InnerSteps, Done::InnerSteps(_)) => self.enter(Phase::Compressing),
            (Phase::Compressing, Done::Compressed) => self.enter(Phase::Sealing),
            (Phase::Sealing, Done::Sealed) => self.enter(Phase::AwaitingReveal),
            (Phase::Gathering, Done::Gathered) => {
                let mut effects = self.enter(Phase::AwaitingManifest);
                if self.role.validates() {
                    effects.push(Effect::Evaluate(self.round));
                }
                effects
            }
            (Phase::Deciding, Done::Decided(Some(_))) => self.enter(Phase::OuterStep),
            (Phase::Deciding, Done::Decided(None)) => self.enter(Phase::NullRound),
            // R-2: only these two phases lead to the next round, and only one of them is entered.
            (Phase::OuterStep | Phase::NullRound, Done::Stepped) => {
                self.payload_held = false;
                self.round = self.round.next();
                self.enter(Phase::Saving)
            }
            (Phase::Saving, Done::Saved) => self.begin(self.round),
            _ => vec![],
        }
    }

    fn on_failed(&mut self) -> Vec<Effect> {
        if self.phase.is_contribution() {
            self.failures += 1;
            let too_late = self.phase == Phase::InnerSteps && self.block >= self.schedule.inner_steps_end(self.round);
            if self.failures >= CONTRIBUTION_TRIES || too_late {
                return self.give_up_contribution();
            }
        }
        self.stalled = true;
        vec![]
    }

    fn begin(&mut self, round: Round) -> Vec<Effect> {
        self.round = round;
        self.failures = 0;
        self.voting = false;
        self.enter(Phase::Ready)
    }

    fn give_up_contribution(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.phase == Phase::InnerSteps && !self.stopping {
            effects.push(Effect::StopInnerSteps(self.round));
        }
        effects.extend(self.enter(Phase::AwaitingReveal));
        effects
    }

    fn enter(&mut self, phase: Phase) -> Vec<Effect> {
        self.phase = phase;
        self.stalled = false;
        self.stopping = false;
        match phase {
            Phase::Ready | Phase::AwaitingReveal | Phase::AwaitingManifest => self.act(),
            _ => self.effect_of_phase(),
        }
    }

    /// What a waiting phase does at the present block.
    fn act(&mut self) -> Vec<Effect> {
        let (round, block) = (self.round, self.block);
        match self.phase {
            Phase::Ready if block < self.schedule.first_block(round) => vec![],
            Phase::Ready if self.role.mines() && self.payload_held && block < self.schedule.reveal(round) => {
                self.enter(Phase::Sealing)
            }
            Phase::Ready if self.role.mines() && block < self.schedule.inner_steps_end(round) => {
                self.enter(Phase::InnerSteps)
            }
            Phase::Ready => self.enter(Phase::AwaitingReveal),
            Phase::AwaitingReveal if block < self.schedule.reveal(round) => vec![],
            Phase::AwaitingReveal | Phase::AwaitingManifest if self.finalized >= self.schedule.manifest_at(round) => {
                self.enter(Phase::Deciding)
            }
            // All votes are in: only what the manifest will name is still of use.
            Phase::AwaitingReveal | Phase::AwaitingManifest if block >= self.schedule.manifest_at(round) => vec![],
            Phase::AwaitingReveal => self.enter(Phase::Gathering),
            Phase::AwaitingManifest if self.role.validates() && !self.voting => {
                self.voting = true;
                vec![Effect::Vote(round, block)]
            }
            _ => vec![],
        }
    }

    fn effect_of_phase(&self) -> Vec<Effect> {
        let round = self.round;
        match self.phase {
            Phase::InnerSteps => vec![Effect::InnerSteps(round)],
            Phase::Compressing => vec![Effect::Compress(round)],
            Phase::Sealing => vec![Effect::Seal(round)],
            Phase::Gathering => vec![Effect::Gather(round)],
            Phase::Deciding => vec![Effect::Decide(round)],
            Phase::OuterStep => vec![Effect::OuterStep(round)],
            Phase::NullRound => vec![Effect::NullRound(round)],
            Phase::Saving => vec![Effect::Save(round)],
            Phase::Starting | Phase::Ready | Phase::AwaitingReveal | Phase::AwaitingManifest => vec![],
        }
    }
}

#[cfg(test)]
mod tests;
