//! The official tools' wallet: a folder with a coldkey, which owns the money, and hotkeys, which act.
//!
//! ```text
//! ~/.bittensor/wallets/NAME/coldkey          under a password (`$NACL`), rarely plain
//!                           coldkeypub.txt   its public half
//!                           hotkeys/HOTKEY   plain JSON, rarely under a password; HOTKEYpub.txt: its public half
//! ```
//!
//! What those tools wrote is read, and what is written here they read. A node opens its hotkey only; the coldkey is for
//! one-shot commands, and is gone when they end. No key is ever overwritten: whoever lost one has lost what it owned.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use convoke::address::to_ss58;
use convoke::terms::Hotkey;
use rand_core::{OsRng, RngCore};

pub mod command;
mod key_file;
pub mod prompt;
pub mod register;
mod sealed;

pub use key_file::{Key, KeyFileError};

use sealed::{Cost, SealError};

/// No key file is longer.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The oldest forms of encrypted files, by how they begin.
const LEGACY: [(&[u8], &str); 2] = [(b"$ANSIBLE_VAULT", "Ansible Vault"), (b"gAAAAA", "Fernet")];

/// Where the official tools keep wallets, below the home directory.
pub const WALLETS: &str = ".bittensor/wallets";

/// A wallet: a folder of key files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wallet {
    dir: PathBuf,
    cost: CostOf,
}

/// What sealing costs; a type of its own, so that nothing but a test can lower it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CostOf {
    Official,
    #[cfg(test)]
    Nothing,
}

/// Why a wallet cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WalletError {
    /// A name that would lead elsewhere.
    #[error("`{name}` is no name of a wallet or key: letters, digits, `-`, `_` and `.` are, but no dot in front")]
    Name {
        /// What was asked for.
        name: String,
    },
    /// The file is not there.
    #[error("there is no key at {path}: name another wallet, or make one with `convoke wallet new`")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file is there, and stays.
    #[error("{path} holds a key already, and keys are never overwritten: choose another name")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read or written.
    #[error("cannot use the key file {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{path} is not a key that can be used")]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KeyFileError,
    },
    /// The file was encrypted by a tool of years ago.
    #[error(
        "{path} is encrypted as {kind}, which is no longer read: open it once with the official tools, which write it \
         anew, or make the key again from its phrase"
    )]
    Legacy {
        /// The file.
        path: PathBuf,
        /// How.
        kind: &'static str,
    },
    /// The password is wrong.
    #[error("the password does not open {path}, or the file is damaged")]
    Password {
        /// The file.
        path: PathBuf,
    },
    /// Nobody gave a password.
    #[error("{path} needs a password, and was given none")]
    NoPassword {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The machine is too small.
    #[error("opening or sealing {path} takes 512 MiB of memory, which are not free")]
    Memory {
        /// The file.
        path: PathBuf,
    },
}

/// Opens a hotkey by the path of its file. `password` is asked only if the file is encrypted.
///
/// # Errors
/// What is wrong with the file.
pub fn hotkey_file(path: &Path, password: impl FnOnce() -> io::Result<String>) -> Result<Key, WalletError> {
    open(path, CostOf::Official, password)
}

impl Wallet {
    /// The wallet of this name among the wallets in a folder; it need not be there.
    ///
    /// # Errors
    /// A name that would leave the folder.
    pub fn named(wallets: &Path, name: &str) -> Result<Self, WalletError> {
        Ok(Self { dir: wallets.join(checked(name)?), cost: CostOf::Official })
    }

