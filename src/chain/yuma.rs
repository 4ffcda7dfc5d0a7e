//! Yuma consensus, the classic form (no liquid alpha, no Yuma 3): weights and stake in, incentive and dividends out.
//!
//! The method is `pallet-subtensor`'s `epoch` (prose in its `docs/consensus.md`); the steps below carry its numbers.
//! All is fixed point with 32 fractional bits as there, so results agree within ±1 of 65535; the golden test holds a
//! vector that a real runtime produced. Matrices are dense: a subnet has at most 256 slots.

use super::q32::{self, Q32};
use super::subnet::top_k;

/// A validator's view: what the epoch needs to know of each slot.
#[derive(Debug, Clone, Default)]
pub(super) struct Member {
    /// Stake in rao.
    pub(super) stake: u64,
    pub(super) permit: bool,
    pub(super) last_update: u64,
    pub(super) registered_at: u64,
    /// Block of its earliest commit of weights that is still to be revealed.
    pub(super) committed_at: Option<u64>,
    pub(super) weights: Vec<(u16, u16)>,
    pub(super) bonds: Vec<(u16, u16)>,
}

/// The subnet's numbers that enter an epoch.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub(super) block: u64,
    /// The block after the last epoch; bonds to whoever registered since are void.
    pub(super) last_step: u64,
    pub(super) activity_cutoff: u64,
    pub(super) stake_threshold: u64,
    pub(super) validators_max: usize,
    /// Of 65535.
    pub(super) kappa: u16,
    /// Weight of the old bonds, of 1 000 000.
    pub(super) bonds_moving_average: u64,
    /// Of 65535.
    pub(super) bonds_penalty: u16,
    /// The owner's slot: it needs neither permit nor stake to validate, and its weight on itself counts.
    pub(super) owner: Option<usize>,
    /// Alpha-rao to give out.
    pub(super) emission: u64,
}

/// What an epoch gives a slot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) active: bool,
    pub(super) permit: bool,
    pub(super) incentive: u16,
    pub(super) dividends: u16,
    pub(super) consensus: u16,
    pub(super) validator_trust: u16,
    pub(super) emission: u64,
    pub(super) bonds: Vec<(u16, u16)>,
}

/// A square matrix, row-major.
#[derive(Clone)]
struct Matrix {
    n: usize,
    cells: Vec<Q32>,
}

impl Matrix {
    fn zero(n: usize) -> Self {
        Self { n, cells: vec![Q32::ZERO; n * n] }
    }

    /// The matrix of sparse rows; entries outside it are dropped.
    fn of_rows<'a>(n: usize, rows: impl Iterator<Item = &'a [(u16, u16)]>) -> Self {
        let mut matrix = Self::zero(n);
        for (i, row) in rows.enumerate() {
            for &(j, value) in row.iter().filter(|(j, _)| usize::from(*j) < n) {
                matrix.cells[i * n + usize::from(j)] = Q32::whole(u32::from(value));
            }
        }
        matrix
    }

    fn row(&self, i: usize) -> &[Q32] {
        &self.cells[i * self.n..(i + 1) * self.n]
    }

    fn row_mut(&mut self, i: usize) -> &mut [Q32] {
        &mut self.cells[i * self.n..(i + 1) * self.n]
    }

    fn column(&self, j: usize) -> impl Iterator<Item = Q32> + '_ {
        (0..self.n).map(move |i| self.cells[i * self.n + j])
    }

    /// Every cell, with its place, made anew.
    fn map(&self, cell: impl Fn(usize, usize, Q32) -> Q32) -> Self {
        let cells = self.cells.iter().enumerate().map(|(at, &value)| cell(at / self.n, at % self.n, value));
        Self { n: self.n, cells: cells.collect() }
    }

    /// Each column over what `of` makes of it.
    fn columns_over(&self, of: impl Fn(&Self, usize) -> Q32) -> Self {
        let divisors: Vec<_> = (0..self.n).map(|j| of(self, j)).collect();
        self.map(|_, j, value| value.over(divisors[j]))
    }

    fn columns_normalised(&self) -> Self {
        self.columns_over(|matrix, j| matrix.column(j).sum())
    }

    fn columns_max_upscaled(&self) -> Self {
        self.columns_over(|matrix, j| matrix.column(j).max().unwrap_or(Q32::ZERO))
    }
}

