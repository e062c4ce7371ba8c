//! Channel devices served to other processes over vfio-user.
//!
//! A [`Server`] is one thread. Each device has a socket of its own, and one client at a time; whoever comes
//! meanwhile waits. What a device is to its client is a [`VfioDevice`]: regions, interrupts and windows of
//! the kernel's driver. `docs/REMOTE.md` has the wire.
//!
//! | part | file |
//! |---|---|
//! | what is served, and running it | this file |
//! | one device, and whoever uses it | `seat.rs` |
//! | a client's messages | `session.rs` |
//! | its memory | `memory.rs` |
//! | its connection | `connection.rs` |
//! | programs that come over a lane | `lanes.rs` |
//! | figures | `tally.rs` |

mod connection;
mod lanes;
mod memory;
mod seat;
mod session;
mod tally;

use std::fs::{self, Permissions};
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use vfio_ccw_metrics::{Registry, SeriesError};
use vfio_ccw_queues::WaitStrategy;

use crate::architecture::Pmcw;
use crate::backend::{VfioDevice, bell};
use crate::channel_subsystem::{Device, Fba, Null};
use crate::confinement::truncation;
use crate::service::runtime::Runtime;
use crate::service::{Driver, DriverChoice};
use crate::vfio_user::Wire;
use crate::volume::{FileIo, Spans, Volume, Workers};
use seat::{House, Seat};
use tally::Tally;

/// Threads for file I/O that would block, where there is no io_uring.
const FILE_THREADS: usize = 4;

/// Identifier of the channel path that all devices of a server are on. Guests take 0 for "none".
const CHPID: u8 = 1;

/// Why devices cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// Another process serves something there.
    #[error("socket {}: another process listens on it; end that, or choose another path", .path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("socket {}: there is something that is no socket; choose another path", .path.display())]
    NotASocket {
        /// What is there.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("socket {}: {source}{}", .path.display(), remedy_of_bind(.path, .source))]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// io_uring is demanded and does not work.
    #[error("io_uring cannot be used: {0}; choose driver epoll or auto")]
    IoUring(#[source] io::Error),
    /// The runtime, its threads, or what it waits for cannot be made.
    #[error("the server cannot start: {0}")]
    Start(#[source] io::Error),
    /// The registry has the figures of another server.
    #[error(transparent)]
    Registry(#[from] SeriesError),
    /// Whoever was told that the server is ready has objected.
    #[error(transparent)]
    NotReady(Box<dyn std::error::Error + Send + Sync>),
}

/// What is done about a socket that cannot be made.
fn remedy_of_bind(path: &Path, error: &io::Error) -> String {
    // `sun_path`, with its NUL.
    const LONGEST: usize = 107;
    let long = path.as_os_str().len();
    match error.kind() {
        io::ErrorKind::NotFound => " (make its folder first)".to_owned(),
        io::ErrorKind::PermissionDenied => " (this user may not write to its folder)".to_owned(),
        _ if long > LONGEST => format!(" (the path has {long} bytes, and {LONGEST} are possible)"),
        _ => String::new(),
    }
}

/// A device for a [`Server`].
pub struct ServedDevice {
    make: Box<dyn FnOnce(&Workshop) -> VfioDevice + Send>,
    volume: Option<Arc<Volume>>,
}

/// What devices are made with, on the server's thread.
struct Workshop {
    house: Rc<House>,
    workers: Option<Arc<Workers>>,
}

impl ServedDevice {
    /// The null device.
    pub fn null(devno: u16) -> Self {
        ServedDevice::model(devno, Null::default)
    }

    /// An FBA disk on this volume.
    pub fn fba(devno: u16, volume: Arc<Volume>) -> Self {
        let file = volume.clone();
        let make = move |workshop: &Workshop| {
            let (blocks, read_only) = (file.blocks(), file.is_read_only());
            let spans = Spans::new(file, Arc::default());
            let io = FileIo::new(spans, workshop.workers.clone(), workshop.house.file_io.clone());
            VfioDevice::new(Fba::new(io, blocks, read_only), pmcw(devno))
        };
        ServedDevice { make: Box::new(make), volume: Some(volume) }
    }

    /// A device model of one's own, which `make` makes on the server's thread.
    pub fn model<D: Device + 'static>(
        devno: u16,
        make: impl FnOnce() -> D + Send + 'static,
    ) -> Self {
        let make = move |_: &Workshop| VfioDevice::new(make(), pmcw(devno));
        ServedDevice { make: Box::new(make), volume: None }
    }
}

impl std::fmt::Debug for ServedDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServedDevice").field("volume", &self.volume).finish_non_exhaustive()
    }
}

