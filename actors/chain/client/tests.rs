//! The real client against the real server over loopback: what one says, the other reads, whatever happens to the socket.
//!
//! Blocks are made on demand where a test follows them, and every 100 ms where it needs a clock. Every wait ends with a
//! state; the limit on it is there for a test that fails.

use std::path::Path;
use std::time::Duration;

use convoke::chain::{Genesis, GenesisNeuron, Hyperparameters};
use convoke::terms::Weight;

use super::*;
use crate::chain::host::development_genesis;
use crate::chain::wire::schema::SUBTENSOR;
use crate::chain::{
    BlockRef, CallFault, ChainServer, Class, Heads, Pace, Runtime, ServeError, ServerConfig, StoreError,
};

const NETUID: u16 = 7;
const TAO: u64 = 1_000_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

fn pair(i: u8) -> HotkeyPair {
    HotkeyPair::from_seed(&[i; 32])
}

/// Three neurons from the start, the first two with stake; a rich coldkey (seed 100).
fn genesis() -> Genesis {
    let mut genesis = Genesis { timestamp_ms: 1_000_000, ..development_genesis(NETUID, 5) };
    genesis.balances.insert(pair(100).hotkey(), 10 * TAO);
    let neuron = |(i, stake)| GenesisNeuron { hotkey: pair(i).hotkey(), coldkey: pair(100).hotkey(), stake };
    genesis.neurons = [(1, 3 * TAO), (2, TAO), (3, 0)].map(neuron).into();
    genesis
}

fn config(pace: Pace) -> ServerConfig {
    let listen = ([127, 0, 0, 1], 0).into();
    ServerConfig { pace, faults: true, ..ServerConfig::new(listen, Duration::from_millis(100)) }
}

fn serve(config: ServerConfig) -> ChainServer {
    ChainServer::start(&genesis(), config).unwrap()
}

async fn connect(endpoints: &[String]) -> Client {
    let config = ClientConfig { endpoints: endpoints.to_vec(), netuid: NETUID, block_time: None };
    Client::connect(config).await.unwrap()
}

/// The newer recorded runtime, where its recording lies beside this checkout.
fn newer_runtime() -> Option<Runtime> {
    let newer = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/metadata/subtensor-381-v16.scale");
    std::fs::read(newer).ok().map(|bytes| Runtime::decode(bytes).unwrap())
}

async fn on_demand() -> (ChainServer, Client) {
    let server = serve(config(Pace::OnDemand));
    let client = connect(&[server.url()]).await;
    (server, client)
}

/// Waits until the client's heads are as asked.
async fn until(client: &Client, what: &str, is_so: impl Fn(&Heads) -> bool) -> Heads {
    let mut heads = client.heads();
    let seen = tokio::time::timeout(PATIENCE, heads.wait_for(is_so)).await;
    seen.unwrap_or_else(|_| panic!("never seen: {what}")).unwrap()
}

/// The fate of a call, making blocks while it waits for one.
async fn mined(server: &ChainServer, mut call: ChainFuture<'_, Outcome>) -> Outcome {
    loop {
        match tokio::time::timeout(Duration::from_millis(10), &mut call).await {
            Ok(outcome) => return outcome.unwrap(),
            Err(_) if server.calls_waiting() > 0 => drop(server.mine(1).await.unwrap()),
            Err(_) => {}
        }
    }
}

fn included(outcome: &Outcome) -> Block {
    match outcome {
        Outcome::Included { block, .. } => *block,
        other => panic!("not included: {other:?}"),
    }
}

fn fields(byte: u8) -> Vec<Vec<u8>> {
    vec![vec![byte; 102], vec![], vec![byte; 300]]
}

