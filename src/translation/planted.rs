//! A slowdown that a comparison of two builds has to find: translation waits, busily, for a tenth of what a busy shard
//! takes for its programs.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Of so many programs one waits for as long as the one before it took, from translation to translation.
const ONE_IN: u32 = 10;

/// A shard that was idle in between is not waited for.
const MOST: Duration = Duration::from_micros(100);

thread_local! {
    static PROGRAMS: Cell<u32> = const { Cell::new(0) };
    /// When the program before the one that waits began.
    static BEFORE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A program is about to be translated.
pub(super) fn slow_down() {
    let number = PROGRAMS.get().wrapping_add(1);
    PROGRAMS.set(number);
    if number % ONE_IN == ONE_IN - 1 {
        BEFORE.set(Some(Instant::now()));
    }
    if number.is_multiple_of(ONE_IN)
        && let Some(before) = BEFORE.take()
    {
        let now = Instant::now();
        let end = now + (now - before).min(MOST);
        while Instant::now() < end {
            std::hint::spin_loop();
        }
    }
}
