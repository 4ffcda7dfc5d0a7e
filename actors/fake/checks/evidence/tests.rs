//! A little history of one validator and its miners, played by the real Gauntlet and trainer on a real ledger; looked at as it was
//! told, and as it was not.

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use convoke::assignment::assigned;
use convoke::chain::{Commitment, Identity as Proven, ManifestVote, Place, Seal};
use convoke::digest::{digest, holding_proof};
use convoke::gauntlet::record::Outcome as Outcomes;
use convoke::gauntlet::{Score, weights};
use convoke::manifest::Manifest;
use convoke::payload::{Header, Payload, transport};
use convoke::sparseloco::{encode, outer_step};
use convoke::terms::{BlockHash, EndpointId, ManifestHash, Stake, TransportHash};
use ractor::{Actor, ActorRef, RpcReplyPort};

use super::*;
use crate::chain::host::development_genesis;
use crate::chain::{ChainWrite, Host, HostConfig, Outcome, Pace};
use crate::compressor::Theta;
use crate::config::{Layers, NodeConfig};
use crate::events::{Events, Witness};
use crate::fake::disk::FakeDisk;
use crate::fake::fence::Fence;
use crate::fake::lab::{Lab, QuadraticLab};
use crate::fake::net::FakeNet;
use crate::fake::trainer::quadratic::{Goal, Lesson};
use crate::fake::trainer::{FakeTrainers, Habit};
use crate::faults::Faults;
use crate::gauntlet::{CheckRequest, Claim, Gathered, Gauntlet, Msg, PlanRequest, ProposeRequest, SECTION};
use crate::gpu_worker::Trainer;
use crate::identity::Identity;
use crate::leaf::ask;
use crate::node::{Parts, journal};
use crate::opening::Anew;
use crate::pages::Pages;
use crate::peer_sync::net::PeerNet;
use crate::peer_sync::store::Label;
use crate::peer_sync::{Kind, Reveal};
use crate::store::Store;
use crate::workbench::Bench;

const NETUID: u16 = 3;
const SEED: u64 = 5;
const N_SAMPLES: u64 = 10_000;
const FINALITY_DEPTH: u64 = 2;
const BLOCK_TIME: Duration = Duration::from_secs(1);
/// Miner 0 to 3 are honest; this one sends zeros, and so the same again and again.
const ZERO: usize = 4;
/// This one sends what miner 0 does.
const COPY: usize = 5;
const N_MINERS: usize = 6;
/// In this round nobody delivers what miner 1 has sealed.
const LOST_IN: Round = Round(2);
/// In this round the Gauntlet dies between gathering and evaluation.
const DIES_IN: Round = Round(4);
const ROUNDS: std::ops::RangeInclusive<u64> = 1..=6;
const SETS: &[&str] = &[
    "run.inner.steps=4",
    "run.inner.steps_min=2",
    "run.inner.batch_sequences=4",
    "run.inner.micro_batch_sequences=4",
    "run.sparse.keep_per_chunk=16",
    "run.timing.blocks_per_round=16",
    "run.timing.seal_window=4",
    "run.timing.gather_window=3",
    "run.timing.manifest_window=5",
    "run.timing.finality_depth=2",
    "run.gauntlet.eval_sequences=8",
    "run.gauntlet.rounds_per_weights=3",
    "node.name=v",
    "node.role=validator",
];

/// Keeps all that is told.
#[derive(Default)]
struct Heard(Mutex<Vec<Line>>);

impl Witness for Heard {
    fn unix_ms(&self) -> u64 {
        0
    }

    fn see(&self, line: Line) {
        self.0.lock().unwrap().push(line);
    }
}

struct AtOnce;

impl crate::workbench::Pace for AtOnce {
    fn cost(&self, _: Leaf, _: &'static str, _: Round) -> Duration {
        Duration::ZERO
    }
}

