//! TOML files: every config parses, and every profile unwinds, without which supervision catches no panic.

use toml::{Table, Value};

use super::Finding;

/// The rules of this module.
pub fn check(path: &str, content: &str) -> Vec<Finding> {
    let table: Table = match content.parse() {
        Ok(table) => table,
        Err(error) => {
            let error: toml::de::Error = error;
            let offset = error.span().map_or(0, |span| span.start.min(content.len()));
            let line = 1 + content.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count();
            return vec![Finding::new(path, line, format!("not valid TOML: {}", error.message()))];
        }
    };
    if path == "Cargo.toml" { check_profiles(path, content, &table) } else { Vec::new() }
}

fn check_profiles(path: &str, content: &str, manifest: &Table) -> Vec<Finding> {
    let empty = Table::new();
    let profiles = manifest.get("profile").and_then(Value::as_table).unwrap_or(&empty);
    let mut findings = Vec::new();
    for name in ["dev", "release"] {
        if !profiles.contains_key(name) {
            findings.push(Finding::new(path, 1, format!("[profile.{name}] must say panic = \"unwind\"")));
        }
    }
    for (name, profile) in profiles {
        // Cargo ignores the key in these two.
        let unwinds = profile.get("panic").and_then(Value::as_str) == Some("unwind");
        if !unwinds && !["test", "bench"].contains(&name.as_str()) {
            let header = format!("[profile.{name}]");
            let line = content.lines().position(|line| line.trim() == header).map_or(1, |idx| idx + 1);
            findings.push(Finding::new(path, line, format!("{header} must say panic = \"unwind\"")));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_that_does_not_parse_is_told_with_its_line() {
        assert_eq!(check("configs/x.toml", "[a]\nb = 1\n"), []);
        let findings = check("configs/x.toml", "[a]\nb = \n");
        assert_eq!((findings.len(), findings[0].line), (1, 2));
    }

    #[test]
    fn every_profile_unwinds() {
        let unwind = "panic = \"unwind\"\n";
        let both = format!("[profile.dev]\n{unwind}[profile.release]\n{unwind}");
        let lines =
            |manifest: &str| check("Cargo.toml", manifest).iter().map(|finding| finding.line).collect::<Vec<_>>();
        assert!(lines(&both).is_empty());
        assert!(
            lines(&format!("{both}[profile.bench]\ndebug = true\n[profile.dev.package.\"*\"]\nopt-level = 2\n"))
                .is_empty()
        );
        assert_eq!(lines(&format!("{both}[profile.fast]\ninherits = \"release\"\n")), [5]);
        assert_eq!(lines(&both.replace("release]\npanic = \"unwind\"", "release]\npanic = \"abort\"")), [3]);
        assert_eq!(lines(""), [1, 1]);
    }
}
