//! What all nodes must agree on: gather, votes, decision, outer step, boundary.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use convoke::gauntlet::selection;
use convoke::manifest::{Entry, Manifest};
use convoke::payload::{Payload, transport};
use convoke::round::{Ballot, Phase, Voter, ballot};
use convoke::terms::{Block, Digest, EndpointId, Hotkey, ManifestHash, Round};
use tracing::warn;

use super::board::{Decided, Ground, Update};
use super::claims::Registry;
use super::doubt::outvoted;
use super::{Beside, Desk, Trouble, deadline};
use crate::chain_writer;
use crate::compressor::{self, Decision, Refused};
use crate::gauntlet::{self, Gathered};
use crate::gpu_worker;
use crate::leaf::{Leaf, ask};
use crate::peer_sync::{self, Kind, Reveal, SizeRule, Wanted};

impl Desk {
    /// `applied` are those whose payloads made θ of this round.
    pub fn gather(&self, round: Round, ground: Option<Ground>, applied: BTreeSet<Hotkey>) {
        let desk = self.clone();
        self.run(round, Beside::Phase(Phase::Gathering), async move {
            let ground = ground.ok_or_else(no_ground)?;
            let within = desk.within(Phase::Gathering, round);
            let registry = desk.registry(desk.parts.schedule.sealed_by(round)).await?;
            desk.admit(&registry);
            let claims = desk.of_use(registry.claims(round), &applied);
            let gathered = desk.fetch_and_check(round, &ground, &registry, claims, within).await?;
            Ok(Update::Gathered { round, gathered: Arc::new(gathered) })
        });
    }

    /// A validator judges every claim. Who only mines needs what will be applied: of more claims than there are places that is not known
    /// yet, and those who were chosen last are the likeliest to be chosen again. The others are fetched once there is a manifest.
    fn of_use(&self, mut claims: Vec<gauntlet::Claim>, applied: &BTreeSet<Hotkey>) -> Vec<gauntlet::Claim> {
        let run = &self.parts.config;
        if !run.node.role.validates() && claims.len() > run.run.gauntlet.contributors_max {
            claims.retain(|claim| applied.contains(&claim.hotkey));
        }
        claims
    }

    async fn fetch_and_check(
        &self,
        round: Round,
        ground: &Ground,
        registry: &Registry,
        claims: Vec<gauntlet::Claim>,
        within: Duration,
    ) -> Result<Gathered, Trouble> {
        let validators: Vec<EndpointId> =
            registry.voters(round).iter().filter_map(|(voter, _)| registry.endpoint(&voter.hotkey)).collect();
        // Nobody is asked for more than a payload of this run can have.
        let bytes_max = transport::len_max(&self.parts.layout, &self.parts.config.run.sparse) as u64;
        let wanted = claims.iter().filter(|claim| claim.seal.transport_bytes <= bytes_max).map(|claim| Wanted {
            hash: claim.seal.transport.0,
            size: SizeRule::Exactly(claim.seal.transport_bytes),
            kind: Kind::Payload,
            holders: claim.endpoint.into_iter().chain(validators.iter().copied()).collect(),
        });
        let wanted: Vec<Wanted> = wanted.collect();
        // The answer needs a little longer than the fetches it waits for.
        let question = |port| peer_sync::Msg::Gather { round, wanted, within, port };
        let delivered = ask(Leaf::PeerSync, &self.leaves.peer_sync, within + GRACE, question).await?;
        let seed = self.seed(round, within).await?;
        let registered = registry.metagraph.neurons.iter().map(|neuron| neuron.hotkey).collect();
        let theta = Arc::clone(&ground.theta);
        let request = gauntlet::CheckRequest { round, seed, base: ground.digest, theta, claims, delivered, registered };
        let question = |port| gauntlet::Msg::Check(request, port);
        Ok(ask(Leaf::Gauntlet, &self.leaves.gauntlet, within + GRACE, question).await?)
    }

