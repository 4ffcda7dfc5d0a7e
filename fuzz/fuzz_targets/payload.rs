//! Bytes from a stranger as a payload, and as the transport coding of one.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    convoke::fuzzing::payload(bytes);
});
