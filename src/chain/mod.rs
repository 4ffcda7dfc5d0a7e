//! The ledger: the rules of one Subtensor subnet as a pure state machine, and our own record inside a commitment.
//!
//! ```text
//!  genesis ──> Ledger ──step(timestamp, signed calls)──> Ledger' + events + receipts
//!                │  a block: prices, epoch (yuma), then the calls in order
//!                ├─ call           what can be asked, by whom, for how long; every refusal by Subtensor's name
//!                ├─ subnet         slots, registration, pruning, burn price
//!                ├─ commit_rules   the Commitments pallet: fields, quota
//!                ├─ commit_reveal  weights promised first and read later; timelock: how they are locked
//!                ├─ weights        the checks of `set_weights` in Subtensor's order, max-upscaling
//!                ├─ schedule       when epochs run, and when what was committed is revealed
//!                ├─ epoch, yuma    how incentive, dividends, bonds and permits are computed
//!                └─ metagraph      what a node reads of it at a block
//!  commitment   what Convoke writes into the three fields; registry: endpoint ↔ hotkey from those
//! ```
//!
//! A training network must be tested against the rules it will meet, so names, units, order of checks and errors are
//! those of `pallet-subtensor` and `pallet-commitments` (spec 425). What a trainer cannot observe is left out: fees,
//! the alpha/TAO pool (stake is 1:1), root dividends, delegation, several mechanisms on a subnet. Emission is counted
//! but not paid out. Nothing here reads a clock or draws a random number: the same genesis and the same calls give
//! the same hashes on every machine.

pub mod call;
pub mod commit_reveal;
pub mod commit_rules;
pub mod commitment;
pub mod epoch;
pub mod genesis;
pub mod ledger;
pub mod metagraph;
pub mod registry;
pub mod schedule;
pub mod subnet;
pub mod timelock;
pub mod weights;
pub mod yuma;

mod q32;
mod state;

pub use call::{AccountId, Call, DispatchError, Era, Invalid, SignedCall, VerifiedCall};
pub use commitment::{Commitment, CommitmentError, Identity, ManifestVote, Place, Seal};
pub use genesis::{Genesis, GenesisError, GenesisNeuron, Hyperparameters, Owner};
pub use ledger::{Event, Header, Ledger, LedgerError, Receipt, Verdict};
pub use metagraph::{Committed, Metagraph, Neuron};
pub use registry::{Proofs, Registry};
pub use schedule::{EpochSchedule, ScheduleError};
