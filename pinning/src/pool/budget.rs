//! A budget that changes while programs run.

use std::time::Duration;

use super::{BudgetError, Pool, pages};
use crate::FRAME_SHIFT;
use crate::hold::Hold;
use crate::patience::Patience;
use crate::word::StateWord;

impl Pool {
    /// Makes `bytes` the budget, rounded down to whole pages of 4 KiB. A larger one is in force at
    /// once; for a smaller one idle frames are unpinned, and if that is not enough, this waits in
    /// line for room as a program does. For a control thread.
    ///
    /// # Errors
    ///
    /// Too little for a frame or for a device in mode pinned, programs that keep their pages longer
    /// than `patience`, a pinner that fails. The budget is as it was then.
    pub fn set_budget(&self, bytes: u64, patience: Duration) -> Result<(), BudgetError> {
        // No lease begins or ends meanwhile, and no region comes or goes.
        let waiting = Patience::of(patience);
        let leases =
            self.leases.try_lock_for(waiting.left()).ok_or(BudgetError::Busy { patience })?;
        let table = self.table();
        let least = 1 << table.widest_shift();
        if bytes < least {
            return Err(BudgetError::TooSmall { budget: bytes, least });
        }
        if !leases.is_empty() && bytes < table.bytes() {
            return Err(BudgetError::WholeGuest { budget: bytes, guest: table.bytes() });
        }
        {
            let mut ledger = self.ledger.lock();
            if pages(bytes) >= ledger.limit() {
                ledger.set_limit(pages(bytes));
                ledger.line.wake_first();
                return Ok(());
            }
        }
        let mut hold = Hold::default();
        let result = self.shed_to(bytes, &waiting, &mut hold);
        self.forget(&mut hold);
        result
    }

    fn shed_to(&self, bytes: u64, waiting: &Patience, hold: &mut Hold) -> Result<(), BudgetError> {
        let limit = pages(bytes);
        loop {
            {
                let mut ledger = self.ledger.lock();
                let Hold { victims, ticket, .. } = &mut *hold;
                victims.clear();
                // Nobody but the first in line can book room, so what goes stays away.
                self.line_up(&mut ledger, ticket, waiting.waker());
                if !ledger.line.is_behind(*ticket) {
                    if ledger.pinned_bytes() <= u64::from(limit) << FRAME_SHIFT {
                        ledger.set_limit(limit);
                        return Ok(());
                    }
                    ledger.shed(limit, &self.words, victims);
                }
            }
            if hold.victims.is_empty() {
                if !waiting.wait() {
                    let (pinned, patience) = (self.pinned_bytes(), waiting.duration());
                    return Err(BudgetError::StillInUse { budget: bytes, pinned, patience });
                }
                continue;
            }
            self.unpin_claimed(&mut hold.victims, StateWord::vacate)?;
        }
    }
}
