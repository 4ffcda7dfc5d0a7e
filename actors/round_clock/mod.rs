//! RoundClock: turns blocks into rounds and carries out what `convoke::round` decides.
//!
//! Hears:   heads of the chain, ends of the procedures it started, replaced actors from the supervisor.
//! Tells:   every other actor; no actor but this one starts work on its own.
//! State:   the round machine and the round's board. After a crash it asks the Compressor where the node stands and goes
//!          on from there with the chain's next head.
//! Mailbox: one message a block, one a running procedure, one heart-beat.
//!
//! An effect is carried out by a procedure: a task that asks the leaf actors one after the other, each with a deadline
//! from `deadline`, and tells this actor how it went. So the mailbox is never blocked.
//!
//! Fault points: `head`, and one for each phase's name when it is entered.

mod agreement;
mod board;
mod claims;
mod contribution;
mod deadline;
mod doubt;
mod history;
mod scoring;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use convoke::chain::Identity;
use convoke::round::{Done, Effect, Event as RoundEvent, Phase, RoundState};
use convoke::terms::{Block, Digest, Round};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::chain::{HeadReader, Heads};
use crate::gauntlet::Gathered;
use crate::leaf::{AskError, Hung, Leaf, answer, ask};
use crate::node::Parts;
use crate::supervisor::{self, Leaves};
use crate::{chain_writer, gpu_worker, peer_sync};

use board::{Board, Update};
use doubt::Doubts;
use history::Past;

/// What the model goes on from when the run is over.
const CLOSING_PROMPT: &str = "KING. ";
const CLOSING_TOKENS: usize = 80;
const CLOSING_TIMEOUT: Duration = Duration::from_secs(5);

/// How often within a round the list of those who may connect is read anew at most, when somebody knocks who is not on it.
const ADMISSIONS_A_ROUND: u64 = 8;
/// How long PeerSync may take to say whether somebody has.
const KNOCKS: Duration = Duration::from_secs(30);

/// The exit code of a node that has to end for a reason that a restart would not remove.
const EXIT_ERROR: u8 = 1;

/// The actor.
#[derive(Debug)]
pub struct RoundClock;

/// What it starts from.
pub struct Args {
    /// What all actors share.
    pub parts: Arc<Parts>,
    /// Whom it asks.
    pub leaves: Leaves,
    /// Whom it tells of hung actors and of the last round.
    pub supervisor: ActorRef<supervisor::Msg>,
}

/// The machine and what it works with.
pub struct State {
    desk: Desk,
    machine: RoundState,
    board: Board,
    /// A procedure that finds the node's place is under way.
    is_starting: bool,
    /// The round whose beginning has been told.
    begun: Option<Round>,
    /// The evaluation that runs, to be begun once more if an actor dies over it.
    to_score: Option<ToScore>,
    /// The node is finding the agreed θ again.
    resyncing: Option<Resync>,
    heads: tokio::task::JoinHandle<()>,
}

/// A search for the agreed θ.
#[derive(Clone, Copy)]
struct Resync {
    round: Round,
    since: Instant,
    /// What is on disk is off as well.
    in_doubt: bool,
}

/// What an evaluation needs.
#[derive(Clone)]
struct ToScore {
    round: Round,
    ground: Option<board::Ground>,
    gathered: Option<Arc<Gathered>>,
    is_retried: bool,
}

/// What every procedure carries: the node's parts and whom to ask.
#[derive(Clone)]
struct Desk {
    parts: Arc<Parts>,
    leaves: Leaves,
    supervisor: ActorRef<supervisor::Msg>,
    me: ActorRef<Msg>,
    past: Past,
    /// Whom PeerSync has been told to admit; nobody, while it is new.
    admitted: Arc<Mutex<Option<Vec<Identity>>>>,
    /// How many strangers had been turned away when the list was read last because of one.
    knocks: Arc<AtomicU64>,
    /// How often which θ was doubted.
    doubts: Arc<Mutex<Doubts>>,
}

/// What the actor hears.
#[derive(Debug)]
pub enum Msg {
    /// The chain has a new head.
    Head(Heads),
    /// A procedure has ended well.
    Ended(Box<Ended>),
    /// A procedure has failed.
    Failed(Round, Beside, Trouble),
    /// An actor has been replaced.
    Replaced(Leaves),
    /// A sign of life is wanted.
    Ping(RpcReplyPort<()>),
}

/// What a procedure brings back; sealed, so that only this module makes one.
#[derive(Debug)]
pub struct Ended(Update);

