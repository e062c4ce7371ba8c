//! An engine, ready to be driven, and what it knows afterwards.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use vfio_ccw::backend::kernel::{AddressSpace, Location};
use vfio_ccw::backend::remote::{self, RemoteDevice};
use vfio_ccw::engine::{DiskEngine, ProgramEngine};
use vfio_ccw::volume::{BLOCK, Volume};
use vfio_ccw::{DeviceSpec, Service, ServiceBuilder};
use vfio_ccw_load::job_file::{JobSpec, Rw};
use vfio_ccw_load::workload::{PAGE, SECTOR};
use vfio_ccw_load::{Access, Buffers, Engine, Workload};
use vfio_ccw_metrics::{DeviceClass, Registry};
use vfio_ccw_pinning::GuestMap;

use super::{EngineKind, Plan, ProgramKind, Refused, Shape};
use crate::baseline::echo::Echo;
use crate::baseline::sync_loop::{SyncLoop, Waiting};
use crate::ratio::FieldError;
use crate::service_load::guest_memory;

/// Bytes of a scratch volume where `size` says nothing.
const SCRATCH: u64 = 64 << 20;

/// Guest memory of each subchannel that data is transferred to and from, at least.
const BUFFERS: u64 = 64 << 10;

/// Most that a baseline pins at a time, where `budget` says nothing.
const BUDGET: u64 = 64 << 20;

/// How long a disk may take to say how large it is.
const PATIENCE: Duration = Duration::from_secs(10);

/// One guest of a job: its engine, and the requests for it.
pub struct Driven {
    // Before the service: its drop detaches the subchannels.
    engine: Box<dyn Engine>,
    service: Option<Service>,
    workload: Workload,
    guest_bytes: u64,
    moved: u32,
    _scratch: Option<tempfile::NamedTempFile>,
}

impl std::fmt::Debug for Driven {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driven").field("workload", &self.workload).finish_non_exhaustive()
    }
}

impl Driven {
    /// Guest number `number` of the job that `plan` is for. Its service tells `registry` what it measures.
    ///
    /// # Errors
    /// [`Refused`] where the volume or the devices are not what the job asks for; what cannot be had.
    pub fn new(plan: &Plan<'_>, number: u32, registry: Registry) -> Result<Self, FieldError> {
        match plan.program {
            ProgramKind::Disk => disks(plan, number, registry),
            ProgramKind::Shape(shape) => programs(plan, shape, number, registry),
        }
    }

    /// What is driven, and with what.
    pub fn parts(&mut self) -> (&mut dyn Engine, &Workload) {
        (&mut *self.engine, &self.workload)
    }

    /// The service, which baselines do not have.
    pub fn service(&self) -> Option<&Service> {
        self.service.as_ref()
    }

    /// Memory of the guest.
    pub fn guest_bytes(&self) -> u64 {
        self.guest_bytes
    }

    /// Bytes that one request moves.
    pub fn moved(&self) -> u32 {
        self.moved
    }
}

fn builder(plan: &Plan<'_>, slots: usize, registry: Registry) -> ServiceBuilder {
    let builder = Service::builder().subchannels(slots).mode(plan.mode).wait(plan.wait);
    let builder = builder.registry(registry);
    match plan.spec.budget {
        Some(bytes) => builder.budget(bytes),
        None => builder,
    }
}

/// Where disks are.
enum Disks {
    Here(Arc<Volume>),
    Elsewhere(Vec<DeviceSpec>, Option<AddressSpace>),
}

