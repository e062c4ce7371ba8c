//! A device that somebody else runs, driven over its regions and its I/O interrupt: that of the
//! kernel's vfio-ccw.
//!
//! The driver has one program and one IRB at a time, and an eventfd that it writes to after it has
//! stored an IRB. What follows from that, and was seen (`docs/KERNEL.md`):
//!
//! * An IRB that is not read before the next one is lost, and a signal says of none what it is about.
//!   So nothing is inferred from signals: the IRB is read and says what it belongs to.
//! * Every write of the I/O region wipes the IRB in it. Where there are signals that nobody has acted on,
//!   the IRB is read before the next start.
//! * A HALT or CLEAR may come when the program has just ended. Then there are two IRBs, and whoever
//!   reads late finds the second only: the program is over with that, too.
//! * `EAGAIN` and `EBUSY` pass: the region was in use for a moment, or status is on its way. They are
//!   tried again, first when the neighbours on the shard had their turn, then from a timer.

mod again;
mod at_once;

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep, sleep_until};
use vfio_ccw_metrics::DeviceClass;
use vfio_ccw_queues::prefetch::Lines;
use vmm_sys_util::eventfd::EventFd;

use crate::architecture::{
    DeviceStatus, Function, IrbHead, Orb, OrbFlags, Scsw, ScswFlags, SubchannelStatus,
};
use crate::channel_subsystem::{DeviceState, DeviceStateError, DmaSpace, Entry};

use super::{Backend, Errno, IoRegion, Irq, Regions, watch};
use again::Again;
use at_once::AtOnce;

/// How long a start is tried that the driver says is not possible now.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// How long it is tried to make the driver take a HALT or CLEAR, and how long one may take that it has
/// taken.
const FUNCTION_PATIENCE: Duration = Duration::from_secs(30);

/// How often it is asked meanwhile whether its end has gone by without an interrupt. (It has been seen: a
/// CLEAR just when the program ends, and no interrupt for either, one time in two hundred under QEMU.)
const FUNCTION_LOOK: Duration = Duration::from_millis(250);

/// How long a program that runs may go on when its device is to be given away, before it is cleared.
const RELEASE_PATIENCE: Duration = Duration::from_secs(5);

/// How long after an unsolicited IRB that of the program that runs may be expected before it is asked
/// whether that has been overwritten.
const DOUBT: Duration = Duration::from_millis(50);

/// Unsolicited status that waits to be told. More of it comes with the last.
const MOST_UNSOLICITED: usize = 16;

/// What the shard knows of a device beside its IRBs.
#[derive(Debug, Default)]
pub(crate) struct Host {
    gone: Cell<bool>,
}

impl Host {
    /// The device is not there any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// The device is not there any more: whatever it has is over.
    pub(crate) fn lose(&self) {
        self.gone.set(true);
    }
}

/// The side of the one who starts programs.
pub(crate) struct Passthrough<R: Regions> {
    regions: Arc<R>,
    host: Rc<Host>,
    irq: AsyncFd<EventFd>,
    /// Signals that were acted on, and that the eventfd still counts.
    counted: u64,
    /// The counter was read, and the runtime may yet tell of the signals that were in it.
    is_ahead: bool,
    /// The counter was read just now, and what it told of was looked at: the task has not waited since.
    is_fresh: bool,
    /// Whether the program that was just started is looked at once before it is waited for.
    at_once: AtOnce,
    stage: Stage,
    /// What is written to start the program.
    region: IoRegion,
    /// What the program that runs has shown so far: channel end, without device end.
    channel_end: Option<Scsw>,
    /// Status of the last program.
    irb: IrbHead,
    /// The IRB as it was last read.
    last: IrbHead,
    function: Option<Asked>,
    unsolicited: VecDeque<IrbHead>,
    again: Again,
    doubt: Option<Instant>,
    release: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    /// The task that listens to the host, which has the device open, too.
    listener: Option<AbortHandle>,
}

/// How far a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    /// It cannot be started just now.
    Starts,
    Runs,
    Ended,
}

/// HALT or CLEAR that the device is to perform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    function: Function,
    step: Step,
}

