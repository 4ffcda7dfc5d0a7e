//! Nodes that lie on the chain: miners that sell another's payload as their own, and validators that vote or weigh for other reasons than
//! what they have found.
//!
//! A copier knows what no peer can know in time: the bytes of a payload that is not revealed yet. It has them from a friend, or from the
//! machine that it shares with him; here, from the other endpoint's shelf. It waits for a seal of an honest miner, and seals after it:
//! the same payload ([`Part::CopyExact`]), the same records under its own signature ([`Part::CopySigned`]), or records of which some
//! lie elsewhere in their chunks ([`Part::CopyPerturbed`]). Its own node knows nothing of it and believes that its seals are late.
//!
//! To a colluder its friends help and all others harm ([`Partial`](super::trainer::twist::Partial)), so that it proposes manifests of
//! friends as soon as it has the lead. It gives all of its weight to them, and where another's proposal is to be endorsed it votes for
//! a manifest that nobody has. A validator that copies weights sets the chain's consensus as its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use convoke::chain::commitment::{Commitment, ManifestVote, Seal};
use convoke::hotkey::HotkeyPair;
use convoke::payload::{Header, Payload, transport};
use convoke::run_spec::SparseSpec;
use convoke::sparseloco::{CHUNK_LEN, Layout, decode, encode};
use convoke::terms::{EndpointId, Hotkey, PayloadHash, Round, TransportHash, Uid, Weight};

use super::cast::Part;
use super::chance::Chance;
use super::net::FakeNet;
use crate::chain::{ChainFuture, ChainRead, ChainWrite, Outcome};
use crate::peer_sync::gate::Reveal;
use crate::peer_sync::store::{Kind, Label};

/// Blocks for which a copier waits for somebody to copy: then it sends what it has made itself.
const PATIENCE_BLOCKS: u64 = 3;
/// The least and the most of the kept values that a copier moves: some are careless, and some move more than copies are known by.
const MOVED: (f64, f64) = (0.05, 0.65);

/// What all accomplices of a run know.
pub struct Plot {
    /// Draws victims and what is changed.
    pub chance: Chance,
    /// The endpoints of honest miners, from which there is something to be had.
    pub victims: BTreeMap<Hotkey, EndpointId>,
    /// Those whom colluders favour.
    pub friends: BTreeSet<Hotkey>,
    /// Where the bytes are.
    pub net: FakeNet,
    /// The tensors of θ.
    pub layout: Layout,
    /// How Δ is compressed.
    pub spec: SparseSpec,
}

/// One accomplice's way to the chain.
pub struct Accomplice {
    part: Part,
    pair: HotkeyPair,
    endpoint: EndpointId,
    read: Arc<dyn ChainRead>,
    write: Arc<dyn ChainWrite>,
    plot: Arc<Plot>,
}

impl Accomplice {
    /// Who plays this part, with its own keys.
    #[must_use]
    pub fn new(
        part: Part,
        (pair, endpoint): (HotkeyPair, EndpointId),
        read: Arc<dyn ChainRead>,
        write: Arc<dyn ChainWrite>,
        plot: Arc<Plot>,
    ) -> Arc<Self> {
        Arc::new(Self { part, pair, endpoint, read, write, plot })
    }

    /// The commitment with the seal of another in place of the own one.
    async fn copied(&self, mut commitment: Commitment) -> Commitment {
        let Some(own) = commitment.seal else { return commitment };
        if let Some((victim, seal)) = self.victim_of(own.round).await {
            commitment.seal = self.forged(&own, self.slot().await, victim, seal);
        }
        commitment
    }

    /// Tells its draws of a round from those of others.
    fn which(&self, round: Round) -> [u64; 3] {
        [round.0, u64::from(self.endpoint.0[0]), u64::from(self.endpoint.0[1])]
    }

    /// The share of the kept values that it moves: the same in every round.
    fn moved(&self) -> f64 {
        let (least, most) = MOVED;
        least + (most - least) * self.plot.chance.share("share moved", &self.which(Round(0)))
    }

