//! Linux's vfio-ccw driver as a target.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vfio_ccw::backend::{DeviceInfo, Errno, IrqInfo, IrqSet, RegionInfo};
use vfio_ccw_pinning::GuestMap;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use zerocopy::FromBytes;

use super::ioctl::{self, Request, call};
use super::target::{Answer, Failure, Signal, Target};

/// Lines "DEVNO SUBCHANNEL UUID GROUP CDEV" of devices that vfio_ccw has.
const DEVICES: &str = "/run/vfio-ccw";

/// The device number of the virtio disk.
const DEVNO: &str = "0020";

/// How the device's memory is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// A group in a type1v2 container.
    Type1,
    /// The device's own character device, attached to an address space of iommufd.
    Iommufd,
}

pub struct Driver {
    device: Option<File>,
    mapper: Mapper,
    map: Arc<GuestMap>,
}

/// What maps memory for the device, and opens it.
enum Mapper {
    Type1 { container: File, group: File, name: CString },
    Iommufd { iommufd: File, ioas: u32, path: String },
}

fn open(path: &str) -> File {
    let opened = File::options().read(true).write(true).open(path);
    opened.unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn failure(error: io::Error) -> Failure {
    Errno(error.raw_os_error().expect("a system call")).into()
}

/// The words of a structure, as its bytes.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn with_doublewords(mut bytes: Vec<u8>, doublewords: &[u64]) -> Vec<u8> {
    bytes.extend(doublewords.iter().flat_map(|doubleword| doubleword.to_ne_bytes()));
    bytes
}

impl Driver {
    /// What this machine lacks.
    pub fn missing() -> Option<String> {
        match fs::read_to_string(DEVICES) {
            Err(_) => Some(format!("no {DEVICES}, so no device of vfio_ccw")),
            Ok(devices) => {
                let found = devices.lines().any(|line| line.starts_with(DEVNO));
                (!found).then(|| format!("no device {DEVNO} in {DEVICES}"))
            }
        }
    }

    /// Opens the device, with no memory mapped.
    pub fn open(map: Arc<GuestMap>, memory: Memory) -> Self {
        let devices = fs::read_to_string(DEVICES).expect("it is not missing");
        let line = devices.lines().find(|line| line.starts_with(DEVNO)).expect("nor is it");
        let field = |index| line.split(' ').nth(index).expect("five fields");
        let mapper = match memory {
            Memory::Type1 => {
                let (container, group) = (open("/dev/vfio/vfio"), open(field(3)));
                ioctl::join(&group, &container).expect("a container of type1v2");
                Mapper::Type1 { container, group, name: CString::new(field(2)).unwrap() }
            }
            Memory::Iommufd => {
                let iommufd = open("/dev/iommu");
                let mut ioas = words(&[12, 0, 0]);
                call(&iommufd, Request::IoasAllocate, &mut ioas).expect("an address space");
                let ioas = u32::from_ne_bytes(ioas[8..].try_into().unwrap());
                Mapper::Iommufd { iommufd, ioas, path: field(4).to_owned() }
            }
        };
        Driver { device: Some(mapper.open_device()), mapper, map }
    }

    fn device(&self) -> &File {
        self.device.as_ref().expect("open, but while it is opened again")
    }

    /// Maps `len` bytes of this process.
    fn map_address(&self, iova: u64, address: u64, len: u64, access: u32) -> Answer<()> {
        let mapped = match &self.mapper {
            Mapper::Type1 { container, .. } => {
                let mut bytes = with_doublewords(words(&[32, access]), &[address, iova, len]);
                call(container, Request::MapDma, &mut bytes)
            }
            Mapper::Iommufd { iommufd, ioas, .. } => {
                // At this address; writable and readable as there, in other bits.
                let flags = 1 | access & 2 | (access & 1) << 2;
                let head = words(&[40, flags, *ioas, 0]);
                let mut bytes = with_doublewords(head, &[address, len, iova]);
                call(iommufd, Request::IoasMap, &mut bytes)
            }
        };
        mapped.map_err(failure)
    }
}

