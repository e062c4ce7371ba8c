//! A guest's channel programs on the translator and on the software channel subsystem, without a
//! service around them.
//!
//! [`Rig::run`] translates (ORB.P = 1), [`Rig::run_unfetched`] lets the channel fetch from guest
//! memory itself (ORB.P = 0). Both end with status as the guest sees it.

pub mod shorthand;

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use vfio_ccw::architecture::{
    Ccw, CommandClass, DeviceStatus, IrbHead, Orb, OrbFlags, Scsw, ScswFlags,
};
use vfio_ccw::channel_subsystem::{
    Data, Device, DmaSpace, Ending, Entry, Extent, Run, Sense, Window, execute,
};
use vfio_ccw::translation::{Program, Rules};
use vfio_ccw::{GUEST_IOVA, SHADOW_IOVA};
use vfio_ccw_metrics::DeviceClass;
use vfio_ccw_pinning::{GuestMap, Hold, HostRange};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Guest memory as (start, length): two adjacent regions, a hole, a region over each of the limits
/// of 16 MiB and 2 GiB, and one that only format-2 IDAWs reach.
pub const REGIONS: [(u64, usize); 6] = [
    (0, 0x4_0000),
    (0x4_0000, 0x1_0000),
    (0x6_0000, 0x2_0000),
    (0xff_0000, 0x2_0000),
    (0x7fff_0000, 0x2_0000),
    (0x1_0000_0000, 0x1_0000),
];

/// Room for the shadow program.
const SHADOW_BYTES: usize = 2 << 20;

/// Guest memory, a device, and everything between them.
pub struct Rig {
    /// Guest memory.
    pub map: Arc<GuestMap>,
    /// Limits, policy and keys of the next run.
    pub rules: Rules,
    /// The device at the end of the channel.
    pub device: Scripted,
    /// What the device sees: guest memory and the shadow.
    pub dma: DmaSpace,
    /// Where shadow programs are written.
    pub shadow: HostRange,
    /// The translator, reused from run to run as a service does.
    pub program: Program,
    /// Frames that the last translated program wants.
    pub hold: Hold,
    /// ORB of the last run, for [`Rig::resume`].
    last: Orb,
}

/// Everything that a run reported, in the order in which it did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Intermediate status: CCWs with the PCI flag that took control.
    pub intermediate: Vec<IrbHead>,
    /// Ending status, or suspended.
    pub end: IrbHead,
}

impl Outcome {
    /// Whether the program waits for RESUME SUBCHANNEL.
    pub fn is_suspended(&self) -> bool {
        self.scsw().flags().contains(ScswFlags::SUSPENDED)
    }

    /// Status word of the end.
    pub fn scsw(&self) -> Scsw {
        self.end.scsw
    }
}

impl fmt::Debug for Rig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rig").field("last", &self.last).finish_non_exhaustive()
    }
}

impl Rig {
    /// The regions of [`REGIONS`], all zero, and a device that answers as `script` says.
    pub fn new(script: impl Fn(u8, usize) -> Answer + 'static) -> Self {
        Rig::with_regions(&REGIONS, script)
    }

    /// Guest memory of these regions: multiples of 4 KiB.
    pub fn with_regions(
        regions: &[(u64, usize)],
        script: impl Fn(u8, usize) -> Answer + 'static,
    ) -> Self {
        let map = memory(regions);
        let arena = memory(&[(0, SHADOW_BYTES)]);
        let shadow = arena.regions()[0].host();
        let mut dma = DmaSpace::default();
        dma.map(Window::new(SHADOW_IOVA, shadow, arena)).expect("a first window");
        for region in map.regions() {
            let window = Window::new(region.start() + GUEST_IOVA, region.host(), map.clone());
            dma.map(window).expect("regions do not overlap");
        }
        Rig {
            map,
            rules: Rules::default(),
            device: Scripted::new(script),
            dma,
            shadow,
            program: Program::default(),
            hold: Hold::default(),
            last: Orb::default(),
        }
    }

