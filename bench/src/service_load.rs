//! A service under a load of short programs, driven from one thread as a VMM's would be.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use vfio_ccw::architecture::{Ccw, Orb};
use vfio_ccw::engine::DiskEngine;
use vfio_ccw::volume::Volume;
use vfio_ccw::{
    Completions, Delivery, DeviceSpec, Mode, Service, ServiceBuilder, Subchannel, WaitStrategy,
};
use vfio_ccw_load::closed_loop::{self, ClosedLoop, Limit, LoadReport};
use vfio_ccw_load::random::SplitMix64;
use vfio_ccw_load::workload::PAGE;
use vfio_ccw_load::{
    Access, Buffers, Completion, Direction, Engine, EngineError, Quiet, Request, STALL_LIMIT,
    Workload,
};
use vfio_ccw_metrics::Registry;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use crate::engines::scratch;
use crate::ratio::FieldError;

/// Guest memory in bytes, where nothing else is asked for.
const MEMORY: usize = 64 << 20;

/// Bytes that each program writes: one page, direct.
const DATA: u32 = 4096;

/// Looks at an empty completion ring before the driving thread sleeps: some microseconds.
const LOOKS: u32 = 64;

/// Pauses between two looks: a microsecond or so.
const PAUSES: u32 = 24;

/// Memory of a guest: in a file, so that another process can map it.
pub(crate) fn guest_memory(bytes: u64) -> Result<Arc<GuestMemoryMmap>, FieldError> {
    let memfd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&memfd, bytes)?;
    let range = (GuestAddress(0), usize::try_from(bytes)?, Some(FileOffset::new(memfd.into(), 0)));
    Ok(Arc::new(GuestMemoryMmap::from_ranges_with_files([range])?))
}

/// Null devices with one program each: WRITE 4 KiB, everything on (translation, pool, metrics).
#[derive(Debug)]
pub struct NullLoad {
    // Before the service: its drop detaches them.
    subchannels: Vec<(Subchannel, Orb)>,
    completions: Completions,
    delivery: Delivery,
    service: Service,
}

impl NullLoad {
    /// `count` subchannels on one shard.
    ///
    /// # Errors
    /// Where the service does not start.
    pub fn new(count: usize) -> Result<Self, FieldError> {
        Self::among(count, 0)
    }

