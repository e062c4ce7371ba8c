//! Asking for a cache line before it is needed.
//!
//! A line that another core wrote last takes some 100 ns to come over. Who knows what it will look
//! at next can have several such lines on their way at once, instead of waiting for one after the
//! other.

use std::ptr;

/// The cache lines of something that will be looked at, and written to.
///
/// ```
/// use vfio_ccw_queues::prefetch::Lines;
///
/// let many: Vec<[u64; 64]> = vec![[0; 64]; 1000];
/// let lines: Vec<Lines> = many.iter().map(Lines::of).collect();
/// for (number, words) in many.iter().enumerate() {
///     // Those of the next one come while this one is worked on.
///     if let Some(next) = lines.get(number + 1) {
///         next.prefetch();
///     }
///     assert_eq!(words.iter().sum::<u64>(), 0);
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Lines {
    first: *const u8,
    bytes: usize,
}

impl Lines {
    /// Those that `value` lies in.
    #[inline]
    pub fn of<T: ?Sized>(value: &T) -> Self {
        Lines { first: ptr::from_ref(value).cast(), bytes: size_of_val(value) }
    }

    /// Those of the bytes behind it, too.
    #[inline]
    pub(crate) fn and_behind(self, bytes: usize) -> Self {
        Lines { bytes: self.bytes + bytes, ..self }
    }

    /// Asks for them, to be written: a hint that reads nothing, also where the value has gone.
    #[inline(always)]
    pub fn prefetch(self) {
        self.each().for_each(for_write);
    }

    /// Asks for them, to be read only: other cores keep theirs.
    #[inline(always)]
    pub fn prefetch_to_read(self) {
        self.each().for_each(for_read);
    }

    #[inline(always)]
    fn each(self) -> impl Iterator<Item = *const u8> {
        let into = self.first.addr() % LINE;
        let first = self.first.wrapping_sub(into);
        (0..into + self.bytes).step_by(LINE).map(move |at| first.wrapping_add(at))
    }
}

/// None.
impl Default for Lines {
    fn default() -> Self {
        Lines { first: ptr::null(), bytes: 0 }
    }
}

/// Bytes of a cache line on x86-64; on s390x, where one has 256, the same is asked for again.
const LINE: usize = 64;

/// Defines a function that asks for the line at `place`; the core goes on meanwhile. Where the machine has
/// no such instruction nothing happens.
macro_rules! hint {
    ($(#[$doc:meta])* $name:ident, x86_64: $x86_64:literal, s390x: $s390x:literal) => {
        $(#[$doc])*
        #[inline(always)]
        fn $name(place: *const u8) {
            #[cfg(all(target_arch = "x86_64", not(any(miri, loom))))]
            // SAFETY: a hint; it accesses nothing that a program can see, does not fault, whatever the
            // address, and on processors without it does nothing. Test: `any_address_will_do`.
            unsafe {
                std::arch::asm!(
                    $x86_64,
                    place = in(reg) place,
                    options(nostack, preserves_flags)
                );
            }
            #[cfg(all(target_arch = "s390x", not(any(miri, loom))))]
            // SAFETY: as above. Test: `any_address_will_do`.
            unsafe {
                std::arch::asm!(
                    $s390x,
                    place = in(reg_addr) place,
                    options(nostack, preserves_flags)
                );
            }
            #[cfg(any(miri, loom, not(any(target_arch = "x86_64", target_arch = "s390x"))))]
            let _ = place;
        }
    };
}

// PREFETCH DATA has the access in its first operand: 2 to store, 1 to fetch.
hint!(
    /// To be written.
    for_write, x86_64: "prefetchw [{place}]", s390x: "pfd 2, 0({place})"
);
hint!(
    /// To be read.
    for_read, x86_64: "prefetcht0 [{place}]", s390x: "pfd 1, 0({place})"
);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_asked_for_once() {
        let lines = |at: usize, bytes| {
            let lines = Lines { first: ptr::without_provenance(at), bytes };
            lines.each().map(|line| line.addr()).collect::<Vec<_>>()
        };
        assert_eq!(lines(128, 64), [128]);
        assert_eq!(lines(128, 65), [128, 192]);
        assert_eq!(lines(190, 4), [128, 192]);
        assert_eq!(lines(191, 1), [128]);
        assert_eq!(lines(64, 200), [64, 128, 192, 256]);
        assert!(Lines::default().each().next().is_none());
    }

    #[test]
    fn any_address_will_do() {
        let value = [7u8; 64];
        let places = [value.as_ptr(), ptr::null(), ptr::without_provenance(usize::MAX - 3)];
        for place in places {
            for_write(place);
            for_read(place);
        }
        Lines::of(&value).prefetch();
        Lines::default().prefetch_to_read();
        assert_eq!(value, [7; 64]);
    }
}
