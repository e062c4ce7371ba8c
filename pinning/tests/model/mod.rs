//! What the pool is held against: memory in slots, a pinner that keeps books, and two players that
//! do random things: one in order, with exact expectations; several at once, with rules that always hold.

pub mod draw;
pub mod guest;
pub mod pinner;
pub mod sequence;
pub mod steps;
pub mod threads;
