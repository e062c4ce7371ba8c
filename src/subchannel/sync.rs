//! The atomics that the state of a subchannel is written against.
//!
//! A normal build gets them from `core` and `portable-atomic`. `tests/models` builds the same state for
//! two model checkers: with `--cfg shuttle` it is run through random interleavings, with `--cfg loom`
//! through all interleavings, and all reorderings that its orderings allow, of a few steps. The commands
//! are in `tests/models/README.md`.

#[cfg(not(any(loom, shuttle)))]
pub(super) use std::sync::atomic::{AtomicU64, Ordering, fence};

/// One compare-and-swap on x86-64 and s390x; a lock inside `portable-atomic` on processors that
/// cannot do that, which are older than any that runs this.
#[cfg(not(any(loom, shuttle)))]
pub(super) use portable_atomic::AtomicU128;

#[cfg(loom)]
use loom::sync::atomic;
#[cfg(shuttle)]
use shuttle::sync::atomic;

#[cfg(any(loom, shuttle))]
pub(super) use atomic::{AtomicU64, Ordering, fence};

#[cfg(any(loom, shuttle))]
pub(super) use modelled::AtomicU128;

#[cfg(any(loom, shuttle))]
mod modelled {
    use std::sync::{Mutex, PoisonError};

    use super::Ordering;
    use super::atomic::AtomicUsize;

    /// 128 bits as the model checkers see them, which have none themselves: the number of a value in a
    /// table of all the values there ever were. Each has one number, so that comparing and swapping
    /// numbers is comparing and swapping values, with the orderings that the caller asks for. The table
    /// is no part of the model: it orders nothing, and no thread is interrupted in it.
    #[derive(Debug)]
    pub(in super::super) struct AtomicU128 {
        number: AtomicUsize,
        values: Mutex<Vec<u128>>,
        #[cfg(loom)]
        turn: AtomicUsize,
    }

    impl AtomicU128 {
        pub(in super::super) fn new(value: u128) -> Self {
            AtomicU128 {
                number: AtomicUsize::new(0),
                values: Mutex::new(vec![value]),
                #[cfg(loom)]
                turn: AtomicUsize::new(0),
            }
        }

        pub(in super::super) fn load(&self, order: Ordering) -> u128 {
            // loom remembers only the last access to an atomic when it looks for orders to explore: a
            // thread that loads the word and then changes it hides what another has loaded before.
            // Stores count as different in either order. Relaxed, and nobody loads what is stored, so
            // that it orders nothing, not even with a fence.
            #[cfg(loom)]
            self.turn.store(0, Ordering::Relaxed);
            self.value(self.number.load(order))
        }

        pub(in super::super) fn compare_exchange(
            &self,
            current: u128,
            new: u128,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u128, u128> {
            let (current, new) = (self.number(current), self.number(new));
            let exchanged = self.number.compare_exchange(current, new, success, failure);
            exchanged.map(|before| self.value(before)).map_err(|other| self.value(other))
        }

        fn value(&self, number: usize) -> u128 {
            self.values.lock().unwrap_or_else(PoisonError::into_inner)[number]
        }

        fn number(&self, value: u128) -> usize {
            let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
            values.iter().position(|known| *known == value).unwrap_or_else(|| {
                values.push(value);
                values.len() - 1
            })
        }
    }
}
