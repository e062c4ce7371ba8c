//! What a figure is, how it is measured, summarised and shown.

mod agreement;
mod bootstrap;
mod field;
mod passes;

pub use agreement::{Agreement, Earlier, NoFigures};
pub use bootstrap::{Interval, interval_of_median, interval_with, median};
pub use field::{Field, FieldError, Figure, Round, Sample, Target};
pub use passes::{Measured, PASSES, Pass, Progress, Rounds, measure};

use crate::fields::Lacking;
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::fmt::Write;

/// Why figures could not be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RatioError {
    /// A name that no figure has.
    #[error("there is no figure {name:?}; there are: {known}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// A round failed.
    #[error("not measured, round {round} failed: {source}")]
    Round {
        /// Number of the round, from 1.
        round: usize,
        /// What the figure's function says.
        source: FieldError,
    },
    /// A round gave a value that is no number, as where a peer took no time at all.
    #[error("not measured, round {round} gave {value}, which is not a finite number")]
    NotFinite {
        /// Number of the round, from 1.
        round: usize,
        /// The value.
        value: f64,
    },
    /// Nothing to take a median of.
    #[error("not measured, 0 rounds were asked for; ask for at least 1")]
    NoRounds,
}

impl RatioError {
    /// Whether it is the machine that lacks something.
    pub fn is_lack(&self) -> bool {
        matches!(self, RatioError::Round { source, .. } if source.is::<Lacking>())
    }
}

/// The fields of `all` with the names in `only`, in the order of `all`; all where `only` is empty.
///
/// # Errors
/// Where a name is not that of a field.
pub fn select<'f>(all: &'f [Field], only: &[String]) -> Result<Vec<&'f Field>, RatioError> {
    if let Some(name) = only.iter().find(|name| all.iter().all(|field| field.name != **name)) {
        let known: Vec<&str> = all.iter().map(|field| field.name).collect();
        return Err(RatioError::Unknown { name: name.clone(), known: known.join(", ") });
    }
    let wanted = |field: &&Field| only.is_empty() || only.iter().any(|name| name == field.name);
    Ok(all.iter().filter(wanted).collect())
}

/// Names, targets and what is measured, as a table.
pub fn list(fields: &[&Field]) -> String {
    let name_width = width(fields.iter().map(|field| field.name.len()), "figure");
    let targets: Vec<String> = fields.iter().map(|field| field.target.to_string()).collect();
    let target_width = width(targets.iter().map(String::len), "target");
    let mut table = format!("{:<name_width$}  {:<target_width$}  measures\n", "figure", "target");
    for (field, target) in fields.iter().zip(targets) {
        // Writing to a string can not fail.
        let _ = writeln!(
            table,
            "{:<name_width$}  {target:<target_width$}  {}",
            field.name, field.measures
        );
    }
    table
}

/// Figures by name, in the order in which they were measured; serialises as one object.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    rows: Vec<(&'static str, Figure)>,
}

impl Figures {
    /// Adds the figure of field `name`.
    pub fn push(&mut self, name: &'static str, figure: Figure) {
        self.rows.push((name, figure));
    }

    /// The figures as a table for people.
    pub fn table(&self) -> String {
        let name_width = width(self.rows.iter().map(|(name, _)| name.len()), "figure");
        let mut table = format!(
            "{:<name_width$}  {:>10}  {:>23}  {:<16}  holds\n",
            "figure", "value", "95 % interval", "target"
        );
        for (name, figure) in &self.rows {
            let interval = format!("{} to {}", figure.low, figure.high);
            let holds = if figure.holds { "yes" } else { "NO" };
            // Writing to a string can not fail.
            let _ = writeln!(
                table,
                "{name:<name_width$}  {:>10}  {interval:>23}  {:<16}  {holds}",
                figure.value,
                figure.target.to_string(),
            );
        }
        table
    }
}

impl Serialize for Figures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.rows.len()))?;
        for (name, figure) in &self.rows {
            map.serialize_entry(name, figure)?;
        }
        map.end()
    }
}

fn width(lengths: impl Iterator<Item = usize>, heading: &str) -> usize {
    lengths.max().unwrap_or(0).max(heading.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three(_: &Round) -> Result<Sample, FieldError> {
        Ok(Sample::absolute(3.0))
    }

    fn field(name: &'static str) -> Field {
        Field { name, measures: "three", target: Target::Le(4.0), rounds: 3, round: three }
    }

    #[test]
    fn selection_keeps_the_order_of_the_table() {
        let all = [field("a"), field("b"), field("c")];
        let names = |only: &[&str]| -> Vec<&str> {
            let only: Vec<String> = only.iter().map(|&name| name.to_owned()).collect();
            select(&all, &only).unwrap().iter().map(|field| field.name).collect()
        };
        assert_eq!(names(&[]), ["a", "b", "c"]);
        assert_eq!(names(&["c", "a", "c"]), ["a", "c"]);
        let error = select(&all, &["a".to_owned(), "x".to_owned()]).unwrap_err().to_string();
        assert_eq!(error, "there is no figure \"x\"; there are: a, b, c");
    }

    #[test]
    fn figures_serialise_as_one_object_in_order() {
        let mut figures = Figures::default();
        for name in ["second", "first"] {
            figures.push(name, Figure::of(Target::Le(4.0), vec![vec![3.0]; 3], 1).unwrap());
        }
        assert_eq!(
            serde_json::to_string(&figures).unwrap(),
            r#"{"second":{"value":3.0,"low":3.0,"high":3.0,"target":"<= 4.0","holds":true},"#
                .to_owned()
                + r#""first":{"value":3.0,"low":3.0,"high":3.0,"target":"<= 4.0","holds":true}}"#
        );
        let table = figures.table();
        assert!(
            table.contains("second") && table.contains("3 to 3") && table.contains("yes"),
            "{table}"
        );
    }

    #[test]
    fn the_list_names_target_and_meaning() {
        let (a, b) = (field("a"), field("longer_name"));
        let list = list(&[&a, &b]);
        assert_eq!(list.lines().count(), 3);
        assert!(list.lines().all(|line| line.find("<=").is_none_or(|at| at == 13)), "{list}");
    }
}
