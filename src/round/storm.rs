//! A storm of events against the round state machine: whatever a node's surroundings may tell it, and whatever they may not.
//!
//! A byte string is a schedule, a role, and then one gust after another: blocks forward, backward and by leaps, finality late and
//! early, answers that come late, twice, for other rounds and phases or never, failures, and new machines that find the
//! place of the old one. A model answers what the machine begins; rules of their own judge every step. When the bytes are used up
//! the storm is over: blocks come one by one, everything is answered well, and the machine has to end its round within two
//! rounds of blocks and then do whole rounds again.
//!
//! A byte string is what a fuzzer knows how to change (`fuzz/`) and what a property test draws; the same bytes are the same
//! storm for both. The model keeps to what a chain can do: how a round is decided is one thing for all machines, as the
//! votes in a final block are.

mod rules;

use std::any::Any;
use std::collections::VecDeque;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Done, Effect, Event, Phase, Role, RoundState, Schedule, Started};
use crate::run_spec::TimingSpec;
use crate::terms::{Block, ManifestHash, Round};
use rules::{Fault, Piece, Rules, Stand, Work, holds};

const PANICS: &str = "the machine never panics";
const LIVES: &str = "when all is calm, the round at hand ends within two rounds of blocks";

/// Events that are kept to be told once more, and to say what led to a fault.
const MOMENTS: usize = 24;

/// Answers that may still come after nobody waits for them.
const LATE_MAX: usize = 16;

/// Rounds of blocks after a storm: two to end the round at hand, the others to do whole ones.
const CALM_ROUNDS: u64 = 5;

/// What a storm came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// Events that the machines were told, the calm after the storm included.
    pub events: u64,
    /// Machines that took the place of another.
    pub restarts: u64,
    /// Rounds that ended in an outer step; once for each machine that did it.
    pub outer_steps: u64,
    /// Rounds that ended in a null round; once for each machine that did it.
    pub null_rounds: u64,
    /// Contributions that were sealed.
    pub sealed: u64,
    /// Failures that a machine took for one of its phase.
    pub failures: u64,
}

/// A claim that the machine broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{claim}; but {what}\n{trace}")]
pub struct Broken {
    /// What holds of every machine.
    pub claim: &'static str,
    /// What was seen instead.
    pub what: String,
    /// What the machine is, and the last that it was told and did.
    pub trace: String,
}

/// Lets a storm loose on the machine.
///
/// # Errors
/// The first claim that the machine breaks: it is at fault, or the claim is.
pub fn storm(bytes: &[u8]) -> Result<Report, Broken> {
    drive(bytes, |setting| RoundState::new(setting.schedule.clone(), setting.role, setting.rounds_per_weights))
}

fn drive<M: Machine>(bytes: &[u8], make: impl Fn(&Setting) -> M) -> Result<Report, Broken> {
    let mut bytes = Bytes(bytes);
    let setting = Setting::read(&mut bytes);
    let rules = Rules::new(setting.schedule.clone(), setting.role, setting.rounds_per_weights);
    let best = bytes.number(2 * setting.timing.blocks_per_round);
    let mut storm = Storm {
        bytes,
        machine: make(&setting),
        make,
        setting,
        rules,
        best,
        saved: Round(0),
        held: Round(0),
        late: vec![],
        moments: VecDeque::new(),
        report: Report::default(),
    };
    while !storm.bytes.0.is_empty() {
        storm.blow()?;
    }
    storm.calm()?;
    Ok(storm.report)
}

/// What a storm is let loose on: the round state machine, or one that was made wrong to see whether it is found.
trait Machine {
    fn step(&mut self, event: Event) -> Vec<Effect>;

    fn stand(&self) -> Stand;
}

impl Machine for RoundState {
    fn step(&mut self, event: Event) -> Vec<Effect> {
        Self::step(self, event)
    }

    fn stand(&self) -> Stand {
        Stand { round: self.round(), phase: self.phase(), block: self.block(), finalized: self.finalized() }
    }
}

/// Bytes as they are used up; zeros after their end.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn number(&mut self, below: u64) -> u64 {
        u64::from(self.take()) % below
    }
}

/// What does not change in a storm.
struct Setting {
    timing: TimingSpec,
    schedule: Schedule,
    role: Role,
    rounds_per_weights: u64,
    /// Draws how rounds are decided.
    draw: u8,
}

