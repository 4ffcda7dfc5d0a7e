//! The connection: one endpoint at a time, its heads, and the next one when it falls silent.
//!
//! subxt can reconnect by itself, but backs off without bound and may come back with a stream of heads that stays
//! silent. So a connection here is used once and thrown away, the pause between two has a cap, and a watchdog that knows
//! how long a block takes decides when one is dead.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use convoke::terms::{Block, BlockHash};
use subxt::backend::LegacyBackend;
use subxt::client::OnlineClientAtBlock;
use subxt::config::substrate::{BlakeTwo256, H256, SubstrateHeader};
use subxt::config::{Hasher, RpcConfigFor};
use subxt::ext::codec::Encode;
use subxt::rpcs::{LegacyRpcMethods, RpcClient};
use subxt::{OnlineClient, SubstrateConfig};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::failure::Failure;
use super::read::Caches;
use super::{ClientConfig, Config};
use crate::chain::{BlockRef, ChainError, HeadReader, HeadWatch, Heads};

/// How long one request may take before the connection counts as dead.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// No head for this many block times is silence,
const SILENT_BLOCKS: u32 = 3;
/// but never less than this: a busy machine is no dead one.
const SILENCE_MIN: Duration = Duration::from_secs(2);
/// The first pause between two connections; it doubles
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// up to this.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Subtensor's block time, where the node does not say another,
const BLOCK_TIME: Duration = Duration::from_secs(12);
/// or says one that no chain has.
const BLOCK_TIME_MAX: Duration = Duration::from_secs(600);

/// A connection.
pub(super) struct Online {
    /// How many there were before it.
    pub(super) generation: u64,
    endpoint: String,
    api: OnlineClient<Config>,
    pub(super) rpc: LegacyRpcMethods<RpcConfigFor<Config>>,
}

/// One chain, whatever the connection.
pub(super) struct Link {
    config: ClientConfig,
    genesis: BlockHash,
    block_time: Duration,
    /// Keeps the metadata of every runtime that was met.
    substrate: SubstrateConfig,
    heads: HeadWatch,
    online: watch::Sender<Option<Arc<Online>>>,
    /// The youngest connection that somebody found dead.
    lost: watch::Sender<Option<u64>>,
    caches: Mutex<Caches>,
}

