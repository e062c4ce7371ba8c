//! Memory does not depend on the samples: 100 million of them without a scrape allocate nothing.
//!
//! There is one test: whatever else ran in this process would be counted too. Built without
//! optimisation (with debug assertions) it records a tenth.

pub mod counting;

use counting::{Counting, allocations};
use vfio_ccw_metrics::{CounterKind, DeviceClass, Kind, Outcome, RECORDING, Registry, Stage};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SAMPLES: u64 = if cfg!(debug_assertions) { 10_000_000 } else { 100_000_000 };

/// Pages that this process has in memory.
fn resident() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    pages.split(' ').nth(1)?.parse().ok()
}

#[test]
fn samples_without_a_scrape_allocate_nothing() {
    let registry = Registry::new();
    let shard = registry.shard("0");
    DeviceClass::ALL.into_iter().for_each(|class| shard.attached(class));
    let record = |samples: u64| {
        let mut state = 1_u64;
        for sample in 0..samples {
            // Knuth's multiplier: durations of every magnitude, from 0 to beyond the range.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let ns = state >> (26 + state % 38);
            let class = DeviceClass::ALL[(sample % DeviceClass::COUNT as u64) as usize];
            let mut kinds = Kind::of(class);
            let kind = kinds.nth((state >> 40) as usize % 3).expect("three");
            let stage = Stage::ALL[(state >> 50) as usize % Stage::COUNT];
            shard.durations(kind).record_for(stage, ns, 1 + sample % 2);
            shard.counters().starts.add(1);
            shard.complete(Outcome::Ok);
        }
    };
    // All pages of the histograms are touched.
    record(1_000_000);
    // Looking allocates too.
    let resident_before = resident();
    let before = allocations();
    record(SAMPLES);
    let after = allocations();
    let resident_after = resident();

    assert_eq!(after - before, 0, "allocations");
    if let (Some(before), Some(after)) = (resident_before, resident_after) {
        // Pages that the test harness or the system touches meanwhile; samples kept would be 100,000s.
        assert!(after <= before + 256, "{before} pages, then {after}");
        println!("{SAMPLES} samples: {before} pages resident before, {after} after");
    }
    let counted = (SAMPLES + 1_000_000) * u64::from(RECORDING);
    assert_eq!(registry.snapshot().counter(CounterKind::Starts), counted);
}
