//! Who is killed when, and when each comes back: decided from what the nodes say, without a clock of its own.
//!
//! A kill waits until its node is *seen* in the round, so that it hits a node at work and not one that is still loading.
//! Coming back is counted by the rounds of those that are left; if nobody is, nobody counts, and the time that the
//! rounds would have taken decides.

use std::time::Duration;

use super::plan::{Kill, Return};

/// What is to be done to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Kill(usize),
    Start(usize),
}

/// The kills that are still to come, and the members that are down because of one.
#[derive(Debug, Clone)]
pub struct Kills {
    pending: Vec<Kill>,
    away: Vec<Away>,
    gone: Vec<usize>,
    round_time: Duration,
}

#[derive(Debug, Clone)]
struct Away {
    member: usize,
    due_round: u64,
    /// Since the swarm started.
    due_at: Duration,
}

impl Kills {
    /// `kills` as the plan has them, which are such that no member is killed while it is down.
    pub fn new(kills: Vec<Kill>, round_time: Duration) -> Self {
        Self { pending: kills, away: Vec::new(), gone: Vec::new(), round_time }
    }

    /// What is due. `first` is the swarm's first round, `in_round` the round each member is in, if it says so; `now` is
    /// counted from the start of the swarm.
    pub fn step(&mut self, now: Duration, first: u64, in_round: &[Option<u64>]) -> Vec<Act> {
        let mut acts = Vec::new();
        let newest = in_round.iter().flatten().max().copied();
        let (due, pending) = self.pending.drain(..).partition::<Vec<_>, _>(|kill| {
            // The chain has no round of its own: index 0 counts by the nodes'.
            let round = if kill.member == 0 { newest } else { in_round[kill.member] };
            round.is_some_and(|round| round >= first + kill.round)
        });
        self.pending = pending;
        for kill in due {
            acts.push(Act::Kill(kill.member));
            let Return::After(back) = kill.back else {
                self.gone.push(kill.member);
                continue;
            };
            let rounds = u32::try_from(back).unwrap_or(u32::MAX);
            // One round more than those it is away for: the time counts only where nobody counts rounds.
            let away =
                if rounds == 0 { Duration::ZERO } else { self.round_time.saturating_mul(rounds.saturating_add(1)) };
            let due_round = newest.unwrap_or(first).saturating_add(back);
            self.away.push(Away { member: kill.member, due_round, due_at: now.saturating_add(away) });
        }
        let (back, away) = self
            .away
            .drain(..)
            .partition::<Vec<_>, _>(|away| newest.is_some_and(|round| round >= away.due_round) || now >= away.due_at);
        self.away = away;
        acts.extend(back.iter().map(|away| Act::Start(away.member)));
        acts
    }

    /// Whether the member is down because it was killed.
    pub fn is_down(&self, member: usize) -> bool {
        self.gone.contains(&member) || self.is_away(member)
    }

    /// Whether the member will come back.
    pub fn is_away(&self, member: usize) -> bool {
        self.away.iter().any(|away| away.member == member)
    }

    /// Whether anybody will come back.
    pub fn anybody_away(&self) -> bool {
        !self.away.is_empty()
    }

    /// Whether nothing is left to be done.
    pub fn done(&self) -> bool {
        self.pending.is_empty() && self.away.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND_TIME: Duration = Duration::from_secs(10);

    fn kills(kills: &[(usize, u64, Return)]) -> Kills {
        let kills = kills.iter().map(|(member, round, back)| Kill { member: *member, round: *round, back: *back });
        Kills::new(kills.collect(), ROUND_TIME)
    }

    /// The time, the rounds that two nodes are in, what is due.
    type Moment<'a> = (u64, [Option<u64>; 2], &'a [Act]);

    /// At each of these moments, with the chain and two nodes, these acts are due. The swarm's first round is 100.
    fn check(kills: &mut Kills, moments: &[Moment]) {
        for (now, [one, other], wanted) in moments {
            let acts = kills.step(Duration::from_secs(*now), 100, &[None, *one, *other]);
            assert_eq!(acts, *wanted, "at {now} s");
        }
    }

    #[test]
    fn a_node_is_killed_when_it_is_seen_in_the_round_and_started_at_once() {
        let mut kills = kills(&[(1, 2, Return::After(0))]);
        check(
            &mut kills,
            &[
                (0, [None, None], &[]),
                (10, [Some(101), Some(102)], &[]),
                (11, [None, Some(102)], &[]),
                (12, [Some(102), Some(102)], &[Act::Kill(1), Act::Start(1)]),
                (13, [Some(102), Some(102)], &[]),
            ],
        );
        assert!(kills.done() && !kills.is_down(1));
    }

    #[test]
    fn a_node_comes_back_so_many_rounds_later() {
        let mut kills = kills(&[(1, 1, Return::After(2))]);
        check(&mut kills, &[(10, [Some(101), Some(101)], &[Act::Kill(1)]), (20, [None, Some(102)], &[])]);
        assert!(kills.is_down(1) && kills.is_away(1) && !kills.is_down(2) && !kills.done());
        check(&mut kills, &[(29, [None, Some(103)], &[Act::Start(1)])]);
        assert!(kills.done() && !kills.is_down(1));
    }

    #[test]
    fn when_everybody_is_away_the_time_counts_the_rounds() {
        let mut kills = kills(&[(1, 1, Return::After(2)), (2, 1, Return::After(2))]);
        check(
            &mut kills,
            &[
                (10, [Some(101), Some(101)], &[Act::Kill(1), Act::Kill(2)]),
                (39, [None, None], &[]),
                (40, [None, None], &[Act::Start(1), Act::Start(2)]),
            ],
        );
    }

    #[test]
    fn one_who_never_returns_is_not_waited_for() {
        let mut kills = kills(&[(2, 0, Return::Never)]);
        check(&mut kills, &[(1, [None, Some(100)], &[Act::Kill(2)]), (900, [Some(160), None], &[])]);
        assert!(kills.done() && kills.is_down(2) && !kills.anybody_away());
    }

    #[test]
    fn the_chain_is_killed_by_the_rounds_of_the_nodes() {
        let mut kills = kills(&[(0, 3, Return::After(0))]);
        check(&mut kills, &[(1, [Some(102), None], &[]), (9, [Some(102), Some(103)], &[Act::Kill(0), Act::Start(0)])]);
    }
}
