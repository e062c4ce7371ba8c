//! The address space that passed-through devices of one guest share: a container, or an IOAS of an
//! iommufd.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use vfio_ccw_pinning::pinner::iommufd::{Ioas, IoasError};
use vfio_ccw_pinning::pinner::type1::{self, Container, ContainerError};
use vfio_ccw_pinning::pinner::{Iommu, UnmapError};
use vfio_ccw_pinning::{HostRange, Iommufd, Pinner, Type1};

use crate::shadow::GUEST_IOVA;

use super::device::{Device, DeviceError};
use super::ioctl;
use super::location::Location;

/// Windows that are left for shadow programs.
const MOST_ARENAS: u32 = 64;

/// What devices of one service see memory through.
///
/// Clones are handles on the same one. With a container, its first device's group gives it its IOMMU, so
/// that device is opened before the service is built; others may come later. It is for this service
/// alone: shadow programs take the low 2 GiB of I/O addresses, guest memory lies above 4 GiB, and a
/// window of a container in which a device with an IOMMU of its own is, too, would pin what it shows.
#[derive(Clone, Debug)]
pub struct AddressSpace(Arc<Space>);

#[derive(Debug)]
enum Space {
    Container {
        container: File,
        /// Groups in it. The last one stays, as with it the IOMMU would go and every window; that does
        /// not keep the host from taking its device back.
        groups: Mutex<Vec<Arc<Group>>>,
        /// Whoever made it has put groups into it, or will.
        is_given: bool,
    },
    Iommufd {
        iommufd: File,
        ioas: u32,
    },
}

/// A group that was opened and is in the container.
#[derive(Debug)]
pub(super) struct Group {
    path: PathBuf,
    file: File,
}

/// Which kernel interface windows are made through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// A container with type1 version 2 as its IOMMU.
    Type1,
    /// An IOAS of an iommufd (Linux 6.6 and later).
    Iommufd,
}

impl std::fmt::Display for Interface {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Interface::Type1 => "type1",
            Interface::Iommufd => "iommufd",
        })
    }
}

/// Why devices cannot be opened, or memory not be shown to them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpaceError {
    /// A node of the kernel's cannot be opened.
    #[error("{}: {source}{}", .path.display(), remedy_of_open(.path, .source))]
    Open {
        /// The node.
        path: PathBuf,
        /// Why it cannot.
        source: io::Error,
    },
    /// The container does not offer type1 version 2.
    #[error(
        "the container has no type1 version 2: load vfio_iommu_type1 with 'modprobe vfio_iommu_type1'"
    )]
    NoType1,
    /// The device is not reached this way on this kernel.
    #[error("the device has no {lacks}: this kernel does not offer it; use {instead} instead")]
    NotOffered {
        /// What it lacks.
        lacks: &'static str,
        /// What there is.
        instead: Interface,
    },
    /// The group cannot be put into the container.
    #[error(
        "{} cannot join the container: {source} (all its devices must belong to vfio drivers, and nobody else may have \
         it open)", .path.display()
    )]
    Join {
        /// The group.
        path: PathBuf,
        /// Why it cannot.
        source: io::Error,
    },
    /// The kernel does not let the device be opened.
    #[error("{device} cannot be opened: {source}")]
    OpenDevice {
        /// The device.
        device: Box<Location>,
        /// Why it cannot.
        source: io::Error,
    },
    /// The container cannot serve, as it is.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The iommufd cannot serve.
    #[error(transparent)]
    Ioas(#[from] IoasError),
    /// The device is none that can be driven.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No descriptor is left.
    #[error("no descriptor is left: {0}; raise the limit of open files with 'ulimit -n'")]
    Descriptor(#[source] io::Error),
    /// Memory cannot be shown to devices.
    #[error("I/O address {iova:#x} cannot be mapped: {source}{remedy}")]
    Map {
        /// Where.
        iova: u64,
        /// What can be done about it; empty where unknown.
        remedy: &'static str,
        /// Why it cannot.
        source: io::Error,
    },
}

/// What the operator does about a node that cannot be opened.
fn remedy_of_open(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            format!(" (let this user have it: 'chown $USER {path}', or a udev rule)")
        }
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => {
            " (load the driver: 'modprobe vfio_ccw vfio_iommu_type1', or with iommufd 'modprobe iommufd')".to_owned()
        }
        Some(libc::EBUSY) => " (another process has it: see 'fuser -v' of it)".to_owned(),
        _ => String::new(),
    }
}

