//! Who a node is: its hotkey on chain and its key on the peer-to-peer network, kept in the data directory.
//!
//! Both are made at the first start and never leave the machine. The coldkey, which owns the money, is never here.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use convoke::hotkey::HotkeyPair;
use serde::{Deserialize, Serialize};

/// The two secrets of a node.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The mini secret of the sr25519 hotkey.
    pub hotkey: [u8; 32],
    /// The secret of the ed25519 endpoint key.
    pub endpoint: [u8; 32],
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
}

impl Identity {
    /// The identity in a data directory, made there if there is none.
    ///
    /// # Errors
    /// The file cannot be used; it is never overwritten.
    pub fn open(data_dir: &Path) -> Result<Self, IdentityError> {
        let path = data_dir.join("identity.json");
        let failed = |source| IdentityError::Io { path: path.clone(), source };
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|source| IdentityError::Unreadable { path: path.clone(), source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(data_dir).map_err(failed)?;
                let identity = Self::random();
                identity.write(&path).map_err(failed)?;
                Ok(identity)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// A new identity.
    #[must_use]
    pub fn random() -> Self {
        Self { hotkey: iroh::SecretKey::generate().to_bytes(), endpoint: iroh::SecretKey::generate().to_bytes() }
    }

    /// An identity for tests and simulations, from a number.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let key = |purpose| blake3::derive_key(purpose, &seed.to_le_bytes());
        Self { hotkey: key("convoke test hotkey"), endpoint: key("convoke test endpoint") }
    }

    /// The hotkey's pair.
    #[must_use]
    pub fn keypair(&self) -> HotkeyPair {
        HotkeyPair::from_seed(&self.hotkey)
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
        write!(f, "Identity({})", self.keypair().hotkey().short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::open(dir.path()).unwrap();
        let second = Identity::open(dir.path()).unwrap();
        assert_eq!((first.hotkey, first.endpoint), (second.hotkey, second.endpoint));
    }

    #[cfg(unix)]
    #[test]
    fn only_its_owner_can_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        Identity::open(dir.path()).unwrap();
        let mode = fs::metadata(dir.path().join("identity.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_identity_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("identity.json"), "{").unwrap();
        assert!(matches!(Identity::open(dir.path()), Err(IdentityError::Unreadable { .. })));
        assert_eq!(fs::read(dir.path().join("identity.json")).unwrap(), b"{");
    }
}
