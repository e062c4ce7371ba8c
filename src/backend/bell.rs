//! Signalling an eventfd that somebody else has, without ever waiting.
//!
//! A write to an eventfd whose counter is full waits for its reader, and whether it would cannot be asked
//! beforehand: the reader may fill it in between, and may undo O_NONBLOCK, as the descriptor is theirs, too. The
//! kernel itself signals without waiting (`eventfd_signal`), and does so for whoever asks it to tell of
//! asynchronous I/O: so an empty read of a file in memory is submitted (io_submit(2), IOCB_FLAG_RESFD), which is over
//! when the call returns, and the eventfd is what it tells.

use std::cell::OnceCell;
use std::fs::File;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};

/// Events of signals that may gather before they are fetched.
const EVENTS: usize = 64;

/// Signals after which they are.
const FETCHED: u32 = 32;

/// `struct iocb` of `include/uapi/linux/aio_abi.h`.
#[repr(C)]
struct Request {
    data: u64,
    /// Key and flags, which changes its order with the byte order of the machine; both zero.
    key_and_flags: u64,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}

const _: () = assert!(size_of::<Request>() == 64);

/// IOCB_CMD_PREAD.
const READ: u16 = 0;

/// IOCB_FLAG_RESFD.
const TELL_EVENTFD: u32 = 1;

thread_local! {
    static BELL: OnceCell<Option<Bell>> = const { OnceCell::new() };
}

/// A thread's context of asynchronous I/O.
struct Bell {
    context: libc::c_ulong,
    /// Empty.
    file: OwnedFd,
    rung: std::cell::Cell<u32>,
}

/// Makes what [`ring`] needs on this thread, before it may make system calls of that kind no more. Whether the
/// kernel has it.
pub(crate) fn prepare() -> bool {
    with_bell(|bell| bell.is_some())
}

fn with_bell<R>(with: impl FnOnce(Option<&Bell>) -> R) -> R {
    BELL.with(|bell| with(bell.get_or_init(|| Bell::new().ok()).as_ref()))
}

/// Adds one to the counter of an eventfd; one that is full stays as it is, and signals as it is. Nobody hears of what
/// else goes wrong with it, as in the kernel.
pub(super) fn ring(eventfd: &File) {
    let rung = with_bell(|bell| bell.is_some_and(|bell| bell.ring(eventfd).is_ok()));
    if !rung && has_room(eventfd) {
        // The kernel has no asynchronous I/O: a reader who fills it just now makes this wait.
        let mut eventfd = eventfd;
        let _ = eventfd.write(&1u64.to_ne_bytes());
    }
}

/// Whether the counter can take one more.
fn has_room(eventfd: &File) -> bool {
    let mut polled = [PollFd::new(eventfd, PollFlags::OUT)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&at_once)).is_ok_and(|ready| ready == 1)
}

impl Bell {
    fn new() -> io::Result<Self> {
        let file = memfd_create("vfio-ccw-bell", MemfdFlags::CLOEXEC)?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel stores one word, the context, where the second argument points.
        // Test: `a_full_counter_holds_nobody_up`.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, EVENTS, &raw mut context) };
        match made {
            0 => Ok(Bell { context, file, rung: 0.into() }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn ring(&self, eventfd: &File) -> io::Result<()> {
        let request = Request {
            data: 0,
            key_and_flags: 0,
            opcode: READ,
            priority: 0,
            file: self.file.as_raw_fd() as u32,
            buffer: 0,
            bytes: 0,
            offset: 0,
            reserved: 0,
            flags: TELL_EVENTFD,
            eventfd: eventfd.as_raw_fd() as u32,
        };
        let requests = [&raw const request];
        // SAFETY: the list has one pointer, to a request that outlives the call and reads no bytes; the kernel is
        // done with it when it returns. Test: `each_ring_is_counted_once`.
        let submitted =
            unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, requests.as_ptr()) };
        if submitted != 1 {
            return Err(io::Error::last_os_error());
        }
        self.rung.set(self.rung.get() + 1);
        if self.rung.get() >= FETCHED {
            self.fetch();
        }
        Ok(())
    }

    /// Fetches the events of what was rung, so that there is room for more.
    #[cold]
    fn fetch(&self) {
        /// Bytes of `struct io_event`.
        const EVENT: usize = 32;
        self.rung.set(0);
        let mut events = MaybeUninit::<[u64; EVENTS * EVENT / 8]>::uninit();
        // SAFETY: there is room for as many events as are asked for, and nobody reads them.
        // Test: `each_ring_is_counted_once`.
        let _ = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                0,
                EVENTS,
                events.as_mut_ptr(),
                std::ptr::null::<libc::timespec>(),
            )
        };
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        // SAFETY: the context is this one's, and ends with it. Test: `a_context_goes_with_its_thread`.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::io::Read;

    fn count(mut eventfd: &File) -> u64 {
        let mut bytes = [0; 8];
        eventfd.read_exact(&mut bytes).unwrap();
        u64::from_ne_bytes(bytes)
    }

    #[test]
    fn each_ring_is_counted_once() {
        if !prepare() {
            println!("SKIPPED: this kernel has no asynchronous I/O, or refuses it");
        }
        let bell = File::from(eventfd(0, EventfdFlags::empty()).unwrap());
        for rings in [1, 2, 31, 32, 33, 1000] {
            (0..rings).for_each(|_| ring(&bell));
            assert_eq!(count(&bell), rings);
        }
    }

    #[test]
    fn a_full_counter_holds_nobody_up() {
        // A descriptor that waits where it is full.
        let mut bell = File::from(eventfd(0, EventfdFlags::empty()).unwrap());
        bell.write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
        (0..3).for_each(|_| ring(&bell));
        assert!(count(&bell) >= u64::MAX - 1);
        ring(&bell);
        assert_eq!(count(&bell), 1);
    }

    #[test]
    fn what_is_no_eventfd_is_let_be() {
        let (mut reader, writer) = io::pipe().unwrap();
        if prepare() {
            with_bell(|bell| {
                let file = File::from(OwnedFd::from(writer));
                assert!(bell.unwrap().ring(&file).is_err());
            });
            let mut nothing = Vec::new();
            assert_eq!(reader.read_to_end(&mut nothing).unwrap(), 0);
        }
    }

    #[test]
    fn a_context_goes_with_its_thread() {
        // Each takes some of what the system has for all (`fs.aio-max-nr`), and gives it back, which takes a while.
        for _ in 0..4 {
            let prepared = std::thread::spawn(prepare).join().unwrap();
            assert_eq!(prepared, prepare());
        }
    }
}
