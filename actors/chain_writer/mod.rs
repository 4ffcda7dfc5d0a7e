//! ChainWriter: puts the node's seals, votes and weights on chain, each exactly once.
//!
//! Hears:   requests of RoundClock: seal, vote, weights; the chain's head; how its own calls went.
//! Tells:   nobody; it answers when a call is on chain, or can no longer be of use.
//! State:   the outbox: what the chain is to say of this node. It is durable, so after a crash the actor compares it with
//!          the chain and goes on; whoever asked asks again and is told of what is there already.
//! Mailbox: one request of each kind, one head a block, one settled call.
//!
//! A hotkey has one commitment, overwritten as a whole, so seal and vote go out together with the identity. At most one
//! call is in flight; nothing is sent again before the chain has been read back; waits are counted in blocks.
//!
//! Fault points: `seal`, `vote`, `weights`, `sending` (before a call), `settled` (after it, before it is noted).

mod outbox;

use std::sync::Arc;
use std::time::Instant;

use convoke::chain::commitment::{Commitment, Identity, Place, Seal};
use convoke::gauntlet::weights::to_u16;
use convoke::terms::{Block, Hotkey, ManifestHash, Round, Uid, Weight};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tracing::{debug, warn};

use crate::chain::{Class, Outcome};
use crate::leaf::{Leaf, answer};
use crate::node::Parts;
use outbox::{Kind, Outbox};

/// Blocks between two tries at most.
const BACK_OFF_BLOCKS_MAX: u64 = 8;

/// The actor.
#[derive(Debug)]
pub struct ChainWriter;

/// The outbox and who waits for what.
pub struct State {
    parts: Arc<Parts>,
    outbox: Outbox,
    waiting: Vec<Waiting>,
    in_flight: bool,
    head: Block,
    not_before: Block,
    tries: u32,
}

/// Takes the block of a commitment.
pub type BlockPort = RpcReplyPort<Result<Block, String>>;
/// What was set, and in which block.
pub type WeightsSet = (Block, Vec<(Uid, Weight)>);

enum Port {
    Block(BlockPort),
    Weights(RpcReplyPort<Result<WeightsSet, String>>),
}

struct Waiting {
    kind: Kind,
    round: Round,
    until: Block,
    port: Port,
}

/// What the actor hears.
#[derive(Debug)]
pub enum Msg {
    /// Commit to a payload, by this block at the latest.
    Seal(Seal, Block, BlockPort),
    /// Vote for a manifest, by this block at the latest.
    Vote(Round, ManifestHash, Block, BlockPort),
    /// Set weights; shares by hotkey.
    Weights(Round, Vec<(Hotkey, f64)>, Block, RpcReplyPort<Result<WeightsSet, String>>),
    /// The chain has a new head.
    Head(Block),
    /// A call has met its fate.
    Settled(Box<Settled>),
    /// A sign of life is wanted.
    Ping(RpcReplyPort<()>),
}

/// How a call went.
#[derive(Debug)]
pub struct Settled {
    sent: Sent,
    outcome: Result<Outcome, String>,
    /// Whether the chain says what was sent, read back after the call.
    on_chain: Option<Block>,
    seconds: f64,
}

#[derive(Debug, Clone)]
enum Sent {
    Commitment(Commitment),
    /// Round, weights, and the head when they were decided.
    Weights(Round, Vec<(Uid, Weight)>, Block),
}

impl Actor for ChainWriter {
    type Msg = Msg;
    type State = State;
    type Arguments = Arc<Parts>;

    async fn pre_start(&self, _: ActorRef<Msg>, parts: Arc<Parts>) -> Result<State, ActorProcessingErr> {
        let mut outbox = Outbox::load(parts.config.node.data_dir.join("outbox"));
        let place = Place { genesis: parts.chain.genesis(), netuid: parts.chain.netuid() };
        let hotkey = parts.keypair.hotkey();
        outbox.put_identity(Identity::prove(&parts.endpoint_secret, &place, &hotkey, outbox.identity_seq()))?;
        let head = parts.chain.heads().borrow().best.number;
        Ok(State { parts, outbox, waiting: Vec::new(), in_flight: false, head, not_before: Block(0), tries: 0 })
    }

    async fn handle(&self, me: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Seal(seal, until, port) => state.seal(seal, until, port).await?,
            Msg::Vote(round, manifest, until, port) => state.vote(round, manifest, until, port).await?,
            Msg::Weights(round, shares, until, port) => state.weights(round, shares, until, port).await?,
            Msg::Head(block) => state.on_head(block),
            Msg::Settled(settled) => state.settled(*settled).await?,
            Msg::Ping(port) => answer(port, ()),
        }
        state.pump(&me).await;
        Ok(())
    }
}