/// Which procedure: a phase of the round, or what runs beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// The phase.
    Phase(Phase),
    /// A vote.
    Vote,
    /// An evaluation, or weights.
    Scoring,
    /// A look at who may connect.
    Admission,
}

/// Why a procedure could not end well; the variant is what is done about it.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// An actor is gone or hung: its successor is asked with the next block.
    #[error(transparent)]
    Leaf(#[from] AskError),
    /// An actor stands at another round: the node finds its place again.
    #[error("{0}")]
    Displaced(String),
    /// The chain or the peers do not answer: tried again with the next block.
    #[error("{0}")]
    Outside(String),
    /// A process that started later has this hotkey: the node ends.
    #[error("another process has taken this hotkey{}", .by.map(|at| format!(" and listens at {at}")).unwrap_or_default())]
    Superseded {
        /// Where it listens.
        by: Option<SocketAddr>,
    },
    /// θ is not what the run has agreed on.
    #[error("off the agreed digest: the manifest is for {agreed}, this node holds {own}")]
    OffDigest {
        /// What the manifest applies to.
        agreed: Digest,
        /// What is held here.
        own: Digest,
    },
}

impl Actor for RoundClock {
    type Msg = Msg;
    type State = State;
    type Arguments = Args;

    async fn pre_start(&self, me: ActorRef<Msg>, args: Args) -> Result<State, ActorProcessingErr> {
        let Args { parts, leaves, supervisor } = args;
        let machine = RoundState::new(
            parts.schedule.clone(),
            parts.config.node.role,
            parts.config.run.gauntlet.rounds_per_weights,
        );
        let heads = tokio::spawn(follow_heads(parts.chain.heads(), me.clone()));
        let desk = Desk {
            parts,
            leaves,
            supervisor,
            me,
            past: Past::default(),
            admitted: Arc::default(),
            knocks: Arc::default(),
            doubts: Arc::default(),
        };
        desk.start(Round(0), false);
        Ok(State {
            desk,
            machine,
            board: Board::default(),
            is_starting: true,
            begun: None,
            to_score: None,
            resyncing: None,
            heads,
        })
    }

    async fn handle(&self, _: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Head(heads) => state.on_head(heads).await,
            Msg::Ended(ended) => {
                if let Some(event) = state.take(ended.0) {
                    state.step(event).await;
                }
            }
            Msg::Failed(round, which, trouble) => state.on_trouble(round, which, &trouble).await,
            Msg::Replaced(leaves) => {
                state.desk.leaves = leaves;
                // Another one: procedures that are still under way tell those who are gone.
                state.desk.admitted = Arc::default();
            }
            Msg::Ping(port) => answer(port, ()),
        }
        Ok(())
    }

    async fn post_stop(&self, _: ActorRef<Msg>, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.board.stop_inner_steps();
        state.heads.abort();
        Ok(())
    }
}

impl Drop for State {
    /// Also after a panic or a kill, when `post_stop` is not called: nobody is left to follow heads or want steps.
    fn drop(&mut self) {
        self.board.stop_inner_steps();
        self.heads.abort();
    }
}

async fn follow_heads(mut heads: HeadReader, me: ActorRef<Msg>) {
    loop {
        let newest = heads.borrow_and_update();
        if me.cast(Msg::Head(newest)).is_err() || heads.changed().await.is_err() {
            return;
        }
    }
}

impl Beside {
    fn name(self) -> &'static str {
        match self {
            Self::Phase(phase) => phase.name(),
            Self::Vote => "vote",
            Self::Scoring => "scoring",
            Self::Admission => "admission",
        }
    }
}

impl State {
    async fn on_head(&mut self, heads: Heads) {
        let parts = &self.desk.parts;
        parts.faults.point(Leaf::RoundClock, "head", self.machine.round()).await;
        let best = heads.best.number;
        parts.journal.head(best, heads.finalized.number);
        let confirmed = Block(best.0.saturating_sub(parts.config.run.timing.head_confirmations));
        // The gate opens, and calls expire, by the same block that drives the round.
        drop(self.desk.leaves.peer_sync.cast(peer_sync::Msg::Head(confirmed)));
        drop(self.desk.leaves.chain_writer.cast(chain_writer::Msg::Head(best)));
        if self.machine.phase() == Phase::Starting && !self.is_starting {
            self.is_starting = true;
            self.desk.start(self.machine.round(), self.is_in_doubt());
        }
        self.admit_newcomers(best);
        self.step(RoundEvent::Head(confirmed)).await;
        self.step(RoundEvent::Final(heads.finalized.number)).await;
    }

