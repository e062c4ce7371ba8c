//! Clients of a device server that break the protocol in every way there is, while a client of another device
//! of the same server goes on working. The clients' framing is the tests' own.

pub mod bench_guest;
pub mod descriptors;
mod plain_client;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vfio_ccw::architecture::{Ccw, CcwFlags, IrbHead, Orb, SubchannelStatus, command as channel};
use vfio_ccw::backend::IoRegion;
use vfio_ccw::server::{ServedDevice, Server};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use zerocopy::IntoBytes;

use bench_guest::STALL;
use bench_guest::gated::{Gate, TRANSFER};
use descriptors::descriptors;
use plain_client::{
    Client, ERROR, NO_REPLY, REPLY, access, command, header, message, range, region_info, window,
    words,
};

const PAGE: u64 = 4096;
const MEMORY: u64 = 16 * PAGE;
/// Where a guest's data are.
const DATA: u64 = PAGE;

const MEBIBYTE: u32 = 1 << 20;
const LANE: u16 = 0xcc01;

/// Descriptors and mappings are the whole process's: one server at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// The sockets of two devices, both of them for hostile clients. Their transfers wait at a gate.
struct Scene {
    one: PathBuf,
    two: PathBuf,
    gate: Arc<Gate>,
}

/// Lets `attack` loose on a server. Before, meanwhile and after it a neighbour's programs run, and nothing is left
/// of it then.
fn against_a_server(attack: impl FnOnce(&Scene)) {
    let _alone = ALONE.lock().expect("a server whose test has failed may still hold something");
    let before = descriptors().len();
    let folder = tempfile::tempdir().unwrap();
    let socket = |name: &str| folder.path().join(name);
    let scene = Scene { one: socket("one"), two: socket("two"), gate: Gate::shut() };
    let mut server = Server::new();
    server.serve(&scene.one, scene.gate.served(1)).unwrap();
    server.serve(&scene.two, scene.gate.served(2)).unwrap();
    server.serve(&socket("neighbour"), ServedDevice::null(3)).unwrap();
    let (stop, stopped) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(|| server.run(stopped.into(), |_| Ok(())).unwrap());
    let neighbour = Neighbour::moves_in(&socket("neighbour"));

    let fresh = holdings(&scene);
    attack(&scene);
    neighbour.goes_on();
    // A lane's memory goes with its task, which has its turn after the last client's.
    let end = Instant::now() + STALL;
    while holdings(&scene) != fresh {
        assert!(Instant::now() < end, "what its clients had is kept: {:?}", holdings(&scene));
    }
    neighbour.moves_out();
    drop(stop);
    server.join().expect("the server ends well");
    // The gate knows tasks of the server's that waited at it.
    drop(scene);
    assert_eq!(descriptors().len(), before);
}

/// What the process has open, and mapped of guests, when no client has left anything: those who come are served
/// after it was given up.
fn holdings(scene: &Scene) -> (usize, usize) {
    let _clients = [&scene.one, &scene.two].map(|socket| Client::new(socket));
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    (descriptors().len(), maps.lines().filter(|line| line.contains("memfd:hostile")).count())
}

/// A client that works all the time.
struct Neighbour {
    works: Arc<Works>,
    thread: std::thread::JoinHandle<()>,
}

#[derive(Default)]
struct Works {
    programs: Mutex<u64>,
    one_more: Condvar,
    is_over: AtomicBool,
}

impl Neighbour {
    fn moves_in(socket: &Path) -> Self {
        let mut guest = Guest::on(socket, "neighbour");
        let works = Arc::new(Works::default());
        let seen = works.clone();
        let thread = std::thread::spawn(move || {
            while !seen.is_over.load(Ordering::Relaxed) {
                guest.put(DATA, &[0; 7]);
                let irb = guest.run(&[Ccw::new(channel::SENSE_ID, DATA as u32, 7)]);
                assert!(irb.scsw.is_clean_end(), "{irb:?}");
                assert_eq!(guest.peek(DATA, 1), [0xff]);
                *seen.programs.lock().unwrap() += 1;
                seen.one_more.notify_all();
            }
        });
        let neighbour = Neighbour { works, thread };
        neighbour.goes_on();
        neighbour
    }

    /// Some programs run that were started after this was called.
    #[track_caller]
    fn goes_on(&self) {
        let programs = self.works.programs.lock().unwrap();
        let enough = *programs + 3;
        let waited =
            self.works.one_more.wait_timeout_while(programs, STALL, |now| *now < enough).unwrap();
        assert!(!waited.1.timed_out(), "the neighbour's programs do not run any more");
    }

    fn moves_out(self) {
        self.works.is_over.store(true, Ordering::Relaxed);
        self.thread.join().expect("the neighbour was well all the time");
    }
}

/// A well-behaved client with memory at address 0 and an eventfd for the I/O interrupt.
struct Guest {
    client: Client,
    memory: File,
    interrupt: OwnedFd,
}

/// What is written into the I/O region to start the program at 0, and leaves the status in it as it is.
fn orb_and_scsw() -> Vec<u8> {
    IoRegion::start(Orb::new(0)).as_bytes()[..24].to_vec()
}

fn memory(name: &str, len: u64) -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create(name, flags).unwrap());
    file.set_len(len).unwrap();
    file
}

impl Guest {
    fn on(socket: &Path, name: &str) -> Self {
        Guest::of(Client::new(socket), name)
    }

    fn of(mut client: Client, name: &str) -> Self {
        let memory = memory(name, MEMORY);
        let interrupt = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        client.map(0, MEMORY, 3, &memory, 0).unwrap();
        client.set_irqs([4 | 32, 0, 0, 1], &[], &[interrupt.as_fd()]).unwrap();
        Guest { client, memory, interrupt }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, at).unwrap();
    }

    fn peek(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    /// Puts a program at 0.
    fn put_program(&self, program: &[Ccw]) {
        let bytes: Vec<u8> = program.iter().flat_map(|ccw| ccw.to_format_1()).collect();
        self.put(0, &bytes);
    }

    #[track_caller]
    fn start(&mut self, program: &[Ccw]) {
        self.put_program(program);
        assert_eq!(self.client.write(0, 0, &orb_and_scsw()), Ok(24));
    }

    /// Waits for the interrupt.
    #[track_caller]
    fn is_interrupted(&self) {
        let patience = Timespec { tv_sec: STALL.as_secs() as i64, tv_nsec: 0 };
        let mut polled = [PollFd::new(&self.interrupt, PollFlags::IN)];
        assert_eq!(poll(&mut polled, Some(&patience)), Ok(1), "no interrupt");
        File::from(self.interrupt.try_clone().unwrap()).read_exact(&mut [0; 8]).unwrap();
    }

    fn irb(&mut self) -> IrbHead {
        let region = self.client.read(0, 0, 124).unwrap();
        IoRegion::try_from(&region[..]).unwrap().irb.head
    }

    #[track_caller]
    fn run(&mut self, program: &[Ccw]) -> IrbHead {
        self.start(program);
        self.is_interrupted();
        self.irb()
    }

    /// The device does what it is told.
    #[track_caller]
    fn works(&mut self) {
        let irb = self.run(&[Ccw::new(channel::NOP, 0, 0)]);
        assert!(irb.scsw.is_clean_end(), "{irb:?}");
    }
}

