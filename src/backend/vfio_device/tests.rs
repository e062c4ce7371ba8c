use std::fs::File;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use rustix::event::EventfdFlags;
use vfio_ccw_metrics::DeviceClass;
use vfio_ccw_pinning::GuestMap;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::architecture::{Ccw, CcwFlags, OrbFlags, ScswFlags, command};
use crate::backend::IrqSetFlags;
use crate::channel_subsystem::{Data, Ending, Sense, WindowAccess};

/// A command that waits until its program is told to end.
const WAIT: u8 = 0x06;

/// A device that gives ones, and may wait.
struct Waiting;

impl Device for Waiting {
    fn class(&self) -> DeviceClass {
        DeviceClass::Other
    }

    fn begin(&mut self) {}

    async fn command(&mut self, code: u8, data: &mut Data<'_>) -> Ending {
        match code {
            command::NOP => return Ending::immediate(),
            WAIT => data.stopped().await,
            _ => {
                data.store(&[1; 16]);
            }
        }
        Ending::done()
    }

    fn take_sense(&mut self) -> Sense {
        Sense::none(32)
    }
}

struct Bench {
    map: Arc<GuestMap>,
    device: VfioDevice,
    irqs: [File; 3],
}

impl Bench {
    fn new() -> Self {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let map = Arc::new(GuestMap::new(Arc::new(memory)).unwrap());
        let mut pmcw = Pmcw::single_path(0x10);
        pmcw.chpid[0] = 7;
        let mut device = VfioDevice::new(Waiting, pmcw.with(PmcwFlags::empty(), 3));
        device.map_dma(Window::new(0, map.regions()[0].host(), map.clone())).unwrap();
        let mut bench = Bench { map, device, irqs: [0, 1, 2].map(|_| eventfd().into()) };
        bench.connect();
        bench
    }

    fn connect(&mut self) {
        for (index, irq) in self.irqs.iter().enumerate() {
            let flags = (IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER).bits();
            let set = IrqSet { flags, index: index as u32, start: 0, count: 1 };
            let eventfd = irq.try_clone().unwrap().into();
            self.device.set_irqs(&set, IrqData::EventFd(Some(eventfd))).unwrap();
        }
    }

    /// What an interrupt has counted since this was last asked.
    fn count(&self, irq: Irq) -> u64 {
        let mut bytes = [0; 8];
        match std::io::Read::read(&mut &self.irqs[irq as usize], &mut bytes) {
            Ok(_) => u64::from_ne_bytes(bytes),
            Err(_) => 0,
        }
    }

    fn program(&self, ccws: &[Ccw]) {
        for (index, ccw) in ccws.iter().enumerate() {
            assert!(self.map.write(0x100 + index as u64 * 8, &ccw.to_format_1()));
        }
    }

    fn start(&mut self, orb: Orb) -> Result<usize, Errno> {
        self.device.write(0, IoRegion::start(orb).as_bytes())
    }

    /// Starts a program that waits for ever.
    fn wait(&mut self) {
        self.program(&[Ccw::new(WAIT, 0x1000, 8)]);
        assert_eq!(self.start(Orb::new(0x100)), Ok(124));
        assert!(self.poll().is_pending());
    }

    /// Starts a program that suspends itself without a word.
    fn suspend(&mut self) {
        let nop = Ccw::new(command::NOP, 0, 0);
        self.program(&[nop.with(CcwFlags::CHAIN_COMMAND), nop.with(CcwFlags::SUSPEND)]);
        assert_eq!(self.start(quiet(0x100)), Ok(124));
        assert!(self.poll().is_ready());
        assert_eq!(self.count(Irq::Io), 0);
    }

    fn poll(&mut self) -> Poll<()> {
        self.device.poll_run(&mut Context::from_waker(Waker::noop()))
    }

    fn command(&mut self, command: u32) -> Result<usize, Errno> {
        self.device.write(0x400, &command.to_ne_bytes())
    }

