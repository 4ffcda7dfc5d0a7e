//! What a node asks of the chain: a call is built on the best block, signed, sent, and watched until its fate is known.
//!
//! Nothing is sent twice from here. When the connection goes while a call is under way its fate is unknown, and it is for
//! whoever asked to read back before he asks again.

use convoke::chain::call::{AccountId, ERA_PERIOD};
use convoke::hotkey::HotkeyPair;
use convoke::terms::{Block, BlockHash, Hotkey, Stake, Uid};
use subxt::client::OnlineClientAtBlockImpl;
use subxt::config::DefaultExtrinsicParamsBuilder;
use subxt::config::substrate::{AccountId32, H256, MultiSignature};
use subxt::error::{BackendError, DispatchError, ExtrinsicError, RpcError, TransactionEventsError};
use subxt::ext::scale_value::{Composite, Value};
use subxt::tx::{DynamicPayload, Signer, TransactionInBlock, TransactionProgress, TransactionStatus};
use tokio::time::timeout;

use super::Config;
use super::failure::Failure;
use super::link::{ANSWER_TIMEOUT, Link, Online, answer};
use super::{read, values};
use crate::chain::host::faucet;
use crate::chain::outcome::{Class, IMMEDIATELY_DROPPED, INVALID_TRANSACTION, Outcome, retry_at};
use crate::chain::wire::schema::{self, SUBTENSOR};
use crate::chain::wire::{extrinsic, fields};
use crate::chain::{BlockRef, ChainError, Heads};

/// Times that the faucet is asked while others ask it too: its calls have one order.
const FAUCET_ATTEMPTS: usize = 64;

/// Blocks after a call's era in which its end may still be told.
const ERA_GRACE: u64 = 2;

pub(super) type Payload = DynamicPayload<Composite<()>>;
type Progress = TransactionProgress<Config, OnlineClientAtBlockImpl<Config>>;

/// A key of ours, as subxt signs by it.
struct Account<'a>(&'a HotkeyPair);

impl Signer<Config> for Account<'_> {
    fn account_id(&self) -> AccountId32 {
        AccountId32(self.0.hotkey().0)
    }

    fn sign(&self, payload: &[u8]) -> MultiSignature {
        MultiSignature::Sr25519(self.0.sign(payload))
    }
}

/// A call and whose it is: what it takes to say what became of it.
pub(super) struct Asked<'a> {
    pub(super) link: &'a Link,
    pub(super) signer: &'a HotkeyPair,
    pub(super) is_commitment: bool,
}

pub(super) fn number(value: impl Into<u128>) -> Value {
    Value::u128(value.into())
}

/// Overwrites the signer's commitment.
pub(super) async fn commit(link: &Link, signer: &HotkeyPair, fields: Vec<Vec<u8>>) -> Result<Outcome, ChainError> {
    let args = [("netuid", number(link.netuid())), ("info", fields::to_info(&fields))];
    let payload = Payload::new("Commitments", "set_commitment", Composite::named(args));
    Asked { link, signer, is_commitment: true }.send(&payload).await
}

/// Buys the hotkey a slot, unless it costs more than the limit. A runtime without a limit of its own is asked for the
/// price first: it may rise by what others buy in the same block.
pub(super) async fn register(
    link: &Link,
    coldkey: &HotkeyPair,
    hotkey: Hotkey,
    limit_price: u64,
) -> Result<Outcome, ChainError> {
    let online = link.online().await?;
    let best = link.best();
    let lost = |failure: Failure| match failure {
        Failure::Lost(reason) => ChainError::Unreachable { reason },
        Failure::Answer(error) => error,
    };
    let at = online.at(best.number, best.hash).await.map_err(lost)?;
    let mut args = vec![("netuid", number(link.netuid())), ("hotkey", Value::from_bytes(hotkey.0))];
    let name = if schema::has_call(at.metadata_ref(), SUBTENSOR, "register_limit") {
        args.push(("limit_price", number(limit_price)));
        "register_limit"
    } else if values::burn(&online, &at, link.netuid()).await.map_err(lost)? > limit_price {
        let name = "RegistrationPriceLimitExceeded".to_owned();
        return Ok(Outcome::DispatchFailed { class: Class::of_dispatch(&name, best.number), name });
    } else {
        "burned_register"
    };
    let payload = Payload::new(SUBTENSOR, name, Composite::named(args));
    Asked { link, signer: coldkey, is_commitment: false }.send(&payload).await
}

