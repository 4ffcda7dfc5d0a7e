//! Rust source as the rules see it: code apart from comments and literals, tests apart from the rest.
//!
//! A full parser would be a heavy dependency for what needs only tokens: the code's bytes stay where they are, and those
//! of comments and literals become spaces. Braces, words and line numbers can then be found by plain search.

use std::ops::Range;

/// One Rust file.
pub struct Source<'a> {
    /// Relative to the root, with `/`.
    pub path: &'a str,
    /// As it is.
    pub text: &'a str,
    /// The text with comments and the inside of literals as spaces, at the same byte offsets.
    pub code: String,
    /// Byte ranges of items under `#[cfg(test)]`; the whole file if it is a test.
    tests: Vec<Range<usize>>,
}

impl<'a> Source<'a> {
    /// Reads a file's text.
    pub fn new(path: &'a str, text: &'a str) -> Self {
        let code = without_comments_and_literals(text);
        let is_test = path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs");
        let whole = 0..text.len();
        let tests = if is_test { vec![whole] } else { test_items(&code) };
        Self { path, text, code, tests }
    }

    /// The line of a byte, counted from 1.
    pub fn line(&self, offset: usize) -> usize {
        1 + self.text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count()
    }

    /// Whether a byte belongs to a test.
    pub fn in_tests(&self, offset: usize) -> bool {
        self.tests.iter().any(|range| range.contains(&offset))
    }

    /// Lines that belong to no test.
    pub fn n_lines_outside_tests(&self) -> usize {
        let n_lines = self.text.lines().count();
        let n_test_lines: usize = self.tests.iter().map(|range| self.text[range.clone()].lines().count()).sum();
        n_lines - n_test_lines
    }

    /// Where `pattern` stands in the code as whole words.
    pub fn find_words(&self, pattern: &str) -> Vec<usize> {
        find_words(&self.code, pattern)
    }

    /// The end of the group that the opening bracket at `open` starts: the offset of the closing one.
    pub fn group_end(&self, open: usize) -> Option<usize> {
        group_end(&self.code, open)
    }
}

/// Where `pattern` stands in `code` as whole words: what is beside it is no part of a name.
pub fn find_words(code: &str, pattern: &str) -> Vec<usize> {
    let bytes = code.as_bytes();
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let starts_with_name = pattern.bytes().next().is_some_and(is_name);
    let ends_with_name = pattern.bytes().next_back().is_some_and(is_name);
    let whole = |start: &usize| {
        let end = start + pattern.len();
        let before = starts_with_name && *start > 0 && is_name(bytes[start - 1]);
        let after = ends_with_name && bytes.get(end).copied().is_some_and(is_name);
        !before && !after
    };
    code.match_indices(pattern).map(|(start, _)| start).filter(whole).collect()
}

fn group_end(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (offset, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 {
            return Some(offset);
        }
    }
    None
}

fn test_items(code: &str) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (start, attribute) in code.match_indices("#[cfg(test)]") {
        if ranges.last().is_some_and(|range| range.contains(&start)) {
            continue;
        }
        let rest = start + attribute.len();
        let end = match code[rest..].find([';', '{']) {
            Some(at) if code.as_bytes()[rest + at] == b'{' => group_end(code, rest + at).unwrap_or(code.len() - 1),
            Some(at) => rest + at,
            None => code.len() - 1,
        };
        ranges.push(start..end + 1);
    }
    ranges
}

/// Blanks comments and the inside of string, byte and character literals.
fn without_comments_and_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = token_end(bytes, at);
        if let Some((end, n_kept)) = end {
            for byte in &mut code[at + n_kept..end - n_kept] {
                if *byte != b'\n' {
                    *byte = b' ';
                }
            }
            at = end;
        } else {
            at += 1;
        }
    }
    String::from_utf8(code).expect("only whole comments and literals are blanked")
}

