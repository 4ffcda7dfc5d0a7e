//! Where the swarm is watched: a terminal is drawn over again, anything else gets a line per finished round.

use std::io::{IsTerminal, Write};

/// Where neither says how large it is.
const ROWS: usize = 24;
const COLUMNS: usize = 80;

/// Standard output.
#[derive(Debug)]
pub struct Screen {
    is_terminal: bool,
    /// What the next drawing takes away again.
    drawn: String,
}

impl Screen {
    pub fn new() -> Self {
        Self { is_terminal: std::io::stdout().is_terminal(), drawn: String::new() }
    }

    pub fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Lines that a drawing may have.
    pub fn rows(&self) -> usize {
        // The cursor stands on a line of its own below.
        size().0.saturating_sub(1)
    }

    /// Shows `text` instead of what was drawn before.
    pub fn draw(&mut self, text: &str) {
        let (rows, columns) = size();
        let fitted = fit(text, rows.saturating_sub(1), columns);
        if fitted != self.drawn {
            self.put(&fitted);
            self.drawn = fitted;
        }
    }

    /// Prints lines that stay.
    pub fn say(&mut self, text: &str) {
        self.put(&format!("{}\n", text.trim_end()));
        self.drawn.clear();
    }

    fn put(&mut self, text: &str) {
        let mut stdout = std::io::stdout().lock();
        // ANSI: to the start of the line so many lines up, then clear from there to the end of the screen.
        let erase = match self.drawn.lines().count() {
            0 => String::new(),
            n_lines => format!("\x1b[{n_lines}F\x1b[J"),
        };
        // Nobody may be watching any more, and the swarm's own end must still come.
        let _ = stdout.write_all((erase + text).as_bytes()).and_then(|()| stdout.flush());
    }
}

fn size() -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
    size.map_or((ROWS, COLUMNS), |size| (usize::from(size.ws_row), usize::from(size.ws_col)))
}

/// The text without what would make the terminal scroll or wrap: it could not be taken away again.
fn fit(text: &str, rows: usize, columns: usize) -> String {
    text.lines().take(rows).map(|line| line.chars().take(columns).chain(['\n']).collect::<String>()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawing_never_scrolls_or_wraps() {
        assert_eq!(fit("abc\ndéf\nghi\n", 2, 2), "ab\ndé\n");
        assert_eq!(fit("abc\n", 5, 80), "abc\n");
        assert_eq!(fit("", 5, 80), "");
    }
}
