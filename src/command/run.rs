//! The main job: verify a whole volume through channel programs, then load it and say where the
//! time went.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vfio_ccw::engine::{DiskEngine, MAX_TRANSFER, stage_row};
use vfio_ccw::volume::Volume;
use vfio_ccw::{Mode, Service};
use vfio_ccw_load::closed_loop::{self, ClosedLoop, Limit};
use vfio_ccw_load::units::Bytes;
use vfio_ccw_load::verify::{self, WholeVolume};
use vfio_ccw_load::{
    Access, BudgetRow, Buffers, JobReport, LiveLine, LoadError, Progress, Quiet, Workload,
    WorkloadError,
};
use vfio_ccw_metrics::{CounterKind, Endpoint, EndpointError, Registry, Stage, Totals};
use vfio_ccw_pinning::Sizing;

use super::disks::{Disks, Remote};
use super::kernel::{KernelLoad, Reach};
use super::options::{MetricsAddress, ServiceOptions, access, bytes};
use super::{Failure, guest, interrupt, say, tell};

/// Where metrics are served if no address is given.
const METRICS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9464));

/// Most bytes of one transfer of the pass over the whole volume, and the least that is tried.
const VERIFY_BLOCK: u32 = 64 << 10;
const LEAST_VERIFY_BLOCK: u32 = 4 << 10;

/// Guest memory in bytes, where no size is given and no more is needed.
const MEMORY: u64 = 256 << 20;

/// Options of the main job.
#[derive(Debug, clap::Args)]
pub(super) struct Job {
    /// Use this raw image instead of a scratch volume; it is only read, unless --overwrite is given.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
    /// Let the job write on the image, or on the disks of the server: what is on them is lost.
    #[arg(long)]
    overwrite: bool,
    /// Size of the scratch volume.
    #[arg(long, value_name = "BYTES", value_parser = bytes, default_value = "128MiB", conflicts_with_all = ["image", "remote"])]
    size: u64,
    /// Instead of all this, load devices of the kernel's vfio-ccw with SENSE ID, and compare with the fewest
    /// system calls that do the same. May be given several times; see sense-id for what names a device.
    #[arg(long, value_name = "DEVICE", conflicts_with_all = ["image", "size", "remote"])]
    kernel: Vec<String>,
    #[command(flatten)]
    reach: Reach,
    /// Subchannels, each with one request under way.
    #[arg(long, value_name = "N", default_value_t = 64)]
    subchannels: usize,
    /// How long the load lasts.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    seconds: f64,
    /// Bytes of one transfer of the load, a multiple of 512.
    #[arg(long, value_name = "BYTES", value_parser = bytes, default_value = "4KiB")]
    block: u64,
    /// Share of reads in the load.
    #[arg(long, value_name = "PERCENT", default_value_t = 70, value_parser = clap::value_parser!(u8).range(..=100))]
    read_percent: u8,
    /// Which blocks: uniform, sequential, zipf:THETA or hot:ACCESSES/BLOCKS.
    #[arg(long, value_name = "PATTERN", default_value = "uniform", value_parser = access)]
    access: Access,
    /// Guest memory that data is transferred to and from: the working set of the pin cache.
    #[arg(long, value_name = "BYTES", value_parser = bytes, default_value = "48MiB")]
    buffers: u64,
    /// Guest memory in all [default: 256MiB, or what the buffers need].
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    memory: Option<u64>,
    #[command(flatten)]
    service: ServiceOptions,
    /// Seed of the load [default: from the clock].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Do not write and read back the whole volume first.
    #[arg(long)]
    skip_verify: bool,
    /// Serve Prometheus metrics there while the job runs, or off [default: 127.0.0.1:9464].
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<MetricsAddress>,
    /// Write the report as JSON there too; - for standard output instead of the table.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// No progress on standard error.
    #[arg(long, short)]
    quiet: bool,
}