    /// Opens a hotkey. `password` is asked only if the file is encrypted.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn hotkey(&self, name: &str, password: impl FnOnce() -> io::Result<String>) -> Result<Key, WalletError> {
        open(&self.hotkey_path(name)?, self.cost, password)
    }

    /// Opens the coldkey. `password` is asked only if the file is encrypted.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn coldkey(&self, password: impl FnOnce() -> io::Result<String>) -> Result<Key, WalletError> {
        open(&self.dir.join("coldkey"), self.cost, password)
    }

    /// The coldkey's account, which anybody may know.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn coldkey_account(&self) -> Result<Hotkey, WalletError> {
        let path = self.dir.join("coldkeypub.txt");
        let text = text(&path, read(&path)?)?;
        key_file::read_public(&text).map_err(|source| WalletError::KeyFile { path, source })
    }

    /// Makes a coldkey and puts it under the password. Show its phrase once: nothing else brings it back.
    ///
    /// # Errors
    /// There is one, or it cannot be written.
    pub fn new_coldkey(&self, password: &str) -> Result<Key, WalletError> {
        let key = new_key();
        let (path, public) = (self.dir.join("coldkey"), self.dir.join("coldkeypub.txt"));
        refuse_existing(&public)?;
        let mut nonce = [0; 24];
        OsRng.fill_bytes(&mut nonce);
        let sealed = sealed::seal(key.write().as_bytes(), password, nonce, self.cost.cost());
        let sealed = sealed.map_err(|_| WalletError::Memory { path: path.clone() })?;
        write_once(&path, &sealed)?;
        write_once(&public, key_file::write_public(&key.pair.hotkey()).as_bytes())?;
        Ok(key)
    }

    /// Makes a hotkey. Its file is plain, so that a node can start without anybody there.
    ///
    /// # Errors
    /// There is one of that name, or it cannot be written.
    pub fn new_hotkey(&self, name: &str) -> Result<Key, WalletError> {
        let key = new_key();
        let (path, public) = (self.hotkey_path(name)?, self.hotkey_path(&format!("{name}pub.txt"))?);
        refuse_existing(&public)?;
        write_once(&path, key.write().as_bytes())?;
        write_once(&public, key_file::write_public(&key.pair.hotkey()).as_bytes())?;
        Ok(key)
    }

    fn hotkey_path(&self, name: &str) -> Result<PathBuf, WalletError> {
        Ok(self.dir.join("hotkeys").join(checked(name)?))
    }
}

fn open(path: &Path, cost: CostOf, password: impl FnOnce() -> io::Result<String>) -> Result<Key, WalletError> {
    let path_owned = || path.to_owned();
    let bytes = read(path)?;
    if let Some((_, kind)) = LEGACY.iter().find(|(mark, _)| bytes.starts_with(mark)) {
        return Err(WalletError::Legacy { path: path_owned(), kind });
    }
    let plain = if bytes.starts_with(sealed::MARK) {
        let password = password().map_err(|source| WalletError::NoPassword { path: path_owned(), source })?;
        sealed::unseal(&bytes, &password, cost.cost()).map_err(|error| match error {
            SealError::CutOff | SealError::Password => WalletError::Password { path: path_owned() },
            SealError::Memory => WalletError::Memory { path: path_owned() },
        })?
    } else {
        bytes
    };
    let key = Key::read(&text(path, plain)?);
    key.map_err(|source| WalletError::KeyFile { path: path_owned(), source })
}

impl CostOf {
    fn cost(self) -> Cost {
        match self {
            Self::Official => Cost::OFFICIAL,
            #[cfg(test)]
            Self::Nothing => Cost::NONE,
        }
    }
}

fn new_key() -> Key {
    let mut entropy = [0; 16];
    OsRng.fill_bytes(&mut entropy);
    Key::from_entropy(&entropy)
}

/// A name that stays in its folder.
fn checked(name: &str) -> Result<&str, WalletError> {
    let is_known = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
    let is_name = !name.is_empty() && name.len() <= 64 && !name.starts_with('.') && name.chars().all(is_known);
    if is_name { Ok(name) } else { Err(WalletError::Name { name: name.to_owned() }) }
}

fn read(path: &Path) -> Result<Vec<u8>, WalletError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => WalletError::Missing { path: path.to_owned() },
        _ => WalletError::Io { path: path.to_owned(), source },
    };
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let reason = format!("it is longer than {FILE_BYTES_MAX} bytes");
        return Err(WalletError::KeyFile { path: path.to_owned(), source: KeyFileError::Form { reason } });
    }
    Ok(bytes)
}