impl Asked {
    /// Whether the driver has taken it, and its IRB is to come.
    fn is_taken(self) -> bool {
        matches!(self.step, Step::Taken { .. })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The driver does not know of it.
    Wanted,
    /// The driver has taken it.
    Taken {
        /// When.
        at: Instant,
        /// When it is asked how it goes.
        look: Instant,
    },
    /// Its IRB was seen, or there will be none.
    Performed,
}

impl<R: Regions> Passthrough<R> {
    /// Gives the device an eventfd for its I/O interrupt.
    ///
    /// # Errors
    ///
    /// No eventfd, it cannot be watched, or the driver does not take it.
    pub(crate) fn new(regions: Arc<R>, host: Rc<Host>) -> io::Result<Self> {
        Ok(Passthrough {
            irq: watch(&*regions, Irq::Io)?,
            regions,
            host,
            counted: 0,
            is_ahead: false,
            is_fresh: false,
            at_once: AtOnce::default(),
            stage: Stage::Idle,
            region: IoRegion::default(),
            channel_end: None,
            irb: IrbHead::default(),
            last: IrbHead::default(),
            function: None,
            unsolicited: VecDeque::with_capacity(MOST_UNSOLICITED),
            again: Again::default(),
            doubt: None,
            release: None,
            timer: None,
            listener: None,
        })
    }

    /// Ends `listener` together with this.
    pub(crate) fn with_listener(mut self, listener: AbortHandle) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Signals since this was last called, as the eventfd has counted them.
    fn take_signals(&mut self) -> u64 {
        let counted = std::mem::take(&mut self.counted);
        let count = self.irq.get_ref().read().unwrap_or(0);
        self.is_ahead |= count > counted;
        count.saturating_sub(counted)
    }