    /// The same, and behind them `idle` subchannels that nothing is started on.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn among(count: usize, idle: usize) -> Result<Self, FieldError> {
        let mut load = Self::with(Service::builder().subchannels(count + idle), count)?;
        load.attach_idle(idle)?;
        Ok(load)
    }

    /// `count` subchannels of the service that `builder` describes.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with(builder: ServiceBuilder, count: usize) -> Result<Self, FieldError> {
        Self::of(builder, vec![DeviceSpec::Null; count])
    }

    /// These null devices on the service that `builder` describes.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of(builder: ServiceBuilder, devices: Vec<DeviceSpec>) -> Result<Self, FieldError> {
        let count = devices.len();
        let memory = guest_memory(MEMORY as u64)?;
        let service = builder.budget(MEMORY as u64).build(memory.clone())?;
        let (delivery, completions) = Completions::ring(count.next_power_of_two())?;
        let mut subchannels = Vec::with_capacity(count);
        for (index, device) in (0..).zip(devices) {
            // A page of programs, then a page of data for each subchannel. Programs begin anywhere in
            // their page: at its start they would all compete for one set of each cache.
            let program = index * 2 * DATA + index * 64 % DATA;
            let data = (index * 2 + 1) * DATA;
            let write = Ccw::new(0x01, data, DATA as u16);
            memory.write_slice(&write.to_format_1(), GuestAddress(program.into()))?;
            let subchannel = service.attach(device, delivery.clone())?;
            subchannels.push((subchannel, Orb::new(program)));
        }
        Ok(Self { subchannels, completions, delivery, service })
    }

    /// Guest address behind all programs and data.
    pub const ROOM: u32 = MEMORY as u32 - 0x1000;

    /// Writes a program of another device into guest memory.
    ///
    /// # Errors
    /// Where there is no memory.
    pub fn put(&self, at: u32, ccws: &[Ccw]) -> Result<(), FieldError> {
        for (at, ccw) in (u64::from(at)..).step_by(8).zip(ccws) {
            if !self.service.memory().write(at, &ccw.to_format_1()) {
                return Err(format!("no guest memory at {at:#x}").into());
            }
        }
        Ok(())
    }

    /// Attaches null devices that nothing is started on.
    ///
    /// # Errors
    /// Where the service has no room for them.
    pub fn attach_idle(&mut self, count: usize) -> Result<(), FieldError> {
        for _ in 0..count {
            self.attach(DeviceSpec::Null)?;
        }
        Ok(())
    }

    /// Attaches another device, with results to the same ring.
    ///
    /// # Errors
    /// Where the service has no room for it.
    pub fn attach(&self, device: DeviceSpec) -> Result<Subchannel, FieldError> {
        Ok(self.service.attach(device, self.delivery.clone())?)
    }

    /// What the service measures.
    pub fn registry(&self) -> &Registry {
        self.service.registry()
    }

    /// How the driving thread waits for completions.
    pub fn wait_by(&mut self, strategy: WaitStrategy) {
        self.completions.wait_by(strategy);
    }

    /// Runs one program after the other on the first subchannel and returns how long each took, from
    /// before its submission to its completion in this thread's hands.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn round_trips(&mut self, count: usize) -> Result<Vec<Duration>, FieldError> {
        let (subchannel, orb) = &self.subchannels[0];
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let start = Instant::now();
            subchannel.submit(orb, 0)?;
            let mut clean = false;
            self.completions.wait(None)?;
            self.completions.reap(1, |completion| clean = completion.irb.scsw.is_clean_end());
            times.push(start.elapsed());
            if !clean {
                return Err("a program did not end cleanly".into());
            }
        }
        Ok(times)
    }

    /// Runs `ios` programs, one under way on each subchannel, and returns how long each took.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn latencies(&mut self, ios: usize) -> Result<Vec<Duration>, FieldError> {
        let mut started = vec![Instant::now(); self.subchannels.len()];
        let mut times = Vec::with_capacity(ios + self.subchannels.len());
        for (index, (subchannel, orb)) in self.subchannels.iter().enumerate() {
            subchannel.submit(orb, index as u64)?;
        }
        let mut under_way = self.subchannels.len();
        while under_way > 0 {
            self.completions.wait(None)?;
            let mut failed = None;
            self.completions.reap(usize::MAX, |completion| {
                let index = completion.user_data as usize;
                let now = Instant::now();
                times.push(now - started[index]);
                if times.len() >= ios {
                    under_way -= 1;
                    return;
                }
                let (subchannel, orb) = &self.subchannels[index];
                started[index] = now;
                if let Err(error) = subchannel.submit(orb, completion.user_data) {
                    failed = Some(error);
                }
            });
            if let Some(error) = failed {
                return Err(error.into());
            }
        }
        Ok(times)
    }

    /// Starts a program on each subchannel, of devices that do nothing any more, then calls `end`, which ends
    /// the devices, and waits until no program is under way.
    ///
    /// # Errors
    /// Where a submission is refused, or all programs end well.
    pub fn lose(&mut self, end: impl FnOnce() -> std::io::Result<()>) -> Result<(), FieldError> {
        for (index, (subchannel, orb)) in self.subchannels.iter().enumerate() {
            subchannel.submit(orb, index as u64)?;
        }
        // Until the shard has handed them over: it sleeps when there is nothing else to do.
        std::thread::sleep(Duration::from_millis(20));
        end()?;
        let (mut ended, mut clean) = (0, 0);
        while ended < self.subchannels.len() {
            self.completions.wait(None)?;
            ended += self.completions.reap(usize::MAX, |completion| {
                clean += usize::from(completion.irb.scsw.is_clean_end());
            });
        }
        // Some may have been on their way back already: a signal takes its time.
        if clean == ended {
            return Err(format!("all {clean} programs ended well on devices that were gone").into());
        }
        Ok(())
    }

    /// Runs `ios` programs, one under way on each subchannel, and returns the time they took.
    ///
    /// # Errors
    /// Where a submission is refused or a program does not end cleanly.
    pub fn run(&mut self, ios: u64) -> Result<Duration, FieldError> {
        let start = Instant::now();
        let mut submitted = 0;
        for (index, (subchannel, orb)) in self.subchannels.iter().enumerate() {
            subchannel.submit(orb, index as u64)?;
            submitted += 1;
        }
        let (mut done, mut odd, mut empty) = (0, 0, 0);
        while done < submitted {
            let subchannels = &self.subchannels;
            let mut failed = None;
            let reaped = self.completions.reap(usize::MAX, |completion| {
                odd += u64::from(!completion.irb.scsw.is_clean_end());
                if submitted < ios {
                    let (subchannel, orb) = &subchannels[completion.user_data as usize];
                    match subchannel.submit(orb, completion.user_data) {
                        Ok(()) => submitted += 1,
                        Err(error) => failed = Some(error),
                    }
                }
            });
            done += reaped as u64;
            if let Some(error) = failed {
                return Err(error.into());
            }
            if reaped > 0 {
                empty = 0;
            } else if empty < LOOKS {
                empty += 1;
                // Let some gather: a look at every completion takes the ring's lines away from the
                // shard each time.
                (0..PAUSES).for_each(|_| std::hint::spin_loop());
            } else {
                // The shard may be waiting for this very core.
                self.completions.wait(None)?;
            }
        }
        let elapsed = start.elapsed();
        if odd > 0 {
            return Err(format!("{odd} of {done} programs did not end cleanly").into());
        }
        Ok(elapsed)
    }
}

