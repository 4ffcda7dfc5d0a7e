//! What follows from seals, payloads and draws: the validator's work once more, in the order in which its Gauntlet does it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use convoke::assignment::{EvalDraw, assigned, eval_samples};
use convoke::chain::commitment::Seal;
use convoke::gauntlet::copies::{Sealed, copies};
use convoke::gauntlet::fast_checks::{Expected, PayloadFacts, RejectReason, SealClaim, check_payload, check_seal};
use convoke::gauntlet::loss_score::{scales, usual_sizes};
use convoke::gauntlet::record::{Outcome, Standing};
use convoke::gauntlet::{Score, selection, weights};
use convoke::payload::{Payload, transport};
use convoke::run_spec::GauntletSpec;
use convoke::sparseloco::{apply_one, norms, overlaps};
use convoke::terms::{Block, BlockHash, Hotkey, Round, Uid, Weight};

use super::canon::Ground;
use super::memory::Known;
use super::{FindBlob, Rules};
use crate::chain::Metagraph;
use crate::gauntlet::{Claim, Gathered, Passed, Rejection};

/// What a gathering stands on.
#[derive(Debug, Clone)]
pub(super) struct Edge {
    pub round: Round,
    /// Its blocks: a seal in any of them is in time.
    pub blocks: std::ops::Range<Block>,
    pub seed: BlockHash,
    /// The hash that draws who is evaluated, on what.
    pub draw: BlockHash,
    pub ground: Ground,
}

/// What only the validator can know of its gathering, and is believed.
pub(super) struct Declared<'a> {
    /// Whose payloads nobody delivered to it.
    pub missing: BTreeSet<Hotkey>,
    pub replays: Replays<'a>,
}

/// Which records were used before.
pub(super) enum Replays<'a> {
    /// Those that it was seen to use, each with the round in which it was.
    Used(&'a BTreeMap<[u8; 32], Round>),
    /// Those of the hotkeys that it says: it has forgotten some of what it used.
    Said(BTreeSet<Hotkey>),
}

/// Equal for payloads that say the same.
pub(super) fn records_of(payload: &Payload) -> [u8; 32] {
    let body = payload.body();
    *blake3::Hasher::new().update(body.level_bytes()).update(body.record_bytes()).finalize().as_bytes()
}

/// What passes of what was sealed, and what does not.
pub(super) fn gather(
    rules: &Rules,
    edge: &Edge,
    claims: Vec<Claim>,
    declared: &Declared<'_>,
    blob: FindBlob<'_>,
) -> Gathered {
    // Replays are judged apart: that check is the last one.
    let none_used = BTreeMap::new();
    let expected = Expected {
        run_id: rules.run_id,
        round: edge.round,
        blocks: edge.blocks.clone(),
        uid: None,
        base: edge.ground.digest,
        layout: rules.layout.hash(),
        transport_bytes_max: transport::len_max(&rules.layout, &rules.run.sparse) as u64,
        inner_steps_min: rules.run.inner.steps_min,
        inner_steps_max: rules.run.inner.steps,
        holding: None,
        used_records: &none_used,
    };
    let mut gathered = Gathered::default();
    let mut order = Vec::with_capacity(claims.len());
    for Claim { uid, hotkey, seal, place, .. } in claims {
        let (theta, n_chunks) = (&edge.ground.theta, rules.run.gauntlet.holding_chunks);
        let holding = rules.opening.holding(theta, edge.ground.digest, &edge.seed, &hotkey, n_chunks);
        let expected = Expected { uid: Some(uid), holding: Some(Seal::holding_of(&holding)), ..expected.clone() };
        let bytes = || if declared.missing.contains(&hotkey) { None } else { blob(&seal.transport.0) };
        let checked = check(rules, &expected, (hotkey, seal, place.0), bytes);
        match checked.and_then(|payload| unless_replayed(payload, edge.round, hotkey, &declared.replays)) {
            Ok(payload) => {
                order.push(Sealed { hotkey, block: place.0, index: place.1 });
                let Seal { transport, transport_bytes, .. } = seal;
                gathered.passed.push(Passed { uid, hotkey, payload, transport, transport_bytes });
            }
            Err(reason) => gathered.rejected.push(Rejection { uid, hotkey, reason }),
        }
    }
    reject_copies(rules, &mut gathered, &order);
    gathered
}