/// One epoch of the subnet.
pub(super) fn epoch(members: &[Member], rules: &Rules) -> Vec<Terms> {
    let n = members.len();
    let is_owner = |i: usize| rules.owner == Some(i);
    let counts = |i: usize| is_owner(i) || members[i].stake >= rules.stake_threshold;
    let stake = shares((0..n).map(|i| if counts(i) { members[i].stake } else { 0 }));
    let active: Vec<_> =
        members.iter().map(|member| member.last_update.saturating_add(rules.activity_cutoff) >= rules.block).collect();
    // Step 1: Stake that takes part: active, and with a permit from the epoch before.
    let takes_part = |i: usize| active[i] && (is_owner(i) || members[i].permit);
    let mut taking_part: Vec<_> = (0..n).map(|i| if takes_part(i) { stake[i] } else { Q32::ZERO }).collect();
    q32::normalise(&mut taking_part);

    let weights = valid_weights(members, rules.owner);
    let consensus = consensus(&weights, &taking_part, Q32::ratio(u64::from(rules.kappa), 65_535));
    // Step 4: Nobody's weight counts beyond the consensus.
    let clipped = weights.map(|_, j, weight| weight.min(consensus[j]));
    let incentive = incentive(&clipped, &taking_part);
    let bonds = bonds(members, rules, &weights, &clipped, &taking_part);
    // Step 8: A validator earns by how early and how much it was bonded to who turned out to earn.
    let mut dividends: Vec<Q32> =
        (0..n).map(|i| bonds.row(i).iter().zip(&incentive).map(|(bond, earns)| bond.times(*earns)).sum()).collect();
    q32::normalise(&mut dividends);

    let emission = emission(&incentive, &dividends, &taking_part, &stake);
    let mut permits = top_k(&stake, rules.validators_max);
    if let Some(owner) = rules.owner.and_then(|owner| permits.get_mut(owner)) {
        *owner = true;
    }
    let stored_bonds = bonds.columns_max_upscaled();
    let terms = |i: usize| Terms {
        active: active[i],
        permit: permits[i],
        incentive: incentive[i].to_u16(),
        dividends: dividends[i].to_u16(),
        consensus: consensus[i].to_u16(),
        validator_trust: clipped.row(i).iter().copied().sum::<Q32>().to_u16(),
        emission: emission[i].of(rules.emission),
        // Step 9: Bonds are kept only for those who may validate next.
        bonds: if permits[i] { sparse(stored_bonds.row(i)) } else { Vec::new() },
    };
    (0..n).map(terms).collect()
}

/// Amounts as shares of their sum.
fn shares(amounts: impl Iterator<Item = u64> + Clone) -> Vec<Q32> {
    let sum = amounts.clone().map(u128::from).sum::<u128>();
    let share = |amount: u64| (u128::from(amount) << 32).checked_div(sum).unwrap_or(0);
    // A share is at most one, which 33 bits hold.
    amounts.map(|amount| Q32::ratio(u64::try_from(share(amount)).unwrap_or(0), 1 << 32)).collect()
}

fn sparse(row: &[Q32]) -> Vec<(u16, u16)> {
    row.iter().zip(0_u16..).map(|(value, j)| (j, value.to_u16())).filter(|(_, value)| *value > 0).collect()
}

