//! A device server that answers whatever it likes, from the first message to the status of a program: the
//! client takes it for what it says or leaves it, and the program ends once.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use vfio_ccw::architecture::{
    Ccw, DeviceStatus, IrbHead, Orb, Pmcw, Schib, Scsw, ScswFlags, SubchannelStatus, command,
};
use vfio_ccw::backend::remote::RemoteDevice;
use vfio_ccw::backend::{IrqInfo, RegionInfo, SchibRegion};
use vfio_ccw::vfio_user::{Access, Command, DeviceInfo, HEADER, Header, Version};
use vfio_ccw::{Completions, DeviceSpec, Service};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::input::Input;

/// Bytes of guest memory, and where the program is.
const MEMORY: usize = 1 << 16;
const PROGRAM: u32 = 0x1000;

/// Messages that a case answers at most.
const MOST_MESSAGES: usize = 64;

/// How long a server waits for a client that waits for it. (Status that is late is looked for before.)
const PATIENCE: Duration = Duration::from_millis(200);

/// Nothing takes this long.
const STALL: Duration = Duration::from_secs(20);

thread_local! {
    static SERVICE: Service = service();
}

fn service() -> Service {
    let memfd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC);
    let file = File::from(memfd.expect("a memfd"));
    file.set_len(MEMORY as u64).expect("some pages");
    let range = (GuestAddress(0), MEMORY, Some(FileOffset::new(file, 0)));
    let memory = GuestMemoryMmap::<()>::from_ranges_with_files([range]).expect("a mapping");
    let nop = Ccw::new(command::NOP, 0, 0).to_format_1();
    memory.write_slice(&nop, GuestAddress(PROGRAM.into())).expect("guest memory");
    Service::builder().subchannels(16).build(Arc::new(memory)).expect("the service starts")
}

/// One case: for each message how it is answered, and with what.
pub fn run(bytes: &[u8]) {
    let (ours, theirs) = UnixStream::pair().expect("two sockets");
    let script = bytes.to_vec();
    let server = thread::spawn(move || serve(theirs, &script));
    // Nobody is there when it looks for the server again.
    let device = RemoteDevice::over(ours, Path::new("/nonexistent/vfio-ccw.sock"));
    let device = match device {
        Ok(device) => device,
        Err(error) => {
            let text = error.to_string();
            assert!(!text.is_empty() && text.len() < 1000, "{text}");
            return server.join().expect("the server lives");
        }
    };
    SERVICE.with(|service| {
        let (delivery, mut completions) = Completions::ring(16).expect("an eventfd");
        let subchannel = service.attach(DeviceSpec::remote(device), delivery);
        let subchannel = subchannel.expect("room for it");
        subchannel.submit(&Orb::new(PROGRAM), 7).expect("room in its ring");
        let mut ends = 0;
        while ends == 0 {
            assert!(completions.wait(Some(STALL)).expect("poll"), "the program never ends");
            completions.reap(usize::MAX, |completion| {
                assert_eq!(completion.user_data, 7);
                ends += u32::from(completion.is_final());
            });
        }
        service.drain(subchannel, STALL).expect("nothing runs");
        completions.reap(usize::MAX, |completion| ends += u32::from(completion.is_final()));
        assert_eq!(ends, 1, "one start, one end");
    });
    server.join().expect("the server lives");
}

