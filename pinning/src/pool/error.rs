//! What can be wrong with a pool and with what is asked of it.

use std::io;
use std::time::Duration;

/// Why a pool cannot be made, or not pin the whole guest, or not know more of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// Less than one frame.
    #[error("a pin budget of {budget} bytes holds no frame: give at least {least} bytes")]
    BudgetTooSmall {
        /// Bytes asked for.
        budget: u64,
        /// Bytes of the largest frame of the guest.
        least: u64,
    },
    /// The pinner has no place left.
    #[error(
        "pinner {pinner} has no place for a mapping left: unmap what others have mapped, or raise its limit"
    )]
    NoPlace {
        /// Name of the pinner.
        pinner: &'static str,
    },
    /// No memory for the table of state words.
    #[error("no memory for the frame table of {frames} frames (8 bytes each)")]
    TableTooLarge {
        /// Frames of the guest.
        frames: u32,
    },
    /// The whole guest cannot be pinned within the budget.
    #[error(
        "mode pinned needs the whole guest, {guest} bytes, but the budget is {budget}: raise the budget or use mode cached"
    )]
    GuestExceedsBudget {
        /// Bytes of guest memory.
        guest: u64,
        /// Bytes of budget.
        budget: u64,
    },
    /// The whole guest has more frames than the pinner has places.
    #[error(
        "mode pinned needs {frames} frames but pinner {pinner} has room for {most}: use larger frames or mode cached"
    )]
    GuestExceedsPinner {
        /// Frames of the guest.
        frames: u32,
        /// Frames that can be pinned at one time.
        most: u32,
        /// Name of the pinner.
        pinner: &'static str,
    },
    /// The whole guest could not be pinned.
    #[error("pinning the whole guest failed: {0}")]
    Hold(#[from] HoldError),
    /// Memory is withdrawn at the moment.
    #[error(
        "the whole guest cannot be pinned while memory is withdrawn (balloon): try again later"
    )]
    Withdrawn,
    /// The guest has grown beyond what the pool was made for.
    #[error(
        "guest memory would need {frames} frames but the pool was made for {most}: give the most memory the guest will have when the service is built"
    )]
    TooManyFrames {
        /// Frames of the guest.
        frames: u32,
        /// Frames that the table has.
        most: u32,
    },
    /// Frame numbers of regions that are not retired yet are given to others.
    #[error(
        "memory that was removed before is not unpinned yet: retire it first, and derive each map from the last"
    )]
    Unsettled,
    /// The self-check cannot look.
    #[error("self-check cannot read /proc/self/pagemap: {0}")]
    SelfCheck(#[source] io::Error),
}

/// Why a program's pages cannot be held. Nothing of it is held; it is refused, or runs unpinned (see
/// [`Pinner::is_needed`](crate::Pinner::is_needed)).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HoldError {
    /// The program alone needs more than may ever be pinned for it.
    #[error(
        "the program needs {need} bytes pinned at once but {which} allows {limit}: raise it or send smaller programs"
    )]
    TooLarge {
        /// Bytes of distinct frames in the program.
        need: u64,
        /// The limit that it exceeds, in bytes.
        limit: u64,
        /// "the pin budget" or "the subchannel's share".
        which: &'static str,
    },
    /// The program has more frames than the pinner has places.
    #[error(
        "the program needs {need} frames pinned at once but pinner {pinner} has room for {most}: use larger frames or send smaller programs"
    )]
    TooManyFrames {
        /// Distinct frames in the program.
        need: usize,
        /// Frames that can be pinned at one time.
        most: u32,
        /// Name of the pinner.
        pinner: &'static str,
    },
    /// The pinner refused.
    #[error("pinner {pinner} could not pin {len} bytes at guest address {address:#x}: {source}{}", remedy(.source))]
    Pin {
        /// Its name.
        pinner: &'static str,
        /// Guest address of the run.
        address: u64,
        /// Bytes of the run.
        len: usize,
        /// What it said.
        source: io::Error,
    },
    /// The pinner could not unpin what had to make room; it stays pinned and counted.
    #[error(
        "pinner {pinner} could not unpin {len} bytes at guest address {address:#x} to make room: {source}"
    )]
    Unpin {
        /// Its name.
        pinner: &'static str,
        /// Guest address of the run.
        address: u64,
        /// Bytes of the run.
        len: usize,
        /// What it said.
        source: io::Error,
    },
    /// A frame has 16,777,215 users already.
    #[error("a frame has 16777215 users, as many as can be counted: send fewer programs at once")]
    Saturated,
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => {
            " (raise RLIMIT_MEMLOCK with 'ulimit -l', grant CAP_IPC_LOCK, or lower the pin budget; \
             with tens of thousands of small frames, use larger ones or raise vm.max_map_count)"
        }
        Some(libc::EAGAIN | libc::EPERM) => {
            " (raise RLIMIT_MEMLOCK with 'ulimit -l', grant CAP_IPC_LOCK, or lower the pin budget)"
        }
        _ => "",
    }
}

/// Why the budget stays as it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BudgetError {
    /// Less than one frame.
    #[error("a pin budget of {budget} bytes holds no frame: give at least {least} bytes")]
    TooSmall {
        /// Bytes asked for.
        budget: u64,
        /// Bytes of the largest frame of the guest.
        least: u64,
    },
    /// A device in mode pinned needs more.
    #[error(
        "a pin budget of {budget} bytes is less than the guest's {guest}, which a device in mode pinned needs: switch it to mode cached first"
    )]
    WholeGuest {
        /// Bytes asked for.
        budget: u64,
        /// Bytes of guest memory.
        guest: u64,
    },
    /// Another change was not done in time: a whole guest that is being pinned, a budget, a layout.
    #[error("another change of what is pinned was not done after {patience:?}: wait longer")]
    Busy {
        /// How long was waited.
        patience: Duration,
    },
    /// Programs did not let go of enough in time.
    #[error("{pinned} bytes are still pinned, more than {budget}, after {patience:?}: wait longer")]
    StillInUse {
        /// Bytes asked for.
        budget: u64,
        /// Bytes pinned.
        pinned: u64,
        /// How long was waited.
        patience: Duration,
    },
    /// The pinner could not unpin.
    #[error(transparent)]
    Hold(#[from] HoldError),
}

/// Why memory cannot be withdrawn. What was not withdrawn yet is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WithdrawError {
    /// Some of it is not guest memory, or it is empty.
    #[error(
        "{len:#x} bytes at guest address {start:#x} are not all guest memory: withdraw what is"
    )]
    NotMemory {
        /// First address.
        start: u64,
        /// Bytes.
        len: u64,
    },
    /// A device in mode pinned holds every page for good.
    #[error(
        "guest memory cannot be withdrawn while a device is in mode pinned: switch it to mode cached first"
    )]
    WholeGuest,
    /// Another change was not done in time: a whole guest that is being pinned, a budget, a layout.
    #[error("another change of what is pinned was not done after {patience:?}: wait longer")]
    Busy {
        /// How long was waited.
        patience: Duration,
    },
    /// Programs did not let go in time.
    #[error(
        "{frames} frames are still in use after {patience:?}: wait longer or stop the guest's I/O"
    )]
    StillInUse {
        /// Frames in use.
        frames: usize,
        /// How long was waited.
        patience: Duration,
    },
    /// The pinner could not unpin.
    #[error(transparent)]
    Hold(#[from] HoldError),
}
