//! SparseLoCo by the library: contributions are encoded, sealed, coded for transport, decoded, and applied.
//!
//! Exact values (quantiser `none`) have no wire format. They are kept, limited and averaged here by the library's rules, and
//! their bytes are those of a one-bit payload with 32 bits in place of each sign.

use convoke::digest::digest;
use convoke::hotkey::HotkeyPair;
use convoke::payload::{Header, Payload, transport};
use convoke::run_spec::{Aggregation, SparseSpec};
use convoke::sparseloco::{self, BodyRef, CHUNK_LEN, Layout};
use convoke::terms::{Round, RunId, Uid};

use crate::method::Sparse;
use crate::rounds::{Outer, Sent};
use crate::training::{N_PEERS, Training};

/// What exact values take beyond their signs.
const EXACT_BYTES: f64 = 31.0 / 8.0;

/// SparseLoCo (arXiv:2508.15706), from the senders' side and the outer step's.
pub struct SparseLoCo {
    numbers: Sparse,
    senders: Vec<Sender>,
}

/// A peer's side of compression.
struct Sender {
    pair: HotkeyPair,
    /// e, chunk-major.
    error: Vec<f32>,
}

/// One peer's contribution to a round.
struct Contribution {
    /// As it came out of transport coding.
    payload: Payload,
    /// Δ̂, chunk-major, if values are sent as they are.
    exact: Option<Vec<f32>>,
    sent: Sent,
}

impl SparseLoCo {
    pub fn new(numbers: Sparse, training: &Training<'_>) -> Self {
        let error = || vec![0.0; training.theta.len()];
        let sender = |idx| Sender { pair: HotkeyPair::from_seed(&[idx; 32]), error: error() };
        Self { numbers, senders: (0..N_PEERS as u8).map(sender).collect() }
    }
}

impl Outer for SparseLoCo {
    fn round(&mut self, training: &mut Training<'_>, round: usize) -> Sent {
        let (setting, spec) = (training.setting, self.numbers.spec(round));
        let is_exact = self.numbers.quantiser.is_none();
        let deltas = training.deltas(round);
        let base = digest(&training.theta);
        let contribute = |(sender, delta): (&mut Sender, &Vec<f32>)| {
            let header = Header {
                run_id: RunId([0; 32]),
                round: Round(round as u64),
                uid: Uid(0),
                hotkey: sender.pair.hotkey(),
                base,
                layout: setting.layout.hash(),
                inner_steps: setting.inner.steps,
            };
            sender.contribute(&setting.layout, &spec, header, delta, is_exact)
        };
        let contributions: Vec<Contribution> = self.senders.iter_mut().zip(&deltas).map(contribute).collect();
        if is_exact {
            let exact: Vec<&[f32]> = contributions.iter().filter_map(|one| one.exact.as_deref()).collect();
            apply_exact(&setting.layout, &spec, &exact, &mut training.theta);
        } else {
            let bodies: Vec<BodyRef<'_>> = contributions.iter().map(|one| one.payload.body()).collect();
            sparseloco::outer_step(&setting.layout, &spec, &bodies, &mut training.theta);
        }
        Sent::mean(contributions.iter().map(|one| one.sent))
    }
}

impl Sender {
    /// Encodes Δ, seals it, codes it for transport and decodes it again.
    fn contribute(
        &mut self,
        layout: &Layout,
        spec: &SparseSpec,
        header: Header,
        delta: &[f32],
        is_exact: bool,
    ) -> Contribution {
        let encoded = sparseloco::encode(layout, spec, &mut self.error, delta).expect("training gives finite numbers");
        let report = encoded.report;
        let exact = is_exact.then(|| {
            encoded.undo.restore(layout, encoded.body.view(), &mut self.error);
            take_kept(layout, encoded.body.view(), &mut self.error)
        });
        let sealed = Payload::seal(header, layout, spec, encoded.body, &self.pair);
        let coded = transport::encode(&sealed, layout, spec);
        let payload = transport::parse(&coded, layout, spec).expect("what was coded for transport is a payload");
        assert_eq!(payload.bytes(), sealed.bytes(), "transport coding loses nothing");
        let more = if is_exact { EXACT_BYTES * report.kept as f64 } else { 0.0 };
        let sent = Sent {
            canonical_bytes: sealed.bytes().len() as f64 + more,
            transport_bytes: coded.len() as f64 + more,
            energy_kept: report.energy_kept,
            energy_lost: if is_exact { 0.0 } else { report.energy_lost },
        };
        Contribution { payload, exact, sent }
    }
}

/// The values at the kept positions, which leave e.
fn take_kept(layout: &Layout, body: BodyRef<'_>, error: &mut [f32]) -> Vec<f32> {
    let mut kept = vec![0.0; error.len()];
    for tensor_idx in 0..layout.tensors().len() {
        for chunk_idx in layout.chunks_of(tensor_idx) {
            let record = body.record(chunk_idx);
            if record.scale() == 0 {
                continue;
            }
            record.for_each(body.format().kept_of(layout.valid(tensor_idx, chunk_idx)), |position, _| {
                let at = chunk_idx * CHUNK_LEN + position;
                kept[at] = std::mem::take(&mut error[at]);
            });
        }
    }
    kept
}

/// The outer step on exact values: each contribution's tensor limited to the median norm, then the run's mean.
fn apply_exact(layout: &Layout, spec: &SparseSpec, contributions: &[&[f32]], theta: &mut [f32]) {
    for tensor_idx in 0..layout.tensors().len() {
        let range = layout.flat_range_of(tensor_idx);
        let norm = |values: &&[f32]| values[range.clone()].iter().map(|a| f64::from(*a).powi(2)).sum::<f64>().sqrt();
        let norms: Vec<f64> = contributions.iter().map(norm).collect();
        let mut sorted = norms.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let median = sorted[(sorted.len() - 1) / 2];
        let limits: Vec<f64> = norms.iter().map(|norm| if *norm > median { median / norm } else { 1.0 }).collect();
        for at in range {
            let values = contributions.iter().map(|values| f64::from(values[at]));
            let sum: f64 = values.clone().zip(&limits).map(|(value, limit)| value * limit).sum();
            let divisor = match spec.aggregation {
                Aggregation::MeanOfAll => contributions.len(),
                Aggregation::MeanOfSenders => values.filter(|value| *value != 0.0).count().max(1),
            };
            theta[at] -= spec.lr_outer * (sum / divisor as f64) as f32;
        }
    }
}
