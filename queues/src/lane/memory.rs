//! The words of a track, and which of them is what. The one unsafe thing about lanes is in here: to reach
//! those words; `Track::new` passes its caller's promise on.

#[cfg(not(loom))]
use std::{any::Any, ptr::NonNull};

#[cfg(not(loom))]
use crate::sync::Arc;
use crate::sync::{AtomicU64, Ordering};

/// Eight words: a slot, or one word of the peers' with room around it, so that what one side writes all
/// the time is not on the line of what the other does. (An s390x has lines of 256 bytes; there the
/// state shares one with the count, which are both written once for a batch or less.)
#[repr(C, align(64))]
pub(super) struct Line {
    pub(super) words: [AtomicU64; 8],
    /// Accessed along with the body, so that loom misses no order between the two sides: it does not
    /// run loads after later stores, as processors may, but tells of a cell whose accesses have no
    /// order.
    #[cfg(loom)]
    order: crate::sync::UnsafeCell<()>,
}

// SAFETY: nobody looks into the cell, which is empty. Test: all of `loom_model`.
#[cfg(loom)]
unsafe impl Sync for Line {}

impl Line {
    fn zeroed() -> Self {
        Line {
            words: std::array::from_fn(|_| AtomicU64::new(0)),
            #[cfg(loom)]
            order: crate::sync::UnsafeCell::new(()),
        }
    }

    /// The word with the sequence number, or the only one that is used.
    #[inline(always)]
    pub(super) fn first(&self) -> &AtomicU64 {
        &self.words[0]
    }

    #[inline(always)]
    pub(super) fn write_body(&self, body: &[u64; 7]) {
        #[cfg(loom)]
        self.order.with_mut(|_| ());
        for (word, value) in self.words[1..].iter().zip(body) {
            // Relaxed: the store of the first word in `LaneSender::push` releases it. It does not reach
            // a consumer that still reads the lap before: the load in `LaneSender::room` acquired its
            // last read.
            word.store(*value, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    pub(super) fn read_body(&self) -> [u64; 7] {
        #[cfg(loom)]
        self.order.with(|_| ());
        // Relaxed: the load of the first word in `LaneReceiver::pop` acquired them, and the producer
        // does not write them again before it has seen the store in `LaneReceiver::release`.
        std::array::from_fn(|place| self.words[place + 1].load(Ordering::Relaxed))
    }
}

/// Lines before the first slot.
const BEFORE: usize = 2;

/// The lines of one track, and what keeps them in place.
#[derive(Clone)]
pub(super) struct Memory {
    #[cfg(not(loom))]
    lines: NonNull<[Line]>,
    #[cfg(not(loom))]
    _keeps: Arc<dyn Any + Send + Sync>,
    /// loom's atomics are larger than a word and do not lie in memory from elsewhere.
    #[cfg(loom)]
    lines: crate::sync::Arc<[Line]>,
}

// SAFETY: all that is reached through the pointer are atomics, which threads may share, and what keeps
// them may be dropped on any thread. Test: `across_threads`.
#[cfg(not(loom))]
unsafe impl Send for Memory {}
// SAFETY: as above. Test: `across_threads`.
#[cfg(not(loom))]
unsafe impl Sync for Memory {}

#[cfg(not(loom))]
impl Memory {
    /// # Safety
    /// As for [`Track::new`](super::Track::new); `start` is aligned.
    pub(super) unsafe fn new(
        start: NonNull<Line>,
        entries: u32,
        keeps: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        let lines = NonNull::slice_from_raw_parts(start, BEFORE + entries as usize);
        Memory { lines, _keeps: keeps }
    }

    pub(super) fn zeroed(entries: u32) -> Self {
        // Nobody moves out of it or grows it: it stays where it is.
        let keeps: Arc<Vec<Line>> = Arc::new(zeroed(entries).collect());
        let lines = NonNull::from(keeps.as_slice());
        Memory { lines, _keeps: keeps }
    }

    #[inline(always)]
    fn lines(&self) -> &[Line] {
        // SAFETY: who made it vouches for so many aligned lines for as long as `_keeps` lives, and for
        // all accesses being atomic; any bits are an `AtomicU64`. Tests: `nothing_outside_is_touched`,
        // `memory_is_kept_by_each_end`.
        unsafe { self.lines.as_ref() }
    }
}

#[cfg(loom)]
impl Memory {
    pub(super) fn zeroed(entries: u32) -> Self {
        Memory { lines: crate::sync::shared_slice(zeroed(entries)) }
    }

    fn lines(&self) -> &[Line] {
        &self.lines
    }
}

impl Memory {
    /// How many slots there are: a power of two that is not in the shared memory.
    #[inline(always)]
    pub(super) fn entries(&self) -> u32 {
        // No more than `Track::MOST` and `BEFORE`.
        (self.lines().len() - BEFORE) as u32
    }

    /// The consumer's state.
    #[inline(always)]
    pub(super) fn state(&self) -> &AtomicU64 {
        self.lines()[0].first()
    }

    /// How many entries the consumer has taken, in the low half.
    #[inline(always)]
    pub(super) fn taken(&self) -> &AtomicU64 {
        self.lines()[1].first()
    }

    /// The slot of a position.
    #[inline(always)]
    pub(super) fn slot(&self, position: u32) -> &Line {
        let index = position & (self.entries() - 1);
        &self.lines()[BEFORE + index as usize]
    }
}

fn zeroed(entries: u32) -> impl Iterator<Item = Line> {
    (0..BEFORE + entries as usize).map(|_| Line::zeroed())
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Line>() == 64 && super::Track::bytes(0) == BEFORE * 64);

/// What the state word says. Any other value counts as awake.
pub(super) const AWAKE: u64 = 0;
pub(super) const ASLEEP: u64 = 1;
pub(super) const RUNG: u64 = 2;

/// The first word of a slot that holds the entry at `position`.
#[inline(always)]
pub(super) fn first_word(position: u32, head: u32) -> u64 {
    u64::from(head) << 32 | u64::from(position.wrapping_add(1))
}

/// Whether the first word of its slot says that the entry at `position` is there.
#[inline(always)]
pub(super) fn is_there(first_word: u64, position: u32) -> bool {
    first_word as u32 == position.wrapping_add(1)
}
