//! What a child process may not do: be root, lock memory, use io_uring. And signals to it.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The user "nobody".
const NOBODY: libc::uid_t = 65_534;

/// Whether this process is root, so that it can make others less.
pub fn is_root() -> bool {
    // SAFETY: it has no arguments and cannot fail.
    // Test: `operator_errors::an_image_that_may_not_be_read`.
    unsafe { libc::geteuid() == 0 }
}

/// Lets the child start with at most `bytes` of locked memory and without the right to exceed it:
/// as nobody, where this process is root.
pub fn limit_locked_memory(command: &mut Command, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes as libc::rlim_t, rlim_max: bytes as libc::rlim_t };
    // SAFETY: between fork and exec the closure makes one system call on its own copy of the
    // structure. Test: `operator_errors::a_small_memlock_limit_is_lived_with`.
    unsafe {
        command.pre_exec(move || checked(libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit)));
    }
    become_nobody(command);
}

/// Lets the child run as nobody, where this process is root; else as this user.
pub fn become_nobody(command: &mut Command) {
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
}

/// Lets every io_uring call of the child fail with `errno`.
pub fn refuse_io_uring(command: &mut Command, errno: i32) {
    let filter = io_uring_filter(errno);
    // SAFETY: between fork and exec the closure makes two system calls; the filter it names was
    // built before and moved into it. Test: `io_uring_refused::the_job_runs_on_epoll`.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog {
                len: filter.len() as libc::c_ushort,
                filter: filter.as_ptr().cast_mut(),
            };
            checked(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            checked(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program))
        });
    }
}

/// A classic BPF program over `struct seccomp_data`, whose first word is the system-call number.
/// Children use the same system-call table as this process, so the architecture is not looked at.
fn io_uring_filter(errno: i32) -> [libc::sock_filter; 6] {
    let step =
        |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let equals = |number: libc::c_long, jt| {
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number as u32, jt, 0)
    };
    let end = |action: u32| step(libc::BPF_RET | libc::BPF_K, action, 0, 0);
    [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        equals(libc::SYS_io_uring_setup, 3),
        equals(libc::SYS_io_uring_enter, 2),
        equals(libc::SYS_io_uring_register, 1),
        end(libc::SECCOMP_RET_ALLOW),
        end(libc::SECCOMP_RET_ERRNO | errno as u32),
    ]
}

/// Sends `signal` to process `id`, a child that has not been waited for.
pub fn send(id: u32, signal: i32) {
    // SAFETY: plain numbers; the child was not waited for, so the number is still its own.
    // Test: `main_job::a_signal_ends_the_job_with_its_report`.
    checked(unsafe { libc::kill(id as libc::pid_t, signal) }).expect("the child is there");
}

fn checked(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
