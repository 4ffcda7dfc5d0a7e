//! Storms of events against the round state machine.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| convoke::fuzzing::round_state(bytes));
