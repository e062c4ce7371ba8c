//! Guest memory that comes and goes while programs run.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::{Pool, PoolError, WithdrawError};
use crate::frame_table::FrameTable;
use crate::patience::Patience;
use crate::{GuestMap, Region};

impl Pool {
    /// Makes the regions of a new map known, before programs use it. Regions that are no longer in it
    /// stay until [`Pool::retire`]. In mode pinned, new regions are pinned now; that may block, as
    /// [`Pool::lease_whole_guest`] does.
    ///
    /// # Errors
    ///
    /// More frames than the pool was made for, a map that does not follow the one before; in mode
    /// pinned, those of a lease. Nothing has changed then, unless what was pinned already cannot be
    /// unpinned: then the new regions stay known, as if they were to be retired.
    pub fn extend(&self, map: &Arc<GuestMap>) -> Result<(), PoolError> {
        let mut leases = self.leases.lock();
        let most = self.words.len() as u32;
        if map.frames() > most {
            return Err(PoolError::TooManyFrames { frames: map.frames(), most });
        }
        let before = self.table();
        if before.contradicts(map) {
            return Err(PoolError::Unsettled);
        }
        let table = before.with(map);
        // Relaxed: see `may_exceed`.
        self.widest_shift.store(table.widest_shift(), Ordering::Relaxed);
        self.ledger.lock().set_table(table.clone());
        self.reuse.lock().grow(map.frames());
        if !leases.is_empty() {
            let is_new = |frames: &Range<u32>| {
                before.regions().iter().all(|known| known.frame_numbers() != *frames)
            };
            let new: Vec<Range<u32>> =
                table.regions().iter().map(Region::frame_numbers).filter(is_new).collect();
            if let Err(error) = self.hold_for_good(&mut leases, &table, new.clone()) {
                // Some may have been pinned before it failed. If they cannot be unpinned, their
                // regions stay known, as those of an old map do.
                self.unpin_idle(&mut Vec::new(), new.into_iter().flatten())
                    .map_err(PoolError::Hold)?;
                self.ledger.lock().set_table(before);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Unpins and forgets the regions that are not in `map`, when no program can reach them any
    /// more. Their frame numbers are free then.
    ///
    /// # Errors
    ///
    /// Programs still hold frames of theirs after `patience`, or somebody has withdrawn some of them;
    /// or the pinner fails. The regions stay known then, and what is pinned of them stays counted: try
    /// again.
    pub fn retire(&self, map: &Arc<GuestMap>, patience: Duration) -> Result<(), WithdrawError> {
        let waiting = Patience::of(patience);
        let busy = WithdrawError::Busy { patience };
        let mut leases = self.leases.try_lock_for(waiting.left()).ok_or(busy)?;
        let table = self.table();
        for region in table.without(map) {
            self.hold_no_more(&mut leases, &region.frame_numbers());
            self.remove_frames(region.frame_numbers().collect(), &waiting)?;
        }
        let now = FrameTable::of(map);
        // Relaxed: see `may_exceed`.
        self.widest_shift.store(now.widest_shift(), Ordering::Relaxed);
        self.ledger.lock().set_table(now);
        // Who is just pinning or unpinning other frames keeps the old table, and with it the old
        // mapping, for that one call.
        while table.is_shared() {
            thread::yield_now();
        }
        Ok(())
    }
}
