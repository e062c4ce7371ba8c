//! Load for block-like engines: keep every slot busy, and know afterwards exactly what happened.
//!
//! The crate knows nothing of channel programs. It drives anything that implements [`Engine`]: a number
//! of *slots*, each of which carries at most one request at a time (for vfio-ccw a slot is a
//! subchannel), over a volume of bytes and a guest memory. On top of that stand three jobs:
//!
//! * [`open_loop::run`] makes requests by the clock, at a rate;
//! * [`closed_loop::run`] keeps every slot busy with a [`Workload`] until a time or a count is reached;
//! * [`verify::write_and_read_back`] writes a whole volume with a verifiable pattern and reads it back.
//!
//! All account for every request: completed, failed (and how), lost or completed twice; and, where
//! asked to, compare every byte read with what the last write to that block put there.
//!
//! | module | holds |
//! |---|---|
//! | [`engine`] | what a driven system must offer |
//! | [`request`] | what goes in and what comes out of a slot |
//! | [`failure`] | how a request can fail, as a small `Copy` value |
//! | [`workload`] | which requests a slot makes |
//! | [`access`], [`zipf`] | which block comes next |
//! | [`random`] | the small deterministic generator behind all draws |
//! | [`pattern`] | block contents that say which block and version they are |
//! | [`closed_loop`], [`open_loop`], [`verify`] | the jobs |
//! | [`job_file`] | jobs as fio's users write them |
//! | [`progress`] | what is shown while a job runs |
//! | [`report`] | what is left when it has ended |
//! | [`units`] | sizes and times as people write them |
//!
//! # Example
//!
//! ```
//! use std::sync::atomic::AtomicBool;
//! use std::time::Duration;
//! use vfio_ccw_load::closed_loop::{self, ClosedLoop, Limit};
//! use vfio_ccw_load::{Completion, Engine, EngineError, Quiet, Request, Workload};
//!
//! /// Completes everything at once and moves no data.
//! struct Instantly(Vec<Completion>);
//!
//! impl Engine for Instantly {
//!     fn slots(&self) -> usize {
//!         4
//!     }
//!     fn submit(&mut self, requests: &[Request]) -> Result<(), EngineError> {
//!         self.0.extend(requests.iter().map(|request| Completion { slot: request.slot, outcome: Ok(()) }));
//!         Ok(())
//!     }
//!     fn reap(&mut self, done: &mut Vec<Completion>, _wait: Option<Duration>) -> Result<(), EngineError> {
//!         done.append(&mut self.0);
//!         Ok(())
//!     }
//!     fn write_guest(&self, _gpa: u64, _bytes: &[u8]) -> Result<(), EngineError> {
//!         Ok(())
//!     }
//!     fn read_guest(&self, _gpa: u64, _bytes: &mut [u8]) -> Result<(), EngineError> {
//!         Ok(())
//!     }
//! }
//!
//! let job = ClosedLoop { limit: Limit::ios(1000), ..ClosedLoop::new(Workload::new(1 << 20, 4096)) };
//! let report = closed_loop::run(&mut Instantly(Vec::new()), &job, &mut Quiet, &AtomicBool::new(false))?;
//! assert_eq!((report.ios, report.lost, report.duplicate), (1000, 0, 0));
//! # Ok::<(), vfio_ccw_load::LoadError>(())
//! ```

pub mod access;
pub mod closed_loop;
mod driver;
pub mod engine;
pub mod failure;
pub mod job_file;
pub mod open_loop;
pub mod pattern;
pub mod progress;
pub mod random;
pub mod report;
pub mod request;
pub mod units;
pub mod verify;
pub mod workload;
pub mod zipf;

pub use access::Access;
pub use closed_loop::{ClosedLoop, Limit, LoadReport};
pub use driver::{LoadError, STALL_LIMIT};
pub use engine::{Engine, EngineError};
pub use failure::{Failure, FailureKind};
pub use job_file::{JobFile, JobFileError};
pub use open_loop::OpenLoop;
pub use progress::{LiveLine, Progress, Quiet, Tick};
pub use report::{BudgetRow, JobReport, StageRow};
pub use request::{Completion, Direction, Request};
pub use units::{ParseBytesError, parse_bytes};
pub use verify::{VerifyReport, WholeVolume};
pub use workload::{Buffers, Workload, WorkloadError};
