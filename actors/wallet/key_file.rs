//! What stands in a key file once it is open: the JSON of the official tools, or a bare phrase or seed as old ones wrote.
//!
//! A file says the same thing several times. The secret is taken from the first of seed, phrase and private key that is
//! there, and whatever the file says of the public key must agree with it: a file that was put together by hand fails
//! here, not by signing for somebody else.

use convoke::address::{from_ss58, to_ss58};
use convoke::hotkey::{EXPANDED_LEN, HotkeyPair};
use convoke::terms::Hotkey;
use serde_json::{Map, Value, json};

/// The official tools' number for sr25519.
const SR25519: u64 = 1;

/// A key with the words it is made of, if they are known.
#[derive(Clone)]
pub struct Key {
    /// What signs.
    pub pair: HotkeyPair,
    /// Twelve words or more, to write down: whoever has them has the key.
    pub phrase: Option<String>,
    seed: Option<[u8; 32]>,
}

/// Why text is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    /// Neither JSON nor a seed nor a phrase.
    #[error("it holds neither the official JSON nor a phrase or a seed: {reason}")]
    Form {
        /// What is wrong with it.
        reason: String,
    },
    /// The file has only public parts, as `coldkeypub.txt` and `…pub.txt` do.
    #[error("it holds no secret: it is the public half of a key, look for the file beside it")]
    NoSecret,
    /// A key of another kind.
    #[error("it holds an ed25519 key: a node signs with sr25519, make a new hotkey of the default kind")]
    Ed25519,
    /// The parts do not belong together.
    #[error("its secret is that of {derived}, but its {part} is another's: restore the file from a backup")]
    Mismatch {
        /// What the secret gives.
        derived: String,
        /// What does not agree.
        part: &'static str,
    },
}

impl Key {
    /// The key of 12, 15, 18, 21 or 24 English words.
    ///
    /// # Errors
    /// A word that is none, or words in a wrong order: the last one checks the others.
    pub fn from_phrase(phrase: &str) -> Result<Self, KeyFileError> {
        let form = |reason: String| KeyFileError::Form { reason };
        let words: Vec<_> = phrase.split_whitespace().collect();
        let phrase = words.join(" ");
        let mnemonic = bip39::Mnemonic::parse_in_normalized(bip39::Language::English, &phrase);
        let mnemonic = mnemonic.map_err(|error| form(error.to_string()))?;
        let (entropy, n) = mnemonic.to_entropy_array();
        let seed = substrate_bip39::mini_secret_from_entropy(&entropy[..n], "");
        let seed = seed.map_err(|error| form(format!("{error:?}")))?.to_bytes();
        Ok(Self { phrase: Some(phrase), ..Self::from_seed(seed) })
    }

    /// The key of this entropy, in twelve words.
    ///
    /// # Panics
    /// Never: 16 bytes are twelve words.
    #[must_use]
    pub fn from_entropy(entropy: &[u8; 16]) -> Self {
        let mnemonic = bip39::Mnemonic::from_entropy(entropy).expect("16 bytes are twelve words");
        Self::from_phrase(&mnemonic.to_string()).expect("words of a phrase are one")
    }

    fn from_seed(seed: [u8; 32]) -> Self {
        Self { pair: HotkeyPair::from_seed(&seed), phrase: None, seed: Some(seed) }
    }

    /// Reads an open key file.
    ///
    /// # Errors
    /// What it is instead of one.
    pub fn read(text: &str) -> Result<Self, KeyFileError> {
        let text = text.trim();
        if text.starts_with('{') {
            let map: Map<String, Value> =
                serde_json::from_str(text).map_err(|error| KeyFileError::Form { reason: error.to_string() })?;
            return Self::read_map(&map);
        }
        match hex(text) {
            Some(seed) => Ok(Self::from_seed(seed)),
            None => Self::from_phrase(text),
        }
    }

