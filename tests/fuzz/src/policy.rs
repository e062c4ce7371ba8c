//! Policies: what they refuse never reaches the device model, whatever the guest writes, and also
//! if it writes while its program runs.
//!
//! The device here has its own opinion of what it is asked: it reads the parameters that it is
//! really given, and asserts that none of its commands oversteps what the VMM allowed.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use vfio_ccw::SHADOW_IOVA;
use vfio_ccw::architecture::{CommandClass, DeviceStatus, Orb, OrbFlags, command};
use vfio_ccw::channel_subsystem::{Data, Device, Ending, Entry, Extent, Run, Sense, execute};
use vfio_ccw::translation::{Access, Policy, Program, Rule, Rules, Verdict};
use vfio_ccw_metrics::DeviceClass;
use vfio_ccw_pinning::Hold;

use crate::bench::Bench;
use crate::block_on::block_on;
use crate::case::{self, CaseBytes};
use crate::guest::{self, GUEST_BYTES, Guest};
use crate::input::Input;
use crate::status;

/// Bytes before the first piece of memory; the last of them are the ORB.
pub const HEADER: usize = 33;

/// Blocks or tracks that the extents policy allows.
const ALLOWED: Range<u64> = 8..64;
/// Commands before the device has had enough.
const MOST_COMMANDS: usize = 64;
/// Bytes a command moves at most.
const MOST_BYTES: usize = 1 << 17;
/// PREFIX, which carries a DEFINE EXTENT.
const PREFIX: u8 = 0xe7;
/// Tracks of a cylinder.
const HEADS: u64 = 15;

/// What the VMM allows.
#[derive(Clone, Copy, Debug)]
struct Allowed {
    read_only: bool,
    /// Codes that these bits do not choose are not on the list.
    list: Option<u8>,
    extents: bool,
}

impl Allowed {
    fn policy(self) -> Policy {
        let mut policy = Policy::default();
        if self.read_only {
            policy = policy.and(Policy::read_only());
        }
        if let Some(mask) = self.list {
            policy = policy.and(Policy::allow_list((0..=255).filter(|code| listed(mask, *code))));
        }
        if self.extents {
            policy = policy.and(Policy::extents(ALLOWED));
        }
        policy
    }
}

fn listed(mask: u8, code: u8) -> bool {
    mask >> (code % 8) & 1 == 1
}

/// One case: rules, class, what the guest overwrites, an ORB, memory.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let [options, class, mask] = input.array();
    let allowed = Allowed {
        read_only: options & 1 != 0,
        list: (options & 2 != 0).then_some(mask),
        extents: options & 4 != 0,
    };
    let late = Late { offset: usize::from(input.u16()) * 8 % GUEST_BYTES, bytes: input.array() };
    let orb = case::orb(input.array());
    let prefetches = orb.flags().contains(OrbFlags::PREFETCH);
    judgements(allowed, case::class(class), orb.intparm());
    Bench::lend(|bench| {
        let guest = &mut bench.guest;
        case::pieces(&mut input, guest);
        let judged = Arc::new(Mutex::default());
        let watch = Watch { judged: judged.clone() };
        let rules = Rules {
            class: case::class(class),
            policy: allowed.policy().and(Policy::of(watch)),
            ..Rules::default()
        };
        let (map, dma, shadow) = (guest.map.clone(), guest.dma.clone(), guest.shadow());
        let mut device = Watchful {
            class: rules.class,
            allowed,
            judged,
            late: (options & 8 != 0).then_some(late),
            guest,
            extent: None,
            commands: 0,
        };
        let irb = if prefetches {
            let (mut program, mut hold) = (Program::default(), Hold::default());
            program.fetch(&orb, &map, &rules, &mut hold);
            let host = shadow.part(0, program.bytes()).expect("room");
            let emitted = program.emit(host, SHADOW_IOVA as u32).expect("room");
            let run = Run { orb: emitted, entry: Entry::Start, dma: &dma, rules: None, stop: None };
            let irb = block_on(execute(&run, &mut device, &mut |_| {}));
            program.back_map(irb)
        } else {
            let run = Run { orb, entry: Entry::Start, dma: &dma, rules: Some(&rules), stop: None };
            block_on(execute(&run, &mut device, &mut |_| {}))
        };
        status::check_end(&orb, &irb, None);
        bench.guest.check_fences();
    });
}

/// Rules judge alike wherever they are asked, and together as the strictest of them.
fn judgements(allowed: Allowed, class: DeviceClass, noise: u32) {
    let [code, count, bounded, extent] = noise.to_be_bytes();
    let mut access = Access::new(class, code, count.into());
    access.bounded = bounded & 1 == 1;
    access.extent = (bounded & 2 == 2).then(|| extent.into()..u64::from(extent) + u64::from(count));
    let verdict = allowed.policy().judge(&access);
    let each = [
        Allowed { read_only: false, list: None, ..allowed },
        Allowed { read_only: false, extents: false, ..allowed },
        Allowed { extents: false, list: None, ..allowed },
    ];
    let strictest = each.into_iter().map(|allowed| allowed.policy().judge(&access)).max();
    assert_eq!(Some(verdict), strictest, "{access:?}");
    if allowed.read_only && changes_medium(class, code) {
        assert_ne!(verdict, Verdict::Allow, "{access:?}");
    }
    if allowed.list.is_some_and(|mask| !listed(mask, code)) {
        assert_eq!(verdict, Verdict::Reject, "{access:?}");
    }
}

/// Whether a command can change what is on the medium.
fn changes_medium(class: DeviceClass, code: u8) -> bool {
    let of = CommandClass::of(code);
    match class {
        DeviceClass::Fba => code == command::FBA_WRITE,
        DeviceClass::Eckd => of == CommandClass::Write && !command::is_search(code),
        DeviceClass::Tape => of == CommandClass::Write || matches!(code, 0x1f | 0x17 | 0x97),
        _ => !of.stores() && code != command::NOP,
    }
}

