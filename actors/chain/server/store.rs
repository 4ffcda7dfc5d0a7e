//! The served chain on disk: one redb file, one write transaction a block.
//!
//! Beside the ledger the file has what clients may still ask for: the blocks, and the storage of the last
//! [`STATES_KEPT`] blocks as one full state (the base) and what each later block changed. A block is in the file before
//! anybody hears of it; a crash between two blocks loses the pool and nothing else. One process at a time holds the file.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use convoke::chain::{Genesis, Ledger};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::de::DeserializeOwned;

use super::chain::{BLOCKS_KEPT, Draft, STATES_KEPT};
use super::header::Sealed;
use super::state::{Delta, State, Storage, Value};
use crate::chain::store::{StoreError, create};

/// What the file holds; raised when its tables change, and other than that of a chain hosted in a process.
const FORMAT: u64 = 101;

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const BLOCKS: TableDefinition<u64, &[u8]> = TableDefinition::new("blocks");
const BASE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("base");
const DELTAS: TableDefinition<u64, &[u8]> = TableDefinition::new("deltas");

/// The open file.
pub(super) struct Store {
    database: Database,
}

/// A chain as it is kept.
pub(super) struct Stored {
    pub(super) ledger: Ledger,
    pub(super) genesis: Sealed,
    /// In order of their numbers; without the genesis.
    pub(super) blocks: Vec<Sealed>,
    pub(super) storage: Storage,
}

impl Store {
    /// Opens or creates the file. What it holds is of this genesis: its time apart, which is the first start's.
    pub(super) fn open(path: &Path, genesis: &Genesis) -> Result<(Self, Option<Stored>), StoreError> {
        let corrupt = |reason: String| StoreError::Corrupt { path: path.to_owned(), reason };
        // The library asserts what it relies on, so a file that was cut off may come back as a panic.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let store = Self { database: create(path)? };
            let loaded = store.load().map_err(|error| corrupt(error.to_string()))?;
            let Some((stored_genesis, stored)) = loaded else { return Ok((store, None)) };
            if stored_genesis != (Genesis { timestamp_ms: stored_genesis.timestamp_ms, ..genesis.clone() }) {
                return Err(StoreError::OtherGenesis { path: path.to_owned() });
            }
            check(&stored_genesis, &stored).map_err(corrupt)?;
            Ok((store, Some(stored)))
        }));
        opened.unwrap_or_else(|_| Err(corrupt("its pages are inconsistent".to_owned())))
    }

    fn load(&self) -> Result<Option<(Genesis, Stored)>, redb::Error> {
        let read = self.database.begin_read()?;
        let meta = match read.open_table(META) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            opened => opened?,
        };
        let value = |key: &str| {
            let bytes = meta.get(key)?.map(|bytes| bytes.value().to_vec());
            bytes.ok_or_else(|| redb::Error::Corrupted(format!("it lacks its {key}")))
        };
        if value("format")? != FORMAT.to_le_bytes() {
            return Err(redb::Error::Corrupted(format!("its format is not {FORMAT}")));
        }
        let ledger =
            Ledger::decode(&value("ledger")?, []).map_err(|error| redb::Error::Corrupted(error.to_string()))?;
        let mut blocks = Vec::new();
        for entry in read.open_table(BLOCKS)?.iter()? {
            blocks.push(decode::<Sealed>(entry?.1.value())?);
        }
        if blocks.is_empty() {
            return Err(redb::Error::Corrupted("it has no blocks".to_owned()));
        }
        let mut storage = Storage::default();
        let mut base = Delta::new();
        for entry in read.open_table(BASE)?.iter()? {
            let (key, value) = entry?;
            base.push((key.value().to_vec(), Some(Value::from(value.value()))));
        }
        storage.write(number(&value("base")?)?, base);
        for entry in read.open_table(DELTAS)?.iter()? {
            let (block, delta) = entry?;
            storage.write(block.value(), decode(delta.value())?);
        }
        let genesis = blocks.remove(0);
        Ok(Some((decode(&value("genesis")?)?, Stored { ledger, genesis, blocks, storage })))
    }

    /// Writes the first block.
    pub(super) fn begin(
        &self,
        genesis: &Genesis,
        ledger: &Ledger,
        sealed: &Sealed,
        state: &State,
    ) -> Result<(), redb::Error> {
        let write = self.database.begin_write()?;
        {
            let mut meta = write.open_table(META)?;
            meta.insert("format", &FORMAT.to_le_bytes()[..])?;
            meta.insert("genesis", &encode(genesis)[..])?;
            meta.insert("ledger", &ledger.encode()[..])?;
            meta.insert("base", &0_u64.to_le_bytes()[..])?;
            write.open_table(BLOCKS)?.insert(0, &encode(sealed)[..])?;
            let mut base = write.open_table(BASE)?;
            for (key, value) in state {
                base.insert(&key[..], &value[..])?;
            }
            write.open_table(DELTAS)?;
        }
        write.commit()?;
        Ok(())
    }

    /// Writes a block, all of it or nothing; with it go the blocks after `rewound_to`, which a fork dropped.
    pub(super) fn write(&self, draft: &Draft, rewound_to: Option<u64>) -> Result<(), redb::Error> {
        let number = draft.sealed.header.number;
        let write = self.database.begin_write()?;
        {
            let mut blocks = write.open_table(BLOCKS)?;
            let mut deltas = write.open_table(DELTAS)?;
            if let Some(kept) = rewound_to {
                blocks.retain_in(kept + 1.., |_, _| false)?;
                deltas.retain_in(kept + 1.., |_, _| false)?;
            }
            blocks.insert(number, &encode(&draft.sealed)[..])?;
            if let Some(old) = number.checked_sub(BLOCKS_KEPT).filter(|old| *old > 0) {
                blocks.remove(old)?;
            }
            deltas.insert(number, &encode(&draft.delta)[..])?;
        }
        move_base(&write, (number + 1).saturating_sub(STATES_KEPT))?;
        write.open_table(META)?.insert("ledger", &draft.ledger.encode()[..])?;
        write.commit()?;
        Ok(())
    }
}

