//! A process that serves hostile clients gives up all that it does not need any more.
//!
//! [`Confinement::enter`] is called when files, sockets and rings are open and the threads run. From
//! then on the process, all threads of it, has no capabilities and gets none, may be another user,
//! opens no files, makes no sockets, runs no programs and no new code. It moves data through what is
//! open, accepts connections, maps memory that clients send, and makes threads.
//!
//! A client can still cut short the file of the memory that it shares. [`truncation`] keeps that from
//! killing the process.
//!
//! What is not kept out: a ring of io_uring that is open can open files and make sockets with the
//! rights of the process, and no filter sees it. Who wants that closed runs on epoll, see
//! [`Confinement::io_uring`]. On s390x the kernel takes mmap's arguments from memory, where a filter
//! cannot see that a mapping is executable; PR_SET_MDWE (Linux 6.3) refuses those that are writable.

#[cfg(test)]
mod alone;
mod error;
mod privileges;
mod seccomp;
mod signals;
mod threads;
pub mod truncation;
mod user;

use std::fmt;

use parking_lot::Mutex;

pub use error::ConfinementError;
pub use user::{NoUser, User};

/// Whether the process has been confined. The filter allows no second time.
static ENTERED: Mutex<bool> = Mutex::new(false);

/// What a process is to be left with.
///
/// ```no_run
/// use vfio_ccw::confinement::Confinement;
///
/// // Sockets are bound, images are open, threads run.
/// let confined = Confinement::new().user("65534:65534".parse()?).enter()?;
/// println!("confined: {confined}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Confinement {
    user: Option<User>,
    io_uring: bool,
}

impl Confinement {
    /// The same user, and no io_uring.
    #[must_use]
    pub fn new() -> Self {
        Confinement::default()
    }

    /// Becomes this user and group, in no further groups. That takes root, or being it already.
    #[must_use]
    pub fn user(mut self, user: User) -> Self {
        self.user = Some(user);
        self
    }

    /// Whether rings that are open may be used. There are no new ones either way.
    #[must_use]
    pub fn io_uring(mut self, used: bool) -> Self {
        self.io_uring = used;
        self
    }

    /// Confines the process, all its threads and those to come, for ever.
    ///
    /// Services are built before: a [`Service`](crate::Service) reads /proc when it starts, and may
    /// need rings. Memory is locked up to RLIMIT_MEMLOCK from now on, since CAP_IPC_LOCK is gone: who
    /// relied on that raises the limit first. A socket's file stays when the process ends: nothing
    /// is unlinked any more.
    ///
    /// Threads may see calls end with EINTR: where they have capabilities, each is sent a real-time
    /// signal, and where the user changes, the C library sends one, too.
    ///
    /// # Errors
    ///
    /// What is wanted cannot be had. [`ConfinementError::Architecture`] and
    /// [`ConfinementError::NoSeccomp`] are found before anything is given up; after any other the
    /// process should end.
    pub fn enter(&self) -> Result<Confined, ConfinementError> {
        let mut entered = ENTERED.lock();
        if *entered {
            return Err(ConfinementError::Already);
        }
        let filter = seccomp::Filter::new(self.io_uring)?;
        let threads = privileges::give_up(self.user)?;
        let exec_gain_refused = privileges::deny_new_code();
        filter.install()?;
        *entered = true;
        Ok(Confined { user: self.user, threads, exec_gain_refused, io_uring: self.io_uring })
    }
}

/// What was achieved. Shown in a log's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Confined {
    /// Who the process became, if that was asked for.
    pub user: Option<User>,
    /// Threads that there were.
    pub threads: usize,
    /// Whether the kernel has PR_SET_MDWE, so that it refuses memory that is written and executed.
    pub exec_gain_refused: bool,
    /// Whether open rings may be used.
    pub io_uring: bool,
}

impl fmt::Display for Confined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = self.user {
            write!(f, "user {user}, ")?;
        }
        write!(f, "no capabilities, system calls filtered in {} threads", self.threads)?;
        f.write_str(if self.io_uring { ", open io_urings usable" } else { ", no io_uring" })?;
        if !self.exec_gain_refused {
            f.write_str(", no PR_SET_MDWE in this kernel")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
