//! How many instructions each [part](crate::parts) of a request's way executes.
//!
//! A time varies with whatever else the machine does; a count hardly does, so that it shows a change of one
//! instruction. Valgrind counts: a part runs twice, a few times and many times, and the difference of the counts
//! is that of the operations alone, for the set-up is the same in both. What a cache miss or a locked
//! instruction costs, a count does not say.

use std::ffi::OsString;
use std::fmt::Write;
use std::io;
use std::process::{Command, Output, Stdio};

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::parts::Part;
use crate::peer_process;

/// Operations of the short run and of the long one.
const FEW: u64 = 640;
const MANY: u64 = 11 * FEW;

/// Why instructions were not counted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstructionsError {
    /// No valgrind.
    #[error(
        "instructions are counted by valgrind, which is not there: install the package valgrind"
    )]
    NoValgrind,
    /// Valgrind, or this program in it, cannot be started.
    #[error("valgrind cannot be run: {0}")]
    Start(#[from] io::Error),
    /// It ended otherwise than it should.
    #[error(
        "{part} under valgrind: {status}: {said}; if valgrind does not know this processor's instructions, a newer one may"
    )]
    Failed {
        /// What was run.
        part: Part,
        /// How it ended.
        status: String,
        /// The last that it said.
        said: String,
    },
    /// It says no count.
    #[error("{part} under valgrind: no line 'Collected : NUMBER' in: {said}")]
    NoCount {
        /// What was run.
        part: Part,
        /// The last that it said.
        said: String,
    },
    /// More operations took fewer instructions.
    #[error(
        "{part} under valgrind: {few} instructions with {FEW} operations, {many} with {MANY}: run it again"
    )]
    Fewer {
        /// What was run.
        part: Part,
        /// Instructions of the short run.
        few: u64,
        /// Instructions of the long run.
        many: u64,
    },
}

/// Instructions of one operation, by part; serialises as one object.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Instructions(Vec<(Part, f64)>);

impl Instructions {
    /// Counts those of every part: some ten seconds.
    ///
    /// # Errors
    /// Where valgrind is not there or fails.
    pub fn count() -> Result<Self, InstructionsError> {
        let of = |part| Ok((part, of_operation(part, |times| collected(part, times))?));
        Ok(Self(Part::ALL.into_iter().map(of).collect::<Result<_, InstructionsError>>()?))
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut table = format!("{:<10}  {:>12}\n", "operation", "instructions");
        for (part, count) in &self.0 {
            // Writing to a string can not fail.
            let _ = writeln!(table, "{:<10}  {count:>12.1}", part.name());
        }
        table
    }
}

impl Serialize for Instructions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (part, count) in &self.0 {
            map.serialize_entry(part.name(), count)?;
        }
        map.end()
    }
}

/// Instructions of one operation, in tenths: beyond that it is what surrounds them.
fn of_operation(
    part: Part,
    collected: impl Fn(u64) -> Result<u64, InstructionsError>,
) -> Result<f64, InstructionsError> {
    let (few, many) = (collected(FEW)?, collected(MANY)?);
    let more = many.checked_sub(few).ok_or(InstructionsError::Fewer { part, few, many })?;
    Ok((more as f64 / (MANY - FEW) as f64 * 10.0).round() / 10.0)
}

/// Instructions of a process that does this so many times.
fn collected(part: Part, times: u64) -> Result<u64, InstructionsError> {
    count_of(part, &run("valgrind", &peer_process::part(part, times)?)?)
}

fn run(valgrind: &str, program: &[OsString]) -> Result<Output, InstructionsError> {
    let mut command = Command::new(valgrind);
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).args(program);
    command.stdin(Stdio::null()).output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => InstructionsError::NoValgrind,
        _ => InstructionsError::Start(error),
    })
}

fn count_of(part: Part, output: &Output) -> Result<u64, InstructionsError> {
    let said = String::from_utf8_lossy(&output.stderr);
    let last = || {
        let lines: Vec<&str> = said.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    };
    if !output.status.success() {
        let status = output.status.to_string();
        return Err(InstructionsError::Failed { part, status, said: last() });
    }
    // As in "==4711== Collected : 123456".
    let count = said.lines().find_map(|line| {
        let (_, count) = line.split_once("Collected :")?;
        count.trim().parse().ok()
    });
    count.ok_or_else(|| InstructionsError::NoCount { part, said: last() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    fn output(code: i32, said: &str) -> Output {
        let status = ExitStatus::from_raw(code << 8);
        Output { status, stdout: Vec::new(), stderr: said.into() }
    }

    #[test]
    fn the_count_is_where_callgrind_says_it() {
        let said = "==7== Events    : Ir\n==7== Collected : 614430\n==7==\n";
        assert_eq!(count_of(Part::Ring, &output(0, said)).unwrap(), 614_430);
        let error = count_of(Part::Ring, &output(1, said)).unwrap_err().to_string();
        assert!(error.starts_with("ring under valgrind: exit status: 1"), "{error}");
        let error = count_of(Part::Finish, &output(0, "==7== nothing")).unwrap_err().to_string();
        assert!(error.contains("==7== nothing"), "{error}");
    }

    #[test]
    fn set_up_cancels_out() {
        let with_set_up = |times| Ok(1_000_000 + 42 * times);
        assert_eq!(of_operation(Part::Ring, with_set_up).unwrap(), 42.0);
        let error = of_operation(Part::Ring, |times| Ok(1_000_000 - times)).unwrap_err();
        assert!(error.to_string().contains("999360"), "{error}");
    }

    #[test]
    fn a_missing_valgrind_is_said() {
        let error = run("/nowhere/valgrind", &["true".into()]).unwrap_err().to_string();
        assert!(error.contains("install the package valgrind"), "{error}");
    }

    #[test]
    fn counts_are_one_object() {
        let counts = Instructions(vec![(Part::PinHit, 33.5), (Part::Finish, 9.0)]);
        let json = serde_json::to_string(&counts).unwrap();
        assert_eq!(json, r#"{"pin_hit":33.5,"finish":9.0}"#);
        assert!(counts.table().contains("pin_hit             33.5"), "{}", counts.table());
    }
}
