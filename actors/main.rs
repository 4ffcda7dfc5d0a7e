//! The program `convoke`: reads its arguments, does what they say, and turns the outcome into an exit code.
#![allow(clippy::print_stdout, reason = "a command-line program reports on standard output")]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use convoke_node::cli::{Cli, Command, RegisterArgs, TokenizerCommand, WalletArgs, WalletCommand};
use convoke_node::wallet::register::Registration;
use convoke_node::wallet::{Wallet, command, prompt, register};
use convoke_node::{data, run, serve_chain};

/// Keeps large freed buffers for the next inner step, where the system's allocator would give them back and ask anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // clap ends the process with code 2 when the command line is wrong.
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Chain(args) => serve_chain::serve(&args),
        Command::Tokenizer { command: TokenizerCommand::Train { files, vocab_size, out } } => {
            data::vocabulary::train_to_file(&files, vocab_size, &out).map(|()| 0).map_err(Into::into)
        }
        Command::Wallet { command } => wallet(&command).map(|text| {
            print!("{text}");
            0
        }),
        Command::Register(args) => register(args),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn wallets(args: &WalletArgs) -> std::io::Result<PathBuf> {
    args.wallets.clone().map_or_else(command::default_wallets, Ok)
}

fn register(args: RegisterArgs) -> anyhow::Result<u8> {
    let RegisterArgs { chain, netuid, wallet, limit_price, faucet } = args;
    let (hotkey, wallet) = (wallet.hotkey.clone(), Wallet::named(&wallets(&wallet)?, &wallet.wallet)?);
    let asked = Registration { chain, netuid, wallet, hotkey, limit_price, faucet };
    // The connection goes on while somebody types.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(1).build()?;
    let bought = runtime.block_on(register::register(&asked, prompt::password, |line| println!("{line}")));
    runtime.shutdown_background();
    bought?;
    Ok(0)
}

fn wallet(wallet: &WalletCommand) -> anyhow::Result<String> {
    let (WalletCommand::New(args) | WalletCommand::Show(args)) = wallet;
    let wallets = wallets(args)?;
    let text = match wallet {
        WalletCommand::New(_) => command::new(&wallets, &args.wallet, &args.hotkey, prompt::password),
        WalletCommand::Show(_) => command::show(&wallets, &args.wallet, &args.hotkey),
    };
    Ok(text?)
}