/// Runs the job. `false`: data was wrong, or a request was lost, doubled or failed.
pub(super) fn run(job: &Job) -> Result<bool, Failure> {
    job.check()?;
    let stop = interrupt::stop_flag()?;
    if !job.kernel.is_empty() {
        return job.kernel_load(&stop);
    }
    let (disks, volume, _scratch) = job.disks()?;
    let subchannels = disks.count(job.subchannels);
    let buffers = job.buffers_area(subchannels);
    let memory = guest::memory(job.memory_bytes(&buffers, subchannels)?)?;
    let service = job.service.builder(subchannels).build(memory)?;
    let (mut engine, bytes) = disks.attach(&service, subchannels)?;
    let medium = Medium { bytes, writes: job.writes() };
    let endpoint = job.endpoint(service.registry())?;
    job.announce(&service, medium, subchannels, endpoint.as_ref());

    let seed = job.seed.unwrap_or_else(clock_seed);
    // Known now, not after the pass over the volume.
    job.workload(medium, buffers, seed).generator(subchannels).map_err(impossible)?;
    let verified = match medium.writes && !job.skip_verify {
        true => {
            let block = verify_block(service.pool().budget_bytes());
            job.verify(&mut engine, medium, block, buffers, seed, &stop)?
        }
        false => true,
    };
    let before = service.totals();
    let load = job.load(&mut engine, medium, buffers, seed, &stop)?;
    let totals = service.totals().minus(&before);
    drop(endpoint);

    let mut report = JobReport::of(&load, subchannels);
    complete(&mut report, &service, &totals);
    job.print(&report)?;
    if let Some(volume) = volume.filter(|_| medium.writes) {
        volume.sync()?;
    }
    Ok(verified && load.is_clean())
}

/// What the disks are on.
#[derive(Clone, Copy, Debug)]
struct Medium {
    bytes: u64,
    writes: bool,
}

impl Job {
    fn check(&self) -> Result<(), Failure> {
        if !(self.seconds > 0.0 && self.seconds <= 1e6) {
            return Err(format!(
                "--seconds is {}: it must be above 0 and at most 1000000",
                self.seconds
            )
            .into());
        }
        if self.subchannels == 0 || self.subchannels > 65_536 {
            return Err(format!(
                "--subchannels is {}: it must be between 1 and 65536",
                self.subchannels
            )
            .into());
        }
        if self.block == 0
            || !self.block.is_multiple_of(512)
            || self.block > u64::from(MAX_TRANSFER)
        {
            return Err(format!(
                "--block is {}: it must be a multiple of 512, at most {MAX_TRANSFER}",
                self.block
            )
            .into());
        }
        if self.overwrite && self.image.is_none() && self.remote.remote.is_none() {
            return Err(
                "--overwrite is for --image and --remote: a scratch volume is always written"
                    .into(),
            );
        }
        if self.size == 0 || !self.size.is_multiple_of(512) {
            return Err(format!(
                "--size is {}: it must be a multiple of 512, and not 0",
                self.size
            )
            .into());
        }
        Ok(())
    }

    /// Loads devices of the kernel's instead.
    fn kernel_load(&self, stop: &AtomicBool) -> Result<bool, Failure> {
        let load = KernelLoad {
            devices: &self.kernel,
            reach: self.reach,
            service: &self.service,
            time: Duration::from_secs_f64(self.seconds),
            quiet: self.quiet,
        };
        let report = load.run(stop)?;
        if self.json.as_deref() != Some(Path::new("-")) {
            say(report.text())?;
        }
        self.write_json(|| serde_json::to_string_pretty(&report.json()))?;
        Ok(true)
    }

    /// Whether the job may write.
    fn writes(&self) -> bool {
        self.overwrite || self.image.is_none() && self.remote.remote.is_none()
    }

    /// The disks, and their volume where it is here; the scratch file vanishes with its handle.
    #[expect(clippy::type_complexity, reason = "the three belong to one caller")]
    fn disks(
        &self,
    ) -> Result<(Disks, Option<Arc<Volume>>, Option<tempfile::NamedTempFile>), Failure> {
        if let Some(path) = &self.remote.remote {
            return Ok((self.remote.connect(path, self.subchannels)?, None, None));
        }
        let (volume, scratch) = self.volume()?;
        Ok((Disks::Local(volume.clone()), Some(volume), scratch))
    }