    /// Waits for a signal that was not seen yet. `looks`: asks the eventfd, too. Whether it was counted for
    /// certain since the counter was last read.
    fn poll_signal(&mut self, cx: &mut Context<'_>, looks: bool) -> Poll<Result<bool, Errno>> {
        let looks_at_once = self.at_once.take();
        if looks || looks_at_once {
            let is_signalled = self.irq.get_ref().read().is_ok();
            if looks_at_once {
                self.at_once.learn(is_signalled);
            }
            if is_signalled {
                // Also where it counts none but those that were acted on: that costs a look at the IRB.
                (self.counted, self.is_ahead, self.is_fresh) = (0, true, true);
                return Poll::Ready(Ok(true));
            }
        }
        loop {
            match self.irq.poll_read_ready(cx) {
                Poll::Ready(Ok(mut ready)) => ready.clear_ready(),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Errno::from(&error))),
                Poll::Pending => return Poll::Pending,
            }
            if !std::mem::take(&mut self.is_ahead) {
                // A new signal is a new edge: the counter need not be read.
                self.counted += 1;
                return Poll::Ready(Ok(false));
            }
            // It may be of a signal that was found in the counter before the runtime told of it.
            if self.irq.get_ref().read().is_ok() {
                self.counted = 0;
                return Poll::Ready(Ok(true));
            }
        }
    }

    /// Before the IRB is wiped: is there one that nobody has read? Signals that were not acted on say so.
    /// Not asked when the counter was read just now: between two programs without a pause, that would be a
    /// system call more for each, and the driver itself leaves a moment between the two.
    fn look_before_start(&mut self) -> Result<(), Errno> {
        if !std::mem::take(&mut self.is_fresh) && self.take_signals() > 0 {
            let irb = self.regions.read_irb().map_err(Self::meaning)?;
            // Seldom the signal is late, of an IRB that was found before it came: then unsolicited status
            // is told twice, which a guest can take, as it cannot a key that is lost.
            self.sort(&irb, &mut |_| {});
        }
        // As the write leaves it.
        self.last = IrbHead::default();
        Ok(())
    }

    /// There was a signal: reads the IRB and sees what it is about.
    fn look(&mut self, intermediate: &mut dyn FnMut(IrbHead)) -> Result<(), Errno> {
        let irb = self.regions.read_irb().map_err(Self::meaning)?;
        self.last = irb;
        self.sort(&irb, intermediate);
        Ok(())
    }

    fn sort(&mut self, irb: &IrbHead, intermediate: &mut dyn FnMut(IrbHead)) {
        let flags = irb.scsw.flags();
        if !flags.contains(ScswFlags::STATUS_PENDING) {
            // Read before, and wiped since: a signal came late.
            return;
        }
        if flags.intersects(ScswFlags::HALT_FUNCTION | ScswFlags::CLEAR_FUNCTION) {
            if let Some(asked) = &mut self.function
                && asked.is_taken()
                && (asked.function == Function::Halt || flags.contains(ScswFlags::CLEAR_FUNCTION))
            {
                asked.step = Step::Performed;
            }
            // Whether it was ended by this, or had just ended: its own IRB comes no more.
            if self.stage == Stage::Runs {
                self.end(irb);
            }
        } else if flags.contains(ScswFlags::START_FUNCTION) {
            match self.stage {
                Stage::Runs if is_over(flags) => self.end(irb),
                Stage::Runs if flags.contains(ScswFlags::PRIMARY) => {
                    // Channel end: the guest is told with device end, as one.
                    self.channel_end = Some(irb.scsw);
                }
                Stage::Runs => intermediate(*irb),
                Stage::Idle | Stage::Starts | Stage::Ended => {}
            }
        } else {
            if self.unsolicited.len() == MOST_UNSOLICITED {
                self.unsolicited.pop_back();
            }
            self.unsolicited.push_back(*irb);
            if self.stage == Stage::Runs {
                self.doubt = Some(Instant::now() + DOUBT);
            }
        }
    }

    fn end(&mut self, irb: &IrbHead) {
        self.stage = Stage::Ended;
        self.doubt = None;
        self.release = None;
        self.irb = *irb;
        if let Some(earlier) = self.channel_end.take() {
            self.irb.scsw = joined(earlier, irb.scsw);
        }
    }

    /// The program is over, without status of its own.
    fn give_up(&mut self, errno: Errno) -> Poll<Result<(), Errno>> {
        if self.stage == Stage::Runs && !self.host.is_gone() && self.regions.reset().is_err() {
            // Its pages and its shadow are about to be used otherwise: only now nobody touches them.
            self.host.lose();
        }
        self.stage = Stage::Idle;
        self.doubt = None;
        self.release = None;
        self.channel_end = None;
        Poll::Ready(Err(errno))
    }

    /// What an errno of the driver means: it says EIO of a device that it has lost.
    fn meaning(errno: Errno) -> Errno {
        if errno == Errno(libc::EIO) { Errno::NO_DEVICE } else { errno }
    }

    /// Writes the I/O region.
    fn write_start(&mut self) -> Result<(), Errno> {
        self.regions.write_io(&self.region)?;
        self.stage = Stage::Runs;
        self.at_once.started();
        Ok(())
    }

    /// Tries to start what could not be started, when it is time.
    fn start_again(&mut self, cx: &Context<'_>) -> Result<(), Errno> {
        if !self.again.is_due() {
            return Ok(());
        }
        self.look_before_start()?;
        match self.write_start() {
            Err(errno) if errno.passes() && !self.again.is_over(START_PATIENCE) => {
                self.again.later(cx);
                Ok(())
            }
            written => written.map_err(Self::meaning),
        }
    }

    /// Hands the function that is wanted to the driver, when it is time.
    fn ask_driver(&mut self, cx: &Context<'_>) {
        let Some(Asked { function, step: Step::Wanted }) = self.function else { return };
        if !self.again.is_due() {
            return;
        }
        let step = match self.regions.write_command(function) {
            Ok(()) => {
                let at = Instant::now();
                Step::Taken { at, look: at + FUNCTION_LOOK }
            }
            Err(errno) if errno.passes() && !self.again.is_over(FUNCTION_PATIENCE) => {
                // EBUSY: status is pending, and its interrupt on its way.
                self.again.later(cx);
                Step::Wanted
            }
            Err(errno) => {
                let errno = Self::meaning(errno);
                if errno != Errno::NO_DEVICE {
                    tracing::warn!(%errno, "the device did not take a {function} function: it is performed without");
                }
                Step::Performed
            }
        };
        self.function = Some(Asked { function, step });
    }

    /// Looks at what is due by now, and has the task woken for what is due next.
    fn poll_due(&mut self, cx: &mut Context<'_>) -> Result<(), Errno> {
        loop {
            let taken = match self.function {
                Some(Asked { step: Step::Taken { look, .. }, .. }) => Some(look),
                _ => None,
            };
            let all = [self.again.at, self.doubt, self.release, taken];
            let Some(next) = all.into_iter().flatten().min() else { return Ok(()) };
            if Instant::now() < next {
                let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(next)));
                timer.as_mut().reset(next);
                if timer.as_mut().poll(cx).is_pending() {
                    return Ok(());
                }
                continue;
            }
            if self.again.at == Some(next) {
                // Whoever has called this tries again.
                self.again.at = None;
                cx.waker().wake_by_ref();
                return Ok(());
            }
            if self.doubt == Some(next) {
                self.resolve_doubt()?;
            } else if self.release == Some(next) {
                self.release = None;
                tracing::warn!(
                    "a program has not ended after {RELEASE_PATIENCE:?}, and is cleared"
                );
                self.stop(Function::Clear);
                cx.waker().wake_by_ref();
                return Ok(());
            } else {
                self.look_at_function()?;
            }
        }
    }

    /// There was unsolicited status while a program runs: has it taken the place of the program's own?
    fn resolve_doubt(&mut self) -> Result<(), Errno> {
        self.doubt = None;
        let Ok(schib) = self.regions.read_schib().map_err(Self::meaning) else { return Ok(()) };
        if schib.scsw.flags().contains(ScswFlags::START_FUNCTION) {
            return Ok(());
        }
        tracing::warn!("the status of a program was overwritten before it could be read");
        Err(Errno(libc::EPROTO))
    }

    /// HALT or CLEAR was taken a while ago: is it still under way?
    fn look_at_function(&mut self) -> Result<(), Errno> {
        let Some(Asked { function, step: Step::Taken { at, .. } }) = self.function else {
            return Ok(());
        };
        let schib = match self.regions.read_schib().map_err(Self::meaning) {
            Ok(schib) => Some(schib),
            Err(Errno::NO_DEVICE) => {
                self.host.lose();
                return Ok(());
            }
            Err(_) => None,
        };
        let is_under_way = schib.is_none_or(|schib| {
            let flags = schib.scsw.flags();
            flags.intersects(ScswFlags::HALT_FUNCTION | ScswFlags::CLEAR_FUNCTION)
                && !flags.contains(ScswFlags::STATUS_PENDING)
        });
        if is_under_way && at.elapsed() < FUNCTION_PATIENCE {
            let look = Instant::now() + FUNCTION_LOOK;
            self.function = Some(Asked { function, step: Step::Taken { at, look } });
            return Ok(());
        }
        tracing::warn!("a {function} function was taken and never signalled: the device is reset");
        self.function = Some(Asked { function, step: Step::Performed });
        if self.regions.reset().is_err() {
            self.host.lose();
        }
        if self.stage == Stage::Runs {
            // Over with the reset, if it was not before.
            self.end(&IrbHead { scsw: performed(function), ..IrbHead::default() });
        }
        Ok(())
    }
}

