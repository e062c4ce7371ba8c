//! Addresses that a hostile guest may write into an ORB, a CCW, an IDAW or a MIDAW: each gets the
//! architected check at the byte where it matters, and nothing but guest memory is read or stored.
//!
//! Every program runs translated and unfetched. Around guest memory stand windows that are not the
//! guest's, full of [`CANARY`]: the device must never be given these bytes, and never change one.
//! Some of them stand where guest addresses lead that wrap around.

pub mod translated;

use std::sync::Arc;

use proptest::prelude::*;
use translated::shorthand::{
    CC, CLEAN, ENDED, IDA, MIDA, NOTHING, PGM, READ, READ_BACKWARD, WRITE,
};
use translated::{Answer, Outcome, Rig, pattern};
use vfio_ccw::architecture::{
    Ccw, CcwFlags, DeviceStatus, Orb, OrbFlags, ScswFlags, SubchannelStatus, command,
};
use vfio_ccw::channel_subsystem::Window;
use vfio_ccw::{GUEST_IOVA, SHADOW_IOVA};
use vfio_ccw_pinning::{GuestMap, HostRange};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// A byte that does not stand in guest memory four times in a row.
const CANARY: u8 = 0xa5;

/// Bytes of a canary window.
const GUARD: u64 = 0x1_0000;

/// Bytes of the shadow memory that are looked at.
const SHADOW_LOOKED_AT: usize = 0x4_0000;

/// Where canaries stand in both ways of running: behind the shadow and in front of guest memory. No
/// guest address leads there but by wrapping around.
const GUARDS: [u64; 2] = [1 << 30, GUEST_IOVA - GUARD];

/// The hole between the second and the third region, and behind the last: mapped for the device,
/// but not guest memory. The translator must not lead there.
const HOLES: [u64; 2] = [GUEST_IOVA + 0x5_0000, GUEST_IOVA + 0x1_0001_0000];

const PROGRAM: u32 = 0x1000;
const LIST: u32 = 0x2000;
const DATA: u32 = 0x4000;
const HOLE: u32 = 0x5_0000;

/// A rig with canaries around guest memory.
struct Guarded {
    rig: Rig,
    guards: Vec<HostRange>,
    translated: bool,
}

impl Guarded {
    /// Translated or not; a device that moves `bytes` bytes for each command.
    fn new(translated: bool, bytes: usize) -> Self {
        let mut rig = Rig::new(move |code, _| match code {
            command::NOP => Answer::immediate(),
            _ => Answer::moves(bytes),
        });
        let mut guards = Vec::new();
        let holes = if translated { &HOLES[..] } else { &[] };
        for iova in GUARDS.iter().chain(holes) {
            let ranges = [(GuestAddress(0), GUARD as usize)];
            let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).expect("address space");
            let map = Arc::new(GuestMap::new(Arc::new(memory)).expect("whole frames"));
            let host = map.regions()[0].host();
            assert!(host.write(0, &[CANARY; GUARD as usize]));
            rig.dma.map(Window::new(*iova, host, map)).expect("a place of its own");
            guards.push(host);
        }
        assert!(rig.shadow.write(0, &[CANARY; SHADOW_LOOKED_AT]));
        Guarded { rig, guards, translated }
    }

    fn run(&mut self, orb: &Orb) -> Outcome {
        let outcome = if self.translated { self.rig.run(orb) } else { self.rig.run_unfetched(orb) };
        self.assert_untouched();
        outcome
    }

    /// The canaries stand, the device has seen none of them, and nobody but the translator has
    /// written to the shadow.
    fn assert_untouched(&mut self) {
        for guard in &self.guards {
            let mut bytes = [0; GUARD as usize];
            assert!(guard.read(0, &mut bytes));
            assert!(bytes == [CANARY; GUARD as usize], "a canary is gone");
        }
        let used = if self.translated { self.rig.program.bytes() } else { 0 };
        let mut shadow = vec![0; SHADOW_LOOKED_AT];
        assert!(self.rig.shadow.read(0, &mut shadow));
        assert!(shadow[used..] == [CANARY; SHADOW_LOOKED_AT][used..], "behind the shadow program");
        if self.translated {
            self.rig.program.emit(self.rig.shadow, SHADOW_IOVA as u32).expect("it fitted before");
            let mut again = vec![0; used];
            assert!(self.rig.shadow.read(0, &mut again));
            assert!(again == shadow[..used], "the shadow program was changed");
        }
        // One such byte may be what the device gave before; four in a row are nowhere but there.
        for executed in &self.rig.device.log {
            let canaries = executed.taken.windows(4).any(|bytes| bytes == [CANARY; 4]);
            assert!(!canaries, "the device read canaries");
        }
    }
}

