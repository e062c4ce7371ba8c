//! Asking for a cache line before it is needed.
//!
//! A line that another core wrote last takes some 100 ns to come over. Who knows what it will look
//! at next can have several such lines on their way at once, instead of waiting for one after the
//! other.

/// Asks for the line at `place`, to be written soon; the core goes on meanwhile. Where the machine
/// has no such instruction nothing happens.
#[inline(always)]
pub(crate) fn for_write<T>(place: *const T) {
    #[cfg(all(target_arch = "x86_64", not(any(miri, loom))))]
    // SAFETY: a hint; it accesses nothing that a program can see, does not fault, whatever the
    // address, and on processors without it does nothing. Test: `any_address_will_do`.
    unsafe {
        std::arch::asm!(
            "prefetchw [{place}]",
            place = in(reg) place,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(all(target_arch = "s390x", not(any(miri, loom))))]
    // SAFETY: as above; PREFETCH DATA with code 2, store access. Test: `any_address_will_do`.
    unsafe {
        std::arch::asm!(
            "pfd 2, 0({place})",
            place = in(reg_addr) place,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(any(miri, loom, not(any(target_arch = "x86_64", target_arch = "s390x"))))]
    let _ = place;
}

#[cfg(all(test, not(loom)))]
mod tests {
    #[test]
    fn any_address_will_do() {
        let value = [7u8; 64];
        super::for_write(&raw const value);
        super::for_write(std::ptr::null::<u64>());
        super::for_write(std::ptr::without_provenance::<u64>(usize::MAX - 3));
        assert_eq!(value, [7; 64]);
    }
}
