//! The service: shards that run subchannels, and what they share.
//!
//! ```text
//!  vCPU threads                     shard thread (one per core)
//!  Subchannel::ssch ─┐            ┌─ dispatcher: doorbell bitmap, sleep or spin
//!                    ├─ ring ───► │    └─► subchannel task: fetch ► hold ► emit ► start ► interrupt
//!  Subchannel::submit┘  doorbell  │                              ► back-map ► release ► deliver
//!                                 └─ arena, idle flights, stage metrics: one thread, no locks
//!  completion ring / interrupt ◄──────────────────────────────────────────────┘
//! ```
//!
//! | part | file |
//! |---|---|
//! | building and ending a service | `builder.rs`, this file |
//! | what a VMM holds for one device | `subchannel.rs` |
//! | where results go | `delivery.rs` |
//! | the thread, its runtime, its dispatcher | `shard.rs`, `runtime.rs`, `dispatcher.rs` |
//! | what tasks of a shard share | `context.rs`, `outbox.rs` |
//! | one subchannel's task, and what runs it | `task.rs`, `runner.rs`, `attach.rs` |
//! | what is chosen for one device; other pinners and modes | `options.rs`, `pinner.rs`, `mode_switch.rs` |
//! | guest memory that comes and goes | `memory.rs`, `view.rs` |
//! | programs that may change themselves | `unfetched.rs` |
//! | status for what never reached a device | `refusal.rs` |

mod attach;
mod builder;
mod context;
mod delivery;
mod dispatcher;
mod memory;
mod mode_switch;
mod options;
mod outbox;
mod pinner;
mod refusal;
mod runner;
mod runtime;
mod shard;
mod subchannel;
mod task;
mod unfetched;
mod view;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::{Mutex, RwLock};
use vfio_ccw_metrics::{Registry, Totals};
use vfio_ccw_pinning::{GuestMap, Mode, Pool, PoolError, WholeGuest};

pub use attach::{DeviceSpec, Interrupts};
pub use builder::{ServiceBuilder, ServiceError};
pub use delivery::{Completion, Completions, Delivery, Trigger};
pub use memory::MemoryError;
pub use mode_switch::ModeError;
pub use options::DeviceOptions;
pub use pinner::{PinnerChoice, UnknownPinner};
pub use runtime::{Driver, DriverChoice, UnknownDriver};
pub use subchannel::{Cc, Subchannel, SubmitError};
pub use unfetched::Unfetched;

use crate::volume::Workers;
use attach::Attachment;
use memory::Memory;
use mode_switch::Aside;
use shard::ShardLink;
use subchannel::Shared;

/// Runs channel devices for one guest.
///
/// Dropping it ends the shards: programs that run are waited for, programs that wait complete with
/// deferred condition code 3, and later starts get condition code 3.
#[derive(Debug)]
pub struct Service {
    map: RwLock<Arc<GuestMap>>,
    memory: Mutex<Memory>,
    pool: Arc<Pool>,
    mode: Mode,
    share: Option<u64>,
    /// Pinned when the service was built, until there is a device.
    whole_guest: Mutex<Option<WholeGuest>>,
    driver: Driver,
    registry: Registry,
    shards: Vec<ShardLink>,
    aside: Arc<Aside>,
    /// Kept for as long as shards may hand it work.
    _workers: Option<Arc<Workers>>,
    attached: AtomicU32,
    ring_entries: usize,
    subchannels: Mutex<Vec<Arc<Shared>>>,
}

/// Why a device cannot be attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// Every shard has as many subchannels as its doorbell has bits.
    #[error(
        "{attached} subchannels are attached, as many as the service was built for: raise ServiceBuilder::subchannels"
    )]
    Full {
        /// Subchannels there are.
        attached: usize,
    },
    /// The whole guest cannot be pinned for it.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The shard's thread has ended.
    #[error("shard {shard} has ended: the service can attach nothing any more")]
    ShardGone {
        /// Its index.
        shard: usize,
    },
}

