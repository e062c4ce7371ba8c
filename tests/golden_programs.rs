//! Golden cases: one program for each rule of the architecture, with exactly the status, the CCW
//! address, the residual count and the memory that it must leave.
//!
//! Each case runs twice, translated (ORB.P = 1) and unfetched (P = 0), and must end alike. The first
//! line of a case names the rule, in the words of the Principles of Operation's chapters on I/O as
//! Hercules' `channel.c` (`execute_ccw_chain`) has them; where somebody differs,
//! `docs/TRANSLATION.md` says whom we follow.

pub mod translated;

use std::sync::Arc;

use translated::shorthand::{
    CC, CD, CLEAN, ENDED, IDA, IL, MIDA, NOTHING, PCI, PGM, PROT, READ, READ_BACKWARD, SEARCH,
    SENSE, SKIP, SLI, SUSPEND, WRITE,
};
use translated::{Answer, Outcome, Rig, pattern};
use vfio_ccw::architecture::{
    Ccw, CcwFlags, DeviceStatus, Orb, OrbFlags, ScswFlags, SubchannelStatus, command,
};
use vfio_ccw::translation::{StorageKey, StorageKeys};

/// Where programs stand, their IDALs or MIDAWs, and their data.
const PROGRAM: u32 = 0x1000;
const LIST: u32 = 0x2000;
const DATA: u32 = 0x4000;

/// First byte after the two regions at the bottom of guest memory.
const HOLE: u32 = 0x5_0000;

/// Device status, subchannel status, residual count and CCW address.
type End = (DeviceStatus, SubchannelStatus, u16, u32);

fn end_of(outcome: &Outcome) -> End {
    let scsw = outcome.scsw();
    (scsw.device_status(), scsw.subchannel_status(), scsw.count(), scsw.cpa())
}

/// An ORB for a program of this CCW format at [`PROGRAM`], with format-2 IDAWs over 4 KiB.
fn orb_of(format_1: bool) -> Orb {
    let mut flags = OrbFlags::FORMAT_2_IDAWS;
    flags.set(OrbFlags::FORMAT_1, format_1);
    Orb::new(PROGRAM).with_flags(flags)
}

fn orb() -> Orb {
    orb_of(true)
}

fn with(orb: Orb, flags: OrbFlags) -> Orb {
    orb.with_flags(orb.flags() | flags)
}

/// Runs a program translated and unfetched, in memory of its own each time, and holds both ends
/// against `expected`. What they left is for the caller to look at.
fn both(
    orb: &Orb,
    script: impl Fn(u8, usize) -> Answer + Copy + 'static,
    lay_out: impl Fn(&mut Rig),
    expected: End,
) -> [(Rig, Outcome); 2] {
    [true, false].map(|translated| {
        let mut rig = Rig::new(script);
        lay_out(&mut rig);
        let outcome = if translated { rig.run(orb) } else { rig.run_unfetched(orb) };
        assert_eq!(end_of(&outcome), expected, "translated: {translated}, {:?}", outcome.end);
        assert_ending_flags(orb, translated, &outcome);
        (rig, outcome)
    })
}

/// Final status is primary and secondary, and alert where anything is out of the ordinary; word 0
/// says what the guest's ORB said.
fn assert_ending_flags(orb: &Orb, translated: bool, outcome: &Outcome) {
    let scsw = outcome.scsw();
    let mut expected = ScswFlags::START_FUNCTION
        | ScswFlags::PRIMARY
        | ScswFlags::SECONDARY
        | ScswFlags::STATUS_PENDING;
    let clean = scsw.device_status() == ENDED && scsw.subchannel_status() == CLEAN;
    expected.set(ScswFlags::ALERT, !clean);
    expected.set(ScswFlags::FORMAT_1, orb.is_format_1());
    expected.set(ScswFlags::PREFETCH, translated);
    expected.set(ScswFlags::SUSPEND_CONTROL, orb.flags().contains(OrbFlags::SUSPEND_CONTROL));
    expected.set(ScswFlags::SUPPRESS_SUSPENDED, orb.flags().contains(OrbFlags::SUPPRESS_SUSPENDED));
    if !outcome.end.sense().is_empty() {
        expected |= ScswFlags::EXTENDED_CONTROL | ScswFlags::ESW_FORMAT;
    }
    assert_eq!(scsw.flags(), expected, "{scsw:?}");
    assert_eq!(scsw.key(), orb.key());
    assert_eq!(scsw.deferred_cc(), 0);
}

/// A run whose program is CCWs at [`PROGRAM`] and nothing else.
fn ccws(
    orb: &Orb,
    script: impl Fn(u8, usize) -> Answer + Copy + 'static,
    program: &[Ccw],
    expected: End,
) -> [(Rig, Outcome); 2] {
    let at = u64::from(orb.cpa());
    both(orb, script, |rig| rig.put_ccws(orb, at, program), expected)
}

/// Bytes `from..to` of what the device gave in answer to its first command.
fn given(from: usize, to: usize) -> Vec<u8> {
    (from..to).map(|at| pattern(0, at)).collect()
}

/// Guest memory that tells where it was read from.
fn written(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 + 1).collect()
}

/// A device that answers NOP at once and gives or takes `bytes` for anything else.
fn moving(bytes: usize) -> impl Fn(u8, usize) -> Answer + Copy {
    move |code, _| if code == command::NOP { Answer::immediate() } else { Answer::moves(bytes) }
}

const fn nop() -> Ccw {
    Ccw { command: command::NOP, flags: CcwFlags::empty(), count: 1, address: DATA }
}

fn tic(target: u32) -> Ccw {
    Ccw::new(command::TIC, target, 0)
}

/// The device was given these commands, in both runs.
fn assert_codes(runs: &[(Rig, Outcome); 2], codes: &[u8]) {
    for (rig, _) in runs {
        assert_eq!(rig.device.codes(), codes);
    }
}

/// Key of the programs that have one.
const KEY: u8 = 3;

/// Storage where one frame has another key than [`KEY`], perhaps with fetch protection.
struct ForeignFrame {
    frame: u32,
    fetch_protected: bool,
}

impl StorageKeys for ForeignFrame {
    fn key(&self, address: u64) -> StorageKey {
        if address & !0xfff == u64::from(self.frame) {
            StorageKey { access: 5, fetch_protected: self.fetch_protected }
        } else {
            StorageKey { access: KEY, fetch_protected: true }
        }
    }
}

fn protect(rig: &mut Rig, frame: u32, fetch_protected: bool) {
    rig.rules.keys = Some(Arc::new(ForeignFrame { frame, fetch_protected }));
}

// Program check and protection check: where a CCW may stand.

/// CCW not on a doubleword.
#[test]
fn a_program_off_the_doubleword_is_a_program_check() {
    for format_1 in [false, true] {
        let orb = orb_of(format_1).with_cpa(PROGRAM + 4);
        let runs = both(&orb, moving(0), |_| {}, (NOTHING, PGM, 0, PROGRAM + 12));
        assert_codes(&runs, &[]);
    }
}

/// CCW outside storage.
#[test]
fn a_program_outside_storage_is_a_program_check() {
    for format_1 in [false, true] {
        let orb = orb_of(format_1).with_cpa(HOLE);
        let runs = both(&orb, moving(0), |_| {}, (NOTHING, PGM, 0, HOLE + 8));
        assert_codes(&runs, &[]);
    }
}

/// CCW outside storage, reached by chaining.
#[test]
fn a_chain_into_a_hole_is_a_program_check_behind_it() {
    for format_1 in [false, true] {
        let orb = orb_of(format_1).with_cpa(HOLE - 8);
        let runs = ccws(&orb, moving(0), &[nop().with(CC)], (NOTHING, PGM, 0, HOLE + 8));
        assert_codes(&runs, &[command::NOP]);
    }
}

/// CCW beyond 24 bits (format 0) and 31 bits (format 1), though storage goes on.
#[test]
fn a_chain_past_the_address_limit_is_a_program_check() {
    for (format_1, limit) in [(false, 0x100_0000), (true, 0x8000_0000)] {
        let orb = orb_of(format_1).with_cpa(limit - 8);
        let runs = both(
            &orb,
            moving(0),
            |rig| rig.put_ccws(&orb, u64::from(limit) - 8, &[nop().with(CC), nop()]),
            (NOTHING, PGM, 0, limit + 8),
        );
        assert_codes(&runs, &[command::NOP]);
    }
}

/// CPA reported: a TIC whose target cannot be a CCW reports TIC + 8 and the TIC's count. The
/// second address of the format-1 list is none of 31 bits.
#[test]
fn an_impossible_tic_target_is_a_program_check_at_the_tic() {
    let targets = [(false, 9, HOLE), (false, 9, 0x3004), (false, 0, 0xe0_0000)];
    let targets_1 = [(true, 0, HOLE), (true, 0, 0x8000_0000), (true, 0, 0x3004)];
    for (format_1, count, target) in targets.into_iter().chain(targets_1) {
        let program = [nop().with(CC), Ccw::new(command::TIC, target, count)];
        let orb = orb_of(format_1);
        let runs = ccws(&orb, moving(0), &program, (NOTHING, PGM, count, PROGRAM + 16));
        assert_codes(&runs, &[command::NOP]);
    }
}

