//! What the chain says about a round: who has sealed what, and who has voted for what.

use std::collections::BTreeMap;

use convoke::chain::commitment::Commitment;
use convoke::round::Voter;
use convoke::terms::{Block, BlockHash, EndpointId, Hotkey, Round, Stake};

use super::{Desk, Trouble};
use crate::chain::Metagraph;
use crate::gauntlet::Claim;

/// The registry and everybody's commitment at one block.
pub struct Registry {
    pub metagraph: std::sync::Arc<Metagraph>,
    pub commitments: BTreeMap<Hotkey, Placed>,
}

/// A commitment and where it stands in the chain's order.
pub struct Placed {
    pub block: Block,
    pub index: u32,
    pub commitment: Commitment,
}

impl Desk {
    /// The registry after block `at`. A commitment that cannot be read counts as none: it is its owner's loss.
    pub async fn registry(&self, at: Block) -> Result<Registry, Trouble> {
        let outside = |error: crate::chain::ChainError| Trouble::Outside(error.to_string());
        let metagraph = self.parts.chain.metagraph(at).await.map_err(outside)?;
        let raw = self.parts.chain.commitments(at).await.map_err(outside)?;
        let commitments = raw
            .iter()
            .filter_map(|(hotkey, committed)| {
                let commitment = Commitment::parse(&committed.fields).ok()?;
                Some((*hotkey, Placed { block: committed.block, index: committed.index, commitment }))
            })
            .collect();
        Ok(Registry { metagraph, commitments })
    }

    /// The hash of a block that is known to exist.
    pub async fn hash_of(&self, block: Block) -> Result<BlockHash, Trouble> {
        let hash = self.parts.chain.block_hash(block).await.map_err(|error| Trouble::Outside(error.to_string()))?;
        hash.ok_or_else(|| Trouble::Outside(format!("block {block} is not there yet")))
    }
}

impl Registry {
    /// The sealed contributions of a round, in the order of uids.
    pub fn claims(&self, round: Round) -> Vec<Claim> {
        let sealed = self.metagraph.neurons.iter().filter_map(|neuron| {
            let placed = self.commitments.get(&neuron.hotkey)?;
            let seal = placed.commitment.seal.as_ref().filter(|seal| seal.round == round)?;
            Some(Claim {
                uid: neuron.uid,
                hotkey: neuron.hotkey,
                endpoint: placed.commitment.identity.as_ref().map(|identity| identity.endpoint)?,
                seal: seal.clone(),
                place: (placed.block, placed.index),
            })
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
            let vote = self.commitments.get(hotkey)?.commitment.manifest.as_ref()?;
            (vote.round == round).then_some(vote.manifest)
        };
        let stake_of: BTreeMap<Hotkey, Stake> = stakes.iter().copied().collect();
        convoke::manifest::proposers(&stakes)
            .into_iter()
            .map(|hotkey| {
                (Voter { hotkey, vote: vote_of(&hotkey) }, stake_of.get(&hotkey).copied().unwrap_or_default())
            })
            .collect()
    }

    /// Where a node can be reached, as it has committed.
    pub fn endpoint(&self, hotkey: &Hotkey) -> Option<EndpointId> {
        Some(self.commitments.get(hotkey)?.commitment.identity.as_ref()?.endpoint)
    }
}
