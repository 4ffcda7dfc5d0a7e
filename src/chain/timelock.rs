//! Weights that nobody can read before their time, in the form that Subtensor reveals by itself (commit-reveal 4).
//!
//! A beacon (drand's quicknet on a live chain) signs the number of each round with its BLS key. Whoever encrypts to the
//! identity "round r" (Boneh-Franklin identity-based encryption, FullIdent, over BLS12-381) makes a ciphertext that the
//! beacon's signature of r, public from then on, decrypts. A copier of weights learns them too late.
//!
//! Pairing, hashing and cipher are the crate `timelock`'s. Its wire form is not the chain's, and its decoder reserves
//! whatever length the sender writes, so bytes are laid out and taken apart here: all numbers little-endian,
//!
//! ```text
//! U 96 │ 32 u64 │ V 32 │ 32 u64 │ W 32 │ n u64 │ body n │ 8 u64 │ "AES_GCM_"
//! body: m u64 │ AES-256-GCM ciphertext and tag m │ 12 u64 │ nonce 12
//! ```
//!
//! The golden test opens what the official client locked. Bytes after the last field are ignored, as on chain.

use ark_ec::PrimeGroup;
use ark_serialize::{CanonicalDeserialize, CanonicalSerialize};
use rand_core::{CryptoRng, RngCore};
use sha2::{Digest, Sha256};
use timelock::block_ciphers::{AESGCMBlockCipherProvider, AESOutput, BlockCipherProvider};
use timelock::engines::EngineBLS;
use timelock::engines::drand::TinyBLS381;
use timelock::ibe::fullident::{Ciphertext, IBESecret, Identity, Input};

use crate::terms::{BlockHash, Hotkey};

type Scalar = <TinyBLS381 as EngineBLS>::Scalar;
type Signature = <TinyBLS381 as EngineBLS>::SignatureGroup;
type PublicKey = <TinyBLS381 as EngineBLS>::PublicKeyGroup;

/// The longest commit that the chain takes.
pub const COMMIT_BYTES_MAX: usize = 5000;

/// Bytes of a beacon's signature.
pub const SIGNATURE_BYTES: usize = 48;

/// Bytes of a beacon's public key.
pub const PUBLIC_KEY_BYTES: usize = 96;

const SUITE: &[u8; 8] = b"AES_GCM_";
const NONCE_BYTES: usize = 12;

/// A round of the beacon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulse {
    /// Its number.
    pub round: u64,
    /// The beacon's signature of that number: opens what is locked until this round.
    pub signature: [u8; SIGNATURE_BYTES],
}

impl Pulse {
    /// What drand offers as random: the SHA-256 of the signature.
    #[must_use]
    pub fn randomness(&self) -> [u8; 32] {
        Sha256::digest(self.signature).into()
    }
}

/// A beacon: whose signatures, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beacon {
    /// Its BLS key, compressed.
    pub public_key: [u8; PUBLIC_KEY_BYTES],
    /// When round 1 comes out, milliseconds since 1970.
    pub genesis_ms: u64,
    /// Milliseconds between two rounds.
    pub period_ms: u64,
}

/// Why bytes are not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TimelockError {
    /// The beacon's key is no point of its curve.
    #[error("the beacon's public key is not a point of its curve")]
    PublicKey,
    /// The pulse's signature is no point of its curve.
    #[error("the pulse's signature is not a point of its curve")]
    Signature,
    /// The bytes are cut off, or a length in them is not what its part has.
    #[error("the commit is not laid out as a timelocked one")]
    Layout,
    /// It was locked until another round, or for another beacon, or was changed.
    #[error("the pulse does not open the commit")]
    Locked,
    /// What was locked is too long for the chain.
    #[error("a commit of {bytes} bytes is longer than the {COMMIT_BYTES_MAX} that the chain takes")]
    TooLong {
        /// How long it would be.
        bytes: usize,
    },
    /// What was locked is not weights.
    #[error("the opened commit does not hold weights")]
    Payload,
}

