//! Answers of VFIO that may be longer than expected, with a chain of capabilities
//! (`struct vfio_info_cap_header`): what containers and devices say of themselves.
//!
//! Each begins with a word that says how many bytes it has, in the byte order of the machine.

use std::io;
use std::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes that an answer is worth. Linux needs some hundred; ranges of IOVAs make it longer.
const MOST: usize = 64 << 10;

/// `struct vfio_info_cap_header`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CapabilityHeader {
    /// What the capability is.
    pub id: u16,
    /// Which version of that.
    pub version: u16,
    /// Where in the answer the next capability is; 0 for none.
    pub next: u32,
}

const _: () = assert!(size_of::<CapabilityHeader>() == 8);

/// Asks with `ask`, which fills its bytes with an answer, until the whole of it fits; first with room for
/// `room` bytes. `None`: it is longer than 64 KiB, or grows each time.
///
/// # Errors
///
/// Those of `ask`.
pub fn whole_answer(
    room: usize,
    mut ask: impl FnMut(&mut [u8]) -> io::Result<()>,
) -> io::Result<Option<Vec<u8>>> {
    let mut answer = vec![0; room];
    loop {
        ask(&mut answer)?;
        let Ok((needed, _)) = u32::read_from_prefix(&answer) else {
            return Ok(None);
        };
        let needed = needed as usize;
        if needed <= answer.len() {
            return Ok(Some(answer));
        }
        if needed > MOST {
            return Ok(None);
        }
        // Longer each time round, and never longer than MOST: this ends.
        answer = vec![0; needed];
    }
}

/// The body of capability `id`, and what follows it; the chain begins `first` bytes into the answer, and
/// never before the first `least`.
pub fn find(answer: &[u8], least: usize, first: u32, id: u16) -> Option<&[u8]> {
    let mut at = first as usize;
    // A chain has no more links than headers fit in the answer: one that has runs in a circle.
    for _ in 0..answer.len() / size_of::<CapabilityHeader>() {
        if at < least {
            return None;
        }
        let (header, body) = CapabilityHeader::read_from_prefix(answer.get(at..)?).ok()?;
        if header.id == id {
            return Some(body);
        }
        at = header.next as usize;
    }
    None
}
