//! Commands to a server, and its replies, which come in the order of the commands.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use zerocopy::IntoBytes;

use crate::backend::Errno;
use crate::vfio_user::{Command, Header, Inbox, Message, Outbox, Wire};

use super::ServerFault;

/// Commands that may wait for their replies.
const MOST_ASKED: usize = 1024;

/// Commands of the server's that are refused before the connection is. It has no reason for any.
const MOST_REFUSED: u32 = 64;

/// A connection, and what was asked over it.
#[derive(Debug)]
pub(super) struct Conversation<A> {
    wire: Wire,
    inbox: Inbox,
    outbox: Outbox,
    asked: VecDeque<(Header, A)>,
    next_id: u16,
    refused: u32,
}

/// What a server answers.
pub(super) type Answer<'a> = Result<Message<'a>, Errno>;

impl<A> Conversation<A> {
    pub(super) fn new(wire: Wire) -> Self {
        Conversation {
            wire,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            asked: VecDeque::new(),
            next_id: 0,
            refused: 0,
        }
    }

    /// The connection, where nothing is asked any more.
    pub(super) fn into_wire(self) -> Wire {
        self.wire
    }

    /// The process at the other end, where it can be seen from here.
    pub(super) fn peer_process(&self) -> Option<i32> {
        self.wire.peer_process()
    }

    /// Nothing more will be asked.
    pub(super) fn close_sending(&self) {
        self.wire.close_sending();
    }

    /// Puts a command on its way; `what` comes back with the reply.
    pub(super) fn ask(
        &mut self,
        command: Command,
        payload: &[&[u8]],
        file: Option<OwnedFd>,
        what: A,
    ) {
        let bytes: usize = payload.iter().map(|part| part.len()).sum();
        let header = Header::command(self.next_id, command, bytes as u32);
        self.next_id = self.next_id.wrapping_add(1);
        self.outbox.push(header.as_bytes(), payload, file);
        self.asked.push_back((header, what));
    }

    /// Sends what waits, as far as the socket takes it.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ServerFault>> {
        if self.asked.len() > MOST_ASKED {
            let what = format!("{} commands wait for their replies", self.asked.len());
            return Poll::Ready(Err(ServerFault::Protocol { what }));
        }
        self.wire
            .poll_send(cx, &mut self.outbox)
            .map_err(|error| ServerFault::Lost(error.to_string()))
    }

    /// Waits for the next reply: what was asked, and the answer.
    pub(super) fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(A, Answer<'_>), ServerFault>> {
        loop {
            ready!(self.wire.poll_receive(cx, &mut self.inbox))
                .map_err(|error| ServerFault::Lost(error.to_string()))?;
            let header = self.inbox.header();
            if !header.is_command() {
                break;
            }
            // Memory is handed over with its file: nobody has to ask for its contents.
            let _ = self.inbox.take();
            self.refused += 1;
            if self.refused > MOST_REFUSED {
                let what = format!("more than {MOST_REFUSED} commands of its own");
                return Poll::Ready(Err(ServerFault::Protocol { what }));
            }
            if header.wants_reply() {
                let refusal = header.refusal(libc::EOPNOTSUPP as u32);
                self.outbox.push(refusal.as_bytes(), &[], None);
            }
        }
        let message = self.inbox.take();
        let header = message.header;
        let protocol = |what: String| Poll::Ready(Err(ServerFault::Protocol { what }));
        let Some((sent, what)) = self.asked.pop_front() else {
            return protocol(format!("a reply to message {} that was not sent", header.id));
        };
        if (header.id, header.command) != (sent.id, sent.command) {
            return protocol(format!(
                "a reply to message {}, command {}, where one to {}, command {} was due",
                header.id, header.command, sent.id, sent.command
            ));
        }
        if header.is_refusal() {
            // An errno is optional, and may be anything.
            let errno = i32::try_from(header.error).ok().filter(|errno| (1..4096).contains(errno));
            return Poll::Ready(Ok((what, Err(Errno(errno.unwrap_or(libc::EIO))))));
        }
        Poll::Ready(Ok((what, Ok(message))))
    }
}

impl Conversation<()> {
    /// Asks, and waits for the answer.
    pub(super) async fn hear(
        &mut self,
        command: Command,
        payload: &[u8],
        file: Option<OwnedFd>,
    ) -> Result<Result<(Vec<u8>, Vec<OwnedFd>), Errno>, ServerFault> {
        self.ask(command, &[payload], file, ());
        poll_fn(|cx| {
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                return Poll::Ready(Err(error));
            }
            let ((), answer) = ready!(self.poll_answer(cx))?;
            Poll::Ready(Ok(answer.map(|message| (message.payload.to_vec(), message.files))))
        })
        .await
    }

    /// Asks for what must not be refused: `what`, if the error has to name it.
    pub(super) async fn must(
        &mut self,
        what: &'static str,
        command: Command,
        payload: &[u8],
        file: Option<OwnedFd>,
    ) -> Result<(Vec<u8>, Vec<OwnedFd>), ServerFault> {
        let answer = self.hear(command, payload, file).await?;
        answer.map_err(|errno| ServerFault::Refused { what, errno })
    }
}
