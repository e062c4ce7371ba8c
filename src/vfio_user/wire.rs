//! The socket: messages with descriptors, without ever blocking.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::task::{Context, Poll, ready};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::inbox::{FrameError, Inbox, MOST_FILES};

/// Bytes that wait to be sent before what makes them is held up.
const MOST_WAITING: usize = 64 << 10;

/// Most descriptors that are sent beside one message.
const MOST_SENT: usize = 1;

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// The other side has closed it.
    #[error("the other side has closed the connection")]
    Closed,
    /// It has closed it in the middle of a message.
    #[error("the other side has closed the connection in the middle of a message")]
    Torn,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the socket failed: {0}")]
    Io(#[from] io::Error),
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: UnixStream,
}

impl Wire {
    /// Over a connected socket, on the runtime of this thread.
    ///
    /// # Errors
    ///
    /// The socket cannot be watched.
    pub(crate) fn new(stream: StdStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Wire { stream: UnixStream::from_std(stream)? })
    }

    /// Over one that this thread's runtime watches already.
    pub(crate) fn of(stream: UnixStream) -> Self {
        Wire { stream }
    }

    /// The socket, for another runtime.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(crate) fn into_std(self) -> io::Result<StdStream> {
        self.stream.into_std()
    }

    /// The process at the other end, where it can be seen from here.
    pub(crate) fn peer_process(&self) -> Option<i32> {
        self.stream.peer_cred().ok()?.pid().filter(|process| *process > 0)
    }

    /// No more will be sent: the other side learns that this one is done.
    pub(crate) fn close_sending(&self) {
        // It may be gone already.
        let _ = rustix::net::shutdown(self.stream.as_fd(), rustix::net::Shutdown::Write);
    }

    /// Waits until the inbox has a whole message.
    pub(crate) fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        inbox: &mut Inbox,
    ) -> Poll<Result<(), WireError>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_io(Interest::READABLE, || self.receive(inbox)) {
                Ok(Some(true)) => return Poll::Ready(Ok(())),
                Ok(Some(false)) => {}
                Ok(None) if inbox.is_empty() => return Poll::Ready(Err(WireError::Closed)),
                Ok(None) => return Poll::Ready(Err(WireError::Torn)),
                Err(error) => match error.downcast::<FrameError>() {
                    Ok(frame) => return Poll::Ready(Err(frame.into())),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Poll::Ready(Err(error.into())),
                },
            }
        }
    }

    /// Takes what is there of one message. Whether it is whole; `None`: there will be no more.
    fn receive(&self, inbox: &mut Inbox) -> io::Result<Option<bool>> {
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
        let mut control = RecvAncillaryBuffer::new(&mut room);
        let mut into = [IoSliceMut::new(inbox.space())];
        let received = recvmsg(&self.stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        if received.bytes == 0 {
            return Ok(None);
        }
        let lost = received.flags.bits() & libc::MSG_CTRUNC as u32 != 0;
        let files = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        });
        let whole = inbox.filled(received.bytes, files.flatten(), lost);
        whole.map(Some).map_err(io::Error::other)
    }

    /// Sends what waits, as far as the socket takes it.
    pub(crate) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        outbox: &mut Outbox,
    ) -> Poll<io::Result<()>> {
        while !outbox.is_empty() {
            match self.stream.try_io(Interest::WRITABLE, || self.send(outbox)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.stream.poll_write_ready(cx))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn send(&self, outbox: &mut Outbox) -> io::Result<()> {
        let (bytes, files) = outbox.next();
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SENT))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        let files = files.map(AsFd::as_fd);
        let files = files.as_slice();
        if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(io::Error::other("no room for a descriptor beside the message"));
        }
        let bytes = [IoSlice::new(bytes)];
        let sent = sendmsg(&self.stream, &bytes, &mut control, SendFlags::NOSIGNAL)?;
        outbox.sent(sent);
        Ok(())
    }
}

/// Messages on their way out.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    /// Bytes at its beginning that were sent.
    sent: usize,
    /// Descriptors, and the byte that each goes with.
    files: VecDeque<(usize, OwnedFd)>,
}

impl Outbox {
    /// Adds a message, of a header and a payload in parts, with a descriptor beside it.
    pub(crate) fn push(&mut self, header: &[u8], payload: &[&[u8]], file: Option<OwnedFd>) {
        if let Some(file) = file {
            self.files.push_back((self.bytes.len(), file));
        }
        self.bytes.extend_from_slice(header);
        payload.iter().for_each(|part| self.bytes.extend_from_slice(part));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// Whether the other side does not read as fast as it is written to.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() - self.sent > MOST_WAITING
    }

    /// What is sent next: up to the byte that another descriptor goes with.
    fn next(&self) -> (&[u8], Option<&OwnedFd>) {
        let mut files = self.files.iter().peekable();
        let file = files.next_if(|(at, _)| *at == self.sent).map(|(_, file)| file);
        let end = files.peek().map_or(self.bytes.len(), |(at, _)| *at);
        (&self.bytes[self.sent..end], file)
    }

