//! Nodes in processes of their own, joining, dying and coming back: in all of it one digest a round, the survivors keep
//! their pace, and who comes back contributes again within two rounds.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

mod harness;

use convoke::terms::{Block, Round};
use convoke_node::events::{Event, Line};
use harness::swarm::{Swarm, killed_in};
use harness::{contributors, digests};
use rustix::process::Signal;

/// Large payloads, early checkpoints, and tensors that fill their chunks: a joiner has fewer bytes to fetch as state than as payloads.
const STATE_IS_CHEAPER: &[&str] = &[
    "run.sparse.keep_per_chunk=1024",
    "run.sparse.quantiser=two-bit",
    "run.timing.checkpoint_rounds=2",
    "run.model.d_model=64",
    "run.model.d_ff=128",
];
/// From this round on three miners have sent more bytes than θ and the payloads of four rounds have.
const GROWN: Round = Round(16);

/// Rounds that are lost to nobody once the nodes that begin a test are up.
const SETTLED: Round = Round(2);

fn later(round: Round, by: u64) -> Round {
    Round(round.0 + by)
}

/// The round of the chain when the node started for the last time.
fn last_start(events: &[Line]) -> Round {
    let began = events.iter().rposition(|line| matches!(line.event, Event::NodeStarted { .. })).unwrap();
    let block = events[began..].iter().find_map(|line| line.block).unwrap();
    Round(block.0 / harness::swarm::BLOCKS_PER_ROUND)
}

/// Kills a node in each phase in turn and starts it again at once.
async fn kill_in_each_phase(swarm: &mut Swarm, name: &str, phases: &[&str]) {
    // The node runs already, without a fault in its script.
    swarm.kill(name).await;
    for phase in phases {
        let strike = later(swarm.round(), 2);
        swarm.restart(name, &[killed_in(phase, strike)]);
        let status = swarm.ended(name).await;
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{name} in phase {phase}");
    }
    swarm.restart(name, &[]);
}

