//! What a full subnet costs those who read it, and the server that makes its blocks: 256 neurons, each with a commitment.
//!
//! Bytes are counted on the wire, and are the same on every machine; times are printed, and only bounded where a
//! tenfold of them would be a mistake rather than a slow machine.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use convoke::chain::{Genesis, GenesisNeuron};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::chain::host::development_genesis;
use crate::chain::{BlockRef, ChainServer, Pace, ServerConfig};

const NETUID: u16 = 7;
const TAO: u64 = 1_000_000_000;
const N: usize = 256;

fn pair(i: usize) -> HotkeyPair {
    HotkeyPair::from_seed(&[u8::try_from(i).unwrap(); 32])
}

fn genesis() -> Genesis {
    let mut genesis = Genesis { timestamp_ms: 1_000_000, ..development_genesis(NETUID, 5) };
    let neuron = |i| GenesisNeuron { hotkey: pair(i).hotkey(), coldkey: pair(0).hotkey(), stake: TAO };
    genesis.neurons = (0..N).map(neuron).collect();
    genesis
}

/// Passes bytes on to a server, and counts those that come back.
struct Meter {
    address: SocketAddr,
    bytes: Arc<AtomicU64>,
}

impl Meter {
    async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, bytes) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&bytes);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(server).await.unwrap();
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                let counted = Arc::clone(&counted);
                tokio::spawn(async move {
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
                        counted.fetch_add(n as u64, Ordering::Relaxed);
                        if to_client.write_all(&buffer[..n]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, bytes }
    }

    /// What one read comes to.
    async fn of<T>(&self, what: &str, read: impl Future<Output = Result<T, ChainError>>) -> (T, u64, Duration) {
        let (before, started) = (self.bytes.load(Ordering::Relaxed), Instant::now());
        let value = read.await.unwrap();
        let (bytes, took) = (self.bytes.load(Ordering::Relaxed) - before, started.elapsed());
        eprintln!("{what}: {bytes} bytes, {:.1} ms", took.as_secs_f64() * 1e3);
        (value, bytes, took)
    }
}

async fn until(client: &Client, best: BlockRef) {
    let mut heads = client.heads();
    heads.wait_for(|heads| heads.best == best).await.unwrap();
}

/// Every neuron commits what one of a round does; as many in one block as a connection may have subscriptions.
async fn commit_all(server: &ChainServer, client: &Client, byte: u8) {
    for first in (0..N).step_by(16) {
        let calls = (first..first + 16).map(|i| {
            let writer = client.writer(pair(i));
            tokio::spawn(async move { writer.commit(vec![vec![byte; 102], vec![byte; 73], vec![byte; 41]]).await })
        });
        let calls: Vec<_> = calls.collect();
        while server.calls_waiting() < calls.len() {
            assert!(!calls.iter().any(tokio::task::JoinHandle::is_finished), "a call was refused");
            tokio::task::yield_now().await;
        }
        server.mine(1).await.unwrap();
        for call in calls {
            assert!(matches!(call.await.unwrap(), Ok(Outcome::Included { .. })));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_of_a_full_subnet_is_read_once_and_cheaply() {
    let listen = ([127, 0, 0, 1], 0).into();
    let config = ServerConfig { pace: Pace::OnDemand, ..ServerConfig::new(listen, Duration::from_millis(100)) };
    let server = ChainServer::start(&genesis(), config).unwrap();
    let meter = Meter::before(server.address()).await;
    let endpoints = vec![format!("ws://{}", meter.address)];
    let client = Client::connect(ClientConfig { endpoints, netuid: NETUID, block_time: None }).await.unwrap();
    commit_all(&server, &client, 1).await;

    let started = Instant::now();
    let best = server.mine(20).await.unwrap();
    eprintln!("server: {:.1} ms a block", started.elapsed().as_secs_f64() * 1e3 / 20.0);
    until(&client, best).await;
    let at = best.number;
    let (metagraph, metagraph_bytes, _) = meter.of("metagraph", client.metagraph(at)).await;
    assert_eq!(*metagraph, server.ledger().metagraph());
    let (commitments, commitments_bytes, _) = meter.of("commitments", client.commitments(at)).await;
    assert_eq!(*commitments, *server.ledger().commitments());
    // Of hexadecimal text: keys and values of four entries a neuron and three more a validator, and the commitments.
    assert!(metagraph_bytes < 1200 * N as u64, "{metagraph_bytes}");
    assert!(commitments_bytes < 2000 * N as u64, "{commitments_bytes}");

    let next = server.mine(1).await.unwrap();
    until(&client, next).await;
    let (_, bytes, took) = meter.of("metagraph of the next block", client.metagraph(next.number)).await;
    assert!(bytes < metagraph_bytes + 1000 && took < Duration::from_millis(500), "{bytes}");
    let (_, bytes, took) = meter.of("commitments of the next block", client.commitments(next.number)).await;
    // The members are known, and the places within their blocks were read before.
    assert!(bytes < 1200 * N as u64 && took < Duration::from_millis(500), "{bytes}");
    let both = async {
        client.metagraph(next.number).await?;
        client.commitments(next.number).await
    };
    let (_, bytes, _) = meter.of("both again", both).await;
    assert!(bytes < 2000, "what was read is remembered: {bytes}");

    let last = server.mine(1).await.unwrap();
    until(&client, last).await;
    let read = || client.metagraph(last.number);
    let at_once = async {
        let (a, b, c, d) = tokio::join!(read(), read(), read(), read());
        let all = [a?, b?, c?, d?];
        assert!(all.iter().all(|one| Arc::ptr_eq(one, &all[0])));
        Ok(())
    };
    let (_, bytes, _) = meter.of("metagraph, by four at once", at_once).await;
    assert!(bytes < metagraph_bytes + 2000, "{bytes}");
}
