//! ChainWriter: puts the node's seals, votes and weights on chain, each exactly once.
//!
//! Hears:   requests of RoundClock: seal, vote, weights; the chain's head; how its own calls went.
//! Tells:   nobody; it answers when a call is on chain, or can no longer be of use.
//! State:   the outbox: what the chain is to say of this node. It is durable, so after a crash the actor compares it with
//!          the chain and goes on; whoever asked asks again and is told of what is there already.
//! Mailbox: one request of each kind, one head a block, one settled call.
//!
//! A hotkey has one commitment, overwritten as a whole, so seal and vote go out together with the identity. At most one
//! call is in flight; waits are counted in blocks, for commitments and weights apart, since the chain limits their rates
//! apart.
//!
//! Nothing is written twice. The chain is read before every call and after it, and a call that is not heard of for
//! `CALL_BLOCKS_MAX` blocks counts as one whose fate is unknown. A call that a crash has cut off may wait in the pool for
//! the rest of its era; so the actor waits one block, reads, and sends only what the chain does not say. One block is
//! enough: a pool holds nothing back, so what the next block does not have was not accepted or is being kept out, and
//! should both get in after all, the second says what the first said: a commitment stays what it is, and weights are
//! refused by their rate limit.
//!
//! Fault points: `seal`, `vote`, `weights`, `sending` (before a call), `settled` (after it, before it is noted).

mod outbox;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use convoke::chain::commitment::{Commitment, Identity, Seal};
use convoke::gauntlet::weights::to_u16;
use convoke::terms::{Block, BlockHash, Hotkey, ManifestHash, Round, Uid, Weight};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::chain::{Class, Outcome};
use crate::leaf::{Leaf, answer};
use crate::node::Parts;
use crate::store::StoreError;
use outbox::{Kind, Outbox};

/// Blocks that each step of a call may take: reading, sending, reading back.
const CALL_BLOCKS_MAX: u32 = 8;
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
    /// What the call in flight carries, each with its round.
    in_flight: Option<Vec<(Kind, Round)>>,
    head: Block,
    commitments: BackOff,
    weights: BackOff,
}

/// When calls of one sort may be sent again.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct BackOff {
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
    /// A sign of life is wanted: the actor waits for its chain, but never in a handler.
    Ping(RpcReplyPort<()>),
}

/// How a call went.
#[derive(Debug)]
pub struct Settled {
    call: Call,
    fate: Fate,
    seconds: f64,
}

#[derive(Debug, Clone)]
enum Call {
    /// To be sent, or only looked for where it would come too late.
    Commitment { commitment: Box<Commitment>, only_look: bool },
    /// Round, shares, and the head when they were decided.
    Weights(Round, Vec<(Hotkey, f64)>, Block),
}

#[derive(Debug)]
enum Fate {
    /// The chain says it, since this block; and the weights, if it was weights.
    OnChain(Block, Vec<(Uid, Weight)>),
    /// It is not there; what became of the call, if one was made.
    Missing(Result<Outcome, String>),
    /// Nobody whom weights were decided for has a slot any more.
    Void,
}

/// The identity that a node of this data directory put on this chain last.
#[must_use]
pub fn last_identity(data_dir: &Path, genesis: BlockHash) -> Option<Identity> {
    Outbox::load(Arc::new(crate::disk::Files), outbox_of(data_dir), genesis).commitment().identity
}

fn outbox_of(data_dir: &Path) -> PathBuf {
    data_dir.join("outbox")
}

impl Actor for ChainWriter {
    type Msg = Msg;
    type State = State;
    type Arguments = Arc<Parts>;

    async fn pre_start(&self, _: ActorRef<Msg>, parts: Arc<Parts>) -> Result<State, ActorProcessingErr> {
        let path = outbox_of(&parts.config.node.data_dir);
        let mut outbox = Outbox::load(Arc::clone(parts.store.disk()), path, parts.chain.genesis());
        let head = parts.chain.heads().borrow().best.number;
        // What was due before a crash may have been sent: the block that could have it is waited for.
        let after = |was_due: bool| BackOff { not_before: Block(head.0 + u64::from(was_due)), tries: 0 };
        let (commitments, weights) = (after(!outbox.due().is_empty()), after(outbox.weights_due().is_some()));
        outbox.put_identity(parts.identity);
        Ok(State { parts, outbox, waiting: Vec::new(), in_flight: None, head, commitments, weights })
    }

