//! Memory files that a client cuts short while they are mapped.
//!
//! Whoever touches a mapped page that its file has no more gets SIGBUS (mmap(2)), and a process that
//! does not handle it dies. So ranges that belong to clients are registered, and where the signal
//! tells of one of them, zeros take the place of the file from the faulting page to the end of the
//! range: the thread goes on, and the owner learns that the range is broken.
//!
//! Whatever is written there then reaches nobody, and it is gone when a page before it is touched for
//! the first time; that client has no more use for it. Calls of the kernel do not get so far: where they meet such a
//! page they answer EFAULT, until a thread has touched it.
//!
//! The registry is read in the handler while others change it, so there are no locks: each place has a
//! version that is odd while the place changes. The range that faults is one that somebody uses, so
//! its place does not change meanwhile.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence};

use libc::{c_int, c_void, siginfo_t};

use super::signals::{self, keeping_errno};

/// Places a chunk: the memory of a few guests. There are as many chunks as were ever needed, and they
/// stay for as long as the process.
const PLACES: usize = 64;

/// The first chunk.
static REGISTRY: Chunk = Chunk::new();

/// Bytes of a page, once the handler is there.
static PAGE: AtomicUsize = AtomicUsize::new(0);

/// One range, or none.
#[derive(Debug)]
struct Place {
    /// Odd while the rest changes.
    version: AtomicUsize,
    /// Address of the first page.
    start: AtomicUsize,
    /// Address behind the last page; 0 in a vacant place.
    end: AtomicUsize,
    writable: AtomicBool,
    broken: AtomicBool,
}

/// What a place says.
#[derive(Clone, Copy, Debug)]
struct Range {
    start: usize,
    end: usize,
    writable: bool,
}

#[derive(Debug)]
struct Chunk {
    places: [Place; PLACES],
    next: AtomicPtr<Chunk>,
}

/// Makes the process outlive accesses to registered ranges that have lost their file. Once is enough;
/// again does nothing.
///
/// SIGBUS for any other reason, or sent by somebody, still ends the process. A thread must not block
/// the signal: the kernel ends the process then.
///
/// # Errors
///
/// What the system said to the handler; it has no reason to refuse one.
pub fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let install = || {
        PAGE.store(page(), Ordering::Relaxed);
        signals::handle_detailed(libc::SIGBUS, on_sigbus)
            .map_err(|error| error.raw_os_error().unwrap_or(libc::EINVAL))
    };
    (*INSTALLED.get_or_init(install)).map_err(io::Error::from_raw_os_error)
}