    fn volume(&self) -> Result<(Arc<Volume>, Option<tempfile::NamedTempFile>), Failure> {
        if let Some(image) = &self.image {
            return Ok((Arc::new(Volume::open(image, !self.overwrite)?), None));
        }
        let folder = std::env::temp_dir();
        let failed = |error| {
            format!(
                "no scratch volume of {} bytes in {}: {error}; set TMPDIR or lower --size",
                self.size,
                folder.display()
            )
        };
        let scratch = tempfile::Builder::new()
            .prefix("vfio-ccw-")
            .suffix(".img")
            .tempfile_in(&folder)
            .map_err(failed)?;
        scratch.as_file().set_len(self.size).map_err(failed)?;
        Ok((Arc::new(Volume::open(scratch.path(), false)?), Some(scratch)))
    }

    /// Each slot's part of the buffers: room for a transfer of either phase at least.
    fn buffers_area(&self, subchannels: usize) -> Buffers {
        let least = self.block.max(VERIFY_BLOCK.into()).next_multiple_of(4096);
        let share = (self.buffers / subchannels as u64) & !0xfff;
        Buffers {
            base: DiskEngine::buffers_base(subchannels),
            bytes_per_slot: share.max(least),
            access: Access::Uniform,
        }
    }

    fn memory_bytes(&self, buffers: &Buffers, subchannels: usize) -> Result<u64, Failure> {
        let needed = buffers.base + buffers.bytes_per_slot * subchannels as u64;
        match self.memory {
            None => Ok(needed.next_multiple_of(1 << 20).max(MEMORY)),
            Some(given) if !given.is_multiple_of(4096) => Err(format!("--memory is {given}: it must be a multiple of 4096").into()),
            Some(given) if given < needed => Err(format!(
                "--memory is {given} but {subchannels} subchannels with their buffers need {needed}: give more, or lower --buffers or --subchannels"
            )
            .into()),
            Some(given) => Ok(given),
        }
    }

    /// The metrics endpoint. The default port gives way to any free one; a port that was asked for
    /// does not.
    fn endpoint(&self, registry: &Registry) -> Result<Option<Endpoint>, Failure> {
        match self.metrics {
            Some(MetricsAddress::Off) => Ok(None),
            Some(MetricsAddress::At(address)) => {
                Ok(Some(Endpoint::bind(address, registry.clone())?))
            }
            None => match Endpoint::bind(METRICS, registry.clone()) {
                Err(EndpointError::InUse { .. }) => {
                    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
                    tracing::warn!(
                        "{METRICS} is taken: metrics are served on another port; choose one with --metrics"
                    );
                    Ok(Some(Endpoint::bind(any, registry.clone())?))
                }
                bound => Ok(Some(bound?)),
            },
        }
    }

    fn announce(
        &self,
        service: &Service,
        medium: Medium,
        subchannels: usize,
        endpoint: Option<&Endpoint>,
    ) {
        if self.quiet {
            return;
        }
        let what = match (self.image.as_ref().or(self.remote.remote.as_ref()), self.overwrite) {
            (Some(path), true) => format!("{} (its contents will be overwritten)", path.display()),
            (Some(path), false) => {
                format!("{} (read only: give --overwrite to write)", path.display())
            }
            (None, _) => "a scratch volume".to_owned(),
        };
        tell(format_args!(
            "{} FBA disks on {what}, {}; {} guest memory, mode {}, pin budget {}, driver {}",
            subchannels,
            Bytes(medium.bytes),
            Bytes(service.memory().bytes()),
            service.mode(),
            Bytes(service.pool().budget_bytes()),
            service.driver(),
        ));
        if let Some(endpoint) = endpoint {
            tell(format_args!("metrics: http://{}/metrics", endpoint.local_addr()));
        }
    }

    fn progress(&self) -> Box<dyn Progress> {
        if self.quiet { Box::new(Quiet) } else { Box::new(LiveLine::stderr()) }
    }

    /// Writes and reads back the whole volume.
    fn verify(
        &self,
        engine: &mut DiskEngine,
        medium: Medium,
        block: u32,
        buffers: Buffers,
        seed: u64,
        stop: &AtomicBool,
    ) -> Result<bool, Failure> {
        let pass = WholeVolume { buffers, ..WholeVolume::new(medium.bytes, block, seed) };
        let report = verify::write_and_read_back(engine, &pass, &mut *self.progress(), stop)
            .map_err(explain)?;
        let to_stdout = self.json.as_deref() == Some(Path::new("-"));
        if to_stdout {
            tell(&report);
        } else {
            say(&report)?;
        }
        // An early end by the user is no fault of the volume.
        let faults = report.errors + report.lost + report.duplicate + report.miscompares;
        Ok(report.is_clean() || report.stopped && faults == 0)
    }

