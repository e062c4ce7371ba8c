//! A filter of system calls: what this process may ask of the kernel from now on.
//!
//! Of our own and not seccompiler's, which does not know s390x.
//!
//! What a filter cannot see: the operations of an io_uring that is there already, which can open
//! files and make sockets with the rights of the process (io_uring_enter(2)). A process that runs on
//! epoll refuses io_uring altogether. And on s390x the arguments of mmap, see
//! [`Architecture::mmap_protection`]; there PR_SET_MDWE alone keeps data from becoming code.

mod calls;
mod program;

use std::env::consts::ARCH;
use std::io;
use std::process;

use libc::{c_long, c_uint, c_ulong, sock_filter};

use super::ConfinementError;

use program::Architecture;

/// A filter that the kernel can be expected to take.
#[derive(Debug)]
pub(super) struct Filter(Vec<sock_filter>);

impl Filter {
    /// The filter of this process. Without `io_uring`, that is refused.
    pub(super) fn new(io_uring: bool) -> Result<Self, ConfinementError> {
        let architecture = Architecture::HOST.ok_or(ConfinementError::Architecture(ARCH))?;
        let action: u32 = libc::SECCOMP_RET_KILL_PROCESS;
        // SAFETY: the kernel reads one word, which outlives the call.
        // Test: `confined::another_program_kills`.
        unsafe { seccomp(libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) }
            .map_err(ConfinementError::NoSeccomp)?;
        let rules = calls::rules(architecture, process::id(), io_uring);
        Ok(Filter(program::program(architecture, &rules, calls::DEFAULT)))
    }

    /// Puts all threads under the filter, for ever. The caller must have no new privileges
    /// (PR_SET_NO_NEW_PRIVS), which the others get with the filter.
    pub(super) fn install(&self) -> Result<(), ConfinementError> {
        let instructions = self.0.len();
        let program = libc::sock_fprog {
            len: u16::try_from(instructions).expect("BPF_MAXINSNS is 4096"),
            filter: self.0.as_ptr().cast_mut(),
        };
        let (operation, every_thread) =
            (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC);
        // SAFETY: the kernel copies the program, which outlives the call, and checks it.
        // Test: `confined::another_program_kills`.
        match unsafe { seccomp(operation, every_thread, &raw const program) } {
            Ok(0) => Ok(()),
            Ok(thread) => Err(ConfinementError::OwnFilter(thread)),
            Err(source) => Err(ConfinementError::Filter { instructions, source }),
        }
    }
}

/// seccomp(2), for which the C library has no function.
///
/// # Safety
///
/// `argument` points to what the kernel reads for `operation`.
unsafe fn seccomp<T>(operation: c_uint, flags: c_ulong, argument: *const T) -> io::Result<c_long> {
    // SAFETY: the caller vouches for the argument. Test: `confined::another_program_kills`.
    match unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, argument) } {
        result @ 0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests;
