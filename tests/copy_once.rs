//! A guest that rewrites its program while it is translated and while it runs: the device gets what
//! was checked, and nothing that was put there since.

pub mod bench_guest;
pub mod translated;

use bench_guest::fba::{self, Image, MAY_WRITE, ONLY_READ, READ, WRITE, extent, locate};
use bench_guest::rewriting::{Flip, Meddler, Tally, while_rewritten};
use bench_guest::{Bench, Device, on_each_driver};
use translated::{Answer, Executed, Rig, block_on};
use vfio_ccw::architecture::{
    Ccw, CcwFlags, DeviceStatus, Orb, OrbFlags, SubchannelStatus, command,
};
use vfio_ccw::channel_subsystem::{Run, execute};
use vfio_ccw::{DeviceSpec, Policy, SHADOW_IOVA};
use vfio_ccw_metrics::{CounterKind, Outcome};

const CC: CcwFlags = CcwFlags::CHAIN_COMMAND;
const IDA: CcwFlags = CcwFlags::INDIRECT;

const ROUNDS: usize = 4000;

const MEMORY: usize = 1 << 20;
const BLOCKS: u32 = 128;
const PROGRAM: u32 = 0x1000;
const EXTENT: u32 = 0x2000;
const LOCATE: u32 = 0x2100;
const OTHER_EXTENT: u32 = 0x3000;
const IDAL: u32 = 0x4000;
const BUFFER: u32 = 0x1_0000;

const PROTECTED: [u8; 2] = [0, 0x04];
const REJECTED: [u8; 2] = [0x80, 0];

fn transfer_ccw(code: u8, blocks: u16) -> Ccw {
    Ccw::new(code, BUFFER, blocks * 512)
}

/// DEFINE EXTENT and LOCATE for `blocks` blocks from `first`, then `transfer`.
fn put_program(bench: &Bench, define: Ccw, transfer: Ccw) {
    let find = Ccw::new(command::FBA_LOCATE, LOCATE, 8).with(CC);
    bench.put_program(PROGRAM, &[define.with(CC), find, transfer]);
    bench.put(BUFFER.into(), &[0xee; 4096]);
}

#[test]
fn a_read_that_becomes_a_write_does_not_write() {
    on_each_driver(MEMORY, |bench| {
        let image = Image::new(BLOCKS);
        let mut disk = bench.attach_with(image.disk(), Policy::read_only());
        let (read, write) =
            (transfer_ccw(command::FBA_READ, 2), transfer_ccw(command::FBA_WRITE, 2));
        bench.put(EXTENT.into(), &extent(MAY_WRITE, 9, 0, 1));
        put_program(bench, Ccw::new(command::DEFINE_EXTENT, EXTENT, 16), read);
        let flips = [
            Flip::ccws(PROGRAM + 16, &[read, write]),
            Flip { at: LOCATE, values: vec![locate(READ, 2, 0), locate(WRITE, 2, 0)] },
        ];
        let mut tally = Tally::default();
        while_rewritten(&bench.service.memory(), &flips, ROUNDS, |_| {
            // A read behind LOCATE for a write is rejected by the disk itself.
            tally.count(&disk.run(&Orb::new(PROGRAM)), &[PROTECTED, REJECTED]);
            tally.both()
        });
        assert!(image.blocks(0, BLOCKS) == fba::blocks(0, BLOCKS), "the image was written to");
        let totals = bench.service.totals();
        assert_eq!(totals.counter(CounterKind::WrittenBytes), 0);
        assert!(totals.completions(Outcome::RefusedPolicy) > 0, "no write was refused");
    });
}

/// An extent of eight blocks behind an IDAW, and how to move it out of the first 64 blocks: by its
/// parameters, or by the IDAW.
fn put_extent(bench: &Bench) -> [Flip; 2] {
    let halves = [0, 100].map(|at| {
        let parameters = extent(MAY_WRITE, at, 0, 7);
        <[u8; 8]>::try_from(&parameters[..8]).expect("eight of sixteen")
    });
    bench.put(EXTENT.into(), &extent(MAY_WRITE, 0, 0, 7));
    bench.put(OTHER_EXTENT.into(), &extent(MAY_WRITE, 100, 0, 7));
    bench.put(IDAL.into(), &u64::from(EXTENT).to_be_bytes());
    bench.put(LOCATE.into(), &locate(WRITE, 8, 0));
    let define = Ccw::new(command::DEFINE_EXTENT, IDAL, 16).with(IDA);
    put_program(bench, define, transfer_ccw(command::FBA_WRITE, 8));
    let idaws = Flip::words(IDAL, &[EXTENT.into(), OTHER_EXTENT.into()]);
    [Flip { at: EXTENT, values: halves.to_vec() }, idaws]
}

