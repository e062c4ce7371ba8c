//! Measures the project's figures (`ratios --json`), compares the pinning modes (`modes`) and the
//! pool's choice of what stays pinned with others (`replacement`), runs loads (`load`), compares them
//! (`compare`), makes a page of it all (`report`), counts instructions (`instructions`), and keeps
//! measurements (`record`).

mod compare;
mod hdr_log;
mod jobs;
mod load;
mod modes;
mod stop;

use clap::{Args, Parser, Subcommand};
use compare::{Compare, CompareError};
use load::{Load, LoadError};
use modes::{Modes, ModesError};
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use vfio_ccw_bench::allocations::Counting;
use vfio_ccw_bench::fields::FIELDS;
use vfio_ccw_bench::instructions::{self, InstructionsError};
use vfio_ccw_bench::peer_process;
use vfio_ccw_bench::ratio::{
    self, Earlier, Field, FieldError, Figure, Measured, Pass, Progress, RatioError,
};
use vfio_ccw_bench::record::{FOLDER, Record};
use vfio_ccw_bench::replacement::Setting;
use vfio_ccw_bench::report::{Report, ReportError};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Measures vfio-ccw against its peers, all in one run.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print each figure with its interval, its target and whether it holds; takes seven minutes, and
    /// some more the first time.
    ///
    /// Goes over all figures in nine passes, each figure in a new process, so that intervals cover what differs from
    /// process to process and from minute to minute. Ctrl-C ends it with the figures of the passes so far, when the
    /// figure under way has ended its rounds: ten seconds at most.
    ///
    /// Exits with 0 where all could be measured, whether or not the targets hold. A figure for which the machine
    /// lacks something, such as fio, is absent, and standard error says so.
    Ratios(Ratios),
    /// Compare the pinning modes: requests a second, latency, pinned memory, hit rate and pin calls.
    Modes(Modes),
    /// Run a load: options and job files as fio's users write them, closed loop or by the clock.
    ///
    /// Exits with 1 where data was wrong or a request was lost, doubled or failed.
    Load(Load),
    /// Run loads in turns and say what they are to each other: jobs of a file, or two builds of this program.
    ///
    /// With --gate, exits with 1 where a load does fewer requests a second than its base.
    Compare(Compare),
    /// Make one page of results: charts and tables as HTML, of any number of JSON files.
    Report(Report),
    /// Print the hit rates of the pool, of an LRU map, of quick_cache and of the optimum on the same
    /// traces; takes some seconds.
    Replacement(Replacement),
    /// Count the instructions of parts of a request's way, with valgrind; takes some ten seconds.
    Instructions(Instructions),
    /// Keep instruction counts and all figures in a file of bench/results; takes ten minutes or more.
    ///
    /// Exits with 0 where all could be measured, whether or not the targets hold.
    Record(Keep),
    /// The other process of some figures.
    #[command(hide = true, name = peer_process::PEER)]
    Peer {
        /// What it does.
        role: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct Ratios {
    /// Print one JSON object, with the figures as fields.
    #[arg(long)]
    json: bool,
    /// Measure only this figure; can be given several times.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// List the figures with what they measure, and measure nothing.
    #[arg(long, conflicts_with = "json")]
    list: bool,
    /// Measure this many rounds of each figure, spread over as many passes, nine at most [default: what each figure
    /// needs].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: Option<u32>,
    /// Say on standard error how the figures agree with those of an earlier run, which '--json' has printed.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Seed of all random choices.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Args)]
struct Replacement {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Seed of all traces.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Args)]
struct Instructions {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Keep {
    /// Leave out the figures: some ten seconds.
    #[arg(long)]
    instructions_only: bool,
    /// Where the file is written, as DATE-COMMIT.json.
    #[arg(long, value_name = "FOLDER", default_value = FOLDER, hide_default_value = true)]
    folder: PathBuf,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Ratios(arguments) => ratios(&arguments),
        Command::Modes(arguments) => {
            arguments.run().map(|()| ExitCode::SUCCESS).map_err(Failure::from)
        }
        Command::Load(arguments) => (arguments.run())
            .map(|clean| if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            .map_err(Failure::from),
        Command::Compare(arguments) => (arguments.run())
            .map(|passed| if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            .map_err(Failure::from),
        Command::Report(arguments) => {
            arguments.run().map(|()| ExitCode::SUCCESS).map_err(Failure::from)
        }
        Command::Replacement(arguments) => replacement(&arguments),
        Command::Instructions(arguments) => instructions(&arguments),
        Command::Record(arguments) => record(&arguments),
        Command::Peer { role } => {
            peer_process::play(&role).map(|()| ExitCode::SUCCESS).map_err(Failure::Peer)
        }
    };
    match result {
        Ok(code) => code,
        // Whoever reads has read enough.
        Err(Failure::Output(error) | Failure::Modes(ModesError::Output(error)))
            if error.kind() == io::ErrorKind::BrokenPipe =>
        {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("vfio-ccw-bench: {error}");
            ExitCode::from(2)
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Ratio(#[from] RatioError),
    #[error(transparent)]
    Modes(#[from] ModesError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Compare(#[from] CompareError),
    #[error("--against {}: {source}", path.display())]
    Earlier { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error("the other process of a figure: {0}")]
    Peer(FieldError),
    #[error("hit rates were not measured: {0}")]
    Replacement(FieldError),
    #[error(transparent)]
    Instructions(#[from] InstructionsError),
    #[error("no record: {0}")]
    Record(FieldError),
    #[error("the figures could not be written: {0}")]
    Output(#[from] io::Error),
    #[error("the figures could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

fn ratios(arguments: &Ratios) -> Result<ExitCode, Failure> {
    let fields = ratio::select(FIELDS, &arguments.only)?;
    let mut out = io::stdout().lock();
    if arguments.list {
        out.write_all(ratio::list(&fields).as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    // Before anything is measured: a wrong name should not cost ten minutes.
    let earlier = arguments.against.as_deref().map(earlier).transpose()?;
    let rounds = arguments.rounds.map(|rounds| rounds as usize);
    let Measured { figures, has_failed, stopped } = figures(&fields, rounds, arguments.seed)?;
    if let Some(Pass { number, of }) = stopped {
        eprintln!("stopped in pass {number} of {of}: the figures are of the passes so far");
    }
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &figures)?;
        writeln!(out)?;
    } else {
        out.write_all(figures.table().as_bytes())?;
    }
    if let Some(earlier) = earlier {
        eprintln!("{}", figures.against(&earlier));
    }
    Ok(code(has_failed))
}

/// Measures these.
fn figures(fields: &[&Field], rounds: Option<usize>, seed: u64) -> io::Result<Measured> {
    let stop = stop::asked()?;
    let mut line = RoundLine { terminal: io::stderr().is_terminal() };
    Ok(ratio::measure(fields, rounds, seed, peer_process::take, &mut line, &stop))
}

/// What the machine lacks is its own business; all else is this program's.
fn code(has_failed: bool) -> ExitCode {
    if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn instructions(arguments: &Instructions) -> Result<ExitCode, Failure> {
    let counts = instructions::Instructions::count()?;
    let mut out = io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &counts)?;
        writeln!(out)?;
    } else {
        out.write_all(counts.table().as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn record(arguments: &Keep) -> Result<ExitCode, Failure> {
    let mut record = Record::begin().map_err(Failure::Record)?;
    let path = record.file(&arguments.folder).map_err(Failure::Record)?;
    record.instructions = instructions::Instructions::count()?;
    let mut failed = false;
    if !arguments.instructions_only {
        let all: Vec<&Field> = FIELDS.iter().collect();
        let Measured { figures, has_failed, stopped } = figures(&all, None, 1)?;
        if let Some(Pass { number, of }) = stopped {
            let why = format!("stopped in pass {number} of {of}");
            return Err(Failure::Record(why.into()));
        }
        failed = has_failed;
        record.ratios = Some(figures);
    }
    record.write(&path).map_err(Failure::Record)?;
    println!("{}", path.display());
    Ok(code(failed))
}

fn earlier(path: &Path) -> Result<Earlier, Failure> {
    let failed = |source: io::Error| Failure::Earlier { path: path.to_owned(), source };
    let text = fs::read_to_string(path).map_err(failed)?;
    Earlier::parse(&text).map_err(|error| failed(io::Error::other(error)))
}

fn replacement(arguments: &Replacement) -> Result<ExitCode, Failure> {
    let rates = Setting::new(arguments.seed).measure().map_err(Failure::Replacement)?;
    let mut out = io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &rates)?;
        writeln!(out)?;
    } else {
        out.write_all(rates.table().as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Progress on standard error: rounds as they end on a terminal, one line a pass and a figure elsewhere.
struct RoundLine {
    terminal: bool,
}

impl RoundLine {
    fn line(&self, text: &str) {
        let clear = if self.terminal { "\r\x1b[2K" } else { "" };
        eprintln!("{clear}{text}");
    }
}

impl Progress for RoundLine {
    fn round(&mut self, pass: Pass, name: &str, done: usize, rounds: usize) {
        if self.terminal {
            let Pass { number, of } = pass;
            eprint!("\r\x1b[2Kpass {number} of {of}: {name}: {done} of {rounds} rounds");
        }
    }

    fn figure(&mut self, name: &str, result: Result<&Figure, &RatioError>) {
        match result {
            Ok(figure) => self.line(&format!("{name}: {figure}")),
            Err(error) => self.line(&format!("{name}: {error}")),
        }
    }

    fn pass(&mut self, pass: Pass, left: Duration) {
        let Pass { number, of } = pass;
        // Rounded up: a rest of some seconds is not none.
        let seconds = left.as_secs() + 1;
        let (minutes, seconds) = (seconds / 60, seconds % 60);
        self.line(&format!(
            "pass {number} of {of} has ended, some {minutes}:{seconds:02} min to go"
        ));
    }
}
