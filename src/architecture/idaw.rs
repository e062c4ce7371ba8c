//! Indirect-data-address words.

use std::fmt;

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Which IDAWs a program uses; a property of its ORB (H and T bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdawFormat {
    /// 31-bit addresses of 2 KiB blocks, 4 bytes each.
    Format1,
    /// 64-bit addresses of 2 KiB blocks, 8 bytes each.
    Format2Blocks2K,
    /// 64-bit addresses of 4 KiB blocks, 8 bytes each.
    Format2Blocks4K,
}

impl IdawFormat {
    /// Bytes in the block that one IDAW designates.
    pub fn block(self) -> u32 {
        match self {
            IdawFormat::Format1 | IdawFormat::Format2Blocks2K => 2048,
            IdawFormat::Format2Blocks4K => 4096,
        }
    }

    /// Bytes of one IDAW; the list is aligned to it.
    pub fn size(self) -> u32 {
        match self {
            IdawFormat::Format1 => 4,
            IdawFormat::Format2Blocks2K | IdawFormat::Format2Blocks4K => 8,
        }
    }
}

/// Format-1 IDAW: bit 0 zero, 31-bit address.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct Idaw1(pub U32);

/// Format-2 IDAW: 64-bit address.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct Idaw2(pub U64);

const _: () = assert!(size_of::<Idaw1>() == 4 && size_of::<Idaw2>() == 8);

impl Idaw1 {
    /// The address, or `None` where bit 0 is one (a program check).
    pub fn address(self) -> Option<u64> {
        let word = self.0.get();
        (word & 0x8000_0000 == 0).then_some(u64::from(word))
    }
}

impl fmt::Debug for Idaw1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IDAW {:#010x}", self.0.get())
    }
}

impl fmt::Debug for Idaw2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IDAW {:#018x}", self.0.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_0_of_a_format_1_idaw_is_refused() {
        assert_eq!(Idaw1(U32::new(0x7fff_f800)).address(), Some(0x7fff_f800));
        assert_eq!(Idaw1(U32::new(0x8000_0000)).address(), None);
    }

    #[test]
    fn debug_shows_the_full_width() {
        assert_eq!(format!("{:?}", Idaw2(U64::new(0x1_0000_0000))), "IDAW 0x0000000100000000");
        assert_eq!(format!("{:?}", Idaw1(U32::new(0x1000))), "IDAW 0x00001000");
    }
}
