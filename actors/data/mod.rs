//! The data set: text files in, samples of token ids out, the same on every node of a run.
//!
//! A run trains on one stream of tokens: the documents in order, each followed by the end-of-text token. The first part
//! of the stream is cut into samples that a round's assignment draws from; the last share is held out and never trained
//! on. Which tokenizer and which stream it was is in [`Dataset::digest`], and so in the run's id: nodes with other text
//! are nodes of another run.
//!
//! Reading order: [`corpus`] text to documents, [`vocabulary`] documents to tokens, [`token_file`] tokens on disk.

pub mod corpus;
pub mod vocabulary;

pub mod token_file;

mod mapped;

use std::io;
use std::path::{Path, PathBuf};

use convoke::run_spec::DataSpec;
use convoke::terms::Digest;
use serde::{Deserialize, Serialize};

use self::corpus::{Piece, Source};
use self::token_file::{TokenFile, TokenWriter, Width};
use self::vocabulary::Vocabulary;

/// Text that is tokenized at once; its encodings take about a hundred times as much memory.
const BATCH_BYTES: usize = 512 * 1024;

/// Which files the data set is made from; the table `[data]` of a config.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFiles {
    /// `.txt` and `.jsonl` files in order; none: the corpus that the binary carries.
    pub files: Vec<PathBuf>,
    /// A `tokenizer.json`; none: the one that the binary carries.
    pub tokenizer: Option<PathBuf>,
}

/// Why there is no data set. Each says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A text file is absent or closed to us.
    #[error("data file `{}` cannot be read: correct its path in `data.files`, or its permissions", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file's name says nothing about its form.
    #[error("data file `{}` has no known form: name it .txt or .jsonl", path.display())]
    UnknownForm {
        /// The file.
        path: PathBuf,
    },
    /// An empty or blank file.
    #[error("data file `{}` holds no text: fill it, or take it out of `data.files`", path.display())]
    NoText {
        /// The file.
        path: PathBuf,
    },
    /// Text in another encoding.
    #[error("line {line} of data file `{}` is not UTF-8: convert the file", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
    },
    /// A line that would take too much memory.
    #[error("line {line} of data file `{}` has more than {bytes_max} bytes: break it into several", path.display())]
    LongLine {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// A line of a `.jsonl` file that is no document.
    #[error(
        "line {line} of data file `{}` is not a JSON object with a string `text` ({reason}): correct or remove it",
        path.display()
    )]
    BadLine {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What the parser said.
        reason: String,
    },
    /// The tokenizer's file is absent or closed to us.
    #[error("tokenizer `{}` cannot be read: correct `data.tokenizer`", path.display())]
    TokenizerUnreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A new tokenizer cannot be written.
    #[error("tokenizer `{}` cannot be written: choose another place", path.display())]
    TokenizerUnwritable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is something else.
    #[error("`{}` is no tokenizer ({reason}): `data.tokenizer` takes a tokenizer.json", path.display())]
    TokenizerInvalid {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// Nothing can stand between documents.
    #[error("tokenizer `{}` has no entry that ends a document: add one of {names}", path.display())]
    NoEndOfText {
        /// The file.
        path: PathBuf,
        /// The entries that would do.
        names: String,
    },
    /// A tokenizer with a limited alphabet met a character outside it.
    #[error("the tokenizer cannot encode the text ({reason}): use a byte-level one")]
    NotEncodable {
        /// What the tokenizer said.
        reason: String,
    },
    /// The embedding would have no row for some token.
    #[error(
        "the tokenizer has {n_entries} entries and the model {vocab_size}: set `run.model.vocab_size` to at least {n_entries}"
    )]
    VocabTooSmall {
        /// What the tokenizer needs.
        n_entries: usize,
        /// What the model has.
        vocab_size: usize,
    },
    /// Not one sample fits.
    #[error(
        "the {part} has {n_tokens} tokens and one sample takes {n_needed}: give more text in `data.files`, shorten `run.model.context_len` or change `run.data.heldout_ratio`"
    )]
    TooFewTokens {
        /// `training part` or `held-out part`.
        part: &'static str,
        /// What there is.
        n_tokens: u64,
        /// What one sample takes.
        n_needed: u64,
    },
    /// The cache on disk fails.
    #[error("token cache `{}` cannot be {action}: check the directory `node.data_dir` and the space on its disk", path.display())]
    Cache {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A tokenized corpus, mapped from disk and cut into samples.
pub struct Dataset {
    vocabulary: Vocabulary,
    tokens: TokenFile,
    context_len: u64,
    /// Tokens before the held-out part.
    n_train_tokens: u64,
    digest: Digest,
}

impl Dataset {
    /// Tokenizes the files, or takes their tokens from the cache in `cache_dir`.
    ///
    /// `context_len` and `vocab_size` are the model's. Blocks for as long as it takes to read the corpus.
    ///
    /// # Errors
    /// What is wrong with which file or number; nothing is retried.
    pub fn open(
        files: &DataFiles,
        spec: &DataSpec,
        context_len: usize,
        vocab_size: usize,
        cache_dir: &Path,
    ) -> Result<Self, DataError> {
        let vocabulary = Vocabulary::load(files.tokenizer.as_deref())?;
        if vocabulary.n_entries() > vocab_size {
            return Err(DataError::VocabTooSmall { n_entries: vocabulary.n_entries(), vocab_size });
        }
        let sources = corpus::sources(&files.files);
        let width = Width::of_vocab(vocab_size);
        let path = cache_dir.join(format!("tokens-{}.bin", cache_key(&sources, &vocabulary, width)?));
        let failed = |action| {
            let path = path.clone();
            move |source| DataError::Cache { path, action, source }
        };
        let cached = TokenFile::open(&path, width).map_err(failed("read"))?;
        let tokens = match cached {
            Some(tokens) => tokens,
            None => {
                tokenize(&sources, &vocabulary, &path, width)?;
                let whole =
                    TokenFile::open(&path, width).and_then(|file| file.ok_or(io::ErrorKind::InvalidData.into()));
                whole.map_err(failed("read"))?
            }
        };
        Self::cut(vocabulary, tokens, spec, context_len as u64)
    }

    fn cut(vocabulary: Vocabulary, tokens: TokenFile, spec: &DataSpec, context_len: u64) -> Result<Self, DataError> {
        // One product of two numbers of f64: the same on every machine.
        let n_heldout_tokens = (tokens.n_tokens() as f64 * spec.heldout_ratio) as u64;
        let n_train_tokens = tokens.n_tokens() - n_heldout_tokens;
        for (part, n_tokens) in [("training part", n_train_tokens), ("held-out part", n_heldout_tokens)] {
            if n_tokens <= context_len {
                return Err(DataError::TooFewTokens { part, n_tokens, n_needed: context_len + 1 });
            }
        }
        let parts = [vocabulary.hash(), tokens.hash()].concat();
        let digest = Digest(blake3::derive_key("convoke 2026-11 data set v1", &parts));
        tracing::info!(digest = %digest.short(), n_tokens = tokens.n_tokens(), n_heldout_tokens, "data set opened");
        Ok(Self { vocabulary, tokens, context_len, n_train_tokens, digest })
    }

    /// BLAKE3 of the tokenizer and of the token stream; part of the run's id.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Samples of the training part: `context_len + 1` tokens each, one starting at every `context_len`-th token, so that
    /// every token but the first is predicted once.
    #[must_use]
    pub fn n_train_samples(&self) -> u64 {
        (self.n_train_tokens - 1) / self.context_len
    }

    /// A sample of the training part: inputs are all but the last token, targets all but the first.
    ///
    /// # Panics
    /// If `idx` is not below [`Self::n_train_samples`].
    #[must_use]
    pub fn sample(&self, idx: u64) -> Vec<u32> {
        assert!(idx < self.n_train_samples(), "sample {idx} of {}", self.n_train_samples());
        self.tokens.read(idx * self.context_len, self.sample_len())
    }

    /// `n` samples spread evenly over the held-out part, or as many as it has: the same ones at every call.
    #[must_use]
    pub fn heldout(&self, n: usize) -> Vec<Vec<u32>> {
        let n_samples = (self.tokens.n_tokens() - self.n_train_tokens - 1) / self.context_len;
        let n = n_samples.min(n as u64);
        let idxs = (0..n).map(|i| i * n_samples / n);
        idxs.map(|idx| self.tokens.read(self.n_train_tokens + idx * self.context_len, self.sample_len())).collect()
    }

    /// The ids of a text.
    ///
    /// # Errors
    /// Only a tokenizer with a limited alphabet refuses text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        self.vocabulary.encode(text)
    }

    /// The text of ids, without the ends of documents.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        self.vocabulary.decode(ids)
    }

    /// The token that ends a document: where generation of a text may start or stop.
    #[must_use]
    pub fn end_of_text(&self) -> u32 {
        self.vocabulary.end_of_text()
    }

    fn sample_len(&self) -> usize {
        usize::try_from(self.context_len + 1).expect("a context fits in memory")
    }
}

