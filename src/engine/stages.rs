//! What a service has measured, as the load generator reports it.

use vfio_ccw_load::StageRow;
use vfio_ccw_metrics::{Stage, Totals};

/// The times of `stage` in `totals`.
pub fn stage_row(stage: Stage, totals: &Totals) -> StageRow {
    let times = totals.stage(stage);
    StageRow {
        name: stage.name().to_owned(),
        count: times.count(),
        p50_ns: times.quantile(0.5),
        p90_ns: times.quantile(0.9),
        p99_ns: times.quantile(0.99),
        p999_ns: times.quantile(0.999),
        max_ns: times.max_ns(),
    }
}
