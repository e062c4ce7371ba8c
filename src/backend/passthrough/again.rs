//! When to try again what a driver could not do just now.

use std::task::Context;
use std::time::Duration;

use tokio::time::Instant;

/// Times that something is tried again as soon as the neighbours had their turn.
const TURNS: u32 = 32;

/// The first wait after these, which doubles to the longest. The runtime's timers have milliseconds.
const FIRST_WAIT: Duration = Duration::from_millis(1);
const LONGEST_WAIT: Duration = Duration::from_millis(32);

/// When to try something again.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Again {
    tries: u32,
    /// When it was first tried.
    since: Option<Instant>,
    /// Not before this; `None`: at once.
    pub(super) at: Option<Instant>,
}

impl Again {
    /// Whether to try now.
    pub(super) fn is_due(&mut self) -> bool {
        match self.at {
            Some(at) if Instant::now() < at => false,
            _ => {
                self.at = None;
                true
            }
        }
    }

    /// Tries again: at first when the neighbours had their turn.
    pub(super) fn later(&mut self, cx: &Context<'_>) {
        self.tries += 1;
        self.since.get_or_insert_with(Instant::now);
        if self.tries <= TURNS {
            cx.waker().wake_by_ref();
            return;
        }
        let doublings = (self.tries - TURNS - 1).min(16);
        let wait = FIRST_WAIT.saturating_mul(1 << doublings).min(LONGEST_WAIT);
        self.at = Some(Instant::now() + wait);
    }

    /// Whether it was tried for so long.
    pub(super) fn is_over(&self, patience: Duration) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= patience)
    }
}
