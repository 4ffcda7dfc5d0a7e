//! Ratings: OpenSkill's Plackett–Luce model, one match a round among the peers that were evaluated.
//!
//! Scores of different rounds cannot be compared, but their order within a round is informative; a rating turns the
//! orders of many rounds into one value with its uncertainty. The update is algorithm 4 of Weng & Lin, "A Bayesian
//! Approximation Method for Online Ranking", JMLR 12 (2011), with the additions of the Python package `openskill` 6.2:
//! τ² is added to every variance before a match, γ = σ/c, and a variance keeps at least the share κ of itself. Each
//! peer is a team of one.
//!
//! That package also means to give tied players the average change of their group, but computes the average from
//! values it has already overwritten, so it adds nothing; we follow what it does, which is the paper's algorithm. It
//! sums e^{μ/c} as it stands; we sum relative to each player in turn, which gives the same values and cannot overflow.
//! Players are put in a canonical order first, so the result does not depend on the order they are given in, bit for
//! bit.

use serde::{Deserialize, Serialize};

/// κ: a match leaves at least this share of a variance.
const VARIANCE_SHARE_MIN: f64 = 1e-4;

/// What is believed of a peer: a normal distribution of its strength.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rating {
    /// μ: the mean.
    pub mu: f64,
    /// σ: the standard deviation.
    pub sigma: f64,
}

impl Default for Rating {
    /// Of whom nothing is known: 25 ± 25/3, whose ordinal is 0.
    fn default() -> Self {
        Self { mu: 25.0, sigma: 25.0 / 3.0 }
    }
}

impl Rating {
    /// μ − 3σ: the strength that is all but certain.
    #[must_use]
    pub fn ordinal(&self) -> f64 {
        self.mu - 3.0 * self.sigma
    }
}

/// The ratings of `players` after a match that each ended with its score, higher is better, in the order given.
///
/// A score that is not a number is below all. Fewer than two players are no match: their ratings stay.
#[must_use]
pub fn rate(players: &[(Rating, f64)], beta: f64, tau: f64) -> Vec<Rating> {
    if players.len() < 2 {
        return players.iter().map(|&(rating, _)| rating).collect();
    }
    let mut field: Vec<Player> =
        players.iter().enumerate().map(|(place, &(rating, score))| Player::new(place, rating, score, tau)).collect();
    field.sort_by(Player::canonical_order);

    // Where each tie group begins, and one past the end: ranks ascend, so S_q sums from a group's beginning to the end.
    let mut groups: Vec<usize> = (0..field.len()).filter(|&i| i == 0 || field[i].score != field[i - 1].score).collect();
    groups.push(field.len());

    let c = field.iter().map(|player| player.variance + beta * beta).sum::<f64>().sqrt();
    let mut rated: Vec<Rating> = players.iter().map(|&(rating, _)| rating).collect();
    for player in &field {
        rated[player.place] = updated(player, &field, &groups, c);
    }
    rated
}

/// A player on the field.
struct Player {
    /// Its place in the caller's list.
    place: usize,
    mu: f64,
    /// σ² + τ².
    variance: f64,
    score: f64,
}

impl Player {
    fn new(place: usize, rating: Rating, score: f64, tau: f64) -> Self {
        // Adding zero makes −0 and 0 the tie that they are.
        let score = if score.is_nan() { f64::NEG_INFINITY } else { score + 0.0 };
        Self { place, mu: rating.mu, variance: rating.sigma * rating.sigma + tau * tau, score }
    }

    /// Best first; players that tie in everything are interchangeable.
    fn canonical_order(&self, other: &Self) -> std::cmp::Ordering {
        other
            .score
            .total_cmp(&self.score)
            .then(other.mu.total_cmp(&self.mu))
            .then(other.variance.total_cmp(&self.variance))
    }
}