/// Brings the base up to `oldest`, the first block whose state is kept.
fn move_base(write: &WriteTransaction, oldest: u64) -> Result<(), redb::Error> {
    let mut meta = write.open_table(META)?;
    let at = meta.get("base")?.map(|bytes| number(bytes.value())).transpose()?.unwrap_or(0);
    let (mut base, mut deltas) = (write.open_table(BASE)?, write.open_table(DELTAS)?);
    for block in at + 1..=oldest {
        let delta: Delta = match deltas.remove(block)? {
            Some(bytes) => decode(bytes.value())?,
            None => return Err(redb::Error::Corrupted(format!("it lacks what block {block} changed"))),
        };
        for (key, value) in delta {
            match value {
                Some(value) => base.insert(&key[..], &value[..])?,
                None => base.remove(&key[..])?,
            };
        }
    }
    if oldest > at {
        meta.insert("base", &oldest.to_le_bytes()[..])?;
    }
    Ok(())
}

/// Whether the parts of a file belong together.
fn check(genesis: &Genesis, stored: &Stored) -> Result<(), String> {
    let Stored { ledger, genesis: first, blocks, .. } = stored;
    let begun = Ledger::new(genesis).map_err(|error| error.to_string())?;
    let best = blocks.last().unwrap_or(first);
    let mut parents = blocks.iter().zip(blocks.iter().skip(1));
    if first.header.state_root != begun.hash() || ledger.genesis() != begun.hash() {
        return Err("its first block is not its genesis's".to_owned());
    }
    if best.header.state_root != ledger.hash() || best.header.number != ledger.header().number.0 {
        return Err("its last block is not the one its state belongs to".to_owned());
    }
    let is_chain = parents.all(|(parent, block)| block.header.parent == parent.hash)
        && blocks.iter().chain([first]).all(|block| block.header.hash() == block.hash);
    if is_chain { Ok(()) } else { Err("its blocks are not one chain".to_owned()) }
}

fn encode(value: &impl serde::Serialize) -> Vec<u8> {
    postcard::to_allocvec(value).expect("plain numbers and bytes encode")
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, redb::Error> {
    postcard::from_bytes(bytes).map_err(|error| redb::Error::Corrupted(error.to_string()))
}

fn number(bytes: &[u8]) -> Result<u64, redb::Error> {
    let bytes = bytes.try_into().map_err(|_| redb::Error::Corrupted("a number is not 8 bytes".to_owned()))?;
    Ok(u64::from_le_bytes(bytes))
}

/// The chain in the file, or a new one, which is then written there.
pub(super) fn open_or_begin(
    path: Option<&Path>,
    genesis: &Genesis,
    begun: impl FnOnce() -> (Ledger, Sealed, State),
) -> Result<(Option<Store>, Stored), StoreError> {
    let opened = path.map(|path| Store::open(path, genesis)).transpose()?;
    let (store, stored) = opened.map_or((None, None), |(store, stored)| (Some(store), stored));
    if let Some(stored) = stored {
        return Ok((store, stored));
    }
    let (ledger, sealed, state) = begun();
    if let (Some(store), Some(path)) = (&store, path) {
        let written = store.begin(genesis, &ledger, &sealed, &state);
        written.map_err(|error| StoreError::Io {
            path: path.to_owned(),
            source: std::io::Error::other(error.to_string()),
        })?;
    }
    let mut storage = Storage::default();
    storage.write(0, state.into_iter().map(|(key, value)| (key, Some(Arc::clone(&value)))).collect());
    Ok((store, Stored { ledger, genesis: sealed, blocks: Vec::new(), storage }))
}
