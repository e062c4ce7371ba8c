//! The rendered text, read by a strict parser of Prometheus' text format, version 0.0.4.

pub mod text_format;

use text_format::{Labels, parse};
use vfio_ccw_metrics::{
    CounterKind, DeviceClass, Kind, Operation, Outcome, PROMETHEUS_BOUNDS_NS, RECORDING, Registry,
    SenseClass, Stage, Waiting,
};

fn busy_registry() -> Registry {
    let registry = Registry::new();
    for label in ["0", "1"] {
        let shard = registry.shard(label);
        shard.counters().starts.add(21);
        shard.counters().read_bytes.add(4096);
        shard.submitters().doorbells_suppressed.add(2);
        shard.complete(Outcome::Ok);
        shard.complete(Outcome::RefusedPolicy);
        shard.waited(Waiting::Asleep, 1_250_000_000);
        for ns in [100, 251, 1_000_000, 1_000_001, 999_999, 3_000_000_000, 90_000_000_000] {
            let kind = Kind { class: DeviceClass::Fba, operation: Operation::Read };
            shard.durations(kind).record(Stage::Device, ns);
        }
        shard.unit_check(&[0x40]);
        shard.attached(DeviceClass::Null);
    }
    let labels = [("pinner", "type1 \"a\\b\"\nc")];
    registry
        .gauge_with("vfio_ccw_pinned_bytes", "Bytes pinned\nnow.", &labels, || 8192.0)
        .expect("valid");
    registry.gauge("vfio_ccw_budget_bytes", "The limit.", || f64::INFINITY).expect("valid");
    registry
}

#[test]
fn every_counter_and_gauge_is_there_with_its_help_and_value() {
    let families = parse(&busy_registry().render());
    for kind in CounterKind::ALL {
        let family = &families[kind.name()];
        assert_eq!((family.kind.as_str(), family.help.as_str()), ("counter", kind.help()));
        let expected = match kind {
            CounterKind::Starts if RECORDING => 42.0,
            CounterKind::ReadBytes if RECORDING => 8192.0,
            CounterKind::DoorbellsSuppressed if RECORDING => 4.0,
            _ => 0.0,
        };
        assert_eq!(family.samples, [(kind.name().to_owned(), Labels::new(), expected)]);
    }

    let outcomes = &families["vfio_ccw_completions_total"].samples;
    assert_eq!(outcomes.len(), Outcome::COUNT);
    for outcome in Outcome::ALL {
        let value = outcomes.iter().find(|(_, labels, _)| labels["outcome"] == outcome.name());
        let expected = match outcome {
            Outcome::Ok | Outcome::RefusedPolicy if RECORDING => 2.0,
            _ => 0.0,
        };
        assert_eq!(value.map(|sample| sample.2), Some(expected), "{outcome}");
    }

    let unit_checks = &families["vfio_ccw_unit_checks_total"].samples;
    assert_eq!(unit_checks.len(), SenseClass::COUNT);
    for (_, labels, value) in unit_checks {
        let seen = labels["sense"] == "intervention_required" && RECORDING;
        assert_eq!(*value, if seen { 2.0 } else { 0.0 }, "{labels:?}");
    }

    let waits = &families["vfio_ccw_wait_seconds_total"];
    let asleep = waits.samples.iter().find(|(_, labels, _)| labels["how"] == "asleep");
    let seconds = if RECORDING { 2.5 } else { 0.0 };
    assert_eq!(
        (waits.samples.len(), asleep.map(|sample| sample.2)),
        (Waiting::COUNT, Some(seconds))
    );

    let pinned = &families["vfio_ccw_pinned_bytes"];
    assert_eq!((pinned.kind.as_str(), pinned.help.as_str()), ("gauge", "Bytes pinned\\nnow."));
    assert_eq!(pinned.samples[0].1["pinner"], "type1 \"a\\b\"\nc");
    assert_eq!(pinned.samples[0].2, 8192.0);
    assert_eq!(families["vfio_ccw_budget_bytes"].samples[0].2, f64::INFINITY);

    let build = &families["vfio_ccw_build_info"].samples;
    assert_eq!(build[0].1["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(build[0].2, 1.0);
}

#[test]
fn each_histogram_is_cumulative_and_ends_at_its_count() {
    let families = parse(&busy_registry().render());
    let family = &families["vfio_ccw_stage_duration_seconds"];
    assert_eq!(family.kind, "histogram");
    // Reads of one class, which were recorded, and all kinds of another, which was attached.
    let series = (1 + Operation::COUNT) * Stage::COUNT;
    assert_eq!(family.samples.len(), series * (PROMETHEUS_BOUNDS_NS.len() + 3));

    for histogram in family.samples.chunks(PROMETHEUS_BOUNDS_NS.len() + 3) {
        let (buckets, ends) = histogram.split_at(PROMETHEUS_BOUNDS_NS.len() + 1);
        let mut last = (f64::NEG_INFINITY, 0.0);
        for (name, labels, count) in buckets {
            assert!(name.ends_with("_bucket"));
            let le: f64 = labels["le"].parse().expect("a bound");
            assert!(le > last.0 && *count >= last.1, "{labels:?}: {count} after {last:?}");
            last = (le, *count);
        }
        let (sum, count) = (&ends[0], &ends[1]);
        assert!(sum.0.ends_with("_sum") && count.0.ends_with("_count"));
        assert_eq!(last, (f64::INFINITY, count.2), "the last bucket holds everything");
        let labels = &count.1;
        for (_, bucket, _) in buckets {
            let of = |labels: &Labels| ["stage", "class", "operation"].map(|it| labels[it].clone());
            assert_eq!(of(bucket), of(labels));
        }
        let busy = labels["stage"] == "device" && labels["class"] == "fba" && RECORDING;
        assert_eq!(count.2, if busy { 14.0 } else { 0.0 });
        // Twice the samples' sum, in seconds.
        assert_eq!(sum.2, if busy { 186.006_000_702 } else { 0.0 });
    }
}

#[cfg(feature = "record")]
#[test]
fn a_sample_counts_for_a_bound_only_when_it_surely_was_within() {
    let families = parse(&busy_registry().render());
    let at = |le: &str| {
        let bucket =
            families["vfio_ccw_stage_duration_seconds"].samples.iter().find(|(_, l, _)| {
                l["stage"] == "device"
                    && l["class"] == "fba"
                    && l.get("le").is_some_and(|x| x == le)
            });
        bucket.expect(le).2
    };
    assert_eq!(at("2.5e-07"), 2.0);
    assert_eq!(at("5e-07"), 4.0);
    // 1 ms lies inside a bucket of the histogram that also holds 1.000001 ms and 0.999999 ms.
    assert_eq!(at("0.001"), 4.0);
    assert_eq!(at("0.0025"), 10.0);
    assert_eq!(at("5.0"), 12.0);
    assert_eq!(at("10.0"), 12.0);
}

#[test]
fn an_idle_registry_renders_too() {
    let families = parse(&Registry::new().render());
    assert!(families["vfio_ccw_stage_duration_seconds"].samples.is_empty());
    assert_eq!(families["vfio_ccw_starts_total"].samples[0].2, 0.0);
}

#[test]
fn counters_never_fall_when_a_shard_ends() {
    let registry = Registry::new();
    let starts = || parse(&registry.render())["vfio_ccw_starts_total"].samples[0].2;
    let shard = registry.shard("0");
    shard.counters().starts.add(7);
    let before = starts();
    drop(shard);
    assert_eq!(starts(), before);
    registry.shard("0").counters().starts.add(1);
    assert_eq!(starts(), before + f64::from(u8::from(RECORDING)));
}
