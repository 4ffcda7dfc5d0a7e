//! The Gauntlet's work, on its own thread: the rules of `convoke::gauntlet` applied to the node's records.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use convoke::assignment::{EvalDraw, assigned, eval_samples};
use convoke::chain::commitment::Seal;
use convoke::gauntlet::copies::Sealed;
use convoke::gauntlet::fast_checks::{Expected, PayloadFacts, RejectReason, SealClaim, check_payload, check_seal};
use convoke::gauntlet::history::{after_match, registered_only};
use convoke::gauntlet::loss_score::{scales, usual_sizes};
use convoke::gauntlet::record::{self, Outcome, Standing};
use convoke::gauntlet::{selection, weights};
use convoke::manifest::{Entry, Manifest};
use convoke::payload::{Payload, transport};
use convoke::sparseloco;
use convoke::terms::{Block, BlockHash, Digest, Hotkey, Round};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{
    CheckRequest, Claim, Evaluation, Gathered, Passed, PlanRequest, ProposeRequest, Rated, Rejection, SECTION,
    Standings,
};
use crate::node::Parts;

/// Holds the standing after a match that ended between two boundaries.
const RATED_SECTION: &str = "gauntlet-rated";
/// Records used in this many rounds back are known as replays; older ones fail by their error feedback anyway.
const REPLAY_ROUNDS: u64 = 64;

/// What lies on the bench.
pub(super) struct Desk {
    parts: Arc<Parts>,
    standing: Standing,
    used: Used,
    /// The last round whose match is in the standing.
    rated: Option<Round>,
}

/// Hashes of the records that have passed in the last rounds, and when each has.
type Used = BTreeMap<[u8; 32], Round>;

/// How [`Used`] is written: in one piece, since a round of many miners adds some hundred entries to thousands.
mod packed {
    use convoke::terms::Round;
    use serde::{Deserialize, Deserializer, Serializer, de};

    use super::Used;

    const ENTRY_LEN: usize = 32 + 8;

    pub fn serialize<S: Serializer>(used: &Used, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::with_capacity(used.len() * ENTRY_LEN);
        for (records, used_in) in used {
            bytes.extend_from_slice(records);
            bytes.extend_from_slice(&used_in.0.to_le_bytes());
        }
        serializer.serialize_bytes(&bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Used, D::Error> {
        let bytes = <&[u8]>::deserialize(deserializer)?;
        let (entries, rest) = bytes.as_chunks::<ENTRY_LEN>();
        if !rest.is_empty() {
            return Err(de::Error::invalid_length(bytes.len(), &"whole entries"));
        }
        let entry = |entry: &[u8; ENTRY_LEN]| {
            let (records, used_in) = entry.split_first_chunk::<32>()?;
            Some((*records, Round(u64::from_le_bytes(*used_in.first_chunk()?))))
        };
        Ok(entries.iter().filter_map(entry).collect())
    }
}

/// As it is read. Of a match between two boundaries `used` is empty: the boundary has it.
#[derive(Deserialize)]
struct Boundary {
    standing: Standing,
    #[serde(with = "packed")]
    used: Used,
    rated: Option<Round>,
}

/// As it is written.
#[derive(Serialize)]
struct BoundaryRef<'a> {
    standing: &'a Standing,
    #[serde(with = "packed")]
    used: &'a Used,
    rated: Option<Round>,
}

impl Desk {
    /// The newest standing on disk: the boundary's, or that of a match which ended after it.
    ///
    /// # Panics
    /// When there is a boundary and it cannot be read: ratings that took many rounds are not begun anew for a full table
    /// of open files.
    pub fn load(parts: Arc<Parts>) -> Self {
        let latest = parts.store.latest().unwrap_or_else(|error| panic!("{error}"));
        let boundary = latest.map(|round| {
            let read = |section: &str| {
                let bytes = parts.store.read(round, section).map_err(|error| error.to_string())?;
                postcard::from_bytes::<Boundary>(&bytes).map_err(|error| error.to_string())
            };
            let boundary = read(SECTION).unwrap_or_else(|error| panic!("the ratings of round {round}: {error}"));
            match read(RATED_SECTION).ok().filter(|rated| rated.rated > boundary.rated) {
                Some(rated) => Boundary { used: boundary.used, ..rated },
                None => boundary,
            }
        });
        let empty = || Boundary { standing: Standing::new(), used: BTreeMap::new(), rated: None };
        let Boundary { standing, used, rated } = boundary.unwrap_or_else(empty);
        Self { parts, standing, used, rated }
    }

