//! **C-2** and **C-3** on all that nodes read of each other: one content has one encoding, and whoever reads what strangers write
//! neither panics nor refuses without a reason.
//!
//! Every payload is looked at when it is opened for the first time: it is written again from what it says, field by field and bit by
//! bit, and must be what it was. What is damaged on the way has another hash and never gets to a parser; so one payload in
//! `MUTATED_EVERY` is damaged here, in ways that depend on its hash alone, and the real parser must see it. Manifests and
//! commitments are looked at once a round. How much a parser allocates is not seen here: `tests/payload_bounds.rs` counts that.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use convoke::chain::{Commitment, Registry};
use convoke::gauntlet::copies::{CopyFound, Sealed};
use convoke::hotkey::SIGNATURE_LEN;
use convoke::manifest::Manifest;
use convoke::payload::transport::{self, Decoder, MalformedTransport};
use convoke::payload::{self, HEADER_LEN, Header, Payload};
use convoke::run_spec::{Quantiser, SparseSpec};
use convoke::sparseloco::{BLOCK_EDGE, BodyRef, Format, Layout, Levels, Record, Valid};
use convoke::terms::{BlockHash, Digest, Hotkey, Round};

use super::{Found, Violation};
use crate::chain::{Commitments, Metagraph};
use crate::fake::chance::Chance;
use crate::opening::Opening;
use crate::workbench::reason;

/// Of so many payloads one is coded for its transport again: zstd takes about 100 µs for it.
const CODED_EVERY: u8 = 8;
/// Of so many payloads one is damaged, which takes about half a millisecond: two of those that 64 nodes make in a round.
const MUTATED_EVERY: u8 = 32;
/// Single bits that are turned in each form of a payload.
const BIT_FLIPS: u64 = 6;
/// Payloads that are known to have been looked at, in each of two generations.
const GENERATION_MAX: usize = 1024;
/// Bytes of a transport coding before its header: magic and version.
const PREFIX_LEN: usize = 6;
/// Lengths of frames at the beginning of a block, at most, and their bytes.
const FRAMES_MAX: usize = 3;
const FRAME_LEN_BYTES: usize = 4;
/// Bits of a kept position's column.
const COLUMN_BITS: usize = 6;

/// An opening that looks at what comes out of another.
pub struct CheckedOpening {
    opening: Arc<dyn Opening>,
    found: Arc<dyn Found>,
    seen: Mutex<[BTreeSet<[u8; 32]>; 2]>,
}

impl CheckedOpening {
    /// Opens by `opening`, and tells what must not be.
    #[must_use]
    pub fn new(opening: Arc<dyn Opening>, found: Arc<dyn Found>) -> Self {
        Self { opening, found, seen: Mutex::default() }
    }

    fn is_new(&self, hash: [u8; 32]) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let [young, old] = &mut *seen;
        if young.contains(&hash) || old.contains(&hash) {
            return false;
        }
        if young.len() >= GENERATION_MAX {
            *old = std::mem::take(young);
        }
        young.insert(hash)
    }

    fn tell(&self, round: Round, broken: Vec<Broken>) {
        for Broken { rule, what } in broken {
            self.found.found(Violation { rule, round, what });
        }
    }
}

impl Opening for CheckedOpening {
    fn payload(&self, bytes: &[u8], layout: &Layout, spec: &SparseSpec) -> Result<Arc<Payload>, MalformedTransport> {
        let opened = catch_unwind(AssertUnwindSafe(|| self.opening.payload(bytes, layout, spec)));
        let payload = match opened {
            Ok(Ok(payload)) => payload,
            Ok(Err(refusal)) => {
                let unnamed = unnamed(refusal.reason(), &refusal);
                self.tell(Round::default(), unnamed.into_iter().collect());
                return Err(refusal);
            }
            Err(panic) => {
                let broken = Broken::c3(format!("a payload makes its parser panic: {}", reason(panic.as_ref())));
                self.tell(Round::default(), vec![broken]);
                resume_unwind(panic);
            }
        };
        let hash = payload.hash().0;
        if self.is_new(hash) {
            let mut broken = look_at(&payload, layout, spec);
            if hash[0].is_multiple_of(CODED_EVERY) {
                broken.extend(code_again(&payload, layout, spec));
            }
            if hash[0].is_multiple_of(MUTATED_EVERY) {
                broken.extend(damage(&payload, bytes, layout, spec));
            }
            self.tell(payload.header().round, broken);
        }
        Ok(payload)
    }

