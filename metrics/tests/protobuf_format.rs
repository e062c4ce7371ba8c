//! The protobuf format, read by a decoder of its own, against the text of the same registry, and its
//! native histograms against the samples.

pub mod text_format;
pub mod wire_format;

use std::collections::BTreeMap;

use proptest::prelude::*;
use text_format::Labels;
use vfio_ccw_metrics::{
    DeviceClass, Family, FamilyKind, Kind, LIMIT_NS, Operation, Outcome, PROMETHEUS_BOUNDS_NS,
    RECORDING, Registry, Row, Stage, Waiting,
};
use wire_format::{Histogram, decode};

static FAMILIES: [Family; 3] = [
    Family {
        kind: FamilyKind::Counter,
        name: "vfio_ccw_subchannel_busy_seconds_total",
        help: "Bs.",
    },
    Family {
        kind: FamilyKind::Gauge,
        name: "vfio_ccw_subchannel_oldest_request_seconds",
        help: "\\",
    },
    Family { kind: FamilyKind::Gauge, name: "vfio_ccw_unheard_of", help: "No row tells of it." },
];

const READS: Kind = Kind { class: DeviceClass::Fba, operation: Operation::Read };

fn busy_registry() -> Registry {
    let registry = Registry::new();
    for label in ["0", "1"] {
        let shard = registry.shard(label);
        shard.counters().starts.add(21);
        shard.counters().read_bytes.add(1 << 52);
        shard.submitters().doorbells_sent.add(2);
        shard.complete(Outcome::UnitCheck);
        shard.unit_check(&[0x08]);
        shard.waited(Waiting::Looking, 1_250_000_001);
        for ns in [0, 1, 100, 251, 1_000_000, 3_000_000_000, 90_000_000_000, u64::MAX >> 3] {
            shard.durations(READS).record(Stage::Device, ns);
        }
        shard.attached(DeviceClass::Eckd);
    }
    for (pinner, value) in [("a\"b\\c\nd", 8192.5), ("", f64::INFINITY), ("c", 0.0)] {
        let labels = [("pinner", pinner), ("x", "y")];
        registry
            .gauge_with("vfio_ccw_pinned_bytes", "Bytes \"pinned\"\nnow.", &labels, move || value)
            .expect("valid");
    }
    registry.gauge("vfio_ccw_budget_bytes", "The limit.", || f64::NEG_INFINITY).expect("valid");
    let rows = || {
        let row = |n: u32| Row {
            labels: vec![("subchannel", format!("0.0.{n:04x}")), ("class", "f\"ba".into())],
            values: vec![f64::from(n) / 3.0, f64::from(n)],
        };
        (0..3).map(row).collect()
    };
    registry.rows(&FAMILIES, rows).expect("valid");
    registry
}

/// Each series by its name and labels.
type Series = BTreeMap<(String, Labels), f64>;

/// As the text has it: a histogram is many series.
fn series_of(families: &[wire_format::Family]) -> Series {
    let mut series = Series::new();
    let mut put = |name: String, labels: Labels, value: f64| {
        assert_eq!(series.insert((name, labels), value), None, "twice");
    };
    for family in families {
        assert!(!family.metrics.is_empty(), "{}", family.name);
        for metric in &family.metrics {
            let labels = metric.labels.clone();
            let name = &family.name;
            if let Some(value) = metric.value {
                assert!(family.kind < 2 && metric.histogram.is_none());
                put(name.clone(), labels, value);
                continue;
            }
            let histogram = metric.histogram.as_ref().expect("a value or a histogram");
            assert_eq!(family.kind, 4);
            let all = (f64::INFINITY, histogram.count);
            for &(bound, count) in histogram.classic.iter().chain([&all]) {
                let mut labels = labels.clone();
                // The text's spelling differs; the number is the same.
                labels.insert("le".into(), bound.to_string());
                put(format!("{name}_bucket"), labels, count as f64);
            }
            put(format!("{name}_sum"), labels.clone(), histogram.sum);
            put(format!("{name}_count"), labels, histogram.count as f64);
        }
    }
    series
}

#[test]
fn every_value_is_that_of_the_text() {
    let registry = busy_registry();
    let families = decode(&registry.render_protobuf());
    let text = text_format::parse(&registry.render());
    let mut expected = Series::new();
    for (name, labels, value) in text.values().flat_map(|family| &family.samples) {
        let mut labels = labels.clone();
        if let Some(le) = labels.get_mut("le") {
            *le = le.parse::<f64>().expect("a bound").to_string();
        }
        expected.insert((name.clone(), labels), *value);
    }
    let series = series_of(&families);
    for (of, value) in &expected {
        assert_eq!(series.get(of), Some(value), "{of:?}");
    }
    assert_eq!(series.len(), expected.len());
    assert!(expected.len() > 800, "{}", expected.len());

    for family in &families {
        let same = &text[&family.name];
        let kind = ["counter", "gauge", "", "", "histogram"][family.kind as usize];
        assert_eq!(same.kind, kind, "{}", family.name);
        let is_quoted = |help: &str| help.replace('\\', "\\\\").replace('\n', "\\n");
        assert_eq!(same.help, is_quoted(&family.help), "{}", family.name);
    }
    // Only what has no series at all is not told of.
    assert_eq!(families.len() + 1, text.len());
    assert!(text["vfio_ccw_unheard_of"].samples.is_empty());
}