impl AddressSpace {
    /// A new container.
    ///
    /// # Errors
    ///
    /// See [`SpaceError`].
    pub fn container() -> Result<Self, SpaceError> {
        let container = open(Path::new("/dev/vfio/vfio"))?;
        Self::of_container(container, false)
    }

    /// A new IOAS in a new iommufd.
    ///
    /// # Errors
    ///
    /// See [`SpaceError`].
    pub fn iommufd() -> Result<Self, SpaceError> {
        let iommufd = open(Path::new("/dev/iommu"))?;
        let ioas = Ioas::allocate(duplicate(&iommufd)?)?.id();
        Ok(AddressSpace(Arc::new(Space::Iommufd { iommufd, ioas })))
    }

    /// A new one through `interface`.
    ///
    /// # Errors
    ///
    /// See [`SpaceError`].
    pub fn new(interface: Interface) -> Result<Self, SpaceError> {
        match interface {
            Interface::Type1 => AddressSpace::container(),
            Interface::Iommufd => AddressSpace::iommufd(),
        }
    }

    /// The VMM's own container, with a group in it and type1 version 2 set. Other groups may be the
    /// VMM's to put into it: then it hands over devices with [`AddressSpace::adopt`].
    ///
    /// # Errors
    ///
    /// [`SpaceError::Container`]: it is none, or not so far.
    pub fn from_container(container: OwnedFd) -> Result<Self, SpaceError> {
        let container = File::from(container);
        Container::new(duplicate(&container)?)?;
        Self::of_container(container, true)
    }

    /// Address space `ioas` of the VMM's own iommufd.
    ///
    /// # Errors
    ///
    /// [`SpaceError::Ioas`]: there is none.
    pub fn from_iommufd(iommufd: OwnedFd, ioas: u32) -> Result<Self, SpaceError> {
        let iommufd = File::from(iommufd);
        Ioas::new(duplicate(&iommufd)?, ioas)?;
        Ok(AddressSpace(Arc::new(Space::Iommufd { iommufd, ioas })))
    }

    fn of_container(container: File, is_given: bool) -> Result<Self, SpaceError> {
        match ioctl::has_type1_v2(container.as_fd()) {
            Ok(true) => {}
            Ok(false) => return Err(SpaceError::NoType1),
            Err(_) => return Err(ContainerError::NotAContainer.into()),
        }
        let groups = Mutex::default();
        Ok(AddressSpace(Arc::new(Space::Container { container, groups, is_given })))
    }

    /// Which interface it is of.
    pub fn interface(&self) -> Interface {
        match &*self.0 {
            Space::Container { .. } => Interface::Type1,
            Space::Iommufd { .. } => Interface::Iommufd,
        }
    }

    /// How many more windows fit into it; `None` where there is no limit, or the kernel does not say.
    ///
    /// # Errors
    ///
    /// [`SpaceError::Container`]: it has no IOMMU, as it has no device.
    pub fn windows_left(&self) -> Result<Option<u32>, SpaceError> {
        match &*self.0 {
            Space::Container { container, .. } => {
                Ok(Container::new(duplicate(container)?)?.windows_left()?)
            }
            Space::Iommufd { .. } => Ok(None),
        }
    }

