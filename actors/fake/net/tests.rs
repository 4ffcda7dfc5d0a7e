//! Claims about the simulated network: it keeps the real one's rules, and its faults look as the real ones do.

use tokio::time::sleep;

use super::*;
use crate::peer_sync::fetch::SizeRule;

/// Links that behave as they are told, by who sends.
#[derive(Default)]
struct Script(Mutex<BTreeMap<EndpointId, Link>>);

impl Script {
    fn set(&self, sender: u8, link: Link) {
        self.0.lock().unwrap().insert(id(sender), link);
    }
}

impl Links for Script {
    fn at(&self, from: EndpointId, _: EndpointId, _: &[u8; 32]) -> Link {
        self.0.lock().unwrap().get(&from).copied().unwrap_or_default()
    }
}

/// A network, its links, and one life of each node.
struct Scene {
    net: FakeNet,
    links: Arc<Script>,
    nodes: Vec<(Arc<dyn PeerNet>, Fence)>,
}

impl Scene {
    /// Nodes with the numbers from 0 on, who know each other.
    async fn of(n_nodes: u8) -> Self {
        let links = Arc::new(Script::default());
        let mut scene = Self { net: FakeNet::new(links.clone()), links, nodes: Vec::new() };
        for number in 0..n_nodes {
            let life = scene.start(number).await;
            scene.nodes.push(life);
        }
        for node in 0..usize::from(n_nodes) {
            scene.node(node).admit((0..n_nodes).map(peer).collect()).await.unwrap();
        }
        scene
    }

    async fn start(&self, number: u8) -> (Arc<dyn PeerNet>, Fence) {
        let fence = Fence::new();
        let nets = self.net.port(id(number), fence.clone());
        (nets.acquire().await.unwrap(), fence)
    }

    fn node(&self, number: usize) -> &dyn PeerNet {
        &*self.nodes[number].0
    }

    fn served(&self, number: u8) -> u64 {
        self.net.tally(id(number)).bytes_served
    }
}

fn id(number: u8) -> EndpointId {
    EndpointId([number; 32])
}

fn peer(number: u8) -> Peer {
    Peer { id: id(number), addresses: Vec::new(), start: 1 }
}

fn content(len: usize, seed: u8) -> Bytes {
    (0..len).map(|i| (i % 251) as u8 ^ seed).collect::<Vec<u8>>().into()
}

fn hash_of(bytes: &Bytes) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

fn label(round: u64, reveal: Reveal) -> Label {
    Label { round: Round(round), kind: Kind::Payload, reveal }
}

fn want(bytes: &Bytes, holders: &[u8]) -> Want {
    Want {
        hash: Hash::from_bytes(hash_of(bytes)),
        size: SizeRule::Exactly(bytes.len() as u64),
        label: label(1, Reveal::Always),
        holders: holders.iter().map(|number| id(*number)).collect(),
    }
}

async fn fetch(reader: &dyn PeerNet, want: Want, within: Duration) -> Fetched {
    let mut fetched = reader.gather(vec![want], Instant::now() + within).await;
    assert_eq!(fetched.len(), 1);
    fetched.remove(0)
}

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_payload_is_refused_before_its_reveal_and_served_after() {
    let scene = Scene::of(2).await;
    let (owner, reader) = (scene.node(0), scene.node(1));
    let bytes = content(1000, 1);
    owner.publish(bytes.clone(), label(1, Reveal::At(Block(8)))).await.unwrap();

    owner.set_head(Block(7));
    assert_eq!(fetch(reader, want(&bytes, &[0]), SECOND).await.outcome, Err(FetchError::Refused));
    assert!(owner.stats().refused(Refusal::Unrevealed) > 1, "it is asked again");
    assert_eq!((scene.served(0), scene.net.tally(id(1)).blobs_held), (0, 0));

    owner.set_head(Block(8));
    let fetched = fetch(reader, want(&bytes, &[0]), SECOND).await;
    assert_eq!((fetched.outcome, fetched.elapsed), (Ok(bytes.clone()), LATENCY));
    assert_eq!(scene.served(0), 1000);
    assert_eq!(scene.net.tally(id(1)), Tally { bytes_served: 0, blobs_held: 1, bytes_held: 1000 });

    // What is here is not asked for again, and is served on.
    assert_eq!(fetch(reader, want(&bytes, &[0]), SECOND).await.elapsed, Duration::ZERO);
    assert_eq!(fetch(owner, want(&bytes, &[1]), SECOND).await.outcome, Ok(bytes));
    assert_eq!(scene.served(0), 1000);
}

