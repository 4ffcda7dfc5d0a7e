//! Sizes of whole payloads, and the speed of their transport coding.

use std::hint::black_box;

use convoke::hotkey::HotkeyPair;
use convoke::payload::{Header, Payload, transport};
use convoke::run_spec::SparseSpec;
use convoke::sparseloco::{Encoded, Layout};
use convoke::terms::{Digest, Round, RunId, Uid};

use super::floor::{core_seconds, median};

/// One payload, both ways.
pub struct Wire<'a> {
    layout: &'a Layout,
    spec: &'a SparseSpec,
    payload: Payload,
    transport: Vec<u8>,
}

impl<'a> Wire<'a> {
    pub fn new(layout: &'a Layout, spec: &'a SparseSpec, encoded: Encoded) -> Self {
        let pair = HotkeyPair::from_seed(&[7; 32]);
        let header = Header {
            run_id: RunId([1; 32]),
            round: Round(9),
            uid: Uid(3),
            hotkey: pair.hotkey(),
            base: Digest([2; 32]),
            layout: layout.hash(),
            inner_steps: 30,
        };
        let payload = Payload::seal(header, layout, spec, encoded.body, &pair);
        let transport = transport::encode(&payload, layout, spec);
        Self { layout, spec, payload, transport }
    }

    /// Δ in fp32 over the payload with header and signature: canonical, and as it travels.
    pub fn ratios(&self) -> [f64; 2] {
        let dense = 4.0 * self.layout.n_params() as f64;
        [self.payload.bytes().len(), self.transport.len()].map(|len| dense / len as f64)
    }

    /// Values a core second: coded for transport, decoded from it.
    pub fn values_per_second(&self, repetitions: usize) -> [f64; 2] {
        let values = (self.layout.n_chunks() * self.spec.keep_per_chunk) as f64;
        let (mut coded, mut decoded) = (Vec::new(), Vec::new());
        for _ in 0..repetitions {
            let coding = || drop(black_box(transport::encode(&self.payload, self.layout, self.spec)));
            coded.push(values / core_seconds(coding));
            let mut decoder = transport::Decoder::new(self.layout, self.spec);
            let mut n_bytes = 0;
            let mut outcome = Ok(());
            decoded.push(
                values
                    / core_seconds(|| {
                        outcome = decoder.decode(&self.transport, |bytes| n_bytes += black_box(bytes).len());
                    }),
            );
            assert!(outcome.is_ok() && n_bytes == self.payload.bytes().len(), "{outcome:?}, {n_bytes} bytes");
        }
        [median(&mut coded), median(&mut decoded)]
    }
}
