//! Counters and stage histograms of one or more shards at one moment.

use crate::sense::SenseClass;
use crate::shard::{CounterKind, Outcome, Waiting};
use crate::snapshot::Snapshot;
use crate::stage::{DeviceClass, Kind, Stage};

/// What one or more shards measured, at one moment: the input of reports and of a scrape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    counters: [u64; CounterKind::COUNT],
    completions: [u64; Outcome::COUNT],
    waits: [u64; Waiting::COUNT],
    unit_checks: [u64; SenseClass::COUNT],
    /// By [`Kind::index`].
    durations: [Option<Box<[Snapshot; Stage::COUNT]>>; Kind::COUNT],
}

impl Totals {
    /// The value of one counter.
    #[must_use]
    pub fn counter(&self, kind: CounterKind) -> u64 {
        self.counters[kind.index()]
    }

    /// How many requests ended with `outcome`.
    #[must_use]
    pub fn completions(&self, outcome: Outcome) -> u64 {
        self.completions[outcome.index()]
    }

    /// How many requests ended, however they did.
    #[must_use]
    pub fn all_completions(&self) -> u64 {
        self.completions.iter().sum()
    }

    /// For how many nanoseconds shards have waited so.
    #[must_use]
    pub fn waited(&self, how: Waiting) -> u64 {
        self.waits[how.index()]
    }

    /// How many requests ended with unit check and sense data of this class.
    #[must_use]
    pub fn unit_checks(&self, sense: SenseClass) -> u64 {
        self.unit_checks[sense.index()]
    }

    /// The durations of `stage` over all kinds of requests.
    #[must_use]
    pub fn stage(&self, stage: Stage) -> Snapshot {
        self.merged(Kind::all(), stage).unwrap_or_default()
    }

    /// The durations of `stage` for one device class, or `None` if no device of that class was
    /// ever attached.
    #[must_use]
    pub fn stage_of(&self, class: DeviceClass, stage: Stage) -> Option<Snapshot> {
        self.merged(Kind::of(class), stage)
    }

    /// The durations of `stage` for one kind of requests, or `None` as for
    /// [`stage_of`](Self::stage_of).
    #[must_use]
    pub fn stage_in(&self, kind: Kind, stage: Stage) -> Option<&Snapshot> {
        self.durations[kind.index()].as_ref().map(|stages| &stages[stage.index()])
    }

    fn merged(&self, kinds: impl Iterator<Item = Kind>, stage: Stage) -> Option<Snapshot> {
        kinds.filter_map(|kind| self.stage_in(kind, stage)).fold(None, |sum, more| {
            let mut sum: Snapshot = sum.unwrap_or_default();
            sum.merge(more);
            Some(sum)
        })
    }

    /// The kinds of requests that there can be: those of the device classes in use.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> + '_ {
        Kind::all().filter(|kind| self.durations[kind.index()].is_some())
    }

    /// Adds what `other` measured.
    pub fn merge(&mut self, other: &Self) {
        for (sum, more) in self.counters.iter_mut().zip(&other.counters) {
            *sum += more;
        }
        for (sum, more) in self.completions.iter_mut().zip(&other.completions) {
            *sum += more;
        }
        for (sum, more) in self.waits.iter_mut().zip(&other.waits) {
            *sum += more;
        }
        for (sum, more) in self.unit_checks.iter_mut().zip(&other.unit_checks) {
            *sum += more;
        }
        for (kind, more) in self.durations.iter_mut().zip(&other.durations) {
            match (kind, more) {
                (Some(stages), Some(more)) => {
                    for (stage, more) in stages.iter_mut().zip(more.iter()) {
                        stage.merge(more);
                    }
                }
                (kind @ None, Some(more)) => *kind = Some(more.clone()),
                (_, None) => {}
            }
        }
    }

    /// What was measured after `earlier`, totals of the same shards.
    ///
    /// Counts that would be negative are 0. See [`Snapshot::minus`] for the maximum durations.
    #[must_use]
    pub fn minus(&self, earlier: &Self) -> Self {
        let mut rest = self.clone();
        for (count, before) in rest.counters.iter_mut().zip(&earlier.counters) {
            *count = count.saturating_sub(*before);
        }
        for (count, before) in rest.completions.iter_mut().zip(&earlier.completions) {
            *count = count.saturating_sub(*before);
        }
        for (time, before) in rest.waits.iter_mut().zip(&earlier.waits) {
            *time = time.saturating_sub(*before);
        }
        for (count, before) in rest.unit_checks.iter_mut().zip(&earlier.unit_checks) {
            *count = count.saturating_sub(*before);
        }
        for (kind, before) in rest.durations.iter_mut().zip(&earlier.durations) {
            if let (Some(stages), Some(before)) = (kind, before) {
                for (stage, before) in stages.iter_mut().zip(before.iter()) {
                    *stage = stage.minus(before);
                }
            }
        }
        rest
    }

    pub(crate) fn set_counter(&mut self, kind: CounterKind, value: u64) {
        self.counters[kind.index()] = value;
    }

    pub(crate) fn set_completions(&mut self, outcome: Outcome, value: u64) {
        self.completions[outcome.index()] = value;
    }

    pub(crate) fn set_waited(&mut self, how: Waiting, nanos: u64) {
        self.waits[how.index()] = nanos;
    }

    pub(crate) fn set_unit_checks(&mut self, sense: SenseClass, value: u64) {
        self.unit_checks[sense.index()] = value;
    }

    pub(crate) fn set_durations(&mut self, kind: Kind, stages: [Snapshot; Stage::COUNT]) {
        self.durations[kind.index()] = Some(Box::new(stages));
    }
}