/// Names a cache after all that its content depends on.
fn cache_key(sources: &[Source], vocabulary: &Vocabulary, width: Width) -> Result<Digest, DataError> {
    let mut hasher = blake3::Hasher::new_derive_key("convoke 2026-11 token cache v1");
    hasher.update(&vocabulary.hash()).update(&[width.bytes() as u8]);
    for source in sources {
        hasher.update(&source.hash()?);
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}

fn tokenize(sources: &[Source], vocabulary: &Vocabulary, path: &Path, width: Width) -> Result<(), DataError> {
    tracing::info!(path = %path.display(), "tokenizing the corpus");
    let failed = |source| DataError::Cache { path: path.to_owned(), action: "written", source };
    let mut writer = TokenWriter::create(path, width).map_err(failed)?;
    let mut batch = Vec::new();
    let mut batch_bytes = 0;
    for source in sources {
        for piece in source.pieces()? {
            let piece = piece?;
            batch_bytes += piece.text.len();
            batch.push(piece);
            if batch_bytes >= BATCH_BYTES {
                batch_bytes = 0;
                write_batch(&mut writer, vocabulary, std::mem::take(&mut batch), &failed)?;
            }
        }
    }
    write_batch(&mut writer, vocabulary, batch, &failed)?;
    writer.finish().map_err(failed)
}

fn write_batch(
    writer: &mut TokenWriter,
    vocabulary: &Vocabulary,
    batch: Vec<Piece>,
    failed: &impl Fn(io::Error) -> DataError,
) -> Result<(), DataError> {
    let ends: Vec<bool> = batch.iter().map(|piece| piece.ends_document).collect();
    let encoded = vocabulary.encode_all(batch.into_iter().map(|piece| piece.text).collect())?;
    for (mut ids, ends_document) in encoded.into_iter().zip(ends) {
        ids.extend(ends_document.then_some(vocabulary.end_of_text()));
        writer.write(&ids).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
