//! What will go wrong in a simulated run, written and drawn.
//!
//! ```text
//! SPEC   = item (',' item)*
//! item   = 'none' | 'mixed' | KIND '=' RATE | PART '=' SHARE | 'hostile' '=' SHARE | script
//! script = who '@' round [':' point] '=' KIND ['~' blocks]
//! who    = number of a node | 'chain'
//! ```
//!
//! Rates are per node and round, those of the chain per round. They become a list of single faults before the run begins, so
//! that a run is a function of its seed, its cast and its list: a failure is made smaller by taking faults out of the list. What is drawn
//! leaves [`CALM_ROUNDS`] of every [`EPISODE_ROUNDS`] alone, in which all that was broken must come back.

use std::fmt;
use std::str::FromStr;

use convoke::round::Role;
use convoke::terms::Round;

use super::cast::Cast;
use super::chance::Chance;

/// Rounds of trouble and the calm after it.
pub const EPISODE_ROUNDS: u64 = 20;
/// The calm ones, last.
pub const CALM_ROUNDS: u64 = 6;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The process dies at the beginning of a phase, and is started again after some blocks.
    Die,
    /// An actor panics.
    Panic,
    /// An actor, or its bench, never goes on.
    Hang,
    /// An actor's work takes many times as long in this round.
    Slow,
    /// No peer is reached, nor reaches the node.
    Cut,
    /// A part of what is asked of the node or by it gets lost.
    Loss,
    /// The node answers no request for its own payload.
    Withhold,
    /// The node's payload arrives with another bit.
    Corrupt,
    /// The node's disk is full.
    DiskFull,
    /// One bit of θ is another after the outer step.
    Flip,
    /// The node's next call is held back.
    DelayCall,
    /// The node's next call is in no block.
    DropCall,
    /// The node's next call is in a block, and nobody tells it.
    LoseAnswer,
    /// No blocks are made.
    Stall,
    /// No blocks become final.
    StallFinality,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Die,
        Self::Panic,
        Self::Hang,
        Self::Slow,
        Self::Cut,
        Self::Loss,
        Self::Withhold,
        Self::Corrupt,
        Self::DiskFull,
        Self::Flip,
        Self::DelayCall,
        Self::DropCall,
        Self::LoseAnswer,
        Self::Stall,
        Self::StallFinality,
    ];

    /// The name in a spec.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Die => "die",
            Self::Panic => "panic",
            Self::Hang => "hang",
            Self::Slow => "slow",
            Self::Cut => "cut",
            Self::Loss => "loss",
            Self::Withhold => "withhold",
            Self::Corrupt => "corrupt",
            Self::DiskFull => "disk-full",
            Self::Flip => "flip",
            Self::DelayCall => "delay-call",
            Self::DropCall => "drop-call",
            Self::LoseAnswer => "lose-answer",
            Self::Stall => "stall",
            Self::StallFinality => "stall-finality",
        }
    }

    /// Whether it is the chain's and no node's.
    #[must_use]
    pub fn is_of_chain(self) -> bool {
        matches!(self, Self::Stall | Self::StallFinality)
    }

    /// How often it happens in the mixed run, a node (or the chain) and round.
    fn mixed_rate(self) -> f64 {
        match self {
            Self::Die => 0.004,
            Self::Panic => 0.006,
            Self::Hang | Self::Slow | Self::Withhold | Self::Corrupt | Self::DiskFull => 0.001,
            Self::Cut | Self::Loss => 0.002,
            Self::Flip => 0.000_5,
            Self::DelayCall | Self::DropCall | Self::LoseAnswer => 0.002,
            Self::Stall => 0.01,
            Self::StallFinality => 0.01,
        }
    }

    /// Blocks it lasts: at least, and how many more at most.
    fn blocks(self) -> (u64, u64) {
        match self {
            Self::Die => (1, 24),
            Self::Cut | Self::Loss | Self::DiskFull => (4, 16),
            Self::Stall | Self::StallFinality => (2, 12),
            Self::DelayCall => (1, 4),
            _ => (0, 0),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Planned {
    /// From which round on; where the point comes only later, there.
    pub round: Round,
    /// Which node; the chain otherwise.
    pub node: Option<usize>,
    /// Where in the round: a phase, or an actor and its point; empty where the kind needs none.
    pub point: String,
    /// What.
    pub kind: Kind,
    /// For how many blocks, where it lasts.
    pub blocks: u64,
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
            for round in (1..ground.rounds).filter(|round| round % EPISODE_ROUNDS < EPISODE_ROUNDS - CALM_ROUNDS) {
                plan.extend(drawn(chance, *kind, *rate, Round(round), ground));
            }
        }
        plan.sort();
        plan
    }
}