/// A range of memory that is guarded for as long as this lives.
///
/// Its owner drops it before the range is unmapped: what is mapped there next is not meant.
#[derive(Debug)]
#[must_use = "the range is guarded for as long as this lives"]
pub struct Guarded(&'static Place);

impl Guarded {
    /// Guards the mapping of `len` bytes at `start`, all pages that it touches. Ranges do not overlap.
    /// Zeros that take the place of the file may be written if `writable`.
    ///
    /// Nothing happens to the range unless [`install`] was called and an access would end the process.
    pub fn register(start: NonNull<u8>, len: usize, writable: bool) -> Guarded {
        let (start, page) = (start.as_ptr().addr(), page());
        let range = Range {
            start: start & !(page - 1),
            end: start.saturating_add(len).saturating_add(page - 1) & !(page - 1),
            writable,
        };
        let mut chunk = &REGISTRY;
        loop {
            if let Some(place) = chunk.places.iter().find(|place| place.take(range)) {
                return Guarded(place);
            }
            chunk = chunk.next_or_new();
        }
    }

    /// Whether the range lost its file while it was used: there are zeros where it was. Stays true.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.0.broken.load(Ordering::Acquire)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Place {
    const fn new() -> Self {
        Place {
            version: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            writable: AtomicBool::new(false),
            broken: AtomicBool::new(false),
        }
    }

    /// Takes the place for a range, if it is vacant.
    fn take(&self, range: Range) -> bool {
        let version = self.version.load(Ordering::Acquire);
        if version & 1 != 0 || self.end.load(Ordering::Relaxed) != 0 || !self.begin(version) {
            return false;
        }
        self.start.store(range.start, Ordering::Relaxed);
        self.end.store(range.end, Ordering::Relaxed);
        self.writable.store(range.writable, Ordering::Relaxed);
        self.broken.store(false, Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
        true
    }

    /// Makes the place vacant, by the one who took it.
    fn leave(&self) {
        let version = self.version.load(Ordering::Relaxed);
        let alone = self.begin(version);
        debug_assert!(alone, "a place is left by its owner only");
        self.end.store(0, Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// Makes the version odd, if it is still this one.
    fn begin(&self, version: usize) -> bool {
        let odd = version.wrapping_add(1);
        let begun = self
            .version
            .compare_exchange(version, odd, Ordering::Acquire, Ordering::Relaxed)
            .is_ok();
        // Whoever sees what is stored next sees the odd version, too.
        fence(Ordering::Release);
        begun
    }

    /// The range, unless there is none or it changes right now.
    fn range(&self) -> Option<Range> {
        let version = self.version.load(Ordering::Acquire);
        let range = Range {
            start: self.start.load(Ordering::Relaxed),
            end: self.end.load(Ordering::Relaxed),
            writable: self.writable.load(Ordering::Relaxed),
        };
        fence(Ordering::Acquire);
        let still = self.version.load(Ordering::Relaxed) == version;
        (version & 1 == 0 && still && range.end != 0).then_some(range)
    }
}

impl Chunk {
    const fn new() -> Self {
        Chunk { places: [const { Place::new() }; PLACES], next: AtomicPtr::new(ptr::null_mut()) }
    }

    fn next(&self) -> Option<&'static Chunk> {
        // SAFETY: null, or a chunk that was leaked and so stays.
        // Test: `tests::there_are_as_many_places_as_are_needed`.
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }

    fn next_or_new(&self) -> &'static Chunk {
        if let Some(next) = self.next() {
            return next;
        }
        let new: &'static mut Chunk = Box::leak(Box::new(Chunk::new()));
        let new: *mut Chunk = new;
        let (none, success, failure) = (ptr::null_mut(), Ordering::AcqRel, Ordering::Acquire);
        match self.next.compare_exchange(none, new, success, failure) {
            // SAFETY: leaked, and only ever shared from now on.
            // Test: `tests::there_are_as_many_places_as_are_needed`.
            Ok(_) => unsafe { &*new },
            Err(theirs) => {
                // SAFETY: ours, which nobody has seen. Test: as above.
                drop(unsafe { Box::from_raw(new) });
                // SAFETY: a chunk that another thread leaked. Test: as above.
                unsafe { &*theirs }
            }
        }
    }
}

/// What happens on SIGBUS. Nothing here but atomics and system calls.
extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    keeping_errno(|| {
        // SAFETY: the kernel passes the handler what it was asked to (SA_SIGINFO).
        // Test: `tests::what_was_cut_off_reads_as_zeros`.
        let code = unsafe { (*info).si_code };
        // Its codes are positive; then there is an address, on s390x that of the page.
        let from_kernel = code > 0;
        // SAFETY: a field of the structure, and read only where it is an address. Test: as above.
        if from_kernel && mend(unsafe { (*info).si_addr() }.addr()) {
            return;
        }
        // Not of our ranges: the process ends as if there were no handler, by the same access once
        // more, or where no access made the signal, by the signal once more.
        let again = !from_kernel || code == libc::BUS_MCEERR_AO;
        if signals::restore(signal).is_ok() && again {
            // SAFETY: a number. It is blocked until this handler returns.
            // Test: `tests::sigbus_that_somebody_sends_kills`.
            unsafe { libc::raise(signal) };
        }
    });
}

/// Puts zeros where the range of `address` has lost its file; whether there is one and they are there.
fn mend(address: usize) -> bool {
    let page = address & !(PAGE.load(Ordering::Relaxed) - 1);
    let mut next = Some(&REGISTRY);
    while let Some(chunk) = next {
        for place in &chunk.places {
            let Some(range) = place.range().filter(|range| range.start <= page && page < range.end)
            else {
                continue;
            };
            place.broken.store(true, Ordering::Release);
            // Files of huge pages cannot be replaced from the middle of such a page.
            return put_zeros(page, range) || put_zeros(range.start, range);
        }
        next = chunk.next();
    }
    false
}

fn put_zeros(from: usize, range: Range) -> bool {
    let writable = if range.writable { libc::PROT_WRITE } else { 0 };
    // SAFETY: the pages belong to a range whose owner has registered it and still has it mapped, since
    // it was just accessed; that access, and all others to what the file has lost, would have ended
    // the process. Test: `tests::what_was_cut_off_reads_as_zeros`.
    let address = unsafe {
        libc::mmap(
            ptr::without_provenance_mut(from),
            range.end - from,
            libc::PROT_READ | writable,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    address != libc::MAP_FAILED
}

fn page() -> usize {
    // SAFETY: a number. Test: `tests::what_was_cut_off_reads_as_zeros`.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).expect("pages have a size")
}

#[cfg(test)]
pub(super) mod tests;
