//! The round's board: what procedures have brought, for the procedures that come after them.
//!
//! The machine in `convoke::round` decides what comes next; the board holds what it is done with.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use convoke::round::{Done, Event, Phase, Started};
use convoke::terms::{Block, BlockHash, Digest, Hotkey, ManifestHash, PayloadHash, Round, Uid, Weight};
use tokio::time::Instant;

use crate::compressor::{Compressed, Decision, Parcel, Position, Stepped, Theta};
use crate::gauntlet::{Gathered, Standings};
use crate::gpu_worker::Trained;
use crate::journal::{Journal, Spent};
use crate::status::SealReport;

/// What a round stands on.
#[derive(Debug, Clone)]
pub struct Ground {
    pub theta: Theta,
    pub digest: Digest,
    pub prev: ManifestHash,
}

/// What the inner steps have made.
pub type Training = Trained;

/// What a procedure brings back.
#[derive(Debug)]
pub enum Update {
    Started { position: Position, heldout_loss: f64 },
    Trained { round: Round, trained: Trained, counted: u32 },
    Compressed { round: Round, compressed: Compressed },
    Sealed { round: Round, block: Block, seal: SealReport, inner_steps: u32, waited: Duration },
    Gathered { round: Round, gathered: Arc<Gathered> },
    Voted { round: Round, refused: BTreeSet<ManifestHash> },
    Decided { round: Round, decided: Option<Decided> },
    Stepped { round: Round, manifest: Option<ManifestHash>, stepped: Stepped, heldout_loss: f64 },
    Saved { round: Round },
    Evaluated { round: Round, standings: Standings },
    WeightsSet { round: Round, block: Block, weights: Vec<(Uid, Weight)> },
    Nothing,
}

/// A round's decision and what is told of it.
#[derive(Debug)]
pub struct Decided {
    pub decision: Decision,
    pub uids: Vec<Uid>,
    pub seed: BlockHash,
    /// The own payload, if the manifest has it, and the inner steps behind it.
    pub own_seal: Option<(SealReport, u32)>,
}

/// The board.
pub struct Board {
    ground: Option<Ground>,
    training: Option<Training>,
    parcel: Option<Parcel>,
    sealed: Option<PayloadHash>,
    gathered: Option<Arc<Gathered>>,
    decision: Option<Decision>,
    decided_uids: Vec<Uid>,
    seed: BlockHash,
    refused: BTreeSet<ManifestHash>,
    /// Whose payloads made θ.
    applied: BTreeSet<Hotkey>,
    stop: Arc<AtomicBool>,
    spent: Spent,
    /// How much of the present phase was waiting for a block.
    waited: Duration,
    phase: Phase,
    phase_since: Instant,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            ground: None,
            training: None,
            parcel: None,
            sealed: None,
            gathered: None,
            decision: None,
            decided_uids: Vec::new(),
            seed: BlockHash::default(),
            refused: BTreeSet::new(),
            applied: BTreeSet::new(),
            stop: Arc::default(),
            spent: Spent::default(),
            waited: Duration::ZERO,
            phase: Phase::Starting,
            phase_since: Instant::now(),
        }
    }
}

impl Board {
    pub fn ground(&self) -> Option<Ground> {
        self.ground.clone()
    }

    pub fn training(&self) -> Option<Training> {
        self.training.clone()
    }

    pub fn own_parcel(&self) -> Option<Parcel> {
        self.parcel.clone()
    }

    pub fn gathered(&self) -> Option<Arc<Gathered>> {
        self.gathered.clone()
    }

    pub fn decision(&self) -> Option<Decision> {
        self.decision.clone()
    }

    /// θ's digest.
    pub fn digest(&self) -> Digest {
        self.ground.as_ref().map(|ground| ground.digest).unwrap_or_default()
    }

    /// Whether the own payload of the round is on chain.
    pub fn is_sealed(&self) -> bool {
        self.sealed.is_some()
    }

    pub fn refused(&self) -> BTreeSet<ManifestHash> {
        self.refused.clone()
    }

    /// Whose payloads made θ, as far as this process knows: nobody's, before its first outer step.
    pub fn applied(&self) -> BTreeSet<Hotkey> {
        self.applied.clone()
    }

    /// A fresh order to stop, which does not reach inner steps that were begun before.
    pub fn begin_inner_steps(&mut self) -> Arc<AtomicBool> {
        self.stop = Arc::default();
        Arc::clone(&self.stop)
    }