    /// Who joins in the middle of a long round is not kept waiting at the door until its end; while nobody is, the chain is not asked.
    fn admit_newcomers(&self, best: Block) {
        let every = self.desk.parts.config.run.timing.blocks_per_round.div_ceil(ADMISSIONS_A_ROUND);
        if best.0.is_multiple_of(every) {
            let desk = self.desk.clone();
            self.desk.run(self.machine.round(), Beside::Admission, async move {
                let knocks = ask(Leaf::PeerSync, &desk.leaves.peer_sync, KNOCKS, peer_sync::Msg::Knocks).await?;
                if desk.knocks.swap(knocks, Ordering::Relaxed) != knocks {
                    desk.admit_now().await?;
                }
                Ok(Update::Nothing)
            });
        }
    }

    async fn step(&mut self, event: RoundEvent) {
        let before = (self.machine.round(), self.machine.phase());
        let effects = self.machine.step(event);
        let (round, phase) = (self.machine.round(), self.machine.phase());
        if (round, phase) != before {
            self.tell_phase(round, phase, before.1);
            self.desk.parts.faults.point(Leaf::RoundClock, phase.name(), round).await;
        }
        for effect in effects {
            self.perform(effect);
        }
    }

    fn tell_phase(&mut self, round: Round, phase: Phase, before: Phase) {
        let parts = &self.desk.parts;
        self.board.phase_entered(phase);
        if phase != Phase::Ready && phase != Phase::Saving && self.begun != Some(round) {
            self.begun = Some(round);
            parts.journal.round_started(round, parts.config.run.inner.steps);
        }
        let in_contribution = matches!(before, Phase::InnerSteps | Phase::Compressing | Phase::Sealing);
        if in_contribution && matches!(phase, Phase::AwaitingReveal | Phase::Gathering) && !self.board.is_sealed() {
            parts.journal.contribution_lost(round, &format!("given up in phase {}", before.name()));
        }
        parts.journal.phase(round, phase.name());
    }

    /// Starts the effect and returns at once; how it went comes back as a message.
    fn perform(&mut self, effect: Effect) {
        let (desk, board) = (self.desk.clone(), &mut self.board);
        match effect {
            Effect::InnerSteps(round) => desk.inner_steps(round, board.begin_inner_steps()),
            Effect::StopInnerSteps(_) => board.stop_inner_steps(),
            Effect::Compress(round) => desk.compress(round, board.training()),
            Effect::Seal(round) => desk.seal(round, board.own_parcel(), board.ground()),
            Effect::Gather(round) => desk.gather(round, board.ground(), board.applied()),
            Effect::Vote(round, block) => desk.vote(round, block, board.ground(), board.gathered(), board.refused()),
            Effect::Decide(round) => desk.decide(round, board.ground(), board.gathered()),
            Effect::OuterStep(round) => desk.outer_step(round, board.decision()),
            Effect::NullRound(round) => desk.outer_step(round, None),
            Effect::Save(round) => desk.save(round, board.ground()),
            Effect::Evaluate(round) => {
                let (ground, gathered) = (board.ground(), board.gathered());
                desk.evaluate(round, ground.clone(), gathered.clone());
                self.to_score = Some(ToScore { round, ground, gathered, is_retried: false });
            }
            Effect::SetWeights(round) => desk.set_weights(round),
        }
    }

    /// Puts what a procedure has brought on the board, tells operators, and says what it means to the machine.
    fn take(&mut self, update: Update) -> Option<RoundEvent> {
        if matches!(update, Update::Started { .. }) {
            self.is_starting = false;
            // Of two starts that were under way the second has nothing to find.
            if self.machine.phase() != Phase::Starting {
                return None;
            }
        }
        let journal = &self.desk.parts.journal;
        let event = self.board.take(update, self.machine.round(), journal);
        match event {
            Some(RoundEvent::Done(round, Done::Saved)) => {
                self.keep_checkpoint(round);
                let completed = journal.status.rounds_completed();
                if self.desk.parts.rounds.is_some_and(|rounds| completed >= rounds) {
                    info!(rounds = completed, "all rounds are done");
                    self.desk.close();
                    return None;
                }
            }
            Some(RoundEvent::Done(_, Done::Decided(Some(_)))) => {
                if let Some(Resync { round, since, .. }) = self.resyncing.take() {
                    journal.resynced(round, self.board.digest(), since.elapsed());
                }
            }
            Some(RoundEvent::Evaluated(_)) => self.to_score = None,
            _ => {}
        }
        event
    }

