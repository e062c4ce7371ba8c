//! The software channel subsystem as a vfio-ccw device in this process.

use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use vfio_ccw_metrics::DeviceClass;
use vfio_ccw_queues::prefetch::Lines;
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, IntoBytes};

use crate::architecture::{Function, IrbHead, Orb};
use crate::channel_subsystem::{
    Device, DeviceState, DeviceStateError, DmaSpace, End, Entry, Run, execute_judged,
};
use crate::translation::Rules;

use super::port::{Order, Port};
use super::{Backend, Errno, IoRegion};

/// A device model behind the I/O region of the kernel driver: same layout, same `ret_code`, one
/// program at a time, an eventfd that is signalled once for each IRB.
///
/// It does nothing by itself: [`InProcess::run`] executes what was started. The one who waits for
/// the interrupt calls it, so no thread or task switch lies between start and end.
pub struct InProcess {
    class: DeviceClass,
    port: Rc<Port>,
    keeps: Rc<dyn Keeps>,
    /// The device, executing one program after the other. One future for all of them: making one takes
    /// longer than a short program.
    engine: Pin<Box<dyn Future<Output = ()>>>,
}

impl InProcess {
    /// A device that sees `memory`.
    pub fn new(device: impl Device + 'static, memory: Arc<DmaSpace>) -> Self {
        InProcess::with_rules(device, memory, None)
    }

    /// The same, with rules for programs that come untranslated, because their ORB has P = 0.
    pub(crate) fn with_rules(
        device: impl Device + 'static,
        memory: Arc<DmaSpace>,
        rules: Option<Arc<Rules>>,
    ) -> Self {
        let (class, port) = (device.class(), Rc::new(Port::new(memory)));
        let device = Rc::new(RefCell::new(device));
        let engine = Box::pin(execute_all(device.clone(), port.clone(), rules));
        InProcess { class, port, keeps: device, engine }
    }

    /// Lets it see other memory, from its next program on. If none runs, it holds on to the old one no
    /// longer.
    pub fn set_memory(&mut self, memory: Arc<DmaSpace>) {
        self.port.set_memory(memory);
        if !self.is_pending() {
            // It waits for nothing but this.
            let polled = self.engine.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            debug_assert!(polled.is_pending(), "it executes for ever");
        }
    }

    /// Sets the eventfd of the I/O interrupt, or takes it away (SET_IRQS on index 0).
    pub fn set_irq(&mut self, irq: Option<EventFd>) {
        self.port.set_irq(irq);
    }

    /// Writes `bytes` at `offset` of the I/O region, which starts a program, as pwrite(2) on the
    /// driver's file does. `ret_code` in the region then says how it went.
    ///
    /// # Errors
    ///
    /// * `EINVAL`: the write does not lie in the region;
    /// * `EBUSY`: a program is running;
    /// * `EOPNOTSUPP`: transport mode, or HALT or CLEAR in the SCSW (they have their own region);
    /// * what the caller left in `ret_code`, where the SCSW asks for no function: the driver looks
    ///   at nothing else then, and neither does this.
    pub fn write_region(&mut self, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        let mut region = self.port.region();
        let field = usize::try_from(offset)
            .ok()
            .and_then(|offset| {
                region.as_mut_bytes().get_mut(offset..offset.checked_add(bytes.len())?)
            })
            .ok_or(Errno::INVALID)?;
        field.copy_from_slice(bytes);
        self.port.write(&region)?;
        Ok(bytes.len())
    }

    /// Reads the I/O region at `offset`, as pread(2) on the driver's file does.
    ///
    /// # Errors
    ///
    /// `EINVAL`: the read does not lie in the region.
    pub fn read_region(&self, offset: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
        let region = self.port.region();
        let field = usize::try_from(offset)
            .ok()
            .and_then(|offset| region.as_bytes().get(offset..offset.checked_add(bytes.len())?))
            .ok_or(Errno::INVALID)?;
        bytes.copy_from_slice(field);
        Ok(bytes.len())
    }

    /// Whether a program was started and has not ended.
    pub fn is_pending(&self) -> bool {
        self.port.is_pending()
    }

    /// Ends the program that runs, if one does, before its end.
    pub fn stop(&mut self, function: Function) {
        self.port.stop.ask(function);
    }

