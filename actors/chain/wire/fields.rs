//! A commitment's fields as the Commitments pallet types them: bytes of each length up to 128 are a variant of their own
//! (`Raw0` … `Raw128`), longer ones are `BigRaw`.
//!
//! What is read comes from strangers, so nothing is allocated by a length that they claim: sequences grow as their bytes
//! come, and the bytes of a message are bounded before it gets here.

use std::marker::PhantomData;

use convoke::chain::call::FIELD_BYTES_MAX;
use subxt::ext::scale_decode::visitor::types::Variant;
use subxt::ext::scale_decode::visitor::{TypeIdFor, Unexpected};
use subxt::ext::scale_decode::{DecodeAsType, Error, IntoVisitor, TypeResolver, Visitor};
use subxt::ext::scale_value::Value;

/// The longest field that has a variant for its length.
const RAW_MAX: usize = 128;

/// What is stored of a commitment, without the deposit.
#[derive(DecodeAsType)]
#[decode_as_type(crate_path = "subxt::ext::scale_decode")]
pub(in crate::chain) struct Registration {
    /// The block of the call.
    pub(in crate::chain) block: u64,
    /// Its argument.
    pub(in crate::chain) info: Info,
}

/// The pallet's `CommitmentInfo`.
#[derive(DecodeAsType)]
#[decode_as_type(crate_path = "subxt::ext::scale_decode")]
pub(in crate::chain) struct Info {
    fields: Vec<Field>,
}

/// A field's bytes. One that holds no bytes (a hash, something timelocked) has none for us, so that the others keep
/// their places.
struct Field(Vec<u8>);

impl Info {
    pub(in crate::chain) fn into_fields(self) -> Vec<Vec<u8>> {
        self.fields.into_iter().map(|field| field.0).collect()
    }
}

/// The `CommitmentInfo` of these fields.
pub(in crate::chain) fn to_info(fields: &[Vec<u8>]) -> Value {
    let fields = fields.iter().map(|bytes| {
        let name = if bytes.len() <= RAW_MAX { format!("Raw{}", bytes.len()) } else { "BigRaw".to_owned() };
        Value::unnamed_variant(name, [Value::from_bytes(bytes)])
    });
    Value::named_composite([("fields", Value::unnamed_composite(fields))])
}

struct FieldVisitor<R>(PhantomData<R>);

impl IntoVisitor for Field {
    type AnyVisitor<R: TypeResolver> = FieldVisitor<R>;

    fn into_visitor<R: TypeResolver>() -> Self::AnyVisitor<R> {
        FieldVisitor(PhantomData)
    }
}

impl<R: TypeResolver> Visitor for FieldVisitor<R> {
    type Value<'scale, 'resolver> = Field;
    type Error = Error;
    type TypeResolver = R;

    fn visit_variant<'scale, 'resolver>(
        self,
        value: &mut Variant<'scale, 'resolver, R>,
        _: TypeIdFor<Self>,
    ) -> Result<Self::Value<'scale, 'resolver>, Error> {
        let length = value.name().strip_prefix("Raw");
        let is_bytes = value.name() == "BigRaw" || length.is_some_and(|length| length.parse::<u8>().is_ok());
        if !is_bytes {
            return Ok(Field(Vec::new()));
        }
        let bytes = value.fields().decode_item(Vec::<u8>::into_visitor()).transpose()?.unwrap_or_default();
        if bytes.len() > FIELD_BYTES_MAX {
            return Err(Error::custom_str("a field longer than the pallet holds"));
        }
        Ok(Field(bytes))
    }

    fn visit_unexpected<'scale, 'resolver>(
        self,
        unexpected: Unexpected,
    ) -> Result<Self::Value<'scale, 'resolver>, Error> {
        Err(Error::custom_string(format!("a field is no variant but {unexpected}")))
    }
}
