//! Guest memory as a device sees it: which of it is there, which of it is pinned, and for how long.
//!
//! Questions, and the parts that answer them:
//!
//! * *Where is it?* [`GuestMap`] is a flat snapshot of the VMM's memory regions: guest absolute
//!   address to host address and to a frame number. Frames are 4 KiB or more ([`Granule`]).
//! * *What does "pinned" mean here?* A [`Pinner`] says: [`Resident`] locks pages in RAM,
//!   [`Registered`] gives them to io_uring, and [`Type1`], [`Iommufd`] and [`VfioUser`] map windows
//!   for a device elsewhere.
//! * *What stays pinned?* The [`Pool`]: a hard byte budget, one state word a frame, a hit that is a
//!   single compare-and-swap, misses of one program merged into one call, and replacement that a
//!   scan does not upset.
//! * *How large should the budget be?* [`Pool::sizing`] says what others would hit.
//! * *What if memory goes away?* [`Pool::withdraw`] for pages that are discarded, [`Pool::extend`] and
//!   [`Pool::retire`] for regions.
//!
//! A channel program's pages go into a [`Hold`]: first wanted, then held for as long as the device
//! may touch them, then released. A held frame is never unpinned.
//!
//! ```
//! use std::sync::Arc;
//! use vfio_ccw_pinning::{GuestMap, Hold, Mode, Pool, Resident};
//! use vm_memory::{GuestAddress, GuestMemoryMmap};
//!
//! let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
//! let map = Arc::new(GuestMap::new(Arc::new(memory))?);
//! let pool = Pool::new(map.clone(), Box::new(Resident), 64 << 10)?;
//!
//! let mut hold = Hold::default();
//! hold.want(map.frame(0x3000).expect("inside the region"));
//! pool.hold_blocking(&mut hold)?;
//! assert_eq!(pool.pinned_bytes(), 4096);
//! pool.release(&mut hold, Mode::Cached);
//! assert_eq!(pool.pinned_bytes(), 4096, "cached: stays until the room is needed");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// Under loom only the state word is built: the models explore it, and the rest waits on it.
#![cfg_attr(loom, allow(dead_code))]

#[cfg(not(loom))]
mod clock;
#[cfg(not(loom))]
mod frame_table;
#[cfg(not(loom))]
mod granule;
#[cfg(not(loom))]
mod hold;
mod host;
#[cfg(not(loom))]
mod ledger;
#[cfg(not(loom))]
mod line;
#[cfg(not(loom))]
mod map;
pub mod memlock;
mod mode;
#[cfg(not(loom))]
mod patience;
#[cfg(not(loom))]
pub mod pinner;
#[cfg(not(loom))]
mod pool;
#[cfg(not(loom))]
mod reuse;
#[cfg(not(loom))]
mod self_check;
mod sync;
mod word;

#[cfg(not(loom))]
pub use granule::{Granule, GranuleError};
#[cfg(not(loom))]
pub use hold::{Hold, Tally};
pub use host::HostRange;
#[cfg(not(loom))]
pub use map::{GuestMap, MapError, Region};
pub use mode::Mode;
#[cfg(not(loom))]
pub use pinner::{Iommufd, Pinner, Registered, Resident, Run, Stopped, Type1, VfioUser};
#[cfg(not(loom))]
pub use pool::{
    BudgetError, HoldError, Pool, PoolError, PoolOptions, WholeGuest, WithdrawError, Withdrawn,
};
#[cfg(not(loom))]
pub use reuse::Sizing;

/// log2 of [`FRAME`].
pub const FRAME_SHIFT: u32 = 12;

/// Bytes in the smallest frame. A frame is the unit that is pinned, counted and evicted; a region may
/// have larger ones, see [`Granule`].
pub const FRAME: u64 = 1 << FRAME_SHIFT;
