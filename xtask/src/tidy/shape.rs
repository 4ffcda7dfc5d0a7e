//! Length of files and functions, depth of nesting, and the doc that says why a file exists.

use super::Finding;
use super::source::{Source, find_words};

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;
const NESTING_MAX: usize = 4;
/// Fewer words do not say why a file exists.
const DOC_WORDS_MIN: usize = 4;

/// The rules of this module.
pub fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(check_module_doc(source));
    let n_lines = source.n_lines_outside_tests();
    if n_lines > FILE_LINES_MAX {
        let what = format!("{n_lines} lines outside tests: at most {FILE_LINES_MAX}, split by responsibility");
        findings.push(Finding::new(source.path, FILE_LINES_MAX, what));
    }
    for fn_at in source.find_words("fn") {
        if let Some((name, open, close)) = body(source, fn_at) {
            findings.extend(check_function(source, fn_at, name, open, close));
        }
    }
    findings
}

fn check_module_doc(source: &Source) -> Option<Finding> {
    let doc = source.text.lines().map_while(|line| line.strip_prefix("//!"));
    let n_words = doc.flat_map(str::split_whitespace).count();
    let what = "a file starts with `//!` and says why it exists";
    (n_words < DOC_WORDS_MIN).then(|| Finding::new(source.path, 1, what))
}

fn check_function(source: &Source, start: usize, name: &str, open: usize, close: usize) -> Vec<Finding> {
    let mut findings = Vec::new();
    let line = source.line(start);
    let n_lines = source.line(close) + 1 - line;
    if n_lines > FUNCTION_LINES_MAX {
        let what = format!("function `{name}` has {n_lines} lines: at most {FUNCTION_LINES_MAX}");
        findings.push(Finding::new(source.path, line, what));
    }
    let (depth, deepest) = nesting(&source.code[open..=close]);
    if depth > NESTING_MAX {
        let what = format!("function `{name}` nests {depth} deep here: at most {NESTING_MAX}");
        findings.push(Finding { warning: true, ..Finding::new(source.path, source.line(open + deepest), what) });
    }
    findings
}

/// Name and the offsets of the body's braces of the function at `fn_at`; none for a pointer type or a trait's signature.
fn body<'a>(source: &'a Source, fn_at: usize) -> Option<(&'a str, usize, usize)> {
    let code = &source.code;
    let name_at = fn_at + "fn".len();
    let named = code[name_at..].trim_start();
    let name = named.split(|c: char| !c.is_alphanumeric() && c != '_').next().filter(|name| !name.is_empty())?;
    let mut at = name_at;
    loop {
        at += code[at..].find(['(', '[', '{', ';'])?;
        match code.as_bytes()[at] {
            b';' => return None,
            b'{' => return Some((name, at, source.group_end(at)?)),
            _ => at = source.group_end(at)? + 1,
        }
    }
}

/// How deep control flow nests, and where it is deepest. Closures, literals and arms do not count.
fn nesting(code: &str) -> (usize, usize) {
    let mut open_blocks = Vec::new();
    let mut statement = 0;
    let mut deepest = (0, 0);
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'{' => {
                open_blocks.push(is_control(&code[statement..at]));
                let depth = open_blocks.iter().filter(|control| **control).count();
                if depth > deepest.0 {
                    deepest = (depth, at);
                }
            }
            b'}' => {
                open_blocks.pop();
            }
            b';' => {}
            _ => continue,
        }
        statement = at + 1;
    }
    deepest
}

fn is_control(head: &str) -> bool {
    // `else if` and the like open one block; an arm's block follows its arrow.
    let head = head.rsplit("=>").next().unwrap_or(head);
    ["if", "else", "for", "while", "loop", "match"].iter().any(|word| !find_words(head, word).is_empty())
        && find_words(head, "impl").is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOC: &str = "//! Why this file is here.\n";

    fn check_findings(text: &str, wanted: &[(usize, &str)]) {
        let findings = check(&Source::new("src/x.rs", text));
        let found: Vec<_> = findings.iter().map(|finding| (finding.line, finding.what.as_str())).collect();
        assert_eq!(found.len(), wanted.len(), "{found:?}");
        for ((line, what), (wanted_line, part)) in found.iter().zip(wanted) {
            assert!(line == wanted_line && what.contains(part), "{line} {what}");
        }
    }

    #[test]
    fn a_file_says_why_it_exists() {
        check_findings(DOC, &[]);
        check_findings("fn f() {}\n", &[(1, "//!")]);
        check_findings("//! x\n", &[(1, "//!")]);
        check_findings("//!\n//! In the second line.\n", &[]);
    }

    #[test]
    fn a_long_file_is_split_but_tests_do_not_count() {
        let lines = |n: usize| "const X: u8 = 0;\n".repeat(n);
        check_findings(&format!("{DOC}{}", lines(499)), &[]);
        check_findings(&format!("{DOC}{}", lines(500)), &[(500, "501 lines")]);
        check_findings(&format!("{DOC}{}#[cfg(test)]\nmod tests {{\n{}}}\n", lines(400), lines(400)), &[]);
    }

    #[test]
    fn a_long_function_is_named() {
        let function =
            |n: usize| format!("{DOC}fn long<T>(x: [u8; 3]) -> Vec<T>\nwhere T: Fn(u8) {{\n{}}}\n", "a();\n".repeat(n));
        check_findings(&function(67), &[]);
        check_findings(&function(68), &[(2, "`long` has 71 lines")]);
        check_findings(&format!("{DOC}trait T {{ fn f(&self); }}\ntype F = fn(u8);\n{}", "\n".repeat(90)), &[]);
        check_findings(&format!("{DOC}fn f() {{\n    // }}\n{}}}\n", "    g(\"}\");\n".repeat(69)), &[(2, "72 lines")]);
    }

    #[test]
    fn deep_control_flow_is_warned_of() {
        let deep = "fn f() { for x in y { if a { match b { C => { while d { g(D { x }); } } } } } }";
        check_findings(&format!("{DOC}{deep}"), &[]);
        let deeper = deep.replace("g(D { x });", "loop { break; }");
        check_findings(&format!("{DOC}{deeper}"), &[(2, "5 deep")]);
    }
}