/// Algorithm 4's update of one player i, where q runs over the players ranked no worse than i:
///
/// p_iq = e^{μ_i/c} / S_q, S_q = Σ_{s ranked no better than q} e^{μ_s/c}, A_q = how many tie with q,
/// ω = Σ_q ([q = i] − p_iq) / A_q, δ = Σ_q p_iq·(1 − p_iq) / A_q,
/// μ ← μ + ω·σ²/c, σ² ← σ²·max(1 − (σ/c)·δ·σ²/c², κ).
///
/// p_iq depends on q's group only, and the A_q members of a group share it, so each group enters once.
fn updated(player: &Player, field: &[Player], groups: &[usize], c: f64) -> Rating {
    let (mut omega, mut delta) = (0.0, 0.0);
    // S_q / e^{μ_i/c}: grows from the worst group up, is at least 1 from i's own group on, and at worst infinite.
    let mut sum = 0.0;
    for group in groups.windows(2).rev() {
        let members = &field[group[0]..group[1]];
        sum += members.iter().rev().map(|other| ((other.mu - player.mu) / c).exp()).sum::<f64>();
        let score = members[0].score;
        if score >= player.score {
            let p = 1.0 / sum;
            omega -= p;
            delta += p * (1.0 - p);
        }
        if score == player.score {
            omega += 1.0 / members.len() as f64;
        }
    }
    let variance = player.variance;
    let sigma = variance.sqrt();
    let shrink = (1.0 - sigma / c * delta * variance / (c * c)).max(VARIANCE_SHARE_MIN);
    Rating { mu: player.mu + omega * variance / c, sigma: sigma * shrink.sqrt() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BETA: f64 = 7.0;
    const TAU: f64 = 0.1;

    /// One match of `openskill_goldens.json`.
    #[derive(Deserialize)]
    struct Match {
        /// Who plays, by number; a new number begins at the default rating.
        players: Vec<usize>,
        scores: Vec<f64>,
        after: Vec<Rating>,
    }

    #[derive(Deserialize)]
    struct Season {
        name: String,
        beta: f64,
        tau: f64,
        start: Vec<Rating>,
        matches: Vec<Match>,
    }

    #[test]
    fn ratings_equal_openskill_over_whole_seasons() {
        let seasons: Vec<Season> = serde_json::from_str(include_str!("openskill_goldens.json")).unwrap();
        assert!(seasons.len() >= 8);
        for season in seasons {
            let mut ratings = season.start;
            for (round, played) in season.matches.into_iter().enumerate() {
                let field: Vec<_> = played.players.iter().map(|&i| ratings[i]).zip(played.scores).collect();
                for ((player, rating), want) in
                    played.players.iter().zip(rate(&field, season.beta, season.tau)).zip(played.after)
                {
                    let near = (rating.mu - want.mu).abs() < 1e-6 && (rating.sigma - want.sigma).abs() < 1e-6;
                    assert!(near, "{}, round {round}, player {player}: {rating:?}, not {want:?}", season.name);
                    ratings[*player] = rating;
                }
            }
        }
    }

    #[test]
    fn an_unknown_peer_has_ordinal_zero() {
        assert_eq!(Rating::default().ordinal(), 0.0);
    }

    #[test]
    fn one_player_is_no_match() {
        assert_eq!(rate(&[(Rating::default(), 1.0)], BETA, TAU), [Rating::default()]);
        assert_eq!(rate(&[], BETA, TAU), []);
    }

    #[test]
    fn a_score_that_is_not_a_number_loses_to_all() {
        let field = |last| [0.5, -99.0, last].map(|score| (Rating::default(), score));
        assert_eq!(rate(&field(f64::NAN), BETA, TAU), rate(&field(-1000.0), BETA, TAU));
        assert_eq!(rate(&field(f64::NEG_INFINITY), BETA, TAU), rate(&field(-1000.0), BETA, TAU));
    }

    #[test]
    fn ratings_worlds_apart_stay_numbers() {
        let far = |mu| Rating { mu, sigma: 0.001 };
        for (first, second) in [(1e6, -1e6), (-1e6, 1e6)] {
            for rating in rate(&[(far(first), 1.0), (far(second), 0.0)], 0.1, 0.0) {
                assert!(rating.mu.is_finite() && rating.sigma.is_finite() && rating.sigma > 0.0, "{rating:?}");
            }
        }
    }

    fn field() -> impl Strategy<Value = Vec<(Rating, f64)>> {
        let player = (0.0_f64..50.0, 0.5_f64..9.0, -3_i8..3)
            .prop_map(|(mu, sigma, score)| (Rating { mu, sigma }, f64::from(score)));
        proptest::collection::vec(player, 2..30)
    }

    proptest! {
        #[test]
        fn the_order_of_players_changes_no_bit(field in field(), key: u8) {
            let mut order: Vec<usize> = (0..field.len()).collect();
            crate::assignment::Draw::new("convoke 2026-11 test order v1", &[&[key; 32]]).shuffle(&mut order);
            let shuffled: Vec<_> = order.iter().map(|&i| field[i]).collect();
            let (rated, again) = (rate(&field, BETA, TAU), rate(&shuffled, BETA, TAU));
            for (place, &i) in order.iter().enumerate() {
                prop_assert_eq!(again[place], rated[i]);
            }
        }

        #[test]
        fn the_best_never_falls_and_the_worst_never_rises(field in field()) {
            let rated = rate(&field, BETA, TAU);
            let of = |score: f64| field.iter().filter(move |player| player.1 == score).count();
            let best = field.iter().map(|player| player.1).fold(f64::MIN, f64::max);
            let worst = field.iter().map(|player| player.1).fold(f64::MAX, f64::min);
            for ((before, score), after) in field.iter().zip(&rated) {
                if *score == best && of(best) == 1 {
                    prop_assert!(after.mu >= before.mu);
                }
                if *score == worst && of(worst) == 1 {
                    prop_assert!(after.mu <= before.mu);
                }
            }
        }

        #[test]
        fn only_the_order_of_scores_counts(field in field()) {
            let stretched: Vec<_> = field.iter().map(|&(rating, score)| (rating, score * 100.0 - 7.0)).collect();
            prop_assert_eq!(rate(&field, BETA, TAU), rate(&stretched, BETA, TAU));
        }
    }
}
