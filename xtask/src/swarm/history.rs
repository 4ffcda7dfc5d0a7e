//! What the swarm has been seen to do, round by round, and whether all agreed (invariant R-1).
//!
//! A node remembers 64 rounds and forgets them when it is killed; what it has once said of a round counts here for good.
//! So a node that changes its mind about a round, before and after a restart, disagrees with itself and is found.

use std::collections::{BTreeMap, BTreeSet};

use super::page::{Ending, Report, RoundReport};

/// Weights by uid.
pub type Weights = Vec<(u64, u64)>;

/// One round as all nodes told it. Nodes are told by their index in the plan.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RoundSeen {
    /// Who said that it ended how.
    pub endings: BTreeMap<Ending, BTreeSet<usize>>,
    /// The last word of each node.
    pub reports: BTreeMap<usize, RoundReport>,
    /// The newest weights while this was the newest completed round: those of the first validator that has set any.
    pub weights: Weights,
}

impl RoundSeen {
    /// Whether all who completed it say the same.
    pub fn agreed(&self) -> bool {
        self.endings.len() <= 1
    }
}

/// Everything seen.
#[derive(Debug, Clone, Default)]
pub struct History {
    first: Option<u64>,
    rounds: BTreeMap<u64, RoundSeen>,
    last_completed: BTreeMap<usize, u64>,
    weights: BTreeMap<usize, Weights>,
}

impl History {
    /// Takes what a node says. The first round that anybody speaks of is the swarm's first; what a node may say later of
    /// rounds before it, which it caught up on, is an earlier swarm's.
    pub fn record(&mut self, node: usize, report: &Report) {
        let completed = report.completed.iter().map(|completed| completed.round);
        let Some(first) = self.first.or_else(|| completed.chain(report.round).min()) else { return };
        self.first = Some(first);
        for completed in report.completed.iter().filter(|completed| completed.round >= first) {
            let seen = self.rounds.entry(completed.round).or_default();
            seen.endings.entry(completed.ending.clone()).or_default().insert(node);
            seen.reports.insert(node, completed.clone());
            let last = self.last_completed.entry(node).or_default();
            *last = completed.round.max(*last);
        }
        if !report.weights.is_empty() {
            self.weights.insert(node, report.weights.clone());
        }
        if let (Some(mut newest), Some((_, weights))) = (self.rounds.last_entry(), self.weights.first_key_value()) {
            newest.get_mut().weights.clone_from(weights);
        }
    }

    /// The first round that a node spoke of.
    pub fn first(&self) -> Option<u64> {
        self.first
    }

    /// Every round that at least one node has completed, oldest first.
    pub fn rounds(&self) -> impl DoubleEndedIterator<Item = (u64, &RoundSeen)> {
        self.rounds.iter().map(|(round, seen)| (*round, seen))
    }

    /// The newest round that the node has completed.
    pub fn last_completed(&self, node: usize) -> Option<u64> {
        self.last_completed.get(&node).copied()
    }

    /// The newest round that any node has completed.
    pub fn newest(&self) -> Option<u64> {
        self.rounds.keys().next_back().copied()
    }

    /// How many rounds from the first up to `last` these nodes have behind them together: what grows while none is stuck.
    pub fn progress(&self, nodes: &[usize], last: u64) -> u64 {
        let first = self.first.unwrap_or_default();
        nodes.iter().filter_map(|node| Some(self.last_completed(*node)?.min(last) + 1 - first)).sum()
    }

    /// Seconds that the node spent computing and communicating, and in how many rounds.
    pub fn spent(&self, node: usize) -> (f64, f64, u32) {
        let reports = self.rounds.values().filter_map(|seen| seen.reports.get(&node));
        reports.fold((0.0, 0.0, 0), |(computing, communicating, n_rounds), report| {
            (computing + report.computing_secs, communicating + report.communicating_secs, n_rounds + 1)
        })
    }

    /// In how many rounds a payload of this slot was applied.
    pub fn n_applied(&self, uid: u64) -> usize {
        let applied = |seen: &&RoundSeen| seen.reports.values().any(|report| report.contributors.contains(&uid));
        self.rounds.values().filter(applied).count()
    }