/// Asks a development chain's faucet until the hotkey has what is asked for.
pub(super) async fn dev_register(link: &Link, hotkey: Hotkey, stake: Stake) -> Result<Uid, ChainError> {
    let remark = extrinsic::faucet_remark(link.netuid(), &hotkey, stake.0);
    ask_faucet(link, remark, async |block| registered(link, block, &hotkey, stake).await).await
}

/// Asks a development chain's faucet until the account has at least this balance, in rao. Answers what it has.
pub(super) async fn dev_fund(link: &Link, account: &AccountId, balance: u64) -> Result<u64, ChainError> {
    let given = async |block| {
        let held = read::balance(link, block, account).await?;
        Ok((held >= balance).then_some(held))
    };
    ask_faucet(link, extrinsic::funds_remark(account, balance), given).await
}

/// Asks until what was asked for is there at a block.
async fn ask_faucet<T>(
    link: &Link,
    remark: Vec<u8>,
    given: impl AsyncFn(Block) -> Result<Option<T>, ChainError>,
) -> Result<T, ChainError> {
    let faucet = faucet();
    let remark = Value::from_bytes(remark);
    let payload = Payload::new("System", "remark", Composite::named([("remark", remark)]));
    let mut heads = link.heads();
    let mut block = link.best().number;
    let mut outcome = Outcome::Unknown;
    for _ in 0..FAUCET_ATTEMPTS {
        if let Some(given) = given(block).await? {
            return Ok(given);
        }
        outcome = Asked { link, signer: &faucet, is_commitment: false }.send(&payload).await?;
        match &outcome {
            Outcome::Included { block: made, .. } => block = *made,
            Outcome::PoolRejected { class: Class::Transient, .. } | Outcome::Unknown | Outcome::Expired => {
                // Another's call has the place of ours until the next block.
                drop(timeout(ANSWER_TIMEOUT, heads.changed()).await);
                block = link.best().number;
            }
            _ => return Err(ChainError::Refused { outcome }),
        }
    }
    Err(ChainError::Refused { outcome })
}

async fn registered(link: &Link, at: Block, hotkey: &Hotkey, stake: Stake) -> Result<Option<Uid>, ChainError> {
    let metagraph = read::metagraph(link, at).await?;
    let neuron = metagraph.by_hotkey(hotkey).filter(|neuron| neuron.stake >= stake);
    Ok(neuron.filter(|neuron| neuron.permit || stake == Stake(0)).map(|neuron| neuron.uid))
}

