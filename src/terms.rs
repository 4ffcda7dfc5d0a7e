//! The protocol's nouns as types, so that a block is never taken for a round, nor a stake for a weight.
//!
//! One word per thing, one thing per word: the glossary of the whole project. Every other module imports these.
//!
//! | word | means |
//! |---|---|
//! | round | one cycle: inner steps → seal → reveal → gather → outer step; `round = block / blocks_per_round` |
//! | window | a block interval in which something counts |
//! | inner step | one AdamW step on one batch |
//! | pseudo-gradient Δ | θ_start − θ_end of a round's inner steps; the outer step subtracts it |
//! | error feedback e | what was not sent, quantisation error included |
//! | payload | the compressed pseudo-gradient Δ̂ as bytes |
//! | transport coding | a payload as it travels and is stored |
//! | manifest | the ordered list of payloads that one round applies |
//! | outer step | θ ← θ − α · aggregate(Δ̂₁ … Δ̂_R) |
//! | digest | BLAKE3 over θ in canonical order |
//! | score → rating → weight | one evaluation → running OpenSkill value → what goes on chain |

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A training round; round t covers blocks `[t·B, (t+1)·B)` with `B = blocks_per_round`.
    Round(u64)
}
number! {
    /// A block number of the chain.
    Block(u64)
}
number! {
    /// A slot on the subnet, `0..=255` in practice; valid only at the block where it was looked up.
    Uid(u16)
}
number! {
    /// Stake behind a hotkey, in rao (1e-9 of a token).
    Stake(u64)
}
number! {
    /// A weight as it goes on chain, relative: the chain scales the largest to 65535.
    Weight(u16)
}

impl Round {
    /// The round after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What [`FromStr`] of a 32-byte term reports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not 64 hexadecimal digits")]
pub struct NotHex {
    /// What was given.
    pub text: String,
}

macro_rules! bytes32 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The first 8 hexadecimal digits, for people.
            #[must_use]
            pub fn short(&self) -> String {
                hex(&self.0[..4])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = NotHex;

            fn from_str(text: &str) -> Result<Self, NotHex> {
                unhex(text).map(Self).ok_or_else(|| NotHex { text: text.to_owned() })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; 32]>::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

bytes32! {
    /// An sr25519 public key: who a node is on chain.
    Hotkey
}
bytes32! {
    /// An ed25519 public key: who a node is on the peer-to-peer network.
    EndpointId
}
bytes32! {
    /// The hash of a block.
    BlockHash
}
bytes32! {
    /// BLAKE3 over θ in canonical order (see `digest`).
    Digest
}
bytes32! {
    /// BLAKE3 of a payload's canonical bytes.
    PayloadHash
}
bytes32! {
    /// BLAKE3 of a payload's transport coding; also its address on the network.
    TransportHash
}
bytes32! {
    /// BLAKE3 of a manifest's bytes; also its address on the network.
    ManifestHash
}
bytes32! {
    /// BLAKE3 of a tensor layout: names, shapes, order.
    LayoutHash
}
bytes32! {
    /// BLAKE3 of everything all nodes of a run must share: the run spec and the data set.
    RunId
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digits = [char::from(pair[0]).to_digit(16)?, char::from(pair[1]).to_digit(16)?];
        *byte = u8::try_from(digits[0] * 16 + digits[1]).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_survives_its_text() {
        let digest = Digest(*blake3::hash(b"theta").as_bytes());
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!(serde_json::from_str::<Digest>(&serde_json::to_string(&digest).unwrap()).unwrap(), digest);
    }

    #[test]
    fn a_digest_of_the_wrong_length_or_alphabet_is_refused() {
        for text in ["", "00", &"g".repeat(64), &"é".repeat(32), &"+1".repeat(32)] {
            assert_eq!(text.parse::<Digest>(), Err(NotHex { text: text.to_owned() }), "{text}");
        }
    }
}