fn version(major: u16, minor: u16, data: &[u8]) -> Vec<u8> {
    [&major.to_ne_bytes(), &minor.to_ne_bytes(), data].concat()
}

/// A payload that a command takes.
fn sound(number: u16) -> Vec<u8> {
    match number {
        command::VERSION => version(0, 1, b""),
        command::DMA_MAP => window(32, 3, 0, 1 << 40, PAGE),
        command::DMA_UNMAP => range(24, 0, 0, MEMORY),
        command::GET_INFO => words(&[16, 0, 0, 0]),
        command::GET_REGION_INFO => region_info(32, 0),
        command::GET_IRQ_INFO => words(&[16, 0, 0, 0]),
        command::SET_IRQS => words(&[20, 1 | 32, 0, 0, 1]),
        command::REGION_READ => access(3, 0, 8),
        command::REGION_WRITE => [access(1, 0, 4), words(&[9])].concat(),
        _ => Vec::new(),
    }
}

const KNOWN: [u16; 10] = [
    command::VERSION,
    command::DMA_MAP,
    command::DMA_UNMAP,
    command::GET_INFO,
    command::GET_REGION_INFO,
    command::GET_IRQ_INFO,
    command::SET_IRQS,
    command::REGION_READ,
    command::REGION_WRITE,
    command::RESET,
];

#[test]
fn nobody_is_talked_to_who_does_not_begin_with_the_version() {
    against_a_server(|scene| {
        let mut openings = Vec::new();
        for number in KNOWN.into_iter().skip(1).chain([0, 6, 16, LANE, 0xffff]) {
            openings.push(message(1, number, 0, &sound(number)));
        }
        let nested = "[".repeat(60_000);
        let mut payloads = vec![version(1, 0, b""), version(0xffff, 0, b"{}\0")];
        payloads.extend((0..4).map(|len| vec![0; len]));
        let data: [&[u8]; 14] = [
            b"{",
            b"7\0",
            b"[]\0",
            b"\0\0",
            b"{}\0\0",
            b"{}\0{}\0",
            b"\"\xff\xfe\"\0",
            b"{\"capabilities\":[]}\0",
            b"{\"capabilities\":7}\0",
            b"{\"capabilities\":{\"max_msg_fds\":-1}}\0",
            b"{\"capabilities\":{\"max_data_xfer_size\":\"1\"}}\0",
            b"{\"capabilities\":{\"max_dma_maps\":1e400}}\0",
            nested.as_bytes(),
            &[b' '; (64 << 10) + 1],
        ];
        payloads.extend(data.map(|data| version(0, 1, data)));
        openings.extend(payloads.iter().map(|it| message(1, command::VERSION, 0, it)));
        openings.extend([1, 2, 0xf].map(|kind| message(1, command::VERSION, kind, &[0; 4])));
        for size in [0, 15, 16 + 16 + MEBIBYTE + 1, u32::MAX] {
            openings.push([&header(1, command::VERSION, size, 0)[..], &[0; 4]].concat());
        }
        for opening in openings {
            let client = Client::silent(&scene.one);
            // What is behind its first bytes may find the connection closed.
            let _ = client.send_bytes(&opening, &[]);
            let shown = &opening[..opening.len().min(60)];
            assert!(client.receive().is_none(), "{}", shown.escape_ascii());
        }
    });
}

