//! The host keeps what its traits promise: reads at a block, fates of calls, finality behind, faults, and restarts.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use convoke::chain::{Call, Genesis};
use convoke::hotkey::HotkeyPair;
use convoke::terms::{Block, Hotkey, Stake, Uid, Weight};

use super::host::{CallFault, StoreError, VIEWS_KEPT, development_genesis};
use super::*;

const NETUID: u16 = 7;
const TAO: u64 = 1_000_000_000;

fn pair(i: u8) -> HotkeyPair {
    HotkeyPair::from_seed(&[i; 32])
}

fn genesis() -> Genesis {
    Genesis { timestamp_ms: 1_000_000, ..development_genesis(NETUID, 5) }
}

fn config(pace: Pace) -> HostConfig {
    HostConfig { block_time: Duration::from_millis(500), finality_depth: 2, pace, file: None }
}

fn kept(path: &Path) -> HostConfig {
    HostConfig { file: Some(path.to_owned()), ..config(Pace::OnDemand) }
}

fn on_demand() -> Host {
    Host::start(&genesis(), config(Pace::OnDemand)).unwrap()
}

/// A host with hotkey 1 registered at block 1, and its writer.
async fn with_neuron() -> (Host, Arc<dyn ChainWrite>) {
    let host = on_demand();
    host.dev_register(pair(1).hotkey(), Stake(TAO)).await.unwrap();
    let writer = host.connect(pair(1));
    (host, writer)
}

async fn mined<'a>(host: &Host, call: ChainFuture<'a, Outcome>) -> Outcome {
    host.mine(1).await.unwrap();
    call.await.unwrap()
}

fn fields(byte: u8) -> Vec<Vec<u8>> {
    vec![vec![byte; 3], vec![], vec![byte]]
}

fn included_at(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Included { block, .. } => block.0,
        other => panic!("not included: {other:?}"),
    }
}

#[tokio::test]
async fn a_block_shows_its_state_for_as_long_as_it_is_kept() {
    let (host, writer) = with_neuron().await;
    let reader = host.reader();
    for byte in 2..5 {
        assert_eq!(included_at(&mined(&host, writer.commit(fields(byte))).await), u64::from(byte));
    }
    for byte in 2..5 {
        let commitments = reader.commitments(Block(u64::from(byte))).await.unwrap();
        let committed = &commitments[&pair(1).hotkey()];
        assert_eq!((committed.block, &committed.fields), (Block(u64::from(byte)), &fields(byte)));
    }
    assert!(reader.commitments(Block(1)).await.unwrap().is_empty());
    assert!(reader.metagraph(Block(0)).await.unwrap().neurons.is_empty());
    assert_eq!(reader.metagraph(Block(1)).await.unwrap().validators().count(), 1);
    let early = reader.metagraph(Block(5)).await.unwrap_err();
    assert_eq!(early, ChainError::NotYet { block: Block(5), best: Block(4) });
    assert_eq!(reader.block_hash(Block(5)).await, Ok(None));
    assert_eq!(reader.block_hash(Block(0)).await, Ok(Some(reader.genesis())));

    host.mine(VIEWS_KEPT - 4).await.unwrap();
    assert_eq!(reader.metagraph(Block(0)).await.unwrap_err(), ChainError::Pruned { block: Block(0), oldest: Block(1) });
    assert!(reader.metagraph(Block(1)).await.is_ok());
    assert_eq!(reader.block_hash(Block(0)).await, Ok(Some(reader.genesis())), "hashes are kept for longer");
}

#[tokio::test]
async fn finality_follows_at_its_depth_stalls_alone_and_catches_up() {
    let host = on_demand();
    let heads = host.reader().heads();
    let numbers = || {
        let heads = heads.borrow();
        (heads.best.number.0, heads.finalized.number.0)
    };
    assert_eq!(numbers(), (0, 0));
    host.mine(5).await.unwrap();
    assert_eq!(numbers(), (5, 3));
    host.stall_finality(true);
    host.mine(5).await.unwrap();
    assert_eq!(numbers(), (10, 3));
    host.stall_finality(false);
    host.mine(1).await.unwrap();
    assert_eq!(numbers(), (11, 9));
    let finalized = heads.borrow().finalized;
    assert_eq!(host.reader().block_hash(Block(9)).await, Ok(Some(finalized.hash)));
}

