//! `convoke wallet`: makes a wallet, and shows whose it is. What is returned is for the person who asked.

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use convoke::address::to_ss58;

use super::{Key, WALLETS, Wallet, WalletError, prompt};

/// Where the official tools keep wallets.
///
/// # Errors
/// This user has no home.
pub fn default_wallets() -> io::Result<PathBuf> {
    let home = std::env::home_dir().ok_or_else(|| io::Error::other("this user has no home directory"))?;
    Ok(home.join(WALLETS))
}

/// Makes the hotkey, and before it the coldkey if the wallet has none. `password` is asked with the words given.
///
/// # Errors
/// The hotkey is there, or a file cannot be written.
pub fn new(
    wallets: &Path,
    name: &str,
    hotkey: &str,
    password: impl Fn(&str) -> io::Result<String>,
) -> Result<String, WalletError> {
    let wallet = Wallet::named(wallets, name)?;
    let mut text = String::new();
    match wallet.coldkey_account() {
        Ok(account) => line(&mut text, format_args!("coldkey  {}  (was there)", to_ss58(&account))),
        Err(WalletError::Missing { .. }) => {
            let key = wallet.new_coldkey(&chosen_password(wallets, &password)?)?;
            made(&mut text, "coldkey", &key);
        }
        Err(error) => return Err(error),
    }
    made(&mut text, "hotkey ", &wallet.new_hotkey(hotkey)?);
    line(&mut text, format_args!("Write the words down and keep them apart from this machine: they are the keys."));
    Ok(text)
}

/// Shows the accounts of the coldkey and of a hotkey.
///
/// # Errors
/// A key that is not there.
pub fn show(wallets: &Path, name: &str, hotkey: &str) -> Result<String, WalletError> {
    let wallet = Wallet::named(wallets, name)?;
    let mut text = String::new();
    line(&mut text, format_args!("coldkey  {}", to_ss58(&wallet.coldkey_account()?)));
    let key = wallet.hotkey(hotkey, || prompt::password("Password of the hotkey: "))?;
    line(&mut text, format_args!("hotkey   {}", super::address(&key)));
    Ok(text)
}

/// A password that was typed twice alike.
fn chosen_password(wallets: &Path, password: impl Fn(&str) -> io::Result<String>) -> Result<String, WalletError> {
    let refused = |source| WalletError::NoPassword { path: wallets.to_owned(), source };
    let first = password("Password for the new coldkey: ").map_err(refused)?;
    if first.is_empty() {
        return Err(refused(io::Error::other("an empty password protects nothing")));
    }
    if password("The same again: ").map_err(refused)? != first {
        return Err(refused(io::Error::other("the two passwords differ")));
    }
    Ok(first)
}

fn made(text: &mut String, kind: &str, key: &Key) {
    line(text, format_args!("{kind}  {}", super::address(key)));
    line(text, format_args!("         {}", key.phrase.as_deref().unwrap_or_default()));
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    writeln!(text, "{content}").expect("a string takes every letter");
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_wallet_is_made_once_and_shows_whose_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let asked = Cell::new(0);
        let password = |_: &str| {
            asked.set(asked.get() + 1);
            Ok("open sesame".to_owned())
        };
        let text = new(dir.path(), "w", "h1", password).unwrap();
        let lines: Vec<_> = text.lines().map(str::split_whitespace).map(Iterator::collect::<Vec<_>>).collect();
        assert_eq!((lines[0][0], lines[1].len(), lines[2][0], lines[3].len()), ("coldkey", 12, "hotkey", 12));
        assert_eq!(asked.get(), 2);
        let shown = show(dir.path(), "w", "h1").unwrap();
        assert_eq!(shown, format!("coldkey  {}\nhotkey   {}\n", lines[0][1], lines[2][1]));
        let second = new(dir.path(), "w", "h2", password).unwrap();
        assert!(second.starts_with(&format!("coldkey  {}  (was there)", lines[0][1])));
        assert_eq!(asked.get(), 2, "the coldkey is not opened for it");
        assert!(matches!(new(dir.path(), "w", "h2", password), Err(WalletError::Exists { .. })));
    }

    #[test]
    fn passwords_that_differ_or_say_nothing_make_no_key() {
        let dir = tempfile::tempdir().unwrap();
        let differ = |words: &str| Ok(words.to_owned());
        assert!(matches!(new(dir.path(), "w", "h", differ), Err(WalletError::NoPassword { .. })));
        assert!(matches!(new(dir.path(), "w", "h", |_| Ok(String::new())), Err(WalletError::NoPassword { .. })));
        assert!(!dir.path().join("w").exists());
    }
}
