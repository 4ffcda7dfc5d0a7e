//! What is compared: who attacks, under which rules, and which runs that takes.

use convoke_node::fake::cast::Part;

/// Nodes of a run under attack; of every eight the first validates.
pub const NODES: usize = 18;
/// Its miners.
pub const MINERS: usize = 15;
/// Of the simulated world: one validator in so many nodes.
const NODES_PER_VALIDATOR: usize = 8;
/// Of the miners who are hostile, of every kind.
const SHARES: [f64; 6] = [0.0, 0.1, 0.2, 0.33, 0.4, 0.5];
/// The shares of a quick look.
const FEW_SHARES: [f64; 3] = [0.0, 0.33, 0.5];
/// Of those who are hostile where all are of one kind.
const SHARE_OF_A_KIND: f64 = 0.33;

/// Whose rules score, choose and pay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rules {
    /// Those of the default run.
    Ours,
    /// The reference run's, as its code was published.
    ReferenceRun,
    /// Gauntlet's, as the paper has them.
    Paper,
    /// Nobody is evaluated, and contributors are drawn by lot: what an attack does to a run that does not defend itself.
    None,
}

impl Rules {
    pub const ALL: [Self; 4] = [Self::Ours, Self::ReferenceRun, Self::Paper, Self::None];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::ReferenceRun => "reference run",
            Self::Paper => "paper",
            Self::None => "none",
        }
    }

    /// The run's numbers that differ from ours, as far as numbers can say it.
    pub fn sets(self) -> &'static [&'static str] {
        match self {
            Self::Ours => &[],
            // Nobody is on its list for being new. Its pay falls in a line from 2 to 1 over twenty places: (1/20)^0.2314 is a half.
            Self::ReferenceRun => &["run.gauntlet.newcomer_places=0", "run.gauntlet.weight_exponent=0.2314"],
            // Five evaluations a validator and round, and no rule about copies.
            Self::Paper => &[
                "run.gauntlet.newcomer_places=0",
                "run.gauntlet.evaluations_max=5",
                "run.gauntlet.copy_overlap_max=1.0",
            ],
            Self::None => &["run.gauntlet.evaluations_max=0", "run.gauntlet.copy_overlap_max=1.0"],
        }
    }
}

/// Who is hostile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Attack {
    /// This share of the miners, of all kinds alike.
    Mixed(f64),
    /// A third of those who can be, all of this kind.
    OfKind(Part),
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    pub attack: Attack,
    pub rules: Rules,
}

/// A run that is made once, whichever rows it is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Job {
    pub rules: Rules,
    pub nodes: usize,
    pub faults: String,
    pub seed: u64,
}

impl Row {
    /// All rows, or those of a quick look.
    pub fn all(is_quick: bool) -> Vec<Self> {
        let shares: &[f64] = if is_quick { &FEW_SHARES } else { &SHARES };
        let kinds = Part::HOSTILE.into_iter().chain([Part::Boost]).filter(|_| !is_quick);
        let kinds = kinds.map(|part| Self { attack: Attack::OfKind(part), rules: Rules::Ours });
        let mixed = |rules| shares.iter().map(move |share| Self { attack: Attack::Mixed(*share), rules });
        let [ours, others @ ..] = Rules::ALL;
        mixed(ours).chain(kinds).chain(others.into_iter().flat_map(mixed)).collect()
    }

    /// Miners who are hostile.
    pub fn n_hostile(&self) -> usize {
        match self.attack {
            Attack::Mixed(share) => of(share, MINERS),
            Attack::OfKind(part) if part.is_validators() => 0,
            Attack::OfKind(_) => of(SHARE_OF_A_KIND, MINERS),
        }
    }

    /// Who is hostile, for the table.
    pub fn who(&self) -> String {
        let n_hostile = self.n_hostile();
        match self.attack {
            Attack::Mixed(_) if n_hostile == 0 => "nobody".to_owned(),
            Attack::Mixed(_) => format!("all kinds, {n_hostile} of {MINERS} miners"),
            Attack::OfKind(part) if part.is_validators() => {
                let validators = NODES - MINERS;
                format!("{}, {} of {validators} validators", part.name(), of(SHARE_OF_A_KIND, validators))
            }
            Attack::OfKind(part) => format!("{}, {n_hostile} of {MINERS} miners", part.name()),
        }
    }

    /// The run itself.
    pub fn attacked(&self, seed: u64) -> Job {
        let faults = match self.attack {
            Attack::Mixed(_) => mixed(self.n_hostile(), seed),
            Attack::OfKind(part) => format!("{}={SHARE_OF_A_KIND}", part.name()),
        };
        Job { rules: self.rules, nodes: NODES, faults, seed }
    }

    /// As many miners, and all of them honest.
    pub fn calm(seed: u64) -> Job {
        Job { rules: Rules::Ours, nodes: NODES, faults: "none".to_owned(), seed }
    }

    /// As many honest miners, and nobody else.
    pub fn alone(&self, seed: u64) -> Job {
        Job { nodes: nodes_with(MINERS - self.n_hostile()), ..Self::calm(seed) }
    }
}

fn of(share: f64, n_nodes: usize) -> usize {
    (share * n_nodes as f64).round() as usize
}

/// How many nodes there must be for so many of them to be miners.
pub fn nodes_with(miners: usize) -> usize {
    let n_miners = |nodes: usize| nodes - nodes.div_ceil(NODES_PER_VALIDATOR);
    (miners..).find(|nodes| n_miners(*nodes) == miners).expect("every number of miners comes")
}

/// So many hostile miners of different kinds, as a spec. Few miners cannot play all kinds: each seed goes on with those at which the one
/// before has stopped, so that over some seeds all are played alike. Of a sybil there are two, since one alone is an honest miner.
pub fn mixed(n_hostile: usize, seed: u64) -> String {
    let kinds = Part::HOSTILE.into_iter().filter(|part| !part.is_validators());
    let kinds: Vec<Part> = kinds.chain([Part::Sybil]).collect();
    let first = usize::try_from(seed).unwrap_or(0).wrapping_mul(n_hostile) % kinds.len();
    let share = 1.0 / MINERS as f64;
    let items = kinds.iter().cycle().skip(first).take(n_hostile).map(|part| format!("{}={share}", part.name()));
    let items: Vec<String> = items.collect();
    if items.is_empty() { "none".to_owned() } else { items.join(",") }
}
