//! Detaching, at once or when what was started is over.

use std::sync::Arc;
use std::time::Duration;

use crate::subchannel::{Reports, Shared, Subchannel, Table};

use super::Service;

/// Why a subchannel was not drained.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DrainError {
    /// Programs were not over in time. It is detached now as by [`Service::detach`].
    #[error(
        "programs were not over after {patience:?}: those that waited were refused with deferred condition code 3, the one that runs is left to the shard"
    )]
    NotOver {
        /// How long was waited.
        patience: Duration,
    },
}

impl Service {
    /// Detaches a subchannel: the program that runs is waited for by the shard, those that wait
    /// complete with deferred condition code 3, later starts get condition code 3. The guest is told
    /// with a channel report. Its number is free when its last program has ended.
    pub fn detach(&self, subchannel: Subchannel) {
        take_away(subchannel.shared(), &self.table, &self.reports);
    }

    /// Detaches a subchannel when all that was started is over, for which this waits at most
    /// `patience`: from now on starts get condition code 3, but HALT and CLEAR do too. Then the guest is
    /// told with a channel report.
    ///
    /// A program that has suspended itself cannot be resumed any more, and is over only at the end of
    /// the patience.
    ///
    /// # Errors
    ///
    /// [`DrainError::NotOver`].
    pub fn drain(&self, subchannel: Subchannel, patience: Duration) -> Result<(), DrainError> {
        let _span = tracing::info_span!("drain", subchannel = %subchannel.id()).entered();
        let shared = subchannel.shared().clone();
        shared.drain();
        let is_over = self.table.wait_until_over(&shared, patience);
        self.detach(subchannel);
        if is_over { Ok(()) } else { Err(DrainError::NotOver { patience }) }
    }
}

/// Ends the task of a subchannel and takes that out of the table, of which the guest is told, once.
pub(super) fn take_away(shared: &Arc<Shared>, table: &Table, reports: &Reports) {
    shared.leave();
    if table.remove(shared) {
        reports.report_subchannel(shared.cell().id());
    }
}
