//! The pool of pinned frames: a hard budget, a lock-free hit, misses in order.
//!
//! A program asks for all its frames at once. If all are pinned, that is one compare-and-swap a
//! frame and nothing else. If some are not, the program either gets room for all of them in one
//! step or waits in line **holding nothing**: programs that wait cannot hold what others wait for,
//! so there is no deadlock, and the first in line is served as soon as enough frames are idle.
//!
//! Order of a miss: room is booked under the lock; victims are unpinned off the lock; new frames
//! are pinned off the lock, adjacent ones in one call; the words turn Ready. Victims go before new
//! frames come, so what is really pinned never exceeds what is booked, and that never the budget.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::task::{Context, Poll, Wake, Waker};

use crossbeam_utils::CachePadded;
use parking_lot::Mutex;
use zerocopy::FromZeros;

use crate::hold::{Hold, Tally};
use crate::ledger::Ledger;
use crate::word::{Eviction, StateWord, Taken};
use crate::{FRAME, FRAME_SHIFT, GuestMap, HostRange, Mode, Pinner};

/// Why a pool cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// Less than one frame.
    #[error("a pin budget of {budget} bytes holds no frame: give at least {FRAME} bytes")]
    BudgetTooSmall {
        /// Bytes asked for.
        budget: u64,
    },
    /// No memory for the table of state words.
    #[error("no memory for the frame table of {frames} frames (8 bytes each)")]
    TableTooLarge {
        /// Frames of the guest.
        frames: u32,
    },
    /// The whole guest cannot be pinned within the budget.
    #[error(
        "mode pinned needs the whole guest, {guest} bytes, but the budget is {budget}: raise the budget or use mode cached"
    )]
    GuestExceedsBudget {
        /// Bytes of guest memory.
        guest: u64,
        /// Bytes of budget.
        budget: u64,
    },
    /// The whole guest could not be pinned.
    #[error("pinning the whole guest failed: {0}")]
    Hold(#[from] HoldError),
}

/// Why a program's pages cannot be held. The program is refused; nothing of it is held.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HoldError {
    /// The program alone needs more than may ever be pinned for it.
    #[error(
        "the program needs {need} bytes pinned at once but {which} allows {limit}: raise it or send smaller programs"
    )]
    TooLarge {
        /// Bytes of distinct frames in the program.
        need: u64,
        /// The limit that it exceeds, in bytes.
        limit: u64,
        /// "the pin budget" or "the subchannel's share".
        which: &'static str,
    },
    /// The pinner refused.
    #[error("pinner {pinner} could not pin {len} bytes at guest address {address:#x}: {source}{}", remedy(.source))]
    Pin {
        /// Its name.
        pinner: &'static str,
        /// Guest address of the run.
        address: u64,
        /// Bytes of the run.
        len: usize,
        /// What it said.
        source: io::Error,
    },
    /// The pinner could not unpin what had to make room; it stays pinned and counted.
    #[error(
        "pinner {pinner} could not unpin {len} bytes at guest address {address:#x} to make room: {source}"
    )]
    Unpin {
        /// Its name.
        pinner: &'static str,
        /// Guest address of the run.
        address: u64,
        /// Bytes of the run.
        len: usize,
        /// What it said.
        source: io::Error,
    },
    /// A frame has 16,777,215 users already.
    #[error("a frame has 16777215 users, as many as can be counted: send fewer programs at once")]
    Saturated,
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOMEM | libc::EAGAIN | libc::EPERM) => {
            " (raise RLIMIT_MEMLOCK with 'ulimit -l', grant CAP_IPC_LOCK, or lower the pin budget)"
        }
        _ => "",
    }
}

/// Pinned frames of one guest under one budget, shared by all subchannels of a service.
pub struct Pool {
    map: Arc<GuestMap>,
    words: Box<[StateWord]>,
    pinner: Box<dyn Pinner>,
    /// Set once the whole guest is pinned: holding is then free.
    whole: AtomicBool,
    /// Programs in the queue for room; a release looks here to see whether anyone cares.
    waiting: CachePadded<AtomicUsize>,
    ledger: Mutex<Ledger>,
}

