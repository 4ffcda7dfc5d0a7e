//! The chain on disk: one redb file, one write transaction a block.
//!
//! A block is in the file before anybody hears of it. A crash between two blocks loses the pool and nothing else; one
//! in the middle of a write loses that block, which nobody has seen. The file is held by one process at a time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use convoke::chain::call::BLOCK_HASH_COUNT;
use convoke::chain::{Genesis, Ledger};
use convoke::terms::{Block, BlockHash};
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use super::ChainError;
use super::host::{VIEWS_KEPT, View};

/// What the file holds; raised when its tables change.
const FORMAT: u64 = 1;
/// Pages kept in memory: the whole state of a full subnet and some blocks of views.
const CACHE_BYTES: usize = 8 << 20;

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const HASHES: TableDefinition<u64, &[u8; 32]> = TableDefinition::new("block_hashes");
const VIEWS: TableDefinition<u64, &[u8]> = TableDefinition::new("views");

/// Why a chain's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process, or another host in this one, has it.
    #[error("the chain's file {path} is in use by another process")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// It is damaged, or no chain's.
    #[error("the chain's file {path} is damaged or not a chain's ({reason}): remove it to begin anew")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It holds a chain that began otherwise.
    #[error("the chain's file {path} holds another chain than the one configured: remove it, or name another file")]
    OtherGenesis {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be read or written.
    #[error("the chain's file {path} cannot be used")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The open file.
pub(super) struct Store {
    database: Database,
}

/// What was in the file.
pub(super) struct Stored {
    pub(super) ledger: Ledger,
    pub(super) views: Vec<View>,
}

impl Store {
    /// Opens or creates the file. What it holds is of this genesis: its time apart, which is the first start's.
    pub(super) fn open(path: &Path, genesis: &Genesis) -> Result<(Self, Option<Stored>), StoreError> {
        let corrupt = |reason: String| StoreError::Corrupt { path: path.to_owned(), reason };
        // The library asserts what it relies on, so a file that was cut off may come back as a panic.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let store = Self { database: create(path)? };
            let stored = store.load(genesis, path)?;
            Ok((store, stored))
        }));
        opened.unwrap_or_else(|_| Err(corrupt("its pages are inconsistent".to_owned())))
    }

    fn load(&self, genesis: &Genesis, path: &Path) -> Result<Option<Stored>, StoreError> {
        let corrupt = |reason: String| StoreError::Corrupt { path: path.to_owned(), reason };
        let Some(tables) = self.read().map_err(|error| corrupt(error.to_string()))? else { return Ok(None) };
        let stored_genesis: Genesis =
            postcard::from_bytes(&tables.genesis).map_err(|error| corrupt(error.to_string()))?;
        if stored_genesis != (Genesis { timestamp_ms: stored_genesis.timestamp_ms, ..genesis.clone() }) {
            return Err(StoreError::OtherGenesis { path: path.to_owned() });
        }
        let newest = tables.hashes.last().copied();
        let ledger = Ledger::decode(&tables.ledger, tables.hashes).map_err(|error| corrupt(error.to_string()))?;
        if ledger.genesis() != stored_genesis.hash() || newest != Some((ledger.header().number, ledger.hash())) {
            return Err(corrupt("its last block is not the one its state belongs to".to_owned()));
        }
        let views = tables.views.iter().map(|bytes| postcard::from_bytes(bytes));
        let views: Vec<View> = views.collect::<Result<_, _>>().map_err(|error| corrupt(error.to_string()))?;
        match views.last() {
            Some(view) if view.block.hash == ledger.hash() => Ok(Some(Stored { ledger, views })),
            _ => Err(corrupt("it lacks what its last block shows".to_owned())),
        }
    }

    /// All tables' content; `None` in a file that holds no block yet.
    fn read(&self) -> Result<Option<Tables>, redb::Error> {
        let read = self.database.begin_read()?;
        let meta = match read.open_table(META) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            opened => opened?,
        };
        let value = |key: &str| Ok::<_, redb::Error>(meta.get(key)?.map(|bytes| bytes.value().to_vec()));
        if value("format")?.as_deref() != Some(&FORMAT.to_le_bytes()) {
            return Err(redb::Error::Corrupted(format!("its format is not {FORMAT}")));
        }
        let (Some(genesis), Some(ledger)) = (value("genesis")?, value("ledger")?) else {
            return Err(redb::Error::Corrupted("it lacks genesis or state".to_owned()));
        };
        let hashes = read.open_table(HASHES)?;
        let hash = |entry: Result<(redb::AccessGuard<'_, u64>, redb::AccessGuard<'_, &[u8; 32]>), _>| {
            entry.map(|(number, hash)| (Block(number.value()), BlockHash(*hash.value())))
        };
        let hashes = hashes.iter()?.map(hash).collect::<Result<Vec<_>, redb::StorageError>>()?;
        let views = read.open_table(VIEWS)?;
        let view = |entry: Result<(redb::AccessGuard<'_, u64>, redb::AccessGuard<'_, &[u8]>), _>| {
            entry.map(|(_, view)| view.value().to_vec())
        };
        let views = views.iter()?.map(view).collect::<Result<Vec<_>, redb::StorageError>>()?;
        Ok(Some(Tables { genesis, ledger, hashes, views }))
    }

    /// Writes a block: all of it or nothing.
    pub(super) fn write(&self, genesis: Option<&Genesis>, ledger: &Ledger, view: &View) -> Result<(), ChainError> {
        self.commit(genesis, ledger, view).map_err(|error| ChainError::Store { reason: error.to_string() })
    }

    fn commit(&self, genesis: Option<&Genesis>, ledger: &Ledger, view: &View) -> Result<(), redb::Error> {
        let number = ledger.header().number.0;
        let write = self.database.begin_write()?;
        {
            let mut meta = write.open_table(META)?;
            if let Some(genesis) = genesis {
                let genesis = postcard::to_allocvec(genesis).expect("plain numbers and maps encode");
                meta.insert("genesis", &genesis[..])?;
                meta.insert("format", &FORMAT.to_le_bytes()[..])?;
            }
            meta.insert("ledger", &ledger.encode()[..])?;
            let mut hashes = write.open_table(HASHES)?;
            hashes.insert(number, &ledger.hash().0)?;
            if let Some(old) = number.checked_sub(BLOCK_HASH_COUNT) {
                hashes.remove(old)?;
            }
            let mut views = write.open_table(VIEWS)?;
            let encoded = postcard::to_allocvec(view).expect("plain numbers and maps encode");
            views.insert(number, &encoded[..])?;
            if let Some(old) = number.checked_sub(VIEWS_KEPT) {
                views.remove(old)?;
            }
        }
        write.commit()?;
        Ok(())
    }
}

struct Tables {
    genesis: Vec<u8>,
    ledger: Vec<u8>,
    hashes: Vec<(Block, BlockHash)>,
    views: Vec<Vec<u8>>,
}

/// Opens or creates a file that no other process holds.
pub(super) fn create(path: &Path) -> Result<Database, StoreError> {
    let path_buf = || path.to_owned();
    let opened = Database::builder().set_cache_size(CACHE_BYTES).create(path);
    opened.map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            StoreError::Locked { path: path_buf() }
        }
        DatabaseError::Storage(redb::StorageError::Io(source)) if source.kind() != std::io::ErrorKind::InvalidData => {
            StoreError::Io { path: path_buf(), source }
        }
        other => StoreError::Corrupt { path: path_buf(), reason: other.to_string() },
    })
}
