//! The atomics that the state of a subchannel is written against.
//!
//! A normal build gets them from `core` and `portable-atomic`; with `--cfg shuttle` they come from the
//! shuttle scheduler, which runs the same code through random interleavings:
//!
//! ```text
//! RUSTFLAGS="--cfg shuttle" cargo test -p vfio-ccw --release --lib shuttle
//! ```

#[cfg(not(shuttle))]
pub(super) use std::sync::atomic::{AtomicU64, Ordering, fence};

/// One compare-and-swap on x86-64 and s390x; a lock inside `portable-atomic` on processors that
/// cannot do that, which are older than any that runs this.
#[cfg(not(shuttle))]
pub(super) use portable_atomic::AtomicU128;

#[cfg(shuttle)]
pub(super) use shuttle::sync::atomic::{AtomicU64, Ordering, fence};

#[cfg(shuttle)]
pub(super) use modelled::AtomicU128;

#[cfg(shuttle)]
mod modelled {
    use shuttle::sync::Mutex;

    use super::Ordering;

    /// 128 bits as shuttle sees them: every access is a step that others may come before or after.
    #[derive(Debug)]
    pub(in super::super) struct AtomicU128(Mutex<u128>);

    impl AtomicU128 {
        pub(in super::super) fn new(value: u128) -> Self {
            AtomicU128(Mutex::new(value))
        }

        pub(in super::super) fn load(&self, _order: Ordering) -> u128 {
            *self.0.lock().expect("nobody panics with it")
        }

        pub(in super::super) fn compare_exchange(
            &self,
            current: u128,
            new: u128,
            _success: Ordering,
            _failure: Ordering,
        ) -> Result<u128, u128> {
            let mut value = self.0.lock().expect("nobody panics with it");
            if *value != current {
                return Err(*value);
            }
            *value = new;
            Ok(current)
        }
    }
}
