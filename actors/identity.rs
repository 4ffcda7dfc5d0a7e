//! Who a node is: its hotkey on chain and its key on the peer-to-peer network, kept in the data directory.
//!
//! Both are made at the first start and never leave the machine; a hotkey that the official tools made takes the place of the
//! own one. The coldkey, which owns the money, is never here.
//!
//! Two processes with one identity would each undo what the other says on chain. On one machine a lock on the data directory
//! keeps the second out; for copies of an identity elsewhere see `membership`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use convoke::hotkey::HotkeyPair;
use serde::{Deserialize, Serialize};

use crate::wallet::{self, WalletError, prompt};

/// Who a node is.
#[derive(Clone)]
pub struct Identity {
    hotkey: HotkeyPair,
    /// The secret of the ed25519 endpoint key.
    pub endpoint: [u8; 32],
}

/// The identity file: the two secrets that a node made for itself.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Secrets {
    /// The mini secret of the sr25519 hotkey.
    hotkey: [u8; 32],
    /// The secret of the ed25519 endpoint key.
    endpoint: [u8; 32],
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("cannot use the identity file {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{path} is not an identity file: restore it from a backup, or move it away to start as somebody new")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// The hotkey file of the configuration is not one.
    #[error(transparent)]
    Hotkey(#[from] WalletError),
    /// The data directory has a process already.
    #[error("{path} is in use by another process: stop it, or choose another --data-dir")]
    InUse {
        /// The data directory.
        path: PathBuf,
    },
}

/// A data directory that this process has to itself; given back when dropped, and when the process ends, however it ends.
#[derive(Debug)]
pub struct DataDirLock {
    _file: fs::File,
}

impl DataDirLock {
    /// Takes the data directory, which is made if it is not there.
    ///
    /// # Errors
    /// [`IdentityError::InUse`] if another process has it.
    pub fn take(data_dir: &Path) -> Result<Self, IdentityError> {
        let path = data_dir.join("lock");
        let failed = |source| IdentityError::Io { path: path.clone(), source };
        fs::create_dir_all(data_dir).map_err(failed)?;
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(fs::TryLockError::WouldBlock) => Err(IdentityError::InUse { path: data_dir.to_owned() }),
            Err(fs::TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

impl Identity {
    /// The identity in a data directory, made there if there is none; with another hotkey if a file of one is given.
    ///
    /// # Errors
    /// A file cannot be used; none is ever overwritten.
    pub fn open(data_dir: &Path, hotkey: Option<&Path>) -> Result<Self, IdentityError> {
        let Secrets { hotkey: own, endpoint } = Secrets::open(data_dir)?;
        let hotkey = match hotkey {
            Some(path) => wallet::hotkey_file(path, || prompt::password("Password of the hotkey: "))?.pair,
            None => HotkeyPair::from_seed(&own),
        };
        Ok(Self { hotkey, endpoint })
    }

    /// An identity for tests and simulations, from a number.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let key = |purpose| blake3::derive_key(purpose, &seed.to_le_bytes());
        Self { hotkey: HotkeyPair::from_seed(&key("convoke test hotkey")), endpoint: key("convoke test endpoint") }
    }

    /// The hotkey's pair.
    #[must_use]
    pub fn keypair(&self) -> HotkeyPair {
        self.hotkey.clone()
    }
}

impl Secrets {
    fn open(data_dir: &Path) -> Result<Self, IdentityError> {
        let path = data_dir.join("identity.json");
        let failed = |source| IdentityError::Io { path: path.clone(), source };
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|source| IdentityError::Unreadable { path: path.clone(), source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(data_dir).map_err(failed)?;
                let secrets = Self::random();
                secrets.write(&path).map_err(failed)?;
                Ok(secrets)
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn random() -> Self {
        Self { hotkey: iroh::SecretKey::generate().to_bytes(), endpoint: iroh::SecretKey::generate().to_bytes() }
    }

    /// Readable by its owner alone from the first byte on, and whole or not there.
    fn write(&self, path: &Path) -> io::Result<()> {
        let beside = path.with_extension("new");
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&beside)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    }
}

impl std::fmt::Debug for Identity {
    /// Secrets do not belong into logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.hotkey.hotkey().short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::open(dir.path(), None).unwrap();
        let second = Identity::open(dir.path(), None).unwrap();
        assert_eq!((first.keypair().hotkey(), first.endpoint), (second.keypair().hotkey(), second.endpoint));
    }

    #[test]
    fn a_hotkey_of_the_official_tools_stands_in_for_the_own_one() {
        let dir = tempfile::tempdir().unwrap();
        let key = wallet::Wallet::named(dir.path(), "w").unwrap().new_hotkey("h").unwrap();
        let own = Identity::open(dir.path(), None).unwrap();
        let identity = Identity::open(dir.path(), Some(&dir.path().join("w/hotkeys/h"))).unwrap();
        assert_eq!((identity.keypair().hotkey(), identity.endpoint), (key.pair.hotkey(), own.endpoint));
        assert!(matches!(Identity::open(dir.path(), Some(Path::new("nowhere"))), Err(IdentityError::Hotkey(_))));
    }

    #[test]
    fn a_data_directory_has_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDirLock::take(dir.path()).unwrap();
        assert!(matches!(DataDirLock::take(dir.path()), Err(IdentityError::InUse { .. })));
        drop(first);
        DataDirLock::take(dir.path()).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn only_its_owner_can_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        Identity::open(dir.path(), None).unwrap();
        let mode = fs::metadata(dir.path().join("identity.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_identity_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("identity.json"), "{").unwrap();
        assert!(matches!(Identity::open(dir.path(), None), Err(IdentityError::Unreadable { .. })));
        assert_eq!(fs::read(dir.path().join("identity.json")).unwrap(), b"{");
    }
}
