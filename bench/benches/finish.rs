//! The status of a program that has ended, mapped back to the guest's.

use criterion::{Criterion, criterion_group};
use vfio_ccw_bench::parts::finish::Finished;

criterion_group!(benches, finish);

fn finish(criterion: &mut Criterion) {
    let finished = Finished::new().expect("guest memory");
    criterion.bench_function("finish", |bencher| bencher.iter(|| finished.back_map()));
}