impl Beacon {
    /// The beacon that live chains follow: drand's quicknet.
    #[must_use]
    pub fn quicknet() -> Self {
        Self { public_key: QUICKNET_PUBLIC_KEY, genesis_ms: 1_692_803_367_000, period_ms: 3000 }
    }

    /// The round that came out last at this time; 0 before the first.
    #[must_use]
    pub fn round_at(&self, time_ms: u64) -> u64 {
        let since = time_ms.checked_sub(self.genesis_ms);
        since.map_or(0, |since| (since / self.period_ms.max(1)).saturating_add(1))
    }

    /// The round until which to lock what the chain reveals `blocks` from now, the official client's: the one before
    /// the last that is out by then, so that the pulse is on chain when it is needed.
    #[must_use]
    pub fn reveal_round(&self, now_ms: u64, blocks: u64, block_time_ms: u64) -> u64 {
        let then = now_ms.saturating_add(blocks.saturating_mul(block_time_ms));
        self.round_at(then).saturating_sub(1).max(1)
    }

    /// Whether the pulse is this beacon's.
    #[must_use]
    pub fn made(&self, pulse: &Pulse) -> bool {
        let (Ok(key), Ok(signature)) = (self.key(), signature(pulse)) else { return false };
        let message = identity(pulse.round).public::<TinyBLS381>();
        TinyBLS381::pairing(PublicKey::generator(), signature) == TinyBLS381::pairing(key, message)
    }

    /// Encrypts until a round comes out.
    ///
    /// # Errors
    /// A key that is no beacon's, or a message that the chain would not take.
    pub fn lock(
        &self,
        round: u64,
        message: &[u8],
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<Vec<u8>, TimelockError> {
        let mut key = [0; 32];
        rng.fill_bytes(&mut key);
        let input = Input::new(key).expect("an array of 32 is of 32 bytes");
        let header: Ciphertext<TinyBLS381> = identity(round).encrypt(&input, self.key()?, &mut *rng);
        let sealed = AESGCMBlockCipherProvider::encrypt(message, key, &mut *rng);
        // The cipher's own limit is gigabytes away; a message near it is refused for its length below.
        let sealed = sealed.map_err(|_| TimelockError::TooLong { bytes: message.len() })?;
        let mut bytes = Vec::with_capacity(message.len() + 256);
        header.u.serialize_compressed(&mut bytes).expect("a vector takes every byte");
        for part in [&header.v[..], &header.w] {
            put(&mut bytes, part);
        }
        let mut body = Vec::with_capacity(message.len() + 64);
        put(&mut body, &sealed.ciphertext);
        put(&mut body, &sealed.nonce);
        put(&mut bytes, &body);
        put(&mut bytes, SUITE);
        if bytes.len() > COMMIT_BYTES_MAX { Err(TimelockError::TooLong { bytes: bytes.len() }) } else { Ok(bytes) }
    }

    fn key(&self) -> Result<PublicKey, TimelockError> {
        PublicKey::deserialize_compressed(&self.public_key[..]).map_err(|_| TimelockError::PublicKey)
    }
}

/// Decrypts what was locked until this pulse.
///
/// # Errors
/// Bytes that are no timelocked commit, or not until this round.
pub fn open(bytes: &[u8], pulse: &Pulse) -> Result<Vec<u8>, TimelockError> {
    let mut rest = bytes;
    let u = PublicKey::deserialize_compressed(take(&mut rest, PUBLIC_KEY_BYTES)?).map_err(|_| TimelockError::Layout)?;
    let v = take_array(&mut rest)?;
    let w = take_array(&mut rest)?;
    let mut body = take_prefixed(&mut rest)?;
    let ciphertext = take_prefixed(&mut body)?.to_vec();
    let nonce: [u8; NONCE_BYTES] = take_array(&mut body)?;
    let suite: [u8; SUITE.len()] = take_array(&mut rest)?;
    if suite != *SUITE {
        return Err(TimelockError::Layout);
    }
    let secret = IBESecret::<TinyBLS381>(signature(pulse)?);
    let key = secret.decrypt(&Ciphertext { u, v, w }).map_err(|_| TimelockError::Locked)?;
    let sealed = AESOutput { ciphertext, nonce: nonce.to_vec() };
    AESGCMBlockCipherProvider::decrypt(sealed, key).map_err(|_| TimelockError::Locked)
}

fn signature(pulse: &Pulse) -> Result<Signature, TimelockError> {
    Signature::deserialize_compressed(&pulse.signature[..]).map_err(|_| TimelockError::Signature)
}

/// Who the beacon's signature of a round belongs to, for the encryption: SHA-256 of the number, big-endian, as drand
/// signs it.
fn identity(round: u64) -> Identity {
    Identity::new(b"", &Sha256::digest(round.to_be_bytes()))
}

fn put(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
    bytes.extend_from_slice(part);
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Result<&'a [u8], TimelockError> {
    let (part, after) = rest.split_at_checked(n).ok_or(TimelockError::Layout)?;
    *rest = after;
    Ok(part)
}

fn take_prefixed<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], TimelockError> {
    let n = take(rest, 8)?.try_into().map(u64::from_le_bytes).map_err(|_| TimelockError::Layout)?;
    take(rest, usize::try_from(n).map_err(|_| TimelockError::Layout)?)
}

