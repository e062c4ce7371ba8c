//! What a server counts, for its metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vfio_ccw_metrics::{Family, Registry, Row, SeriesError, ShardMetrics};

/// What one server counts. Its thread writes, and whoever scrapes reads.
#[derive(Debug)]
pub(super) struct Tally {
    /// Programs and their ends, as a shard counts them.
    pub(super) shard: Arc<ShardMetrics>,
    pub(super) standing: Arc<Standing>,
}

/// How things stand.
#[derive(Debug, Default)]
pub(super) struct Standing {
    pub(super) clients: AtomicU64,
    pub(super) lanes: AtomicU64,
    pub(super) windows: AtomicU64,
    pub(super) window_bytes: AtomicU64,
    pub(super) messages: AtomicU64,
    pub(super) refusals: AtomicU64,
    pub(super) connections: AtomicU64,
}

/// Adds to one of them.
pub(super) fn add(to: &AtomicU64, more: u64) {
    // Relaxed: a figure.
    to.fetch_add(more, Ordering::Relaxed);
}

/// Takes away from one of them.
pub(super) fn take(from: &AtomicU64, less: u64) {
    // Relaxed: a figure.
    from.fetch_sub(less, Ordering::Relaxed);
}

/// What only grows.
static SUMS: [Family; 3] = [
    Family::counter("vfio_ccw_server_connections_total", "Connections of clients."),
    Family::counter("vfio_ccw_server_messages_total", "Messages of clients."),
    Family::counter("vfio_ccw_server_refusals_total", "Messages of clients that were refused."),
];

impl Tally {
    /// Adds the figures to `registry`. Those of an earlier server there are replaced.
    ///
    /// # Errors
    ///
    /// None, as long as the names are right.
    pub(super) fn new(registry: &Registry) -> Result<Self, SeriesError> {
        let standing = Arc::new(Standing::default());
        let weak = Arc::downgrade(&standing);
        registry.rows(&SUMS, move || {
            let Some(all) = weak.upgrade() else { return Vec::new() };
            let sums = [&all.connections, &all.messages, &all.refusals];
            // Relaxed: figures.
            let values = sums.map(|sum| sum.load(Ordering::Relaxed) as f64);
            vec![Row { labels: Vec::new(), values: values.into() }]
        })?;
        let gauge = |name: &str, help: &str, field: fn(&Standing) -> &AtomicU64| {
            let standing = Arc::downgrade(&standing);
            registry.gauge(name, help, move || {
                // Relaxed: a figure.
                let value = |standing: Arc<Standing>| field(&standing).load(Ordering::Relaxed);
                standing.upgrade().map_or(0.0, |standing| value(standing) as f64)
            })
        };
        gauge("vfio_ccw_server_clients", "Clients that are connected.", |all| &all.clients)?;
        gauge("vfio_ccw_server_lanes", "Lanes that programs come over.", |all| &all.lanes)?;
        gauge("vfio_ccw_server_windows", "Pieces of clients' memory that are mapped.", |all| {
            &all.windows
        })?;
        gauge(
            "vfio_ccw_server_window_bytes",
            "Bytes of clients' memory that are mapped.",
            |all| &all.window_bytes,
        )?;
        Ok(Tally { shard: registry.shard("server"), standing })
    }
}
