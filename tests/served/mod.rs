//! Devices that a server on a thread of the test has, and a guest whose memory it can map.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use tempfile::TempDir;
use vfio_ccw::backend::remote::RemoteDevice;
use vfio_ccw::server::{ServedDevice, Server, ServerError};
use vfio_ccw::{DeviceSpec, Service, ServiceBuilder};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use super::bench_guest::wired::Wired;
use super::bench_guest::{Bench, Device};

/// How programs come to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Over memory that both share.
    Lane,
    /// One message each.
    Messages,
}

/// Both of them.
pub const BOTH_WAYS: [Way; 2] = [Way::Lane, Way::Messages];

/// A server on a thread. Dropped, it drains and ends.
#[derive(Debug)]
pub struct Served {
    folder: TempDir,
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<Result<(), ServerError>>>,
}

impl Served {
    /// A server with every default.
    pub fn new(devices: Vec<ServedDevice>) -> Self {
        Served::with(Server::new(), devices).expect("the server starts")
    }

    /// The server that `server` describes, with these devices.
    pub fn with(mut server: Server, devices: Vec<ServedDevice>) -> Result<Self, ServerError> {
        let folder = tempfile::tempdir().expect("room for sockets");
        for (number, device) in devices.into_iter().enumerate() {
            server.serve(&socket(folder.path(), number), device)?;
        }
        let (stop, stopped) = UnixStream::pair().expect("two sockets");
        let (ready, is_ready) = channel();
        let thread = std::thread::spawn(move || {
            server.run(stopped.into(), move |_| {
                ready.send(()).expect("the test waits");
                Ok(())
            })
        });
        match is_ready.recv() {
            Ok(()) => Ok(Served { folder, stop: Some(stop), thread: Some(thread) }),
            // It has ended, and says why.
            Err(_) => Err(thread.join().expect("no panic").expect_err("it never was ready")),
        }
    }

    /// The socket of a device, by its place in the list.
    pub fn socket(&self, number: usize) -> PathBuf {
        socket(self.folder.path(), number)
    }

    /// Connects to a device.
    #[track_caller]
    pub fn connect(&self, number: usize, way: Way) -> RemoteDevice {
        let device = RemoteDevice::connect(&self.socket(number)).expect("it is served");
        match way {
            Way::Lane => device,
            Way::Messages => device.without_lane(),
        }
    }

    /// Tells it to end, and waits for that.
    pub fn end(mut self) -> Result<(), ServerError> {
        self.stop_and_join()
    }

    fn stop_and_join(&mut self) -> Result<(), ServerError> {
        self.stop = None;
        self.thread.take().map_or(Ok(()), |thread| thread.join().expect("no panic in the server"))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let ended = self.stop_and_join();
        assert!(std::thread::panicking() || ended.is_ok(), "{ended:?}");
    }
}

fn socket(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("{number}.sock"))
}

/// A guest, and a server with devices for it.
#[derive(Debug)]
pub struct Rig {
    /// The guest.
    pub bench: Bench,
    /// The server.
    pub served: Served,
    /// How programs go from one to the other.
    pub way: Way,
}

impl Rig {
    /// A guest with `bytes` of memory in a file, on a service with every default.
    pub fn new(way: Way, bytes: usize, devices: Vec<ServedDevice>) -> Self {
        Rig::with(way, Service::builder(), bytes, devices)
    }

    /// The same on the service that `builder` describes.
    pub fn with(
        way: Way,
        builder: ServiceBuilder,
        bytes: usize,
        devices: Vec<ServedDevice>,
    ) -> Self {
        println!("{way:?}");
        Rig { bench: bench(builder, bytes), served: Served::new(devices), way }
    }

    /// Attaches a device with a completion ring of its own.
    #[track_caller]
    pub fn attach(&self, number: usize) -> Device {
        self.bench.attach(self.device(number))
    }

    /// Attaches a device that interrupts.
    #[track_caller]
    pub fn wire(&self, number: usize) -> Wired {
        Wired::attach(&self.bench.service, self.device(number))
    }

    /// Connects to a device.
    #[track_caller]
    pub fn device(&self, number: usize) -> DeviceSpec {
        DeviceSpec::remote(self.served.connect(number, self.way))
    }
}

/// A guest with `bytes` of memory in a file.
pub fn bench(builder: ServiceBuilder, bytes: usize) -> Bench {
    let region = region("guest", 0, bytes);
    let memory = Arc::new(GuestMemoryMmap::from_arc_regions(vec![region]).expect("one region"));
    let service = builder.build(memory.clone()).expect("the service starts");
    Bench { memory, service }
}

/// `bytes` of guest memory at `start`, in a file in memory of this name.
pub fn region(name: &str, start: u64, bytes: usize) -> Arc<GuestRegionMmap> {
    let memfd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC);
    let file = File::from(memfd.expect("a file in memory"));
    file.set_len(bytes as u64).expect("room for guest memory");
    let mapping = MmapRegion::from_file(FileOffset::new(file, 0), bytes).expect("address space");
    let region = GuestRegionMmap::new(mapping, GuestAddress(start)).expect("no wrap-around");
    Arc::new(region)
}

/// How often this process maps a file in memory of this name.
pub fn mappings(name: &str) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("there is /proc");
    let name = format!("/memfd:{name} ");
    // Pages that are locked are on lines of their own.
    let starts = maps.lines().filter(|line| line.contains(&name)).filter(|line| {
        let offset = line.split(' ').nth(2).expect("address, access, offset");
        u64::from_str_radix(offset, 16) == Ok(0)
    });
    starts.count()
}