/// Status of a function that nobody has seen the end of.
fn performed(function: Function) -> Scsw {
    Scsw::new(function.control() | ScswFlags::STATUS_PENDING)
}

/// Whether a start function is over, as the driver sees it (`vfio_ccw_sch_io_todo`).
fn is_over(flags: ScswFlags) -> bool {
    !flags.intersects(ScswFlags::SUBCHANNEL_ACTIVE | ScswFlags::DEVICE_ACTIVE)
}

/// Channel end and device end as one.
fn joined(channel_end: Scsw, device_end: Scsw) -> Scsw {
    let device: DeviceStatus = channel_end.device_status() | device_end.device_status();
    let subchannel: SubchannelStatus =
        channel_end.subchannel_status() | device_end.subchannel_status();
    device_end
        .with_cpa(channel_end.cpa())
        .with_status(device, subchannel, channel_end.count())
        .with_flags(channel_end.flags() & ScswFlags::STATUS_CONTROL)
}

impl<R: Regions> Drop for Passthrough<R> {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            listener.abort();
        }
        // The device may outlive this, and must not signal an eventfd that is not watched.
        if let Err(errno) = self.regions.set_eventfd(Irq::Io, None) {
            tracing::debug!(%errno, "the device keeps its eventfd");
        }
        if self.stage != Stage::Idle && self.regions.reset().is_err() {
            tracing::debug!("the device could not be reset");
        }
    }
}

impl<R: Regions> Backend for Passthrough<R> {
    fn class(&self) -> DeviceClass {
        self.regions.class()
    }

    fn see(&mut self, _memory: &Arc<DmaSpace>) {
        // It sees what the pool shows it.
    }

    fn save(&self) -> Option<DeviceState> {
        // What the host's device is in the middle of is not known.
        None
    }

    fn restore(&mut self, _state: &DeviceState) -> Result<(), DeviceStateError> {
        Err(DeviceStateError::Kind)
    }

