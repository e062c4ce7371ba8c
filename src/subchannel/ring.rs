//! A subchannel with a completion ring: programs, and HALT and CLEAR, with `user_data`.

use std::sync::Arc;

use crate::architecture::{Function, Orb, OrbError};
use crate::service::delivery::Delivery;

use super::{Origin, Request, Subchannel, Urgent};

/// Why a submission is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The ORB is one that START SUBCHANNEL answers with an operand exception.
    #[error(transparent)]
    Operand(#[from] OrbError),
    /// The submission ring is full: reap completions, then submit again.
    #[error(
        "the submission ring is full ({entries} entries): reap completions first, or build the service with more"
    )]
    Full {
        /// Its capacity.
        entries: usize,
    },
    /// The subchannel is detached, or its service has ended.
    #[error("the subchannel is detached")]
    Detached,
    /// Its results do not go to a ring.
    #[error(
        "the subchannel does not deliver to a ring: start it with ssch or start, or attach it with a completion ring"
    )]
    NotARing,
    /// Its results do not go to futures.
    #[error(
        "the subchannel does not deliver to futures: start it with ssch or submit, or attach it with Delivery::Future"
    )]
    NotAFuture,
}

impl Subchannel {
    /// Submits a program to the ring. Never blocks; at most one system call, to wake a sleeping shard.
    /// Several may be under way; they run in order, and each gives one final
    /// [`Completion`](crate::Completion) with this `user_data`.
    ///
    /// # Errors
    ///
    /// See [`SubmitError`]; nothing was submitted then.
    pub fn submit(&self, orb: &Orb, user_data: u64) -> Result<(), SubmitError> {
        orb.check()?;
        self.check_ring()?;
        let shared = &self.shared;
        let origin = Origin::Ring { user_data, epoch: shared.epoch() };
        match shared.push(Request { orb: *orb, origin, submitted: shared.now() }) {
            true => Ok(()),
            false => Err(SubmitError::Full { entries: shared.ring_entries() }),
        }
    }

    /// HALT SUBCHANNEL for a ring. It overtakes the programs that were submitted before: the one that
    /// runs is ended at its next command, those that wait do not begin. Each of them completes, with
    /// the halt function beside the start function in its SCSW, and then the halt itself, with this
    /// `user_data`.
    ///
    /// # Errors
    ///
    /// [`SubmitError::NotARing`] or [`SubmitError::Detached`].
    pub fn submit_halt(&self, user_data: u64) -> Result<(), SubmitError> {
        self.submit_urgent(Function::Halt, user_data)
    }

    /// CLEAR SUBCHANNEL for a ring, as [`Subchannel::submit_halt`]. When it completes, no transfer for
    /// what was submitted before is under way.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn submit_clear(&self, user_data: u64) -> Result<(), SubmitError> {
        self.submit_urgent(Function::Clear, user_data)
    }

    fn submit_urgent(&self, function: Function, user_data: u64) -> Result<(), SubmitError> {
        self.check_ring()?;
        let shared = Arc::clone(&self.shared);
        let (door, epoch) = (Arc::clone(shared.door()), shared.begin_epoch());
        door.push(Urgent { shared, function, user_data, epoch });
        Ok(())
    }

    fn check_ring(&self) -> Result<(), SubmitError> {
        if !matches!(self.shared.delivery(), Delivery::Ring(_)) {
            return Err(SubmitError::NotARing);
        }
        if self.shared.is_closed() {
            return Err(SubmitError::Detached);
        }
        Ok(())
    }
}
