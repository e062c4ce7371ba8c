//! `addr`: where programs, IDALs and data may be.

use vfio_ccw::architecture::{Ccw, CcwFlags, Orb, OrbFlags, command};

use crate::suite::session::{DATA, IOVA, LIST, MAIN, NOWHERE, PART, Session, iova};
use crate::suite::target::show;

const SLI: CcwFlags = CcwFlags::SUPPRESS_LENGTH;
const CC: CcwFlags = CcwFlags::CHAIN_COMMAND;

/// Behind the last byte of the main window.
const END: u32 = IOVA + MAIN as u32;

fn sense_id(address: u32, count: u16) -> Ccw {
    Ccw::new(command::SENSE_ID, address, count).with(SLI)
}

fn indirect(list: usize, count: u16) -> Ccw {
    sense_id(iova(list), count).with(SLI | CcwFlags::INDIRECT)
}

pub fn run(session: &mut Session) {
    session.section("addr");
    lists(session);
    far(session);
    unmapped(session);
    protected(session);
}

fn lists(session: &mut Session) {
    let orb = Orb::new(IOVA);
    let short = orb.with_flags(orb.flags() - OrbFlags::FORMAT_2_IDAWS);
    let blocks = orb.with_flags(orb.flags() | OrbFlags::IDAW_2K);
    let at = |offset: usize| u64::from(iova(DATA + offset));
    session.put_list(LIST, &[at(0)]);
    session.run("IDAL format 2", &[indirect(LIST, 7)], &[(DATA, 8)]);
    // Two areas: QEMU takes the first bytes for each.
    session.put_list(LIST, &[at(0xffc), at(0x2000)]);
    let split = [(DATA + 0xffc, 4), (DATA + 0x2000, 4)];
    session.run("IDAL format 2, split 4 + 3", &[indirect(LIST, 7)], &split);
    session.put_short_list(LIST, &[iova(DATA)]);
    session.run_with("IDAL format 1", short, &[indirect(LIST, 7)], &[(DATA, 8)]);
    session.put_short_list(LIST, &[iova(DATA + 0x7fc), iova(DATA + 0x1000)]);
    let split = [(DATA + 0x7fc, 4), (DATA + 0x1000, 4)];
    session.run_with("IDAL format 1, split 4 + 3", short, &[indirect(LIST, 7)], &split);
    session.put_list(LIST, &[at(0x7fc), at(0x1800)]);
    let split = [(DATA + 0x7fc, 4), (DATA + 0x1800, 4)];
    session.run_with("IDAL of 2K blocks, split 4 + 3", blocks, &[indirect(LIST, 7)], &split);
    let direct = [sense_id(iova(DATA), 7)];
    session.run_with("direct, format-1 IDAWs", short, &direct, &[(DATA, 8)]);
    let across = [sense_id(iova(DATA + 0xffd), 7)];
    session.run("direct, across a page", &across, &[(DATA + 0xffc, 9)]);
    session.put_list(LIST, &[at(0), at(0x1100)]);
    session.run("IDAL, second IDAW not aligned", &[indirect(LIST, 4097)], &[]);
    session.put_list(LIST + 4, &[at(0)]);
    session.run("IDAL at 4 mod 8", &[indirect(LIST + 4, 7)], &[(DATA, 8)]);
    session.works("start after lists");
}

