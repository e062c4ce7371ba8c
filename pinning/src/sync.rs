//! The atomics that the state word uses: the real ones, or loom's when it explores interleavings.

#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(loom)]
pub(crate) use {loom::sync::atomic::Ordering, turn_taking::AtomicU64};

#[cfg(loom)]
mod turn_taking {
    use std::ops::Deref;

    use loom::sync::atomic::{self, Ordering};

    /// loom's atomic, with loads that count as different in either order.
    ///
    /// loom looks at the last access to an atomic only when it seeks orders to explore, so a load
    /// that a compare-and-swap follows hides what others loaded before. A relaxed count beside each
    /// load brings those orders back, and orders nothing else.
    #[derive(Debug)]
    pub(crate) struct AtomicU64 {
        turns: atomic::AtomicUsize,
        word: atomic::AtomicU64,
    }

    impl AtomicU64 {
        pub(crate) fn new(value: u64) -> Self {
            Self { turns: atomic::AtomicUsize::new(0), word: atomic::AtomicU64::new(value) }
        }

        pub(crate) fn load(&self, order: Ordering) -> u64 {
            self.turns.fetch_add(1, Ordering::Relaxed);
            self.word.load(order)
        }
    }

    impl Deref for AtomicU64 {
        type Target = atomic::AtomicU64;

        fn deref(&self) -> &Self::Target {
            &self.word
        }
    }
}
