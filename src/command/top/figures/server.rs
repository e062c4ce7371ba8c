//! A device server's clients, and what they have it do.

use serde_json::{Value, json};

use super::super::reading::Change;

/// How a device server stands.
#[derive(Clone, Debug)]
pub(in super::super) struct Server {
    pub(in super::super) clients: Option<f64>,
    pub(in super::super) connections_per_s: Option<f64>,
    pub(in super::super) messages_per_s: Option<f64>,
    pub(in super::super) refusals_per_s: Option<f64>,
    pub(in super::super) lanes: Option<f64>,
    /// Pieces of clients' memory.
    pub(in super::super) windows: Option<f64>,
    pub(in super::super) window_bytes: Option<f64>,
}

impl Server {
    pub(super) fn of(change: Change<'_>) -> Option<Self> {
        if !change.later.has_any("vfio_ccw_server_") {
            return None;
        }
        let value = |name: &str| change.later.value(&format!("vfio_ccw_server_{name}"));
        let rate = |name: &str| change.rate(&format!("vfio_ccw_server_{name}_total"));
        Some(Server {
            clients: value("clients"),
            connections_per_s: rate("connections"),
            messages_per_s: rate("messages"),
            refusals_per_s: rate("refusals"),
            lanes: value("lanes"),
            windows: value("windows"),
            window_bytes: value("window_bytes"),
        })
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "clients": self.clients,
            "connections_per_s": self.connections_per_s,
            "messages_per_s": self.messages_per_s,
            "refusals_per_s": self.refusals_per_s,
            "lanes": self.lanes,
            "windows": self.windows,
            "window_bytes": self.window_bytes,
        })
    }
}
