//! `cargo xtask tidy`: the house rules that no compiler checks, each as a small function over one file.
//!
//! A rule sees a file's text, and for Rust also its code without comments and literals ([`source`]), so that words in a
//! string or a comment never count as code.

mod log_lines;
mod manifests;
mod names;
mod purity;
mod shape;
mod source;
mod text;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use self::source::Source;

/// A rule that a line breaks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Relative to the root, with `/`.
    path: String,
    /// Counted from 1.
    line: usize,
    what: String,
    /// Worth a look; does not fail the check.
    warning: bool,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, what: what.into(), warning: false }
    }
}

/// Checks every file of the repository and prints what breaks a rule.
pub fn run(root: &Path) -> Result<ExitCode> {
    let mut findings = Vec::new();
    let paths = files(root)?;
    for path in &paths {
        let bytes = fs::read(root.join(path)).with_context(|| format!("{path} cannot be read"))?;
        match String::from_utf8(bytes) {
            Ok(content) => findings.extend(check_file(path, &content)),
            // Golden files and the like.
            Err(_) => continue,
        }
    }
    findings.sort();
    for finding in &findings {
        let kind = if finding.warning { "warning: " } else { "" };
        println!("{}:{}: {kind}{}", finding.path, finding.line, finding.what);
    }
    let n_broken = findings.iter().filter(|finding| !finding.warning).count();
    println!("tidy: {} files, {n_broken} broken rules", paths.len());
    Ok(if n_broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All rules that apply to a file of this name.
fn check_file(path: &str, content: &str) -> Vec<Finding> {
    let mut findings = text::check(path, content);
    if path.ends_with(".toml") {
        findings.extend(manifests::check(path, content));
    }
    if path.ends_with(".rs") {
        let source = Source::new(path, content);
        findings.extend(names::check(path));
        findings.extend(shape::check(&source));
        findings.extend(purity::check(&source));
        findings.extend(log_lines::check(&source));
    }
    findings
}

/// Files under the root that are ours, sorted: not what cargo or a node writes.
fn files(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(root.join(&directory)).context("a directory cannot be listed")?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = directory.join(&name);
            let at_root = directory.as_os_str().is_empty();
            let written = at_root && (name.starts_with("target") || name == "data" || name == "Cargo.lock");
            // What cargo-fuzz writes beside its targets.
            let by_fuzzer = directory == Path::new("fuzz")
                && ["target", "corpus", "artifacts", "coverage", "Cargo.lock"].contains(&name.as_str());
            if name == ".git" || written || by_fuzzer {
                continue;
            }
            let file_type = entry.file_type()?;
            if file_type.is_dir() {
                directories.push(path);
            } else if file_type.is_file() {
                found.push(path.to_string_lossy().replace('\\', "/"));
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_repository_is_walked_without_what_cargo_writes() {
        let paths = files(&crate::cargo::root()).unwrap();
        assert!(paths.contains(&"xtask/src/tidy/mod.rs".to_owned()));
        assert!(!paths.iter().any(|path| path.starts_with("target") || path.starts_with(".git/")));
    }

    #[test]
    fn a_well_kept_file_breaks_no_rule() {
        let content = "//! Why this file is here, in one sentence.\n\nfn f() {\n    tracing::info!(round, \"outer step done\");\n}\n";
        assert_eq!(check_file("actors/x.rs", content), []);
    }
}
