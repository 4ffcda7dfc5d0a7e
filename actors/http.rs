//! The node's pages: `/metrics` for Prometheus, `/health` and `/ready` for what restarts and routes, `/status` for people.
//!
//! They only read. A page is computed from memory at the time of the request and takes no part in a round; if the
//! server dies the node trains on.

use std::future::IntoFuture;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::metrics::{Metrics, spawn_upkeep};
use crate::status::StatusBoard;

/// What a stop waits for answers that are under way.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// The media type of Prometheus' text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Why the pages cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Another process listens there.
    #[error("{addr} is in use by another process: stop it, or choose another address with --http")]
    InUse {
        /// The address.
        addr: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// Why not.
        source: io::Error,
    },
}

/// The running server.
pub struct HttpServer {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    server: JoinHandle<io::Result<()>>,
}

#[derive(Clone)]
struct Pages {
    board: StatusBoard,
    metrics: Arc<Metrics>,
}

/// The pages' address, taken before anything else of the node starts.
pub struct Listening {
    addr: SocketAddr,
    listener: TcpListener,
}

/// Takes `addr` for the pages; port 0 takes a free one.
///
/// # Errors
/// If the address cannot be listened on: the node should not start, since its operator could not see it.
pub async fn bind(addr: SocketAddr) -> Result<Listening, HttpError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => HttpError::InUse { addr },
        _ => HttpError::Bind { addr, source },
    };
    let listener = TcpListener::bind(addr).await.map_err(failed)?;
    Ok(Listening { addr: listener.local_addr().map_err(failed)?, listener })
}

impl Listening {
    /// Serves the pages, and does the metrics' upkeep. Must be called within a Tokio runtime.
    #[must_use]
    pub fn serve(self, board: StatusBoard, metrics: Arc<Metrics>) -> HttpServer {
        spawn_upkeep(&metrics);
        let (stop, mut stopped) = watch::channel(false);
        let serving = axum::serve(self.listener, router(Pages { board, metrics })).with_graceful_shutdown(async move {
            // A dropped server stops as well.
            let _ = stopped.wait_for(|stop| *stop).await;
        });
        HttpServer { addr: self.addr, stop, server: tokio::spawn(serving.into_future()) }
    }
}

impl HttpServer {
    /// Where the pages are.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Takes no more requests, and lets those under way end within a second.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        match tokio::time::timeout(STOP_TIMEOUT, &mut self.server).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "pages ended with an error"),
            Ok(Err(error)) => tracing::warn!(%error, "pages ended with an error"),
            Err(_) => self.server.abort(),
        }
    }
}

fn router(pages: Pages) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/status", get(status))
        .with_state(pages)
}

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, TEXT_FORMAT)], pages.metrics.render())
}

async fn health(State(pages): State<Pages>) -> Response {
    let health = pages.board.health();
    (good_or_unavailable(health.healthy), Json(health)).into_response()
}

async fn ready(State(pages): State<Pages>) -> Response {
    let readiness = pages.board.readiness();
    (good_or_unavailable(readiness.ready), Json(readiness)).into_response()
}

async fn status(State(pages): State<Pages>) -> impl IntoResponse {
    Json(pages.board.snapshot())
}

fn good_or_unavailable(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

#[cfg(test)]
mod tests {
    use convoke::terms::{Block, Digest, Hotkey, Round, RunId, Uid};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::metrics::{NodeFacts, Vocabulary};
    use crate::status::{Freshness, Identity, Status};

    const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    fn board() -> StatusBoard {
        let age = Duration::from_secs(600);
        let text = || "a".to_owned();
        let identity = Identity {
            node: text(),
            version: text(),
            role: text(),
            run_id: RunId::default(),
            hotkey: Hotkey::default(),
        };
        StatusBoard::new(identity, Freshness { head_age_max: age, round_age_max: age })
    }

    fn registry() -> Arc<Metrics> {
        let text = || "a".to_owned();
        let facts = NodeFacts { node: text(), version: text(), role: text(), run_id: text(), quantiser: text() };
        let vocabulary = Vocabulary {
            actors: &[],
            restart_reasons: &[],
            phases: &[],
            reject_reasons: &[],
            refuse_reasons: &[],
            call_kinds: &[],
        };
        Metrics::new(&facts, &vocabulary)
    }

    async fn serve(addr: SocketAddr, board: StatusBoard, metrics: Arc<Metrics>) -> Result<HttpServer, HttpError> {
        Ok(bind(addr).await?.serve(board, metrics))
    }

    /// The status code, the head, and the body.
    async fn ask(addr: SocketAddr, path: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), head.to_owned(), body.to_owned())
    }

    #[tokio::test]
    async fn each_page_answers_and_others_are_not_found() {
        let (board, metrics) = (board(), registry());
        let server = serve(LOOPBACK, board.clone(), metrics.clone()).await.unwrap();
        metrics.gpu_worker.tokens.increment(12);
        board.outer_step(Round(1), Digest([3; 32]), &[Uid(1)]);
        let (code, head, body) = ask(server.addr(), "/metrics").await;
        assert!(code == 200 && head.contains(TEXT_FORMAT) && body.contains("convoke_tokens_total{node=\"a\"} 12\n"));
        let (code, head, body) = ask(server.addr(), "/status").await;
        assert!(code == 200 && head.contains("application/json"));
        assert_eq!(serde_json::from_str::<Status>(&body).unwrap().rounds, board.snapshot().rounds);
        assert_eq!(ask(server.addr(), "/health").await.2, r#"{"healthy":true,"reason":null}"#);
        assert_eq!(ask(server.addr(), "/else").await.0, 404);
        server.stop().await;
    }

    #[tokio::test]
    async fn readiness_and_health_show_in_the_status_code() {
        let board = board();
        let server = serve(LOOPBACK, board.clone(), registry()).await.unwrap();
        assert_eq!(ask(server.addr(), "/ready").await.0, 503);
        board.head(Block(1), Block(1));
        board.theta_held(true);
        assert_eq!(ask(server.addr(), "/ready").await.0, 200);
        assert_eq!(ask(server.addr(), "/health").await.0, 200);
        board.gave_up("restart budget of gauntlet spent");
        assert_eq!(ask(server.addr(), "/health").await.0, 503);
        server.stop().await;
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let server = serve(LOOPBACK, board(), registry()).await.unwrap();
        let error = serve(server.addr(), board(), registry()).await.err().unwrap();
        assert!(error.to_string().starts_with(&format!("{} is in use", server.addr())), "{error}");
        server.stop().await;
    }

    #[tokio::test]
    async fn a_stop_frees_the_port_though_a_client_hangs_on() {
        let server = serve(LOOPBACK, board(), registry()).await.unwrap();
        let addr = server.addr();
        let mut idle = TcpStream::connect(addr).await.unwrap();
        idle.write_all(b"GET /health HTTP/1.1\r\n").await.unwrap();
        server.stop().await;
        let again = serve(addr, board(), registry()).await.unwrap();
        again.stop().await;
    }
}
