//! The command `report`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::read::Source;
use super::{ReportError, page};

const EXAMPLES: &str = "\
Files are told apart by what is in them, and can be mixed: those of load and compare, ratios and
modes. The page shows what they have data for: latency by stage, latency against load, throughput
against subchannels, pinned memory against latency, distributions, comparisons and figures. It is
one file without scripts, and asks nothing of a network.

Examples:
  vfio-ccw-bench load jobs.fio --json run.json && vfio-ccw-bench report run.json
  vfio-ccw-bench report before.json after.json ratios.json modes.json --output all.html
  vfio-ccw-bench modes --json | vfio-ccw-bench report - --title 'Modes' --output modes.html";

/// Makes a page of results.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Report {
    /// Results as JSON; - for standard input.
    #[arg(value_name = "RUN.json", required = true)]
    files: Vec<PathBuf>,
    /// Where the page goes; - for standard output.
    #[arg(long, short, value_name = "FILE", default_value = "report.html")]
    output: PathBuf,
    /// Heading of the page.
    #[arg(long, value_name = "TEXT", default_value = "vfio-ccw: measurements")]
    title: String,
}

impl Report {
    /// Reads the files and writes the page.
    ///
    /// # Errors
    /// A file that cannot be read or is none of ours; a page that cannot be written.
    pub fn run(&self) -> Result<(), ReportError> {
        let sources: Vec<Source> =
            self.files.iter().map(|path| Source::open(path)).collect::<Result<_, _>>()?;
        let text = page(&self.title, &sources);
        let written = match self.output == Path::new("-") {
            true => io::stdout().lock().write_all(text.as_bytes()),
            false => fs::write(&self.output, &text),
        };
        match written {
            // Whoever reads has read enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(source) => Err(ReportError::Output { path: self.output.clone(), source }),
            Ok(()) => Ok(()),
        }
    }
}