    fn sent(&mut self, bytes: usize) {
        if bytes > 0 && self.files.front().is_some_and(|(at, _)| *at == self.sent) {
            self.files.pop_front();
        }
        self.sent += bytes;
        // Whoever reads just enough would otherwise never let it be empty, and it would grow for ever.
        if self.is_empty() || self.sent > MOST_WAITING {
            self.bytes.drain(..self.sent);
            self.files.iter_mut().for_each(|(at, _)| *at -= self.sent);
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::{Command, HEADER, Header};
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::future::poll_fn;
    use std::io::Write;
    use zerocopy::IntoBytes;

    fn on_a_runtime(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(test);
    }

    fn pair() -> (Wire, Wire) {
        let (one, other) = StdStream::pair().unwrap();
        (Wire::new(one).unwrap(), Wire::new(other).unwrap())
    }

    #[test]
    fn messages_arrive_whole_each_with_its_own_descriptor() {
        on_a_runtime(async {
            let (ours, theirs) = pair();
            let mut outbox = Outbox::default();
            for id in 0..4 {
                let payload = vec![id as u8; 100 * usize::from(id)];
                let header = Header::command(id, Command::DmaMap, payload.len() as u32);
                let file =
                    (id % 2 == 1).then(|| eventfd(id.into(), EventfdFlags::empty()).unwrap());
                outbox.push(header.as_bytes(), &[&payload], file);
            }
            poll_fn(|cx| ours.poll_send(cx, &mut outbox)).await.unwrap();
            assert!(outbox.is_empty() && outbox.bytes.is_empty());
            let mut inbox = Inbox::default();
            for id in 0..4u16 {
                poll_fn(|cx| theirs.poll_receive(cx, &mut inbox)).await.unwrap();
                let message = inbox.take();
                assert_eq!(message.header.id, id);
                assert_eq!(message.payload, vec![id as u8; 100 * usize::from(id)]);
                assert_eq!(message.files.len(), usize::from(id % 2), "message {id}");
            }
            drop(ours);
            let end = poll_fn(|cx| theirs.poll_receive(cx, &mut inbox)).await;
            assert!(matches!(end, Err(WireError::Closed)));
        });
    }

    #[test]
    fn half_a_message_is_told_from_an_end() {
        on_a_runtime(async {
            let (ours, mut theirs) = StdStream::pair().unwrap();
            let wire = Wire::new(ours).unwrap();
            let header = Header::command(1, Command::DeviceReset, 0);
            theirs.write_all(&header.as_bytes()[..HEADER - 1]).unwrap();
            drop(theirs);
            let mut inbox = Inbox::default();
            let end = poll_fn(|cx| wire.poll_receive(cx, &mut inbox)).await;
            assert!(matches!(end, Err(WireError::Torn)));
        });
    }

    #[test]
    fn what_was_sent_is_not_kept_where_something_always_waits() {
        let file = |message: u32| {
            message.is_multiple_of(1000).then(|| eventfd(0, EventfdFlags::empty()).unwrap())
        };
        let mut outbox = Outbox::default();
        outbox.push(&[0; 100], &[], file(0));
        for message in 1..100_000u32 {
            outbox.push(&[message as u8; 100], &[], file(message));
            let (next, file) = outbox.next();
            assert_eq!(next[0], (message - 1) as u8);
            assert_eq!(file.is_some(), (message - 1).is_multiple_of(1000));
            // The message before this one is sent, and this one waits.
            let left = outbox.bytes.len() - outbox.sent - 100;
            outbox.sent(left);
            assert!(!outbox.is_empty() && outbox.bytes.len() <= MOST_WAITING + 400, "{message}");
        }
    }

    #[test]
    fn who_does_not_read_is_not_written_to_without_end() {
        on_a_runtime(async {
            let (ours, theirs) = pair();
            let mut outbox = Outbox::default();
            let payload = vec![7; 1 << 20];
            let header = Header::command(1, Command::RegionWrite, payload.len() as u32);
            outbox.push(header.as_bytes(), &[&payload], None);
            let sent = poll_fn(|cx| Poll::Ready(ours.poll_send(cx, &mut outbox))).await;
            assert!(sent.is_pending() && outbox.is_full());
            let mut inbox = Inbox::default();
            let both = async {
                poll_fn(|cx| theirs.poll_receive(cx, &mut inbox)).await.unwrap();
            };
            let sending = async { poll_fn(|cx| ours.poll_send(cx, &mut outbox)).await.unwrap() };
            let (mut both, mut sending) = (Box::pin(both), Box::pin(sending));
            let (mut got, mut gone) = (false, false);
            poll_fn(|cx| {
                gone = gone || sending.as_mut().poll(cx).is_ready();
                got = got || both.as_mut().poll(cx).is_ready();
                if got && gone { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            drop(both);
            assert_eq!(inbox.take().payload, payload);
        });
    }
}
