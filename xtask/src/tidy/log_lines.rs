//! Log lines: a constant message in lower case without a full stop, values as fields. So they can be searched and counted.

use super::Finding;
use super::source::Source;

const MACROS: [&str; 5] = ["trace!(", "debug!(", "info!(", "warn!(", "error!("];

/// The rule of this module.
pub fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in MACROS {
        for at in source.find_words(name) {
            let open = at + name.len() - 1;
            let Some(close) = source.group_end(open) else { continue };
            if let Some(what) = fault(source, open + 1, close) {
                findings.push(Finding::new(source.path, source.line(at), what));
            }
        }
    }
    findings
}

/// What is wrong with the arguments between two offsets.
fn fault(source: &Source, start: usize, end: usize) -> Option<&'static str> {
    let Some(message) = message(source, start, end) else { return Some("a log line without a message") };
    let first_word = message.split_whitespace().next().unwrap_or_default();
    let letters: Vec<char> = first_word.chars().filter(|c| c.is_alphabetic()).collect();
    let is_acronym = letters.len() > 1 && letters.iter().all(|c| c.is_uppercase());
    if message.is_empty() {
        Some("a log line with an empty message")
    } else if letters.first().is_some_and(|c| c.is_uppercase()) && !is_acronym {
        Some("a log message starts in lower case")
    } else if message.ends_with('.') {
        Some("a log message ends without a full stop")
    } else if message.replace("{{", "").contains('{') {
        Some("a log message is constant: give values as fields")
    } else {
        None
    }
}

/// The first argument that is a string literal alone: `key = "…"` is a field.
fn message<'a>(source: &Source<'a>, start: usize, end: usize) -> Option<&'a str> {
    let mut at = start;
    while at < end {
        let argument_end = argument_end(source, at, end);
        let argument = &source.code[at..argument_end];
        let literal = argument.trim();
        if literal.len() > 1 && literal.starts_with('"') && literal.ends_with('"') {
            let text = source.text[at..argument_end].trim();
            return text.strip_prefix('"')?.strip_suffix('"');
        }
        at = argument_end + 1;
    }
    None
}

fn argument_end(source: &Source, start: usize, end: usize) -> usize {
    let mut at = start;
    while at < end {
        match source.code.as_bytes()[at] {
            b',' => return at,
            b'(' | b'[' | b'{' => at = source.group_end(at).unwrap_or(end) + 1,
            _ => at += 1,
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_faults(text: &str, wanted: &[&str]) {
        let found = check(&Source::new("actors/x.rs", text));
        assert_eq!(found.len(), wanted.len(), "{text}: {found:?}");
        assert!(found.iter().zip(wanted).all(|(finding, part)| finding.what.contains(part)), "{found:?}");
    }

    #[test]
    fn a_good_log_line_passes() {
        check_faults(r#"warn!(round, uid = %peer.uid(a, b), why = "late, very", "payload rejected");"#, &[]);
        check_faults(r#"tracing::info!(target: "x", "θ restored in {{braces}}");"#, &[]);
        check_faults("info!(\n    n = f(\"A.\", [1, 2]),\n    \"GPU worker started\",\n);", &[]);
        check_faults("compile_error!(\"Bad.\"); forewarn!(\"X.\"); // info!(\"X.\")", &[]);
    }

    #[test]
    fn a_bad_log_line_is_told_why() {
        check_faults(r#"info!("Payload rejected");"#, &["lower case"]);
        check_faults(r#"info!(round, "payload rejected.");"#, &["full stop"]);
        check_faults(r#"info!("payload of {uid} rejected");"#, &["constant"]);
        check_faults(r#"error!(round, why = "late");"#, &["without a message"]);
        check_faults(r#"debug!(?state);"#, &["without a message"]);
        check_faults(r#"trace!("");"#, &["empty"]);
    }
}
