//! One run of the suite: a device, its memory and its eventfds, and the lines that the cases give.

use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use vfio_ccw::architecture::{Ccw, Irb, Orb, command};
use vfio_ccw::backend::{AsyncRegion, IoRegion, Irq, IrqSet, IrqSetFlags, SchibRegion};
use vfio_ccw_pinning::GuestMap;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use zerocopy::IntoBytes;

use super::lines::Lines;
use super::outcome::Outcome;
use super::target::{Answer, Signal, Target};

/// Where the device sees the first [`MAIN`] bytes of memory. Programs lie there.
pub const IOVA: u32 = 0x0100_0000;
pub const MAIN: usize = 4 << 20;

/// Behind them: parts of 64 KiB for windows of the cases' own.
pub const PART: usize = 0x1_0000;
const PARTS: usize = 8;

/// An address where nothing is mapped.
pub const NOWHERE: u32 = 0x0800_0000;

/// Offsets of data and of IDALs.
pub const DATA: usize = 0x1_0000;
pub const LIST: usize = 0x1000;

/// What data areas are filled with before a program.
const FILLER: [u8; 0x4000] = [0xaa; 0x4000];

/// What a line shows of memory: (offset, bytes).
pub type Shown<'a> = &'a [(usize, usize)];

/// Whether an interrupt is to come. It decides how long it is waited for, no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Interrupt,
    Silence,
}

pub struct Session {
    pub target: Box<dyn Target>,
    pub map: Arc<GuestMap>,
    irqs: [OwnedFd; 3],
    section: &'static str,
    lines: Lines,
}

