//! A measurement that is kept: what was measured, of which commit, and where.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

use crate::instructions::Instructions;
use crate::machine::{self, Machine};
use crate::ratio::{FieldError, Figures};

/// Where records are kept, beside the source that this program was built from.
pub const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/results");

/// One measurement, as its file has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    /// When it began: UTC, as in 2026-01-31T23:59:59Z.
    pub date: String,
    /// What was measured, with `-changed` where files differed from it.
    pub commit: String,
    /// What `rustc --version` says; none where it is not there.
    pub rustc: Option<String>,
    /// Where.
    pub machine: Machine,
    /// Instructions of an operation, by part.
    pub instructions: Instructions,
    /// The figures, where they were measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratios: Option<Figures>,
}

impl Record {
    /// What is known before anything is measured.
    ///
    /// # Errors
    /// Where this program was not built to be fast, or git does not say which commit it is of.
    pub fn begin() -> Result<Self, FieldError> {
        if cfg!(debug_assertions) {
            return Err(
                "this is a debug build, whose figures say nothing: use 'cargo run --release'"
                    .into(),
            );
        }
        let rustc = said("rustc", &["--version"]).ok();
        let commit = said("git", &["rev-parse", "--short=10", "HEAD"])?;
        let differs = !said("git", &["status", "--porcelain", "--untracked-files=no"])?.is_empty();
        Ok(Self {
            date: machine::now(),
            commit: commit + if differs { "-changed" } else { "" },
            rustc,
            machine: Machine::here(),
            instructions: Instructions::default(),
            ratios: None,
        })
    }

    /// The file that it belongs in: `DATE-COMMIT.json` in `folder`.
    ///
    /// # Errors
    /// Where there is one already.
    pub fn file(&self, folder: &Path) -> Result<PathBuf, FieldError> {
        let day = self.date.split('T').next().unwrap_or_default();
        let path = folder.join(format!("{day}-{}.json", self.commit));
        if path.try_exists()? {
            return Err(
                format!("{} is there already: remove it, or commit first", path.display()).into()
            );
        }
        Ok(path)
    }

    /// Writes it there.
    ///
    /// # Errors
    /// Where the file cannot be written, or has come to be there meanwhile.
    pub fn write(&self, path: &Path) -> Result<(), FieldError> {
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let mut file = std::fs::File::create_new(path).map_err(failed)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        io::Write::write_all(&mut file, b"\n").map_err(failed)?;
        Ok(())
    }
}

/// What a program says, asked in the folder of this crate.
fn said(program: &str, words: &[&str]) -> Result<String, FieldError> {
    let failed = |why: &str| format!("'{program} {}' fails: {why}", words.join(" "));
    let mut command = Command::new(program);
    let output = command.args(words).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let output = output.map_err(|error| failed(&error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            date: "2026-01-31T23:59:59Z".to_owned(),
            commit: "0123456789".to_owned(),
            rustc: None,
            machine: Machine::here(),
            instructions: Instructions::default(),
            ratios: None,
        }
    }

    #[test]
    fn a_record_is_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("results");
        let path = record().file(&folder).unwrap();
        assert!(path.ends_with("2026-01-31-0123456789.json"));
        record().write(&path).unwrap();
        let json = std::fs::read_to_string(&path).unwrap();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["commit"], "0123456789");
        assert!(value["machine"]["processors"].as_u64() > Some(0));
        assert!(value["instructions"].is_object() && value.get("ratios").is_none());
        assert!(record().file(&folder).unwrap_err().to_string().contains("there already"));
        assert!(record().write(&path).is_err());
    }

    #[test]
    fn what_another_program_says_or_does_not() {
        assert_eq!(said("echo", &["a", "b"]).unwrap(), "a b");
        assert!(said("false", &[]).unwrap_err().to_string().contains("'false ' fails"));
        let error = said("/nowhere/git", &["status"]).unwrap_err().to_string();
        assert!(error.contains("'/nowhere/git status' fails"), "{error}");
    }
}