/// CCW fetch-protected: the first, one that the chain runs into, and one that a TIC leads to.
#[test]
fn a_fetch_protected_ccw_is_a_protection_check() {
    let orb = orb().with_key(KEY);
    let lay_out = |rig: &mut Rig| {
        rig.put_ccws(&orb, 0x1ff8, &[nop().with(CC), nop()]);
        rig.put_ccws(&orb, u64::from(PROGRAM), &[nop().with(CC), tic(0x2000)]);
        protect(rig, 0x2000, true);
    };
    let first = orb.with_cpa(0x2000);
    assert_codes(&both(&first, moving(0), lay_out, (NOTHING, PROT, 0, 0x2008)), &[]);
    let chained = orb.with_cpa(0x1ff8);
    let runs = both(&chained, moving(0), lay_out, (NOTHING, PROT, 0, 0x2008));
    assert_codes(&runs, &[command::NOP]);
    let runs = both(&orb, moving(0), lay_out, (NOTHING, PROT, 0, PROGRAM + 16));
    assert_codes(&runs, &[command::NOP]);
}

/// CCW fetch-protected: not with the right key, not with key 0, not without fetch protection.
#[test]
fn storage_that_may_be_fetched_gives_no_protection_check() {
    for (key, fetch_protected) in [(5, true), (0, true), (KEY, false)] {
        let orb = orb().with_key(key);
        let frame = move |rig: &mut Rig| {
            rig.put_ccws(&orb, u64::from(PROGRAM), &[nop().with(SLI)]);
            protect(rig, PROGRAM, fetch_protected);
        };
        both(&orb, moving(0), frame, (ENDED, CLEAN, 1, PROGRAM + 8));
    }
}

// Program check: commands and counts.

/// Command xxxx0000.
#[test]
fn an_invalid_command_is_a_program_check() {
    for format_1 in [false, true] {
        for code in [0x00, 0x10, 0xf0] {
            let program = [Ccw::new(code, DATA, 16)];
            let orb = orb_of(format_1);
            let runs = ccws(&orb, moving(16), &program, (NOTHING, PGM, 16, PROGRAM + 8));
            assert_codes(&runs, &[]);
        }
    }
}

/// Command xxxx1000 other than 0x08: in format 1 not a TIC, and not a command.
#[test]
fn a_tic_with_a_high_nibble_is_a_program_check_in_format_1_only() {
    let program = [nop().with(CC), Ccw::new(0x18, PROGRAM + 0x100, 16)];
    let runs = ccws(&orb(), moving(0), &program, (NOTHING, PGM, 16, PROGRAM + 16));
    assert_codes(&runs, &[command::NOP]);
    let orb = orb_of(false);
    let lay_out = |rig: &mut Rig| {
        rig.put_ccws(&orb, u64::from(PROGRAM), &program);
        rig.put_ccws(&orb, u64::from(PROGRAM) + 0x100, &[nop()]);
    };
    let runs = both(&orb, moving(0), lay_out, (ENDED, CLEAN, 1, PROGRAM + 0x108));
    assert_codes(&runs, &[command::NOP; 2]);
}

/// Command xxxx0000 during data chaining: the code is not looked at, nor is any other.
#[test]
fn the_command_of_a_data_chained_ccw_is_ignored() {
    for format_1 in [false, true] {
        for code in [0x00, 0x10, command::NOP, WRITE, SENSE, READ_BACKWARD] {
            let program = [Ccw::new(READ, DATA, 8).with(CD), Ccw::new(code, DATA + 0x100, 8)];
            let orb = orb_of(format_1);
            let runs = ccws(&orb, moving(16), &program, (ENDED, CLEAN, 0, PROGRAM + 16));
            assert_codes(&runs, &[READ]);
            for (rig, _) in &runs {
                assert_eq!(rig.peek(u64::from(DATA), 8), given(0, 8));
                assert_eq!(rig.peek(u64::from(DATA) + 0x100, 8), given(8, 16));
            }
        }
    }
}

/// Format 0, count 0.
#[test]
fn count_zero_is_a_program_check_in_format_0() {
    for flags in [CcwFlags::empty(), CC, CD, SLI, SKIP] {
        let program = [Ccw::new(READ, DATA, 0).with(flags), nop()];
        let runs = ccws(&orb_of(false), moving(0), &program, (NOTHING, PGM, 0, PROGRAM + 8));
        assert_codes(&runs, &[]);
    }
}

/// Format 1, count 0: allowed, and no data moves.
#[test]
fn count_zero_is_allowed_in_format_1() {
    let program = [Ccw::new(READ, HOLE, 0)];
    let runs = ccws(&orb(), moving(0), &program, (ENDED, CLEAN, 0, PROGRAM + 8));
    assert_codes(&runs, &[READ]);
}

/// Format 1, count 0 with CD.
#[test]
fn count_zero_with_data_chaining_is_a_program_check() {
    let program = [Ccw::new(READ, DATA, 0).with(CD), Ccw::new(READ, DATA, 8)];
    let runs = ccws(&orb(), moving(8), &program, (NOTHING, PGM, 0, PROGRAM + 8));
    assert_codes(&runs, &[]);
}

/// Count 0 in a CCW that was data-chained to; what came before it has moved.
#[test]
fn count_zero_in_a_data_chained_ccw_is_a_program_check() {
    for format_1 in [false, true] {
        let program = [Ccw::new(READ, DATA, 8).with(CD), Ccw::new(READ, DATA + 0x100, 0)];
        let orb = orb_of(format_1);
        let runs = ccws(&orb, moving(16), &program, (ENDED, PGM, 0, PROGRAM + 16));
        for (rig, _) in &runs {
            assert_eq!(rig.peek(u64::from(DATA), 9)[..8], given(0, 8));
        }
    }
}

// Program check: transfer in channel.

/// The first CCW is a TIC (Hercules, S/370: the first CCW of a start).
#[test]
fn a_tic_as_first_ccw_is_a_program_check() {
    for format_1 in [false, true] {
        let orb = orb_of(format_1);
        let program = [tic(PROGRAM + 16), nop(), nop()];
        assert_codes(&ccws(&orb, moving(0), &program, (NOTHING, PGM, 0, PROGRAM + 8)), &[]);
    }
    let program = [Ccw::new(0x28, PROGRAM + 16, 77), nop(), nop()];
    ccws(&orb_of(false), moving(0), &program, (NOTHING, PGM, 77, PROGRAM + 8));
}

/// TIC to TIC: CPA and count are the second TIC's.
#[test]
fn a_tic_to_a_tic_is_a_program_check_at_the_second() {
    for (format_1, count) in [(false, 5), (true, 0)] {
        let orb = orb_of(format_1);
        let lay_out = |rig: &mut Rig| {
            rig.put_ccws(&orb, u64::from(PROGRAM), &[nop().with(CC), tic(LIST)]);
            rig.put_ccws(&orb, u64::from(LIST), &[Ccw::new(command::TIC, PROGRAM, count)]);
        };
        let runs = both(&orb, moving(0), lay_out, (NOTHING, PGM, count, LIST + 8));
        assert_codes(&runs, &[command::NOP]);
    }
}

/// TIC to TIC, side by side: also where the second is reached by TIC * + 8.
#[test]
fn a_tic_to_the_next_tic_is_a_program_check() {
    let program = [nop().with(CC), tic(PROGRAM + 16), tic(PROGRAM)];
    let runs = ccws(&orb(), moving(0), &program, (NOTHING, PGM, 0, PROGRAM + 24));
    assert_codes(&runs, &[command::NOP]);
}

/// Format-1 TIC with flags or a count.
#[test]
fn a_format_1_tic_with_flags_or_count_is_a_program_check() {
    let flags = [CD, CC, SLI, SKIP, PCI, IDA, SUSPEND, MIDA].map(|flag| tic(LIST).with(flag));
    for bad in flags.into_iter().chain([Ccw::new(command::TIC, LIST, 1)]) {
        let lay_out = |rig: &mut Rig| {
            rig.put_ccws(&orb(), u64::from(PROGRAM), &[nop().with(CC), bad]);
            rig.put_ccws(&orb(), u64::from(LIST), &[nop()]);
        };
        let end = (NOTHING, PGM, bad.count, PROGRAM + 16);
        for (_, outcome) in both(&orb(), moving(0), lay_out, end) {
            assert!(outcome.intermediate.is_empty(), "a TIC takes no control");
        }
    }
}

/// Format-0 TIC with flags and a count: ignored.
#[test]
fn a_format_0_tic_ignores_flags_and_count() {
    let orb = orb_of(false);
    let odd = Ccw::new(0xf8, LIST, 0xffff).with(CcwFlags::from_bits_retain(0xff));
    let lay_out = |rig: &mut Rig| {
        rig.put_ccws(&orb, u64::from(PROGRAM), &[nop().with(CC), odd]);
        rig.put_ccws(&orb, u64::from(LIST), &[nop()]);
    };
    for (_, outcome) in both(&orb, moving(0), lay_out, (ENDED, CLEAN, 1, LIST + 8)) {
        assert!(outcome.intermediate.is_empty());
    }
}

/// More than 255 TICs backward without a read, a write or a TIC forward in between.
#[test]
fn a_loop_without_data_is_a_program_check_at_its_tic() {
    for format_1 in [false, true] {
        let program = [nop().with(CC), tic(PROGRAM)];
        let orb = orb_of(format_1);
        let runs = ccws(&orb, moving(0), &program, (NOTHING, PGM, 0, PROGRAM + 16));
        // The first time round, and once for each TIC that was let through.
        for (rig, _) in &runs {
            assert_eq!(rig.device.log.len(), 256);
        }
    }
}