    /// The rounds that did not end alike for everybody.
    pub fn disagreements(&self) -> impl Iterator<Item = (u64, &RoundSeen)> {
        self.rounds().filter(|(_, seen)| !seen.agreed())
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A round that ended in an outer step to `digest`, or was null if that is empty.
    pub fn completed(round: u64, digest: &str) -> RoundReport {
        let ending = if digest.is_empty() { Ending::Null } else { Ending::Step(digest.to_owned()) };
        RoundReport {
            round,
            ending,
            heldout_loss: Some(3.5),
            contributors: vec![2, 3],
            computing_secs: 2.0,
            communicating_secs: 0.5,
        }
    }

    /// A node in `round` with these rounds behind it.
    pub fn report(round: u64, rounds: &[(u64, &str)]) -> Report {
        let completed = rounds.iter().map(|(round, digest)| completed(*round, digest)).collect();
        Report { round: Some(round), phase: "gather".to_owned(), completed, ..Report::default() }
    }

    fn history(reports: &[(usize, Report)]) -> History {
        let mut history = History::default();
        reports.iter().for_each(|(node, report)| history.record(*node, report));
        history
    }

    /// `wanted`: the round, and each ending with those who said so.
    fn check_disagreements(reports: &[(usize, Report)], wanted: &[&str]) {
        let history = history(reports);
        let side = |(ending, who): (&Ending, &BTreeSet<usize>)| match ending {
            Ending::Step(digest) => format!(" {digest}{who:?}"),
            Ending::Null => format!(" null{who:?}"),
        };
        let found = history.disagreements().map(|(round, seen)| {
            let sides: String = seen.endings.iter().map(side).collect();
            format!("{round}:{sides}")
        });
        assert_eq!(found.collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn one_digest_a_round_is_agreement_whoever_took_part() {
        check_disagreements(&[], &[]);
        check_disagreements(
            &[
                (1, report(2, &[(0, "aa"), (1, "")])),
                (2, report(2, &[(1, "")])),
                (3, report(3, &[(0, "aa"), (1, ""), (2, "bb")])),
            ],
            &[],
        );
    }

    #[test]
    fn the_odd_one_out_is_found_and_named() {
        let others = [(1, report(2, &[(0, "aa"), (1, "bb")])), (2, report(2, &[(0, "aa"), (1, "bb")]))];
        let odd = (3, report(2, &[(0, "aa"), (1, "cc")]));
        check_disagreements(&[&others[..], &[odd]].concat(), &["1: bb{1, 2} cc{3}"]);
    }

    #[test]
    fn a_null_round_for_one_alone_is_a_disagreement() {
        check_disagreements(&[(1, report(1, &[(0, "aa")])), (2, report(1, &[(0, "")]))], &["0: aa{1} null{2}"]);
    }

    #[test]
    fn a_node_that_changes_its_word_disagrees_with_itself() {
        check_disagreements(
            &[(1, report(1, &[(0, "aa")])), (1, report(3, &[(0, "ab"), (1, "bb")]))],
            &["0: aa{1} ab{1}"],
        );
    }

    #[test]
    fn what_a_killed_node_said_is_not_forgotten() {
        let history =
            history(&[(1, report(5, &[(4, "aa")])), (1, report(6, &[])), (1, report(8, &[(6, "cc"), (7, "dd")]))]);
        assert_eq!(history.rounds().map(|(round, _)| round).collect::<Vec<_>>(), [4, 6, 7]);
        assert_eq!(history.spent(1), (6.0, 1.5, 3));
    }

    #[test]
    fn rounds_before_the_first_that_was_seen_do_not_count() {
        let history =
            history(&[(1, report(5, &[])), (2, report(6, &[(3, "x"), (5, "aa")])), (1, report(6, &[(3, "y")]))]);
        assert_eq!((history.first(), history.newest(), history.disagreements().count()), (Some(5), Some(5), 0));
        assert_eq!((history.last_completed(1), history.last_completed(2)), (None, Some(5)));
    }

    #[test]
    fn progress_is_measured_up_to_the_last_round() {
        let history = history(&[
            (1, report(3, &[])),
            (1, report(6, &[(3, "a"), (4, "b"), (5, "c")])),
            (2, report(4, &[(3, "a")])),
        ]);
        assert_eq!(history.progress(&[1, 2, 3], 4), 2 + 1);
        assert_eq!(history.progress(&[1, 2, 3], 9), 3 + 1);
    }

    #[test]
    fn a_round_keeps_the_weights_of_its_time_from_the_first_validator() {
        let weighted = |round, rounds: &[(u64, &str)], weights: &[(u64, u64)]| Report {
            weights: weights.to_vec(),
            ..report(round, rounds)
        };
        let history = history(&[
            (2, weighted(1, &[(0, "a")], &[(9, 1)])),
            (1, weighted(1, &[(0, "a")], &[(9, 2)])),
            (1, report(2, &[(0, "a"), (1, "b")])),
            (1, weighted(3, &[(0, "a"), (1, "b"), (2, "c")], &[(8, 3)])),
        ]);
        assert_eq!(history.rounds().map(|(_, seen)| seen.weights[0].1).collect::<Vec<_>>(), [2, 2, 3]);
    }
}
