//! The atomics, cells and locks this crate is written against.
//!
//! A normal build gets them from `core`, `std` and `parking_lot`. With `--cfg loom` they come from
//! the loom model checker, which runs the same code through the interleavings and the reorderings
//! that the C++20 memory model allows:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p vfio-ccw-queues --release loom
//! ```

pub(crate) use imp::*;

#[cfg(not(loom))]
mod imp {
    pub(crate) use std::hint::spin_loop;
    pub(crate) use std::sync::Arc;
    pub(crate) use std::sync::atomic::{
        AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence,
    };

    pub(crate) use parking_lot::Mutex;

    /// `core`'s cell behind the closure interface of loom's, which is how loom sees each access.
    #[derive(Debug)]
    pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }

        #[inline(always)]
        pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
            read(self.0.get())
        }

        #[inline(always)]
        pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
            write(self.0.get())
        }
    }

    pub(crate) fn shared_slice<T>(items: impl Iterator<Item = T>) -> Arc<[T]> {
        items.collect()
    }
}

#[cfg(loom)]
mod imp {
    use std::ops::Deref;

    use loom::sync::atomic;

    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::Arc;
    pub(crate) use loom::sync::atomic::{Ordering, fence};

    /// loom's atomic, with loads that take turns.
    ///
    /// loom remembers only the last access to an atomic when it looks for orders to explore. A thread
    /// that loads an atomic and then changes it, as every compare-and-swap loop does, hides from that
    /// look what another thread loaded before: `load` against `load, store` is explored in one
    /// execution only. Loads that also change a counter count as different in either order, and the
    /// search goes on from both. The counter is relaxed and orders nothing else.
    macro_rules! turn_taking {
        ($($name:ident: $value:ty),*) => {$(
            #[derive(Debug)]
            pub(crate) struct $name {
                turns: atomic::AtomicUsize,
                inner: atomic::$name,
            }

            impl $name {
                pub(crate) fn new(value: $value) -> Self {
                    Self { turns: atomic::AtomicUsize::new(0), inner: atomic::$name::new(value) }
                }

                pub(crate) fn load(&self, order: Ordering) -> $value {
                    self.turns.fetch_add(1, Ordering::Relaxed);
                    self.inner.load(order)
                }
            }

            impl Deref for $name {
                type Target = atomic::$name;

                fn deref(&self) -> &Self::Target {
                    &self.inner
                }
            }
        )*};
    }

    turn_taking!(AtomicBool: bool, AtomicU8: u8, AtomicU64: u64, AtomicUsize: usize);

    /// loom's lock with `parking_lot`'s interface: no poisoning.
    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0.lock().expect("no model panics while it holds a lock")
        }
    }

    pub(crate) fn shared_slice<T>(items: impl Iterator<Item = T>) -> Arc<[T]> {
        Arc::from_std(items.collect())
    }
}

/// Runs a loom model with a bound on the preemptions explored in one execution. Bugs of two or three
/// threads need few (Musuvathi and Qadeer, "Iterative context bounding", PLDI 2007).
#[cfg(all(test, loom))]
pub(crate) fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}
