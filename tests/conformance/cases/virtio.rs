//! `virtio`: control commands of virtio-ccw.

use vfio_ccw::architecture::{Ccw, CcwFlags};

use crate::suite::session::{DATA, Session, iova};
use crate::suite::virtio::ccw;

const SLI: CcwFlags = CcwFlags::SUPPRESS_LENGTH;

pub fn run(session: &mut Session) {
    session.section("virtio");
    let reset = [Ccw::new(ccw::VDEV_RESET, 0, 0).with(SLI)];
    session.run("VDEV_RESET", &reset, &[]);
    // Operands lie behind what a run fills.
    const OPERAND: usize = DATA + 0x8000;
    let write = |command, count| [Ccw::new(command, iova(OPERAND), count)];
    session.put(OPERAND, &[0, 99, 0, 0]);
    session.run("SET_VIRTIO_REV 99", &write(ccw::SET_VIRTIO_REV, 4), &[]);
    session.put(OPERAND, &[0, 2, 0, 0]);
    session.run("SET_VIRTIO_REV 2", &write(ccw::SET_VIRTIO_REV, 4), &[]);
    session.run("SET_VIRTIO_REV 2 again", &write(ccw::SET_VIRTIO_REV, 4), &[]);
    session.put(OPERAND, &[0, 0, 0, 0, 1]);
    session.run("READ_FEAT 1", &write(ccw::READ_FEAT, 5), &[(OPERAND + 4, 1)]);
    session.put(OPERAND, &[1, 0, 0, 0, 1]);
    session.run("WRITE_FEAT 1", &write(ccw::WRITE_FEAT, 5), &[]);
    session.put(OPERAND, &[0, 0, 0, 0]);
    session.run("READ_VQ_CONF 0", &write(ccw::READ_VQ_CONF, 4), &[(OPERAND, 4)]);
    session.put(OPERAND, &[0xaa; 16]);
    session.run(
        "READ_CONF, 8 bytes, SLI",
        &write(ccw::READ_CONF, 8).map(|ccw| ccw.with(SLI)),
        &[(OPERAND, 9)],
    );
    session.put(OPERAND, &[3]);
    session.run("WRITE_STATUS 3", &write(ccw::WRITE_STATUS, 1), &[]);
    session.run("VDEV_RESET again", &reset, &[]);
}
