//! A validator's evaluation of a round, beside the round that runs.

use std::sync::Arc;
use std::time::Duration;

use convoke::gauntlet::record::Outcome;
use convoke::round::Phase;
use convoke::terms::Round;

use super::board::{Ground, Update};
use super::{Desk, Trouble};
use crate::chain_writer;
use crate::gauntlet::{self, Gathered};
use crate::gpu_worker;
use crate::leaf::{Leaf, ask};

impl Desk {
    /// Evaluates the round's contributions against the θ they were made from, one after the other, as the device has
    /// time between inner steps; then rates them.
    pub fn evaluate(&self, round: Round, ground: Option<Ground>, gathered: Option<Arc<Gathered>>) {
        let (Some(ground), Some(gathered)) = (ground, gathered) else { return };
        let desk = self.clone();
        self.run_aside(round, async move {
            let timing = &desk.parts.config.run.timing;
            let blocks = u32::try_from(timing.blocks_per_round).unwrap_or(u32::MAX);
            // The device may be busy with a whole round of inner steps before it comes to an evaluation.
            let within = desk.parts.chain.block_time().saturating_mul(blocks).max(EVALUATION);
            let seed = desk.hash_of(desk.parts.schedule.seed_block(round)).await?;
            // Nobody knows this hash before all payloads of the round are sealed.
            let draw = desk.hash_of(desk.parts.schedule.reveal(round)).await?;
            let request = gauntlet::PlanRequest { round, seed, draw, gathered: Arc::clone(&gathered) };
            let question = |port| gauntlet::Msg::Plan(request, port);
            let plan = ask(Leaf::Gauntlet, &desk.leaves.gauntlet, within, question).await?;
            let mut outcomes: Vec<_> = gathered
                .rejected
                .iter()
                .map(|rejection| (rejection.hotkey, Outcome::Rejected(rejection.reason.clone())))
                .collect();
            for evaluation in plan {
                let (hotkey, uid) = (evaluation.hotkey, evaluation.uid);
                let theta = Arc::clone(&ground.theta);
                let question = |port| gpu_worker::Msg::Evaluate { round, theta, evaluation, port };
                let losses = ask(Leaf::GpuWorker, &desk.leaves.gpu_worker, within, question).await?;
                let score = convoke::gauntlet::loss_score::score(&losses);
                desk.parts.metrics.gauntlet.evaluated(uid, score.improvement);
                desk.parts.status.scored(uid, score.improvement);
                desk.parts.events.emit(crate::events::Event::Evaluated {
                    round,
                    uid,
                    score: score.improvement,
                    assigned_improvement: score.own_improvement,
                    unassigned_improvement: score.improvement,
                });
                outcomes.push((hotkey, Outcome::Scored(score)));
            }
            let question = |port| gauntlet::Msg::Rate { round, outcomes, port };
            let standing = ask(Leaf::Gauntlet, &desk.leaves.gauntlet, within, question).await?;
            Ok(Update::Evaluated { round, standing })
        });
    }

    /// Sends the weights that follow from the ratings, if there is anybody to weigh.
    pub fn set_weights(&self, round: Round) {
        let desk = self.clone();
        self.run_aside(round, async move {
            let within = desk.within(Phase::Deciding, round).max(EVALUATION);
            let question = |port| gauntlet::Msg::Weights { port };
            let weights = ask(Leaf::Gauntlet, &desk.leaves.gauntlet, within, question).await?;
            if weights.is_empty() {
                return Ok(Update::Nothing { round });
            }
            let question = |port| chain_writer::Msg::Weights { round, weights, port };
            let sent = ask(Leaf::ChainWriter, &desk.leaves.chain_writer, within, question).await?;
            let (block, weights) = sent.map_err(Trouble::Outside)?;
            Ok(Update::WeightsSet { round, block, weights })
        });
    }
}

const EVALUATION: Duration = Duration::from_secs(30);
