//! A future for each start.
//!
//! Each subchannel has as many places as its ring has entries. A start takes one for as long as it is
//! accepted and not over, or over and not fetched; so nothing is allocated for it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use crossbeam_queue::ArrayQueue;
use parking_lot::Mutex;

use crate::architecture::{IrbHead, Orb};
use crate::service::delivery::Delivery;

use super::{Origin, Request, Shared, Subchannel, SubmitError};

/// The program is on its way or runs.
const WAITING: u8 = 0;
/// It is over, and its status is there.
const OVER: u8 = 1;
/// Its future was dropped: the program is to be cleared, and nobody wants its status.
const ABANDONED: u8 = 2;

/// The places of one subchannel.
pub(crate) struct Starts {
    places: Box<[Place]>,
    free: ArrayQueue<u32>,
}

#[derive(Default)]
struct Place {
    state: AtomicU8,
    waker: AtomicWaker,
    /// Written while WAITING by the channel, read once OVER by the future: never both.
    irb: Mutex<IrbHead>,
}

impl Starts {
    pub(crate) fn new(places: usize) -> Self {
        let starts = Starts {
            places: (0..places).map(|_| Place::default()).collect(),
            free: ArrayQueue::new(places.max(1)),
        };
        (0..places as u32).for_each(|place| starts.give_back(place));
        starts
    }

    fn place(&self, place: u32) -> &Place {
        &self.places[place as usize]
    }

    fn take_place(&self) -> Option<u32> {
        let place = self.free.pop()?;
        // Relaxed: the place is ours alone; the ring orders it before what the channel does with it.
        self.place(place).state.store(WAITING, Ordering::Relaxed);
        Some(place)
    }

    fn give_back(&self, place: u32) {
        let returned = self.free.push(place);
        debug_assert!(returned.is_ok(), "place {place} was free");
    }

    /// Whether nobody waits for it any more.
    pub(crate) fn is_abandoned(&self, place: u32) -> bool {
        // Relaxed: a hint to begin, or to end, with what is settled by `complete`.
        self.place(place).state.load(Ordering::Relaxed) == ABANDONED
    }

    /// The program is over.
    pub(crate) fn complete(&self, place: u32, irb: &IrbHead) {
        let at = self.place(place);
        *at.irb.lock() = *irb;
        // Release: pairs with the acquire in `poll`, for the status. Acquire on failure: pairs with the
        // release in `drop`, before the place is another's.
        let over = at.state.compare_exchange(WAITING, OVER, Ordering::Release, Ordering::Acquire);
        match over {
            Ok(_) => at.waker.wake(),
            Err(_) => self.give_back(place),
        }
    }
}

impl fmt::Debug for Starts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let under_way = self.places.len() - self.free.len();
        f.debug_struct("Starts").field("under_way", &under_way).finish_non_exhaustive()
    }
}

/// A program that was started with [`Subchannel::start`]: resolves to the status that it ends with.
///
/// It needs no particular runtime. Dropping it before it is over cancels the program: one that runs is
/// cleared as by CLEAR SUBCHANNEL, one that waits does not begin; either way it is counted as
/// completed, once, and what it pinned is released. Other starts of the subchannel are not touched.
#[must_use = "dropping it cancels the program"]
#[derive(Debug)]
pub struct Start {
    shared: Arc<Shared>,
    starts: Arc<Starts>,
    place: u32,
    /// The status was given out, and the place is another's.
    over: bool,
}

impl Subchannel {
    /// Starts a program; several may be under way, they run in order. Never blocks; at most one system
    /// call, to wake a sleeping shard.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use vfio_ccw::architecture::{Ccw, Orb, command};
    /// # use vfio_ccw::{Delivery, DeviceSpec, Service};
    /// # use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
    /// # let ranges = [(GuestAddress(0), 1 << 20)];
    /// # let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges)?);
    /// # let service = Service::builder().build(memory.clone())?;
    /// # memory.write_slice(&Ccw::new(command::NOP, 0, 0).to_format_1(), GuestAddress(0x1000))?;
    /// let disk = service.attach(DeviceSpec::Null, Delivery::Future)?;
    /// let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    /// let irb = runtime.block_on(async { Ok::<_, vfio_ccw::SubmitError>(disk.start(&Orb::new(0x1000))?.await) })?;
    /// assert!(irb.scsw.is_clean_end());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// Word of progress (PCI, suspension) comes with the end. A program that suspends itself goes on
    /// with [`Subchannel::rsch`].
    ///
    /// # Errors
    ///
    /// See [`SubmitError`]; nothing was started then. [`SubmitError::Full`]: as many starts are under way
    /// as the ring has entries.
    pub fn start(&self, orb: &Orb) -> Result<Start, SubmitError> {
        orb.check()?;
        let shared = &self.shared;
        let Some(starts) =
            shared.starts().filter(|_| matches!(shared.delivery(), Delivery::Future))
        else {
            return Err(SubmitError::NotAFuture);
        };
        if shared.is_closed() {
            return Err(SubmitError::Detached);
        }
        let full = SubmitError::Full { entries: shared.ring_entries() };
        let place = starts.take_place().ok_or(full)?;
        let origin = Origin::Future { place };
        if !shared.push(Request { orb: *orb, origin, submitted: shared.now() }) {
            starts.give_back(place);
            return Err(full);
        }
        Ok(Start { shared: Arc::clone(shared), starts: Arc::clone(starts), place, over: false })
    }
}

impl Future for Start {
    type Output = IrbHead;

    /// # Panics
    ///
    /// If it is polled after it has resolved.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<IrbHead> {
        assert!(!self.over, "polled after it has resolved");
        let at = self.starts.place(self.place);
        at.waker.register(cx.waker());
        // Acquire: pairs with the release in `complete`, for the status.
        if at.state.load(Ordering::Acquire) != OVER {
            return Poll::Pending;
        }
        let irb = *at.irb.lock();
        self.starts.give_back(self.place);
        self.over = true;
        Poll::Ready(irb)
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let at = self.starts.place(self.place);
        drop(at.waker.take());
        // Release: pairs with the acquire in `complete`. Acquire on failure: pairs with its release.
        let abandoned =
            at.state.compare_exchange(WAITING, ABANDONED, Ordering::Release, Ordering::Acquire);
        match abandoned {
            // The channel gives the place back when it is done with it.
            Ok(_) => self.shared.ring(),
            Err(_) => self.starts.give_back(self.place),
        }
    }
}
