//! What a node says about itself: actors write to a [`StatusBoard`] through small methods, pages and the terminal read.
//!
//! The board only reports. Nothing decides by it, and no actor reads it, so that it can be dropped without a change to
//! training. It is bounded: the last 64 rounds, the subnet's slots, the supervisor's children.

mod report;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use convoke::terms::{Block, Digest, Hotkey, PayloadHash, Round, RunId, Uid, Weight};
use dashmap::DashMap;

pub use report::{ActorStatus, Health, Outcome, PeerStatus, RatingStatus, Readiness, Rejected, RoundStatus, Status};

/// Rounds that the board remembers.
pub const ROUNDS_MAX: usize = 64;
/// Rejections listed per round; the metrics count them all.
const REJECTED_MAX: usize = 256;

/// Who the node is.
#[derive(Debug, Clone)]
pub struct Identity {
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
}

/// How old things may be while the node still counts as ready. Both follow from the run spec and the block time.
#[derive(Debug, Clone, Copy)]
pub struct Freshness {
    /// Time since the last new block.
    pub head_age_max: Duration,
    /// Time since the last round ended, by an outer step or as a null round.
    pub round_age_max: Duration,
}

/// The node's own payload of a round.
#[derive(Debug, Clone, Copy)]
pub struct SealReport {
    /// Its hash.
    pub payload: PayloadHash,
    /// Its size as it travels.
    pub bytes: u64,
    /// How many times smaller than θ in fp32.
    pub ratio: f64,
}

/// What the terminal shows of the running round.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Progress {
    /// The round the node is in.
    pub round: Option<Round>,
    /// What it does in it.
    pub phase: &'static str,
    /// The best block seen.
    pub block: Option<Block>,
    /// Inner steps done.
    pub steps: u32,
    /// Inner steps of a full round.
    pub steps_max: u32,
    /// Training loss of the last inner step.
    pub train_loss: Option<f64>,
    /// Held-out loss after the last outer step.
    pub heldout_loss: Option<f64>,
}

/// A handle to the node's board; clones are cheap and show the same.
#[derive(Clone)]
pub struct StatusBoard(Arc<Board>);

struct Board {
    identity: Identity,
    freshness: Freshness,
    started: Instant,
    present: Mutex<Present>,
    rounds: Mutex<VecDeque<RoundStatus>>,
    peers: DashMap<Uid, PeerStatus>,
    actors: DashMap<&'static str, ActorStatus>,
}

/// What is so at the moment.
#[derive(Default)]
struct Present {
    uid: Option<Uid>,
    finalized_block: Option<Block>,
    head_seen: Option<Instant>,
    theta_held: bool,
    round_ended: Option<Instant>,
    rounds_completed: u64,
    gave_up: Option<String>,
    progress: Progress,
}

