//! **G-1** from outside: what one honest validator says of its peers, and the weights that it sends, are worked out again from what
//! everybody can see, bit for bit.
//!
//! ```text
//!   final chain, blobs ──> canon: θ of each round, who had sealed what
//!                            │
//!   the validator's events ──┼──> judge: checks, copies, plan, scores, match, weights ──> equal, or a violation
//!                            └──> memory: which standing it has
//! ```
//! Five things are the validator's own, may honestly differ, and are taken from what it says:
//!
//! - whose payloads nobody delivered to it in time (`Missing`);
//! - what it had no time for: an evaluation, a match or weights that it does not tell of are not asked for, but a match has the scores
//!   of all whom it was to evaluate;
//! - what a death cost it: which of its last standings it goes on from (`memory`), and for 64 rounds which records it still knows as
//!   replays;
//! - which seals the chain showed when it gathered, where a fork has since replaced the round's last block: then those that were seen
//!   then do as well as those of the final chain;
//! - a bit of its θ that a fault of the script has changed, if it says so by its digest.
//!
//! All else follows: seed, draw, θ and registry are the final chain's. Nothing that the validator's process keeps is read.
//!
//! **What it costs.** One validator is looked at, drawn by the run's seed, in every round: its standing is a function of all rounds
//! before, so a round that is left out would have to be believed. A round of 56 payloads should take some 1.5 ms: 0.5 ms
//! for 1,540 pairs of possible copies, 0.5 ms for 20 scores, 0.2 ms for the match, the rest for θ, seals and draws; payloads and
//! proofs come out of the run's memo. Over 64 nodes that is some 25 µs a node and round, a fortieth of what a run may take. After a
//! death, while there is a doubt, it is up to five times as much.

mod canon;
mod judge;
mod memory;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use convoke::gauntlet::fast_checks::RejectReason;
use convoke::gauntlet::{Losses, after_match, record};
use convoke::round::Schedule;
use convoke::run_spec::RunSpec;
use convoke::sparseloco::Layout;
use convoke::terms::{Block, Digest, Hotkey, Round, RunId, Uid, Weight};

use self::canon::{Canon, Ground, Sight, hash_of};
use self::judge::{Attempt, Declared, Edge, difference, gather, records_of, weigh};
use self::memory::{Known, Memory};
use super::Violation;
use crate::chain::{ChainError, ChainRead, Metagraph};
use crate::events::{Event, Line};
use crate::fake::chance::Chance;
use crate::fake::trainer::quadratic::Quadratic;
use crate::leaf::Leaf;
use crate::opening::Opening;

/// The rule's name.
const RULE: &str = "G-1";
/// Rounds of which θ, seals and gatherings are held: an evaluation goes on beside the rounds after its own, and a validator that was
/// away tells again of some that it had told of.
const ROUNDS_HELD: u64 = 16;

/// What losses are about: what whoever holds θ and the data finds, to the bit.
pub trait Measure: Send + Sync {
    /// Samples that are drawn from for training.
    fn n_train_samples(&self) -> u64;

    /// θ₀, chunk-major.
    fn first_theta(&self) -> Vec<f32>;

    /// The mean losses on assigned and unassigned samples, before and after a contribution.
    fn losses(&self, round: Round, before: &[f32], after: &[f32], samples: [&[u64]; 2]) -> Losses;
}

/// The losses of the world that simulated trainers walk in.
pub struct QuadraticMeasure {
    world: Quadratic,
    first_theta: Vec<f32>,
    n_train_samples: u64,
}

impl QuadraticMeasure {
    /// Of the world that is drawn by `chance`.
    #[must_use]
    pub fn new(chance: Chance, n_train_samples: u64, layout: &Layout, run: &RunSpec) -> Self {
        let first_theta = Quadratic::first_theta(chance, layout);
        Self { world: Quadratic::new(chance, layout, run), first_theta, n_train_samples }
    }
}

impl Measure for QuadraticMeasure {
    fn n_train_samples(&self) -> u64 {
        self.n_train_samples
    }

    fn first_theta(&self) -> Vec<f32> {
        self.first_theta.clone()
    }

