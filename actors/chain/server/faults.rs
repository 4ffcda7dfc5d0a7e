//! What can go wrong on a network, on demand: calls of an own namespace that exist only where they were allowed.
//!
//! Each is also a method of [`super::ChainServer`], for tests in its process.

use std::sync::Arc;

use convoke::terms::Hotkey;
use jsonrpsee::core::RegisterMethodError;
use jsonrpsee::types::ErrorObjectOwned;
use jsonrpsee::types::error::CALL_EXECUTION_FAILED_CODE;
use serde_json::json;
use subxt::utils::AccountId32;

use super::chain::{Shared, runtime};
use super::header::hex;
use super::maker;
use super::rpc::{Arguments, Module};
use crate::chain::{CallFault, ChainError};

/// Most blocks that one call makes.
const MINE_MAX: u64 = 4096;

/// Stops the clock's blocks, or lets them go on.
pub(super) fn stall_blocks(shared: &Shared, stalled: bool) {
    shared.chain().is_stalled = stalled;
}

/// Stops finality while blocks go on, or lets it catch up with the next block.
pub(super) fn stall_finality(shared: &Shared, stalled: bool) {
    shared.chain().is_finality_stalled = stalled;
}

/// Ends every connection; new ones are taken at once.
pub(super) fn drop_sockets(shared: &Shared) {
    shared.generation.send_modify(|generation| *generation += 1);
}

/// The next block is another runtime's. Calls signed for the one before are worth nothing from then on.
pub(super) fn upgrade_runtime(shared: &Shared, spec_version: u32) {
    let mut chain = shared.chain();
    chain.runtime = runtime(&chain.runtimes, spec_version);
    chain.pool.invalidate();
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
enum Fault {
    Delay(u64),
    Drop,
    LoseAnswer,
}

impl From<Fault> for CallFault {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Delay(blocks) => Self::Delay(blocks),
            Fault::Drop => Self::Drop,
            Fault::LoseAnswer => Self::LoseAnswer,
        }
    }
}

/// Registers the namespace.
pub(super) fn register(module: &mut Module) -> Result<(), RegisterMethodError> {
    type Answer = Result<serde_json::Value, ErrorObjectOwned>;
    module.register_method("dev_stallBlocks", |params, shared, _| -> Answer {
        stall_blocks(shared, Arguments(params.sequence()).next()?);
        Ok(json!(true))
    })?;
    module.register_method("dev_stallFinality", |params, shared, _| -> Answer {
        stall_finality(shared, Arguments(params.sequence()).next()?);
        Ok(json!(true))
    })?;
    module.register_method("dev_dropSockets", |_, shared, _| -> Answer {
        drop_sockets(shared);
        Ok(json!(true))
    })?;
    module.register_method("dev_upgradeRuntime", |params, shared, _| -> Answer {
        upgrade_runtime(shared, Arguments(params.sequence()).next()?);
        Ok(json!(true))
    })?;
    module.register_method("dev_faultNextCall", |params, shared, _| -> Answer {
        let mut arguments = Arguments(params.sequence());
        let (account, fault) = (arguments.next::<AccountId32>()?, arguments.next::<Fault>()?);
        shared.chain().pool.fault(Hotkey(account.0), fault.into());
        Ok(json!(true))
    })?;
    module.register_async_method("dev_mine", |params, shared, _| async move {
        let n: u64 = Arguments(params.sequence()).next()?;
        let mut best = Arc::clone(&shared.heads.borrow().best);
        for _ in 0..n.min(MINE_MAX) {
            best = maker::make_block(&shared).await.map_err(failed)?;
        }
        Ok::<_, ErrorObjectOwned>(hex(&best.hash.0))
    })?;
    module.register_async_method("dev_fork", |params, shared, _| async move {
        let depth: u64 = Arguments(params.sequence()).next()?;
        let best = maker::fork(&shared, depth).await.map_err(failed)?;
        Ok::<_, ErrorObjectOwned>(hex(&best.hash.0))
    })?;
    Ok(())
}

fn failed(error: ChainError) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(CALL_EXECUTION_FAILED_CODE, error.to_string(), None::<()>)
}
