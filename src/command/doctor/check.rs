//! One thing that was looked at: what was found, how good that is, and what to type.

use std::fmt;

use serde_json::{Value, json};

/// Width of the longest verdict.
const VERDICT_WIDTH: usize = 7;

/// How good it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// Nothing is wrong, and it is worth knowing.
    Note,
    /// It works, and not as well as it could.
    Warning,
    /// Something does not work without it.
    Missing,
}

impl Verdict {
    /// The word that text and JSON use.
    pub(super) fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Warning => "warning",
            Verdict::Missing => "missing",
        }
    }
}

/// What was looked at.
#[derive(Clone, Debug)]
pub(super) struct Check {
    /// What it is, in a word or two.
    pub(super) name: String,
    /// How good it is.
    pub(super) verdict: Verdict,
    /// What there is.
    pub(super) found: String,
    /// Command lines that make it better, in the order in which to type them.
    pub(super) remedy: Vec<String>,
}

impl Check {
    fn new(name: impl Into<String>, verdict: Verdict, found: impl Into<String>) -> Self {
        Check { name: name.into(), verdict, found: found.into(), remedy: Vec::new() }
    }

    /// All is well.
    pub(super) fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Check::new(name, Verdict::Ok, found)
    }

    /// Worth knowing.
    pub(super) fn note(name: impl Into<String>, found: impl Into<String>) -> Self {
        Check::new(name, Verdict::Note, found)
    }

    /// It could be better.
    pub(super) fn warning(name: impl Into<String>, found: impl Into<String>) -> Self {
        Check::new(name, Verdict::Warning, found)
    }

    /// Something does not work.
    pub(super) fn missing(name: impl Into<String>, found: impl Into<String>) -> Self {
        Check::new(name, Verdict::Missing, found)
    }

    /// The same with one more line to type.
    pub(super) fn remedy(mut self, line: impl Into<String>) -> Self {
        self.remedy.push(line.into());
        self
    }

    /// Whether something does not work.
    pub(super) fn is_missing(&self) -> bool {
        self.verdict == Verdict::Missing
    }

    /// As the report for scripts has it.
    pub(super) fn json(&self) -> Value {
        json!({
            "name": self.name,
            "verdict": self.verdict.name(),
            "found": self.found,
            "remedy": self.remedy,
        })
    }
}

/// Checks as lines, with names as wide as `width`.
pub(super) struct Lines<'a> {
    pub(super) checks: &'a [Check],
    pub(super) width: usize,
}

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let indent = self.width + VERDICT_WIDTH + 6;
        for Check { name, verdict, found, remedy } in self.checks {
            let word = verdict.name();
            writeln!(f, "  {name:<0$}  {word:<VERDICT_WIDTH$}  {found}", self.width)?;
            for line in remedy {
                writeln!(f, "{:indent$}type: {line}", "")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_aligned_and_say_what_to_type() {
        let checks = [
            Check::ok("cpu", "2"),
            Check::missing("driver", "not there").remedy("modprobe x").remedy("ls"),
        ];
        let text = Lines { checks: &checks, width: 8 }.to_string();
        let lines = [
            "  cpu       ok       2",
            "  driver    missing  not there",
            "                     type: modprobe x",
            "                     type: ls",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), lines);
    }

    #[test]
    fn scripts_get_the_same() {
        let check = Check::warning("limit", "1 byte").remedy("ulimit -l 64");
        let json = json!({"name": "limit", "verdict": "warning", "found": "1 byte", "remedy": ["ulimit -l 64"]});
        assert_eq!(check.json(), json);
    }
}
