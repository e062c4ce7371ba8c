//! The slow path: room is booked, victims go, what is missing is pinned.

use std::sync::atomic::{Ordering, fence};
use std::task::{Context, Poll, Waker};

use super::whole_guest::PART;
use super::{HoldError, Pool};
use crate::FRAME_SHIFT;
use crate::frame_table::{FrameTable, Runs};
use crate::hold::Hold;
use crate::ledger::{Departure, Ledger, Room};
use crate::pinner::{Run, Stopped};
use crate::word::{Eviction, Released, StateWord, Taken};

impl Pool {
    /// Some frames are missing, or the program stands in line and it may be its turn.
    #[cold]
    pub(super) fn poll_misses(
        &self,
        hold: &mut Hold,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), HoldError>> {
        match self.pin_missing(hold, cx.waker()) {
            Ok(true) => {
                self.forget(hold);
                let tally = &mut hold.tally;
                tally.hits = tally.gets.saturating_sub(tally.misses);
                self.sample_held(hold);
                Poll::Ready(Ok(()))
            }
            Ok(false) => {
                hold.tally.waits += 1;
                hold.is_waiting = true;
                // Wait holding nothing (see the module's head); what this frees may be what the
                // first in line waits for.
                self.let_go(hold);
                let ledger = self.ledger.lock();
                if ledger.line.is_behind(hold.ticket) {
                    ledger.line.wake_first();
                }
                Poll::Pending
            }
            Err(error) => Poll::Ready(self.give_up(hold, error)),
        }
    }

    /// The program cannot be held: it is refused, or runs unpinned where its device allows that.
    #[cold]
    pub(super) fn give_up(&self, hold: &mut Hold, error: HoldError) -> Result<(), HoldError> {
        self.let_go(hold);
        self.forget(hold);
        // What was booked or held for a moment may be what the first in line waits for.
        self.ledger.lock().line.wake_first();
        if self.pinner.is_needed() || hold.must {
            return Err(error);
        }
        hold.tally.unpinned = hold.tally.gets;
        if matches!(error, HoldError::Pin { .. } | HoldError::Unpin { .. }) {
            self.report(&error, "a program runs unpinned");
        }
        Ok(())
    }

    /// Logs what the pinner refused, ever less often: what a guest sends must not fill the log.
    fn report(&self, error: &HoldError, outcome: &str) {
        // Relaxed: a counter.
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures.is_power_of_two() {
            tracing::warn!(failures, %error, "{outcome}");
        }
    }

    /// Pins what is missing. `false`: not now; the waker is where it will be woken.
    fn pin_missing(&self, hold: &mut Hold, waker: &Waker) -> Result<bool, HoldError> {
        self.check_size(hold)?;
        loop {
            let Hold { missing, held, .. } = hold;
            missing.retain(|&frame| match self.words[frame as usize].take() {
                Taken::Hit | Taken::SampledHit => {
                    held.push(frame);
                    false
                }
                _ => true,
            });
            if missing.is_empty() {
                return Ok(true);
            }
            let Some(table) = self.book(hold, waker) else {
                return Ok(false);
            };
            self.unpin_booked_victims(hold, &table)?;
            self.pin_fresh(hold, &table)?;
            let Hold { missing, fresh, .. } = hold;
            missing.retain(|frame| fresh.binary_search(frame).is_err());
        }
    }

    /// Refuses a program that could never be held.
    pub(super) fn check_size(&self, hold: &mut Hold) -> Result<(), HoldError> {
        let (budget, most) = {
            let ledger = self.ledger.lock();
            (ledger.limit(), ledger.most_frames())
        };
        let share = hold.limit.unwrap_or(u32::MAX);
        let limit = budget.min(share);
        if !self.may_exceed(hold, limit) && hold.wanted.len() <= most as usize {
            return Ok(());
        }
        let (table, distinct) = (self.table(), hold.distinct());
        let need: u64 = distinct.iter().map(|frame| u64::from(table.pages(*frame))).sum();
        if need > u64::from(limit) {
            return Err(HoldError::TooLarge {
                need: need << FRAME_SHIFT,
                limit: u64::from(limit) << FRAME_SHIFT,
                which: if budget <= share { "the pin budget" } else { "the subchannel's share" },
            });
        }
        let need = distinct.len();
        match need <= most as usize {
            true => Ok(()),
            false => Err(HoldError::TooManyFrames { need, most, pinner: self.pinner.name() }),
        }
    }

