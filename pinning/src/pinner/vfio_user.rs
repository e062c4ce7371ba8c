//! Windows of a device in another process, which speaks vfio-user.
//!
//! A window is a message that hands the device a file and says which part of it is where in guest
//! memory (DMA_MAP); the device maps the file. So guest memory must be shared, in a file: memfd or
//! hugetlbfs. The device keeps a descriptor of the whole file: what it cannot reach is a matter of
//! its good will, as mappings of a file cannot be revoked (`docs/interop/vfio-user.rst` of QEMU).

pub mod message;
#[cfg(test)]
mod model;
mod peer;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(super) use model::{Device, connect};

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, BorrowedFd};

use parking_lot::Mutex;
use zerocopy::{FromZeros, IntoBytes};

use super::{Pinner, Run, Stopped};
use message::{Answer, Command, DmaMap, DmaUnmap, HEADER, Header};

pub use message::Fault;
pub use peer::{Peer, Socket};

/// Windows that a device takes where it did not say otherwise (`max_dma_maps` of the version
/// message).
pub const MOST_WINDOWS: u32 = 65_535;

/// Longest message that is sent: a [`DmaMap`].
const LONGEST: usize = HEADER + size_of::<DmaMap>();

/// Makes a window of every frame at its guest address, one exchange of messages each.
///
/// The thread that pins waits for the answer, and others wait for their turn. A device that is
/// handed files has no need of commands of its own: one that comes where an answer is due is an
/// answer that does not fit. After such a one, or a transport error, the connection is not used any
/// more: an answer to an older message would be taken for one to a newer. The device must then be
/// attached anew, over a new connection.
#[derive(Debug)]
pub struct VfioUser<P = Socket> {
    connection: Mutex<Connection<P>>,
    most_windows: u32,
}

/// Why a window could not be made or taken away. It is the inner error of [`Stopped::source`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VfioUserError {
    /// Another process cannot map what no file backs.
    #[error(
        "guest region {start:#x} has no file that another process could map: back guest memory by \
         a shared memfd"
    )]
    NoFile {
        /// Guest address of the region.
        start: u64,
    },
    /// The run is not inside its region, or the region not inside what a file can be.
    #[error(
        "{len:#x} bytes at guest address {address:#x} are not inside guest region {start:#x} and \
         its file"
    )]
    Outside {
        /// Guest address of the run.
        address: u64,
        /// Its bytes.
        len: u64,
        /// Guest address of the region.
        start: u64,
    },
    /// The device refused the window.
    #[error(
        "the device refused a window of {len:#x} bytes at guest address {address:#x}: \
         {source}{remedy}"
    )]
    Map {
        /// Guest address of the window.
        address: u64,
        /// Its bytes.
        len: u64,
        /// What can be done about it; empty where unknown.
        remedy: &'static str,
        /// What the device said.
        source: io::Error,
    },
    /// The device did not give the window back.
    #[error("the device kept its window of {len:#x} bytes at guest address {address:#x}: {source}")]
    Unmap {
        /// Guest address of the window.
        address: u64,
        /// Its bytes.
        len: u64,
        /// What the device said.
        source: io::Error,
    },
    /// The device answered what is no answer.
    #[error("the device does not keep to the protocol: {0}")]
    Fault(#[from] Fault),
    /// The message or its answer did not get through.
    #[error("the connection to the device failed: {0}")]
    Transport(#[source] io::Error),
    /// An earlier message failed in a way that leaves the connection of no use.
    #[error(
        "the connection to the device is given up after an earlier failure: attach the device anew"
    )]
    GivenUp,
}

impl From<VfioUserError> for io::Error {
    fn from(error: VfioUserError) -> Self {
        let kind = match &error {
            VfioUserError::NoFile { .. } => io::ErrorKind::Unsupported,
            VfioUserError::Outside { .. } => io::ErrorKind::InvalidInput,
            VfioUserError::Map { source, .. }
            | VfioUserError::Unmap { source, .. }
            | VfioUserError::Transport(source) => source.kind(),
            VfioUserError::Fault(_) => io::ErrorKind::InvalidData,
            VfioUserError::GivenUp => io::ErrorKind::NotConnected,
        };
        io::Error::new(kind, error)
    }
}

impl<P: Peer> VfioUser<P> {
    /// Over `peer`, with which a version has been agreed, and which takes `most_windows` windows.
    pub fn new(peer: P, most_windows: u32) -> Self {
        let connection = Mutex::new(Connection { peer, next_id: 0, given_up: false });
        VfioUser { connection, most_windows }
    }

