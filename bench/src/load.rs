//! The load generator: jobs of a file, or one of the command line.

use std::fs;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

use clap::Args;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;
use vfio_ccw_bench::engines::Plan;
use vfio_ccw_bench::job::{self, Outcome};
use vfio_ccw_bench::machine::{Machine, now};
use vfio_ccw_bench::run::{JobRecord, LoadRun, Run};
use vfio_ccw_load::units::{Bytes, Count, Nanos};
use vfio_ccw_load::{LiveLine, Progress, Quiet};
use vfio_ccw_metrics::{Endpoint, EndpointError, Registry};

use crate::hdr_log::{Log, Logged};
use crate::jobs::{Jobs, JobsError};
use crate::stop;

const EXAMPLES: &str = "\
Names and meanings are those of fio. A job is as many guests as numjobs says, each with a service
of its own, and iodepth subchannels with a channel program in flight each. Jobs of a file run one
after the other. With rate_iops requests are made by the clock, and their latency is counted from
when they were due, whether a subchannel was free or not.

Engines (--ioengine):
  inprocess   FBA disks in this process; on a scratch volume, or on the image --filename
  remote      devices of 'vfio-ccw serve': --filename names a socket, or a folder of sockets
  kernel      devices of the kernel's vfio-ccw on s390x, such as --filename 0.0.1234,0.0.1235
  null        devices that do nothing, for channel programs of some shape: --program
and baselines, other ways to do the same with a device that does nothing:
  sync-epoll       write the region, epoll, read the eventfd, read the region: the least there is
  per-request-pin  the same, with translation, and pages pinned and unpinned for each request
  qemu-shape       the same, with one ppoll over all devices
  null-translate   rings to a thread and back, and nothing behind them

Programs (--program): disk; plain (4 KiB), idal (64 pages), chain (200 CCWs), search (a loop of SEARCH
and TIC), sense (SENSE ID).

Examples:
  vfio-ccw-bench load --rw randread --iodepth 32 --runtime 10
  vfio-ccw-bench load --rw randrw --rwmixread 70 --verify pattern --number_ios 1000000
  vfio-ccw-bench load --rw randread --iodepth 64 --rate_iops 100000 --runtime 30 --json -
  vfio-ccw-bench load --ioengine null --program idal --iodepth 64 --runtime 5 --mode on-demand
  vfio-ccw-bench load --ioengine remote --filename /run/vfio-ccw --iodepth 8 --rw randread --runtime 10
  vfio-ccw-bench load jobs.fio --json run.json      sections [global] and [name] of option=value
  vfio-ccw-bench load jobs.fio --iodepth 8          the file, but for what is said here";

