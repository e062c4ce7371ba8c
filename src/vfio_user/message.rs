//! The payloads behind the header.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use vfio_ccw_pinning::pinner::vfio_user::message::{Command, DmaMap, DmaUnmap, HEADER, Header};

/// Payload of [`Command::DeviceGetInfo`] and of its reply (16 bytes). The flags are those of
/// [`backend::DeviceInfo`](crate::backend::DeviceInfo).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DeviceInfo {
    /// Most bytes of the reply's payload; in the reply, those that it takes.
    pub argsz: u32,
    /// What the device is.
    pub flags: u32,
    /// Regions.
    pub num_regions: u32,
    /// Interrupts.
    pub num_irqs: u32,
}

/// Payload of [`Command::DeviceSetIrqs`] before its data (20 bytes). Descriptors come beside the message.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct IrqSetHead {
    /// Bytes of the payload, data included.
    pub argsz: u32,
    /// [`IrqSetFlags`](crate::backend::IrqSetFlags).
    pub flags: u32,
    /// Number of the interrupt.
    pub index: u32,
    /// First of its vectors.
    pub start: u32,
    /// How many of them.
    pub count: u32,
}

/// Payload of [`Command::RegionRead`] and [`Command::RegionWrite`] and of their replies, before the data
/// (16 bytes).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Access {
    /// Where in the region.
    pub offset: u64,
    /// Number of the region.
    pub region: u32,
    /// Bytes of data.
    pub count: u32,
}

/// Payload of [`Command::CcwLane`] (24 bytes); the memory comes beside the message. The reply has no payload,
/// but an eventfd beside it that wakes the server.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct LaneOffer {
    /// Bytes of the payload.
    pub argsz: u32,
    /// None yet.
    pub flags: u32,
    /// Entries of each of the two tracks, a power of two.
    pub entries: u32,
    /// What entries for this device say in their head.
    pub number: u32,
    /// Where in the file the lane begins, a multiple of 4,096.
    pub offset: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_the_protocols() {
        let access = Access { offset: 1, region: 2, count: 3 };
        let mut bytes = 1u64.to_ne_bytes().to_vec();
        bytes.extend([2u32, 3].iter().flat_map(|word| word.to_ne_bytes()));
        assert_eq!(access.as_bytes(), bytes);
        assert_eq!(size_of::<DeviceInfo>(), 16);
        assert_eq!(size_of::<IrqSetHead>(), 20);
        assert_eq!(size_of::<LaneOffer>(), 24);
    }
}