#[tokio::test(start_paused = true)]
async fn blocks_come_every_block_time_until_they_are_stalled() {
    let host = Host::start(&genesis(), config(Pace::Virtual)).unwrap();
    let mut heads = host.reader().heads();
    let begun = tokio::time::Instant::now();
    for number in 1..=6 {
        heads.changed().await.unwrap();
        assert_eq!(heads.borrow_and_update().best.number, Block(number));
        assert_eq!(begun.elapsed().as_millis(), 500 * u128::from(number));
    }
    host.stall_blocks(true);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(heads.borrow().best.number, Block(6));
    host.stall_blocks(false);
    heads.changed().await.unwrap();
    assert_eq!(heads.borrow().best.number, Block(7));
}

#[tokio::test(start_paused = true)]
async fn a_chain_in_virtual_time_gives_the_same_hashes_every_time() {
    let run = || async {
        let host = Host::start(&genesis(), config(Pace::Virtual)).unwrap();
        host.dev_register(pair(1).hotkey(), Stake(TAO)).await.unwrap();
        let outcome = host.connect(pair(1)).commit(fields(9)).await.unwrap();
        (outcome, host.reader().heads().borrow())
    };
    let (first, second) = (run().await, run().await);
    assert_eq!(first, second);
    assert_eq!(included_at(&first.0), 2);
}

#[tokio::test]
async fn the_faucet_gives_once_and_to_everybody_who_asks_at_the_same_time() {
    let host = on_demand();
    let ask = |i: u8| host.dev_register(pair(i).hotkey(), Stake(TAO));
    let (a, b, c) = tokio::join!(ask(1), ask(2), ask(3));
    let mut uids = [a.unwrap().0, b.unwrap().0, c.unwrap().0];
    uids.sort_unstable();
    assert_eq!(uids, [0, 1, 2]);
    let before = host.reader().heads().borrow().best;
    assert_eq!(ask(1).await, Ok(Uid(0)));
    assert_eq!(host.reader().heads().borrow().best, before, "nothing was left to do");
    let metagraph = host.reader().metagraph(before.number).await.unwrap();
    assert_eq!(metagraph.validators().count(), 3);

    let closed = Host::start(&Genesis { sudo: None, ..genesis() }, config(Pace::OnDemand)).unwrap();
    let refused = closed.dev_register(pair(1).hotkey(), Stake(TAO)).await.unwrap_err();
    assert!(refused.to_string().contains("BadOrigin"), "{refused}");
}

#[tokio::test]
async fn weights_that_come_too_soon_name_the_block_at_which_they_would_not() {
    let (host, writer) = with_neuron().await;
    let weights = || writer.set_weights(vec![(Uid(0), Weight(5))], 0);
    // Registered at block 1, with a limit of 10.
    let limited = Outcome::PoolRejected { code: 1010, custom: Some(6), class: Class::RateLimited(Block(11)) };
    assert_eq!(weights().await.unwrap(), limited);
    host.mine(9).await.unwrap();
    assert_eq!(included_at(&mined(&host, weights()).await), 11);
    let metagraph = host.reader().metagraph(Block(11)).await.unwrap();
    assert_eq!(metagraph.neurons[0].last_update, Block(11));
}

#[tokio::test]
async fn a_spent_quota_is_refused_until_the_next_epoch() {
    let (host, writer) = with_neuron().await;
    // Blocks 2 to 9 lie within one epoch, and 3100 bytes are six of 500.
    let big = || writer.commit(vec![vec![1; 500]]);
    for _ in 2..8 {
        included_at(&mined(&host, big()).await);
    }
    let class = Class::RateLimited(Block(10));
    let refused = Outcome::DispatchFailed { name: "SpaceLimitExceeded".to_owned(), class };
    assert_eq!(mined(&host, big()).await, refused);
    host.mine(1).await.unwrap();
    assert_eq!(included_at(&mined(&host, big()).await), 10);
}

#[tokio::test]
async fn strangers_are_told_that_they_have_no_slot() {
    let host = on_demand();
    let stranger = host.connect(pair(9));
    let refused = |name: &str| Outcome::DispatchFailed { name: name.to_owned(), class: Class::NotRegistered };
    assert_eq!(mined(&host, stranger.commit(fields(1))).await, refused("AccountNotAllowedCommit"));
    host.dev_register(pair(1).hotkey(), Stake(TAO)).await.unwrap();
    let weights = stranger.set_weights(vec![(Uid(0), Weight(1))], 0);
    assert_eq!(mined(&host, weights).await, refused("HotKeyNotRegisteredInSubNet"));
    let long = stranger.commit(vec![vec![0; 513]]).await.unwrap();
    assert_eq!(long, Outcome::PoolRejected { code: 1010, custom: None, class: Class::BadArgs });
}

