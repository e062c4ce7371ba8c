//! What "pinned" means.

use std::io;

use crate::HostRange;

/// Pins and unpins runs of guest frames. Implementations say in their name what they really do.
///
/// The pool calls this off its lock, never twice for a frame that is pinned, and unpins exactly
/// what it pinned, though the runs may be cut and merged differently.
pub trait Pinner: Send + Sync {
    /// The name that metrics and reports use.
    fn name(&self) -> &'static str;

    /// Pins a run of whole frames at guest address `address`.
    ///
    /// # Errors
    ///
    /// The system's error; nothing of the run may stay pinned then.
    fn pin(&self, address: u64, frames: HostRange) -> io::Result<()>;

    /// Unpins a run of whole frames.
    ///
    /// # Errors
    ///
    /// The system's error; the pool then counts the run as still pinned.
    fn unpin(&self, address: u64, frames: HostRange) -> io::Result<()>;
}

/// Locks pages in RAM (`mlock`): no page fault and no swapping under an in-process device.
///
/// This is not a DMA pin: the kernel may still migrate a locked page. A device inside this process
/// does not notice; a device with its own address translation needs another pinner.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resident;

impl Pinner for Resident {
    fn name(&self) -> &'static str {
        "resident"
    }

    fn pin(&self, _address: u64, frames: HostRange) -> io::Result<()> {
        // SAFETY: mlock only changes residency of mapped pages; it reads and writes nothing.
        // Test: `pool::tests::locked_bytes_follow_the_pool`.
        match unsafe { libc::mlock(frames.as_ptr().cast(), frames.len()) } {
            0 => Ok(()),
            _ => {
                let error = io::Error::last_os_error();
                // A failed mlock may have locked some of the pages; munlock of the others is a no-op.
                // SAFETY: as above.
                unsafe { libc::munlock(frames.as_ptr().cast(), frames.len()) };
                Err(error)
            }
        }
    }

    fn unpin(&self, _address: u64, frames: HostRange) -> io::Result<()> {
        // SAFETY: munlock only changes residency of mapped pages; it reads and writes nothing.
        // Test: `pool::tests::locked_bytes_follow_the_pool`.
        match unsafe { libc::munlock(frames.as_ptr().cast(), frames.len()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