fn drawn<'a>(
    chance: Chance,
    kind: Kind,
    rate: f64,
    round: Round,
    ground: &'a Ground<'_>,
) -> impl Iterator<Item = Planned> + 'a {
    let nodes = if kind.is_of_chain() { 0..1 } else { 0..ground.roles.len() };
    nodes.filter_map(move |node| {
        let which = [kind as u64, round.0, node as u64];
        let of_chain = kind.is_of_chain();
        if (!of_chain && !ground.disturbed[node]) || chance.share("fault", &which) >= rate {
            return None;
        }
        let (least, more) = kind.blocks();
        let blocks = least + chance.below(more as usize + 1, "blocks", &which) as u64;
        let points = points(kind, ground.roles[node]);
        let point = points.get(chance.below(points.len(), "point", &which)).copied().unwrap_or_default();
        Some(Planned { round, node: (!of_chain).then_some(node), point: point.to_owned(), kind, blocks })
    })
}

/// Where a kind of fault may strike.
fn points(kind: Kind, role: Role) -> Vec<&'static str> {
    const MINER: [&str; 3] = ["inner-steps", "compressing", "sealing"];
    const ALL: [&str; 6] = ["awaiting-reveal", "gathering", "awaiting-manifest", "deciding", "outer-step", "saving"];
    const MINER_WORK: [&str; 4] =
        ["gpu-worker.inner-steps", "compressor.compress", "peer-sync.publish", "chain-writer.seal"];
    const VALIDATOR_WORK: [&str; 5] =
        ["gpu-worker.evaluate", "gauntlet.propose", "gauntlet.plan", "gauntlet.rate", "chain-writer.vote"];
    const WORK: [&str; 9] = [
        "gpu-worker.load",
        "gpu-worker.save",
        "compressor.outer-step",
        "compressor.save",
        "peer-sync.gather",
        "peer-sync.admit",
        "gauntlet.check",
        "round-clock.head",
        "round-clock.deciding",
    ];
    let (miner, validator, all): (&[&str], &[&str], &[&str]) = match kind {
        Kind::Die => (&MINER, &[], &ALL),
        Kind::Panic | Kind::Hang => (&MINER_WORK, &VALIDATOR_WORK, &WORK),
        Kind::Slow => (&["gpu-worker.inner-steps"], &["gauntlet.check"], &["compressor.outer-step"]),
        _ => (&[], &[], &[]),
    };
    let miner = miner.iter().filter(|_| role.mines());
    let validator = validator.iter().filter(|_| role.validates());
    miner.chain(validator).chain(all).copied().collect()
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node {
            Some(node) => write!(f, "{node}@{}", self.round.0)?,
            None => write!(f, "chain@{}", self.round.0)?,
        }
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
    let kind = read_kind(kind)?;
    let node = match who {
        "chain" => None,
        node => Some(node.parse().map_err(|_| "who it is about is a node's number, or chain")?),
    };
    if kind.is_of_chain() != node.is_none() {
        return Err("that does not happen to it");
    }
    Ok(Planned {
        round: Round(round.parse().map_err(|_| "the round is a number")?),
        node,
        point: point.to_owned(),
        kind,
        blocks: blocks.parse().map_err(|_| "the blocks are a number")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLES: [Role; 4] = [Role::Validator, Role::Miner, Role::Miner, Role::Miner];

    fn ground(rounds: u64) -> Ground<'static> {
        Ground { roles: &ROLES, rounds, disturbed: &[true; 4] }
    }

    #[test]
    fn a_drawn_plan_is_read_back_as_it_was_written() {
        let spec: FaultSpec = "mixed".parse().unwrap();
        let plan = spec.plan(3, &ground(2000));
        assert!(plan.len() > 100, "{}", plan.len());
        assert_eq!(written(&plan, &Cast::default()).parse::<FaultSpec>().unwrap().plan(99, &ground(2000)), plan);
        assert_eq!(spec.plan(3, &ground(2000)), plan);
        assert_ne!(spec.plan(4, &ground(2000)), plan);
    }

    #[test]
    fn every_kind_is_drawn_and_none_in_the_calm() {
        let spec: FaultSpec = "mixed".parse().unwrap();
        let plan = spec.plan(1, &ground(20_000));
        for kind in Kind::ALL {
            assert!(plan.iter().any(|planned| planned.kind == kind), "{kind}");
        }
        assert!(plan.iter().all(|planned| planned.round.0 % EPISODE_ROUNDS < EPISODE_ROUNDS - CALM_ROUNDS));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for text in ["die", "die=2", "explode=0.1", "x@3=die", "3@x=die", "chain@3=die", "3@4=stall", "3@4=die~x", ""] {
            let refused = text.parse::<FaultSpec>().unwrap_err().to_string();
            assert!(refused.contains(text), "{refused}");
        }
        let spec: FaultSpec = "die=0.5, 3@12:sealing=die~4,chain@40=stall~8".parse().unwrap();
        assert_eq!(written(&spec.script, &spec.cast), "3@12:sealing=die~4,chain@40=stall~8");
    }
}
