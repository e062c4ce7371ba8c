//! The pool of pinned pages.

use serde_json::{Map, Value, json};

use super::super::reading::Change;

/// What is pinned, and what that costs.
#[derive(Clone, Debug)]
pub(in super::super) struct Pool {
    pub(in super::super) pinned_bytes: Option<f64>,
    pub(in super::super) peak_bytes: Option<f64>,
    pub(in super::super) budget_bytes: Option<f64>,
    /// Of the time between the scrapes.
    pub(in super::super) hit_rate: Option<f64>,
    pub(in super::super) misses_per_s: Option<f64>,
    pub(in super::super) evictions_per_s: Option<f64>,
    pub(in super::super) waits_per_s: Option<f64>,
    pub(in super::super) invalidations_per_s: Option<f64>,
    /// Programs that wait for room.
    pub(in super::super) waiting: Option<f64>,
    /// Pieces of guest memory that devices see.
    pub(in super::super) windows: Option<f64>,
    /// Hit rates that budgets so many times as large would have.
    pub(in super::super) estimates: Vec<(String, Option<f64>)>,
}

impl Pool {
    pub(super) fn of(change: Change<'_>) -> Option<Self> {
        let value = |name: &str| change.later.value(name);
        value("vfio_ccw_pin_budget_bytes").or_else(|| value("vfio_ccw_pinned_bytes"))?;
        let hits = change.growth("vfio_ccw_pin_hits_total", |_| true);
        let gets = change.growth("vfio_ccw_pin_gets_total", |_| true);
        let mut estimates: Vec<_> = change
            .later
            .series("vfio_ccw_pin_estimated_hit_ratio")
            .filter_map(|(labels, ratio)| {
                let of_budget = labels.value("of_budget")?;
                Some((of_budget.to_owned(), ratio.is_finite().then_some(ratio)))
            })
            .collect();
        let times = |of_budget: &str| of_budget.parse().unwrap_or(f64::MAX);
        estimates.sort_by(|a, b| times(&a.0).total_cmp(&times(&b.0)));
        Some(Pool {
            pinned_bytes: value("vfio_ccw_pinned_bytes"),
            peak_bytes: value("vfio_ccw_pinned_peak_bytes"),
            budget_bytes: value("vfio_ccw_pin_budget_bytes"),
            hit_rate: hits
                .zip(gets)
                .filter(|(_, gets)| *gets > 0.0)
                .map(|(hits, gets)| hits / gets),
            misses_per_s: change.rate("vfio_ccw_pin_misses_total"),
            evictions_per_s: change.rate("vfio_ccw_pin_evictions_total"),
            waits_per_s: change.rate("vfio_ccw_pin_waits_total"),
            invalidations_per_s: change.rate("vfio_ccw_pin_invalidations_total"),
            waiting: value("vfio_ccw_pin_waiting_programs"),
            windows: value("vfio_ccw_windows"),
            estimates,
        })
    }

    pub(super) fn json(&self) -> Value {
        let estimates: Map<_, _> =
            self.estimates.iter().map(|(times, rate)| (times.clone(), json!(rate))).collect();
        json!({
            "pinned_bytes": self.pinned_bytes,
            "peak_bytes": self.peak_bytes,
            "budget_bytes": self.budget_bytes,
            "hit_rate": self.hit_rate,
            "misses_per_s": self.misses_per_s,
            "evictions_per_s": self.evictions_per_s,
            "waits_per_s": self.waits_per_s,
            "invalidations_per_s": self.invalidations_per_s,
            "waiting": self.waiting,
            "windows": self.windows,
            "estimated_hit_rate": estimates,
        })
    }
}
