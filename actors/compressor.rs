//! Compressor: owns θ on the host and the error feedback; turns a pseudo-gradient into a payload and applies manifests.
//!
//! Hears:   requests of RoundClock: where are you, adopt another θ, compress, step, save.
//! Tells:   nobody; it answers.
//! State:   θ, e, the payload made since the boundary, threads. A crash reloads the boundary and the payload made since, so
//!          that nothing is lost that had been sealed: the bytes that travel are kept, as another zstd would make others.
//! Mailbox: one request of RoundClock.
//!
//! Fault points: `position`, `adopt`, `compress`, `outer-step` (may flip a bit of θ), `save`.

use std::sync::Arc;
use tokio::time::Instant;

use convoke::digest::{digest, digest_with};
use convoke::manifest::Manifest;
use convoke::payload::{Header, Payload, transport};
use convoke::sparseloco::{OuterStep, Simd, Undo, encode_on};
use convoke::terms::{Digest, LayoutHash, ManifestHash, PayloadHash, Round, TransportHash, Uid};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use serde::{Deserialize, Serialize};

use crate::leaf::{Leaf, answer};
use crate::node::Parts;
use crate::pages::Pages;
use crate::pool::Threads;
use crate::store::{chain, f32_bytes, take_pages};
use crate::workbench::{Bench, Place, Workbench};

/// The boundary's section in the store.
pub const SECTION: &str = "compressor";
/// The section that holds what was made since the boundary.
const PENDING_SECTION: &str = "compressor-pending";

/// The actor.
#[derive(Debug)]
pub struct Compressor;

/// The bench on which all work is done.
pub struct State {
    bench: Workbench<Desk>,
}

/// θ, chunk-major with its padding, shared with whoever reads it.
pub type Theta = Arc<Pages>;

/// Where the Compressor stands.
#[derive(Debug, Clone)]
pub struct Position {
    /// θ of this round is held.
    pub round: Round,
    /// θ.
    pub theta: Theta,
    /// θ's digest.
    pub digest: Digest,
    /// The manifest that made θ; before the first, what stands for it.
    pub prev: ManifestHash,
    /// The own payload of this round, if it was made before a crash or a stop.
    pub pending: Option<Parcel>,
    /// Whether the boundary before this round is on disk.
    pub saved: bool,
}

/// An own payload, and the bytes in which it travels.
#[derive(Debug, Clone)]
pub struct Parcel {
    /// The payload.
    pub payload: Arc<Payload>,
    /// Its transport coding: what peers fetch.
    pub bytes: Arc<[u8]>,
    /// The coding's hash.
    pub hash: TransportHash,
}

impl Parcel {
    fn new(payload: Arc<Payload>, bytes: Arc<[u8]>) -> Self {
        let hash = TransportHash(*blake3::hash(&bytes).as_bytes());
        Self { payload, bytes, hash }
    }
}

/// What a request to compress carries.
#[derive(Debug)]
pub struct Contribution {
    /// The round.
    pub round: Round,
    /// The own slot at this moment.
    pub uid: Uid,
    /// Inner steps behind Δ.
    pub inner_steps: u32,
    /// Δ, chunk-major.
    pub delta: Arc<Pages>,
}

/// What the actor hears.
#[derive(Debug)]
pub enum Msg {
    /// Where are you?
    Position(RpcReplyPort<Position>),
    /// Make the payload of a round.
    Compress(Contribution, RpcReplyPort<Result<Compressed, Refused>>),
    /// End a round: with a manifest's payloads in manifest order, or without.
    Step(Round, Option<Decision>, RpcReplyPort<Result<Stepped, Refused>>),
    /// Go on with the θ that others have agreed on; without one, with the run's first.
    Adopt {
        /// θ, and what it is.
        adopted: Option<Adopted>,
        /// The boundaries on disk are off the agreed digest, and of no further use.
        in_doubt: bool,
        /// Takes where the actor stands then.
        port: RpcReplyPort<Result<Position, Refused>>,
    },
    /// Write the boundary before this round.
    Save(Round, RpcReplyPort<Result<(), Refused>>),
    /// The bench has died.
    Died(String),
}

/// A θ that others have agreed on.
#[derive(Debug)]
pub struct Adopted {
    /// θ of this round.
    pub round: Round,
    /// θ.
    pub theta: Pages,
    /// What it has to be.
    pub digest: Digest,
    /// The manifest that made it.
    pub prev: ManifestHash,
}

/// A manifest whose payloads are all at hand.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The manifest's hash.
    pub manifest: ManifestHash,
    /// Its payloads, in its order.
    pub payloads: Vec<Arc<Payload>>,
}

