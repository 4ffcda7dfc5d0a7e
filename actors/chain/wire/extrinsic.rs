//! Signed extrinsics, opened: who asks for what and until when; and the one extrinsic that a block maker adds himself.
//!
//! Only version 4 extrinsics signed by sr25519 are known, which is what Subtensor's clients send. The layout (address,
//! signature, extensions, call) is followed by the metadata's types. Arguments are decoded only of the calls that the
//! ledger has, all of whose types are flat: a call in a call in a call would otherwise be a stack of the sender's depth.
//!
//! The development chain's faucet has no call in Subtensor's metadata. It travels as `System.remark`, with a tag that
//! makes it one: any client can sign it, and on any other chain it does nothing.

use convoke::chain::{AccountId, Call, Invalid, VerifiedCall};
use convoke::hotkey::{self, SIGNATURE_LEN};
use convoke::terms::{BlockHash, Hotkey};
use subxt::Metadata;
use subxt::config::Hasher;
use subxt::config::substrate::BlakeTwo256;
use subxt::ext::codec::{Compact, Decode, Encode};
use subxt::ext::frame_decode::extrinsics::{ExtrinsicCallInfo, ExtrinsicTypeInfo, encode_v4_unsigned};
use subxt::ext::scale_decode::DecodeAsType;
use subxt::ext::scale_decode::visitor::{IgnoreVisitor, decode_with_visitor};
use subxt::ext::scale_value::{Composite, Value};
use subxt::utils::Era;

use super::fields::Info;
use super::schema::SUBTENSOR;
use super::{Runtime, WireError};

/// Bytes of an extrinsic that are looked at: three full fields of a commitment, or weights on 4096 uids, and room.
pub(in crate::chain) const EXTRINSIC_BYTES_MAX: usize = 64 << 10;

/// The first byte of a signed extrinsic of version 4.
const SIGNED_V4: u8 = 0b1000_0100;
/// A payload longer than this is signed by its hash.
const SIGNED_WHOLE_MAX: usize = 256;
/// What makes a remark a call of the faucet, for a slot,
const FAUCET_TAG: &[u8] = b"convoke development chain faucet v1:";
/// and for money.
const FUNDS_TAG: &[u8] = b"convoke development chain faucet funds v1:";

#[derive(DecodeAsType)]
#[decode_as_type(crate_path = "subxt::ext::scale_decode")]
enum Address {
    Id([u8; 32]),
}

#[derive(DecodeAsType)]
#[decode_as_type(crate_path = "subxt::ext::scale_decode")]
enum Signature {
    Sr25519([u8; SIGNATURE_LEN]),
}

/// A signed extrinsic whose signature was not looked at.
pub(in crate::chain) struct Opened {
    pub(in crate::chain) hash: [u8; 32],
    pub(in crate::chain) signer: AccountId,
    pub(in crate::chain) nonce: u64,
    era: Era,
    pub(in crate::chain) call: Call,
    signature: [u8; SIGNATURE_LEN],
    /// What is signed, but for what the signer adds without sending it.
    payload: Vec<u8>,
}

/// blake2-256, the hash of extrinsics and headers.
pub(in crate::chain) fn blake2_256(bytes: &[u8]) -> [u8; 32] {
    BlakeTwo256.hash(bytes).0
}

/// Whether an extrinsic is of the kind that [`open`] opens; a block holds others too.
pub(in crate::chain) fn is_signed(extrinsic: &[u8]) -> bool {
    let rest = &mut &*extrinsic;
    Compact::<u32>::decode(rest).is_ok() && rest.first() == Some(&SIGNED_V4)
}

