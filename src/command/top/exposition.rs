//! Prometheus' text format, version 0.0.4, as far as numbers go.
//!
//! Format: <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>. A line that does
//! not keep to it is passed over: what can be read of a page is better than nothing.

/// Most labels of one series that are read; a line with more is passed over.
const MOST_LABELS: usize = 16;

/// Most bytes of a line that is read.
const MOST_BYTES: usize = 4 << 10;

/// One series with its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample<'a> {
    pub(super) name: &'a str,
    /// Names with values, in the order of the line.
    pub(super) labels: Vec<(&'a str, String)>,
    pub(super) value: f64,
}

/// The samples of a page, in its order.
pub(super) fn samples(page: &str) -> impl Iterator<Item = Sample<'_>> {
    page.lines()
        .filter(|line| line.len() <= MOST_BYTES && !line.starts_with('#'))
        .filter_map(sample)
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let (name, rest) = identifier(line.trim_start())?;
    let rest = rest.trim_start();
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => labels(inside)?,
        None => (Vec::new(), rest),
    };
    let mut words = rest.split_ascii_whitespace();
    let value = words.next()?.parse().ok()?;
    // A time may follow, in milliseconds; nothing else.
    let time = words.next().is_none_or(|time| time.parse::<i64>().is_ok());
    (time && words.next().is_none()).then_some(Sample { name, labels, value })
}

/// The labels up to the closing brace, and what comes after it.
fn labels(mut text: &str) -> Option<(Vec<(&str, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        text = text.trim_start();
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, rest) = identifier(text)?;
        let rest = rest.trim_start().strip_prefix('=')?.trim_start().strip_prefix('"')?;
        let (value, rest) = quoted(rest)?;
        if labels.len() == MOST_LABELS {
            return None;
        }
        labels.push((name, value));
        text = rest.trim_start();
        match text.strip_prefix(',') {
            Some(rest) => text = rest,
            None if text.starts_with('}') => {}
            None => return None,
        }
    }
}

/// A label's value up to its closing quote, and what comes after it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match letters.next()?.1 {
                'n' => '\n',
                escaped @ ('\\' | '"') => escaped,
                _ => return None,
            }),
            _ => value.push(letter),
        }
    }
    None
}

fn identifier(text: &str) -> Option<(&str, &str)> {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let (name, rest) = text.split_at(text.find(|c| !part(c)).unwrap_or(text.len()));
    let begins = name.bytes().next().is_some_and(|first| !first.is_ascii_digit());
    begins.then_some((name, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn only(line: &str) -> Sample<'_> {
        let all: Vec<_> = samples(line).collect();
        assert_eq!(all.len(), 1, "{line}");
        all.into_iter().next().unwrap()
    }

    #[test]
    fn lines_of_each_shape() {
        let plain = only("# HELP a b\n# TYPE a counter\n\na 12\n");
        assert_eq!(plain, Sample { name: "a", labels: vec![], value: 12.0 });
        let full = only("  a:b_1 { x = \"1\" , y=\"\\\\ \\\" \\n }\", } 2.5e-07 1700000000000");
        assert_eq!(full.name, "a:b_1");
        assert_eq!(full.labels, [("x", "1".to_owned()), ("y", "\\ \" \n }".to_owned())]);
        assert_eq!(full.value, 2.5e-7);
        assert_eq!(only("a{} +Inf").value, f64::INFINITY);
        assert!(only("a NaN").value.is_nan());
    }

    #[test]
    fn lines_that_are_none_are_passed_over() {
        for line in [
            "a",
            "a{",
            "a{x",
            "a{x=",
            "a{x=\"",
            "a{x=\"\\",
            "a{x=\"\\q\"} 1",
            "a{x=\"1\"",
            "a{x=\"1\"}",
            "a{x=\"1\"y=\"2\"} 1",
            "a{,} 1",
            "a x",
            "a 1 x",
            "a 1 2 3",
            "1a 1",
            "{x=\"1\"} 1",
            "ä 1",
        ] {
            assert_eq!(samples(line).next(), None, "{line}");
        }
        let labels = |count: usize| "x=\"1\",".repeat(count);
        assert_eq!(only(&format!("a{{{}}} 1", labels(MOST_LABELS))).labels.len(), MOST_LABELS);
        assert_eq!(samples(&format!("a{{{}}} 1", labels(MOST_LABELS + 1))).next(), None);
        assert_eq!(samples(&format!("a{{x=\"{}\"}} 1", "x".repeat(MOST_BYTES))).next(), None);
        assert_eq!(samples("a{x=\"\nb 1\n").map(|sample| sample.name).collect::<Vec<_>>(), ["b"]);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(page in "\\PC*|([a-z_{}=\",\\\\ \n0-9ä+.-])*") {
            for sample in samples(&page) {
                prop_assert!(sample.labels.len() <= MOST_LABELS);
                prop_assert!(!sample.name.is_empty());
            }
        }

        #[test]
        fn what_was_written_is_read(
            name in "[a-z_:][a-z0-9_:]{0,20}",
            labels in proptest::collection::vec(("[a-z_][a-z0-9_]{0,8}", any::<String>()), 0..MOST_LABELS),
            value in any::<f64>(),
        ) {
            let escaped = |text: &str| {
                text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
            };
            let pairs: Vec<_> =
                labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
            let line = format!("{name}{{{}}} {value}", pairs.join(","));
            prop_assume!(line.len() <= MOST_BYTES);
            let sample = only(&line);
            prop_assert_eq!(sample.name, name.as_str());
            let read: Vec<_> =
                sample.labels.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            prop_assert_eq!(read, labels);
            prop_assert!(sample.value == value || value.is_nan() && sample.value.is_nan());
        }
    }
}
