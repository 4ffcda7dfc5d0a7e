//! What the chain says about a round: who has sealed what, and who has voted for what.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use convoke::chain::{self, Identity};
use convoke::round::Voter;
use convoke::terms::{Block, BlockHash, EndpointId, Hotkey, Round, Stake};
use tracing::debug;

use super::{Desk, Trouble};
use crate::chain::{Metagraph, Neuron};
use crate::gauntlet::Claim;
use crate::peer_sync;
use crate::peer_sync::admission::Peer;

/// Blocks that finality may lag behind its usual depth before operators are told.
const FINALITY_LAG_BLOCKS: u64 = 10;

/// The registry and everybody's commitment at one block. Identities are verified: an endpoint has one owner.
pub struct Registry {
    pub metagraph: Arc<Metagraph>,
    members: Arc<chain::Registry>,
}

impl Desk {
    /// The registry after block `at`. A commitment that cannot be read counts as none: it is its owner's loss.
    pub async fn registry(&self, at: Block) -> Result<Registry, Trouble> {
        let outside = |error: crate::chain::ChainError| Trouble::Outside(error.to_string());
        let metagraph = self.parts.chain.metagraph(at).await.map_err(outside)?;
        let commitments = self.parts.chain.commitments(at).await.map_err(outside)?;
        let members = self.parts.opening.registry(&metagraph, &commitments);
        for (hotkey, reason) in members.refused() {
            debug!(%hotkey, %reason, "a commitment is refused");
        }
        let me = self.parts.keypair.hotkey();
        self.parts.journal.status.slot(metagraph.by_hotkey(&me).map(|neuron| neuron.uid));
        // Of two processes with one hotkey the one that started first has to go, wherever the other is.
        let on_chain = members.members().get(&me).and_then(|member| member.commitment.identity);
        if let Some(other) = on_chain.filter(|other| self.parts.identity.yields_to(other)) {
            return Err(Trouble::Superseded { by: other.address });
        }
        Ok(Registry { metagraph, members })
    }

    /// Admits those in the registry if they are others than the last time.
    pub fn admit_others(&self, registry: &Registry) {
        let is_as_before = {
            let admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
            admitted.as_deref() == Some(registry.members.identities())
        };
        if !is_as_before {
            self.admit(registry);
        }
    }

    /// From now on those in the registry, and nobody else, may connect.
    pub fn admit(&self, registry: &Registry) {
        let identities = registry.members.identities();
        *self.admitted.lock().unwrap_or_else(PoisonError::into_inner) = Some(identities.to_vec());
        let peer = |identity: &Identity| {
            let addresses = identity.address.into_iter().collect();
            Peer { id: identity.endpoint, addresses, start: identity.seq }
        };
        drop(self.leaves.peer_sync.cast(peer_sync::Msg::Admit(identities.iter().map(peer).collect())));
    }

    /// Admits by the newest block, for nodes that have gathered nothing yet.
    pub async fn admit_now(&self) -> Result<(), Trouble> {
        let head = self.parts.chain.heads().borrow().best.number;
        self.admit_others(&self.registry(head).await?);
        Ok(())
    }

    /// The hash of a block once it is final: what is drawn by it must not change under the draw.
    pub async fn final_hash(&self, block: Block, within: Duration) -> Result<BlockHash, Trouble> {
        let mut heads = self.parts.chain.heads();
        let depth = self.parts.config.run.timing.finality_depth;
        let lag = {
            let heads = heads.borrow();
            heads.best.number.0.saturating_sub(heads.finalized.number.0)
        };
        if lag > depth + FINALITY_LAG_BLOCKS {
            self.parts.journal.finality_lagging(lag);
        }
        let finality = heads.wait_for(|heads| heads.finalized.number >= block);
        match tokio::time::timeout(within, finality).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err(Trouble::Outside("the chain has stopped".to_owned())),
            Err(_) => return Err(Trouble::Outside(format!("block {block} is not final yet"))),
        }
        let hash = self.parts.chain.block_hash(block).await.map_err(|error| Trouble::Outside(error.to_string()))?;
        hash.ok_or_else(|| Trouble::Outside(format!("block {block} is not there yet")))
    }

    /// The round's seed.
    pub async fn seed(&self, round: Round, within: Duration) -> Result<BlockHash, Trouble> {
        self.final_hash(self.parts.schedule.seed_block(round), within).await
    }
}

impl Registry {
    /// The sealed contributions of a round, in the order of uids.
    pub fn claims(&self, round: Round) -> Vec<Claim> {
        let sealed = self.metagraph.neurons.iter().filter_map(|neuron| {
            let member = self.members.members().get(&neuron.hotkey)?;
            let seal = member.commitment.seal.filter(|seal| seal.round == round)?;
            let endpoint = self.members.endpoint(&neuron.hotkey);
            Some(Claim { uid: neuron.uid, hotkey: neuron.hotkey, endpoint, seal, place: member.committed_at })
        });
        let mut claims: Vec<Claim> = sealed.collect();
        claims.sort_by_key(|claim| claim.uid);
        claims
    }

    /// The permitted validators in order of stake, with their votes in a round.
    pub fn voters(&self, round: Round) -> Vec<(Voter, Stake)> {
        let stakes: Vec<(Hotkey, Stake)> =
            self.metagraph.validators().map(|neuron| (neuron.hotkey, neuron.stake)).collect();
        let vote_of = |hotkey: &Hotkey| {
            let vote = self.members.members().get(hotkey)?.commitment.manifest?;
            (vote.round == round).then_some(vote.manifest)
        };
        let stake_of: BTreeMap<Hotkey, Stake> = stakes.iter().copied().collect();
        convoke::manifest::proposers(&stakes)
            .into_iter()
            .map(|hotkey| {
                let stake = stake_of.get(&hotkey).copied().unwrap_or_default();
                (Voter { hotkey, vote: vote_of(&hotkey) }, stake)
            })
            .collect()
    }

    /// Whether the chain's consensus gives it weight: validators with at least half of the stake do.
    pub fn earns(&self, hotkey: &Hotkey) -> bool {
        self.metagraph.by_hotkey(hotkey).is_some_and(|neuron| neuron.consensus > 0)
    }

    /// The newest round that a validator has voted in.
    pub fn last_voted(&self) -> Option<Round> {
        let vote_of = |neuron: &Neuron| self.members.members().get(&neuron.hotkey)?.commitment.manifest;
        self.metagraph.validators().filter_map(vote_of).map(|vote| vote.round).max()
    }

    /// The block of a member's commitment.
    pub fn committed_at(&self, hotkey: &Hotkey) -> Option<Block> {
        Some(self.members.members().get(hotkey)?.committed_at.0)
    }

    /// The validators' endpoints, in order of stake.
    pub fn validators(&self) -> Vec<EndpointId> {
        let voters = self.voters(Round(u64::MAX));
        voters.iter().filter_map(|(voter, _)| self.endpoint(&voter.hotkey)).collect()
    }

    /// Everybody's endpoint, validators first: who may have what is old.
    pub fn everybody(&self) -> Vec<EndpointId> {
        let mut everybody = self.validators();
        let members = self.metagraph.neurons.iter().filter_map(|neuron| self.endpoint(&neuron.hotkey));
        let others: Vec<EndpointId> = members.filter(|id| !everybody.contains(id)).collect();
        everybody.extend(others);
        everybody
    }

    /// Where a node can be reached, as it has proven.
    pub fn endpoint(&self, hotkey: &Hotkey) -> Option<EndpointId> {
        self.members.endpoint(hotkey)
    }
}
