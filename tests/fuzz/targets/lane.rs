//! `vfio_ccw_fuzz::lane` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes| vfio_ccw_fuzz::lane::run(bytes));
