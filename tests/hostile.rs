//! What peers deliver is judged and counted, each fault under its own reason, and never hurts the node that judges it.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

mod harness;

use std::collections::BTreeMap;

use bytes::Bytes;
use convoke::chain::commitment::{Commitment, Identity as Proof, Place, Seal};
use convoke::digest::{digest, holding_proof};
use convoke::payload::{self, Header, Payload, transport};
use convoke::run_spec::Quantiser;
use convoke::sparseloco;
use convoke::terms::{Digest, PayloadHash, Round, Stake, TransportHash, Uid};
use convoke_node::chain::Outcome;
use convoke_node::config::NodeConfig;
use convoke_node::events::{Event, Line};
use convoke_node::identity::Identity;
use convoke_node::node::Parts;
use convoke_node::peer_sync::slot::TransportSlot;
use convoke_node::peer_sync::store::{Kind, Label};
use convoke_node::peer_sync::transport::{Transport, TransportConfig};
use convoke_node::peer_sync::{Reveal, admission::Peer};
use harness::{World, assert_one_digest_a_round, contributors, miner, stop, validator};

/// A peer that speaks the protocol and serves what it likes.
struct Hostile {
    identity: Identity,
    transport: Transport,
    _slot: TransportSlot,
}

impl Hostile {
    async fn join(world: &World, seed: u64) -> Self {
        let identity = Identity::of_seed(seed);
        world.host.dev_register(identity.keypair().hotkey(), Stake(0)).await.unwrap();
        let dir = world.dir.path().join(format!("hostile-{seed}"));
        let slot = TransportSlot::new(TransportConfig::new(dir, iroh::SecretKey::from_bytes(&identity.endpoint)));
        let transport = slot.acquire().await.unwrap();
        world.addresses.insert(transport.id(), transport.address());
        Self { identity, transport, _slot: slot }
    }

    /// A payload without a fault, of random values.
    fn payload(&self, parts: &Parts, uid: Uid, inner_steps: u32) -> Payload {
        let (layout, spec, keypair) = (&parts.layout, &parts.config.run.sparse, self.identity.keypair());
        let delta: Vec<f32> = (0..layout.flat_len()).map(|i| (i * 7919 % 1009) as f32 / 1009.0 - 0.5).collect();
        // Padding holds nothing.
        let mut row_major: Vec<f32> = Vec::new();
        let mut flat = vec![0.0; layout.flat_len()];
        for (tensor_idx, tensor) in layout.tensors().iter().enumerate() {
            row_major.clear();
            row_major.extend_from_slice(&delta[..tensor.shape.iter().product()]);
            layout.gather(tensor_idx, &row_major, &mut flat);
        }
        let encoded = sparseloco::encode(layout, spec, &mut vec![0.0; layout.flat_len()], &flat).unwrap();
        let base = digest(&convoke::genesis::theta(&parts.config.run.model, parts.config.run.seed, layout));
        let (round, hotkey, layout_hash) = (Round(0), keypair.hotkey(), layout.hash());
        let header = Header { run_id: parts.run_id, round, uid, hotkey, base, layout: layout_hash, inner_steps };
        Payload::seal(header, layout, spec, encoded.body, &keypair)
    }

    /// Serves `bytes` and seals them for round 0, with whatever `change` makes of an honest seal.
    async fn seal(&self, world: &World, config: &NodeConfig, bytes: Vec<u8>, change: impl FnOnce(&mut Seal)) {
        let everybody: Vec<Peer> = world
            .addresses
            .iter()
            .map(|entry| Peer { id: *entry.key(), addresses: vec![*entry.value()], start: 0 })
            .collect();
        self.transport.admit(&everybody).await.unwrap();
        let label = Label { round: Round(0), kind: Kind::Payload, reveal: Reveal::Always };
        let hash = self.transport.publish(Bytes::from(bytes.clone()), label).await.unwrap();
        let keypair = self.identity.keypair();
        let layout = convoke::genesis::layout(&config.run.model).unwrap();
        let theta = convoke::genesis::theta(&config.run.model, config.run.seed, &layout);
        let seed = world.seed(config, Round(0)).await;
        let chunks = config.run.gauntlet.holding_chunks;
        let mut seal = Seal {
            round: Round(0),
            payload: PayloadHash([1; 32]),
            transport: TransportHash(*hash.as_bytes()),
            transport_bytes: bytes.len() as u64,
            base: digest(&theta),
            holding: Seal::holding_of(&holding_proof(&theta, &seed, &keypair.hotkey(), chunks)),
        };
        change(&mut seal);
        let place = Place { genesis: world.host.reader().genesis(), netuid: 3 };
        let proof = Proof::prove(&self.identity.endpoint, &place, &keypair.hotkey(), 1, None);
        let commitment = Commitment { identity: Some(proof), seal: Some(seal), manifest: None };
        let outcome = world.host.connect(keypair).commit(commitment.to_fields()).await.unwrap();
        assert!(matches!(outcome, Outcome::Included { .. }), "{outcome:?}");
    }
}

/// Where the blocks of a transport coding begin, and where its signature does.
fn blocks_at(parts: &Parts) -> (usize, usize) {
    let (levels, _) = sparseloco::BodyRef::lens(&parts.layout, sparseloco::Format::of(&parts.config.run.sparse));
    let signature_at = 6 + payload::HEADER_LEN + levels;
    (signature_at + 64, signature_at)
}

