//! How long each phase's questions may take: the one place where blocks become seconds.

use std::time::Duration;

use convoke::round::{Phase, Schedule};
use convoke::terms::{Block, Round};

/// A question is never given less than this: on a busy machine an idle actor takes a while to answer, and a node that
/// catches up works on rounds whose deadlines have long passed.
pub const AT_LEAST: Duration = Duration::from_secs(2);

/// The time from `now` until the phase of `round` must be over, at `block_time` a block.
#[must_use]
pub fn within(schedule: &Schedule, phase: Phase, round: Round, now: Block, block_time: Duration) -> Duration {
    let whole_round = schedule.reveal(round).0 - schedule.first_block(round).0;
    let until = match phase {
        Phase::InnerSteps | Phase::Compressing | Phase::Sealing => schedule.reveal(round),
        Phase::Gathering => schedule.gather_until(round),
        Phase::AwaitingManifest => schedule.manifest_at(round),
        // What agreement needs has no block after which it is useless; half a round is long enough to call it hung.
        Phase::Starting
        | Phase::Ready
        | Phase::AwaitingReveal
        | Phase::Deciding
        | Phase::OuterStep
        | Phase::NullRound
        | Phase::Saving => Block(now.0 + whole_round.div_ceil(2)),
    };
    let blocks = u32::try_from(until.0.saturating_sub(now.0)).unwrap_or(u32::MAX);
    let at_least = match phase {
        // One payload that never comes makes a gather last as long as it may: no longer than others wait for its votes.
        Phase::Gathering => block_time,
        _ => AT_LEAST,
    };
    block_time.saturating_mul(blocks).max(at_least)
}

#[cfg(test)]
mod tests {
    use convoke::run_spec::TimingSpec;

    use super::*;

    const BLOCK_TIME: Duration = Duration::from_millis(500);

    fn within_at(phase: Phase, now: u64) -> Duration {
        let schedule = Schedule::new(&TimingSpec {
            blocks_per_round: 30,
            finality_depth: 2,
            head_confirmations: 0,
            seal_window: 3,
            gather_window: 4,
            manifest_window: 6,
            standby_blocks: 1,
            checkpoint_rounds: 10,
        });
        within(&schedule, phase, Round(0), Block(now), BLOCK_TIME)
    }

    #[test]
    fn a_gather_ends_with_its_window_and_not_later() {
        assert_eq!(within_at(Phase::Gathering, 30), 4 * BLOCK_TIME);
        assert_eq!(within_at(Phase::Gathering, 33), BLOCK_TIME);
        assert_eq!(within_at(Phase::Gathering, 50), BLOCK_TIME);
    }

    #[test]
    fn a_contribution_has_until_the_reveal_and_agreement_half_a_round() {
        assert_eq!(within_at(Phase::InnerSteps, 2), 28 * BLOCK_TIME);
        assert_eq!(within_at(Phase::Sealing, 29), AT_LEAST);
        assert_eq!(within_at(Phase::OuterStep, 36), 15 * BLOCK_TIME);
    }
}
