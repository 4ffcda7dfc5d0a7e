//! Who is who on the network at a block: the members' commitments, read, and each endpoint's one hotkey.
//!
//! Only members count: a pruned hotkey keeps valid signatures, not its place. Two hotkeys that name the same endpoint
//! cannot both be it, so the older registration has it, then the lower uid; the other is a member without an endpoint.

use std::collections::BTreeMap;

use super::commitment::{Commitment, CommitmentError, Identity, Place};
use super::metagraph::{Committed, Metagraph, Neuron};
use crate::terms::{Block, EndpointId, Hotkey};

/// A member with the commitment it made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its neuron.
    pub neuron: Neuron,
    /// What it committed.
    pub commitment: Commitment,
    /// (block, index) of the commitment: the order in which they were made.
    pub committed_at: (Block, u32),
}

/// The members of a subnet at a block.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Registry {
    members: BTreeMap<Hotkey, Member>,
    endpoints: BTreeMap<EndpointId, Hotkey>,
    identities: Vec<Identity>,
    refused: Vec<(Hotkey, CommitmentError)>,
}

/// The identities that were found proven. A node reads the registry many times a round and an identity changes when its node starts
/// again, so a signature is verified once, not at every read.
#[derive(Debug, Clone)]
pub struct Proofs {
    place: Place,
    /// One a member at most.
    held: BTreeMap<Hotkey, Identity>,
}

impl Proofs {
    /// Nothing is proven yet.
    #[must_use]
    pub fn new(place: Place) -> Self {
        Self { place, held: BTreeMap::new() }
    }

    fn verify(&mut self, hotkey: Hotkey, identity: Identity) -> Result<(), CommitmentError> {
        if self.held.get(&hotkey) != Some(&identity) {
            identity.verify(&self.place, &hotkey)?;
            self.held.insert(hotkey, identity);
        }
        Ok(())
    }
}

impl Registry {
    /// Reads every member's commitment.
    #[must_use]
    pub fn of(metagraph: &Metagraph, commitments: &BTreeMap<Hotkey, Committed>, proofs: &mut Proofs) -> Self {
        let mut registry = Self::default();
        let mut oldest: BTreeMap<EndpointId, &Neuron> = BTreeMap::new();
        for neuron in &metagraph.neurons {
            let Some(committed) = commitments.get(&neuron.hotkey) else { continue };
            let mut commitment = match Commitment::parse(&committed.fields) {
                Ok(commitment) => commitment,
                Err(reason) => {
                    registry.refused.push((neuron.hotkey, reason));
                    continue;
                }
            };
            if let Some(identity) = commitment.identity {
                match proofs.verify(neuron.hotkey, identity) {
                    Ok(()) => {
                        let holder = oldest.entry(identity.endpoint).or_insert(neuron);
                        if (neuron.registered_at, neuron.uid) < (holder.registered_at, holder.uid) {
                            *holder = neuron;
                        }
                    }
                    Err(reason) => {
                        registry.refused.push((neuron.hotkey, reason));
                        commitment.identity = None;
                    }
                }
            }
            let committed_at = (committed.block, committed.index);
            registry.members.insert(neuron.hotkey, Member { neuron: neuron.clone(), commitment, committed_at });
        }
        proofs.held.retain(|hotkey, _| registry.members.contains_key(hotkey));
        registry.endpoints = oldest.into_iter().map(|(endpoint, neuron)| (endpoint, neuron.hotkey)).collect();
        registry.identities = registry
            .endpoints
            .values()
            .filter_map(|hotkey| registry.members.get(hotkey)?.commitment.identity)
            .collect();
        registry
    }

    /// Every member whose commitment is ours, by hotkey.
    #[must_use]
    pub fn members(&self) -> &BTreeMap<Hotkey, Member> {
        &self.members
    }

    /// Whose endpoint this is.
    #[must_use]
    pub fn hotkey(&self, endpoint: &EndpointId) -> Option<&Member> {
        self.endpoints.get(endpoint).and_then(|hotkey| self.members.get(hotkey))
    }

