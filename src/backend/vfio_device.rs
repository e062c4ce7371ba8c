//! The software channel subsystem as a whole VFIO device: everything that a user of Linux's vfio-ccw
//! driver reaches through its file descriptors.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;

use vfio_ccw_metrics::DeviceClass;
use zerocopy::IntoBytes;

use crate::architecture::{
    Crw, DeviceStatus, Function, IrbHead, Orb, Pmcw, PmcwFlags, Schib, Scsw,
};
use crate::channel_subsystem::{Device, Entry, Window};

mod functions;
#[cfg(test)]
mod tests;

use self::functions::Stage;
use super::channel_reports::ChannelReports;
use super::irqs::Irqs;
use super::windows::Windows;
use super::{
    AsyncRegion, Backend, CrwRegion, DeviceInfo, Errno, InProcess, IoRegion, Irq, IrqData, IrqInfo,
    IrqSet, RegionIndex, RegionInfo, SchibRegion,
};

/// A device model behind the whole interface of Linux's vfio-ccw driver: regions, interrupts, windows.
///
/// Methods are named after the calls that they answer, and fail with the errno that the call fails with.
/// Whoever speaks the interface to others, over whatever transport, hands their calls on and waits for
/// [`VfioDevice::run`] while [`VfioDevice::is_pending`]: nothing executes but in there.
///
/// ```
/// use std::sync::Arc;
/// use vfio_ccw::architecture::{Ccw, Orb, Pmcw, command};
/// use vfio_ccw::backend::{IoRegion, VfioDevice};
/// use vfio_ccw::channel_subsystem::{Null, Window};
/// use vfio_ccw_pinning::GuestMap;
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
/// use zerocopy::IntoBytes;
///
/// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 16)])?;
/// let map = Arc::new(GuestMap::new(Arc::new(memory))?);
/// map.write(0x1000, &Ccw::new(command::SENSE_ID, 0x2000, 7).to_format_1());
///
/// let mut device = VfioDevice::new(Null::default(), Pmcw::single_path(0x1234));
/// device.map_dma(Window::new(0, map.regions()[0].host(), map.clone()))?;
/// assert_eq!(device.write(0, IoRegion::start(Orb::new(0x1000)).as_bytes())?, 124);
/// # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
/// # runtime.block_on(async {
/// device.run().await;
/// # });
/// let mut region = [0; 124];
/// device.read(0, &mut region)?;
/// assert!(IoRegion::try_from(&region[..])?.irb.head.scsw.is_clean_end());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct VfioDevice {
    device: InProcess,
    io: IoRegion,
    command: AsyncRegion,
    reports: ChannelReports,
    irqs: Irqs,
    windows: Windows,
    /// The device has not been shown the windows as they are.
    are_windows_new: bool,
    pmcw: Pmcw,
    /// What STORE SUBCHANNEL shows while nothing is in flight: what was left of the last status.
    scsw: Scsw,
    /// The last ORB that was started.
    started: Orb,
    stage: Stage,
    /// Status that came while a program was in flight.
    unsolicited: DeviceStatus,
    /// The device is not there any more.
    is_gone: bool,
    /// The user takes IRBs one by one instead of being interrupted for them.
    gathered: Option<VecDeque<IrbHead>>,
    /// The I/O interrupt was signalled, and the IRB not read since.
    is_unread: bool,
}

impl VfioDevice {
    /// A device on a subchannel with this path-management control word, which is enabled. It sees no
    /// memory yet.
    pub fn new(device: impl Device + 'static, pmcw: Pmcw) -> Self {
        let flags = pmcw.flags() | PmcwFlags::ENABLED | PmcwFlags::DEVICE_VALID;
        VfioDevice {
            device: InProcess::new(device, Arc::default()),
            io: IoRegion::default(),
            command: AsyncRegion::default(),
            reports: ChannelReports::default(),
            irqs: Irqs::default(),
            windows: Windows::default(),
            are_windows_new: false,
            pmcw: pmcw.with(flags, pmcw.isc()),
            scsw: Scsw::default(),
            started: Orb::default(),
            stage: Stage::Idle,
            unsolicited: DeviceStatus::empty(),
            is_gone: false,
            gathered: None,
            is_unread: false,
        }
    }

