//! What will go wrong in a simulated run, written and drawn.
//!
//! ```text
//! SPEC   = item (',' item)*
//! item   = 'none' | 'mixed' | KIND '=' RATE | PART '=' SHARE | 'hostile' '=' SHARE | script
//! script = who '@' round [':' point] '=' KIND ['~' blocks]
//! who    = node | node '-' node | node '>' node | 'leader' | 'chain'
//! point  = PHASE | ACTOR '.' POINT ['.done'] | EDGE
//! ```
//! | kinds | who | point |
//! |---|---|---|
//! | `die` | a node, nodes, the leader | a phase: as it begins; a point of an actor: in its work, or with `.done` right after it |
//! | `panic`, `hang`, `slow` | a node, nodes, the leader | a point of an actor |
//! | all others of a node | a node, nodes, the leader | none |
//! | `partition` | a node, or nodes, against the rest | none |
//! | `unlink` | what the one sends to the other | none |
//! | `lose-leader` | the leader: the validator with the most stake | a phase |
//! | `fork` | the chain | an edge: `sealed-by`, `reveal`, `gather-until`, `manifest-at`; at once without |
//! | all others of the chain | the chain | none |
//!
//! Rates are per node and round, those of the chain, of the leader and of partitions per round. They become a list of single faults
//! before the run begins, so that a run is a function of its seed, its cast and its list: a failure is made smaller by taking faults out
//! of the list. What is drawn leaves [`CALM_ROUNDS`] of every [`EPISODE_ROUNDS`] alone, in which all that was broken must come back.
//! What takes slots away needs rounds to heal, and neurons that earn: it is drawn early in an episode, and not in the first one.

mod kind;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use convoke::round::{Phase, Role};
use convoke::terms::Round;

use super::cast::Cast;
use super::chance::Chance;
use crate::leaf::Leaf;

pub use self::kind::{Kind, N_KINDS, Reach};

/// Rounds of trouble and the calm after it.
pub const EPISODE_ROUNDS: u64 = 20;
/// The calm ones, last.
pub const CALM_ROUNDS: u64 = 6;
/// The first rounds of an episode, in which slots may change hands.
const SLOT_ROUNDS: u64 = 8;
/// Of so many nodes one at most is parted from the others.
const PARTED_OF: usize = 4;

/// Whom a fault happens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// A node.
    Node(usize),
    /// The nodes from the first to the second of these.
    Nodes(usize, usize),
    /// What the first node sends to the second.
    Link(usize, usize),
    /// The validator with the most stake, whoever it is.
    Leader,
    /// The chain.
    Chain,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Planned {
    /// From which round on; where the point comes only later, there.
    pub round: Round,
    /// To whom it happens.
    pub who: Who,
    /// Where in the round: a phase, an actor and its point, or an edge; empty where the kind needs none.
    pub point: String,
    /// What.
    pub kind: Kind,
    /// For how many blocks, where it lasts.
    pub blocks: u64,
}

impl Planned {
    /// The node, where it is one.
    #[must_use]
    pub fn node(&self) -> Option<usize> {
        match self.who {
            Who::Node(node) => Some(node),
            _ => None,
        }
    }
}

impl Who {
    /// What draws about it are keyed by.
    #[must_use]
    pub fn key(self) -> u64 {
        match self {
            Self::Node(node) => node as u64,
            Self::Nodes(first, last) | Self::Link(first, last) => ((first as u64 + 1) << 32) | last as u64,
            Self::Leader => u64::MAX - 1,
            Self::Chain => u64::MAX,
        }
    }
}

/// Why a spec is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{item}` is no fault: {why}. Write none, mixed, KIND=RATE, PART=SHARE or WHO@ROUND[:POINT]=KIND[~BLOCKS], with commas between"
)]
pub struct NotASpec {
    item: String,
    why: String,
}

/// What was asked for: rates, and single faults.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FaultSpec {
    rates: Vec<(Kind, f64)>,
    script: Vec<Planned>,
    cast: Cast,
}

/// The nodes that faults are drawn for.
#[derive(Debug, Clone)]
pub struct Ground<'a> {
    /// What each node does.
    pub roles: &'a [Role],
    /// Rounds of the run.
    pub rounds: u64,
    /// Whether the node is honest and so shall be disturbed.
    pub disturbed: &'a [bool],
}

