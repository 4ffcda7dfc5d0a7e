//! Faults on purpose: panics or hangs a chosen actor at a chosen point of a chosen round, once.
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
}

impl Faults {
    /// A script of faults that are told to the journal when they strike.
    #[must_use]
    pub fn new(script: Vec<Fault>, journal: Journal) -> Self {
        Self { script: Mutex::new(script), journal }
    }

    fn due(&self, leaf: Leaf, point: &str, round: Round) -> Option<FaultKind> {
        // A poisoned script is one that struck while it was held; what is left of it is still right.
        let mut script = self.script.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let idx = script.iter().position(|fault| fault.leaf == leaf && fault.point == point && round >= fault.round)?;
        let fault = script.swap_remove(idx);
        drop(script);
        self.journal.fault(round, &fault);
        Some(fault.kind)
    }

    /// A point inside an actor's handler.
    ///
    /// # Panics
    /// On purpose, when a panic is due here.
    pub async fn point(&self, leaf: Leaf, point: &str, round: Round) {
        match self.due(leaf, point, round) {
            Some(FaultKind::Panic) => panic!("fault on purpose: {leaf} at {point}"),
            Some(FaultKind::Hang) => std::future::pending().await,
            None => {}
        }
    }

    /// A point on an actor's own thread.
    ///
    /// # Panics
    /// On purpose, when a panic is due here.
    pub fn point_on_thread(&self, leaf: Leaf, point: &str, round: Round) {
        match self.due(leaf, point, round) {
            Some(FaultKind::Panic) => panic!("fault on purpose: {leaf} at {point}"),
            Some(FaultKind::Hang) => loop {
                std::thread::park_timeout(Duration::from_secs(3600));
            },
            None => {}
        }
    }
}

/// Why a fault's text is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a fault: write actor:point:round:panic or actor:point:round:hang")]
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
            kind: match kind {
                "panic" => FaultKind::Panic,
                "hang" => FaultKind::Hang,
                _ => return Err(refused()),
            },
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