impl Setting {
    /// Any timing that a run spec may have and in which votes have time to come, in small numbers.
    fn read(bytes: &mut Bytes<'_>) -> Self {
        let role = [Role::Miner, Role::Validator, Role::Both][usize::from(bytes.take() % 3)];
        let rounds_per_weights = 1 + bytes.number(4);
        let manifest_window = 1 + bytes.number(4);
        let finality_depth = 1 + bytes.number(3);
        let head_confirmations = bytes.number(manifest_window.min(3));
        let seal_window = 1 + bytes.number(3);
        let taken = manifest_window + finality_depth.max(head_confirmations) + seal_window;
        let timing = TimingSpec {
            blocks_per_round: taken + 1 + bytes.number(13),
            finality_depth,
            head_confirmations,
            seal_window,
            gather_window: 1,
            manifest_window,
            standby_blocks: 1,
            checkpoint_rounds: 8,
        };
        let schedule = Schedule::new(&timing);
        Self { timing, schedule, role, rounds_per_weights, draw: bytes.take() }
    }

    /// How the chain decides a round: three times of four for a manifest.
    fn decision(&self, round: Round) -> Option<ManifestHash> {
        let draw = round.0.wrapping_add(u64::from(self.draw) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (draw >> 62 != 0).then(|| ManifestHash([draw.to_le_bytes()[7]; 32]))
    }
}

/// One event and what came of it.
struct Moment {
    event: Event,
    effects: Vec<Effect>,
    round: Round,
    phase: Phase,
}

/// A machine, and the world that it is in.
struct Storm<'a, M, F> {
    bytes: Bytes<'a>,
    setting: Setting,
    make: F,
    machine: M,
    rules: Rules,
    /// The newest block of the chain.
    best: u64,
    /// The newest boundary on disk.
    saved: Round,
    /// Where the machine before this one stood.
    held: Round,
    /// Work that nobody waits for any more, but which may still be answered.
    late: Vec<Piece>,
    moments: VecDeque<Moment>,
    report: Report,
}

