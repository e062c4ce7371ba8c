//! Everything in Prometheus' protobuf format: messages `MetricFamily`, each after its length.

use prost::Message;

use self::message::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType, Span,
};
use crate::exposition::{
    PROMETHEUS_BOUNDS_NS, STAGE_DURATION, STAGE_DURATION_HELP, WAIT, WAIT_HELP,
};
use crate::native::{self, NativeHistogram, SCHEMA, ZERO_THRESHOLD};
use crate::registry::{
    BUILD_INFO, BUILD_INFO_HELP, COMPLETIONS, COMPLETIONS_HELP, Reading, SampledGauge, UNIT_CHECKS,
    UNIT_CHECKS_HELP,
};
use crate::rows::{Family, FamilyKind, Row};
use crate::sense::SenseClass;
use crate::shard::{CounterKind, Outcome, Waiting};
use crate::snapshot::Snapshot;
use crate::stage::{Kind, Stage};
use crate::totals::Totals;

mod message;

pub(crate) fn encode(reading: &Reading) -> Vec<u8> {
    let Reading { totals, gauges, rows } = reading;
    let mut bytes = Vec::new();
    let mut write = |family: MetricFamily| {
        // What has no series yet is not told of: some readers take it for an error.
        if !family.metric.is_empty() {
            family.encode_length_delimited(&mut bytes).expect("a Vec has room");
        }
    };

    for kind in CounterKind::ALL {
        let metric = counter(vec![], totals.counter(kind) as f64);
        write(family(kind.name(), kind.help(), MetricType::Counter, vec![metric]));
    }
    let completions = Outcome::ALL.map(|outcome| {
        counter(vec![label("outcome", outcome.name())], totals.completions(outcome) as f64)
    });
    write(family(COMPLETIONS, COMPLETIONS_HELP, MetricType::Counter, completions.into()));
    let unit_checks = SenseClass::ALL
        .map(|sense| counter(vec![label("sense", sense.name())], totals.unit_checks(sense) as f64));
    write(family(UNIT_CHECKS, UNIT_CHECKS_HELP, MetricType::Counter, unit_checks.into()));
    let waits = Waiting::ALL
        .map(|how| counter(vec![label("how", how.name())], totals.waited(how) as f64 / 1e9));
    write(family(WAIT, WAIT_HELP, MetricType::Counter, waits.into()));
    let version = gauge(vec![label("version", env!("CARGO_PKG_VERSION"))], 1.0);
    write(family(BUILD_INFO, BUILD_INFO_HELP, MetricType::Gauge, vec![version]));
    sampled_gauges(gauges).into_iter().for_each(&mut write);
    for (families, rows) in rows {
        for (place, of) in families.iter().enumerate() {
            write(row_family(of, place, rows));
        }
    }
    write(stage_durations(totals));
    bytes
}

/// A family for each name, in the order of their first gauges.
fn sampled_gauges(gauges: &[(SampledGauge, f64)]) -> Vec<MetricFamily> {
    let mut families: Vec<MetricFamily> = Vec::new();
    for (SampledGauge { key, help, .. }, value) in gauges {
        let labels = key.labels().map(|it| label(it.key(), it.value())).collect();
        let metric = gauge(labels, *value);
        match families.iter_mut().find(|known| known.name.as_deref() == Some(key.name())) {
            Some(known) => known.metric.push(metric),
            None => families.push(family(key.name(), help, MetricType::Gauge, vec![metric])),
        }
    }
    families
}

fn row_family(of: &Family, place: usize, rows: &[Row]) -> MetricFamily {
    let (kind, metric): (_, fn(Vec<LabelPair>, f64) -> Metric) = match of.kind {
        FamilyKind::Counter => (MetricType::Counter, counter),
        FamilyKind::Gauge => (MetricType::Gauge, gauge),
    };
    let metrics = rows.iter().filter_map(|row| {
        let value = *row.values.get(place)?;
        Some(metric(row.labels.iter().map(|(name, is)| label(name, is)).collect(), value))
    });
    family(of.name, of.help, kind, metrics.collect())
}

fn stage_durations(totals: &Totals) -> MetricFamily {
    let mut metrics = Vec::new();
    for kind in totals.kinds() {
        let Kind { class, operation } = kind;
        for stage in Stage::ALL {
            if let Some(snapshot) = totals.stage_in(kind, stage) {
                let labels = vec![
                    label("stage", stage.name()),
                    label("class", class.name()),
                    label("operation", operation.name()),
                ];
                let histogram = Some(histogram(snapshot));
                metrics.push(Metric { label: labels, histogram, ..Metric::default() });
            }
        }
    }
    family(STAGE_DURATION, STAGE_DURATION_HELP, MetricType::Histogram, metrics)
}

/// With the buckets that the text has, all but that of infinity, and with those of a native histogram:
/// the reader takes what it knows.
fn histogram(snapshot: &Snapshot) -> Histogram {
    let NativeHistogram { zero_count, spans, deltas } = NativeHistogram::of(snapshot);
    let counts = snapshot.cumulative(&PROMETHEUS_BOUNDS_NS);
    let buckets = PROMETHEUS_BOUNDS_NS.iter().zip(counts).map(|(&bound_ns, count)| Bucket {
        cumulative_count: Some(count),
        upper_bound: Some(bound_ns as f64 / 1e9),
    });
    // A span of nothing says that it is native although there is no sample.
    let spans = if spans.is_empty() { vec![native::Span { offset: 0, length: 0 }] } else { spans };
    let spans =
        spans.iter().map(|span| Span { offset: Some(span.offset), length: Some(span.length) });
    Histogram {
        sample_count: Some(snapshot.count()),
        sample_sum: Some(snapshot.sum_ns() as f64 / 1e9),
        bucket: buckets.collect(),
        schema: Some(SCHEMA),
        zero_threshold: Some(ZERO_THRESHOLD),
        zero_count: Some(zero_count),
        positive_span: spans.collect(),
        positive_delta: deltas,
    }
}

fn family(name: &str, help: &str, kind: MetricType, metric: Vec<Metric>) -> MetricFamily {
    MetricFamily {
        name: Some(name.to_owned()),
        help: Some(help.to_owned()),
        kind: Some(kind.into()),
        metric,
    }
}

fn counter(label: Vec<LabelPair>, value: f64) -> Metric {
    Metric { label, counter: Some(Counter { value: Some(value) }), ..Metric::default() }
}

fn gauge(label: Vec<LabelPair>, value: f64) -> Metric {
    Metric { label, gauge: Some(Gauge { value: Some(value) }), ..Metric::default() }
}

fn label(name: &str, value: &str) -> LabelPair {
    LabelPair { name: Some(name.to_owned()), value: Some(value.to_owned()) }
}
