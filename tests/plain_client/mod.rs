//! A vfio-user client that knows the text of the protocol (QEMU's `docs/interop/vfio-user.rst`) and nothing of
//! this project's own framing: where the two read the text differently, a test fails.

#![allow(dead_code, reason = "each test uses its part")]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Numbers of commands.
pub mod command {
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const GET_INFO: u16 = 4;
    pub const GET_REGION_INFO: u16 = 5;
    pub const GET_IRQ_INFO: u16 = 7;
    pub const SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const RESET: u16 = 13;
}

/// In the flags of a header.
pub const REPLY: u32 = 1;
pub const NO_REPLY: u32 = 1 << 4;
pub const ERROR: u32 = 1 << 5;

/// Nothing here takes this long: who waits longer waits for something that was lost.
const STALL: Duration = Duration::from_secs(60);

/// Most descriptors that Linux passes beside one message.
const MOST_FILES: usize = 253;

/// A message as it arrived.
#[derive(Debug)]
pub struct Arrived {
    pub id: u16,
    pub command: u16,
    pub flags: u32,
    pub error: u32,
    pub payload: Vec<u8>,
    pub files: Vec<OwnedFd>,
}

/// What became of a command: the payload of its reply, or an errno.
pub type Answer = Result<Vec<u8>, i32>;

#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    id: u16,
}

impl Client {
    /// Connects, and says nothing.
    pub fn silent(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("a server listens there");
        Client::over(stream)
    }

