//! `convoke run`: one node on this machine, from its arguments to its exit code.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use convoke::terms::{EndpointId, Stake};
use dashmap::DashMap;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::info;

use crate::chain::host::development_genesis;
use crate::chain::{Host, HostConfig, Pace};
use crate::cli::RunArgs;
use crate::config::NodeConfig;
use crate::http;
use crate::identity::Identity;
use crate::node::{AddressBook, Node, Plan, Surroundings};
use crate::terminal::{Terminal, closing_table};

/// Stake of the first node of a development chain, in rao: enough for a permit, and for its word to be the majority.
const DEVELOPMENT_STAKE: Stake = Stake(1_000_000_000_000);

/// Runs a node until its rounds are done or it is asked to stop.
///
/// # Errors
/// One readable sentence, with its causes, for whatever keeps the node from running.
pub fn run(args: &RunArgs) -> anyhow::Result<u8> {
    let config = args.config()?;
    let terminal = Terminal::detect();
    terminal.init_logs(&config.node.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // The device has threads of its own; the actors need little.
        .worker_threads(2)
        .build()
        .context("the runtime cannot be started")?;
    runtime.block_on(run_node(args, config, &terminal))
}

async fn run_node(args: &RunArgs, config: NodeConfig, terminal: &Terminal) -> anyhow::Result<u8> {
    let data_dir = config.node.data_dir.clone();
    let identity = Identity::open(&data_dir)?;
    let addresses = address_book(&config.node.peers)?;
    let pages = config.node.http;
    let host = embedded_chain(&config, &identity, &data_dir).await?;
    let chain_write = host.connect(identity.keypair());
    let surroundings = Surroundings { chain: host.reader(), chain_write, addresses };
    let plan = Plan { rounds: args.rounds, faults: args.fault.clone() };
    let node = Node::start(config, identity, surroundings, plan).await?;
    let server =
        match http::serve(pages, node.parts.journal.status.clone(), Arc::clone(&node.parts.journal.metrics)).await {
            Ok(server) => server,
            Err(error) => {
                node.stop();
                node.ended().await;
                host.stop().await;
                return Err(error.into());
            }
        };
    let hotkey = node.parts.keypair.hotkey();
    info!(%hotkey, run = node.parts.run_id.short(), status = format!("http://{}/status", server.addr()), "the node runs");

    let (bar_stop, stopped) = watch::channel(false);
    let bar = tokio::spawn(terminal.round_bar().follow(node.parts.journal.status.clone(), stopped));
    let stopper = node.stopper();
    let signals = tokio::spawn(async move {
        wait_for_signal().await;
        stopper.stop("asked to stop by a signal");
    });
    let parts = Arc::clone(&node.parts);
    let code = node.ended().await;
    signals.abort();
    bar_stop.send_replace(true);
    drop(bar.await);
    server.stop().await;
    host.stop().await;
    print_closing(&parts);
    Ok(code)
}

/// The development chain in this process, kept beside the node's state so that both go on together.
async fn embedded_chain(config: &NodeConfig, identity: &Identity, data_dir: &Path) -> anyhow::Result<Host> {
    if config.chain.url != "embedded" {
        bail!(
            "the chain `{}` cannot be joined by this version: leave out --chain to use the embedded one",
            config.chain.url
        );
    }
    let timing = &config.run.timing;
    let genesis = development_genesis(config.run.netuid, config.run.seed);
    let host_config = HostConfig {
        block_time: Duration::from_millis(config.chain.block_ms),
        finality_depth: timing.finality_depth,
        pace: Pace::Real,
        file: Some(data_dir.join("chain.redb")),
    };
    let host = Host::start(&genesis, host_config).context("the embedded chain cannot be started")?;
    let hotkey = identity.keypair().hotkey();
    host.dev_register(hotkey, DEVELOPMENT_STAKE).await.context("the hotkey cannot be registered")?;
    Ok(host)
}

/// The peers of the configuration, each `endpoint-id@address:port`.
fn address_book(peers: &[String]) -> anyhow::Result<AddressBook> {
    let book = DashMap::new();
    for peer in peers {
        let parsed = peer
            .split_once('@')
            .and_then(|(id, address)| Some((id.parse::<EndpointId>().ok()?, address.parse::<SocketAddr>().ok()?)));
        let Some((id, address)) = parsed else {
            bail!("`node.peers` holds `{peer}`: write endpoint-id@address:port, the id as 64 hexadecimal digits");
        };
        book.insert(id, address);
    }
    Ok(Arc::new(book))
}

async fn wait_for_signal() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

#[allow(clippy::print_stdout, reason = "what the run came to is the command's result")]
fn print_closing(parts: &crate::node::Parts) {
    println!("{}", closing_table(&parts.journal.status.snapshot()));
    let words = parts.closing_words.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    if let Some(words) = words {
        println!("\nThe model writes:\n\n{words}");
    }
}
