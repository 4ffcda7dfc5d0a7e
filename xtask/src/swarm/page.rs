//! A node's `/status`, fetched and read.
//!
//! The request is HTTP/1.0, whose answer ends with the connection: against our own node on loopback that needs a few
//! lines and no client. The types of the page itself are the node's (`actors/status/report.rs`); importing them would
//! make xtask compile the node, so what is wanted of the page is picked out of it by name, and a name that is missing is
//! an error that names it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// For a page that a node computes from memory; a node that is stopped answers nothing at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// 64 rounds with 256 rejections of 200 bytes each, and as much again.
const PAGE_BYTES_MAX: u64 = 8 << 20;

/// How a round ended on a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// θ moved on, to this digest.
    Step(String),
    /// θ stayed.
    Null,
}

/// A round that a node has completed.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundReport {
    pub round: u64,
    pub ending: Ending,
    pub heldout_loss: Option<f64>,
    pub contributors: Vec<u64>,
    pub computing_secs: f64,
    pub communicating_secs: f64,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    pub uid: Option<u64>,
    /// The round it is in.
    pub round: Option<u64>,
    pub phase: String,
    /// The rounds it has completed, oldest first; those under way are left out.
    pub completed: Vec<RoundReport>,
    /// As last set on chain by this node, by uid.
    pub weights: Vec<(u64, u64)>,
    /// How often its supervisor replaced an actor.
    pub actor_restarts: u64,
}

/// Asks the node at `address`.
pub fn fetch(address: SocketAddr) -> Result<Report> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_TIMEOUT)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    // In one piece, as `write!` would not.
    stream.write_all(format!("GET /status HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(PAGE_BYTES_MAX).read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer).context("/status is not UTF-8")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("/status has no end of its head")?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    ensure!(status == "200", "/status answers {status}");
    read(body)
}

fn read(page: &str) -> Result<Report> {
    let page: Value = serde_json::from_str(page).context("/status is not JSON")?;
    let rounds = field(&page, "rounds")?.as_array().context("/status: `rounds` is no list")?;
    let peers = field(&page, "peers")?.as_object().context("/status: `peers` is no table")?;
    let actors = field(&page, "actors")?.as_object().context("/status: `actors` is no table")?;
    let mut weights = Vec::new();
    for (uid, peer) in peers {
        if let Some(weight) = field(peer, "weight")?.as_u64() {
            weights.push((uid.parse().context("/status: a peer's uid is no number")?, weight));
        }
    }
    weights.sort_unstable();
    Ok(Report {
        uid: field(&page, "uid")?.as_u64(),
        round: field(&page, "round")?.as_u64(),
        phase: text(&page, "phase")?,
        completed: rounds.iter().filter_map(|round| read_round(round).transpose()).collect::<Result<_>>()?,
        weights,
        actor_restarts: actors.values().filter_map(|actor| actor.get("restarts")?.as_u64()).sum(),
    })
}

/// None while the round is under way.
fn read_round(page: &Value) -> Result<Option<RoundReport>> {
    let ending = match text(page, "outcome")?.as_str() {
        "running" => return Ok(None),
        "null" => Ending::Null,
        _ => Ending::Step(text(page, "digest")?),
    };
    let contributors = field(page, "contributors")?.as_array().context("/status: `contributors` is no list")?;
    Ok(Some(RoundReport {
        round: field(page, "round")?.as_u64().context("/status: a round without a number")?,
        ending,
        heldout_loss: field(page, "heldout_loss")?.as_f64(),
        contributors: contributors.iter().filter_map(Value::as_u64).collect(),
        computing_secs: field(page, "computing_seconds")?.as_f64().unwrap_or_default(),
        communicating_secs: field(page, "communicating_seconds")?.as_f64().unwrap_or_default(),
    }))
}

fn field<'a>(page: &'a Value, name: &str) -> Result<&'a Value> {
    page.get(name).with_context(|| format!("/status has no `{name}`"))
}

fn text(page: &Value, name: &str) -> Result<String> {
    let text = field(page, name)?.as_str().with_context(|| format!("/status: `{name}` is no text"))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// As a node writes it, with the fields that are not read here left in.
    const PAGE: &str = r#"{"node":"validator-1","version":"0.1.0","role":"validator","uid":3,"block":70,"round":2,
        "phase":"gather","rounds_completed":1,"uptime_seconds":31.5,"rounds":[
        {"round":0,"outcome":"null","null_reason":"no manifest","digest":null,"inner_steps":0,"train_loss":null,
         "heldout_loss":null,"contributors":[],"rejected":[],"computing_seconds":0.5,"communicating_seconds":0.0},
        {"round":1,"outcome":"outer-step","null_reason":null,"digest":"1a2b3c4d5e","inner_steps":30,"train_loss":2.5,
         "heldout_loss":3.25,"contributors":[4,1],"rejected":[],"computing_seconds":2.0,"communicating_seconds":0.25},
        {"round":2,"outcome":"running","null_reason":null,"digest":null,"inner_steps":9,"train_loss":2.4,
         "heldout_loss":null,"contributors":[],"rejected":[],"computing_seconds":0.0,"communicating_seconds":0.0}],
        "peers":{"4":{"hotkey":null,"score":0.1,"rating":null,"weight":65535},"1":{"hotkey":null,"score":null,
         "rating":null,"weight":100},"9":{"hotkey":null,"score":null,"rating":null,"weight":null}},
        "actors":{"gauntlet":{"healthy":true,"restarts":2,"last_restart":"panic"},
         "compressor":{"healthy":true,"restarts":1,"last_restart":"panic"}}}"#;

    fn expected() -> Report {
        let null = RoundReport {
            round: 0,
            ending: Ending::Null,
            heldout_loss: None,
            contributors: vec![],
            computing_secs: 0.5,
            communicating_secs: 0.0,
        };
        let step = RoundReport {
            round: 1,
            ending: Ending::Step("1a2b3c4d5e".to_owned()),
            heldout_loss: Some(3.25),
            contributors: vec![4, 1],
            computing_secs: 2.0,
            communicating_secs: 0.25,
        };
        Report {
            uid: Some(3),
            round: Some(2),
            phase: "gather".to_owned(),
            completed: vec![null, step],
            weights: vec![(1, 100), (4, 65535)],
            actor_restarts: 3,
        }
    }

    #[test]
    fn a_page_is_read_with_the_completed_rounds_alone() {
        assert_eq!(read(PAGE).unwrap(), expected());
    }

    #[test]
    fn a_name_that_is_missing_is_named() {
        for name in ["outcome", "contributors", "peers", "actors", "phase", "weight", "communicating_seconds"] {
            let page = PAGE.replace(&format!("\"{name}\""), "\"other\"");
            let message = read(&page).unwrap_err().to_string();
            assert!(message.contains(&format!("`{name}`")), "{message}");
        }
        assert!(read("<html>").is_err());
    }

    fn check_fetched(answer: &'static str, fetched: Result<Report, &str>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let node = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let n_bytes = stream.read(&mut request).unwrap();
            assert!(request[..n_bytes].starts_with(b"GET /status HTTP/1.0\r\n"));
            stream.write_all(answer.as_bytes()).unwrap();
            stream.write_all(PAGE.as_bytes()).unwrap();
        });
        assert_eq!(fetch(address).map_err(|error| error.to_string()), fetched.map_err(str::to_owned));
        node.join().unwrap();
    }

    #[test]
    fn a_node_is_asked_over_http() {
        check_fetched("HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n", Ok(expected()));
        check_fetched("HTTP/1.0 404 Not Found\r\n\r\n", Err("/status answers 404"));
    }
}
