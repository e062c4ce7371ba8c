//! Linux's vfio-ccw copies a program once more, within limits that no guest knows of: 256 CCWs a
//! segment, 16 segments, 2 KiB read wherever one starts. The shadow program must fit, and must run
//! to the same end when the channel runs the kernel's copy of it.

mod kernel_model;
pub mod translated;

use std::sync::Arc;

use kernel_model::{Container, KernelProgram, Refusal, SEGMENT_CCWS, SEGMENTS};
use proptest::prelude::*;
use translated::shorthand::{
    CC, CD, IDA, MIDA, PCI, READ, READ_BACKWARD, SEARCH, SENSE, SKIP, SLI, WRITE,
};
use translated::{Answer, Executed, Outcome, Rig, block_on};
use vfio_ccw::architecture::{
    Ccw, CcwFlags, DeviceStatus, IdawFormat, Orb, OrbFlags, SubchannelStatus, command,
};
use vfio_ccw::channel_subsystem::{Entry, Run, execute};
use vfio_ccw::{GUEST_IOVA, SHADOW_IOVA};
use vfio_ccw_pinning::GuestMap;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Where the channel sees the kernel's copy: below 2 GiB, as `GFP_DMA` memory is.
const KERNEL: u32 = 0x4000_0000;

/// Where programs begin, what they share, and their data.
const PROGRAM: u32 = 0x1_0000;
const LISTS: u32 = 0x1000;
const DATA: u32 = 0x4_0000;
const DATA_BYTES: u32 = 0x1_0000;

fn memory(bytes: usize) -> Arc<GuestMap> {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), bytes)]);
    Arc::new(GuestMap::new(Arc::new(memory.expect("address space"))).expect("whole frames"))
}

fn orb() -> Orb {
    Orb::new(PROGRAM)
}

fn tic(target: u32) -> Ccw {
    Ccw::new(command::TIC, target, 0)
}

/// A device on which every third command, if it is a search, succeeds; it moves what there is room for.
fn answer(code: u8, number: usize) -> Answer {
    match code {
        command::NOP => Answer::immediate(),
        SEARCH if number % 3 == 2 => Answer::moves(5).with_status(DeviceStatus::STATUS_MODIFIER),
        SEARCH => Answer::moves(5),
        _ => Answer::all(),
    }
}

/// What a program leaves: status, what the device saw, and guest memory.
#[derive(Debug, PartialEq)]
struct Left {
    outcome: Outcome,
    log: Vec<Executed>,
    data: Vec<u8>,
}

fn left(rig: &Rig, outcome: Outcome) -> Left {
    let data = rig.peek(u64::from(DATA), DATA_BYTES as usize);
    Left { outcome, log: rig.device.log.clone(), data }
}

/// A guest whose programs are translated for the kernel.
fn rig(lay_out: &impl Fn(&Rig)) -> Rig {
    let mut rig = Rig::new(answer);
    rig.rules.pins_areas = true;
    lay_out(&rig);
    rig
}

/// Runs a program on its shadow.
fn on_the_shadow(orb: &Orb, lay_out: &impl Fn(&Rig)) -> Left {
    let mut rig = rig(lay_out);
    let outcome = rig.run(orb);
    left(&rig, outcome)
}

/// Runs a program on the kernel's copy of its shadow. Says too how long the segments were.
fn on_the_kernels_copy(orb: &Orb, lay_out: &impl Fn(&Rig)) -> Result<(Left, Vec<usize>), Refusal> {
    let mut rig = rig(lay_out);
    let (arena, kernel_memory) = (memory(1 << 20), memory(2 << 20));
    let mut container = Container::default();
    container.map(GUEST_IOVA, &rig.map);
    container.map(SHADOW_IOVA, &arena);

    let orb = orb.with_flags(orb.flags() | OrbFlags::PREFETCH);
    rig.program.fetch(&orb, &rig.map, &rig.rules, &mut rig.hold);
    let shadow = rig.program.emit(arena.regions()[0].host(), SHADOW_IOVA as u32);
    let mut copy = KernelProgram::copy(&container, shadow.expect("room for the shadow"))?;
    let orb = copy.translate(kernel_memory.regions()[0].host(), KERNEL)?;

    let dma = container.channel_space(KERNEL, &kernel_memory);
    let run = Run { orb, entry: Entry::Start, dma: &dma, rules: None, stop: None };
    let program = &rig.program;
    let seen = |irb| program.back_map(copy.update_scsw(irb));
    let mut intermediate = Vec::new();
    let end = block_on(execute(&run, &mut rig.device, &mut |irb| intermediate.push(seen(irb))));
    let outcome = Outcome { intermediate, end: seen(end) };
    Ok((left(&rig, outcome), copy.lengths()))
}