/// More than 255 TICs backward with a search in between: as long as the device likes.
#[test]
fn a_search_loop_is_not_bound_by_the_number_of_tics() {
    let script = |code, number| match code {
        SEARCH if number == 999 => Answer::moves(4).with_status(DeviceStatus::STATUS_MODIFIER),
        SEARCH => Answer::moves(4),
        _ => Answer::moves(8),
    };
    let program = [Ccw::new(SEARCH, DATA, 4).with(CC), tic(PROGRAM), Ccw::new(READ, DATA, 8)];
    for format_1 in [false, true] {
        let runs = ccws(&orb_of(format_1), script, &program, (ENDED, CLEAN, 0, PROGRAM + 24));
        for (rig, _) in &runs {
            assert_eq!(rig.device.log.len(), 1001);
        }
    }
}

// Program check and protection check: IDAWs.

/// IDAW list misaligned: on 4 for format 1, on 8 for format 2.
#[test]
fn a_misaligned_idaw_list_is_a_program_check() {
    for (flags, list) in [
        (OrbFlags::FORMAT_2_IDAWS, LIST + 4),
        (OrbFlags::FORMAT_2_IDAWS | OrbFlags::IDAW_2K, LIST + 4),
        (OrbFlags::empty(), LIST + 2),
    ] {
        for format in [OrbFlags::empty(), OrbFlags::FORMAT_1] {
            let orb = Orb::new(PROGRAM).with_flags(flags | format);
            let program = [Ccw::new(READ, list, 16).with(IDA)];
            let lay_out = |rig: &mut Rig| {
                rig.put_ccws(&orb, u64::from(PROGRAM), &program);
                rig.put(u64::from(LIST), &[0, 0, 0x40, 0, 0, 0, 0x40, 0, 0, 0, 0x40, 0]);
            };
            let runs = both(&orb, moving(16), lay_out, (ENDED, PGM, 16, PROGRAM + 8));
            assert_codes(&runs, &[READ]);
        }
    }
}

/// IDAW list outside storage or beyond 31 bits.
#[test]
fn an_idaw_list_outside_storage_is_a_program_check() {
    for list in [HOLE, 0x8000_0000, 0xffff_fff8] {
        let program = [Ccw::new(WRITE, list, 16).with(IDA)];
        ccws(&orb(), moving(16), &program, (ENDED, PGM, 16, PROGRAM + 8));
    }
    let program = [Ccw::new(WRITE, HOLE, 16).with(IDA)];
    ccws(&orb_of(false), moving(16), &program, (ENDED, PGM, 16, PROGRAM + 8));
}

/// IDAW list that runs out of storage: the blocks before have moved.
#[test]
fn an_idaw_list_that_runs_out_is_a_program_check_there() {
    let lay_out = |rig: &mut Rig| {
        let ccw = Ccw::new(READ, HOLE - 8, 0x1800).with(IDA);
        rig.put_ccws(&orb(), u64::from(PROGRAM), &[ccw]);
        rig.put_idaws(u64::from(HOLE) - 8, &[u64::from(DATA)]);
    };
    let end = (ENDED, PGM, 0x800, PROGRAM + 8);
    for (rig, _) in both(&orb(), moving(0x1800), lay_out, end) {
        assert_eq!(rig.peek(u64::from(DATA), 0x1000), given(0, 0x1000));
    }
}

/// Format-1 IDAW with bit 0, first and second.
#[test]
fn a_format_1_idaw_with_bit_0_is_a_program_check() {
    for (idaws, residual) in
        [([DATA | 0x8000_0000, DATA], 0x900), ([DATA, DATA | 0x8000_0000], 0x100)]
    {
        for format in [OrbFlags::empty(), OrbFlags::FORMAT_1] {
            let orb = Orb::new(PROGRAM).with_flags(format);
            let lay_out = |rig: &mut Rig| {
                rig.put_ccws(&orb, u64::from(PROGRAM), &[Ccw::new(READ, LIST, 0x900).with(IDA)]);
                rig.put_idaws_1(u64::from(LIST), &idaws);
            };
            both(&orb, moving(0x900), lay_out, (ENDED, PGM, residual, PROGRAM + 8));
        }
    }
}

/// A list that begins with the last word below 16 MiB goes on above in format 0.
#[test]
fn only_the_first_word_of_a_list_is_held_against_the_limit() {
    let orb = orb_of(false);
    let lay_out = |rig: &mut Rig| {
        let ccw = Ccw::new(READ, 0xff_fff8, 0x1800).with(IDA);
        rig.put_ccws(&orb, u64::from(PROGRAM), &[ccw]);
        rig.put_idaws(0xff_fff8, &[u64::from(DATA), u64::from(DATA) + 0x4000]);
    };
    let end = (ENDED, CLEAN, 0, PROGRAM + 8);
    for (rig, _) in both(&orb, moving(0x1800), lay_out, end) {
        assert_eq!(rig.peek(u64::from(DATA) + 0x4000, 0x800), given(0x1000, 0x1800));
    }
}

/// Second IDAW not on a block boundary: 2 KiB for format 1 and T, else 4 KiB.
#[test]
fn a_second_idaw_off_its_block_is_a_program_check() {
    let format_1 = OrbFlags::FORMAT_1;
    let four_k = format_1 | OrbFlags::FORMAT_2_IDAWS;
    let next = DATA + 0x2000;
    for (flags, block, second) in [
        (four_k, 0x1000, next + 8),
        (four_k, 0x1000, next + 0x800),
        (four_k | OrbFlags::IDAW_2K, 0x800, next + 0x400),
        (format_1, 0x800, next + 4),
    ] {
        let orb = Orb::new(PROGRAM).with_flags(flags);
        let lay_out = |rig: &mut Rig| {
            rig.put_ccws(&orb, u64::from(PROGRAM), &[Ccw::new(READ, LIST, 0x1100).with(IDA)]);
            if orb.flags().contains(OrbFlags::FORMAT_2_IDAWS) {
                rig.put_idaws(u64::from(LIST), &[u64::from(DATA), u64::from(second)]);
            } else {
                rig.put_idaws_1(u64::from(LIST), &[DATA, second]);
            }
        };
        let end = (ENDED, PGM, 0x1100 - block as u16, PROGRAM + 8);
        for (rig, _) in both(&orb, moving(0x1100), lay_out, end) {
            assert_eq!(rig.peek(u64::from(DATA), block), given(0, block));
            assert_eq!(rig.peek(u64::from(next), 0x100), [0; 0x100]);
        }
    }
}

/// Second IDAW on a 2 KiB boundary: right for 2 KiB blocks.
#[test]
fn a_second_idaw_on_2k_is_right_for_2k_blocks() {
    for flags in [OrbFlags::FORMAT_2_IDAWS | OrbFlags::IDAW_2K, OrbFlags::empty()] {
        let orb = Orb::new(PROGRAM).with_flags(flags | OrbFlags::FORMAT_1);
        let lay_out = |rig: &mut Rig| {
            rig.put_ccws(&orb, u64::from(PROGRAM), &[Ccw::new(READ, LIST, 0xc00).with(IDA)]);
            if flags.is_empty() {
                rig.put_idaws_1(u64::from(LIST), &[DATA + 0x400, DATA + 0x1800]);
            } else {
                let idaws = [u64::from(DATA) + 0x400, u64::from(DATA) + 0x1800];
                rig.put_idaws(u64::from(LIST), &idaws);
            }
        };
        let end = (ENDED, CLEAN, 0, PROGRAM + 8);
        for (rig, _) in both(&orb, moving(0xc00), lay_out, end) {
            assert_eq!(rig.peek(u64::from(DATA) + 0x400, 0x400), given(0, 0x400));
            assert_eq!(rig.peek(u64::from(DATA) + 0x1800, 0x800), given(0x400, 0xc00));
        }
    }
}

/// Read backward: later IDAWs designate the last byte of a block, data goes down.
#[test]
fn read_backward_goes_down_through_its_idaws() {
    let lay_out = |rig: &mut Rig| {
        let ccw = Ccw::new(READ_BACKWARD, LIST, 0x20).with(IDA);
        rig.put_ccws(&orb(), u64::from(PROGRAM), &[ccw]);
        rig.put_idaws(u64::from(LIST), &[u64::from(DATA) + 0xf, u64::from(DATA) + 0x2fff]);
    };
    let mut reversed = given(0, 0x20);
    reversed.reverse();
    for (rig, _) in both(&orb(), moving(0x20), lay_out, (ENDED, CLEAN, 0, PROGRAM + 8)) {
        assert_eq!(rig.peek(u64::from(DATA), 0x10), reversed[0x10..]);
        assert_eq!(rig.peek(u64::from(DATA) + 0x2ff0, 0x10), reversed[..0x10]);
        assert_eq!(rig.peek(u64::from(DATA) + 0x10, 0x10), [0; 0x10]);
    }
}

/// Read backward with a second IDAW that is not the last byte of a block.
#[test]
fn a_second_idaw_at_the_start_of_its_block_is_a_program_check_for_read_backward() {
    let lay_out = |rig: &mut Rig| {
        let ccw = Ccw::new(READ_BACKWARD, LIST, 0x20).with(IDA);
        rig.put_ccws(&orb(), u64::from(PROGRAM), &[ccw]);
        rig.put_idaws(u64::from(LIST), &[u64::from(DATA) + 0xf, u64::from(DATA) + 0x2000]);
    };
    both(&orb(), moving(0x20), lay_out, (ENDED, PGM, 0x10, PROGRAM + 8));
}

