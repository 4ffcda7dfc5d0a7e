//! The Substrate JSON-RPC methods that a Subtensor client calls, over the chain.
//!
//! Which methods those are was read in the sources of `subxt`'s legacy backend; the codes and words of errors are those of
//! a Substrate node, since clients tell one refusal from another by them. Every answer is made under one short lock.

use std::sync::Arc;

use convoke::chain::Invalid;
use convoke::terms::{BlockHash, Hotkey};
use jsonrpsee::core::RegisterMethodError;
use jsonrpsee::types::error::INVALID_PARAMS_CODE;
use jsonrpsee::types::{ErrorObjectOwned, Params};
use jsonrpsee::{Extensions, RpcModule};
use serde_json::{Value, json};
use subxt::ext::codec::{Compact, Decode, Encode};
use subxt::utils::AccountId32;

use super::NODE_NAME;
use super::chain::{Chain, Shared};
use super::header::{Sealed, hex, unhex};
use super::pool::{Refusal, Status};
use crate::chain::wire::extrinsic::{self, EXTRINSIC_BYTES_MAX};
use tokio::sync::mpsc;

/// Keys in one page, or asked for at once: every entry that the largest subnet has of a kind, and some kinds at once.
const KEYS_MAX: usize = 8192;
/// Bytes of a key: the longest has two hashed accounts.
const KEY_BYTES_MAX: usize = 256;

/// Errors by which a client knows what happened; a Substrate node's.
mod code {
    pub(super) const BAD_FORMAT: i32 = 1001;
    pub(super) const INVALID_TRANSACTION: i32 = 1010;
    pub(super) const ALREADY_IMPORTED: i32 = 1013;
    pub(super) const TOO_LOW_PRIORITY: i32 = 1014;
    pub(super) const IMMEDIATELY_DROPPED: i32 = 1016;
    pub(super) const STATE: i32 = 4003;
}

type Answer = Result<Value, ErrorObjectOwned>;
pub(super) type Module = RpcModule<Shared>;

/// Registers everything that is read by a request and its answer.
pub(super) fn register(module: &mut Module) -> Result<(), RegisterMethodError> {
    register_system(module)?;
    register_chain(module)?;
    register_state(module)?;
    read(module, "author_pendingExtrinsics", |_, _| Ok(json!([])))
}

/// A method that reads the chain.
fn read(
    module: &mut Module,
    name: &'static str,
    answer: fn(&Chain, &mut Arguments<'_>) -> Answer,
) -> Result<(), RegisterMethodError> {
    let answer = move |params: Params<'_>, shared: &Shared, _: &Extensions| {
        answer(&shared.chain(), &mut Arguments(params.sequence()))
    };
    module.register_method(name, answer).map(drop)
}

fn register_system(module: &mut Module) -> Result<(), RegisterMethodError> {
    read(module, "system_chain", |_, _| Ok(json!("Convoke development chain")))?;
    read(module, "system_name", |_, _| Ok(json!(NODE_NAME)))?;
    read(module, "system_version", |_, _| Ok(json!(env!("CARGO_PKG_VERSION"))))?;
    read(module, "system_chainType", |_, _| Ok(json!("Development")))?;
    read(module, "system_health", |_, _| Ok(json!({ "peers": 0, "isSyncing": false, "shouldHavePeers": false })))?;
    let properties = |_: Params<'_>, shared: &Shared, _: &Extensions| {
        let block_time = u64::try_from(shared.block_time.as_millis()).unwrap_or(u64::MAX);
        json!({ "ss58Format": 42, "tokenDecimals": 9, "tokenSymbol": "TAO", "blockTimeMs": block_time })
    };
    module.register_method("system_properties", properties)?;
    read(module, "system_accountNextIndex", |chain, arguments| {
        let account: AccountId32 = arguments.next()?;
        Ok(json!(chain.pool.next_nonce(&Hotkey(account.0), &chain.ledger)))
    })
}

fn register_chain(module: &mut Module) -> Result<(), RegisterMethodError> {
    read(module, "chain_getBlockHash", |chain, arguments| {
        let hash = |number: u64| chain.block(number).filter(|_| number <= chain.number()).map(|it| hex(&it.hash.0));
        match arguments.optional::<NumberOrHex>()? {
            Some(number) => Ok(json!(number.number().and_then(hash))),
            None => Ok(json!(hex(&chain.best().hash.0))),
        }
    })?;
    read(module, "chain_getHeader", |chain, arguments| {
        Ok(json!(arguments.block(chain)?.map(|block| block.header.json())))
    })?;
    read(module, "chain_getBlock", |chain, arguments| {
        let block = arguments.block(chain)?.map(|block| {
            let extrinsics: Vec<_> = block.extrinsics.iter().map(|bytes| hex(bytes)).collect();
            json!({ "block": { "header": block.header.json(), "extrinsics": extrinsics }, "justifications": null })
        });
        Ok(json!(block))
    })?;
    let finalized = |_: Params<'_>, shared: &Shared, _: &Extensions| hex(&shared.heads.borrow().finalized.hash.0);
    module.register_method("chain_getFinalizedHead", finalized).map(drop)
}

