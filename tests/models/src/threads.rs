//! Threads and locks: those of the machine, or those of the shuttle scheduler.

#[cfg(not(shuttle))]
pub(crate) use std::{
    sync::{Barrier, Condvar, Mutex, MutexGuard},
    thread,
};

#[cfg(shuttle)]
pub(crate) use shuttle::{
    sync::{Barrier, Condvar, Mutex, MutexGuard},
    thread,
};

/// Lets other threads make so many steps.
pub(crate) fn pause(steps: usize) {
    for _ in 0..steps {
        // Threads of the machine run beside this one, which must not go to sleep: they would be done
        // when it comes back.
        #[cfg(not(shuttle))]
        std::hint::spin_loop();
        #[cfg(shuttle)]
        thread::yield_now();
    }
}
