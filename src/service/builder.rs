//! Building a service: what a VMM chooses, and the checks before anything starts.

use std::io;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use vfio_ccw_metrics::{Family, PageError, Registry, Row, SeriesError};
use vfio_ccw_pinning::memlock::Memlock;
use vfio_ccw_pinning::{
    FRAME, Granule, GuestMap, MapError, Mode, Pinner, Pool, PoolError, PoolOptions, Region,
    Registered, Resident,
};
use vfio_ccw_queues::WaitStrategy;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::architecture::Crw;
use crate::backend::kernel::{AddressSpace, Interface, SpaceError};
use crate::channel_subsystem::WindowError;
use crate::subchannel::{Interruptions, MOST_STARTS, Reports, Table};
use crate::translation::{Limits, StorageKeys};
use crate::volume::Workers;

use super::Service;
use super::activity::{Activities, Observer, SubchannelSeries};
use super::attach::Interrupts;
use super::delivery::Trigger;
use super::memory::{Memory, check_reach};
use super::mode_switch::Aside;
use super::pinner::PinnerChoice;
use super::recorder::{self, FlightRecorder};
use super::runtime::{Driver, DriverChoice};
use super::shard::{Plan, ShardLink};
use super::unfetched::Unfetched;
use super::view::Layout;

/// Frames spread over the guest that may be locked, each of which splits a mapping in three
/// (`vm.max_map_count` is 65,530).
const MOST_SPREAD_FRAMES: u64 = 16_384;

/// Multiples of the budget for which a gauge says what hit rate they would have.
const OTHER_BUDGETS: [f64; 6] = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0];

/// Threads for file I/O that would block, where there is no io_uring.
const FILE_THREADS: usize = 4;

/// Why a service cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The guest's memory layout.
    #[error(transparent)]
    Memory(#[from] MapError),
    /// The guest's memory lies where devices cannot address it.
    #[error(transparent)]
    Reach(#[from] WindowError),
    /// The pool.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// More is to be pinned than this process may lock.
    #[error(
        "a pin budget of {budget} bytes exceeds RLIMIT_MEMLOCK: limit {limit}, locked already {locked}; \
         raise it with 'ulimit -l {kib}', grant CAP_IPC_LOCK, or lower the budget to {room}",
        kib = (.budget + .locked).div_ceil(1024),
        room = .limit.saturating_sub(*.locked)
    )]
    Memlock {
        /// Bytes to be pinned.
        budget: u64,
        /// The limit in bytes.
        limit: u64,
        /// Bytes locked before.
        locked: u64,
    },
    /// io_uring was demanded.
    #[error(
        "io_uring does not work here: {0}; use driver auto or epoll, or allow io_uring_setup in the seccomp profile"
    )]
    IoUring(#[source] io::Error),
    /// The pinner registers pages with io_urings, which the service does not have.
    #[error(
        "pinner registered needs driver io_uring: use pinner resident, or let io_uring work here"
    )]
    PinnerNeedsIoUring,
    /// A number that makes no sense.
    #[error("{what} is {value}: it must be between {least} and {most}")]
    OutOfRange {
        /// Which option.
        what: &'static str,
        /// Its value.
        value: usize,
        /// Smallest value.
        least: usize,
        /// Largest value.
        most: usize,
    },
    /// A thread, ring or eventfd that the system did not give.
    #[error("shard {shard} could not start: {source}")]
    Shard {
        /// Its index.
        shard: usize,
        /// What the system said.
        source: io::Error,
    },
    /// Threads for file I/O.
    #[error("threads for file I/O could not start: {0}")]
    Workers(#[source] io::Error),
    /// The state of this process could not be read.
    #[error("RLIMIT_MEMLOCK and CAP_IPC_LOCK could not be read: {0}")]
    Process(#[source] io::Error),
    /// A metric cannot have its name.
    #[error(transparent)]
    Series(#[from] SeriesError),
    /// A page of the endpoint cannot have its path.
    #[error(transparent)]
    Page(#[from] PageError),
    /// The host's devices cannot be shown memory.
    #[error(transparent)]
    AddressSpace(#[from] SpaceError),
    /// An address space and the pinner *registered* were chosen.
    #[error(
        "with an address space, pages are pinned by {interface}: do not choose the pinner registered"
    )]
    TwoPinners {
        /// What the address space is of.
        interface: Interface,
    },
}

/// What a service is made of. Every setter has a default that suits a first try.
#[derive(Clone, Debug)]
pub struct ServiceBuilder {
    shards: usize,
    subchannels: usize,
    ring_entries: usize,
    budget: Option<u64>,
    share: Option<u64>,
    mode: Mode,
    pinner: PinnerChoice,
    granule: Option<Granule>,
    max_memory: Option<u64>,
    self_check: bool,
    driver: DriverChoice,
    interrupts: Interrupts,
    limits: Limits,
    keys: Option<Arc<dyn StorageKeys>>,
    unfetched: Unfetched,
    wait: WaitStrategy,
    registry: Registry,
    subchannel_series: SubchannelSeries,
    recorder: FlightRecorder,
    reports: ReportTrigger,
    space: Option<AddressSpace>,
}

/// Who is told of channel reports.
#[derive(Clone, Default)]
struct ReportTrigger(Option<Arc<dyn Trigger<Crw>>>);

impl std::fmt::Debug for ReportTrigger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "told" } else { "silent" })
    }
}

