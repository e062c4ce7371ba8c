//! A device model that answers control commands as QEMU's virtio-blk-ccw does. There are no queues.

use vfio_ccw::architecture::{DeviceStatus, command};
use vfio_ccw::channel_subsystem::{Data, Device, Ending, Extent, Sense};
use vfio_ccw_metrics::DeviceClass;

/// Commands of virtio-ccw (virtio 1.2, 4.3.2).
pub mod ccw {
    pub const WRITE_FEAT: u8 = 0x11;
    pub const READ_FEAT: u8 = 0x12;
    pub const READ_CONF: u8 = 0x22;
    pub const WRITE_STATUS: u8 = 0x31;
    pub const READ_VQ_CONF: u8 = 0x32;
    pub const VDEV_RESET: u8 = 0x33;
    pub const SET_VIRTIO_REV: u8 = 0x83;
}

/// The highest revision that there is.
const REVISION: u16 = 2;

/// Slots of the one queue.
const QUEUE: u16 = 256;

/// Features 0 to 31, without those of the ring: for what is compared any will do.
const FEATURES: u32 = 0x3000_6e54;

#[derive(Debug)]
pub struct VirtioBlk {
    sense: Sense,
    revision: Option<u16>,
    status: u8,
    /// What the driver accepted, by index.
    accepted: [u32; 2],
    config: [u8; 60],
}

impl Default for VirtioBlk {
    fn default() -> Self {
        let mut config = [0; 60];
        // Sectors of 512 bytes. A legacy device has the guest's byte order.
        config[..8].copy_from_slice(&0x4000u64.to_be_bytes());
        VirtioBlk { sense: Sense::none(32), revision: None, status: 0, accepted: [0; 2], config }
    }
}

impl VirtioBlk {
    fn reject(&mut self) -> Ending {
        self.sense = Sense::new(Sense::COMMAND_REJECT, 0, 32);
        // In place of channel end and device end.
        Ending { status: DeviceStatus::UNIT_CHECK, immediate: false }
    }

    fn set_revision(&mut self, data: &mut Data<'_>) -> Ending {
        let mut asked = [0; 4];
        data.fetch(&mut asked);
        let revision = u16::from_be_bytes([asked[0], asked[1]]);
        if self.revision.is_some() || revision > REVISION {
            return self.reject();
        }
        self.revision = Some(revision);
        Ending::done()
    }

    /// The index comes with the area that the answer goes to.
    fn read_features(&self, data: &mut Data<'_>) -> Ending {
        let mark = data.mark();
        let index = peek::<5>(data)[4];
        data.go_back(mark);
        let features = match index {
            0 => FEATURES,
            1 => 1,
            _ => 0,
        };
        let [a, b, c, d] = features.to_le_bytes();
        data.store(&[a, b, c, d, index]);
        Ending::done()
    }

    fn write_features(&mut self, data: &mut Data<'_>) -> Ending {
        let mut bytes = [0; 5];
        data.fetch(&mut bytes);
        if let Some(accepted) = self.accepted.get_mut(usize::from(bytes[4])) {
            *accepted = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Ending::done()
    }

    fn read_queue(&self, data: &mut Data<'_>) -> Ending {
        let mark = data.mark();
        let index = peek::<2>(data);
        data.go_back(mark);
        let slots = if u16::from_be_bytes(index) == 0 { QUEUE } else { 0 };
        let [high, low] = slots.to_be_bytes();
        data.store(&[index[0], index[1], high, low]);
        Ending::done()
    }

    fn write_status(&mut self, data: &mut Data<'_>) -> Ending {
        let mut status = [0];
        data.fetch(&mut status);
        self.status = status[0];
        if self.status == 0 {
            self.clear();
        }
        Ending::done()
    }

    fn clear(&mut self) {
        (self.status, self.accepted) = (0, [0; 2]);
    }
}

/// What stands in the first bytes of an area.
fn peek<const LEN: usize>(data: &mut Data<'_>) -> [u8; LEN] {
    let (mut bytes, mut done) = ([0; LEN], 0);
    while let Some(extent) = data.next(LEN - done) {
        if let Extent::Memory(range) = extent {
            range.read(0, &mut bytes[done..done + range.len()]);
        }
        done += extent.len();
    }
    bytes
}

impl Device for VirtioBlk {
    fn class(&self) -> DeviceClass {
        DeviceClass::Other
    }

    fn begin(&mut self) {}

    async fn command(&mut self, code: u8, data: &mut Data<'_>) -> Ending {
        let any_device = [command::NOP, command::SENSE, command::SENSE_ID];
        if !any_device.contains(&code) && code != ccw::SET_VIRTIO_REV {
            // Who does not begin with the revision means legacy; there is no way back.
            self.revision.get_or_insert(0);
        }
        match code {
            command::NOP => return Ending::immediate(),
            command::SENSE => {
                data.store(self.take_sense().as_bytes());
            }
            command::SENSE_ID => {
                // With room for 62 command-information words, of which there are none.
                let mut id = [0; 256];
                id[..4].copy_from_slice(&[0xff, 0x38, 0x32, 0x02]);
                data.store(&id);
            }
            ccw::SET_VIRTIO_REV => return self.set_revision(data),
            ccw::READ_FEAT => return self.read_features(data),
            ccw::WRITE_FEAT => return self.write_features(data),
            ccw::READ_CONF => {
                data.store(&self.config);
            }
            ccw::READ_VQ_CONF => return self.read_queue(data),
            ccw::WRITE_STATUS => return self.write_status(data),
            ccw::VDEV_RESET => {
                self.clear();
                return Ending::immediate();
            }
            _ => return self.reject(),
        }
        Ending::done()
    }

    fn take_sense(&mut self) -> Sense {
        std::mem::replace(&mut self.sense, Sense::none(32))
    }
}
