//! What a device says of its regions: where each is, and by a chain of capabilities what it is.

use std::io;
use std::mem::size_of;

use vfio_ccw_pinning::pinner::capability;
use zerocopy::FromBytes;

use crate::backend::{RegionInfo, RegionType};

use super::ioctl::RegionHead;

/// Bytes of the shortest answer: no capabilities.
const LEAST: usize = size_of::<RegionHead>();

/// A region of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    /// Where it begins in the device's file.
    pub(super) offset: u64,
    /// Its bytes.
    pub(super) size: u64,
    /// Type and subtype, where it says them.
    pub(super) kind: Option<(u32, u32)>,
}

impl Region {
    /// Asks with `ask`, which fills its bytes with an answer that begins with a [`RegionHead`], until the
    /// whole answer fits.
    pub(super) fn read(ask: impl FnMut(&mut [u8]) -> io::Result<()>) -> io::Result<Region> {
        let answer = capability::whole_answer(128, ask)?.ok_or(io::ErrorKind::InvalidData)?;
        let (head, _) =
            RegionHead::read_from_prefix(&answer).map_err(|_| io::ErrorKind::InvalidData)?;
        let kind = kind_in(&answer, &head);
        Ok(Region { offset: head.offset, size: head.size, kind })
    }
}

/// Follows the chain of capabilities.
fn kind_in(answer: &[u8], head: &RegionHead) -> Option<(u32, u32)> {
    if head.flags & RegionInfo::CAPS == 0 {
        return None;
    }
    let body = capability::find(answer, LEAST, head.cap_offset, RegionType::ID)?;
    let ([kind, subtype], _) = <[u32; 2]>::read_from_prefix(body).ok()?;
    Some((kind, subtype))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vfio_ccw_pinning::pinner::capability::CapabilityHeader;
    use zerocopy::IntoBytes;

    /// An answer with capabilities at these offsets: (offset, id, next, body).
    fn answer(len: usize, first: u32, capabilities: &[(usize, u16, u32, [u32; 2])]) -> Vec<u8> {
        let mut answer = vec![0; len];
        let info = RegionHead {
            argsz: len as u32,
            flags: 0xb,
            index: 1,
            cap_offset: first,
            size: 8,
            offset: 0x400,
        };
        answer[..LEAST].copy_from_slice(info.as_bytes());
        for &(at, id, next, body) in capabilities {
            answer[at..at + 8]
                .copy_from_slice(CapabilityHeader { id, version: 1, next }.as_bytes());
            answer[at + 8..at + 16].copy_from_slice(body.as_bytes());
        }
        answer
    }

    fn read(whole: &[u8]) -> io::Result<Region> {
        Region::read(|asked| {
            let len = whole.len().min(asked.len());
            asked[..len].copy_from_slice(&whole[..len]);
            Ok(())
        })
    }

    fn region_of(whole: &[u8]) -> Region {
        read(whole).unwrap()
    }

    fn kind_of(whole: &[u8]) -> Option<(u32, u32)> {
        region_of(whole).kind
    }

    #[test]
    fn the_type_is_found_behind_other_capabilities() {
        let linux = answer(48, 32, &[(32, 2, 0, [2, 1])]);
        assert_eq!(region_of(&linux), Region { offset: 0x400, size: 8, kind: Some((2, 1)) });
        let behind =
            answer(128, 32, &[(32, 1, 64, [9, 9]), (64, 3, 96, [9, 9]), (96, 2, 0, [2, 3])]);
        assert_eq!(kind_of(&behind), Some((2, 3)));
        assert_eq!(kind_of(&answer(64, 32, &[(32, 1, 0, [2, 1])])), None);
    }

    #[test]
    fn a_longer_answer_is_asked_for_again() {
        let whole = answer(1024, 1000, &[(1000, 2, 0, [2, 2])]);
        assert_eq!(kind_of(&whole), Some((2, 2)));
    }

    #[test]
    fn answers_that_lie_end_without_a_type() {
        assert_eq!(kind_of(&answer(64, 32, &[(32, 1, 32, [0, 0])])), None, "in a circle");
        assert_eq!(kind_of(&answer(64, 32, &[(32, 1, u32::MAX, [0, 0])])), None, "far outside");
        assert_eq!(kind_of(&answer(64, 0, &[])), None, "no capability at all");
        assert_eq!(kind_of(&answer(64, 56, &[])), None, "no body");
        let mut huge = answer(64, 40, &[(40, 1, 0, [0, 0])]);
        huge[..4].copy_from_slice(u32::MAX.as_bytes());
        assert!(read(&huge).is_err(), "4 GiB of answer");
        let mut without = answer(64, 32, &[(32, 2, 0, [2, 1])]);
        without[4..8].copy_from_slice(3u32.as_bytes());
        assert_eq!(kind_of(&without), None, "no flag that there are capabilities");
    }

    proptest! {
        #[test]
        fn random_answers_are_read_without_a_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 32..300),
            first in 0u32..400,
        ) {
            let len = bytes.len() as u32;
            bytes[..4].copy_from_slice(&len.to_ne_bytes());
            bytes[4..8].copy_from_slice(&RegionInfo::CAPS.to_ne_bytes());
            bytes[12..16].copy_from_slice(&first.to_ne_bytes());
            if let Some((kind, _)) = region_of(&bytes).kind {
                prop_assert!(bytes.windows(4).any(|word| word == kind.as_bytes()));
            }
        }
    }
}