fn check(
    rules: &Rules,
    expected: &Expected<'_>,
    (hotkey, seal, sealed_at): (Hotkey, Seal, Block),
    bytes: impl FnOnce() -> Option<bytes::Bytes>,
) -> Result<Arc<Payload>, RejectReason> {
    let Seal { round, payload, transport_bytes, base, holding, .. } = seal;
    let sealed = SealClaim { hotkey, round, payload, transport_bytes, base, holding, sealed_at };
    check_seal(&sealed, expected)?;
    let bytes = bytes().ok_or(RejectReason::Missing)?;
    let payload = rules.opening.payload(&bytes, &rules.layout, &rules.run.sparse);
    let payload = payload.map_err(|malformed| RejectReason::Malformed(malformed.reason().to_owned()))?;
    let header = payload.header();
    let facts = PayloadFacts {
        hash: payload.hash(),
        transport_bytes: bytes.len() as u64,
        records: records_of(&payload),
        run_id: header.run_id,
        round: header.round,
        uid: header.uid,
        hotkey: header.hotkey,
        base: header.base,
        layout: header.layout,
        inner_steps: header.inner_steps,
        signature_holds: true,
    };
    check_payload(&sealed, &facts, expected)?;
    Ok(payload)
}

fn unless_replayed(
    payload: Arc<Payload>,
    round: Round,
    hotkey: Hotkey,
    replays: &Replays<'_>,
) -> Result<Arc<Payload>, RejectReason> {
    let is_replay = match replays {
        Replays::Used(used) => used.get(&records_of(&payload)).is_some_and(|used_in| *used_in < round),
        Replays::Said(hotkeys) => hotkeys.contains(&hotkey),
    };
    if is_replay { Err(RejectReason::Replay) } else { Ok(payload) }
}

fn reject_copies(rules: &Rules, gathered: &mut Gathered, order: &[Sealed]) {
    let bodies: Vec<_> = gathered.passed.iter().map(|passed| passed.payload.body()).collect();
    let agreements = overlaps(&rules.layout, &bodies);
    let agreement = |a: usize, b: usize| agreements[a.max(b)][a.min(b)];
    for copy in copies(order, rules.run.gauntlet.copy_overlap_max, agreement) {
        let Some(idx) = gathered.passed.iter().position(|passed| passed.hotkey == copy.copy) else { continue };
        let Passed { uid, hotkey, .. } = gathered.passed.remove(idx);
        gathered.rejected.push(Rejection { uid, hotkey, reason: RejectReason::Copy { original: copy.original } });
    }
}

/// In what a gathering differs from what was said of it: how many had sealed, and why whose payload does not count.
pub(super) fn difference(gathered: &Gathered, n_said: usize, said: &BTreeMap<Hotkey, String>) -> Option<String> {
    let n_found = gathered.passed.len() + gathered.rejected.len();
    if n_said != n_found {
        return Some(format!("it gathers {n_said} sealed payloads, recomputed {n_found}"));
    }
    let passed = gathered.passed.iter().map(|passed| (passed.uid, passed.hotkey, None));
    let rejected = gathered.rejected.iter();
    let rejected = rejected.map(|rejection| (rejection.uid, rejection.hotkey, Some(rejection.reason.to_string())));
    let word = |reason: Option<&str>| reason.map_or_else(|| "it passes".to_owned(), |reason| format!("`{reason}`"));
    let mut all = passed.chain(rejected);
    if let Some((uid, hotkey, found)) = all.find(|(_, hotkey, found)| said.get(hotkey) != found.as_ref()) {
        let said = word(said.get(&hotkey).map(String::as_str));
        return Some(format!("of uid {uid} it says {said}, recomputed {}", word(found.as_deref())));
    }
    let is_stranger = said.len() != gathered.rejected.len();
    is_stranger.then(|| "it refuses somebody who has sealed nothing".to_owned())
}

