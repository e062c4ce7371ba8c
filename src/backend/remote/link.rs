//! The task that has the connection to a server: sets the device up, carries messages, and connects anew when
//! the server has gone.

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use zerocopy::{FromBytes, IntoBytes};

use crate::architecture::{Crw, IrbHead, ScswFlags};
use crate::backend::{
    AsyncRegion, CrwRegion, Errno, IoRegion, Irq, IrqSetFlags, RegionIndex, SchibRegion,
};
use crate::channel_subsystem::{DmaSpace, Window};
use crate::vfio_user::lane::{ENTRIES, Order};
use crate::vfio_user::{Access, Command, DmaMap, DmaUnmap, IrqSetHead, LaneOffer, Message, Wire};

use super::conversation::Conversation;
use super::handshake::{Greeted, look};
use super::port::{About, Port, Way};
use super::trunk::{Peer, Trunk, Trunks};
use super::{PATIENCE, ServerFault};

/// The pause before a server that has gone is looked for, which doubles to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How long HALT or CLEAR may take.
const FUNCTION_PATIENCE: Duration = Duration::from_secs(5);

/// How long a program that runs may go on when its device is to be given away, before it is cleared.
const RELEASE_PATIENCE: Duration = Duration::from_secs(5);

/// How long a server that is left has to let go of what its program uses.
const FAREWELL: Duration = Duration::from_millis(50);

/// How long after unsolicited status that of the program that runs may take before it is looked for.
const DOUBT: Duration = Duration::from_millis(50);

/// Replies in a row before neighbours get their turn.
const TOGETHER: usize = 32;

/// Whoever has the subchannel.
pub(crate) trait Owner {
    /// There is news of the program.
    fn look(&self);
    /// There is other news.
    fn ring(&self);
    /// The server is gone, or back.
    fn cut(&self, is_cut: bool);
    /// A channel report of the server's.
    fn report(&self, crw: Crw);
}

/// The half of the back end that has the connection.
pub(crate) struct Link {
    pub(crate) port: Rc<Port>,
    pub(crate) path: PathBuf,
    pub(crate) trunks: Rc<Trunks>,
    /// Programs may go over a lane.
    pub(crate) knows_lanes: bool,
}

/// What a command was for.
enum Asked {
    /// An order under this tag.
    Order(u32),
    /// What the interrupt was about. An IRB may be read twice, and the second time when the next program was
    /// started here: so each of these knows the last order that was sent before it.
    Irb(u32),
    Report,
    /// Whether the program is still under way.
    Schib(u32),
    /// It is not: its status is there, or was overwritten.
    LastIrb(u32),
    Map(u64, u64),
    Unmap(u64),
    /// The last command that shows the device this memory.
    Shown(Arc<DmaSpace>),
}

/// A device that was set up.
struct Up {
    talk: Conversation<Asked>,
    /// Where there is no lane.
    io: Option<AsyncFd<OwnedFd>>,
    reports: Option<AsyncFd<OwnedFd>>,
    /// What the device sees.
    seen: Arc<DmaSpace>,
    is_showing: bool,
    is_reading: bool,
    /// Tag of the last order that was sent.
    sent: u32,
    doubt: Option<Instant>,
    /// Made with the rest: nothing is allocated for a program.
    timer: Pin<Box<Sleep>>,
}

