//! The one table of what the node measures, a struct for each owner. A field's doc comment is the metric's help text.
//!
//! Units stand last in a name; rates are left to PromQL. Durations are histograms, whose `_sum` is the total: the
//! counters of the `metrics` crate hold whole numbers, which would cut seconds off.

use std::time::Duration;

use ::metrics::{Counter, Gauge, Histogram, Unit};
use convoke::terms::Uid;

use super::instrument::{By, ByUid, Declared, Facts, Instrument, Kind, Maker, Values};

/// Buckets of what takes milliseconds to seconds.
const SHORT: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Buckets of what takes seconds to an hour.
const LONG: [f64; 14] = [0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0];

/// A declaration's parts that a line of the table names.
struct Row {
    name: &'static str,
    unit: Unit,
    labels: &'static [(&'static str, Values)],
    buckets: &'static [f64],
}

const fn row(name: &'static str, unit: Unit) -> Row {
    Row { name, unit, labels: &[], buckets: &[] }
}

impl Row {
    const fn by(self, labels: &'static [(&'static str, Values)]) -> Self {
        Self { labels, ..self }
    }

    const fn buckets(self, buckets: &'static [f64]) -> Self {
        Self { buckets, ..self }
    }

    const fn declare(self, owner: &'static str, kind: Kind, help: &'static str) -> Declared {
        Declared { owner, name: self.name, kind, unit: self.unit, help, labels: self.labels, buckets: self.buckets }
    }
}

