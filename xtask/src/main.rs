//! `cargo xtask`: the project's own commands, in Rust so that they need nothing else.
//!
//! Light on purpose (few and small dependencies, arguments read by hand): the first command of a newcomer starts within
//! seconds and shows cargo's own progress from there.
#![allow(clippy::print_stdout, reason = "a command-line program reports on standard output")]

mod cargo;
mod ci;
#[cfg(unix)]
mod swarm;
mod tidy;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask <command>

  run-node [--features LIST] [ARGUMENTS]  build the release binary and run `convoke run` with these arguments
  swarm --miners N --validators M [ARGUMENTS]
                                          a local network of processes with a live table; whether all agreed is the
                                          exit code
  sim [--seed N] [--nodes K] [--rounds R] [--faults SPEC]
                                          a run of many nodes in virtual time, with whatever can go wrong; whether all
                                          that must hold has held is the exit code
  ci                                      all checks: format, lints, documentation, tests, tidy, type check of `cuda`
  tidy                                    the house rules that no compiler checks
  bench [NAME [ARGUMENTS]]                run a benchmark; without a name, list them
  tokenizer [ARGUMENTS]                   train configs/data/tokenizer.json from the default corpus

`cargo xtask run-node --help` shows the arguments of a node, `cargo xtask swarm --help` and
`cargo xtask sim --help` those of a swarm and of a simulation.";

/// As for the node itself: a wrong command line.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    let done = match command.as_str() {
        "run-node" => cargo::run_node(&rest),
        #[cfg(unix)]
        "swarm" => swarm::run(&rest),
        #[cfg(target_os = "linux")]
        swarm::LEASHED => swarm::run_leashed(&rest),
        "ci" if rest.is_empty() => ci::run(),
        "tidy" if rest.is_empty() => tidy::run(&cargo::root()),
        "sim" => cargo::sim(&rest),
        "bench" => cargo::bench(&rest),
        "tokenizer" => cargo::train_tokenizer(&rest),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            eprintln!("{USAGE}");
            Ok(ExitCode::from(EXIT_USAGE))
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