    async fn handle(&self, me: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Seal(seal, until, port) => state.seal(seal, until, port).await,
            Msg::Vote(round, manifest, until, port) => state.vote(round, manifest, until, port).await,
            Msg::Weights(round, shares, until, port) => state.weights(round, shares, until, port).await,
            Msg::Head(block) => state.head = state.head.max(block),
            Msg::Settled(settled) => state.settled(*settled).await,
            Msg::Ping(port) => {
                answer(port, ());
                return Ok(());
            }
        }
        state.withdraw_late();
        state.pump(&me).await;
        Ok(())
    }
}

impl State {
    async fn seal(&mut self, seal: Seal, until: Block, port: BlockPort) {
        let round = seal.round;
        self.parts.faults.point(Leaf::ChainWriter, "seal", round).await;
        let put = self.outbox.put_seal(seal);
        self.wait(put, Kind::Seal, round, until, Port::Block(port));
    }

    async fn vote(&mut self, round: Round, manifest: ManifestHash, until: Block, port: BlockPort) {
        self.parts.faults.point(Leaf::ChainWriter, "vote", round).await;
        let put = self.outbox.put_vote(round, manifest);
        self.wait(put, Kind::Vote, round, until, Port::Block(port));
    }

    async fn weights(
        &mut self,
        round: Round,
        shares: Vec<(Hotkey, f64)>,
        until: Block,
        port: RpcReplyPort<Result<WeightsSet, String>>,
    ) {
        self.parts.faults.point(Leaf::ChainWriter, "weights", round).await;
        let put = self.outbox.put_weights(round, shares, self.head);
        self.wait(put, Kind::Weights, round, until, Port::Weights(port));
    }

    /// Whoever has asked waits until the chain says it; what could not be written down is refused at once.
    fn wait(&mut self, put: Result<(), StoreError>, kind: Kind, round: Round, until: Block, port: Port) {
        if let Err(error) = put {
            return port.refuse(format!("the {kind} of round {round} cannot be written down: {error}"));
        }
        self.waiting.push(Waiting { kind, round, until, port });
        self.answer_done();
    }

    /// What can no longer be in time is withdrawn, and whoever waits is told; a call that is on its way may yet be in the last
    /// block that counts.
    fn withdraw_late(&mut self) {
        let (head, in_flight) = (self.head, self.in_flight.as_deref().unwrap_or_default());
        let is_late = |it: &Waiting| head > it.until && !in_flight.contains(&(it.kind, it.round));
        let (late, waiting): (Vec<_>, _) = std::mem::take(&mut self.waiting).into_iter().partition(is_late);
        self.waiting = waiting;
        for late in late {
            self.outbox.withdraw(late.kind, late.round);
            late.port
                .refuse(format!("the {} of round {} was not on chain by block {}", late.kind, late.round, late.until));
        }
    }

    /// Sends the next call, if there is one and nothing is in flight. Weights are sent also while commitments must wait.
    async fn pump(&mut self, me: &ActorRef<Msg>) {
        if self.in_flight.is_some() {
            return;
        }
        let due = self.outbox.due();
        let (call, carried) = if !due.is_empty() && self.head >= self.commitments.not_before {
            let only_look = due.iter().all(|part| self.is_too_late_to_send(*part));
            (Call::Commitment { commitment: Box::new(self.outbox.commitment()), only_look }, due)
        } else if let Some((round, shares, since)) =
            self.outbox.weights_due().filter(|_| self.head >= self.weights.not_before)
        {
            (Call::Weights(round, shares, since), vec![(Kind::Weights, round)])
        } else {
            return;
        };
        self.parts.faults.point(Leaf::ChainWriter, "sending", Round(u64::MAX)).await;
        self.in_flight = Some(carried);
        let (parts, me) = (Arc::clone(&self.parts), me.clone());
        tokio::spawn(async move {
            let started = Instant::now();
            // In a task of its own, so that a panic there is an outcome as well.
            let fate = tokio::spawn(carry_out(parts, call.clone())).await;
            let fate = fate.unwrap_or_else(|error| Fate::Missing(Err(error.to_string())));
            let settled = Settled { call, fate, seconds: started.elapsed().as_secs_f64() };
            drop(me.cast(Msg::Settled(Box::new(settled))));
        });
    }

