//! The manifest: the ordered list of payloads that one round applies, and how validators agree on it.
//!
//! Every node applies exactly the manifest's payloads, so agreeing on 32 bytes on chain is agreeing on θ. The
//! reference run had no such list: each node applied what it had happened to fetch, and nodes drifted apart. Here the
//! round's manifest is a function of the chain at the manifest deadline: the one endorsed by more than half of the
//! validators' stake ([`decide`]); if there is none the round is a null round.
//!
//! A manifest names the digest of the θ it applies to and the manifest before it, so the manifests of a run form a
//! chain that a joining node can check from the run id on.
//!
//! Encoding, little-endian, canonical (C-2): `version u8 · round u64 · prev 32 · base 32 · count u16`, then for each
//! entry, uids ascending, `uid u16 · hotkey 32 · payload 32 · transport 32 · transport_bytes u64`. Its BLAKE3 hash is its
//! name, and its address as a blob. An entry says both what a payload is and what to fetch for it, so that the manifest
//! is all that a joining node needs.

use std::collections::{BTreeMap, BTreeSet};

use crate::terms::{Digest, Hotkey, ManifestHash, PayloadHash, Round, RunId, Stake, TransportHash, Uid};

/// The encoding's version, its first byte.
const VERSION: u8 = 2;
/// Bytes before the entries.
const HEADER_LEN: usize = 1 + 8 + 32 + 32 + 2;
/// Bytes of an entry.
const ENTRY_LEN: usize = 2 + 32 + 32 + 32 + 8;

/// Which payloads round `round` applies to θ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The round whose payloads these are.
    pub round: Round,
    /// The manifest applied before this one, however many null rounds lie between; see [`Manifest::first_prev`].
    pub prev: ManifestHash,
    /// The digest of the parameters the payloads apply to.
    pub base: Digest,
    /// The payloads, uids strictly ascending; never empty.
    pub entries: Vec<Entry>,
}

/// One payload of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The contributor's slot at the round's registry block.
    pub uid: Uid,
    /// The contributor.
    pub hotkey: Hotkey,
    /// The payload's hash as it was sealed.
    pub payload: PayloadHash,
    /// The hash of its transport coding as it was sealed: what to fetch.
    pub transport: TransportHash,
    /// The coding's size in bytes as it was sealed; the fetcher holds it against what the run spec allows.
    pub transport_bytes: u64,
}

/// Why bytes, or a list of entries, are not a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Another version's encoding.
    #[error("version {got}, this node reads {VERSION}")]
    UnknownVersion {
        /// The first byte.
        got: u8,
    },
    /// Too few or too many bytes.
    #[error("{got} bytes, expected {expected}")]
    WrongLength {
        /// Bytes that the header, or the header with its entries, takes.
        expected: usize,
        /// Bytes there are.
        got: usize,
    },
    /// No entry: a round that applies nothing is a null round, which has no manifest.
    #[error("no entries")]
    Empty,
    /// More entries than the run spec allows.
    #[error("{got} entries, at most {max} are allowed")]
    TooManyEntries {
        /// Entries there are.
        got: usize,
        /// `gauntlet.contributors_max`.
        max: usize,
    },
    /// The order is not canonical, or a uid is there twice.
    #[error("uid {uid} follows uid {before}")]
    UidsNotAscending {
        /// The uid before it.
        before: Uid,
        /// The uid out of order.
        uid: Uid,
    },
    /// One contributor in two entries.
    #[error("hotkey {hotkey} has two entries")]
    SameHotkey {
        /// The contributor.
        hotkey: Hotkey,
    },
    /// One payload in two entries.
    #[error("payload {payload} is in two entries")]
    SamePayload {
        /// The payload.
        payload: PayloadHash,
    },
}

/// Bytes of the longest manifest of a run.
#[must_use]
pub fn len_max(contributors_max: usize) -> usize {
    HEADER_LEN + contributors_max * ENTRY_LEN
}

impl Manifest {
    /// What the first manifest of a run names as the one before it: a value that no other run shares.
    #[must_use]
    pub fn first_prev(run: &RunId) -> ManifestHash {
        ManifestHash(run.0)
    }

