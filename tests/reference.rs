//! The running nodes against the plain function: read this first.
//!
//! Two miners and a validator, each a tree of real actors with a real iroh endpoint, complete rounds around one chain. What
//! they record must equal `convoke::reference`, bit for bit: the digest of θ after every round.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

mod harness;

use convoke::terms::{Round, Uid};
use harness::{
    World, assert_one_digest_a_round, contributors, digests, miner, part, reference, sealed_steps, stop, validator,
};

const ROUNDS: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_miners_and_a_validator_compute_what_the_reference_computes() {
    let (ada, bob, eve) = (miner("ada", 1), miner("bob", 2), validator("eve", 3));
    let world = World::new(&[ada.clone(), bob.clone(), eve.clone()], &[]).await;
    let nodes = vec![world.start(&ada, &[]).await, world.start(&bob, &[]).await, world.start(&eve, &[]).await];
    let completed = || nodes.iter().map(|node| node.parts.journal.status.rounds_completed()).min().unwrap_or(0);
    world.until("five rounds", 400, || completed() >= ROUNDS as u64).await;
    let config = world.config(&ada);
    let mut seeds = std::collections::BTreeMap::new();
    for round in 0..40 {
        let block = convoke::round::Schedule::new(&config.run.timing).seed_block(Round(round));
        if let Some(hash) = world.host.reader().block_hash(block).await.unwrap() {
            seeds.insert(Round(round), hash);
        }
    }
    stop(nodes).await;

    let histories = [world.events(&ada), world.events(&bob), world.events(&eve)];
    assert!(assert_one_digest_a_round(&histories) >= ROUNDS);

    let mut plain = reference(&config, &[ada.clone(), bob.clone()]);
    let applied = contributors(&histories[2]);
    let sealed = [sealed_steps(&histories[0]), sealed_steps(&histories[1])];
    let mut both_contributed = 0;
    for (round, digest) in digests(&histories[2]) {
        let is_applied = |uid: u16| applied.get(&round).is_some_and(|uids| uids.contains(&Uid(uid)));
        let mut parts = Vec::new();
        for (uid, (who, sealed)) in (0_u16..).zip([&ada, &bob].into_iter().zip(&sealed)) {
            if let Some(steps) = sealed.get(&round) {
                parts.push(part(who, uid, *steps, is_applied(uid)));
            }
        }
        both_contributed += usize::from(parts.iter().filter(|part| part.applied).count() == 2);
        let expected = plain.round(round, &seeds[&round], &parts);
        assert!(
            digest.is_none_or(|digest| digest == expected),
            "round {round}: {digest:?}, the reference has {expected:?}"
        );
    }
    assert!(both_contributed >= 2, "the test has seen both miners' payloads in {both_contributed} rounds only");
}
