//! Waiting for eventfds and rings on the shard's runtime.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::IoUring;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use vmm_sys_util::eventfd::EventFd;

use crate::subchannel::Door;

/// Owners of one descriptor that stays open, and the same one, for as long as they live.
trait OwnsDescriptor: AsRawFd {}
impl OwnsDescriptor for EventFd {}
impl OwnsDescriptor for Arc<Door> {}
impl OwnsDescriptor for IoUring {}
impl OwnsDescriptor for OwnedFd {}

/// Watches an eventfd for signals.
///
/// # Errors
///
/// The system's: out of memory, or too many watches.
pub(crate) fn eventfd(fd: EventFd) -> io::Result<AsyncFd<EventFd>> {
    register(fd)
}

/// Watches a descriptor for something to read.
///
/// # Errors
///
/// As [`eventfd`].
pub(crate) fn descriptor(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    register(fd)
}

/// Watches a doorbell's eventfd for wake-ups.
///
/// # Errors
///
/// As [`eventfd`].
pub(crate) fn door(door: Arc<Door>) -> io::Result<AsyncFd<Arc<Door>>> {
    register(door)
}

/// Watches an io_uring for completions.
///
/// # Errors
///
/// As [`eventfd`].
pub(crate) fn ring(ring: IoUring) -> io::Result<AsyncFd<IoUring>> {
    register(ring)
}

fn register<T: OwnsDescriptor>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the descriptor stays open and the same until `owner` is dropped, which the AsyncFd
    // does after deregistering. Test: `a_signal_is_seen_once`.
    unsafe { AsyncFd::register_with_interest(owner, Interest::READABLE) }.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_signal_is_seen_once() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let watched = eventfd(EventFd::new(libc::EFD_NONBLOCK).unwrap()).unwrap();
            for _ in 0..3 {
                watched.get_ref().write(1).unwrap();
                watched.readable().await.unwrap().clear_ready();
            }
            // The counter was never read back: only new writes are events.
            let quiet = tokio::time::timeout(Duration::from_millis(20), watched.readable()).await;
            assert!(quiet.is_err());
        });
    }
}