/// The end of the comment or literal that starts here, and how many bytes of it stay visible on either side.
fn token_end(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let rest = &bytes[at..];
    let after_name = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    match rest {
        [b'/', b'/', ..] => Some((at + rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()), 0)),
        [b'/', b'*', ..] => Some((at + block_comment_len(rest), 0)),
        [b'"', ..] => Some((at + quoted_len(rest, b'"')?, 1)),
        [b'\'', ..] => Some((at + char_len(rest)?, 1)),
        // The prefixes of b"", c"", br"" stay visible; only a raw string needs its own end.
        [b'r', b'"' | b'#', ..] if !after_name || matches!(bytes[at - 1], b'b' | b'c') => {
            Some((at + raw_len(rest)?, 0))
        }
        _ => None,
    }
}

fn block_comment_len(rest: &[u8]) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at + 1 < rest.len() {
        match &rest[at..at + 2] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn quoted_len(rest: &[u8], quote: u8) -> Option<usize> {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return Some(at + 1),
            _ => at += 1,
        }
    }
    None
}

/// A character literal's length; a lifetime has none.
fn char_len(rest: &[u8]) -> Option<usize> {
    if rest.get(1) == Some(&b'\\') {
        return quoted_len(rest, b'\'');
    }
    let text = std::str::from_utf8(&rest[1..rest.len().min(5)]);
    let valid = match &text {
        Ok(text) => text.as_bytes(),
        Err(error) => &rest[1..1 + error.valid_up_to()],
    };
    let character = std::str::from_utf8(valid).ok()?.chars().next()?;
    let end = 1 + character.len_utf8();
    (rest.get(end) == Some(&b'\'')).then_some(end + 1)
}

fn raw_len(rest: &[u8]) -> Option<usize> {
    let n_hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(1 + n_hashes) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'"'];
    close.resize(1 + n_hashes, b'#');
    let body = 2 + n_hashes;
    let end = rest[body..].windows(close.len()).position(|window| window == close)?;
    Some(body + end + close.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_code(text: &str, code: &str) {
        assert_eq!(Source::new("src/x.rs", text).code, code);
    }

    #[test]
    fn comments_and_literals_are_no_code() {
        let blank = |n: usize| " ".repeat(n);
        check_code("a // { b\nc", &format!("a {}\nc", blank(6)));
        check_code("a /* { /* { */ } */ b", &format!("a {} b", blank(17)));
        check_code(r#"f("{ \" }", b"x{")"#, &format!("f(\"{}\", b\"{}\")", blank(6), blank(2)));
        check_code(r###"f(r#"{"}"#, r"{")"###, &format!("f({}, {})", blank(8), blank(4)));
        check_code(r##"br#"{"# + cr"{" "##, &format!("b{} + c{} ", blank(6), blank(4)));
        let characters = format!("['{}', '{}', '{}', '{}', b'{}']", blank(1), blank(2), blank(6), blank(3), blank(1));
        check_code("['{', '\\'', '\\u{7b}', '東', b'{']", &characters);
    }

    #[test]
    fn lifetimes_labels_and_raw_names_are_code() {
        let code = "fn f<'a>(x: &'a str, r#type: T<'_>) { 'outer: loop { break 'outer } }";
        check_code(code, code);
    }

    #[test]
    fn an_open_literal_at_the_end_does_no_harm() {
        for text in ["\"abc", "/* abc", "r#\"abc", "'", "'\\", "b'", "r", "r#"] {
            assert_eq!(Source::new("src/x.rs", text).code.len(), text.len());
        }
    }

    #[test]
    fn tests_are_told_from_the_rest() {
        let text =
            "fn a() {}\n#[cfg(test)]\nmod tests {\n    const X: &str = \"}\";\n}\nfn b() {}\n#[cfg(test)]\nmod more;\n";
        let source = Source::new("src/x.rs", text);
        assert_eq!(source.n_lines_outside_tests(), 2);
        assert!(source.in_tests(text.find("const").unwrap()));
        assert!(!source.in_tests(text.find("fn b").unwrap()));
        assert!(Source::new("tests/x.rs", text).in_tests(0));
        assert_eq!(Source::new("actors/data/tests.rs", text).n_lines_outside_tests(), 0);
    }

    #[test]
    fn only_whole_words_are_found() {
        assert_eq!(find_words("tokio tokio_util my_tokio x::tokio::y", "tokio"), [0, 29]);
        assert_eq!(find_words("warn!(x) forewarn!(y)", "warn!("), [0]);
    }
}
