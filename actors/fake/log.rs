//! The log of a simulated run: one line an event, in the order in which they happened. Its hash names the run.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use convoke::terms::Digest;

use crate::events::Line;

/// The log.
#[derive(Debug, Default)]
pub struct Log {
    hasher: blake3::Hasher,
    n_lines: u64,
    file: Option<BufWriter<File>>,
}

impl Log {
    /// A log that is written to a file, too.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn to_file(path: &Path) -> std::io::Result<Self> {
        Ok(Self { file: Some(BufWriter::new(File::create(path)?)), ..Self::default() })
    }

    /// Takes an event of a node.
    pub fn event(&mut self, line: &Line) {
        // Numbers that are no JSON, such as a loss that is not a number, are written as null by serde_json.
        let text = serde_json::to_string(line).expect("an event is plain data");
        self.text(&text);
    }

    /// Takes what the world did.
    pub fn text(&mut self, text: &str) {
        self.hasher.update(text.as_bytes()).update(b"\n");
        self.n_lines += 1;
        if let Some(file) = &mut self.file {
            // What is missing in the file is in the hash all the same.
            drop(writeln!(file, "{text}"));
        }
    }

    /// The hash of all lines, and how many there were.
    #[must_use]
    pub fn name(&self) -> (Digest, u64) {
        (Digest(*self.hasher.finalize().as_bytes()), self.n_lines)
    }
}
