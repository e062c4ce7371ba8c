//! The pool of pinned frames: a hard budget, a lock-free hit, misses in order.
//!
//! A program asks for all its frames at once. If all are pinned, that is one compare-and-swap a
//! frame and nothing else. If some are not, the program either gets room for all of them in one
//! step or waits in line **holding nothing**: programs that wait cannot hold what others wait for,
//! so there is no deadlock, and the first in line is served as soon as enough frames are idle. A
//! program that could never be served runs unpinned where its device allows that.
//!
//! Order of a miss: room is booked under the lock; victims are unpinned off the lock; new frames
//! are pinned off the lock, adjacent ones in one call; the words turn Ready. Victims go before new
//! frames come, so what is really pinned never exceeds what is booked, and that never the budget. A
//! failure to pin is nobody's memory: the next program tries again.

mod budget;
mod error;
mod layout;
mod misses;
mod whole_guest;
mod withdrawal;

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use crossbeam_utils::CachePadded;
use parking_lot::Mutex;
use zerocopy::FromZeros;

use crate::frame_table::FrameTable;
use crate::hold::{Hold, Tally};
use crate::ledger::Ledger;
use crate::patience::Patience;
use crate::reuse::{ReuseDistances, Sizing, Watched};
use crate::self_check::SelfCheck;
use crate::word::{Released, StateWord, Taken};
use crate::{FRAME, FRAME_SHIFT, GuestMap, Mode, Pinner};

pub use error::{BudgetError, HoldError, PoolError, WithdrawError};
pub use whole_guest::WholeGuest;
pub use withdrawal::Withdrawn;

use whole_guest::Leases;

/// Sampled uses that are counted in one go.
const SAMPLES_AT_ONCE: usize = 64;

/// Frame numbers that are kept for regions to come where nobody says how many, at least: 16 GiB in
/// 4 KiB frames. Words cost nothing until they are touched.
const SPARE_FRAMES: u32 = 4 << 20;

/// What few pools need.
#[derive(Clone, Copy, Debug, Default)]
pub struct PoolOptions {
    /// Compare every hit with `/proc/self/pagemap` and panic on a difference: for tests.
    pub self_check: bool,
    /// Most bytes of memory that the guest will have, with what is added while it runs. Default:
    /// four times what it has at the start, and at least 16 GiB.
    pub max_memory: Option<u64>,
}

/// Pinned frames of one guest under one budget, shared by all subchannels of a service.
pub struct Pool {
    words: Box<[StateWord]>,
    pinner: Box<dyn Pinner>,
    /// Those in line for room; a release looks here to see whether anyone cares.
    waiting: CachePadded<AtomicUsize>,
    /// log2 of the largest frame's size.
    widest_shift: AtomicU32,
    ledger: Mutex<Ledger>,
    /// Which frames' reuse is watched; a copy of what `reuse` knows.
    watched: Watched,
    reuse: Mutex<ReuseDistances>,
    self_check: Option<SelfCheck>,
    /// Times that the pinner failed.
    failures: AtomicU64,
    /// Frames that were unpinned since their memory was to go.
    invalidations: AtomicU64,
    /// Leases of the whole guest. Also: one change of layout, budget or leases at a time.
    leases: Mutex<Leases>,
}

impl Pool {
    /// A pool over `map` that pins through `pinner` and never more than `budget` bytes, rounded
    /// down to whole pages of 4 KiB.
    ///
    /// # Errors
    ///
    /// A budget below one frame; no memory for the table.
    pub fn new(
        map: Arc<GuestMap>,
        pinner: Box<dyn Pinner>,
        budget: u64,
    ) -> Result<Self, PoolError> {
        Self::with_options(map, pinner, budget, PoolOptions::default())
    }

    /// The same with options.
    ///
    /// # Errors
    ///
    /// As [`Pool::new`], and where the self-check cannot read what it needs.
    pub fn with_options(
        map: Arc<GuestMap>,
        pinner: Box<dyn Pinner>,
        budget: u64,
        options: PoolOptions,
    ) -> Result<Self, PoolError> {
        let table = FrameTable::of(&map);
        let least = 1 << table.widest_shift();
        if budget < least {
            return Err(PoolError::BudgetTooSmall { budget, least });
        }
        let frames = match options.max_memory {
            Some(bytes) => u32::try_from(bytes.div_ceil(FRAME)).unwrap_or(u32::MAX),
            None => map.frames().saturating_mul(4).max(SPARE_FRAMES),
        };
        let frames = frames.max(map.frames());
        // Zeroed memory is "all absent" and costs nothing until touched.
        let words = <[StateWord]>::new_box_zeroed_with_elems(frames as usize)
            .map_err(|_| PoolError::TableTooLarge { frames })?;
        let self_check = match options.self_check {
            true => {
                let check = SelfCheck::new(frames, pinner.keeps_place());
                Some(check.map_err(PoolError::SelfCheck)?)
            }
            false => None,
        };
        let most_frames = match pinner.joins_frames() {
            true => u32::MAX,
            false => pinner.most_runs().unwrap_or(u32::MAX),
        };
        if most_frames == 0 {
            return Err(PoolError::NoPlace { pinner: pinner.name() });
        }
        let reuse = ReuseDistances::new(map.frames());
        Ok(Pool {
            words,
            pinner,
            waiting: CachePadded::new(AtomicUsize::new(0)),
            widest_shift: AtomicU32::new(table.widest_shift()),
            ledger: Mutex::new(Ledger::new(table, pages(budget), most_frames)),
            watched: reuse.watched(),
            reuse: Mutex::new(reuse),
            self_check,
            failures: AtomicU64::new(0),
            invalidations: AtomicU64::new(0),
            leases: Mutex::default(),
        })
    }

