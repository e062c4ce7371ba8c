//! One job of a job file: guests under the load that it describes.
//!
//! Each of its `numjobs` is a guest of its own: a thread, a service, and disks on a volume.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use serde::Serialize;
use vfio_ccw::engine::DiskEngine;
use vfio_ccw::volume::Volume;
use vfio_ccw::{Mode, Service, WaitStrategy};
use vfio_ccw_load::closed_loop::{self, ClosedLoop, Limit, LoadReport};
use vfio_ccw_load::job_file::{JobSpec, Rw};
use vfio_ccw_load::open_loop::{self, OpenLoop};
use vfio_ccw_load::workload::PAGE;
use vfio_ccw_load::{Access, Buffers, Progress, Quiet, StageRow, Workload};

use crate::ratio::FieldError;
use crate::service_load::guest_memory;

/// The engine that is built in: disks in the process.
pub const IN_PROCESS: &str = "inprocess";

/// Bytes of a scratch volume where `size` says nothing.
const SCRATCH: u64 = 64 << 20;

/// Guest memory of each subchannel that data is transferred to and from, at least.
const BUFFERS: u64 = 64 << 10;

/// How the services of a job run.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// When pages are pinned.
    pub mode: Mode,
    /// How shards wait for work.
    pub wait: WaitStrategy,
    /// Most guest memory that is pinned; `None`: as the service chooses.
    pub budget: Option<u64>,
}

/// What became of a job: of all its guests together.
#[derive(Debug)]
pub struct Outcome {
    /// The job.
    pub spec: JobSpec,
    /// One for each guest.
    pub reports: Vec<LoadReport>,
}

