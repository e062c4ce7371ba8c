//! One page of any number of result files: `vfio-ccw-bench report`.
//!
//! The page is a file of its own: it asks nothing of a network and runs no script, which a policy in its
//! head also forbids. Names in the files are text in it, whatever they are.
//!
//! | module | holds |
//! |---|---|
//! | `command` | the command |
//! | [`read`] | files, told apart by what is in them |
//! | `page` | the page around its sections |
//! | `section` | what is shown, one module each |
//! | `series` | which jobs are points of one line |
//! | `chart`, `scale` | charts with two axes |
//! | `bar` | intervals in the cell of a table |
//! | `table`, `number` | tables, and numbers as they stand in them |

mod bar;
mod chart;
mod command;
mod number;
mod page;
pub mod read;
mod scale;
mod section;
mod series;
mod table;

#[cfg(test)]
mod sample;

pub use command::Report;
pub use page::page;

use std::io;
use std::path::PathBuf;

use read::MOST_BYTES;
use vfio_ccw_load::units::Bytes;

/// What a file must be.
const EXPECTED: &str =
    "give files that `load --json`, `compare --json`, `ratios --json` or `modes --json` wrote";

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A file cannot be read.
    #[error("{file} cannot be read: {source}")]
    Read {
        /// The file.
        file: String,
        /// What the system says.
        source: io::Error,
    },
    /// A file is larger than any that this program writes of jobs a page can show.
    #[error("{file} is larger than {}; give fewer jobs a file", Bytes(MOST_BYTES))]
    TooLarge {
        /// The file.
        file: String,
    },
    /// A text in a file is longer than any of ours.
    #[error(
        "{file}, line {line}: a text is longer than {most} bytes, which none of ours is; {EXPECTED}"
    )]
    LongText {
        /// The file.
        file: String,
        /// Where.
        line: usize,
        /// The longest.
        most: usize,
    },
    /// A file is not JSON.
    #[error("{file} is not JSON: {source}; {EXPECTED}")]
    NoJson {
        /// The file.
        file: String,
        /// The mistake and where it is.
        source: serde_json::Error,
    },
    /// A file is JSON of another kind.
    #[error("{file} holds none of our results but {found}; {EXPECTED}")]
    Unknown {
        /// The file.
        file: String,
        /// What it holds.
        found: String,
    },
    /// A file of ours lacks a field, or has another in its place.
    #[error("{file}: {source}; if another version wrote it, measure again with this one")]
    Fields {
        /// The file.
        file: String,
        /// The field and where it is.
        source: serde_json::Error,
    },
    /// Nobody takes the page.
    #[error("the page could not be written to {}: {source}; choose another place with --output", path.display())]
    Output {
        /// Where it was to go.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}