    fn io(&mut self) -> IoRegion {
        let mut bytes = [0; 124];
        self.device.read(0, &mut bytes).unwrap();
        IoRegion::try_from(&bytes[..]).unwrap()
    }

    fn schib(&mut self) -> Schib {
        let mut region = SchibRegion::default();
        self.device.read(0x800, region.as_mut_bytes()).unwrap();
        region.schib
    }

    /// Word 0 of the status in the I/O region without the controls of an ORB.
    fn status(&mut self) -> u32 {
        let word = self.io().irb.head.scsw.as_bytes()[..4].try_into().unwrap();
        u32::from_be_bytes(word) & !0xf8f8_0000
    }

    /// A program runs to a clean end, with one interrupt.
    fn works(&mut self) {
        self.program(&[Ccw::new(0x02, 0x1000, 16)]);
        assert_eq!(self.start(Orb::new(0x100)), Ok(124));
        assert!(self.poll().is_ready());
        assert_eq!(self.count(Irq::Io), 1);
        let scsw = self.io().irb.head.scsw;
        assert!(scsw.is_clean_end(), "{scsw:?}");
    }
}

fn eventfd() -> OwnedFd {
    rustix::event::eventfd(0, EventfdFlags::NONBLOCK).unwrap()
}

/// An ORB whose program may suspend itself, and interrupts only at its end.
fn quiet(cpa: u32) -> Orb {
    let orb = Orb::new(cpa);
    orb.with_flags(orb.flags() | OrbFlags::SUSPEND_CONTROL | OrbFlags::SUPPRESS_SUSPENDED)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn every_write_to_the_io_region_is_a_start() {
    let mut bench = Bench::new();
    bench.works();
    for (offset, len) in [(0, 24), (0, 12), (12, 12), (23, 1), (124, 0)] {
        let bytes = IoRegion::start(Orb::new(0x100));
        let part = &bytes.as_bytes()[offset..offset + len];
        assert_eq!(bench.device.write(offset as u64, part), Ok(len));
        assert!(bench.poll().is_ready());
        assert_eq!((bench.count(Irq::Io), bench.io().ret_code.get()), (1, 0), "{offset}+{len}");
    }
    for (offset, len) in [(0, 125), (121, 4), (125, 0)] {
        assert_eq!(bench.device.write(offset, &vec![0; len]), Err(Errno::INVALID));
        assert_eq!(bench.device.read(offset, &mut vec![0; len]), Err(Errno::INVALID));
    }
    assert!(!bench.device.is_pending());
}

#[test]
fn what_is_written_stays_where_an_interrupt_does_not_write() {
    let mut bench = Bench::new();
    bench.wait();
    let mut second = IoRegion::start(Orb::new(0x200).with_intparm(77));
    second.irb.head.ecw = [0xee; 32];
    second.irb.emw = [0xdd; 32];
    second.ret_code.set(5);
    assert_eq!(bench.device.write(0, second.as_bytes()), Err(Errno::BUSY));
    second.ret_code.set(-libc::EBUSY);
    assert_eq!(bench.io(), second, "refused, and stored");
    block_on(bench.device.reset()).unwrap();
    assert_eq!(bench.io(), second, "a reset leaves it alone");
    bench.works();
    let irb = bench.io().irb;
    assert_eq!((irb.head.ecw, irb.emw), ([0; 32], [0; 32]), "what the last start wrote");
    second.scsw = Scsw::default();
    second.ret_code.set(0);
    bench.device.write(0, second.as_bytes()).unwrap();
    let start = IoRegion::start(Orb::new(0x100));
    assert_eq!(bench.device.write(0, &start.as_bytes()[..24]), Ok(24));
    assert!(bench.poll().is_ready());
    let irb = bench.io().irb;
    assert_eq!((irb.head.ecw, irb.emw), ([0; 32], [0xdd; 32]));
}

#[test]
fn without_a_function_the_callers_ret_code_is_the_answer() {
    let mut bench = Bench::new();
    let mut region = IoRegion { scsw: Scsw::default(), ..IoRegion::start(Orb::new(0x100)) };
    for (left, answer) in [(0, Ok(124)), (-77, Err(Errno(77))), (77, Ok(77))] {
        region.ret_code.set(left);
        assert_eq!(bench.device.write(0, region.as_bytes()), answer);
        assert_eq!(bench.io().ret_code.get(), left);
    }
    region.ret_code.set(i32::MIN);
    assert_eq!(bench.device.write(0, region.as_bytes()), Err(Errno(i32::MIN)));
    for function in [ScswFlags::HALT_FUNCTION, ScswFlags::CLEAR_FUNCTION] {
        region.scsw = Scsw::new(function);
        assert_eq!(bench.device.write(0, region.as_bytes()), Err(Errno::NOT_SUPPORTED));
        assert_eq!(bench.io().ret_code.get(), -libc::EOPNOTSUPP);
    }
    let transport = Orb::new(0x100).with_flags(OrbFlags::TRANSPORT_MODE);
    assert_eq!(bench.start(transport), Err(Errno::NOT_SUPPORTED));
    assert!(!bench.device.is_pending());
}

#[test]
fn halt_and_clear_end_what_runs_with_one_interrupt() {
    for (command, status, pending) in [
        (1, 0x2001, ScswFlags::HALT_FUNCTION | ScswFlags::HALT_PENDING),
        (2, 0x1001, ScswFlags::CLEAR_FUNCTION | ScswFlags::CLEAR_PENDING),
    ] {
        let mut bench = Bench::new();
        bench.wait();
        let active = ScswFlags::SUBCHANNEL_ACTIVE | ScswFlags::DEVICE_ACTIVE;
        assert!(bench.schib().scsw.flags().contains(active | ScswFlags::START_FUNCTION));
        assert_eq!(bench.command(command), Ok(4));
        assert!(bench.schib().scsw.flags().contains(active | pending));
        assert_eq!(bench.command(1), Err(Errno::BUSY), "one is under way");
        assert_eq!(bench.start(Orb::new(0x100)), Err(Errno::BUSY));
        assert_eq!(bench.count(Irq::Io), 0);
        assert!(bench.poll().is_ready());
        assert_eq!((bench.count(Irq::Io), bench.status()), (1, status));
        assert!(bench.poll().is_ready());
        assert_eq!(bench.count(Irq::Io), 0, "the start is over");
        bench.works();
    }
}

#[test]
fn clear_overtakes_halt() {
    let mut bench = Bench::new();
    bench.wait();
    assert_eq!((bench.command(1), bench.command(2), bench.command(2)), (Ok(4), Ok(4), Ok(4)));
    assert!(bench.poll().is_ready());
    assert_eq!((bench.count(Irq::Io), bench.status()), (1, 0x1001));
}

#[test]
fn halt_and_clear_of_nothing_interrupt() {
    let mut bench = Bench::new();
    for (command, status) in [(1, 0x2001), (2, 0x1001), (1, 0x2001)] {
        assert_eq!(bench.command(command), Ok(4));
        assert_eq!((bench.count(Irq::Io), bench.status()), (1, status));
    }
    assert_eq!(bench.device.write(0x404, &[0; 4]), Ok(4), "the command is still there");
    assert_eq!(bench.count(Irq::Io), 1);
    for command in [0, 3, u32::MAX] {
        assert_eq!(bench.command(command), Err(Errno::INVALID));
        let mut region = AsyncRegion::default();
        assert_eq!(bench.device.read(0x400, region.as_mut_bytes()), Ok(8));
        assert_eq!((region.command.get(), region.ret_code.get()), (command, -libc::EINVAL));
    }
    assert_eq!(bench.device.write(0x400, &[0; 9]), Err(Errno::INVALID));
    assert_eq!(bench.count(Irq::Io), 0);
    bench.works();
}

#[test]
fn a_suspended_program_is_in_flight() {
    let mut bench = Bench::new();
    for (command, status) in [(1, 0x2021), (2, 0x1001)] {
        bench.suspend();
        let suspended = bench.schib().scsw.flags() & ScswFlags::ACTIVITY_CONTROL;
        assert_eq!(suspended, ScswFlags::SUSPENDED);
        assert_eq!(bench.start(Orb::new(0x100)), Err(Errno::BUSY));
        assert_eq!(bench.command(command), Ok(4));
        assert_eq!((bench.count(Irq::Io), bench.status()), (1, status));
        assert_eq!(bench.command(1), Ok(4));
        assert_eq!((bench.count(Irq::Io), bench.status()), (1, 0x2001), "nothing is left of it");
        bench.works();
    }
    bench.suspend();
    bench.program(&[Ccw::new(command::NOP, 0, 0); 2]);
    let resume = IoRegion::resume(quiet(0x108));
    assert_eq!(bench.device.write(0, resume.as_bytes()), Ok(124));
    assert!(bench.poll().is_ready());
    assert_eq!((bench.count(Irq::Io), bench.io().irb.head.scsw.cpa()), (1, 0x110));
    bench.suspend();
    let loud = Orb::new(0x108).with_flags(Orb::new(0).flags() | OrbFlags::SUSPEND_CONTROL);
    assert_eq!(bench.device.write(0, IoRegion::resume(loud).as_bytes()), Ok(124));
    assert!(bench.poll().is_ready());
    assert_eq!((bench.count(Irq::Io), bench.status()), (1, 0x4029), "suspended again");
}

#[test]
fn a_reset_ends_a_program_without_an_interrupt() {
    let mut bench = Bench::new();
    bench.wait();
    block_on(bench.device.reset()).unwrap();
    assert_eq!((bench.count(Irq::Io), bench.device.is_pending()), (0, false));
    bench.works();
    bench.suspend();
    block_on(bench.device.reset()).unwrap();
    bench.works();
    bench.wait();
    drop(bench.device.reset());
    assert!(bench.device.is_pending(), "not even begun");
    bench.device.vanish();
    assert_eq!(bench.start(Orb::new(0x100)), Err(Errno::BUSY), "it still has to end");
    assert_eq!(bench.command(1), Ok(4));
    assert!(bench.poll().is_ready());
    assert_eq!((bench.count(Irq::Io), bench.status()), (1, 0x2001), "the halt is answered");
    bench.works();
}

#[test]
fn closing_takes_the_eventfds_away_and_leaves_the_regions() {
    let mut bench = Bench::new();
    bench.wait();
    let before = bench.io();
    block_on(bench.device.close());
    assert_eq!(bench.io(), before);
    bench.program(&[Ccw::new(0x02, 0x1000, 16)]);
    assert_eq!(bench.start(Orb::new(0x100)), Ok(124));
    assert!(bench.poll().is_ready());
    assert_eq!(bench.count(Irq::Io), 0);
    assert!(bench.io().irb.head.scsw.is_clean_end());
    bench.connect();
    bench.works();
}

#[test]
fn unmapping_lets_go_of_memory_at_once() {
    let mut bench = Bench::new();
    let second = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let second = Arc::new(GuestMap::new(Arc::new(second)).unwrap());
    let window = Window::new(0x10_0000, second.regions()[0].host(), second.clone());
    bench.device.map_dma(window.clone()).unwrap();
    assert_eq!(bench.device.map_dma(window.clone()), Err(Errno::EXISTS));
    drop(window);
    bench.program(&[Ccw::new(0x02, 0x10_0000, 16)]);
    assert_eq!(bench.start(Orb::new(0x100)), Ok(124));
    assert!(bench.poll().is_ready());
    assert_eq!(bench.count(Irq::Io), 1);
    bench.wait();
    assert_eq!(block_on(bench.device.unmap_dma(0x20_0000, 0x1000)), Ok(0));
    assert!(bench.device.is_pending(), "nothing was unmapped");
    let cut = block_on(bench.device.unmap_dma(0, 0x1000));
    assert_eq!((cut, bench.device.is_pending()), (Err(Errno::INVALID), true));
    assert_eq!(block_on(bench.device.unmap_dma(0x10_0000, 0x1000)), Ok(0x1000));
    assert_eq!((bench.count(Irq::Io), bench.device.is_pending()), (0, false));
    assert_eq!(Arc::strong_count(&second), 1, "nobody holds it any more");
    bench.works();
    bench.program(&[Ccw::new(0x02, 0x10_0000, 16)]);
    assert_eq!(bench.start(Orb::new(0x100)), Ok(124));
    assert!(bench.poll().is_ready());
    assert_eq!(bench.io().irb.head.scsw.subchannel_status().bits(), 0x20);
}

#[test]
fn a_window_grants_what_it_was_mapped_for() {
    let mut bench = Bench::new();
    let host = bench.map.regions()[0].host().part(0x4000, 0x1000).unwrap();
    let window = Window::new(0x10_0000, host, bench.map.clone());
    bench.device.map_dma(window.with_access(WindowAccess::READ)).unwrap();
    bench.program(&[Ccw::new(0x02, 0x10_0000, 16)]);
    assert_eq!(bench.start(Orb::new(0x100)), Ok(124));
    assert!(bench.poll().is_ready());
    assert_eq!(bench.io().irb.head.scsw.subchannel_status().bits(), 0x10);
    let mut byte = [0xff];
    bench.map.read(0x4000, &mut byte);
    assert_eq!(byte, [0]);
}

#[test]
fn a_program_that_may_not_be_prefetched_uses_the_same_addresses() {
    let mut bench = Bench::new();
    bench.program(&[Ccw::new(0x02, 0x1000, 16)]);
    let orb = Orb::new(0x100);
    assert_eq!(bench.start(orb.with_flags(orb.flags() - OrbFlags::PREFETCH)), Ok(124));
    assert!(bench.poll().is_ready());
    let scsw = bench.io().irb.head.scsw;
    assert!(scsw.is_clean_end() && !scsw.flags().contains(ScswFlags::PREFETCH), "{scsw:?}");
}

#[test]
fn a_start_needs_a_path() {
    let mut bench = Bench::new();
    for (lpm, status) in [(0x40, 0x0300_4411), (0xff, 0x4007), (0, 0x4007), (0x40, 0x0300_4411)] {
        bench.program(&[Ccw::new(0x02, 0x1000, 16)]);
        assert_eq!(bench.start(Orb::new(0x100).with_lpm(lpm)), Ok(124));
        assert!(bench.poll().is_ready());
        assert_eq!((bench.count(Irq::Io), bench.status()), (1, status), "{lpm:#x}");
    }
    bench.device.path_gone(7);
    assert_eq!(bench.schib().pmcw.pam, 0);
    assert_eq!(bench.start(Orb::new(0x100)), Ok(124));
    assert_eq!((bench.count(Irq::Io), bench.status()), (1, 0x0300_4411));
    bench.device.path_back(7);
    bench.works();
}

#[test]
fn reports_are_taken_one_by_one() {
    let mut bench = Bench::new();
    bench.device.path_gone(7);
    bench.device.path_back(7);
    assert_eq!(bench.count(Irq::Crw), 2);
    let mut bytes = [0; 8];
    assert_eq!(bench.device.read(0xc00, &mut bytes[..4]), Ok(4));
    assert_eq!(bytes, [0x04, 0x06, 0, 7, 0, 0, 0, 0]);
    assert_eq!(bench.count(Irq::Crw), 1, "there is another one");
    assert_eq!(bench.device.read(0xc00, &mut bytes), Ok(8));
    assert_eq!(bytes, [0x04, 0x02, 0, 7, 0, 0, 0, 0]);
    assert_eq!(bench.count(Irq::Crw), 0);
    assert_eq!(bench.device.read(0xc00, &mut bytes), Ok(8));
    assert_eq!(bytes, [0; 8]);
    assert_eq!(bench.device.write(0xc00, &bytes), Err(Errno::INVALID));
    assert_eq!(bench.device.write(0x800, &bytes), Err(Errno::INVALID));
    assert_eq!(bench.device.read(0x1000, &mut bytes), Err(Errno::INVALID));
}

#[test]
fn the_schib_shows_the_subchannel() {
    let mut bench = Bench::new();
    let schib = bench.schib();
    assert_eq!((schib.pmcw.devno.get(), schib.pmcw.isc()), (0x10, 3));
    assert!(schib.pmcw.flags().contains(PmcwFlags::ENABLED | PmcwFlags::DEVICE_VALID));
    bench.program(&[Ccw::new(0x02, 0x1000, 16)]);
    bench.start(Orb::new(0x100).with_intparm(0x1234)).unwrap();
    assert!(bench.poll().is_ready());
    let schib = bench.schib();
    assert_eq!((schib.pmcw.intparm.get(), schib.scsw.cpa()), (0x1234, 0x108));
    assert_eq!(schib.pmcw.lpum, 0x80);
    let status = ScswFlags::FUNCTION_CONTROL | ScswFlags::STATUS_CONTROL;
    assert!(!schib.scsw.flags().intersects(status));
}

#[test]
fn unsolicited_status_waits_for_the_program_in_flight() {
    let mut bench = Bench::new();
    bench.device.present(DeviceStatus::ATTENTION);
    assert_eq!((bench.count(Irq::Io), bench.status()), (1, 0x11));
    assert_eq!(bench.io().irb.head.scsw.device_status(), DeviceStatus::ATTENTION);
    bench.wait();
    bench.device.present(DeviceStatus::ATTENTION);
    bench.device.present(DeviceStatus::DEVICE_END);
    assert_eq!(bench.count(Irq::Io), 0);
    assert_eq!(bench.command(1), Ok(4));
    assert!(bench.poll().is_ready());
    assert_eq!((bench.count(Irq::Io), bench.status()), (2, 0x11));
    let both = DeviceStatus::ATTENTION | DeviceStatus::DEVICE_END;
    assert_eq!(bench.io().irb.head.scsw.device_status(), both);
}

#[test]
fn a_device_that_is_gone_does_no_io() {
    let mut bench = Bench::new();
    bench.wait();
    bench.device.withdraw();
    assert_eq!((bench.count(Irq::Request), bench.count(Irq::Io)), (1, 0));
    assert!(bench.poll().is_ready());
    assert_eq!(bench.start(Orb::new(0x100)), Err(Errno::IO));
    assert_eq!(bench.io().ret_code.get(), -libc::EIO);
    assert_eq!(bench.command(1), Err(Errno::IO));
    assert_eq!(bench.device.read(0x800, &mut [0; 52]), Err(Errno::NO_DEVICE));
    assert_eq!(bench.device.read(0xc00, &mut [0; 8]), Ok(8));
    assert_eq!(block_on(bench.device.reset()), Err(Errno::INVALID));
    assert_eq!(bench.count(Irq::Io), 0);
}

#[test]
fn ccws_with_the_pci_flag_interrupt_on_their_way() {
    let mut bench = Bench::new();
    let pci = CcwFlags::PROGRAM_CONTROLLED | CcwFlags::CHAIN_COMMAND;
    bench.program(&[Ccw::new(command::NOP, 0, 0).with(pci), Ccw::new(WAIT, 0x1000, 8)]);
    assert_eq!(bench.start(Orb::new(0x100)), Ok(124));
    assert!(bench.poll().is_pending());
    assert_eq!((bench.count(Irq::Io), bench.status()), (1, 0x40c9));
    assert_eq!(bench.command(2), Ok(4));
    assert!(bench.poll().is_ready());
    assert_eq!((bench.count(Irq::Io), bench.status()), (1, 0x1001));
}