    fn holding(&self, theta: &[f32], base: Digest, seed: &BlockHash, hotkey: &Hotkey, n_chunks: usize) -> Digest {
        self.opening.holding(theta, base, seed, hotkey, n_chunks)
    }

    fn registry(&self, metagraph: &Arc<Metagraph>, commitments: &Arc<Commitments>) -> Arc<Registry> {
        self.opening.registry(metagraph, commitments)
    }

    fn copies(&self, order: &[Sealed], payloads: &[&Payload], layout: &Layout, overlap_max: f64) -> Vec<CopyFound> {
        self.opening.copies(order, payloads, layout, overlap_max)
    }
}

/// A rule that does not hold, and how that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Which rule.
    pub rule: &'static str,
    /// What was seen.
    pub what: String,
}

impl Broken {
    fn c2(what: impl Into<String>) -> Self {
        Self { rule: "C-2", what: what.into() }
    }

    fn c3(what: impl Into<String>) -> Self {
        Self { rule: "C-3", what: what.into() }
    }
}

/// C-3: a refusal has its reason, for counters and for people.
fn unnamed(name: &str, text: &impl ToString) -> Option<Broken> {
    let is_named = !name.is_empty() && !text.to_string().is_empty();
    (!is_named).then(|| Broken::c3("a refusal without a reason"))
}

/// C-2: a payload is what is written of what it says.
fn look_at(payload: &Payload, layout: &Layout, spec: &SparseSpec) -> Vec<Broken> {
    let (bytes, mut broken) = (&payload.bytes()[..], Vec::new());
    if *blake3::hash(bytes).as_bytes() != payload.hash().0 {
        broken.push(Broken::c2(format!("the hash of {payload:?} is not that of its bytes")));
    }
    if written_again(payload, layout, spec) != bytes {
        broken.push(Broken::c2(format!("{payload:?} is not the one encoding of what it says")));
    }
    broken
}

/// C-2: a payload survives its transport coding, as a whole and piece by piece.
fn code_again(payload: &Payload, layout: &Layout, spec: &SparseSpec) -> Vec<Broken> {
    let (bytes, mut broken) = (&payload.bytes()[..], Vec::new());
    let coded = transport::encode(payload, layout, spec);
    let max = transport::len_max(layout, spec);
    if coded.len() > max {
        broken.push(Broken::c3(format!("the coding of {payload:?} has {} bytes of at most {max}", coded.len())));
    }
    let mut pieces = Vec::with_capacity(bytes.len());
    let by_piece = Decoder::new(layout, spec).decode(&coded, |piece| pieces.extend_from_slice(piece));
    let decoded = transport::decode(&coded, layout, spec);
    if by_piece.is_err() || pieces != bytes || decoded.is_err() || decoded.is_ok_and(|decoded| decoded[..] != *bytes) {
        broken.push(Broken::c2(format!("{payload:?} does not survive its transport coding")));
    }
    broken
}

/// C-3: the parser on what a broken or hostile peer would send. None of it is another payload: it is not signed.
fn damage(payload: &Payload, coded: &[u8], layout: &Layout, spec: &SparseSpec) -> Vec<Broken> {
    let mut broken = Vec::new();
    let levels_len = BodyRef::lens(layout, Format::of(spec)).0;
    let lens_at = PREFIX_LEN + HEADER_LEN + levels_len + SIGNATURE_LEN + 1;
    for bytes in damaged(coded, payload.hash().0).into_iter().chain(with_other_lengths(coded, lens_at)) {
        let parse = || transport::parse(&bytes, layout, spec).map_err(|refusal| named(refusal.reason(), &refusal));
        broken.extend(survived(parse, |taken: &Payload| taken.bytes() == payload.bytes()));
    }
    for bytes in damaged(payload.bytes(), payload.hash().0) {
        let parse = || {
            let parsed = Payload::parse(bytes.as_slice().into(), layout, spec);
            parsed.map_err(|refusal: payload::Malformed| named(refusal.reason(), &refusal))
        };
        broken.extend(survived(parse, |_| false));
    }
    broken
}

/// What was read; or a refusal, and whether it has a reason.
type Read<T> = Result<T, Result<(), Broken>>;