/// One who commits and publishes.
struct Member {
    identity: Identity,
    net: Arc<dyn PeerNet>,
    chain: Arc<dyn ChainWrite>,
    error: Vec<f32>,
}

struct Stage {
    host: Host,
    chain: Arc<dyn ChainRead>,
    net: FakeNet,
    parts: Arc<Parts>,
    heard: Arc<Heard>,
    gauntlet: ActorRef<Msg>,
    trainer: Box<dyn Trainer>,
    world: Quadratic,
    validator: Member,
    miners: Vec<Member>,
    theta: Theta,
    digest: Digest,
    prev: ManifestHash,
}

fn endpoint(identity: &Identity) -> EndpointId {
    EndpointId(*iroh::SecretKey::from_bytes(&identity.endpoint).public().as_bytes())
}

async fn member(host: &Host, net: &FakeNet, seed: u64, stake: u64, flat_len: usize) -> Member {
    let identity = Identity::of_seed(seed);
    host.dev_register(identity.keypair().hotkey(), Stake(stake)).await.unwrap();
    let net = net.port(endpoint(&identity), Fence::new()).acquire().await.unwrap();
    Member { chain: host.connect(identity.keypair()), net, identity, error: vec![0.0; flat_len] }
}

fn parts(config: NodeConfig, host: &Host, net: &FakeNet, me: &Identity, heard: &Arc<Heard>) -> Parts {
    let (fence, chain, keypair) = (Fence::new(), host.reader(), me.keypair());
    let run_id = config.run.run_id(&Digest::default());
    let disk = Arc::new(FakeDisk::new().mount(fence.clone()));
    let events = Events::seen_by(Arc::clone(heard) as _, "v");
    let journal = journal(&config, keypair.hotkey(), run_id, BLOCK_TIME, events);
    let place = Place { genesis: chain.genesis(), netuid: NETUID };
    Parts {
        run_id,
        layout: QuadraticLab.layout(),
        schedule: Schedule::new(&config.run.timing),
        trainers: Arc::new(FakeTrainers::new(SEED, N_SAMPLES, Habit::Honest)),
        store: Store::open_on(disk, Path::new("/v/state"), run_id).unwrap(),
        identity: Proven::prove(&me.endpoint, &place, &keypair.hotkey(), 1, None),
        chain_write: host.connect(me.keypair()),
        transport: net.port(endpoint(me), fence),
        addresses: Arc::default(),
        faults: Arc::new(Faults::new(Vec::new(), journal.clone())),
        bench: Bench::Task(Arc::new(AtOnce)),
        opening: Arc::new(Anew::anywhere()),
        rounds: None,
        closing_words: Mutex::new(None),
        keypair,
        chain,
        journal,
        config,
    }
}

impl Stage {
    /// All rounds, played.
    async fn played() -> Self {
        let mut stage = Self::set_up().await;
        for round in ROUNDS.map(Round) {
            stage.play(round).await;
        }
        stage
    }

    async fn set_up() -> Self {
        let layers = SETS.iter().try_fold(Layers::default(), |layers, set| layers.set(set)).unwrap();
        let config = layers.read().unwrap();
        let (layout, finality_depth) = (QuadraticLab.layout(), FINALITY_DEPTH);
        let mut genesis = development_genesis(NETUID, SEED);
        genesis.timestamp_ms = 1_767_225_600_000;
        let pace = HostConfig { block_time: BLOCK_TIME, finality_depth, pace: Pace::OnDemand, file: None };
        let (host, net, heard) = (Host::start(&genesis, pace).unwrap(), FakeNet::default(), Arc::<Heard>::default());
        let validator = member(&host, &net, 0, 2_000_000_000_000, 0).await;
        let mut miners = Vec::new();
        for idx in 1..=N_MINERS as u64 {
            miners.push(member(&host, &net, idx, 0, layout.flat_len()).await);
        }
        let parts = Arc::new(parts(config, &host, &net, &validator.identity, &heard));
        let started = Event::NodeStarted {
            version: String::new(),
            run_id: parts.run_id,
            role: "validator".to_owned(),
            hotkey: parts.keypair.hotkey(),
            resumed_at: None,
        };
        parts.journal.events.record(None, started);
        let theta = Pages::from(&*parts.genesis_theta());
        Self {
            chain: host.reader(),
            gauntlet: Actor::spawn(None, Gauntlet, Arc::clone(&parts)).await.unwrap().0,
            trainer: parts.trainers.trainer(&parts),
            world: Quadratic::new(FakeTrainers::chance_of(SEED), &layout, &parts.config.run),
            digest: digest(&theta),
            theta: Arc::new(theta),
            prev: Manifest::first_prev(&parts.run_id),
            host,
            net,
            parts,
            heard,
            validator,
            miners,
        }
    }

