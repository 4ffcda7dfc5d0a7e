//! One request to one holder: asked for, its size checked, its bytes verified as they come.
//!
//! The size that a holder claims with its answer is checked before a byte is kept. If it is not the one wanted, the holder must prove
//! it (`get_verified_size`: the last chunk and its path to the root): then it is a fact about the hash that was sealed, whoever
//! answers. A holder that cannot prove what it claims lies.

use std::time::Duration;

use bao_tree::io::BaoContentItem;
use bytes::{Bytes, BytesMut};
use iroh::endpoint::{Connection, ConnectionError, VarInt};
use iroh_blobs::get::GetError;
use iroh_blobs::get::fsm::{
    self, AtBlobContent, AtBlobHeaderNextError, BlobContentNext, ConnectedNext, DecodeError, EndBlobNext,
};
use iroh_blobs::get::request::get_verified_size;
use iroh_blobs::protocol::{ERR_INTERNAL, ERR_LIMIT, ERR_PERMISSION, GetRequest};
use tokio::time::timeout;

use super::fetch::{FetchError, SizeRule};

/// Requests a blob or a part of it. The answer is where its bytes begin, and the size of the whole, which obeys the rule.
///
/// # Errors
/// The rule's own error where another size is proven, [`FetchError::Corrupt`] for a claim without a proof, and whatever else a
/// holder's answer, or its silence, says.
pub(super) async fn ask(
    connection: &Connection,
    patience: Duration,
    request: GetRequest,
    size: SizeRule,
) -> Result<(AtBlobContent, u64), FetchError> {
    let hash = request.hash;
    let asked = async {
        let connected = fsm::start(connection.clone(), request, fsm::RequestCounters::default()).next().await?;
        let ConnectedNext::StartRoot(root) = connected.next().await? else { return Ok(None) };
        Ok::<_, GetError>(Some(root.next().next().await?))
    };
    let asked = answered(connection, patience, asked).await?.map_err(|error| classify(&error, connection))?;
    let (content, claimed) = asked.expect("a request for one blob starts with its root");
    if size.check(claimed).is_ok() {
        return Ok((content, claimed));
    }
    // It need not send the rest.
    drop(content);
    let proof = answered(connection, patience, get_verified_size(connection, &hash)).await?;
    match proof.map_err(|error| classify(&error, connection)) {
        Ok((proven, _)) => size.check(proven).and(Err(FetchError::Corrupt)),
        Err(FetchError::Unreachable) if connection.close_reason().is_none() => Err(FetchError::Corrupt),
        Err(error) => Err(error),
    }
}

/// Gets a blob that memory is large enough for, by one request; `count` hears of the bytes as they come.
///
/// # Errors
/// As [`ask`].
pub(super) async fn read_whole(
    connection: &Connection,
    patience: Duration,
    request: GetRequest,
    size: SizeRule,
    mut count: impl FnMut(u64),
) -> Result<Bytes, FetchError> {
    let (mut content, size) = ask(connection, patience, request, size).await?;
    let mut bytes = BytesMut::with_capacity(usize::try_from(size).map_err(|_| FetchError::Corrupt)?);
    loop {
        match answered(connection, patience, content.next()).await? {
            BlobContentNext::More((rest, item)) => {
                if let BaoContentItem::Leaf(leaf) = item.map_err(|error| classify(&error.into(), connection))? {
                    count(leaf.data.len() as u64);
                    bytes.extend_from_slice(&leaf.data);
                }
                content = rest;
            }
            BlobContentNext::Done(end) => {
                if let EndBlobNext::Closing(closing) = end.next() {
                    // Everything has come; how the stream ends does not matter.
                    answered(connection, patience, closing.next()).await.ok();
                }
                return Ok(bytes.freeze());
            }
        }
    }
}

/// Waits for a holder's answer. If nothing at all came over the connection meanwhile, the connection is dead and is closed, so that
/// nobody uses it again; if only this answer is missing, the other fetches on it go on.
pub(super) async fn answered<T>(
    connection: &Connection,
    patience: Duration,
    answer: impl Future<Output = T>,
) -> Result<T, FetchError> {
    let heard = || connection.stats().udp_rx.datagrams;
    let before = heard();
    timeout(patience, answer).await.map_err(|_| {
        if heard() == before {
            connection.close(VarInt::from_u32(0), b"no answer");
        }
        FetchError::Unreachable
    })
}

/// What a failed request says about its holder. The provider answers by resetting the stream with a code; an admission refused or a
/// connection too many closes the whole connection with one.
pub(super) fn classify(error: &GetError, connection: &Connection) -> FetchError {
    let closed_with = match connection.close_reason() {
        Some(ConnectionError::ApplicationClosed(close)) => Some(close.error_code),
        _ => None,
    };
    match error.iroh_error_code().or(closed_with) {
        Some(code) if code == ERR_PERMISSION => return FetchError::Refused,
        Some(code) if code == ERR_LIMIT => return FetchError::Busy,
        Some(code) if code == ERR_INTERNAL => return FetchError::NotFound,
        Some(_) => return FetchError::Unreachable,
        None => {}
    }
    match error {
        GetError::AtBlobHeaderNext { source: AtBlobHeaderNextError::NotFound { .. }, .. } => FetchError::NotFound,
        GetError::Decode { source, .. } => match source {
            DecodeError::ChunkNotFound { .. }
            | DecodeError::ParentNotFound { .. }
            | DecodeError::LeafNotFound { .. } => FetchError::NotFound,
            DecodeError::ParentHashMismatch { .. } | DecodeError::LeafHashMismatch { .. } => FetchError::Corrupt,
            DecodeError::Write { .. } => FetchError::Store(error.to_string()),
            _ => FetchError::Unreachable,
        },
        GetError::BadRequest { .. } => FetchError::Corrupt,
        GetError::IrpcSend { .. } => FetchError::Store(error.to_string()),
        // A stream that could not be opened is reported as a local failure too.
        GetError::LocalFailure { .. } if connection.close_reason().is_none() => FetchError::Store(error.to_string()),
        _ => FetchError::Unreachable,
    }
}