impl Pool {
    /// A pool over `map` that pins through `pinner` and never more than `budget` bytes, rounded
    /// down to whole frames.
    ///
    /// # Errors
    ///
    /// A budget below one frame; no memory for the table.
    pub fn new(
        map: Arc<GuestMap>,
        pinner: Box<dyn Pinner>,
        budget: u64,
    ) -> Result<Self, PoolError> {
        if budget < FRAME {
            return Err(PoolError::BudgetTooSmall { budget });
        }
        // Zeroed memory is "all absent" and costs nothing until touched.
        let words = <[StateWord]>::new_box_zeroed_with_elems(map.frames() as usize)
            .map_err(|_| PoolError::TableTooLarge { frames: map.frames() })?;
        let limit = u32::try_from(budget >> FRAME_SHIFT).unwrap_or(u32::MAX);
        Ok(Pool {
            map,
            words,
            pinner,
            whole: AtomicBool::new(false),
            waiting: CachePadded::new(AtomicUsize::new(0)),
            ledger: Mutex::new(Ledger::new(limit)),
        })
    }

    /// Pins the whole guest, region by region; from then on holding is free.
    ///
    /// # Errors
    ///
    /// The guest exceeds the budget, or the pinner fails; nothing more is pinned then.
    pub fn pin_whole_guest(&self) -> Result<(), PoolError> {
        let guest = self.map.bytes();
        if guest > self.budget_bytes() {
            return Err(PoolError::GuestExceedsBudget { guest, budget: self.budget_bytes() });
        }
        let mut hold = Hold::default();
        (0..self.map.frames()).for_each(|frame| hold.want(frame));
        self.hold_blocking(&mut hold)?;
        // Held for good by the pool itself: the list goes, the in-use counts stay.
        hold.held.clear();
        // Release: pairs with the Acquire in `poll_hold`.
        self.whole.store(true, Ordering::Release);
        Ok(())
    }

    /// Holds every frame that `hold` wants, waiting for room where there is none.
    ///
    /// Pending means nothing is held and the waker is kept. A future dropped meanwhile must call
    /// [`Pool::forget`].
    ///
    /// # Errors
    ///
    /// See [`HoldError`]; nothing is held then.
    #[inline]
    pub fn poll_hold(&self, hold: &mut Hold, cx: &mut Context<'_>) -> Poll<Result<(), HoldError>> {
        if hold.ticket.is_none() {
            hold.tally = Tally { gets: hold.wanted.len() as u32, ..Tally::default() };
        }
        // Acquire: pairs with the Release in `pin_whole_guest`.
        if self.whole.load(Ordering::Acquire) {
            hold.tally.hits = hold.tally.gets;
            return Poll::Ready(Ok(()));
        }
        if hold.limit.is_some_and(|share| hold.wanted.len() > share as usize)
            && let Err(error) = self.check_size(hold)
        {
            self.forget(hold);
            return Poll::Ready(Err(error));
        }
        match self.take_all(hold) {
            Ok(true) if hold.ticket.is_none() => {
                hold.tally.hits = hold.tally.gets;
                Poll::Ready(Ok(()))
            }
            Ok(_) => self.poll_misses(hold, cx),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// [`Pool::poll_hold`] as a future.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn hold(&self, hold: &mut Hold) -> Result<(), HoldError> {
        let guard = QueueGuard { pool: self, hold };
        poll_fn(|cx| guard.pool.poll_hold(guard.hold, cx)).await
    }

    /// [`Pool::poll_hold`] for a caller that can sleep.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn hold_blocking(&self, hold: &mut Hold) -> Result<(), HoldError> {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut cx = Context::from_waker(&waker);
        loop {
            match self.poll_hold(hold, &mut cx) {
                Poll::Ready(result) => return result,
                Poll::Pending => std::thread::park(),
            }
        }
    }

    /// Releases every frame that `hold` holds: the device is done with them. With
    /// [`Mode::OnDemand`], frames that nobody else uses are unpinned now.
    #[inline]
    pub fn release(&self, hold: &mut Hold, mode: Mode) {
        if hold.held.is_empty() {
            return;
        }
        if mode == Mode::OnDemand {
            self.release_and_unpin(hold);
        } else {
            self.let_go(hold);
        }
        // SeqCst: ordered with the SeqCst count in `StateWord::release` above and with the waiter's
        // add in `wait_for_room`: a waiter that we miss here retries after its add and sees our
        // release.
        if self.waiting.load(Ordering::SeqCst) != 0 {
            self.ledger.lock().wake_first();
        }
    }