    async fn ask<T: Send + 'static>(&self, question: impl FnOnce(RpcReplyPort<T>) -> Msg) -> T {
        ask(Leaf::Gauntlet, &self.gauntlet, Duration::from_secs(60), question).await.unwrap()
    }

    async fn mine_to(&self, block: Block) {
        let best = self.chain.heads().borrow().best.number;
        self.host.mine(block.0.saturating_sub(best.0)).await.unwrap();
        let heads = self.chain.heads().borrow();
        self.parts.journal.head(heads.best.number, heads.finalized.number);
    }

    async fn hash(&self, block: Block) -> BlockHash {
        self.chain.block_hash(block).await.unwrap().unwrap()
    }

    async fn commit(&self, member: &Member, commitment: Commitment) {
        let sent = member.chain.commit(commitment.to_fields());
        self.host.mine(1).await.unwrap();
        let outcome = sent.await.unwrap();
        assert!(matches!(outcome, Outcome::Included { .. }), "{outcome:?}");
    }

    fn blob(&self, hash: &[u8; 32]) -> Option<Bytes> {
        let mut all = std::iter::once(&self.validator).chain(&self.miners);
        all.find_map(|member| self.net.blob(endpoint(&member.identity), hash))
    }

    async fn play(&mut self, round: Round) {
        let schedule = self.parts.schedule.clone();
        self.mine_to(schedule.first_block(round)).await;
        let seed = self.hash(schedule.seed_block(round)).await;
        for idx in 0..N_MINERS {
            self.seal(idx, round, seed).await;
        }
        self.mine_to(schedule.reveal(round)).await;
        let gathered = Arc::new(self.gather(round, seed).await);
        let manifest = self.vote(round, seed, &gathered).await;
        self.mine_to(Block(schedule.reveal(round).0 + FINALITY_DEPTH)).await;
        if round == DIES_IN {
            self.die().await;
        }
        self.evaluate(round, seed, &gathered).await;
        self.mine_to(Block(schedule.manifest_at(round).0 + FINALITY_DEPTH)).await;
        self.step(round, seed, &manifest, &gathered).await;
    }

    async fn seal(&mut self, idx: usize, round: Round, seed: BlockHash) {
        let parts = Arc::clone(&self.parts);
        let (run, layout) = (&parts.config.run, &parts.layout);
        let pair = self.miners[idx].identity.keypair();
        // A copy is made of the same work, with the same error feedback.
        let whose = if idx == COPY { 0 } else { idx };
        let worker = self.miners[whose].identity.keypair().hotkey();
        let samples = assigned(&seed, &worker, N_SAMPLES, run.inner.steps as usize * run.inner.batch_sequences);
        let noise = Chance::new(whose as u64 + 100 * round.0);
        let lesson = Lesson { round, theta: &self.theta, samples: &samples, reach: 1.0, goal: Goal::Target, noise };
        let delta = if idx == ZERO { Pages::zeroed(self.theta.len()) } else { self.world.train(&lesson) };
        let body = encode(layout, &run.sparse, &mut self.miners[idx].error, &delta).unwrap().body;
        let at = self.chain.heads().borrow().best.number;
        let metagraph = self.chain.metagraph(at).await.unwrap();
        let header = Header {
            run_id: parts.run_id,
            round,
            uid: metagraph.by_hotkey(&pair.hotkey()).unwrap().uid,
            hotkey: pair.hotkey(),
            base: self.digest,
            layout: layout.hash(),
            inner_steps: run.inner.steps,
        };
        let payload = Payload::seal(header, layout, &run.sparse, body, &pair);
        let bytes = transport::encode(&payload, layout, &run.sparse);
        let holding = holding_proof(&self.theta, &seed, &pair.hotkey(), run.gauntlet.holding_chunks);
        let seal = Seal {
            round,
            payload: payload.hash(),
            transport: TransportHash(*blake3::hash(&bytes).as_bytes()),
            transport_bytes: bytes.len() as u64,
            base: self.digest,
            holding: Seal::holding_of(&holding),
        };
        let label = Label { round, kind: Kind::Payload, reveal: Reveal::At(parts.schedule.reveal(round)) };
        self.miners[idx].net.publish(Bytes::from(bytes), label).await.unwrap();
        self.commit(&self.miners[idx], Commitment { seal: Some(seal), ..Commitment::default() }).await;
    }

    async fn gather(&self, round: Round, seed: BlockHash) -> Gathered {
        let at = self.parts.schedule.sealed_by(round);
        let metagraph = self.chain.metagraph(at).await.unwrap();
        let commitments = self.chain.commitments(at).await.unwrap();
        let claim = |idx: usize| {
            let hotkey = self.miners[idx].identity.keypair().hotkey();
            let committed = &commitments[&hotkey];
            let seal = Commitment::parse(&committed.fields).unwrap().seal.unwrap();
            let uid = metagraph.by_hotkey(&hotkey).unwrap().uid;
            Claim { uid, hotkey, endpoint: None, seal, place: (committed.block, committed.index) }
        };
        let claims: Vec<Claim> = (0..N_MINERS).map(claim).collect();
        let delivered = claims.iter().enumerate().map(|(idx, claim)| {
            let hash = claim.seal.transport.0;
            let bytes = self.blob(&hash).filter(|_| (idx, round) != (1, LOST_IN));
            (hash, bytes.map(|bytes| Arc::from(&bytes[..])).ok_or_else(|| "nobody".to_owned()))
        });
        let request = CheckRequest {
            round,
            seed,
            base: self.digest,
            theta: Arc::clone(&self.theta),
            delivered: delivered.collect(),
            claims,
            registered: metagraph.neurons.iter().map(|neuron| neuron.hotkey).collect(),
        };
        let gathered = self.ask(|port| Msg::Check(request, port)).await;
        self.parts.journal.gathered(round, &gathered);
        gathered
    }

    async fn vote(&self, round: Round, seed: BlockHash, gathered: &Arc<Gathered>) -> Manifest {
        let gathered = Arc::clone(gathered);
        let request = ProposeRequest { round, base: self.digest, prev: self.prev, gathered, seed };
        let manifest = self.ask(|port| Msg::Propose(request, port)).await.unwrap();
        let label = Label { round, kind: Kind::Manifest, reveal: Reveal::Always };
        self.validator.net.publish(Bytes::from(manifest.encode()), label).await.unwrap();
        let vote = ManifestVote { round, manifest: manifest.hash() };
        self.commit(&self.validator, Commitment { manifest: Some(vote), ..Commitment::default() }).await;
        manifest
    }

    async fn die(&mut self) {
        self.gauntlet.stop_and_wait(None, None).await.unwrap();
        self.gauntlet = Actor::spawn(None, Gauntlet, Arc::clone(&self.parts)).await.unwrap().0;
        let (actor, reason) = (Leaf::Gauntlet.name().to_owned(), "on purpose".to_owned());
        let restarted = Event::ActorRestarted { actor, reason, restarts: 1 };
        self.parts.journal.events.record(None, restarted);
    }

    async fn evaluate(&mut self, round: Round, seed: BlockHash, gathered: &Arc<Gathered>) {
        let draw = self.hash(self.parts.schedule.reveal(round)).await;
        let request = PlanRequest { round, seed, draw, gathered: Arc::clone(gathered) };
        let plan = self.ask(|port| Msg::Plan(request, port)).await;
        let mut outcomes = Vec::new();
        for evaluation in plan {
            let score = Score::of(&self.trainer.evaluate(round, &self.theta, &evaluation));
            let improvements = [score.own_improvement, score.improvement];
            self.parts.journal.evaluated(round, evaluation.uid, evaluation.hotkey, improvements, 0.0);
            outcomes.push((evaluation.hotkey, Outcomes::Scored(score)));
        }
        let gathered = Arc::clone(gathered);
        self.ask(|port| Msg::Rate(round, gathered, outcomes, port)).await;
        if round.0.is_multiple_of(self.parts.config.run.gauntlet.rounds_per_weights) {
            self.set_weights(round).await;
        }
    }

    async fn set_weights(&self, round: Round) {
        let best = self.chain.heads().borrow().best.number;
        let metagraph = self.chain.metagraph(best).await.unwrap();
        let registered: Vec<Hotkey> = metagraph.neurons.iter().map(|neuron| neuron.hotkey).collect();
        let shares = self.ask(|port| Msg::Weights(round, registered, None, port)).await;
        let by_uid = shares.iter().map(|(hotkey, share)| (metagraph.by_hotkey(hotkey).unwrap().uid, *share));
        let set = weights::to_u16(&by_uid.collect::<Vec<_>>());
        let set_at = self.host.mine(1).await.unwrap().number;
        self.parts.journal.weights_set(round, &set, set_at);
    }

    async fn step(&mut self, round: Round, seed: BlockHash, manifest: &Manifest, gathered: &Gathered) {
        let run = &self.parts.config.run;
        let bodies: Vec<_> = manifest.entries.iter().map(|it| gathered.find(it).unwrap().payload.body()).collect();
        let mut theta = Pages::clone(&self.theta);
        outer_step(&self.parts.layout, &run.sparse, &bodies, &mut theta);
        (self.digest, self.prev) = (digest(&theta), manifest.hash());
        self.theta = Arc::new(theta);
        let digest = self.digest;
        let stepped = Event::OuterStep { digest, contributors: vec![], heldout_loss: None, seed, seconds: 0.0 };
        self.parts.journal.events.record(round, stepped);
        self.ask(|port| Msg::Save(round.next(), port)).await.unwrap();
        self.parts.store.complete(round.next(), &[SECTION]).unwrap();
    }

    fn lines(&self) -> Vec<Line> {
        self.heard.0.lock().unwrap().clone()
    }

    /// What is found when these lines are told.
    async fn look(&self, lines: &[Line]) -> Option<Violation> {
        let (run, layout) = (self.parts.config.run.clone(), self.parts.layout.clone());
        let measure = QuadraticMeasure::new(FakeTrainers::chance_of(SEED), N_SAMPLES, &layout, &run);
        let (run_id, measure) = (self.parts.run_id, Box::new(measure));
        let rules = Rules { run, run_id, layout, opening: Arc::new(Anew::anywhere()), measure };
        let subject = Subject::drawn(SEED, &[Subject { node: 7, hotkey: self.parts.keypair.hotkey() }]);
        let mut ear = Ear::of(subject);
        lines.iter().for_each(|line| ear.event(7, line));
        let mut evidence = Evidence::new(rules, subject, Round(0));
        let public = Public { chain: &*self.chain, blob: &|hash| self.blob(hash) };
        evidence.look(ear.take(), &public).await.unwrap()
    }

    /// What is found when the last event that `tamper` takes is told as it makes it.
    async fn look_tampered(&self, tamper: impl Fn(&mut Event) -> bool) -> String {
        let mut lines = self.lines();
        let tampered = lines.iter_mut().rev().find_map(|line| tamper(&mut line.event).then_some(line.round));
        let round = tampered.expect("there is such an event");
        let violation = self.look(&lines).await.expect("it is found");
        assert_eq!((violation.rule, Some(violation.round)), (RULE, round), "{}", violation.what);
        assert!(violation.what.starts_with("node 7: "), "{}", violation.what);
        violation.what
    }
}