    /// `VFIO_DEVICE_GET_INFO`.
    pub fn info(&self) -> DeviceInfo {
        DeviceInfo::ccw()
    }

    /// `VFIO_DEVICE_GET_REGION_INFO` of region `index` for an asker with room for `argsz` bytes.
    ///
    /// # Errors
    ///
    /// `EINVAL`: there is no such region, or room for less than 32 bytes.
    pub fn region_info(&self, index: u32, argsz: u32) -> Result<RegionInfo, Errno> {
        RegionInfo::new(index, argsz)
    }

    /// `VFIO_DEVICE_GET_IRQ_INFO` of interrupt `index`.
    ///
    /// # Errors
    ///
    /// `EINVAL`: there is no such interrupt.
    pub fn irq_info(&self, index: u32) -> Result<IrqInfo, Errno> {
        IrqInfo::new(index)
    }

    /// `VFIO_DEVICE_SET_IRQS`: sets or takes away the eventfd of an interrupt, or signals it.
    ///
    /// # Errors
    ///
    /// `EINVAL`: no such interrupt or vector, an action other than to trigger, data of another kind than
    /// the flags say, or a descriptor that is no eventfd.
    pub fn set_irqs(&mut self, set: &IrqSet, data: IrqData) -> Result<(), Errno> {
        self.irqs.set(set, data)
    }

    /// `VFIO_IOMMU_MAP_DMA`: programs see `window` from the next start on.
    ///
    /// # Errors
    ///
    /// * `EINVAL`: address, memory or size are not multiples of 4,096, the size is zero, the window wraps
    ///   around, or it allows nothing;
    /// * `EEXIST`: it overlaps another;
    /// * `ENOSPC`: there are 65,535 windows.
    pub fn map_dma(&mut self, window: Window) -> Result<(), Errno> {
        self.windows.map(window)?;
        self.are_windows_new = true;
        Ok(())
    }

    /// `VFIO_IOMMU_UNMAP_DMA`: unmaps the windows within `len` bytes from `iova` on, and says how many
    /// bytes they had. Nothing touches their memory when this is done.
    ///
    /// A program in flight may touch any memory at any time, so it is over, as by [`VfioDevice::reset`],
    /// where there is something to unmap. (The driver knows which pages a program uses, and spares
    /// those that use others.)
    ///
    /// # Errors
    ///
    /// `EINVAL`: address or size are not multiples of 4,096, the size is zero, or a window would be cut
    /// in two.
    pub async fn unmap_dma(&mut self, iova: u64, len: u64) -> Result<u64, Errno> {
        if self.windows.may_unmap(iova, len)? {
            self.end_program().await;
        }
        self.unmap_idle(iova, len)
    }

    /// The same, where no program is in flight.
    pub(crate) fn unmap_idle(&mut self, iova: u64, len: u64) -> Result<u64, Errno> {
        let bytes = self.windows.unmap(iova, len)?;
        if bytes > 0 {
            // Lets go of the memory now, not at the next start.
            self.device.set_memory(Arc::default());
            self.are_windows_new = true;
        }
        Ok(bytes)
    }

    /// `VFIO_DEVICE_RESET`: a program in flight is over, without an interrupt; what stands in the regions
    /// stays. The device is ready for a start when this is done; if it is given up before, the program
    /// still ends, in [`VfioDevice::run`].
    ///
    /// # Errors
    ///
    /// `EINVAL`: the device is gone.
    pub async fn reset(&mut self) -> Result<(), Errno> {
        self.end_program().await;
        self.after_reset()
    }

    /// How a reset ends, when no program is in flight any more.
    pub(crate) fn after_reset(&self) -> Result<(), Errno> {
        if self.is_gone { Err(Errno::INVALID) } else { Ok(()) }
    }

    /// The user closes the device: reset, and no eventfds any more. What stands in the regions is there
    /// for the next one to open it.
    pub async fn close(&mut self) {
        self.end_program().await;
        self.irqs = Irqs::default();
    }

