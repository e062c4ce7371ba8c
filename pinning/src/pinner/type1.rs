//! Windows in a VFIO container of type1: what the kernel's vfio-ccw sees guest memory through.
//!
//! A window pins nothing by itself for vfio-ccw: the driver pins the pages of each program while it
//! runs, and finds them through the windows (`drivers/vfio/vfio_iommu_type1.c`). A page without a
//! window does not exist for it, so what the pool holds is what programs can reach. A window that
//! is taken away under a program resets the subchannel; the pool never does that, as a held frame
//! is never unpinned.

mod info;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(super) use model::Model;

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::window::{map_runs, unmap_runs};
use super::{Iommu, Pinner, Run, Stopped, UnmapError, ioctl};
use crate::HostRange;

/// Windows of a container where the kernel does not say how many it has (`dma_entry_limit` of
/// `vfio_iommu_type1`, unless it was changed).
pub const MOST_WINDOWS: u32 = u16::MAX as u32;

/// Makes a window of every frame, at its guest address plus an offset.
///
/// The container may be shared with the VMM, as long as only the pool maps what lies in guest
/// memory.
#[derive(Debug)]
pub struct Type1<I = Container> {
    iommu: I,
    offset: u64,
    most_windows: u32,
}

impl Type1<Container> {
    /// Over `container`, at guest address plus `offset` bytes. Reads how many windows are left in
    /// it.
    ///
    /// # Errors
    ///
    /// See [`ContainerError`].
    pub fn new(container: Container, offset: u64) -> Result<Self, ContainerError> {
        let most_windows = container.windows_left()?.unwrap_or(MOST_WINDOWS);
        Ok(Type1::with_iommu(container, offset, most_windows))
    }
}

impl<I: Iommu> Type1<I> {
    /// Over any IOMMU that behaves as type1 does, with at most `most_windows` windows of this pool.
    pub fn with_iommu(iommu: I, offset: u64, most_windows: u32) -> Self {
        Type1 { iommu, offset, most_windows }
    }
}

impl<I: Iommu> Pinner for Type1<I> {
    fn name(&self) -> &'static str {
        "type1"
    }

    fn pin(&self, runs: &[Run<'_>]) -> Result<(), Stopped> {
        map_runs(&self.iommu, self.offset, runs)
    }

    /// Adjacent runs go in one call: version 2 takes any number of whole windows at once, and looks
    /// at both ends of the range before it takes the first.
    fn unpin(&self, runs: &[Run<'_>]) -> Result<(), Stopped> {
        unmap_runs(&self.iommu, self.offset, runs, true)
    }

    fn joins_frames(&self) -> bool {
        false
    }

    fn most_runs(&self) -> Option<u32> {
        Some(self.most_windows)
    }

    fn keeps_place(&self) -> bool {
        false
    }
}

/// The kernel's container, with type1 version 2 as its IOMMU.
#[derive(Debug)]
pub struct Container(OwnedFd);

/// Why a descriptor cannot serve as a container.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerError {
    /// It is no VFIO container.
    #[error("the descriptor is not a VFIO container: open /dev/vfio/vfio and hand that over")]
    NotAContainer,
    /// It is a container that has no IOMMU yet.
    #[error(
        "the container has no IOMMU: add a device's group to it and set VFIO_TYPE1v2_IOMMU first"
    )]
    NoIommu,
    /// Its IOMMU is type1 of version 1, whose unmap may do less or more than it is told.
    #[error("the container's IOMMU is type1 version 1: set VFIO_TYPE1v2_IOMMU")]
    Version1,
    /// The kernel did not say what it is.
    #[error("the container did not say what it is: {0}")]
    Info(#[source] io::Error),
}

impl ContainerError {
    fn from_info(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOTTY) => ContainerError::NotAContainer,
            // vfio_fops_unl_ioctl() answers so for every request of an IOMMU that is not there.
            Some(libc::EINVAL) => ContainerError::NoIommu,
            _ => ContainerError::Info(error),
        }
    }
}

impl Container {
    /// Takes a container that has a device's group in it and its IOMMU set. A VMM that keeps using
    /// its own hands over a duplicate.
    ///
    /// # Errors
    ///
    /// See [`ContainerError`].
    pub fn new(container: OwnedFd) -> Result<Self, ContainerError> {
        ioctl::type1_info(container.as_fd(), &mut [0; info::LEAST])
            .map_err(ContainerError::from_info)?;
        match ioctl::type1_is_v2(container.as_fd()) {
            Some(false) => Err(ContainerError::Version1),
            _ => Ok(Container(container)),
        }
    }

    /// How many more windows the container takes; `None` where the kernel does not say (before
    /// 5.10).
    ///
    /// # Errors
    ///
    /// [`ContainerError::Info`]: the kernel refused.
    pub fn windows_left(&self) -> Result<Option<u32>, ContainerError> {
        info::windows_left(|answer| ioctl::type1_info(self.0.as_fd(), answer))
            .map_err(ContainerError::from_info)
    }
}

impl Iommu for Container {
    fn map(&self, iova: u64, host: HostRange) -> io::Result<()> {
        ioctl::type1_map(self.0.as_fd(), iova, host)
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<u64, UnmapError> {
        ioctl::type1_unmap(self.0.as_fd(), iova, len)
            .map_err(|(unmapped, source)| UnmapError { unmapped, source })
    }

    fn remedy(&self, errno: i32) -> &'static str {
        remedy(errno)
    }
}

/// What each refusal of `vfio_dma_do_map()` asks of the operator.
fn remedy(errno: i32) -> &'static str {
    match errno {
        libc::ENOMEM => {
            " (the device's IOMMU locks pages: raise RLIMIT_MEMLOCK with 'ulimit -l', grant \
             CAP_IPC_LOCK, or lower the pin budget)"
        }
        libc::ENOSPC => {
            " (the container is full: raise 'dma_entry_limit' of vfio_iommu_type1, choose larger \
             frames, or lower the pin budget)"
        }
        libc::EEXIST => {
            " (something else is mapped there: leave guest memory in this container to the pool, \
             or choose another offset)"
        }
        libc::EINVAL => {
            " (the IOVA is reserved or beyond what the devices reach, or the IOMMU's pages are \
             larger than a frame: choose another offset or larger frames)"
        }
        _ => "",
    }
}
