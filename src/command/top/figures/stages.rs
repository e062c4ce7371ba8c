//! How long requests spend in each stage.

use serde_json::{Value, json};
use vfio_ccw_metrics::Stage as Name;

use super::super::quantile::{Buckets, Quantile};
use super::super::reading::{Change, Labels};
use super::{Choice, ns};

/// One stage of the chosen requests. What it has no requests for is missing.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) struct Stage {
    pub(in super::super) name: &'static str,
    pub(in super::super) requests_per_s: Option<f64>,
    pub(in super::super) p50: Option<Quantile>,
    pub(in super::super) p99: Option<Quantile>,
    pub(in super::super) p999: Option<Quantile>,
    pub(in super::super) mean_s: Option<f64>,
    /// Of the time of stage `total`, 0 to about 1.
    pub(in super::super) share: Option<f64>,
}

/// All stages, in the order in which requests go through them.
pub(in super::super) fn stages(change: Change<'_>, choice: &Choice) -> Vec<Stage> {
    let chosen = |stage: Name| {
        move |labels: &Labels| {
            labels.has("stage", Some(stage.name()))
                && labels.has("class", choice.class.as_deref())
                && labels.has("operation", choice.operation.as_deref())
        }
    };
    let sum = |stage| change.growth("vfio_ccw_stage_duration_seconds_sum", chosen(stage));
    let total = sum(Name::Total).filter(|total| *total > 0.0);
    let stage = |stage: Name| {
        let count = change.growth("vfio_ccw_stage_duration_seconds_count", chosen(stage));
        let mut buckets = Buckets::default();
        for (labels, growth) in
            change.growths("vfio_ccw_stage_duration_seconds_bucket", chosen(stage))
        {
            if let Some(Ok(bound)) = labels.value("le").map(str::parse) {
                buckets.add(bound, growth);
            }
        }
        let some = count.filter(|count| *count > 0.0);
        Stage {
            name: stage.name(),
            requests_per_s: count.map(|count| count / change.seconds()),
            p50: buckets.quantile(0.5),
            p99: buckets.quantile(0.99),
            p999: buckets.quantile(0.999),
            mean_s: sum(stage).zip(some).map(|(sum, count)| sum / count),
            share: sum(stage).zip(total).map(|(sum, total)| sum / total),
        }
    };
    Name::ALL.map(stage).into()
}

impl Stage {
    pub(super) fn json(&self) -> Value {
        let quantiles = [("p50_ns", self.p50), ("p99_ns", self.p99), ("p999_ns", self.p999)];
        let beyond =
            quantiles.into_iter().filter(|(_, it)| matches!(it, Some(Quantile::Beyond(_))));
        json!({
            "requests_per_s": self.requests_per_s,
            "p50_ns": self.p50.map(Quantile::ns),
            "p99_ns": self.p99.map(Quantile::ns),
            "p999_ns": self.p999.map(Quantile::ns),
            "at_least": beyond.map(|(name, _)| name).collect::<Vec<_>>(),
            "mean_ns": self.mean_s.map(ns),
            "share": self.share,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Sort;
    use super::super::tests::{figures, pages};
    use super::*;

    fn requests_per_s(choice: &Choice, pages: [String; 2]) -> Option<f64> {
        figures(pages, choice, Sort::Busy).stages[Name::Total.index()].requests_per_s
    }

    #[test]
    fn requests_are_chosen_by_class_and_operation() {
        let choice = |class: Option<&str>, operation: Option<&str>| Choice {
            class: class.map(str::to_owned),
            operation: operation.map(str::to_owned),
        };
        assert_eq!(requests_per_s(&choice(None, None), pages()), Some(3000.0));
        assert_eq!(requests_per_s(&choice(Some("fba"), None), pages()), Some(2000.0));
        assert_eq!(requests_per_s(&choice(Some("fba"), Some("read")), pages()), Some(1000.0));
        assert_eq!(requests_per_s(&choice(Some("tape"), None), pages()), None);
    }

    #[test]
    fn a_service_that_does_not_tell_operations_apart_is_shown_too() {
        let without = pages().map(|page| page.replace(",operation=\"read\"", ""));
        let all = Choice::default();
        assert_eq!(requests_per_s(&all, without), Some(3000.0));
    }

    #[test]
    fn a_quantile_beyond_the_bounds_is_marked() {
        let page = |count: u32| {
            format!(
                "vfio_ccw_stage_duration_seconds_bucket{{stage=\"total\",le=\"10.0\"}} 0\n\
                 vfio_ccw_stage_duration_seconds_bucket{{stage=\"total\",le=\"+Inf\"}} {count}\n"
            )
        };
        let figures = figures([page(0), page(5)], &Choice::default(), Sort::Busy);
        let json = figures.stages[Name::Total.index()].json();
        assert_eq!(json["at_least"], json!(["p50_ns", "p99_ns", "p999_ns"]));
        assert_eq!(json["p50_ns"], 10_000_000_000_u64);
    }
}