    /// The endpoint of this member, if it named one and the endpoint is not an older member's.
    #[must_use]
    pub fn endpoint(&self, hotkey: &Hotkey) -> Option<EndpointId> {
        let identity = self.members.get(hotkey)?.commitment.identity?;
        (self.endpoints.get(&identity.endpoint) == Some(hotkey)).then_some(identity.endpoint)
    }

    /// The identities of all members whose endpoint is not an older member's, in the order of endpoints.
    #[must_use]
    pub fn identities(&self) -> &[Identity] {
        &self.identities
    }

    /// Members whose commitment or identity was refused, and why.
    #[must_use]
    pub fn refused(&self) -> &[(Hotkey, CommitmentError)] {
        &self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{Genesis, GenesisNeuron, Ledger};
    use crate::terms::BlockHash;

    const PLACE: Place = Place { genesis: BlockHash([4; 32]), netuid: 3 };

    fn key(i: u8) -> Hotkey {
        Hotkey([i; 32])
    }

    fn committed(identity: Identity) -> Committed {
        let commitment = Commitment { identity: Some(identity), ..Commitment::default() };
        Committed { block: Block(1), index: 0, fields: commitment.to_fields() }
    }

    fn metagraph() -> Metagraph {
        let mut genesis = Genesis::new(3, 0, 0);
        genesis.neurons = (0..3).map(|i| GenesisNeuron { hotkey: key(i), coldkey: key(100), stake: 0 }).collect();
        Ledger::new(&genesis).unwrap().metagraph()
    }

    #[test]
    fn an_endpoint_is_the_older_members() {
        let mut metagraph = metagraph();
        metagraph.neurons[0].registered_at = Block(9);
        let identity = |i| Identity::prove(&[6; 32], &PLACE, &key(i), 1, None);
        let commitments = BTreeMap::from([(key(0), committed(identity(0))), (key(2), committed(identity(2)))]);
        let registry = Registry::of(&metagraph, &commitments, &mut Proofs::new(PLACE));
        let endpoint = identity(0).endpoint;
        assert_eq!(registry.hotkey(&endpoint).map(|member| member.neuron.hotkey), Some(key(2)));
        assert_eq!((registry.endpoint(&key(0)), registry.endpoint(&key(2))), (None, Some(endpoint)));
        assert_eq!(registry.members().len(), 2);
    }

    #[test]
    fn a_proof_holds_for_what_it_was_given_for() {
        let mut proofs = Proofs::new(PLACE);
        let proven = Identity::prove(&[6; 32], &PLACE, &key(0), 1, None);
        let mut read = |identity| {
            let commitments = BTreeMap::from([(key(0), committed(identity))]);
            Registry::of(&metagraph(), &commitments, &mut proofs).endpoint(&key(0))
        };
        assert_eq!(read(proven), Some(proven.endpoint));
        assert_eq!(read(proven), Some(proven.endpoint));
        assert_eq!(read(Identity { seq: 2, ..proven }), None);
        let next = Identity::prove(&[6; 32], &PLACE, &key(0), 2, None);
        assert_eq!(read(next), Some(next.endpoint));
        assert_eq!(read(Identity { endpoint: EndpointId([1; 32]), ..next }), None);
    }

    #[test]
    fn strangers_forgeries_and_foreign_commitments_have_no_endpoint() {
        let forged = Identity { seq: 2, ..Identity::prove(&[6; 32], &PLACE, &key(0), 1, None) };
        let foreign = Committed { block: Block(1), index: 1, fields: vec![vec![7; 128]] };
        let stranger = committed(Identity::prove(&[8; 32], &PLACE, &key(50), 1, None));
        let commitments = BTreeMap::from([(key(0), committed(forged)), (key(1), foreign), (key(50), stranger)]);
        let registry = Registry::of(&metagraph(), &commitments, &mut Proofs::new(PLACE));
        assert!(registry.endpoints.is_empty());
        let refused = [(key(0), CommitmentError::Proof), (key(1), CommitmentError::FieldCount { n_fields: 1 })];
        assert_eq!(registry.refused(), refused);
        // The forged identity does not cost its author the seal beside it.
        assert_eq!(registry.members()[&key(0)].commitment.identity, None);
    }
}