    fn losses(&self, round: Round, before: &[f32], after: &[f32], samples: [&[u64]; 2]) -> Losses {
        self.world.losses(round, (before, self.world.square(round, before)), after, samples)
    }
}

/// What all nodes of a run have agreed on before it.
pub struct Rules {
    /// The run's numbers.
    pub run: RunSpec,
    /// Its hash.
    pub run_id: RunId,
    /// The tensors of θ.
    pub layout: Layout,
    /// Who opens payloads.
    pub opening: Arc<dyn Opening>,
    /// What evaluates.
    pub measure: Box<dyn Measure>,
}

/// Finds a blob by its hash, whoever holds it.
pub type FindBlob<'a> = &'a dyn Fn(&[u8; 32]) -> Option<Bytes>;

/// What everybody can see. Reads of the chain must be answered at once.
pub struct Public<'a> {
    /// The chain.
    pub chain: &'a dyn ChainRead,
    /// The network.
    pub blob: FindBlob<'a>,
}

/// Whom to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    /// Its place among the nodes.
    pub node: usize,
    /// Its hotkey.
    pub hotkey: Hotkey,
}

impl Subject {
    /// One of the honest validators.
    #[must_use]
    pub fn drawn(seed: u64, honest: &[Self]) -> Option<Self> {
        honest.get(Chance::new(seed).below(honest.len(), "evidence", &[])).copied()
    }
}

/// Keeps what the validator says until it is looked at.
#[derive(Debug, Default)]
pub struct Ear {
    node: Option<usize>,
    said: Vec<Line>,
}

impl Ear {
    /// For what this one says.
    #[must_use]
    pub fn of(subject: Option<Subject>) -> Self {
        Self { node: subject.map(|subject| subject.node), said: Vec::new() }
    }

    /// Hears an event of a node.
    pub fn event(&mut self, node: usize, line: &Line) {
        let matters = match &line.event {
            Event::NodeStarted { .. }
            | Event::Gathered { .. }
            | Event::Rejected { .. }
            | Event::Evaluated { .. }
            | Event::Rated { .. }
            | Event::WeightsSet { .. }
            | Event::OuterStep { .. }
            | Event::NullRound { .. }
            | Event::ResyncDone { .. } => true,
            Event::ActorRestarted { actor, .. } => actor == Leaf::Gauntlet.name(),
            _ => false,
        };
        if matters && self.node == Some(node) {
            self.said.push(line.clone());
        }
    }

    /// What was heard since the last time.
    pub fn take(&mut self) -> Vec<Line> {
        std::mem::take(&mut self.said)
    }
}

/// Why the looking ends.
#[derive(Debug)]
enum Halt {
    Chain(ChainError),
    Found(Violation),
}

impl Halt {
    fn found(round: Round, what: String) -> Self {
        Self::Found(Violation { rule: RULE, round, what })
    }
}

impl From<ChainError> for Halt {
    fn from(error: ChainError) -> Self {
        Self::Chain(error)
    }
}

/// The validator's shadow.
pub struct Evidence {
    rules: Rules,
    schedule: Schedule,
    subject: Option<Subject>,
    canon: Canon,
    /// What it has said and is not yet looked at: the chain may still change under it.
    said: VecDeque<Line>,
    /// What the chain showed of each round's seals, as long as that could change.
    sights: BTreeMap<Round, Vec<Sight>>,
    memory: Memory,
    attempts: BTreeMap<Round, Vec<Attempt>>,
    /// θ of the rounds in which it holds another than the agreed one.
    off: BTreeMap<Round, Ground>,
}

impl Evidence {
    /// Looks at `subject`, if there is one, in a run in which nobody was there before round `from`.
    #[must_use]
    pub fn new(rules: Rules, subject: Option<Subject>, from: Round) -> Self {
        Self {
            schedule: Schedule::new(&rules.run.timing),
            canon: Canon::new(&rules, from),
            rules,
            subject,
            said: VecDeque::new(),
            sights: BTreeMap::new(),
            memory: Memory::default(),
            attempts: BTreeMap::new(),
            off: BTreeMap::new(),
        }
    }

