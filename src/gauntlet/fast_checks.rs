//! Fast checks: what must hold before a payload is worth evaluating, each with its own reason.
//!
//! They come in two halves, cheapest first. [`check_seal`] needs the chain alone and runs before a byte is fetched;
//! [`check_payload`] holds the fetched payload against its seal. What decoder and parser check by themselves (the transport
//! coding; records, scales, levels, canonical form) arrives here as [`RejectReason::Malformed`] with their label.
//!
//! Against the reference run's code: that trusted the storage provider's clock for "in time" and accepted overwriting
//! inside the window; here a seal is a hash on chain, and the block it is in is its time. That checked a peer's base by
//! a file of sampled parameters which the peer reported itself; here the seal carries a keyed digest that only a holder
//! of θ_t can compute.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::terms::{Block, Digest, Hotkey, LayoutHash, PayloadHash, Round, RunId, Uid};

/// Why a contribution does not count in its round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum RejectReason {
    /// The sealing hotkey has no uid in the round's registry.
    #[error("the hotkey is not registered")]
    NotRegistered,
    /// The seal is for another round. A hotkey has one commitment, so a seal of an earlier round that was not renewed
    /// is what an absent peer shows: whoever reads the chain takes that for absence and does not come here with it.
    #[error("sealed for another round")]
    SealedForOtherRound,
    /// The seal is in no block of the round.
    #[error("sealed in block {sealed_at}, outside the round")]
    NotSealedInTime {
        /// The block of the commitment.
        sealed_at: Block,
    },
    /// The sealed size is more than any payload of the run has.
    #[error("{sealed} bytes sealed, at most {max} are possible")]
    TooLarge {
        /// The size in the seal.
        sealed: u64,
        /// The largest possible size.
        max: u64,
    },
    /// The payload was made from other parameters than the round's.
    #[error("made from other parameters")]
    WrongBase,
    /// The keyed digest is not that of θ_t: the peer does not hold the parameters.
    #[error("the keyed digest of the parameters is wrong")]
    HoldingProof,
    /// No holder delivered the payload in the gather window.
    #[error("nobody delivered the payload")]
    Missing,
    /// The delivered bytes decode to another payload than was sealed.
    #[error("the bytes decode to another payload than was sealed")]
    HashMismatch,
    /// The transport coding has another size than was sealed.
    #[error("{got} bytes delivered, {sealed} sealed")]
    SizeMismatch {
        /// The size in the seal.
        sealed: u64,
        /// The size there is.
        got: u64,
    },
    /// Decoder or parser refused the payload; their label for the reason.
    #[error("malformed: {0}")]
    Malformed(String),
    /// A payload of another run.
    #[error("a payload of another run")]
    WrongRun,
    /// A payload of another round.
    #[error("a payload of another round")]
    WrongRound,
    /// A payload for another tensor layout.
    #[error("a payload for another tensor layout")]
    WrongLayout,
    /// The payload names another hotkey than the one that sealed it.
    #[error("the payload is another hotkey's")]
    WrongHotkey,
    /// The payload names another uid than its hotkey has.
    #[error("the payload names another uid")]
    WrongUid,
    /// The signature is not the hotkey's.
    #[error("the signature is not the hotkey's")]
    BadSignature,
    /// Too few inner steps for the payload to say anything.
    #[error("{got} inner steps, at least {min} are wanted")]
    TooFewInnerSteps {
        /// Steps in the header.
        got: u32,
        /// `inner.steps_min`.
        min: u32,
    },
    /// More inner steps than a round allows.
    #[error("{got} inner steps, at most {max} are allowed")]
    TooManyInnerSteps {
        /// Steps in the header.
        got: u32,
        /// `inner.steps`.
        max: u32,
    },
    /// The same records were already used in an earlier round, whatever the header says.
    #[error("a replay of an earlier round's records")]
    Replay,
    /// The same kept indices as a payload that was sealed earlier.
    #[error("a copy of {original}'s payload")]
    Copy {
        /// Who sealed first.
        original: Hotkey,
    },
}