impl Default for ServiceBuilder {
    fn default() -> Self {
        ServiceBuilder {
            shards: 1,
            subchannels: 1024,
            ring_entries: 16,
            budget: None,
            share: None,
            mode: Mode::default(),
            pinner: PinnerChoice::default(),
            granule: None,
            max_memory: None,
            self_check: false,
            driver: DriverChoice::default(),
            interrupts: Interrupts::default(),
            limits: Limits::default(),
            keys: None,
            unfetched: Unfetched::default(),
            wait: WaitStrategy::default(),
            registry: Registry::new(),
            subchannel_series: SubchannelSeries::default(),
            recorder: FlightRecorder::default(),
            reports: ReportTrigger::default(),
            space: None,
        }
    }
}

impl ServiceBuilder {
    /// Pin budget where none is given, in bytes, and RLIMIT_MEMLOCK allows it.
    pub const DEFAULT_BUDGET: u64 = 64 << 20;

    /// Threads that run subchannels, 1 to 64; one a core that may be busy with I/O. Default 1.
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = shards;
        self
    }

    /// Most subchannels a shard will have, 1 to 65,536. Default 1,024.
    pub fn subchannels(mut self, subchannels: usize) -> Self {
        self.subchannels = subchannels;
        self
    }

    /// Entries of each subchannel's submission ring, 1 to 4,096. Default 16.
    pub fn ring_entries(mut self, entries: usize) -> Self {
        self.ring_entries = entries;
        self
    }

    /// Most bytes that are pinned at one time. Default: 64 MiB or what RLIMIT_MEMLOCK leaves; the
    /// whole guest in mode pinned.
    pub fn budget(mut self, bytes: u64) -> Self {
        self.budget = Some(bytes);
        self
    }

    /// Most bytes that are pinned for one program of one subchannel; one that needs more runs
    /// unpinned, or is refused on a back end that needs pins. Default: the budget.
    pub fn subchannel_budget(mut self, bytes: u64) -> Self {
        self.share = Some(bytes);
        self
    }

    /// Size of the frames that are pinned. Default: 4 KiB or the pages behind the memory, and more
    /// where the budget would be more than 16,384 of them.
    pub fn granule(mut self, granule: Granule) -> Self {
        self.granule = Some(granule);
        self
    }

    /// Most bytes of memory that the guest will have, see [`Service::replace_memory`]. Default: four
    /// times what it has now, and at least 16 GiB.
    pub fn max_memory(mut self, bytes: u64) -> Self {
        self.max_memory = Some(bytes);
        self
    }

    /// Compares every cached page with `/proc/self/pagemap` when it is used, and panics on a
    /// difference: for tests of a VMM's memory handling. Slow.
    pub fn self_check(mut self, check: bool) -> Self {
        self.self_check = check;
        self
    }

    /// What pins pages. Default resident.
    pub fn pinner(mut self, pinner: PinnerChoice) -> Self {
        self.pinner = pinner;
        self
    }

    /// For devices of the host's: they see guest memory through windows in `space`, and those are what is
    /// pinned, with pinner `type1` or `iommufd`, for all devices of the service. A container must have a
    /// device in it by now. Default: none, and no such device can be attached.
    pub fn address_space(mut self, space: AddressSpace) -> Self {
        self.space = Some(space);
        self
    }

    /// When pages are pinned. Default cached.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// What file I/O runs on. Default: io_uring where it works.
    pub fn driver(mut self, driver: DriverChoice) -> Self {
        self.driver = driver;
        self
    }

    /// How in-process devices report the end of a program. Default: directly.
    pub fn interrupts(mut self, interrupts: Interrupts) -> Self {
        self.interrupts = interrupts;
        self
    }

    /// Bounds on channel programs.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The guest's storage keys. Default: none, and keys are not checked.
    pub fn storage_keys(mut self, keys: Arc<dyn StorageKeys>) -> Self {
        self.keys = Some(keys);
        self
    }

    /// What becomes of programs whose ORB forbids prefetching (P = 0). Default: they are executed
    /// from guest memory.
    pub fn unfetched(mut self, unfetched: Unfetched) -> Self {
        self.unfetched = unfetched;
        self
    }

    /// How shards without work wait for some. Default: adaptive, at most 50 µs at a time and a quarter
    /// of a core for what it does not save; on a machine with one processor they sleep. While file I/O
    /// is under way, they sleep whatever this says: only so does the kernel get it.
    pub fn wait(mut self, strategy: WaitStrategy) -> Self {
        self.wait = strategy;
        self
    }

    /// Where metrics go. Default: a registry of its own, see [`Service::registry`].
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = registry;
        self
    }

    /// Which subchannels have metrics of their own, at most [`SubchannelSeries::MOST`]. Default: the ten that
    /// have been busy longest.
    pub fn subchannel_series(mut self, series: SubchannelSeries) -> Self {
        self.subchannel_series = series;
        self
    }

    /// How many of the last requests each shard keeps, and which requests are slow; see [`Service::flights`].
    pub fn flight_recorder(mut self, recorder: FlightRecorder) -> Self {
        self.recorder = recorder;
        self
    }

    /// Who tells the guest that channel reports are pending: a machine check. Default: nobody; it can
    /// ask with [`Service::stcrw`].
    pub fn channel_reports(mut self, trigger: impl Trigger<Crw> + 'static) -> Self {
        self.reports = ReportTrigger(Some(Arc::new(trigger)));
        self
    }

    /// Starts the service for the guest whose memory is `memory`.
    ///
    /// A VMM whose memory is behind `GuestMemoryAtomic` passes `atomic.memory().into_inner()`.
    ///
    /// # Errors
    ///
    /// See [`ServiceError`]; nothing is left running or pinned.
    pub fn build<M>(self, memory: Arc<M>) -> Result<Service, ServiceError>
    where
        M: GuestMemoryBackend + Send + Sync + 'static,
    {
        in_range("shards", self.shards, 64)?;
        in_range("subchannels", self.subchannels, 65_536)?;
        in_range("ring_entries", self.ring_entries, MOST_STARTS)?;
        // None is as good as any.
        in_range("flight_recorder", self.recorder.requests.max(1), FlightRecorder::MOST)?;
        in_range("subchannel_series", self.subchannel_series.len().max(1), SubchannelSeries::MOST)?;
        let guest = memory.iter().map(GuestMemoryRegion::len).sum();
        let budget = self.budget_for(guest)?;
        let most = self.max_memory.unwrap_or(guest).max(guest);
        let map = Arc::new(GuestMap::with_granule(memory, self.granule_for(budget.min(most)))?);
        // A budget that nobody chose must not be too small for a frame of huge pages.
        let widest = map.regions().iter().map(Region::frame_bytes).max().unwrap_or(FRAME);
        let budget = if self.budget.is_none() { budget.max(widest) } else { budget };
        check_reach(&map)?;
        if self.frames_are_spread() {
            warn_of_small_frames(&map, budget);
        }
        let driver = self.driver.decide().map_err(ServiceError::IoUring)?;
        let options = PoolOptions { self_check: self.self_check, max_memory: self.max_memory };
        let registered = self.registered(driver)?;
        let pinner: Box<dyn Pinner> = match (&registered, &self.space) {
            (Some(_), Some(space)) => {
                return Err(ServiceError::TwoPinners { interface: space.interface() });
            }
            (Some(registered), None) => Box::new(registered.clone()),
            (None, Some(space)) => space.pinner()?,
            (None, None) => Box::new(Resident),
        };
        let pool = Arc::new(Pool::with_options(map.clone(), pinner, budget, options)?);
        let workers = match driver {
            Driver::IoUring => None,
            Driver::Epoll => {
                Some(Arc::new(Workers::start(FILE_THREADS).map_err(ServiceError::Workers)?))
            }
        };
        let aside = Arc::new(Aside::default());
        let table = Arc::new(Table::new(self.subchannels * self.shards));
        let activities = Arc::new(Activities::new(table.places()));
        let plan = Plan {
            pool: pool.clone(),
            aside: aside.clone(),
            registered,
            limits: self.limits,
            keys: self.keys,
            unfetched: self.unfetched,
            driver,
            interrupts: self.interrupts,
            wait: self.wait.on_this_machine(),
            workers: workers.clone(),
            reports: Arc::new(Reports::new(self.reports.0)),
            space: self.space.clone(),
            activities: activities.clone(),
            recorder: self.recorder,
        };
        register_pool(&self.registry, &pool)?;
        Observer::new(&table, &activities).register(&self.registry, self.subchannel_series)?;
        let (layout, users) = Layout::new(map.clone());
        let mut service = Service {
            map: RwLock::new(map),
            memory: Mutex::new(Memory::new(users)),
            pool,
            mode: self.mode,
            share: self.share,
            whole_guest: Mutex::default(),
            driver,
            registry: self.registry,
            shards: Vec::new(),
            aside,
            _workers: workers,
            attached: AtomicU32::new(0),
            ring_entries: self.ring_entries,
            interruptions: Arc::new(Interruptions::new(table.clone())),
            table: table.clone(),
            activities,
            reports: plan.reports.clone(),
            rest: Mutex::default(),
            space: self.space,
        };
        for shard in 0..self.shards {
            let metrics = service.registry.shard(shard.to_string());
            let link = ShardLink::start(
                shard,
                self.shards,
                self.subchannels,
                table.clone(),
                plan.clone(),
                layout.clone(),
                metrics,
            )
            .map_err(|source| ServiceError::Shard { shard, source })?;
            service.shards.push(link);
        }
        let shards = service.shards.iter().map(ShardLink::common).collect();
        recorder::register(&service.registry, shards)?;
        if self.mode == Mode::Pinned {
            // After the shards: the pinner may pin into their rings.
            *service.whole_guest.get_mut() = Some(service.pool.lease_whole_guest()?);
        }
        tracing::info!(
            %driver,
            mode = %self.mode,
            budget_bytes = budget,
            shards = self.shards,
            guest_bytes = guest,
            "service started"
        );
        Ok(service)
    }

    /// The pinner *registered*, where it is chosen.
    fn registered(&self, driver: Driver) -> Result<Option<Registered>, ServiceError> {
        match (self.pinner, driver) {
            (PinnerChoice::Resident, _) => Ok(None),
            (PinnerChoice::Registered, Driver::IoUring) => {
                let registered = Registered::new(Registered::MOST_SLOTS);
                registered.map(Some).map_err(|error| ServiceError::IoUring(io::Error::other(error)))
            }
            (PinnerChoice::Registered, Driver::Epoll) => Err(ServiceError::PinnerNeedsIoUring),
        }
    }

    /// Whether each frame counts by itself: not where the whole guest is locked, which is one mapping.
    fn frames_are_spread(&self) -> bool {
        self.mode != Mode::Pinned || self.pinner == PinnerChoice::Registered || self.space.is_some()
    }

    /// The frame size where none was chosen: with small frames spread over the guest, each is a
    /// mapping of its own in the kernel's books, of which a process has 65,530.
    fn granule_for(&self, budget: u64) -> Granule {
        self.granule.unwrap_or_else(|| {
            let least = budget.div_ceil(MOST_SPREAD_FRAMES).next_power_of_two();
            match self.frames_are_spread() && least > FRAME {
                true => Granule::Bytes(least.min(1 << 30)),
                false => Granule::Backing,
            }
        })
    }

    /// The budget in bytes, checked against what this process may lock.
    fn budget_for(&self, guest: u64) -> Result<u64, ServiceError> {
        let wanted = match (self.budget, self.mode) {
            (Some(bytes), _) => bytes,
            (None, Mode::Pinned) => guest,
            (None, _) => Self::DEFAULT_BUDGET.min(guest.max(FRAME)),
        };
        if self.space.is_some() {
            // Windows lock nothing: the driver does, page by page, for the programs that run.
            return Ok(wanted);
        }
        let memlock = Memlock::of_this_process().map_err(ServiceError::Process)?;
        let (Some(limit), Some(room)) = (memlock.limit, memlock.room()) else {
            return Ok(wanted);
        };
        // Registration is charged in every shard's ring.
        let times = if self.pinner == PinnerChoice::Registered { self.shards as u64 } else { 1 };
        // Budgets beyond the guest lock no more than the guest.
        if wanted.min(guest).saturating_mul(times) <= room {
            return Ok(wanted);
        }
        let fallback = room / 4 * 3 / times;
        if self.budget.is_some() || self.mode == Mode::Pinned || fallback < FRAME {
            return Err(ServiceError::Memlock { budget: wanted, limit, locked: memlock.locked });
        }
        tracing::warn!(
            "RLIMIT_MEMLOCK is {limit} bytes: the pin budget is {fallback} instead of {wanted}; \
             raise it with 'ulimit -l' or grant CAP_IPC_LOCK"
        );
        Ok(fallback)
    }
}