/// The kernel takes the program, and its copy runs as the shadow does. Returns what both left.
fn fits(orb: &Orb, lay_out: impl Fn(&Rig)) -> Left {
    let shadow = on_the_shadow(orb, &lay_out);
    let (kernel, lengths) = on_the_kernels_copy(orb, &lay_out).expect("the kernel takes it");
    assert!(lengths.len() <= SEGMENTS && lengths.iter().all(|len| *len <= SEGMENT_CCWS));
    assert!(shadow == kernel, "{:?}\n{:?}", shadow.outcome, kernel.outcome);
    shadow
}

/// The same, and it ends clean behind the CCW at `last`.
fn fits_and_ends_clean(orb: &Orb, lay_out: impl Fn(&Rig), last: u32) -> Left {
    let left = fits(orb, lay_out);
    let scsw = left.outcome.scsw();
    assert!(scsw.is_clean_end(), "{scsw:?}");
    assert_eq!((scsw.cpa(), scsw.count()), (last + 8, 0));
    left
}

/// `len` reads of 16 bytes, command-chained.
fn reads(len: u32) -> Vec<Ccw> {
    let read = |index| Ccw::new(READ, DATA + index * 16 % DATA_BYTES, 16).with(CC);
    let mut ccws: Vec<Ccw> = (0..len).map(read).collect();
    ccws[len as usize - 1].flags = CcwFlags::empty();
    ccws
}

/// What the kernel says to a guest's program as it stands.
fn as_it_stands(orb: &Orb, lay_out: impl Fn(&Rig)) -> Result<Vec<usize>, Refusal> {
    let rig = Rig::new(answer);
    lay_out(&rig);
    let mut container = Container::default();
    container.map(0, &rig.map);
    let mut copy = KernelProgram::copy(&container, *orb)?;
    copy.translate(memory(1 << 20).regions()[0].host(), KERNEL)?;
    Ok(copy.lengths())
}

// The model says no where the kernel does.

#[test]
fn the_kernel_refuses_257_ccws_as_they_stand() {
    let lay_out = |len| move |rig: &Rig| rig.put_ccws(&orb(), u64::from(PROGRAM), &reads(len));
    assert_eq!(as_it_stands(&orb(), lay_out(256)), Ok(vec![256]));
    assert_eq!(as_it_stands(&orb(), lay_out(257)), Err(Refusal::SegmentTooLong(PROGRAM)));
}

#[test]
fn the_kernel_refuses_17_segments_as_they_stand() {
    let at = |index: u32| PROGRAM + index * 0x100;
    let lay_out = |segments| {
        move |rig: &Rig| {
            for index in 0..segments {
                let last = index + 1 == segments;
                let read = Ccw::new(READ, DATA, 16);
                let leads_on = [read.with(CC), tic(at(index + 1))];
                let ccws = if last { &[read][..] } else { &leads_on };
                rig.put_ccws(&orb(), u64::from(at(index)), ccws);
            }
        }
    };
    assert_eq!(as_it_stands(&orb(), lay_out(16)).map(|lengths| lengths.len()), Ok(16));
    assert_eq!(as_it_stands(&orb(), lay_out(17)), Err(Refusal::TooManySegments));
}

#[test]
fn the_kernel_refuses_a_chain_in_the_last_2_kib_as_it_stands() {
    let lay_out = |rig: &Rig| rig.put_ccws(&orb(), 0x4_fff8, &reads(1));
    let refused = as_it_stands(&orb().with_cpa(0x4_fff8), lay_out);
    assert_eq!(refused, Err(Refusal::NotMapped(0x5_0000)));
}