fn text(path: &Path, bytes: Vec<u8>) -> Result<String, WalletError> {
    String::from_utf8(bytes).map_err(|_| {
        let reason = "it is not text".to_owned();
        WalletError::KeyFile { path: path.to_owned(), source: KeyFileError::Form { reason } }
    })
}

fn refuse_existing(path: &Path) -> Result<(), WalletError> {
    match path.try_exists() {
        Ok(false) => Ok(()),
        Ok(true) => Err(WalletError::Exists { path: path.to_owned() }),
        Err(source) => Err(WalletError::Io { path: path.to_owned(), source }),
    }
}

/// Readable by its owner alone from the first byte on, whole or not there, and never in the place of another.
fn write_once(path: &Path, bytes: &[u8]) -> Result<(), WalletError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => WalletError::Exists { path: path.to_owned() },
        _ => WalletError::Io { path: path.to_owned(), source },
    };
    refuse_existing(path)?;
    if let Some(dir) = path.parent() {
        let mut folder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut folder, 0o700);
        folder.recursive(true).create(dir).map_err(failed)?;
    }
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&beside).map_err(failed)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    // A second name of the same file, unlike a new name for it, takes nobody's place.
    let linked = written.and_then(|()| fs::hard_link(&beside, path));
    let removed = fs::remove_file(&beside);
    linked.and(removed).map_err(failed)
}