impl State {
    async fn seal(&mut self, seal: Seal, until: Block, port: BlockPort) -> Result<(), ActorProcessingErr> {
        let round = seal.round;
        self.parts.faults.point(Leaf::ChainWriter, "seal", round).await;
        self.outbox.put_seal(seal)?;
        self.wait(Kind::Seal, round, until, Port::Block(port));
        Ok(())
    }

    async fn vote(
        &mut self,
        round: Round,
        manifest: ManifestHash,
        until: Block,
        port: BlockPort,
    ) -> Result<(), ActorProcessingErr> {
        self.parts.faults.point(Leaf::ChainWriter, "vote", round).await;
        self.outbox.put_vote(round, manifest)?;
        self.wait(Kind::Vote, round, until, Port::Block(port));
        Ok(())
    }

    async fn weights(
        &mut self,
        round: Round,
        shares: Vec<(Hotkey, f64)>,
        until: Block,
        port: RpcReplyPort<Result<WeightsSet, String>>,
    ) -> Result<(), ActorProcessingErr> {
        self.parts.faults.point(Leaf::ChainWriter, "weights", round).await;
        self.outbox.put_weights(round, shares, self.head)?;
        self.wait(Kind::Weights, round, until, Port::Weights(port));
        Ok(())
    }

    fn wait(&mut self, kind: Kind, round: Round, until: Block, port: Port) {
        self.waiting.push(Waiting { kind, round, until, port });
        self.answer_done();
    }

    fn on_head(&mut self, block: Block) {
        self.head = self.head.max(block);
        // Calls that can no longer be in time are withdrawn, and whoever waits is told.
        let (late, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|it| it.until <= self.head);
        self.waiting = waiting;
        for late in late {
            self.outbox.withdraw(late.kind, late.round);
            late.port
                .refuse(format!("the {} of round {} was not on chain by block {}", late.kind, late.round, late.until));
        }
    }

    /// Sends the next call, if there is one and nothing is in flight.
    async fn pump(&mut self, me: &ActorRef<Msg>) {
        if self.in_flight || self.head < self.not_before {
            return;
        }
        let sent = if !self.outbox.due().is_empty() {
            Sent::Commitment(self.outbox.commitment())
        } else if let Some((round, shares, since)) = self.outbox.weights_due() {
            match self.by_uid(&shares).await {
                Ok(weights) if weights.is_empty() => return self.outbox.withdraw(Kind::Weights, round),
                Ok(weights) => Sent::Weights(round, weights, since),
                Err(reason) => {
                    debug!(reason, "weights wait for the chain");
                    return self.back_off();
                }
            }
        } else {
            return;
        };
        self.parts.faults.point(Leaf::ChainWriter, "sending", Round(u64::MAX)).await;
        self.in_flight = true;
        let (parts, me) = (Arc::clone(&self.parts), me.clone());
        tokio::spawn(async move {
            let settled = send(&parts, sent).await;
            drop(me.cast(Msg::Settled(Box::new(settled))));
        });
    }

    /// Uids may have changed hands since the weights were decided: they are looked up when they are used.
    async fn by_uid(&self, shares: &[(Hotkey, f64)]) -> Result<Vec<(Uid, Weight)>, String> {
        let metagraph = self.parts.chain.metagraph(self.head).await.map_err(|error| error.to_string())?;
        let by_uid = shares.iter().filter_map(|(hotkey, share)| Some((metagraph.by_hotkey(hotkey)?.uid, *share)));
        Ok(to_u16(&by_uid.collect::<Vec<_>>()))
    }

    async fn settled(&mut self, settled: Settled) -> Result<(), ActorProcessingErr> {
        self.in_flight = false;
        self.parts.faults.point(Leaf::ChainWriter, "settled", Round(u64::MAX)).await;
        let kinds = settled.sent.kinds(&self.outbox);
        let Settled { sent, outcome, on_chain, seconds } = settled;
        let told = match on_chain {
            Some(_) => "included",
            None if matches!(outcome, Ok(Outcome::DispatchFailed { class: Class::Fatal | Class::BadArgs, .. })) => {
                "failed"
            }
            None => "retried",
        };
        for kind in &kinds {
            self.parts.journal.chain_call(kind.name(), told, seconds);
        }
        let Some(block) = on_chain else {
            warn!(?outcome, call = sent.name(), "a call did not reach the chain");
            match outcome {
                Ok(
                    Outcome::PoolRejected { class: Class::RateLimited(at), .. }
                    | Outcome::DispatchFailed { class: Class::RateLimited(at), .. },
                ) => self.not_before = at,
                Ok(
                    Outcome::PoolRejected { class: Class::Fatal | Class::BadArgs, .. }
                    | Outcome::DispatchFailed { class: Class::Fatal | Class::BadArgs, .. },
                ) => self.give_up(&sent, &kinds),
                _ => self.back_off(),
            }
            return Ok(());
        };
        self.tries = 0;
        match sent {
            Sent::Commitment(commitment) => self.outbox.committed(&commitment, block)?,
            Sent::Weights(round, weights, _) => self.outbox.weights_set(round, block, weights)?,
        }
        self.answer_done();
        Ok(())
    }

