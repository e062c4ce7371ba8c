//! Sizes and times as people write and read them.

use std::fmt;

/// Reads a size in bytes: digits, then nothing or `B`, `K`, `M`, `G`, `T` or the same as `KiB`, `MiB`,
/// `GiB`, `TiB`; upper or lower case; powers of 1024 all of them.
///
/// ```
/// use vfio_ccw_load::parse_bytes;
/// assert_eq!(parse_bytes("64MiB"), Ok(64 << 20));
/// assert_eq!(parse_bytes("64M"), Ok(64 << 20));
/// assert_eq!(parse_bytes("1g"), Ok(1 << 30));
/// assert_eq!(parse_bytes("4096"), Ok(4096));
/// ```
///
/// # Errors
/// Where there are no digits, the unit is not one of these, or the size is 2^64 bytes or more.
pub fn parse_bytes(text: &str) -> Result<u64, ParseBytesError> {
    let trimmed = text.trim();
    let digits = trimmed.len() - trimmed.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = trimmed.split_at(digits);
    if number.is_empty() {
        return Err(ParseBytesError::NoNumber(text.to_owned()));
    }
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => {
            return Err(ParseBytesError::Unit {
                text: text.to_owned(),
                unit: unit.trim().to_owned(),
            });
        }
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| ParseBytesError::TooLarge(text.to_owned()))
}

/// A size that can not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseBytesError {
    /// It does not begin with a digit.
    #[error("size {0:?} does not begin with a whole number; write it like 4096, 64K, 64MiB or 1G")]
    NoNumber(String),
    /// The number is followed by something else than a unit.
    #[error(
        "size {text:?} has the unit {unit:?}; use K, M, G or T (or KiB, MiB, GiB, TiB), powers of 1024"
    )]
    Unit {
        /// The whole text.
        text: String,
        /// What follows the number.
        unit: String,
    },
    /// 2^64 or more.
    #[error("size {0:?} is 2^64 bytes or more; give less than 16777216T")]
    TooLarge(String),
}

/// A size, shown with the largest binary unit that keeps it at 1 or above: `1.5 MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(
    /// Bytes.
    pub u64,
);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let unit = (self.0.max(1).ilog2() / 10) as usize;
        let text = if self.0 & ((1 << (10 * unit)) - 1) == 0 {
            format!("{} {}", self.0 >> (10 * unit), UNITS[unit])
        } else {
            format!("{} {}", ThreeDigits(self.0 as f64 / (1u64 << (10 * unit)) as f64), UNITS[unit])
        };
        f.pad(&text)
    }
}

/// A time in nanoseconds, shown with the largest of ns, µs, ms and s that keeps it at 1 or above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nanos(
    /// Nanoseconds.
    pub u64,
);

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            0..1_000 => format!("{} ns", self.0),
            1_000..1_000_000 => format!("{} µs", ThreeDigits(self.0 as f64 / 1e3)),
            1_000_000..1_000_000_000 => format!("{} ms", ThreeDigits(self.0 as f64 / 1e6)),
            _ => format!("{} s", ThreeDigits(self.0 as f64 / 1e9)),
        };
        f.pad(&text)
    }
}

/// A count or rate, shown with `k`, `M` or `G` (powers of 1000) from 10,000 on.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Count(
    /// The number itself, not negative.
    pub f64,
);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            value if value < 1e4 => format!("{value:.0}"),
            value if value < 1e6 => format!("{}k", ThreeDigits(value / 1e3)),
            value if value < 1e9 => format!("{}M", ThreeDigits(value / 1e6)),
            value => format!("{}G", ThreeDigits(value / 1e9)),
        };
        f.pad(&text)
    }
}

/// A positive number with three significant digits, and more only left of the point.
pub(crate) struct ThreeDigits(pub(crate) f64);

impl fmt::Display for ThreeDigits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = match self.0 {
            value if value < 9.995 => 2,
            value if value < 99.95 => 1,
            _ => 0,
        };
        write!(f, "{:.decimals$}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("512b", 512),
            (" 3 KiB ", 3 << 10),
            ("2k", 2 << 10),
            ("5tib", 5 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn wrong_sizes_say_what_is_wrong() {
        let text = |size| parse_bytes(size).unwrap_err().to_string();
        assert!(text("").contains("\"\" does not begin"));
        assert!(text("-1").contains("\"-1\""));
        assert!(text("MiB").contains("whole number"));
        assert!(text("1.5G").contains("unit \".5G\""));
        assert!(text("64MB").contains("unit \"MB\""));
        assert!(text("16777216T").contains("2^64"));
        assert!(text("99999999999999999999").contains("2^64"));
    }

    #[test]
    fn sizes_and_times_are_shown() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.50 KiB"),
            (100 << 20, "100 MiB"),
            ((10 << 30) + (256 << 20), "10.2 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
        for (nanos, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1.00 µs"),
            (12_345, "12.3 µs"),
            (999_949, "1000 µs"),
            (1_500_000, "1.50 ms"),
            (2_000_000_000, "2.00 s"),
        ] {
            assert_eq!(Nanos(nanos).to_string(), text);
        }
        assert_eq!(format!("[{:>8}]", Nanos(5)), "[    5 ns]");
        assert_eq!(
            [0.0, 9_999.0, 12_345.0, 1.5e6, 2e9].map(|value| Count(value).to_string()),
            ["0", "9999", "12.3k", "1.50M", "2.00G"]
        );
    }

    proptest! {
        #[test]
        fn whole_units_come_back(number in 0u64..1000, unit in 0u32..5) {
            let bytes = number << (10 * unit);
            prop_assert_eq!(parse_bytes(&Bytes(bytes).to_string()), Ok(bytes));
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = parse_bytes(&text);
        }
    }
}