    /// Under the lock: claims the absent ones of the missing frames into `fresh`, with room for all
    /// of them, and the frames that must go for it into `victims`. `None`: not now; the waker waits.
    ///
    /// Words turn from Absent to Pinning here only, so what is absent stays so under the lock; and
    /// owners wake bystanders under the lock after they let a word go, so a word seen busy here
    /// will be reported.
    fn book(&self, hold: &mut Hold, waker: &Waker) -> Option<FrameTable> {
        let mut ledger = self.ledger.lock();
        let Hold { missing, fresh, victims, excess, ticket, barred, .. } = hold;
        if missing.iter().any(|frame| self.words[*frame as usize].is_withheld()) {
            // A balloon may hold on to it for long: others in line must not wait for that.
            self.leave_line(&mut ledger, ticket);
            ledger.line.wait_outside(barred, waker);
            return None;
        }
        if ledger.line.is_behind(*ticket) {
            self.line_up(&mut ledger, ticket, waker);
            return None;
        }
        victims.clear();
        fresh.clear();
        fresh.extend(missing.iter().filter(|frame| self.words[**frame as usize].is_absent()));
        fresh.sort_unstable();
        fresh.dedup();
        if fresh.is_empty() {
            if missing.iter().any(|frame| self.words[*frame as usize].is_owned()) {
                ledger.line.stand_by(waker);
                return None;
            }
            // All have become ready meanwhile: nothing to pin, take them.
            return Some(ledger.table().clone());
        }
        if !ledger.make_room(fresh, &self.words, victims) {
            self.line_up(&mut ledger, ticket, waker);
            // Either the releaser sees that somebody waits, or this second look sees its release.
            if !ledger.make_room(fresh, &self.words, victims) {
                return None;
            }
        }
        self.take_off_accounts(&mut ledger, victims, Departure::Evicted);
        *excess = ledger.reserve_excess(victims, fresh);
        for &frame in fresh.iter() {
            let word = &self.words[frame as usize];
            let slot = ledger.enter(frame, word);
            let claimed = word.claim(slot, self.watched.has(frame));
            debug_assert!(claimed, "frame {frame} was absent under the lock but is not now");
        }
        Some(ledger.table().clone())
    }