    fn read_map(map: &Map<String, Value>) -> Result<Self, KeyFileError> {
        if field(map, "cryptoType").is_some_and(|kind| kind.as_u64() != Some(SR25519)) {
            return Err(KeyFileError::Ed25519);
        }
        let text = |name| field(map, name).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty());
        let malformed = |name: &str| KeyFileError::Form { reason: format!("`{name}` is not what it should be") };
        let public = text("publicKey").or(text("accountId"));
        let public = public.map(|public| hex(public).map(Hotkey).ok_or_else(|| malformed("publicKey"))).transpose()?;
        let phrase = text("secretPhrase");
        let mut key = if let Some(seed) = text("secretSeed") {
            Self::from_seed(hex(seed).ok_or_else(|| malformed("secretSeed"))?)
        } else if let Some(phrase) = phrase {
            Self::from_phrase(phrase)?
        } else if let Some(secret) = text("privateKey") {
            let secret: [u8; EXPANDED_LEN] = hex(secret).ok_or_else(|| malformed("privateKey"))?;
            let public = public.ok_or_else(|| malformed("publicKey"))?;
            let pair = HotkeyPair::from_expanded(&secret, &public).ok_or_else(|| malformed("privateKey"))?;
            Self { pair, phrase: None, seed: None }
        } else {
            return Err(KeyFileError::NoSecret);
        };
        if let Some(phrase) = phrase {
            key.check(Self::from_phrase(phrase)?.pair.hotkey(), "secretPhrase")?;
            key.phrase = Some(phrase.to_owned());
        }
        for name in ["publicKey", "accountId"] {
            if let Some(public) = text(name) {
                key.check(hex(public).map(Hotkey).ok_or_else(|| malformed(name))?, name)?;
            }
        }
        if let Some(address) = text("ss58Address") {
            key.check(from_ss58(address).map_err(|_| malformed("ss58Address"))?, "ss58Address")?;
        }
        Ok(key)
    }

    fn check(&self, stated: Hotkey, part: &'static str) -> Result<(), KeyFileError> {
        let derived = self.pair.hotkey();
        if stated == derived { Ok(()) } else { Err(KeyFileError::Mismatch { derived: to_ss58(&derived), part }) }
    }

    /// The file's text, as the official tools write and read it.
    #[must_use]
    pub fn write(&self) -> String {
        let mut map = public_map(&self.pair.hotkey());
        map.insert("privateKey".to_owned(), json!(in_hex(&self.pair.expanded())));
        if let Some(phrase) = &self.phrase {
            map.insert("secretPhrase".to_owned(), json!(phrase));
        }
        if let Some(seed) = &self.seed {
            map.insert("secretSeed".to_owned(), json!(in_hex(seed)));
        }
        Value::Object(map).to_string()
    }
}

impl std::fmt::Debug for Key {
    /// Secrets do not belong into logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", to_ss58(&self.pair.hotkey()))
    }
}

/// The text of the file that anybody may read.
pub(super) fn write_public(account: &Hotkey) -> String {
    Value::Object(public_map(account)).to_string()
}

/// The account that a file names, secret or public.
///
/// # Errors
/// A file that names none.
pub(super) fn read_public(text: &str) -> Result<Hotkey, KeyFileError> {
    let form = |reason: String| KeyFileError::Form { reason };
    let map: Map<String, Value> = serde_json::from_str(text.trim()).map_err(|error| form(error.to_string()))?;
    let address = field(&map, "ss58Address").and_then(Value::as_str);
    let address = address.ok_or_else(|| form("no `ss58Address`".to_owned()))?;
    from_ss58(address.trim()).map_err(|error| form(error.to_string()))
}

fn public_map(account: &Hotkey) -> Map<String, Value> {
    let public = in_hex(&account.0);
    let map = json!({
        "accountId": public,
        "publicKey": public,
        "ss58Address": to_ss58(account),
        "cryptoType": SR25519,
    });
    match map {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// A field by its name; some old files have a space before it.
fn field<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    map.iter().find(|(key, value)| key.trim() == name && !value.is_null()).map(|(_, value)| value)
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if digits.len() != 2 * N || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&digits[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

fn in_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::from("0x"), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes every letter");
        text
    })
}
