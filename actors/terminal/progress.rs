//! The progress bar of the running round: inner steps while the node trains, then what it does until the next round.
//!
//! The bar reads the status board at its own pace, so no actor knows of it and a slow terminal slows nobody.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::watch;

use crate::status::{Progress, StatusBoard};

/// How often the bar looks at the board.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// A progress bar for one round after the other.
pub struct RoundBar {
    bar: ProgressBar,
}

impl RoundBar {
    pub(super) fn new(bar: ProgressBar) -> Self {
        let style = ProgressStyle::with_template("{prefix:>10.cyan.bold} [{bar:24}] {pos:>3}/{len} {wide_msg}")
            .expect("the template is well formed");
        bar.set_style(style.progress_chars("=> "));
        Self { bar }
    }

    /// Draws the board's progress until `stop` says true or its sender is gone, then takes the bar away.
    pub async fn follow(self, board: StatusBoard, mut stop: watch::Receiver<bool>) {
        loop {
            self.show(&board.progress());
            // Both an error, its sender being gone, and a true mean the end.
            if tokio::time::timeout(LOOK_INTERVAL, stop.wait_for(|stop| *stop)).await.is_ok() {
                break;
            }
        }
        self.bar.finish_and_clear();
    }

    /// Draws this progress.
    pub fn show(&self, progress: &Progress) {
        if let Some(round) = progress.round {
            self.bar.set_prefix(format!("round {round}"));
        }
        self.bar.set_length(u64::from(progress.steps_max));
        self.bar.set_position(u64::from(progress.steps));
        self.bar.set_message(message(progress));
    }
}

/// What stands behind the bar: the phase, then the losses and the block as far as they are known.
fn message(progress: &Progress) -> String {
    let mut parts = vec![progress.phase.to_owned()];
    parts.extend(progress.train_loss.map(|loss| format!("loss {loss:.3}")));
    parts.extend(progress.heldout_loss.map(|loss| format!("held-out {loss:.3}")));
    parts.extend(progress.block.map(|block| format!("block {block}")));
    parts.retain(|part| !part.is_empty());
    parts.join(" · ")
}

#[cfg(test)]
mod tests {
    use convoke::terms::{Block, Hotkey, Round, RunId};

    use super::*;
    use crate::status::{Freshness, Identity};

    const FULL: Progress = Progress {
        round: Some(Round(12)),
        phase: "training",
        block: Some(Block(370)),
        steps: 7,
        steps_max: 30,
        train_loss: Some(3.1256),
        heldout_loss: Some(2.5),
    };

    #[test]
    fn the_bar_tells_round_steps_phase_and_losses() {
        let bar = RoundBar::new(ProgressBar::hidden());
        bar.show(&FULL);
        assert_eq!((bar.bar.prefix(), bar.bar.position(), bar.bar.length()), ("round 12".to_owned(), 7, Some(30)));
        assert_eq!(bar.bar.message(), "training · loss 3.126 · held-out 2.500 · block 370");
    }

    #[test]
    fn what_is_not_known_is_not_shown() {
        assert_eq!(message(&Progress::default()), "");
        assert_eq!(message(&Progress { phase: "gathering", ..Progress::default() }), "gathering");
    }

    #[tokio::test(start_paused = true)]
    async fn the_bar_follows_the_board_until_it_is_stopped() {
        let text = || "a".to_owned();
        let identity = Identity {
            node: text(),
            version: text(),
            role: text(),
            run_id: RunId::default(),
            hotkey: Hotkey::default(),
        };
        let age = Duration::from_secs(1);
        let board = StatusBoard::new(identity, Freshness { head_age_max: age, round_age_max: age });
        let bar = RoundBar::new(ProgressBar::hidden());
        let shown = bar.bar.clone();
        let (stop, stopped) = watch::channel(false);
        let following = tokio::spawn(bar.follow(board.clone(), stopped));
        board.round_started(Round(4), 30);
        board.inner_steps(Round(4), 9, 1.5);
        tokio::time::sleep(2 * LOOK_INTERVAL).await;
        assert_eq!((shown.prefix(), shown.position()), ("round 4".to_owned(), 9));
        stop.send_replace(true);
        following.await.unwrap();
        assert!(shown.is_finished());
    }
}
