//! One happening, told everywhere it belongs: a line in `events.jsonl`, the board behind `/status`, the metrics.
//!
//! Actors say here what happened and leave it to this file who hears of it, so that the three never disagree.

use std::sync::Arc;
use std::time::Duration;

use convoke::gauntlet::fast_checks::RejectReason;
use convoke::terms::{Block, BlockHash, Digest, EndpointId, Hotkey, ManifestHash, Round, Uid, Weight};

use crate::compressor::{Compressed, Stepped};
use crate::events::{Event, Events};
use crate::faults::Fault;
use crate::gauntlet::{Gathered, Standings};
use crate::leaf::Leaf;
use crate::metrics::{Metrics, unix_seconds};
use crate::status::{RatingStatus, Rejected, SealReport, StatusBoard};

/// Why a child was restarted, as metrics count it.
pub const RESTART_REASONS: &[&str] = &["panic", "hung", "start"];
/// The calls a node sends to the chain.
pub const CALL_KINDS: &[&str] = &["identity", "seal", "vote", "weights"];

/// Where everything that happens to a node is told.
#[derive(Clone)]
pub struct Journal {
    /// The event file.
    pub events: Events,
    /// The board behind `/status`.
    pub status: StatusBoard,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

/// One inner step, as the device made it.
#[derive(Debug, Clone, Copy)]
pub struct StepReport {
    /// Which of the round, from 1.
    pub step: u32,
    /// Tokens it trained on.
    pub tokens: u64,
    /// Training loss, in nats a token.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Seconds it took.
    pub seconds: f64,
}

/// Where a round's time went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Inner steps, compression, outer step.
    pub computing: Duration,
    /// Seals, payloads, manifests.
    pub communicating: Duration,
    /// Waiting for the block clock.
    pub waiting: Duration,
}

impl Journal {
    /// One that nobody reads.
    #[cfg(test)]
    pub fn unheard(node: &str) -> Self {
        struct Deaf;
        impl crate::events::Witness for Deaf {
            fn unix_ms(&self) -> u64 {
                0
            }
            fn see(&self, _: crate::events::Line) {}
        }
        let config = crate::config::Layers::default().put("node.name", node).unwrap().read().unwrap();
        let events = Events::seen_by(Arc::new(Deaf), node);
        crate::node::journal(
            &config,
            Hotkey::default(),
            convoke::terms::RunId::default(),
            Duration::from_secs(1),
            events,
        )
    }

    /// The chain has a new head.
    pub fn head(&self, best: Block, finalized: Block) {
        self.events.set_block(best);
        self.status.head(best, finalized);
        self.metrics.chain.best_block.set(best.0 as f64);
        self.metrics.chain.finalized_block.set(finalized.0 as f64);
        self.metrics.chain.head_seen_at.set(unix_seconds());
    }

    /// θ of a round is held.
    pub fn standing_at(&self, round: Round, heldout_loss: f64) {
        self.status.theta_held(true);
        self.status.heldout(round, heldout_loss);
        self.metrics.gpu_worker.heldout_loss.set(heldout_loss);
    }

    /// A round has begun.
    pub fn round_started(&self, round: Round, steps_max: u32) {
        self.events.record(round, Event::RoundStarted);
        self.status.round_started(round, steps_max);
        self.metrics.round.round.set(round.0 as f64);
    }

    /// The node is in another phase.
    pub fn phase(&self, round: Round, phase: &'static str) {
        self.events.record(round, Event::PhaseStarted { phase: phase.to_owned() });
        self.status.phase(phase);
        self.metrics.round.phase.only(phase);
    }

    /// One inner step is done.
    pub fn inner_step(&self, round: Round, report: &StepReport) {
        self.status.inner_steps(round, report.step, report.loss);
        let metrics = &self.metrics.gpu_worker;
        metrics.inner_steps.increment(1);
        metrics.tokens.increment(report.tokens);
        metrics.inner_step_time.record(report.seconds);
        metrics.train_loss.set(report.loss);
        metrics.learning_rate.set(report.lr);
        metrics.gradient_norm.set(report.gradient_norm);
    }

    /// The inner steps of a round are over.
    pub fn trained(&self, round: Round, steps: u32, tokens: u64, loss: f64, seconds: f64) {
        self.events.record(round, Event::InnerStepsDone { steps, tokens, loss, seconds });
    }

    /// A pseudo-gradient has become a payload.
    pub fn compressed(&self, compressed: &Compressed) {
        let metrics = &self.metrics.compressor;
        metrics.encode_time.record(compressed.seconds);
        metrics.payload_bytes.set(compressed.parcel.bytes.len() as f64);
        metrics.payload_ratio.set(compressed.ratio);
        metrics.error_feedback_norm.set(compressed.error_norm);
        metrics.quantisation_error.set(compressed.quantisation_error);
    }

