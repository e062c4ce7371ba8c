//! The parts of the suite.

pub mod cases;
pub mod differences;
pub mod driver;
pub mod in_process;
mod ioctl;
pub mod lines;
pub mod outcome;
pub mod remote;
pub mod session;
pub mod target;
mod virtio;
