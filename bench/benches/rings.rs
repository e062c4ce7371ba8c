//! An item through each ring and out again, on one thread.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group};
use vfio_ccw_bench::parts::ring::{BURST, CAPACITY, burst};
use vfio_ccw_queues::{completion, spsc, submission};

criterion_group!(benches, one_by_one, bursts);

/// The size of a submission: what to start, where, and whose it is.
type Entry = [u64; 5];

fn one_by_one(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    group.bench_function("spsc, 8 bytes", |bencher| {
        let (mut producer, mut consumer) = spsc::ring::<u64>(CAPACITY);
        bencher.iter(|| {
            producer.push(black_box(7)).expect("an empty ring has room");
            consumer.pop().expect("what was pushed")
        });
    });
    group.bench_function("submission, 40 bytes", |bencher| {
        let (submitter, mut intake) = submission::ring::<Entry>(CAPACITY);
        bencher.iter(|| {
            submitter.push(black_box([7; 5])).expect("an empty ring has room");
            intake.pop().expect("what was pushed")
        });
    });
    group.bench_function("completion, 40 bytes", |bencher| {
        let (reporter, mut completions) = completion::ring::<Entry>(CAPACITY).expect("an eventfd");
        bencher.iter(|| {
            reporter.push(black_box([7; 5]));
            let taken = completions.pop_burst(1, |entry| {
                black_box(entry);
            });
            assert_eq!(taken, 1, "what was pushed");
        });
    });
    group.finish();
}

fn bursts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    group.throughput(Throughput::Elements(BURST as u64));
    group.bench_function("spsc, bursts of 32", |bencher| {
        let (mut producer, mut consumer) = spsc::ring::<u64>(CAPACITY);
        bencher.iter(|| {
            let mut sum = 0;
            assert_eq!(producer.push_burst(burst(0)), BURST, "an empty ring has room");
            consumer.pop_burst(BURST, |item| sum += item);
            sum
        });
    });
    group.finish();
}
