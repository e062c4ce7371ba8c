//! Bringing all subchannels to rest, and letting them go on.
//!
//! A shard that is *held* begins no program. Each of its tasks comes to rest between two programs, while
//! its program is suspended, or gives up its place in line for pages, and is counted; with the last one
//! the shard is quiet.

use std::cell::{Cell, RefCell};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::Service;
use super::runner::Runner;
use super::shard::ShardLink;

/// Why a service is not at rest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuiesceError {
    /// Programs have not ended. None begins until [`Service::resume`].
    #[error(
        "programs run on {subchannels} subchannels after {patience:?}: call quiesce again to wait on, clear them, or resume"
    )]
    StillRunning {
        /// Subchannels with such programs.
        subchannels: usize,
        /// How long was waited.
        patience: Duration,
    },
}

/// How far a service is with coming to rest.
#[derive(Debug, Default)]
pub(super) enum Rest {
    /// Programs begin and end.
    #[default]
    None,
    /// No program begins; shards that have not come to rest hold the other end.
    Coming(mpsc::Receiver<()>),
    /// Nothing runs.
    Quiet,
}

impl Service {
    /// Brings all subchannels to rest: no program begins any more, and those that run come to an end, for
    /// which this waits at most `patience`. What is started meanwhile waits; a program that has
    /// suspended itself stays so, also when it is resumed. HALT and CLEAR are performed.
    ///
    /// After `Ok`, no shard or device touches guest memory until [`Service::resume`]. Status that is
    /// pending stays, and can be fetched.
    ///
    /// # Errors
    ///
    /// See [`QuiesceError`].
    pub fn quiesce(&self, patience: Duration) -> Result<(), QuiesceError> {
        let _span = tracing::info_span!("quiesce", ?patience).entered();
        let deadline = Instant::now().checked_add(patience);
        let mut rest = self.rest.lock();
        if matches!(*rest, Rest::None) {
            let (coming, quiet) = mpsc::channel();
            self.shards.iter().for_each(|shard| shard.hold(coming.clone()));
            *rest = Rest::Coming(quiet);
        }
        let Rest::Coming(quiet) = &*rest else { return Ok(()) };
        // Nobody sends anything: a shard drops its end when it is quiet.
        let waited = match deadline {
            Some(deadline) => {
                quiet.recv_timeout(deadline.saturating_duration_since(Instant::now()))
            }
            None => quiet.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
        };
        if waited == Err(mpsc::RecvTimeoutError::Timeout) {
            let subchannels = self.shards.iter().map(ShardLink::restless).sum();
            return Err(QuiesceError::StillRunning { subchannels, patience });
        }
        *rest = Rest::Quiet;
        Ok(())
    }

    /// Lets a service that was brought to rest go on; else nothing happens.
    pub fn resume(&self) {
        let mut rest = self.rest.lock();
        if !matches!(*rest, Rest::None) {
            self.shards.iter().for_each(ShardLink::let_go);
            *rest = Rest::None;
        }
    }

    /// Whether nothing runs, because of [`Service::quiesce`].
    pub fn is_quiet(&self) -> bool {
        matches!(*self.rest.lock(), Rest::Quiet)
    }
}

/// How far a shard is with coming to rest.
#[derive(Debug, Default)]
pub(super) struct Hold {
    is_on: Cell<bool>,
    /// Held until the shard is quiet.
    coming: RefCell<Option<mpsc::Sender<()>>>,
    /// Subchannels that have not come to rest.
    restless: Cell<usize>,
}

impl Hold {
    /// Whether no program may begin.
    #[inline]
    pub(super) fn is_on(&self) -> bool {
        self.is_on.get()
    }

    /// From now on none begins; `restless` subchannels have to come to rest.
    pub(super) fn begin(&self, restless: usize, coming: mpsc::Sender<()>) {
        self.is_on.set(true);
        self.restless.set(restless);
        *self.coming.borrow_mut() = (restless > 0).then_some(coming);
    }

    /// Programs may begin again.
    pub(super) fn end(&self) {
        self.is_on.set(false);
        self.restless.set(0);
        *self.coming.borrow_mut() = None;
    }

    /// The subchannel that `runner` runs is at rest, or over.
    pub(super) fn rests(&self, runner: &Runner) {
        if self.is_on() && runner.comes_to_rest() {
            self.restless.set(self.restless.get() - 1);
            if self.restless.get() == 0 {
                *self.coming.borrow_mut() = None;
            }
        }
    }

    /// Subchannels that have not come to rest.
    pub(super) fn restless(&self) -> usize {
        self.restless.get()
    }
}
