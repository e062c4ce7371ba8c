//! A client of the vfio-user server that sends what it likes: replies are by the text, and whatever was sent, what is
//! sent last is answered or the connection is closed.

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vfio_ccw::architecture::Pmcw;
use vfio_ccw::backend::VfioDevice;
use vfio_ccw::channel_subsystem::Null;
use vfio_ccw::server::serve_client;

use crate::input::Input;

/// Bytes of the client's memory. It is zeros but for a program at its beginning.
const MEMORY: u64 = 0x4000;

/// Most of what one case sends: less than a socket holds, as nobody reads meanwhile.
const MOST_SENT: usize = 32 << 10;
const MOST_MESSAGES: usize = 64;

/// What is sent last: DEVICE_GET_INFO with this number.
const LAST: u16 = 0xf1a1;

/// Version 0.1, with the lane.
fn version() -> Vec<u8> {
    let data = b"{\"capabilities\":{\"vfio_ccw_lane\":{\"version\":1}}}\0";
    [&0u16.to_ne_bytes()[..], &1u16.to_ne_bytes(), data].concat()
}

/// One case: messages, each of what it is (a byte), its flags and descriptors (a byte), its length (a byte) and its
/// payload. The first byte says whether a sound version is sent before them.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    let files = Files::new();
    let mut client = Client { ours, sent: Vec::new(), is_framed: true };
    let is_agreed = input.u8().is_multiple_of(2);
    if is_agreed {
        client.send(1, 0, &version(), &[]);
    }
    let mut sent = 0;
    for _ in 0..MOST_MESSAGES {
        if input.is_empty() || sent > MOST_SENT || !client.is_framed {
            break;
        }
        sent += client.send_next(&mut input, &files);
    }
    if client.is_framed {
        client.send_numbered(LAST, 4, 0, &words(&[16, 0, 0, 0]), &[]);
    }
    rustix::net::shutdown(&client.ours, rustix::net::Shutdown::Write).expect("a socket");
    let Client { ours, sent, is_framed } = client;
    let reader = std::thread::spawn(move || read_all(ours));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let device = VfioDevice::new(Null::default(), Pmcw::single_path(7));
    let serving = serve_client(device, theirs);
    let served = tokio::task::LocalSet::new().block_on(&runtime.expect("a runtime"), serving);
    served.expect("whatever a client does, the server does not fail");
    let unanswered = check(&sent, &reader.join().expect("it reads"), is_framed);
    assert!(!is_agreed || !is_framed || unanswered == 0, "{unanswered} commands have no reply");
}

/// A command as it was sent: its number, what it is, and whether it wants a reply.
#[derive(Clone, Copy, Debug)]
struct Sent {
    id: u16,
    command: u16,
    wants_reply: bool,
}

struct Client {
    ours: UnixStream,
    sent: Vec<Sent>,
    /// What was sent until now is messages.
    is_framed: bool,
}

/// Descriptors that a client may have.
struct Files {
    memory: File,
    lane: OwnedFd,
    eventfd: OwnedFd,
    null: File,
}

impl Files {
    fn new() -> Self {
        let memfd = |name| {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = File::from(memfd_create(name, flags).expect("memory"));
            file.set_len(MEMORY).expect("some pages");
            file
        };
        let memory = memfd("fuzz");
        // SENSE ID, 32 bytes, to the second page.
        let program = [0xe4, 0x20, 0, 0x20, 0, 0, 0x10, 0];
        std::os::unix::fs::FileExt::write_all_at(&memory, &program, 0).expect("it is long enough");
        // It stays as long as it is, as whoever shortens it is another test's.
        let lane = memfd("lane");
        for file in [&memory, &lane] {
            fcntl_add_seals(file, SealFlags::SHRINK).expect("it may be sealed");
        }
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        let null = File::open("/dev/null").expect("there is one");
        Files { memory, lane: lane.into(), eventfd, null }
    }

    fn some(&self, choice: u8) -> Vec<BorrowedFd<'_>> {
        let all = [self.memory.as_fd(), self.lane.as_fd(), self.eventfd.as_fd(), self.null.as_fd()];
        match choice {
            0 | 1 => Vec::new(),
            2..=5 => vec![all[usize::from(choice) - 2]],
            6 => all.to_vec(),
            _ => all.repeat(3),
        }
    }
}