/// A payload and what its making cost.
#[derive(Debug, Clone)]
pub struct Compressed {
    /// The payload.
    pub parcel: Parcel,
    /// The size of what travels against Δ in f32.
    pub ratio: f64,
    /// L2 norm of the error feedback after it.
    pub error_norm: f64,
    /// ‖kept values − their quantised values‖ over ‖kept values‖.
    pub quantisation_error: f64,
    /// Seconds of work.
    pub seconds: f64,
}

/// The end of a round.
#[derive(Debug, Clone)]
pub struct Stepped {
    /// θ of the next round.
    pub theta: Theta,
    /// Its digest.
    pub digest: Digest,
    /// Whether the own payload was among the applied.
    pub applied: bool,
    /// Seconds of work.
    pub seconds: f64,
}

/// Why the Compressor did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is at another round than whoever asks believes, which is so after a restart.
    #[error("the compressor holds round {held}, not {asked}")]
    OtherRound {
        /// The round held.
        held: Round,
        /// The round asked for.
        asked: Round,
    },
    /// θ that was brought is another one than was agreed on.
    #[error("the θ that came has the digest {found}, not {agreed}")]
    OffDigest {
        /// What it is.
        found: Digest,
        /// What was agreed on.
        agreed: Digest,
    },
    /// Δ cannot be compressed.
    #[error("the pseudo-gradient cannot be compressed: {0}")]
    Unfit(String),
    /// The boundary cannot be written.
    #[error("{0}")]
    Store(String),
}

impl Actor for Compressor {
    type Msg = Msg;
    type State = State;
    type Arguments = Arc<Parts>;

    async fn pre_start(&self, me: ActorRef<Msg>, parts: Arc<Parts>) -> Result<State, ActorProcessingErr> {
        let place = Place::of(&parts, Leaf::Compressor);
        let threads = match place.bench {
            Bench::Thread => Threads::start(&format!("{}/{}", place.node, place.leaf), parts.cpu_threads())?,
            Bench::Task(_) => Threads::none(),
        };
        let build = move || Desk::load(parts, threads);
        let bench = Workbench::start(place, build, move |why| drop(me.cast(Msg::Died(why))))?;
        Ok(State { bench })
    }

    async fn handle(&self, _: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Position(port) => state.bench.put("position", Desk::round, |desk| answer(port, desk.position())),
            Msg::Compress(contribution, port) => {
                state.bench.put("compress", Desk::round, |desk| answer(port, desk.compress(contribution)));
            }
            Msg::Step(round, decision, port) => {
                state.bench.put("outer-step", move |_| round, move |desk| answer(port, desk.step(round, decision)));
            }
            Msg::Adopt { adopted, in_doubt, port } => {
                let round = adopted.as_ref().map_or(Round(0), |adopted| adopted.round);
                state.bench.put("adopt", move |_| round, move |desk| answer(port, desk.adopt(adopted, in_doubt)));
            }
            Msg::Save(round, port) => {
                state.bench.put("save", move |_| round, move |desk| answer(port, desk.save(round)));
            }
            Msg::Died(why) => return Err(why.into()),
        }
        Ok(())
    }
}

/// What lies on the bench: the only place where θ and e are changed.
struct Desk {
    parts: Arc<Parts>,
    threads: Threads,
    layout_hash: LayoutHash,
    round: Round,
    theta: Theta,
    digest: Digest,
    prev: ManifestHash,
    error: Pages,
    pending: Option<Pending>,
    /// The last round's end, for whoever asks again because its answer was lost.
    last: Option<(Round, Option<ManifestHash>, Stepped)>,
}

/// A payload made in this round, and how to take it back out of e if it is not applied.
struct Pending {
    parcel: Parcel,
    undo: Undo,
}

#[derive(Serialize, Deserialize)]
struct BoundaryHead {
    round: Round,
    digest: Digest,
    prev: ManifestHash,
}

#[derive(Serialize, Deserialize)]
struct PendingHead {
    transport: Vec<u8>,
    undo: Undo,
}

impl Desk {
    /// The boundary on disk, or the run's first θ with no error feedback.
    ///
    /// # Panics
    /// When there is a boundary and it cannot be read: the run is not begun anew for a full table of open files.
    fn load(parts: Arc<Parts>, threads: Threads) -> Self {
        let layout_hash = parts.layout.hash();
        let latest = parts.store.latest().unwrap_or_else(|error| panic!("{}", chain(&error)));
        let boundary = latest.map(|round| {
            read_boundary(&parts, round).unwrap_or_else(|| panic!("the boundary of round {round} cannot be read"))
        });
        let (head, theta, error) = boundary.unwrap_or_else(|| {
            let Adopted { round, theta, digest, prev } = first(&parts);
            let error = Pages::zeroed(theta.len());
            (BoundaryHead { round, digest, prev }, theta, error)
        });
        let BoundaryHead { round, digest, prev } = head;
        let theta = Arc::new(theta);
        let mut desk =
            Self { parts, threads, layout_hash, round, theta, digest, prev, error, pending: None, last: None };
        desk.load_pending();
        desk
    }