/// Whether a refusal has a reason.
fn named(name: &str, text: &impl ToString) -> Result<(), Broken> {
    unnamed(name, text).map_or(Ok(()), Err)
}

/// What is wrong with how something damaged was read; `is_known` says of what was taken whether it may be.
fn survived<T>(read: impl FnOnce() -> Read<T>, is_known: impl Fn(&T) -> bool) -> Option<Broken> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(taken)) if is_known(&taken) => None,
        Ok(Ok(_)) => Some(Broken::c2("damaged bytes are taken for something else")),
        Ok(Err(named)) => named.err(),
        Err(panic) => Some(Broken::c3(format!("damaged bytes make their parser panic: {}", reason(panic.as_ref())))),
    }
}

/// The same bytes with single bits turned, cut off, and longer than they were.
fn damaged(bytes: &[u8], hash: [u8; 32]) -> Vec<Vec<u8>> {
    let chance = Chance::new(u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|at| hash[at])));
    let flips = (0..BIT_FLIPS).filter(|_| !bytes.is_empty()).map(|flip| {
        let bit = chance.below(bytes.len() * 8, "bit", &[flip]);
        let mut bytes = bytes.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    });
    let cut = bytes[..chance.below(bytes.len(), "cut", &[])].to_vec();
    flips.chain([cut, [bytes, &[0]].concat(), bytes.repeat(2)]).collect()
}

/// The same block with each of its frames said to be twice as long, and as long as can be said.
fn with_other_lengths(coded: &[u8], lens_at: usize) -> Vec<Vec<u8>> {
    let places = (0..FRAMES_MAX).map(|frame| lens_at + frame * FRAME_LEN_BYTES);
    let changed = places.flat_map(|at| {
        let field = coded.get(at..at + FRAME_LEN_BYTES).and_then(|field| field.try_into().ok());
        let len = field.map(u32::from_le_bytes);
        let others = len.into_iter().flat_map(|len| [len.wrapping_mul(2).wrapping_add(1), u32::MAX]);
        others.map(move |other| {
            let mut coded = coded.to_vec();
            coded[at..at + FRAME_LEN_BYTES].copy_from_slice(&other.to_le_bytes());
            coded
        })
    });
    changed.collect()
}

/// What is wrong with how a manifest is read, and with how it would be read if it were damaged.
#[must_use]
pub fn of_manifest(bytes: &[u8], contributors_max: usize) -> Vec<Broken> {
    let read = |bytes: &[u8]| match Manifest::parse(bytes, contributors_max) {
        Ok(manifest) => Ok(manifest.encode()),
        Err(refusal) => Err(named("manifest", &refusal)),
    };
    let mut broken = Vec::new();
    // Nothing in a manifest is signed: what was changed is another one, if it is one, and has its own single encoding.
    for bytes in damaged(bytes, *blake3::hash(bytes).as_bytes()).into_iter().chain([bytes.to_vec()]) {
        broken.extend(survived(|| read(&bytes), |again: &Vec<u8>| *again == bytes));
    }
    broken
}

/// What is wrong with how a commitment is read, and with how it would be read if one of its fields were damaged.
#[must_use]
pub fn of_commitment(fields: &[Vec<u8>]) -> Vec<Broken> {
    let read = |fields: &[Vec<u8>]| match Commitment::parse(fields) {
        Ok(commitment) => Ok(commitment.to_fields()),
        Err(refusal) => Err(named("commitment", &refusal)),
    };
    let mut others = vec![fields.to_vec()];
    for (idx, field) in fields.iter().enumerate().filter(|(_, field)| !field.is_empty()) {
        // One with a bit turned, and one cut off: there are as many commitments as nodes, in every round.
        for other in damaged(field, *blake3::hash(field).as_bytes()).into_iter().step_by(BIT_FLIPS as usize).take(2) {
            let mut fields = fields.to_vec();
            fields[idx] = other;
            others.push(fields);
        }
    }
    let wrong = |fields: &Vec<Vec<u8>>| survived(|| read(fields), |again: &Vec<Vec<u8>>| again == fields);
    others.iter().filter_map(wrong).collect()
}