    /// The canonical bytes.
    ///
    /// # Panics
    /// If the entries break one of the rules of [`Manifest::validate`] that hold in every run: encoding such a list is
    /// a programmer's error, as nobody could parse it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.validate(usize::from(u16::MAX)).expect("a manifest is canonical before it is encoded");
        let count = u16::try_from(self.entries.len()).expect("validated just above");
        let mut bytes = Vec::with_capacity(HEADER_LEN + ENTRY_LEN * self.entries.len());
        bytes.push(VERSION);
        bytes.extend(self.round.0.to_le_bytes());
        bytes.extend(self.prev.0);
        bytes.extend(self.base.0);
        bytes.extend(count.to_le_bytes());
        for entry in &self.entries {
            bytes.extend(entry.uid.0.to_le_bytes());
            bytes.extend(entry.hotkey.0);
            bytes.extend(entry.payload.0);
            bytes.extend(entry.transport.0);
            bytes.extend(entry.transport_bytes.to_le_bytes());
        }
        bytes
    }

    /// The manifest that `bytes` encode. Nothing is allocated before the length is known to be right.
    ///
    /// # Errors
    /// What is wrong; whoever sent it sent no manifest of this run.
    pub fn parse(bytes: &[u8], contributors_max: usize) -> Result<Self, ManifestError> {
        let mut rest = Reader(bytes);
        // An unknown version is named before the length, which only this version's layout makes wrong.
        if let Some(&got) = bytes.first().filter(|&&got| got != VERSION) {
            return Err(ManifestError::UnknownVersion { got });
        }
        if bytes.len() < HEADER_LEN {
            return Err(ManifestError::WrongLength { expected: HEADER_LEN, got: bytes.len() });
        }
        rest.take::<1>();
        let round = Round(rest.u64());
        let (prev, base) = (ManifestHash(rest.take()), Digest(rest.take()));
        let count = usize::from(rest.u16());
        if count > contributors_max {
            return Err(ManifestError::TooManyEntries { got: count, max: contributors_max });
        }
        let expected = HEADER_LEN + ENTRY_LEN * count;
        if bytes.len() != expected {
            return Err(ManifestError::WrongLength { expected, got: bytes.len() });
        }
        let entry = |_| Entry {
            uid: Uid(rest.u16()),
            hotkey: Hotkey(rest.take()),
            payload: PayloadHash(rest.take()),
            transport: TransportHash(rest.take()),
            transport_bytes: rest.u64(),
        };
        let manifest = Self { round, prev, base, entries: (0..count).map(entry).collect() };
        manifest.validate(contributors_max)?;
        Ok(manifest)
    }

    /// BLAKE3 of the canonical bytes: the manifest's name on chain and its address on the network.
    #[must_use]
    pub fn hash(&self) -> ManifestHash {
        ManifestHash(*blake3::hash(&self.encode()).as_bytes())
    }

    /// Checks the rules of a manifest's entries.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn validate(&self, contributors_max: usize) -> Result<(), ManifestError> {
        let got = self.entries.len();
        if got == 0 {
            return Err(ManifestError::Empty);
        }
        if got > contributors_max {
            return Err(ManifestError::TooManyEntries { got, max: contributors_max });
        }
        for pair in self.entries.windows(2) {
            if pair[0].uid >= pair[1].uid {
                return Err(ManifestError::UidsNotAscending { before: pair[0].uid, uid: pair[1].uid });
            }
        }
        let (mut hotkeys, mut payloads) = (BTreeSet::new(), BTreeSet::new());
        for entry in &self.entries {
            if !hotkeys.insert(entry.hotkey) {
                return Err(ManifestError::SameHotkey { hotkey: entry.hotkey });
            }
            if !payloads.insert(entry.payload) {
                return Err(ManifestError::SamePayload { payload: entry.payload });
            }
        }
        Ok(())
    }
}

/// Reads fixed-width fields of bytes whose length was checked.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("the length was checked");
        self.0 = rest;
        *field
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

/// The manifest that more than half of the validators' stake endorses, if there is one.
///
/// `endorsements` has one element for each permitted validator whose commitment at the manifest deadline is for this
/// round (a proposer endorses its own manifest), `total_stake` is the stake of *all* permitted validators, silent ones
/// included. More than half can be had by one manifest only, so two nodes that read the same block never decide on two
/// manifests; and a validator without the majority cannot force one.
///
/// A hotkey counts once, and not at all if it is listed with two manifests; a total below the sum of what is listed is
/// taken as that sum. So no caller's mistake makes two winners.
#[must_use]
pub fn decide(endorsements: &[(Hotkey, Stake, ManifestHash)], total_stake: Stake) -> Option<ManifestHash> {
    let mut votes: BTreeMap<Hotkey, Option<(Stake, ManifestHash)>> = BTreeMap::new();
    for &(hotkey, stake, manifest) in endorsements {
        let vote = votes.entry(hotkey).or_insert(Some((stake, manifest)));
        if *vote != Some((stake, manifest)) {
            *vote = None;
        }
    }
    // Sums of 64-bit stakes in 128 bits cannot overflow.
    let mut tally: BTreeMap<ManifestHash, u128> = BTreeMap::new();
    for (stake, manifest) in votes.into_values().flatten() {
        *tally.entry(manifest).or_default() += u128::from(stake.0);
    }
    let total = u128::from(total_stake.0).max(tally.values().sum());
    tally.into_iter().find(|(_, stake)| 2 * stake > total).map(|(manifest, _)| manifest)
}