#[tokio::test]
async fn a_coldkey_buys_a_slot_within_its_limit() {
    let mut genesis = genesis();
    genesis.balances.insert(pair(100).hotkey(), TAO);
    let host = Host::start(&genesis, config(Pace::OnDemand)).unwrap();
    let writer = host.connect(pair(1));
    let price = host.reader().metagraph(Block(0)).await.unwrap().burn;
    let cheap = mined(&host, writer.register(pair(100), price - 1)).await;
    let name = "RegistrationPriceLimitExceeded".to_owned();
    assert_eq!(cheap, Outcome::DispatchFailed { name, class: Class::Fatal });
    assert_eq!(included_at(&mined(&host, writer.register(pair(100), price)).await), 2);
    assert_eq!(host.reader().metagraph(Block(2)).await.unwrap().neurons[0].hotkey, pair(1).hotkey());
}

#[tokio::test]
async fn calls_are_delayed_dropped_and_unheard_when_a_test_says_so() {
    let (host, writer) = with_neuron().await;
    let reader = host.reader();
    host.fault_next_call(writer.hotkey(), CallFault::Delay(3));
    let delayed = writer.commit(fields(1));
    let behind_it = writer.commit(fields(2));
    host.mine(4).await.unwrap();
    assert_eq!((included_at(&delayed.await.unwrap()), included_at(&behind_it.await.unwrap())), (5, 5));

    host.fault_next_call(writer.hotkey(), CallFault::LoseAnswer);
    assert_eq!(writer.commit(fields(3)).await.unwrap(), Outcome::Unknown);
    host.mine(1).await.unwrap();
    let commitments = reader.commitments(Block(6)).await.unwrap();
    assert_eq!(commitments[&writer.hotkey()].fields, fields(3));

    // Born on block 6, so block 69 is the last that could have it.
    host.fault_next_call(writer.hotkey(), CallFault::Drop);
    let mut dropped = writer.commit(fields(4));
    host.mine(62).await.unwrap();
    assert!(is_pending(&mut dropped).await);
    host.mine(1).await.unwrap();
    assert_eq!(dropped.await.unwrap(), Outcome::Expired);
    assert_eq!(included_at(&mined(&host, writer.commit(fields(5))).await), 70);
}

#[tokio::test]
async fn a_fork_replaces_what_is_not_final_and_is_told_as_a_new_head() {
    let host = on_demand();
    let (reader, mut heads) = (host.reader(), host.reader().heads());
    host.mine(5).await.unwrap();
    let told = heads.borrow_and_update();
    let hashes = async |numbers: [u64; 3]| {
        let mut hashes = Vec::new();
        for number in numbers {
            hashes.push(reader.block_hash(Block(number)).await.unwrap().unwrap());
        }
        hashes
    };
    let before = hashes([3, 4, 5]).await;
    let final_one = ChainError::Pruned { block: Block(2), oldest: Block(3) };
    assert_eq!(host.fork(3, 0), Err(final_one), "what is final stays");
    assert_eq!((heads.borrow(), hashes([3, 4, 5]).await), (told, before.clone()), "nothing has changed");

    let best = host.fork(2, 0).unwrap();
    heads.changed().await.unwrap();
    assert_eq!((heads.borrow().best, heads.borrow().finalized), (best, told.finalized));
    assert_eq!(best.number, told.best.number);
    let after = hashes([3, 4, 5]).await;
    assert_eq!(after[0], before[0]);
    assert!(after[1] != before[1] && after[2] != before[2] && after[2] == best.hash);

    // A longer branch moves the final head along, too.
    let best = host.fork(1, 1).unwrap();
    assert_eq!((best.number, heads.borrow().finalized.number), (Block(6), Block(4)));
    assert_eq!(hashes([4, 5, 6]).await[0], after[1]);
    assert_eq!(heads.borrow().finalized.hash, after[1]);
    assert_eq!(host.mine(1).await.unwrap().number, Block(7));
}

#[tokio::test]
async fn calls_of_a_dropped_block_wait_again_unless_they_were_made_on_one() {
    let (host, writer) = with_neuron().await;
    let reader = host.reader();
    let committed = async |at: u64| {
        let commitments = reader.commitments(Block(at)).await.unwrap();
        commitments.get(&writer.hotkey()).map(|committed| (committed.block.0, committed.fields.clone()))
    };
    assert_eq!(included_at(&mined(&host, writer.commit(fields(1))).await), 2);
    host.fork(1, 0).unwrap();
    assert_eq!(committed(2).await, None);
    host.mine(1).await.unwrap();
    assert_eq!(committed(3).await, Some((3, fields(1))), "it was late by a block");

    // Made on blocks 3 and 4; the fork drops 4 and 5.
    assert_eq!(included_at(&mined(&host, writer.commit(fields(2))).await), 4);
    assert_eq!(included_at(&mined(&host, writer.commit(fields(3))).await), 5);
    let waiting = writer.commit(fields(4));
    host.fork(2, 0).unwrap();
    let refused = Outcome::PoolRejected { code: 1010, custom: None, class: Class::Transient };
    assert_eq!(waiting.await.unwrap(), refused);
    assert_eq!(committed(5).await, Some((3, fields(1))));
    host.mine(1).await.unwrap();
    assert_eq!(committed(6).await, Some((6, fields(2))));
    // What was made on the lost branch is lost with it, and does not keep those after it waiting.
    assert_eq!(included_at(&mined(&host, writer.commit(fields(5))).await), 7);
    assert_eq!(committed(7).await, Some((7, fields(5))));
}

