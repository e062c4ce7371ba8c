//! The framing of vfio-user: what a message looks like, and whether a reply is the one to it.
//!
//! A message is a header of 16 bytes and a payload whose size the header gives. All of it is in the
//! byte order of the machine, which both ends run on (`docs/interop/vfio-user.rst` of QEMU,
//! sections "Header" and the commands). No I/O is done here, so that whoever waits for replies can
//! do it his way.

use std::io;
use std::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a header.
pub const HEADER: usize = size_of::<Header>();

/// Bits of [`Header::flags`] that say whether it is a command or a reply.
const TYPE: u32 = 0xf;
/// The type of a reply; that of a command is 0.
const REPLY: u32 = 1;
/// A command that wants no reply.
const NO_REPLY: u32 = 1 << 4;
/// A reply that says that the command failed.
const ERROR: u32 = 1 << 5;

/// Largest error number that Linux has (`MAX_ERRNO` in `include/linux/err.h`).
const MOST_ERRNO: u32 = 4095;

/// Commands, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    /// Agrees on a version; the first message of all.
    Version = 1,
    /// Lets the peer see a range of memory: a [`DmaMap`], and the file that backs it.
    DmaMap = 2,
    /// Takes it away again: a [`DmaUnmap`], which the reply repeats.
    DmaUnmap = 3,
    /// What the device is.
    DeviceGetInfo = 4,
    /// What a region of the device is.
    DeviceGetRegionInfo = 5,
    /// Descriptors that stand for parts of a region.
    DeviceGetRegionIoFds = 6,
    /// What interrupts the device has.
    DeviceGetIrqInfo = 7,
    /// Wires interrupts to eventfds.
    DeviceSetIrqs = 8,
    /// Reads a region.
    RegionRead = 9,
    /// Writes a region.
    RegionWrite = 10,
    /// The peer reads memory that it could not map.
    DmaRead = 11,
    /// The peer writes memory that it could not map.
    DmaWrite = 12,
    /// Resets the device.
    DeviceReset = 13,
    /// Several small writes of a region.
    RegionWriteMulti = 15,
    /// Optional features, as VFIO has them.
    DeviceFeature = 16,
    /// Reads migration data.
    MigDataRead = 17,
    /// Writes migration data.
    MigDataWrite = 18,
    /// Ours, where both sides have agreed upon it: hands over memory for programs and status.
    CcwLane = 0xcc01,
}

impl Command {
    const ALL: [Command; 18] = [
        Command::Version,
        Command::DmaMap,
        Command::DmaUnmap,
        Command::DeviceGetInfo,
        Command::DeviceGetRegionInfo,
        Command::DeviceGetRegionIoFds,
        Command::DeviceGetIrqInfo,
        Command::DeviceSetIrqs,
        Command::RegionRead,
        Command::RegionWrite,
        Command::DmaRead,
        Command::DmaWrite,
        Command::DeviceReset,
        Command::RegionWriteMulti,
        Command::DeviceFeature,
        Command::MigDataRead,
        Command::MigDataWrite,
        Command::CcwLane,
    ];

    /// The command with this number; `None` where there is none.
    pub fn of(number: u16) -> Option<Self> {
        Command::ALL.into_iter().find(|command| *command as u16 == number)
    }
}

/// What every message begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// The sender's own number of a command; its reply repeats it.
    pub id: u16,
    /// Number of the [`Command`]; its reply repeats it.
    pub command: u16,
    /// Bytes of the message, this header included.
    pub size: u32,
    /// Command or reply, and whether it failed.
    pub flags: u32,
    /// Error number of a reply that says so, or 0.
    pub error: u32,
}

impl Header {
    /// In front of a command that has a payload of `payload` bytes.
    pub fn command(id: u16, command: Command, payload: u32) -> Self {
        let size = (HEADER as u32).saturating_add(payload);
        Header { id, command: command as u16, size, flags: 0, error: 0 }
    }

    /// In front of the reply to `self`, with a payload of `payload` bytes.
    pub fn reply(&self, payload: u32) -> Self {
        let size = (HEADER as u32).saturating_add(payload);
        Header { size, flags: REPLY, error: 0, ..*self }
    }

    /// The reply to `self` that says that it failed, by error number.
    pub fn refusal(&self, errno: u32) -> Self {
        Header { flags: REPLY | ERROR, error: errno, ..self.reply(0) }
    }

