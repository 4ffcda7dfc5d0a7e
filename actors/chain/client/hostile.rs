//! An endpoint that lies: whatever it says is refused by name, or believed, within bounds and within time; never a panic.
//!
//! The liar stands between a client and an honest server, and changes what comes back.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use convoke::chain::{Genesis, GenesisNeuron};
use convoke::terms::Weight;
use jsonrpsee::RpcModule;
use jsonrpsee::core::server::SubscriptionMessage;
use jsonrpsee::server::{Server, ServerConfig as RpcConfig, ServerHandle};
use serde_json::{Value, json, value::to_raw_value};
use subxt::rpcs::RpcClient;
use subxt::rpcs::client::RpcParams;

use super::*;
use crate::chain::host::development_genesis;
use crate::chain::wire::schema::{self, SUBTENSOR};
use crate::chain::{ChainServer, Pace, Runtime, ServerConfig};

const NETUID: u16 = 7;
const PATIENCE: Duration = Duration::from_secs(60);

/// What becomes of an answer to a method.
type Lie = Box<dyn Fn(&str, Value) -> Value + Send>;

struct Liar {
    honest: ChainServer,
    address: SocketAddr,
    lie: Arc<Mutex<Lie>>,
    _server: ServerHandle,
}

struct Between {
    honest: RpcClient,
    lie: Arc<Mutex<Lie>>,
}

impl Between {
    fn told(&self, method: &str, answer: Value) -> Value {
        (self.lie.lock().unwrap())(method, answer)
    }
}

fn pair(i: u8) -> HotkeyPair {
    HotkeyPair::from_seed(&[i; 32])
}

fn genesis() -> Genesis {
    let mut genesis = development_genesis(NETUID, 5);
    let neuron = |i| GenesisNeuron { hotkey: pair(i).hotkey(), coldkey: pair(9).hotkey(), stake: 5_000_000_000 };
    genesis.neurons = [1, 2, 3].map(neuron).into();
    genesis
}

impl Liar {
    /// One that is honest so far.
    async fn new() -> Self {
        let listen = ([127, 0, 0, 1], 0).into();
        let config = ServerConfig { pace: Pace::OnDemand, ..ServerConfig::new(listen, Duration::from_millis(100)) };
        let honest = ChainServer::start(&genesis(), config).unwrap();
        let lie: Arc<Mutex<Lie>> = Arc::new(Mutex::new(Box::new(|_, answer| answer)));
        let rpc = RpcClient::from_insecure_url(honest.url()).await.unwrap();
        let methods: Value = rpc.request("rpc_methods", RpcParams::new()).await.unwrap();
        let mut module = RpcModule::new(Between { honest: rpc, lie: Arc::clone(&lie) });
        for name in methods["methods"].as_array().unwrap() {
            let name: &'static str = name.as_str().unwrap().to_owned().leak();
            if name.contains("ubscribe") || name.contains("atch") {
                continue;
            }
            let forward = move |params: jsonrpsee::types::Params<'static>, between: Arc<Between>, _| async move {
                let mut passed = RpcParams::new();
                for param in params.parse::<Option<Vec<Value>>>()?.unwrap_or_default() {
                    passed.push(param).unwrap();
                }
                match between.honest.request::<Value>(name, passed).await {
                    Ok(answer) => Ok(between.told(name, answer)),
                    Err(subxt::rpcs::Error::User(error)) => {
                        Err(jsonrpsee::types::ErrorObjectOwned::owned(error.code, error.message, None::<()>))
                    }
                    Err(error) => panic!("{error}"),
                }
            };
            module.register_async_method(name, forward).unwrap();
        }
        for (subscribe, notify, unsubscribe) in [
            ("chain_subscribeNewHeads", "chain_newHead", "chain_unsubscribeNewHeads"),
            ("chain_subscribeFinalizedHeads", "chain_finalizedHead", "chain_unsubscribeFinalizedHeads"),
        ] {
            let forward = move |_, pending: jsonrpsee::PendingSubscriptionSink, between: Arc<Between>, _| async move {
                let sink = pending.accept().await.unwrap();
                let mut heads =
                    between.honest.subscribe::<Value>(subscribe, RpcParams::new(), unsubscribe).await.unwrap();
                while let Some(Ok(head)) = heads.next().await {
                    let told = to_raw_value(&between.told(notify, head)).unwrap();
                    if sink.send(SubscriptionMessage::from(told)).await.is_err() {
                        return;
                    }
                }
            };
            module.register_subscription(subscribe, notify, unsubscribe, forward).unwrap();
        }
        let config = RpcConfig::builder().max_response_body_size(64 << 20).build();
        let server = Server::builder().set_config(config).build("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        Self { honest, address, lie, _server: server.start(module) }
    }

    fn says(&self, lie: impl Fn(&str, Value) -> Value + Send + 'static) {
        *self.lie.lock().unwrap() = Box::new(lie);
    }

