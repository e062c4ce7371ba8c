//! What a vfio-ccw device says of itself: the structures of `include/uapi/linux/vfio.h` that answer
//! `VFIO_DEVICE_GET_INFO`, `_GET_REGION_INFO` and `_GET_IRQ_INFO`.
//!
//! All integers are in the byte order of the machine.

use zerocopy::native_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{AsyncRegion, CrwRegion, Errno, IoRegion, Irq, SchibRegion};

/// Which region; the numbers are the indices of the kernel's driver, in which it registers its regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RegionIndex {
    /// I/O region: [`IoRegion`].
    Io = 0,
    /// Asynchronous-command region: [`AsyncRegion`].
    Async = 1,
    /// SCHIB region: [`SchibRegion`].
    Schib = 2,
    /// CRW region: [`CrwRegion`].
    Crw = 3,
}

impl RegionIndex {
    /// How many there are.
    pub const COUNT: u32 = 4;

    const ALL: [RegionIndex; RegionIndex::COUNT as usize] =
        [RegionIndex::Io, RegionIndex::Async, RegionIndex::Schib, RegionIndex::Crw];

    /// The offset of region `n` in the device's file is `n << SHIFT` (`VFIO_CCW_OFFSET_SHIFT`).
    pub const SHIFT: u32 = 10;

    /// The region with this number.
    ///
    /// # Errors
    ///
    /// `EINVAL`: there is none.
    pub fn new(index: u32) -> Result<Self, Errno> {
        RegionIndex::ALL.get(index as usize).copied().ok_or(Errno::INVALID)
    }

    /// The region that an offset in the device's file lies in, and the offset in it.
    ///
    /// # Errors
    ///
    /// `EINVAL`: none does.
    pub(super) fn at(offset: u64) -> Result<(Self, usize), Errno> {
        let index = u32::try_from(offset >> RegionIndex::SHIFT).map_err(|_| Errno::INVALID)?;
        Ok((RegionIndex::new(index)?, offset as usize & ((1 << RegionIndex::SHIFT) - 1)))
    }

    /// Its size in bytes.
    pub const fn size(self) -> usize {
        match self {
            RegionIndex::Io => size_of::<IoRegion>(),
            RegionIndex::Async => size_of::<AsyncRegion>(),
            RegionIndex::Schib => size_of::<SchibRegion>(),
            RegionIndex::Crw => size_of::<CrwRegion>(),
        }
    }

    fn is_writable(self) -> bool {
        matches!(self, RegionIndex::Io | RegionIndex::Async)
    }
}

/// `struct vfio_device_info` (24 bytes).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct DeviceInfo {
    /// Bytes of the structure.
    pub argsz: U32,
    /// 0x11: the device can be reset (1), and is one of channel I/O (0x10).
    pub flags: U32,
    /// Regions.
    pub num_regions: U32,
    /// Interrupts.
    pub num_irqs: U32,
    /// Zero: no capabilities.
    pub cap_offset: U32,
    /// Zero.
    pub pad: U32,
}

impl DeviceInfo {
    /// In [`DeviceInfo::flags`]: it can be reset (`VFIO_DEVICE_FLAGS_RESET`).
    pub const RESET: u32 = 1 << 0;

    /// In [`DeviceInfo::flags`]: it is one of channel I/O (`VFIO_DEVICE_FLAGS_CCW`).
    pub const CCW: u32 = 1 << 4;

    /// That of every vfio-ccw device.
    pub fn ccw() -> Self {
        DeviceInfo {
            argsz: (size_of::<DeviceInfo>() as u32).into(),
            flags: (DeviceInfo::RESET | DeviceInfo::CCW).into(),
            num_regions: RegionIndex::COUNT.into(),
            num_irqs: Irq::COUNT.into(),
            ..DeviceInfo::default()
        }
    }
}

/// `struct vfio_region_info` with the one capability that a region here can have (48 bytes).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct RegionInfo {
    /// Bytes that the asker has room for; where the capability does not fit, those that it takes.
    pub argsz: U32,
    /// Readable (1), writable (2), has a capability (8).
    pub flags: U32,
    /// Number of the region.
    pub index: U32,
    /// Where the capability is, from the beginning of the structure; zero: it is not there.
    pub cap_offset: U32,
    /// Bytes of the region.
    pub size: U64,
    /// Where it begins in the device's file.
    pub offset: U64,
    /// The capability; zeros where it is not there.
    pub capability: RegionType,
}

/// `struct vfio_region_info_cap_type` (16 bytes): what a region is, where its number does not say it.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct RegionType {
    /// 2: `VFIO_REGION_INFO_CAP_TYPE`.
    pub id: U16,
    /// 1.
    pub version: U16,
    /// Zero: no capability follows.
    pub next: U32,
    /// 2: `VFIO_REGION_TYPE_CCW`.
    pub kind: U32,
    /// 1 asynchronous commands, 2 SCHIB, 3 CRW.
    pub subtype: U32,
}

const _: () = assert!(size_of::<RegionInfo>() == 48);

impl RegionType {
    /// In [`RegionType::id`]: `VFIO_REGION_INFO_CAP_TYPE`.
    pub const ID: u16 = 2;

    /// In [`RegionType::kind`]: `VFIO_REGION_TYPE_CCW`.
    pub const CCW: u32 = 2;

