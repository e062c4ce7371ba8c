//! What one shard writes while it works.
//!
//! Every counter is declared once, in the table below: its field, its Prometheus name and its help
//! text, which is also its documentation.

use std::sync::OnceLock;

use crossbeam_utils::CachePadded;

use crate::counter::{Counter, SharedCounter};
use crate::histogram::Histogram;
use crate::sense::SenseClass;
use crate::snapshot::Snapshot;
use crate::stage::{DeviceClass, Kind, Stage, label_set};
use crate::totals::Totals;

/// Declares the counter structs and the enum that names all their fields from one table.
macro_rules! counters {
    ($(
        $(#[$meta:meta])*
        pub struct $Struct:ident of $Counter:ident {
            $($Kind:ident $field:ident $name:literal $help:literal;)+
        }
    )+) => {
        $(
            $(#[$meta])*
            #[derive(Debug, Default)]
            pub struct $Struct {
                $(#[doc = $help] pub $field: $Counter,)+
            }

            impl $Struct {
                fn write_to(&self, totals: &mut Totals) {
                    $(totals.set_counter(CounterKind::$Kind, self.$field.value());)+
                }
            }
        )+

        /// Names one counter of a shard.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum CounterKind {
            $($(#[doc = $help] $Kind,)+)+
        }

        impl CounterKind {
            /// Every counter, in the order of declaration.
            pub const ALL: [Self; Self::COUNT] = [$($(Self::$Kind),+),+];

            /// How many counters there are.
            pub const COUNT: usize = [$($($name),+),+].len();

            /// The Prometheus name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $($(Self::$Kind => $name,)+)+
                }
            }

            /// The Prometheus help text.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self {
                    $($(Self::$Kind => $help,)+)+
                }
            }

            /// The position in [`ALL`](Self::ALL).
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

counters! {
    /// The counters that the shard thread writes.
    pub struct ShardCounters of Counter {
        Starts starts "vfio_ccw_starts_total"
            "Requests that a shard took from a submission ring.";
        Unfetched unfetched "vfio_ccw_unfetched_starts_total"
            "Requests whose ORB forbids prefetching, so that the program may change itself.";
        Suspensions suspensions "vfio_ccw_suspensions_total"
            "Times a channel program suspended itself.";
        Halts halts "vfio_ccw_halts_total"
            "Halt functions that were performed.";
        Clears clears "vfio_ccw_clears_total"
            "Clear functions that were performed.";
        Intermediate intermediate "vfio_ccw_intermediate_status_total"
            "Program-controlled interruptions that were presented while their program went on.";
        Unsolicited unsolicited "vfio_ccw_unsolicited_status_total"
            "Times a device of the host's presented status of its own accord.";
        Requests requests "vfio_ccw_device_requests_total"
            "Times the host wanted a device back.";
        Reconnects reconnects "vfio_ccw_remote_reconnects_total"
            "Times a device of another process came back after its server had gone.";
        Interrupts interrupts "vfio_ccw_interrupts_total"
            "Device interrupts that a shard handled.";
        WastedPolls wasted_polls "vfio_ccw_wasted_polls_total"
            "Looks of a waiting shard, some hundred at a time, that found nothing to do.";
        Sleeps sleeps "vfio_ccw_sleeps_total"
            "Times a shard went to sleep until the next doorbell or interrupt.";
        PinGets pin_gets "vfio_ccw_pin_gets_total"
            "Page translations that requests asked for.";
        PinHits pin_hits "vfio_ccw_pin_hits_total"
            "Page translations answered from the cache of pinned pages.";
        PinMisses pin_misses "vfio_ccw_pin_misses_total"
            "Page translations for which the page had to be pinned first.";
        PinEvictions pin_evictions "vfio_ccw_pin_evictions_total"
            "Unused pinned pages that were unpinned to make room in the budget.";
        PinWaits pin_waits "vfio_ccw_pin_waits_total"
            "Requests that had to wait until the pinning budget had room.";
        PinCalls pin_calls "vfio_ccw_pin_calls_total"
            "Runs of adjacent pages that were pinned in one call.";
        PinUnpinned pin_unpinned "vfio_ccw_pin_unpinned_total"
            "Pages that requests ran with unpinned: more than may ever be pinned, or pinning failed.";
        SlowRequests slow_requests "vfio_ccw_slow_requests_total"
            "Requests that took longer than the flight recorder's threshold, and were logged or could have been.";
        Overflows overflows "vfio_ccw_completion_overflows_total"
            "Completions that found the completion ring full and were kept beside it.";
        ReadBytes read_bytes "vfio_ccw_read_bytes_total"
            "Bytes that devices transferred into guest memory.";
        WrittenBytes written_bytes "vfio_ccw_written_bytes_total"
            "Bytes that devices took from guest memory.";
    }

    /// The counters that the submitting threads (vCPUs) write, away from the shard's cache lines.
    pub struct SubmitterCounters of SharedCounter {
        DoorbellsSent doorbells_sent "vfio_ccw_doorbells_sent_total"
            "Submissions that woke a sleeping shard.";
        DoorbellsSuppressed doorbells_suppressed "vfio_ccw_doorbells_suppressed_total"
            "Submissions that found the shard awake and needed no wake-up.";
    }
}

label_set! {
    /// How a request ended.
    ///
    /// Each request counts under exactly one; where several hold, under the one declared last.
    pub enum Outcome {
        Ok = "ok", "Channel end and device end, nothing unusual.";
        UnitCheck = "unit_check", "The device reported a unit check; the sense data says why.";
        ProgramCheck = "program_check", "The channel program is malformed.";
        ProtectionCheck = "protection_check", "The channel program names storage that it must not use.";
        IncorrectLength = "incorrect_length", "The device transferred another length than the program asked for.";
        OtherChannel = "other_channel", "Any other channel status, such as a channel-data check.";
        DeferredCc = "deferred_cc", "The start failed after it was accepted: a deferred condition code.";
        RefusedPolicy = "refused_policy", "A policy rule refused a channel command.";
        RefusedBudget = "refused_budget", "The pages of the request exceed what the budget allows at all.";
        Stopped = "stopped", "Ended by HALT, CLEAR or CANCEL SUBCHANNEL, or because its future was dropped.";
    }
}

label_set! {
    /// How a shard without work waits for some.
    pub enum Waiting {
        Looking = "looking", "Looked until there was work.";
        InVain = "in_vain", "Looked, and then went to sleep.";
        Asleep = "asleep", "Slept until it was woken; counted then.";
    }
}

/// Everything that one shard measures.
///
/// One thread, the shard's, calls [`Durations::record`], [`complete`](Self::complete) and the
/// [`counters`](Self::counters); any thread may count in [`submitters`](Self::submitters) and read
/// [`totals`](Self::totals). A second thread that records loses counts and harms nothing else.
#[derive(Debug)]
pub struct ShardMetrics {
    label: String,
    /// Padded apart, so that vCPUs that count doorbells do not take the shard's lines away.
    shard: CachePadded<ShardOwned>,
    submitters: CachePadded<SubmitterCounters>,
    /// By [`Kind::index`].
    durations: [OnceLock<Box<Durations>>; Kind::COUNT],
}

#[derive(Debug, Default)]
struct ShardOwned {
    counters: ShardCounters,
    completions: [Counter; Outcome::COUNT],
    unit_checks: [Counter; SenseClass::COUNT],
    /// Nanoseconds.
    waits: [Counter; Waiting::COUNT],
}

impl ShardMetrics {
    pub(crate) fn new(label: String) -> Self {
        Self {
            label,
            shard: CachePadded::default(),
            submitters: CachePadded::default(),
            durations: [const { OnceLock::new() }; Kind::COUNT],
        }
    }

    /// The label given when the shard was registered.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The counters for the shard thread.
    #[inline]
    #[must_use]
    pub fn counters(&self) -> &ShardCounters {
        &self.shard.counters
    }

    /// The counters for submitting threads.
    #[inline]
    #[must_use]
    pub fn submitters(&self) -> &SubmitterCounters {
        &self.submitters
    }

    /// Counts a request that ended with `outcome`. For the shard thread.
    #[inline]
    pub fn complete(&self, outcome: Outcome) {
        self.shard.completions[outcome.index()].add(1);
    }

    /// Counts a unit check, and what its sense data says. For the shard thread.
    #[cold]
    pub fn unit_check(&self, sense: &[u8]) {
        self.shard.unit_checks[SenseClass::of(sense).index()].add(1);
    }

    /// Counts that the shard has waited so for `ns` nanoseconds. For the shard thread.
    #[inline]
    pub fn waited(&self, how: Waiting, ns: u64) {
        self.shard.waits[how.index()].add(ns);
    }

    /// The histograms of requests of one kind.
    ///
    /// The first call for a kind allocates them (about 56 KiB). [`attached`](Self::attached) does it when
    /// a device comes, so that the first request need not.
    #[inline]
    #[must_use]
    pub fn durations(&self, kind: Kind) -> &Durations {
        self.durations[kind.index()].get_or_init(Box::default)
    }

    /// Makes ready for requests to a device of this class. A class that never comes takes no memory.
    pub fn attached(&self, class: DeviceClass) {
        for kind in Kind::of(class) {
            let _made = self.durations(kind);
        }
    }

    /// The numbers as they are now.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.shard.counters.write_to(&mut totals);
        self.submitters.write_to(&mut totals);
        for outcome in Outcome::ALL {
            totals.set_completions(outcome, self.shard.completions[outcome.index()].value());
        }
        for how in Waiting::ALL {
            totals.set_waited(how, self.shard.waits[how.index()].value());
        }
        for sense in SenseClass::ALL {
            totals.set_unit_checks(sense, self.shard.unit_checks[sense.index()].value());
        }
        for kind in Kind::all() {
            if let Some(durations) = self.durations[kind.index()].get() {
                totals.set_durations(kind, durations.snapshots());
            }
        }
        totals
    }
}

/// The stage histograms of one kind of requests on one shard.
#[derive(Debug, Default)]
pub struct Durations {
    stages: [Histogram; Stage::COUNT],
}

impl Durations {
    /// Records that `stage` took `ns` nanoseconds. For the shard thread.
    #[inline]
    pub fn record(&self, stage: Stage, ns: u64) {
        self.stage(stage).record(ns);
    }

    /// Records a sample that stands for `count` requests. For the shard thread.
    #[inline]
    pub fn record_for(&self, stage: Stage, ns: u64, count: u64) {
        self.stage(stage).record_for(ns, count);
    }

    /// The histogram of one stage.
    #[inline]
    #[must_use]
    pub fn stage(&self, stage: Stage) -> &Histogram {
        &self.stages[stage.index()]
    }

    fn snapshots(&self) -> [Snapshot; Stage::COUNT] {
        Stage::ALL.map(|stage| self.stage(stage).snapshot())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::RECORDING;
    use crate::stage::Operation;

    const READS: Kind = Kind { class: DeviceClass::Null, operation: Operation::Read };

    #[test]
    fn counter_names_follow_the_naming_rules() {
        let names: HashSet<_> = CounterKind::ALL.map(CounterKind::name).into();
        assert_eq!(names.len(), CounterKind::COUNT);
        for kind in CounterKind::ALL {
            assert!(kind.name().starts_with("vfio_ccw_") && kind.name().ends_with("_total"));
            assert!(kind.help().ends_with('.'), "{}", kind.help());
            assert_eq!(CounterKind::ALL[kind.index()], kind);
        }
    }

    #[test]
    fn each_field_reads_back_under_its_own_kind() {
        let shard = ShardMetrics::new("0".into());
        shard.counters().pin_hits.add(3);
        shard.submitters().doorbells_sent.add(5);
        shard.complete(Outcome::UnitCheck);
        let totals = shard.totals();
        for kind in CounterKind::ALL {
            let expected = match kind {
                CounterKind::PinHits if RECORDING => 3,
                CounterKind::DoorbellsSent if RECORDING => 5,
                _ => 0,
            };
            assert_eq!(totals.counter(kind), expected, "{}", kind.name());
        }
        assert_eq!(totals.completions(Outcome::UnitCheck), u64::from(RECORDING));
        assert_eq!(totals.completions(Outcome::Ok), 0);
    }

    #[test]
    fn each_way_of_waiting_has_its_own_sum() {
        let shard = ShardMetrics::new("0".into());
        for (how, ns) in Waiting::ALL.into_iter().zip(1..) {
            shard.waited(how, ns);
            shard.waited(how, 10);
        }
        let totals = shard.totals();
        for (how, ns) in Waiting::ALL.into_iter().zip(11..) {
            assert_eq!(totals.waited(how), ns * u64::from(RECORDING), "{how}");
        }
    }

    #[test]
    fn a_sample_may_stand_for_several() {
        let shard = ShardMetrics::new("0".into());
        shard.durations(READS).record_for(Stage::Device, 50, 16);
        shard.durations(READS).record(Stage::Device, 70);
        let totals = shard.totals();
        let device = totals.stage_in(READS, Stage::Device).expect("used");
        let times = u64::from(RECORDING);
        assert_eq!((device.count(), device.sum_ns()), (17 * times, (16 * 50 + 70) * times));
        assert_eq!(device.quantile(0.5), 50 * times);
    }

    #[test]
    fn a_kind_has_histograms_from_its_first_use_on() {
        let shard = ShardMetrics::new("0".into());
        let [reads, writes] = [Operation::Read, Operation::Write]
            .map(|operation| Kind { class: DeviceClass::Tape, operation });
        assert!(shard.totals().stage_in(reads, Stage::Pin).is_none());
        shard.durations(reads).record(Stage::Pin, 50);
        let totals = shard.totals();
        let pin = totals.stage_in(reads, Stage::Pin).expect("used");
        assert_eq!(pin.count(), u64::from(RECORDING));
        assert_eq!(totals.stage_in(reads, Stage::Total).expect("used").count(), 0);
        assert!(totals.stage_in(writes, Stage::Pin).is_none());
        shard.attached(DeviceClass::Tape);
        assert!(shard.totals().stage_in(writes, Stage::Pin).is_some());
        assert!(shard.totals().stage_in(READS, Stage::Pin).is_none());
    }

    #[test]
    fn the_same_kind_is_the_same_memory() {
        let shard = ShardMetrics::new("0".into());
        assert!(std::ptr::eq(shard.durations(READS), shard.durations(READS)));
    }

    #[test]
    fn unit_checks_are_told_apart_by_their_sense() {
        let shard = ShardMetrics::new("0".into());
        shard.unit_check(&[0x80, 0x01]);
        shard.unit_check(&[0x08]);
        shard.unit_check(&[0x08]);
        shard.unit_check(&[]);
        let totals = shard.totals();
        for sense in SenseClass::ALL {
            let expected = match sense {
                SenseClass::CommandReject | SenseClass::None => 1,
                SenseClass::DataCheck => 2,
                _ => 0,
            };
            assert_eq!(totals.unit_checks(sense), expected * u64::from(RECORDING), "{sense}");
        }
    }

    #[test]
    fn shard_and_submitters_share_no_cache_line() {
        let shard = ShardMetrics::new("0".into());
        let line = align_of::<CachePadded<u8>>();
        let (own, other) = (&raw const *shard.counters(), &raw const *shard.submitters());
        let own = own.addr() / line..=(own.addr() + size_of::<ShardCounters>() - 1) / line;
        let other =
            other.addr() / line..=(other.addr() + size_of::<SubmitterCounters>() - 1) / line;
        assert!(own.end() < other.start() || other.end() < own.start(), "{own:?} {other:?}");
    }
}