    /// Opens a device and lets it see memory through this space.
    ///
    /// # Errors
    ///
    /// See [`SpaceError`].
    pub fn open(&self, location: &Location) -> Result<Device, SpaceError> {
        let refused =
            |source| SpaceError::OpenDevice { device: Box::new(location.clone()), source };
        match &*self.0 {
            Space::Container { .. } => {
                let path = location.group.as_deref().ok_or(SpaceError::NotOffered {
                    lacks: "group",
                    instead: Interface::Iommufd,
                })?;
                let group = self.group(path)?;
                let name = CString::new(location.uuid.as_str()).map_err(io::Error::from);
                let device = name.and_then(|name| ioctl::device_of(group.file.as_fd(), &name));
                let device = device.map_err(|source| {
                    self.leave(&group);
                    refused(source)
                })?;
                let known = Some(location.clone());
                let opened = Device::new(device, self.clone(), Some(group.clone()), known);
                Ok(opened.inspect_err(|_| self.leave(&group))?)
            }
            Space::Iommufd { iommufd, ioas } => {
                let path = location.cdev.as_deref().ok_or(SpaceError::NotOffered {
                    lacks: "character device",
                    instead: Interface::Type1,
                })?;
                let device = OwnedFd::from(open(path)?);
                ioctl::attach(device.as_fd(), iommufd.as_fd(), *ioas).map_err(refused)?;
                Ok(Device::new(device, self.clone(), None, Some(location.clone()))?)
            }
        }
    }

    /// Takes a device that the VMM has opened: of a group in this container, or bound to this iommufd and
    /// attached to this IOAS.
    ///
    /// # Errors
    ///
    /// [`SpaceError::Device`].
    pub fn adopt(&self, device: OwnedFd) -> Result<Device, SpaceError> {
        Ok(Device::new(device, self.clone(), None, None)?)
    }

    /// The group at `path`, in the container.
    fn group(&self, path: &Path) -> Result<Arc<Group>, SpaceError> {
        let Space::Container { container, groups, is_given } = &*self.0 else {
            unreachable!("asked of a container only");
        };
        let mut groups = groups.lock();
        if let Some(known) = groups.iter().find(|group| group.path == path) {
            return Ok(known.clone());
        }
        let file = open(path)?;
        let path = path.to_owned();
        ioctl::join(file.as_fd(), container.as_fd())
            .map_err(|source| SpaceError::Join { path: path.clone(), source })?;
        // The first group, or the first after the host has taken back all others.
        let without = Container::new(duplicate(container)?).map(drop);
        if !is_given && matches!(without, Err(ContainerError::NoIommu)) {
            ioctl::set_type1_v2(container.as_fd())
                .map_err(|source| SpaceError::Join { path: path.clone(), source })?;
        }
        let group = Arc::new(Group { path, file });
        groups.push(group.clone());
        Ok(group)
    }

    /// A device of `group` is gone.
    pub(super) fn leave(&self, group: &Arc<Group>) {
        if let Space::Container { groups, .. } = &*self.0 {
            let mut groups = groups.lock();
            // The list and the one who leaves.
            if groups.len() > 1 && Arc::strong_count(group) == 2 {
                groups.retain(|known| !Arc::ptr_eq(known, group));
            }
        }
    }

    /// Whether this is the same one.
    pub(crate) fn is(&self, other: &AddressSpace) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// What pins guest memory for devices of this space: it makes windows.
    ///
    /// # Errors
    ///
    /// [`SpaceError::Container`]: it has no IOMMU, as no device was opened yet.
    pub(crate) fn pinner(&self) -> Result<Box<dyn Pinner>, SpaceError> {
        Ok(match &*self.0 {
            Space::Container { container, .. } => {
                let container = Container::new(duplicate(container)?)?;
                let most = container.windows_left()?.unwrap_or(type1::MOST_WINDOWS);
                // Shadow programs have a window for each shard.
                let most = most.saturating_sub(MOST_ARENAS);
                let windows = Windows { container, _space: self.clone() };
                Box::new(Type1::with_iommu(windows, GUEST_IOVA, most))
            }
            Space::Iommufd { iommufd, ioas } => {
                Box::new(Iommufd::new(Ioas::new(duplicate(iommufd)?, *ioas)?, GUEST_IOVA))
            }
        })
    }