/// Validators in the order in which they propose: most stake first, ties by hotkey.
///
/// The first proposes at once; each other waits its turn and proposes only if no better proposal is there by then.
#[must_use]
pub fn proposers(validators: &[(Hotkey, Stake)]) -> Vec<Hotkey> {
    let mut order = validators.to_vec();
    order.sort_unstable_by_key(|&(hotkey, stake)| (std::cmp::Reverse(stake), hotkey));
    order.into_iter().map(|(hotkey, _)| hotkey).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 20;

    fn entry(uid: u16) -> Entry {
        let hash = |part: &str| *blake3::hash(format!("{part} {uid}").as_bytes()).as_bytes();
        Entry {
            uid: Uid(uid),
            hotkey: Hotkey(hash("hotkey")),
            payload: PayloadHash(hash("payload")),
            transport: TransportHash(hash("transport")),
            transport_bytes: 1000 + u64::from(uid),
        }
    }

    fn manifest(uids: &[u16]) -> Manifest {
        Manifest {
            round: Round(7),
            prev: ManifestHash([1; 32]),
            base: Digest([2; 32]),
            entries: uids.iter().copied().map(entry).collect(),
        }
    }

    fn named(byte: u8) -> ManifestHash {
        ManifestHash([byte; 32])
    }

    fn endorsements(votes: &[(u8, u64, u8)]) -> Vec<(Hotkey, Stake, ManifestHash)> {
        votes.iter().map(|&(key, stake, name)| (Hotkey([key; 32]), Stake(stake), named(name))).collect()
    }

    #[test]
    fn a_manifest_is_named_by_the_hash_of_its_bytes() {
        let manifest = manifest(&[1, 4, 9]);
        assert_eq!(manifest.hash().0, *blake3::hash(&manifest.encode()).as_bytes());
        assert_eq!(manifest.encode().len(), 75 + 3 * 106);
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = manifest(&[1]).encode();
        bytes[0] = 1;
        assert_eq!(Manifest::parse(&bytes, MAX), Err(ManifestError::UnknownVersion { got: 1 }));
    }

    #[test]
    fn every_cut_and_every_byte_too_many_is_a_wrong_length() {
        let bytes = manifest(&[1, 4]).encode();
        for len in 0..bytes.len() {
            let expected = if len < HEADER_LEN { HEADER_LEN } else { bytes.len() };
            assert_eq!(Manifest::parse(&bytes[..len], MAX), Err(ManifestError::WrongLength { expected, got: len }));
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        let (expected, got) = (bytes.len(), longer.len());
        assert_eq!(Manifest::parse(&longer, MAX), Err(ManifestError::WrongLength { expected, got }));
    }

    #[test]
    fn a_count_beyond_the_run_spec_is_refused_before_anything_is_read() {
        let mut bytes = manifest(&[1]).encode();
        bytes[HEADER_LEN - 2..HEADER_LEN].copy_from_slice(&u16::MAX.to_le_bytes());
        assert_eq!(Manifest::parse(&bytes, MAX), Err(ManifestError::TooManyEntries { got: 65_535, max: MAX }));
        let uids: Vec<u16> = (0..21).collect();
        assert_eq!(
            Manifest::parse(&manifest(&uids).encode(), MAX),
            Err(ManifestError::TooManyEntries { got: 21, max: MAX })
        );
    }

    #[test]
    fn a_manifest_that_applies_nothing_is_refused() {
        let mut bytes = manifest(&[1]).encode();
        bytes.truncate(HEADER_LEN);
        bytes[HEADER_LEN - 2] = 0;
        assert_eq!(Manifest::parse(&bytes, MAX), Err(ManifestError::Empty));
    }

    #[test]
    fn uids_out_of_order_or_twice_are_refused() {
        let bytes = manifest(&[1, 4]).encode();
        let (header, entries) = bytes.split_at(HEADER_LEN);
        let (first, second) = entries.split_at(ENTRY_LEN);
        let swapped = [header, second, first].concat();
        let error = ManifestError::UidsNotAscending { before: Uid(4), uid: Uid(1) };
        assert_eq!(Manifest::parse(&swapped, MAX), Err(error));
        let twice = [header, first, first].concat();
        let error = ManifestError::UidsNotAscending { before: Uid(1), uid: Uid(1) };
        assert_eq!(Manifest::parse(&twice, MAX), Err(error));
    }

    #[test]
    fn a_contributor_or_a_payload_counts_once() {
        let bytes = manifest(&[1, 4]).encode();
        let second = HEADER_LEN + ENTRY_LEN;
        let mut same = bytes.clone();
        same.copy_within(HEADER_LEN + 2..HEADER_LEN + 34, second + 2);
        assert_eq!(Manifest::parse(&same, MAX), Err(ManifestError::SameHotkey { hotkey: entry(1).hotkey }));
        let mut same = bytes;
        same.copy_within(HEADER_LEN + 34..HEADER_LEN + 66, second + 34);
        assert_eq!(Manifest::parse(&same, MAX), Err(ManifestError::SamePayload { payload: entry(1).payload }));
    }

    #[test]
    fn more_than_half_of_the_stake_decides_and_half_does_not() {
        let decided = |votes: &[(u8, u64, u8)], total| decide(&endorsements(votes), Stake(total));
        assert_eq!(decided(&[(1, 51, 1), (2, 49, 2)], 100), Some(named(1)));
        assert_eq!(decided(&[(1, 50, 1), (2, 50, 2)], 100), None);
        assert_eq!(decided(&[(1, 50, 1)], 100), None, "silent stake counts against a manifest");
        assert_eq!(decided(&[(1, 26, 1), (2, 25, 1), (3, 49, 2)], 100), Some(named(1)));
        assert_eq!(decided(&[], 0), None);
        assert_eq!(decided(&[(1, 0, 1)], 0), None, "no stake decides nothing");
    }

    #[test]
    fn stakes_at_the_limit_do_not_overflow() {
        let votes = endorsements(&[(1, u64::MAX, 1), (2, u64::MAX, 2), (3, u64::MAX, 2)]);
        assert_eq!(decide(&votes, Stake(u64::MAX)), Some(named(2)));
        assert_eq!(decide(&votes[..2], Stake(u64::MAX)), None);
    }

    #[test]
    fn a_validator_listed_with_two_manifests_endorses_neither() {
        let votes = endorsements(&[(1, 60, 1), (1, 60, 2), (2, 40, 2)]);
        assert_eq!(decide(&votes, Stake(100)), None);
        let twice = endorsements(&[(1, 60, 1), (1, 60, 1)]);
        assert_eq!(decide(&twice, Stake(100)), Some(named(1)));
        assert_eq!(decide(&twice, Stake(121)), None, "the same vote twice counts once");
    }

    #[test]
    fn the_validator_with_the_most_stake_proposes_first() {
        let key = |byte| Hotkey([byte; 32]);
        let validators = [(key(3), Stake(5)), (key(2), Stake(9)), (key(1), Stake(5))];
        assert_eq!(proposers(&validators), [key(2), key(1), key(3)]);
    }

    proptest! {
        #[test]
        fn a_manifest_survives_its_bytes(
            uids in proptest::collection::btree_set(any::<u16>(), 1..MAX), round: u64, prev: [u8; 32], base: [u8; 32],
        ) {
            let uids: Vec<u16> = uids.into_iter().collect();
            let mut manifest = manifest(&uids);
            (manifest.round, manifest.prev, manifest.base) = (Round(round), ManifestHash(prev), Digest(base));
            prop_assert_eq!(Manifest::parse(&manifest.encode(), MAX), Ok(manifest));
        }

        #[test]
        fn whatever_parses_is_the_one_encoding_of_what_it_says(at in 0_usize..75 + 2 * 106, byte: u8) {
            let mut bytes = manifest(&[1, 4]).encode();
            bytes[at] = byte;
            if let Ok(parsed) = Manifest::parse(&bytes, MAX) {
                prop_assert_eq!(parsed.encode(), bytes);
            }
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(Manifest::parse(&bytes, MAX).is_err());
        }

        #[test]
        fn there_are_never_two_winners(
            votes in proptest::collection::btree_map(
                0_u8..12, (prop_oneof![0_u64..10, Just(u64::MAX / 13)], 0_u8..3), 0..12),
            silent in prop_oneof![Just(0), 0_u64..100, Just(u64::MAX / 13)],
            seen: u16,
        ) {
            let votes: Vec<_> = votes.into_iter().map(|(key, (stake, name))| (key, stake, name)).collect();
            let total = votes.iter().map(|vote| vote.1).sum::<u64>() + silent;
            let for_name = |name| votes.iter().filter(|vote| vote.2 == name).map(|vote| vote.1).sum::<u64>();
            let winners: Vec<_> = (0..3).filter(|&name| for_name(name) > total / 2).map(named).collect();
            prop_assert!(winners.len() <= 1);

            let mut listed = endorsements(&votes);
            prop_assert_eq!(decide(&listed, Stake(total)), winners.first().copied());
            listed.reverse();
            prop_assert_eq!(decide(&listed, Stake(total)), winners.first().copied(), "the order decides nothing");
            // Who reads only some of the endorsements decides the same or nothing.
            let mut place = 0;
            listed.retain(|_| { place += 1; seen >> place & 1 == 1 });
            let partial = decide(&listed, Stake(total));
            prop_assert!(partial.is_none() || partial == winners.first().copied());
        }
    }
}
