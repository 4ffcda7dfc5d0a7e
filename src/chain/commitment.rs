//! What Convoke writes into a hotkey's commitment: identity, seal, vote; one field each, always three fields.
//!
//! A commitment is overwritten as a whole, so every write carries all that is to stay: the identity, the latest seal, a
//! validator's latest manifest or endorsement. An absent part is an empty field. Numbers are little-endian, lengths
//! fixed, every field begins with its version: one content has one encoding (C-2), and a parser reads at most 127 bytes
//! of each (C-3), which is below the 128 that a field of the chain's commitments is sure to hold.
//!
//! An identity also says where its endpoint can be reached, so that members of a run need nothing but the chain to find each
//! other: no relay, no directory. Whoever does not want its address on chain leaves it out, and is then reached by those to whom
//! it was told, or not at all.
//!
//! A seal names a payload twice: by the hash of its canonical bytes, which is what it is, and by hash and size of its transport
//! coding, which is what is fetched. Room for both is made by cutting the holding proof to 128 bits. That is enough: a proof is
//! judged against one expected value and only once, so whoever guesses is right once in 2^128, and a collision between two
//! proofs is of no use to anybody.
//!
//! The signature on chain proves that the hotkey names the endpoint; the signature inside the identity proves that the
//! endpoint names the hotkey, without which anybody could claim another node's endpoint. Genesis and netuid in it
//! stop its use on another chain, `seq` its use after a rotation.
//!
//! `seq` grows with every start of a node, which makes it a fence: of two processes that use one hotkey, the one whose identity
//! is lower ([`Identity::yields_to`]) has to stop.

use core::net::{Ipv6Addr, SocketAddr};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::terms::{BlockHash, Digest, EndpointId, Hotkey, ManifestHash, PayloadHash, Round, TransportHash};

/// The version that a vote begins with.
pub const VERSION: u8 = 1;
/// The version that an identity begins with.
pub const IDENTITY_VERSION: u8 = 2;
/// The version that a seal begins with.
pub const SEAL_VERSION: u8 = 2;

/// Bytes of an identity field: version, flags, endpoint, seq, address, port, proof.
pub const IDENTITY_BYTES: usize = 120;
/// Bytes of a seal field: version, round, payload, transport, its size, base, holding.
pub const SEAL_BYTES: usize = 127;
/// Bytes of a vote field: version, round, manifest.
pub const VOTE_BYTES: usize = 41;

/// Bytes of a transport coding's size: 256 TB.
const SIZE_BYTES: usize = 6;

/// The first 16 bytes of a holding proof (see `digest`).
pub type Holding = [u8; 16];

const IDENTITY_DOMAIN: &[u8] = b"convoke 2026-11 endpoint identity v2";

/// The subnet that an identity is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The chain.
    pub genesis: BlockHash,
    /// The subnet on it.
    pub netuid: u16,
}

/// Which endpoint is this hotkey's, with the endpoint's consent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The node's ed25519 key on the peer-to-peer network.
    pub endpoint: EndpointId,
    /// Grows with every start of the node; a lower one than was seen is a replay, or a process that has to stop.
    pub seq: u32,
    /// Where the endpoint listens for UDP, if it is to be found.
    pub address: Option<SocketAddr>,
    /// The endpoint's signature over chain, subnet, hotkey, `seq` and address.
    pub proof: [u8; 64],
}

/// A miner's promise of the payload it will reveal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seal {
    /// The round it was made in.
    pub round: Round,
    /// The payload's hash.
    pub payload: PayloadHash,
    /// The hash of its transport coding: what to fetch.
    pub transport: TransportHash,
    /// The coding's size, below 2^48, so that nobody begins to fetch more than he will accept.
    pub transport_bytes: u64,
    /// The digest of the θ that the pseudo-gradient was taken against.
    pub base: Digest,
    /// Of the keyed digest over sampled chunks of that θ: proof of holding it.
    pub holding: Holding,
}

/// A validator's word for a round's manifest: its own or another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ManifestVote {
    /// The round whose payloads the manifest lists.
    pub round: Round,
    /// The manifest.
    pub manifest: ManifestHash,
}