fn take_array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], TimelockError> {
    take_prefixed(rest)?.try_into().map_err(|_| TimelockError::Layout)
}

/// Milliseconds between two rounds of a development chain's beacon: less than its fastest blocks, so that weights can be
/// locked until a block however short its epochs are.
pub const LOCAL_PERIOD_MS: u64 = 10;

/// A beacon whose secret everybody knows, for a chain of one's own: it keeps time, not secrets from those who look.
#[derive(Debug, Clone)]
pub struct LocalBeacon {
    secret: Scalar,
    beacon: Beacon,
}

impl LocalBeacon {
    /// The beacon that a development chain follows: its rounds are counted from 1970, [`LOCAL_PERIOD_MS`] apart.
    #[must_use]
    pub fn of_chain(genesis: &BlockHash) -> Self {
        Self::new(genesis, 0, LOCAL_PERIOD_MS)
    }

    /// The beacon of the chain with this genesis, whose round 1 comes out at `genesis_ms`.
    ///
    /// # Panics
    /// Never: a number below 2²⁵⁴ is a scalar, and a product of points is one.
    #[must_use]
    pub fn new(genesis: &BlockHash, genesis_ms: u64, period_ms: u64) -> Self {
        let mut secret = blake3::derive_key("convoke 2026-11 development chain beacon v1", &genesis.0);
        // Little-endian; the curve's order is above 2²⁵⁴, so no number needs reducing.
        secret[31] &= 0x3f;
        let secret = Scalar::deserialize_compressed(&secret[..]).expect("below the order");
        let mut public_key = [0; PUBLIC_KEY_BYTES];
        let point = PublicKey::generator() * secret;
        point.serialize_compressed(&mut public_key[..]).expect("a compressed point has 96 bytes");
        Self { secret, beacon: Beacon { public_key, genesis_ms, period_ms } }
    }

    /// What others know of it.
    #[must_use]
    pub fn beacon(&self) -> &Beacon {
        &self.beacon
    }

    /// The pulse of a round, out or not.
    ///
    /// # Panics
    /// Never: a signature has its length.
    #[must_use]
    pub fn pulse(&self, round: u64) -> Pulse {
        let mut signature = [0; SIGNATURE_BYTES];
        let point = identity(round).extract::<TinyBLS381>(self.secret).0;
        point.serialize_compressed(&mut signature[..]).expect("a compressed point has 48 bytes");
        Pulse { round, signature }
    }
}

/// What a validator locks: weights, and whose they are, so that nobody commits another's ciphertext as his own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockedWeights {
    /// The hotkey that commits them.
    pub hotkey: Hotkey,
    /// Uids.
    pub uids: Vec<u16>,
    /// One for each, relative.
    pub values: Vec<u16>,
    /// The version of the rules they were made by.
    pub version_key: u64,
}

