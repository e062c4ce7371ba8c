//! Messages, put together from the bytes and descriptors that arrive. No I/O is done here.

use std::os::fd::OwnedFd;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::message::{Access, HEADER, Header};

/// Most bytes of a payload: data of a mebibyte, which is what the protocol allows where nothing else was
/// agreed, and what stands before it.
pub const MOST_PAYLOAD: usize = (1 << 20) + size_of::<Access>();

/// Descriptors that are taken beside one message. No command has more than one; so many are told from
/// one, and closed.
pub const MOST_FILES: usize = 8;

/// Bytes of a payload that are made room for before any has arrived.
const CHUNK: usize = 64 << 10;

/// Why no message can be read any more: where the next one begins is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// It would be shorter than its header.
    #[error("a message says that it has {size} bytes, less than the {HEADER} of its header")]
    TooShort {
        /// What it says.
        size: u32,
    },
    /// Nobody sends so much.
    #[error("a message says that it has {size} bytes, more than the {} that are taken", HEADER + MOST_PAYLOAD)]
    TooLong {
        /// What it says.
        size: u32,
    },
}

/// A whole message.
#[derive(Debug)]
pub struct Message<'a> {
    /// Its header.
    pub header: Header,
    /// What follows that.
    pub payload: &'a [u8],
    /// Descriptors that came beside it.
    pub files: Vec<OwnedFd>,
    /// There were more, which are gone.
    pub has_lost_files: bool,
}

/// Takes bytes until they are a message. What was taken for one message is used for the next: nothing is
/// allocated once it is large enough.
#[derive(Debug)]
pub struct Inbox {
    header: Header,
    payload: Vec<u8>,
    filled: usize,
    files: Vec<OwnedFd>,
    has_lost_files: bool,
}

impl Default for Inbox {
    fn default() -> Self {
        Inbox {
            header: Header::new_zeroed(),
            payload: Vec::new(),
            filled: 0,
            files: Vec::new(),
            has_lost_files: false,
        }
    }
}

impl Inbox {
    /// Where the next bytes go. Never beyond the end of the message, since descriptors beside bytes belong to
    /// the message that those are of; empty where the message is whole.
    pub fn space(&mut self) -> &mut [u8] {
        if self.filled < HEADER {
            return &mut self.header.as_mut_bytes()[self.filled..];
        }
        let (at, end) = (self.filled - HEADER, self.size() - HEADER);
        // A peer that says a mebibyte and sends none gets none.
        let end = end.min(at + CHUNK);
        if self.payload.len() < end {
            self.payload.resize(end, 0);
        }
        &mut self.payload[at..end]
    }

    /// Bytes of the message, once its header is there.
    fn size(&self) -> usize {
        self.header.size as usize
    }

    /// So many bytes were put into the space, with these descriptors beside them. `lost`: there were more
    /// descriptors. Whether the message is whole.
    ///
    /// # Errors
    ///
    /// [`FrameError`]: this is no message, and nothing that follows is.
    pub fn filled(
        &mut self,
        bytes: usize,
        files: impl IntoIterator<Item = OwnedFd>,
        lost: bool,
    ) -> Result<bool, FrameError> {
        self.has_lost_files |= lost;
        for file in files {
            if self.files.len() < MOST_FILES {
                self.files.push(file);
            } else {
                self.has_lost_files = true;
            }
        }
        let had_header = self.filled >= HEADER;
        self.filled += bytes;
        if self.filled < HEADER {
            return Ok(false);
        }
        let size = self.header.size;
        if !had_header {
            if self.size() < HEADER {
                return Err(FrameError::TooShort { size });
            }
            if self.size() > HEADER + MOST_PAYLOAD {
                return Err(FrameError::TooLong { size });
            }
        }
        Ok(self.filled >= self.size())
    }

    /// The header of the message, which is whole.
    pub fn header(&self) -> Header {
        self.header
    }

    /// Whether nothing of a message has arrived.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// The message, which is whole; the next one can be taken after this.
    pub fn take(&mut self) -> Message<'_> {
        let len = self.size().min(self.filled).saturating_sub(HEADER);
        self.filled = 0;
        Message {
            header: self.header,
            payload: &self.payload[..len],
            files: std::mem::take(&mut self.files),
            has_lost_files: std::mem::take(&mut self.has_lost_files),
        }
    }
}