/// Bytes of one transfer of a [`DiskLoad`], and of the pages that its buffers are.
pub const BLOCK: u32 = 4096;

/// Bytes of the volume of a [`DiskLoad`]: a scratch file whose data is all in the host's page cache,
/// so that a read is a copy and the medium is not what is measured.
pub const VOLUME: u64 = 64 << 20;

/// What a [`DiskLoad`] is made of: a guest, how much of it is pinned and when, and what is transferred.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DiskShape {
    /// Disks, each with one request under way.
    pub subchannels: usize,
    /// Guest memory in bytes.
    pub guest: u64,
    /// Bytes of guest memory that data is transferred to and from. They are pages chosen at random
    /// from all of the guest's, as those of a guest's page cache are, and shared out among the disks.
    pub working_set: u64,
    /// When guest memory is pinned.
    pub mode: Mode,
    /// Most bytes that are pinned at one time. Mode pinned always takes the whole guest.
    pub budget: u64,
    /// How requests choose among a disk's blocks, and among its pages of the working set.
    pub access: Access,
    /// Share of reads, 0 to 100.
    pub read_percent: u8,
    /// Seed of all draws.
    pub seed: u64,
}

impl DiskShape {
    /// `subchannels` disks that read at random, in mode cached, with a tenth of the guest as budget
    /// and nine tenths of that as working set.
    pub fn new(subchannels: usize, guest: u64, seed: u64) -> Self {
        let budget = guest / 10;
        Self {
            subchannels,
            guest,
            working_set: budget / 10 * 9,
            mode: Mode::Cached,
            budget,
            access: Access::Uniform,
            read_percent: 100,
            seed,
        }
    }

    /// Most bytes of working set that the guest has room for beside the disks' programs.
    pub fn room(&self) -> u64 {
        let programs = DiskEngine::buffers_base(self.subchannels);
        let room = self.guest.saturating_sub(programs);
        room - room % (self.subchannels.max(1) as u64 * PAGE)
    }

    fn workload(&self) -> Workload {
        Workload {
            read_percent: self.read_percent,
            access: self.access,
            buffers: Buffers {
                base: 0,
                bytes_per_slot: self.working_set / self.subchannels.max(1) as u64 / PAGE * PAGE,
                access: self.access,
            },
            seed: self.seed,
            ..Workload::new(VOLUME, BLOCK)
        }
    }
}

/// FBA disks on a scratch volume under transfers of 4 KiB.
#[derive(Debug)]
pub struct DiskLoad {
    // Before the service: its drop detaches the disks.
    engine: Scattered,
    workload: Workload,
    service: Service,
    /// What the volume is on, where it is this load's own.
    _scratch: Option<NamedTempFile>,
}

impl DiskLoad {
    /// `count` disks under random reads and writes, all of whose pages stay pinned.
    ///
    /// # Errors
    /// Where there is no scratch space or the service does not start.
    pub fn new(count: usize, seed: u64) -> Result<Self, FieldError> {
        let guest = MEMORY as u64;
        let shape = DiskShape {
            working_set: count as u64 * (64 << 10),
            budget: guest,
            read_percent: 70,
            ..DiskShape::new(count, guest, seed)
        };
        Self::of(&shape)
    }

    /// The load that `shape` describes, with nothing of it in the pin cache yet.
    ///
    /// # Errors
    /// Where there is no scratch space, the working set exceeds the guest's room, or the service does
    /// not start: in mode pinned also where the process may not lock the whole guest.
    pub fn of(shape: &DiskShape) -> Result<Self, FieldError> {
        let scratch = scratch(VOLUME)?;
        let load = Self::on(scratch.path(), shape)?;
        Ok(Self { _scratch: Some(scratch), ..load })
    }

