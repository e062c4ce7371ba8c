//! The in-process device as a target.

use std::future::Future;
use std::sync::Arc;

use vfio_ccw::architecture::{Pmcw, PmcwFlags};
use vfio_ccw::backend::{DeviceInfo, IrqData, IrqInfo, IrqSet, RegionInfo, VfioDevice};
use vfio_ccw::channel_subsystem::{Window, WindowAccess};
use vfio_ccw_pinning::GuestMap;

use super::target::{Answer, Failure, Signal, Target};
use super::virtio::VirtioBlk;

/// A software virtio disk on a subchannel as QEMU's is.
pub struct InProcess {
    device: VfioDevice,
    map: Arc<GuestMap>,
}

impl InProcess {
    pub fn open(map: Arc<GuestMap>) -> Self {
        let pmcw = Pmcw::single_path(0x0020).with(PmcwFlags::empty(), 3);
        InProcess { device: VfioDevice::new(VirtioBlk::default(), pmcw), map }
    }
}

/// Programs give others their turn, so this is no single poll.
fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

impl Target for InProcess {
    fn info(&mut self) -> Answer<DeviceInfo> {
        Ok(self.device.info())
    }

    fn region_info(&mut self, index: u32, argsz: u32) -> Answer<RegionInfo> {
        Ok(self.device.region_info(index, argsz)?)
    }

    fn irq_info(&mut self, index: u32) -> Answer<IrqInfo> {
        Ok(self.device.irq_info(index)?)
    }

    fn set_irqs(&mut self, set: &IrqSet, signal: Signal<'_>) -> Answer<()> {
        let data = match signal {
            Signal::None => IrqData::None,
            Signal::Bool(byte) => IrqData::Bool(byte),
            Signal::Descriptor(descriptor) => {
                IrqData::EventFd(Some(descriptor.try_clone().unwrap()))
            }
            Signal::Number(-1) => IrqData::EventFd(None),
            // It is given descriptors, not their numbers.
            Signal::Number(_) => return Err(Failure::NotThere),
        };
        Ok(self.device.set_irqs(set, data)?)
    }

    fn reset(&mut self) -> Answer<()> {
        Ok(wait(self.device.reset())?)
    }

    fn reopen(&mut self) -> Answer<()> {
        wait(self.device.close());
        Ok(())
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Answer<usize> {
        Ok(self.device.read(offset, bytes)?)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Answer<usize> {
        Ok(self.device.write(offset, bytes)?)
    }

    fn unknown_ioctl(&mut self) -> Answer<()> {
        Err(Failure::NotThere)
    }

    fn map(&mut self, iova: u64, at: usize, len: usize, access: u32) -> Answer<()> {
        let host = self.map.regions()[0].host().part(at, len).expect("in memory");
        let window = Window::new(iova, host, self.map.clone());
        Ok(self.device.map_dma(window.with_access(WindowAccess::from_bits_retain(access)))?)
    }

    fn map_nothing(&mut self, _iova: u64, _len: usize) -> Answer<()> {
        // A window holds on to its memory.
        Err(Failure::NotThere)
    }

    fn unmap(&mut self, iova: u64, len: u64) -> Answer<u64> {
        Ok(wait(self.device.unmap_dma(iova, len))?)
    }

    fn settle(&mut self) -> bool {
        wait(self.device.run());
        true
    }
}
