//! Bytes from a stranger as a manifest, and as the fields of a commitment.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    convoke::fuzzing::records(bytes);
});
