//! Files of results, told apart by what is in them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::ReportError;
use crate::fields::FIELDS;
use crate::run::{CompareRun, LoadRun};

/// Most bytes of a file: about two thousand jobs with all their buckets.
pub const MOST_BYTES: u64 = 64 << 20;

/// Most bytes of one text in it. The longest of ours is the release of a kernel.
const MOST_TEXT: usize = 1024;

/// A file and what it holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Its name as it was given.
    pub name: String,
    /// What is in it.
    pub content: Content,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Of `load --json`.
    Load(LoadRun),
    /// Of `compare --json`.
    Compare(CompareRun),
    /// Of `ratios --json`, in the order in which `ratios` has them.
    Ratios(Vec<RatioRow>),
    /// Of `modes --json`.
    Modes(ModesRun),
}

/// A figure with its name.
#[derive(Debug, Clone, PartialEq)]
pub struct RatioRow {
    /// Its name.
    pub name: String,
    /// What was measured.
    pub figure: RatioFigure,
}

/// A figure as `ratios --json` writes it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct RatioFigure {
    /// Median of the rounds.
    pub value: f64,
    /// Lower end of its interval.
    pub low: f64,
    /// Upper end of its interval.
    pub high: f64,
    /// What is asked of it, such as `<= 1.0`.
    pub target: String,
    /// Whether the value is that.
    pub holds: bool,
}

/// A file of `bench/results`, of which the figures are shown.
#[derive(Deserialize)]
struct Recorded {
    ratios: BTreeMap<String, RatioFigure>,
}

/// What of `modes --json` is shown.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ModesRun {
    /// Memory of the guest.
    pub guest_bytes: u64,
    /// Most of it that may be pinned, but for mode pinned.
    pub budget_bytes: u64,
    /// Disks, each with a request under way.
    pub subchannels: u32,
    /// The modes under each access pattern.
    pub workloads: Vec<ModesWorkload>,
}

/// The modes under one access pattern.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ModesWorkload {
    /// Word for the pattern.
    pub access: String,
    /// Each mode.
    pub modes: Vec<ModesRow>,
}

/// One mode under one access pattern.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ModesRow {
    /// Name of the mode.
    pub mode: String,
    /// Requests a second.
    pub iops: f64,
    /// Lower end of its interval.
    pub iops_low: f64,
    /// Upper end of its interval.
    pub iops_high: f64,
    /// Median latency.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// Most that was pinned.
    pub pinned_peak_bytes: u64,
    /// Share of pages that were pinned already, 0 to 1.
    pub hit_rate: f64,
}

impl Source {
    /// Reads the file at `path`, or standard input for `-`.
    ///
    /// # Errors
    /// A file that cannot be read, is too large, or is none of those that this program writes.
    pub fn open(path: &Path) -> Result<Self, ReportError> {
        let (name, bytes) = match path == Path::new("-") {
            true => ("standard input".to_owned(), bytes_of(io::stdin().lock())),
            false => (path.display().to_string(), fs::File::open(path).and_then(bytes_of)),
        };
        match bytes {
            Err(source) => Err(ReportError::Read { file: name, source }),
            Ok(bytes) if bytes.len() as u64 > MOST_BYTES => {
                Err(ReportError::TooLarge { file: name })
            }
            Ok(bytes) => Self::parse(&name, &bytes),
        }
    }

    /// Reads `json`, which was found under `name`.
    ///
    /// # Errors
    /// Where it is none of what this program writes.
    pub fn parse(name: &str, json: &[u8]) -> Result<Self, ReportError> {
        let file = || name.to_owned();
        if let Some(line) = line_of_long_text(json) {
            return Err(ReportError::LongText { file: file(), line, most: MOST_TEXT });
        }
        let fields: BTreeMap<String, IgnoredAny> = match serde_json::from_slice(json) {
            Ok(fields) => fields,
            Err(source) if source.is_data() => {
                return Err(ReportError::Unknown { file: file(), found: source.to_string() });
            }
            Err(source) => return Err(ReportError::NoJson { file: file(), source }),
        };
        let has = |field| fields.contains_key(field);
        let content = if has("kind") {
            match kind_of(json).as_deref() {
                Some("load") => serde_json::from_slice(json).map(Content::Load),
                Some("compare") => serde_json::from_slice(json).map(Content::Compare),
                _ => {
                    let found = "a `kind` that is neither load nor compare".to_owned();
                    return Err(ReportError::Unknown { file: file(), found });
                }
            }
        } else if has("workloads") {
            serde_json::from_slice(json).map(Content::Modes)
        } else if has("ratios") {
            let recorded = serde_json::from_slice::<Recorded>(json);
            recorded.map(|recorded| Content::Ratios(in_order(recorded.ratios)))
        } else {
            match serde_json::from_slice::<BTreeMap<String, RatioFigure>>(json) {
                Ok(figures) if !figures.is_empty() => Ok(Content::Ratios(in_order(figures))),
                _ => {
                    let names: Vec<&str> = fields.keys().take(6).map(String::as_str).collect();
                    let found = match names.is_empty() {
                        true => "an empty object".to_owned(),
                        false => format!("an object with the fields {}", names.join(", ")),
                    };
                    return Err(ReportError::Unknown { file: file(), found });
                }
            }
        };
        match content {
            Ok(content) => Ok(Self { name: file(), content }),
            Err(source) => Err(ReportError::Fields { file: file(), source }),
        }
    }
}

