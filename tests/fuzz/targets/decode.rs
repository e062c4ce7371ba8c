//! `vfio_ccw_fuzz::decode` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes| vfio_ccw_fuzz::decode::run(bytes));