/// A key's account as people write it.
#[must_use]
pub fn address(key: &Key) -> String {
    to_ss58(&key.pair.hotkey())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_password() -> io::Result<String> {
        panic!("a plain file asks for no password")
    }

    fn wallet(dir: &Path) -> Wallet {
        Wallet { cost: CostOf::Nothing, ..Wallet::named(dir, "alpha").unwrap() }
    }

    fn place(path: &Path, bytes: &[u8]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn what_is_made_is_read_back_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let wallet = wallet(dir.path());
        let cold = wallet.new_coldkey("open sesame").unwrap();
        let hot = wallet.new_hotkey("h1").unwrap();
        let read = wallet.coldkey(|| Ok("open sesame".to_owned())).unwrap();
        assert_eq!((read.pair.hotkey(), read.phrase), (cold.pair.hotkey(), cold.phrase));
        assert_eq!(wallet.coldkey_account().unwrap(), cold.pair.hotkey());
        assert_eq!(wallet.hotkey("h1", no_password).unwrap().pair.hotkey(), hot.pair.hotkey());
        assert_ne!(hot.pair.hotkey(), wallet.new_hotkey("h2").unwrap().pair.hotkey());
        assert!(matches!(wallet.new_hotkey("h1"), Err(WalletError::Exists { .. })));
        assert!(matches!(wallet.new_coldkey("x"), Err(WalletError::Exists { .. })));
        assert_eq!(wallet.hotkey("h1", no_password).unwrap().pair.hotkey(), hot.pair.hotkey());
        // Nor is a key made whose public half could not be told.
        place(&dir.path().join("alpha/hotkeys/h3pub.txt"), b"{}");
        assert!(matches!(wallet.new_hotkey("h3"), Err(WalletError::Exists { .. })));
        assert!(matches!(wallet.hotkey("h3", no_password), Err(WalletError::Missing { .. })));
        let wrong = wallet.coldkey(|| Ok("open Sesame".to_owned()));
        assert!(matches!(wrong, Err(WalletError::Password { .. })));
        let silent = wallet.coldkey(|| Err(io::Error::other("no terminal")));
        assert!(matches!(silent, Err(WalletError::NoPassword { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn only_its_owner_can_read_a_key_and_nothing_is_left_beside_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let wallet = wallet(dir.path());
        wallet.new_coldkey("open sesame").unwrap();
        wallet.new_hotkey("h1").unwrap();
        let mode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("alpha/coldkey"), mode("alpha/hotkeys/h1"), mode("alpha/hotkeys")), (0o600, 0o600, 0o700));
        assert_eq!(fs::read_dir(dir.path().join("alpha/hotkeys")).unwrap().count(), 2);
        assert_eq!(fs::read_dir(dir.path().join("alpha")).unwrap().count(), 3);
    }

    #[test]
    fn a_name_stays_in_its_folder() {
        for name in ["", ".", "..", "../x", "a/b", ".hidden", "a b", "ä"] {
            assert!(matches!(Wallet::named(Path::new("w"), name), Err(WalletError::Name { .. })), "{name}");
        }
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(wallet(dir.path()).hotkey("../coldkey", no_password), Err(WalletError::Name { .. })));
        assert!(matches!(wallet(dir.path()).hotkey("h1", no_password), Err(WalletError::Missing { .. })));
    }

    #[test]
    fn old_encryptions_foreign_files_and_huge_ones_are_refused_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let wallet = wallet(dir.path());
        let refusal = |bytes: &[u8]| {
            place(&dir.path().join("alpha/coldkey"), bytes);
            let error = wallet.coldkey(no_password).unwrap_err();
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            format!("{error}: {cause}")
        };
        assert!(refusal(b"$ANSIBLE_VAULT;1.1;AES256\n33").contains("official tools"));
        assert!(refusal(b"gAAAAABh").contains("Fernet"));
        assert!(refusal(&[b'x'; 70_000]).contains("longer than"));
        assert!(refusal(&[0xff, 0xfe]).contains("not text"));
        assert!(refusal(b"{\"ss58Address\": \"5x\"}").contains("no secret"));
        assert!(refusal(b"not a phrase").contains("neither the official JSON"));
    }

    /// Made by the official tool (`bittensor-wallet` 4.1.1) from the phrase that every Substrate development chain knows;
    /// the coldkey's password is "correct horse".
    const PHRASE: &str = "bottom drive obey lake curtain smoke basket hold race lonely fit walk";
    const ADDRESS: &str = "5DfhGyQdFobKM8NsWvEeAKk5EQQgYe9AydgJ7rMB6E1EqRzV";
    const HOTKEY: &str = r#"{"accountId":"0x46ebddef8cd9bb167dc30878d7113b7e168e6f0646beffd77d69d39bad76b47a","publicKey":"0x46ebddef8cd9bb167dc30878d7113b7e168e6f0646beffd77d69d39bad76b47a","privateKey":"0x05d65584630d16cd4af6d0bec10f34bb504a5dcb62dba2122d49f5a663763d0afd190cce74df356432b410bd64682309d6dedb27c76845daf388557cbac3ca34","secretSeed":"0xfac7959dbfe72f052e5a0c3c8d6530f202b02fd8f9f5ca3580ec8deb7797479e","ss58Address":"5DfhGyQdFobKM8NsWvEeAKk5EQQgYe9AydgJ7rMB6E1EqRzV","secretPhrase":"bottom drive obey lake curtain smoke basket hold race lonely fit walk","cryptoType":1}"#;
    const COLDKEY: &str = "244e41434c0fade05ebfe630b8c0dd64cf979ceca87e84f0924c0cae103fd2ae875b549fccbabffbd62c4ac1a25f4ac96a9f\
         9c7a279174b4b64a86e84b6b9ff2ef1defe457273633d81dddcb95cbd3f95059342270a4d5e0d6898505c97c87ae36799dfb\
         116665c7d11fde037b436e24485d55ef442c4747cc3a7429689beb63407a0db31bbec7a32bb52d6d8156d4b9ac39d28784ef\
         a7c65af474affef02741236028e34404112622c81f767974d7a6b6d8d4468619020e20012ffe9053878e79d3f73ebea58b89\
         340c32278e05601924fac3872fb8fc8ce49cedc7742aab8550d4550d3f8ea7200f415662b360c6370bd10cee903527f02eee\
         b8ab6a7ae9c0f9a3345997fb14b41badcf5d5e83a0986ead85af40e4686a1f983b710f63f2d6c315b9a2707913761ad222bf\
         f75b3ba16c5c2adbf49f6de2a2c72d35576d7496795aaa4e87f30ca6d05235ce7077f4cc9e62b282a7df637c30debc850693\
         3f2b74e8c3acc5a3bed5236370609881dda2d515b7dfcfb57de6afe158173fb21196079d6431d3ee052c590eb8b9ee295a29\
         0d999d2ad0641dfc85724949af071bce42a7b16eadb9692ccf817f33a064fdb4503e903e497edaf8aaa184448bf2508e7556\
         c6565fa2da91ac5760f221752eb05de5222405da50efaacc110c6c59f4a6ddc314751494357185c56c3fa1a18ddfdbd24a8d\
         25560fd900f0a2b5c841642ebb9b5451ef563cfc2d83c15c13e424aefbca5a74ac6edc6099edf43cc90663d0f30e602748ca\
         a3d07fbb16b12ed1b7cafc24af5df6bfabbe982d0dd41eb6499deeb828e500021db3300ae1aaa39dfe622da8295fbf89beca\
         8767d5";

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn the_official_tools_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let wallet = Wallet::named(dir.path(), "alpha").unwrap();
        place(&dir.path().join("alpha/hotkeys/h1"), HOTKEY.as_bytes());
        place(&dir.path().join("alpha/coldkey"), &bytes(COLDKEY));
        let hotkey = wallet.hotkey("h1", no_password).unwrap();
        assert_eq!((address(&hotkey), hotkey.phrase.as_deref()), (ADDRESS.to_owned(), Some(PHRASE)));
        let coldkey = wallet.coldkey(|| Ok("correct horse".to_owned())).unwrap();
        assert_eq!((address(&coldkey), coldkey.phrase.as_deref()), (ADDRESS.to_owned(), Some(PHRASE)));
    }

    #[test]
    fn what_is_written_has_every_field_of_the_official_file_with_its_value() {
        let official: serde_json::Value = serde_json::from_str(HOTKEY).unwrap();
        let ours: serde_json::Value = serde_json::from_str(&Key::from_phrase(PHRASE).unwrap().write()).unwrap();
        assert_eq!(ours, official);
    }

    #[test]
    fn old_variants_of_a_key_file_are_read() {
        let official: serde_json::Map<String, serde_json::Value> = serde_json::from_str(HOTKEY).unwrap();
        let account = |text: &str| Key::read(text).map(|key| address(&key));
        let without = |names: &[&str]| {
            let kept = official.clone().into_iter().filter(|(name, _)| !names.contains(&name.as_str()));
            serde_json::to_string(&kept.collect::<serde_json::Map<_, _>>()).unwrap()
        };
        for text in [
            PHRASE.to_owned(),
            format!("  {}\n", official["secretSeed"].as_str().unwrap()),
            official["secretSeed"].as_str().unwrap()[2..].to_owned(),
            HOTKEY.replace("\"ss58Address", "\" ss58Address"),
            without(&["secretSeed", "cryptoType"]),
            without(&["secretPhrase", "accountId"]),
            without(&["secretSeed", "secretPhrase"]),
            without(&["secretSeed", "secretPhrase", "ss58Address", "accountId"]),
            HOTKEY.replace(&format!("\"{PHRASE}\""), "null"),
        ] {
            assert_eq!(account(&text), Ok(ADDRESS.to_owned()), "{text}");
        }
        assert_eq!(account(&HOTKEY.replace("\"cryptoType\":1", "\"cryptoType\":0")), Err(KeyFileError::Ed25519));
        let secrets = ["secretSeed", "secretPhrase", "privateKey"];
        assert_eq!(account(&without(&secrets)), Err(KeyFileError::NoSecret));
        let swapped = HOTKEY.replace(PHRASE, &Key::from_entropy(&[3; 16]).phrase.unwrap());
        let mismatch = |part| Err(KeyFileError::Mismatch { derived: ADDRESS.to_owned(), part });
        assert_eq!(account(&swapped), mismatch("secretPhrase"));
        let alice = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
        assert_eq!(account(&HOTKEY.replace(ADDRESS, alice)), mismatch("ss58Address"));
    }

    #[test]
    fn a_secret_is_in_no_debug_output() {
        let key = Key::from_phrase(PHRASE).unwrap();
        assert_eq!(format!("{key:?}"), format!("Key({ADDRESS})"));
    }
}