#[test]
fn the_kernel_keeps_a_search_loop_together() {
    let ccws = [Ccw::new(SEARCH, DATA, 5).with(CC), tic(PROGRAM), Ccw::new(READ, DATA, 16)];
    let lay_out = |rig: &Rig| rig.put_ccws(&orb(), u64::from(PROGRAM), &ccws);
    assert_eq!(as_it_stands(&orb(), lay_out), Ok(vec![3]));
}

// The shadow fits.

#[test]
fn long_chains_fit() {
    for len in [1, 2, 254, 255, 256, 257, 258, 511, 512, 513, 1000, 3800] {
        let lay_out = |rig: &Rig| rig.put_ccws(&orb(), u64::from(PROGRAM), &reads(len));
        let left = fits_and_ends_clean(&orb(), lay_out, PROGRAM + (len - 1) * 8);
        assert_eq!(left.log.len(), len as usize);
    }
}

#[test]
fn long_chains_of_format_0_fit() {
    let orb = orb().with_flags(OrbFlags::FORMAT_2_IDAWS);
    for len in [256, 257, 3800] {
        let lay_out = |rig: &Rig| rig.put_ccws(&orb, u64::from(PROGRAM), &reads(len));
        fits_and_ends_clean(&orb, lay_out, PROGRAM + (len - 1) * 8);
    }
}

#[test]
fn a_data_chain_over_the_limit_fits() {
    for len in [256u32, 257, 600] {
        let ccw = |index: u32| {
            let last = index + 1 == len;
            Ccw::new(READ, DATA + index * 16, 16).with(if last { CcwFlags::empty() } else { CD })
        };
        let ccws: Vec<Ccw> = (0..len).map(ccw).collect();
        let lay_out = |rig: &Rig| rig.put_ccws(&orb(), u64::from(PROGRAM), &ccws);
        let left = fits_and_ends_clean(&orb(), lay_out, PROGRAM + (len - 1) * 8);
        assert_eq!((left.log.len(), left.log[0].moved), (1, len as usize * 16));
    }
}

#[test]
fn forty_segments_fit() {
    for (segments, step) in [(16u32, 1u32), (17, 1), (40, 1), (40, 7), (60, 59)] {
        let at = |index: u32| PROGRAM + (index * step % segments) * 0x100;
        let lay_out = |rig: &Rig| {
            for index in 0..segments {
                let last = index + 1 == segments;
                let read = Ccw::new(READ, DATA + index * 16, 16);
                let leads_on = [read.with(CC), tic(at(index + 1))];
                let ccws = if last { &[read][..] } else { &leads_on };
                rig.put_ccws(&orb(), u64::from(at(index)), ccws);
            }
        };
        let left = fits_and_ends_clean(&orb().with_cpa(at(0)), lay_out, at(segments - 1));
        assert_eq!(left.log.len(), segments as usize, "{segments} segments, step {step}");
    }
}

#[test]
fn search_loops_fit() {
    for loops in [1u32, 30, 85, 86, 300] {
        let mut ccws = Vec::new();
        for index in 0..loops {
            let at = PROGRAM + index * 24;
            let read = Ccw::new(READ, DATA + index * 16, 16);
            ccws.extend([Ccw::new(SEARCH, DATA, 5).with(CC), tic(at), read.with(CC)]);
        }
        ccws.last_mut().expect("a loop").flags = CcwFlags::empty();
        let lay_out = |rig: &Rig| rig.put_ccws(&orb(), u64::from(PROGRAM), &ccws);
        let left = fits_and_ends_clean(&orb(), lay_out, PROGRAM + loops * 24 - 8);
        assert!(left.log.len() >= loops as usize * 2);
    }
}

#[test]
fn loops_of_three_fit_wherever_they_stand() {
    // SET SECTOR, SEARCH, TIC back to SET SECTOR; READ is reached by status modifier only.
    for before in 225u32..=256 {
        let mut ccws = vec![Ccw::new(command::NOP, 0, 1).with(CC); before as usize];
        let start = PROGRAM + before * 8;
        ccws.extend([
            Ccw::new(0x23, DATA, 1).with(CC),
            Ccw::new(SEARCH, DATA, 5).with(CC),
            tic(start),
            Ccw::new(READ, DATA, 16),
        ]);
        let lay_out = |rig: &Rig| rig.put_ccws(&orb(), u64::from(PROGRAM), &ccws);
        println!("{before} CCWs before the loop");
        fits_and_ends_clean(&orb(), lay_out, start + 24);
    }
}