    /// Writes guest memory.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        assert!(self.map.write(at, bytes), "{at:#x}: not in guest memory");
    }

    /// Reads guest memory.
    pub fn peek(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        assert!(self.map.read(at, &mut bytes), "{at:#x}: not in guest memory");
        bytes
    }

    /// Writes CCWs one after the other, in the format that `orb` says.
    pub fn put_ccws(&self, orb: &Orb, at: u64, ccws: &[Ccw]) {
        for (at, ccw) in (at..).step_by(8).zip(ccws) {
            self.put(at, &if orb.is_format_1() { ccw.to_format_1() } else { ccw.to_format_0() });
        }
    }

    /// Writes format-2 IDAWs.
    pub fn put_idaws(&self, at: u64, idaws: &[u64]) {
        for (at, idaw) in (at..).step_by(8).zip(idaws) {
            self.put(at, &idaw.to_be_bytes());
        }
    }

    /// Writes format-1 IDAWs.
    pub fn put_idaws_1(&self, at: u64, idaws: &[u32]) {
        for (at, idaw) in (at..).step_by(4).zip(idaws) {
            self.put(at, &idaw.to_be_bytes());
        }
    }

    /// Starts the program as one that may be prefetched: it is translated, and the device runs its
    /// shadow.
    pub fn run(&mut self, orb: &Orb) -> Outcome {
        self.last = orb.with_flags(orb.flags() | OrbFlags::PREFETCH);
        self.enter(Entry::Start)
    }

    /// Starts the program as one that may not be prefetched: the channel reads guest memory itself.
    pub fn run_unfetched(&mut self, orb: &Orb) -> Outcome {
        self.last = orb.with_flags(orb.flags() - OrbFlags::PREFETCH);
        self.enter(Entry::Start)
    }

    /// Resumes the last run, which ended as `suspended` says.
    pub fn resume(&mut self, suspended: &Outcome) -> Outcome {
        assert!(suspended.is_suspended(), "{:?}", suspended.end);
        self.last = self.last.with_cpa(suspended.scsw().cpa().wrapping_sub(8));
        self.enter(Entry::Resume)
    }

    fn enter(&mut self, entry: Entry) -> Outcome {
        let guest = self.last;
        let translated = guest.flags().contains(OrbFlags::PREFETCH);
        let orb = if translated {
            let Rig { program, map, rules, hold, .. } = &mut *self;
            match entry {
                Entry::Start => program.fetch(&guest, map, rules, hold),
                Entry::Resume => program.refetch(&guest, map, rules, hold),
            }
            self.program.emit(self.shadow, SHADOW_IOVA as u32).expect("room for the shadow")
        } else {
            guest
        };
        let run = Run { orb, entry, dma: &self.dma, rules: Some(&self.rules), stop: None };
        let program = &self.program;
        let seen = |irb| if translated { program.back_map(irb) } else { irb };
        let mut intermediate = Vec::new();
        let end = block_on(execute(&run, &mut self.device, &mut |irb| {
            intermediate.push(seen(irb));
        }));
        Outcome { intermediate, end: seen(end) }
    }
}

fn memory(regions: &[(u64, usize)]) -> Arc<GuestMap> {
    let ranges: Vec<_> = regions.iter().map(|(start, len)| (GuestAddress(*start), *len)).collect();
    let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).expect("address space");
    Arc::new(GuestMap::new(Arc::new(memory)).expect("whole frames"))
}

/// Runs a future that never waits for anything but its turn.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
}

/// What a scripted device does with one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Bytes it gives or takes; `None` for as many as the program has room for, up to [`PLENTY`].
    pub bytes: Option<usize>,
    /// Device status at the end.
    pub status: DeviceStatus,
    /// It ends as soon as it began, and moves nothing.
    pub immediate: bool,
}

impl Answer {
    /// Channel end and device end after `bytes` bytes.
    pub fn moves(bytes: usize) -> Self {
        Answer { bytes: Some(bytes), ..Answer::all() }
    }

    /// Channel end and device end after as many bytes as the program has room for.
    pub fn all() -> Self {
        let status = DeviceStatus::CHANNEL_END | DeviceStatus::DEVICE_END;
        Answer { bytes: None, status, immediate: false }
    }

    /// Channel end and device end at once.
    pub fn immediate() -> Self {
        Answer { immediate: true, ..Answer::moves(0) }
    }

    /// Whether the device goes on after `moved` bytes, where the area is at its end or not.
    pub fn goes_on(&self, moved: usize, at_end: bool) -> bool {
        !self.immediate && self.bytes.map_or(!at_end && moved < PLENTY, |bytes| moved < bytes)
    }

