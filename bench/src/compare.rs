//! `compare`: loads in turns, each in a process of its own every time.
//!
//! A process has its place in memory for as long as it lives, and a place can be a few percent better than another. A new
//! one each round makes that chance, which the rounds average out.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use vfio_ccw_bench::comparison::{CONFIDENCE, Measure, Rounds, judge};
use vfio_ccw_bench::machine::{Machine, now};
use vfio_ccw_bench::ratio::FieldError;
use vfio_ccw_bench::run::{CompareRow, CompareRun, JobRecord, Run, Verdict};

use crate::jobs::{Jobs, JobsError};
use crate::stop;

const EXAMPLES: &str = "\
Without --base, the first job of the file is what the others are compared with. With it, each job is run by that
program, too, which is the base: an earlier build of this one, or one with other features.

Each round runs all of them once, one right after the other, each in a process of its own. Give jobs a runtime of half
a second or so; what takes longer is better measured in more rounds. Ratios are medians over the rounds, with
a 99 % bootstrap interval. A load is better or worse than its base where 1 is outside of that, and the same
where it is not: then no difference has been shown, which does not show that there is none.

Examples:
  vfio-ccw-bench compare engines.fio                       the first job against each other one
  vfio-ccw-bench compare engines.fio --rounds 101 --json ab.json
  vfio-ccw-bench compare --base ../before/target/release/vfio-ccw-bench --ioengine null --program idal \\
                         --iodepth 64 --runtime 300ms --gate";

/// Fewest rounds that an interval can be made of.
const FEWEST: u32 = 9;

/// Most that a process may say.
const MOST: u64 = 64 << 20;

/// What is compared, and how often.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Compare {
    #[command(flatten)]
    jobs: Jobs,
    /// Another build of this program: what it does is the base.
    #[arg(long, value_name = "PROGRAM")]
    base: Option<PathBuf>,
    /// How often each runs.
    #[arg(long, value_name = "N", default_value_t = 31, value_parser = clap::value_parser!(u32).range(i64::from(FEWEST)..=10_000))]
    rounds: u32,
    /// Exit with 1 where a load does fewer requests a second than its base.
    #[arg(long)]
    gate: bool,
    /// Write the results as JSON there too; - for standard output instead of the table.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// No progress on standard error.
    #[arg(long, short)]
    quiet: bool,
    /// Seed of the bootstrap.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// There are no jobs.
    #[error(transparent)]
    Jobs(#[from] JobsError),
    /// Nothing to compare with.
    #[error(
        "there is one job, '{name}', and nothing to compare it with: give a file with more, or --base"
    )]
    Alone {
        /// Its name.
        name: String,
    },
    /// A process did not do its load.
    #[error("round {round}, '{name}' by {}: {source}", program.display())]
    Load {
        /// Number of the round.
        round: u32,
        /// Name of the load.
        name: String,
        /// What ran it.
        program: PathBuf,
        /// What went wrong.
        source: FieldError,
    },
    /// Stopped before there was enough.
    #[error("stopped after {rounds} rounds; {FEWEST} are the fewest that tell something")]
    Stopped {
        /// Rounds that are complete.
        rounds: u32,
    },
    /// Nowhere to print.
    #[error("the comparison could not be written: {0}")]
    Output(#[from] io::Error),
}

/// A load and what runs it.
struct Contender {
    program: PathBuf,
    section: String,
    rounds: Rounds,
}

impl Compare {
    /// Runs and prints it. `false`: a load is worse than its base, and that was asked about.
    pub fn run(&self) -> Result<bool, CompareError> {
        let specs = self.jobs.specs()?;
        // What a child would say of it, said once.
        self.jobs.plans(&specs)?;
        let this = std::env::current_exe()?;
        let mut contenders = Vec::new();
        for spec in &specs {
            let mut contend = |program: &Path, name: String| {
                let rounds = Rounds { name, records: Vec::new() };
                let (program, section) = (program.to_owned(), spec.name.clone());
                contenders.push(Contender { program, section, rounds });
            };
            if let Some(base) = &self.base {
                contend(base, format!("{} (base)", spec.name));
            }
            contend(&this, spec.name.clone());
        }
        if let [alone] = &contenders[..] {
            return Err(CompareError::Alone { name: alone.section.clone() });
        }
        let stop = stop::asked()?;
        let date = now();
        let done = self.measure(&mut contenders, &stop)?;
        if done < FEWEST {
            return Err(CompareError::Stopped { rounds: done });
        }
        let rows = self.rows(&contenders);
        self.print(date, done, &rows)?;
        let is_worse =
            |row: &CompareRow| row.measure == Measure::Iops.name() && row.verdict == Verdict::Worse;
        Ok(!(self.gate && rows.iter().any(is_worse)))
    }

