//! The in-process device in another process, as a target: behind a vfio-user server.
//!
//! The other process is a thread here, which a socket does not tell from one. The client is the tests' own.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use tempfile::TempDir;
use vfio_ccw::architecture::ScswFlags;
use vfio_ccw::backend::{DeviceInfo, Errno, IrqInfo, IrqSet, RegionInfo};
use vfio_ccw::server::{ServedDevice, Server};
use vfio_ccw_pinning::GuestMap;
use zerocopy::FromBytes;

use super::target::{Answer, Failure, Signal, Target};
use super::virtio::VirtioBlk;
use crate::plain_client::{Client, command, region_info, words};

/// Bytes of a region as `/dev/vfio` has them: the regions lie one behind the other in one file.
const REGION: u64 = 1 << 10;

/// The same virtio disk as [`InProcess`](super::in_process::InProcess), behind a socket.
pub struct Remote {
    /// `None` only while it connects again.
    client: Option<Client>,
    map: Arc<GuestMap>,
    /// What is mapped: address, where in memory, bytes, access. A connection that ends takes it along.
    windows: Vec<(u64, usize, usize, u32)>,
    socket: PathBuf,
    stop: Option<UnixStream>,
    server: Option<JoinHandle<()>>,
    _folder: TempDir,
}

impl Remote {
    pub fn open(map: Arc<GuestMap>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("0020.sock");
        let mut server = Server::new();
        let device = ServedDevice::model(0x0020, VirtioBlk::default);
        server.serve(&socket, device).unwrap();
        let (stop, stopped) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(|| server.run(stopped.into(), |_| Ok(())).unwrap());
        Remote {
            client: Some(Client::new(&socket)),
            map,
            windows: Vec::new(),
            socket,
            stop: Some(stop),
            server: Some(thread),
            _folder: folder,
        }
    }

    fn client(&mut self) -> &mut Client {
        self.client.as_mut().expect("connected, but while it connects again")
    }

    fn ask<T: FromBytes>(&mut self, command: u16, payload: &[u8]) -> Answer<T> {
        let mut reply = self.client().ask(command, payload, &[]).map_err(failure)?;
        assert!(reply.len() <= size_of::<T>(), "{} bytes of {}", reply.len(), size_of::<T>());
        // Of a structure that Linux has made longer the protocol has the beginning.
        reply.resize(size_of::<T>(), 0);
        Ok(T::read_from_bytes(&reply).expect("that much"))
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        (self.client, self.stop) = (None, None);
        let ended = self.server.take().expect("it runs").join();
        assert!(ended.is_ok() || std::thread::panicking(), "the server has ended badly");
    }
}

fn failure(errno: i32) -> Failure {
    Errno(errno).into()
}

/// Where an offset in the kernel's one file is.
fn place(offset: u64) -> (u32, u64) {
    let region = u32::try_from(offset / REGION).expect("no case goes so far");
    (region, offset % REGION)
}

impl Target for Remote {
    fn info(&mut self) -> Answer<DeviceInfo> {
        self.ask(command::GET_INFO, &words(&[16, 0, 0, 0]))
    }

    fn region_info(&mut self, index: u32, argsz: u32) -> Answer<RegionInfo> {
        self.ask(command::GET_REGION_INFO, &region_info(argsz, index))
    }

    fn irq_info(&mut self, index: u32) -> Answer<IrqInfo> {
        self.ask(command::GET_IRQ_INFO, &words(&[16, 0, index, 0]))
    }

    fn set_irqs(&mut self, set: &IrqSet, signal: Signal<'_>) -> Answer<()> {
        let (data, file): (&[u8], Option<&OwnedFd>) = match &signal {
            Signal::None => (&[], None),
            Signal::Bool(byte) => (std::slice::from_ref(byte), None),
            Signal::Descriptor(descriptor) => (&[], Some(descriptor)),
            Signal::Number(-1) => (&[], None),
            // Descriptors go beside a message, their numbers nowhere.
            Signal::Number(_) => return Err(Failure::NotThere),
        };
        let head = [set.flags, set.index, set.start, set.count];
        let files: Vec<_> = file.map(AsFd::as_fd).into_iter().collect();
        self.client().set_irqs(head, data, &files).map_err(failure)
    }

    fn reset(&mut self) -> Answer<()> {
        self.ask(command::RESET, &[])
    }

    fn reopen(&mut self) -> Answer<()> {
        self.client = None;
        self.client = Some(Client::new(&self.socket));
        for (iova, at, len, access) in std::mem::take(&mut self.windows) {
            self.map(iova, at, len, access)?;
        }
        Ok(())
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Answer<usize> {
        let (region, offset) = place(offset);
        let read = self.client().read(region, offset, bytes.len() as u32).map_err(failure)?;
        bytes.copy_from_slice(&read);
        Ok(read.len())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Answer<usize> {
        let (region, offset) = place(offset);
        let written = self.client().write(region, offset, bytes).map_err(failure)?;
        Ok(written as usize)
    }

    fn unknown_ioctl(&mut self) -> Answer<()> {
        self.ask(171, &[])
    }

    fn map(&mut self, iova: u64, at: usize, len: usize, access: u32) -> Answer<()> {
        let map = self.map.clone();
        let file = map.regions()[0].file().expect("memory is a file");
        let offset = file.start() + at as u64;
        self.client().map(iova, len as u64, access, file.file(), offset).map_err(failure)?;
        self.windows.push((iova, at, len, access));
        Ok(())
    }

    fn map_nothing(&mut self, _iova: u64, _len: usize) -> Answer<()> {
        // A window holds on to its memory.
        Err(Failure::NotThere)
    }

    fn unmap(&mut self, iova: u64, len: u64) -> Answer<u64> {
        self.client().unmap(iova, len).map_err(failure)?;
        self.windows.retain(|(at, ..)| *at != iova);
        Ok(len)
    }

    /// Asks for the subchannel until nothing executes there: then every interrupt has been signalled, be it one
    /// or two, or none.
    fn settle(&mut self) -> bool {
        let executes = ScswFlags::START_PENDING
            | ScswFlags::HALT_PENDING
            | ScswFlags::CLEAR_PENDING
            | ScswFlags::SUBCHANNEL_ACTIVE;
        loop {
            let schib = self.client().read(2, 0, 52).expect("the SCHIB region");
            let word = u32::from_be_bytes(schib[28..32].try_into().unwrap());
            let flags = ScswFlags::from_bits_retain(word);
            if !flags.intersects(executes) || flags.contains(ScswFlags::SUSPENDED) {
                return true;
            }
            std::thread::yield_now();
        }
    }
}
