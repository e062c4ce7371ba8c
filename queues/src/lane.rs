//! One-way rings in memory that two processes share and neither trusts, with need-wakeup doorbells.
//!
//! A VMM's shard and a device server have two [`Track`]s, one each way: together a *lane*. On each
//! track one side is the producer, with the [`LaneSender`], and the other the consumer, with the
//! [`LaneReceiver`]. An [`Entry`] is 64 bytes, of which 60 are the user's.
//!
//! # Memory of a track
//!
//! Words of 64 bits in the machine's byte order; eight of them are a line.
//!
//! | word | written by | what |
//! |---|---|---|
//! | 0 | both | the consumer's state: 0 awake, 1 asleep, 2 rung; anything else counts as awake |
//! | 8 | consumer | low half: how many entries it has taken, wrapping at 2³²; high half: ignored |
//! | 16 + 8 × *i* | producer | slot *i*; low half: the sequence number, high half: [`Entry::head`] |
//! | the next seven | producer | [`Entry::body`] |
//!
//! Positions count entries from 0, wrap at 2³², and are not in the memory. The entry at position `p`
//! goes to slot `p` modulo the number of slots, and is there when its sequence number is `p + 1`: the
//! consumer learns of it from the line in which it lies. So memory that starts as zeros holds no entry,
//! and what is left of the lap before is none either. The consumer publishes what it has taken once for
//! each batch, and the producer looks there only when its last view says that the ring is full.
//!
//! # What a hostile peer can do
//!
//! Both sides access the shared memory only as [`AtomicU64`](std::sync::atomic::AtomicU64), so whatever
//! the peer does there is no data race. Sizes and positions are kept in the memory of each process
//! alone, and no word that the peer can write becomes an index, a length or the bound of a loop. What
//! is left:
//!
//! * *As producer* it can send any bits. An [`Entry`] is a copy, so what has been validated stays as it
//!   is. It can send without end, more than there are slots in one go, and can make an entry come and
//!   go: [`LaneReceiver::prepare_sleep`] finds it and [`LaneReceiver::pop`] does not. **Callers bound a
//!   batch, and how often they look again without a sleep.**
//! * *As consumer* it can refuse to take entries ([`LaneError::Full`]), say that it took some that it
//!   did not read (its own loss), or say what cannot be ([`LaneError::Broken`]).
//! * It can claim to sleep all the time. That costs one signal for each [`LaneSender::must_wake`].
//! * It can send and not ring, or undo the announcement of a sleep. The sleep then lasts until
//!   something else ends it, and it was the peer's entries that had to wait.
//!
//! What the memory is made of is up to who maps it: a file that the peer can truncate kills the process
//! that touches it (SIGBUS), so a memfd has to be sealed against shrinking.
//!
//! # The race, and the two fences that close it
//!
//! As in [`wakeup`](crate::wakeup), with the state in shared memory:
//!
//! ```text
//! producer                                 consumer
//! --------                                 --------
//! P1 push                                  C1 state = asleep          (prepare_sleep)
//! P2 fence(SeqCst)  <----- pairs with ---> C2 fence(SeqCst)
//! P3 state == asleep? then wake            C3 is there an entry? then do not sleep
//! ```
//!
//! Without the fences both sides may read before their own writes are visible: the producer sees
//! "awake", the consumer sees no entry, and the entry lies there while the consumer sleeps.
//! Sequentially consistent fences have one order that all threads agree on, also those of two
//! processes: it is the processor's. If P2 comes first, C3 sees P1 and the consumer stays up. If C2
//! comes first, P3 sees C1 and the producer wakes it. The models `loom_model::no_wakeup_is_lost` and
//! `loom_model::no_second_wakeup_is_lost` fail without either fence.
//!
//! # One signal for each sleep
//!
//! * *awake* → *asleep*: the consumer, in [`LaneReceiver::prepare_sleep`].
//! * *asleep* → *rung*: the producer, in [`LaneSender::must_wake`], whose caller then signals the
//!   eventfd; there is none in here.
//! * any → *awake*: the consumer, in [`LaneReceiver::awake`].
//!
//! The signal comes after the change to *rung*, so a consumer that got up for another reason may find
//! the signal later: a needless wake-up, once. It must not collect signals between
//! [`prepare_sleep`](LaneReceiver::prepare_sleep) and the wait, since one of them may be for this
//! sleep.

#[cfg(all(test, loom))]
mod loom_model;
mod memory;
mod receiver;
mod sender;
#[cfg(all(test, not(loom)))]
mod tests;

use std::fmt;
#[cfg(not(loom))]
use std::{any::Any, ptr::NonNull, sync::Arc};

use self::memory::Memory;
pub use self::receiver::LaneReceiver;
pub use self::sender::LaneSender;

