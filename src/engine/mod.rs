//! Services as the load generator drives them: a subchannel a slot, one channel program a request.
//!
//! | engine | a request is |
//! |---|---|
//! | [`DiskEngine`] | a transfer of an FBA disk, whose program is written anew for each as a guest's driver does |
//! | [`ProgramEngine`] | a channel program that stands in guest memory once and for all |

mod disk;
mod ports;
mod program;
mod stages;

pub use disk::{DiskEngine, MAX_TRANSFER};
pub use ports::EngineSetupError;
pub use program::ProgramEngine;
pub use stages::stage_row;