/// A coding whose first block begins with a frame that says it expands to a gigabyte: single segment, its size in four bytes,
/// one last block of one byte repeated.
fn bomb(mut coded: Vec<u8>, parts: &Parts) -> Vec<u8> {
    let frame =
        [&0xfd2f_b528_u32.to_le_bytes()[..], &[0xa0], &(1_u32 << 30).to_le_bytes(), &[0x03, 0xff, 0x07, 0]].concat();
    coded.truncate(blocks_at(parts).0);
    coded.push(1);
    // Gaps, then scales or bins; two-bit has magnitudes too.
    let n_streams = if parts.config.run.sparse.quantiser == Quantiser::TwoBit { 3 } else { 2 };
    let lens = std::iter::once(frame.len() as u32).chain(std::iter::repeat(0)).take(n_streams);
    coded.extend(lens.flat_map(u32::to_le_bytes));
    coded.extend(frame);
    coded
}

/// A coding whose signature is another's.
fn unsigned(mut coded: Vec<u8>, parts: &Parts) -> Vec<u8> {
    coded[blocks_at(parts).1] ^= 1;
    coded
}

fn rejections(events: &[Line]) -> BTreeMap<Uid, String> {
    let rejected = events.iter().filter_map(|line| match &line.event {
        Event::Rejected { uid: Some(uid), reason, .. } if line.round == Some(Round(0)) => Some((*uid, reason.clone())),
        _ => None,
    });
    rejected.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_hostile_payload_is_rejected_with_its_reason_and_the_honest_go_on() {
    let (ada, eve) = (miner("ada", 1), validator("eve", 2));
    // Long rounds: nine peers must seal in the first.
    let world = World::new(&[ada.clone(), eve.clone()], &["run.timing.blocks_per_round=60"]).await;
    let nodes = vec![world.start(&ada, &[]).await, world.start(&eve, &[]).await];
    let config = world.config(&ada);
    let (layout, spec) = (&nodes[0].parts.layout, &config.run.sparse);
    let len = transport::len_max(layout, spec);
    let garbage = |fill: u8| -> Vec<u8> { (0..len).map(|i| fill ^ u8::try_from(i % 251).unwrap()).collect() };

    let mut hostile = Vec::new();
    for seed in 11..=19 {
        hostile.push(Hostile::join(&world, seed).await);
    }
    let made_in = |idx: usize, inner_steps: u32| {
        let payload = hostile[idx].payload(&nodes[0].parts, Uid(u16::try_from(idx).unwrap() + 2), inner_steps);
        (payload.hash(), transport::encode(&payload, layout, spec))
    };
    let coded = |idx: usize| made_in(idx, config.run.inner.steps);
    hostile[0].seal(&world, &config, garbage(1), |_| {}).await;
    let (hash, bytes) = coded(1);
    hostile[1].seal(&world, &config, bytes[..bytes.len() - 1].to_vec(), |seal| seal.payload = hash).await;
    hostile[2].seal(&world, &config, garbage(3), |seal| seal.transport_bytes = 1 << 40).await;
    hostile[3].seal(&world, &config, garbage(4), |seal| seal.base = Digest([9; 32])).await;
    hostile[4].seal(&world, &config, garbage(5), |seal| seal.holding = [9; 16]).await;
    hostile[5].seal(&world, &config, bomb(coded(5).1, &nodes[0].parts), |_| {}).await;
    // Without a fault, but not what was sealed.
    hostile[6].seal(&world, &config, coded(6).1, |_| {}).await;
    let (hash, bytes) = coded(7);
    hostile[7].seal(&world, &config, unsigned(bytes, &nodes[0].parts), |seal| seal.payload = hash).await;
    let (hash, bytes) = made_in(8, config.run.inner.steps_min - 1);
    hostile[8].seal(&world, &config, bytes, |seal| seal.payload = hash).await;

    let completed = || nodes.iter().map(|node| node.parts.journal.status.rounds_completed()).min().unwrap_or(0);
    world.until("two rounds beside hostile peers", 250, || completed() >= 2).await;
    stop(nodes).await;
    let (ada, eve) = (world.events(&ada), world.events(&eve));
    assert!(assert_one_digest_a_round(&[ada.clone(), eve.clone()]) >= 2);
    assert!(contributors(&eve).values().all(|uids| *uids == [Uid(0)]), "only the honest miner may contribute");
    // Whether somebody holds θ is for validators to judge: to a miner it is garbage like any other.
    let holds_nothing = "the keyed digest of the parameters is wrong";
    for (events, of_uid_6) in [(&ada, "malformed: transport_magic"), (&eve, holds_nothing)] {
        let rejected = rejections(events);
        let wanted = [
            (2, "malformed: transport_magic"),
            (3, "malformed: transport_truncated"),
            (4, "1099511627776 bytes sealed"),
            (5, "made from other parameters"),
            (6, of_uid_6),
            (7, "malformed: frame_too_large"),
            (8, "the bytes decode to another payload than was sealed"),
            (9, "malformed: signature"),
            (10, "1 inner steps, at least 2 are wanted"),
        ];
        for (uid, reason) in wanted {
            let found = rejected.get(&Uid(uid)).map(String::as_str).unwrap_or_default();
            assert!(found.starts_with(reason), "uid {uid}: {found:?}, not {reason:?}; all: {rejected:?}");
        }
        let restarted = events.iter().any(|line| matches!(line.event, Event::ActorRestarted { .. }));
        assert!(!restarted, "a hostile payload has brought an actor down");
    }
}
