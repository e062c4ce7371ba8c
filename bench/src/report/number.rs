//! Numbers as they stand in the page. Whatever a file says, they stay short.

use vfio_ccw_load::units::{Bytes, Count, Nanos};

/// A rate or count.
pub(super) fn count(value: f64) -> String {
    match value {
        0.0..1e15 => Count(value).to_string(),
        _ => plain(value),
    }
}

/// A number with four significant digits.
pub(super) fn plain(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        1e-4..1e9 => {
            let decimals = (3 - value.abs().log10().floor() as i32).max(0) as usize;
            let digits = format!("{value:.decimals$}");
            without_zeros(&digits).to_owned()
        }
        _ => format!("{value:.3e}"),
    }
}

/// A share of 1 in percent.
pub(super) fn percent(share: f64) -> String {
    format!("{} %", plain(share * 100.0))
}

/// A size where a service has one.
pub(super) fn bytes(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "–".to_owned(), |bytes| Bytes(bytes).to_string())
}

/// How the ticks of an axis are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Nanos,
    Bytes,
    Count,
    /// 1 / (1 - q), written as the quantile q in percent.
    Percentile,
}

impl Unit {
    /// `value` as a tick: without the zeros that a measured value has.
    pub(super) fn tick(self, value: f64) -> String {
        match self {
            Self::Nanos => short(&Nanos(value as u64).to_string()),
            Self::Bytes => short(&Bytes(value as u64).to_string()),
            Self::Count => short(&count(value)),
            Self::Percentile => percentile(value),
        }
    }
}

/// `10.0k` as `10k`, `1.00 ms` as `1 ms`.
fn short(text: &str) -> String {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    format!("{}{unit}", without_zeros(digits))
}

fn without_zeros(digits: &str) -> &str {
    match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.'),
        false => digits,
    }
}

/// 100 as `99 %`, 1000 as `99.9 %`: as many nines as there are zeros.
fn percentile(inverse: f64) -> String {
    let decimals = (inverse.max(1.0).log10().round() as usize).clamp(2, 14) - 2;
    format!("{:.decimals$} %", 100.0 - 100.0 / inverse.max(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ticks_have_no_zeros_to_spare() {
        for (unit, value, text) in [
            (Unit::Nanos, 1e3, "1 µs"),
            (Unit::Nanos, 2e7, "20 ms"),
            (Unit::Nanos, 5e8, "500 ms"),
            (Unit::Count, 12_500.0, "12.5k"),
            (Unit::Count, 0.0, "0"),
            (Unit::Count, 200.0, "200"),
            (Unit::Bytes, 65536.0, "64 KiB"),
            (Unit::Percentile, 1.0, "0 %"),
            (Unit::Percentile, 2.0, "50 %"),
            (Unit::Percentile, 10.0, "90 %"),
            (Unit::Percentile, 1e3, "99.9 %"),
            (Unit::Percentile, 1e5, "99.999 %"),
        ] {
            assert_eq!(unit.tick(value), text);
        }
    }

    #[test]
    fn numbers_have_four_digits() {
        for (value, text) in
            [(0.0, "0"), (1.0, "1"), (0.98765, "0.9877"), (-12.345_6, "-12.35"), (2.5e6, "2500000")]
        {
            assert_eq!(plain(value), text);
        }
        assert_eq!([count(52_300.0), percent(0.5), bytes(None)], ["52.3k", "50 %", "–"]);
    }

    proptest! {
        #[test]
        fn any_number_is_short(value in any::<f64>()) {
            prop_assert!(plain(value).len() < 16 && count(value).len() < 16, "{value}");
            prop_assert!(percent(value).len() < 20);
            for unit in [Unit::Nanos, Unit::Bytes, Unit::Count, Unit::Percentile] {
                prop_assert!(unit.tick(value).chars().count() < 32, "{unit:?} {value}");
            }
        }
    }
}
