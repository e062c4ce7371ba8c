//! `vfio-ccw top`: a running service as a picture, from its Prometheus endpoint.
//!
//! | file | what is in it |
//! |---|---|
//! | `address.rs`, `scrape.rs` | whom to ask; one HTTP GET of a page, bounded in time and size |
//! | `exposition.rs`, `reading.rs` | the text of a page; its series, and what changed from one to the next |
//! | `quantile.rs`, `figures/` | quantiles from buckets; all numbers that are shown, and as JSON |
//! | `picture.rs`, `keys.rs`, `view/`, `watch.rs` | what is known; what the user has set; the screen; the loop |
//! | `report.rs` | the same once, for people and scripts |
//!
//! What answers is taken to be hostile: a page has at most 16 MiB and 7 s, 20,000 series of it are kept,
//! and no character of it gives the terminal an order.
//!
//! With `--once --json` one object is printed. What the service does not say is null.
//!
//! ```text
//! address, version
//! seconds        between the two scrapes; rates are of that time
//! class, operation   of which requests stages and subchannels are: all
//! iops, read_bytes_per_s, written_bytes_per_s, slow_per_s
//! completions    for each outcome an object: per_s, total (since the start)
//! unit_checks    the same for each sense
//! in_flight, queued, oldest_ns
//! stages         queue, translate, pin, start, device, deliver, total; each an object:
//!   requests_per_s, p50_ns, p99_ns, p999_ns, mean_ns
//!   at_least     names of the quantiles beyond the last bucket, which are at least so long
//!   share        of the time of total, 0 to about 1
//! subchannels    a list, the busiest first; each an object:
//!   subchannel, class, requests_per_s, errors_per_s, oldest_ns
//!   busy         share of the time in which it had a program
//! pool           null for a device server; otherwise an object:
//!   pinned_bytes, peak_bytes, budget_bytes, hit_rate, misses_per_s, evictions_per_s, waits_per_s,
//!   invalidations_per_s, waiting (programs), windows
//!   estimated_hit_rate   for budgets so many times as large
//! shards         looking, in_vain, asleep (1 is the time of one shard), doorbells_sent_per_s,
//!                doorbells_suppressed_per_s, subchannels (attached), reconnects (since the start)
//! server         null for a service; otherwise an object: clients, connections_per_s,
//!                messages_per_s, refusals_per_s, lanes, windows, window_bytes
//! ```

mod address;
mod exposition;
mod figures;
mod keys;
mod picture;
mod quantile;
mod reading;
mod report;
mod scrape;
mod view;
mod watch;

use std::time::Duration;

use super::{Failure, say, tell};
use address::Address;
use report::Report;
use scrape::Scraper;

/// Time between scrapes: the endpoint renders a page every 100 ms at most.
const LEAST_SECONDS: f64 = 0.2;
const MOST_SECONDS: f64 = 3600.0;

/// Watch a running service or device server: rates, stages, subchannels, pinned memory.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        vfio-ccw top                                  the service of this machine\n  \
        vfio-ccw top guest7:9464 --interval 5         another one, every 5 s\n  \
        vfio-ccw top http://127.0.0.1:9465/metrics    a device server\n  \
        vfio-ccw top --once                           one report, of one second\n  \
        vfio-ccw top --once --json | jq .stages.total.p99_ns\n\n\
        Keys: q ends, space or p holds the picture, s asks for the interval, c and o choose class and\n\
        operation, B, R and E sort subchannels by busy time, requests or errors, arrows and PgUp, PgDn\n\
        move among them, h has the rest. The variable NO_COLOR does away with colours.\n\n\
        --json prints {address, version, seconds, class, operation, iops, read_bytes_per_s,\n\
        written_bytes_per_s, slow_per_s, completions, unit_checks, in_flight, queued, oldest_ns,\n\
        stages, subchannels, pool, shards, server}; what the service does not say is null.\n  \
        completions   {OUTCOME: {per_s, total}}, unit_checks by sense\n  \
        stages        {STAGE: {requests_per_s, p50_ns, p99_ns, p999_ns, at_least, mean_ns, share}};\n                \
        at_least names the quantiles that lie beyond the last bucket\n  \
        subchannels   [{subchannel, class, requests_per_s, busy, errors_per_s, oldest_ns}]\n  \
        pool          {pinned_bytes, peak_bytes, budget_bytes, hit_rate, misses_per_s, evictions_per_s,\n                \
        waits_per_s, invalidations_per_s, waiting, windows, estimated_hit_rate}\n  \
        shards        {looking, in_vain, asleep, doorbells_sent_per_s, doorbells_suppressed_per_s,\n                \
        subchannels, reconnects}; 1 is the time of one shard\n  \
        server        {clients, connections_per_s, messages_per_s, refusals_per_s, lanes, windows,\n                \
        window_bytes}\n\n\
        Exit status: 0 all right, 1 there are no metrics at the address (--once), 2 could not be done\n\
        as asked.")]
pub(super) struct Top {
    /// Where the service serves its metrics: HOST:PORT or http://HOST:PORT/PAGE.
    #[arg(value_name = "ADDRESS", default_value = "127.0.0.1:9464")]
    address: Address,
    /// Time between two scrapes.
    #[arg(long, short, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    interval: Duration,
    /// Print one report, of two scrapes, and end.
    #[arg(long)]
    once: bool,
    /// Print it as one JSON object.
    #[arg(long, requires = "once")]
    json: bool,
}

impl Top {
    /// Runs it. `false`: there are no metrics.
    pub(super) fn run(&self) -> Result<bool, Failure> {
        if !self.once {
            return watch::watch(self.address.clone(), self.interval);
        }
        let scraper = Scraper::new(self.address.clone())?;
        match Report::take(&scraper, self.address.to_string(), self.interval) {
            Ok(report) if self.json => say(report.json()?)?,
            Ok(report) => say(report.text())?,
            Err(error) => {
                tell(format_args!("vfio-ccw: no metrics from {}: {error}", self.address));
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Reads a time between scrapes.
fn seconds(word: &str) -> Result<Duration, String> {
    match word.parse() {
        Ok(seconds) if (LEAST_SECONDS..=MOST_SECONDS).contains(&seconds) => {
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => Err(format!("'{word}' is no interval: use {LEAST_SECONDS} to {MOST_SECONDS} seconds")),
    }
}
