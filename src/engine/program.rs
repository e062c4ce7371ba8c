//! Channel programs that stay as they are: what the path costs that a program takes.

use std::time::Duration;

use vfio_ccw_load::{Completion, Engine, EngineError, Request};

use super::ports::{EngineSetupError, Ports};
use crate::architecture::Orb;
use crate::service::{DeviceSpec, Service};

/// Devices that run one program each, over and over. What a request asks for is not looked at.
#[derive(Debug)]
pub struct ProgramEngine {
    ports: Ports,
    orbs: Vec<Orb>,
}

impl ProgramEngine {
    /// Attaches `devices` to `service`; the first runs the program of the first of `orbs`, and so on. The programs stand
    /// in guest memory already.
    ///
    /// # Errors
    ///
    /// The service is full, or no eventfd is left.
    ///
    /// # Panics
    ///
    /// There is not an ORB for each device.
    pub fn attach(
        service: &Service,
        devices: impl ExactSizeIterator<Item = DeviceSpec>,
        orbs: Vec<Orb>,
    ) -> Result<Self, EngineSetupError> {
        assert_eq!(devices.len(), orbs.len(), "an ORB for each device");
        Ok(ProgramEngine { ports: Ports::attach(service, devices)?, orbs })
    }
}

impl Engine for ProgramEngine {
    fn slots(&self) -> usize {
        self.ports.slots()
    }

    fn submit(&mut self, requests: &[Request]) -> Result<(), EngineError> {
        for request in requests {
            self.ports.start(request.slot, &self.orbs[request.slot]);
        }
        Ok(())
    }

    fn reap(
        &mut self,
        done: &mut Vec<Completion>,
        wait: Option<Duration>,
    ) -> Result<(), EngineError> {
        self.ports.reap(done, wait)
    }

    fn write_guest(&self, gpa: u64, bytes: &[u8]) -> Result<(), EngineError> {
        self.ports.write_guest(gpa, bytes)
    }

    fn read_guest(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), EngineError> {
        self.ports.read_guest(gpa, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::{Ccw, CcwFlags};
    use std::sync::Arc;
    use vfio_ccw_load::{Direction, Failure};
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    #[test]
    fn each_slot_runs_its_program() {
        let memory =
            Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
        let service = Service::builder().subchannels(2).build(memory).unwrap();
        let orbs = vec![Orb::new(0x1000), Orb::new(0x2000)];
        let devices = [DeviceSpec::Null, DeviceSpec::Null].into_iter();
        let mut engine = ProgramEngine::attach(&service, devices, orbs).unwrap();
        let good = Ccw::new(0x01, 0x3000, 4096);
        let bad = Ccw::new(0x00, 0x3000, 1).with(CcwFlags::empty());
        engine.write_guest(0x1000, &good.to_format_1()).unwrap();
        engine.write_guest(0x2000, &bad.to_format_1()).unwrap();
        let request =
            |slot| Request { slot, direction: Direction::Read, offset: 0, bytes: 512, buffer: 0 };
        engine.submit(&[request(0), request(1)]).unwrap();
        let mut done = Vec::new();
        while done.len() < 2 {
            engine.reap(&mut done, Some(Duration::from_secs(10))).unwrap();
        }
        done.sort_by_key(|completion| completion.slot);
        assert_eq!(done[0].outcome, Ok(()));
        assert!(matches!(done[1].outcome, Err(Failure::Status { subchannel: 0x20, .. })));
        assert!(engine.write_guest(1 << 20, &[0]).is_err());
    }
}
