//! Claims about moving θ, on real endpoints over loopback, with holders that die, lie and lack what they are asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use convoke::terms::{Digest, EndpointId, Round};
use iroh::endpoint::{Connection, SendStream};
use iroh::protocol::{AcceptError, ProtocolHandler, Router};
use iroh_blobs::Hash;
use iroh_blobs::protocol::Request;
use iroh_blobs::store::mem::MemStore;
use tempfile::TempDir;

use super::admission::Peer;
use super::budget::Rate;
use super::fetch::FetchError;
use super::gate::Reveal;
use super::pieces::PIECE_BYTES;
use super::state::StateWant;
use super::store::{Kind, Label};
use super::tests::{acquaint, bare_endpoint, config, content, eventually, node, peer, soon};
use super::theta::{self, ThetaWant};
use super::transport::Transport;
use crate::pages::Pages;

/// Eight pieces and a bit, so that the last one and the last group are short.
const SIZE: usize = 8 * PIECE_BYTES as usize + 12_344;

fn hash_of(bytes: &Bytes) -> Hash {
    Hash::from_bytes(*blake3::hash(bytes).as_bytes())
}

fn want(hash: Hash, size: usize, holders: &[EndpointId]) -> StateWant {
    StateWant { hash, size: size as u64, round: Round(1), holders: holders.to_vec() }
}

async fn holder(seed: u8, bytes: &Bytes) -> (Transport, TempDir) {
    let (transport, dir) = node(seed).await;
    transport.publish_state(bytes.clone(), Round(1), hash_of(bytes)).await.unwrap();
    (transport, dir)
}

async fn bytes_in(transport: &Transport, hash: Hash, size: usize) -> Vec<u8> {
    let theta = transport.load_state(hash, size / 4).await.unwrap();
    theta.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A peer that has a state and serves it in its own way.
#[derive(Debug, Clone)]
enum Way {
    /// Flips one bit in the last group of every answer.
    FlipsABit,
    /// Claims another size for the whole.
    ClaimsAnotherSize,
    /// Answers so many requests, half of the next one, and is gone for good.
    DiesAfter(u32),
}

#[derive(Debug, Clone)]
struct Rogue {
    store: MemStore,
    way: Way,
    answered: Arc<AtomicU32>,
}

impl Rogue {
    async fn respond(&self, connection: &Connection, send: &mut SendStream, request: &[u8]) {
        let Ok(Request::Get(request)) = postcard::from_bytes(request) else { panic!("another request") };
        let ranges = request.ranges.as_single().expect("a range of one blob").1.clone();
        let mut answer = self.store.export_bao(request.hash, ranges).bao_to_vec().await.unwrap();
        let earlier = self.answered.fetch_add(1, Ordering::Relaxed);
        match self.way {
            Way::FlipsABit => *answer.last_mut().unwrap() ^= 4,
            Way::ClaimsAnotherSize => answer[2] ^= 1,
            Way::DiesAfter(n) if earlier >= n => {
                send.write_all(&answer[..answer.len() / 2]).await.ok();
                return connection.close(0u32.into(), b"");
            }
            Way::DiesAfter(_) => {}
        }
        // A reader that has found out does not read to the end.
        if send.write_all(&answer).await.is_ok() {
            send.finish().ok();
        }
    }
}

impl ProtocolHandler for Rogue {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        while let Ok((mut send, mut receive)) = connection.accept_bi().await {
            if matches!(self.way, Way::DiesAfter(n) if self.answered.load(Ordering::Relaxed) > n) {
                connection.close(0u32.into(), b"");
                break;
            }
            let request = receive.read_to_end(1024).await.unwrap();
            let (this, connection) = (self.clone(), connection.clone());
            tokio::spawn(async move { this.respond(&connection, &mut send, &request).await });
        }
        Ok(())
    }
}