    /// A payload that was made since the boundary may be sealed: e must be what it was right after.
    fn load_pending(&mut self) {
        let Ok(section) = self.parts.store.read(self.round, PENDING_SECTION) else { return };
        let Ok((head, mut rest)) = postcard::take_from_bytes::<PendingHead>(&section) else { return };
        let Some(error) = take_pages(&mut rest, self.parts.layout.flat_len()) else { return };
        let spec = &self.parts.config.run.sparse;
        let opened = self.parts.opening.payload(&head.transport, &self.parts.layout, spec);
        let Ok(payload) = opened else { return };
        let fits = head.undo.fits(&self.parts.layout) && payload.header().base == self.digest;
        if fits && payload.header().round == self.round {
            self.error = error;
            let parcel = Parcel::new(payload, head.transport.into());
            self.pending = Some(Pending { parcel, undo: head.undo });
        }
    }

    fn round(&self) -> Round {
        self.round
    }

    fn position(&self) -> Position {
        Position {
            round: self.round,
            theta: Arc::clone(&self.theta),
            digest: self.digest,
            prev: self.prev,
            pending: self.pending.as_ref().map(|pending| pending.parcel.clone()),
            // The first θ is saved in the run's seed.
            saved: match self.parts.store.latest() {
                Ok(Some(round)) => round >= self.round,
                Ok(None) => self.round == Round(0),
                Err(_) => false,
            },
        }
    }

    /// e stays what it is: what this node has not sent is of use from any θ.
    fn adopt(&mut self, adopted: Option<Adopted>, in_doubt: bool) -> Result<Position, Refused> {
        let Adopted { round, theta, digest, prev } = adopted.unwrap_or_else(|| first(&self.parts));
        let found = digest_with(&self.threads, &theta);
        if found != digest {
            return Err(Refused::OffDigest { found, agreed: digest });
        }
        self.take_back();
        if in_doubt {
            self.parts.store.forget_all().map_err(|error| Refused::Store(chain(&error)))?;
        }
        (self.round, self.theta, self.digest, self.prev, self.last) = (round, Arc::new(theta), digest, prev, None);
        Ok(self.position())
    }

    fn compress(&mut self, contribution: Contribution) -> Result<Compressed, Refused> {
        self.at(contribution.round)?;
        let started = Instant::now();
        // Steps whose payload came to nothing are replaced by these: their Δ must not be in e beside that of the new ones.
        if self.pending.take().is_some() {
            self.reload_error();
        }
        let spec = &self.parts.config.run.sparse;
        let layout = &self.parts.layout;
        let encoded = match encode_on(&self.threads, Simd::best(), layout, spec, &mut self.error, &contribution.delta) {
            Ok(encoded) => encoded,
            Err(error) => {
                self.reload_error();
                return Err(Refused::Unfit(error.to_string()));
            }
        };
        let report = &encoded.report;
        let quantisation_error = (report.energy_lost / report.energy_kept.max(f64::MIN_POSITIVE)).sqrt();
        let header = Header {
            run_id: self.parts.run_id,
            round: self.round,
            uid: contribution.uid,
            hotkey: self.parts.keypair.hotkey(),
            base: self.digest,
            layout: self.layout_hash,
            inner_steps: contribution.inner_steps,
        };
        let payload = Payload::seal(header, &self.parts.layout, spec, encoded.body, &self.parts.keypair);
        let bytes = transport::encode(&payload, &self.parts.layout, spec).into();
        let parcel = Parcel::new(Arc::new(payload), bytes);
        self.pending = Some(Pending { parcel: parcel.clone(), undo: encoded.undo });
        self.save_pending()?;
        let dense_bytes = self.parts.layout.n_params() as f64 * 4.0;
        Ok(Compressed {
            ratio: dense_bytes / parcel.bytes.len() as f64,
            error_norm: norm(&self.error),
            quantisation_error,
            seconds: started.elapsed().as_secs_f64(),
            parcel,
        })
    }

    /// Written before the seal can go on chain: from then on others may apply the payload.
    fn save_pending(&self) -> Result<(), Refused> {
        let Some(pending) = &self.pending else { return Ok(()) };
        let head = PendingHead { transport: pending.parcel.bytes.to_vec(), undo: pending.undo.clone() };
        let head = postcard::to_allocvec(&head).map_err(|error| Refused::Store(error.to_string()))?;
        let written = self.parts.store.write_parts(self.round, PENDING_SECTION, &[&head, &f32_bytes(&self.error)]);
        written.map_err(|error| Refused::Store(chain(&error)))
    }