/// Opens an extrinsic.
///
/// # Errors
/// What about it this chain cannot read.
pub(in crate::chain) fn open(metadata: &Metadata, extrinsic: &[u8]) -> Result<Opened, WireError> {
    if extrinsic.len() > EXTRINSIC_BYTES_MAX {
        return Err(unreadable(format!("{} bytes are more than {EXTRINSIC_BYTES_MAX}", extrinsic.len())));
    }
    let rest = &mut &*extrinsic;
    let Compact(length) = Compact::<u32>::decode(rest).map_err(unreadable)?;
    if length as usize != rest.len() || u8::decode(rest).map_err(unreadable)? != SIGNED_V4 {
        return Err(unreadable("it is no signed extrinsic of version 4"));
    }
    let types = metadata.extrinsic_signature_info().map_err(unreadable)?;
    let Address::Id(signer) = decode(metadata, types.address_id, rest)?;
    let Signature::Sr25519(signature) = decode(metadata, types.signature_id, rest)?;
    let extensions_start = *rest;
    let (mut nonce, mut era) = (None, None);
    for extension in metadata.extrinsic().transaction_extensions_by_version(0).into_iter().flatten() {
        let start = *rest;
        decode_with_visitor(rest, extension.extra_ty(), metadata.types(), IgnoreVisitor::new()).map_err(unreadable)?;
        match extension.identifier() {
            "CheckNonce" => nonce = Some(Compact::<u64>::decode(&mut &*start).map_err(unreadable)?.0),
            "CheckMortality" => era = Some(Era::decode(&mut &*start).map_err(unreadable)?),
            _ => {}
        }
    }
    let extensions = &extensions_start[..extensions_start.len() - rest.len()];
    let call_bytes = *rest;
    let call = open_call(metadata, rest)?;
    if !rest.is_empty() {
        return Err(unreadable("bytes are left over"));
    }
    let (nonce, era) = nonce.zip(era).ok_or_else(|| unreadable("this runtime signs no nonce or no era"))?;
    Ok(Opened {
        hash: blake2_256(extrinsic),
        signer: Hotkey(signer),
        nonce,
        era,
        call,
        signature,
        payload: [call_bytes, extensions].concat(),
    })
}

fn unreadable(reason: impl ToString) -> WireError {
    WireError::Shape { name: "extrinsic".to_owned(), reason: reason.to_string() }
}

fn decode<T: DecodeAsType>(metadata: &Metadata, type_id: u32, rest: &mut &[u8]) -> Result<T, WireError> {
    T::decode_as_type(rest, type_id, metadata.types()).map_err(unreadable)
}

/// The call at the front of `rest`, if it is one that the ledger has.
fn open_call(metadata: &Metadata, rest: &mut &[u8]) -> Result<Call, WireError> {
    let (pallet, call) = <(u8, u8)>::decode(rest).map_err(unreadable)?;
    let info = metadata.extrinsic_call_info_by_index(pallet, call).map_err(unreadable)?;
    let mut args = Args { metadata, info: &info, rest, next: 0 };
    let opened = match (&*info.pallet_name, &*info.call_name) {
        (SUBTENSOR, "burned_register") => {
            Call::BurnedRegister { netuid: args.take("netuid")?, hotkey: args.hotkey("hotkey")? }
        }
        (SUBTENSOR, "register_limit") => Call::RegisterLimit {
            netuid: args.take("netuid")?,
            hotkey: args.hotkey("hotkey")?,
            limit_price: args.take("limit_price")?,
        },
        (SUBTENSOR, "add_stake") => Call::AddStake {
            hotkey: args.hotkey("hotkey")?,
            netuid: args.take("netuid")?,
            amount: args.take("amount_staked")?,
        },
        (SUBTENSOR, "set_weights") => Call::SetWeights {
            netuid: args.take("netuid")?,
            dests: args.take("dests")?,
            weights: args.take("weights")?,
            version_key: args.take("version_key")?,
        },
        (SUBTENSOR, "commit_timelocked_weights") => Call::CommitTimelockedWeights {
            netuid: args.take("netuid")?,
            commit: args.take("commit")?,
            reveal_round: args.take("reveal_round")?,
            commit_reveal_version: args.take("commit_reveal_version")?,
        },
        (SUBTENSOR, "commit_weights") => {
            Call::CommitWeights { netuid: args.take("netuid")?, commit_hash: args.take("commit_hash")? }
        }
        (SUBTENSOR, "reveal_weights") => Call::RevealWeights {
            netuid: args.take("netuid")?,
            uids: args.take("uids")?,
            values: args.take("values")?,
            salt: args.take("salt")?,
            version_key: args.take("version_key")?,
        },
        ("Commitments", "set_commitment") => {
            Call::SetCommitment { netuid: args.take("netuid")?, fields: args.take::<Info>("info")?.into_fields() }
        }
        ("System", "remark") => read_faucet(&args.take::<Vec<u8>>("remark")?)?,
        (pallet, call) => return Err(unreadable(format!("this chain has no call `{pallet}.{call}`"))),
    };
    if args.next < info.args.len() {
        return Err(unreadable(format!("`{}` has an argument more", info.call_name)));
    }
    Ok(opened)
}

/// A call's arguments, one after the other, each of the name that is expected.
struct Args<'a, 'b> {
    metadata: &'a Metadata,
    info: &'a ExtrinsicCallInfo<'a, u32>,
    rest: &'a mut &'b [u8],
    next: usize,
}