#[track_caller]
fn assert_written_inside(image: &Image) {
    assert!(image.blocks(0, 8) == [0xee; 4096], "not written inside");
    assert!(image.blocks(8, BLOCKS - 8) == fba::blocks(8, BLOCKS - 8), "written outside");
}

#[test]
fn an_extent_that_moves_does_not_move_the_write() {
    on_each_driver(MEMORY, |bench| {
        let image = Image::new(BLOCKS);
        let mut disk = bench.attach_with(image.disk(), Policy::extents(0..64));
        let flips = put_extent(bench);
        let mut tally = Tally::default();
        while_rewritten(&bench.service.memory(), &flips, ROUNDS, |_| {
            tally.count(&disk.run(&Orb::new(PROGRAM)), &[PROTECTED]);
            tally.both()
        });
        assert_written_inside(&image);
    });
}

#[test]
fn what_is_stored_while_a_command_is_judged_comes_too_late() {
    on_each_driver(MEMORY, |bench| {
        let image = Image::new(BLOCKS);
        let meddler = Meddler::new(bench.service.memory().clone(), put_extent(bench));
        let policy = Policy::extents(0..64).and(Policy::of(meddler));
        let irb = bench.attach_with(image.disk(), policy).run(&Orb::new(PROGRAM));
        assert!(irb.scsw.is_clean_end(), "{irb:?}");
        assert_ne!(bench.peek(EXTENT.into(), 16), extent(MAY_WRITE, 0, 0, 7), "it did meddle");
        assert_written_inside(&image);

        let base = Orb::new(PROGRAM);
        for orb in [base, base.with_flags(base.flags() - OrbFlags::PREFETCH)] {
            // The second, of the sense class, the null device would reject.
            let codes = [0x02, 0x14].map(|code| Ccw::new(code, BUFFER, 16));
            bench.put_program(PROGRAM, &codes[..1]);
            let meddler =
                Meddler::new(bench.service.memory().clone(), [Flip::ccws(PROGRAM, &codes)]);
            let policy = Policy::allow_list([0x02]).and(Policy::of(meddler));
            let irb = bench.attach_with(DeviceSpec::Null, policy).run(&orb);
            assert!(irb.scsw.is_clean_end(), "{irb:?}");
            assert_eq!(bench.peek(PROGRAM.into(), 1), [0x14], "it did meddle");
        }
    });
}

/// One read while its IDAW changes between two pages and one outside of guest memory. Returns whether
/// it ended cleanly.
fn read_into_one_of(bench: &Bench, disk: &mut Device, pages: [u32; 2], orb: &Orb) -> bool {
    pages.iter().for_each(|page| bench.put(u64::from(*page), &[0; 512]));
    let irb = disk.run(orb);
    let found = pages.map(|page| bench.peek(page.into(), 512));
    let (zeros, data) = ([0; 512], fba::block(9));
    if irb.scsw.is_clean_end() {
        let whole = found == [data.to_vec(), zeros.to_vec()];
        assert!(whole || found == [zeros.to_vec(), data.to_vec()], "both, or part of a block");
    } else {
        assert_eq!(irb.scsw.subchannel_status(), SubchannelStatus::PROGRAM_CHECK, "{irb:?}");
        assert_eq!(irb.scsw.count(), 512, "{irb:?}");
        assert_eq!(found, [zeros.to_vec(), zeros.to_vec()]);
    }
    irb.scsw.is_clean_end()
}

#[test]
fn data_goes_where_an_idaw_once_pointed_and_nowhere_else() {
    let pages = [BUFFER, BUFFER + 0x4000];
    on_each_driver(MEMORY, |bench| {
        let mut disk = bench.attach(Image::new(BLOCKS).disk());
        bench.put(EXTENT.into(), &extent(ONLY_READ, 9, 0, 0));
        bench.put(LOCATE.into(), &locate(READ, 1, 0));
        bench.put(BUFFER.into(), &[0x55; 0x8000]);
        let define = Ccw::new(command::DEFINE_EXTENT, EXTENT, 16);
        put_program(bench, define, Ccw::new(command::FBA_READ, IDAL, 512).with(IDA));
        bench.put(BUFFER.into(), &[0x55; 0x8000]);
        let words = [pages[0].into(), pages[1].into(), MEMORY as u64];
        let base = Orb::new(PROGRAM);
        let (mut clean, mut refused) = (0, 0);
        let flips = [Flip::words(IDAL, &words)];
        while_rewritten(&bench.service.memory(), &flips, ROUNDS, |round| {
            let flags = if round % 2 == 0 { OrbFlags::empty() } else { OrbFlags::PREFETCH };
            let orb = base.with_flags(base.flags() - flags);
            match read_into_one_of(bench, &mut disk, pages, &orb) {
                true => clean += 1,
                false => refused += 1,
            }
            clean > 0 && refused > 0
        });
        for page in pages {
            let around = bench.peek(u64::from(page) + 512, 0x4000 - 512);
            assert!(around.iter().all(|byte| *byte == 0x55), "behind {page:#x}");
        }
    });
}