impl Link {
    /// Tries the endpoints in turn until one answers, and follows its heads from then on.
    pub(super) async fn connect(config: ClientConfig) -> Result<Arc<Self>, ChainError> {
        if config.endpoints.is_empty() {
            return Err(ChainError::Unreachable { reason: "no endpoint is given".to_owned() });
        }
        let substrate = SubstrateConfig::new();
        let mut pause = PAUSE_MIN;
        for attempt in 0.. {
            let endpoint = &config.endpoints[attempt % config.endpoints.len()];
            match Self::begin(&config, &substrate, endpoint).await {
                Ok((link, online)) => {
                    let link = Arc::new(link);
                    let place = attempt % link.config.endpoints.len();
                    tokio::spawn(keep(Arc::downgrade(&link), online, place));
                    return Ok(link);
                }
                Err(Failure::Lost(reason)) => warn!(endpoint, reason, "the chain does not answer"),
                Err(Failure::Answer(error)) => return Err(error),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        unreachable!("the attempts do not end by themselves")
    }

    async fn begin(
        config: &ClientConfig,
        substrate: &SubstrateConfig,
        endpoint: &str,
    ) -> Result<(Self, Arc<Online>), Failure> {
        let online = Arc::new(open(substrate, endpoint, 0).await?);
        let genesis = BlockHash(online.api.genesis_hash().0);
        let said = answer(online.rpc.system_properties()).await.ok();
        let said = said.and_then(|properties| properties.get("blockTimeMs")?.as_u64()).map(Duration::from_millis);
        let is_one = |time: &Duration| !time.is_zero() && *time <= BLOCK_TIME_MAX;
        let block_time = config.block_time.or(said).filter(is_one).unwrap_or(BLOCK_TIME);
        let best = answer(online.rpc.chain_get_header(None)).await?;
        let best = best.ok_or_else(|| Failure::Lost("it has no best block".to_owned()))?;
        let final_hash = answer(online.rpc.chain_get_finalized_head()).await?;
        let finalized = answer(online.rpc.chain_get_header(Some(final_hash))).await?;
        let finalized = finalized.ok_or_else(|| Failure::Lost("it has no final block".to_owned()))?;
        let (best, finalized) = (block_ref(&best), block_ref(&finalized));
        let link = Self {
            config: config.clone(),
            genesis,
            block_time,
            substrate: substrate.clone(),
            heads: HeadWatch::new(Heads { best, finalized }),
            online: watch::channel(Some(Arc::clone(&online))).0,
            lost: watch::channel(None).0,
            caches: Mutex::new(Caches::default()),
        };
        Ok((link, online))
    }

    pub(super) fn genesis(&self) -> BlockHash {
        self.genesis
    }

    pub(super) fn netuid(&self) -> u16 {
        self.config.netuid
    }

    pub(super) fn block_time(&self) -> Duration {
        self.block_time
    }

    pub(super) fn heads(&self) -> HeadReader {
        self.heads.subscribe()
    }

    pub(super) fn best(&self) -> BlockRef {
        self.heads.borrow().best
    }

    pub(super) fn finalized(&self) -> BlockRef {
        self.heads.borrow().finalized
    }

    pub(super) fn caches(&self) -> MutexGuard<'_, Caches> {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn connection(&self) -> Option<(String, u64)> {
        self.online.borrow().as_ref().map(|online| (online.endpoint.clone(), online.generation))
    }

    /// The connection, once there is one.
    pub(super) async fn online(&self) -> Result<Arc<Online>, ChainError> {
        let mut online = self.online.subscribe();
        let is_there = timeout(ANSWER_TIMEOUT, online.wait_for(Option::is_some)).await;
        let found = is_there.ok().and_then(Result::ok).and_then(|online| online.clone());
        found.ok_or_else(|| ChainError::Unreachable { reason: "no endpoint answers".to_owned() })
    }

    /// Says that this connection is dead.
    pub(super) fn lose(&self, online: &Online) {
        self.lost.send_modify(|lost| *lost = (*lost).max(Some(online.generation)));
    }

    /// Resolves when this connection is not the chain's any more.
    pub(super) async fn replaced(&self, generation: u64) {
        let mut online = self.online.subscribe();
        let is_other = |online: &Option<Arc<Online>>| online.as_ref().is_none_or(|it| it.generation != generation);
        // An error means that the link is gone, and the connection with it.
        drop(online.wait_for(is_other).await);
    }
}

impl Online {
    /// The chain at a block, with the metadata of its runtime.
    pub(super) async fn at(&self, number: Block, hash: BlockHash) -> Result<OnlineClientAtBlock<Config>, Failure> {
        let at = self.api.at_block_hash_and_number(H256(hash.0), number.0);
        timeout(ANSWER_TIMEOUT, at).await.map_err(|_| Failure::silent())?.map_err(Failure::of_block)
    }
}

/// One request, within its time.
pub(super) async fn answer<T>(request: impl Future<Output = Result<T, subxt::rpcs::Error>>) -> Result<T, Failure> {
    timeout(ANSWER_TIMEOUT, request).await.map_err(|_| Failure::silent())?.map_err(Failure::of_rpc)
}

async fn open(substrate: &SubstrateConfig, endpoint: &str, generation: u64) -> Result<Online, Failure> {
    let client = answer(RpcClient::from_insecure_url(endpoint)).await?;
    let backend = Arc::new(LegacyBackend::<Config>::builder().build(client.clone()));
    let api = timeout(ANSWER_TIMEOUT, OnlineClient::from_backend_with_config(substrate.clone(), backend));
    let api = api.await.map_err(|_| Failure::silent())?.map_err(|error| Failure::Lost(error.to_string()))?;
    Ok(Online { generation, endpoint: endpoint.to_owned(), api, rpc: LegacyRpcMethods::new(client) })
}

/// A block's name from its header.
fn block_ref(header: &SubstrateHeader<H256>) -> BlockRef {
    BlockRef { number: Block(header.number), hash: BlockHash(BlakeTwo256.hash(&header.encode()).0) }
}

/// Follows one connection after the other, while anybody holds the link.
async fn keep(link: std::sync::Weak<Link>, first: Arc<Online>, first_place: usize) {
    let (mut online, mut place, mut generation) = (Some(first), first_place, 0);
    let mut pause = PAUSE_MIN;
    loop {
        if let Some(online) = online.take() {
            let (reason, saw_heads) = follow(&link, &online).await;
            let Some(link) = link.upgrade() else { return };
            warn!(endpoint = online.endpoint, reason, "the connection to the chain is given up");
            link.online.send_replace(None);
            if saw_heads {
                pause = PAUSE_MIN;
            }
            place += 1;
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
        let Some(link) = link.upgrade() else { return };
        let endpoint = &link.config.endpoints[place % link.config.endpoints.len()];
        generation += 1;
        match open(&link.substrate, endpoint, generation).await {
            Ok(opened) if opened.api.genesis_hash().0 != link.genesis.0 => {
                warn!(endpoint, "the endpoint is another chain's");
                place += 1;
            }
            Ok(opened) => {
                info!(endpoint, "connected to the chain");
                let opened = Arc::new(opened);
                link.online.send_replace(Some(Arc::clone(&opened)));
                online = Some(opened);
            }
            Err(failure) => {
                debug!(endpoint, %failure, "the chain does not answer");
                place += 1;
            }
        }
    }
}

/// Shows the heads of a connection until it is dead. Answers why, and whether there was any head.
async fn follow(link: &std::sync::Weak<Link>, online: &Arc<Online>) -> (String, bool) {
    let mut saw_heads = false;
    let subscribed = async {
        let best = answer(online.rpc.chain_subscribe_new_heads()).await?;
        Ok::<_, Failure>((best, answer(online.rpc.chain_subscribe_finalized_heads()).await?))
    };
    let (mut best, mut finalized) = match subscribed.await {
        Ok(streams) => streams,
        Err(failure) => return (failure.to_string(), false),
    };
    let (silence, mut lost) = match link.upgrade() {
        Some(link) => ((link.block_time * SILENT_BLOCKS).max(SILENCE_MIN), link.lost.subscribe()),
        None => return ("nobody needs it".to_owned(), false),
    };
    let mut deadline = tokio::time::Instant::now() + silence;
    loop {
        let (header, is_best) = tokio::select! {
            header = best.next() => (header, true),
            header = finalized.next() => (header, false),
            () = tokio::time::sleep_until(deadline) => return ("no new head for too long".to_owned(), saw_heads),
            _ = lost.wait_for(|lost| lost.is_some_and(|lost| lost >= online.generation)) => {
                return ("a request was not answered".to_owned(), saw_heads);
            }
        };
        let header = match header {
            Some(Ok(header)) => header,
            Some(Err(error)) => return (error.to_string(), saw_heads),
            None => return ("it ended".to_owned(), saw_heads),
        };
        let block = block_ref(&header);
        let Some(link) = link.upgrade() else { return ("nobody needs it".to_owned(), saw_heads) };
        let moved = link.heads.send_if_modified(|heads| show(heads, block, is_best));
        if is_best && moved {
            saw_heads = true;
            deadline = tokio::time::Instant::now() + silence;
        }
    }
}

/// What is final never goes back, whatever an endpoint that lags says. Whether anything changed.
fn show(heads: &mut Heads, block: BlockRef, is_best: bool) -> bool {
    let before = *heads;
    if is_best && block.number >= heads.finalized.number {
        heads.best = block;
    } else if !is_best && block.number > heads.finalized.number {
        heads.finalized = block;
        if heads.best.number < block.number {
            heads.best = block;
        }
    }
    *heads != before
}
