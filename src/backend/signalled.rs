//! The in-process device with the kernel's division of labour: it runs as a task of its own, and
//! whoever started it waits for an eventfd.
//!
//! This is how a device outside the shard will be waited for. In process it costs a task switch and
//! two system calls an I/O; it is offered for comparison and so that the path is exercised.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;
use vfio_ccw_metrics::DeviceClass;
use vfio_ccw_queues::prefetch::Lines;
use vmm_sys_util::eventfd::EventFd;

use crate::architecture::{Function, IrbHead, Orb};
use crate::channel_subsystem::{DeviceState, DeviceStateError, DmaSpace, Entry};

use super::in_process::{Apart, Keeps};
use super::port::Port;
use super::{Backend, Errno, InProcess};

/// The side of the one who starts programs.
pub(crate) struct Signalled {
    class: DeviceClass,
    port: Rc<Port>,
    keeps: Rc<dyn Keeps>,
    irq: AsyncFd<EventFd>,
    /// The device's own task.
    device: AbortHandle,
}

impl Signalled {
    /// Gives the device an eventfd and lets it run as a task of this shard.
    ///
    /// # Errors
    ///
    /// No eventfd, or it cannot be watched.
    pub(crate) fn new(mut device: InProcess) -> io::Result<Self> {
        let irq = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        device.set_irq(Some(irq.try_clone()?));
        let irq = crate::watch::eventfd(irq)?;
        let (Apart { class, port, keeps }, engine) = device.split();
        let device = tokio::task::spawn_local(engine).abort_handle();
        Ok(Signalled { class, port, keeps, irq, device })
    }
}

impl Signalled {
    /// Waits for a signal that was not seen yet.
    fn poll_signal(&self, cx: &mut Context<'_>, looks: bool) -> Poll<io::Result<()>> {
        if looks && self.irq.get_ref().read().is_ok() {
            // The runtime may yet hear of it, and wakes somebody who then finds nothing.
            return Poll::Ready(Ok(()));
        }
        // A new signal is a new edge: the counter need not be read.
        ready!(self.irq.poll_read_ready(cx))?.clear_ready();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Signalled {
    fn drop(&mut self) {
        self.device.abort();
    }
}

impl Backend for Signalled {
    fn class(&self) -> DeviceClass {
        self.class
    }

    fn see(&mut self, memory: &Arc<DmaSpace>) {
        self.port.set_memory(memory.clone());
    }

    fn save(&self) -> Option<DeviceState> {
        Some(self.keeps.save())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        self.keeps.restore(state)
    }

    fn start(&mut self, orb: &Orb, entry: Entry) -> Result<(), Errno> {
        self.port.start(orb, entry)
    }

    fn lines(&self) -> [Lines; 2] {
        [Lines::of(&*self.port), Lines::default()]
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
            ready!(self.poll_signal(cx, looks)).map_err(|error| Errno::from(&error))?;
            // Of status that was stored meanwhile the last is still there to be read, as with the
            // kernel's driver.
            let mut last = None;
            self.port.take_told(&mut |irb| last = Some(irb));
            last.map(&mut *intermediate);
            // Signals may have run together, or one be left over: what counts is where the device is.
            if let Some(ended) = self.port.take_end() {
                return Poll::Ready(ended);
            }
        }
    }

    fn stop(&mut self, function: Function) {
        self.port.stop.ask(function);
    }

    fn release(&mut self) {
        self.port.stop.release();
    }

    fn irb(&mut self) -> Result<IrbHead, Errno> {
        Ok(self.port.irb.get())
    }

    fn was_refused(&self) -> bool {
        self.port.refused.get()
    }

    fn take_moved(&mut self) -> (u64, u64) {
        self.port.moved.take()
    }
}