    /// Holds every frame that `hold` wants if all are pinned: the common case, without a future.
    /// `false`: nothing is held, and [`Pool::hold`] sees to it.
    #[inline(always)]
    pub fn try_hold(&self, hold: &mut Hold) -> bool {
        if hold.limit.is_some_and(|share| self.may_exceed(hold, share)) {
            return false;
        }
        hold.tally = Tally { gets: hold.wanted.len() as u32, ..Tally::default() };
        if !matches!(self.take_all(hold), Ok(true)) {
            self.let_go(hold);
            return false;
        }
        self.all_hit(hold);
        true
    }

    /// Holds every frame that `hold` wants, waiting for room where there is none.
    ///
    /// Pending means nothing is held and the waker is kept. A future dropped meanwhile must call
    /// [`Pool::forget`].
    ///
    /// Where the pinner is not needed ([`Pinner::is_needed`]), a program that could never be held, or
    /// whose pages the system refuses to pin, is let through holding nothing:
    /// [`Tally::unpinned`] says so.
    ///
    /// # Errors
    ///
    /// See [`HoldError`]; nothing is held then.
    #[inline]
    pub fn poll_hold(&self, hold: &mut Hold, cx: &mut Context<'_>) -> Poll<Result<(), HoldError>> {
        if !hold.is_waiting {
            hold.tally = Tally { gets: hold.wanted.len() as u32, ..Tally::default() };
        }
        if hold.limit.is_some_and(|share| self.may_exceed(hold, share))
            && let Err(error) = self.check_size(hold)
        {
            return Poll::Ready(self.give_up(hold, error));
        }
        match self.take_all(hold) {
            Ok(true) if hold.ticket.is_none() => {
                self.all_hit(hold);
                Poll::Ready(Ok(()))
            }
            Ok(_) => self.poll_misses(hold, cx),
            Err(error) => Poll::Ready(self.give_up(hold, error)),
        }
    }