#[test]
fn a_data_chained_ccw_fits_whatever_its_command_code() {
    for code in [0x00, command::NOP, WRITE, READ, SENSE, READ_BACKWARD, 0x10] {
        for leader in [READ, WRITE] {
            for flags in [CcwFlags::empty(), SKIP] {
                let ccws = [
                    Ccw::new(leader, DATA, 8).with(CD),
                    Ccw::new(code, DATA + 0x100, 8).with(flags),
                ];
                let lay_out = |rig: &Rig| {
                    rig.put_ccws(&orb(), u64::from(PROGRAM), &ccws);
                    rig.put(u64::from(DATA), &[7; 0x200]);
                };
                let left = fits_and_ends_clean(&orb(), lay_out, PROGRAM + 8);
                assert_eq!(left.log[0].moved, 16, "{code:#x} after {leader:#x}, {flags:?}");
            }
        }
    }
}

#[test]
fn midaws_fit() {
    let orb = orb().with_flags(orb().flags() | OrbFlags::MIDAW);
    let lay_out = |rig: &Rig| {
        rig.put_ccws(&orb, u64::from(PROGRAM), &[Ccw::new(READ, LISTS, 0x120).with(MIDA)]);
        let entry = |flags: u8, count: u16, address: u32| {
            let mut bytes = [0; 16];
            bytes[5] = flags;
            bytes[6..8].copy_from_slice(&count.to_be_bytes());
            bytes[12..].copy_from_slice(&address.to_be_bytes());
            bytes
        };
        let list = [entry(0, 0x100, DATA + 0xf00), entry(0x80, 0x20, DATA + 0x2000)];
        rig.put(u64::from(LISTS), list.as_flattened());
    };
    let left = fits_and_ends_clean(&orb, lay_out, PROGRAM);
    assert_eq!(left.log[0].moved, 0x120);
}

#[test]
fn a_ccw_that_fails_fits_and_fails_in_its_place() {
    for (bad, count) in [
        (Ccw::new(0x00, DATA, 8), 8),
        (Ccw::new(0x18, DATA, 8), 8),
        (Ccw::new(READ, DATA, 0).with(CD), 0),
        (Ccw::new(READ, LISTS, 8).with(MIDA), 8),
        (Ccw::new(command::TIC, 0x5_0000, 0), 0),
        (Ccw::new(command::TIC, DATA, 1), 1),
    ] {
        for before in [1u32, 255, 256, 300] {
            let mut ccws = reads(before + 1);
            ccws[before as usize] = bad;
            let lay_out = |rig: &Rig| rig.put_ccws(&orb(), u64::from(PROGRAM), &ccws);
            let scsw = fits(&orb(), lay_out).outcome.scsw();
            assert_eq!(scsw.subchannel_status(), SubchannelStatus::PROGRAM_CHECK, "{bad:?}");
            let place = (scsw.cpa(), scsw.count());
            assert_eq!(place, (PROGRAM + before * 8 + 8, count), "{bad:?}");
        }
    }
}

#[test]
fn bad_addresses_fit_and_fail_in_their_place() {
    const NOWHERE: u32 = 0x7000_0000;
    for (bad, count) in [
        (Ccw::new(READ, NOWHERE, 8), 8),
        (Ccw::new(WRITE, 0x4_f000, 0x1800), 0x1800),
        (Ccw::new(READ, NOWHERE, 0x100).with(IDA), 0x100),
        (Ccw::new(READ, LISTS, 0x1800).with(IDA), 0x1800),
        (Ccw::new(SENSE, NOWHERE, 8).with(SLI), 8),
    ] {
        for before in [1u32, 255, 300] {
            let mut ccws = reads(before + 1);
            ccws[before as usize] = bad;
            let lay_out = |rig: &Rig| {
                rig.put_idaws(u64::from(LISTS), &[u64::from(DATA), u64::from(NOWHERE)]);
                rig.put_ccws(&orb(), u64::from(PROGRAM), &ccws);
            };
            let left = fits(&orb(), lay_out);
            let scsw = left.outcome.scsw();
            assert_eq!(left.log.len(), before as usize, "what comes before has run: {bad:?}");
            assert_eq!(scsw.subchannel_status(), SubchannelStatus::PROGRAM_CHECK, "{bad:?}");
            let place = (scsw.cpa(), scsw.count());
            assert_eq!(place, (PROGRAM + before * 8 + 8, count), "{bad:?}");
        }
    }
}