#[tokio::test(start_paused = true)]
async fn a_reveal_that_comes_in_time_is_met_by_asking_again() {
    let scene = Scene::of(2).await;
    let bytes = content(10, 1);
    scene.node(0).publish(bytes.clone(), label(1, Reveal::At(Block(1)))).await.unwrap();
    let reveal = async {
        sleep(SECOND).await;
        scene.node(0).set_head(Block(1));
    };
    let (fetched, ()) = tokio::join!(fetch(scene.node(1), want(&bytes, &[0]), LONG), reveal);
    assert_eq!(fetched.outcome, Ok(bytes));
    assert!(fetched.elapsed > SECOND && fetched.elapsed < 3 * SECOND, "{:?}", fetched.elapsed);
}

#[tokio::test(start_paused = true)]
async fn only_who_is_admitted_on_both_sides_gets_anything() {
    let scene = Scene::of(2).await;
    let (owner, reader) = (scene.node(0), scene.node(1));
    let bytes = content(10, 1);
    owner.publish(bytes.clone(), label(1, Reveal::Always)).await.unwrap();
    owner.admit(vec![peer(0)]).await.unwrap();
    assert_eq!(fetch(reader, want(&bytes, &[0]), SECOND).await.outcome, Err(FetchError::Refused));
    assert!(owner.stats().refused(Refusal::Stranger) > 1);

    owner.admit(vec![peer(1)]).await.unwrap();
    reader.admit(Vec::new()).await.unwrap();
    let fetched = fetch(reader, want(&bytes, &[0]), LONG).await;
    assert_eq!(fetched.outcome, Err(FetchError::NotFound));
    assert!(fetched.elapsed < SECOND, "no holder is known, and none will be");
}

#[tokio::test(start_paused = true)]
async fn a_withheld_blob_costs_its_fetch_and_not_the_others() {
    let scene = Scene::of(3).await;
    let (bytes, other) = (content(10, 1), content(10, 2));
    for node in [0, 1] {
        scene.node(node).publish(bytes.clone(), label(1, Reveal::Always)).await.unwrap();
    }
    scene.node(1).publish(other.clone(), label(1, Reveal::Always)).await.unwrap();
    scene.links.set(0, Link { is_withheld: true, ..Link::default() });

    let wants = vec![want(&bytes, &[0]), want(&other, &[1])];
    let fetched = scene.node(2).gather(wants, Instant::now() + 3 * SECOND).await;
    assert_eq!((&fetched[0].outcome, fetched[0].elapsed), (&Err(FetchError::Deadline), 3 * SECOND));
    assert_eq!((&fetched[1].outcome, fetched[1].elapsed), (&Ok(other), LATENCY));

    // A holder that has been silent for long enough has failed, and another one is asked.
    let fetched = fetch(scene.node(2), want(&bytes, &[0]), 20 * SECOND).await;
    assert_eq!((fetched.outcome, fetched.elapsed), (Err(FetchError::Unreachable), 20 * SECOND));
    let fetched = fetch(scene.node(2), want(&bytes, &[0, 1]), 20 * SECOND).await;
    assert_eq!(fetched.outcome, Ok(bytes));
    assert!(fetched.elapsed >= 5 * SECOND && fetched.elapsed < 6 * SECOND, "{:?}", fetched.elapsed);
}

#[tokio::test(start_paused = true)]
async fn bytes_with_another_hash_are_refused_and_another_holder_is_asked() {
    let scene = Scene::of(3).await;
    let bytes = content(1000, 1);
    for node in [0, 1] {
        scene.node(node).publish(bytes.clone(), label(1, Reveal::Always)).await.unwrap();
    }
    scene.links.set(0, Link { is_corrupt: true, ..Link::default() });
    let fetched = fetch(scene.node(2), want(&bytes, &[0]), LONG).await;
    assert_eq!((fetched.outcome, fetched.elapsed), (Err(FetchError::Corrupt), LATENCY), "it is not asked again");
    assert_eq!(scene.net.tally(id(2)).blobs_held, 0);
    assert_eq!(fetch(scene.node(2), want(&bytes, &[0, 1]), LONG).await.outcome, Ok(bytes));
    assert_eq!((scene.served(0), scene.served(1)), (2000, 1000));
}

