//! The ledger in Subtensor's encoding: storage keys and values, events, and signed extrinsics, by a runtime's metadata.
//!
//! ```text
//!  metadata ─> Runtime ─┬─ schema      key and value of a storage entry, by its name
//!                       ├─ entries     a ledger ──> every storage entry that a client reads
//!                       ├─ events      what happened in a block ──> `System.Events`
//!                       ├─ extrinsic   bytes ──> who asks for what, until when; `Timestamp.set` ──> bytes
//!                       │  fields      a commitment's fields <──> `Data` of the Commitments pallet
//!                       └─ beacon      a beacon <──> `BeaconConfig` of the Drand pallet
//! ```
//!
//! No sockets here. Pallets, entries, calls, errors and fields are found by name in the metadata, never by number: the
//! numbers move from one runtime to the next, and two recorded runtimes prove in tests that nothing hangs on them.

use std::fmt;
use std::sync::Arc;

use subxt::Metadata;
use subxt::ext::codec::{Decode, Encode};

pub(super) mod beacon;
pub(super) mod entries;
pub(super) mod events;
pub(super) mod extrinsic;
pub(super) mod fields;
pub(super) mod schema;
#[cfg(test)]
mod tests;

/// The runtime that the development chain shows itself as, unless it is given others.
const RECORDED: &[u8] = include_bytes!("../metadata/subtensor-365-v16.scale");

/// Why something has no encoding by a runtime, or is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes are no metadata that we can use.
    #[error("the metadata cannot be used: {reason}")]
    Metadata {
        /// What is wrong with it.
        reason: String,
    },
    /// A storage entry, event or call has another shape than ours.
    #[error("`{name}` of this runtime is not as expected: {reason}")]
    Shape {
        /// Pallet and name.
        name: String,
        /// What differs.
        reason: String,
    },
}

impl WireError {
    fn shape(pallet: &str, name: &str, reason: impl fmt::Display) -> Self {
        Self::Shape { name: format!("{pallet}.{name}"), reason: reason.to_string() }
    }
}

/// A runtime as its metadata describes it.
#[derive(Clone)]
pub struct Runtime {
    /// As recorded, with the prefix that says which version of metadata it is.
    bytes: Arc<[u8]>,
    metadata: Arc<Metadata>,
    version: Version,
}

/// The head of SCALE's `RuntimeVersion`: names of specification and implementation, versions of authoring, specification
/// and implementation, interfaces, version of transactions.
type Head = (String, String, u32, u32, u32, Vec<([u8; 8], u32)>, u32);

#[derive(Clone)]
struct Version {
    head: Head,
    /// What follows it, the version of the state.
    rest: Vec<u8>,
}

impl Runtime {
    /// The recorded runtime: Subtensor, spec version 365.
    ///
    /// # Panics
    /// Never: the recording is part of the program, and a test reads it.
    #[must_use]
    pub fn recorded() -> Self {
        Self::decode(RECORDED.to_vec()).expect("the recorded metadata was read by a test")
    }

    /// The runtime that this metadata describes.
    ///
    /// # Errors
    /// Bytes that are no metadata, or one that does not say its version.
    pub fn decode(bytes: Vec<u8>) -> Result<Self, WireError> {
        let unusable = |reason: String| WireError::Metadata { reason };
        let metadata = Metadata::decode_from(&bytes).map_err(|error| unusable(error.to_string()))?;
        let system = metadata.pallet_by_name("System");
        let version = system.and_then(|system| system.constant_by_name("Version"));
        let version = version.ok_or_else(|| unusable("it has no `System.Version`".to_owned()))?.value();
        let rest = &mut &*version;
        let head = Head::decode(rest).map_err(|error| unusable(format!("`System.Version`: {error}")))?;
        let version = Version { head, rest: rest.to_vec() };
        Ok(Self { metadata: Arc::new(metadata), version, bytes: bytes.into() })
    }

    /// The same runtime under another number, as after an upgrade that changed nothing a client sees.
    #[must_use]
    pub fn with_spec_version(&self, spec_version: u32) -> Self {
        let mut renamed = self.clone();
        renamed.version.head.3 = spec_version;
        renamed
    }

    /// The number that every upgrade raises.
    #[must_use]
    pub fn spec_version(&self) -> u32 {
        self.version.head.3
    }

    pub(super) fn transaction_version(&self) -> u32 {
        self.version.head.6
    }

    pub(super) fn spec_name(&self) -> &str {
        &self.version.head.0
    }

    /// What `Core_version` answers.
    pub(super) fn version_bytes(&self) -> Vec<u8> {
        [self.version.head.encode(), self.version.rest.clone()].concat()
    }

    pub(super) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The metadata as recorded.
    pub(super) fn metadata_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Which version of metadata that is: the byte after the magic number.
    pub(super) fn metadata_version(&self) -> u32 {
        self.bytes.get(4).copied().map_or(0, u32::from)
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Runtime({} {})", self.spec_name(), self.spec_version())
    }
}
