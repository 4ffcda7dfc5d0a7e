//! What must hold of every step of a round state machine, whatever it is told: what a storm judges it by.
//!
//! The rules see events, effects and where the machine stands, never its insides, and keep books of their own. Only so can
//! they contradict it.

use std::collections::BTreeMap;

use crate::round::{CONTRIBUTION_TRIES, Done, Effect, Event, Phase, Role, Schedule, Started};
use crate::terms::{Block, ManifestHash, Round};

pub(super) const CLOCK: &str = "the clock is the highest block told, and never runs backwards";
pub(super) const ENDS_ONCE: &str = "R-2: a round ends in exactly one of outer step and null round, as it was decided";
pub(super) const IN_ORDER: &str = "rounds follow one another, each when the end of the one before is answered";
pub(super) const OWN_ROUND: &str = "what is begun belongs to the round and the phase that the machine is in";
pub(super) const ONE_OPEN: &str = "no phase is begun while one is under way";
pub(super) const ANSWERED: &str =
    "only a contribution is left before it is answered, and its inner steps are told to end";
pub(super) const IN_TIME: &str = "nothing is begun outside its window";
pub(super) const DECIDED_FINAL: &str = "R-1: a round is decided by its votes in a final block";
pub(super) const TRIES: &str = "R-3: a contribution is tried as often as it may, and no more";
pub(super) const MADE_ONCE: &str = "a payload that is held is sealed, not made again";
pub(super) const EVALUATED_ONCE: &str = "a round is evaluated once, when it is gathered";
pub(super) const BY_ROLE: &str = "miners contribute; validators vote, evaluate and set weights";
pub(super) const TRIED_AGAIN: &str = "with the next block, what failed is tried again or given up";
pub(super) const WHOLE: &str = "a calm round is a whole round";

/// What an [`Effect`] asks for, apart from its round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    InnerSteps,
    Compress,
    Seal,
    Gather,
    Decide,
    OuterStep,
    NullRound,
    Save,
    StopInnerSteps,
    Vote,
    Evaluate,
    SetWeights,
}

impl Work {
    /// All that a phase waits for.
    pub const OF_PHASES: [Self; 8] = [
        Self::InnerSteps,
        Self::Compress,
        Self::Seal,
        Self::Gather,
        Self::Decide,
        Self::OuterStep,
        Self::NullRound,
        Self::Save,
    ];

    /// The phase that waits for it.
    pub fn phase(self) -> Option<Phase> {
        match self {
            Self::InnerSteps => Some(Phase::InnerSteps),
            Self::Compress => Some(Phase::Compressing),
            Self::Seal => Some(Phase::Sealing),
            Self::Gather => Some(Phase::Gathering),
            Self::Decide => Some(Phase::Deciding),
            Self::OuterStep => Some(Phase::OuterStep),
            Self::NullRound => Some(Phase::NullRound),
            Self::Save => Some(Phase::Saving),
            Self::StopInnerSteps | Self::Vote | Self::Evaluate | Self::SetWeights => None,
        }
    }
}

/// Work of one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub work: Work,
    pub round: Round,
}

impl Piece {
    fn of(effect: Effect) -> Self {
        let (work, round) = match effect {
            Effect::InnerSteps(round) => (Work::InnerSteps, round),
            Effect::StopInnerSteps(round) => (Work::StopInnerSteps, round),
            Effect::Compress(round) => (Work::Compress, round),
            Effect::Seal(round) => (Work::Seal, round),
            Effect::Gather(round) => (Work::Gather, round),
            Effect::Vote(round, _) => (Work::Vote, round),
            Effect::Decide(round) => (Work::Decide, round),
            Effect::OuterStep(round) => (Work::OuterStep, round),
            Effect::NullRound(round) => (Work::NullRound, round),
            Effect::Save(round) => (Work::Save, round),
            Effect::Evaluate(round) => (Work::Evaluate, round),
            Effect::SetWeights(round) => (Work::SetWeights, round),
        };
        Self { work, round }
    }

    fn is_of_a_phase(self) -> bool {
        self.work.phase().is_some()
    }

