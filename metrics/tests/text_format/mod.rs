//! A strict parser of Prometheus' text format, version 0.0.4.
//!
//! The rules are those of
//! <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format> and the naming
//! rules that `promtool check metrics` applies.

use std::collections::{BTreeMap, HashSet};

/// Label values by name.
pub type Labels = BTreeMap<String, String>;

/// A family as the text tells it.
#[derive(Debug)]
pub struct Family {
    /// counter, gauge or histogram.
    pub kind: String,
    /// As written, escapes included.
    pub help: String,
    /// Name, labels and value of each sample.
    pub samples: Vec<(String, Labels, f64)>,
}

/// Families by name. Panics on whatever the format or the naming rules forbid.
pub fn parse(text: &str) -> BTreeMap<String, Family> {
    assert!(text.ends_with('\n'), "the last line has an end");
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut help: Option<(String, String)> = None;
    let mut current = String::new();
    let mut series = HashSet::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').expect("a help text");
            assert!(help.is_none(), "help without a type before {line}");
            help = Some((name.into(), words.into()));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            let (helped, words) = help.take().expect("each type line follows its help line");
            assert_eq!(helped, name);
            let family = Family { kind: kind.into(), help: words, samples: Vec::new() };
            assert!(families.insert(name.into(), family).is_none(), "{name} comes twice");
            current = name.into();
        } else {
            assert!(!line.starts_with('#'), "unexpected comment {line}");
            let (name, labels, value) = parse_sample(line);
            let family = families.get_mut(&current).expect("a type line before any sample");
            let suffix = name.strip_prefix(current.as_str()).expect("samples stay together");
            let suffixes: &[&str] = match family.kind.as_str() {
                "counter" | "gauge" => &[""],
                "histogram" => &["_bucket", "_sum", "_count"],
                other => panic!("type {other}"),
            };
            assert!(suffixes.contains(&suffix), "{line} in a {}", family.kind);
            assert!(series.insert((name.clone(), labels.clone())), "{line} comes twice");
            family.samples.push((name, labels, value));
        }
    }
    for (name, family) in &families {
        assert!(name.starts_with("vfio_ccw_"), "{name}");
        assert_eq!(family.kind == "counter", name.ends_with("_total"), "{name}");
    }
    families
}

fn parse_sample(line: &str) -> (String, Labels, f64) {
    let identifier = |word: &str| {
        let first = word.bytes().next().expect("not empty");
        assert!(first.is_ascii_alphabetic() || first == b'_', "{word} in {line}");
        assert!(word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "{word} in {line}");
        word.to_owned()
    };
    let (series, value) = line.rsplit_once(' ').expect("a value");
    let value = value.parse().expect("a number");
    let Some((name, labels)) = series.split_once('{') else {
        return (identifier(series), Labels::new(), value);
    };
    let mut rest = labels.strip_suffix('}').expect("closed labels");
    let mut labels = Labels::new();
    while !rest.is_empty() {
        let (label, quoted) = rest.split_once("=\"").expect("a quoted value");
        let mut text = String::new();
        let mut chars = quoted.char_indices();
        let end = loop {
            match chars.next().expect("a closing quote") {
                (at, '"') => break at,
                (_, '\\') => match chars.next().expect("an escaped character").1 {
                    'n' => text.push('\n'),
                    escaped @ ('\\' | '"') => text.push(escaped),
                    other => panic!("escape \\{other} in {line}"),
                },
                (_, plain) => text.push(plain),
            }
        };
        assert!(labels.insert(identifier(label), text).is_none(), "label twice in {line}");
        rest = &quoted[end + 1..];
        if !rest.is_empty() {
            rest = rest.strip_prefix(',').expect("a comma between labels");
        }
    }
    (identifier(name), labels, value)
}
