//! What a run gives: one line a case.

use std::fmt;

/// Lines `SECTION: CASE | RESULT`, in the order of the cases.
#[derive(Debug, Default)]
pub struct Lines(Vec<(String, String)>);

impl Lines {
    /// Reads what [`Lines`] display as; a line that begins with `#` says something about the others.
    pub fn read(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let pair = |line: &str| {
            let (case, result) = line.split_once(" | ").expect("CASE | RESULT");
            (case.trim_end().to_owned(), result.to_owned())
        };
        Lines(lines.map(pair).collect())
    }

    /// The same without those of a section.
    pub fn without(mut self, section: &str) -> Self {
        let is_of = |case: &str| case.split_once(": ").is_some_and(|(of, _)| of == section);
        self.0.retain(|(case, _)| !is_of(case));
        self
    }

    pub fn push(&mut self, case: String, result: String) {
        assert!(self.result(&case).is_none(), "two cases are called {case}");
        self.0.push((case, result));
    }

    /// What a case gave.
    pub fn result(&self, case: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == case).map(|(_, result)| result)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(case, result)| (case.as_str(), result.as_str()))
    }
}

impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|(case, result)| writeln!(f, "{case:<48} | {result}"))
    }
}
