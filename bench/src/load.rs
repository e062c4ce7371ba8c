//! The load generator: jobs of a file, or one of the command line.

use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{ArgMatches, Args, Command};
use serde::Serialize;
use vfio_ccw::{Mode, WaitStrategy};
use vfio_ccw_bench::job::{self, JobRecord, Settings};
use vfio_ccw_bench::ratio::FieldError;
use vfio_ccw_load::job_file::{JobFileError, JobSpec, OptionError};
use vfio_ccw_load::units::{Bytes, Count, Nanos};
use vfio_ccw_load::{JobFile, LiveLine, Progress, Quiet, parse_bytes};

const EXAMPLES: &str = "\
Names and meanings are those of fio. A job is as many guests as numjobs says, each with a service
of its own, and iodepth subchannels with a channel program in flight each. Jobs of a file run one
after the other. With rate_iops requests are made by the clock, and their latency is counted from
when they were due, whether a subchannel was free or not.

Examples:
  vfio-ccw-bench load --rw randread --iodepth 32 --runtime 10
  vfio-ccw-bench load --rw randrw --rwmixread 70 --verify pattern --number_ios 1000000
  vfio-ccw-bench load --rw randread --iodepth 64 --rate_iops 100000 --runtime 30 --json -
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
    /// When guest pages are pinned: pinned, on-demand or cached.
    #[arg(long, value_name = "MODE", default_value = "cached")]
    mode: Mode,
    /// How shards wait for work: sleep, spin or adaptive:MICROSECONDS:PERCENT.
    #[arg(long, value_name = "STRATEGY", default_value_t)]
    wait: WaitStrategy,
    /// Most guest memory that is pinned [default: 64MiB, or what RLIMIT_MEMLOCK allows].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    budget: Option<u64>,
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
const OPTIONS: [(&str, &str, &str); 15] = [
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
    ("filename", "FILE", "An image [default: a scratch volume for each guest]"),
    ("ioengine", "NAME", "What is driven: inprocess"),
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
    #[error("job '{name}': {source}")]
    Job {
        /// Its name.
        name: String,
        /// Why.
        source: FieldError,
    },
    /// The results cannot be written.
    #[error("results: {0}")]
    Output(#[from] io::Error),
}

/// All jobs.
#[derive(Debug, Serialize)]
struct Run {
    version: &'static str,
    machine: String,
    mode: String,
    wait: String,
    jobs: Vec<JobRecord>,
}

impl Load {
    /// Runs it. `false`: data was wrong, or a request was lost, doubled or failed.
    pub fn run(&self) -> Result<bool, LoadError> {
        let specs = self.specs()?;
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // A second one ends the process.
            signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone())?;
            signal_hook::flag::register(signal, stop.clone())?;
        }
        let settings = Settings { mode: self.mode, wait: self.wait, budget: self.budget };
        let (mut jobs, mut is_clean) = (Vec::new(), true);
        for spec in &specs {
            // Relaxed: the flag is all that the signal says.
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let mut progress = self.progress();
            let outcome = job::run(spec, settings, &mut *progress, &stop)
                .map_err(|source| LoadError::Job { name: spec.name.clone(), source })?;
            is_clean &= outcome.is_clean();
            let record = outcome.record();
            if self.json.as_deref() != Some(Path::new("-")) {
                writeln!(io::stdout(), "{}", line(&record))?;
            }
            jobs.push(record);
        }
        if let Some(path) = &self.json {
            let run = Run {
                version: env!("CARGO_PKG_VERSION"),
                machine: machine(),
                mode: self.mode.to_string(),
                wait: self.wait.to_string(),
                jobs,
            };
            let text = serde_json::to_string_pretty(&run).map_err(io::Error::other)?;
            match path == Path::new("-") {
                true => writeln!(io::stdout(), "{text}")?,
                false => fs::write(path, text + "\n")
                    .map_err(|source| LoadError::File { path: path.clone(), source })?,
            }
        }
        Ok(is_clean)
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

/// A job in a line or two, as fio's users look for it.
fn line(record: &JobRecord) -> String {
    let row = &record.latency;
    let mut text = format!(
        "{}: IOPS={}, BW={:.1} MiB/s, {} requests of {} in {:.2} s (guests: {}, subchannels of each: {})\n  \
         lat p50={} p90={} p99={} p99.9={} max={}",
        record.name,
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
    if let Some(rate) = record.rate_iops {
        let behind = Nanos(record.behind_ns);
        text +=
            &format!("\n  due {} a second each; the latest began {behind} after that", Count(rate));
    }
    let faults = record.errors + record.lost + record.duplicate + record.miscompares;
    if faults > 0 || record.checked > 0 {
        text += &format!(
            "\n  {} reads compared, {} wrong; {} failed, {} lost, {} doubled",
            record.checked, record.miscompares, record.errors, record.lost, record.duplicate
        );
    }
    text
}

/// What ran it: processors and kernel.
fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{processors} processors, Linux {}, {}", kernel.trim(), std::env::consts::ARCH)
}