    /// Runs the rounds; how many are complete.
    fn measure(
        &self,
        contenders: &mut [Contender],
        stop: &AtomicBool,
    ) -> Result<u32, CompareError> {
        let text = self.jobs.text()?;
        let begin = Instant::now();
        let count = contenders.len();
        for round in 0..self.rounds {
            self.show(round, begin.elapsed());
            let mut records = Vec::with_capacity(count);
            for turn in 0..count {
                // Who goes first changes, so that a machine that warms up favours none.
                let index = (round as usize + turn) % count;
                let contender = &contenders[index];
                let record = self.load(contender, text);
                // Relaxed: the flag is all that the signal says. The child has had it, too.
                if stop.load(Ordering::Relaxed) {
                    self.clear();
                    return Ok(round);
                }
                let record = record.map_err(|source| CompareError::Load {
                    round: round + 1,
                    name: contender.section.clone(),
                    program: contender.program.clone(),
                    source,
                })?;
                records.push((index, record));
            }
            for (index, record) in records {
                contenders[index].rounds.records.push(record);
            }
        }
        self.clear();
        Ok(self.rounds)
    }

    /// One round of one.
    fn load(&self, contender: &Contender, text: Option<&str>) -> Result<JobRecord, FieldError> {
        let mut command = Command::new(&contender.program);
        command.args(["load", "--quiet", "--json", "-"]).args(self.jobs.words());
        if text.is_some() {
            command.args(["--section", &contender.section, "--", "-"]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let (Some(text), Some(mut input)) = (text, child.stdin.take()) {
            // A program that does not read it has ended, and says why.
            let _ = input.write_all(text.as_bytes());
        }
        let mut said = String::new();
        if let Some(out) = child.stdout.take() {
            out.take(MOST).read_to_string(&mut said)?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{}: {}", output.status, errors.trim()).into());
        }
        match serde_json::from_str(&said) {
            Ok(Run::Load(mut run)) if run.jobs.len() == 1 => Ok(run.jobs.remove(0)),
            Ok(_) => Err("it has run something else than one job".into()),
            Err(error) => {
                Err(format!("no record of a load: {error}; is it a build of this program?").into())
            }
        }
    }

    fn rows(&self, contenders: &[Contender]) -> Vec<CompareRow> {
        let judge =
            |base: &Contender, other: &Contender| judge(&base.rounds, &other.rounds, self.seed);
        match &self.base {
            Some(_) => contenders.chunks(2).flat_map(|pair| judge(&pair[0], &pair[1])).collect(),
            None => contenders[1..].iter().flat_map(|other| judge(&contenders[0], other)).collect(),
        }
    }

    fn print(&self, date: String, rounds: u32, rows: &[CompareRow]) -> Result<(), CompareError> {
        if self.json.as_deref() != Some(Path::new("-")) {
            io::stdout().write_all(table(rows, rounds).as_bytes())?;
        }
        let Some(path) = &self.json else { return Ok(()) };
        let run = Run::Compare(CompareRun {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            date,
            machine: Machine::here(),
            rounds,
            confidence: CONFIDENCE,
            rows: rows.to_vec(),
        });
        run.write(path)?;
        Ok(())
    }

    fn show(&self, round: u32, elapsed: Duration) {
        if self.quiet || !io::stderr().is_terminal() {
            return;
        }
        let left = elapsed.checked_div(round).unwrap_or_default() * (self.rounds - round);
        eprint!("\r\x1b[2Kround {} of {}, {} s to go", round + 1, self.rounds, left.as_secs());
    }

    fn clear(&self) {
        if !self.quiet && io::stderr().is_terminal() {
            eprint!("\r\x1b[2K");
        }
    }
}

/// The comparison for people.
fn table(rows: &[CompareRow], rounds: u32) -> String {
    let width = |of: fn(&CompareRow) -> &String, least: usize| {
        rows.iter().map(|row| of(row).len()).max().unwrap_or(0).max(least)
    };
    let (other, base) = (width(|row| &row.other, 4), width(|row| &row.base, 4));
    let mut text = format!(
        "{:<other$}  {:<base$}  {:<7}  {:>12}  {:>12}  {:>7}  {:>16}  verdict\n",
        "load", "base", "measure", "load's", "base's", "ratio", "99 % interval"
    );
    for row in rows {
        let verdict = match row.verdict {
            Verdict::Better => "BETTER",
            Verdict::Worse => "WORSE",
            Verdict::Same => "same",
        };
        let interval = format!("{:.3} to {:.3}", row.low, row.high);
        // Writing to a string can not fail.
        let _ = writeln!(
            text,
            "{:<other$}  {:<base$}  {:<7}  {:>12.0}  {:>12.0}  {:>7.3}  {interval:>16}  {verdict}",
            row.other, row.base, row.measure, row.other_value, row.base_value, row.ratio
        );
    }
    let _ = writeln!(text, "{rounds} rounds; ratios are load / base");
    text
}
