//! Whoever can reach the socket can say anything to it: the chain goes on, and its other clients notice nothing.

use std::time::Duration;

use convoke::terms::Block;
use serde_json::{Value, json};
use subxt::rpcs::RpcClient;
use subxt::rpcs::client::{RpcParams, RpcSubscription};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::socket::{BATCH_MAX, CONNECTIONS_MAX, REQUEST_BYTES_MAX, SUBSCRIPTIONS_MAX};
use super::*;
use crate::chain::host::development_genesis;
use crate::chain::{ChainRead, Client, ClientConfig};

const NETUID: u16 = 7;
const PATIENCE: Duration = Duration::from_secs(60);

/// A chain with a block every 50 ms, and a client of it that means well.
struct Scene {
    server: ChainServer,
    client: Client,
}

impl Scene {
    async fn new() -> Self {
        let config =
            ServerConfig { faults: true, ..ServerConfig::new(([127, 0, 0, 1], 0).into(), Duration::from_millis(50)) };
        let server = ChainServer::start(&development_genesis(NETUID, 5), config).unwrap();
        let config = ClientConfig { endpoints: vec![server.url()], netuid: NETUID, block_time: None };
        let client = Client::connect(config).await.unwrap();
        Self { server, client }
    }

    async fn socket(&self) -> TcpStream {
        TcpStream::connect(self.server.address()).await.unwrap()
    }

    async fn rpc(&self) -> RpcClient {
        RpcClient::from_insecure_url(self.server.url()).await.unwrap()
    }

    /// What the server answers to a request's body.
    async fn post(&self, body: &[u8]) -> String {
        let mut socket = self.socket().await;
        let length = body.len();
        let head = format!(
            "POST / HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n",
            self.server.address()
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        // The server may have heard enough before all of it is said.
        drop(socket.write_all(body).await);
        let mut answer = Vec::new();
        let read = timeout(PATIENCE, socket.read_to_end(&mut answer)).await;
        drop(read.expect("the server says something, or hangs up"));
        String::from_utf8(answer).unwrap()
    }

    /// A WebSocket, past its handshake.
    async fn web_socket(&self) -> TcpStream {
        let mut socket = self.socket().await;
        let head = format!(
            "GET / HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
            self.server.address()
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 1024];
        let n = socket.read(&mut answer).await.unwrap();
        assert!(answer[..n].starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer[..n]));
        socket
    }

    /// The chain makes blocks, the client that means well follows them on its first connection, and another may come.
    async fn is_well(&self) {
        let at = self.server.heads().best.number;
        let mut heads = self.client.heads();
        let follows = heads.wait_for(|heads| heads.best.number > Block(at.0 + 2));
        timeout(PATIENCE, follows).await.expect("blocks come").unwrap();
        let best = self.client.heads().borrow().best.number;
        assert_eq!(self.client.metagraph(best).await.unwrap().block, best);
        assert_eq!(self.client.connection(), Some((self.server.url(), 0)), "it was not disturbed");
        let name: String = self.rpc().await.request("system_name", RpcParams::new()).await.unwrap();
        assert_eq!(name, NODE_NAME);
    }
}

