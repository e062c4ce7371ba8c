//! What is left when a job has ended: one structure for people and for programs.

use crate::closed_loop::LoadReport;
use crate::failure::ErrorRow;
use crate::units::{Bytes, Count, Nanos, ThreeDigits};
use hdrhistogram::Histogram;
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use std::fmt::{self, Write};

/// Latencies of one stage, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageRow {
    /// Name of the stage.
    pub name: String,
    /// How many requests went through it.
    pub count: u64,
    /// Median.
    pub p50_ns: u64,
    /// 90th percentile.
    pub p90_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// Longest.
    pub max_ns: u64,
}

impl StageRow {
    /// The row of `histogram`, whose values are nanoseconds.
    pub fn of_histogram(name: &str, histogram: &Histogram<u64>) -> Self {
        Self {
            name: name.to_owned(),
            count: histogram.len(),
            p50_ns: histogram.value_at_quantile(0.5),
            p90_ns: histogram.value_at_quantile(0.9),
            p99_ns: histogram.value_at_quantile(0.99),
            p999_ns: histogram.value_at_quantile(0.999),
            max_ns: histogram.max(),
        }
    }
}

/// The result of a load on the service. [`JobReport::of`] fills in what the load generator knows; the
/// service adds what only it knows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobReport {
    /// Requests completed without failure.
    pub ios: u64,
    /// These a second.
    pub iops: f64,
    /// Data transferred, in MiB (2^20 bytes) a second.
    pub mib_per_s: f64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Requests that did not complete within the stall limit.
    pub lost: u64,
    /// Completions for which there was no request.
    pub duplicate: u64,
    /// Reads whose data was compared with what was written.
    pub checked: u64,
    /// Reads among these whose data was wrong.
    pub miscompares: u64,
    /// The first of these in words.
    pub first_miscompares: Vec<String>,
    /// Requests that completed with a failure.
    pub errors: u64,
    /// These by kind.
    pub error_kinds: Vec<ErrorRow>,
    /// The I/O driver in use: `io_uring` or `epoll`.
    pub driver: String,
    /// The pinning mode: `pinned`, `on-demand` or `cached`.
    pub mode: String,
    /// How many subchannels carried the load.
    pub subchannels: usize,
    /// From the first submission to the last completion.
    pub seconds: f64,
    /// Bytes pinned when the job ended.
    pub pinned_now_bytes: u64,
    /// Most bytes pinned at any time.
    pub pinned_peak_bytes: u64,
    /// Most bytes that may be pinned.
    pub budget_bytes: u64,
    /// Share of pin requests that the cache answered, 0 to 1; none where the mode has no cache.
    pub cache_hit_rate: Option<f64>,
    /// Name of what pins pages.
    pub pinner: String,
    /// Pages that requests ran with unpinned, for want of room or because pinning failed.
    pub unpinned_pages: u64,
    /// Hit rates that other budgets would have, by the reuse distances seen; empty where the mode has
    /// no cache or too little was seen.
    pub other_budgets: Vec<BudgetRow>,
    /// Latencies by stage; in JSON an object with the names as keys, in this order.
    #[serde(serialize_with = "stages_by_name")]
    pub stages: Vec<StageRow>,
}

/// The hit rate that a budget would have.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BudgetRow {
    /// Most bytes that may be pinned.
    pub budget_bytes: u64,
    /// Share of pages, 0 to 1, that would be found pinned.
    pub hit_rate: f64,
}

impl fmt::Display for BudgetRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:.1} %", Bytes(self.budget_bytes), self.hit_rate * 100.0)
    }
}

impl JobReport {
    /// The report of `load` over `subchannels`, with its latency as stage `round_trip`, and nothing yet
    /// of the service's own figures.
    pub fn of(load: &LoadReport, subchannels: usize) -> Self {
        Self {
            ios: load.ios,
            iops: load.iops(),
            mib_per_s: load.mib_per_s(),
            bytes_read: load.bytes_read,
            bytes_written: load.bytes_written,
            lost: load.lost,
            duplicate: load.duplicate,
            checked: load.checked,
            miscompares: load.miscompares,
            first_miscompares: load.first_miscompares.clone(),
            errors: load.errors,
            error_kinds: load.error_kinds.clone(),
            driver: String::new(),
            mode: String::new(),
            subchannels,
            seconds: load.seconds,
            pinned_now_bytes: 0,
            pinned_peak_bytes: 0,
            budget_bytes: 0,
            cache_hit_rate: None,
            pinner: String::new(),
            unpinned_pages: 0,
            other_budgets: Vec::new(),
            stages: vec![load.latency_row("round_trip")],
        }
    }