impl Mapper {
    fn open_device(&self) -> File {
        match self {
            Mapper::Type1 { group, name, .. } => {
                ioctl::device_of(group, name).expect("the device of the group")
            }
            Mapper::Iommufd { iommufd, ioas, path } => {
                let device = open(path);
                let number = i32::from_ne_bytes(ioctl::number_of(iommufd.as_fd()));
                let mut bytes = words(&[16, 0, number as u32, 0]);
                call(&device, Request::BindIommufd, &mut bytes).expect("bound");
                let mut bytes = words(&[12, 0, *ioas]);
                call(&device, Request::AttachIoas, &mut bytes).expect("attached");
                device
            }
        }
    }
}

/// Asks for a structure that begins with its size, and is wanted for `index`.
fn ask<T: FromBytes>(device: &File, request: Request, argsz: u32, index: u32) -> Answer<T> {
    // Room for any of them.
    let mut bytes = [0; 64];
    bytes[..4].copy_from_slice(&argsz.to_ne_bytes());
    bytes[8..12].copy_from_slice(&index.to_ne_bytes());
    call(device, request, &mut bytes).map_err(failure)?;
    Ok(T::read_from_prefix(&bytes).expect("that much").0)
}

impl Target for Driver {
    fn info(&mut self) -> Answer<DeviceInfo> {
        ask(self.device(), Request::DeviceInfo, 24, 0)
    }

    fn region_info(&mut self, index: u32, argsz: u32) -> Answer<RegionInfo> {
        ask(self.device(), Request::RegionInfo, argsz, index)
    }

    fn irq_info(&mut self, index: u32) -> Answer<IrqInfo> {
        ask(self.device(), Request::IrqInfo, 16, index)
    }

    fn set_irqs(&mut self, set: &IrqSet, signal: Signal<'_>) -> Answer<()> {
        let data = match signal {
            Signal::None => Vec::new(),
            Signal::Bool(byte) => vec![byte],
            Signal::Descriptor(descriptor) => ioctl::number_of(descriptor.as_fd()).to_vec(),
            Signal::Number(number) => number.to_ne_bytes().to_vec(),
        };
        let argsz = 20 + data.len() as u32;
        let mut bytes = words(&[argsz, set.flags, set.index, set.start, set.count]);
        bytes.extend(data);
        bytes.resize(24, 0);
        call(self.device(), Request::SetIrqs, &mut bytes).map_err(failure)
    }

    fn reset(&mut self) -> Answer<()> {
        ioctl::reset(self.device()).map_err(failure)
    }

    fn reopen(&mut self) -> Answer<()> {
        self.device = None;
        self.device = Some(self.mapper.open_device());
        Ok(())
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Answer<usize> {
        self.device().read_at(bytes, offset).map_err(failure)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Answer<usize> {
        self.device().write_at(bytes, offset).map_err(failure)
    }

    fn unknown_ioctl(&mut self) -> Answer<()> {
        ioctl::unknown(self.device()).map_err(failure)
    }

    fn map(&mut self, iova: u64, at: usize, len: usize, access: u32) -> Answer<()> {
        let memory = self.map.regions()[0].host().as_ptr().addr();
        self.map_address(iova, (memory + at) as u64, len as u64, access)
    }

    fn map_nothing(&mut self, iova: u64, len: usize) -> Answer<()> {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), len)]).unwrap();
        let map = GuestMap::new(Arc::new(memory)).unwrap();
        let address = map.regions()[0].host().as_ptr().addr();
        self.map_address(iova, address as u64, len as u64, 3)
    }

    fn unmap(&mut self, iova: u64, len: u64) -> Answer<u64> {
        let (file, request, head) = match &self.mapper {
            Mapper::Type1 { container, .. } => (container, Request::UnmapDma, [24, 0]),
            Mapper::Iommufd { iommufd, ioas, .. } => (iommufd, Request::IoasUnmap, [24, *ioas]),
        };
        let mut bytes = with_doublewords(words(&head), &[iova, len]);
        call(file, request, &mut bytes).map_err(failure)?;
        Ok(u64::from_ne_bytes(bytes[16..].try_into().unwrap()))
    }

    fn settle(&mut self) -> bool {
        false
    }
}