/// Says where regions do not allow frames as large as the budget would need them.
fn warn_of_small_frames(map: &GuestMap, budget: u64) {
    let smallest = map.regions().iter().map(Region::frame_bytes).min().unwrap_or(FRAME);
    if budget.min(map.bytes()) / smallest > MOST_SPREAD_FRAMES {
        tracing::warn!(
            "the pin budget of {budget} bytes is more than {MOST_SPREAD_FRAMES} frames of {smallest} bytes: \
             use regions whose length is a multiple of more, or programs may run unpinned"
        );
    }
}

fn in_range(what: &'static str, value: usize, most: usize) -> Result<(), ServiceError> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(ServiceError::OutOfRange { what, value, least: 1, most })
}

/// What the pool has counted.
static POOL_SUMS: [Family; 2] = [
    Family::counter(
        "vfio_ccw_pin_invalidations_total",
        "Pinned frames that were unpinned since their memory was to go.",
    ),
    Family::counter(
        "vfio_ccw_pin_failures_total",
        "Times that pinning failed and a program ran unpinned all the same.",
    ),
];

/// What the pool knows, as series. They hold it weakly: a registry may outlive its service.
fn register_pool(registry: &Registry, pool: &Arc<Pool>) -> Result<(), SeriesError> {
    let weak = Arc::downgrade(pool);
    registry.rows(&POOL_SUMS, move || {
        let row = |pool: Arc<Pool>| {
            let values = [pool.invalidations(), pool.failures()].map(|sum| sum as f64);
            Row { labels: Vec::new(), values: values.into() }
        };
        weak.upgrade().map(row).into_iter().collect()
    })?;
    let gauge = |name: &str, help: &str, value: fn(&Pool) -> u64| {
        let pool: Weak<Pool> = Arc::downgrade(pool);
        registry.gauge(name, help, move || pool.upgrade().map_or(0.0, |pool| value(&pool) as f64))
    };
    gauge("vfio_ccw_pinned_bytes", "Guest memory pinned now.", Pool::pinned_bytes)?;
    gauge(
        "vfio_ccw_pinned_peak_bytes",
        "Most guest memory that was pinned at one time.",
        Pool::peak_bytes,
    )?;
    gauge("vfio_ccw_windows", "Pieces of guest memory that devices see.", |pool| {
        pool.pieces() as u64
    })?;
    gauge("vfio_ccw_pin_budget_bytes", "Guest memory that may be pinned.", Pool::budget_bytes)?;
    for of_budget in OTHER_BUDGETS {
        let pool = Arc::downgrade(pool);
        let estimate = move || {
            let pool = pool.upgrade()?;
            pool.hit_rate_at((pool.budget_bytes() as f64 * of_budget) as u64)
        };
        registry.gauge_with(
            "vfio_ccw_pin_estimated_hit_ratio",
            "Share of pages that a budget so many times as large would have found pinned, by the reuse \
             distances seen lately; NaN before enough was seen.",
            &[("of_budget", &of_budget.to_string())],
            move || estimate().unwrap_or(f64::NAN),
        )?;
    }
    gauge(
        "vfio_ccw_pin_waiting_programs",
        "Programs waiting for room in the pin budget.",
        |pool| pool.waiting() as u64,
    )?;
    Ok(())
}
