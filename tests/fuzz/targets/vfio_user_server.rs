//! `vfio_ccw_fuzz::vfio_user_server` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes| vfio_ccw_fuzz::vfio_user_server::run(bytes));