/// A command that takes sixteen bytes of sevens, one that takes eight of nines, and one that no device
/// here should ever see.
fn snapshots(chain: CcwFlags) -> [Ccw; 3] {
    let [sevens, nines] = [BUFFER, BUFFER + 0x4000];
    [
        Ccw::new(0x05, sevens, 16).with(chain),
        Ccw::new(0x0d, nines, 8).with(chain),
        Ccw::new(0x01, sevens, 64).with(chain),
    ]
}

fn rig() -> Rig {
    let mut rig = Rig::with_regions(&[(0, MEMORY)], |_, _| Answer::all());
    rig.rules.policy = Policy::allow_list([0x05, 0x0d]);
    rig.put(BUFFER.into(), &[7; 64]);
    rig.put(u64::from(BUFFER) + 0x4000, &[9; 64]);
    rig
}

#[track_caller]
fn assert_allowed(executed: &Executed) {
    let Executed { code, taken, .. } = executed;
    let whole = match code {
        0x05 => taken == &[7; 16],
        0x0d => taken == &[9; 8],
        _ => false,
    };
    assert!(whole, "{executed:?}");
}

#[test]
fn the_device_sees_whole_ccws_that_were_allowed() {
    let mut rig = rig();
    let map = rig.map.clone();
    let last = snapshots(CcwFlags::empty());
    let flips = [
        Flip::ccws(PROGRAM, &snapshots(CC)),
        Flip::ccws(PROGRAM + 8, &snapshots(CC)),
        Flip::ccws(PROGRAM + 16, &last),
    ];
    let mut tally = Tally::default();
    while_rewritten(&map, &flips, 10 * ROUNDS, |round| {
        let end = match round % 2 {
            0 => rig.run(&Orb::new(PROGRAM)).end,
            _ => rig.run_unfetched(&Orb::new(PROGRAM)).end,
        };
        tally.count(&end, &[REJECTED]);
        rig.device.log.drain(..).for_each(|executed| assert_allowed(&executed));
        tally.both()
    });
}

#[test]
fn what_is_stored_after_translation_is_not_executed() {
    let mut rig = rig();
    let orb = Orb::new(PROGRAM);
    let [sevens, nines, bad] = snapshots(CcwFlags::empty());
    let through_idal = Ccw { address: IDAL, ..nines }.with(IDA);
    rig.put_ccws(&orb, PROGRAM.into(), &[sevens.with(CC), through_idal]);
    rig.put_idaws(IDAL.into(), &[nines.address.into()]);
    rig.program.fetch(&orb, &rig.map, &rig.rules, &mut rig.hold);
    rig.put_ccws(&orb, PROGRAM.into(), &[bad.with(CC), bad]);
    rig.put_idaws(IDAL.into(), &[bad.address.into()]);
    let shadow = rig.program.emit(rig.shadow, SHADOW_IOVA as u32).expect("room");
    rig.put_ccws(&orb, PROGRAM.into(), &[bad.with(CC), bad]);
    let run = Run::new(shadow, &rig.dma);
    let end = rig.program.back_map(block_on(execute(&run, &mut rig.device, &mut |_| {})));
    assert!(end.scsw.is_clean_end() && end.scsw.cpa() == PROGRAM + 16, "{end:?}");
    assert_eq!(rig.device.codes(), [0x05, 0x0d]);
    rig.device.log.iter().for_each(assert_allowed);
}

#[test]
fn a_ccw_that_is_executed_twice_is_the_same_twice() {
    // Two searches: the device finds what it looks for at the second try, and the TIC is skipped.
    let searches = [0x31, 0x29].map(|code| Ccw::new(code, BUFFER, 4).with(CC));
    let mut rig = rig();
    rig.rules.policy = Policy::default();
    let found = |_, number| match number {
        1 => Answer::moves(4).with_status(DeviceStatus::STATUS_MODIFIER),
        _ => Answer::moves(4),
    };
    rig.device.set_script(found);
    let orb = Orb::new(PROGRAM);
    let (tic, last) = (Ccw::new(command::TIC, PROGRAM, 0), Ccw::new(0x05, BUFFER, 4));
    rig.put_ccws(&orb, PROGRAM.into(), &[searches[0], tic, last]);
    let map = rig.map.clone();
    let mut seen = [0; 2];
    while_rewritten(&map, &[Flip::ccws(PROGRAM, &searches)], 5 * ROUNDS, |_| {
        assert!(rig.run(&orb).scsw().is_clean_end());
        let codes = rig.device.codes();
        rig.device.log.clear();
        assert_eq!((codes.len(), codes[0], codes[2]), (3, codes[1], 0x05));
        seen[usize::from(codes[0] == 0x29)] += 1;
        seen.iter().all(|times| *times > 0)
    });
}
