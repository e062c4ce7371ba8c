//! Why a process could not be confined.

use std::io;
use std::time::Duration;

use super::User;

/// Why a process is not confined, or not wholly: it may have given up some of what it had, so it must
/// end and not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfinementError {
    /// It was confined before.
    #[error("this process is confined already: confine it once, with all that it is to lose")]
    Already,
    /// Nobody has written down the system calls of this architecture.
    #[error(
        "there is no filter of system calls for {0}, only for x86_64, aarch64, s390x and riscv64: \
         run with --sandbox off to do without"
    )]
    Architecture(&'static str),
    /// The kernel has no seccomp filters, or too old ones.
    #[error(
        "this kernel does not filter system calls ({0}), which needs Linux 4.14 with \
         CONFIG_SECCOMP_FILTER: run with --sandbox off to do without"
    )]
    NoSeccomp(#[source] io::Error),
    /// The kernel has them and did not take this one.
    #[error(
        "the kernel did not take a filter of {instructions} instructions: {source}; \
         run with --sandbox off to do without"
    )]
    Filter {
        /// Length of the program; the kernel takes up to 4096.
        instructions: usize,
        /// What the system said.
        source: io::Error,
    },
    /// A thread has a seccomp filter that the calling one lacks.
    #[error(
        "thread {0} has a filter of system calls of its own, so not all threads can have the same: \
         confine the process before it gets one, or run with --sandbox off to do without"
    )]
    OwnFilter(i64),
    /// The user cannot be changed to this one.
    #[error(
        "cannot become user {user}: {source}; this process runs as {now}: start it as root, or as \
         {user}, or leave --user out"
    )]
    User {
        /// The user asked for.
        user: User,
        /// Who it is.
        now: User,
        /// What the system said.
        source: io::Error,
    },
    /// The threads of the process cannot be looked at.
    #[error(
        "cannot see this process's threads in /proc/self/task: {0}; mount /proc, \
         or run with --sandbox off to do without"
    )]
    Proc(#[source] io::Error),
    /// A thread does not answer the signal that has it give up its privileges.
    #[error(
        "thread {id} ({name}) still had its privileges after {limit:?}: let it not block signal \
         {signal}, or start as an ordinary user, who has none"
    )]
    Thread {
        /// Its number.
        id: i32,
        /// Its name.
        name: String,
        /// How long it had time.
        limit: Duration,
        /// The signal that was sent.
        signal: i32,
    },
    /// Every real-time signal has a handler.
    #[error(
        "all real-time signals, {first} to {last}, have handlers, and one is needed to reach all \
         threads: leave one free, or start as an ordinary user"
    )]
    NoSignal {
        /// The first of them.
        first: i32,
        /// The last of them.
        last: i32,
    },
    /// The kernel refused what any process may do.
    #[error("the kernel refused {call}: {source}; run with --sandbox off to do without")]
    Refused {
        /// The call and its argument.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
}
