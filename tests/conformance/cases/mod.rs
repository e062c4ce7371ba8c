//! The cases, by the sections of what the driver was asked.

mod addressing;
mod asynchronous;
mod busy;
mod errors;
mod held;
mod interface;
mod late;
mod paths;
mod programs;
mod regions;
mod virtio;

use super::session::Session;

/// The section of [`marking`].
pub const MARKING: &str = "lpm";

/// All of them.
pub fn all(session: &mut Session) {
    repeatable(session);
    marking(session);
}

/// What leaves a device as it found it.
pub fn repeatable(session: &mut Session) {
    interface::run(session);
    programs::run(session);
    regions::run(session);
    addressing::run(session);
    virtio::run(session);
    held::run(session);
    asynchronous::run(session);
    busy::run(session);
    late::run(session);
    errors::run(session);
}

/// What leaves marks in QEMU's subchannel: the last.
pub fn marking(session: &mut Session) {
    paths::run(session);
}
