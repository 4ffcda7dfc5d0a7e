//! What the nodes of a simulated run meet at this moment: links, slowness. The world changes it, the fakes ask it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use convoke::terms::{EndpointId, Round};
use tokio::time::Instant;

use super::chance::Chance;
use super::net::{Link, Links};
use crate::leaf::Leaf;
use crate::workbench::Pace;

/// Latency between two nodes.
const LATENCY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(120));
/// What a node that loses messages loses of them.
const LOSS: f64 = 0.3;
/// How much longer slow work takes.
const SLOW: f64 = 12.0;

/// What is wrong with one node.
#[derive(Debug, Clone, Default)]
pub struct Trouble {
    /// Nobody is reached.
    pub is_cut: bool,
    /// Messages get lost.
    pub is_lossy: bool,
    /// It answers nobody.
    pub withholds: bool,
    /// What it sends has another bit.
    pub corrupts: bool,
    /// An actor whose work is slow, at this point.
    pub slow: Option<(Leaf, String)>,
}

/// The conditions of all nodes.
#[derive(Debug)]
pub struct Weather {
    chance: Chance,
    block_time: Duration,
    started: Instant,
    nodes: BTreeMap<EndpointId, usize>,
    troubles: Mutex<Vec<Trouble>>,
}

impl Weather {
    /// Calm, for these nodes.
    #[must_use]
    pub fn new(chance: Chance, block_time: Duration, endpoints: &[EndpointId]) -> Self {
        let nodes = endpoints.iter().enumerate().map(|(idx, id)| (*id, idx)).collect();
        Self {
            chance,
            block_time,
            started: Instant::now(),
            nodes,
            troubles: Mutex::new(vec![Trouble::default(); endpoints.len()]),
        }
    }

    fn troubles(&self) -> MutexGuard<'_, Vec<Trouble>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is wrong with a node.
    pub fn change(&self, node: usize, change: impl FnOnce(&mut Trouble)) {
        if let Some(trouble) = self.troubles().get_mut(node) {
            change(trouble);
        }
    }

    /// The benches of one node.
    #[must_use]
    pub fn pace(self: &std::sync::Arc<Self>, node: usize) -> std::sync::Arc<dyn Pace> {
        std::sync::Arc::new(NodePace { weather: std::sync::Arc::clone(self), node })
    }
}

impl Links for Weather {
    fn at(&self, from: EndpointId, to: EndpointId, content: &[u8; 32]) -> Link {
        let (Some(&from), Some(&to)) = (self.nodes.get(&from), self.nodes.get(&to)) else {
            return Link { is_up: false, ..Link::default() };
        };
        let about = u64::from_le_bytes(content[..8].try_into().expect("eight of 32 bytes"));
        let which = [from as u64, to as u64, about];
        // Who asks again has another chance.
        let asked_at = u64::try_from(self.started.elapsed().as_millis() / 100).unwrap_or(u64::MAX);
        let troubles = self.troubles();
        let (sender, receiver) = (&troubles[from], &troubles[to]);
        let is_lossy = sender.is_lossy || receiver.is_lossy;
        let is_lost = is_lossy && self.chance.share("loss", &[which[0], which[1], about, asked_at]) < LOSS;
        Link {
            is_up: !(sender.is_cut || receiver.is_cut || is_lost),
            latency: self.chance.span(LATENCY.0, LATENCY.1, "latency", &which),
            bytes_per_second: Some(2_000_000),
            is_corrupt: sender.corrupts,
            is_withheld: sender.withholds,
            repeats: is_lossy,
        }
    }
}

struct NodePace {
    weather: std::sync::Arc<Weather>,
    node: usize,
}

impl Pace for NodePace {
    fn cost(&self, leaf: Leaf, point: &'static str, round: Round) -> Duration {
        let blocks = match (leaf, point) {
            (Leaf::GpuWorker, "inner-steps") => 1.5,
            (Leaf::GpuWorker, "evaluate") => 0.05,
            (Leaf::Compressor, "compress" | "outer-step") => 0.2,
            _ => 0.02,
        };
        let which = [self.node as u64, leaf as u64, round.0];
        let jitter = 0.75 + 0.5 * self.weather.chance.share("pace", &which);
        let is_slow = {
            let troubles = self.weather.troubles();
            troubles[self.node].slow.as_ref().is_some_and(|(slow, at)| *slow == leaf && at == point)
        };
        self.weather.block_time.mul_f64(blocks * jitter * if is_slow { SLOW } else { 1.0 })
    }
}