/// A gathering of the validator, and what it has evaluated of it.
#[derive(Debug)]
pub(super) struct Attempt {
    edge: Edge,
    gathered: Gathered,
    /// The standings that it may have had when it gathered, the likeliest first.
    standings: Vec<Arc<Known>>,
    /// Those of whom it has told the right score.
    told: BTreeSet<Hotkey>,
    scores: BTreeMap<Hotkey, Option<Score>>,
    /// Whom it is to evaluate with which standing.
    plans: Vec<(Arc<Known>, Vec<Hotkey>)>,
    /// How large is usual among all that has passed, once it is wanted.
    usual: Option<Vec<f64>>,
}

impl Attempt {
    pub fn new(edge: Edge, gathered: Gathered, standings: Vec<Arc<Known>>) -> Self {
        Self {
            edge,
            gathered,
            standings,
            told: BTreeSet::new(),
            scores: BTreeMap::new(),
            plans: Vec::new(),
            usual: None,
        }
    }

    /// What becomes of an evaluation that is told: the right one, or what is wrong with it.
    pub fn evaluated(
        &mut self,
        rules: &Rules,
        me: &Hotkey,
        possible: &[Arc<Known>],
        (uid, said): (Uid, [f64; 2]),
    ) -> Result<(), String> {
        let passed = self.gathered.passed.iter().find(|passed| passed.uid == uid);
        let Some(hotkey) = passed.map(|passed| passed.hotkey) else {
            return Err(format!("it evaluates uid {uid}, who has not passed"));
        };
        let plans = self.plans(rules, me, possible);
        if !plans.iter().any(|plan| plan.contains(&hotkey)) {
            return Err(format!("it evaluates uid {uid}, who was not drawn"));
        }
        let score = self.scores.get(&hotkey).copied().flatten();
        let found = score.map_or([f64::NAN; 2], |score| [score.own_improvement, score.improvement]);
        if said.map(f64::to_bits) != found.map(f64::to_bits) {
            let what = "on assigned and unassigned samples";
            return Err(format!("of uid {uid} it says {said:?} {what}, recomputed {found:?}"));
        }
        self.told.insert(hotkey);
        Ok(())
    }

    /// The plans that it may have had, none twice: with a standing of when it gathered, or one of since.
    pub fn plans(&mut self, rules: &Rules, me: &Hotkey, possible: &[Arc<Known>]) -> Vec<Vec<Hotkey>> {
        let mut plans = Vec::with_capacity(1);
        let standings: Vec<Arc<Known>> = self.standings.iter().chain(possible).cloned().collect();
        for known in standings {
            let plan = self.plan(rules, me, &known);
            if !plans.contains(&plan) {
                plans.push(plan);
            }
        }
        plans
    }

    fn plan(&mut self, rules: &Rules, me: &Hotkey, known: &Arc<Known>) -> Vec<Hotkey> {
        if let Some((_, plan)) = self.plans.iter().find(|(with, _)| Arc::ptr_eq(with, known)) {
            return plan.clone();
        }
        let candidates: Vec<Hotkey> = self.gathered.passed.iter().map(|passed| passed.hotkey).collect();
        let (round, draw) = (self.edge.round, &self.edge.draw);
        let mut plan = selection::evaluated(&candidates, me, &known.standing, round, draw, &rules.run.gauntlet);
        plan.retain(|hotkey| self.score(rules, me, hotkey).is_some());
        self.plans.push((Arc::clone(known), plan.clone()));
        plan
    }

    /// The score of a payload that has passed; `None` where there is nothing to compare.
    fn score(&mut self, rules: &Rules, me: &Hotkey, hotkey: &Hotkey) -> Option<Score> {
        if let Some(score) = self.scores.get(hotkey) {
            return *score;
        }
        let passed = self.gathered.passed.iter().find(|passed| passed.hotkey == *hotkey)?;
        let usual = self.usual.get_or_insert_with(|| {
            let norms: Vec<_> = self.gathered.passed.iter().map(|it| norms(&rules.layout, it.payload.body())).collect();
            usual_sizes(rules.layout.tensors().len(), &norms)
        });
        let score = score(rules, &self.edge, me, passed, usual);
        self.scores.insert(*hotkey, score);
        score
    }