    fn map(&self, run: &Run<'_>) -> Result<(), VfioUserError> {
        let (len, start) = (run.host.len() as u64, run.region.start());
        let file = run.region.file().ok_or(VfioUserError::NoFile { start })?;
        let offset = offset(run, file.start()).ok_or(VfioUserError::Outside {
            address: run.address,
            len,
            start,
        })?;
        let map = DmaMap::new(run.address, len, offset);
        let answer = self.connection.lock().exchange(
            Command::DmaMap,
            map.as_bytes(),
            Some(file.file().as_fd()),
            &mut [],
        )?;
        match answer {
            Answer::Done => Ok(()),
            Answer::Refused(source) => Err(VfioUserError::Map {
                address: run.address,
                len,
                remedy: remedy(&source),
                source,
            }),
        }
    }

    fn unmap(&self, run: &Run<'_>) -> Result<(), VfioUserError> {
        let unmap = DmaUnmap::new(run.address, run.host.len() as u64);
        let mut repeated = DmaUnmap::new_zeroed();
        let mut connection = self.connection.lock();
        let answer = connection.exchange(
            Command::DmaUnmap,
            unmap.as_bytes(),
            None,
            repeated.as_mut_bytes(),
        )?;
        match answer {
            Answer::Done => unmap.repeated_by(&repeated).map_err(|fault| {
                connection.given_up = true;
                fault.into()
            }),
            Answer::Refused(source) => {
                Err(VfioUserError::Unmap { address: run.address, len: unmap.size, source })
            }
        }
    }
}

/// Where in the file that backs its region, from `file_start` on, the run begins. `None` where it
/// is not inside the region, or ends beyond what a file can be.
fn offset(run: &Run<'_>, file_start: u64) -> Option<u64> {
    let len = run.host.len() as u64;
    let in_region = run.address.checked_sub(run.region.start())?;
    if in_region.checked_add(len)? > run.region.len() {
        return None;
    }
    let offset = file_start.checked_add(in_region)?;
    // Offsets of files are signed.
    i64::try_from(offset.checked_add(len)?).is_ok().then_some(offset)
}

/// What each refusal of a device asks of the operator.
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EEXIST) => {
            " (something of it is mapped already: give this device one pool only)"
        }
        Some(libc::ENOSPC | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => {
            " (it has no room: raise its limits, choose larger frames, or lower the pin budget)"
        }
        Some(libc::EINVAL) => {
            " (it cannot map this: check that it knows pages as small as a frame, and that the \
             file is as long as guest memory)"
        }
        _ => "",
    }
}

impl<P: Peer> Pinner for VfioUser<P> {
    fn name(&self) -> &'static str {
        "vfio-user"
    }

    fn pin(&self, runs: &[Run<'_>]) -> Result<(), Stopped> {
        Stopped::at_first(runs, |run| self.map(run))
    }

    /// One message for each run: a window goes exactly as it was made.
    fn unpin(&self, runs: &[Run<'_>]) -> Result<(), Stopped> {
        Stopped::at_first(runs, |run| self.unmap(run))
    }

    fn joins_frames(&self) -> bool {
        false
    }

    fn most_runs(&self) -> Option<u32> {
        Some(self.most_windows)
    }

    fn keeps_place(&self) -> bool {
        false
    }
}

/// One message under way at a time.
#[derive(Debug)]
struct Connection<P> {
    peer: P,
    next_id: u16,
    given_up: bool,
}

impl<P: Peer> Connection<P> {
    /// Sends a command and waits for its reply, whose payload fills `reply` if the command
    /// succeeded.
    fn exchange(
        &mut self,
        command: Command,
        payload: &[u8],
        file: Option<BorrowedFd<'_>>,
        reply: &mut [u8],
    ) -> Result<Answer, VfioUserError> {
        if self.given_up {
            return Err(VfioUserError::GivenUp);
        }
        // Until an answer was understood the stream is in doubt.
        self.given_up = true;
        let sent = Header::command(self.next_id, command, payload.len() as u32);
        self.next_id = self.next_id.wrapping_add(1);
        let mut message = [0; LONGEST];
        let message = &mut message[..HEADER + payload.len()];
        message[..HEADER].copy_from_slice(sent.as_bytes());
        message[HEADER..].copy_from_slice(payload);
        self.peer.send(message, file).map_err(VfioUserError::Transport)?;

        let mut header = Header::new_zeroed();
        self.peer.receive(header.as_mut_bytes()).map_err(VfioUserError::Transport)?;
        let answer = header.answer(&sent, reply.len() as u32)?;
        if let Answer::Done = answer {
            self.peer.receive(reply).map_err(VfioUserError::Transport)?;
        }
        self.given_up = false;
        Ok(answer)
    }
}