    /// Puts these bytes in the place of a storage value.
    fn says_of(&self, entry: &str, bytes: Vec<u8>) {
        let (entry, runtime) = (entry.to_owned(), Runtime::recorded());
        let key = match entry.as_str() {
            "StakeThreshold" | "SubnetOwnerCut" => schema::key(runtime.metadata(), SUBTENSOR, &entry, ()),
            "Keys" => schema::key(runtime.metadata(), SUBTENSOR, &entry, (NETUID, 0_u16)),
            "CommitmentOf" => schema::key(runtime.metadata(), "Commitments", &entry, (NETUID, pair(1).hotkey().0)),
            "BeaconConfig" => schema::key(runtime.metadata(), schema::DRAND, &entry, ()),
            _ => schema::key(runtime.metadata(), SUBTENSOR, &entry, (NETUID,)),
        };
        let (key, value) = (hex(&key.unwrap()), hex(&bytes));
        self.says(move |method, mut answer| {
            if method == "state_queryStorageAt" {
                let changes = answer[0]["changes"].as_array_mut().unwrap();
                for change in changes.iter_mut().filter(|change| change[0] == key) {
                    change[1] = json!(value);
                }
            }
            answer
        });
    }

    fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    async fn client(&self) -> Client {
        Client::connect(ClientConfig { endpoints: vec![self.url()], netuid: NETUID, block_time: None }).await.unwrap()
    }

