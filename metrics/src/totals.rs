//! Counters and stage histograms of one or more shards at one moment.

use crate::shard::{CounterKind, Outcome, Waiting};
use crate::snapshot::Snapshot;
use crate::stage::{DeviceClass, Stage};

/// What one or more shards measured, at one moment: the input of reports and of a scrape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    counters: [u64; CounterKind::COUNT],
    completions: [u64; Outcome::COUNT],
    waits: [u64; Waiting::COUNT],
    classes: [Option<Box<[Snapshot; Stage::COUNT]>>; DeviceClass::COUNT],
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

    /// The durations of `stage` over all device classes.
    #[must_use]
    pub fn stage(&self, stage: Stage) -> Snapshot {
        let mut all = Snapshot::default();
        for class in self.classes() {
            if let Some(snapshot) = self.stage_of(class, stage) {
                all.merge(snapshot);
            }
        }
        all
    }

    /// The durations of `stage` for one device class, or `None` if no device of that class was
    /// ever attached.
    #[must_use]
    pub fn stage_of(&self, class: DeviceClass, stage: Stage) -> Option<&Snapshot> {
        self.classes[class.index()].as_ref().map(|stages| &stages[stage.index()])
    }

    /// The device classes that are in use.
    pub fn classes(&self) -> impl Iterator<Item = DeviceClass> + '_ {
        DeviceClass::ALL.into_iter().filter(|class| self.classes[class.index()].is_some())
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
        for (class, more) in self.classes.iter_mut().zip(&other.classes) {
            match (class, more) {
                (Some(stages), Some(more)) => {
                    for (stage, more) in stages.iter_mut().zip(more.iter()) {
                        stage.merge(more);
                    }
                }
                (class @ None, Some(more)) => *class = Some(more.clone()),
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
        for (class, before) in rest.classes.iter_mut().zip(&earlier.classes) {
            if let (Some(stages), Some(before)) = (class, before) {
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

    pub(crate) fn set_class(&mut self, class: DeviceClass, stages: [Snapshot; Stage::COUNT]) {
        self.classes[class.index()] = Some(Box::new(stages));
    }
}

#[cfg(all(test, feature = "record"))]
mod tests {
    use super::*;
    use crate::shard::ShardMetrics;

    fn busy(label: &str, class: DeviceClass, ns: u64) -> ShardMetrics {
        let shard = ShardMetrics::new(label.into());
        shard.counters().starts.add(2);
        shard.complete(Outcome::Ok);
        shard.complete(Outcome::DeferredCc);
        shard.class(class).record(Stage::Total, ns);
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
        let total = |class| sum.stage_of(class, Stage::Total).map(Snapshot::sum_ns);
        assert_eq!(total(DeviceClass::Fba), Some(30));
        assert_eq!(total(DeviceClass::Eckd), Some(30));
        assert_eq!(total(DeviceClass::Tape), None);
        assert_eq!(sum.stage(Stage::Total).max_ns(), 30);
        assert_eq!(sum.stage(Stage::Total).count(), 3);
        assert!(sum.classes().eq([DeviceClass::Fba, DeviceClass::Eckd]));
    }

    #[test]
    fn subtracting_an_earlier_moment_leaves_the_interval() {
        let shard = busy("0", DeviceClass::Fba, 10);
        let earlier = shard.totals();
        shard.counters().starts.add(5);
        shard.complete(Outcome::Ok);
        shard.class(DeviceClass::Fba).record(Stage::Total, 31);
        shard.class(DeviceClass::Null).record(Stage::Start, 7);

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