    fn iommu(&self) -> Result<Box<dyn Iommu>, SpaceError> {
        Ok(match &*self.0 {
            Space::Container { container, .. } => {
                let container = Container::new(duplicate(container)?)?;
                Box::new(Windows { container, _space: self.clone() })
            }
            Space::Iommufd { iommufd, ioas } => Box::new(Ioas::new(duplicate(iommufd)?, *ioas)?),
        })
    }

    /// Shows `host` to devices at `iova` until what this gives is dropped. Both are multiples of the
    /// page size. A service does this for its guest by itself: this is for who drives a device by hand.
    ///
    /// # Errors
    ///
    /// [`SpaceError::Map`], and [`SpaceError::Container`] where no device is in it.
    pub fn map(&self, iova: u64, host: HostRange) -> Result<Mapped, SpaceError> {
        let iommu = self.iommu()?;
        iommu.map(iova, host).map_err(|source| {
            let remedy = source.raw_os_error().map_or("", |errno| iommu.remedy(errno));
            SpaceError::Map { iova, remedy, source }
        })?;
        Ok(Mapped { iommu, iova, len: host.len() as u64 })
    }
}

/// Windows of a container that may lose its IOMMU: with the last device that the host takes back.
#[derive(Debug)]
struct Windows {
    container: Container,
    /// Keeps groups in the container.
    _space: AddressSpace,
}

impl Iommu for Windows {
    fn map(&self, iova: u64, host: HostRange) -> io::Result<()> {
        self.container.map(iova, host)
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<u64, UnmapError> {
        self.container.unmap(iova, len).or_else(|error| {
            match self.container.windows_left() {
                // Every window went with the IOMMU.
                Err(ContainerError::NoIommu) => Ok(len),
                _ => Err(error),
            }
        })
    }

    fn remedy(&self, errno: i32) -> &'static str {
        self.container.remedy(errno)
    }
}

/// Memory that devices see at an I/O address, for as long as this lives.
pub struct Mapped {
    iommu: Box<dyn Iommu>,
    iova: u64,
    len: u64,
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // Where the last device was taken back by the host, all windows have gone with it.
        if let Err(error) = self.iommu.unmap(self.iova, self.len) {
            tracing::debug!(error = %error.source, iova = self.iova, "a window is gone already");
        }
    }
}

impl std::fmt::Debug for Mapped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mapped {:#x}+{:#x}", self.iova, self.len)
    }
}

fn open(path: &Path) -> Result<File, SpaceError> {
    let opened = File::options().read(true).write(true).open(path);
    opened.map_err(|source| SpaceError::Open { path: path.to_owned(), source })
}

fn duplicate(file: &File) -> Result<OwnedFd, SpaceError> {
    file.try_clone().map(OwnedFd::from).map_err(SpaceError::Descriptor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        open(Path::new("/dev/null")).unwrap().into()
    }

    #[test]
    fn descriptors_of_another_kind_are_refused() {
        let error = AddressSpace::from_container(null()).unwrap_err();
        assert!(matches!(error, SpaceError::Container(ContainerError::NotAContainer)), "{error}");
        let error = AddressSpace::from_iommufd(null(), 1).unwrap_err();
        assert!(matches!(error, SpaceError::Ioas(IoasError::NotAnIommufd)), "{error}");
    }

    #[test]
    fn a_node_that_cannot_be_opened_is_named_with_what_to_do() {
        let error = |errno| {
            let (path, source) = ("/dev/vfio/3".into(), io::Error::from_raw_os_error(errno));
            SpaceError::Open { path, source }.to_string()
        };
        assert!(error(libc::EACCES).contains("chown $USER /dev/vfio/3"));
        assert!(error(libc::ENOENT).contains("modprobe vfio_ccw"));
        assert!(error(libc::EBUSY).contains("fuser"));
    }
}
