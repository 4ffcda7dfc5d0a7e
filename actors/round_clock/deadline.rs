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
    block_time.saturating_mul(blocks).max(AT_LEAST)
}