fn register_state(module: &mut Module) -> Result<(), RegisterMethodError> {
    read(module, "state_getStorage", |chain, arguments| {
        let key = arguments.bytes(KEY_BYTES_MAX)?;
        let at = arguments.state(chain)?;
        Ok(json!(chain.storage.get(&key, at.header.number).map(|value| hex(&value))))
    })?;
    read(module, "state_getKeysPaged", |chain, arguments| {
        let prefix = arguments.bytes(KEY_BYTES_MAX)?;
        let n = arguments.next::<u32>()? as usize;
        let after = arguments.optional_bytes(KEY_BYTES_MAX)?;
        let at = arguments.state(chain)?.header.number;
        let keys = chain.storage.keys(&prefix, after.as_deref(), n.min(KEYS_MAX), at);
        Ok(json!(keys.iter().map(|key| hex(key)).collect::<Vec<_>>()))
    })?;
    read(module, "state_queryStorageAt", |chain, arguments| {
        let keys: Vec<String> = arguments.next()?;
        if keys.len() > KEYS_MAX {
            return Err(invalid_params(&format!("{} keys are more than {KEYS_MAX}", keys.len())));
        }
        let at = arguments.state(chain)?;
        let mut changes = Vec::with_capacity(keys.len());
        for text in keys {
            let key = unhex(&text).ok_or_else(|| invalid_params("a key is not hexadecimal"))?;
            let value = chain.storage.get(&key, at.header.number).map(|value| hex(&value));
            changes.push(json!([text, value]));
        }
        Ok(json!([{ "block": hex(&at.hash.0), "changes": changes }]))
    })?;
    read(module, "state_getMetadata", |chain, arguments| {
        let at = arguments.state(chain)?;
        Ok(json!(hex(chain.runtime_of(&at).metadata_bytes())))
    })?;
    for name in ["state_getRuntimeVersion", "chain_getRuntimeVersion"] {
        read(module, name, |chain, arguments| {
            let runtime = chain.runtime_of(&*arguments.state(chain)?);
            Ok(json!({
                "specName": runtime.spec_name(),
                "implName": runtime.spec_name(),
                "specVersion": runtime.spec_version(),
                "transactionVersion": runtime.transaction_version(),
                "apis": [],
            }))
        })?;
    }
    read(module, "state_call", |chain, arguments| {
        let (method, input) = (arguments.next::<String>()?, arguments.bytes(KEY_BYTES_MAX)?);
        let at = arguments.state(chain)?;
        call(chain, &method, &input, &at).map(|output| json!(hex(&output)))
    })
}

/// A runtime interface, by name; those that clients need to build a call.
fn call(chain: &Chain, method: &str, mut input: &[u8], at: &Sealed) -> Result<Vec<u8>, ErrorObjectOwned> {
    let runtime = chain.runtime_of(at);
    let metadata = || {
        let length = u32::try_from(runtime.metadata_bytes().len()).unwrap_or(u32::MAX);
        [Compact(length).encode(), runtime.metadata_bytes().to_vec()].concat()
    };
    match method {
        "Core_version" => Ok(runtime.version_bytes()),
        "Metadata_metadata" => Ok(metadata()),
        "Metadata_metadata_versions" => Ok(vec![runtime.metadata_version()].encode()),
        "Metadata_metadata_at_version" => {
            let version = u32::decode(&mut input).map_err(|error| invalid_params(&error.to_string()))?;
            let has = version == runtime.metadata_version();
            Ok(if has { [vec![1], metadata()].concat() } else { vec![0] })
        }
        "AccountNonceApi_account_nonce" => {
            let account = <[u8; 32]>::decode(&mut input).map_err(|error| invalid_params(&error.to_string()))?;
            let key = crate::chain::wire::schema::key(runtime.metadata(), "System", "Account", (account,));
            let key = key.map_err(|error| state_error(&error.to_string()))?;
            // The nonce is the first field of an account.
            let stored = chain.storage.get(&key, at.header.number);
            Ok(stored.and_then(|info| Some(info.get(..4)?.to_vec())).unwrap_or_else(|| 0_u32.encode()))
        }
        _ => Err(state_error(&format!("Execution failed: Exported method {method} is not found"))),
    }
}

/// A block number as clients write it: a number, or hexadecimal text.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum NumberOrHex {
    Number(u64),
    Hex(String),
}

impl NumberOrHex {
    fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Hex(text) => u64::from_str_radix(text.strip_prefix("0x")?, 16).ok(),
        }
    }
}

/// A request's arguments, one after the other.
pub(super) struct Arguments<'a>(pub(super) jsonrpsee::types::params::ParamsSequence<'a>);

