//! What the cases see of a device: the calls that a user of `/dev/vfio` has.

use std::fmt;
use std::os::fd::OwnedFd;

use vfio_ccw::backend::{DeviceInfo, Errno, IrqInfo, IrqSet, RegionInfo};

/// How a call ended that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// With this errno.
    Errno(Errno),
    /// The target has no such call, or nothing that could be asked for with it.
    NotThere,
}

/// The answer to a call.
pub type Answer<T> = Result<T, Failure>;

/// What the data of SET_IRQS is.
#[derive(Clone, Copy, Debug)]
pub enum Signal<'a> {
    /// None.
    None,
    /// A byte.
    Bool(u8),
    /// This eventfd, or something that is none.
    Descriptor(&'a OwnedFd),
    /// This number for a descriptor: -1 takes the eventfd away.
    Number(i32),
}

/// A number that no descriptor has.
pub const CLOSED: i32 = 999;

/// A device under test. Memory is the session's; windows are over parts of it.
pub trait Target {
    fn info(&mut self) -> Answer<DeviceInfo>;

    fn region_info(&mut self, index: u32, argsz: u32) -> Answer<RegionInfo>;

    fn irq_info(&mut self, index: u32) -> Answer<IrqInfo>;

    fn set_irqs(&mut self, set: &IrqSet, signal: Signal<'_>) -> Answer<()>;

    fn reset(&mut self) -> Answer<()>;

    /// The device is closed, then opened again; its eventfds are not set any more.
    fn reopen(&mut self) -> Answer<()>;

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Answer<usize>;

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Answer<usize>;

    /// An ioctl that no vfio device has.
    fn unknown_ioctl(&mut self) -> Answer<()>;

    /// A window at `iova` over `len` bytes of the session's memory from `at` on; `access` as in
    /// `VFIO_IOMMU_MAP_DMA`.
    fn map(&mut self, iova: u64, at: usize, len: usize, access: u32) -> Answer<()>;

    /// A window over memory that is then gone.
    fn map_nothing(&mut self, iova: u64, len: usize) -> Answer<()>;

    /// The bytes that were unmapped.
    fn unmap(&mut self, iova: u64, len: u64) -> Answer<u64>;

    /// Lets what was started come as far as it can. `false`: it does so by itself, and its interrupt has to
    /// be waited for.
    fn settle(&mut self) -> bool;
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Failure::Errno(errno)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Errno(errno) => f.pad(&errno_name(errno.0)),
            Failure::NotThere => f.pad("n/a"),
        }
    }
}

/// The name of an errno that may be met here.
pub fn errno_name(errno: i32) -> String {
    let name = match errno {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::EIO => "EIO",
        libc::EBADF => "EBADF",
        libc::EAGAIN => "EAGAIN",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::ENODEV => "ENODEV",
        libc::EINVAL => "EINVAL",
        libc::ENOTTY => "ENOTTY",
        libc::EOVERFLOW => "EOVERFLOW",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        _ => return format!("errno {errno}"),
    };
    name.to_owned()
}

/// An answer as it stands in a line.
pub fn show<T: fmt::Display>(answer: &Answer<T>) -> String {
    answer.as_ref().map_or_else(Failure::to_string, T::to_string)
}

/// The same for a call that gives nothing.
pub fn done(answer: &Answer<()>) -> String {
    show(&answer.map(|()| "ok"))
}
