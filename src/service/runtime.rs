//! The runtime under a shard: tokio-uring where the machine allows io_uring, else plain tokio.
//!
//! This file is the only one that names either, so a successor of tokio-uring has one place to move
//! in. Both are a current-thread tokio runtime with local tasks; they differ in how file I/O gets to
//! the kernel, and the rest of the service does not notice.

use std::fmt;
use std::io;
use std::str::FromStr;

use io_uring::{IoUring, Probe, opcode};
use tokio::task::LocalSet;

/// Entries of a shard's io_uring submission queue.
const URING_ENTRIES: u32 = 1024;

/// What a service's file I/O runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// io_uring, through tokio-uring.
    IoUring,
    /// epoll, and threads for file I/O that would block.
    Epoll,
}

impl Driver {
    /// The name that options, reports and metric labels use.
    pub fn name(self) -> &'static str {
        match self {
            Driver::IoUring => "io_uring",
            Driver::Epoll => "epoll",
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which driver is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriverChoice {
    /// io_uring where it works, else epoll; the log says which and why.
    #[default]
    Auto,
    /// This one, or an error.
    Only(Driver),
}

/// A word that names no driver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a driver: use auto, io_uring or epoll")]
pub struct UnknownDriver(String);

impl FromStr for DriverChoice {
    type Err = UnknownDriver;

    fn from_str(word: &str) -> Result<Self, UnknownDriver> {
        match word {
            "auto" => Ok(DriverChoice::Auto),
            "io_uring" | "uring" => Ok(DriverChoice::Only(Driver::IoUring)),
            "epoll" => Ok(DriverChoice::Only(Driver::Epoll)),
            other => Err(UnknownDriver(other.to_owned())),
        }
    }
}

impl DriverChoice {
    /// Decides, as a service does when it is built. io_uring counts as working when a ring can be made
    /// that knows every operation that volumes use.
    ///
    /// # Errors
    ///
    /// io_uring is demanded and does not work.
    pub fn decide(self) -> io::Result<Driver> {
        match self {
            DriverChoice::Only(Driver::Epoll) => Ok(Driver::Epoll),
            DriverChoice::Only(Driver::IoUring) => try_uring().map(|()| Driver::IoUring),
            DriverChoice::Auto => Ok(match try_uring() {
                Ok(()) => Driver::IoUring,
                Err(error) => {
                    tracing::warn!(%error, "io_uring is refused here: running on epoll");
                    Driver::Epoll
                }
            }),
        }
    }
}

fn try_uring() -> io::Result<()> {
    let ring = IoUring::new(8)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Fallocate::CODE,
    ];
    match needed.iter().all(|code| probe.is_supported(*code)) {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel's io_uring lacks file operations",
        )),
    }
}

/// A current-thread runtime with local tasks, made and used on one thread.
pub(crate) enum Runtime {
    Uring(tokio_uring::Runtime),
    Epoll(tokio::runtime::Runtime, LocalSet),
}

impl Runtime {
    /// # Errors
    ///
    /// The system has no ring, epoll or memory to give.
    pub(crate) fn new(driver: Driver) -> io::Result<Self> {
        Ok(match driver {
            Driver::IoUring => Runtime::Uring(tokio_uring::Runtime::new(
                tokio_uring::builder().entries(URING_ENTRIES),
            )?),
            Driver::Epoll => Runtime::Epoll(
                tokio::runtime::Builder::new_current_thread().enable_all().build()?,
                LocalSet::new(),
            ),
        })
    }

    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        match self {
            Runtime::Uring(runtime) => runtime.block_on(future),
            Runtime::Epoll(runtime, local) => runtime.block_on(local.run_until(future)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driver_words() {
        assert_eq!("auto".parse(), Ok(DriverChoice::Auto));
        assert_eq!("epoll".parse(), Ok(DriverChoice::Only(Driver::Epoll)));
        assert_eq!(Driver::IoUring.to_string().parse(), Ok(DriverChoice::Only(Driver::IoUring)));
        assert!("aio".parse::<DriverChoice>().unwrap_err().to_string().contains("'aio'"));
    }
}
