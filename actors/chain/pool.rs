//! The pool: calls that wait for a block, and whoever waits for their fate.
//!
//! As on chain: flat priority, first come first served; nothing replaces a waiting call, only the end of its era
//! removes it. A call in a block that a fork drops waits again, though whoever sent it was told of that block already.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use convoke::chain::{AccountId, Call, Invalid, Metagraph, Receipt, Verdict, VerifiedCall};
use convoke::terms::{Block, Hotkey};
use tokio::sync::oneshot;

use super::BlockRef;
use super::outcome::{Class, IMMEDIATELY_DROPPED, INVALID_TRANSACTION, Outcome, retry_at};

/// Calls that wait at once; a node has one in flight, so this is room for more nodes than a subnet has slots.
const WAITING_MAX: usize = 4096;

/// What goes wrong with a call on its way, when a test says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallFault {
    /// It is held back for this many blocks.
    Delay(u64),
    /// It is accepted and forgotten: no block ever has it.
    Drop,
    /// It goes its way, but whoever sent it hears nothing: his outcome is unknown.
    LoseAnswer,
}

struct Waiting {
    call: VerifiedCall,
    hash: [u8; 32],
    not_before: Block,
    is_lost: bool,
    answer: oneshot::Sender<Outcome>,
}

/// The pool.
#[derive(Default)]
pub(super) struct Pool {
    waiting: Vec<Waiting>,
    /// Calls in blocks that a fork may yet drop, each with its block, in the order of the chain.
    included: VecDeque<(Block, VerifiedCall)>,
    faults: BTreeMap<Hotkey, CallFault>,
}

impl Pool {
    /// The nonce of the account's next call: the first from the chain's `next` on that no call which waits has. A fork may leave a
    /// gap, and whoever comes next has to fill it.
    pub(super) fn next_nonce(&self, account: &AccountId, next: u64) -> u64 {
        let of_account = self.waiting.iter().filter(|waiting| !waiting.is_lost && waiting.call.signer == *account);
        let taken: BTreeSet<u64> = of_account.map(|waiting| waiting.call.nonce).collect();
        (next..).find(|nonce| !taken.contains(nonce)).unwrap_or(next)
    }

    /// What is to happen to this account's next call.
    pub(super) fn fault(&mut self, signer: Hotkey, fault: CallFault) {
        self.faults.insert(signer, fault);
    }

    /// Takes a call that was found valid on `best`; its fate comes over the channel.
    pub(super) fn insert(&mut self, call: VerifiedCall, best: Block) -> Result<oneshot::Receiver<Outcome>, Outcome> {
        if self.waiting.len() >= WAITING_MAX {
            return Err(Outcome::PoolRejected { code: IMMEDIATELY_DROPPED, custom: None, class: Class::Transient });
        }
        let (mut answer, fate) = oneshot::channel();
        let (mut not_before, mut is_lost) = (Block(0), false);
        match self.faults.remove(&call.signer) {
            None => {}
            Some(CallFault::Delay(blocks)) => not_before = Block(best.0.saturating_add(1).saturating_add(blocks)),
            Some(CallFault::Drop) => is_lost = true,
            Some(CallFault::LoseAnswer) => {
                // Nobody listens on the channel that takes its place.
                let heard = std::mem::replace(&mut answer, oneshot::channel().0).send(Outcome::Unknown);
                debug_assert!(heard.is_ok(), "the receiver is held here");
            }
        }
        self.waiting.push(Waiting { hash: call.hash, call, not_before, is_lost, answer });
        Ok(fate)
    }

    /// The calls that this block may hold, in order of arrival; they stay until [`Self::settle`].
    pub(super) fn ready(&self, block: Block) -> Vec<VerifiedCall> {
        let is_ready = |waiting: &&Waiting| !waiting.is_lost && waiting.not_before <= block;
        self.waiting.iter().filter(is_ready).map(|waiting| waiting.call.clone()).collect()
    }

