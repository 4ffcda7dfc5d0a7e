//! What the nodes of a simulated run meet at this moment: links, slowness. The world changes it, the fakes ask it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use convoke::terms::{EndpointId, Round};
use tokio::time::Instant;

use super::chance::Chance;
use super::net::{Link, Links};
use crate::leaf::Leaf;
use crate::workbench::Pace;

/// Latency between two nodes.
const LATENCY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(120));
/// What is added to it where messages are delayed.
const DELAY: (Duration, Duration) = (Duration::from_millis(600), Duration::from_millis(2500));
/// Instead of it, where they come in another order; drawn anew for each.
const DISORDER: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(1500));
/// What a link carries a second.
const BYTES_PER_SECOND: u64 = 2_000_000;
/// What one carries that is throttled: a payload of a simulated run, which has some hundred bytes, takes a good part of a block.
const THROTTLED_BYTES_PER_SECOND: u64 = 500;
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
    /// Messages take long.
    pub is_delayed: bool,
    /// Messages come twice.
    pub is_doubled: bool,
    /// Messages come in another order.
    pub is_disordered: bool,
    /// Its links carry little.
    pub is_throttled: bool,
    /// Who asks it for θ gets another one.
    pub lies: bool,
    /// With its next seal or vote it says another thing first.
    pub equivocates: bool,
    /// An actor whose work is slow, at this point.
    pub slow: Option<(Leaf, String)>,
}

/// Between whom nothing passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wall {
    /// Between the nodes from the first to the second of these, and all others, both ways.
    Around(usize, usize),
    /// From the first to the second, that way alone.
    Between(usize, usize),
}

impl Wall {
    fn stops(self, from: usize, to: usize) -> bool {
        match self {
            Self::Around(first, last) => (first..=last).contains(&from) != (first..=last).contains(&to),
            Self::Between(sender, receiver) => (sender, receiver) == (from, to),
        }
    }
}

/// The conditions of all nodes.
#[derive(Debug)]
pub struct Weather {
    chance: Chance,
    block_time: Duration,
    started: Instant,
    nodes: BTreeMap<EndpointId, usize>,
    air: Mutex<Air>,
}

/// What changes.
#[derive(Debug)]
struct Air {
    troubles: Vec<Trouble>,
    walls: Vec<Wall>,
}

impl Weather {
    /// Calm, for these nodes.
    #[must_use]
    pub fn new(chance: Chance, block_time: Duration, endpoints: &[EndpointId]) -> Self {
        let nodes = endpoints.iter().enumerate().map(|(idx, id)| (*id, idx)).collect();
        let air = Air { troubles: vec![Trouble::default(); endpoints.len()], walls: Vec::new() };
        Self { chance, block_time, started: Instant::now(), nodes, air: Mutex::new(air) }
    }

    fn air(&self) -> MutexGuard<'_, Air> {
        self.air.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is wrong with a node.
    pub fn change(&self, node: usize, change: impl FnOnce(&mut Trouble)) {
        if let Some(trouble) = self.air().troubles.get_mut(node) {
            change(trouble);
        }
    }

    /// Builds a wall, or takes one down; of two alike the other stands on.
    pub fn build(&self, wall: Wall, stands: bool) {
        let mut air = self.air();
        if stands {
            air.walls.push(wall);
        } else if let Some(idx) = air.walls.iter().position(|standing| *standing == wall) {
            air.walls.swap_remove(idx);
        }
    }

    /// Whether a node shall say two things.
    #[must_use]
    pub fn equivocates(&self, node: usize) -> bool {
        self.air().troubles.get(node).is_some_and(|trouble| trouble.equivocates)
    }

    /// The benches of one node.
    #[must_use]
    pub fn pace(self: &Arc<Self>, node: usize) -> Arc<dyn Pace> {
        Arc::new(NodePace { weather: Arc::clone(self), node })
    }

    /// How the link between two nodes is, for a request that is about this.
    fn link(&self, air: &Air, from: usize, to: usize, about: u64) -> Link {
        let (sender, receiver) = (&air.troubles[from], &air.troubles[to]);
        let either = |is: fn(&Trouble) -> bool| is(sender) || is(receiver);
        let which = [from as u64, to as u64, about];
        // Who asks again has another chance.
        let asked_at = u64::try_from(self.started.elapsed().as_millis() / 100).unwrap_or(u64::MAX);
        let this_time = [which[0], which[1], about, asked_at];
        let is_lossy = either(|trouble| trouble.is_lossy);
        let is_lost = is_lossy && self.chance.share("loss", &this_time) < LOSS;
        let is_walled = air.walls.iter().any(|wall| wall.stops(from, to));
        let mut latency = self.chance.span(LATENCY.0, LATENCY.1, "latency", &which);
        if either(|trouble| trouble.is_disordered) {
            latency = self.chance.span(DISORDER.0, DISORDER.1, "disorder", &this_time);
        }
        if either(|trouble| trouble.is_delayed) {
            latency += self.chance.span(DELAY.0, DELAY.1, "delay", &which);
        }
        let is_throttled = either(|trouble| trouble.is_throttled);
        Link {
            is_up: !(either(|trouble| trouble.is_cut) || is_lost || is_walled),
            latency,
            bytes_per_second: Some(if is_throttled { THROTTLED_BYTES_PER_SECOND } else { BYTES_PER_SECOND }),
            is_corrupt: sender.corrupts,
            is_lying: sender.lies,
            is_withheld: sender.withholds,
            repeats: is_lossy || either(|trouble| trouble.is_doubled),
        }
    }
}

