//! A node's place in a run: the chain it follows, its slot there, and that nobody else is this node.
//!
//! **The chain.** Where the configuration names one, it is followed through its nodes. Otherwise the first node of a machine serves a
//! development chain on loopback, beside its own state so that both go on together, and those that start after it join that one.
//! Either way the node is a client of it by the same code.
//!
//! **The slot.** A development chain's faucet gives a slot to whoever asks, and to a validator the stake of one. On any other chain
//! slots are bought with a coldkey, which the node never sees: `convoke register`.
//!
//! **One process a hotkey.** A commitment is overwritten as a whole, so two processes with one hotkey would undo each other's
//! seals. Whoever starts looks where the chain says that its endpoint listens. If somebody answers there with the endpoint's key,
//! the start is refused. If nobody does, the new process takes a higher `seq` than the chain has seen; and whoever reads
//! a higher one on chain than his own stops ([`Identity::yields_to`]). So of two that could not see each other one goes on.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use anyhow::{Context, bail};
use convoke::address::to_ss58;
use convoke::chain::commitment::{Commitment, Identity, Place};
use convoke::terms::{Hotkey, Stake};
use tracing::{info, warn};

use crate::chain::host::development_genesis;
use crate::chain::{ChainRead, ChainServer, Client, ClientConfig, ServerConfig};
use crate::config::NodeConfig;
use crate::peer_sync::endpoint;

/// Stake of a validator of a development chain, in rao: enough for a permit; all have the same.
const DEVELOPMENT_STAKE: Stake = Stake(1_000_000_000_000);
/// How long somebody who has our key may take to show it.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// The chain that a node follows, and serves if it is the first of its machine.
pub struct Membership {
    /// The chain.
    pub client: Client,
    served: Option<ChainServer>,
}

impl Membership {
    /// Finds the chain and gets the hotkey a slot on it.
    ///
    /// # Errors
    /// One readable sentence, with its causes, for whatever keeps the node out.
    pub async fn join(config: &NodeConfig, hotkey: Hotkey) -> anyhow::Result<Self> {
        let (served, endpoints) = match config.chain.endpoints() {
            named if !named.is_empty() => (None, named),
            _ => serve_or_find(config)?,
        };
        let membership = Self { client: connect(config, endpoints.clone()).await?, served };
        let is_development = membership.client.is_development().await.context("the chain cannot be read")?;
        if config.chain.endpoints().is_empty() && !is_development {
            let listen = config.chain.listen;
            bail!(
                "{listen} serves a chain that is no development chain: name it with --chain, or choose another chain.listen"
            );
        }
        match take_slot(config, &membership.client, is_development, hotkey, &endpoints).await {
            Ok(()) => Ok(membership),
            Err(error) => {
                membership.leave().await;
                Err(error)
            }
        }
    }

    /// Ends the chain, if it is this process's.
    pub async fn leave(self) {
        let Self { client, served } = self;
        drop(client);
        if let Some(server) = served {
            server.stop().await;
        }
    }
}

/// Serves a development chain, unless another process of this machine does.
fn serve_or_find(config: &NodeConfig) -> anyhow::Result<(Option<ChainServer>, Vec<String>)> {
    let listen = config.chain.listen;
    // Before a file of the chain is made, which a node that joins another's chain must not have.
    if TcpListener::bind(listen).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse) {
        let url = format!("ws://{listen}");
        info!(url, "a chain is served on this machine already, and is joined");
        return Ok((None, vec![url]));
    }
    let genesis = development_genesis(config.run.netuid, config.run.seed);
    let server_config = ServerConfig {
        finality_depth: config.run.timing.finality_depth,
        file: Some(config.node.data_dir.join("chain.redb")),
        ..ServerConfig::new(listen, Duration::from_millis(config.chain.block_ms))
    };
    let server = ChainServer::start(&genesis, server_config).context("the embedded chain cannot be served")?;
    let url = server.url();
    info!(url, "serving the chain: other nodes join with --chain and this URL");
    Ok((Some(server), vec![url]))
}

async fn connect(config: &NodeConfig, endpoints: Vec<String>) -> anyhow::Result<Client> {
    let urls = endpoints.join(", ");
    let client_config = ClientConfig { endpoints, netuid: config.run.netuid, block_time: None };
    Client::connect(client_config).await.with_context(|| format!("the chain at {urls} cannot be joined"))
}

async fn take_slot(
    config: &NodeConfig,
    client: &Client,
    is_development: bool,
    hotkey: Hotkey,
    urls: &[String],
) -> anyhow::Result<()> {
    let validates = config.node.role.validates();
    if is_development {
        let stake = if validates { DEVELOPMENT_STAKE } else { Stake(0) };
        let slot = client.dev_register(hotkey, stake).await;
        slot.context("the development chain's faucet gives this node no slot")?;
        return Ok(());
    }
    let chain = client.reader();
    let head = chain.heads().borrow().best.number;
    let metagraph = chain.metagraph(head).await.context("the registry cannot be read")?;
    let (address, netuid) = (to_ss58(&hotkey), config.run.netuid);
    let Some(neuron) = metagraph.by_hotkey(&hotkey) else {
        let url = urls.join(",");
        bail!(
            "the hotkey {address} has no slot on subnet {netuid}: buy it one with `convoke register --chain {url} --netuid {netuid}`"
        );
    };
    if validates && !neuron.permit {
        warn!(
            hotkey = address,
            netuid, "this hotkey has no validator's permit: what it votes and weighs does not count"
        );
    }
    Ok(())
}