    /// The same on an image of at least [`VOLUME`] bytes.
    ///
    /// # Errors
    /// As [`of`](Self::of), and where the image cannot be opened or is smaller.
    pub fn on(image: &Path, shape: &DiskShape) -> Result<Self, FieldError> {
        let room = shape.room();
        if shape.working_set > room {
            return Err(format!(
                "a working set of {} bytes in a guest of {}, which has room for {room} beside the programs of {} subchannels: give more memory or lower the working set",
                shape.working_set, shape.guest, shape.subchannels
            )
            .into());
        }
        let workload = shape.workload();
        // Known now, not after everything is set up.
        workload.generator(shape.subchannels)?;

        let volume = Arc::new(Volume::open(image, false)?);
        if volume.bytes() < VOLUME {
            let (path, bytes) = (image.display(), volume.bytes());
            return Err(format!("image {path}: {bytes} bytes are less than {VOLUME}").into());
        }
        let range = (GuestAddress(0), usize::try_from(shape.guest)?);
        let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[range])?);
        let builder = Service::builder().subchannels(shape.subchannels).mode(shape.mode);
        let service = match shape.mode {
            Mode::Pinned => builder.build(memory)?,
            Mode::OnDemand | Mode::Cached => builder.budget(shape.budget).build(memory)?,
        };
        let engine = DiskEngine::attach(&service, &volume, shape.subchannels)?;
        let engine = Scattered::new(engine, shape);
        Ok(Self { engine, workload, service, _scratch: None })
    }

    /// Reads into every page of the working set once, so that none is new to the host any more, and
    /// that the pin cache has met them all.
    ///
    /// # Errors
    /// Where a request fails or is lost.
    pub fn warm_up(&mut self) -> Result<(), FieldError> {
        let (slots, buffers) = (self.engine.slots(), self.workload.buffers);
        let mut done = Vec::with_capacity(slots);
        for page in 0..buffers.bytes_per_slot / PAGE {
            let request = |slot| Request {
                slot,
                direction: Direction::Read,
                offset: (page * slots as u64 + slot as u64) * PAGE % VOLUME,
                bytes: BLOCK,
                buffer: buffers.address(slot, page, BLOCK),
            };
            let requests: Vec<Request> = (0..slots).map(request).collect();
            self.engine.submit(&requests)?;
            done.clear();
            while done.len() < slots {
                let before = done.len();
                self.engine.reap(&mut done, Some(STALL_LIMIT))?;
                if done.len() == before {
                    return Err(format!("{} requests were lost", slots - before).into());
                }
            }
            if let Some(failure) = done.iter().find_map(|completion| completion.outcome.err()) {
                return Err(format!("a read of page {page} failed: {failure}").into());
            }
        }
        Ok(())
    }

    /// Runs `ios` requests.
    ///
    /// # Errors
    /// Where a request fails or is lost.
    pub fn run(&mut self, ios: u64) -> Result<(), FieldError> {
        let workload = self.workload.clone();
        self.drive(ClosedLoop { limit: Limit::ios(ios), ..ClosedLoop::new(workload) })?;
        Ok(())
    }

    /// Runs requests drawn from `seed` for `time`.
    ///
    /// # Errors
    /// Where a request fails or is lost.
    pub fn run_for(&mut self, time: Duration, seed: u64) -> Result<LoadReport, FieldError> {
        let workload = Workload { seed, ..self.workload.clone() };
        self.drive(ClosedLoop { limit: Limit::duration(time), ..ClosedLoop::new(workload) })
    }

    /// The service under load.
    pub fn service(&self) -> &Service {
        &self.service
    }

    fn drive(&mut self, job: ClosedLoop) -> Result<LoadReport, FieldError> {
        let stop = AtomicBool::new(false);
        let report = closed_loop::run(&mut self.engine, &job, &mut Quiet, &stop)?;
        if !report.is_clean() {
            return Err(format!(
                "of {} requests {} failed, {} were lost, {} completed twice, {} read wrong data",
                report.submitted, report.errors, report.lost, report.duplicate, report.miscompares
            )
            .into());
        }
        Ok(report)
    }
}

/// Disks whose buffers are pages all over guest memory, in no order.
///
/// The load generator counts buffers from 0 in one row; each of these pages is given a place here.
#[derive(Debug)]
struct Scattered {
    disks: DiskEngine,
    /// Guest address of the first page that buffers may be in.
    base: u64,
    /// Page above `base` that each page of the row is.
    places: Vec<u32>,
    /// Requests on their way, with the addresses that they really have.
    placed: Vec<Request>,
}

impl Scattered {
    fn new(disks: DiskEngine, shape: &DiskShape) -> Self {
        let base = DiskEngine::buffers_base(shape.subchannels);
        let pages = u32::try_from(shape.guest.saturating_sub(base) / PAGE).unwrap_or(u32::MAX);
        let mut places: Vec<u32> = (0..pages).collect();
        // Not the stream that requests are drawn from.
        let mut random = SplitMix64::stream(shape.seed, u64::MAX);
        for place in (1..places.len()).rev() {
            places.swap(place, random.below(place as u64 + 1) as usize);
        }
        let placed = Vec::with_capacity(disks.slots());
        Self { disks, base, places, placed }
    }