/// The board is shown while an actor dies: a lock that was held by a panic guards nothing worse than an older value.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StatusBoard {
    /// An empty board.
    #[must_use]
    pub fn new(identity: Identity, freshness: Freshness) -> Self {
        Self(Arc::new(Board {
            identity,
            freshness,
            started: Instant::now(),
            present: Mutex::default(),
            rounds: Mutex::default(),
            peers: DashMap::new(),
            actors: DashMap::new(),
        }))
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        lock(&self.0.present)
    }

    /// Changes a round that the board remembers, or begins to remember it. One too old is let go.
    fn with_round(&self, round: Round, change: impl FnOnce(&mut RoundStatus)) {
        let mut rounds = lock(&self.0.rounds);
        let at = match rounds.binary_search_by_key(&round, |status| status.round) {
            Ok(at) => at,
            Err(0) if rounds.len() == ROUNDS_MAX => return,
            Err(mut at) => {
                rounds.insert(at, RoundStatus { round, ..RoundStatus::default() });
                if rounds.len() > ROUNDS_MAX {
                    rounds.pop_front();
                    at -= 1;
                }
                at
            }
        };
        change(&mut rounds[at]);
    }

    /// A new head of the chain was seen.
    pub fn head(&self, best: Block, finalized: Block) {
        let mut present = self.present();
        if present.progress.block != Some(best) {
            present.head_seen = Some(Instant::now());
        }
        present.progress.block = Some(best);
        present.finalized_block = Some(finalized);
    }

    /// The node's slot at the last lookup.
    pub fn slot(&self, uid: Option<Uid>) {
        self.present().uid = uid;
    }

    /// The node holds the agreed θ, or has found that it does not.
    pub fn theta_held(&self, held: bool) {
        let mut present = self.present();
        present.theta_held = held;
        if held && present.round_ended.is_none() {
            present.round_ended = Some(Instant::now());
        }
    }

    /// A round began, of at most `steps_max` inner steps.
    pub fn round_started(&self, round: Round, steps_max: u32) {
        let mut present = self.present();
        present.progress = Progress { round: Some(round), steps: 0, steps_max, ..present.progress };
        drop(present);
        self.with_round(round, |_| {});
    }

    /// The node entered a phase of the round.
    pub fn phase(&self, phase: &'static str) {
        self.present().progress.phase = phase;
    }

    /// `steps` inner steps of the round are done, the last with this loss.
    pub fn inner_steps(&self, round: Round, steps: u32, loss: f64) {
        let mut present = self.present();
        (present.progress.steps, present.progress.train_loss) = (steps, finite(loss));
        drop(present);
        self.with_round(round, |status| (status.inner_steps, status.train_loss) = (steps, finite(loss)));
    }

    /// The node's payload of the round is committed on chain.
    pub fn sealed(&self, round: Round, seal: SealReport) {
        self.with_round(round, |status| {
            status.payload = Some(seal.payload);
            status.payload_bytes = Some(seal.bytes);
            status.payload_ratio = finite(seal.ratio);
        });
    }

    /// A payload of the round failed a check.
    pub fn rejected(&self, round: Round, rejected: Rejected) {
        self.with_round(round, |status| {
            if status.rejected.len() < REJECTED_MAX {
                status.rejected.push(rejected);
            }
        });
    }

    /// The round ended in an outer step.
    pub fn outer_step(&self, round: Round, digest: Digest, contributors: &[Uid]) {
        let mut present = self.present();
        present.round_ended = Some(Instant::now());
        present.rounds_completed += 1;
        drop(present);
        self.with_round(round, |status| {
            status.outcome = Outcome::OuterStep;
            status.digest = Some(digest);
            status.contributors = contributors.to_vec();
        });
    }

    /// The loss on the held-out split after the round's outer step.
    pub fn heldout(&self, round: Round, loss: f64) {
        self.present().progress.heldout_loss = finite(loss);
        self.with_round(round, |status| status.heldout_loss = finite(loss));
    }

    /// The round ended with θ unchanged.
    pub fn null_round(&self, round: Round, reason: &str) {
        self.present().round_ended = Some(Instant::now());
        self.with_round(round, |status| {
            status.outcome = Outcome::Null;
            status.null_reason = Some(reason.to_owned());
        });
    }

    /// Time spent on the round, added to what was spent before.
    pub fn spent(&self, round: Round, computing: Duration, communicating: Duration) {
        self.with_round(round, |status| {
            status.computing_seconds += computing.as_secs_f64();
            status.communicating_seconds += communicating.as_secs_f64();
        });
    }

    /// A peer was scored.
    pub fn scored(&self, uid: Uid, hotkey: Hotkey, score: f64) {
        let mut peer = self.0.peers.entry(uid).or_default();
        if peer.hotkey != Some(hotkey) {
            *peer = PeerStatus { hotkey: Some(hotkey), ..PeerStatus::default() };
        }
        peer.score = finite(score);
    }

    /// A peer's rating moved.
    pub fn rated(&self, uid: Uid, rating: RatingStatus) {
        self.0.peers.entry(uid).or_default().rating = Some(rating);
    }

    /// These weights are on chain; a peer that is not among them has none.
    pub fn weights_set(&self, weights: &[(Uid, Weight)]) {
        self.0.peers.iter_mut().for_each(|mut peer| peer.weight = None);
        for (uid, weight) in weights {
            self.0.peers.entry(*uid).or_default().weight = Some(*weight);
        }
    }

    /// An actor runs.
    pub fn actor_up(&self, actor: &'static str) {
        self.0.actors.entry(actor).or_default().healthy = true;
    }

    /// An actor is down; if it comes back, `actor_up` says so.
    pub fn actor_down(&self, actor: &'static str) {
        self.0.actors.entry(actor).or_default().healthy = false;
    }

    /// An actor is being replaced.
    pub fn actor_restarted(&self, actor: &'static str, reason: &str) {
        let mut status = self.0.actors.entry(actor).or_default();
        status.restarts += 1;
        status.last_restart = Some(reason.to_owned());
    }

    /// The supervisor has given up: the process is about to end.
    pub fn gave_up(&self, reason: &str) {
        self.present().gave_up = Some(reason.to_owned());
    }

    /// Rounds completed by an outer step since the node started.
    #[must_use]
    pub fn rounds_completed(&self) -> u64 {
        self.present().rounds_completed
    }

    /// What the terminal shows.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.present().progress
    }

    /// Everything, at this moment.
    #[must_use]
    pub fn snapshot(&self) -> Status {
        let board = &*self.0;
        let identity = board.identity.clone();
        let present = self.present();
        let mut status = Status {
            node: identity.node,
            version: identity.version,
            role: identity.role,
            run_id: identity.run_id,
            hotkey: identity.hotkey,
            uid: present.uid,
            block: present.progress.block,
            finalized_block: present.finalized_block,
            round: present.progress.round,
            phase: present.progress.phase.to_owned(),
            rounds_completed: present.rounds_completed,
            uptime_seconds: board.started.elapsed().as_secs_f64(),
            rounds: Vec::new(),
            peers: board.peers.iter().map(|peer| (*peer.key(), *peer.value())).collect(),
            actors: board.actors.iter().map(|actor| (actor.key().to_string(), actor.value().clone())).collect(),
        };
        drop(present);
        status.rounds = lock(&board.rounds).iter().cloned().collect();
        status
    }

    /// Whether the node takes part: it follows the chain, holds θ, and rounds end.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.readiness_at(Instant::now())
    }

    fn readiness_at(&self, now: Instant) -> Readiness {
        let present = self.present();
        let Freshness { head_age_max, round_age_max } = self.0.freshness;
        let stale = |since: Option<Instant>, max| since.is_none_or(|since| now.saturating_duration_since(since) > max);
        let mut missing = Vec::new();
        if present.head_seen.is_none() {
            missing.push("no block of the chain seen yet".to_owned());
        } else if stale(present.head_seen, head_age_max) {
            missing.push(format!("no new block for {} s", head_age_max.as_secs()));
        }
        if !present.theta_held {
            missing.push("the agreed θ is not held".to_owned());
        } else if stale(present.round_ended, round_age_max) {
            missing.push(format!("no round ended for {} s", round_age_max.as_secs()));
        }
        missing.extend(present.gave_up.clone());
        Readiness { ready: missing.is_empty(), missing }
    }

    /// Whether the process is worth keeping. An actor that is being replaced does not make it unhealthy: that is the
    /// supervisor's work, and a restart from outside would only lose the round.
    #[must_use]
    pub fn health(&self) -> Health {
        let reason = self.present().gave_up.clone();
        Health { healthy: reason.is_none(), reason }
    }
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

#[cfg(test)]
mod tests;
