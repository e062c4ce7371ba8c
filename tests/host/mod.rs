//! Devices of the host's, as `tests/s390x` gives them to the tests that it runs.

#![allow(dead_code, reason = "each test uses its part")]

use std::fs;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vfio_ccw::architecture::{Ccw, CcwFlags, IrbHead, Orb};
use vfio_ccw::backend::kernel::{AddressSpace, Device, Interface, Location};
use vfio_ccw::{
    Completions, Delivery, DeviceOptions, DeviceSpec, Mode, Service, ServiceBuilder, Subchannel,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Bytes of guest memory.
pub const MEMORY: usize = 4 << 20;

/// Where programs and their data are.
pub const PROGRAM: u32 = 0x1000;
pub const DATA: u32 = 0x10_0000;

pub const INTERFACES: [Interface; 2] = [Interface::Type1, Interface::Iommufd];

/// Lines "DEVNO SUBCHANNEL UUID GROUP CDEV" of devices that vfio_ccw has.
const DEVICES: &str = "/run/vfio-ccw";

/// A device that vfio_ccw has.
#[derive(Clone, Debug)]
pub struct Known {
    pub devno: u16,
    pub subchannel: String,
    pub uuid: String,
    pub group: String,
    pub cdev: String,
}

impl Known {
    pub fn location(&self) -> Location {
        Location::find(&self.subchannel).expect("vfio_ccw has it")
    }
}

/// The devices, one test at a time; `None` where there are none, which is said.
pub fn devices() -> Option<(Vec<Known>, MutexGuard<'static, ()>)> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let Ok(lines) = fs::read_to_string(DEVICES) else {
        assert!(std::env::var_os("REAL_DEVICES").is_none(), "no {DEVICES}");
        println!("SKIPPED: no {DEVICES}, so no device of vfio_ccw; tests/s390x/run has some");
        return None;
    };
    let known = lines.lines().map(|line| {
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        let [devno, subchannel, uuid, group, cdev] = words.try_into().expect("five words");
        let devno = u16::from_str_radix(&devno, 16).expect("a device number");
        Known { devno, subchannel, uuid, group, cdev }
    });
    let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    Some((known.collect(), turn))
}

/// Says something to who is at the other side of the test: on a line of its own, also where the test's output
/// is kept back.
pub fn tell(line: &str) {
    let mut output = std::io::stdout().lock();
    writeln!(output, "\n{line}").and_then(|()| output.flush()).expect("somebody reads this");
}

/// A guest with devices of the host's.
pub struct Guest {
    pub memory: Arc<GuestMemoryMmap>,
    pub service: Service,
    /// Windows that the address space had room for before there was the service.
    pub windows_at_first: Option<u32>,
}

impl Guest {
    /// A guest whose service has `devices`, opened through `interface`, with results where `delivery` says.
    pub fn new(
        interface: Interface,
        builder: ServiceBuilder,
        devices: &[Known],
        delivery: &Delivery,
    ) -> (Self, Vec<Subchannel>) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]);
        let memory = Arc::new(memory.expect("address space"));
        let space = AddressSpace::new(interface).expect("the kernel offers it");
        let opened: Vec<_> =
            devices.iter().map(|device| space.open(&device.location()).expect("opens")).collect();
        let windows_at_first = space.windows_left().expect("it has devices");
        let service = builder.address_space(space).build(memory.clone()).expect("a service");
        let attach = |device| {
            let options = DeviceOptions::default().unsolicited(UNSOLICITED);
            service.attach_with(DeviceSpec::kernel(device), delivery.clone(), options)
        };
        let subchannels = opened.into_iter().map(|device| attach(device).expect("attaches"));
        let subchannels = subchannels.collect();
        (Guest { memory, service, windows_at_first }, subchannels)
    }

    /// A guest with one device that was opened in `space`.
    pub fn with_device(
        space: AddressSpace,
        device: Device,
        delivery: &Delivery,
    ) -> (Self, Subchannel) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]);
        let memory = Arc::new(memory.expect("address space"));
        let windows_at_first = space.windows_left().expect("it has a device");
        let service = Service::builder().address_space(space).build(memory.clone());
        let service = service.expect("a service");
        let subchannel = service.attach(DeviceSpec::kernel(device), delivery.clone());
        (Guest { memory, service, windows_at_first }, subchannel.expect("attaches"))
    }

    pub fn write(&self, at: u32, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at.into())).expect("inside");
    }

    pub fn read(&self, at: u32, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at.into())).expect("inside");
        bytes
    }

    /// Writes a program of these CCWs at `at`, chained.
    pub fn program(&self, at: u32, ccws: &[Ccw]) -> Orb {
        let last = ccws.len() - 1;
        for (index, ccw) in ccws.iter().enumerate() {
            let flags = if index < last { CcwFlags::CHAIN_COMMAND } else { CcwFlags::empty() };
            self.write(at + index as u32 * 8, &ccw.with(ccw.flags | flags).to_format_1());
        }
        Orb::new(at)
    }
}

/// What completions with unsolicited status carry.
pub const UNSOLICITED: u64 = u64::MAX;

/// A completion ring, for a guest that waits for one program at a time.
pub struct Ring {
    pub delivery: Delivery,
    completions: Completions,
}

impl Ring {
    pub fn new() -> Self {
        let (delivery, completions) = Completions::ring(64).expect("an eventfd");
        Ring { delivery, completions }
    }

    /// The next completion.
    pub fn next(&mut self) -> (u64, IrbHead) {
        self.next_within(Duration::from_secs(30)).expect("a completion in 30 s")
    }

    /// The next completion, if there is one in so much time.
    pub fn next_within(&mut self, patience: Duration) -> Option<(u64, IrbHead)> {
        let mut next = None;
        let begin = Instant::now();
        loop {
            self.completions.reap(1, |completion| {
                next = Some((completion.user_data, completion.irb));
            });
            let left = patience.saturating_sub(begin.elapsed());
            if next.is_some() || left.is_zero() {
                return next;
            }
            self.completions.wait(Some(left)).expect("an eventfd");
        }
    }

    /// Runs a program to its end.
    pub fn run(&mut self, subchannel: &Subchannel, orb: &Orb) -> IrbHead {
        subchannel.submit(orb, 7).expect("accepted");
        let (user_data, irb) = self.next();
        assert_eq!(user_data, 7, "{irb:?}");
        irb
    }
}

/// Every mode, with a budget that makes cached evict.
pub fn builders() -> impl Iterator<Item = (Mode, ServiceBuilder)> {
    Mode::ALL.into_iter().map(|mode| {
        let builder = Service::builder().mode(mode);
        (mode, if mode == Mode::Cached { builder.budget(8 << 12) } else { builder })
    })
}

/// SENSE ID, into `DATA`.
pub fn sense_id() -> Ccw {
    Ccw::new(0xe4, DATA, 7).with(CcwFlags::SUPPRESS_LENGTH)
}
