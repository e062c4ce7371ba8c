//! What each subchannel has done, for whoever looks at the metrics, and which of them get series of their own.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use quanta::Clock;
use vfio_ccw_metrics::{DeviceClass, Family, RECORDING, Registry, Row, SeriesError};

use crate::architecture::SubchannelId;
use crate::subchannel::Table;

/// Which subchannels have series of their own: few of them, as each is one more for Prometheus to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubchannelSeries {
    /// None.
    Off,
    /// The so many that have been busy longest since they were attached, with the request that they have.
    Busiest(usize),
    /// These, as long as they are there.
    Chosen(Vec<SubchannelId>),
}

impl SubchannelSeries {
    /// The most that may have series of their own.
    pub const MOST: usize = 256;

    /// How many there may be.
    pub(super) fn len(&self) -> usize {
        match self {
            SubchannelSeries::Off => 0,
            SubchannelSeries::Busiest(most) => *most,
            SubchannelSeries::Chosen(ids) => ids.len(),
        }
    }
}

/// The ten that have been busy longest.
impl Default for SubchannelSeries {
    fn default() -> Self {
        SubchannelSeries::Busiest(10)
    }
}

/// What one subchannel has done. Its shard alone writes, with plain loads and stores; whoever scrapes reads.
/// A line of its own: vCPUs write none of it, and no other shard does.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Activity {
    /// Requests that were taken from the ring.
    taken: AtomicU64,
    /// Those that have ended with another outcome than ok.
    errors: AtomicU64,
    /// How many were taken when one was last timed.
    timed: AtomicU64,
    /// Nanoseconds from taking requests to their end, by those that are timed.
    busy: AtomicU64,
    /// Raw clock value at the submission of the request that was taken last; 0: it is over.
    since: AtomicU64,
    class: AtomicU8,
}