/// Device status, subchannel status, residual count and CCW address.
type End = (DeviceStatus, SubchannelStatus, u16, u32);

fn end_of(outcome: &Outcome) -> End {
    let scsw = outcome.scsw();
    (scsw.device_status(), scsw.subchannel_status(), scsw.count(), scsw.cpa())
}

/// Runs a program both ways, with a device that moves `bytes` bytes for each command.
fn both(orb: &Orb, bytes: usize, lay_out: impl Fn(&Rig), expected: End) -> [Guarded; 2] {
    [true, false].map(|translated| {
        let mut guarded = Guarded::new(translated, bytes);
        lay_out(&guarded.rig);
        let outcome = guarded.run(orb);
        assert_eq!(end_of(&outcome), expected, "translated: {translated}, {:?}", outcome.end);
        guarded
    })
}

fn orb() -> Orb {
    Orb::new(PROGRAM)
}

fn orb_0() -> Orb {
    Orb::new(PROGRAM).with_flags(OrbFlags::FORMAT_2_IDAWS)
}

/// What the device gives first.
fn given(from: usize, to: usize) -> Vec<u8> {
    (from..to).map(|at| pattern(0, at)).collect()
}

#[test]
fn programs_that_stand_nowhere() {
    for cpa in [HOLE, HOLE + 0xfff8, 0x20_0000, 0x7ffe_fff8, PROGRAM + 1, PROGRAM + 4, HOLE - 4] {
        both(&orb().with_cpa(cpa), 8, |_| {}, (NOTHING, PGM, 0, cpa + 8));
    }
    // Bit 0 is refused by START SUBCHANNEL; the channel does not rely on it.
    for cpa in [0x8000_0000u32, 0xffff_fff8, 0xffff_ffff] {
        both(&orb().with_cpa(cpa), 8, |_| {}, (NOTHING, PGM, 0, cpa.wrapping_add(8)));
    }
}

#[test]
fn chains_up_to_a_limit_and_over_it() {
    for (orb, limit) in [(orb_0(), 0x100_0000u32), (orb(), 0x8000_0000)] {
        let orb = orb.with_cpa(limit - 8);
        let last = Ccw::new(READ, DATA, 8);
        let lay_out = |rig: &Rig| rig.put_ccws(&orb, u64::from(limit) - 8, &[last]);
        both(&orb, 8, lay_out, (ENDED, CLEAN, 0, limit));
        let lay_out = |rig: &Rig| rig.put_ccws(&orb, u64::from(limit) - 8, &[last.with(CC), last]);
        both(&orb, 8, lay_out, (NOTHING, PGM, 0, limit + 8));
    }
}

#[test]
fn chains_that_end_in_the_last_bytes_of_memory() {
    for len in 1..6 {
        let orb = orb().with_cpa(HOLE - len * 8);
        let mut ccws = vec![Ccw::new(READ, DATA, 8).with(CC); len as usize];
        let at = u64::from(orb.cpa());
        both(&orb, 8, |rig| rig.put_ccws(&orb, at, &ccws), (NOTHING, PGM, 0, HOLE + 8));
        ccws[len as usize - 1].flags = CcwFlags::empty();
        both(&orb, 8, |rig| rig.put_ccws(&orb, at, &ccws), (ENDED, CLEAN, 0, HOLE));
    }
}

#[test]
fn transfers_to_nowhere() {
    for target in [HOLE, 0x8000_0000, 0xffff_fff8, PROGRAM + 12, 0xffff_ffff, 0x7ffe_fff8] {
        let program = [Ccw::new(READ, DATA, 8).with(CC), Ccw::new(command::TIC, target, 0)];
        let lay_out = |rig: &Rig| rig.put_ccws(&orb(), u64::from(PROGRAM), &program);
        both(&orb(), 8, lay_out, (NOTHING, PGM, 0, PROGRAM + 16));
    }
}

