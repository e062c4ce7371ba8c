//! The jobs that the command line names: those of a file, or one that it describes.

use std::cell::OnceCell;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::{ArgMatches, Args, Command};
use vfio_ccw_bench::engines::Plan;
use vfio_ccw_bench::job;
use vfio_ccw_bench::ratio::FieldError;
use vfio_ccw_load::JobFile;
use vfio_ccw_load::job_file::{JobFileError, JobSpec, OptionError};

/// A file and options.
#[derive(Debug, Args)]
pub struct Jobs {
    /// File of jobs; - for standard input.
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Only the job of this name.
    #[arg(long, value_name = "NAME", requires = "file")]
    pub section: Option<String>,
    #[command(flatten)]
    options: JobOptions,
    #[arg(skip)]
    text: OnceCell<String>,
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

/// Why there are no jobs.
#[derive(Debug, thiserror::Error)]
pub enum JobsError {
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
    /// No such job.
    #[error("--section {section}: the file has no job of that name; there are: {names}")]
    Section {
        /// What was asked for.
        section: String,
        /// What there is.
        names: String,
    },
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

impl Jobs {
    /// The jobs, with what the command line says of them.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn specs(&self) -> Result<Vec<JobSpec>, JobsError> {
        let mut specs = match (&self.file, self.text()?) {
            (Some(path), Some(text)) => {
                let syntax = |source| JobsError::Syntax { path: path.clone(), source };
                JobFile::parse(text).map_err(syntax)?.jobs
            }
            _ => vec![JobSpec::new("load")],
        };
        if let Some(section) = &self.section {
            let names = specs.iter().map(|spec| spec.name.clone()).collect::<Vec<_>>().join(", ");
            specs.retain(|spec| spec.name == *section);
            if specs.is_empty() {
                return Err(JobsError::Section { section: section.clone(), names });
            }
        }
        for spec in &mut specs {
            for (name, value) in &self.options.0 {
                spec.set(name, value).map_err(JobsError::Option)?;
            }
            if spec.runtime.is_none() && spec.number_ios.is_none() {
                return Err(JobsError::Endless);
            }
        }
        Ok(specs)
    }

    /// The text of the file, if there is one. It is read once: standard input is not there twice.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn text(&self) -> Result<Option<&str>, JobsError> {
        let Some(path) = &self.file else { return Ok(None) };
        if let Some(text) = self.text.get() {
            return Ok(Some(text));
        }
        let text = read(path).map_err(|source| JobsError::File { path: path.clone(), source })?;
        Ok(Some(self.text.get_or_init(|| text)))
    }

    /// What they are in this program's terms: all of them, before the first runs for an hour.
    ///
    /// # Errors
    /// The first that cannot be.
    pub fn plans<'s>(&self, specs: &'s [JobSpec]) -> Result<Vec<Plan<'s>>, JobsError> {
        let plan = |spec| Plan::of(spec).map_err(|refused| self.failed(spec, refused.into()));
        specs.iter().map(plan).collect()
    }

    /// The job `spec` has failed, or cannot be.
    pub fn failed(&self, spec: &JobSpec, source: FieldError) -> JobsError {
        JobsError::Job { file: self.file.clone(), name: spec.name.clone(), source }
    }

    /// The options as words of a command line.
    pub fn words(&self) -> impl Iterator<Item = String> + '_ {
        self.options.0.iter().flat_map(|(name, value)| [format!("--{name}"), value.clone()])
    }
}

/// A job file is small.
const MOST: u64 = 1 << 20;

/// The text of the file at `path`, or of standard input.
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
