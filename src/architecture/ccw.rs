//! Channel-command words, formats 0 and 1, and the one decoded form the rest of the crate works on.

use std::fmt;

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

bitflags::bitflags! {
    /// CCW flags; the same byte in both formats.
    #[derive(Clone, Copy, Default, PartialEq, Eq)]
    pub struct CcwFlags: u8 {
        /// CD: the data area goes on in the next CCW.
        const CHAIN_DATA = 0x80;
        /// CC: the next CCW is the next command.
        const CHAIN_COMMAND = 0x40;
        /// SLI: do not report incorrect length.
        const SUPPRESS_LENGTH = 0x20;
        /// SKIP: data read is not stored.
        const SKIP = 0x10;
        /// PCI: interrupt when this CCW takes control.
        const PROGRAM_CONTROLLED = 0x08;
        /// IDA: the address designates a list of IDAWs.
        const INDIRECT = 0x04;
        /// S: suspend before executing this CCW.
        const SUSPEND = 0x02;
        /// MIDA: the address designates a list of MIDAWs.
        const MODIFIED_INDIRECT = 0x01;
    }
}

impl fmt::Debug for CcwFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bitflags::parser::to_writer(self, f)
    }
}

/// Command codes that this crate names. Other codes are legal; they mean what the device says.
pub mod command {
    /// READ IPL.
    pub const READ_IPL: u8 = 0x02;
    /// CONTROL NO-OPERATION.
    pub const NOP: u8 = 0x03;
    /// BASIC SENSE.
    pub const SENSE: u8 = 0x04;
    /// TRANSFER IN CHANNEL, format 1 (format 0 ignores the high nibble).
    pub const TIC: u8 = 0x08;
    /// FBA WRITE.
    pub const FBA_WRITE: u8 = 0x41;
    /// FBA READ.
    pub const FBA_READ: u8 = 0x42;
    /// FBA LOCATE.
    pub const FBA_LOCATE: u8 = 0x43;
    /// FBA DEFINE EXTENT.
    pub const DEFINE_EXTENT: u8 = 0x63;
    /// READ DEVICE CHARACTERISTICS.
    pub const READ_DEVICE_CHARACTERISTICS: u8 = 0x64;
    /// SENSE ID.
    pub const SENSE_ID: u8 = 0xe4;

    /// Whether a command is one of the SEARCH family (equal, high, equal-or-high of home address, ID
    /// or key): the only ones that end with status modifier, so that the next CCW is skipped.
    pub const fn is_search(command: u8) -> bool {
        command & 0x60 != 0 && matches!(command & 0x1f, 0x09 | 0x0d | 0x11 | 0x15 | 0x19)
    }
}

/// What the low bits of a command code say about the direction of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandClass {
    /// xxxxxx01: memory to device.
    Write,
    /// xxxxxx10: device to memory.
    Read,
    /// xxxxxx11: memory to device, or no data.
    Control,
    /// xxxx0100: device to memory, sense data.
    Sense,
    /// xxxx1100: device to memory, descending addresses.
    ReadBackward,
    /// xxxx1000: transfer in channel.
    Transfer,
    /// xxxx0000: not a command.
    Invalid,
}

impl CommandClass {
    /// Class of a command code.
    pub fn of(command: u8) -> Self {
        match command & 0x0f {
            0x0 => CommandClass::Invalid,
            0x4 => CommandClass::Sense,
            0x8 => CommandClass::Transfer,
            0xc => CommandClass::ReadBackward,
            low if low & 3 == 1 => CommandClass::Write,
            low if low & 3 == 2 => CommandClass::Read,
            _ => CommandClass::Control,
        }
    }

    /// Whether a code of this class is a command: not invalid, and no transfer.
    pub fn is_command(self) -> bool {
        !matches!(self, CommandClass::Invalid | CommandClass::Transfer)
    }

    /// Whether data flows from the device into memory.
    pub fn stores(self) -> bool {
        matches!(self, CommandClass::Read | CommandClass::Sense | CommandClass::ReadBackward)
    }
}

/// Format-0 CCW: 24-bit address.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Ccw0 {
    command: u8,
    address: [u8; 3],
    flags: u8,
    reserved: u8,
    count: U16,
}

const _: () = assert!(size_of::<Ccw0>() == 8);

/// Format-1 CCW: 31-bit address.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Ccw1 {
    command: u8,
    flags: u8,
    count: U16,
    address: U32,
}

const _: () = assert!(size_of::<Ccw1>() == 8);

/// A CCW of either format, decoded into host order.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Ccw {
    /// Command code. A format-0 TIC keeps its high nibble, which the channel ignores.
    pub command: u8,
    /// Flags.
    pub flags: CcwFlags,
    /// Byte count, 0 to 65,535.
    pub count: u16,
    /// Data, IDAW-list or TIC-target address; 24 or 32 bits as read, not yet checked.
    pub address: u32,
}

impl Ccw {
    /// A CCW without flags.
    pub fn new(command: u8, address: u32, count: u16) -> Self {
        Ccw { command, flags: CcwFlags::empty(), count, address }
    }

    /// The same CCW with these flags added.
    pub fn with(mut self, flags: CcwFlags) -> Self {
        self.flags |= flags;
        self
    }

    /// Decodes eight bytes as the format that the ORB says.
    #[inline]
    pub fn decode(bytes: [u8; 8], format_1: bool) -> Self {
        let word = u64::from_be_bytes(bytes);
        let command = (word >> 56) as u8;
        let (flags, count, address) = match format_1 {
            true => ((word >> 48) as u8, (word >> 32) as u16, word as u32),
            false => ((word >> 24) as u8, word as u16, (word >> 32) as u32 & 0xff_ffff),
        };
        Ccw { command, flags: CcwFlags::from_bits_retain(flags), count, address }
    }

