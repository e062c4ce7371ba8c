//! Windows in an address space (IOAS) of an iommufd, the successor of VFIO's containers.
//!
//! As with type1, a window pins nothing for vfio-ccw: the driver finds the pages of each program
//! through it and pins them while the program runs (`drivers/iommu/iommufd/io_pagetable.c`). Unlike
//! type1, windows are not limited in number; what they cost the kernel is charged to the process.

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

/// Makes a window of every frame, at its guest address plus an offset.
#[derive(Debug)]
pub struct Iommufd<I = Ioas> {
    iommu: I,
    offset: u64,
}

impl<I: Iommu> Iommufd<I> {
    /// Over `ioas` (or any IOMMU that behaves so), at guest address plus `offset` bytes.
    pub fn new(ioas: I, offset: u64) -> Self {
        Iommufd { iommu: ioas, offset }
    }
}

impl<I: Iommu> Pinner for Iommufd<I> {
    fn name(&self) -> &'static str {
        "iommufd"
    }

    fn pin(&self, runs: &[Run<'_>]) -> Result<(), Stopped> {
        map_runs(&self.iommu, self.offset, runs)
    }

    /// One call for each run: of a range with several windows the kernel may take some away, fail,
    /// and not say how many (`iopt_unmap_iova_range`).
    fn unpin(&self, runs: &[Run<'_>]) -> Result<(), Stopped> {
        unmap_runs(&self.iommu, self.offset, runs, false)
    }

    fn joins_frames(&self) -> bool {
        false
    }

    fn keeps_place(&self) -> bool {
        false
    }
}

/// An address space of the kernel's.
#[derive(Debug)]
pub struct Ioas {
    iommufd: OwnedFd,
    id: u32,
}

/// Why an address space cannot serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IoasError {
    /// The descriptor is no iommufd.
    #[error("the descriptor is not an iommufd: open /dev/iommu and hand that over")]
    NotAnIommufd,
    /// There is no address space of that number.
    #[error("there is no IOAS {id} in the iommufd: allocate one with IOMMU_IOAS_ALLOC")]
    NoSuchIoas {
        /// The number that was given.
        id: u32,
    },
    /// The kernel refused.
    #[error("the iommufd gave no IOAS: {0}")]
    Refused(#[source] io::Error),
}

impl IoasError {
    fn from_refusal(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOTTY) => IoasError::NotAnIommufd,
            _ => IoasError::Refused(error),
        }
    }
}

impl Ioas {
    /// Takes address space `id` of `iommufd`. A VMM that keeps using its own iommufd hands over a
    /// duplicate; the address space stays its own to destroy.
    ///
    /// # Errors
    ///
    /// See [`IoasError`].
    pub fn new(iommufd: OwnedFd, id: u32) -> Result<Self, IoasError> {
        match ioctl::ioas_exists(iommufd.as_fd(), id) {
            Ok(()) => Ok(Ioas { iommufd, id }),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                Err(IoasError::NoSuchIoas { id })
            }
            Err(error) => Err(IoasError::from_refusal(error)),
        }
    }

    /// Makes a new address space in `iommufd`. It goes when the last duplicate of the iommufd does.
    ///
    /// # Errors
    ///
    /// See [`IoasError`].
    pub fn allocate(iommufd: OwnedFd) -> Result<Self, IoasError> {
        let id = ioctl::ioas_alloc(iommufd.as_fd()).map_err(IoasError::from_refusal)?;
        Ok(Ioas { iommufd, id })
    }

    /// Its number, to attach devices to.
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl Iommu for Ioas {
    fn map(&self, iova: u64, host: HostRange) -> io::Result<()> {
        ioctl::ioas_map(self.iommufd.as_fd(), self.id, iova, host)
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<u64, UnmapError> {
        Ok(ioctl::ioas_unmap(self.iommufd.as_fd(), self.id, iova, len)?)
    }

    fn remedy(&self, errno: i32) -> &'static str {
        remedy(errno)
    }
}

/// What each refusal of `iommufd_ioas_map()` asks of the operator.
fn remedy(errno: i32) -> &'static str {
    match errno {
        libc::ENOMEM => {
            " (the device's IOMMU locks pages: raise RLIMIT_MEMLOCK with 'ulimit -l', or lower the \
             pin budget; or the memory cgroup is at its limit)"
        }
        libc::EEXIST => {
            " (something else is mapped there: leave guest memory in this IOAS to the pool, or \
             choose another offset)"
        }
        libc::EINVAL => {
            " (the IOVA is reserved or beyond what the devices reach, or the IOMMU's pages are \
             larger than a frame: choose another offset or larger frames)"
        }
        libc::ENOENT => " (the IOAS was destroyed: keep it for as long as the pool)",
        _ => "",
    }
}
