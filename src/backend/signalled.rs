//! The in-process device with the kernel's division of labour: it runs as a task of its own, and
//! whoever started it waits for an eventfd.
//!
//! This is how a device outside the shard will be waited for. In process it costs a task switch and
//! two system calls an I/O; it is offered for comparison and so that the path is exercised.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use vfio_ccw_metrics::DeviceClass;
use vmm_sys_util::eventfd::EventFd;

use crate::architecture::{IrbHead, Orb};
use crate::channel_subsystem::{Device, DmaSpace, Entry};

use super::{Backend, Errno, InProcess};

/// The side of the one who starts programs.
#[derive(Debug)]
pub(crate) struct Signalled<D> {
    link: Rc<Link<D>>,
    irq: AsyncFd<EventFd>,
    /// As last read.
    irb: IrbHead,
}

#[derive(Debug)]
struct Link<D> {
    /// Taken out by the device's task while it executes.
    device: RefCell<Option<InProcess<D>>>,
    /// Status of the program that runs, not seen yet.
    intermediate: Cell<Option<IrbHead>>,
    started: Notify,
}

impl<D: Device + 'static> Signalled<D> {
    /// Gives the device an eventfd and lets it run as a task of this shard.
    ///
    /// # Errors
    ///
    /// No eventfd, or it cannot be watched.
    pub(crate) fn new(mut device: InProcess<D>) -> io::Result<Self> {
        let irq = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        device.set_irq(Some(irq.try_clone()?));
        let link = Rc::new(Link {
            device: RefCell::new(Some(device)),
            intermediate: Cell::new(None),
            started: Notify::new(),
        });
        let watched = crate::watch::eventfd(irq)?;
        tokio::task::spawn_local(run(Rc::downgrade(&link)));
        Ok(Signalled { link, irq: watched, irb: IrbHead::default() })
    }
}

/// The device's own task; it ends when nobody can start programs any more.
async fn run<D: Device>(link: std::rc::Weak<Link<D>>) {
    while let Some(live) = link.upgrade() {
        let device = live.device.borrow_mut().take_if(|device| device.is_pending());
        let Some(mut device) = device else {
            // Waits with the link held: `Signalled::drop` wakes it.
            live.started.notified().await;
            if Rc::strong_count(&live) == 1 {
                return;
            }
            continue;
        };
        let result = device.run(&mut |irb| live.intermediate.set(Some(irb))).await;
        *live.device.borrow_mut() = Some(device);
        if let Err(error) = result {
            tracing::error!(%error, "the I/O interrupt could not be signalled");
        }
    }
}

impl<D> Drop for Signalled<D> {
    fn drop(&mut self) {
        self.link.started.notify_one();
    }
}

impl<D: Device> Backend for Signalled<D> {
    fn class(&self) -> DeviceClass {
        self.link.device.borrow().as_ref().map_or(DeviceClass::Other, InProcess::device_class)
    }

    fn see(&mut self, memory: &Arc<DmaSpace>) {
        // It is here: no program is running.
        if let Some(device) = self.link.device.borrow_mut().as_mut() {
            device.set_memory(memory.clone());
        }
    }

    fn start(&mut self, orb: &Orb, entry: Entry) -> Result<(), Errno> {
        match self.link.device.borrow_mut().as_mut() {
            Some(device) => device.start_orb(orb, entry)?,
            None => return Err(Errno::BUSY),
        }
        self.link.started.notify_one();
        Ok(())
    }

    async fn interrupt(&mut self, intermediate: &mut dyn FnMut(IrbHead)) -> Result<(), Errno> {
        let errno = |error: io::Error| Errno(error.raw_os_error().unwrap_or(libc::EIO));
        loop {
            // A new signal is a new edge: the counter need not be read.
            self.irq.readable().await.map_err(errno)?.clear_ready();
            if let Some(irb) = self.link.intermediate.take() {
                intermediate(irb);
            }
            // Signals may have run together, or one be left over: what counts is where the device is.
            if self.link.device.borrow().as_ref().is_some_and(|device| !device.is_pending()) {
                return Ok(());
            }
        }
    }

    fn irb(&mut self) -> Result<&mut IrbHead, Errno> {
        let device = self.link.device.borrow();
        self.irb = *device.as_ref().ok_or(Errno::BUSY)?.last_irb();
        drop(device);
        Ok(&mut self.irb)
    }

    fn was_refused(&self) -> bool {
        self.link.device.borrow().as_ref().is_some_and(InProcess::refused)
    }

    fn take_moved(&mut self) -> (u64, u64) {
        self.link.device.borrow_mut().as_mut().map_or((0, 0), InProcess::moved)
    }
}