/// Runs `spec`. `progress` sees the first of its guests.
///
/// # Errors
/// A job that cannot be; a volume or service that cannot be had; an engine that fails as a whole.
pub fn run(
    spec: &JobSpec,
    settings: Settings,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<Outcome, FieldError> {
    check(spec)?;
    let reports = thread::scope(|scope| {
        let others: Vec<_> = (1..spec.numjobs)
            .map(|number| scope.spawn(move || one(spec, number, settings, &mut Quiet, stop)))
            .collect();
        let mut reports = vec![one(spec, 0, settings, progress, stop)];
        for other in others {
            reports.push(
                other.join().unwrap_or_else(|_| Err("a guest's thread has panicked".to_owned())),
            );
        }
        reports.into_iter().collect::<Result<Vec<_>, String>>()
    })?;
    Ok(Outcome { spec: spec.clone(), reports })
}

/// What this engine cannot do.
fn check(spec: &JobSpec) -> Result<(), FieldError> {
    if let Some(engine) = spec.engine.as_deref()
        && engine != IN_PROCESS
    {
        return Err(format!("ioengine={engine}: there is {IN_PROCESS} so far").into());
    }
    if spec.numjobs > 1 && spec.filename.is_some() && spec.rw != Rw::Read {
        return Err(format!(
            "numjobs={} with filename: the guests would write over each other; leave filename out, or read only",
            spec.numjobs
        )
        .into());
    }
    Ok(())
}

/// One guest's share. The error as text, as it goes from thread to thread.
fn one(
    spec: &JobSpec,
    number: u32,
    settings: Settings,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<LoadReport, String> {
    guest(spec, number, settings, progress, stop).map_err(|error| error.to_string())
}

fn guest(
    spec: &JobSpec,
    number: u32,
    settings: Settings,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<LoadReport, FieldError> {
    let slots = spec.iodepth as usize;
    let scratch;
    let volume = match &spec.filename {
        Some(path) => open(path, spec)?,
        None => {
            scratch = tempfile::Builder::new().prefix("vfio-ccw-bench-").tempfile()?;
            scratch.as_file().set_len(spec.size.unwrap_or(SCRATCH).next_multiple_of(512))?;
            Volume::open(scratch.path(), false)?
        }
    };
    let bytes = spec.size.unwrap_or(volume.bytes());
    let base = DiskEngine::buffers_base(slots);
    let bytes_per_slot = u64::from(spec.block_bytes).next_multiple_of(PAGE).max(BUFFERS);
    let workload = Workload {
        read_percent: spec.read_percent(),
        access: spec.access(),
        buffers: Buffers { base, bytes_per_slot, access: Access::Uniform },
        seed: spec.seed.wrapping_add(u64::from(number)),
        ..Workload::new(bytes, spec.block_bytes)
    };
    // Known now, not after everything is set up.
    workload.generator(slots)?;
    let memory = guest_memory((base + bytes_per_slot * slots as u64).next_multiple_of(1 << 20))?;
    let builder = Service::builder().subchannels(slots).mode(settings.mode).wait(settings.wait);
    let builder = match settings.budget {
        Some(bytes) => builder.budget(bytes),
        None => builder,
    };
    let service = builder.build(memory)?;
    let mut engine = DiskEngine::attach(&service, &Arc::new(volume), slots)?;
    let load = ClosedLoop {
        limit: Limit { duration: spec.runtime, ios: spec.number_ios },
        verify: spec.verify,
        ramp: spec.ramp_time,
        ..ClosedLoop::new(workload)
    };
    Ok(match spec.rate_iops {
        None => closed_loop::run(&mut engine, &load, progress, stop)?,
        Some(requests_per_second) => {
            let job = OpenLoop { load, requests_per_second };
            open_loop::run(&mut engine, &job, progress, stop)?
        }
    })
}

fn open(path: &Path, spec: &JobSpec) -> Result<Volume, FieldError> {
    let volume = Volume::open(path, spec.rw == Rw::Read)?;
    match spec.size {
        Some(size) if size > volume.bytes() => Err(format!(
            "size={size}: {} has {} bytes; give less, or a larger image",
            path.display(),
            volume.bytes()
        )
        .into()),
        _ => Ok(volume),
    }
}

impl Outcome {
    /// Whether every request completed once, without failure and with the right data.
    pub fn is_clean(&self) -> bool {
        self.reports.iter().all(LoadReport::is_clean)
    }

    /// What is left of it, for programs.
    pub fn record(&self) -> JobRecord {
        let sum = |of: fn(&LoadReport) -> u64| self.reports.iter().map(of).sum::<u64>();
        let mut latency = self.reports[0].latency.clone();
        // Nothing is recorded beyond what they all hold.
        self.reports[1..].iter().for_each(|report| latency += &report.latency);
        let behind = self.reports.iter().map(|report| report.behind).max();
        JobRecord {
            name: self.spec.name.clone(),
            guests: self.spec.numjobs,
            subchannels: self.spec.iodepth,
            block_bytes: self.spec.block_bytes,
            rate_iops: self.spec.rate_iops,
            seconds: self.reports.iter().map(|report| report.seconds).fold(0.0, f64::max),
            ios: sum(|report| report.ios),
            reads: sum(|report| report.reads),
            writes: sum(|report| report.writes),
            warm_up: sum(|report| report.warm_up),
            iops: self.reports.iter().map(LoadReport::iops).sum(),
            mib_per_s: self.reports.iter().map(LoadReport::mib_per_s).sum(),
            errors: sum(|report| report.errors),
            lost: sum(|report| report.lost),
            duplicate: sum(|report| report.duplicate),
            checked: sum(|report| report.checked),
            miscompares: sum(|report| report.miscompares),
            behind_ns: behind.unwrap_or(Duration::ZERO).as_nanos() as u64,
            latency: StageRow::of_histogram("latency", &latency),
            buckets: latency
                .iter_recorded()
                .map(|bucket| (bucket.value_iterated_to(), bucket.count_at_value()))
                .collect(),
            stopped: self.reports.iter().any(|report| report.stopped),
        }
    }
}

/// What a job did, in one object: all guests together.
#[derive(Debug, Clone, Serialize)]
pub struct JobRecord {
    /// Name of the job.
    pub name: String,
    /// Guests.
    pub guests: u32,
    /// Subchannels of each.
    pub subchannels: u32,
    /// Bytes of one transfer.
    pub block_bytes: u32,
    /// Requests that were due a second, of each guest; none: a closed loop.
    pub rate_iops: Option<f64>,
    /// How long the longest of them was measured.
    pub seconds: f64,
    /// Requests that completed without failure, after the ramp.
    pub ios: u64,
    /// Reads among them.
    pub reads: u64,
    /// Writes among them.
    pub writes: u64,
    /// Those of the ramp.
    pub warm_up: u64,
    /// Requests a second.
    pub iops: f64,
    /// MiB a second.
    pub mib_per_s: f64,
    /// Requests that failed.
    pub errors: u64,
    /// Requests that never came back.
    pub lost: u64,
    /// Requests that came back twice.
    pub duplicate: u64,
    /// Reads that were compared with what was written.
    pub checked: u64,
    /// Reads with wrong data.
    pub miscompares: u64,
    /// The longest that a request began after it was due, in nanoseconds.
    pub behind_ns: u64,
    /// Latency: of an open loop from when a request was due.
    pub latency: StageRow,
    /// All latencies: the highest of each bucket in nanoseconds, and how many there are.
    pub buckets: Vec<(u64, u64)>,
    /// It was stopped before its end.
    pub stopped: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings =
        Settings { mode: Mode::Cached, wait: WaitStrategy::Sleep, budget: Some(16 << 20) };

    fn job(options: &[(&str, &str)]) -> JobSpec {
        let mut spec = JobSpec::new("job");
        options.iter().for_each(|(name, value)| spec.set(name, value).unwrap());
        spec
    }

    fn record(options: &[(&str, &str)]) -> JobRecord {
        let outcome = run(&job(options), SETTINGS, &mut Quiet, &AtomicBool::new(false)).unwrap();
        assert!(outcome.is_clean(), "{outcome:?}");
        outcome.record()
    }

    #[test]
    fn guests_do_what_the_job_says() {
        let record = record(&[
            ("rw", "randrw"),
            ("rwmixread", "60"),
            ("iodepth", "4"),
            ("numjobs", "2"),
            ("number_ios", "300"),
            ("size", "1M"),
            ("verify", "pattern"),
        ]);
        assert_eq!((record.ios, record.lost, record.miscompares), (600, 0, 0));
        assert!(record.checked > 0 && record.writes > 100 && record.reads > 200, "{record:?}");
        assert_eq!(record.latency.count, 600);
        assert_eq!(record.buckets.iter().map(|bucket| bucket.1).sum::<u64>(), 600);
        let json = serde_json::to_value(&record).unwrap();
        assert_eq!(json["subchannels"], 4);
        assert!(json["latency"]["p99_ns"].as_u64().is_some_and(|p99| p99 > 0));
    }

    #[test]
    fn a_rate_is_kept_from_above() {
        let options =
            [("rw", "randread"), ("number_ios", "100"), ("rate_iops", "2000"), ("iodepth", "8")];
        let record = record(&options);
        assert_eq!(record.ios, 100);
        // 99 intervals of half a millisecond at least.
        assert!(record.seconds >= 0.0495, "{record:?}");
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_remedy() {
        let refused = |options: &[(&str, &str)]| {
            let error = run(&job(options), SETTINGS, &mut Quiet, &AtomicBool::new(false));
            error.expect_err("refused").to_string()
        };
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        let path = image.path().to_str().unwrap();
        assert!(refused(&[("ioengine", "libaio")]).contains("inprocess"));
        let shared = [("filename", path), ("numjobs", "2"), ("rw", "write")];
        assert!(refused(&shared).contains("write over each other"));
        let small = refused(&[("filename", path), ("size", "2M"), ("number_ios", "1")]);
        assert!(small.contains("has 1048576 bytes"), "{small}");
        let many = refused(&[("filename", path), ("iodepth", "1024"), ("number_ios", "1")]);
        assert!(many.contains("1024"), "{many}");
    }
}
