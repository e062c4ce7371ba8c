//! One client's connection: its messages one after the other, and the device's program meanwhile.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::vfio_user::{Inbox, Outbox, Wire, WireError};

use super::seat::Seat;
use super::session::{Goodbye, Later, Session};
use super::tally;

/// Messages in a row before other devices get their turn.
const TOGETHER: usize = 32;

/// How long a server that is to end lets a program run.
const PROGRAM_PATIENCE: Duration = Duration::from_secs(10);

/// How long a server that is to end waits for a client to fetch the status of its last program.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// Serves one client after the other until the server is to end.
pub(super) async fn serve(seat: Rc<Seat>, listener: UnixListener) {
    loop {
        let accepted = poll_fn(|cx| {
            seat.remember(cx);
            if seat.house.draining.get() {
                return Poll::Ready(None);
            }
            listener.poll_accept(cx).map(Some)
        });
        match accepted.await {
            None => return,
            Some(Ok((stream, _))) => converse(&seat, Wire::of(stream)).await,
            Some(Err(error)) => {
                // No descriptor left, most likely: others may give some back.
                tracing::warn!(device = %seat.name, %error, "a client could not be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves one client until it leaves, or is sent away.
pub(super) async fn converse(seat: &Rc<Seat>, wire: Wire) {
    tracing::info!(device = %seat.name, "client connected");
    if let Some(tally) = &seat.house.tally {
        tally::add(&tally.standing.clients, 1);
        tally::add(&tally.standing.connections, 1);
    }
    let mut connection = Connection {
        session: Session::new(seat.clone()),
        seat: seat.clone(),
        wire,
        inbox: Inbox::default(),
        outbox: Outbox::default(),
        later: None,
        patience: Patience::default(),
        program_patience: Patience::default(),
    };
    match poll_fn(|cx| connection.poll(cx)).await {
        End::Left => tracing::info!(device = %seat.name, "client left"),
        End::Drained => tracing::info!(device = %seat.name, "drained"),
        End::Failed(error) => tracing::warn!(device = %seat.name, %error, "client lost"),
        End::SentAway(why) => tracing::warn!(device = %seat.name, %why, "client sent away"),
    }
    // Nothing of it is touched any more once it hears that the connection is over.
    seat.device.borrow_mut().vanish();
    poll_fn(|cx| {
        seat.remember(cx);
        seat.poll_device(cx)
    })
    .await;
    connection.session.close();
    if let Some(tally) = &seat.house.tally {
        tally::take(&tally.standing.clients, 1);
    }
}

/// Why a connection is over.
enum End {
    Left,
    Drained,
    Failed(WireError),
    SentAway(Goodbye),
}

struct Connection {
    session: Session,
    seat: Rc<Seat>,
    wire: Wire,
    inbox: Inbox,
    outbox: Outbox,
    /// What the next message waits for.
    later: Option<Later>,
    patience: Patience,
    program_patience: Patience,
}

impl Connection {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.seat.remember(cx);
        for _ in 0..TOGETHER {
            let is_idle = self.seat.poll_device(cx).is_ready();
            if is_idle && let Some(later) = self.later.take() {
                self.session.answer_later(&later, &mut self.outbox);
            }
            match self.wire.poll_send(cx, &mut self.outbox) {
                Poll::Ready(Err(error)) => return Poll::Ready(End::Failed(error.into())),
                // Whoever does not read is not listened to either.
                Poll::Pending if self.outbox.is_full() => return self.rest(is_idle, cx),
                _ => {}
            }
            if self.later.is_some() {
                return self.rest(is_idle, cx);
            }
            match self.wire.poll_receive(cx, &mut self.inbox) {
                Poll::Pending => return self.rest(is_idle, cx),
                Poll::Ready(Err(WireError::Closed)) => {
                    // It may have closed its sending side only, and read on.
                    let sent = self.wire.poll_send(cx, &mut self.outbox);
                    return if sent.is_pending() { Poll::Pending } else { Poll::Ready(End::Left) };
                }
                Poll::Ready(Err(error)) => return Poll::Ready(End::Failed(error)),
                Poll::Ready(Ok(())) => {}
            }
            let message = self.inbox.take();
            match self.session.answer(message, &mut self.outbox) {
                Ok(later) => self.later = later,
                Err(why) => return Poll::Ready(End::SentAway(why)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// There is nothing to do: a server that is to end does so now, or when the client has what it waits for.
    fn rest(&mut self, is_idle: bool, cx: &mut Context<'_>) -> Poll<End> {
        if !self.seat.house.draining.get() || self.later.is_some() {
            return Poll::Pending;
        }
        if !is_idle {
            ready!(self.program_patience.poll(PROGRAM_PATIENCE, cx));
            tracing::warn!(device = %self.seat.name, "a program has not ended after {PROGRAM_PATIENCE:?}, and is cleared");
        } else if !self.outbox.is_empty() || self.seat.device.borrow().is_unread() {
            ready!(self.patience.poll(DRAIN_PATIENCE, cx));
        }
        Poll::Ready(End::Drained)
    }
}

/// A wait that begins when it is first asked for.
#[derive(Default)]
struct Patience(Option<Pin<Box<Sleep>>>);

impl Patience {
    /// Ready: it has taken `most`.
    fn poll(&mut self, most: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + most)));
        sleep.as_mut().poll(cx)
    }
}