    /// The report as a few lines and a table, for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string can not fail.
        let _ = self.write_text(&mut text);
        text
    }

    fn write_text(&self, out: &mut String) -> fmt::Result {
        writeln!(
            out,
            "{} requests in {} s on {} subchannels ({}, {})",
            self.ios,
            ThreeDigits(self.seconds),
            self.subchannels,
            self.driver,
            self.mode
        )?;
        writeln!(
            out,
            "{} IOPS, {} MiB/s; {} read, {} written",
            Count(self.iops),
            ThreeDigits(self.mib_per_s),
            Bytes(self.bytes_read),
            Bytes(self.bytes_written)
        )?;
        writeln!(
            out,
            "{} errors, {} lost, {} duplicate, {} miscompares ({} reads checked)",
            self.errors, self.lost, self.duplicate, self.miscompares, self.checked
        )?;
        for row in &self.error_kinds {
            writeln!(out, "  {} x {}, first: {}", row.count, row.kind, row.first)?;
        }
        for line in &self.first_miscompares {
            writeln!(out, "  {line}")?;
        }
        write!(
            out,
            "pinned {} now, {} at most, of {}",
            Bytes(self.pinned_now_bytes),
            Bytes(self.pinned_peak_bytes),
            Bytes(self.budget_bytes)
        )?;
        if let Some(rate) = self.cache_hit_rate {
            write!(out, "; cache hit rate {:.2} %", rate * 100.0)?;
        }
        if self.unpinned_pages > 0 {
            write!(
                out,
                "\nnot pinned: {} pages, for want of room in the budget",
                self.unpinned_pages
            )?;
        }
        if !self.other_budgets.is_empty() {
            let rows: Vec<String> = self.other_budgets.iter().map(BudgetRow::to_string).collect();
            write!(out, "\nhit rate that a budget would have (estimate): {}", rows.join(", "))?;
        }
        write!(out, "\n\n{}", stage_table(&self.stages))
    }
}

/// `rows` as a table with a heading, times with their units.
pub fn stage_table(rows: &[StageRow]) -> String {
    let name_width =
        rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max("stage".len());
    let mut table = format!(
        "{:<name_width$} {:>12} {:>9} {:>9} {:>9} {:>9} {:>9}\n",
        "stage", "count", "p50", "p90", "p99", "p99.9", "max"
    );
    for row in rows {
        // Writing to a string can not fail.
        let _ = writeln!(
            table,
            "{:<name_width$} {:>12} {:>9} {:>9} {:>9} {:>9} {:>9}",
            row.name,
            row.count,
            Nanos(row.p50_ns),
            Nanos(row.p90_ns),
            Nanos(row.p99_ns),
            Nanos(row.p999_ns),
            Nanos(row.max_ns)
        );
    }
    table
}

fn stages_by_name<S: Serializer>(rows: &[StageRow], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(rows.len()))?;
    for row in rows {
        map.serialize_entry(&row.name, &Unnamed(row))?;
    }
    map.end()
}

/// A stage whose name stands before it.
struct Unnamed<'r>(&'r StageRow);

