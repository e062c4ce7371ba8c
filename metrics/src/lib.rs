//! The measuring side of the vfio-ccw I/O service: what a shard writes while it works, how the
//! shards are summed, and how Prometheus reads the sums.
//!
//! # Shape
//!
//! ```text
//! shard thread ──► ShardMetrics (plain loads and stores, one writer)
//! shard thread ──► ShardMetrics                     │
//!                                                   ▼ read at scrape only
//!                      gauges sampled ──►  Registry  ──► Totals   (reports)
//!                                             │
//!                                             └────────► text, or protobuf (Endpoint, GET /metrics)
//! ```
//!
//! The I/O path never touches a shared counter, a lock, a map or an allocator: a sample is a load
//! and a store in memory that only its shard writes. All summing is left to the reader, who comes
//! a few times a minute. Memory is fixed: a sample changes a number and never adds one.
//!
//! Samples do not go through the `metrics` facade. A facade histogram keeps every sample until
//! somebody scrapes, so its memory grows with the I/O rate, and one sample costs more than ten
//! times as much as here. The facade and its Prometheus exporter are used where they are good: for
//! naming, describing and rendering counters and gauges ([`Registry`]).
//!
//! # Features
//!
//! - `record` (default): take samples. Without it [`Histogram::record`], [`Counter::add`] and
//!   [`SharedCounter::add`] compile to nothing and [`RECORDING`] is `false`, so that a caller can
//!   leave out the clock reads too. Everything else stays, and reads as zero.
//! - `endpoint` (default): the HTTP server, `Endpoint`.
//! - `protobuf` (default, part of `endpoint`): Prometheus' protobuf format with native histograms,
//!   `Registry::render_protobuf`.
//!
//! # Example
//!
//! ```
//! use vfio_ccw_metrics::{CounterKind, DeviceClass, Kind, Operation, Outcome, Registry, Stage};
//!
//! let registry = Registry::new();
//!
//! // On the shard thread: one ShardMetrics for each shard, written by that thread alone.
//! let shard = registry.shard("0");
//! let reads = Kind { class: DeviceClass::Fba, operation: Operation::Read };
//! let fba = shard.durations(reads);
//! shard.counters().starts.add(1);
//! fba.record(Stage::Device, 81_000);
//! fba.record(Stage::Total, 84_500);
//! shard.complete(Outcome::Ok);
//!
//! // Anywhere: what another part of the service knows is sampled when somebody asks.
//! registry.gauge("vfio_ccw_pinned_bytes", "Bytes pinned now.", || 65536.0)?;
//!
//! let totals = registry.snapshot();
//! # if vfio_ccw_metrics::RECORDING {
//! assert_eq!(totals.counter(CounterKind::Starts), 1);
//! assert_eq!(totals.stage(Stage::Total).quantile(0.5), 84_500);
//! # }
//! assert!(registry.render().contains("vfio_ccw_pinned_bytes 65536"));
//! # Ok::<(), vfio_ccw_metrics::SeriesError>(())
//! ```

#![forbid(unsafe_code)]

mod counter;
#[cfg(feature = "endpoint")]
mod endpoint;
mod exposition;
mod histogram;
#[cfg(feature = "protobuf")]
mod native;
mod page;
#[cfg(feature = "protobuf")]
mod protobuf;
mod registry;
mod rows;
mod sense;
mod shard;
mod snapshot;
mod stage;
mod totals;

pub use counter::{Counter, SharedCounter};
#[cfg(feature = "endpoint")]
pub use endpoint::{Endpoint, EndpointError};
pub use exposition::PROMETHEUS_BOUNDS_NS;
pub use histogram::{Histogram, LIMIT_NS};
pub use page::{Page, PageError, PageFormat};
pub use registry::{Registry, SeriesError};
pub use rows::{Family, FamilyKind, Row};
pub use sense::SenseClass;
pub use shard::{
    CounterKind, Durations, Outcome, ShardCounters, ShardMetrics, SubmitterCounters, Waiting,
};
pub use snapshot::Snapshot;
pub use stage::{DeviceClass, Kind, Operation, Stage};
pub use totals::Totals;

/// Whether samples are taken: `false` when the feature `record` is off.
///
/// A constant, so `if RECORDING { … }` around a clock read costs nothing either way.
pub const RECORDING: bool = cfg!(feature = "record");

/// The Rust in the document of all metrics.
#[cfg(all(doctest, feature = "endpoint"))]
#[doc = include_str!("../../docs/METRICS.md")]
mod document {}
