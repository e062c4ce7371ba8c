//! Guest programs in, shadow programs out, and their pages given back.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use vfio_ccw_bench::parts::translation::{LARGE, PROGRAMS, SMALL, Translation};

criterion_group!(benches, translation);

fn translation(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("translate");
    for (programs, ccws) in [(PROGRAMS, SMALL), (1, LARGE)] {
        group.throughput(Throughput::Elements(programs));
        let id = BenchmarkId::from_parameter(format!("{programs} programs of {ccws} CCWs"));
        group.bench_function(id, |bencher| {
            let mut translation = Translation::new(programs, ccws).expect("guest memory");
            bencher.iter(|| {
                translation.translate_all().expect("every page is pinned and all fits");
                translation.release_all();
            });
        });
    }
    group.finish();
}
