//! What the swarm shows: its rounds and nodes as tables of plain text, and the verdict in words.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::history::{History, RoundSeen, Weights};
use super::page::Ending;

const DIGEST_DIGITS: usize = 8;
const LOSS_DECIMALS: usize = 4;

/// A node as it is shown.
#[derive(Debug, Clone, Default)]
pub struct NodeRow {
    /// Its index in the plan.
    pub member: usize,
    pub name: String,
    /// Alive, away until it is started again, gone, or why it does not answer.
    pub state: String,
    /// Its slot, also if it has gone.
    pub uid: Option<u64>,
    pub round: Option<u64>,
    pub phase: String,
    /// How often the swarm has started it again.
    pub restarts: u32,
    /// How often its own supervisor has replaced an actor.
    pub actor_restarts: u64,
}

/// One row per round, the newest `n_rows` of them.
pub fn rounds_table(history: &History, n_up: usize, n_rows: usize) -> String {
    let head = ["round", "digest", "held-out loss", "contributors", "completed", "weights, % by uid"];
    let mut rows: Vec<_> = history.rounds().rev().take(n_rows).map(|(round, seen)| cells(round, seen, n_up)).collect();
    rows.reverse();
    table(&head, &rows)
}

/// The same as a line of its own, for where nothing can be drawn twice.
pub fn round_line(round: u64, seen: &RoundSeen, n_up: usize) -> String {
    let [round, digest, loss, contributors, completed, weights] = cells(round, seen, n_up);
    format!(
        "round {round}  digest {digest}  held-out loss {loss}  contributors {contributors}  completed by {completed}  \
         weights {weights}"
    )
}

/// One row per node: the last round it completed, how many applied its payload, and what it spent its rounds' time on.
pub fn nodes_table(history: &History, nodes: &[NodeRow], round_secs: f64) -> String {
    let head = [
        "node",
        "uid",
        "state",
        "round",
        "phase",
        "completed",
        "applied",
        "restarts",
        "of actors",
        "computing",
        "communicating",
    ];
    let rows: Vec<_> = nodes
        .iter()
        .map(|node| {
            let (computing, communicating, n_rounds) = history.spent(node.member);
            let share = |seconds: f64| match n_rounds {
                0 => "-".to_owned(),
                _ => format!("{:.1} %", 100.0 * seconds / (round_secs * f64::from(n_rounds))),
            };
            [
                node.name.clone(),
                optional(node.uid),
                node.state.clone(),
                optional(node.round),
                if node.phase.is_empty() { "-".to_owned() } else { node.phase.clone() },
                optional(history.last_completed(node.member)),
                optional(node.uid.map(|uid| history.n_applied(uid) as u64)),
                node.restarts.to_string(),
                node.actor_restarts.to_string(),
                share(computing),
                share(communicating),
            ]
        })
        .collect();
    table(&head, &rows)
}

/// A sentence on each round that did not end alike, or one that says that all did.
pub fn agreement(history: &History, names: &[&str]) -> String {
    let mut words = String::new();
    for (round, seen) in history.disagreements() {
        let side = |(ending, who)| format!("{} by {}", digest(ending), named(who, names));
        let sides: Vec<_> = seen.endings.iter().map(side).collect();
        writeln!(words, "DISAGREEMENT in round {round}: {}", sides.join("; ")).expect("a string takes everything");
    }
    if !words.is_empty() {
        return words;
    }
    let n_null = history.rounds().filter(|(_, seen)| seen.endings.contains_key(&Ending::Null)).count();
    match history.rounds().count() {
        0 => "no round was completed\n".to_owned(),
        n_rounds => {
            let null = if n_null == 0 { String::new() } else { format!(", {n_null} of them null") };
            format!("all agreed: one digest a round over {n_rounds} rounds{null}\n")
        }
    }
}

fn named(who: &BTreeSet<usize>, names: &[&str]) -> String {
    who.iter().map(|member| names[*member]).collect::<Vec<_>>().join(", ")
}

fn cells(round: u64, seen: &RoundSeen, n_up: usize) -> [String; 6] {
    let digests: Vec<_> = seen.endings.keys().map(digest).collect();
    let contributors = seen.reports.values().map(|report| &report.contributors).max_by_key(|list| list.len());
    let contributors: Vec<_> = contributors.into_iter().flatten().map(ToString::to_string).collect();
    [
        round.to_string(),
        if seen.agreed() { digests.concat() } else { format!("{} !", digests.join(" | ")) },
        losses(seen),
        if contributors.is_empty() { "-".to_owned() } else { contributors.join(" ") },
        // Who is down by now has completed it all the same.
        format!("{}/{}", seen.reports.len(), n_up.max(seen.reports.len())),
        shares(&seen.weights),
    ]
}

fn digest(ending: &Ending) -> String {
    match ending {
        Ending::Step(digest) => digest.chars().take(DIGEST_DIGITS).collect(),
        Ending::Null => "null".to_owned(),
    }
}