#[test]
fn a_chain_in_the_last_bytes_of_memory_fits() {
    let orb = orb().with_cpa(0x4_fff8);
    let lay_out = |rig: &Rig| rig.put_ccws(&orb, 0x4_fff8, &[Ccw::new(READ, DATA, 16)]);
    fits_and_ends_clean(&orb, lay_out, 0x4_fff8);
}

// What cannot be put into a form that the kernel copies whole (docs/TRANSLATION.md says so).

/// The kernel loses what only a status modifier reaches behind a TIC that leads out of its segment:
/// the program runs on the shadow, and not on the kernel's copy.
fn loses_what_stands_behind_its_tic(orb: &Orb, lay_out: impl Fn(&Rig), last: u32) {
    let scsw = on_the_shadow(orb, &lay_out).outcome.scsw();
    assert!(scsw.is_clean_end() && scsw.cpa() == last + 8, "{scsw:?}");
    let (kernel, _) = on_the_kernels_copy(orb, &lay_out).expect("the kernel takes it");
    let status = kernel.outcome.scsw().subchannel_status();
    assert_eq!(status, SubchannelStatus::PROGRAM_CHECK);
}

#[test]
fn a_search_that_skips_a_transfer_out_is_lost() {
    let lay_out = |rig: &Rig| {
        let read = Ccw::new(READ, DATA, 16);
        let found = [Ccw::new(SEARCH, DATA, 5).with(CC), tic(0x2_0000), read];
        rig.put_ccws(&orb(), u64::from(PROGRAM), &found);
        let retry = [Ccw::new(WRITE, DATA, 16).with(CC), tic(PROGRAM)];
        rig.put_ccws(&orb(), 0x2_0000, &retry);
    };
    loses_what_stands_behind_its_tic(&orb(), lay_out, PROGRAM + 16);
}

#[test]
fn a_search_loop_longer_than_a_segment_is_lost() {
    let mut ccws = vec![Ccw::new(command::NOP, 0, 1).with(CC); 300];
    ccws.extend([Ccw::new(SEARCH, DATA, 5).with(CC), tic(PROGRAM), Ccw::new(READ, DATA, 16)]);
    let lay_out = |rig: &Rig| rig.put_ccws(&orb(), u64::from(PROGRAM), &ccws);
    loses_what_stands_behind_its_tic(&orb(), lay_out, PROGRAM + 302 * 8);
}

#[test]
fn read_backward_into_a_second_block_is_lost() {
    // Two bytes down from the first of a block are in two blocks; up from it they are in one.
    let lay_out = |rig: &Rig| {
        let ccw = Ccw::new(READ_BACKWARD, DATA + 0x1000, 2);
        rig.put_ccws(&orb(), u64::from(PROGRAM), &[ccw]);
    };
    assert!(on_the_shadow(&orb(), &lay_out).outcome.scsw().is_clean_end());
    let (kernel, _) = on_the_kernels_copy(&orb(), &lay_out).expect("the kernel takes it");
    let scsw = kernel.outcome.scsw();
    let expected = (SubchannelStatus::PROGRAM_CHECK, 1);
    assert_eq!((scsw.subchannel_status(), scsw.count()), expected);
}

#[test]
fn more_than_sixteen_segments_of_ccws_are_refused() {
    let lay_out = |rig: &Rig| rig.put_ccws(&orb(), u64::from(PROGRAM), &reads(4090));
    let scsw = on_the_shadow(&orb(), &lay_out).outcome.scsw();
    assert_eq!((scsw.is_clean_end(), scsw.cpa()), (true, PROGRAM + 4090 * 8));
    let refused = on_the_kernels_copy(&orb(), &lay_out).err();
    assert_eq!(refused, Some(Refusal::TooManySegments));
}