    /// Executes the program that was started to its end or suspension, stores its IRB and signals
    /// the interrupt. For a CCW with the PCI flag, too, the IRB is stored and the interrupt signalled,
    /// and `intermediate` is given it: of more than 64 before this looks, the first 63 and the last.
    ///
    /// # Errors
    ///
    /// The eventfd cannot be written; the IRB is stored all the same.
    pub async fn run(&mut self, intermediate: &mut dyn FnMut(IrbHead)) -> io::Result<()> {
        if !self.is_pending() {
            return Ok(());
        }
        let ended = poll_fn(|cx| self.poll_interrupt(cx, false, intermediate)).await;
        Ok(ended?)
    }

    /// The device for a task of its own, and what the starter keeps.
    pub(super) fn split(self) -> (Apart, Pin<Box<dyn Future<Output = ()>>>) {
        self.port.is_alone.set(true);
        (Apart { class: self.class, port: self.port, keeps: self.keeps }, self.engine)
    }
}

/// What the starter has of a device that runs in a task of its own.
pub(super) struct Apart {
    pub(super) class: DeviceClass,
    pub(super) port: Rc<Port>,
    pub(super) keeps: Rc<dyn Keeps>,
}

/// What a device that is idle is asked beside its programs.
pub(super) trait Keeps {
    fn save(&self) -> DeviceState;
    fn restore(&self, state: &DeviceState) -> Result<(), DeviceStateError>;
}

impl<D: Device> Keeps for RefCell<D> {
    fn save(&self) -> DeviceState {
        self.borrow().save()
    }

    fn restore(&self, state: &DeviceState) -> Result<(), DeviceStateError> {
        self.borrow_mut().restore(state)
    }
}

/// Executes one program after the other on `device`.
#[expect(clippy::await_holding_refcell_ref, reason = "an idle device only is asked anything else")]
async fn execute_all<D: Device>(device: Rc<RefCell<D>>, port: Rc<Port>, rules: Option<Arc<Rules>>) {
    let mut memory = port.memory();
    loop {
        let (orb, entry) = match poll_fn(|cx| port.poll_order(cx)).await {
            Order::Execute(orb, entry) => (orb, entry),
            Order::See(now) => {
                device.borrow_mut().see(&now);
                memory = now;
                continue;
            }
        };
        let run = Run { orb, entry, dma: &memory, rules: rules.as_deref(), stop: Some(&port.stop) };
        let mut device = device.borrow_mut();
        let end = execute_judged(&run, &mut *device, &mut |irb| port.tell(irb), &port.irb).await;
        port.refused.set(end == End::Policy);
        let (read, written) = device.take_moved();
        let (more_read, more_written) = port.moved.get();
        port.moved.set((read + more_read, written + more_written));
        drop(device);
        port.end();
    }
}

impl Backend for InProcess {
    fn class(&self) -> DeviceClass {
        self.class
    }

    fn see(&mut self, memory: &Arc<DmaSpace>) {
        self.set_memory(memory.clone());
    }

    fn save(&self) -> Option<DeviceState> {
        Some(self.keeps.save())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        self.keeps.restore(state)
    }

    #[inline]
    fn start(&mut self, orb: &Orb, entry: Entry) -> Result<(), Errno> {
        self.port.start(orb, entry)
    }

    fn lines(&self) -> [Lines; 2] {
        [Lines::of(&*self.engine), Lines::of(&*self.port)]
    }

    #[inline(always)]
    fn is_apart(&self) -> bool {
        // Whoever waits for it runs it.
        false
    }

    #[inline]
    fn poll_interrupt(
        &mut self,
        cx: &mut Context<'_>,
        _looks: bool,
        intermediate: &mut dyn FnMut(IrbHead),
    ) -> Poll<Result<(), Errno>> {
        let engine = self.engine.as_mut().poll(cx);
        self.port.take_told(intermediate);
        match self.port.take_end() {
            Some(result) => Poll::Ready(result),
            None => {
                ready!(engine);
                // It executes for ever.
                Poll::Ready(Err(Errno::NO_DEVICE))
            }
        }
    }

    fn stop(&mut self, function: Function) {
        self.port.stop.ask(function);
    }