    pub fn vote(
        &self,
        round: Round,
        block: Block,
        ground: Option<Ground>,
        gathered: Option<Arc<Gathered>>,
        mut refused: BTreeSet<ManifestHash>,
    ) {
        let desk = self.clone();
        self.run(round, Beside::Vote, async move {
            let (ground, gathered) = (ground.ok_or_else(no_ground)?, gathered.ok_or_else(no_ground)?);
            let registry = desk.registry(block).await?;
            // Who proposes may have been started anew in this round, and nobody answers on a connection to its earlier process.
            desk.admit_others(&registry);
            let voters: Vec<_> = registry.voters(round).into_iter().map(|(voter, _)| voter).collect();
            let me = desk.parts.keypair.hotkey();
            // What is refused makes room for the next that is on chain: some hostile leaders in a row must not outlast the window.
            loop {
                match ballot(&desk.parts.schedule, round, block, &voters, &me, &refused) {
                    Ballot::Keep => break,
                    Ballot::Propose => {
                        desk.propose(round, &ground, gathered).await?;
                        break;
                    }
                    Ballot::Endorse { manifest, .. } => {
                        let has_voted = |voter: &&Voter| voter.vote == Some(manifest);
                        let voted = voters.iter().filter(has_voted);
                        let holders = voted.filter_map(|voter| registry.endpoint(&voter.hotkey)).collect();
                        if desk.endorse(round, &ground, &gathered, manifest, holders, &registry).await? {
                            break;
                        }
                        refused.insert(manifest);
                    }
                }
            }
            Ok(Update::Voted { round, refused })
        });
    }

    async fn propose(&self, round: Round, ground: &Ground, gathered: Arc<Gathered>) -> Result<(), Trouble> {
        let within = self.within(Phase::AwaitingManifest, round);
        let seed = self.seed(round, within).await?;
        let request = gauntlet::ProposeRequest { round, base: ground.digest, prev: ground.prev, gathered, seed };
        let question = |port| gauntlet::Msg::Propose(request, port);
        // Without a contribution there is nothing to propose, and the round is null.
        match ask(Leaf::Gauntlet, &self.leaves.gauntlet, within, question).await? {
            Some(manifest) => self.publish_and_vote(round, &manifest, within).await,
            None => Ok(()),
        }
    }

    /// Votes for another's proposal; `false` where it is not one to vote for.
    async fn endorse(
        &self,
        round: Round,
        ground: &Ground,
        gathered: &Gathered,
        hash: ManifestHash,
        holders: Vec<EndpointId>,
        registry: &Registry,
    ) -> Result<bool, Trouble> {
        let within = self.within(Phase::AwaitingManifest, round);
        // A validator that votes for what nobody can get must not hold up those after it.
        let patience = self.parts.chain.block_time().max(deadline::AT_LEAST / 4);
        let Ok(fetched) = self.fetch_manifest(round, hash, holders, within.min(patience)).await else {
            return Ok(false);
        };
        let vouched = fetched.filter(|manifest| {
            let listed: Vec<Hotkey> = manifest.entries.iter().map(|entry| entry.hotkey).collect();
            let passed: Vec<Hotkey> = gathered.passed.iter().map(|passed| passed.hotkey).collect();
            follows(manifest, round, ground)
                && manifest.base == ground.digest
                && manifest.entries.iter().all(|entry| gathered.find(entry).is_some())
                && selection::is_fair(
                    &listed,
                    &passed,
                    |hotkey| registry.earns(hotkey),
                    &self.parts.config.run.gauntlet,
                )
        });
        let Some(manifest) = vouched else { return Ok(false) };
        self.publish_and_vote(round, &manifest, within).await?;
        Ok(true)
    }

    async fn publish_and_vote(&self, round: Round, manifest: &Manifest, within: Duration) -> Result<(), Trouble> {
        let bytes: Arc<[u8]> = manifest.encode().into();
        let reveal = Reveal::Always;
        let question = |port| peer_sync::Msg::Publish { round, kind: Kind::Manifest, bytes, reveal, port };
        ask(Leaf::PeerSync, &self.leaves.peer_sync, within, question).await?.map_err(Trouble::Outside)?;
        let (manifest, until) = (manifest.hash(), self.parts.schedule.manifest_at(round));
        let question = |port| chain_writer::Msg::Vote(round, manifest, until, port);
        self.ask_chain_writer(within, question).await?.map_err(Trouble::Outside).map(drop)
    }

    /// The manifest of a hash; `None` when what has this hash is no manifest, which is so for everybody.
    pub async fn fetch_manifest(
        &self,
        round: Round,
        hash: ManifestHash,
        holders: Vec<EndpointId>,
        within: Duration,
    ) -> Result<Option<Manifest>, Trouble> {
        let contributors_max = self.parts.config.run.gauntlet.contributors_max;
        let size = SizeRule::AtMost(convoke::manifest::len_max(contributors_max) as u64);
        let wanted = vec![Wanted { hash: hash.0, size, kind: Kind::Manifest, holders }];
        let bytes = self.fetch(round, wanted, within).await?.into_iter().next();
        let bytes = bytes.ok_or_else(|| Trouble::Outside("no holder has the manifest".to_owned()))?;
        let parsed = Manifest::parse(&bytes, contributors_max);
        if let Err(error) = &parsed {
            warn!(%round, %hash, %error, "a manifest is malformed");
        }
        Ok(parsed.ok())
    }