    fn start(&mut self, orb: &Orb, entry: Entry) -> Result<(), Errno> {
        if self.host.is_gone() {
            return Err(Errno::NO_DEVICE);
        }
        if entry == Entry::Resume {
            return Err(Errno::NOT_SUPPORTED);
        }
        self.look_before_start()?;
        // The driver takes suspension for the end and frees the program that the channel may go on with:
        // without suspend control, a CCW that asks for it is a program check.
        let orb = orb.with_flags(orb.flags() - OrbFlags::SUSPEND_CONTROL);
        self.region = IoRegion::start(orb);
        (self.channel_end, self.again) = (None, Again::default());
        if self.function.is_some_and(|asked| asked.is_taken()) {
            // Its IRB would be taken for this program's.
            self.stage = Stage::Starts;
            return Ok(());
        }
        self.function = None;
        match self.write_start() {
            Err(errno) if errno.passes() => {
                self.stage = Stage::Starts;
                Ok(())
            }
            written => written.map_err(Self::meaning),
        }
    }

    fn lines(&self) -> [Lines; 2] {
        [Lines::of(&*self.regions), Lines::default()]
    }

    fn is_apart(&self) -> bool {
        true
    }

    fn poll_interrupt(
        &mut self,
        cx: &mut Context<'_>,
        looks: bool,
        intermediate: &mut dyn FnMut(IrbHead),
    ) -> Poll<Result<(), Errno>> {
        loop {
            while self.stage != Stage::Ended
                && let Poll::Ready(signalled) = self.poll_signal(cx, looks)
            {
                if let Err(errno) = signalled.and_then(|_| self.look(intermediate)) {
                    return self.give_up(errno);
                }
            }
            if self.stage == Stage::Ended {
                self.stage = Stage::Idle;
                return Poll::Ready(Ok(()));
            }
            if self.host.is_gone() {
                return self.give_up(Errno::NO_DEVICE);
            }
            let before = (self.stage, self.function);
            if self.stage == Stage::Starts {
                match self.function.map(|asked| asked.step) {
                    // It never begins.
                    Some(Step::Wanted) => return self.give_up(Errno::CANCELED),
                    // Of the program before.
                    Some(Step::Taken { .. }) => {}
                    Some(Step::Performed) | None => {
                        self.function = None;
                        if let Err(errno) = self.start_again(cx) {
                            return self.give_up(errno);
                        }
                    }
                }
            }
            self.ask_driver(cx);
            if let Err(errno) = self.poll_due(cx) {
                return self.give_up(errno);
            }
            // What has become possible may have been signalled already.
            if (self.stage, self.function) == before {
                return Poll::Pending;
            }
        }
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>, tell: &mut dyn FnMut(&IrbHead) -> bool) {
        self.is_fresh = false;
        while let Poll::Ready(Ok(is_certain)) = self.poll_signal(cx, false) {
            // Where it is not, the counter says whether it is more than a signal that was acted on.
            let is_new = is_certain || {
                self.counted = self.counted.saturating_sub(1);
                self.take_signals() > 0
            };
            let Ok(irb) = self.regions.read_irb() else { break };
            if is_new || irb != self.last {
                self.last = irb;
                self.sort(&irb, &mut |_| {});
            }
        }
        while let Some(irb) = self.unsolicited.front()
            && tell(irb)
        {
            self.unsolicited.pop_front();
        }
    }

    fn performs_functions(&self) -> bool {
        true
    }

    fn runs_unfetched(&self) -> bool {
        // The driver copies the program first, at addresses that are not the guest's.
        false
    }

    fn poll_function(&mut self, cx: &mut Context<'_>, function: Function) -> Poll<()> {
        if !matches!(self.function, Some(asked) if asked.function == function) {
            self.stop(function);
        }
        loop {
            while self.poll_signal(cx, false).is_ready() {
                if self.look(&mut |_| {}).is_err() {
                    break;
                }
            }
            let step = self.function.map(|asked| asked.step);
            if step.is_none_or(|step| step == Step::Performed) || self.host.is_gone() {
                self.function = None;
                return Poll::Ready(());
            }
            let before = self.function;
            self.ask_driver(cx);
            // Nothing runs that could fail.
            let _ = self.poll_due(cx);
            if self.function == before {
                return Poll::Pending;
            }
        }
    }

    fn stop(&mut self, function: Function) {
        self.again = Again::default();
        self.function = Some(Asked { function, step: Step::Wanted });
    }

    fn release(&mut self) {
        if self.release.is_none() {
            self.release = Some(Instant::now() + RELEASE_PATIENCE);
        }
    }

    fn irb(&mut self) -> Result<IrbHead, Errno> {
        Ok(self.irb)
    }

    fn was_refused(&self) -> bool {
        false
    }

    fn take_moved(&mut self) -> (u64, u64) {
        // The host's device does not say what it moved.
        (0, 0)
    }
}

#[cfg(test)]
mod tests;
