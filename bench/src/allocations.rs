//! Counts heap allocations of the whole process, all threads.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, with every allocation and reallocation counted. A program that wants to
/// know [`count`] makes it its global allocator.
#[derive(Debug)]
pub struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches no memory of
// the allocation. Test: `every_allocation_counts`.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Relaxed: a count that orders nothing; readers compare two of their own points in time.
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // Relaxed: as in `alloc`.
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`, and the block is the
        // system's.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Relaxed: as in `alloc`.
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::realloc`, and the block is the
        // system's.
        unsafe { System.realloc(block, layout, size) }
    }
}

/// Allocations of this process so far; stays 0 where [`Counting`] is not the global allocator.
pub fn count() -> u64 {
    // Relaxed: see `Counting::alloc`.
    ALLOCATIONS.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in the program: figures that are measured in tests count them, too.
    #[global_allocator]
    static ALLOCATOR: Counting = Counting;

    #[test]
    fn every_allocation_counts() {
        let before = count();
        let layout = Layout::new::<u64>();
        // SAFETY: a non-zero layout; the block is freed with the layout it was made with.
        unsafe {
            let block = Counting.alloc(layout);
            assert!(!block.is_null());
            Counting.dealloc(block, layout);
        }
        assert!(count() > before);
    }
}
