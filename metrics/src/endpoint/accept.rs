//! Which format a scraper wants, by its header `Accept` (RFC 9110, 12.5.1).

/// The formats that `/metrics` has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus' text format, version 0.0.4.
    Text,
    /// Prometheus' protobuf format, with native histograms.
    Protobuf,
}

impl Format {
    /// As the header `Content-Type` says it.
    pub(super) const fn media_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; \
                 encoding=delimited"
            }
        }
    }
}

/// Ranges that are looked at; no scraper sends a tenth of them.
const RANGES: usize = 64;

/// How much a format is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    /// How closely it is named: by `*/*`, by `text/*`, by its type. What is named closest counts.
    closeness: u8,
    /// Thousandths.
    quality: u16,
}

/// The closeness of what is named by its type.
const NAMED: u8 = 3;

/// The format that the header's values ask for.
///
/// Protobuf has to be named, and wanted more than text is; or as much, if text is wanted by a wildcard
/// alone. In all other cases it is text, also when the header makes no sense or wants neither: a human
/// who looks is better served by text than by status 406.
pub(super) fn negotiate<'a>(values: impl Iterator<Item = &'a [u8]>) -> Format {
    let mut text = Wanted::default();
    let mut protobuf = Wanted::default();
    for range in values.flat_map(|value| split(value, b',')).take(RANGES) {
        if let Some((format, wanted)) = parse(range) {
            let known = match format {
                Format::Text => &mut text,
                Format::Protobuf => &mut protobuf,
            };
            *known = wanted.max(*known);
        }
    }
    let beats = protobuf.quality > text.quality
        || protobuf.quality == text.quality && text.closeness < NAMED;
    if protobuf.quality > 0 && beats { Format::Protobuf } else { Format::Text }
}

/// A media range with its parameters: the format that it is for, if it is for one.
fn parse(range: &[u8]) -> Option<(Format, Wanted)> {
    let mut parts = split(range, b';').map(<[u8]>::trim_ascii);
    let media = parts.next()?;
    let is = |name: &str| media.eq_ignore_ascii_case(name.as_bytes());
    let (format, closeness) = if is("*/*") {
        (Format::Text, 1)
    } else if is("text/*") {
        (Format::Text, 2)
    } else if is("text/plain") {
        (Format::Text, NAMED)
    } else if is("application/vnd.google.protobuf") {
        (Format::Protobuf, NAMED)
    } else {
        return None;
    };

    let mut quality = 1000;
    let (mut message, mut encoding) = (false, false);
    for part in parts {
        let equals = part.iter().position(|&byte| byte == b'=');
        let (name, value) = equals.map_or((part, &b""[..]), |at| (&part[..at], &part[at + 1..]));
        let value =
            value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
        match (format, name.to_ascii_lowercase().as_slice()) {
            (_, b"q") => quality = thousandths(value)?,
            (Format::Text, b"version") if value != b"0.0.4" => return None,
            (Format::Protobuf, b"proto") => message = value == b"io.prometheus.client.MetricFamily",
            (Format::Protobuf, b"encoding") => {
                encoding = value.eq_ignore_ascii_case(b"delimited");
            }
            // Such as charset, or the escaping of names, of which none of ours has need.
            _ => {}
        }
    }
    let is_ours = format == Format::Text || (message && encoding);
    is_ours.then_some((format, Wanted { closeness, quality }))
}

/// A quality: 0 to 1 with at most three decimals.
fn thousandths(value: &[u8]) -> Option<u16> {
    let (whole, decimals) = value.split_first()?;
    let decimals = match decimals {
        [] => decimals,
        [b'.', decimals @ ..] if decimals.len() <= 3 => decimals,
        _ => return None,
    };
    let mut sum = match whole {
        b'0' => 0,
        b'1' => 1000,
        _ => return None,
    };
    for (digit, weight) in decimals.iter().zip([100, 10, 1]) {
        sum += u16::from(char::from(*digit).to_digit(10)? as u8) * weight;
    }
    (sum <= 1000).then_some(sum)
}