#[cfg(all(test, feature = "record"))]
mod tests {
    use super::*;
    use crate::shard::ShardMetrics;
    use crate::stage::Operation;

    fn reads(class: DeviceClass) -> Kind {
        Kind { class, operation: Operation::Read }
    }

    fn busy(label: &str, class: DeviceClass, ns: u64) -> ShardMetrics {
        let shard = ShardMetrics::new(label.into());
        shard.counters().starts.add(2);
        shard.complete(Outcome::Ok);
        shard.complete(Outcome::DeferredCc);
        shard.durations(reads(class)).record(Stage::Total, ns);
        shard
    }

    #[test]
    fn merging_adds_counters_and_keeps_classes_apart() {
        let mut sum = busy("0", DeviceClass::Fba, 10).totals();
        sum.merge(&busy("1", DeviceClass::Fba, 20).totals());
        sum.merge(&busy("2", DeviceClass::Eckd, 30).totals());

        assert_eq!(sum.counter(CounterKind::Starts), 6);
        assert_eq!(sum.completions(Outcome::DeferredCc), 3);
        assert_eq!(sum.all_completions(), 6);
        let total = |class| sum.stage_of(class, Stage::Total).map(|total| total.sum_ns());
        assert_eq!(total(DeviceClass::Fba), Some(30));
        assert_eq!(total(DeviceClass::Eckd), Some(30));
        assert_eq!(total(DeviceClass::Tape), None);
        assert_eq!(sum.stage(Stage::Total).max_ns(), 30);
        assert_eq!(sum.stage(Stage::Total).count(), 3);
        assert!(sum.kinds().eq([reads(DeviceClass::Fba), reads(DeviceClass::Eckd)]));
    }

    #[test]
    fn subtracting_an_earlier_moment_leaves_the_interval() {
        let shard = busy("0", DeviceClass::Fba, 10);
        let earlier = shard.totals();
        shard.counters().starts.add(5);
        shard.complete(Outcome::Ok);
        shard.durations(reads(DeviceClass::Fba)).record(Stage::Total, 31);
        shard.durations(reads(DeviceClass::Null)).record(Stage::Start, 7);

        let interval = shard.totals().minus(&earlier);
        assert_eq!(interval.counter(CounterKind::Starts), 5);
        assert_eq!(interval.completions(Outcome::Ok), 1);
        assert_eq!(interval.completions(Outcome::DeferredCc), 0);
        let fba = interval.stage_of(DeviceClass::Fba, Stage::Total).expect("used before");
        assert_eq!((fba.count(), fba.sum_ns()), (1, 31));
        let null = interval.stage_of(DeviceClass::Null, Stage::Start).expect("used since");
        assert_eq!((null.count(), null.sum_ns()), (1, 7));
    }
}