    /// [`Pool::poll_hold`] as a future.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn hold(&self, hold: &mut Hold) -> Result<(), HoldError> {
        let guard = PlaceInLine { pool: self, hold };
        poll_fn(|cx| guard.pool.poll_hold(guard.hold, cx)).await
    }

    /// [`Pool::poll_hold`] for a caller that can sleep.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn hold_blocking(&self, hold: &mut Hold) -> Result<(), HoldError> {
        let patience = Patience::unlimited();
        let mut cx = Context::from_waker(patience.waker());
        loop {
            match self.poll_hold(hold, &mut cx) {
                Poll::Ready(result) => return result,
                Poll::Pending => patience.wait(),
            };
        }
    }

    /// Releases every frame that `hold` holds: the device is done with them. With
    /// [`Mode::OnDemand`], frames that nobody else uses are unpinned now.
    #[inline(always)]
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
        // store in `misses::line_up`: a waiter that we miss here retries after its store and sees our
        // release.
        if self.waiting.load(Ordering::SeqCst) != 0 {
            self.ledger.lock().line.wake_first();
        }
        hold.uses = hold.uses.saturating_add(hold.tally.gets);
        if hold.sampled.len() >= SAMPLES_AT_ONCE {
            self.count_samples(hold);
        }
    }

    /// Gives up the place in line of a hold that is not polled again for this program.
    pub fn forget(&self, hold: &mut Hold) {
        hold.is_waiting = false;
        if hold.ticket.is_some() {
            self.leave_line(&mut self.ledger.lock(), &mut hold.ticket);
        }
    }

    /// Bytes pinned now.
    pub fn pinned_bytes(&self) -> u64 {
        self.ledger.lock().pinned_bytes()
    }

    /// Most bytes that were pinned at one time.
    pub fn peak_bytes(&self) -> u64 {
        self.ledger.lock().peak_bytes()
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

    /// Times that the pinner failed where a program went on all the same.
    pub fn failures(&self) -> u64 {
        // Relaxed: a counter.
        self.failures.load(Ordering::Relaxed)
    }

    /// Frames that were pinned and unused and were unpinned since their memory was withdrawn, for a while or
    /// for good.
    pub fn invalidations(&self) -> u64 {
        // Relaxed: a counter.
        self.invalidations.load(Ordering::Relaxed)
    }

    /// Pieces of guest memory that there are.
    pub fn pieces(&self) -> usize {
        self.ledger.lock().table().regions().len()
    }

    /// Name of the pinner.
    pub fn pinner(&self) -> &'static str {
        self.pinner.name()
    }

    /// The hit rates that budgets around the present one would have, by the reuse distances seen
    /// lately; empty before enough was seen. An estimate: from a sample of frames, and for an exact
    /// LRU.
    pub fn sizing(&self) -> Vec<Sizing> {
        let (budget, guest) = {
            let ledger = self.ledger.lock();
            (u64::from(ledger.limit()) << FRAME_SHIFT, ledger.table().bytes())
        };
        self.reuse.lock().sizing(budget, guest)
    }

    /// The hit rate that a budget of `bytes` would have; as [`Pool::sizing`].
    pub fn hit_rate_at(&self, bytes: u64) -> Option<f64> {
        self.reuse.lock().hit_rate(bytes)
    }

    /// Every wanted frame was pinned.
    #[inline(always)]
    fn all_hit(&self, hold: &mut Hold) {
        hold.is_waiting = false;
        hold.tally.hits = hold.tally.gets.saturating_sub(hold.tally.misses);
        if hold.has_sampled {
            self.sample_held(hold);
        }
        if let Some(self_check) = &self.self_check {
            self_check.check(&hold.held, &self.table());
        }
    }

    /// Takes every wanted frame that is pinned; the rest goes to `missing`. Whether none is missing.
    #[inline(always)]
    fn take_all(&self, hold: &mut Hold) -> Result<bool, HoldError> {
        let Hold { wanted, held, missing, .. } = hold;
        missing.clear();
        let mut sampled = false;
        for &frame in &*wanted {
            match self.words[frame as usize].take() {
                Taken::Hit => held.push(frame),
                Taken::SampledHit => {
                    sampled = true;
                    held.push(frame);
                }
                Taken::Absent | Taken::Busy => missing.push(frame),
                Taken::Saturated => {
                    self.let_go(hold);
                    return Err(HoldError::Saturated);
                }
            }
        }
        hold.has_sampled = sampled;
        Ok(hold.missing.is_empty())
    }

    /// Notes which frames of a program that is held now are for the sample: once, however often it
    /// had to ask.
    #[cold]
    fn sample_held(&self, hold: &mut Hold) {
        for index in 0..hold.held.len() {
            let frame = hold.held[index];
            if self.watched.has(frame) {
                hold.sample(frame);
            }
        }
    }

    /// Counts the sampled uses. Where another thread is just counting, later.
    #[cold]
    fn count_samples(&self, hold: &mut Hold) {
        if let Some(mut reuse) = self.reuse.try_lock() {
            let table = self.table();
            reuse.used(std::mem::take(&mut hold.uses).into());
            for frame in hold.sampled.drain(..) {
                reuse.touch(frame, table.pages(frame));
            }
        }
    }

    /// Drops one use of every held frame.
    #[inline(always)]
    fn let_go(&self, hold: &mut Hold) {
        let mut drained = false;
        for frame in hold.held.drain(..) {
            drained |= self.words[frame as usize].release() == Released::Drained;
        }
        if drained {
            self.tell_withdrawers();
        }
    }

    /// A frame's last user has gone, for which a withdrawal waits.
    #[cold]
    fn tell_withdrawers(&self) {
        self.ledger.lock().line.wake_bystanders();
    }

    /// Whether the wanted frames, all of the largest size, would be more than `limit` pages.
    #[inline]
    fn may_exceed(&self, hold: &Hold, limit: u32) -> bool {
        // Relaxed: it changes before programs can want the frames that it grew for.
        let widest = self.widest_shift.load(Ordering::Relaxed) - FRAME_SHIFT;
        hold.wanted.len() << widest > limit as usize
    }

    fn table(&self) -> FrameTable {
        self.ledger.lock().table().clone()
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ledger = self.ledger.lock();
        f.debug_struct("Pool")
            .field("pinner", &self.pinner.name())
            .field("pinned_bytes", &ledger.pinned_bytes())
            .field("limit_pages", &ledger.limit())
            .field("queued", &ledger.line.len())
            .finish_non_exhaustive()
    }
}

/// Unpins everything that is not in use. What a lost [`Hold`] still holds stays pinned: a device may
/// be using it.
impl Drop for Pool {
    fn drop(&mut self) {
        if let Err(error) = self.unpin_all_idle() {
            tracing::error!(%error, "frames stay pinned");
        }
    }
}

/// Leaves the line if the future is dropped in it.
struct PlaceInLine<'a> {
    pool: &'a Pool,
    hold: &'a mut Hold,
}

impl Drop for PlaceInLine<'_> {
    fn drop(&mut self) {
        self.pool.forget(self.hold);
    }
}

/// Whole pages of 4 KiB in `bytes`.
fn pages(bytes: u64) -> u32 {
    u32::try_from(bytes >> FRAME_SHIFT).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
