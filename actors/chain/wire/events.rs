//! What happened in a block, as `System.Events` has it.

use convoke::chain::{DispatchError, Event};
use convoke::terms::Uid;
use subxt::ext::scale_value::{Composite, Value, ValueDef, Variant};

use super::Runtime;
use super::schema::SUBTENSOR;

/// One event, and the place of the extrinsic it belongs to (none: it happened before all of them).
pub(in crate::chain) fn record(extrinsic: Option<u32>, event: Value) -> Value {
    let phase = match extrinsic {
        Some(index) => Value::unnamed_variant("ApplyExtrinsic", [Value::u128(index.into())]),
        None => Value::unnamed_variant("Initialization", []),
    };
    Value::named_composite([("phase", phase), ("event", event), ("topics", Value::unnamed_composite([]))])
}

/// The ledger's event, if the runtime has it: there is none of an epoch in Subtensor, and one whose fields are others
/// than ours is not told wrongly.
pub(in crate::chain) fn of_ledger(runtime: &Runtime, netuid: u16, event: &Event) -> Option<Value> {
    let number = |value: u64| Value::u128(value.into());
    let (pallet, name, fields) = match event {
        Event::NeuronRegistered { uid, hotkey } => {
            let fields = vec![number(netuid.into()), number(uid.0.into()), Value::from_bytes(hotkey.0)];
            (SUBTENSOR, "NeuronRegistered", Composite::Unnamed(fields))
        }
        Event::WeightsSet { uid: Uid(uid) } => {
            let fields = vec![number(netuid.into()), number((*uid).into())];
            (SUBTENSOR, "WeightsSet", Composite::Unnamed(fields))
        }
        Event::Commitment { who } => {
            let fields = [("netuid", number(netuid.into())), ("who", Value::from_bytes(who.0))];
            ("Commitments", "Commitment", Composite::named(fields))
        }
        Event::TimelockedWeightsCommitted { who, commit_hash, reveal_round } => {
            let (who, hash) = (Value::from_bytes(who.0), Value::from_bytes(commit_hash));
            let fields = vec![who, number(netuid.into()), hash, number(*reveal_round)];
            (SUBTENSOR, "TimelockedWeightsCommitted", Composite::Unnamed(fields))
        }
        Event::TimelockedWeightsRevealed { who, .. } => {
            let fields = vec![number(netuid.into()), Value::from_bytes(who.0)];
            (SUBTENSOR, "TimelockedWeightsRevealed", Composite::Unnamed(fields))
        }
        Event::WeightsCommitted { who, commit_hash } => {
            let fields = vec![Value::from_bytes(who.0), number(netuid.into()), Value::from_bytes(commit_hash)];
            (SUBTENSOR, "WeightsCommitted", Composite::Unnamed(fields))
        }
        Event::WeightsRevealed { who, commit_hash, .. } => {
            let fields = vec![Value::from_bytes(who.0), number(netuid.into()), Value::from_bytes(commit_hash)];
            (SUBTENSOR, "WeightsRevealed", Composite::Unnamed(fields))
        }
        Event::Funded { account, amount } => {
            let fields = [("who", Value::from_bytes(account.0)), ("amount", number(*amount))];
            ("Balances", "Deposit", Composite::named(fields))
        }
        Event::StakeAdded { .. } | Event::Trimmed { .. } | Event::Epoch { .. } => return None,
    };
    let variants = runtime.metadata().pallet_by_name(pallet)?.event_variants()?;
    let shape = variants.iter().find(|variant| variant.name == name)?;
    (shape.fields.len() == fields.len()).then(|| in_pallet(pallet, name, fields))
}

fn in_pallet(pallet: &str, name: &str, fields: Composite<()>) -> Value {
    let event = Value::without_context(ValueDef::Variant(Variant { name: name.to_owned(), values: fields }));
    Value::unnamed_variant(pallet, [event])
}

/// The event that ends an extrinsic.
pub(in crate::chain) fn outcome(runtime: &Runtime, result: Result<(), DispatchError>) -> Value {
    let info = ("dispatch_info", dispatch_info());
    match result {
        Ok(()) => in_pallet("System", "ExtrinsicSuccess", Composite::named([info])),
        Err(error) => {
            let fields = [("dispatch_error", dispatch_error(runtime, error)), info];
            in_pallet("System", "ExtrinsicFailed", Composite::named(fields))
        }
    }
}

fn dispatch_info() -> Value {
    let weight = Value::named_composite([("ref_time", Value::u128(0)), ("proof_size", Value::u128(0))]);
    Value::named_composite([
        ("weight", weight),
        ("class", Value::unnamed_variant("Normal", [])),
        ("pays_fee", Value::unnamed_variant("No", [])),
    ])
}

/// The error by its place in its pallet; one that this runtime does not have is `Other`.
fn dispatch_error(runtime: &Runtime, error: DispatchError) -> Value {
    if error == DispatchError::BadOrigin {
        return Value::unnamed_variant("BadOrigin", []);
    }
    let pallet = runtime.metadata().pallet_by_name(error.pallet());
    let variant = pallet.as_ref().and_then(|pallet| {
        let variants = pallet.error_variants()?;
        Some((pallet.error_index(), variants.iter().find(|variant| variant.name == error.name())?.index))
    });
    let Some((pallet, error)) = variant else { return Value::unnamed_variant("Other", []) };
    let module = [("index", Value::u128(pallet.into())), ("error", Value::from_bytes([error, 0, 0, 0]))];
    Value::unnamed_variant("Module", [Value::named_composite(module)])
}