fn disks(plan: &Plan<'_>, number: u32, registry: Registry) -> Result<Driven, FieldError> {
    let spec = plan.spec;
    let slots = spec.iodepth as usize;
    let base = DiskEngine::buffers_base(slots);
    let bytes_per_slot = u64::from(spec.block_bytes).next_multiple_of(PAGE).max(BUFFERS);
    let guest_bytes = (base + bytes_per_slot * slots as u64).next_multiple_of(1 << 20);

    let (disks, scratch) = match plan.kind {
        EngineKind::Remote => {
            let path = plan.filename()?;
            let sockets = sockets(spec, path)?;
            let connect = |socket: &PathBuf| connect(socket, DeviceClass::Fba);
            let devices = sockets.iter().map(connect).collect::<Result<_, FieldError>>()?;
            (Disks::Elsewhere(devices, None), None)
        }
        EngineKind::Kernel => {
            let (space, devices) = kernel(spec, plan.filename()?)?;
            (Disks::Elsewhere(devices, Some(space)), None)
        }
        _ => match &spec.filename {
            Some(path) => {
                let volume = Volume::open(path, spec.rw == Rw::Read)?;
                (Disks::Here(Arc::new(volume)), None)
            }
            None => {
                let bytes = spec.size.unwrap_or(SCRATCH).next_multiple_of(SECTOR.into());
                let scratch = scratch(bytes)?;
                (Disks::Here(Arc::new(Volume::open(scratch.path(), false)?)), Some(scratch))
            }
        },
    };
    let memory = guest_memory(guest_bytes)?;
    let builder = builder(plan, slots, registry);
    let (service, engine, workload) = match disks {
        Disks::Here(volume) => {
            let bytes = checked_size(spec, volume.bytes())?;
            // Known now, not after everything is set up.
            let workload = workload(plan, number, bytes, base, bytes_per_slot);
            check_workload(spec, &workload, slots)?;
            let service = builder.build(memory)?;
            let engine = DiskEngine::attach(&service, &volume, slots)?;
            (service, engine, workload)
        }
        Disks::Elsewhere(devices, space) => {
            let service = match space {
                Some(space) => builder.address_space(space).build(memory)?,
                None => builder.build(memory)?,
            };
            let mut engine = DiskEngine::over(&service, devices.into_iter())?;
            let blocks = (0..slots)
                .map(|slot| engine.blocks(slot, PATIENCE))
                .collect::<Result<Vec<u32>, _>>()?;
            let first = blocks[0];
            if let Some(other) = blocks.iter().find(|blocks| **blocks != first) {
                let reason = format!(
                    "filename: disks of {first} and of {other} blocks, which are not one volume; name sockets of one"
                );
                return Err(Refused::new(spec, "filename", reason).into());
            }
            let bytes = checked_size(spec, u64::from(first) * BLOCK)?;
            let workload = workload(plan, number, bytes, base, bytes_per_slot);
            check_workload(spec, &workload, slots)?;
            (service, engine, workload)
        }
    };
    Ok(Driven {
        engine: Box::new(engine),
        service: Some(service),
        workload,
        guest_bytes,
        moved: spec.block_bytes,
        _scratch: scratch,
    })
}

fn workload(plan: &Plan<'_>, number: u32, bytes: u64, base: u64, bytes_per_slot: u64) -> Workload {
    let spec = plan.spec;
    Workload {
        read_percent: spec.read_percent(),
        access: spec.access(),
        buffers: Buffers { base, bytes_per_slot, access: Access::Uniform },
        seed: spec.seed.wrapping_add(number.into()),
        ..Workload::new(bytes, spec.block_bytes)
    }
}

/// The bytes of the volume that are used.
fn checked_size(spec: &JobSpec, volume: u64) -> Result<u64, Refused> {
    match spec.size {
        Some(size) if size > volume => {
            let what = spec
                .filename
                .as_ref()
                .map_or_else(|| "the scratch volume".to_owned(), |path| path.display().to_string());
            let reason =
                format!("size={size}: {what} has {volume} bytes; give less, or a larger image");
            Err(Refused::new(spec, "size", reason))
        }
        size => Ok(size.unwrap_or(volume)),
    }
}

/// A volume too small for so many subchannels.
fn check_workload(spec: &JobSpec, workload: &Workload, slots: usize) -> Result<(), Refused> {
    let option = if spec.size.is_some() { "size" } else { "iodepth" };
    match workload.generator(slots) {
        Ok(_) => Ok(()),
        Err(error) => Err(Refused::new(spec, option, format!("iodepth={slots}: {error}"))),
    }
}

