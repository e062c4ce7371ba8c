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
//! What a VMM holds for one device, and the instructions on it, are in [`subchannel`](crate::subchannel).
//!
//! | part | file |
//! |---|---|
//! | building and ending a service | `builder.rs`, this file |
//! | instructions by subchannel-identification word | `instructions.rs` |
//! | where results go | `delivery.rs` |
//! | the thread, its runtime, its dispatcher | `shard.rs`, `runtime.rs`, `dispatcher.rs` |
//! | what tasks of a shard share | `context.rs`, `outbox.rs` |
//! | programs that devices apart have | `in_flight.rs` |
//! | what subchannels have done, and the last requests, for whoever looks | `activity.rs`, `recorder.rs` |
//! | one subchannel's task, its requests, and what runs it | `task.rs`, `queue.rs`, `flight.rs`, `runner.rs`, `attach.rs` |
//! | what is chosen for one device; other pinners and modes | `options.rs`, `pinner.rs`, `mode_switch.rs` |
//! | detaching | `drain.rs` |
//! | what the host says of its devices | `listener.rs` |
//! | rest, saving and restoring | `quiesce.rs`, `save.rs`, `state.rs` |
//! | guest memory that comes and goes | `memory.rs`, `view.rs` |
//! | programs that may change themselves | `unfetched.rs` |
//! | status for what never reached a device | `refusal.rs` |

mod activity;
mod attach;
mod builder;
mod context;
pub(crate) mod delivery;
mod dispatcher;
mod drain;
mod flight;
mod in_flight;
mod instructions;
mod listener;
mod memory;
mod mode_switch;
mod options;
mod outbox;
mod pinner;
mod queue;
mod quiesce;
mod recorder;
pub(crate) mod refusal;
mod runner;
pub(crate) mod runtime;
mod save;
mod shard;
mod state;
mod task;
mod unfetched;
mod view;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak, mpsc};

use parking_lot::{Mutex, RwLock};
use vfio_ccw_metrics::{Registry, Totals};
use vfio_ccw_pinning::{GuestMap, Mode, Pool, PoolError, WholeGuest};

pub use activity::SubchannelSeries;
pub use attach::{DeviceSpec, HostDevice, Interrupts, Model, RemoteSpec};
pub use builder::{ServiceBuilder, ServiceError};
pub use delivery::{Completion, Completions, Delivery, Silent, Trigger};
pub use drain::DrainError;
pub use instructions::OperandError;
pub use memory::MemoryError;
pub use mode_switch::ModeError;
pub use options::DeviceOptions;
pub use pinner::{PinnerChoice, UnknownPinner};
pub use quiesce::QuiesceError;
pub use recorder::{FlightRecord, FlightRecorder, FlownCcw};
pub use runtime::{Driver, DriverChoice, UnknownDriver};
pub use save::SaveError;
pub use state::{ServiceState, StartState, StateError, SubchannelState, SuspendedState};
pub use unfetched::Unfetched;

use crate::architecture::{Pmcw, Schib, SubchannelId};
use crate::backend::kernel::AddressSpace;
use crate::backend::{Errno, Regions};
use crate::subchannel::{Interruptions, Parts, Reports, Shared, Subchannel, Table};
use crate::volume::Workers;
use activity::Activities;
use attach::{Attachment, Restoring};
use memory::Memory;
use mode_switch::Aside;
use quiesce::Rest;
use shard::ShardLink;

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
    table: Arc<Table>,
    activities: Arc<Activities>,
    interruptions: Arc<Interruptions>,
    reports: Arc<Reports>,
    rest: Mutex<Rest>,
    /// What the host's devices see memory through.
    space: Option<AddressSpace>,
}