fn weights() -> Vec<(Uid, Weight)> {
    vec![(Uid(0), Weight(30)), (Uid(2), Weight(60))]
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_advance_and_finality_stays_behind_them() {
    let (server, client) = on_demand().await;
    assert_eq!(client.genesis(), server.genesis());
    assert_eq!((client.block_time(), client.netuid()), (Duration::from_millis(100), NETUID));
    assert_eq!(client.heads().borrow(), server.heads());
    server.mine(5).await.unwrap();
    let is_so = |heads: &Heads| heads.best.number == Block(5) && heads.finalized.number == Block(3);
    assert_eq!(until(&client, "block 5", is_so).await, server.heads());
    server.stall_finality(true);
    server.mine(5).await.unwrap();
    let heads = until(&client, "block 10", |heads| heads.best.number == Block(10)).await;
    assert_eq!(heads.finalized.number, Block(3));
    server.stall_finality(false);
    server.mine(1).await.unwrap();
    until(&client, "block 9 final", |heads| heads.finalized.number == Block(9)).await;
    assert_eq!(client.block_hash(Block(9)).await, Ok(Some(server.heads().finalized.hash)));
    assert_eq!(client.block_hash(Block(0)).await, Ok(Some(server.genesis())));
    assert_eq!(client.block_hash(Block(12)).await, Ok(None));
}

#[tokio::test(flavor = "multi_thread")]
async fn commitments_and_weights_land_and_every_block_reads_as_the_ledger_had_it() {
    let (server, client) = on_demand().await;
    let mut ledgers = vec![server.ledger()];
    let outcome = {
        let writer = client.writer(pair(1));
        let call = writer.commit(fields(4));
        mined(&server, call).await
    };
    let committed_at = included(&outcome);
    // The first neuron alone has the stake of a majority.
    let (first, second) = (client.writer(pair(1)), client.writer(pair(2)));
    let set = mined(&server, first.set_weights(weights(), 3)).await;
    included(&mined(&server, second.commit(fields(5))).await);
    ledgers.push(server.ledger());
    // Past an epoch, so that there is incentive to read.
    server.mine(20).await.unwrap();
    ledgers.push(server.ledger());
    until(&client, "the last block", |heads| heads.best.number == ledgers[2].header().number).await;
    for ledger in &ledgers {
        let at = ledger.header().number;
        let read = client.metagraph(at).await.unwrap();
        assert_eq!(read.neurons, ledger.metagraph().neurons, "{at}");
        assert_eq!(*read, ledger.metagraph(), "{at}");
        assert_eq!(*client.commitments(at).await.unwrap(), *ledger.commitments(), "{at}");
    }
    assert!(ledgers[2].metagraph().neurons[2].incentive > 0 && ledgers[2].metagraph().epoch_index > 0);
    assert_eq!(ledgers[2].metagraph().neurons[0].last_update, included(&set));
    assert_eq!(client.commitments(committed_at).await.unwrap()[&pair(1).hotkey()].fields, fields(4));
    let best = ledgers[2].header().number;
    let early = client.metagraph(Block(best.0 + 1)).await.unwrap_err();
    assert_eq!(early, ChainError::NotYet { block: Block(best.0 + 1), best });
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_one_block_have_their_order() {
    let (server, client) = on_demand().await;
    let writers = [3, 1, 2].map(|i| client.writer(pair(i)));
    let mut calls = Vec::new();
    for (writer, byte) in writers.iter().zip(0..) {
        let mut call = writer.commit(fields(byte));
        let waits = usize::from(byte) + 1;
        while server.calls_waiting() < waits {
            let polled = tokio::time::timeout(Duration::from_millis(10), &mut call).await;
            assert!(polled.is_err(), "{polled:?}");
        }
        calls.push(call);
    }
    let best = server.mine(1).await.unwrap();
    for call in calls {
        assert_eq!(included(&call.await.unwrap()), best.number);
    }
    until(&client, "that block", |heads| heads.best == best).await;
    let read = client.commitments(best.number).await.unwrap();
    let place = |i| read[&pair(i).hotkey()].index;
    assert_eq!((place(3), place(1), place(2)), (0, 1, 2));
    assert_eq!(*read, *server.ledger().commitments());
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_pool_and_block_have_their_names() {
    let (server, client) = on_demand().await;
    let limited = client.writer(pair(2));
    let set = included(&mined(&server, limited.set_weights(weights(), 0)).await);
    let class = Class::RateLimited(Block(set.0 + 10));
    until(&client, "that block", |heads| heads.best.number >= set).await;
    let refused = limited.set_weights(weights(), 0).await.unwrap();
    assert_eq!(refused, Outcome::PoolRejected { code: 1010, custom: Some(6), class });

    let failed = |name: &str, class| Outcome::DispatchFailed { name: name.to_owned(), class };
    let stranger = client.writer(pair(9));
    let outcome = mined(&server, stranger.commit(fields(1))).await;
    assert_eq!(outcome, failed("AccountNotAllowedCommit", Class::NotRegistered));
    let outcome = mined(&server, stranger.set_weights(weights(), 0)).await;
    assert_eq!(outcome, failed("HotKeyNotRegisteredInSubNet", Class::NotRegistered));
    let without_permit = client.writer(pair(3));
    let outcome = mined(&server, without_permit.set_weights(weights(), 0)).await;
    assert_eq!(outcome, failed("NeuronNoValidatorPermit", Class::NoPermit));
    let twice = vec![(Uid(1), Weight(3)), (Uid(1), Weight(3))];
    let outcome = mined(&server, client.writer(pair(1)).set_weights(twice, 0)).await;
    assert_eq!(outcome, failed("DuplicateUids", Class::BadArgs));
    let long = client.writer(pair(1)).commit(vec![vec![0; 513]]).await.unwrap();
    assert!(matches!(long, Outcome::PoolRejected { class: Class::BadArgs, .. }), "{long:?}");
}

/// The weights that a slot holds, as anybody reads them.
async fn stored_weights(client: &Client, at: BlockRef, uid: u16) -> Vec<(u16, u16)> {
    let online = client.link.online().await.unwrap();
    let at = online.at(at.number, at.hash).await.unwrap();
    let mut values = values::Values::new(&at, NETUID);
    values.want(SUBTENSOR, "Weights", (NETUID, uid)).unwrap();
    values.fetch(&online).await.unwrap();
    values.get(SUBTENSOR, "Weights", (NETUID, uid)).unwrap().unwrap()
}

/// Commits weights on a chain that shows itself as `runtime`, and follows them until they count.
async fn check_committed_weights(runtime: Runtime) {
    let mut genesis = genesis();
    genesis.hyperparameters.commit_reveal_weights_enabled = true;
    let config = ServerConfig { runtimes: vec![runtime], ..config(Pace::OnDemand) };
    let server = ChainServer::start(&genesis, config).unwrap();
    let client = connect(&[server.url()]).await;
    server.mine(4).await.unwrap();
    let head = until(&client, "block 4", |heads| heads.best.number == Block(4)).await.best;
    let predicted = server.ledger().schedule().reveal_block(head.number, 1).unwrap();
    let committed = included(&mined(&server, client.writer(pair(1)).set_weights(weights(), 3)).await);
    let ledger = server.ledger();
    let commits: Vec<_> = ledger.timelocked_commits().values().flatten().collect();
    assert_eq!((commits.len(), commits[0].hotkey, commits[0].block), (1, pair(1).hotkey(), committed));
    // The commit is what dates the weights, which is how a node knows that it is on chain.
    let read = client.metagraph(committed).await.unwrap();
    assert_eq!(read.neurons[0].last_update, committed);
    assert!(read.hyperparameters.commit_reveal_weights_enabled);
    // Nobody reads them before the epoch for which they were locked.
    let mut best = server.heads().best;
    while best.number.0 + 1 < predicted.0 {
        assert!(stored_weights(&client, best, 0).await.is_empty(), "{}", best.number);
        best = server.mine(1).await.unwrap();
    }
    server.mine(9).await.unwrap();
    best = server.heads().best;
    assert_eq!(stored_weights(&client, best, 0).await, [(0, 32_768), (2, 65_535)]);
    assert_eq!(*server.ledger().weights(Uid(0)), [(0, 32_768), (2, 65_535)]);
    assert!(server.ledger().timelocked_commits().is_empty());
    // The next epoch pays by them.
    server.mine(10).await.unwrap();
    best = server.heads().best;
    until(&client, "the next epoch", |heads| heads.best == best).await;
    let read = client.metagraph(best.number).await.unwrap();
    assert!(read.neurons[2].incentive > read.neurons[1].incentive, "{:?}", read.neurons);
    assert_eq!(*read, server.ledger().metagraph());
    // The rate limit is the commit's.
    included(&mined(&server, client.writer(pair(1)).set_weights(weights(), 3)).await);
    until(&client, "that commit", |heads| heads.best == server.heads().best).await;
    let refused = client.writer(pair(1)).set_weights(weights(), 3).await.unwrap();
    assert!(matches!(refused, Outcome::PoolRejected { class: Class::RateLimited(_), .. }), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_weights_are_hidden_until_their_epoch_and_then_count() {
    check_committed_weights(Runtime::recorded()).await;
    match newer_runtime() {
        Some(newer) => check_committed_weights(newer).await,
        None => eprintln!("the recording of spec version 381 is not here: tested with 365 alone"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_committed_by_the_clock_are_opened_by_the_clock() {
    let mut genesis = genesis();
    genesis.hyperparameters.commit_reveal_weights_enabled = true;
    let server = ChainServer::start(&genesis, config(Pace::Real)).unwrap();
    let client = connect(&[server.url()]).await;
    // The genesis is of another time than the blocks.
    until(&client, "block 1", |heads| heads.best.number >= Block(1)).await;
    included(&client.writer(pair(1)).set_weights(weights(), 3).await.unwrap());
    let opened = |_: &Heads| !server.ledger().weights(Uid(0)).is_empty();
    let opened = until(&client, "the weights", opened).await.best.number;
    assert!(opened >= Block(10), "{opened}");
    assert_eq!(*server.ledger().weights(Uid(0)), [(0, 32_768), (2, 65_535)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_bought_within_its_limit_and_the_faucet_gives_once() {
    let (server, client) = on_demand().await;
    let writer = client.writer(pair(8));
    let price = server.ledger().metagraph().burn;
    let cheap = mined(&server, writer.register(pair(100), price - 1)).await;
    let name = "RegistrationPriceLimitExceeded".to_owned();
    assert_eq!(cheap, Outcome::DispatchFailed { name, class: Class::Fatal });
    included(&mined(&server, writer.register(pair(100), price)).await);
    assert_eq!(server.ledger().metagraph().neurons[3].hotkey, pair(8).hotkey());

    let server = serve(config(Pace::Real));
    let client = connect(&[server.url()]).await;
    assert!(client.is_development().await.unwrap() && client.has_subnet(Block(0)).await.unwrap());
    let poor = pair(60).hotkey();
    assert_eq!(client.dev_fund(poor, 5 * TAO).await, Ok(5 * TAO));
    assert_eq!(client.dev_fund(poor, TAO).await, Ok(5 * TAO), "it takes nothing away");
    assert_eq!(server.ledger().balance(&poor), 5 * TAO);
    let ask = |i: u8| client.dev_register(pair(i).hotkey(), Stake(5 * TAO));
    let (a, b) = tokio::join!(ask(20), ask(21));
    let mut uids = [a.unwrap().0, b.unwrap().0];
    uids.sort_unstable();
    assert_eq!(uids, [3, 4]);
    let again = ask(20).await.unwrap();
    let metagraph = server.ledger().metagraph();
    assert_eq!(metagraph.by_uid(again).unwrap().hotkey, pair(20).hotkey());
    assert!(metagraph.by_uid(again).unwrap().permit && metagraph.neurons.len() == 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_sockets_and_a_restarted_server_are_survived_and_the_chain_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("chain.redb");
    let kept = |listen| ServerConfig { file: Some(file.clone()), listen, ..config(Pace::Real) };
    let server = serve(kept(([127, 0, 0, 1], 0).into()));
    let client = connect(&[server.url()]).await;
    let writer = client.writer(pair(1));
    let at = included(&writer.commit(fields(1)).await.unwrap());
    server.drop_sockets();
    let dropped_at = server.heads().best.number;
    until(&client, "a head after the sockets dropped", |heads| heads.best.number > Block(dropped_at.0 + 1)).await;
    assert_eq!(client.connection().map(|connection| connection.1 > 0), Some(true));
    included(&writer.commit(fields(2)).await.unwrap());

    let address = server.address();
    server.stop().await;
    let (stopped_at, ledger) = (server.heads().best, server.ledger());
    drop(server);
    let server = serve(kept(address));
    assert!(server.heads().best.number >= stopped_at.number);
    until(&client, "a head after the restart", |heads| heads.best.number > stopped_at.number).await;
    // States from before the restart are still there, the pruned-away past excepted.
    assert_eq!(*client.metagraph(stopped_at.number).await.unwrap(), ledger.metagraph());
    assert_eq!(client.block_hash(stopped_at.number).await, Ok(Some(stopped_at.hash)));
    let read = client.commitments(at).await.unwrap();
    assert_eq!(read[&pair(1).hotkey()].fields, fields(1));
    included(&writer.commit(fields(3)).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_chain_is_waited_for() {
    let server = serve(config(Pace::Real));
    let client = connect(&[server.url()]).await;
    until(&client, "block 2", |heads| heads.best.number >= Block(2)).await;
    server.stall_blocks(true);
    let before = client.connection().unwrap().1;
    let rebuilt = client.link.replaced(before);
    tokio::time::timeout(PATIENCE, rebuilt).await.expect("the watchdog tries another connection");
    let stalled_at = server.heads().best.number;
    assert_eq!(client.metagraph(stalled_at).await.unwrap().block, stalled_at);
    server.stall_blocks(false);
    until(&client, "blocks again", |heads| heads.best.number > Block(stalled_at.0 + 2)).await;
    included(&client.writer(pair(1)).commit(fields(1)).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_endpoint_of_the_same_chain_takes_over_and_one_of_another_never_does() {
    let other = ChainServer::start(&Genesis { seed: 99, ..genesis() }, config(Pace::Real)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let kept = || ServerConfig { file: Some(dir.path().join("chain.redb")), ..config(Pace::Real) };
    let server = serve(kept());
    let second = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nowhere = "ws://127.0.0.1:1".to_owned();
    let client = connect(&[nowhere, server.url(), other.url(), format!("ws://{second}")]).await;
    assert_eq!(client.connection(), Some((server.url(), 0)));
    server.stop().await;
    let stopped_at = server.heads().best.number;
    drop(server);
    let server = serve(ServerConfig { listen: second, ..kept() });
    until(&client, "a head of the second", |heads| heads.best.number > Block(stopped_at.0 + 1)).await;
    assert_eq!(client.connection().unwrap().0, server.url());
    assert_eq!(client.genesis(), server.genesis());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_replaces_blocks_and_the_calls_in_them_land_again() {
    let server = serve(ServerConfig { finality_depth: 6, ..config(Pace::OnDemand) });
    let client = connect(&[server.url()]).await;
    server.mine(3).await.unwrap();
    let outcome = mined(&server, client.writer(pair(1)).commit(fields(1))).await;
    let Outcome::Included { block, hash } = outcome else { panic!("{outcome:?}") };
    let dropped = server.mine(1).await.unwrap();
    until(&client, "the dropped block", |heads| heads.best == dropped).await;
    let depth = dropped.number.0 + 1 - block.0;
    let forked = server.fork(depth).await.unwrap();
    assert_eq!(forked.number, Block(dropped.number.0 + 1));
    until(&client, "the fork", |heads| heads.best == forked).await;
    assert_ne!(client.block_hash(block).await, Ok(Some(hash)));
    let read = client.commitments(forked.number).await.unwrap();
    assert_eq!(read[&pair(1).hotkey()].fields, fields(1));
    assert_eq!(*read, *server.ledger().commitments());
    let too_deep = server.fork(30).await.unwrap_err();
    assert!(matches!(too_deep, ChainError::Pruned { .. }), "{too_deep:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_upgrade_between_two_blocks_is_no_event() {
    let newer = newer_runtime().unwrap_or_else(|| {
        eprintln!("the recording of spec version 381 is not here: tested with 365 under that number");
        Runtime::recorded().with_spec_version(381)
    });
    let server = serve(ServerConfig { runtimes: vec![Runtime::recorded(), newer], ..config(Pace::OnDemand) });
    let client = connect(&[server.url()]).await;
    let writer = client.writer(pair(1));
    let before = included(&mined(&server, writer.commit(fields(1))).await);
    let read_before = client.metagraph(before).await.unwrap();
    server.upgrade_runtime(381);
    let upgraded = server.mine(1).await.unwrap();
    until(&client, "the upgraded block", |heads| heads.best == upgraded).await;
    assert_eq!(*client.metagraph(upgraded.number).await.unwrap(), server.ledger().metagraph());
    let after = included(&mined(&server, writer.commit(fields(2))).await);
    included(&mined(&server, client.writer(pair(2)).set_weights(weights(), 0)).await);
    assert_eq!(client.commitments(after).await.unwrap()[&pair(1).hotkey()].fields, fields(2));
    assert_eq!(client.commitments(before).await.unwrap()[&pair(1).hotkey()].fields, fields(1));
    assert_eq!(client.metagraph(before).await.unwrap(), read_before);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_lost_or_unheard_have_an_end() {
    let (server, client) = on_demand().await;
    let writer = client.writer(pair(1));
    server.fault_next_call(writer.hotkey(), CallFault::LoseAnswer);
    let mut unheard = writer.commit(fields(1));
    let outcome = loop {
        match tokio::time::timeout(Duration::from_millis(10), &mut unheard).await {
            Ok(outcome) => break outcome,
            Err(_) => drop(server.mine(1).await.unwrap()),
        }
    };
    assert_eq!(outcome, Ok(Outcome::Unknown));
    assert_eq!(server.ledger().commitments()[&writer.hotkey()].fields, fields(1));
    server.fault_next_call(writer.hotkey(), CallFault::Drop);
    let before = server.heads().best.number;
    until(&client, "the best block", |heads| heads.best.number == before).await;
    let outcome = mined(&server, writer.commit(fields(2))).await;
    assert_eq!(outcome, Outcome::Expired);
    assert!(server.heads().best.number >= Block(before.0 + 63));
    server.fault_next_call(writer.hotkey(), CallFault::Delay(3));
    let before = server.heads().best.number;
    let late = included(&mined(&server, writer.commit(fields(3))).await);
    assert!(late >= Block(before.0 + 4), "{late} after {before}");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_states_are_gone_and_their_hashes_are_not() {
    let (server, client) = on_demand().await;
    server.mine(520).await.unwrap();
    until(&client, "block 520", |heads| heads.best.number == Block(520) && heads.finalized.number == Block(518)).await;
    let gone = client.metagraph(Block(3)).await.unwrap_err();
    assert_eq!(gone, ChainError::Pruned { block: Block(3), oldest: Block(518) });
    assert!(client.metagraph(Block(9)).await.is_ok());
    assert!(client.block_hash(Block(3)).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_work_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let start = |genesis: &Genesis, file: &Path| {
        let config = ServerConfig { file: Some(file.to_owned()), ..config(Pace::OnDemand) };
        ChainServer::start(genesis, config).err()
    };
    let file = dir.path().join("chain.redb");
    let server = serve(ServerConfig { file: Some(file.clone()), ..config(Pace::OnDemand) });
    assert!(matches!(start(&genesis(), &file), Some(ServeError::Store(StoreError::Locked { .. }))));
    server.mine(3).await.unwrap();
    server.stop().await;
    let other = Genesis { hyperparameters: Hyperparameters::default(), ..genesis() };
    assert!(matches!(start(&other, &file), Some(ServeError::Store(StoreError::OtherGenesis { .. }))));
    let foreign = dir.path().join("foreign.redb");
    std::fs::write(&foreign, [7; 5000]).unwrap();
    assert!(matches!(start(&genesis(), &foreign), Some(ServeError::Store(StoreError::Corrupt { .. }))));
    let whole = std::fs::read(&file).unwrap();
    for share in 1..8 {
        std::fs::write(&foreign, &whole[..whole.len() * share / 8]).unwrap();
        assert!(matches!(start(&genesis(), &foreign), Some(ServeError::Store(_))), "{share}/8");
    }
    let hurried = ServerConfig { block_time: Duration::ZERO, ..config(Pace::Real) };
    assert!(matches!(ChainServer::start(&genesis(), hurried), Err(ServeError::BlockTime)));
    let deep = ServerConfig { finality_depth: 512, ..config(Pace::Real) };
    assert!(matches!(ChainServer::start(&genesis(), deep), Err(ServeError::FinalityDepth { .. })));
}
