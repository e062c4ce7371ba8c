//! Series whose labels change from one scrape to the next: families that share their labels, a row of
//! values for each set of labels.
//!
//! The exporter keeps each series that it has ever seen. These are asked for at each scrape instead, so
//! that what is gone is not told of any more.

use std::fmt::{self, Write};
use std::sync::Arc;

/// What the values of a family are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FamilyKind {
    /// A sum that only grows; its name ends in `_total`.
    Counter,
    /// A value that goes up and down.
    Gauge,
}

impl FamilyKind {
    /// As a `# TYPE` line says it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// A metric: its name, and what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// What its values are.
    pub kind: FamilyKind,
    /// The Prometheus name.
    pub name: &'static str,
    /// The help text.
    pub help: &'static str,
}

impl Family {
    /// A counter.
    #[must_use]
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { kind: FamilyKind::Counter, name, help }
    }

    /// A gauge.
    #[must_use]
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { kind: FamilyKind::Gauge, name, help }
    }
}

/// The values of one set of labels: one for each family, in their order.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Names and values; the values may be anything.
    pub labels: Vec<(&'static str, String)>,
    /// A value for each family.
    pub values: Vec<f64>,
}

/// Families, and who knows their rows.
#[derive(Clone)]
pub(crate) struct Rows {
    pub(crate) families: &'static [Family],
    pub(crate) collect: Arc<dyn Fn() -> Vec<Row> + Send + Sync>,
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.families.iter().map(|family| family.name)).finish()
    }
}

/// Appends the families and their rows to `text`, in Prometheus' text format.
pub(crate) fn write_rows(families: &[Family], rows: &[Row], text: &mut String) -> fmt::Result {
    for (place, family) in families.iter().enumerate() {
        writeln!(text, "# HELP {} {}", family.name, escaped(family.help, false))?;
        writeln!(text, "# TYPE {} {}", family.name, family.kind.name())?;
        for row in rows {
            let Some(value) = row.values.get(place) else { continue };
            text.push_str(family.name);
            for (index, (label, is)) in row.labels.iter().enumerate() {
                let before = if index == 0 { '{' } else { ',' };
                write!(text, "{before}{label}=\"{}\"", escaped(is, true))?;
            }
            if !row.labels.is_empty() {
                text.push('}');
            }
            match value.is_infinite() {
                false => writeln!(text, " {value}")?,
                true => writeln!(text, " {}Inf", if *value > 0.0 { '+' } else { '-' })?,
            }
        }
    }
    Ok(())
}

/// With what would end the line, or the quotes, in its place.
fn escaped(words: &str, is_quoted: bool) -> String {
    let mut text = String::with_capacity(words.len());
    for letter in words.chars() {
        match letter {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '"' if is_quoted => text.push_str("\\\""),
            letter => text.push(letter),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAMILIES: [Family; 2] = [
        Family { kind: FamilyKind::Counter, name: "a_total", help: "As \\ so far." },
        Family { kind: FamilyKind::Gauge, name: "b", help: "Bs now,\nand \"then\"." },
    ];

    #[test]
    fn each_family_has_a_line_of_each_row() {
        let rows = [
            Row {
                labels: vec![("x", "1\"\\\n".into()), ("y", String::new())],
                values: vec![1.0, 0.5],
            },
            Row { labels: vec![], values: vec![2.0, f64::NEG_INFINITY] },
            Row { labels: vec![("x", "short".into())], values: vec![3.0] },
        ];
        let mut text = String::new();
        write_rows(&FAMILIES, &rows, &mut text).unwrap();
        let expected = "# HELP a_total As \\\\ so far.\n# TYPE a_total counter\n\
             a_total{x=\"1\\\"\\\\\\n\",y=\"\"} 1\na_total 2\na_total{x=\"short\"} 3\n\
             # HELP b Bs now,\\nand \"then\".\n# TYPE b gauge\n\
             b{x=\"1\\\"\\\\\\n\",y=\"\"} 0.5\nb -Inf\n";
        assert_eq!(text, expected);
    }
}