impl Message<'_> {
    /// The beginning of the payload, and what follows it; `None` where it is shorter.
    pub fn head<T: FromBytes>(&self) -> Option<(T, &[u8])> {
        T::read_from_prefix(self.payload).ok()
    }

    /// The payload, where it is a `T` and nothing else.
    pub fn whole<T: FromBytes>(&self) -> Option<T> {
        T::read_from_bytes(self.payload).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Command;
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    /// Feeds bytes in pieces of `piece`, and gives the payload of each message.
    fn messages(bytes: &[u8], piece: usize) -> Result<Vec<(u16, Vec<u8>)>, FrameError> {
        let (mut inbox, mut rest, mut found) = (Inbox::default(), bytes, Vec::new());
        while !rest.is_empty() {
            let space = inbox.space();
            let now = space.len().min(piece).min(rest.len());
            space[..now].copy_from_slice(&rest[..now]);
            rest = &rest[now..];
            if inbox.filled(now, [], false)? {
                let message = inbox.take();
                found.push((message.header.id, message.payload.to_vec()));
            }
        }
        assert!(inbox.is_empty(), "all of it was whole messages");
        Ok(found)
    }

    #[test]
    fn messages_are_the_same_however_their_bytes_arrive() {
        let mut bytes = Vec::new();
        for (id, len) in [(1, 0), (2, 24), (3, 200_000), (4, 0), (5, 1)] {
            bytes.extend(Header::command(id, Command::RegionWrite, len).as_bytes());
            bytes.extend((0..len).map(|at| (at * 7 + u32::from(id)) as u8));
        }
        let whole = messages(&bytes, usize::MAX).unwrap();
        assert_eq!(whole.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(whole[2].1.len(), 200_000);
        assert_eq!(whole[4].1, [5]);
        for piece in [1, 3, 16, 17, 4096] {
            assert_eq!(messages(&bytes, piece).unwrap(), whole, "in pieces of {piece}");
        }
    }

    #[test]
    fn what_is_no_message_ends_it() {
        let sized = |size| Header { size, ..Header::command(1, Command::DeviceReset, 0) };
        for size in [0, 15] {
            let error = messages(sized(size).as_bytes(), 16).unwrap_err();
            assert_eq!(error, FrameError::TooShort { size });
        }
        let size = (HEADER + MOST_PAYLOAD + 1) as u32;
        let error = messages(sized(size).as_bytes(), 16).unwrap_err();
        assert_eq!(error, FrameError::TooLong { size });
        assert!(error.to_string().contains("1048609"), "{error}");
    }

    #[test]
    fn room_is_made_for_what_comes_not_for_what_is_announced() {
        let mut inbox = Inbox::default();
        let header = Header::command(1, Command::RegionWrite, MOST_PAYLOAD as u32);
        inbox.space().copy_from_slice(header.as_bytes());
        assert_eq!(inbox.filled(HEADER, [], false), Ok(false));
        assert_eq!(inbox.space().len(), CHUNK);
    }

    #[test]
    fn descriptors_go_with_their_message_and_too_many_are_closed() {
        let file = || eventfd(0, EventfdFlags::empty()).unwrap();
        let mut inbox = Inbox::default();
        let header = Header::command(1, Command::DeviceReset, 1);
        inbox.space().copy_from_slice(header.as_bytes());
        assert_eq!(inbox.filled(HEADER, [file()], false), Ok(false));
        inbox.space()[0] = 1;
        assert_eq!(inbox.filled(1, (0..MOST_FILES).map(|_| file()), false), Ok(true));
        let message = inbox.take();
        assert_eq!((message.files.len(), message.has_lost_files), (MOST_FILES, true));
        inbox.space().copy_from_slice(Header::command(2, Command::DeviceReset, 0).as_bytes());
        assert_eq!(inbox.filled(HEADER, [], false), Ok(true));
        let message = inbox.take();
        assert_eq!((message.files.len(), message.has_lost_files), (0, false));
    }
}