/// A rule that allows everything and remembers what it was asked.
struct Watch {
    judged: Arc<Mutex<Vec<u8>>>,
}

impl Rule for Watch {
    fn judge(&self, access: &Access) -> Verdict {
        assert_eq!(access.direction, CommandClass::of(access.command), "{access:?}");
        self.judged.lock().expect("no panic under it").push(access.command);
        Verdict::Allow
    }
}

/// What a hostile vCPU writes each time that a command begins.
#[derive(Clone, Copy, Debug)]
struct Late {
    offset: usize,
    bytes: [u8; 16],
}

/// A device that watches over what reaches it.
struct Watchful<'a> {
    class: DeviceClass,
    allowed: Allowed,
    judged: Arc<Mutex<Vec<u8>>>,
    late: Option<Late>,
    guest: &'a mut Guest,
    /// The extent that it was given in this program.
    extent: Option<Range<u64>>,
    commands: usize,
}

impl Watchful<'_> {
    /// Asserts that the VMM allows this command.
    fn watch(&mut self, code: u8) {
        assert!(self.judged.lock().expect("no panic under it").contains(&code), "{code:02x}");
        if self.allowed.read_only {
            assert!(!changes_medium(self.class, code), "{code:02x} changes the medium");
        }
        assert!(self.allowed.list.is_none_or(|mask| listed(mask, code)), "{code:02x} not listed");
        if self.allowed.extents && !self.asks(code) && !self.defines(code) {
            let extent = self.extent.clone();
            let inside = |extent: &Range<u64>| {
                !extent.is_empty() && ALLOWED.start <= extent.start && extent.end <= ALLOWED.end
            };
            assert!(extent.as_ref().is_some_and(inside), "{code:02x} in {extent:?}");
        }
    }

    fn defines(&self, code: u8) -> bool {
        match self.class {
            DeviceClass::Fba => code == command::DEFINE_EXTENT,
            DeviceClass::Eckd => matches!(code, command::DEFINE_EXTENT | PREFIX),
            _ => false,
        }
    }

    /// Commands that reach no data of the volume.
    fn asks(&self, code: u8) -> bool {
        let dasd = matches!(code, 0x34 | 0xaf | 0x5b | 0xfa | 0x27 | 0x3e);
        matches!(code, 0x03 | 0x04 | 0xe4 | 0x64) || self.class == DeviceClass::Eckd && dasd
    }

    /// The extent that parameters give, as the device would hold commands to it.
    fn extent_of(&self, code: u8, bytes: &[u8]) -> Option<Range<u64>> {
        let word = |at: usize| {
            let word: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(u64::from(u32::from_be_bytes(word)))
        };
        if self.class == DeviceClass::Fba {
            let (at, first, last) = (word(4)?, word(8)?, word(12)?);
            return (first <= last).then(|| at..at + last - first + 1);
        }
        let at = if code == PREFIX { 12 } else { 0 };
        if code == PREFIX && bytes.get(1)? & 0x80 == 0 {
            return None;
        }
        let track = |address: u64| {
            let cylinder = address >> 16 | (address & 0xfff0) << 12;
            cylinder * HEADS + (address & 0xf)
        };
        let (first, last) = (track(word(at + 8)?), track(word(at + 12)?));
        (first <= last).then(|| first..last + 1)
    }
}

impl Device for Watchful<'_> {
    fn class(&self) -> DeviceClass {
        self.class
    }

    fn begin(&mut self) {
        self.extent = None;
    }

    async fn command(&mut self, code: u8, data: &mut Data<'_>) -> Ending {
        self.commands += 1;
        if let Some(Late { offset, bytes }) = self.late {
            self.guest.put(guest::address(offset), &bytes);
        }
        self.watch(code);
        if self.commands > MOST_COMMANDS {
            return Ending::unit_check();
        }
        if self.defines(code) {
            let mut bytes = [0; 28];
            let len = if code == PREFIX { 28 } else { 16 };
            let taken = data.fetch(&mut bytes[..len]);
            return match self.extent_of(code, &bytes[..taken]) {
                Some(extent) => {
                    self.extent = Some(extent);
                    Ending::done()
                }
                None => Ending::unit_check(),
            };
        }
        let stores = CommandClass::of(code).stores();
        let (mut filler, mut moved) = (0x40, 0);
        while !data.is_at_end() && moved < MOST_BYTES {
            let Some(extent) = data.next(1 << 16) else { break };
            moved += extent.len();
            if let Extent::Memory(range) = extent
                && stores
            {
                // What the disk holds may look like anything, parameters too.
                filler ^= 0x48;
                range.write(0, &vec![filler; range.len()]);
            }
        }
        if command::is_search(code) && self.commands % 2 == 1 {
            let done = Ending::done();
            return Ending { status: done.status | DeviceStatus::STATUS_MODIFIER, ..done };
        }
        Ending::done()
    }

    fn take_sense(&mut self) -> Sense {
        Sense::new(Sense::COMMAND_REJECT, 0, 24)
    }
}

/// The beginning of a case, as seeds write it.
pub fn case(options: u8, class: u8, mask: u8, late: (u64, [u8; 16]), orb: &Orb) -> CaseBytes {
    let offset = guest::linear(late.0).expect("an address in guest memory");
    let mut bytes = vec![options, class, mask];
    bytes.extend((offset as u16 / 8).to_be_bytes());
    bytes.extend(late.1);
    bytes.extend(zerocopy::IntoBytes::as_bytes(orb));
    CaseBytes(bytes)
}