/// Read backward with a direct address: the address is that of the highest byte.
#[test]
fn read_backward_goes_down_from_a_direct_address() {
    for format_1 in [false, true] {
        let program = [Ccw::new(READ_BACKWARD, DATA + 0x100f, 0x20)];
        let mut reversed = given(0, 0x20);
        reversed.reverse();
        let runs = ccws(&orb_of(format_1), moving(0x20), &program, (ENDED, CLEAN, 0, PROGRAM + 8));
        for (rig, _) in &runs {
            assert_eq!(rig.peek(u64::from(DATA) + 0xff0, 0x20), reversed);
        }
    }
}

/// IDAW fetch-protected: the first, and one on the next page of the list; in all formats.
#[test]
fn a_fetch_protected_idaw_is_a_protection_check() {
    for (flags, block) in [
        (OrbFlags::FORMAT_2_IDAWS, 0x1000u16),
        (OrbFlags::FORMAT_2_IDAWS | OrbFlags::IDAW_2K, 0x800),
        (OrbFlags::empty(), 0x800),
    ] {
        let orb = Orb::new(PROGRAM).with_flags(flags | OrbFlags::FORMAT_1).with_key(KEY);
        let size = orb.idaw_format().size();
        let count = block + 0x100;
        for (list, residual) in [(0x2000, count), (0x2000 - size, 0x100)] {
            for (code, idaws) in [
                (READ, [DATA, DATA + 0x2000]),
                (WRITE, [DATA, DATA + 0x2000]),
                (READ_BACKWARD, [DATA + 0xfff, DATA + 0x2fff]),
            ] {
                let lay_out = |rig: &mut Rig| {
                    let ccw = Ccw::new(code, list, count).with(IDA);
                    rig.put_ccws(&orb, u64::from(PROGRAM), &[ccw]);
                    if size == 4 {
                        rig.put_idaws_1(u64::from(list), &idaws);
                    } else {
                        rig.put_idaws(u64::from(list), &idaws.map(u64::from));
                    }
                    protect(rig, 0x2000, true);
                };
                let device = moving(usize::from(count));
                both(&orb, device, lay_out, (ENDED, PROT, residual, FIRST));
            }
        }
    }
}

/// Data page key mismatch: a store needs the key, fetch protection or not.
#[test]
fn storing_under_another_key_is_a_protection_check() {
    let orb = orb().with_key(KEY);
    for (code, fetch_protected) in [(READ, true), (READ, false), (SENSE, false)] {
        let lay_out = |rig: &mut Rig| {
            let ccw = Ccw::new(code, DATA + 0xff0, 0x20);
            rig.put_ccws(&orb, u64::from(PROGRAM), &[ccw]);
            protect(rig, DATA + 0x1000, fetch_protected);
        };
        let end = (ENDED, PROT, 0x10, PROGRAM + 8);
        for (rig, _) in both(&orb, moving(0x20), lay_out, end) {
            assert_eq!(rig.peek(u64::from(DATA) + 0xff0, 0x10), given(0, 0x10));
            assert_eq!(rig.peek(u64::from(DATA) + 0x1000, 0x10), [0; 0x10]);
        }
    }
}

/// Data page key mismatch: a fetch needs the key only where storage is fetch-protected.
#[test]
fn fetching_under_another_key_is_a_protection_check_if_storage_says_so() {
    let orb = orb().with_key(KEY);
    for (fetch_protected, end) in
        [(true, (ENDED, PROT, 0x10, PROGRAM + 8)), (false, (ENDED, CLEAN, 0, PROGRAM + 8))]
    {
        let lay_out = |rig: &mut Rig| {
            rig.put_ccws(&orb, u64::from(PROGRAM), &[Ccw::new(WRITE, DATA + 0xff0, 0x20)]);
            rig.put(u64::from(DATA) + 0xff0, &written(0x20));
            protect(rig, DATA + 0x1000, fetch_protected);
        };
        let moved = 0x20 - usize::from(end.2);
        for (rig, _) in both(&orb, moving(0x20), lay_out, end) {
            assert_eq!(rig.device.log[0].taken, written(moved));
        }
    }
}

/// Data page key mismatch through IDAWs, and key 0 where no page matters.
#[test]
fn key_0_stores_anywhere() {
    for (key, end) in
        [(KEY, (ENDED, PROT, 0x800, PROGRAM + 8)), (0, (ENDED, CLEAN, 0, PROGRAM + 8))]
    {
        let orb = orb().with_key(key);
        let lay_out = |rig: &mut Rig| {
            rig.put_ccws(&orb, u64::from(PROGRAM), &[Ccw::new(READ, LIST, 0x1800).with(IDA)]);
            rig.put_idaws(u64::from(LIST), &[u64::from(DATA), u64::from(DATA) + 0x4000]);
            protect(rig, DATA + 0x4000, true);
        };
        both(&orb, moving(0x1800), lay_out, end);
    }
}

// Program check: data addresses.

/// Data outside storage: what is in storage has moved.
#[test]
fn data_that_runs_out_of_storage_is_a_program_check_there() {
    for format_1 in [false, true] {
        for code in [READ, SENSE] {
            let program = [Ccw::new(code, HOLE - 0x1010, 0x2000).with(SLI)];
            let orb = orb_of(format_1);
            let end = (ENDED, PGM, 0xff0, PROGRAM + 8);
            for (rig, _) in ccws(&orb, moving(0x2000), &program, end) {
                assert_eq!(rig.peek(u64::from(HOLE) - 0x1010, 0x1010), given(0, 0x1010));
            }
        }
        let program = [Ccw::new(WRITE, HOLE - 0x10, 0x20).with(SLI)];
        let end = (ENDED, PGM, 0x10, PROGRAM + 8);
        for (rig, _) in ccws(&orb_of(format_1), moving(0x20), &program, end) {
            assert_eq!(rig.device.log[0].moved, 0x10);
        }
    }
}

/// Data beyond 24 bits (format 0) and 31 bits (format 1), though storage goes on.
#[test]
fn data_past_the_address_limit_is_a_program_check_there() {
    for (format_1, limit) in [(false, 0x100_0000u32), (true, 0x8000_0000)] {
        let program = [Ccw::new(READ, limit - 0x10, 0x20)];
        let orb = orb_of(format_1);
        let end = (ENDED, PGM, 0x10, PROGRAM + 8);
        for (rig, _) in ccws(&orb, moving(0x20), &program, end) {
            assert_eq!(rig.peek(u64::from(limit) - 0x10, 0x10), given(0, 0x10));
            assert_eq!(rig.peek(u64::from(limit), 0x10), [0; 0x10]);
        }
    }
}

/// Data beyond 31 bits from the first byte, and through IDAWs where it is allowed.
#[test]
fn only_idaws_reach_beyond_2_gib() {
    let program = [Ccw::new(READ, 0x8000_0000, 0x10)];
    ccws(&orb(), moving(0x10), &program, (ENDED, PGM, 0x10, PROGRAM + 8));
    for format_1 in [false, true] {
        let orb = orb_of(format_1);
        let lay_out = |rig: &mut Rig| {
            rig.put_ccws(&orb, u64::from(PROGRAM), &[Ccw::new(READ, LIST, 0x10).with(IDA)]);
            rig.put_idaws(u64::from(LIST), &[0x1_0000_0000]);
        };
        for (rig, _) in both(&orb, moving(0x10), lay_out, (ENDED, CLEAN, 0, PROGRAM + 8)) {
            assert_eq!(rig.peek(0x1_0000_0000, 0x10), given(0, 0x10));
        }
    }
}

/// Data addresses are looked at when data moves there, not before.
#[test]
fn data_that_does_not_move_is_not_looked_at() {
    let program = [Ccw::new(command::NOP, HOLE, 0x2000).with(SLI)];
    ccws(&orb(), moving(0), &program, (ENDED, CLEAN, 0x2000, PROGRAM + 8));
    let program = [Ccw::new(READ, HOLE - 0x10, 0x2000).with(SLI)];
    ccws(&orb(), moving(0x10), &program, (ENDED, CLEAN, 0x1ff0, PROGRAM + 8));
    let program = [Ccw::new(READ, HOLE, 0x20).with(SKIP)];
    ccws(&orb(), moving(0x20), &program, (ENDED, CLEAN, 0, PROGRAM + 8));
    let program = [Ccw::new(READ, 0xffff_fffe, 0x20).with(SKIP | IDA)];
    ccws(&orb(), moving(0x20), &program, (ENDED, CLEAN, 0, PROGRAM + 8));
}

// Program check: MIDAWs and suspension where they may not be.

/// MIDA without ORB.D.
#[test]
fn midaws_without_the_orbs_leave_are_a_program_check() {
    let program = [Ccw::new(READ, LIST, 0x10).with(MIDA)];
    let runs = ccws(&orb(), moving(0x10), &program, (NOTHING, PGM, 0x10, PROGRAM + 8));
    assert_codes(&runs, &[]);
}