    /// The same with more device status.
    pub fn with_status(mut self, status: DeviceStatus) -> Self {
        self.status |= status;
        self
    }
}

/// Bytes after which a device has had enough that takes as many as there is room for: a data chain
/// may be a loop.
pub const PLENTY: usize = 70_000;

/// A command that the device was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    /// Command code.
    pub code: u8,
    /// Bytes that the device gave or took.
    pub moved: usize,
    /// Those that it took.
    pub taken: Vec<u8>,
}

/// A device whose answers a script decides from the command code and the number of the command
/// since the last start.
///
/// Bytes that it gives are those of [`pattern`]. Sense data is command reject and the command code,
/// 24 bytes.
pub struct Scripted {
    script: Box<dyn Fn(u8, usize) -> Answer>,
    /// Starts so far; a resumption is none.
    pub starts: usize,
    /// Commands so far, of all starts.
    pub log: Vec<Executed>,
    /// Commands since the last start.
    since_start: usize,
    buffer: Vec<u8>,
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scripted").field("starts", &self.starts).field("log", &self.log).finish()
    }
}

impl Scripted {
    /// A device that answers as `script` says.
    pub fn new(script: impl Fn(u8, usize) -> Answer + 'static) -> Self {
        Scripted {
            script: Box::new(script),
            starts: 0,
            log: Vec::new(),
            since_start: 0,
            buffer: Vec::new(),
        }
    }

    /// Gives the device another script and an empty log.
    pub fn set_script(&mut self, script: impl Fn(u8, usize) -> Answer + 'static) {
        *self = Scripted { buffer: std::mem::take(&mut self.buffer), ..Scripted::new(script) };
    }

    /// Moves what has its place in `range`, from byte `moved` of the command on.
    fn fill_or_take(
        &mut self,
        class: CommandClass,
        number: usize,
        moved: usize,
        range: &HostRange,
        taken: &mut Vec<u8>,
    ) {
        self.buffer.clear();
        self.buffer.extend((moved..moved + range.len()).map(|at| pattern(number, at)));
        if class == CommandClass::ReadBackward {
            self.buffer.reverse();
        }
        if class.stores() {
            range.write(0, &self.buffer);
        } else {
            range.read(0, &mut self.buffer);
            taken.extend_from_slice(&self.buffer);
        }
    }

    /// Command codes of the log.
    pub fn codes(&self) -> Vec<u8> {
        self.log.iter().map(|executed| executed.code).collect()
    }
}

/// Byte `at` of what a device gives as answer to command `number` since the start: never zero, so
/// that it differs from fresh memory.
pub fn pattern(number: usize, at: usize) -> u8 {
    ((number * 37 + at * 7 + at / 256) % 255) as u8 + 1
}

impl Device for Scripted {
    fn class(&self) -> DeviceClass {
        DeviceClass::Other
    }

    fn begin(&mut self) {
        self.starts += 1;
        self.since_start = 0;
    }

    async fn command(&mut self, code: u8, data: &mut Data<'_>) -> Ending {
        let number = self.since_start;
        self.since_start += 1;
        let answer = (self.script)(code, number);
        let (mut moved, mut taken) = (0, Vec::new());
        match answer.bytes {
            _ if answer.immediate => {}
            Some(bytes) if CommandClass::of(code).stores() => {
                self.buffer.clear();
                self.buffer.extend((0..bytes).map(|at| pattern(number, at)));
                moved = data.store(&self.buffer);
            }
            Some(bytes) => {
                taken.resize(bytes, 0);
                moved = data.fetch(&mut taken);
                taken.truncate(moved);
            }
            None => {
                while answer.goes_on(moved, data.is_at_end())
                    && let Some(extent) = data.next(PLENTY - moved)
                {
                    if let Extent::Memory(range) = &extent {
                        self.fill_or_take(CommandClass::of(code), number, moved, range, &mut taken);
                    }
                    moved += extent.len();
                }
            }
        }
        self.log.push(Executed { code, moved, taken });
        Ending { status: answer.status, immediate: answer.immediate }
    }

    fn take_sense(&mut self) -> Sense {
        let code = self.log.last().map_or(0, |executed| executed.code);
        Sense::new(Sense::COMMAND_REJECT, code, 24)
    }
}
