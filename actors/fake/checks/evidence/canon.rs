//! What the chain shows at a block, and θ of each round as the decided manifests make it: the ground that evidence stands on.

use std::collections::BTreeMap;
use std::sync::Arc;

use convoke::chain::Commitment;
use convoke::digest::digest;
use convoke::manifest::{Entry, Manifest, decide};
use convoke::payload::{Payload, transport};
use convoke::round::Schedule;
use convoke::sparseloco::{BodyRef, outer_step};
use convoke::terms::{Block, BlockHash, Digest, Hotkey, ManifestHash, Round, Stake};

use super::{Halt, Public, ROUNDS_HELD, Rules};
use crate::chain::{ChainError, Commitments, Metagraph, Neuron};
use crate::gauntlet::Claim;

/// What a round stands on.
#[derive(Debug, Clone)]
pub(super) struct Ground {
    /// θ, chunk-major.
    pub theta: Arc<Vec<f32>>,
    /// Its digest.
    pub digest: Digest,
}

impl Ground {
    pub fn of(theta: Vec<f32>) -> Self {
        Self { digest: digest(&theta), theta: Arc::new(theta) }
    }

    /// θ with the bit changed that a fault of the script changes.
    pub fn flipped(&self) -> Self {
        let mut theta = self.theta.to_vec();
        if let Some(first) = theta.first_mut() {
            *first = f32::from_bits(first.to_bits() ^ 1);
        }
        Self::of(theta)
    }
}

/// Registry and commitments after a block.
#[derive(Debug, Clone)]
pub(super) struct Sight {
    pub hash: BlockHash,
    pub metagraph: Arc<Metagraph>,
    commitments: Arc<Commitments>,
}

impl Sight {
    pub async fn read(public: &Public<'_>, at: Block) -> Result<Self, Halt> {
        let hash = hash_of(public, at).await?;
        let (metagraph, commitments) = (public.chain.metagraph(at).await?, public.chain.commitments(at).await?);
        Ok(Self { hash, metagraph, commitments })
    }

    /// Everybody in the registry whose commitment can be read, with it and its place on chain. Identities are not looked at: that
    /// one is refused costs its owner its endpoint, and nothing that matters here.
    fn members(&self) -> impl Iterator<Item = (&Neuron, Commitment, (Block, u32))> {
        self.metagraph.neurons.iter().filter_map(|neuron| {
            let committed = self.commitments.get(&neuron.hotkey)?;
            let commitment = Commitment::parse(&committed.fields).ok()?;
            Some((neuron, commitment, (committed.block, committed.index)))
        })
    }

    /// What was sealed for a round, in the order of uids.
    pub fn claims(&self, round: Round) -> Vec<Claim> {
        let sealed = self.members().filter_map(|(neuron, commitment, place)| {
            let seal = commitment.seal.filter(|seal| seal.round == round)?;
            Some(Claim { uid: neuron.uid, hotkey: neuron.hotkey, endpoint: None, seal, place })
        });
        let mut claims: Vec<Claim> = sealed.collect();
        claims.sort_by_key(|claim| claim.uid);
        claims
    }

    /// The manifest that the validators' votes decide on.
    fn decided(&self, round: Round) -> Option<ManifestHash> {
        let votes = self.members().filter_map(|(neuron, commitment, _)| {
            let vote = commitment.manifest.filter(|vote| vote.round == round)?;
            let counts = neuron.permit && neuron.stake.0 > 0;
            counts.then_some((neuron.hotkey, neuron.stake, vote.manifest))
        });
        let votes: Vec<(Hotkey, Stake, ManifestHash)> = votes.collect();
        decide(&votes, self.metagraph.validators_stake())
    }
}

/// A block's hash.
pub(super) async fn hash_of(public: &Public<'_>, at: Block) -> Result<BlockHash, Halt> {
    let not_yet = || ChainError::NotYet { block: at, best: public.chain.heads().borrow().best.number };
    Ok(public.chain.block_hash(at).await?.ok_or_else(not_yet)?)
}