impl LockedWeights {
    /// In SCALE, as the chain reads it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 * self.uids.len() + 64);
        put_compact(&mut bytes, self.hotkey.0.len());
        bytes.extend_from_slice(&self.hotkey.0);
        put_numbers(&mut bytes, &self.uids);
        put_numbers(&mut bytes, &self.values);
        bytes.extend_from_slice(&self.version_key.to_le_bytes());
        bytes
    }

    /// Reads it; bytes after it are ignored, as on chain. The oldest form, without a hotkey, is refused: the chain still
    /// opens it, but no client has made it for years.
    ///
    /// # Errors
    /// [`TimelockError::Payload`].
    pub fn decode(bytes: &[u8]) -> Result<Self, TimelockError> {
        let mut rest = bytes;
        let payload = (|| {
            let hotkey = take_compact(&mut rest).and_then(|n| take(&mut rest, n))?;
            let hotkey = Hotkey(hotkey.try_into().map_err(|_| TimelockError::Payload)?);
            let (uids, values) = (take_numbers(&mut rest)?, take_numbers(&mut rest)?);
            let version_key = take(&mut rest, 8)?.try_into().map_err(|_| TimelockError::Payload)?;
            Ok(Self { hotkey, uids, values, version_key: u64::from_le_bytes(version_key) })
        })();
        payload.map_err(|_: TimelockError| TimelockError::Payload)
    }
}

/// SCALE's compact length: two low bits say how many bytes it takes.
pub(super) fn put_compact(bytes: &mut Vec<u8>, n: usize) {
    let n = u32::try_from(n).unwrap_or(u32::MAX >> 2);
    match n {
        0..=0x3f => bytes.push(n.to_le_bytes()[0] << 2),
        0x40..=0x3fff => bytes.extend_from_slice(&((n << 2) | 1).to_le_bytes()[..2]),
        _ => bytes.extend_from_slice(&((n << 2) | 2).to_le_bytes()),
    }
}

