//! Modified indirect-data-address words.

use std::fmt;

use zerocopy::big_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

bitflags::bitflags! {
    /// Flags of a MIDAW.
    #[derive(Clone, Copy, Default, PartialEq, Eq)]
    pub struct MidawFlags: u8 {
        /// The list ends here.
        const LAST = 0x80;
        /// These bytes are read from the device but not stored.
        const SKIP = 0x40;
        /// Data-transfer interruption control.
        const INTERRUPT = 0x20;
    }
}

impl fmt::Debug for MidawFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bitflags::parser::to_writer(self, f)
    }
}

/// A MIDAW: a piece of a data area, of any length inside one page. Its list is quadword-aligned and
/// lies in one page.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Midaw {
    reserved: [u8; 5],
    flags: u8,
    count: U16,
    address: U64,
}

const _: () = assert!(size_of::<Midaw>() == 16);

impl Midaw {
    /// A MIDAW without flags.
    pub fn new(address: u64, count: u16) -> Self {
        Midaw { count: count.into(), address: address.into(), ..Midaw::default() }
    }

    /// The same MIDAW with these flags added.
    pub fn with(mut self, flags: MidawFlags) -> Self {
        self.flags |= flags.bits();
        self
    }

    /// Decodes the two doublewords of a MIDAW.
    pub fn decode(high: [u8; 8], low: [u8; 8]) -> Self {
        zerocopy::transmute!([high, low])
    }

    /// Its 16 bytes.
    pub fn to_bytes(self) -> [u8; 16] {
        zerocopy::transmute!(self)
    }

    /// Flags, reserved ones included.
    pub fn flags(&self) -> MidawFlags {
        MidawFlags::from_bits_retain(self.flags)
    }

    /// Bytes in the piece.
    pub fn count(&self) -> u16 {
        self.count.get()
    }

    /// Absolute address of its first byte.
    pub fn address(&self) -> u64 {
        self.address.get()
    }

    /// Whether it is free of what ends in a program check: reserved bits, a count of zero, data that
    /// crosses a page although it is not skipped.
    pub fn is_sound(&self) -> bool {
        let reserved = self.reserved != [0; 5] || !(self.flags() - MidawFlags::all()).is_empty();
        let crosses = self.address() % 4096 + u64::from(self.count()) > 4096;
        !reserved && self.count() != 0 && (!crosses || self.flags().contains(MidawFlags::SKIP))
    }
}

impl fmt::Debug for Midaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MIDAW {:#018x}+{} {:?}", self.address(), self.count(), self.flags())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_architecture_has_them() {
        let midaw = Midaw::new(0x1_2345_6000, 0x0800).with(MidawFlags::LAST);
        let bytes = [0, 0, 0, 0, 0, 0x80, 8, 0, 0, 0, 0, 1, 0x23, 0x45, 0x60, 0];
        assert_eq!(midaw.to_bytes(), bytes);
        let (high, low) = bytes.split_at(8);
        assert_eq!(Midaw::decode(high.try_into().unwrap(), low.try_into().unwrap()), midaw);
        assert_eq!(format!("{midaw:?}"), "MIDAW 0x0000000123456000+2048 LAST");
    }

    #[test]
    fn pieces_stay_inside_a_page() {
        assert!(Midaw::new(0x1ff0, 16).is_sound());
        assert!(!Midaw::new(0x1ff0, 17).is_sound());
        assert!(Midaw::new(0x1ff0, 17).with(MidawFlags::SKIP).is_sound());
        assert!(!Midaw::new(0x1000, 0).is_sound());
        assert!(!Midaw::new(0x1000, 1).with(MidawFlags::from_bits_retain(1)).is_sound());
        assert!(!Midaw { reserved: [0, 0, 0, 0, 1], ..Midaw::new(0x1000, 1) }.is_sound());
    }
}