    /// Looks at what the validator has `said` since the last time, as far as the chain is final. It is to be called at every block. The
    /// first thing that does not follow ends the looking.
    ///
    /// # Errors
    /// The chain does not say what it has said to everybody.
    pub async fn look(&mut self, said: Vec<Line>, public: &Public<'_>) -> Result<Option<Violation>, ChainError> {
        let Some(subject) = self.subject else { return Ok(None) };
        self.said.extend(said);
        match self.follow(&subject, public).await {
            Ok(()) => Ok(None),
            Err(Halt::Chain(error)) => Err(error),
            Err(Halt::Found(mut violation)) => {
                violation.what = format!("node {}: {}", subject.node, violation.what);
                self.subject = None;
                Ok(Some(violation))
            }
        }
    }

    async fn follow(&mut self, subject: &Subject, public: &Public<'_>) -> Result<(), Halt> {
        let heads = public.chain.heads().borrow();
        self.glance(heads.best.number, public).await?;
        self.canon.advance(&self.rules, &self.schedule, public, heads.finalized.number).await?;
        while self.said.front().is_some_and(|line| self.settled_at(line) <= heads.finalized.number) {
            let Some(line) = self.said.pop_front() else { break };
            self.hear(line, subject, public).await?;
        }
        Ok(())
    }

    /// Notes the seals of the last round as they are shown now: a fork may replace them.
    async fn glance(&mut self, best: Block, public: &Public<'_>) -> Result<(), Halt> {
        let Some(round) = self.schedule.round_of(best).0.checked_sub(1).map(Round) else { return Ok(()) };
        let at = self.schedule.sealed_by(round);
        let hash = hash_of(public, at).await?;
        let sights = self.sights.entry(round).or_default();
        if sights.iter().all(|sight| sight.hash != hash) {
            sights.push(Sight::read(public, at).await?);
        }
        let oldest = Round(round.0.saturating_sub(ROUNDS_HELD));
        self.sights = self.sights.split_off(&oldest);
        self.attempts = self.attempts.split_off(&oldest);
        self.off = self.off.split_off(&oldest);
        Ok(())
    }

    /// Once this block is final, all that the line is about is.
    fn settled_at(&self, line: &Line) -> Block {
        let round = line.round.unwrap_or_default();
        match &line.event {
            Event::Gathered { .. } | Event::Evaluated { .. } | Event::Rated { .. } => self.schedule.reveal(round),
            Event::OuterStep { .. } | Event::NullRound { .. } => self.schedule.manifest_at(round),
            Event::WeightsSet { set_at, .. } => line.block.map_or(*set_at, |told_at| told_at.max(*set_at)),
            _ => Block(0),
        }
    }

    async fn hear(&mut self, line: Line, me: &Subject, public: &Public<'_>) -> Result<(), Halt> {
        let round = line.round.unwrap_or_default();
        let settled_at = self.settled_at(&line);
        match line.event {
            Event::NodeStarted { .. } | Event::ActorRestarted { .. } => self.memory.begun(),
            Event::Gathered { received, missing } => {
                let n_said = received as usize + missing as usize;
                let said = self.rejections(round);
                self.gathered(round, n_said, &said, public).await?;
            }
            Event::Evaluated { uid, score, assigned_improvement, unassigned_improvement } => {
                if score.to_bits() != unassigned_improvement.to_bits() {
                    let what = format!("of uid {uid} it says the score {score}, and {unassigned_improvement}");
                    return Err(Halt::found(round, what));
                }
                self.evaluated(round, &me.hotkey, (uid, [assigned_improvement, unassigned_improvement]))?;
            }
            Event::Rated { records } => self.rated(round, &me.hotkey, records)?,
            Event::WeightsSet { weights, set_at } => {
                self.weights_set(round, &weights, set_at..settled_at, public).await?;
            }
            Event::OuterStep { digest, .. } => self.stepped(round, digest)?,
            Event::NullRound { .. } => {
                let off = self.off.get(&round).cloned();
                self.stands(round.next(), off);
            }
            Event::ResyncDone { .. } => self.off.clear(),
            _ => {}
        }
        Ok(())
    }

