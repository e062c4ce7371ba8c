//! `lpm`: starts over paths that there are not.

use vfio_ccw::architecture::{Ccw, Orb, command};

use crate::suite::session::{IOVA, Session};

pub fn run(session: &mut Session) {
    session.section(super::MARKING);
    let nop = [Ccw::new(command::NOP, 0, 0)];
    for (case, lpm) in
        [("no such path", 0x40), ("path 80 after that", 0x80), ("no path after that", 0)]
    {
        session.run_with(case, Orb::new(IOVA).with_lpm(lpm), &nop, &[]);
    }
}