    /// Whether it is a reply that says that the command failed.
    pub fn is_refusal(&self) -> bool {
        self.flags & ERROR != 0
    }

    /// Whether it is a command rather than a reply.
    pub fn is_command(&self) -> bool {
        self.flags & TYPE == 0
    }

    /// Whether it is a command that wants a reply.
    pub fn wants_reply(&self) -> bool {
        self.is_command() && self.flags & NO_REPLY == 0
    }

    /// What `self`, which arrived, says to command `sent`, whose reply carries `payload` bytes when
    /// it succeeds.
    ///
    /// # Errors
    ///
    /// [`Fault`]: it is no reply to that. Nothing can be said then about where the next message
    /// begins.
    pub fn answer(&self, sent: &Header, payload: u32) -> Result<Answer, Fault> {
        if self.flags & TYPE != REPLY {
            return Err(Fault::NotAReply { flags: self.flags });
        }
        if self.id != sent.id || self.command != sent.command {
            return Err(Fault::ToAnother {
                id: self.id,
                command: self.command,
                sent_id: sent.id,
                sent_command: sent.command,
            });
        }
        let failed = self.flags & ERROR != 0;
        let expected = (HEADER as u32).saturating_add(if failed { 0 } else { payload });
        if self.size != expected {
            return Err(Fault::Size { size: self.size, expected });
        }
        Ok(if failed { Answer::Refused(errno(self.error)) } else { Answer::Done })
    }
}

/// What a reply says.
#[derive(Debug)]
pub enum Answer {
    /// The command succeeded; the payload follows.
    Done,
    /// It failed, and nothing follows.
    Refused(io::Error),
}

/// Error numbers are optional, and come from a peer that may put anything there.
fn errno(error: u32) -> io::Error {
    match error {
        0 => io::Error::other("no reason given"),
        1..=MOST_ERRNO => io::Error::from_raw_os_error(error as i32),
        _ => io::Error::other(format!("error number {error}, which Linux does not have")),
    }
}

/// What is wrong with a message that should have been a reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It is a command of the peer's, or of no known type.
    #[error("a message with flags {flags:#x} came where a reply (type 1) was due")]
    NotAReply {
        /// Its flags.
        flags: u32,
    },
    /// It replies to something else.
    #[error(
        "a reply to message {id}, command {command}, came where one to message {sent_id}, command \
         {sent_command}, was due"
    )]
    ToAnother {
        /// Its number.
        id: u16,
        /// Its command.
        command: u16,
        /// The number that was sent.
        sent_id: u16,
        /// The command that was sent.
        sent_command: u16,
    },
    /// Its size is not that of a reply to this command.
    #[error("the reply says that it has {size} bytes where {expected} were due")]
    Size {
        /// What it says.
        size: u32,
        /// What the protocol says.
        expected: u32,
    },
    /// It repeats another range than the one that was to go.
    #[error(
        "the reply is about {len:#x} bytes at {address:#x} where {sent_len:#x} at \
         {sent_address:#x} were to be unmapped"
    )]
    Range {
        /// Where its range begins.
        address: u64,
        /// Bytes of its range.
        len: u64,
        /// Where the range that was sent begins.
        sent_address: u64,
        /// Bytes of the range that was sent.
        sent_len: u64,
    },
}

/// Payload of [`Command::DmaMap`]. The reply has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaMap {
    /// Bytes of this struct.
    pub argsz: u32,
    /// [`DmaMap::READABLE`] and [`DmaMap::WRITEABLE`].
    pub flags: u32,
    /// Where in the file that comes along the range begins.
    pub offset: u64,
    /// Where the device sees it.
    pub address: u64,
    /// Its bytes.
    pub size: u64,
}

impl DmaMap {
    /// The device may read the range.
    pub const READABLE: u32 = 1 << 0;
    /// The device may write the range.
    pub const WRITEABLE: u32 = 1 << 1;

    /// `size` bytes at `address`, for reading and writing, from `offset` in the file on.
    pub fn new(address: u64, size: u64, offset: u64) -> Self {
        let argsz = size_of::<DmaMap>() as u32;
        DmaMap { argsz, flags: DmaMap::READABLE | DmaMap::WRITEABLE, offset, address, size }
    }
}

/// Payload of [`Command::DmaUnmap`], and of its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaUnmap {
    /// Bytes that the payload of the reply may have.
    pub argsz: u32,
    /// Nothing yet.
    pub flags: u32,
    /// Where the device sees the range.
    pub address: u64,
    /// Its bytes: all that were mapped in one message.
    pub size: u64,
}

