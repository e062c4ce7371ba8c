//! The need-wakeup protocol: waking a consumer costs a system call only when it sleeps.
//!
//! A write to an eventfd is a system call of some hundred nanoseconds, and a consumer that is
//! running does not need it. So the consumer says when it is about to sleep, and the producer looks.
//! Linux's io_uring has the same in `IORING_SQ_NEED_WAKEUP`.
//!
//! # The race, and the two fences that close it
//!
//! ```text
//! producer                                 consumer
//! --------                                 --------
//! P1 publish work                          C1 state = asleep          (prepare_sleep)
//! P2 fence(SeqCst)  <----- pairs with ---> C2 fence(SeqCst)
//! P3 state == asleep? then wake            C3 is there work? then do not sleep
//! ```
//!
//! Without the fences both sides may read before their own writes are visible: the producer sees
//! "awake", the consumer sees "no work", and the work lies there while the consumer sleeps. Sequentially
//! consistent fences have one order that all threads agree on. If P2 comes first, C3 sees P1 and the
//! consumer stays up. If C2 comes first, P3 sees C1 and the producer wakes it. Release and acquire
//! alone do not give that, whatever they are put on: the model `loom_model::no_wakeup_is_lost` fails
//! without either fence.
//!
//! # One write for each sleep
//!
//! The state has three values, and any number of producers can race for the wake-up:
//!
//! * *awake* → *asleep*: the consumer, in [`Wakeup::prepare_sleep`].
//! * *asleep* → *rung*: the one producer whose compare-and-swap succeeds; only that one writes the
//!   eventfd.
//! * any → *awake*: the consumer, in [`Wakeup::awake`]. When it was *rung* the consumer owes the
//!   eventfd a read. When it was not, it saves that system call.
//!
//! The write comes after the compare-and-swap, so a consumer that wakes for another reason may find
//! *rung* and nothing to read yet. It keeps count of signals it still has to collect, so that a late
//! one costs a needless wake-up at most once.

use std::fmt;
use std::io;
#[cfg(not(loom))]
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
#[cfg(not(loom))]
use std::time::{Duration, Instant};

use crate::event::Event;
use crate::sync::{AtomicU8, AtomicU64, Ordering, fence};

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const RUNG: u8 = 2;

/// A sleeping flag and the eventfd that ends the sleep.
///
/// Any thread may call [`wake_if_asleep`](Self::wake_if_asleep). The other methods that change
/// something belong to the one consumer; if two threads call them, wake-ups get lost.
pub struct Wakeup {
    state: AtomicU8,
    event: Event,
    sent: AtomicU64,
    /// Signals that producers decided to send and that have not been read back. Consumer only.
    owed: AtomicU64,
    #[cfg(not(loom))]
    made: Instant,
    /// Nanoseconds from `made` to the last write.
    #[cfg(not(loom))]
    rang: AtomicU64,
}

