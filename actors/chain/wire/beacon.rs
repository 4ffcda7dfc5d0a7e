//! The beacon by which a chain opens locked weights, as the Drand pallet has it.
//!
//! The pallet counts seconds, which a development chain's blocks may be shorter than. Its beacon has a name of its own, and
//! under that name the same two numbers are milliseconds; every other beacon's are seconds, as drand's are.

use convoke::chain::timelock::{Beacon, Pulse};
use subxt::ext::scale_decode::DecodeAsType;
use subxt::ext::scale_value::Value;

/// The name of a development chain's beacon, whose times are in milliseconds.
const DEVELOPMENT: &[u8] = b"convoke-development";
/// How it signs: as drand's quicknet does.
const SCHEME: &[u8] = b"bls-unchained-g1-rfc9380";

/// What is read of the pallet's `BeaconConfiguration`.
#[derive(DecodeAsType)]
#[decode_as_type(crate_path = "subxt::ext::scale_decode")]
pub(in crate::chain) struct Config {
    public_key: Vec<u8>,
    period: u32,
    genesis_time: u32,
    metadata: Naming,
}

#[derive(DecodeAsType)]
#[decode_as_type(crate_path = "subxt::ext::scale_decode")]
struct Naming {
    beacon_id: Vec<u8>,
}

impl Config {
    /// The beacon, if its key has the length of one and its rounds take time.
    pub(in crate::chain) fn into_beacon(self) -> Option<Beacon> {
        let unit_ms = if self.metadata.beacon_id == DEVELOPMENT { 1 } else { 1000 };
        let ms = |number: u32| u64::from(number) * unit_ms;
        let public_key = self.public_key.try_into().ok()?;
        let beacon = Beacon { public_key, genesis_ms: ms(self.genesis_time), period_ms: ms(self.period) };
        (beacon.period_ms > 0).then_some(beacon)
    }
}

/// A development chain's beacon as the pallet keeps it. Its times must fit the pallet's numbers.
pub(in crate::chain) fn to_config(beacon: &Beacon) -> Value {
    let ms = |number: u64| Value::u128(u32::try_from(number).unwrap_or(u32::MAX).into());
    Value::named_composite([
        ("public_key", Value::from_bytes(beacon.public_key)),
        ("period", ms(beacon.period_ms)),
        ("genesis_time", ms(beacon.genesis_ms)),
        ("hash", Value::from_bytes(b"")),
        ("group_hash", Value::from_bytes(b"")),
        ("scheme_id", Value::from_bytes(SCHEME)),
        ("metadata", Value::named_composite([("beacon_id", Value::from_bytes(DEVELOPMENT))])),
    ])
}

/// A pulse as the pallet keeps it.
pub(in crate::chain) fn to_pulse(pulse: &Pulse) -> Value {
    Value::named_composite([
        ("round", Value::u128(pulse.round.into())),
        ("randomness", Value::from_bytes(pulse.randomness())),
        ("signature", Value::from_bytes(pulse.signature)),
    ])
}