    pub fn check(&mut self, request: CheckRequest) -> Gathered {
        let CheckRequest { round, claims, delivered, ref registered, .. } = request;
        if self.judges() {
            self.standing = registered_only(&self.standing, &registered.iter().copied().collect(), round);
        }
        // Two claims may name one payload: each is judged on the bytes, and what one claim gets wrong costs nobody else.
        let delivered: BTreeMap<_, Arc<[u8]>> =
            delivered.into_iter().filter_map(|(hash, bytes)| Some((hash, bytes.ok()?))).collect();
        let mut gathered = Gathered::default();
        let mut order = Vec::new();
        for claim in claims {
            let bytes = delivered.get(&claim.seal.transport.0).map(|bytes| &**bytes);
            let ground = Ground { round, seed: &request.seed, base: request.base, theta: &request.theta };
            match self.check_one(&claim, bytes, &ground) {
                Ok(payload) => {
                    order.push(Sealed { hotkey: claim.hotkey, block: claim.place.0, index: claim.place.1 });
                    let Claim { uid, hotkey, seal, .. } = claim;
                    let Seal { transport, transport_bytes, .. } = seal;
                    gathered.passed.push(Passed { uid, hotkey, payload, transport, transport_bytes });
                }
                Err(reason) => {
                    gathered.rejected.push(Rejection { uid: claim.uid, hotkey: claim.hotkey, reason });
                }
            }
        }
        if self.judges() {
            self.reject_copies(&mut gathered, &order);
            // What is gathered anew takes the place of what the round had gathered.
            self.used.retain(|_, used_in| *used_in != round && used_in.0 + REPLAY_ROUNDS > round.0);
            self.used.extend(gathered.passed.iter().map(|passed| (records_hash(&passed.payload), round)));
        }
        gathered
    }

    /// Whether anybody hears of its judgement. Who only mines opens the payloads, to have them when the validators have decided; whether
    /// one is held to, replayed or copied is theirs to find.
    fn judges(&self) -> bool {
        self.parts.config.node.role.validates()
    }

    fn check_one(
        &self,
        claim: &Claim,
        bytes: Option<&[u8]>,
        ground: &Ground<'_>,
    ) -> Result<Arc<Payload>, RejectReason> {
        let run = &self.parts.config.run;
        let schedule = &self.parts.schedule;
        let n_chunks = run.gauntlet.holding_chunks;
        let opening = &self.parts.opening;
        let holding = || opening.holding(ground.theta, ground.base, ground.seed, &claim.hotkey, n_chunks);
        let expected = Expected {
            run_id: self.parts.run_id,
            round: ground.round,
            blocks: schedule.first_block(ground.round)..Block(schedule.sealed_by(ground.round).0 + 1),
            uid: Some(claim.uid),
            base: ground.base,
            layout: self.parts.layout.hash(),
            transport_bytes_max: transport::len_max(&self.parts.layout, &run.sparse) as u64,
            inner_steps_min: run.inner.steps_min,
            inner_steps_max: run.inner.steps,
            holding: self.judges().then(|| Seal::holding_of(&holding())),
            used_records: &self.used,
        };
        let sealed = SealClaim {
            hotkey: claim.hotkey,
            round: claim.seal.round,
            payload: claim.seal.payload,
            transport_bytes: claim.seal.transport_bytes,
            base: claim.seal.base,
            holding: claim.seal.holding,
            sealed_at: claim.place.0,
        };
        check_seal(&sealed, &expected)?;
        let bytes = bytes.ok_or(RejectReason::Missing)?;
        let payload = opening.payload(bytes, &self.parts.layout, &run.sparse);
        let payload = payload.map_err(|malformed| RejectReason::Malformed(malformed.reason().to_owned()))?;
        let header = payload.header();
        let facts = PayloadFacts {
            hash: payload.hash(),
            transport_bytes: bytes.len() as u64,
            records: if self.judges() { records_hash(&payload) } else { [0; 32] },
            run_id: header.run_id,
            round: header.round,
            uid: header.uid,
            hotkey: header.hotkey,
            base: header.base,
            layout: header.layout,
            inner_steps: header.inner_steps,
            // The parser has verified it.
            signature_holds: true,
        };
        check_payload(&sealed, &facts, &expected)?;
        Ok(payload)
    }

