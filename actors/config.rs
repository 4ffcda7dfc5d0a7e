//! A node's configuration: what a person may decide, from three layers, each over the one before.
//!
//! The defaults that the binary carries (`configs/default.toml`, which also documents every key) < the files given by
//! `--config`, in order < the values given by `--set`. Layers are merged as plain TOML tables and read into types
//! once, so that an error names the key's full path and the layer it came from. The table `[run]` is the
//! [`RunSpec`] that all nodes of a run share; everything else concerns this node alone.
//!
//! Where a layer gives `run.model` as a string, it is the path of a file that holds that table, such as
//! `configs/models/small.toml`: a model's geometry is one thing, and is chosen as one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use convoke::round::Role;
use convoke::run_spec::{RunSpec, RunSpecError};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::data::DataFiles;

/// The default run on this machine, with every key but the optional ones.
pub const DEFAULTS: &str = include_str!("../configs/default.toml");

/// Keys that a config may hold and the defaults do not: absent is their default.
const OPTIONAL_KEYS: [&str; 1] = ["data.tokenizer"];

/// The chain that a node serves itself.
const EMBEDDED: &str = "embedded";

/// The table that may also be given as the path of a file that holds it.
const MODEL_KEY: &str = "run.model";

/// Everything a node is told at its start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// This node.
    pub node: NodeSection,
    /// The chain it follows.
    pub chain: ChainSection,
    /// The text it trains on.
    pub data: DataFiles,
    /// What all nodes of the run share.
    pub run: RunSpec,
}

/// This node's place, name and resources.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSection {
    /// What it does in a round.
    pub role: Role,
    /// What people and logs call it.
    pub name: String,
    /// Its state, keys, cache and events.
    pub data_dir: PathBuf,
    /// Where `/metrics`, `/health`, `/ready` and `/status` are served.
    pub http: SocketAddr,
    /// `cpu`, `cuda:N` or `wgpu:N`; whether it exists is known once the backends have listed their devices.
    pub device: String,
    /// Replicas of the model that share a batch; 0: one a core.
    pub workers: usize,
    /// Where it listens for peers over UDP; port 0: any that is free.
    pub bind: SocketAddr,
    /// Where peers on other machines reach it, if that is not where it listens; empty: found out.
    pub address: String,
    /// A hotkey file of the official tools; empty: the identity in the data directory.
    pub hotkey: PathBuf,
    /// Peers to ask first, as `endpoint-id@address:port`; others are found on the chain.
    pub peers: Vec<String>,
    /// Which log lines are written, as `tracing` directives.
    pub log: String,
}

/// The chain a node follows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainSection {
    /// `embedded`, or the `ws://` or `wss://` addresses of a chain's nodes, divided by commas.
    pub url: String,
    /// Where the embedded chain is served to other nodes.
    pub listen: SocketAddr,
    /// Milliseconds between the embedded chain's blocks.
    pub block_ms: u64,
}

impl ChainSection {
    /// The addresses of another's chain; empty for the embedded one.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        if self.url == EMBEDDED {
            return Vec::new();
        }
        self.url.split(',').map(|url| url.trim().to_owned()).collect()
    }
}