    fn step(&mut self, round: Round, decision: Option<Decision>) -> Result<Stepped, Refused> {
        let manifest = decision.as_ref().map(|decision| decision.manifest);
        if let Some((_, _, stepped)) = self.last.as_ref().filter(|last| (last.0, last.1) == (round, manifest)) {
            return Ok(stepped.clone());
        }
        self.at(round)?;
        let started = Instant::now();
        let payloads = decision.as_ref().map_or(&[][..], |decision| &decision.payloads);
        let mine: Option<PayloadHash> = self.pending.as_ref().map(|pending| pending.parcel.payload.hash());
        let applied = mine.is_some_and(|mine| payloads.iter().any(|payload| payload.hash() == mine));
        // C-1: what was applied stays out of e; what was not is put back, exactly.
        if applied {
            self.pending = None
        } else {
            self.take_back()
        }
        if let Some(decision) = decision {
            let bodies: Vec<_> = decision.payloads.iter().map(|payload| payload.body()).collect();
            let theta = Arc::make_mut(&mut self.theta);
            let spec = &self.parts.config.run.sparse;
            let step = OuterStep::new(&self.threads, Simd::best(), &self.parts.layout, spec, &bodies);
            (_, self.digest) = step.run_and_digest(&self.threads, theta);
            if self.parts.faults.flips(Leaf::Compressor, "outer-step", round) {
                theta[0] = f32::from_bits(theta[0].to_bits() ^ 1);
                self.digest = digest(theta);
            }
            self.prev = decision.manifest;
        }
        self.round = round.next();
        let stepped = Stepped {
            theta: Arc::clone(&self.theta),
            digest: self.digest,
            applied,
            seconds: started.elapsed().as_secs_f64(),
        };
        self.last = Some((round, manifest, stepped.clone()));
        Ok(stepped)
    }

    fn save(&mut self, round: Round) -> Result<(), Refused> {
        self.at(round)?;
        // θ of the last end would otherwise be held beside the one that training changes.
        self.last = None;
        let head = BoundaryHead { round, digest: self.digest, prev: self.prev };
        let head = postcard::to_allocvec(&head).map_err(|error| Refused::Store(error.to_string()))?;
        let parts: [&[u8]; 3] = [&head, &f32_bytes(&self.theta), &f32_bytes(&self.error)];
        self.parts.store.write_parts(round, SECTION, &parts).map_err(|error| Refused::Store(chain(&error)))?;
        // After a fall back to an older boundary this is a round that the node has been in before, and may have sealed a payload in.
        if self.pending.is_none() {
            self.load_pending();
        }
        Ok(())
    }

    /// e of the boundary, after a compression that failed half way through it.
    ///
    /// # Panics
    /// When this round's boundary is not on disk: the state is lost, and the actor starts again from the boundary that is.
    fn reload_error(&mut self) {
        self.error = match self.parts.store.latest() {
            Ok(Some(round)) if round == self.round => read_boundary(&self.parts, round).map(|(_, _, error)| error),
            Ok(None) if self.round == Round(0) => Some(Pages::zeroed(self.theta.len())),
            _ => None,
        }
        .unwrap_or_else(|| panic!("the error feedback of round {} is not on disk", self.round));
    }

    fn at(&self, round: Round) -> Result<(), Refused> {
        if self.round == round { Ok(()) } else { Err(Refused::OtherRound { held: self.round, asked: round }) }
    }

    /// Puts what a payload took out of e back in.
    fn take_back(&mut self) {
        if let Some(pending) = self.pending.take() {
            pending.undo.restore(&self.parts.layout, pending.parcel.payload.body(), &mut self.error);
        }
    }
}

/// The run's first θ.
fn first(parts: &Parts) -> Adopted {
    let theta = Pages::from(&*parts.genesis_theta());
    let prev = Manifest::first_prev(&parts.run_id);
    Adopted { round: Round(0), digest: digest(&theta), prev, theta }
}

/// θ and e of a boundary, if they are what was written.
fn read_boundary(parts: &Parts, round: Round) -> Option<(BoundaryHead, Pages, Pages)> {
    let section = parts.store.read(round, SECTION).ok()?;
    let (head, mut rest) = postcard::take_from_bytes::<BoundaryHead>(&section).ok()?;
    let theta = take_pages(&mut rest, parts.layout.flat_len())?;
    let error = take_pages(&mut rest, parts.layout.flat_len())?;
    (head.round == round && digest(&theta) == head.digest).then_some((head, theta, error))
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt()
}
