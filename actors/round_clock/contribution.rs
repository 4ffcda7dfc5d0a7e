//! The own contribution of a round: inner steps, payload, seal.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use convoke::chain::commitment::Seal;
use convoke::round::Phase;
use convoke::terms::{PayloadHash, Round, Uid};
use ractor::RpcReplyPort;
use tokio::time::Instant;

use super::board::{Ground, Training, Update};
use super::{Beside, Desk, Trouble, deadline};
use crate::chain_writer;
use crate::compressor::{self, Contribution, Parcel, Refused};
use crate::gpu_worker;
use crate::leaf::{AskError, Leaf, ask};
use crate::peer_sync;
use crate::status::SealReport;

impl Desk {
    /// How long the questions of a phase may take from the present head on.
    pub fn within(&self, phase: Phase, round: Round) -> Duration {
        let head = self.parts.chain.heads().borrow().best.number;
        deadline::within(&self.parts.schedule, phase, round, head, self.parts.chain.block_time())
    }

    /// Finds out where the node stands, goes to where the newest θ is nearest, and puts that θ on the device.
    pub fn start(&self, round: Round, in_doubt: bool) {
        let desk = self.clone();
        self.run(round, Beside::Phase(Phase::Starting), async move {
            let within = desk.within(Phase::Starting, round).max(STARTING);
            let position = ask(Leaf::Compressor, &desk.leaves.compressor, within, compressor::Msg::Position).await?;
            desk.admit_now().await?;
            let position = desk.caught_up(position, in_doubt).await?;
            let heldout_loss = desk.load(position.round, &position.theta, position.pending.is_some(), within).await?;
            Ok(Update::Started { position, heldout_loss })
        });
    }

    pub async fn load(
        &self,
        round: Round,
        theta: &compressor::Theta,
        adopt_pending: bool,
        within: Duration,
    ) -> Result<f64, Trouble> {
        let theta = Arc::clone(theta);
        let question = |port| gpu_worker::Msg::Load { round, theta, adopt_pending, port };
        Ok(ask(Leaf::GpuWorker, &self.leaves.gpu_worker, within, question).await?)
    }

    pub fn inner_steps(&self, round: Round, stop: Arc<AtomicBool>) {
        let desk = self.clone();
        self.run(round, Beside::Phase(Phase::InnerSteps), async move {
            let within = desk.within(Phase::InnerSteps, round);
            let seed = desk.seed(round, within).await?;
            let question = |port| gpu_worker::Msg::InnerSteps { round, seed, stop, port };
            let trained = ask(Leaf::GpuWorker, &desk.leaves.gpu_worker, within, question).await?;
            let trained = trained.map_err(Trouble::Displaced)?;
            let counted = desk.parts.config.run.inner.counted(trained.steps);
            Ok(Update::Trained { round, trained, counted })
        });
    }

    pub fn compress(&self, round: Round, training: Option<Training>) {
        let desk = self.clone();
        self.run(round, Beside::Phase(Phase::Compressing), async move {
            let Some(training) = training else {
                return Err(Trouble::Outside("there is no pseudo-gradient to compress".to_owned()));
            };
            let within = desk.within(Phase::Compressing, round);
            let uid = desk.own_uid().await?;
            let contribution = Contribution { round, uid, inner_steps: training.steps, delta: training.delta };
            let question = |port| compressor::Msg::Compress(contribution, port);
            match ask(Leaf::Compressor, &desk.leaves.compressor, within, question).await? {
                Ok(compressed) => Ok(Update::Compressed { round, compressed }),
                Err(refused @ Refused::OtherRound { .. }) => Err(Trouble::Displaced(refused.to_string())),
                Err(refused) => Err(Trouble::Outside(refused.to_string())),
            }
        });
    }

    /// Keeps the payload for those who will ask, then commits to it on chain.
    pub fn seal(&self, round: Round, parcel: Option<Parcel>, ground: Option<Ground>) {
        let desk = self.clone();
        self.run(round, Beside::Phase(Phase::Sealing), async move {
            let (Some(parcel), Some(ground)) = (parcel, ground) else {
                return Err(Trouble::Outside("there is no payload to seal".to_owned()));
            };
            let within = desk.within(Phase::Sealing, round);
            let reveal = peer_sync::Reveal::At(desk.parts.schedule.reveal(round));
            let (payload, bytes) = (&parcel.payload, Arc::clone(&parcel.bytes));
            let transport_bytes = bytes.len() as u64;
            let question =
                |port| peer_sync::Msg::Publish { round, kind: peer_sync::Kind::Payload, bytes, reveal, port };
            let published = ask(Leaf::PeerSync, &desk.leaves.peer_sync, within, question).await?;
            published.map_err(Trouble::Outside)?;
            desk.admit_now().await?;
            let seed = desk.seed(round, within).await?;
            let hotkey = desk.parts.keypair.hotkey();
            let chunks = desk.parts.config.run.gauntlet.holding_chunks;
            let proof = desk.parts.opening.holding(&ground.theta, ground.digest, &seed, &hotkey, chunks);
            let seal = Seal {
                round,
                payload: payload.hash(),
                transport: parcel.hash,
                transport_bytes,
                base: ground.digest,
                holding: Seal::holding_of(&proof),
            };
            let until = desk.parts.schedule.sealed_by(round);
            let question = |port| chain_writer::Msg::Seal(seal, until, port);
            let asked = Instant::now();
            let block = desk.ask_chain_writer(within, question).await?.map_err(Trouble::Outside)?;
            Ok(Update::Sealed {
                round,
                block,
                seal: desk.seal_report(payload.hash(), transport_bytes),
                inner_steps: payload.header().inner_steps,
                waited: asked.elapsed(),
            })
        });
    }

    /// What operators are told of the own payload.
    pub fn seal_report(&self, payload: PayloadHash, bytes: u64) -> SealReport {
        let dense_bytes = self.parts.layout.n_params() as f64 * 4.0;
        SealReport { payload, bytes, ratio: dense_bytes / bytes as f64 }
    }

    /// Asks the ChainWriter, whose answer waits for blocks: when the time is over, the chain may be slow and the actor well.
    pub async fn ask_chain_writer<T: Send + 'static>(
        &self,
        within: Duration,
        question: impl FnOnce(RpcReplyPort<T>) -> chain_writer::Msg,
    ) -> Result<T, Trouble> {
        let (leaf, actor) = (Leaf::ChainWriter, &self.leaves.chain_writer);
        match ask(leaf, actor, within, question).await {
            Err(AskError::Hung(_)) => {
                ask(leaf, actor, deadline::AT_LEAST, chain_writer::Msg::Ping).await?;
                Err(Trouble::Outside("the chain has not taken the call in time".to_owned()))
            }
            outcome => Ok(outcome?),
        }
    }

    /// The own slot at this moment.
    async fn own_uid(&self) -> Result<Uid, Trouble> {
        let head = self.parts.chain.heads().borrow().best.number;
        let outside = |error: crate::chain::ChainError| Trouble::Outside(error.to_string());
        let metagraph = self.parts.chain.metagraph(head).await.map_err(outside)?;
        let neuron = metagraph.by_hotkey(&self.parts.keypair.hotkey());
        neuron.map(|neuron| neuron.uid).ok_or_else(|| Trouble::Outside("this hotkey is not registered".to_owned()))
    }
}

/// The first load compiles kernels on some devices and opens files on all.
pub const STARTING: Duration = Duration::from_secs(60);
