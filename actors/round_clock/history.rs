//! Coming back: what was decided while the node was away, and the θ from which the rest is fewest bytes.
//!
//! The chain shows the votes of the last few hundred blocks only. Older decisions are found through the manifests, each of which names
//! the one before it, beginning with the newest whose votes can be read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use convoke::catch_up::{Checkpoint, History, Start};
use convoke::manifest::Manifest;
use convoke::round::Phase;
use convoke::terms::{EndpointId, ManifestHash, Round};
use tokio::time::Instant;
use tracing::{info, warn};

use super::board::Ground;
use super::claims::Registry;
use super::{Desk, Trouble, deadline};
use crate::chain::ChainError;
use crate::compressor::{self, Adopted, Position};
use crate::leaf::{Leaf, ask};
use crate::peer_sync::{self, StateBrought};

/// What is known of the past; it outlives the procedures that ask for it.
pub type Past = Arc<Mutex<Option<History>>>;

/// A node that is this many rounds behind catches up without looking for a shorter way.
const ROUNDS_REPLAYED: u64 = 2;

/// A checkpoint is written beside everything else; a disk that takes longer than this for it is of no use to a joiner.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(600);

/// The decision of a round, and who may have what it names.
pub struct Decision {
    /// The manifest, if there is one.
    pub manifest: Option<ManifestHash>,
    /// Who is who: at the decision's block, or now if that is too long ago.
    pub registry: Registry,
    /// Those who hold the manifest and its payloads, best first.
    pub holders: Vec<EndpointId>,
}

impl Desk {
    /// What was decided in a round: by the votes on chain or, where the chain no longer shows them, by the manifests since.
    pub async fn decision(&self, round: Round) -> Result<Decision, Trouble> {
        let Some((registry, votes)) = self.votes(round).await? else { return self.decision_long_ago(round).await };
        let manifest = votes.manifest;
        Ok(Decision { manifest, registry, holders: votes.endorsers })
    }

    async fn decision_long_ago(&self, round: Round) -> Result<Decision, Trouble> {
        let known = |desk: &Self| {
            let past = desk.past.lock().unwrap_or_else(PoisonError::into_inner);
            past.as_ref().and_then(|past| past.decided(round).map(|manifest| manifest.map(Manifest::hash)))
        };
        let decided = match known(self) {
            Some(decided) => Some(decided),
            None => {
                self.look_back(round).await?;
                known(self)
            }
        };
        let gone = || Trouble::Outside(format!("nobody has the manifests back to round {round} any more"));
        let manifest = decided.ok_or_else(gone)?;
        let head = self.parts.chain.heads().borrow().finalized.number;
        let registry = self.registry(head).await?;
        let holders = registry.everybody();
        Ok(Decision { manifest, registry, holders })
    }

    /// The votes on a round; `None` if the chain no longer shows them.
    async fn votes(&self, round: Round) -> Result<Option<(Registry, Votes)>, Trouble> {
        let at = self.parts.schedule.manifest_at(round);
        match self.parts.chain.metagraph(at).await {
            Err(ChainError::Pruned { .. }) => return Ok(None),
            Err(error) => return Err(Trouble::Outside(error.to_string())),
            Ok(_) => {}
        }
        let registry = self.registry(at).await?;
        let voters = registry.voters(round);
        let total = voters.iter().map(|(_, stake)| stake.0).fold(0, u64::saturating_add);
        let votes: Vec<_> =
            voters.iter().filter_map(|(voter, stake)| Some((voter.hotkey, *stake, voter.vote?))).collect();
        let manifest = convoke::manifest::decide(&votes, convoke::terms::Stake(total));
        let endorsers = votes.iter().filter(|(_, _, vote)| Some(*vote) == manifest);
        let endorsers = endorsers.filter_map(|(hotkey, _, _)| registry.endpoint(hotkey)).collect();
        Ok(Some((registry, Votes { manifest, endorsers })))
    }

    /// The last decision that commitments of now still prove, after so many null rounds that the chain shows none of their votes any
    /// more: nobody has voted since, and the votes were made in time, as the blocks of the commitments say.
    async fn last_votes(&self, history: &mut History) -> Result<(Round, Option<ManifestHash>), Trouble> {
        let head = self.parts.chain.heads().borrow().finalized.number;
        let registry = self.registry(head).await?;
        let until = history.rounds().start;
        let Some(round) = registry.last_voted().filter(|round| *round < until) else {
            // Nobody has ever voted: all rounds were null.
            (0..until.0).for_each(|_| history.push_null());
            return Ok((Round(0), None));
        };
        let deadline = self.parts.schedule.manifest_at(round);
        let in_time = |hotkey| registry.committed_at(hotkey).is_some_and(|block| block <= deadline);
        let voters = registry.voters(round);
        let total = voters.iter().map(|(_, stake)| stake.0).fold(0, u64::saturating_add);
        let votes = voters.iter().filter(|(voter, _)| in_time(&voter.hotkey));
        let votes: Vec<_> = votes.filter_map(|(voter, stake)| Some((voter.hotkey, *stake, voter.vote?))).collect();
        match convoke::manifest::decide(&votes, convoke::terms::Stake(total)) {
            Some(manifest) => Ok((round, Some(manifest))),
            None => Err(Trouble::Outside(format!("what round {round} came to is no longer to be seen on chain"))),
        }
    }

    /// The rounds that are decided for good: all before this one.
    fn decided_until(&self) -> Round {
        let finalized = self.parts.chain.heads().borrow().finalized.number;
        let schedule = &self.parts.schedule;
        let mut round = schedule.round_of(finalized);
        while round > Round(0) && schedule.manifest_at(Round(round.0 - 1)) > finalized {
            round = Round(round.0 - 1);
        }
        round
    }

