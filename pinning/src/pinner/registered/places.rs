//! Which slot each frame of a region stands in, for readers that take no lock.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use zerocopy::FromZeros;

use crate::Region;

/// The slots of a region's frames. It names host addresses and keeps no memory mapped.
#[derive(Debug)]
pub(super) struct Places {
    start: usize,
    len: usize,
    frame_shift: u32,
    first_frame: u32,
    /// Slot and one for each frame; zero is "not registered". Pages that nobody touched cost nothing.
    slots: Box<[AtomicU16]>,
}

impl Places {
    /// # Errors
    ///
    /// No memory: two bytes a frame.
    pub(super) fn of(region: &Region) -> io::Result<Self> {
        let slots = <[AtomicU16]>::new_box_zeroed_with_elems(region.frames() as usize)
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Places {
            start: region.host().as_ptr().addr(),
            len: region.host().len(),
            frame_shift: region.frame_shift(),
            first_frame: region.first_frame(),
            slots,
        })
    }

    /// Whether these are the frames of `region`: the same numbers for the same host addresses.
    pub(super) fn are_of(&self, region: &Region) -> bool {
        self.first_frame == region.first_frame()
            && self.start == region.host().as_ptr().addr()
            && self.len == region.host().len()
            && self.frame_shift == region.frame_shift()
    }

    /// The slot of the frame that holds all of the `len` bytes at host address `start`.
    #[inline]
    pub(super) fn slot(&self, start: usize, len: usize) -> Option<u16> {
        let first = start.checked_sub(self.start)?;
        let last = first.checked_add(len.checked_sub(1)?)?;
        let index = first >> self.frame_shift;
        if index != last >> self.frame_shift {
            return None;
        }
        self.load(index)
    }

    pub(super) fn has(&self, frame: u32) -> bool {
        self.index(frame) < self.slots.len()
    }

    pub(super) fn slot_of(&self, frame: u32) -> Option<u16> {
        self.load(self.index(frame))
    }

    /// Every ring has `frame` in `slot` from now on.
    pub(super) fn publish(&self, frame: u32, slot: u16) {
        // Release: pairs with the Acquire in `load`: who finds the slot comes after the calls that
        // filled it in every ring.
        self.slots[self.index(frame)].store(slot + 1, Ordering::Release);
    }

    /// `frame` is about to leave its slot.
    pub(super) fn withdraw(&self, frame: u32) {
        // Relaxed: a reader that misses it sends an operation that the kernel checks; nothing is
        // handed over here.
        self.slots[self.index(frame)].store(0, Ordering::Relaxed);
    }

    /// Beyond all frames where `frame` is not one of the region's.
    fn index(&self, frame: u32) -> usize {
        frame.wrapping_sub(self.first_frame) as usize
    }

    #[inline]
    fn load(&self, index: usize) -> Option<u16> {
        // Acquire: pairs with the Release in `publish`.
        self.slots.get(index)?.load(Ordering::Acquire).checked_sub(1)
    }
}