    /// The payload is committed on chain.
    pub fn sealed(&self, round: Round, seal: SealReport, inner_steps: u32, block: Block) {
        self.status.sealed(round, seal);
        let SealReport { payload, bytes, ratio } = seal;
        self.events.record(round, Event::Sealed { payload, bytes, ratio, inner_steps, sealed_at: block });
    }

    /// The node has nothing in this round.
    pub fn contribution_lost(&self, round: Round, reason: &str) {
        self.events.record(round, Event::SealFailed { reason: reason.to_owned() });
        self.metrics.compressor.seals_failed.increment(1);
    }

    /// The sealed payloads that came have been checked.
    pub fn gathered(&self, round: Round, gathered: &Gathered) {
        let missing = gathered.n_missing();
        let received = gathered.passed.len() + gathered.rejected.len() - missing;
        self.events.record(round, Event::Gathered { received: count(received), missing: count(missing) });
        self.metrics.peer_sync.gathered.set(received as f64);
        self.metrics.peer_sync.missing.set(missing as f64);
        for rejection in &gathered.rejected {
            let name = rejection.reason.name();
            self.metrics.gauntlet.rejected.with([name]).increment(1);
            if matches!(rejection.reason, RejectReason::Copy { .. }) {
                self.metrics.gauntlet.copies.increment(1);
            }
            let reason = rejection.reason.to_string();
            let (uid, hotkey) = (Some(rejection.uid), rejection.hotkey);
            self.events.record(round, Event::Rejected { uid, hotkey, reason: reason.clone() });
            self.status.rejected(round, Rejected { uid, hotkey, reason });
        }
    }

    /// The round's manifest is known and at hand.
    pub fn decided(&self, round: Round, manifest: ManifestHash, contributors: Vec<Uid>) {
        self.status.theta_held(true);
        self.events.record(round, Event::Manifest { manifest, contributors });
    }

    /// θ has moved on.
    pub fn outer_step(
        &self,
        round: Round,
        stepped: &Stepped,
        contributors: &[Uid],
        heldout_loss: f64,
        seed: BlockHash,
    ) {
        let digest = stepped.digest;
        self.events.record(
            round,
            Event::OuterStep {
                digest,
                contributors: contributors.to_vec(),
                heldout_loss: Some(heldout_loss),
                seed,
                seconds: stepped.seconds,
            },
        );
        self.status.outer_step(round, digest, contributors);
        self.status.heldout(round, heldout_loss);
        self.metrics.gpu_worker.heldout_loss.set(heldout_loss);
        let metrics = &self.metrics.round;
        metrics.rounds.with(["outer-step"]).increment(1);
        metrics.completed.set(round.0 as f64);
        metrics.completed_at.set(unix_seconds());
        metrics.outer_step_time.record(stepped.seconds);
        metrics.contributors.set(contributors.len() as f64);
    }

    /// The round has ended without a change to θ.
    pub fn null_round(&self, round: Round) {
        let reason = "no manifest was endorsed by more than half of the validators' stake";
        self.events.record(round, Event::NullRound { reason: reason.to_owned() });
        self.status.null_round(round, reason);
        self.metrics.round.rounds.with(["null"]).increment(1);
    }

    /// What became of the own contribution, and where the round's time went.
    pub fn round_ended(&self, round: Round, contributed: Option<bool>, spent: Spent) {
        if let Some(applied) = contributed {
            let result = if applied { "applied" } else { "missed" };
            self.metrics.round.contributions.with([result]).increment(1);
        }
        let Spent { computing, communicating, waiting } = spent;
        self.status.spent(round, computing, communicating);
        self.metrics.round.record_spent(computing, communicating, waiting);
        self.metrics.round.round_time.record((computing + communicating + waiting).as_secs_f64());
    }

    /// One payload has been evaluated.
    pub fn evaluated(&self, round: Round, uid: Uid, hotkey: Hotkey, improvements: [f64; 2], seconds: f64) {
        let [assigned_improvement, unassigned_improvement] = improvements;
        let score = unassigned_improvement;
        self.events.record(round, Event::Evaluated { uid, score, assigned_improvement, unassigned_improvement });
        self.status.scored(uid, hotkey, score);
        self.metrics.gauntlet.evaluations.increment(1);
        self.metrics.gauntlet.evaluation_time.record(seconds);
        self.metrics.gauntlet.score.with(uid).set(score);
    }

    /// Ratings have moved.
    pub fn rated(&self, standings: &Standings) {
        for standing in standings {
            let (rating, ordinal) = (standing.rating, standing.rating.ordinal());
            self.status.rated(standing.uid, RatingStatus { mu: rating.mu, sigma: rating.sigma, ordinal });
            self.metrics.gauntlet.rating.with(standing.uid).set(ordinal);
        }
    }

    /// A round's match has changed the records.
    pub fn matched(&self, round: Round, records: Digest) {
        self.events.record(round, Event::Rated { records });
    }