/// A hotkey's commitment, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Commitment {
    /// Who the node is on the network.
    pub identity: Option<Identity>,
    /// What it sealed last.
    pub seal: Option<Seal>,
    /// What it voted for last.
    pub manifest: Option<ManifestVote>,
}

/// Why the fields of a commitment are not one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CommitmentError {
    /// Not three fields.
    #[error("{n_fields} fields, not 3")]
    FieldCount {
        /// How many.
        n_fields: usize,
    },
    /// A field of another length than its part has.
    #[error("field {field} has {bytes} bytes, not 0 or {expected}")]
    FieldLength {
        /// Which, from 0.
        field: usize,
        /// How long.
        bytes: usize,
        /// How long it must be if it is there.
        expected: usize,
    },
    /// A version that this node does not know.
    #[error("field {field} has version {version}, which this node does not read")]
    Version {
        /// Which, from 0.
        field: usize,
        /// What it begins with.
        version: u8,
    },
    /// An address without a port.
    #[error("the identity's address has no port")]
    Address,
    /// The identity's spare flags are set.
    #[error("the identity's flags are {flags:#04x}, not 0")]
    Flags {
        /// What they are.
        flags: u8,
    },
    /// The proof is not the endpoint's for this hotkey, here.
    #[error("the identity's proof is not signed by its endpoint for this hotkey on this subnet")]
    Proof,
}

impl Identity {
    /// The identity that the endpoint with this secret, which listens at `address`, gives to this hotkey.
    #[must_use]
    pub fn prove(
        endpoint_secret: &[u8; 32],
        place: &Place,
        hotkey: &Hotkey,
        seq: u32,
        address: Option<SocketAddr>,
    ) -> Self {
        let key = SigningKey::from_bytes(endpoint_secret);
        let endpoint = EndpointId(key.verifying_key().to_bytes());
        // What is signed is what is written, so both know only addresses that have an encoding.
        let address = address.and_then(|address| read_address(address_bytes(Some(address))).ok().flatten());
        let proof = key.sign(&identity_message(place, hotkey, seq, address)).to_bytes();
        Self { endpoint, seq, address, proof }
    }

    /// Whether the endpoint consents to be this hotkey's here.
    ///
    /// # Errors
    /// [`CommitmentError::Proof`]: treat the hotkey as one without an endpoint.
    pub fn verify(&self, place: &Place, hotkey: &Hotkey) -> Result<(), CommitmentError> {
        let key = VerifyingKey::from_bytes(&self.endpoint.0).map_err(|_| CommitmentError::Proof)?;
        let signature = Signature::from_bytes(&self.proof);
        let message = identity_message(place, hotkey, self.seq, self.address);
        // Strict: a key of small order would sign for every hotkey.
        key.verify_strict(&message, &signature).map_err(|_| CommitmentError::Proof)
    }

    /// Whether a process with this identity has to stop for one with the other, of the same hotkey: the later start goes on, and
    /// of two that began as one, by chance, the same one in everybody's eyes.
    #[must_use]
    pub fn yields_to(&self, other: &Self) -> bool {
        let rank = |identity: &Self| (identity.seq, address_bytes(identity.address), identity.endpoint.0);
        rank(other) > rank(self)
    }
}

fn identity_message(place: &Place, hotkey: &Hotkey, seq: u32, address: Option<SocketAddr>) -> Vec<u8> {
    let (netuid, seq, address) = (place.netuid.to_le_bytes(), seq.to_le_bytes(), address_bytes(address));
    [IDENTITY_DOMAIN, &place.genesis.0, &netuid, &hotkey.0, &seq, &address].concat()
}

/// 16 bytes of IPv6, in which IPv4 is mapped, and the port; all zero: none.
fn address_bytes(address: Option<SocketAddr>) -> [u8; 18] {
    let mut bytes = [0; 18];
    if let Some(address) = address.filter(|address| address.port() != 0) {
        let ip = match address {
            SocketAddr::V4(address) => address.ip().to_ipv6_mapped(),
            SocketAddr::V6(address) => *address.ip(),
        };
        bytes[..16].copy_from_slice(&ip.octets());
        bytes[16..].copy_from_slice(&address.port().to_le_bytes());
    }
    bytes
}