impl NodeSection {
    /// Where it says that peers reach it, if it says so.
    #[must_use]
    pub fn stated_address(&self) -> Option<SocketAddr> {
        self.address.parse().ok()
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A config file or a model file is absent or closed to us.
    #[error("{what} `{}` cannot be read: correct its path", path.display())]
    Unreadable {
        /// `config file` or `model file`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A layer is not TOML.
    #[error("{layer} is not valid TOML: {reason}")]
    NotToml {
        /// The file, or the argument of `--set`.
        layer: String,
        /// What the parser said, with line and column.
        reason: String,
    },
    /// An argument of `--set` without a key or a value.
    #[error("`--set {argument}` sets nothing: write --set key=value, such as --set run.inner.steps=10")]
    NotAnAssignment {
        /// The argument.
        argument: String,
    },
    /// A key that no part of the node reads.
    #[error("unknown key `{key}` in {layer}: the nearest valid key is `{nearest}`")]
    UnknownKey {
        /// Its full path.
        key: String,
        /// The file, or the argument of `--set`.
        layer: String,
        /// The valid key or table that resembles it most.
        nearest: String,
    },
    /// A table where a value belongs, or the reverse.
    #[error("key `{key}` in {layer} must be {wanted}")]
    WrongShape {
        /// Its full path.
        key: String,
        /// The file, or the argument of `--set`.
        layer: String,
        /// `a table` or `a value`.
        wanted: &'static str,
    },
    /// A value of the wrong type, or none of those that the key takes.
    #[error("`{key}`: {reason}")]
    WrongValue {
        /// Its full path.
        key: String,
        /// What was found and what is expected.
        reason: String,
    },
    /// A number of this node out of its range.
    #[error("`{key}` is {value}: it must be {range}")]
    OutOfRange {
        /// Its full path.
        key: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        range: &'static str,
    },
    /// A number of the run out of its range, or two that do not go together.
    #[error("{}", with_full_path(.0))]
    Run(RunSpecError),
}

fn with_full_path(error: &RunSpecError) -> String {
    // The run spec names its keys from its own root.
    match error {
        RunSpecError::OutOfRange { key, value, range } => format!("`run.{key}` is {value}: it must be {range}"),
        RunSpecError::Inconsistent { key, value, rule } => format!("`run.{key}` is {value}: {rule}"),
    }
}

/// Layers merged so far; starts with the defaults.
#[derive(Debug, Clone)]
pub struct Layers {
    merged: Table,
    known: Vec<String>,
}

impl Default for Layers {
    fn default() -> Self {
        let merged: Table = DEFAULTS.parse().expect("a test parses the defaults");
        let mut known: Vec<String> = OPTIONAL_KEYS.iter().map(ToString::to_string).collect();
        collect_keys(&merged, "", &mut known);
        Self { merged, known }
    }
}

impl Layers {
    /// Lays a file over what is there.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML, or holds a key that does not exist.
    pub fn file(mut self, path: &Path) -> Result<Self, ConfigError> {
        let (table, layer) = read_table(path, "config file")?;
        self.lay(table, "", &layer)?;
        Ok(self)
    }

    /// Lays TOML text over what is there; `layer` is what errors call it.
    ///
    /// # Errors
    /// The text is no TOML, or holds a key that does not exist.
    pub fn text(mut self, text: &str, layer: &str) -> Result<Self, ConfigError> {
        self.lay(parse_table(text, layer)?, "", layer)?;
        Ok(self)
    }

    /// Lays one `key=value` over what is there. The value is written as in TOML; a bare word is a string.
    ///
    /// # Errors
    /// It is no assignment, or the key does not exist.
    pub fn set(self, argument: &str) -> Result<Self, ConfigError> {
        let not_an_assignment = || ConfigError::NotAnAssignment { argument: argument.to_owned() };
        let (key, text) = argument.split_once('=').ok_or_else(not_an_assignment)?;
        let (key, text) = (key.trim(), text.trim());
        if key.is_empty() || text.is_empty() {
            return Err(not_an_assignment());
        }
        let layer = format!("`--set {argument}`");
        let parsed = format!("value = {text}").parse::<Table>().map(|mut table| table.remove("value"));
        let value = match parsed {
            // What looks like a number or a date may still be a name.
            Ok(Some(value)) if value.is_table() || !self.get(key).is_some_and(Value::is_str) => value,
            Ok(Some(value @ Value::String(_))) => value,
            Err(error) if text.starts_with(['"', '\'', '[', '{']) => {
                return Err(ConfigError::NotToml { layer, reason: error.message().to_owned() });
            }
            _ => Value::String(text.to_owned()),
        };
        self.put_from(key, value, &layer)
    }

    /// Lays one value over what is there: what a flag such as `--role` does.
    ///
    /// # Errors
    /// The key does not exist.
    pub fn put(self, key: &str, value: impl Into<Value>) -> Result<Self, ConfigError> {
        self.put_from(key, value.into(), "the command line")
    }

    fn put_from(mut self, key: &str, value: Value, layer: &str) -> Result<Self, ConfigError> {
        let nested =
            key.rsplit('.').fold(value, |value, name| Value::Table(Table::from_iter([(name.to_owned(), value)])));
        let Value::Table(table) = nested else { unreachable!("a key has at least one part") };
        self.lay(table, "", layer)?;
        Ok(self)
    }

    /// Reads the merged layers and checks every range.
    ///
    /// # Errors
    /// The first value that is of the wrong type or out of its range.
    pub fn read(self) -> Result<NodeConfig, ConfigError> {
        let config: NodeConfig = serde_path_to_error::deserialize(Value::Table(self.merged)).map_err(|error| {
            let reason = error.inner().message().trim_end().to_owned();
            ConfigError::WrongValue { key: error.path().to_string(), reason }
        })?;
        config.validate()?;
        Ok(config)
    }

    fn get(&self, key: &str) -> Option<&Value> {
        let (tables, name) = key.rsplit_once('.').unwrap_or(("", key));
        let mut table = &self.merged;
        for name in tables.split('.').filter(|name| !name.is_empty()) {
            table = table.get(name)?.as_table()?;
        }
        table.get(name)
    }

    fn lay(&mut self, layer_table: Table, prefix: &str, layer: &str) -> Result<(), ConfigError> {
        for (name, value) in layer_table {
            let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
            if !self.known.contains(&key) {
                let key = first_leaf(key, &value);
                let nearest = self.nearest(&key);
                return Err(ConfigError::UnknownKey { key, layer: layer.to_owned(), nearest });
            }
            let wrong_shape = |wanted| ConfigError::WrongShape { key: key.clone(), layer: layer.to_owned(), wanted };
            match (value, self.get(&key).is_some_and(Value::is_table)) {
                (Value::Table(inner), true) => self.lay(inner, &key, layer)?,
                (Value::String(path), true) if key == MODEL_KEY => {
                    let path = Path::new(&path);
                    let (table, layer) = read_table(path, "model file")?;
                    self.lay(table, MODEL_KEY, &layer)?;
                }
                (Value::Table(_), false) => return Err(wrong_shape("a value, not a table")),
                (_, true) => return Err(wrong_shape("a table of values")),
                (value, false) => self.replace(&key, value),
            }
        }
        Ok(())
    }

    fn replace(&mut self, key: &str, value: Value) {
        let (tables, name) = key.rsplit_once('.').unwrap_or(("", key));
        let mut table = &mut self.merged;
        for name in tables.split('.').filter(|name| !name.is_empty()) {
            let inner = table.get_mut(name).and_then(Value::as_table_mut);
            table = inner.expect("every known key's tables are in the defaults");
        }
        table.insert(name.to_owned(), value);
    }

    /// The known path that takes the fewest edits; a wrong table before a right name counts less than a wrong name.
    fn nearest(&self, key: &str) -> String {
        let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
        let distance = |known: &String| {
            let whole = strsim::damerau_levenshtein(key, known);
            let name = 1 + strsim::damerau_levenshtein(&last(key), &last(known));
            (whole.min(name), whole)
        };
        self.known.iter().min_by_key(|known| distance(known)).cloned().unwrap_or_default()
    }
}

fn read_table(path: &Path, what: &'static str) -> Result<(Table, String), ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
        what,
        path: path.to_owned(),
        source,
    })?;
    let layer = format!("{what} `{}`", path.display());
    Ok((parse_table(&text, &layer)?, layer))
}

