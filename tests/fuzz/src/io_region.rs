//! The I/O region: any sequence of reads, writes and runs keeps to the kernel driver's contract.

use vfio_ccw::architecture::{CommandClass, Function, IrbHead, Orb, OrbFlags, ScswFlags};
use vfio_ccw::backend::{InProcess, IoRegion};
use vfio_ccw::channel_subsystem::{Data, Device, Ending, Extent, Sense};
use vfio_ccw_metrics::DeviceClass;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::{FromBytes, IntoBytes};

use crate::bench::Bench;
use crate::block_on::block_on;
use crate::guest::{self, GUEST_BYTES, Guest};
use crate::input::Input;

/// errno values of the contract.
const EINVAL: i32 = 22;
const EBUSY: i32 = 16;
const EOPNOTSUPP: i32 = 95;

/// Bytes of the region, and where `ret_code` stands in it.
const REGION: usize = size_of::<IoRegion>();
const RET_CODE: usize = REGION - 4;
/// Where the IRB stands in it.
const IRB: std::ops::Range<usize> = 24..RET_CODE;

/// One case: actions until there are no more bytes.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    Bench::lend(|bench| {
        let guest = &mut bench.guest;
        let irq = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let mut device = InProcess::new(Brief::default(), guest.small_dma.clone());
        device.set_irq(Some(irq.try_clone().expect("another handle")));
        let mut driver = Driver { device, irq, region: [0; REGION], pending: false };
        while !input.is_empty() {
            match input.u8() % 8 {
                0 | 1 => {
                    let offset = input.u8();
                    let len = input.u8();
                    driver.write(offset.into(), input.slice(len.into()));
                }
                2 => {
                    let offset = input.u64();
                    driver.write(offset, input.slice(4));
                }
                3 => {
                    let (offset, len) = (input.u16(), input.u8());
                    driver.read(offset.into(), len.into());
                }
                4 | 5 => {
                    let orb = Orb::read_from_bytes(&input.array::<12>()).expect("12 bytes");
                    driver.write(0, IoRegion::start(orb).as_bytes());
                }
                6 => driver.run(),
                _ => match memory(&mut input, guest) {
                    0 => driver.device.stop(Function::Halt),
                    1 => driver.device.stop(Function::Clear),
                    _ => {}
                },
            }
        }
        driver.run();
        guest.check_fences();
    });
}

/// Puts bytes into guest memory, or where shadow programs stand. Returns how many.
fn memory(input: &mut Input<'_>, guest: &mut Guest) -> usize {
    let slot = usize::from(input.u16());
    let len = usize::from(input.u8());
    let bytes = input.slice(len);
    if slot & 1 == 0 {
        guest.put(guest::address(slot * 8 % GUEST_BYTES), bytes);
    } else {
        guest.put_shadow(slot / 2 * 8 % guest::PROGRAM_BYTES, bytes);
    }
    bytes.len()
}

/// A device, and what its region must hold.
struct Driver {
    device: InProcess,
    irq: EventFd,
    region: [u8; REGION],
    pending: bool,
}

impl Driver {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let result = self.device.write_region(offset, bytes).map_err(|errno| errno.0);
        let expected = self.expected(offset, bytes);
        assert_eq!(result, expected, "{} bytes written at {offset}", bytes.len());
        self.check();
    }

    /// The kernel's `vfio_ccw_mdev_write_io_region` and `fsm_io_request`.
    fn expected(&mut self, offset: u64, bytes: &[u8]) -> Result<usize, i32> {
        let mut region = self.region;
        let end = usize::try_from(offset).ok().and_then(|start| start.checked_add(bytes.len()));
        match end.and_then(|end| region.get_mut(end - bytes.len()..end)) {
            Some(field) => field.copy_from_slice(bytes),
            None => return Err(EINVAL),
        }
        if self.pending {
            self.region[RET_CODE..].copy_from_slice(&(-EBUSY).to_ne_bytes());
            return Err(EBUSY);
        }
        let parsed = IoRegion::read_from_bytes(&region).expect("a region");
        let functions = parsed.scsw.flags();
        let others = ScswFlags::HALT_FUNCTION | ScswFlags::CLEAR_FUNCTION;
        let starts = functions.contains(ScswFlags::START_FUNCTION);
        let transport = parsed.orb.flags().contains(OrbFlags::TRANSPORT_MODE);
        let errno = match () {
            () if starts && !transport => 0,
            () if starts || functions.intersects(others) => EOPNOTSUPP,
            () => parsed.ret_code.get().wrapping_neg(),
        };
        region[RET_CODE..].copy_from_slice(&errno.wrapping_neg().to_ne_bytes());
        region[IRB].copy_from_slice(&self.region[IRB]);
        self.region = region;
        self.pending = starts && errno == 0;
        if errno == 0 { Ok(bytes.len()) } else { Err(errno) }
    }

    fn read(&self, offset: u64, len: usize) {
        let mut bytes = vec![0; len];
        let result = self.device.read_region(offset, &mut bytes).map_err(|errno| errno.0);
        let from = offset as usize;
        match self.region.get(from..from + len) {
            Some(expected) => assert_eq!((result, &bytes[..]), (Ok(len), expected)),
            None => assert_eq!(result, Err(EINVAL)),
        }
    }

    fn run(&mut self) {
        let (ends, mut seen) = (u64::from(self.pending), 0);
        let result = block_on(self.device.run(&mut |_| seen += 1));
        result.expect("an eventfd that can be written");
        let signals = self.irq.read().unwrap_or(0);
        assert_eq!((signals - ends).min(64), seen, "one signal for each IRB");
        if std::mem::take(&mut self.pending) {
            let mut irb = [0; size_of::<IrbHead>()];
            self.device.read_region(IRB.start as u64, &mut irb).expect("inside");
            let head = IrbHead::read_from_bytes(&irb).expect("64 bytes");
            let flags = head.scsw.flags();
            assert!(flags.contains(ScswFlags::START_FUNCTION), "{head:?}");
            let answered = ScswFlags::STATUS_PENDING | ScswFlags::SUSPENDED;
            assert!(flags.intersects(answered), "{head:?}");
            self.region[IRB].fill(0);
            self.region[IRB][..irb.len()].copy_from_slice(&irb);
        }
        self.check();
    }

    /// Asserts that the region holds what it must.
    fn check(&self) {
        let mut bytes = [0; REGION];
        assert_eq!(self.device.read_region(0, &mut bytes), Ok(REGION));
        assert!(bytes == self.region, "{:02x?}\n{:02x?}", bytes, self.region);
        assert_eq!(self.device.is_pending(), self.pending);
    }
}

/// A device that moves a page a command, and a few commands a program.
#[derive(Debug, Default)]
struct Brief {
    commands: usize,
}

impl Device for Brief {
    fn class(&self) -> DeviceClass {
        DeviceClass::Other
    }

    fn begin(&mut self) {
        self.commands = 0;
    }

    async fn command(&mut self, code: u8, data: &mut Data<'_>) -> Ending {
        self.commands += 1;
        if self.commands > 64 {
            return Ending::unit_check();
        }
        if CommandClass::of(code) == CommandClass::Control {
            return Ending::immediate();
        }
        if let Some(Extent::Memory(range)) = data.next(4096)
            && CommandClass::of(code).stores()
        {
            range.clear();
        }
        Ending::done()
    }

    fn take_sense(&mut self) -> Sense {
        Sense::new(Sense::COMMAND_REJECT, 0, 24)
    }
}