impl Session {
    /// A device that `open` opens, with its main window and its eventfds.
    pub fn new<T: Target + 'static>(open: impl FnOnce(Arc<GuestMap>) -> T) -> Self {
        // Of a file, which can be shown to another process.
        let len = MAIN + PARTS * PART;
        let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(len as u64).unwrap();
        let range = (GuestAddress(0), len, Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::<()>::from_ranges_with_files([range]).unwrap();
        let map = Arc::new(GuestMap::new(Arc::new(memory)).unwrap());
        let target = Box::new(open(map.clone()));
        let irqs = [(); 3].map(|()| eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        let mut session = Session { target, map, irqs, section: "", lines: Lines::default() };
        session.target.map(IOVA.into(), 0, MAIN, 3).unwrap();
        session.connect();
        session
    }

    pub fn into_lines(self) -> Lines {
        self.lines
    }

    /// Sets all eventfds.
    pub fn connect(&mut self) {
        for index in 0..Irq::COUNT {
            let set = trigger(IrqSetFlags::DATA_EVENTFD, index);
            let signal = Signal::Descriptor(&self.irqs[index as usize]);
            self.target.set_irqs(&set, signal).unwrap();
        }
    }

    /// SET_IRQS with the session's own eventfd of interrupt `index`.
    pub fn set_own(&mut self, set: &IrqSet, index: usize) -> Answer<()> {
        self.target.set_irqs(set, Signal::Descriptor(&self.irqs[index]))
    }

    /// The cases from here on are of this section.
    pub fn section(&mut self, section: &'static str) {
        self.section = section;
    }

    /// The line of a case.
    pub fn note(&mut self, case: &str, result: impl Display) {
        self.lines.push(format!("{}: {case}", self.section), result.to_string());
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        assert!(self.map.write(at as u64, bytes));
    }

    /// The bytes there, in hexadecimal.
    pub fn hex(&self, at: usize, len: usize) -> String {
        let mut bytes = vec![0; len];
        assert!(self.map.read(at as u64, &mut bytes));
        hex(&bytes)
    }

    /// Stores a format-1 program.
    pub fn put_program(&mut self, at: usize, program: &[Ccw]) {
        let bytes: Vec<u8> = program.iter().flat_map(|ccw| ccw.to_format_1()).collect();
        self.put(at, &bytes);
    }

    /// Stores a list of format-2 IDAWs.
    pub fn put_list(&mut self, at: usize, idaws: &[u64]) {
        let bytes: Vec<u8> = idaws.iter().flat_map(|idaw| idaw.to_be_bytes()).collect();
        self.put(at, &bytes);
    }

    /// Stores a list of format-1 IDAWs.
    pub fn put_short_list(&mut self, at: usize, idaws: &[u32]) {
        let bytes: Vec<u8> = idaws.iter().flat_map(|idaw| idaw.to_be_bytes()).collect();
        self.put(at, &bytes);
    }

    /// Interrupts since this was last asked.
    pub fn interrupts(&mut self, irq: Irq, expect: Expect) -> u64 {
        if !self.target.settle() {
            let mut polled = [PollFd::new(&self.irqs[irq as usize], PollFlags::IN)];
            // One that ought to come ends the wait; one that ought not to has no reason to be late,
            // as QEMU carries a program out within SSCH.
            let patience = match expect {
                Expect::Interrupt => Timespec { tv_sec: 20, tv_nsec: 0 },
                Expect::Silence => Timespec { tv_sec: 0, tv_nsec: 100_000_000 },
            };
            poll(&mut polled, Some(&patience)).unwrap();
        }
        self.counted(irq)
    }

    /// The same, without waiting.
    pub fn counted(&self, irq: Irq) -> u64 {
        let mut count = [0; 8];
        let eventfd = self.irqs[irq as usize].try_clone().unwrap();
        match File::from(eventfd).read_exact(&mut count) {
            Ok(()) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    /// Writes into the I/O region and looks at what becomes of it.
    pub fn write(&mut self, offset: u64, bytes: &[u8], expect: Expect) -> Outcome {
        let stray = self.counted(Irq::Io);
        let answer = self.target.write(offset, bytes);
        let expect = if answer.is_ok() { expect } else { Expect::Silence };
        let interrupts = self.interrupts(Irq::Io, expect);
        let io = self.io();
        let (irb, cpa) = (io.irb, io.orb.cpa());
        Outcome { answer, ret_code: io.ret_code.get(), interrupts, stray, irb, cpa }
    }

    /// Starts a program.
    pub fn start(&mut self, orb: Orb, expect: Expect) -> Outcome {
        self.write(0, IoRegion::start(orb).as_bytes(), expect)
    }

    /// HALT or CLEAR SUBCHANNEL, or what else stands in the region.
    pub fn function(&mut self, bytes: &[u8], expect: Expect) -> Outcome {
        let outcome = self.write(1 << 10, bytes, expect);
        let mut region = AsyncRegion::default();
        self.target.read(1 << 10, region.as_mut_bytes()).unwrap();
        Outcome { ret_code: region.ret_code.get(), ..outcome }
    }

    /// Runs a program at the beginning of the main window; the line shows `data`, too.
    pub fn run(&mut self, case: &str, program: &[Ccw], data: Shown<'_>) {
        self.run_with(case, Orb::new(IOVA), program, data);
    }

    /// The same with this ORB, whose program lies there, too.
    pub fn run_with(&mut self, case: &str, orb: Orb, program: &[Ccw], data: Shown<'_>) {
        self.put(DATA, &FILLER);
        self.put_program(0, program);
        self.start_showing(case, orb, data);
    }

    /// Starts what is there.
    pub fn start_showing(&mut self, case: &str, orb: Orb, data: Shown<'_>) {
        let outcome = self.start(orb, Expect::Interrupt);
        let mut line = outcome.to_string();
        for &(at, len) in data {
            line += &format!(" {}", self.hex(at, len));
        }
        self.note(case, line);
    }

    /// The device works: a program that does nothing ends well.
    pub fn works(&mut self, case: &str) {
        self.run(case, &[Ccw::new(command::NOP, 0, 0)], &[]);
    }

    pub fn io(&mut self) -> IoRegion {
        let mut bytes = [0; 124];
        assert_eq!(self.target.read(0, &mut bytes), Ok(124));
        IoRegion::try_from(&bytes[..]).unwrap()
    }

    /// The last IRB.
    pub fn irb(&mut self) -> Irb {
        self.io().irb
    }

    pub fn schib(&mut self) -> SchibRegion {
        let mut region = SchibRegion::default();
        assert_eq!(self.target.read(2 << 10, region.as_mut_bytes()), Ok(52));
        region
    }
}

/// The address where the device sees the main memory's byte `at`.
pub fn iova(at: usize) -> u32 {
    IOVA + at as u32
}

/// SET_IRQS to trigger.
pub fn trigger(kind: IrqSetFlags, index: u32) -> IrqSet {
    let flags = (kind | IrqSetFlags::ACTION_TRIGGER).bits();
    IrqSet { flags, index, start: 0, count: 1 }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