async fn rogue(seed: u8, bytes: &Bytes, way: Way) -> (Router, Peer) {
    let store = MemStore::new();
    store.add_bytes(bytes.clone()).await.unwrap();
    let (endpoint, peer) = bare_endpoint(seed).await;
    let rogue = Rogue { store, way, answered: Arc::default() };
    (Router::builder(endpoint).accept(iroh_blobs::ALPN, rogue).spawn(), peer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_comes_from_all_its_holders_at_once() {
    let bytes = content(SIZE, 1);
    let ((a, _a), (b, _b), (c, _c)) = (holder(101, &bytes).await, holder(102, &bytes).await, holder(103, &bytes).await);
    let (joiner, _d) = node(104).await;
    acquaint(&[&a, &b, &c, &joiner]).await;
    let hash = hash_of(&bytes);
    let fetched = joiner.fetch_state(want(hash, SIZE, &[a.id(), b.id(), c.id(), a.id()]), soon()).await;
    assert_eq!(fetched.outcome, Ok(()));
    assert_eq!(fetched.bytes_from.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [a.id(), b.id(), c.id()]);
    assert!(fetched.bytes_from.iter().all(|(_, bytes)| *bytes > 0), "{fetched:?}");
    assert!(fetched.bytes() >= SIZE as u64 && fetched.corrupt.is_empty(), "{fetched:?}");
    assert_eq!(joiner.stats().state_bytes_down.load(Ordering::Relaxed), fetched.bytes());
    assert!(bytes_in(&joiner, hash, SIZE).await == bytes);

    // What is here is not fetched again, and is served on.
    let again = joiner.fetch_state(want(hash, SIZE, &[a.id()]), soon()).await;
    assert_eq!((again.outcome.clone(), again.bytes()), (Ok(()), 0));
    let (other, _e) = node(105).await;
    acquaint(&[&joiner, &other]).await;
    let fetched = other.fetch_state(want(hash, SIZE, &[joiner.id()]), soon()).await;
    assert_eq!((fetched.outcome.clone(), fetched.bytes()), (Ok(()), SIZE as u64), "one holder sends nothing twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_flipped_bit_is_found_and_its_sender_named() {
    let bytes = content(SIZE, 2);
    for (seed, way) in [(110, Way::FlipsABit), (114, Way::ClaimsAnotherSize)] {
        let (router, liar) = rogue(seed, &bytes, way).await;
        let ((honest, _a), (joiner, _b)) = (holder(seed + 1, &bytes).await, node(seed + 2).await);
        joiner.admit(&[liar.clone(), peer(&honest)]).await.unwrap();
        honest.admit(&[peer(&joiner)]).await.unwrap();
        let hash = hash_of(&bytes);
        let alone = joiner.fetch_state(want(hash, SIZE, &[liar.id]), soon()).await;
        assert_eq!((alone.outcome, &alone.corrupt[..]), (Err(FetchError::Corrupt), &[liar.id][..]));
        let fetched = joiner.fetch_state(want(hash, SIZE, &[liar.id, honest.id()]), soon()).await;
        assert_eq!((fetched.outcome, &fetched.corrupt[..]), (Ok(()), &[liar.id][..]));
        assert!(bytes_in(&joiner, hash, SIZE).await == bytes);
        router.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_whose_disk_changed_a_bit_loses_that_piece_to_the_others() {
    let bytes = content(SIZE, 3);
    let ((damaged, dir), (sound, _b), (joiner, _c)) =
        (holder(120, &bytes).await, holder(121, &bytes).await, node(122).await);
    acquaint(&[&damaged, &sound, &joiner]).await;
    let hash = hash_of(&bytes);
    let file = dir.path().join(format!("blobs/data/{}.data", hash.to_hex()));
    let mut changed = bytes.to_vec();
    changed[3_000_000] ^= 1;
    std::fs::write(file, changed).unwrap();
    assert!(damaged.load_state(hash, SIZE / 4).await.is_err(), "it cannot be loaded either");
    let fetched = joiner.fetch_state(want(hash, SIZE, &[damaged.id(), sound.id()]), soon()).await;
    assert_eq!((fetched.outcome.clone(), fetched.corrupt.len()), (Ok(()), 0), "it noticed by itself: {fetched:?}");
    assert!(bytes_in(&joiner, hash, SIZE).await == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_holder_did_not_bring_the_others_bring() {
    let bytes = content(SIZE, 4);
    let (router, mortal) = rogue(130, &bytes, Way::DiesAfter(2)).await;
    let ((honest, _a), (joiner, _b)) = (holder(131, &bytes).await, node(132).await);
    joiner.admit(&[mortal.clone(), peer(&honest)]).await.unwrap();
    honest.admit(&[peer(&joiner)]).await.unwrap();
    let hash = hash_of(&bytes);
    let fetched = joiner.fetch_state(want(hash, SIZE, &[mortal.id, honest.id()]), soon()).await;
    assert_eq!((fetched.outcome.clone(), fetched.corrupt.len()), (Ok(()), 0));
    let (from_mortal, from_honest) = (fetched.bytes_from[0].1, fetched.bytes_from[1].1);
    assert!((1..SIZE as u64 / 2).contains(&from_mortal), "{fetched:?}");
    assert!(from_mortal + from_honest >= SIZE as u64);
    assert!(bytes_in(&joiner, hash, SIZE).await == bytes);
    router.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_only_the_rest_is_fetched() {
    let bytes = content(SIZE, 5);
    let hash = hash_of(&bytes);
    let (router, mortal) = rogue(140, &bytes, Way::DiesAfter(4)).await;
    let dir = TempDir::new().unwrap();
    let mut config = config(&dir, 141);
    // The collector runs many times between the two fetches.
    config.collect_every = Duration::from_millis(20);
    let joiner = Transport::open(config.clone()).await.unwrap();
    joiner.admit(std::slice::from_ref(&mortal)).await.unwrap();
    let first = joiner.fetch_state(want(hash, SIZE, &[mortal.id]), soon()).await;
    assert_eq!(first.outcome, Err(FetchError::Unreachable), "all its holders are dead, so it does not wait on");
    assert!((PIECE_BYTES..SIZE as u64 - PIECE_BYTES).contains(&first.bytes()), "{first:?}");
    assert_eq!(joiner.gate().len(), 0, "what is not whole is not served");
    joiner.shutdown().await;
    drop(joiner);
    router.shutdown().await.unwrap();

    let joiner = Transport::open(config).await.unwrap();
    let (honest, _a) = holder(142, &bytes).await;
    acquaint(&[&honest, &joiner]).await;
    let second = joiner.fetch_state(want(hash, SIZE, &[honest.id()]), soon()).await;
    assert_eq!(second.outcome, Ok(()));
    assert_eq!(first.bytes() + second.bytes(), SIZE as u64);
    assert!(bytes_in(&joiner, hash, SIZE).await == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_an_old_state_goes_when_a_newer_one_is_wanted() {
    let bytes = content(SIZE, 6);
    let (router, mortal) = rogue(145, &bytes, Way::DiesAfter(4)).await;
    let dir = TempDir::new().unwrap();
    let mut config = config(&dir, 146);
    config.collect_every = Duration::from_millis(20);
    let joiner = Transport::open(config).await.unwrap();
    joiner.admit(std::slice::from_ref(&mortal)).await.unwrap();
    let first = joiner.fetch_state(want(hash_of(&bytes), SIZE, &[mortal.id]), soon()).await;
    assert!(first.outcome.is_err() && first.bytes() > 0);
    let newer = content(SIZE, 7);
    joiner.publish_state(newer.clone(), Round(2), hash_of(&newer)).await.unwrap();
    let store = joiner.live().unwrap().store.clone();
    eventually(async || {
        store.missing(hash_of(&bytes), SIZE as u64).await.unwrap().iter().map(|run| run.end - run.start).sum::<u64>()
            == SIZE as u64
    })
    .await;
    router.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_has_nothing_costs_a_few_requests() {
    let bytes = content(SIZE, 8);
    let ((empty, _a), (owner, _b), (joiner, _c)) = (node(150).await, holder(151, &bytes).await, node(152).await);
    acquaint(&[&empty, &owner, &joiner]).await;
    let hash = hash_of(&bytes);
    let fetched = joiner.fetch_state(want(hash, SIZE, &[empty.id(), owner.id()]), soon()).await;
    assert_eq!(fetched.outcome, Ok(()));
    assert_eq!(fetched.bytes_from, [(empty.id(), 0), (owner.id(), SIZE as u64)]);
    let refused = empty.stats().refused(super::stats::Refusal::Unknown);
    assert!((1..=6).contains(&refused), "{refused} requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_nobody_has_or_of_another_size_fails_long_before_the_deadline() {
    let bytes = content(100_000, 9);
    let ((empty, _a), (owner, _b), (joiner, _c)) = (node(155).await, holder(156, &bytes).await, node(157).await);
    acquaint(&[&empty, &owner, &joiner]).await;
    let nobody = joiner.fetch_state(want(Hash::new(b"nobody's"), SIZE, &[empty.id(), owner.id()]), soon()).await;
    assert_eq!((nobody.outcome, nobody.bytes_from.len()), (Err(FetchError::Refused), 2));
    assert!(nobody.elapsed < Duration::from_secs(15), "{:?}", nobody.elapsed);
    let other = joiner.fetch_state(want(hash_of(&bytes), SIZE, &[owner.id()]), soon()).await;
    assert_eq!(other.outcome, Err(FetchError::SizeMismatch { expected: SIZE as u64, found: 100_000 }));
    assert_eq!(joiner.stats().bytes_down.load(Ordering::Relaxed), 0);
    let none = joiner.fetch_state(want(hash_of(&bytes), 100_000, &[]), soon()).await;
    assert_eq!(none.outcome, Err(FetchError::NotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_interrupts_a_state_s_fetch() {
    let bytes = content(SIZE, 10);
    let dir = TempDir::new().unwrap();
    let mut slow = config(&dir, 160);
    slow.peer_budget.bytes = Rate { per_second: 1, burst: 0 };
    let owner = Transport::open(slow).await.unwrap();
    let (joiner, _b) = node(161).await;
    acquaint(&[&owner, &joiner]).await;
    // Not as a state, so its serving is held to the rate.
    let label = Label { round: Round(1), kind: Kind::Payload, reveal: Reveal::Always };
    let hash = owner.publish(bytes, label).await.unwrap();
    let (fetched, ()) = tokio::join!(joiner.fetch_state(want(hash, SIZE, &[owner.id()]), soon()), async {
        eventually(async || joiner.stats().state_bytes_down.load(Ordering::Relaxed) > 0).await;
        joiner.shutdown().await;
    });
    assert_eq!(fetched.outcome, Err(FetchError::Closed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_is_not_held_to_the_rate_of_a_round() {
    let bytes = content(SIZE, 11);
    let dir = TempDir::new().unwrap();
    let mut strict = config(&dir, 165);
    strict.peer_budget.bytes = Rate { per_second: 1, burst: 1 };
    strict.peer_budget.requests = Rate { per_second: 1, burst: 1 };
    let owner = Transport::open(strict.clone()).await.unwrap();
    let (early, _b) = node(166).await;
    acquaint(&[&owner, &early]).await;
    let hash = hash_of(&bytes);
    owner.publish_state(bytes, Round(1), hash).await.unwrap();
    let fetched = early.fetch_state(want(hash, SIZE, &[owner.id()]), soon()).await;
    assert_eq!(fetched.outcome, Ok(()), "one who was admitted before the state was kept");
    owner.shutdown().await;
    drop(owner);
    let owner = Transport::open(strict).await.unwrap();
    let (late, _c) = node(167).await;
    acquaint(&[&owner, &late]).await;
    let fetched = late.fetch_state(want(hash, SIZE, &[owner.id()]), soon()).await;
    assert_eq!(fetched.outcome, Ok(()), "one who is admitted after a restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_two_states_are_kept_whatever_rounds_are_forgotten() {
    let dir = TempDir::new().unwrap();
    let mut config = config(&dir, 170);
    config.collect_every = Duration::from_millis(20);
    let owner = Transport::open(config.clone()).await.unwrap();
    let states: Vec<Bytes> = (0..4).map(|seed| content(200_000, seed)).collect();
    let hashes: Vec<Hash> = states.iter().map(hash_of).collect();
    for (round, bytes) in states.iter().enumerate() {
        // Every round a second time: after a null round θ is the same.
        for round in [2 * round, 2 * round + 1] {
            owner.publish_state(bytes.clone(), Round(round as u64), hash_of(bytes)).await.unwrap();
        }
    }
    let label = Label { round: Round(1), kind: Kind::Payload, reveal: Reveal::Always };
    let payload = owner.publish(content(50_000, 9), label).await.unwrap();
    owner.publish_state(states[0].clone(), Round(3), hashes[0]).await.unwrap();
    for gone in &hashes[..2] {
        eventually(async || owner.local_size(*gone).await.unwrap().is_none()).await;
    }
    assert_eq!(owner.gate().len(), 3, "two states and a payload");
    assert_eq!(owner.forget_before(Round(1000)).await.unwrap(), 1);
    eventually(async || owner.local_size(payload).await.unwrap().is_none()).await;
    owner.shutdown().await;
    drop(owner);

    let owner = Transport::open(config).await.unwrap();
    let (joiner, _b) = node(171).await;
    acquaint(&[&owner, &joiner]).await;
    for hash in &hashes[2..] {
        let fetched = joiner.fetch_state(want(*hash, 200_000, &[owner.id()]), soon()).await;
        assert_eq!(fetched.outcome, Ok(()), "also after a restart");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn theta_arrives_bit_by_bit_as_it_was_kept() {
    let ((owner, _a), (joiner, _b)) = (node(175).await, node(176).await);
    acquaint(&[&owner, &joiner]).await;
    let mut theta = Pages::zeroed(1_500_000);
    theta.iter_mut().enumerate().for_each(|(i, value)| *value = f32::from_bits(i as u32 * 2_654_435_761));
    let bytes: Vec<u8> = theta.iter().flat_map(|value| value.to_le_bytes()).collect();
    let digest = Digest(*blake3::hash(&bytes).as_bytes());
    let theta = Arc::new(theta);
    let refused = theta::keep(&owner, theta.clone(), Round(3), Digest([1; 32])).await;
    assert!(refused.is_err() && owner.gate().is_empty(), "another digest");
    theta::keep(&owner, theta.clone(), Round(3), digest).await.unwrap();
    let want = ThetaWant { round: Round(3), digest, n_values: theta.len(), holders: vec![owner.id()] };
    let brought = theta::bring(&joiner, want.clone(), soon()).await.unwrap();
    assert_eq!((brought.bytes_fetched, &brought.from[..]), (6_000_000, &[(owner.id(), 6_000_000)][..]));
    assert!(brought.theta.iter().zip(theta.iter()).all(|(a, b)| a.to_bits() == b.to_bits()));
    let few = Arc::new(Pages::from(&[1.0, -0.0, f32::NAN][..]));
    let digest = Digest(*blake3::hash(bytemuck::cast_slice(&few)).as_bytes());
    theta::keep(&owner, few.clone(), Round(4), digest).await.unwrap();
    let small = ThetaWant { round: Round(4), digest, n_values: 3, holders: vec![owner.id()] };
    let brought = theta::bring(&joiner, small, soon()).await.unwrap();
    assert!(brought.theta.iter().zip(few.iter()).all(|(a, b)| a.to_bits() == b.to_bits()), "it has no file of its own");
    let why = theta::bring(&joiner, ThetaWant { n_values: 1_499_999, ..want }, soon()).await.unwrap_err();
    assert!(why.contains("6000000 bytes where 5999996"), "{why}");
}
