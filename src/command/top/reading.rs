//! What one scrape said, and what changed from one to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::exposition::samples;

/// What the names of the service's metrics begin with; others are not kept.
const OURS: &str = "vfio_ccw_";

/// Most series that are kept. A service with every label there is has about 4000.
const MOST_SERIES: usize = 20_000;

/// Most characters of a label's value that are kept.
const MOST_CHARACTERS: usize = 40;

/// Names that are bounded sets of subchannels: one that is new may have been there for long, and one whose
/// numbers fall is another device.
const OF_SUBCHANNELS: &str = "vfio_ccw_subchannel_";

/// Labels of a series, sorted by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Labels(Vec<(String, String)>);

impl Labels {
    fn of(labels: Vec<(&str, String)>) -> Self {
        let mut labels: Vec<_> =
            labels.into_iter().map(|(name, value)| (name.to_owned(), legible(&value))).collect();
        labels.sort();
        Labels(labels)
    }

    /// The value of a label.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// Whether the label has this value, or any where none is asked for.
    pub(super) fn has(&self, name: &str, value: Option<&str>) -> bool {
        value.is_none_or(|value| self.value(name) == Some(value))
    }
}

/// A terminal takes some characters for orders.
fn legible(value: &str) -> String {
    let harmless = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    value.chars().take(MOST_CHARACTERS).map(harmless).collect()
}

/// All series of one scrape.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    taken: Instant,
    families: BTreeMap<String, BTreeMap<Labels, f64>>,
}

impl Reading {
    /// The series of a page that came at this moment. `None` where none is of a vfio-ccw service.
    pub(super) fn of(page: &str, taken: Instant) -> Option<Self> {
        let mut families: BTreeMap<String, BTreeMap<Labels, f64>> = BTreeMap::new();
        let ours = samples(page).filter(|sample| sample.name.starts_with(OURS));
        for sample in ours.take(MOST_SERIES) {
            let family = families.entry(sample.name.to_owned()).or_default();
            family.insert(Labels::of(sample.labels), sample.value);
        }
        (!families.is_empty()).then_some(Reading { taken, families })
    }

    /// The series of one name.
    pub(super) fn series(&self, name: &str) -> impl Iterator<Item = (&Labels, f64)> {
        let family = self.families.get(name).into_iter().flatten();
        family.map(|(labels, value)| (labels, *value))
    }

    /// The sum of the series of one name. `None` where there is none, or it is no number.
    pub(super) fn value(&self, name: &str) -> Option<f64> {
        let values = self.series(name).map(|(_, value)| value);
        values.reduce(|sum, value| sum + value).filter(|sum| sum.is_finite())
    }

    /// The value of one series. `None` where it is not there, or no number.
    pub(super) fn value_of(&self, name: &str, labels: &Labels) -> Option<f64> {
        self.families.get(name)?.get(labels).copied().filter(|value| value.is_finite())
    }

    /// The values that a label has among the series of one name.
    pub(super) fn label_values(&self, name: &str, label: &str) -> BTreeSet<&str> {
        self.series(name).filter_map(|(labels, _)| labels.value(label)).collect()
    }

    /// Whether a name begins so.
    pub(super) fn has_any(&self, beginning: &str) -> bool {
        let from = self.families.range(beginning.to_owned()..);
        from.take(1).any(|(name, _)| name.starts_with(beginning))
    }
}

/// From one scrape to a later one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change<'a> {
    pub(super) earlier: &'a Reading,
    pub(super) later: &'a Reading,
}