/// Low and high addresses.
fn far(session: &mut Session) {
    const HIGH: u64 = 1 << 32;
    const MIDDLE: u32 = 0x9000_0000;
    for (iova, part) in [(HIGH, 0), (MIDDLE.into(), 1), (0, 2)] {
        session.target.map(iova, MAIN + part * PART, PART, 3).unwrap();
    }
    session.put_list(LIST, &[HIGH + 0x100]);
    let data = MAIN + 0x100;
    session.put(data, &[0xaa; 8]);
    session.run("IDAW above 4 GiB", &[indirect(LIST, 7)], &[(data, 8)]);
    let middle = MAIN + PART;
    session.put(middle, &[0xaa; 8]);
    session.run("direct, data above 2 GiB", &[sense_id(MIDDLE, 7)], &[(middle, 8)]);
    session.put_program(middle + 0x1000, &[sense_id(iova(DATA), 7)]);
    session.start_showing("program above 2 GiB", Orb::new(MIDDLE + 0x1000), &[]);
    let low = MAIN + 2 * PART;
    session.put(low + 0x2000, &[0xaa; 8]);
    session.put_program(low, &[sense_id(0x2000, 7)]);
    session.start_showing("program at 0", Orb::new(0), &[(low + 0x2000, 8)]);
    session.put_program(low + 0x104, &[sense_id(0x2000, 7)]);
    session.start_showing("program at 4 mod 8", Orb::new(0x104), &[]);
    let unmapped = session.target.unmap(HIGH, PART as u64).map(|bytes| format!("{bytes:#x}"));
    session.note("unmap what is idle", show(&unmapped));
    session.run("IDAW to what was unmapped", &[indirect(LIST, 7)], &[]);
    for iova in [MIDDLE.into(), 0] {
        session.target.unmap(iova, PART as u64).unwrap();
    }
}

fn unmapped(session: &mut Session) {
    session.start_showing("program unmapped", Orb::new(NOWHERE), &[]);
    // The driver reads 256 CCWs, wherever the program ends.
    for back in [8, 16, 2040, 2048] {
        session.put_program(MAIN - back, &[sense_id(iova(DATA), 7)]);
        let case = format!("program {back} bytes before the end");
        session.start_showing(&case, Orb::new(END - back as u32), &[]);
    }
    let nop = Ccw::new(command::NOP, 0, 0).with(SLI | CC);
    session.run("data unmapped", &[sense_id(NOWHERE, 7)], &[]);
    session.run("data unmapped, count 0", &[sense_id(NOWHERE, 0)], &[]);
    session.run("data unmapped, NOP", &[Ccw::new(command::NOP, NOWHERE, 1).with(SLI)], &[]);
    session.run("data unmapped, SKIP", &[sense_id(NOWHERE, 7).with(SLI | CcwFlags::SKIP)], &[]);
    session.run("data runs out of the window", &[sense_id(END - 4, 7)], &[]);
    let nowhere = sense_id(NOWHERE, 7).with(SLI | CcwFlags::INDIRECT);
    session.run("IDAL unmapped", &[nowhere], &[]);
    session.put_list(LIST, &[NOWHERE.into()]);
    session.run("IDAW to nowhere", &[indirect(LIST, 7)], &[]);
    session.put_list(LIST, &[iova(DATA).into(), NOWHERE.into()]);
    session.run("second IDAW to nowhere", &[indirect(LIST, 4097)], &[]);
    session.put_list(MAIN - 8, &[iova(DATA).into()]);
    session.run("IDAL runs out of the window", &[indirect(MAIN - 8, 4097)], &[]);
    session.run("TIC to nowhere", &[nop, Ccw::new(command::TIC, NOWHERE, 0)], &[]);
    session.run("second CCW's data unmapped", &[nop, sense_id(NOWHERE, 7)], &[]);
    session.works("start after nowhere");
}

fn protected(session: &mut Session) {
    const FETCH: u32 = 0x0a00_0000;
    const STORE: u32 = 0x0b00_0000;
    for (iova, part, access) in [(FETCH, 0, 1), (STORE, 1, 2)] {
        session.target.map(iova.into(), MAIN + part * PART, PART, access).unwrap();
    }
    for (case, window, part) in [("for fetching", FETCH, 0), ("for storing", STORE, 1)] {
        let data = MAIN + part * PART;
        session.put(data, &[0xaa; 8]);
        session.run(&format!("store into a window {case}"), &[sense_id(window, 7)], &[(data, 8)]);
        session.put_program(data, &[sense_id(iova(DATA), 7)]);
        session.start_showing(&format!("program in a window {case}"), Orb::new(window), &[]);
    }
    session.works("start after windows");
    for iova in [FETCH, STORE] {
        session.target.unmap(iova.into(), PART as u64).unwrap();
    }
}
