//! What a shard writes down of a request that it times, and of one that it does not.

use std::hint::black_box;

use criterion::{Criterion, criterion_group};
use vfio_ccw_metrics::{DeviceClass, Kind, Operation, Outcome, Registry, Stage};

criterion_group!(benches, recording);

const READS: Kind = Kind { class: DeviceClass::Fba, operation: Operation::Read };

fn recording(criterion: &mut Criterion) {
    let registry = Registry::new();
    let shard = registry.shard("0");
    shard.attached(READS.class);
    let mut group = criterion.benchmark_group("record");
    group.bench_function("all stages", |bencher| {
        // Not always the same bucket.
        let mut ns = 1_000;
        bencher.iter(|| {
            ns = ns % 1_000_000 + 997;
            let durations = shard.durations(READS);
            for stage in Stage::ALL {
                durations.record(stage, black_box(ns));
            }
            shard.complete(Outcome::Ok);
        });
    });
    group.bench_function("counters only", |bencher| {
        bencher.iter(|| {
            shard.counters().starts.add(1);
            shard.counters().interrupts.add(1);
            shard.complete(black_box(Outcome::Ok));
        });
    });
    group.finish();
}
