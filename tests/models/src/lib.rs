//! Model checks of the state of a subchannel: that concurrent I/O instructions on it are linearisable,
//! and that the memory orderings of its state word suffice.
//!
//! The sources under test are the project's own, compiled here again with the atomics of a model
//! checker: [`architecture`], and the state cell behind [`subject::sound`].
//!
//! | part | file |
//! |---|---|
//! | what is checked, and copies of it with a flaw | `subject.rs`, `subchannel/flawed.rs` |
//! | what vCPUs do, and what the channel does | `vcpus.rs`, `channel.rs`, `ring.rs` |
//! | status of which every word says whose it is | `status.rs` |
//! | one run of them all, and what is recorded of it | `execution.rs`, `history.rs` |
//! | the rules, as one thread sees them | `model.rs` |
//! | whether a history follows the rules | `checker.rs`, `properties.rs` |
//!
//! `tests/` has the suites: `checker.rs` and `real_threads.rs` for a normal build, `shuttle.rs` and
//! `loom.rs` for the model checkers.

#[path = "../../../src/architecture/mod.rs"]
#[expect(dead_code, reason = "what only the rest of the project uses of it")]
pub mod architecture;

pub mod checker;
pub mod history;
pub mod model;
pub mod properties;
pub mod random;
pub mod status;
pub mod subject;

mod subchannel;

// With loom a model is a few steps that are written out: nothing is drawn at random.
#[cfg(not(loom))]
pub mod channel;
#[cfg(not(loom))]
pub mod execution;
#[cfg(not(loom))]
pub mod ring;
#[cfg(not(loom))]
mod threads;
#[cfg(not(loom))]
pub mod vcpus;
