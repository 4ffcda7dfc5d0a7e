//! A validator's evaluation of a round, beside the round that runs.

use std::sync::Arc;
use std::time::Duration;

use convoke::gauntlet::loss_score::Score;
use convoke::gauntlet::record::Outcome;
use convoke::terms::{Round, Uid};
use tokio::time::Instant;

use super::board::{Ground, Update};
use super::{Beside, Desk, Trouble};
use crate::chain_writer;
use crate::gauntlet::{self, Evaluation, Gathered};
use crate::gpu_worker;
use crate::leaf::{Leaf, ask};

impl Desk {
    /// Evaluates the round's contributions against the θ they were made from, one after the other, as the device has
    /// time between inner steps; then rates them.
    pub fn evaluate(&self, round: Round, ground: Option<Ground>, gathered: Option<Arc<Gathered>>) {
        let (Some(ground), Some(gathered)) = (ground, gathered) else { return };
        let desk = self.clone();
        self.run(round, Beside::Scoring, async move {
            let timing = &desk.parts.config.run.timing;
            let blocks = u32::try_from(timing.blocks_per_round).unwrap_or(u32::MAX);
            // The device may be busy with a whole round of inner steps before it comes to an evaluation.
            let within = desk.parts.chain.block_time().saturating_mul(blocks).max(EVALUATION);
            let seed = desk.seed(round, within).await?;
            // Nobody knows this hash before all payloads of the round are sealed.
            let draw = desk.final_hash(desk.parts.schedule.reveal(round), within).await?;
            let request = gauntlet::PlanRequest { round, seed, draw, gathered: Arc::clone(&gathered) };
            let question = |port| gauntlet::Msg::Plan(request, port);
            let plan = ask(Leaf::Gauntlet, &desk.leaves.gauntlet, within, question).await?;
            let mut outcomes = Vec::with_capacity(plan.len());
            for evaluation in plan {
                outcomes.push((evaluation.hotkey, desk.evaluate_one(round, &ground, evaluation, within).await?));
            }
            let question = |port| gauntlet::Msg::Rate(round, gathered, outcomes, port);
            let standings = ask(Leaf::Gauntlet, &desk.leaves.gauntlet, within, question).await?;
            Ok(Update::Evaluated { round, standings })
        });
    }

    async fn evaluate_one(
        &self,
        round: Round,
        ground: &Ground,
        evaluation: Evaluation,
        within: Duration,
    ) -> Result<Outcome, Trouble> {
        let started = Instant::now();
        let (hotkey, uid, theta) = (evaluation.hotkey, evaluation.uid, Arc::clone(&ground.theta));
        let question = |port| gpu_worker::Msg::Evaluate { round, theta, evaluation, port };
        let losses = ask(Leaf::GpuWorker, &self.leaves.gpu_worker, within, question).await?;
        let score = Score::of(&losses);
        let improvements = [score.own_improvement, score.improvement];
        self.parts.journal.evaluated(round, uid, hotkey, improvements, started.elapsed().as_secs_f64());
        Ok(Outcome::Scored(score))
    }

    /// Sends the weights that follow from the ratings, if there is anybody to weigh.
    pub fn set_weights(&self, round: Round) {
        let desk = self.clone();
        self.run(round, Beside::Scoring, async move {
            let head = desk.parts.chain.heads().borrow().finalized.number;
            let metagraph = desk.parts.chain.metagraph(head).await;
            let metagraph = metagraph.map_err(|error| Trouble::Outside(error.to_string()))?;
            let registered = metagraph.neurons.iter().map(|neuron| neuron.hotkey).collect();
            let spec = &desk.parts.config.run.gauntlet;
            // Without a share to burn nobody is put on chain as the burn uid.
            let burn = metagraph.by_uid(Uid(spec.burn_uid)).filter(|_| spec.burn_share > 0.0);
            let burn = burn.map(|neuron| neuron.hotkey);
            let question = |port| gauntlet::Msg::Weights(round, registered, burn, port);
            let shares = ask(Leaf::Gauntlet, &desk.leaves.gauntlet, EVALUATION, question).await?;
            if shares.is_empty() {
                return Ok(Update::Nothing);
            }
            let rounds = desk.parts.config.run.gauntlet.rounds_per_weights;
            let until = desk.parts.schedule.reveal(Round(round.0 + rounds));
            let blocks = u32::try_from(until.0.saturating_sub(head.0)).unwrap_or(u32::MAX);
            let within = desk.parts.chain.block_time().saturating_mul(blocks) + EVALUATION;
            let question = |port| chain_writer::Msg::Weights(round, shares, until, port);
            let (block, weights) = desk.ask_chain_writer(within, question).await?.map_err(Trouble::Outside)?;
            Ok(Update::WeightsSet { round, block, weights })
        });
    }
}

/// A question beside the round is given at least this long.
const EVALUATION: Duration = Duration::from_secs(30);
