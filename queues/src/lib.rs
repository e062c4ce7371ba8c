//! Rings and doorbells between vCPU threads and the threads that serve them.
//!
//! Nothing here knows about channel I/O: entries are any `T: Send`, and 64 bytes between processes. Six
//! parts, each in its own module:
//!
//! | module | shape | for |
//! |---|---|---|
//! | [`spsc`] | one producer, one consumer, bounded | a stage that feeds exactly one other stage |
//! | [`submission`] | many producers, one consumer, bounded | vCPU threads starting work on one device |
//! | [`completion`] | many producers, one consumer, never refuses | shards reporting back to the VMM |
//! | [`lane`] | one producer, one consumer, bounded, in shared memory | a shard and a device server that do not trust each other |
//! | [`doorbell`] | set of ready indices with a wake-up | telling a shard which rings to look at |
//! | [`marks`] | set of indices | what a doorbell marks; which interruptions are pending |
//!
//! [`wait`] decides whether a thread looks or sleeps while there is nothing.
//! [`wakeup`] holds the protocol by which a producer avoids the system call while the consumer is
//! running; [`doorbell`] and [`completion`] are built on it, and [`lane`] has it in shared memory.
//!
//! # What holds everywhere
//!
//! * No operation on a ring allocates, locks or enters the kernel. The two exceptions are named
//!   where they occur: a full completion ring spills into a locked list, and a sleeping consumer is
//!   woken with one `write` to its eventfd.
//! * A producer that the host deschedules in the middle of a push does not hold back entries that
//!   other producers have already published. vCPU threads are descheduled all the time, so this is
//!   not a corner case (DPDK added its relaxed-tail ring modes for the same reason).
//! * Entries of one producer come out in the order in which they went in.
//! * Callbacks may panic. An entry that was handed to a callback counts as taken, the rest stay.
//!
//! # Example
//!
//! A vCPU thread submits, rings, and a shard thread serves until it has nothing left to do.
//!
//! ```
//! use std::sync::Arc;
//! use vfio_ccw_queues::{Doorbell, completion, submission};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let doorbell = Arc::new(Doorbell::new(65_536)?);
//! let (submitter, mut intake) = submission::ring::<u32>(8);
//! let (reporter, mut completions) = completion::ring::<u32>(64)?;
//!
//! let shard = {
//!     let doorbell = Arc::clone(&doorbell);
//!     std::thread::spawn(move || -> Result<(), vfio_ccw_queues::Full<u32>> {
//!         let mut served = 0;
//!         while served < 3 {
//!             doorbell.drain(|subchannel| {
//!                 assert_eq!(subchannel, 42);
//!                 served += intake.pop_burst(32, |request| reporter.push(request * 10));
//!             });
//!             reporter.notify();
//!             if doorbell.prepare_sleep() {
//!                 // A real shard waits for the doorbell's descriptor here.
//!                 std::thread::yield_now();
//!                 doorbell.awake();
//!             }
//!         }
//!         Ok(())
//!     })
//! };
//!
//! for request in [1, 2, 3] {
//!     submitter.push(request)?;
//!     doorbell.ring(42);
//! }
//!
//! let mut results = Vec::new();
//! while results.len() < 3 {
//!     completions.wait(None)?;
//!     completions.pop_burst(32, |result| results.push(result));
//! }
//! assert_eq!(results, [10, 20, 30]);
//! # shard.join().unwrap()?;
//! # Ok(())
//! # }
//! ```

pub mod completion;
pub mod doorbell;
pub mod lane;
pub mod marks;
pub mod prefetch;
pub mod spsc;
pub mod submission;
pub mod wait;
pub mod wakeup;

mod event;
mod full;
mod skipped;
mod slot;
mod sync;

pub use completion::{CompletionReceiver, CompletionSender};
pub use doorbell::Doorbell;
pub use full::Full;
pub use lane::{LaneReceiver, LaneSender};
pub use marks::Marks;
pub use submission::{Intake, Submitter};
pub use wait::WaitStrategy;
pub use wakeup::Wakeup;