impl FaultSpec {
    /// Who is not honest.
    #[must_use]
    pub fn cast(&self) -> &Cast {
        &self.cast
    }

    /// The same nodes, honest or not, and these faults alone.
    #[must_use]
    pub fn with_script(&self, script: Vec<Planned>) -> Self {
        Self { rates: Vec::new(), script, cast: self.cast.clone() }
    }

    /// The single faults of a run, ascending by round.
    #[must_use]
    pub fn plan(&self, seed: u64, ground: &Ground<'_>) -> Vec<Planned> {
        let chance = Chance::new(seed);
        let mut plan = self.script.clone();
        for (kind, rate) in &self.rates {
            for round in (1..ground.rounds).filter(|round| may_be_in(*kind, *round)) {
                plan.extend(drawn(chance, *kind, *rate, Round(round), ground));
            }
        }
        plan.sort();
        plan
    }
}

/// Whether a kind may be drawn in a round.
fn may_be_in(kind: Kind, round: u64) -> bool {
    let of_episode = round % EPISODE_ROUNDS;
    if kind.is_of_slots() {
        round >= EPISODE_ROUNDS && of_episode < SLOT_ROUNDS
    } else {
        of_episode < EPISODE_ROUNDS - CALM_ROUNDS
    }
}

fn drawn<'a>(
    chance: Chance,
    kind: Kind,
    rate: f64,
    round: Round,
    ground: &'a Ground<'_>,
) -> impl Iterator<Item = Planned> + 'a {
    let nodes = if kind.is_drawn_once() { 0..1 } else { 0..ground.roles.len() };
    nodes.filter_map(move |node| {
        let which = [kind as u64, round.0, node as u64];
        let may_be = kind.is_drawn_once() || (ground.disturbed[node] && kind.suits(ground.roles[node]));
        if !may_be || chance.share("fault", &which) >= rate {
            return None;
        }
        let (least, more) = kind.blocks();
        let blocks = least + chance.below(more as usize + 1, "blocks", &which) as u64;
        let points = kind.points(ground.roles[node]);
        let point = points.get(chance.below(points.len(), "point", &which)).copied().unwrap_or_default();
        let who = drawn_who(chance, kind, node, ground.roles.len(), &which);
        Some(Planned { round, who, point: point.to_owned(), kind, blocks })
    })
}

fn drawn_who(chance: Chance, kind: Kind, node: usize, n_nodes: usize, which: &[u64]) -> Who {
    match kind.reach() {
        Reach::Node => Who::Node(node),
        Reach::Chain => Who::Chain,
        Reach::Leader => Who::Leader,
        // Never the node itself, unless it is alone.
        Reach::Link => {
            Who::Link(node, (node + 1 + chance.below(n_nodes.saturating_sub(1), "to", which)) % n_nodes.max(1))
        }
        Reach::Set => {
            let first = chance.below(n_nodes, "from", which);
            let more = chance.below(n_nodes / PARTED_OF, "parted", which);
            Who::Nodes(first, (first + more).min(n_nodes.saturating_sub(1)))
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "{node}"),
            Self::Nodes(first, last) => write!(f, "{first}-{last}"),
            Self::Link(from, to) => write!(f, "{from}>{to}"),
            Self::Leader => f.write_str("leader"),
            Self::Chain => f.write_str("chain"),
        }
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.who, self.round.0)?;
        if !self.point.is_empty() {
            write!(f, ":{}", self.point)?;
        }
        write!(f, "={}", self.kind)?;
        if self.blocks > 0 { write!(f, "~{}", self.blocks) } else { Ok(()) }
    }
}

/// The single faults and the cast as a spec.
#[must_use]
pub fn written(plan: &[Planned], cast: &Cast) -> String {
    let items: Vec<String> = cast.written().into_iter().chain(plan.iter().map(ToString::to_string)).collect();
    if items.is_empty() { "none".to_owned() } else { items.join(",") }
}

impl FromStr for FaultSpec {
    type Err = NotASpec;

