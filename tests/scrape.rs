//! A real Prometheus scrapes a swarm of processes by the configuration that the project ships, and every query of every board is
//! answered. Where there is no `prometheus` on the path (Debian's package of that name has it) there is nothing to ask.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

mod harness;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use convoke::terms::Round;
use harness::swarm::{Swarm, free_port};
use serde_json::Value;
use tokio::time::Instant;

/// What the boards' variables stand for.
const VARIABLES: [(&str, &str); 2] = [("$__rate_interval", "20s"), ("$node", ".*")];
const PATIENCE: Duration = Duration::from_secs(60);

struct Prometheus {
    child: Child,
    at: SocketAddr,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Prometheus {
    /// Starts it on the shipped configuration with these targets, scraping every second; `None` if it is not installed.
    fn start(dir: &Path, targets: &[SocketAddr]) -> Option<Self> {
        let boards = boards();
        let shipped = std::fs::read_to_string(boards.join("prometheus.yml")).unwrap();
        let list: Vec<String> = targets.iter().map(|target| format!("{:?}", target.to_string())).collect();
        let config = shipped
            .replace("scrape_interval: 5s", "scrape_interval: 1s")
            .replace("- alerts.yml", &format!("- {:?}", boards.join("alerts.yml")))
            .replace("targets: [\"127.0.0.1:9464\"]", &format!("targets: [{}]", list.join(", ")));
        assert!(config.contains("scrape_interval: 1s") && config.contains(&list[0]), "{config}");
        let path = dir.join("prometheus.yml");
        std::fs::write(&path, config).unwrap();
        let at = free_port();
        let log = std::fs::File::create(dir.join("prometheus.log")).unwrap();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", path.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()));
        command.arg(format!("--web.listen-address={at}")).stdout(Stdio::null()).stderr(log);
        match command.spawn() {
            Ok(child) => Some(Self { child, at }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => panic!("prometheus: {error}"),
        }
    }

    /// The answer of its query page; `None` while it is not up.
    fn ask(&self, query: &str) -> Option<Value> {
        let escaped: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let mut socket = TcpStream::connect(self.at).ok()?;
        write!(socket, "GET /api/v1/query?query={escaped} HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        socket.read_to_string(&mut text).ok()?;
        serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()
    }

    /// How many series answer a query.
    fn series(&self, query: &str) -> usize {
        let answer = self.ask(query).unwrap_or_default();
        answer["data"]["result"].as_array().map_or(0, Vec::len)
    }
}

fn boards() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("dashboards")
}

/// Every query of every panel, with where it stands.
fn queries() -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for entry in std::fs::read_dir(boards()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let board: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        for panel in board["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let place = format!("{}: {}", path.file_stem().unwrap().display(), panel["title"]);
                let text = target["expr"].as_str().unwrap().to_owned();
                let query = VARIABLES.iter().fold(text, |text, (name, value)| text.replace(name, value));
                queries.push((place, query));
            }
        }
    }
    queries
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_prometheus_scrapes_a_swarm_and_every_panel_gets_an_answer() {
    let mut swarm = Swarm::new(&[]).await;
    swarm.start_all(&["val", "vic"], "validator");
    swarm.start("ada", "miner", &[]);
    // Panels that show only what went wrong have something to show.
    let faults = ["gpu-worker:inner-steps:3:panic", "gauntlet:check:3:hang"].map(str::to_owned);
    swarm.start("bob", "miner", &faults);
    let names = ["val", "vic", "ada", "bob"];
    let targets = names.map(|name| swarm.http(name));
    let Some(prometheus) = Prometheus::start(swarm.dir.path(), &targets) else {
        eprintln!("there is no prometheus on the path: nothing is asked");
        return;
    };
    swarm.until_completed("ada", Round(4)).await;
    let weights = |events: &[convoke_node::events::Line]| {
        events.iter().any(|line| matches!(line.event, convoke_node::events::Event::WeightsSet { .. }))
    };
    swarm.until("val", "weights are set", weights).await;
    let queries = queries();
    assert!(queries.len() > 50, "only {} queries", queries.len());
    let started = Instant::now();
    let mut looks = tokio::time::interval(Duration::from_millis(500));
    loop {
        let up = prometheus.series("up == 1");
        let silent: Vec<_> = queries.iter().filter(|(_, query)| prometheus.series(query) == 0).collect();
        if up == names.len() && silent.is_empty() {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "{up} targets are up; no answer to {silent:#?}");
        looks.tick().await;
    }
}
