//! The snapshot of one channel program: what was read from the guest, once.

use crate::architecture::{CcwFlags, Orb, command};
use crate::shadow::{PROTECTED_IOVA, UNMAPPED_IOVA};

use super::Verdict;

/// A CCW of the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ShadowCcw {
    pub(super) command: u8,
    pub(super) flags: CcwFlags,
    pub(super) count: u16,
    /// The command that was taken to be executed here: that of the CCW which the data chain began
    /// with, or its own.
    pub(super) leader: u8,
    pub(super) target: Target,
}

/// What a CCW's address field will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// No data.
    Nothing,
    /// The IDAL that starts at this index of [`Program::idaws`], to fetch from.
    Fetch(u32),
    /// The same, to store into.
    Store(u32),
    /// The same, to store into from the addresses down (read backward).
    StoreBackward(u32),
    /// The shadow of a CCW not known yet: an index of [`Program::transfers`].
    Transfer(u32),
    /// The CCW at this index of [`Program::ccws`].
    Ccw(u32),
}

impl ShadowCcw {
    /// A CCW at which the channel stops with a program check, data-chained to or not: its command
    /// is invalid, and it has the MIDA flag, which the shadow's ORB does not allow. Of the guest's
    /// `flags` only PCI is kept: that takes effect before anything is checked.
    pub(super) fn stop(flags: CcwFlags) -> Self {
        ShadowCcw {
            command: 0,
            flags: CcwFlags::MODIFIED_INDIRECT | flags & CcwFlags::PROGRAM_CONTROLLED,
            count: 0,
            leader: 0,
            target: Target::Nothing,
        }
    }

    /// A TIC.
    pub(super) fn transfer(target: Target) -> Self {
        let (command, flags) = (command::TIC, CcwFlags::empty());
        ShadowCcw { command, flags, count: 0, leader: command, target }
    }

    /// Whether it is one at which the channel stops.
    pub(super) fn is_stop(&self) -> bool {
        self.flags.contains(CcwFlags::MODIFIED_INDIRECT)
    }
}

/// A run of guest CCWs at ascending addresses and where its shadow starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Guest address of the first CCW.
    pub(super) start: u32,
    /// Index of its shadow in [`Program::ccws`].
    pub(super) first: u32,
    /// CCWs that were read; a stop CCW behind them is not counted. None: where nothing can be read,
    /// there is a stop.
    pub(super) len: u32,
}

impl Segment {
    /// Index of the shadow of the CCW at guest address `address`, if this segment holds it.
    pub(super) fn index_of(&self, address: u32) -> Option<u32> {
        let offset = address.checked_sub(self.start)?;
        (offset % 8 == 0 && offset / 8 < self.len).then_some(self.first + offset / 8)
    }

    /// Guest address behind its last CCW.
    pub(super) fn end(&self) -> u64 {
        u64::from(self.start) + u64::from(self.len) * 8
    }
}

/// A TIC that stays in the shadow: whose place it takes, where it leads, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transfer {
    /// Index of the TIC in [`Program::ccws`].
    pub(super) index: u32,
    /// Guest address that it leads to.
    pub(super) address: u32,
    /// Command that data chaining carries over it, if it follows a CCW with CD.
    pub(super) leader: Option<u8>,
    /// A skip leads to it, too, and then it follows no CCW with CD.
    pub(super) contested: bool,
    /// The TIC's own count, which a program check there shows.
    pub(super) count: u16,
}

/// A TIC that has no shadow: its target follows directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Elided {
    /// Guest address of the TIC.
    pub(super) at: u32,
    /// Where it leads.
    pub(super) address: u32,
    pub(super) count: u16,
    /// It may lead there. One that may not is known because another leads to it.
    pub(super) leads: bool,
}

/// A data-chained CCW whose own command, which means nothing, says that no data moves: it gets that
/// of its leader, and no skip flag that means nothing either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Disguised {
    pub(super) index: u32,
    /// `None` if it was found to need its own.
    pub(super) leader: Option<u8>,
}

/// Why the channel stops at a CCW of the shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Program check.
    Program,
    /// Protection check: the key does not allow the CCW to be fetched.
    Protection,
    /// The policy refused the command.
    Refused(Verdict),
}

