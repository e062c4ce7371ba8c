//! The load generator: jobs of a file, or one of the command line.

use std::fs;
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

use clap::{ArgMatches, Args, Command};
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;
use vfio_ccw_bench::engines::Plan;
use vfio_ccw_bench::job::{self, Outcome};
use vfio_ccw_bench::machine::{Machine, now};
use vfio_ccw_bench::ratio::FieldError;
use vfio_ccw_bench::run::{JobRecord, LoadRun, Run};
use vfio_ccw_load::job_file::{JobFileError, JobSpec, OptionError};
use vfio_ccw_load::units::{Bytes, Count, Nanos};
use vfio_ccw_load::{JobFile, LiveLine, Progress, Quiet};
use vfio_ccw_metrics::{Endpoint, EndpointError, Registry};

use crate::hdr_log::{Log, Logged};

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
    /// File of jobs; - for standard input.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
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
    #[command(flatten)]
    options: JobOptions,
}

/// The options of a job, which are read as those of a file are.
#[derive(Debug, Default)]
struct JobOptions(Vec<(&'static str, String)>);

/// Name, what it is given, and what it means.
const OPTIONS: [(&str, &str, &str); 19] = [
    ("rw", "PATTERN", "read, write, rw, randread, randwrite or randrw"),
    ("bs", "BYTES", "Bytes of one transfer, a multiple of 512 [default: 4k]"),
    ("iodepth", "N", "Subchannels, with a program in flight each [default: 1]"),
    ("numjobs", "N", "Guests that do the same at a time [default: 1]"),
    ("runtime", "TIME", "How long it lasts: 30 (seconds), 500ms, 5m"),
    ("number_ios", "N", "How many requests each guest makes"),
    ("ramp_time", "TIME", "How long it runs before anything counts"),
    ("rate_iops", "N", "Requests that are due a second, of each guest"),
    ("rwmixread", "PERCENT", "Share of reads where it does both [default: 50]"),
    ("random_distribution", "HOW", "random or zipf:THETA [default: random]"),
    ("verify", "HOW", "pattern: compare what is read with what was written"),
    ("size", "BYTES", "Bytes of the volume [default: 64M, or the whole image]"),
    ("filename", "FILE", "An image, sockets or devices [default: a scratch volume for each guest]"),
    ("ioengine", "NAME", "What is driven, see below [default: inprocess]"),
    ("program", "SHAPE", "Channel programs, see below [default: disk, or plain]"),
    ("mode", "MODE", "When guest pages are pinned: pinned, on-demand or cached [default: cached]"),
    (
        "wait",
        "HOW",
        "How shards wait: sleep, spin or adaptive:MICROSECONDS:PERCENT [default: adaptive]",
    ),
    (
        "budget",
        "BYTES",
        "Most guest memory that is pinned [default: 64M, or what RLIMIT_MEMLOCK allows]",
    ),
    ("randseed", "N", "Seed of all draws [default: 0]"),
];

impl Args for JobOptions {
    fn augment_args(command: Command) -> Command {
        let add =
            |command: Command, (name, value, help): (&'static str, &'static str, &'static str)| {
                let argument = clap::Arg::new(name).long(name).value_name(value).help(help);
                command.arg(argument.help_heading("Options of the job"))
            };
        OPTIONS.into_iter().fold(command, add)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for JobOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |(name, _, _): (&'static str, _, _)| {
            Some((name, matches.get_one::<String>(name)?.clone()))
        };
        Ok(JobOptions(OPTIONS.into_iter().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("job file {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file has a mistake.
    #[error("job file {}: {source}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The mistake and its line.
        source: JobFileError,
    },
    /// An option of the command line is wrong.
    #[error("--{0}")]
    Option(OptionError),
    /// Neither a file nor an end.
    #[error("the job has no end: give --runtime or --number_ios, or a job file")]
    Endless,
    /// A job could not run.
    #[error("{}job '{name}': {source}", Where(file, source))]
    Job {
        /// The file it is in.
        file: Option<PathBuf>,
        /// Its name.
        name: String,
        /// Why.
        source: FieldError,
    },
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

/// The file and line that an error is about, as the errors of the file's syntax say it.
struct Where<'a>(&'a Option<PathBuf>, &'a FieldError);

impl std::fmt::Display for Where<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.0, job::line_of(self.1)) {
            (Some(file), Some(_)) => write!(f, "job file {}: ", file.display()),
            _ => Ok(()),
        }
    }
}

impl Load {
    /// Runs it. `false`: data was wrong, or a request was lost, doubled or failed.
    pub fn run(&self) -> Result<bool, LoadError> {
        let specs = self.specs()?;
        // All of them, before the first runs for an hour.
        let plans = (specs.iter())
            .map(|spec| Plan::of(spec).map_err(|refused| self.of_job(spec, refused.into())))
            .collect::<Result<Vec<_>, _>>()?;
        if self.check {
            writeln!(io::stdout(), "{} jobs, nothing wrong", plans.len())?;
            return Ok(true);
        }
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // A second one ends the process.
            signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone())?;
            signal_hook::flag::register(signal, stop.clone())?;
        }
        let registry = Registry::new();
        let _endpoint =
            self.metrics.map(|address| Endpoint::bind(address, registry.clone())).transpose()?;
        let date = now();
        let jobs = match &self.hdr {
            None => self.jobs(&plans, &registry, None, &stop)?,
            Some(path) => {
                let failed = |source| LoadError::OutputFile { path: path.clone(), source };
                let mut out = BufWriter::new(fs::File::create(path).map_err(failed)?);
                let mut serializer = V2DeflateSerializer::new();
                let mut log = IntervalLogWriterBuilder::new()
                    .add_comment("[Histogram log format version 1.3]")
                    .with_start_time(SystemTime::now())
                    .begin_log_with(&mut out, &mut serializer)
                    .map_err(failed)?;
                let jobs = self.jobs(&plans, &registry, Some(&mut log), &stop)?;
                out.flush().map_err(failed)?;
                jobs
            }
        };
        let is_clean = jobs.iter().all(|(_, is_clean)| *is_clean);
        if let Some(path) = &self.json {
            let run = Run::Load(LoadRun {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                date,
                machine: Machine::here(),
                jobs: jobs.into_iter().map(|(record, _)| record).collect(),
            });
            let text = serde_json::to_string_pretty(&run).map_err(io::Error::other)?;
            match path == Path::new("-") {
                true => writeln!(io::stdout(), "{text}")?,
                false => fs::write(path, text + "\n")
                    .map_err(|source| LoadError::OutputFile { path: path.clone(), source })?,
            }
        }
        Ok(is_clean)
    }

    /// Runs all jobs, and prints each as it ends. With each record, whether nothing was wrong.
    fn jobs(
        &self,
        plans: &[Plan<'_>],
        registry: &Registry,
        mut log: Option<&mut Log<'_, '_>>,
        stop: &AtomicBool,
    ) -> Result<Vec<(JobRecord, bool)>, LoadError> {
        let began = Instant::now();
        let mut jobs = Vec::with_capacity(plans.len());
        for plan in plans {
            // Relaxed: the flag is all that the signal says.
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let name = &plan.spec.name;
            let failed = |source| self.of_job(plan.spec, source);
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
            jobs.push((record, outcome.is_clean()));
        }
        Ok(jobs)
    }

    fn of_job(&self, spec: &JobSpec, source: FieldError) -> LoadError {
        // What the command line has said is in no line of the file.
        let file = self.file.clone();
        LoadError::Job { file, name: spec.name.clone(), source }
    }

    /// The jobs, with what the command line says of them.
    fn specs(&self) -> Result<Vec<JobSpec>, LoadError> {
        let mut specs = match &self.file {
            None => vec![JobSpec::new("load")],
            Some(path) => {
                let text =
                    read(path).map_err(|source| LoadError::File { path: path.clone(), source })?;
                let file = JobFile::parse(&text)
                    .map_err(|source| LoadError::Syntax { path: path.clone(), source })?;
                file.jobs
            }
        };
        for spec in &mut specs {
            for (name, value) in &self.options.0 {
                spec.set(name, value).map_err(LoadError::Option)?;
            }
            if spec.runtime.is_none() && spec.number_ios.is_none() {
                return Err(LoadError::Endless);
            }
        }
        Ok(specs)
    }

    fn progress(&self) -> Box<dyn Progress> {
        match self.quiet || !io::stderr().is_terminal() {
            true => Box::new(Quiet),
            false => Box::new(LiveLine::stderr()),
        }
    }
}

/// A job file is small.
const MOST: u64 = 1 << 20;

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = match path == Path::new("-") {
        true => io::stdin().lock().take(MOST + 1).read_to_string(&mut text)?,
        false => fs::File::open(path)?.take(MOST + 1).read_to_string(&mut text)?,
    };
    if read as u64 > MOST {
        return Err(io::Error::other(format!("it is larger than {MOST} bytes")));
    }
    Ok(text)
}

/// A job in a few lines, as fio's users look for it.
fn line(record: &JobRecord, outcome: &Outcome<'_>) -> String {
    let row = &record.latency;
    let mut text = format!(
        "{}: ioengine={}, program={}: IOPS={}, BW={:.1} MiB/s, {} requests of {} in {:.2} s (guests: {}, subchannels of each: {})\n  \
         lat p50={} p90={} p99={} p99.9={} max={}",
        record.name,
        record.engine,
        record.program,
        Count(record.iops),
        record.mib_per_s,
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
        if !outcome.kept_its_rate() && !record.stopped {
            text += "; THE RATE WAS NOT KEPT: these latencies grow for as long as the job lasts";
        }
    }
    let faults = record.errors + record.lost + record.duplicate + record.miscompares;
    if faults > 0 || record.checked > 0 {
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
