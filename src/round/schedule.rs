//! Which block means what in a round: every deadline of the node is derived here and nowhere else.

use crate::run_spec::TimingSpec;
use crate::terms::{Block, Round};

/// The windows of every round of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    blocks_per_round: u64,
    finality_depth: u64,
    seal_window: u64,
    gather_window: u64,
    manifest_window: u64,
    standby_blocks: u64,
}

impl Schedule {
    /// The schedule of a run spec's timing, which has been validated.
    #[must_use]
    pub fn new(timing: &TimingSpec) -> Self {
        Self {
            blocks_per_round: timing.blocks_per_round,
            finality_depth: timing.finality_depth,
            seal_window: timing.seal_window,
            gather_window: timing.gather_window,
            manifest_window: timing.manifest_window,
            standby_blocks: timing.standby_blocks,
        }
    }

    /// The round that covers `block`.
    #[must_use]
    pub fn round_of(&self, block: Block) -> Round {
        Round(block.0 / self.blocks_per_round)
    }

    /// tB.
    #[must_use]
    pub fn first_block(&self, round: Round) -> Block {
        Block(round.0 * self.blocks_per_round)
    }

    /// The block whose hash seeds the round: final when the round starts. Rounds that start before the chain is
    /// `finality_depth` old are seeded by its first block.
    #[must_use]
    pub fn seed_block(&self, round: Round) -> Block {
        Block(self.first_block(round).0.saturating_sub(self.finality_depth))
    }

    /// From this block on no further inner step begins.
    #[must_use]
    pub fn inner_steps_end(&self, round: Round) -> Block {
        Block(self.reveal(round).0 - self.seal_window)
    }

    /// The last block in which a seal counts.
    #[must_use]
    pub fn sealed_by(&self, round: Round) -> Block {
        Block(self.reveal(round).0 - 1)
    }

    /// From this block on the round's payloads may be read.
    #[must_use]
    pub fn reveal(&self, round: Round) -> Block {
        self.first_block(round.next())
    }

    /// Gathering ends at this block, with what has come by then.
    #[must_use]
    pub fn gather_until(&self, round: Round) -> Block {
        Block(self.reveal(round).0 + self.gather_window)
    }

    /// The votes in the chain's state after this block decide the round.
    #[must_use]
    pub fn manifest_at(&self, round: Round) -> Block {
        Block(self.reveal(round).0 + self.manifest_window)
    }

    /// From this block on the validator at place `turn` in order of stake (0 is the first) may propose.
    #[must_use]
    pub fn proposes_from(&self, round: Round, turn: u64) -> Block {
        Block(self.reveal(round).0.saturating_add(turn.saturating_mul(self.standby_blocks)))
    }
}
