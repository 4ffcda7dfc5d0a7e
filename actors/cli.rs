//! The command line: a promise to users, in one place.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{ConfigError, Layers, NodeConfig};
use crate::faults::Fault;

/// Train large language models together, over the open internet, among peers that do not trust each other.
#[derive(Debug, Parser)]
#[command(name = "convoke", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node. Without arguments: role both, a development chain inside the process, a tiny model, Shakespeare, this
    /// machine's CPU.
    Run(RunArgs),
    /// Serve a development chain alone, for nodes that join it with --chain.
    Chain(ChainArgs),
    /// Make tokenizers.
    Tokenizer {
        /// What to do.
        #[command(subcommand)]
        command: TokenizerCommand,
    },
    /// Make and show the keys that own and run a node, in the official tools' files.
    Wallet {
        /// What to do.
        #[command(subcommand)]
        command: WalletCommand,
    },
    /// Buy a hotkey a slot on a subnet, with the coldkey of its wallet.
    Register(RegisterArgs),
}

/// What can be done with wallets.
#[derive(Debug, Subcommand)]
pub enum WalletCommand {
    /// Make a hotkey, and a coldkey under a password if the wallet has none.
    New(WalletArgs),
    /// Show whose wallet it is.
    Show(WalletArgs),
}

/// Which wallet.
#[derive(Debug, Clone, Args)]
pub struct WalletArgs {
    /// The wallet's name.
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub wallet: String,
    /// The hotkey's name.
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub hotkey: String,
    /// Where wallets are; the official tools' place if it is not said.
    #[arg(long, value_name = "DIR")]
    pub wallets: Option<PathBuf>,
}

/// The arguments of `register`.
#[derive(Debug, Clone, Args)]
pub struct RegisterArgs {
    /// The chain's address, ws:// or wss://.
    #[arg(long, value_name = "URL")]
    pub chain: String,
    /// The subnet.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub netuid: u16,
    /// Whose coldkey pays, and for which hotkey.
    #[command(flatten)]
    pub wallet: WalletArgs,
    /// The most it may cost; what it costs at the moment if it is not said.
    #[arg(long, value_name = "TAO", value_parser = crate::wallet::register::rao)]
    pub limit_price: Option<u64>,
    /// Let a development chain's faucet pay.
    #[arg(long)]
    pub faucet: bool,
}

/// The arguments of `chain`.
#[derive(Debug, Clone, Args)]
pub struct ChainArgs {
    /// Where it listens.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9944")]
    pub listen: SocketAddr,
    /// Where the chain is kept; a chain that is there goes on.
    #[arg(long, value_name = "DIR", default_value = "convoke-chain")]
    pub data_dir: PathBuf,
    /// Milliseconds between blocks.
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    pub block_ms: u64,
    /// Blocks that the finalised head is behind the best.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(..512))]
    pub finality_depth: u64,
    /// The subnet.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub netuid: u16,
    /// Tells chains apart that are equal otherwise.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Have validators commit weights under a lock that the chain opens an epoch later, so that nobody copies them.
    #[arg(long)]
    pub commit_reveal: bool,
    /// Allow calls that make things go wrong: the namespace dev_.
    #[arg(long)]
    pub dev_faults: bool,
    /// Which logs are shown: a level, or tracing's filter directives.
    #[arg(long, default_value = "info")]
    pub log: String,
}

/// What can be done with tokenizers.
#[derive(Debug, Subcommand)]
pub enum TokenizerCommand {
    /// Train a byte-level BPE on text files.
    Train {
        /// The text: .txt or .jsonl; the default run's corpus if there is none.
        files: Vec<PathBuf>,
        /// Entries of the vocabulary.
        #[arg(long, default_value_t = 2048)]
        vocab_size: usize,
        /// Where to write the tokenizer.json.
        #[arg(long)]
        out: PathBuf,
    },
}

/// What a node does for the run.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum RoleArg {
    /// Train.
    Miner,
    /// Score.
    Validator,
    /// Train, and score others.
    Both,
}

/// The arguments of `run`.
#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    /// What the node does for the run.
    #[arg(long, value_enum)]
    pub role: Option<RoleArg>,
    /// A TOML file with whatever differs from the defaults.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The chain: `embedded`, or the ws:// address of another node's.
    #[arg(long, value_name = "URL")]
    pub chain: Option<String>,
    /// The node's name in logs and metrics.
    #[arg(long)]
    pub name: Option<String>,
    /// Where the node keeps its state, its identity and its events.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where /metrics, /health, /ready and /status are served.
    #[arg(long, value_name = "ADDR")]
    pub http: Option<SocketAddr>,
    /// Leave after this many completed rounds.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub rounds: Option<u64>,
    /// Change one value of the configuration.
    #[arg(long, value_name = "key=value")]
    pub set: Vec<String>,
    /// Make something fail on purpose: actor:point:round:kind, the kind one of panic, hang, kill, flip.
    #[arg(long, value_name = "FAULT", hide = true)]
    pub fault: Vec<Fault>,
}

impl RunArgs {
    /// The configuration: defaults, then the file, then `--set`, then the flags.
    ///
    /// # Errors
    /// The first thing that is wrong, with its key and what would be right.
    pub fn config(&self) -> Result<NodeConfig, ConfigError> {
        let mut layers = Layers::default();
        if let Some(path) = &self.config {
            layers = layers.file(path)?;
        }
        layers = self.set.iter().try_fold(layers, |layers, argument| layers.set(argument))?;
        let role = self.role.map(|role| match role {
            RoleArg::Miner => "miner",
            RoleArg::Validator => "validator",
            RoleArg::Both => "both",
        });
        let data_dir = self.data_dir.as_ref().map(|dir| dir.to_string_lossy().into_owned());
        let flags = [
            ("node.role", role.map(str::to_owned)),
            ("chain.url", self.chain.clone()),
            ("node.name", self.name.clone()),
            ("node.data_dir", data_dir),
            ("node.http", self.http.map(|address| address.to_string())),
        ];
        for (key, value) in flags {
            if let Some(value) = value {
                layers = layers.put(key, value)?;
            }
        }
        layers.read()
    }
}