    /// The rejections that are told with a gathering.
    fn rejections(&mut self, round: Round) -> BTreeMap<Hotkey, String> {
        let mut said = BTreeMap::new();
        while let Some(Line { round: of, event: Event::Rejected { hotkey, reason, .. }, .. }) = self.said.front() {
            if *of != Some(round) {
                break;
            }
            said.insert(*hotkey, reason.clone());
            self.said.pop_front();
        }
        said
    }

    async fn gathered(
        &mut self,
        round: Round,
        n_said: usize,
        said: &BTreeMap<Hotkey, String>,
        public: &Public<'_>,
    ) -> Result<(), Halt> {
        let mut sights = vec![Sight::read(public, self.schedule.sealed_by(round)).await?];
        let replaced = self.sights.get(&round).into_iter().flatten().filter(|sight| sight.hash != sights[0].hash);
        let replaced: Vec<Sight> = replaced.cloned().collect();
        sights.extend(replaced);
        let agreed = self.canon.ground(round).cloned();
        let agreed = agreed.ok_or_else(|| Halt::found(round, "it gathers for a θ that nobody can know".to_owned()))?;
        let grounds: Vec<Ground> = self.off.get(&round).cloned().into_iter().chain([agreed]).collect();
        let (seed, draw) = (self.schedule.seed_block(round), self.schedule.reveal(round));
        let (seed, draw) = (hash_of(public, seed).await?, hash_of(public, draw).await?);
        let word = RejectReason::Missing.to_string();
        let missing: BTreeSet<Hotkey> =
            said.iter().filter(|(_, reason)| **reason == word).map(|(hotkey, _)| *hotkey).collect();
        let declared = Declared { missing, replays: self.memory.replays(round, said) };
        let blocks = self.schedule.first_block(round)..self.schedule.reveal(round);
        let mut first_difference = None;
        for (sight, ground) in sights.iter().flat_map(|sight| grounds.iter().map(move |ground| (sight, ground))) {
            let edge = Edge { round, blocks: blocks.clone(), seed, draw, ground: ground.clone() };
            let gathered = gather(&self.rules, &edge, sight.claims(round), &declared, public.blob);
            match difference(&gathered, n_said, said) {
                None => {
                    let registered = sight.metagraph.neurons.iter().map(|neuron| neuron.hotkey).collect();
                    let passed = gathered.passed.iter().map(|passed| records_of(&passed.payload));
                    self.memory.gathered(round, &registered, passed);
                    let attempt = Attempt::new(edge, gathered, self.memory.possible());
                    self.attempts.entry(round).or_default().push(attempt);
                    return Ok(());
                }
                Some(what) => first_difference = first_difference.or(Some(what)),
            }
        }
        Err(Halt::found(round, first_difference.unwrap_or_default()))
    }

    fn evaluated(&mut self, round: Round, me: &Hotkey, said: (Uid, [f64; 2])) -> Result<(), Halt> {
        let possible = self.memory.possible();
        let (mut is_right, mut wrong) = (false, "it evaluates, and has not gathered".to_owned());
        for attempt in self.attempts.entry(round).or_default() {
            match attempt.evaluated(&self.rules, me, &possible, said) {
                Ok(()) => is_right = true,
                Err(what) => wrong = what,
            }
        }
        if is_right { Ok(()) } else { Err(Halt::found(round, wrong)) }
    }

