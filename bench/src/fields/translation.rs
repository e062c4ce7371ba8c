//! Translating channel programs.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use vfio_ccw_pinning::FRAME;

use crate::parts::translation::{LARGE, PROGRAMS, SMALL, Translation};
use crate::ratio::{FieldError, Round, Sample};

/// Bytes of an I/O region.
const REGION: usize = 124;

/// Translation of 10 CCWs with 16 cached pages / one 124-byte pread on a memfd.
pub fn vs_pread(round: &Round) -> Result<Sample, FieldError> {
    let mut translation = Translation::new(PROGRAMS, SMALL)?;
    let region = memfd()?;
    round.compare(
        || nanos_a_program(&mut translation, 300),
        || {
            let mut bytes = [0; REGION];
            let start = Instant::now();
            for _ in 0..20_000 {
                region.read_exact_at(black_box(&mut bytes), 0)?;
            }
            Ok(start.elapsed().as_nanos() as f64 / 20_000.0)
        },
    )
}

/// Cost of a CCW in programs of 16 times 256 CCWs / in programs of 10.
pub fn linear(round: &Round) -> Result<Sample, FieldError> {
    let (mut large, mut small) = (Translation::new(1, LARGE)?, Translation::new(PROGRAMS, SMALL)?);
    round.compare(
        || Ok(nanos_a_program(&mut large, 40)? / LARGE as f64),
        || Ok(nanos_a_program(&mut small, 256)? / SMALL as f64),
    )
}

fn memfd() -> Result<File, FieldError> {
    let memfd = File::from(rustix::fs::memfd_create("region", rustix::fs::MemfdFlags::CLOEXEC)?);
    memfd.set_len(FRAME)?;
    Ok(memfd)
}

/// Nanoseconds to translate one program. Its pages are given back between the measurements, as they are
/// when a program has ended.
fn nanos_a_program(translation: &mut Translation, batches: usize) -> Result<f64, FieldError> {
    let mut spent = Duration::ZERO;
    for _ in 0..batches {
        let start = Instant::now();
        translation.translate_all()?;
        spent += start.elapsed();
        translation.release_all();
    }
    Ok(spent.as_nanos() as f64 / (batches * translation.programs()) as f64)
}
