//! What vCPUs and the channel share beside the state: requests on their way, and a doorbell.

use std::collections::VecDeque;
use std::fmt;
use std::sync::PoisonError;

use crate::history::Start;
use crate::threads::{Condvar, Mutex, MutexGuard};

/// A start that was accepted, on its way to the channel.
#[derive(Clone, Copy, Debug)]
pub struct Request<T> {
    /// Its number in the history.
    pub start: Start,
    /// Its name in the subchannel's state.
    pub tag: T,
}

/// Requests on their way, and a doorbell.
pub struct Ring<T> {
    shared: Mutex<Shared<T>>,
    bell: Condvar,
}

struct Shared<T> {
    requests: VecDeque<Request<T>>,
    has_rung: bool,
    is_leaving: bool,
    is_last: bool,
    is_abandoned: bool,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        let shared = Shared {
            requests: VecDeque::new(),
            has_rung: false,
            is_leaving: false,
            is_last: false,
            is_abandoned: false,
        };
        Ring { shared: Mutex::new(shared), bell: Condvar::new() }
    }
}

impl<T> Ring<T> {
    fn shared(&self) -> MutexGuard<'_, Shared<T>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the channel look.
    pub fn ring(&self) {
        self.change(|_| {});
    }

    fn change(&self, change: impl FnOnce(&mut Shared<T>)) {
        let mut shared = self.shared();
        change(&mut shared);
        shared.has_rung = true;
        self.bell.notify_one();
    }

    /// Puts a request in. If the channel looks no more, it is for `refuse`, which has the channel's
    /// side to itself.
    pub fn push(&self, request: Request<T>, refuse: impl FnOnce(Request<T>)) {
        let mut shared = self.shared();
        if shared.is_abandoned {
            return refuse(request);
        }
        shared.requests.push_back(request);
        shared.has_rung = true;
        self.bell.notify_one();
    }

    /// The next request.
    pub fn pop(&self) -> Option<Request<T>> {
        self.shared().requests.pop_front()
    }

    /// Asks the channel to end: the device is gone.
    pub fn leave(&self) {
        self.change(|shared| shared.is_leaving = true);
    }

    /// Whether the channel was asked to end.
    pub fn is_leaving(&self) -> bool {
        self.shared().is_leaving
    }

    /// Nobody rings again.
    pub fn ring_last(&self) {
        self.change(|shared| shared.is_last = true);
    }

    /// Whether it has rung since somebody looked.
    pub fn has_rung(&self) -> bool {
        std::mem::take(&mut self.shared().has_rung)
    }

    /// Waits until it rings. `false`: it never will again.
    pub fn wait(&self) -> bool {
        let mut shared = self.shared();
        while !shared.has_rung && !shared.is_last {
            shared = self.bell.wait(shared).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::take(&mut shared.has_rung)
    }

    /// The channel looks no more: what is left is for `refuse`, which has the channel's side to itself.
    pub fn abandon(&self, refuse: impl FnMut(Request<T>)) {
        let mut shared = self.shared();
        shared.is_abandoned = true;
        shared.requests.drain(..).for_each(refuse);
    }
}

impl<T> fmt::Debug for Ring<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}
