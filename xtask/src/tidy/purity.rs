//! What code may not call: effects in the protocol, sleeps in tests, `unsafe` outside its few modules, unfinished work.
//!
//! Clippy's `disallowed-methods` refuses single functions; this refuses the whole modules, also where only a type of
//! theirs is named.

use super::Finding;
use super::source::Source;

/// What `src/` may not name outside tests.
const EFFECTS: [&str; 16] = [
    "std::fs",
    "std::net",
    "std::thread",
    "std::process",
    "std::env",
    "tokio",
    "ractor",
    "iroh",
    "iroh_blobs",
    "axum",
    "redb",
    "subxt",
    "Instant::now",
    "SystemTime",
    "thread_rng",
    "rand::rng",
];

/// Modules of std among those, for `use std::{…}`.
const STD_MODULES: [&str; 5] = ["fs", "net", "thread", "process", "env"];

/// Modules that may allow `unsafe`, each with a `SAFETY` sentence where it uses it.
const UNSAFE_MODULES: [&str; 1] = ["actors/data/mapped.rs"];

/// The rules of this module.
pub fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    if source.path.starts_with("src/") {
        check_effects(source, &mut findings);
    }
    for at in source.find_words("sleep(") {
        if source.in_tests(at) && !on_a_paused_clock(source, at) {
            report(source, at, "a test waits for an event or moves a paused clock, it does not sleep", &mut findings);
        }
    }
    for unfinished in ["todo!", "unimplemented!", "#[ignore"] {
        for at in source.find_words(unfinished) {
            report(source, at, &format!("`{unfinished}`: finish it or leave it out"), &mut findings);
        }
    }
    check_unsafe(source, &mut findings);
    check_paths(source, &mut findings);
    findings
}

/// Whether a call belongs to a test whose clock stands still until all wait: there a sleep costs nothing and is exact.
fn on_a_paused_clock(source: &Source, at: usize) -> bool {
    let before = &source.code[..at];
    let attribute = before.rfind("#[tokio::test").map(|start| &before[start..]);
    let paused =
        attribute.and_then(|rest| rest.lines().next()).is_some_and(|line| line.contains("start_paused = true"));
    paused && !before.ends_with("thread::")
}

fn report(source: &Source, at: usize, what: &str, findings: &mut Vec<Finding>) {
    findings.push(Finding::new(source.path, source.line(at), what));
}

fn check_effects(source: &Source, findings: &mut Vec<Finding>) {
    let mut refuse = |at: usize, name: &str| {
        if !source.in_tests(at) {
            report(source, at, &format!("`{name}` in src/: the protocol is pure, effects belong to actors/"), findings);
        }
    };
    for name in EFFECTS {
        source.find_words(name).into_iter().for_each(|at| refuse(at, name));
    }
    for at in source.find_words("std::{") {
        let open = at + "std::".len();
        let group = &source.code[open..source.group_end(open).unwrap_or(open)];
        for part in group[group.len().min(1)..].split(',') {
            let module = part.trim().split("::").next().unwrap_or_default();
            if STD_MODULES.contains(&module) {
                refuse(at, &format!("std::{module}"));
            }
        }
    }
}

fn check_unsafe(source: &Source, findings: &mut Vec<Finding>) {
    for at in source.find_words("unsafe_code") {
        if !UNSAFE_MODULES.contains(&source.path) {
            report(
                source,
                at,
                "this module is not among those that may use `unsafe` (xtask/src/tidy/purity.rs)",
                findings,
            );
        }
    }
    for at in source.find_words("unsafe") {
        let before = source.text[..at].lines().rev().take(5);
        if !before.into_iter().any(|line| line.contains("SAFETY:")) {
            report(source, at, "`unsafe` without a sentence `SAFETY: …` right above it", findings);
        }
    }
}

/// Paths of one machine, in code or comments: a test that needs a directory makes its own.
fn check_paths(source: &Source, findings: &mut Vec<Finding>) {
    for top in ["tmp", "home", "root", "work"] {
        let path = format!("/{top}/");
        for (at, _) in source.text.match_indices(&path) {
            let before = source.text[..at].chars().next_back().unwrap_or(' ');
            // `target/tmp/` and `https://host/home/` are no paths of the machine.
            if !before.is_alphanumeric() && !"._-}".contains(before) {
                report(source, at, "a path of one machine: make a temporary directory, or start at the root", findings);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_lines(path: &str, text: &str, wanted: &[usize]) {
        let found: Vec<_> = check(&Source::new(path, text)).iter().map(|finding| finding.line).collect();
        assert_eq!(found, wanted, "{text}");
    }

    #[test]
    fn the_protocol_has_no_effects() {
        check_lines("src/x.rs", "use std::fs::File;\n", &[1]);
        check_lines("src/x.rs", "use std::{\n    collections::BTreeMap,\n    thread,\n};\n", &[1]);
        check_lines(
            "src/x.rs",
            "fn f() {\n    let now = std::time::Instant::now();\n    tokio::spawn(g());\n}",
            &[3, 2],
        );
        check_lines("src/x.rs", "// std::fs is for actors\nuse std::fmt;\nconst X: &str = \"tokio\";\n", &[]);
        check_lines("src/x.rs", "#[cfg(test)]\nmod tests { use std::fs; }\n", &[]);
        check_lines("actors/x.rs", "use std::fs::File;\n", &[]);
    }

    #[test]
    fn tests_do_not_sleep() {
        let sleeps = "fn f() {\n    std::thread::sleep(x);\n    tokio::time::sleep(x).await;\n    sleep_until(y);\n}\n";
        check_lines("tests/x.rs", sleeps, &[2, 3]);
        check_lines("actors/x.rs", sleeps, &[]);
        check_lines("actors/x.rs", &format!("#[cfg(test)]\nmod tests {{\n{sleeps}}}\n"), &[4, 5]);
    }

    #[test]
    fn a_sleep_on_a_paused_clock_is_no_sleep() {
        let test = |attribute: &str| format!("{attribute}\nasync fn t() {{\n    tokio::time::sleep(x).await;\n}}\n");
        let (paused, real) = (test("#[tokio::test(start_paused = true)]"), test("#[tokio::test]"));
        check_lines("tests/x.rs", &format!("{paused}{real}"), &[7]);
        check_lines("tests/x.rs", &format!("{real}{paused}"), &[3]);
        check_lines("tests/x.rs", &paused.replace("tokio::time", "std::thread"), &[3]);
    }

    #[test]
    fn unfinished_work_is_refused() {
        check_lines(
            "actors/x.rs",
            "fn f() { todo!() }\nfn g() { unimplemented!() }\n#[ignore]\nfn t() {}\n",
            &[1, 2, 3],
        );
    }

    #[test]
    fn only_listed_modules_use_unsafe_and_say_why_it_is_sound() {
        let sound = "#![allow(unsafe_code)]\n// SAFETY: nobody else writes here.\nlet x = unsafe { f() };\n";
        check_lines("actors/data/mapped.rs", sound, &[]);
        check_lines("actors/x.rs", sound, &[1]);
        check_lines("actors/data/mapped.rs", "let x = unsafe { f() };\n", &[1]);
    }

    #[test]
    fn no_path_of_one_machine() {
        check_lines("tests/x.rs", concat!("open(\"/", "tmp/x\");\n// see /", "home/me\n"), &[1, 2]);
        check_lines("tests/x.rs", "root.join(\"target/tmp/x\"); // https://example.org/home/x\n", &[]);
    }
}