    /// Whether somebody has voted for this manifest before: then it is another's.
    async fn is_voted_for(&self, vote: &ManifestVote) -> bool {
        let best = self.read.heads().borrow().best.number;
        let Ok(commitments) = self.read.commitments(best).await else { return false };
        let others = commitments.iter().filter(|(hotkey, _)| **hotkey != self.pair.hotkey());
        let mut votes = others.filter_map(|(_, committed)| Commitment::parse(&committed.fields).ok()?.manifest);
        votes.any(|other| other == *vote)
    }

    /// The own slot.
    async fn slot(&self) -> Uid {
        let best = self.read.heads().borrow().best.number;
        let metagraph = self.read.metagraph(best).await.ok();
        metagraph.and_then(|it| it.by_hotkey(&self.pair.hotkey()).map(|neuron| neuron.uid)).unwrap_or_default()
    }

    /// An honest miner whose seal of this round is on chain, as soon as there is one.
    async fn victim_of(&self, round: Round) -> Option<(EndpointId, Seal)> {
        let mut heads = self.read.heads();
        let until = heads.borrow().best.number.0 + PATIENCE_BLOCKS;
        loop {
            let best = heads.borrow_and_update().best.number;
            let commitments = self.read.commitments(best).await.ok()?;
            let seal_of = |hotkey: &Hotkey| {
                let seal = Commitment::parse(&commitments.get(hotkey)?.fields).ok()?.seal?;
                (seal.round == round).then_some(seal)
            };
            let sealed = self.plot.victims.iter().filter_map(|(hotkey, id)| Some((*id, seal_of(hotkey)?)));
            let sealed: Vec<(EndpointId, Seal)> = sealed.collect();
            let which = self.which(round);
            if !sealed.is_empty() {
                return Some(sealed[self.plot.chance.below(sealed.len(), "victim", &which)]);
            }
            if best.0 >= until || heads.changed().await.is_err() {
                return None;
            }
        }
    }

    /// The own seal for what is another's; none where the other's bytes are not to be had.
    fn forged(&self, own: &Seal, uid: Uid, victim: EndpointId, seal: Seal) -> Option<Seal> {
        if self.part == Part::CopyExact {
            // That θ is held, each shows for himself.
            return Some(Seal { holding: own.holding, ..seal });
        }
        let Plot { net, layout, spec, chance, .. } = &*self.plot;
        let bytes = net.blob(victim, &seal.transport.0)?;
        let payload = transport::parse(&bytes, layout, spec).ok()?;
        let mut values = decode(layout, payload.body());
        if self.part == Part::CopyPerturbed {
            let chance = Chance::new(chance.draw("moved", &self.which(own.round)));
            move_kept(layout, self.moved(), chance, &mut values);
        }
        let body = encode(layout, spec, &mut vec![0.0; values.len()], &values).ok()?.body;
        let header = Header { hotkey: self.pair.hotkey(), uid, ..*payload.header() };
        let payload = Payload::seal(header, layout, spec, body, &self.pair);
        let coded = Bytes::from(transport::encode(&payload, layout, spec));
        let hash = *blake3::hash(&coded).as_bytes();
        let label = Label { round: own.round, kind: Kind::Payload, reveal: Reveal::Always };
        let transport_bytes = coded.len() as u64;
        net.plant(self.endpoint, hash, &coded, label);
        let (payload, transport) = (PayloadHash(payload.hash().0), TransportHash(hash));
        Some(Seal { payload, transport, transport_bytes, ..*own })
    }

    /// The weights that a validator sets who has not looked.
    async fn weights(&self, found: Vec<(Uid, Weight)>) -> Vec<(Uid, Weight)> {
        let best = self.read.heads().borrow().best.number;
        let Ok(metagraph) = self.read.metagraph(best).await else { return found };
        let weight = |uid: Uid, weight: u16| (weight > 0).then_some((uid, Weight(weight)));
        let neurons = metagraph.neurons.iter();
        let other: Vec<(Uid, Weight)> = match self.part {
            Part::Colluder => {
                let friends = neurons.filter(|neuron| self.plot.friends.contains(&neuron.hotkey));
                friends.filter_map(|neuron| weight(neuron.uid, u16::MAX)).collect()
            }
            _ => neurons.filter_map(|neuron| weight(neuron.uid, neuron.consensus)).collect(),
        };
        if other.is_empty() { found } else { other }
    }
}