/// The subchannel of a device that is served.
fn pmcw(devno: u16) -> Pmcw {
    let mut pmcw = Pmcw::single_path(devno);
    pmcw.chpid[0] = CHPID;
    pmcw
}

/// Devices on sockets, served by one thread.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use vfio_ccw::server::{ServedDevice, Server};
///
/// let folder = tempfile::tempdir()?;
/// let mut server = Server::new();
/// server.serve(&folder.path().join("null.sock"), ServedDevice::null(0x1000))?;
/// let (stop, stopped) = UnixStream::pair()?;
/// let thread = std::thread::spawn(|| server.run(stopped.into(), |_driver| Ok(())));
/// // Clients connect to the socket.
/// drop(stop);
/// thread.join().unwrap()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Server {
    served: Vec<Served>,
    driver: DriverChoice,
    wait: WaitStrategy,
    registry: Option<Registry>,
    mode: u32,
}

#[derive(Debug)]
struct Served {
    device: ServedDevice,
    listener: UnixListener,
    socket: Socket,
}

/// A socket's place in the file system, which is free again when this goes.
#[derive(Debug)]
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        // It may be gone, or its folder; a confined process may not take it away. The next server does.
        let _ = fs::remove_file(&self.0);
    }
}

impl Default for Server {
    fn default() -> Self {
        Server::new()
    }
}

impl Server {
    /// One that serves nothing yet.
    pub fn new() -> Self {
        Server {
            served: Vec::new(),
            driver: DriverChoice::Auto,
            wait: WaitStrategy::default(),
            registry: None,
            mode: 0o600,
        }
    }

    /// What file I/O runs on. Default: io_uring where it works, else epoll.
    #[must_use]
    pub fn driver(mut self, driver: DriverChoice) -> Self {
        self.driver = driver;
        self
    }

    /// How it waits for programs that come over lanes. Default: it looks while more are expected soon. On machines
    /// without three processors, for a vCPU, a shard and the server, it always sleeps.
    #[must_use]
    pub fn wait(mut self, strategy: WaitStrategy) -> Self {
        self.wait = strategy;
        self
    }

