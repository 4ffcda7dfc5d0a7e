//! `convoke run`: one node on this machine, from its arguments to its exit code.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use convoke::terms::EndpointId;
use dashmap::DashMap;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::cli::RunArgs;
use crate::config::NodeConfig;
use crate::http::{self, HttpServer};
use crate::identity::{DataDirLock, Identity};
use crate::membership::Membership;
use crate::node::{AddressBook, Node, Plan, Prepared, Surroundings};
use crate::terminal::{Terminal, closing_table};

/// From the wish to stop to the end of the process at most; a supervisor that asked for the stop waits ten seconds.
const STOP_MAX: Duration = Duration::from_secs(9);

/// Runs a node until its rounds are done or it is asked to stop.
///
/// # Errors
/// One readable sentence, with its causes, for whatever keeps the node from running.
pub fn run(args: &RunArgs) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // The device has threads of its own; the actors need little.
        .worker_threads(1)
        .build()
        .context("the runtime cannot be started")?;
    let outcome = runtime.block_on(async {
        // First of all: from here on a signal is a wish, and no longer the end.
        let mut signals = Signals::new().context("signals cannot be listened to")?;
        let config = args.config()?;
        let terminal = Terminal::detect();
        terminal.init_logs(&config.node.log)?;
        let running = tokio::select! {
            running = set_up(args, config) => running?,
            () = signals.next() => {
                info!("asked to stop by a signal before the node was up");
                return Ok(0);
            }
        };
        running.until_stopped(&mut signals, &terminal).await
    });
    // A thread that tokenises or compiles for a device may be far from its end; nothing of it is needed any more.
    runtime.shutdown_background();
    outcome
}

/// The signals by which a process is asked to stop.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// What runs in this process.
struct Running {
    node: Node,
    membership: Membership,
    server: HttpServer,
    _lock: DataDirLock,
}

/// Everything that can be refused is asked for before the chain is touched: the pages' address, the device, the data.
async fn set_up(args: &RunArgs, config: NodeConfig) -> anyhow::Result<Running> {
    let data_dir = &config.node.data_dir;
    let lock = DataDirLock::take(data_dir)?;
    let hotkey_file = Some(&*config.node.hotkey).filter(|path| !path.as_os_str().is_empty());
    let identity = Identity::open(data_dir, hotkey_file)?;
    let addresses = address_book(&config.node.peers)?;
    let pages = http::bind(config.node.http).await?;
    let prepared = Prepared::new(config.clone(), identity.clone()).await?;
    let membership = Membership::join(&config, identity.keypair().hotkey()).await?;
    let chain_write = membership.client.writer(identity.keypair());
    let surroundings = Surroundings { chain: membership.client.reader(), chain_write, addresses };
    let plan = Plan { rounds: args.rounds, faults: args.fault.clone() };
    match prepared.start(surroundings, plan).await {
        Ok(node) => {
            let server = pages.serve(node.parts.journal.status.clone(), Arc::clone(&node.parts.journal.metrics));
            Ok(Running { node, membership, server, _lock: lock })
        }
        Err(error) => {
            membership.leave().await;
            Err(error)
        }
    }
}

impl Running {
    /// Lets the node run until its rounds are done or a signal comes, and ends all of it within [`STOP_MAX`].
    async fn until_stopped(self, signals: &mut Signals, terminal: &Terminal) -> anyhow::Result<u8> {
        let Self { node, membership, server, _lock } = self;
        let parts = Arc::clone(&node.parts);
        let hotkey = parts.keypair.hotkey();
        let status = format!("http://{}/status", server.addr());
        info!(%hotkey, run = parts.run_id.short(), status, "the node runs");

        let (bar_stop, stopped) = watch::channel(false);
        let bar = terminal.round_bar().map(|bar| tokio::spawn(bar.follow(parts.journal.status.clone(), stopped)));
        let (stopper, ending) = (node.stopper(), node.ending());
        let patience = async {
            let code = tokio::select! {
                code = ending => code,
                () = signals.next() => {
                    stopper.stop("asked to stop by a signal");
                    0
                }
            };
            tokio::time::sleep(STOP_MAX).await;
            code
        };
        let closing = async {
            let code = node.ended().await;
            bar_stop.send_replace(true);
            if let Some(bar) = bar {
                drop(bar.await);
            }
            server.stop().await;
            membership.leave().await;
            code
        };
        let code = tokio::select! {
            biased;
            code = closing => code,
            code = patience => {
                warn!(limit = ?STOP_MAX, "not all of the node ended in time; it goes on from its last boundary when it starts again");
                code
            }
        };
        print_closing(&parts);
        Ok(code)
    }
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

#[allow(clippy::print_stdout, reason = "what the run came to is the command's result")]
fn print_closing(parts: &crate::node::Parts) {
    println!("{}", closing_table(&parts.journal.status.snapshot()));
    let words = parts.closing_words.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    if let Some(words) = words {
        println!("\nThe model writes:\n\n{words}");
    }
}
