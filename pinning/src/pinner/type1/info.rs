//! What a container says of itself: a chain of capabilities, of which one counts windows.

use std::io;
use std::mem::size_of;

use zerocopy::FromBytes;

use crate::pinner::capability;
use crate::pinner::ioctl::Type1Info;

/// Bytes of the shortest answer: no capabilities.
pub(super) const LEAST: usize = size_of::<Type1Info>();

/// `VFIO_IOMMU_INFO_CAPS`: there are capabilities.
const HAS_CAPABILITIES: u32 = 1 << 1;
/// `VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL`.
const WINDOWS_LEFT: u16 = 3;

/// Asks with `ask`, which fills its bytes with an answer that begins with a [`Type1Info`], until
/// the whole answer fits. `None` where it does not say how many windows are left.
pub(super) fn windows_left(
    ask: impl FnMut(&mut [u8]) -> io::Result<()>,
) -> io::Result<Option<u32>> {
    let answer = capability::whole_answer(512, ask)?;
    Ok(answer.and_then(|answer| {
        let (info, _) = Type1Info::read_from_prefix(&answer).ok()?;
        in_chain(&answer, &info)
    }))
}

/// Follows the chain of capabilities.
fn in_chain(answer: &[u8], info: &Type1Info) -> Option<u32> {
    if info.flags & HAS_CAPABILITIES == 0 {
        return None;
    }
    let body = capability::find(answer, LEAST, info.cap_offset, WINDOWS_LEFT)?;
    u32::read_from_prefix(body).ok().map(|(windows, _)| windows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pinner::capability::CapabilityHeader;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    /// An answer with capabilities at these offsets: (offset, id, next, first word of its body).
    fn answer(len: usize, first: u32, capabilities: &[(usize, u16, u32, u32)]) -> Vec<u8> {
        let mut answer = vec![0; len];
        let info = Type1Info {
            argsz: len as u32,
            flags: 1 | HAS_CAPABILITIES,
            iova_pgsizes: 0xf_f000,
            cap_offset: first,
            pad: 0,
        };
        answer[..LEAST].copy_from_slice(info.as_bytes());
        for &(at, id, next, word) in capabilities {
            answer[at..at + 8]
                .copy_from_slice(CapabilityHeader { id, version: 1, next }.as_bytes());
            answer[at + 8..at + 12].copy_from_slice(word.as_bytes());
        }
        answer
    }

    /// The kernel's part: copies as much as there is room for and says how much there is.
    fn say(whole: &[u8], asked: &mut [u8]) {
        let len = whole.len().min(asked.len());
        asked[..len].copy_from_slice(&whole[..len]);
    }

    fn windows_of(whole: &[u8]) -> Option<u32> {
        windows_left(|asked| {
            say(whole, asked);
            Ok(())
        })
        .unwrap()
    }

    #[test]
    fn the_count_is_found_behind_other_capabilities() {
        let whole = answer(128, 24, &[(24, 2, 64, 9), (64, 1, 100, 9), (100, 3, 0, 1234)]);
        assert_eq!(windows_of(&whole), Some(1234));
        let first = answer(48, 24, &[(24, 3, 0, u32::MAX)]);
        assert_eq!(windows_of(&first), Some(u32::MAX), "iommufd in type1's place has no limit");
        assert_eq!(windows_of(&answer(48, 24, &[(24, 1, 0, 5)])), None);
    }

    #[test]
    fn a_longer_answer_is_asked_for_again() {
        let whole = answer(4096, 4000, &[(4000, 3, 0, 77)]);
        let mut rooms = Vec::new();
        let left = windows_left(|asked| {
            rooms.push(asked.len());
            say(&whole, asked);
            Ok(())
        });
        assert_eq!(left.unwrap(), Some(77));
        assert_eq!(rooms, [512, 4096]);
    }

    #[test]
    fn answers_that_lie_end_without_a_count() {
        assert_eq!(windows_of(&answer(64, 24, &[(24, 1, 24, 0)])), None, "in a circle");
        assert_eq!(windows_of(&answer(64, 24, &[(24, 1, 40, 0), (40, 1, 24, 0)])), None);
        assert_eq!(windows_of(&answer(64, 24, &[(24, 1, u32::MAX, 0)])), None, "far outside");
        assert_eq!(windows_of(&answer(64, 0, &[])), None, "no capability at all");
        let mut inside = answer(64, 8, &[]);
        inside[8..16].copy_from_slice(CapabilityHeader { id: 3, version: 1, next: 0 }.as_bytes());
        assert_eq!(windows_of(&inside), None, "inside the fixed part");
        let mut cut = answer(512, 504, &[]);
        cut[504..].copy_from_slice(CapabilityHeader { id: 3, version: 1, next: 0 }.as_bytes());
        assert_eq!(windows_of(&cut), None, "the count is behind the end");
        let mut huge = answer(64, 24, &[(24, 3, 0, 5)]);
        huge[..4].copy_from_slice(u32::MAX.as_bytes());
        assert_eq!(windows_of(&huge), None, "4 GiB of answer");
        let mut without = answer(64, 24, &[(24, 3, 0, 5)]);
        without[4..8].copy_from_slice(1u32.as_bytes());
        assert_eq!(windows_of(&without), None, "no flag that there are capabilities");
    }

    #[test]
    fn an_answer_that_grows_each_time_is_given_up() {
        let mut asked = 0;
        let left = windows_left(|answer| {
            asked += 1;
            let info = Type1Info { argsz: answer.len() as u32 + 4096, ..Type1Info::default() };
            answer[..LEAST].copy_from_slice(info.as_bytes());
            Ok(())
        });
        assert_eq!(left.unwrap(), None);
        assert_eq!(asked, (64 << 10) / 4096);
    }

    proptest! {
        #[test]
        fn random_answers_are_read_without_a_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 24..600),
            first in 0u32..700,
        ) {
            for (flags, set) in bytes[4..8].iter_mut().zip(HAS_CAPABILITIES.to_ne_bytes()) {
                *flags |= set;
            }
            bytes[16..20].copy_from_slice(first.as_bytes());
            let info = Type1Info::read_from_prefix(&bytes).unwrap().0;
            if let Some(left) = in_chain(&bytes, &info) {
                prop_assert!(bytes.windows(4).any(|word| word == left.as_bytes()));
            }
        }
    }
}