impl Wakeup {
    /// Creates the eventfd, non-blocking and close-on-exec. The consumer counts as awake.
    ///
    /// # Errors
    /// Those of eventfd(2): no free descriptor in the process or the system, or no memory.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            state: AtomicU8::new(AWAKE),
            event: Event::new()?,
            sent: AtomicU64::new(0),
            owed: AtomicU64::new(0),
            #[cfg(not(loom))]
            made: Instant::now(),
            #[cfg(not(loom))]
            rang: AtomicU64::new(0),
        })
    }

    /// Wakes the consumer if it sleeps or is about to. Call it after publishing work.
    ///
    /// At most one system call, and none while the consumer is running or has been woken by someone
    /// else. Returns whether this call was the one that woke it.
    #[inline]
    pub fn wake_if_asleep(&self) -> bool {
        // SeqCst: pairs with the fence in `prepare_sleep`. Puts the work that the caller published
        // before the look at the state.
        fence(Ordering::SeqCst);
        // Relaxed: the fence orders it.
        self.state.load(Ordering::Relaxed) == ASLEEP && self.wake()
    }

    #[cold]
    fn wake(&self) -> bool {
        // Release: pairs with the acquire of the swap in `awake`. Relaxed on failure: another
        // producer rings, or the consumer is up; either way there is nothing to do.
        let won =
            self.state.compare_exchange(ASLEEP, RUNG, Ordering::Release, Ordering::Relaxed).is_ok();
        if won {
            #[cfg(not(loom))]
            // Relaxed: for a forecast only.
            self.rang.store(self.elapsed(), Ordering::Relaxed);
            self.event.signal();
            // Relaxed: a statistic.
            self.sent.fetch_add(1, Ordering::Relaxed);
        }
        won
    }

    /// Announces that the consumer will sleep, unless `is_idle` says that there is work after all.
    ///
    /// `true`: wait for the descriptor to become readable, then call [`awake`](Self::awake).
    /// `false`: there is work, nothing is announced.
    pub fn prepare_sleep(&self, is_idle: impl FnOnce() -> bool) -> bool {
        self.awake();
        // Relaxed: the fence orders it.
        self.state.store(ASLEEP, Ordering::Relaxed);
        // SeqCst: pairs with the fence in `wake_if_asleep`. Puts the announcement before the look
        // for work.
        fence(Ordering::SeqCst);
        let sleep = is_idle();
        if !sleep {
            self.awake();
        }
        sleep
    }

    /// Ends a sleep, whatever ended it. Reads the eventfd only if someone rang.
    pub fn awake(&self) {
        // Relaxed: only the consumer sets and unsets "awake", so it reads its own last word.
        if self.state.load(Ordering::Relaxed) != AWAKE {
            // Acquire: pairs with the release in `wake`. Relaxed would do for the write: what
            // producers have to see is ordered by the fences.
            let was = self.state.swap(AWAKE, Ordering::Acquire);
            self.owe(u64::from(was == RUNG));
        }
        // Relaxed, also in `owe`: written and read by the consumer only.
        let owed = self.owed.load(Ordering::Relaxed);
        if owed > 0 {
            self.owed.store(owed.saturating_sub(self.event.collect()), Ordering::Relaxed);
        }
    }

    fn owe(&self, signals: u64) {
        let owed = self.owed.load(Ordering::Relaxed);
        self.owed.store(owed + signals, Ordering::Relaxed);
    }

    /// Nanoseconds since it was made.
    #[cfg(not(loom))]
    pub fn elapsed(&self) -> u64 {
        self.made.elapsed().as_nanos().try_into().unwrap_or(u64::MAX)
    }

    /// When a producer last woke the consumer, in nanoseconds since this was made; 0: never.
    #[cfg(not(loom))]
    pub fn rang(&self) -> u64 {
        // Relaxed: as in `wake`.
        self.rang.load(Ordering::Relaxed)
    }

    /// How often the eventfd was written.
    pub fn sent(&self) -> u64 {
        // Relaxed: a statistic.
        self.sent.load(Ordering::Relaxed)
    }

    /// Blocks until someone rings or `timeout` has passed (`None`: no limit). May return early.
    ///
    /// # Errors
    /// Those of ppoll(2) except EINTR, which counts as returning early.
    #[cfg(not(loom))]
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.event.wait(timeout).map(drop)
    }
}

impl fmt::Debug for Wakeup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state.load(Ordering::Relaxed) {
            ASLEEP => "asleep",
            RUNG => "rung",
            _ => "awake",
        };
        f.debug_struct("Wakeup")
            .field("state", &state)
            .field("sent", &self.sent())
            .field("event", &self.event)
            .finish_non_exhaustive()
    }
}

#[cfg(not(loom))]
impl AsRawFd for Wakeup {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

#[cfg(not(loom))]
impl AsFd for Wakeup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;
    use crate::sync::AtomicBool;

    fn readable(wakeup: &Wakeup) -> bool {
        wakeup.event.wait(Some(Duration::ZERO)).unwrap()
    }

    #[test]
    fn a_running_consumer_costs_no_system_call() {
        let wakeup = Wakeup::new().unwrap();
        assert!(!wakeup.wake_if_asleep());
        assert!(!wakeup.prepare_sleep(|| false));
        assert!(!wakeup.wake_if_asleep());
        assert_eq!((wakeup.sent(), readable(&wakeup)), (0, false));
    }

