//! A task of this thread that waits for something, and is woken when that has come.

use std::cell::RefCell;
use std::task::Waker;

/// The task, once it has waited.
#[derive(Debug, Default)]
pub(crate) struct Sleeper(RefCell<Option<Waker>>);

impl Sleeper {
    /// It is the task of `waker` that waits from now on.
    #[inline]
    pub(crate) fn remember(&self, waker: &Waker) {
        let mut known = self.0.borrow_mut();
        match known.as_mut() {
            // Most often it is the same one: nothing is cloned then.
            Some(known) => known.clone_from(waker),
            None => *known = Some(waker.clone()),
        }
    }

    /// Lets it run.
    #[inline]
    pub(crate) fn wake(&self) {
        self.with(Waker::wake_by_ref);
    }

    /// Does something with its waker; `None`: nobody has waited yet.
    #[inline]
    pub(crate) fn with<R>(&self, with: impl FnOnce(&Waker) -> R) -> Option<R> {
        self.0.borrow().as_ref().map(with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Counted(AtomicU32);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_waited_last_is_woken() {
        let sleeper = Sleeper::default();
        sleeper.wake();
        assert_eq!(sleeper.with(|_| ()), None);
        let tasks = [Arc::<Counted>::default(), Arc::default()];
        for task in &tasks {
            sleeper.remember(&task.clone().into());
        }
        sleeper.wake();
        sleeper.wake();
        let woken = tasks.map(|task| task.0.load(Ordering::Relaxed));
        assert_eq!(woken, [0, 2]);
    }
}