#[test]
fn the_reply_to_a_version_has_no_more_than_was_offered() {
    let all = r#"{"capabilities":{"max_msg_fds":9,"max_data_xfer_size":1,"max_dma_maps":1,"pgsizes":7,
        "twin_socket":{"supported":true},"write_multiple":true,"vfio_ccw_lane":{"version":9},"x":[]}}"#;
    let lane = r#"{"capabilities":{"vfio_ccw_lane":{"version":1}}}"#;
    against_a_server(|scene| {
        for (minor, data) in [
            (0, ""),
            (1, "\0"),
            (7, "{}"),
            (0xffff, "{}\0"),
            (1, r#"{"capabilities":null}"#),
            (1, r#"{"capabilities":{}, "more": [1, {}]}"#),
            (1, all),
            (1, lane),
        ] {
            let mut client = Client::silent(&scene.one);
            let asked = version(0, minor, data.as_bytes());
            let reply = client.ask(command::VERSION, &asked, &[]).unwrap();
            let [a, b, c, d, json @ .., 0] = &reply[..] else { panic!("no NUL: {reply:?}") };
            assert_eq!(u16::from_ne_bytes([*a, *b]), 0);
            assert!(u16::from_ne_bytes([*c, *d]) <= minor, "{reply:?}");
            let said: serde_json::Value = serde_json::from_slice(json).unwrap();
            let said = said["capabilities"].as_object().unwrap();
            assert!(said.keys().all(|name| data.contains(name.as_str())), "{data}: {said:?}");
            let optional = ["twin_socket", "write_multiple", "x"];
            assert!(optional.iter().all(|name| !said.contains_key(*name)), "{said:?}");
            assert_eq!(said.contains_key("vfio_ccw_lane"), data.contains("lane"), "{said:?}");
            // Once is enough.
            assert_eq!(client.ask(command::VERSION, &asked, &[]), Err(libc::EINVAL));
        }
    });
}

#[test]
fn what_is_no_message_ends_the_connection() {
    against_a_server(|scene| {
        let half = message(1, command::REGION_WRITE, 0, &sound(command::REGION_WRITE));
        let mut ends =
            vec![half[..5].to_vec(), half[..16].to_vec(), half[..half.len() - 1].to_vec()];
        for size in [0, 1, 15, 16 + 16 + MEBIBYTE + 1, u32::MAX] {
            ends.push(header(1, command::REGION_WRITE, size, 0).to_vec());
        }
        for kind in [1, 2, 0xf, REPLY | ERROR, REPLY | NO_REPLY] {
            ends.push(message(1, command::GET_INFO, kind, &sound(command::GET_INFO)));
        }
        for (at, end) in ends.into_iter().enumerate() {
            let mut client = Client::new(&scene.one);
            client.send_bytes(&end, &[]).unwrap();
            if at < 3 {
                continue;
            }
            assert!(client.receive().is_none(), "{}", end.escape_ascii());
            assert_eq!(client.send_with(0, command::GET_INFO, &[], &[]), 0xfff2);
        }
    });
}

#[test]
fn half_a_message_is_waited_for_and_keeps_nobody_else_waiting() {
    against_a_server(|scene| {
        let mut slow = Client::new(&scene.one);
        let mut other = Guest::on(&scene.two, "hostile");
        let whole = message(7, command::GET_INFO, 0, &sound(command::GET_INFO));
        for byte in &whole {
            slow.send_bytes(std::slice::from_ref(byte), &[]).unwrap();
            other.works();
        }
        let reply = slow.receive().unwrap();
        assert_eq!((reply.id, reply.flags, reply.payload.len()), (7, REPLY, 16));
        // The largest there is, in two halves.
        let data = vec![0; MEBIBYTE as usize];
        let large = [access(0, 0, MEBIBYTE), data].concat();
        let large = message(8, command::REGION_WRITE, 0, &large);
        slow.send_bytes(&large[..MEBIBYTE as usize / 2], &[]).unwrap();
        other.works();
        slow.send_bytes(&large[MEBIBYTE as usize / 2..], &[]).unwrap();
        let reply = slow.receive().unwrap();
        assert_eq!((reply.id, reply.flags, reply.error), (8, REPLY | ERROR, libc::EINVAL as u32));
        assert_eq!(slow.ask(command::RESET, &[], &[]), Ok(vec![]));
    });
}

/// Commands that a server need not know, or that there are not, and what it says to them.
const REFUSED: [(u16, i32); 16] = [
    (0, libc::EOPNOTSUPP),
    (command::VERSION, libc::EINVAL),
    (6, libc::EOPNOTSUPP),
    (11, libc::EOPNOTSUPP),
    (12, libc::EOPNOTSUPP),
    (14, libc::EOPNOTSUPP),
    (15, libc::EOPNOTSUPP),
    (16, libc::ENOTTY),
    (17, libc::EOPNOTSUPP),
    (18, libc::EOPNOTSUPP),
    (19, libc::EOPNOTSUPP),
    (0xcc00, libc::EOPNOTSUPP),
    (LANE, libc::EOPNOTSUPP),
    (0xcc02, libc::EOPNOTSUPP),
    (0x0400, libc::EOPNOTSUPP),
    (0xffff, libc::EOPNOTSUPP),
];

#[test]
fn what_is_not_there_is_refused_by_its_header_alone() {
    against_a_server(|scene| {
        let mut guest = Guest::on(&scene.one, "hostile");
        for (number, errno) in REFUSED {
            for payload in [0, 8, 24, 100, 70_000] {
                let refused = guest.client.ask(number, &vec![0; payload], &[]);
                assert_eq!(refused, Err(errno), "command {number:#x}, {payload} bytes");
            }
        }
        // Payloads that are too short or too long. (A list behind GET_REGION_INFO is passed over.)
        for number in KNOWN.into_iter().filter(|number| *number != command::VERSION) {
            let payload = sound(number);
            let long = [&payload[..], &[0]].concat();
            let short = payload.len().checked_sub(1).map(|len| payload[..len].to_vec());
            let long = (number != command::GET_REGION_INFO).then_some(long);
            for wrong in short.into_iter().chain(long) {
                let refused = guest.client.ask(number, &wrong, &[]);
                assert_eq!(refused, Err(libc::EINVAL), "command {number}, {} bytes", wrong.len());
            }
        }
        guest.works();
    });
}

#[test]
fn who_wants_no_reply_gets_none() {
    against_a_server(|scene| {
        let mut guest = Guest::on(&scene.one, "hostile");
        for number in KNOWN.into_iter().chain(REFUSED.map(|(number, _)| number)) {
            for payload in [sound(number), vec![0xff; 9]] {
                guest.client.send_with(NO_REPLY, number, &payload, &[]);
            }
        }
        // The next reply is this one's. What went before was done: there is no memory any more.
        assert_eq!(guest.client.unmap(0, MEMORY), Err(libc::ENOENT));
        assert_eq!(guest.client.unmap(1 << 40, PAGE), Ok(()));
        guest.client.map(0, MEMORY, 3, &guest.memory, 0).unwrap();
        guest.works();
    });
}

#[test]
fn descriptors_that_nobody_wants_are_refused_and_closed() {
    against_a_server(|scene| {
        let mut guest = Guest::on(&scene.one, "hostile");
        let file = memory("hostile", PAGE);
        let before = descriptors().len();
        for number in KNOWN.into_iter().chain(REFUSED.map(|(number, _)| number)) {
            let takes = usize::from([command::DMA_MAP, command::SET_IRQS, LANE].contains(&number));
            for count in [takes + 1, 8, 9, 10, 253] {
                let files: Vec<BorrowedFd<'_>> = vec![file.as_fd(); count];
                let refused = guest.client.ask(number, &sound(number), &files);
                let by_itself = REFUSED.iter().find(|(refused, _)| *refused == number);
                let unknown = by_itself.is_some_and(|(number, _)| {
                    ![1, 6, 11, 12, 15, 16, 17, 18, LANE].contains(number)
                });
                let errno = if unknown { libc::EOPNOTSUPP } else { libc::EINVAL };
                assert_eq!(refused, Err(errno), "command {number:#x}, {count} descriptors");
                assert_eq!(descriptors().len(), before, "command {number:#x}, {count} descriptors");
            }
        }
        // In the middle of a message, and with each part of it.
        let bytes = message(1, command::GET_INFO, 0, &sound(command::GET_INFO));
        for part in bytes.chunks(10) {
            guest.client.send_bytes(part, &[file.as_fd(); 3]).unwrap();
        }
        assert_eq!(guest.client.receive().unwrap().error, libc::EINVAL as u32);
        assert_eq!(descriptors().len(), before);
        guest.works();
        // Those of half a message go with the connection.
        guest.client.send_bytes(&bytes[..20], &[file.as_fd(); 8]).unwrap();
        // And those of a first message, which needs none.
        drop(guest);
        let mut client = Client::silent(&scene.one);
        let _ = client.ask_whole(command::VERSION, &[0; 4], &[file.as_fd(); 5]);
        drop(client);
    });
}

#[test]
fn windows_are_mapped_where_they_make_sense_and_nowhere_else() {
    const AT: u64 = 1 << 32;
    against_a_server(|scene| {
        let mut guest = Guest::on(&scene.one, "hostile");
        let file = memory("hostile", 4 * PAGE);
        let read_only = File::open(format!("/proc/self/fd/{}", raw(&file))).unwrap();
        let sealed = memory("hostile", PAGE);
        fcntl_add_seals(&sealed, SealFlags::WRITE).unwrap();
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let eventfd = File::from(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let (pipe, _other) = std::io::pipe().unwrap();
        let pipe = File::from(OwnedFd::from(pipe));
        let folder = File::open("/").unwrap();
        let map = |payload: &[u8], file: Option<&File>, guest: &mut Guest| {
            let files: Vec<_> = file.map(AsFd::as_fd).into_iter().collect();
            guest
                .client
                .ask(command::DMA_MAP, payload, &files)
                .map(|reply| assert!(reply.is_empty()))
        };
        let invalid = Err(libc::EINVAL);
        for (case, payload, file, expected) in [
            ("address odd", window(32, 3, 0, AT + 16, PAGE), Some(&file), invalid),
            ("size odd", window(32, 3, 0, AT, PAGE + 1), Some(&file), invalid),
            ("offset odd", window(32, 3, 512, AT, PAGE), Some(&file), invalid),
            ("size 0", window(32, 3, 0, AT, 0), Some(&file), invalid),
            ("wraps", window(32, 3, 0, u64::MAX - 4095, 2 * PAGE), Some(&file), invalid),
            ("everything", window(32, 3, 0, 0, 0u64.wrapping_sub(PAGE)), None, Err(libc::EEXIST)),
            ("up to the end", window(32, 3, 0, PAGE, !4095), Some(&file), Err(libc::EEXIST)),
            ("behind the end", window(32, 3, 4 * PAGE, AT, PAGE), Some(&file), invalid),
            ("over the end", window(32, 3, 3 * PAGE, AT, 2 * PAGE), Some(&file), invalid),
            ("offset wraps", window(32, 3, !4095, AT, 2 * PAGE), Some(&file), invalid),
            ("flags 0", window(32, 0, 0, AT, PAGE), Some(&file), invalid),
            ("flag 4", window(32, 7, 0, AT, PAGE), Some(&file), invalid),
            ("flags all", window(32, u32::MAX, 0, AT, PAGE), Some(&file), invalid),
            ("argsz 0", window(0, 3, 0, AT, PAGE), Some(&file), invalid),
            ("argsz 31", window(31, 3, 0, AT, PAGE), Some(&file), invalid),
            ("eventfd", window(32, 3, 0, AT, PAGE), Some(&eventfd), invalid),
            ("pipe", window(32, 3, 0, AT, PAGE), Some(&pipe), invalid),
            ("/dev/null", window(32, 3, 0, AT, PAGE), Some(&null), invalid),
            ("folder", window(32, 1, 0, AT, PAGE), Some(&folder), invalid),
            ("store, read only", window(32, 3, 0, AT, PAGE), Some(&read_only), Err(libc::EACCES)),
            ("store, sealed", window(32, 2, 0, AT, PAGE), Some(&sealed), Err(libc::EPERM)),
            ("same again", window(32, 3, 0, 0, MEMORY), Some(&file), Err(libc::EEXIST)),
            ("inside", window(32, 3, 0, PAGE, PAGE), Some(&file), Err(libc::EEXIST)),
            ("over its end", window(32, 3, 0, MEMORY - PAGE, 2 * PAGE), None, Err(libc::EEXIST)),
            ("sound", window(32, 3, 0, AT, PAGE), Some(&file), Ok(())),
            ("over its start", window(32, 1, 0, AT - PAGE, 2 * PAGE), None, Err(libc::EEXIST)),
            ("fetch, read only", window(32, 1, 0, 2 * AT, PAGE), Some(&read_only), Ok(())),
            ("fetch, sealed", window(32, 1, 0, 3 * AT, PAGE), Some(&sealed), Ok(())),
            ("last page", window(32, 3, 0, !4095, PAGE), Some(&file), Ok(())),
            ("no file", window(32, 3, 0, 4 * AT, PAGE), None, Ok(())),
            ("over no file", window(32, 3, 0, 4 * AT, PAGE), Some(&file), Err(libc::EEXIST)),
        ] {
            assert_eq!(map(&payload, file, &mut guest), expected, "{case}");
        }
        guest.works();
        let once = |payload: Vec<u8>, guest: &mut Guest| {
            guest.client.ask(command::DMA_UNMAP, &payload, &[])
        };
        for (case, payload, expected) in [
            ("half", range(24, 0, 0, MEMORY / 2), libc::ENOENT),
            ("more", range(24, 0, 0, 2 * MEMORY), libc::ENOENT),
            ("second half", range(24, 0, MEMORY / 2, MEMORY / 2), libc::ENOENT),
            ("nothing there", range(24, 0, 5 * AT, PAGE), libc::ENOENT),
            ("size 0", range(24, 0, 0, 0), libc::ENOENT),
            ("wraps", range(24, 0, !4095, 2 * PAGE), libc::ENOENT),
            ("all", range(24, 0, 0, u64::MAX), libc::ENOENT),
            ("argsz 0", range(0, 0, 0, MEMORY), libc::EINVAL),
            ("argsz 23", range(23, 0, 0, MEMORY), libc::EINVAL),
            ("dirty bitmap", range(24, 1, 0, MEMORY), libc::EINVAL),
        ] {
            assert_eq!(once(payload, &mut guest), Err(expected), "unmap {case}");
        }
        guest.works();
        for (address, size) in [(AT, PAGE), (!4095, PAGE), (4 * AT, PAGE), (0, MEMORY)] {
            assert_eq!(guest.client.unmap(address, size), Ok(()), "{address:#x}");
            assert_eq!(guest.client.unmap(address, size), Err(libc::ENOENT), "{address:#x}");
        }
        assert!(guest.run(&[]).scsw.subchannel_status().contains(SubchannelStatus::PROGRAM_CHECK));
    });
}

fn raw(file: &File) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(file)
}

#[test]
fn a_program_meets_nothing_in_windows_without_a_file_and_stores_nowhere_else() {
    const AWAY: u32 = 0x100_0000;
    against_a_server(|scene| {
        scene.gate.open();
        let mut guest = Guest::on(&scene.one, "hostile");
        let read = |at: u32| {
            [Ccw::new(channel::SENSE_ID, at, TRANSFER as u16).with(CcwFlags::SUPPRESS_LENGTH)]
        };
        let payload = window(32, 3, 0, AWAY.into(), PAGE);
        assert_eq!(guest.client.ask(command::DMA_MAP, &payload, &[]), Ok(vec![]));
        let status = guest.run(&read(AWAY)).scsw.subchannel_status();
        assert_eq!(status, SubchannelStatus::PROGRAM_CHECK);
        assert_eq!(guest.client.unmap(AWAY.into(), PAGE), Ok(()));

        let file = memory("hostile", PAGE);
        file.write_all_at(&[7; PAGE as usize], 0).unwrap();
        guest.client.map(AWAY.into(), PAGE, 1, &file, 0).unwrap();
        let status = guest.run(&read(AWAY)).scsw.subchannel_status();
        assert_eq!(status, SubchannelStatus::PROTECTION_CHECK);
        let mut bytes = [0; PAGE as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [7; PAGE as usize]);

        assert!(guest.run(&read(DATA as u32)).scsw.is_clean_end());
        assert_ne!(guest.peek(DATA, TRANSFER), [0; TRANSFER]);
    });
}

#[test]
fn regions_have_ends() {
    against_a_server(|scene| {
        let mut guest = Guest::on(&scene.one, "hostile");
        let client = &mut guest.client;
        for (region, offset, count) in [
            (0, 0, 125),
            (0, 124, 1),
            (0, 1, u32::MAX),
            (0, u64::MAX, 1),
            (0, u64::MAX, 0),
            (0, 1 << 32, 4),
            (0, 1024, 8),
            (1, 4, 5),
            (2, 0, 53),
            (3, 8, 1),
            (4, 0, 0),
            (4, 0, 4),
            (u32::MAX, 0, 4),
            (1 << 22, 0, 4),
            (0, 0, MEBIBYTE),
            (0, 0, MEBIBYTE + 1),
        ] {
            let head = access(region, offset, count);
            let case = format!("{region} {offset:#x} {count}");
            assert_eq!(client.ask(command::REGION_READ, &head, &[]), Err(libc::EINVAL), "{case}");
            if count <= MEBIBYTE {
                let whole = [head, vec![0; count as usize]].concat();
                let written = client.ask(command::REGION_WRITE, &whole, &[]);
                assert_eq!(written, Err(libc::EINVAL), "{case}");
            }
        }
        // Data that are more or less than was said.
        for (count, data) in [(4, 3), (4, 5), (0, 1), (u32::MAX, 4), (124, 0), (4, 124)] {
            let payload = [access(1, 0, count), vec![0; data]].concat();
            let written = client.ask(command::REGION_WRITE, &payload, &[]);
            assert_eq!(written, Err(libc::EINVAL), "{count} {data}");
        }
        for region in [2, 3] {
            assert_eq!(client.write(region, 0, &[0; 4]), Err(libc::EINVAL), "it is read only");
        }
        assert_eq!(client.read(0, 124, 0), Ok(vec![]));
        assert_eq!(client.read(0, 123, 1), Ok(vec![0]));
        guest.works();
    });
}

#[test]
fn region_info_comes_in_two_sizes() {
    const CAPS: u32 = 8;
    against_a_server(|scene| {
        let mut client = Client::new(&scene.one);
        let mut ask = |index, argsz| {
            let reply = client.ask(command::GET_REGION_INFO, &region_info(argsz, index), &[])?;
            let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
            Ok::<Vec<u32>, i32>(reply.chunks(4).map(word).collect())
        };
        // Size and offset are of eight bytes, which are two words in the order of the machine.
        let words = |long: u64| {
            let bytes = long.to_ne_bytes();
            [&bytes[..4], &bytes[4..]].map(|half| u32::from_ne_bytes(half.try_into().unwrap()))
        };
        let halves = |first: u16, second: u16| {
            let bytes = [first.to_ne_bytes(), second.to_ne_bytes()].concat();
            u32::from_ne_bytes(bytes.try_into().unwrap())
        };
        let region = |argsz: u32, flags: u32, index: u32, size: u64| {
            let offset = u64::from(index) * 1024;
            [&[argsz, flags, index, 0][..], &words(size), &words(offset)].concat()
        };
        for argsz in [0, 31] {
            assert_eq!(ask(1, argsz), Err(libc::EINVAL), "argsz {argsz}");
        }
        for index in [4, u32::MAX] {
            assert_eq!(ask(index, 64), Err(libc::EINVAL), "region {index}");
        }
        for (index, flags, size) in [(1, 3, 8), (2, 1, 52), (3, 1, 8)] {
            let plain = region(48, flags | CAPS, index, size);
            for argsz in [32, 33, 47] {
                assert_eq!(ask(index, argsz).unwrap(), plain, "{index} {argsz}");
            }
            // The capability's number and version, of two bytes each; the next one; type and subtype.
            let mut whole = plain.clone();
            whole.extend([halves(2, 1), 0, 2, index]);
            for argsz in [48, 64, u32::MAX] {
                let shown = ask(index, argsz).unwrap();
                assert_eq!(shown[..3], whole[..3], "{index} {argsz}");
                assert_eq!(shown[3], 32, "{index} {argsz}");
                assert_eq!(shown[4..], whole[4..], "{index} {argsz}");
            }
        }
        assert_eq!(ask(0, 48).unwrap(), region(32, 3, 0, 124), "it has no capability");
    });
}

#[test]
fn interrupts_are_set_as_the_text_has_it_and_not_otherwise() {
    const TRIGGER: u32 = 32;
    let (none, byte, file) = (1 | TRIGGER, 2 | TRIGGER, 4 | TRIGGER);
    against_a_server(|scene| {
        let mut guest = Guest::on(&scene.one, "hostile");
        let eventfd = guest.interrupt.try_clone().unwrap();
        let given = [eventfd.as_fd()];
        // Each kind of data with what belongs to it. Interrupts of a channel device cannot be masked.
        for flags in 0..128 {
            let data: &[u8] = if flags & 2 != 0 { &[1] } else { &[] };
            let files: &[_] = if flags & 4 != 0 { &given } else { &[] };
            for count in [0, 1] {
                let set = guest.client.set_irqs([flags, 0, 0, count], data, files);
                let sound = [none, byte, file].contains(&flags) && count == 1
                    || flags == none && count == 0;
                assert_eq!(set.is_ok(), sound, "flags {flags:#x} count {count}: {set:?}");
            }
        }
        guest.client.set_irqs([file, 0, 0, 1], &[], &given).unwrap();
        guest.works();
        let (pipe, other) = std::io::pipe().unwrap();
        let stream = UnixStream::pair().unwrap().0;
        let memfd = memory("hostile", PAGE);
        let client = &mut guest.client;
        let nothing: &[u8] = &[];
        for (case, set, data, files) in [
            ("flag 64", [none | 64, 0, 0, 1], nothing, &[][..]),
            ("index 3", [none, 3, 0, 1], &[], &[]),
            ("index of eventfd 3", [file, 3, 0, 1], &[], &given),
            ("index all", [none, u32::MAX, 0, 1], &[], &[]),
            ("start 1", [none, 0, 1, 1], &[], &[]),
            ("start 1, count 0", [none, 0, 1, 0], &[], &[]),
            ("count 2", [none, 0, 0, 2], &[], &[]),
            ("wraps", [none, 0, u32::MAX, u32::MAX], &[], &[]),
            ("data with none", [none, 0, 0, 1], &[1], &[]),
            ("file with none", [none, 0, 0, 1], &[], &given),
            ("file with byte", [byte, 0, 0, 1], &[1], &given),
            ("byte without", [byte, 0, 0, 1], &[], &[]),
            ("two bytes", [byte, 0, 0, 1], &[1, 1], &[]),
            ("two bytes, count 2", [byte, 0, 0, 2], &[1, 1], &[]),
            ("data with file", [file, 0, 0, 1], &[1], &given),
            ("file, count 0", [file, 0, 0, 0], &[], &given),
            ("file, count 2", [file, 0, 0, 2], &[], &given),
            ("file, start 1", [file, 0, 1, 1], &[], &given),
            ("no file, count 2", [file, 0, 0, 2], &[], &[]),
            ("pipe", [file, 0, 0, 1], &[], &[other.as_fd()]),
            ("other end", [file, 0, 0, 1], &[], &[pipe.as_fd()]),
            ("socket", [file, 0, 0, 1], &[], &[stream.as_fd()]),
            ("memory", [file, 0, 0, 1], &[], &[memfd.as_fd()]),
        ] {
            assert_eq!(client.set_irqs(set, data, files), Err(libc::EINVAL), "{case}");
        }
        let short = words(&[19, none, 0, 0, 1]);
        assert_eq!(client.ask(command::SET_IRQS, &short, &[]), Err(libc::EINVAL));
        // Nothing of that has taken the eventfd away.
        guest.works();
        // A counter that is full keeps nobody waiting: it is not written to.
        let full = File::from(eventfd);
        (&full).write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
        guest.client.set_irqs([none, 0, 0, 1], &[], &[]).unwrap();
        guest.works();
        // Two ways to take it away.
        for away in [[file, 0, 0, 1], [none, 0, 0, 0]] {
            guest.client.set_irqs([file, 0, 0, 1], &[], &[full.as_fd()]).unwrap();
            guest.client.set_irqs(away, &[], &[]).unwrap();
            guest.client.set_irqs([none, 0, 0, 1], &[], &[]).unwrap();
            let mut polled = [PollFd::new(&full, PollFlags::IN)];
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            assert_eq!(poll(&mut polled, Some(&at_once)), Ok(0), "{away:?}");
        }
    });
}

#[test]
fn who_asks_and_does_not_read_is_not_listened_to_until_he_does() {
    /// Many times what sockets and server keep of them.
    const QUESTIONS: u16 = 60_000;
    against_a_server(|scene| {
        let client = Client::new(&scene.one);
        let all: Vec<u8> = (0..QUESTIONS)
            .flat_map(|id| message(id, command::REGION_READ, 0, &access(0, 0, 124)))
            .collect();
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| client.send_bytes(&all, &[]).unwrap());
            let mut other = Guest::on(&scene.two, "hostile");
            (0..100).for_each(|_| other.works());
            assert!(!asking.is_finished(), "the server holds replies without end");
            for id in 0..QUESTIONS {
                let reply = client.receive().unwrap();
                assert_eq!((reply.id, reply.flags, reply.payload.len()), (id, REPLY, 16 + 124));
            }
        });
    });
}

