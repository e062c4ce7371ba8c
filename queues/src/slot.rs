//! Storage for one entry of a ring: a cell that may or may not hold a value.

use std::mem::MaybeUninit;

use crate::sync::UnsafeCell;

/// Room for one `T`. Who may touch it, and whether it holds a value, is known to the ring only.
pub(crate) struct Slot<T>(UnsafeCell<MaybeUninit<T>>);

// SAFETY: a shared slot only moves whole values from one thread to another, which `T: Send` allows,
// and its two accessors are unsafe and ask the ring for exclusive access. A ring that does not give
// it is caught by loom's cell tracking in `spsc::loom_model::hand_over` and
// `submission::loom_model::two_producers`.
unsafe impl<T: Send> Sync for Slot<T> {}

impl<T> Slot<T> {
    pub(crate) fn vacant() -> Self {
        Self(UnsafeCell::new(MaybeUninit::uninit()))
    }

    /// Moves `value` in. A value that was there is forgotten, not dropped.
    ///
    /// # Safety
    /// No other thread may access the slot until the caller has handed it over with a release
    /// operation.
    #[inline(always)]
    pub(crate) unsafe fn put(&self, value: T) {
        self.0.with_mut(|place| {
            // SAFETY: the pointer comes from a live cell, and the caller has it alone; breaking
            // that fails `spsc::loom_model::hand_over` and `submission::loom_model::two_producers`.
            unsafe { (*place).write(value) };
        });
    }

    /// Moves the value out and leaves the slot vacant.
    ///
    /// # Safety
    /// The slot must hold a value that was `put` and not yet taken, the caller must have acquired
    /// the release that followed the `put`, and no other thread may access the slot meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn take(&self) -> T {
        self.0.with(|place| {
            // SAFETY: the caller vouches for a value and for exclusive access. A value taken
            // twice, or one that was never put, fails the drop counts in
            // `spsc::tests::undrained_entries_are_dropped_once` and
            // `submission::tests::undrained_entries_are_dropped_once`.
            unsafe { (*place).assume_init_read() }
        })
    }
}
