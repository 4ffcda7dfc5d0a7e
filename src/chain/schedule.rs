//! The epoch schedule as a machine of its own: when epochs run, and at which block a commit of weights is revealed.
//!
//! Current runtimes (spec 425) count from the last epoch and keep the count in storage, so that an owner may change the
//! tempo or ask for an epoch out of turn; a block's epoch is no function of its number. The ledger runs this machine; a
//! validator runs it ahead from what it read of the chain, to know until when its weights must stay locked.
//! The vectors of the tests are those of upstream's own prediction (`epoch_schedule_vectors.rs` of its SDK).

use crate::terms::Block;

/// An epoch runs after this many blocks whatever the schedule says.
const TEMPO_MAX: u64 = 50_400;

/// The most epochs that weights may stay locked.
pub const REVEAL_PERIOD_MAX: u64 = 100;

/// A subnet's schedule after a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochSchedule {
    /// Blocks between two epochs; 0 stops them.
    pub tempo: u16,
    /// Block of the last epoch.
    pub last_epoch: u64,
    /// Block of an epoch asked for out of turn, or deferred; 0 is none.
    pub pending_epoch_at: u64,
    /// How many epochs there have been.
    pub epoch_index: u64,
    /// Blocks since an epoch was computed.
    pub blocks_since_last_step: u64,
}

/// Why no block of a reveal can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// The subnet runs no epochs.
    #[error("the subnet's tempo is 0: it runs no epochs, and reveals nothing")]
    TempoIsZero,
    /// No chain locks weights for so long.
    #[error("a reveal period of {epochs} epochs is outside 1 to {REVEAL_PERIOD_MAX}")]
    RevealPeriod {
        /// What was said.
        epochs: u64,
    },
}

impl EpochSchedule {
    /// The schedule after `head` of runtimes that keep none (before about spec 400): epochs are at the blocks for which
    /// (block + netuid + 1) mod (tempo + 1) = 0, and a block's epoch is the quotient.
    #[must_use]
    pub fn of_block_numbers(netuid: u16, tempo: u16, head: Block) -> Self {
        if tempo == 0 {
            return Self { tempo, last_epoch: 0, pending_epoch_at: 0, epoch_index: 0, blocks_since_last_step: 0 };
        }
        let (offset, length) = (u64::from(netuid) + 1, u64::from(tempo) + 1);
        let epoch_index = head.0.saturating_add(offset) / length;
        // Told as the one that is pending, since the one before may be before the chain's first block.
        let next = (epoch_index + 1).saturating_mul(length).saturating_sub(offset);
        let last_epoch = next.saturating_sub(length);
        let blocks_since_last_step = head.0.saturating_sub(last_epoch);
        let tempo = tempo.saturating_add(1);
        Self { tempo, last_epoch, pending_epoch_at: next, epoch_index, blocks_since_last_step }
    }

    /// Whether an epoch runs in this block, the first after those that were counted.
    #[must_use]
    pub fn is_due(&self, block: Block) -> bool {
        let tempo = u64::from(self.tempo);
        let is_pending = self.pending_epoch_at > 0 && block.0 >= self.pending_epoch_at;
        let is_overdue = self.blocks_since_last_step > TEMPO_MAX;
        tempo > 0 && (is_pending || is_overdue || block.0.saturating_sub(self.last_epoch) >= tempo)
    }

    /// The epoch that a commit or a reveal in this block belongs to: that which begins in it, if one does.
    #[must_use]
    pub fn epoch_at(&self, block: Block) -> u64 {
        self.epoch_index.saturating_add(u64::from(self.is_due(block)))
    }

    /// Counts a block. Returns whether an epoch runs in it.
    pub fn pass(&mut self, block: Block) -> bool {
        self.blocks_since_last_step = self.blocks_since_last_step.saturating_add(1);
        let runs = self.is_due(block);
        if runs {
            self.blocks_since_last_step = 0;
            self.pending_epoch_at = 0;
            self.last_epoch = block.0;
            self.epoch_index = self.epoch_index.saturating_add(1);
        }
        runs
    }

    /// The block of the next epoch; `None` if the tempo is zero.
    #[must_use]
    pub fn next(&self) -> Option<Block> {
        let scheduled = self.last_epoch.saturating_add(u64::from(self.tempo));
        let next = if self.pending_epoch_at > 0 { scheduled.min(self.pending_epoch_at) } else { scheduled };
        (self.tempo > 0).then_some(Block(next))
    }