    fn is_answered_by(self, event: Event) -> bool {
        match (event, self.work) {
            (Event::Done(round, Done::InnerSteps(_)), Work::InnerSteps)
            | (Event::Done(round, Done::Compressed), Work::Compress)
            | (Event::Done(round, Done::Sealed), Work::Seal)
            | (Event::Done(round, Done::Gathered), Work::Gather)
            | (Event::Done(round, Done::Decided(_)), Work::Decide)
            | (Event::Done(round, Done::Stepped), Work::OuterStep | Work::NullRound)
            | (Event::Done(round, Done::Saved), Work::Save)
            | (Event::VoteEnded(round), Work::Vote)
            | (Event::Evaluated(round), Work::Evaluate) => round == self.round,
            (Event::Failed(round, phase), work) => round == self.round && work.phase() == Some(phase),
            _ => false,
        }
    }

    /// The answer that it went well; none for what is not answered.
    pub fn went_well(self, steps: u32, decision: Option<ManifestHash>) -> Option<Event> {
        let done = |done: Done| Some(Event::Done(self.round, done));
        match self.work {
            Work::InnerSteps => done(Done::InnerSteps(steps)),
            Work::Compress => done(Done::Compressed),
            Work::Seal => done(Done::Sealed),
            Work::Gather => done(Done::Gathered),
            Work::Decide => done(Done::Decided(decision)),
            Work::OuterStep | Work::NullRound => done(Done::Stepped),
            Work::Save => done(Done::Saved),
            Work::Vote => Some(Event::VoteEnded(self.round)),
            Work::Evaluate => Some(Event::Evaluated(self.round)),
            Work::StopInnerSteps | Work::SetWeights => None,
        }
    }

    /// The answer that it failed; a vote just ends, and of an evaluation nothing is heard.
    pub fn failed(self) -> Option<Event> {
        match self.work {
            Work::Vote => Some(Event::VoteEnded(self.round)),
            work => work.phase().map(|phase| Event::Failed(self.round, phase)),
        }
    }
}

/// Where a machine says it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stand {
    pub round: Round,
    pub phase: Phase,
    pub block: Block,
    pub finalized: Block,
}

/// What a machine did wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub claim: &'static str,
    pub what: String,
}

pub(super) fn holds(truth: bool, claim: &'static str, what: impl FnOnce() -> String) -> Result<(), Fault> {
    if truth { Ok(()) } else { Err(Fault { claim, what: what() }) }
}

/// What one machine did in one round.
#[derive(Debug, Clone, Copy, Default)]
struct Page {
    /// How often each [`Work`] was begun.
    begun: [u32; 12],
    /// Failures of the contribution that the machine was told while it made it.
    failures: u8,
    /// Whether the round was decided to have a manifest.
    decided: Option<bool>,
    payload_held: bool,
}

impl Page {
    fn count(&self, work: Work) -> u32 {
        self.begun[work as usize]
    }
}

/// The books.
#[derive(Debug)]
pub(super) struct Rules {
    schedule: Schedule,
    role: Role,
    rounds_per_weights: u64,
    /// How each round ends; a restart does not change that.
    ends: BTreeMap<Round, Work>,
    page: Page,
    /// The page of the round before.
    last: Page,
    block: Block,
    finalized: Block,
    open: Vec<Piece>,
}

impl Rules {
    pub fn new(schedule: Schedule, role: Role, rounds_per_weights: u64) -> Self {
        let (page, last) = (Page::default(), Page::default());
        let (block, finalized) = (Block(0), Block(0));
        Self { schedule, role, rounds_per_weights, ends: BTreeMap::new(), page, last, block, finalized, open: vec![] }
    }

    /// Work that was begun and is not answered, the oldest first.
    pub fn open(&self) -> &[Piece] {
        &self.open
    }

    /// A new machine takes the place of the old one, whose open work is handed out.
    pub fn restart(&mut self) -> Vec<Piece> {
        (self.page, self.last) = (Page::default(), Page::default());
        (self.block, self.finalized) = (Block(0), Block(0));
        std::mem::take(&mut self.open)
    }

    /// Notes what the machine is about to be told.
    pub fn tell(&mut self, before: Stand, event: Event) {
        if let Some(at) = self.open.iter().position(|piece| piece.is_answered_by(event)) {
            self.open.remove(at);
        }
        let here = (before.round, before.phase);
        match event {
            Event::Head(block) => self.block = self.block.max(block),
            Event::Final(block) => self.finalized = self.finalized.max(block),
            Event::Done(round, Done::Decided(manifest)) if (round, Phase::Deciding) == here => {
                self.page.decided = Some(manifest.is_some());
            }
            Event::Failed(round, phase) if (round, phase) == here && phase.is_contribution() => {
                self.page.failures += 1;
            }
            _ => {}
        }
    }