    /// After a match the records must be those that follow from some standing that it may have had, some gathering, and the scores of
    /// all whom it was then to evaluate.
    fn rated(&mut self, round: Round, me: &Hotkey, records: Digest) -> Result<(), Halt> {
        let possible = self.memory.possible();
        let before: Vec<&Arc<Known>> = possible.iter().filter(|known| known.rated < Some(round)).collect();
        let mut wrong = "it has a match, and has not gathered".to_owned();
        for attempt in self.attempts.entry(round).or_default().iter_mut().rev() {
            for plan in attempt.plans(&self.rules, me, &possible) {
                if let Some(uid) = attempt.untold(&plan) {
                    wrong = format!("it has a match without a score of uid {uid}, whom it was to evaluate");
                    continue;
                }
                for known in &before {
                    let outcomes = attempt.outcomes(me, &known.standing, &plan);
                    let after = after_match(&known.standing, round, &outcomes, &self.rules.run.gauntlet);
                    if record::digest(&after) == records {
                        self.memory.matched(round, after);
                        return Ok(());
                    }
                }
                wrong = "the records after its match are not those that follow from what it has found".to_owned();
            }
        }
        Err(Halt::found(round, wrong))
    }

    /// Who is registered is read before the weights are set, and who has which slot before they are told of. Where nobody has come or
    /// gone in between, which is nearly always, it does not matter when.
    async fn weights_set(
        &self,
        round: Round,
        said: &[(Uid, Weight)],
        told: std::ops::Range<Block>,
        public: &Public<'_>,
    ) -> Result<(), Halt> {
        let standings = self.memory.after_match_of(round);
        let spec = &self.rules.run.gauntlet;
        let follows = |registered: &Metagraph, slots: &Metagraph| {
            standings.iter().any(|known| weigh(spec, (round, &known.standing), registered, slots) == said)
        };
        let likely = public.chain.metagraph(Block(told.start.0.saturating_sub(1))).await?;
        if follows(&likely, &likely) {
            return Ok(());
        }
        let mut others: Vec<Arc<Metagraph>> = Vec::new();
        for number in self.schedule.reveal(round).0..=told.end.0 {
            let metagraph = public.chain.metagraph(Block(number)).await?;
            let is_same = |other: &Arc<Metagraph>| {
                let hotkeys = |of: &Metagraph| of.neurons.iter().map(|neuron| neuron.hotkey).collect::<Vec<_>>();
                hotkeys(other) == hotkeys(&metagraph)
            };
            if !others.iter().any(is_same) {
                others.push(metagraph);
            }
        }
        if others.iter().any(|registered| others.iter().any(|slots| follows(registered, slots))) {
            return Ok(());
        }
        let standing = standings.first().map(|known| known.standing.clone()).unwrap_or_default();
        let found = weigh(spec, (round, &standing), &likely, &likely);
        Err(Halt::found(round, wrong_weight(said, &found)))
    }

    /// θ after an outer step is what the decided manifest makes, or that with the bit changed that a fault changes.
    fn stepped(&mut self, round: Round, digest: Digest) -> Result<(), Halt> {
        let next = round.next();
        // A node that comes back tells of rounds that are long over.
        let Some(agreed) = self.canon.ground(next) else { return Ok(()) };
        let off = (agreed.digest != digest).then(|| agreed.flipped());
        if let Some(off) = off.as_ref().filter(|off| off.digest != digest) {
            let what = format!("its θ is {digest}, the decided manifest makes {} or {}", agreed.digest, off.digest);
            return Err(Halt::found(round, what));
        }
        self.stands(next, off);
        Ok(())
    }

    fn stands(&mut self, round: Round, off: Option<Ground>) {
        match off {
            Some(ground) => self.off.insert(round, ground),
            None => self.off.remove(&round),
        };
    }
}

/// The first peer whose weight is not what was found.
fn wrong_weight(said: &[(Uid, Weight)], found: &[(Uid, Weight)]) -> String {
    let [said, found]: [BTreeMap<Uid, Weight>; 2] = [said, found].map(|weights| weights.iter().copied().collect());
    let uids: BTreeSet<Uid> = said.keys().chain(found.keys()).copied().collect();
    let of = |weights: &BTreeMap<Uid, Weight>, uid: Uid| weights.get(&uid).copied().unwrap_or_default();
    let wrong = uids.into_iter().find(|uid| of(&said, *uid) != of(&found, *uid));
    wrong.map_or_else(
        || "its weights are in another order, or a uid has two".to_owned(),
        |uid| format!("the weight of uid {uid} is {}, recomputed {}", of(&said, uid), of(&found, uid)),
    )
}
