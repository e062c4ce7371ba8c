//! Ending a program before its end.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::task::Poll;

use crate::architecture::Function;
use crate::sleeper::Sleeper;

/// Asks the channel, and the device that is executing a command, to come to an end.
///
/// The channel looks between commands. A device that waits for something that may never come waits for
/// [`Data::stopped`](super::Data::stopped) as well; one whose transfer is under way finishes that, so
/// that nothing is moved any more when the program has ended.
#[derive(Debug, Default)]
pub struct Stop {
    function: Cell<Option<Function>>,
    /// The device need not wait any more, but the program is not cut short.
    released: Cell<bool>,
    device: Sleeper,
}

impl Stop {
    /// HALT or CLEAR: the program ends at its next command.
    pub fn ask(&self, function: Function) {
        self.function.set(Some(function));
        self.device.wake();
    }

    /// Whatever the device waits for will not come. What goes on by itself may go on to its end.
    pub fn release(&self) {
        self.released.set(true);
        self.device.wake();
    }

    /// Whether the program is to end now.
    pub fn asked(&self) -> Option<Function> {
        self.function.get()
    }

    /// For the next program.
    pub fn reset(&self) {
        self.function.set(None);
        self.released.set(false);
    }

    /// Resolves when the program is to end, or the device need not wait any more.
    pub fn stopped(&self) -> impl Future<Output = ()> + '_ {
        poll_fn(|cx| {
            if self.released.get() || self.function.get().is_some() {
                return Poll::Ready(());
            }
            self.device.remember(cx.waker());
            Poll::Pending
        })
    }
}
