//! Waiting on a control thread, for as long as its caller has patience.

use std::sync::Arc;
use std::task::{Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// A thread that sleeps until it is woken or its time is over.
pub(crate) struct Patience {
    waker: Waker,
    duration: Duration,
    /// `None`: for ever.
    until: Option<Instant>,
}

impl Patience {
    /// Of the calling thread, from now on.
    pub(crate) fn of(duration: Duration) -> Self {
        // A time beyond the clock's end is for ever.
        Patience { duration, until: Instant::now().checked_add(duration), ..Self::unlimited() }
    }

    /// Of the calling thread, for ever.
    pub(crate) fn unlimited() -> Self {
        Patience {
            waker: Waker::from(Arc::new(Unpark(thread::current()))),
            duration: Duration::MAX,
            until: None,
        }
    }

    /// How long it was in all.
    pub(crate) fn duration(&self) -> Duration {
        self.duration
    }

    /// How much is left of its time.
    pub(crate) fn left(&self) -> Duration {
        self.until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()))
    }

    /// Wakes it.
    pub(crate) fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Sleeps until woken, perhaps for no reason. `false`: its time is over.
    pub(crate) fn wait(&self) -> bool {
        let Some(until) = self.until else {
            thread::park();
            return true;
        };
        match until.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => {
                thread::park_timeout(left);
                true
            }
            _ => false,
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_patience_is_over_at_once_and_a_wake_is_not_lost() {
        assert!(!Patience::of(Duration::ZERO).wait());
        let patience = Patience::unlimited();
        patience.waker().wake_by_ref();
        assert!(patience.wait());
        assert!(Patience::of(Duration::MAX).until.is_none());
        assert_eq!(Patience::unlimited().left(), Duration::MAX);
        assert_eq!(Patience::of(Duration::ZERO).left(), Duration::ZERO);
    }
}
