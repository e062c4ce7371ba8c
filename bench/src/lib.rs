//! The figures that the project stands on, each measured next to its peer.
//!
//! A machine is shared and noisy, so a time alone says little. Every figure here is therefore a ratio
//! of two measurements taken in turns within one run (or, for the few absolute ones, a size or count),
//! with an interval that says how far to trust it.
//!
//! | module | holds |
//! |---|---|
//! | [`ratio`] | what a figure is, how it is measured, summarised and shown |
//! | [`fields`] | the figures themselves, by topic |
//! | [`parts`] | parts of a request's way, each by itself |
//! | [`instructions`] | how many instructions a part takes |
//! | [`record`] | a measurement that is kept |
//! | [`baseline`] | peers that no library provides |
//! | [`replacement`] | hit rates of the pool next to other policies |
//! | [`service_load`] | a service under load, as the figures drive it |
//! | [`comparison`] | loads in turns, and whether they differ |
//! | [`engines`] | what jobs drive |
//! | [`job`] | a job of a job file, on services of its own |
//! | [`run`], [`machine`] | what is left of loads, and what they ran on |
//! | [`report`] | one page of any number of result files |
//! | [`processor`] | threads that stay on one processor |
//! | [`peer_process`] | the other process of figures that take two |
//! | [`allocations`] | a count of heap allocations |
//!
//! # Adding a figure
//!
//! One function that measures one round, and one row in [`fields::FIELDS`]:
//!
//! ```
//! use vfio_ccw_bench::ratio::{Field, FieldError, Figure, Round, Sample, Target};
//!
//! fn double_vs_single(round: &Round) -> Result<Sample, FieldError> {
//!     let cost_of = |steps: u64| Ok((0..steps).map(std::hint::black_box).sum::<u64>() as f64);
//!     round.compare(|| cost_of(20), || cost_of(10))
//! }
//!
//! let field = Field {
//!     name: "double_vs_single",
//!     measures: "twenty steps / ten steps",
//!     target: Target::Ge(2.0),
//!     rounds: 5,
//!     round: double_vs_single,
//! };
//! let mut values = Vec::new();
//! field.each_round(1..6, 1, |value| values.push(value))?;
//! // `ratios` has several passes, each in a process of its own.
//! assert!(Figure::of(field.target, vec![values], 1)?.holds);
//! # Ok::<(), FieldError>(())
//! ```

pub mod allocations;
pub mod baseline;
pub mod comparison;
pub mod engines;
pub mod fields;
pub mod instructions;
pub mod job;
pub mod machine;
pub mod parts;
pub mod peer_process;
pub mod processor;
pub mod ratio;
pub mod record;
pub mod replacement;
pub mod report;
pub mod run;
pub mod service_load;
