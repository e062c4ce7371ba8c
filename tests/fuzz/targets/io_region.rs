//! `vfio_ccw_fuzz::io_region` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes| vfio_ccw_fuzz::io_region::run(bytes));