#[test]
fn native_histograms_are_there_also_where_there_are_no_samples() {
    let families = decode(&busy_registry().render_protobuf());
    let durations = families.last().expect("some");
    assert_eq!(durations.name, "vfio_ccw_stage_duration_seconds");
    assert_eq!(durations.metrics.len(), (1 + Operation::COUNT) * Stage::COUNT);
    for metric in &durations.metrics {
        let histogram = metric.histogram.as_ref().expect("a histogram");
        assert_eq!(histogram.schema, 3);
        assert!(histogram.zero_threshold > 0.0 && histogram.zero_threshold < 1e-9);
        let busy = metric.labels["stage"] == "device" && metric.labels["class"] == "fba";
        let busy = busy && RECORDING;
        assert_eq!(histogram.count, if busy { 16 } else { 0 });
        assert_eq!(histogram.zero_count, if busy { 2 } else { 0 });
        let samples: u64 = histogram.native().iter().map(|bucket| bucket.1).sum();
        assert_eq!(samples + histogram.zero_count, histogram.count);
        assert_eq!(histogram.classic.len(), PROMETHEUS_BOUNDS_NS.len());
    }
}

#[test]
fn an_idle_registry_renders_too() {
    let families = decode(&Registry::new().render_protobuf());
    assert!(families.iter().any(|family| family.name == "vfio_ccw_starts_total"));
    assert!(families.iter().all(|family| family.kind < 2), "no histogram yet");
}

/// The bucket in which the sample of this rank lies, counted from 1: its ends in seconds.
fn ends_of(histogram: &Histogram, rank: u64) -> (f64, f64) {
    let mut seen = histogram.zero_count;
    if rank <= seen {
        return (0.0, histogram.zero_threshold);
    }
    for (place, samples) in histogram.native() {
        seen += samples;
        if rank <= seen {
            let end = |place: i64| (place as f64 / 8.0).exp2();
            return (end(place - 1), end(place));
        }
    }
    panic!("rank {rank} of {seen}")
}

/// Durations of every magnitude, as likely short as long, now and then beyond the range.
fn durations() -> impl Strategy<Value = Vec<u64>> {
    let one = (any::<u64>(), 26..64_u32).prop_map(|(ns, shift)| ns >> shift);
    prop::collection::vec(one, 1..400)
}

proptest! {
    #[test]
    fn native_buckets_hold_all_samples_and_their_quantiles_are_near(
        mut samples in durations(), q in 0.0..=1.0_f64,
    ) {
        if !RECORDING {
            return Ok(());
        }
        let registry = Registry::new();
        let shard = registry.shard("0");
        let stage = shard.durations(READS);
        samples.iter().for_each(|&ns| stage.record(Stage::Total, ns));
        let families = decode(&registry.render_protobuf());
        let mut metrics = families.last().expect("some").metrics.iter();
        let total = metrics.find(|it| it.labels["stage"] == "total").expect("recorded");
        let histogram = total.histogram.as_ref().expect("a histogram");

        let in_buckets: u64 = histogram.native().iter().map(|bucket| bucket.1).sum();
        prop_assert_eq!(in_buckets + histogram.zero_count, samples.len() as u64);
        prop_assert_eq!(histogram.count, samples.len() as u64);

        samples.sort_unstable();
        let rank = ((q * samples.len() as f64).ceil() as usize).max(1);
        let exact = samples[rank - 1];
        let (lower, upper) = ends_of(histogram, rank as u64);
        let seconds = exact as f64 / 1e9;
        // Wherever a quantile is put in the bucket, it is as near. 1e-12: rounding of the ends.
        prop_assert!(upper * (1.0 + 1e-12) >= seconds, "flatters: {seconds} in {lower}..{upper}");
        if exact == 0 {
            prop_assert_eq!(lower, 0.0);
        } else if exact < LIMIT_NS {
            let bucket = 0.125_f64.exp2();
            prop_assert!(lower * (1.0 - 1e-12) <= seconds * (1.0 + 1.0 / 32.0), "{seconds} in {lower}..{upper}");
            prop_assert!(lower >= seconds / bucket * (1.0 - 1e-12));
        }
    }
}
