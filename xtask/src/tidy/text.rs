//! Rules for text of any kind: no words that put work off, no stray white space, a README that is read to its end.

use super::Finding;
use super::source::find_words;

const README_LINES_MAX: usize = 200;

/// Put together so that this file does not hold them.
const PUT_OFF: [&str; 4] = [concat!("FIX", "ME"), concat!("TO", "DO"), concat!("XX", "X"), concat!("HA", "CK")];

/// Where others' text lies, as it came: the corpus and files generated from it.
const AS_IT_CAME: [&str; 2] = ["configs/data/shakespeare.txt", "configs/data/tokenizer.json"];

/// The rules of this module.
pub fn check(path: &str, content: &str) -> Vec<Finding> {
    if AS_IT_CAME.contains(&path) || path == "LICENSE" {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (idx, line) in content.lines().enumerate() {
        let mut report = |what: String| findings.push(Finding::new(path, idx + 1, what));
        for word in PUT_OFF {
            if !find_words(line, word).is_empty() {
                report(format!("`{word}`: do it, or leave it out"));
            }
        }
        // In the golden files of tests, white space may be what is tested.
        if line.ends_with([' ', '\t', '\r']) && !path.starts_with("tests/") {
            report("white space at the end of the line".to_owned());
        }
        if line.contains('\t') && [".rs", ".toml", ".md"].iter().any(|suffix| path.ends_with(suffix)) {
            report("a tab: write spaces, or \\t in a literal".to_owned());
        }
    }
    let n_lines = content.lines().count();
    if path == "README.md" && n_lines > README_LINES_MAX {
        let what = format!("{n_lines} lines: at most {README_LINES_MAX}, the rest belongs to module docs");
        findings.push(Finding::new(path, README_LINES_MAX, what));
    }
    if !content.is_empty() && !content.ends_with('\n') && path.ends_with(".rs") {
        findings.push(Finding::new(path, n_lines, "no line end at the end of the file"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_lines(path: &str, content: &str, wanted: &[usize]) {
        let found: Vec<_> = check(path, content).iter().map(|finding| finding.line).collect();
        assert_eq!(found, wanted, "{path}: {content:?}");
    }

    #[test]
    fn words_that_put_work_off_are_refused_anywhere() {
        for word in PUT_OFF {
            check_lines("docs.md", &format!("fine\n// {word}: later\n"), &[2]);
            check_lines("docs.md", &format!("A{word}B\n"), &[]);
        }
        check_lines("configs/data/shakespeare.txt", &format!("SONNET {}\n", PUT_OFF[2]), &[]);
    }

    #[test]
    fn stray_white_space_is_refused() {
        check_lines("x.rs", "a\nb \n", &[2]);
        check_lines("x.rs", "\ta\n", &[1]);
        check_lines("x.toml", "a\r\n", &[]);
        check_lines("x.rs", "a", &[1]);
        check_lines("Makefile", "\ta\n", &[]);
    }

    #[test]
    fn a_readme_has_at_most_200_lines() {
        check_lines("README.md", &"a\n".repeat(200), &[]);
        check_lines("README.md", &"a\n".repeat(201), &[200]);
        check_lines("other.md", &"a\n".repeat(201), &[]);
    }
}
