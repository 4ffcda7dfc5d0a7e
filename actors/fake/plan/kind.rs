//! The kinds of faults: their names, how often they happen in the mixed run, how long they last, and where they may strike.

use std::fmt;

use convoke::round::Role;

/// What goes wrong. The order is part of what is drawn: new ones come last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The process dies at the beginning of a phase, or at a point of an actor: in the middle of its work, or right after it where the
    /// point ends in `.done`. It is started again after some blocks.
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
    /// What the node sends and what is sent to it takes long.
    Delay,
    /// Whatever the node sends, or is sent, comes twice.
    Duplicate,
    /// What the node sends and what is sent to it comes in another order.
    Reorder,
    /// The node's links carry little.
    Throttle,
    /// Some nodes do not reach the others, nor are reached by them.
    Partition,
    /// What one node sends to another does not arrive.
    Unlink,
    /// The miner's seal is on chain only after the last block that counts.
    LateSeal,
    /// The chain says one thing of the node for a block, and another after it: a vote for two manifests, a seal of two payloads.
    Equivocate,
    /// Whoever asks the node for θ gets another one.
    Lie,
    /// The process dies in the middle of writing a file.
    Tear,
    /// One bit of what the node has saved is another, which it finds when it is started again; it is, so it dies.
    Rot,
    /// The node hears of the chain's heads later than the others, or earlier.
    Skew,
    /// The last blocks are replaced by others, at an edge of the round.
    Fork,
    /// Strangers register on a full subnet, and somebody loses his slot.
    Crowd,
    /// The subnet has a slot less, and who comes after it another uid.
    Renumber,
    /// The validator with the most stake dies.
    LoseLeader,
}

/// How many kinds there are.
pub const N_KINDS: usize = 31;

/// Whom a kind happens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// One node.
    Node,
    /// Some nodes against the rest.
    Set,
    /// What one node sends to another.
    Link,
    /// The chain.
    Chain,
    /// The validator that leads.
    Leader,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; N_KINDS] = [
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
        Self::Delay,
        Self::Duplicate,
        Self::Reorder,
        Self::Throttle,
        Self::Partition,
        Self::Unlink,
        Self::LateSeal,
        Self::Equivocate,
        Self::Lie,
        Self::Tear,
        Self::Rot,
        Self::Skew,
        Self::Fork,
        Self::Crowd,
        Self::Renumber,
        Self::LoseLeader,
    ];

    /// The names in a spec, in the same order.
    const NAMES: [&'static str; N_KINDS] = [
        "die",
        "panic",
        "hang",
        "slow",
        "cut",
        "loss",
        "withhold",
        "corrupt",
        "disk-full",
        "flip",
        "delay-call",
        "drop-call",
        "lose-answer",
        "stall",
        "stall-finality",
        "delay",
        "duplicate",
        "reorder",
        "throttle",
        "partition",
        "unlink",
        "late-seal",
        "equivocate",
        "lie",
        "tear",
        "rot",
        "skew",
        "fork",
        "crowd",
        "renumber",
        "lose-leader",
    ];

    /// The name in a spec.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// Whom it happens to.
    #[must_use]
    pub fn reach(self) -> Reach {
        match self {
            Self::Stall | Self::StallFinality | Self::Fork | Self::Crowd | Self::Renumber => Reach::Chain,
            Self::LoseLeader => Reach::Leader,
            Self::Partition => Reach::Set,
            Self::Unlink => Reach::Link,
            _ => Reach::Node,
        }
    }

    /// Whether it is drawn once a round, and not once a round and node.
    #[must_use]
    pub fn is_drawn_once(self) -> bool {
        matches!(self.reach(), Reach::Chain | Reach::Leader | Reach::Set)
    }

    /// Whether it can do anything to a node of this role.
    pub(super) fn suits(self, role: Role) -> bool {
        match self {
            Self::LateSeal => role.mines(),
            // Whoever does not validate keeps no θ for others.
            Self::Lie => role.validates(),
            _ => true,
        }
    }

    /// Whether it changes who has which slot. It takes rounds until that is healed, and emissions say who goes only once there are
    /// some.
    pub(super) fn is_of_slots(self) -> bool {
        matches!(self, Self::Crowd | Self::Renumber)
    }

    /// How often it happens in the mixed run, a round, and where it is not drawn once a node.
    pub(super) fn mixed_rate(self) -> f64 {
        match self {
            Self::Die => 0.004,
            Self::Panic => 0.006,
            Self::Hang | Self::Slow | Self::Withhold | Self::Corrupt | Self::DiskFull => 0.001,
            Self::Cut | Self::Loss => 0.002,
            Self::Flip => 0.000_5,
            Self::DelayCall | Self::DropCall | Self::LoseAnswer => 0.002,
            Self::Stall | Self::StallFinality => 0.01,
            Self::Delay | Self::Duplicate | Self::Reorder | Self::Throttle | Self::Unlink => 0.001,
            Self::LateSeal | Self::Equivocate | Self::Lie => 0.001,
            Self::Tear | Self::Rot | Self::Skew => 0.000_5,
            Self::Partition | Self::LoseLeader => 0.005,
            Self::Fork => 0.02,
            Self::Crowd | Self::Renumber => 0.005,
        }
    }

    /// Blocks it lasts: at least, and how many more at most. Of a fork: how many it replaces; of a late seal: how many blocks too late
    /// it is, at least; of a crowd: until those who lost their slots are let in again, which is when the strangers can be pushed out.
    pub(super) fn blocks(self) -> (u64, u64) {
        match self {
            Self::Die | Self::Rot => (1, 24),
            Self::LoseLeader => (1, 8),
            Self::Cut | Self::Loss | Self::DiskFull => (4, 16),
            Self::Stall | Self::StallFinality => (2, 12),
            Self::DelayCall | Self::LateSeal => (1, 4),
            Self::Delay | Self::Duplicate | Self::Reorder | Self::Throttle | Self::Skew => (8, 24),
            Self::Partition | Self::Unlink => (4, 16),
            Self::Lie => (16, 32),
            Self::Fork => (1, 1),
            Self::Crowd => (66, 8),
            _ => (0, 0),
        }
    }

    /// Where it may strike: phases, points of actors, edges of the round; nothing where the kind needs none.
    pub(super) fn points(self, role: Role) -> Vec<&'static str> {
        let lists: &[Points] = match self {
            Self::Die => &[PHASES, WORK, AFTER],
            Self::Panic | Self::Hang => &[WORK, AFTER],
            Self::Slow => &[SLOW],
            Self::Fork => &[AT_EDGES],
            Self::LoseLeader => &[LEADING],
            _ => &[],
        };
        lists.iter().flat_map(|list| list.of(role)).collect()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The edges of a round at which a fork may strike. Its first block is where the payloads of the one before are revealed.
