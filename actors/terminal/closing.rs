//! The table after a run: what each round did, as plain text.

use std::fmt::Write;

use crate::status::{Outcome, RoundStatus, Status};

/// A column: its head, and what it shows of a round.
struct Column {
    head: &'static str,
    cell: fn(&RoundStatus) -> String,
}

const COLUMNS: [Column; 9] = [
    Column { head: "round", cell: |round| round.round.to_string() },
    Column { head: "digest", cell: digest },
    Column { head: "contributors", cell: |round| round.contributors.len().to_string() },
    Column { head: "train loss", cell: |round| optional(round.train_loss, 3) },
    Column { head: "held-out loss", cell: |round| optional(round.heldout_loss, 3) },
    Column { head: "payload bytes", cell: |round| round.payload_bytes.map_or_else(dash, |bytes| bytes.to_string()) },
    Column { head: "ratio", cell: |round| optional(round.payload_ratio, 1) },
    Column { head: "computing s", cell: |round| format!("{:.2}", round.computing_seconds) },
    Column { head: "communicating s", cell: |round| format!("{:.2}", round.communicating_seconds) },
];

/// The rounds that ended, a row each, and the sums in words. Empty if none ended.
#[must_use]
pub fn closing_table(status: &Status) -> String {
    let rounds: Vec<_> = status.rounds.iter().filter(|round| round.outcome != Outcome::Running).collect();
    if rounds.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<_>> =
        rounds.iter().map(|round| COLUMNS.iter().map(|column| (column.cell)(round)).collect()).collect();
    let widths: Vec<_> = (0..COLUMNS.len())
        .map(|idx| rows.iter().map(|row| row[idx].chars().count()).fold(COLUMNS[idx].head.len(), usize::max))
        .collect();
    let mut table = line(&widths, COLUMNS.iter().map(|column| column.head));
    table += &line(&widths, widths.iter().map(|width| "-".repeat(*width)));
    for row in &rows {
        table += &line(&widths, row.iter());
    }
    table + &summary(status, &rounds)
}

fn line(widths: &[usize], cells: impl Iterator<Item = impl AsRef<str>>) -> String {
    let mut line = String::new();
    for (width, cell) in widths.iter().zip(cells) {
        let gap = if line.is_empty() { "" } else { "  " };
        write!(line, "{gap}{:>width$}", cell.as_ref()).expect("writing to a string cannot fail");
    }
    line + "\n"
}

fn summary(status: &Status, rounds: &[&RoundStatus]) -> String {
    let null = rounds.iter().filter(|round| round.outcome == Outcome::Null).count();
    let computing: f64 = rounds.iter().map(|round| round.computing_seconds).sum();
    let communicating: f64 = rounds.iter().map(|round| round.communicating_seconds).sum();
    let restarts: u32 = status.actors.values().map(|actor| actor.restarts).sum();
    let mut summary = format!(
        "{} rounds completed, {null} null rounds shown; {computing:.1} s computing, {communicating:.1} s communicating; \
         {restarts} actor restarts\n",
        status.rounds_completed
    );
    let shown = (rounds.len() - null) as u64;
    if status.rounds_completed > shown {
        summary += &format!("the table shows the last {} rounds; events.jsonl has them all\n", rounds.len());
    }
    summary
}

fn digest(round: &RoundStatus) -> String {
    match (round.outcome, round.digest) {
        (_, Some(digest)) => digest.short(),
        (Outcome::Null, None) => "null".to_owned(),
        (_, None) => dash(),
    }
}

fn optional(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(dash, |value| format!("{value:.decimals$}"))
}

fn dash() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use convoke::terms::{Digest, Hotkey, Round, RunId, Uid};

    use super::*;
    use crate::status::ActorStatus;

    fn status(rounds: Vec<RoundStatus>, rounds_completed: u64) -> Status {
        let actor = ActorStatus { healthy: true, restarts: 2, last_restart: None };
        Status {
            node: "a".to_owned(),
            version: "1".to_owned(),
            role: "both".to_owned(),
            run_id: RunId::default(),
            hotkey: Hotkey::default(),
            uid: None,
            block: None,
            finalized_block: None,
            round: None,
            phase: String::new(),
            rounds_completed,
            uptime_seconds: 0.0,
            rounds,
            peers: BTreeMap::new(),
            actors: BTreeMap::from([("gauntlet".to_owned(), actor)]),
        }
    }

    fn completed(round: u64) -> RoundStatus {
        RoundStatus {
            round: Round(round),
            outcome: Outcome::OuterStep,
            digest: Some(Digest([0xab; 32])),
            contributors: vec![Uid(0), Uid(1)],
            train_loss: Some(5.4321),
            heldout_loss: Some(5.5),
            payload_bytes: Some(20_123),
            payload_ratio: Some(198.76),
            computing_seconds: 12.345,
            communicating_seconds: 0.5,
            ..RoundStatus::default()
        }
    }

    #[test]
    fn the_table_has_a_row_a_round_and_the_sums_below() {
        let null = RoundStatus { round: Round(8), outcome: Outcome::Null, ..RoundStatus::default() };
        let running = RoundStatus { round: Round(9), ..RoundStatus::default() };
        let expected = "\
round    digest  contributors  train loss  held-out loss  payload bytes  ratio  computing s  communicating s
-----  --------  ------------  ----------  -------------  -------------  -----  -----------  ---------------
    7  abababab             2       5.432          5.500          20123  198.8        12.35             0.50
    8      null             0           -              -              -      -         0.00             0.00
1 rounds completed, 1 null rounds shown; 12.3 s computing, 0.5 s communicating; 2 actor restarts
";
        assert_eq!(closing_table(&status(vec![completed(7), null, running], 1)), expected);
    }

    #[test]
    fn a_long_run_says_where_the_earlier_rounds_are() {
        let table = closing_table(&status(vec![completed(99), completed(100)], 101));
        assert!(table.ends_with("the table shows the last 2 rounds; events.jsonl has them all\n"), "{table}");
    }

    #[test]
    fn without_a_round_there_is_no_table() {
        assert_eq!(closing_table(&status(vec![RoundStatus::default()], 0)), "");
    }
}
