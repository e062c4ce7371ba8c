//! The busiest subchannels, as far as the service tells them apart.

use serde_json::{Value, json};

use super::super::reading::{Change, Labels};
use super::{Choice, ns};

/// What subchannels are sorted by, the most first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) enum Sort {
    #[default]
    Busy,
    Requests,
    Errors,
}

impl Sort {
    pub(in super::super) fn name(self) -> &'static str {
        match self {
            Sort::Busy => "busy time",
            Sort::Requests => "requests",
            Sort::Errors => "errors",
        }
    }
}

/// One subchannel. A rate is missing where the scrape before did not have it.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) struct Subchannel {
    pub(in super::super) name: String,
    pub(in super::super) class: Option<String>,
    pub(in super::super) requests_per_s: Option<f64>,
    /// Share of the time in which it had a program.
    pub(in super::super) busy: Option<f64>,
    pub(in super::super) errors_per_s: Option<f64>,
    pub(in super::super) oldest_s: Option<f64>,
}

/// The subchannels of the chosen class.
pub(in super::super) fn subchannels(
    change: Change<'_>,
    choice: &Choice,
    sort: Sort,
) -> Vec<Subchannel> {
    let chosen = |labels: &Labels| labels.has("class", choice.class.as_deref());
    let series = change.later.series("vfio_ccw_subchannel_requests_total");
    let all = series.filter(|(labels, _)| chosen(labels)).map(|(labels, _)| {
        let rate = |name: &str| change.rate_of_known(name, labels);
        let oldest = "vfio_ccw_subchannel_oldest_request_seconds";
        Subchannel {
            name: labels.value("subchannel").unwrap_or("?").to_owned(),
            class: labels.value("class").map(str::to_owned),
            requests_per_s: rate("vfio_ccw_subchannel_requests_total"),
            busy: rate("vfio_ccw_subchannel_busy_seconds_total"),
            errors_per_s: rate("vfio_ccw_subchannel_errors_total"),
            oldest_s: change.later.value_of(oldest, labels),
        }
    });
    let mut all: Vec<_> = all.collect();
    let by = |subchannel: &Subchannel| match sort {
        Sort::Busy => subchannel.busy,
        Sort::Requests => subchannel.requests_per_s,
        Sort::Errors => subchannel.errors_per_s,
    };
    // They are in order of their names, and stay so where they are equal.
    all.sort_by(|a, b| by(b).unwrap_or(-1.0).total_cmp(&by(a).unwrap_or(-1.0)));
    all
}

impl Subchannel {
    pub(super) fn json(&self) -> Value {
        json!({
            "subchannel": self.name,
            "class": self.class,
            "requests_per_s": self.requests_per_s,
            "busy": self.busy,
            "errors_per_s": self.errors_per_s,
            "oldest_ns": self.oldest_s.map(ns),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{figures, pages};
    use super::*;

    #[test]
    fn they_are_sorted_as_asked() {
        let order = |sort| {
            let figures = figures(pages(), &Choice::default(), sort);
            figures.subchannels.iter().map(|it| it.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(order(Sort::Requests), ["0.0.0000", "0.0.0002", "0.0.0001"]);
        assert_eq!(order(Sort::Busy), ["0.0.0001", "0.0.0002", "0.0.0000"]);
        assert_eq!(order(Sort::Errors), ["0.0.0002", "0.0.0001", "0.0.0000"]);
        let choice = Choice { class: Some("null".into()), ..Choice::default() };
        assert_eq!(figures(pages(), &choice, Sort::Busy).subchannels, []);
    }

    #[test]
    fn one_that_has_just_come_into_the_set_has_no_rate() {
        let [earlier, later] = pages();
        let without: String = earlier
            .lines()
            .filter(|line| !line.contains("0.0.0001"))
            .map(|line| format!("{line}\n"))
            .collect();
        let all = figures([without, later], &Choice::default(), Sort::Busy).subchannels;
        assert_eq!((all[2].name.as_str(), all[2].busy), ("0.0.0001", None));
        assert!(all[2].oldest_s.is_some());
    }
}
