//! Devices at the other end of a socket pair: one that keeps to the protocol and really maps what
//! it is given, and one that says what it is told to say.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::message::{Command, DmaMap, DmaUnmap, HEADER, Header};
use super::{Socket, VfioUser};
use crate::FRAME;

/// Long enough for any answer that comes at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connects a pinner to `device`, which runs on a thread of its own until the pinner is gone.
pub(in crate::pinner) fn connect(
    most_windows: u32,
    device: impl FnOnce(UnixStream) + Send + 'static,
) -> VfioUser {
    let (ours, theirs) = UnixStream::pair().unwrap();
    thread::spawn(move || device(theirs));
    VfioUser::new(Socket::new(ours, PATIENCE).unwrap(), most_windows)
}

/// A window: its length, and the device's own mapping of the file.
type Window = (u64, GuestMemoryMmap);

/// A device that keeps to the protocol. Shared with the test, which looks inside.
#[derive(Clone, Debug)]
pub(in crate::pinner) struct Device {
    windows: Arc<Mutex<BTreeMap<u64, Window>>>,
    most_windows: usize,
}

impl Device {
    pub(in crate::pinner) fn new(most_windows: u32) -> Self {
        Device { windows: Arc::default(), most_windows: most_windows as usize }
    }

    /// Length by guest address.
    pub(in crate::pinner) fn windows(&self) -> BTreeMap<u64, u64> {
        self.windows.lock().iter().map(|(address, (len, _))| (*address, *len)).collect()
    }

    /// Reads guest memory as the device sees it.
    pub(super) fn read(&self, address: u64) -> Option<u64> {
        let windows = self.windows.lock();
        let (_, (_, memory)) = windows.range(..=address).next_back()?;
        memory.read_obj(GuestAddress(address)).ok()
    }

    /// Writes guest memory as the device sees it.
    pub(super) fn write(&self, address: u64, value: u64) {
        let windows = self.windows.lock();
        let (_, (_, memory)) = windows.range(..=address).next_back().expect("a window there");
        memory.write_obj(value, GuestAddress(address)).expect("inside the window");
    }

    /// Answers until the other end is gone.
    pub(in crate::pinner) fn serve(self, mut stream: UnixStream) {
        while let Some((header, payload, files)) = receive(&stream) {
            let reply = match self.execute(&header, &payload, files) {
                Ok(reply) => [header.reply(reply.len() as u32).as_bytes(), &reply].concat(),
                Err(errno) => header.refusal(errno as u32).as_bytes().to_vec(),
            };
            if stream.write_all(&reply).is_err() {
                return;
            }
        }
    }

    fn execute(
        &self,
        header: &Header,
        payload: &[u8],
        files: Vec<OwnedFd>,
    ) -> Result<Vec<u8>, i32> {
        if !header.wants_reply() || header.error != 0 {
            return Err(libc::EINVAL);
        }
        if header.command == Command::DmaMap as u16 {
            let map = DmaMap::read_from_bytes(payload).map_err(|_| libc::EINVAL)?;
            let [file] = <[OwnedFd; 1]>::try_from(files).map_err(|_| libc::EINVAL)?;
            self.map(&map, File::from(file))?;
            Ok(Vec::new())
        } else if header.command == Command::DmaUnmap as u16 && files.is_empty() {
            let unmap = DmaUnmap::read_from_bytes(payload).map_err(|_| libc::EINVAL)?;
            self.unmap(&unmap)?;
            Ok(payload.to_vec())
        } else {
            Err(libc::EINVAL)
        }
    }

    fn map(&self, map: &DmaMap, file: File) -> Result<(), i32> {
        let known = DmaMap::READABLE | DmaMap::WRITEABLE;
        let aligned = (map.address | map.size | map.offset).is_multiple_of(FRAME);
        if map.argsz != 32 || map.flags != known || map.size == 0 || !aligned {
            return Err(libc::EINVAL);
        }
        let end = map.address.checked_add(map.size).ok_or(libc::EINVAL)?;
        let mut windows = self.windows.lock();
        let below = windows.range(..end).next_back();
        if below.is_some_and(|(address, (len, _))| address + len > map.address) {
            return Err(libc::EEXIST);
        }
        if windows.len() == self.most_windows {
            return Err(libc::ENOSPC);
        }
        // What lies beyond the end of the file could be mapped, but not touched.
        let length = file.metadata().map_err(|_| libc::EINVAL)?.len();
        if map.offset.checked_add(map.size).is_none_or(|end| end > length) {
            return Err(libc::EINVAL);
        }
        let file = FileOffset::new(file, map.offset);
        let range = (GuestAddress(map.address), map.size as usize, Some(file));
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).map_err(|_| libc::EINVAL)?;
        windows.insert(map.address, (map.size, memory));
        Ok(())
    }

    fn unmap(&self, unmap: &DmaUnmap) -> Result<(), i32> {
        if unmap.argsz as usize != size_of::<DmaUnmap>() || unmap.flags != 0 {
            return Err(libc::EINVAL);
        }
        let mut windows = self.windows.lock();
        match windows.get(&unmap.address) {
            Some((len, _)) if *len == unmap.size => {
                windows.remove(&unmap.address);
                Ok(())
            }
            _ => Err(libc::ENOENT),
        }
    }
}

/// What a scripted device does about a command.
#[derive(Debug)]
pub(super) enum Say {
    /// Sends this and waits for the next command.
    This(Vec<u8>),
    /// Sends this and leaves.
    Last(Vec<u8>),
}

/// A device that answers each command with what `script` makes of its header and payload.
pub(super) fn scripted(mut script: impl FnMut(&Header, &[u8]) -> Say) -> impl FnOnce(UnixStream) {
    move |mut stream| {
        while let Some((header, payload, _)) = receive(&stream) {
            let (reply, stays) = match script(&header, &payload) {
                Say::This(reply) => (reply, true),
                Say::Last(reply) => (reply, false),
            };
            if stream.write_all(&reply).is_err() || !stays {
                return;
            }
        }
    }
}

/// Reads one message and what descriptors came with it; `None` where the other end is gone.
fn receive(stream: &UnixStream) -> Option<(Header, Vec<u8>, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut header = Header::new_zeroed();
    let mut first = [IoSliceMut::new(header.as_mut_bytes())];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let received = rustix::net::recvmsg(stream, &mut first, &mut control, flags).ok()?;
    if received.bytes != HEADER {
        return None;
    }
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            files.extend(rights);
        }
    }
    let mut payload = vec![0; (header.size as usize).checked_sub(HEADER)?];
    (&*stream).read_exact(&mut payload).ok()?;
    Some((header, payload, files))
}
