//! A slowdown that a comparison of two builds has to find: each tenth program is translated for twice as long.

use std::cell::Cell;
use std::time::Instant;

/// Programs of which one is slow, so that their translation takes a tenth longer on the whole.
const ONE_IN: u32 = 10;

thread_local! {
    static PROGRAMS: Cell<u32> = const { Cell::new(0) };
}

/// The translation of a program.
pub(super) struct Slowdown(Option<Instant>);

impl Slowdown {
    pub(super) fn begin() -> Self {
        let number = PROGRAMS.get().wrapping_add(1);
        PROGRAMS.set(number);
        Slowdown(number.is_multiple_of(ONE_IN).then(Instant::now))
    }

    /// Waits, busily, for as long as it has taken.
    pub(super) fn end(self) {
        let Some(begin) = self.0 else { return };
        let took = begin.elapsed();
        while begin.elapsed() < 2 * took {
            std::hint::spin_loop();
        }
    }
}