/// θ of the newest rounds.
#[derive(Debug)]
pub(super) struct Canon {
    held: BTreeMap<Round, Ground>,
    newest: Round,
    prev: ManifestHash,
}

impl Canon {
    /// From the run's first θ, which is also that of `from`: before it nobody was there.
    pub fn new(rules: &Rules, from: Round) -> Self {
        let first = Ground::of(rules.measure.first_theta());
        Self { held: BTreeMap::from([(from, first)]), newest: from, prev: Manifest::first_prev(&rules.run_id) }
    }

    pub fn ground(&self, round: Round) -> Option<&Ground> {
        self.held.get(&round)
    }

    /// Makes all outer steps that are decided for good.
    pub async fn advance(
        &mut self,
        rules: &Rules,
        schedule: &Schedule,
        public: &Public<'_>,
        finalized: Block,
    ) -> Result<(), Halt> {
        while schedule.manifest_at(self.newest) <= finalized {
            let round = self.newest;
            let before = self.held[&round].clone();
            let decided = Sight::read(public, schedule.manifest_at(round)).await?.decided(round);
            let applied = match decided {
                Some(hash) => payloads(rules, public, (round, self.prev, before.digest), hash)?.map(|all| (hash, all)),
                None => None,
            };
            let after = match applied {
                Some((hash, payloads)) => {
                    self.prev = hash;
                    let bodies: Vec<BodyRef<'_>> = payloads.iter().map(|payload| payload.body()).collect();
                    let mut theta = before.theta.to_vec();
                    outer_step(&rules.layout, &rules.run.sparse, &bodies, &mut theta);
                    Ground::of(theta)
                }
                None => before,
            };
            self.newest = round.next();
            self.held.insert(self.newest, after);
            self.held = self.held.split_off(&Round(self.newest.0.saturating_sub(ROUNDS_HELD)));
        }
        Ok(())
    }
}

/// What a decided manifest applies. `None` where it is of no use to anybody: then the round is null.
fn payloads(
    rules: &Rules,
    public: &Public<'_>,
    (round, prev, base): (Round, ManifestHash, Digest),
    hash: ManifestHash,
) -> Result<Option<Vec<Arc<Payload>>>, Halt> {
    let nowhere = |what: &str| Halt::found(round, format!("nobody holds {what} that was decided on"));
    let bytes = (public.blob)(&hash.0).ok_or_else(|| nowhere("the manifest"))?;
    let manifest = Manifest::parse(&bytes, rules.run.gauntlet.contributors_max).ok();
    let Some(manifest) = manifest.filter(|it| (it.round, it.prev, it.base) == (round, prev, base)) else {
        return Ok(None);
    };
    let bytes_max = transport::len_max(&rules.layout, &rules.run.sparse) as u64;
    if manifest.entries.iter().any(|entry| entry.transport_bytes > bytes_max) {
        return Ok(None);
    }
    let mut payloads = Vec::with_capacity(manifest.entries.len());
    for entry in &manifest.entries {
        let bytes = (public.blob)(&entry.transport.0).ok_or_else(|| nowhere("a payload"))?;
        let Some(payload) = payload_of(rules, round, base, entry, &bytes) else { return Ok(None) };
        payloads.push(payload);
    }
    Ok(Some(payloads))
}

/// The payload that an entry names, if that is what the bytes are.
fn payload_of(rules: &Rules, round: Round, base: Digest, entry: &Entry, bytes: &[u8]) -> Option<Arc<Payload>> {
    let payload = rules.opening.payload(bytes, &rules.layout, &rules.run.sparse).ok()?;
    let header = payload.header();
    let said = (header.run_id, header.round, header.base, header.hotkey, header.uid);
    let is_named = said == (rules.run_id, round, base, entry.hotkey, entry.uid);
    (is_named && payload.hash() == entry.payload).then_some(payload)
}
