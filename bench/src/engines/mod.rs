//! What jobs drive, by name, and what it takes to make it.
//!
//! | file | holds |
//! |---|---|
//! | `kind.rs` | the names |
//! | `shape.rs` | channel programs that need no disk |
//! | `plan.rs` | a job's options, checked against each other |
//! | `driven.rs` | an engine, ready to be driven |

mod driven;
mod kind;
mod plan;
mod shape;

pub use driven::Driven;
pub(crate) use driven::scratch;
pub use kind::{EngineKind, UnknownEngine};
pub use plan::{Plan, ProgramKind, Refused};
pub use shape::{Shape, UnknownShape};