    /// All of the wanted, or trouble.
    async fn fetch(&self, round: Round, wanted: Vec<Wanted>, within: Duration) -> Result<Vec<Arc<[u8]>>, Trouble> {
        let question = |port| peer_sync::Msg::Gather { round, wanted, within, port };
        let fetched = ask(Leaf::PeerSync, &self.leaves.peer_sync, within + GRACE, question).await?;
        fetched.into_iter().map(|(_, result)| result.map_err(Trouble::Outside)).collect()
    }

    pub fn decide(&self, round: Round, ground: Option<Ground>, gathered: Option<Arc<Gathered>>) {
        let desk = self.clone();
        self.run(round, Beside::Phase(Phase::Deciding), async move {
            let ground = ground.ok_or_else(no_ground)?;
            let within = desk.within(Phase::Deciding, round);
            let decision = desk.decision(round).await?;
            let (registry, endorsers) = (decision.registry, decision.holders);
            desk.admit_others(&registry);
            let null_round = Update::Decided { round, decided: None };
            let Some(hash) = decision.manifest else {
                return match desk.doubted(round, &registry, ground.digest) {
                    Some(agreed) => Err(Trouble::OffDigest { agreed, own: ground.digest }),
                    None => Ok(null_round),
                };
            };
            let manifest = desk.fetch_manifest(round, hash, endorsers.clone(), within).await?;
            // What the majority has agreed on but nobody can use is a null round, for everybody alike.
            let Some(manifest) = manifest.filter(|manifest| follows(manifest, round, &ground)) else {
                return Ok(null_round);
            };
            if manifest.base != ground.digest {
                return Err(Trouble::OffDigest { agreed: manifest.base, own: ground.digest });
            }
            let Some(payloads) = desk.payloads_of(round, &manifest, &registry, gathered.as_deref(), &endorsers).await?
            else {
                return Ok(null_round);
            };
            let seed = desk.seed(round, within).await?;
            let me = desk.parts.keypair.hotkey();
            let mine = manifest.entries.iter().zip(&payloads).find(|(entry, _)| entry.hotkey == me);
            let own_seal = mine.map(|(entry, payload)| {
                (desk.seal_report(entry.payload, entry.transport_bytes), payload.header().inner_steps)
            });
            let uids = manifest.entries.iter().map(|entry| entry.uid).collect();
            let decision = Decision { manifest: hash, payloads };
            Ok(Update::Decided { round, decided: Some(Decided { decision, uids, seed, own_seal }) })
        });
    }

