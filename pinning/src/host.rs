//! The one place that touches guest memory through a pointer.
//!
//! Guest memory changes under our feet: vCPUs and devices write it at any time. Nothing here makes
//! a Rust reference to it; words are loaded as atomics, blocks are copied as volatile bytes.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vm_memory::VolatileSlice;

/// A run of bytes mapped in this process that others may write at any time.
///
/// It is a plain (pointer, length) pair: whoever hands it out keeps the mapping alive, see
/// [`HostRange::new`]. All access is bounds-checked.
#[derive(Clone, Copy, Debug)]
pub struct HostRange {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the pair is only an address; every access goes through atomics or volatile copies, which
// any thread may do at any time under the contract of `new`. Test: `words_and_bytes_agree`.
unsafe impl Send for HostRange {}
// SAFETY: as for Send; no method needs exclusive access. Test: `words_and_bytes_agree`.
unsafe impl Sync for HostRange {}

impl HostRange {
    /// Names `len` bytes mapped at `start`.
    ///
    /// # Safety
    ///
    /// The bytes stay mapped readable and writable for as long as this value or any range made from
    /// it is used, and no Rust reference to them exists while it is.
    pub unsafe fn new(start: NonNull<u8>, len: usize) -> Self {
        HostRange { start, len }
    }

    /// Host address of the first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part of `len` bytes that starts at `offset`, or `None` where it would stick out.
    #[inline]
    pub fn part(&self, offset: usize, len: usize) -> Option<HostRange> {
        let end = offset.checked_add(len)?;
        if end > self.len {
            return None;
        }
        // SAFETY: offset <= self.len, so the result is inside the mapping or one past its end.
        // Test: `parts_never_stick_out`.
        let start = unsafe { self.start.add(offset) };
        Some(HostRange { start, len })
    }

    /// Loads the eight bytes at `offset` in one access, as memory holds them; `None` where they
    /// are not all inside or not on a doubleword.
    ///
    /// One access matters: a CCW or IDAW that a vCPU is just writing is seen old or new, not mixed.
    #[inline]
    pub fn load_doubleword(&self, offset: usize) -> Option<[u8; 8]> {
        let at = self.part(offset, 8)?.start.cast::<AtomicU64>();
        if !at.is_aligned() {
            return None;
        }
        // SAFETY: eight mapped bytes (`part`), aligned (checked), and only ever accessed atomically
        // or volatilely here. Test: `words_and_bytes_agree`.
        let word = unsafe { at.as_ref() };
        // Relaxed: orders nothing; the submission ring's acquire already ordered the guest's writes.
        Some(word.load(Ordering::Relaxed).to_ne_bytes())
    }

    /// Loads the four bytes at `offset` in one access; `None` as for the doubleword.
    #[inline]
    pub fn load_word(&self, offset: usize) -> Option<[u8; 4]> {
        let at = self.part(offset, 4)?.start.cast::<AtomicU32>();
        if !at.is_aligned() {
            return None;
        }
        // SAFETY: four mapped bytes (`part`), aligned (checked), accessed as above.
        // Test: `words_and_bytes_agree`.
        let word = unsafe { at.as_ref() };
        // Relaxed: as for the doubleword.
        Some(word.load(Ordering::Relaxed).to_ne_bytes())
    }

    /// Stores eight bytes at `offset` in one access; `false` where they are not all inside or not
    /// on a doubleword.
    pub fn store_doubleword(&self, offset: usize, bytes: [u8; 8]) -> bool {
        let Some(part) = self.part(offset, 8) else {
            return false;
        };
        let at = part.start.cast::<AtomicU64>();
        if !at.is_aligned() {
            return false;
        }
        // SAFETY: eight mapped bytes (`part`), aligned (checked), accessed as above.
        // Test: `words_and_bytes_agree`.
        let word = unsafe { at.as_ref() };
        // Relaxed: whoever starts the device on this memory orders the store (ring or system call).
        word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
        true
    }

    /// Copies from memory at `offset`; `false`, and nothing copied, where it would stick out.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> bool {
        let Some(part) = self.part(offset, bytes.len()) else {
            return false;
        };
        part.volatile().copy_to(bytes);
        true
    }

    /// Copies into memory at `offset`; `false`, and nothing copied, where it would stick out.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        let Some(part) = self.part(offset, bytes.len()) else {
            return false;
        };
        part.volatile().copy_from(bytes);
        true
    }

    /// Sets every byte to zero.
    pub fn clear(&self) {
        // SAFETY: the whole range is mapped and writable by the contract of `new`.
        // Test: `words_and_bytes_agree`.
        unsafe { std::ptr::write_bytes(self.start.as_ptr(), 0, self.len) }
    }

    fn volatile(&self) -> VolatileSlice<'_> {
        // SAFETY: `len` mapped bytes by the contract of `new`, which outlives the borrow of self.
        // Test: `parts_never_stick_out`.
        unsafe { VolatileSlice::new(self.start.as_ptr(), self.len) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Sixteen aligned bytes that outlive the range made from them.
    fn range(backing: &mut [u64; 2]) -> HostRange {
        let start = NonNull::from(backing).cast();
        // SAFETY: the array outlives the test's use of the range and is not touched meanwhile.
        unsafe { HostRange::new(start, 16) }
    }

    #[test]
    fn parts_never_stick_out() {
        let mut backing = [0; 2];
        let range = range(&mut backing);
        assert!(range.part(8, 8).is_some());
        assert_eq!(range.part(16, 0).map(|part| part.len()), Some(0));
        assert!(range.part(9, 8).is_none());
        assert!(range.part(usize::MAX, 2).is_none());
        assert!(!range.read(10, &mut [0; 7]));
        assert!(!range.write(16, &[1]));
        assert!(range.load_doubleword(12).is_none());
    }

    #[test]
    fn words_and_bytes_agree() {
        let mut backing = [0; 2];
        let range = range(&mut backing);
        assert!(range.store_doubleword(8, [1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!(range.load_word(12), Some([5, 6, 7, 8]));
        let mut copy = [0; 3];
        assert!(range.read(9, &mut copy));
        assert_eq!(copy, [2, 3, 4]);
        assert!(range.write(8, &[9]));
        assert_eq!(range.load_doubleword(8), Some([9, 2, 3, 4, 5, 6, 7, 8]));
        assert!(range.load_doubleword(4).is_none(), "not on a doubleword");
        assert!(range.load_word(2).is_none(), "not on a word");
        assert!(!range.store_doubleword(4, [0; 8]));
        range.clear();
        assert_eq!(range.load_doubleword(8), Some([0; 8]));
        std::thread::scope(|scope| {
            scope.spawn(move || range.write(0, &[7]));
        });
        assert_eq!(range.load_word(0).map(|word| word[0]), Some(7));
    }
}
