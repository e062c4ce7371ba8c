//! The snapshot of one channel program: what was read from the guest, once.

use crate::architecture::{CcwFlags, Orb};

/// A CCW of the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ShadowCcw {
    pub(super) command: u8,
    pub(super) flags: CcwFlags,
    pub(super) count: u16,
    pub(super) target: Target,
}

/// What a CCW's address field will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// No data.
    Nothing,
    /// The IDAL that starts at this index of [`Program::idaws`].
    Idal(u32),
    /// The shadow of the CCW at this guest address.
    Transfer(u32),
}

impl ShadowCcw {
    /// A CCW at which the channel stops with a program check, data-chained to or not: its command
    /// is invalid, and it has the MIDA flag, which the shadow's ORB does not allow.
    pub(super) fn stop(count: u16) -> Self {
        ShadowCcw { command: 0, flags: CcwFlags::MODIFIED_INDIRECT, count, target: Target::Nothing }
    }
}

/// A run of guest CCWs at ascending addresses and where its shadow starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Guest address of the first CCW.
    pub(super) start: u32,
    /// Index of its shadow in [`Program::ccws`].
    pub(super) first: u32,
    /// CCWs that were read; a stop CCW behind them is not counted.
    pub(super) len: u32,
}

impl Segment {
    /// Index of the shadow of the CCW at guest address `address`, if this segment holds it.
    pub(super) fn index_of(&self, address: u32) -> Option<u32> {
        let offset = address.checked_sub(self.start)?;
        (offset % 8 == 0 && offset / 8 < self.len).then_some(self.first + offset / 8)
    }
}

/// A channel program, read once. Reused for request after request: its buffers grow to the largest
/// program seen and stay.
#[derive(Debug, Default)]
pub(crate) struct Program {
    pub(super) orb: Orb,
    pub(super) ccws: Vec<ShadowCcw>,
    /// Big-endian format-2 IDAWs over I/O virtual addresses.
    pub(super) idaws: Vec<[u8; 8]>,
    pub(super) segments: Vec<Segment>,
    /// The eight-byte words of the shadow, gathered before they are copied out in one go.
    pub(super) words: Vec<[u8; 8]>,
    /// I/O virtual address of the shadow's first CCW, once emitted.
    pub(super) iova: u32,
}

impl Program {
    /// Bytes the shadow program takes.
    pub(crate) fn bytes(&self) -> usize {
        (self.ccws.len() + self.idaws.len()) * 8
    }

    /// Index of the shadow of the CCW at guest address `address`.
    pub(super) fn index_of(&self, address: u32) -> Option<u32> {
        self.segments.iter().find_map(|segment| segment.index_of(address))
    }
}