fn read_address(bytes: [u8; 18]) -> Result<Option<SocketAddr>, CommitmentError> {
    if bytes == [0; 18] {
        return Ok(None);
    }
    let ([ip @ .., low, high], mut octets) = (bytes, [0; 16]);
    octets.copy_from_slice(&ip);
    match u16::from_le_bytes([low, high]) {
        0 => Err(CommitmentError::Address),
        port => Ok(Some(SocketAddr::new(Ipv6Addr::from(octets).to_canonical(), port))),
    }
}

impl Seal {
    /// What a seal says of a holding proof.
    #[must_use]
    pub fn holding_of(proof: &Digest) -> Holding {
        *proof.0.first_chunk().expect("a digest is longer")
    }
}

impl Commitment {
    /// The three fields.
    ///
    /// # Panics
    /// If a seal's transport coding has 2^48 bytes or more, which no layout allows.
    #[must_use]
    pub fn to_fields(&self) -> Vec<Vec<u8>> {
        let identity = self.identity.map(|identity| {
            let (seq, address) = (identity.seq.to_le_bytes(), address_bytes(identity.address));
            [&[IDENTITY_VERSION, 0][..], &identity.endpoint.0, &seq, &address, &identity.proof].concat()
        });
        let seal = self.seal.map(|seal| {
            let size = seal.transport_bytes.to_le_bytes();
            let (size, beyond) = size.split_at(SIZE_BYTES);
            assert_eq!(beyond, [0; 2], "no run has payloads of 2^48 bytes");
            let (round, payload, transport) = (seal.round.0.to_le_bytes(), seal.payload.0, seal.transport.0);
            [&[SEAL_VERSION][..], &round, &payload, &transport, size, &seal.base.0, &seal.holding].concat()
        });
        let manifest =
            self.manifest.map(|vote| [&[VERSION][..], &vote.round.0.to_le_bytes(), &vote.manifest.0].concat());
        [identity, seal, manifest].into_iter().map(Option::unwrap_or_default).collect()
    }

    /// Reads the three fields. Whether the identity is true is for [`Identity::verify`].
    ///
    /// # Errors
    /// What about them is not ours: treat the hotkey as one that committed nothing.
    pub fn parse(fields: &[Vec<u8>]) -> Result<Self, CommitmentError> {
        let [identity, seal, manifest] = fields else {
            return Err(CommitmentError::FieldCount { n_fields: fields.len() });
        };
        Ok(Self {
            identity: part::<IDENTITY_BYTES>(0, IDENTITY_VERSION, identity)?.map(read_identity).transpose()?,
            seal: part::<SEAL_BYTES>(1, SEAL_VERSION, seal)?.map(read_seal),
            manifest: part::<VOTE_BYTES>(2, VERSION, manifest)?.map(read_vote),
        })
    }
}

/// A field of exactly `N` bytes that begins with this version, or an empty one.
fn part<const N: usize>(field: usize, version: u8, bytes: &[u8]) -> Result<Option<Reader<'_>>, CommitmentError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    if bytes.len() != N {
        return Err(CommitmentError::FieldLength { field, bytes: bytes.len(), expected: N });
    }
    let mut reader = Reader(bytes);
    match reader.take() {
        [got] if got == version => Ok(Some(reader)),
        [version] => Err(CommitmentError::Version { field, version }),
    }
}

fn read_identity(mut reader: Reader<'_>) -> Result<Identity, CommitmentError> {
    let [flags] = reader.take();
    if flags != 0 {
        return Err(CommitmentError::Flags { flags });
    }
    let (endpoint, seq) = (EndpointId(reader.take()), u32::from_le_bytes(reader.take()));
    let address = read_address(reader.take())?;
    Ok(Identity { endpoint, seq, address, proof: reader.take() })
}