/// All of `from`, and one byte beyond the limit where there is more.
fn bytes_of(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn kind_of(json: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Tagged {
        kind: String,
    }
    serde_json::from_slice::<Tagged>(json).ok().map(|tagged| tagged.kind)
}

/// As [`FIELDS`] has them; those of other versions last.
fn in_order(figures: BTreeMap<String, RatioFigure>) -> Vec<RatioRow> {
    let mut rows: Vec<RatioRow> =
        figures.into_iter().map(|(name, figure)| RatioRow { name, figure }).collect();
    rows.sort_by_key(|row| {
        FIELDS.iter().position(|field| field.name == row.name).unwrap_or(FIELDS.len())
    });
    rows
}

/// The line of the first text that is longer than any of ours. A name goes into a page several times,
/// so that a long one would swell it; looked for before anything is parsed, no text is forgotten.
fn line_of_long_text(json: &[u8]) -> Option<usize> {
    let mut line = 1;
    let mut text = None;
    let mut escaped = false;
    for &byte in json {
        line += usize::from(byte == b'\n');
        text = match (text, byte) {
            (None, b'"') => Some(0),
            (None, _) => None,
            (Some(_), b'"') if !escaped => None,
            (Some(length), _) if length == MOST_TEXT => return Some(line),
            (Some(length), _) => Some(length + 1),
        };
        escaped = text.is_some() && byte == b'\\' && !escaped;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    fn refused(json: &str) -> String {
        Source::parse("x.json", json.as_bytes()).expect_err("refused").to_string()
    }

    #[test]
    fn files_are_told_apart_by_what_is_in_them() {
        let parsed = |json: &str| Source::parse("x", json.as_bytes()).unwrap().content;
        assert!(matches!(parsed(&sample::load_json(2)), Content::Load(run) if run.jobs.len() == 2));
        assert!(matches!(parsed(&sample::compare_json()), Content::Compare(_)));
        assert!(matches!(parsed(&sample::modes_json()), Content::Modes(_)));
        let Content::Ratios(rows) = parsed(&sample::ratios_json()) else { panic!("ratios") };
        let recorded =
            format!("{{\"date\": \"2026-01-31\", \"ratios\": {}}}", sample::ratios_json());
        assert_eq!(parsed(&recorded), Content::Ratios(rows.clone()));
        let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        // The order of the table of figures, not that of the alphabet.
        assert_eq!(names[..2], ["ring_spsc_vs_rtrb", "ring_mpsc_vs_arrayqueue"]);
        assert_eq!(names.last(), Some(&"a_figure_of_another_version"));
    }

    #[test]
    fn what_is_not_ours_is_refused_with_what_was_expected() {
        for (json, what) in [
            ("", "is not JSON"),
            ("{\"kind\": \"load\"", "is not JSON"),
            ("[]", "expected a map"),
            ("7", "expected a map"),
            ("{}", "an empty object"),
            (r#"{"kind": "weather"}"#, "neither load nor compare"),
            (r#"{"kind": 7}"#, "neither load nor compare"),
            (r#"{"a": 1, "b": {}}"#, "with the fields a, b"),
            (r#"{"a": {"value": 1.0}}"#, "with the fields a"),
        ] {
            let error = refused(json);
            assert!(error.starts_with("x.json") && error.contains(what), "{error}");
            assert!(error.contains("ratios --json"), "names what was expected: {error}");
        }
        let other_version = refused(r#"{"kind": "load", "version": "0.0.1"}"#);
        assert!(other_version.contains("missing field") && other_version.contains("again"));
        assert!(refused(r#"{"workloads": 3}"#).contains("invalid type"));
    }

    #[test]
    fn long_texts_are_refused_where_they_stand() {
        let json = |text: &str| format!("{{\n\"a\": \"\\\"{text}\" }}");
        let short = "x".repeat(MOST_TEXT - 2);
        assert_eq!(line_of_long_text(json(&short).as_bytes()), None);
        assert_eq!(line_of_long_text(json(&(short + "x")).as_bytes()), Some(2));
        assert_eq!(line_of_long_text(json(&"\\\\".repeat(MOST_TEXT)).as_bytes()), Some(2));
        let many = "\"a\\\\\", ".repeat(MOST_TEXT);
        assert_eq!(line_of_long_text(many.as_bytes()), None);
        assert!(refused(&json(&"x".repeat(MOST_TEXT))).contains("line 2"));
    }

    #[test]
    fn a_file_that_is_not_there_or_too_large_is_named() {
        let error = Source::open(Path::new("no/such/run.json")).unwrap_err().to_string();
        assert!(error.contains("no/such/run.json"), "{error}");
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(MOST_BYTES + 1).unwrap();
        let error = Source::open(file.path()).unwrap_err().to_string();
        assert!(error.contains("64 MiB"), "{error}");
    }
}
