//! The driver allocates before a job and after it, and nothing in between: a load generator that
//! allocates for each request would blame its own pauses on the system that it measures.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use vfio_ccw_load::closed_loop::{self, ClosedLoop, Limit};
use vfio_ccw_load::{
    Access, Completion, Direction, Engine, EngineError, Failure, Quiet, Request, Workload,
};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system allocator unchanged; the counter is a thread-local cell without
// a destructor, which neither allocates nor unwinds. `nothing_is_allocated_per_request` runs on it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`, which is the one called; see
        // `nothing_is_allocated_per_request`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `memory` came from `alloc` above with this layout, so from `System`; see
        // `nothing_is_allocated_per_request`.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Completes all requests at once, and fails each 16th; reads find what the same slot wrote last.
struct Instant {
    ready: Vec<Completion>,
    count: u64,
}

impl Engine for Instant {
    fn slots(&self) -> usize {
        32
    }

    fn submit(&mut self, requests: &[Request]) -> Result<(), EngineError> {
        for request in requests {
            self.count += 1;
            let failure = self.count.is_multiple_of(16) && request.direction == Direction::Write;
            let outcome = if failure { Err(Failure::Abandoned) } else { Ok(()) };
            self.ready.push(Completion { slot: request.slot, outcome });
        }
        Ok(())
    }

    fn reap(
        &mut self,
        done: &mut Vec<Completion>,
        _wait: Option<Duration>,
    ) -> Result<(), EngineError> {
        done.append(&mut self.ready);
        Ok(())
    }

    fn write_guest(&self, _gpa: u64, _bytes: &[u8]) -> Result<(), EngineError> {
        Ok(())
    }

    fn read_guest(&self, _gpa: u64, _bytes: &mut [u8]) -> Result<(), EngineError> {
        Ok(())
    }
}

fn allocations_of(ios: u64, verify: bool) -> u64 {
    let mut engine = Instant { ready: Vec::with_capacity(64), count: 0 };
    let mut job = ClosedLoop::new(Workload {
        read_percent: if verify { 0 } else { 50 },
        access: Access::Zipf(0.9),
        ..Workload::new(1 << 24, 4096)
    });
    (job.limit, job.verify) = (Limit::ios(ios), verify);
    let before = ALLOCATIONS.get();
    let report = closed_loop::run(&mut engine, &job, &mut Quiet, &AtomicBool::new(false)).unwrap();
    let after = ALLOCATIONS.get();
    assert!(report.errors > 0 && report.submitted == ios);
    after - before
}

#[test]
fn nothing_is_allocated_per_request() {
    for verify in [false, true] {
        let few = allocations_of(1_000, verify);
        assert!(few > 0, "the counter counts");
        assert_eq!(few, allocations_of(50_000, verify), "verify {verify}");
    }
}
