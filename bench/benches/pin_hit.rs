//! The frames of a program, all pinned already, taken and released.

use criterion::{Criterion, Throughput, criterion_group};
use vfio_ccw_bench::parts::pin_hit::{ENTRIES, PAGES, random_frames, take_and_release, warm_pool};
use vfio_ccw_pinning::Hold;

criterion_group!(benches, pin_hit);

fn pin_hit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pin hit");
    group.throughput(Throughput::Elements(PAGES as u64));
    group.bench_function("program of 16 pages", |bencher| {
        let pool = warm_pool().expect("a pool");
        let frames = random_frames(1, 0..ENTRIES);
        let mut programs = frames.chunks_exact(PAGES).cycle();
        let mut hold = Hold::default();
        bencher.iter(|| {
            let program = programs.next().expect("a cycle has no end");
            assert!(take_and_release(&pool, &mut hold, program), "a warm pool has every frame");
        });
    });
    group.finish();
}
