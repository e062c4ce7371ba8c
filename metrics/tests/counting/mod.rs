//! An allocator that counts what this process allocates, and how much it has.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, AtomicU64, Ordering};

/// The system's allocator, counted. For `#[global_allocator]`.
#[derive(Debug)]
pub struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static LIVE: AtomicIsize = AtomicIsize::new(0);

/// Allocations of all threads so far.
pub fn allocations() -> u64 {
    // Relaxed: a count; the tests have joined, or have had an answer from, the threads that matter.
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// Bytes that are allocated now.
pub fn live_bytes() -> isize {
    // Relaxed: as above.
    LIVE.load(Ordering::Relaxed)
}

fn count(more: usize, less: usize) {
    // Relaxed: sums, of which nothing else is read on the strength.
    ALLOCATIONS.fetch_add(u64::from(more > 0), Ordering::Relaxed);
    LIVE.fetch_add(more as isize - less as isize, Ordering::Relaxed);
}

// SAFETY: every call goes to the system allocator unchanged; the counting neither unwinds nor
// allocates. Test: each test that names the type as its allocator runs on it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps the contract of the method of the same name. Test: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as in `alloc`. Test: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(bytes, layout.size());
        // SAFETY: `memory` came from the methods above, so from `System`. Test: as above.
        unsafe { System.realloc(memory, layout, bytes) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as in `realloc`. Test: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}