fn read_seal(mut reader: Reader<'_>) -> Seal {
    let (round, payload, transport) =
        (Round(reader.number()), PayloadHash(reader.take()), TransportHash(reader.take()));
    let mut size = [0; 8];
    size[..SIZE_BYTES].copy_from_slice(&reader.take::<SIZE_BYTES>());
    let (transport_bytes, base) = (u64::from_le_bytes(size), Digest(reader.take()));
    Seal { round, payload, transport, transport_bytes, base, holding: reader.take() }
}

fn read_vote(mut reader: Reader<'_>) -> ManifestVote {
    ManifestVote { round: Round(reader.number()), manifest: ManifestHash(reader.take()) }
}

/// The rest of a field whose length was checked.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_first_chunk().expect("the field's length was checked and covers every part");
        self.0 = rest;
        *head
    }

    fn number(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLACE: Place = Place { genesis: BlockHash([4; 32]), netuid: 3 };
    const HOTKEY: Hotkey = Hotkey([5; 32]);

    fn address(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    fn commitment() -> Commitment {
        Commitment {
            identity: Some(Identity::prove(&[6; 32], &PLACE, &HOTKEY, 7, address("10.1.2.3:770"))),
            seal: Some(Seal {
                round: Round(258),
                payload: PayloadHash([1; 32]),
                transport: TransportHash([8; 32]),
                transport_bytes: 0x0102_0304_0506,
                base: Digest([2; 32]),
                holding: [3; 16],
            }),
            manifest: Some(ManifestVote { round: Round(257), manifest: ManifestHash([9; 32]) }),
        }
    }

    #[test]
    fn an_identity_holds_for_one_hotkey_on_one_subnet_of_one_chain() {
        let identity = commitment().identity.unwrap();
        assert_eq!(identity.verify(&PLACE, &HOTKEY), Ok(()));
        let no = Err(CommitmentError::Proof);
        assert_eq!(identity.verify(&PLACE, &Hotkey([8; 32])), no);
        assert_eq!(identity.verify(&Place { netuid: 4, ..PLACE }, &HOTKEY), no);
        assert_eq!(identity.verify(&Place { genesis: BlockHash([5; 32]), ..PLACE }, &HOTKEY), no);
        assert_eq!(Identity { seq: 8, ..identity }.verify(&PLACE, &HOTKEY), no);
        assert_eq!(Identity { address: None, ..identity }.verify(&PLACE, &HOTKEY), no);
        let other = Identity::prove(&[7; 32], &PLACE, &HOTKEY, 7, identity.address);
        assert_eq!(Identity { endpoint: other.endpoint, ..identity }.verify(&PLACE, &HOTKEY), no);
        assert_eq!(Identity { endpoint: EndpointId([0; 32]), ..identity }.verify(&PLACE, &HOTKEY), no);
        assert_eq!(Identity { endpoint: EndpointId([255; 32]), ..identity }.verify(&PLACE, &HOTKEY), no);
    }

    #[test]
    fn of_two_identities_of_a_hotkey_one_yields_in_everybodys_eyes() {
        let of = |seq, at: &str| Identity::prove(&[6; 32], &PLACE, &HOTKEY, seq, address(at));
        let (first, later) = (of(1, "10.0.0.9:9"), of(2, "10.0.0.1:1"));
        assert!(first.yields_to(&later) && !later.yields_to(&first));
        let (one, other) = (of(3, "10.0.0.1:1"), of(3, "10.0.0.1:2"));
        assert_ne!(one.yields_to(&other), other.yields_to(&one));
        assert!(!one.yields_to(&one));
    }

    #[test]
    fn addresses_survive_and_what_has_no_encoding_is_none() {
        for at in ["1.2.3.4:5", "[2001:db8::1]:65535", "[::1]:9"] {
            let identity = Identity::prove(&[6; 32], &PLACE, &HOTKEY, 7, address(at));
            let fields = Commitment { identity: Some(identity), ..Commitment::default() }.to_fields();
            assert_eq!(Commitment::parse(&fields).unwrap().identity.unwrap().address, address(at));
        }
        let identity = Identity::prove(&[6; 32], &PLACE, &HOTKEY, 7, address("1.2.3.4:0"));
        assert_eq!((identity.address, identity.verify(&PLACE, &HOTKEY)), (None, Ok(())));
    }

    #[test]
    fn the_layout_of_the_fields_does_not_move() {
        let fields = commitment().to_fields();
        assert_eq!(fields.iter().map(Vec::len).collect::<Vec<_>>(), [IDENTITY_BYTES, SEAL_BYTES, VOTE_BYTES]);
        assert_eq!(fields[0][..2], [2, 0]);
        assert_eq!(fields[0][34..38], [7, 0, 0, 0]);
        assert_eq!(fields[0][38..56], [&[0; 10][..], &[255, 255, 10, 1, 2, 3], &[2, 3]].concat());
        assert_eq!(fields[1][..10], [2, 2, 1, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(fields[1][40..80], [&[1; 1][..], &[8; 32], &[6, 5, 4, 3, 2, 1], &[2]].concat());
        assert_eq!(fields[1][110..], [&[2; 1][..], &[3; 16]].concat());
        assert_eq!(fields[2][..10], [1, 1, 1, 0, 0, 0, 0, 0, 0, 9]);
        assert!(fields.iter().all(|field| field.len() < 128));
    }

    #[test]
    fn every_way_to_be_wrong_has_its_reason() {
        let fields = commitment().to_fields();
        let parse = |change: fn(&mut Vec<Vec<u8>>)| {
            let mut fields = fields.clone();
            change(&mut fields);
            Commitment::parse(&fields)
        };
        assert_eq!(parse(|_| ()), Ok(commitment()));
        assert_eq!(parse(|fields| fields.truncate(2)), Err(CommitmentError::FieldCount { n_fields: 2 }));
        assert_eq!(parse(|fields| fields.push(vec![])), Err(CommitmentError::FieldCount { n_fields: 4 }));
        let long = CommitmentError::FieldLength { field: 1, bytes: 128, expected: 127 };
        assert_eq!(parse(|fields| fields[1].push(0)), Err(long));
        let short = CommitmentError::FieldLength { field: 0, bytes: 1, expected: 120 };
        assert_eq!(parse(|fields| fields[0].truncate(1)), Err(short));
        assert_eq!(parse(|fields| fields[2][0] = 2), Err(CommitmentError::Version { field: 2, version: 2 }));
        assert_eq!(parse(|fields| fields[1][0] = 1), Err(CommitmentError::Version { field: 1, version: 1 }));
        assert_eq!(parse(|fields| fields[0][1] = 1), Err(CommitmentError::Flags { flags: 1 }));
        assert_eq!(parse(|fields| fields[0][54..56].fill(0)), Err(CommitmentError::Address));
        assert_eq!(parse(|fields| fields.iter_mut().for_each(Vec::clear)), Ok(Commitment::default()));
    }

    proptest! {
        #[test]
        fn what_parses_is_written_back_byte_for_byte(
            sizes in prop::collection::vec(prop::sample::select(vec![0, 41, 120, 127, 200]), 0..5),
            bytes in prop::collection::vec(any::<u8>(), 200),
            proper in any::<bool>(),
        ) {
            let fields: Vec<Vec<u8>> = if proper {
                let mut fields = [IDENTITY_BYTES, SEAL_BYTES, VOTE_BYTES].map(|size| bytes[..size].to_vec());
                for (field, version) in fields.iter_mut().zip([IDENTITY_VERSION, SEAL_VERSION, VERSION]) {
                    field[0] = version;
                }
                (fields[0][1], fields[0][55]) = (0, 7);
                fields.into()
            } else {
                sizes.iter().map(|&size| bytes[..size].to_vec()).collect()
            };
            let parsed = Commitment::parse(&fields);
            prop_assert!(parsed.is_ok() || !proper);
            if let Ok(commitment) = parsed {
                prop_assert_eq!(commitment.to_fields(), fields);
            }
        }
    }
}
