//! The iroh endpoint, set up to need nothing but the addresses it is given.
//!
//! Relays, DNS, port mapping and captive portal probes are off: a peer's address comes from its commitment on chain, and a node on
//! a machine without internet starts in milliseconds. Congestion control is BBR3, because a loss based controller falls to a few
//! Mbit/s at 1 % loss and 50 ms round trip (Mathis' bound), which is an ordinary home link.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use convoke::terms::EndpointId;
use iroh::address_lookup::memory::MemoryLookup;
use iroh::endpoint::{
    BindError, ConnectOptions, Connection, IdleTimeout, InvalidSocketAddr, NetReportConfig, PortmapperConfig,
    QuicTransportConfig, VarInt, presets,
};
use iroh::{Endpoint, EndpointAddr, PublicKey, RelayMode, SecretKey};
use noq_proto::congestion::Bbr3Config;

use super::admission::Doorman;

/// Requests one connection may have open. Each may hold a request message of up to 1 MiB.
const STREAMS_MAX: u32 = 16;
/// Bytes in flight on one stream: 168 Mbit/s at 50 ms round trip; parallel fetches use parallel streams.
///
/// It must not be larger. noq (1.4) ends a connection with "too many gaps in stream buffer" when one stream buffers more than 1024
/// spans, and full packets behind a single lost one are not merged. With a window of 6 MiB fetches of 30 MB failed now and then
/// over loopback, where the socket buffer overflows.
pub(super) const STREAM_WINDOW: u32 = 1024 * 1024;
const _: () = assert!(STREAM_WINDOW / 1200 < 1024, "a window of the smallest packets must fit noq's buffer");
/// Bytes in flight on one connection; a peer can make this node hold no more than this.
const CONNECTION_WINDOW: u32 = 12 * 1024 * 1024;
/// A connection that hears nothing for this long is dead. Pings keep a healthy one alive from round to round.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may be idle before it is pinged, at most: iroh takes nothing longer for its paths, and pings of the connection
/// that came less often would come besides.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// The same on the side that dialled. A ping is news for both sides, so the other one never has to send its own.
const KEEP_ALIVE_DIALLED: Duration = Duration::from_millis(4500);

/// Why no endpoint could be bound.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The address cannot be used.
    #[error("cannot use the address {address}")]
    Address {
        /// The address given.
        address: SocketAddr,
        /// What is wrong with it.
        source: InvalidSocketAddr,
    },
    /// Another process has the port, or this node's own former endpoint, which is about to go.
    #[error("{address} is in use by another process: stop it, or choose another address with --set node.bind")]
    InUse {
        /// The address given.
        address: SocketAddr,
    },
    /// The operating system refused the socket.
    #[error("cannot bind {address}")]
    Bind {
        /// The address given.
        address: SocketAddr,
        /// What it said.
        source: BindError,
    },
}

impl EndpointError {
    fn of(address: SocketAddr, source: BindError) -> Self {
        let mut cause = Some(&source as &(dyn std::error::Error + 'static));
        while let Some(error) = cause {
            if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::AddrInUse) {
                return Self::InUse { address };
            }
            cause = error.source();
        }
        Self::Bind { address, source }
    }

    /// Whether somebody else holds the port.
    #[must_use]
    pub fn is_port_in_use(&self) -> bool {
        matches!(self, Self::InUse { .. })
    }
}

/// Binds an endpoint that finds peers only through `addresses`.
pub(super) async fn bind(
    address: SocketAddr,
    secret: SecretKey,
    addresses: MemoryLookup,
    doorman: Doorman,
) -> Result<Endpoint, EndpointError> {
    Endpoint::builder(presets::Minimal)
        .secret_key(secret)
        .relay_mode(RelayMode::Disabled)
        .clear_ip_transports()
        .bind_addr(address)
        .map_err(|source| EndpointError::Address { address, source })?
        .address_lookup(addresses)
        .portmapper_config(PortmapperConfig::Disabled)
        .net_report_config(NetReportConfig::minimal())
        .transport_config(transport_config(KEEP_ALIVE))
        .hooks(doorman)
        .bind()
        .await
        .map_err(|source| EndpointError::of(address, source))
}

/// Connects to a peer whose address the endpoint knows, or is told.
///
/// # Errors
/// What iroh says, in words.
pub(super) async fn dial(endpoint: &Endpoint, peer: impl Into<EndpointAddr>) -> Result<Connection, String> {
    let options = ConnectOptions::new().with_transport_config(transport_config(KEEP_ALIVE_DIALLED));
    let connecting =
        endpoint.connect_with_opts(peer, iroh_blobs::ALPN, options).await.map_err(|error| error.to_string())?;
    connecting.await.map_err(|error| error.to_string())
}

/// Whether somebody who holds this endpoint's key answers there: the handshake shows it, whatever he then thinks of us.
pub async fn answers(id: &EndpointId, address: SocketAddr, within: Duration) -> bool {
    let Ok(id) = PublicKey::from_bytes(&id.0) else { return false };
    let asked = async {
        let builder = Endpoint::builder(presets::Minimal)
            .secret_key(SecretKey::generate())
            .relay_mode(RelayMode::Disabled)
            .portmapper_config(PortmapperConfig::Disabled)
            .net_report_config(NetReportConfig::minimal());
        let Ok(endpoint) = builder.bind().await else { return false };
        let connected = dial(&endpoint, EndpointAddr::new(id).with_ip_addr(address)).await;
        endpoint.close().await;
        connected.is_ok()
    };
    tokio::time::timeout(within, asked).await.unwrap_or(false)
}

fn transport_config(keep_alive: Duration) -> QuicTransportConfig {
    QuicTransportConfig::builder()
        .congestion_controller_factory(Arc::new(Bbr3Config::default()))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .keep_alive_interval(keep_alive)
        .default_path_keep_alive_interval(keep_alive)
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_TIMEOUT).expect("30 s fit the wire format")))
        .datagram_receive_buffer_size(None)
        .build()
}