#[test]
fn a_program_ends_with_its_client_and_the_next_one_finds_the_regions() {
    let transfer = [Ccw::new(channel::SENSE_ID, DATA as u32, TRANSFER as u16)];
    against_a_server(|scene| {
        let mut guest = Guest::on(&scene.one, "hostile");
        guest.works();
        let region = guest.client.read(0, 0, 124).unwrap();
        guest.start(&transfer);
        scene.gate.wait_for_arrivals(1);
        let started = guest.client.read(0, 0, 124).unwrap();
        assert_eq!(started[24..120], region[24..120], "no status yet");
        // A start meanwhile is refused, and so is nothing else.
        assert_eq!(guest.client.write(0, 0, &orb_and_scsw()), Err(libc::EBUSY));
        guest.client.read(2, 0, 52).unwrap();
        let kept = guest.memory.try_clone().unwrap();
        drop(guest);

        let mut next = Guest::on(&scene.one, "hostile");
        let found = next.client.read(0, 0, 120).unwrap();
        assert_eq!(found, started[..120], "the regions are the device's, not the client's");
        // A transfer that was under way may have been finished; nothing comes later.
        kept.write_all_at(&[0; TRANSFER], DATA).unwrap();
        next.works();
        let mut bytes = [0; TRANSFER];
        kept.read_exact_at(&mut bytes, DATA).unwrap();
        assert_eq!(bytes, [0; TRANSFER], "nothing is stored for who has gone");
    });
}