#[test]
fn data_up_to_a_limit_and_over_it() {
    for (orb, limit) in [(orb_0(), 0x100_0000u32), (orb(), 0x8000_0000)] {
        for (at, count, residual) in [
            (limit - 0x18, 0x18, 0),
            (limit - 0x18, 0x19, 1),
            (limit - 1, 0xffff, 0xfffe),
            (limit - 0x1001, 0x2001, 0x1000),
        ] {
            for code in [READ, WRITE] {
                let status = if residual == 0 { CLEAN } else { PGM };
                let ccw = [Ccw::new(code, at, count)];
                let end = (ENDED, status, residual, PROGRAM + 8);
                let lay_out = |rig: &Rig| rig.put_ccws(&orb, u64::from(PROGRAM), &ccw);
                for guarded in both(&orb, usize::from(count), lay_out, end) {
                    let moved = usize::from(count - residual);
                    assert_eq!(guarded.rig.device.log[0].moved, moved);
                    if code == READ {
                        let at = u64::from(at);
                        assert_eq!(guarded.rig.peek(at, moved), given(0, moved));
                        assert_eq!(guarded.rig.peek(at + moved as u64, 0x40), [0; 0x40]);
                    }
                }
            }
        }
    }
}

#[test]
fn data_at_the_end_of_31_and_32_bits() {
    for at in [0x8000_0000, 0xffff_0000, 0xffff_ffff, HOLE, 0x7ffe_0000] {
        for code in [READ, WRITE, READ_BACKWARD] {
            let lay_out = |rig: &Rig| {
                rig.put_ccws(&orb(), u64::from(PROGRAM), &[Ccw::new(code, at, 0xffff)]);
            };
            both(&orb(), 0xffff, lay_out, (ENDED, PGM, 0xffff, PROGRAM + 8));
        }
    }
}

#[test]
fn read_backward_stops_at_address_0_and_at_holes() {
    for (at, moved) in [(0x7u32, 8usize), (0xff_ffff, 0x1_0000), (0x6_0003, 4)] {
        let lay_out = |rig: &Rig| {
            // The program stands elsewhere: this one overwrites the first bytes of storage.
            rig.put_ccws(&orb(), u64::from(PROGRAM), &[Ccw::new(READ_BACKWARD, at, 0xffff)]);
        };
        let moved = moved.min(0xffff);
        let residual = 0xffff - moved as u16;
        let status = if residual == 0 { CLEAN } else { PGM };
        let end = (ENDED, status, residual, PROGRAM + 8);
        for guarded in both(&orb(), 0xffff, lay_out, end) {
            let mut expected = given(0, moved);
            expected.reverse();
            assert_eq!(guarded.rig.peek(u64::from(at) + 1 - moved as u64, moved), expected);
        }
    }
}

#[test]
fn read_backward_from_above_a_limit() {
    for (orb, limit) in [(orb_0(), 0x100_0000u32), (orb(), 0x8000_0000)] {
        let lay_out = |rig: &Rig| {
            let at = u64::from(PROGRAM);
            rig.put_ccws(&orb, at, &[Ccw::new(READ_BACKWARD, limit - 1, 0x20)]);
        };
        for guarded in both(&orb, 0x20, lay_out, (ENDED, CLEAN, 0, PROGRAM + 8)) {
            let mut expected = given(0, 0x20);
            expected.reverse();
            assert_eq!(guarded.rig.peek(u64::from(limit) - 0x20, 0x20), expected);
        }
    }
}

/// IDAWs that are no addresses of guest memory, with and without wrapping around on the way to what
/// the device sees.
const BAD_IDAWS: [u64; 11] = [
    u64::MAX,
    u64::MAX - 0xfff,
    u64::MAX - 7,
    0u64.wrapping_sub(GUARD),
    SHADOW_IOVA.wrapping_sub(GUEST_IOVA),
    (1u64 << 30).wrapping_sub(GUEST_IOVA),
    0u64.wrapping_sub(GUEST_IOVA),
    0u64.wrapping_sub(2 * GUARD).wrapping_sub(GUEST_IOVA),
    HOLE as u64,
    0x1_0001_0000,
    1 << 63,
];

#[test]
fn idaws_to_nowhere() {
    for idaw in BAD_IDAWS {
        for code in [READ, WRITE, READ_BACKWARD] {
            let lay_out = |rig: &Rig| {
                let ccw = Ccw::new(code, LIST, 0x10).with(IDA);
                rig.put_ccws(&orb(), u64::from(PROGRAM), &[ccw]);
                rig.put_idaws(u64::from(LIST), &[idaw, idaw]);
            };
            both(&orb(), 0x10, lay_out, (ENDED, PGM, 0x10, PROGRAM + 8));
        }
    }
}