    /// Its user has gone, and nothing of it is in flight: nothing of what it gave is kept.
    pub(crate) fn forget_user(&mut self) {
        self.irqs = Irqs::default();
        self.windows = Windows::default();
        self.device.set_memory(Arc::default());
        self.are_windows_new = true;
        self.gathered = None;
        self.is_unread = false;
    }

    /// What kind of device it is.
    pub(crate) fn class(&self) -> DeviceClass {
        self.device.class()
    }

    /// The last IRB, in the I/O region.
    pub(crate) fn last_irb(&self) -> &IrbHead {
        &self.io.irb.head
    }

    /// Bytes read from and written to the medium since this was last asked.
    pub(crate) fn take_moved(&mut self) -> (u64, u64) {
        self.device.take_moved()
    }

    /// pread(2): reads the region that `offset` lies in, from there on. A read of the CRW region, however
    /// short, takes the report; the interrupt is signalled again if there is another one.
    ///
    /// # Errors
    ///
    /// * `EINVAL`: there is no such region, or it ends before;
    /// * `ENODEV`: the SCHIB region of a device that is gone.
    pub fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
        let (region, offset) = RegionIndex::at(offset)?;
        let end = offset + bytes.len();
        if end > region.size() {
            return Err(Errno::INVALID);
        }
        match region {
            RegionIndex::Io => {
                bytes.copy_from_slice(&self.io.as_bytes()[offset..end]);
                self.is_unread &= end <= IoRegion::IRB as usize;
            }
            RegionIndex::Async => bytes.copy_from_slice(&self.command.as_bytes()[offset..end]),
            RegionIndex::Schib if self.is_gone => return Err(Errno::NO_DEVICE),
            RegionIndex::Schib => {
                let schib = Schib { pmcw: self.pmcw, scsw: self.stored_scsw(), ..Schib::default() };
                bytes.copy_from_slice(&SchibRegion { schib }.as_bytes()[offset..end]);
            }
            RegionIndex::Crw => {
                let region = CrwRegion { crw: self.reports.take(), ..CrwRegion::default() };
                bytes.copy_from_slice(&region.as_bytes()[offset..end]);
                if !self.reports.is_empty() {
                    self.irqs.signal(Irq::Crw);
                }
            }
        }
        Ok(bytes.len())
    }

    /// pwrite(2): writes into the region that `offset` lies in, and does what then stands in it, whatever
    /// part was written: a start ([`IoRegion`]), or HALT or CLEAR SUBCHANNEL ([`AsyncRegion`]). `ret_code`
    /// there says how that went, and so does the result.
    ///
    /// # Errors
    ///
    /// * `EINVAL`: there is no such region, it ends before, or it is read only; then nothing was written.
    ///   Or no such command;
    /// * `EBUSY`: a program is in flight; or HALT, where one function that ends it is under way;
    /// * `EOPNOTSUPP`: transport mode, or HALT or CLEAR in the I/O region;
    /// * `EIO`: the device is gone;
    /// * what the caller left in `ret_code`, where the SCSW asks for no function: the driver looks
    ///   at nothing else then, and neither does this. A positive number is the result.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        let (region, offset) = RegionIndex::at(offset)?;
        let end = offset + bytes.len();
        if end > region.size() {
            return Err(Errno::INVALID);
        }
        let ret_code = match region {
            RegionIndex::Io => {
                self.io.as_mut_bytes()[offset..end].copy_from_slice(bytes);
                let left = self.io.ret_code.get();
                let ret_code = self
                    .start()
                    .map_or_else(Errno::to_ret_code, |asked| if asked { 0 } else { left });
                self.io.ret_code.set(ret_code);
                ret_code
            }
            RegionIndex::Async => {
                self.command.as_mut_bytes()[offset..end].copy_from_slice(bytes);
                let ret_code = self.act().map_or_else(Errno::to_ret_code, |()| 0);
                self.command.ret_code.set(ret_code);
                ret_code
            }
            RegionIndex::Schib | RegionIndex::Crw => return Err(Errno::INVALID),
        };
        match usize::try_from(ret_code) {
            Ok(0) => Ok(bytes.len()),
            Ok(left) => Ok(left),
            Err(_) => Err(Errno(ret_code.wrapping_neg())),
        }
    }

    /// What a write of the whole I/O region does that asks for this.
    ///
    /// # Errors
    ///
    /// As [`VfioDevice::write`]; and `EIO` for a resumption where no program is suspended.
    pub(crate) fn start_program(&mut self, orb: &Orb, entry: Entry) -> Result<(), Errno> {
        if entry == Entry::Resume && !matches!(self.stage, Stage::Suspended(_)) {
            // In the region the kernel's driver would take this for a start. Here it is known what is meant.
            return Err(Errno::IO);
        }
        self.io.orb = *orb;
        self.io.scsw = IoRegion::function(entry);
        self.start().map(drop)
    }

    /// What a write of the asynchronous-command region does that asks for this.
    ///
    /// # Errors
    ///
    /// As [`VfioDevice::write`].
    pub(crate) fn perform(&mut self, function: Function) -> Result<(), Errno> {
        self.command = AsyncRegion::ask(function);
        self.act()
    }

    /// IRBs are to be taken with [`VfioDevice::take_irb`] from now on, and no interrupt tells of them.
    pub(crate) fn gather(&mut self) {
        self.gathered = Some(VecDeque::new());
    }

    /// The next IRB.
    pub(crate) fn take_irb(&mut self) -> Option<IrbHead> {
        self.gathered.as_mut()?.pop_front()
    }

    /// Signals the I/O interrupt, where IRBs are taken one by one and there are some.
    pub(crate) fn signal_io(&self) {
        self.irqs.signal(Irq::Io);
    }

    /// A signal of the I/O interrupt that its user has not taken is taken back: there will be no IRB for it.
    pub(crate) fn unsignal_io(&self) {
        self.irqs.unsignal(Irq::Io);
    }

    /// Whether there is an IRB that its user was told of and has not read.
    pub(crate) fn is_unread(&self) -> bool {
        self.is_unread
    }

    /// Whether [`VfioDevice::run`] has something to do.
    pub fn is_pending(&self) -> bool {
        matches!(self.stage, Stage::Runs(_))
    }

    /// Executes the program that was started to its end or suspension. Each IRB is stored in the I/O region,
    /// then the interrupt signalled. May be given up and called again at any time.
    pub async fn run(&mut self) {
        poll_fn(|cx| self.poll_run(cx)).await;
    }

    /// The owner reports something about the channel subsystem: it waits in the CRW region.
    pub fn report(&mut self, crw: Crw) {
        self.reports.queue(crw);
        self.irqs.signal(Irq::Crw);
    }

    /// The owner took a channel path away: it is reported (error-recovery code 6), and no start may use it.
    pub fn path_gone(&mut self, chpid: u8) {
        self.pmcw.pam &= !self.paths_of(chpid);
        self.report(ChannelReports::path_gone(chpid));
    }

    /// The owner brought a channel path back: it is reported (error-recovery code 2).
    pub fn path_back(&mut self, chpid: u8) {
        self.pmcw.pam |= self.paths_of(chpid);
        self.report(ChannelReports::path_back(chpid));
    }

    /// The device has status that no start asked for, such as attention. It is presented at once, or
    /// after the program in flight.
    pub fn present(&mut self, status: DeviceStatus) {
        self.unsolicited |= status;
        self.present_unsolicited();
    }

    /// The owner wants the device back, and asks its user to close it.
    pub fn request(&self) {
        self.irqs.signal(Irq::Request);
    }

    /// The device is gone for good. A program in flight ends without an interrupt, and the user is asked
    /// to close.
    pub fn withdraw(&mut self) {
        self.is_gone = true;
        self.vanish();
        self.request();
    }
}

impl fmt::Debug for VfioDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioDevice")
            .field("io", &self.io)
            .field("pmcw", &self.pmcw)
            .field("stage", &self.stage)
            .field("is_gone", &self.is_gone)
            .finish_non_exhaustive()
    }
}