#[tokio::test(start_paused = true)]
async fn another_size_than_was_sealed_is_found_before_anything_is_sent() {
    let scene = Scene::of(2).await;
    let bytes = content(1000, 1);
    scene.node(0).publish(bytes.clone(), label(1, Reveal::Always)).await.unwrap();
    let outcome = async |size| fetch(scene.node(1), Want { size, ..want(&bytes, &[0]) }, LONG).await.outcome;
    let mismatch = FetchError::SizeMismatch { expected: 999, found: 1000 };
    assert_eq!(outcome(SizeRule::Exactly(999)).await, Err(mismatch));
    assert_eq!(outcome(SizeRule::AtMost(999)).await, Err(FetchError::TooLarge { limit: 999, found: 1000 }));
    assert_eq!(scene.served(0), 0);
    assert_eq!(outcome(SizeRule::AtMost(1000)).await, Ok(bytes.clone()));
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_heals_in_time_costs_time_alone() {
    let scene = Scene::of(2).await;
    let bytes = content(10, 1);
    scene.node(0).publish(bytes.clone(), label(1, Reveal::Always)).await.unwrap();
    scene.links.set(0, Link { is_up: false, ..Link::default() });
    let outcome = fetch(scene.node(1), want(&bytes, &[0]), 3 * SECOND).await.outcome;
    assert_eq!(outcome, Err(FetchError::Deadline));
    let heal = async {
        sleep(7 * SECOND).await;
        scene.links.set(0, Link::default());
    };
    let (fetched, ()) = tokio::join!(fetch(scene.node(1), want(&bytes, &[0]), LONG), heal);
    assert_eq!(fetched.outcome, Ok(bytes));
    assert!(fetched.elapsed > 7 * SECOND && fetched.elapsed < 13 * SECOND, "{:?}", fetched.elapsed);
}

#[tokio::test(start_paused = true)]
async fn a_dead_process_reaches_nothing_and_its_next_life_has_its_blobs() {
    let scene = Scene::of(2).await;
    let (open, hidden) = (content(10, 1), content(10, 2));
    let (owner, fence) = &scene.nodes[0];
    owner.publish(open.clone(), label(1, Reveal::Always)).await.unwrap();
    owner.publish(hidden.clone(), label(1, Reveal::At(Block(3)))).await.unwrap();
    fence.fall();
    assert!(owner.publish(content(10, 3), label(1, Reveal::Always)).await.is_err());
    assert!(owner.admit(Vec::new()).await.is_err() && owner.forget_before(Round(9)).await.is_err());
    assert_eq!(fetch(&**owner, want(&open, &[1]), SECOND).await.outcome, Err(FetchError::Closed));
    assert!(scene.net.port(id(0), fence.clone()).acquire().await.is_err());
    let outcome = fetch(scene.node(1), want(&open, &[0]), 6 * SECOND).await.outcome;
    assert_eq!(outcome, Err(FetchError::Unreachable));

    let (owner, _fence) = scene.start(0).await;
    assert_eq!(fetch(scene.node(1), want(&open, &[0]), SECOND).await.outcome, Err(FetchError::Refused));
    owner.admit(vec![peer(1)]).await.unwrap();
    assert_eq!(fetch(scene.node(1), want(&open, &[0]), SECOND).await.outcome, Ok(open));
    assert_eq!(fetch(scene.node(1), want(&hidden, &[0]), SECOND).await.outcome, Err(FetchError::Refused));
    owner.set_head(Block(3));
    assert_eq!(fetch(scene.node(1), want(&hidden, &[0]), SECOND).await.outcome, Ok(hidden));
    assert_eq!(scene.served(0), 20);
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_comes_back_finds_its_transport_and_a_closed_one_is_opened_anew() {
    let scene = Scene::of(1).await;
    let bytes = content(10, 1);
    let nets = scene.net.port(id(1), Fence::new());
    let first = nets.acquire().await.unwrap();
    first.admit(vec![peer(0)]).await.unwrap();
    first.publish(bytes.clone(), label(1, Reveal::Always)).await.unwrap();
    scene.node(0).admit(vec![peer(1)]).await.unwrap();
    drop(first);
    let second = nets.acquire().await.unwrap();
    assert_eq!(second.id(), id(1));
    assert_eq!(fetch(scene.node(0), want(&bytes, &[1]), SECOND).await.outcome, Ok(bytes.clone()));
    nets.close().await;
    assert!(second.publish(bytes.clone(), label(2, Reveal::Always)).await.is_err());
    let third = nets.acquire().await.unwrap();
    assert!(third.publish(bytes, label(2, Reveal::Always)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_dies_on_the_way_is_no_sender() {
    let scene = Scene::of(3).await;
    let bytes = content(1000, 1);
    for node in [0, 1] {
        scene.node(node).publish(bytes.clone(), label(1, Reveal::Always)).await.unwrap();
    }
    scene.links.set(0, Link { bytes_per_second: Some(100), ..Link::default() });
    let die = async {
        sleep(2 * SECOND).await;
        scene.nodes[0].1.fall();
    };
    let (fetched, ()) = tokio::join!(fetch(scene.node(2), want(&bytes, &[0, 1]), LONG), die);
    assert_eq!(fetched.outcome, Ok(bytes));
    assert_eq!((scene.served(0), scene.served(1)), (0, 1000));
}

#[tokio::test(start_paused = true)]
async fn what_a_slow_holder_has_brought_is_not_sent_again() {
    let scene = Scene::of(3).await;
    let bytes = content(64 * 1024, 1);
    for node in [0, 1] {
        scene.node(node).publish(bytes.clone(), label(1, Reveal::Always)).await.unwrap();
    }
    // Within its half of ten seconds it sends 40 KB, of which two groups of 16 KiB are whole.
    scene.links.set(0, Link { bytes_per_second: Some(8192), ..Link::default() });
    assert_eq!(fetch(scene.node(2), want(&bytes, &[0, 1]), 10 * SECOND).await.outcome, Ok(bytes));
    assert_eq!((scene.served(0), scene.served(1)), (32 * 1024, 32 * 1024));
}

#[tokio::test(start_paused = true)]
async fn what_one_sender_sends_to_a_batch_shares_its_link() {
    let scene = Scene::of(2).await;
    let payloads = [content(1000, 1), content(1000, 2)];
    for bytes in &payloads {
        scene.node(0).publish(bytes.clone(), label(1, Reveal::Always)).await.unwrap();
    }
    scene.links.set(0, Link { bytes_per_second: Some(1000), repeats: true, ..Link::default() });
    let wants = payloads.iter().map(|bytes| want(bytes, &[0])).collect();
    let fetched = scene.node(1).gather(wants, Instant::now() + LONG).await;
    let elapsed: Vec<Duration> = fetched.iter().map(|fetched| fetched.elapsed).collect();
    assert_eq!(elapsed, [LATENCY + SECOND, LATENCY + 2 * SECOND]);
    assert_eq!(scene.served(0), 4000, "each came twice");
    assert_eq!(scene.net.tally(id(1)).blobs_held, 2);
}

#[tokio::test(start_paused = true)]
async fn forgotten_rounds_are_gone_and_what_a_later_one_names_stays() {
    let scene = Scene::of(2).await;
    let (owner, reader) = (scene.node(0), scene.node(1));
    let blobs: Vec<Bytes> = (1..=4).map(|round| content(100, round)).collect();
    for (round, bytes) in (1..).zip(&blobs) {
        owner.publish(bytes.clone(), label(round, Reveal::Always)).await.unwrap();
    }
    // The second round's blob is also part of the fourth.
    owner.publish(blobs[1].clone(), label(4, Reveal::Always)).await.unwrap();
    owner.forget_before(Round(3)).await.unwrap();
    owner.forget_before(Round(3)).await.unwrap();
    assert_eq!(scene.net.tally(id(0)), Tally { bytes_served: 0, blobs_held: 3, bytes_held: 300 });
    assert_eq!(fetch(reader, want(&blobs[0], &[0]), SECOND).await.outcome, Err(FetchError::Refused));
    for kept in &blobs[1..] {
        assert_eq!(scene.net.blob(id(0), &hash_of(kept)).as_ref(), Some(kept));
        assert!(fetch(reader, want(kept, &[0]), SECOND).await.outcome.is_ok());
    }
}

/// θ of 100 values, with its digest.
fn theta(seed: u8) -> (Arc<Pages>, Digest) {
    let theta = Arc::new(Pages::from(&[f32::from(seed); 100][..]));
    let digest = Digest(hash_of(&bytes_of(Arc::clone(&theta))));
    (theta, digest)
}

#[tokio::test(start_paused = true)]
async fn a_state_comes_from_who_tells_the_truth() {
    let scene = Scene::of(4).await;
    let (state, digest) = theta(1);
    assert!(scene.node(0).keep_state(Arc::clone(&state), Round(8), theta(2).1).await.is_err());
    for node in [0, 1] {
        scene.node(node).keep_state(Arc::clone(&state), Round(8), digest).await.unwrap();
    }
    scene.links.set(0, Link { is_corrupt: true, ..Link::default() });
    scene.links.set(1, Link { bytes_per_second: Some(100), ..Link::default() });
    let bring = async |n_values, holders: &[u8]| {
        let holders = holders.iter().map(|number| id(*number)).collect();
        let want = ThetaWant { round: Round(8), digest, n_values, holders };
        scene.node(2).bring_state(want, Instant::now() + LONG).await
    };
    let why = bring(100, &[0]).await.unwrap_err();
    assert!(why.contains("other bytes; 0 of 400 bytes came, 1 holders lied"), "{why}");
    assert!(bring(99, &[1]).await.unwrap_err().contains("396"));

    let started = Instant::now();
    let brought = bring(100, &[0, 1]).await.unwrap();
    assert_eq!((&brought.theta[..], brought.bytes_fetched), (&state[..], 400));
    assert_eq!((brought.from, brought.corrupt), (vec![(id(0), 0), (id(1), 400)], vec![id(0)]));
    assert!(started.elapsed() >= 4 * SECOND && started.elapsed() < 5 * SECOND, "it comes as fast as its link");

    // It is here for good, and served on.
    assert_eq!(bring(100, &[]).await.unwrap().bytes_fetched, 0);
    let want = ThetaWant { round: Round(8), digest, n_values: 100, holders: vec![id(2)] };
    assert!(scene.node(3).bring_state(want, Instant::now() + LONG).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_newest_two_states_are_kept() {
    let scene = Scene::of(2).await;
    // The second state is the third round's too.
    for (round, seed) in [(1, 1), (2, 2), (3, 2), (4, 3)] {
        let (state, digest) = theta(seed);
        scene.node(0).keep_state(state, Round(round), digest).await.unwrap();
    }
    let held = [1, 2, 3].map(|seed| scene.net.blob(id(0), &theta(seed).1.0).is_some());
    assert_eq!(held, [false, true, true]);
    scene.node(0).forget_before(Round(99)).await.unwrap();
    assert_eq!(scene.net.tally(id(0)), Tally { bytes_served: 0, blobs_held: 2, bytes_held: 800 });
    let (_, digest) = theta(1);
    let want = ThetaWant { round: Round(1), digest, n_values: 100, holders: vec![id(0)] };
    let why = scene.node(1).bring_state(want, Instant::now() + LONG).await.unwrap_err();
    assert!(why.contains("refused"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn who_lies_about_states_brings_another_one_and_true_payloads() {
    let scene = Scene::of(4).await;
    let (older, (state, digest)) = (theta(1), theta(2));
    scene.node(0).keep_state(Arc::clone(&older.0), Round(7), older.1).await.unwrap();
    for node in [0, 1] {
        scene.node(node).keep_state(Arc::clone(&state), Round(8), digest).await.unwrap();
    }
    let payload = content(100, 1);
    scene.node(0).publish(payload.clone(), label(8, Reveal::Always)).await.unwrap();
    scene.links.set(0, Link { is_lying: true, ..Link::default() });

    assert_eq!(fetch(scene.node(2), want(&payload, &[0]), SECOND).await.outcome, Ok(payload));
    let want = |holders: &[u8]| {
        let holders = holders.iter().map(|number| id(*number)).collect();
        ThetaWant { round: Round(8), digest, n_values: 100, holders }
    };
    // What comes is a whole state of the run, and another one.
    let why = scene.node(2).bring_state(want(&[0]), Instant::now() + LONG).await.unwrap_err();
    assert!(why.contains("other bytes; 0 of 400 bytes came, 1 holders lied"), "{why}");
    let served = scene.served(0);
    assert_eq!(served, 100 + 400);
    let brought = scene.node(2).bring_state(want(&[0, 1]), Instant::now() + LONG).await.unwrap();
    assert_eq!((&brought.theta[..], brought.corrupt), (&state[..], vec![id(0)]));
}
