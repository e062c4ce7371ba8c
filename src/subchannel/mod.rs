//! Subchannels: what vCPUs and the VMM see of a device, and how they drive it.
//!
//! | part | file |
//! |---|---|
//! | instructions, with their condition codes | `instructions.rs`, `cc.rs` |
//! | rings: programs, HALT and CLEAR with `user_data` | `ring.rs` |
//! | a future for each start | `start.rs` |
//! | the state that all of these change: one word, one compare-and-swap a change | `state.rs`, `cell.rs` |
//! | what vCPUs and the shard share | `shared.rs`, `door.rs` |
//! | pending interruptions, by subclass | `interruptions.rs` |
//! | channel reports | `reports.rs` |
//! | subchannels by number | `table.rs` |

mod cc;
mod cell;
mod door;
mod instructions;
mod interruptions;
mod reports;
mod ring;
mod shared;
mod start;
mod state;
mod sync;
mod table;

pub use cc::Cc;
pub use instructions::Subchannel;
pub use ring::SubmitError;
pub use start::Start;

pub(crate) use cell::{Cell, Saved};
pub(crate) use door::{Door, MAILBOX, Urgent};
pub(crate) use interruptions::Interruptions;
pub(crate) use reports::Reports;
pub(crate) use shared::{Origin, Parts, Request, Shared};
pub(crate) use start::Starts;
pub(crate) use state::{MOST_STARTS, Tag};
pub(crate) use table::Table;