/// Reads until the other side hangs up.
async fn ends(socket: &mut TcpStream) {
    let mut rest = Vec::new();
    // A reset is an end too.
    drop(timeout(PATIENCE, socket.read_to_end(&mut rest)).await.expect("the server hangs up"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_protocol_are_hung_up_on() {
    let scene = Scene::new().await;
    for garbage in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"SSH-2.0-OpenSSH_9\r\n\r\n", &[0; 20_000]] {
        let mut socket = scene.socket().await;
        drop(socket.write_all(garbage).await);
        ends(&mut socket).await;
    }
    // A frame of a kind that no WebSocket has.
    let mut socket = scene.web_socket().await;
    socket.write_all(&[0x83, 0x80, 0, 0, 0, 0]).await.unwrap();
    ends(&mut socket).await;
    // One without its mask, whose text is no request, is answered with the number of its error; one that announces more
    // bytes than there are is answered or hung up on, and no memory is kept for it.
    let lengthy = [&[0x82, 0xff][..], &(1_u64 << 62).to_be_bytes(), &[0; 4]].concat();
    for (frame, code, may_end) in [(vec![0x81, 0x02, b'{', b'}'], "-32700", false), (lengthy, "-32007", true)] {
        let mut socket = scene.web_socket().await;
        socket.write_all(&frame).await.unwrap();
        // The server may say other things first: it asks whether somebody is there.
        let answered = async {
            let (mut heard, mut some) = (Vec::new(), [0; 1024]);
            while let Ok(n @ 1..) = socket.read(&mut some).await {
                heard.extend_from_slice(&some[..n]);
                if String::from_utf8_lossy(&heard).contains(code) {
                    return true;
                }
            }
            false
        };
        let answered = timeout(PATIENCE, answered).await.expect("it is answered, or hung up on");
        assert!(answered || may_end, "{frame:?}");
    }
    scene.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_handshake_keeps_nobody_out_and_does_not_hold_up_the_end() {
    // Both ends of every connection are files of this process.
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = rustix::process::Rlimit { current: files.maximum, ..files };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, most).unwrap();
    let scene = Scene::new().await;
    let mut held = Vec::new();
    for i in 0..CONNECTIONS_MAX + 20 {
        let mut socket = scene.socket().await;
        let half: &[u8] = if i % 2 == 0 { b"GET / HTTP/1.1\r\nHost: chain\r\nUpg" } else { b"" };
        socket.write_all(half).await.unwrap();
        held.push(socket);
    }
    held.push(scene.web_socket().await);
    scene.is_well().await;
    timeout(Duration::from_secs(10), scene.server.stop()).await.expect("the server stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_too_many_or_too_deep_has_its_error() {
    let scene = Scene::new().await;
    let request = |params: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"system_name","params":[{params}]}}"#);
    let huge = request(&format!("\"{}\"", "a".repeat(REQUEST_BYTES_MAX as usize)));
    let answer = scene.post(huge.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413") || answer.contains("-32007"), "{answer}");
    let batch = format!("[{}]", vec![request(""); BATCH_MAX as usize + 1].join(","));
    let answer = scene.post(batch.as_bytes()).await;
    assert!(answer.contains("-32010"), "{answer}");
    let batch = format!("[{}]", vec![request(""); BATCH_MAX as usize].join(","));
    assert_eq!(scene.post(batch.as_bytes()).await.matches(NODE_NAME).count(), BATCH_MAX as usize);
    for open in ["[", "{\"a\":"] {
        let deep = request(&open.repeat(100_000));
        let answer = scene.post(deep.as_bytes()).await;
        assert!(answer.contains("-32700") || answer.contains("-32600"), "{answer}");
    }
    // The same depth, well formed, as the argument of a method that reads one.
    let nested = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let body = request(&nested).replace("system_name", "state_getStorage");
    let answer = scene.post(body.as_bytes()).await;
    assert!(answer.contains("\"error\""), "{answer}");
    scene.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_its_share_of_subscriptions_and_no_more() {
    let scene = Scene::new().await;
    let mut held: Vec<RpcSubscription<Value>> = Vec::new();
    let mut n_refused = 0;
    for _ in 0..40 {
        let rpc = scene.rpc().await;
        for _ in 0..SUBSCRIPTIONS_MAX + 10 {
            let heads = rpc.subscribe("chain_subscribeNewHeads", RpcParams::new(), "chain_unsubscribeNewHeads");
            match heads.await {
                Ok(heads) => held.push(heads),
                Err(subxt::rpcs::Error::User(error)) => {
                    assert_eq!(error.code, -32006, "{error}");
                    n_refused += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert_eq!((held.len(), n_refused), (40 * SUBSCRIPTIONS_MAX as usize, 400));
    // Nobody reads them; the chain does not wait for that.
    scene.is_well().await;
    let last = held.last_mut().unwrap();
    assert!(timeout(PATIENCE, last.next()).await.unwrap().unwrap().is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_survives_every_argument() {
    let scene = Scene::new().await;
    let rpc = scene.rpc().await;
    let methods: Value = rpc.request("rpc_methods", RpcParams::new()).await.unwrap();
    let methods: Vec<_> = methods["methods"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(methods.len() > 25 && methods.contains(&"state_call"), "{methods:?}");
    let hash = format!("0x{}", "11".repeat(32));
    let wrong = [
        json!([]),
        json!([null]),
        json!([null, null, null, null]),
        json!([{ "a": 1 }]),
        json!([[[[[]]]]]),
        json!([-1]),
        json!([1.5, 2.5]),
        json!([u64::MAX, u64::MAX, u64::MAX]),
        json!(["0x"]),
        json!(["0xzz", "0xzz"]),
        json!(["0x123"]),
        json!(["Metadata_metadata_at_version", "0x"]),
        json!(["AccountNonceApi_account_nonce", "0x01"]),
        json!([hash.clone()]),
        json!([hash.clone(), hash.clone(), hash.clone()]),
        json!(["x".repeat(100_000)]),
        json!([vec!["0x00"; 9000]]),
        json!([["0x00", 7]]),
        json!([true, "0x00"]),
        json!(["0x", u32::MAX, "0xff"]),
    ];
    // These would end or hold up what the others are tried on.
    let is_meant =
        |name: &&str| ["dev_dropSockets", "dev_upgradeRuntime", "dev_stallBlocks", "dev_mine"].contains(name);
    for method in methods.iter().filter(|name| !is_meant(name)) {
        for arguments in &wrong {
            let mut params = RpcParams::new();
            arguments.as_array().unwrap().iter().for_each(|argument| params.push(argument).unwrap());
            let answer = timeout(PATIENCE, rpc.request::<Value>(method, params)).await;
            match answer.expect("every request is answered") {
                // An answer, or an error of the method's own with its code.
                Ok(_) => {}
                Err(subxt::rpcs::Error::User(error)) => {
                    assert!(error.code < 0 || (1000..5000).contains(&error.code), "{method} {arguments}: {error}");
                    assert_ne!(
                        error.code,
                        jsonrpsee::types::error::INTERNAL_ERROR_CODE,
                        "{method} {arguments}: {error}"
                    );
                    assert!(!error.message.is_empty());
                }
                Err(error) => panic!("{method} {arguments}: {error}"),
            }
        }
    }
    scene.server.stall_finality(false);
    scene.is_well().await;
}
