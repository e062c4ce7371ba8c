//! Peers that no library provides: the obvious way to do what the project does, done well.
//!
//! | file | what it is |
//! |---|---|
//! | [`sync_epoll`], [`sync_pair`] | I/Os one at a time, on one thread and across two |
//! | [`sync_loop`] | the same as an engine of the load generator, with ways to wait and to pin |
//! | [`echo`] | rings to a thread and back |
//! | `region.rs` | the subchannel behind all but the last |

pub mod echo;
mod region;
pub mod sync_epoll;
pub mod sync_loop;
pub mod sync_pair;
