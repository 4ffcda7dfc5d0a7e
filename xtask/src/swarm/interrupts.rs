//! The signals by which the swarm is asked to stop, so that it never ends without its processes.

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// From when it is made until it is dropped, these signals are wishes and not the end.
pub struct Interrupts(Signals);

impl Interrupts {
    pub fn new() -> Result<Self> {
        // SIGHUP: the terminal was closed.
        Ok(Self(Signals::new([SIGHUP, SIGINT, SIGTERM]).context("signals cannot be listened to")?))
    }

    /// Whether one has come since this was asked last.
    pub fn any(&mut self) -> bool {
        self.0.pending().count() > 0
    }
}