impl Change<'_> {
    /// Time between the two.
    pub(super) fn seconds(&self) -> f64 {
        // Not 0, which is divided by.
        self.later.taken.saturating_duration_since(self.earlier.taken).as_secs_f64().max(1e-6)
    }

    /// Whether the service was started again between the two: a counter fell, or the version is another.
    pub(super) fn is_restart(&self) -> bool {
        let endings = ["_total", "_bucket", "_sum", "_count"];
        let counters = self.later.families.iter().filter(|(name, _)| {
            endings.iter().any(|ending| name.ends_with(ending)) && !name.starts_with(OF_SUBCHANNELS)
        });
        let fell =
            counters.filter_map(|(name, family)| Some((self.earlier.families.get(name)?, family)));
        let mut fell = fell.flat_map(|(before, family)| {
            family
                .iter()
                .map(|(labels, value)| before.get(labels).is_some_and(|before| value < before))
        });
        let versions = |reading: &Reading| {
            reading
                .series("vfio_ccw_build_info")
                .map(|(labels, _)| labels.clone())
                .collect::<Vec<_>>()
        };
        fell.any(|fell| fell) || versions(self.earlier) != versions(self.later)
    }

    /// By how much each series of a counter that `chosen` takes grew. One that is new began at 0.
    pub(super) fn growths(
        &self,
        name: &str,
        chosen: impl Fn(&Labels) -> bool,
    ) -> impl Iterator<Item = (&Labels, f64)> {
        let before = self.earlier.families.get(name);
        let series = self.later.families.get(name).into_iter().flatten();
        series.filter(move |(labels, _)| chosen(labels)).filter_map(move |(labels, value)| {
            let before = before.and_then(|before| before.get(labels)).copied().unwrap_or(0.0);
            let growth = value - before;
            growth.is_finite().then_some((labels, growth.max(0.0)))
        })
    }

    /// By how much the chosen series of a counter grew together. `None` where there is none.
    pub(super) fn growth(&self, name: &str, chosen: impl Fn(&Labels) -> bool) -> Option<f64> {
        self.growths(name, chosen).map(|(_, growth)| growth).reduce(|sum, growth| sum + growth)
    }

    /// By how much a counter grew in a second.
    pub(super) fn rate(&self, name: &str) -> Option<f64> {
        Some(self.growth(name, |_| true)? / self.seconds())
    }

    /// By how much this series grew in a second. `None` where either scrape lacks it, or it fell.
    pub(super) fn rate_of_known(&self, name: &str, labels: &Labels) -> Option<f64> {
        let growth = self.later.value_of(name, labels)? - self.earlier.value_of(name, labels)?;
        (growth >= 0.0).then(|| growth / self.seconds())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn pair(earlier: &str, later: &str) -> (Reading, Reading) {
        let now = Instant::now();
        let at = |page, after| Reading::of(page, now + Duration::from_secs(after)).unwrap();
        (at(earlier, 0), at(later, 2))
    }

    fn is_restart(earlier: &str, later: &str) -> bool {
        let (earlier, later) = pair(earlier, later);
        Change { earlier: &earlier, later: &later }.is_restart()
    }

    #[test]
    fn rates_are_of_the_time_between() {
        let (earlier, later) = pair(
            "vfio_ccw_a_total{shard=\"0\"} 5\nvfio_ccw_nan_total NaN",
            "vfio_ccw_a_total{shard=\"0\"} 9\nvfio_ccw_a_total{shard=\"1\"} 2\nvfio_ccw_nan_total NaN",
        );
        let change = Change { earlier: &earlier, later: &later };
        assert_eq!(change.rate("vfio_ccw_a_total"), Some(3.0));
        assert_eq!(
            change.growth("vfio_ccw_a_total", |labels| labels.has("shard", Some("0"))),
            Some(4.0)
        );
        assert_eq!(
            (change.rate("vfio_ccw_b_total"), change.rate("vfio_ccw_nan_total")),
            (None, None)
        );
        let known = |shard: &str| {
            let labels = Labels::of(vec![("shard", shard.to_owned())]);
            change.rate_of_known("vfio_ccw_a_total", &labels)
        };
        assert_eq!((known("0"), known("1"), known("2")), (Some(2.0), None, None));
    }

    #[test]
    fn values_are_summed_or_missing() {
        let page = "vfio_ccw_g{a=\"1\"} 1\nvfio_ccw_g{a=\"2\"} 2\nvfio_ccw_nan NaN\nother 3";
        let reading = Reading::of(page, Instant::now()).unwrap();
        assert_eq!(reading.value("vfio_ccw_g"), Some(3.0));
        assert_eq!((reading.value("vfio_ccw_nan"), reading.value("other")), (None, None));
        assert_eq!(Vec::from_iter(reading.label_values("vfio_ccw_g", "a")), ["1", "2"]);
        assert!(reading.has_any("vfio_ccw_n") && !reading.has_any("vfio_ccw_server_"));
        assert!(Reading::of("other 3", Instant::now()).is_none());
    }

    #[test]
    fn a_counter_that_falls_is_a_restart() {
        assert!(is_restart("vfio_ccw_a_total 5", "vfio_ccw_a_total 4"));
        assert!(is_restart("vfio_ccw_a_bucket{le=\"1\"} 5", "vfio_ccw_a_bucket{le=\"1\"} 4"));
        assert!(is_restart(
            "vfio_ccw_build_info{version=\"1\"} 1",
            "vfio_ccw_build_info{version=\"2\"} 1"
        ));
        assert!(!is_restart("vfio_ccw_a_total 5", "vfio_ccw_a_total 5"));
        assert!(!is_restart("vfio_ccw_gauge 5", "vfio_ccw_gauge 4"));
        assert!(!is_restart("vfio_ccw_a_total{x=\"1\"} 5", "vfio_ccw_a_total{x=\"2\"} 4"));
        let subchannel = |value| {
            format!("vfio_ccw_subchannel_requests_total{{subchannel=\"0.0.0000\"}} {value}")
        };
        assert!(!is_restart(&subchannel(5), &subchannel(4)), "another device of this number");
    }

    #[test]
    fn what_is_kept_is_bounded_and_fit_for_a_terminal() {
        let page: String =
            (0..MOST_SERIES + 5).map(|n| format!("vfio_ccw_a{{n=\"{n}\"}} 1\n")).collect();
        let reading = Reading::of(&page, Instant::now()).unwrap();
        assert_eq!(reading.value("vfio_ccw_a"), Some(MOST_SERIES as f64));
        assert_eq!(legible("a\x1b[2J\u{9b}ä b"), "a?[2J?? b");
        assert_eq!(legible(&"x".repeat(1000)).len(), MOST_CHARACTERS);
    }
}