    /// Follows the manifests back from the newest one to `until`, as far as peers have them.
    async fn look_back(&self, until: Round) -> Result<History, Trouble> {
        let to = self.decided_until();
        let mut history = History::new(to);
        let (mut round, mut newest) = (to, None);
        while newest.is_none() && round > until {
            round = Round(round.0 - 1);
            let Some((_, votes)) = self.votes(round).await? else {
                (round, newest) = self.last_votes(&mut history).await?;
                break;
            };
            match votes.manifest {
                Some(manifest) => newest = Some(manifest),
                None => history.push_null(),
            }
        }
        let head = self.parts.chain.heads().borrow().finalized.number;
        let holders = self.registry(head).await?.everybody();
        let mut next = newest;
        while let Some(hash) = next.filter(|_| history.rounds().start > until) {
            let patience = self.parts.chain.block_time().max(deadline::AT_LEAST);
            // What is older than all that peers keep ends the way back, and is no trouble.
            let Ok(Some(manifest)) = self.fetch_manifest(round, hash, holders.clone(), patience).await else { break };
            round = manifest.round;
            if !history.push(manifest, &self.parts.run_id) {
                break;
            }
            next = history.next();
        }
        *self.past.lock().unwrap_or_else(PoisonError::into_inner) = Some(history.clone());
        Ok(history)
    }

    /// Finds the θ from which the newest one is the fewest bytes away. The node's own is not considered if it is in doubt.
    pub async fn caught_up(&self, position: Position, in_doubt: bool) -> Result<Position, Trouble> {
        let behind = self.decided_until().0.saturating_sub(position.round.0);
        if behind <= ROUNDS_REPLAYED && !in_doubt {
            return Ok(position);
        }
        let history = self.look_back(if in_doubt { Round(0) } else { position.round }).await?;
        let theta_bytes = self.parts.layout.flat_len() as u64 * 4;
        let checkpoints = history.checkpoints(self.parts.config.run.timing.checkpoint_rounds);
        let own = Start { round: position.round, bytes: 0 };
        let mut starts = vec![Start { round: Round(0), bytes: 0 }];
        starts.extend((!in_doubt).then_some(own));
        starts.extend(checkpoints.iter().map(|checkpoint| Start { round: checkpoint.round, bytes: theta_bytes }));
        while let Some(start) = history.cheapest(&starts) {
            if start == own && !in_doubt {
                return Ok(position);
            }
            let adopted = match checkpoints.iter().find(|checkpoint| checkpoint.round == start.round) {
                Some(checkpoint) if start.bytes > 0 => self.fetch_checkpoint(*checkpoint).await,
                _ => Ok(None),
            };
            match adopted {
                Ok(adopted) => return self.adopt(adopted, in_doubt).await,
                Err(error) => {
                    info!(round = %start.round, %error, "a checkpoint is not to be had, another way is taken");
                    starts.retain(|other| *other != start);
                }
            }
        }
        Err(Trouble::Outside("neither θ nor the payloads since are to be had from anybody".to_owned()))
    }

    async fn adopt(&self, adopted: Option<Adopted>, in_doubt: bool) -> Result<Position, Trouble> {
        let within = self.within(Phase::Starting, Round(0)).max(super::contribution::STARTING);
        let question = |port| compressor::Msg::Adopt { adopted, in_doubt, port };
        let position = ask(Leaf::Compressor, &self.leaves.compressor, within, question).await?;
        position.map_err(|refused| Trouble::Outside(refused.to_string()))
    }

    /// θ of a checkpoint, from all who may have it at once. What came before a failure is kept, and not fetched again.
    async fn fetch_checkpoint(&self, checkpoint: Checkpoint) -> Result<Option<Adopted>, Trouble> {
        let Checkpoint { round, digest, prev } = checkpoint;
        let head = self.parts.chain.heads().borrow().finalized.number;
        let registry = self.registry(head).await?;
        self.admit(&registry);
        let holders = registry.validators();
        let n_values = self.parts.layout.flat_len();
        let within = state_patience(n_values);
        let started = Instant::now();
        let question = |port| peer_sync::Msg::FetchState { round, digest, n_values, holders, within, port };
        let brought = ask(Leaf::PeerSync, &self.leaves.peer_sync, within + super::agreement::GRACE, question).await?;
        let StateBrought { theta, bytes_fetched, from, corrupt } = brought.map_err(Trouble::Outside)?;
        self.parts.journal.state_fetched(round, digest, bytes_fetched, &from, &corrupt, started.elapsed());
        Ok(Some(Adopted { round, theta, digest, prev }))
    }

    /// Beside the round: a joiner that comes before it is done is served by another validator, or by the checkpoint before.
    pub fn keep_checkpoint(&self, round: Round, ground: Ground) {
        let desk = self.clone();
        tokio::spawn(async move {
            let (theta, digest) = (ground.theta, ground.digest);
            let question = |port| peer_sync::Msg::KeepState { round, theta, digest, port };
            match ask(Leaf::PeerSync, &desk.leaves.peer_sync, CHECKPOINT_TIMEOUT, question).await {
                Ok(Ok(())) => desk.parts.journal.checkpoint_kept(round, digest),
                Ok(Err(error)) => warn!(%round, error, "the checkpoint is not kept"),
                Err(error) => warn!(%round, %error, "the checkpoint is not kept"),
            }
        });
    }
}

struct Votes {
    manifest: Option<ManifestHash>,
    endorsers: Vec<EndpointId>,
}

/// How long θ may take: a megabyte a second, and a minute.
fn state_patience(n_values: usize) -> Duration {
    Duration::from_secs(60 + (n_values as u64 * 4) / 1_000_000)
}