impl Service {
    /// Starts to describe a service.
    pub fn builder() -> ServiceBuilder {
        ServiceBuilder::default()
    }

    /// Attaches a device; its results go where `delivery` says. The subchannel is on the shard with
    /// the fewest, and it is enabled.
    ///
    /// # Errors
    ///
    /// The service is full, or has ended; in mode pinned, the whole guest cannot be pinned.
    pub fn attach(
        &self,
        device: DeviceSpec,
        delivery: Delivery,
    ) -> Result<Subchannel, AttachError> {
        self.attach_with(device, delivery, DeviceOptions::default())
    }

    /// The same for a device with a policy, a pinning mode or a budget of its own.
    ///
    /// ```
    /// # use vfio_ccw::{Completions, DeviceOptions, DeviceSpec, Mode, Policy, Service};
    /// # let memory = std::sync::Arc::new(vm_memory::GuestMemoryMmap::<()>::from_ranges(&[(
    /// #     vm_memory::GuestAddress(0), 1 << 20)])?);
    /// # let service = Service::builder().build(memory)?;
    /// # let (delivery, _completions) = Completions::ring(64)?;
    /// service.attach_with(DeviceSpec::Null, delivery.clone(), Policy::read_only())?;
    /// let scratch = DeviceOptions::default().mode(Mode::OnDemand).budget(256 << 10);
    /// service.attach_with(DeviceSpec::Null, delivery, scratch)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Service::attach`], and in mode pinned where the whole guest cannot be pinned.
    pub fn attach_with(
        &self,
        device: DeviceSpec,
        delivery: Delivery,
        options: impl Into<DeviceOptions>,
    ) -> Result<Subchannel, AttachError> {
        let DeviceOptions { policy, mode, budget } = options.into();
        let pinning = self.pinning(mode.unwrap_or(self.mode))?;

        // Relaxed: a number to tell subchannels apart.
        let number = self.attached.fetch_add(1, Ordering::Relaxed);
        let shard = self.shard_index(number);
        let link = &self.shards[shard];
        let Some(bit) = link.take_bit() else {
            return Err(AttachError::Full { attached: self.subchannels.lock().len() });
        };
        let (shared, intake) =
            Shared::new(number, bit, link.doorbell(), delivery, self.ring_entries, pinning.mode);
        let share = budget.or(self.share);
        let shared_with = shared.clone();
        let attachment = Attachment { shared: shared_with, intake, device, policy, pinning, share };
        if !link.attach(attachment) {
            return Err(AttachError::ShardGone { shard });
        }
        self.subchannels.lock().push(shared.clone());
        Ok(Subchannel::new(shared))
    }

    /// Detaches a subchannel: the program that runs is waited for by the shard, those that wait
    /// complete with deferred condition code 3, later starts get condition code 3.
    pub fn detach(&self, subchannel: Subchannel) {
        subchannel.leave();
        let number = subchannel.number();
        self.subchannels.lock().retain(|shared| shared.number() != number);
    }

    fn shard_index(&self, number: u32) -> usize {
        number as usize % self.shards.len()
    }

    fn shard_of(&self, subchannel: &Subchannel) -> &ShardLink {
        &self.shards[self.shard_index(subchannel.number())]
    }

    /// Guest memory as programs that start now see it.
    pub fn memory(&self) -> Arc<GuestMap> {
        self.map.read().clone()
    }

    /// The pool of pinned pages.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// When pages are pinned for a device for which nothing else was said.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What the shards' file I/O and sleeping run on.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// Where its metrics are, for an endpoint.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Counters and stage latencies of all shards so far.
    pub fn totals(&self) -> Totals {
        self.registry.snapshot()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        for shared in self.subchannels.lock().iter() {
            shared.leave();
        }
        for shard in &mut self.shards {
            shard.end();
        }
        self.aside.finish();
    }
}
