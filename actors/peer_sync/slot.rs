//! Where the transport stays while its actor comes and goes.
//!
//! After a panic the actor starts again at once and must find its port and its store. Both resist: the socket is released only
//! when the last clone of the endpoint is gone, and a store that is dropped without an orderly close keeps its database locked for
//! as long as its collector lives, which is until the process ends (both measured with iroh 1.4.1 and iroh-blobs 0.104.0). So the
//! supervisor owns a [`TransportSlot`]. A new actor acquires the same transport, with its connections and its gate as they were; a
//! transport that does not answer any more is closed and opened anew, on the same port.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::gate::Gate;
use super::stats::Stats;
use super::transport::{Transport, TransportConfig, TransportError};

/// Patience of the first opening: nobody but a stranger can have the port then, and the operator is waiting to be told.
const FIRST_PATIENCE: Duration = Duration::from_millis(200);

/// The place where a node's transport stays while its actor comes and goes. Owned by the supervisor.
pub struct TransportSlot {
    gate: Arc<Gate>,
    stats: Arc<Stats>,
    content: Mutex<SlotContent>,
}

struct SlotContent {
    /// The address becomes the one that was bound, so that the next transport gets the same port.
    config: TransportConfig,
    transport: Option<Transport>,
    was_opened: bool,
}

impl TransportSlot {
    /// An empty slot: the transport is opened when it is first acquired.
    #[must_use]
    pub fn new(config: TransportConfig) -> Self {
        Self {
            gate: Arc::new(Gate::default()),
            stats: Arc::new(Stats::default()),
            content: Mutex::new(SlotContent { config, transport: None, was_opened: false }),
        }
    }

    /// The transport, as it was if it is healthy, else opened anew on the port it had. Counts and the head go on in both cases;
    /// after an opening the caller must admit its peers again.
    ///
    /// # Errors
    /// As [`Transport::open`].
    pub async fn acquire(&self) -> Result<Transport, TransportError> {
        let mut content = self.content.lock().await;
        if let Some(transport) = content.transport.clone() {
            if transport.is_healthy().await {
                return Ok(transport);
            }
            tracing::warn!("the transport does not answer and is opened anew");
            transport.shutdown().await;
            content.transport = None;
        }
        let mut config = content.config.clone();
        if !content.was_opened {
            config.patience = config.patience.min(FIRST_PATIENCE);
        }
        let transport = Transport::open_with(config, self.gate.clone(), self.stats.clone()).await?;
        content.was_opened = true;
        content.config.bind = transport.address();
        Ok(content.transport.insert(transport).clone())
    }

    /// What has passed, over all transports that were in this slot.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Shuts the transport down, if there is one.
    pub async fn close(&self) {
        if let Some(transport) = self.content.lock().await.transport.take() {
            transport.shutdown().await;
        }
    }
}