    fn reject_copies(&self, gathered: &mut Gathered, order: &[Sealed]) {
        let overlap_max = self.parts.config.run.gauntlet.copy_overlap_max;
        let payloads: Vec<&Payload> = gathered.passed.iter().map(|passed| &*passed.payload).collect();
        let found = self.parts.opening.copies(order, &payloads, &self.parts.layout, overlap_max);
        for copy in found {
            let Some(idx) = gathered.passed.iter().position(|passed| passed.hotkey == copy.copy) else { continue };
            let Passed { uid, hotkey, .. } = gathered.passed.remove(idx);
            gathered.rejected.push(Rejection { uid, hotkey, reason: RejectReason::Copy { original: copy.original } });
        }
    }

    pub fn propose(&self, request: &ProposeRequest) -> Option<Manifest> {
        let passed: Vec<_> = request.gathered.passed.iter().map(|passed| (passed.uid, passed.hotkey)).collect();
        let spec = &self.parts.config.run.gauntlet;
        let chosen = selection::contributors(&passed, &self.standing, request.round, &request.seed, spec);
        let entries = chosen.iter().filter_map(|(uid, hotkey)| {
            let passed = request.gathered.passed.iter().find(|passed| passed.hotkey == *hotkey)?;
            let Passed { ref payload, transport, transport_bytes, .. } = *passed;
            Some(Entry { uid: *uid, hotkey: *hotkey, payload: payload.hash(), transport, transport_bytes })
        });
        let entries: Vec<Entry> = entries.collect();
        let ProposeRequest { round, prev, base, .. } = *request;
        (!entries.is_empty()).then_some(Manifest { round, prev, base, entries })
    }

    pub fn plan(&self, request: &PlanRequest) -> Vec<Evaluation> {
        let run = &self.parts.config.run;
        let me = self.parts.keypair.hotkey();
        let candidates: Vec<Hotkey> = request.gathered.passed.iter().map(|passed| passed.hotkey).collect();
        let n_samples = self.parts.trainers.n_train_samples();
        let layout = &self.parts.layout;
        let passed = request.gathered.passed.iter();
        let norms: Vec<Vec<f64>> = passed.map(|passed| sparseloco::norms(layout, passed.payload.body())).collect();
        let usual = usual_sizes(layout.tensors().len(), &norms);
        let chosen =
            selection::evaluated(&candidates, &me, &self.standing, request.round, &request.draw, &run.gauntlet);
        let plan = chosen.iter().filter_map(|hotkey| {
            let place = request.gathered.passed.iter().position(|passed| passed.hotkey == *hotkey)?;
            let passed = &request.gathered.passed[place];
            let batch = run.inner.batch_sequences;
            let all = assigned(&request.seed, hotkey, n_samples, run.inner.steps as usize * batch);
            let used = passed.payload.header().inner_steps as usize * batch;
            let draw = EvalDraw { seed: request.draw, validator: me, peer: *hotkey };
            let samples = eval_samples(&draw, &all, used, n_samples, run.gauntlet.eval_sequences);
            // Where everybody is assigned everything there is nothing to compare with.
            (!samples.unassigned.is_empty() && !samples.assigned.is_empty()).then(|| Evaluation {
                hotkey: *hotkey,
                uid: passed.uid,
                payload: Arc::clone(&passed.payload),
                scales: scales(&norms[place], &usual),
                assigned: samples.assigned,
                unassigned: samples.unassigned,
            })
        });
        plan.collect()
    }