    pub fn over(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(STALL)).expect("a socket");
        // Numbers are the sender's own: they need not begin with 0.
        Client { stream, id: 0xfff0 }
    }

    /// Connects, and agrees upon version 0.0 with these version data.
    pub fn with(path: &Path, data: &str) -> Self {
        let mut client = Client::silent(path);
        let mut payload = words(&[0]);
        payload.extend(data.bytes());
        client.ask(command::VERSION, &payload, &[]).expect("any server knows version 0.0");
        client
    }

    /// Connects, and agrees upon version 0.0 without anything optional.
    pub fn new(path: &Path) -> Self {
        Client::with(path, "")
    }

    /// Sends bytes, whatever they are, with descriptors beside the first of them. An error: the other side has
    /// closed the connection.
    pub fn send_bytes(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
        let (mut rest, mut files) = (bytes, files);
        while !rest.is_empty() {
            let mut control = SendAncillaryBuffer::new(&mut room);
            if !files.is_empty() {
                assert!(control.push(SendAncillaryMessage::ScmRights(files)), "no more than 253");
            }
            let sent =
                sendmsg(&self.stream, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL)?;
            (rest, files) = (&rest[sent..], &[]);
        }
        Ok(())
    }

    /// Sends a command with these flags; its number.
    pub fn send_with(
        &mut self,
        flags: u32,
        command: u16,
        payload: &[u8],
        files: &[BorrowedFd<'_>],
    ) -> u16 {
        self.id = self.id.wrapping_add(1);
        let message = message(self.id, command, flags, payload);
        // Where it is closed, receiving tells.
        let _ = self.send_bytes(&message, files);
        self.id
    }

    /// The next message; `None`: there will be none.
    pub fn receive(&self) -> Option<Arrived> {
        let (mut header, mut files) = ([0; 16], Vec::new());
        if !self.fill(&mut header, &mut files) {
            return None;
        }
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let half = |at: usize| u16::from_ne_bytes(header[at..at + 2].try_into().unwrap());
        let size = word(4) as usize;
        assert!((16..=16 + (1 << 21)).contains(&size), "a message of {size} bytes");
        let mut payload = vec![0; size - 16];
        assert!(self.fill(&mut payload, &mut files), "an end in the middle of a message");
        let (id, command, flags, error) = (half(0), half(2), word(8), word(12));
        Some(Arrived { id, command, flags, error, payload, files })
    }

    /// Fills `bytes`. `false`: the other side has closed the connection before the first.
    fn fill(&self, bytes: &mut [u8], files: &mut Vec<OwnedFd>) -> bool {
        let mut filled = 0;
        while filled < bytes.len() {
            let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut control = RecvAncillaryBuffer::new(&mut room);
            let mut into = [IoSliceMut::new(&mut bytes[filled..])];
            match recvmsg(&self.stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) if received.bytes > 0 => filled += received.bytes,
                // With messages of ours that it has not read, it is a reset.
                Ok(_) | Err(rustix::io::Errno::CONNRESET) => {
                    assert_eq!(filled, 0, "an end in the middle of a message");
                    return false;
                }
                Err(error) => panic!("the other side does not answer: {error}"),
            }
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(arrived) = message {
                    files.extend(arrived);
                }
            }
        }
        true
    }

    /// Sends a command, and takes its reply, which must be one by the text.
    #[track_caller]
    pub fn ask_whole(
        &mut self,
        command: u16,
        payload: &[u8],
        files: &[BorrowedFd<'_>],
    ) -> Result<Arrived, i32> {
        let id = self.send_with(0, command, payload, files);
        let reply = self.receive().expect("a reply, not the end");
        assert_eq!((reply.id, reply.command), (id, command), "{reply:?}");
        match reply.flags {
            REPLY => Ok(reply),
            flags => {
                assert_eq!(flags, REPLY | ERROR, "{reply:?}");
                assert!(reply.payload.is_empty() && reply.files.is_empty(), "{reply:?}");
                assert_ne!(reply.error, 0, "an errno, though the text lets it be left out");
                Err(reply.error as i32)
            }
        }
    }

    /// The same for a reply that has no descriptors.
    #[track_caller]
    pub fn ask(&mut self, command: u16, payload: &[u8], files: &[BorrowedFd<'_>]) -> Answer {
        let reply = self.ask_whole(command, payload, files)?;
        assert!(reply.files.is_empty(), "{reply:?}");
        Ok(reply.payload)
    }

    /// DMA_MAP of `len` bytes of `file` from `offset` on.
    #[track_caller]
    pub fn map(
        &mut self,
        address: u64,
        len: u64,
        access: u32,
        file: impl AsFd,
        offset: u64,
    ) -> Result<(), i32> {
        let payload = window(32, access, offset, address, len);
        self.ask(command::DMA_MAP, &payload, &[file.as_fd()]).map(|reply| assert!(reply.is_empty()))
    }

    /// DMA_UNMAP; its reply repeats the entry.
    #[track_caller]
    pub fn unmap(&mut self, address: u64, len: u64) -> Result<(), i32> {
        let payload = range(24, 0, address, len);
        self.ask(command::DMA_UNMAP, &payload, &[]).map(|reply| assert_eq!(reply, payload))
    }

    /// REGION_READ.
    #[track_caller]
    pub fn read(&mut self, region: u32, offset: u64, count: u32) -> Answer {
        let head = access(region, offset, count);
        let reply = self.ask(command::REGION_READ, &head, &[])?;
        assert_eq!(reply[..16], head, "the reply repeats it");
        assert_eq!(reply.len() - 16, count as usize);
        Ok(reply[16..].to_vec())
    }

    /// REGION_WRITE; what the reply says was written.
    #[track_caller]
    pub fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<u32, i32> {
        let mut payload = access(region, offset, data.len() as u32);
        payload.extend(data);
        let reply = self.ask(command::REGION_WRITE, &payload, &[])?;
        assert_eq!((reply.len(), &reply[..12]), (16, &payload[..12]), "the reply repeats it");
        Ok(u32::from_ne_bytes(reply[12..].try_into().unwrap()))
    }

    /// SET_IRQS.
    #[track_caller]
    pub fn set_irqs(
        &mut self,
        [flags, index, start, count]: [u32; 4],
        data: &[u8],
        files: &[BorrowedFd<'_>],
    ) -> Result<(), i32> {
        let mut payload = words(&[20 + data.len() as u32, flags, index, start, count]);
        payload.extend(data);
        self.ask(command::SET_IRQS, &payload, files).map(|reply| assert!(reply.is_empty()))
    }
}

/// A whole message.
pub fn message(id: u16, command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(id, command, 16 + payload.len() as u32, flags).to_vec();
    bytes.extend(payload);
    bytes
}

/// A header that says this of its message.
pub fn header(id: u16, command: u16, size: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&id.to_ne_bytes());
    bytes[2..4].copy_from_slice(&command.to_ne_bytes());
    bytes[4..8].copy_from_slice(&size.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn doublewords(doublewords: &[u64]) -> Vec<u8> {
    doublewords.iter().flat_map(|doubleword| doubleword.to_ne_bytes()).collect()
}

/// Payload of DMA_MAP.
pub fn window(argsz: u32, flags: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
    [words(&[argsz, flags]), doublewords(&[offset, address, size])].concat()
}

/// Payload of DMA_UNMAP.
pub fn range(argsz: u32, flags: u32, address: u64, size: u64) -> Vec<u8> {
    [words(&[argsz, flags]), doublewords(&[address, size])].concat()
}

/// Payload of REGION_READ, and of REGION_WRITE before its data.
pub fn access(region: u32, offset: u64, count: u32) -> Vec<u8> {
    [doublewords(&[offset]), words(&[region, count])].concat()
}

/// Payload of GET_REGION_INFO.
pub fn region_info(argsz: u32, index: u32) -> Vec<u8> {
    [words(&[argsz, 0, index, 0]), doublewords(&[0, 0])].concat()
}