#[tokio::test(start_paused = true)]
async fn all_that_an_honest_validator_says_follows_from_what_everybody_sees() {
    let stage = Stage::played().await;
    let lines = stage.lines();
    let is_refusal = |event: &Event, why: &str| matches!(event, Event::Rejected { reason, .. } if reason.contains(why));
    let refused = |why: &str| lines.iter().any(|line| is_refusal(&line.event, why));
    assert!(refused("nobody delivered") && refused("a copy of") && refused("a replay"));
    let n_matches = lines.iter().filter(|line| matches!(line.event, Event::Rated { .. })).count();
    assert_eq!(n_matches, ROUNDS.count());
    assert!(lines.iter().any(|line| small_weight(&line.event).is_some()));
    assert_eq!(stage.look(&lines).await, None);
}

/// A weight that is not the largest there can be.
fn small_weight(event: &Event) -> Option<&(Uid, Weight)> {
    let Event::WeightsSet { weights, .. } = event else { return None };
    weights.iter().find(|(_, weight)| weight.0 < u16::MAX)
}

#[tokio::test(start_paused = true)]
async fn a_weight_that_is_one_more_is_found() {
    let stage = Stage::played().await;
    let mut lines = stage.lines().into_iter().rev();
    let (uid, weight) = lines.find_map(|line| small_weight(&line.event).copied()).unwrap();
    let what = stage
        .look_tampered(|event| {
            let Event::WeightsSet { weights, .. } = event else { return false };
            let found = weights.iter_mut().find(|(_, weight)| weight.0 < u16::MAX);
            found.map(|(_, weight)| weight.0 += 1).is_some()
        })
        .await;
    assert!(what.contains(&format!("the weight of uid {uid} is {}, recomputed {weight}", weight.0 + 1)), "{what}");
}