fn parse_table(text: &str, layer: &str) -> Result<Table, ConfigError> {
    text.parse().map_err(|error: toml::de::Error| ConfigError::NotToml {
        layer: layer.to_owned(),
        reason: error.to_string().trim_end().to_owned(),
    })
}

/// The first key inside a table that nobody knows: its full path tells more than the table's.
fn first_leaf(key: String, value: &Value) -> String {
    match value.as_table().and_then(|table| table.iter().next()) {
        Some((name, inner)) => first_leaf(format!("{key}.{name}"), inner),
        None => key,
    }
}

fn collect_keys(table: &Table, prefix: &str, keys: &mut Vec<String>) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if let Value::Table(inner) = value {
            collect_keys(inner, &key, keys);
        }
        keys.push(key);
    }
}

impl NodeConfig {
    /// The defaults, then each file, then each `key=value`.
    ///
    /// # Errors
    /// The first thing that is wrong, with its key and what would be right.
    pub fn load(files: &[PathBuf], sets: &[String]) -> Result<Self, ConfigError> {
        let layers = files.iter().try_fold(Layers::default(), |layers, path| layers.file(path))?;
        sets.iter().try_fold(layers, |layers, argument| layers.set(argument))?.read()
    }

    /// Checks the ranges that types do not.
    ///
    /// # Errors
    /// The first number out of its range, with the range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let out_of_range = |key, value: String, range| Err(ConfigError::OutOfRange { key, value, range });
        let name = &self.node.name;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        if !(1..=64).contains(&name.len()) || !name.chars().all(plain) {
            return out_of_range("node.name", format!("`{name}`"), "1 to 64 letters, digits, `-` or `_`");
        }
        if self.node.data_dir.as_os_str().is_empty() {
            return out_of_range("node.data_dir", "empty".to_owned(), "a directory");
        }
        if self.node.workers > 1024 {
            return out_of_range("node.workers", self.node.workers.to_string(), "from 0 (one a core) to 1024");
        }
        if !self.node.address.is_empty() && self.node.stated_address().is_none_or(|address| address.port() == 0) {
            return out_of_range("node.address", format!("`{}`", self.node.address), "empty, or address:port");
        }
        let is_url = |url: &String| url.starts_with("ws://") || url.starts_with("wss://");
        if !self.chain.endpoints().iter().all(is_url) {
            let range = "`embedded`, or URLs that start with ws:// or wss://, divided by commas";
            return out_of_range("chain.url", format!("`{}`", self.chain.url), range);
        }
        if !(10..=600_000).contains(&self.chain.block_ms) {
            return out_of_range("chain.block_ms", self.chain.block_ms.to_string(), "from 10 to 600000 milliseconds");
        }
        self.run.validate().map_err(ConfigError::Run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(sets: &[&str]) -> Result<NodeConfig, ConfigError> {
        NodeConfig::load(&[], &sets.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    /// The message must hold all of `wanted`.
    fn check_refused(loaded: Result<NodeConfig, ConfigError>, wanted: &[&str]) {
        let message = loaded.unwrap_err().to_string();
        for part in wanted {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }

    #[test]
    fn the_defaults_are_the_default_run() {
        let config = load(&[]).unwrap();
        assert_eq!(config.node.role, Role::Both);
        assert_eq!(config.node.http.to_string(), "127.0.0.1:9464");
        assert_eq!(config.run.inner.steps, 30);
        assert_eq!(config.data, DataFiles::default());
    }

    #[test]
    fn a_later_layer_wins_and_leaves_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.toml");
        std::fs::write(&path, "[node]\nname = \"ada\"\n[run.inner]\nsteps = 7\n").unwrap();
        let config = NodeConfig::load(&[path], &["run.inner.steps=9".to_owned()]).unwrap();
        assert_eq!((config.node.name.as_str(), config.run.inner.steps), ("ada", 9));
        assert_eq!(config.run.inner.batch_sequences, load(&[]).unwrap().run.inner.batch_sequences);
    }

    #[test]
    fn set_takes_toml_and_bare_words() {
        let config = load(&[
            "node.role=miner",
            "node.name=1e3",
            "node.device = cuda:1",
            "node.peers=['a', \"b\"]",
            "data.tokenizer=own.json",
            "data.files=[\"x.txt\"]",
            "run.inner.lr_peak=1",
            "chain.url=ws://127.0.0.1:9944",
        ])
        .unwrap();
        assert_eq!((config.node.role, config.node.device.as_str()), (Role::Miner, "cuda:1"));
        assert_eq!((config.node.name.as_str(), config.node.peers.len()), ("1e3", 2));
        assert_eq!(config.data.tokenizer, Some(PathBuf::from("own.json")));
        assert_eq!(config.run.inner.lr_peak.to_bits(), 1.0_f64.to_bits());
    }

    #[test]
    fn an_unknown_key_names_itself_and_the_nearest() {
        let check = |key: &str, nearest: &str| {
            check_refused(load(&[&format!("{key}=1")]), &[&format!("`{key}`"), &format!("`{nearest}`"), "--set"]);
        };
        check("run.inner.step", "run.inner.steps");
        check("run.iner.steps", "run.inner.steps");
        check("inner.steps", "run.inner.steps");
        check("steps", "run.inner.steps");
        check("node.rol", "node.role");
        check("rnu.seed", "run.seed");
        check("rnu", "run");
        check("data.tokeniser", "data.tokenizer");
        let file = Layers::default().text("[run.timing]\nblocks_per_rounds = 3", "config file `x.toml`");
        check_refused(file.and_then(Layers::read), &["`run.timing.blocks_per_rounds`", "blocks_per_round`", "x.toml"]);
    }

    #[test]
    fn a_wrong_type_names_the_key_and_both_types() {
        check_refused(load(&["run.inner.steps=many"]), &["`run.inner.steps`", "\"many\"", "u32"]);
        check_refused(load(&["run.inner.steps=-1"]), &["`run.inner.steps`", "-1", "u32"]);
        check_refused(load(&["node.role=minor"]), &["`node.role`", "minor", "`miner`, `validator`, `both`"]);
        check_refused(load(&["node.http=9464"]), &["`node.http`"]);
        check_refused(load(&["run.sparse.quantiser=3-bit"]), &["`run.sparse.quantiser`", "two-bit"]);
        check_refused(load(&["run=3"]), &["`run`", "a table"]);
        check_refused(load(&["node.name={a=1}"]), &["`node.name`", "not a table"]);
    }

    #[test]
    fn too_few_inner_steps_count_as_none() {
        let inner = NodeConfig::load(&[], &["run.inner.steps_min=3".to_owned()]).unwrap().run.inner;
        assert_eq!([0, 2, 3, 30].map(|made| inner.counted(made)), [0, 0, 3, 30]);
    }

    #[test]
    fn a_value_out_of_range_names_the_range() {
        check_refused(load(&["run.inner.steps=0"]), &["`run.inner.steps` is 0", "from 1 to"]);
        check_refused(load(&["run.inner.steps=1"]), &["`run.inner.steps_min` is 2", "at most", "inner.steps = 1"]);
        check_refused(load(&["run.inner.lr_peak=nan"]), &["`run.inner.lr_peak` is NaN"]);
        check_refused(load(&["run.data.heldout_ratio=0.9"]), &["`run.data.heldout_ratio` is 0.9", "0.5"]);
        check_refused(
            load(&["run.inner.micro_batch_sequences=5"]),
            &["`run.inner.micro_batch_sequences` is 5", "divide"],
        );
        check_refused(load(&["chain.block_ms=1"]), &["`chain.block_ms` is 1", "from 10 to"]);
        check_refused(load(&["chain.url=http://x"]), &["`chain.url`", "ws://"]);
        check_refused(load(&["node.workers=5000"]), &["`node.workers` is 5000", "1024"]);
        check_refused(load(&["node.name=a b"]), &["`node.name` is `a b`", "letters"]);
        check_refused(load(&["node.data_dir=\"\""]), &["`node.data_dir`"]);
    }

    #[test]
    fn what_is_no_assignment_or_no_toml_is_refused() {
        for argument in ["", "run.inner.steps", "=3", "node.name="] {
            check_refused(load(&[argument]), &["key=value"]);
        }
        check_refused(load(&["node.peers=[1"]), &["`--set node.peers=[1`", "TOML"]);
        check_refused(Layers::default().text("[node\n", "config file `x`").and_then(Layers::read), &["`x`", "line 1"]);
        check_refused(load(&["node..name=x"]), &["unknown key"]);
    }

    #[test]
    fn a_missing_file_is_named() {
        check_refused(NodeConfig::load(&["no/such.toml".into()], &[]), &["config file `no/such.toml`", "path"]);
        check_refused(load(&["run.model=no/such.toml"]), &["model file `no/such.toml`", "path"]);
    }

    #[test]
    fn a_model_is_chosen_by_the_path_of_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wide.toml");
        std::fs::write(&path, "d_model = 512\nd_ff = 1024\n").unwrap();
        let set = format!("run.model={}", path.display());
        let model = load(&[&set, "run.model.n_layers=7"]).unwrap().run.model;
        assert_eq!((model.d_model, model.d_ff, model.n_layers, model.vocab_size), (512, 1024, 7, 2048));
        std::fs::write(&path, "width = 512\n").unwrap();
        check_refused(load(&[&set]), &["unknown key `run.model.width`", "wide.toml"]);
    }

    #[test]
    fn every_config_lays_over_the_defaults_and_validates() {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
        let mut directories = vec![configs];
        let mut n_configs = 0;
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                } else if path.extension().is_some_and(|extension| extension == "toml") {
                    n_configs += 1;
                    let is_model = path.parent().is_some_and(|parent| parent.ends_with("models"));
                    let layers = Layers::default();
                    let layers =
                        if is_model { layers.put(MODEL_KEY, path.display().to_string()) } else { layers.file(&path) };
                    layers.and_then(Layers::read).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                }
            }
        }
        assert!(n_configs > 0);
    }
}
