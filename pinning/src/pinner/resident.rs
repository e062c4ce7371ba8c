//! Pages locked in RAM.

use std::io;

use super::{Pinner, Run, Stopped};
use crate::HostRange;

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

    fn pin(&self, runs: &[Run<'_>]) -> Result<(), Stopped> {
        Stopped::at_first(runs, |run| {
            lock(run.host).inspect_err(|_| {
                // A failed mlock may have locked some of the pages; munlock of the others does nothing.
                let _ = unlock(run.host);
            })
        })
    }

    fn unpin(&self, runs: &[Run<'_>]) -> Result<(), Stopped> {
        Stopped::at_first(runs, |run| unlock(run.host))
    }

    /// A device in this process reaches every page: one that is not there is faulted in.
    fn is_needed(&self) -> bool {
        false
    }

    fn joins_frames(&self) -> bool {
        true
    }

    fn keeps_place(&self) -> bool {
        false
    }
}

fn lock(bytes: HostRange) -> io::Result<()> {
    // SAFETY: mlock only changes residency of mapped pages; it reads and writes nothing.
    // Test: `pool::tests::locked_bytes_follow_the_pool`.
    match unsafe { libc::mlock(bytes.as_ptr().cast(), bytes.len()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn unlock(bytes: HostRange) -> io::Result<()> {
    // SAFETY: munlock only changes residency of mapped pages; it reads and writes nothing.
    // Test: `pool::tests::locked_bytes_follow_the_pool`.
    match unsafe { libc::munlock(bytes.as_ptr().cast(), bytes.len()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
