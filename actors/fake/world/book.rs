//! What all lives of a simulated run write in, and what the world reads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::BEGINNING_MS;
use crate::events::{Event, Line, Witness};
use crate::fake::checks::Checks;
use crate::fake::fence::Fence;
use crate::fake::log::Log;
use crate::fake::plan::Planned;

/// What all lives write in, and what the world reads.
pub(super) struct Book {
    pub entries: Mutex<Entries>,
    pub wake: Notify,
    pub started: Instant,
}

pub(super) struct Entries {
    pub log: Log,
    pub checks: Checks,
    /// Deaths that wait for their phase, by node.
    pub doomed: Vec<Vec<Planned>>,
    /// Who has just died, and for how long.
    pub dead: Vec<(usize, u64)>,
}

impl Book {
    pub fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One life's line to the book.
pub(super) struct Eye {
    pub book: Arc<Book>,
    pub node: usize,
    pub fence: Fence,
}

impl Witness for Eye {
    fn unix_ms(&self) -> u64 {
        BEGINNING_MS + u64::try_from(self.book.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn see(&self, line: Line) {
        if self.fence.has_fallen() {
            return;
        }
        let mut entries = self.book.entries();
        let entries = &mut *entries;
        entries.log.event(&line);
        entries.checks.event(self.node, &line);
        let (Event::PhaseStarted { phase }, Some(round)) = (&line.event, line.round) else { return };
        let doomed = &mut entries.doomed[self.node];
        let is_now = |planned: &Planned| planned.round <= round && planned.point == *phase;
        if let Some(idx) = doomed.iter().position(is_now) {
            let planned = doomed.swap_remove(idx);
            // From here on nobody hears of it; what is left of its tasks is ended by the world.
            self.fence.fall();
            entries.log.text(&format!("node {} dies in {phase} of round {round}", self.node));
            entries.dead.push((self.node, planned.blocks));
            self.book.wake.notify_one();
        }
    }
}
