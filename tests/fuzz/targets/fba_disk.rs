//! `vfio_ccw_fuzz::fba_disk` under libFuzzer.

#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use vfio_ccw_fuzz::fba_disk::HEADER;
use vfio_ccw_fuzz::{fba_disk, mutation};

fuzz_target!(|bytes| fba_disk::run(bytes));

fuzz_mutator!(|bytes: &mut [u8], size: usize, most: usize, seed: u32| {
    match seed % 2 {
        0 if size > HEADER => mutation::mutate(HEADER, bytes, size, seed),
        _ => fuzzer_mutate(bytes, size, most),
    }
});
