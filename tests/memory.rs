//! What a run holds in memory does not grow with its rounds.
//!
//! Its process is its own, for the allocator counts what all threads hold. What is compared is the most that a run has held at any time:
//! the nodes, and the world around them with what it keeps of each round to judge by.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::sync::Arc;

use convoke_node::fake::lab::QuadraticLab;
use convoke_node::fake::log::Log;
use convoke_node::fake::world::{Scenario, simulate};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// By when all that is kept for a number of rounds is full: blobs for 64, and the memos of the simulation.
const FULL_AFTER: u64 = 600;
const LONG: u64 = 4 * FULL_AFTER;
const NODES: usize = 8;
/// What a round may leave behind for ever. The world needs a quarter to a half of it for its statistics; if each node forgot to forget
/// the hashes of a round's payloads, they would need twice as much.
const BYTES_A_ROUND: usize = 1024;

/// The most bytes that a run of so many rounds holds beyond what there was before it.
fn peak(rounds: u64, faults: &str) -> usize {
    let faults = faults.parse().unwrap();
    let scenario = Scenario { seed: 5, nodes: NODES, rounds, faults, lab: Arc::new(QuadraticLab) };
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    let report = simulate(scenario, Log::default()).unwrap();
    assert_eq!(report.violation, None);
    ALLOCATOR.peak_usage() - before
}

#[test]
fn a_run_four_times_as_long_holds_no_more() {
    // The first panic that is told loads the program's symbols, some ten MB: those on purpose are not told.
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let on_purpose = |text: &String| text.starts_with("fault on purpose");
        if !info.payload().downcast_ref().is_some_and(on_purpose) {
            tell(info);
        }
    }));
    for faults in ["none", "mixed"] {
        let (short, long) = (peak(FULL_AFTER, faults), peak(LONG, faults));
        let allowed = (LONG - FULL_AFTER) as usize * BYTES_A_ROUND;
        assert!(long <= short + allowed, "{faults}: {short} bytes in {FULL_AFTER} rounds, {long} in {LONG}");
    }
}