    /// What is sent now is in the next block at the earliest.
    fn is_too_late_to_send(&self, (kind, round): (Kind, Round)) -> bool {
        self.waiting.iter().any(|it| (it.kind, it.round) == (kind, round) && it.until <= self.head)
    }

    async fn settled(&mut self, settled: Settled) {
        let carried = self.in_flight.take().unwrap_or_default();
        self.parts.faults.point(Leaf::ChainWriter, "settled", Round(u64::MAX)).await;
        let Settled { call, fate, seconds } = settled;
        let told = match &fate {
            Fate::OnChain(..) => "included",
            Fate::Void => "failed",
            Fate::Missing(Ok(outcome)) if is_hopeless(outcome) => "failed",
            Fate::Missing(_) => "retried",
        };
        for (kind, _) in &carried {
            self.parts.journal.chain_call(kind.name(), told, seconds);
        }
        match fate {
            Fate::OnChain(block, set) => {
                self.back_off_of(&call).tries = 0;
                match &call {
                    Call::Commitment { commitment, .. } => self.outbox.committed(commitment, block),
                    Call::Weights(round, ..) => self.outbox.weights_set(*round, block, set),
                }
                self.answer_done();
            }
            Fate::Void => self.give_up(&carried, "nobody they are for has a slot"),
            Fate::Missing(outcome) => {
                warn!(?outcome, call = call.name(), "a call did not reach the chain");
                match outcome {
                    Ok(
                        Outcome::PoolRejected { class: Class::RateLimited(at), .. }
                        | Outcome::DispatchFailed { class: Class::RateLimited(at), .. },
                    ) => self.back_off_of(&call).not_before = at,
                    Ok(outcome) if is_hopeless(&outcome) => {
                        self.give_up(&carried, "the chain refuses it");
                        self.back_off(&call);
                    }
                    _ => self.back_off(&call),
                }
            }
        }
    }

    fn back_off_of(&mut self, call: &Call) -> &mut BackOff {
        match call {
            Call::Commitment { .. } => &mut self.commitments,
            Call::Weights(..) => &mut self.weights,
        }
    }

    fn back_off(&mut self, call: &Call) {
        let head = self.head;
        // In the last block that counts the chain is looked at once more, whatever the back-off says.
        let kinds: &[Kind] =
            if matches!(call, Call::Weights(..)) { &[Kind::Weights] } else { &[Kind::Seal, Kind::Vote] };
        let waited_for = self.waiting.iter().filter(|it| kinds.contains(&it.kind) && it.until > head);
        let last = waited_for.map(|it| it.until).min();
        self.back_off_of(call).more(head, last);
    }

    /// The chain will never take this: whoever waits for it is told, and it is not sent again.
    fn give_up(&mut self, carried: &[(Kind, Round)], why: &str) {
        let is_refused = |it: &Waiting| carried.contains(&(it.kind, it.round));
        let (refused, waiting): (Vec<_>, _) = std::mem::take(&mut self.waiting).into_iter().partition(is_refused);
        self.waiting = waiting;
        for (kind, round) in carried {
            self.outbox.withdraw(*kind, *round);
        }
        for it in refused {
            it.port.refuse(format!("the {} of round {} is given up: {why}", it.kind, it.round));
        }
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

impl BackOff {
    /// Waits longer than the last time, but not past `last`.
    fn more(&mut self, head: Block, last: Option<Block>) {
        let blocks = (1 << self.tries.min(16)).min(BACK_OFF_BLOCKS_MAX);
        self.tries += 1;
        let until = Block(head.0 + blocks);
        self.not_before = last.map_or(until, |last| until.min(last));
    }
}

impl Call {
    fn name(&self) -> &'static str {
        match self {
            Self::Commitment { .. } => "commitment",
            Self::Weights(..) => "weights",
        }
    }
}

/// Whether sending it again cannot help.
fn is_hopeless(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::PoolRejected { class: Class::Fatal | Class::BadArgs, .. }
            | Outcome::DispatchFailed { class: Class::Fatal | Class::BadArgs, .. }
    )
}

