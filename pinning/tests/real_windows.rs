//! The windows of real kernels: a pool over a container of a vfio-ccw device, and over an iommufd.
//!
//! `tests/s390x` runs this beside devices that the real driver has, and says so with `REAL_DEVICES`: then nothing
//! may be missing. Elsewhere what is missing is SKIPPED.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use vfio_ccw_pinning::pinner::iommufd::Ioas;
use vfio_ccw_pinning::pinner::type1::{Container, ContainerError};
use vfio_ccw_pinning::{FRAME, GuestMap, Hold, Iommufd, Mode, Pinner, Pool, Type1};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Where guest memory begins for the device: the low 2 GiB are for shadow programs.
const OFFSET: u64 = 1 << 31;

/// Frames of guest memory, and of the budget.
const FRAMES: u32 = 64;
const BUDGET: u32 = 24;

/// Lines "DEVNO SUBCHANNEL UUID GROUP CDEV" of devices that vfio_ccw has.
const DEVICES: &str = "/run/vfio-ccw";

const SET_IOMMU: libc::Ioctl = libc::_IO(b';' as u32, 102);
const GROUP_SET_CONTAINER: libc::Ioctl = libc::_IO(b';' as u32, 104);
const TYPE1: libc::c_ulong = 1;
const TYPE1_V2: libc::c_ulong = 3;

/// What this machine lacks.
fn skipped(what: &str) {
    assert!(std::env::var_os("REAL_DEVICES").is_none(), "{what}");
    println!("SKIPPED: {what}");
}

fn open(path: &str) -> File {
    let opened = File::options().read(true).write(true).open(path);
    opened.unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The group of a device, in a container of its own without an IOMMU.
fn group_in_container(number: usize) -> Option<(File, File)> {
    let Ok(devices) = fs::read_to_string(DEVICES) else {
        skipped("no /run/vfio-ccw, so no device of vfio_ccw");
        return None;
    };
    let device = devices.lines().nth(number).expect("that many devices");
    let group = open(device.split(' ').nth(3).expect("a group"));
    let container = open("/dev/vfio/vfio");
    let container_fd = container.as_raw_fd();
    // SAFETY: the request reads one int, which outlives the call.
    // Test: this file; with another pointer the kernel says EFAULT.
    let joined =
        unsafe { libc::ioctl(group.as_raw_fd(), GROUP_SET_CONTAINER, &raw const container_fd) };
    assert_eq!(joined, 0, "{}", std::io::Error::last_os_error());
    Some((group, container))
}

fn set_iommu(container: &File, kind: libc::c_ulong) {
    // SAFETY: the request takes a plain number.
    // Test: this file; another number is EINVAL.
    let set = unsafe { libc::ioctl(container.as_raw_fd(), SET_IOMMU, kind) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

fn duplicate(file: &File) -> OwnedFd {
    file.try_clone().expect("a descriptor is free").into()
}

/// Programs that want more frames than there is room for, with a budget, in every mode that needs no lease;
/// `windows` says how many windows there are.
fn load(pinner: Box<dyn Pinner>, windows: &dyn Fn() -> Option<u32>) {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[
        (GuestAddress(0), 40 * FRAME as usize),
        (GuestAddress(1 << 30), 24 * FRAME as usize),
    ]);
    let map = Arc::new(GuestMap::new(Arc::new(memory.unwrap())).unwrap());
    let pool = Pool::new(map, pinner, u64::from(BUDGET) * FRAME).unwrap();
    let mut hold = Hold::default();
    for round in 0..200 {
        hold.clear();
        for frame in 0..8 {
            // Runs, strays, and both regions.
            hold.want((round * 5 + frame * frame) % FRAMES);
        }
        pool.hold_blocking(&mut hold).unwrap();
        assert!(pool.pinned_bytes() <= u64::from(BUDGET) * FRAME);
        if let Some(windows) = windows() {
            assert_eq!(u64::from(windows) * FRAME, pool.pinned_bytes(), "round {round}");
        }
        let mode = if round % 3 == 0 { Mode::OnDemand } else { Mode::Cached };
        pool.release(&mut hold, mode);
    }
    pool.unpin_all_idle().unwrap();
    assert_eq!(pool.pinned_bytes(), 0);
    assert!(windows().is_none_or(|windows| windows == 0));
}

#[test]
fn a_container_has_the_windows_of_the_pool_and_no_others() {
    let Some((_group, container)) = group_in_container(0) else { return };
    set_iommu(&container, TYPE1_V2);
    let counted = Container::new(duplicate(&container)).unwrap();
    let at_first = counted.windows_left().unwrap().expect("Linux 5.10 says it");
    let pinner = Type1::new(Container::new(duplicate(&container)).unwrap(), OFFSET).unwrap();
    load(Box::new(pinner), &|| Some(at_first - counted.windows_left().unwrap().unwrap()));
    assert_eq!(counted.windows_left().unwrap(), Some(at_first));
}

#[test]
fn containers_that_cannot_serve_say_why() {
    let Some((_group, container)) = group_in_container(1) else { return };
    let without = Container::new(duplicate(&container)).unwrap_err();
    assert!(matches!(without, ContainerError::NoIommu), "{without}");
    set_iommu(&container, TYPE1);
    let version_1 = Container::new(duplicate(&container)).unwrap_err();
    assert!(matches!(version_1, ContainerError::Version1), "{version_1}");
    let file = Container::new(duplicate(&open("/dev/null"))).unwrap_err();
    assert!(matches!(file, ContainerError::NotAContainer), "{file}");
}

#[test]
fn an_iommufd_has_the_windows_of_the_pool() {
    let iommufd = match File::options().read(true).write(true).open("/dev/iommu") {
        Ok(iommufd) => iommufd,
        Err(error) => return skipped(&format!("/dev/iommu: {error}")),
    };
    // Without a device it holds windows all the same.
    let ioas = Ioas::allocate(duplicate(&iommufd)).unwrap();
    let again = Ioas::new(duplicate(&iommufd), ioas.id()).unwrap();
    assert_eq!(again.id(), ioas.id());
    load(Box::new(Iommufd::new(ioas, OFFSET)), &|| None);
}