impl<M: Machine, F: Fn(&Setting) -> M> Storm<'_, M, F> {
    /// One gust: what the next byte says, the upper three bits being a choice within it.
    fn blow(&mut self) -> Result<(), Broken> {
        let byte = self.bytes.take();
        let choice = usize::from(byte >> 5);
        match byte & 31 {
            kind @ 0..=8 => self.blow_head(kind, choice),
            9..=11 => self.tell(Event::Final(self.settled())),
            12 => {
                let late = self.bytes.number(self.setting.timing.blocks_per_round);
                self.tell(Event::Final(Block(self.settled().0.saturating_sub(late))))
            }
            13 => self.tell(Event::Final(Block(self.best))),
            14..=23 if self.machine.stand().phase == Phase::Starting => self.find_place(),
            kind @ 14..=25 => self.answer(kind < 24, choice),
            26 => {
                let back = usize::from(self.bytes.take()) % self.moments.len().max(1);
                let told = self.moments.iter().nth_back(back).map(|moment| moment.event);
                told.map_or(Ok(()), |event| self.tell(event))
            }
            27 => match self.late.get(choice % self.late.len().max(1)).copied() {
                Some(piece) => self.tell_of(piece, choice < 6, 30),
                None => Ok(()),
            },
            28 => self.go_astray(),
            29 => {
                let round = self.near();
                self.tell(if choice % 2 == 1 { Event::VoteEnded(round) } else { Event::Evaluated(round) })
            }
            30 => self.restart(choice),
            _ if self.machine.stand().phase == Phase::Starting => self.find_place(),
            _ => {
                let round = Round(self.machine.stand().round.0 + choice as u64);
                self.tell(Event::Started(Started { round, payload_held: false, saved: true }))
            }
        }
    }

    fn blow_head(&mut self, kind: u8, choice: usize) -> Result<(), Broken> {
        let block = match kind {
            // To where something begins or ends in the round, or right before it.
            5 | 6 => {
                let edge = Block(self.edge().0 - choice as u64 % 2);
                self.best = self.best.max(edge.0 + self.setting.timing.head_confirmations);
                edge
            }
            8 => Block(self.confirmed().0.saturating_sub(u64::from(self.bytes.take()))),
            _ => {
                let ahead = match kind {
                    4 => 1 + choice as u64,
                    7 => self.leap(),
                    _ => 1,
                };
                self.best += ahead;
                self.confirmed()
            }
        };
        self.tell(Event::Head(block))
    }

    /// One time of four up to three rounds, as after a sleep; else a block.
    fn leap(&mut self) -> u64 {
        let blocks = u64::from(self.bytes.take());
        if blocks < 192 { 1 } else { blocks % (3 * self.setting.timing.blocks_per_round) }
    }

    /// The block up to which the head counts.
    fn confirmed(&self) -> Block {
        Block(self.best.saturating_sub(self.setting.timing.head_confirmations))
    }

    /// The block that is final when finality is in time.
    fn settled(&self) -> Block {
        Block(self.best.saturating_sub(self.setting.timing.finality_depth))
    }

    /// The next block at which something begins or ends in the machine's round.
    fn edge(&self) -> Block {
        let (schedule, round) = (&self.setting.schedule, self.machine.stand().round);
        let first = schedule.first_block(round);
        let edges = [first, schedule.inner_steps_end(round), schedule.reveal(round), schedule.manifest_at(round)];
        let here = self.confirmed();
        edges.into_iter().find(|edge| *edge > here).unwrap_or(Block(here.0 + 1))
    }

    /// A round not far from the machine's.
    fn near(&mut self) -> Round {
        let ahead = self.bytes.number(5);
        Round((self.machine.stand().round.0 + ahead).saturating_sub(2))
    }

    fn answer(&mut self, well: bool, choice: usize) -> Result<(), Broken> {
        let open = self.rules.open();
        let Some(piece) = open.get(choice % open.len().max(1)).copied() else { return Ok(()) };
        self.tell_of(piece, well, if choice == 7 { 0 } else { 30 })
    }

    fn tell_of(&mut self, piece: Piece, well: bool, steps: u32) -> Result<(), Broken> {
        let decision = self.setting.decision(piece.round);
        let event = if well { piece.went_well(steps, decision) } else { piece.failed() };
        event.map_or(Ok(()), |event| self.tell(event))
    }

    /// An answer that nobody asked for, unless by chance.
    fn go_astray(&mut self) -> Result<(), Broken> {
        let (round, what) = (self.near(), self.bytes.take());
        if what < 128 {
            let phase = Phase::ALL[usize::from(what) % Phase::ALL.len()];
            return self.tell(Event::Failed(round, phase));
        }
        let work = Work::OF_PHASES[usize::from(what) % Work::OF_PHASES.len()];
        self.tell_of(Piece { work, round }, true, u32::from(what % 3))
    }

    /// The machine dies, and another takes its place; what was under way may still be answered.
    fn restart(&mut self, choice: usize) -> Result<(), Broken> {
        if self.bytes.take() >= 64 {
            return Ok(());
        }
        let Stand { round, phase, .. } = self.machine.stand();
        if phase != Phase::Starting {
            self.held = round;
        }
        self.late.extend(self.rules.restart());
        self.machine = (self.make)(&self.setting);
        self.report.restarts += 1;
        if choice.is_multiple_of(2) {
            return Ok(());
        }
        self.tell(Event::Head(self.confirmed()))?;
        self.tell(Event::Final(self.settled()))
    }

    /// The machine is told where it is: at the boundary on disk, where θ still lay in memory, or where others are.
    fn find_place(&mut self) -> Result<(), Broken> {
        let choice = self.bytes.take();
        let here = self.setting.schedule.round_of(Block(self.best));
        let (round, saved) = match (choice >> 1) & 3 {
            0 | 1 => (self.saved, true),
            2 => (self.held, false),
            _ if choice & 16 == 0 => (here, choice & 8 != 0),
            _ => (here.next(), choice & 8 != 0),
        };
        if saved {
            self.saved = round;
        }
        self.tell(Event::Started(Started { round, payload_held: choice & 1 == 1, saved }))
    }

    fn tell(&mut self, event: Event) -> Result<(), Broken> {
        let before = self.machine.stand();
        self.rules.tell(before, event);
        let machine = &mut self.machine;
        let effects = catch_unwind(AssertUnwindSafe(|| machine.step(event)));
        let after = self.machine.stand();
        let (effects, verdict) = match effects {
            Ok(effects) => {
                let verdict = self.rules.judge(before, event, &effects, after, &mut self.late);
                (effects, verdict)
            }
            Err(panic) => (vec![], Err(Fault { claim: PANICS, what: format!("it did: {}", words(panic.as_ref())) })),
        };
        self.note(before, event);
        self.moments.push_back(Moment { event, effects, round: after.round, phase: after.phase });
        let n_old = self.moments.len().saturating_sub(MOMENTS);
        self.moments.drain(..n_old);
        let n_old = self.late.len().saturating_sub(LATE_MAX);
        self.late.drain(..n_old);
        verdict.map_err(|fault| self.broken(fault))
    }

    /// Counts what the machine was told, and keeps what of it outlives the machine.
    fn note(&mut self, before: Stand, event: Event) {
        let report = &mut self.report;
        report.events += 1;
        match event {
            Event::Failed(round, phase) if (round, phase) == (before.round, before.phase) => report.failures += 1,
            Event::Done(round, done) if round == before.round => match (before.phase, done) {
                (Phase::Sealing, Done::Sealed) => report.sealed += 1,
                (Phase::OuterStep, Done::Stepped) => report.outer_steps += 1,
                (Phase::NullRound, Done::Stepped) => report.null_rounds += 1,
                (Phase::Saving, Done::Saved) => self.saved = round,
                _ => {}
            },
            _ => {}
        }
    }

    /// Everything that is open is answered well, and what follows from that, until nothing is left.
    fn settle(&mut self) -> Result<(), Broken> {
        if self.machine.stand().phase == Phase::Starting {
            self.tell(Event::Started(Started { round: self.saved, payload_held: false, saved: true }))?;
        }
        let here = self.setting.schedule.round_of(Block(self.best));
        let n_behind = here.0.saturating_sub(self.machine.stand().round.0);
        // A round that others have ended long ago is decided, ended and saved.
        let mut answers_left = 64 + self.rules.open().len() as u64 + 8 * n_behind;
        while let Some(piece) = self.rules.open().first().copied() {
            let what = || format!("with every answer {piece:?} is begun again");
            holds(answers_left > 0, LIVES, what).map_err(|fault| self.broken(fault))?;
            answers_left -= 1;
            self.tell_of(piece, true, 30)?;
        }
        Ok(())
    }

    fn calm(&mut self) -> Result<(), Broken> {
        let timing = &self.setting.timing;
        let (blocks_per_round, stand) = (timing.blocks_per_round, self.machine.stand());
        self.best = self.best.max(stand.block.0 + timing.head_confirmations);
        self.best = self.best.max(stand.finalized.0 + timing.finality_depth);
        self.settle()?;
        let round = self.machine.stand().round;
        let from = self.best.max(self.setting.schedule.first_block(round).0);
        for best in self.best + 1..=from + CALM_ROUNDS * blocks_per_round {
            self.best = best;
            self.tell(Event::Head(self.confirmed()))?;
            self.settle()?;
            self.tell(Event::Final(self.settled()))?;
            self.settle()?;
            let has_time = self.machine.stand().round > round || best < from + 2 * blocks_per_round;
            let what = || format!("round {round} goes on at block {best}; calm since {from}");
            holds(has_time, LIVES, what).map_err(|fault| self.broken(fault))?;
        }
        let (at, here) = (self.machine.stand().round, self.setting.schedule.round_of(Block(self.best)));
        let in_step = holds(at.0 + 1 >= here.0, LIVES, || format!("it is in round {at} in round {here} of the chain"));
        in_step.and_then(|()| self.rules.judge_calm()).map_err(|fault| self.broken(fault))
    }

    fn broken(&self, fault: Fault) -> Broken {
        let Setting { timing, role, .. } = &self.setting;
        let mut trace = format!("{role:?} with {timing:?}");
        for Moment { event, effects, round, phase } in &self.moments {
            // A string takes whatever is written to it.
            let _ = write!(trace, "\n  {event:?} -> {effects:?}, round {round} {phase:?}");
        }
        Broken { claim: fault.claim, what: fault.what, trace }
    }
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words")
}

#[cfg(test)]
mod tests;
