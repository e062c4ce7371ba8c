//! Devices in another process, over vfio-user: the client's side.
//!
//! The back end has two halves on the shard's thread. `Remote` is what starts programs and sees their end; the
//! `Link` is a task that has the connection, and makes a new one when it is lost. Between them is the
//! `Port`. Where the server knows lanes, programs go over one that all devices of a server's process share
//! (`Trunk`), and the connection rests; else each start is a message, and each status another.
//!
//! Nothing here waits for the server but the link: a server that does nothing, or something else than it should, costs
//! its own devices their programs.
//!
//! | part | file |
//! |---|---|
//! | a device that a VMM names, and connecting to it | this file, `handshake.rs` |
//! | commands and their replies | `conversation.rs` |
//! | the connection, lost and made again | `link.rs` |
//! | how far a program is | `port.rs` |
//! | lanes | `trunk.rs` |
//! | the sockets that a path names | `sockets.rs` |

mod conversation;
mod handshake;
mod link;
mod port;
mod sockets;
mod trunk;

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use vfio_ccw_metrics::DeviceClass;

use crate::architecture::Schib;
use crate::backend::Errno;
use crate::vfio_user::{Version, VersionError};

pub(crate) use handshake::Greeted;
pub(crate) use link::{Link, Owner};
pub(crate) use port::{Port, Remote};
pub use sockets::sockets;
pub(crate) use trunk::Trunks;

/// How long a server may take for all that comes before the first program.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no device at a socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// Nobody is there.
    #[error("socket {}: {source}{}", .path.display(), remedy_of_connect(.source))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The server does not answer.
    #[error(
        "socket {}: the server has not answered for {PATIENCE:?} (it serves one client at a time: is another one connected?)",
        .path.display()
    )]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// The server speaks, but not as it should, or of something else.
    #[error("socket {}: {source}", .path.display())]
    Server {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        source: ServerFault,
    },
}

/// What is wrong with a server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerFault {
    /// The connection broke.
    #[error("the connection is over: {0}")]
    Lost(String),
    /// No version that both know.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// A command was refused that must not be.
    #[error("the server refuses {what}: {errno}")]
    Refused {
        /// Which.
        what: &'static str,
        /// What it says.
        errno: Errno,
    },
    /// A message that is no reply to what was asked.
    #[error("the server does not keep to version {0}.{1} of the protocol: {what}", Version::OURS.major, Version::OURS.minor)]
    Protocol {
        /// What it does instead.
        what: String,
    },
    /// It serves a device of another kind.
    #[error("the device has flags {flags:#x}, without that of a channel device (0x10)")]
    NotCcw {
        /// The flags of its device.
        flags: u32,
    },
    /// A region is missing, or not as it must be.
    #[error("region {index} of the device is not the {name} region of {expected} bytes")]
    Region {
        /// Which region.
        index: u32,
        /// What it should be.
        name: &'static str,
        /// Bytes that it should have.
        expected: usize,
    },
    /// The device has no eventfd for its I/O interrupt.
    #[error("the device has no eventfd for its I/O interrupt")]
    NoInterrupt,
    /// No descriptor or memory is left.
    #[error("the system has no room for it: {0}")]
    System(#[from] io::Error),
}

fn remedy_of_connect(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            " (start the server: 'vfio-ccw serve --device null --socket PATH')"
        }
        io::ErrorKind::ConnectionRefused => " (its server has ended: start it again)",
        io::ErrorKind::PermissionDenied => {
            " (this user may not: see 'vfio-ccw serve --socket-mode')"
        }
        _ => "",
    }
}

/// A device that another process serves over vfio-user.
///
/// To be attached with [`DeviceSpec::remote`](crate::DeviceSpec::remote), once. Guest memory has to be in a file
/// that both processes map, such as a memfd. When the server ends, programs under way end with
/// interface-control check, starts get condition code 3, and channel reports tell of that and of its coming
/// back: a new connection is tried until the device is detached.
pub struct RemoteDevice {
    path: PathBuf,
    class: DeviceClass,
    knows_lanes: bool,
    schib: Schib,
    is_attached: AtomicBool,
    /// The connection, until the shard has it.
    first: Mutex<Option<(UnixStream, Greeted)>>,
}

impl RemoteDevice {
    /// Connects to the device that is served at the socket `path`. Waits for the server, five seconds at most.
    ///
    /// # Errors
    ///
    /// See [`RemoteError`].
    pub fn connect(path: &Path) -> Result<Self, RemoteError> {
        let failed = |source| RemoteError::Connect { path: path.to_owned(), source };
        RemoteDevice::over(UnixStream::connect(path).map_err(failed)?, path)
    }

    /// The same over a connection that is made already. When it is lost, a new one is made to the socket `path`.
    ///
    /// # Errors
    ///
    /// See [`RemoteError`].
    pub fn over(stream: UnixStream, path: &Path) -> Result<Self, RemoteError> {
        let failed = |source| RemoteError::Connect { path: path.to_owned(), source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(failed)?;
        let greeted = runtime.block_on(handshake::greet(stream));
        let (stream, greeted) = greeted.map_err(|error| match error {
            None => RemoteError::Silent { path: path.to_owned() },
            Some(source) => RemoteError::Server { path: path.to_owned(), source },
        })?;
        Ok(RemoteDevice {
            path: path.to_owned(),
            class: DeviceClass::Other,
            knows_lanes: true,
            schib: greeted.schib,
            is_attached: AtomicBool::new(false),
            first: Mutex::new(Some((stream, greeted))),
        })
    }

    /// Says what kind of device it is: policies and metrics go by that. Default: other.
    #[must_use]
    pub fn with_class(mut self, class: DeviceClass) -> Self {
        self.class = class;
        self
    }

    /// Each start is a message, also where the server knows lanes.
    #[must_use]
    pub fn without_lane(mut self) -> Self {
        self.knows_lanes = false;
        self
    }

    /// What kind of device it is taken for.
    pub fn class(&self) -> DeviceClass {
        self.class
    }

    /// The socket that it is served at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How its subchannel was when it was connected to.
    pub fn schib(&self) -> &Schib {
        &self.schib
    }

    pub(crate) fn knows_lanes(&self) -> bool {
        self.knows_lanes
    }

    /// The connection, for the shard; `None` where it was taken before.
    pub(crate) fn take(&self) -> Option<(UnixStream, Greeted)> {
        self.first.lock().take()
    }

    /// It is attached to a service from now on; `false` if it was before.
    pub(crate) fn attach(&self) -> bool {
        // Relaxed: nothing else is handed over with it.
        !self.is_attached.swap(true, Ordering::Relaxed)
    }
}

impl fmt::Debug for RemoteDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteDevice").field("path", &self.path).finish_non_exhaustive()
    }
}