impl Cause {
    /// Why a data area with these words, big-endian, cannot be reached as a whole; `None` if it can.
    pub(super) fn of_area(words: &[[u8; 8]]) -> Option<Cause> {
        words.iter().find_map(|word| match u64::from_be_bytes(*word) & !0xfff {
            UNMAPPED_IOVA => Some(Cause::Program),
            PROTECTED_IOVA => Some(Cause::Protection),
            _ => None,
        })
    }
}

/// A CCW of the shadow at which the channel stops, and what the guest is to see then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stop {
    pub(super) index: u32,
    /// The guest's count, which is the residual count.
    pub(super) count: u16,
    pub(super) cause: Cause,
}

/// A channel program, read once. Reused for request after request: its buffers grow to the largest
/// program seen and stay.
#[derive(Debug, Default)]
pub struct Program {
    pub(super) orb: Orb,
    pub(super) ccws: Vec<ShadowCcw>,
    /// Big-endian format-2 IDAWs over I/O virtual addresses.
    pub(super) idaws: Vec<[u8; 8]>,
    pub(super) segments: Vec<Segment>,
    /// Index of the first CCW of each chain: where the kernel driver begins to read.
    pub(super) chains: Vec<u32>,
    /// Indices of CCWs before which a chain is broken.
    pub(super) breaks: Vec<u32>,
    /// How far back loops of a chain go; see [`Program::break_chains`].
    pub(super) loops: Vec<u32>,
    pub(super) transfers: Vec<Transfer>,
    pub(super) elided: Vec<Elided>,
    /// In the order of their indices but for TICs, which come at the end.
    pub(super) stops: Vec<Stop>,
    /// Frames of areas whose data does not move if their CCW is reached in the one way seen so far.
    pub(super) doubtful: Vec<u32>,
    /// CCWs that get another command than the guest's, in the order of their indices.
    pub(super) disguised: Vec<Disguised>,
    /// Private copies of parameters that a policy has judged, each [`PARAMETER_SLOT`] bytes long.
    pub(super) parameters: Vec<u8>,
    /// Index in [`Program::idaws`] of the word that designates each copy.
    pub(super) parameter_idaws: Vec<u32>,
    /// Bytes of all data areas.
    pub(super) data_bytes: u64,
    /// The first command defined an extent that the policy allows.
    pub(super) bounded: bool,
    /// I/O virtual address of the shadow's first CCW, once emitted.
    pub(super) iova: u32,
}

/// Bytes and alignment of a private copy of parameters, so that none crosses a block.
pub(super) const PARAMETER_SLOT: usize = 64;

impl Program {
    /// Whether a command has bounded it to an extent that its policy allows.
    pub(crate) fn is_bounded(&self) -> bool {
        self.bounded
    }

    /// For a program that was bounded, or not, elsewhere.
    pub(crate) fn set_bounded(&mut self, bounded: bool) {
        self.bounded = bounded;
    }

    /// Bytes the shadow program takes.
    pub fn bytes(&self) -> usize {
        self.parameters_at() + self.parameters.len()
    }

    /// Offset of the private copies in the shadow.
    pub(super) fn parameters_at(&self) -> usize {
        let words = (self.ccws.len() + self.idaws.len()) * 8;
        if self.parameters.is_empty() { words } else { words.next_multiple_of(PARAMETER_SLOT) }
    }

    /// Index of the shadow of the CCW at guest address `address`.
    pub(super) fn index_of(&self, address: u32) -> Option<u32> {
        self.segments.iter().find_map(|segment| segment.index_of(address))
    }

    /// CCWs were appended to the last segment, and nothing else.
    pub(super) fn measure_segment(&mut self) {
        if let Some(segment) = self.segments.last_mut() {
            segment.len = self.ccws.len() as u32 - segment.first;
        }
    }

    /// A TIC leads to the CCW at `index`, so its own command may mean something.
    pub(super) fn reveal(&mut self, index: u32) {
        if let Ok(found) = self.disguised.binary_search_by_key(&index, |disguised| disguised.index)
        {
            self.disguised[found].leader = None;
        }
    }

    /// Appends a CCW at which the channel stops.
    pub(super) fn push_stop(&mut self, flags: CcwFlags, count: u16, cause: Cause) {
        self.stops.push(Stop { index: self.ccws.len() as u32, count, cause });
        self.ccws.push(ShadowCcw::stop(flags));
    }
}