    /// What others hold in place of the own θ in a round without a manifest, if that is reason to look for it.
    fn doubted(&self, round: Round, registry: &Registry, own: Digest) -> Option<Digest> {
        // Of a round whose registry the chain no longer shows nobody can tell who had sealed.
        let is_of_round = registry.metagraph.block == self.parts.schedule.manifest_at(round);
        let agreed = outvoted(&registry.claims(round), &self.parts.keypair.hotkey(), own).filter(|_| is_of_round)?;
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner).may(own).then_some(agreed)
    }

    /// Every payload of a manifest, from what was gathered or from any holder; `None` when one of them is not what the
    /// manifest says, which is so for everybody.
    async fn payloads_of(
        &self,
        round: Round,
        manifest: &Manifest,
        registry: &Registry,
        gathered: Option<&Gathered>,
        endorsers: &[EndpointId],
    ) -> Result<Option<Vec<Arc<Payload>>>, Trouble> {
        let held =
            |entry: &Entry| gathered.and_then(|gathered| gathered.find(entry)).map(|found| Arc::clone(&found.payload));
        let missing: Vec<Entry> = manifest.entries.iter().filter(|entry| held(entry).is_none()).copied().collect();
        // The run spec, and not the manifest, says how large a payload may be.
        let bytes_max = transport::len_max(&self.parts.layout, &self.parts.config.run.sparse) as u64;
        if missing.iter().any(|entry| entry.transport_bytes > bytes_max) {
            return Ok(None);
        }
        let wanted = missing.iter().map(|entry| Wanted {
            hash: entry.transport.0,
            size: SizeRule::Exactly(entry.transport_bytes),
            kind: Kind::Payload,
            holders: registry.endpoint(&entry.hotkey).into_iter().chain(endorsers.iter().copied()).collect(),
        });
        let fetched = self.fetch(round, wanted.collect(), self.within(Phase::Deciding, round)).await?;
        let (parts, base) = (Arc::clone(&self.parts), manifest.base);
        let parse = move || -> Option<Vec<Arc<Payload>>> {
            let parse = |(bytes, entry): (Arc<[u8]>, &Entry)| {
                let payload = parts.opening.payload(&bytes, &parts.layout, &parts.config.run.sparse).ok()?;
                let header = payload.header();
                let said = (header.run_id, header.round, header.base, header.hotkey, header.uid);
                let named = said == (parts.run_id, round, base, entry.hotkey, entry.uid);
                (named && payload.hash() == entry.payload).then_some(payload)
            };
            fetched.into_iter().zip(&missing).map(parse).collect()
        };
        let parsed = self.parts.bench.off_thread(parse).await.map_err(Trouble::Outside)?;
        Ok(parsed.map(|fetched| {
            let mut fetched = fetched.into_iter();
            manifest.entries.iter().filter_map(|entry| held(entry).or_else(|| fetched.next())).collect()
        }))
    }

    pub fn outer_step(&self, round: Round, decision: Option<Decision>) {
        let desk = self.clone();
        let phase = if decision.is_some() { Phase::OuterStep } else { Phase::NullRound };
        self.run(round, Beside::Phase(phase), async move {
            let within = desk.within(phase, round);
            let manifest = decision.as_ref().map(|decision| decision.manifest);
            let question = |port| compressor::Msg::Step(round, decision, port);
            let stepped = match ask(Leaf::Compressor, &desk.leaves.compressor, within, question).await? {
                Ok(stepped) => stepped,
                Err(refused @ Refused::OtherRound { .. }) => return Err(Trouble::Displaced(refused.to_string())),
                Err(refused) => return Err(Trouble::Outside(refused.to_string())),
            };
            // If the worker dies now, the step is asked for again and answered as before.
            let heldout_loss = desk.load(round.next(), &stepped.theta, false, within).await?;
            Ok(Update::Stepped { round, manifest, stepped, heldout_loss })
        });
    }

    /// Every actor writes its section; the boundary counts once all are there.
    pub fn save(&self, round: Round, ground: Option<Ground>) {
        let desk = self.clone();
        self.run(round, Beside::Phase(Phase::Saving), async move {
            let ground = ground.ok_or_else(no_ground)?;
            let within = desk.within(Phase::Saving, round);
            while !desk.save_worker(round, within).await? {
                // The worker was replaced since the step: θ first.
                desk.load(round, &ground.theta, false, within).await?;
            }
            let compressor = |port| compressor::Msg::Save(round, port);
            match ask(Leaf::Compressor, &desk.leaves.compressor, within, compressor).await? {
                Ok(()) => {}
                Err(refused @ Refused::OtherRound { .. }) => return Err(Trouble::Displaced(refused.to_string())),
                Err(refused) => return Err(Trouble::Outside(refused.to_string())),
            }
            let gauntlet = |port| gauntlet::Msg::Save(round, port);
            ask(Leaf::Gauntlet, &desk.leaves.gauntlet, within, gauntlet).await?.map_err(Trouble::Outside)?;
            let parts = Arc::clone(&desk.parts);
            let sections = [compressor::SECTION, gpu_worker::SECTION, gauntlet::SECTION];
            let complete = move || parts.store.complete(round, &sections);
            let completed = desk.parts.bench.off_thread(complete).await.map_err(Trouble::Outside)?;
            completed.map_err(|error| Trouble::Outside(error.to_string()))?;
            Ok(Update::Saved { round })
        });
    }

    async fn save_worker(&self, round: Round, within: Duration) -> Result<bool, Trouble> {
        let question = |port| gpu_worker::Msg::Save { round, port };
        ask(Leaf::GpuWorker, &self.leaves.gpu_worker, within, question).await?.map_err(Trouble::Outside)
    }
}

/// Whether a manifest is of this round, and after the manifest that made θ. One for another θ is not judged here: then it is
/// this node that may be off.
fn follows(manifest: &Manifest, round: Round, ground: &Ground) -> bool {
    manifest.round == round && (manifest.prev == ground.prev || manifest.base != ground.digest)
}

/// PeerSync answers at its deadline with what it has; this is for the answer itself.
pub const GRACE: Duration = Duration::from_secs(1);

fn no_ground() -> Trouble {
    Trouble::Outside("the node does not stand on a round yet".to_owned())
}