    /// Weights are on chain.
    pub fn weights_set(&self, round: Round, weights: &[(Uid, Weight)], block: Block) {
        self.events.record(round, Event::WeightsSet { weights: weights.to_vec(), set_at: block });
        self.status.weights_set(weights);
        self.metrics.chain.weights_block.set(block.0 as f64);
        let total: f64 = weights.iter().map(|(_, weight)| f64::from(weight.0)).sum();
        for (uid, weight) in weights {
            self.metrics.gauntlet.weight.with(*uid).set(f64::from(weight.0) / total.max(1.0));
        }
    }

    /// A call to the chain has ended.
    pub fn chain_call(&self, kind: &'static str, outcome: &'static str, seconds: f64) {
        self.metrics.chain.calls.with([kind, outcome]).increment(1);
        self.metrics.chain.call_time.record(seconds);
    }

    /// θ is not the agreed one.
    pub fn digest_mismatch(&self, round: Round, own: Digest, agreed: Digest) {
        self.events.record(round, Event::DigestMismatch { own, agreed });
        self.events.record(round, Event::ResyncStarted { reason: "θ is off the agreed digest".to_owned() });
        self.status.theta_held(false);
        self.metrics.round.digest_mismatches.increment(1);
    }

    /// What the node has on disk is not the agreed θ either.
    pub fn resync_failed(&self) {
        self.metrics.round.resyncs.with(["failed"]).increment(1);
    }

    /// The node holds the agreed θ again.
    pub fn resynced(&self, round: Round, digest: Digest, took: Duration) {
        self.events.record(round, Event::ResyncDone { digest, seconds: took.as_secs_f64() });
        self.metrics.round.resyncs.with(["done"]).increment(1);
    }

    /// θ has come from others.
    pub fn state_fetched(
        &self,
        round: Round,
        digest: Digest,
        bytes: u64,
        from: &[(EndpointId, u64)],
        corrupt: &[EndpointId],
        took: Duration,
    ) {
        let (from, corrupt, seconds) = (from.to_vec(), corrupt.to_vec(), took.as_secs_f64());
        self.events.record(round, Event::StateFetched { digest, bytes, from, corrupt, seconds });
    }

    /// θ of a round is kept for others.
    pub fn checkpoint_kept(&self, round: Round, digest: Digest) {
        self.events.record(round, Event::CheckpointKept { digest });
    }

    /// Another process is this node now: this one ends.
    pub fn superseded(&self, reason: &str) {
        tracing::error!(reason, "the node ends: one hotkey is one process's");
        self.events.record(None, Event::Stopping { reason: reason.to_owned() });
        self.status.gave_up(reason);
    }

    /// Finality is too far behind the best head for seeds to be drawn in time.
    pub fn finality_lagging(&self, lag_blocks: u64) {
        self.events.record(None, Event::FinalityLagging { lag_blocks });
    }

    /// An actor runs.
    pub fn actor_up(&self, leaf: Leaf) {
        self.status.actor_up(leaf.name());
        self.metrics.supervisor.actor_up.with([leaf.name()]).set(1.0);
    }

    /// An actor has died and will be restarted, unless its budget is spent.
    pub fn actor_down(&self, leaf: Leaf, kind: &'static str, reason: &str, budget_left: usize) {
        self.status.actor_down(leaf.name());
        self.metrics.supervisor.actor_up.with([leaf.name()]).set(0.0);
        self.metrics.supervisor.budget_left.with([leaf.name()]).set(budget_left as f64);
        self.metrics.supervisor.restarts.with([leaf.name(), kind]).increment(1);
        self.status.actor_restarted(leaf.name(), reason);
        let restarts = self.restarts(leaf);
        let event = Event::ActorRestarted { actor: leaf.name().to_owned(), reason: reason.to_owned(), restarts };
        self.events.record(None, event);
    }

    /// An actor has let a deadline pass.
    pub fn actor_hung(&self, leaf: Leaf, deadline: Duration) {
        let deadline_seconds = deadline.as_secs_f64();
        self.events.record(None, Event::ActorHung { actor: leaf.name().to_owned(), deadline_seconds });
        self.metrics.supervisor.hung.with([leaf.name()]).increment(1);
    }

    /// An actor has used up its restarts.
    pub fn budget_spent(&self, leaf: Leaf) {
        let restarts = self.restarts(leaf);
        self.events.record(None, Event::BudgetSpent { actor: leaf.name().to_owned(), restarts });
        self.status.gave_up(&format!("{leaf} was restarted too often"));
    }

    /// A fault on purpose has struck.
    pub fn fault(&self, round: Round, fault: &Fault) {
        let kind = fault.kind.name();
        let (actor, phase) = (fault.leaf.name().to_owned(), fault.point.clone());
        self.events.record(round, Event::FaultInjected { actor, phase, fault: kind.to_owned() });
        self.metrics.supervisor.faults.increment(1);
    }

    fn restarts(&self, leaf: Leaf) -> u32 {
        self.status.snapshot().actors.get(leaf.name()).map_or(0, |actor| actor.restarts)
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
