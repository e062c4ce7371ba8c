//! `vfio_ccw_fuzz::policy` under libFuzzer.

#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use vfio_ccw_fuzz::policy::HEADER;
use vfio_ccw_fuzz::{mutation, policy};

fuzz_target!(|bytes| policy::run(bytes));

fuzz_mutator!(|bytes: &mut [u8], size: usize, most: usize, seed: u32| {
    match seed % 2 {
        0 if size > HEADER => mutation::mutate(HEADER, bytes, size, seed),
        _ => fuzzer_mutate(bytes, size, most),
    }
});
