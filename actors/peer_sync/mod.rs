//! Payloads, manifests and state between peers, over iroh (design §8).
//!
//! ```text
//!                  TransportSlot        outlives the actor: a restarted actor finds the same port and the same store
//!                       │ acquire
//!                   Transport ──────────── one endpoint, one store, one set of admitted peers
//!          publish │     │ fetch, gather              ▲ connections from peers
//!                  ▼     ▼                            │
//!               store   fetch ── connections ──▶ iroh endpoint ──▶ serve ── gate (revealed yet?), admission (who?), budget (how much?)
//!                       state ── pieces (who brings which?)
//! ```
//!
//! Reading order: [`gate`] (the rule a round's fairness rests on), [`admission`], `serve`, [`fetch`], `pieces` and [`state`] (θ for those
//! who join), [`transport`], [`slot`], [`net`] (the seam between the actor and all of it).
//!
//! - Who may connect is the chain's registry, and nobody else: a stranger is turned away at the end of the handshake.
//! - What may be read is what was published here or fetched here, from its reveal block on; all else is refused alike, so a
//!   refusal does not tell whether this node holds a blob.
//! - No byte is kept of a blob whose size is not the one sealed on chain.
//! - Two peers need one connection, whoever dialled it: either side asks and is answered on it.
//! - Gossip is not used: what must be known is pulled by hash, from any holder.

pub mod admission;
pub mod budget;
mod connections;
pub mod endpoint;
pub mod fetch;
pub mod gate;
pub mod net;
pub(crate) mod pieces;
mod request;
mod serve;
pub mod slot;
pub mod state;
pub mod stats;
pub mod store;
pub mod theta;
pub mod transport;

#[cfg(test)]
mod state_tests;
#[cfg(test)]
mod tests;

mod actor;
pub use actor::{Msg, PeerSync, Wanted};
pub use fetch::SizeRule;
pub use gate::Reveal;
pub use store::Kind;
pub use theta::StateBrought;
