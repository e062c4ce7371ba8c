//! Running a future that waits for nothing: a channel program on a device without files.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Polls until the future is ready. It may give others their turn, but never wait for an event.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
}