impl Link {
    /// Keeps the device connected, from `first` on.
    pub(crate) async fn run(self, first: (std::os::unix::net::UnixStream, Greeted)) {
        let mut first = Some(first);
        let mut pause = FIRST_PAUSE;
        loop {
            let is_first = first.is_some();
            let connected = match first.take() {
                Some((stream, greeted)) => Wire::new(stream)
                    .map(|wire| (Conversation::new(wire), greeted))
                    .map_err(ServerFault::from),
                None => self.connect().await,
            };
            let set_up = match connected {
                Ok((talk, greeted)) => self.set_up_in_time(talk, &greeted).await,
                Err(error) => Err(error),
            };
            match set_up {
                Ok((up, way)) => {
                    pause = FIRST_PAUSE;
                    self.work(up, way, is_first).await;
                }
                Err(error) if is_first => {
                    tracing::error!(socket = %self.path.display(), %error, "the device is not operational");
                    self.port.owner().cut(true);
                    self.port.down();
                }
                Err(error) => {
                    tracing::debug!(socket = %self.path.display(), %error, "not yet");
                }
            }
            sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    async fn connect(&self) -> Result<(Conversation<()>, Greeted), ServerFault> {
        let greeting = async {
            let stream = UnixStream::connect(&self.path).await?;
            let mut talk = Conversation::new(Wire::of(stream));
            let greeted = look(&mut talk).await?;
            Ok((talk, greeted))
        };
        let late = |_| ServerFault::Lost(format!("no answer for {PATIENCE:?}"));
        timeout(PATIENCE, greeting).await.map_err(late)?
    }

    /// As long as the server is there.
    async fn work(&self, mut up: Up, way: Way, is_first: bool) {
        self.port.up(way, &up.seen);
        self.port.owner().cut(false);
        if up.reports.is_some() {
            // Of what came before there was an eventfd nothing was signalled.
            up.read_report();
        }
        if !is_first {
            tracing::info!(socket = %self.path.display(), "the device is back");
        }
        let error = poll_fn(|cx| self.poll(&mut up, cx)).await;
        tracing::warn!(socket = %self.path.display(), %error, "the device is gone");
        // Before programs end: what is started from now on gets condition code 3.
        self.port.owner().cut(true);
        if !matches!(error, ServerFault::Lost(_)) && self.port.runs() {
            // It closes its end when it has let go of the memory.
            up.talk.close_sending();
            if timeout(FAREWELL, poll_fn(|cx| up.poll_end(cx))).await.is_err() {
                tracing::error!(
                    socket = %self.path.display(),
                    "a server that was left in the middle of a program has not let go of guest memory: it may still write there"
                );
            }
        }
        drop(up);
        self.port.down();
    }

    async fn set_up_in_time(
        &self,
        talk: Conversation<()>,
        greeted: &Greeted,
    ) -> Result<(Up, Way), ServerFault> {
        let late = |_| ServerFault::Lost(format!("no answer for {PATIENCE:?}"));
        timeout(PATIENCE, self.set_up(talk, greeted)).await.map_err(late)?
    }

    /// Resets the device, wires its interrupts, shows it memory, and offers it a lane.
    async fn set_up(
        &self,
        mut talk: Conversation<()>,
        greeted: &Greeted,
    ) -> Result<(Up, Way), ServerFault> {
        if greeted.can_reset {
            talk.must("to reset its device", Command::DeviceReset, &[], None).await?;
        }
        let lane = match greeted.lane.filter(|_| self.knows_lanes) {
            Some(number) => {
                let process = talk.peer_process();
                Some(self.trunks.join(&Peer { process, number }, &self.port)?)
            }
            None => None,
        };
        let way = self.wire_up(&mut talk, greeted, &lane).await;
        let (seen, io, reports) = match way {
            Ok(wired) => wired,
            Err(error) => {
                if let Some((trunk, number)) = &lane {
                    trunk.leave(*number);
                }
                return Err(error);
            }
        };
        let up = Up {
            talk: Conversation::new(talk.into_wire()),
            io,
            reports,
            seen,
            is_showing: false,
            is_reading: false,
            sent: self.port.last_tag(),
            doubt: None,
            timer: Box::pin(sleep_until(Instant::now())),
        };
        let way = match lane {
            Some((trunk, number)) => Way::Lane(trunk, number),
            None => Way::Messages,
        };
        Ok((up, way))
    }

    async fn wire_up(
        &self,
        talk: &mut Conversation<()>,
        greeted: &Greeted,
        lane: &Option<(Rc<Trunk>, u16)>,
    ) -> Result<(Arc<DmaSpace>, Option<AsyncFd<OwnedFd>>, Option<AsyncFd<OwnedFd>>), ServerFault>
    {
        let io = match lane {
            Some((trunk, _)) => {
                set_irq(talk, Irq::Io, trunk.call()?).await?;
                None
            }
            None => Some(wire_irq(talk, Irq::Io).await?),
        };
        let reports = match greeted.has_reports {
            true => Some(wire_irq(talk, Irq::Crw).await?),
            false => None,
        };
        let seen = self.port.memory();
        for window in seen.windows() {
            let (payload, file) = map_of(window)?;
            talk.must("guest memory", Command::DmaMap, payload.as_bytes(), Some(file)).await?;
        }
        if let Some((trunk, number)) = lane {
            let offer = LaneOffer {
                argsz: size_of::<LaneOffer>() as u32,
                flags: 0,
                entries: ENTRIES,
                number: (*number).into(),
                offset: 0,
            };
            let memory = trunk.memory()?;
            let (_, mut files) =
                talk.must("the lane", Command::CcwLane, offer.as_bytes(), Some(memory)).await?;
            let what = || "a reply without the descriptor that wakes it".to_owned();
            trunk.set_kick(files.pop().ok_or_else(|| ServerFault::Protocol { what: what() })?);
        }
        Ok((seen, io, reports))
    }

    /// Carries messages until that is not possible any more.
    fn poll(&self, up: &mut Up, cx: &mut Context<'_>) -> Poll<ServerFault> {
        let port = &*self.port;
        port.remember_link(cx);
        for _ in 0..TOGETHER {
            if let Some(why) = port.take_fault() {
                return Poll::Ready(ServerFault::Protocol { what: why.to_owned() });
            }
            while let Some((tag, order)) = port.next_order() {
                up.send_order(tag, &order);
            }
            if !up.is_showing
                && let Some(memory) = port.unshown()
            {
                up.show(memory, port);
            }
            up.ask_for_irb(cx);
            up.ask_for_report(cx);
            if let Poll::Ready(Err(error)) = up.talk.poll_send(cx) {
                return Poll::Ready(error);
            }
            match self.poll_answer(up, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Pending => return self.poll_due(up, cx),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_answer(&self, up: &mut Up, cx: &mut Context<'_>) -> Poll<Result<(), ServerFault>> {
        let Poll::Ready(answered) = up.talk.poll_answer(cx) else { return Poll::Pending };
        let (asked, answer) = answered?;
        let port = &*self.port;
        match asked {
            Asked::Order(tag) => {
                if let Err(errno) = answer {
                    port.refused(tag, errno);
                }
            }
            Asked::Irb(sent) => {
                up.is_reading = false;
                let irb: IrbHead = region(answer, "the I/O region")?;
                let was_running = port.runs();
                port.take_status(About::UpTo(sent), &irb);
                if was_running && port.runs() {
                    // Perhaps it has taken the place of the one that is waited for.
                    up.doubt = Some(Instant::now() + DOUBT);
                }
            }
            Asked::Report => {
                let crw = region::<CrwRegion>(answer, "the CRW region")?.crw;
                if !crw.is_none() {
                    port.owner().report(crw);
                }
            }
            Asked::Schib(sent) => {
                let schib = region::<SchibRegion>(answer, "the SCHIB region")?.schib;
                let runs = schib.scsw.flags().contains(ScswFlags::START_FUNCTION);
                if !runs && port.runs_since(About::UpTo(sent)) {
                    up.read_irb(Asked::LastIrb(up.sent));
                }
            }
            Asked::LastIrb(sent) => {
                port.take_status(About::UpTo(sent), &region(answer, "the I/O region")?);
                if port.runs_since(About::UpTo(sent)) {
                    let what = "the status of a program was overwritten before it could be read";
                    return Poll::Ready(Err(ServerFault::Protocol { what: what.to_owned() }));
                }
            }
            Asked::Map(iova, len) => {
                if let Err(errno) = answer {
                    tracing::error!(%errno, "the server refuses {len:#x} bytes of guest memory at {iova:#x}: programs meet nothing there");
                }
            }
            Asked::Unmap(iova) => {
                if let Err(errno) = answer {
                    // With the connection it has to let go of all.
                    let what = format!("it does not let go of guest memory at {iova:#x}: {errno}");
                    return Poll::Ready(Err(ServerFault::Protocol { what }));
                }
            }
            Asked::Shown(memory) => {
                up.is_showing = false;
                port.shown(&memory);
                up.seen = memory;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// What has to happen at some time.
    fn poll_due(&self, up: &mut Up, cx: &mut Context<'_>) -> Poll<ServerFault> {
        let port = &*self.port;
        loop {
            let performed_by = port.performs_since().map(|since| since + FUNCTION_PATIENCE);
            let cleared_at = port.released().map(|since| since + RELEASE_PATIENCE);
            let Some(next) = [performed_by, cleared_at, up.doubt].into_iter().flatten().min()
            else {
                return Poll::Pending;
            };
            if Instant::now() < next {
                up.timer.as_mut().reset(next);
                if up.timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                continue;
            }
            if performed_by == Some(next) {
                let what = format!("HALT or CLEAR was not performed for {FUNCTION_PATIENCE:?}");
                return Poll::Ready(ServerFault::Protocol { what });
            }
            if cleared_at == Some(next) {
                tracing::warn!(
                    "a program has not ended after {RELEASE_PATIENCE:?}, and is cleared"
                );
                port.clear_released();
            } else {
                up.doubt = None;
                if port.runs() {
                    let count = size_of::<SchibRegion>() as u32;
                    up.read(RegionIndex::Schib, 0, count, Asked::Schib(up.sent));
                }
            }
            // There is something to send now.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
    }
}

impl Up {
    fn send_order(&mut self, tag: u32, order: &Order) {
        self.sent = tag;
        match order {
            Order::Start(orb, entry) => {
                let region = IoRegion::of(*orb, *entry);
                self.write(RegionIndex::Io, region.as_bytes(), tag);
            }
            Order::Perform(function) => {
                self.write(RegionIndex::Async, AsyncRegion::ask(*function).as_bytes(), tag);
            }
        }
    }

    fn write(&mut self, region: RegionIndex, bytes: &[u8], tag: u32) {
        let count = bytes.len() as u32;
        let access = Access { offset: 0, region: region as u32, count };
        let payload = [access.as_bytes(), bytes];
        self.talk.ask(Command::RegionWrite, &payload, None, Asked::Order(tag));
    }

    fn read(&mut self, region: RegionIndex, offset: u64, count: u32, what: Asked) {
        let access = Access { offset, region: region as u32, count };
        self.talk.ask(Command::RegionRead, &[access.as_bytes()], None, what);
    }

    /// The I/O interrupt was signalled: there is an IRB.
    fn ask_for_irb(&mut self, cx: &mut Context<'_>) {
        if self.is_reading {
            return;
        }
        if let Some(io) = &self.io
            && let Poll::Ready(Ok(mut ready)) = io.poll_read_ready(cx)
        {
            // A new signal is a new edge: the counter need not be read.
            ready.clear_ready();
            self.is_reading = true;
            // For the next one.
            let _ = io.poll_read_ready(cx).is_ready();
            self.read_irb(Asked::Irb(self.sent));
        }
    }

    fn read_irb(&mut self, what: Asked) {
        self.read(RegionIndex::Io, IoRegion::IRB, size_of::<IrbHead>() as u32, what);
    }

    fn read_report(&mut self) {
        self.read(RegionIndex::Crw, 0, size_of::<CrwRegion>() as u32, Asked::Report);
    }

    /// There are channel reports.
    fn ask_for_report(&mut self, cx: &mut Context<'_>) {
        if let Some(reports) = &self.reports
            && let Poll::Ready(Ok(mut ready)) = reports.poll_read_ready(cx)
        {
            ready.clear_ready();
            let _ = reports.poll_read_ready(cx).is_ready();
            // The server signals again where there is another one.
            self.read_report();
        }
    }

    /// Shows the device other memory: what is gone is unmapped, then what is new is mapped.
    fn show(&mut self, memory: Arc<DmaSpace>, port: &Port) {
        let seen = self.seen.clone();
        let is_in = |space: &DmaSpace, window: &Window| {
            space.windows().iter().any(|other| other.is_same(window))
        };
        for window in seen.windows().iter().filter(|window| !is_in(&memory, window)) {
            // With it goes a program that is suspended.
            port.forget_suspension();
            let unmap = DmaUnmap::new(window.iova(), window.host().len() as u64);
            let asked = Asked::Unmap(window.iova());
            self.talk.ask(Command::DmaUnmap, &[unmap.as_bytes()], None, asked);
        }
        for window in memory.windows().iter().filter(|window| !is_in(&seen, window)) {
            let (iova, len) = (window.iova(), window.host().len() as u64);
            match map_of(window) {
                Ok((map, file)) => {
                    let asked = Asked::Map(iova, len);
                    self.talk.ask(Command::DmaMap, &[map.as_bytes()], Some(file), asked);
                }
                Err(error) => {
                    tracing::error!(%error, "{len:#x} bytes of guest memory at {iova:#x} cannot be shown to a server: programs meet nothing there");
                }
            }
        }
        self.is_showing = true;
        // Any command will do: its reply comes after those.
        let size = size_of::<crate::vfio_user::DeviceInfo>() as u32;
        let asked = [size, 0, 0, 0];
        self.talk.ask(Command::DeviceGetInfo, &[asked.as_bytes()], None, Asked::Shown(memory));
    }

    /// Waits until the other side has closed the connection.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..TOGETHER {
            match self.talk.poll_answer(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(ServerFault::Lost(_))) => return Poll::Ready(()),
                Poll::Ready(_) => {}
            }
        }
        // It may talk without end.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// The message that maps a window, and the file that goes with it.
fn map_of(window: &Window) -> Result<(DmaMap, OwnedFd), ServerFault> {
    let file = window.file().ok_or_else(|| {
        std::io::Error::new(
            std::io::ErrorKind::Unsupported,
            "no file backs it that another process could map: back guest memory by a shared memfd",
        )
    })?;
    let map = DmaMap::new(window.iova(), window.host().len() as u64, file.start());
    Ok((map, file.file().try_clone()?.into()))
}

/// A region's bytes in a reply.
fn region<T: FromBytes>(
    answer: Result<Message<'_>, Errno>,
    what: &'static str,
) -> Result<T, ServerFault> {
    let message = answer.map_err(|errno| ServerFault::Refused { what, errno })?;
    let read = |payload| {
        let (_, bytes) = Access::read_from_prefix(payload).ok()?;
        T::read_from_bytes(bytes).ok()
    };
    let short = || ServerFault::Protocol { what: format!("{what}, but not all of it") };
    read(message.payload).ok_or_else(short)
}

/// Gives the device an eventfd for an interrupt, and watches it.
async fn wire_irq(talk: &mut Conversation<()>, irq: Irq) -> Result<AsyncFd<OwnedFd>, ServerFault> {
    let event =
        eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).map_err(std::io::Error::from)?;
    set_irq(talk, irq, event.try_clone()?).await?;
    Ok(crate::watch::descriptor(event)?)
}

async fn set_irq(talk: &mut Conversation<()>, irq: Irq, event: OwnedFd) -> Result<(), ServerFault> {
    let set = IrqSetHead {
        argsz: size_of::<IrqSetHead>() as u32,
        flags: (IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER).bits(),
        index: irq as u32,
        start: 0,
        count: 1,
    };
    talk.must("an eventfd", Command::DeviceSetIrqs, set.as_bytes(), Some(event)).await.map(drop)
}