/// Programs that stand in guest memory.
fn programs(
    plan: &Plan<'_>,
    shape: Shape,
    number: u32,
    registry: Registry,
) -> Result<Driven, FieldError> {
    let spec = plan.spec;
    let slots = spec.iodepth as usize;
    let guest_bytes = shape.memory(slots).next_multiple_of(1 << 20);
    let memory = guest_memory(guest_bytes)?;
    let map = Arc::new(GuestMap::new(memory.clone())?);
    let orbs = (0..slots)
        .map(|slot| shape.write(&map, slot, slots))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| format!("no room for the programs in {guest_bytes} bytes"))?;
    let budget = spec.budget.unwrap_or(BUDGET);
    let builder = builder(plan, slots, registry);
    let of_service = |builder: ServiceBuilder, devices: Vec<DeviceSpec>| -> Result<_, FieldError> {
        let service = builder.build(memory)?;
        let engine = ProgramEngine::attach(&service, devices.into_iter(), orbs.clone())?;
        Ok((Box::new(engine) as Box<dyn Engine>, Some(service)))
    };
    let (engine, service): (Box<dyn Engine>, _) = match plan.kind {
        EngineKind::SyncEpoll => (Box::new(SyncLoop::new(map, orbs, Waiting::Epoll)?), None),
        EngineKind::PerRequestPin => {
            let engine = SyncLoop::new(map, orbs, Waiting::Epoll)?.pinning(budget)?;
            (Box::new(engine), None)
        }
        EngineKind::QemuShape => {
            let engine = SyncLoop::new(map, orbs, Waiting::Ppoll)?.pinning(budget)?;
            (Box::new(engine), None)
        }
        EngineKind::NullTranslate => (Box::new(Echo::new(map, orbs, plan.wait)?), None),
        EngineKind::Remote => {
            let connect = |socket: &PathBuf| connect(socket, DeviceClass::Null);
            let sockets = sockets(spec, plan.filename()?)?;
            let devices = sockets.iter().map(connect).collect::<Result<_, FieldError>>()?;
            of_service(builder, devices)?
        }
        EngineKind::Kernel => {
            let (space, devices) = kernel(spec, plan.filename()?)?;
            of_service(builder.address_space(space), devices)?
        }
        EngineKind::InProcess | EngineKind::Null => {
            of_service(builder, (0..slots).map(|_| shape.device()).collect())?
        }
    };
    let workload = Workload {
        seed: spec.seed.wrapping_add(number.into()),
        ..Workload::new(u64::from(SECTOR) * slots as u64, SECTOR)
    };
    Ok(Driven { engine, service, workload, guest_bytes, moved: shape.bytes(), _scratch: None })
}

/// The first sockets at `path`, one for each subchannel.
fn sockets(spec: &JobSpec, path: &Path) -> Result<Vec<PathBuf>, Refused> {
    let (at, wanted) = (path.display(), spec.iodepth as usize);
    let refused = |option, reason: String| Refused::new(spec, option, reason);
    let mut sockets = remote::sockets(path).map_err(|error| {
        refused(
            "filename",
            format!("filename={at}: {error}; start 'vfio-ccw serve --device fba:FILE,count={wanted} --socket-dir {at}'"),
        )
    })?;
    if sockets.len() < wanted {
        let there = sockets.len();
        return Err(refused(
            "iodepth",
            format!(
                "iodepth={wanted}: at {at} there are {there} devices; give iodepth={there}, or serve more with count={wanted}"
            ),
        ));
    }
    sockets.truncate(wanted);
    Ok(sockets)
}

fn connect(socket: &Path, class: DeviceClass) -> Result<DeviceSpec, FieldError> {
    Ok(DeviceSpec::remote(RemoteDevice::connect(socket)?.with_class(class)))
}

/// Devices of the kernel's, in one address space.
fn kernel(spec: &JobSpec, names: &Path) -> Result<(AddressSpace, Vec<DeviceSpec>), FieldError> {
    let refused = |option, reason: String| Refused::new(spec, option, reason);
    let names = names.to_str().unwrap_or_default();
    let wanted = spec.iodepth as usize;
    let locations = names
        .split(',')
        .map(|name| Location::find(name.trim()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| refused("filename", format!("filename={names}: {error}")))?;
    if locations.len() != wanted {
        let named = locations.len();
        let reason = format!(
            "iodepth={wanted}: filename names {named} devices, each of which runs one program; give iodepth={named}"
        );
        return Err(refused("iodepth", reason).into());
    }
    // The character devices where the kernel has them, or else group and container.
    let space = match locations.iter().all(|location| location.cdev.is_some()) {
        true => AddressSpace::iommufd().or_else(|_| AddressSpace::container())?,
        false => AddressSpace::container()?,
    };
    let devices = locations.iter().map(|location| Ok(DeviceSpec::kernel(space.open(location)?)));
    let devices = devices.collect::<Result<_, FieldError>>()?;
    Ok((space, devices))
}

/// A volume of `bytes`. Written, not sparse: a hole reads from one page of zeros, which no cache misses.
pub(crate) fn scratch(bytes: u64) -> Result<tempfile::NamedTempFile, FieldError> {
    let folder = std::env::temp_dir();
    let failed = |error: std::io::Error| {
        let folder = folder.display();
        format!(
            "no scratch volume of {bytes} bytes in {folder}: {error}; set TMPDIR or give a smaller size"
        )
    };
    let mut file =
        tempfile::Builder::new().prefix("vfio-ccw-bench-").tempfile_in(&folder).map_err(failed)?;
    let mut piece = vec![0; 1 << 20];
    let mut left = bytes;
    for number in 1u64.. {
        let now = left.min(piece.len() as u64) as usize;
        if now == 0 {
            break;
        }
        piece[..now].fill(number as u8 | 1);
        file.write_all(&piece[..now]).map_err(failed)?;
        left -= now as u64;
    }
    Ok(file)
}