macro_rules! table {
    ($(
        $(#[$doc:meta])*
        $struct:ident of $owner:literal {
            $( $(#[doc = $help:literal])+ $field:ident: $type:ty = $row:expr; )+
        }
    )+) => {
        $(
            $(#[$doc])*
            pub struct $struct {
                $( $(#[doc = $help])+ pub $field: $type, )+
            }

            impl $struct {
                const DECLARED: &'static [Declared] =
                    &[$( $row.declare($owner, <$type as Instrument>::KIND, concat!($($help),+)) ),+];

                pub(super) fn new(maker: &Maker<'_>) -> Self {
                    let mut declared = Self::DECLARED.iter().copied();
                    let mut next = move || declared.next().expect("a row a field");
                    Self { $( $field: Instrument::make(maker, next()) ),+ }
                }
            }
        )+

        /// Every table, owner by owner.
        const TABLES: &[&[Declared]] = &[$($struct::DECLARED),+, PROCESS];
    };
}

table! {
    /// What RoundClock sees of the rounds.
    RoundMetrics of "round_clock" {
        /// The round the node is in.
        round: Gauge = row("convoke_round", Unit::Count);
        /// 1 for the phase the node is in, 0 for the others.
        phase: By<Gauge, 1> = row("convoke_phase", Unit::Count).by(&[("phase", Values::Phases)]);
        /// Rounds that ended, by how: an outer step, or a null round that left θ unchanged.
        rounds: By<Counter, 1> = row("convoke_rounds_total", Unit::Count)
            .by(&[("outcome", Values::Fixed(&["outer-step", "null"]))]);
        /// The last round that ended in an outer step.
        completed: Gauge = row("convoke_completed_round", Unit::Count);
        /// When the last outer step was done, in seconds since 1970; 0 before the first.
        completed_at: Gauge = row("convoke_completed_timestamp_seconds", Unit::Seconds);
        /// Wall-clock time of a round, from its first block to its outcome.
        round_time: Histogram = row("convoke_round_seconds", Unit::Seconds).buckets(&LONG);
        /// Where a round's time went: computing, communicating, or waiting for the block clock.
        spent: By<Histogram, 1> = row("convoke_round_spent_seconds", Unit::Seconds)
            .by(&[("on", Values::Fixed(&["computing", "communicating", "waiting"]))]).buckets(&LONG);
        /// Time to aggregate the manifest's payloads, apply them and hash θ.
        outer_step_time: Histogram = row("convoke_outer_step_seconds", Unit::Seconds).buckets(&SHORT);
        /// Contributions in the last manifest.
        contributors: Gauge = row("convoke_contributors", Unit::Count);
        /// The node's own contributions, by whether the manifest had them.
        contributions: By<Counter, 1> = row("convoke_contributions_total", Unit::Count)
            .by(&[("result", Values::Fixed(&["applied", "missed"]))]);
        /// Times the node found its digest of θ off the agreed one. Must stay 0.
        digest_mismatches: Counter = row("convoke_digest_mismatches_total", Unit::Count);
        /// Times the node fetched or replayed the agreed θ, by result.
        resyncs: By<Counter, 1> = row("convoke_resyncs_total", Unit::Count)
            .by(&[("result", Values::Fixed(&["done", "failed"]))]);
    }

    /// What GpuWorker trains.
    GpuWorkerMetrics of "gpu_worker" {
        /// Inner steps done.
        inner_steps: Counter = row("convoke_inner_steps_total", Unit::Count);
        /// Tokens trained on.
        tokens: Counter = row("convoke_tokens_total", Unit::Count);
        /// Time of one inner step.
        inner_step_time: Histogram = row("convoke_inner_step_seconds", Unit::Seconds).buckets(&SHORT);
        /// Training loss of the last inner step, in nats a token; 0 before the first.
        train_loss: Gauge = row("convoke_train_loss", Unit::Count);
        /// Loss on the held-out split after the last outer step, in nats a token; 0 before the first.
        heldout_loss: Gauge = row("convoke_heldout_loss", Unit::Count);
        /// Time to evaluate the held-out split.
        heldout_time: Histogram = row("convoke_heldout_seconds", Unit::Seconds).buckets(&LONG);
        /// Learning rate of the last inner step.
        learning_rate: Gauge = row("convoke_learning_rate", Unit::Count);
        /// Global L2 norm of the last gradient, before clipping.
        gradient_norm: Gauge = row("convoke_gradient_norm", Unit::Count);
    }

    /// What Compressor makes of a pseudo-gradient.
    CompressorMetrics of "compressor" {
        /// Time from a pseudo-gradient to its payload as it travels.
        encode_time: Histogram = row("convoke_encode_seconds", Unit::Seconds).buckets(&SHORT);
        /// Size of the last payload as it travels.
        payload_bytes: Gauge = row("convoke_payload_bytes", Unit::Bytes);
        /// How many times smaller than θ in fp32 the last payload is as it travels.
        payload_ratio: Gauge = row("convoke_payload_ratio", Unit::Count);
        /// L2 norm of the error feedback after the last payload.
        error_feedback_norm: Gauge = row("convoke_error_feedback_norm", Unit::Count);
        /// ‖kept values − their quantised values‖ over ‖kept values‖, of the last payload.
        quantisation_error: Gauge = row("convoke_quantisation_error_ratio", Unit::Count);
        /// Rounds that yielded no payload, such as for a NaN in the pseudo-gradient.
        seals_failed: Counter = row("convoke_seals_failed_total", Unit::Count);
    }

    /// What PeerSync moves.
    PeerSyncMetrics of "peer_sync" {
        /// Bytes of payloads, manifests and state moved.
        bytes: By<Counter, 1> = row("convoke_network_bytes_total", Unit::Bytes)
            .by(&[("direction", Values::Fixed(&["in", "out"]))]);
        /// Time to fetch one blob, from the request to the verified last byte.
        fetch_time: Histogram = row("convoke_fetch_seconds", Unit::Seconds).buckets(&SHORT);
        /// Fetches, by how they ended.
        fetches: By<Counter, 1> = row("convoke_fetches_total", Unit::Count)
            .by(&[("result", Values::Fixed(&["ok", "late", "unavailable", "too-large", "failed"]))]);
        /// Requests of peers that were refused, by reason.
        refused: By<Counter, 1> = row("convoke_requests_refused_total", Unit::Count)
            .by(&[("reason", Values::RefuseReasons)]);
        /// Peers with an open connection.
        peers: Gauge = row("convoke_connected_peers", Unit::Count);
        /// Payloads of the last round that are here.
        gathered: Gauge = row("convoke_payloads_gathered", Unit::Count);
        /// Payloads of the last round that were sealed on chain and did not come.
        missing: Gauge = row("convoke_payloads_missing", Unit::Count);
    }

    /// What Gauntlet finds.
    GauntletMetrics of "gauntlet" {
        /// Payloads whose LossScore was computed.
        evaluations: Counter = row("convoke_evaluations_total", Unit::Count);
        /// Time of one evaluation: losses before and after, on both sample sets.
        evaluation_time: Histogram = row("convoke_evaluation_seconds", Unit::Seconds).buckets(&LONG);
        /// Payloads rejected by the fast checks, by reason.
        rejected: By<Counter, 1> = row("convoke_payloads_rejected_total", Unit::Count)
            .by(&[("reason", Values::RejectReasons)]);
        /// Payloads found to be copies of an earlier seal.
        copies: Counter = row("convoke_copies_total", Unit::Count);
        /// Last LossScore: relative improvement on unassigned samples.
        score: ByUid<Gauge> = row("convoke_score", Unit::Count).by(&[("uid", Values::Uids)]);
        /// OpenSkill ordinal, μ − 3σ.
        rating: ByUid<Gauge> = row("convoke_rating", Unit::Count).by(&[("uid", Values::Uids)]);
        /// Weight as last set on chain, as a share of all.
        weight: ByUid<Gauge> = row("convoke_weight_ratio", Unit::Count).by(&[("uid", Values::Uids)]);
    }

    /// What the node sees of the chain and writes to it.
    ChainMetrics of "chain_writer" {
        /// Number of the best block seen.
        best_block: Gauge = row("convoke_chain_best_block", Unit::Count);
        /// Number of the finalised block seen.
        finalized_block: Gauge = row("convoke_chain_finalized_block", Unit::Count);
        /// When a new best block was last seen, in seconds since 1970; 0 before the first.
        head_seen_at: Gauge = row("convoke_chain_head_timestamp_seconds", Unit::Seconds);
        /// Calls written to the chain, by kind and how they ended.
        calls: By<Counter, 2> = row("convoke_chain_calls_total", Unit::Count).by(&[
            ("kind", Values::CallKinds),
            ("outcome", Values::Fixed(&["included", "retried", "failed"])),
        ]);
        /// Time from sending a call to reading its effect back.
        call_time: Histogram = row("convoke_chain_call_seconds", Unit::Seconds).buckets(&LONG);
        /// The block at which weights were last set; 0 before the first time.
        weights_block: Gauge = row("convoke_weights_block", Unit::Count);
    }

    /// What the supervisor keeps alive.
    SupervisorMetrics of "supervisor" {
        /// 1 while the actor runs, 0 while it is down.
        actor_up: By<Gauge, 1> = row("convoke_actor_up", Unit::Count).by(&[("actor", Values::Actors)]);
        /// Restarts, by actor and reason.
        restarts: By<Counter, 2> = row("convoke_actor_restarts_total", Unit::Count)
            .by(&[("actor", Values::Actors), ("reason", Values::RestartReasons)]);
        /// Times an actor did not answer by its deadline and was replaced.
        hung: By<Counter, 1> = row("convoke_actor_hung_total", Unit::Count).by(&[("actor", Values::Actors)]);
        /// Restarts left before the node gives up and exits with code 70.
        budget_left: By<Gauge, 1> = row("convoke_restart_budget_left", Unit::Count).by(&[("actor", Values::Actors)]);
        /// Faults injected by a test or a drill.
        faults: Counter = row("convoke_faults_injected_total", Unit::Count);
    }

    /// What the node knows about itself. Kept by `Metrics` itself.
    NodeMetrics of "node" {
        /// Always 1; its labels say what runs.
        build: Facts = row("convoke_build_info", Unit::Count).by(&[
            ("version", Values::Once), ("role", Values::Once), ("run_id", Values::Once), ("quantiser", Values::Once),
        ]);
        /// Time since the node started.
        uptime: Gauge = row("convoke_uptime_seconds", Unit::Seconds);
        /// Room left on the file system of the data directory; 0 where it cannot be read.
        disk_free: Gauge = row("convoke_disk_free_bytes", Unit::Bytes);
        /// Lines that events.jsonl lacks, because the disk refused them or they came faster than it writes.
        events_lost: Counter = row("convoke_events_lost_total", Unit::Count);
    }
}

macro_rules! process {
    ($($name:literal $kind:ident $unit:ident $help:literal;)+) => {
        /// What the operating system knows about the process, kept by the crate `metrics-process`.
        const PROCESS: &[Declared] = &[$( row(concat!("convoke_process_", $name), Unit::$unit)
            .declare("process", Kind::$kind, $help) ),+];
    };
}

process! {
    "cpu_seconds_total" Counter Seconds "Total user and system CPU time spent in seconds.";
    "open_fds" Gauge Count "Number of open file descriptors.";
    "max_fds" Gauge Count "Maximum number of open file descriptors.";
    "virtual_memory_bytes" Gauge Bytes "Virtual memory size in bytes.";
    "virtual_memory_max_bytes" Gauge Bytes "Maximum amount of virtual memory available in bytes.";
    "resident_memory_bytes" Gauge Bytes "Resident memory size in bytes.";
    "start_time_seconds" Gauge Seconds "Start time of the process since unix epoch in seconds.";
    "threads" Gauge Count "Number of OS threads in the process.";
}

/// Every metric the node has.
pub fn declared() -> impl Iterator<Item = &'static Declared> {
    TABLES.iter().copied().flatten()
}

impl RoundMetrics {
    /// Counts a round's time by where it went.
    pub fn record_spent(&self, computing: Duration, communicating: Duration, waiting: Duration) {
        for (on, time) in [("computing", computing), ("communicating", communicating), ("waiting", waiting)] {
            self.spent.with([on]).record(time.as_secs_f64());
        }
    }
}

impl GauntletMetrics {
    /// Publishes what is known about a peer.
    pub fn record_peer(&self, uid: Uid, score: f64, rating: f64) {
        self.score.with(uid).set(score);
        self.rating.with(uid).set(rating);
    }
}