/// The memory of one direction of a lane, from which its two ends are made.
///
/// Each process makes a track over its own mapping of the memory and takes one end from it. The memory
/// is zeroed and used for one producer and one consumer only: both ends start at position 0, so a lane
/// is made fresh for each pair. Two senders of one track, or two receivers, or an end made anew over
/// memory in use, get in each other's way as a hostile peer would: entries are garbage or lost, and
/// nothing worse.
///
/// ```
/// use vfio_ccw_queues::lane::{Entry, LaneError, Track};
///
/// # fn main() -> Result<(), LaneError> {
/// let track = Track::in_process(8)?;
/// let (mut sender, mut receiver) = (track.sender(), track.receiver());
///
/// // The consumer has nothing to do and says so, then waits for its eventfd.
/// assert!(receiver.prepare_sleep());
///
/// for head in [1, 2] {
///     sender.push(&Entry { head, body: [7; 7] })?;
/// }
/// // Once for the batch. A real producer signals the eventfd here.
/// assert!(sender.must_wake());
///
/// receiver.awake();
/// // At most 32 in one go, whatever the peer does.
/// let taken: Vec<Entry> = (0..32).map_while(|_| receiver.pop()).collect();
/// receiver.release();
/// assert_eq!(taken[1], Entry { head: 2, body: [7; 7] });
/// assert_eq!((taken.len(), sender.room()?), (2, 8));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Track {
    memory: Memory,
}

impl Track {
    /// The fewest slots of a track.
    pub const FEWEST: u32 = 2;
    /// The most slots of a track.
    pub const MOST: u32 = 65_536;

    /// Bytes that a track with `entries` slots needs: a line for the state, one for the count of entries
    /// taken, and one for each slot.
    pub const fn bytes(entries: u32) -> usize {
        128 + entries as usize * 64
    }

    /// A track over memory from elsewhere: a mapping that is shared with the peer.
    ///
    /// The memory has to be zeroed before either side uses it.
    ///
    /// # Errors
    /// [`LaneError::Entries`] and [`LaneError::Alignment`]; nothing was accessed.
    ///
    /// # Safety
    /// As long as `keeps` or a clone of it lives, [`bytes(entries)`](Self::bytes) bytes at `start`,
    /// which lie in one allocation or mapping, are valid for reads and writes: in a file, that nobody
    /// can shrink it. Threads of this process access them through tracks or as `AtomicU64` only. Other
    /// processes may write them at any time.
    #[cfg(not(loom))]
    pub unsafe fn new(
        start: NonNull<u8>,
        entries: u32,
        keeps: Arc<dyn Any + Send + Sync>,
    ) -> Result<Track, LaneError> {
        Self::check(entries)?;
        if !start.cast::<memory::Line>().is_aligned() {
            return Err(LaneError::Alignment { address: start.addr().get() });
        }
        // SAFETY: the caller vouches for the memory, and the alignment was looked at. Test:
        // `nothing_outside_is_touched`.
        Ok(Track { memory: unsafe { Memory::new(start.cast(), entries, keeps) } })
    }

    /// A track on the heap, for two ends in one process.
    ///
    /// # Errors
    /// [`LaneError::Entries`].
    pub fn in_process(entries: u32) -> Result<Track, LaneError> {
        Self::check(entries)?;
        Ok(Track { memory: Memory::zeroed(entries) })
    }

    /// The end that puts entries in, at position 0. For one of the two processes, once.
    pub fn sender(&self) -> LaneSender {
        LaneSender::starting_at(self.memory.clone(), 0)
    }

    /// The end that takes entries out, at position 0. For the other process, once.
    pub fn receiver(&self) -> LaneReceiver {
        LaneReceiver::starting_at(self.memory.clone(), 0)
    }

    fn check(entries: u32) -> Result<(), LaneError> {
        let fits = entries.is_power_of_two() && (Self::FEWEST..=Self::MOST).contains(&entries);
        if fits { Ok(()) } else { Err(LaneError::Entries { entries }) }
    }
}

impl fmt::Debug for Track {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Track").field("entries", &self.memory.entries()).finish_non_exhaustive()
    }
}

/// What one slot carries: 60 bytes whose meaning, and whose byte order, are the user's. They cross as
/// native `u32` and `u64`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Shares a word with the sequence number.
    pub head: u32,
    /// The other words.
    pub body: [u64; 7],
}

/// What is wrong with a track, or its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LaneError {
    /// No slot is free. This is back-pressure, not a fault.
    #[error(
        "no free slot in the lane: retry after the peer has taken entries, or make the lane with more of them"
    )]
    Full,
    /// The peer says that it has taken entries that were never sent, or takes back what it said.
    #[error(
        "the peer says that it has taken {taken} entries, which has to be from {before} to {pushed} (modulo 2^32): give the lane up and make a new one"
    )]
    Broken {
        /// How many entries it has taken, it says.
        taken: u32,
        /// How many it had taken when last looked at.
        before: u32,
        /// How many were put in.
        pushed: u32,
    },
    /// The number of slots is no power of two, or too small or large.
    #[error(
        "a lane with {entries} entries: use a power of two from {} to {}",
        Track::FEWEST,
        Track::MOST
    )]
    Entries {
        /// Slots asked for.
        entries: u32,
    },
    /// The memory does not start at a multiple of 64 bytes.
    #[error("a lane at address {address:#x}: use memory that starts at a multiple of 64 bytes")]
    Alignment {
        /// Its first address in this process.
        address: usize,
    },
}
