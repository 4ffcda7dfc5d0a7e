//! What peers deliver is judged and counted, each fault under its own reason, and never hurts the node that judges it.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

mod harness;

use std::collections::BTreeMap;

use bytes::Bytes;
use convoke::chain::commitment::{Commitment, Identity as Proof, Place, Seal};
use convoke::digest::{digest, holding_proof};
use convoke::terms::{Digest, PayloadHash, Round, Stake, Uid};
use convoke_node::chain::Outcome;
use convoke_node::config::NodeConfig;
use convoke_node::events::{Event, Line};
use convoke_node::identity::Identity;
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

    /// Serves `bytes` and seals them for round 0, with whatever `change` makes of an honest seal.
    async fn seal(&self, world: &World, config: &NodeConfig, bytes: Vec<u8>, change: impl FnOnce(&mut Seal)) {
        let everybody: Vec<Peer> =
            world.addresses.iter().map(|entry| Peer { id: *entry.key(), addresses: vec![*entry.value()] }).collect();
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
            payload: PayloadHash(*hash.as_bytes()),
            payload_bytes: bytes.len() as u64,
            base: digest(&theta),
            holding: holding_proof(&theta, &seed, &keypair.hotkey(), chunks),
        };
        change(&mut seal);
        let place = Place { genesis: world.host.reader().genesis(), netuid: 3 };
        let proof = Proof::prove(&self.identity.endpoint, &place, &keypair.hotkey(), 0);
        let commitment = Commitment { identity: Some(proof), seal: Some(seal), manifest: None };
        let outcome = world.host.connect(keypair).commit(commitment.to_fields()).await.unwrap();
        assert!(matches!(outcome, Outcome::Included { .. }), "{outcome:?}");
    }
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
    // Long rounds: five peers must seal in the first.
    let world = World::new(&[ada.clone(), eve.clone()], &["run.timing.blocks_per_round=50"]).await;
    let nodes = vec![world.start(&ada, &[]).await, world.start(&eve, &[]).await];
    let config = world.config(&ada);
    let layout = convoke::genesis::layout(&config.run.model).unwrap();
    let len = convoke::payload::len(&layout, &config.run.sparse);
    let garbage = |fill: u8| -> Vec<u8> { (0..len).map(|i| fill ^ u8::try_from(i % 251).unwrap()).collect() };

    let mut hostile = Vec::new();
    for seed in 11..=15 {
        hostile.push(Hostile::join(&world, seed).await);
    }
    hostile[0].seal(&world, &config, garbage(1), |_| {}).await;
    hostile[1].seal(&world, &config, vec![7; 100], |_| {}).await;
    hostile[2].seal(&world, &config, garbage(3), |seal| seal.payload_bytes = 1 << 40).await;
    hostile[3].seal(&world, &config, garbage(4), |seal| seal.base = Digest([9; 32])).await;
    hostile[4].seal(&world, &config, garbage(5), |seal| seal.holding = Digest([9; 32])).await;

    let completed = || nodes.iter().map(|node| node.parts.journal.status.rounds_completed()).min().unwrap_or(0);
    world.until("two rounds beside hostile peers", 250, || completed() >= 2).await;
    stop(nodes).await;
    let (ada, eve) = (world.events(&ada), world.events(&eve));
    assert!(assert_one_digest_a_round(&[ada.clone(), eve.clone()]) >= 2);
    assert!(contributors(&eve).values().all(|uids| *uids == [Uid(0)]), "only the honest miner may contribute");
    for events in [&ada, &eve] {
        let rejected = rejections(events);
        let wanted = [
            (2, "malformed: "),
            (3, "malformed: length"),
            (4, "1099511627776 bytes sealed"),
            (5, "made from other parameters"),
            (6, "the keyed digest of the parameters is wrong"),
        ];
        for (uid, reason) in wanted {
            let found = rejected.get(&Uid(uid)).map(String::as_str).unwrap_or_default();
            assert!(found.starts_with(reason), "uid {uid}: {found:?}, not {reason:?}; all: {rejected:?}");
        }
        let restarted = events.iter().any(|line| matches!(line.event, Event::ActorRestarted { .. }));
        assert!(!restarted, "a hostile payload has brought an actor down");
    }
}