/// The identity under which this start of a node is known, listening at `address`. `last` is what this data directory put on
/// chain before: whoever that was is gone, since the directory is ours now.
///
/// # Errors
/// Another process is this node, or the chain does not answer.
pub async fn claim(
    chain: &dyn ChainRead,
    endpoint_secret: &[u8; 32],
    hotkey: &Hotkey,
    address: Option<SocketAddr>,
    last: Option<Identity>,
) -> anyhow::Result<Identity> {
    let head = chain.heads().borrow().best.number;
    let commitments = chain.commitments(head).await.context("the commitments cannot be read")?;
    let known = commitments.get(hotkey).and_then(|committed| Commitment::parse(&committed.fields).ok()?.identity);
    if let Some(known) = known
        && let Some(at) = to_be_asked(&known, last, address)
        && endpoint::answers(&known.endpoint, at, PROBE_TIMEOUT).await
    {
        let address = to_ss58(hotkey);
        bail!(
            "another process runs with the hotkey {address} and listens at {at}: stop it first, or give this node a hotkey of its own"
        );
    }
    let seq = known.map_or(1, |known| known.seq.saturating_add(1));
    let place = Place { genesis: chain.genesis(), netuid: chain.netuid() };
    Ok(Identity::prove(endpoint_secret, &place, hotkey, seq, address))
}

/// Where another process may be this node, by what is on chain. Nowhere if this data directory put it there; nor where this start
/// itself listens: there it would answer itself. (An earlier start that ended before its own identity was on chain leaves the
/// one before it, which is no longer this directory's last.)
fn to_be_asked(known: &Identity, last: Option<Identity>, address: Option<SocketAddr>) -> Option<SocketAddr> {
    known.address.filter(|at| Some(*known) != last && Some(*at) != address)
}

/// The address to put on chain, for an endpoint that is bound here: what the configuration says, or where it is bound, or, if
/// that is every address of this machine, the one from which the chain is reached.
#[must_use]
pub fn address_to_announce(config: &NodeConfig, bound: SocketAddr) -> Option<SocketAddr> {
    if let Some(stated) = config.node.stated_address() {
        return Some(stated);
    }
    if !bound.ip().is_unspecified() {
        return Some(bound);
    }
    let chain = config.chain.endpoints().first().and_then(|url| host_of(url)).unwrap_or(config.chain.listen);
    // A UDP socket that is connected has sent nothing, but knows from which address it would.
    let unspecified: SocketAddr = if chain.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(unspecified).and_then(|socket| socket.connect(chain).map(|()| socket)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    Some(SocketAddr::new(ip, bound.port()))
}

/// The host of a WebSocket URL, looked up.
fn host_of(url: &str) -> Option<SocketAddr> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split('/').next()?;
    let default_port = if scheme == "wss" { 443 } else { 80 };
    let with_port = authority.to_socket_addrs().or_else(|_| (authority, default_port).to_socket_addrs());
    with_port.ok()?.next()
}

#[cfg(test)]
mod tests {
    use convoke::terms::BlockHash;

    use super::*;
    use crate::config::Layers;

    fn config(sets: &[&str]) -> NodeConfig {
        sets.iter().fold(Layers::default(), |layers, set| layers.set(set).unwrap()).read().unwrap()
    }

    #[test]
    fn the_address_on_chain_is_one_that_others_can_use() {
        let bound: SocketAddr = "127.0.0.1:77".parse().unwrap();
        assert_eq!(address_to_announce(&config(&[]), bound), Some(bound));
        let everywhere: SocketAddr = "0.0.0.0:78".parse().unwrap();
        assert_eq!(address_to_announce(&config(&[]), everywhere), "127.0.0.1:78".parse().ok());
        let stated = config(&["node.address=203.0.113.5:4000"]);
        assert_eq!(address_to_announce(&stated, everywhere), "203.0.113.5:4000".parse().ok());
        let elsewhere = config(&["chain.url=ws://127.0.0.1:9/path"]);
        assert_eq!(address_to_announce(&elsewhere, everywhere), "127.0.0.1:78".parse().ok());
    }

    #[test]
    fn nobody_asks_himself_whether_another_process_is_this_node() {
        let [here, elsewhere] = ["127.0.0.1:77", "127.0.0.1:78"].map(|address| address.parse::<SocketAddr>().ok());
        let place = Place { genesis: BlockHash([7; 32]), netuid: 1 };
        let start = |seq, address| Identity::prove(&[1; 32], &place, &Hotkey([2; 32]), seq, address);
        let known = start(1, here);
        assert_eq!(to_be_asked(&known, None, elsewhere), here, "another directory's");
        assert_eq!(to_be_asked(&known, Some(known), elsewhere), None, "this directory's last start");
        assert_eq!(to_be_asked(&known, Some(start(2, here)), here), None, "the second start never got on chain");
        assert_eq!(to_be_asked(&known, Some(start(2, here)), elsewhere), here, "nor do we know who listens there now");
        assert_eq!(to_be_asked(&start(3, None), None, here), None, "nobody can be asked");
    }

    #[test]
    fn the_host_of_a_url_is_found_with_and_without_a_port() {
        assert_eq!(host_of("ws://127.0.0.1:9944"), "127.0.0.1:9944".parse().ok());
        assert_eq!(host_of("wss://127.0.0.1/rpc"), "127.0.0.1:443".parse().ok());
        assert_eq!(host_of("nonsense"), None);
    }
}
