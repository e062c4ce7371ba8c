//! Signals: what they do, and one thread sent one.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use libc::{c_int, pid_t, sigaction, siginfo_t};

/// A handler that is told where and why.
pub(super) type Detailed = extern "C" fn(c_int, *mut siginfo_t, *mut libc::c_void);

/// Whether nobody handles `signal`.
pub(super) fn is_free(signal: c_int) -> bool {
    let mut now = MaybeUninit::<sigaction>::uninit();
    // SAFETY: the kernel writes the structure if it answers 0.
    // Test: `tests::every_thread_gives_up_its_capabilities`.
    unsafe {
        sigaction(signal, ptr::null(), now.as_mut_ptr()) == 0
            && matches!(now.assume_init().sa_sigaction, libc::SIG_DFL | libc::SIG_IGN)
    }
}

/// Has `signal` run `handler`, which may only do what is safe whenever it comes (signal-safety(7)).
pub(super) fn handle(signal: c_int, handler: extern "C" fn(c_int)) -> io::Result<()> {
    set(signal, handler as *const () as usize, libc::SA_RESTART)
}

/// The same with details, on the thread's alternate stack where it has one.
pub(super) fn handle_detailed(signal: c_int, handler: Detailed) -> io::Result<()> {
    set(signal, handler as *const () as usize, libc::SA_SIGINFO | libc::SA_ONSTACK)
}

/// Has `signal` do nothing; what is pending is gone.
pub(super) fn ignore(signal: c_int) -> io::Result<()> {
    set(signal, libc::SIG_IGN, 0)
}

/// Has `signal` do what it does by itself. May be called in a handler.
pub(super) fn restore(signal: c_int) -> io::Result<()> {
    set(signal, libc::SIG_DFL, 0)
}

fn set(signal: c_int, action: usize, flags: c_int) -> io::Result<()> {
    // SAFETY: all zeros is a sigaction with no flags and nothing blocked.
    // Test: `truncation::tests::what_was_cut_off_reads_as_zeros`.
    let mut new: sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    new.sa_sigaction = action;
    new.sa_flags = flags;
    // SAFETY: the kernel reads the structure; the action is one of its constants or a function of the
    // kind that the flags say. Test: as above.
    match unsafe { sigaction(signal, &new, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends `signal` to one thread of process `process`; whether it was there to take it.
pub(super) fn send(process: u32, thread: pid_t, signal: c_int) -> bool {
    // SAFETY: plain numbers. Test: `tests::every_thread_gives_up_its_capabilities`.
    unsafe { libc::syscall(libc::SYS_tgkill, process as pid_t, thread, signal) == 0 }
}

/// Keeps errno as it was: a handler may come between a call and the look at its error.
pub(super) fn keeping_errno<T>(act: impl FnOnce() -> T) -> T {
    // SAFETY: the C library's pointer to this thread's errno, valid as long as the thread.
    // Test: `truncation::tests::errno_stays`.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above. Test: as above.
    let before = unsafe { errno.read() };
    let answer = act();
    // SAFETY: as above. Test: as above.
    unsafe { errno.write(before) };
    answer
}