    /// Gives up the place in line of a hold that is not polled again for this program.
    pub fn forget(&self, hold: &mut Hold) {
        if let Some(ticket) = hold.ticket.take() {
            let mut ledger = self.ledger.lock();
            ledger.leave_queue(ticket);
            self.waiting.store(ledger.queued(), Ordering::SeqCst);
            ledger.wake_first();
        }
    }

    /// Bytes pinned now.
    pub fn pinned_bytes(&self) -> u64 {
        u64::from(self.ledger.lock().pinned()) << FRAME_SHIFT
    }

    /// Most bytes that were pinned at one time.
    pub fn peak_bytes(&self) -> u64 {
        u64::from(self.ledger.lock().peak()) << FRAME_SHIFT
    }

    /// Bytes that may be pinned.
    pub fn budget_bytes(&self) -> u64 {
        u64::from(self.ledger.lock().limit()) << FRAME_SHIFT
    }

    /// Programs waiting for room at the moment.
    pub fn waiting(&self) -> usize {
        // Relaxed: a gauge.
        self.waiting.load(Ordering::Relaxed)
    }

    /// Name of the pinner.
    pub fn pinner(&self) -> &'static str {
        self.pinner.name()
    }

    /// The memory it pins.
    pub fn map(&self) -> &Arc<GuestMap> {
        &self.map
    }

    /// Unpins every frame that nobody uses; returns how many bytes that freed.
    ///
    /// # Errors
    ///
    /// The pinner could not unpin; what it kept stays counted.
    pub fn unpin_all_idle(&self) -> Result<u64, HoldError> {
        let before = self.pinned_bytes();
        let mut hold = Hold::default();
        let frames = self.ledger.lock().frames();
        self.unpin_idle(&mut hold, frames.into_iter())?;
        Ok(before.saturating_sub(self.pinned_bytes()))
    }

    /// Takes every wanted frame that is pinned; the rest goes to `missing`. Whether none is missing.
    #[inline]
    fn take_all(&self, hold: &mut Hold) -> Result<bool, HoldError> {
        hold.missing.clear();
        for &frame in &hold.wanted {
            match self.words[frame as usize].take() {
                Taken::Hit => hold.held.push(frame),
                Taken::Absent | Taken::Busy => hold.missing.push(frame),
                Taken::Saturated => {
                    self.let_go(hold);
                    return Err(HoldError::Saturated);
                }
            }
        }
        Ok(hold.missing.is_empty())
    }

    /// Drops one use of every held frame.
    #[inline]
    fn let_go(&self, hold: &mut Hold) {
        for frame in hold.held.drain(..) {
            self.words[frame as usize].release();
        }
    }

    /// Drops one use of every held frame and unpins those that were in their last use.
    fn release_and_unpin(&self, hold: &mut Hold) {
        let mut held = std::mem::take(&mut hold.held);
        held.retain(|frame| self.words[*frame as usize].release());
        if let Err(error) = self.unpin_idle(hold, held.iter().copied()) {
            // Still pinned and still counted: said, and tried again by whoever needs the room.
            tracing::error!(%error, "on-demand release left frames pinned");
        }
        held.clear();
        hold.held = held;
    }

    /// The slow path: some frames are missing, or the program stands in line and it may be its turn.
    #[cold]
    fn poll_misses(&self, hold: &mut Hold, cx: &mut Context<'_>) -> Poll<Result<(), HoldError>> {
        match self.pin_missing(hold, cx.waker()) {
            Ok(true) => {
                self.forget(hold);
                let tally = &mut hold.tally;
                tally.hits = tally.gets.saturating_sub(tally.misses);
                Poll::Ready(Ok(()))
            }
            Ok(false) => {
                hold.tally.waits += 1;
                // Wait holding nothing (see the module's head); what this frees may be what the
                // first in line waits for.
                self.let_go(hold);
                let ledger = self.ledger.lock();
                if ledger.is_behind(hold.ticket) {
                    ledger.wake_first();
                }
                Poll::Pending
            }
            Err(error) => {
                self.release(hold, Mode::Cached);
                self.forget(hold);
                Poll::Ready(Err(error))
            }
        }
    }

    /// Pins what is missing. `false`: not now; the waker is where it will be woken.
    fn pin_missing(&self, hold: &mut Hold, waker: &Waker) -> Result<bool, HoldError> {
        self.check_size(hold)?;
        loop {
            let Hold { missing, held, .. } = hold;
            missing.retain(|&frame| match self.words[frame as usize].take() {
                Taken::Hit => {
                    held.push(frame);
                    false
                }
                _ => true,
            });
            if missing.is_empty() {
                return Ok(true);
            }
            if !self.book(hold, waker) {
                return Ok(false);
            }
            self.unpin_booked_victims(hold)?;
            self.pin_fresh(hold)?;
            let Hold { missing, fresh, .. } = hold;
            missing.retain(|frame| fresh.binary_search(frame).is_err());
        }
    }

    /// Refuses a program that could never be held.
    fn check_size(&self, hold: &mut Hold) -> Result<(), HoldError> {
        let budget = self.ledger.lock().limit();
        let share = hold.limit.unwrap_or(u32::MAX);
        let limit = budget.min(share);
        if hold.wanted.len() <= limit as usize {
            return Ok(());
        }
        let need = hold.distinct();
        if need <= limit as usize {
            return Ok(());
        }
        Err(HoldError::TooLarge {
            need: (need as u64) << FRAME_SHIFT,
            limit: u64::from(limit) << FRAME_SHIFT,
            which: if budget <= share { "the pin budget" } else { "the subchannel's share" },
        })
    }

    /// Under the lock: claims the absent ones of the missing frames into `fresh`, with room for all
    /// of them, and the frames that must go for it into `victims`. `false`: not now; the waker waits.
    ///
    /// Words turn from Absent to Pinning here only, so what is absent stays so under the lock; and
    /// owners wake bystanders under the lock after they let a word go, so a word seen busy here
    /// will be reported.
    fn book(&self, hold: &mut Hold, waker: &Waker) -> bool {
        let mut ledger = self.ledger.lock();
        let Hold { missing, fresh, victims, ticket, .. } = hold;
        if ledger.is_behind(*ticket) {
            *ticket = Some(ledger.queue_up(*ticket, waker));
            self.waiting.store(ledger.queued(), Ordering::SeqCst);
            return false;
        }
        fresh.clear();
        fresh.extend(missing.iter().filter(|frame| self.words[**frame as usize].is_absent()));
        fresh.sort_unstable();
        fresh.dedup();
        if fresh.is_empty() {
            if missing.iter().any(|frame| self.words[*frame as usize].is_owned()) {
                ledger.stand_by(waker);
                return false;
            }
            // All have become ready meanwhile: nothing to pin, take them.
            victims.clear();
            return true;
        }
        victims.clear();
        let need = fresh.len() as u32;
        if !ledger.make_room(need, &self.words, victims) {
            *ticket = Some(ledger.queue_up(*ticket, waker));
            self.waiting.store(ledger.queued(), Ordering::SeqCst);
            // Pairs with the SeqCst pair in `release`: either the releaser sees the count above, or
            // this second look sees its release.
            fence(Ordering::SeqCst);
            if !ledger.make_room(need, &self.words, victims) {
                return false;
            }
        }
        for &victim in victims.iter() {
            ledger.leave(self.words[victim as usize].slot());
        }
        for &frame in fresh.iter() {
            let claimed = self.words[frame as usize].claim(ledger.enter(frame));
            debug_assert!(
                claimed,
                "frame {frame} was absent under the lock but could not be claimed"
            );
        }
        victims.sort_unstable();
        true
    }

    /// Unpins victims that `book` has taken off the accounts already.
    fn unpin_booked_victims(&self, hold: &mut Hold) -> Result<(), HoldError> {
        let Hold { fresh, victims, tally, .. } = hold;
        if victims.is_empty() {
            return Ok(());
        }
        let (gone, result) = self.unpin(victims);
        for &victim in &victims[..gone] {
            self.words[victim as usize].vacate();
        }
        tally.evictions += gone as u32;
        let mut ledger = self.ledger.lock();
        if result.is_err() {
            // Nothing new may come for what did not go: the booking is undone.
            for &frame in fresh.iter() {
                ledger.leave(self.words[frame as usize].slot());
                self.words[frame as usize].fail();
            }
            for &victim in &victims[gone..] {
                self.words[victim as usize].restore_in(ledger.enter(victim));
            }
        }
        ledger.wake_bystanders();
        result
    }

    /// Pins what `book` has claimed, adjacent frames in one call, and holds it.
    fn pin_fresh(&self, hold: &mut Hold) -> Result<(), HoldError> {
        let Hold { fresh, held, tally, .. } = hold;
        if fresh.is_empty() {
            return Ok(());
        }
        let mut pinned = 0;
        let result = self.for_runs(fresh, |address, host, count| {
            tally.pin_calls += 1;
            match self.pinner.pin(address, host) {
                Ok(()) => {
                    pinned += count as usize;
                    Ok(())
                }
                Err(source) => Err(HoldError::Pin {
                    pinner: self.pinner.name(),
                    address,
                    len: host.len(),
                    source,
                }),
            }
        });
        for &frame in &fresh[..pinned] {
            self.words[frame as usize].ready();
            held.push(frame);
        }
        tally.misses += pinned as u32;
        let mut ledger = self.ledger.lock();
        for &frame in &fresh[pinned..] {
            ledger.leave(self.words[frame as usize].slot());
            self.words[frame as usize].fail();
        }
        ledger.wake_bystanders();
        result
    }

    /// Unpins those of `frames` that nobody uses.
    fn unpin_idle(
        &self,
        hold: &mut Hold,
        frames: impl Iterator<Item = u32>,
    ) -> Result<(), HoldError> {
        let victims = &mut hold.victims;
        victims.clear();
        let idle = |frame: &u32| self.words[*frame as usize].try_evict(false) == Eviction::Claimed;
        victims.extend(frames.filter(idle));
        if victims.is_empty() {
            return Ok(());
        }
        victims.sort_unstable();
        let (gone, result) = self.unpin(victims);
        let mut ledger = self.ledger.lock();
        for &victim in &victims[..gone] {
            ledger.leave(self.words[victim as usize].slot());
            self.words[victim as usize].vacate();
        }
        for &victim in &victims[gone..] {
            self.words[victim as usize].restore();
        }
        ledger.wake_bystanders();
        result
    }

    /// Unpins `frames`, which are sorted and in Evicting. Returns how many are unpinned; with an
    /// error, those after them are not.
    fn unpin(&self, frames: &[u32]) -> (usize, Result<(), HoldError>) {
        let mut gone = 0;
        let result = self.for_runs(frames, |address, host, count| {
            self.pinner.unpin(address, host).map_err(|source| HoldError::Unpin {
                pinner: self.pinner.name(),
                address,
                len: host.len(),
                source,
            })?;
            gone += count as usize;
            Ok(())
        });
        (gone, result)
    }

    /// Calls `each` with guest address, bytes and frame count of every run of adjacent frames.
    fn for_runs(
        &self,
        frames: &[u32],
        mut each: impl FnMut(u64, HostRange, u32) -> Result<(), HoldError>,
    ) -> Result<(), HoldError> {
        let mut rest = frames;
        while let [first, ..] = *rest {
            let mut count = 1;
            while rest.get(count as usize) == Some(&(first + count))
                && self.map.frames_host(first, count + 1).is_some()
            {
                count += 1;
            }
            if let (Some(address), Some(host)) =
                (self.map.frame_address(first), self.map.frames_host(first, count))
            {
                each(address, host, count)?;
            }
            rest = &rest[count as usize..];
        }
        Ok(())
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ledger = self.ledger.lock();
        f.debug_struct("Pool")
            .field("pinner", &self.pinner.name())
            .field("pinned_frames", &ledger.pinned())
            .field("limit_frames", &ledger.limit())
            .field("queued", &ledger.queued())
            .finish_non_exhaustive()
    }
}

/// Unpins everything that is not in use. What a lost [`Hold`] still holds stays pinned: a device may
/// be using it.
impl Drop for Pool {
    fn drop(&mut self) {
        if *self.whole.get_mut() {
            for frame in self.ledger.get_mut().frames() {
                self.words[frame as usize].release();
            }
        }
        if let Err(error) = self.unpin_all_idle() {
            tracing::error!(%error, "frames stay pinned");
        }
    }
}

/// Leaves the line if the future is dropped in it.
struct QueueGuard<'a> {
    pool: &'a Pool,
    hold: &'a mut Hold,
}

impl Drop for QueueGuard<'_> {
    fn drop(&mut self) {
        self.pool.forget(self.hold);
    }
}

/// Wakes a thread that sleeps in [`Pool::hold_blocking`].
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests;