    fn from_str(text: &str) -> Result<Self, NotASpec> {
        let mut spec = Self::default();
        for item in text.split(',').map(str::trim) {
            let refused = |why: &str| NotASpec { item: item.to_owned(), why: why.to_owned() };
            match item {
                "none" => {}
                "mixed" => spec.rates.extend(Kind::ALL.map(|kind| (kind, kind.mixed_rate()))),
                _ if item.contains('@') => spec.script.push(read_script(item).map_err(refused)?),
                _ => spec.take_rate(item).map_err(refused)?,
            }
        }
        Ok(spec)
    }
}

impl FaultSpec {
    /// A rate of a kind of fault, or the share of those who play a part.
    fn take_rate(&mut self, item: &str) -> Result<(), &'static str> {
        let (name, rate) = item.split_once('=').ok_or("a rate is missing")?;
        let rate = rate.parse().ok().filter(|rate| (0.0..=1.0).contains(rate)).ok_or("a rate is from 0 to 1")?;
        match self.cast.clone().with(name, rate) {
            Some(cast) => self.cast = cast,
            None => self.rates.push((read_kind(name)?, rate)),
        }
        Ok(())
    }
}

fn read_kind(text: &str) -> Result<Kind, &'static str> {
    Kind::ALL.into_iter().find(|kind| kind.name() == text).ok_or("there is no such kind")
}

fn read_script(item: &str) -> Result<Planned, &'static str> {
    let (place, what) = item.split_once('=').ok_or("what happens is missing")?;
    let (who, when) = place.split_once('@').ok_or("who is missing")?;
    let (round, point) = when.split_once(':').unwrap_or((when, ""));
    let (kind, blocks) = what.split_once('~').unwrap_or((what, "0"));
    let (kind, who) = (read_kind(kind)?, read_who(who)?);
    check_reach(kind, who)?;
    check_point(kind, point)?;
    Ok(Planned {
        round: Round(round.parse().map_err(|_| "the round is a number")?),
        who,
        point: point.to_owned(),
        kind,
        blocks: blocks.parse().map_err(|_| "the blocks are a number")?,
    })
}

fn read_who(text: &str) -> Result<Who, &'static str> {
    let node = |text: &str| {
        let node: Option<u32> = text.parse().ok();
        node.map(|node| node as usize).ok_or("who it is about is a node's number, FIRST-LAST, FROM>TO, leader or chain")
    };
    match text {
        "chain" => Ok(Who::Chain),
        "leader" => Ok(Who::Leader),
        _ => {
            if let Some((from, to)) = text.split_once('>') {
                return Ok(Who::Link(node(from)?, node(to)?));
            }
            let Some((first, last)) = text.split_once('-') else { return node(text).map(Who::Node) };
            let (first, last) = (node(first)?, node(last)?);
            if first <= last { Ok(Who::Nodes(first, last)) } else { Err("of the nodes the first comes first") }
        }
    }
}

/// Whether the kind happens to such as these.
fn check_reach(kind: Kind, who: Who) -> Result<(), &'static str> {
    let fits = match kind.reach() {
        Reach::Node => matches!(who, Who::Node(_) | Who::Nodes(..) | Who::Leader),
        Reach::Set => matches!(who, Who::Node(_) | Who::Nodes(..)),
        Reach::Link => matches!(who, Who::Link(..)),
        Reach::Leader => who == Who::Leader,
        Reach::Chain => who == Who::Chain,
    };
    if fits { Ok(()) } else { Err("that does not happen to it") }
}

/// Whether the kind can strike there.
fn check_point(kind: Kind, point: &str) -> Result<(), &'static str> {
    let is_of_actor =
        point.split_once('.').is_some_and(|(leaf, point)| Leaf::NAMES.contains(&leaf) && !point.is_empty());
    let is_phase = Phase::NAMES.contains(&point);
    match kind {
        Kind::Hang if point == "gpu-worker.mid-inner-steps" => {
            Err("there the work itself would wait, and with it the only thread there is: take gpu-worker.inner-steps")
        }
        Kind::Die if !is_phase && !is_of_actor => Err("it needs a phase, or ACTOR.POINT"),
        Kind::LoseLeader if !is_phase => Err("it needs a phase"),
        Kind::Panic | Kind::Hang | Kind::Slow if !is_of_actor => Err("it needs ACTOR.POINT"),
        Kind::Fork if !point.is_empty() && !kind::EDGES.contains(&point) => {
            Err("a fork's point is an edge: sealed-by, reveal, gather-until or manifest-at")
        }
        _ => Ok(()),
    }
}
