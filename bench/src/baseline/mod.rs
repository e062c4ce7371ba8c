//! Peers that no library provides: the obvious way to do what the project does, done well.

pub mod sync_epoll;
pub mod sync_pair;
