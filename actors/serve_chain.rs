//! `convoke chain`: the development chain as a process of its own, for nodes that name it with `--chain`.

use std::time::Duration;

use anyhow::Context;
use tracing::info;

use crate::chain::host::development_genesis;
use crate::chain::{ChainServer, ServerConfig};
use crate::cli::ChainArgs;
use crate::run::Signals;
use crate::terminal::Terminal;

/// Serves the chain until a signal asks it to stop.
///
/// # Errors
/// One readable sentence, with its causes, for whatever keeps the chain from being served.
pub fn serve(args: &ChainArgs) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build();
    runtime.context("the runtime cannot be started")?.block_on(async {
        // First of all: from here on a signal is a wish, and no longer the end.
        let mut signals = Signals::new().context("signals cannot be listened to")?;
        Terminal::detect().init_logs(&args.log)?;
        let server = start(args)?;
        info!(url = server.url(), "nodes may join with --chain and this URL");
        signals.next().await;
        server.stop().await;
        info!("the chain is stopped");
        Ok(0)
    })
}

fn start(args: &ChainArgs) -> anyhow::Result<ChainServer> {
    let dir = &args.data_dir;
    std::fs::create_dir_all(dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    let config = ServerConfig {
        finality_depth: args.finality_depth,
        file: Some(dir.join("served-chain.redb")),
        faults: args.dev_faults,
        ..ServerConfig::new(args.listen, Duration::from_millis(args.block_ms))
    };
    let mut genesis = development_genesis(args.netuid, args.seed);
    genesis.hyperparameters.commit_reveal_weights_enabled = args.commit_reveal;
    ChainServer::start(&genesis, config).context("the chain cannot be served")
}
