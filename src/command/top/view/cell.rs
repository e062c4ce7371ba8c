//! Numbers as they stand on the screen. What is missing is a dash.

use vfio_ccw_load::units::{Bytes, Count, Nanos};

const MISSING: &str = "-";

fn or_missing(value: Option<f64>, shown: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| MISSING.to_owned(), |value| shown(value.max(0.0)))
}

/// A count, or a rate without its unit.
pub(super) fn count(value: Option<f64>) -> String {
    or_missing(value, |value| match value {
        0.0 => "0".to_owned(),
        // Something is not nothing.
        _ if value < 0.1 => "<0.1".to_owned(),
        _ if value < 9.95 && value.fract() != 0.0 => format!("{value:.1}"),
        _ => Count(value).to_string(),
    })
}

/// A count in a second.
pub(super) fn rate(value: Option<f64>) -> String {
    or_missing(value, |value| format!("{}/s", count(Some(value))))
}

pub(super) fn bytes(value: Option<f64>) -> String {
    or_missing(value, |value| Bytes(value as u64).to_string())
}

pub(super) fn bytes_rate(value: Option<f64>) -> String {
    or_missing(value, |value| format!("{}/s", Bytes(value as u64)))
}

pub(super) fn seconds(value: Option<f64>) -> String {
    or_missing(value, |value| Nanos((value * 1e9).round() as u64).to_string())
}

/// A share as per cent. One that is not all does not look like all.
pub(super) fn percent(value: Option<f64>) -> String {
    or_missing(value, |value| match value * 100.0 {
        percent if percent < 99.0 => format!("{percent:.1} %"),
        percent if percent < 100.0 => format!("{:.2} %", (percent * 1e2).floor() / 1e2),
        percent => format!("{percent:.0} %"),
    })
}

/// A bar so many cells wide for a share of 0 to 1.
pub(super) fn bar(share: Option<f64>, width: usize) -> String {
    const PARTS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let share = share.filter(|share| share.is_finite()).unwrap_or(0.0).clamp(0.0, 1.0);
    let eighths = (share * (width * 8) as f64).round() as usize;
    let mut bar = "█".repeat(eighths / 8);
    if eighths / 8 < width {
        bar.push(PARTS[eighths % 8]);
    }
    format!("{bar:<width$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_missing_ones_dashes() {
        let counts = [0.0, 0.01, 3.96, 4.0, 12.4, 270_123.0].map(|value| count(Some(value)));
        assert_eq!(counts, ["0", "<0.1", "4.0", "4", "12", "270k"]);
        assert_eq!(
            (count(None), rate(None), rate(Some(3.0))),
            ("-".into(), "-".into(), "3/s".into())
        );
        assert_eq!(bytes(Some(1536.4)), "1.50 KiB");
        assert_eq!(bytes_rate(Some(f64::MAX)), "16.0 EiB/s");
        assert_eq!(seconds(Some(0.0012)), "1.20 ms");
        let shares = [0.0, 0.5, 0.999_999, 1.0, 1.5].map(|share| percent(Some(share)));
        assert_eq!(shares, ["0.0 %", "50.0 %", "99.99 %", "100 %", "150 %"]);
    }

    #[test]
    fn a_bar_is_as_wide_as_it_is() {
        assert_eq!(bar(Some(0.5), 4), "██  ");
        assert_eq!(bar(Some(0.53), 4), "██▏ ");
        assert_eq!(bar(Some(9.0), 4), "████");
        for share in [None, Some(f64::NAN), Some(-1.0)] {
            assert_eq!(bar(share, 4), "    ");
        }
    }
}