#[test]
fn what_has_to_wait_for_a_program_is_answered_in_its_turn() {
    let transfer = [Ccw::new(channel::SENSE_ID, DATA as u32, TRANSFER as u16)];
    against_a_server(|scene| {
        let mut guest = Guest::on(&scene.one, "hostile");
        for (round, (number, payload)) in
            [(command::RESET, vec![]), (command::DMA_UNMAP, range(24, 0, 0, MEMORY))]
                .into_iter()
                .enumerate()
        {
            guest.start(&transfer);
            scene.gate.wait_for_arrivals(round + 1);
            let ids = [
                guest.client.send_with(0, number, &payload, &[]),
                guest.client.send_with(0, command::GET_INFO, &sound(command::GET_INFO), &[]),
            ];
            for id in ids {
                let reply = guest.client.receive().unwrap();
                assert_eq!((reply.id, reply.flags), (id, REPLY));
            }
            guest.put(DATA, &[0; TRANSFER]);
        }
        guest.client.map(0, MEMORY, 3, &guest.memory, 0).unwrap();
        guest.works();
        assert_eq!(guest.peek(DATA, TRANSFER), [0; TRANSFER], "it was over when that was answered");
    });
}

/// Version data of a client that knows the lane.
const WITH_LANE: &str = r#"{"capabilities":{"vfio_ccw_lane":{"version":1}}}"#;