/// Makes one call, unless the chain says already what it would, and reads it back. Every step has an end.
async fn carry_out(parts: Arc<Parts>, call: Call) -> Fate {
    match call {
        Call::Commitment { commitment, only_look } => commit(&parts, &commitment, only_look).await,
        Call::Weights(_, shares, since) => set_weights(&parts, &shares, since).await,
    }
}

/// How long one step may take.
fn patience(parts: &Parts) -> Duration {
    parts.chain.block_time().saturating_mul(CALL_BLOCKS_MAX)
}

fn best(parts: &Parts) -> Block {
    parts.chain.heads().borrow().best.number
}

async fn commit(parts: &Parts, commitment: &Commitment, only_look: bool) -> Fate {
    if let Some(block) = committed(parts, commitment, best(parts)).await {
        return Fate::OnChain(block, Vec::new());
    }
    if only_look {
        return Fate::Missing(Err("it is too late to send it".to_owned()));
    }
    let outcome = sent(parts, parts.chain_write.commit(commitment.to_fields())).await;
    match committed(parts, commitment, read_at(parts, &outcome)).await {
        Some(block) => Fate::OnChain(block, Vec::new()),
        None => Fate::Missing(outcome),
    }
}

async fn set_weights(parts: &Parts, shares: &[(Hotkey, f64)], since: Block) -> Fate {
    // Uids may have changed hands since the weights were decided: they are looked up when they are used.
    let metagraph = match timeout(patience(parts), parts.chain.metagraph(best(parts))).await {
        Ok(Ok(metagraph)) => metagraph,
        Ok(Err(error)) => return Fate::Missing(Err(error.to_string())),
        Err(_) => return Fate::Missing(Err("the chain does not answer".to_owned())),
    };
    let by_uid = shares.iter().filter_map(|(hotkey, share)| Some((metagraph.by_hotkey(hotkey)?.uid, *share)));
    let weights = to_u16(&by_uid.collect::<Vec<_>>());
    if let Some(block) = updated(parts, since, best(parts)).await {
        return Fate::OnChain(block, weights);
    }
    if weights.is_empty() {
        return Fate::Void;
    }
    let outcome = sent(parts, parts.chain_write.set_weights(weights.clone(), WEIGHTS_VERSION)).await;
    match updated(parts, since, read_at(parts, &outcome)).await {
        Some(block) => Fate::OnChain(block, weights),
        None => Fate::Missing(outcome),
    }
}

async fn sent(parts: &Parts, call: crate::chain::ChainFuture<'_, Outcome>) -> Result<Outcome, String> {
    match timeout(patience(parts), call).await {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        // Nobody can call it back: the chain is read to learn what became of it.
        Err(_) => Ok(Outcome::Unknown),
    }
}

fn read_at(parts: &Parts, outcome: &Result<Outcome, String>) -> Block {
    match outcome {
        Ok(Outcome::Included { block, .. }) => *block,
        _ => best(parts),
    }
}

/// Weights of this version of the node.
const WEIGHTS_VERSION: u64 = 1;

/// The block since which the chain says this of the hotkey, if it does at `at`.
async fn committed(parts: &Parts, commitment: &Commitment, at: Block) -> Option<Block> {
    let commitments = timeout(patience(parts), parts.chain.commitments(at)).await.ok()?.ok()?;
    let committed = commitments.get(&parts.keypair.hotkey())?;
    (committed.fields == commitment.to_fields()).then_some(committed.block)
}

/// The block in which the hotkey's weights were set, or committed where the chain opens them an epoch later, if it was after
/// `since`: either dates the neuron. The weights themselves are not compared: the chain hides or scales what was sent; but
/// only this node sends any.
async fn updated(parts: &Parts, since: Block, at: Block) -> Option<Block> {
    let metagraph = timeout(patience(parts), parts.chain.metagraph(at)).await.ok()?.ok()?;
    let last_update = metagraph.by_hotkey(&parts.keypair.hotkey())?.last_update;
    (last_update > since).then_some(last_update)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_back_off_doubles_and_does_not_miss_the_last_block() {
        let mut back_off = BackOff::default();
        let waits: Vec<u64> = (0..5)
            .map(|_| {
                back_off.more(Block(100), None);
                back_off.not_before.0 - 100
            })
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 8]);
        back_off.more(Block(100), Some(Block(103)));
        assert_eq!(back_off.not_before, Block(103));
    }
}