impl ChainWrite for Accomplice {
    fn hotkey(&self) -> Hotkey {
        self.write.hotkey()
    }

    fn commit(&self, fields: Vec<Vec<u8>>) -> ChainFuture<'_, Outcome> {
        let Ok(mut commitment) = Commitment::parse(&fields) else { return self.write.commit(fields) };
        Box::pin(async move {
            match self.part {
                Part::CopyExact | Part::CopySigned | Part::CopyPerturbed => {
                    commitment = self.copied(commitment).await;
                }
                Part::Colluder => {
                    if let Some(vote) = &mut commitment.manifest
                        && self.is_voted_for(vote).await
                    {
                        vote.manifest.0 = *blake3::hash(&vote.manifest.0).as_bytes();
                    }
                }
                _ => {}
            }
            self.write.commit(commitment.to_fields()).await
        })
    }

    fn set_weights(&self, weights: Vec<(Uid, Weight)>, version_key: u64) -> ChainFuture<'_, Outcome> {
        if !self.part.is_validators() {
            return self.write.set_weights(weights, version_key);
        }
        Box::pin(async move { self.write.set_weights(self.weights(weights).await, version_key).await })
    }

    fn register(&self, coldkey: HotkeyPair, limit_price: u64) -> ChainFuture<'_, Outcome> {
        self.write.register(coldkey, limit_price)
    }
}

/// Moves a share of the values that are not zero to places of their chunks where there was none.
fn move_kept(layout: &Layout, share: f64, chance: Chance, values: &mut [f32]) {
    for tensor_idx in 0..layout.tensors().len() {
        for chunk_idx in layout.chunks_of(tensor_idx) {
            let positions = layout.valid(tensor_idx, chunk_idx).positions();
            let places = positions.map(|position| chunk_idx * CHUNK_LEN + position);
            let (kept, mut free): (Vec<usize>, Vec<usize>) = places.partition(|place| values[*place] != 0.0);
            for from in kept.into_iter().filter(|place| chance.share("move", &[*place as u64]) < share) {
                if free.is_empty() {
                    break;
                }
                let which = chance.below(free.len(), "to", &[from as u64]);
                values.swap(from, free[which]);
                free.swap_remove(which);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use convoke::sparseloco::TensorShape;

    use super::*;

    #[test]
    fn moved_values_stay_in_their_chunks_and_out_of_the_padding() {
        let tensor = |name: &str, shape: &[usize]| TensorShape { name: name.to_owned(), shape: shape.to_vec() };
        let layout = Layout::new(vec![tensor("matrix", &[64, 60]), tensor("vector", &[100])]).unwrap();
        let mut before = vec![0.0; layout.flat_len()];
        layout.gather(0, &vec![0.0; 3840], &mut before);
        let inside: Vec<f32> = (0..3840).map(|at| if at % 30 == 0 { 1.0 + at as f32 } else { 0.0 }).collect();
        layout.gather(0, &inside, &mut before);
        layout.gather(1, &[7.0; 100], &mut before);
        let mut after = before.clone();
        move_kept(&layout, 0.5, Chance::new(4), &mut after);
        let sorted = |values: &[f32]| {
            let mut values: Vec<f32> = values.iter().copied().filter(|value| *value != 0.0).collect();
            values.sort_by(f32::total_cmp);
            values
        };
        for (before, after) in before.chunks(CHUNK_LEN).zip(after.chunks(CHUNK_LEN)) {
            assert_eq!(sorted(before), sorted(after));
        }
        let n_moved = before.iter().zip(&after).filter(|(before, after)| **before != 0.0 && before != after).count();
        // Half of 128; where a chunk is full there is nowhere to go.
        assert!((45..85).contains(&n_moved), "{n_moved}");
        let mut whole = vec![0.0; layout.flat_len()];
        layout.gather(0, &vec![1.0; 3840], &mut whole);
        layout.gather(1, &[1.0; 100], &mut whole);
        assert!(after.iter().zip(&whole).all(|(value, valid)| *value == 0.0 || *valid != 0.0));
    }
}