/// Answers one message after the other by `script`, then leaves.
fn serve(mut stream: UnixStream, script: &[u8]) {
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes it");
    let mut input = Input::new(script);
    let mut events: Vec<File> = Vec::new();
    for _ in 0..MOST_MESSAGES {
        let Some((header, payload, files)) = receive(&stream) else { return };
        events.extend(files.into_iter().map(File::from));
        let mut reply = honest(&header, &payload);
        match input.u8() % 8 {
            1 => {
                let place = usize::from(input.u8()) % reply.len();
                reply[place] ^= input.u8();
            }
            2 => {
                let errno = u32::from(input.u16());
                reply = header.refusal(errno).as_bytes().to_vec();
            }
            3 => {
                let len = usize::from(input.u8());
                reply = input.slice(len).to_vec();
            }
            4 => {
                // A command of its own first.
                let own = Header::command(header.id, Command::DmaRead, 0);
                reply.splice(0..0, own.as_bytes().iter().copied());
            }
            5 => return,
            6 => {
                let again = reply.clone();
                reply.extend(again);
            }
            7 => {
                let place = HEADER.min(reply.len());
                let len = usize::from(input.u8() % 80);
                let more = input.slice(len);
                let end = reply.len().min(place + more.len());
                reply[place..end].copy_from_slice(&more[..end - place]);
            }
            _ => {}
        }
        if stream.write_all(&reply).is_err() {
            return;
        }
        if header.command == Command::RegionWrite as u16 {
            let signals = input.u8() % 4;
            for _ in 0..signals {
                for event in &mut events {
                    let _ = event.write(&1u64.to_ne_bytes());
                }
            }
        }
    }
}

/// What an honest server replies.
fn honest(header: &Header, payload: &[u8]) -> Vec<u8> {
    let index = payload.get(8..12).map_or(0, |word| word[0].into());
    let body: Vec<u8> = match Command::of(header.command) {
        Some(Command::Version) => {
            let Version { major, minor } = Version::OURS;
            [&major.to_ne_bytes()[..], &minor.to_ne_bytes(), b"{\"capabilities\":{}}\0"].concat()
        }
        Some(Command::DeviceGetInfo) => {
            let info = DeviceInfo { argsz: 16, flags: 0x11, num_regions: 4, num_irqs: 3 };
            info.as_bytes().to_vec()
        }
        Some(Command::DeviceGetRegionInfo) => match RegionInfo::new(index, 48) {
            Ok(info) => info.as_bytes().to_vec(),
            Err(_) => Vec::new(),
        },
        Some(Command::DeviceGetIrqInfo) => match IrqInfo::new(index) {
            Ok(info) => info.as_bytes().to_vec(),
            Err(_) => Vec::new(),
        },
        Some(Command::RegionRead) => {
            let (access, _) = Access::read_from_prefix(payload).expect("the client keeps to it");
            let bytes = match access.region {
                0 => ended().as_bytes().to_vec(),
                2 => {
                    let schib = Schib { pmcw: Pmcw::single_path(1), ..Schib::default() };
                    SchibRegion { schib }.as_bytes().to_vec()
                }
                _ => vec![0; access.count as usize],
            };
            [access.as_bytes(), &bytes].concat()
        }
        Some(Command::RegionWrite) => payload[..payload.len().min(16)].to_vec(),
        Some(Command::DmaUnmap) => payload.to_vec(),
        _ => Vec::new(),
    };
    [header.reply(body.len() as u32).as_bytes(), &body].concat()
}

/// Status of a program that ended well.
fn ended() -> IrbHead {
    let flags = ScswFlags::START_FUNCTION
        | ScswFlags::PRIMARY
        | ScswFlags::SECONDARY
        | ScswFlags::STATUS_PENDING;
    let status = DeviceStatus::CHANNEL_END | DeviceStatus::DEVICE_END;
    let scsw = Scsw::new(flags).with_status(status, SubchannelStatus::empty(), 0);
    IrbHead { scsw, ..IrbHead::default() }
}

/// One message of the client's, and what came beside it; `None` where it has left.
fn receive(mut stream: &UnixStream) -> Option<(Header, Vec<u8>, Vec<OwnedFd>)> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let mut header = Header::new_zeroed();
    let mut into = [IoSliceMut::new(header.as_mut_bytes())];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let received = recvmsg(stream, &mut into, &mut control, flags).ok()?;
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
    stream.read_exact(&mut payload).ok()?;
    Some((header, payload, files))
}
