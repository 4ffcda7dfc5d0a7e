//! `cargo xtask ci`: everything that must hold before a change is taken, cheapest first.
//!
//! All steps that compile for running use the release profile, so that the dependencies are compiled once for the node
//! and for its tests. The CUDA build proper needs a toolkit that few machines have; `DOCS_RS=1`, which its build script
//! takes as "types only", checks that the feature compiles, in a target directory of its own.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cargo::{cargo, root};
use crate::tidy;

enum Work {
    Tidy,
    Run(Command),
}

/// Runs the steps in order up to the first that fails.
pub fn run() -> Result<ExitCode> {
    let start = Instant::now();
    let steps = steps();
    let n_steps = steps.len();
    for (idx, (name, work)) in steps.into_iter().enumerate() {
        println!("== {}/{n_steps} {name}", idx + 1);
        let step_start = Instant::now();
        let passed = match work {
            Work::Tidy => tidy::run(&root())? == ExitCode::SUCCESS,
            Work::Run(mut command) => command.status().context("cargo cannot be started")?.success(),
        };
        let took = seconds(step_start.elapsed());
        if !passed {
            println!("== {name}: FAILED after {took}");
            println!("ci: {idx} of {n_steps} steps passed, then {name} failed ({} in all)", seconds(start.elapsed()));
            return Ok(ExitCode::FAILURE);
        }
        println!("== {name}: passed in {took}");
    }
    println!("ci: all {n_steps} steps passed in {}", seconds(start.elapsed()));
    Ok(ExitCode::SUCCESS)
}

fn steps() -> Vec<(&'static str, Work)> {
    let mut lints = cargo(&["clippy", "--release", "--workspace", "--all-targets", "--locked"]);
    lints.args(["--", "-D", "warnings"]);
    // The node's binary and the protocol's library share a name, and so would their pages: libraries only.
    let mut documentation = cargo(&["doc", "--release", "--no-deps", "--lib", "--locked"]);
    documentation.args(["--package", "convoke", "--package", "convoke-node"]);
    documentation.env("RUSTDOCFLAGS", "-D warnings");
    let mut cuda = cargo(&["check", "--package", "convoke-node", "--features", "cuda", "--locked"]);
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned());
    cuda.env("DOCS_RS", "1").env("CARGO_TARGET_DIR", format!("{target}-cuda"));
    vec![
        ("format", Work::Run(cargo(&["fmt", "--all", "--check"]))),
        ("tidy", Work::Tidy),
        ("lints", Work::Run(lints)),
        ("documentation", Work::Run(documentation)),
        ("tests", Work::Run(cargo(&["test", "--release", "--workspace", "--locked"]))),
        ("type check of the feature cuda", Work::Run(cuda)),
    ]
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