#[tokio::test]
async fn a_call_that_a_fork_has_made_wait_again_keeps_its_place_before_newer_ones() {
    let (host, writer) = with_neuron().await;
    host.mine(2).await.unwrap();
    assert_eq!(included_at(&mined(&host, writer.commit(fields(1))).await), 4);
    host.fork(1, 0).unwrap();
    let newer = writer.commit(fields(2));
    host.mine(1).await.unwrap();
    assert_eq!(included_at(&newer.await.unwrap()), 5);
    let commitments = host.reader().commitments(Block(5)).await.unwrap();
    assert_eq!(commitments[&writer.hotkey()].fields, fields(2));
}

#[tokio::test]
async fn a_chain_that_is_kept_in_a_file_has_one_branch() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::start(&genesis(), kept(&dir.path().join("chain.redb"))).unwrap();
    let best = host.mine(3).await.unwrap();
    assert!(matches!(host.fork(1, 0), Err(ChainError::Pruned { .. })));
    assert_eq!(host.reader().heads().borrow().best, best);
}

#[tokio::test]
async fn the_faucet_fills_a_subnet_so_that_a_stranger_pushes_somebody_out() {
    let host = on_demand();
    for i in 1..=12 {
        host.dev_register(pair(i).hotkey(), Stake(0)).await.unwrap();
    }
    // Past everybody's immunity.
    host.mine(64).await.unwrap();
    drop(host.sudo(Call::SudoTrimToMaxAllowedUids { netuid: NETUID, max_n: 12 }));
    drop(host.sudo(Call::DevRegister { netuid: NETUID, hotkey: pair(90).hotkey(), stake: 0 }));
    host.mine(1).await.unwrap();
    let metagraph = host.metagraph();
    assert_eq!((metagraph.neurons.len(), metagraph.by_hotkey(&pair(1).hotkey())), (12, None));
    assert_eq!(metagraph.by_hotkey(&pair(90).hotkey()).map(|neuron| neuron.uid), Some(Uid(0)));
}

/// Whether the call has no fate yet.
async fn is_pending(call: &mut ChainFuture<'_, Outcome>) -> bool {
    tokio::select! {
        biased;
        _ = call => false,
        () = std::future::ready(()) => true,
    }
}

#[tokio::test]
async fn whoever_waits_hears_that_the_chain_stopped() {
    let (host, writer) = with_neuron().await;
    let waiting = writer.commit(fields(1));
    host.stop().await;
    assert_eq!(waiting.await, Err(ChainError::Stopped));
    assert_eq!(writer.commit(fields(1)).await, Err(ChainError::Stopped));
    assert_eq!(host.mine(1).await, Err(ChainError::Stopped));
    assert!(host.reader().metagraph(Block(1)).await.is_ok());
}

/// Blocks 1 to 4, one of them with a commitment; the hash of block 4.
async fn four_blocks(host: &Host) -> BlockRef {
    host.dev_register(pair(1).hotkey(), Stake(TAO)).await.unwrap();
    let writer = host.connect(pair(1));
    included_at(&mined(host, writer.commit(fields(1))).await);
    host.mine(2).await.unwrap()
}

#[tokio::test]
async fn a_restarted_chain_goes_on_as_if_it_had_never_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chain.redb");
    let go_on = |host: Host| async move {
        included_at(&mined(&host, host.connect(pair(1)).commit(fields(7))).await);
        host.mine(20).await.unwrap()
    };
    let unbroken = on_demand();
    four_blocks(&unbroken).await;

    let host = Host::start(&genesis(), kept(&path)).unwrap();
    let before = four_blocks(&host).await;
    drop(host);
    // The time of the genesis is the first start's, whatever the second would say.
    let host = Host::start(&Genesis { timestamp_ms: 9_999_999, ..genesis() }, kept(&path)).unwrap();
    let heads = host.reader().heads().borrow();
    assert_eq!((heads.best, heads.finalized.number), (before, Block(2)));
    let commitments = host.reader().commitments(Block(2)).await.unwrap();
    assert_eq!(commitments[&pair(1).hotkey()].fields, fields(1));
    assert_eq!(host.reader().metagraph(Block(0)).await.unwrap().neurons.len(), 0);
    assert_eq!(go_on(host).await, go_on(unbroken).await);
}