#[test]
fn second_idaws_to_nowhere() {
    for idaw in BAD_IDAWS {
        let lay_out = |rig: &Rig| {
            let ccw = Ccw::new(READ, LIST, 0x1800).with(IDA);
            rig.put_ccws(&orb(), u64::from(PROGRAM), &[ccw]);
            rig.put_idaws(u64::from(LIST), &[u64::from(DATA), idaw]);
        };
        for guarded in both(&orb(), 0x1800, lay_out, (ENDED, PGM, 0x800, PROGRAM + 8)) {
            assert_eq!(guarded.rig.peek(u64::from(DATA), 0x1000), given(0, 0x1000));
        }
    }
}

#[test]
fn a_list_over_adjacent_regions_is_read_whole() {
    for (flags, list) in [
        (OrbFlags::FORMAT_2_IDAWS, 0x4_0000u32 - 8),
        (OrbFlags::FORMAT_2_IDAWS | OrbFlags::IDAW_2K, 0x4_0000 - 8),
        (OrbFlags::empty(), 0x4_0000 - 4),
    ] {
        let orb = Orb::new(PROGRAM).with_flags(flags | OrbFlags::FORMAT_1);
        let block = orb.idaw_format().block();
        let lay_out = |rig: &Rig| {
            let ccw = Ccw::new(READ, list, block as u16 + 8).with(IDA);
            rig.put_ccws(&orb, u64::from(PROGRAM), &[ccw]);
            if flags.is_empty() {
                rig.put_idaws_1(u64::from(list), &[DATA, DATA + 0x4000]);
            } else {
                let idaws = [u64::from(DATA), u64::from(DATA) + 0x4000];
                rig.put_idaws(u64::from(list), &idaws);
            }
        };
        let bytes = block as usize + 8;
        for guarded in both(&orb, bytes, lay_out, (ENDED, CLEAN, 0, PROGRAM + 8)) {
            let tail = guarded.rig.peek(u64::from(DATA) + 0x4000, 8);
            assert_eq!(tail, given(block as usize, bytes));
        }
    }
}

#[test]
fn a_list_over_the_limit_is_read_on_where_memory_goes_on() {
    for (orb, limit) in [(orb_0(), 0x100_0000u32), (orb(), 0x8000_0000)] {
        let lay_out = |rig: &Rig| {
            let ccw = Ccw::new(READ, limit - 8, 0x1008).with(IDA);
            rig.put_ccws(&orb, u64::from(PROGRAM), &[ccw]);
            rig.put_idaws(u64::from(limit) - 8, &[u64::from(DATA), u64::from(DATA) + 0x4000]);
        };
        for guarded in both(&orb, 0x1008, lay_out, (ENDED, CLEAN, 0, PROGRAM + 8)) {
            assert_eq!(guarded.rig.peek(u64::from(DATA) + 0x4000, 8), given(0x1000, 0x1008));
        }
    }
}

#[test]
fn a_list_into_a_hole_ends_there() {
    let lay_out = |rig: &Rig| {
        rig.put_ccws(&orb(), u64::from(PROGRAM), &[Ccw::new(READ, HOLE - 8, 0x1008).with(IDA)]);
        rig.put_idaws(u64::from(HOLE) - 8, &[u64::from(DATA)]);
    };
    both(&orb(), 0x1008, lay_out, (ENDED, PGM, 8, PROGRAM + 8));
}

#[test]
fn data_over_adjacent_regions_moves_whole() {
    for code in [READ, WRITE, READ_BACKWARD] {
        let at = if code == READ_BACKWARD { 0x4_000fu32 } else { 0x3_fff0 };
        let lay_out = |rig: &Rig| {
            rig.put_ccws(&orb(), u64::from(PROGRAM), &[Ccw::new(code, at, 0x20)]);
            if code == WRITE {
                rig.put(0x3_fff0, &given(0, 0x20));
            }
        };
        for guarded in both(&orb(), 0x20, lay_out, (ENDED, CLEAN, 0, PROGRAM + 8)) {
            let mut expected = given(0, 0x20);
            if code == WRITE {
                assert_eq!(guarded.rig.device.log[0].taken, expected);
                continue;
            }
            if code == READ_BACKWARD {
                expected.reverse();
            }
            assert_eq!(guarded.rig.peek(0x3_fff0, 0x20), expected);
        }
    }
}

#[test]
fn lists_at_the_end_of_the_address_space() {
    for list in [HOLE, 0x8000_0000, 0xffff_fff8, 0xffff_ffff, 0x7ffe_fff8] {
        let lay_out = |rig: &Rig| {
            let ccw = Ccw::new(READ, list, 0xffff).with(IDA);
            rig.put_ccws(&orb(), u64::from(PROGRAM), &[ccw]);
        };
        both(&orb(), 0xffff, lay_out, (ENDED, PGM, 0xffff, PROGRAM + 8));
    }
}