    pub fn stop_inner_steps(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Books the time of the phase that ends.
    pub fn phase_entered(&mut self, phase: Phase) {
        let elapsed = self.phase_since.elapsed();
        match self.phase {
            Phase::InnerSteps | Phase::Compressing | Phase::OuterStep | Phase::NullRound | Phase::Saving => {
                self.spent.computing += elapsed;
            }
            // A seal waits for its block, and that is the block clock's time.
            Phase::Sealing | Phase::Gathering | Phase::Deciding => {
                let waited = std::mem::take(&mut self.waited).min(elapsed);
                self.spent.waiting += waited;
                self.spent.communicating += elapsed - waited;
            }
            Phase::Starting | Phase::Ready | Phase::AwaitingReveal | Phase::AwaitingManifest => {
                self.spent.waiting += elapsed;
            }
        }
        (self.phase, self.phase_since) = (phase, Instant::now());
    }

    /// Keeps what came, tells operators, and says what it means to the machine.
    pub fn take(&mut self, update: Update, at: Round, journal: &Journal) -> Option<Event> {
        match update {
            Update::Started { position, heldout_loss } => Some(self.started(position, heldout_loss, journal)),
            // What belongs to a round that is over has no place on the board any more.
            Update::Trained { round, .. }
            | Update::Compressed { round, .. }
            | Update::Sealed { round, .. }
            | Update::Gathered { round, .. }
            | Update::Voted { round, .. }
            | Update::Decided { round, .. }
            | Update::Stepped { round, .. }
                if round != at =>
            {
                None
            }
            Update::Trained { round, trained, counted } => Some(self.trained(round, trained, counted, journal)),
            Update::Compressed { round, compressed } => Some(self.compressed(round, &compressed, journal)),
            Update::Sealed { round, block, seal, inner_steps, waited } => {
                self.waited = waited;
                self.sealed(round, block, seal, inner_steps, journal);
                Some(Event::Done(round, Done::Sealed))
            }
            Update::Gathered { round, gathered } => {
                journal.gathered(round, &gathered);
                self.gathered = Some(gathered);
                Some(Event::Done(round, Done::Gathered))
            }
            Update::Voted { round, refused } => {
                self.refused = refused;
                Some(Event::VoteEnded(round))
            }
            Update::Decided { round, decided } => Some(self.decided(round, decided, journal)),
            Update::Stepped { round, manifest, stepped, heldout_loss } => {
                Some(self.stepped(round, manifest, stepped, heldout_loss, journal))
            }
            Update::Saved { round } => Some(Event::Done(round, Done::Saved)),
            Update::Evaluated { round, standings } => {
                journal.rated(&standings);
                Some(Event::Evaluated(round))
            }
            Update::WeightsSet { round, block, weights } => {
                journal.weights_set(round, &weights, block);
                None
            }
            Update::Nothing => None,
        }
    }

    fn started(&mut self, position: Position, heldout_loss: f64, journal: &Journal) -> Event {
        let Position { round, theta, digest, prev, pending, saved } = position;
        journal.standing_at(round, heldout_loss);
        let payload_held = pending.is_some();
        *self = Self { ground: Some(Ground { theta, digest, prev }), parcel: pending, ..Self::default() };
        Event::Started(Started { round, payload_held, saved })
    }

    fn trained(&mut self, round: Round, trained: Trained, counted: u32, journal: &Journal) -> Event {
        journal.trained(round, trained.steps, trained.tokens, trained.loss, trained.seconds);
        self.training = Some(trained);
        Event::Done(round, Done::InnerSteps(counted))
    }

    fn compressed(&mut self, round: Round, compressed: &Compressed, journal: &Journal) -> Event {
        journal.compressed(compressed);
        self.parcel = Some(compressed.parcel.clone());
        Event::Done(round, Done::Compressed)
    }

    fn sealed(&mut self, round: Round, block: Block, seal: SealReport, inner_steps: u32, journal: &Journal) {
        journal.sealed(round, seal, inner_steps, block);
        self.sealed = Some(seal.payload);
    }

    fn decided(&mut self, round: Round, decided: Option<Decided>, journal: &Journal) -> Event {
        let Some(Decided { decision, uids, seed, own_seal }) = decided else {
            self.decision = None;
            return Event::Done(round, Done::Decided(None));
        };
        // A seal that was on chain before a crash could be told of it is told when the manifest shows it.
        if let Some((seal, inner_steps)) = own_seal.filter(|_| self.sealed.is_none()) {
            self.sealed(round, Block::default(), seal, inner_steps, journal);
        }
        let manifest = decision.manifest;
        journal.decided(round, manifest, uids.clone());
        (self.decision, self.decided_uids, self.seed) = (Some(decision), uids, seed);
        Event::Done(round, Done::Decided(Some(manifest)))
    }

    /// The round is over: what the next one stands on takes the board.
    fn stepped(
        &mut self,
        round: Round,
        manifest: Option<ManifestHash>,
        stepped: Stepped,
        heldout_loss: f64,
        journal: &Journal,
    ) -> Event {
        match manifest {
            Some(_) => journal.outer_step(round, &stepped, &self.decided_uids, heldout_loss, self.seed),
            None => journal.null_round(round),
        }
        self.phase_entered(self.phase);
        journal.round_ended(round, self.sealed.map(|_| stepped.applied), self.spent);
        let prev = manifest.or(self.ground.as_ref().map(|ground| ground.prev)).unwrap_or_default();
        let ground = Ground { theta: stepped.theta, digest: stepped.digest, prev };
        let (phase, phase_since) = (self.phase, self.phase_since);
        let applied = match self.decision.take() {
            Some(decision) => decision.payloads.iter().map(|payload| payload.header().hotkey).collect(),
            // A null round has chosen nobody.
            None => std::mem::take(&mut self.applied),
        };
        *self = Self { ground: Some(ground), applied, phase, phase_since, ..Self::default() };
        Event::Done(round, Done::Stepped)
    }
}
