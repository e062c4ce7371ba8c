use super::*;
use crate::confinement::alone::{alone, killed_by};
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::sync::Barrier;
use std::thread;

const PAGES: usize = 8;

/// A memory file, mapped.
struct Mapped {
    file: File,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the value, and its bytes are accessed one by one and volatile. Test: `threads_fault_while_others_register`.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// All of it is ones.
    fn new(writable: bool) -> Self {
        let len = PAGES * page();
        let file = File::from(rustix::fs::memfd_create("cut", MemfdFlags::CLOEXEC).unwrap());
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![1; len], 0).unwrap();
        let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        // SAFETY: a new mapping, wherever the kernel likes. Test: `what_was_cut_off_reads_as_zeros`.
        let start = unsafe {
            use std::os::fd::AsRawFd;
            libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        assert_ne!(start, libc::MAP_FAILED);
        Mapped { file, start: NonNull::new(start.cast()).unwrap(), len }
    }

    fn guard(&self, writable: bool) -> Guarded {
        Guarded::register(self.start, self.len, writable)
    }

    fn cut(&self, pages: usize) {
        self.file.set_len((pages * page()) as u64).unwrap();
    }

    /// The first byte of a page.
    fn read(&self, at: usize) -> u8 {
        // SAFETY: in the mapping. Test: `what_was_cut_off_reads_as_zeros`.
        unsafe { self.start.add(at * page()).read_volatile() }
    }

    fn write(&self, at: usize, byte: u8) {
        // SAFETY: in the mapping. Test: `what_was_cut_off_reads_as_zeros`.
        unsafe { self.start.add(at * page()).write_volatile(byte) };
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping ends with its value. Test: `what_was_cut_off_reads_as_zeros`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// For a process that may do little: a file is cut short, and its memory is zeros.
pub(in crate::confinement) fn cut_and_touch() {
    let cut = Mapped::new(true);
    let guard = cut.guard(true);
    cut.cut(0);
    assert_eq!(cut.read(0), 0);
    assert!(guard.is_broken());
    println!("zeros under the filter");
}

#[test]
fn what_was_cut_off_reads_as_zeros() {
    install().unwrap();
    install().unwrap();
    let (cut, other) = (Mapped::new(true), Mapped::new(true));
    let (guard, other_guard) = (cut.guard(true), other.guard(true));
    assert!(!guard.is_broken());
    cut.cut(0);
    assert_eq!(cut.read(0), 0);
    assert!(guard.is_broken());
    for at in 0..PAGES {
        assert_eq!(cut.read(at), 0);
        cut.write(at, 7);
        assert_eq!(cut.read(at), 7);
    }
    assert!(!other_guard.is_broken());
    assert!((0..PAGES).all(|at| other.read(at) == 1));
    assert_eq!(cut.file.metadata().unwrap().len(), 0, "nothing reaches the file");
}

#[test]
fn a_write_may_be_the_first_access() {
    install().unwrap();
    let cut = Mapped::new(true);
    let guard = cut.guard(true);
    cut.cut(0);
    cut.write(3, 9);
    assert_eq!((cut.read(3), cut.read(4)), (9, 0));
    assert_eq!((cut.read(2), cut.read(3)), (0, 0), "zeros again from where it is touched earlier");
    assert!(guard.is_broken());
}

#[test]
fn what_the_file_still_has_stays() {
    install().unwrap();
    let cut = Mapped::new(false);
    let guard = cut.guard(false);
    cut.cut(3);
    assert_eq!(cut.read(2), 1);
    assert!(!guard.is_broken());
    assert_eq!((cut.read(5), cut.read(7)), (0, 0));
    assert!(guard.is_broken());
    assert_eq!((cut.read(0), cut.read(2)), (1, 1));
    assert_eq!(cut.read(3), 0, "before the first that was touched, and cut off as well");
}

#[test]
fn the_last_page_counts_though_the_range_ends_within_it() {
    install().unwrap();
    let cut = Mapped::new(true);
    let guard = Guarded::register(cut.start, (PAGES - 1) * page() + 1, true);
    cut.cut(0);
    assert_eq!(cut.read(PAGES - 1), 0);
    assert!(guard.is_broken());
}

#[test]
fn errno_stays() {
    install().unwrap();
    let cut = Mapped::new(true);
    let _guard = cut.guard(true);
    cut.cut(0);
    // SAFETY: this thread's errno. Test: this one.
    let errno = unsafe { &mut *libc::__errno_location() };
    *errno = libc::EXDEV;
    let byte = cut.read(0);
    assert_eq!((*errno, byte), (libc::EXDEV, 0));
}

#[test]
fn there_are_as_many_places_as_are_needed() {
    let mapped = Mapped::new(true);
    let chunks = || std::iter::successors(Some(&REGISTRY), |chunk| chunk.next()).count();
    let many = |count| (0..count).map(|_| mapped.guard(true)).collect::<Vec<_>>();
    drop(many(5 * PLACES));
    let before = chunks();
    assert!(before >= 5);
    for _ in 0..50 {
        drop(many(3 * PLACES));
    }
    assert!(chunks() <= before + 1, "places are taken again");
    // With the handler's eyes: none of them is there any more.
    let addresses = mapped.start.as_ptr().addr()..mapped.start.as_ptr().addr() + mapped.len;
    let all = std::iter::successors(Some(&REGISTRY), |chunk| chunk.next());
    let ranges = all.flat_map(|chunk| &chunk.places).filter_map(Place::range);
    assert_eq!(ranges.filter(|range| addresses.contains(&range.start)).count(), 0);
}

#[test]
fn threads_fault_while_others_register() {
    const ROUNDS: usize = 200;
    install().unwrap();
    let start = Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                start.wait();
                for _ in 0..ROUNDS {
                    let cut = Mapped::new(true);
                    let guard = cut.guard(true);
                    cut.cut(0);
                    // Two threads in one range.
                    thread::scope(|both| {
                        both.spawn(|| assert_eq!(cut.read(5), 0));
                        assert_eq!(cut.read(1), 0);
                    });
                    assert!(guard.is_broken());
                }
            });
            scope.spawn(|| {
                start.wait();
                for round in 0..ROUNDS * 20 {
                    let address =
                        NonNull::new(ptr::without_provenance_mut(page() * (1 + round % 7)));
                    let guard = Guarded::register(address.unwrap(), page(), round % 2 == 0);
                    assert!(!guard.is_broken());
                }
            });
        }
    });
}

#[test]
fn a_range_that_is_guarded_no_more_kills() {
    let name = "confinement::truncation::tests::a_range_that_is_guarded_no_more_kills";
    let output = alone(name, || {
        install().unwrap();
        let (cut, other) = (Mapped::new(true), Mapped::new(true));
        drop(cut.guard(true));
        let _other = other.guard(true);
        cut.cut(0);
        cut.read(0);
        unreachable!("it has died");
    });
    if let Some(output) = output {
        killed_by(&output, libc::SIGBUS);
    }
}

#[test]
fn sigbus_that_somebody_sends_kills() {
    let name = "confinement::truncation::tests::sigbus_that_somebody_sends_kills";
    let output = alone(name, || {
        install().unwrap();
        let mapped = Mapped::new(true);
        let _guard = mapped.guard(true);
        // SAFETY: a number. Test: this one.
        unsafe { libc::raise(libc::SIGBUS) };
        unreachable!("it has died");
    });
    if let Some(output) = output {
        killed_by(&output, libc::SIGBUS);
    }
}
