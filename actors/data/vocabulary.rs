//! The tokenizer: text to token ids and back, and how the default one is trained.
//!
//! A `tokenizer.json` as Hugging Face's libraries read and write it, so that a trained model can be used with them. The
//! default one is byte-level BPE (every byte has an entry, so any text can be encoded) without a normaliser, trained on
//! the default corpus by [`train`] and carried by the binary. Training is a function of text and size alone, which a
//! test holds against the committed file.

use std::path::{Path, PathBuf};

use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::byte_level::ByteLevel as ByteLevelProcessor;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

use super::DataError;
use super::corpus::{Piece, Source};

/// Entries of the default tokenizer.
pub const DEFAULT_VOCAB_SIZE: usize = 2048;

/// Stands after each document; the default tokenizer's entry 0.
const END_OF_TEXT: &str = "<|endoftext|>";

/// What other tokenizers call the same entry, in the order they are tried.
const END_OF_TEXT_NAMES: [&str; 5] = [END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>"];

/// The default tokenizer.
const EMBEDDED: &[u8] = include_bytes!("../../configs/data/tokenizer.json");

/// A tokenizer and what the data set must know of it.
pub struct Vocabulary {
    tokenizer: Tokenizer,
    end_of_text: u32,
    n_entries: usize,
    hash: [u8; 32],
}

impl Vocabulary {
    /// Reads a `tokenizer.json`; the embedded one where no path is given.
    ///
    /// # Errors
    /// The file cannot be read, is no tokenizer, or has no token that ends a document.
    pub fn load(path: Option<&Path>) -> Result<Self, DataError> {
        let Some(path) = path else { return Self::parse(EMBEDDED, Path::new("the embedded tokenizer")) };
        let json =
            std::fs::read(path).map_err(|source| DataError::TokenizerUnreadable { path: path.to_owned(), source })?;
        Self::parse(&json, path)
    }

    fn parse(json: &[u8], path: &Path) -> Result<Self, DataError> {
        let tokenizer = Tokenizer::from_bytes(json)
            .map_err(|error| DataError::TokenizerInvalid { path: path.to_owned(), reason: error.to_string() })?;
        let end_of_text = END_OF_TEXT_NAMES
            .iter()
            .find_map(|name| tokenizer.token_to_id(name))
            .ok_or_else(|| DataError::NoEndOfText { path: path.to_owned(), names: END_OF_TEXT_NAMES.join(" ") })?;
        // Ids may have gaps: what bounds the embedding is the largest, not the count.
        let id_max = tokenizer.get_vocab(true).into_values().max().unwrap_or_default();
        Ok(Self { tokenizer, end_of_text, n_entries: id_max as usize + 1, hash: *blake3::hash(json).as_bytes() })
    }

    /// One more than the largest id.
    #[must_use]
    pub fn n_entries(&self) -> usize {
        self.n_entries
    }

    /// The token that stands after each document.
    #[must_use]
    pub fn end_of_text(&self) -> u32 {
        self.end_of_text
    }

    /// BLAKE3 of the `tokenizer.json`.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// The ids of a text.
    ///
    /// # Errors
    /// The tokenizer cannot encode it: only one with a limited alphabet refuses text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(refused)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of many texts; uses the cores there are.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_all(&self, texts: Vec<String>) -> Result<Vec<Vec<u32>>, DataError> {
        let encodings = self.tokenizer.encode_batch_fast(texts, false).map_err(refused)?;
        Ok(encodings.iter().map(|encoding| encoding.get_ids().to_vec()).collect())
    }

    /// The text of ids, without the ends of documents; an id that has no entry is left out.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids, true).unwrap_or_default()
    }
}

fn refused(error: tokenizers::Error) -> DataError {
    DataError::NotEncodable { reason: error.to_string() }
}

