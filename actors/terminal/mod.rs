//! What a person at a terminal sees: logs, a progress bar per round, and a table at the end.
//!
//! Logs and bar go to stderr, so that stdout holds only what was asked for. On a terminal the logs are pretty and are
//! written around the bar; elsewhere each is a JSON object on a line, and there is no bar.

mod closing;
mod logs;
mod progress;

use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget};

pub use closing::closing_table;
pub use logs::LogsError;
pub use progress::RoundBar;

/// Where logs and bar go. Clones write to the same place.
#[derive(Clone)]
pub struct Terminal {
    /// The bars, when there is somebody to look at them.
    bars: Option<MultiProgress>,
}

impl Terminal {
    /// Stderr as it is: a terminal, or a pipe or file.
    #[must_use]
    pub fn detect() -> Self {
        let bars = || MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        Self { bars: std::io::stderr().is_terminal().then(bars) }
    }

    /// Sends the process's logs here. `level` is a level, or tracing directives such as `info,convoke_node=debug`.
    /// To be called once, by `main`: logs belong to the process and not to a node.
    ///
    /// # Errors
    /// If the level cannot be read, or logs were sent elsewhere before.
    pub fn init_logs(&self, level: &str) -> Result<(), LogsError> {
        logs::init(self, level)
    }

    /// The bar of the running round, where there is a terminal to draw it on.
    #[must_use]
    pub fn round_bar(&self) -> Option<RoundBar> {
        self.bars.as_ref().map(|bars| RoundBar::new(bars.add(ProgressBar::new(0))))
    }
}