impl RejectReason {
    /// All names, for whoever counts by reason.
    pub const NAMES: [&'static str; 20] = [
        "not-registered",
        "sealed-for-other-round",
        "not-sealed-in-time",
        "too-large",
        "wrong-base",
        "holding-proof",
        "missing",
        "hash-mismatch",
        "size-mismatch",
        "malformed",
        "wrong-run",
        "wrong-round",
        "wrong-layout",
        "wrong-hotkey",
        "wrong-uid",
        "bad-signature",
        "too-few-inner-steps",
        "too-many-inner-steps",
        "replay",
        "copy",
    ];

    /// The reason's name, for metrics and events; equal to its name when serialised.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotRegistered => "not-registered",
            Self::SealedForOtherRound => "sealed-for-other-round",
            Self::NotSealedInTime { .. } => "not-sealed-in-time",
            Self::TooLarge { .. } => "too-large",
            Self::WrongBase => "wrong-base",
            Self::HoldingProof => "holding-proof",
            Self::Missing => "missing",
            Self::HashMismatch => "hash-mismatch",
            Self::SizeMismatch { .. } => "size-mismatch",
            Self::Malformed(_) => "malformed",
            Self::WrongRun => "wrong-run",
            Self::WrongRound => "wrong-round",
            Self::WrongLayout => "wrong-layout",
            Self::WrongHotkey => "wrong-hotkey",
            Self::WrongUid => "wrong-uid",
            Self::BadSignature => "bad-signature",
            Self::TooFewInnerSteps { .. } => "too-few-inner-steps",
            Self::TooManyInnerSteps { .. } => "too-many-inner-steps",
            Self::Replay => "replay",
            Self::Copy { .. } => "copy",
        }
    }
}

/// What a peer committed on chain for a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealClaim {
    /// Who sealed.
    pub hotkey: Hotkey,
    /// For which round.
    pub round: Round,
    /// The payload's hash.
    pub payload: PayloadHash,
    /// The size of its transport coding in bytes.
    pub transport_bytes: u64,
    /// The digest of the parameters it was made from.
    pub base: Digest,
    /// Of the keyed digest of sampled chunks of those parameters.
    pub holding: [u8; 16],
    /// The block that holds the commitment.
    pub sealed_at: Block,
}

/// What was found in a payload that was fetched and parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayloadFacts {
    /// BLAKE3 of the canonical bytes.
    pub hash: PayloadHash,
    /// How many bytes its transport coding has.
    pub transport_bytes: u64,
    /// BLAKE3 of the records alone, without header and signature: equal for a payload that was signed anew.
    pub records: [u8; 32],
    /// The header's run.
    pub run_id: RunId,
    /// The header's round.
    pub round: Round,
    /// The header's uid.
    pub uid: Uid,
    /// The header's hotkey.
    pub hotkey: Hotkey,
    /// The header's base digest.
    pub base: Digest,
    /// The header's tensor layout.
    pub layout: LayoutHash,
    /// The header's count of inner steps.
    pub inner_steps: u32,
    /// Whether the signature is the header's hotkey's.
    pub signature_holds: bool,
}

/// What the round requires of one peer.
#[derive(Debug, Clone)]
pub struct Expected<'a> {
    /// The run.
    pub run_id: RunId,
    /// The round.
    pub round: Round,
    /// The round's blocks: a seal in any of them is in time.
    pub blocks: Range<Block>,
    /// The peer's uid at the round's registry block, if it has one.
    pub uid: Option<Uid>,
    /// The digest of θ_t.
    pub base: Digest,
    /// The tensor layout's hash.
    pub layout: LayoutHash,
    /// The largest transport coding the layout allows, in bytes.
    pub transport_bytes_max: u64,
    /// `inner.steps_min`.
    pub inner_steps_min: u32,
    /// `inner.steps`.
    pub inner_steps_max: u32,
    /// The keyed digest this peer must have sealed; `None` on a node that does not hold θ_t and so cannot judge it.
    pub holding: Option<[u8; 16]>,
    /// [`PayloadFacts::records`] of payloads that have passed, and the round in which they have.
    pub used_records: &'a BTreeMap<[u8; 32], Round>,
}