pub(super) const EDGES: [&str; 4] = ["sealed-by", "reveal", "gather-until", "manifest-at"];

/// Points by who has them.
#[derive(Clone, Copy)]
struct Points {
    miner: &'static [&'static str],
    validator: &'static [&'static str],
    all: &'static [&'static str],
}

impl Points {
    fn of(&self, role: Role) -> impl Iterator<Item = &'static str> {
        let miner = self.miner.iter().filter(move |_| role.mines());
        let validator = self.validator.iter().filter(move |_| role.validates());
        miner.chain(validator).chain(self.all).copied()
    }
}

/// Before an effect.
const PHASES: Points = Points {
    miner: &["inner-steps", "compressing", "sealing"],
    validator: &[],
    all: &["awaiting-reveal", "gathering", "awaiting-manifest", "deciding", "outer-step", "saving"],
};

/// While it is carried out.
const WORK: Points = Points {
    miner: &["gpu-worker.inner-steps", "compressor.compress", "peer-sync.publish", "chain-writer.seal"],
    validator: &["gpu-worker.evaluate", "gauntlet.propose", "gauntlet.plan", "gauntlet.rate", "chain-writer.vote"],
    all: &[
        "gpu-worker.load",
        "gpu-worker.save",
        "compressor.outer-step",
        "compressor.save",
        "peer-sync.gather",
        "peer-sync.admit",
        "gauntlet.check",
        "round-clock.head",
        "round-clock.deciding",
    ],
};

/// When it is done, and nobody has been told yet.
const AFTER: Points = Points {
    miner: &["gpu-worker.inner-steps.done", "compressor.compress.done"],
    validator: &["gauntlet.propose.done", "gauntlet.rate.done", "gauntlet.weights.done"],
    all: &[
        "gpu-worker.load.done",
        "gpu-worker.save.done",
        "compressor.outer-step.done",
        "compressor.save.done",
        "gauntlet.check.done",
        "gauntlet.save.done",
        "chain-writer.sending",
        "chain-writer.settled",
    ],
};

/// What may take long.
const SLOW: Points =
    Points { miner: &["gpu-worker.inner-steps"], validator: &["gauntlet.check"], all: &["compressor.outer-step"] };

/// Where the leader is missed.
const LEADING: Points =
    Points { miner: &[], validator: &[], all: &["gathering", "awaiting-manifest", "deciding", "outer-step", "saving"] };

const AT_EDGES: Points = Points { miner: &[], validator: &[], all: &EDGES };
