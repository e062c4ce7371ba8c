//! The other end of a vfio-user connection, and how long it may take.

use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

/// A stream of bytes to a device in another process, which takes descriptors along.
///
/// After an error nobody knows where in the stream the next message begins: the connection is not
/// used again.
pub trait Peer: Send {
    /// Sends all of `message`, and with its first byte `file`, where there is one.
    ///
    /// # Errors
    ///
    /// The system's error. [`io::ErrorKind::TimedOut`] where the peer does not read.
    fn send(&mut self, message: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()>;

    /// Fills `bytes` with what the peer sends next. Descriptors that come along are closed.
    ///
    /// # Errors
    ///
    /// The system's error. [`io::ErrorKind::TimedOut`] where the peer takes too long,
    /// [`io::ErrorKind::UnexpectedEof`] where it is gone.
    fn receive(&mut self, bytes: &mut [u8]) -> io::Result<()>;
}

/// A connected Unix socket.
#[derive(Debug)]
pub struct Socket {
    stream: UnixStream,
    patience: Duration,
}

impl Socket {
    /// Over `stream`, on which the versions have been agreed, and which is made blocking. A send or
    /// a reply that takes longer than `patience`, or at most twice as long where the peer dribbles,
    /// is given up.
    ///
    /// # Errors
    ///
    /// A patience of zero, or one that the socket does not take.
    pub fn new(stream: UnixStream, patience: Duration) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Socket { stream, patience })
    }

    fn timed_out(&self) -> io::Error {
        let patience = self.patience;
        io::Error::new(io::ErrorKind::TimedOut, format!("the peer took more than {patience:?}"))
    }

    /// The error of a call on the socket; `None` to call again.
    fn failure(&self, error: io::Error, begun: Instant) -> Option<io::Error> {
        match error.kind() {
            io::ErrorKind::WouldBlock => Some(self.timed_out()),
            io::ErrorKind::Interrupted if begun.elapsed() < self.patience => None,
            io::ErrorKind::Interrupted => Some(self.timed_out()),
            _ => Some(error),
        }
    }
}

impl Peer for Socket {
    fn send(&mut self, message: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let begun = Instant::now();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files = file.as_slice();
        if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(io::Error::other("no room for a descriptor beside the message"));
        }
        let mut rest = message;
        while !rest.is_empty() {
            let bytes = [IoSlice::new(rest)];
            match rustix::net::sendmsg(&self.stream, &bytes, &mut control, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    rest = &rest[sent.min(rest.len())..];
                    // The descriptor went with the first byte.
                    control.clear();
                }
                Err(error) => {
                    if let Some(failure) = self.failure(error.into(), begun) {
                        return Err(failure);
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads without room for descriptors: the kernel closes what a peer sends along.
    fn receive(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let begun = Instant::now();
        let mut rest = bytes;
        while !rest.is_empty() {
            match (&self.stream).read(rest) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => rest = &mut rest[read..],
                Err(error) => {
                    if let Some(failure) = self.failure(error, begun) {
                        return Err(failure);
                    }
                }
            }
            // The socket's own timeout begins anew with each read: a byte now and then must not
            // keep us for ever.
            if !rest.is_empty() && begun.elapsed() > self.patience {
                return Err(self.timed_out());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn pair(patience: Duration) -> (Socket, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Socket::new(ours, patience).unwrap(), theirs)
    }

    #[test]
    fn a_silent_peer_is_given_up() {
        let (mut socket, mut peer) = pair(Duration::from_millis(1));
        let error = socket.receive(&mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        peer.write_all(&[1, 2]).unwrap();
        let error = socket.receive(&mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "half of what was due");
    }

    #[test]
    fn a_peer_that_does_not_read_is_given_up() {
        let (mut socket, _peer) = pair(Duration::from_millis(1));
        let error = socket.send(&vec![0; 64 << 20], None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_peer_that_left_is_an_error() {
        let (mut socket, peer) = pair(Duration::from_secs(60));
        drop(peer);
        let error = socket.receive(&mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let error = socket.send(&[0; 4], None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn no_patience_at_all_is_refused() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert!(Socket::new(ours, Duration::ZERO).is_err());
    }
}
