//! The table in Markdown, and how it comes into the page.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::sweep::Outcome;

/// Between these lines of the page is what the bench writes.
pub const BEGIN: &str = "<!-- table: written by cargo xtask bench attacks -->";
pub const END: &str = "<!-- end of the table -->";

/// Reasons that a row names; what else there was is counted together.
const REASONS_MAX: usize = 4;

/// What a row says, over all seeds.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    pub who: String,
    pub rules: &'static str,
    /// Medians: the held-out loss, and what it is of that of the same seed in the calm run and in the run of the honest alone.
    pub loss: f64,
    pub to_calm: f64,
    pub to_alone: f64,
    /// Median; none where no run had enough scores.
    pub honest_weight: Option<f64>,
    /// What share each hostile part has of it, in the mean.
    pub earned: BTreeMap<&'static str, f64>,
    /// Median: the share of honest miners in the payloads that were applied.
    pub applied: f64,
    /// False accusations, and all, of all seeds.
    pub accused: (u64, u64),
    /// Of all seeds.
    pub refused: BTreeMap<String, u64>,
    /// Null rounds of all seeds.
    pub null: usize,
    /// Runs that broke a rule.
    pub n_broken: usize,
}

impl Figures {
    /// Of a row's runs, seed by seed: the one under attack, the calm one, the one of the honest alone.
    pub fn of(who: String, rules: &'static str, runs: &[[&Outcome; 3]]) -> Self {
        let over = |figure: &dyn Fn(&[&Outcome; 3]) -> f64| median(runs.iter().map(figure).collect());
        let attacked = || runs.iter().map(|[attacked, ..]| *attacked);
        let weights: Vec<f64> = attacked().filter_map(|outcome| outcome.honest_weight).collect();
        let mut earned = BTreeMap::<&'static str, f64>::new();
        for (part, share) in attacked().flat_map(|outcome| &outcome.earned) {
            *earned.entry(part).or_default() += share / weights.len().max(1) as f64;
        }
        let mut refused = BTreeMap::<String, u64>::new();
        for (reason, count) in attacked().flat_map(|outcome| &outcome.refused) {
            *refused.entry(reason.clone()).or_default() += count;
        }
        Self {
            who,
            rules,
            loss: over(&|[attacked, ..]| attacked.loss),
            to_calm: over(&|[attacked, calm, _]| attacked.loss / calm.loss),
            to_alone: over(&|[attacked, _, alone]| attacked.loss / alone.loss),
            earned,
            applied: over(&|[attacked, ..]| attacked.applied.unwrap_or(f64::NAN)),
            honest_weight: (!weights.is_empty()).then(|| median(weights)),
            accused: attacked()
                .fold((0, 0), |(wrong, all), outcome| (wrong + outcome.accused.0, all + outcome.accused.1)),
            refused,
            null: attacked().map(|outcome| outcome.null).sum(),
            n_broken: attacked().filter(|outcome| outcome.broken.is_some()).count(),
        }
    }
}

/// The middle one, or the mean of the two in the middle; what is not a number is above all numbers.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// The whole table.
pub fn render(rows: &[Figures]) -> String {
    let mut text = String::from(
        "| hostile | rules | held-out loss | of the calm run's | of the honest alone's | honest of the applied | honest weight \
         | other weight | false accusations | null rounds | refused |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let weight = percent(row.honest_weight.unwrap_or(f64::NAN));
        let broken = if row.n_broken > 0 { format!("; **{} runs broke a rule**", row.n_broken) } else { String::new() };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {weight} | {} | {} of {} | {} | {}{broken} |",
            row.who,
            row.rules,
            number(row.loss),
            number(row.to_calm),
            number(row.to_alone),
            percent(row.applied),
            others(&row.earned),
            row.accused.0,
            row.accused.1,
            row.null,
            reasons(&row.refused)
        );
    }
    text
}

fn number(value: f64) -> String {
    if value.is_finite() { format!("{value:.3}") } else { "–".to_owned() }
}

fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.1} %", 100.0 * share) } else { "–".to_owned() }
}

/// The largest shares, from one in a thousand.
fn others(earned: &BTreeMap<&'static str, f64>) -> String {
    let mut shares: Vec<(&str, f64)> = earned.iter().map(|(part, share)| (*part, *share)).collect();
    shares.retain(|(_, share)| *share >= 0.001);
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    let named: Vec<String> = shares.iter().take(3).map(|(part, share)| format!("{part} {}", percent(*share))).collect();
    if named.is_empty() { "–".to_owned() } else { named.join(", ") }
}

/// The most frequent first; of two as frequent the first by name.
fn reasons(refused: &BTreeMap<String, u64>) -> String {
    let mut counted: Vec<(&String, u64)> = refused.iter().map(|(reason, count)| (reason, *count)).collect();
    counted.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let rest: u64 = counted.iter().skip(REASONS_MAX).map(|(_, count)| count).sum();
    let named = counted.iter().take(REASONS_MAX).map(|(reason, count)| format!("{count} × {reason}"));
    let named: Vec<String> = named.chain((rest > 0).then(|| format!("{rest} × others"))).collect();
    if named.is_empty() { "–".to_owned() } else { named.join("; ") }
}

/// The page with `text` between its two marks; none if it has not both of them, in their order.
pub fn placed(page: &str, text: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{text}{END}{after}"))
}
