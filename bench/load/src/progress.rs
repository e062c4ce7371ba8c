//! What is shown while a job runs.

use crate::units::{Count, Nanos, ThreeDigits};
use hdrhistogram::Histogram;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// The state of a job, about four times a second. Rates and latencies are those since the last tick.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tick {
    /// What the job is doing, in one or two words.
    pub phase: &'static str,
    /// Time since the phase began.
    pub elapsed: Duration,
    /// How long the phase lasts, where it is limited by time.
    pub total: Option<Duration>,
    /// Share of the phase that is done, 0 to 1, where its end is known.
    pub fraction: Option<f64>,
    /// Requests completed without failure since the phase began.
    pub ios: u64,
    /// Completions a second.
    pub iops: f64,
    /// Data transferred, in MiB a second.
    pub mib_per_s: f64,
    /// Median latency in nanoseconds, 0 where nothing completed.
    pub p50_ns: u64,
    /// 99th percentile of the latency in nanoseconds, 0 where nothing completed.
    pub p99_ns: u64,
    /// Failed, lost, duplicate and miscompared requests since the job began.
    pub faults: u64,
    /// Time until the phase ends at the present rate, where its end is known.
    pub eta: Option<Duration>,
}

/// Something that shows ticks.
pub trait Progress {
    /// Takes the state of a running job; called on the thread that drives the load, so it must be brief.
    fn tick(&mut self, tick: &Tick);

    /// Takes the latencies, in nanoseconds, of requests that completed between two ticks, and after the last;
    /// the times are those since the measured part began.
    fn latencies(&mut self, _from: Duration, _to: Duration, _latencies: &Histogram<u64>) {}

    /// The job has ended.
    fn finish(&mut self) {}
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn tick(&mut self, _tick: &Tick) {}
}

/// One line that is rewritten in place on a terminal; elsewhere (a log, a pipe) a plain line each
/// second.
#[derive(Debug)]
pub struct LiveLine<W> {
    out: W,
    terminal: bool,
    line: String,
    /// For plain lines: phase and whole second of the last one.
    last: Option<(&'static str, u64)>,
}

impl LiveLine<io::Stderr> {
    /// On standard error, as that is a terminal or not.
    pub fn stderr() -> Self {
        let out = io::stderr();
        let terminal = out.is_terminal();
        Self::new(out, terminal)
    }
}

impl<W: Write> LiveLine<W> {
    /// On `out`, rewriting in place if `terminal`.
    pub fn new(out: W, terminal: bool) -> Self {
        Self { out, terminal, line: String::new(), last: None }
    }

    /// Writes what is in `line`. Progress is a courtesy: a closed pipe must not end the job.
    fn show(&mut self) {
        let _ = self.out.write_all(self.line.as_bytes()).and_then(|()| self.out.flush());
    }
}

impl<W: Write> Progress for LiveLine<W> {
    fn tick(&mut self, tick: &Tick) {
        let second = Some((tick.phase, tick.elapsed.as_secs()));
        if !self.terminal && self.last == second {
            return;
        }
        self.last = second;
        self.line.clear();
        // Return to column 0 and clear the line first: the new text may be shorter.
        self.line.push_str(if self.terminal { "\r\x1b[2K" } else { "" });
        describe(tick, &mut self.line);
        self.line.push_str(if self.terminal { "" } else { "\n" });
        self.show();
    }

    fn finish(&mut self) {
        if self.terminal && self.last.take().is_some() {
            self.line.clear();
            self.line.push('\n');
            self.show();
        }
    }
}

/// Writes `tick` as one line that fits in 80 columns.
fn describe(tick: &Tick, line: &mut String) {
    use std::fmt::Write as _;
    // Writing to a string can not fail.
    let _ = write!(line, "{:<9}", tick.phase);
    if let Some(fraction) = tick.fraction {
        let _ = write!(line, " {:3.0} %", (fraction * 100.0).floor());
    }
    let _ = write!(
        line,
        " {:>6} IOPS {:>5} MiB/s p50 {:>7} p99 {:>7}",
        Count(tick.iops),
        ThreeDigits(tick.mib_per_s).to_string(),
        Nanos(tick.p50_ns),
        Nanos(tick.p99_ns)
    );
    if tick.faults > 0 {
        let _ = write!(line, " FAULTS {}", tick.faults);
    }
    if let Some(eta) = tick.eta {
        let seconds = eta.as_secs_f64().ceil() as u64;
        let _ = write!(line, " eta {}:{:02}", seconds / 60, seconds % 60);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tick(phase: &'static str, millis: u64) -> Tick {
        Tick {
            phase,
            elapsed: Duration::from_millis(millis),
            total: Some(Duration::from_secs(10)),
            fraction: Some(millis as f64 / 10_000.0),
            ios: 1000,
            iops: 123_456.0,
            mib_per_s: 482.25,
            p50_ns: 8_120,
            p99_ns: 35_400,
            faults: 0,
            eta: Some(Duration::from_millis(10_000 - millis)),
        }
    }

    fn shown(terminal: bool, ticks: &[Tick]) -> String {
        let mut line = LiveLine::new(Vec::new(), terminal);
        for tick in ticks {
            line.tick(tick);
        }
        line.finish();
        String::from_utf8(line.out).unwrap()
    }

    #[test]
    fn a_log_gets_one_line_a_second_and_phase() {
        let ticks = [tick("load", 100), tick("load", 900), tick("load", 1100), tick("read", 1200)];
        let text = shown(false, &ticks);
        assert_eq!(text.lines().count(), 3);
        assert_eq!(
            text.lines().next().unwrap(),
            "load        1 %   123k IOPS   482 MiB/s p50 8.12 µs p99 35.4 µs eta 0:10"
        );
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn a_terminal_gets_one_line_in_all() {
        let text = shown(true, &[tick("load", 100), tick("load", 200), tick("load", 300)]);
        assert_eq!(text.matches("\r\x1b[2K").count(), 3);
        assert_eq!(text.matches('\n').count(), 1);
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn the_line_fits_even_with_faults() {
        let tick =
            Tick { faults: 99_999, fraction: Some(1.0), iops: 9999.0, ..tick("read back", 1) };
        let mut line = String::new();
        describe(&tick, &mut line);
        assert!(line.contains("FAULTS 99999") && line.chars().count() <= 90, "{line}");
    }

    #[test]
    fn nothing_is_left_behind_without_a_tick() {
        assert_eq!(shown(true, &[]), "");
    }
}
