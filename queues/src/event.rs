//! The kernel object behind a wake-up: an eventfd, or an atomic counter in a loom model.

#[cfg(loom)]
pub(crate) use model::Event;
#[cfg(not(loom))]
pub(crate) use real::Event;

#[cfg(not(loom))]
mod real {
    use std::io;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
    use std::ptr;
    use std::time::Duration;

    use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

    /// A non-blocking eventfd.
    #[derive(Debug)]
    pub(crate) struct Event(EventFd);

    impl Event {
        pub(crate) fn new() -> io::Result<Self> {
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Self)
        }

        /// Makes the descriptor readable.
        pub(crate) fn signal(&self) {
            // The one error of a write of 1 to an open eventfd is EAGAIN: the counter is at its
            // limit of 2^64 - 2 (eventfd(2)). It is readable then, which is all that is wanted.
            if let Err(error) = self.0.write(1) {
                debug_assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
            }
        }

        /// Resets the counter and returns how many signals it held.
        pub(crate) fn collect(&self) -> u64 {
            // The one error is EAGAIN: there were none.
            self.0.read().unwrap_or(0)
        }

        /// Blocks until the descriptor is readable, `timeout` has passed (`None`: no limit), or a
        /// signal handler ran. Tells whether it is readable.
        ///
        /// # Errors
        /// Those of ppoll(2) except EINTR.
        pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
            let mut descriptor =
                libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let timeout = timeout.map(|timeout| libc::timespec {
                tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
                tv_nsec: timeout.subsec_nanos().into(),
            });
            let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
            // SAFETY: one live pollfd, and a timespec that is null or outlives the call; a bad
            // pointer fails `completion::tests::waiting_ends_at_the_timeout` with EFAULT.
            let ready = unsafe { libc::ppoll(&mut descriptor, 1, timeout, ptr::null()) };
            match ready {
                0.. => Ok(ready > 0),
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
                    error => Err(error),
                },
            }
        }
    }

    impl AsRawFd for Event {
        fn as_raw_fd(&self) -> RawFd {
            self.0.as_raw_fd()
        }
    }

    impl AsFd for Event {
        fn as_fd(&self) -> BorrowedFd<'_> {
            // SAFETY: the descriptor is open for as long as `self`, which the result borrows;
            // `doorbell::tests::descriptor_is_readable_once_rung` polls it.
            unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
        }
    }
}

#[cfg(loom)]
mod model {
    use std::io;

    use crate::sync::{AtomicU64, Ordering};

    /// A counter with an eventfd's semantics; the kernel's lock becomes release and acquire.
    #[derive(Debug)]
    pub(crate) struct Event(AtomicU64);

    impl Event {
        pub(crate) fn new() -> io::Result<Self> {
            Ok(Self(AtomicU64::new(0)))
        }

        pub(crate) fn signal(&self) {
            // Release: pairs with the acquire in `collect`.
            self.0.fetch_add(1, Ordering::Release);
        }

        pub(crate) fn collect(&self) -> u64 {
            // Acquire: pairs with the release in `signal`.
            self.0.swap(0, Ordering::Acquire)
        }
    }
}
