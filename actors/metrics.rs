//! What a node measures, for `/metrics`: one recorder a node, one table of all metrics, typed handles for the actors.
//!
//! An actor holds an `Arc<Metrics>` and writes `metrics.gpu_worker.tokens.increment(n)`: no names, no lookups, and a
//! metric that is not in the table does not compile. Everything in the table is in the exposition from the first
//! scrape on (but for series by uid), so a board never shows "no data" for what merely has not happened yet.
//!
//! The exporter's own listener is not used: `http` serves [`Metrics::render`] beside the other pages. A histogram
//! without buckets would silently become a summary, which cannot be added up over nodes; each has its buckets in the
//! table, set for its full name.

mod instrument;
mod table;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::events::Events;

pub use instrument::{By, ByUid, Declared, Facts, Handle, Kind, Values, Vocabulary};
pub use table::{
    ChainMetrics, CompressorMetrics, GauntletMetrics, GpuWorkerMetrics, NodeMetrics, PeerSyncMetrics, RoundMetrics,
    SupervisorMetrics, declared,
};

/// How often the samples of the histograms are folded into their buckets when nobody scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// What runs, as labels: `node` is on every series, the others on `convoke_build_info`.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// The node's name.
    pub node: String,
    /// The program's version.
    pub version: String,
    /// Miner, validator, or both.
    pub role: String,
    /// The run's id; its first digits will do.
    pub run_id: String,
    /// How kept values are written.
    pub quantiser: String,
}

/// A node's metrics: one struct a part of the node.
pub struct Metrics {
    /// RoundClock's.
    pub round: RoundMetrics,
    /// GpuWorker's.
    pub gpu_worker: GpuWorkerMetrics,
    /// Compressor's.
    pub compressor: CompressorMetrics,
    /// PeerSync's.
    pub peer_sync: PeerSyncMetrics,
    /// Gauntlet's.
    pub gauntlet: GauntletMetrics,
    /// The chain's: ChainWriter's and, for the heads, RoundClock's.
    pub chain: ChainMetrics,
    /// The supervisor's.
    pub supervisor: SupervisorMetrics,
    /// The node's own, kept here.
    pub node: NodeMetrics,
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    process: metrics_process::Collector,
    started: Instant,
    disk: OnceLock<PathBuf>,
    events: OnceLock<Events>,
}

impl Metrics {
    /// A registry with every metric of the table at zero.
    #[must_use]
    pub fn new(facts: &NodeFacts, vocabulary: &Vocabulary) -> Arc<Self> {
        let mut builder = PrometheusBuilder::new().add_global_label("node", &facts.node);
        for metric in declared().filter(|metric| metric.kind == Kind::Histogram) {
            builder = builder
                .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), metric.buckets)
                .expect("every histogram of the table has buckets");
        }
        let recorder = Arc::new(builder.build_recorder());
        declared().for_each(|metric| metric.describe(&recorder));
        let maker = instrument::Maker { recorder: &recorder, vocabulary };
        let metrics = Self {
            round: RoundMetrics::new(&maker),
            gpu_worker: GpuWorkerMetrics::new(&maker),
            compressor: CompressorMetrics::new(&maker),
            peer_sync: PeerSyncMetrics::new(&maker),
            gauntlet: GauntletMetrics::new(&maker),
            chain: ChainMetrics::new(&maker),
            supervisor: SupervisorMetrics::new(&maker),
            node: NodeMetrics::new(&maker),
            handle: recorder.handle(),
            process: metrics_process::Collector::new("convoke_"),
            started: Instant::now(),
            disk: OnceLock::new(),
            events: OnceLock::new(),
            recorder,
        };
        metrics.node.build.publish(&[&facts.version, &facts.role, &facts.run_id, &facts.quantiser]);
        Arc::new(metrics)
    }

    /// Watches the room left on the file system that holds `path`, the data directory. The first call counts.
    pub fn watch_disk(&self, path: impl Into<PathBuf>) {
        self.disk.get_or_init(|| path.into());
    }

    /// Counts the lines that this event file lost. The first call counts.
    pub fn watch_events(&self, events: &Events) {
        self.events.get_or_init(|| events.clone());
    }

    /// The exposition, in Prometheus' text format 0.0.4, with the process read afresh.
    #[must_use]
    pub fn render(&self) -> String {
        self.node.uptime.set(self.started.elapsed().as_secs_f64());
        if let Some(stat) = self.disk.get().and_then(|path| rustix::fs::statvfs(path).ok()) {
            self.node.disk_free.set((stat.f_bavail.saturating_mul(stat.f_frsize)) as f64);
        }
        if let Some(events) = self.events.get() {
            self.node.events_lost.absolute(events.lost());
        }
        // The collector writes with the crate's macros; here they go to this node's recorder and not the process's.
        ::metrics::with_local_recorder(&*self.recorder, || self.process.collect());
        self.handle.render()
    }

    /// Folds the histograms' samples into their buckets; without it or a scrape, they pile up in memory.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

/// Does the upkeep of a node's metrics until they are dropped. `http` starts it; a node without pages must itself.
pub fn spawn_upkeep(metrics: &Arc<Metrics>) -> tokio::task::JoinHandle<()> {
    let metrics = Arc::downgrade(metrics);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP_INTERVAL).await;
            let Some(metrics) = metrics.upgrade() else { return };
            metrics.upkeep();
        }
    })
}

/// Seconds since 1970, as the metrics that are named `…_timestamp_seconds` want them.
#[must_use]
pub fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests;