/// Step 2: Weights that count: of those with a permit, not on themselves (the owner may), not on a neuron that took the
/// slot since they were set, or since the author's earliest open commit; each row sums to one.
fn valid_weights(members: &[Member], owner: Option<usize>) -> Matrix {
    let n = members.len();
    let mut weights = Matrix::of_rows(n, members.iter().map(|member| &member.weights[..])).map(|i, j, weight| {
        let permit = members[i].permit || owner == Some(i);
        let on_itself = i == j && owner != Some(i);
        let outdated = members[i].last_update <= members[j].registered_at;
        let uncommitted = members[i].committed_at.is_some_and(|block| block < members[j].registered_at);
        if permit && !on_itself && !outdated && !uncommitted { weight } else { Q32::ZERO }
    });
    for i in 0..n {
        q32::normalise(weights.row_mut(i));
    }
    weights
}

/// Step 3: The stake-weighted median of each column: the largest weight that at least `kappa` of the stake sets or
/// exceeds.
fn consensus(weights: &Matrix, stake: &[Q32], kappa: Q32) -> Vec<Q32> {
    let validators: Vec<_> = (0..weights.n).filter(|&i| stake[i] > Q32::ZERO).collect();
    let mut held: Vec<_> = validators.iter().map(|&i| stake[i]).collect();
    q32::normalise(&mut held);
    let minority = held.iter().copied().sum::<Q32>().minus(kappa);
    let median = |j: usize| {
        let mut column: Vec<_> = validators.iter().zip(&held).map(|(&i, &held)| (weights.row(i)[j], held)).collect();
        column.sort_unstable();
        let mut below = Q32::ZERO;
        for &(weight, held) in &column {
            below += held;
            if below > minority {
                return weight;
            }
        }
        column.last().map_or(Q32::ZERO, |(weight, _)| *weight)
    };
    (0..weights.n).map(median).collect()
}

/// Step 5: A miner's rank is the stake that stands behind it within consensus; incentive is its share of all ranks.
fn incentive(clipped: &Matrix, stake: &[Q32]) -> Vec<Q32> {
    let rank = |j: usize| clipped.column(j).zip(stake).map(|(weight, stake)| weight.times(*stake)).sum();
    let mut ranks: Vec<Q32> = (0..clipped.n).map(rank).collect();
    q32::normalise(&mut ranks);
    ranks
}

/// Steps 6 and 7: bonds, a moving average of weight times stake, each miner's summing to one over the validators.
fn bonds(members: &[Member], rules: &Rules, weights: &Matrix, clipped: &Matrix, stake: &[Q32]) -> Matrix {
    let old = Matrix::of_rows(members.len(), members.iter().map(|member| &member.bonds[..]))
        .map(|_, j, bond| if rules.last_step <= members[j].registered_at { Q32::ZERO } else { bond })
        .columns_normalised();
    let penalty = Q32::ratio(u64::from(rules.bonds_penalty), 65_535);
    let kept = Q32::ONE.minus(penalty);
    let added = weights
        .map(|i, j, weight| (weight.times(kept) + clipped.row(i)[j].times(penalty)).times(stake[i]))
        .columns_normalised();
    let of_old = Q32::ratio(rules.bonds_moving_average, 1_000_000);
    let of_new = Q32::ONE.minus(of_old);
    added.map(|i, j, bond| bond.times(of_new) + old.row(i)[j].times(of_old)).columns_normalised()
}