/// MIDA with IDA or SKIP.
#[test]
fn midaws_with_ida_or_skip_are_a_program_check() {
    for flag in [IDA, SKIP] {
        let orb = with(orb(), OrbFlags::MIDAW);
        let lay_out = |rig: &mut Rig| {
            let ccw = Ccw::new(READ, LIST, 0x10).with(MIDA | flag);
            rig.put_ccws(&orb, u64::from(PROGRAM), &[ccw]);
            rig.put(u64::from(LIST), &midaw(LAST, 0x10, u64::from(DATA)));
        };
        assert_codes(&both(&orb, moving(0x10), lay_out, (NOTHING, PGM, 0x10, PROGRAM + 8)), &[]);
    }
}

/// S without ORB.S.
#[test]
fn suspension_without_the_orbs_leave_is_a_program_check() {
    for format_1 in [false, true] {
        let program = [nop().with(CC), Ccw::new(READ, DATA, 0x10).with(SUSPEND)];
        let orb = orb_of(format_1);
        let runs = ccws(&orb, moving(0x10), &program, (NOTHING, PGM, 0x10, PROGRAM + 16));
        assert_codes(&runs, &[command::NOP]);
    }
}

/// S in a data-chained CCW.
#[test]
fn suspension_in_a_data_chain_is_a_program_check() {
    let orb = with(orb(), OrbFlags::SUSPEND_CONTROL);
    let program =
        [Ccw::new(READ, DATA, 8).with(CD), Ccw::new(READ, DATA + 0x100, 0x18).with(SUSPEND)];
    for (rig, _) in ccws(&orb, moving(0x20), &program, (ENDED, PGM, 0x18, PROGRAM + 16)) {
        assert_eq!(rig.peek(u64::from(DATA), 8), given(0, 8));
        assert_eq!(rig.peek(u64::from(DATA) + 0x100, 0x18), [0; 0x18]);
    }
}

/// S with CD.
#[test]
fn suspension_with_data_chaining_is_a_program_check() {
    let orb = with(orb(), OrbFlags::SUSPEND_CONTROL);
    let program = [Ccw::new(READ, DATA, 8).with(CD | SUSPEND), Ccw::new(READ, DATA, 8)];
    let runs = ccws(&orb, moving(0x10), &program, (NOTHING, PGM, 8, PROGRAM + 8));
    assert_codes(&runs, &[]);
}

// The CCW address.

/// CPA reported: the failing CCW + 8, wherever it stands in the chain.
#[test]
fn the_failing_ccw_is_named_by_the_address_behind_it() {
    for bad in 0..5usize {
        let mut program = [Ccw::new(READ, DATA, 8).with(CC); 5];
        program[bad].command = 0;
        let end = (NOTHING, PGM, 8, PROGRAM + 8 + bad as u32 * 8);
        assert_codes(&ccws(&orb(), moving(8), &program, end), &[READ; 5][..bad]);
    }
}

/// CPA one past the end of a segment, where another segment begins.
#[test]
fn one_past_the_end_of_a_segment_is_not_the_next_segment() {
    let script = |code, _| match code {
        READ => Answer::moves(8),
        _ => Answer::moves(8).with_status(DeviceStatus::UNIT_EXCEPTION),
    };
    // The first segment ends with a TIC; the second lies in front of it and ends the program.
    let lay_out = |rig: &mut Rig| {
        let first = [Ccw::new(READ, DATA, 8).with(CC), tic(PROGRAM - 16)];
        rig.put_ccws(&orb(), u64::from(PROGRAM), &first);
        let second = [Ccw::new(READ, DATA, 8).with(CC), Ccw::new(WRITE, DATA, 8).with(CC)];
        rig.put_ccws(&orb(), u64::from(PROGRAM) - 16, &second);
    };
    let end = (ENDED | DeviceStatus::UNIT_EXCEPTION, CLEAN, 0, PROGRAM);
    assert_codes(&both(&orb(), script, lay_out, end), &[READ, READ, WRITE]);
}

/// CPA one past the end: a device that ends the program at the last CCW before a TIC.
#[test]
fn a_chain_that_breaks_before_its_tic_names_the_tic() {
    let script = |_, number| match number {
        0 => Answer::moves(8),
        _ => Answer::moves(8).with_status(DeviceStatus::UNIT_CHECK),
    };
    let program = [Ccw::new(READ, DATA, 8).with(CC), Ccw::new(WRITE, DATA, 8).with(CC), tic(LIST)];
    let end = (ENDED | DeviceStatus::UNIT_CHECK, CLEAN, 0, PROGRAM + 16);
    for (_, outcome) in ccws(&orb(), script, &program, end) {
        assert_eq!(outcome.end.sense()[..2], [0x80, WRITE]);
        assert_eq!(outcome.end.sense().len(), 24);
    }
}

// Incorrect length. One test for each cell of the table: CD, CC and SLI against a device that ends
// early, wants more, or fits. Both formats, both directions.

/// Runs one cell: a CCW of 16 bytes with `flags`, then one that nothing is wrong with. Devices
/// move `bytes` for the first command.
fn cell(flags: CcwFlags, bytes: usize, expected: End, commands: usize) {
    for format_1 in [false, true] {
        for code in [READ, WRITE] {
            let program = [Ccw::new(code, DATA, 16).with(flags), Ccw::new(code, DATA + 0x100, 16)];
            let script = move |_, number| Answer::moves(if number == 0 { bytes } else { 16 });
            let runs = ccws(&orb_of(format_1), script, &program, expected);
            for (rig, _) in &runs {
                assert_eq!(rig.device.codes(), vec![code; commands]);
                let room = if flags.contains(CD) { 32 } else { 16 };
                let moved = bytes.min(room);
                assert_eq!(rig.device.log[0].moved, moved);
                if code == READ {
                    let first = moved.min(16);
                    assert_eq!(rig.peek(u64::from(DATA), first), given(0, first));
                    assert_eq!(rig.peek(u64::from(DATA) + first as u64, 0x80), [0; 0x80]);
                }
            }
        }
    }
}

const FIRST: u32 = PROGRAM + 8;
const SECOND: u32 = PROGRAM + 16;

/// CD 0, CC 0, SLI 0: device ended early.
#[test]
fn early_without_flags_ends_with_incorrect_length() {
    cell(CcwFlags::empty(), 10, (ENDED, IL, 6, FIRST), 1);
    cell(CcwFlags::empty(), 0, (ENDED, IL, 16, FIRST), 1);
}

/// CD 0, CC 0, SLI 0: device wants more.
#[test]
fn more_without_flags_ends_with_incorrect_length() {
    cell(CcwFlags::empty(), 17, (ENDED, IL, 0, FIRST), 1);
}

/// CD 0, CC 0, SLI 0: exact.
#[test]
fn exact_without_flags_ends_clean() {
    cell(CcwFlags::empty(), 16, (ENDED, CLEAN, 0, FIRST), 1);
}

/// CD 0, CC 0, SLI 1: device ended early.
#[test]
fn early_with_sli_ends_clean() {
    cell(SLI, 10, (ENDED, CLEAN, 6, FIRST), 1);
}

/// CD 0, CC 0, SLI 1: device wants more.
#[test]
fn more_with_sli_ends_clean() {
    cell(SLI, 17, (ENDED, CLEAN, 0, FIRST), 1);
}

/// CD 0, CC 0, SLI 1: exact.
#[test]
fn exact_with_sli_ends_clean() {
    cell(SLI, 16, (ENDED, CLEAN, 0, FIRST), 1);
}

/// CD 0, CC 1, SLI 0: device ended early; chaining is suppressed.
#[test]
fn early_with_cc_ends_the_chain_with_incorrect_length() {
    cell(CC, 10, (ENDED, IL, 6, FIRST), 1);
}

/// CD 0, CC 1, SLI 0: device wants more; chaining is suppressed.
#[test]
fn more_with_cc_ends_the_chain_with_incorrect_length() {
    cell(CC, 17, (ENDED, IL, 0, FIRST), 1);
}

/// CD 0, CC 1, SLI 0: exact.
#[test]
fn exact_with_cc_chains() {
    cell(CC, 16, (ENDED, CLEAN, 0, SECOND), 2);
}

/// CD 0, CC 1, SLI 1: device ended early.
#[test]
fn early_with_cc_and_sli_chains() {
    cell(CC | SLI, 10, (ENDED, CLEAN, 0, SECOND), 2);
}

/// CD 0, CC 1, SLI 1: device wants more.
#[test]
fn more_with_cc_and_sli_chains() {
    cell(CC | SLI, 17, (ENDED, CLEAN, 0, SECOND), 2);
}

/// CD 0, CC 1, SLI 1: exact.
#[test]
fn exact_with_cc_and_sli_chains() {
    cell(CC | SLI, 16, (ENDED, CLEAN, 0, SECOND), 2);
}

/// CD 1: device ended early; SLI and CC are ignored.
#[test]
fn early_with_cd_ends_with_incorrect_length() {
    for ignored in [CcwFlags::empty(), SLI, CC, CC | SLI] {
        cell(CD | ignored, 10, (ENDED, IL, 6, FIRST), 1);
    }
}

/// CD 1: device wants more; the area goes on in the next CCW.
#[test]
fn more_with_cd_chains_data() {
    for ignored in [CcwFlags::empty(), SLI, CC, CC | SLI] {
        cell(CD | ignored, 32, (ENDED, CLEAN, 0, SECOND), 1);
    }
}

/// CD 1: device wants more than the second CCW has, or ends in it.
#[test]
fn the_last_ccw_of_a_data_chain_decides() {
    cell(CD, 33, (ENDED, IL, 0, SECOND), 1);
    cell(CD, 25, (ENDED, IL, 7, SECOND), 1);
}