    /// Somebody in a plan of whom it has not told the score.
    pub fn untold(&self, plan: &[Hotkey]) -> Option<Uid> {
        let untold = plan.iter().find(|hotkey| !self.told.contains(hotkey))?;
        self.gathered.passed.iter().find(|passed| passed.hotkey == *untold).map(|passed| passed.uid)
    }

    /// What the round has found of everybody, once those of a plan are scored.
    pub fn outcomes(&self, me: &Hotkey, standing: &Standing, plan: &[Hotkey]) -> Vec<(Hotkey, Outcome)> {
        let passed = self.gathered.passed.iter().map(|passed| {
            let score = self.scores.get(&passed.hotkey).copied().flatten();
            let score = score.filter(|_| plan.contains(&passed.hotkey));
            (passed.hotkey, score.map_or(Outcome::Passed, Outcome::Scored))
        });
        let rejected = self.gathered.rejected.iter();
        let rejected = rejected.map(|rejection| (rejection.hotkey, Outcome::Rejected(rejection.reason.clone())));
        let mut outcomes: Vec<(Hotkey, Outcome)> = passed.chain(rejected).collect();
        let seen: BTreeSet<Hotkey> = outcomes.iter().map(|(hotkey, _)| *hotkey).collect();
        let absent = standing.keys().filter(|known| !seen.contains(known));
        outcomes.extend(absent.map(|absent| (*absent, Outcome::Absent)));
        outcomes.retain(|(hotkey, _)| hotkey != me);
        outcomes
    }
}

fn score(rules: &Rules, edge: &Edge, me: &Hotkey, passed: &Passed, usual: &[f64]) -> Option<Score> {
    let (run, n_samples) = (&rules.run, rules.measure.n_train_samples());
    let batch = run.inner.batch_sequences;
    let all = assigned(&edge.seed, &passed.hotkey, n_samples, run.inner.steps as usize * batch);
    let used = passed.payload.header().inner_steps as usize * batch;
    let draw = EvalDraw { seed: edge.draw, validator: *me, peer: passed.hotkey };
    let samples = eval_samples(&draw, &all, used, n_samples, run.gauntlet.eval_sequences);
    if samples.assigned.is_empty() || samples.unassigned.is_empty() {
        return None;
    }
    let before = &edge.ground.theta;
    let mut after = before.to_vec();
    let step = run.gauntlet.step_ratio * run.sparse.lr_outer;
    let body = passed.payload.body();
    let scales = scales(&norms(&rules.layout, body), usual);
    apply_one(&rules.layout, &run.sparse, body, step, &scales, &mut after);
    let sets = [&*samples.assigned, &*samples.unassigned];
    Some(Score::of(&rules.measure.losses(edge.round, before, &after, sets)))
}

/// The weights of a round that follow from a standing, given who is registered where the shares are decided on, and who has which
/// slot where they are sent.
pub(super) fn weigh(
    spec: &GauntletSpec,
    (round, standing): (Round, &Standing),
    registered: &Metagraph,
    slots: &Metagraph,
) -> Vec<(Uid, Weight)> {
    let hotkeys: BTreeSet<Hotkey> = registered.neurons.iter().map(|neuron| neuron.hotkey).collect();
    let burn = registered.by_uid(Uid(spec.burn_uid)).filter(|_| spec.burn_share > 0.0).map(|neuron| neuron.hotkey);
    let shares = weights::shares(&weights::earning(standing, &hotkeys, round), burn, spec);
    let by_uid = shares.iter().filter_map(|(hotkey, share)| Some((slots.by_hotkey(hotkey)?.uid, *share)));
    weights::to_u16(&by_uid.collect::<Vec<_>>())
}