pub(super) fn put_numbers(bytes: &mut Vec<u8>, numbers: &[u16]) {
    put_compact(bytes, numbers.len());
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

fn take_compact(rest: &mut &[u8]) -> Result<usize, TimelockError> {
    let first = *rest.first().ok_or(TimelockError::Payload)?;
    let n_bytes = match first & 3 {
        0 => 1,
        1 => 2,
        2 => 4,
        // Gigabytes: longer than any commit.
        _ => return Err(TimelockError::Payload),
    };
    let mut number = [0; 4];
    number[..n_bytes].copy_from_slice(take(rest, n_bytes)?);
    usize::try_from(u32::from_le_bytes(number) >> 2).map_err(|_| TimelockError::Payload)
}

fn take_numbers(rest: &mut &[u8]) -> Result<Vec<u16>, TimelockError> {
    let n = take_compact(rest)?;
    let bytes = take(rest, n.checked_mul(2).ok_or(TimelockError::Payload)?)?;
    Ok(bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect())
}

const QUICKNET_PUBLIC_KEY: [u8; PUBLIC_KEY_BYTES] = [
    0x83, 0xcf, 0x0f, 0x28, 0x96, 0xad, 0xee, 0x7e, 0xb8, 0xb5, 0xf0, 0x1f, 0xca, 0xd3, 0x91, 0x22, 0x12, 0xc4, 0x37,
    0xe0, 0x07, 0x3e, 0x91, 0x1f, 0xb9, 0x00, 0x22, 0xd3, 0xe7, 0x60, 0x18, 0x3c, 0x8c, 0x4b, 0x45, 0x0b, 0x6a, 0x0a,
    0x6c, 0x3a, 0xc6, 0xa5, 0x77, 0x6a, 0x2d, 0x10, 0x64, 0x51, 0x0d, 0x1f, 0xec, 0x75, 0x8c, 0x92, 0x1c, 0xc2, 0x2b,
    0x0e, 0x17, 0xe6, 0x3a, 0xaf, 0x4b, 0xcb, 0x5e, 0xd6, 0x63, 0x04, 0xde, 0x9c, 0xf8, 0x09, 0xbd, 0x27, 0x4c, 0xa7,
    0x3b, 0xab, 0x4a, 0xf5, 0xa6, 0xe9, 0xc7, 0x6a, 0x4b, 0xc0, 0x9e, 0x76, 0xea, 0xe8, 0x99, 0x1e, 0xf5, 0xec, 0xe4,
    0x5a,
];

/// Randomness drawn from a seed, the same every time: as good as the seed is secret.
pub struct SeededRng(blake3::OutputReader);

impl SeededRng {
    /// The randomness of this seed.
    #[must_use]
    pub fn new(seed: &[u8]) -> Self {
        Self(blake3::Hasher::new_derive_key("convoke 2026-11 seeded randomness v1").update(seed).finalize_xof())
    }
}

impl RngCore for SeededRng {
    fn next_u32(&mut self) -> u32 {
        rand_core::impls::next_u32_via_fill(self)
    }

    fn next_u64(&mut self) -> u64 {
        rand_core::impls::next_u64_via_fill(self)
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        self.0.fill(dest);
    }

    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand_core::Error> {
        self.0.fill(dest);
        Ok(())
    }
}

impl CryptoRng for SeededRng {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Drand's quicknet at round 1000.
    const QUICKNET_1000: &str =
        "b44679b9a59af2ec876b1a6b1ad52ea9b1615fc3982b19576350f93447cb1125e342b73a8dd2bacbe47e4b6b63ed5e39";
    /// These weights, locked until that round by the official client (`bittensor-drand`).
    const LOCKED: &str = "882d43ca950365b8df32ac55aec2dea3876cd714436059dded9321b4903528ed2a59bf43264e7936d15e5160a77fdb4911f0\
         d6edc0dc532b087a73201eea1aec440f5934041db7874969267fa24f421810849f7ce623b5d772d007831f919bae20000000\
         000000004e7eaa3340a5d967507cbdb4ee41aa5fcca4a39105fd369b7574942d23ebf1302000000000000000af0309934027\
         9ca6a7f41864ee966bbcb5691ed5db30e944348e9128692d9d3e630000000000000047000000000000005d4122fca4738991\
         ce8ac62b38507d738b206e3a18f3838f6bd1bbfab405e95ab4dfccedf1a09b38667d22e5afeeca7d85ee6b2d8eb9bc250149\
         56d99ceb00ce779e221dac654b0c00000000000000df5ccc050ac5c5cd9ed6a37108000000000000004145535f47434d5f";

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    fn pulse_1000() -> Pulse {
        Pulse { round: 1000, signature: bytes(QUICKNET_1000).try_into().unwrap() }
    }

    fn local() -> LocalBeacon {
        LocalBeacon::new(&BlockHash([7; 32]), 10_000, 500)
    }

    fn weights(n: u16) -> LockedWeights {
        let values = (0..n).map(|uid| uid.wrapping_mul(977)).collect();
        LockedWeights { hotkey: Hotkey([9; 32]), uids: (0..n).collect(), values, version_key: 5 }
    }

    #[test]
    fn what_the_official_client_locked_is_opened_by_quicknets_pulse() {
        let plain = open(&bytes(LOCKED), &pulse_1000()).unwrap();
        let hotkey = Hotkey(std::array::from_fn(|i| i as u8));
        let expected = LockedWeights { hotkey, uids: vec![0, 3, 255], values: vec![65_535, 7, 300], version_key: 9 };
        assert_eq!(LockedWeights::decode(&plain).unwrap(), expected);
        assert_eq!(expected.encode(), plain);
        assert!(Beacon::quicknet().made(&pulse_1000()));
        assert!(!Beacon::quicknet().made(&Pulse { round: 1001, ..pulse_1000() }));
        assert!(!local().beacon().made(&pulse_1000()));
    }

    #[test]
    fn what_is_locked_for_quicknet_is_opened_by_its_pulse_and_no_other() {
        let locked = Beacon::quicknet().lock(1000, b"weights", &mut SeededRng::new(&[1])).unwrap();
        assert_eq!(open(&locked, &pulse_1000()).unwrap(), b"weights");
        assert_eq!(open(&locked, &local().pulse(1000)), Err(TimelockError::Locked));
        let foreign = local().beacon().lock(1000, b"weights", &mut SeededRng::new(&[1])).unwrap();
        assert_eq!(open(&foreign, &pulse_1000()), Err(TimelockError::Locked));
    }

    #[test]
    fn a_full_subnets_weights_have_the_sizes_that_the_chain_sees() {
        let plain = weights(256).encode();
        let locked = local().beacon().lock(3, &plain, &mut SeededRng::new(&[1])).unwrap();
        assert_eq!((plain.len(), locked.len()), (1069, 1313));
        let mut longer = locked.clone();
        longer.extend_from_slice(b"ignored");
        assert_eq!(open(&longer, &local().pulse(3)).unwrap(), plain);
        let refused = local().beacon().lock(3, &[0; 4800], &mut SeededRng::new(&[1]));
        assert_eq!(refused, Err(TimelockError::TooLong { bytes: 5044 }));
    }

    #[test]
    fn a_length_that_lies_reserves_nothing() {
        let locked = local().beacon().lock(3, b"weights", &mut SeededRng::new(&[1])).unwrap();
        // Where the lengths of V, W, the body, its ciphertext, its nonce and the suite stand.
        for at in [96, 136, 176, 184, 215, 235] {
            for length in [u64::MAX, 1 << 60, 31, 0] {
                let mut lying = locked.clone();
                lying[at..at + 8].copy_from_slice(&length.to_le_bytes());
                assert!(open(&lying, &local().pulse(3)).is_err(), "length {length} at {at}");
            }
        }
    }

    #[test]
    fn a_changed_or_cut_commit_is_never_opened() {
        let locked = local().beacon().lock(3, b"weights", &mut SeededRng::new(&[1])).unwrap();
        for at in 0..locked.len() {
            assert_eq!(open(&locked[..at], &local().pulse(3)), Err(TimelockError::Layout), "cut at {at}");
        }
        for at in (0..locked.len()).step_by(5) {
            let mut changed = locked.clone();
            changed[at] ^= 4;
            assert!(open(&changed, &local().pulse(3)).is_err(), "byte {at}");
        }
        let nonsense = Pulse { round: 3, signature: [0xff; SIGNATURE_BYTES] };
        assert_eq!(open(&locked, &nonsense), Err(TimelockError::Signature));
        let broken = Beacon { public_key: [0xff; PUBLIC_KEY_BYTES], ..*local().beacon() };
        assert_eq!(broken.lock(3, b"weights", &mut SeededRng::new(&[1])), Err(TimelockError::PublicKey));
    }

    #[test]
    fn rounds_follow_the_clock() {
        let beacon = local().beacon().to_owned();
        let rounds: Vec<_> = [0, 9_999, 10_000, 10_499, 10_500, 20_000].map(|ms| beacon.round_at(ms)).into();
        assert_eq!(rounds, [0, 0, 1, 1, 2, 21]);
        // The official client's formula: floor((now + blocks · block time − genesis) / period).
        let quicknet = Beacon::quicknet();
        let now_ms = 1_764_000_000_000;
        assert_eq!(quicknet.reveal_round(now_ms, 363, 12_000), (now_ms / 1000 + 363 * 12 - 1_692_803_367) / 3);
        assert_eq!(quicknet.reveal_round(0, 0, 12_000), 1);
        assert!(beacon.made(&local().pulse(21)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn locked_weights_survive_their_encoding_and_random_bytes_are_refused_or_read(
            n in 0_u16..300, junk in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            prop_assert_eq!(LockedWeights::decode(&weights(n).encode()), Ok(weights(n)));
            if let Ok(read) = LockedWeights::decode(&junk) {
                prop_assert!(LockedWeights::decode(&read.encode()).is_ok());
            }
        }
    }
}
