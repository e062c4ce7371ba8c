//! Mode pinned: every frame of the guest is held for as long as a device wants it so.

use std::ops::Range;
use std::sync::Arc;

use super::{Pool, PoolError};
use crate::frame_table::FrameTable;
use crate::hold::{Hold, Tally};
use crate::{FRAME_SHIFT, Region};

/// Every frame of the guest is pinned while this lives: a program then has nothing to hold.
///
/// Several leases share the same pins. The last one to go gives the frames back and unpins those that
/// nobody uses.
#[derive(Debug)]
pub struct WholeGuest {
    pool: Arc<Pool>,
}

/// How many leases there are, and the frames that are held for them.
#[derive(Debug, Default)]
pub(super) struct Leases {
    count: u32,
    held: Vec<Range<u32>>,
}

impl Leases {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Frames that are held or let go of at one time: each part takes the pool's lock for itself, so
/// that the misses of other devices come in between. Holding a part while waiting for the next is
/// safe here only: the whole fits the budget, so nobody's room is missing.
pub(super) const PART: u32 = 1 << 14;

fn parts(frames: &Range<u32>) -> impl Iterator<Item = Range<u32>> {
    let end = frames.end;
    frames
        .clone()
        .step_by(PART as usize)
        .map(move |start| start..end.min(start.saturating_add(PART)))
}

impl Pool {
    /// Pins the whole guest, if no other lease has done so. Blocks for as long as that takes, and
    /// while programs of other devices must make room: for a control thread. Other changes (budget,
    /// layout, withdrawals) wait for it, as long as they have patience.
    ///
    /// # Errors
    ///
    /// The guest exceeds the budget or what the pinner can have, memory is withdrawn, or the pinner
    /// fails; nothing more is pinned then.
    pub fn lease_whole_guest(self: &Arc<Self>) -> Result<WholeGuest, PoolError> {
        let mut leases = self.leases.lock();
        if leases.is_empty() {
            let table = self.table();
            let regions = table.regions().iter().map(Region::frame_numbers).collect();
            self.hold_for_good(&mut leases, &table, regions)?;
        }
        leases.count += 1;
        Ok(WholeGuest { pool: self.clone() })
    }

    /// Holds the frames of `regions` for the leases, if the guest of `table` may be pinned as a whole.
    pub(super) fn hold_for_good(
        &self,
        leases: &mut Leases,
        table: &FrameTable,
        regions: Vec<Range<u32>>,
    ) -> Result<(), PoolError> {
        {
            let ledger = self.ledger.lock();
            let (guest, budget) = (table.bytes(), u64::from(ledger.limit()) << FRAME_SHIFT);
            if guest > budget {
                return Err(PoolError::GuestExceedsBudget { guest, budget });
            }
            let (all, most) = (table.frames().count() as u32, ledger.most_frames());
            if all > most {
                let pinner = self.pinner.name();
                return Err(PoolError::GuestExceedsPinner { frames: all, most, pinner });
            }
            if ledger.withdrawals > 0 {
                return Err(PoolError::Withdrawn);
            }
        }
        let mut held = Vec::new();
        for frames in regions.iter().flat_map(parts) {
            let mut hold = Hold::default();
            hold.must = true;
            hold.want_run(frames.start, frames.len() as u32);
            let result = self.hold_blocking(&mut hold);
            // Held for good: the list goes, the in-use counts stay.
            held.append(&mut hold.held);
            if let Err(error) = result {
                hold.held = held;
                self.let_go(&mut hold);
                self.ledger.lock().line.wake_first();
                return Err(error.into());
            }
        }
        leases.held.extend(regions);
        Ok(())
    }

    /// Gives back the frames of a region, if they are held for the leases.
    pub(super) fn hold_no_more(&self, leases: &mut Leases, frames: &Range<u32>) {
        if let Some(index) = leases.held.iter().position(|held| held == frames) {
            let frames = leases.held.swap_remove(index);
            let mut hold = Hold::default();
            hold.held.extend(frames);
            self.let_go(&mut hold);
        }
    }
}

impl WholeGuest {
    /// Says of a program's pages that they are held, which they are as long as this lives.
    pub fn cover(&self, hold: &mut Hold) {
        let gets = hold.wanted.len() as u32;
        hold.tally = Tally { gets, hits: gets, ..Tally::default() };
        if let Some(self_check) = &self.pool.self_check {
            self_check.check(&hold.wanted, &self.pool.table());
        }
    }
}

impl Drop for WholeGuest {
    fn drop(&mut self) {
        let mut leases = self.pool.leases.lock();
        leases.count -= 1;
        if !leases.is_empty() {
            return;
        }
        while let Some(frames) = leases.held.last().cloned() {
            self.pool.hold_no_more(&mut leases, &frames);
        }
        if let Err(error) = self.pool.unpin_all_idle() {
            tracing::error!(%error, "frames stay pinned after mode pinned has ended");
        }
    }
}