    fn back_off(&mut self) {
        let blocks = (1 << self.tries.min(16)).min(BACK_OFF_BLOCKS_MAX);
        self.tries += 1;
        self.not_before = Block(self.head.0 + blocks);
    }

    /// The chain will never take this call: whoever waits for it is told, and it is not sent again.
    fn give_up(&mut self, sent: &Sent, kinds: &[Kind]) {
        let (refused, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|it| kinds.contains(&it.kind));
        self.waiting = waiting;
        for it in refused {
            self.outbox.withdraw(it.kind, it.round);
            it.port.refuse(format!("the chain refuses the {}", it.kind));
        }
        if let Sent::Weights(round, ..) = sent {
            self.outbox.withdraw(Kind::Weights, *round);
        }
        self.back_off();
    }

    /// Answers everybody whose call is on chain.
    fn answer_done(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            match (self.outbox.done(waiting.kind, waiting.round), waiting.port) {
                (Some(block), Port::Block(port)) => answer(port, Ok(block)),
                (Some(block), Port::Weights(port)) => answer(port, Ok((block, self.outbox.last_weights()))),
                (None, port) => self.waiting.push(Waiting { port, ..waiting }),
            }
        }
    }
}

impl Port {
    fn refuse(self, reason: String) {
        match self {
            Self::Block(port) => answer(port, Err(reason)),
            Self::Weights(port) => answer(port, Err(reason)),
        }
    }
}

impl Sent {
    fn name(&self) -> &'static str {
        match self {
            Self::Commitment(_) => "commitment",
            Self::Weights(..) => "weights",
        }
    }

    /// What of the outbox the call carries for the first time.
    fn kinds(&self, outbox: &Outbox) -> Vec<Kind> {
        match self {
            Self::Commitment(_) => outbox.due(),
            Self::Weights(..) => vec![Kind::Weights],
        }
    }
}

/// Sends one call, unless the chain says already what it would, and reads it back.
async fn send(parts: &Parts, sent: Sent) -> Settled {
    let started = Instant::now();
    let head = parts.chain.heads().borrow().best.number;
    if let Some(block) = on_chain(parts, &sent, head).await {
        return Settled { sent, outcome: Err("it was there".to_owned()), on_chain: Some(block), seconds: 0.0 };
    }
    let outcome = match &sent {
        Sent::Commitment(commitment) => parts.chain_write.commit(commitment.to_fields()).await,
        Sent::Weights(_, weights, _) => parts.chain_write.set_weights(weights.clone(), WEIGHTS_VERSION).await,
    };
    let outcome = outcome.map_err(|error| error.to_string());
    let read_at = match &outcome {
        Ok(Outcome::Included { block, .. }) => *block,
        _ => parts.chain.heads().borrow().best.number,
    };
    let found = on_chain(parts, &sent, read_at).await;
    Settled { sent, outcome, on_chain: found, seconds: started.elapsed().as_secs_f64() }
}

/// Weights of this version of the node.
const WEIGHTS_VERSION: u64 = 1;

/// The block since which the chain says what the call says, if it does at `at`.
async fn on_chain(parts: &Parts, sent: &Sent, at: Block) -> Option<Block> {
    let me = parts.keypair.hotkey();
    match sent {
        Sent::Commitment(commitment) => {
            let commitments = parts.chain.commitments(at).await.ok()?;
            let committed = commitments.get(&me)?;
            (committed.fields == commitment.to_fields()).then_some(committed.block)
        }
        // The chain scales weights, so what it shows is not what was sent; but only this node sets them.
        Sent::Weights(_, _, since) => {
            let metagraph = parts.chain.metagraph(at).await.ok()?;
            let last_update = metagraph.by_hotkey(&me)?.last_update;
            (last_update > *since).then_some(last_update)
        }
    }
}