/// Why a device cannot be attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// There are as many subchannels as the service was built for.
    #[error(
        "{attached} subchannels are attached, as many as the service was built for: raise ServiceBuilder::subchannels"
    )]
    Full {
        /// Subchannels there are.
        attached: usize,
    },
    /// The subchannel that was asked for is taken, or beyond those that the service was built for.
    #[error(
        "subchannel {id} is taken, or beyond the {places} that the service was built for: choose another, or raise ServiceBuilder::subchannels"
    )]
    Taken {
        /// The subchannel.
        id: SubchannelId,
        /// How many there can be.
        places: usize,
    },
    /// It cannot go on from the state that it is to be restored from.
    #[error(transparent)]
    State(#[from] StateError),
    /// The whole guest cannot be pinned for it.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A device of the host's sees memory through another address space than the service's, if that has one.
    #[error(
        "the device was not opened in the service's address space: give that to ServiceBuilder::address_space, and open \
         devices with AddressSpace::open"
    )]
    OtherAddressSpace,
    /// Another process cannot map guest memory.
    #[error(
        "guest region {start:#x} has no file that the device's server could map: back guest memory by a shared memfd"
    )]
    NotShared {
        /// Guest address of the region.
        start: u64,
    },
    /// A device of the host's, or of another process, is attached already, to this service or to another one.
    #[error("the device is attached already: open it, or connect to it, again")]
    AttachedBefore,
    /// The host does not say how its subchannel is.
    #[error("the host's subchannel cannot be read: {0}")]
    HostSubchannel(Errno),
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

    /// Attaches a device; its results go where `delivery` says. Its subchannel has the lowest number
    /// that is free, and is enabled.
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
        let options = options.into();
        let restored = match &options.state {
            Some(state) => Some(state.check(self.ring_entries, &delivery)?),
            None => None,
        };
        let host = match &device {
            DeviceSpec::Kernel(device) => Some(self.check_host(device)?),
            _ => None,
        };
        let remote = match &device {
            DeviceSpec::Remote(device) => Some(self.check_remote(device)?),
            _ => None,
        };
        let pinning = self.pinning(options.mode.unwrap_or(self.mode))?;
        let Some(number) = self.table.reserve(options.number) else {
            return Err(self.no_place(options.number));
        };
        let place = Reserved { table: &self.table, number: Some(number) };
        let class = device.class();
        let subchannel = SubchannelId::of(number);
        let _span = tracing::info_span!("attach", %subchannel, %class).entered();

        let Some((shard, bit)) = self.take_bit() else {
            return Err(self.no_place(None));
        };
        let link = &self.shards[shard];
        let id = SubchannelId::of(number);
        let (cell, fixed) = match &restored {
            Some(restored) => restored.cell(id),
            None => options.cell(id, host.as_ref().map(|(schib, _)| schib).or(remote.as_ref())),
        };
        let (shared, intake) = Shared::new(Parts {
            cell,
            fixed,
            place: number as usize,
            bit,
            shard,
            door: link.door(),
            delivery,
            interruptions: self.interruptions.clone(),
            entries: self.ring_entries,
            mode: pinning.mode,
            has_alerts: host.is_some() || remote.is_some(),
            host: host.map(|(_, regions)| regions),
        });
        self.activities.attached(number, class);
        let share = options.budget.or(self.share);
        let policy = options.policy;
        let (restored, restoring) = match restored {
            Some(restored) => {
                let (answer, restoring) = mpsc::channel();
                let device = restored.device.clone();
                (Some(Box::new((restored, Restoring { device, answer }))), Some(restoring))
            }
            None => (None, None),
        };
        let attachment = Attachment {
            shared: shared.clone(),
            intake,
            device,
            policy,
            pinning,
            share,
            unsolicited: options.unsolicited,
            restored,
        };
        if !link.attach(attachment) {
            return Err(AttachError::ShardGone { shard });
        }
        place.keep();
        if let Some(restoring) = restoring {
            let gone = |_| AttachError::ShardGone { shard };
            if let Err(error) = restoring.recv().map_err(gone)? {
                // As if it had never been: its number is free again.
                shared.leave();
                self.table.wait_until_over(&shared, save::ANSWER);
                return Err(StateError::from(error).into());
            }
            self.interruptions.find(&shared);
        }
        self.table.put(number, Some(shared.clone()));
        if options.hot_plugged {
            self.reports.report_subchannel(id);
        }
        Ok(Subchannel::new(shared))
    }

    /// Whether a device of the host's can be attached; how its subchannel is.
    fn check_host(&self, device: &HostDevice) -> Result<(Schib, Weak<dyn Regions>), AttachError> {
        let device = &device.0;
        if !self.space.as_ref().is_some_and(|space| space.is(device.address_space())) {
            return Err(AttachError::OtherAddressSpace);
        }
        let schib = match device.read_schib() {
            // A driver without the region: one path, as for a device of our own.
            Err(Errno::NOT_SUPPORTED) => Schib::from(Pmcw::single_path(0)),
            schib => schib.map_err(AttachError::HostSubchannel)?,
        };
        if !device.attach() {
            return Err(AttachError::AttachedBefore);
        }
        let regions: Arc<dyn Regions> = device.clone();
        Ok((schib, Arc::downgrade(&regions)))
    }

    /// Whether a device of another process can be attached; how its subchannel is.
    fn check_remote(&self, device: &RemoteSpec) -> Result<Schib, AttachError> {
        let map = self.memory();
        if let Some(region) = map.regions().iter().find(|region| region.file().is_none()) {
            return Err(AttachError::NotShared { start: region.start() });
        }
        if !device.0.attach() {
            return Err(AttachError::AttachedBefore);
        }
        Ok(*device.0.schib())
    }

    /// The last requests of all shards, the oldest first: what the flight recorder has. A shard that does not
    /// answer within a second is left out.
    pub fn flights(&self) -> Vec<FlightRecord> {
        recorder::recall(&self.shards.iter().map(ShardLink::common).collect::<Vec<_>>())
    }

    /// A place on a shard: they take turns, unless they are full.
    fn take_bit(&self) -> Option<(usize, usize)> {
        let shards = self.shards.len();
        // Relaxed: a number to go round the shards.
        let first = self.attached.fetch_add(1, Ordering::Relaxed) as usize;
        (first..first + shards)
            .map(|shard| shard % shards)
            .find_map(|shard| Some((shard, self.shards[shard].take_bit()?)))
    }

    fn no_place(&self, wanted: Option<u32>) -> AttachError {
        match wanted {
            Some(number) => {
                AttachError::Taken { id: SubchannelId::of(number), places: self.table.places() }
            }
            None => AttachError::Full { attached: self.table.all().count() },
        }
    }

    fn shard_of(&self, shared: &Shared) -> &ShardLink {
        &self.shards[shared.shard()]
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

    /// What the host's devices see memory through, if the service was built for such devices.
    pub fn address_space(&self) -> Option<&AddressSpace> {
        self.space.as_ref()
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

/// A number that goes back where it came from if nothing comes of it.
struct Reserved<'a> {
    table: &'a Table,
    number: Option<u32>,
}

impl Reserved<'_> {
    fn keep(mut self) {
        self.number = None;
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.table.give_back(number);
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.table.all().for_each(|shared| shared.leave());
        for shard in &mut self.shards {
            shard.end();
        }
        // Subchannels know the table, which knows them.
        self.table.all().for_each(|shared| {
            self.table.remove(&shared);
        });
        self.aside.finish();
    }
}
