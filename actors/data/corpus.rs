//! Text files as documents, read line by line, so that a corpus need not fit in memory.
//!
//! Two forms are read. In a `.txt` file the documents are divided by a line that holds one form feed, as in the corpus
//! of the default run. In a `.jsonl` file every line is an object whose `text` is one document.
//! A document longer than [`PIECE_BYTES`] comes in pieces cut at line ends: what is tokenized at once stays small.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::DataError;

/// A document is cut at the first line end past this many bytes. The cuts decide the tokens beside them, so a change
/// of this number changes the data set's digest.
pub const PIECE_BYTES: usize = 64 * 1024;

/// The corpus of the default run: Shakespeare's plays and poems.
const EMBEDDED: &[u8] = include_bytes!("../../configs/data/shakespeare.txt");

/// Where text comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The corpus that every binary carries.
    Embedded,
    /// A `.txt` or `.jsonl` file.
    File(PathBuf),
}

/// Text of one document, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The text; empty only where it ends a document.
    pub text: String,
    /// Whether the document ends with this piece.
    pub ends_document: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    FormFeedDivided,
    JsonLines,
}

#[derive(serde::Deserialize)]
struct JsonDocument {
    text: String,
}

/// The sources that a list of files names; an empty list names the embedded corpus.
#[must_use]
pub fn sources(files: &[PathBuf]) -> Vec<Source> {
    if files.is_empty() { vec![Source::Embedded] } else { files.iter().cloned().map(Source::File).collect() }
}

impl Source {
    /// What to call it in an error.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Embedded => Path::new("the embedded corpus"),
            Self::File(path) => path,
        }
    }

    /// The text's pieces in order.
    ///
    /// # Errors
    /// The file cannot be opened or is of no known form; the iterator's items are errors where its content is wrong.
    pub fn pieces(&self) -> Result<Pieces, DataError> {
        Ok(Pieces {
            path: self.path().to_owned(),
            form: self.form()?,
            lines: self.open()?,
            line: 0,
            inside: false,
            n_documents: 0,
            over: false,
        })
    }

    /// BLAKE3 over form and content.
    ///
    /// # Errors
    /// The file cannot be read or is of no known form.
    pub fn hash(&self) -> Result<[u8; 32], DataError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[match self.form()? {
            Form::FormFeedDivided => 0,
            Form::JsonLines => 1,
        }]);
        let copied = hasher.update_reader(self.open()?);
        copied.map_err(|source| DataError::Unreadable { path: self.path().to_owned(), source })?;
        Ok(*hasher.finalize().as_bytes())
    }

    fn form(&self) -> Result<Form, DataError> {
        let Self::File(path) = self else { return Ok(Form::FormFeedDivided) };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("txt") => Ok(Form::FormFeedDivided),
            Some("jsonl") => Ok(Form::JsonLines),
            _ => Err(DataError::UnknownForm { path: path.clone() }),
        }
    }

    fn open(&self) -> Result<Box<dyn BufRead + Send>, DataError> {
        let unreadable = |source| DataError::Unreadable { path: self.path().to_owned(), source };
        match self {
            Self::Embedded => Ok(Box::new(EMBEDDED)),
            Self::File(path) => {
                let file = File::open(path).map_err(unreadable)?;
                if file.metadata().map_err(unreadable)?.is_dir() {
                    return Err(unreadable(std::io::ErrorKind::IsADirectory.into()));
                }
                Ok(Box::new(BufReader::new(file)))
            }
        }
    }
}

/// The pieces of one source; ends after the first error.
pub struct Pieces {
    path: PathBuf,
    form: Form,
    lines: Box<dyn BufRead + Send>,
    /// Lines read so far, which is also the number of the last one.
    line: u64,
    /// Whether a piece of the current document was given already.
    inside: bool,
    n_documents: u64,
    over: bool,
}

impl Iterator for Pieces {
    type Item = Result<Piece, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let piece = match self.form {
            Form::FormFeedDivided => self.next_divided(),
            Form::JsonLines => self.next_json(),
        };
        match piece {
            Ok(Some(piece)) => {
                self.inside = !piece.ends_document;
                self.n_documents += u64::from(piece.ends_document);
                Some(Ok(piece))
            }
            Ok(None) => {
                self.over = true;
                (self.n_documents == 0).then(|| Err(DataError::NoText { path: self.path.clone() }))
            }
            Err(error) => {
                self.over = true;
                Some(Err(error))
            }
        }
    }
}