    /// `outcomes` are the scores; what was only checked, rejected or absent is added here.
    pub fn rate(&mut self, round: Round, gathered: &Gathered, mut outcomes: Vec<(Hotkey, Outcome)>) -> Standings {
        let me = self.parts.keypair.hotkey();
        let scored: BTreeSet<Hotkey> = outcomes.iter().map(|(hotkey, _)| *hotkey).collect();
        let passed = gathered.passed.iter().filter(|passed| !scored.contains(&passed.hotkey));
        outcomes.extend(passed.map(|passed| (passed.hotkey, Outcome::Passed)));
        let rejected = gathered.rejected.iter();
        outcomes.extend(rejected.map(|rejection| (rejection.hotkey, Outcome::Rejected(rejection.reason.clone()))));
        let seen: BTreeSet<Hotkey> = outcomes.iter().map(|(hotkey, _)| *hotkey).collect();
        outcomes.extend(
            self.standing.keys().filter(|known| !seen.contains(known)).map(|absent| (*absent, Outcome::Absent)),
        );
        // A validator never judges itself, not even by noting that it took part.
        outcomes.retain(|(hotkey, _)| *hotkey != me);
        // A match that is repeated after a crash elsewhere counts once.
        if self.rated < Some(round) {
            self.standing = after_match(&self.standing, round, &outcomes, &self.parts.config.run.gauntlet);
            self.rated = Some(round);
            self.keep_match();
            self.parts.journal.matched(round, record::digest(&self.standing));
        }
        let slots = gathered.passed.iter().map(|passed| (passed.uid, passed.hotkey));
        let slots = slots.chain(gathered.rejected.iter().map(|rejection| (rejection.uid, rejection.hotkey)));
        slots.filter_map(|(uid, hotkey)| Some(Rated { uid, rating: self.standing.get(&hotkey)?.rating })).collect()
    }

    pub fn weights(&self, round: Round, registered: Vec<Hotkey>, burn: Option<Hotkey>) -> Vec<(Hotkey, f64)> {
        let earning = weights::earning(&self.standing, &registered.into_iter().collect(), round);
        weights::shares(&earning, burn, &self.parts.config.run.gauntlet)
    }

    pub fn save(&self, round: Round) -> Result<(), String> {
        self.write(round, SECTION, &self.used)
    }

    /// A match ends whenever the device had time for it; a stop before the next boundary must not lose it.
    fn keep_match(&self) {
        let latest = self.parts.store.latest().ok().flatten();
        if let Some(Err(error)) = latest.map(|round| self.write(round, RATED_SECTION, &Used::new())) {
            warn!(error, "the match will be written with the next boundary");
        }
    }

    fn write(&self, round: Round, section: &str, used: &Used) -> Result<(), String> {
        let boundary = BoundaryRef { standing: &self.standing, used, rated: self.rated };
        let bytes = postcard::to_allocvec(&boundary).map_err(|error| error.to_string())?;
        self.parts.store.write(round, section, &bytes).map_err(|error| error.to_string())
    }
}

/// Equal for payloads that say the same, whoever signed them and for whichever round.
fn records_hash(payload: &Payload) -> [u8; 32] {
    let body = payload.body();
    *blake3::Hasher::new().update(body.level_bytes()).update(body.record_bytes()).finalize().as_bytes()
}

/// What all payloads of a round must stand on.
struct Ground<'a> {
    round: Round,
    seed: &'a BlockHash,
    base: Digest,
    theta: &'a [f32],
}