    /// The eight bytes of this CCW in format 1.
    #[inline]
    pub fn to_format_1(self) -> [u8; 8] {
        let word = u64::from(self.command) << 56
            | u64::from(self.flags.bits()) << 48
            | u64::from(self.count) << 32
            | u64::from(self.address);
        word.to_be_bytes()
    }

    /// The eight bytes of this CCW in format 0; the address is cut to 24 bits.
    #[inline]
    pub fn to_format_0(self) -> [u8; 8] {
        let word = u64::from(self.command) << 56
            | u64::from(self.address & 0xff_ffff) << 32
            | u64::from(self.flags.bits()) << 24
            | u64::from(self.count);
        word.to_be_bytes()
    }

    /// Class of the command code.
    pub fn class(&self) -> CommandClass {
        CommandClass::of(self.command)
    }

    /// Whether the channel goes on to another CCW after this one.
    pub fn chains(&self) -> bool {
        self.flags.intersects(CcwFlags::CHAIN_DATA | CcwFlags::CHAIN_COMMAND)
    }

    /// Whether this is a TIC; in format 0 any xxxx1000, in format 1 exactly 0x08.
    pub fn is_tic(&self, format_1: bool) -> bool {
        if format_1 { self.command == command::TIC } else { self.class() == CommandClass::Transfer }
    }
}

impl From<Ccw0> for Ccw {
    fn from(ccw: Ccw0) -> Self {
        let [a, b, c] = ccw.address;
        Ccw {
            command: ccw.command,
            flags: CcwFlags::from_bits_retain(ccw.flags),
            count: ccw.count.get(),
            address: u32::from_be_bytes([0, a, b, c]),
        }
    }
}

impl From<Ccw1> for Ccw {
    fn from(ccw: Ccw1) -> Self {
        Ccw {
            command: ccw.command,
            flags: CcwFlags::from_bits_retain(ccw.flags),
            count: ccw.count.get(),
            address: ccw.address.get(),
        }
    }
}

impl From<Ccw> for Ccw0 {
    fn from(ccw: Ccw) -> Self {
        let [_, a, b, c] = ccw.address.to_be_bytes();
        Ccw0 {
            command: ccw.command,
            address: [a, b, c],
            flags: ccw.flags.bits(),
            reserved: 0,
            count: U16::new(ccw.count),
        }
    }
}

impl From<Ccw> for Ccw1 {
    fn from(ccw: Ccw) -> Self {
        Ccw1 {
            command: ccw.command,
            flags: ccw.flags.bits(),
            count: U16::new(ccw.count),
            address: U32::new(ccw.address),
        }
    }
}

impl fmt::Debug for Ccw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CCW {:02x} count={} address={:#010x} ", self.command, self.count, self.address)?;
        bitflags::parser::to_writer(&self.flags, f)
    }
}

impl fmt::Debug for Ccw0 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "format-0 {:?}", Ccw::from(*self))
    }
}

impl fmt::Debug for Ccw1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "format-1 {:?}", Ccw::from(*self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn searches_are_told_from_writes() {
        for search in [0x29, 0x31, 0x39, 0x49, 0x51, 0x69, 0x71, 0xa9, 0xb1, 0xb9, 0xc9, 0xf1] {
            assert!(command::is_search(search), "{search:02x}");
        }
        for other in [0x01, 0x05, 0x85, 0x8d, 0x95, 0x1d, 0x9d, 0x11, 0x19, 0x41, 0xa5, 0x63, 0x47]
        {
            assert!(!command::is_search(other), "{other:02x}");
        }
    }

    #[test]
    fn both_formats_decode_to_the_same_ccw() {
        let zero = [0x02, 0x12, 0x34, 0x56, 0x40, 0x00, 0x0f, 0xf0];
        let one = [0x02, 0x40, 0x0f, 0xf0, 0x00, 0x12, 0x34, 0x56];
        let expected = Ccw::new(0x02, 0x12_3456, 0x0ff0).with(CcwFlags::CHAIN_COMMAND);
        assert_eq!(Ccw::decode(zero, false), expected);
        assert_eq!(Ccw::decode(one, true), expected);
        assert_eq!(expected.to_format_0(), zero);
        assert_eq!(expected.to_format_1(), one);
    }

    #[test]
    fn classes_follow_the_low_bits() {
        let of = CommandClass::of;
        assert_eq!(of(0x41), CommandClass::Write);
        assert_eq!(of(0x42), CommandClass::Read);
        assert_eq!(of(0x63), CommandClass::Control);
        assert_eq!(of(0xe4), CommandClass::Sense);
        assert_eq!(of(0x0c), CommandClass::ReadBackward);
        assert_eq!(of(0x58), CommandClass::Transfer);
        assert_eq!(of(0x50), CommandClass::Invalid);
        assert!(of(0xe4).stores() && !of(0x41).stores());
    }

    #[test]
    fn format_0_tic_ignores_the_high_nibble() {
        let tic = Ccw::new(0x58, 0x1000, 0);
        assert!(tic.is_tic(false) && !tic.is_tic(true));
    }

    #[test]
    fn debug_names_flags() {
        let ccw = Ccw::new(0x42, 0x1000, 4096).with(CcwFlags::CHAIN_COMMAND | CcwFlags::INDIRECT);
        assert_eq!(
            format!("{ccw:?}"),
            "CCW 42 count=4096 address=0x00001000 CHAIN_COMMAND | INDIRECT"
        );
        assert!(format!("{:?}", Ccw0::from(ccw)).starts_with("format-0 CCW 42"));
    }
}
