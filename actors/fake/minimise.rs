//! Fewer faults that break the same rule.

use super::log::Log;
use super::plan::Planned;
use super::world::{Report, Scenario, simulate};

/// Makes the faults of a failed run fewer, as long as the same rule is broken (Zeller and Hildebrandt 2002, ddmin): at most so many
/// runs. Answers the list, and how often it was run.
pub fn minimise(scenario: &Scenario, failed: &Report, runs_max: usize) -> anyhow::Result<(Vec<Planned>, usize)> {
    let Some(violation) = &failed.violation else { return Ok((failed.plan.clone(), 0)) };
    let mut plan: Vec<Planned> =
        failed.plan.iter().filter(|planned| planned.round <= violation.round).cloned().collect();
    let (mut n_parts, mut runs) = (2, 0);
    while plan.len() > 1 && runs < runs_max {
        let len = plan.len().div_ceil(n_parts);
        let mut smaller = None;
        for part in 0..n_parts {
            let rest: Vec<Planned> = plan
                .iter()
                .enumerate()
                .filter(|(idx, _)| idx / len != part)
                .map(|(_, planned)| planned.clone())
                .collect();
            if rest.len() == plan.len() || runs == runs_max {
                continue;
            }
            runs += 1;
            let faults = scenario.faults.with_script(rest.clone());
            let report = simulate(Scenario { faults, ..scenario.clone() }, Log::default())?;
            if report.violation.is_some_and(|found| found.rule == violation.rule) {
                smaller = Some(rest);
                break;
            }
        }
        match smaller {
            Some(rest) => (plan, n_parts) = (rest, n_parts.saturating_sub(1).max(2)),
            None if n_parts >= plan.len() => break,
            None => n_parts = (2 * n_parts).min(plan.len()),
        }
    }
    Ok((plan, runs))
}
