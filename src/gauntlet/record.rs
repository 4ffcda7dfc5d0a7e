//! What a validator remembers of each peer between rounds, and what it found in one.
//!
//! These are saved at the round boundary; [`super::history`] holds the rules that change them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::fast_checks::RejectReason;
use super::loss_score::Score;
use super::rating::Rating;
use crate::terms::{Digest, Hotkey, Round};

/// All peers' records. Keyed by hotkey, as a uid may change hands.
pub type Standing = BTreeMap<Hotkey, PeerRecord>;

/// A hash of all records: validators with the same evidence have the same (G-1).
#[must_use]
pub fn digest(standing: &Standing) -> Digest {
    let bytes = postcard::to_allocvec(standing).expect("records are plain data");
    Digest(*blake3::hash(&bytes).as_bytes())
}

/// What is known of one peer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerRecord {
    /// The running OpenSkill value.
    pub rating: Rating,
    /// Running average of +1 (helped most on its assigned data) and −1, in [−1, 1].
    pub honesty: f64,
    /// How often it was evaluated; 0 is a newcomer.
    pub evaluations: u32,
    /// The latest evaluation.
    pub last_score: Option<Score>,
    /// The final score, 0 or more: what its weight is ranked by.
    pub score: f64,
    /// Rounds in a row in which it was absent or rejected.
    pub failures_in_a_row: u32,
    /// Evaluations in a row that raised the loss while somebody lowered it.
    pub harms_in_a_row: u32,
    /// Not chosen nor evaluated in any round before this one.
    pub excluded_until: Option<Round>,
    /// The latest round in which a payload of it passed the fast checks.
    pub last_seen: Option<Round>,
    /// The latest round whose payload was evaluated.
    pub last_evaluated: Option<Round>,
}

impl PeerRecord {
    /// Whether it must sit out `round`.
    #[must_use]
    pub fn is_excluded(&self, round: Round) -> bool {
        self.excluded_until.is_some_and(|until| round < until)
    }

    /// Whether it was never evaluated: its rating says nothing yet.
    #[must_use]
    pub fn is_newcomer(&self) -> bool {
        self.evaluations == 0
    }
}

/// What one round found of one peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Passed the fast checks and was evaluated.
    Scored(Score),
    /// Passed the fast checks; it was not its turn to be evaluated.
    Passed,
    /// No seal of this round on chain.
    Absent,
    /// Sealed, but the contribution does not count.
    Rejected(RejectReason),
}