impl Arguments<'_> {
    pub(super) fn next<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, ErrorObjectOwned> {
        self.0.next()
    }

    fn optional<T: serde::de::DeserializeOwned>(&mut self) -> Result<Option<T>, ErrorObjectOwned> {
        self.0.optional_next()
    }

    pub(super) fn bytes(&mut self, max: usize) -> Result<Vec<u8>, ErrorObjectOwned> {
        self.optional_bytes(max)?.ok_or_else(|| invalid_params("an argument is missing"))
    }

    fn optional_bytes(&mut self, max: usize) -> Result<Option<Vec<u8>>, ErrorObjectOwned> {
        let Some(text) = self.optional::<String>()? else { return Ok(None) };
        if text.len() > 2 + 2 * max {
            return Err(invalid_params(&format!("an argument is longer than {max} bytes")));
        }
        unhex(&text).map(Some).ok_or_else(|| invalid_params("an argument is not hexadecimal"))
    }

    /// The block that is named, or the best; `None` if the chain does not have it.
    fn block(&mut self, chain: &Chain) -> Result<Option<Arc<Sealed>>, ErrorObjectOwned> {
        let Some(bytes) = self.optional_bytes(32)? else { return Ok(Some(Arc::clone(chain.best()))) };
        let hash = bytes.try_into().map_err(|_| invalid_params("a block's hash has 32 bytes"))?;
        Ok(chain.by_hash(&BlockHash(hash)).map(Arc::clone))
    }

    /// The same, if its state can be read.
    fn state(&mut self, chain: &Chain) -> Result<Arc<Sealed>, ErrorObjectOwned> {
        let block = self.block(chain)?;
        let block =
            block.ok_or_else(|| state_error("Client error: UnknownBlock: Header was not found in the database"))?;
        if chain.has_state(block.header.number) {
            return Ok(block);
        }
        let hash = hex(&block.hash.0);
        Err(state_error(&format!("Client error: UnknownBlock: State already discarded for {hash}")))
    }
}

fn invalid_params(message: &str) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(INVALID_PARAMS_CODE, message.to_owned(), None::<()>)
}

fn state_error(message: &str) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(code::STATE, message.to_owned(), None::<()>)
}

/// Puts an extrinsic into the pool, with its hash and life.
pub(super) fn submit(
    shared: &Shared,
    arguments: &mut Arguments<'_>,
) -> Result<(BlockHash, mpsc::Receiver<Status>), ErrorObjectOwned> {
    let bytes = arguments.bytes(EXTRINSIC_BYTES_MAX)?;
    let mut chain = shared.chain();
    let opened = extrinsic::open(chain.runtime.metadata(), &bytes).map_err(|error| {
        ErrorObjectOwned::owned(code::BAD_FORMAT, "Extrinsic has invalid format", Some(error.to_string()))
    })?;
    let hash = BlockHash(opened.hash);
    let hash_of = |number| chain.block(number).map(|block| block.hash);
    let verified = opened.verify(&chain.runtime, &shared.genesis, chain.number(), hash_of);
    let call = verified.map_err(|invalid| refused(Refusal::Invalid(invalid)))?;
    if chain.has_stopped {
        return Err(refused(Refusal::Full));
    }
    let Chain { pool, ledger, .. } = &mut *chain;
    let life = pool.insert(call, bytes, ledger).map_err(refused)?;
    Ok((hash, life))
}

/// A refusal as a Substrate node says it.
fn refused(refusal: Refusal) -> ErrorObjectOwned {
    let (code, message, data) = match refusal {
        Refusal::Invalid(invalid) => (code::INVALID_TRANSACTION, "Invalid Transaction", words(invalid)),
        Refusal::AlreadyImported => {
            (code::ALREADY_IMPORTED, "Transaction Already Imported", "it waits or is in a block".to_owned())
        }
        Refusal::TooLowPriority => (
            code::TOO_LOW_PRIORITY,
            "Priority is too low: (1 vs 1)",
            "The transaction has too low priority to replace another transaction already in the pool.".to_owned(),
        ),
        Refusal::Full => (
            code::IMMEDIATELY_DROPPED,
            "Immediately Dropped",
            "The transaction couldn't enter the pool because of the limit".to_owned(),
        ),
    };
    ErrorObjectOwned::owned(code, message, Some(data))
}

fn words(invalid: Invalid) -> String {
    match invalid {
        Invalid::Stale => "Transaction is outdated".to_owned(),
        Invalid::Future => "Transaction will be valid in the future".to_owned(),
        Invalid::BadProof => "Transaction has a bad signature".to_owned(),
        Invalid::AncientBirthBlock => "Transaction has an ancient birth block".to_owned(),
        Invalid::Undecodable => "Transaction call is not expected".to_owned(),
        Invalid::Custom(code) => format!("Custom error: {code}"),
    }
}
