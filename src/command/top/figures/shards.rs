//! What shards do while they have no work, and who wakes them.

use serde_json::{Value, json};

use super::super::reading::Change;

/// All shards together: of the time of one, so that two that sleep are at 2.
#[derive(Clone, Debug)]
pub(in super::super) struct Shards {
    pub(in super::super) looking: Option<f64>,
    pub(in super::super) in_vain: Option<f64>,
    pub(in super::super) asleep: Option<f64>,
    pub(in super::super) doorbells_sent_per_s: Option<f64>,
    pub(in super::super) doorbells_suppressed_per_s: Option<f64>,
    /// Subchannels that are attached.
    pub(in super::super) subchannels: Option<f64>,
    /// Devices of another process that came back.
    pub(in super::super) reconnects: Option<f64>,
}

impl Shards {
    pub(super) fn of(change: Change<'_>) -> Self {
        let waited = |how: &str| {
            let grown =
                change.growth("vfio_ccw_wait_seconds_total", |labels| labels.has("how", Some(how)));
            grown.map(|seconds| seconds / change.seconds())
        };
        Shards {
            looking: waited("looking"),
            in_vain: waited("in_vain"),
            asleep: waited("asleep"),
            doorbells_sent_per_s: change.rate("vfio_ccw_doorbells_sent_total"),
            doorbells_suppressed_per_s: change.rate("vfio_ccw_doorbells_suppressed_total"),
            subchannels: change.later.value("vfio_ccw_subchannels"),
            reconnects: change.later.value("vfio_ccw_remote_reconnects_total"),
        }
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "looking": self.looking,
            "in_vain": self.in_vain,
            "asleep": self.asleep,
            "doorbells_sent_per_s": self.doorbells_sent_per_s,
            "doorbells_suppressed_per_s": self.doorbells_suppressed_per_s,
            "subchannels": self.subchannels,
            "reconnects": self.reconnects,
        })
    }
}
