//! What iroh does by itself: its own endpoint and transport defaults, `BlobsProtocol` on one side, `remote().fetch` on the other, both
//! with file stores. The baseline of every transfer that is measured.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use iroh::endpoint::presets;
use iroh::protocol::Router;
use iroh::{Endpoint, EndpointAddr, RelayMode, SecretKey};
use iroh_blobs::store::fs::FsStore;
use iroh_blobs::{BlobsProtocol, Hash};

/// An endpoint on loopback that knows nobody.
async fn endpoint(secret: SecretKey) -> Result<Endpoint> {
    let endpoint = Endpoint::builder(presets::Minimal)
        .secret_key(secret)
        .relay_mode(RelayMode::Disabled)
        .clear_ip_transports()
        .bind_addr(SocketAddr::from(([127, 0, 0, 1], 0)))?
        .bind()
        .await?;
    Ok(endpoint)
}

/// A blob, served until this is dropped or shut down.
pub struct Served {
    router: Router,
    /// The blob's.
    pub hash: Hash,
    /// Where it is served.
    pub address: SocketAddr,
}

impl Served {
    /// Serves these bytes; also tells how long the store took to take them.
    pub async fn start(secret: SecretKey, dir: &Path, bytes: Bytes) -> Result<(Self, Duration)> {
        let store = FsStore::load(dir).await?;
        let started = Instant::now();
        let tag = store.add_bytes(bytes).await?;
        let writing = started.elapsed();
        let endpoint = endpoint(secret).await?;
        let address = *endpoint.bound_sockets().first().context("no socket")?;
        let router = Router::builder(endpoint).accept(iroh_blobs::ALPN, BlobsProtocol::new(&store, None)).spawn();
        Ok((Self { router, hash: tag.hash, address }, writing))
    }

    /// Ends it.
    pub async fn shutdown(self) -> Result<()> {
        Ok(self.router.shutdown().await?)
    }
}

/// Seconds of one transfer into a new store, connecting included.
pub async fn fetch(holder: &SecretKey, address: SocketAddr, hash: Hash, dir: &Path) -> Result<f64> {
    let dir = tempfile::tempdir_in(dir)?;
    let store = FsStore::load(dir.path()).await?;
    let endpoint = endpoint(SecretKey::from_bytes(&[99; 32])).await?;
    let started = Instant::now();
    let address = EndpointAddr::new(holder.public()).with_ip_addr(address);
    let connection = endpoint.connect(address, iroh_blobs::ALPN).await?;
    store.remote().fetch(connection, hash).await?;
    let elapsed = started.elapsed().as_secs_f64();
    endpoint.close().await;
    store.shutdown().await?;
    Ok(elapsed)
}