    /// Takes or keeps a place in line.
    pub(super) fn line_up(&self, ledger: &mut Ledger, ticket: &mut Option<u64>, waker: &Waker) {
        *ticket = Some(ledger.line.queue_up(*ticket, waker));
        // SeqCst, and a fence before the caller looks again: pairs with `release`, which counts down
        // first and looks at `waiting` then.
        self.waiting.store(ledger.line.len(), Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Gives up a place in line, if there is one.
    pub(super) fn leave_line(&self, ledger: &mut Ledger, ticket: &mut Option<u64>) {
        if let Some(ticket) = ticket.take() {
            ledger.line.leave(ticket);
            self.waiting.store(ledger.line.len(), Ordering::SeqCst);
            ledger.line.wake_first();
        }
    }

    /// Takes claimed frames off the accounts, and sorts them for the pinner.
    fn take_off_accounts(&self, ledger: &mut Ledger, frames: &mut [u32], departure: Departure) {
        frames.sort_unstable();
        for frame in frames.iter() {
            ledger.leave(&self.words[*frame as usize], departure);
        }
    }

    /// Unpins victims that `book` has taken off the accounts already.
    fn unpin_booked_victims(&self, hold: &mut Hold, table: &FrameTable) -> Result<(), HoldError> {
        let Hold { fresh, victims, excess, tally, .. } = hold;
        if victims.is_empty() {
            return Ok(());
        }
        let (gone, result) = self.unpin(victims, table);
        for &victim in &victims[..gone] {
            self.words[victim as usize].vacate();
        }
        tally.evictions += gone as u32;
        let mut ledger = self.ledger.lock();
        if *excess != Room::default() {
            ledger.free(std::mem::take(excess));
            ledger.line.wake_first();
        }
        if result.is_err() {
            // Nothing new may come for what did not go: the booking is undone.
            for &frame in fresh.iter() {
                ledger.leave(&self.words[frame as usize], Departure::Released);
                self.words[frame as usize].fail();
            }
            self.put_back(&mut ledger, &victims[gone..]);
        }
        ledger.line.wake_bystanders();
        result
    }

    /// Enters frames again that are off the accounts but could not be unpinned.
    fn put_back(&self, ledger: &mut Ledger, frames: &[u32]) {
        for &frame in frames {
            let word = &self.words[frame as usize];
            ledger.enter_again(frame, word);
            word.restore();
        }
    }

    /// Pins what `book` has claimed, adjacent frames in one run, and holds it.
    fn pin_fresh(&self, hold: &mut Hold, table: &FrameTable) -> Result<(), HoldError> {
        if hold.fresh.is_empty() {
            return Ok(());
        }
        let runs = table.runs(&hold.fresh, self.pinner.joins_frames());
        debug_assert_eq!(frames_in(&runs), hold.fresh.len(), "a frame of no region is wanted");
        let stopped = self.pinner.pin(&runs).err();
        let done = stopped.as_ref().map_or(runs.len(), |stopped| stopped.done.min(runs.len()));
        let pinned = frames_in(&runs[..done]);
        hold.tally.pin_calls += done as u32;
        hold.tally.misses += pinned as u32;
        if let Some(self_check) = &self.self_check {
            self_check.remember(&hold.fresh[..pinned], table);
        }
        for index in 0..pinned {
            let frame = hold.fresh[index];
            self.words[frame as usize].ready();
            hold.held.push(frame);
        }
        let mut ledger = self.ledger.lock();
        for &frame in &hold.fresh[pinned..] {
            ledger.leave(&self.words[frame as usize], Departure::Released);
            self.words[frame as usize].fail();
        }
        ledger.line.wake_bystanders();
        drop(ledger);
        stopped.map_or(Ok(()), |stopped| {
            let Stopped { source, .. } = stopped;
            let (address, len) = place_of(&runs, done);
            Err(HoldError::Pin { pinner: self.pinner.name(), address, len, source })
        })
    }

    /// Drops one use of every held frame and unpins those that were in their last use.
    pub(super) fn release_and_unpin(&self, hold: &mut Hold) {
        let mut held = std::mem::take(&mut hold.held);
        let mut drained = false;
        held.retain(|frame| {
            let released = self.words[*frame as usize].release();
            drained |= released == Released::Drained;
            released == Released::Idle
        });
        if drained {
            self.tell_withdrawers();
        }
        if let Err(error) = self.unpin_idle(&mut hold.victims, held.iter().copied()) {
            // Still pinned and still counted: said, and tried again by whoever needs the room.
            self.report(&error, "frames stay pinned after their release");
        }
        held.clear();
        hold.held = held;
    }

    /// Unpins every frame that nobody uses; returns how many bytes that freed.
    ///
    /// # Errors
    ///
    /// The pinner could not unpin; what it kept stays counted.
    pub fn unpin_all_idle(&self) -> Result<u64, HoldError> {
        let before = self.pinned_bytes();
        let mut frames = self.ledger.lock().frames();
        // Sorted, so that parts are runs; in parts, so that others get at the lock in between.
        frames.sort_unstable();
        let mut claimed = Vec::new();
        for part in frames.chunks(PART as usize) {
            self.unpin_idle(&mut claimed, part.iter().copied())?;
        }
        Ok(before.saturating_sub(self.pinned_bytes()))
    }

    /// Unpins those of `frames` that nobody uses; `claimed` is for them to stand in meanwhile.
    pub(super) fn unpin_idle(
        &self,
        claimed: &mut Vec<u32>,
        frames: impl Iterator<Item = u32>,
    ) -> Result<(), HoldError> {
        claimed.clear();
        let idle = |frame: &u32| self.words[*frame as usize].try_evict(false) == Eviction::Claimed;
        claimed.extend(frames.filter(idle));
        self.unpin_claimed(claimed, StateWord::vacate)
    }

    /// Unpins claimed frames, takes them off the accounts and lets their words go as `let_go` says.
    /// With an error, those that could not be unpinned are as before, and no longer in `claimed`.
    pub(super) fn unpin_claimed(
        &self,
        claimed: &mut Vec<u32>,
        let_go: fn(&StateWord),
    ) -> Result<(), HoldError> {
        if claimed.is_empty() {
            return Ok(());
        }
        claimed.sort_unstable();
        let (gone, result) = self.unpin(claimed, &self.table());
        let word = |frame: &u32| &self.words[*frame as usize];
        let mut ledger = self.ledger.lock();
        self.take_off_accounts(&mut ledger, &mut claimed[..gone], Departure::Released);
        claimed[..gone].iter().map(word).for_each(let_go);
        claimed[gone..].iter().map(word).for_each(StateWord::restore);
        claimed.truncate(gone);
        // There is room, and what was claimed is decided.
        ledger.line.wake_first();
        ledger.line.wake_bystanders();
        result
    }

    /// Unpins `frames`, which are sorted and in Evicting. Returns how many are unpinned; with an
    /// error, those after them are not.
    fn unpin(&self, frames: &[u32], table: &FrameTable) -> (usize, Result<(), HoldError>) {
        let runs = table.runs(frames, self.pinner.joins_frames());
        debug_assert_eq!(frames_in(&runs), frames.len(), "a frame of no region is pinned");
        match self.pinner.unpin(&runs) {
            Ok(()) => (frames.len(), Ok(())),
            Err(Stopped { done, source }) => {
                let done = done.min(runs.len());
                let (address, len) = place_of(&runs, done);
                let pinner = self.pinner.name();
                let error = HoldError::Unpin { pinner, address, len, source };
                (frames_in(&runs[..done]), Err(error))
            }
        }
    }
}

fn frames_in(runs: &[Run<'_>]) -> usize {
    runs.iter().map(|run| run.frames as usize).sum()
}

/// Guest address and length of the run that a pinner stopped at, or behind which it failed.
fn place_of(runs: &Runs<'_>, at: usize) -> (u64, usize) {
    runs.get(at).or(runs.last()).map_or((0, 0), |run| (run.address, run.host.len()))
}