    /// A validator keeps θ of some rounds for those who join; the gist of it is on disk already.
    fn keep_checkpoint(&self, round: Round) {
        let config = &self.desk.parts.config;
        let is_checkpoint = round > Round(0) && round.0.is_multiple_of(config.run.timing.checkpoint_rounds);
        if let Some(ground) = self.board.ground().filter(|_| is_checkpoint && config.node.role.validates()) {
            self.desk.keep_checkpoint(round, ground);
        }
    }

    async fn on_trouble(&mut self, round: Round, which: Beside, trouble: &Trouble) {
        warn!(%round, procedure = which.name(), reason = %trouble, "a procedure failed");
        match trouble {
            Trouble::Leaf(AskError::Hung(hung)) => self.desk.report_hung(*hung),
            // It may be told of twice, and only the round that the node stands on is in question.
            Trouble::OffDigest { agreed, own } if round == self.machine.round() => {
                self.resync(round, *own, *agreed);
                return;
            }
            Trouble::OffDigest { .. } => {}
            Trouble::Superseded { .. } => {
                self.desk.parts.journal.superseded(&trouble.to_string());
                drop(self.desk.supervisor.cast(supervisor::Msg::Stop(EXIT_ERROR)));
                return;
            }
            // An answer that belongs to a round or a phase that is over says nothing about where the node is now.
            Trouble::Displaced(_) if round == self.machine.round() && which == Beside::Phase(self.machine.phase()) => {
                self.find_place();
                return;
            }
            Trouble::Displaced(_) | Trouble::Leaf(AskError::Gone(_)) | Trouble::Outside(_) => {}
        }
        match which {
            Beside::Phase(Phase::Starting) => self.is_starting = false,
            Beside::Phase(phase) => self.step(RoundEvent::Failed(round, phase)).await,
            Beside::Admission => {}
            Beside::Vote => self.step(RoundEvent::VoteEnded(round)).await,
            Beside::Scoring => {
                let again = self.to_score.as_mut().filter(|it| it.round == round && !it.is_retried);
                if let Some(again) = again {
                    again.is_retried = true;
                    let ToScore { round, ground, gathered, .. } = again.clone();
                    self.desk.evaluate(round, ground, gathered);
                }
            }
        }
    }

    /// After an actor was rebuilt from an older boundary the machine starts over from where θ really is.
    fn find_place(&mut self) {
        let parts = &self.desk.parts;
        self.board.stop_inner_steps();
        let fresh = RoundState::new(
            parts.schedule.clone(),
            parts.config.node.role,
            parts.config.run.gauntlet.rounds_per_weights,
        );
        let (block, finalized) = (self.machine.block(), self.machine.finalized());
        self.machine = fresh;
        self.machine.step(RoundEvent::Head(block));
        self.machine.step(RoundEvent::Final(finalized));
        self.board = Board::default();
        self.is_starting = true;
        self.desk.start(Round(0), self.is_in_doubt());
    }
}

impl Desk {
    fn report_hung(&self, hung: Hung) {
        drop(self.supervisor.cast(supervisor::Msg::Hung(hung)));
    }

    /// Lets the model write a few lines, then ends the node.
    fn close(&self) {
        let desk = self.clone();
        tokio::spawn(async move {
            let prompt = CLOSING_PROMPT.to_owned();
            let question = |port| gpu_worker::Msg::Write { prompt, tokens: CLOSING_TOKENS, port };
            if let Ok(words) = ask(Leaf::GpuWorker, &desk.leaves.gpu_worker, CLOSING_TIMEOUT, question).await {
                *desk.parts.closing_words.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(words);
            }
            drop(desk.supervisor.cast(supervisor::Msg::Stop(0)));
        });
    }

    /// Runs a procedure beside the mailbox and reports how it went.
    fn run<F>(&self, round: Round, which: Beside, procedure: F)
    where
        F: Future<Output = Result<Update, Trouble>> + Send + 'static,
    {
        // Every procedure holds a desk of its own, and with it what all of them share.
        self.parts.bench.procedures(Arc::strong_count(&self.past));
        let me = self.me.clone();
        tokio::spawn(async move {
            let started = Instant::now();
            // A task of its own, so that a panic in it is an outcome, too.
            let outcome = tokio::spawn(procedure).await;
            let outcome = outcome.unwrap_or_else(|panic| Err(Trouble::Outside(panic.to_string())));
            debug!(%round, procedure = which.name(), seconds = started.elapsed().as_secs_f64(), "procedure ended");
            let told = match outcome {
                Ok(update) => Msg::Ended(Box::new(Ended(update))),
                Err(trouble) => Msg::Failed(round, which, trouble),
            };
            drop(me.cast(told));
        });
    }
}
