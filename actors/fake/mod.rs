//! A whole run in one thread and in virtual time: the real actors of every node, and fakes of what is outside of them.
//!
//! ```text
//!   plan (seed, rates or script) ──> world ──> weather: links, slowness            log ──> one hash a run
//!                                      │                                            ▲
//!                 a node each:  Parts, the real actors ── events ──> checks ────────┘
//!                                │       │        │        │
//!                        chain (ours, in   net   disk   trainer       each behind the fence of one life of the node
//!                        virtual time)
//! ```
//!
//! What is real: the supervision tree, RoundClock and its procedures, Compressor, PeerSync, Gauntlet, ChainWriter, GpuWorker, the
//! development chain's ledger and pool, payloads, manifests, scores. What is fake: the network below PeerSync ([`net`]), the disk below
//! the store ([`disk`]), the model and its data ([`trainer`]), the threads of the benches (tasks whose work takes virtual time).
//!
//! **One seed, one run.** The runtime has one thread and a clock that moves on when nobody has anything to do; every draw is of its
//! subject alone ([`chance`]); heads wake their readers in the order in which they began to wait. So a seed gives the same events,
//! byte for byte, with the same binary on the same kind of machine: scores and ratings use the platform's `exp`.
//!
//! **Death.** A process that is killed takes its tasks with it; here they cannot all be found. So each life of a node has a
//! [`fence::Fence`] in everything that it reaches: once it has fallen nothing that the dead node still does is seen by anybody.
//!
//! Reading order: [`world`], [`plan`], [`checks`], then the fakes.

pub mod accomplice;
pub mod cast;
pub mod chain;
pub mod chance;
pub mod checks;
pub mod clock;
pub mod disk;
pub mod fence;
pub mod lab;
pub mod log;
pub mod memo;
pub mod minimise;
pub mod model_lab;
pub mod net;
pub mod plan;
pub mod trainer;
pub mod two_faced;
pub mod weather;
pub mod world;