impl Client {
    /// Sends the next message of a case; its bytes.
    fn send_next(&mut self, input: &mut Input<'_>, files: &Files) -> usize {
        let [kind, extras, len] = input.array();
        // Bit 3: no reply is wanted. Rarely: it is no command, or has another size than it says.
        let flags = u32::from(extras >> 3 & 1) << 4 | u32::from(extras == 0xff);
        let command = match kind {
            0..=0x7f => u16::from(kind % 20),
            0x80..=0x9f => 0xcc01,
            _ => u16::from(kind) << 8,
        };
        let payload = match extras >> 4 & 3 {
            // What it ought to be, but for a word.
            1 => changed(sound(command), input),
            _ => input.slice(len.into()).to_vec(),
        };
        let beside = files.some(extras & 7);
        if extras == 0xfe {
            // In the middle of nothing.
            self.is_framed = false;
            self.put(&payload, &beside);
            return payload.len();
        }
        self.send(command, flags, &payload, &beside);
        self.is_framed &= flags & 0xf == 0;
        16 + payload.len()
    }

    fn send(&mut self, command: u16, flags: u32, payload: &[u8], files: &[BorrowedFd<'_>]) {
        // Numbers may come again.
        let id = self.sent.len() as u16 / 2;
        self.send_numbered(id, command, flags, payload, files);
    }

    fn send_numbered(
        &mut self,
        id: u16,
        command: u16,
        flags: u32,
        payload: &[u8],
        files: &[BorrowedFd<'_>],
    ) {
        let mut message = Vec::new();
        message.extend(id.to_ne_bytes());
        message.extend(command.to_ne_bytes());
        message.extend(words(&[16 + payload.len() as u32, flags, 0]));
        message.extend(payload);
        self.put(&message, files);
        if flags & 0xf == 0 {
            self.sent.push(Sent { id, command, wants_reply: flags & 0x10 == 0 });
        }
    }

    fn put(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) {
        if bytes.is_empty() {
            return;
        }
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(12))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        if !files.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(files)), "there is room");
        }
        let sent = sendmsg(&self.ours, &[IoSlice::new(bytes)], &mut control, SendFlags::empty());
        assert_eq!(sent, Ok(bytes.len()), "a socket holds all of a case");
    }
}

/// A payload that a command takes.
fn sound(command: u16) -> Vec<u8> {
    let doublewords = |head: &[u32], rest: &[u64]| {
        let rest = rest.iter().flat_map(|word| word.to_ne_bytes());
        words(head).into_iter().chain(rest).collect()
    };
    match command {
        1 => version(),
        2 => doublewords(&[32, 3], &[0, 0, MEMORY]),
        3 => doublewords(&[24, 0], &[0, MEMORY]),
        4 => words(&[16, 0, 0, 0]),
        5 => doublewords(&[48, 0, 1, 0], &[0, 0]),
        7 => words(&[16, 0, 1, 0]),
        8 => words(&[20, 0x24, 0, 0, 1]),
        9 => words(&[0, 0, 0, 124]),
        // A start of the program at 0.
        10 => {
            let mut region = [0; 40];
            region[12..16].copy_from_slice(&24u32.to_ne_bytes());
            region[16 + 4..16 + 7].copy_from_slice(&[0, 0xc2, 0x80]);
            region[16 + 14] = 0x40;
            region.to_vec()
        }
        0xcc01 => doublewords(&[24, 0, 8, 0], &[0]),
        _ => Vec::new(),
    }
}

/// With one of its bytes changed, or longer or shorter.
fn changed(mut payload: Vec<u8>, input: &mut Input<'_>) -> Vec<u8> {
    let [place, byte] = input.array();
    match payload.len() {
        0 => {}
        len if place == 0xff => payload.truncate(len - 1),
        _ if place == 0xfe => payload.push(byte),
        len => payload[usize::from(place) % len] ^= byte,
    }
    payload
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// All that arrives until the connection is closed. Descriptors are let go of.
fn read_all(mut stream: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Closed with messages that were not read, it is a reset, behind all that was sent before.
    let _ = std::io::Read::read_to_end(&mut stream, &mut bytes);
    bytes
}

/// Replies frame, in the order of the commands, each with number and command of one that wants it. How many of those
/// have none. Bytes that were no message of ours may have been one all the same.
fn check(sent: &[Sent], mut bytes: &[u8], is_framed: bool) -> usize {
    let mut asked = sent.iter().filter(|sent| sent.wants_reply);
    while !bytes.is_empty() {
        assert!(bytes.len() >= 16, "half a header");
        let half = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four"));
        let (size, flags, error) = (word(4) as usize, word(8), word(12));
        assert!((16..=bytes.len()).contains(&size), "{size} of {}", bytes.len());
        let command = asked.next();
        assert!(command.is_some() || !is_framed, "nobody has asked for this");
        if let Some(command) = command {
            assert_eq!((half(0), half(2)), (command.id, command.command));
        }
        match flags {
            1 => assert_eq!(error, 0, "{command:?}"),
            0x21 => assert!(size == 16 && (1..4096).contains(&error), "{command:?}: {error}"),
            _ => panic!("{command:?}: flags {flags:#x}"),
        }
        bytes = &bytes[size..];
    }
    asked.count()
}