/// CD 1: device ends exactly here; the chain ends.
#[test]
fn exact_with_cd_ends_clean() {
    for ignored in [CcwFlags::empty(), SLI, CC, CC | SLI] {
        cell(CD | ignored, 16, (ENDED, CLEAN, 0, FIRST), 1);
    }
}

/// Incorrect length is not reported with another error.
#[test]
fn a_program_check_hides_incorrect_length() {
    let program = [Ccw::new(READ, HOLE - 0x10, 0x20)];
    ccws(&orb(), moving(0x15), &program, (ENDED, PGM, 0x10, FIRST));
}

/// The status that the device gave with incorrect length is kept.
#[test]
fn unit_check_and_incorrect_length_come_together() {
    let script = |_, _| Answer::moves(4).with_status(DeviceStatus::UNIT_CHECK);
    let program = [Ccw::new(READ, DATA, 16).with(CC)];
    ccws(&orb(), script, &program, (ENDED | DeviceStatus::UNIT_CHECK, IL, 12, FIRST));
}

// Immediate operations.

/// Hercules CCW-ILS: NOP with count 0x500 at 0x500. Format 0: clean; format 1: incorrect length;
/// format 1 with ORB.L: clean.
#[test]
fn hercules_ccw_ils() {
    let program = [Ccw::new(command::NOP, DATA, 0x500)];
    for (orb, status) in [
        (orb_of(false), CLEAN),
        (orb_of(true), IL),
        (with(orb_of(true), OrbFlags::SUPPRESS_LENGTH), CLEAN),
    ] {
        ccws(&orb.with_cpa(0x500), moving(0), &program, (ENDED, status, 0x500, 0x508));
    }
}

/// Immediate with SLI or count 0: never incorrect length.
#[test]
fn an_immediate_operation_with_sli_or_without_count_is_clean() {
    for (flags, count) in [(SLI, 16), (CcwFlags::empty(), 0)] {
        let program = [Ccw::new(command::NOP, DATA, count).with(flags)];
        ccws(&orb(), moving(0), &program, (ENDED, CLEAN, count, FIRST));
    }
    let program = [Ccw::new(command::NOP, DATA, 16).with(SLI)];
    ccws(&orb_of(false), moving(0), &program, (ENDED, CLEAN, 16, FIRST));
}

/// Immediate that command-chains: no incorrect length, the chain goes on (Hercules).
#[test]
fn an_immediate_operation_that_chains_is_not_checked() {
    for format_1 in [false, true] {
        let program = [nop().with(CC), Ccw::new(READ, DATA, 16)];
        let runs = ccws(&orb_of(format_1), moving(16), &program, (ENDED, CLEAN, 0, SECOND));
        assert_codes(&runs, &[command::NOP, READ]);
    }
}

/// ORB.L concerns immediate operations only.
#[test]
fn length_suppression_of_the_orb_is_for_immediate_operations_only() {
    let orb = with(orb(), OrbFlags::SUPPRESS_LENGTH);
    let program = [Ccw::new(READ, DATA, 16)];
    ccws(&orb, moving(10), &program, (ENDED, IL, 6, FIRST));
}

// Shapes of programs.

/// TIC loop-back search: the device's status modifier ends the loop.
#[test]
fn a_search_loop_goes_round_until_status_modifier() {
    let script = |code, number| match code {
        SEARCH if number == 2 => Answer::moves(4).with_status(DeviceStatus::STATUS_MODIFIER),
        SEARCH => Answer::moves(4),
        _ => Answer::moves(8),
    };
    let program = [Ccw::new(SEARCH, DATA, 4).with(CC), tic(PROGRAM), Ccw::new(READ, DATA, 8)];
    for format_1 in [false, true] {
        let runs = ccws(&orb_of(format_1), script, &program, (ENDED, CLEAN, 0, PROGRAM + 24));
        assert_codes(&runs, &[SEARCH, SEARCH, SEARCH, READ]);
    }
}

/// Status modifier behind a TIC out of the segment, and at the end of what would be the chain.
#[test]
fn status_modifier_skips_a_tic_that_leads_elsewhere() {
    let script = |code, number| match (code, number) {
        (SEARCH, 0) => Answer::moves(4).with_status(DeviceStatus::STATUS_MODIFIER),
        _ => Answer::moves(4),
    };
    let program = [Ccw::new(SEARCH, DATA, 4).with(CC), tic(LIST), Ccw::new(READ, DATA, 4)];
    let runs = ccws(&orb(), script, &program, (ENDED, CLEAN, 0, PROGRAM + 24));
    assert_codes(&runs, &[SEARCH, READ]);
    // The CCW that is skipped would have ended the chain.
    let program =
        [Ccw::new(SEARCH, DATA, 4).with(CC), Ccw::new(WRITE, DATA, 4), Ccw::new(READ, DATA, 4)];
    let runs = ccws(&orb(), script, &program, (ENDED, CLEAN, 0, PROGRAM + 24));
    assert_codes(&runs, &[SEARCH, READ]);
}

/// Status modifier at the last CCW: it is part of the status, and no alert is missing.
#[test]
fn status_modifier_without_chaining_is_presented() {
    let script = |_, _| Answer::moves(4).with_status(DeviceStatus::STATUS_MODIFIER);
    let program = [Ccw::new(SEARCH, DATA, 4)];
    let end = (ENDED | DeviceStatus::STATUS_MODIFIER, CLEAN, 0, FIRST);
    ccws(&orb(), script, &program, end);
}

/// TIC to other segments: behind, in front, in another region, and in the middle of one.
#[test]
fn transfers_lead_to_other_segments() {
    let orb = orb();
    let lay_out = |rig: &mut Rig| {
        let read = |index: u32| Ccw::new(READ, DATA + index * 0x100, 8).with(CC);
        rig.put_ccws(&orb, u64::from(PROGRAM), &[read(0), tic(0x3000)]);
        rig.put_ccws(&orb, 0x3000, &[read(1), tic(0x800)]);
        rig.put_ccws(&orb, 0x800, &[read(2), tic(0x6_0ff8)]);
        rig.put_ccws(&orb, 0x6_0ff8, &[read(3), tic(0x7000)]);
        rig.put_ccws(&orb, 0x6ff8, &[read(9), read(4), Ccw::new(READ, DATA + 0x500, 8)]);
    };
    for (rig, _) in both(&orb, moving(8), lay_out, (ENDED, CLEAN, 0, 0x7010)) {
        assert_eq!(rig.device.log.len(), 6);
        for number in 0..6usize {
            let expected: Vec<u8> = (0..8).map(|at| pattern(number, at)).collect();
            assert_eq!(rig.peek(u64::from(DATA) + number as u64 * 0x100, 8), expected);
        }
    }
}

/// TIC within a data chain: the data chain goes on at the target.
#[test]
fn a_data_chain_goes_through_a_tic() {
    for format_1 in [false, true] {
        let orb = orb_of(format_1);
        let lay_out = |rig: &mut Rig| {
            let first = [Ccw::new(READ, DATA, 8).with(CD), tic(LIST)];
            rig.put_ccws(&orb, u64::from(PROGRAM), &first);
            rig.put_ccws(&orb, u64::from(LIST), &[Ccw::new(0, DATA + 0x100, 8)]);
        };
        let end = (ENDED, CLEAN, 0, LIST + 8);
        for (rig, _) in both(&orb, moving(16), lay_out, end) {
            assert_eq!(rig.peek(u64::from(DATA), 8), given(0, 8));
            assert_eq!(rig.peek(u64::from(DATA) + 0x100, 8), given(8, 16));
        }
    }
}

/// 256, 257 and more CCWs in a row: the kernel's limit for a segment is not the guest's.
#[test]
fn a_chain_may_have_more_than_256_ccws() {
    for len in [255u32, 256, 257, 512, 1000] {
        for format_1 in [false, true] {
            let orb = orb_of(format_1).with_cpa(0x1_0000);
            let mut program = vec![Ccw::new(READ, DATA, 8).with(CC); len as usize];
            program[len as usize - 1].flags = CcwFlags::empty();
            let end = (ENDED, CLEAN, 0, 0x1_0000 + len * 8);
            for (rig, _) in ccws(&orb, moving(8), &program, end) {
                assert_eq!(rig.device.log.len(), len as usize);
            }
        }
    }
}

/// 16, 17 and more segments: the kernel's limit for a program is not the guest's.
#[test]
fn a_program_may_have_more_than_16_segments() {
    for segments in [16u32, 17, 40, 60] {
        let at = |index: u32| 0x1_0000 + (index * 7 % segments) * 0x40;
        // A step of 7 through a number it does not divide: forward and backward in turn.
        let lay_out = |rig: &mut Rig| {
            for index in 0..segments {
                let read = Ccw::new(READ, DATA, 8);
                let leads_on = [read.with(CC), tic(at(index + 1))];
                let last = index + 1 == segments;
                let ccws = if last { &[read][..] } else { &leads_on };
                rig.put_ccws(&orb(), u64::from(at(index)), ccws);
            }
        };
        let orb = orb().with_cpa(at(0));
        let end = (ENDED, CLEAN, 0, at(segments - 1) + 8);
        for (rig, _) in both(&orb, moving(8), lay_out, end) {
            assert_eq!(rig.device.log.len(), segments as usize);
        }
    }
}

