//! Another pinning mode for a device that is running.

use std::cell::RefCell;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use vfio_ccw_pinning::{Mode, PoolError, WholeGuest};

use crate::subchannel::Subchannel;

use super::Service;

/// Why a device's mode is not, or not yet, another one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModeError {
    /// The whole guest cannot be pinned. The device goes on as before.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The program that runs has not ended. The switch is made as soon as it has.
    #[error(
        "the device's program has not ended after {patience:?}: mode {mode} follows when it has"
    )]
    StillRunning {
        /// The mode that was asked for.
        mode: Mode,
        /// How long was waited.
        patience: Duration,
    },
    /// The device is detached.
    #[error("the device is detached: it has no pinning mode")]
    Detached,
}

/// A switch on its way to a task.
#[derive(Debug)]
pub(super) struct Switch {
    pub(super) pinning: Pinning,
    /// Takes back what the device had, so that unpinning a guest is nobody's pause on the shard.
    pub(super) done: mpsc::Sender<Pinning>,
}

/// When pages are pinned for a device, and in mode pinned what keeps them so.
#[derive(Debug)]
pub(super) struct Pinning {
    pub(super) mode: Mode,
    pub(super) whole_guest: Option<WholeGuest>,
}

/// Where a shard leaves what takes long to give back: to unpin a large guest takes a while, and a
/// shard has other things to do.
#[derive(Debug, Default)]
pub(super) struct Aside(Mutex<Vec<JoinHandle<()>>>);

impl Aside {
    /// Gives `pinning` back on a thread of its own.
    pub(super) fn put(&self, pinning: Pinning) {
        if pinning.whole_guest.is_none() {
            return;
        }
        let thread = thread::Builder::new().name("ccw-unpin".to_owned());
        // Where there is no thread to be had, it is given back here.
        if let Ok(thread) = thread.spawn(move || drop(pinning)) {
            let mut threads = self.0.lock();
            threads.retain(|thread| !thread.is_finished());
            threads.push(thread);
        }
    }

    /// Waits until everything is given back.
    pub(super) fn finish(&self) {
        for thread in self.0.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that unpins the guest has panicked");
            }
        }
    }
}

/// Where a task finds a switch, between two programs.
#[derive(Debug, Default)]
pub(super) struct SwitchBox(RefCell<Option<Box<Switch>>>);

impl SwitchBox {
    pub(super) fn put(&self, switch: Switch, aside: &Aside) {
        if let Some(earlier) = self.0.borrow_mut().replace(Box::new(switch)) {
            // As if the device had had it for no program at all.
            let Switch { pinning, done } = *earlier;
            if let Err(mpsc::SendError(pinning)) = done.send(pinning) {
                aside.put(pinning);
            }
        }
    }

    pub(super) fn take(&self) -> Option<Box<Switch>> {
        self.0.borrow_mut().take()
    }
}

impl Service {
    /// Changes when pages are pinned for a device, while it runs: for mode pinned, the whole guest
    /// is pinned first; then the program that runs ends in the old mode, and the next one starts in
    /// the new. What an old mode pinned is unpinned if no other device needs it: with the last
    /// device in mode pinned the whole guest, and what is cached when all are on demand.
    ///
    /// Blocks the calling thread, never a shard: for a control thread. `patience` is for the program
    /// that runs; to pin the whole guest takes as long as it takes. Two switches of one device at a
    /// time are made in either order.
    ///
    /// # Errors
    ///
    /// See [`ModeError`].
    pub fn set_mode(
        &self,
        subchannel: &Subchannel,
        mode: Mode,
        patience: Duration,
    ) -> Result<(), ModeError> {
        let _span = tracing::info_span!("set_mode", subchannel = %subchannel.id(), %mode).entered();
        let shared = subchannel.shared();
        if shared.is_leaving() {
            return Err(ModeError::Detached);
        }
        let pinning = self.pinning(mode)?;
        let (done, ended) = mpsc::channel();
        self.shard_of(shared).switch(shared.clone(), Switch { pinning, done });
        match ended.recv_timeout(patience) {
            // Unpins what nobody needs, here and not on the shard.
            Ok(before) => drop(before),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                return Err(ModeError::StillRunning { mode, patience });
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(ModeError::Detached),
        }
        let all_on_demand = self.table.all().all(|shared| shared.mode() == Mode::OnDemand);
        if all_on_demand && let Err(error) = self.pool.unpin_all_idle() {
            tracing::error!(%error, "frames stay pinned after mode cached has ended");
        }
        Ok(())
    }

    /// What a device needs for `mode`.
    pub(super) fn pinning(&self, mode: Mode) -> Result<Pinning, PoolError> {
        // The first device decides: it gets a lease of its own now, or wants none.
        let from_the_start = self.whole_guest.lock().take();
        let whole_guest = match mode {
            Mode::Pinned => Some(self.pool.lease_whole_guest()?),
            Mode::OnDemand | Mode::Cached => None,
        };
        drop(from_the_start);
        Ok(Pinning { mode, whole_guest })
    }
}
