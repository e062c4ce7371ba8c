//! Parts of a request's way, each by itself, with just what it needs around it.
//!
//! Three things measure the same code: the [figures](crate::fields) time a part next to its peers, the
//! benches time it alone, and [`instructions`](crate::instructions) counts what it executes.

pub mod finish;
pub mod pin_hit;
pub mod ring;
pub mod translation;

use std::fmt;
use std::hint::black_box;
use std::str::FromStr;

use vfio_ccw_queues::spsc;

use crate::ratio::FieldError;

use finish::Finished;
use pin_hit::{ENTRIES, PAGES, random_frames, take_and_release, warm_pool};
use translation::{PROGRAMS, SMALL, Translation};
use vfio_ccw_pinning::Hold;

/// A part whose instructions are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Push and pop of 8 bytes, one producer.
    Ring,
    /// Take and release of a cached frame, in programs of 16 pages.
    PinHit,
    /// Translate a program of 10 CCWs and 16 cached pages, and give the pages back.
    Translate,
    /// Map the status of such a program back.
    Finish,
}

impl Part {
    /// All of them, in the order of a request's way.
    pub const ALL: [Self; 4] = [Self::Ring, Self::PinHit, Self::Translate, Self::Finish];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::PinHit => "pin_hit",
            Self::Translate => "translate",
            Self::Finish => "finish",
        }
    }

    /// Operations that are always done together: [`run`](Self::run) does a multiple of them.
    pub fn batch(self) -> u64 {
        match self {
            Self::Ring | Self::Finish => 1,
            Self::PinHit => PAGES as u64,
            Self::Translate => PROGRAMS,
        }
    }

    /// Sets up what it takes, which is the same whatever `times` is, and does it so many times, rounded
    /// down to a multiple of [`batch`](Self::batch).
    ///
    /// # Errors
    /// Where the set-up fails, or the part does not do what it is there for.
    pub fn run(self, times: u64) -> Result<(), FieldError> {
        let batches = times / self.batch();
        match self {
            Self::Ring => {
                let (mut producer, mut consumer) = spsc::ring::<u64>(ring::CAPACITY);
                let push = |item| producer.push(item).is_ok();
                let sum = ring::alternate(batches, push, || consumer.pop());
                ring::check_sum(sum, ring::sum_of(batches))
            }
            Self::PinHit => {
                let (pool, frames) = (warm_pool()?, random_frames(1, 0..ENTRIES));
                let mut hold = Hold::default();
                let mut missed = 0;
                // A frame's first hit after the pool was filled may differ from the next.
                let programs = || frames.chunks_exact(PAGES);
                let warm_up = programs();
                for program in warm_up.chain(programs().cycle().take(batches as usize)) {
                    missed += u64::from(!take_and_release(&pool, &mut hold, program));
                }
                match missed {
                    0 => Ok(()),
                    _ => Err(format!("{missed} programs missed in a warm pool").into()),
                }
            }
            Self::Translate => {
                let mut translation = Translation::new(PROGRAMS, SMALL)?;
                // One more: what is allocated when a program is first read is no part of it.
                for _ in 0..=batches {
                    translation.translate_all()?;
                    translation.release_all();
                }
                Ok(())
            }
            Self::Finish => {
                let finished = Finished::new()?;
                for _ in 0..batches {
                    black_box(finished.back_map());
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Part {
    type Err = FieldError;

    fn from_str(name: &str) -> Result<Self, FieldError> {
        (Self::ALL.into_iter().find(|part| part.name() == name)).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            format!("there is no part {name:?}; there are: {known}").into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_runs_and_has_its_name() {
        for part in Part::ALL {
            part.run(2 * part.batch()).unwrap();
            assert_eq!(part.name().parse::<Part>().unwrap(), part);
        }
        let error = "sing".parse::<Part>().unwrap_err().to_string();
        assert!(error.contains("sing") && error.contains("ring, pin_hit"), "{error}");
    }
}