impl Args<'_, '_> {
    fn take<T: DecodeAsType>(&mut self, name: &str) -> Result<T, WireError> {
        let arg = self.info.args.get(self.next).filter(|arg| arg.name == name);
        let arg = arg.ok_or_else(|| unreadable(format!("`{}` has no `{name}` there", self.info.call_name)))?;
        self.next += 1;
        decode(self.metadata, arg.id, self.rest)
    }

    fn hotkey(&mut self, name: &str) -> Result<Hotkey, WireError> {
        self.take(name).map(Hotkey)
    }
}

/// The remark that asks the faucet for a slot and stake.
pub(in crate::chain) fn faucet_remark(netuid: u16, hotkey: &Hotkey, stake: u64) -> Vec<u8> {
    [FAUCET_TAG, &(netuid, hotkey.0, stake).encode()].concat()
}

/// The remark that asks the faucet for money.
pub(in crate::chain) fn funds_remark(account: &AccountId, balance: u64) -> Vec<u8> {
    [FUNDS_TAG, &(account.0, balance).encode()].concat()
}

fn read_faucet(remark: &[u8]) -> Result<Call, WireError> {
    let (call, rest) = if let Some(mut rest) = remark.strip_prefix(FAUCET_TAG) {
        let (netuid, hotkey, stake) = <(u16, [u8; 32], u64)>::decode(&mut rest).map_err(unreadable)?;
        (Call::DevRegister { netuid, hotkey: Hotkey(hotkey), stake }, rest)
    } else if let Some(mut rest) = remark.strip_prefix(FUNDS_TAG) {
        let (account, balance) = <([u8; 32], u64)>::decode(&mut rest).map_err(unreadable)?;
        (Call::DevFund { account: Hotkey(account), balance }, rest)
    } else {
        return Err(unreadable("this chain keeps no remarks"));
    };
    if rest.is_empty() { Ok(call) } else { Err(unreadable("bytes are left over in the remark")) }
}

impl Opened {
    /// First block of the call's life, and how many it has, as seen from the block it is to follow.
    fn life(&self, head: u64) -> (u64, u64) {
        match self.era {
            Era::Immortal => (0, u64::MAX),
            Era::Mortal { period, phase } => ((head.max(phase) - phase) / period * period + phase, period),
        }
    }

    /// The call, if its signature is the signer's for this chain, this runtime and the fork that has its birth block.
    ///
    /// # Errors
    /// As a node's pool would refuse it.
    pub(in crate::chain) fn verify(
        self,
        runtime: &Runtime,
        genesis: &BlockHash,
        head: u64,
        hash_of: impl Fn(u64) -> Option<BlockHash>,
    ) -> Result<VerifiedCall, Invalid> {
        let (birth, period) = self.life(head);
        let birth_hash = hash_of(birth).ok_or(Invalid::AncientBirthBlock)?;
        let mut payload = self.payload;
        let extensions = runtime.metadata().extrinsic().transaction_extensions_by_version(0);
        for extension in extensions.into_iter().flatten() {
            match extension.identifier() {
                "CheckSpecVersion" => runtime.spec_version().encode_to(&mut payload),
                "CheckTxVersion" => runtime.transaction_version().encode_to(&mut payload),
                "CheckGenesis" => genesis.0.encode_to(&mut payload),
                "CheckMortality" => birth_hash.0.encode_to(&mut payload),
                "CheckMetadataHash" => None::<[u8; 32]>.encode_to(&mut payload),
                // The others, Subtensor's own among them, sign nothing that is not sent.
                _ => {}
            }
        }
        if payload.len() > SIGNED_WHOLE_MAX {
            payload = blake2_256(&payload).to_vec();
        }
        if !hotkey::verify(&self.signer, &payload, &self.signature) {
            return Err(Invalid::BadProof);
        }
        let Self { hash, signer, nonce, call, .. } = self;
        Ok(VerifiedCall::trust(hash, signer, nonce, (birth, period), call))
    }
}

/// The extrinsic that dates a block: its first, unsigned.
pub(in crate::chain) fn timestamp(runtime: &Runtime, timestamp_ms: u64) -> Result<Vec<u8>, WireError> {
    let args = Composite::named([("now", Value::u128(timestamp_ms.into()))]);
    let metadata = runtime.metadata();
    encode_v4_unsigned("Timestamp", "set", &args, metadata, metadata.types())
        .map_err(|error| WireError::shape("Timestamp", "set", error))
}