/// A payload from what it says; its signature is what it is.
fn written_again(payload: &Payload, layout: &Layout, spec: &SparseSpec) -> Vec<u8> {
    let (format, body) = (Format::of(spec), payload.body());
    let mut bytes = header_again(payload.header(), layout, format);
    for tensor_idx in 0..layout.tensors().len() {
        match body.levels(tensor_idx) {
            Levels::OneBit => {}
            Levels::TwoBit { low, high } => bytes.extend([low, high].map(u16::to_le_bytes).concat()),
            Levels::SigmaBins { shift, lookup } => {
                bytes.extend(shift.to_le_bytes());
                bytes.extend(lookup.map(f32::to_le_bytes).concat());
            }
        }
    }
    for tensor_idx in 0..layout.tensors().len() {
        for chunk_idx in layout.chunks_of(tensor_idx) {
            record_again(format, layout.valid(tensor_idx, chunk_idx), body.record(chunk_idx), &mut bytes);
        }
    }
    bytes.extend(&payload.bytes()[payload.bytes().len() - SIGNATURE_LEN..]);
    bytes
}

/// The header's fields in their places, as `convoke::payload` describes them.
fn header_again(header: &Header, layout: &Layout, format: Format) -> Vec<u8> {
    let quantiser = match format.quantiser() {
        Quantiser::TwoBit => 0,
        Quantiser::OneBit => 1,
        Quantiser::SigmaBins => 2,
    };
    let counts = [layout.tensors().len(), layout.n_chunks()].map(|count| (count as u32).to_le_bytes());
    let (version, keep) = (payload::VERSION.to_le_bytes(), (format.keep() as u16).to_le_bytes());
    let Header { run_id, round, uid, hotkey, base, layout: layout_hash, inner_steps } = header;
    let (round, uid, steps) = (round.0.to_le_bytes(), uid.0.to_le_bytes(), inner_steps.to_le_bytes());
    let fields: [&[u8]; 13] = [
        &payload::MAGIC,
        &version,
        &keep,
        &[quantiser],
        &counts[0],
        &counts[1],
        &run_id.0,
        &round,
        &uid,
        &steps,
        &hotkey.0,
        &base.0,
        &layout_hash.0,
    ];
    fields.concat()
}

/// A record from the positions and codes that it says: row counts, columns, planes of codes, scale.
fn record_again(format: Format, valid: Valid, record: Record<'_>, bytes: &mut Vec<u8>) {
    let n_kept = format.kept_of(valid);
    let mut kept: Vec<(usize, u8)> = Vec::with_capacity(n_kept);
    record.for_each(n_kept, |position, code| kept.push((position, code)));
    if record.scale() == 0 {
        kept = valid.positions().take(n_kept).map(|position| (position, 0)).collect();
    }
    let mut rows = Bits::of(format.keep() + BLOCK_EDGE);
    // The i-th one stands after i ones and as many zeros as its row's number.
    kept.iter().enumerate().for_each(|(i, (position, _))| rows.set(i + position / BLOCK_EDGE, 1));
    let mut columns = Bits::of(COLUMN_BITS * format.keep());
    kept.iter().enumerate().for_each(|(i, (position, _))| columns.set(COLUMN_BITS * i, position % BLOCK_EDGE));
    bytes.extend(rows.0);
    bytes.extend(columns.0);
    let n_planes = match format.quantiser() {
        Quantiser::OneBit => 1,
        Quantiser::TwoBit => 2,
        Quantiser::SigmaBins => {
            let mut codes = Bits::of(2 * format.keep());
            kept.iter().enumerate().for_each(|(i, (_, code))| codes.set(2 * i, usize::from(*code)));
            bytes.extend(codes.0);
            return;
        }
    };
    for plane in 0..n_planes {
        let mut bits = Bits::of(format.keep());
        kept.iter().enumerate().for_each(|(i, (_, code))| bits.set(i, usize::from(code >> plane & 1)));
        bytes.extend(bits.0);
    }
    bytes.push(record.scale());
}

/// Bits that fill bytes from the lowest.
struct Bits(Vec<u8>);

impl Bits {
    fn of(n_bits: usize) -> Self {
        Self(vec![0; n_bits.div_ceil(8)])
    }

    /// Sets those bits from `at` on that a number has; what would be beyond the end is left out, and so another encoding.
    fn set(&mut self, at: usize, number: usize) {
        for bit in (0..usize::BITS as usize).filter(|bit| number >> bit & 1 == 1) {
            if let Some(byte) = self.0.get_mut((at + bit) / 8) {
                *byte |= 1 << ((at + bit) % 8);
            }
        }
    }
}

#[cfg(test)]
mod tests;
