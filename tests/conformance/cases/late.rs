//! `late`: memory that comes and goes while the device is open.

use vfio_ccw::architecture::{Ccw, CcwFlags, Orb, command};

use crate::suite::session::{MAIN, PART, Session};
use crate::suite::target::done;

const AT: u32 = 0x2000_0000;
const GONE: u32 = 0x2100_0000;

pub fn run(session: &mut Session) {
    session.section("late");
    let sense_id = |at| [Ccw::new(command::SENSE_ID, at, 7).with(CcwFlags::SUPPRESS_LENGTH)];
    let mapped = session.target.map(AT.into(), MAIN, PART, 3);
    session.note("map", done(&mapped));
    session.put(MAIN, &[0xaa; 8]);
    session.run("data in it", &sense_id(AT), &[(MAIN, 8)]);
    session.target.unmap(AT.into(), PART as u64).unwrap();
    session.run("data in it, unmapped", &sense_id(AT), &[]);
    let mapped = session.target.map_nothing(GONE.into(), PART);
    session.note("map memory that then goes", done(&mapped));
    session.run("data in memory that is gone", &sense_id(GONE), &[]);
    session.start_showing("program in memory that is gone", Orb::new(GONE), &[]);
    if mapped.is_ok() {
        session.target.unmap(GONE.into(), PART as u64).unwrap();
    }
    session.works("start after that");
}