    /// Where its figures go. Default: nowhere.
    #[must_use]
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = Some(registry);
        self
    }

    /// Permissions of sockets that are made from now on. Default: 0o600.
    #[must_use]
    pub fn socket_mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Makes a socket for a device. One that an earlier server has left there is replaced.
    ///
    /// # Errors
    ///
    /// [`ServerError::InUse`], [`ServerError::NotASocket`] or [`ServerError::Bind`].
    pub fn serve(&mut self, path: &Path, device: ServedDevice) -> Result<(), ServerError> {
        let failed = |source| ServerError::Bind { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(ServerError::NotASocket { path: path.to_owned() });
            }
            Ok(_) => {
                if UnixStream::connect(path).is_ok() {
                    return Err(ServerError::InUse { path: path.to_owned() });
                }
                fs::remove_file(path).map_err(failed)?;
            }
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let socket = Socket(path.to_owned());
        fs::set_permissions(path, Permissions::from_mode(self.mode)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        self.served.push(Served { device, listener, socket });
        Ok(())
    }

    /// The sockets, in the order in which they were made.
    pub fn sockets(&self) -> impl Iterator<Item = &Path> {
        self.served.iter().map(|served| served.socket.0.as_path())
    }

    /// Serves on this thread until `stop` is readable or at its end: then programs that run come to their end,
    /// their status is fetched, or a second passes, and volumes are synced. `ready` is called when all is made
    /// that is needed, before the first client is taken: the place to confine the process
    /// ([`Confinement`](crate::confinement::Confinement)). It is told what file I/O runs on.
    ///
    /// # Errors
    ///
    /// [`ServerError`]: it could not start. What went wrong with a client is in the log.
    pub fn run(
        self,
        stop: OwnedFd,
        ready: impl FnOnce(Driver) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
    ) -> Result<(), ServerError> {
        let driver = self.driver.decide().map_err(ServerError::IoUring)?;
        let workers = match driver {
            Driver::IoUring => None,
            Driver::Epoll => {
                Some(Arc::new(Workers::start(FILE_THREADS).map_err(ServerError::Start)?))
            }
        };
        let tally = self.registry.as_ref().map(Tally::new).transpose()?;
        truncation::install().map_err(ServerError::Start)?;
        if !bell::prepare() {
            tracing::warn!(
                "no asynchronous I/O here: a client can make the server wait for it by a race"
            );
        }
        let runtime = Runtime::new(driver).map_err(ServerError::Start)?;
        let house = House::new(tally, self.wait.among(3), self.served.len());
        let workshop = Workshop { house, workers };
        let volumes: Vec<_> =
            self.served.iter().filter_map(|served| served.device.volume.clone()).collect();
        let served = self.served;
        runtime.block_on(serve_all(served, &workshop, stop, || {
            ready(driver).map_err(ServerError::NotReady)
        }))?;
        // Its rings and its tasks, before the files that they use.
        drop(runtime);
        for volume in volumes {
            if let Err(error) = volume.sync() {
                tracing::error!(image = %volume.path().display(), %error, "not all of it is on the medium");
            }
        }
        Ok(())
    }
}

async fn serve_all(
    served: Vec<Served>,
    workshop: &Workshop,
    stop: OwnedFd,
    ready: impl FnOnce() -> Result<(), ServerError>,
) -> Result<(), ServerError> {
    let stop = crate::watch::descriptor(stop).map_err(ServerError::Start)?;
    let house = &workshop.house;
    let (mut seats, mut tasks, mut sockets) = (Vec::new(), Vec::new(), Vec::new());
    for Served { device, listener, socket } in served {
        let listener = tokio::net::UnixListener::from_std(listener).map_err(ServerError::Start)?;
        let name = socket.0.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let seat = Seat::new(name, (device.make)(workshop), house.clone());
        seats.push(seat.clone());
        sockets.push(socket);
        tasks.push((seat, listener));
    }
    ready()?;
    let tasks: Vec<_> = tasks
        .into_iter()
        .map(|(seat, listener)| tokio::task::spawn_local(connection::serve(seat, listener)))
        .collect();
    let stopped = poll_fn(|cx| stop.poll_read_ready(cx).map_ok(drop)).await;
    if let Err(error) = stopped {
        tracing::error!(%error, "it cannot be heard any more when the server is to end: it ends now");
    }
    tracing::info!("draining");
    house.draining.set(true);
    seats.iter().for_each(|seat| seat.wake());
    for task in tasks {
        if let Err(error) = task.await {
            tracing::error!(%error, "a device's task has failed");
        }
    }
    Ok(())
}

/// Serves one client on a socket that is connected already, until it leaves, on the runtime of this thread, which
/// has local tasks. For whoever starts a server with one end of a socket pair.
///
/// # Errors
///
/// The socket, or truncated memory, cannot be watched.
pub async fn serve_client(device: VfioDevice, client: UnixStream) -> io::Result<()> {
    truncation::install()?;
    let house = House::new(None, WaitStrategy::Sleep, 1);
    let seat = Seat::new("client".to_owned(), device, house);
    connection::converse(&seat, Wire::new(client)?).await;
    Ok(())
}
