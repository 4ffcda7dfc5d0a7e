//! What is told without being asked: new heads, and the life of a call.
//!
//! A head's subscriber that reads slowly is told of fewer heads, never of old ones: nothing queues up for him.

use std::sync::Arc;

use jsonrpsee::core::RegisterMethodError;
use jsonrpsee::core::server::{PendingSubscriptionSink, SubscriptionMessage, SubscriptionSink};
use jsonrpsee::types::Params;
use serde_json::{Value, json, value::to_raw_value};
use tokio::sync::watch;

use super::chain::{Heads, Shared};
use super::header::{Sealed, hex};
use super::pool::Status;
use super::rpc::{Arguments, Module, submit};

/// Registers every subscription, and the submission that is none.
pub(super) fn register(module: &mut Module) -> Result<(), RegisterMethodError> {
    let best: fn(&Heads) -> &Arc<Sealed> = |heads| &heads.best;
    let finalized: fn(&Heads) -> &Arc<Sealed> = |heads| &heads.finalized;
    for (subscribe, notify, unsubscribe, of) in [
        ("chain_subscribeNewHeads", "chain_newHead", "chain_unsubscribeNewHeads", best),
        ("chain_subscribeAllHeads", "chain_allHead", "chain_unsubscribeAllHeads", best),
        ("chain_subscribeFinalizedHeads", "chain_finalizedHead", "chain_unsubscribeFinalizedHeads", finalized),
    ] {
        module.register_subscription(subscribe, notify, unsubscribe, move |_, pending, shared, _| {
            tell_heads(pending, shared.heads.subscribe(), of)
        })?;
    }
    let version = "state_runtimeVersion";
    let unsubscribe = "state_unsubscribeRuntimeVersion";
    module.register_subscription("state_subscribeRuntimeVersion", version, unsubscribe, |_, pending, shared, _| {
        tell_versions(pending, shared)
    })?;
    let unwatch = "author_unwatchExtrinsic";
    let update = "author_extrinsicUpdate";
    module.register_subscription("author_submitAndWatchExtrinsic", update, unwatch, |params, pending, shared, _| {
        tell_life(params, pending, shared)
    })?;
    module.register_method("author_submitExtrinsic", |params, shared, _| {
        let (hash, _) = submit(shared, &mut Arguments(params.sequence()))?;
        Ok::<_, jsonrpsee::types::ErrorObjectOwned>(hex(&hash.0))
    })?;
    Ok(())
}

/// Whether the subscriber is still there.
async fn tell(sink: &SubscriptionSink, message: &Value) -> bool {
    let raw = to_raw_value(message).expect("a JSON value is JSON");
    sink.send(SubscriptionMessage::from(raw)).await.is_ok()
}

async fn tell_heads(
    pending: PendingSubscriptionSink,
    mut heads: watch::Receiver<Heads>,
    of: fn(&Heads) -> &Arc<Sealed>,
) {
    let Ok(sink) = pending.accept().await else { return };
    let mut told = None;
    loop {
        let head = Arc::clone(of(&heads.borrow_and_update()));
        if told != Some(head.hash) {
            told = Some(head.hash);
            if !tell(&sink, &head.header.json()).await {
                return;
            }
        }
        tokio::select! {
            changed = heads.changed() => if changed.is_err() { return },
            () = sink.closed() => return,
        }
    }
}

async fn tell_versions(pending: PendingSubscriptionSink, shared: Arc<Shared>) {
    let Ok(sink) = pending.accept().await else { return };
    let mut heads = shared.heads.subscribe();
    let mut told = None;
    loop {
        let best = Arc::clone(&heads.borrow_and_update().best);
        if told != Some(best.spec_version) {
            told = Some(best.spec_version);
            let runtime = shared.chain().runtime_of(&best);
            let transaction_version = runtime.transaction_version();
            let version = json!({ "specVersion": best.spec_version, "transactionVersion": transaction_version });
            if !tell(&sink, &version).await {
                return;
            }
        }
        tokio::select! {
            changed = heads.changed() => if changed.is_err() { return },
            () = sink.closed() => return,
        }
    }
}

async fn tell_life(params: Params<'static>, pending: PendingSubscriptionSink, shared: Arc<Shared>) {
    let submitted = submit(&shared, &mut Arguments(params.sequence()));
    let mut life = match submitted {
        Ok((_, life)) => life,
        Err(refusal) => return pending.reject(refusal).await,
    };
    // The chain must not be held up by a subscriber that stays.
    drop(shared);
    let Ok(sink) = pending.accept().await else { return };
    loop {
        let status = tokio::select! {
            status = life.recv() => status,
            () = sink.closed() => return,
        };
        let Some(status) = status else { return };
        let is_last = matches!(status, Status::Finalized(_) | Status::Invalid);
        if !tell(&sink, &words(status)).await || is_last {
            return;
        }
    }
}

fn words(status: Status) -> Value {
    match status {
        Status::Ready => json!("ready"),
        Status::InBlock(hash) => json!({ "inBlock": hex(&hash.0) }),
        Status::Retracted(hash) => json!({ "retracted": hex(&hash.0) }),
        Status::Finalized(hash) => json!({ "finalized": hex(&hash.0) }),
        Status::Invalid => json!("invalid"),
    }
}
