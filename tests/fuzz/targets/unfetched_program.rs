//! `vfio_ccw_fuzz::unfetched_program` under libFuzzer.

#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use vfio_ccw_fuzz::case::Case;
use vfio_ccw_fuzz::{mutation, unfetched_program};

fuzz_target!(|bytes| unfetched_program::run(bytes));

fuzz_mutator!(|bytes: &mut [u8], size: usize, most: usize, seed: u32| {
    match seed % 2 {
        0 if size > Case::HEADER => mutation::mutate(Case::HEADER, bytes, size, seed),
        _ => fuzzer_mutate(bytes, size, most),
    }
});