/// Slots of each track.
const ENTRIES: u32 = 8;

/// Where the second track begins: state, count and slots of the first, on whole pages.
const SECOND: u64 = PAGE;

/// Memory for a lane, sealed so that it stays. Its words are stored whole, as the server reads them.
struct Lane {
    file: File,
    memory: GuestMemoryMmap,
}

impl Lane {
    fn new() -> Self {
        let file = memory("hostile", 2 * PAGE);
        fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
        let backed = FileOffset::new(file.try_clone().unwrap(), 0);
        let range = (GuestAddress(0), 2 * PAGE as usize, Some(backed));
        Lane { file, memory: GuestMemoryMmap::from_ranges_with_files([range]).unwrap() }
    }

    fn store(&self, at: u64, word: u64) {
        self.memory.store(word, GuestAddress(at), Ordering::SeqCst).unwrap();
    }

    fn load(&self, at: u64) -> u64 {
        self.memory.load(GuestAddress(at), Ordering::SeqCst).unwrap()
    }

    /// Joins; what wakes the server.
    fn join(&self, client: &mut Client, number: u32) -> Result<File, i32> {
        let payload = offer(24, 0, ENTRIES, number, 0);
        let mut reply = client.ask_whole(LANE, &payload, &[self.file.as_fd()])?;
        assert!(reply.payload.is_empty() && reply.files.len() == 1, "{reply:?}");
        Ok(reply.files.remove(0).into())
    }