/// Trains byte-level BPE with `vocab_size` entries and returns its `tokenizer.json`: the same bytes each time.
///
/// # Errors
/// A source cannot be read, or `vocab_size` leaves no room for the 256 bytes and the end of text.
pub fn train(sources: &[Source], vocab_size: usize) -> Result<String, DataError> {
    let n_entries_min = 257;
    if vocab_size < n_entries_min {
        return Err(DataError::VocabTooSmall { n_entries: n_entries_min, vocab_size });
    }
    let mut tokenizer = TokenizerBuilder::<BPE, NFC, ByteLevel, ByteLevelProcessor, ByteLevelDecoder>::new()
        .with_model(BPE::default())
        .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
        .with_decoder(Some(ByteLevelDecoder::new(false, true, true)))
        .build()
        .map_err(refused)?;
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut first_error = None;
    let texts = sources.iter().flat_map(|source| match source.pieces() {
        Ok(pieces) => Box::new(pieces) as Box<dyn Iterator<Item = _> + Send>,
        Err(error) => Box::new(std::iter::once(Err(error))),
    });
    let texts =
        texts.map_while(|piece| piece.map(|piece: Piece| piece.text).map_err(|error| first_error = Some(error)).ok());
    let trained = tokenizer.train(&mut trainer, texts).map_err(refused).and_then(|tokenizer| {
        let mut json = tokenizer.to_string(true).map_err(refused)?;
        json.push('\n');
        Ok(json)
    });
    first_error.map_or(trained, Err)
}

/// Trains and writes a `tokenizer.json`: what the verb `tokenizer train` does.
///
/// # Errors
/// As [`train`], or the file cannot be written.
pub fn train_to_file(files: &[PathBuf], vocab_size: usize, out: &Path) -> Result<(), DataError> {
    let json = train(&super::corpus::sources(files), vocab_size)?;
    std::fs::write(out, json).map_err(|source| DataError::TokenizerUnwritable { path: out.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_tokenizer_is_what_training_gives() {
        let trained = train(&[Source::Embedded], DEFAULT_VOCAB_SIZE).unwrap();
        assert!(trained.as_bytes() == EMBEDDED, "run `cargo xtask tokenizer`");
    }

    #[test]
    fn any_text_survives_encoding() {
        let vocabulary = Vocabulary::load(None).unwrap();
        assert_eq!(vocabulary.n_entries(), DEFAULT_VOCAB_SIZE);
        for text in ["", " To be,  or not\n\nto be\t", "Zürich 東京 🦀 \u{0}\u{c}"] {
            assert_eq!(vocabulary.decode(&vocabulary.encode(text).unwrap()), text);
        }
    }

    #[test]
    fn an_end_of_text_and_an_unknown_id_decode_to_nothing() {
        let vocabulary = Vocabulary::load(None).unwrap();
        assert_eq!(vocabulary.end_of_text(), 0);
        let mut ids = vocabulary.encode("Exeunt.").unwrap();
        ids.extend([0, 4_000_000_000]);
        assert_eq!(vocabulary.decode(&ids), "Exeunt.");
    }

    #[test]
    fn a_file_that_is_no_tokenizer_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let check = |name: &str, content: Option<&str>, wanted: &str| {
            let path = directory.path().join(name);
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            let message = Vocabulary::load(Some(&path)).err().unwrap().to_string();
            assert!(message.contains(wanted), "{message}");
        };
        check("absent.json", None, "`data.tokenizer`");
        check("empty.json", Some("{}"), "is no tokenizer");
        let nameless = String::from_utf8(EMBEDDED.to_vec()).unwrap().replace(END_OF_TEXT, "<|fin|>");
        check("nameless.json", Some(&nameless), END_OF_TEXT);
    }

    #[test]
    fn training_refuses_too_few_entries_and_a_missing_source() {
        assert!(matches!(train(&[Source::Embedded], 256), Err(DataError::VocabTooSmall { .. })));
        let missing = Source::File("no/such.txt".into());
        assert!(matches!(train(&[missing], 300), Err(DataError::Unreadable { .. })));
    }
}
