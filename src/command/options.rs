//! Options that several jobs share, and how their words are read.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use vfio_ccw::architecture::SubchannelId;
use vfio_ccw::{
    DriverChoice, FlightRecorder, Granule, Interrupts, Mode, PinnerChoice, Service, ServiceBuilder,
    SubchannelSeries, WaitStrategy,
};
use vfio_ccw_load::{Access, parse_bytes};

/// How the service runs.
#[derive(Debug, clap::Args)]
pub(super) struct ServiceOptions {
    /// Most guest memory that may be pinned at one time [default: 64MiB, or what RLIMIT_MEMLOCK allows].
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(super) budget: Option<u64>,
    /// When guest pages are pinned: pinned (all, up front), on-demand (per request) or cached.
    #[arg(long, value_name = "MODE", default_value = "cached")]
    pub(super) mode: Mode,
    /// What pins pages: resident (mlock), or registered (io_uring buffers; for mode on-demand and for
    /// budgets much smaller than what is in use).
    #[arg(long, value_name = "PINNER", default_value = "resident")]
    pub(super) pinner: PinnerChoice,
    /// Size of the frames that are pinned, 4KiB to 1GiB [default: 4KiB, or what budget and memory need].
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(super) granule: Option<u64>,
    /// What file I/O runs on: auto, io_uring or epoll.
    #[arg(long, value_name = "DRIVER", default_value = "auto")]
    pub(super) driver: DriverChoice,
    /// Threads that run subchannels.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) shards: usize,
    /// How devices report the end of a program: direct, or eventfd as the kernel's do.
    #[arg(long, value_name = "HOW", default_value = "direct", value_parser = interrupts)]
    pub(super) interrupts: Interrupts,
    /// How shards wait for work: sleep, spin (a whole core each), or adaptive:MICROSECONDS:PERCENT, which
    /// looks while work is expected soon, with that much of a core at most.
    #[arg(long, value_name = "STRATEGY", default_value_t)]
    pub(super) wait: WaitStrategy,
    /// Subchannels with metrics of their own: busiest:N, or off, or some, such as 0.0.0001,0.0.0005.
    #[arg(long, value_name = "WHICH", default_value = "busiest:10", value_parser = subchannel_series)]
    pub(super) metrics_subchannels: SubchannelSeries,
    /// A request that takes as long is slow: it is counted, and logged with its channel program.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 1000)]
    pub(super) slow: u64,
}

impl ServiceOptions {
    /// A builder with these options and room for `subchannels`.
    pub(super) fn builder(&self, subchannels: usize) -> ServiceBuilder {
        let builder = Service::builder()
            .mode(self.mode)
            .pinner(self.pinner)
            .driver(self.driver)
            .shards(self.shards)
            .interrupts(self.interrupts)
            .wait(self.wait)
            .subchannel_series(self.metrics_subchannels.clone())
            .flight_recorder(FlightRecorder {
                slow: Duration::from_millis(self.slow),
                ..FlightRecorder::default()
            })
            .subchannels(subchannels.div_ceil(self.shards.max(1)));
        let builder = match self.granule {
            Some(bytes) => builder.granule(Granule::Bytes(bytes)),
            None => builder,
        };
        match self.budget {
            Some(bytes) => builder.budget(bytes),
            None => builder,
        }
    }
}

/// Reads a size such as 64MiB.
pub(super) fn bytes(word: &str) -> Result<u64, String> {
    parse_bytes(word).map_err(|error| error.to_string())
}

fn interrupts(word: &str) -> Result<Interrupts, String> {
    match word {
        "direct" => Ok(Interrupts::Direct),
        "eventfd" => Ok(Interrupts::EventFd),
        other => Err(format!("'{other}' is not a way to interrupt: use direct or eventfd")),
    }
}

fn subchannel_series(word: &str) -> Result<SubchannelSeries, String> {
    let most = SubchannelSeries::MOST;
    let chosen = match word.strip_prefix("busiest:") {
        _ if word == "off" => return Ok(SubchannelSeries::Off),
        Some(count) => count.parse().map(SubchannelSeries::Busiest).ok(),
        None => {
            let ids = word.split(',').map(|id| id.parse::<SubchannelId>());
            ids.collect::<Result<_, _>>().map(SubchannelSeries::Chosen).ok()
        }
    };
    match &chosen {
        Some(SubchannelSeries::Busiest(count)) if !(1..=most).contains(count) => {
            Err(format!("'{word}' would give {count} subchannels metrics of their own: 1 to {most} can have them"))
        }
        Some(SubchannelSeries::Chosen(ids)) if ids.len() > most => {
            Err(format!("{} subchannels cannot have metrics of their own: at most {most} can", ids.len()))
        }
        _ => chosen.ok_or_else(|| {
            format!("'{word}' does not say which subchannels: use busiest:N, off, or their numbers, such as 0.0.0001,0.0.0005")
        }),
    }
}

/// Reads an access pattern: uniform, sequential, zipf:0.99 or hot:90/10.
pub(super) fn access(word: &str) -> Result<Access, String> {
    let wrong = || {
        format!(
            "'{word}' is not an access pattern: use uniform, sequential, zipf:THETA or hot:ACCESSES/BLOCKS"
        )
    };
    match word.split_once(':') {
        None if word == "uniform" => Ok(Access::Uniform),
        None if word == "sequential" => Ok(Access::Sequential),
        Some(("zipf", theta)) => theta.parse().map(Access::Zipf).map_err(|_| wrong()),
        Some(("hot", share)) => {
            let (accesses, blocks) = share.split_once('/').ok_or_else(wrong)?;
            Ok(Access::WorkingSet {
                percent_hot_accesses: accesses.parse().map_err(|_| wrong())?,
                percent_hot_blocks: blocks.parse().map_err(|_| wrong())?,
            })
        }
        _ => Err(wrong()),
    }
}

/// Where metrics are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MetricsAddress {
    /// Nowhere.
    Off,
    /// There.
    At(SocketAddr),
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        if word == "off" {
            return Ok(MetricsAddress::Off);
        }
        word.parse().map(MetricsAddress::At).map_err(|_| {
            format!("'{word}' is not an address: use IP:PORT, such as 127.0.0.1:9464, or off")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_or_refused_with_the_choices() {
        assert!(matches!(access("zipf:0.99"), Ok(Access::Zipf(theta)) if theta == 0.99));
        assert!(matches!(
            access("hot:90/10"),
            Ok(Access::WorkingSet { percent_hot_accesses: 90, .. })
        ));
        for wrong in ["zip", "zipf", "zipf:x", "hot:90", "uniform:1"] {
            assert!(access(wrong).unwrap_err().contains("use uniform"), "{wrong}");
        }
        assert_eq!("off".parse(), Ok(MetricsAddress::Off));
        assert!("9464".parse::<MetricsAddress>().unwrap_err().contains("IP:PORT"));
        assert!(interrupts("irq").is_err());
        assert_eq!(bytes("64MiB"), Ok(64 << 20));
    }
}
