//! Guest memory that comes and goes while programs run.

use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use vfio_ccw_pinning::{GuestMap, MapError, PoolError, WithdrawError};
use vm_memory::GuestMemoryBackend;

use crate::channel_subsystem::WindowError;
use crate::shadow;

use super::Service;
use super::view::{Layout, Users};

/// Why guest memory is not as it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// A layout that cannot be served. The old one is in force.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Memory beyond what devices can address. The old layout is in force.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// The pool cannot take it, in mode pinned for want of budget. The old layout is in force.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// What an earlier call replaced is still in use: nothing has changed.
    #[error(
        "memory that was replaced before is still in use after {patience:?}: call settle_memory, then try again"
    )]
    Unsettled {
        /// How long was waited.
        patience: Duration,
    },
    /// The new layout is in force, but programs that were started before still use the old memory,
    /// which the service keeps mapped.
    #[error(
        "programs that run still use the old memory after {patience:?}: do not unmap or reuse it; call settle_memory to wait on"
    )]
    StillInUse {
        /// How long was waited.
        patience: Duration,
    },
    /// The new layout is in force, but old memory could not be unpinned.
    #[error("the old memory is still pinned, do not unmap or reuse it: {0}")]
    Pinned(#[source] WithdrawError),
}

/// Who uses guest memory as it is laid out now, and as it was before.
#[derive(Debug)]
pub(super) struct Memory {
    users: Users,
    /// Of earlier layouts.
    leaving: Vec<Users>,
}

impl Memory {
    pub(super) fn new(users: Users) -> Self {
        Memory { users, leaving: Vec::new() }
    }
}

impl Service {
    /// Replaces the layout of guest memory: regions that are in both stay as they are, new ones are
    /// there for programs started from now on, and for those that are gone this waits until no
    /// program touches them any more and then unpins them. Programs go on meanwhile; ones started
    /// from now on that designate memory that is gone end in a program check, as the architecture
    /// has it.
    ///
    /// A VMM calls this from its control thread after `insert_region` or `remove_region`, and unmaps
    /// or reuses old memory after `Ok` only.
    ///
    /// ```
    /// # use std::{sync::Arc, time::Duration};
    /// # use vm_memory::{GuestAddress, GuestMemoryMmap};
    /// # use vfio_ccw::Service;
    /// let memory = GuestMemoryMmap::<()>::from_ranges(&[
    ///     (GuestAddress(0), 1 << 20),
    ///     (GuestAddress(16 << 20), 1 << 20),
    /// ])?;
    /// let service = Service::builder().build(Arc::new(memory.clone()))?;
    /// let (rest, unplugged) = memory.remove_region(GuestAddress(16 << 20), 1 << 20)?;
    /// service.replace_memory(Arc::new(rest), Duration::from_secs(5))?;
    /// drop(unplugged);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`MemoryError`]: each says which layout is in force.
    pub fn replace_memory<M>(&self, memory: Arc<M>, patience: Duration) -> Result<(), MemoryError>
    where
        M: GuestMemoryBackend + Send + Sync + 'static,
    {
        let _span = tracing::info_span!("replace_memory", ?patience).entered();
        let unsettled = MemoryError::Unsettled { patience };
        let mut now = self.memory.try_lock_for(patience).ok_or(unsettled)?;
        // Frame numbers of what has left are given out again, so it must be gone first.
        if let Err(error) = self.settle(&mut now, patience) {
            return Err(match error {
                MemoryError::StillInUse { patience } => MemoryError::Unsettled { patience },
                other => other,
            });
        }
        let map = Arc::new(self.map.read().replaced_by(memory)?);
        check_reach(&map)?;
        self.pool.extend(&map)?;
        let (layout, users) = Layout::new(map.clone());
        for shard in &self.shards {
            // A shard that has ended uses nothing.
            shard.show(layout.clone());
        }
        drop(layout);
        *self.map.write() = map;
        let before = std::mem::replace(&mut now.users, users);
        now.leaving.push(before);
        self.settle(&mut now, patience)
    }

    /// Waits on for what [`Service::replace_memory`] did not live to see.
    ///
    /// # Errors
    ///
    /// [`MemoryError::StillInUse`] or [`MemoryError::Pinned`], as there.
    pub fn settle_memory(&self, patience: Duration) -> Result<(), MemoryError> {
        let _span = tracing::info_span!("settle_memory", ?patience).entered();
        let still_in_use = MemoryError::StillInUse { patience };
        self.settle(&mut *self.memory.try_lock_for(patience).ok_or(still_in_use)?, patience)
    }

    fn settle(&self, memory: &mut Memory, patience: Duration) -> Result<(), MemoryError> {
        let start = Instant::now();
        let left = || patience.saturating_sub(start.elapsed());
        while let Some(Users(all_gone)) = memory.leaving.last() {
            match wait(all_gone, left()) {
                RecvTimeoutError::Disconnected => drop(memory.leaving.pop()),
                RecvTimeoutError::Timeout => return Err(MemoryError::StillInUse { patience }),
            }
        }
        self.pool.retire(&self.memory(), left()).map_err(MemoryError::Pinned)
    }
}

/// Waits for the end of the senders, who never send.
fn wait(all_gone: &mpsc::Receiver<()>, patience: Duration) -> RecvTimeoutError {
    match all_gone.recv_timeout(patience) {
        Ok(()) => RecvTimeoutError::Timeout,
        Err(error) => error,
    }
}

/// Whether devices can address all of `map`.
pub(super) fn check_reach(map: &GuestMap) -> Result<(), WindowError> {
    for region in map.regions() {
        let (iova, len) = (region.start(), region.len());
        let end = iova.checked_add(len).and_then(|end| end.checked_add(shadow::GUEST_IOVA));
        end.ok_or(WindowError::Wraps { iova, len })?;
    }
    Ok(())
}