    fn workload(&self, medium: Medium, buffers: Buffers, seed: u64) -> Workload {
        Workload {
            read_percent: if medium.writes { self.read_percent } else { 100 },
            access: self.access,
            buffers,
            // Not the seed of the pass before: its data must not pass for this load's.
            seed: seed.wrapping_add(1),
            ..Workload::new(medium.bytes, self.block as u32)
        }
    }

    /// The mixed load.
    fn load(
        &self,
        engine: &mut DiskEngine,
        medium: Medium,
        buffers: Buffers,
        seed: u64,
        stop: &AtomicBool,
    ) -> Result<closed_loop::LoadReport, Failure> {
        let workload = self.workload(medium, buffers, seed);
        let seconds = if stop.load(Ordering::Relaxed) { 1e-3 } else { self.seconds };
        let limit = Limit::duration(Duration::from_secs_f64(seconds));
        let job = ClosedLoop { limit, verify: medium.writes, ..ClosedLoop::new(workload) };
        closed_loop::run(engine, &job, &mut *self.progress(), stop).map_err(explain)
    }

    fn print(&self, report: &JobReport) -> Result<(), Failure> {
        if self.json.as_deref() != Some(Path::new("-")) {
            say(report.text())?;
        }
        self.write_json(|| serde_json::to_string_pretty(report))
    }

    fn write_json(&self, json: impl FnOnce() -> serde_json::Result<String>) -> Result<(), Failure> {
        let Some(path) = &self.json else {
            return Ok(());
        };
        let json = json()?;
        if path == Path::new("-") {
            return say(json);
        }
        fs::write(path, json + "\n")
            .map_err(|error| format!("report {}: {error}", path.display()).into())
    }
}

/// Bytes of one transfer that the pin budget allows beside the page with the program's parameters.
fn verify_block(budget: u64) -> u32 {
    let room = u32::try_from(budget.saturating_sub(4096)).unwrap_or(u32::MAX);
    let allowed = if room == 0 { 0 } else { 1 << room.ilog2() };
    allowed.clamp(LEAST_VERIFY_BLOCK, VERIFY_BLOCK)
}

fn explain(error: LoadError) -> Failure {
    match error {
        LoadError::Workload(error) => impossible(error),
        other => other.into(),
    }
}

fn impossible(error: WorkloadError) -> Failure {
    match error {
        WorkloadError::VolumeTooSmall { .. } => {
            format!("{error} (lower --subchannels or --block, or use a larger volume)").into()
        }
        other => other.into(),
    }
}

/// Adds what only the service knows.
fn complete(report: &mut JobReport, service: &Service, totals: &Totals) {
    let pool = service.pool();
    report.driver = service.driver().name().to_owned();
    report.mode = service.mode().name().to_owned();
    report.pinned_now_bytes = pool.pinned_bytes();
    report.pinned_peak_bytes = pool.peak_bytes();
    report.budget_bytes = pool.budget_bytes();
    report.pinner = pool.pinner().to_owned();
    report.unpinned_pages = totals.counter(CounterKind::PinUnpinned);
    if service.mode() == Mode::Cached {
        let row =
            |sizing: Sizing| BudgetRow { budget_bytes: sizing.budget, hit_rate: sizing.hit_rate };
        report.other_budgets = pool.sizing().into_iter().map(row).collect();
    }
    let gets = totals.counter(CounterKind::PinGets);
    if gets > 0 {
        report.cache_hit_rate = Some(totals.counter(CounterKind::PinHits) as f64 / gets as f64);
    }
    let service_rows = Stage::ALL.iter().map(|stage| stage_row(*stage, totals));
    let loop_rows = std::mem::take(&mut report.stages);
    report.stages = service_rows.chain(loop_rows).collect();
}

fn clock_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64)
}
