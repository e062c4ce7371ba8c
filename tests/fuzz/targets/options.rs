//! `vfio_ccw_fuzz::options` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes| vfio_ccw_fuzz::options::run(bytes));
