//! The command line: one main job, and tools around volumes, status blocks and the machine.

mod copy;
mod decode;
mod disks;
mod doctor;
mod guest;
mod interrupt;
mod kernel;
mod options;
mod run;
mod serve;
mod top;

use std::error::Error;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Exit status: something was looked at and was wrong.
const EXIT_WRONG: u8 = 1;

/// Exit status: it could not be done as asked.
const EXIT_ERROR: u8 = 2;

#[derive(Debug, Parser)]
#[command(
    name = "vfio-ccw",
    version,
    about = "Channel I/O for s390x guests: a software channel subsystem under load, on any Linux",
    long_about = "Without a subcommand: makes a guest and a scratch volume, attaches FBA disks, writes and reads back \
                  the whole volume through channel programs, then runs a mixed random load and prints where the time went.",
    after_help = "Examples:\n  \
        vfio-ccw                                     the main job, about 10 s\n  \
        vfio-ccw --seconds 60 --mode on-demand       pin and unpin with every request\n  \
        vfio-ccw --subchannels 256 --json run.json   more disks, and a report for scripts\n  \
        vfio-ccw --image disk.img                    read a volume of your own (never written)\n  \
        vfio-ccw copy-out --image disk.img out.img   copy a volume through channel programs\n  \
        vfio-ccw decode irb 00c04007...              status blocks as text\n  \
        vfio-ccw sense-id 0.0.0313                   what a device of the kernel's vfio-ccw is\n  \
        vfio-ccw --kernel 0.0.0313                   how fast it is asked that, and by the fewest system calls\n  \
        vfio-ccw serve --device fba:disk.img --socket disk.sock   a disk for VMMs in other processes
  \
        vfio-ccw --remote disk.sock                  read it from here (--overwrite: write it, too)
  \
        vfio-ccw top                                 watch a service that runs
  \
        vfio-ccw doctor                              what this machine can run, and what to type\n\n\
        Exit status: 0 all right, 1 wrong data or lost requests, 2 could not be done as asked.",
    args_conflicts_with_subcommands = true
)]
struct Arguments {
    #[command(subcommand)]
    tool: Option<Tool>,
    #[command(flatten)]
    job: run::Job,
    #[command(flatten)]
    log: Log,
}

#[derive(Debug, Subcommand)]
enum Tool {
    /// Read a whole volume through channel programs into a file.
    CopyOut(copy::CopyOut),
    /// Write a file through channel programs onto a volume.
    CopyIn(copy::CopyIn),
    /// Show a status block or channel-command word as text.
    Decode(decode::Decode),
    /// Ask a device of the kernel's vfio-ccw what it is.
    SenseId(kernel::SenseId),
    /// Serve devices to VMMs in other processes, over vfio-user.
    Serve(serve::Serve),
    /// Watch a running service or device server: rates, stages, subchannels, pinned memory.
    Top(top::Top),
    /// Look at this machine: what can run here, what is missing, and what to type.
    Doctor(doctor::Doctor),
}

#[derive(Debug, clap::Args)]
struct Log {
    /// What to log on standard error: off, error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "warn", global = true)]
    log: EnvFilter,
}

/// A reason to end, in one line.
type Failure = Box<dyn Error + Send + Sync>;

/// Prints a result on standard output. A reader that has gone away, as `head` does, is no error.
fn say(text: impl Display) -> Result<(), Failure> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// Prints what is going on on standard error. Nothing is lost where nobody listens.
fn tell(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Runs the command line.
pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(arguments.log.log)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        // A log that cannot be written is no reason to panic.
        .log_internal_errors(false)
        .init();
    let result = match arguments.tool {
        None => run::run(&arguments.job),
        Some(Tool::CopyOut(copy)) => copy.run(),
        Some(Tool::CopyIn(copy)) => copy.run(),
        Some(Tool::Decode(decode)) => decode.run(),
        Some(Tool::SenseId(sense_id)) => sense_id.run(),
        Some(Tool::Serve(serve)) => serve.run(),
        Some(Tool::Top(top)) => top.run(),
        Some(Tool::Doctor(doctor)) => doctor.run(),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_WRONG),
        Err(error) => {
            tell(format_args!("vfio-ccw: {error}"));
            ExitCode::from(EXIT_ERROR)
        }
    }
}