/// From `back` on it takes bob two rounds at most to contribute, and everybody completes the round in which he does, alike.
async fn all_go_on(swarm: &Swarm, back: Round) {
    let contributed = swarm.until_contributing("bob", "validator", back).await;
    assert!(contributed <= later(back, 2), "on in round {back}, contributing in round {contributed}");
    for name in ["validator", "ada", "bob"] {
        swarm.until_completed(name, contributed).await;
    }
    swarm.assert_one_digest_a_round();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_miner_killed_in_any_phase_comes_back_and_nobody_waits_for_it() {
    let mut swarm = Swarm::new(&[]).await;
    swarm.start("validator", "validator", &[]);
    swarm.start_all(&["ada", "bob"], "miner");
    swarm.until_completed("ada", SETTLED).await;
    let phases = ["inner-steps", "compressing", "sealing", "awaiting-reveal", "gathering", "awaiting-manifest"];
    kill_in_each_phase(&mut swarm, "bob", &phases).await;
    kill_in_each_phase(&mut swarm, "bob", &["deciding", "outer-step", "saving"]).await;
    let back = swarm.round();
    let contributed = swarm.until_contributing("bob", "validator", back).await;
    assert!(contributed <= later(back, 2), "back in round {back}, contributing in round {contributed}");
    swarm.until_completed("bob", contributed).await;
    swarm.assert_one_digest_a_round();
    swarm.assert_pace("ada", SETTLED, contributed).await;
    swarm.assert_pace("validator", SETTLED, contributed).await;
    assert_eq!(swarm.status("bob")["role"], "miner");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leading_validator_killed_in_any_phase_costs_no_round() {
    let mut swarm = Swarm::new(&[]).await;
    swarm.lead("lea").await;
    swarm.start_all(&["lea", "max", "noa"], "validator");
    swarm.start_all(&["ada"], "miner");
    swarm.until_completed("ada", SETTLED).await;
    let phases = ["awaiting-reveal", "gathering", "awaiting-manifest", "deciding", "outer-step", "saving"];
    kill_in_each_phase(&mut swarm, "lea", &phases).await;
    let back = later(swarm.round(), 2);
    swarm.until_completed("lea", back).await;
    swarm.until_completed("ada", back).await;
    swarm.assert_one_digest_a_round();
    swarm.assert_pace("ada", SETTLED, back).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_miner_that_was_frozen_for_a_round_and_a_half_goes_on() {
    let mut swarm = Swarm::new(&[]).await;
    swarm.start("validator", "validator", &[]);
    swarm.start_all(&["ada", "bob"], "miner");
    swarm.until_completed("bob", SETTLED).await;
    swarm.signal("bob", Signal::STOP);
    let frozen_at = swarm.chain().heads().best.number.0;
    let thaw = frozen_at + harness::swarm::BLOCKS_PER_ROUND * 3 / 2;
    swarm.until_block(thaw).await;
    swarm.signal("bob", Signal::CONT);
    let back = swarm.round();
    let contributed = swarm.until_contributing("bob", "validator", back).await;
    assert!(contributed <= later(back, 2), "thawed in round {back}, contributing in round {contributed}");
    swarm.until_completed("bob", contributed).await;
    swarm.assert_one_digest_a_round();
    swarm.assert_pace("ada", SETTLED, contributed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_joins_in_mid_run_fetches_the_agreed_state_and_contributes() {
    let mut swarm = Swarm::new(STATE_IS_CHEAPER).await;
    swarm.start_all(&["val", "vic"], "validator");
    swarm.start_all(&["ada", "bob", "cyd"], "miner");
    swarm.until_completed("ada", GROWN).await;
    swarm.start_all(&["joe", "jim", "jon"], "miner");
    for name in ["joe", "jim", "jon"] {
        let fetched = |events: &[Line]| events.iter().any(|line| matches!(line.event, Event::StateFetched { .. }));
        swarm.until(name, "state is fetched", fetched).await;
        let held =
            swarm.events(name).iter().rposition(|line| matches!(line.event, Event::StateFetched { .. })).unwrap();
        let block = swarm.events(name)[held].block.unwrap();
        let contributed = swarm.until_contributing(name, "val", GROWN).await;
        let from = Round(block.0 / harness::swarm::BLOCKS_PER_ROUND);
        assert!(contributed <= later(from, 2), "{name} held θ in round {from}, contributed in round {contributed}");
        swarm.until_completed(name, contributed).await;
    }
    swarm.assert_one_digest_a_round();
    swarm.assert_pace("ada", SETTLED, GROWN).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_on_a_sources_disk_does_not_reach_the_joiner() {
    let mut swarm = Swarm::new(STATE_IS_CHEAPER).await;
    // The greater stake is asked first.
    swarm.lead("val").await;
    swarm.start_all(&["val", "vic"], "validator");
    swarm.start_all(&["ada", "bob", "cyd"], "miner");
    swarm.until_completed("ada", GROWN).await;
    assert!(swarm.flip_large_blobs("val", 200_000) > 0);
    swarm.start("joe", "miner", &[]);
    let fetched = |events: &[Line]| events.iter().any(|line| matches!(line.event, Event::StateFetched { .. }));
    swarm.until("joe", "state is fetched", fetched).await;
    let contributed = swarm.until_contributing("joe", "vic", swarm.round()).await;
    swarm.until_completed("joe", contributed).await;
    // Its store finds the bit when it reads it, and sends nothing from there on; the rest is the other's.
    let other = swarm.endpoint("vic");
    let helped = swarm.events("joe").into_iter().any(|line| match line.event {
        Event::StateFetched { from, .. } => from.iter().any(|(id, bytes)| *id == other && *bytes > 0),
        _ => false,
    });
    assert!(helped, "all of the state is said to have come from the source with the flipped bit");
    swarm.assert_one_digest_a_round();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_freezes_and_dies_keeps_no_joiner_waiting() {
    let mut swarm = Swarm::new(STATE_IS_CHEAPER).await;
    // More than half of the stake goes on without the other.
    swarm.lead("vic").await;
    swarm.start_all(&["val", "vic"], "validator");
    swarm.start_all(&["ada", "bob", "cyd"], "miner");
    swarm.until_completed("ada", GROWN).await;
    swarm.signal("val", Signal::STOP);
    swarm.start("joe", "miner", &[]);
    swarm.uid("joe").await;
    swarm.kill("val").await;
    let joined = swarm.round();
    let contributed = swarm.until_contributing("joe", "vic", joined).await;
    swarm.until_completed("joe", contributed).await;
    assert!(swarm.events("joe").iter().any(|line| matches!(line.event, Event::StateFetched { .. })));
    swarm.assert_one_digest_a_round();
    swarm.assert_pace("ada", SETTLED, contributed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_joins_early_replays_payloads_where_that_is_fewer_bytes() {
    let mut swarm = Swarm::new(&[]).await;
    swarm.start("validator", "validator", &[]);
    swarm.start_all(&["ada"], "miner");
    swarm.until_completed("ada", Round(5)).await;
    swarm.start("joe", "miner", &[]);
    let joined = swarm.round();
    let contributed = swarm.until_contributing("joe", "validator", joined).await;
    swarm.until_completed("joe", contributed).await;
    let events = swarm.events("joe");
    assert!(!events.iter().any(|line| matches!(line.event, Event::StateFetched { .. })));
    assert_eq!(digests(&events).keys().next(), digests(&swarm.events("ada")).keys().next());
    swarm.assert_one_digest_a_round();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_off_the_agreed_digest_contributes_nothing_and_finds_back() {
    let mut swarm = Swarm::new(STATE_IS_CHEAPER).await;
    swarm.start("validator", "validator", &[]);
    swarm.start("ada", "miner", &[]);
    swarm.start("bob", "miner", &["compressor:outer-step:5:flip".to_owned()]);
    let resynced = |events: &[Line]| events.iter().any(|line| matches!(line.event, Event::ResyncDone { .. }));
    swarm.until("bob", "the agreed θ is found again", resynced).await;
    let back = swarm.round();
    let contributed = swarm.until_contributing("bob", "validator", later(back, 1)).await;
    swarm.until_completed("bob", contributed).await;
    let events = swarm.events("bob");
    let off = events.iter().position(|line| matches!(line.event, Event::DigestMismatch { .. })).unwrap();
    let done = events.iter().position(|line| matches!(line.event, Event::ResyncDone { .. })).unwrap();
    // What it sealed before is told again, without a block, when it is applied again on the way.
    let seals = |line: &Line| matches!(line.event, Event::Sealed { sealed_at, .. } if sealed_at > Block(0));
    assert!(!events[off..done].iter().any(seals));
    // What the flipped bit made of round 5 was told before anybody could know better, and is told again as it should be.
    let own = digests(&events);
    let agreed = digests(&swarm.events("ada"));
    let shared = own.iter().filter(|(round, _)| agreed.contains_key(*round));
    assert!(shared.clone().all(|(round, digest)| agreed[round] == *digest), "{own:?} against {agreed:?}");
    swarm.assert_pace("ada", SETTLED, contributed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_leaves_and_comes_back_and_the_run_goes_on() {
    let mut swarm = Swarm::new(&[]).await;
    let names = ["validator", "ada", "bob"];
    swarm.start("validator", "validator", &[]);
    swarm.start_all(&["ada", "bob"], "miner");
    swarm.until_completed("bob", Round(3)).await;
    for name in names {
        swarm.stop(name).await;
    }
    let left = swarm.round();
    swarm.until_round(later(left, 3)).await;
    for name in names {
        swarm.restart(name, &[]);
    }
    let back = swarm.round();
    let contributed = swarm.until_contributing("bob", "validator", back).await;
    assert!(contributed <= later(back, 2), "back in round {back}, contributing in round {contributed}");
    for name in names {
        swarm.until_completed(name, contributed).await;
        assert!(digests(&swarm.events(name)).len() as u64 > contributed.0 - SETTLED.0);
    }
    assert!(swarm.assert_one_digest_a_round() >= 4);
    assert_eq!(contributors(&swarm.events("ada"))[&contributed].len(), 2);
    assert!(last_start(&swarm.events("ada")) >= back);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_that_restarts_or_drops_its_connections_costs_no_digest() {
    let mut swarm = Swarm::new(&[]).await;
    swarm.start("validator", "validator", &[]);
    swarm.start_all(&["ada", "bob"], "miner");
    swarm.until_completed("bob", SETTLED).await;
    swarm.chain().drop_sockets();
    swarm.until_completed("bob", later(SETTLED, 2)).await;
    swarm.stop_chain().await;
    swarm.restart_chain();
    let back = later(swarm.round(), 2);
    for name in ["validator", "ada", "bob"] {
        swarm.until_completed(name, back).await;
    }
    let contributed = swarm.until_contributing("bob", "validator", back).await;
    swarm.until_completed("bob", contributed).await;
    swarm.assert_one_digest_a_round();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_that_stalls_for_three_rounds_stops_everybody_and_nobody_diverges() {
    let mut swarm = Swarm::new(&[]).await;
    swarm.start("validator", "validator", &[]);
    swarm.start_all(&["ada", "bob"], "miner");
    swarm.until_completed("bob", SETTLED).await;
    swarm.chain().stall_blocks(true);
    let stalled_at = swarm.chain().heads().best.number;
    let pause = harness::swarm::BLOCK_TIME * u32::try_from(3 * harness::swarm::BLOCKS_PER_ROUND).unwrap();
    // The one wait for time: that nothing happens in it is what is to be shown.
    tokio::time::timeout(pause, std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(swarm.chain().heads().best.number, stalled_at);
    swarm.chain().stall_blocks(false);
    all_go_on(&swarm, later(swarm.round(), 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_at_a_rounds_edge_splits_nobody() {
    let mut swarm = Swarm::new(&[]).await;
    swarm.start("validator", "validator", &[]);
    swarm.start_all(&["ada", "bob"], "miner");
    swarm.until_completed("bob", SETTLED).await;
    // The newest block is replaced: the one after the reveal, the last whose votes count, and the last whose seals do.
    for offset in [1, 5, 15] {
        let round = later(swarm.round(), 1);
        swarm.until_block(round.0 * harness::swarm::BLOCKS_PER_ROUND + offset).await;
        swarm.chain().fork(1).await.unwrap();
    }
    all_go_on(&swarm, later(swarm.round(), 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_with_a_used_identity_is_refused() {
    let mut swarm = Swarm::new(&[]).await;
    swarm.start("validator", "validator", &[]);
    swarm.start("ada", "miner", &[]);
    swarm.until_completed("ada", SETTLED).await;
    std::fs::create_dir_all(swarm.data_dir("eve")).unwrap();
    std::fs::copy(swarm.data_dir("ada").join("identity.json"), swarm.data_dir("eve").join("identity.json")).unwrap();
    swarm.start("eve", "miner", &[]);
    assert_eq!(swarm.ended("eve").await.code(), Some(1));
    assert!(swarm.log("eve").contains("another process runs with the hotkey"), "{}", swarm.log("eve"));
    swarm.until_completed("ada", later(swarm.round(), 1)).await;
    swarm.assert_one_digest_a_round();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_processes_that_could_not_see_each_other_the_earlier_one_yields() {
    let mut swarm = Swarm::new(&[]).await;
    swarm.start("validator", "validator", &[]);
    swarm.start("ada", "miner", &[]);
    swarm.until_completed("ada", SETTLED).await;
    // With the outbox, too, the copy takes what is on chain for its own and looks no further.
    std::fs::create_dir_all(swarm.data_dir("eve")).unwrap();
    for file in ["identity.json", "outbox"] {
        std::fs::copy(swarm.data_dir("ada").join(file), swarm.data_dir("eve").join(file)).unwrap();
    }
    swarm.start("eve", "miner", &[]);
    assert_eq!(swarm.ended("ada").await.code(), Some(1));
    let contributed = swarm.until_contributing("eve", "validator", swarm.round()).await;
    swarm.until_completed("eve", contributed).await;
    swarm.assert_one_digest_a_round();
}