/// One CCW of a random program: command, flags, count, and where in the data its area begins.
type Piece = (u8, u8, u16, u32);

fn piece() -> impl Strategy<Value = Piece> {
    // No read backward: the kernel counts its IDAWs upward.
    let code = prop::sample::select(vec![READ, WRITE, SENSE, command::NOP, 0x07]);
    let flags = prop::sample::select(vec![
        CC,
        CC,
        CC | SLI,
        CC | IDA,
        CC | SLI | IDA,
        CC | PCI,
        CC | SKIP | IDA,
        CD,
        CD | IDA,
        CD | SKIP,
    ]);
    let count = prop_oneof![15 => 1u16..64, 1 => 64u16..0x1400];
    (code, flags.prop_map(|flags| flags.bits()), count, 0x2000u32..0xe000 - 0x1400)
}

/// The ORB's formats.
fn formats() -> impl Strategy<Value = OrbFlags> {
    let idaws = prop::sample::select(vec![
        OrbFlags::empty(),
        OrbFlags::FORMAT_2_IDAWS,
        OrbFlags::FORMAT_2_IDAWS | OrbFlags::IDAW_2K,
    ]);
    let ccws = prop::sample::select(vec![OrbFlags::empty(), OrbFlags::FORMAT_1]);
    (idaws, ccws).prop_map(|(idaws, ccws)| idaws | ccws)
}

/// Writes an IDAL for `count` bytes from `first` on.
fn put_idal(rig: &Rig, orb: &Orb, list: u32, first: u32, count: u16) {
    let block = orb.idaw_format().block();
    let blocks =
        (first / block..=(first + u32::from(count) - 1) / block).map(|index| index * block);
    let words: Vec<u32> = blocks.map(|start| start.max(first)).collect();
    if orb.idaw_format() == IdawFormat::Format1 {
        rig.put_idaws_1(u64::from(list), &words);
    } else {
        let words: Vec<u64> = words.into_iter().map(u64::from).collect();
        rig.put_idaws(u64::from(list), &words);
    }
}

/// Lays out runs of CCWs, each in a slot of its own, in an order that `step` mixes up, joined by
/// TICs; some runs begin with a search loop. Returns the address of the first CCW.
fn put_runs(rig: &Rig, orb: &Orb, runs: &[(bool, Vec<Piece>)], step: u32) -> u32 {
    let slots = runs.len() as u32;
    let at = |run: u32| PROGRAM + (run * step % slots) * 0x400;
    let mut lists = LISTS;
    let mut chained = false;
    for (run, (search, pieces)) in (0u32..).zip(runs) {
        let mut ccws = Vec::new();
        if *search && !chained {
            ccws.extend([Ccw::new(SEARCH, DATA + 0x100, 5).with(CC), tic(at(run))]);
        }
        for (code, flags, count, offset) in pieces {
            let mut flags = CcwFlags::from_bits_retain(*flags);
            if !chained && *code == command::NOP && flags.contains(CD) {
                // An immediate operation has no data to chain.
                flags = (flags - CD) | CC;
            }
            chained = flags.contains(CD);
            let mut ccw = Ccw::new(*code, DATA + offset, *count).with(flags);
            if flags.contains(IDA) {
                put_idal(rig, orb, lists, ccw.address, *count);
                ccw.address = lists;
                lists += 32;
            }
            ccws.push(ccw);
        }
        let last = run + 1 == slots;
        ccws.push(if last { Ccw::new(READ, DATA, 16) } else { tic(at(run + 1)) });
        rig.put_ccws(orb, u64::from(at(run)), &ccws);
    }
    at(0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn valid_programs_fit(
        runs in prop::collection::vec(
            (any::<bool>(), prop::collection::vec(piece(), 1..50)),
            1..24,
        ),
        step in prop::sample::select(vec![1u32, 37, 41]),
        formats in formats(),
    ) {
        let orb = orb().with_flags(formats).with_cpa(PROGRAM);
        let left = fits(&orb, |rig| {
            rig.put(u64::from(DATA), &vec![9; DATA_BYTES as usize]);
            put_runs(rig, &orb, &runs, step);
        });
        let scsw = left.outcome.scsw();
        prop_assert!(scsw.is_clean_end(), "{:?}", scsw);
    }
}