    /// Waits until the server has taken so many orders.
    #[track_caller]
    fn is_taken(&self, orders: u32) {
        let end = Instant::now() + STALL;
        while (self.load(64) as u32) < orders {
            assert!(Instant::now() < end, "{} of {orders} are taken", self.load(64));
            std::thread::yield_now();
        }
    }

    /// Puts the entry at `position` into the first track.
    fn order(&self, position: u32, head: u32, body: &[u8]) {
        let at = 128 + u64::from(position % ENTRIES) * 64;
        self.memory.write_slice(body, GuestAddress(at + 8)).unwrap();
        self.store(at, u64::from(head) << 32 | u64::from(position.wrapping_add(1)));
    }

    /// The report at `position`, once it is there: head, tag, errno, and residual count with status.
    fn report(&self, guest: &Guest, position: u32) -> (u32, u32, u32, [u8; 4]) {
        let at = SECOND + 128 + u64::from(position % ENTRIES) * 64;
        let first = loop {
            // The sleep is announced before the look.
            self.store(SECOND, 1);
            let first = self.load(at);
            if first as u32 == position + 1 {
                break first;
            }
            guest.is_interrupted();
        };
        let body = [1, 2, 3].map(|word| self.load(at + 8 * word).to_ne_bytes()).concat();
        self.store(SECOND + 64, u64::from(position + 1));
        let word = |at: usize| u32::from_ne_bytes(body[at..at + 4].try_into().unwrap());
        ((first >> 32) as u32, word(0), word(4), body[16..20].try_into().unwrap())
    }
}

/// Payload of the command that offers a lane.
fn offer(argsz: u32, flags: u32, entries: u32, number: u32, offset: u64) -> Vec<u8> {
    [words(&[argsz, flags, entries, number]), offset.to_ne_bytes().to_vec()].concat()
}

/// An order to start the program at 0.
fn start_order(tag: u32) -> Vec<u8> {
    [&words(&[tag, 0])[..], &orb_and_scsw()[..12]].concat()
}

/// Signals an eventfd.
fn kick(mut eventfd: &File) {
    eventfd.write_all(&1u64.to_ne_bytes()).unwrap();
}

const START: u32 = 1 << 16;
const REFUSAL: u32 = 5 << 16;
const STATUS: u32 = 6 << 16;

#[test]
fn a_lane_works_as_it_is_written_down() {
    against_a_server(|scene| {
        let mut guest = Guest::of(Client::with(&scene.one, WITH_LANE), "hostile");
        let lane = Lane::new();
        let wakes = lane.join(&mut guest.client, 3).unwrap();
        guest.put_program(&[Ccw::new(channel::NOP, 0, 0)]);
        for position in 0..3 * ENTRIES {
            lane.order(position, START | 3, &start_order(1000 + position));
            kick(&wakes);
            let (head, tag, errno, status) = lane.report(&guest, position);
            assert_eq!((head, tag, errno), (STATUS | 3, 1000 + position, 0));
            assert_eq!(status, [0x0c, 0, 0, 0], "channel end, device end, nothing left");
        }
    });
}

