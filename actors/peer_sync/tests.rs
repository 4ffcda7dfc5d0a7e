//! Claims about the network side, on real endpoints over loopback.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use convoke::terms::{Block, EndpointId, Round};
use iroh::endpoint::{Connection, presets};
use iroh::protocol::{AcceptError, ProtocolHandler, Router};
use iroh::{Endpoint, RelayMode, SecretKey};
use iroh_blobs::Hash;
use tempfile::TempDir;
use tokio::time::{Instant, timeout};

use super::admission::Peer;
use super::budget::Rate;
use super::fetch::{FetchError, SizeRule, Want};
use super::gate::Reveal;
use super::slot::TransportSlot;
use super::stats::Refusal;
use super::store::{Kind, Label};
use super::transport::{Transport, TransportConfig, TransportError};

/// Far more than any of these tests needs; a test that hangs fails by it.
pub(super) const BOUND: Duration = Duration::from_secs(30);

pub(super) fn soon() -> Instant {
    Instant::now() + BOUND
}

/// For a fetch that must fail: holders are asked until the deadline.
fn briefly() -> Instant {
    Instant::now() + Duration::from_secs(1)
}

/// Long enough for a holder to be found dead.
fn awhile() -> Instant {
    Instant::now() + Duration::from_secs(3)
}

pub(super) fn secret(seed: u8) -> SecretKey {
    SecretKey::from_bytes(&[seed; 32])
}

pub(super) fn config(dir: &TempDir, seed: u8) -> TransportConfig {
    let mut config = TransportConfig::new(dir.path().join("blobs"), secret(seed));
    config.limits.connect_timeout = Duration::from_secs(2);
    config.limits.stall_timeout = Duration::from_secs(2);
    config
}

pub(super) async fn node(seed: u8) -> (Transport, TempDir) {
    let dir = TempDir::new().unwrap();
    (Transport::open(config(&dir, seed)).await.unwrap(), dir)
}

pub(super) fn peer(transport: &Transport) -> Peer {
    Peer { id: transport.id(), addresses: vec![transport.address()], start: 1 }
}

pub(super) async fn acquaint(transports: &[&Transport]) {
    let peers: Vec<_> = transports.iter().map(|transport| peer(transport)).collect();
    for transport in transports {
        transport.admit(&peers).await.unwrap();
    }
}

fn label(round: u64, reveal: Reveal) -> Label {
    Label { round: Round(round), kind: Kind::Payload, reveal }
}

pub(super) fn content(size: usize, seed: u8) -> Bytes {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes.into()
}

fn want(hash: Hash, size: u64, holders: &[&Transport]) -> Want {
    let holders = holders.iter().map(|holder| holder.id()).collect();
    Want { hash, size: SizeRule::Exactly(size), label: label(1, Reveal::Always), holders }
}

