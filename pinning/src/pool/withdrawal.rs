//! Memory that goes away: drained of its users, unpinned, and kept from being pinned.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Pool, WithdrawError};
use crate::patience::Patience;
use crate::word::{StateWord, Withdrawal};

/// Frames that nobody can pin while this lives: the VMM may discard their pages. Programs that want
/// them wait until it is dropped.
#[derive(Debug)]
#[must_use = "the frames can be pinned again as soon as this is dropped"]
pub struct Withdrawn<'a> {
    pool: &'a Pool,
    frames: Vec<u32>,
}

impl Pool {
    /// Withdraws the frames that the guest addresses from `start` on for `len` bytes touch: waits
    /// until no program uses them, unpins them, and keeps them from being pinned until the result is
    /// dropped. For what a balloon or a virtio-mem device discards; for a control thread.
    ///
    /// Programs that run unpinned are not waited for, since they hold nothing: they reach whatever is
    /// mapped there.
    ///
    /// # Errors
    ///
    /// Not all guest memory, a device in mode pinned, programs that use it longer than `patience`, a
    /// pinner that fails. Nothing is withdrawn then.
    pub fn withdraw(
        &self,
        start: u64,
        len: u64,
        patience: Duration,
    ) -> Result<Withdrawn<'_>, WithdrawError> {
        let not_memory = WithdrawError::NotMemory { start, len };
        let Some(last) = len.checked_sub(1).and_then(|more| start.checked_add(more)) else {
            return Err(not_memory);
        };
        let waiting = Patience::of(patience);
        let leases =
            self.leases.try_lock_for(waiting.left()).ok_or(WithdrawError::Busy { patience })?;
        if !leases.is_empty() {
            return Err(WithdrawError::WholeGuest);
        }
        let (frames, is_memory) = self.table().frames_touching(start, last);
        if !is_memory {
            return Err(not_memory);
        }
        // Before the leases are let go: no lease begins while memory is withdrawn.
        let withdrawn = Withdrawn::none_of(self);
        drop(leases);
        self.withdraw_frames(withdrawn, frames, &waiting)
    }

    /// Withdraws `frames`, which `withdrawn` collects and gives back if it fails.
    fn withdraw_frames<'a>(
        &'a self,
        mut withdrawn: Withdrawn<'a>,
        mut frames: Vec<u32>,
        waiting: &Patience,
    ) -> Result<Withdrawn<'a>, WithdrawError> {
        let mut claimed = Vec::new();
        let result = loop {
            {
                let mut ledger = self.ledger.lock();
                frames.retain(|&frame| match self.words[frame as usize].withdraw() {
                    Withdrawal::Withdrawn => {
                        withdrawn.frames.push(frame);
                        false
                    }
                    Withdrawal::Claimed => {
                        claimed.push(frame);
                        false
                    }
                    Withdrawal::Draining | Withdrawal::Busy => true,
                });
                if !frames.is_empty() {
                    // Under the same lock as the look: who lets one go after it will wake us.
                    ledger.line.stand_by(waiting.waker());
                }
            }
            // Relaxed: a counter.
            self.invalidations.fetch_add(claimed.len() as u64, Ordering::Relaxed);
            let result = self.unpin_claimed(&mut claimed, StateWord::withhold);
            withdrawn.frames.append(&mut claimed);
            if let Err(error) = result {
                break Err(WithdrawError::Hold(error));
            }
            if frames.is_empty() {
                // Who is first in line may want one of them, and must make way for the others.
                self.ledger.lock().line.wake_first();
                return Ok(withdrawn);
            }
            if !waiting.wait() {
                let (frames, patience) = (frames.len(), waiting.duration());
                break Err(WithdrawError::StillInUse { frames, patience });
            }
        };
        for frame in frames {
            self.words[frame as usize].stop_draining();
        }
        result
    }

    /// Withdraws frames for good, which nobody has a way to any more; their numbers become free.
    pub(super) fn remove_frames(
        &self,
        frames: Vec<u32>,
        waiting: &Patience,
    ) -> Result<(), WithdrawError> {
        let withdrawn = self.withdraw_frames(Withdrawn::none_of(self), frames, waiting)?;
        let mut reuse = self.reuse.lock();
        withdrawn.frames.iter().for_each(|frame| reuse.forget(*frame));
        Ok(())
    }
}

impl<'a> Withdrawn<'a> {
    /// A withdrawal that is in force and has no frames yet.
    fn none_of(pool: &'a Pool) -> Self {
        pool.ledger.lock().withdrawals += 1;
        Withdrawn { pool, frames: Vec::new() }
    }

    /// Frames that are withdrawn.
    pub fn frames(&self) -> usize {
        self.frames.len()
    }
}

impl Drop for Withdrawn<'_> {
    fn drop(&mut self) {
        let mut ledger = self.pool.ledger.lock();
        for frame in &self.frames {
            self.pool.words[*frame as usize].admit();
        }
        ledger.withdrawals -= 1;
        ledger.line.wake_first();
        ledger.line.wake_bystanders();
        ledger.line.call_in();
    }
}
