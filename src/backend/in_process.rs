//! The software channel subsystem as a vfio-ccw device in this process.

use std::cell::Cell;
use std::io;
use std::sync::Arc;

use vfio_ccw_metrics::DeviceClass;
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, IntoBytes};

use crate::architecture::{IrbHead, Orb, OrbFlags, ScswFlags};
use crate::channel_subsystem::{Device, DmaSpace, Entry, Run, execute_judged};
use crate::translation::Rules;

use super::{Backend, Errno, IoRegion};

/// A device model behind the I/O region of the kernel driver: same layout, same `ret_code`, one
/// program at a time, an eventfd that is signalled once for each IRB.
///
/// It does nothing by itself: [`InProcess::run`] executes what was started. The one who waits for
/// the interrupt calls it, so no thread or task switch lies between start and end.
#[derive(Debug)]
pub struct InProcess<D> {
    device: D,
    memory: Arc<DmaSpace>,
    /// What programs are held to that come untranslated (ORB.P = 0).
    rules: Option<Arc<Rules>>,
    region: IoRegion,
    /// A program was started and has not ended.
    pending: bool,
    /// The policy ended the last program, which came untranslated.
    refused: bool,
    irq: Option<EventFd>,
}

impl<D: Device> InProcess<D> {
    /// A device that sees `memory`.
    pub fn new(device: D, memory: Arc<DmaSpace>) -> Self {
        let region = IoRegion::default();
        InProcess { device, memory, rules: None, region, pending: false, refused: false, irq: None }
    }

    /// The same device, with rules for programs that come untranslated, because their ORB has P = 0.
    pub fn held_to(mut self, rules: Arc<Rules>) -> Self {
        self.rules = Some(rules);
        self
    }

    /// Lets it see other memory, from its next program on.
    pub fn set_memory(&mut self, memory: Arc<DmaSpace>) {
        self.device.see(&memory);
        self.memory = memory;
    }

    /// Sets the eventfd of the I/O interrupt, or takes it away (SET_IRQS on index 0).
    pub fn set_irq(&mut self, irq: Option<EventFd>) {
        self.irq = irq;
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
        let mut region = self.region;
        let field = usize::try_from(offset)
            .ok()
            .and_then(|offset| {
                region.as_mut_bytes().get_mut(offset..offset.checked_add(bytes.len())?)
            })
            .ok_or(Errno::INVALID)?;
        field.copy_from_slice(bytes);
        self.start_with(&mut region)?;
        Ok(bytes.len())
    }