/// Chain in the last 2 KiB of a mapping, down to its last CCW.
#[test]
fn a_chain_may_end_with_its_region() {
    for len in [1u32, 2, 255] {
        for format_1 in [false, true] {
            let orb = orb_of(format_1).with_cpa(HOLE - len * 8);
            let mut program = vec![Ccw::new(READ, DATA, 8).with(CC); len as usize];
            program[len as usize - 1].flags = CcwFlags::empty();
            ccws(&orb, moving(8), &program, (ENDED, CLEAN, 0, HOLE));
        }
    }
}

/// Chain over the border of two adjacent regions.
#[test]
fn a_chain_may_cross_adjacent_regions() {
    let orb = orb().with_cpa(0x4_0000 - 8);
    let read = Ccw::new(READ, DATA, 8);
    ccws(&orb, moving(8), &[read.with(CC), read], (ENDED, CLEAN, 0, 0x4_0008));
}

/// IDAW formats, the first on its block and off it, reads and writes.
#[test]
fn all_idaw_formats_with_aligned_and_unaligned_first() {
    for (flags, block) in [
        (OrbFlags::empty(), 0x800u32),
        (OrbFlags::FORMAT_2_IDAWS | OrbFlags::IDAW_2K, 0x800),
        (OrbFlags::FORMAT_2_IDAWS, 0x1000),
    ] {
        for format in [OrbFlags::empty(), OrbFlags::FORMAT_1] {
            for offset in [0, 1, block - 1] {
                for code in [READ, WRITE] {
                    idaws_of_one_format(flags | format, block, offset, code);
                }
            }
        }
    }
}

/// A transfer of two blocks and a half through IDAWs in descending order of address.
fn idaws_of_one_format(flags: OrbFlags, block: u32, offset: u32, code: u8) {
    let orb = Orb::new(PROGRAM).with_flags(flags);
    let first = block - offset;
    let len = first + block + block / 2;
    let pieces = [
        (DATA + 2 * block + offset, 0, first),
        (DATA + block, first, block),
        (DATA, first + block, block / 2),
    ];
    let data = written(len as usize);
    let lay_out = |rig: &mut Rig| {
        rig.put_ccws(&orb, u64::from(PROGRAM), &[Ccw::new(code, LIST, len as u16).with(IDA)]);
        if flags.contains(OrbFlags::FORMAT_2_IDAWS) {
            rig.put_idaws(u64::from(LIST), &pieces.map(|(at, ..)| u64::from(at)));
        } else {
            rig.put_idaws_1(u64::from(LIST), &pieces.map(|(at, ..)| at));
        }
        if code == WRITE {
            for (at, from, len) in pieces {
                rig.put(u64::from(at), &data[from as usize..(from + len) as usize]);
            }
        }
    };
    for (rig, _) in both(&orb, moving(len as usize), lay_out, (ENDED, CLEAN, 0, FIRST)) {
        if code == WRITE {
            assert_eq!(rig.device.log[0].taken, data);
        } else {
            for (at, from, len) in pieces {
                let expected = given(from as usize, (from + len) as usize);
                assert_eq!(rig.peek(u64::from(at), len as usize), expected);
            }
            // The byte in front of the first block and the rest of the last are as they were.
            assert_eq!(
                rig.peek(u64::from(DATA + block / 2), block as usize / 2),
                vec![0; block as usize / 2]
            );
        }
    }
}

/// IDAW in the last bytes of storage, of each format.
#[test]
fn an_idaw_may_be_the_last_word_of_storage() {
    for (flags, list) in [
        (OrbFlags::empty(), HOLE - 4),
        (OrbFlags::FORMAT_2_IDAWS, HOLE - 8),
        (OrbFlags::FORMAT_2_IDAWS | OrbFlags::IDAW_2K, HOLE - 8),
    ] {
        let orb = Orb::new(PROGRAM).with_flags(flags | OrbFlags::FORMAT_1);
        let lay_out = |rig: &mut Rig| {
            rig.put_ccws(&orb, u64::from(PROGRAM), &[Ccw::new(READ, list, 0x10).with(IDA)]);
            if flags.is_empty() {
                rig.put_idaws_1(u64::from(list), &[DATA]);
            } else {
                rig.put_idaws(u64::from(list), &[u64::from(DATA)]);
            }
        };
        for (rig, _) in both(&orb, moving(0x10), lay_out, (ENDED, CLEAN, 0, FIRST)) {
            assert_eq!(rig.peek(u64::from(DATA), 0x10), given(0, 0x10));
        }
    }
}

/// Zero-count IDA: the list is not looked at.
#[test]
fn a_list_is_not_looked_at_for_count_zero() {
    for list in [LIST, HOLE, LIST + 2, 0xffff_ffff] {
        let program = [Ccw::new(READ, list, 0).with(IDA)];
        ccws(&orb(), moving(0), &program, (ENDED, CLEAN, 0, FIRST));
        ccws(&orb(), moving(1), &program, (ENDED, IL, 0, FIRST));
    }
}

/// SKIP on a command that stores: counted, not stored; in a data chain for its own CCW only.
#[test]
fn skip_keeps_data_out_of_storage() {
    for code in [READ, SENSE] {
        let program = [
            Ccw::new(code, DATA, 8).with(CD),
            Ccw::new(code, DATA + 8, 8).with(CD | SKIP),
            Ccw::new(code, DATA + 16, 8),
        ];
        let runs = ccws(&orb(), moving(24), &program, (ENDED, CLEAN, 0, PROGRAM + 24));
        for (rig, _) in &runs {
            assert_eq!(rig.peek(u64::from(DATA), 8), given(0, 8));
            assert_eq!(rig.peek(u64::from(DATA) + 8, 8), [0; 8]);
            assert_eq!(rig.peek(u64::from(DATA) + 16, 8), given(16, 24));
        }
    }
}

/// SKIP on write: ignored, also where the data-chained CCW's own code is a read's.
#[test]
fn skip_is_ignored_for_commands_that_do_not_store() {
    let lay_out = |rig: &mut Rig| {
        let program =
            [Ccw::new(WRITE, DATA, 8).with(CD | SKIP), Ccw::new(READ, DATA + 8, 8).with(SKIP)];
        rig.put_ccws(&orb(), u64::from(PROGRAM), &program);
        rig.put(u64::from(DATA), &written(16));
    };
    for (rig, _) in both(&orb(), moving(16), lay_out, (ENDED, CLEAN, 0, SECOND)) {
        assert_eq!(rig.device.log[0].taken, written(16));
    }
}

// Program-controlled interruption.

/// Intermediate status as a CCW with the PCI flag gives it when it takes control.
fn assert_pci(outcome: &Outcome, cpas: &[u32]) {
    let active = ScswFlags::SUBCHANNEL_ACTIVE | ScswFlags::DEVICE_ACTIVE;
    let pending = ScswFlags::INTERMEDIATE | ScswFlags::STATUS_PENDING;
    for irb in &outcome.intermediate {
        let scsw = irb.scsw;
        assert_eq!(scsw.subchannel_status(), SubchannelStatus::PROGRAM_CONTROLLED);
        assert_eq!((scsw.device_status(), scsw.count()), (NOTHING, 0));
        let control = ScswFlags::START_FUNCTION
            | ScswFlags::from_bits_truncate(0x0fff)
            | ScswFlags::HALT_FUNCTION
            | ScswFlags::CLEAR_FUNCTION;
        assert_eq!(scsw.flags() & control, ScswFlags::START_FUNCTION | active | pending);
    }
    let seen: Vec<u32> = outcome.intermediate.iter().map(|irb| irb.scsw.cpa()).collect();
    assert_eq!(seen, cpas);
}

/// PCI mid-chain: one intermediate status, and none of it in the ending status.
#[test]
fn pci_is_reported_when_its_ccw_takes_control() {
    for format_1 in [false, true] {
        let read = Ccw::new(READ, DATA, 8);
        let program = [read.with(CC), read.with(CC | PCI), read];
        let runs = ccws(&orb_of(format_1), moving(8), &program, (ENDED, CLEAN, 0, PROGRAM + 24));
        for (_, outcome) in &runs {
            assert_pci(outcome, &[PROGRAM + 16]);
        }
    }
}

/// PCI in a data chain, in the first and last CCW, and behind a TIC.
#[test]
fn pci_is_reported_wherever_it_stands() {
    let lay_out = |rig: &mut Rig| {
        let read = Ccw::new(READ, DATA, 8);
        let first = [read.with(CD | PCI), read.with(CD | PCI), read.with(CC), tic(LIST)];
        rig.put_ccws(&orb(), u64::from(PROGRAM), &first);
        rig.put_ccws(&orb(), u64::from(LIST), &[read.with(PCI)]);
    };
    let script = |_, number| Answer::moves(if number == 0 { 24 } else { 8 });
    for (_, outcome) in both(&orb(), script, lay_out, (ENDED, CLEAN, 0, LIST + 8)) {
        assert_pci(&outcome, &[FIRST, SECOND, LIST + 8]);
    }
}

/// PCI is signalled before the command is validated.
#[test]
fn pci_is_reported_for_a_ccw_that_then_fails() {
    for (bad, count) in [
        (Ccw::new(0, DATA, 8), 8),
        (Ccw::new(READ, DATA, 0).with(CD), 0),
        (Ccw::new(READ, DATA, 8).with(CD | SUSPEND), 8),
        (Ccw::new(READ, LIST, 8).with(MIDA), 8),
        (Ccw::new(READ, DATA, 8).with(SUSPEND), 8),
    ] {
        let runs = ccws(&orb(), moving(8), &[bad.with(PCI)], (NOTHING, PGM, count, FIRST));
        for (_, outcome) in &runs {
            assert_pci(outcome, &[FIRST]);
        }
    }
}