impl Pieces {
    fn next_divided(&mut self) -> Result<Option<Piece>, DataError> {
        let mut text = String::new();
        loop {
            let line = self.next_line()?;
            let divides = line.as_deref().is_none_or(|line| line.trim_end_matches(['\r', '\n']) == "\u{c}");
            if divides && (self.inside || !text.trim().is_empty()) {
                return Ok(Some(Piece { text, ends_document: true }));
            }
            match line {
                None => return Ok(None),
                Some(_) if divides => text.clear(),
                Some(line) => text.push_str(&line),
            }
            if text.len() >= PIECE_BYTES {
                return Ok(Some(Piece { text, ends_document: false }));
            }
        }
    }

    fn next_json(&mut self) -> Result<Option<Piece>, DataError> {
        while let Some(line) = self.next_line()? {
            if line.trim().is_empty() {
                continue;
            }
            let document: JsonDocument = serde_json::from_str(&line).map_err(|error| DataError::BadLine {
                path: self.path.clone(),
                line: self.line,
                reason: error.to_string(),
            })?;
            if !document.text.trim().is_empty() {
                return Ok(Some(Piece { text: document.text, ends_document: true }));
            }
        }
        Ok(None)
    }

    fn next_line(&mut self) -> Result<Option<String>, DataError> {
        let mut bytes = Vec::new();
        let unreadable = |source| DataError::Unreadable { path: self.path.clone(), source };
        // A line without an end would otherwise be read whole, however long.
        let n_read = (&mut self.lines).take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes).map_err(unreadable)?;
        self.line += 1;
        if n_read as u64 == LINE_BYTES_MAX {
            return Err(DataError::LongLine { path: self.path.clone(), line: self.line, bytes_max: LINE_BYTES_MAX });
        }
        if n_read == 0 {
            return Ok(None);
        }
        let line = String::from_utf8(bytes);
        line.map(Some).map_err(|_| DataError::NotUtf8 { path: self.path.clone(), line: self.line })
    }
}

/// Tokenizing needs about a hundred times a text's size in memory: 16 MiB in one line is the most that is taken.
const LINE_BYTES_MAX: u64 = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces_of(name: &str, content: impl AsRef<[u8]>) -> Result<Vec<Piece>, DataError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        Source::File(path).pieces()?.collect()
    }

    fn document(text: &str) -> Piece {
        Piece { text: text.to_owned(), ends_document: true }
    }

    #[test]
    fn a_line_with_one_form_feed_divides_documents() {
        let pieces = pieces_of("works.txt", "one\nmore\n\u{c}\n\n \n\u{c}\r\ntwo\u{c}still two\n").unwrap();
        assert_eq!(pieces, [document("one\nmore\n"), document("two\u{c}still two\n")]);
    }

    #[test]
    fn each_line_of_jsonl_is_a_document_and_blank_ones_are_passed_over() {
        let lines = "{\"text\": \"one\\nline\", \"id\": 7}\n\n{\"text\": \" \"}\n{\"text\":\"zwei\"}";
        assert_eq!(pieces_of("works.jsonl", lines).unwrap(), [document("one\nline"), document("zwei")]);
    }

    #[test]
    fn a_long_document_comes_in_pieces_that_join_to_the_whole() {
        let whole = "A line of verse.\n".repeat(20_000);
        let pieces = pieces_of("long.txt", &whole).unwrap();
        assert!(pieces.iter().all(|piece| piece.text.len() < PIECE_BYTES + 17));
        assert_eq!(pieces.iter().filter(|piece| piece.ends_document).count(), 1);
        assert!(pieces.last().unwrap().ends_document);
        assert_eq!(pieces.into_iter().map(|piece| piece.text).collect::<String>(), whole);
    }

    #[test]
    fn every_work_of_the_embedded_corpus_is_a_document() {
        let ends = sources(&[])[0].pieces().unwrap().filter(|piece| piece.as_ref().unwrap().ends_document).count();
        assert_eq!(ends, 42);
    }

    #[test]
    fn a_bad_file_is_told_with_its_line() {
        let check = |name: &str, content: &[u8], wanted: &str| {
            let message = pieces_of(name, content).unwrap_err().to_string();
            assert!(message.contains(wanted), "{message}");
        };
        check("empty.txt", b"", "holds no text");
        check("blank.txt", b" \n\x0c\n\n", "holds no text");
        check("latin.txt", b"fine\nna\xefve\n", "line 2");
        check("works.csv", b"a,b", ".txt or .jsonl");
        check("bad.jsonl", b"{\"text\": \"one\"}\n{\"txt\": \"two\"}\n", "line 2");
        check("long.txt", &vec![b'a'; 17 << 20], "line 1");
    }

    #[test]
    fn a_missing_file_names_the_key_that_lists_it() {
        let error = Source::File("no/such.txt".into()).pieces().err().unwrap();
        assert!(error.to_string().contains("`data.files`"), "{error}");
    }
}