    /// The first block in which the chain tries to reveal what is committed in the block after `head`, `reveal_period`
    /// epochs later. Reveals come before that block's own epoch, so the weights count in it.
    ///
    /// # Errors
    /// A subnet without epochs, or a period that no chain has: commit nothing.
    pub fn reveal_block(&self, head: Block, reveal_period: u64) -> Result<Block, ScheduleError> {
        if self.tempo == 0 {
            return Err(ScheduleError::TempoIsZero);
        }
        if !(1..=REVEAL_PERIOD_MAX).contains(&reveal_period) {
            return Err(ScheduleError::RevealPeriod { epochs: reveal_period });
        }
        let (mut schedule, mut block) = (*self, Block(head.0.saturating_add(1)));
        let reveal_epoch = schedule.epoch_at(block).saturating_add(reveal_period);
        // At most `reveal_period` + 1 tempos; the last epoch of a u64's end would never come.
        while schedule.epoch_at(block) < reveal_epoch && block.0 < u64::MAX {
            schedule.pass(block);
            block = Block(block.0 + 1);
        }
        Ok(block)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn schedule(last_epoch: u64, pending_epoch_at: u64, tempo: u16) -> EpochSchedule {
        EpochSchedule { tempo, last_epoch, pending_epoch_at, epoch_index: 0, blocks_since_last_step: 0 }
    }

    #[test]
    fn a_reveal_is_predicted_as_upstream_predicts_it() {
        assert_eq!(schedule(10, 0, 0).reveal_block(Block(10), 1), Err(ScheduleError::TempoIsZero));
        assert_eq!(schedule(10, 0, 50).reveal_block(Block(10), 1), Ok(Block(60)));
        assert_eq!(schedule(80, 95, 20).reveal_block(Block(91), 1), Ok(Block(95)));
        // Upstream's vector of a commit's epoch: last 100, tempo 50, head 120.
        assert_eq!(schedule(100, 0, 50).epoch_at(Block(121)), 0);
        assert!(!schedule(100, 0, 50).is_due(Block(149)) && schedule(100, 0, 50).is_due(Block(150)));
    }

    #[test]
    fn a_commit_in_an_epochs_own_block_belongs_to_that_epoch() {
        assert_eq!(schedule(10, 0, 50).reveal_block(Block(58), 1), Ok(Block(60)));
        assert_eq!(schedule(10, 0, 50).reveal_block(Block(59), 1), Ok(Block(110)));
        assert_eq!(schedule(10, 0, 50).reveal_block(Block(59), 3), Ok(Block(210)));
    }

    #[test]
    fn a_period_that_no_chain_has_is_refused_rather_than_simulated() {
        for epochs in [0, 101, u64::MAX] {
            let refused = Err(ScheduleError::RevealPeriod { epochs });
            assert_eq!(schedule(10, 0, 50).reveal_block(Block(10), epochs), refused);
        }
        assert!(schedule(u64::MAX - 3, 0, 50).reveal_block(Block(u64::MAX - 2), 100).is_ok());
    }

    proptest! {
        #[test]
        fn a_chain_without_a_schedule_has_its_epochs_by_number(
            netuid in 0_u16..40, tempo in 1_u16..30, head in 0_u64..200, period in 1_u64..4,
        ) {
            let index = |block: u64| (block + u64::from(netuid) + 1) / (u64::from(tempo) + 1);
            let mut schedule = EpochSchedule::of_block_numbers(netuid, tempo, Block(head));
            let first = (head + 1..).find(|&block| index(block) == index(head + 1) + period).unwrap();
            prop_assert_eq!(schedule.reveal_block(Block(head), period), Ok(Block(first)));
            prop_assert_eq!(schedule.epoch_index, index(head));
            for block in head + 1..head + 100 {
                let said = schedule.next().unwrap();
                prop_assert_eq!(schedule.epoch_at(Block(block)), index(block));
                let runs = (block + u64::from(netuid) + 1).is_multiple_of(u64::from(tempo) + 1);
                prop_assert_eq!(schedule.pass(Block(block)), runs);
                prop_assert_eq!(said == Block(block), runs);
            }
        }

        #[test]
        fn every_epoch_is_where_the_one_before_said(
            last in 0_u64..50, pending in 0_u64..90, tempo in 1_u16..30, blocks in 1_u64..120,
        ) {
            let mut schedule = schedule(last, pending, tempo);
            for block in last + 1..last + blocks {
                // What is late, because it was asked for in the past, runs at once.
                let said = schedule.next().unwrap().max(Block(block));
                prop_assert_eq!(schedule.pass(Block(block)), said == Block(block));
            }
        }
    }
}
