//! Who is who in a simulated run: which nodes are honest, and what the others are.
//!
//! A share is of the miners, or for the parts that only a validator can play of the validators. Who plays a part is drawn: nobody's place
//! in the order of uids says what it is.

use convoke::round::Role;
use convoke::terms::Round;

use super::chance::Chance;
use super::trainer::Habit;

/// From this round on, counted from the first of the run, a sleeper is awake.
const AWAKE_FROM: u64 = 12;
/// Rounds that a stale miner is behind.
const STALE_ROUNDS: usize = 4;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Does what the protocol asks for.
    Honest,
    /// Sends zeros.
    Zero,
    /// Sends noise.
    Noise,
    /// Trains on what it likes.
    WrongData,
    /// Trains too little.
    FewSteps,
    /// Trains an old θ.
    Stale,
    /// Sends much too much.
    Huge,
    /// Sends honest work, but three times as large: it does no harm, and would be paid for more than it does.
    Boost,
    /// Sends what training makes, turned round.
    PoisonFlip,
    /// Pulls θ to another place.
    PoisonTarget,
    /// Honest at first, then turns round what it sends.
    Sleeper,
    /// Seals the bytes of an honest miner as its own.
    CopyExact,
    /// Signs the records of an honest miner anew.
    CopySigned,
    /// Signs the records of an honest miner anew, with some of them changed.
    CopyPerturbed,
    /// One of many hotkeys with one machine's work behind them.
    Sybil,
    /// A validator that votes and sets weights for its friends.
    Colluder,
    /// A validator that sets the weights which others have set.
    WeightCopier,
}

impl Part {
    /// All that do not do the work that they are paid for.
    pub const HOSTILE: [Self; 15] = [
        Self::Zero,
        Self::Noise,
        Self::WrongData,
        Self::FewSteps,
        Self::Stale,
        Self::Huge,
        Self::PoisonFlip,
        Self::PoisonTarget,
        Self::Sleeper,
        Self::CopyExact,
        Self::CopySigned,
        Self::CopyPerturbed,
        Self::Sybil,
        Self::Colluder,
        Self::WeightCopier,
    ];

    /// The name in a spec.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Honest => "honest",
            Self::Zero => "zero",
            Self::Noise => "noise",
            Self::WrongData => "wrong-data",
            Self::FewSteps => "few-steps",
            Self::Stale => "stale",
            Self::Huge => "huge",
            Self::Boost => "boost",
            Self::PoisonFlip => "poison-flip",
            Self::PoisonTarget => "poison-target",
            Self::Sleeper => "sleeper",
            Self::CopyExact => "copy-exact",
            Self::CopySigned => "copy-signed",
            Self::CopyPerturbed => "copy-perturbed",
            Self::Sybil => "sybil",
            Self::Colluder => "colluder",
            Self::WeightCopier => "weight-copier",
        }
    }

    /// The part of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::HOSTILE.into_iter().chain([Self::Boost]).find(|part| part.name() == name)
    }

    /// Whether a validator plays it; all others are miners'.
    #[must_use]
    pub fn is_validators(self) -> bool {
        matches!(self, Self::Colluder | Self::WeightCopier)
    }

    /// How its miner trains; `first` is the first round of the run.
    #[must_use]
    pub fn habit(self, first: Round) -> Habit {
        match self {
            Self::Zero => Habit::Zero,
            Self::Noise => Habit::Noise,
            Self::WrongData => Habit::WrongData,
            Self::FewSteps => Habit::FewSteps,
            Self::Stale => Habit::Stale { rounds: STALE_ROUNDS },
            Self::Huge => Habit::Huge,
            Self::Boost => Habit::Boost,
            Self::PoisonFlip => Habit::PoisonFlip,
            Self::PoisonTarget => Habit::PoisonTarget,
            Self::Sleeper => Habit::Sleeper { from: Round(first.0 + AWAKE_FROM), then: Box::new(Habit::PoisonFlip) },
            _ => Habit::Honest,
        }
    }
}

/// Shares of a run's nodes that play a part. `hostile` in a spec is all miners' parts alike.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Cast {
    shares: Vec<(Part, f64)>,
}

impl Cast {
    /// Nobody but the honest.
    #[must_use]
    pub fn honest() -> Self {
        Self::default()
    }

    /// Adds a share of a part, or of all miners' parts if the name is `hostile`. `None` if there is no such part.
    #[must_use]
    pub fn with(mut self, name: &str, share: f64) -> Option<Self> {
        if name == "hostile" {
            // One of many that is alone is an honest miner: there are twice as many of them as of others.
            let parts = Part::HOSTILE.into_iter().filter(|part| !part.is_validators()).chain([Part::Sybil]);
            let mut parts: Vec<Part> = parts.collect();
            parts.sort_unstable();
            let each = share / parts.len() as f64;
            self.shares.extend(parts.into_iter().map(|part| (part, each)));
        } else {
            self.shares.push((Part::named(name)?, share));
        }
        Some(self)
    }

    /// The shares as items of a spec.
    #[must_use]
    pub fn written(&self) -> Vec<String> {
        self.shares.iter().map(|(part, share)| format!("{}={share}", part.name())).collect()
    }

    /// What each node is. Shares are rounded so that all of them together are as many nodes as their sum is of those there are.
    #[must_use]
    pub fn assign(&self, seed: u64, roles: &[Role]) -> Vec<Part> {
        let mut parts = vec![Part::Honest; roles.len()];
        for of_validators in [false, true] {
            let nodes: Vec<usize> = (0..roles.len()).filter(|idx| roles[*idx].validates() == of_validators).collect();
            let mut drawn = nodes.clone();
            drawn.sort_by_key(|idx| Chance::new(seed).draw("part", &[*idx as u64]));
            let mut drawn = drawn.into_iter();
            let (mut wanted, mut given) = (0.0, 0);
            for (part, share) in self.shares.iter().filter(|(part, _)| part.is_validators() == of_validators) {
                wanted += share * nodes.len() as f64;
                while given < wanted.round() as usize {
                    given += 1;
                    let Some(idx) = drawn.next() else { break };
                    parts[idx] = *part;
                }
            }
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_hostile_as_the_shares_say() {
        let roles: Vec<Role> = (0..64).map(|idx| if idx % 8 == 0 { Role::Validator } else { Role::Miner }).collect();
        let cast = Cast::honest().with("hostile", 0.5).unwrap().with("colluder", 0.25).unwrap();
        let parts = cast.assign(5, &roles);
        let n = |is: fn(Part) -> bool| parts.iter().filter(|part| is(**part)).count();
        assert_eq!(n(|part| part != Part::Honest && !part.is_validators()), 28);
        assert_eq!(n(|part| part == Part::Colluder), 2);
        for part in Part::HOSTILE.into_iter().filter(|part| !part.is_validators()) {
            assert!(parts.contains(&part), "{part:?}");
        }
        assert!(Cast::honest().with("saint", 0.5).is_none());
        assert_ne!(parts, cast.assign(6, &roles));
    }
}