impl Serialize for Unnamed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let StageRow { name: _, count, p50_ns, p90_ns, p99_ns, p999_ns, max_ns } = self.0;
        let mut map = serializer.serialize_map(Some(6))?;
        map.serialize_entry("count", count)?;
        map.serialize_entry("p50_ns", p50_ns)?;
        map.serialize_entry("p90_ns", p90_ns)?;
        map.serialize_entry("p99_ns", p99_ns)?;
        map.serialize_entry("p999_ns", p999_ns)?;
        map.serialize_entry("max_ns", max_ns)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, p50_ns: u64) -> StageRow {
        StageRow {
            name: name.to_owned(),
            count: 10,
            p50_ns,
            p90_ns: p50_ns * 2,
            p99_ns: p50_ns * 1000,
            p999_ns: p50_ns * 2000,
            max_ns: p50_ns * 3000,
        }
    }

    fn report() -> JobReport {
        JobReport {
            ios: 1000,
            iops: 123_456.0,
            mib_per_s: 482.25,
            bytes_read: 3 << 20,
            bytes_written: 1 << 20,
            lost: 1,
            duplicate: 2,
            checked: 700,
            miscompares: 3,
            first_miscompares: vec!["slot 1: block 5: expected version 2, found zeros".to_owned()],
            errors: 4,
            error_kinds: vec![ErrorRow {
                kind: "short".to_owned(),
                count: 4,
                first: "slot 2: x".to_owned(),
            }],
            driver: "io_uring".to_owned(),
            mode: "cached".to_owned(),
            subchannels: 64,
            seconds: 8.1,
            pinned_now_bytes: 4096,
            pinned_peak_bytes: 1 << 20,
            budget_bytes: 64 << 20,
            cache_hit_rate: Some(0.9987),
            pinner: "resident".to_owned(),
            unpinned_pages: 3,
            other_budgets: vec![
                BudgetRow { budget_bytes: 64 << 20, hit_rate: 0.97 },
                BudgetRow { budget_bytes: 128 << 20, hit_rate: 0.9941 },
            ],
            stages: vec![row("queue", 850), row("translate", 120), row("device", 12_300)],
        }
    }

    #[test]
    fn json_has_the_agreed_fields_and_keeps_the_order_of_stages() {
        let text = serde_json::to_string(&report()).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        for field in [
            "ios",
            "iops",
            "mib_per_s",
            "lost",
            "duplicate",
            "miscompares",
            "errors",
            "driver",
            "mode",
            "subchannels",
            "seconds",
            "pinned_now_bytes",
            "pinned_peak_bytes",
            "budget_bytes",
            "cache_hit_rate",
            "pinner",
            "unpinned_pages",
            "other_budgets",
        ] {
            assert!(!json[field].is_null(), "{field}");
        }
        let device = json["stages"]["device"].as_object().unwrap();
        let keys: Vec<&str> = device.keys().map(String::as_str).collect();
        assert_eq!(keys.len(), 6);
        for key in ["count", "p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns"] {
            assert!(device[key].is_u64(), "{key}");
        }
        let at = |name: &str| text.find(name).unwrap();
        assert!(at("\"queue\"") < at("\"translate\"") && at("\"translate\"") < at("\"device\""));
    }

    #[test]
    fn text_shows_figures_with_units_and_every_fault() {
        let text = report().text();
        for part in [
            "1000 requests in 8.10 s on 64 subchannels (io_uring, cached)",
            "123k IOPS, 482 MiB/s; 3 MiB read, 1 MiB written",
            "4 errors, 1 lost, 2 duplicate, 3 miscompares (700 reads checked)",
            "4 x short, first: slot 2: x",
            "found zeros",
            "pinned 4 KiB now, 1 MiB at most, of 64 MiB; cache hit rate 99.87 %",
            "not pinned: 3 pages",
            "hit rate that a budget would have (estimate): 64 MiB 97.0 %, 128 MiB 99.4 %",
            "12.3 µs",
        ] {
            assert!(text.contains(part), "{part}\nnot in\n{text}");
        }
    }

    #[test]
    fn columns_line_up() {
        let table = stage_table(&[row("queue", 850), row("a_longer_name", 1_234_567)]);
        let widths: Vec<usize> = table.lines().map(|line| line.chars().count()).collect();
        assert_eq!(widths.len(), 3);
        assert!(widths.iter().all(|&width| width == widths[0]), "{table}");
    }

    #[test]
    fn a_row_of_a_histogram_has_its_percentiles() {
        let mut histogram = Histogram::new(3).unwrap();
        for value in 1..=1000 {
            histogram.record(value).unwrap();
        }
        let row = StageRow::of_histogram("x", &histogram);
        assert_eq!(
            (row.count, row.p50_ns, row.p90_ns, row.p99_ns, row.p999_ns, row.max_ns),
            (1000, 500, 900, 990, 999, 1000)
        );
    }
}