    /// Reads the I/O region at `offset`, as pread(2) on the driver's file does.
    ///
    /// # Errors
    ///
    /// `EINVAL`: the read does not lie in the region.
    pub fn read_region(&self, offset: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
        let field = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.region.as_bytes().get(offset..offset.checked_add(bytes.len())?))
            .ok_or(Errno::INVALID)?;
        bytes.copy_from_slice(field);
        Ok(bytes.len())
    }

    /// Whether a program was started and has not ended.
    pub fn is_pending(&self) -> bool {
        self.pending
    }

    /// Executes the program that was started to its end or suspension, stores its IRB and signals
    /// the interrupt. For a CCW with the PCI flag, too, the IRB is stored, the interrupt signalled,
    /// and `intermediate` called.
    ///
    /// # Errors
    ///
    /// The eventfd cannot be written; the IRB is stored all the same.
    pub async fn run(&mut self, intermediate: &mut dyn FnMut(IrbHead)) -> io::Result<()> {
        if !self.pending {
            return Ok(());
        }
        let InProcess { device, memory, rules, region, irq, .. } = self;
        let resumed = region.scsw.flags().contains(ScswFlags::RESUME_PENDING);
        let run = Run {
            orb: region.orb,
            entry: if resumed { Entry::Resume } else { Entry::Start },
            dma: memory,
            rules: rules.as_deref(),
        };
        region.irb.emw = [0; 32];
        let irb = Cell::from_mut(&mut region.irb.head);
        let signal = || irq.as_ref().map_or(Ok(()), |irq| irq.write(1));
        let mut signalled = Ok(());
        let refused = execute_judged(
            &run,
            device,
            &mut |head| {
                irb.set(head);
                // After the IRB: who sees the signal must find it.
                if let Err(error) = signal() {
                    signalled = Err(error);
                }
                intermediate(head);
            },
            irb,
        )
        .await;
        (self.pending, self.refused) = (false, refused);
        // After the IRB, as above.
        signalled.and(signal())
    }

    /// Bytes read from and written to the medium since this was last asked.
    pub(super) fn moved(&mut self) -> (u64, u64) {
        self.device.take_moved()
    }

    /// Whether the policy ended the last program, which came untranslated.
    pub(super) fn refused(&self) -> bool {
        self.refused
    }

    /// Class of the device.
    pub(super) fn device_class(&self) -> DeviceClass {
        self.device.class()
    }

    pub(super) fn last_irb(&self) -> &IrbHead {
        &self.region.irb.head
    }

    /// What a write of [`IoRegion::start`] or [`IoRegion::resume`] does, without the detour over the
    /// bytes of a region.
    #[inline]
    pub(super) fn start_orb(&mut self, orb: &Orb, entry: Entry) -> Result<(), Errno> {
        if self.pending || orb.flags().contains(OrbFlags::TRANSPORT_MODE) {
            return self.start_with(&mut IoRegion::of(*orb, entry));
        }
        self.region.orb = *orb;
        self.region.scsw = IoRegion::function(entry);
        self.region.ret_code.set(0);
        self.pending = true;
        Ok(())
    }

    /// The kernel's `vfio_ccw_mdev_write_io_region` and `fsm_io_request`.
    pub(super) fn start_with(&mut self, region: &mut IoRegion) -> Result<(), Errno> {
        if self.pending {
            self.region.ret_code.set(-Errno::BUSY.0);
            return region.answer(Err(Errno::BUSY));
        }
        let functions = region.scsw.flags();
        let result = if functions.contains(ScswFlags::START_FUNCTION) {
            match region.orb.flags().contains(OrbFlags::TRANSPORT_MODE) {
                true => region.answer(Err(Errno::NOT_SUPPORTED)),
                false => region.answer(Ok(())),
            }
        } else if functions.intersects(ScswFlags::HALT_FUNCTION | ScswFlags::CLEAR_FUNCTION) {
            region.answer(Err(Errno::NOT_SUPPORTED))
        } else {
            match region.ret_code.get() {
                0 => Ok(()),
                left => Err(Errno(left.wrapping_neg())),
            }
        };
        self.pending = result.is_ok() && functions.contains(ScswFlags::START_FUNCTION);
        let irb = self.region.irb;
        self.region = IoRegion { irb, ..*region };
        result
    }
}

impl<D: Device> Backend for InProcess<D> {
    fn class(&self) -> DeviceClass {
        self.device_class()
    }

    fn see(&mut self, memory: &Arc<DmaSpace>) {
        self.set_memory(memory.clone());
    }

    fn start(&mut self, orb: &Orb, entry: Entry) -> Result<(), Errno> {
        self.start_orb(orb, entry)
    }

    async fn interrupt(&mut self, intermediate: &mut dyn FnMut(IrbHead)) -> Result<(), Errno> {
        // Without an eventfd, which is never set here, there is nothing that can fail.
        self.run(intermediate)
            .await
            .map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EIO)))
    }

    fn irb(&mut self) -> Result<&mut IrbHead, Errno> {
        Ok(&mut self.region.irb.head)
    }

    fn was_refused(&self) -> bool {
        self.refused()
    }

    fn take_moved(&mut self) -> (u64, u64) {
        self.moved()
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
    use crate::architecture::{Ccw, Scsw, command};
    use crate::channel_subsystem::{Null, Window};
    use vfio_ccw_pinning::GuestMap;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    fn device() -> (Arc<GuestMap>, InProcess<Null>) {
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

    fn ret_code(device: &InProcess<Null>) -> i32 {
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
