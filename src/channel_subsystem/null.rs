//! The null device: everything works, nothing happens.

use vfio_ccw_metrics::DeviceClass;

use crate::architecture::{CommandClass, command};

use super::{Data, Device, DeviceState, DeviceStateError, Ending, Extent, Sense, SenseId};

/// Reads give zeros, writes and control data are swallowed, NOP does nothing: for measuring what
/// the path itself costs, and for trying out programs.
///
/// SENSE ID says control unit and device type F0F0, which no maker has.
#[derive(Debug)]
pub struct Null {
    sense: Sense,
}

/// Sense bytes it has.
const SENSE_BYTES: u8 = 24;

impl Default for Null {
    fn default() -> Self {
        Null { sense: Sense::none(SENSE_BYTES) }
    }
}

impl Null {
    const IDENTITY: SenseId =
        SenseId { cu_type: 0xf0f0, cu_model: 1, dev_type: 0xf0f0, dev_model: 1 };
}

impl Device for Null {
    fn class(&self) -> DeviceClass {
        DeviceClass::Null
    }

    fn begin(&mut self) {}

    async fn command(&mut self, code: u8, data: &mut Data<'_>) -> Ending {
        match code {
            command::NOP => return Ending::immediate(),
            command::SENSE => {
                data.store(self.take_sense().as_bytes());
            }
            command::SENSE_ID => {
                data.store(&Null::IDENTITY.to_bytes());
            }
            _ => match CommandClass::of(code) {
                CommandClass::Read | CommandClass::ReadBackward => {
                    use_up(data, |range| range.clear())
                }
                CommandClass::Write | CommandClass::Control => use_up(data, |_| {}),
                _ => {
                    self.sense = Sense::new(Sense::COMMAND_REJECT, 0, SENSE_BYTES);
                    return Ending::unit_check();
                }
            },
        }
        Ending::done()
    }

    fn save(&self) -> DeviceState {
        DeviceState::Null { sense: (&self.sense).into() }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let DeviceState::Null { sense } = state else { return Err(DeviceStateError::Kind) };
        self.sense = sense.try_into()?;
        Ok(())
    }

    fn take_sense(&mut self) -> Sense {
        std::mem::replace(&mut self.sense, Sense::none(SENSE_BYTES))
    }
}

/// Uses the whole area: whatever length the program gives is the right one.
fn use_up(data: &mut Data<'_>, each: impl Fn(&vfio_ccw_pinning::HostRange)) {
    while !data.is_at_end() {
        if let Some(Extent::Memory(range)) = data.next(usize::MAX) {
            each(&range);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::architecture::{Ccw, CcwFlags, DeviceStatus, Orb, SubchannelStatus};
    use crate::channel_subsystem::{DmaSpace, Null, Run, Window, execute};
    use std::sync::Arc;
    use vfio_ccw_pinning::GuestMap;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    fn run(map: &Arc<GuestMap>, program: &[Ccw]) -> crate::architecture::IrbHead {
        let mut dma = DmaSpace::default();
        dma.map(Window::new(0, map.regions()[0].host(), map.clone())).unwrap();
        for (index, ccw) in program.iter().enumerate() {
            map.write(0x100 + index as u64 * 8, &ccw.to_format_1());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(execute(
            &Run::new(Orb::new(0x100), &dma),
            &mut Null::default(),
            &mut |_| {},
        ))
    }

    #[test]
    fn it_reads_zeros_swallows_writes_and_rejects_the_rest() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let map = Arc::new(GuestMap::new(Arc::new(memory)).unwrap());
        map.write(0x1000, &[0xaa; 32]);
        let cc = CcwFlags::CHAIN_COMMAND;
        let irb = run(
            &map,
            &[
                Ccw::new(0x01, 0x1000, 8).with(cc),
                Ccw::new(0x02, 0x1008, 16).with(cc),
                Ccw::new(0xe4, 0x1018, 7),
            ],
        );
        assert!(irb.scsw.is_clean_end(), "{irb:?}");
        let mut bytes = [0; 32];
        map.read(0x1000, &mut bytes);
        assert_eq!(bytes[..8], [0xaa; 8]);
        assert_eq!(bytes[8..24], [0; 16]);
        assert_eq!(bytes[24..], [0xff, 0xf0, 0xf0, 1, 0xf0, 0xf0, 1, 0xaa]);
        let irb = run(&map, &[Ccw::new(0x14, 0x1000, 8)]);
        assert!(irb.scsw.device_status().contains(DeviceStatus::UNIT_CHECK));
        assert_eq!(irb.sense()[0], 0x80);
        let irb = run(&map, &[Ccw::new(0x02, 0xfff8, 16)]);
        assert_eq!(irb.scsw.subchannel_status(), SubchannelStatus::PROGRAM_CHECK);
    }
}