/// Nodes with one θ have one loss; if they do not, the best and the worst show it.
fn losses(seen: &RoundSeen) -> String {
    let losses = seen.reports.values().filter_map(|report| report.heldout_loss);
    let Some((best, worst)) = losses.fold(None, |range, loss| {
        let (best, worst) = range.unwrap_or((loss, loss));
        Some((loss.min(best), loss.max(worst)))
    }) else {
        return "-".to_owned();
    };
    let one = format!("{best:.LOSS_DECIMALS$}");
    if best.to_bits() == worst.to_bits() { one } else { format!("{one}..{worst:.LOSS_DECIMALS$}") }
}

fn shares(weights: &Weights) -> String {
    let sum: u64 = weights.iter().map(|(_, weight)| weight).sum();
    if sum == 0 {
        return "-".to_owned();
    }
    let shares = weights.iter().map(|(uid, weight)| format!("{uid}:{:.0}", 100.0 * *weight as f64 / sum as f64));
    shares.collect::<Vec<_>>().join(" ")
}

fn optional(value: Option<u64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Columns as wide as their widest cell, two spaces apart; nothing without a row.
fn table<const N: usize>(head: &[&str; N], rows: &[[String; N]]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let width = |idx: usize| rows.iter().map(|row| row[idx].chars().count()).fold(head[idx].len(), usize::max);
    let widths: Vec<_> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in std::iter::once(&head.map(str::to_owned)).chain(rows) {
        let line: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text += line.join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::history::tests::{completed, report};
    use super::super::page::Report;
    use super::*;

    const NAMES: [&str; 4] = ["chain", "validator-1", "miner-1", "miner-2"];

    /// Two rounds of three nodes, the second null; the validator has set weights.
    fn history() -> History {
        let mut history = History::default();
        let rounds = [(7, "1a2b3c4d5e6f"), (8, "")];
        history.record(1, &Report { weights: vec![(2, 65535), (3, 21845)], ..report(7, &[]) });
        history.record(1, &Report { weights: vec![(2, 65535), (3, 21845)], ..report(9, &rounds) });
        history.record(2, &report(9, &rounds));
        history.record(3, &report(8, &rounds[..1]));
        history
    }

    #[test]
    fn a_round_is_a_row() {
        let wanted = concat!(
            "round  digest    held-out loss  contributors  completed  weights, % by uid\n",
            "7      1a2b3c4d  3.5000         2 3           3/3        -\n",
            "8      null      3.5000         2 3           2/3        2:75 3:25\n",
        );
        assert_eq!(rounds_table(&history(), 3, 10), wanted);
        let newest = rounds_table(&history(), 3, 1);
        assert!(newest.lines().count() == 2 && newest.lines().nth(1).is_some_and(|row| row.starts_with("8  ")));
        assert_eq!(rounds_table(&History::default(), 3, 10), "");
    }

    #[test]
    fn a_round_is_a_line_where_nothing_can_be_redrawn() {
        let history = history();
        let (round, seen) = history.rounds().next().unwrap();
        let line = round_line(round, seen, 3);
        assert_eq!(
            line,
            "round 7  digest 1a2b3c4d  held-out loss 3.5000  contributors 2 3  completed by 3/3  weights -"
        );
    }

    #[test]
    fn nodes_that_differ_show_in_the_row_and_are_named() {
        let mut history = history();
        let mut odd = completed(9, "ffffffff00");
        odd.heldout_loss = Some(3.625);
        history.record(1, &report(10, &[(9, "00112233aa")]));
        history.record(2, &report(10, &[(9, "00112233aa")]));
        history.record(3, &Report { completed: vec![odd], ..report(10, &[]) });
        let table = rounds_table(&history, 3, 1);
        let row = table.lines().nth(1).unwrap();
        assert!(row.contains("00112233 | ffffffff !") && row.contains("3.5000..3.6250"), "{row}");
        assert_eq!(
            agreement(&history, &NAMES),
            "DISAGREEMENT in round 9: 00112233 by validator-1, miner-1; ffffffff by miner-2\n"
        );
    }

    #[test]
    fn agreement_is_said_in_one_sentence() {
        assert_eq!(agreement(&History::default(), &NAMES), "no round was completed\n");
        assert_eq!(agreement(&history(), &NAMES), "all agreed: one digest a round over 2 rounds, 1 of them null\n");
    }

    #[test]
    fn a_node_is_a_row_with_its_share_of_time() {
        let row = |member: usize, state: &str| NodeRow {
            member,
            name: NAMES[member].to_owned(),
            state: state.to_owned(),
            ..NodeRow::default()
        };
        let alive =
            NodeRow { uid: Some(3), round: Some(9), phase: "gather".to_owned(), restarts: 1, ..row(2, "alive") };
        let table = nodes_table(&history(), &[alive, row(3, "gone")], 10.0);
        let cells: Vec<Vec<_>> = table.lines().map(|line| line.split("  ").map(str::trim).collect()).collect();
        let filled = |idx: usize| cells[idx].iter().filter(|cell| !cell.is_empty()).copied().collect::<Vec<_>>();
        assert_eq!(filled(1), ["miner-1", "3", "alive", "9", "gather", "8", "2", "1", "0", "20.0 %", "5.0 %"]);
        assert_eq!(filled(2), ["miner-2", "-", "gone", "-", "-", "7", "-", "0", "0", "20.0 %", "5.0 %"]);
    }
}