    fn place(&self, buffer: u64) -> u64 {
        self.base + u64::from(self.places[(buffer / PAGE) as usize]) * PAGE
    }
}

impl Engine for Scattered {
    fn slots(&self) -> usize {
        self.disks.slots()
    }

    fn submit(&mut self, requests: &[Request]) -> Result<(), EngineError> {
        let mut placed = std::mem::take(&mut self.placed);
        placed.clear();
        placed.extend(
            requests
                .iter()
                .map(|request| Request { buffer: self.place(request.buffer), ..*request }),
        );
        let result = self.disks.submit(&placed);
        self.placed = placed;
        result
    }

    fn reap(
        &mut self,
        done: &mut Vec<Completion>,
        wait: Option<Duration>,
    ) -> Result<(), EngineError> {
        self.disks.reap(done, wait)
    }

    fn write_guest(&self, gpa: u64, bytes: &[u8]) -> Result<(), EngineError> {
        self.disks.write_guest(self.place(gpa), bytes)
    }

    fn read_guest(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), EngineError> {
        self.disks.read_guest(self.place(gpa), bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use vfio_ccw::ServiceError;

    fn shape(mode: Mode) -> DiskShape {
        let shape = DiskShape::new(4, 8 << 20, 1);
        DiskShape { mode, working_set: 512 << 10, read_percent: 50, ..shape }
    }

    #[test]
    fn data_goes_to_the_right_place_in_every_mode() {
        for mode in Mode::ALL {
            let shape = shape(mode);
            let mut load = match DiskLoad::of(&shape) {
                Ok(load) => load,
                Err(error) => match error.downcast::<ServiceError>() {
                    Ok(error) if matches!(*error, ServiceError::Memlock { .. }) => {
                        println!("SKIPPED: {error}");
                        return;
                    }
                    other => panic!("{other:?}"),
                },
            };
            let limit = Limit::ios(20_000);
            let job = ClosedLoop { limit, verify: true, ..ClosedLoop::new(shape.workload()) };
            let report = load.drive(job).unwrap();
            assert_eq!((report.ios, report.miscompares), (20_000, 0), "{mode}");
            assert!(report.checked > 1_000, "{mode}: {} reads were checked", report.checked);
            let pinned = load.service().pool().peak_bytes();
            let most = if mode == Mode::Pinned { shape.guest } else { shape.budget };
            assert!(pinned > 0 && pinned <= most, "{mode}: {pinned} bytes");
        }
    }

    #[test]
    fn warming_up_touches_the_whole_working_set() {
        let shape = shape(Mode::Cached);
        let mut load = DiskLoad::of(&shape).unwrap();
        load.warm_up().unwrap();
        let programs = shape.subchannels as u64 * PAGE;
        assert_eq!(load.service().pool().pinned_bytes(), shape.working_set + programs);
    }

    #[test]
    fn buffers_are_distinct_pages_of_the_guest_in_no_order() {
        let shape = shape(Mode::Cached);
        let load = DiskLoad::of(&shape).unwrap();
        let pages = shape.working_set / PAGE;
        let places: Vec<u64> = (0..pages).map(|page| load.engine.place(page * PAGE)).collect();
        assert_eq!(places.iter().collect::<HashSet<_>>().len() as u64, pages);
        let base = DiskEngine::buffers_base(shape.subchannels);
        assert!(places.iter().all(|place| (base..shape.guest).contains(place)));
        let adjacent = places.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) == PAGE).count();
        assert!(adjacent < 8, "{adjacent} of {pages} pages are next to each other");
    }

    #[test]
    fn an_image_that_is_too_small_is_refused() {
        let image = NamedTempFile::new().unwrap();
        image.as_file().set_len(VOLUME - 512).unwrap();
        let error = DiskLoad::on(image.path(), &shape(Mode::Cached)).unwrap_err().to_string();
        assert!(error.contains(&(VOLUME - 512).to_string()), "{error}");
    }

    #[test]
    fn a_working_set_without_room_is_refused() {
        let small = DiskShape { working_set: 8 << 20, ..shape(Mode::Cached) };
        let error = DiskLoad::of(&small).unwrap_err().to_string();
        assert!(error.contains("8388608") && error.contains("give more memory"), "{error}");
        let none = DiskShape { working_set: 0, ..small };
        assert!(DiskLoad::of(&none).is_err());
    }
}