    fn release(&mut self) {
        self.port.stop.release();
    }

    #[inline]
    fn irb(&mut self) -> Result<IrbHead, Errno> {
        Ok(self.port.irb.get())
    }

    fn was_refused(&self) -> bool {
        self.port.refused.get()
    }

    #[inline]
    fn take_moved(&mut self) -> (u64, u64) {
        self.port.moved.take()
    }
}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcess")
            .field("class", &self.class)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// Reads an I/O region from its bytes.
impl TryFrom<&[u8]> for IoRegion {
    type Error = Errno;

    fn try_from(bytes: &[u8]) -> Result<Self, Errno> {
        IoRegion::read_from_bytes(bytes).map_err(|_| Errno::INVALID)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::{Ccw, OrbFlags, Scsw, ScswFlags, command};
    use crate::channel_subsystem::{Null, Window};
    use vfio_ccw_pinning::GuestMap;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    fn device() -> (Arc<GuestMap>, InProcess) {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let map = Arc::new(GuestMap::new(Arc::new(memory)).unwrap());
        let mut dma = DmaSpace::default();
        dma.map(Window::new(0, map.regions()[0].host(), map.clone())).unwrap();
        map.write(0x100, &Ccw::new(command::SENSE_ID, 0x1000, 7).to_format_1());
        (map, InProcess::new(Null::default(), Arc::new(dma)))
    }

    fn block_on(future: impl Future) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future);
    }

    fn ret_code(device: &InProcess) -> i32 {
        let mut bytes = [0; 4];
        device.read_region(120, &mut bytes).unwrap();
        i32::from_ne_bytes(bytes)
    }

    #[test]
    fn a_start_runs_once_and_signals_once() {
        let (map, mut device) = device();
        let irq = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        device.set_irq(Some(irq.try_clone().unwrap()));
        let region = IoRegion::start(Orb::new(0x100));
        assert_eq!(device.write_region(0, region.as_bytes()), Ok(124));
        assert!(irq.read().is_err(), "nothing has happened yet");
        assert_eq!(device.write_region(0, region.as_bytes()), Err(Errno::BUSY));
        assert_eq!(ret_code(&device), -libc::EBUSY);
        block_on(device.run(&mut |_| {}));
        assert_eq!(irq.read().unwrap(), 1);
        let mut bytes = [0; 124];
        device.read_region(0, &mut bytes).unwrap();
        let region = IoRegion::try_from(&bytes[..]).unwrap();
        assert!(region.irb.head.scsw.is_clean_end(), "{region:?}");
        let mut id = [0; 7];
        map.read(0x1000, &mut id);
        assert_eq!(id[0], 0xff);
        block_on(device.run(&mut |_| {}));
        assert!(irq.read().is_err(), "no program, no signal");
    }

    #[test]
    fn ret_codes_are_the_drivers() {
        let (_map, mut device) = device();
        let orb = Orb::new(0x100);
        let transport = IoRegion::start(orb.with_flags(OrbFlags::TRANSPORT_MODE));
        assert_eq!(device.write_region(0, transport.as_bytes()), Err(Errno::NOT_SUPPORTED));
        assert_eq!(ret_code(&device), -libc::EOPNOTSUPP);
        for function in [ScswFlags::HALT_FUNCTION, ScswFlags::CLEAR_FUNCTION] {
            let region = IoRegion { scsw: Scsw::new(function), ..IoRegion::start(orb) };
            assert_eq!(device.write_region(0, region.as_bytes()), Err(Errno::NOT_SUPPORTED));
        }
        let nothing = IoRegion { scsw: Scsw::default(), ..IoRegion::start(orb) };
        assert_eq!(device.write_region(0, nothing.as_bytes()), Ok(124));
        assert!(!device.is_pending());
        let mut left = nothing;
        left.ret_code.set(-5);
        assert_eq!(
            device.write_region(0, left.as_bytes()),
            Err(Errno(5)),
            "the caller's own ret_code"
        );
        assert_eq!(device.write_region(0, &[0; 125]), Err(Errno::INVALID));
        assert_eq!(device.write_region(u64::MAX, &[0; 2]), Err(Errno::INVALID));
        assert_eq!(device.read_region(121, &mut [0; 4]), Err(Errno::INVALID));
    }
}
