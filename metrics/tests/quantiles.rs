//! What a dashboard shows against what was: quantiles by Prometheus' rule from the rendered buckets,
//! and those of the samples themselves.

pub mod samples;
pub mod text_format;

use samples::{Numbers, exact_quantile};
use vfio_ccw_metrics::{
    DeviceClass, Kind, Operation, PROMETHEUS_BOUNDS_NS, Registry, ShardMetrics, Stage,
};

const SAMPLES: usize = 300_000;
const QUANTILES: [f64; 8] = [0.01, 0.1, 0.5, 0.75, 0.9, 0.99, 0.999, 0.9999];
const STAGE: Stage = Stage::Device;
const KIND: Kind = Kind { class: DeviceClass::Fba, operation: Operation::Write };

/// The rule of `histogram_quantile`: the samples of a bucket are spread evenly over it.
fn histogram_quantile(q: f64, buckets: &[(f64, f64)]) -> f64 {
    let count = buckets.last().expect("that of infinity").1;
    let rank = q * count;
    let at = buckets.iter().position(|bucket| bucket.1 >= rank).expect("the last has all");
    let (end, upto) = buckets[at];
    let (start, before) = if at == 0 { (0.0, 0.0) } else { buckets[at - 1] };
    if end == f64::INFINITY {
        return start;
    }
    start + (end - start) * (rank - before) / (upto - before)
}

fn rendered_buckets(registry: &Registry) -> Vec<(f64, f64)> {
    let families = text_format::parse(&registry.render());
    let samples = &families["vfio_ccw_stage_duration_seconds"].samples;
    let mine = samples.iter().filter(|(_, labels, _)| {
        labels["stage"] == STAGE.name()
            && labels["class"] == KIND.class.name()
            && labels["operation"] == KIND.operation.name()
    });
    mine.filter_map(|(_, labels, count)| Some((labels.get("le")?.parse().ok()?, *count))).collect()
}

/// The first bound that is not below.
fn bucket_of(seconds: f64) -> usize {
    PROMETHEUS_BOUNDS_NS.partition_point(|&bound| (bound as f64 / 1e9) < seconds)
}

fn check(what: &str, samples: &mut [u64], record: impl Fn(&ShardMetrics, &[u64])) {
    let registry = Registry::new();
    let shard = registry.shard("0");
    record(&shard, samples);
    let buckets = rendered_buckets(&registry);
    assert_eq!(buckets.last(), Some(&(f64::INFINITY, samples.len() as f64)), "{what}");
    samples.sort_unstable();
    for q in QUANTILES {
        let exact_ns = exact_quantile(samples, q);
        let estimate = histogram_quantile(q, &buckets);
        let is = bucket_of(exact_ns as f64 / 1e9);
        let shown = bucket_of(estimate);
        // What is less than 1/32 below a bound may count for the next one: slower, never faster.
        let near_bound =
            PROMETHEUS_BOUNDS_NS.get(is).is_some_and(|&bound| exact_ns + bound / 32 >= bound);
        let beyond = is == PROMETHEUS_BOUNDS_NS.len();
        assert!(
            shown == is || near_bound && shown == is + 1 || beyond && shown + 1 == is,
            "{what}, q = {q}: {exact_ns} ns shown as {estimate} s"
        );
    }
}

fn one_by_one(shard: &ShardMetrics, samples: &[u64]) {
    samples.iter().for_each(|&ns| shard.durations(KIND).record(STAGE, ns));
}

#[test]
fn quantiles_of_the_rendered_buckets_are_those_of_the_samples_within_one_bucket() {
    let mut numbers = Numbers(0x5eed);
    type Draw = fn(&mut Numbers) -> u64;
    let distributions: [(&str, Draw); 8] = [
        ("uniform to 3 ms", |n| (n.unit() * 3e6) as u64),
        ("a fast device", |n| n.latency_ns(12_000.0, 0.3)),
        ("a disk", |n| n.latency_ns(4_000_000.0, 0.8)),
        ("cache hits and misses", |n| {
            if n.unit() < 0.93 { n.latency_ns(900.0, 0.2) } else { n.latency_ns(6e6, 0.4) }
        }),
        ("exponential", |n| (-(1.0 - n.unit()).ln() * 80_000.0) as u64),
        ("heavy tail", |n| (2_000.0 / (1.0 - n.unit()).powf(1.1)) as u64),
        ("just below a bound", |n| 1_000_000 - (n.unit() * 20_000.0) as u64),
        ("a tape that winds", |n| (n.unit() * 90e9) as u64),
    ];
    for (what, draw) in distributions {
        let mut samples: Vec<u64> = (0..SAMPLES).map(|_| draw(&mut numbers)).collect();
        check(what, &mut samples, one_by_one);
    }
}

#[test]
fn every_bound_itself_is_shown_within_one_bucket() {
    for bound in PROMETHEUS_BOUNDS_NS {
        for ns in [bound - 1, bound, bound + 1] {
            check("one duration", &mut [ns; 100], one_by_one);
        }
    }
}

#[test]
fn real_durations_are_shown_within_one_bucket() {
    // Measured: what a little work takes on this machine, with all the interruptions that it has.
    let mut samples = Vec::with_capacity(SAMPLES);
    let mut work = 0_u64;
    for n in 0..SAMPLES {
        let start = std::time::Instant::now();
        for step in 0..(n % 500) as u64 {
            work = std::hint::black_box(work.rotate_left(5) ^ step);
        }
        samples.push(start.elapsed().as_nanos() as u64);
    }
    check("real durations", &mut samples, one_by_one);
}