impl DmaUnmap {
    /// `size` bytes at `address`.
    pub fn new(address: u64, size: u64) -> Self {
        DmaUnmap { argsz: size_of::<DmaUnmap>() as u32, flags: 0, address, size }
    }

    /// Checks the payload of the reply, which repeats what was sent.
    ///
    /// # Errors
    ///
    /// [`Fault::Range`]: it is about another range.
    pub fn repeated_by(&self, reply: &DmaUnmap) -> Result<(), Fault> {
        if (reply.address, reply.size) == (self.address, self.size) {
            return Ok(());
        }
        Err(Fault::Range {
            address: reply.address,
            len: reply.size,
            sent_address: self.address,
            sent_len: self.size,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fields where the protocol puts them, in the byte order of this machine.
    #[test]
    fn layouts_are_the_protocols() {
        let header = Header { id: 0x1122, command: 2, size: 48, flags: 0x21, error: 17 };
        let mut bytes = Vec::new();
        bytes.extend(0x1122u16.to_ne_bytes());
        bytes.extend(2u16.to_ne_bytes());
        [48u32, 0x21, 17].iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
        assert_eq!(header.as_bytes(), bytes);
        assert_eq!(HEADER, 16);

        let map = DmaMap::new(0x1000, 0x2000, 0x3000);
        let mut bytes = Vec::new();
        [32u32, 3].iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
        [0x3000u64, 0x1000, 0x2000].iter().for_each(|long| bytes.extend(long.to_ne_bytes()));
        assert_eq!(map.as_bytes(), bytes);

        let unmap = DmaUnmap::new(0x1000, 0x2000);
        let mut bytes = Vec::new();
        [24u32, 0].iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
        [0x1000u64, 0x2000].iter().for_each(|long| bytes.extend(long.to_ne_bytes()));
        assert_eq!(unmap.as_bytes(), bytes);
    }

    #[test]
    fn a_reply_is_known_by_number_command_type_and_size() {
        let sent = Header::command(7, Command::DmaUnmap, 24);
        assert_eq!((sent.size, sent.is_command(), sent.wants_reply()), (40, true, true));
        let good = sent.reply(24);
        assert!(matches!(good.answer(&sent, 24), Ok(Answer::Done)));
        assert!(!good.is_command() && !good.wants_reply());
        let fault = |header: Header| header.answer(&sent, 24).unwrap_err();
        assert!(matches!(fault(Header { id: 8, ..good }), Fault::ToAnother { id: 8, .. }));
        assert!(matches!(fault(Header { command: 2, ..good }), Fault::ToAnother { .. }));
        assert_eq!(fault(sent), Fault::NotAReply { flags: 0 });
        assert_eq!(fault(Header { flags: 2, ..good }), Fault::NotAReply { flags: 2 });
        for size in [0, 15, 16, 39, 41, u32::MAX] {
            assert_eq!(fault(Header { size, ..good }), Fault::Size { size, expected: 40 });
        }
        let refusal = Header { size: 40, ..sent.refusal(17) };
        assert_eq!(fault(refusal), Fault::Size { size: 40, expected: 16 }, "a header alone");
    }

    #[test]
    fn error_numbers_are_taken_where_linux_has_them() {
        let sent = Header::command(1, Command::DmaMap, 32);
        let refused = |errno| match sent.refusal(errno).answer(&sent, 0) {
            Ok(Answer::Refused(error)) => error,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(17).raw_os_error(), Some(libc::EEXIST));
        assert_eq!(refused(0).raw_os_error(), None);
        for errno in [4096, u32::MAX, i32::MIN as u32] {
            assert_eq!(refused(errno).raw_os_error(), None);
            assert!(refused(errno).to_string().contains(&errno.to_string()));
        }
    }

    #[test]
    fn an_unmap_that_repeats_another_range_is_a_fault() {
        let sent = DmaUnmap::new(0x1000, 0x2000);
        assert_eq!(sent.repeated_by(&DmaUnmap { argsz: 0, flags: 5, ..sent }), Ok(()));
        for reply in [DmaUnmap::new(0x2000, 0x2000), DmaUnmap::new(0x1000, 0x1000)] {
            assert!(matches!(sent.repeated_by(&reply), Err(Fault::Range { .. })));
        }
    }
}
