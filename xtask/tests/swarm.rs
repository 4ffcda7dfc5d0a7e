//! The command `swarm` from outside: its exit code, and that a swarm that is killed leaves nothing behind.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const XTASK: &str = env!("CARGO_BIN_EXE_xtask");

/// A killed process that nobody has waited for yet runs no more either.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
    stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

#[test]
fn a_process_ends_with_a_killed_parent() {
    let script = r#""$0" leashed $$ sh -c 'echo $$; exec sleep 600' & wait"#;
    let mut parent = Command::new("sh").args(["-c", script, XTASK]).stdout(Stdio::piped()).spawn().unwrap();
    let mut pid = String::new();
    BufReader::new(parent.stdout.take().unwrap()).read_line(&mut pid).unwrap();
    assert!(runs(pid.trim()), "{pid}");
    parent.kill().unwrap();
    parent.wait().unwrap();
    let killed = Instant::now();
    while runs(pid.trim()) {
        assert!(killed.elapsed() < Duration::from_secs(30), "process {pid} outlives its parent");
        std::thread::yield_now();
    }
}

#[test]
fn nothing_is_started_for_a_parent_that_has_ended() {
    let output = Command::new(XTASK).args(["leashed", "1", "sh", "-c", "echo started"]).output().unwrap();
    assert!(!output.status.success() && output.stdout.is_empty());
}

#[test]
fn a_wrong_command_line_of_a_swarm_is_told_with_code_2() {
    let output = Command::new(XTASK).args(["swarm", "--miners", "1"]).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(message.contains("--validators is missing") && message.contains("usage:"), "{message}");
}
