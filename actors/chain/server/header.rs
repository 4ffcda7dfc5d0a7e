//! A block as a Substrate client names it.
//!
//! The hash is what every client computes from a header: blake2-256 of its SCALE encoding. The state root is the ledger's
//! own hash of the block, which covers its parent, time, calls and state; so whoever agrees on a block's hash agrees on
//! everything, although nothing here is a trie and no storage proof can be given.

use convoke::terms::BlockHash;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use subxt::ext::codec::{Compact, Encode};

use crate::chain::wire::extrinsic::blake2_256;

/// A block's header; the digest is always empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) number: u64,
    pub(super) parent: BlockHash,
    pub(super) state_root: BlockHash,
    pub(super) extrinsics_root: BlockHash,
}

impl Header {
    pub(super) fn hash(&self) -> BlockHash {
        let Self { number, parent, state_root, extrinsics_root } = self;
        let no_logs = Compact(0_u32);
        BlockHash(blake2_256(&(parent.0, Compact(*number), state_root.0, extrinsics_root.0, no_logs).encode()))
    }

    /// As the JSON-RPC methods give it.
    pub(super) fn json(&self) -> Value {
        json!({
            "parentHash": hex(&self.parent.0),
            "number": format!("{:#x}", self.number),
            "stateRoot": hex(&self.state_root.0),
            "extrinsicsRoot": hex(&self.extrinsics_root.0),
            "digest": { "logs": [] },
        })
    }
}

/// A block, with what it takes to read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sealed {
    pub(super) header: Header,
    pub(super) hash: BlockHash,
    pub(super) timestamp_ms: u64,
    /// The runtime by which its state is encoded.
    pub(super) spec_version: u32,
    pub(super) extrinsics: Vec<Vec<u8>>,
}

/// The root over a block's extrinsics: a hash over their hashes.
pub(super) fn extrinsics_root(extrinsics: &[Vec<u8>]) -> BlockHash {
    let hashes: Vec<u8> = extrinsics.iter().flat_map(|extrinsic| blake2_256(extrinsic)).collect();
    BlockHash(blake2_256(&hashes))
}

/// Bytes as the JSON-RPC methods write them.
pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("0x");
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// The bytes of such a text.
pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let (pairs, rest) = text.strip_prefix("0x")?.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| Some(digit(pair[0])? << 4 | digit(pair[1])?);
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

#[cfg(test)]
mod tests {
    use subxt::config::Hasher;
    use subxt::config::substrate::{BlakeTwo256, H256, SubstrateHeader};

    use super::*;

    #[test]
    fn a_client_computes_the_same_hash_from_the_header_it_is_given() {
        for number in [0, 1, 63, 64, 1 << 14, 1 << 30, u64::MAX] {
            let [parent, state_root, extrinsics_root] = [1, 2, 3].map(|byte| BlockHash([byte; 32]));
            let header = Header { number, parent, state_root, extrinsics_root };
            let read: SubstrateHeader<H256> = serde_json::from_value(header.json()).unwrap();
            assert_eq!(BlakeTwo256.hash(&read.encode()).0, header.hash().0, "{number}");
        }
    }

    #[test]
    fn bytes_survive_their_text_and_other_text_is_refused() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(unhex(&hex(&bytes)), Some(bytes));
        assert_eq!((unhex("0x"), hex(&[])), (Some(vec![]), "0x".to_owned()));
        for text in ["", "00", "0x0", "0xg0", "0x+1", "0xé"] {
            assert_eq!(unhex(text), None, "{text}");
        }
    }
}