impl Asked<'_> {
    pub(super) async fn send(&self, payload: &Payload) -> Result<Outcome, ChainError> {
        let online = self.link.online().await?;
        let best = self.link.best();
        let mut progress = match self.submit(&online, best, payload).await {
            Ok(Ok(progress)) => progress,
            Ok(Err(outcome)) => return Ok(outcome),
            Err(Failure::Answer(error)) => return Err(error),
            Err(Failure::Lost(reason)) => {
                self.link.lose(&online);
                return Err(ChainError::Unreachable { reason });
            }
        };
        tokio::select! {
            outcome = self.watch(&online, &mut progress, best.number) => outcome,
            () = self.link.replaced(online.generation) => Ok(Outcome::Unknown),
            () = self.era_is_over(best.number) => Ok(Outcome::Unknown),
        }
    }

    /// Resolves when nothing can become of a call any more, whether or not anybody said so: a subscription may end
    /// without a word.
    async fn era_is_over(&self, birth: Block) {
        let mut heads = self.link.heads();
        let is_over = |heads: &Heads| heads.best.number.0 > birth.0.saturating_add(ERA_PERIOD + ERA_GRACE);
        // An error means that the link is gone, and whoever asked with it.
        drop(heads.wait_for(is_over).await);
    }

    /// Signs on `best` and sends. What fails before it is sent was not sent.
    async fn submit(
        &self,
        online: &Online,
        best: BlockRef,
        payload: &Payload,
    ) -> Result<Result<Progress, Outcome>, Failure> {
        let account = Account(self.signer);
        let at = online.at(best.number, best.hash).await?;
        let nonce = answer(online.rpc.system_account_next_index(&account.account_id())).await?;
        let params = DefaultExtrinsicParamsBuilder::<Config>::new()
            .mortal_from_unchecked(ERA_PERIOD, best.number.0, H256(best.hash.0))
            .nonce(nonce)
            .build();
        let foreign = |error: ExtrinsicError| Failure::Answer(ChainError::Foreign { reason: error.to_string() });
        let mut signable = at.tx().create_signable_offline(payload, params).map_err(foreign)?;
        let signed = signable.sign(&account).map_err(foreign)?;
        match timeout(ANSWER_TIMEOUT, signed.submit_and_watch()).await {
            Ok(Ok(progress)) => Ok(Ok(progress)),
            Ok(Err(ExtrinsicError::ErrorSubmittingTransaction(BackendError::Rpc(RpcError::ClientError(
                subxt::rpcs::Error::User(refusal),
            ))))) => {
                let data = refusal.data.as_ref().map_or("", |data| data.get());
                let words = format!("{}: {data}", refusal.message);
                Ok(Err(self.refused(refusal.code, &words).await))
            }
            // It may have been taken before the connection went.
            Ok(Err(_)) | Err(_) => {
                self.link.lose(online);
                Ok(Err(Outcome::Unknown))
            }
        }
    }

    async fn refused(&self, code: i32, words: &str) -> Outcome {
        match Outcome::of_refusal(code, words, Block(0)) {
            Outcome::PoolRejected { class: Class::RateLimited(_), .. } => {
                Outcome::of_refusal(code, words, self.retry_at().await)
            }
            other => other,
        }
    }

    async fn failed(&self, name: String) -> Outcome {
        let class = match Class::of_dispatch(&name, Block(0)) {
            Class::RateLimited(_) => Class::RateLimited(self.retry_at().await),
            class => class,
        };
        Outcome::DispatchFailed { name, class }
    }

    /// The first block at which what was too soon no longer is, as the best block knows it.
    async fn retry_at(&self) -> Block {
        let best = self.link.best().number;
        match read::metagraph(self.link, best).await {
            Ok(metagraph) => retry_at(&metagraph, &self.signer.hotkey(), self.is_commitment),
            Err(_) => Block(best.0.saturating_add(1)),
        }
    }

    async fn watch(&self, online: &Online, progress: &mut Progress, birth: Block) -> Result<Outcome, ChainError> {
        loop {
            match progress.next().await {
                Some(Ok(TransactionStatus::InBestBlock(block) | TransactionStatus::InFinalizedBlock(block))) => {
                    return Ok(self.fate(&block).await);
                }
                Some(Ok(TransactionStatus::Invalid { .. })) => {
                    // The heads may not have come this far yet.
                    let best = answer(online.rpc.chain_get_header(None)).await.ok().flatten();
                    let is_past = best.is_some_and(|best| best.number >= birth.0.saturating_add(ERA_PERIOD - 1));
                    let (code, custom, class) = (INVALID_TRANSACTION, None, Class::Transient);
                    return Ok(if is_past { Outcome::Expired } else { Outcome::PoolRejected { code, custom, class } });
                }
                Some(Ok(TransactionStatus::Dropped { .. })) => {
                    let (code, custom, class) = (IMMEDIATELY_DROPPED, None, Class::Transient);
                    return Ok(Outcome::PoolRejected { code, custom, class });
                }
                Some(Ok(TransactionStatus::Error { .. }) | Err(_)) | None => return Ok(Outcome::Unknown),
                Some(Ok(_)) => {}
            }
        }
    }

    /// What a call in a block came to there.
    async fn fate(&self, included: &TransactionInBlock<Config, OnlineClientAtBlockImpl<Config>>) -> Outcome {
        let outcome = async {
            match included.wait_for_success().await {
                Ok(_) => {
                    let at = included.at().await.ok()?;
                    let (block, hash) = (Block(at.block_number()), BlockHash(included.block_hash().0));
                    Some(Outcome::Included { block, hash })
                }
                Err(TransactionEventsError::ExtrinsicFailed(error)) => Some(self.failed(name(&error)).await),
                Err(_) => None,
            }
        };
        timeout(ANSWER_TIMEOUT, outcome).await.ok().flatten().unwrap_or(Outcome::Unknown)
    }
}

/// The error's name in the chain's metadata.
fn name(error: &DispatchError) -> String {
    match error {
        DispatchError::Module(module) => {
            module.details().map_or_else(|_| "UnknownModuleError".to_owned(), |details| details.variant.name.clone())
        }
        DispatchError::BadOrigin => "BadOrigin".to_owned(),
        other => format!("{other:?}"),
    }
}
