//! What an operator sees of a running node: the pages, and every metric of the table fed by a real round.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use convoke_node::http;
use convoke_node::metrics::declared;
use convoke_node::status::Outcome;
use harness::{World, miner, stop, validator};

/// Metrics that three rounds must have moved.
const FED: &[&str] = &[
    "convoke_rounds_total",
    "convoke_round_seconds",
    "convoke_round_spent_seconds",
    "convoke_outer_step_seconds",
    "convoke_contributions_total",
    "convoke_inner_steps_total",
    "convoke_tokens_total",
    "convoke_train_loss",
    "convoke_heldout_loss",
    "convoke_learning_rate",
    "convoke_gradient_norm",
    "convoke_encode_seconds",
    "convoke_payload_bytes",
    "convoke_error_feedback_norm",
    "convoke_quantisation_error_ratio",
    "convoke_network_bytes_total",
    "convoke_fetches_total",
    "convoke_connected_peers",
    "convoke_payloads_gathered",
    "convoke_evaluations_total",
    "convoke_evaluation_seconds",
    "convoke_weight_ratio",
    "convoke_chain_best_block",
    "convoke_chain_calls_total",
    "convoke_actor_up",
    "convoke_restart_budget_left",
];

/// The body of a page, which must answer with this code.
fn page(address: SocketAddr, path: &str, code: u16) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with(&format!("HTTP/1.1 {code} ")), "{path}: {head}");
    body.to_owned()
}

/// The sum of every series of each metric, by the metric's name as it is declared.
fn sums(exposition: &str) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for line in exposition.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let name = series.split('{').next().unwrap();
        *sums.entry(name.to_owned()).or_insert(0.0) += value.parse::<f64>().unwrap();
    }
    sums
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_node_exports_what_the_boards_show_and_nothing_else() {
    let (ada, bob, eve) = (miner("ada", 1), miner("bob", 2), validator("eve", 3));
    let sets = ["run.gauntlet.burn_share=0.1", "run.gauntlet.burn_uid=0"];
    let world = World::new(&[ada.clone(), bob.clone(), eve.clone()], &sets).await;
    let nodes = vec![world.start(&ada, &[]).await, world.start(&bob, &[]).await, world.start(&eve, &[]).await];
    let weights_are_set = || nodes[2].parts.journal.status.snapshot().peers.values().any(|peer| peer.weight.is_some());
    let completed = || nodes.iter().map(|node| node.parts.journal.status.rounds_completed()).min().unwrap_or(0);
    world.until("three rounds, and weights", 400, || completed() >= 3 && weights_are_set()).await;

    let mut seen = BTreeSet::new();
    let mut totals: BTreeMap<String, f64> = BTreeMap::new();
    for node in &nodes {
        let journal = &node.parts.journal;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = http::bind(any).await.unwrap().serve(journal.status.clone(), journal.metrics.clone());
        let address = server.addr();
        let pages = tokio::task::spawn_blocking(move || {
            ["/metrics", "/status", "/health", "/ready"].map(|path| page(address, path, 200))
        });
        let [metrics, status, ..] = pages.await.unwrap();
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        assert_eq!(status["uid"].as_u64(), journal.status.snapshot().uid.map(|uid| u64::from(uid.0)));
        assert!(status["uid"].is_u64() && status["actors"].as_object().unwrap().len() == 6, "{status}");
        for (name, sum) in sums(&metrics) {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
                let base = name.strip_suffix(end)?;
                declared().any(|metric| metric.name == base).then(|| base.to_owned())
            });
            let name = base.unwrap_or(name);
            *totals.entry(name.clone()).or_insert(0.0) += sum;
            seen.insert(name);
        }
        server.stop().await;
    }
    let status = nodes[2].parts.journal.status.snapshot();
    let ended = status.rounds.iter().filter(|round| round.outcome == Outcome::OuterStep);
    assert!(ended.clone().count() >= 3 && ended.clone().all(|round| round.digest.is_some()));
    assert!(status.peers.values().any(|peer| peer.score.is_some()), "{:?}", status.peers);
    stop(nodes).await;

    let table: BTreeSet<String> = declared().map(|metric| metric.name.to_owned()).collect();
    let unknown: Vec<_> = seen.difference(&table).collect();
    assert!(unknown.is_empty(), "exported, but not in the table that boards are held against: {unknown:?}");
    let missing: Vec<_> = table.difference(&seen).collect();
    assert!(missing.is_empty(), "in the table, but not exported: {missing:?}");
    let silent: Vec<_> = FED.iter().filter(|name| totals.get(**name).is_none_or(|total| *total == 0.0)).collect();
    assert!(silent.is_empty(), "nobody feeds {silent:?}");
}
