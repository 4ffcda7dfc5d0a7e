//! The pool: signed extrinsics that wait for a block, and those in blocks that are not final yet.
//!
//! As on chain: flat priority, first come first served; nothing replaces a waiting call, only the end of its era removes
//! it. A call in a block that a fork drops waits again.

use std::collections::BTreeMap;

use convoke::chain::{AccountId, Invalid, Ledger, Receipt, Verdict, VerifiedCall};
use convoke::terms::{BlockHash, Hotkey};
use tokio::sync::mpsc;

use crate::chain::CallFault;

/// Calls that wait at once: room for more nodes than a subnet has slots.
const WAITING_MAX: usize = 4096;
/// Calls of one account that wait at once; a node has one in flight.
const OF_ACCOUNT_MAX: u64 = 64;
/// What a watcher may leave unread; a call's life has fewer turns unless it is forked again and again.
const UNREAD_MAX: usize = 16;

/// What a watcher hears, in the order of a call's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// It waits.
    Ready,
    /// It is in this block.
    InBlock(BlockHash),
    /// That block is not the chain's any more; it waits again.
    Retracted(BlockHash),
    /// It is in this block for good.
    Finalized(BlockHash),
    /// It never will be in one.
    Invalid,
}

/// Why a call does not enter the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Invalid(Invalid),
    AlreadyImported,
    /// Another call has its place, and no call has a higher priority than another.
    TooLowPriority,
    Full,
}

struct Pending {
    call: VerifiedCall,
    extrinsic: Vec<u8>,
    not_before: u64,
    is_lost: bool,
    watcher: Option<mpsc::Sender<Status>>,
}

impl Pending {
    /// A watcher that went away, or that does not read, is told no more.
    fn tell(&mut self, status: Status) {
        if self.watcher.as_ref().is_some_and(|watcher| watcher.try_send(status).is_err()) {
            self.watcher = None;
        }
    }
}

/// The pool.
#[derive(Default)]
pub(super) struct Pool {
    waiting: Vec<Pending>,
    /// With the block each is in.
    included: Vec<(u64, BlockHash, Pending)>,
    faults: BTreeMap<Hotkey, CallFault>,
}

impl Pool {
    /// The nonce of the account's next call after those that wait.
    pub(super) fn next_nonce(&self, account: &AccountId, ledger: &Ledger) -> u64 {
        let waits = |nonce| self.waiting.iter().any(|it| it.call.signer == *account && it.call.nonce == nonce);
        let first = ledger.nonce(account);
        (first..first + OF_ACCOUNT_MAX).find(|nonce| !waits(*nonce)).unwrap_or(first + OF_ACCOUNT_MAX)
    }

    /// How many calls wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// What is to happen to this account's next call.
    pub(super) fn fault(&mut self, signer: Hotkey, fault: CallFault) {
        self.faults.insert(signer, fault);
    }

    /// Takes a call whose proof is good; its life is told over the channel.
    pub(super) fn insert(
        &mut self,
        call: VerifiedCall,
        extrinsic: Vec<u8>,
        ledger: &Ledger,
    ) -> Result<mpsc::Receiver<Status>, Refusal> {
        let known = self.waiting.iter().chain(self.included.iter().map(|it| &it.2));
        if known.into_iter().any(|it| it.call.hash == call.hash) {
            return Err(Refusal::AlreadyImported);
        }
        match ledger.validate_verified(&call) {
            Ok(()) => {}
            // It waits for those before it; how far ahead it may be is bounded by what may wait.
            Err(Invalid::Future) if call.nonce - ledger.nonce(&call.signer) < OF_ACCOUNT_MAX => {}
            Err(invalid) => return Err(Refusal::Invalid(invalid)),
        }
        if self.waiting.iter().any(|it| (it.call.signer, it.call.nonce) == (call.signer, call.nonce)) {
            return Err(Refusal::TooLowPriority);
        }
        if self.waiting.len() >= WAITING_MAX {
            return Err(Refusal::Full);
        }
        let (watcher, life) = mpsc::channel(UNREAD_MAX);
        let mut pending = Pending { call, extrinsic, not_before: 0, is_lost: false, watcher: Some(watcher) };
        match self.faults.remove(&pending.call.signer) {
            None => {}
            Some(CallFault::Delay(blocks)) => {
                pending.not_before = ledger.header().number.0.saturating_add(1).saturating_add(blocks);
            }
            Some(CallFault::Drop) => pending.is_lost = true,
            Some(CallFault::LoseAnswer) => pending.watcher = None,
        }
        pending.tell(Status::Ready);
        self.waiting.push(pending);
        Ok(life)
    }

    /// The calls that this block may hold, in order of arrival; they stay until [`Self::settle`].
    pub(super) fn ready(&self, block: u64) -> Vec<(VerifiedCall, Vec<u8>)> {
        let is_ready = |it: &&Pending| !it.is_lost && it.not_before <= block;
        self.waiting.iter().filter(is_ready).map(|it| (it.call.clone(), it.extrinsic.clone())).collect()
    }

    /// Tells everybody whose call's fate this block decided.
    pub(super) fn settle(&mut self, block: u64, hash: BlockHash, receipts: &[Receipt]) {
        let verdicts: BTreeMap<_, _> = receipts.iter().map(|receipt| (receipt.call, receipt.verdict)).collect();
        for mut pending in std::mem::take(&mut self.waiting) {
            let verdict = verdicts.get(&pending.call.hash).filter(|_| !pending.is_lost);
            let is_past = pending.call.birth.saturating_add(pending.call.period) <= block + 1;
            match verdict {
                Some(Verdict::Included { .. }) => {
                    pending.tell(Status::InBlock(hash));
                    self.included.push((block, hash, pending));
                }
                Some(Verdict::Refused(invalid)) if *invalid != Invalid::Future => pending.tell(Status::Invalid),
                _ if is_past => pending.tell(Status::Invalid),
                _ => self.waiting.push(pending),
            }
        }
    }

    /// Tells those whose block is final.
    pub(super) fn finalize(&mut self, block: u64) {
        for (at, hash, mut pending) in std::mem::take(&mut self.included) {
            if at <= block {
                pending.tell(Status::Finalized(hash));
            } else {
                self.included.push((at, hash, pending));
            }
        }
    }

    /// Takes back the calls of the blocks after `block`: they come before those that wait. A call that was born in a dropped
    /// block was signed for a fork that is gone.
    pub(super) fn rewind(&mut self, block: u64) {
        let mut again = Vec::new();
        for (at, hash, mut pending) in std::mem::take(&mut self.included) {
            if at <= block {
                self.included.push((at, hash, pending));
            } else {
                pending.tell(Status::Retracted(hash));
                again.push(pending);
            }
        }
        again.append(&mut self.waiting);
        let (living, mut gone): (Vec<_>, Vec<_>) = again.into_iter().partition(|pending| pending.call.birth <= block);
        gone.iter_mut().for_each(|pending| pending.tell(Status::Invalid));
        self.waiting = living;
    }

    /// Drops every call that waits: a new runtime finds their signatures wrong.
    pub(super) fn invalidate(&mut self) {
        for mut pending in std::mem::take(&mut self.waiting) {
            pending.tell(Status::Invalid);
        }
    }

    /// Forgets everything; watchers see their channel end.
    pub(super) fn clear(&mut self) {
        (self.waiting, self.included) = (Vec::new(), Vec::new());
    }
}