    /// In [`RegionType::subtype`]: asynchronous commands. Subtypes are numbered as the regions happen to be.
    pub const ASYNC: u32 = RegionIndex::Async as u32;

    /// In [`RegionType::subtype`]: SCHIB.
    pub const SCHIB: u32 = RegionIndex::Schib as u32;

    /// In [`RegionType::subtype`]: channel reports.
    pub const CRW: u32 = RegionIndex::Crw as u32;
}

impl RegionInfo {
    const READ: u32 = 1 << 0;
    const WRITE: u32 = 1 << 1;
    /// In [`RegionInfo::flags`]: there are capabilities (`VFIO_REGION_INFO_FLAG_CAPS`).
    pub const CAPS: u32 = 1 << 3;
    /// Without the capability.
    const PLAIN: u32 = 32;

    /// The answer to an asker with room for `argsz` bytes, of which the first 32, or all 48, are for it.
    ///
    /// # Errors
    ///
    /// `EINVAL`: there is no such region, or room for less than 32 bytes.
    pub fn new(index: u32, argsz: u32) -> Result<Self, Errno> {
        if argsz < RegionInfo::PLAIN {
            return Err(Errno::INVALID);
        }
        let region = RegionIndex::new(index)?;
        let mut flags = RegionInfo::READ;
        if region.is_writable() {
            flags |= RegionInfo::WRITE;
        }
        let mut info = RegionInfo {
            argsz: argsz.into(),
            index: index.into(),
            size: (region.size() as u64).into(),
            offset: (u64::from(index) << RegionIndex::SHIFT).into(),
            ..RegionInfo::default()
        };
        if region != RegionIndex::Io {
            flags |= RegionInfo::CAPS;
            let whole = size_of::<RegionInfo>() as u32;
            if argsz < whole {
                info.argsz.set(whole);
            } else {
                info.cap_offset.set(RegionInfo::PLAIN);
                info.capability = RegionType {
                    id: RegionType::ID.into(),
                    version: 1.into(),
                    kind: RegionType::CCW.into(),
                    subtype: index.into(),
                    ..RegionType::default()
                };
            }
        }
        info.flags.set(flags);
        Ok(info)
    }
}

/// `struct vfio_irq_info` (16 bytes).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct IrqInfo {
    /// Bytes of the structure.
    pub argsz: U32,
    /// 1: signalled through an eventfd.
    pub flags: U32,
    /// Number of the interrupt.
    pub index: U32,
    /// 1: its vectors.
    pub count: U32,
}

impl IrqInfo {
    /// In [`IrqInfo::flags`]: it is signalled through an eventfd (`VFIO_IRQ_INFO_EVENTFD`).
    pub const EVENTFD: u32 = 1 << 0;

    /// The answer for interrupt `index`.
    ///
    /// # Errors
    ///
    /// `EINVAL`: there is no such interrupt.
    pub fn new(index: u32) -> Result<Self, Errno> {
        if index >= Irq::COUNT {
            return Err(Errno::INVALID);
        }
        let argsz = size_of::<IrqInfo>() as u32;
        Ok(IrqInfo {
            argsz: argsz.into(),
            flags: IrqInfo::EVENTFD.into(),
            index: index.into(),
            count: 1.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of a structure.
    fn words(bytes: &[u8]) -> Vec<u32> {
        bytes.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect()
    }

    #[test]
    fn a_device_says_what_linux_says() {
        assert_eq!(words(DeviceInfo::ccw().as_bytes()), [24, 0x11, 4, 3, 0, 0]);
        assert_eq!(words(IrqInfo::new(2).unwrap().as_bytes()), [16, 1, 2, 1]);
        assert_eq!(IrqInfo::new(3), Err(Errno::INVALID));
    }

    #[test]
    fn regions_say_what_linux_says() {
        let rows = [(0, 3, 124), (1, 0xb, 8), (2, 9, 52), (3, 9, 8)];
        for (index, flags, size) in rows {
            let info = RegionInfo::new(index, 64).unwrap();
            assert_eq!((info.flags.get(), info.size.get()), (flags, size), "{index}");
            assert_eq!(info.offset.get(), u64::from(index) * 0x400);
            let capability = info.capability;
            let expected = if index == 0 { (0, 0, 0) } else { (2, 2, index) };
            let found = (capability.id.get(), capability.kind.get(), capability.subtype.get());
            assert_eq!(found, expected, "{index}");
            assert_eq!(info.cap_offset.get(), if index == 0 { 0 } else { 32 });
        }
        let short = RegionInfo::new(1, 32).unwrap();
        assert_eq!((short.argsz.get(), short.cap_offset.get(), short.flags.get()), (48, 0, 0xb));
        assert_eq!(short.capability, RegionType::default());
        for (index, argsz) in [(4, 64), (u32::MAX, 64), (0, 31), (0, 16)] {
            assert_eq!(RegionInfo::new(index, argsz), Err(Errno::INVALID));
        }
    }

    #[test]
    fn offsets_find_their_regions() {
        assert_eq!(RegionIndex::at(0x3ff), Ok((RegionIndex::Io, 0x3ff)));
        assert_eq!(RegionIndex::at(0xc04), Ok((RegionIndex::Crw, 4)));
        for offset in [0x1000, 1 << 41, u64::MAX] {
            assert_eq!(RegionIndex::at(offset), Err(Errno::INVALID), "{offset:#x}");
        }
    }
}