/// The checks that need the chain alone: run before anything is fetched.
///
/// # Errors
/// The first reason for which the contribution does not count.
pub fn check_seal(claim: &SealClaim, expected: &Expected) -> Result<(), RejectReason> {
    require(expected.uid.is_some(), || RejectReason::NotRegistered)?;
    require(claim.round == expected.round, || RejectReason::SealedForOtherRound)?;
    let sealed_at = claim.sealed_at;
    require(expected.blocks.contains(&sealed_at), || RejectReason::NotSealedInTime { sealed_at })?;
    let (sealed, max) = (claim.transport_bytes, expected.transport_bytes_max);
    require(sealed <= max, || RejectReason::TooLarge { sealed, max })?;
    require(claim.base == expected.base, || RejectReason::WrongBase)?;
    require(expected.holding.is_none_or(|holding| claim.holding == holding), || RejectReason::HoldingProof)
}

/// The checks of a payload that its parser accepted, against its seal and the round.
///
/// # Errors
/// The first reason for which the contribution does not count.
pub fn check_payload(claim: &SealClaim, facts: &PayloadFacts, expected: &Expected) -> Result<(), RejectReason> {
    let (sealed, got) = (claim.transport_bytes, facts.transport_bytes);
    require(sealed == got, || RejectReason::SizeMismatch { sealed, got })?;
    require(claim.payload == facts.hash, || RejectReason::HashMismatch)?;
    require(facts.run_id == expected.run_id, || RejectReason::WrongRun)?;
    require(facts.round == expected.round, || RejectReason::WrongRound)?;
    require(facts.layout == expected.layout, || RejectReason::WrongLayout)?;
    require(facts.base == expected.base, || RejectReason::WrongBase)?;
    require(facts.hotkey == claim.hotkey, || RejectReason::WrongHotkey)?;
    require(Some(facts.uid) == expected.uid, || RejectReason::WrongUid)?;
    require(facts.signature_holds, || RejectReason::BadSignature)?;
    let (got, min, max) = (facts.inner_steps, expected.inner_steps_min, expected.inner_steps_max);
    require(got >= min, || RejectReason::TooFewInnerSteps { got, min })?;
    require(got <= max, || RejectReason::TooManyInnerSteps { got, max })?;
    let used_in = expected.used_records.get(&facts.records);
    require(used_in.is_none_or(|used_in| *used_in >= expected.round), || RejectReason::Replay)
}

/// Both halves, for a payload that is at hand.
///
/// # Errors
/// The first reason for which the contribution does not count.
pub fn check(claim: &SealClaim, facts: &PayloadFacts, expected: &Expected) -> Result<(), RejectReason> {
    check_seal(claim, expected)?;
    check_payload(claim, facts, expected)
}