    /// A new block, and the client's reading of it.
    async fn read(&self, client: &Client) -> Result<Arc<Metagraph>, ChainError> {
        let best = self.honest.mine(1).await.unwrap();
        let read = async {
            client.commitments(best.number).await?;
            client.metagraph(best.number).await
        };
        tokio::time::timeout(PATIENCE, read).await.expect("it has an end")
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn foreign(error: ChainError) -> String {
    match error {
        ChainError::Foreign { reason } => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_none_is_refused_by_its_entrys_name() {
    let liar = Liar::new().await;
    let client = liar.client().await;
    liar.read(&client).await.unwrap();
    for (entry, bytes) in [
        ("Tempo", vec![]),
        ("Tempo", vec![1, 2, 3]),
        ("Burn", vec![7; 200]),
        ("ValidatorPermit", vec![0x0c, 1, 1, 7]),
        // A vector of a gigabyte, of which two bytes came.
        ("LastUpdate", vec![0xfe, 0xff, 0xff, 0xff, 1, 2]),
        ("Emission", vec![0x03, 0xff, 0xff, 0xff, 0xff]),
        ("StakeThreshold", vec![1]),
        ("Keys", vec![5; 31]),
        ("CommitmentOf", vec![0xff; 40]),
    ] {
        liar.says_of(entry, bytes);
        let reason = foreign(liar.read(&client).await.unwrap_err());
        assert!(reason.contains(entry), "{entry}: {reason}");
    }
    liar.says_of("SubnetworkN", vec![0xff, 0xff]);
    assert_eq!(foreign(liar.read(&client).await.unwrap_err()), "a subnet of 65535 neurons");
    liar.says(|_, answer| answer);
    let read = liar.read(&client).await.unwrap();
    assert_eq!(*read, liar.honest.ledger().metagraph());
    assert_eq!(client.connection(), Some((liar.url(), 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_at_their_ends_are_no_overflow() {
    let liar = Liar::new().await;
    let client = liar.client().await;
    for entry in ["Tempo", "LastUpdate", "Burn", "RevealPeriodEpochs", "WeightsSetRateLimit", "BlocksSinceLastStep"] {
        let bytes = match entry {
            "Tempo" => vec![0xff; 2],
            "LastUpdate" => [&[0x0c][..], &[0xff; 24]].concat(),
            _ => vec![0xff; 8],
        };
        liar.says_of(entry, bytes);
        let read = liar.read(&client).await.unwrap();
        assert!(read.weights_due(&pair(1).hotkey()).is_some(), "{entry}");
    }
    // Weights that must be locked for ever, or for a beacon that is none, are not sent.
    for (entry, bytes) in [("RevealPeriodEpochs", vec![0xff; 8]), ("BeaconConfig", vec![0; 70])] {
        let runtime = Runtime::recorded();
        let switch = schema::key(runtime.metadata(), SUBTENSOR, "CommitRevealWeightsEnabled", (NETUID,)).unwrap();
        let switch = hex(&switch);
        liar.says_of(entry, bytes);
        let told = std::mem::replace(&mut *liar.lie.lock().unwrap(), Box::new(|_, answer| answer));
        liar.says(move |method, answer| {
            let mut answer = told(method, answer);
            if method == "state_queryStorageAt" {
                let changes = answer[0]["changes"].as_array_mut().unwrap();
                changes.iter_mut().filter(|change| change[0] == switch).for_each(|change| change[1] = json!("0x01"));
            }
            answer
        });
        let refused = client.writer(pair(1)).set_weights(vec![(Uid(1), Weight(5))], 0).await.unwrap_err();
        foreign(refused);
    }
    assert_eq!(liar.honest.calls_waiting(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn stake_is_what_the_chain_counts_where_there_is_a_root_and_children() {
    let liar = Liar::new().await;
    let client = liar.client().await;
    let runtime = Runtime::recorded();
    let key = |entry: &str, keys: ([u8; 32], u16)| schema::key(runtime.metadata(), SUBTENSOR, entry, keys).unwrap();
    let (first, second, parent) = (pair(1).hotkey().0, pair(2).hotkey().0, [77; 32]);
    let half = (u64::MAX / 2 + 1).to_le_bytes();
    let whole = |tao: u64| (tao * 1_000_000_000).to_le_bytes().to_vec();
    let said = [
        (schema::key(runtime.metadata(), SUBTENSOR, "TaoWeight", ()).unwrap(), half.to_vec()),
        (key("TotalHotkeyAlpha", (first, 0)), whole(8)),
        (key("ChildKeys", (first, NETUID)), [&[4][..], &half, &second].concat()),
        (key("ParentKeys", (second, NETUID)), [&[8][..], &half, &first, &half, &parent].concat()),
        (key("TotalHotkeyAlpha", (parent, NETUID)), whole(40)),
    ];
    let said: Vec<_> = said.iter().map(|(key, value)| (hex(key), hex(value))).collect();
    liar.says(move |method, mut answer| {
        if method != "state_queryStorageAt" {
            return answer;
        }
        for change in answer[0]["changes"].as_array_mut().unwrap() {
            if let Some((_, value)) = said.iter().find(|(key, _)| change[0] == *key) {
                change[1] = json!(value);
            }
        }
        answer
    });
    let read = liar.read(&client).await.unwrap();
    let stakes: Vec<_> = read.neurons.iter().map(|neuron| neuron.stake.0).collect();
    // Each has 5. The first has 8 on the root, which count half, and passes half of all on: 2.5 + 2. The second has that
    // and half of the 40 of a parent that is not on the subnet.
    assert_eq!(stakes, [4_500_000_000, 29_500_000_000, 5_000_000_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_end_is_cut_off_and_another_connection_tried() {
    let liar = Liar::new().await;
    let client = liar.client().await;
    liar.says(|method, answer| if method == "state_queryStorageAt" { json!("a".repeat(20 << 20)) } else { answer });
    let read = liar.read(&client).await.unwrap_err();
    assert!(matches!(read, ChainError::Unreachable { .. }), "{read:?}");
    liar.says(|_, answer| answer);
    let recovered = async {
        loop {
            if let Ok(read) = liar.read(&client).await {
                return read;
            }
        }
    };
    let read = tokio::time::timeout(PATIENCE, recovered).await.unwrap();
    assert_eq!(read.neurons.len(), 3);
    assert!(client.connection().unwrap().1 > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_are_none_end_the_connection_and_absurd_times_are_not_believed() {
    let liar = Liar::new().await;
    liar.says(|method, mut answer| {
        if method == "system_properties" {
            answer["blockTimeMs"] = json!(u64::MAX);
        }
        answer
    });
    let client = liar.client().await;
    assert_eq!(client.block_time(), Duration::from_secs(12), "Subtensor's");
    for nonsense in [json!(7), json!({ "number": "0xzz" }), json!(null), json!(["a", { "b": [] }])] {
        let before = client.connection().map_or(0, |connection| connection.1);
        liar.says(move |method, answer| if method == "chain_newHead" { nonsense.clone() } else { answer });
        liar.honest.mine(1).await.unwrap();
        let replaced = client.link.replaced(before);
        tokio::time::timeout(PATIENCE, replaced).await.expect("the connection is given up");
        liar.says(|_, answer| answer);
        let best = liar.honest.mine(1).await.unwrap();
        let mut heads = client.heads();
        let seen = heads.wait_for(|heads| heads.best.number >= best.number);
        tokio::time::timeout(PATIENCE, seen).await.expect("it comes back").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_chain_is_not_connected_to() {
    let liar = Liar::new().await;
    for method in ["state_call", "chain_getBlockHash", "chain_getHeader", "state_getRuntimeVersion"] {
        for nonsense in [json!(null), json!("0x00"), json!(hex(&[0xff; 32])), json!({}), json!([[1]])] {
            liar.says(move |asked, answer| if asked == method { nonsense.clone() } else { answer });
            let config = ClientConfig { endpoints: vec![liar.url()], netuid: NETUID, block_time: None };
            // Refused, or tried again until somebody loses patience.
            let connected = tokio::time::timeout(Duration::from_millis(300), Client::connect(config)).await;
            if let Ok(Err(error)) = connected {
                assert!(matches!(error, ChainError::Foreign { .. } | ChainError::Pruned { .. }), "{method}: {error:?}");
            }
        }
    }
}