#[tokio::test]
async fn a_file_in_use_or_of_another_chain_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chain.redb");
    let refusal = |genesis: &Genesis| match Host::start(genesis, kept(&path)) {
        Err(HostError::Store(error)) => error,
        other => panic!("not refused: {:?}", other.map(|_| ())),
    };
    let host = Host::start(&genesis(), kept(&path)).unwrap();
    assert!(matches!(refusal(&genesis()), StoreError::Locked { .. }));
    // Whoever still holds a reader does not hold the file.
    let reader = host.reader();
    host.stop().await;
    assert!(matches!(refusal(&Genesis { seed: 6, ..genesis() }), StoreError::OtherGenesis { .. }));
    assert!(Host::start(&genesis(), kept(&path)).is_ok());
    drop(reader);
    let missing = kept(&dir.path().join("no/such/directory/chain.redb"));
    assert!(matches!(Host::start(&genesis(), missing), Err(HostError::Store(StoreError::Io { .. }))));
}

#[tokio::test]
async fn a_damaged_file_is_refused_and_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chain.redb");
    let host = Host::start(&genesis(), kept(&path)).unwrap();
    four_blocks(&host).await;
    drop(host);
    let whole = std::fs::read(&path).unwrap();
    let damaged = dir.path().join("damaged.redb");
    let start = |bytes: &[u8]| {
        std::fs::write(&damaged, bytes).unwrap();
        Host::start(&genesis(), kept(&damaged)).map(|host| host.reader().heads().borrow().best)
    };
    for share in 1..8 {
        let started = start(&whole[..whole.len() * share / 8]);
        assert!(
            matches!(started, Err(HostError::Store(StoreError::Corrupt { .. } | StoreError::Io { .. }))),
            "{share}/8"
        );
    }
    assert!(matches!(start(&[7; 5000]), Err(HostError::Store(StoreError::Corrupt { .. }))));
    // A flipped bit is found, or lies where nothing is kept.
    let best = start(&whole).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 60) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        if let Ok(started) = start(&flipped) {
            assert!(started == best || started.number < best.number, "byte {at}");
        }
    }
}

#[tokio::test]
async fn a_config_that_cannot_work_is_refused() {
    let deep = HostConfig { finality_depth: VIEWS_KEPT, ..config(Pace::OnDemand) };
    assert!(matches!(Host::start(&genesis(), deep), Err(HostError::FinalityDepth { .. })));
    let hurried = HostConfig { block_time: Duration::ZERO, ..config(Pace::Real) };
    assert!(matches!(Host::start(&genesis(), hurried), Err(HostError::BlockTime)));
    let root = Genesis { netuid: 0, ..genesis() };
    assert!(matches!(Host::start(&root, config(Pace::OnDemand)), Err(HostError::Genesis(_))));
    let unowned: Hotkey = host::faucet().hotkey();
    assert_eq!(development_genesis(NETUID, 0).sudo, Some(unowned));
}

#[tokio::test]
async fn weights_are_committed_where_the_chain_wants_it_and_opened_by_it() {
    let run = async || {
        let mut genesis = genesis();
        genesis.hyperparameters.commit_reveal_weights_enabled = true;
        let host = Host::start(&genesis, config(Pace::OnDemand)).unwrap();
        host.dev_register(pair(1).hotkey(), Stake(TAO)).await.unwrap();
        host.dev_register(pair(2).hotkey(), Stake(0)).await.unwrap();
        host.mine(10).await.unwrap();
        let writer = host.connect(pair(1));
        let committed = included_at(&mined(&host, writer.set_weights(vec![(Uid(1), Weight(9))], 0)).await);
        let reader = host.reader();
        let metagraph = reader.metagraph(Block(committed)).await.unwrap();
        assert_eq!(metagraph.neurons[0].last_update, Block(committed));
        // Opened in the epoch after their own, they count in the one after that.
        host.mine(20).await.unwrap();
        let best = reader.heads().borrow().best;
        assert_eq!(reader.metagraph(best.number).await.unwrap().neurons[1].incentive, u16::MAX);
        best.hash
    };
    assert_eq!(run().await, run().await, "a run gives the same hashes every time");
}
