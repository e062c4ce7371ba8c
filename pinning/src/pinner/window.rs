//! Windows: what an IOMMU lets a device see of guest memory.
//!
//! type1 and iommufd differ in their calls and in some answers, not in what a window is: a run of
//! frames at an IOVA, which is the guest address plus an offset. What they share is here.

use std::io;

use crate::{HostRange, Run, Stopped};

/// An address space that a device sees memory through: the kernel's, or a model of it.
///
/// One window is made by one `map`, whole or not at all, and goes as a whole.
pub trait Iommu: Send + Sync {
    /// Makes `host` visible to devices, for reading and writing, at `iova`.
    ///
    /// # Errors
    ///
    /// The system's error, by its number; nothing of the window is there then.
    fn map(&self, iova: u64, host: HostRange) -> io::Result<()>;

    /// Takes away all windows that lie in the `len` bytes from `iova`, lowest first. Returns how
    /// many bytes they had: fewer than `len` where the range had holes.
    ///
    /// # Errors
    ///
    /// [`UnmapError`]: the system's error, and what went before it.
    fn unmap(&self, iova: u64, len: u64) -> Result<u64, UnmapError>;

    /// What the operator can do about the error number `errno` of a map; empty where unknown.
    fn remedy(&self, errno: i32) -> &'static str;
}

/// Why windows are still there, and how many bytes of them are not.
#[derive(Debug)]
pub struct UnmapError {
    /// Bytes of windows, from the lowest on, that went in spite of the error.
    pub unmapped: u64,
    /// The system's error, by its number.
    pub source: io::Error,
}

impl From<io::Error> for UnmapError {
    fn from(source: io::Error) -> Self {
        UnmapError { unmapped: 0, source }
    }
}

/// Why a window could not be made or taken away. It is the inner error of [`Stopped::source`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WindowError {
    /// The window would not end below the last address that a device has.
    #[error(
        "guest address {address:#x} with IOVA offset {offset:#x} and {len:#x} bytes does not \
         end below 2^64: choose a lower offset"
    )]
    Beyond {
        /// Guest address of the run.
        address: u64,
        /// What is added to it.
        offset: u64,
        /// Bytes of the run.
        len: usize,
    },
    /// The kernel refused the window.
    #[error("a window of {len:#x} bytes at IOVA {iova:#x} was refused: {source}{remedy}")]
    Map {
        /// Where it would begin.
        iova: u64,
        /// Its bytes.
        len: usize,
        /// What can be done about it; empty where unknown.
        remedy: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The kernel did not take the windows away.
    #[error("windows in {len:#x} bytes at IOVA {iova:#x} could not be taken away: {source}")]
    Unmap {
        /// Where they begin.
        iova: u64,
        /// Their bytes.
        len: u64,
        /// The system's error.
        source: io::Error,
    },
    /// There was less to take away than had been mapped. All of it is gone now.
    #[error(
        "{unmapped:#x} of {len:#x} bytes at IOVA {iova:#x} were still mapped: some other user \
         of the address space took them away, or its last device left; give the pool one of its own"
    )]
    Missing {
        /// Where the windows began.
        iova: u64,
        /// Bytes that were mapped.
        len: u64,
        /// Bytes that were found.
        unmapped: u64,
    },
}

impl From<WindowError> for io::Error {
    fn from(error: WindowError) -> Self {
        let kind = match &error {
            WindowError::Beyond { .. } => io::ErrorKind::InvalidInput,
            WindowError::Map { source, .. } | WindowError::Unmap { source, .. } => source.kind(),
            WindowError::Missing { .. } => io::ErrorKind::NotFound,
        };
        io::Error::new(kind, error)
    }
}

/// Makes a window of every run at its guest address plus `offset`.
pub(super) fn map_runs(iommu: &impl Iommu, offset: u64, runs: &[Run<'_>]) -> Result<(), Stopped> {
    for (done, run) in runs.iter().enumerate() {
        map_run(iommu, offset, run).map_err(|error| Stopped { done, source: error.into() })?;
    }
    Ok(())
}

fn map_run(iommu: &impl Iommu, offset: u64, run: &Run<'_>) -> Result<(), WindowError> {
    let iova = iova(offset, run)?;
    iommu.map(iova, run.host).map_err(|source| WindowError::Map {
        iova,
        len: run.host.len(),
        remedy: source.raw_os_error().map_or("", |errno| iommu.remedy(errno)),
        source,
    })
}

/// Takes away the windows of `runs`, which were mapped one by one. With `joined`, runs that follow
/// each other without a gap go in one call.
pub(super) fn unmap_runs(
    iommu: &impl Iommu,
    offset: u64,
    runs: &[Run<'_>],
    joined: bool,
) -> Result<(), Stopped> {
    let mut done = 0;
    while let Some(first) = runs.get(done) {
        let iova = iova(offset, first).map_err(|error| Stopped { done, source: error.into() })?;
        let (count, len) =
            if joined { adjacent(offset, iova, &runs[done..]) } else { (1, len(first)) };
        match iommu.unmap(iova, len) {
            Ok(unmapped) if unmapped == len => done += count,
            // Whatever was there is gone: to count it as pinned any longer would let programs use
            // windows that do not exist.
            Ok(unmapped) => {
                let source = WindowError::Missing { iova, len, unmapped }.into();
                return Err(Stopped { done: done + count, source });
            }
            Err(UnmapError { unmapped, source }) => {
                done += whole_runs(&runs[done..done + count], unmapped);
                let source = WindowError::Unmap { iova, len, source }.into();
                return Err(Stopped { done, source });
            }
        }
    }
    Ok(())
}

/// Where a device sees the run. All of it is below 2^64.
fn iova(offset: u64, run: &Run<'_>) -> Result<u64, WindowError> {
    run.address
        .checked_add(offset)
        .filter(|iova| iova.checked_add(len(run)).is_some())
        .ok_or(WindowError::Beyond { address: run.address, offset, len: run.host.len() })
}

fn len(run: &Run<'_>) -> u64 {
    run.host.len() as u64
}

/// How many of `runs`, the first of which is at IOVA `first`, follow each other without a gap, and
/// how many bytes they have.
fn adjacent(offset: u64, first: u64, runs: &[Run<'_>]) -> (usize, u64) {
    let mut bytes = len(&runs[0]);
    let mut count = 1;
    while let Some(next) = runs.get(count)
        && iova(offset, next).is_ok_and(|next| next == first + bytes)
    {
        bytes += len(next);
        count += 1;
    }
    (count, bytes)
}

/// How many of `runs`, from the first on, are whole inside the first `bytes` of them.
fn whole_runs(runs: &[Run<'_>], bytes: u64) -> usize {
    let mut rest = bytes;
    let fits = |run: &&Run<'_>| rest.checked_sub(len(run)).map(|less| rest = less).is_some();
    runs.iter().take_while(fits).count()
}