#[test]
fn midaws_to_nowhere() {
    let orb = orb().with_flags(orb().flags() | OrbFlags::MIDAW);
    for (at, entry_address) in BAD_IDAWS.map(|address| (LIST, address & !0xf)).into_iter().chain([
        (HOLE, 0),
        (0x8000_0000, 0),
        (0xffff_fff0, 0),
    ]) {
        for translated in [true, false] {
            let mut guarded = Guarded::new(translated, 0x10);
            let ccw = Ccw::new(READ, at, 0x10).with(MIDA);
            guarded.rig.put_ccws(&orb, u64::from(PROGRAM), &[ccw]);
            guarded.rig.put(u64::from(LIST), &[0, 0, 0, 0, 0, 0x80, 0, 0x10]);
            guarded.rig.put(u64::from(LIST) + 8, &entry_address.to_be_bytes());
            let outcome = guarded.run(&orb);
            // Whether the address is looked at before the device is told or when data moves there
            // is the channel's business.
            let (_, status, residual, cpa) = end_of(&outcome);
            assert_eq!((status, residual, cpa), (PGM, 0x10, PROGRAM + 8), "{entry_address:#x}");
        }
    }
}

/// Addresses near every border there is.
fn address() -> impl Strategy<Value = u64> {
    let borders = [
        0,
        u64::from(LIST),
        u64::from(DATA),
        0x4_0000,
        u64::from(HOLE),
        0x6_0000,
        0x8_0000,
        0xff_0000,
        0x100_0000,
        0x101_0000,
        0x7fff_0000,
        0x8000_0000,
        0x8001_0000,
        0x1_0000_0000,
        0x1_0001_0000,
        0u64.wrapping_sub(GUEST_IOVA),
        SHADOW_IOVA.wrapping_sub(GUEST_IOVA),
        1 << 63,
    ];
    let near = prop_oneof![
        3 => -16i64..=16,
        1 => prop::sample::select(vec![-0x1000, -0x800, 0x800, 0x1000, -0x1001, 0x1001]),
    ];
    (prop::sample::select(borders.to_vec()), near)
        .prop_map(|(border, near)| border.wrapping_add_signed(near))
}

fn ccw() -> impl Strategy<Value = Ccw> {
    let code = prop::sample::select(vec![READ, WRITE, READ_BACKWARD, command::TIC, 0x04, 0x58]);
    let count = prop_oneof![0u16..0x40, Just(0x1000), Just(0x1801), Just(0xffff)];
    // No suspension: there is nobody to resume.
    (code, address(), count, any::<u8>()).prop_map(|(code, address, count, flags)| {
        let flags = CcwFlags::from_bits_retain(flags & !CcwFlags::SUSPEND.bits());
        Ccw::new(code, address as u32, count).with(flags)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hostile_addresses_never_lead_out_of_guest_memory(
        cpa in address(),
        ccws in prop::collection::vec(ccw(), 4),
        list in prop::collection::vec(address(), 8),
        flags in any::<u32>(),
        bytes in prop_oneof![Just(0usize), Just(9), Just(0x1801), Just(70_000)],
    ) {
        let chosen = OrbFlags::FORMAT_1
            | OrbFlags::FORMAT_2_IDAWS
            | OrbFlags::IDAW_2K
            | OrbFlags::MIDAW
            | OrbFlags::SUPPRESS_LENGTH;
        let orb = Orb::new(PROGRAM).with_flags(OrbFlags::from_bits_truncate(flags) & chosen);
        // Three programs in four start where CCWs are.
        let orb = if flags & 3 == 0 { orb.with_cpa(cpa as u32) } else { orb };
        for translated in [true, false] {
            let mut guarded = Guarded::new(translated, bytes);
            guarded.rig.put_idaws(u64::from(LIST), &list);
            guarded.rig.put_idaws(u64::from(HOLE) - 0x20, &list[..4]);
            guarded.rig.put_ccws(&orb, u64::from(PROGRAM), &ccws);
            let scsw = guarded.run(&orb).scsw();
            prop_assert!(scsw.flags().contains(ScswFlags::PRIMARY | ScswFlags::SECONDARY));
            prop_assert_eq!(scsw.cpa() % 8, if scsw.cpa() == orb.cpa().wrapping_add(8) {
                orb.cpa() % 8
            } else {
                0
            });
        }
    }
}
