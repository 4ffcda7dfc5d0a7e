//! Faults on purpose: makes a chosen actor panic or hang, ends the whole process, or changes one bit of θ, at a chosen point of a
//! chosen round, once.
//!
//! A fault script is how the promise «a crash of any one actor costs its node at most one contribution» is
//! tested on the real node. In production the script is empty and a point costs one comparison.

use std::str::FromStr;
use std::sync::Mutex;
use std::time::Duration;

use convoke::terms::Round;
use serde::{Deserialize, Serialize};

use crate::journal::Journal;
use crate::leaf::Leaf;

/// What happens at the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// The actor panics.
    Panic,
    /// The actor, or its thread, never goes on.
    Hang,
    /// The process ends without a further instruction, as by SIGKILL.
    Kill,
    /// One bit of what the point is about is another.
    Flip,
}

impl FaultKind {
    const ALL: [Self; 4] = [Self::Panic, Self::Hang, Self::Kill, Self::Flip];

    /// The name in scripts and events.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Hang => "hang",
            Self::Kill => "kill",
            Self::Flip => "flip",
        }
    }
}

/// One fault, spent when it strikes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Which actor.
    pub leaf: Leaf,
    /// Which point in its work; the points are listed in each actor's module doc.
    pub point: String,
    /// From which round on.
    pub round: Round,
    /// What happens.
    pub kind: FaultKind,
}

/// The faults still to come.
pub struct Faults {
    script: Mutex<Vec<Fault>>,
    journal: Journal,
    /// How the process ends.
    end: Box<dyn Fn(&Fault) + Send + Sync>,
}

impl Faults {
    /// A script of faults that are told to the journal when they strike.
    #[must_use]
    pub fn new(script: Vec<Fault>, journal: Journal) -> Self {
        Self::ending(script, journal, |_| end_this_process())
    }

    /// A script in which the process ends in another way than by a signal.
    #[must_use]
    pub fn ending(script: Vec<Fault>, journal: Journal, end: impl Fn(&Fault) + Send + Sync + 'static) -> Self {
        Self { script: Mutex::new(script), journal, end: Box::new(end) }
    }

    /// One more fault.
    pub fn add(&self, fault: Fault) {
        self.script.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(fault);
    }

    fn due(&self, leaf: Leaf, is_point: impl Fn(&str) -> bool, round: Round, flips: bool) -> Option<FaultKind> {
        // A poisoned script is one that struck while it was held; what is left of it is still right.
        let mut script = self.script.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_due = |fault: &Fault| {
            let is_here = fault.leaf == leaf && is_point(&fault.point) && round >= fault.round;
            is_here && flips == (fault.kind == FaultKind::Flip)
        };
        let idx = script.iter().position(is_due)?;
        let fault = script.swap_remove(idx);
        drop(script);
        self.journal.fault(round, &fault);
        if fault.kind == FaultKind::Kill {
            // Whoever reads the events learns that it was on purpose.
            self.journal.events.flush();
            (self.end)(&fault);
        }
        Some(fault.kind)
    }

    /// Whether one bit of what this point is about has to change.
    pub fn flips(&self, leaf: Leaf, point: &str, round: Round) -> bool {
        self.due(leaf, |at| at == point, round, true).is_some()
    }

    /// A point inside an actor's handler.
    ///
    /// # Panics
    /// On purpose, when a panic is due here.
    pub async fn point(&self, leaf: Leaf, point: &str, round: Round) {
        match self.due(leaf, |at| at == point, round, false) {
            Some(FaultKind::Panic) => panic!("fault on purpose: {leaf} at {point}"),
            // Who has been killed does not go on either.
            Some(FaultKind::Hang | FaultKind::Kill) => std::future::pending().await,
            Some(FaultKind::Flip) | None => {}
        }
    }

    /// A point in work that a task does in place of a thread: what a panic there would say.
    ///
    /// # Errors
    /// When a panic is due here.
    pub async fn point_on_task(&self, leaf: Leaf, point: &str, round: Round) -> Result<(), String> {
        self.strike_task(leaf, |at| at == point, point, round).await
    }

    /// As [`Self::point_on_task`], right after the work: in a script, the point with `.done` behind it.
    ///
    /// # Errors
    /// When a panic is due here.
    pub async fn done_on_task(&self, leaf: Leaf, point: &str, round: Round) -> Result<(), String> {
        self.strike_task(leaf, |at| at.strip_suffix(".done") == Some(point), point, round).await
    }

    async fn strike_task(
        &self,
        leaf: Leaf,
        is_point: impl Fn(&str) -> bool,
        point: &str,
        round: Round,
    ) -> Result<(), String> {
        match self.due(leaf, is_point, round, false) {
            Some(FaultKind::Panic) => Err(format!("fault on purpose: {leaf} at {point}")),
            Some(FaultKind::Hang | FaultKind::Kill) => std::future::pending().await,
            Some(FaultKind::Flip) | None => Ok(()),
        }
    }

    /// A point on an actor's own thread.
    ///
    /// # Panics
    /// On purpose, when a panic is due here.
    pub fn point_on_thread(&self, leaf: Leaf, point: &str, round: Round) {
        match self.due(leaf, |at| at == point, round, false) {
            Some(FaultKind::Panic) => panic!("fault on purpose: {leaf} at {point}"),
            Some(FaultKind::Hang) => loop {
                std::thread::park_timeout(Duration::from_secs(3600));
            },
            Some(FaultKind::Kill | FaultKind::Flip) | None => {}
        }
    }
}

#[cfg(unix)]
fn end_this_process() {
    let killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    killed.expect("a process may end itself");
}

#[cfg(not(unix))]
fn end_this_process() {
    std::process::abort();
}

/// Why a fault's text is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a fault: write actor:point:round:kind, the kind one of panic, hang, kill, flip")]
pub struct NotAFault {
    text: String,
}

impl FromStr for Fault {
    type Err = NotAFault;

    fn from_str(text: &str) -> Result<Self, NotAFault> {
        let refused = || NotAFault { text: text.to_owned() };
        let [leaf, point, round, kind] =
            <[&str; 4]>::try_from(text.split(':').collect::<Vec<_>>()).map_err(|_| refused())?;
        Ok(Self {
            leaf: Leaf::ALL.into_iter().find(|known| known.name() == leaf).ok_or_else(refused)?,
            point: point.to_owned(),
            round: Round(round.parse().map_err(|_| refused())?),
            kind: FaultKind::ALL.into_iter().find(|known| known.name() == kind).ok_or_else(refused)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_written_as_actor_point_round_kind() {
        let fault: Fault = "compressor:compress:3:panic".parse().unwrap();
        assert_eq!((fault.leaf, fault.round, fault.kind), (Leaf::Compressor, Round(3), FaultKind::Panic));
        for text in ["", "compressor", "nobody:compress:3:panic", "compressor:x:3:explode", "compressor:x:y:hang"] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
    }
}