/// Step 10: Shares of the emission: incentive and dividends alike; where nobody earned, by stake.
fn emission(incentive: &[Q32], dividends: &[Q32], taking_part: &[Q32], stake: &[Q32]) -> Vec<Q32> {
    let mut combined: Vec<Q32> = incentive.iter().zip(dividends).map(|(&earned, &shared)| earned + shared).collect();
    if combined.iter().any(|share| *share > Q32::ZERO) {
        q32::normalise(&mut combined);
        return combined;
    }
    let anybody = taking_part.iter().any(|share| *share > Q32::ZERO);
    if anybody { taking_part.to_vec() } else { stake.to_vec() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chain::weights::max_upscale;

    const RULES: Rules = Rules {
        block: 1000,
        last_step: 900,
        activity_cutoff: 5000,
        stake_threshold: 0,
        validators_max: 3,
        kappa: 32_767,
        bonds_moving_average: 900_000,
        bonds_penalty: 65_535,
        owner: None,
        emission: 1_000_000_000,
    };

    fn validator(stake: u64, weights: &[(u16, u16)]) -> Member {
        let upscaled = max_upscale(&weights.iter().map(|(_, weight)| *weight).collect::<Vec<_>>());
        let weights = weights.iter().map(|(uid, _)| *uid).zip(upscaled).collect();
        Member {
            stake,
            permit: true,
            last_update: 950,
            registered_at: 1,
            committed_at: None,
            weights,
            bonds: Vec::new(),
        }
    }

    fn miner() -> Member {
        Member { last_update: 1, registered_at: 1, ..Member::default() }
    }

    /// Three validators and three miners, whose epoch a real runtime (spec 185) computed.
    fn recorded() -> Vec<Member> {
        let tao = 1_000_000_000;
        vec![
            validator(3000 * tao, &[(3, 60), (4, 30), (5, 10)]),
            validator(2000 * tao, &[(3, 20), (4, 70), (5, 10)]),
            validator(1000 * tao, &[(3, 10), (4, 10), (5, 80)]),
            miner(),
            miner(),
            miner(),
        ]
    }

    fn near(got: &[u16], recorded: &[u16]) {
        assert_eq!(got.len(), recorded.len());
        for (&got, &recorded) in got.iter().zip(recorded) {
            assert!(got.abs_diff(recorded) <= 1, "{got} is not {recorded}");
        }
    }

    #[test]
    fn an_epoch_equals_the_runtimes() {
        let terms = epoch(&recorded(), &RULES);
        let column = |pick: fn(&Terms) -> u16| terms.iter().map(pick).collect::<Vec<_>>();
        near(&column(|terms| terms.consensus), &[0, 0, 0, 39_320, 19_660, 6_553]);
        near(&column(|terms| terms.incentive), &[0, 0, 0, 33_495, 23_301, 8_738]);
        near(&column(|terms| terms.dividends), &[43_689, 17_475, 4_369, 0, 0, 0]);
        near(&column(|terms| terms.validator_trust), &[65_534, 39_320, 19_660, 0, 0, 0]);
        let bonds = |i: usize| terms[i].bonds.iter().map(|(_, bond)| *bond).collect::<Vec<_>>();
        near(&bonds(0), &[65_535, 65_535, 65_535]);
        near(&bonds(1), &[14_563, 43_689, 43_687]);
        near(&bonds(2), &[3_640, 7_281, 21_844]);
        assert_eq!(terms.iter().map(|terms| terms.permit).collect::<Vec<_>>(), [true, true, true, false, false, false]);
    }

    #[test]
    fn weights_without_a_permit_or_on_oneself_or_outdated_count_for_nothing() {
        fn committed(members: &mut [Member], block: u64) {
            members[5].registered_at = 900;
            members.iter_mut().for_each(|member| member.committed_at = Some(block));
        }
        let silent = |change: fn(&mut Vec<Member>)| {
            let mut members = recorded();
            change(&mut members);
            epoch(&members, &RULES).iter().map(|terms| terms.incentive).collect::<Vec<_>>()
        };
        let base = silent(|members| members[2].weights.clear());
        assert_eq!(silent(|members| members[2].weights = vec![(2, 65_535)]), base);
        assert_eq!(silent(|members| members[5].weights = vec![(5, 65_535), (4, 65_535)]), silent(|_| ()));
        // The slot of uid 5 changed hands after the weights were set.
        assert_eq!(silent(|members| members[5].registered_at = 950)[5], 0);
        assert!(silent(|members| members[5].registered_at = 949)[5] > 0);
        // They were set anew since, but the earliest commit that is still to be revealed is older than its holder.
        assert_eq!(silent(|members| committed(members, 899))[5], 0);
        assert!(silent(|members| committed(members, 900))[5] > 0);
    }

    #[test]
    fn the_owners_weight_on_itself_counts() {
        let members = vec![validator(5, &[(0, 1), (1, 1)]), miner()];
        let incentive = |owner| epoch(&members, &Rules { owner, ..RULES })[0].incentive;
        assert_eq!(incentive(None), 0);
        assert!(incentive(Some(0)).abs_diff(32_767) <= 1);
    }

    #[test]
    fn the_owner_validates_without_permit_or_stake_and_is_given_the_permit() {
        let mut members = recorded();
        members[1].permit = false;
        let rules = Rules { stake_threshold: 2_500_000_000_000, validators_max: 1, ..RULES };
        let of = |owner| epoch(&members, &Rules { owner, ..rules.clone() });
        assert_eq!((of(None)[1].dividends, of(None)[1].permit), (0, false));
        let terms = of(Some(1));
        assert!(terms[1].dividends > 0 && terms[1].permit && terms[0].permit);
        assert_eq!(terms[2].dividends, 0);
    }

    #[test]
    fn an_inactive_validator_has_no_say_but_keeps_its_permit() {
        let mut members = recorded();
        members[0].last_update = 10;
        members[0].registered_at = 9;
        let terms = epoch(&members, &Rules { activity_cutoff: 100, ..RULES });
        assert!(!terms[0].active && terms[0].permit);
        assert_eq!(terms[0].dividends, 0);
        assert!(terms[4].incentive > terms[3].incentive);
    }

    #[test]
    fn bonds_follow_slowly_and_those_to_a_newcomer_start_from_nothing() {
        let mut members = recorded();
        for (member, terms) in members.iter_mut().zip(epoch(&recorded(), &RULES)) {
            member.bonds = terms.bonds;
        }
        members[0].weights = vec![(5, 1)];
        let turned = epoch(&members, &RULES);
        assert!(turned[0].bonds.contains(&(3, 65_535)), "nine tenths of the old bond remain");
        members[3].registered_at = RULES.last_step;
        assert!(!epoch(&members, &RULES)[0].bonds.iter().any(|(uid, _)| *uid == 3));
    }

    #[test]
    fn without_weights_emission_follows_stake() {
        let mut members = recorded();
        members.iter_mut().for_each(|member| member.weights.clear());
        let emissions = |members: &[Member]| {
            epoch(members, &RULES).iter().map(|terms| terms.emission / 1_000_000).collect::<Vec<_>>()
        };
        assert_eq!(emissions(&members), [500, 333, 166, 0, 0, 0]);
        members.iter_mut().for_each(|member| member.permit = false);
        assert_eq!(emissions(&members), [500, 333, 166, 0, 0, 0]);
        assert_eq!(emissions(&[]), [0; 0]);
    }

    proptest! {
        #[test]
        fn shares_sum_to_one_and_nothing_overflows(
            stakes in prop::collection::vec(any::<u64>(), 1..8),
            weights in prop::collection::vec(prop::collection::vec((0_u16..9, any::<u16>()), 0..9), 8),
            kappa in any::<u16>(),
            bonds_penalty in any::<u16>(),
        ) {
            let member = |(&stake, weights): (&u64, &Vec<_>)| validator(stake, weights);
            let members: Vec<_> = stakes.iter().zip(&weights).map(member).collect();
            let terms = epoch(&members, &Rules { kappa, bonds_penalty, ..RULES });
            let sum = |pick: fn(&Terms) -> u64| terms.iter().map(pick).sum::<u64>();
            prop_assert!(sum(|terms| u64::from(terms.incentive)) <= 65_535);
            prop_assert!(sum(|terms| u64::from(terms.dividends)) <= 65_535);
            prop_assert!(sum(|terms| terms.emission) <= RULES.emission);
        }
    }
}