fn require(holds: bool, reason: impl FnOnce() -> RejectReason) -> Result<(), RejectReason> {
    if holds { Ok(()) } else { Err(reason()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gauntlet::fixture::hotkey;

    fn claim() -> SealClaim {
        SealClaim {
            hotkey: hotkey(1),
            round: Round(5),
            payload: PayloadHash([2; 32]),
            transport_bytes: 1000,
            base: Digest([3; 32]),
            holding: [4; 16],
            sealed_at: Block(59),
        }
    }

    fn facts() -> PayloadFacts {
        PayloadFacts {
            hash: PayloadHash([2; 32]),
            transport_bytes: 1000,
            records: [5; 32],
            run_id: RunId([6; 32]),
            round: Round(5),
            uid: Uid(7),
            hotkey: hotkey(1),
            base: Digest([3; 32]),
            layout: LayoutHash([8; 32]),
            inner_steps: 30,
            signature_holds: true,
        }
    }

    fn expected(used_records: &BTreeMap<[u8; 32], Round>) -> Expected<'_> {
        Expected {
            run_id: RunId([6; 32]),
            round: Round(5),
            blocks: Block(50)..Block(60),
            uid: Some(Uid(7)),
            base: Digest([3; 32]),
            layout: LayoutHash([8; 32]),
            transport_bytes_max: 1000,
            inner_steps_min: 2,
            inner_steps_max: 30,
            holding: Some([4; 16]),
            used_records,
        }
    }

    /// Changes one thing of a contribution that passes, and asks for the reason.
    #[track_caller]
    fn refused(change: impl FnOnce(&mut SealClaim, &mut PayloadFacts, &mut Expected), reason: RejectReason) {
        // A round's own payloads may be looked at twice.
        let used = BTreeMap::from([([99; 32], Round(4)), ([5; 32], Round(5))]);
        let (mut claim, mut facts, mut expected) = (claim(), facts(), expected(&used));
        assert_eq!(check(&claim, &facts, &expected), Ok(()));
        change(&mut claim, &mut facts, &mut expected);
        assert_eq!(check(&claim, &facts, &expected), Err(reason.clone()));
        let name = serde_json::to_value(&reason).unwrap();
        let name = name.as_str().unwrap_or_else(|| name.as_object().unwrap().keys().next().unwrap());
        assert_eq!(reason.name(), name, "metrics and events use one name");
    }

    #[test]
    fn a_seal_that_the_chain_refutes_is_refused_by_its_reason() {
        refused(|_, _, expected| expected.uid = None, RejectReason::NotRegistered);
        refused(|claim, _, _| claim.round = Round(4), RejectReason::SealedForOtherRound);
        refused(|claim, _, _| claim.sealed_at = Block(60), RejectReason::NotSealedInTime { sealed_at: Block(60) });
        refused(|claim, _, _| claim.sealed_at = Block(49), RejectReason::NotSealedInTime { sealed_at: Block(49) });
        refused(|claim, _, _| claim.transport_bytes = 1001, RejectReason::TooLarge { sealed: 1001, max: 1000 });
        refused(|claim, _, _| claim.base = Digest([0; 32]), RejectReason::WrongBase);
        refused(|claim, _, _| claim.holding = [0; 16], RejectReason::HoldingProof);
    }

    #[test]
    fn a_payload_that_is_not_what_was_sealed_is_refused_by_its_reason() {
        refused(|_, facts, _| facts.transport_bytes = 999, RejectReason::SizeMismatch { sealed: 1000, got: 999 });
        refused(|_, facts, _| facts.hash = PayloadHash([0; 32]), RejectReason::HashMismatch);
        refused(|_, facts, _| facts.run_id = RunId([0; 32]), RejectReason::WrongRun);
        refused(|_, facts, _| facts.round = Round(4), RejectReason::WrongRound);
        refused(|_, facts, _| facts.layout = LayoutHash([0; 32]), RejectReason::WrongLayout);
        refused(|_, facts, _| facts.base = Digest([0; 32]), RejectReason::WrongBase);
        refused(|_, facts, _| facts.hotkey = hotkey(2), RejectReason::WrongHotkey);
        refused(|_, facts, _| facts.uid = Uid(8), RejectReason::WrongUid);
        refused(|_, facts, _| facts.signature_holds = false, RejectReason::BadSignature);
        refused(|_, facts, _| facts.inner_steps = 1, RejectReason::TooFewInnerSteps { got: 1, min: 2 });
        refused(|_, facts, _| facts.inner_steps = 31, RejectReason::TooManyInnerSteps { got: 31, max: 30 });
        refused(|_, facts, _| facts.records = [99; 32], RejectReason::Replay);
    }

    #[test]
    fn reasons_found_elsewhere_have_one_name_too() {
        for reason in [
            RejectReason::Missing,
            RejectReason::Malformed("a-label".into()),
            RejectReason::Copy { original: hotkey(1) },
        ] {
            let text = serde_json::to_string(&reason).unwrap();
            assert!(text.contains(&format!("\"{}\"", reason.name())), "{text}");
            assert_eq!(serde_json::from_str::<RejectReason>(&text).unwrap(), reason);
        }
    }

    #[test]
    fn a_node_without_the_parameters_does_not_judge_who_holds_them() {
        let unused = BTreeMap::new();
        let expected = Expected { holding: None, ..expected(&unused) };
        assert_eq!(check_seal(&SealClaim { holding: [0; 16], ..claim() }, &expected), Ok(()));
    }
}