    /// Judges the step that followed. Work that nobody waits for any more is added to `left`.
    pub fn judge(
        &mut self,
        before: Stand,
        event: Event,
        effects: &[Effect],
        after: Stand,
        left: &mut Vec<Piece>,
    ) -> Result<(), Fault> {
        let told = (self.block, self.finalized);
        holds((after.block, after.finalized) == told, CLOCK, || format!("{after:?} where {told:?} was told"))?;
        self.judge_round(before, event, after)?;
        self.judge_giving_up(before, event, after)?;
        if (after.round, after.phase) != (before.round, before.phase) {
            self.judge_leaving(effects, left)?;
        }
        match event {
            Event::Started(Started { payload_held, .. }) if before.phase == Phase::Starting => {
                self.page = Page { payload_held, ..Page::default() };
            }
            _ if after.round != before.round => self.last = std::mem::take(&mut self.page),
            _ => {}
        }
        for effect in effects {
            self.judge_effect(event, *effect, after)?;
        }
        let is_block = matches!(event, Event::Head(_)) && after.block > before.block;
        let waits = Work::OF_PHASES.iter().any(|work| work.phase() == Some(after.phase));
        let waits_in_vain = waits && !self.open.iter().any(|piece| piece.is_of_a_phase());
        holds(!(is_block && waits_in_vain), TRIED_AGAIN, || format!("{:?} waits for nobody", after.phase))
    }

    fn judge_round(&self, before: Stand, event: Event, after: Stand) -> Result<(), Fault> {
        if after.round == before.round {
            return Ok(());
        }
        let from_to = || format!("from round {} to {} at {event:?}", before.round, after.round);
        if let Event::Started(started) = event {
            return holds(before.phase == Phase::Starting && after.round == started.round, IN_ORDER, from_to);
        }
        let answered = event == Event::Done(before.round, Done::Stepped);
        let ending = matches!(before.phase, Phase::OuterStep | Phase::NullRound);
        holds(answered && ending && after.round == before.round.next(), IN_ORDER, from_to)?;
        let ends = [Work::OuterStep, Work::NullRound].map(|work| self.page.count(work));
        holds(ends.contains(&0) && ends != [0, 0], ENDS_ONCE, || format!("round {} ended {ends:?}", before.round))
    }

    fn judge_giving_up(&self, before: Stand, event: Event, after: Stand) -> Result<(), Fault> {
        let failed = event == Event::Failed(before.round, before.phase) && before.phase.is_contribution();
        let too_late = before.phase == Phase::InnerSteps && before.block >= self.schedule.inner_steps_end(before.round);
        let may = too_late || self.page.failures >= CONTRIBUTION_TRIES;
        let gave_up = failed && after.phase != before.phase;
        holds(!gave_up || may, TRIES, || format!("given up in {:?} at failure {}", before.phase, self.page.failures))
    }

    /// A phase was left: nobody waits for what was open in it.
    fn judge_leaving(&mut self, effects: &[Effect], left: &mut Vec<Piece>) -> Result<(), Fault> {
        let stopped = self.page.count(Work::StopInnerSteps) > 0
            || effects.iter().any(|effect| matches!(effect, Effect::StopInnerSteps(_)));
        let is_left: Vec<Piece> = self.open.extract_if(.., |piece| piece.is_of_a_phase()).collect();
        for piece in &is_left {
            let may = match piece.work {
                Work::InnerSteps => stopped,
                work => work.phase().is_some_and(Phase::is_contribution),
            };
            holds(may, ANSWERED, || format!("{piece:?} was left"))?;
        }
        left.extend(is_left);
        Ok(())
    }