impl Links for Weather {
    fn at(&self, from: EndpointId, to: EndpointId, content: &[u8; 32]) -> Link {
        let (Some(&from), Some(&to)) = (self.nodes.get(&from), self.nodes.get(&to)) else {
            return Link { is_up: false, ..Link::default() };
        };
        let about = u64::from_le_bytes(content[..8].try_into().expect("eight of 32 bytes"));
        self.link(&self.air(), from, to, about)
    }
}

struct NodePace {
    weather: Arc<Weather>,
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
            let air = self.weather.air();
            air.troubles[self.node].slow.as_ref().is_some_and(|(slow, at)| *slow == leaf && at == point)
        };
        self.weather.block_time.mul_f64(blocks * jitter * if is_slow { SLOW } else { 1.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: usize = 4;

    fn id(node: usize) -> EndpointId {
        EndpointId([node as u8; 32])
    }

    fn weather() -> Weather {
        let endpoints: Vec<EndpointId> = (0..NODES).map(id).collect();
        Weather::new(Chance::new(3), Duration::from_secs(1), &endpoints)
    }

    fn at(weather: &Weather, from: usize, to: usize) -> Link {
        weather.at(id(from), id(to), &[7; 32])
    }

    /// The links over which something passes.
    fn up(weather: &Weather) -> Vec<(usize, usize)> {
        let links = (0..NODES).flat_map(|from| (0..NODES).map(move |to| (from, to)));
        links.filter(|(from, to)| from != to && at(weather, *from, *to).is_up).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_partition_has_two_sides_and_heals() {
        let weather = weather();
        let calm = up(&weather);
        assert_eq!(calm.len(), 12);
        weather.build(Wall::Around(1, 2), true);
        assert_eq!(up(&weather), [(0, 3), (1, 2), (2, 1), (3, 0)]);
        // Two at once; each heals by itself.
        weather.build(Wall::Around(1, 2), true);
        weather.build(Wall::Around(1, 2), false);
        assert_eq!(up(&weather).len(), 4);
        weather.build(Wall::Around(1, 2), false);
        assert_eq!(up(&weather), calm);
    }

    #[tokio::test(start_paused = true)]
    async fn one_way_of_one_link_is_cut() {
        let weather = weather();
        weather.build(Wall::Between(2, 0), true);
        assert!(!at(&weather, 2, 0).is_up && at(&weather, 0, 2).is_up);
        assert_eq!(up(&weather).len(), 11);
    }

    #[tokio::test(start_paused = true)]
    async fn a_capped_node_sends_and_receives_little_and_the_others_as_before() {
        let weather = weather();
        weather.change(1, |trouble| trouble.is_throttled = true);
        let rate = |from, to| at(&weather, from, to).bytes_per_second.unwrap();
        assert_eq!([rate(1, 0), rate(0, 1), rate(0, 2)], [500, 500, 2_000_000]);
    }

    #[tokio::test(start_paused = true)]
    async fn messages_are_delayed_doubled_and_put_in_another_order() {
        let weather = weather();
        let calm = at(&weather, 0, 1);
        assert!(calm.latency < LATENCY.1 && !calm.repeats);
        weather.change(1, |trouble| trouble.is_doubled = true);
        assert!(at(&weather, 0, 1).repeats && at(&weather, 1, 0).repeats && !at(&weather, 0, 2).repeats);
        weather.change(1, |trouble| *trouble = Trouble { is_delayed: true, ..Trouble::default() });
        assert!(at(&weather, 0, 1).latency >= calm.latency + DELAY.0);

        weather.change(1, |trouble| *trouble = Trouble { is_disordered: true, ..Trouble::default() });
        let latency = |content: u8| weather.at(id(0), id(1), &[content; 32]).latency;
        let latencies: Vec<Duration> = (0..20).map(latency).collect();
        assert!(!latencies.is_sorted(), "what was asked for first is not what comes first");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_ne!((0..20).map(latency).collect::<Vec<_>>(), latencies, "nor is it so every time");
        weather.change(1, |trouble| *trouble = Trouble::default());
        assert_eq!(at(&weather, 0, 1), calm);
    }
}