pub(super) async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    timeout(BOUND, async {
        while !condition().await {
            tokio::task::yield_now().await
        }
    })
    .await
    .expect("it never came true");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_is_refused_before_its_reveal_and_served_after() {
    let ((owner, _a), (reader, _b)) = (node(1).await, node(2).await);
    acquaint(&[&owner, &reader]).await;
    let bytes = content(100_000, 1);
    let hash = owner.publish(bytes.clone(), label(1, Reveal::At(Block(8)))).await.unwrap();
    assert_eq!(hash.as_bytes(), blake3::hash(&bytes).as_bytes());
    let want = want(hash, 100_000, &[&owner]);

    owner.set_head(Block(7));
    assert_eq!(reader.fetch(want.clone(), briefly()).await.outcome, Err(FetchError::Refused));
    assert!(owner.stats().refused(Refusal::Unrevealed) > 1, "it is asked again");
    assert_eq!(owner.stats().bytes_up.load(Ordering::Relaxed), 0);

    owner.set_head(Block(8));
    assert_eq!(reader.fetch(want.clone(), soon()).await.outcome, Ok(bytes.clone()));
    assert_eq!(reader.stats().bytes_down.load(Ordering::Relaxed), 100_000);
    assert_eq!(reader.stats().dials.load(Ordering::Relaxed), 1, "the connection is kept");

    owner.shutdown().await;
    assert_eq!(reader.fetch(want, soon()).await.outcome, Ok(bytes), "what is here is not asked for again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_is_a_moment_behind_is_asked_again() {
    let ((owner, _a), (reader, _b)) = (node(41).await, node(42).await);
    let bytes = content(100_000, 1);
    let hash = owner.publish(bytes.clone(), label(1, Reveal::At(Block(8)))).await.unwrap();
    // First the reader does not know the owner, then the owner not the reader, then its head has not come.
    let (fetched, ()) = tokio::join!(reader.fetch(want(hash, 100_000, &[&owner]), soon()), async {
        reader.admit(&[peer(&owner)]).await.unwrap();
        eventually(async || owner.stats().refused(Refusal::Stranger) > 0).await;
        owner.admit(&[peer(&reader)]).await.unwrap();
        eventually(async || owner.stats().refused(Refusal::Unrevealed) > 0).await;
        owner.set_head(Block(8));
    });
    assert_eq!(fetched.outcome, Ok(bytes));
    assert!(fetched.elapsed < BOUND / 2, "took {:?}", fetched.elapsed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_from_nobody_who_is_admitted_ends_soon() {
    let ((owner, _a), (reader, _b)) = (node(43).await, node(44).await);
    let fetched = reader.fetch(want(Hash::new(b"x"), 7, &[&owner]), soon()).await;
    assert_eq!(fetched.outcome, Err(FetchError::NotFound));
    assert!(fetched.elapsed < Duration::from_secs(5), "took {:?}", fetched.elapsed);
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_that_never_come_do_not_keep_back_those_that_do() {
    let dir = TempDir::new().unwrap();
    let mut narrow = config(&dir, 45);
    narrow.limits.parallel_max = 1;
    let reader = Transport::open(narrow).await.unwrap();
    let (owner, _a) = node(46).await;
    acquaint(&[&owner, &reader]).await;
    let hash = owner.publish(content(1000, 1), label(1, Reveal::Always)).await.unwrap();
    let mut wants: Vec<_> = (0..4).map(|i| want(Hash::new([i]), 1, &[&owner])).collect();
    wants.push(want(hash, 1000, &[&owner]));
    let fetched = reader.gather(wants, awhile()).await;
    assert_eq!(fetched[4].outcome, Ok(content(1000, 1)));
    assert!(fetched[..4].iter().all(|fetched| fetched.outcome == Err(FetchError::Refused)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_nobody_published_is_refused_like_an_unrevealed_one() {
    let ((owner, _a), (reader, _b)) = (node(3).await, node(4).await);
    acquaint(&[&owner, &reader]).await;
    let outcome = reader.fetch(want(Hash::new(b"nothing"), 7, &[&owner]), briefly()).await.outcome;
    assert_eq!(outcome, Err(FetchError::Refused));
    assert!(owner.stats().refused(Refusal::Unknown) > 0);
    let outcome = reader.fetch(want(Hash::new(b"nothing"), 7, &[]), soon()).await.outcome;
    assert_eq!(outcome, Err(FetchError::NotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_refused() {
    let ((owner, _a), (stranger, _b)) = (node(5).await, node(6).await);
    stranger.admit(&[peer(&owner)]).await.unwrap();
    let hash = owner.publish(content(1000, 1), label(1, Reveal::Always)).await.unwrap();
    let outcome = stranger.fetch(want(hash, 1000, &[&owner]), briefly()).await.outcome;
    assert_eq!(outcome, Err(FetchError::Refused));
    assert!(owner.stats().refused(Refusal::Stranger) > 0);
    assert_eq!(owner.stats().requests_served.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_leaves_the_registry_is_refused_on_its_standing_connection() {
    let ((owner, _a), (reader, _b)) = (node(7).await, node(8).await);
    acquaint(&[&owner, &reader]).await;
    let first = owner.publish(content(1000, 1), label(1, Reveal::Always)).await.unwrap();
    let second = owner.publish(content(1000, 2), label(1, Reveal::Always)).await.unwrap();
    assert!(reader.fetch(want(first, 1000, &[&owner]), soon()).await.outcome.is_ok());
    owner.admit(&[]).await.unwrap();
    assert_eq!(reader.fetch(want(second, 1000, &[&owner]), briefly()).await.outcome, Err(FetchError::Refused));
    assert_eq!(reader.stats().dials.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lying_size_is_refused_before_download() {
    let ((owner, _a), (reader, _b)) = (node(9).await, node(10).await);
    acquaint(&[&owner, &reader]).await;
    let hash = owner.publish(content(300_000, 1), label(1, Reveal::Always)).await.unwrap();
    let mut wanted = want(hash, 1000, &[&owner]);
    let lie = FetchError::SizeMismatch { expected: 1000, found: 300_000 };
    assert_eq!(reader.fetch(wanted.clone(), soon()).await.outcome, Err(lie));
    wanted.size = SizeRule::AtMost(299_999);
    let excess = FetchError::TooLarge { limit: 299_999, found: 300_000 };
    assert_eq!(reader.fetch(wanted.clone(), soon()).await.outcome, Err(excess.clone()));
    assert_eq!(reader.stats().bytes_down.load(Ordering::Relaxed), 0);
    wanted.size = SizeRule::AtMost(300_000);
    assert!(reader.fetch(wanted.clone(), soon()).await.outcome.is_ok());
    wanted.size = SizeRule::AtMost(299_999);
    assert_eq!(reader.fetch(wanted, soon()).await.outcome, Err(excess), "the rule holds for what is here, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_holder_falls_over_to_a_live_one() {
    let ((owner, _a), (reader, _b)) = (node(11).await, node(12).await);
    // A socket that is bound and never read: packets vanish, as with a machine that is gone.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (id, addresses) = (EndpointId(*secret(13).public().as_bytes()), vec![silent.local_addr().unwrap()]);
    let dead = Peer { id, addresses, start: 1 };
    reader.admit(&[dead.clone(), peer(&owner)]).await.unwrap();
    owner.admit(&[peer(&reader)]).await.unwrap();
    let bytes = content(50_000, 1);
    let hash = owner.publish(bytes.clone(), label(1, Reveal::Always)).await.unwrap();
    let mut wanted = want(hash, 50_000, &[&owner]);
    wanted.holders.insert(0, dead.id);
    assert_eq!(reader.fetch(wanted.clone(), soon()).await.outcome, Ok(bytes));
    assert_eq!(reader.stats().dials_failed.load(Ordering::Relaxed), 1);
    wanted.hash = Hash::new(b"elsewhere");
    wanted.holders.truncate(1);
    assert_eq!(reader.fetch(wanted, awhile()).await.outcome, Err(FetchError::Unreachable));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_resumes_at_the_second_holder_where_the_first_one_stopped() {
    let dir = TempDir::new().unwrap();
    let mut slow = config(&dir, 14);
    // One burst, and then a byte a second.
    slow.peer_budget.bytes = Rate { per_second: 1, burst: 512 * 1024 };
    let slow = Transport::open(slow).await.unwrap();
    let ((second, _b), (reader, _c)) = (node(15).await, node(16).await);
    acquaint(&[&slow, &second, &reader]).await;
    let bytes = content(2_000_000, 1);
    let hash = slow.publish(bytes.clone(), label(1, Reveal::Always)).await.unwrap();
    second.publish(bytes.clone(), label(1, Reveal::Always)).await.unwrap();
    assert_eq!(reader.fetch(want(hash, 2_000_000, &[&slow, &second]), soon()).await.outcome, Ok(bytes));
    assert!(slow.stats().bytes_up.load(Ordering::Relaxed) >= 512 * 1024);
    let rest = second.stats().bytes_up.load(Ordering::Relaxed);
    assert!(rest < 1_600_000, "the second holder sent {rest} bytes of 2000000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gather_answers_in_order_and_names_each_failure() {
    let ((owner, _a), (second, _b), (reader, _c)) = (node(17).await, node(18).await, node(19).await);
    acquaint(&[&owner, &second, &reader]).await;
    let mut wants = Vec::new();
    for index in 0..20u8 {
        let holder = if index % 2 == 0 { &owner } else { &second };
        let hash = holder.publish(content(40_000, index), label(1, Reveal::Always)).await.unwrap();
        wants.push(want(hash, 40_000, &[holder]));
    }
    wants[7].hash = Hash::new(b"missing");
    wants[9].size = SizeRule::Exactly(1);
    let fetched = reader.gather(wants.clone(), awhile()).await;
    assert_eq!(fetched.len(), 20);
    for (index, (fetched, want)) in fetched.iter().zip(&wants).enumerate() {
        assert_eq!(fetched.want.hash, want.hash);
        match index {
            7 => assert_eq!(fetched.outcome, Err(FetchError::Refused)),
            9 => assert_eq!(fetched.outcome, Err(FetchError::SizeMismatch { expected: 1, found: 40_000 })),
            _ => assert_eq!(fetched.outcome, Ok(content(40_000, u8::try_from(index).unwrap()))),
        }
    }
    assert_eq!(reader.stats().dials.load(Ordering::Relaxed), 2, "one connection for each holder");
    let failed: u64 = reader.stats().fetches_failed().map(|(_, count)| count).sum();
    assert_eq!((reader.stats().fetches.load(Ordering::Relaxed), failed), (18, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_fetched_is_served_on() {
    let ((owner, _a), (second, _b), (third, _c)) = (node(20).await, node(21).await, node(22).await);
    acquaint(&[&owner, &second, &third]).await;
    let bytes = content(70_000, 1);
    let hash = owner.publish(bytes.clone(), label(1, Reveal::Always)).await.unwrap();
    assert!(second.fetch(want(hash, 70_000, &[&owner]), soon()).await.outcome.is_ok());
    owner.shutdown().await;
    assert_eq!(third.fetch(want(hash, 70_000, &[&second]), soon()).await.outcome, Ok(bytes));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_over_its_request_budget_is_told_to_wait() {
    let dir = TempDir::new().unwrap();
    let mut strict = config(&dir, 23);
    strict.peer_budget.requests = Rate { per_second: 1, burst: 1 };
    let owner = Transport::open(strict).await.unwrap();
    let (reader, _b) = node(24).await;
    acquaint(&[&owner, &reader]).await;
    let first = owner.publish(content(1000, 1), label(1, Reveal::Always)).await.unwrap();
    assert!(reader.fetch(want(first, 1000, &[&owner]), soon()).await.outcome.is_ok());
    let wants = (0..8).map(|i| want(Hash::new([i]), 1, &[&owner])).collect();
    let fetched = reader.gather(wants, briefly()).await;
    assert!(fetched.iter().any(|fetched| fetched.outcome == Err(FetchError::Busy)));
    assert!(owner.stats().refused(Refusal::TooOften) > 0);
}

/// A peer that speaks just enough of the protocol to misbehave.
#[derive(Debug, Clone)]
enum Rogue {
    /// Takes the request and never answers.
    Hangs,
    /// Answers with a size and bytes that have another hash.
    Lies,
}

impl ProtocolHandler for Rogue {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        let mut open = Vec::new();
        while let Ok((mut send, receive)) = connection.accept_bi().await {
            if matches!(self, Self::Lies) {
                send.write_all(&1000u64.to_le_bytes()).await.unwrap();
                send.write_all(&[7; 1000]).await.unwrap();
                send.finish().unwrap();
            }
            open.push((send, receive));
        }
        Ok(())
    }
}

/// An endpoint on loopback that is no transport of ours, and the peer that it is.
pub(super) async fn bare_endpoint(seed: u8) -> (Endpoint, Peer) {
    let endpoint = Endpoint::builder(presets::Minimal)
        .secret_key(secret(seed))
        .relay_mode(RelayMode::Disabled)
        .clear_ip_transports()
        .bind_addr(SocketAddr::from(([127, 0, 0, 1], 0)))
        .unwrap()
        .bind()
        .await
        .unwrap();
    let peer = Peer { id: EndpointId(*endpoint.id().as_bytes()), addresses: endpoint.bound_sockets(), start: 1 };
    (endpoint, peer)
}

async fn rogue(seed: u8, behaviour: Rogue) -> (Router, Peer) {
    let (endpoint, peer) = bare_endpoint(seed).await;
    (Router::builder(endpoint).accept(iroh_blobs::ALPN, behaviour).spawn(), peer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_ends_by_its_deadline_when_the_holder_hangs() {
    let (reader, _a) = node(25).await;
    let (router, hanging) = rogue(26, Rogue::Hangs).await;
    reader.admit(std::slice::from_ref(&hanging)).await.unwrap();
    let mut wanted = want(Hash::new(b"x"), 1, &[]);
    wanted.holders = vec![hanging.id];
    let fetched = reader.fetch(wanted.clone(), Instant::now() + Duration::from_millis(300)).await;
    assert_eq!(fetched.outcome, Err(FetchError::Deadline));
    assert!(fetched.elapsed < Duration::from_secs(2), "took {:?}", fetched.elapsed);
    let fetched = reader.fetch(wanted, awhile()).await;
    assert_eq!(
        fetched.outcome,
        Err(FetchError::Unreachable),
        "a holder that says nothing is given up before the deadline"
    );
    router.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_sends_other_bytes_is_passed_over() {
    let ((owner, _a), (reader, _b)) = (node(27).await, node(28).await);
    let (router, liar) = rogue(29, Rogue::Lies).await;
    reader.admit(&[liar.clone(), peer(&owner)]).await.unwrap();
    owner.admit(&[peer(&reader)]).await.unwrap();
    let bytes = content(1000, 1);
    let hash = owner.publish(bytes.clone(), label(1, Reveal::Always)).await.unwrap();
    let mut wanted = want(hash, 1000, &[]);
    wanted.holders = vec![liar.id];
    assert_eq!(reader.fetch(wanted.clone(), soon()).await.outcome, Err(FetchError::Corrupt));
    wanted.holders.push(owner.id());
    assert_eq!(reader.fetch(wanted, soon()).await.outcome, Ok(bytes));
    router.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_peers_need_one_connection_whoever_dialled_it() {
    let ((one, _a), (other, _b)) = (node(61).await, node(62).await);
    acquaint(&[&one, &other]).await;
    let dials = |of: &Transport| of.stats().dials.load(Ordering::Relaxed);
    for (round, (first, second)) in [(&one, &other), (&other, &one)].into_iter().enumerate() {
        // The smaller id dials in one of the two rounds.
        if round > 0 {
            one.admit(&[]).await.unwrap();
            other.admit(&[]).await.unwrap();
            acquaint(&[&one, &other]).await;
        }
        let (asks, answers) = (dials(first), dials(second));
        for seed in 0..3 {
            let seed = 6 * round as u8 + 2 * seed;
            let (here, there) = (content(50_000, seed), content(2_000_000, seed + 1));
            let of_second = second.publish(here.clone(), label(1, Reveal::Always)).await.unwrap();
            let of_first = first.publish(there.clone(), label(1, Reveal::Always)).await.unwrap();
            assert_eq!(first.fetch(want(of_second, 50_000, &[second]), soon()).await.outcome, Ok(here));
            assert_eq!(second.fetch(want(of_first, 2_000_000, &[first]), soon()).await.outcome, Ok(there));
        }
        assert_eq!((dials(first) - asks, dials(second) - answers), (1, 0), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_interrupts_a_fetch() {
    let (reader, _a) = node(30).await;
    let (router, hanging) = rogue(31, Rogue::Hangs).await;
    reader.admit(std::slice::from_ref(&hanging)).await.unwrap();
    let mut wanted = want(Hash::new(b"x"), 1, &[]);
    wanted.holders = vec![hanging.id];
    let (fetched, ()) = tokio::join!(reader.fetch(wanted.clone(), soon()), async {
        eventually(async || reader.stats().connections_out.load(Ordering::Relaxed) == 1).await;
        reader.shutdown().await;
    });
    assert_eq!(fetched.outcome, Err(FetchError::Closed));
    assert_eq!(reader.fetch(wanted, soon()).await.outcome, Err(FetchError::Closed));
    assert!(matches!(reader.admit(&[]).await, Err(TransportError::Closed)));
    router.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_on_the_same_directory_serves_again() {
    let dir = TempDir::new().unwrap();
    let mut owner = Transport::open(config(&dir, 32)).await.unwrap();
    let (reader, _b) = node(33).await;
    let mut config = config(&dir, 32);
    config.bind = owner.address();
    acquaint(&[&owner, &reader]).await;
    for (round, orderly) in [true, false, true, false].into_iter().enumerate() {
        let (open, closed) = (content(30_000, 2 * round as u8), content(30_000, 2 * round as u8 + 1));
        let revealed = owner.publish(open.clone(), label(1, Reveal::At(Block(1)))).await.unwrap();
        let hidden = owner.publish(closed, label(1, Reveal::At(Block(9)))).await.unwrap();
        if orderly {
            owner.shutdown().await;
        }
        drop(owner);
        owner = Transport::open(config.clone()).await.unwrap();
        assert_eq!(owner.address(), config.bind);
        acquaint(&[&owner, &reader]).await;
        owner.set_head(Block(1));
        let outcome = reader.fetch(want(revealed, 30_000, &[&owner]), soon()).await.outcome;
        assert_eq!(outcome, Ok(open), "orderly: {orderly}");
        let outcome = reader.fetch(want(hidden, 30_000, &[&owner]), briefly()).await.outcome;
        assert_eq!(outcome, Err(FetchError::Refused), "a reveal survives a restart");
        assert!(owner.stats().refused(Refusal::Unrevealed) > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_actor_finds_its_transport_as_it_was() {
    let dir = TempDir::new().unwrap();
    let slot = std::sync::Arc::new(TransportSlot::new(config(&dir, 34)));
    let (reader, _b) = node(35).await;
    let first = slot.acquire().await.unwrap();
    acquaint(&[&first, &reader]).await;
    let hash = first.publish(content(9000, 1), label(1, Reveal::At(Block(3)))).await.unwrap();
    first.set_head(Block(3));
    let address = first.address();

    // A panic takes the actor's handle with it.
    let crash = tokio::spawn(async move {
        let _handle = first;
        panic!("injected");
    });
    assert!(crash.await.unwrap_err().is_panic());
    let second = slot.acquire().await.unwrap();
    assert_eq!(second.address(), address);
    assert!(reader.fetch(want(hash, 9000, &[&second]), soon()).await.outcome.is_ok());

    // A transport that is broken is replaced, on the same port; the gate and the head are as they were.
    second.shutdown().await;
    let third = slot.acquire().await.unwrap();
    assert!(third.is_healthy().await && !second.is_healthy().await);
    assert_eq!((third.address(), third.gate().head()), (address, Block(3)));
    third.admit(&[peer(&reader)]).await.unwrap();
    let (other, _c) = node(36).await;
    acquaint(&[&other, &third]).await;
    assert!(other.fetch(want(hash, 9000, &[&third]), soon()).await.outcome.is_ok());
    slot.close().await;
    assert!(!third.is_healthy().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_and_a_directory_that_is_locked_are_reported() {
    let dir = TempDir::new().unwrap();
    let owner = Transport::open(config(&dir, 37)).await.unwrap();
    let mut config = config(&dir, 38);
    config.patience = Duration::ZERO;
    assert!(matches!(Transport::open(config.clone()).await, Err(TransportError::Store(error)) if error.is_locked()));
    config.bind = owner.address();
    assert!(matches!(Transport::open(config).await, Err(TransportError::Endpoint(error)) if error.is_port_in_use()));
    owner.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_forgets_old_rounds() {
    let dir = TempDir::new().unwrap();
    let mut config = config(&dir, 39);
    config.collect_every = Duration::from_millis(50);
    let owner = Transport::open(config).await.unwrap();
    let (reader, _b) = node(40).await;
    acquaint(&[&owner, &reader]).await;
    let mut hashes = Vec::new();
    for round in 1..=4u8 {
        hashes.push(owner.publish(content(60_000, round), label(round.into(), Reveal::Always)).await.unwrap());
    }
    // The second round's blob is also part of the fourth.
    owner.publish(content(60_000, 2), label(4, Reveal::Always)).await.unwrap();
    assert_eq!(owner.gate().len(), 4);
    assert_eq!(owner.forget_before(Round(3)).await.unwrap(), 2);
    assert_eq!(owner.gate().len(), 3);
    eventually(async || owner.local_size(hashes[0]).await.unwrap().is_none()).await;
    assert_eq!(reader.fetch(want(hashes[0], 60_000, &[&owner]), briefly()).await.outcome, Err(FetchError::Refused));
    for kept in &hashes[1..] {
        assert_eq!(owner.local_size(*kept).await.unwrap(), Some(60_000));
        assert!(reader.fetch(want(*kept, 60_000, &[&owner]), soon()).await.outcome.is_ok());
    }
    assert_eq!(owner.forget_before(Round(3)).await.unwrap(), 0);
}