#[test]
fn lanes_that_make_no_sense_are_refused() {
    against_a_server(|scene| {
        let mut one = Guest::of(Client::with(&scene.one, WITH_LANE), "hostile");
        let sound = offer(24, 0, ENTRIES, 0, 0);
        let lane = Lane::new();
        let (long, unsealed) = (&lane.file, memory("hostile", 2 * PAGE));
        let short = memory("hostile", 2 * PAGE - 1);
        fcntl_add_seals(&short, SealFlags::SHRINK).unwrap();
        let write_sealed = memory("hostile", 2 * PAGE);
        fcntl_add_seals(&write_sealed, SealFlags::WRITE | SealFlags::SHRINK).unwrap();
        let read_only = File::open(format!("/proc/self/fd/{}", raw(long))).unwrap();
        let eventfd = File::from(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        for (case, payload, file, errno) in [
            ("argsz 0", offer(0, 0, ENTRIES, 0, 0), Some(long), libc::EINVAL),
            ("argsz 25", offer(25, 0, ENTRIES, 0, 0), Some(long), libc::EINVAL),
            ("flag", offer(24, 1, ENTRIES, 0, 0), Some(long), libc::EINVAL),
            ("no entries", offer(24, 0, 0, 0, 0), Some(long), libc::EINVAL),
            ("1 entry", offer(24, 0, 1, 0, 0), Some(long), libc::EINVAL),
            ("3 entries", offer(24, 0, 3, 0, 0), Some(long), libc::EINVAL),
            ("too many", offer(24, 0, 1 << 17, 0, 0), Some(long), libc::EINVAL),
            ("most", offer(24, 0, 1 << 31, 0, 0), Some(long), libc::EINVAL),
            ("number", offer(24, 0, ENTRIES, ENTRIES, 0), Some(long), libc::EINVAL),
            ("all numbers", offer(24, 0, 1 << 16, u32::MAX, 0), Some(long), libc::EINVAL),
            ("offset 64", offer(24, 0, ENTRIES, 0, 64), Some(long), libc::EINVAL),
            ("offset", offer(24, 0, ENTRIES, 0, PAGE), Some(long), libc::EINVAL),
            ("offset wraps", offer(24, 0, ENTRIES, 0, !4095), Some(long), libc::EINVAL),
            ("more than the file", offer(24, 0, 128, 0, 0), Some(long), libc::EINVAL),
            ("short", sound.clone(), Some(&short), libc::EINVAL),
            ("no file", sound.clone(), None, libc::EINVAL),
            ("unsealed", sound.clone(), Some(&unsealed), libc::EPERM),
            ("an eventfd", sound.clone(), Some(&eventfd), libc::EPERM),
            ("read only", sound.clone(), Some(&read_only), libc::EACCES),
            ("sealed against writes", sound.clone(), Some(&write_sealed), libc::EPERM),
            ("no payload", vec![], Some(long), libc::EINVAL),
            ("half of it", sound[..23].to_vec(), Some(long), libc::EINVAL),
        ] {
            let files: Vec<_> = file.map(AsFd::as_fd).into_iter().collect();
            assert_eq!(one.client.ask(LANE, &payload, &files), Err(errno), "{case}");
        }
        one.works();
        let _wakes = lane.join(&mut one.client, 0).unwrap();
        assert_eq!(lane.join(&mut one.client, 1).unwrap_err(), libc::EBUSY);
        let mut without = Client::new(&scene.two);
        assert_eq!(lane.join(&mut without, 1).unwrap_err(), libc::EOPNOTSUPP);
        drop(without);
        let mut two = Client::with(&scene.two, WITH_LANE);
        assert_eq!(lane.join(&mut two, 0).unwrap_err(), libc::EEXIST, "the number is taken");
        let others = offer(24, 0, 2 * ENTRIES, 1, 0);
        let refused = two.ask(LANE, &others, &[long.as_fd()]);
        assert_eq!(refused, Err(libc::EEXIST), "other entries");
        lane.join(&mut two, 1).unwrap();
    });
}

#[test]
fn garbage_in_a_lane_harms_nobody_else() {
    against_a_server(|scene| {
        let mut two = Guest::on(&scene.two, "hostile");
        let mut guest = Guest::of(Client::with(&scene.one, WITH_LANE), "hostile");
        let lane = Lane::new();
        let wakes = lane.join(&mut guest.client, 0).unwrap();
        guest.put_program(&[Ccw::new(channel::NOP, 0, 0)]);
        // No orders, or for devices that are not there.
        let mut position = 0;
        for head in
            [0, 5 << 16, 6 << 16, 8 << 16, 0xff << 16, START | 1, START | 0xffff, !0, 1 << 31]
        {
            lane.order(position, head, &[0xff; 56]);
            position += 1;
            kick(&wakes);
            lane.is_taken(position);
        }
        two.works();
        // Orders that cannot be carried out, and one that can: the lane is in step.
        lane.order(position, START, &[0xff; 56]);
        lane.order(position + 1, START, &start_order(7));
        kick(&wakes);
        let (head, tag, errno, _) = lane.report(&guest, 0);
        assert_eq!((head, tag), (REFUSAL, u32::MAX), "transport mode");
        assert_eq!(errno, libc::EOPNOTSUPP as u32);
        let (head, tag, ..) = lane.report(&guest, 1);
        assert_eq!((head, tag), (STATUS, 7));
        position += 2;
        // What cannot be: more taken than there was, or less than before. No report gets through any more.
        for absurd in [u64::MAX, 0, 1 << 31, u64::MAX << 32] {
            lane.store(SECOND + 64, absurd);
            for _ in 0..2 * ENTRIES {
                lane.order(position, START, &start_order(8));
                position += 1;
                kick(&wakes);
            }
            two.works();
        }
        // All of it at once, and all of the time.
        for seed in 0..200u32 {
            let noise: Vec<u8> = (0..2 * PAGE as u32)
                .map(|at| ((seed ^ at).wrapping_mul(0x9e37_79b9) >> 24) as u8)
                .collect();
            lane.memory.write_slice(&noise, GuestAddress(0)).unwrap();
            kick(&wakes);
        }
        two.works();
        assert_eq!(guest.client.ask(command::RESET, &[], &[]), Ok(vec![]), "it is not lost either");
    });
}

#[test]
fn reports_that_nobody_reads_do_not_pile_up() {
    against_a_server(|scene| {
        let mut guest = Guest::of(Client::with(&scene.one, WITH_LANE), "hostile");
        Lane::new().join(&mut guest.client, 0).unwrap();
        guest.put_program(&[Ccw::new(channel::NOP, 0, 0)]);
        // Programs of such a device may come by way of its region as well, and report to the lane.
        let ends = (0..100 * ENTRIES).find_map(|_| guest.client.write(0, 0, &orb_and_scsw()).err());
        assert_eq!(ends, Some(libc::EBUSY), "it goes on for ever");
    });
}

#[test]
fn a_lane_is_served_by_whoever_joins_it_after_the_last_has_left() {
    against_a_server(|scene| {
        let lane = Lane::new();
        for round in 0..40 {
            let mut guest = Guest::of(Client::with(&scene.one, WITH_LANE), "hostile");
            lane.memory.write_slice(&[0; 2 * PAGE as usize], GuestAddress(0)).unwrap();
            let wakes = lane.join(&mut guest.client, 0).unwrap();
            guest.put_program(&[Ccw::new(channel::NOP, 0, 0)]);
            lane.order(0, START, &start_order(round));
            kick(&wakes);
            let (head, tag, ..) = lane.report(&guest, 0);
            assert_eq!((head, tag), (STATUS, round));
        }
    });
}
