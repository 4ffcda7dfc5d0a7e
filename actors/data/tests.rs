//! Claims about the whole data set; each part's own are next to it.

use std::sync::Arc;

use super::*;

const CONTEXT_LEN: usize = 32;

fn spec(heldout_ratio: f64) -> DataSpec {
    DataSpec { heldout_ratio, heldout_sequences: 8 }
}

fn open(files: &[PathBuf], cache_dir: &Path) -> Result<Dataset, DataError> {
    let files = DataFiles { files: files.to_vec(), tokenizer: None };
    Dataset::open(&files, &spec(0.1), CONTEXT_LEN, 2048, cache_dir)
}

/// A directory with one file of verse, which is long enough for some samples.
fn verse(n_lines: usize) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("verse.txt");
    let text: String = (0..n_lines).map(|i| format!("Line {i} of a poem that nobody wrote.\n")).collect();
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

#[test]
fn samples_join_to_the_text_and_share_one_token_with_their_neighbour() {
    let (directory, path) = verse(200);
    let dataset = open(std::slice::from_ref(&path), directory.path()).unwrap();
    let mut joined = dataset.sample(0)[..1].to_vec();
    for idx in 0..dataset.n_train_samples() {
        let sample = dataset.sample(idx);
        assert_eq!(sample.len(), CONTEXT_LEN + 1);
        assert_eq!(joined.last(), sample.first());
        joined.extend(&sample[1..]);
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let trained = dataset.decode(&joined);
    assert!(text.starts_with(&trained) && trained.len() > text.len() * 8 / 10, "{trained}");
    assert_eq!(dataset.decode(&dataset.encode(&text).unwrap()), text);
}

#[test]
fn held_out_samples_are_spread_over_the_end_and_never_trained_on() {
    let (directory, path) = verse(2000);
    let dataset = open(&[path], directory.path()).unwrap();
    let heldout = dataset.heldout(8);
    assert_eq!(heldout.len(), 8);
    assert!(heldout.iter().all(|sample| sample.len() == CONTEXT_LEN + 1));
    let first_line = |ids: &[u32]| -> usize {
        let text = dataset.decode(ids);
        let number = text.split("Line ").nth(1).unwrap();
        number.split(' ').next().unwrap().parse().unwrap()
    };
    let last_trained = first_line(&dataset.sample(dataset.n_train_samples() - 1));
    let lines: Vec<_> = heldout.iter().map(|sample| first_line(sample)).collect();
    assert!(lines[0] > last_trained && lines.is_sorted() && lines[7] - lines[0] > 150, "{last_trained} {lines:?}");
    assert_eq!(dataset.heldout(8), heldout);
    let all = dataset.heldout(usize::MAX);
    assert!(all.len() > 8 && all.windows(2).all(|pair| pair[0].last() == pair[1].first()), "as many as there are");
}

#[test]
fn documents_are_divided_by_the_end_of_text() {
    let (directory, path) = verse(100);
    let lines = directory.path().join("more.jsonl");
    let documents = (0..100).map(|i| format!("{{\"text\": \"document {i}\"}}\n"));
    std::fs::write(&lines, documents.collect::<String>()).unwrap();
    let dataset = open(&[path, lines], directory.path()).unwrap();
    let n_ends = dataset.tokens.read(0, dataset.tokens.n_tokens() as usize).iter().filter(|id| **id == 0).count();
    assert_eq!(n_ends, 101);
}

#[test]
fn the_digest_names_text_and_order_but_not_the_cache() {
    let (directory, path) = verse(100);
    let (other_directory, other) = verse(101);
    let open = |files: &[&PathBuf], cache_dir: &Path| {
        open(&files.iter().map(|path| (*path).clone()).collect::<Vec<_>>(), cache_dir).unwrap().digest()
    };
    let digest = open(&[&path, &other], directory.path());
    assert_eq!(open(&[&path, &other], directory.path()), digest, "from the cache");
    assert_eq!(open(&[&path, &other], other_directory.path()), digest, "from another cache");
    assert_ne!(open(&[&other, &path], directory.path()), digest);
    assert_ne!(open(&[&path], directory.path()), digest);
}

#[test]
fn a_torn_cache_is_built_again() {
    let (directory, path) = verse(100);
    let cache_dir = directory.path().join("cache");
    let whole = open(std::slice::from_ref(&path), &cache_dir).unwrap().digest();
    let cache = std::fs::read_dir(&cache_dir).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(&cache).unwrap();
    std::fs::remove_file(&cache).unwrap();
    std::fs::write(&cache, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(open(&[path], &cache_dir).unwrap().digest(), whole);
    assert_eq!(std::fs::read(&cache).unwrap(), bytes);
}

#[test]
fn nodes_of_one_process_may_build_the_same_cache_at_once() {
    let (directory, path) = verse(500);
    let shared = Arc::new((directory, path));
    let nodes: Vec<_> = (0..4)
        .map(|_| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || open(std::slice::from_ref(&shared.1), shared.0.path()).unwrap().digest())
        })
        .collect();
    let digests: Vec<_> = nodes.into_iter().map(|node| node.join().unwrap()).collect();
    assert!(digests.iter().all(|digest| *digest == digests[0]));
}

#[test]
fn the_default_corpus_needs_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let dataset = open(&[], directory.path()).unwrap();
    // Equal, byte for byte, to what a plain encoder of some thirty lines gives for the committed files. Another digest
    // is another run: nodes that differ here do not train together.
    assert_eq!(dataset.tokens.n_tokens(), 1_859_026);
    assert_eq!(dataset.digest().to_string(), "ded73cb7842324bedae21ba49877f48c9ccb2cf4c6492261c98dffbe74da3822");
    assert!(dataset.decode(&dataset.sample(0)).starts_with("ALL'S WELL THAT ENDS WELL"));
    assert!(dataset.tokens.read(0, dataset.tokens.n_tokens() as usize).iter().all(|id| *id < 2048));
}

#[test]
fn too_little_text_and_too_small_a_model_are_told_with_their_numbers() {
    let (directory, short) = verse(3);
    let (_other, long) = verse(100);
    let check = |files: &[PathBuf], heldout_ratio: f64, vocab_size: usize, wanted: &str| {
        let files = DataFiles { files: files.to_vec(), tokenizer: None };
        let opened = Dataset::open(&files, &spec(heldout_ratio), CONTEXT_LEN, vocab_size, directory.path());
        let message = opened.err().unwrap().to_string();
        assert!(message.contains(wanted), "{message}");
    };
    check(&[short], 0.5, 2048, "one sample takes 33");
    check(&[long], 0.000_001, 2048, "held-out part");
    check(&[], 0.1, 1024, "`run.model.vocab_size` to at least 2048");
}

#[test]
fn a_cache_directory_that_cannot_be_made_names_the_key() {
    let (directory, path) = verse(100);
    let error = open(std::slice::from_ref(&path), &path).err().unwrap();
    assert!(error.to_string().contains("`node.data_dir`"), "{error}");
    drop(directory);
}