    /// Tells everybody whose call's fate this block decided.
    pub(super) fn settle(&mut self, block: &BlockRef, receipts: &[Receipt], metagraph: &Metagraph) {
        let verdicts: BTreeMap<_, _> = receipts.iter().map(|receipt| (receipt.call, receipt.verdict)).collect();
        for waiting in std::mem::take(&mut self.waiting) {
            // A call that was forgotten on its way has no fate but its era's.
            let verdict = verdicts.get(&waiting.hash).filter(|_| !waiting.is_lost);
            let is_past = waiting.call.birth.saturating_add(waiting.call.period) <= block.number.0 + 1;
            if let Some(Verdict::Included { .. }) = verdict {
                self.included.push_back((block.number, waiting.call.clone()));
            }
            match verdict.and_then(|verdict| outcome(verdict, &waiting.call, block, metagraph)) {
                // Whoever stopped listening does not want to know.
                Some(outcome) => drop(waiting.answer.send(outcome)),
                None if is_past => drop(waiting.answer.send(Outcome::Expired)),
                None => self.waiting.push(waiting),
            }
        }
    }

    /// Forgets the calls of blocks up to this one: no fork drops it.
    pub(super) fn forget(&mut self, block: Block) {
        while self.included.front().is_some_and(|(at, _)| *at <= block) {
            self.included.pop_front();
        }
    }

    /// Takes back the calls of the blocks after `root`: they come before those that wait. A call that was born in a dropped block was
    /// signed for a fork that is gone.
    pub(super) fn rewind(&mut self, root: Block) {
        let kept = self.included.iter().take_while(|(at, _)| *at <= root).count();
        let again = self.included.split_off(kept).into_iter().map(|(_, call)| {
            // Its sender was answered, and hears nothing more.
            let (answer, _) = oneshot::channel();
            Waiting { hash: call.hash, call, not_before: Block(0), is_lost: false, answer }
        });
        let waiting = std::mem::take(&mut self.waiting);
        for waiting in again.chain(waiting) {
            if waiting.call.birth <= root.0 {
                self.waiting.push(waiting);
            } else {
                let (code, custom, class) = (INVALID_TRANSACTION, None, Class::Transient);
                drop(waiting.answer.send(Outcome::PoolRejected { code, custom, class }));
            }
        }
    }

    /// Forgets every call; whoever waits hears that the chain stopped.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.included.clear();
    }
}

/// The outcome of a verdict; none while the call may still enter a later block.
fn outcome(verdict: &Verdict, call: &VerifiedCall, block: &BlockRef, metagraph: &Metagraph) -> Option<Outcome> {
    match verdict {
        Verdict::Included { result: Ok(()), .. } => Some(Outcome::Included { block: block.number, hash: block.hash }),
        Verdict::Included { result: Err(error), .. } => {
            let class = Class::of_dispatch(error.name(), call_retry_at(call, metagraph));
            Some(Outcome::DispatchFailed { name: error.name().to_owned(), class })
        }
        Verdict::Refused(invalid) => rejected(*invalid, call, metagraph),
    }
}

/// What a call that is not valid comes to; none if it has only to wait for those before it.
pub(super) fn rejected(invalid: Invalid, call: &VerifiedCall, metagraph: &Metagraph) -> Option<Outcome> {
    let (custom, class) = match invalid {
        Invalid::Future => return None,
        Invalid::AncientBirthBlock => return Some(Outcome::Expired),
        Invalid::Stale | Invalid::BadProof => (None, Class::Transient),
        Invalid::Undecodable => (None, Class::BadArgs),
        Invalid::Custom(code) => (Some(code), Class::of_custom(code, call_retry_at(call, metagraph))),
    };
    Some(Outcome::PoolRejected { code: INVALID_TRANSACTION, custom, class })
}

fn call_retry_at(call: &VerifiedCall, metagraph: &Metagraph) -> Block {
    retry_at(metagraph, &call.signer, matches!(call.call, Call::SetCommitment { .. }))
}
