//! The state of a subchannel, from the project's sources, and a copy that has flaws.

#[path = "../../../src/subchannel/cc.rs"]
mod cc;
#[path = "../../../src/subchannel/cell.rs"]
#[expect(dead_code, reason = "what only rings and futures use of it")]
mod cell;
pub(crate) mod flawed;
#[path = "../../../src/subchannel/state.rs"]
mod state;
#[path = "../../../src/subchannel/sync.rs"]
mod sync;

pub use cc::Cc;

pub(crate) use cell::{Cell, Step};
pub(crate) use state::Tag;