/// The pieces of `list` between separators that are not within quotes.
fn split(list: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    list.split(move |&byte| {
        if escaped {
            escaped = false;
            return false;
        }
        match byte {
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            _ => {}
        }
        byte == separator && !quoted
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PROTOBUF: &str = "application/vnd.google.protobuf;\
         proto=io.prometheus.client.MetricFamily;encoding=delimited";

    fn of(value: &str) -> Format {
        negotiate([value.as_bytes()].into_iter())
    }

    #[test]
    fn real_scrapers_get_what_they_ask_for() {
        // Prometheus 2.40 to 2.55 with native histograms, and without.
        let openmetrics = "application/openmetrics-text;version=1.0.0;q=0.8,\
             application/openmetrics-text;version=0.0.1;q=0.75";
        let text = "text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(of(&format!("{PROTOBUF},{openmetrics},{text}")), Format::Protobuf);
        assert_eq!(of(&format!("{openmetrics},{text}")), Format::Text);
        // Prometheus 3.
        let three = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; \
             encoding=delimited; escaping=allow-utf-8; q=0.6, text/plain; version=1.0.0; q=0.5, \
             text/plain;version=0.0.4;q=0.4,*/*;q=0.3";
        assert_eq!(of(three), Format::Protobuf);
        // curl and browsers.
        assert_eq!(of("*/*"), Format::Text);
        assert_eq!(of("text/html,application/xhtml+xml,*/*;q=0.8"), Format::Text);
        assert_eq!(negotiate(std::iter::empty()), Format::Text);
    }

    #[test]
    fn quality_decides_and_text_wins_a_draw_when_it_is_named() {
        assert_eq!(of(PROTOBUF), Format::Protobuf);
        assert_eq!(of(&format!("{PROTOBUF};q=0.5,text/plain;q=0.6")), Format::Text);
        assert_eq!(of(&format!("text/plain;q=0.5,{PROTOBUF};q=0.501")), Format::Protobuf);
        assert_eq!(of(&format!("{PROTOBUF};q=0.5,text/plain;q=0.5")), Format::Text);
        assert_eq!(of(&format!("{PROTOBUF};q=0.5,*/*;q=0.5")), Format::Protobuf);
        // The closer range counts, whatever the wildcard says.
        assert_eq!(of(&format!("{PROTOBUF};q=0.5,text/plain;q=0.1,*/*;q=0.9")), Format::Protobuf);
        assert_eq!(of(&format!("{PROTOBUF};q=0,*/*;q=0")), Format::Text);
        assert_eq!(of(&format!("{PROTOBUF};q=0.000")), Format::Text);
        let values = ["text/plain;q=0.3", PROTOBUF].map(str::as_bytes);
        assert_eq!(negotiate(values.into_iter()), Format::Protobuf, "several headers are one");
    }

    #[test]
    fn protobuf_needs_its_message_and_encoding() {
        for other in [
            "application/vnd.google.protobuf",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text",
            "application/vnd.google.protobuf;proto=other.Message;encoding=delimited",
            "application/*",
            "application/json",
        ] {
            assert_eq!(of(other), Format::Text, "{other}");
        }
        let quoted = "Application/Vnd.Google.Protobuf ; PROTO=\"io.prometheus.client.MetricFamily\" ; \
             x=\"a,b;q=0\\\",\" ; Encoding=Delimited;q=1.000";
        assert_eq!(of(quoted), Format::Protobuf);
    }

    #[test]
    fn nonsense_is_text() {
        for quality in ["2", "-1", "1.001", "0.0001", "", "NaN", ".5", "0,5", "1e0", " 1"] {
            assert_eq!(of(&format!("{PROTOBUF};q={quality}")), Format::Text, "{quality}");
        }
        let unclosed = format!("x;y=\"{PROTOBUF},{PROTOBUF}");
        for value in [",", ";", ";;;,,,", "\"", "\\", "=", ";q=", "*/*;=;q", &unclosed] {
            assert_eq!(of(value), Format::Text, "{value}");
        }
        let late = format!("{}{PROTOBUF}", "a/b,".repeat(RANGES));
        assert_eq!(of(&late), Format::Text, "looked at the first ranges only");
        assert_eq!(of(&late[4..]), Format::Protobuf);
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(values in proptest::collection::vec(any::<Vec<u8>>(), 0..4)) {
            negotiate(values.iter().map(Vec::as_slice));
        }

        #[test]
        fn no_header_of_the_right_letters_makes_it_panic(value in "[a-z*/;,=q01.\"\\\\ ]{0,80}") {
            let _format = of(&value);
            let _with = of(&format!("{PROTOBUF};{value}"));
        }
    }
}