/// Runs a load and says what came of it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Load {
    #[command(flatten)]
    jobs: Jobs,
    /// Write the results as JSON there too; - for standard output instead of the table.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write latencies there as a log of HdrHistogram's: a line a second, with the job's name as tag.
    #[arg(long, value_name = "FILE")]
    hdr: Option<PathBuf>,
    /// Serve metrics of the services there for as long as it runs, such as at 127.0.0.1:9464.
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
    /// Check the jobs, and run nothing.
    #[arg(long)]
    check: bool,
    /// No progress on standard error.
    #[arg(long, short)]
    quiet: bool,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There are no jobs.
    #[error(transparent)]
    Jobs(#[from] JobsError),
    /// No metrics there.
    #[error("--metrics: {0}")]
    Metrics(#[from] EndpointError),
    /// The results cannot be written.
    #[error("results: {0}")]
    Output(#[from] io::Error),
    /// Nor to this file.
    #[error("{}: {source}", path.display())]
    OutputFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Load {
    /// Runs it. `false`: data was wrong, or a request was lost, doubled or failed.
    pub fn run(&self) -> Result<bool, LoadError> {
        let specs = self.jobs.specs()?;
        let plans = self.jobs.plans(&specs)?;
        if self.check {
            writeln!(io::stdout(), "{} jobs, nothing wrong", plans.len())?;
            return Ok(true);
        }
        let stop = stop::asked()?;
        let registry = Registry::new();
        let _endpoint =
            self.metrics.map(|address| Endpoint::bind(address, registry.clone())).transpose()?;
        let date = now();
        let jobs = match &self.hdr {
            None => self.run_all(&plans, &registry, None, &stop)?,
            Some(path) => {
                let failed = |source| LoadError::OutputFile { path: path.clone(), source };
                let mut out = BufWriter::new(fs::File::create(path).map_err(failed)?);
                let mut serializer = V2DeflateSerializer::new();
                let mut log = IntervalLogWriterBuilder::new()
                    .add_comment("[Histogram log format version 1.3]")
                    .with_start_time(SystemTime::now())
                    .begin_log_with(&mut out, &mut serializer)
                    .map_err(failed)?;
                let jobs = self.run_all(&plans, &registry, Some(&mut log), &stop)?;
                out.flush().map_err(failed)?;
                jobs
            }
        };
        let is_clean = jobs.iter().all(JobRecord::is_clean);
        if let Some(path) = &self.json {
            let run = Run::Load(LoadRun {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                date,
                machine: Machine::here(),
                jobs,
            });
            run.write(path)?;
        }
        Ok(is_clean)
    }

    /// Runs all jobs, and prints each as it ends.
    fn run_all(
        &self,
        plans: &[Plan<'_>],
        registry: &Registry,
        mut log: Option<&mut Log<'_, '_>>,
        stop: &AtomicBool,
    ) -> Result<Vec<JobRecord>, LoadError> {
        let began = Instant::now();
        let mut jobs = Vec::with_capacity(plans.len());
        for plan in plans {
            // Relaxed: the flag is all that the signal says.
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let name = &plan.spec.name;
            let failed = |source| self.jobs.failed(plan.spec, source);
            let outcome = match &mut log {
                None => job::run(plan, registry, &mut *self.progress(), stop).map_err(failed)?,
                Some(log) => {
                    let mut logged = Logged::new(self.progress(), log, began, name);
                    let outcome = job::run(plan, registry, &mut logged, stop).map_err(failed)?;
                    logged.result()?;
                    outcome
                }
            };
            let record = outcome.record();
            if self.json.as_deref() != Some(Path::new("-")) {
                writeln!(io::stdout(), "{}", line(&record, &outcome))?;
            }
            jobs.push(record);
        }
        Ok(jobs)
    }

    fn progress(&self) -> Box<dyn Progress> {
        match self.quiet || !io::stderr().is_terminal() {
            true => Box::new(Quiet),
            false => Box::new(LiveLine::stderr()),
        }
    }
}

/// A job in a few lines, as fio's users look for it.
fn line(record: &JobRecord, outcome: &Outcome<'_>) -> String {
    let row = &record.latency;
    let mut text = format!(
        "{}: ioengine={}, program={}: IOPS={}",
        record.name,
        record.engine,
        record.program,
        Count(record.iops),
    );
    if record.mib_per_s > 0.0 {
        text += &format!(", BW={:.1} MiB/s", record.mib_per_s);
    }
    text += &format!(
        ", {} requests of {} in {:.2} s (guests: {}, subchannels of each: {})\n  \
         lat p50={} p90={} p99={} p99.9={} max={}",
        record.ios,
        Bytes(record.block_bytes.into()),
        record.seconds,
        record.guests,
        record.subchannels,
        Nanos(row.p50_ns),
        Nanos(row.p90_ns),
        Nanos(row.p99_ns),
        Nanos(row.p999_ns),
        Nanos(row.max_ns),
    );
    if let (Some(mode), Some(peak), Some(driver)) =
        (&record.mode, record.pinned_peak_bytes, &record.driver)
    {
        text += &format!("\n  mode {mode}, {} pinned at most", Bytes(peak));
        if let Some(rate) = record.hit_rate {
            text += &format!(", {:.1} % of pages found pinned", rate * 100.0);
        }
        text += &format!(", driver {driver}");
    }
    if let Some(rate) = record.rate_iops {
        let behind = Nanos(record.behind_ns);
        text +=
            &format!("\n  due {} a second each; the latest began {behind} after that", Count(rate));
        if !record.kept_its_rate() && !record.stopped {
            text += "; THE RATE WAS NOT KEPT: these latencies grow for as long as the job lasts";
        }
    }
    if !record.is_clean() || record.checked > 0 {
        text += &format!(
            "\n  {} reads compared, {} wrong; {} failed, {} lost, {} doubled",
            record.checked, record.miscompares, record.errors, record.lost, record.duplicate
        );
    }
    for miscompare in outcome.first_miscompares() {
        text += &format!("\n  {miscompare}");
    }
    text
}
