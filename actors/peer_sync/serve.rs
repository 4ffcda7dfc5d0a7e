//! The provider's side of a connection: iroh-blobs reads the store, and asks here before it answers anything.
//!
//! A connection carries requests both ways, so those that this node dialled are served as those that came to it.
//!
//! Each connection has its own channel of questions, answered in the connection's own task; so a question's peer is known without a
//! table of connections, and a peer that floods its channel slows down only itself. Questions that have no rule are not answered,
//! which the provider takes for a refusal.
//!
//! This is our own protocol handler rather than `iroh_blobs::BlobsProtocol`, because that one shuts the store down together with
//! the router, and the router ends whenever any handler panics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iroh::PublicKey;
use iroh::endpoint::Connection;
use iroh::protocol::{AcceptError, ProtocolHandler};
use iroh_blobs::api::Store;
use iroh_blobs::protocol::{ERR_LIMIT, ERR_PERMISSION, GetRequest};
use iroh_blobs::provider::events::{
    AbortReason, ConnectMode, EventMask, EventSender, ObserveMode, ProviderMessage, RequestMode, ThrottleMode,
};
use iroh_blobs::provider::handle_connection;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::admission::{Admission, Meter};
use super::gate::Gate;
use super::stats::{Refusal, Stats, add};

/// `get_many` and `push` are off in the provider itself; `observe` has no such switch, so it is asked for and refused.
const QUESTIONS: EventMask = EventMask {
    connected: ConnectMode::None,
    get: RequestMode::Intercept,
    get_many: RequestMode::Disabled,
    push: RequestMode::Disabled,
    observe: ObserveMode::Intercept,
    throttle: ThrottleMode::Intercept,
};

/// Questions of one connection that may wait for an answer.
const QUESTIONS_WAITING: usize = 32;

/// Serves the store to admitted peers.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub store: Store,
    pub gate: Arc<Gate>,
    pub admission: Arc<Admission>,
    pub stats: Arc<Stats>,
}

impl ProtocolHandler for Server {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        let peer = connection.remote_id();
        let seat = match self.admission.seat(&peer) {
            Ok(seat) => seat,
            Err(reason) => {
                self.stats.refuse(reason);
                let code = if reason == Refusal::Crowded { ERR_LIMIT } else { ERR_PERMISSION };
                connection.close(code, reason.name().as_bytes());
                return Ok(());
            }
        };
        seat.take(&connection);
        let _open = OpenConnection::new(self.stats.clone());
        self.serve(connection, &seat.meter, &AtomicU64::new(0)).await;
        Ok(())
    }
}

impl Server {
    /// Serves a peer on a connection that this node dialled, until it ends; `n_questions` grows with whatever is served.
    pub async fn serve_dialled(self, connection: Connection, n_questions: Arc<AtomicU64>) {
        if let Some(meter) = self.admission.meter(&connection.remote_id()) {
            self.serve(connection, &meter, &n_questions).await;
        }
    }

    async fn serve(&self, connection: Connection, meter: &Meter, n_questions: &AtomicU64) {
        let peer = connection.remote_id();
        let (events, questions) = EventSender::channel(QUESTIONS_WAITING, QUESTIONS);
        tokio::join!(
            handle_connection(connection, self.store.clone(), events),
            self.answer_all(peer, meter, questions, n_questions)
        );
    }

    /// Ends when the connection and all its requests have ended, for they hold the other end of the channel.
    async fn answer_all(
        &self,
        peer: PublicKey,
        meter: &Meter,
        mut questions: mpsc::Receiver<ProviderMessage>,
        n_questions: &AtomicU64,
    ) {
        // At most one pause for each open stream, which the transport configuration bounds.
        let mut pauses = JoinSet::new();
        loop {
            tokio::select! {
                question = questions.recv() => match question {
                    Some(question) => {
                        add(n_questions, 1);
                        self.answer(peer, meter, question, &mut pauses).await;
                    }
                    None => break,
                },
                Some(_) = pauses.join_next() => {}
            }
        }
    }

    async fn answer(&self, peer: PublicKey, meter: &Meter, question: ProviderMessage, pauses: &mut JoinSet<()>) {
        match question {
            ProviderMessage::GetRequestReceived(question) => {
                let answer = self.judge(peer, meter, &question.inner.request);
                question.tx.send(answer).await.ok();
            }
            ProviderMessage::ObserveRequestReceived(question) => {
                self.stats.refuse(Refusal::Disabled);
                question.tx.send(Err(AbortReason::Permission)).await.ok();
            }
            ProviderMessage::Throttle(question) => {
                let size = question.inner.size;
                add(&self.stats.bytes_up, size);
                let now = Instant::now();
                let pause = meter.bytes.lock().expect("no holder of this lock panics").take(size, now);
                if pause.is_zero() {
                    question.tx.send(Ok(())).await.ok();
                } else {
                    pauses.spawn(async move {
                        tokio::time::sleep_until(now + pause).await;
                        question.tx.send(Ok(())).await.ok();
                    });
                }
            }
            _ => {}
        }
    }

    fn judge(&self, peer: PublicKey, meter: &Meter, request: &GetRequest) -> Result<(), AbortReason> {
        let verdict = if !self.admission.admits(&peer) {
            Err(Refusal::Stranger)
        } else if !meter.requests.lock().expect("no holder of this lock panics").try_take(1, Instant::now()) {
            Err(Refusal::TooOften)
        } else {
            self.gate.check_request(request)
        };
        match verdict {
            Ok(()) => {
                add(&self.stats.requests_served, 1);
                Ok(())
            }
            Err(reason) => {
                self.stats.refuse(reason);
                tracing::debug!(peer = %peer.fmt_short(), hash = %request.hash.fmt_short(), reason = reason.name(), "refused");
                Err(if reason == Refusal::TooOften { AbortReason::RateLimited } else { AbortReason::Permission })
            }
        }
    }
}

/// Counts itself in the gauge of open incoming connections, also when its task is cancelled.
struct OpenConnection(Arc<Stats>);

impl OpenConnection {
    fn new(stats: Arc<Stats>) -> Self {
        add(&stats.connections_in, 1);
        Self(stats)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections_in.fetch_sub(1, Ordering::Relaxed);
    }
}