/// Adds to what nobody else writes.
#[inline(always)]
fn add(to: &AtomicU64, more: u64) {
    // Relaxed: one writer, and readers want figures.
    to.store(to.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

impl Activity {
    /// A request was taken that was submitted at this raw clock value.
    #[inline(always)]
    pub(super) fn begin(&self, submitted: u64) {
        if RECORDING {
            add(&self.taken, 1);
            // Relaxed: a figure.
            self.since.store(submitted, Ordering::Relaxed);
        }
    }

    /// The request is over.
    #[inline(always)]
    pub(super) fn end(&self, is_ok: bool) {
        if RECORDING {
            // Relaxed: a figure.
            self.since.store(0, Ordering::Relaxed);
            if !is_ok {
                add(&self.errors, 1);
            }
        }
    }

    /// The request that was begun last is timed and has kept it busy for so many nanoseconds: it stands for
    /// those since the last one that was.
    #[inline]
    pub(super) fn was_busy(&self, nanos: u64) {
        // Relaxed: one writer.
        let taken = self.taken.load(Ordering::Relaxed);
        let untimed = taken.wrapping_sub(self.timed.load(Ordering::Relaxed));
        self.timed.store(taken, Ordering::Relaxed);
        add(&self.busy, nanos.wrapping_mul(untimed));
    }

    /// The request that was begun last was in no ring: it had been suspended elsewhere.
    pub(super) fn was_elsewhere(&self) {
        add(&self.taken, u64::MAX);
    }

    /// The place has a subchannel with a device of this class, which has done nothing.
    fn renew(&self, class: DeviceClass) {
        for figure in [&self.taken, &self.errors, &self.timed, &self.busy, &self.since] {
            // Relaxed: figures.
            figure.store(0, Ordering::Relaxed);
        }
        // Relaxed: a figure.
        self.class.store(class.index() as u8, Ordering::Relaxed);
    }
}

/// What the subchannels of a service have done, by their numbers.
#[derive(Debug)]
pub(super) struct Activities {
    all: Box<[Activity]>,
}

impl Activities {
    /// For a table of so many places.
    pub(super) fn new(places: usize) -> Self {
        Activities { all: (0..places).map(|_| Activity::default()).collect() }
    }

    /// That of the subchannel with this number.
    #[inline(always)]
    pub(super) fn of(&self, number: u32) -> &Activity {
        &self.all[number as usize]
    }

    /// A subchannel has come.
    pub(super) fn attached(&self, number: u32, class: DeviceClass) {
        self.of(number).renew(class);
    }
}

/// How things stand with one subchannel.
#[derive(Clone, Copy)]
struct Standing {
    id: SubchannelId,
    class: DeviceClass,
    ended: u64,
    errors: u64,
    busy: u64,
    /// Seconds since the submission of the request that it has; 0 without.
    oldest: f64,
    /// Requests in its ring.
    queued: u64,
}

/// Of the service as a whole.
static ALL: [Family; 4] = [
    Family::gauge("vfio_ccw_subchannels", "Subchannels that are attached."),
    Family::gauge(
        "vfio_ccw_requests_queued",
        "Requests that were submitted and that no shard has taken yet.",
    ),
    Family::gauge(
        "vfio_ccw_requests_in_flight",
        "Requests that shards have taken and that are not over.",
    ),
    Family::gauge(
        "vfio_ccw_oldest_request_seconds",
        "Time since the submission of the oldest request that is not over, of those that were taken; 0 without one.",
    ),
];

/// Of each subchannel that has series of its own.
static EACH: [Family; 4] = [
    Family::counter("vfio_ccw_subchannel_requests_total", "Requests of a subchannel that ended."),
    Family::counter(
        "vfio_ccw_subchannel_errors_total",
        "Requests of a subchannel that ended with another outcome than ok.",
    ),
    Family::counter(
        "vfio_ccw_subchannel_busy_seconds_total",
        "Time that a subchannel had a request, from the shard's taking it to its end.",
    ),
    Family::gauge(
        "vfio_ccw_subchannel_oldest_request_seconds",
        "Time since the submission of the request that a subchannel has; 0 without one.",
    ),
];

/// Who tells how things stand, as long as the service is there.
#[derive(Clone)]
pub(super) struct Observer {
    table: Weak<Table>,
    activities: Weak<Activities>,
    clock: Clock,
}

impl Observer {
    pub(super) fn new(table: &Arc<Table>, activities: &Arc<Activities>) -> Self {
        let (table, activities) = (Arc::downgrade(table), Arc::downgrade(activities));
        Observer { table, activities, clock: Clock::new() }
    }

    /// Adds to `registry` what is told of all subchannels, and of `series`.
    ///
    /// # Errors
    ///
    /// None, as long as the names are right.
    pub(super) fn register(
        &self,
        registry: &Registry,
        series: SubchannelSeries,
    ) -> Result<(), SeriesError> {
        let observer = self.clone();
        registry.rows(&ALL, move || observer.whole())?;
        let observer = self.clone();
        registry.rows(&EACH, move || observer.each(&series))
    }

    fn whole(&self) -> Vec<Row> {
        let (mut attached, mut queued, mut in_flight, mut oldest) = (0u64, 0, 0u64, 0f64);
        for standing in self.standings() {
            attached += 1;
            queued += standing.queued;
            in_flight += u64::from(standing.oldest > 0.0);
            oldest = oldest.max(standing.oldest);
        }
        let values = vec![attached as f64, queued as f64, in_flight as f64, oldest];
        vec![Row { labels: Vec::new(), values }]
    }

    fn each(&self, series: &SubchannelSeries) -> Vec<Row> {
        let row = |standing: Standing| Row {
            labels: vec![
                ("subchannel", standing.id.to_string()),
                ("class", standing.class.name().to_owned()),
            ],
            values: vec![
                standing.ended as f64,
                standing.errors as f64,
                standing.busy as f64 / 1e9,
                standing.oldest,
            ],
        };
        let chosen = match series {
            SubchannelSeries::Off => Vec::new(),
            SubchannelSeries::Chosen(ids) => {
                self.standings().into_iter().filter(|standing| ids.contains(&standing.id)).collect()
            }
            SubchannelSeries::Busiest(most) => {
                let mut all = self.standings();
                if all.len() > *most {
                    // One that is stuck is among them before long.
                    let busier = |standing: &Standing| {
                        std::cmp::Reverse(standing.busy + (standing.oldest * 1e9) as u64)
                    };
                    all.select_nth_unstable_by_key(*most, busier);
                    all.truncate(*most);
                    all.sort_by_key(|standing| u32::from(standing.id));
                }
                all
            }
        };
        chosen.into_iter().map(row).collect()
    }

    /// Of all subchannels, in the order of their numbers.
    fn standings(&self) -> Vec<Standing> {
        let (Some(table), Some(activities)) = (self.table.upgrade(), self.activities.upgrade())
        else {
            return Vec::new();
        };
        let now = self.clock.raw();
        let standing = |number: u32, submitted: usize| {
            let activity = activities.of(number);
            // Relaxed, all of them: figures, each for itself.
            let figure = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
            let since = figure(&activity.since);
            let nanos = self.clock.delta_as_nanos(since.min(now), now).max(1);
            let class = usize::from(activity.class.load(Ordering::Relaxed));
            let taken = figure(&activity.taken);
            let queued = (submitted as u32).wrapping_sub(taken as u32);
            Standing {
                id: SubchannelId::of(number),
                class: DeviceClass::ALL.get(class).copied().unwrap_or(DeviceClass::Other),
                ended: taken.saturating_sub(u64::from(since != 0)),
                errors: figure(&activity.errors),
                busy: figure(&activity.busy),
                oldest: if since == 0 { 0.0 } else { nanos as f64 / 1e9 },
                // The two were not read at one time.
                queued: u64::from(if queued > i32::MAX as u32 { 0 } else { queued }),
            }
        };
        table.all().map(|shared| standing(shared.number(), shared.submitted())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subchannel_counts_from_its_coming_on() {
        let activities = Activities::new(2);
        activities.attached(1, DeviceClass::Fba);
        let activity = activities.of(1);
        activity.begin(4);
        activity.end(true);
        activity.begin(5);
        activity.was_busy(7);
        let now = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let times = u64::from(RECORDING);
        assert_eq!((now(&activity.taken), now(&activity.since)), (2 * times, 5 * times));
        activity.end(true);
        activity.begin(6);
        activity.end(false);
        assert_eq!((now(&activity.taken), now(&activity.errors)), (3 * times, times));
        assert_eq!((now(&activity.since), now(&activity.busy)), (0, 14 * times));
        activity.was_busy(2);
        assert_eq!(now(&activity.busy), 16 * times, "only what was not counted yet");
        activities.attached(1, DeviceClass::Null);
        assert_eq!((now(&activity.taken), now(&activity.busy)), (0, 0));
        assert_eq!(activities.of(0).taken.load(Ordering::Relaxed), 0, "not its neighbour's");
    }
}
