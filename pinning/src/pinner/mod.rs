//! What "pinned" means: one answer a back end, each named for what it really does.

pub mod capability;
#[cfg(test)]
mod contract;
#[cfg(test)]
mod guest;
mod ioctl;
pub mod iommufd;
#[cfg(test)]
mod pooled;
pub mod registered;
mod resident;
pub mod type1;
pub mod vfio_user;
mod window;

use std::io;

use crate::{HostRange, Region};

pub use iommufd::Iommufd;
pub use registered::Registered;
pub use resident::Resident;
pub use type1::Type1;
pub use vfio_user::VfioUser;
pub use window::{Iommu, UnmapError, WindowError};

/// A run of adjacent frames of one region.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Guest absolute address of its first byte.
    pub address: u64,
    /// Its bytes in this process.
    pub host: HostRange,
    /// Number of its first frame.
    pub frame: u32,
    /// Frames in it.
    pub frames: u32,
    /// The region that it is part of.
    pub region: &'a Region,
}

/// A pinner stopped in the middle of a list of runs.
#[derive(Debug)]
pub struct Stopped {
    /// Runs before this one are done, those from it on are as they were.
    pub done: usize,
    /// What stopped it.
    pub source: io::Error,
}

impl Stopped {
    /// Does `each` with the runs in order, and stops at the first that fails.
    pub(crate) fn at_first<E: Into<io::Error>>(
        runs: &[Run<'_>],
        mut each: impl FnMut(&Run<'_>) -> Result<(), E>,
    ) -> Result<(), Stopped> {
        runs.iter().enumerate().try_for_each(|(done, run)| {
            each(run).map_err(|error| Stopped { done, source: error.into() })
        })
    }
}

/// Pins and unpins runs of guest frames. Implementations say in their name what they really do.
///
/// The pool calls this off its lock, with all runs of a program at once, never twice for a frame
/// that is pinned, and unpins exactly what it pinned.
pub trait Pinner: Send + Sync {
    /// The name that metrics and reports use.
    fn name(&self) -> &'static str;

    /// Pins runs of whole frames, in order.
    ///
    /// # Errors
    ///
    /// The system's error and how far it came; nothing of the runs from there on may stay pinned.
    fn pin(&self, runs: &[Run<'_>]) -> Result<(), Stopped>;

    /// Unpins runs of whole frames, in order.
    ///
    /// # Errors
    ///
    /// The system's error and how far it came; the pool counts the rest as still pinned.
    fn unpin(&self, runs: &[Run<'_>]) -> Result<(), Stopped>;

    /// Whether a device reaches only what is pinned. Where not, a program that finds no room runs
    /// without its pages being pinned, and a metric says so.
    fn is_needed(&self) -> bool {
        true
    }

    /// Whether runs may be cut and joined between pin and unpin. Where not, the pool hands over each
    /// frame as a run of its own: most mappings can only be taken away as they were made.
    fn joins_frames(&self) -> bool;

    /// Most runs that can be pinned at one time; `None` where the budget alone decides.
    fn most_runs(&self) -> Option<u32> {
        None
    }

    /// Whether a pinned page keeps its place in physical memory.
    fn keeps_place(&self) -> bool;
}
