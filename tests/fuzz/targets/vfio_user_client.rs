//! `vfio_ccw_fuzz::vfio_user_client` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes| vfio_ccw_fuzz::vfio_user_client::run(bytes));
