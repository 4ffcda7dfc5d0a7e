//! The socket: who may connect, how much of everything a connection gets, and how connections end.
//!
//! The server library answers what comes over a connection. Connections are taken and ended here, since a peer that says
//! half a greeting and then nothing would otherwise be waited for: by the list of connections, and by the end of the
//! server.

use std::time::Duration;

use jsonrpsee::Methods;
use jsonrpsee::server::{
    BatchRequestConfig, PingConfig, Server, ServerConfig as RpcConfig, serve_with_graceful_shutdown, stop_channel,
};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::warn;

/// Connections at once: a full subnet's nodes, and people who look.
pub(super) const CONNECTIONS_MAX: u32 = 512;
/// Subscriptions of one connection; a client has two heads and a call.
pub(super) const SUBSCRIPTIONS_MAX: u32 = 32;
/// Bytes of a request: a query of every key that is allowed in one.
pub(super) const REQUEST_BYTES_MAX: u32 = 4 << 20;
/// Bytes of an answer: the metadata as hexadecimal text, or all commitments of a full subnet.
pub(super) const ANSWER_BYTES_MAX: u32 = 16 << 20;
/// Requests of one batch.
pub(super) const BATCH_MAX: u32 = 64;
/// Answers that a connection may leave unread before it is not read from any more.
pub(super) const UNREAD_MAX: u32 = 256;
/// Connections that are no WebSocket yet: one that became one is not among them.
const GREETINGS_MAX: usize = 2 * CONNECTIONS_MAX as usize;
/// How long a connection may take to become a WebSocket, or to have its one request answered.
const GREETING_TIME_MAX: Duration = Duration::from_secs(5);
/// How long the last answers may take when the server ends.
const FAREWELL_TIME_MAX: Duration = Duration::from_secs(1);
/// Pause after a connection that could not be taken: the process has too many files open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves one generation of connections after the other. The socket that listens outlives them all, so that whoever
/// connects in between waits and is served.
pub(super) async fn serve(
    listener: TcpListener,
    methods: Methods,
    mut generation: watch::Receiver<u64>,
    mut stopped: watch::Receiver<bool>,
) {
    let config = RpcConfig::builder()
        .max_connections(CONNECTIONS_MAX)
        .max_subscriptions_per_connection(SUBSCRIPTIONS_MAX)
        .max_request_body_size(REQUEST_BYTES_MAX)
        .max_response_body_size(ANSWER_BYTES_MAX)
        .set_batch_request_config(BatchRequestConfig::Limit(BATCH_MAX))
        .set_message_buffer_capacity(UNREAD_MAX)
        // A peer that is gone without a word gives its place back.
        .enable_ws_ping(PingConfig::new())
        .build();
    loop {
        generation.borrow_and_update();
        let (stop, server) = stop_channel();
        let services = Server::builder().set_config(config.clone()).to_service_builder();
        let mut greetings = JoinSet::new();
        let is_over = loop {
            let accepted = tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => break true,
                changed = generation.changed() => break changed.is_err(),
                Some(_) = greetings.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, _)) if greetings.len() < GREETINGS_MAX => {
                    // Without it answers wait for acknowledgements; one whose socket is dead already ends by itself.
                    let _ = socket.set_nodelay(true);
                    let service = services.clone().build(methods.clone(), stop.clone());
                    let served = serve_with_graceful_shutdown(socket, service, stop.clone().shutdown());
                    greetings.spawn(timeout(GREETING_TIME_MAX, served));
                }
                Ok(_) => {}
                Err(error) => {
                    warn!(%error, "a connection to the chain cannot be taken");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        };
        // It has stopped by itself only if nothing is left to stop.
        let _ = server.stop();
        drop((greetings, services, stop));
        if is_over {
            // A peer that reads nothing is not waited for.
            let _ = timeout(FAREWELL_TIME_MAX, server.stopped()).await;
            return;
        }
    }
}