    #[test]
    fn one_write_for_each_sleep() {
        let wakeup = Wakeup::new().unwrap();
        for sleep in 1..4 {
            assert!(wakeup.prepare_sleep(|| true));
            assert!(!readable(&wakeup));
            assert!(wakeup.wake_if_asleep());
            assert!(!wakeup.wake_if_asleep());
            assert!(readable(&wakeup));
            wakeup.awake();
            assert_eq!((wakeup.sent(), readable(&wakeup)), (sleep, false));
        }
    }

    #[test]
    fn preparing_again_forgets_the_last_ring() {
        let wakeup = Wakeup::new().unwrap();
        assert!(wakeup.prepare_sleep(|| true));
        assert!(wakeup.wake_if_asleep());
        assert!(wakeup.prepare_sleep(|| true));
        assert!(!readable(&wakeup));
        assert!(wakeup.wake_if_asleep());
    }

    /// A producer that has won the wake-up and is descheduled before its write.
    #[test]
    fn a_late_signal_is_collected_by_the_next_awake() {
        let wakeup = Wakeup::new().unwrap();
        assert!(wakeup.prepare_sleep(|| true));
        wakeup.state.store(RUNG, Ordering::Relaxed);
        wakeup.awake();
        wakeup.event.signal();
        assert!(wakeup.prepare_sleep(|| true));
        assert!(!readable(&wakeup), "collected before the next sleep");
        wakeup.awake();
        assert_eq!(wakeup.owed.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn every_sleep_ends() {
        const ROUNDS: usize = 2_000;
        let shared = Arc::new((Wakeup::new().unwrap(), AtomicBool::new(false)));
        let producer = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let (wakeup, work) = &*shared;
                for _ in 0..ROUNDS {
                    while work.load(Ordering::Acquire) {
                        thread::yield_now();
                    }
                    work.store(true, Ordering::Release);
                    wakeup.wake_if_asleep();
                }
            })
        };
        let (wakeup, work) = &*shared;
        for _ in 0..ROUNDS {
            while wakeup.prepare_sleep(|| !work.load(Ordering::Acquire)) {
                wakeup.wait(None).unwrap();
                wakeup.awake();
            }
            work.store(false, Ordering::Release);
        }
        producer.join().unwrap();
        assert!(wakeup.sent() <= ROUNDS as u64);
    }
}

#[cfg(all(test, loom))]
mod loom_model {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;
    use crate::sync::{AtomicBool, check};

    /// Whatever the interleaving, a consumer that went to sleep with work there has been rung.
    #[test]
    fn no_wakeup_is_lost() {
        check(3, || {
            let shared = Arc::new((Wakeup::new().unwrap(), AtomicBool::new(false)));
            let producer = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    shared.1.store(true, Ordering::Relaxed);
                    shared.0.wake_if_asleep();
                })
            };
            let (wakeup, work) = &*shared;
            let sleeps = wakeup.prepare_sleep(|| !work.load(Ordering::Relaxed));
            producer.join().unwrap();
            if sleeps {
                assert_eq!((wakeup.sent(), wakeup.event.collect()), (1, 1));
            }
        });
    }

    /// A consumer that gets up by itself while producers ring: every signal is accounted for.
    #[test]
    fn no_signal_is_left_over() {
        check(3, || {
            let wakeup = Arc::new(Wakeup::new().unwrap());
            let producers = [(); 2].map(|()| {
                let wakeup = Arc::clone(&wakeup);
                thread::spawn(move || wakeup.wake_if_asleep())
            });
            wakeup.prepare_sleep(|| true);
            wakeup.awake();
            let woken = producers.map(|producer| producer.join().unwrap());
            assert_ne!(woken, [true, true]);
            wakeup.awake();
            assert_eq!(wakeup.event.collect(), 0);
            assert_eq!(wakeup.sent(), u64::from(woken != [false, false]));
        });
    }
}
