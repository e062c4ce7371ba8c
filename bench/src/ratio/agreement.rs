//! Whether two runs say the same: figure by figure, whether their intervals overlap.

use super::Figures;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;

/// The figures of an earlier run, by name.
#[derive(Debug, Clone, PartialEq)]
pub struct Earlier(BTreeMap<String, Ends>);

/// Ends of an interval; what else there is of a figure does not matter here.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
struct Ends {
    low: f64,
    high: f64,
}

/// A file of `ratios --json` is the figures; a recorded result has them in a field.
#[derive(Deserialize)]
#[serde(untagged)]
enum File {
    Recorded { ratios: BTreeMap<String, Ends> },
    Figures(BTreeMap<String, Ends>),
}

impl Earlier {
    /// Reads what `ratios --json` has printed, or a recorded result.
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(text: &str) -> Result<Self, NoFigures> {
        match serde_json::from_str(text) {
            Ok(File::Recorded { ratios } | File::Figures(ratios)) => Ok(Earlier(ratios)),
            Err(_) => Err(NoFigures),
        }
    }
}

/// Not the figures of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("these are no figures: give what 'ratios --json' has printed, or a file of bench/results")]
pub struct NoFigures;

/// How two runs agree.
#[derive(Debug, Clone, PartialEq)]
pub struct Agreement {
    /// Figures that both runs have.
    pub common: usize,
    /// Those whose intervals have nothing in common: name, earlier and now.
    pub apart: Vec<(&'static str, [f64; 2], [f64; 2])>,
}

impl Figures {
    /// How these agree with those of an earlier run.
    pub fn against(&self, earlier: &Earlier) -> Agreement {
        let mut agreement = Agreement { common: 0, apart: Vec::new() };
        for (name, figure) in &self.rows {
            let Some(then) = earlier.0.get(*name) else { continue };
            agreement.common += 1;
            if then.high < figure.low || figure.high < then.low {
                let now = [figure.low, figure.high];
                agreement.apart.push((name, [then.low, then.high], now));
            }
        }
        agreement
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let same = self.common - self.apart.len();
        write!(f, "{same} of {} figures agree with the earlier run", self.common)?;
        for (name, [low, high], [now_low, now_high]) in &self.apart {
            write!(f, "\n  {name}: {low} to {high} then, {now_low} to {now_high} now")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratio::{Figure, Target};

    #[test]
    fn intervals_that_touch_agree_and_others_are_named() {
        let passes = vec![vec![1.0], vec![2.0], vec![3.0]];
        let figure = Figure::of(Target::Le(9.0), passes, 1).unwrap();
        let mut figures = Figures::default();
        ["same", "touches", "below", "new"].iter().for_each(|name| figures.push(name, figure));
        let text = r#"{"same": {"low": 1.0, "high": 3.0, "value": 2}, "touches": {"low": 3, "high": 4},
                       "below": {"low": 0.1, "high": 0.9}, "gone": {"low": 0, "high": 9}}"#;
        let recorded = format!("{{\"date\": \"2026-01-01\", \"ratios\": {text}}}");
        for text in [text, &recorded] {
            let agreement = figures.against(&Earlier::parse(text).unwrap());
            assert_eq!(agreement.common, 3);
            assert_eq!(agreement.apart, [("below", [0.1, 0.9], [1.0, 3.0])]);
            assert!(agreement.to_string().starts_with("2 of 3 figures agree"), "{agreement}");
        }
        for text in ["", "[]", "{\"a\": 1}", "{\"jobs\": []}"] {
            assert_eq!(Earlier::parse(text), Err(NoFigures), "{text}");
        }
    }
}