// Suspension and resumption.

/// Activity and status of a suspended program.
fn assert_suspended(outcome: &Outcome, pending: bool, status: SubchannelStatus, cpa: u32) {
    let mut expected = ScswFlags::SUSPENDED;
    if pending {
        expected |= ScswFlags::INTERMEDIATE | ScswFlags::STATUS_PENDING;
    }
    let scsw = outcome.scsw();
    assert_eq!(scsw.flags() & ScswFlags::from_bits_truncate(0x0fff), expected, "{scsw:?}");
    assert_eq!((scsw.subchannel_status(), scsw.device_status()), (status, NOTHING));
    assert_eq!(scsw.cpa(), cpa);
}

/// Runs a program both ways up to its suspension.
fn suspended(
    orb: &Orb,
    script: impl Fn(u8, usize) -> Answer + Copy + 'static,
    program: &[Ccw],
) -> [(Rig, Outcome); 2] {
    [true, false].map(|translated| {
        let mut rig = Rig::new(script);
        rig.put_ccws(orb, u64::from(PROGRAM), program);
        let outcome = if translated { rig.run(orb) } else { rig.run_unfetched(orb) };
        (rig, outcome)
    })
}

/// S with ORB.S: suspended before the CCW; resumed, it is executed once its flag is off.
#[test]
fn a_program_suspends_and_resumes() {
    for format_1 in [false, true] {
        let orb = with(orb_of(format_1), OrbFlags::SUSPEND_CONTROL);
        let read = Ccw::new(READ, DATA, 8);
        for (mut rig, outcome) in suspended(&orb, moving(8), &[read.with(CC), read.with(SUSPEND)]) {
            assert_suspended(&outcome, true, CLEAN, SECOND);
            assert_eq!(rig.device.codes(), [READ]);
            let again = rig.resume(&outcome);
            assert_suspended(&again, true, CLEAN, SECOND);
            assert_eq!(rig.device.codes(), [READ], "the flag is still on");
            rig.put_ccws(&orb, u64::from(PROGRAM) + 8, &[read]);
            let end = rig.resume(&again);
            assert_eq!(end_of(&end), (ENDED, CLEAN, 0, SECOND));
            assert_eq!((rig.device.codes(), rig.device.starts), (vec![READ; 2], 1));
        }
    }
}

/// S in the first CCW of a start.
#[test]
fn a_program_may_suspend_at_once() {
    let orb = with(orb(), OrbFlags::SUSPEND_CONTROL);
    for (rig, outcome) in suspended(&orb, moving(8), &[Ccw::new(READ, DATA, 8).with(SUSPEND)]) {
        assert_suspended(&outcome, true, CLEAN, FIRST);
        assert!(rig.device.log.is_empty());
    }
}

/// ORB.U: no interruption for the suspension, unless the CCW asks for one with PCI.
#[test]
fn a_suspension_may_be_silent() {
    let orb = with(orb(), OrbFlags::SUSPEND_CONTROL | OrbFlags::SUPPRESS_SUSPENDED);
    let suspend = Ccw::new(READ, DATA, 8).with(SUSPEND);
    for (_, outcome) in suspended(&orb, moving(8), &[suspend]) {
        assert_suspended(&outcome, false, CLEAN, FIRST);
    }
    for (_, outcome) in suspended(&orb, moving(8), &[suspend.with(PCI)]) {
        assert_suspended(&outcome, true, SubchannelStatus::PROGRAM_CONTROLLED, FIRST);
        assert!(outcome.intermediate.is_empty(), "one interruption, not two");
    }
}

/// A suspended CCW that the guest has made a TIC: the first CCW of a resumption may be one.
#[test]
fn a_resumption_may_begin_with_a_tic() {
    for format_1 in [false, true] {
        let orb = with(orb_of(format_1), OrbFlags::SUSPEND_CONTROL);
        let read = Ccw::new(READ, DATA, 8);
        for (mut rig, outcome) in suspended(&orb, moving(8), &[read.with(CC), read.with(SUSPEND)]) {
            rig.put_ccws(&orb, u64::from(PROGRAM) + 8, &[tic(LIST)]);
            rig.put_ccws(&orb, u64::from(LIST), &[read]);
            let end = rig.resume(&outcome);
            assert_eq!(end_of(&end), (ENDED, CLEAN, 0, LIST + 8));
            assert_eq!(rig.device.codes(), [READ; 2]);
        }
    }
}

// Modified indirect data addressing.

/// Flags of a MIDAW.
const LAST: u8 = 0x80;
const MIDAW_SKIP: u8 = 0x40;
const INTERRUPT: u8 = 0x20;

fn midaw(flags: u8, count: u16, address: u64) -> [u8; 16] {
    let [high, low] = count.to_be_bytes();
    let mut bytes = [0, 0, 0, 0, 0, flags, high, low, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes[8..].copy_from_slice(&address.to_be_bytes());
    bytes
}

/// Runs a CCW of `count` bytes over these MIDAWs.
fn midaws(
    orb: &Orb,
    code: u8,
    count: u16,
    list: u32,
    midaws: &[[u8; 16]],
    expected: End,
) -> [(Rig, Outcome); 2] {
    let orb = with(*orb, OrbFlags::MIDAW);
    let lay_out = |rig: &mut Rig| {
        rig.put_ccws(&orb, u64::from(PROGRAM), &[Ccw::new(code, list, count).with(MIDA)]);
        rig.put(u64::from(list), midaws.as_flattened());
    };
    both(&orb, moving(usize::from(count)), lay_out, expected)
}

/// MIDAWs that designate whole blocks but for the ends: as an IDAL would.
#[test]
fn midaws_that_are_an_idal_are_translated() {
    let data = u64::from(DATA);
    let list = [
        midaw(0, 0x100, data + 0xf00),
        midaw(0, 0x1000, data + 0x4000),
        midaw(LAST, 0x30, data + 0x2000),
    ];
    let runs = midaws(&orb(), READ, 0x1130, LIST, &list, (ENDED, CLEAN, 0, FIRST));
    for (rig, _) in &runs {
        assert_eq!(rig.peek(data + 0xf00, 0x100), given(0, 0x100));
        assert_eq!(rig.peek(data + 0x4000, 0x1000), given(0x100, 0x1100));
        assert_eq!(rig.peek(data + 0x2000, 0x30), given(0x1100, 0x1130));
        assert_eq!(rig.peek(data + 0x2030, 0x30), [0; 0x30]);
    }
}

/// A MIDAW list in error: found before the device is told.
#[test]
fn a_midaw_list_in_error_is_a_program_check() {
    let data = u64::from(DATA);
    let one = |flags, count, address| vec![midaw(flags, count, address)];
    let mut reserved = midaw(LAST, 0x10, data);
    reserved[2] = 1;
    for (what, list) in [
        ("skip", one(LAST | MIDAW_SKIP, 0x10, data)),
        ("data-transfer interruption", one(LAST | INTERRUPT, 0x10, data)),
        ("reserved flag", one(LAST | 1, 0x10, data)),
        ("reserved byte", vec![reserved]),
        ("count zero", vec![midaw(0, 0, data), midaw(LAST, 0x10, data)]),
        ("too much", one(LAST, 0x11, data)),
        ("too little", one(LAST, 0x0f, data)),
        ("data over a page", one(LAST, 0x10, data + 0xff8)),
        ("no last entry", vec![midaw(0, 0x10, data), midaw(0, 0x10, data)]),
        ("a gap", vec![midaw(0, 8, data), midaw(LAST, 8, data + 0x1000)]),
        ("off its block", vec![midaw(0, 8, data + 0xff8), midaw(LAST, 8, data + 0x1008)]),
    ] {
        println!("{what}");
        let runs = midaws(&orb(), READ, 0x10, LIST, &list, (NOTHING, PGM, 0x10, FIRST));
        assert_codes(&runs, &[]);
    }
}

/// A MIDAW list that is misaligned, outside storage, or crosses a page.
#[test]
fn a_misplaced_midaw_list_is_a_program_check() {
    let data = u64::from(DATA);
    let end = (NOTHING, PGM, 0x10, FIRST);
    let entry = midaw(LAST, 0x10, data);
    midaws(&orb(), READ, 0x10, LIST + 8, &[entry], end);
    let crossing = [midaw(0, 8, data + 0xff8), midaw(LAST, 8, data + 0x2000)];
    midaws(&orb(), READ, 0x10, LIST + 0xff0, &crossing, end);
    let orb = with(orb(), OrbFlags::MIDAW);
    for list in [HOLE, 0x8000_0000] {
        let program = [Ccw::new(READ, list, 0x10).with(MIDA)];
        assert_codes(&ccws(&orb, moving(0x10), &program, end), &[]);
    }
}

/// MIDAWs with read backward.
#[test]
fn midaws_with_read_backward_are_a_program_check() {
    let list = [midaw(LAST, 0x10, u64::from(DATA))];
    let end = (NOTHING, PGM, 0x10, FIRST);
    assert_codes(&midaws(&orb(), READ_BACKWARD, 0x10, LIST, &list, end), &[]);
}