#[tokio::test(start_paused = true)]
async fn another_score_than_the_payloads_is_found_and_so_is_one_that_is_kept_back() {
    let stage = Stage::played().await;
    let what = stage
        .look_tampered(|event| {
            let Event::Evaluated { score, unassigned_improvement, .. } = event else { return false };
            *unassigned_improvement += 0.0004;
            *score = *unassigned_improvement;
            true
        })
        .await;
    assert!(what.contains("of uid") && what.contains("recomputed"), "{what}");
    let mut lines = stage.lines();
    lines.remove(lines.iter().rposition(|line| matches!(line.event, Event::Evaluated { .. })).unwrap());
    let kept_back = stage.look(&lines).await.unwrap().what;
    assert!(kept_back.contains("without a score of uid"), "{kept_back}");
}

#[tokio::test(start_paused = true)]
async fn other_verdicts_records_and_parameters_are_found() {
    let stage = Stage::played().await;
    let what = stage
        .look_tampered(|event| {
            let Event::Rejected { reason, .. } = event else { return false };
            reason.push('!');
            true
        })
        .await;
    assert!(what.contains("of uid"), "{what}");
    let what = stage
        .look_tampered(|event| {
            let Event::Rated { records } = event else { return false };
            records.0[0] ^= 1;
            true
        })
        .await;
    assert!(what.contains("records after its match"), "{what}");
    let what = stage
        .look_tampered(|event| {
            let Event::OuterStep { digest, .. } = event else { return false };
            digest.0[0] ^= 1;
            true
        })
        .await;
    assert!(what.contains("the decided manifest makes"), "{what}");
}