    fn judge_effect(&mut self, event: Event, effect: Effect, after: Stand) -> Result<(), Fault> {
        let piece = Piece::of(effect);
        let Piece { work, round } = piece;
        let at = || format!("{effect:?} at {after:?}");
        self.judge_role(work).map_err(|claim| Fault { claim, what: at() })?;
        if work == Work::SetWeights {
            let is_due = event == Event::Evaluated(round) && round.0.is_multiple_of(self.rounds_per_weights);
            return holds(is_due, BY_ROLE, at);
        }
        let in_phase = work.phase().is_none_or(|phase| phase == after.phase);
        holds(round == after.round && in_phase, OWN_ROUND, at)?;
        let rivals = |open: &Piece| *open == piece || piece.is_of_a_phase() && open.is_of_a_phase();
        holds(!self.open.iter().any(rivals), ONE_OPEN, || format!("{effect:?} while {:?} are open", self.open))?;
        self.page.begun[work as usize] += 1;
        holds(self.is_in_time(effect, after), IN_TIME, at)?;
        self.judge_count(event, work).map_err(|claim| Fault { claim, what: at() })?;
        match work {
            Work::Decide => holds(after.finalized >= self.schedule.manifest_at(round), DECIDED_FINAL, at)?,
            Work::OuterStep | Work::NullRound => {
                let known = *self.ends.entry(round).or_insert(work);
                let decided = self.page.decided == Some(work == Work::OuterStep);
                holds(decided && known == work, ENDS_ONCE, || format!("{} after {known:?}", at()))?;
            }
            _ => {}
        }
        if work != Work::StopInnerSteps {
            self.open.push(piece);
        }
        Ok(())
    }

    fn judge_role(&self, work: Work) -> Result<(), &'static str> {
        let may = match work {
            Work::InnerSteps | Work::StopInnerSteps | Work::Compress | Work::Seal => self.role.mines(),
            Work::Vote | Work::Evaluate | Work::SetWeights => self.role.validates(),
            Work::Gather | Work::Decide | Work::OuterStep | Work::NullRound | Work::Save => true,
        };
        if may { Ok(()) } else { Err(BY_ROLE) }
    }

    fn is_in_time(&self, effect: Effect, after: Stand) -> bool {
        let (schedule, block) = (&self.schedule, after.block);
        match effect {
            Effect::InnerSteps(round) => {
                block >= schedule.first_block(round) && block < schedule.inner_steps_end(round)
            }
            Effect::Compress(round) | Effect::Seal(round) => {
                block >= schedule.first_block(round) && block < schedule.reveal(round)
            }
            Effect::Vote(round, at) => {
                at == block && block >= schedule.reveal(round) && block < schedule.manifest_at(round)
            }
            Effect::Gather(round) | Effect::Decide(round) => block >= schedule.reveal(round),
            _ => true,
        }
    }

    /// How often this may be begun in a round; it is counted already.
    fn judge_count(&self, event: Event, work: Work) -> Result<(), &'static str> {
        let tries_max = u32::from(CONTRIBUTION_TRIES);
        let made = [Work::InnerSteps, Work::Compress, Work::Seal].map(|work| self.page.count(work));
        let again: u32 = made.iter().map(|n| n.saturating_sub(1)).sum();
        let is_made = matches!(work, Work::InnerSteps | Work::Compress);
        match work {
            _ if is_made && self.page.payload_held => Err(MADE_ONCE),
            Work::InnerSteps | Work::Compress | Work::Seal if again >= tries_max => Err(TRIES),
            Work::StopInnerSteps if self.page.count(work) > 1 || made[0] == 0 => Err(ANSWERED),
            Work::Evaluate if self.page.count(work) > 1 || !matches!(event, Event::Done(_, Done::Gathered)) => {
                Err(EVALUATED_ONCE)
            }
            _ => Ok(()),
        }
    }

    /// That the round before this one was as it is when nothing goes wrong.
    pub fn judge_calm(&self) -> Result<(), Fault> {
        let (mines, validates) = (u32::from(self.role.mines()), u32::from(self.role.validates()));
        let wanted = [
            (Work::InnerSteps, mines),
            (Work::Compress, mines),
            (Work::Seal, mines),
            (Work::Gather, 1),
            (Work::Decide, 1),
            (Work::Save, 1),
            (Work::Evaluate, validates),
        ];
        for (work, want) in wanted {
            let got = self.last.count(work);
            holds(got == want, WHOLE, || format!("{work:?} was begun {got} times, not {want}"))?;
        }
        holds(self.last.count(Work::Vote) >= validates, WHOLE, || "a validator has not voted".to_owned())
    }
}
